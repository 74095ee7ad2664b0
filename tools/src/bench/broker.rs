//! The brokers under load: those that run already, or children of this process, so that their processor time and memory
//! are their own.
//!
//! Several replicas take several brokers: a cluster of processes, as `quire drill` starts them. A single child is this same binary. It tells in one line on its standard output where it listens, and ends when its
//! standard input does, which it does in whatever way this process ends; the child then removes its data.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use clap::Args;
use quire_broker::{Broker, Config};
use quire_client::Profile;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

use super::probe::{BrokerProbe, Probe};
use crate::drill::cluster::{Cluster, ClusterError, ClusterSetup, Node};
use crate::embedded;
use crate::failure::{Exit, Failure, describe_io};
use crate::output;

/// A child that has not ended by itself after so long is killed.
const END_TIME_MAX: Duration = Duration::from_secs(20);

/// The broker that a benchmark starts for itself.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Where the temporary folder is made
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

/// What the child tells when it serves.
#[derive(Debug, Serialize, Deserialize)]
struct Ready {
    address: String,
    admin: String,
    data: PathBuf,
    authority: String,
    certificate: String,
    key: String,
}

/// The child's side: serves until standard input ends, then removes its data.
///
/// # Errors
/// If the broker can not start.
pub async fn serve(args: &ServeArgs) -> Result<Exit, Failure> {
    let folder = temporary_folder(args.data.as_deref())?;
    let mut config = Config::new(folder.path());
    config.network.listen = ([127, 0, 0, 1], 0).into();
    config.admin_listen = Some(([127, 0, 0, 1], 0).into());
    // What one repetition wrote must not weigh on the next.
    config.deletion_grace = Duration::ZERO;
    let broker = Broker::from_config(config).await.map_err(|error| embedded::explain_start(&error))?;
    let credentials = broker.credentials();
    output::print_json(&Ready {
        address: format!("quire://{}", broker.address()),
        admin: broker.admin_address().expect("it was asked for").to_string(),
        data: folder.path().to_owned(),
        authority: credentials.authority_pem,
        certificate: credentials.certificate_pem,
        key: credentials.key_pem,
    })?;
    // Only its end matters, and a failure to read is an end as well.
    let _ = tokio::io::stdin().read_to_end(&mut Vec::new()).await;
    let report = broker.shutdown().await;
    folder.close().map_err(|error| Failure::failed(format!("the data stays: {}", describe_io(&error))))?;
    Ok(if report.clean { Exit::Done } else { Exit::Failed })
}

fn temporary_folder(within: Option<&Path>) -> Result<tempfile::TempDir, Failure> {
    let Some(within) = within else { return embedded::temporary_folder() };
    let folder = tempfile::Builder::new().prefix("quire-bench-").tempdir_in(within);
    folder.map_err(|error| Failure::file(within, &error).hint("choose another with --data DIR"))
}

/// The brokers under load.
#[derive(Debug)]
pub struct Target {
    /// How clients reach it.
    pub profile: Profile,
    /// How to look at it.
    pub probe: Probe,
    /// Where they keep their data, if that is known.
    pub data: Option<PathBuf>,
    own: Option<Own>,
}

/// What was started for the benchmark.
#[derive(Debug)]
enum Own {
    /// One broker.
    Child(RunningChild),
    /// Several, and the folder with their data.
    Cluster(Cluster, tempfile::TempDir),
}

#[derive(Debug)]
struct RunningChild {
    process: Child,
    /// Held open for as long as the child is to live.
    _stdin: ChildStdin,
}

impl Target {
    /// A broker that runs already.
    pub fn running(profile: Profile, probe: Probe) -> Target {
        Target { profile, probe, data: None, own: None }
    }

    /// Starts as many brokers, with their data in a temporary folder in `data`, or where the system has such folders.
    ///
    /// # Errors
    /// If one does not come up.
    pub async fn start(data: Option<&Path>, brokers: u32) -> Result<Target, Failure> {
        match brokers {
            1 => Target::start_child(data).await,
            _ => Target::start_cluster(data, brokers).await,
        }
    }

    async fn start_cluster(data: Option<&Path>, brokers: u32) -> Result<Target, Failure> {
        let binary = std::env::current_exe().map_err(|error| no_process(&error))?;
        let folder = temporary_folder(data)?;
        let failed = |error: ClusterError| {
            Failure::failed(format!("the benchmark's own brokers did not start: {error}"))
                .hint("choose another folder with --data DIR, or see what the log says")
        };
        let cluster =
            Cluster::start(ClusterSetup::new(&binary, folder.path(), brokers)).await.map_err(failed)?;
        let probe = |node: &Node| BrokerProbe {
            process: node.process(),
            admin: node.admin().to_string().parse().ok(),
        };
        let probe = Probe::new(cluster.nodes().iter().map(probe).collect());
        let profile = cluster.profile().map_err(failed)?;
        tracing::info!(brokers, data = %folder.path().display(), "cluster started");
        let data = Some(folder.path().to_owned());
        Ok(Target { profile, probe, data, own: Some(Own::Cluster(cluster, folder)) })
    }

    async fn start_child(data: Option<&Path>) -> Result<Target, Failure> {
        let mut process = spawn(data).map_err(|error| no_process(&error))?;
        let stdin = process.stdin.take().expect("it is piped");
        let mut stdout = BufReader::new(process.stdout.take().expect("it is piped"));
        let mut line = String::new();
        let read = stdout.read_line(&mut line).await;
        let ready = read.ok().and_then(|_| serde_json::from_str::<Ready>(&line).ok());
        let Some(ready) = ready else {
            let _ = process.wait().await;
            return Err(Failure::failed("the benchmark's own broker did not start")
                .hint("see the lines above, or choose another folder with --data DIR"));
        };
        let probe = BrokerProbe { process: process.id(), admin: ready.admin.parse().ok() };
        tracing::info!(process = process.id(), data = %ready.data.display(), "broker started");
        let profile = Profile::new(ready.address)
            .authority_pem(ready.authority)
            .identity_pem(ready.certificate, ready.key);
        let own = Some(Own::Child(RunningChild { process, _stdin: stdin }));
        Ok(Target { profile, probe: Probe::new(vec![probe]), data: Some(ready.data), own })
    }

    /// Whether the brokers were started for the benchmark.
    pub fn is_embedded(&self) -> bool {
        self.own.is_some()
    }

    /// Ends what was started for the benchmark, and waits until its data are removed.
    pub async fn end(mut self) {
        let RunningChild { mut process, _stdin: stdin } = match self.own.take() {
            Some(Own::Child(child)) => child,
            Some(Own::Cluster(cluster, folder)) => {
                // Nobody needs what they would put in order: they are killed.
                drop(cluster);
                if let Err(error) = folder.close() {
                    tracing::warn!(error = describe_io(&error), "the benchmark's data stay");
                }
                return;
            }
            None => return,
        };
        drop(stdin);
        if timeout(END_TIME_MAX, process.wait()).await.is_err() {
            tracing::warn!("the benchmark's broker does not end and is killed");
            let _ = process.kill().await;
            if let Some(data) = &self.data {
                let _ = std::fs::remove_dir_all(data);
            }
        }
    }
}

fn no_process(error: &io::Error) -> Failure {
    Failure::failed(format!("no process for the broker: {}", describe_io(error)))
}

fn spawn(data: Option<&Path>) -> io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bench", "serve"]);
    if let Some(data) = data {
        command.arg("--data").arg(data);
    }
    // In a group of its own: Ctrl-C reaches this process alone, which then ends the child in order.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
}
