//! Every frame from an offset on, one by one: for whoever makes state from them again.

use std::collections::VecDeque;

use bytes::Bytes;
use quire_protocol::frame::FrameHeader;
use quire_protocol::ids::Offset;
use quire_protocol::limits;

use super::{LogReader, Residency};
use crate::error::ReadError;
use crate::producers::ProducerSnapshot;

/// Frames in order, each checked, up to the log's end as it is when they are read. Blocks on the disk. Ends after an
/// error.
#[derive(Debug)]
pub struct Frames {
    reader: LogReader,
    next: Offset,
    /// Read, and not given out yet.
    ahead: VecDeque<(FrameHeader, Bytes)>,
    has_failed: bool,
}

impl LogReader {
    /// The frames from the one that holds `from` on; from the log's first if that is later.
    pub fn frames_since(&self, from: Offset) -> Frames {
        let next = from.max(self.log_start());
        Frames { reader: self.clone(), next, ahead: VecDeque::new(), has_failed: false }
    }

    /// What was known of the producers when it was last stored, if that is still of this log: [`Self::frames_since`] what
    /// it covers brings it up to date. Blocks on the disk.
    ///
    /// # Errors
    /// If it is there and can not be read.
    pub fn producers(&self) -> std::io::Result<Option<ProducerSnapshot>> {
        let stored = ProducerSnapshot::load(&*self.shared.disk, &self.shared.dir)?;
        Ok(stored.filter(|stored| stored.covers <= self.end_offset()))
    }
}

impl Frames {
    fn read(&mut self) -> Result<(), ReadError> {
        let end = self.reader.end_offset();
        if self.next >= end {
            return Ok(());
        }
        let slice = self.reader.read(self.next, limits::READ_BYTES_MAX, end, Residency::Any)?;
        for mut bytes in slice.frames {
            while !bytes.is_empty() {
                let header = FrameHeader::parse(&bytes).expect("it was checked when it was read");
                self.ahead.push_back((header, bytes.split_to(header.frame_len())));
            }
        }
        self.next = slice.next_offset;
        Ok(())
    }
}

impl Iterator for Frames {
    type Item = Result<(FrameHeader, Bytes), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ahead.is_empty()
            && !self.has_failed
            && let Err(error) = self.read()
        {
            self.has_failed = true;
            return Some(Err(error));
        }
        self.ahead.pop_front().map(Ok)
    }
}
