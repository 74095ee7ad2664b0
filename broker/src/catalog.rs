//! What a data directory's metadata log says of the logs beside it: whose they are, and which must be there. Offline: for
//! tools that look at the directory of a broker that is not running.

use std::path::Path;

use bytes::Bytes;
use quire_engine::controller::{Image, Record};
use quire_protocol::batch::{BatchHeader, Records};
use quire_protocol::{BrokerId, PartitionIndex, TopicId, TopicPartition};
use quire_storage::disk::Disk;
use quire_storage::inspect::{InspectError, each_batch};

/// The metadata log of a broker.
pub const METADATA: TopicPartition =
    TopicPartition { topic: TopicId::METADATA, partition: PartitionIndex(0) };

/// Topics, as far as the metadata log can be read.
#[derive(Debug, Default)]
pub struct Catalog {
    image: Image,
    /// Whether all of the metadata was read: only then does an absence mean anything.
    is_whole: bool,
}

impl Catalog {
    /// Reads the metadata log in `dir`.
    ///
    /// # Errors
    /// If the directory or a file in it can not be read. Damage is no error: what comes before it is known.
    pub fn read(disk: &dyn Disk, dir: &Path) -> Result<Catalog, InspectError> {
        let mut image = Image::default();
        let mut is_understood = true;
        let is_read = each_batch(disk, dir, METADATA, |batch| {
            is_understood = is_understood && apply(&mut image, &batch).is_some();
        })?;
        Ok(Catalog { image, is_whole: is_read && is_understood })
    }

    /// The name of the topic with this id; of one that is being deleted, the name it had.
    pub fn topic(&self, id: TopicId) -> Option<&str> {
        let deleted = || self.image.deleted_topic(id).map(|topic| &*topic.name);
        self.image.topic(id).map(|topic| &*topic.name).or_else(deleted)
    }

    /// Whether no topic owns a directory of this id.
    pub fn is_orphan(&self, id: TopicPartition) -> bool {
        let is_deleted = self.image.deleted_topic(id.topic).is_some();
        self.is_whole && !is_deleted && self.image.partition(id).is_none()
    }

    /// Whether the broker noted that it has the log of this partition on disk: then it must be there.
    pub fn is_held(&self, id: TopicPartition) -> bool {
        self.held().any(|held| held == id)
    }

    /// Every partition whose log must be there.
    pub fn held(&self) -> impl Iterator<Item = TopicPartition> + '_ {
        let broker = self.broker();
        self.image.topics().flat_map(move |topic| {
            let is_ours = move |index| broker.is_some_and(|broker| topic.is_held(index, broker));
            topic
                .partitions
                .iter()
                .filter(move |partition| {
                    is_ours(partition.index) && broker.is_some_and(|b| partition.replicas.contains(&b))
                })
                .map(|partition| TopicPartition { topic: topic.id, partition: partition.index })
        })
    }

    /// Whose data directory it is. Of several brokers the metadata does not tell which.
    fn broker(&self) -> Option<BrokerId> {
        let mut brokers = self.image.brokers();
        brokers.next().filter(|_| brokers.next().is_none()).map(|broker| broker.id)
    }
}

/// Applies the records of one batch; `None` if this version does not understand them.
fn apply(image: &mut Image, batch: &Bytes) -> Option<()> {
    let header = BatchHeader::parse(batch).ok()?;
    for record in Records::open(&header, batch).ok()? {
        let record = Record::decode(&record.ok()?.value.unwrap_or_default()).ok()?;
        image.apply(&record).ok()?;
    }
    Some(())
}
