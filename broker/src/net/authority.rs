//! The authority of a cluster: a key, the certificate that everybody trusts, and what it signs.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SerialNumber, SignatureAlgorithm,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::{hex, random};

const DAY: Duration = Duration::from_secs(24 * 3600);
const AUTHORITY_LIFE: Duration = Duration::from_secs(3650 * 24 * 3600);
const LEAF_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Certificates are valid from so long ago, for peers whose clock is behind.
const BACKDATED: Duration = DAY;
const AUTHORITY_NAME: &str = "Quire authority";

/// An authority that can sign.
pub(crate) struct Authority {
    pub(crate) pem: String,
    pub(crate) name: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Whom a certificate below the authority is for, and what it may be used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subject {
    /// The common name.
    pub(crate) principal: String,
    /// Host names and addresses.
    pub(crate) names: Vec<String>,
    pub(crate) usages: Vec<ExtendedKeyUsagePurpose>,
}

/// Certificate and key do not make an authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UnusableAuthority(pub(crate) &'static str);

/// A public key to be certified: a point of P-256, uncompressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PublicKey([u8; PublicKey::LEN]);

impl PublicKey {
    pub(crate) const LEN: usize = 65;
    /// What an uncompressed point begins with.
    const UNCOMPRESSED: u8 = 4;

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<PublicKey> {
        let point = <[u8; PublicKey::LEN]>::try_from(bytes).ok()?;
        (point[0] == PublicKey::UNCOMPRESSED).then_some(PublicKey(point))
    }

    /// The public half of a key made by [`new_key`].
    pub(crate) fn of(key: &KeyPair) -> PublicKey {
        PublicKey::from_bytes(key.der_bytes()).expect("keys are made on P-256")
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

/// A key on P-256.
pub(crate) fn new_key() -> Result<KeyPair, rcgen::Error> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
}

impl Authority {
    /// A new authority with a key of its own.
    pub(crate) fn create() -> Result<Authority, rcgen::Error> {
        let name = format!("{AUTHORITY_NAME} {}", hex(&random::<4>()));
        let key = new_key()?;
        let params = authority_params(&name);
        let pem = params.self_signed(&key)?.pem();
        Ok(Authority { pem, name, issuer: Issuer::new(params, key) })
    }

    /// The authority of a certificate and its key. Past half of its life it still signs, with a warning.
    pub(crate) fn from_pem(pem: String, key_pem: &str) -> Result<Authority, UnusableAuthority> {
        let key = KeyPair::from_pem(key_pem).map_err(|_| UnusableAuthority("has a damaged key"))?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes());
        let der = der.map_err(|_| UnusableAuthority("is damaged"))?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| UnusableAuthority("is damaged"))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(UnusableAuthority("does not belong to the key beside it"));
        }
        let name = common_name(&parsed).ok_or(UnusableAuthority("has no name"))?;
        match remaining(&parsed) {
            Remaining::None => return Err(UnusableAuthority("has expired")),
            Remaining::UnderHalf => {
                tracing::warn!(authority = name, until = %parsed.validity().not_after, "the authority is past half of its life");
            }
            Remaining::OverHalf => {}
        }
        Ok(Authority { issuer: Issuer::new(authority_params(&name), key), pem, name })
    }

    pub(crate) fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Certifies a key; the certificate as PEM.
    pub(crate) fn sign(&self, subject: &Subject, key: &impl PublicKeyData) -> Result<String, rcgen::Error> {
        Ok(subject.params()?.signed_by(key, &self.issuer)?.pem())
    }
}

impl Subject {
    fn params(&self) -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::new(self.names.clone())?;
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, self.principal.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = self.usages.clone();
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial_number());
        set_life(&mut params, LEAF_LIFE);
        Ok(params)
    }

    /// Why a certificate of this authority is not, or no longer, the one this subject is to have.
    pub(crate) fn refuse(
        &self,
        certificate_pem: &str,
        key_pem: &str,
        authority: &str,
    ) -> Option<&'static str> {
        let Ok(key) = KeyPair::from_pem(key_pem) else { return Some("its key is damaged") };
        let Ok(der) = CertificateDer::from_pem_slice(certificate_pem.as_bytes()) else {
            return Some("it is damaged");
        };
        let Ok((_, parsed)) = X509Certificate::from_der(&der) else { return Some("it is damaged") };
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Some("it does not belong to its key");
        }
        if parsed.issuer().iter_common_name().next().and_then(|name| name.as_str().ok()) != Some(authority) {
            return Some("another authority signed it");
        }
        if common_name(&parsed).as_deref() != Some(&self.principal) {
            return Some("it names another");
        }
        if !matches!(remaining(&parsed), Remaining::OverHalf) {
            return Some("it is past half of its life");
        }
        let mut wanted = self.names.clone();
        wanted.sort();
        (alternative_names(&parsed) != wanted).then_some("the configured names changed")
    }
}

/// The common name of a certificate: who its holder is.
pub(crate) fn principal(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    common_name(&parsed)
}

/// The name that an authority's certificate has.
pub(crate) fn name_of(authority_pem: &str) -> Option<String> {
    principal(&CertificateDer::from_pem_slice(authority_pem.as_bytes()).ok()?)
}

/// The number of a certificate, which no other of its authority has.
pub(crate) fn serial(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.raw_serial().to_vec())
}

/// Random, so that two authorities with one name, or one that was restored, never draw the same.
fn serial_number() -> SerialNumber {
    let mut serial = random::<16>();
    // A positive number of 16 bytes, whose first is none that could be left out.
    serial[0] = serial[0] & 0x3f | 0x40;
    SerialNumber::from_slice(&serial)
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
