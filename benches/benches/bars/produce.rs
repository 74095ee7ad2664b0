//! Produce: one producer with default batching, flat out, until every record is acknowledged.

use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use quire_benches::bare_disk::{Appends, Synced};
use quire_benches::bare_quic::{BareQuic, Direction, Tuning};
use quire_benches::broker::BrokerProcess;
use quire_benches::payload::incompressible;
use quire_benches::row::{Bar, Row};
use quire_benches::runner::{Measurement, Settings};
use quire_benches::series::{Pair, Pairs, Spread};
use quire_benches::unit::{Unit, counted};
use quire_benches::{child, cpu, page_cache};
use quire_client::{PartitionIndex, Producer, Record};
use quire_protocol::limits::BATCH_BYTES_TARGET;

pub const TOPIC: &str = "bars";

/// One bar of producing.
#[derive(Debug, Clone)]
struct Produce {
    name: String,
    sync: &'static str,
    record_bytes: usize,
    partitions: u32,
    /// The part of the bytes asked for that one run moves.
    part: f64,
    beside: Beside,
    unit: Unit,
    bar: Bar,
}

/// The bare operation that a figure stands beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    /// The same bytes over bare quinn.
    Quic,
    /// The same bytes to files, a batch a write, synced each.
    Disk,
    /// The lower of bare quinn and of writes that are synced once a second.
    QuicOrDisk,
}

pub fn measurements() -> Vec<Measurement> {
    let interval = |partitions| Produce {
        name: format!("produce-interval-{partitions}"),
        sync: "interval",
        record_bytes: 1024,
        partitions,
        part: 1.0,
        beside: Beside::QuicOrDisk,
        unit: Unit::BytesPerSecond,
        bar: Bar::AtLeastOfBare(0.7),
    };
    let always = |name: &str, record_bytes, part, bar| Produce {
        name: name.to_owned(),
        sync: "always",
        record_bytes,
        partitions: 1,
        part,
        beside: Beside::Quic,
        unit: Unit::RecordsPerSecond,
        bar: Bar::AtLeast(bar),
    };
    let large = |partitions| Produce {
        name: format!("produce-always-64k-{partitions}"),
        sync: "always",
        record_bytes: 64 << 10,
        partitions,
        part: 1.0,
        beside: Beside::Disk,
        unit: Unit::BytesPerSecond,
        bar: Bar::AtLeastOfBare(0.7),
    };
    [
        interval(1),
        interval(8),
        always("produce-always-1k", 1024, 0.5, 400_000.0),
        always("produce-always-100b", 100, 0.125, 1_500_000.0),
        large(1),
        large(8),
    ]
    .into_iter()
    .map(|produce| Measurement::new([produce.name.clone()], move |settings| produce.measure(settings)))
    .collect()
}

impl Produce {
    fn measure(&self, settings: &Settings) -> Result<Vec<Row>> {
        let count = (settings.bytes as f64 * self.part) as u64 / self.record_bytes as u64;
        let bytes = count * self.record_bytes as u64;
        let mut pairs = Pairs::default();
        let mut costs = Costs::default();
        let mut lower = Vec::new();
        child::runtime(false)?.block_on(async {
            let quic = BareQuic::start(&Tuning::default()).await?;
            for _ in 0..settings.pairs {
                let took = self.run(settings, count, &mut costs).await?;
                let (bare, what) = self.run_bare(settings, &quic, bytes).await?;
                lower.push(what);
                let rate = |took: Duration| match self.unit {
                    Unit::RecordsPerSecond => count as f64 / took.as_secs_f64(),
                    _ => bytes as f64 / took.as_secs_f64(),
                };
                pairs.push(Pair { quire: rate(took), bare: Some(rate(bare)) });
            }
            anyhow::Ok(())
        })?;
        let mut notes = vec![costs.note()];
        if self.beside == Beside::QuicOrDisk {
            notes.push(format!("the lower one was: {}", lower.join(", ")));
        }
        Ok(vec![Row {
            name: self.name.clone(),
            title: self.title(bytes),
            bare: self.bare_is().to_owned(),
            unit: self.unit,
            pairs,
            bar: self.bar,
            notes,
        }])
    }

    fn title(&self, bytes: u64) -> String {
        format!(
            "produce, sync = {}, records of {}, batches of {}, {}, 1 replica, 1 producer, TLS 1.3 AES-128-GCM, \
             {} a run",
            self.sync,
            bytesize::ByteSize(self.record_bytes as u64),
            bytesize::ByteSize(BATCH_BYTES_TARGET as u64),
            counted(self.partitions.into(), "partition"),
            bytesize::ByteSize(bytes),
        )
    }

    fn bare_is(&self) -> &'static str {
        match self.beside {
            Beside::Quic => "bare quinn",
            Beside::Disk => "a write and fdatasync for each batch, a thread a partition",
            Beside::QuicOrDisk => "the lower of bare quinn and of pwritev with an fdatasync a second",
        }
    }

    async fn run(&self, settings: &Settings, count: u64, costs: &mut Costs) -> Result<Duration> {
        let broker = BrokerProcess::start(settings.dir.path()).await?;
        broker.topic(TOPIC, self.partitions, self.sync).await?;
        let producer = broker.client.producer().build();
        let records = Records::new(self.record_bytes);
        // Connections, streams and segments are there when the time starts.
        produce(&producer, &records, self.partitions, u64::from(self.partitions)).await?;
        let _warm = page_cache::settle(count * self.record_bytes as u64)?;
        let (client_before, broker_before) = (cpu::of_this_process(), broker.cpu()?);
        let took = produce(&producer, &records, self.partitions, count).await?;
        costs.add(
            count * self.record_bytes as u64,
            cpu::of_this_process() - client_before,
            broker.cpu()? - broker_before,
        );
        broker.stop().await?;
        Ok(took)
    }

    /// The time of the slower one that counts, and its name.
    async fn run_bare(
        &self,
        settings: &Settings,
        quic: &BareQuic,
        bytes: u64,
    ) -> Result<(Duration, &'static str)> {
        let _warm = page_cache::settle(bytes)?;
        let over_quic = match self.beside {
            Beside::Disk => Duration::ZERO,
            _ => quic.transfer(Direction::Up, bytes, u64::from(self.partitions)).await?,
        };
        let synced = match self.beside {
            Beside::Quic => return Ok((over_quic, "quinn")),
            Beside::Disk => Synced::Each,
            Beside::QuicOrDisk => Synced::EverySecond,
        };
        let appends = Appends {
            payload: incompressible(BATCH_BYTES_TARGET, 3),
            count: bytes / BATCH_BYTES_TARGET as u64,
            files: self.partitions as usize,
            synced,
        };
        let to_disk = appends.run(settings.dir.path())?;
        Ok(if to_disk > over_quic { (to_disk, "disk") } else { (over_quic, "quinn") })
    }
}

/// Values to produce, each a different part of bytes that do not compress.
#[derive(Debug)]
pub struct Records {
    pool: Bytes,
    value_bytes: usize,
}

impl Records {
    const POOL_BYTES: usize = 1 << 20;

    pub fn new(value_bytes: usize) -> Records {
        Records { pool: incompressible(Records::POOL_BYTES + value_bytes, 5), value_bytes }
    }

    pub fn record(&self, number: u64) -> Record {
        let at = number.wrapping_mul(4099) as usize % Records::POOL_BYTES;
        Record { value: Some(self.pool.slice(at..at + self.value_bytes)), ..Record::default() }
    }
}

/// Sends `count` records, to each partition in turn, as fast as the producer takes them, and waits until all are
/// acknowledged.
pub async fn produce(
    producer: &Producer,
    records: &Records,
    partitions: u32,
    count: u64,
) -> Result<Duration> {
    let start = Instant::now();
    for number in 0..count {
        let partition = PartitionIndex((number % u64::from(partitions)) as u32);
        let _delivery = producer.enqueue_to(TOPIC, partition, records.record(number)).await?;
    }
    // Fails if any record did.
    producer.flush().await?;
    Ok(start.elapsed())
}

/// Processor time a GB, run by run.
#[derive(Debug, Default)]
pub struct Costs {
    client: Vec<f64>,
    broker: Vec<f64>,
}

impl Costs {
    pub fn add(&mut self, bytes: u64, client: Duration, broker: Duration) {
        let gigabytes = bytes as f64 / 1e9;
        self.client.push(client.as_secs_f64() / gigabytes);
        self.broker.push(broker.as_secs_f64() / gigabytes);
    }

    pub fn note(&self) -> String {
        let median = |of: &Vec<f64>| Spread::of(of.iter().copied()).map_or(f64::NAN, |spread| spread.median);
        let (client, broker) = (median(&self.client), median(&self.broker));
        format!("processor time a GB: client {client:.2} s, broker {broker:.2} s")
    }
}
