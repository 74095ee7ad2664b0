//! Files derived from the frames: loaded if they are there and intact, rebuilt from the frames if not.

use std::io::{self, ErrorKind::NotFound, ErrorKind::UnexpectedEof};
use std::ops::Range;
use std::path::Path;

use quire_protocol::frame::{FrameHeader, FrameSeed};
use quire_protocol::ids::{Offset, Timestamp};

use super::{FileBytes, Opening, RecoveryReport, log_file};
use crate::checkpoint::Checkpoint;
use crate::disk::{Disk, OpenMode};
use crate::epochs::{self, EpochCache};
use crate::error::OpenError;
use crate::frames::{self, Walk, WalkError};
use crate::index::SegmentIndex;
use crate::manifest::{Manifest, Sealed, SegmentName};
use crate::segment::Segment;
use crate::shared::Shared;
use crate::small_file::LoadError;

/// Bytes read at once.
const WINDOW_BYTES: u64 = 256 * 1024;

/// Loads the index of a segment for readers, or rebuilds it.
pub(crate) fn load_index(shared: &Shared, segment: &Segment) -> io::Result<()> {
    let (disk, dir) = (&*shared.disk, shared.dir.as_path());
    match SegmentIndex::load(disk, dir, segment.name(), &segment.sealed()) {
        Ok(index) => segment.provide_index(index, true),
        Err(LoadError::Io(error)) => return Err(error),
        Err(error) => {
            tracing::warn!(segment = segment.file_name(), %error, "rebuilding an index");
            let mut index = SegmentIndex::new(segment.base_offset());
            let bytes = FileBytes(segment.open(disk, dir)?);
            let interval = segment.index_interval();
            // A file that was cut short is indexed as far as it goes; whoever reads on finds the damage.
            let end = segment.position().min(bytes.0.len()?);
            for_each_intact(&bytes, shared.seed, 0..end, |header, position| {
                index.note(header, position, interval);
            })?;
            segment.provide_index(index, false);
        }
    }
    Ok(())
}

/// Loads the index of the active segment so that it can be continued, and learns the segment's largest timestamp.
pub(crate) fn load_active_index(shared: &Shared, segment: &Segment) -> io::Result<()> {
    if segment.max_timestamp() != Segment::TIMESTAMP_UNKNOWN {
        return Ok(());
    }
    let covered = Covered {
        name: segment.name(),
        end: segment.end(),
        len: segment.position(),
        interval: segment.index_interval(),
    };
    let bytes = FileBytes(segment.open(&*shared.disk, &shared.dir)?);
    let (index, _) = load_or_rebuild(&*shared.disk, &shared.dir, shared.seed, &bytes, covered)?;
    segment.continue_index(index);
    Ok(())
}

/// How much of a segment an index covers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Covered {
    pub(super) name: SegmentName,
    pub(super) end: Offset,
    pub(super) len: u64,
    /// One entry for about so many bytes.
    pub(super) interval: u64,
}

/// The index of the front of a segment, ready to be continued; whether its files were good.
pub(super) fn load_or_rebuild(
    disk: &dyn Disk,
    dir: &Path,
    seed: FrameSeed,
    bytes: &FileBytes,
    covered: Covered,
) -> io::Result<(SegmentIndex, bool)> {
    let sealed = Sealed {
        end_offset: covered.end,
        len: covered.len,
        last_append_time: Timestamp(i64::MIN),
        max_timestamp: Timestamp(i64::MIN),
    };
    let (mut index, is_good) = match SegmentIndex::load(disk, dir, covered.name, &sealed) {
        Ok(index) => (index, true),
        Err(LoadError::Io(error)) => return Err(error),
        Err(_) => (SegmentIndex::new(covered.name.base_offset), covered.len == 0),
    };
    let from = index.resume();
    for_each_intact(bytes, seed, from..covered.len, |header, position| {
        index.note(header, position, covered.interval);
    })?;
    Ok((index, is_good))
}

/// Goes through every intact frame in a range. Whoever reads a damaged one learns of it.
fn for_each_intact(
    bytes: &FileBytes,
    seed: FrameSeed,
    range: Range<u64>,
    mut each: impl FnMut(&FrameHeader, u64),
) -> io::Result<()> {
    let mut walk = Walk::new(bytes, range.clone(), WINDOW_BYTES);
    loop {
        match walk.next_frame(seed) {
            Ok(Some((position, header, _))) => each(&header, position),
            Ok(None) => return Ok(()),
            Err(WalkError::Read(error)) => return Err(error),
            Err(WalkError::Frame { position, .. }) => {
                match frames::search(bytes, seed, position + 1..range.end)? {
                    Some((intact, _)) => walk.seek(intact),
                    None => return Ok(()),
                }
            }
        }
    }
}

/// The leadership starts up to the checkpoint.
pub(super) fn load_epochs(
    opening: &Opening<'_>,
    manifest: &Manifest,
    until: &Checkpoint,
    report: &mut RecoveryReport,
) -> Result<EpochCache, OpenError> {
    match EpochCache::load(&*opening.disk, &opening.dir) {
        Ok(mut cache) => {
            cache.recover(until.next_offset);
            Ok(cache)
        }
        Err(LoadError::Io(error)) => {
            Err(OpenError::io("reading", opening.dir.join(epochs::FILE_NAME))(error))
        }
        Err(_) => {
            report.rebuilt.push(epochs::FILE_NAME.to_owned());
            rebuild_epochs(opening, manifest, until)
        }
    }
}

/// The leadership starts up to the checkpoint, from the frames.
pub(super) fn rebuild_epochs(
    opening: &Opening<'_>,
    manifest: &Manifest,
    until: &Checkpoint,
) -> Result<EpochCache, OpenError> {
    let seed = FrameSeed::new(opening.partition);
    let mut cache = EpochCache::new();
    for entry in &manifest.segments {
        if entry.name.base_offset >= until.next_offset {
            break;
        }
        let path = opening.dir.join(log_file(entry.name));
        let end = match entry.sealed {
            _ if entry.name.serial == until.segment_serial => until.position,
            Some(sealed) => sealed.len,
            None => break,
        };
        let noted = opening.disk.open(&path, OpenMode::Read).and_then(|file| {
            for_each_intact(&FileBytes(file), seed, 0..end, |header, _| {
                // One that does not fit is damage that its CRC does not show; the scan or a reader finds it.
                let _ = cache.assign(header.leader_epoch, header.base_offset);
            })
        });
        match noted {
            // A missing or short file is what recovery is about to report.
            Err(error) if [NotFound, UnexpectedEof].contains(&error.kind()) => {}
            noted => noted.map_err(OpenError::io("reading", path))?,
        }
    }
    Ok(cache)
}
