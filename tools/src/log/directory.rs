//! Which logs lie in a directory.
//!
//! ```text
//! DATA/metadata/                     the metadata log of a broker that stands alone
//! DATA/metadata/journal/             the metadata log of a cluster's broker
//! DATA/topics/<topic id>/<number>/   one log per partition
//! ```

use std::io;
use std::path::{Path, PathBuf};

use quire_protocol::{PartitionIndex, TopicId, TopicPartition};
use quire_storage::disk::Disk;

use super::unreadable;
use crate::failure::Failure;
use quire_broker::catalog::{self, Catalog};

const METADATA: &str = "metadata";
const JOURNAL: &str = "journal";
const TOPICS: &str = "topics";
const LOCK: &str = "lock";
/// Characters of a topic's id that tell two topics apart by eye.
const ID_SHOWN: usize = 4;

/// The logs of a directory.
#[derive(Debug)]
pub(super) struct Logs {
    pub(super) found: Vec<FoundLog>,
    /// Whether a running broker holds the data directory.
    pub(super) in_use: bool,
}

/// One log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FoundLog {
    /// What it is called: its path from the data directory, or as it was given.
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// Whose log it must be, by its place.
    pub(super) partition: Option<TopicPartition>,
    /// The name of its topic, where the metadata tells.
    pub(super) topic: Option<String>,
    /// Whether the metadata says that it must be there.
    pub(super) is_held: bool,
    /// Whether the metadata knows no topic that owns it.
    pub(super) is_orphan: bool,
}

impl FoundLog {
    fn new(name: String, path: PathBuf, partition: Option<TopicPartition>) -> FoundLog {
        FoundLog { name, path, partition, topic: None, is_held: false, is_orphan: false }
    }

    /// What to call it where people read it.
    pub(super) fn title(&self) -> String {
        match (&self.topic, self.partition) {
            (Some(topic), Some(TopicPartition { topic: id, partition })) => {
                let id: String = id.to_string().chars().take(ID_SHOWN).collect();
                format!("{topic}/{partition} ({id}…)")
            }
            _ => self.name.clone(),
        }
    }

    fn told_by(mut self, catalog: &Catalog) -> FoundLog {
        if let Some(id) = self.partition.filter(|id| *id != catalog::METADATA) {
            self.topic = catalog.topic(id.topic).map(str::to_owned);
            self.is_held = catalog.is_held(id);
            self.is_orphan = catalog.is_orphan(id);
        }
        self
    }
}

/// Finds every log of a data directory, or takes `dir` as one partition's.
pub(super) fn find(disk: &dyn Disk, dir: &Path) -> Result<Logs, Failure> {
    let entries = disk.list(dir).map_err(|error| unreadable(dir, &error))?;
    let has = |name: &str| entries.iter().any(|entry| entry == name);
    if !has(METADATA) && !has(TOPICS) {
        let partition = partition_of(dir);
        let found = FoundLog::new(dir.display().to_string(), dir.to_owned(), partition);
        return Ok(Logs { found: vec![found.told_by(&catalog_above(disk, dir)?)], in_use: false });
    }
    let mut found = Vec::new();
    let mut catalog = Catalog::default();
    if has(METADATA) {
        let metadata = dir.join(METADATA);
        let names = disk.list(&metadata).map_err(|error| unreadable(&metadata, &error))?;
        let (name, path) = match names.iter().any(|name| name == JOURNAL) {
            true => (format!("{METADATA}/{JOURNAL}"), metadata.join(JOURNAL)),
            false => (METADATA.to_owned(), metadata.clone()),
        };
        found.push(FoundLog::new(name, path, Some(catalog::METADATA)));
        catalog = Catalog::read(disk, &metadata)?;
    }
    let topics = dir.join(TOPICS);
    if has(TOPICS) {
        found.extend(of_topics(disk, &topics)?);
    }
    let is_found = |id: &TopicPartition| found.iter().any(|log| log.partition == Some(*id));
    let absent: Vec<_> = catalog.held().filter(|id| !is_found(id)).collect();
    found.extend(absent.into_iter().map(|id| of_partition(&topics, id)));
    let found = found.into_iter().map(|log| log.told_by(&catalog)).collect();
    Ok(Logs { found, in_use: has(LOCK) && is_held(disk, &dir.join(LOCK)) })
}

/// What the data directory around a partition's directory knows, if it lies in one.
fn catalog_above(disk: &dyn Disk, dir: &Path) -> Result<Catalog, Failure> {
    let absolute = std::path::absolute(dir).map_err(|error| unreadable(dir, &error))?;
    let data = absolute.ancestors().nth(3);
    match data.filter(|data| disk.list(data).is_ok_and(|names| names.iter().any(|name| name == METADATA))) {
        Some(data) => Ok(Catalog::read(disk, &data.join(METADATA))?),
        None => Ok(Catalog::default()),
    }
}

fn of_topics(disk: &dyn Disk, topics: &Path) -> Result<Vec<FoundLog>, Failure> {
    let mut found = Vec::new();
    for topic in disk.list(topics).map_err(|error| unreadable(topics, &error))? {
        let Ok(id) = topic.parse::<TopicId>() else { continue };
        let dir = topics.join(&topic);
        let names = disk.list(&dir).map_err(|error| unreadable(&dir, &error))?;
        let mut numbers: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
        numbers.sort_unstable();
        found.extend(numbers.into_iter().map(|number| {
            of_partition(topics, TopicPartition { topic: id, partition: PartitionIndex(number) })
        }));
    }
    Ok(found)
}

fn of_partition(topics: &Path, id: TopicPartition) -> FoundLog {
    let TopicPartition { topic, partition } = id;
    let path = topics.join(topic.to_string()).join(partition.to_string());
    FoundLog::new(format!("{TOPICS}/{topic}/{partition}"), path, Some(id))
}

/// Whose log a directory holds by its place, if that can be told.
fn partition_of(dir: &Path) -> Option<TopicPartition> {
    let dir = std::path::absolute(dir).ok()?;
    let number = dir.file_name()?.to_str()?.parse().ok()?;
    let topic = dir.parent()?.file_name()?.to_str()?.parse().ok()?;
    Some(TopicPartition { topic, partition: PartitionIndex(number) })
}

fn is_held(disk: &dyn Disk, lock: &Path) -> bool {
    matches!(disk.lock(lock), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_storage::disk::OsDisk;

    #[test]
    fn a_data_directory_is_its_metadata_and_its_partitions_in_order() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let topic = TopicId([0xab; 16]);
        for partition in ["metadata", "topics/not-a-topic/0"] {
            std::fs::create_dir_all(dir.path().join(partition)).expect("a new folder");
        }
        for number in ["0", "2", "10", "stray"] {
            let path = dir.path().join(TOPICS).join(topic.to_string()).join(number);
            std::fs::create_dir_all(path).expect("a new folder");
        }
        let logs = find(&OsDisk, dir.path()).expect("it can be listed");
        let names: Vec<_> = logs.found.iter().map(|log| log.name.replace(&topic.to_string(), "T")).collect();
        assert_eq!(names, ["metadata", "topics/T/0", "topics/T/2", "topics/T/10"]);
        let last = logs.found[3].partition.expect("its place says whose it is");
        assert_eq!((last.topic, last.partition), (topic, PartitionIndex(10)));
        assert!(!logs.in_use);

        std::fs::create_dir(dir.path().join("metadata/journal")).expect("a new folder");
        let of_a_cluster = &find(&OsDisk, dir.path()).expect("it can be listed").found[0];
        assert_eq!(of_a_cluster.name, "metadata/journal");
        assert_eq!(of_a_cluster.path, dir.path().join("metadata/journal"));

        let one = find(&OsDisk, &logs.found[2].path).expect("it can be listed").found;
        assert_eq!(one[0].partition, logs.found[2].partition);
        assert!(find(&OsDisk, Path::new("/nowhere/at/all")).is_err());
    }
}
