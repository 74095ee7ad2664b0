//! `quire drill`: kill leaders under load, then account for every record.
//!
//! ```text
//! plan (from a seed) ─► chaos ─► cluster (processes) ─► health, replicas
//!                                   ▲
//! workload (producers, consumers) ──┘ ─► record ─► history on disk
//!                                              └─► checks ─► verdict
//! ```
//! Its parts serve the tests too: the [`history`] of what clients asked for and were answered, the [`checks`] that judge it,
//! the [`cluster`] of processes, and the [`relay`] between them.

pub mod availability;
pub mod chaos;
pub mod checks;
pub mod cluster;
pub mod group;
pub mod health;
pub mod history;
pub mod payload;
pub mod plan;
pub mod record;
pub mod relay;
pub mod replicas;
pub mod report;
pub mod workload;

mod display;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use quire_client::{BrokerId, Client, Profile};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::args::JsonArg;
use crate::failure::{Exit, Failure, describe_io};
use crate::output::{self, Palette, thousands};
use crate::signals::StopSignals;
use crate::time;

use chaos::Done;
use cluster::{Cluster, ClusterError, ClusterSetup};
use display::Display;
use plan::{Scenario, plan};
use record::Record;
use replicas::Holders;
use report::Report;
use workload::{Load, Workload};

const BROKERS: u32 = 3;
const PARTITIONS: u32 = 8;
const PRODUCERS: u32 = 4;
const CONSUMERS: u32 = 2;

/// Kill leaders under load, then account for every record.
#[derive(Debug, Args)]
#[command(after_help = "\
It starts brokers of its own in a temporary folder, writes to 8 partitions from 4 producers and reads with 2 consumers,
kills, pauses, cuts off or restarts brokers as asked, and in the end reads every partition once more, from its leader and
then from each replica's files. The verdict is that of the history of every request and answer, and of the cluster's health
once nothing is done to it: exit code 0 if it is clean, 1 if not. What failed is kept: history, logs and data.

The same seed does the same to the cluster at the same times.")]
pub struct DrillArgs {
    /// kill -9 the leader of a partition, again and again (default)
    #[arg(long, group = "scenario")]
    kill_leader: bool,
    /// Stop the leader of a partition for a while (SIGSTOP), so that it comes back believing that it leads
    #[arg(long, group = "scenario")]
    pause_leader: bool,
    /// kill -9 every broker at once
    #[arg(long, group = "scenario")]
    kill_all: bool,
    /// Cut the link between clients and the leader of a partition for a while, both ways
    #[arg(long, group = "scenario")]
    partition: bool,
    /// Stop every broker in order and start it again, one after the other
    #[arg(long, group = "scenario")]
    rolling_restart: bool,
    /// How many brokers; three go on without any one of them, one is away while it starts again
    #[arg(long, default_value_t = BROKERS, value_name = "N", conflicts_with = "cluster", value_parser = clap::value_parser!(u32).range(1..=9))]
    brokers: u32,
    /// How long there is load, and trouble
    #[arg(long, default_value = "45s", value_name = "TIME", value_parser = duration)]
    duration: Duration,
    /// Records a second, over all producers
    #[arg(long, default_value_t = 2000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// What decides when, to whom and for how long [default: another each time]
    #[arg(long, value_name = "SEED", value_parser = seed)]
    seed: Option<u32>,
    /// Load and check a running cluster, the profile's, and do nothing to it
    #[arg(long, conflicts_with = "scenario")]
    cluster: bool,
    /// Keep history, logs and data in this folder, whatever the verdict
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    #[command(flatten)]
    output: JsonArg,
}

impl DrillArgs {
    /// What is done to the cluster; nothing to one that is not ours.
    fn scenario(&self) -> Option<Scenario> {
        match self {
            DrillArgs { cluster: true, .. } => None,
            DrillArgs { pause_leader: true, .. } => Some(Scenario::PauseLeader),
            DrillArgs { partition: true, .. } => Some(Scenario::Partition),
            DrillArgs { kill_all: true, .. } => Some(Scenario::KillAll),
            DrillArgs { rolling_restart: true, .. } => Some(Scenario::RollingRestart),
            DrillArgs { .. } => Some(Scenario::KillLeader),
        }
    }

    fn again(&self, seed: u32) -> String {
        let scenario = self.scenario().map_or("--cluster", Scenario::option);
        let mut again = format!("{scenario} --seed {seed:#010x}");
        if self.duration != Duration::from_secs(45) {
            again.push_str(&format!(" --duration {}", time::show_span(self.duration)));
        }
        if self.brokers != BROKERS && !self.cluster {
            again.push_str(&format!(" --brokers {}", self.brokers));
        }
        if self.rate != 2000 {
            again.push_str(&format!(" --rate {}", self.rate));
        }
        again
    }

    fn load(&self, seed: u32, brokers: u32) -> Load {
        Load {
            topic: format!("drill-{seed:08x}"),
            partitions: PARTITIONS,
            replicas: brokers.min(3),
            in_sync_min: 2.min(brokers),
            producers: PRODUCERS,
            consumers: CONSUMERS,
            members: 0,
            rate: f64::from(self.rate),
            seed: u64::from(seed),
        }
    }
}

/// Runs a drill; the exit code is its verdict.
///
/// # Errors
/// If there is no cluster to put under load.
pub async fn run(profile: Option<&str>, args: &DrillArgs) -> Result<Exit, Failure> {
    if profile.is_some() && !args.cluster && std::env::var_os(quire_client::PROFILE_VARIABLE).is_none() {
        return Err(Failure::usage("a drill uses no profile unless it is of a running cluster")
            .hint("add --cluster, or leave out --profile"));
    }
    let mut stop = StopSignals::listen()?;
    let folder = Folder::of(args.keep.as_deref())?;
    let drilled = tokio::select! {
        drilled = drill(profile, args, folder.path()) => Some(drilled),
        () = stop.stop() => None,
    };
    // By now every process has ended, however it went.
    let mut report = match drilled {
        Some(Ok(report)) => report,
        Some(Err(failure)) => {
            let Some(kept) = folder.keep_if_used() else { return Err(failure) };
            return Err(failure.hint(format!("history, logs and data are kept in {}", kept.display())));
        }
        None => return Ok(Exit::Interrupted),
    };
    if !report.is_clean() || args.keep.is_some() {
        report.kept = Some(folder.keep());
    }
    match args.output.json {
        true => output::print_json(&report.json())?,
        false => output::print(&report.page(Palette::stdout()))?,
    }
    Ok(if report.is_clean() { Exit::Done } else { Exit::Failed })
}

async fn drill(profile: Option<&str>, args: &DrillArgs, folder: &Path) -> Result<Report, Failure> {
    let seed = args.seed.unwrap_or_else(any_seed);
    let mut cluster = match args.cluster {
        true => None,
        false => {
            let binary = std::env::current_exe().map_err(|error| {
                Failure::failed(format!("this program does not find itself: {}", describe_io(&error)))
            })?;
            let mut setup = ClusterSetup::new(&binary, folder, args.brokers);
            // A relay costs processor time on every datagram: only where there is something to cut.
            setup.relays = (args.scenario() == Some(Scenario::Partition)).then_some(u64::from(seed));
            Some(Cluster::start(setup).await.map_err(failed)?)
        }
    };
    let profile = match &cluster {
        Some(cluster) => cluster.profile().map_err(failed)?,
        None => Profile::load(profile)?,
    };
    let client = Client::connect_with(profile).await?;
    let brokers = match &cluster {
        Some(cluster) => cluster.brokers(),
        None => client.admin().describe_cluster().await?.brokers.len() as u32,
    };
    let load = args.load(seed, brokers);
    introduce(&load, brokers, seed);
    fs::write(folder.join("seed"), format!("{}\n", args.again(seed)))
        .map_err(|error| Failure::file(folder, &error))?;
    let history = folder.join("history.txt");
    let record = Record::begin(&history, load.partitions).map_err(|error| Failure::file(&history, &error))?;
    let record = Arc::new(record);
    let topic = load.topic.clone();
    let mut loaded = under_load(args, seed, load, cluster.as_mut(), &client, &record).await?;
    let mut replicas_read = None;
    if let Some(cluster) = &mut cluster {
        match replicas_of(cluster, loaded.holders.as_ref(), u64::from(seed), &record).await {
            Ok(count) => replicas_read = count,
            Err(failure) => loaded.failures.push(failure),
        }
        loaded.failures.extend(cluster.nodes().iter().filter_map(|node| panicked(&node.log())));
    }
    let (verdict, _) = record.end().map_err(|error| Failure::file(&history, &error))?;
    let Loaded { duration, faults, failures, .. } = loaded;
    let brokers = cluster.map_or(0, |cluster| cluster.brokers());
    let again = args.again(seed);
    let report =
        Report { again, seed, brokers, duration, verdict, replicas_read, faults, failures, kept: None };
    if args.cluster && report.is_clean() {
        // On a failure it stays: it is what there is to look at.
        client.admin().delete_topic(&topic).await?;
    }
    client.close().await;
    Ok(report)
}

/// What there is to tell of the time under load.
struct Loaded {
    duration: Duration,
    faults: Vec<Done>,
    failures: Vec<String>,
    /// Which replicas there should be, if the cluster said.
    holders: Option<Holders>,
}

/// Ends the brokers in order and reads what each has on disk; says how many replicas that were.
async fn replicas_of(
    cluster: &mut Cluster,
    holders: Option<&Holders>,
    seed: u64,
    record: &Record,
) -> Result<Option<u32>, String> {
    cluster.terminate().await.map_err(|error| error.to_string())?;
    let Some(holders) = holders else { return Ok(None) };
    let data: BTreeMap<BrokerId, PathBuf> =
        cluster.nodes().iter().map(|node| (node.id(), node.data())).collect();
    let data = |broker| data.get(&broker).map(PathBuf::as_path);
    let count = tokio::task::block_in_place(|| replicas::read(holders, data, seed, record));
    count.map(Some).map_err(|error| error.to_string())
}

async fn under_load(
    args: &DrillArgs,
    seed: u32,
    load: Load,
    mut cluster: Option<&mut Cluster>,
    client: &Client,
    record: &Arc<Record>,
) -> Result<Loaded, Failure> {
    let topic = load.topic.clone();
    let mut workload = Workload::start(client.clone(), load, Arc::clone(record)).await?;
    let display = Display::start(Arc::clone(record), f64::from(args.rate));
    let mut faults = Vec::new();
    let mut failures = Vec::new();
    if let (Some(cluster), Some(scenario)) = (cluster.as_mut(), args.scenario()) {
        for step in plan(scenario, args.duration, PARTITIONS, u64::from(seed)) {
            let announce = |what: &str| display.fault_begins(what);
            let done = chaos::carry_out(step, cluster, client, &topic, record, announce).await;
            match done {
                Ok(done) => {
                    display.fault(&done);
                    faults.push(done);
                }
                Err(error) => {
                    failures.push(error.to_string());
                    break;
                }
            }
        }
    }
    sleep(args.duration.saturating_sub(record.elapsed())).await;
    let duration = record.elapsed();
    failures.extend(workload.end_load().await.err().map(|error| format!("a producer gave up: {error}")));
    let reading = match cluster {
        Some(_) => "every partition is read once more, then every replica",
        None => "every partition is read once more",
    };
    display.note(&format!(" {}   load over; {reading}", display::clock(duration)));
    if let Err(error) = workload.read_everything().await {
        failures.push(format!("the last reading failed: {error}"));
    }
    display.end();
    let holders = match cluster {
        // Whatever else a running cluster is busy with is nothing that the load did.
        None => None,
        Some(_) => {
            failures.extend(health::healthy(client).await.err());
            Some(Holders::ask(client, &topic).await?)
        }
    };
    Ok(Loaded { duration, faults, failures, holders })
}

fn introduce(load: &Load, brokers: u32, seed: u32) {
    let palette = Palette::stderr();
    let replicas = match load.replicas {
        1 => "RF 1".to_owned(),
        replicas => format!("RF {replicas}, min ISR {}", load.in_sync_min),
    };
    let brokers = output::counted(u64::from(brokers), "broker");
    output::note(&format!("{}{brokers}, {replicas}, TLS   seed {seed:#010x}", palette.bold("cluster  ")));
    output::note(&format!(
        "{}{} producers, {} records/s, {} partitions, {} consumers",
        palette.bold("load     "),
        load.producers,
        thousands(load.rate as u64),
        load.partitions,
        load.consumers
    ));
}

fn failed(error: ClusterError) -> Failure {
    Failure::failed(error.to_string())
}

/// A panic in a broker's log is a defect, whatever clients saw.
fn panicked(log: &Path) -> Option<String> {
    let text = fs::read(log).ok()?;
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find(|line| line.contains("panicked at"))?;
    Some(format!("{}: {line}", log.display()))
}

/// Where a drill keeps its files: removed at the end unless they are wanted.
enum Folder {
    Temporary(TempDir),
    Wanted(PathBuf),
}

impl Folder {
    fn of(wanted: Option<&Path>) -> Result<Folder, Failure> {
        let Some(wanted) = wanted else {
            return crate::embedded::temporary_folder().map(Folder::Temporary);
        };
        fs::create_dir_all(wanted).map_err(|error| Failure::file(wanted, &error))?;
        let mut files = fs::read_dir(wanted).map_err(|error| Failure::file(wanted, &error))?;
        match files.next() {
            None => Ok(Folder::Wanted(wanted.to_owned())),
            Some(_) => Err(Failure::usage(format!("{} is not empty", wanted.display()))
                .hint("name a new folder with --keep DIR")),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Folder::Temporary(folder) => folder.path(),
            Folder::Wanted(path) => path,
        }
    }

    /// Keeps it if the drill came as far as to leave anything there.
    fn keep_if_used(self) -> Option<PathBuf> {
        let is_used = fs::read_dir(self.path()).is_ok_and(|mut files| files.next().is_some());
        is_used.then(|| self.keep())
    }

    fn keep(self) -> PathBuf {
        match self {
            Folder::Temporary(folder) => folder.keep(),
            Folder::Wanted(path) => path,
        }
    }
}

/// A seed that was not asked for: any one will do.
fn any_seed() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    crate::bench::random::hash(u64::from(std::process::id()), now.as_nanos() as u64) as u32
}

/// `0x5eed1f2a`, or the same in decimal digits.
fn seed(text: &str) -> Result<u32, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| "write a number of 32 bits, such as 0x5eed1f2a".to_owned())
}

/// `90s`, `5m`, or a bare number of seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let duration = time::parse_span(text).ok_or("write a time such as 45s or 5m")?;
    match (Duration::from_secs(4)..=Duration::from_secs(24 * 60 * 60)).contains(&duration) {
        true => Ok(duration),
        false => Err("a drill takes from 4s to 24h".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;

    #[test]
    fn seeds_are_read_as_they_are_shown() {
        assert_eq!(seed("0x5eed1f2a"), Ok(0x5eed_1f2a));
        assert_eq!(seed("1592598314"), Ok(0x5eed_1f2a));
        assert!(seed("0x").is_err() && seed("-1").is_err() && seed("4294967296").is_err());
    }

    #[test]
    fn what_is_said_to_do_the_same_again_leaves_out_defaults() {
        let parse = |words: &[&str]| {
            let command = DrillArgs::augment_args(clap::Command::new("drill"));
            let matches = command.try_get_matches_from([&["drill"], words].concat()).expect("it makes sense");
            DrillArgs::from_arg_matches(&matches).expect("it was parsed").again(7)
        };
        assert_eq!(parse(&[]), "--kill-leader --seed 0x00000007");
        let other = ["--kill-all", "--brokers", "1", "--duration", "20s"];
        assert_eq!(parse(&other), "--kill-all --seed 0x00000007 --duration 20s --brokers 1");
        assert_eq!(parse(&["--cluster"]), "--cluster --seed 0x00000007");
    }

    #[test]
    fn durations_are_read_within_reason() {
        assert_eq!(duration("45s"), Ok(Duration::from_secs(45)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("4500ms"), Ok(Duration::from_millis(4500)));
        assert!(duration("1s").is_err() && duration("soon").is_err() && duration("25h").is_err());
    }
}
