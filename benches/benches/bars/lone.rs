//! Producers with one record in flight each, synced: what a service sees that waits for every acknowledgement.

use std::time::{Duration, Instant};

use anyhow::Result;
use quire_benches::bare_disk::WrittenFile;
use quire_benches::broker::BrokerProcess;
use quire_benches::child;
use quire_benches::latency::{Latencies, paced};
use quire_benches::payload::incompressible;
use quire_benches::row::{Bar, Row};
use quire_benches::runner::{Measurement, Settings};
use quire_benches::series::{Pair, Pairs};
use quire_benches::unit::Unit;
use quire_client::PartitionIndex;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::produce::{Records, TOPIC};

const RECORD_BYTES: usize = 1024;
const PERIOD: Duration = Duration::from_millis(1);
/// Room for the records of any run, frames and all.
const FILE_BYTES: u64 = 512 << 20;

pub fn measurements() -> Vec<Measurement> {
    let together = |producers: usize, bar| {
        let name = format!("lone-{producers}");
        Measurement::new([name.clone()], move |settings| measure_together(settings, &name, producers, bar))
    };
    vec![
        Measurement::new(["lone-p50", "lone-p99"], measure_one),
        together(16, 20_000.0),
        together(64, 35_000.0),
    ]
}

fn measure_one(settings: &Settings) -> Result<Vec<Row>> {
    let runtime = child::runtime(false)?;
    let broker = runtime.block_on(start(settings))?;
    let (mut p50, mut p99) = (Pairs::default(), Pairs::default());
    for _ in 0..settings.pairs {
        let quire = one(settings, &runtime, &broker)?;
        let bare = one_bare(settings)?;
        let pair = |part| Pair { quire: quire.quantile(part), bare: Some(bare.quantile(part)) };
        p50.push(pair(0.5));
        p99.push(pair(0.99));
    }
    runtime.block_on(broker.stop())?;
    let row = |name: &str, what, pairs, above| Row {
        name: name.to_owned(),
        title: format!(
            "{what} of one record in flight, 1,000 records/s, from when each was due, records of {}, sync = always, \
             1 partition, 1 replica, TLS 1.3 AES-128-GCM, {:?} a run",
            bytesize::ByteSize(RECORD_BYTES as u64),
            settings.time,
        ),
        bare: "a write and fdatasync over blocks already written, at the same pace".to_owned(),
        unit: Unit::Seconds,
        pairs,
        bar: Bar::AtMostAboveBare(above),
        notes: Vec::new(),
    };
    Ok(vec![row("lone-p50", "median", p50, 0.15e-3), row("lone-p99", "99 of 100", p99, 1e-3)])
}

async fn start(settings: &Settings) -> Result<BrokerProcess> {
    let broker = BrokerProcess::start(settings.dir.path()).await?;
    broker.topic(TOPIC, 1, "always").await?;
    Ok(broker)
}

fn one(settings: &Settings, runtime: &Runtime, broker: &BrokerProcess) -> Result<Latencies> {
    let producer = broker.client.producer().build();
    let records = Records::new(RECORD_BYTES);
    let mut number = 0;
    let mut send = || {
        number += 1;
        runtime.block_on(producer.send_to(TOPIC, PartitionIndex(0), records.record(number)))?;
        Ok(())
    };
    // The stream and the segment are there when the time starts.
    paced(PERIOD, settings.time / 20, &mut send)?;
    paced(PERIOD, settings.time, send)
}

fn one_bare(settings: &Settings) -> Result<Latencies> {
    let mut file = WrittenFile::create(settings.dir.path(), FILE_BYTES / 16)?;
    let payload = incompressible(RECORD_BYTES, 7);
    let mut append = || Ok(file.append_synced(&payload)?);
    paced(PERIOD, settings.time / 20, &mut append)?;
    paced(PERIOD, settings.time, append)
}

fn measure_together(settings: &Settings, name: &str, producers: usize, bar: f64) -> Result<Vec<Row>> {
    let runtime = child::runtime(false)?;
    let broker = runtime.block_on(start(settings))?;
    let mut pairs = Pairs::default();
    for _ in 0..settings.pairs {
        let quire = runtime.block_on(together(settings, &broker, producers))?;
        pairs.push(Pair { quire, bare: Some(together_bare(settings, producers)?) });
    }
    runtime.block_on(broker.stop())?;
    Ok(vec![Row {
        name: name.to_owned(),
        title: format!(
            "{producers} producers with one record in flight each, records of {}, sync = always, 1 partition, 1 replica, \
             1 connection, TLS 1.3 AES-128-GCM, {:?} a run",
            bytesize::ByteSize(RECORD_BYTES as u64),
            settings.time,
        ),
        bare: format!("{producers} records to a write and fdatasync, over blocks already written"),
        unit: Unit::RecordsPerSecond,
        pairs,
        bar: Bar::AtLeast(bar),
        notes: Vec::new(),
    }])
}

async fn together(settings: &Settings, broker: &BrokerProcess, producers: usize) -> Result<f64> {
    let mut sending = JoinSet::new();
    for number in 0..producers as u64 {
        let producer = broker.client.producer().build();
        let records = Records::new(RECORD_BYTES);
        producer.send_to(TOPIC, PartitionIndex(0), records.record(number)).await?;
        sending.spawn(async move { (producer, records) });
    }
    let ready = sending.join_all().await;
    let start = Instant::now();
    let end = start + settings.time;
    let mut sending = JoinSet::new();
    for (producer, records) in ready {
        sending.spawn(async move {
            let mut sent = 0;
            while Instant::now() < end {
                producer.send_to(TOPIC, PartitionIndex(0), records.record(sent)).await?;
                sent += 1;
            }
            anyhow::Ok(sent)
        });
    }
    let mut sent = 0;
    while let Some(one) = sending.join_next().await {
        sent += one??;
    }
    Ok(sent as f64 / start.elapsed().as_secs_f64())
}

fn together_bare(settings: &Settings, producers: usize) -> Result<f64> {
    let mut file = WrittenFile::create(settings.dir.path(), FILE_BYTES)?;
    let payload = incompressible(RECORD_BYTES * producers, 7);
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < settings.time {
        file.append_synced(&payload)?;
        sent += producers;
    }
    Ok(sent as f64 / start.elapsed().as_secs_f64())
}
