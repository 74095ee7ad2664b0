//! Asking the disk for what a reader that goes on in order will want next.

use quire_protocol::ids::Offset;
use quire_protocol::limits;

use super::source::Source;
use super::{LogReader, Residency};
use crate::error::ReadError;

/// How far the disk was asked ahead of a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadAhead {
    /// What lies below was asked for.
    until: Offset,
    /// A reader that has come this far has about half of it behind it, and asks again.
    again_from: Offset,
}

impl ReadAhead {
    /// Nothing was asked for yet; a reader that goes on to `next` asks.
    pub fn due_at(next: Offset) -> ReadAhead {
        ReadAhead { until: next, again_from: next }
    }

    /// Whether a reader that goes on from `next` asks now.
    pub fn is_due(&self, next: Offset) -> bool {
        next >= self.again_from
    }
}

impl LogReader {
    /// Asks the disk for [`limits::READ_AHEAD_BYTES`] from `next` on, also of segments that follow, but not again for
    /// what was `asked` for before. Opens files, and so blocks on the disk; it does not wait for the bytes. `None` if
    /// what comes next was written lately or not at all yet: nothing is to be asked for any more.
    ///
    /// # Errors
    /// If `next` is outside the log, or a segment can not be opened: a read says so as well.
    pub fn read_ahead(&self, next: Offset, asked: ReadAhead) -> Result<Option<ReadAhead>, ReadError> {
        let half = limits::READ_AHEAD_BYTES / 2;
        let Some(again_from) = self.ask_ahead(next, half, asked.until)? else {
            return Ok(None);
        };
        let until = self.ask_ahead(again_from, half, asked.until)?.unwrap_or(again_from);
        Ok(Some(ReadAhead { until, again_from }))
    }

    /// Asks for about so many bytes from `from` on, except those below `asked`; the offset up to which it did. `None` if
    /// those at `from` are recent, or none.
    fn ask_ahead(&self, mut from: Offset, bytes: u64, asked: Offset) -> Result<Option<Offset>, ReadError> {
        let mut reached = None;
        let mut left = bytes;
        // Not across more: files of several would be opened, and closed again before they are read.
        for _ in 0..2 {
            let Some(segment) = self.find(from, self.end_offset())?.filter(|_| left > 0) else {
                break;
            };
            let source = Source::new(&self.shared, &segment, Residency::Any)?;
            let start = segment.find_offset(from).unwrap_or(0);
            if start >= source.recent_from {
                return Ok(reached);
            }
            let stop = (start + left).min(source.end);
            let unasked = segment.find_offset(asked.max(from)).unwrap_or(start);
            source.will_need(unasked.min(stop)..stop)?;
            left -= stop - start;
            from = if stop == source.end { segment.end() } else { segment.offset_near(stop).unwrap_or(from) };
            reached = Some(from);
        }
        Ok(reached)
    }
}
