//! What a coordinator knows of the topics that groups subscribe to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quire_protocol::{PartitionIndex, TopicId, TopicPartition};

use crate::controller::Image;

/// Partitions of any topics.
pub type Partitions = BTreeSet<TopicPartition>;

/// One topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Its id.
    pub id: TopicId,
    /// Its name.
    pub name: Arc<str>,
    /// How many partitions it has.
    pub partitions: u32,
    /// The racks of each partition's replicas, by the partition's number; empty if no broker has a rack.
    pub racks: Vec<BTreeSet<Arc<str>>>,
}

/// The topics of the cluster, as of some metadata image.
///
/// A topic that is missing here may be one that this broker has not heard of yet; one that is deleted is named as such.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topics {
    topics: BTreeMap<TopicId, Topic>,
    names: BTreeMap<Arc<str>, TopicId>,
    deleted: BTreeSet<TopicId>,
}

impl Topics {
    /// These topics, and the ids of topics that are known to be deleted.
    pub fn new(
        topics: impl IntoIterator<Item = Topic>,
        deleted: impl IntoIterator<Item = TopicId>,
    ) -> Topics {
        let topics: BTreeMap<_, _> = topics.into_iter().map(|topic| (topic.id, topic)).collect();
        let names = topics.values().map(|topic| (topic.name.clone(), topic.id)).collect();
        Topics { topics, names, deleted: deleted.into_iter().collect() }
    }

    /// Those of an image.
    pub fn from_image(image: &Image) -> Topics {
        let racks: BTreeMap<_, Arc<str>> = image
            .brokers()
            .filter(|broker| !broker.rack.is_empty())
            .map(|broker| (broker.id, broker.rack.as_str().into()))
            .collect();
        let topic = |topic: &Arc<crate::controller::image::Topic>| {
            let racks_of = |partition: &Arc<crate::controller::image::Partition>| {
                partition.replicas.iter().filter_map(|broker| racks.get(broker).cloned()).collect()
            };
            let is_known = !racks.is_empty();
            Topic {
                id: topic.id,
                name: topic.name.clone(),
                partitions: topic.partitions.len() as u32,
                racks: topic.partitions.iter().filter(|_| is_known).map(racks_of).collect(),
            }
        };
        Topics::new(image.topics().map(topic), image.deleted_topics().map(|topic| topic.id))
    }

    /// A topic by its id.
    pub fn topic(&self, id: TopicId) -> Option<&Topic> {
        self.topics.get(&id)
    }

    /// A topic by its name.
    pub fn named(&self, name: &str) -> Option<&Topic> {
        self.topics.get(self.names.get(name)?)
    }

    /// Whether there is such a partition.
    pub fn has(&self, partition: TopicPartition) -> bool {
        self.topic(partition.topic).is_some_and(|topic| partition.partition.0 < topic.partitions)
    }

    /// Whether a topic existed and does no more.
    pub fn is_deleted(&self, id: TopicId) -> bool {
        self.deleted.contains(&id)
    }

    /// The racks of a partition's replicas, as far as they are known.
    pub fn racks(&self, partition: TopicPartition) -> Option<&BTreeSet<Arc<str>>> {
        self.topic(partition.topic)?.racks.get(partition.partition.0 as usize)
    }
}

impl Topic {
    /// All its partitions.
    pub fn all(&self) -> impl Iterator<Item = TopicPartition> + use<> {
        let topic = self.id;
        (0..self.partitions).map(move |index| TopicPartition { topic, partition: PartitionIndex(index) })
    }
}
