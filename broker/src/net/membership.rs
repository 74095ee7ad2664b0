//! The certificates of a cluster's broker, and the keys beside them, in the folder `tls` of its data directory.
//!
//! | file | what |
//! |---|---|
//! | `authority.pem` | whom everybody trusts |
//! | `broker.pem`, `broker.key` | who this broker is, to clients and to other brokers |
//! | `client.pem`, `client.key` | an administrator's, for tools on this machine |
//! | `seal.key` | what the authority's key is sealed under in the metadata; on controllers, unless a passphrase is used |
//! | `authority.key` | at the founder, until the metadata holds it sealed |
//! | `reset.key` | see `reset.rs` |
//!
//! A joining broker's keys are durable before it asks, so that it asks with the same ones after a crash.

use std::path::Path;

use rcgen::KeyPair;

use super::authority::{self, Authority, PublicKey};
use super::certificates::{self, CertificatesError, Identity, administrator};
use super::peers::tls::broker_subject;
use super::reset::ResetKey;
use super::seal::SealKey;
use super::tls_folder::{Folder, Secrecy};
use crate::identity::{hex, random, unhex};
use quire_protocol::BrokerId;

/// What a member of a cluster has.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) authority_pem: String,
    pub(crate) broker: Identity,
    pub(crate) client: Identity,
    pub(crate) reset_key: ResetKey,
    /// What this broker can unseal the authority with.
    pub(crate) seal_key: Option<SealKey>,
    /// The authority's own key, while the metadata does not hold it yet.
    pub(crate) authority_key_pem: Option<String>,
}

/// The keys that a joining broker asks to have certified.
pub(crate) struct JoiningKeys {
    pub(crate) broker: PublicKey,
    pub(crate) client: PublicKey,
}

/// Makes what the founder of a cluster has. Called again after a crash, it goes on.
pub(crate) fn found(dir: &Path, broker: BrokerId, names: &[String]) -> Result<(), CertificatesError> {
    let mut folder = Folder::open(dir)?;
    let authority = match (folder.read("authority.pem")?, folder.read("authority.key")?) {
        (Some(pem), Some(key)) => Authority::from_pem(pem, &key).ok(),
        _ => None,
    };
    let authority = match authority {
        Some(authority) => authority,
        None => Authority::create()?,
    };
    folder.replace("authority.key", authority.key_pem(), Secrecy::Key);
    folder.replace("authority.pem", &*authority.pem, Secrecy::Certificate);
    for (file, subject) in [("broker", broker_subject(broker, names)), ("client", administrator())] {
        let key = authority::new_key()?;
        folder.replace(format!("{file}.pem"), authority.sign(&subject, &key)?, Secrecy::Certificate);
        folder.replace(format!("{file}.key"), key.serialize_pem(), Secrecy::Key);
    }
    folder.replace("seal.key", format!("{}\n", hex(&random::<{ SealKey::LEN }>())), Secrecy::Key);
    folder.store()
}

/// The keys to join with; made and durable when this returns, if they were not there.
pub(crate) fn joining_keys(dir: &Path) -> Result<JoiningKeys, CertificatesError> {
    let mut folder = Folder::open(dir)?;
    let keys = JoiningKeys {
        broker: joining_key(&mut folder, "broker.key")?,
        client: joining_key(&mut folder, "client.key")?,
    };
    folder.store()?;
    Ok(keys)
}

fn joining_key(folder: &mut Folder<'_>, file: &str) -> Result<PublicKey, CertificatesError> {
    if let Some(key) = folder.read(file)?.and_then(|pem| KeyPair::from_pem(&pem).ok()) {
        return Ok(PublicKey::of(&key));
    }
    let key = authority::new_key()?;
    folder.replace(file, key.serialize_pem(), Secrecy::Key);
    Ok(PublicKey::of(&key))
}

/// What a cluster gave a broker that joined.
#[derive(Debug)]
pub(crate) struct Joined<'a> {
    pub(crate) authority_pem: &'a str,
    pub(crate) broker_certificate_pem: &'a str,
    pub(crate) client_certificate_pem: &'a str,
    /// Empty if it gave none.
    pub(crate) seal_key: &'a [u8],
}

/// Keeps what the cluster gave, beside the keys it was asked with.
pub(crate) fn keep_joined(dir: &Path, joined: &Joined<'_>) -> Result<(), CertificatesError> {
    let mut folder = Folder::open(dir)?;
    if !joined.seal_key.is_empty() {
        folder.replace("seal.key", format!("{}\n", hex(joined.seal_key)), Secrecy::Key);
    }
    folder.replace("authority.pem", joined.authority_pem, Secrecy::Certificate);
    folder.replace("broker.pem", joined.broker_certificate_pem, Secrecy::Certificate);
    folder.replace("client.pem", joined.client_certificate_pem, Secrecy::Certificate);
    folder.store()
}

/// Reads what a member has.
///
/// # Errors
/// If a file that can not be made again is missing: the cluster has to let the broker in anew.
pub(crate) fn open(dir: &Path, passphrase: Option<&str>) -> Result<Member, CertificatesError> {
    let mut folder = Folder::open(dir)?;
    let read =
        |name: &str| folder.read(name)?.ok_or_else(|| CertificatesError::Missing { path: folder.path(name) });
    let identity = |file: &str| {
        Ok::<_, CertificatesError>(Identity {
            certificate_pem: read(&format!("{file}.pem"))?,
            key_pem: read(&format!("{file}.key"))?,
        })
    };
    let (authority_pem, broker, client) = (read("authority.pem")?, identity("broker")?, identity("client")?);
    let held = folder.read("seal.key")?.and_then(|digits| unhex(digits.trim())).map(SealKey::Held);
    let member = Member {
        authority_pem,
        broker,
        client,
        seal_key: passphrase.map(|text| SealKey::Passphrase(text.to_owned())).or(held),
        authority_key_pem: folder.read("authority.key")?,
        reset_key: certificates::reset_key(&mut folder)?,
    };
    folder.store()?;
    Ok(member)
}

/// Forgets the authority's own key, which the metadata holds sealed by now.
pub(crate) fn forget_authority_key(dir: &Path) -> Result<(), CertificatesError> {
    Folder::open(dir)?.remove("authority.key")
}

/// Keeps a renewed identity of the broker.
pub(crate) fn keep_renewed(dir: &Path, broker: &Identity) -> Result<(), CertificatesError> {
    let mut folder = Folder::open(dir)?;
    folder.replace("broker.key", &*broker.key_pem, Secrecy::Key);
    folder.replace("broker.pem", &*broker.certificate_pem, Secrecy::Certificate);
    folder.store()
}

#[cfg(test)]
mod tests {
    use super::super::seal;
    use super::*;

    #[test]
    fn a_founder_that_was_interrupted_keeps_its_authority() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        found(dir.path(), BrokerId(1), &["localhost".to_owned()]).expect("made");
        let first = open(dir.path(), None).expect("all is there");
        found(dir.path(), BrokerId(1), &["localhost".to_owned()]).expect("made again");
        let again = open(dir.path(), None).expect("all is there");
        assert_eq!(first.authority_pem, again.authority_pem);
        let key = again.authority_key_pem.expect("it is not in the metadata yet");
        let authority = Authority::from_pem(again.authority_pem, &key).expect("they belong together");
        let sealed = seal::seal(&authority, again.seal_key.as_ref().expect("drawn"), "c1");
        assert!(seal::unseal(&sealed, again.seal_key.as_ref(), "c1").is_ok());
        forget_authority_key(dir.path()).expect("removed");
        assert!(open(dir.path(), Some("phrase")).expect("all else is there").authority_key_pem.is_none());
    }

    #[test]
    fn a_joining_broker_asks_with_the_same_keys_after_a_crash() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (first, again) =
            (joining_keys(dir.path()).expect("made"), joining_keys(dir.path()).expect("read"));
        assert_eq!((first.broker, first.client), (again.broker, again.client));
        let error = open(dir.path(), None).expect_err("the cluster gave nothing yet");
        assert!(matches!(error, CertificatesError::Missing { .. }), "{error}");
    }
}
