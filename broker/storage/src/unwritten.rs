//! The marker of a log that was created and never had a segment: a file without a byte, so that an idle partition takes
//! no block beside its directory's.
//!
//! Whose log it is stands in its name, `unwritten-<topic id>-<partition>`. It is there, durably, from the log's creation
//! until the first segment is: then the manifest comes first and the marker goes, both durably, before anything is
//! appended. So a directory with neither has lost its log, one with both has a manifest that counts, and a marker beside
//! records is no reason to believe that there are none.

use std::io;
use std::path::Path;

use quire_protocol::frame;
use quire_protocol::ids::{Offset, PartitionIndex, TopicPartition};

use crate::checkpoint;
use crate::disk::{Disk, OpenMode};
use crate::epochs;
use crate::manifest::{Manifest, SegmentFile, SegmentName};
use crate::small_file;

const PREFIX: &str = "unwritten-";
/// What the first segment of every log is called.
const FIRST_SEGMENT: SegmentName = SegmentName { base_offset: Offset::ZERO, serial: 0 };

/// Name of the marker in the partition's directory.
pub fn file_name(partition: TopicPartition) -> String {
    format!("{PREFIX}{partition}")
}

/// Whose log a marker of this name speaks of, if it is one.
pub fn parse(file_name: &str) -> Option<TopicPartition> {
    let (topic, partition) = file_name.strip_prefix(PREFIX)?.split_once('-')?;
    let partition = PartitionIndex(partition.parse().ok()?);
    let partition = TopicPartition { topic: topic.parse().ok()?, partition };
    // Only the one way to write it: no signs, no capitals.
    (self::file_name(partition) == file_name).then_some(partition)
}

/// Leaves the marker. Durable after `sync_dir` on `dir`.
///
/// # Errors
/// If the disk refuses.
pub fn create(disk: &dyn Disk, dir: &Path, partition: TopicPartition) -> io::Result<()> {
    match disk.open(&dir.join(file_name(partition)), OpenMode::CreateNew) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        created => created.map(drop),
    }
}

/// Takes the marker away, durably, once the manifest is durable. It may be gone already.
///
/// # Errors
/// As [`small_file::remove`].
pub fn remove(disk: &dyn Disk, dir: &Path, partition: TopicPartition) -> io::Result<()> {
    small_file::remove(disk, dir, &file_name(partition)).map(drop)
}

/// The manifest that the marker stands for, where there is no other; `names` are those of all files in `dir`. `None`
/// without a marker, and beside anything that only a log with a manifest leaves; a stray file says nothing.
///
/// # Errors
/// If a file can not be read.
pub fn manifest(disk: &dyn Disk, dir: &Path, names: &[String]) -> io::Result<Option<Manifest>> {
    let Some(partition) = names.iter().find_map(|name| parse(name)) else { return Ok(None) };
    let is_contradicted = names.iter().any(|name| needs_manifest(name) && !is_garbage(name));
    if is_contradicted || has_frames(disk, dir)? {
        return Ok(None);
    }
    Ok(Some(Manifest::new(partition, Offset::ZERO)))
}

/// Whether a file of this name exists only where a manifest does, or did.
pub fn needs_manifest(name: &str) -> bool {
    SegmentName::parse(name).is_some()
        || [checkpoint::FILE_NAME, checkpoint::CLEAN_FILE_NAME, epochs::FILE_NAME].contains(&name)
}

/// Whether a file beside the marker is what a first segment leaves that was interrupted while it was made.
pub fn is_garbage(name: &str) -> bool {
    small_file::is_temporary(name) || SegmentName::parse(name).is_some_and(|(name, _)| name == FIRST_SEGMENT)
}

/// Nothing but zeros is written to the first segment while the marker is there.
fn has_frames(disk: &dyn Disk, dir: &Path) -> io::Result<bool> {
    let file = match disk.open(&dir.join(FIRST_SEGMENT.file(SegmentFile::Log)), OpenMode::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened?,
    };
    let mut start = [0; frame::HEADER_LEN];
    let len = file.len()?.min(start.len() as u64) as usize;
    file.read_exact_at(0, &mut start[..len])?;
    Ok(start.iter().any(|byte| *byte != 0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use quire_protocol::ids::TopicId;

    use super::*;

    proptest! {
        #[test]
        fn a_name_says_whose_log_it_is(topic in any::<[u8; 16]>(), partition in any::<u32>()) {
            let partition = TopicPartition { topic: TopicId(topic), partition: PartitionIndex(partition) };
            prop_assert_eq!(parse(&file_name(partition)), Some(partition));
        }

        #[test]
        fn any_name_is_a_markers_or_not(name in "(unwritten-)?[0-9a-fA-F]{31,33}-?[-+0-9]{0,11}") {
            if let Some(partition) = parse(&name) {
                prop_assert_eq!(file_name(partition), name);
            }
        }
    }
}
