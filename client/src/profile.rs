//! A profile: where a cluster is, whom to trust there, and who the client is.
//!
//! ```toml
//! address = "quire://127.0.0.1:9440"    # any brokers of the cluster: "quire://a:9440,b:9440"
//! authority = """…"""     # PEM; only certificates that it signed are accepted
//! certificate = """…"""   # PEM; what the client presents
//! key = """…"""           # PEM; a secret, so that the file has mode 0600
//! ```
//! Profiles live in the user's configuration folder as `quire/profiles/NAME.toml`; `quire/default-profile` holds the
//! name of the one that is used unless another is asked for.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::Address;
use crate::error::Error;

/// The environment variable that names the profile to use.
pub const PROFILE_VARIABLE: &str = "QUIRE_PROFILE";
/// Largest profile file that is read (bytes).
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Where a cluster is, whom to trust there, and who the client is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    address: String,
    /// The name to expect in the broker's certificate where it is not the address's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    server_name: Option<String>,
    #[serde(default)]
    authority: String,
    #[serde(default)]
    certificate: String,
    #[serde(default)]
    key: String,
}

/// Why there is no usable profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// No profile was named and none is the default.
    #[error("no profile is set up on this machine (looked for {})", .looked_for.display())]
    NoDefault {
        /// The file that would name it.
        looked_for: PathBuf,
    },
    /// No profile of this name.
    #[error("there is no profile \"{name}\" ({})", .path.display())]
    Missing {
        /// The name.
        name: String,
        /// Where it would be.
        path: PathBuf,
    },
    /// A name that can not be a file's.
    #[error("\"{0}\" can not be a profile's name: use letters, digits, '-' and '_'")]
    Name(String),
    /// The file could not be read or written.
    #[error("profile {}: {why}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        why: String,
    },
    /// The file, or what was given in its place, does not hold a profile.
    #[error("profile{}: {why}", .path.as_ref().map(|p| format!(" {}", p.display())).unwrap_or_default())]
    Invalid {
        /// The file, if there is one.
        path: Option<PathBuf>,
        /// What is wrong.
        why: String,
    },
    /// The system names no configuration folder for this user.
    #[error("this user has no configuration folder (HOME is not set)")]
    NoConfigFolder,
}

impl ProfileError {
    /// A sentence that says what to do.
    pub fn advice(&self) -> String {
        match self {
            ProfileError::NoDefault { .. } => {
                "Start a broker with 'quire dev', which writes a profile, or name one with --profile.".into()
            }
            ProfileError::Missing { .. } => {
                "Check the name, or run 'quire dev', which writes the profile \"dev\".".into()
            }
            ProfileError::Name(_) => "Choose another name.".into(),
            ProfileError::File { .. } => "Check the file's permissions.".into(),
            ProfileError::Invalid { .. } => "Correct it, or have it written again by 'quire dev'.".into(),
            ProfileError::NoConfigFolder => "Set HOME or XDG_CONFIG_HOME.".into(),
        }
    }
}

impl Profile {
    /// A profile for the broker at `quire://HOST:PORT`, or for the cluster of which these are brokers
    /// (`quire://HOST:PORT,HOST:PORT`), still without certificates.
    pub fn new(address: impl Into<String>) -> Profile {
        Profile {
            address: address.into(),
            server_name: None,
            authority: String::new(),
            certificate: String::new(),
            key: String::new(),
        }
    }

    /// Trusts only certificates that this authority (PEM) signed.
    #[must_use]
    pub fn authority_pem(mut self, authority: impl Into<String>) -> Profile {
        self.authority = authority.into();
        self
    }

    /// Presents this certificate with its key (both PEM).
    #[must_use]
    pub fn identity_pem(mut self, certificate: impl Into<String>, key: impl Into<String>) -> Profile {
        self.certificate = certificate.into();
        self.key = key.into();
        self
    }

    /// Expects this name in the broker's certificate in place of the address's host.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Profile {
        self.server_name = Some(name.into());
        self
    }

    /// The same certificates, used at another address.
    #[must_use]
    pub fn at(mut self, address: impl Into<String>) -> Profile {
        self.address = address.into();
        self
    }

    /// Where the brokers listen, as it was written.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Loads a profile of the user's configuration folder: the one named, else that of `QUIRE_PROFILE`, else the default.
    ///
    /// # Errors
    /// If there is none, or its file can not be used; [`ProfileError::advice`] says what to do.
    pub fn load(name: Option<&str>) -> Result<Profile, ProfileError> {
        let folder = config_folder()?;
        let from_environment = std::env::var(PROFILE_VARIABLE).ok().filter(|name| !name.is_empty());
        Profile::load_in(&folder, name.or(from_environment.as_deref()))
    }

    /// Loads the profile in this file.
    ///
    /// # Errors
    /// If it can not be read, or does not hold a profile.
    pub fn load_file(path: &Path) -> Result<Profile, ProfileError> {
        let failed = |why: String| ProfileError::File { path: path.into(), why };
        let length = fs::metadata(path).map_err(|e| failed(e.to_string()))?.len();
        if length > FILE_BYTES_MAX {
            return Err(failed(format!("it has {length} bytes, which no profile has")));
        }
        let text = fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
        let invalid = |why: String| ProfileError::Invalid { path: Some(path.into()), why };
        let profile: Profile = toml::from_str(&text).map_err(|e| invalid(e.to_string()))?;
        Address::parse_list(&profile.address).map_err(|e| invalid(e.to_string()))?;
        Ok(profile)
    }

    /// Writes the profile into this file, readable by its owner alone; replaces what is there, whole or not at all.
    ///
    /// # Errors
    /// If the folder can not be made or the file not written.
    pub fn save(&self, path: &Path) -> Result<(), ProfileError> {
        let text = toml::to_string(self)
            .map_err(|e| ProfileError::Invalid { path: Some(path.into()), why: e.to_string() })?;
        replace_private(path, &text).map_err(|e| ProfileError::File { path: path.into(), why: e.to_string() })
    }

    /// Writes the profile into the user's configuration folder under this name, and returns its file.
    ///
    /// # Errors
    /// If the name can not be a file's, or as [`Profile::save`].
    pub fn save_as(&self, name: &str) -> Result<PathBuf, ProfileError> {
        let path = Profile::path(name)?;
        self.save(&path)?;
        Ok(path)
    }

    /// The file of the profile of this name, whether it exists or not.
    ///
    /// # Errors
    /// If the name can not be a file's, or the user has no configuration folder.
    pub fn path(name: &str) -> Result<PathBuf, ProfileError> {
        profile_path(&config_folder()?, name)
    }

    /// The name of the default profile, whether it exists or not.
    ///
    /// # Errors
    /// If there is none, or the choice can not be read.
    pub fn default_name() -> Result<String, ProfileError> {
        default_name(&config_folder()?)
    }

    /// Makes the profile of this name the default.
    ///
    /// # Errors
    /// If the name can not be a file's, or the choice not be written.
    pub fn make_default(name: &str) -> Result<(), ProfileError> {
        let folder = config_folder()?;
        profile_path(&folder, name)?;
        let path = default_path(&folder);
        replace_private(&path, &format!("{name}\n"))
            .map_err(|e| ProfileError::File { path, why: e.to_string() })
    }

    fn load_in(folder: &Path, name: Option<&str>) -> Result<Profile, ProfileError> {
        let name = match name {
            Some(name) => name.to_owned(),
            None => default_name(folder)?,
        };
        let path = profile_path(folder, &name)?;
        if !path.exists() {
            return Err(ProfileError::Missing { name, path });
        }
        Profile::load_file(&path)
    }

    pub(crate) fn parsed_addresses(&self) -> Result<Vec<Address>, Error> {
        Address::parse_list(&self.address)
    }

    pub(crate) fn expected_server_name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    pub(crate) fn identity(&self) -> (&str, &str) {
        (&self.certificate, &self.key)
    }
}

/// Shows everything but the key.
impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile")
            .field("address", &self.address)
            .field("server_name", &self.server_name)
            .field("has_authority", &!self.authority.is_empty())
            .field("has_identity", &!self.key.is_empty())
            .finish()
    }
}

fn config_folder() -> Result<PathBuf, ProfileError> {
    let folders = directories::BaseDirs::new().ok_or(ProfileError::NoConfigFolder)?;
    Ok(folders.config_dir().join("quire"))
}

fn default_path(folder: &Path) -> PathBuf {
    folder.join("default-profile")
}

fn default_name(folder: &Path) -> Result<String, ProfileError> {
    let path = default_path(folder);
    match fs::read_to_string(&path) {
        Ok(name) if !name.trim().is_empty() => Ok(name.trim().to_owned()),
        Ok(_) => Err(ProfileError::NoDefault { looked_for: path }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(ProfileError::NoDefault { looked_for: path })
        }
        Err(error) => Err(ProfileError::File { path, why: error.to_string() }),
    }
}

fn profile_path(folder: &Path, name: &str) -> Result<PathBuf, ProfileError> {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > 100 || name.starts_with('.') || !name.bytes().all(is_fine) {
        return Err(ProfileError::Name(name.chars().take(100).collect()));
    }
    Ok(folder.join("profiles").join(format!("{name}.toml")))
}

/// Write beside it, sync, rename: a reader sees the old file or the new one, and never a key that others can read.
fn replace_private(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let beside = folder.join(name);
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = (|| {
        let mut file = options.open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile() -> Profile {
        Profile::new("quire://127.0.0.1:9440")
            .authority_pem("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n")
            .identity_pem("certificate\n", "the secret\n")
    }

    #[test]
    fn what_was_saved_is_loaded_and_private() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = profile_path(folder.path(), "dev").expect("a plain name");
        profile().save(&path).expect("the folder is ours");
        profile().at("quire://127.0.0.1:1").save(&path).expect("replacing is fine too");
        let loaded = Profile::load_in(folder.path(), Some("dev")).expect("just saved");
        assert_eq!(loaded, profile().at("quire://127.0.0.1:1"));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(&path).expect("it is there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let files = fs::read_dir(folder.path().join("profiles")).expect("it is there").count();
        assert_eq!(files, 1, "nothing is left beside it");
    }

    #[test]
    fn the_default_is_used_unless_another_is_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let none = Profile::load_in(folder.path(), None).expect_err("nothing is set up");
        assert!(none.advice().contains("quire dev"), "{}", none.advice());
        profile().save(&profile_path(folder.path(), "a").expect("a name")).expect("the folder is ours");
        fs::write(default_path(folder.path()), "a\n").expect("the folder is ours");
        assert_eq!(Profile::load_in(folder.path(), None), Ok(profile()));
        let missing = Profile::load_in(folder.path(), Some("b")).expect_err("no such profile");
        assert!(matches!(missing, ProfileError::Missing { .. }), "{missing}");
    }

    #[test]
    fn a_damaged_file_is_named_with_what_is_wrong() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("p.toml");
        for (text, part) in [
            ("address = 5", "address"),
            ("address = \"a:1\"\ncolour = \"red\"", "colour"),
            ("address = \"http://a\"", "quire://"),
        ] {
            fs::write(&path, text).expect("the folder is ours");
            let error = Profile::load_file(&path).expect_err("not a profile").to_string();
            assert!(error.contains(part) && error.contains("p.toml"), "{error}");
        }
    }

    #[test]
    fn a_name_never_leads_out_of_the_folder() {
        for name in ["", "..", "../a", "a/b", ".hidden"] {
            assert!(profile_path(Path::new("/x"), name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn the_key_is_not_shown() {
        assert!(!format!("{:?}", profile()).contains("secret"));
    }
}
