//! The new segments of a compaction: files that no manifest lists yet.

use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::Bytes;
use quire_protocol::frame::FrameHeader;
use quire_protocol::ids::{Offset, Timestamp};

use super::super::Failure;
use super::Plan;
use crate::disk::{DiskFile, OpenMode};
use crate::index::SegmentIndex;
use crate::manifest::{Sealed, SegmentEntry, SegmentFile, SegmentName};
use crate::recovery;
use crate::shared::Shared;

/// Bytes written at once.
const WRITE_BYTES: u64 = 1024 * 1024;
/// Bytes between two syncs: the disk is not left with all of a segment at once.
const SYNC_BYTES: u64 = 16 * 1024 * 1024;

/// The segments written so far.
#[derive(Debug)]
pub(super) struct Outputs {
    shared: Arc<Shared>,
    segment_bytes: u64,
    span_ms_max: u64,
    index_interval: u64,
    /// The serial of the next one.
    pub(super) spare_serial: Option<u32>,
    /// The offset after the last frame written: where the next segment begins.
    pub(super) next: Offset,
    /// The one that is written.
    current: Option<Output>,
    /// Durable, with their indexes.
    pub(super) done: Vec<SegmentEntry>,
}

/// A segment that is written.
#[derive(Debug)]
pub(super) struct Output {
    name: SegmentName,
    file: Arc<dyn DiskFile>,
    /// Bytes that are in the file.
    written: u64,
    unsynced: u64,
    /// What comes behind them.
    waiting: Vec<Bytes>,
    waiting_bytes: u64,
    index: SegmentIndex,
    /// `None` before the first frame.
    first_append_time: Option<Timestamp>,
    last_append_time: Timestamp,
    /// Whether the keys of all its records were noted.
    is_compacted: bool,
}

impl Outputs {
    pub(super) fn new(plan: &Plan) -> Outputs {
        Outputs {
            shared: Arc::clone(&plan.shared),
            segment_bytes: plan.segment_bytes,
            span_ms_max: plan.span_ms_max.unwrap_or(u64::MAX),
            index_interval: plan.index_interval,
            spare_serial: None,
            next: Offset::ZERO,
            current: None,
            done: Vec::new(),
        }
    }

    /// The first segment begins there.
    pub(super) fn begin_at(&mut self, base_offset: Offset) {
        self.next = base_offset;
    }

    /// Has a segment that takes the frame; `false` if a serial is needed for another.
    pub(super) fn has_place(&mut self, frame: &FrameHeader, is_compacted: bool) -> Result<bool, Failure> {
        let is_taken = self.current.as_ref().is_some_and(|current| {
            let relative = frame.next_offset().since(current.name.base_offset);
            current.position() + frame.frame_len() as u64 <= self.segment_bytes
                && relative <= u64::from(u32::MAX)
                && current.span_ms(frame) <= self.span_ms_max
                && current.is_compacted == is_compacted
        });
        if is_taken {
            return Ok(true);
        }
        self.finish()?;
        let Some(serial) = self.spare_serial.take() else { return Ok(false) };
        let name = SegmentName { base_offset: self.next, serial };
        self.current = Some(self.create(name, is_compacted)?);
        Ok(true)
    }

    /// Adds a frame.
    pub(super) fn push(&mut self, frame: &FrameHeader, bytes: [Bytes; 2]) -> Result<(), Failure> {
        let current = self.current.as_mut().expect("there is a place");
        current.index.note(frame, current.position(), self.index_interval);
        current.first_append_time.get_or_insert(frame.append_time);
        current.last_append_time = frame.append_time;
        current.waiting_bytes += frame.frame_len() as u64;
        current.waiting.extend(bytes);
        self.next = frame.next_offset();
        if current.waiting_bytes >= WRITE_BYTES { current.flush() } else { Ok(()) }
    }

    /// Writes what waits, so that no memory is held for it.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        self.current.as_mut().map_or(Ok(()), Output::flush)
    }

    /// All is written and durable, the files' names included.
    pub(super) fn end(&mut self) -> Result<(), Failure> {
        self.finish()?;
        let synced = self.shared.disk.sync_dir(&self.shared.dir);
        synced.map_err(Failure::of_sync("syncing the log's directory"))
    }

    /// Removes all files.
    pub(super) fn discard(&mut self) {
        let current = self.current.take().map(|current| current.name);
        for name in self.done.drain(..).map(|entry| entry.name).chain(current) {
            recovery::remove_segment(&*self.shared.disk, &self.shared.dir, name);
        }
    }

    fn create(&self, name: SegmentName, is_compacted: bool) -> Result<Output, Failure> {
        let (disk, path) = (&self.shared.disk, self.shared.dir.join(name.file(SegmentFile::Log)));
        let created = match disk.open(&path, OpenMode::CreateNew) {
            // Left by a process that was stopped before it was listed, and could not be removed.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                disk.remove(&path).and_then(|()| disk.open(&path, OpenMode::CreateNew))
            }
            created => created,
        };
        let file = created.map_err(Failure::of("creating a compacted segment"))?;
        Ok(Output {
            name,
            file,
            written: 0,
            unsynced: 0,
            waiting: Vec::new(),
            waiting_bytes: 0,
            index: SegmentIndex::new(name.base_offset),
            first_append_time: None,
            last_append_time: Timestamp(i64::MIN),
            is_compacted,
        })
    }

    fn finish(&mut self) -> Result<(), Failure> {
        let Some(current) = &mut self.current else { return Ok(()) };
        current.flush()?;
        current.sync()?;
        let sealed = Sealed {
            end_offset: self.next,
            len: current.written,
            last_append_time: current.last_append_time,
            max_timestamp: current.index.max_timestamp().unwrap_or(Timestamp(i64::MIN)),
        };
        let (disk, dir) = (&*self.shared.disk, self.shared.dir.as_path());
        let (name, is_compacted) = (current.name, current.is_compacted);
        current.index.store(disk, dir, name, &sealed).map_err(Failure::of("writing an index"))?;
        self.done.push(SegmentEntry { name, sealed: Some(sealed), is_compacted });
        self.current = None;
        Ok(())
    }
}

impl Output {
    fn position(&self) -> u64 {
        self.written + self.waiting_bytes
    }

    /// How long after its first frame this one was appended (ms).
    fn span_ms(&self, frame: &FrameHeader) -> u64 {
        let first = self.first_append_time.unwrap_or(frame.append_time);
        u64::try_from(frame.append_time.0.saturating_sub(first.0)).unwrap_or(0)
    }

    fn flush(&mut self) -> Result<(), Failure> {
        if self.waiting_bytes == 0 {
            return Ok(());
        }
        let slices: Vec<_> = self.waiting.iter().map(|bytes| IoSlice::new(bytes)).collect();
        self.file.write_at(self.written, &slices).map_err(Failure::of("writing a compacted segment"))?;
        self.written += self.waiting_bytes;
        self.unsynced += self.waiting_bytes;
        self.waiting_bytes = 0;
        self.waiting.clear();
        if self.unsynced >= SYNC_BYTES { self.sync() } else { Ok(()) }
    }

    fn sync(&mut self) -> Result<(), Failure> {
        self.unsynced = 0;
        self.file.sync_data().map_err(Failure::of_sync("syncing a compacted segment"))
    }
}
