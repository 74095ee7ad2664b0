//! The network's edge: sockets, certificates, connections, the admin server.

pub(crate) mod admin;
pub(crate) mod authority;
pub(crate) mod certificates;
pub(crate) mod connection;
pub(crate) mod endpoint;
pub(crate) mod join;
pub(crate) mod membership;
pub(crate) mod message;
pub(crate) mod peers;
mod permits;
pub(crate) mod renewal;
pub(crate) mod reset;
pub(crate) mod seal;
pub(crate) mod sockets;
pub(crate) mod tls;
mod tls_folder;
