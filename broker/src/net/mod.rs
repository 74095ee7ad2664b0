//! The network's edge: sockets, certificates, connections, the admin server.

pub(crate) mod admin;
#[allow(dead_code, reason = "clusters are wired up next")]
pub(crate) mod authority;
pub(crate) mod certificates;
pub(crate) mod connection;
pub(crate) mod endpoint;
#[allow(dead_code, reason = "clusters are wired up next")]
pub(crate) mod join;
#[allow(dead_code, reason = "clusters are wired up next")]
pub(crate) mod membership;
pub(crate) mod message;
#[allow(dead_code, reason = "clusters are wired up next")]
pub(crate) mod peers;
mod permits;
pub(crate) mod renewal;
pub(crate) mod reset;
#[allow(dead_code, reason = "clusters are wired up next")]
pub(crate) mod seal;
#[allow(dead_code, reason = "clusters are wired up next")]
pub(crate) mod tls;
mod tls_folder;
