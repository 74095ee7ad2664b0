//! Stopping in order: no new work, answers to what was taken, then the connections, then the logs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// How a broker stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShutdownReport {
    /// Connections that were open when it began.
    pub connections: usize,
    /// Partitions that were closed.
    pub partitions: usize,
    /// Whether every log was closed with everything on disk, so that the next start has nothing to recover.
    pub clean: bool,
    /// How long it took.
    pub took: Duration,
}

/// Tells everything that runs to come to an end.
#[derive(Debug, Clone)]
pub(crate) struct Stopping(watch::Receiver<bool>);

/// Gives the word to stop; dropping it does too.
#[derive(Debug)]
pub(crate) struct StopSignal(watch::Sender<bool>);

impl StopSignal {
    pub(crate) fn new() -> (StopSignal, Stopping) {
        let (sender, receiver) = watch::channel(false);
        (StopSignal(sender), Stopping(receiver))
    }

    pub(crate) fn request(&self) {
        self.0.send_replace(true);
    }
}

impl Stopping {
    pub(crate) fn is_requested(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Returns once the stop is requested. Cancel-safe.
    pub(crate) async fn requested(&mut self) {
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}

/// Counts what is under way, so that a shutdown can wait for it.
#[derive(Debug, Clone)]
pub(crate) struct Underway(Arc<watch::Sender<usize>>);

/// One thing under way; ends when dropped.
#[derive(Debug)]
pub(crate) struct UnderwayGuard(Arc<watch::Sender<usize>>);

impl Underway {
    pub(crate) fn new() -> Underway {
        Underway(Arc::new(watch::channel(0).0))
    }

    pub(crate) fn enter(&self) -> UnderwayGuard {
        self.0.send_modify(|count| *count += 1);
        UnderwayGuard(Arc::clone(&self.0))
    }

    pub(crate) fn count(&self) -> usize {
        *self.0.borrow()
    }

    /// Returns once nothing is under way.
    pub(crate) async fn idle(&self) {
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Drop for UnderwayGuard {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn idle_waits_for_every_guard() {
        let underway = Underway::new();
        let (first, second) = (underway.enter(), underway.enter());
        assert_eq!(underway.count(), 2);
        let waiting = tokio::spawn({
            let underway = underway.clone();
            async move { underway.idle().await }
        });
        drop(first);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "one is still under way");
        drop(second);
        waiting.await.expect("it ends");
    }

    #[tokio::test]
    async fn a_dropped_signal_means_stop() {
        let (signal, mut stopping) = StopSignal::new();
        assert!(!stopping.is_requested());
        drop(signal);
        stopping.requested().await;
        assert!(stopping.is_requested());
    }
}
