//! When a cluster is whole again, and what must be true of it then.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quire_broker::simulation::PartitionHandle;
use quire_protocol::{BrokerId, TopicPartition};
use quire_storage::{ReadError, Residency};

use super::super::invariants::Violation;
use super::super::ledger::records;
use super::readers::LONE_READER;
use super::{FAULTS_LAST, World};
use quire_engine::Time;
use std::time::Duration;

impl World {
    /// Partitions that nobody may ever lead again without losing something: every replica that had what was committed had to
    /// be distrusted.
    pub(super) fn is_lost(&self, id: TopicPartition) -> bool {
        let known = self.metadata.0.image().partition(id);
        known.is_some_and(|known| {
            known.leader.is_none() && known.in_sync.is_empty() && known.eligible.is_empty()
        })
    }

    fn partitions(&self) -> Vec<TopicPartition> {
        let topics = self.metadata.0.image().topics();
        topics
            .flat_map(|topic| topic.partitions.iter().map(|known| (topic.id, known.index)))
            .map(|(topic, partition)| TopicPartition { topic, partition })
            .collect()
    }

    pub(super) fn handle(&self, broker: BrokerId, id: TopicPartition) -> Option<PartitionHandle> {
        self.brokers[&broker].running.as_ref()?.partition(id)
    }

    /// What is still missing after the faults: brokers that are registered and unfenced, one leader of each partition,
    /// everybody in sync, everything committed, reassignments done, deleted topics gone, every write answered.
    pub(super) fn why_not_healed(&self) -> Option<String> {
        if self.schedule.now() < Time::ZERO + FAULTS_LAST + Duration::from_secs(4) {
            return Some("clients go on".to_owned());
        }
        let image = self.metadata.0.image();
        for (id, broker) in &self.brokers {
            let epoch = image.broker(*id).filter(|known| known.is_active()).map(|known| known.epoch);
            let Some(running) = &broker.running else { return Some(format!("broker {id} is down")) };
            if epoch.is_none() || running.registration != epoch {
                return Some(format!("broker {id} lives in {:?}, known is {epoch:?}", running.registration));
            }
            if running.applied != self.metadata.1 {
                return Some(format!("broker {id} has {} of {} entries", running.applied, self.metadata.1));
            }
        }
        if let Some(topic) = image.deleted_topics().next() {
            return Some(format!("{} is not removed by {:?}", topic.name, topic.unconfirmed));
        }
        for id in self.partitions() {
            if self.is_lost(id) {
                continue;
            }
            let known = image.partition(id).expect("just listed");
            let Some(leader) = known.leader else { return Some(format!("{id} has no leader: {known:?}")) };
            if known.in_sync.len() != known.replicas.len() || known.is_reassigning() {
                let states: Vec<_> = known
                    .replicas
                    .iter()
                    .map(|other| (other.0, self.handle(*other, id).map(|h| h.state())))
                    .collect();
                return Some(format!("{id} is {known:?}: {states:?}"));
            }
            let handle = self.handle(leader, id).filter(|handle| handle.standing().is_leading);
            let Some(handle) = handle else { return Some(format!("{leader} does not lead {id}")) };
            let (high, end) = (handle.reader().high_watermark(), handle.reader().end_offset());
            if high != end {
                return Some(format!("of {end} in {id}, {high} are committed"));
            }
            for other in &known.replicas {
                let own = self.handle(*other, id);
                let ends = own.map(|own| (own.reader().high_watermark(), own.reader().end_offset()));
                if ends != Some((high, end)) {
                    return Some(format!("{other} has {ends:?} of {id}, its leader {end}"));
                }
                let running = self.brokers[other].running.as_ref().expect("just looked");
                if running.is_suspect(id) {
                    return Some(format!("{id} is suspect at {other}"));
                }
            }
        }
        if self.invariants.has_open_writes() {
            return Some("writes are unanswered".to_owned());
        }
        let unread = self.consumable().into_iter().filter(|id| !self.is_lost(*id)).find_map(|id| {
            let leader = image.partition(id)?.leader?;
            let high = self.handle(leader, id)?.reader().high_watermark();
            let read_to = self.readings.get(&(LONE_READER, id)).map(|reading| reading.next);
            (read_to != Some(high)).then(|| format!("of {high} in {id}, {read_to:?} are read"))
        });
        unread.or_else(|| self.why_groups_are_not_healed())
    }

    /// After the faults: every log the same, and everything acknowledged there, once.
    pub(super) fn check_healed(&mut self) -> Result<(), Violation> {
        let image = self.metadata.0.image().clone();
        for (id, broker) in &self.brokers {
            let running = broker.running.as_ref().expect("it is healed");
            if **running.image() != *image {
                return Err(Violation::Metadata { what: format!("broker {id} has other metadata") });
            }
        }
        let mut logs = Vec::new();
        let mut offline = BTreeSet::new();
        for id in self.partitions() {
            if self.is_lost(id) {
                offline.insert(id);
                continue;
            }
            let known = image.partition(id).expect("just listed").clone();
            let leader = known.leader.expect("it is healed");
            let own = self.handle(leader, id).expect("it is healed");
            for other in known.replicas.iter().copied().filter(|other| *other != leader) {
                let follower = self.handle(other, id).expect("it is healed");
                self.compare(id, (leader, &own), (other, &follower))?;
            }
            logs.push(own);
        }
        self.coverage.ended_offline = u64::from(!offline.is_empty());
        self.coverage.truncations = self.invariants.truncations();
        self.invariants.check_final(&logs)?;
        self.coverage.with_coordinator_move = u64::from(self.coverage.coordinator_moves > 0);
        self.coverage.with_fenced_member = u64::from(self.coverage.members_fenced > 0);
        self.coverage.with_rebalance = u64::from(self.coverage.rebalances > self.members.len() as u64);
        self.check_groups_rebuilt()?;
        Ok(())
    }

    /// Two logs have the same bytes where both have any, but for frames that are damaged and not found yet.
    fn compare(
        &self,
        partition: TopicPartition,
        (one, left): (BrokerId, &PartitionHandle),
        (other, right): (BrokerId, &PartitionHandle),
    ) -> Result<(), Violation> {
        if self.is_internal(partition) {
            return self.compare_keys(partition, (one, left), (other, right));
        }
        let (left, right) = (left.reader(), right.reader());
        let end = left.end_offset();
        let mut next = left.log_start().max(right.log_start());
        let differ = |what: String| Err(Violation::Diverged { partition, one, other, what });
        while next < end {
            let read = |reader: &quire_storage::LogReader| reader.read(next, 1, end, Residency::Any);
            let (ours, theirs) = match (read(left), read(right)) {
                (Ok(ours), Ok(theirs)) => (ours, theirs),
                (ours, theirs) => {
                    let is_damaged = self.options.damaged.is_some_and(|id| id == one || id == other);
                    if is_damaged {
                        return Ok(());
                    }
                    return differ(format!("at {next}: {ours:?}, {theirs:?}"));
                }
            };
            if ours.frames != theirs.frames || ours.next_offset <= next {
                return differ(format!("at {next}"));
            }
            next = ours.next_offset;
        }
        Ok(())
    }

    /// Two logs that are compacted, each by itself, say the same of every key.
    fn compare_keys(
        &self,
        partition: TopicPartition,
        (one, left): (BrokerId, &PartitionHandle),
        (other, right): (BrokerId, &PartitionHandle),
    ) -> Result<(), Violation> {
        let read = |handle| match (last_values(handle), self.options.damaged) {
            (Ok(values), _) => Ok(Some(values)),
            // What is damaged is not found yet.
            (Err(_), Some(damaged)) if damaged == one || damaged == other => Ok(None),
            (Err(error), _) => Err(Violation::Diverged { partition, one, other, what: error.to_string() }),
        };
        match (read(left)?, read(right)?) {
            (Some(ours), Some(theirs)) if ours != theirs => {
                let what = format!("keys say {ours:?}, and {theirs:?}");
                Err(Violation::Diverged { partition, one, other, what })
            }
            _ => Ok(()),
        }
    }
}

/// What each key of a log stands for in the end.
fn last_values(handle: &PartitionHandle) -> Result<BTreeMap<Bytes, Bytes>, ReadError> {
    let reader = handle.reader();
    let mut values = BTreeMap::new();
    for (key, value) in records(handle, reader.log_start(), reader.end_offset())?.into_iter().flatten() {
        match value {
            Some(value) => drop(values.insert(key, value)),
            None => drop(values.remove(&key)),
        }
    }
    Ok(values)
}
