//! kill -9 at random moments under load: what was acknowledged is there, in order, at its offset; nothing else is.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quire_client::{Client, NewTopic, Offset, PartitionIndex, Position, Record};
use quire_engine::{Random, SplitMix64};
use quire_tests::process::{BrokerProcess, free_address};
use tokio::sync::watch;

const KILLS: u32 = 50;
const PARTITIONS: u32 = 4;
const TOPIC: &str = "killed";
/// Most records acknowledged between two kills.
const ACKNOWLEDGED_BEFORE_KILL_MAX: u64 = 10_000;
/// How long the load may take to go on after a kill.
const RESUME_TIME_MAX: Duration = Duration::from_secs(60);
/// Records a producer keeps unacknowledged.
const IN_FLIGHT: usize = 200;

/// What the producers and the one who kills tell each other.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    acknowledged: watch::Sender<u64>,
}

/// One producer's account: each value it sent, and the offset of each that was acknowledged.
#[derive(Default)]
struct Account {
    sent: u64,
    acknowledged: Vec<(u64, Offset)>,
}

fn value(partition: u32, counter: u64) -> String {
    // Lengths vary so that batches end anywhere in a page.
    format!("{partition}:{counter}:{}", "x".repeat((counter % 700) as usize))
}

fn parse(value: &[u8]) -> Result<(u32, u64)> {
    let text = std::str::from_utf8(value)?;
    let mut fields = text.splitn(3, ':');
    let mut number = || fields.next().context("a field is missing")?.parse::<u64>().context("not a number");
    Ok((number()? as u32, number()?))
}

/// Sends until told to stop, over every restart of the broker.
async fn produce(client: Client, partition: u32, load: Arc<Load>) -> Result<Account> {
    let producer = client.producer().delivery_timeout(Duration::from_secs(60)).build();
    let mut account = Account::default();
    let mut in_flight = std::collections::VecDeque::new();
    while !load.stop.load(Ordering::Relaxed) {
        while in_flight.len() < IN_FLIGHT {
            let counter = account.sent;
            let record = Record { value: Some(value(partition, counter).into()), ..Record::default() };
            let delivery = producer.enqueue_to(TOPIC, PartitionIndex(partition), record).await?;
            in_flight.push_back((counter, delivery));
            account.sent += 1;
        }
        if let Some((counter, delivery)) = in_flight.pop_front() {
            account.acknowledged.push((counter, delivery.await?.offset));
            load.acknowledged.send_modify(|count| *count += 1);
        }
    }
    for (counter, delivery) in in_flight {
        account.acknowledged.push((counter, delivery.await?.offset));
    }
    Ok(account)
}

/// Everything in a partition, by offset.
async fn read(client: &Client, partition: u32) -> Result<BTreeMap<Offset, u64>> {
    let mut consumer = client
        .consumer()
        .topic(TOPIC)
        .partitions([PartitionIndex(partition)])
        .from(Position::Beginning)
        .until(Position::End)
        .build()
        .await?;
    let mut found = BTreeMap::new();
    while let Some(record) = consumer.next().await {
        let record = record?;
        let (of_partition, counter) =
            parse(&record.value.context("a record without a value was never sent")?)?;
        ensure!(
            of_partition == partition,
            "partition {partition} holds a record of partition {of_partition}"
        );
        ensure!(found.insert(record.offset, counter).is_none(), "offset {} was read twice", record.offset);
    }
    Ok(found)
}

fn check(partition: u32, account: &Account, found: &BTreeMap<Offset, u64>) -> Result<()> {
    for (index, (offset, counter)) in found.iter().enumerate() {
        ensure!(offset.0 == index as u64, "partition {partition}: a gap before offset {offset}");
        ensure!(*counter < account.sent, "partition {partition}: record {counter} was never sent");
    }
    let mut previous = None;
    for (counter, offset) in &account.acknowledged {
        let there = found.get(offset);
        ensure!(
            there == Some(counter),
            "partition {partition}: {counter} was acknowledged at {offset}, found {there:?}"
        );
        ensure!(previous < Some(*offset), "partition {partition}: {counter} at {offset} is out of order");
        previous = Some(*offset);
    }
    // A record may stand twice if its answer was lost; its first appearances are still in the order of sending.
    let mut first = HashMap::new();
    for counter in found.values() {
        let seen = first.len() as u64;
        if !first.contains_key(counter) {
            ensure!(*counter == seen, "partition {partition}: record {counter} stands before record {seen}");
        }
        first.entry(*counter).or_insert(());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_kills_under_load_lose_nothing_that_was_acknowledged() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let address = free_address()?;
    let no_wrapper: [&str; 0] = [];
    let mut broker = BrokerProcess::start(&data, address, &no_wrapper)?;
    let client = broker.client().await?;
    // Small segments, so that kills also meet rolls.
    let topic = NewTopic::new(TOPIC).partitions(PARTITIONS).config("segment.bytes", "1048576");
    client.admin().create_topic(topic).await?;

    let load = Arc::new(Load::default());
    let producers: Vec<_> =
        (0..PARTITIONS).map(|p| tokio::spawn(produce(client.clone(), p, Arc::clone(&load)))).collect();
    let mut random = SplitMix64::new(0x5eed);
    let mut acknowledged = load.acknowledged.subscribe();
    for kill in 0..KILLS {
        // Every process that is killed has acknowledged something of its own first: between one record and many.
        let enough = *acknowledged.borrow() + 1 + random.next_u64() % ACKNOWLEDGED_BEFORE_KILL_MAX;
        tokio::time::timeout(RESUME_TIME_MAX, acknowledged.wait_for(|count| *count >= enough))
            .await
            .with_context(|| format!("kill {kill}: nothing was acknowledged any more\n{}", broker.log()))??;
        broker.kill()?;
        broker = BrokerProcess::start(&data, address, &no_wrapper)?;
    }
    load.stop.store(true, Ordering::Relaxed);

    let client = broker.client().await?;
    let mut acknowledged = 0;
    for (partition, producer) in (0..PARTITIONS).zip(producers) {
        let account = producer.await??;
        let found = read(&client, partition).await?;
        check(partition, &account, &found).with_context(|| broker.log())?;
        ensure!(account.acknowledged.len() as u64 == account.sent, "every record is acknowledged in the end");
        acknowledged += account.sent;
    }
    println!("{KILLS} kills, {acknowledged} records acknowledged, none lost");
    broker.stop()
}
