//! What of a log is likely in the page cache still: what was written lately, measured in bytes and not in time.
//!
//! All logs of the process share one page cache, so that a byte grows old by what is written to any of them. Each log
//! keeps a few marks of how much all of them had written when it had written how much.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use quire_protocol::limits;

/// Bytes that all logs together write between two marks of one.
const MARK_STEP_BYTES: u64 = limits::RECENT_BYTES / 64;
/// Bytes written to all logs of this process.
static WRITTEN_TO_ALL: AtomicU64 = AtomicU64::new(0);

/// How recent the bytes are that were written to one log since it was opened.
#[derive(Debug, Default)]
pub(crate) struct Recency {
    /// In order.
    marks: Mutex<VecDeque<Mark>>,
    /// The next mark is due when so much was written to all.
    due_at: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    written_to_all: u64,
    written: u64,
}

impl Recency {
    /// After `written` bytes of this log, `bytes` more were written.
    pub(crate) fn note(&self, written: u64, bytes: u64) {
        self.mark(WRITTEN_TO_ALL.fetch_add(bytes, Ordering::Relaxed), written);
    }

    /// From here on, in bytes written to this log, of which there are `written`, they are likely in memory.
    pub(crate) fn recent_from(&self, written: u64) -> u64 {
        self.recent_from_at(WRITTEN_TO_ALL.load(Ordering::Relaxed), written)
    }

    /// Nothing written so far counts as recent any more, and nothing is kept of it.
    pub(crate) fn forget(&self) {
        *self.marks() = VecDeque::new();
        self.due_at.store(0, Ordering::Relaxed);
    }

    fn mark(&self, written_to_all: u64, written: u64) {
        if written_to_all < self.due_at.load(Ordering::Relaxed) {
            return;
        }
        self.due_at.store(written_to_all + MARK_STEP_BYTES, Ordering::Relaxed);
        let mut marks = self.marks();
        marks.retain(|mark| mark.is_recent(written_to_all));
        marks.push_back(Mark { written_to_all, written });
    }

    fn recent_from_at(&self, written_to_all: u64, written: u64) -> u64 {
        let marks = self.marks();
        let oldest = marks.iter().find(|mark| mark.is_recent(written_to_all));
        let from = oldest.map_or(written, |mark| mark.written);
        from.max(written.saturating_sub(limits::LOG_RECENT_BYTES))
    }

    fn marks(&self) -> MutexGuard<'_, VecDeque<Mark>> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mark {
    fn is_recent(&self, written_to_all: u64) -> bool {
        written_to_all.saturating_sub(self.written_to_all) <= limits::RECENT_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_written_alone_is_recent_up_to_its_own_bound() {
        let recency = Recency::default();
        let mut written = 0;
        while written < 3 * limits::LOG_RECENT_BYTES {
            recency.mark(written, written);
            written += 1 << 20;
        }
        assert_eq!(recency.recent_from_at(written, written), written - limits::LOG_RECENT_BYTES);
    }

    #[test]
    fn many_logs_share_what_is_recent() {
        const LOGS: u64 = 500;
        let logs: Vec<Recency> = (0..LOGS).map(|_| Recency::default()).collect();
        let (mut written_to_all, mut written) = (0, 0);
        while written < 16 << 20 {
            for log in &logs {
                log.mark(written_to_all, written);
                written_to_all += 64 * 1024;
            }
            written += 64 * 1024;
        }
        let recent = logs.iter().map(|log| written - log.recent_from_at(written_to_all, written));
        let recent: u64 = recent.sum();
        let most = limits::RECENT_BYTES + MARK_STEP_BYTES;
        assert!((limits::RECENT_BYTES / 2..=most).contains(&recent), "{recent} of {written_to_all}");
        assert!(logs.iter().all(|log| log.marks().len() <= 66), "a few marks each");
    }

    #[test]
    fn what_others_write_makes_a_log_old_and_its_next_record_is_recent_at_once() {
        let recency = Recency::default();
        recency.mark(0, 0);
        assert_eq!(recency.recent_from_at(100, 100), 0);
        assert_eq!(recency.recent_from_at(limits::RECENT_BYTES + 1, 100), 100);
        recency.mark(limits::RECENT_BYTES + 1, 100);
        assert_eq!(recency.recent_from_at(limits::RECENT_BYTES + 51, 150), 100);
        recency.forget();
        assert_eq!(recency.recent_from_at(limits::RECENT_BYTES + 51, 150), 150);
        recency.mark(limits::RECENT_BYTES + 51, 150);
        assert_eq!(recency.recent_from_at(limits::RECENT_BYTES + 61, 160), 150);
    }
}
