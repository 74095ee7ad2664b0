//! Which replica a partition is read from: its leader, or one nearer by that is in sync. Pure.
//!
//! What a near replica says is never final. Where it fails, the leader is read from at once, and the near one is left
//! alone for a while, the longer the more often it failed.

use std::time::{Duration, Instant};

use quire_protocol::{BrokerId, PartitionIndex};

use crate::metadata::Racks;

/// How often it is looked at whether another replica is the one to read from: so long a replica that nobody hears of any
/// more, itself included, may hold its reader up.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// How long a near replica may take to begin.
pub(super) const OPENING_TIME_MAX: Duration = Duration::from_secs(2);
const REST_MIN: Duration = Duration::from_secs(5);
const REST_MAX: Duration = Duration::from_secs(60);

/// One partition's choice.
#[derive(Debug)]
pub(super) struct Near {
    rack: String,
    rest: Duration,
    rests_until: Option<Instant>,
}

/// What there is to choose from.
#[derive(Debug)]
pub(super) struct Replicas<'a> {
    pub partition: PartitionIndex,
    pub leader: Option<BrokerId>,
    pub in_sync: &'a [BrokerId],
    pub racks: &'a Racks,
}

impl Near {
    pub(super) fn new(rack: String) -> Near {
        Near { rack, rest: REST_MIN, rests_until: None }
    }

    /// The replica in the rack to read from; `None` is the leader, also where it is the one in the rack.
    pub(super) fn choose(&self, now: Instant, replicas: &Replicas<'_>) -> Option<BrokerId> {
        if self.rests_until.is_some_and(|until| now < until) {
            return None;
        }
        let is_near = |id: &BrokerId| replicas.racks.get(id).is_some_and(|rack| *rack == self.rack);
        if replicas.leader.is_some_and(|leader| is_near(&leader)) {
            return None;
        }
        let near: Vec<_> = replicas.in_sync.iter().copied().filter(is_near).collect();
        // Partitions share the replicas of a rack.
        near.get(replicas.partition.0 as usize % near.len().max(1)).copied()
    }

    /// The near replica did not serve.
    pub(super) fn failed(&mut self, now: Instant) {
        self.rests_until = Some(now + self.rest);
        self.rest = (self.rest * 2).min(REST_MAX);
    }

    /// It served for long enough to be forgiven what was before.
    pub(super) fn served(&mut self, time: Duration) {
        if time >= REST_MIN {
            self.rest = REST_MIN;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: BrokerId = BrokerId(1);
    const TWO: BrokerId = BrokerId(2);
    const THREE: BrokerId = BrokerId(3);

    fn choose(
        near: &Near,
        now: Instant,
        leader: BrokerId,
        in_sync: &[BrokerId],
        at: u32,
    ) -> Option<BrokerId> {
        let racks = [(ONE, "a"), (TWO, "b"), (THREE, "b")];
        let racks = racks.map(|(id, rack)| (id, rack.to_owned())).into();
        let partition = PartitionIndex(at);
        near.choose(now, &Replicas { partition, leader: Some(leader), in_sync, racks: &racks })
    }

    #[test]
    fn only_a_replica_in_sync_and_in_the_rack_takes_the_leaders_place() {
        let (near, now) = (Near::new("b".into()), Instant::now());
        assert_eq!(choose(&near, now, ONE, &[ONE, TWO], 0), Some(TWO));
        assert_eq!(choose(&near, now, ONE, &[ONE], 0), None, "none is in sync there");
        assert_eq!(choose(&near, now, THREE, &[ONE, TWO, THREE], 0), None, "the leader is in the rack");
        assert_eq!(choose(&Near::new("c".into()), now, ONE, &[ONE, TWO], 0), None, "nobody is there");
        let shared: Vec<_> = (0..4).map(|at| choose(&near, now, ONE, &[ONE, TWO, THREE], at)).collect();
        assert_eq!(shared, [Some(TWO), Some(THREE), Some(TWO), Some(THREE)]);
    }

    #[test]
    fn a_replica_that_failed_is_left_alone_the_longer_the_more_often() {
        let (mut near, now) = (Near::new("b".into()), Instant::now());
        let chosen = |near: &Near, after: Duration| choose(near, now + after, ONE, &[ONE, TWO], 0);
        near.failed(now);
        assert_eq!(chosen(&near, REST_MIN - Duration::from_millis(1)), None);
        assert_eq!(chosen(&near, REST_MIN), Some(TWO));
        near.failed(now);
        assert_eq!(chosen(&near, REST_MIN), None);
        assert_eq!(chosen(&near, REST_MIN * 2), Some(TWO));
        for _ in 0..10 {
            near.failed(now);
        }
        assert_eq!(chosen(&near, REST_MAX), Some(TWO), "it is tried again some time");
        near.served(REST_MIN);
        near.failed(now);
        assert_eq!(chosen(&near, REST_MIN), Some(TWO));
    }
}
