//! Which file job is due, and what its result means for the log.
//!
//! Two kinds run beside each other: one sync, and one piece of upkeep (space, segments, retention, checkpoints). While
//! a sync is out, appends go on; the next sync covers all of them. That is group commit without a timer.

use std::io;
use std::sync::Arc;

use quire_protocol::ids::{Offset, Timestamp};

use super::{Active, Log};
use crate::checkpoint::{CLEAN_FILE_NAME, Checkpoint};
use crate::disk::DiskFile;
use crate::error::{AppendErrorKind, CloseError};
use crate::jobs::{
    CheckpointWork, CutTo, Failure, FailureKind, GrowWork, IndexToStore, Job, JobDone, OpenWork, Outcome,
    Place, RetainWork, RollWork, SyncWork, UpkeepDone, UpkeepWork, Verdict,
};
use crate::manifest::{Compacted, Manifest, Sealed, SegmentName};
use crate::poison::PoisonReason;
use crate::segment::Segment;
use crate::small_file;
use crate::suspicion::Suspicion;

/// The first allocation for a segment (bytes): what a log with a few records takes on disk.
const FIRST_STEP_BYTES: u64 = 64 * 1024;
/// Most that is allocated ahead at once (bytes).
const STEP_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Most that is filled with zeros ahead at once (bytes).
const ZERO_STEP_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Below this many bytes a sync, on average, space is filled with zeros ahead: over blocks already written a sync
/// needs no journal commit. Measured against bare writes, each synced: batches of 64 KiB 1.1 with zeros and 0.8
/// without, of 256 KiB the same, of 1 MiB 0.6 and 0.9, since everything is written twice.
const SMALL_SYNC_BYTES: u64 = 128 * 1024;

/// What the owner asks [`Log::next_job`] for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// Whether everything appended so far is to be synced.
    pub sync: bool,
}

/// What changed with a job's result.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Completed {
    /// The durable end, if it moved.
    pub durable_end: Option<Offset>,
    /// The log start, if it moved.
    pub log_start: Option<Offset>,
    /// Why the log takes nothing more, if this job failed for good.
    pub poisoned: Option<PoisonReason>,
    /// Whether an attempt to make space has ended: an append refused with `NoSpaceYet` is to be tried again, and
    /// succeeds or says why not.
    pub space: bool,
    /// The log's end, if it was cut there.
    pub cut: Option<Offset>,
    /// Whether the log could not be cut where it was to be, and is as it was: compaction took records for what lies beyond,
    /// or the log start is not where a frame begins. It is to begin anew.
    pub is_cut_refused: bool,
}

/// Account of syncs.
#[derive(Debug, Default)]
pub(super) struct Flush {
    pub(super) is_under_way: bool,
    pub(super) unsynced_bytes: u64,
    /// Bytes that one sync covers, on average over the last few; 0 before the first.
    average_bytes: u64,
    /// Files of sealed segments with frames that no sync covered yet, in order.
    pub(super) sealed: Vec<Unsynced>,
}

/// A sealed segment's file that is to be synced.
#[derive(Debug)]
pub(super) struct Unsynced {
    pub(super) file: Arc<dyn DiskFile>,
    end: Offset,
}

/// Account of everything else that is done to files.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    pub(super) is_under_way: bool,
    /// It makes the space that an append lacked.
    is_for_append: bool,
    /// What the last append lacked.
    pub(super) space: Option<SpaceWanted>,
    /// The active segment is being sealed: nothing is appended to it.
    pub(super) is_rolling: bool,
    /// Why the last attempt to make space failed, if no append was told yet.
    pub(super) refusal: Option<AppendErrorKind>,
    pub(super) is_checkpoint_due: bool,
    /// The last attempt to write a checkpoint found no room.
    is_checkpoint_refused: bool,
    /// The checkpoint on disk says that durable floors prove nothing.
    pub(super) is_behind_noted: bool,
    /// An append waits for a checkpoint that says so.
    pub(super) is_note_due: bool,
    /// An append waits for a manifest that says that there are compacted frames.
    pub(super) is_mark_due: bool,
    /// The clean marker of the last shutdown is still there; it goes before anything is changed.
    pub(super) is_marked_clean: bool,
    /// The manifest on disk does not list yet where recovery cut the log. The next change of it does.
    is_cut_unstored: bool,
    /// There was never a segment: nothing but the marker that says so is on disk.
    pub(super) is_new: bool,
    /// Allocating ahead found no room: wait until an append needs it.
    is_refused_ahead: bool,
    /// That there is no room was said, and allocating ahead has found none since.
    is_refusal_said: bool,
    is_seal_due: bool,
    /// The log is to be cut; nothing is appended before it was.
    pub(super) cut: Option<CutTo>,
    /// What is to be noted of the replica's trustworthiness.
    pub(super) verdict: Option<Verdict>,
    /// Segments before this offset are to be deleted.
    pub(super) retain_from: Option<Offset>,
    /// It was chosen for being where a segment ended.
    is_segment_end: bool,
    /// Bytes synced since the last checkpoint.
    synced_bytes: u64,
    /// Everything below was covered by a sync when the checkpoint on disk was written.
    pub(super) checkpoint: Offset,
    /// Whatever happens, an open finds the high watermark here or beyond: the checkpoint on disk says so.
    pub(super) certain_high_watermark: Offset,
}

impl Upkeep {
    /// Of a log just opened, of which everything below `checkpoint` is known to be durable, and every open finds this high
    /// watermark.
    pub(super) fn new(
        is_marked_clean: bool,
        is_cut_unstored: bool,
        is_new: bool,
        checkpoint: Offset,
        certain_high_watermark: Offset,
    ) -> Upkeep {
        Upkeep {
            is_marked_clean,
            is_cut_unstored,
            is_new,
            checkpoint,
            certain_high_watermark,
            ..Upkeep::default()
        }
    }
}

/// What an append lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SpaceWanted {
    /// The active segment's file is not open.
    Open,
    /// Space up to `end` (bytes) in the active segment's file.
    Grow { end: u64 },
    /// Another segment, with room for so many bytes.
    Roll { bytes: u64 },
}

impl Log {
    /// The next job that is due, if any; run it on a thread that may block, and bring its result to
    /// [`Log::complete`]. Ask again until there is none, after appends and after completions. At most one sync and
    /// one other job of a log are out at a time.
    pub fn next_job(&mut self, want: Want) -> Option<Job> {
        // A log that begins anew leaves its damage behind, and files that could not be written or synced.
        let begins_anew = matches!(self.upkeep.cut, Some(CutTo::Anew(_)));
        if self.is_poisoned() && !begins_anew {
            // What was being compacted holds memory, and others wait for it to be over.
            self.cancel_compaction();
            return self.next_compaction();
        }
        if self.is_cutting() || self.is_corrupt() {
            self.cancel_compaction();
        }
        // Somebody waits for a cut that was asked for: it is made, or fails, whatever is damaged.
        if self.is_corrupt() && !self.is_cutting() {
            return self.next_verdict().or_else(|| self.next_compaction());
        }
        if want.sync
            && !self.is_cutting()
            && let Some(work) = self.next_sync()
        {
            return Some(Job::sync(work));
        }
        // A cut waits for the sync that is out, and syncs what is left itself; and for a compaction to be given up.
        let is_waiting = self.is_cutting() && (self.flush.is_under_way || self.compacting.is_busy());
        if !self.upkeep.is_under_way
            && !is_waiting
            && let Some(work) = self.next_upkeep()
        {
            return Some(self.upkeep_job(work));
        }
        self.next_compaction()
    }

    /// All that is done to a damaged log: the next open is to know of it.
    fn next_verdict(&mut self) -> Option<Job> {
        if self.upkeep.is_under_way {
            return None;
        }
        let verdict = self.upkeep.verdict.take()?;
        Some(self.upkeep_job(UpkeepWork::Judge(verdict)))
    }

    fn upkeep_job(&mut self, work: UpkeepWork) -> Job {
        self.upkeep.is_under_way = true;
        Job::upkeep(self.place(), work)
    }

    pub(super) fn place(&self) -> Place {
        Place {
            disk: Arc::clone(&self.shared.disk),
            dir: self.shared.dir.clone(),
            is_marked_clean: self.upkeep.is_marked_clean,
        }
    }

    /// Takes back the result of a job.
    pub fn complete(&mut self, done: JobDone) -> Completed {
        match done.outcome {
            Outcome::Synced { point, bytes, result } => self.synced(point, bytes, result),
            Outcome::Upkeep { result } => self.kept_up(result),
            Outcome::Compacted { result } => self.compaction_stepped(result),
        }
    }

    /// Runs every job that is due, on this thread; with everything synced if asked for. For owners that may block.
    pub fn run_jobs(&mut self, want: Want) -> Completed {
        let mut all = Completed::default();
        while let Some(job) = self.next_job(want) {
            let completed = self.complete(job.run());
            all.durable_end = completed.durable_end.or(all.durable_end);
            all.log_start = completed.log_start.or(all.log_start);
            all.poisoned = all.poisoned.or(completed.poisoned);
            all.space |= completed.space;
            all.cut = completed.cut.or(all.cut);
            all.is_cut_refused |= completed.is_cut_refused;
        }
        all
    }

    pub(crate) fn segments(&self) -> Arc<Vec<Arc<Segment>>> {
        self.shared.segments()
    }

    pub(crate) fn segment_age_ms(&self) -> u64 {
        self.options.segment_age_ms
    }

    /// The append time of the active segment's first frame, if it has one.
    pub(crate) fn oldest_active_append_time(&self) -> Option<Timestamp> {
        self.active.as_ref()?.segment.first_append_time()
    }

    /// Segments before `offset` are to be deleted by the next job.
    pub(crate) fn retain_from(&mut self, offset: Offset) {
        // Recovery starts at the checkpoint, and needs its segment or the one right behind it.
        if offset > self.upkeep.checkpoint {
            self.upkeep.is_checkpoint_due = true;
        }
        self.upkeep.retain_from = Some(offset);
        self.upkeep.is_segment_end = false;
    }

    /// The same, of an offset where a segment ends: if there is none any more by then, nothing is deleted.
    pub(crate) fn retain_from_segment(&mut self, offset: Offset) {
        self.retain_from(offset);
        self.upkeep.is_segment_end = true;
    }

    /// The active segment is to be sealed by the next job.
    pub(crate) fn seal_active(&mut self) {
        self.upkeep.is_seal_due = true;
    }

    /// The next open recovers the log, also if nothing was written since the last close.
    pub(super) fn remove_clean_marker(&self) -> Result<(), CloseError> {
        if !self.upkeep.is_marked_clean {
            return Ok(());
        }
        small_file::remove(&*self.shared.disk, &self.shared.dir, CLEAN_FILE_NAME)
            .map(drop)
            .map_err(|source| CloseError::Io { operation: "removing the clean marker", source })
    }

    pub(super) fn finish(mut self) -> Result<(), CloseError> {
        if let Some(verdict) = self.upkeep.verdict.take() {
            self.upkeep_job(UpkeepWork::Judge(verdict)).run().into_result()?;
            self.upkeep.is_marked_clean = false;
        }
        let is_untouched = self.upkeep.is_marked_clean && !self.upkeep.is_checkpoint_due;
        if is_untouched || self.upkeep.is_new {
            return Ok(());
        }
        if let Some(work) = self.next_sync() {
            let done = self.complete(Job::sync(work).run());
            if let Some(reason) = done.poisoned {
                return Err(CloseError::Poisoned(Arc::new(reason)));
            }
        }
        let place = self.place();
        if self.upkeep.is_cut_unstored {
            self.manifest
                .store(&*place.disk, &place.dir)
                .map_err(|source| CloseError::Io { operation: "replacing the manifest", source })?;
        }
        let work = self.checkpoint_work(false);
        let checkpoint = work.checkpoint;
        Job::upkeep(place, UpkeepWork::Checkpoint(work)).run().into_result()?;
        checkpoint
            .mark_clean(&*self.shared.disk, &self.shared.dir)
            .map_err(|source| CloseError::Io { operation: "marking the log clean", source })
    }

    fn next_sync(&mut self) -> Option<SyncWork> {
        if self.flush.is_under_way || self.flush.unsynced_bytes == 0 {
            return None;
        }
        self.flush.is_under_way = true;
        let sealed = self.flush.sealed.iter().map(|unsynced| Arc::clone(&unsynced.file));
        let active = self.active.as_ref().filter(|active| active.segment.end() > self.durable.next_offset);
        let active = active.and_then(|active| active.file.clone());
        Some(SyncWork {
            shared: Arc::clone(&self.shared),
            files: sealed.chain(active).collect(),
            point: self.tail,
            bytes: self.flush.unsynced_bytes,
        })
    }

    fn next_upkeep(&mut self) -> Option<UpkeepWork> {
        match self.upkeep.cut {
            Some(CutTo::End(to)) if self.is_nothing_beyond(to) => return Some(UpkeepWork::CutNothing),
            Some(to) => return Some(UpkeepWork::Cut(self.cut_work(to))),
            None => {}
        }
        if let Some(verdict) = self.upkeep.verdict.take() {
            return Some(UpkeepWork::Judge(verdict));
        }
        let wanted = self.upkeep.space.take();
        self.upkeep.is_for_append = wanted.is_some();
        if let Some(wanted) = wanted {
            return Some(match wanted {
                SpaceWanted::Open => self.open_work()?,
                SpaceWanted::Grow { end } => self.grow_work(end)?,
                SpaceWanted::Roll { bytes } => self.roll_work(bytes),
            });
        }
        if std::mem::take(&mut self.upkeep.is_mark_due) {
            self.upkeep.is_for_append = true;
            let compacted = self.manifest.compacted.or(Some(Compacted::default()));
            return Some(UpkeepWork::Mark(Manifest { compacted, ..self.manifest.clone() }));
        }
        // Tried once for each append that waits for it: what makes room has its turn in between.
        if !self.upkeep.is_new && std::mem::take(&mut self.upkeep.is_note_due) {
            self.upkeep.is_for_append = true;
            return Some(UpkeepWork::Checkpoint(self.checkpoint_work(true)));
        }
        if std::mem::take(&mut self.upkeep.is_seal_due) && self.has_active_frames() {
            return Some(self.roll_work(0));
        }
        if self.is_growth_due() {
            return self.grow_work(0);
        }
        if let Some(work) = self.swap_work() {
            return Some(UpkeepWork::Swap(work));
        }
        // Without room for a checkpoint recovery reads more, and deletion is what makes room. What is being compacted stays
        // until that is over.
        let may_retain = |from| {
            (from <= self.upkeep.checkpoint || self.upkeep.is_checkpoint_refused)
                && !self.compacting.is_busy()
        };
        if self.upkeep.retain_from.is_some_and(may_retain) {
            let from = self.upkeep.retain_from.take()?;
            return self.retain_work(from);
        }
        if !self.upkeep.is_new && std::mem::take(&mut self.upkeep.is_checkpoint_due) {
            // Until it is done.
            self.upkeep.is_checkpoint_refused = true;
            return Some(UpkeepWork::Checkpoint(self.checkpoint_work(false)));
        }
        None
    }

    /// Whether a cut there would only seal a segment: one for every change of leader would be many for a log that is
    /// written little. A leadership that began at the end and wrote nothing is cut off too.
    fn is_nothing_beyond(&self, to: Offset) -> bool {
        let end = self.tail.next_offset;
        to >= end && self.epochs.latest().is_none_or(|latest| latest.start_offset < end)
    }

    /// Whether there is anything to seal: an empty segment is of no use to anyone.
    fn has_active_frames(&self) -> bool {
        self.active.as_ref().is_some_and(|active| !active.segment.is_empty())
    }

    fn open_work(&self) -> Option<UpkeepWork> {
        let active = self.active.as_ref().filter(|active| active.file.is_none())?;
        Some(UpkeepWork::Open(OpenWork {
            shared: Arc::clone(&self.shared),
            segment: Arc::clone(&active.segment),
        }))
    }

    /// Whether less than half of the last step is left.
    fn is_growth_due(&self) -> bool {
        let Some(active) = self.active.as_ref().filter(|active| active.file.is_some()) else {
            return false;
        };
        let last_step = (active.writable / 2).clamp(FIRST_STEP_BYTES, self.step_max());
        let left = active.writable.saturating_sub(active.segment.position());
        !self.upkeep.is_refused_ahead && active.writable < active.segment.size_limit() && left < last_step / 2
    }

    /// The next step of the active segment, at least up to `needed` (bytes).
    fn grow_work(&self, needed: u64) -> Option<UpkeepWork> {
        let active = self.active.as_ref().filter(|active| active.writable < needed || needed == 0)?;
        let step = active.writable.clamp(FIRST_STEP_BYTES, self.step_max());
        let end = (active.writable + step).min(active.segment.size_limit()).max(needed);
        Some(UpkeepWork::Grow(GrowWork {
            file_name: active.segment.file_name(),
            from: active.writable,
            needed,
            end,
            is_zeroed: self.is_syncing_little(),
        }))
    }

    fn roll_work(&mut self, bytes: u64) -> UpkeepWork {
        self.upkeep.is_rolling = true;
        let size_limit = self.options.segment_bytes;
        // A log that filled a segment will fill the next; one that is sealed by age stays small.
        let filled = self.active.as_ref().map_or(0, |active| active.segment.position());
        let first = (filled / 8).clamp(FIRST_STEP_BYTES, self.step_max()).min(size_limit).max(bytes);
        UpkeepWork::Roll(RollWork {
            shared: Arc::clone(&self.shared),
            manifest: self.manifest.clone(),
            active: self.active.as_ref().map(|active| Arc::clone(&active.segment)),
            base_offset: self.tail.next_offset,
            needed: bytes,
            end: first,
            is_zeroed: self.is_syncing_little(),
            is_first: self.upkeep.is_new,
        })
    }

    fn retain_work(&self, from: Offset) -> Option<UpkeepWork> {
        let mut manifest = self.manifest.clone();
        let is_gone = |sealed: Option<Sealed>| sealed.is_some_and(|sealed| sealed.end_offset <= from);
        let gone = manifest.segments.iter().take_while(|entry| is_gone(entry.sealed)).count();
        let removed: Vec<SegmentName> = manifest.segments.drain(..gone).map(|entry| entry.name).collect();
        if removed.is_empty() && from <= manifest.log_start {
            return None;
        }
        manifest.log_start = manifest.log_start.max(from);
        Some(UpkeepWork::Retain(RetainWork { shared: Arc::clone(&self.shared), manifest, removed }))
    }

    pub(super) fn is_checkpoint_near(&self) -> bool {
        self.upkeep.is_checkpoint_due
            || self.upkeep.synced_bytes >= self.options.checkpoint_interval_bytes / 2
    }

    /// `is_behind` if it is to say so for what is about to be appended.
    fn checkpoint_work(&mut self, is_behind: bool) -> CheckpointWork {
        let checkpoint = Checkpoint {
            high_watermark: self.high_watermark(),
            is_synced: self.options.is_synced && self.durable.next_offset >= self.acked_unsynced_to,
            is_behind: is_behind || self.durable.next_offset < self.behind_to,
            ..self.durable
        };
        // From here on: what is appended while it is being written would be taken for caught up by a checkpoint before it.
        self.upkeep.is_behind_noted &= checkpoint.is_behind;
        let durable = self.durable.next_offset;
        let producers = self.producers.take_if(|known| known.covers <= durable);
        CheckpointWork {
            checkpoint,
            epochs: self.epochs.clone(),
            indexes: self.unstored_indexes(),
            producers,
        }
    }

    /// The indexes, up to the durable end, that are not in their files.
    fn unstored_indexes(&self) -> Vec<IndexToStore> {
        let mut indexes = Vec::new();
        for segment in self.shared.segments().iter() {
            let is_active = self.active.as_ref().is_some_and(|active| Arc::ptr_eq(&active.segment, segment));
            let mut sealed = segment.sealed();
            if self.durable.segment_serial == segment.name().serial {
                (sealed.end_offset, sealed.len) = (self.durable.next_offset, self.durable.position);
            } else if segment.end() > self.durable.next_offset || segment.position() == 0 {
                continue;
            }
            if let Some(index) = segment.unstored_index(sealed.len) {
                let is_final = !is_active && sealed.len == segment.position();
                indexes.push(IndexToStore { segment: Arc::clone(segment), sealed, index, is_final });
            }
        }
        indexes
    }

    fn synced(&mut self, point: Checkpoint, bytes: u64, result: io::Result<()>) -> Completed {
        self.flush.is_under_way = false;
        if let Err(error) = result {
            let reason = self.poison("sync", &error);
            return Completed { poisoned: Some((*reason).clone()), ..Completed::default() };
        }
        assert!(point.next_offset > self.durable.next_offset, "a sync covers what was unsynced");
        if self.durable.next_offset < self.acked_unsynced_to && self.acked_unsynced_to <= point.next_offset {
            // What the checkpoint on disk says of the log is over.
            self.upkeep.is_checkpoint_due = true;
        }
        self.durable = point;
        self.flush.unsynced_bytes -= bytes;
        self.flush.average_bytes = match self.flush.average_bytes {
            0 => bytes,
            average => (average * 7 + bytes) / 8,
        };
        self.flush.sealed.retain(|unsynced| unsynced.end > point.next_offset);
        self.upkeep.synced_bytes += bytes;
        if self.upkeep.synced_bytes >= self.options.checkpoint_interval_bytes {
            self.upkeep.is_checkpoint_due = true;
        }
        Completed { durable_end: Some(point.next_offset), ..Completed::default() }
    }

    fn kept_up(&mut self, result: Result<UpkeepDone, Failure>) -> Completed {
        self.upkeep.is_under_way = false;
        match result {
            Ok(done) => {
                self.upkeep.is_marked_clean = false;
                self.upkeep_done(done)
            }
            Err(failure) => self.upkeep_failed(failure),
        }
    }

    fn upkeep_done(&mut self, done: UpkeepDone) -> Completed {
        let mut completed = Completed::default();
        match done {
            UpkeepDone::Opened { file, writable } => {
                let active = self.active.as_mut().expect("the job opened it");
                active.segment.set_file(&file);
                active.writable = writable;
                active.file = Some(file);
                self.upkeep.space = None;
                completed.space = true;
            }
            UpkeepDone::Grown { end } => {
                self.active.as_mut().expect("the job let it grow").writable = end;
                self.has_space();
                completed.space = true;
            }
            UpkeepDone::Rolled { manifest, name, file, writable } => {
                self.manifest = manifest;
                self.upkeep.is_cut_unstored = false;
                // A log that acknowledges before it syncs says so on disk from its first record on.
                self.upkeep.is_checkpoint_due |= self.upkeep.is_new && !self.options.is_synced;
                self.upkeep.is_new = false;
                self.upkeep.is_rolling = false;
                self.upkeep.is_seal_due = false;
                self.rolled(name, file, writable);
                self.has_space();
                completed.space = true;
            }
            UpkeepDone::Retained { manifest, removed } => {
                self.shared.drop_segments(removed, manifest.log_start);
                self.epochs.forget_before(manifest.log_start);
                completed.log_start = Some(manifest.log_start);
                self.manifest = manifest;
                self.upkeep.is_cut_unstored = false;
            }
            UpkeepDone::Compacted { manifest, replaced } => {
                self.manifest = manifest;
                self.compaction_listed(replaced);
                self.upkeep.is_cut_unstored = false;
                // Segments end elsewhere now: retention chooses again.
                self.upkeep.retain_from.take_if(|_| self.upkeep.is_segment_end);
            }
            UpkeepDone::Marked { manifest } => {
                self.manifest = manifest;
                self.upkeep.is_cut_unstored = false;
                completed.space = true;
            }
            UpkeepDone::Cut(done) => {
                completed.cut = Some(self.was_cut(*done));
                completed.space = true;
            }
            UpkeepDone::CutNothing => {
                self.upkeep.cut = None;
                completed.cut = Some(self.tail.next_offset);
                completed.space = true;
            }
            UpkeepDone::CutRefused => {
                self.upkeep.cut = None;
                completed.is_cut_refused = true;
                completed.space = true;
            }
            UpkeepDone::Judged(Verdict::Suspect(why)) => self.suspicion = self.suspicion.and(why),
            UpkeepDone::Judged(Verdict::Trusted) => self.suspicion = Suspicion::default(),
            UpkeepDone::Checkpointed { checkpoint, stored } => {
                stored.iter().for_each(|segment| segment.index_was_stored());
                self.upkeep.checkpoint = checkpoint.next_offset;
                self.upkeep.certain_high_watermark = checkpoint.high_watermark;
                self.upkeep.is_checkpoint_refused = false;
                self.upkeep.is_behind_noted = checkpoint.is_behind;
                completed.space = checkpoint.is_behind;
                self.upkeep.synced_bytes = 0;
            }
        }
        completed
    }

    fn has_space(&mut self) {
        // What was asked for meanwhile is asked for again, in view of what there is now.
        self.upkeep.space = None;
        self.upkeep.refusal = None;
        self.upkeep.is_refused_ahead = false;
        // The little that an append needs may still fit when the disk is all but full.
        self.upkeep.is_refusal_said &= self.upkeep.is_for_append;
    }

    /// Appends go on in a new segment.
    fn rolled(&mut self, name: SegmentName, file: Arc<dyn DiskFile>, writable: u64) {
        if let Some(Active { segment, file: Some(file), .. }) = self.active.take()
            && segment.end() > self.durable.next_offset
        {
            self.flush.sealed.push(Unsynced { file, end: segment.end() });
        }
        let options = &self.options;
        let written = self.shared.written();
        let segment =
            Segment::new(name, options.segment_bytes.max(writable), options.index_interval_bytes, written);
        let segment = Arc::new(segment);
        segment.set_file(&file);
        self.shared.push_segment(Arc::clone(&segment));
        self.active = Some(Active { segment, file: Some(file), writable });
    }

    fn upkeep_failed(&mut self, failure: Failure) -> Completed {
        let Failure { operation, error, kind } = failure;
        let refusal = match kind {
            FailureKind::DiskFull => {
                // It needs room before it makes any.
                self.put_off_compaction();
                AppendErrorKind::DiskFull
            }
            FailureKind::Exhausted => AppendErrorKind::Exhausted(format!("{operation}: {error}")),
            FailureKind::Fatal => {
                let reason = self.poison(operation, &error);
                // What a cut that failed left is not known, and it is not tried again.
                self.upkeep.cut = None;
                return Completed { poisoned: Some((*reason).clone()), space: true, ..Completed::default() };
            }
        };
        // Said once, however often it is tried again until there is space.
        if !std::mem::replace(&mut self.upkeep.is_refusal_said, true) {
            tracing::warn!(log = %self.shared.dir.display(), operation, %error, "file work is put off");
        }
        self.upkeep.is_rolling = false;
        // An append is told of the attempt that was made for it, and has one made if that was none.
        self.upkeep.refusal = self.upkeep.is_for_append.then_some(refusal);
        self.upkeep.is_refused_ahead = true;
        // Not at once again: the next interval is soon enough.
        self.upkeep.synced_bytes = 0;
        Completed { space: true, ..Completed::default() }
    }

    fn is_syncing_little(&self) -> bool {
        // What waits for a sync counts too: a log that is not synced, or rarely, gains nothing from zeros.
        self.flush.average_bytes.max(self.flush.unsynced_bytes) < SMALL_SYNC_BYTES
    }

    fn step_max(&self) -> u64 {
        if self.is_syncing_little() { ZERO_STEP_BYTES_MAX } else { STEP_BYTES_MAX }
    }
}
