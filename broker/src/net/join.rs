//! Becoming one of a cluster's brokers, on the port that clients use: [`ask`] and [`admit`].
//!
//! ```text
//! joiner                                                broker of the cluster
//!   │  TLS, the joiner without a certificate; it holds the      │
//!   │  authority at the end of the chain against its token      │
//!   │──────────── secret, public keys, names ──────────────────►│  redeems the secret: a broker id
//!   │◄─── id, authority, certificates, where the others are ────│  signs
//! ```
//! A secret is worth one broker id. Whoever asks again with the same key gets the same answer, so that a lost answer, or a
//! crash before it is kept, costs nothing.

pub(crate) mod admit;
pub(crate) mod ask;
#[cfg(test)]
mod tests;
pub(crate) mod token;
