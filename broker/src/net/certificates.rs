//! The authority of a cluster and the certificates it signs, kept as PEM files in one folder.
//!
//! Made at the first start; the authority lasts ten years, what it signs one year, renewed at half of that, at a start or
//! while the broker runs. A certificate that does not fit its key, its names or its authority is made again, so that a crash between two writes
//! heals at the next start.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::reset::ResetKey;
use super::tls_folder::{Folder, Secrecy};
use crate::identity::{hex, random};

/// The principal of the certificate that is made with the authority; an administrator.
pub(crate) const ADMINISTRATOR: &str = "admin";

const DAY: Duration = Duration::from_secs(24 * 3600);
const AUTHORITY_LIFE: Duration = Duration::from_secs(3650 * 24 * 3600);
const LEAF_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Certificates are valid from so long ago, for peers whose clock is behind.
const BACKDATED: Duration = DAY;
const AUTHORITY_NAME: &str = "Quire authority";

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
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// Reads what is in `dir` and makes what is missing or past half of its life. `names` go into the broker's certificate.
pub(crate) fn ensure(dir: &Path, names: &[String]) -> Result<Certificates, CertificatesError> {
    let mut folder = Folder::open(dir)?;
    let authority = match folder.read("authority.pem")? {
        Some(pem) => Authority::open(&folder, pem)?,
        None => Authority::create(&mut folder)?,
    };
    let broker =
        Leaf { file: "broker", principal: "broker", names, usage: ExtendedKeyUsagePurpose::ServerAuth };
    let client = Leaf {
        file: "client",
        principal: ADMINISTRATOR,
        names: &[],
        usage: ExtendedKeyUsagePurpose::ClientAuth,
    };
    let certificates = Certificates {
        broker: authority.ensure(&mut folder, &broker)?,
        client: authority.ensure(&mut folder, &client)?,
        reset_key: reset_key(&mut folder)?,
        authority_pem: authority.pem,
    };
    folder.store()?;
    Ok(certificates)
}

/// Reads the key that reset tokens are made with; draws one if there is none that can be read. Clients then notice later
/// that the broker was killed, and that is all.
fn reset_key(folder: &mut Folder<'_>) -> Result<ResetKey, CertificatesError> {
    let parsed = folder.read("reset.key")?.and_then(|text| blake3::Hash::from_hex(text.trim()).ok());
    if let Some(key) = parsed {
        return Ok(ResetKey(key.into()));
    }
    let key = random::<{ ResetKey::LEN }>();
    folder.replace("reset.key", format!("{}\n", hex(&key)), Secrecy::Key);
    Ok(ResetKey(key))
}

/// The common name of a certificate: who its holder is.
pub(crate) fn principal(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    common_name(&parsed)
}

struct Authority {
    pem: String,
    name: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What a certificate below the authority is for.
struct Leaf<'a> {
    file: &'static str,
    principal: &'static str,
    names: &'a [String],
    usage: ExtendedKeyUsagePurpose,
}

impl Authority {
    fn create(folder: &mut Folder<'_>) -> Result<Authority, CertificatesError> {
        let name = format!("{AUTHORITY_NAME} {}", hex(&random::<4>()));
        let key = KeyPair::generate()?;
        let params = authority_params(&name);
        let pem = params.self_signed(&key)?.pem();
        folder.replace("authority.key", key.serialize_pem(), Secrecy::Key);
        folder.replace("authority.pem", &*pem, Secrecy::Certificate);
        tracing::info!(authority = name, file = %folder.path("authority.pem").display(), "made a certificate authority");
        Ok(Authority { pem, name, issuer: Issuer::new(params, key) })
    }

    fn open(folder: &Folder<'_>, pem: String) -> Result<Authority, CertificatesError> {
        let unusable = |what: &str| CertificatesError::Authority {
            path: folder.path("authority.pem"),
            what: what.to_owned(),
        };
        let key = folder.read("authority.key")?.ok_or_else(|| unusable("has no key beside it"))?;
        let key = KeyPair::from_pem(&key).map_err(|_| unusable("has a damaged key"))?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| unusable("is damaged"))?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| unusable("is damaged"))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(unusable("does not belong to the key beside it"));
        }
        let name = common_name(&parsed).ok_or_else(|| unusable("has no name"))?;
        match remaining(&parsed) {
            Remaining::None => return Err(unusable("has expired")),
            Remaining::UnderHalf => {
                tracing::warn!(authority = name, until = %parsed.validity().not_after, "the authority is past half of its life");
            }
            Remaining::OverHalf => {}
        }
        Ok(Authority { issuer: Issuer::new(authority_params(&name), key), pem, name })
    }

    fn ensure(&self, folder: &mut Folder<'_>, leaf: &Leaf<'_>) -> Result<Identity, CertificatesError> {
        let (certificate, key) = (format!("{}.pem", leaf.file), format!("{}.key", leaf.file));
        if let (Some(certificate_pem), Some(key_pem)) = (folder.read(&certificate)?, folder.read(&key)?) {
            let identity = Identity { certificate_pem, key_pem };
            match self.refuse(&identity, leaf) {
                None => return Ok(identity),
                Some(why) => tracing::info!(certificate, why, "making a new certificate"),
            }
        }
        let new_key = KeyPair::generate()?;
        let made = leaf_params(leaf)?.signed_by(&new_key, &self.issuer)?;
        let identity = Identity { certificate_pem: made.pem(), key_pem: new_key.serialize_pem() };
        folder.replace(key, &*identity.key_pem, Secrecy::Key);
        folder.replace(certificate, &*identity.certificate_pem, Secrecy::Certificate);
        Ok(identity)
    }

    /// Why a certificate is to be made again, if it is.
    fn refuse(&self, identity: &Identity, leaf: &Leaf<'_>) -> Option<&'static str> {
        let Ok(key) = KeyPair::from_pem(&identity.key_pem) else { return Some("its key is damaged") };
        let Ok(der) = CertificateDer::from_pem_slice(identity.certificate_pem.as_bytes()) else {
            return Some("it is damaged");
        };
        let Ok((_, parsed)) = X509Certificate::from_der(&der) else { return Some("it is damaged") };
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Some("it does not belong to its key");
        }
        if parsed.issuer().iter_common_name().next().and_then(|name| name.as_str().ok()) != Some(&self.name) {
            return Some("another authority signed it");
        }
        if !matches!(remaining(&parsed), Remaining::OverHalf) {
            return Some("it is past half of its life");
        }
        if alternative_names(&parsed) != wanted_names(leaf) {
            return Some("the configured names changed");
        }
        None
    }
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_life(&mut params, AUTHORITY_LIFE);
    params
}

fn leaf_params(leaf: &Leaf<'_>) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(leaf.names.to_vec())?;
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, leaf.principal);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![leaf.usage.clone()];
    params.use_authority_key_identifier_extension = true;
    set_life(&mut params, LEAF_LIFE);
    Ok(params)
}

fn set_life(params: &mut CertificateParams, life: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + life).into();
}

enum Remaining {
    OverHalf,
    UnderHalf,
    None,
}

fn remaining(certificate: &X509Certificate<'_>) -> Remaining {
    let validity = certificate.validity();
    let life = validity.not_after.timestamp() - validity.not_before.timestamp();
    let now =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    match validity.not_after.timestamp() - now {
        left if left <= 0 => Remaining::None,
        left if left < life / 2 => Remaining::UnderHalf,
        _ => Remaining::OverHalf,
    }
}

fn common_name(certificate: &X509Certificate<'_>) -> Option<String> {
    let name = certificate.subject().iter_common_name().next()?;
    name.as_str().ok().map(str::to_owned)
}

fn alternative_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let mut names: Vec<String> = extension.value.general_names.iter().filter_map(name_text).collect();
    names.sort();
    names
}

fn name_text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(v4) => Some(IpAddr::from(v4).to_string()),
            Err(_) => <[u8; 16]>::try_from(*bytes).ok().map(|v6| IpAddr::from(v6).to_string()),
        },
        _ => None,
    }
}

fn wanted_names(leaf: &Leaf<'_>) -> Vec<String> {
    let mut names: Vec<String> = leaf.names.to_vec();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

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
        assert_eq!(principal(&der).as_deref(), Some(ADMINISTRATOR));
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
