//! How far each replica is, and what is committed because of it.

use quire_protocol::Offset;
use quire_protocol::topic_config::Sync;

use crate::mutant::{self, Mutant};

/// One replica's ends, as far as the leader knows. Never goes back within a leadership.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// The log end offset: the next offset to be written.
    pub log_end: Offset,
    /// The end of what a successful sync covered.
    pub durable_end: Offset,
}

impl Progress {
    /// The end of what counts as kept by this replica.
    pub fn safe_end(&self, sync: Sync) -> Offset {
        match sync {
            Sync::Always if mutant::is_on(Mutant::SyncBeforeAcknowledging) => self.log_end,
            Sync::Always => self.durable_end,
            Sync::Interval => self.log_end,
        }
    }
}

/// The rule by which offsets are committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitRule {
    /// When a batch counts as safe on a replica.
    pub sync: Sync,
    /// Fewer in-sync replicas than this commit nothing.
    pub min_insync_replicas: u32,
}

/// The end of what is safe on every one of these replicas; `None` if nothing is known of one, which then holds
/// everything back.
pub(super) fn committed_end(safe_ends: impl Iterator<Item = Option<Offset>>) -> Option<Offset> {
    safe_ends.reduce(|lowest, safe_end| Some(lowest?.min(safe_end?))).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_replica_decides_and_an_unknown_one_holds_everything_back() {
        let ends = |ends: &[Option<u64>]| committed_end(ends.iter().map(|end| end.map(Offset)));
        assert_eq!(ends(&[Some(8), Some(5)]), Some(Offset(5)));
        assert_eq!(ends(&[Some(8), None, Some(5)]), None);
        assert_eq!(ends(&[Some(8)]), Some(Offset(8)));
        assert_eq!(ends(&[None]), None);
    }

    #[test]
    fn what_counts_as_kept_is_what_the_topic_says() {
        let progress = Progress { log_end: Offset(9), durable_end: Offset(4) };
        assert_eq!(progress.safe_end(Sync::Always), Offset(4));
        assert_eq!(progress.safe_end(Sync::Interval), Offset(9));
    }
}
