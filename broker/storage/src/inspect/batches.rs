//! What is in the frames of a log, for who has to know it while no broker has the log open.

use std::io;
use std::path::Path;

use bytes::Bytes;
use quire_protocol::frame::{self, FrameHeader, FrameSeed};
use quire_protocol::ids::TopicPartition;

use super::{InspectError, io_error};
use crate::checkpoint::Checkpoint;
use crate::disk::{Disk, OpenMode};
use crate::frames::{Walk, WalkError};
use crate::manifest::{Manifest, SegmentFile};
use crate::recovery::FileBytes;

/// Bytes read at once.
const WINDOW_BYTES: u64 = 256 * 1024;

/// Gives every batch of the log in `dir` to `each`, in order, up to the first frame that is not intact or does not
/// follow. Whether all that is known to have been synced was given; not so if the log can not be used.
///
/// # Errors
/// If the disk refuses.
pub fn each_batch(
    disk: &dyn Disk,
    dir: &Path,
    partition: TopicPartition,
    mut each: impl FnMut(Bytes),
) -> Result<bool, InspectError> {
    each_frame(disk, dir, partition, |_, batch| each(batch))
}

/// As [`each_batch`], with the header of each batch's frame.
///
/// # Errors
/// If the disk refuses.
pub fn each_frame(
    disk: &dyn Disk,
    dir: &Path,
    partition: TopicPartition,
    mut each: impl FnMut(&FrameHeader, Bytes),
) -> Result<bool, InspectError> {
    let Some(manifest) = Manifest::load(disk, dir).ok().filter(|found| found.partition == partition) else {
        return Ok(false);
    };
    let clean = Checkpoint::peek_clean(disk, dir).map_err(io_error(dir))?;
    let point = clean.or_else(|| Checkpoint::load(disk, dir).ok());
    let synced_end = point.map_or(manifest.log_start, |point| point.next_offset);
    let mut expected = manifest.segments.first().map_or(manifest.log_start, |first| first.name.base_offset);
    for entry in &manifest.segments {
        let path = dir.join(entry.name.file(SegmentFile::Log));
        let file = match disk.open(&path, OpenMode::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            file => file.map_err(io_error(&path))?,
        };
        let len = file.len().map_err(io_error(&path))?;
        let bytes = FileBytes(file);
        let end = entry.sealed.map_or(len, |sealed| sealed.len.min(len));
        let mut walk = Walk::new(&bytes, 0..end, WINDOW_BYTES);
        loop {
            match walk.next_frame(FrameSeed::new(partition)) {
                Ok(Some((_, header, frame))) if header.follows(expected) => {
                    expected = header.next_offset();
                    each(&header, frame.slice(frame::HEADER_LEN..));
                }
                Ok(_) | Err(WalkError::Frame { .. }) => break,
                Err(WalkError::Read(error)) => return Err(io_error(&path)(error)),
            }
        }
        if entry.sealed.is_some_and(|sealed| sealed.end_offset != expected) {
            break;
        }
    }
    Ok(expected >= synced_end)
}
