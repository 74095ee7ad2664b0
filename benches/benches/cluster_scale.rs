//! A cluster of three with many partitions: how soon a dead broker's leaderships are elsewhere and serve, what
//! brokers take to start and hold.
//!
//! Brokers are processes of their own, which are this program with another job, killed as `kill -9` does. Partitions may
//! be given: `cargo bench -p quire-benches --bench cluster_scale -- 1000 10000`.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use quire_broker::Broker;
use quire_broker::config::{FirstStart, HostPort};
use quire_client::{
    BrokerId, BrokerState, Client, ClientConfig, ClusterStatus, NewTopic, PartitionDescription,
    PartitionIndex, Profile, Record,
};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// As the `quire` binary has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TOPIC: &str = "many";
/// Leaderships of a dead broker are elsewhere so soon after it is fenced.
const MOVED_BAR: Duration = Duration::from_secs(1);
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// Nothing here takes so long.
const PATIENCE: Duration = Duration::from_secs(120);

const SERVE: &str = "serve";

fn main() -> Result<()> {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if let [job, dir, join @ ..] = arguments.as_slice()
        && job == SERVE
    {
        return serve(Path::new(dir), join);
    }
    let counts = match arguments.is_empty() {
        true => vec![1_000, 10_000],
        false => arguments.iter().map(|text| text.parse()).collect::<Result<Vec<u32>, _>>()?,
    };
    counts.into_iter().try_for_each(|partitions| block_on(measure(partitions)))
}

async fn measure(partitions: u32) -> Result<()> {
    println!("# {partitions} partitions, 3 replicas each, on 3 brokers");
    let mut cluster = Cluster::start().await?;
    let client = cluster.client(0).await?;
    let began = Instant::now();
    client.admin().create_topic(NewTopic::new(TOPIC).partitions(partitions).replicas(3)).await?;
    let settled = wait_for(&client, |status| status.partitions == partitions && status.under_replicated == 0);
    settled.await.context("partitions do not come into sync")?;
    show("created, and every replica in sync", began.elapsed().as_secs_f64(), "s");
    let began = Instant::now();
    write_all(&client, (0..partitions).collect()).await?;
    show("a record in each partition", began.elapsed().as_secs_f64(), "s");
    sleep(Duration::from_secs(2)).await;
    for broker in 0..3 {
        show(&format!("memory of broker {}", broker + 1), cluster.memory_mib(broker)?, "MiB");
    }
    show("metadata on disk of broker 1", disk_mib(&cluster.dirs[0].join("data/metadata"))?, "MiB");

    let status = client.admin().cluster_status().await?;
    let controller = status.controller.context("there is a controller")?;
    let other = (0..3).find(|at| id(*at) != controller).context("there are three")?;
    for (what, victim) in [("another broker", other), ("the controller", controller.0 as usize - 1)] {
        fail_over(&mut cluster, what, victim).await?;
    }
    Ok(())
}

async fn fail_over(cluster: &mut Cluster, what: &str, victim: usize) -> Result<()> {
    let survivor = (0..3).find(|at| *at != victim).context("there are three")?;
    let client = cluster.client(survivor).await?;
    // A broker that the load before had fenced would lead nothing.
    client.admin().elect_preferred_leaders(None).await?;
    let topic = client.admin().describe_topic_metadata(TOPIC).await?;
    let led: Vec<u32> = topic
        .partitions
        .iter()
        .filter(|partition| partition.leader == Some(id(victim)))
        .map(|partition| partition.partition.0)
        .collect();
    println!("# killing {what}, which leads {}", led.len());
    let killed = Instant::now();
    cluster.kill(victim)?;
    // Fencing takes it out of every set of in-sync replicas, and leaderships away: what is asked for is when that is known
    // to whoever asks, and not whether both come together.
    wait_for_topic(&client, |p| !p.in_sync_replicas.contains(&id(victim)))
        .await
        .context("it is not fenced")?;
    let fenced = Instant::now();
    wait_for_topic(&client, |p| p.leader.is_some_and(|leader| leader != id(victim)))
        .await
        .context("its leaderships do not move")?;
    let moved = fenced.elapsed();
    write_all(&client, led).await?;
    let written = fenced.elapsed();
    show("fenced after the kill", (fenced - killed).as_secs_f64(), "s");
    show("leaderships elsewhere after that", moved.as_secs_f64(), "s");
    show("a record written to each after that", written.as_secs_f64(), "s");
    let verdict = if moved <= MOVED_BAR { "reached" } else { "MISSED" };
    println!("  bar: elsewhere within {:.0} s of being fenced   {verdict}", MOVED_BAR.as_secs_f64());

    let ready_in = cluster.restart(victim)?;
    show("ready again, with every partition open", ready_in.as_secs_f64(), "s");
    let began = Instant::now();
    wait_for(&client, |status| status.under_replicated == 0).await.context("it does not catch up")?;
    show("in sync again after that", began.elapsed().as_secs_f64(), "s");
    show("its memory then", cluster.memory_mib(victim)?, "MiB");
    Ok(())
}

/// One record to each of these, all under way at once.
async fn write_all(client: &Client, partitions: Vec<u32>) -> Result<()> {
    let producer = client.producer().delivery_timeout(PATIENCE).build();
    let mut deliveries = JoinSet::new();
    for partition in partitions {
        let producer = producer.clone();
        let record = Record { value: Some("x".into()), ..Record::default() };
        deliveries.spawn(async move { producer.send_to(TOPIC, PartitionIndex(partition), record).await });
    }
    while let Some(delivered) = deliveries.join_next().await {
        delivered??;
    }
    Ok(())
}

/// Waits until every partition is so. Asks whoever answers, and of nobody more than it knows.
async fn wait_for_topic(client: &Client, is_so: impl Fn(&PartitionDescription) -> bool) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if let Ok(topic) = client.admin().describe_topic_metadata(TOPIC).await
            && topic.partitions.iter().all(&is_so)
        {
            return Ok(());
        }
        sleep(LOOK_INTERVAL).await;
    }
    bail!("not within {PATIENCE:?}")
}

async fn wait_for(client: &Client, is_so: impl Fn(&ClusterStatus) -> bool) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        // Whoever is asked may be the one that died.
        if let Ok(status) = client.admin().cluster_status().await
            && is_so(&status)
        {
            return Ok(());
        }
        sleep(LOOK_INTERVAL).await;
    }
    bail!("not within {PATIENCE:?}")
}

fn id(at: usize) -> BrokerId {
    BrokerId(at as u32 + 1)
}

fn state(status: &ClusterStatus, at: usize) -> Option<BrokerState> {
    status.brokers.iter().find(|broker| broker.broker.id == id(at)).map(|broker| broker.state)
}

fn show(name: &str, figure: f64, unit: &str) {
    println!("{name:<44} {figure:>9.2} {unit}");
}

/// Three brokers, each a process with a folder of its own.
struct Cluster {
    dirs: Vec<PathBuf>,
    brokers: Vec<Option<Process>>,
    _folder: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Result<Cluster> {
        let folder = tempfile::tempdir()?;
        let dirs: Vec<_> = (1..=3).map(|broker| folder.path().join(broker.to_string())).collect();
        dirs.iter().try_for_each(fs::create_dir)?;
        let founder = Process::serve(&dirs[0], &["found".to_owned()])?;
        let mut cluster = Cluster { dirs, brokers: vec![Some(founder)], _folder: folder };
        let client = cluster.client(0).await?;
        let at = profile(&cluster.dirs[0])?.address().trim_start_matches("quire://").to_owned();
        for broker in 1..3 {
            let token = client.admin().create_join_token(Duration::from_secs(600)).await?;
            let joined = Process::serve(&cluster.dirs[broker], &[at.clone(), token])?;
            cluster.brokers.push(Some(joined));
        }
        let is_there = |status: &ClusterStatus| {
            (0..3).all(|at| state(status, at) == Some(BrokerState::Unfenced)) && status.voters.len() == 3
        };
        wait_for(&client, is_there).await?;
        Ok(cluster)
    }

    async fn client(&self, at: usize) -> Result<Client> {
        let config = ClientConfig { idle_timeout: Duration::from_secs(2), ..ClientConfig::default() };
        Ok(Client::connect_configured(profile(&self.dirs[at])?, config).await?)
    }

    fn kill(&mut self, at: usize) -> Result<()> {
        let mut process = self.brokers[at].take().context("it runs")?;
        process.child.kill()?;
        process.child.wait()?;
        Ok(())
    }

    fn restart(&mut self, at: usize) -> Result<Duration> {
        let process = Process::serve(&self.dirs[at], &[])?;
        let ready_in = process.ready_in;
        self.brokers[at] = Some(process);
        Ok(ready_in)
    }

    fn memory_mib(&self, at: usize) -> Result<f64> {
        self.brokers[at].as_ref().context("it runs")?.memory_mib()
    }
}

fn profile(dir: &Path) -> Result<Profile> {
    Ok(Profile::load_file(&dir.join("profile.toml"))?)
}

/// A broker that is a process.
struct Process {
    child: Child,
    /// From its start until it said that it is ready.
    ready_in: Duration,
}

impl Process {
    fn serve(dir: &Path, join: &[String]) -> Result<Process> {
        let began = Instant::now();
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(SERVE).arg(dir).args(join);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("it is piped")?).read_line(&mut line)?;
        if line.trim() != "ready" {
            let _ = child.kill();
            bail!("the broker in {} ended with {:?}", dir.display(), child.wait()?);
        }
        Ok(Process { child, ready_in: began.elapsed() })
    }

    /// Memory that no file stands behind, and files in use.
    fn memory_mib(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a broker until standard input ends.
fn serve(dir: &Path, join: &[String]) -> Result<()> {
    let first_start = match join {
        [] => FirstStart::Alone,
        [found] => {
            ensure!(found == "found", "a broker founds, or joins with an address and a token");
            FirstStart::Found
        }
        [at, token, ..] => {
            let (host, port) = at.rsplit_once(':').context("HOST:PORT")?;
            let at = HostPort { host: host.to_owned(), port: port.parse()? };
            FirstStart::Join { at, token: token.parse()? }
        }
    };
    block_on(async {
        let mut builder = Broker::builder().data_dir(dir.join("data")).shards(1).first_start(first_start);
        // Where it was before, so that the others find it.
        if let Ok(text) = fs::read_to_string(dir.join("addresses")) {
            let (listen, peers) = text.trim().split_once(' ').context("two addresses")?;
            builder = builder.listen(listen.parse()?).peer_listen(peers.parse()?);
        }
        let broker = builder.start().await?;
        let peers = broker.peer_address().context("it is in a cluster")?;
        fs::write(dir.join("addresses"), format!("{} {peers}", broker.address()))?;
        let credentials = broker.credentials();
        Profile::new(format!("quire://{}", broker.address()))
            .authority_pem(credentials.authority_pem)
            .identity_pem(credentials.certificate_pem, credentials.key_pem)
            .save(&dir.join("profile.toml"))?;
        println!("ready");
        let until_end = || std::io::stdin().read_to_end(&mut Vec::new());
        tokio::task::spawn_blocking(until_end).await??;
        broker.shutdown().await;
        Ok(())
    })
}

/// On half of the processors, as the `quire` binary does.
fn block_on(work: impl Future<Output = Result<()>>) -> Result<()> {
    let processors = std::thread::available_parallelism()?.get();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(processors.div_ceil(2)).enable_all().build()?.block_on(work)
}

/// What the files in `dir` hold.
fn disk_mib(dir: &Path) -> Result<f64> {
    fn bytes(path: &Path) -> Result<u64> {
        let metadata = fs::symlink_metadata(path)?;
        if !metadata.is_dir() {
            return Ok(metadata.len());
        }
        fs::read_dir(path)?.map(|entry| bytes(&entry?.path())).sum()
    }
    Ok(bytes(dir)? as f64 / 1024.0 / 1024.0)
}
