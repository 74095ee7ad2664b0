//! Data directories of released versions, opened by today's broker: everything in them is there, and more can be added.
//!
//! `fixtures/<version>/<name>/` holds each file of such a directory compressed, but for its certificates: those are made
//! anew. A fixture is never changed, only added: `QUIRE_FREEZE=1` writes those of [`VERSION`] that are missing.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use flate2::{Compression as Level, read::GzDecoder, write::GzEncoder};
use quire_broker::Broker;
use quire_client::{
    Client, Compression, Header, NewTopic, Offset, PartitionIndex, Position, Profile, Record, Timestamp,
};
use quire_tests::repository::root;

/// What today's code writes; a new one with each change of a stored format.
const VERSION: &str = "v2";
/// All versions whose data must be read for ever.
const VERSIONS: &[&str] = &["v1", "v2"];
/// Topics that were written to, named after how they sync.
const TOPICS: &[&str] = &["always", "interval"];
/// A topic without a record; since `v2`, where its logs are markers.
const IDLE: &str = "idle";
const PARTITIONS: u32 = 2;
const RECORDS: u64 = 40;
const COMPRESSIONS: [Compression; 5] =
    [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

fn record(partition: u32, number: u64) -> Record {
    Record {
        key: (!number.is_multiple_of(3)).then(|| format!("key {}", number % 7).into()),
        value: (!number.is_multiple_of(5))
            .then(|| format!("{partition}:{number} {}", "~".repeat(number as usize)).into()),
        timestamp: Some(Timestamp(1_357_034_400_000 + number as i64 * 60_000)),
        headers: vec![Header { key: "number".into(), value: Some(number.to_string().into()) }],
    }
}

fn has_idle(version: &str) -> bool {
    version != "v1"
}

async fn client_of(broker: &Broker) -> Result<Client> {
    let credentials = broker.credentials();
    let profile = Profile::new(format!("quire://{}", broker.address()))
        .authority_pem(credentials.authority_pem)
        .identity_pem(credentials.certificate_pem, credentials.key_pem);
    Ok(Client::connect_with(profile).await?)
}

async fn fill(client: &Client) -> Result<()> {
    let admin = client.admin();
    for topic in TOPICS {
        let new =
            NewTopic::new(*topic).partitions(PARTITIONS).config("retention.ms", "-1").config("sync", *topic);
        admin.create_topic(new).await?;
    }
    admin.create_topic(NewTopic::new(IDLE).partitions(PARTITIONS)).await?;
    admin.create_topic(NewTopic::new("deleted")).await?;
    admin.delete_topic("deleted").await?;
    for topic in TOPICS {
        for number in 0..RECORDS {
            let compression = COMPRESSIONS[number as usize % COMPRESSIONS.len()];
            let producer = client.producer().compression(compression).build();
            for partition in 0..PARTITIONS {
                let sent = producer.send_to(topic, PartitionIndex(partition), record(partition, number));
                ensure!(sent.await?.offset == Offset(number));
            }
            producer.close().await?;
        }
    }
    Ok(())
}

/// Everything that [`fill`] wrote in this version is there.
async fn check(client: &Client, version: &str) -> Result<()> {
    let mut names: Vec<_> = client.admin().list_topics().await?.into_iter().map(|topic| topic.name).collect();
    names.sort();
    let mut expected = TOPICS.to_vec();
    expected.extend(has_idle(version).then_some(IDLE));
    expected.sort_unstable();
    ensure!(names == expected, "the topics are {names:?}");
    for topic in TOPICS {
        let described = client.admin().describe_topic(topic).await?;
        ensure!(described.config.get("sync").map(String::as_str) == Some(*topic));
        for partition in 0..PARTITIONS {
            check_partition(client, topic, partition).await?;
        }
    }
    Ok(())
}

async fn check_partition(client: &Client, topic: &str, partition: u32) -> Result<()> {
    let consumer = client.consumer().topic(topic).partitions([PartitionIndex(partition)]);
    let mut consumer = consumer.until(Position::Offset(Offset(RECORDS))).build().await?;
    for number in 0..RECORDS {
        let read =
            consumer.next().await.with_context(|| format!("{topic}-{partition} ends at {number}"))??;
        ensure!(read.offset == Offset(number));
        let read = Record {
            key: read.key,
            value: read.value,
            timestamp: Some(read.timestamp),
            headers: read.headers,
        };
        ensure!(read == record(partition, number), "{topic}-{partition} at {number}: {read:?}");
    }
    ensure!(consumer.next().await.is_none(), "{topic}-{partition} goes on");
    let timestamp = record(partition, 30).timestamp.context("it has one")?;
    let at = Position::Timestamp(timestamp);
    let found = client.admin().list_offsets(topic, [(PartitionIndex(partition), at)]).await?;
    ensure!(found.iter().all(|found| found.offset == Offset(30)), "by time: {found:?}");
    Ok(())
}

/// One fixture through today's broker, twice: the second time with what the first added.
async fn open(fixture: &Path, version: &str) -> Result<()> {
    let data = tempfile::tempdir()?;
    unpack(fixture, data.path())?;
    let mut ends: Vec<_> = TOPICS.iter().map(|topic| (*topic, RECORDS)).collect();
    ends.extend(has_idle(version).then_some((IDLE, 0)));
    for start in 0..2 {
        let broker = Broker::builder().data_dir(data.path()).start().await?;
        let client = client_of(&broker).await?;
        check(&client, version).await?;
        let producer = client.producer().build();
        for (topic, end) in &ends {
            let sent = producer.send_to(topic, PartitionIndex(0), record(0, end + start)).await?;
            ensure!(sent.offset == Offset(end + start), "{topic} goes on at {}", sent.offset);
        }
        client.close().await;
        ensure!(broker.shutdown().await.clean);
    }
    Ok(())
}

fn fixtures() -> PathBuf {
    root().join("tests/fixtures")
}

#[tokio::test]
async fn directories_of_every_version_open() -> Result<()> {
    if std::env::var_os("QUIRE_FREEZE").is_some() && !fixtures().join(VERSION).exists() {
        freeze(&fixtures().join(VERSION)).await?;
    }
    for version in VERSIONS {
        for name in ["stopped", "killed"] {
            let fixture = fixtures().join(version).join(name);
            open(&fixture, version).await.with_context(|| fixture.display().to_string())?;
        }
    }
    Ok(())
}

/// Writes what a broker leaves behind when it is stopped in order, and what it leaves when it just ends.
async fn freeze(target: &Path) -> Result<()> {
    let data = tempfile::tempdir()?;
    let broker = Broker::builder().data_dir(data.path()).start().await?;
    let client = client_of(&broker).await?;
    fill(&client).await?;
    client.close().await;
    pack(data.path(), &target.join("killed"))?;
    ensure!(broker.shutdown().await.clean);
    pack(data.path(), &target.join("stopped"))
}

fn pack(data: &Path, target: &Path) -> Result<()> {
    for entry in fs::read_dir(data)? {
        let path = entry?.path();
        let name = path.file_name().context("an entry has a name")?;
        if path.is_dir() && name != "tls" {
            pack(&path, &target.join(name))?;
        } else if path.is_file() && name != "lock" {
            fs::create_dir_all(target)?;
            let packed = target.join(format!("{}.gz", name.to_string_lossy()));
            let mut encoder = GzEncoder::new(fs::File::create(packed)?, Level::best());
            encoder.write_all(&fs::read(&path)?)?;
            encoder.finish()?;
        }
    }
    Ok(())
}

fn unpack(fixture: &Path, data: &Path) -> Result<()> {
    for entry in fs::read_dir(fixture)? {
        let path = entry?.path();
        let name = path.file_name().context("an entry has a name")?.to_string_lossy().into_owned();
        if path.is_dir() {
            fs::create_dir(data.join(&name))?;
            unpack(&path, &data.join(&name))?;
        } else {
            let mut bytes = Vec::new();
            GzDecoder::new(fs::File::open(&path)?).read_to_end(&mut bytes)?;
            fs::write(data.join(name.trim_end_matches(".gz")), bytes)?;
        }
    }
    Ok(())
}
