//! What lets a broker that was killed tell its clients so: the next start, asked about a connection it does not know,
//! answers with a token that only it and the client know, and the client connects anew at once.
//!
//! Both the key that tokens are made with and what connection ids are accepted must be the same after a start.

use std::time::Duration;

use quinn::crypto::{CryptoError, HmacKey};
use quinn::{ConnectionId, ConnectionIdGenerator};

use crate::identity::random;

const CONNECTION_ID_LEN: usize = 8;

/// The key that reset tokens are made with.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ResetKey(pub(crate) [u8; ResetKey::LEN]);

impl ResetKey {
    pub(crate) const LEN: usize = blake3::KEY_LEN;
}

impl std::fmt::Debug for ResetKey {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ResetKey")
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(blake3::keyed_hash(&self.0, data).as_bytes());
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let given = <[u8; blake3::OUT_LEN]>::try_from(signature).map_err(|_| CryptoError)?;
        // Hashes are compared in constant time.
        match blake3::keyed_hash(&self.0, data) == blake3::Hash::from(given) {
            true => Ok(()),
            false => Err(CryptoError),
        }
    }
}

/// Ids that any start of the broker accepts, which those of the default generator are not.
pub(super) struct AnyIds;

impl ConnectionIdGenerator for AnyIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&random::<CONNECTION_ID_LEN>())
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
