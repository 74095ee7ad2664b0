//! One small batch to each of many partitions at once, synced: how long until all of them are acknowledged.

use std::time::{Duration, Instant};

use anyhow::Result;
use quire_benches::bare_disk;
use quire_benches::broker::BrokerProcess;
use quire_benches::child;
use quire_benches::latency::Latencies;
use quire_benches::payload::incompressible;
use quire_benches::row::{Bar, Row};
use quire_benches::runner::{Measurement, Settings};
use quire_benches::series::{Pair, Pairs};
use quire_benches::unit::Unit;
use quire_client::{PartitionIndex, Producer};

use crate::produce::{Records, TOPIC};

const NAME: &str = "partitions-1000-p99";
const PARTITIONS: usize = 1000;
const RECORD_BYTES: usize = 100;
/// What such a record takes as a frame of its own.
const FRAME_BYTES: usize = 256;
const FLUSHERS: usize = 16;
/// Rounds that fit a second on a fast disk.
const ROUNDS_A_SECOND: f64 = 20.0;

pub fn measurements() -> Vec<Measurement> {
    vec![Measurement::new([NAME], measure)]
}

fn measure(settings: &Settings) -> Result<Vec<Row>> {
    let rounds = (settings.time.as_secs_f64() * ROUNDS_A_SECOND).ceil() as usize;
    let mut pairs = Pairs::default();
    child::runtime(false)?.block_on(async {
        let broker = BrokerProcess::start(settings.dir.path()).await?;
        broker.topic(TOPIC, PARTITIONS as u32, "always").await?;
        let producer = broker.client.producer().build();
        // Every stream is open, and every segment there, when the time starts.
        run(&producer, rounds.div_ceil(10)).await?;
        for _ in 0..settings.pairs {
            let quire = p99(run(&producer, rounds).await?);
            let payload = incompressible(FRAME_BYTES, 7);
            let dir = settings.dir.path();
            let bare = p99(bare_disk::flush_rounds(dir, &payload, PARTITIONS, FLUSHERS, rounds)?);
            pairs.push(Pair { quire, bare: Some(bare) });
        }
        broker.stop().await
    })?;
    Ok(vec![Row {
        name: NAME.to_owned(),
        title: format!(
            "99 of 100 rounds of one record of {RECORD_BYTES} B to each of {PARTITIONS} partitions, sync = always, 1 producer, \
             1 replica, TLS 1.3 AES-128-GCM, {rounds} rounds a run",
        ),
        bare: format!(
            "{FLUSHERS} threads that append {FRAME_BYTES} B to each of {PARTITIONS} files and fdatasync it"
        ),
        unit: Unit::Seconds,
        pairs,
        bar: Bar::AtMostOfBare(3.0),
        notes: Vec::new(),
    }])
}

async fn run(producer: &Producer, rounds: usize) -> Result<Vec<Duration>> {
    let records = Records::new(RECORD_BYTES);
    let mut took = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let start = Instant::now();
        let mut deliveries = Vec::with_capacity(PARTITIONS);
        for partition in 0..PARTITIONS as u32 {
            let record = records.record(partition.into());
            deliveries.push(producer.enqueue_to(TOPIC, PartitionIndex(partition), record).await?);
        }
        for delivery in deliveries {
            delivery.await?;
        }
        took.push(start.elapsed());
    }
    Ok(took)
}

fn p99(rounds: Vec<Duration>) -> f64 {
    let mut latencies = Latencies::default();
    rounds.into_iter().for_each(|round| latencies.record(round));
    latencies.quantile(0.99)
}
