//! Cutting a log: truncating its end, or dropping all of it to begin anew elsewhere.
//!
//! Both are one change of the manifest. What must never be beyond the log's end, the checkpoint, the leader epochs and what
//! is known of the producers, is lowered before; it fits the log as it was, so that a crash in between only leaves it
//! uncut. The checkpoint goes first: from there on recovery reads what the others no longer tell. The files that go are
//! removed last; what was held against the replica gives way after them to the note that it has to catch up.
//!
//! A log is not truncated before the end of what was compacted: records that stay may be all that tells of a key whose
//! later record goes, but those that compaction took for it would be missing. Nor so that nothing is left behind the log
//! start. Such a log stays as it is, and begins anew.
//!
//! A log that begins anew deletes what it had, damaged or not. Nobody waits for it any more: the replica left the in-sync
//! and the eligible ones before, and its leader has the records. A copy kept aside would take the room that fetching them
//! again needs, and would never be served from; who wants to look at it copies the directory of the stopped broker.

use std::io;
use std::sync::Arc;

use quire_protocol::frame::Chain;
use quire_protocol::ids::{LeaderEpoch, Offset, Timestamp};

use super::{Failure, FailureKind, Place, UpkeepDone};
use crate::checkpoint::{self, Checkpoint};
use crate::disk::{DiskFile, OpenMode};
use crate::epochs::EpochCache;
use crate::frames::{Walk, WalkError};
use crate::index::SegmentIndex;
use crate::manifest::{Manifest, Sealed, SegmentEntry};
use crate::producers::ProducerSnapshot;
use crate::recovery::{self, FileBytes};
use crate::segment::{Extent, Segment};
use crate::shared::Shared;
use crate::suspicion::Suspicion;
use crate::{small_file, unwritten};

/// Bytes read at once.
const WINDOW_BYTES: u64 = 1024 * 1024;

/// What is noted of a log that begins anew.
const BEGUN_ANEW: &str = "noting that the replica begins anew";

/// What a cut needs.
#[derive(Debug)]
pub(crate) struct CutWork {
    pub(crate) shared: Arc<Shared>,
    pub(crate) manifest: Manifest,
    pub(crate) epochs: EpochCache,
    /// With frames that no sync covered yet: what is kept of them is synced.
    pub(crate) unsynced: Vec<Arc<dyn DiskFile>>,
    pub(crate) to: CutTo,
    pub(crate) index_interval: u64,
    /// The log acknowledges nothing that it did not sync.
    pub(crate) is_synced: bool,
    /// There was never a segment, and a marker says so.
    pub(crate) is_new: bool,
}

/// Where the log ends after a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CutTo {
    /// At the last frame's end that is not after this.
    End(Offset),
    /// Here, with nothing before.
    Anew(Offset),
}

/// A log that was cut.
#[derive(Debug)]
pub(crate) struct CutDone {
    pub(crate) manifest: Manifest,
    /// All segments that are left, each sealed.
    pub(crate) segments: Vec<Arc<Segment>>,
    pub(crate) epochs: EpochCache,
    /// The log's end. All before it is durable.
    pub(crate) point: Checkpoint,
    /// Whether the chain at the end is known.
    pub(crate) is_chain_known: bool,
    /// There is no segment yet, and a marker says so.
    pub(crate) is_new: bool,
}

/// What was found of the last segment that is kept.
struct Kept {
    /// How many segments are kept.
    count: usize,
    segment: Arc<Segment>,
    sealed: Sealed,
    point: Checkpoint,
}

impl Place {
    pub(super) fn cut(&self, work: CutWork) -> Result<UpkeepDone, Failure> {
        let begins_anew = matches!(work.to, CutTo::Anew(at) if !(work.is_new && at == Offset::ZERO));
        // It is not to lead before it caught up, from before its records go until it has.
        let held = match begins_anew {
            true => Suspicion::UNCLEAN.add(&*self.disk, &self.dir).map_err(fatal(BEGUN_ANEW))?,
            false => Suspicion::default(),
        };
        let done = match work.to {
            CutTo::End(to) => match self.truncate(&work, to)? {
                Some(done) => done,
                None => return Ok(UpkeepDone::CutRefused),
            },
            CutTo::Anew(at) => self.restart(&work, at)?,
        };
        for entry in &work.manifest.segments {
            if !done.manifest.lists(entry.name) {
                recovery::remove_segment(&*self.disk, &self.dir, entry.name);
            }
        }
        // What was held against it otherwise went with its records.
        if begins_anew && held != Suspicion::UNCLEAN {
            Suspicion::UNCLEAN.store(&*self.disk, &self.dir).map_err(fatal(BEGUN_ANEW))?;
        }
        Ok(UpkeepDone::Cut(Box::new(done)))
    }

    /// `None` if the log can not be cut there, and is as it was.
    fn truncate(&self, work: &CutWork, to: Offset) -> Result<Option<CutDone>, Failure> {
        if work.manifest.compacted.is_some() && self.is_compacted_beyond(work, to) {
            return Ok(None);
        }
        for file in &work.unsynced {
            file.sync_data().map_err(fatal("syncing what is left of the log"))?;
        }
        let Some(kept) = self.keep(work, to)? else {
            let start = work
                .manifest
                .segments
                .first()
                .map_or(work.manifest.log_start, |first| first.name.base_offset);
            return match start < work.manifest.log_start {
                true => Ok(None),
                false => self.restart(work, start).map(Some),
            };
        };
        if kept.sealed.end_offset < work.manifest.log_start {
            return Ok(None);
        }
        let mut manifest = work.manifest.clone();
        manifest.segments.truncate(kept.count);
        let last = manifest.segments.last_mut().expect("one is kept");
        *last = SegmentEntry { sealed: Some(kept.sealed), ..*last };
        let mut epochs = work.epochs.clone();
        epochs.truncate(kept.sealed.end_offset);
        let (disk, dir) = (&*self.disk, self.dir.as_path());
        kept.point.store(disk, dir).map_err(fatal("writing a checkpoint"))?;
        epochs.store(disk, dir).map_err(fatal("writing the leader epochs"))?;
        ProducerSnapshot::remove_beyond(disk, dir, kept.sealed.end_offset)
            .map_err(fatal("removing what is known of the producers"))?;
        manifest.store(disk, dir).map_err(fatal("replacing the manifest"))?;
        let mut segments = work.shared.segments()[..kept.count - 1].to_vec();
        segments.push(kept.segment);
        let point = kept.point;
        Ok(Some(CutDone { manifest, segments, epochs, point, is_chain_known: true, is_new: false }))
    }

    /// Whether compaction, here or by a leader, may have gone by records beyond `to`. A leader compacts what is committed.
    fn is_compacted_beyond(&self, work: &CutWork, to: Offset) -> bool {
        let compacted = work.manifest.segments.iter().rfind(|segment| segment.is_compacted);
        let compacted_end = compacted.and_then(|segment| segment.sealed).map(|sealed| sealed.end_offset);
        if to < work.shared.high_watermark().max(compacted_end.unwrap_or(Offset::ZERO)) {
            return true;
        }
        let segments = work.shared.segments();
        let mut cut_into = segments.iter().filter(|segment| segment.end() > to);
        // What can not be read is not truncated either.
        cut_into.any(|segment| self.has_compacted_beyond(segment, to).unwrap_or(true))
    }

    fn has_compacted_beyond(&self, segment: &Segment, to: Offset) -> Result<bool, WalkError<io::Error>> {
        let file = self.disk.open(&self.dir.join(segment.file_name()), OpenMode::Read);
        let bytes = FileBytes(file.map_err(WalkError::Read)?);
        let mut walk = Walk::new(&bytes, 0..segment.position(), WINDOW_BYTES);
        while let Some((_, header)) = walk.next_header()? {
            if header.is_compacted && header.next_offset() > to {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The last segment with a frame that ends at `to` or before; `None` if there is none.
    fn keep(&self, work: &CutWork, to: Offset) -> Result<Option<Kept>, Failure> {
        let segments = work.shared.segments();
        let mut count = segments.partition_point(|segment| segment.base_offset() < to);
        while let Some(at) = count.checked_sub(1) {
            let found = self.scan(work, &segments[at], count, to).map_err(fatal("looking for the cut"))?;
            if found.is_some() {
                return Ok(found);
            }
            count = at;
        }
        Ok(None)
    }

    fn scan(
        &self,
        work: &CutWork,
        segment: &Arc<Segment>,
        count: usize,
        to: Offset,
    ) -> io::Result<Option<Kept>> {
        let file = self.disk.open(&self.dir.join(segment.file_name()), OpenMode::Read)?;
        let bytes = FileBytes(file);
        let mut walk = Walk::new(&bytes, 0..segment.position(), WINDOW_BYTES);
        let mut index = SegmentIndex::new(segment.base_offset());
        let mut last = None;
        loop {
            match walk.next_frame(work.shared.seed) {
                Ok(Some((position, header, _))) if header.next_offset() <= to => {
                    index.note(&header, position, work.index_interval);
                    last = Some((position + header.frame_len() as u64, header));
                }
                Ok(_) => break,
                Err(WalkError::Read(error)) => return Err(error),
                Err(WalkError::Frame { error, .. }) => return Err(io::Error::other(error)),
            }
        }
        let Some((position, header)) = last else { return Ok(None) };
        let sealed = Sealed {
            end_offset: header.next_offset(),
            len: position,
            last_append_time: header.append_time,
            max_timestamp: index.max_timestamp().unwrap_or(Timestamp(i64::MIN)),
        };
        let point = Checkpoint {
            segment_serial: segment.name().serial,
            position,
            next_offset: sealed.end_offset,
            chain: header.chain,
            last_append_time: header.append_time,
            leader_epoch: header.leader_epoch,
            high_watermark: work.shared.high_watermark().min(sealed.end_offset),
            is_synced: work.is_synced,
            is_behind: false,
        };
        let segment = match segment.position() == position {
            true => Arc::clone(segment),
            false => {
                let size_limit = segment.size_limit();
                let extent = Extent::of(&sealed);
                Arc::new(Segment::found(segment.name(), size_limit, work.index_interval, extent, Some(index)))
            }
        };
        Ok(Some(Kept { count, segment, sealed, point }))
    }

    fn restart(&self, work: &CutWork, at: Offset) -> Result<CutDone, Failure> {
        let manifest =
            Manifest { log_start: at, compacted: None, segments: Vec::new(), ..work.manifest.clone() };
        let point = Checkpoint {
            segment_serial: manifest.next_serial,
            position: 0,
            next_offset: at,
            chain: Chain::START,
            last_append_time: Timestamp(i64::MIN),
            leader_epoch: LeaderEpoch(0),
            high_watermark: at,
            is_synced: work.is_synced,
            is_behind: false,
        };
        let is_new = work.is_new && at == Offset::ZERO;
        let done = CutDone {
            manifest,
            segments: Vec::new(),
            epochs: EpochCache::new(),
            point,
            is_chain_known: at == Offset::ZERO,
            is_new,
        };
        if is_new {
            return Ok(done);
        }
        let (disk, dir) = (&*self.disk, self.dir.as_path());
        if !work.is_new {
            // Without one recovery begins at the front, wherever that is, and asks for no chain before it.
            small_file::remove(disk, dir, checkpoint::FILE_NAME).map_err(fatal("removing the checkpoint"))?;
            done.epochs.store(disk, dir).map_err(fatal("writing the leader epochs"))?;
            ProducerSnapshot::remove_beyond(disk, dir, Offset::ZERO)
                .map_err(fatal("removing what is known of the producers"))?;
        }
        done.manifest.store(disk, dir).map_err(fatal("replacing the manifest"))?;
        if work.is_new {
            unwritten::remove(disk, dir, done.manifest.partition)
                .map_err(fatal("removing the marker of an unwritten log"))?;
        }
        Ok(done)
    }
}

/// A log that is to be cut and was not takes nothing more: what it holds is not what its leader has.
fn fatal(operation: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |error| Failure { operation, error, kind: FailureKind::Fatal }
}
