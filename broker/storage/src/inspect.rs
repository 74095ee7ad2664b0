//! Looking at a log that no broker has open: read-only, and without recovery.
//!
//! [`inspect`] reads the small files; [`verify`] reads every frame; [`each_batch`] and
//! [`each_frame`] give out what is in them.

mod batches;
mod verify;

use std::io;
use std::path::{Path, PathBuf};

use quire_protocol::frame::Chain;
use quire_protocol::ids::{LeaderEpoch, Offset, Timestamp, TopicPartition};

use crate::checkpoint::{self, Checkpoint};
use crate::disk::{Disk, OpenMode};
use crate::epochs::{self, EpochCache, EpochStart};
use crate::index::SegmentIndex;
use crate::manifest::{self, Manifest, Sealed, SegmentEntry, SegmentFile, SegmentName};
use crate::small_file::LoadError;
use crate::unwritten;

pub use batches::{each_batch, each_frame};
pub use verify::{Finding, FindingKind, SegmentCheck, VerifyReport, verify};

/// A log could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// There is no log in this directory.
    #[error("{} holds no log: it has no manifest and no segments", .0.display())]
    NoLog(PathBuf),
    /// The operating system refused.
    #[error("reading {}: {source}", .path.display())]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// What it answered.
        source: io::Error,
    },
}

/// Whether a small file can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileState {
    /// It is there and intact.
    Intact,
    /// It is not there.
    Missing,
    /// It is there, and can not be used.
    Damaged(String),
}

impl FileState {
    /// Whether it can be used.
    pub fn is_intact(&self) -> bool {
        *self == FileState::Intact
    }
}

/// What the small files of a log say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogReport {
    /// Where it lies.
    pub directory: PathBuf,
    /// The file that lists the segments. If it is not intact, no segment is listed here.
    pub manifest: FileState,
    /// The log was created and never had a segment: it has no manifest yet, and needs none.
    pub is_unwritten: bool,
    /// Whose log it is.
    pub partition: Option<TopicPartition>,
    /// The first offset that may be read.
    pub log_start: Offset,
    /// Where the log was closed in order; `None` if it was not, or was opened again since.
    pub closed_at: Option<Point>,
    /// The file that holds the recovery point.
    pub checkpoint: FileState,
    /// The recovery point: everything below was synced.
    pub recovery_point: Option<Point>,
    /// The file of leader epochs.
    pub epochs_file: FileState,
    /// Where each leadership began, oldest first.
    pub epochs: Vec<EpochStart>,
    /// In offset order; all but the last are sealed.
    pub segments: Vec<SegmentReport>,
    /// Files of segments that the manifest does not list: the next recovery removes them.
    pub unlisted: Vec<String>,
}

/// A point of a log up to which everything was synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// The offset after the last record before the point.
    pub next_offset: Offset,
    /// The serial of the segment that it lies in.
    pub segment_serial: u32,
    /// Where it lies in that segment (bytes).
    pub position: u64,
    /// The chain up to the point.
    pub chain: Chain,
    /// The high watermark when the point was noted.
    pub high_watermark: Offset,
    /// The latest leadership then.
    pub leader_epoch: LeaderEpoch,
}

/// One segment, as the manifest and its files say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentReport {
    /// Name of the file with its frames.
    pub file_name: String,
    /// The offset of its first record.
    pub base_offset: Offset,
    /// The offset after its last record; `None` if only the frames tell.
    pub end_offset: Option<Offset>,
    /// Bytes of frames; `None` if only the frames tell.
    pub log_bytes: Option<u64>,
    /// Length of the file, space allocated ahead included (bytes); `None` if it is missing.
    pub file_bytes: Option<u64>,
    /// Whether it is written no more.
    pub is_sealed: bool,
    /// The append time of its last frame, once it is sealed.
    pub last_append_time: Option<Timestamp>,
    /// The largest record timestamp, once it is sealed.
    pub max_timestamp: Option<Timestamp>,
    /// Its index files. Missing or damaged ones are rebuilt when they are needed.
    pub indexes: FileState,
}

/// Reads what the small files in `dir` say of its log.
///
/// # Errors
/// If there is no log, or the disk refuses. Damage is part of the report.
pub fn inspect(disk: &dyn Disk, dir: &Path) -> Result<LogReport, InspectError> {
    let names = disk.list(dir).map_err(io_error(dir))?;
    let (mut loaded, state) = told(dir, manifest::FILE_NAME, Manifest::load(disk, dir))?;
    let mut is_unwritten = false;
    if state == FileState::Missing {
        loaded = unwritten::manifest(disk, dir, &names).map_err(io_error(dir))?;
        is_unwritten = loaded.is_some();
        if !is_unwritten && !names.iter().any(|name| SegmentName::parse(name).is_some()) {
            return Err(InspectError::NoLog(dir.to_owned()));
        }
    }
    let clean =
        Checkpoint::peek_clean(disk, dir).map_err(io_error(&dir.join(checkpoint::CLEAN_FILE_NAME)))?;
    let (point, checkpoint) = told(dir, checkpoint::FILE_NAME, Checkpoint::load(disk, dir))?;
    let (cache, epochs_file) = told(dir, epochs::FILE_NAME, EpochCache::load(disk, dir))?;
    let listed = loaded.as_ref().map_or([].as_slice(), |manifest| &manifest.segments);
    let segments = listed
        .iter()
        .map(|entry| segment_report(disk, dir, entry, clean.or(point)))
        .collect::<Result<_, _>>()?;
    let is_unlisted = |name: &String| {
        SegmentName::parse(name).is_some_and(|(name, _)| !listed.iter().any(|entry| entry.name == name))
    };
    Ok(LogReport {
        directory: dir.to_owned(),
        manifest: state,
        is_unwritten,
        partition: loaded.as_ref().map(|manifest| manifest.partition),
        log_start: loaded.as_ref().map_or(Offset::ZERO, |manifest| manifest.log_start),
        closed_at: clean.as_ref().map(Point::of),
        checkpoint,
        recovery_point: point.as_ref().map(Point::of),
        epochs_file,
        epochs: cache.map_or(Vec::new(), |cache| cache.entries().to_vec()),
        segments,
        unlisted: names.iter().filter(|name| is_unlisted(name)).cloned().collect(),
    })
}

impl Point {
    fn of(checkpoint: &Checkpoint) -> Point {
        Point {
            next_offset: checkpoint.next_offset,
            segment_serial: checkpoint.segment_serial,
            position: checkpoint.position,
            chain: checkpoint.chain,
            high_watermark: checkpoint.high_watermark,
            leader_epoch: checkpoint.leader_epoch,
        }
    }
}

fn segment_report(
    disk: &dyn Disk,
    dir: &Path,
    entry: &SegmentEntry,
    point: Option<Checkpoint>,
) -> Result<SegmentReport, InspectError> {
    let file_name = entry.name.file(SegmentFile::Log);
    let path = dir.join(&file_name);
    let file_bytes = match disk.open(&path, OpenMode::Read).and_then(|file| file.len()) {
        Ok(len) => Some(len),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(io_error(&path)(error)),
    };
    // The indexes of a segment that is still written reach as far as the last point noted in it.
    let point = point.filter(|point| point.segment_serial == entry.name.serial);
    let covered = entry.sealed.or(point.map(|point| Sealed {
        end_offset: point.next_offset,
        len: point.position,
        last_append_time: point.last_append_time,
        max_timestamp: Timestamp(i64::MAX),
    }));
    let indexes = match covered {
        Some(covered) => {
            let loaded = SegmentIndex::load(disk, dir, entry.name, &covered);
            told(dir, &entry.name.file(SegmentFile::OffsetIndex), loaded)?.1
        }
        None => FileState::Missing,
    };
    Ok(SegmentReport {
        file_name,
        base_offset: entry.name.base_offset,
        end_offset: entry.sealed.map(|sealed| sealed.end_offset),
        log_bytes: entry.sealed.map(|sealed| sealed.len),
        file_bytes,
        is_sealed: entry.sealed.is_some(),
        last_append_time: entry.sealed.map(|sealed| sealed.last_append_time),
        max_timestamp: entry.sealed.map(|sealed| sealed.max_timestamp),
        indexes,
    })
}

/// What there is to tell of a file that was loaded or not.
fn told<T>(
    dir: &Path,
    name: &str,
    loaded: Result<T, LoadError>,
) -> Result<(Option<T>, FileState), InspectError> {
    match loaded {
        Ok(value) => Ok((Some(value), FileState::Intact)),
        Err(LoadError::Missing) => Ok((None, FileState::Missing)),
        Err(LoadError::Io(error)) => Err(io_error(&dir.join(name))(error)),
        Err(error) => Ok((None, FileState::Damaged(error.to_string()))),
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> InspectError + use<> {
    let path = path.to_owned();
    move |source| InspectError::Io { path, source }
}
