//! What a start trusts: opening a log, and finding its end after a stop that was not in order.
//!
//! A clean marker that fits the manifest says where the log ends; nothing is scanned. Otherwise every frame from the
//! last checkpoint on is checked (`scan.rs`). A bad frame is *corruption* if a later intact frame was appended when the
//! bad one was already committed; then nothing is changed, so that the next open finds the same. Otherwise it is a
//! *torn tail*: the log is cut there, by a change of the manifest and not of the file.
//!
//! What is kept above the checkpoint is written again and synced before anything trusts it: the last process may have
//! died before a sync, or after one that failed. Every step can be interrupted and repeated.

mod clean;
mod derived;
pub(crate) mod scan;
mod unclean;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use quire_protocol::frame::{self, Chain, FrameHeader, FrameSeed};
use quire_protocol::ids::{LeaderEpoch, Offset, Timestamp, TopicPartition};

use crate::checkpoint::{self, Checkpoint};
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::epochs::EpochCache;
use crate::error::OpenError;
use crate::frames::FrameBytes;
use crate::index::SegmentIndex;
use crate::log::{Active, LogOptions};
use crate::manifest::{self, Manifest, SegmentName};
use crate::producers::{self, ProducerSnapshot};
use crate::segment::{Extent, Segment};
use crate::shared::{Bounds, Shared};
use crate::small_file::LoadError;
use crate::suspicion::{self, Suspicion};
use crate::unwritten;

/// Directories above a log's that may be new with it: topic, all topics, data.
const NEW_PARENTS_MAX: usize = 3;

pub(crate) use derived::{load_active_index, load_index};
pub(crate) use unclean::{remove_indexes, remove_segment};

/// What opening a log found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RecoveryReport {
    /// Whether the log was closed in order, or is new: nothing was scanned.
    pub was_clean: bool,
    /// Whether the replica must not lead before it caught up with a leader: anything is held against it, or corrupt.
    pub is_suspect: bool,
    /// What is held against it, now or since an earlier open.
    pub suspicion: Suspicion,
    /// Frames checked.
    pub frames_scanned: u64,
    /// Bytes of frames checked.
    pub bytes_scanned: u64,
    /// What was cut off the end.
    pub torn_tail: Option<TornTail>,
    /// Damage to records that were committed.
    pub corruption: Option<Corruption>,
    /// Names of the derived files that were missing or damaged.
    pub rebuilt: Vec<String>,
    /// Names of the files removed because the manifest does not list them.
    pub removed: Vec<String>,
}

/// An end of a log that is not intact and that nothing proves to have been on disk: an interrupted write leaves it, and so
/// does damage to the last frames after they were synced and acknowledged. The frames themselves do not tell which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// The log was cut here: the first offset that is no longer in it.
    pub offset: Offset,
    /// File name of the segment.
    pub segment: String,
    /// Where the cut is in it (bytes).
    pub position: u64,
    /// Bytes behind the cut up to the last that was written.
    pub bytes: u64,
    /// What is wrong with the first frame that was cut off.
    pub why: String,
    /// The offset up to which all is known to have been synced; what lies above may have been acknowledged.
    pub synced_end: Offset,
    /// What is there that an interrupted write would seldom leave.
    pub suspicion: Option<&'static str>,
}

/// Damage to records that were on disk and committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corruption {
    /// The first offset that is damaged.
    pub offset: Offset,
    /// The first intact offset behind the damage; the end of all that was on disk if there is none.
    pub intact_from: Offset,
    /// File name of the segment that the damage begins in.
    pub segment: String,
    /// Where it begins (bytes).
    pub position: u64,
    /// What is wrong with the first bad frame.
    pub why: String,
}

/// What a log is opened from.
pub(crate) struct Recovered {
    pub(crate) shared: Arc<Shared>,
    pub(crate) manifest: Manifest,
    pub(crate) active: Option<Active>,
    pub(crate) tail: Checkpoint,
    pub(crate) epochs: EpochCache,
    /// What the checkpoint on disk covers.
    pub(crate) checkpoint: Offset,
    /// The clean marker is still there.
    pub(crate) is_marked_clean: bool,
    /// The manifest on disk does not say yet where the log was cut: there was no room. Until it does, every recovery
    /// cuts the log again.
    pub(crate) is_cut_unstored: bool,
    /// There was never a segment: a marker is all that is on disk.
    pub(crate) is_new: bool,
    pub(crate) report: RecoveryReport,
}

/// What is opened where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absent {
    /// A new log.
    Created,
    /// Nothing: a log is known to have been there.
    Refused,
}

/// What every step of an open needs.
struct Opening<'a> {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    partition: TopicPartition,
    options: &'a LogOptions,
    /// Names of all files in the directory.
    names: Vec<String>,
}

pub(crate) fn recover(
    disk: Arc<dyn Disk>,
    dir: &Path,
    partition: TopicPartition,
    options: &LogOptions,
    absent: Absent,
) -> Result<Recovered, OpenError> {
    let names = match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        listed => listed.map_err(OpenError::io("listing", dir))?,
    };
    let opening = Opening { disk, dir: dir.to_owned(), partition, options, names };
    let mut recovered = opening.recover(absent)?;
    opening.note_first_append_times(&recovered);
    let report = &mut recovered.report;
    report.suspicion.is_damaged |= report.corruption.is_some();
    report.is_suspect = report.suspicion.is_any();
    Ok(recovered)
}

impl Opening<'_> {
    fn recover(&self, absent: Absent) -> Result<Recovered, OpenError> {
        let (disk, dir) = (&*self.disk, self.dir.as_path());
        let Some(manifest) = self.load_manifest()? else {
            return match absent {
                Absent::Created => self.create(),
                Absent::Refused => Err(OpenError::Missing { directory: dir.to_owned() }),
            };
        };
        if self.is_never_written(&manifest) {
            // Whoever created it may have been stopped before its name was durable, unless it is known to be.
            if absent == Absent::Created {
                sync_directories(disk, dir)?;
            }
            return self.new_log(manifest, self.remove_garbage(unwritten::is_garbage));
        }
        self.end_unwritten()?;
        let clean = Checkpoint::peek_clean(disk, dir)
            .map_err(OpenError::io("reading", dir.join(checkpoint::CLEAN_FILE_NAME)))?;
        match clean.filter(|clean| self.is_marker_of(&manifest, clean)) {
            Some(clean) => clean::open(self, manifest, clean),
            None => unclean::open(self, manifest),
        }
    }

    /// What was held against the replica before.
    fn noted_suspicion(&self) -> Result<Suspicion, OpenError> {
        if !self.has(suspicion::FILE_NAME) {
            return Ok(Suspicion::default());
        }
        Suspicion::load(&*self.disk, &self.dir)
            .map_err(OpenError::io("reading", self.dir.join(suspicion::FILE_NAME)))
    }

    /// What is known of the producers is never newer than the log.
    fn end_producers_at(&self, end: Offset) -> Result<(), OpenError> {
        if !self.has(producers::FILE_NAME) {
            return Ok(());
        }
        ProducerSnapshot::remove_beyond(&*self.disk, &self.dir, end)
            .map_err(OpenError::io("removing", self.dir.join(producers::FILE_NAME)))
    }

    fn load_manifest(&self) -> Result<Option<Manifest>, OpenError> {
        let path = || self.dir.join(manifest::FILE_NAME);
        let damaged = |what: String| OpenError::ManifestDamaged { manifest: path(), what };
        let loaded = match self.has(manifest::FILE_NAME) {
            true => Manifest::load(&*self.disk, &self.dir),
            false => unwritten::manifest(&*self.disk, &self.dir, &self.names)
                .map_err(LoadError::Io)
                .and_then(|manifest| manifest.ok_or(LoadError::Missing)),
        };
        match loaded {
            Ok(manifest) if manifest.partition == self.partition => Ok(Some(manifest)),
            Ok(manifest) => Err(OpenError::WrongPartition {
                directory: self.dir.clone(),
                expected: self.partition.to_string(),
                found: manifest.partition.to_string(),
            }),
            Err(LoadError::Missing) => match self.names.iter().find(|name| unwritten::needs_manifest(name)) {
                Some(name) => Err(OpenError::ManifestMissing { manifest: path(), segment: name.clone() }),
                None => Ok(None),
            },
            Err(LoadError::Io(source)) => Err(OpenError::io("reading", path())(source)),
            Err(error @ (LoadError::Damaged(_) | LoadError::Version { .. })) => {
                Err(damaged(error.to_string()))
            }
        }
    }

    /// The directory and the marker of a log that was never written, durably: from now on their absence means that they
    /// were lost.
    fn create(&self) -> Result<Recovered, OpenError> {
        let marker = || self.dir.join(unwritten::file_name(self.partition));
        self.disk.create_dir_all(&self.dir).map_err(OpenError::io("creating", &self.dir))?;
        unwritten::create(&*self.disk, &self.dir, self.partition)
            .map_err(OpenError::io("creating", marker()))?;
        sync_directories(&*self.disk, &self.dir)?;
        self.new_log(Manifest::new(self.partition, Offset::ZERO), Vec::new())
    }

    /// Whether the marker is all that counts, or a manifest without segments is all there is, as earlier versions left it.
    fn is_never_written(&self, manifest: &Manifest) -> bool {
        let is_empty = *manifest == Manifest::new(self.partition, Offset::ZERO);
        is_empty && (!self.has(manifest::FILE_NAME) || self.names == [manifest::FILE_NAME])
    }

    /// Ends what an interrupted first segment began: the manifest is durable, and then the marker goes.
    fn end_unwritten(&self) -> Result<(), OpenError> {
        let marker = unwritten::file_name(self.partition);
        if !self.has(&marker) {
            return Ok(());
        }
        sync_directories(&*self.disk, &self.dir)?;
        unwritten::remove(&*self.disk, &self.dir, self.partition)
            .map_err(OpenError::io("removing", self.dir.join(marker)))
    }

    /// Removes files that are garbage; returns their names.
    fn remove_garbage(&self, is_garbage: impl Fn(&str) -> bool) -> Vec<String> {
        let garbage = self.names.iter().filter(|name| is_garbage(name));
        garbage.filter(|name| unclean::remove_garbage(&*self.disk, &self.dir, name)).cloned().collect()
    }

    fn new_log(&self, manifest: Manifest, removed: Vec<String>) -> Result<Recovered, OpenError> {
        let suspicion = self.noted_suspicion()?;
        let tail = Checkpoint {
            segment_serial: 0,
            position: 0,
            next_offset: Offset::ZERO,
            chain: Chain::START,
            last_append_time: Timestamp(i64::MIN),
            leader_epoch: LeaderEpoch(0),
            high_watermark: Offset::ZERO,
            is_synced: self.options.is_synced,
            is_behind: false,
        };
        Ok(Recovered {
            shared: self.share(Vec::new(), Offset::ZERO, &tail),
            manifest,
            active: None,
            tail,
            epochs: EpochCache::new(),
            checkpoint: Offset::ZERO,
            is_marked_clean: false,
            is_cut_unstored: false,
            is_new: true,
            report: RecoveryReport { was_clean: true, removed, suspicion, ..RecoveryReport::default() },
        })
    }

    /// Whether the clean marker was written for the log that the manifest lists.
    fn is_marker_of(&self, manifest: &Manifest, clean: &Checkpoint) -> bool {
        let ends_there = match manifest.segments.last() {
            None => clean.next_offset == manifest.log_start,
            Some(last) => match last.sealed {
                Some(sealed) => clean.next_offset == sealed.end_offset,
                None => {
                    clean.segment_serial == last.name.serial || clean.next_offset == last.name.base_offset
                }
            },
        };
        ends_there && manifest.segments.iter().all(|segment| self.has(&log_file(segment.name)))
    }

    /// Retention seals the active segment by its first frame's, and a log is compacted by that of the first dirty one.
    fn note_first_append_times(&self, recovered: &Recovered) {
        let compacted = recovered.manifest.segments.iter().take_while(|entry| entry.is_compacted).count();
        let segments = recovered.shared.segments();
        let dirty = segments.iter().skip(compacted).find(|segment| !segment.is_empty());
        let active = recovered.active.as_ref().map(|active| &active.segment);
        for segment in dirty.into_iter().chain(active.filter(|active| !active.is_empty())) {
            if let Some(time) = self.first_append_time(segment) {
                segment.set_first_append_time(time);
            }
        }
    }

    /// A damaged first frame is found by whoever reads it.
    fn first_append_time(&self, segment: &Segment) -> Option<Timestamp> {
        let path = self.dir.join(log_file(segment.name()));
        let file = self.disk.open(&path, OpenMode::Read).ok()?;
        let mut header = [0; frame::HEADER_LEN];
        file.read_exact_at(0, &mut header).ok()?;
        FrameHeader::parse(&header).ok().map(|header| header.append_time)
    }

    fn has(&self, name: &str) -> bool {
        self.names.binary_search_by(|other| other.as_str().cmp(name)).is_ok()
    }

    fn segment(&self, name: SegmentName, extent: Extent, index: Option<SegmentIndex>) -> Segment {
        let LogOptions { segment_bytes, index_interval_bytes, .. } = *self.options;
        Segment::found(name, segment_bytes.max(extent.position), index_interval_bytes, extent, index)
    }

    fn share(&self, segments: Vec<Arc<Segment>>, log_start: Offset, tail: &Checkpoint) -> Arc<Shared> {
        let end = tail.next_offset;
        let high_watermark = tail.high_watermark.clamp(log_start.min(end), end);
        let bounds = Bounds { log_start, high_watermark, end };
        let (disk, dir) = (Arc::clone(&self.disk), self.dir.clone());
        Arc::new(Shared::new(disk, dir, FrameSeed::new(self.partition), segments, bounds))
    }
}

/// A segment's file, read into the heap.
#[derive(Debug, Clone)]
pub(crate) struct FileBytes(pub(crate) Arc<dyn DiskFile>);

impl FrameBytes for FileBytes {
    type Error = io::Error;

    fn bytes(&self, range: Range<u64>) -> io::Result<Bytes> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.0.read_exact_at(range.start, &mut bytes)?;
        Ok(bytes.into())
    }
}

/// Makes the log's directory durable, and its name in those above that may have been created with it.
fn sync_directories(disk: &dyn Disk, dir: &Path) -> Result<(), OpenError> {
    disk.sync_dir(dir).map_err(OpenError::io("syncing", dir))?;
    let parents = dir.ancestors().skip(1).take(NEW_PARENTS_MAX);
    for parent in parents.filter(|parent| !parent.as_os_str().is_empty()) {
        match disk.sync_dir(parent) {
            // What this user may not read it did not create either.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            synced => synced.map_err(OpenError::io("syncing", parent))?,
        }
    }
    Ok(())
}

fn log_file(name: SegmentName) -> String {
    name.file(manifest::SegmentFile::Log)
}
