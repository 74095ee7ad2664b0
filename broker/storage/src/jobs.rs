//! What is done to files away from the owner's thread: each job takes what it needs along, blocks on the disk, and
//! brings back what the log is to know.

mod compact;
mod cut;

use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;

use quire_protocol::ids::Offset;
use rustix::io::Errno;

use crate::checkpoint::{self, Checkpoint};
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::epochs::EpochCache;
use crate::error::CloseError;
use crate::index::SegmentIndex;
use crate::manifest::{Manifest, Sealed, SegmentEntry, SegmentFile, SegmentName};
use crate::producers::ProducerSnapshot;
use crate::recovery;
use crate::segment::Segment;
use crate::shared::Shared;
use crate::small_file::{self, ReplaceError};
use crate::suspicion::Suspicion;
use crate::unwritten;

pub(crate) use compact::{Compaction, Plan, Source, StepError, Stepped, SwapWork, Written};
pub(crate) use cut::{CutDone, CutTo, CutWork};

/// Zeros written with one call (bytes).
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// File work of one log. Dropping it unrun leaves the log waiting for it for ever.
#[derive(Debug)]
#[must_use]
pub struct Job {
    task: Task,
}

/// What a job does, for scheduling and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobKind {
    /// Syncs appended frames.
    Sync,
    /// Opens the active segment's file again.
    Open,
    /// Allocates space in the active segment.
    Grow,
    /// Seals the active segment and creates the next.
    Roll,
    /// Deletes segments.
    Retain,
    /// Writes a checkpoint and indexes.
    Checkpoint,
    /// Cuts the log's end off, or all of it.
    Cut,
    /// Notes what is held against the replica, or that nothing is.
    Judge,
    /// Does a part of a compaction, which may take long: it is for its owner to see that no sync waits behind it.
    Compact,
    /// Lists compacted segments in the place of others.
    Swap,
    /// Notes that the log holds frames which its leader compacted.
    Mark,
}

/// The result of a job, for [`crate::Log::complete`].
#[derive(Debug)]
#[must_use]
pub struct JobDone {
    pub(crate) outcome: Outcome,
}

#[derive(Debug)]
enum Task {
    Sync(SyncWork),
    Upkeep(Place, UpkeepWork),
    Compact(Box<Compaction>),
    GiveUp(Box<Compaction>),
    /// Files that a compaction replaced, or wrote before it was given up.
    Remove(Place, Vec<SegmentName>),
}

#[derive(Debug)]
pub(crate) enum Outcome {
    Synced { point: Checkpoint, bytes: u64, result: io::Result<()> },
    Upkeep { result: Result<UpkeepDone, Failure> },
    Compacted { result: Result<Stepped, StepError> },
}

/// Where upkeep is done.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) is_marked_clean: bool,
}

#[derive(Debug)]
pub(crate) struct SyncWork {
    pub(crate) shared: Arc<Shared>,
    /// In the order in which they were written.
    pub(crate) files: Vec<Arc<dyn DiskFile>>,
    /// What is synced once all of them are.
    pub(crate) point: Checkpoint,
    pub(crate) bytes: u64,
}

#[derive(Debug)]
pub(crate) enum UpkeepWork {
    Open(OpenWork),
    Grow(GrowWork),
    Roll(RollWork),
    Retain(RetainWork),
    Checkpoint(CheckpointWork),
    Cut(CutWork),
    /// Nothing lies beyond the cut.
    CutNothing,
    Judge(Verdict),
    Swap(SwapWork),
    /// This manifest differs in what it says of compaction alone.
    Mark(Manifest),
}

/// What becomes of what is held against a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// This is held against it as well.
    Suspect(Suspicion),
    /// Nothing is.
    Trusted,
}

#[derive(Debug)]
pub(crate) struct OpenWork {
    pub(crate) shared: Arc<Shared>,
    pub(crate) segment: Arc<Segment>,
}

#[derive(Debug)]
pub(crate) struct GrowWork {
    pub(crate) file_name: String,
    /// Allocated so far; nothing beyond is written meanwhile.
    pub(crate) from: u64,
    /// Contents that wait need space up to here.
    pub(crate) needed: u64,
    pub(crate) end: u64,
    pub(crate) is_zeroed: bool,
}

#[derive(Debug)]
pub(crate) struct RollWork {
    pub(crate) shared: Arc<Shared>,
    pub(crate) manifest: Manifest,
    /// To be sealed where it ends.
    pub(crate) active: Option<Arc<Segment>>,
    pub(crate) base_offset: Offset,
    pub(crate) needed: u64,
    pub(crate) end: u64,
    pub(crate) is_zeroed: bool,
    /// The log never had a segment, and a marker says so.
    pub(crate) is_first: bool,
}

#[derive(Debug)]
pub(crate) struct RetainWork {
    pub(crate) shared: Arc<Shared>,
    /// Without the segments removed.
    pub(crate) manifest: Manifest,
    pub(crate) removed: Vec<SegmentName>,
}

#[derive(Debug)]
pub(crate) struct CheckpointWork {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) epochs: EpochCache,
    pub(crate) indexes: Vec<IndexToStore>,
    /// Covers nothing that is not durable.
    pub(crate) producers: Option<ProducerSnapshot>,
}

#[derive(Debug)]
pub(crate) struct IndexToStore {
    pub(crate) segment: Arc<Segment>,
    /// How much of the segment the index covers.
    pub(crate) sealed: Sealed,
    pub(crate) index: SegmentIndex,
    /// Whether the segment gets no more frames.
    pub(crate) is_final: bool,
}

#[derive(Debug)]
pub(crate) enum UpkeepDone {
    Opened { file: Arc<dyn DiskFile>, writable: u64 },
    Grown { end: u64 },
    Rolled { manifest: Manifest, name: SegmentName, file: Arc<dyn DiskFile>, writable: u64 },
    Retained { manifest: Manifest, removed: usize },
    Checkpointed { checkpoint: Checkpoint, stored: Vec<Arc<Segment>> },
    Cut(Box<CutDone>),
    CutNothing,
    CutRefused,
    Judged(Verdict),
    Compacted { manifest: Manifest, replaced: Vec<SegmentName> },
    Marked { manifest: Manifest },
}

/// Upkeep that was not done.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) operation: &'static str,
    pub(crate) error: io::Error,
    pub(crate) kind: FailureKind,
}

/// What a failure leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// There was no room, and everything is as it was before: it may be tried again.
    DiskFull,
    /// There was no descriptor or no memory, and everything is as it was before: it may be tried again.
    Exhausted,
    /// What is on disk is not known.
    Fatal,
}

impl Job {
    pub(crate) fn sync(work: SyncWork) -> Job {
        Job { task: Task::Sync(work) }
    }

    pub(crate) fn upkeep(place: Place, work: UpkeepWork) -> Job {
        Job { task: Task::Upkeep(place, work) }
    }

    pub(crate) fn compact(compaction: Box<Compaction>) -> Job {
        Job { task: Task::Compact(compaction) }
    }

    pub(crate) fn give_up(compaction: Box<Compaction>) -> Job {
        Job { task: Task::GiveUp(compaction) }
    }

    pub(crate) fn remove(place: Place, names: Vec<SegmentName>) -> Job {
        Job { task: Task::Remove(place, names) }
    }

    /// What it does.
    pub fn kind(&self) -> JobKind {
        match &self.task {
            Task::Sync(_) => JobKind::Sync,
            Task::Upkeep(_, UpkeepWork::Open(_)) => JobKind::Open,
            Task::Upkeep(_, UpkeepWork::Grow(_)) => JobKind::Grow,
            Task::Upkeep(_, UpkeepWork::Roll(_)) => JobKind::Roll,
            Task::Upkeep(_, UpkeepWork::Retain(_)) => JobKind::Retain,
            Task::Upkeep(_, UpkeepWork::Checkpoint(_)) => JobKind::Checkpoint,
            Task::Upkeep(_, UpkeepWork::Cut(_) | UpkeepWork::CutNothing) => JobKind::Cut,
            Task::Upkeep(_, UpkeepWork::Judge(_)) => JobKind::Judge,
            Task::Upkeep(_, UpkeepWork::Swap(_)) => JobKind::Swap,
            Task::Upkeep(_, UpkeepWork::Mark(_)) => JobKind::Mark,
            Task::Compact(_) | Task::GiveUp(_) | Task::Remove(..) => JobKind::Compact,
        }
    }

    /// Frames that it syncs (bytes); 0 if it does something else.
    pub fn synced_bytes(&self) -> u64 {
        match &self.task {
            Task::Sync(work) => work.bytes,
            Task::Upkeep(..) | Task::Compact(_) | Task::GiveUp(_) | Task::Remove(..) => 0,
        }
    }

    /// Bytes of segments that it reads to compact them, about; 0 if it does something else.
    pub fn compacted_bytes(&self) -> u64 {
        match &self.task {
            Task::Compact(_) => Compaction::step_bytes(),
            Task::Sync(_) | Task::Upkeep(..) | Task::GiveUp(_) | Task::Remove(..) => 0,
        }
    }

    /// Does it. Blocks on the disk.
    pub fn run(self) -> JobDone {
        let outcome = match self.task {
            Task::Sync(work) => {
                let result = work.files.iter().try_for_each(|file| file.sync_data());
                if result.is_err() {
                    Suspicion::LOST_WRITES.add_if_possible(&*work.shared.disk, &work.shared.dir);
                }
                Outcome::Synced { point: work.point, bytes: work.bytes, result }
            }
            Task::Upkeep(place, work) => {
                let result = place.run(work);
                if result.as_ref().is_err_and(|failure| failure.kind == FailureKind::Fatal) {
                    Suspicion::LOST_WRITES.add_if_possible(&*place.disk, &place.dir);
                }
                Outcome::Upkeep { result }
            }
            Task::Compact(compaction) => Outcome::Compacted { result: compaction.step() },
            Task::GiveUp(compaction) => {
                compaction.discard();
                Outcome::Compacted { result: Ok(Stepped::GivenUp) }
            }
            Task::Remove(place, names) => {
                names.iter().for_each(|name| recovery::remove_segment(&*place.disk, &place.dir, *name));
                Outcome::Compacted { result: Ok(Stepped::GivenUp) }
            }
        };
        JobDone { outcome }
    }
}

impl JobDone {
    /// For who does not go on with the log.
    pub(crate) fn into_result(self) -> Result<(), CloseError> {
        match self.outcome {
            Outcome::Synced { result, .. } => {
                result.map_err(|source| CloseError::Io { operation: "syncing the log", source })
            }
            Outcome::Upkeep { result: Ok(_) } | Outcome::Compacted { .. } => Ok(()),
            Outcome::Upkeep { result: Err(Failure { operation, error: source, .. }) } => {
                Err(CloseError::Io { operation, source })
            }
        }
    }
}

impl Place {
    fn run(&self, work: UpkeepWork) -> Result<UpkeepDone, Failure> {
        if self.is_marked_clean {
            small_file::remove(&*self.disk, &self.dir, checkpoint::CLEAN_FILE_NAME)
                .map_err(Failure::of("removing the clean marker"))?;
        }
        match work {
            UpkeepWork::Open(work) => self.open(&work),
            UpkeepWork::Grow(work) => self.grow(&work),
            UpkeepWork::Roll(work) => self.roll(work),
            UpkeepWork::Retain(work) => self.retain(work),
            UpkeepWork::Checkpoint(work) => self.checkpoint(work),
            UpkeepWork::Cut(work) => self.cut(work),
            UpkeepWork::CutNothing => Ok(UpkeepDone::CutNothing),
            UpkeepWork::Judge(verdict) => self.judge(verdict),
            UpkeepWork::Swap(work) => self.swap(work),
            UpkeepWork::Mark(manifest) => {
                self.replace_manifest(&manifest)?;
                Ok(UpkeepDone::Marked { manifest })
            }
        }
    }

    fn open(&self, work: &OpenWork) -> Result<UpkeepDone, Failure> {
        let failed = Failure::of("opening the active segment");
        recovery::load_active_index(&work.shared, &work.segment)
            .map_err(Failure::of("reading the active segment"))?;
        let opened = self.disk.open(&self.dir.join(work.segment.file_name()), OpenMode::ReadWrite);
        let (file, writable) = opened
            .and_then(|file| match file.len()? {
                len if len < work.segment.position() => {
                    let what = format!("{} is shorter than what was written to it", work.segment.file_name());
                    Err(io::Error::new(io::ErrorKind::UnexpectedEof, what))
                }
                len => Ok((file, len)),
            })
            .map_err(failed)?;
        Ok(UpkeepDone::Opened { file, writable })
    }

    fn grow(&self, work: &GrowWork) -> Result<UpkeepDone, Failure> {
        let path = self.dir.join(&work.file_name);
        // A descriptor of its own: a lost write is reported once to each descriptor that was open then, and the report
        // that the log's own sync must get is not to be used up here.
        let file =
            self.disk.open(&path, OpenMode::ReadWrite).map_err(Failure::of("opening the active segment"))?;
        self.prepare(&*file, work.from, work.needed, work.end, work.is_zeroed)
            .map(|end| UpkeepDone::Grown { end })
    }

    /// Makes space up to `end`, or `needed` if there is no more. The position up to which there is.
    fn prepare(
        &self,
        file: &dyn DiskFile,
        from: u64,
        needed: u64,
        end: u64,
        is_zeroed: bool,
    ) -> Result<u64, Failure> {
        let end = match file.allocate(end) {
            Err(error) if is_full(&error) && from < needed && needed < end => {
                file.allocate(needed).map(|()| needed)
            }
            allocated => allocated.map(|()| end),
        };
        let end = end.map_err(Failure::of("allocating space"))?;
        if is_zeroed {
            write_zeros(file, from, end).map_err(Failure::of("filling space with zeros"))?;
            file.sync_data().map_err(Failure::of_sync("syncing space filled with zeros"))?;
        }
        Ok(end)
    }

    fn roll(&self, work: RollWork) -> Result<UpkeepDone, Failure> {
        if work.manifest.is_full() {
            let error =
                io::Error::new(io::ErrorKind::StorageFull, "the log has as many segments as it may have");
            return Err(Failure { operation: "adding a segment", error, kind: FailureKind::DiskFull });
        }
        let mut manifest = work.manifest.clone();
        if let Some(active) = &work.active {
            recovery::load_active_index(&work.shared, active)
                .map_err(Failure::of("reading the active segment"))?;
            let last = manifest.segments.last_mut().expect("the active segment is listed");
            *last = active.sealed_entry();
        }
        let name = SegmentName { base_offset: work.base_offset, serial: manifest.next_serial };
        manifest.next_serial += 1;
        manifest.segments.push(SegmentEntry { name, sealed: None, is_compacted: false });
        let file = self.create_segment(name)?;
        let writable = self.prepare(&*file, 0, work.needed, work.end, work.is_zeroed).inspect_err(|_| {
            // Not listed anywhere yet; if it stays, recovery removes it.
            let _ = self.disk.remove(&self.dir.join(name.file(SegmentFile::Log)));
        })?;
        // A manifest that lists a segment must not be durable before the segment's name is.
        self.disk.sync_dir(&self.dir).map_err(Failure::of_sync("syncing the log's directory"))?;
        self.replace_manifest(&manifest)?;
        if work.is_first {
            // Not to be taken for the whole truth should the manifest ever be lost.
            unwritten::remove(&*self.disk, &self.dir, manifest.partition).map_err(|error| Failure {
                operation: "removing the marker of an unwritten log",
                error,
                kind: FailureKind::Fatal,
            })?;
        }
        Ok(UpkeepDone::Rolled { manifest, name, file, writable })
    }

    fn create_segment(&self, name: SegmentName) -> Result<Arc<dyn DiskFile>, Failure> {
        let path = self.dir.join(name.file(SegmentFile::Log));
        let created = match self.disk.open(&path, OpenMode::CreateNew) {
            // Left by an attempt that found the disk full later on.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.disk.remove(&path).and_then(|()| self.disk.open(&path, OpenMode::CreateNew))
            }
            created => created,
        };
        created.map_err(Failure::of("creating a segment"))
    }

    /// A lack of anything is survived only if the old manifest is certainly still there.
    fn replace_manifest(&self, new: &Manifest) -> Result<(), Failure> {
        new.replace(&*self.disk, &self.dir).map_err(|ReplaceError { error, is_unchanged }| {
            let kind = if is_unchanged { FailureKind::of(&error) } else { FailureKind::Fatal };
            Failure { operation: "replacing the manifest", error, kind }
        })
    }

    fn retain(&self, work: RetainWork) -> Result<UpkeepDone, Failure> {
        let RetainWork { shared, manifest, removed } = work;
        self.replace_manifest(&manifest).or_else(|failure| {
            if failure.kind != FailureKind::DiskFull {
                return Err(failure);
            }
            // Not one block is left: what can be rebuilt makes room for the manifest that frees the rest.
            removed.iter().for_each(|name| recovery::remove_indexes(&*self.disk, &self.dir, *name));
            self.replace_manifest(&manifest)
        })?;
        // Before any file goes, so that a reader that misses one learns why.
        shared.raise_log_start(manifest.log_start);
        for name in &removed {
            recovery::remove_segment(&*self.disk, &self.dir, *name);
        }
        Ok(UpkeepDone::Retained { manifest, removed: removed.len() })
    }

    fn checkpoint(&self, work: CheckpointWork) -> Result<UpkeepDone, Failure> {
        let (disk, dir) = (&*self.disk, self.dir.as_path());
        for IndexToStore { segment, sealed, index, .. } in &work.indexes {
            index.store(disk, dir, segment.name(), sealed).map_err(Failure::of("writing an index"))?;
        }
        if let Some(producers) = &work.producers {
            producers.store(disk, dir).map_err(Failure::of("writing what is known of the producers"))?;
        }
        work.epochs.store(disk, dir).map_err(Failure::of("writing the leader epochs"))?;
        work.checkpoint.store(disk, dir).map_err(Failure::of("writing a checkpoint"))?;
        let stored = work.indexes.into_iter().filter(|index| index.is_final).map(|index| index.segment);
        Ok(UpkeepDone::Checkpointed { checkpoint: work.checkpoint, stored: stored.collect() })
    }

    fn judge(&self, verdict: Verdict) -> Result<UpkeepDone, Failure> {
        let (disk, dir) = (&*self.disk, self.dir.as_path());
        let noted = match verdict {
            Verdict::Suspect(why) => why.add(disk, dir).map(drop),
            Verdict::Trusted => Suspicion::remove(disk, dir),
        };
        noted.map_err(Failure::of("noting what is held against the replica"))?;
        Ok(UpkeepDone::Judged(verdict))
    }
}

impl Failure {
    /// A failure before anything changed that matters: a lack of anything is survived.
    fn of(operation: &'static str) -> impl FnOnce(io::Error) -> Failure {
        move |error| Failure { operation, kind: FailureKind::of(&error), error }
    }

    /// A sync failed: what it should have covered may be lost, unless there was no descriptor to sync with.
    fn of_sync(operation: &'static str) -> impl FnOnce(io::Error) -> Failure {
        move |error| {
            let is_untried = matches!(Errno::from_io_error(&error), Some(Errno::MFILE | Errno::NFILE));
            let kind = if is_untried { FailureKind::Exhausted } else { FailureKind::Fatal };
            Failure { operation, kind, error }
        }
    }
}

impl FailureKind {
    fn of(error: &io::Error) -> FailureKind {
        match Errno::from_io_error(error) {
            _ if is_full(error) => FailureKind::DiskFull,
            Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => FailureKind::Exhausted,
            _ => FailureKind::Fatal,
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::StorageFull
}

fn write_zeros(file: &dyn DiskFile, from: u64, end: u64) -> io::Result<()> {
    let mut position = from;
    while position < end {
        let len = (end - position).min(ZEROS.len() as u64);
        file.write_at(position, &[IoSlice::new(&ZEROS[..len as usize])])?;
        position += len;
    }
    Ok(())
}
