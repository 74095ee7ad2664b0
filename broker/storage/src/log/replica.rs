//! What a log does for a follower: it takes frames as its leader made them, and is cut where it is not its leader's.

use std::io::IoSlice;
use std::sync::Arc;

use bytes::Bytes;
use quire_protocol::frame::{self, FrameHeader};
use quire_protocol::ids::Offset;

use super::{Log, Upkeep};
use crate::disk::DiskFile;
use crate::error::{AppendErrorKind, AppendFramesError, AppendFramesErrorKind};
use crate::jobs::{CutDone, CutTo, CutWork};
use crate::poison::Poison;
use crate::suspicion::Suspicion;

impl Log {
    /// Writes frames of a leader with one call, byte for byte; returns their headers, in order. Each must continue the
    /// one before it: offset, leader epoch, append time and chain; one that the leader compacted may leave a gap, and its
    /// chain is taken as it says. All of them are appended or none.
    ///
    /// # Errors
    /// Gives the frames back, with the reason.
    ///
    /// # Panics
    /// If the frames together exceed the largest segment.
    pub fn append_frames(&mut self, frames: Vec<Bytes>) -> Result<Vec<FrameHeader>, AppendFramesError> {
        if frames.is_empty() {
            return Ok(Vec::new());
        }
        let written = self.check_frames(&frames).and_then(|headers| {
            let last = headers.last().expect("not empty");
            let records = last.next_offset().since(self.tail.next_offset);
            let bytes = frames.iter().map(|frame| frame.len() as u64).sum();
            let file = self.prepare(bytes, records)?;
            self.note_compacted(&headers)?;
            self.note_behind(&headers)?;
            self.write_frames(&*file, &frames)?;
            self.appended(&headers);
            self.is_chain_known = true;
            Ok(headers)
        });
        written.map_err(|kind| AppendFramesError { kind, frames })
    }

    /// An earlier version takes the gaps that a leader's compaction left for damage: before the first such frame is written
    /// the manifest has to say that there are some.
    fn note_compacted(&mut self, headers: &[FrameHeader]) -> Result<(), AppendErrorKind> {
        let is_noted = self.manifest.compacted.is_some();
        if is_noted || !headers.iter().any(|header| header.is_compacted) {
            return Ok(());
        }
        // Said once; the next append has another attempt made.
        if let Some(refusal) = self.upkeep.refusal.take() {
            return Err(refusal);
        }
        self.upkeep.is_mark_due = true;
        Err(AppendErrorKind::NoSpaceYet)
    }

    /// Recovery takes a durable floor above a bad frame for a proof that the frame was on this disk. A follower that has
    /// not caught up gets frames of which that is not true; before it writes any the checkpoint has to say so.
    fn note_behind(&mut self, headers: &[FrameHeader]) -> Result<(), AppendErrorKind> {
        let durable = self.durable.next_offset;
        let Some(last) = headers.iter().rfind(|header| header.durable_floor > durable) else {
            return Ok(());
        };
        if !self.upkeep.is_behind_noted {
            // Said once; the next append has another attempt made.
            if let Some(refusal) = self.upkeep.refusal.take() {
                return Err(refusal);
            }
            self.upkeep.is_note_due = true;
            return Err(AppendErrorKind::NoSpaceYet);
        }
        self.behind_to = last.next_offset();
        Ok(())
    }

    fn write_frames(&mut self, file: &dyn DiskFile, frames: &[Bytes]) -> Result<(), AppendErrorKind> {
        let position = self.active.as_ref().expect("space was found in it").segment.position();
        let slices: Vec<_> = frames.iter().map(|frame| IoSlice::new(frame)).collect();
        file.write_at(position, &slices).map_err(|error| self.write_failed(file, position, &error))
    }

    fn check_frames(&self, frames: &[Bytes]) -> Result<Vec<FrameHeader>, AppendFramesErrorKind> {
        let (mut next, mut epoch) = (self.tail.next_offset, self.tail.leader_epoch);
        let mut append_time = self.tail.last_append_time;
        let mut chain = self.is_chain_known.then_some(self.tail.chain);
        let mut headers = Vec::with_capacity(frames.len());
        for bytes in frames {
            let header = FrameHeader::check(self.shared.seed, bytes)?;
            let unfitting = |what| Err(AppendFramesErrorKind::Unfitting { offset: header.base_offset, what });
            if header.frame_len() != bytes.len() {
                return unfitting("more bytes than one frame");
            }
            if !header.follows(next) {
                return unfitting("another offset than the one that follows");
            }
            if header.leader_epoch < epoch {
                return unfitting("an older leader epoch than the frame before");
            }
            if header.append_time < append_time {
                return unfitting("an earlier append time than the frame before");
            }
            let batch = &bytes[frame::HEADER_LEN..];
            let is_linked = chain.is_none_or(|previous| header.chain_after(&previous, batch) == header.chain);
            if !is_linked && !header.is_compacted {
                return unfitting("a chain that does not continue that of the frame before");
            }
            (next, epoch, append_time) = (header.next_offset(), header.leader_epoch, header.append_time);
            chain = Some(header.chain);
            headers.push(header);
        }
        Ok(headers)
    }

    /// Cuts the log, and all that is derived from it, at the last frame's end that is not after `to`. Nothing is appended
    /// until a completion says that it was cut; what the log shows is unchanged until then. One that says
    /// [`super::Completed::is_cut_refused`] leaves it to [`Log::restart_at`].
    ///
    /// # Panics
    /// If `to` lies before the log start.
    pub fn truncate(&mut self, to: Offset) {
        assert!(to >= self.start_offset(), "a log is cut within itself");
        self.upkeep.cut = Some(CutTo::End(to));
    }

    /// Drops all that is in the log, and begins anew at `at` in other files, damage and failed syncs forgotten; what it has to catch up with is held against
    /// it until [`Log::trust`]. As [`Log::truncate`].
    pub fn restart_at(&mut self, at: Offset) {
        self.upkeep.cut = Some(CutTo::Anew(at));
    }

    /// Records before `to` are no part of the log any more once the next jobs are done; whole segments of them are
    /// deleted.
    pub fn advance_log_start(&mut self, to: Offset) {
        if to > self.start_offset() {
            self.retain_from(to);
        }
    }

    /// Whether the log is about to be cut.
    pub(super) fn is_cutting(&self) -> bool {
        self.upkeep.cut.is_some()
    }

    pub(super) fn cut_work(&self, to: CutTo) -> CutWork {
        let sealed = self.flush.sealed.iter().map(|unsynced| Arc::clone(&unsynced.file));
        let active = self.active.as_ref().filter(|active| active.segment.end() > self.durable.next_offset);
        CutWork {
            shared: Arc::clone(&self.shared),
            manifest: self.manifest.clone(),
            epochs: self.epochs.clone(),
            unsynced: sealed.chain(active.and_then(|active| active.file.clone())).collect(),
            to,
            index_interval: self.options.index_interval_bytes,
            is_synced: self.options.is_synced,
            is_new: self.upkeep.is_new,
        }
    }

    /// Goes on with what is left. Gives the log's end.
    pub(super) fn was_cut(&mut self, done: CutDone) -> Offset {
        let CutDone { manifest, segments, epochs, point, is_chain_known, is_new } = done;
        let end = point.next_offset;
        let is_anew = matches!(self.upkeep.cut, Some(CutTo::Anew(_)));
        self.shared.cut(segments, manifest.log_start, end);
        self.manifest = manifest;
        self.active = None;
        self.tail = point;
        self.durable = point;
        self.is_chain_known = is_chain_known;
        self.epochs = epochs;
        self.acked_unsynced_to = self.acked_unsynced_to.min(end);
        self.behind_to = self.behind_to.min(end);
        self.flush.unsynced_bytes = 0;
        self.flush.sealed.clear();
        self.producers = self.producers.take().filter(|known| known.covers <= end && !is_anew);
        self.producers_told_to = self.producers.as_ref().map_or(self.start_offset(), |known| known.covers);
        if is_anew {
            self.poison = Poison::default();
            self.corruption = None;
            self.is_marked_corrupt = false;
            self.suspicion = if is_new { Suspicion::default() } else { Suspicion::UNCLEAN };
        }
        let verdict = self.upkeep.verdict.take().filter(|_| !is_anew);
        self.upkeep = Upkeep::new(false, false, is_new, end, self.high_watermark());
        self.upkeep.verdict = verdict;
        self.forget_compaction();
        end
    }
}
