//! What clients ask for: each handler checks, routes and answers. Handlers keep no state beyond their stream.

pub(crate) mod access;
pub(crate) mod acl;
pub(crate) mod cluster;
pub(crate) mod fetch;
pub(crate) mod groups;
pub(crate) mod join;
pub(crate) mod metadata;
pub(crate) mod offsets;
pub(crate) mod produce;
pub(crate) mod producers;
pub(crate) mod replicate;
pub(crate) mod rpc;
pub(crate) mod topics;

pub(crate) use topics::unexpected;
