//! Latencies of an open loop: counted from when each operation was due, so that a stall is seen by everything it held up.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;

/// More counts as this (nanoseconds).
const LATENCY_NANOS_MAX: u64 = 60_000_000_000;

/// Latencies of one run, to three digits.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies(Histogram::new_with_max(LATENCY_NANOS_MAX, 3).expect("legal bounds"))
    }
}

impl Latencies {
    /// Adds one; more than a minute counts as a minute.
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(latency.as_nanos() as u64);
    }

    /// The latency that this part of all stays within (seconds).
    pub fn quantile(&self, part: f64) -> f64 {
        self.0.value_at_quantile(part) as f64 / 1e9
    }
}

/// Does `operation` once every `period` for `time`, one at a time. One that is late because the one before it took long
/// starts at once, and its latency counts from when it was due.
///
/// # Errors
/// The first of `operation`.
pub fn paced(
    period: Duration,
    time: Duration,
    mut operation: impl FnMut() -> Result<()>,
) -> Result<Latencies> {
    let mut latencies = Latencies::default();
    let start = Instant::now();
    let mut due = start;
    while due < start + time {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        operation()?;
        latencies.record(due.elapsed());
        due += period;
    }
    Ok(latencies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stall_holds_up_is_late_too() {
        let stall = Duration::from_millis(20);
        let mut is_first = true;
        let latencies = paced(Duration::from_millis(1), Duration::from_millis(10), || {
            if std::mem::take(&mut is_first) {
                thread::sleep(stall);
            }
            Ok(())
        });
        // The last of the ten was due after 9 ms and done after 20 at the earliest.
        assert!(latencies.expect("no error").quantile(0.0) >= 0.010);
    }
}
