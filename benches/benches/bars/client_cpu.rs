//! The client's own cost of a record: the processor time of the producing process, beside that of a process that sends
//! the same bytes over bare quinn.
//!
//! Both encrypt the same values and hand them to the kernel in the same datagrams. What is left is what the client does:
//! batches, checksums, acknowledgements, and what this bench does to make a record.

use std::time::Duration;

use anyhow::Result;
use quire_benches::bare_quic::{BareQuic, Direction, Tuning};
use quire_benches::broker::BrokerProcess;
use quire_benches::row::{Bar, Row};
use quire_benches::runner::{Measurement, Settings};
use quire_benches::series::{Pair, Pairs};
use quire_benches::unit::Unit;
use quire_benches::{child, cpu, page_cache};

use crate::produce::{Records, TOPIC, produce};

pub fn measurements() -> Vec<Measurement> {
    let of = |name: &'static str, record_bytes: u64, part: u64, above| {
        Measurement::new([name], move |settings| measure(settings, name, record_bytes, part, above))
    };
    vec![of("client-cpu-1k", 1024, 4, 1e-6), of("client-cpu-100b", 100, 16, 300e-9)]
}

fn measure(settings: &Settings, name: &str, record_bytes: u64, part: u64, above: f64) -> Result<Vec<Row>> {
    let count = settings.bytes / part / record_bytes;
    let bytes = count * record_bytes;
    let mut pairs = Pairs::default();
    child::runtime(false)?.block_on(async {
        let quic = BareQuic::start(&Tuning::default()).await?;
        for _ in 0..settings.pairs {
            let quire = run(settings, record_bytes, count).await?;
            let before = cpu::of_this_process();
            quic.transfer(Direction::Up, bytes, 1).await?;
            let bare = cpu::of_this_process() - before;
            let a_record = |used: Duration| used.as_secs_f64() / count as f64;
            pairs.push(Pair { quire: a_record(quire), bare: Some(a_record(bare)) });
        }
        anyhow::Ok(())
    })?;
    Ok(vec![Row {
        name: name.to_owned(),
        title: format!(
            "processor time of a producing process, records of {record_bytes} B, default batching, sync = always, 1 partition, \
             TLS 1.3 AES-128-GCM, {count} records a run"
        ),
        bare: "a process that sends the same bytes over bare quinn".to_owned(),
        unit: Unit::CpuSecondsPerRecord,
        pairs,
        bar: Bar::AtMostAboveBare(above),
        notes: Vec::new(),
    }])
}

async fn run(settings: &Settings, record_bytes: u64, count: u64) -> Result<Duration> {
    let broker = BrokerProcess::start(settings.dir.path()).await?;
    broker.topic(TOPIC, 1, "always").await?;
    let producer = broker.client.producer().build();
    let records = Records::new(record_bytes as usize);
    produce(&producer, &records, 1, 1).await?;
    let _warm = page_cache::settle(count * record_bytes)?;
    let before = cpu::of_this_process();
    produce(&producer, &records, 1, count).await?;
    let used = cpu::of_this_process() - before;
    broker.stop().await?;
    Ok(used)
}
