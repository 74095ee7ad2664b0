//! One segment as the log and its readers share it: how far it is written, where its frames are, and its open file.
//!
//! The owner alone writes; what readers may look at is published in atomics after it was written. A segment that was
//! dropped from the log stays readable for who still holds it.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use arc_swap::ArcSwapOption;
use quire_protocol::frame::FrameHeader;
use quire_protocol::ids::{Offset, Timestamp};

use crate::disk::{Disk, DiskFile, OpenMode};
use crate::index::SegmentIndex;
use crate::manifest::{Sealed, SegmentEntry, SegmentFile, SegmentName};
use crate::mmap::Mapping;

/// A segment of a log.
#[derive(Debug)]
pub(crate) struct Segment {
    name: SegmentName,
    /// Appends stop before this size (bytes); a single append to an empty segment may exceed it.
    size_limit: u64,
    index_interval: u64,
    /// Bytes of whole frames.
    position: AtomicU64,
    /// The offset after the last frame.
    end: AtomicU64,
    /// The largest record timestamp.
    max_timestamp: AtomicI64,
    /// The append time of the first frame; the earliest time if that is not known.
    first_append_time: AtomicI64,
    /// The append time of the last frame.
    last_append_time: AtomicI64,
    /// What was written since the log was opened is likely still in memory.
    recent: Recent,
    /// `None` until a read needs it, for a segment that was sealed when the log was opened.
    index: RwLock<Option<SegmentIndex>>,
    /// Whether the index files say what `index` says.
    is_index_stored: AtomicBool,
    file: ArcSwapOption<OpenFile>,
    map: ArcSwapOption<Mapping>,
}

/// Where a segment lies in all that was written since the log was opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recent {
    /// Bytes from here on were written since the log was opened.
    pub(crate) from: u64,
    /// Bytes that were written to the log since it was opened when `from` was written.
    pub(crate) written_before: u64,
}

/// What is in a segment that has frames already.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) position: u64,
    pub(crate) end: Offset,
    pub(crate) max_timestamp: Timestamp,
    pub(crate) last_append_time: Timestamp,
}

#[derive(Debug)]
struct OpenFile(Arc<dyn DiskFile>);

impl Extent {
    pub(crate) fn of(sealed: &Sealed) -> Extent {
        Extent {
            position: sealed.len,
            end: sealed.end_offset,
            max_timestamp: sealed.max_timestamp,
            last_append_time: sealed.last_append_time,
        }
    }
}

impl Segment {
    /// The largest timestamp of a segment whose frames were not looked at yet: any may be in it.
    pub(crate) const TIMESTAMP_UNKNOWN: Timestamp = Timestamp(i64::MAX);

    /// An empty segment, about to be written.
    pub(crate) fn new(name: SegmentName, size_limit: u64, index_interval: u64, written: u64) -> Segment {
        let extent = Extent {
            position: 0,
            end: name.base_offset,
            max_timestamp: Timestamp(i64::MIN),
            last_append_time: Timestamp(i64::MIN),
        };
        let recent = Recent { from: 0, written_before: written };
        let index = Some(SegmentIndex::new(name.base_offset));
        Segment::with(name, size_limit, index_interval, extent, recent, index)
    }

    /// A segment found at open, written up to `extent`. Without an index, its files are loaded when needed.
    pub(crate) fn found(
        name: SegmentName,
        size_limit: u64,
        index_interval: u64,
        extent: Extent,
        index: Option<SegmentIndex>,
    ) -> Segment {
        let recent = Recent { from: extent.position, written_before: 0 };
        Segment::with(name, size_limit, index_interval, extent, recent, index)
    }

    fn with(
        name: SegmentName,
        size_limit: u64,
        index_interval: u64,
        extent: Extent,
        recent: Recent,
        index: Option<SegmentIndex>,
    ) -> Segment {
        Segment {
            name,
            size_limit,
            index_interval,
            position: AtomicU64::new(extent.position),
            end: AtomicU64::new(extent.end.0),
            max_timestamp: AtomicI64::new(extent.max_timestamp.0),
            first_append_time: AtomicI64::new(i64::MIN),
            last_append_time: AtomicI64::new(extent.last_append_time.0),
            recent,
            is_index_stored: AtomicBool::new(index.is_none()),
            index: RwLock::new(index),
            file: ArcSwapOption::empty(),
            map: ArcSwapOption::empty(),
        }
    }

    pub(crate) fn name(&self) -> SegmentName {
        self.name
    }

    pub(crate) fn index_interval(&self) -> u64 {
        self.index_interval
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.position() == 0
    }

    pub(crate) fn file_name(&self) -> String {
        self.name.file(SegmentFile::Log)
    }

    pub(crate) fn base_offset(&self) -> Offset {
        self.name.base_offset
    }

    /// Bytes of whole frames: what may be read.
    pub(crate) fn position(&self) -> u64 {
        self.position.load(Ordering::Acquire)
    }

    /// The offset after the last frame.
    pub(crate) fn end(&self) -> Offset {
        Offset(self.end.load(Ordering::Acquire))
    }

    pub(crate) fn max_timestamp(&self) -> Timestamp {
        Timestamp(self.max_timestamp.load(Ordering::Acquire))
    }

    /// The append time of the first frame, if it has one and that was looked at.
    pub(crate) fn first_append_time(&self) -> Option<Timestamp> {
        let time = Timestamp(self.first_append_time.load(Ordering::Acquire));
        Some(time).filter(|time| *time != Timestamp(i64::MIN))
    }

    /// The first frame of a segment found at open was appended then.
    pub(crate) fn set_first_append_time(&self, time: Timestamp) {
        self.first_append_time.store(time.0, Ordering::Release);
    }

    pub(crate) fn last_append_time(&self) -> Timestamp {
        Timestamp(self.last_append_time.load(Ordering::Acquire))
    }

    /// Bytes that appends may fill; what is allocated ahead ends here.
    pub(crate) fn size_limit(&self) -> u64 {
        self.size_limit
    }

    /// Whether so many bytes and records more, from `next_offset` on, belong into this segment.
    pub(crate) fn takes(&self, bytes: u64, records: u64, next_offset: Offset) -> bool {
        let relative = next_offset.since(self.name.base_offset) + records;
        self.position() + bytes <= self.size_limit && relative <= u64::from(u32::MAX)
    }

    /// As it would be sealed now.
    pub(crate) fn sealed(&self) -> Sealed {
        Sealed {
            end_offset: self.end(),
            len: self.position(),
            last_append_time: self.last_append_time(),
            max_timestamp: self.max_timestamp(),
        }
    }

    /// As the manifest lists it once it is sealed.
    pub(crate) fn sealed_entry(&self) -> SegmentEntry {
        SegmentEntry { name: self.name, sealed: Some(self.sealed()), is_compacted: false }
    }

    /// Publishes a frame that was written at the end. The owner only.
    pub(crate) fn push(&self, frame: &FrameHeader) {
        let position = self.position.load(Ordering::Relaxed);
        {
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(index) = index.as_mut() {
                index.note(frame, position, self.index_interval);
            }
        }
        if position == 0 {
            self.set_first_append_time(frame.append_time);
        }
        self.is_index_stored.store(false, Ordering::Relaxed);
        self.max_timestamp.fetch_max(frame.max_timestamp.0, Ordering::Release);
        self.last_append_time.store(frame.append_time.0, Ordering::Release);
        self.end.store(frame.next_offset().0, Ordering::Release);
        self.position.store(position + frame.frame_len() as u64, Ordering::Release);
    }

    /// Where to start looking for `offset`; `None` if the index is not loaded.
    pub(crate) fn find_offset(&self, offset: Offset) -> Option<u64> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index.as_ref().map(|index| index.find_offset(offset).position)
    }

    /// The offset of a frame that begins at or shortly before `position`; `None` if the index is not loaded.
    pub(crate) fn offset_near(&self, position: u64) -> Option<Offset> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index.as_ref().map(|index| index.find_position(position).offset)
    }

    /// Where to start looking for the first record at or after `timestamp`; `None` if the index is not loaded.
    pub(crate) fn find_timestamp(&self, timestamp: Timestamp) -> Option<u64> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index.as_ref().map(|index| index.find_timestamp(timestamp).position)
    }

    pub(crate) fn has_index(&self) -> bool {
        self.index.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// The index of everything below `position`, if it is on the heap and not in its files yet.
    pub(crate) fn unstored_index(&self, position: u64) -> Option<SegmentIndex> {
        if self.is_index_stored.load(Ordering::Relaxed) {
            return None;
        }
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index.as_ref().map(|index| index.up_to(position))
    }

    /// Gives readers an index that was loaded from its files, or rebuilt; one that is there already stays.
    pub(crate) fn provide_index(&self, index: SegmentIndex, is_stored: bool) {
        let mut current = self.index.write().unwrap_or_else(PoisonError::into_inner);
        if current.is_none() {
            *current = Some(index);
            self.is_index_stored.store(is_stored, Ordering::Relaxed);
        }
    }

    /// Sets the index to which the frames to come are added, and with it the largest timestamp.
    pub(crate) fn continue_index(&self, index: SegmentIndex) {
        let max_timestamp = index.max_timestamp().unwrap_or(Timestamp(i64::MIN));
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = Some(index);
        self.is_index_stored.store(false, Ordering::Relaxed);
        self.max_timestamp.store(max_timestamp.0, Ordering::Release);
    }

    /// The files of this sealed segment's index are on disk.
    pub(crate) fn index_was_stored(&self) {
        self.is_index_stored.store(true, Ordering::Relaxed);
    }

    /// The open file, opened for reading if it was not open.
    pub(crate) fn open(&self, disk: &dyn Disk, dir: &Path) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(file) = self.file.load().as_ref() {
            return Ok(Arc::clone(&file.0));
        }
        let file = disk.open(&dir.join(self.file_name()), OpenMode::Read)?;
        self.file.store(Some(Arc::new(OpenFile(Arc::clone(&file)))));
        Ok(file)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.file.load().is_some()
    }

    /// Gives readers the owner's file.
    pub(crate) fn set_file(&self, file: &Arc<dyn DiskFile>) {
        self.map.store(None);
        self.file.store(Some(Arc::new(OpenFile(Arc::clone(file)))));
    }

    /// Gives back the descriptor and the map, and the index if its files hold it. Who reads keeps what it has. Whether
    /// there was anything to give back.
    pub(crate) fn release(&self) -> bool {
        let had_file = self.file.swap(None).is_some();
        let had_map = self.map.swap(None).is_some();
        if self.is_index_stored.load(Ordering::Relaxed) {
            *self.index.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        had_file || had_map
    }

    /// The map of the segment, long enough for `end`; `None` where files are not mapped.
    pub(crate) fn map(&self, disk: &dyn Disk, dir: &Path, end: u64) -> io::Result<Option<Mapping>> {
        if let Some(map) = self.map.load().as_ref().filter(|map| map.len() >= end) {
            return Ok(Some(Mapping::clone(map)));
        }
        let file = self.open(disk, dir)?;
        let map = file.map(end.max(self.size_limit))?;
        self.map.store(map.clone().map(Arc::new));
        Ok(map)
    }

    /// The first byte of the segment that was written when `written` bytes or more had been written to the log since it
    /// was opened.
    pub(crate) fn recent_from(&self, written: u64) -> u64 {
        self.recent.from + written.saturating_sub(self.recent.written_before)
    }
}
