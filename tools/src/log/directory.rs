//! Which logs lie in a directory.
//!
//! ```text
//! DATA/metadata/                     the broker's metadata log
//! DATA/topics/<topic id>/<number>/   one log per partition
//! ```

use std::io;
use std::path::{Path, PathBuf};

use quire_protocol::{PartitionIndex, TopicId, TopicPartition};
use quire_storage::disk::Disk;

use super::unreadable;
use crate::failure::Failure;

const METADATA: &str = "metadata";
const TOPICS: &str = "topics";
const LOCK: &str = "lock";

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
}

/// Finds every log of a data directory, or takes `dir` as one partition's.
pub(super) fn find(disk: &dyn Disk, dir: &Path) -> Result<Logs, Failure> {
    let entries = disk.list(dir).map_err(|error| unreadable(dir, &error))?;
    let has = |name: &str| entries.iter().any(|entry| entry == name);
    if !has(METADATA) && !has(TOPICS) {
        let partition = partition_of(dir);
        let found = FoundLog { name: dir.display().to_string(), path: dir.to_owned(), partition };
        return Ok(Logs { found: vec![found], in_use: false });
    }
    let mut found = Vec::new();
    if has(METADATA) {
        let partition = TopicPartition { topic: TopicId::METADATA, partition: PartitionIndex(0) };
        found.push(FoundLog { name: METADATA.into(), path: dir.join(METADATA), partition: Some(partition) });
    }
    if has(TOPICS) {
        found.extend(of_topics(disk, &dir.join(TOPICS))?);
    }
    Ok(Logs { found, in_use: has(LOCK) && is_held(disk, &dir.join(LOCK)) })
}

fn of_topics(disk: &dyn Disk, topics: &Path) -> Result<Vec<FoundLog>, Failure> {
    let mut found = Vec::new();
    for topic in disk.list(topics).map_err(|error| unreadable(topics, &error))? {
        let Ok(id) = topic.parse::<TopicId>() else { continue };
        let dir = topics.join(&topic);
        let names = disk.list(&dir).map_err(|error| unreadable(&dir, &error))?;
        let mut numbers: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
        numbers.sort_unstable();
        found.extend(numbers.into_iter().map(|number| FoundLog {
            name: format!("{TOPICS}/{topic}/{number}"),
            path: dir.join(number.to_string()),
            partition: Some(TopicPartition { topic: id, partition: PartitionIndex(number) }),
        }));
    }
    Ok(found)
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

        let one = find(&OsDisk, &logs.found[2].path).expect("it can be listed").found;
        assert_eq!(one[0].partition, logs.found[2].partition);
        assert!(find(&OsDisk, Path::new("/nowhere/at/all")).is_err());
    }
}
