//! Consume: one consumer from the beginning to the end, every checksum and chain link verified.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quire_benches::bare_disk;
use quire_benches::bare_quic::{BareQuic, Direction, Tuning};
use quire_benches::broker::BrokerProcess;
use quire_benches::page_cache::{self, WarmMemory};
use quire_benches::row::{Bar, Row};
use quire_benches::runner::{Measurement, Settings};
use quire_benches::series::{Pair, Pairs};
use quire_benches::unit::{Unit, counted};
use quire_benches::{child, cpu};
use quire_client::{Client, Position};

use crate::produce::{Costs, Records, TOPIC, produce};

const RECORD_BYTES: u64 = 1024;

/// Where the records are when they are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lying {
    InThePageCache,
    OnTheDisk,
}

pub fn measurements() -> Vec<Measurement> {
    let of = |lying, partitions: u32| {
        let name = match lying {
            Lying::InThePageCache => format!("consume-resident-{partitions}"),
            Lying::OnTheDisk => format!("consume-cold-{partitions}"),
        };
        Measurement::new([name.clone()], move |settings| measure(settings, &name, lying, partitions))
    };
    vec![
        of(Lying::InThePageCache, 1),
        of(Lying::InThePageCache, 8),
        of(Lying::OnTheDisk, 1),
        of(Lying::OnTheDisk, 8),
    ]
}

fn measure(settings: &Settings, name: &str, lying: Lying, partitions: u32) -> Result<Vec<Row>> {
    let count = settings.bytes / RECORD_BYTES;
    let bytes = count * RECORD_BYTES;
    let mut pairs = Pairs::default();
    let mut costs = Costs::default();
    child::runtime(false)?.block_on(async {
        let quic = BareQuic::start(&Tuning::default()).await?;
        let mut broker = fill(settings, partitions, count).await?;
        for _ in 0..settings.pairs {
            if lying == Lying::OnTheDisk {
                // A broker that has just started has no segment mapped, which would keep it in memory.
                broker = broker.restart().await?;
            }
            let took = run(&broker, count, lying, &mut costs).await?;
            let quire = bytes as f64 / took.as_secs_f64();
            let bare = match lying {
                Lying::InThePageCache => {
                    let took = quic.transfer(Direction::Down, bytes, u64::from(partitions)).await?;
                    bytes as f64 / took.as_secs_f64()
                }
                Lying::OnTheDisk => {
                    broker = broker.restart().await?;
                    read_bare(&broker, bytes)?
                }
            };
            pairs.push(Pair { quire, bare: Some(bare) });
        }
        broker.stop().await
    })?;
    let (lies, bare, bar) = match lying {
        Lying::InThePageCache => ("resident", "bare quinn", 0.75),
        Lying::OnTheDisk => ("cold", "sequential reads of 1 MiB of the same segment files, as cold", 0.7),
    };
    Ok(vec![Row {
        name: name.to_owned(),
        title: format!(
            "consume, {lies}, verified, records of {}, {}, 1 replica, 1 consumer, \
             TLS 1.3 AES-128-GCM, {} a run",
            bytesize::ByteSize(RECORD_BYTES),
            counted(partitions.into(), "partition"),
            bytesize::ByteSize(bytes),
        ),
        bare: bare.to_owned(),
        unit: Unit::BytesPerSecond,
        pairs,
        bar: Bar::AtLeastOfBare(bar),
        notes: vec![costs.note()],
    }])
}

async fn fill(settings: &Settings, partitions: u32, count: u64) -> Result<BrokerProcess> {
    let broker = BrokerProcess::start(settings.dir.path()).await?;
    broker.topic(TOPIC, partitions, "interval").await?;
    let _warm = page_cache::settle(count * RECORD_BYTES)?;
    let producer = broker.client.producer().build();
    produce(&producer, &Records::new(RECORD_BYTES as usize), partitions, count).await?;
    rustix::fs::sync();
    Ok(broker)
}

async fn run(broker: &BrokerProcess, count: u64, lying: Lying, costs: &mut Costs) -> Result<Duration> {
    let bytes = count * RECORD_BYTES;
    let _warm = make_cold_if(lying, bytes)?;
    let (client_before, broker_before) = (cpu::of_this_process(), broker.cpu()?);
    let read_before = page_cache::read_from_disk(broker.pid())?;
    let took = consume(&broker.client, count).await?;
    costs.add(bytes, cpu::of_this_process() - client_before, broker.cpu()? - broker_before);
    let read = page_cache::read_from_disk(broker.pid())? - read_before;
    match lying {
        Lying::InThePageCache => {
            ensure!(read < bytes / 50, "{read} of {bytes} bytes came from the disk: too little memory");
        }
        Lying::OnTheDisk => ensure!(read >= bytes, "only {read} of {bytes} bytes came from the disk"),
    }
    Ok(took)
}

/// Reads `count` records from the beginning, in a task like the one that takes bare quinn's bytes: what runs in
/// `block_on` itself is woken across threads for each slice.
async fn consume(client: &Client, count: u64) -> Result<Duration> {
    let start = Instant::now();
    let mut consumer = client.consumer().topic(TOPIC).from(Position::Beginning).follow(true).build().await?;
    let consuming = async move {
        for _ in 0..count {
            consumer.next().await.context("the stream ended")??;
        }
        anyhow::Ok(())
    };
    tokio::spawn(consuming).await??;
    Ok(start.elapsed())
}

fn read_bare(broker: &BrokerProcess, bytes: u64) -> Result<f64> {
    let segments = broker.segments()?;
    let _warm = make_cold_if(Lying::OnTheDisk, bytes)?;
    let read_before = page_cache::read_from_disk(std::process::id())?;
    let (total, took) = bare_disk::read_all(&segments)?;
    let read = page_cache::read_from_disk(std::process::id())? - read_before;
    ensure!(read >= bytes, "only {read} of {bytes} bytes came from the disk");
    Ok(total as f64 / took.as_secs_f64())
}

/// For what is to lie on the disk: nothing in the page cache, and memory for it at hand.
fn make_cold_if(lying: Lying, bytes: u64) -> Result<Option<WarmMemory>> {
    if lying == Lying::InThePageCache {
        return Ok(None);
    }
    page_cache::drop_all()?;
    Ok(Some(page_cache::settle(bytes)?))
}
