//! Reading what nobody reads: all that is committed again, a bounded piece at a time, so that damage is found while another
//! replica still has what was damaged.
//!
//! Every frame is checked completely, and against the one before it, chain included. How fast it goes is for the caller
//! to say. Bytes are read from the file and not from a map: a page that the disk does not give is an error then.

use std::sync::Arc;

use quire_protocol::frame::{self, Chain};
use quire_protocol::ids::Offset;

use super::{LogReader, Residency, Source};
use crate::disk::OpenMode;
use crate::error::ReadError;
use crate::frames::{Walk, WalkError};
use crate::manifest::SegmentName;
use crate::recovery::FileBytes;
use crate::segment::Segment;

/// Bytes read at once.
const WINDOW_BYTES: u64 = 256 * 1024;

/// How far a round of scrubbing has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scrub {
    /// The offset after the last frame checked.
    next: Offset,
    /// In which segment that frame ends, and where (bytes).
    place: Option<(SegmentName, u64)>,
    /// The chain there, if it is known.
    chain: Option<Chain>,
}

/// What one step of scrubbing found to be good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scrubbed {
    /// Bytes of frames checked; at least one frame if there was any.
    pub bytes: u64,
    /// Where the next step goes on; `None` if all that is committed was gone through.
    pub rest: Option<Scrub>,
}

impl Scrub {
    /// Before the first frame of the log.
    pub fn new() -> Scrub {
        Scrub::default()
    }

    /// The offset after the last frame checked.
    pub fn next_offset(&self) -> Offset {
        self.next
    }
}

impl LogReader {
    /// Checks about `bytes_max` of what is committed from where `scrub` is, of one segment at most. Blocks on the disk. What
    /// retention or a cut takes away meanwhile is passed over.
    ///
    /// # Errors
    /// The first damage, or that the disk can not be read.
    pub fn scrub(&self, scrub: Scrub, bytes_max: u64) -> Result<Scrubbed, ReadError> {
        let segments = self.shared.segments();
        let next = scrub.next.max(self.log_start());
        let found = segments.partition_point(|segment| segment.end() <= next);
        // The last one may be written while it is read: what is committed of it is not touched any more.
        let below = (found + 1 == segments.len()).then(|| self.high_watermark());
        let Some(segment) = segments.get(found).filter(|_| below.is_none_or(|below| next < below)) else {
            return Ok(Scrubbed { bytes: 0, rest: None });
        };
        let checked = self.scrub_segment(segment, scrub, below, bytes_max);
        match checked {
            // It went while it was read.
            Err(_) if !self.shared.segments().iter().any(|other| Arc::ptr_eq(other, segment)) => {
                Ok(Scrubbed { bytes: 0, rest: Some(Scrub { next, place: None, chain: None }) })
            }
            checked => checked,
        }
    }

    fn scrub_segment(
        &self,
        segment: &Arc<Segment>,
        scrub: Scrub,
        below: Option<Offset>,
        bytes_max: u64,
    ) -> Result<Scrubbed, ReadError> {
        let (is_last, below) = (below.is_some(), below.unwrap_or(Offset(u64::MAX)));
        // Looked at after the high watermark: all below that is in it.
        let end = segment.position();
        let source = Source::unmapped(&self.shared, segment, Residency::Any);
        let is_begun = scrub.place.filter(|(name, _)| *name == segment.name());
        let continues = is_begun.is_some() || scrub.next == segment.base_offset();
        let start = is_begun.map_or(0, |(_, position)| position);
        let mut next = if is_begun.is_some() { scrub.next } else { segment.base_offset() };
        let mut chain = scrub.chain.filter(|_| continues);
        let opened = self.shared.disk.open(&self.shared.dir.join(segment.file_name()), OpenMode::Read);
        let bytes = FileBytes(opened.map_err(|error| source.io(error))?);
        let mut walk = Walk::new(&bytes, start..end, WINDOW_BYTES);
        let mut position = start;
        // A batch that the high watermark lies in is as committed as its first record.
        while position - start < bytes_max.max(1) && next < below {
            let (at, header, frame) = match walk.next_frame(self.shared.seed) {
                Ok(Some(found)) => found,
                Ok(None) => break,
                Err(WalkError::Read(error)) => return Err(source.io(error)),
                Err(WalkError::Frame { position, error }) => {
                    return Err(source.corrupt(next, position, error));
                }
            };
            let batch = &frame[frame::HEADER_LEN..];
            let follows = header.follows(next);
            let links = chain.is_none_or(|before| header.chain_after(&before, batch) == header.chain);
            if !follows || !(links || header.is_compacted) {
                return Err(source.corrupt(next, at, "the frame there does not continue the one before"));
            }
            (next, chain) = (header.next_offset(), Some(header.chain));
            position = at + header.frame_len() as u64;
        }
        let is_at_end = position >= end;
        let ends_early = if is_last { next < below } else { next != segment.end() };
        if is_at_end && ends_early {
            return Err(source.corrupt(next, position, "the segment ends before its last record"));
        }
        let place = Some((segment.name(), position)).filter(|_| !is_at_end);
        Ok(Scrubbed { bytes: position - start, rest: Some(Scrub { next, place, chain }) })
    }
}
