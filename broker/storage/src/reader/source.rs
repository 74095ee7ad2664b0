//! The bytes of one segment as one read sees them, and what can be found in them.

use std::fmt::Display;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use quire_protocol::batch::{BatchHeader, Records};
use quire_protocol::frame::{self, FrameError, FrameHeader};
use quire_protocol::ids::{Offset, Timestamp};

use super::{Residency, Slice};
use crate::disk::DiskFile;
use crate::error::ReadError;
use crate::frames::{self, FrameBytes, Walk, WalkError};
use crate::mmap::Mapping;
use crate::recovery;
use crate::segment::Segment;
use crate::shared::Shared;

/// Bytes of older data read at once to find a frame (bytes): about one index interval.
const HEAP_WINDOW_BYTES: u64 = 16 * 1024;

const ENDS_EARLY: &str = "the segment ends before this offset";

/// One segment, as one read sees it.
pub(super) struct Source<'a> {
    pub(super) shared: &'a Shared,
    pub(super) segment: &'a Arc<Segment>,
    pub(super) residency: Residency,
    /// Bytes of whole frames in it when the read began.
    pub(super) end: u64,
    /// Bytes from here on are taken to be in the page cache without asking.
    pub(super) recent_from: u64,
    /// What serves them and whatever else is in memory, where files are mapped.
    pub(super) map: Option<Mapping>,
}

impl FrameBytes for Source<'_> {
    type Error = ReadError;

    fn bytes(&self, range: Range<u64>) -> Result<Bytes, ReadError> {
        let is_recent = range.start >= self.recent_from;
        let may_wait = is_recent || self.residency == Residency::Any;
        let map = self.map.as_ref().filter(|map| may_wait || map.is_resident(&range));
        if let Some(bytes) = map.and_then(|map| map.slice(range.clone())) {
            return Ok(bytes);
        }
        if !may_wait {
            return Err(ReadError::NotResident);
        }
        self.read(range).map_err(|error| self.io(error))
    }
}

impl<'a> Source<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        segment: &'a Arc<Segment>,
        residency: Residency,
    ) -> Result<Source<'a>, ReadError> {
        let end = segment.position();
        let recent_from = segment.recent_from(shared.recent_from());
        let mut source = Source { shared, segment, residency, end, recent_from, map: None };
        let is_recent = recent_from < end;
        if residency == Residency::Any && !is_recent {
            shared.open_old(segment).map_err(|error| source.io(error))?;
        }
        // An older one is mapped once somebody who may block has opened it.
        if is_recent || segment.is_open() {
            let map = segment.map(&*shared.disk, &shared.dir, end);
            source.map = map.map_err(|error| source.io(error))?;
        }
        if !segment.has_index() {
            if residency == Residency::Resident {
                return Err(ReadError::NotResident);
            }
            recovery::load_index(shared, segment).map_err(|error| source.io(error))?;
        }
        Ok(source)
    }

    /// For telling what is wrong with bytes that were read from elsewhere.
    pub(super) fn unmapped(
        shared: &'a Shared,
        segment: &'a Arc<Segment>,
        residency: Residency,
    ) -> Source<'a> {
        let end = segment.position();
        Source { shared, segment, residency, end, recent_from: end, map: None }
    }

    /// Whole frames, starting with the one that holds `from`.
    pub(super) fn read_from(
        &self,
        from: Offset,
        max_bytes: usize,
        below: Offset,
    ) -> Result<Slice, ReadError> {
        // Released since it was loaded, rarely: from the front it is found as well.
        let start = self.segment.find_offset(from).unwrap_or(0);
        let found = self.find(start, from).and_then(|(place, header)| match header.base_offset <= from {
            true => self.take(place, from, max_bytes, below).map(Some),
            // Compaction left a gap there, or that is what damage makes it look like.
            false => Ok(None),
        });
        match found {
            // A damaged header on the way may have led astray, past an intact frame.
            Ok(None) | Err(ReadError::Corrupt { .. }) => {
                let place = self.find_checked(start, from)?;
                self.take(place, from, max_bytes, below)
            }
            Ok(Some(slice)) => Ok(slice),
            Err(error) => Err(error),
        }
    }

    /// Where the first frame that reaches to `from` begins, going by headers that are not checked.
    fn find(&self, start: u64, from: Offset) -> Result<(u64, FrameHeader), ReadError> {
        let mut walk = self.walk(start);
        loop {
            match walk.next_header() {
                Ok(Some(found)) if found.1.last_offset() >= from => return Ok(found),
                Ok(Some(_)) => {}
                Ok(None) => return Err(self.corrupt(from, self.end, ENDS_EARLY)),
                Err(WalkError::Read(error)) => return Err(error),
                Err(WalkError::Frame { position, error }) => return Err(self.corrupt(from, position, error)),
            }
        }
    }

    /// Where the frame that holds `from` begins, going from intact frame to intact frame; or the one behind it, where
    /// compaction left a gap.
    fn find_checked(&self, start: u64, from: Offset) -> Result<u64, ReadError> {
        let mut walk = self.walk(start);
        let mut damage = None;
        loop {
            match walk.next_frame(self.shared.seed) {
                Ok(Some((_, header, _))) if header.last_offset() < from => {}
                Ok(Some((position, header, _))) if header.base_offset <= from => return Ok(position),
                // With nothing damaged before it nothing is missing but what compaction took.
                Ok(Some((position, header, _))) if header.is_compacted && damage.is_none() => {
                    return Ok(position);
                }
                Ok(_) => return Err(damage.unwrap_or_else(|| self.corrupt(from, self.end, ENDS_EARLY))),
                Err(WalkError::Read(error)) => return Err(error),
                Err(WalkError::Frame { position, error }) => {
                    let next = frames::search(self, self.shared.seed, position + 1..self.end)?;
                    walk.seek(next.map_or(self.end, |(intact, _)| intact));
                    damage = Some(self.corrupt(from, position, error));
                }
            }
        }
    }

    /// Whole frames from `start` on, where the frame that holds `from` begins.
    fn take(&self, start: u64, from: Offset, max_bytes: usize, below: Offset) -> Result<Slice, ReadError> {
        let want = max_bytes.max(frame::HEADER_LEN + frame::BATCH_PREFIX_LEN) as u64;
        let mut bytes = self.bytes(start..(start + want).min(self.end))?;
        if let Err(FrameError::Short { need, .. }) = FrameHeader::check(self.shared.seed, &bytes)
            && start + need as u64 <= self.end
        {
            bytes = self.bytes(start..start + need as u64)?;
        }
        let (taken, next_offset) = self.check(&bytes, start, from, below)?;
        bytes.truncate(taken);
        let frames = if taken == 0 { Vec::new() } else { vec![bytes] };
        Ok(Slice { frames, bytes: taken, next_offset })
    }

    /// The first record from `log_start` on and below `below` with this timestamp or a later one.
    pub(super) fn first_at(
        &self,
        timestamp: Timestamp,
        log_start: Offset,
        below: Offset,
    ) -> Result<Option<(Offset, Timestamp)>, ReadError> {
        let start = self.segment.find_timestamp(timestamp).unwrap_or(0);
        let mut walk = self.walk(start);
        let mut next = self.segment.base_offset();
        loop {
            let (position, header, bytes) = match walk.next_frame(self.shared.seed) {
                Ok(Some(found)) => found,
                Ok(None) => return Ok(None),
                Err(WalkError::Read(error)) => return Err(error),
                Err(WalkError::Frame { position, error }) => return Err(self.corrupt(next, position, error)),
            };
            if header.next_offset() > below {
                return Ok(None);
            }
            next = header.next_offset();
            if header.max_timestamp < timestamp || next <= log_start {
                continue;
            }
            let corrupt = |what: &dyn Display| self.corrupt(header.base_offset, position, what);
            let batch = bytes.slice(frame::HEADER_LEN..);
            let batch_header = BatchHeader::parse(&batch).map_err(|error| corrupt(&error))?;
            for record in Records::open(&batch_header, &batch).map_err(|error| corrupt(&error))? {
                let record = record.map_err(|error| corrupt(&error))?;
                if record.timestamp >= timestamp && record.offset >= log_start {
                    return Ok(Some((record.offset, record.timestamp)));
                }
            }
        }
    }

    /// Has the disk begin to read a range, without waiting for it.
    pub(super) fn will_need(&self, range: Range<u64>) -> Result<(), ReadError> {
        let file = self.shared.open_old(self.segment).map_err(|error| self.io(error))?;
        file.will_need(range);
        Ok(())
    }

    pub(super) fn io(&self, source: io::Error) -> ReadError {
        let log_start = self.shared.log_start();
        match source.kind() {
            // Retention was faster.
            _ if self.segment.end() <= log_start => {
                ReadError::OutOfRange { log_start, end: self.shared.end() }
            }
            io::ErrorKind::NotFound => self.corrupt(self.segment.base_offset(), 0, "the file is missing"),
            // Cut shorter while it was read.
            io::ErrorKind::UnexpectedEof => {
                self.corrupt(self.segment.base_offset(), 0, "the file is too short")
            }
            _ => ReadError::Io { segment: self.segment.file_name(), source },
        }
    }

    /// How many of these bytes are whole, intact frames below `below`, and the offset after them.
    fn check(
        &self,
        bytes: &[u8],
        start: u64,
        from: Offset,
        below: Offset,
    ) -> Result<(usize, Offset), ReadError> {
        let (mut taken, mut next) = (0, from);
        while taken < bytes.len() {
            let position = start + taken as u64;
            let header = match FrameHeader::check(self.shared.seed, &bytes[taken..]) {
                Ok(header) => header,
                // The rest of it was not asked for.
                Err(FrameError::Short { .. }) if taken > 0 => break,
                Err(error) if taken == 0 => return Err(self.corrupt(next, position, error)),
                // What is intact is served first; who reads on learns of the damage.
                Err(_) => break,
            };
            let follows = if taken == 0 {
                header.last_offset() >= from && (header.base_offset <= from || header.is_compacted)
            } else {
                header.follows(next)
            };
            if !follows && taken == 0 {
                return Err(self.corrupt(next, position, "the frame there holds other offsets"));
            }
            if !follows {
                break;
            }
            if header.next_offset() > below {
                if taken == 0 {
                    // Of what lies before it compaction left nothing: there is no more to wait for than the frame itself.
                    next = header.base_offset.min(below).max(from);
                }
                break;
            }
            taken += header.frame_len();
            next = header.next_offset();
        }
        Ok((taken, next))
    }

    fn walk(&self, start: u64) -> Walk<'_, Self> {
        // Of a map any length costs the same.
        let is_mapped = start >= self.recent_from && self.map.is_some();
        let window_len = if is_mapped { u64::MAX } else { HEAP_WINDOW_BYTES };
        Walk::new(self, start..self.end, window_len)
    }

    fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        let file = self.shared.open_old(self.segment)?;
        match read_all(&*file, range.clone()) {
            // The file was cut short behind our back. What it has is served; a frame that it ends in is found damaged.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let len = file.len()?;
                read_all(&*file, range.start..range.end.min(len.max(range.start)))
            }
            read => read,
        }
    }

    pub(super) fn corrupt(&self, offset: Offset, position: u64, what: impl Display) -> ReadError {
        ReadError::Corrupt { offset, segment: self.segment.file_name(), position, what: what.to_string() }
    }
}

fn read_all(file: &dyn DiskFile, range: Range<u64>) -> io::Result<Bytes> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    file.read_exact_at(range.start, &mut bytes)?;
    Ok(bytes.into())
}
