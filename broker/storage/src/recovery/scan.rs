//! Checking the frames after the recovery point, one by one, each against the one before it.

use std::io;

use quire_protocol::frame::{self, Chain, FrameHeader, FrameSeed};
use quire_protocol::ids::{LeaderEpoch, Offset, Timestamp};

use super::FileBytes;
use crate::epochs::EpochStart;
use crate::frames::{self, Walk, WalkError};
use crate::index::SegmentIndex;
use crate::manifest::{Sealed, SegmentEntry};

/// Bytes read at once.
const WINDOW_BYTES: u64 = 1024 * 1024;

/// A segment that lies wholly or partly behind the recovery point.
pub(super) struct Piece {
    pub(super) entry: SegmentEntry,
    /// `None` if the file is missing.
    pub(super) file: Option<FileBytes>,
    /// Where the scan begins in it.
    pub(super) start: u64,
    /// No frame reaches beyond this: the cut, or the end of the file.
    pub(super) limit: u64,
    /// Up to where it was found good.
    pub(super) position: u64,
    /// The offset after the last good frame.
    pub(super) end: Offset,
    pub(super) last_append_time: Timestamp,
    pub(super) index: SegmentIndex,
}

/// What every next frame has to follow.
pub(super) struct Scan {
    pub(super) seed: FrameSeed,
    pub(super) index_interval: u64,
    pub(super) expected: Offset,
    /// `None` after a gap: the next frame's is taken for granted.
    pub(super) chain: Option<Chain>,
    pub(super) last_append_time: Timestamp,
    pub(super) leader_epoch: LeaderEpoch,
    /// The largest durable floor seen: all below was committed.
    pub(super) floor: Offset,
    pub(super) epoch_starts: Vec<EpochStart>,
    pub(super) frames: u64,
    pub(super) bytes: u64,
}

/// A frame that is not good.
#[derive(Debug)]
pub(super) struct Bad {
    pub(super) position: u64,
    pub(super) why: String,
    /// Whether it was certainly on disk once.
    pub(super) was_synced: bool,
}

impl Bad {
    fn at(position: u64, why: impl ToString) -> Bad {
        Bad { position, why: why.to_string(), was_synced: false }
    }

    /// A file is listed only once it is durable, and a checkpoint covers only what is.
    fn lost(position: u64, why: &str) -> Bad {
        Bad { position, why: why.to_owned(), was_synced: true }
    }
}

impl Scan {
    /// Checks frames from the piece's position on, until its limit or the first bad one.
    pub(super) fn check(&mut self, piece: &mut Piece) -> io::Result<Option<Bad>> {
        let Some(bytes) = piece.file.clone() else {
            return Ok(Some(Bad::lost(piece.position, "the file is missing")));
        };
        if piece.limit < piece.start {
            return Ok(Some(Bad::lost(piece.limit, "the file is shorter than what was synced")));
        }
        let mut walk = Walk::new(&bytes, piece.position..piece.limit, WINDOW_BYTES);
        loop {
            let (position, header, bytes) = match walk.next_frame(self.seed) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(WalkError::Read(error)) => return Err(error),
                Err(WalkError::Frame { position, error }) => {
                    return Ok(Some(Bad::at(position, error)));
                }
            };
            if let Err(why) = self.follows(&header, &bytes[frame::HEADER_LEN..]) {
                return Ok(Some(Bad::at(position, why)));
            }
            self.accept(piece, position, &header);
        }
        let sealed_end = piece.entry.sealed.map(|sealed| sealed.end_offset);
        let is_short = sealed_end.is_some_and(|end| end != self.expected);
        Ok(is_short.then(|| Bad::at(piece.position, "the segment ends too early")))
    }

    /// Whether an intact frame from `position` on was appended when `self.expected` was already committed.
    pub(super) fn is_loss_proven(&self, piece: &Piece, mut position: u64) -> io::Result<bool> {
        while let Some((at, header)) = self.next_intact(piece, position)? {
            if header.durable_floor > self.expected {
                return Ok(true);
            }
            position = at + header.frame_len() as u64;
        }
        Ok(false)
    }

    /// The first intact frame from `position` on that holds later offsets than expected.
    pub(super) fn next_intact(
        &self,
        piece: &Piece,
        mut position: u64,
    ) -> io::Result<Option<(u64, FrameHeader)>> {
        let Some(bytes) = &piece.file else {
            return Ok(None);
        };
        while let Some((at, header)) = frames::search(bytes, self.seed, position..piece.limit)? {
            if header.base_offset > self.expected {
                return Ok(Some((at, header)));
            }
            position = at + header.frame_len() as u64;
        }
        Ok(None)
    }

    /// Goes on behind damage, at an intact frame.
    pub(super) fn skip_to(&mut self, offset: Offset) {
        self.expected = offset;
        self.chain = None;
    }

    fn follows(&self, header: &FrameHeader, batch: &[u8]) -> Result<(), &'static str> {
        let is_gap_legal = header.is_compacted && header.base_offset > self.expected;
        if header.base_offset != self.expected && !is_gap_legal {
            return Err("it has another offset than the one that follows");
        }
        if header.leader_epoch < self.leader_epoch {
            return Err("its leader epoch is older than that of the frame before");
        }
        if header.append_time < self.last_append_time {
            return Err("its append time is before that of the frame before");
        }
        let is_linked = header.is_compacted
            || self.chain.is_none_or(|previous| header.chain_after(&previous, batch) == header.chain);
        if !is_linked {
            return Err("its chain does not continue that of the frame before");
        }
        Ok(())
    }

    fn accept(&mut self, piece: &mut Piece, position: u64, header: &FrameHeader) {
        if header.leader_epoch > self.leader_epoch || self.epoch_starts.is_empty() {
            let start = EpochStart { epoch: header.leader_epoch, start_offset: header.base_offset };
            self.epoch_starts.push(start);
        }
        self.expected = header.next_offset();
        self.chain = Some(header.chain);
        self.last_append_time = header.append_time;
        self.leader_epoch = header.leader_epoch;
        self.floor = self.floor.max(header.durable_floor);
        self.frames += 1;
        self.bytes += header.frame_len() as u64;
        piece.index.note(header, position, self.index_interval);
        piece.position = position + header.frame_len() as u64;
        piece.end = self.expected;
        piece.last_append_time = header.append_time;
    }
}

impl Piece {
    /// Where what was written behind `position` ends, if anything was.
    pub(super) fn content_end(&self, position: u64) -> io::Result<Option<u64>> {
        match &self.file {
            Some(bytes) => frames::end_of_content(bytes, position..self.limit.max(position)),
            None => Ok(None),
        }
    }

    /// As it is sealed where the scan ended.
    pub(super) fn sealed(&self) -> Sealed {
        Sealed {
            end_offset: self.end,
            len: self.position,
            last_append_time: self.last_append_time,
            max_timestamp: self.index.max_timestamp().unwrap_or(Timestamp(i64::MIN)),
        }
    }
}
