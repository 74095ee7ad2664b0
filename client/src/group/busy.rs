//! Whether the consumer's owner still asks for records.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// When the consumer was polled last: by its owner, who gets a record or waits for one. Who waits polls again now and then.
#[derive(Debug)]
pub(super) struct Busy {
    origin: Instant,
    /// Milliseconds since the origin.
    polled_at: AtomicU64,
    polled: Notify,
    /// Set while somebody waits to hear of the next poll.
    is_awaited: AtomicBool,
}

impl Busy {
    /// Nobody asked for a record yet: as good as busy with one.
    pub(super) fn new(now: Instant) -> Busy {
        let (polled_at, polled) = (AtomicU64::new(0), Notify::new());
        Busy { origin: now, polled_at, polled, is_awaited: AtomicBool::new(false) }
    }

    /// The next record is asked for, or still waited for.
    pub(super) fn polled(&self, now: Instant) {
        let at = now.saturating_duration_since(self.origin).as_millis() as u64;
        self.polled_at.store(at, Ordering::SeqCst);
        if self.is_awaited.load(Ordering::SeqCst) {
            self.polled.notify_one();
        }
    }

    /// When it was polled last.
    pub(super) fn polled_at(&self) -> Instant {
        self.origin + Duration::from_millis(self.polled_at.load(Ordering::SeqCst))
    }

    /// Waits for a poll after this one. Dropping the future loses nothing.
    pub(super) async fn polled_after(&self, last: Instant) {
        self.is_awaited.store(true, Ordering::SeqCst);
        while self.polled_at() <= last {
            self.polled.notified().await;
        }
        self.is_awaited.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_poll_is_heard_of_by_who_waits_for_it() {
        let begun = Instant::now();
        let busy = Busy::new(begun);
        let second = Duration::from_secs(1);
        assert_eq!(busy.polled_at(), begun);
        assert!(busy.polled_after(begun).now_or_never().is_none());
        busy.polled(begun + second);
        assert_eq!(busy.polled_at(), begun + second);
        busy.polled_after(begun).await;
        let wait = busy.polled_after(begun + second);
        tokio::pin!(wait);
        assert!(wait.as_mut().now_or_never().is_none());
        busy.polled(begun + 2 * second);
        wait.await;
    }
}
