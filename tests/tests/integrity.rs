//! The files of one broker of three, damaged: bits flipped in its logs, running and stopped, are detected, the replica is
//! fetched again from its leader, and nobody is ever given a byte that was not produced; small files that are damaged or
//! gone are made again, or the replica is.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quire_broker::config::{FirstStart, HostPort};
use quire_broker::{Broker, Config};
use quire_client::{Client, NewTopic, PartitionIndex, Position, Profile, Record};
use quire_engine::{Random, SplitMix64};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

const TOPIC: &str = "flights";
const PARTITIONS: u32 = 2;
/// Records of each partition before anything is damaged.
const RECORDS: u64 = 300;
const RUNNING_ROUNDS: usize = 3;
const STOPPED_ROUNDS: usize = 2;
/// How long something that has to happen may take.
const TIME_MAX: Duration = Duration::from_secs(60);

/// One broker of the cluster, and what it is started with.
struct Node {
    dir: TempDir,
    config: Config,
    broker: Option<Broker>,
}

impl Node {
    async fn start(first_start: FirstStart) -> Result<Node> {
        let dir = tempfile::tempdir()?;
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut config = Config::new(dir.path());
        config.network.listen = loopback;
        config.admin_listen = Some(loopback);
        config.cluster.peer_listen = loopback;
        config.cluster.replica_lag = Duration::from_secs(2);
        config.shards = 1;
        config.scrub.bytes_per_second = 1 << 30;
        config.scrub.interval = Duration::from_millis(200);
        config.first_start = first_start;
        let mut node = Node { dir, config, broker: None };
        node.start_again().await?;
        let broker = node.broker()?;
        let (listen, peer_listen) = (broker.address(), broker.peer_address().context("it is in a cluster")?);
        node.config.network.listen = listen;
        node.config.cluster.peer_listen = peer_listen;
        Ok(node)
    }

    async fn start_again(&mut self) -> Result<()> {
        self.broker = Some(Broker::from_config(self.config.clone()).await?);
        Ok(())
    }

    async fn stop(&mut self) -> Result<()> {
        self.broker.take().context("it runs")?.shutdown().await;
        Ok(())
    }

    fn broker(&self) -> Result<&Broker> {
        self.broker.as_ref().context("it runs")
    }

    /// The values that the broker counts.
    async fn metric(&self, name: &str) -> Result<f64> {
        let mut stream = TcpStream::connect(self.broker()?.admin_address().context("it has one")?).await?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: broker\r\nConnection: close\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.with_context(|| format!("no metric {name}"))?.trim().parse()?)
    }
}

struct Three {
    nodes: Vec<Node>,
    client: Client,
}

impl Three {
    async fn start() -> Result<Three> {
        let mut nodes = vec![Node::start(FirstStart::Found).await?];
        for _ in 0..2 {
            let first = nodes[0].broker()?;
            let token = first.join_token(Duration::from_secs(3600)).await?;
            let at = HostPort { host: first.address().ip().to_string(), port: first.address().port() };
            nodes.push(Node::start(FirstStart::Join { at, token }).await?);
        }
        let addresses: Vec<_> =
            nodes.iter().map(|node| Ok(node.broker()?.address().to_string())).collect::<Result<_>>()?;
        let credentials = nodes[0].broker()?.credentials();
        let profile = Profile::new(format!("quire://{}", addresses.join(",")))
            .authority_pem(credentials.authority_pem)
            .identity_pem(credentials.certificate_pem, credentials.key_pem);
        Ok(Three { nodes, client: Client::connect_with(profile).await? })
    }

    /// With records of which each replica has some segments.
    async fn filled() -> Result<Three> {
        let three = Three::start().await?;
        let topic = NewTopic::new(TOPIC).partitions(PARTITIONS).replicas(3).config("segment.bytes", "65536");
        three.client.admin().create_topic(topic).await?;
        produce(&three.client, 0, RECORDS).await?;
        three.until_well(0).await?;
        Ok(three)
    }

    async fn until(
        &self,
        what: &str,
        node: usize,
        is_so: impl AsyncFn(&Three) -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + TIME_MAX;
        while !is_so(self).await.unwrap_or(false) {
            ensure!(Instant::now() < deadline, "not in time: {what} (broker {node})");
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    async fn is_in_sync(&self) -> Result<bool> {
        let topic = self.client.admin().describe_topic(TOPIC).await?;
        Ok(topic.partitions.iter().all(|partition| partition.in_sync_replicas.len() == 3))
    }

    /// Waits until the broker's replicas are all well, and in sync.
    async fn until_well(&self, node: usize) -> Result<()> {
        self.until("its replicas are in sync", node, async |three| {
            let impaired = three.nodes[node].metric("quire_partitions_impaired").await?;
            Ok(impaired == 0.0 && three.is_in_sync().await?)
        })
        .await
    }

    /// Adds some records to so many, and reads all of them.
    async fn go_on(&self, records: &mut u64) -> Result<()> {
        produce(&self.client, *records, *records + 5).await?;
        *records += 5;
        let deadline = Instant::now() + TIME_MAX;
        for partition in 0..PARTITIONS {
            loop {
                match read(&self.client, partition).await {
                    Ok(found) => {
                        ensure!(found == *records, "{found} of {records} are there");
                        break;
                    }
                    // Somebody else leads by now.
                    Err(error) if is_refused(&error) && Instant::now() < deadline => {
                        sleep(Duration::from_millis(50)).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Waits until the broker has fetched whole partitions again since it had fetched `before`, and all are in sync.
    async fn until_repaired(&self, node: usize, before: f64) -> Result<()> {
        let log_bytes = self.nodes[(node + 1) % 3].metric("quire_log_bytes").await?;
        self.until("what is damaged is fetched again", node, async |three| {
            let node = &three.nodes[node];
            let fetched = node.metric("quire_replica_fetched_bytes_total").await? - before;
            let is_well = node.metric("quire_partitions_impaired").await? == 0.0;
            Ok(fetched >= 0.9 * log_bytes && is_well && three.is_in_sync().await?)
        })
        .await
    }
}

fn value(partition: u32, number: u64) -> String {
    format!("{partition}:{number}:{}", "x".repeat(500 + (number % 700) as usize))
}

/// Adds records to every partition; `from` is the number of the first.
async fn produce(client: &Client, from: u64, to: u64) -> Result<()> {
    let producer = client.producer().delivery_timeout(TIME_MAX).build();
    for partition in 0..PARTITIONS {
        // Few at a time, or one batch fills a segment.
        for from in (from..to).step_by(10) {
            let numbers = from..to.min(from + 10);
            let mut sent = Vec::new();
            for number in numbers.clone() {
                let record = Record { value: Some(value(partition, number).into()), ..Record::default() };
                sent.push(producer.enqueue_to(TOPIC, PartitionIndex(partition), record).await?);
            }
            for (number, delivery) in numbers.zip(sent) {
                ensure!(delivery.await?.offset.0 == number, "at its place");
            }
        }
    }
    Ok(())
}

/// Reads a partition as far as it can be read; how far. What is read is what was produced.
async fn read(client: &Client, partition: u32) -> Result<u64> {
    let consumer = client.consumer().topic(TOPIC).partitions([PartitionIndex(partition)]);
    let built = consumer.from(Position::Beginning).until(Position::End).build().await;
    let mut consumer = built.context(RefusedToServe)?;
    let mut next = 0;
    while let Some(record) = consumer.next().await {
        let record = record.context(RefusedToServe)?;
        ensure!(record.offset.0 == next, "offset {} after {next} records", record.offset);
        ensure!(
            record.value.as_deref() == Some(value(partition, next).as_bytes()),
            "partition {partition}, offset {next}: what was read was never produced"
        );
        next += 1;
    }
    Ok(next)
}

/// What is damaged may be refused for a while, and so may what another broker leads by then.
#[derive(Debug)]
struct RefusedToServe;

impl std::fmt::Display for RefusedToServe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("refused")
    }
}

fn is_refused(error: &anyhow::Error) -> bool {
    error.downcast_ref::<RefusedToServe>().is_some()
}

/// Reads everything again and again; the number of complete reads.
async fn read_on(client: Client, stop: Arc<AtomicBool>, reads: Arc<AtomicU64>) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        for partition in 0..PARTITIONS {
            match read(&client, partition).await {
                Ok(_) => {
                    reads.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if is_refused(&error) => {}
                Err(error) => return Err(error),
            }
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn files_below(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        match path.is_dir() {
            true => files_below(&path, found)?,
            false => found.push(path),
        }
    }
    Ok(())
}

/// Flips two bits of every segment that holds records, frame headers and batches alike; how many segments.
fn flip_bits(dir: &Path, random: &mut SplitMix64) -> Result<usize> {
    use std::os::unix::fs::FileExt;
    let mut files = Vec::new();
    files_below(&dir.join("topics"), &mut files)?;
    files.sort();
    let mut damaged = 0;
    for path in files.iter().filter(|path| path.extension().is_some_and(|extension| extension == "log")) {
        let bytes = std::fs::read(path)?;
        // What follows is space that was made ahead.
        let Some(last) = bytes.iter().rposition(|byte| *byte != 0) else { continue };
        let file = std::fs::OpenOptions::new().write(true).open(path)?;
        let mut flipped = BTreeMap::new();
        while flipped.len() < 2 {
            let (at, bit) = (random.next_u64() % (last as u64 + 1), random.next_u64() % 8);
            flipped.insert(at, bytes[at as usize] ^ (1 << bit));
        }
        for (at, byte) in flipped {
            file.write_at(&[byte], at)?;
        }
        damaged += 1;
    }
    Ok(damaged)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bits_flipped_in_one_brokers_files_are_found_and_mended_and_never_served() -> Result<()> {
    let mut three = Three::filled().await?;
    let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let reading = tokio::spawn(read_on(three.client.clone(), Arc::clone(&stop), Arc::clone(&reads)));
    let mut random = SplitMix64::new(9);
    let mut records = RECORDS;
    for round in 0..RUNNING_ROUNDS + STOPPED_ROUNDS {
        let node = round % 3;
        let fetched = "quire_replica_fetched_bytes_total";
        let before = match round < RUNNING_ROUNDS {
            true => {
                let before = three.nodes[node].metric(fetched).await?;
                ensure!(flip_bits(three.nodes[node].dir.path(), &mut random)? > 4, "many segments");
                before
            }
            false => {
                three.nodes[node].stop().await?;
                ensure!(flip_bits(three.nodes[node].dir.path(), &mut random)? > 4, "many segments");
                three.nodes[node].start_again().await?;
                0.0
            }
        };
        three.until_repaired(node, before).await?;
        // Nothing is left of it: all is taken and read on.
        three.go_on(&mut records).await?;
    }
    stop.store(true, Ordering::Relaxed);
    reading.await??;
    ensure!(reads.load(Ordering::Relaxed) > 0, "it was read meanwhile");
    for node in &mut three.nodes {
        node.stop().await?;
    }
    Ok(())
}

#[derive(Debug, Clone, Copy)]
enum Harm {
    Delete,
    Truncate,
    Zero,
}

/// Does harm to one file of each partition, the one of this name or kind; whether there was any.
fn harm(dir: &Path, harm: Harm, is_meant: impl Fn(&str) -> bool) -> Result<bool> {
    let mut files = Vec::new();
    files_below(&dir.join("topics"), &mut files)?;
    files.retain(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(&is_meant));
    for path in &files {
        match harm {
            Harm::Delete => std::fs::remove_file(path)?,
            Harm::Truncate => {
                let len = std::fs::metadata(path)?.len();
                std::fs::OpenOptions::new().write(true).open(path)?.set_len(len / 2)?;
            }
            Harm::Zero => std::fs::write(path, vec![0; std::fs::metadata(path)?.len() as usize])?,
        }
    }
    Ok(!files.is_empty())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_files_of_one_broker_that_are_damaged_or_gone_cost_nothing() -> Result<()> {
    let mut three = Three::filled().await?;
    let mut records = RECORDS;
    let kinds = ["manifest", "checkpoint", "epochs", "producers", "clean", ".index", ".timeindex"];
    let mut found = Vec::new();
    for (round, kind) in [Harm::Delete, Harm::Truncate, Harm::Zero].into_iter().enumerate() {
        // Half of the kinds at once, so that each has to do without others too.
        for names in [&kinds[..1], &kinds[1..4], &kinds[4..]] {
            let node = &mut three.nodes[round];
            node.stop().await?;
            for name in names {
                if harm(node.dir.path(), kind, |file| file == *name || file.ends_with(name))? {
                    found.push(*name);
                }
            }
            node.start_again().await?;
            three.until_well(round).await?;
            three.go_on(&mut records).await?;
        }
    }
    for name in kinds {
        ensure!(found.contains(&name), "{name} is no file of a log");
    }
    Ok(())
}
