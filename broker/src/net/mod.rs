//! The network's edge: sockets, certificates, connections, the admin server.

pub(crate) mod admin;
#[allow(dead_code, reason = "keys of other brokers are certified once they can join")]
pub(crate) mod authority;
pub(crate) mod certificates;
pub(crate) mod connection;
pub(crate) mod endpoint;
pub(crate) mod message;
#[allow(dead_code, reason = "a single broker has no peers; clusters are wired up next")]
pub(crate) mod peers;
mod permits;
pub(crate) mod renewal;
pub(crate) mod reset;
pub(crate) mod tls;
mod tls_folder;
