//! The authority of a cluster and the certificates it signs, kept as PEM files in one folder.
//!
//! Made at the first start; the authority lasts ten years, what it signs one year, renewed at half of that, at a start or
//! while the broker runs. A certificate that does not fit its key, its names or its authority is made again, so that a crash between two writes
//! heals at the next start.

use std::io;
use std::path::{Path, PathBuf};

use rcgen::ExtendedKeyUsagePurpose;

use super::authority::{self, Authority, Subject};
use super::reset::ResetKey;
use super::tls_folder::{Folder, Secrecy};
use crate::identity::{hex, random};

/// The principal of the certificate that is made with the authority; an administrator.
pub(crate) const ADMINISTRATOR: &str = "admin";

/// A certificate and its key, as PEM.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
}

/// All that a broker needs, and what its first client does.
#[derive(Debug, Clone)]
pub(crate) struct Certificates {
    pub(crate) authority_pem: String,
    pub(crate) broker: Identity,
    pub(crate) client: Identity,
    /// Kept with the certificates, since it is as secret as their keys.
    pub(crate) reset_key: ResetKey,
}

/// The certificates could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    /// A file could not be read or written.
    #[error("cannot use {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The authority's files are there, but cannot be used.
    #[error("the authority {} {what}; restore it, or remove the folder to make a new authority, which every client then needs", path.display())]
    Authority {
        /// Its certificate.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file that a cluster's broker needs is gone.
    #[error("{} is missing; restore it, or remove the broker's data directory and have it join again", path.display())]
    Missing {
        /// Which.
        path: PathBuf,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// Reads what is in `dir` and makes what is missing or past half of its life. `names` go into the broker's certificate.
pub(crate) fn ensure(dir: &Path, names: &[String]) -> Result<Certificates, CertificatesError> {
    let mut folder = Folder::open(dir)?;
    let authority = match folder.read("authority.pem")? {
        Some(pem) => open(&folder, pem)?,
        None => create(&mut folder)?,
    };
    let broker = Leaf {
        file: "broker",
        subject: Subject {
            principal: "broker".to_owned(),
            names: names.to_vec(),
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth],
        },
    };
    let client = Leaf { file: "client", subject: administrator() };
    let certificates = Certificates {
        broker: ensure_leaf(&authority, &mut folder, &broker)?,
        client: ensure_leaf(&authority, &mut folder, &client)?,
        reset_key: reset_key(&mut folder)?,
        authority_pem: authority.pem,
    };
    folder.store()?;
    Ok(certificates)
}

/// Who the first client is.
pub(crate) fn administrator() -> Subject {
    Subject {
        principal: ADMINISTRATOR.to_owned(),
        names: Vec::new(),
        usages: vec![ExtendedKeyUsagePurpose::ClientAuth],
    }
}

/// Reads the key that reset tokens are made with; draws one if there is none that can be read. Clients then notice later
/// that the broker was killed, and that is all.
pub(super) fn reset_key(folder: &mut Folder<'_>) -> Result<ResetKey, CertificatesError> {
    let parsed = folder.read("reset.key")?.and_then(|text| blake3::Hash::from_hex(text.trim()).ok());
    if let Some(key) = parsed {
        return Ok(ResetKey(key.into()));
    }
    let key = random::<{ ResetKey::LEN }>();
    folder.replace("reset.key", format!("{}\n", hex(&key)), Secrecy::Key);
    Ok(ResetKey(key))
}

/// What a certificate below the authority is for.
struct Leaf {
    file: &'static str,
    subject: Subject,
}

fn create(folder: &mut Folder<'_>) -> Result<Authority, CertificatesError> {
    let authority = Authority::create()?;
    folder.replace("authority.key", authority.key_pem(), Secrecy::Key);
    folder.replace("authority.pem", &*authority.pem, Secrecy::Certificate);
    let file = folder.path("authority.pem");
    tracing::info!(authority = authority.name, file = %file.display(), "made a certificate authority");
    Ok(authority)
}

fn open(folder: &Folder<'_>, pem: String) -> Result<Authority, CertificatesError> {
    let unusable = |what: &str| CertificatesError::Authority {
        path: folder.path("authority.pem"),
        what: what.to_owned(),
    };
    let key = folder.read("authority.key")?.ok_or_else(|| unusable("has no key beside it"))?;
    Authority::from_pem(pem, &key).map_err(|error| unusable(error.0))
}

fn ensure_leaf(
    authority: &Authority,
    folder: &mut Folder<'_>,
    leaf: &Leaf,
) -> Result<Identity, CertificatesError> {
    let (certificate, key) = (format!("{}.pem", leaf.file), format!("{}.key", leaf.file));
    if let (Some(certificate_pem), Some(key_pem)) = (folder.read(&certificate)?, folder.read(&key)?) {
        match leaf.subject.refuse(&certificate_pem, &key_pem, &authority.name) {
            None => return Ok(Identity { certificate_pem, key_pem }),
            Some(why) => tracing::info!(certificate, why, "making a new certificate"),
        }
    }
    let new_key = authority::new_key()?;
    let certificate_pem = authority.sign(&leaf.subject, &new_key)?;
    let identity = Identity { certificate_pem, key_pem: new_key.serialize_pem() };
    folder.replace(key, &*identity.key_pem, Secrecy::Key);
    folder.replace(certificate, &*identity.certificate_pem, Secrecy::Certificate);
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;

    use super::*;

    fn names(of: &[&str]) -> Vec<String> {
        of.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_is_made_once_stays() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let first = ensure(dir.path(), &names(&["localhost", "127.0.0.1", "::1"])).expect("made");
        let second = ensure(dir.path(), &names(&["localhost", "127.0.0.1", "::1"])).expect("read");
        assert_eq!(first.authority_pem, second.authority_pem);
        assert_eq!(first.broker.certificate_pem, second.broker.certificate_pem);
        assert_eq!(first.client.key_pem, second.client.key_pem);
        assert_eq!(first.reset_key, second.reset_key);
        for key in ["authority.key", "broker.key", "client.key", "reset.key"] {
            let mode = fs::metadata(dir.path().join(key)).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key} is for its owner only");
        }
    }

    #[test]
    fn the_clients_certificate_names_the_administrator() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let made = ensure(dir.path(), &[]).expect("made");
        let der = CertificateDer::from_pem_slice(made.client.certificate_pem.as_bytes()).expect("PEM");
        assert_eq!(authority::principal(&der).as_deref(), Some(ADMINISTRATOR));
    }

    #[test]
    fn new_names_make_a_new_certificate_below_the_same_authority() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let first = ensure(dir.path(), &names(&["localhost"])).expect("made");
        let second = ensure(dir.path(), &names(&["localhost", "log.example"])).expect("made again");
        assert_eq!(first.authority_pem, second.authority_pem);
        assert_ne!(first.broker.certificate_pem, second.broker.certificate_pem);
        assert_eq!(first.client.certificate_pem, second.client.certificate_pem);
    }

    #[test]
    fn a_key_that_does_not_fit_is_replaced_and_a_lost_authority_key_is_an_error() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let first = ensure(dir.path(), &[]).expect("made");
        fs::write(dir.path().join("broker.key"), &first.client.key_pem).expect("written");
        let second = ensure(dir.path(), &[]).expect("healed");
        assert_ne!(first.broker.certificate_pem, second.broker.certificate_pem);
        fs::remove_file(dir.path().join("authority.key")).expect("removed");
        assert!(matches!(ensure(dir.path(), &[]), Err(CertificatesError::Authority { .. })));
    }
}
