//! Keeps the schedule: a thread of its own tells producers when records are due, since the runtime's timers tell
//! milliseconds and a record takes less.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::schedule::Schedule;
use crate::failure::Failure;

/// Records due within so short a time are told together: a thread does not wake more often than this.
const PAUSE_MIN: Duration = Duration::from_micros(50);
/// How late the system may wake the pacer.
const TIMER_SLACK_NS: NonZeroU64 = NonZeroU64::MIN;

/// One producer's way to learn what is due.
#[derive(Debug, Default)]
pub struct Gate {
    due: AtomicU64,
    changed: Notify,
}

impl Gate {
    /// How many records are due, or were before.
    pub fn due(&self) -> u64 {
        self.due.load(Ordering::Acquire)
    }

    /// Waits for the count to have changed since it was last waited for.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// The thread that keeps a schedule. It ends when dropped.
#[derive(Debug)]
pub struct Pacer {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pacer {
    /// Keeps `schedule` from `start` on, one gate for each producer.
    ///
    /// # Errors
    /// If the system gives no more threads.
    pub fn start(schedule: Schedule, start: Instant, gates: Vec<Arc<Gate>>) -> Result<Pacer, Failure> {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let thread = Builder::new()
            .name("pacer".into())
            .spawn(move || keep(schedule, start, &gates, &over))
            .map_err(|error| Failure::failed(format!("no thread to keep the rate: {error}")))?;
        Ok(Pacer { is_over, thread: Some(thread) })
    }
}

impl Drop for Pacer {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

fn keep(schedule: Schedule, start: Instant, gates: &[Arc<Gate>], is_over: &AtomicBool) {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::thread::set_current_timer_slack(Some(TIMER_SLACK_NS)) {
        tracing::debug!(%error, "the timer's slack stays as it is");
    }
    let mut told = 0;
    while !is_over.load(Ordering::Acquire) {
        let elapsed = start.elapsed();
        let due = schedule.due_total(elapsed);
        // Producers take turns: these are the ones whose turn came.
        for turn in (told..due).take(gates.len()) {
            let producer = (turn % gates.len() as u64) as usize;
            gates[producer].due.store(schedule.due_count(producer as u32, elapsed), Ordering::Release);
            gates[producer].changed.notify_one();
        }
        told = due;
        let pause = schedule.next_after(elapsed).saturating_sub(start.elapsed());
        std::thread::park_timeout(pause.max(PAUSE_MIN));
    }
}
