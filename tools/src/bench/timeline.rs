//! The sampler: a thread of its own empties the meters and looks at both processes, so that no second is missed because
//! the load is busy.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::measure::{Meter, Tally, percentile_us};
use super::probe::{BrokerSample, Probe};
use super::process::{self, Usage};
use super::report::Second;
use crate::failure::Failure;

/// Looks in a second: memory, and what the progress line shows.
const TICKS_PER_SECOND: u32 = 5;
/// An end so soon after a second's belongs to that second.
const SECOND_MIN: Duration = Duration::from_millis(50);

/// What is sampled.
#[derive(Debug)]
pub struct Sources {
    /// Where producers count.
    pub producers: Vec<Arc<Meter>>,
    /// Where consumers count.
    pub consumers: Vec<Arc<Meter>>,
    /// The broker.
    pub probe: Probe,
}

/// What the progress line shows.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Since the measurement began.
    pub elapsed: Duration,
    /// How long this moment took.
    pub took: Duration,
    /// Records acknowledged, or consumed where nothing is produced, in this moment.
    pub records: u64,
    /// Records since the measurement began.
    pub records_so_far: u64,
    /// The 99th percentile of what they took (microseconds).
    pub p99_us: Option<f64>,
}

/// Everything that was sampled.
#[derive(Debug)]
pub struct Samples {
    /// What was acknowledged.
    pub produced: Tally,
    /// What was consumed.
    pub consumed: Tally,
    /// Second by second.
    pub seconds: Vec<Second>,
    /// Processor seconds that this process used.
    pub client_cpu_seconds: f64,
    /// Largest memory of this process.
    pub client_memory: Memory,
    /// The broker at the beginning.
    pub broker_before: BrokerSample,
    /// The broker at the end.
    pub broker_after: BrokerSample,
    /// Largest memory of the broker.
    pub broker_memory: Memory,
}

/// The largest memory seen (bytes).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Resident.
    pub resident: Option<u64>,
    /// Resident, and no file.
    pub anonymous: Option<u64>,
}

impl Memory {
    fn see(&mut self, resident: Option<u64>, anonymous: Option<u64>) {
        self.resident = self.resident.max(resident);
        self.anonymous = self.anonymous.max(anonymous);
    }
}

/// The running sampler.
#[derive(Debug)]
pub struct Sampler {
    end: mpsc::Sender<Instant>,
    thread: JoinHandle<Samples>,
}

impl Sampler {
    /// Empties the meters and starts; `watch` is told of every moment.
    ///
    /// # Errors
    /// If the system gives no more threads.
    pub fn start(sources: Sources, watch: impl FnMut(&Moment) + Send + 'static) -> Result<Sampler, Failure> {
        let (end, ended) = mpsc::channel();
        let (ready, started) = mpsc::channel();
        let body = move || {
            sources.producers.iter().chain(&sources.consumers).for_each(|meter| drop(meter.take()));
            let sampling = Sampling::begin(sources);
            let _ = ready.send(());
            sampling.run(&ended, watch)
        };
        let thread = Builder::new().name("sampler".into()).spawn(body);
        let thread = thread.map_err(|error| Failure::failed(format!("no thread to sample with: {error}")))?;
        // A sampler that could not begin says so when it is ended.
        let _ = started.recv();
        Ok(Sampler { end, thread })
    }

    /// Ends the measurement at this moment; nothing counts any more. Blocks while the broker is looked at.
    pub fn finish(self, end: Instant) -> Samples {
        // A sampler that is gone has panicked, which joining it tells.
        let _ = self.end.send(end);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

struct Sampling {
    sources: Sources,
    start: Instant,
    samples: Samples,
    client_before: Option<Usage>,
    /// The second under way.
    produced: Tally,
    consumed: Tally,
    client_then: Option<Usage>,
    broker_then: BrokerSample,
}

impl Sampling {
    fn begin(sources: Sources) -> Sampling {
        let broker = sources.probe.sample();
        let client = process::usage_of_self();
        let samples = Samples {
            produced: Tally::default(),
            consumed: Tally::default(),
            seconds: Vec::new(),
            client_cpu_seconds: 0.0,
            client_memory: Memory::default(),
            broker_before: broker,
            broker_after: broker,
            broker_memory: Memory::default(),
        };
        Sampling {
            sources,
            start: Instant::now(),
            samples,
            client_before: client,
            produced: Tally::default(),
            consumed: Tally::default(),
            client_then: client,
            broker_then: broker,
        }
    }

    fn run(mut self, ended: &mpsc::Receiver<Instant>, mut watch: impl FnMut(&Moment)) -> Samples {
        let tick = Duration::from_secs(1) / TICKS_PER_SECOND;
        let mut then = Duration::ZERO;
        for number in 1.. {
            let due = self.start + tick * number;
            match ended.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(end) => return self.finish(end),
                // Nobody wants to know any more.
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let elapsed = self.start.elapsed();
            let moment = self.look(elapsed, elapsed.saturating_sub(then));
            watch(&moment);
            then = elapsed;
            if number.is_multiple_of(TICKS_PER_SECOND) {
                self.end_second(elapsed);
            }
        }
        self.samples
    }

    fn finish(mut self, end: Instant) -> Samples {
        let elapsed = end.saturating_duration_since(self.start);
        self.look(elapsed, Duration::ZERO);
        let then = self.samples.seconds.last().map_or(0.0, |second| second.at);
        let is_sliver = then > 0.0 && elapsed.as_secs_f64() < then + SECOND_MIN.as_secs_f64();
        self.end_second(elapsed);
        if is_sliver {
            join_last_two(&mut self.samples.seconds);
        }
        let client = |usage: Option<Usage>| usage.map_or(0.0, |usage| usage.cpu_seconds);
        self.samples.client_cpu_seconds = client(self.client_then) - client(self.client_before);
        self.samples.broker_after = self.broker_then;
        self.samples
    }

    /// Empties the meters, and looks how much memory there is.
    fn look(&mut self, elapsed: Duration, took: Duration) -> Moment {
        let take = |meters: &[Arc<Meter>]| {
            meters.iter().fold(Tally::default(), |mut sum, meter| {
                sum.add(&meter.take());
                sum
            })
        };
        let (produced, consumed) = (take(&self.sources.producers), take(&self.sources.consumers));
        let shown = if self.sources.producers.is_empty() { &consumed } else { &produced };
        let timed = if consumed.latencies.is_empty() { shown } else { &consumed };
        let (records, p99_us) = (shown.records, percentile_us(&timed.latencies, 99.0));
        self.produced.add(&produced);
        self.consumed.add(&consumed);
        self.see_memory();
        let in_second = if self.sources.producers.is_empty() { &self.consumed } else { &self.produced };
        let before =
            if self.sources.producers.is_empty() { &self.samples.consumed } else { &self.samples.produced };
        Moment { elapsed, took, records, records_so_far: before.records + in_second.records, p99_us }
    }

    fn see_memory(&mut self) {
        if let Some(usage) = process::usage_of_self() {
            self.samples.client_memory.see(Some(usage.memory_bytes), usage.anonymous_bytes);
        }
        if let Some(usage) = self.sources.probe.usage() {
            self.samples.broker_memory.see(Some(usage.memory_bytes), usage.anonymous_bytes);
        }
    }

    fn end_second(&mut self, elapsed: Duration) {
        let (client, broker) = (process::usage_of_self(), self.sources.probe.sample());
        self.samples.broker_memory.see(broker.memory_bytes, broker.anonymous_bytes);
        let (produced, consumed) = (std::mem::take(&mut self.produced), std::mem::take(&mut self.consumed));
        let client_cpu = client.zip(self.client_then).map(|(now, then)| now.cpu_seconds - then.cpu_seconds);
        let broker_cpu = broker.cpu_seconds.zip(self.broker_then.cpu_seconds).map(|(now, then)| now - then);
        self.samples.seconds.push(Second {
            at: elapsed.as_secs_f64(),
            produced_records: produced.records,
            produced_bytes: produced.bytes,
            consumed_records: consumed.records,
            consumed_bytes: consumed.bytes,
            acknowledgement_p50_us: percentile_us(&produced.latencies, 50.0),
            acknowledgement_p99_us: percentile_us(&produced.latencies, 99.0),
            end_to_end_p50_us: percentile_us(&consumed.latencies, 50.0),
            end_to_end_p99_us: percentile_us(&consumed.latencies, 99.0),
            client_cpu_seconds: client_cpu.unwrap_or(0.0),
            broker_cpu_seconds: broker_cpu,
            broker_memory_bytes: broker.memory_bytes,
            syncs: broker.syncs.zip(self.broker_then.syncs).map(|(now, then)| now.saturating_sub(then)),
        });
        self.samples.produced.add(&produced);
        self.samples.consumed.add(&consumed);
        (self.client_then, self.broker_then) = (client, broker);
    }
}

/// Counts what came in the last second to the one before, whose latencies speak for both.
fn join_last_two(seconds: &mut Vec<Second>) {
    let Some(sliver) = seconds.pop() else { return };
    let Some(last) = seconds.last_mut() else { return };
    last.at = last.at.max(sliver.at);
    last.produced_records += sliver.produced_records;
    last.produced_bytes += sliver.produced_bytes;
    last.consumed_records += sliver.consumed_records;
    last.consumed_bytes += sliver.consumed_bytes;
    last.client_cpu_seconds += sliver.client_cpu_seconds;
    last.broker_cpu_seconds = last.broker_cpu_seconds.zip(sliver.broker_cpu_seconds).map(|(a, b)| a + b);
    last.syncs = last.syncs.zip(sliver.syncs).map(|(a, b)| a + b);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_right_behind_a_second_is_a_part_of_it() {
        let second =
            |at, produced_records, syncs| Second { at, produced_records, syncs, ..Second::default() };
        let mut seconds = vec![second(1.0, 5, Some(1)), second(2.001, 7, Some(2)), second(1.999, 3, None)];
        join_last_two(&mut seconds);
        assert_eq!(seconds, [second(1.0, 5, Some(1)), second(2.001, 10, None)]);
    }

    #[test]
    fn what_was_counted_before_is_left_out_and_the_rest_adds_up() {
        let (meter, consumed) = (Arc::new(Meter::default()), Arc::new(Meter::default()));
        meter.tally().count_with(1000, 5);
        let sources = Sources {
            producers: vec![Arc::clone(&meter)],
            consumers: vec![Arc::clone(&consumed)],
            probe: Probe::default(),
        };
        let (tell, told) = mpsc::channel();
        let watch = move |moment: &Moment| tell.send(*moment).expect("the test listens");
        let sampler = Sampler::start(sources, watch).expect("threads can be had");
        let mut seen = 0;
        while seen < 3 {
            meter.tally().count_with(10, 2_000_000);
            consumed.tally().count(20);
            seen += told.recv().expect("the sampler lives").records;
        }
        let samples = sampler.finish(Instant::now());
        assert_eq!((samples.produced.records, samples.produced.bytes), (seen, 10 * seen));
        assert_eq!(samples.consumed.bytes, 20 * samples.consumed.records);
        assert_eq!(samples.produced.latencies.len(), seen);
        let in_seconds: u64 = samples.seconds.iter().map(|second| second.produced_records).sum();
        assert_eq!(in_seconds, seen);
        assert!(samples.seconds.iter().is_sorted_by(|a, b| a.at <= b.at));
        assert!(samples.client_memory.resident.is_some());
        assert_eq!(samples.broker_memory, Memory::default(), "nobody was looked at");
    }
}
