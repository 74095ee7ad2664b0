//! The owner's side of a partition's log: appending, and keeping account of what is durable.
//!
//! ```text
//!   log start        high watermark      durable end        end
//!   ├──────────────────────┼──────────────────┼──────────────┤
//!   │ readable             │ synced here      │ written      │
//! ```
//! Always log start ≤ high watermark ≤ end and durable end ≤ end. Only a successful sync moves the durable end. What an
//! append needs of the file system beyond the write itself was done before, ahead of need, by a job.

mod compacting;
mod replica;
mod work;

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use quire_protocol::batch::{self, BatchHeader, TimestampType};
use quire_protocol::frame::{self, Chain, Digest, FrameHeader, Placement};
use quire_protocol::ids::{LeaderEpoch, Offset, Timestamp, TopicPartition};
use quire_protocol::limits;

use crate::checkpoint::Checkpoint;
use crate::disk::{Disk, DiskFile};
use crate::epochs::EpochCache;
use crate::error::{AppendError, AppendErrorKind, CloseError, OpenError};
use crate::jobs::Verdict;
use crate::manifest::{Manifest, SEGMENT_LEN_MAX};
use crate::poison::{Poison, PoisonReason};
use crate::producers::ProducerSnapshot;
use crate::reader::LogReader;
use crate::recovery::{self, Absent, Corruption, Recovered, RecoveryReport};
use crate::segment::Segment;
use crate::shared::Shared;
use crate::suspicion::Suspicion;

use compacting::Compacting;
use work::{Flush, SpaceWanted, Upkeep};

pub use compacting::CompactionSettings;
pub use work::{Completed, Want};

/// How a log is kept. Changes take effect from the next segment on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOptions {
    /// A segment is sealed before an append would take it beyond this size (bytes).
    pub segment_bytes: u64,
    /// One index entry for about this many bytes of log.
    pub index_interval_bytes: u64,
    /// A checkpoint after about this many synced bytes: more is never read by recovery.
    pub checkpoint_interval_bytes: u64,
    /// What of a batch goes into the chain.
    pub digest: Digest,
    /// Retention seals an active segment whose first frame is older than this (ms).
    pub segment_age_ms: u64,
    /// Whether nothing is acknowledged before it is synced. If not, an unclean stop makes the replica suspect.
    pub is_synced: bool,
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        LogOptions {
            segment_bytes: limits::SEGMENT_BYTES_DEFAULT,
            index_interval_bytes: limits::INDEX_INTERVAL_BYTES,
            checkpoint_interval_bytes: limits::CHECKPOINT_INTERVAL_BYTES,
            digest: Digest::Crc32c,
            segment_age_ms: 7 * 24 * 3600 * 1000,
            is_synced: true,
        }
    }
}

/// A checked batch that is to be appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBatch {
    /// Parsed from `bytes`.
    pub header: BatchHeader,
    /// The whole batch.
    pub bytes: Vec<u8>,
}

/// What the leader knows when it appends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppendContext {
    /// The current leadership, not before that of the last frame.
    pub leader_epoch: LeaderEpoch,
    /// The leader's clock. Frames get the last frame's time if this is earlier.
    pub now: Timestamp,
    /// The high watermark, which the frames carry as their durable floor.
    pub high_watermark: Offset,
    /// Whose clock the records' timestamps come from.
    pub timestamp_type: TimestampType,
}

/// One partition's log, owned by one thread.
#[derive(Debug)]
pub struct Log {
    shared: Arc<Shared>,
    options: LogOptions,
    /// As it is on disk, unless recovery found no room for it.
    manifest: Manifest,
    /// The last segment, if it is not sealed.
    active: Option<Active>,
    /// The point after the last frame appended.
    tail: Checkpoint,
    /// Whether the chain there is known: it is not where a log began anew in the middle of its leader's.
    is_chain_known: bool,
    /// The point after the last frame synced.
    durable: Checkpoint,
    /// Records before it may have been acknowledged before they were synced.
    acked_unsynced_to: Offset,
    /// Frames before it were appended when what their durable floor says was not synced here yet.
    behind_to: Offset,
    epochs: EpochCache,
    flush: Flush,
    upkeep: Upkeep,
    compacting: Compacting,
    poison: Poison,
    corruption: Option<Corruption>,
    /// A reader found damage, now or in an earlier process.
    is_marked_corrupt: bool,
    /// What is held against the replica.
    suspicion: Suspicion,
    /// What the owner knew of the producers last, for the next checkpoint that covers as much.
    producers: Option<ProducerSnapshot>,
    /// Up to where the owner told what it knows of the producers.
    producers_told_to: Offset,
}

/// The segment that is written.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) segment: Arc<Segment>,
    /// `None` while the log is idle.
    pub(crate) file: Option<Arc<dyn DiskFile>>,
    /// Bytes of the file that may be written: space was allocated up to here.
    pub(crate) writable: u64,
}

impl Log {
    /// Opens the log in `dir`, and recovers it if it was not closed in order. Heavy then: up to a checkpoint interval
    /// is read, written and synced. Where there is none, a new one is created: when this returns, its directory and an
    /// empty manifest are durable. An owner that remembers so from then on opens it with [`Log::open_existing`].
    ///
    /// # Errors
    /// If files are missing or damaged in a way that leaves unknown what the log holds, or the disk refuses. A damaged
    /// record is no error: the log opens, and [`Log::corruption`] tells.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        partition: TopicPartition,
        options: LogOptions,
    ) -> Result<(Log, RecoveryReport), OpenError> {
        let recovered = recovery::recover(disk, dir, partition, &options, Absent::Created)?;
        Ok(Log::from_recovered(recovered, options))
    }

    /// As [`Log::open`], for a log that was opened here before: a directory without one has lost it.
    ///
    /// # Errors
    /// As [`Log::open`], and [`OpenError::Missing`].
    pub fn open_existing(
        disk: Arc<dyn Disk>,
        dir: &Path,
        partition: TopicPartition,
        options: LogOptions,
    ) -> Result<(Log, RecoveryReport), OpenError> {
        let recovered = recovery::recover(disk, dir, partition, &options, Absent::Refused)?;
        Ok(Log::from_recovered(recovered, options))
    }

    fn from_recovered(recovered: Recovered, options: LogOptions) -> (Log, RecoveryReport) {
        let Recovered {
            shared,
            manifest,
            active,
            tail,
            epochs,
            checkpoint,
            is_marked_clean,
            is_cut_unstored,
            is_new,
            report,
        } = recovered;
        // A leadership that had not written yet when the log was closed.
        let latest = epochs.latest().map_or(tail.leader_epoch, |latest| latest.epoch);
        let tail = Checkpoint { leader_epoch: tail.leader_epoch.max(latest), ..tail };
        let high_watermark = shared.high_watermark();
        let log = Log {
            shared,
            options,
            manifest,
            active,
            tail,
            is_chain_known: tail.known_chain().is_some(),
            durable: tail,
            acked_unsynced_to: Offset::ZERO,
            behind_to: Offset::ZERO,
            epochs,
            flush: Flush::default(),
            upkeep: Upkeep::new(is_marked_clean, is_cut_unstored, is_new, checkpoint, high_watermark),
            compacting: Compacting::default(),
            poison: Poison::default(),
            corruption: report.corruption.clone(),
            is_marked_corrupt: report.suspicion.is_damaged && report.corruption.is_none(),
            suspicion: report.suspicion,
            producers: None,
            producers_told_to: tail.next_offset,
        };
        (log, report)
    }

    /// Frames batches and writes them with one call; returns their headers, in order. They are readable once the high
    /// watermark passed them. All of them are appended or none; together they go into one segment, which exceeds its
    /// configured size if they do.
    ///
    /// # Errors
    /// Gives the batches back, with the reason.
    ///
    /// # Panics
    /// If a header is not its batch's, the epoch is older than the last frame's, the high watermark is beyond the end,
    /// or the batches together exceed the largest segment.
    pub fn append(
        &mut self,
        mut batches: Vec<NewBatch>,
        at: AppendContext,
    ) -> Result<Vec<FrameHeader>, AppendError> {
        assert!(at.leader_epoch >= self.tail.leader_epoch, "a leader appends in its own epoch");
        assert!(at.high_watermark <= self.tail.next_offset, "the high watermark is within the log");
        if batches.is_empty() {
            return Ok(Vec::new());
        }
        let records = batches.iter().map(|batch| u64::from(batch.header.last_offset_delta) + 1).sum();
        let bytes = batches.iter().map(|batch| (frame::HEADER_LEN + batch.bytes.len()) as u64).sum();
        match self.prepare(bytes, records).and_then(|file| self.write(&*file, &mut batches, &at)) {
            Ok(frames) => Ok(frames),
            Err(kind) => Err(AppendError { kind, batches }),
        }
    }

    /// Assigns a leadership to the log's end, before anything is appended in it. Durable with the next checkpoint.
    pub fn start_epoch(&mut self, leader_epoch: LeaderEpoch) {
        assert!(leader_epoch >= self.tail.leader_epoch, "leader epochs never decrease");
        if self.enter_epoch(leader_epoch, self.tail.next_offset) {
            self.upkeep.is_checkpoint_due = true;
        }
    }

    /// Has the next job write a checkpoint, unless the last one covers all that is synced. Damage below a checkpoint is
    /// never taken for a torn tail. It costs the syncs of a few small files.
    pub fn request_checkpoint(&mut self) {
        if self.durable.next_offset > self.upkeep.checkpoint {
            self.upkeep.is_checkpoint_due = true;
        }
    }

    /// Makes everything below `high_watermark` readable; a lower one than before changes nothing.
    ///
    /// # Panics
    /// If it is outside the log.
    pub fn set_high_watermark(&mut self, high_watermark: Offset) {
        assert!(high_watermark >= self.shared.log_start(), "the high watermark is not below the log start");
        assert!(high_watermark <= self.tail.next_offset, "the high watermark is not beyond the log end");
        self.shared.raise_high_watermark(high_watermark);
    }

    /// A handle for reading, from any thread.
    pub fn reader(&self) -> LogReader {
        LogReader::new(Arc::clone(&self.shared))
    }

    /// Changes how the log is kept from now on.
    pub fn set_options(&mut self, options: LogOptions) {
        if options.is_synced != self.options.is_synced {
            // The next recovery goes by the checkpoint to tell whether acknowledged records can be missing.
            self.upkeep.is_checkpoint_due = true;
            self.acked_unsynced_to = self.tail.next_offset;
        }
        self.options = options;
    }

    /// The first offset in the log.
    pub fn start_offset(&self) -> Offset {
        self.shared.log_start()
    }

    /// The next offset to be written.
    pub fn end_offset(&self) -> Offset {
        self.tail.next_offset
    }

    /// The offset after the last record that a successful sync covered.
    pub fn durable_end(&self) -> Offset {
        self.durable.next_offset
    }

    /// The first offset not yet committed, as last set.
    pub fn high_watermark(&self) -> Offset {
        self.shared.high_watermark()
    }

    /// The append time of the last frame ever appended.
    pub fn last_append_time(&self) -> Timestamp {
        self.tail.last_append_time
    }

    /// The latest leadership that the log knows of.
    pub fn leader_epoch(&self) -> LeaderEpoch {
        self.tail.leader_epoch
    }

    /// The chain up to the log's end.
    pub fn chain(&self) -> Chain {
        self.tail.chain
    }

    /// As [`Log::chain`]; `None` if it is not known: the log began anew in the middle of its leader's, and has no frame yet.
    pub fn known_chain(&self) -> Option<Chain> {
        self.is_chain_known.then_some(self.tail.chain)
    }

    /// Bytes of frames in the log.
    pub fn size_bytes(&self) -> u64 {
        self.shared.size_bytes()
    }

    /// Bytes of frames that no successful sync covered yet.
    pub fn unsynced_bytes(&self) -> u64 {
        self.flush.unsynced_bytes
    }

    /// Where each leadership began.
    pub fn epochs(&self) -> &EpochCache {
        &self.epochs
    }

    /// Why the log refuses writes, if a write or a sync failed.
    pub fn poisoned(&self) -> Option<&PoisonReason> {
        self.poison.reason().map(|reason| &**reason)
    }

    /// Whether a write or a sync failed.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned().is_some()
    }

    /// Whether [`Log::restart_at`] makes good a failed write or sync: not where the log had no file yet, and it is not known
    /// what is there.
    pub fn can_begin_anew(&self) -> bool {
        !self.upkeep.is_new
    }

    /// What is damaged, if recovery found records damaged that were on disk.
    pub fn corruption(&self) -> Option<&Corruption> {
        self.corruption.as_ref()
    }

    /// Whether records that were on disk are damaged: recovery found it, or a reader and [`Log::mark_corrupt`] told.
    pub fn is_corrupt(&self) -> bool {
        self.corruption.is_some() || self.is_marked_corrupt
    }

    /// Takes note of damage that a reader found: nothing is appended any more, and the log is not closed as clean. The
    /// next job notes it on disk, so that the next open knows of damage that recovery would not come across.
    pub fn mark_corrupt(&mut self) {
        self.is_marked_corrupt = true;
        self.upkeep.verdict = Some(Verdict::Suspect(Suspicion::DAMAGED));
    }

    /// What is held against this replica: found by recovery, or noted by an earlier process and not taken back yet.
    pub fn suspicion(&self) -> Suspicion {
        self.suspicion
    }

    /// The replica has everything that its leader committed, by the controller's decision: nothing is held against it any
    /// more, once the next job is done. Damage stays until the log begins anew.
    pub fn trust(&mut self) {
        if self.suspicion.is_any() && !self.is_corrupt() {
            self.upkeep.verdict = Some(Verdict::Trusted);
        }
    }

    /// Whether the next checkpoint is near and the owner knows more of the producers than it told.
    pub fn wants_producers(&self) -> bool {
        self.producers_told_to < self.tail.next_offset && self.is_checkpoint_near()
    }

    /// What the owner knows of the producers at the log's end, for the next checkpoint after all of it is durable, or for
    /// the end if the log is closed next.
    ///
    /// # Panics
    /// If it is longer than the limit.
    pub fn keep_producers(&mut self, bytes: Bytes) {
        assert!(bytes.len() <= limits::PRODUCER_SNAPSHOT_BYTES_MAX, "no owner knows as much");
        self.producers_told_to = self.tail.next_offset;
        self.producers = Some(ProducerSnapshot { covers: self.tail.next_offset, bytes });
    }

    /// Gives back the descriptor and the maps of a log that is not in use, and asks for a checkpoint of it. The next
    /// append makes a job open it again. Does nothing while something is unsynced or a job is under way.
    pub fn rest(&mut self) {
        if self.flush.unsynced_bytes > 0 || self.flush.is_under_way || self.upkeep.is_under_way {
            return;
        }
        if let Some(active) = &mut self.active {
            active.file = None;
        }
        self.shared.release_files();
        self.request_checkpoint();
    }

    /// Syncs everything, writes a checkpoint and the indexes, and marks the log clean. Blocks on the disk. Readers keep
    /// what they have.
    ///
    /// # Errors
    /// If the log can not be marked clean: it is recovered at the next open.
    pub fn close(mut self) -> Result<(), CloseError> {
        if self.flush.is_under_way || self.upkeep.is_under_way || self.compacting.is_under_way {
            return Err(CloseError::JobUnderWay);
        }
        self.drop_compaction();
        if let Some(reason) = self.poison.reason() {
            return Err(CloseError::Poisoned(Arc::clone(reason)));
        }
        if self.is_corrupt() {
            self.remove_clean_marker()?;
            if let Some(Verdict::Suspect(why)) = self.upkeep.verdict {
                why.add_if_possible(&*self.shared.disk, &self.shared.dir);
            }
            return Err(CloseError::Corrupt);
        }
        self.finish()
    }

    /// The file to write to, if so many bytes with so many offsets can be written now.
    fn prepare(&mut self, bytes: u64, records: u64) -> Result<Arc<dyn DiskFile>, AppendErrorKind> {
        if let Some(reason) = self.poison.reason() {
            return Err(AppendErrorKind::Poisoned(Arc::clone(reason)));
        }
        if self.is_corrupt() {
            return Err(AppendErrorKind::Corrupt);
        }
        if self.is_cutting() {
            return Err(AppendErrorKind::NoSpaceYet);
        }
        if self.tail.next_offset.checked_add(records).is_none() {
            return Err(AppendErrorKind::OffsetsExhausted);
        }
        assert!(bytes <= SEGMENT_LEN_MAX, "an append fits a segment");
        match self.space_for(bytes, records) {
            Ok(file) => Ok(file),
            Err(wanted) => match self.upkeep.refusal.take() {
                // Said once; the next append has another attempt made.
                Some(refusal) => Err(refusal),
                None => {
                    // A roll under way makes the space, and another one after it would leave an empty segment.
                    self.upkeep.space = Some(wanted).filter(|_| !self.upkeep.is_rolling);
                    Err(AppendErrorKind::NoSpaceYet)
                }
            },
        }
    }

    /// The file, if it has room for so many bytes and offsets; otherwise what has to be done to get it.
    fn space_for(&self, bytes: u64, records: u64) -> Result<Arc<dyn DiskFile>, SpaceWanted> {
        let Some(active) = self.active.as_ref().filter(|_| !self.upkeep.is_rolling) else {
            return Err(SpaceWanted::Roll { bytes });
        };
        let Some(file) = &active.file else {
            return Err(SpaceWanted::Open);
        };
        let position = active.segment.position();
        if position > 0 && !active.segment.takes(bytes, records, self.tail.next_offset) {
            return Err(SpaceWanted::Roll { bytes });
        }
        if position + bytes > active.writable {
            return Err(SpaceWanted::Grow { end: position + bytes });
        }
        Ok(Arc::clone(file))
    }

    fn write(
        &mut self,
        file: &dyn DiskFile,
        batches: &mut [NewBatch],
        at: &AppendContext,
    ) -> Result<Vec<FrameHeader>, AppendErrorKind> {
        let active = self.active.as_ref().expect("space was found in it");
        let position = active.segment.position();
        let frames = self.seal(batches, at);
        let headers: Vec<_> = frames.iter().map(FrameHeader::encode).collect();
        let slices: Vec<_> = headers
            .iter()
            .zip(batches.iter())
            .flat_map(|(header, batch)| [IoSlice::new(header), IoSlice::new(&batch.bytes)])
            .collect();
        if let Err(error) = file.write_at(position, &slices) {
            return Err(self.write_failed(file, position, &error));
        }
        self.appended(&frames);
        Ok(frames)
    }

    /// Stamps and seals batches as the frames that follow the log's end.
    fn seal(&self, batches: &mut [NewBatch], at: &AppendContext) -> Vec<FrameHeader> {
        let append_time = at.now.max(self.tail.last_append_time);
        // What is committed before it is synced proves nothing about the disk.
        let durable_floor = at.high_watermark.min(self.durable.next_offset);
        let (mut base_offset, mut chain) = (self.tail.next_offset, self.tail.chain);
        let seal = |batch: &mut NewBatch| {
            if at.timestamp_type == TimestampType::LogAppendTime {
                batch::set_append_time(&mut batch.bytes, append_time);
                batch.header = BatchHeader::parse(&batch.bytes).expect("only its timestamp changed");
            }
            let placement = Placement {
                base_offset,
                leader_epoch: at.leader_epoch,
                append_time,
                durable_floor,
                digest: self.options.digest,
            };
            let seed = self.shared.seed;
            let frame = FrameHeader::seal(seed, &chain, placement, &batch.header, &mut batch.bytes);
            (base_offset, chain) = (frame.next_offset(), frame.chain);
            frame
        };
        batches.iter_mut().map(seal).collect()
    }

    /// Nothing behind the log's end counts, so that a full disk is survived: a later append writes over it.
    fn write_failed(&mut self, file: &dyn DiskFile, position: u64, error: &io::Error) -> AppendErrorKind {
        if error.kind() == io::ErrorKind::StorageFull {
            // What was refused must not come back after a crash: no frame begins with zeros. If not even this can be
            // written, the append may turn out to have happened, like one whose answer was lost.
            let _ = file.write_at(position, &[IoSlice::new(&[0; frame::HEADER_LEN])]);
            return AppendErrorKind::DiskFull;
        }
        AppendErrorKind::Poisoned(self.poison("write", error))
    }

    /// Accounts for frames that were written, and shows them to readers.
    fn appended(&mut self, frames: &[FrameHeader]) {
        let active = self.active.as_mut().expect("it was written");
        let mut bytes = 0;
        for frame in frames {
            bytes += frame.frame_len() as u64;
            active.segment.push(frame);
        }
        for frame in frames {
            self.enter_epoch(frame.leader_epoch, frame.base_offset);
        }
        let last = &frames[frames.len() - 1];
        let active = self.active.as_ref().expect("it was written");
        self.tail = Checkpoint {
            segment_serial: active.segment.name().serial,
            position: active.segment.position(),
            next_offset: last.next_offset(),
            chain: last.chain,
            last_append_time: last.append_time,
            leader_epoch: last.leader_epoch,
            ..self.tail
        };
        self.flush.unsynced_bytes += bytes;
        self.shared.published(last.next_offset(), bytes);
    }

    /// Whether the leadership is new.
    fn enter_epoch(&mut self, leader_epoch: LeaderEpoch, start_offset: Offset) -> bool {
        let is_new = self.epochs.assign(leader_epoch, start_offset).expect("epochs and offsets increase");
        self.tail.leader_epoch = leader_epoch;
        is_new
    }

    fn poison(&self, operation: &'static str, error: &io::Error) -> Arc<PoisonReason> {
        tracing::error!(log = %self.shared.dir.display(), operation, %error, "the log refuses writes from now on");
        self.poison.set(PoisonReason { operation, error: error.to_string() });
        Arc::clone(self.poison.reason().expect("just set"))
    }
}
