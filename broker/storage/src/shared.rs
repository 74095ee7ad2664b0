//! What a log shows to its readers: the list of segments, swapped whole, and the offsets that bound reads.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use quire_protocol::frame::FrameSeed;
use quire_protocol::ids::Offset;

use crate::disk::{Disk, DiskFile};
use crate::recency::Recency;
use crate::segment::Segment;

/// Older segments of one log that are kept open for readers: for two that go on in order, each with the next one ahead.
const OPEN_SEGMENTS_MAX: usize = 4;

/// Shared by a log and its readers. The owner writes, readers look; nobody waits.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) seed: FrameSeed,
    /// In offset order; those but the last are sealed.
    segments: ArcSwap<Vec<Arc<Segment>>>,
    log_start: AtomicU64,
    high_watermark: AtomicU64,
    end: AtomicU64,
    size_bytes: AtomicU64,
    /// Bytes written since the log was opened.
    written: AtomicU64,
    recency: Recency,
    /// Sealed segments that a reader opened, oldest first.
    opened: Mutex<VecDeque<Arc<Segment>>>,
}

impl Shared {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        seed: FrameSeed,
        segments: Vec<Arc<Segment>>,
        bounds: Bounds,
    ) -> Shared {
        let size_bytes = segments.iter().map(|segment| segment.position()).sum();
        Shared {
            disk,
            dir,
            seed,
            segments: ArcSwap::from_pointee(segments),
            log_start: AtomicU64::new(bounds.log_start.0),
            high_watermark: AtomicU64::new(bounds.high_watermark.0),
            end: AtomicU64::new(bounds.end.0),
            size_bytes: AtomicU64::new(size_bytes),
            written: AtomicU64::new(0),
            recency: Recency::default(),
            opened: Mutex::default(),
        }
    }

    pub(crate) fn segments(&self) -> Arc<Vec<Arc<Segment>>> {
        self.segments.load_full()
    }

    pub(crate) fn log_start(&self) -> Offset {
        Offset(self.log_start.load(Ordering::Acquire))
    }

    pub(crate) fn high_watermark(&self) -> Offset {
        Offset(self.high_watermark.load(Ordering::Acquire))
    }

    pub(crate) fn end(&self) -> Offset {
        Offset(self.end.load(Ordering::Acquire))
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// What was written from here on, counted from when the log was opened, is likely in memory.
    pub(crate) fn recent_from(&self) -> u64 {
        self.recency.recent_from(self.written())
    }

    pub(crate) fn raise_high_watermark(&self, high_watermark: Offset) {
        self.high_watermark.fetch_max(high_watermark.0, Ordering::AcqRel);
    }

    /// What lies before is, durably, no part of the log any more.
    pub(crate) fn raise_log_start(&self, log_start: Offset) {
        self.log_start.fetch_max(log_start.0, Ordering::AcqRel);
    }

    /// So many bytes of frames were written and published in their segment; the log now ends at `end`.
    pub(crate) fn published(&self, end: Offset, bytes: u64) {
        self.recency.note(self.written(), bytes);
        self.written.fetch_add(bytes, Ordering::AcqRel);
        self.size_bytes.fetch_add(bytes, Ordering::AcqRel);
        self.end.store(end.0, Ordering::Release);
    }

    /// A new segment follows the last.
    pub(crate) fn push_segment(&self, segment: Arc<Segment>) {
        let mut segments = self.segments().to_vec();
        segments.push(segment);
        self.segments.store(Arc::new(segments));
        self.release_old();
    }

    /// The first `count` segments, all that lay before `log_start`, are gone.
    pub(crate) fn drop_segments(&self, count: usize, log_start: Offset) {
        self.raise_log_start(log_start);
        let segments = self.segments();
        let bytes = segments[..count].iter().map(|segment| segment.position()).sum();
        self.segments.store(Arc::new(segments[count..].to_vec()));
        self.size_bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.lock_opened().retain(|segment| segment.base_offset() >= log_start);
    }

    /// The first `count` segments were compacted into these. Whoever reads the old ones keeps what it has.
    pub(crate) fn swap_front(&self, count: usize, mut compacted: Vec<Arc<Segment>>) {
        let segments = self.segments();
        let (old, rest) = segments.split_at(count);
        let size = |segments: &[Arc<Segment>]| segments.iter().map(|segment| segment.position()).sum::<u64>();
        let (before, after) = (size(old), size(&compacted));
        compacted.extend_from_slice(rest);
        self.segments.store(Arc::new(compacted));
        self.size_bytes.fetch_add(after, Ordering::AcqRel);
        self.size_bytes.fetch_sub(before, Ordering::AcqRel);
        self.lock_opened().retain(|opened| !old.iter().any(|old| Arc::ptr_eq(old, opened)));
    }

    /// The log was cut: these segments are left, and it ends at `end`. Whoever reads what is gone keeps what it has.
    pub(crate) fn cut(&self, segments: Vec<Arc<Segment>>, log_start: Offset, end: Offset) {
        let bytes = segments.iter().map(|segment| segment.position()).sum();
        // The end first: whoever looks in between finds less than there is, and not more.
        self.end.store(end.0, Ordering::Release);
        let high_watermark = self.high_watermark().min(end).max(log_start);
        self.high_watermark.store(high_watermark.0, Ordering::Release);
        self.log_start.store(log_start.0, Ordering::Release);
        self.segments.store(Arc::new(segments));
        self.size_bytes.store(bytes, Ordering::Release);
        self.lock_opened().clear();
    }

    /// Opens a segment for a reader. The one opened longest ago is closed if that makes too many.
    pub(crate) fn open_old(&self, segment: &Arc<Segment>) -> io::Result<Arc<dyn DiskFile>> {
        let was_open = segment.is_open();
        let file = segment.open(&*self.disk, &self.dir)?;
        if !was_open {
            let mut opened = self.lock_opened();
            opened.retain(|other| !Arc::ptr_eq(other, segment));
            opened.push_back(Arc::clone(segment));
            if opened.len() > OPEN_SEGMENTS_MAX
                && let Some(oldest) = opened.pop_front()
            {
                oldest.release();
            }
        }
        Ok(file)
    }

    /// Gives back every descriptor and map.
    pub(crate) fn release_files(&self) {
        self.recency.forget();
        self.lock_opened().clear();
        for segment in self.segments().iter() {
            segment.release();
        }
    }

    /// Gives back what belongs to segments that are no longer recent.
    fn release_old(&self) {
        let recent_from = self.recent_from();
        let segments = self.segments();
        let opened = self.lock_opened();
        for segment in segments.iter().rev().skip(1) {
            let is_in_use = segment.recent_from(recent_from) < segment.position()
                || opened.iter().any(|other| Arc::ptr_eq(other, segment));
            if !is_in_use && !segment.release() {
                // It was released before, and so were all before it.
                break;
            }
        }
    }

    fn lock_opened(&self) -> std::sync::MutexGuard<'_, VecDeque<Arc<Segment>>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The offsets that bound a log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) log_start: Offset,
    pub(crate) high_watermark: Offset,
    pub(crate) end: Offset,
}
