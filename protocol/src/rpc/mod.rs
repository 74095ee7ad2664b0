//! Control messages: protobuf, one request and one response a stream, each behind a four-byte length.

/// Requests and responses between clients and brokers (`proto/control.proto`).
#[allow(missing_docs, clippy::all, reason = "generated; documented in the schema")]
pub mod control {
    include!(concat!(env!("OUT_DIR"), "/quire.v1.rs"));
}

/// Records of the metadata log (`proto/metadata.proto`).
#[allow(missing_docs, clippy::all, reason = "generated; documented in the schema")]
pub mod metadata {
    include!(concat!(env!("OUT_DIR"), "/quire.metadata.v1.rs"));
}

/// What brokers ask each other (`proto/peer.proto`).
#[allow(missing_docs, clippy::all, reason = "generated; documented in the schema")]
pub mod peer {
    include!(concat!(env!("OUT_DIR"), "/quire.peer.v1.rs"));
}

/// What brokers ask the active controller (`proto/controller.proto`).
#[allow(missing_docs, clippy::all, reason = "generated; documented in the schema")]
pub mod controller {
    include!(concat!(env!("OUT_DIR"), "/quire.controller.v1.rs"));
}

/// How a broker becomes one of a cluster's (`proto/join.proto`).
#[allow(missing_docs, clippy::all, reason = "generated; documented in the schema")]
pub mod join {
    include!(concat!(env!("OUT_DIR"), "/quire.join.v1.rs"));
}

/// The metadata log between its nodes and on their disks (`proto/raft.proto`).
#[allow(missing_docs, clippy::all, reason = "generated; documented in the schema")]
pub mod raft {
    include!(concat!(env!("OUT_DIR"), "/quire.raft.v1.rs"));
}

mod request;

pub use request::{InvalidRequest, check_items, decode_request};

use crate::error_code::ErrorCode;

/// The protocol version that this code speaks.
pub const PROTOCOL_VERSION: u32 = 1;

impl control::Error {
    /// An error with this code and sentence.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> control::Error {
        control::Error { code: code.number().into(), message: message.into() }
    }

    /// The code; `Internal` for a number this version does not know.
    pub fn error_code(&self) -> ErrorCode {
        u16::try_from(self.code).ok().and_then(ErrorCode::from_number).unwrap_or(ErrorCode::Internal)
    }
}

impl peer::Failure {
    /// A failure with this code and sentence.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> peer::Failure {
        peer::Failure { code: code.number().into(), message: message.into() }
    }

    /// The code; `Internal` for a number this version does not know.
    pub fn error_code(&self) -> ErrorCode {
        u16::try_from(self.code).ok().and_then(ErrorCode::from_number).unwrap_or(ErrorCode::Internal)
    }
}
