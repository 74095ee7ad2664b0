//! What clients ask for: each handler checks, routes and answers. Handlers keep no state beyond their stream.

pub(crate) mod fetch;
pub(crate) mod metadata;
pub(crate) mod offsets;
pub(crate) mod produce;
#[allow(dead_code, reason = "clusters are wired up next")]
pub(crate) mod replicate;
pub(crate) mod rpc;
pub(crate) mod topics;
