//! One repetition: a topic of its own, connections, load before the measurement, and the measurement.

use std::sync::Arc;
use std::time::Duration;

use quire_client::{Client, ClientConfig, NewTopic};
use quire_protocol::limits;
use tokio::task::JoinSet;

use super::args::Plan;
use super::broker::Target;
use super::load::consume::{Arrivals, Counting, LoadConsumer, partitions_of};
use super::load::produce::{Limit, LoadProducer, LoadProducerParts, Pace, Part, due_before, share};
use super::load::reading::Reading;
use super::measure::{Clock, Meter, latency, nanos};
use super::pacer::{Gate, Pacer};
use super::payload::{Contents, Phase, RecordMaker};
use super::progress::ProgressLine;
use super::report::{LatencyKind, Process, Run, Scenario};
use super::schedule::Schedule;
use super::timeline::{Memory, Sampler, Samples, Sources};
use super::verify::{self, Ledger};
use crate::failure::Failure;
use crate::output;

/// What every repetition of a plan shares.
#[derive(Debug)]
pub struct Bench<'a> {
    /// What to do.
    pub plan: &'a Plan,
    /// Whom it is done to.
    pub target: &'a Target,
    /// What records hold.
    pub contents: Arc<Contents>,
    /// The load's clock.
    pub clock: Clock,
}

/// A topic, and what was written to it before.
#[derive(Debug)]
pub struct Stage {
    topic: Arc<str>,
    /// Who wrote what is there already; they go on with their sequences.
    producers: Vec<LoadProducer>,
}

impl Stage {
    /// The topic's name.
    pub fn topic(&self) -> &str {
        &self.topic
    }
}

impl Bench<'_> {
    /// Makes a topic, connects producers, and writes what is to be there before.
    ///
    /// # Errors
    /// If the broker refuses the topic, can not be reached, or does not take every record.
    pub async fn prepare(&self, topic: &str, progress: &ProgressLine) -> Result<Stage, Failure> {
        let client = self.connect().await?;
        let created = client.admin().create_topic(self.new_topic(topic)).await;
        client.close().await;
        created?;
        let topic: Arc<str> = topic.into();
        let mut producers = Vec::with_capacity(self.plan.settings.producers as usize);
        for number in 0..self.plan.settings.producers {
            producers.push(self.connect_producer(number, &topic).await?);
        }
        if self.plan.prefill > 0 {
            progress.say("writing what is to be read");
            producers = self.prefill(producers).await?;
        }
        Ok(Stage { topic, producers })
    }

    /// Runs one repetition on a stage, which can be used again.
    ///
    /// # Errors
    /// If the broker can not be reached or read.
    pub async fn repeat(&self, stage: &mut Stage, progress: &ProgressLine) -> Result<Run, Failure> {
        let producers = std::mem::take(&mut stage.producers);
        let measured = match self.plan.settings.scenario {
            Scenario::Consume => self.consume(&stage.topic, producers, progress).await?,
            _ => self.produce(&stage.topic, producers, progress).await?,
        };
        stage.producers = measured.producers;
        let mut run = self.run(measured.samples, measured.seconds, measured.failed);
        if self.plan.settings.verify {
            progress.say("reading everything back");
            let client = self.connect().await?;
            let ledger = Ledger::of(&stage.producers);
            let found = verify::read_back(&client, &stage.topic, &self.contents, &ledger).await;
            client.close().await;
            run.verification = Some(found?);
        }
        Ok(run)
    }

    /// Takes leave of the broker, and removes the topic.
    pub async fn clear(&self, stage: Stage) {
        for producer in stage.producers {
            producer.close().await;
        }
        self.delete_topic(&stage.topic).await;
    }

    /// Removes a topic; a broker that can not is told of in the log and left with it.
    pub async fn delete_topic(&self, topic: &str) {
        let deleted = async {
            let client = self.connect().await?;
            let deleted = client.admin().delete_topic(topic).await;
            client.close().await;
            deleted
        };
        if let Err(error) = deleted.await {
            tracing::warn!(%error, topic, "the benchmark's topic could not be deleted");
        }
    }

    async fn connect(&self) -> Result<Client, quire_client::Error> {
        let config = ClientConfig {
            cipher: Some(self.plan.cipher),
            client_name: "quire bench".into(),
            ..ClientConfig::default()
        };
        Client::connect_configured(self.target.profile.clone(), config).await
    }

    fn new_topic(&self, name: &str) -> NewTopic {
        let settings = &self.plan.settings;
        let needed = (settings.batch_bytes as usize).max(self.plan.contents.size.max() + 64 * 1024);
        let message_bytes = needed.clamp(limits::MESSAGE_BYTES_DEFAULT, limits::BATCH_BYTES_MAX);
        let topic = settings
            .topic_config
            .iter()
            .fold(NewTopic::new(name), |topic, (key, value)| topic.config(key, value));
        topic
            .partitions(settings.partitions)
            .replicas(settings.replicas)
            .config("sync", &settings.sync)
            .config("max.message.bytes", message_bytes.to_string())
    }

    async fn connect_producer(&self, number: u32, topic: &Arc<str>) -> Result<LoadProducer, Failure> {
        let client = self.connect().await?;
        let producer = client
            .producer()
            .linger(self.plan.linger)
            .batch_bytes(self.plan.contents.batch_bytes)
            .compression(self.plan.contents.compression)
            .acks(self.plan.acks)
            .build();
        Ok(LoadProducer::new(LoadProducerParts {
            number,
            client,
            producer,
            topic: Arc::clone(topic),
            maker: RecordMaker::new(Arc::clone(&self.contents)),
            in_flight_max: self.plan.settings.in_flight.map_or(usize::MAX, |records| records as usize),
            clock: self.clock,
            meter: Arc::new(Meter::default()),
        }))
    }

    async fn connect_consumers(
        &self,
        topic: &Arc<str>,
        arrivals: &Arc<Arrivals>,
    ) -> Result<Vec<LoadConsumer>, Failure> {
        let settings = &self.plan.settings;
        let mut consumers = Vec::with_capacity(settings.consumers as usize);
        for number in 0..settings.consumers {
            consumers.push(LoadConsumer {
                client: self.connect().await?,
                topic: Arc::clone(topic),
                partitions: partitions_of(number, settings.consumers, settings.partitions),
                clock: self.clock,
                meter: Arc::new(Meter::default()),
                arrivals: Arc::clone(arrivals),
            });
        }
        Ok(consumers)
    }

    async fn prefill(&self, producers: Vec<LoadProducer>) -> Result<Vec<LoadProducer>, Failure> {
        let part = |number| Part {
            phase: Phase::Prefill,
            pace: Pace::FlatOut,
            limit: Limit::Records(share(self.plan.prefill, self.plan.settings.producers, number)),
        };
        let producers = run_part(producers, part).await?;
        match producers.iter().find_map(|producer| producer.account().first_failure.clone()) {
            Some(failure) => Err(Failure::from(failure).context("writing what is to be read")),
            None => Ok(producers),
        }
    }

    /// The load before the measurement; what it counts is thrown away.
    async fn warm_up(
        &self,
        producers: Vec<LoadProducer>,
        progress: &ProgressLine,
    ) -> Result<Vec<LoadProducer>, Failure> {
        if self.plan.warm_up.is_zero() {
            return Ok(producers);
        }
        progress.say("warming up");
        self.part(producers, Phase::WarmUp, Some(self.plan.warm_up)).await
    }

    /// A part of the load, as long as this or as the plan says.
    async fn part(
        &self,
        producers: Vec<LoadProducer>,
        phase: Phase,
        length: Option<Duration>,
    ) -> Result<Vec<LoadProducer>, Failure> {
        let count = self.plan.settings.producers;
        let start_ns = self.clock.now_ns();
        let Some(rate) = self.plan.settings.rate else {
            let limit = |number| match length {
                Some(length) => Limit::Until(start_ns + nanos(length)),
                None => self.plan.flat_out_limit(number, start_ns),
            };
            return run_part(producers, |number| Part { phase, pace: Pace::FlatOut, limit: limit(number) })
                .await;
        };
        let schedule = Schedule::new(rate, count);
        let gates: Vec<_> = (0..count).map(|_| Arc::new(Gate::default())).collect();
        let _pacer = Pacer::start(schedule, self.clock.at(start_ns), gates.clone())?;
        let length = length.or(self.plan.duration);
        let part = |number: u32| {
            let records = match length {
                Some(length) => due_before(schedule, number, length),
                None => share(self.plan.settings.count.unwrap_or(0), count, number),
            };
            let gate = Arc::clone(&gates[number as usize]);
            Part { phase, pace: Pace::Scheduled { schedule, start_ns, gate }, limit: Limit::Records(records) }
        };
        run_part(producers, part).await
    }

    /// Produce, end to end, mixed.
    async fn produce(
        &self,
        topic: &Arc<str>,
        producers: Vec<LoadProducer>,
        progress: &ProgressLine,
    ) -> Result<Measured, Failure> {
        let scenario = self.plan.settings.scenario;
        let arrivals = Arc::new(Arrivals::default());
        let consumers = match scenario {
            Scenario::Produce => Vec::new(),
            _ => self.connect_consumers(topic, &arrivals).await?,
        };
        let mut reading = Reading::default();
        if scenario == Scenario::EndToEnd {
            reading.follow(&consumers, Counting::Measured).await?;
        }
        let producers = self.warm_up(producers, progress).await?;
        let sampler = self.sample(&producers, &consumers, progress)?;
        let start_ns = self.clock.now_ns();
        if scenario == Scenario::Mixed {
            reading.follow(&consumers, Counting::Every).await?;
        }
        let before = Standing::of(&producers);
        let producers = tokio::select! {
            producers = self.part(producers, Phase::Measured, None) => producers?,
            failed = reading.failed() => return Err(failed),
        };
        let after = Standing::of(&producers);
        let mut failed = after.failed - before.failed;
        if scenario == Scenario::EndToEnd {
            let acknowledged = after.handed_over - before.handed_over - failed;
            failed += reading.await_arrivals(&arrivals, acknowledged).await?;
        }
        let end_ns = after.last_ns.max(if scenario == Scenario::EndToEnd { arrivals.last_ns() } else { 0 });
        reading.end().await?;
        let end_ns = if end_ns > start_ns { end_ns } else { self.clock.now_ns() };
        let samples = sampler.finish(self.clock.at(end_ns));
        tell_failure(&producers);
        close(consumers).await;
        Ok(Measured { samples, seconds: seconds(end_ns - start_ns), failed, producers })
    }

    /// Consume alone.
    async fn consume(
        &self,
        topic: &Arc<str>,
        producers: Vec<LoadProducer>,
        progress: &ProgressLine,
    ) -> Result<Measured, Failure> {
        let arrivals = Arc::new(Arrivals::default());
        let consumers = self.connect_consumers(topic, &arrivals).await?;
        if !self.plan.warm_up.is_zero() {
            progress.say("warming up");
            let mut reading = Reading::default();
            reading.read_on(&consumers);
            reading.until(self.plan.warm_up).await?;
        }
        let sampler = self.sample(&[], &consumers, progress)?;
        let (start_ns, before) = (self.clock.now_ns(), arrivals.count());
        let mut reading = Reading::default();
        let failed = match self.plan.duration {
            Some(duration) => {
                reading.read_on(&consumers);
                reading.until(duration).await?;
                0
            }
            None => {
                reading.read_once(&consumers);
                reading.finish().await?;
                self.plan.prefill.saturating_sub(arrivals.count() - before)
            }
        };
        let end_ns = arrivals.last_ns().max(start_ns + 1);
        let samples = sampler.finish(self.clock.at(end_ns));
        close(consumers).await;
        Ok(Measured { samples, seconds: seconds(end_ns - start_ns), failed, producers })
    }

    fn sample(
        &self,
        producers: &[LoadProducer],
        consumers: &[LoadConsumer],
        progress: &ProgressLine,
    ) -> Result<Sampler, Failure> {
        let sources = Sources {
            producers: producers.iter().map(|producer| Arc::clone(producer.meter())).collect(),
            consumers: consumers.iter().map(|consumer| Arc::clone(&consumer.meter)).collect(),
            probe: self.target.probe.clone(),
        };
        Sampler::start(sources, progress.watch())
    }

    /// What was measured, as it is reported.
    fn run(&self, samples: Samples, seconds: f64, failed: u64) -> Run {
        let settings = &self.plan.settings;
        let is_produced = settings.scenario != Scenario::Consume;
        let produced = is_produced.then(|| samples.produced.flow(seconds));
        let consumed = (settings.consumers > 0).then(|| samples.consumed.flow(seconds));
        let is_corrected = settings.rate.is_some();
        let latencies = [
            latency(LatencyKind::Acknowledgement, is_corrected, &samples.produced.latencies),
            latency(LatencyKind::EndToEnd, is_corrected, &samples.consumed.latencies),
        ];
        let moved = samples.produced.bytes + samples.consumed.bytes;
        let (before, after) = (samples.broker_before, samples.broker_after);
        let difference = |after: Option<u64>, before: Option<u64>| Some(after?.saturating_sub(before?));
        let syncs = difference(after.syncs, before.syncs);
        let batches = difference(after.batches, before.batches);
        let for_each = |count: Option<u64>| match (syncs, count.filter(|count| *count > 0)) {
            (Some(syncs), Some(count)) if is_produced => Some(syncs as f64 / count as f64),
            _ => None,
        };
        let broker_cpu = after.cpu_seconds.zip(before.cpu_seconds).map(|(after, before)| after - before);
        Run {
            seconds,
            produced,
            consumed,
            latencies: latencies.into_iter().flatten().collect(),
            timeline: samples.seconds,
            client: process(samples.client_cpu_seconds, samples.client_memory, moved),
            broker: broker_cpu.map(|cpu| process(cpu, samples.broker_memory, moved)),
            syncs,
            syncs_per_record: for_each(Some(samples.produced.records)),
            syncs_per_batch: for_each(batches),
            failed,
            verification: None,
        }
    }
}

/// What a measurement left.
struct Measured {
    samples: Samples,
    seconds: f64,
    failed: u64,
    producers: Vec<LoadProducer>,
}

fn seconds(nanos: u64) -> f64 {
    Duration::from_nanos(nanos).as_secs_f64()
}

fn process(cpu_seconds: f64, memory: Memory, moved: u64) -> Process {
    Process {
        cpu_seconds,
        cpu_seconds_per_gb: (moved > 0).then(|| cpu_seconds / (moved as f64 / 1e9)),
        memory_bytes_max: memory.resident.unwrap_or(0),
        anonymous_bytes_max: memory.anonymous,
    }
}

/// Where producers stand together.
#[derive(Debug, Clone, Copy)]
struct Standing {
    handed_over: u64,
    failed: u64,
    last_ns: u64,
}

impl Standing {
    fn of(producers: &[LoadProducer]) -> Standing {
        Standing {
            handed_over: producers.iter().map(LoadProducer::next_sequence).sum(),
            failed: producers.iter().map(|producer| producer.account().failed.len() as u64).sum(),
            last_ns: producers.iter().map(|producer| producer.account().last_ns).max().unwrap_or(0),
        }
    }
}

/// Says why records failed, once for all of them.
fn tell_failure(producers: &[LoadProducer]) {
    if let Some(failure) = producers.iter().find_map(|producer| producer.account().first_failure.as_ref()) {
        output::note(&format!("the first record that failed: {failure}"));
    }
}

/// Every producer does its part, all at once.
async fn run_part(
    producers: Vec<LoadProducer>,
    part: impl Fn(u32) -> Part,
) -> Result<Vec<LoadProducer>, Failure> {
    let mut tasks = JoinSet::new();
    for (number, mut producer) in producers.into_iter().enumerate() {
        let part = part(number as u32);
        tasks.spawn(async move {
            producer.run(&part).await;
            (number, producer)
        });
    }
    let mut producers = Vec::with_capacity(tasks.len());
    while let Some(ended) = tasks.join_next().await {
        producers.push(ended.map_err(|error| Failure::failed(format!("a producer ended: {error}")))?);
    }
    producers.sort_by_key(|(number, _)| *number);
    Ok(producers.into_iter().map(|(_, producer)| producer).collect())
}

async fn close(consumers: Vec<LoadConsumer>) {
    for consumer in consumers {
        consumer.client.close().await;
    }
}
