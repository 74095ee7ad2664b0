//! Compacted topics of a cluster: the last record of every key is read from whoever leads, and replicas that fetched what was
//! left by compaction lead as well as those that compacted it themselves.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quire::drill::cluster::{Cluster, ClusterSetup};
use quire_client::{
    BrokerId, Client, NewTopic, PartitionDescription, PartitionIndex, Position, Record, TopicDescription,
};
use quire_engine::{Random, SplitMix64};
use quire_tests::process::quire_binary;
use tokio::time::{Instant, sleep};

const TOPIC: &str = "state";
const PARTITION: PartitionIndex = PartitionIndex(0);
const KEYS: u64 = 400;
/// Records of each round, so many that most of them are overwritten.
const RECORDS: u64 = 20_000;
/// What a log of 400 keys takes once it is compacted, with what is not compacted yet behind it.
const COMPACTED_BYTES: u64 = 600_000;
const TIME_MAX: Duration = Duration::from_secs(40);

/// The latest value of each key; a key that was taken away has none.
type State = BTreeMap<String, Option<String>>;

async fn produce(client: &Client, random: &mut SplitMix64, state: &mut State, round: u32) -> Result<()> {
    let producer = client.producer().build();
    for number in 0..RECORDS {
        let key = format!("key-{}", random.next_u64() % KEYS);
        let value =
            (!random.next_u64().is_multiple_of(20)).then(|| format!("{round}-{number}-{}", "x".repeat(80)));
        let record = Record {
            key: Some(key.clone().into()),
            value: value.clone().map(Into::into),
            ..Record::default()
        };
        drop(producer.enqueue_to(TOPIC, PARTITION, record).await?);
        state.insert(key, value);
    }
    producer.close().await?;
    Ok(())
}

/// Reads everything, and answers how many offsets hold no record any more.
async fn check(client: &Client, expected: &State, when: &str) -> Result<u64> {
    let consumer = client.consumer().topic(TOPIC).from(Position::Beginning).until(Position::End);
    let mut consumer = consumer.build().await?;
    let (mut found, mut next, mut gaps) = (State::new(), 0, 0);
    while let Some(record) = consumer.next().await {
        let record = record.with_context(|| when.to_owned())?;
        ensure!(record.offset.0 >= next, "{when}: {} after {next}", record.offset);
        gaps += record.offset.0 - next;
        next = record.offset.0 + 1;
        let text = |bytes: bytes::Bytes| String::from_utf8_lossy(&bytes).into_owned();
        let key = text(record.key.context("every record has a key")?);
        found.insert(key, record.value.map(text));
    }
    for (key, value) in expected {
        // A tombstone may be there still, or gone with all that it took away.
        let is_right = found.get(key).unwrap_or(&None) == value;
        ensure!(is_right, "{when}: {key} is {:?} and not {value:?}", found.get(key));
    }
    Ok(gaps)
}

async fn wait_for(
    client: &Client,
    what: &str,
    mut is_so: impl FnMut(&PartitionDescription) -> bool,
) -> Result<()> {
    let end = Instant::now() + TIME_MAX;
    loop {
        let described: Option<TopicDescription> = client.admin().describe_topic(TOPIC).await.ok();
        let partition = described.and_then(|topic| topic.partitions.into_iter().next());
        match partition {
            Some(partition) if is_so(&partition) => return Ok(()),
            found if Instant::now() > end => bail!("{what}: {found:?}"),
            _ => sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Every replica by itself, whoever leads.
async fn all_compacted(client: &Client, replicas: usize) -> Result<()> {
    wait_for(client, "not every replica was compacted", |partition| {
        partition.logs.len() == replicas && partition.logs.iter().all(|log| log.size_bytes < COMPACTED_BYTES)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_log_is_read_from_every_replica_whoever_compacted_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut cluster = Cluster::start(ClusterSetup::new(&quire_binary()?, folder.path(), 3)).await?;
    let addresses: Vec<_> = cluster.nodes().iter().map(|node| node.address().to_string()).collect();
    let client =
        Client::connect_with(cluster.profile()?.at(format!("quire://{}", addresses.join(",")))).await?;
    let admin = client.admin();
    let topic = NewTopic::new(TOPIC).partitions(1).replicas(2).config("cleanup.policy", "compact");
    let topic = topic.config("segment.bytes", "65536").config("min.cleanable.dirty.ratio", "0.2");
    admin.create_topic(topic).await?;

    let (mut state, mut random) = (State::new(), SplitMix64::new(0xc0));
    produce(&client, &mut random, &mut state, 1).await?;
    all_compacted(&client, 2).await?;
    let gaps = check(&client, &state, "compacted by each replica").await?;
    ensure!(gaps > RECORDS / 2, "{gaps} offsets hold nothing any more");

    // Another broker fetches what compaction left, and leads.
    let held = admin.describe_topic(TOPIC).await?.partitions.remove(0).replicas;
    let other =
        (1..=3).map(BrokerId).find(|broker| !held.contains(broker)).context("two of three hold it")?;
    let target = [other, held[0]];
    admin.reassign(TOPIC, PARTITION, Some(&target)).await?;
    wait_for(&client, "it did not move", |partition| {
        partition.replicas == target && partition.in_sync_replicas.len() == 2
    })
    .await?;
    admin.elect_preferred_leaders(Some(TOPIC)).await?;
    wait_for(&client, "it does not lead", |partition| partition.leader == Some(other)).await?;
    check(&client, &state, "led by who fetched it").await?;

    // It takes records and compacts on; its follower does by itself.
    produce(&client, &mut random, &mut state, 2).await?;
    all_compacted(&client, 2).await?;
    check(&client, &state, "compacted on").await?;

    // And after kill -9, from the one that is left, and from the one that comes back.
    cluster.node(other).context("it is one of three")?.kill()?;
    wait_for(&client, "nobody else leads", |partition| {
        partition.leader.is_some_and(|leader| leader != other)
    })
    .await?;
    check(&client, &state, "after a kill").await?;
    let node = cluster.node(other).context("it is one of three")?;
    node.start()?;
    node.ready().await?;
    wait_for(&client, "it is not in sync", |partition| partition.in_sync_replicas.len() == 2).await?;
    admin.elect_preferred_leaders(Some(TOPIC)).await?;
    wait_for(&client, "it does not lead again", |partition| partition.leader == Some(other)).await?;
    check(&client, &state, "led by who was killed").await?;
    client.close().await;
    cluster.terminate().await?;
    Ok(())
}

/// The replica that was away had the values, and never hears of the tombstones if these go while it is away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_deleted_while_a_replica_was_away_does_not_come_back_with_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut cluster = Cluster::start(ClusterSetup::new(&quire_binary()?, folder.path(), 3)).await?;
    let client = Client::connect_with(cluster.profile()?).await?;
    let admin = client.admin();
    let topic = NewTopic::new(TOPIC).partitions(1).replicas(3).config("cleanup.policy", "compact");
    let topic = topic.config("segment.bytes", "65536").config("min.cleanable.dirty.ratio", "0.01");
    admin.create_topic(topic.config("delete.retention.ms", "0")).await?;
    let producer = client.producer().build();
    let send = async |key: &str, value: Option<&str>| {
        let value = value.map(|value| value.to_owned().into());
        let record = Record { key: Some(key.to_owned().into()), value, ..Record::default() };
        producer.send_to(TOPIC, PARTITION, record).await
    };
    let padding = "x".repeat(600);
    // More than a segment, several times: what is before gets compacted.
    let fill = async |round: u32| -> Result<()> {
        for number in 0..300 {
            send(&format!("filler-{number}"), Some(&format!("{round}{padding}"))).await?;
        }
        Ok(())
    };
    for number in 0..20 {
        send(&format!("gone-{number}"), Some("deleted later")).await?;
    }
    fill(0).await?;
    wait_for(&client, "not everybody is in sync", |found| found.in_sync_replicas.len() == 3).await?;
    let away =
        *admin.describe_topic(TOPIC).await?.partitions[0].in_sync_replicas.iter().max().context("3")?;
    let preferred: Vec<_> = (1..=3).rev().map(BrokerId).collect();
    cluster.node(away).context("it is one of three")?.kill()?;
    for number in 0..20 {
        send(&format!("gone-{number}"), None).await?;
    }
    // Compacted twice with them in it: the second time they are due.
    let emptied = async |what: &str| {
        wait_for(&client, what, |found| {
            let others = found.logs.iter().filter(|log| log.broker != away);
            others.clone().count() == 2 && others.clone().all(|log| log.size_bytes < 400_000)
        })
        .await
    };
    for round in 1..=4 {
        fill(round).await?;
        emptied("it is not compacted").await?;
    }
    let node = cluster.node(away).context("it is one of three")?;
    node.start()?;
    node.ready().await?;
    wait_for(&client, "it is not in sync", |found| found.in_sync_replicas.len() == 3).await?;
    admin.reassign(TOPIC, PARTITION, Some(&preferred)).await?;
    admin.elect_preferred_leaders(Some(TOPIC)).await?;
    wait_for(&client, "it does not lead", |found| found.leader == Some(away)).await?;
    let expected = (0..20).map(|number| (format!("gone-{number}"), None)).collect();
    check(&client, &expected, "led by who was away").await?;

    // Everybody has them now, and they go.
    let mut is_gone = false;
    let end = Instant::now() + TIME_MAX;
    for round in 5.. {
        if is_gone || Instant::now() > end {
            break;
        }
        fill(round).await?;
        is_gone = !holds_tombstones(&client).await?;
    }
    ensure!(is_gone, "tombstones that every replica has stay for ever");
    producer.close().await?;
    client.close().await;
    cluster.terminate().await?;
    Ok(())
}

async fn holds_tombstones(client: &Client) -> Result<bool> {
    let consumer = client.consumer().topic(TOPIC).from(Position::Beginning).until(Position::End);
    let mut consumer = consumer.build().await?;
    while let Some(record) = consumer.next().await {
        if record?.value.is_none() {
            return Ok(true);
        }
    }
    Ok(false)
}
