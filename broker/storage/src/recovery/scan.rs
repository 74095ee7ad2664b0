//! Checking the frames after the recovery point, one by one, each against the one before it.

use std::io::{self, IoSlice};
use std::path::PathBuf;

use bytes::Bytes;
use quire_protocol::batch::BatchHeader;
use quire_protocol::frame::{self, Chain, FrameHeader, FrameSeed};
use quire_protocol::ids::{LeaderEpoch, Offset, Timestamp};

use super::{Corruption, FileBytes, TornTail, log_file};
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::epochs::EpochStart;
use crate::frames::{self, FrameBytes, Walk, WalkError};
use crate::index::SegmentIndex;
use crate::manifest::{Sealed, SegmentEntry};

/// Bytes read at once.
const WINDOW_BYTES: u64 = 1024 * 1024;

/// The least that a disk writes at once.
const SECTOR_BYTES: u64 = 512;

const WRITTEN_WHOLE: &str = "every sector of the frame was written, and its contents are wrong";
const FILE_ENDS_INSIDE: &str =
    "the file ends inside the frame, although space is allocated before it is written";

/// A segment that lies wholly or partly behind the recovery point.
pub(crate) struct Piece<'a> {
    pub(crate) disk: &'a dyn Disk,
    pub(crate) path: PathBuf,
    pub(crate) entry: SegmentEntry,
    pub(crate) is_missing: bool,
    /// Where the scan begins in it.
    pub(crate) start: u64,
    /// No frame reaches beyond this: the cut, or the end of the file.
    pub(crate) limit: u64,
    /// Up to where it was found good.
    pub(crate) position: u64,
    /// The offset after the last good frame.
    pub(crate) end: Offset,
    /// Good frames that were scanned.
    pub(crate) frames: u64,
    pub(crate) last_append_time: Timestamp,
    pub(crate) index: SegmentIndex,
}

/// What every next frame has to follow.
pub(crate) struct Scan {
    pub(crate) seed: FrameSeed,
    pub(crate) index_interval: u64,
    /// All below was synced, so that a bad frame there is no torn one.
    pub(crate) synced_end: Offset,
    /// The offset after the last good frame.
    pub(crate) expected: Offset,
    /// `None` after a gap: the next frame's is taken for granted.
    pub(crate) chain: Option<Chain>,
    pub(crate) last_append_time: Timestamp,
    pub(crate) leader_epoch: LeaderEpoch,
    /// The largest durable floor seen: all below was committed.
    pub(crate) floor: Offset,
    pub(crate) epoch_starts: Vec<EpochStart>,
    pub(crate) totals: Totals,
    /// Durable floors say nothing of this disk: see [`crate::checkpoint::Checkpoint::is_behind`].
    pub(crate) is_behind: bool,
    /// Whether good frames are written again where they are, and synced.
    pub(crate) is_rewriting: bool,
}

/// Of all good frames.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Totals {
    pub(crate) frames: u64,
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    /// Frames whose chain was computed from that of the frame before.
    pub(crate) links: u64,
}

/// Where a log ends before its last listed byte.
pub(crate) struct Cut {
    /// Which piece ends there; later ones are dropped.
    pub(crate) piece: usize,
    /// A later frame was appended when what is cut off here was committed, on other disks at least.
    pub(crate) is_loss_possible: bool,
    bad: Bad,
}

/// Scans all pieces. The first damage to what was committed goes into `corruption`. Returns where the log ends, unless
/// at the end of the last piece.
pub(crate) fn run(
    scan: &mut Scan,
    pieces: &mut [Piece<'_>],
    corruption: &mut Option<Corruption>,
) -> io::Result<Option<Cut>> {
    // One file is open at a time: a log may have more than there are descriptors.
    let mut at = 0;
    while at < pieces.len() {
        let Some(bad) = scan.check(&mut pieces[at])? else {
            at += 1;
            continue;
        };
        let was_synced = bad.was_synced || scan.expected < scan.synced_end;
        if !was_synced {
            let is_committed = scan.is_loss_proven(&pieces[at..], bad.position + 1)?;
            if !is_committed || scan.is_behind {
                return Ok(Some(Cut { piece: at, is_loss_possible: is_committed, bad }));
            }
        }
        let intact = scan.next_intact(&pieces[at..], bad.position + 1)?;
        let known_end = pieces.iter().map(Piece::known_end).fold(scan.synced_end, Offset::max);
        let damage = Corruption {
            offset: scan.expected,
            intact_from: intact.map_or(known_end.max(scan.expected), |(.., offset)| offset),
            segment: log_file(pieces[at].entry.name),
            position: bad.position,
            why: bad.why,
        };
        scan.skip_to(damage.intact_from);
        corruption.get_or_insert(damage);
        let Some((skipped, position, offset)) = intact else {
            break;
        };
        at += skipped;
        (pieces[at].position, pieces[at].end) = (position, offset);
    }
    Ok(None)
}

/// A frame that is not good.
#[derive(Debug)]
pub(crate) struct Bad {
    pub(crate) position: u64,
    pub(crate) why: String,
    /// Whether it was certainly on disk once.
    pub(crate) was_synced: bool,
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
    fn check(&mut self, piece: &mut Piece<'_>) -> io::Result<Option<Bad>> {
        if piece.is_missing {
            return Ok(Some(Bad::lost(piece.position, "the file is missing")));
        }
        if piece.limit < piece.start {
            return Ok(Some(Bad::lost(piece.limit, "the file is shorter than what was synced")));
        }
        let bytes = piece.open(if self.is_rewriting { OpenMode::ReadWrite } else { OpenMode::Read })?;
        let checked_from = piece.position;
        let mut rewrite = Rewrite { position: checked_from, frames: Vec::new(), len: 0 };
        let mut walk = Walk::new(&bytes, piece.position..piece.limit, WINDOW_BYTES);
        let bad = loop {
            let (position, header, frame) = match walk.next_frame(self.seed) {
                Ok(Some(frame)) => frame,
                Ok(None) => break None,
                Err(WalkError::Read(error)) => return Err(error),
                Err(WalkError::Frame { position, error }) => break Some(Bad::at(position, error)),
            };
            if let Err(why) = self.follows(&header, &frame[frame::HEADER_LEN..]) {
                break Some(Bad::at(position, why));
            }
            self.accept(piece, position, &header, &frame[frame::HEADER_LEN..]);
            if self.is_rewriting {
                rewrite.push(&*bytes.0, frame)?;
            }
        };
        rewrite.flush(&*bytes.0)?;
        if self.is_rewriting && piece.position > checked_from {
            bytes.0.sync_data()?;
        }
        if bad.is_some() {
            return Ok(bad);
        }
        let sealed_end = piece.entry.sealed.map(|sealed| sealed.end_offset);
        let is_short = sealed_end.is_some_and(|end| end != self.expected);
        Ok(is_short.then(|| Bad::at(piece.position, "the segment ends too early")))
    }

    /// What is cut off by ending the log here, if anything is: not if there is only space that was never written.
    pub(crate) fn torn_tail(&self, pieces: &[Piece<'_>], cut: &Cut) -> io::Result<Option<TornTail>> {
        let (piece, position) = (&pieces[cut.piece], cut.bad.position);
        let content_end = piece.content_end(position)?;
        let is_last = piece.entry.sealed.is_none() && cut.piece + 1 == pieces.len();
        if is_last && content_end.is_none() {
            return Ok(None);
        }
        Ok(Some(TornTail {
            offset: self.expected,
            segment: log_file(piece.entry.name),
            position,
            bytes: content_end.map_or(0, |end| end - position),
            why: cut.bad.why.clone(),
            synced_end: if self.is_behind { self.synced_end } else { self.synced_end.max(self.floor) },
            suspicion: piece.suspicion(position)?,
        }))
    }

    /// Whether an intact frame, from `position` in the first piece on, was appended when `self.expected` was already
    /// committed.
    fn is_loss_proven(&self, pieces: &[Piece<'_>], position: u64) -> io::Result<bool> {
        let is_proof = |header: &FrameHeader| header.durable_floor > self.expected;
        self.find(pieces, position, is_proof).map(|found| found.is_some())
    }

    /// The first intact frame, from `position` in the first piece on, that holds later offsets than expected: how many
    /// pieces further on it is, its position and its offset.
    fn next_intact(&self, pieces: &[Piece<'_>], position: u64) -> io::Result<Option<(usize, u64, Offset)>> {
        self.find(pieces, position, |header| header.base_offset > self.expected)
    }

    fn find(
        &self,
        pieces: &[Piece<'_>],
        position: u64,
        is_it: impl Fn(&FrameHeader) -> bool,
    ) -> io::Result<Option<(usize, u64, Offset)>> {
        for (at, piece) in pieces.iter().enumerate() {
            if piece.is_missing {
                continue;
            }
            let bytes = piece.open(OpenMode::Read)?;
            let mut start = if at == 0 { position } else { 0 };
            while let Some((found, header)) = frames::search(&bytes, self.seed, start..piece.limit)? {
                if is_it(&header) {
                    return Ok(Some((at, found, header.base_offset)));
                }
                start = found + header.frame_len() as u64;
            }
        }
        Ok(None)
    }

    /// Goes on behind damage, at an intact frame.
    fn skip_to(&mut self, offset: Offset) {
        self.expected = offset;
        self.chain = None;
    }

    fn follows(&self, header: &FrameHeader, batch: &[u8]) -> Result<(), &'static str> {
        if !header.follows(self.expected) {
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

    fn accept(&mut self, piece: &mut Piece<'_>, position: u64, header: &FrameHeader, batch: &[u8]) {
        if header.leader_epoch > self.leader_epoch || self.epoch_starts.is_empty() {
            let start = EpochStart { epoch: header.leader_epoch, start_offset: header.base_offset };
            self.epoch_starts.push(start);
        }
        self.expected = header.next_offset();
        self.totals.links += u64::from(self.chain.is_some() && !header.is_compacted);
        self.chain = Some(header.chain);
        self.last_append_time = header.append_time;
        self.leader_epoch = header.leader_epoch;
        self.floor = self.floor.max(header.durable_floor);
        self.totals.frames += 1;
        self.totals.records += BatchHeader::parse(batch).map_or(0, |batch| u64::from(batch.record_count));
        self.totals.bytes += header.frame_len() as u64;
        piece.frames += 1;
        piece.index.note(header, position, self.index_interval);
        piece.position = position + header.frame_len() as u64;
        piece.end = self.expected;
        piece.last_append_time = header.append_time;
    }
}

/// Frames found good, to be written where they were read: the very bytes that were checked, not what a second read
/// might give.
struct Rewrite {
    /// Where the first of them lies.
    position: u64,
    frames: Vec<Bytes>,
    len: u64,
}

impl Rewrite {
    fn push(&mut self, file: &dyn DiskFile, frame: Bytes) -> io::Result<()> {
        self.len += frame.len() as u64;
        self.frames.push(frame);
        if self.len >= WINDOW_BYTES { self.flush(file) } else { Ok(()) }
    }

    fn flush(&mut self, file: &dyn DiskFile) -> io::Result<()> {
        if self.len == 0 {
            return Ok(());
        }
        let slices: Vec<_> = self.frames.iter().map(|frame| IoSlice::new(frame)).collect();
        file.write_at(self.position, &slices)?;
        self.position += self.len;
        self.len = 0;
        self.frames.clear();
        Ok(())
    }
}

impl Piece<'_> {
    fn open(&self, mode: OpenMode) -> io::Result<FileBytes> {
        self.disk.open(&self.path, mode).map(FileBytes)
    }

    /// Where what was written behind `position` ends, if anything was.
    fn content_end(&self, position: u64) -> io::Result<Option<u64>> {
        if self.is_missing {
            return Ok(None);
        }
        frames::end_of_content(&self.open(OpenMode::Read)?, position..self.limit.max(position))
    }

    /// What speaks against an interrupted write at `position`, where a frame is bad. A disk writes sectors in any order,
    /// so that one that was never written is the usual sign of an interrupted write.
    fn suspicion(&self, position: u64) -> io::Result<Option<&'static str>> {
        if self.is_missing || position + frame::HEADER_LEN as u64 > self.limit {
            return Ok(None);
        }
        let bytes = self.open(OpenMode::Read)?;
        let header = FrameHeader::parse(&bytes.bytes(position..position + frame::HEADER_LEN as u64)?);
        let Ok(header) = header else { return Ok(None) };
        let end = position + header.frame_len() as u64;
        if end > self.limit {
            return Ok(self.entry.sealed.is_none().then_some(FILE_ENDS_INSIDE));
        }
        let frame = bytes.bytes(position..end)?;
        let first = (SECTOR_BYTES - position % SECTOR_BYTES) as usize;
        let (head, rest) = frame.split_at(first.min(frame.len()));
        let mut sectors = std::iter::once(head).chain(rest.chunks(SECTOR_BYTES as usize));
        let is_unwritten = |sector: &[u8]| sector.iter().all(|byte| *byte == 0);
        Ok((!sectors.any(is_unwritten)).then_some(WRITTEN_WHOLE))
    }

    /// The offset that the manifest says it reaches.
    fn known_end(&self) -> Offset {
        self.entry.sealed.map_or(self.entry.name.base_offset, |sealed| sealed.end_offset)
    }

    /// As it is sealed where the scan ended.
    pub(crate) fn sealed(&self) -> Sealed {
        Sealed {
            end_offset: self.end,
            len: self.position,
            last_append_time: self.last_append_time,
            max_timestamp: self.index.max_timestamp().unwrap_or(Timestamp(i64::MIN)),
        }
    }
}
