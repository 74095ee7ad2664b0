//! A record's whole way: client, QUIC with TLS, shard, disk, and back; beside a bare quinn stream.
//!
//! Client and broker share this process and its cores. Everything synced unless it says otherwise; one partition.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use quire_benches::bare_quic::BareQuic;
use quire_benches::pair::Pairs;
use quire_benches::payload::incompressible;
use quire_broker::Broker;
use quire_client::{Client, NewTopic, PartitionIndex, Position, Producer, Profile, Record};
use tokio::runtime::Runtime;

const RECORD_BYTES: usize = 1024;
/// Records of one measured run: 64 MiB.
const RECORDS: usize = 64 * 1024;
const LONE_PRODUCERS: usize = 16;
/// Records of one measured run with one record in flight each.
const LONE_RECORDS: usize = 16_000;
const SAMPLES: usize = 10;

struct Setup {
    broker: Broker,
    client: Client,
    bare: BareQuic,
    _data: tempfile::TempDir,
}

impl Setup {
    async fn new() -> Result<Setup> {
        let data = tempfile::tempdir()?;
        let broker = Broker::builder().data_dir(data.path()).listen("127.0.0.1:0".parse()?).start().await?;
        let credentials = broker.credentials();
        let profile = Profile::new(broker.address().to_string())
            .authority_pem(&credentials.authority_pem)
            .identity_pem(&credentials.certificate_pem, &credentials.key_pem);
        let client = Client::connect_with(profile).await?;
        Ok(Setup { broker, client, bare: BareQuic::connect().await?, _data: data })
    }

    async fn topic(&self, name: &str, sync: &str) -> Result<()> {
        self.client.admin().create_topic(NewTopic::new(name).partitions(1).config("sync", sync)).await?;
        Ok(())
    }
}

fn record(payload: &Bytes) -> Record {
    Record { value: Some(payload.clone()), ..Record::default() }
}

/// Sends [`RECORDS`] records as fast as the producer takes them and waits until all are acknowledged.
async fn produce(producer: &Producer, topic: &str, payload: &Bytes) -> Result<Duration> {
    let start = Instant::now();
    let mut last = None;
    for _ in 0..RECORDS {
        last = Some(producer.enqueue_to(topic, PartitionIndex(0), record(payload)).await?);
    }
    producer.flush().await?;
    last.context("at least one record")?.await?;
    Ok(start.elapsed())
}

/// Sends [`LONE_RECORDS`] records from [`LONE_PRODUCERS`] tasks, each waiting for its acknowledgement before the next.
async fn produce_alone(client: &Client, topic: &'static str, payload: &Bytes) -> Result<Duration> {
    let start = Instant::now();
    let tasks: Vec<_> = (0..LONE_PRODUCERS)
        .map(|_| {
            let (producer, payload) = (client.producer().build(), payload.clone());
            tokio::spawn(async move {
                for _ in 0..LONE_RECORDS / LONE_PRODUCERS {
                    producer.send_to(topic, PartitionIndex(0), record(&payload)).await?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(start.elapsed())
}

/// Reads `count` records from the beginning, every checksum and chain link verified.
async fn consume(client: &Client, topic: &str, count: usize) -> Result<Duration> {
    let mut consumer = client.consumer().topic(topic).from(Position::Beginning).follow(true).build().await?;
    let start = Instant::now();
    for _ in 0..count {
        consumer.next().await.context("the stream ended")??;
    }
    Ok(start.elapsed())
}

fn beside_bare<F>(c: &mut Criterion, title: &str, runtime: &Runtime, setup: &Arc<Setup>, run: F)
where
    F: AsyncFn(&Setup) -> Result<Duration>,
{
    let payload = incompressible(1024 * 1024, 3);
    let count = RECORDS * RECORD_BYTES / payload.len();
    let mut pairs = Pairs::default();
    let mut group = c.benchmark_group("1 KiB records over QUIC");
    group.sample_size(SAMPLES).throughput(Throughput::Elements(RECORDS as u64));
    group.measurement_time(Duration::from_secs(10));
    group.bench_function(title, |b| {
        b.iter_custom(|iterations| {
            let mut total = Duration::ZERO;
            for _ in 0..iterations {
                let (quire, bare) = runtime
                    .block_on(async {
                        anyhow::Ok((run(setup).await?, setup.bare.transfer(&payload, count).await?))
                    })
                    .expect("broker and bare endpoints are on this machine");
                pairs.add(quire, bare);
                total += quire;
            }
            total
        });
    });
    group.finish();
    println!("{}\n", pairs.report(title, RECORDS as f64, "records"));
}

fn end_to_end(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let setup = Arc::new(runtime.block_on(Setup::new()).expect("an embedded broker"));
    let payload = incompressible(RECORD_BYTES, 5);
    for sync in ["always", "interval"] {
        runtime.block_on(setup.topic(sync, sync)).expect("a new topic");
        let producer = setup.client.producer().build();
        // The first gigabytes of page cache after idling are far slower; they are not what is measured.
        for _ in 0..4 {
            runtime.block_on(produce(&producer, sync, &payload)).expect("a warm-up");
        }
        beside_bare(
            c,
            &format!("produce, one producer, sync = {sync}"),
            &runtime,
            &setup,
            async |_: &Setup| produce(&producer, sync, &payload).await,
        );
    }
    beside_bare(c, "consume, resident, verified", &runtime, &setup, async |setup: &Setup| {
        consume(&setup.client, "always", RECORDS).await
    });

    let mut group = c.benchmark_group("one record in flight each");
    group.sample_size(SAMPLES).throughput(Throughput::Elements(LONE_RECORDS as u64));
    group.measurement_time(Duration::from_secs(15));
    runtime.block_on(setup.topic("alone", "always")).expect("a new topic");
    group.bench_function(format!("{LONE_PRODUCERS} producers, sync = always"), |b| {
        b.iter_custom(|iterations| {
            (0..iterations)
                .map(|_| {
                    runtime.block_on(produce_alone(&setup.client, "alone", &payload)).expect("acknowledged")
                })
                .sum()
        });
    });
    group.finish();

    let setup = Arc::into_inner(setup).expect("no bench is running");
    runtime.block_on(setup.broker.shutdown());
}

criterion_group!(benches, end_to_end);
criterion_main!(benches);
