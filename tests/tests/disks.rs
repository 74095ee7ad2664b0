//! The real broker on file systems of the real kernel that lose power, fail to write back, and are full: what was
//! acknowledged is there, and the broker goes on by itself where it can.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quire_client::{Client, NewTopic, Offset, PartitionIndex, Record};
use quire_engine::{Random, SplitMix64};
use quire_tests::load::{self, Load, TOPIC};
use quire_tests::power_loss::{LossyDisk, SmallDisk, unavailable};
use quire_tests::process::{BrokerProcess, free_address};

const MIB: u64 = 1024 * 1024;
const NO_WRAPPER: [&str; 0] = [];
const PARTITIONS: u32 = 4;
/// How often the power goes.
const POWER_LOSSES: u32 = 8;
/// Records acknowledged between two power losses, at most.
const ACKNOWLEDGED_MAX: u64 = 6_000;
/// How long something that has to happen may take.
const TIME_MAX: Duration = Duration::from_secs(60);

/// Whether the test can run here; says why if not.
fn can_run(test: &str) -> bool {
    let why = unavailable();
    if let Some(why) = &why {
        println!("skipped: {test} ({why})");
    }
    why.is_none()
}

fn start(data: &Path, address: std::net::SocketAddr) -> Result<BrokerProcess> {
    BrokerProcess::start(data, address, &NO_WRAPPER)
}

fn record(counter: u64, bytes: usize) -> Record {
    let value = format!("{counter}:{}", "y".repeat(bytes));
    Record { value: Some(value.into()), ..Record::default() }
}

/// The numbers of the records in partition 0, by offset, once a broker that has just started has recovered its log.
async fn numbers(client: &Client, topic: &str) -> Result<BTreeMap<Offset, u64>> {
    let deadline = tokio::time::Instant::now() + TIME_MAX;
    loop {
        match read(client, topic).await {
            // The broker tells when a log is open to who asks, and asking is reading.
            Err(_) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            read => return read,
        }
    }
}

async fn read(client: &Client, topic: &str) -> Result<BTreeMap<Offset, u64>> {
    let consumer = client.consumer().topic(topic).partitions([PartitionIndex(0)]);
    let mut consumer =
        consumer.from(quire_client::Position::Beginning).until(quire_client::Position::End).build().await?;
    let mut found = BTreeMap::new();
    while let Some(record) = consumer.next().await {
        let record = record?;
        let value = record.value.context("every record has a value")?;
        let number = std::str::from_utf8(&value)?.split(':').next().context("a number")?.parse()?;
        found.insert(record.offset, number);
    }
    Ok(found)
}

fn ensure_all_there(acknowledged: &[(u64, Offset)], found: &BTreeMap<Offset, u64>) -> Result<()> {
    for (number, offset) in acknowledged {
        let there = found.get(offset);
        ensure!(there == Some(number), "{number} was acknowledged at {offset}, found {there:?}");
    }
    Ok(())
}

/// Row 7 of the acceptance tests, on one broker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_power_loss_under_load_loses_what_was_acknowledged() -> Result<()> {
    if !can_run("no_power_loss_under_load_loses_what_was_acknowledged") {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut disk = LossyDisk::new(folder.path(), 512 * MIB)?;
    let data = disk.path().to_owned();
    let address = free_address()?;
    let mut broker = start(&data, address)?;
    let client = broker.client().await?;
    let topic = NewTopic::new(TOPIC).partitions(PARTITIONS).config("segment.bytes", "1048576");
    client.admin().create_topic(topic).await?;

    let load = Arc::new(Load::default());
    let producers: Vec<_> = (0..PARTITIONS)
        .map(|partition| tokio::spawn(load::produce(client.clone(), partition, Arc::clone(&load))))
        .collect();
    let mut random = SplitMix64::new(0x0ff);
    let mut acknowledged = load.acknowledged.subscribe();
    for loss in 0..POWER_LOSSES {
        let enough = *acknowledged.borrow() + 1 + random.next_u64() % ACKNOWLEDGED_MAX;
        tokio::time::timeout(TIME_MAX, acknowledged.wait_for(|count| *count >= enough))
            .await
            .with_context(|| format!("loss {loss}: nothing was acknowledged any more\n{}", broker.log()))??;
        // Every other time the process goes first: what it left in the page cache is lost with the power.
        if loss % 2 == 0 {
            disk.cut_power()?;
        }
        broker.kill()?;
        if loss % 2 == 1 {
            disk.cut_power()?;
        }
        disk.restore_power()?;
        broker = start(&data, address)?;
    }
    load.stop.store(true, Ordering::Relaxed);

    let client = broker.client().await?;
    let mut all = 0;
    for (partition, producer) in (0..PARTITIONS).zip(producers) {
        let account = producer.await??;
        let found = load::read(&client, partition).await?;
        load::check(partition, &account, &found).with_context(|| broker.log())?;
        all += account.sent;
    }
    println!("{POWER_LOSSES} power losses, {all} records acknowledged, none lost");
    broker.stop()
}

/// The harness loses what was not synced, and keeps what was: a test on a disk that loses nothing shows nothing.
#[test]
fn what_was_not_synced_is_gone_after_a_power_loss() -> Result<()> {
    if !can_run("what_was_not_synced_is_gone_after_a_power_loss") {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut disk = LossyDisk::new(folder.path(), 64 * MIB)?;
    std::fs::write(disk.path().join("synced"), b"kept")?;
    std::fs::File::open(disk.path().join("synced"))?.sync_all()?;
    std::fs::File::open(disk.path())?.sync_all()?;
    std::fs::write(disk.path().join("unsynced"), b"lost")?;
    disk.cut_power()?;
    disk.restore_power()?;
    assert_eq!(std::fs::read(disk.path().join("synced"))?, b"kept");
    let unsynced = std::fs::read(disk.path().join("unsynced"));
    assert!(unsynced.as_ref().map_or(true, |bytes| bytes != b"lost"), "{unsynced:?}");
    Ok(())
}

/// Row 8, on one broker: after a failed sync that log acknowledges nothing more; killed, started, and after a power loss
/// it holds what it had acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failed_write_back_nothing_is_acknowledged_that_is_not_kept() -> Result<()> {
    if !can_run("after_a_failed_write_back_nothing_is_acknowledged_that_is_not_kept") {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut disk = LossyDisk::with_small_device(folder.path(), 256 * MIB, 160 * MIB)?;
    let data = disk.path().to_owned();
    let address = free_address()?;
    let mut broker = start(&data, address)?;
    let client = broker.client().await?;
    client.admin().create_topic(NewTopic::new("failing").partitions(1)).await?;
    let producer = client.producer().delivery_timeout(Duration::from_secs(5)).build();
    let mut acknowledged = Vec::new();
    let mut refused = None;
    for counter in 0..4000 {
        if counter == 200 {
            disk.fill_device(2 * MIB)?;
        }
        match producer.send_to("failing", PartitionIndex(0), record(counter, 16 * 1024)).await {
            Ok(metadata) => acknowledged.push((counter, metadata.offset)),
            Err(error) => {
                refused = Some((counter, error));
                break;
            }
        }
    }
    let (at, error) = refused.context("the device is full, and every record was acknowledged")?;
    ensure!(at >= 200, "refused before the device was full: {error}");
    // Not one more, however often it is tried.
    for counter in 10_000..10_002 {
        let sent = producer.send_to("failing", PartitionIndex(0), record(counter, 100)).await;
        ensure!(sent.is_err(), "a record was acknowledged after a failed sync: {sent:?}\n{}", broker.log());
    }
    broker.kill()?;
    disk.free_device()?;
    let mut broker = start(&data, address)?;
    let client = broker.client().await?;
    ensure_all_there(&acknowledged, &numbers(&client, "failing").await?).with_context(|| broker.log())?;
    disk.cut_power()?;
    broker.kill()?;
    disk.restore_power()?;
    let mut broker = start(&data, address)?;
    let client = broker.client().await?;
    ensure_all_there(&acknowledged, &numbers(&client, "failing").await?)
        .with_context(|| format!("after the power loss\n{}", broker.log()))?;
    println!(
        "{} records acknowledged before the sync that failed at record {at}, none lost",
        acknowledged.len()
    );
    broker.kill()
}

/// Row 17: the broker stays up, refuses with an error that may be retried, serves reads, and resumes by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_on_a_full_disk_serves_reads_and_resumes_by_itself() -> Result<()> {
    if !can_run("a_broker_on_a_full_disk_serves_reads_and_resumes_by_itself") {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let disk = SmallDisk::new(folder.path(), 64 * MIB)?;
    let data = disk.path().to_owned();
    let mut broker = start(&data, free_address()?)?;
    let client = broker.client().await?;
    client.admin().create_topic(NewTopic::new("full").partitions(1)).await?;
    let producer = client.producer().delivery_timeout(Duration::from_secs(2)).build();
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let filler = disk.fill()?;
        let mut refused = None;
        for counter in 0..4000 {
            let number = round * 10_000 + counter;
            match producer.send_to("full", PartitionIndex(0), record(number, 32 * 1024)).await {
                Ok(metadata) => acknowledged.push((number, metadata.offset)),
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        let error = refused.context("a full disk took every record")?;
        println!("round {round}: {} records acknowledged, then: {error}", acknowledged.len());
        ensure_all_there(&acknowledged, &numbers(&client, "full").await?).with_context(|| broker.log())?;
        drop(filler);
        let metadata = tokio::time::timeout(TIME_MAX, async {
            loop {
                let sent =
                    producer.send_to("full", PartitionIndex(0), record(round * 10_000 + 9_999, 10)).await;
                if let Ok(metadata) = sent {
                    break metadata;
                }
            }
        });
        let metadata = metadata.await.with_context(|| format!("it did not resume\n{}", broker.log()))?;
        acknowledged.push((round * 10_000 + 9_999, metadata.offset));
    }
    ensure_all_there(&acknowledged, &numbers(&client, "full").await?)?;
    broker.kill()
}
