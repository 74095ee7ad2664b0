//! What is handed to a broker that is to join: how to know the cluster, and a secret that it takes once.
//!
//! `quire-join-1-<fingerprint>-<secret>`, both 32 hexadecimal digits: long enough that neither can be guessed or forged,
//! short enough to be typed if it must.

use std::fmt;
use std::str::FromStr;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::identity::{hex, random, unhex};

const PREFIX: &str = "quire-join-1-";
const LEN: usize = 16;

/// The authority of a cluster, told by a hash of its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; LEN]);

/// A join token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The authority whose cluster is to be joined.
    pub fingerprint: Fingerprint,
    pub(crate) secret: [u8; LEN],
}

/// Not a join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// It is something else.
    #[error("a join token begins with {PREFIX}")]
    Other,
    /// It is cut short, or mistyped.
    #[error("the join token is incomplete or mistyped: two groups of 32 hexadecimal digits follow {PREFIX}")]
    Incomplete,
}

impl Fingerprint {
    pub(crate) fn of(authority: &CertificateDer<'_>) -> Fingerprint {
        let mut bytes = [0; LEN];
        bytes.copy_from_slice(&blake3::hash(authority).as_bytes()[..LEN]);
        Fingerprint(bytes)
    }

    /// `None` if it is no certificate.
    pub(crate) fn of_pem(authority_pem: &str) -> Option<Fingerprint> {
        CertificateDer::from_pem_slice(authority_pem.as_bytes()).ok().map(|der| Fingerprint::of(&der))
    }
}

impl JoinToken {
    /// A token with a new secret.
    pub(crate) fn draw(fingerprint: Fingerprint) -> JoinToken {
        JoinToken { fingerprint, secret: random() }
    }

    /// What the metadata keeps of it.
    pub(crate) fn hash(&self) -> [u8; 32] {
        hash(&self.secret)
    }
}

/// What the metadata keeps of a secret.
pub(crate) fn hash(secret: &[u8]) -> [u8; 32] {
    blake3::derive_key("quire 2026-11-26 secret of a join token", secret)
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for JoinToken {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-{}", self.fingerprint, hex(&self.secret))
    }
}

impl FromStr for JoinToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<JoinToken, InvalidToken> {
        let rest = text.trim().strip_prefix(PREFIX).ok_or(InvalidToken::Other)?;
        let (fingerprint, secret) = rest.split_once('-').ok_or(InvalidToken::Incomplete)?;
        let fingerprint = unhex(fingerprint).map(Fingerprint).ok_or(InvalidToken::Incomplete)?;
        Ok(JoinToken { fingerprint, secret: unhex(secret).ok_or(InvalidToken::Incomplete)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_written_and_keeps_its_secret() {
        let token = JoinToken::draw(Fingerprint([0xab; LEN]));
        let text = token.to_string();
        assert_eq!(format!(" {text}\n").parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(&hex(&token.secret)));
        assert_eq!(text[..text.len() - 1].parse::<JoinToken>(), Err(InvalidToken::Incomplete));
        assert_eq!(text.replace("ab-", "xy-").parse::<JoinToken>(), Err(InvalidToken::Incomplete));
        assert_eq!("hunter2".parse::<JoinToken>(), Err(InvalidToken::Other));
    }
}
