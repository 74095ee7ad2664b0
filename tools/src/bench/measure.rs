//! What is counted while the load runs: each task fills a meter of its own, the sampler empties them all.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::report::{Bucket, Flow, Latency, LatencyKind};

/// Significant digits of latencies: every figure is within 0.1 % of what was measured.
const SIGNIFICANT_DIGITS: u8 = 3;
/// Upper ends of a distribution's bars stand apart by this factor to the power of 1/[`BARS_PER_DOUBLING`].
const BARS_PER_DOUBLING: f64 = 8.0;

/// The load's own clock: nanoseconds since it was made. Copies tell the same time.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that begins now.
    pub fn start() -> Clock {
        Clock(Instant::now())
    }

    /// The time (nanoseconds).
    pub fn now_ns(self) -> u64 {
        nanos(self.0.elapsed())
    }

    /// The moment at which it shows `time_ns`.
    pub fn at(self, time_ns: u64) -> Instant {
        self.0 + Duration::from_nanos(time_ns)
    }
}

/// A span in nanoseconds; 585 years are enough.
pub fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// An empty distribution of latencies (nanoseconds), which grows as far as needed.
pub fn new_histogram() -> Histogram<u64> {
    Histogram::new(SIGNIFICANT_DIGITS).expect("three digits are a valid precision")
}

/// What was counted since the meter was emptied.
#[derive(Debug, Clone)]
pub struct Tally {
    /// Records.
    pub records: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Their latencies (nanoseconds), where they have any.
    pub latencies: Histogram<u64>,
}

impl Tally {
    /// Counts a record.
    pub fn count(&mut self, bytes: u64) {
        self.records += 1;
        self.bytes += bytes;
    }

    /// Counts a record with its latency.
    pub fn count_with(&mut self, bytes: u64, latency_ns: u64) {
        self.count(bytes);
        self.latencies.record(latency_ns).expect("it grows as far as needed");
    }

    /// Takes in what another counted.
    pub fn add(&mut self, other: &Tally) {
        self.records += other.records;
        self.bytes += other.bytes;
        self.latencies.add(&other.latencies).expect("both grow as far as needed");
    }

    /// Over this time (seconds).
    pub fn flow(&self, seconds: f64) -> Flow {
        let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        Flow {
            records: self.records,
            bytes: self.bytes,
            records_per_second: per_second(self.records),
            bytes_per_second: per_second(self.bytes),
        }
    }
}

impl Default for Tally {
    fn default() -> Tally {
        Tally { records: 0, bytes: 0, latencies: new_histogram() }
    }
}

/// One task's tally, which the sampler takes away from time to time.
#[derive(Debug, Default)]
pub struct Meter(Mutex<Tally>);

impl Meter {
    /// The tally, to count several records under one lock.
    pub fn tally(&self) -> MutexGuard<'_, Tally> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was counted since the last time.
    pub fn take(&self) -> Tally {
        std::mem::take(&mut *self.tally())
    }
}

/// A percentile (microseconds); `None` without latencies.
pub fn percentile_us(latencies: &Histogram<u64>, percentile: f64) -> Option<f64> {
    (!latencies.is_empty()).then(|| micros(latencies.value_at_percentile(percentile)))
}

/// The distribution as it is reported; `None` without latencies.
pub fn latency(kind: LatencyKind, is_corrected: bool, latencies: &Histogram<u64>) -> Option<Latency> {
    if latencies.is_empty() {
        return None;
    }
    let at = |percentile| micros(latencies.value_at_percentile(percentile));
    Some(Latency {
        kind,
        is_corrected,
        count: latencies.len(),
        min_us: micros(latencies.min()),
        mean_us: latencies.mean() / 1000.0,
        p50_us: at(50.0),
        p90_us: at(90.0),
        p99_us: at(99.0),
        p999_us: at(99.9),
        p9999_us: at(99.99),
        max_us: micros(latencies.max()),
        buckets: buckets(latencies),
    })
}

/// Bars from the first with latencies to the last, each 9 % wider than the one before.
fn buckets(latencies: &Histogram<u64>) -> Vec<Bucket> {
    let bar_of = |ns: u64| (micros(ns).max(1.0).log2() * BARS_PER_DOUBLING).ceil() as usize;
    let upper_us = |bar: usize| (bar as f64 / BARS_PER_DOUBLING).exp2();
    let mut counts = BTreeMap::new();
    for value in latencies.iter_recorded() {
        *counts.entry(bar_of(value.value_iterated_to())).or_insert(0) += value.count_at_value();
    }
    let (first, last) = (counts.keys().next().copied(), counts.keys().next_back().copied());
    let bars = first.zip(last).into_iter().flat_map(|(first, last)| first..=last);
    bars.map(|bar| Bucket { upper_us: upper_us(bar), count: counts.get(&bar).copied().unwrap_or(0) })
        .collect()
}

fn micros(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tally(latencies: &[u64]) -> Tally {
        let mut tally = Tally::default();
        latencies.iter().for_each(|latency| tally.count_with(10, *latency));
        tally
    }

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let tally = tally(&(1..=1000).map(|n| n * 1_000_000).collect::<Vec<_>>());
        let latency = latency(LatencyKind::Acknowledgement, true, &tally.latencies).expect("there are some");
        let is_near = |found: f64, expected: f64| (found / expected - 1.0).abs() < 0.002;
        assert_eq!(latency.count, 1000);
        assert!(is_near(latency.p50_us, 500_000.0) && is_near(latency.p99_us, 990_000.0), "{latency:?}");
        assert!(is_near(latency.max_us, 1_000_000.0) && is_near(latency.min_us, 1_000.0), "{latency:?}");
        assert!(is_near(latency.mean_us, 500_500.0), "{latency:?}");
    }

    #[test]
    fn without_latencies_there_is_no_distribution() {
        let mut tally = Tally::default();
        tally.count(5);
        assert!(latency(LatencyKind::EndToEnd, false, &tally.latencies).is_none());
        assert_eq!(percentile_us(&tally.latencies, 99.0), None);
    }

    #[test]
    fn a_meter_gives_away_what_it_counted_once() {
        let meter = Meter::default();
        meter.tally().count_with(7, 9);
        let taken = meter.take();
        assert_eq!((taken.records, taken.bytes, taken.latencies.len()), (1, 7, 1));
        assert_eq!(meter.take().records, 0);
        let mut sum = taken.clone();
        sum.add(&taken);
        let flow = sum.flow(2.0);
        assert_eq!((flow.records, flow.bytes), (2, 14));
        assert_eq!((flow.records_per_second, flow.bytes_per_second), (1.0, 7.0));
    }

    proptest! {
        #[test]
        fn every_latency_stands_in_one_bar(latencies in proptest::collection::vec(0u64..100_000_000_000, 1..200)) {
            let buckets = buckets(&tally(&latencies).latencies);
            prop_assert_eq!(buckets.iter().map(|bucket| bucket.count).sum::<u64>(), latencies.len() as u64);
            prop_assert!(buckets.iter().is_sorted_by(|a, b| a.upper_us < b.upper_us));
            prop_assert!(buckets.first().is_some_and(|bar| bar.count > 0));
            prop_assert!(buckets.last().is_some_and(|bar| bar.count > 0));
        }
    }
}
