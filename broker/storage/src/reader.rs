//! Reading a log, from any thread, without the owner.
//!
//! Frames are served as slices of the map, without a copy: at once if they are in the page cache, else by a thread that
//! may wait until they are. Only what can not be mapped is read into the heap. Either way every frame is checked
//! completely before it is served: damage on the way from the disk is an error, never data.

mod ahead;
mod frames;
mod scrub;
mod source;

use std::sync::Arc;

use bytes::Bytes;
use quire_protocol::frame::{Chain, FrameHeader};
use quire_protocol::ids::{Offset, Timestamp};

use crate::error::ReadError;
use crate::segment::Segment;
use crate::shared::Shared;

pub use ahead::ReadAhead;
pub use frames::Frames;
pub use scrub::{Scrub, Scrubbed};
use source::Source;

/// Whether a read may wait for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residency {
    /// Only what is in memory is read, and only of files that are open; anything else is [`ReadError::NotResident`].
    Resident,
    /// Whatever is asked for; the calling thread may block on the disk.
    Any,
}

/// Frames read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Whole frames, in order, one after another; empty if there was nothing to read yet.
    pub frames: Vec<Bytes>,
    /// Their length together.
    pub bytes: usize,
    /// The offset after the last of them; where the next read starts.
    pub next_offset: Offset,
}

/// Reads one log. Cheap to clone; usable after the log was closed.
#[derive(Debug, Clone)]
pub struct LogReader {
    shared: Arc<Shared>,
}

impl LogReader {
    pub(crate) fn new(shared: Arc<Shared>) -> LogReader {
        LogReader { shared }
    }

    /// The first offset in the log.
    pub fn log_start(&self) -> Offset {
        self.shared.log_start()
    }

    /// The first offset not yet committed.
    pub fn high_watermark(&self) -> Offset {
        self.shared.high_watermark()
    }

    /// The next offset to be written.
    pub fn end_offset(&self) -> Offset {
        self.shared.end()
    }

    /// Bytes of frames in the log.
    pub fn size_bytes(&self) -> u64 {
        self.shared.size_bytes()
    }

    /// Reads whole frames, starting with the one that holds `from`, or the next one where compaction took that away; up to
    /// `max_bytes` but at least one, all of whose records lie below `below`. May stop early, at the end of a segment. Empty
    /// if no such frame is there yet; then the next read starts at `from`, or behind the gap if `from` lies in one that
    /// reaches so far.
    ///
    /// # Errors
    /// If `from` is outside the log, the data is damaged, can not be read, or may not be in memory.
    pub fn read(
        &self,
        from: Offset,
        max_bytes: usize,
        below: Offset,
        residency: Residency,
    ) -> Result<Slice, ReadError> {
        loop {
            let Some(segment) = self.find(from, below)? else {
                return Ok(Slice { frames: Vec::new(), bytes: 0, next_offset: from });
            };
            let read = Source::new(&self.shared, &segment, residency)
                .and_then(|source| source.read_from(from, max_bytes, below));
            // What took its place is read then.
            if !self.was_replaced(&segment, &read) {
                return read;
            }
        }
    }

    /// The chain up to the frame that ends at `end`, and `end`; `None` if no frame in the log ends there: none ever did, or
    /// compaction took it away.
    ///
    /// # Errors
    /// As [`LogReader::read`].
    pub fn chain_at(&self, end: Offset, residency: Residency) -> Result<Option<(Offset, Chain)>, ReadError> {
        if end <= self.log_start() {
            return Ok(None);
        }
        let slice = self.read(Offset(end.0 - 1), 1, end, residency)?;
        let frame = slice.frames.first().and_then(|frames| FrameHeader::parse(frames).ok());
        Ok(frame.map(|header| (header.next_offset(), header.chain)))
    }

    /// The first record, in offset order and below `below`, whose timestamp is not before `timestamp`: its offset and
    /// its timestamp. Blocks on the disk.
    ///
    /// # Errors
    /// If the data is damaged or can not be read.
    pub fn offset_at_time(
        &self,
        timestamp: Timestamp,
        below: Offset,
    ) -> Result<Option<(Offset, Timestamp)>, ReadError> {
        loop {
            let segments = self.shared.segments();
            let (place, found) = self.first_at_time(&segments, timestamp, below);
            match segments.get(place) {
                Some(segment) if self.was_replaced(segment, &found) => {}
                _ => return found,
            }
        }
    }

    /// As [`LogReader::offset_at_time`], and in which segment the search ended.
    fn first_at_time(
        &self,
        segments: &[Arc<Segment>],
        timestamp: Timestamp,
        below: Offset,
    ) -> (usize, Result<Option<(Offset, Timestamp)>, ReadError>) {
        let log_start = self.log_start();
        for (place, segment) in segments.iter().enumerate() {
            let may_hold = segment.max_timestamp() >= timestamp && segment.end() > log_start;
            if !may_hold {
                continue;
            }
            if segment.base_offset() >= below {
                break;
            }
            let found = Source::new(&self.shared, segment, Residency::Any)
                .and_then(|source| source.first_at(timestamp, log_start, below));
            match found {
                // Deleted since the log start was looked at.
                Err(ReadError::OutOfRange { .. }) => {}
                Ok(None) => {}
                found => return (place, found),
            }
        }
        (segments.len(), Ok(None))
    }

    /// Whether reading failed because the segment's file went after compaction had put another in its place.
    fn was_replaced<T>(&self, segment: &Arc<Segment>, read: &Result<T, ReadError>) -> bool {
        let is_listed = || self.shared.segments().iter().any(|other| Arc::ptr_eq(other, segment));
        matches!(read, Err(ReadError::Corrupt { .. } | ReadError::Io { .. })) && !is_listed()
    }

    /// The segment that holds `from`; `None` if there is nothing below `below` yet.
    fn find(&self, from: Offset, below: Offset) -> Result<Option<Arc<Segment>>, ReadError> {
        // The end first: segments listed later reach at least as far.
        let end = self.shared.end();
        let segments = self.shared.segments();
        let log_start = self.shared.log_start();
        if from < log_start || from > end {
            return Err(ReadError::OutOfRange { log_start, end });
        }
        if from == end || from >= below {
            return Ok(None);
        }
        let after = segments.partition_point(|segment| segment.base_offset() <= from);
        match after.checked_sub(1) {
            Some(at) => Ok(Some(Arc::clone(&segments[at]))),
            // Deleted since the log start was looked at.
            None => Err(ReadError::OutOfRange { log_start: self.shared.log_start(), end }),
        }
    }
}
