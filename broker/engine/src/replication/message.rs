//! Everything that can happen to a leader.

use quire_protocol::Offset;
use quire_protocol::topic_config::Sync;

/// What a leader is told. Ends are exclusive: the first offset that is not yet there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Its own log was appended to.
    Appended {
        /// The log end offset.
        end: Offset,
    },
    /// A sync of its own log succeeded.
    LocalDurable {
        /// The end of what the sync covered.
        end: Offset,
    },
    /// A write or a sync of its own log failed: what is on disk is unknown.
    SyncFailed,
    /// Old segments were deleted.
    Trimmed {
        /// The log start offset.
        start: Offset,
    },
    /// The topic's settings changed.
    Reconfigured {
        /// When a batch counts as safe.
        sync: Sync,
        /// Replicas that must be in sync for anything to be committed.
        min_insync_replicas: u32,
    },
}
