//! Compacting a log: its sealed segments are written anew without the records that a later one of the same key replaces.
//!
//! ```text
//!   sealed, below the checkpoint and its high watermark          not looked at
//!   ├─ compacted before ─┬─ keys are noted here ─┬──────────────┬───────────►
//!   │                    │ dirty                 │ too many keys│ active
//!   └─────── written anew, in as few segments ───┘
//! ```
//! First the dirty segments are read and the last offset of each key is noted, as far as keys fit into memory. Then all
//! segments up to there are copied to new files, which the manifest does not list: whatever happens, they are garbage, and
//! the log is as it was. One change of the manifest puts them in the place of the old ones.
//!
//! What is left of a frame keeps its place, its epoch and its chain. Some frames stay though no record in them does: the last
//! one, so that the segments end where they ended; the first of each leadership, so that it is known where it began; and
//! those that tell what a producer sent last, of which behind the last key noted nothing is known. A frame that comes behind a gap, or lost records, says so in its flags.
//!
//! A tombstone stays until its batch's delete horizon, which is written into the batch when compaction first comes past it.
//!
//! It is done in steps, so that it can be given up between two, and so that its owner says how fast it goes.

mod keys;
mod output;
mod producers;

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use quire_protocol::batch::{BatchHeader, Compactable, RecordKey};
use quire_protocol::frame::{self, Chain, FrameHeader};
use quire_protocol::ids::{LeaderEpoch, Offset, Timestamp};
use quire_protocol::limits;

use super::{Failure, FailureKind};
use crate::disk::OpenMode;
use crate::error::ReadError;
use crate::frames::{Walk, WalkError};
use crate::manifest::{Sealed, SegmentEntry, SegmentName};
use crate::recovery::{self, FileBytes};
use crate::segment::Segment;
use crate::shared::Shared;

use keys::Keys;
use output::Outputs;
use producers::Producers;

/// Bytes of segments that one step reads; the last frame may exceed it.
const STEP_BYTES: u64 = 4 * 1024 * 1024;
/// Bytes read at once.
const WINDOW_BYTES: u64 = 1024 * 1024;

/// What is compacted, and how.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) shared: Arc<Shared>,
    /// The first segments of the log; the last of them is not empty.
    pub(crate) sources: Vec<Source>,
    /// How many of them were compacted before.
    pub(crate) compacted: usize,
    pub(crate) log_start: Offset,
    /// Tombstones below may go.
    pub(crate) tombstones_to: Offset,
    pub(crate) now: Timestamp,
    /// How long tombstones stay (ms).
    pub(crate) delete_retention_ms: i64,
    /// Keys noted at once.
    pub(crate) keys_max: usize,
    /// New segments are filled up to this size (bytes).
    pub(crate) segment_bytes: u64,
    /// And with frames that were appended within so long (ms).
    pub(crate) span_ms_max: Option<u64>,
    pub(crate) index_interval: u64,
}

/// A segment that is compacted.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) segment: Arc<Segment>,
    pub(crate) sealed: Sealed,
}

/// A compaction under way, between two steps or in one.
#[derive(Debug)]
pub(crate) struct Compaction {
    plan: Plan,
    keys: Keys,
    producers: Producers,
    /// Where reading goes on.
    place: Place,
    /// Keys of all below are noted, in what was not compacted before.
    noted_to: Offset,
    /// `None` while keys are noted; then how many sources are written anew.
    covered: Option<usize>,
    outputs: Outputs,
    /// When the first of the tombstones that stay may go.
    next_horizon: Option<Timestamp>,
    /// The end of the last batch that lost a tombstone because it was its time.
    tombstones_gone_to: Offset,
}

/// Between two frames.
#[derive(Debug, Clone, Copy)]
struct Place {
    source: usize,
    position: u64,
    /// The offset after the frame before.
    next: Offset,
    /// The chain there, if it is known.
    chain: Option<Chain>,
    /// The leadership of the frame before, of those that are part of the log.
    leader_epoch: Option<LeaderEpoch>,
}

/// What came of a step.
#[derive(Debug)]
pub(crate) enum Stepped {
    /// There is more to be done.
    Again(Box<Compaction>),
    /// New files are written, durably, and wait to be listed.
    Written(Box<Written>),
    /// It is over, and left nothing.
    GivenUp,
}

/// Segments that are to take the place of a log's first ones.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) sources: Vec<SegmentName>,
    pub(crate) entries: Vec<SegmentEntry>,
    pub(crate) next_horizon: Option<Timestamp>,
    pub(crate) tombstones_gone_to: Offset,
}

/// Why a step was not done; what was written is removed.
#[derive(Debug)]
pub(crate) enum StepError {
    /// What is in the log can not be read.
    Unreadable(ReadError),
    /// New files can not be written.
    Failed(Failure),
}

/// What becomes of a frame.
enum Fate {
    Gone,
    Stays,
    /// With this batch.
    Changed(Vec<u8>),
}

impl Compaction {
    pub(crate) fn new(plan: Plan) -> Compaction {
        let producers = Producers::new(plan.now);
        // Producers are remembered for so long; who wrote before that leaves no trace.
        let is_old = |source: &Source| producers.is_forgotten(source.sealed.last_append_time);
        let old = plan.sources.iter().take_while(|source| is_old(source)).count();
        let first = old.min(plan.compacted).min(plan.sources.len() - 1);
        let outputs = Outputs::new(&plan);
        Compaction {
            keys: Keys::new(plan.keys_max),
            producers,
            place: Place::before(first, &plan.sources[first]),
            noted_to: Offset::ZERO,
            covered: None,
            outputs,
            next_horizon: None,
            tombstones_gone_to: Offset::ZERO,
            plan,
        }
    }

    /// Whether it can not go on without the serial of a new segment.
    pub(crate) fn wants_serial(&self) -> bool {
        self.outputs.spare_serial.is_none()
    }

    /// A serial that no other segment of the log ever gets.
    pub(crate) fn give_serial(&mut self, serial: u32) {
        self.outputs.spare_serial = Some(serial);
    }

    /// Bytes that the next step reads, about.
    pub(crate) fn step_bytes() -> u64 {
        STEP_BYTES
    }

    /// Does a part of it. Blocks on the disk.
    pub(crate) fn step(mut self: Box<Self>) -> Result<Stepped, StepError> {
        let done = match self.covered {
            None => self.note_keys().map(|()| false),
            Some(covered) => self.write(covered),
        };
        match done {
            Ok(false) => Ok(Stepped::Again(self)),
            Ok(true) => Ok(Stepped::Written(Box::new(self.written()))),
            Err(error) => {
                self.outputs.discard();
                Err(error)
            }
        }
    }

    /// Removes what was written.
    pub(crate) fn discard(mut self) {
        self.outputs.discard();
    }

    fn written(self) -> Written {
        let covered = &self.plan.sources[..self.covered.expect("it was written")];
        let sources = covered.iter().map(|source| source.segment.name()).collect();
        Written {
            sources,
            entries: self.outputs.done,
            next_horizon: self.next_horizon,
            tombstones_gone_to: self.tombstones_gone_to,
        }
    }

    /// Whatever is left of the sources has room on the disk, beside what appends need meanwhile.
    fn check_room(&self) -> Result<(), StepError> {
        let shared = &self.plan.shared;
        let free = shared.disk.free_bytes(&shared.dir).map_err(Failure::of("looking for free space"));
        let free = free.map_err(StepError::Failed)?;
        let most: u64 = self.plan.sources.iter().map(|source| source.sealed.len).sum();
        let needed = most + limits::COMPACTION_DISK_RESERVE_BYTES;
        if free >= needed {
            return Ok(());
        }
        let what = format!("{free} bytes are free, up to {needed} are needed");
        let error = io::Error::new(io::ErrorKind::StorageFull, what);
        let operation = "finding room for compacted segments";
        Err(StepError::Failed(Failure { operation, error, kind: FailureKind::DiskFull }))
    }

    fn note_keys(&mut self) -> Result<(), StepError> {
        self.check_room()?;
        let mut left = STEP_BYTES;
        while left > 0 {
            let at = self.place.source;
            let Some(bytes) = self.open(at, self.plan.sources.len())? else {
                self.end_noting(None);
                return Ok(());
            };
            let end = self.plan.sources[at].sealed.len;
            let mut walk = Walk::new(&bytes, self.place.position..end, WINDOW_BYTES);
            while left > 0 && self.place.source == at {
                let Some((header, frame, place)) = self.next_frame(&mut walk)? else { continue };
                let Ok(batch) = BatchHeader::parse(&frame[frame::HEADER_LEN..]) else { unreachable_batch() };
                if at >= self.plan.compacted {
                    if self.keys.is_full(batch.record_count) {
                        self.end_noting(Some(header.base_offset));
                        return Ok(());
                    }
                    self.keys.note(&batch, &frame[frame::HEADER_LEN..]);
                }
                self.producers.note(&header, &batch);
                left = left.saturating_sub(header.frame_len() as u64);
                self.place = place;
            }
        }
        Ok(())
    }

    /// All keys are noted, or as many as fit: those of the frame at `full_at` do not.
    fn end_noting(&mut self, full_at: Option<Offset>) {
        let sources = &self.plan.sources;
        let (mut covered, noted_to) = match full_at {
            None => (sources.len(), sources[sources.len() - 1].sealed.end_offset),
            // The first dirty one is gone through piece by piece if it must be.
            Some(offset) if self.place.source == self.plan.compacted => (self.place.source + 1, offset),
            Some(_) => (self.place.source, sources[self.place.source].segment.base_offset()),
        };
        while covered > 1 && sources[covered - 1].sealed.len == 0 {
            covered -= 1;
        }
        self.covered = Some(covered);
        self.noted_to = noted_to;
        self.place = Place::before(0, &sources[0]);
        self.outputs.begin_at(sources[0].segment.base_offset());
    }

    /// Whether all is written.
    fn write(&mut self, covered: usize) -> Result<bool, StepError> {
        let mut left = STEP_BYTES;
        while left > 0 {
            let at = self.place.source;
            let Some(bytes) = self.open(at, covered)? else {
                self.outputs.end().map_err(StepError::Failed)?;
                return Ok(true);
            };
            let end = self.plan.sources[at].sealed.len;
            let mut walk = Walk::new(&bytes, self.place.position..end, WINDOW_BYTES);
            while left > 0 && self.place.source == at {
                let Some((header, frame, place)) = self.next_frame(&mut walk)? else { continue };
                let is_last = at + 1 == covered && place.position == end;
                if !self.put(&header, frame, is_last).map_err(StepError::Failed)? {
                    return Ok(false);
                }
                left = left.saturating_sub(header.frame_len() as u64);
                self.place = place;
            }
        }
        self.outputs.flush().map_err(StepError::Failed)?;
        Ok(false)
    }

    /// Writes what stays of a frame; `false` if that needs a serial that is not there.
    fn put(&mut self, header: &FrameHeader, frame: Bytes, is_last: bool) -> Result<bool, Failure> {
        let batch = frame.slice(frame::HEADER_LEN..);
        let Ok(batch_header) = BatchHeader::parse(&batch) else { unreachable_batch() };
        let is_noted = header.base_offset < self.noted_to;
        let end = header.next_offset();
        // Not before every replica has them: one that missed them would keep what they took away.
        let are_tombstones_due = is_noted
            && end <= self.plan.tombstones_to
            && batch_header.delete_horizon.is_some_and(|horizon| horizon <= self.plan.now);
        if are_tombstones_due {
            self.tombstones_gone_to = self.tombstones_gone_to.max(end);
        }
        let mut horizon = None;
        let fate = match end <= self.plan.log_start && !is_last {
            true => Fate::Gone,
            false => {
                // Of what was not noted the producers are not known either.
                let must_stay = is_last
                    || !is_noted
                    || self.place.leader_epoch != Some(header.leader_epoch)
                    || self.producers.remembers(header, &batch_header);
                self.fate(&batch_header, &batch, [is_noted, are_tombstones_due, must_stay], &mut horizon)
            }
        };
        let seed = self.plan.shared.seed;
        let (header, frame) = match fate {
            Fate::Gone => return Ok(true),
            Fate::Stays if self.outputs.next == header.base_offset => (*header, [frame, Bytes::new()]),
            Fate::Stays => {
                let header = header.compacted(seed, &batch_header, &batch);
                (header, [Bytes::copy_from_slice(&header.encode()), batch])
            }
            Fate::Changed(batch) => {
                let parsed = BatchHeader::parse(&batch).expect("it was just made");
                let header = header.compacted(seed, &parsed, &batch);
                (header, [Bytes::copy_from_slice(&header.encode()), batch.into()])
            }
        };
        if !self.outputs.has_place(&header, is_noted)? {
            return Ok(false);
        }
        self.outputs.push(&header, frame)?;
        self.next_horizon = self.next_horizon.into_iter().chain(horizon).min();
        Ok(true)
    }

    /// What becomes of a batch. `horizon` is set to when its tombstones may go, if any stays.
    fn fate(
        &self,
        header: &BatchHeader,
        batch: &[u8],
        [is_noted, are_tombstones_due, must_stay]: [bool; 3],
        horizon: &mut Option<Timestamp>,
    ) -> Fate {
        if header.is_control || header.is_transactional {
            return Fate::Stays;
        }
        // Records that are not what their header says are nobody's to judge.
        let Ok(opened) = Compactable::open(header, batch) else { return Fate::Stays };
        let (mut kept, mut tombstones) = (Vec::with_capacity(header.record_count as usize), 0);
        for record in opened.keys() {
            let offset = Offset(header.base_offset.0 + u64::from(record.offset_delta));
            let is_tombstone = record.is_tombstone && record.key.is_some();
            let is_kept = !(is_tombstone && are_tombstones_due)
                && record.key.is_none_or(|key| !self.keys.has_later(key, offset));
            tombstones += u32::from(is_kept && is_tombstone);
            kept.push(is_kept);
        }
        if !kept.contains(&true) {
            return match must_stay {
                false => Fate::Gone,
                true if kept.is_empty() => Fate::Stays,
                true => opened.retain(None, |_| false).map_or(Fate::Stays, Fate::Changed),
            };
        }
        let new_horizon = Timestamp(self.plan.now.0.saturating_add(self.plan.delete_retention_ms));
        let is_new = tombstones > 0 && is_noted && header.delete_horizon.is_none();
        if tombstones > 0 {
            *horizon = header.delete_horizon.or(is_new.then_some(new_horizon));
        }
        if !is_new && !kept.contains(&false) {
            return Fate::Stays;
        }
        let mut kept = kept.into_iter();
        let is_kept = |_: &RecordKey<'_>| kept.next().unwrap_or(true);
        opened.retain(is_new.then_some(new_horizon), is_kept).map_or(Fate::Stays, Fate::Changed)
    }

    /// The file of a source; `None` behind the last that is asked for.
    fn open(&self, at: usize, sources: usize) -> Result<Option<FileBytes>, StepError> {
        let Some(source) = self.plan.sources[..sources].get(at) else { return Ok(None) };
        let path = self.plan.shared.dir.join(source.segment.file_name());
        let file = self.plan.shared.disk.open(&path, OpenMode::Read);
        file.map(|file| Some(FileBytes(file))).map_err(|error| self.unreadable(error))
    }

    /// The next frame, and the place behind it; none at the end of a source, which is passed.
    fn next_frame(
        &mut self,
        walk: &mut Walk<'_, FileBytes>,
    ) -> Result<Option<(FrameHeader, Bytes, Place)>, StepError> {
        let Place { source, next, chain, .. } = self.place;
        let (position, header, frame) = match walk.next_frame(self.plan.shared.seed) {
            Ok(Some(found)) => found,
            Ok(None) if next != self.plan.sources[source].sealed.end_offset => {
                return Err(self.damaged("the segment ends before its last record"));
            }
            Ok(None) => {
                self.place.source += 1;
                self.place.position = 0;
                return Ok(None);
            }
            Err(WalkError::Read(error)) => return Err(self.unreadable(error)),
            Err(WalkError::Frame { error, .. }) => return Err(self.damaged(error)),
        };
        let batch = &frame[frame::HEADER_LEN..];
        let is_linked = header.is_compacted
            || chain.is_none_or(|before| header.chain_after(&before, batch) == header.chain);
        if !header.follows(next) || !is_linked {
            return Err(self.damaged("the frame there does not continue the one before"));
        }
        let is_in_log = header.next_offset() > self.plan.log_start;
        let place = Place {
            source,
            position: position + header.frame_len() as u64,
            next: header.next_offset(),
            chain: Some(header.chain),
            leader_epoch: if is_in_log { Some(header.leader_epoch) } else { None },
        };
        Ok(Some((header, frame, place)))
    }

    fn damaged(&self, what: impl ToString) -> StepError {
        let Place { source, position, next, .. } = self.place;
        let segment = self.plan.sources[source].segment.file_name();
        StepError::Unreadable(ReadError::Corrupt { offset: next, segment, position, what: what.to_string() })
    }

    fn unreadable(&self, error: io::Error) -> StepError {
        match error.kind() {
            io::ErrorKind::NotFound => self.damaged("the file is missing"),
            io::ErrorKind::UnexpectedEof => self.damaged("the file is too short"),
            _ if FailureKind::of(&error) != FailureKind::Fatal => {
                StepError::Failed(Failure::of("reading a segment to compact it")(error))
            }
            _ => {
                let segment = self.plan.sources[self.place.source].segment.file_name();
                StepError::Unreadable(ReadError::Io { segment, source: error })
            }
        }
    }
}

impl Place {
    fn before(at: usize, source: &Source) -> Place {
        let next = source.segment.base_offset();
        Place { source: at, position: 0, next, chain: None, leader_epoch: None }
    }
}

/// Segments that are listed in the place of others.
#[derive(Debug)]
pub(crate) struct SwapWork {
    pub(crate) shared: Arc<Shared>,
    /// With the new segments.
    pub(crate) manifest: crate::manifest::Manifest,
    pub(crate) segments: Vec<Arc<Segment>>,
    /// What they take the place of; the files go with another job, which appends do not wait for.
    pub(crate) replaced: Vec<SegmentName>,
}

impl super::Place {
    pub(super) fn swap(&self, work: SwapWork) -> Result<super::UpkeepDone, Failure> {
        let SwapWork { shared, manifest, segments, replaced } = work;
        if let Err(failure) = self.replace_manifest(&manifest) {
            if failure.kind != FailureKind::Fatal {
                for segment in &segments {
                    recovery::remove_segment(&*self.disk, &self.dir, segment.name());
                }
            }
            return Err(failure);
        }
        // Before any file goes, so that a reader that misses one finds what took its place.
        shared.swap_front(replaced.len(), segments);
        Ok(super::UpkeepDone::Compacted { manifest, replaced })
    }
}

fn unreachable_batch() -> ! {
    unreachable!("the frame was checked, and its batch with it")
}
