//! Groups of real processes on a cluster of real processes: members and brokers are killed, stopped and paused while a year
//! of departures comes in, and each group has processed exactly that year in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use flate2::read::GzDecoder;
use quire::drill::cluster::{Cluster, ClusterSetup};
use quire_client::{BrokerId, Client, NewTopic, Offset, PartitionIndex, Record, Timestamp, TopicPartition};
use quire_engine::{Random, SplitMix64};
use quire_protocol::{OFFSETS_TOPIC, limits};
use quire_tests::chaos::rounds;
use quire_tests::process::quire_binary;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::time::{Instant, sleep};

const TOPIC: &str = "flights";
const PARTITIONS: u32 = 8;
const GROUPS: [&str; 2] = ["billing", "audit"];
/// How many records of the year come in a second: there is time for faults meanwhile.
const RATE: u64 = 15_000;
/// How long a member that was killed keeps its partitions.
const SESSION: &str = "3s";
/// How long the groups may take to process what is left.
const CATCH_UP_TIME_MAX: Duration = Duration::from_secs(90);
/// What the year comes to.
const EVENTS: u64 = 328_521;
const MINUTES: i64 = 4_152_200;

#[derive(Deserialize)]
struct Departure {
    key: String,
    timestamp: i64,
    value: serde_json::Value,
}

#[derive(Deserialize)]
struct Value {
    carrier: String,
    delay_min: i64,
}

type Totals = BTreeMap<String, (u64, i64)>;

/// One `quire consume --group`, which writes what it is given into a file of its own.
struct Member {
    child: Child,
    output: PathBuf,
}

impl Member {
    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// It leaves; what it wrote it has committed.
    fn leave(mut self) -> Result<PathBuf> {
        self.signal(Signal::INT)?;
        let status = self.child.wait()?;
        let said = std::fs::read_to_string(self.output.with_extension("err"))?;
        ensure!(status.code() == Some(130), "a member that is interrupted ends with {status}: {said}");
        Ok(self.output.clone())
    }

    fn kill(mut self) -> Result<PathBuf> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(self.output.clone())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A group's members, those that are and those that were.
struct Group {
    name: &'static str,
    folder: PathBuf,
    members: Vec<Member>,
    outputs: Vec<PathBuf>,
    started: u32,
}

impl Group {
    fn join(&mut self) -> Result<()> {
        self.started += 1;
        let output = self.folder.join(format!("{}-{}.txt", self.name, self.started));
        let errors = File::create(self.folder.join(format!("{}-{}.err", self.name, self.started)))?;
        let child = Command::new(quire_binary()?)
            .args(["consume", TOPIC, "--group", self.name, "--session-timeout", SESSION])
            .args(["--format", "%p %o %s\\n", "--profile", "trial"])
            .env("XDG_CONFIG_HOME", self.folder.join("config"))
            .stdin(Stdio::null())
            .stdout(File::create(&output)?)
            .stderr(errors)
            .spawn()?;
        self.members.push(Member { child, output });
        Ok(())
    }

    fn take(&mut self, random: &mut SplitMix64) -> Member {
        let place = random.next_u64() as usize % self.members.len();
        self.members.swap_remove(place)
    }
}

fn year() -> Option<PathBuf> {
    let folder = std::env::var_os("QUIRE_TEST_DATA")?;
    Some(Path::new(&folder).join("flights.ndjson.gz"))
}

/// The year as it stands in its file, and each carrier's totals.
fn read_year(file: &Path) -> Result<(Vec<Record>, Totals)> {
    let (mut records, mut totals) = (Vec::new(), Totals::new());
    for line in BufReader::new(GzDecoder::new(File::open(file)?)).lines() {
        let departure: Departure = serde_json::from_str(&line?)?;
        let value: Value = serde_json::from_value(departure.value.clone())?;
        add(&mut totals, &value);
        records.push(Record {
            key: Some(departure.key.into()),
            value: Some(departure.value.to_string().into()),
            timestamp: Some(Timestamp(departure.timestamp)),
            ..Record::default()
        });
    }
    Ok((records, totals))
}

fn add(totals: &mut Totals, value: &Value) {
    let (events, minutes) = totals.entry(value.carrier.clone()).or_default();
    *events += 1;
    *minutes += value.delay_min;
}

/// Produces the year, a tenth of a second's worth at a time.
async fn produce(client: Client, records: Vec<Record>, produced: Arc<AtomicU64>) -> Result<()> {
    let producer = client.producer().build();
    let start = Instant::now();
    for (number, piece) in records.chunks((RATE / 10) as usize).enumerate() {
        tokio::time::sleep_until(start + Duration::from_millis(100) * number as u32).await;
        for record in piece {
            drop(producer.enqueue(TOPIC, record.clone()).await?);
        }
        produced.fetch_add(piece.len() as u64, Ordering::Relaxed);
    }
    producer.close().await?;
    Ok(())
}

/// Looks again and again at what the groups have committed, and at who has what.
async fn watch(client: Client) -> Result<()> {
    let mut committed: BTreeMap<(&str, TopicPartition), Offset> = BTreeMap::new();
    loop {
        for group in GROUPS {
            // There is none yet, or its coordinator is away.
            let Ok(described) = client.admin().describe_group(group).await else { continue };
            for offset in described.offsets {
                let known = committed.entry((group, offset.id)).or_default();
                let at = offset.id;
                ensure!(offset.offset >= *known, "{group} {at} went back from {known} to {}", offset.offset);
                *known = offset.offset;
            }
            let mut owned = BTreeSet::new();
            for partition in described.members.iter().flat_map(|member| &member.assigned) {
                let generation = described.summary.generation;
                ensure!(owned.insert(partition.id), "{group} {}: two owners in {generation}", partition.id);
            }
        }
        sleep(Duration::from_millis(150)).await;
    }
}

/// Has this broker coordinate every group, while nobody loses a connection.
async fn move_coordinators(client: &Client, to: BrokerId) -> Result<()> {
    let order: Vec<BrokerId> = (0..3).map(|next| BrokerId(1 + (to.0 - 1 + next) % 3)).collect();
    for partition in (0..limits::OFFSETS_PARTITIONS).map(PartitionIndex) {
        client.admin().reassign(OFFSETS_TOPIC, partition, Some(&order)).await?;
    }
    client.admin().elect_preferred_leaders(Some(OFFSETS_TOPIC)).await?;
    Ok(())
}

/// Waits until both groups have committed everything.
async fn caught_up(client: &Client) -> Result<()> {
    let end = Instant::now() + CATCH_UP_TIME_MAX;
    let mut left = String::new();
    while Instant::now() < end {
        left.clear();
        for group in GROUPS {
            let Ok(described) = client.admin().describe_group(group).await else {
                left.push_str("a coordinator is away; ");
                continue;
            };
            let progress = client.admin().group_progress(&described).await?;
            let (mut committed, mut lag) = (0, 0);
            for partition in progress {
                committed += partition.committed.unwrap_or_default().0;
                lag += partition.log.as_ref().map_or(1, |log| log.lag);
            }
            if committed != EVENTS || lag != 0 {
                left.push_str(&format!("{group}: {committed} committed, {lag} left: {described:?}; "));
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        sleep(Duration::from_millis(200)).await;
    }
    bail!("the groups did not process everything in {CATCH_UP_TIME_MAX:?}: {left}")
}

/// What a group's members were given: each record once, however often it came, and how many came again.
fn tally(outputs: &[PathBuf]) -> Result<(Totals, u64)> {
    let (mut seen, mut totals, mut again) = (BTreeSet::new(), Totals::new(), 0);
    for output in outputs {
        for line in BufReader::new(File::open(output)?).lines() {
            let line = line?;
            let mut parts = line.splitn(3, ' ');
            let place = (parts.next().and_then(|part| part.parse::<u32>().ok()))
                .zip(parts.next().and_then(|part| part.parse::<u64>().ok()));
            // What was being written when its member was killed is cut off, and was not committed.
            let (Some(place), Some(value)) = (place, parts.next()) else { continue };
            let Ok(value) = serde_json::from_str::<Value>(value) else { continue };
            match seen.insert(place) {
                true => add(&mut totals, &value),
                false => again += 1,
            }
        }
    }
    Ok((totals, again))
}

/// Row 21 of the acceptance tests: members and coordinators are killed and paused, offsets never go back, no partition has two
/// owners, and what the groups processed, counted once, is exact for every carrier.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_groups_process_the_whole_year_whoever_is_killed() -> Result<()> {
    let Some(file) = year() else {
        println!("skipped: two_groups_process_the_whole_year_whoever_is_killed (QUIRE_TEST_DATA is not set)");
        return Ok(());
    };
    let (records, expected) = read_year(&file)?;
    let sum = expected.values().fold((0, 0), |(events, minutes), (e, m)| (events + e, minutes + m));
    ensure!(sum == (EVENTS, MINUTES), "the year is another one: {sum:?}");

    let folder = tempfile::tempdir()?;
    let mut cluster = Cluster::start(ClusterSetup::new(&quire_binary()?, folder.path(), 3)).await?;
    let addresses: Vec<_> = cluster.nodes().iter().map(|node| node.address().to_string()).collect();
    let profile = cluster.profile()?.at(format!("quire://{}", addresses.join(",")));
    let profiles = folder.path().join("config/quire/profiles");
    std::fs::create_dir_all(&profiles)?;
    profile.save(&profiles.join("trial.toml"))?;
    let client = Client::connect_with(profile).await?;
    client.admin().create_topic(NewTopic::new(TOPIC).partitions(PARTITIONS).replicas(3)).await?;

    let mut groups = GROUPS.map(|name| Group {
        name,
        folder: folder.path().to_owned(),
        members: Vec::new(),
        outputs: Vec::new(),
        started: 0,
    });
    for group in &mut groups {
        for _ in 0..3 {
            group.join()?;
        }
    }
    let watching = tokio::spawn(watch(client.clone()));
    let produced = Arc::new(AtomicU64::new(0));
    let producing = tokio::spawn(produce(client.clone(), records, Arc::clone(&produced)));
    let mut random = SplitMix64::new(0x21);
    let mut faults = BTreeMap::new();
    let rounds = rounds(10, 60);
    for round in 0..rounds {
        sleep(Duration::from_millis(500 + random.next_u64() % 1500)).await;
        let broker = BrokerId(1 + (random.next_u64() % 3) as u32);
        let group = &mut groups[random.next_u64() as usize % 2];
        // Each kind comes, in an order that the seed chooses within every six rounds.
        let what = match (round + random.next_u64() as u32 % 2) % 6 {
            0 => {
                let member = group.take(&mut random);
                group.outputs.push(member.kill()?);
                group.join()?;
                "member killed"
            }
            1 => {
                let member = group.take(&mut random);
                group.outputs.push(member.leave()?);
                group.join()?;
                "member left"
            }
            2 => {
                // Longer than its session: others take over, and it has to notice.
                let member = group.take(&mut random);
                member.signal(Signal::STOP)?;
                sleep(Duration::from_secs(4)).await;
                member.signal(Signal::CONT)?;
                group.members.push(member);
                "member paused"
            }
            3 => {
                let node = cluster.node(broker).context("it is one of three")?;
                node.kill()?;
                sleep(Duration::from_millis(random.next_u64() % 1500)).await;
                let node = cluster.node(broker).context("it is one of three")?;
                node.start()?;
                node.ready().await?;
                "broker killed"
            }
            4 => {
                move_coordinators(&client, broker).await?;
                "coordinators moved"
            }
            _ => {
                cluster.node(broker).context("it is one of three")?.pause()?;
                sleep(Duration::from_millis(2500)).await;
                cluster.node(broker).context("it is one of three")?.resume()?;
                "broker paused"
            }
        };
        *faults.entry(what).or_insert(0) += 1;
    }
    producing.await??;
    cluster.heal().await?;
    ensure!(produced.load(Ordering::Relaxed) == EVENTS);
    let caught_up = caught_up(&client).await;
    ensure!(!watching.is_finished(), "{:?}", watching.await);
    watching.abort();
    let kept = match caught_up {
        Ok(()) => Ok(()),
        Err(error) => {
            let kept = folder.keep();
            Err(error.context(format!("kept in {}", kept.display())))
        }
    };
    kept?;
    for group in groups {
        let Group { name, members, mut outputs, started, .. } = group;
        for member in members {
            outputs.push(member.leave()?);
        }
        let (totals, again) = tally(&outputs)?;
        ensure!(totals == expected, "{name} processed {totals:?} and not {expected:?}");
        println!(
            "{name}: {EVENTS} events, {MINUTES} minutes exact, {again} records came again, {started} members"
        );
    }
    println!("faults: {faults:?}");
    client.close().await;
    cluster.terminate().await?;
    Ok(())
}
