//! kill -9 at random moments under load: what was acknowledged is there, in order, at its offset; nothing else is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quire_client::NewTopic;
use quire_engine::{Random, SplitMix64};
use quire_tests::load::{Load, TOPIC, check, produce, read};
use quire_tests::process::{BrokerProcess, free_address};

const KILLS: u32 = 50;
const PARTITIONS: u32 = 4;
/// Most records acknowledged between two kills.
const ACKNOWLEDGED_BEFORE_KILL_MAX: u64 = 10_000;
/// How long the load may take to go on after a kill.
const RESUME_TIME_MAX: Duration = Duration::from_secs(60);

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
