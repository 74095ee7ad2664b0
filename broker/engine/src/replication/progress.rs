//! How far each replica is, and what is committed because of it.

use std::collections::{BTreeMap, BTreeSet};

use quire_protocol::topic_config::Sync;
use quire_protocol::{BrokerId, Offset};

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

/// The end of what is safe on every in-sync replica; `None` if too few are in sync to commit anything.
///
/// A replica in `in_sync` of which nothing is known yet holds everything back.
pub fn committed_end(
    replicas: &BTreeMap<BrokerId, Progress>,
    in_sync: &BTreeSet<BrokerId>,
    rule: CommitRule,
) -> Option<Offset> {
    if in_sync.len() < rule.min_insync_replicas as usize {
        return None;
    }
    let safe_end = |id| replicas.get(id).copied().unwrap_or_default().safe_end(rule.sync);
    in_sync.iter().map(safe_end).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALWAYS_TWO: CommitRule = CommitRule { sync: Sync::Always, min_insync_replicas: 2 };

    fn replicas(ends: &[(u32, u64, u64)]) -> BTreeMap<BrokerId, Progress> {
        let progress =
            |log_end, durable_end| Progress { log_end: Offset(log_end), durable_end: Offset(durable_end) };
        ends.iter().map(|(id, log, durable)| (BrokerId(*id), progress(*log, *durable))).collect()
    }

    fn brokers(ids: &[u32]) -> BTreeSet<BrokerId> {
        ids.iter().copied().map(BrokerId).collect()
    }

    #[test]
    fn the_slowest_in_sync_replica_decides() {
        let replicas = replicas(&[(0, 10, 8), (1, 9, 5), (2, 3, 3)]);
        assert_eq!(committed_end(&replicas, &brokers(&[0, 1]), ALWAYS_TWO), Some(Offset(5)));
        assert_eq!(committed_end(&replicas, &brokers(&[0, 1, 2]), ALWAYS_TWO), Some(Offset(3)));
        let interval = CommitRule { sync: Sync::Interval, ..ALWAYS_TWO };
        assert_eq!(committed_end(&replicas, &brokers(&[0, 1]), interval), Some(Offset(9)));
    }

    #[test]
    fn too_few_in_sync_replicas_commit_nothing() {
        let replicas = replicas(&[(0, 10, 10)]);
        assert_eq!(committed_end(&replicas, &brokers(&[0]), ALWAYS_TWO), None);
        assert_eq!(committed_end(&replicas, &brokers(&[0, 7]), ALWAYS_TWO), Some(Offset(0)));
    }
}
