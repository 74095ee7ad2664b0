//! Everything that a leader can want done.

use std::fmt;

use quire_protocol::Offset;

/// What the leader's owner is to do, in the order given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Publish the high watermark to readers, then answer what waits for it.
    AdvanceHighWatermark {
        /// The first offset not yet committed.
        to: Offset,
    },
    /// Append and acknowledge nothing more in this leadership.
    Resign {
        /// Why.
        why: ResignReason,
    },
}

/// Why a leader gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResignReason {
    /// Its own log can not be trusted to keep what it is given.
    SyncFailed,
}

impl fmt::Display for ResignReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ResignReason::SyncFailed => f.write_str("a write or sync of its log failed"),
        }
    }
}
