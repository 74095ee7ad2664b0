//! From when a record was due at the producer until the consumer has it in hand, synced.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use quire_benches::bare_disk::WrittenFile;
use quire_benches::broker::BrokerProcess;
use quire_benches::child;
use quire_benches::latency::{Latencies, paced};
use quire_benches::payload::incompressible;
use quire_benches::row::{Bar, Row};
use quire_benches::runner::{Measurement, Settings};
use quire_benches::series::{Pair, Pairs};
use quire_benches::unit::Unit;
use quire_client::{Consumer, PartitionIndex, Position, Producer, Record};
use tokio::runtime::{Handle, Runtime};

use crate::produce::TOPIC;

const RECORD_BYTES: usize = 1024;
const PERIOD: Duration = Duration::from_micros(100);
/// The bare operation takes the records of a millisecond at once.
const BARE_PERIOD: Duration = Duration::from_millis(1);
const BARE_RECORDS: usize = 10;
const BARE_FILE_BYTES: u64 = 256 << 20;

pub fn measurements() -> Vec<Measurement> {
    vec![Measurement::new(["end-to-end-p50", "end-to-end-p99"], measure)]
}

fn measure(settings: &Settings) -> Result<Vec<Row>> {
    let runtime = child::runtime(false)?;
    let (mut p50, mut p99) = (Pairs::default(), Pairs::default());
    let broker = runtime.block_on(BrokerProcess::start(settings.dir.path()))?;
    runtime.block_on(broker.topic(TOPIC, 1, "always"))?;
    let consuming = broker.client.consumer().topic(TOPIC).from(Position::Beginning).follow(true);
    let mut consumer = runtime.block_on(consuming.build())?;
    let producer = broker.client.producer().build();
    run(settings.time / 10, &runtime, &producer, &mut consumer)?;
    for _ in 0..settings.pairs {
        let quire = run(settings.time, &runtime, &producer, &mut consumer)?;
        let bare = run_bare(settings)?;
        let pair = |part| Pair { quire: quire.quantile(part), bare: Some(bare.quantile(part)) };
        p50.push(pair(0.5));
        p99.push(pair(0.99));
    }
    drop((consumer, producer));
    runtime.block_on(broker.stop())?;
    let row = |name: &str, what, pairs, bar| Row {
        name: name.to_owned(),
        title: format!(
            "{what} from when a record was due until it was consumed, 10,000 records/s, records of {}, sync = always, \
             1 partition, 1 replica, 1 producer, 1 consumer, TLS 1.3 AES-128-GCM, {:?} a run",
            bytesize::ByteSize(RECORD_BYTES as u64),
            settings.time,
        ),
        bare: format!("a write of {BARE_RECORDS} records and fdatasync each millisecond"),
        unit: Unit::Seconds,
        pairs,
        bar: Bar::Below(bar),
        notes: Vec::new(),
    };
    Ok(vec![row("end-to-end-p50", "median", p50, 1e-3), row("end-to-end-p99", "99 of 100", p99, 5e-3)])
}

fn run(time: Duration, runtime: &Runtime, producer: &Producer, consumer: &mut Consumer) -> Result<Latencies> {
    let count = (time.as_nanos() / PERIOD.as_nanos()) as u32;
    let start = Instant::now();
    let handle = runtime.handle().clone();
    thread::scope(|scope| {
        let producing = scope.spawn(|| send_on_time(&handle, producer, start, count));
        let latencies = runtime.block_on(receive(consumer, start, count));
        producing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        latencies
    })
}

/// Hands over one record each period, whatever became of those before it; each says in its first bytes which it is.
fn send_on_time(runtime: &Handle, producer: &Producer, start: Instant, count: u32) -> Result<()> {
    let mut value = incompressible(RECORD_BYTES, 5).to_vec();
    for number in 0..count {
        thread::sleep((start + PERIOD * number).saturating_duration_since(Instant::now()));
        value[..4].copy_from_slice(&number.to_le_bytes());
        let record = Record { value: Some(Bytes::copy_from_slice(&value)), ..Record::default() };
        let _delivery = runtime.block_on(producer.enqueue_to(TOPIC, PartitionIndex(0), record))?;
    }
    runtime.block_on(producer.flush())?;
    Ok(())
}

async fn receive(consumer: &mut Consumer, start: Instant, count: u32) -> Result<Latencies> {
    let mut latencies = Latencies::default();
    for _ in 0..count {
        let record = consumer.next().await.context("the stream ended")??;
        let value = record.value.context("a value was sent")?;
        let number = u32::from_le_bytes(value.get(..4).context("a number was sent")?.try_into()?);
        latencies.record((start + PERIOD * number).elapsed());
    }
    Ok(latencies)
}

fn run_bare(settings: &Settings) -> Result<Latencies> {
    let mut file = WrittenFile::create(settings.dir.path(), BARE_FILE_BYTES)?;
    let payload = incompressible(RECORD_BYTES * BARE_RECORDS, 7);
    paced(BARE_PERIOD, settings.time, || Ok(file.append_synced(&payload)?))
}
