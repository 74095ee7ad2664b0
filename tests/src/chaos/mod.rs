//! Clusters of real processes under load, to which a test does what it likes: the drill's parts, held together for tests.
//!
//! ```text
//! Trial::start ─► the test's faults, each with Trial::fault and Trial::resumed ─► Trial::finish
//!                                                                     everything runs again, every partition is read,
//!                                                                     the cluster is whole, each replica is read, verdict
//! ```
//! Trials of one test binary run one after the other: there is one machine, and what is measured is time. What a trial that
//! failed has left, history, logs and data, is kept, and where it is stands in the failure.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quire::drill::availability::percentile;
use quire::drill::chaos::{RESUME_TIME_MAX, resumed};
use quire::drill::checks::Verdict;
use quire::drill::cluster::{Cluster, ClusterSetup, Node};
use quire::drill::health;
use quire::drill::record::Record;
use quire::drill::replicas::{self, Holders};
use quire::drill::workload::{Load, Workload};
use quire_client::{BrokerId, Client, PartitionDescription};
use quire_engine::{Random, SplitMix64};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep, timeout};

use crate::process::quire_binary;

/// What chooses how much is done: `full` for what the acceptance tests ask for, else what fits every run of the tests.
const VARIABLE: &str = "QUIRE_CHAOS";
/// How long something that has to happen may take.
const TIME_MAX: Duration = Duration::from_secs(30);
/// How often another process is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

static ALONE: Mutex<()> = Mutex::const_new(());

/// So many rounds: few in every run of the tests, all of them with `QUIRE_CHAOS=full`.
pub fn rounds(few: u32, all: u32) -> u32 {
    match std::env::var(VARIABLE) {
        Ok(value) if value == "full" => all,
        _ => few,
    }
}

/// The standard load of the acceptance tests, on a cluster of three: 8 partitions, 3 replicas, 2 in sync at least, 4 producers,
/// 2 consumers with a fixed assignment and a group of 3, segments of 1 MiB.
pub fn standard_load(seed: u64) -> Load {
    Load {
        topic: format!("trial-{seed:x}"),
        partitions: 8,
        replicas: 3,
        in_sync_min: 2,
        producers: 4,
        consumers: 2,
        members: 3,
        rate: 400.0,
        seed,
    }
}

/// A cluster under load.
#[derive(Debug)]
pub struct Trial {
    /// What is done, in words.
    name: &'static str,
    seed: u64,
    folder: Option<TempDir>,
    /// Its processes.
    pub cluster: Cluster,
    /// A client of it.
    pub client: Client,
    /// What happens.
    pub record: Arc<Record>,
    workload: Workload,
    load: Load,
    /// What the test draws its faults from.
    pub random: SplitMix64,
    outages: Vec<Duration>,
    _alone: MutexGuard<'static, ()>,
}

/// What a trial that went well has shown.
#[derive(Debug)]
pub struct Finished {
    /// The history's.
    pub verdict: Verdict,
    /// How long writes stood still after each fault, the shortest first.
    pub outages: Vec<Duration>,
    /// How often brokers recovered a log at their start.
    pub recoveries: usize,
}

impl Trial {
    /// Starts brokers and load, and waits until every partition acknowledges. `prepare` changes what is started.
    ///
    /// # Errors
    /// If a process does not start, or the cluster does not take the load.
    pub async fn start(
        name: &'static str,
        seed: u64,
        prepare: impl FnOnce(&mut ClusterSetup, &mut Load),
    ) -> Result<Trial> {
        let alone = ALONE.lock().await;
        let folder = tempfile::tempdir()?;
        let mut setup = ClusterSetup::new(&quire_binary()?, folder.path(), 3);
        let mut load = standard_load(seed);
        prepare(&mut setup, &mut load);
        let cluster = Cluster::start(setup).await?;
        let client = Client::connect_with(cluster.profile()?).await?;
        let record = Arc::new(Record::begin(&folder.path().join("history.txt"), load.partitions)?);
        let workload = Workload::start(client.clone(), load.clone(), Arc::clone(&record)).await?;
        let trial = Trial {
            name,
            seed,
            folder: Some(folder),
            cluster,
            client,
            record,
            workload,
            load,
            random: SplitMix64::new(seed),
            outages: Vec::new(),
            _alone: alone,
        };
        ensure!(resumed(&trial.record).await, "{}: the cluster does not take the load", trial.told());
        Ok(trial)
    }

    /// The topic that takes the load.
    pub fn topic(&self) -> &str {
        &self.load.topic
    }

    /// A number below this.
    pub fn draw(&mut self, below: u64) -> u64 {
        self.random.next_u64() % below.max(1)
    }

    /// A time between two others.
    pub fn draw_time(&mut self, min: Duration, max: Duration) -> Duration {
        min + Duration::from_millis(self.draw((max.saturating_sub(min)).as_millis() as u64 + 1))
    }

    /// Says what is done next; outages from now on are counted to it.
    pub fn fault(&self, what: &str) {
        self.record.fault(what);
    }

    /// Ends a fault before writes have come back everywhere, since another follows.
    pub fn fault_goes_over(&self) {
        self.record.end_fault();
    }

    /// Waits until every partition acknowledges again, and returns how long the worst one did not since the fault began.
    ///
    /// # Errors
    /// If they do not in [`RESUME_TIME_MAX`].
    pub async fn resumed(&mut self) -> Result<Duration> {
        if !resumed(&self.record).await {
            bail!("{}: writes did not resume within {RESUME_TIME_MAX:?}", self.told());
        }
        let outage = self.record.end_fault().unwrap_or_default();
        self.outages.push(outage);
        Ok(outage)
    }

    /// A broker.
    ///
    /// # Errors
    /// If there is none of this number.
    pub fn node(&mut self, id: BrokerId) -> Result<&mut Node> {
        self.cluster.node(id).with_context(|| format!("there is no broker {id}"))
    }

    /// The load's partitions, as the cluster describes them.
    ///
    /// # Errors
    /// As every request, and if no answer comes.
    pub async fn partitions(&self) -> Result<Vec<PartitionDescription>> {
        self.partitions_of(&self.load.topic).await
    }

    async fn partitions_of(&self, topic: &str) -> Result<Vec<PartitionDescription>> {
        let admin = self.client.admin();
        let topic = timeout(TIME_MAX, admin.describe_topic(topic)).await.context("no answer")??;
        Ok(topic.partitions)
    }

    /// Who leads a partition, once anybody does.
    ///
    /// # Errors
    /// If nobody does for half a minute.
    pub async fn leader(&self, partition: usize) -> Result<BrokerId> {
        let mut leader = None;
        let what = format!("partition {partition} has no leader");
        self.wait_for(&what, |partitions| {
            leader = partitions.get(partition).and_then(|found| found.leader);
            leader.is_some()
        })
        .await?;
        leader.context("it was just found")
    }

    /// Waits until the load's partitions are as they should be.
    ///
    /// # Errors
    /// If they are not within half a minute: `what` says what is wrong then.
    pub async fn wait_for(
        &self,
        what: &str,
        is_so: impl FnMut(&[PartitionDescription]) -> bool,
    ) -> Result<()> {
        self.wait_for_topic(&self.load.topic, what, is_so).await
    }

    /// As [`Trial::wait_for`], of another topic.
    ///
    /// # Errors
    /// As [`Trial::wait_for`].
    pub async fn wait_for_topic(
        &self,
        topic: &str,
        what: &str,
        mut is_so: impl FnMut(&[PartitionDescription]) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + TIME_MAX;
        loop {
            let found = self.partitions_of(topic).await;
            match &found {
                Ok(partitions) if is_so(partitions) => return Ok(()),
                Ok(_) | Err(_) if Instant::now() < deadline => sleep(LOOK_EVERY).await,
                _ => bail!("{}: {what}: {found:?}", self.told()),
            }
        }
    }

    /// Waits until nobody lets this broker lead any more.
    ///
    /// # Errors
    /// If it still leads after half a minute.
    pub async fn moved_away(&self, from: BrokerId) -> Result<()> {
        let is_elsewhere = |found: &PartitionDescription| found.leader.is_some_and(|leader| leader != from);
        self.wait_for("it still leads", |found| found.iter().all(is_elsewhere)).await
    }

    /// Waits until every replica of the load is in sync.
    ///
    /// # Errors
    /// If one is not after half a minute.
    pub async fn whole(&self) -> Result<()> {
        let is_whole = |found: &PartitionDescription| {
            found.leader.is_some() && found.in_sync_replicas.len() == found.replicas.len()
        };
        self.wait_for("a replica is not in sync", |found| found.iter().all(is_whole)).await
    }

    /// Gives every partition of the load these replicas, and waits until it has no others.
    ///
    /// # Errors
    /// If the cluster refuses, or it takes too long.
    pub async fn place(&self, brokers: &[BrokerId]) -> Result<()> {
        let admin = self.client.admin();
        for partition in self.partitions().await? {
            admin.reassign(&self.load.topic, partition.partition, Some(brokers)).await?;
        }
        let is_placed = |found: &PartitionDescription| {
            let mut in_sync = found.in_sync_replicas.clone();
            in_sync.sort_unstable();
            found.replicas == brokers && in_sync == brokers && found.removing_replicas.is_empty()
        };
        self.wait_for("the replicas did not move", |found| found.iter().all(is_placed)).await?;
        let elected = admin.elect_preferred_leaders(Some(&self.load.topic)).await?;
        let first = brokers.first().copied();
        let what = format!("{elected} leaders did not change");
        self.wait_for(&what, |found| found.iter().all(|found| found.leader == first)).await
    }

    /// Ends the trial: everything runs again, everything is read, and the verdict is clean.
    ///
    /// # Errors
    /// What was not as it should be.
    pub async fn finish(mut self) -> Result<Finished> {
        self.cluster.heal().await?;
        let ended = self.workload.end_load().await;
        ended.with_context(|| format!("{}: a producer gave up", self.told()))?;
        let read = self.workload.read_everything().await;
        read.with_context(|| format!("{}: the last reading failed", self.told()))?;
        let group = self.workload.end_group().await.with_context(|| self.told())?;
        if let Some(group) = group {
            ensure!(group.problems.is_empty(), "{}: {group}", self.told());
            println!("{}: {group}", self.name);
        }
        let healed = health::healthy(&self.client).await;
        healed.map_err(anyhow::Error::msg).with_context(|| self.told())?;
        let holders = Holders::ask(&self.client, &self.load.topic).await?;
        self.client.close().await;
        let recoveries = self.logged("the log was recovered");
        self.cluster.terminate().await.with_context(|| self.told())?;
        let data: BTreeMap<BrokerId, PathBuf> =
            self.cluster.nodes().iter().map(|node| (node.id(), node.data())).collect();
        let data = |broker| data.get(&broker).map(PathBuf::as_path);
        let (seed, record) = (self.load.seed, &self.record);
        let replicas = tokio::task::block_in_place(|| replicas::read(&holders, data, seed, record))?;
        let (verdict, _) = self.record.end()?;
        ensure!(verdict.is_clean(), "{}: {verdict}", self.told());
        ensure!(self.logged("panicked at") == 0, "{}: a broker panicked", self.told());
        let mut outages = std::mem::take(&mut self.outages);
        outages.sort_unstable();
        println!("{}: {verdict}; {replicas} replicas alike{}", self.name, show_outages(&outages));
        // Only what failed is kept.
        drop(self.folder.take());
        Ok(Finished { verdict, outages, recoveries })
    }

    /// How often the brokers logged something.
    pub fn logged(&self, what: &str) -> usize {
        let logs = self.cluster.nodes().iter().filter_map(|node| std::fs::read(node.log()).ok());
        logs.map(|log| String::from_utf8_lossy(&log).matches(what).count()).sum()
    }

    fn told(&self) -> String {
        let folder = self.folder.as_ref().map(|folder| folder.path().display().to_string());
        format!("{}, seed {:#x}, kept in {}", self.name, self.seed, folder.unwrap_or_default())
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if let Some(folder) = self.folder.take() {
            let kept = folder.keep();
            eprintln!("{}: history, logs and data are kept in {}", self.name, kept.display());
        }
    }
}

/// `; writes resumed in 0.7 s, 1.2 s at the 99th percentile, 1.3 s at most`, if there is anything to tell.
pub fn show_outages(sorted: &[Duration]) -> String {
    let seconds = |share| percentile(sorted, share).unwrap_or_default().as_secs_f64();
    match sorted {
        [] => String::new(),
        _ => format!(
            "; writes resumed after {:.2} s in the median, {:.2} s at the 99th percentile, {:.2} s at most, of {}",
            seconds(0.5),
            seconds(0.99),
            seconds(1.0),
            sorted.len()
        ),
    }
}
