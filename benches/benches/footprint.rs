//! What a broker costs while nothing happens: time to ready, memory, disk and CPU; a row for each bar.
//!
//! The broker and its consumers are processes of their own, which are this program with another job. Names given as
//! arguments choose rows: `cargo bench -p quire-benches --bench footprint -- disk CPU`.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use quire_broker::Broker;
use quire_client::{Client, NewTopic, Position, Profile, Record};
use quire_protocol::PartitionIndex;
use tokio::task::JoinSet;

/// As the `quire` binary has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Starts of which the median counts.
const STARTS: usize = 5;
/// How long a process is left alone before its memory and CPU are looked at.
const SETTLE_TIME: Duration = Duration::from_secs(12);
/// How long its CPU is looked at.
const IDLE_TIME: Duration = Duration::from_secs(10);

const PARTITIONS: u32 = 10_000;
const CONSUMERS: usize = 1000;
const CONSUMER_PROCESSES: usize = 4;
const CONSUMER_PARTITIONS: u32 = 10;
/// What each partition holds, so that each consumer's streams were in use.
const RECORDS: usize = 16;
const RECORD_BYTES: usize = 1024;
const TOPIC: &str = "idle";

const SERVE: &str = "serve";
const CONSUME: &str = "consume";

/// The part of what it measures that a row's name must contain to be shown; all without any.
struct Rows(Vec<String>);

impl Rows {
    fn wants(&self, names: &[&str]) -> bool {
        self.0.is_empty() || names.iter().any(|name| self.0.iter().any(|wanted| name.contains(wanted)))
    }

    fn show(&self, name: &str, figure: f64, bar: f64, unit: &str) {
        if self.wants(&[name]) {
            let verdict = if figure <= bar { "reached" } else { "MISSED" };
            println!("{name:<48} {figure:>9.2} {unit:<5} bar {bar:>6} {unit:<5} {verdict}");
        }
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [SERVE, dir] => return serve(Path::new(dir)),
        [CONSUME, profile, clients] => return consume(Path::new(profile), clients.parse()?),
        _ => {}
    }
    let rows = Rows(arguments);
    fresh(&rows)?;
    partitions(&rows)?;
    consumers(&rows)
}

fn fresh(rows: &Rows) -> Result<()> {
    let (ready, memory) = ("ready on an empty directory", "memory, fresh");
    if !rows.wants(&[ready, memory]) {
        return Ok(());
    }
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        let folder = tempfile::tempdir()?;
        let broker = Process::serve(folder.path())?;
        starts.push((broker.ready_in, broker.memory_mib()?));
    }
    rows.show(ready, median(starts.iter().map(|start| start.0.as_secs_f64() * 1e3)), 100.0, "ms");
    rows.show(memory, median(starts.iter().map(|start| start.1)), 50.0, "MiB");
    Ok(())
}

fn partitions(rows: &Rows) -> Result<()> {
    let names = [
        "disk, 10,000 idle partitions",
        "ready with 10,000 idle partitions",
        "memory, 10,000 idle partitions",
        "CPU of a core, 10,000 idle partitions",
    ];
    if !rows.wants(&names) {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let broker = Process::serve(folder.path())?;
    let created = Instant::now();
    block_on(async {
        let client = Client::connect_with(broker.profile(folder.path())?).await?;
        client.admin().create_topic(NewTopic::new(TOPIC).partitions(PARTITIONS)).await?;
        Ok(())
    })?;
    println!("# created in {:.2} s", created.elapsed().as_secs_f64());
    broker.stop()?;
    rows.show(names[0], disk_mib(folder.path())?, 64.0, "MiB");
    let mut starts = Vec::new();
    for _ in 1..STARTS {
        let broker = Process::serve(folder.path())?;
        starts.push(broker.ready_in.as_secs_f64());
        broker.stop()?;
    }
    let broker = Process::serve(folder.path())?;
    starts.push(broker.ready_in.as_secs_f64());
    rows.show(names[1], median(starts), 3.0, "s");
    std::thread::sleep(SETTLE_TIME);
    rows.show(names[3], broker.cpu_percent(IDLE_TIME)?, 1.0, "%");
    rows.show(names[2], broker.memory_mib()?, 500.0, "MiB");
    Ok(())
}

fn consumers(rows: &Rows) -> Result<()> {
    let names = ["memory, 1,000 idle consumers of 10", "CPU of a core, 1,000 idle consumers of 10"];
    if !rows.wants(&names) {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let broker = Process::serve(folder.path())?;
    let profile = broker.profile(folder.path())?;
    block_on(async {
        let client = Client::connect_with(profile).await?;
        client.admin().create_topic(NewTopic::new(TOPIC).partitions(CONSUMER_PARTITIONS)).await?;
        let producer = client.producer().build();
        let value = Bytes::from(vec![7; RECORD_BYTES]);
        for partition in (0..CONSUMER_PARTITIONS).cycle().take(RECORDS * CONSUMER_PARTITIONS as usize) {
            let record = Record { value: Some(value.clone()), ..Record::default() };
            producer.send_to(TOPIC, PartitionIndex(partition), record).await?;
        }
        Ok(())
    })?;
    let clients = (CONSUMERS / CONSUMER_PROCESSES).to_string();
    let path = profile_path(folder.path());
    let consuming: Vec<Process> = (0..CONSUMER_PROCESSES)
        .map(|_| Process::start(&[CONSUME, &path, &clients]))
        .collect::<Result<_>>()?;
    std::thread::sleep(SETTLE_TIME);
    rows.show(names[1], broker.cpu_percent(IDLE_TIME)?, 1.0, "%");
    rows.show(names[0], broker.memory_mib()?, 500.0, "MiB");
    consuming.into_iter().try_for_each(Process::stop)
}

/// A process that does one of the jobs of this program.
struct Process {
    child: Child,
    /// From its start until it said that it is ready.
    ready_in: Duration,
}

impl Process {
    fn start(arguments: &[&str]) -> Result<Process> {
        let began = Instant::now();
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("it is piped")?).read_line(&mut line)?;
        if line.trim() != "ready" {
            let _ = child.kill();
            bail!("{arguments:?} ended with {:?}", child.wait()?);
        }
        Ok(Process { child, ready_in: began.elapsed() })
    }

    fn serve(dir: &Path) -> Result<Process> {
        Process::start(&[SERVE, &dir.display().to_string()])
    }

    /// How to connect to the broker that serves `dir`.
    fn profile(&self, dir: &Path) -> Result<Profile> {
        Ok(Profile::load_file(Path::new(&profile_path(dir)))?)
    }

    /// Resident memory, that of the program's file included.
    fn memory_mib(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }

    /// CPU used while `time` passes, in percent of one core.
    fn cpu_percent(&self, time: Duration) -> Result<f64> {
        let (before, began) = (self.cpu()?, Instant::now());
        std::thread::sleep(time);
        Ok((self.cpu()? - before).as_secs_f64() / began.elapsed().as_secs_f64() * 100.0)
    }

    /// CPU that its threads have used.
    fn cpu(&self) -> Result<Duration> {
        let mut used = Duration::ZERO;
        for thread in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // A thread may end meanwhile.
            let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
            used += Duration::from_nanos(text.split(' ').next().context("no time")?.parse()?);
        }
        Ok(used)
    }

    /// Ends its job in order.
    fn stop(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        ensure!(self.child.wait()?.success(), "a process of the bench failed");
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a broker until standard input ends.
fn serve(dir: &Path) -> Result<()> {
    block_on(async {
        let broker = Broker::builder().data_dir(dir.join("data")).start().await?;
        let credentials = broker.credentials();
        Profile::new(format!("quire://{}", broker.address()))
            .authority_pem(credentials.authority_pem)
            .identity_pem(credentials.certificate_pem, credentials.key_pem)
            .save(Path::new(&profile_path(dir)))?;
        println!("ready");
        tokio::task::spawn_blocking(wait_for_end).await??;
        ensure!(broker.shutdown().await.clean, "the broker did not stop cleanly");
        Ok(())
    })
}

/// Connects so many clients with a consumer each, reads all there is, and waits for more until standard input ends.
fn consume(profile: &Path, clients: usize) -> Result<()> {
    let profile = Profile::load_file(profile)?;
    block_on(async {
        let mut readings = JoinSet::new();
        let mut consumers = Vec::with_capacity(clients);
        for _ in 0..clients {
            // A few at a time: handshakes have a limit.
            if readings.len() >= 16 {
                consumers.extend(readings.join_next().await);
            }
            readings.spawn(read_all(profile.clone()));
        }
        consumers.extend(readings.join_all().await.into_iter().map(Ok));
        let consumers = consumers.into_iter().map(|read| read?).collect::<Result<Vec<_>>>()?;
        println!("ready");
        tokio::task::spawn_blocking(wait_for_end).await??;
        drop(consumers);
        Ok(())
    })
}

async fn read_all(profile: Profile) -> Result<(Client, quire_client::Consumer)> {
    let client = Client::connect_with(profile).await?;
    let mut consumer = client.consumer().topic(TOPIC).from(Position::Beginning).follow(true).build().await?;
    for _ in 0..RECORDS * CONSUMER_PARTITIONS as usize {
        consumer.next().await.context("it follows")??;
    }
    Ok((client, consumer))
}

fn wait_for_end() -> Result<()> {
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn profile_path(dir: &Path) -> String {
    dir.join("profile.toml").display().to_string()
}

/// On half of the processors, as the `quire` binary does.
fn block_on(work: impl Future<Output = Result<()>>) -> Result<()> {
    let processors = std::thread::available_parallelism()?.get();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(processors.div_ceil(2)).enable_all().build()?.block_on(work)
}

/// What the files and folders in `dir` take on disk, metadata and certificates included.
fn disk_mib(dir: &Path) -> Result<f64> {
    fn blocks(path: &Path) -> Result<u64> {
        let metadata = fs::symlink_metadata(path)?;
        let mut sum = metadata.blocks();
        if metadata.is_dir() {
            for entry in fs::read_dir(path)? {
                sum += blocks(&entry?.path())?;
            }
        }
        Ok(sum)
    }
    // Of 512 bytes, whatever the file system's are.
    Ok(blocks(&dir.join("data"))? as f64 * 512.0 / 1024.0 / 1024.0)
}

fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = figures.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
