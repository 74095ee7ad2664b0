//! Producers that send numbered records over every stop of a broker, and the account that what is read is held against.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quire_client::{Client, Offset, PartitionIndex, Position, Record};
use tokio::sync::watch;

/// The topic that they send to; who starts them creates it.
pub const TOPIC: &str = "numbered";
/// Records a producer keeps unacknowledged.
const IN_FLIGHT: usize = 200;

/// What the producers and the one who does harm tell each other.
#[derive(Debug, Default)]
pub struct Load {
    /// Producers end.
    pub stop: AtomicBool,
    /// Records acknowledged so far.
    pub acknowledged: watch::Sender<u64>,
}

/// One producer's account: each value it sent, and the offset of each that was acknowledged.
#[derive(Debug, Default)]
pub struct Account {
    /// Records sent.
    pub sent: u64,
    /// Each record acknowledged, and its offset, in order of sending.
    pub acknowledged: Vec<(u64, Offset)>,
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
///
/// # Errors
/// If a record is not delivered in time.
pub async fn produce(client: Client, partition: u32, load: Arc<Load>) -> Result<Account> {
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
///
/// # Errors
/// If it can not be read, or holds what nobody sent.
pub async fn read(client: &Client, partition: u32) -> Result<BTreeMap<Offset, u64>> {
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

/// Whether what was acknowledged is there, in order, at its offset, and nothing else is.
///
/// # Errors
/// What is wrong.
pub fn check(partition: u32, account: &Account, found: &BTreeMap<Offset, u64>) -> Result<()> {
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
