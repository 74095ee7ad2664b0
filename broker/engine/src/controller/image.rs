//! The metadata image: what the cluster looks like after the records applied so far.
//!
//! Cheap to copy: topics are shared, and a change copies only the topic it touches.

pub(super) mod apply;
pub mod snapshot;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quire_protocol::topic_config::{TopicConfig, TopicConfigError};
use quire_protocol::{BrokerId, LeaderEpoch, PartitionIndex, Timestamp, TopicId, TopicPartition};

use super::records::Record;

/// Everything that was committed about the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Image {
    pub(super) cluster_id: Option<Arc<str>>,
    pub(super) brokers: BTreeMap<BrokerId, Broker>,
    pub(super) removed_brokers: BTreeSet<BrokerId>,
    pub(super) next_broker: BrokerId,
    pub(super) topics: BTreeMap<TopicId, Arc<Topic>>,
    pub(super) names: BTreeMap<Arc<str>, TopicId>,
    pub(super) deleted: BTreeMap<TopicId, DeletedTopic>,
    pub(super) next_producer_id: u64,
    pub(super) acls: BTreeSet<Acl>,
    pub(super) tokens: BTreeMap<[u8; 32], Token>,
    pub(super) authority: Option<Arc<[u8]>>,
    pub(super) revoked: BTreeSet<Arc<[u8]>>,
}

/// A registered broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// Its number.
    pub id: BrokerId,
    /// Counts its registrations: a replica that followed under an older one is fenced.
    pub epoch: u64,
    /// Drawn at each start of its process; zeros if it registered before there were any.
    pub incarnation: [u8; 16],
    /// Drawn when its data directory was made; zeros if it registered before there were any.
    pub directory: [u8; 16],
    /// Where clients reach it.
    pub host: String,
    /// Where clients reach it.
    pub port: u16,
    /// Where its peers reach it; empty if nothing but clients does.
    pub peer_host: String,
    /// Where its peers reach it.
    pub peer_port: u16,
    /// Its failure domain; empty if it was not told.
    pub rack: String,
    /// Whether it can lead and be in sync.
    pub state: BrokerState,
    /// Its node in the metadata's consensus group; 0 if it is in none.
    pub node: u64,
}

/// What a broker may be trusted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BrokerState {
    /// It is heard of and knows the metadata: it may lead and be in sync.
    Unfenced,
    /// It stays in sync, and leads only what nobody else can: it is about to stop or to be removed.
    Draining,
    /// It is not heard of, or does not know the metadata yet: it leads nothing and is in sync with nothing.
    Fenced,
}

/// A topic that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Its id, drawn when it was created.
    pub id: TopicId,
    /// Its name.
    pub name: Arc<str>,
    /// Replicas of each partition, once reassignments under way are done.
    pub replicas: u32,
    /// Its partitions; each one's index is its position.
    pub partitions: Vec<Arc<Partition>>,
    /// The settings that were set.
    pub overrides: BTreeMap<String, String>,
    /// Every setting as it is in effect.
    pub config: Arc<TopicConfig>,
    /// When it was created.
    pub created_at: Timestamp,
    /// What each broker is known to have on disk of it.
    pub held: BTreeMap<BrokerId, Held>,
}

/// Which logs of a topic a broker is known to have, or to have had, on disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Held {
    /// Of the partitions below this number, those that it replicates,
    pub partitions: u32,
    /// but for these.
    pub missing: BTreeSet<PartitionIndex>,
}

/// One partition of a topic.
///
/// `in_sync` and `eligible` are disjoint subsets of `replicas`, in their order. A partition has a leader exactly if
/// somebody is in sync, and the leader is one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number.
    pub index: PartitionIndex,
    /// The brokers that hold it, the preferred leader first. During a reassignment those it is to have come first, and
    /// those that it is to lose last.
    pub replicas: Vec<BrokerId>,
    /// The broker that leads it; `None` while nobody who holds everything committed can.
    pub leader: Option<BrokerId>,
    /// Counts its leaderships: goes up with each change of `leader`, to none included, and when replicas are removed.
    pub leader_epoch: LeaderEpoch,
    /// Counts every change of the partition.
    pub partition_epoch: u32,
    /// The replicas in sync, none of them fenced.
    pub in_sync: Vec<BrokerId>,
    /// The eligible leader replicas: they left the in-sync replicas when these became fewer than
    /// `min.insync.replicas`, so that nothing was committed without them. Empty otherwise.
    pub eligible: Vec<BrokerId>,
    /// Replicas that a reassignment adds.
    pub adding: Vec<BrokerId>,
    /// Replicas that a reassignment removes once all others are in sync.
    pub removing: Vec<BrokerId>,
    /// Whether its leader was elected without holding everything committed, and nobody has followed it yet: records may
    /// be lost.
    pub is_recovering: bool,
    /// Replicas that may lack what was committed, or are damaged, and have not caught up since; who was last said to be comes
    /// last.
    pub suspects: Vec<BrokerId>,
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

/// A right: who may do what with which topics, or groups.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Acl {
    /// The certificate's name, or `*` for everybody who is authenticated.
    pub principal: String,
    /// What it allows.
    pub operation: Operation,
    /// The names of topics, with [`Operation::Join`] of groups, begin with this; empty is all of them.
    pub prefix: String,
}

/// What a right allows. All but [`Operation::Join`] are of topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Append records.
    Produce,
    /// Read records.
    Consume,
    /// Join groups, commit their offsets, look at them; what a group consumes takes [`Operation::Consume`] as well.
    Join,
    /// Create, alter and delete topics.
    Manage,
    /// Everything, also with the cluster itself.
    Administer,
}

/// A permission to join the cluster, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Until when it can be used.
    pub expires_at: Timestamp,
    /// Who used it, and the broker id it was given: the same one is answered the same again.
    pub redeemed: Option<([u8; 32], BrokerId)>,
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
    /// A partition that does not follow on what it was.
    #[error("partition {partition} changes from partition epoch {have} to {given}")]
    PartitionEpoch {
        /// The partition.
        partition: TopicPartition,
        /// The epoch it has; 0 if it does not exist.
        have: u32,
        /// The epoch the record gives.
        given: u32,
    },
    /// A change of a broker that is not registered so.
    #[error("broker {broker} changes in epoch {given}, which it is not registered with")]
    NoSuchBroker {
        /// The broker.
        broker: BrokerId,
        /// The epoch the record gives.
        given: u64,
    },
    /// Producer ids that were given before.
    #[error("producer ids up to {given} are given after those up to {have}")]
    ProducerIds {
        /// The first that nobody has.
        have: u64,
        /// What the record says it is.
        given: u64,
    },
    /// Settings that this version does not know or accept.
    #[error(transparent)]
    Config(#[from] TopicConfigError),
}

impl Acl {
    /// The principal of the profile that is made with the cluster, who has every right.
    pub const ADMINISTRATOR: &'static str = "admin";
    /// Stands for everybody who is authenticated.
    pub const EVERYBODY: &'static str = "*";
}

impl Broker {
    /// Whether it is heard of and may be in sync; it leads what nobody else can while it drains.
    pub fn is_active(&self) -> bool {
        self.state != BrokerState::Fenced
    }
}

impl Partition {
    /// The replicas it has once a reassignment under way is done.
    pub fn target(&self) -> impl Iterator<Item = BrokerId> + '_ {
        self.replicas.iter().copied().filter(|id| !self.removing.contains(id))
    }

    /// Whether a reassignment is under way.
    pub fn is_reassigning(&self) -> bool {
        !self.adding.is_empty() || !self.removing.is_empty()
    }

    /// Whether fewer replicas are in sync than it is to have.
    pub fn is_under_replicated(&self) -> bool {
        self.target().any(|id| !self.in_sync.contains(&id))
    }
}

impl Topic {
    /// One of its partitions.
    pub fn partition(&self, index: PartitionIndex) -> Option<&Arc<Partition>> {
        self.partitions.get(usize::try_from(index.0).ok()?)
    }

    /// Whether a broker that replicates this partition must have its log on disk: it is known to have had it, and nobody
    /// else is counted on to have what is in it.
    pub fn is_held(&self, index: PartitionIndex, broker: BrokerId) -> bool {
        let is_counted = |partition: &Arc<Partition>| {
            partition.replicas.len() == 1
                || partition.in_sync.contains(&broker)
                || partition.eligible.contains(&broker)
        };
        self.is_known_held(index, broker) && self.partition(index).is_some_and(is_counted)
    }

    fn is_known_held(&self, index: PartitionIndex, broker: BrokerId) -> bool {
        self.held.get(&broker).is_some_and(|held| held.has(index))
    }

    /// Whether a broker is known to have the logs of every partition that it replicates on disk.
    pub fn is_all_held(&self, broker: BrokerId) -> bool {
        let is_replica = |index: &PartitionIndex| {
            self.partition(*index).is_some_and(|partition| partition.replicas.contains(&broker))
        };
        self.held.get(&broker).is_some_and(|held| {
            held.partitions as usize >= self.partitions.len() && !held.missing.iter().any(is_replica)
        })
    }
}

impl Held {
    fn has(&self, index: PartitionIndex) -> bool {
        index.0 < self.partitions && !self.missing.contains(&index)
    }

    /// Once the broker says that it has so many of the first partitions, but for some. What it had before it is to have for
    /// ever, whatever it says.
    pub(super) fn with(&self, partitions: u32, missing: &BTreeSet<PartitionIndex>) -> Held {
        let said = missing.iter().filter(|index| index.0 < partitions && !self.has(**index));
        let not_told = self.missing.iter().filter(|index| index.0 >= partitions);
        Held { partitions: self.partitions.max(partitions), missing: said.chain(not_told).copied().collect() }
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
    pub fn partition(&self, id: TopicPartition) -> Option<&Arc<Partition>> {
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
        for replica in partitions.flat_map(|partition| partition.replicas.iter()) {
            *counts.entry(*replica).or_default() += 1;
        }
        counts
    }

    /// The first producer id that nobody was given; 0 is nobody's.
    pub fn next_producer_id(&self) -> u64 {
        self.next_producer_id.max(1)
    }

    /// Whether a principal has a right on the topic, or the group, of this name; with an empty name, on all of them.
    /// Administrators have every right.
    pub fn is_allowed(&self, principal: &str, operation: Operation, name: &str) -> bool {
        let is_given = |acl: &Acl| {
            let is_enough = acl.operation == operation || acl.operation == Operation::Administer;
            is_enough
                && (acl.principal == principal || acl.principal == Acl::EVERYBODY)
                && name.starts_with(&acl.prefix)
        };
        principal == Acl::ADMINISTRATOR || self.acls.iter().any(is_given)
    }

    /// Whether a broker is registered with this epoch now.
    pub fn is_current(&self, id: BrokerId, epoch: u64) -> bool {
        self.brokers.get(&id).is_some_and(|broker| broker.epoch == epoch)
    }

    /// Whether a broker is registered and not fenced.
    pub fn is_active(&self, id: BrokerId) -> bool {
        self.brokers.get(&id).is_some_and(Broker::is_active)
    }

    /// Whether a broker is registered and neither fenced nor draining.
    pub fn is_unfenced(&self, id: BrokerId) -> bool {
        self.brokers.get(&id).is_some_and(|broker| broker.state == BrokerState::Unfenced)
    }

    /// Whether a broker of this id was removed from the cluster.
    pub fn is_removed(&self, id: BrokerId) -> bool {
        self.removed_brokers.contains(&id)
    }

    /// The rights that were given, in the order of principal, operation and prefix.
    pub fn acls(&self) -> impl ExactSizeIterator<Item = &Acl> {
        self.acls.iter()
    }

    /// Tokens that were issued and not yet forgotten, by the hash of their secret.
    pub fn tokens(&self) -> impl ExactSizeIterator<Item = (&[u8; 32], &Token)> {
        self.tokens.iter()
    }

    /// The cluster's authority, sealed.
    pub fn authority(&self) -> Option<&Arc<[u8]>> {
        self.authority.as_ref()
    }

    /// Whether the certificate of this serial number was revoked.
    pub fn is_revoked(&self, serial: &[u8]) -> bool {
        self.revoked.contains(serial)
    }

    /// The serial numbers of revoked certificates.
    pub fn revoked(&self) -> impl ExactSizeIterator<Item = &Arc<[u8]>> {
        self.revoked.iter()
    }

    /// What this image becomes by these records, which were decided on it.
    pub(super) fn after(&self, records: &[Record]) -> Image {
        let mut after = self.clone();
        for record in records {
            after.apply(record).expect("a record decided on an image fits that image");
        }
        after
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
