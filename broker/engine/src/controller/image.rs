//! The metadata image: what the cluster looks like after the records applied so far.
//!
//! Cheap to copy: topics are shared, and a change copies only the topic it touches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quire_protocol::topic_config::{TopicConfig, TopicConfigError};
use quire_protocol::{BrokerId, LeaderEpoch, PartitionIndex, Timestamp, TopicId, TopicPartition};

use super::records::{Assignment, Record};

/// Everything that was committed about the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Image {
    cluster_id: Option<Arc<str>>,
    brokers: BTreeMap<BrokerId, Broker>,
    topics: BTreeMap<TopicId, Arc<Topic>>,
    names: BTreeMap<Arc<str>, TopicId>,
    deleted: BTreeMap<TopicId, DeletedTopic>,
}

/// A registered broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// Its number.
    pub id: BrokerId,
    /// Counts its registrations: a replica that followed under an older one is fenced.
    pub epoch: u64,
    /// Where clients reach it.
    pub host: String,
    /// Where clients reach it.
    pub port: u16,
    /// Its failure domain; empty if it was not told.
    pub rack: String,
}

/// A topic that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Its id, drawn when it was created.
    pub id: TopicId,
    /// Its name.
    pub name: Arc<str>,
    /// Replicas of each partition.
    pub replicas: u32,
    /// Its partitions; each one's index is its position.
    pub partitions: Vec<Partition>,
    /// The settings that were set.
    pub overrides: BTreeMap<String, String>,
    /// Every setting as it is in effect.
    pub config: Arc<TopicConfig>,
    /// When it was created.
    pub created_at: Timestamp,
    /// Of how many of its first partitions each broker is known to have the logs that it replicates on disk.
    pub held: BTreeMap<BrokerId, u32>,
}

/// One partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number.
    pub index: PartitionIndex,
    /// The brokers that hold it, the preferred leader first.
    pub replicas: Vec<BrokerId>,
    /// The broker that leads it.
    pub leader: BrokerId,
    /// Counts its leaderships.
    pub leader_epoch: LeaderEpoch,
    /// Counts every change of leader or in-sync replicas.
    pub partition_epoch: u32,
    /// The replicas in sync, the leader among them.
    pub in_sync: Vec<BrokerId>,
}

/// A topic that was deleted and that some broker may still hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeletedTopic {
    /// Its id.
    pub id: TopicId,
    /// The name it had.
    pub name: Arc<str>,
    /// When it was deleted.
    pub deleted_at: Timestamp,
    /// How many partitions it had.
    pub partitions: u32,
    /// The brokers that have not yet confirmed that they removed it.
    pub unconfirmed: BTreeSet<BrokerId>,
}

/// A committed record that does not fit the image: a defect, or a log that is not this cluster's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// A second cluster id.
    #[error("the cluster is {have} and can not become {given}")]
    Cluster {
        /// The id it has.
        have: Arc<str>,
        /// The id the record gives.
        given: Arc<str>,
    },
    /// A registration that does not count up.
    #[error("broker {broker} registered with epoch {given} after epoch {have}")]
    BrokerEpoch {
        /// The broker.
        broker: BrokerId,
        /// The epoch it has.
        have: u64,
        /// The epoch the record gives.
        given: u64,
    },
    /// A name or an id that exists already.
    #[error("topic \"{0}\" is created twice")]
    TopicExists(Arc<str>),
    /// A change of a topic that does not exist.
    #[error("topic {0} is changed but does not exist")]
    NoSuchTopic(TopicId),
    /// Partitions that are not numbered on from the last one, or none at all.
    #[error("topic {topic} gets partition {given} where {expected} comes next")]
    PartitionNumber {
        /// The topic.
        topic: TopicId,
        /// The number the record gives.
        given: PartitionIndex,
        /// The number that comes next.
        expected: u32,
    },
    /// Settings that this version does not know or accept.
    #[error(transparent)]
    Config(#[from] TopicConfigError),
}

impl Topic {
    /// One of its partitions.
    pub fn partition(&self, index: PartitionIndex) -> Option<&Partition> {
        self.partitions.get(usize::try_from(index.0).ok()?)
    }

    /// Whether a broker that replicates this partition is known to have its log on disk.
    pub fn is_held(&self, index: PartitionIndex, broker: BrokerId) -> bool {
        self.held.get(&broker).is_some_and(|held| index.0 < *held)
    }

    /// Whether a broker is known to have the logs of every partition that it replicates on disk.
    pub fn is_all_held(&self, broker: BrokerId) -> bool {
        self.partitions.last().is_some_and(|last| self.is_held(last.index, broker))
    }
}

impl Image {
    /// The cluster's id, once it was created.
    pub fn cluster_id(&self) -> Option<&str> {
        self.cluster_id.as_deref()
    }

    /// A registered broker.
    pub fn broker(&self, id: BrokerId) -> Option<&Broker> {
        self.brokers.get(&id)
    }

    /// The registered brokers, by number.
    pub fn brokers(&self) -> impl ExactSizeIterator<Item = &Broker> {
        self.brokers.values()
    }

    /// The topic of this id.
    pub fn topic(&self, id: TopicId) -> Option<&Arc<Topic>> {
        self.topics.get(&id)
    }

    /// The topic of this name.
    pub fn topic_named(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topics.get(self.names.get(name)?)
    }

    /// Every topic, by name.
    pub fn topics(&self) -> impl ExactSizeIterator<Item = &Arc<Topic>> {
        self.names.values().map(|id| &self.topics[id])
    }

    /// One partition, if topic and partition exist.
    pub fn partition(&self, id: TopicPartition) -> Option<&Partition> {
        self.topics.get(&id.topic)?.partition(id.partition)
    }

    /// Deleted topics that some broker has not confirmed.
    pub fn deleted_topics(&self) -> impl ExactSizeIterator<Item = &DeletedTopic> {
        self.deleted.values()
    }

    /// A deleted topic that some broker has not confirmed.
    pub fn deleted_topic(&self, id: TopicId) -> Option<&DeletedTopic> {
        self.deleted.get(&id)
    }

    /// The existing name closest to a mistyped one, if any is close.
    pub fn nearest_name(&self, name: &str) -> Option<Arc<str>> {
        nearest(name, self.names.keys().map(|known| &**known)).map(Arc::from)
    }

    /// How many replicas each broker holds, registered brokers that hold none included.
    pub fn replica_counts(&self) -> BTreeMap<BrokerId, u32> {
        let mut counts: BTreeMap<BrokerId, u32> = self.brokers.keys().map(|id| (*id, 0)).collect();
        let partitions = self.topics.values().flat_map(|topic| &topic.partitions);
        for replica in partitions.flat_map(|partition| &partition.replicas) {
            *counts.entry(*replica).or_default() += 1;
        }
        counts
    }

    /// Applies one committed record.
    ///
    /// # Errors
    /// If it does not fit; the image is unchanged then.
    pub fn apply(&mut self, record: &Record) -> Result<(), Conflict> {
        match record {
            Record::ClusterCreated { cluster_id } => self.create_cluster(cluster_id),
            Record::BrokerRegistered(broker) => self.register(broker),
            Record::TopicCreated { id, name, replicas, partitions, config, created_at } => {
                let mut topic = Topic {
                    id: *id,
                    name: name.clone(),
                    replicas: *replicas,
                    partitions: Vec::with_capacity(partitions.len()),
                    overrides: config.clone(),
                    config: Arc::new(TopicConfig::with_overrides(config)?),
                    created_at: *created_at,
                    held: BTreeMap::new(),
                };
                topic.add_partitions(partitions)?;
                self.create_topic(topic)
            }
            Record::TopicPartitionsAdded { id, partitions } => {
                self.change_topic(*id, |topic| topic.add_partitions(partitions))
            }
            Record::TopicConfigChanged { id, config } => self.change_topic(*id, |topic| {
                topic.config = Arc::new(TopicConfig::with_overrides(config)?);
                topic.overrides = config.clone();
                Ok(())
            }),
            Record::TopicDeleted { id, deleted_at } => self.delete_topic(*id, *deleted_at),
            Record::TopicDeletionConfirmed { id, broker } => {
                self.confirm_deletion(*id, *broker);
                Ok(())
            }
            Record::TopicHeld { id, broker, partitions } => {
                self.hold(*id, *broker, *partitions);
                Ok(())
            }
        }
    }

    fn create_cluster(&mut self, given: &Arc<str>) -> Result<(), Conflict> {
        match &self.cluster_id {
            Some(have) if have != given => {
                Err(Conflict::Cluster { have: have.clone(), given: given.clone() })
            }
            _ => {
                self.cluster_id = Some(given.clone());
                Ok(())
            }
        }
    }

    /// A broker that registers again has restarted, and no broker leads twice in one epoch across a restart: what it
    /// may have lost and written anew would bear the same offset and epoch. So its leaderships start anew here.
    fn register(&mut self, broker: &Broker) -> Result<(), Conflict> {
        let have = self.brokers.get(&broker.id).map_or(0, |known| known.epoch);
        if broker.epoch <= have {
            return Err(Conflict::BrokerEpoch { broker: broker.id, have, given: broker.epoch });
        }
        self.brokers.insert(broker.id, broker.clone());
        let leads = |partition: &Partition| partition.leader == broker.id;
        for topic in self.topics.values_mut().filter(|topic| topic.partitions.iter().any(leads)) {
            for partition in Arc::make_mut(topic).partitions.iter_mut().filter(|p| leads(p)) {
                partition.leader_epoch.0 += 1;
                partition.partition_epoch += 1;
            }
        }
        Ok(())
    }

    fn create_topic(&mut self, topic: Topic) -> Result<(), Conflict> {
        let known_id = self.topics.contains_key(&topic.id) || self.deleted.contains_key(&topic.id);
        if known_id || self.names.contains_key(&topic.name) {
            return Err(Conflict::TopicExists(topic.name));
        }
        self.names.insert(topic.name.clone(), topic.id);
        self.topics.insert(topic.id, Arc::new(topic));
        Ok(())
    }

    fn change_topic(
        &mut self,
        id: TopicId,
        change: impl FnOnce(&mut Topic) -> Result<(), Conflict>,
    ) -> Result<(), Conflict> {
        let known = self.topics.get_mut(&id).ok_or(Conflict::NoSuchTopic(id))?;
        let mut topic = Topic::clone(known);
        change(&mut topic)?;
        *known = Arc::new(topic);
        Ok(())
    }

    fn delete_topic(&mut self, id: TopicId, deleted_at: Timestamp) -> Result<(), Conflict> {
        let topic = self.topics.remove(&id).ok_or(Conflict::NoSuchTopic(id))?;
        self.names.remove(&topic.name);
        let unconfirmed = topic.partitions.iter().flat_map(|p| &p.replicas).copied().collect();
        let partitions = topic.partitions.len() as u32;
        let name = topic.name.clone();
        self.deleted.insert(id, DeletedTopic { id, name, deleted_at, partitions, unconfirmed });
        Ok(())
    }

    /// The topic may have been deleted since the broker said so.
    fn hold(&mut self, id: TopicId, broker: BrokerId, partitions: u32) {
        let Some(topic) = self.topics.get_mut(&id) else { return };
        let held = Arc::make_mut(topic).held.entry(broker).or_default();
        *held = partitions.max(*held);
    }

    fn confirm_deletion(&mut self, id: TopicId, broker: BrokerId) {
        let Some(topic) = self.deleted.get_mut(&id) else { return };
        topic.unconfirmed.remove(&broker);
        if topic.unconfirmed.is_empty() {
            self.deleted.remove(&id);
        }
    }
}

impl Topic {
    fn add_partitions(&mut self, assignments: &[Assignment]) -> Result<(), Conflict> {
        for assignment in assignments {
            let expected = self.partitions.len() as u32;
            if assignment.partition.0 != expected {
                let given = assignment.partition;
                return Err(Conflict::PartitionNumber { topic: self.id, given, expected });
            }
            self.partitions.push(Partition {
                index: assignment.partition,
                replicas: assignment.replicas.clone(),
                leader: assignment.leader,
                leader_epoch: assignment.leader_epoch,
                partition_epoch: assignment.partition_epoch,
                in_sync: assignment.in_sync.clone(),
            });
        }
        Ok(())
    }
}

/// The candidate that differs from `name` by the fewest edits, if that is at most a third of its length.
fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let edits_max = (name.len() / 3).clamp(1, 4);
    candidates
        .filter(|candidate| candidate.len().abs_diff(name.len()) <= edits_max)
        .map(|candidate| (edits(name.as_bytes(), candidate.as_bytes()), candidate))
        .filter(|(edits, _)| *edits <= edits_max)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance.
fn edits(from: &[u8], to: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_name_is_found_and_a_far_one_is_not() {
        let known = ["flights", "orders", "payments"];
        assert_eq!(nearest("flighst", known.into_iter()), Some("flights"));
        assert_eq!(nearest("order", known.into_iter()), Some("orders"));
        assert_eq!(nearest("weather", known.into_iter()), None);
        assert_eq!(edits(b"kitten", b"sitting"), 3);
    }
}
