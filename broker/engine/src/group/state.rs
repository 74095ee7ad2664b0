//! One group, as its records say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quire_protocol::{TopicId, TopicPartition};

use super::assignment::{Assignor, Subscriber};
use super::records::{Committed, Current, Generation, GroupRecord, MemberRecord, Record};
use super::topics::{Partitions, Topics};

static NOTHING: Partitions = Partitions::new();
static NO_CURRENT: Current = Current {
    epoch: Generation::JOINS,
    previous: Generation::JOINS,
    revision: 0,
    assigned: Partitions::new(),
    revoking: Partitions::new(),
};

/// A group that does not exist.
pub(super) static NO_GROUP: Group = Group {
    record: None,
    members: BTreeMap::new(),
    targets: BTreeMap::new(),
    currents: BTreeMap::new(),
    offsets: BTreeMap::new(),
    instances: BTreeMap::new(),
    owners: BTreeMap::new(),
    bytes: 0,
};

/// What a record takes beside its texts and partitions, about: key, maps, counts (bytes).
const RECORD_BYTES: usize = 96;
/// What a partition takes in a set (bytes).
const PARTITION_BYTES: usize = 24;

/// What the records of one group say. A compacted log may give them in any order, so that each part stands by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) record: Option<GroupRecord>,
    pub(super) members: BTreeMap<Arc<str>, MemberRecord>,
    pub(super) targets: BTreeMap<Arc<str>, Partitions>,
    pub(super) currents: BTreeMap<Arc<str>, Current>,
    pub(super) offsets: BTreeMap<TopicPartition, Committed>,
    /// Which member is which instance.
    pub(super) instances: BTreeMap<Arc<str>, Arc<str>>,
    /// Who has a partition, or has not given it up yet.
    pub(super) owners: BTreeMap<TopicPartition, Arc<str>>,
    /// What all of it takes in memory, about.
    pub(super) bytes: usize,
}

impl Group {
    /// Takes a record of this group.
    pub(super) fn apply(&mut self, record: &Record) {
        self.bytes -= self.stored_bytes(record);
        match record {
            Record::Group { value, .. } => self.record = value.clone(),
            Record::Member { member, value, .. } => self.apply_member(member, value.as_ref()),
            Record::Target { member, value, .. } => put(&mut self.targets, member, value.as_ref()),
            Record::Current { member, value, .. } => self.apply_current(member, value.as_ref()),
            Record::Offset { partition, value, .. } => put(&mut self.offsets, partition, value.as_ref()),
        }
        self.bytes += self.stored_bytes(record);
    }

    /// What is kept under a record's key takes so much.
    fn stored_bytes(&self, record: &Record) -> usize {
        let partitions = |count: usize| RECORD_BYTES + count * PARTITION_BYTES;
        let bytes = match record {
            Record::Group { .. } => self.record.as_ref().map(|_| RECORD_BYTES),
            Record::Member { member, .. } => self.members.get(member).map(MemberRecord::stored_bytes),
            Record::Target { member, .. } => self.targets.get(member).map(|target| partitions(target.len())),
            Record::Current { member, .. } => self
                .currents
                .get(member)
                .map(|current| partitions(current.assigned.len() + current.revoking.len())),
            Record::Offset { partition, .. } => self.offsets.get(partition).map(Committed::stored_bytes),
        };
        bytes.unwrap_or(0)
    }

    fn apply_member(&mut self, member: &Arc<str>, value: Option<&MemberRecord>) {
        let before = self.members.get(member).and_then(|before| before.instance.clone());
        if let Some(instance) = before
            && self.instances.get(&instance) == Some(member)
        {
            self.instances.remove(&instance);
        }
        if let Some(instance) = value.and_then(|value| value.instance.clone()) {
            self.instances.insert(instance, member.clone());
        }
        put(&mut self.members, member, value);
    }

    fn apply_current(&mut self, member: &Arc<str>, value: Option<&Current>) {
        for partition in self.currents.get(member).into_iter().flat_map(Current::held) {
            if self.owners.get(partition) == Some(member) {
                self.owners.remove(partition);
            }
        }
        for partition in value.into_iter().flat_map(Current::held) {
            self.owners.insert(*partition, member.clone());
        }
        put(&mut self.currents, member, value);
    }

    /// Whether nothing is left of it.
    pub(super) fn is_gone(&self) -> bool {
        self.record.is_none()
            && self.members.is_empty()
            && self.targets.is_empty()
            && self.currents.is_empty()
            && self.offsets.is_empty()
    }

    pub(super) fn generation(&self) -> Generation {
        self.record.as_ref().map_or(Generation::JOINS, |record| record.generation)
    }

    pub(super) fn target(&self, member: &str) -> &Partitions {
        self.targets.get(member).unwrap_or(&NOTHING)
    }

    pub(super) fn current(&self, member: &str) -> &Current {
        self.currents.get(member).unwrap_or(&NO_CURRENT)
    }

    /// Whether a member has all it is to have and nothing else. Nothing is expected of one that is away.
    pub(super) fn is_settled(&self, member: &str) -> bool {
        let current = self.current(member);
        current.epoch == Generation::PAUSES
            || current.epoch == self.generation()
                && current.revoking.is_empty()
                && current.assigned == *self.target(member)
    }

    /// The assignor that most members prefer; of equals the first. The default if none has a preference.
    pub(super) fn preferred_assignor(&self) -> Assignor {
        let votes = |assignor: Assignor| {
            self.members.values().filter(|member| member.assignor == Some(assignor)).count()
        };
        let first_of_most = Assignor::ALL.into_iter().rev().max_by_key(|assignor| votes(*assignor));
        first_of_most.filter(|assignor| votes(*assignor) > 0).unwrap_or_default()
    }

    /// Its members as assignors see them.
    pub(super) fn subscribers(&self, topics: &Topics) -> BTreeMap<Arc<str>, Subscriber> {
        let subscriber = |(id, member): (&Arc<str>, &MemberRecord)| {
            let order = member.instance.as_ref().unwrap_or(id).clone();
            let known = member.topics.iter().filter_map(|name| topics.named(name));
            let topics = known.map(|topic| topic.id).collect();
            (id.clone(), Subscriber { order, rack: member.rack.clone(), topics })
        };
        self.members.iter().map(subscriber).collect()
    }

    /// Whether the targets give every partition that is subscribed to, to exactly one subscriber.
    pub(super) fn has_current_targets(&self, topics: &Topics) -> bool {
        let subscribers = self.subscribers(topics);
        let subscribed: BTreeSet<TopicId> =
            subscribers.values().flat_map(|member| member.topics.iter().copied()).collect();
        let count = |id: &TopicId| topics.topic(*id).map_or(0, |topic| topic.partitions as usize);
        let expected: usize = subscribed.iter().map(count).sum();
        let mut given = Partitions::new();
        let mut is_right = self.targets.keys().all(|member| self.members.contains_key(member));
        for (id, member) in &subscribers {
            for partition in self.target(id) {
                is_right &= topics.has(*partition)
                    && member.topics.contains(&partition.topic)
                    && given.insert(*partition);
            }
        }
        is_right && given.len() == expected
    }

    /// Panics unless every partition that a member has is that member's alone.
    pub(super) fn check(&self) {
        let held: usize = self.currents.values().map(|current| current.held().count()).sum();
        assert!(held == self.owners.len(), "{held} partitions are held, {} have an owner", self.owners.len());
        for (member, current) in &self.currents {
            assert!(current.epoch <= self.generation(), "{member} is not ahead of its group");
            for partition in current.held() {
                assert!(self.owners.get(partition) == Some(member), "{partition} has one owner");
            }
        }
    }
}

impl MemberRecord {
    /// What it takes in memory, about.
    pub(super) fn stored_bytes(&self) -> usize {
        let texts = [&self.instance, &self.rack, &self.principal].into_iter().flatten();
        let texts = texts.chain([&self.client, &self.host]).map(|text| text.len()).sum::<usize>();
        let topics = self.topics.iter().map(|topic| topic.len() + PARTITION_BYTES).sum::<usize>();
        RECORD_BYTES + texts + topics
    }
}

impl Committed {
    /// What it takes in memory, about.
    pub(super) fn stored_bytes(&self) -> usize {
        RECORD_BYTES + self.metadata.len()
    }
}

fn put<K: Ord + Clone, V: Clone>(map: &mut BTreeMap<K, V>, key: &K, value: Option<&V>) {
    match value {
        Some(value) => {
            map.insert(key.clone(), value.clone());
        }
        None => {
            map.remove(key);
        }
    }
}
