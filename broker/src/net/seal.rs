//! The authority's key as it travels in the metadata: sealed, so that a copy of the metadata signs nothing.
//!
//! ```text
//! | version | kind | salt 16 | nonce 12 | certificate length u32 | certificate PEM … | sealed key PEM … tag 16 |
//! ```
//! Sealed with AES-256-GCM under a key that each controller holds in its data directory (kind 0), or one that is derived
//! from a passphrase with PBKDF2 (kind 1), which alone survives a stolen disk. What stands before the sealed key, and the
//! cluster's id, are authenticated with it.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::pbkdf2;
use std::fmt;
use std::num::NonZeroU32;

use super::authority::Authority;
use crate::identity::random;

const VERSION: u8 = 1;
const SALT_LEN: usize = 16;
const NONCE_LEN: usize = 12;
const KEY_LEN: usize = 32;
const PREFIX_LEN: usize = 2 + SALT_LEN + NONCE_LEN + 4;
/// As OWASP recommends for SHA-256: some tenths of a second.
const ITERATIONS: NonZeroU32 = NonZeroU32::new(600_000).expect("not zero");

/// What the authority's key is sealed under.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum SealKey {
    /// Held in the data directory of each controller.
    Held([u8; KEY_LEN]),
    /// Known to whoever starts a controller.
    Passphrase(String),
}

/// The authority can not be had from the metadata here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnsealError {
    /// It is not what was sealed, or not of this version.
    #[error("the cluster's authority is damaged in the metadata: {0}")]
    Damaged(&'static str),
    /// This broker has a key where a passphrase is needed.
    #[error("the authority's key is sealed under a passphrase: start this broker with QUIRE_CA_PASSPHRASE")]
    NeedsPassphrase,
    /// This broker has a passphrase, or nothing, where a key is needed.
    #[error("this broker does not hold the key that the authority's key is sealed under")]
    NeedsKey,
    /// It has the wrong one.
    #[error("the authority's key can not be unsealed: the passphrase or the key is another one")]
    Wrong,
}

impl fmt::Debug for SealKey {
    /// Without what is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SealKey::Held(_) => "Held",
            SealKey::Passphrase(_) => "Passphrase",
        })
    }
}

impl SealKey {
    pub(crate) const LEN: usize = KEY_LEN;

    fn kind(&self) -> u8 {
        match self {
            SealKey::Held(_) => 0,
            SealKey::Passphrase(_) => 1,
        }
    }

    fn cipher(&self, salt: &[u8]) -> LessSafeKey {
        let mut bytes = [0; KEY_LEN];
        match self {
            SealKey::Held(key) => bytes = *key,
            SealKey::Passphrase(text) => {
                pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ITERATIONS, salt, text.as_bytes(), &mut bytes);
            }
        }
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes).expect("the key has the cipher's length"))
    }
}

/// Seals an authority for the metadata of this cluster. Takes its time under a passphrase.
pub(crate) fn seal(authority: &Authority, key: &SealKey, cluster_id: &str) -> Vec<u8> {
    let (salt, nonce) = (random::<SALT_LEN>(), random::<NONCE_LEN>());
    let mut sealed = vec![VERSION, key.kind()];
    sealed.extend_from_slice(&salt);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(&(authority.pem.len() as u32).to_le_bytes());
    sealed.extend_from_slice(authority.pem.as_bytes());
    let mut secret = authority.key_pem().into_bytes();
    let aad = Aad::from([&sealed[..], cluster_id.as_bytes()].concat());
    key.cipher(&salt)
        .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut secret)
        .expect("a key of some hundred bytes can be sealed");
    sealed.extend_from_slice(&secret);
    sealed
}

/// The authority that was sealed. Takes its time under a passphrase.
pub(crate) fn unseal(
    sealed: &[u8],
    key: Option<&SealKey>,
    cluster_id: &str,
) -> Result<Authority, UnsealError> {
    let damaged = UnsealError::Damaged;
    let (prefix, rest) = sealed.split_first_chunk::<PREFIX_LEN>().ok_or(damaged("it is cut short"))?;
    if prefix[0] != VERSION {
        return Err(damaged("it was sealed by a later version"));
    }
    let needed = if prefix[1] == 0 { UnsealError::NeedsKey } else { UnsealError::NeedsPassphrase };
    let key = key.filter(|key| key.kind() == prefix[1]).ok_or(needed)?;
    let (salt, rest_of_prefix) = prefix[2..].split_at(SALT_LEN);
    let (nonce, length) = rest_of_prefix.split_at(NONCE_LEN);
    let length = length.try_into().map_or(0, u32::from_le_bytes) as usize;
    let (certificate, secret) = rest.split_at_checked(length).ok_or(damaged("it is cut short"))?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| damaged("it is cut short"))?;
    let aad = Aad::from([&sealed[..PREFIX_LEN + length], cluster_id.as_bytes()].concat());
    let mut secret = secret.to_vec();
    let opened = key.cipher(salt).open_in_place(nonce, aad, &mut secret).map_err(|_| UnsealError::Wrong)?;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| damaged("it is no text"));
    Authority::from_pem(text(certificate)?, &text(opened)?).map_err(|error| damaged(error.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_is_had_again_with_the_same_key_in_the_same_cluster_alone() {
        let authority = Authority::create().expect("made");
        let phrase = |text: &str| SealKey::Passphrase(text.to_owned());
        for (key, other) in [
            (SealKey::Held([1; KEY_LEN]), SealKey::Held([2; KEY_LEN])),
            (phrase("correct horse"), phrase("battery staple")),
        ] {
            let sealed = seal(&authority, &key, "c1");
            let opened = unseal(&sealed, Some(&key), "c1").expect("sealed with it");
            assert_eq!((opened.pem, opened.name), (authority.pem.clone(), authority.name.clone()));
            assert_eq!(unseal(&sealed, Some(&other), "c1").err(), Some(UnsealError::Wrong));
            assert_eq!(unseal(&sealed, Some(&key), "c2").err(), Some(UnsealError::Wrong));
            let secret = authority.key_pem();
            assert!(
                !String::from_utf8_lossy(&sealed).contains(secret.lines().nth(1).expect("PEM has lines"))
            );
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        let authority = Authority::create().expect("made");
        let (held, phrase) = (SealKey::Held([1; KEY_LEN]), SealKey::Passphrase("p".to_owned()));
        let error = |key: &SealKey, with: Option<&SealKey>| {
            unseal(&seal(&authority, key, "c1"), with, "c1").err().expect("it lacks the key")
        };
        assert_eq!(error(&held, None), UnsealError::NeedsKey);
        assert_eq!(error(&held, Some(&phrase)), UnsealError::NeedsKey);
        assert_eq!(error(&phrase, Some(&held)), UnsealError::NeedsPassphrase);
    }

    #[test]
    fn any_damage_is_noticed() {
        let key = SealKey::Held([1; KEY_LEN]);
        let sealed = seal(&Authority::create().expect("made"), &key, "c1");
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert!(unseal(&damaged, Some(&key), "c1").is_err(), "byte {at}");
            assert!(unseal(&sealed[..at], Some(&key), "c1").is_err(), "{at} bytes");
        }
    }
}
