//! Carries a plan out: does each thing to the cluster at its time, waits for writes to come back, and tells how long it took.

use std::time::Duration;

use quire_client::{Client, PartitionIndex};
use quire_protocol::BrokerId;
use tokio::time::sleep;

use super::cluster::{Cluster, ClusterError, Node};
use super::plan::{Fault, Step};
use super::record::Record;

/// How long writes may take to come back everywhere after a fault is over.
pub const RESUME_TIME_MAX: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long the question who leads may take while everything is well.
const ASK_TIME_MAX: Duration = Duration::from_secs(2);

/// A fault that was carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// When it began, after the start.
    pub at: Duration,
    /// In words.
    pub what: String,
    /// How long writes stood still.
    pub unavailable: Duration,
    /// Whether they came back everywhere.
    pub has_resumed: bool,
}

/// Does one step of a plan. Returns when writes have come back, or have not in [`RESUME_TIME_MAX`].
///
/// # Errors
/// If a broker does not do what it is told.
pub async fn carry_out(
    step: Step,
    cluster: &mut Cluster,
    client: &Client,
    topic: &str,
    record: &Record,
    announce: impl Fn(&str),
) -> Result<Done, ClusterError> {
    sleep(step.at.saturating_sub(record.elapsed())).await;
    let target = match step.fault {
        Fault::KillLeader { partition, .. }
        | Fault::PauseLeader { partition, .. }
        | Fault::Partition { partition, .. } => Some(target(client, topic, partition, cluster).await),
        Fault::KillAll { .. } | Fault::RollingRestart => None,
    };
    let what = describe(step.fault, target.as_ref(), cluster.brokers());
    announce(&what);
    let at = record.fault(&what);
    match (step.fault, target) {
        (Fault::KillLeader { away, .. }, Some(target)) => {
            node(cluster, target.broker)?.kill()?;
            sleep(away).await;
            node(cluster, target.broker)?.start()?;
        }
        (Fault::PauseLeader { away, .. }, Some(target)) => {
            node(cluster, target.broker)?.pause()?;
            sleep(away).await;
            node(cluster, target.broker)?.resume()?;
        }
        (Fault::Partition { away, .. }, Some(target)) => {
            node(cluster, target.broker)?.cut_off_clients();
            sleep(away).await;
            node(cluster, target.broker)?.reconnect_clients();
        }
        (Fault::KillAll { away }, _) => {
            for node in cluster.nodes_mut() {
                node.kill()?;
            }
            sleep(away).await;
        }
        (Fault::RollingRestart, _) => {
            for node in cluster.nodes_mut() {
                node.terminate().await?;
                node.start()?;
                node.ready().await?;
            }
        }
        (Fault::KillLeader { .. } | Fault::PauseLeader { .. } | Fault::Partition { .. }, None) => {}
    }
    cluster.heal().await?;
    record.note("everything runs again");
    let has_resumed = resumed(record).await;
    let unavailable = record.end_fault().unwrap_or_default();
    Ok(Done { at, what, unavailable, has_resumed })
}

/// The broker to do something to, and how many partitions it leads, if anybody could say.
struct Target {
    broker: BrokerId,
    leads: Option<usize>,
}

async fn target(client: &Client, topic: &str, partition: u32, cluster: &mut Cluster) -> Target {
    let asked = tokio::time::timeout(ASK_TIME_MAX, client.admin().describe_topic(topic)).await;
    let partitions = asked.ok().and_then(Result::ok).map(|topic| topic.partitions).unwrap_or_default();
    let index = PartitionIndex(partition);
    let leader = partitions.iter().find(|found| found.partition == index).and_then(|found| found.leader);
    match leader.filter(|leader| cluster.node(*leader).is_some()) {
        Some(broker) => {
            let leads = partitions.iter().filter(|found| found.leader == Some(broker)).count();
            Target { broker, leads: Some(leads) }
        }
        // Nobody says who leads: any broker is as good as another.
        None => Target { broker: BrokerId(partition % cluster.brokers() + 1), leads: None },
    }
}

fn node(cluster: &mut Cluster, broker: BrokerId) -> Result<&mut Node, ClusterError> {
    cluster.node(broker).ok_or(ClusterError::NotRunning(broker))
}

fn describe(fault: Fault, target: Option<&Target>, brokers: u32) -> String {
    let who = target.map(|target| {
        let leads = target.leads.map(|count| format!(" (leader of {count})")).unwrap_or_default();
        format!("broker {}{leads}", target.broker)
    });
    let who = who
        .unwrap_or_else(|| if brokers == 1 { "the broker".into() } else { format!("all {brokers} brokers") });
    match fault {
        Fault::KillLeader { .. } => format!("kill -9 {who}"),
        Fault::PauseLeader { away, .. } => format!("SIGSTOP {who} for {:.1} s", away.as_secs_f64()),
        Fault::Partition { away, .. } => {
            format!("cut clients off {who} for {:.1} s", away.as_secs_f64())
        }
        Fault::KillAll { .. } => format!("kill -9 {who}"),
        Fault::RollingRestart => format!("restart {who}"),
    }
}

/// Waits until every partition has acknowledged something from now on, for [`RESUME_TIME_MAX`] at most; says whether they
/// did.
pub async fn resumed(record: &Record) -> bool {
    let since = record.elapsed();
    let deadline = since + RESUME_TIME_MAX;
    while !record.is_all_acknowledging_since(since) {
        if record.elapsed() > deadline {
            return false;
        }
        sleep(LOOK_EVERY).await;
    }
    true
}
