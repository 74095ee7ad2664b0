//! How the cluster is, who is to leave, what is to move.

use std::time::Duration;

use clap::Args;
use quire_client::{BrokerState, BrokerStatus, Client, ClusterStatus, PartitionMove};
use quire_protocol::BrokerId;
use serde::Serialize;

use crate::args::JsonArg;
use crate::failure::Failure;
use crate::output::{self, Align, Palette, Table, counted, thousands};

/// How often progress is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// A broker to drain.
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// Its number
    broker: u32,
    /// Let it lead again instead
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    output: JsonArg,
}

/// A broker to remove.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// Its number
    broker: u32,
    #[command(flatten)]
    output: JsonArg,
}

/// How to rebalance.
#[derive(Debug, Args)]
pub struct RebalanceArgs {
    /// Leave nothing on this broker; may be repeated
    #[arg(long, value_name = "BROKER")]
    without: Vec<u32>,
    /// Carry the plan out, and wait until it is done
    #[arg(long)]
    execute: bool,
    /// Partitions whose records are copied at the same time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    at_once: u32,
    #[command(flatten)]
    output: JsonArg,
}

pub(super) async fn status(client: &Client, json: bool) -> Result<(), Failure> {
    let status = client.admin().cluster_status().await?;
    if json {
        return output::print_json(&StatusJson::from(&status));
    }
    output::print(&page(&status, Palette::stdout()))
}

pub(super) async fn drain(client: &Client, args: &DrainArgs) -> Result<(), Failure> {
    let (admin, broker) = (client.admin(), BrokerId(args.broker));
    if args.undo {
        admin.undrain_broker(broker).await?;
        if args.output.json {
            return output::print_json(&DrainJson { broker: broker.0, draining: false, leads: None });
        }
        return output::print(&format!("broker {broker} may lead again\n"));
    }
    let left = admin.drain_broker(broker).await?;
    if args.output.json {
        return output::print_json(&DrainJson { broker: broker.0, draining: true, leads: Some(left) });
    }
    if left == 0 {
        return output::print(&format!("broker {broker} leads nothing any more\n"));
    }
    output::print(&format!("broker {broker} still leads {}\n", counted(left.into(), "partition")))?;
    output::note("no other in-sync replica can take them yet; ask again, or see: quire cluster status");
    Ok(())
}

pub(super) async fn remove(client: &Client, args: &RemoveArgs) -> Result<(), Failure> {
    client.admin().remove_broker(BrokerId(args.broker)).await?;
    if args.output.json {
        return output::print_json(&RemovedJson { broker: args.broker, removed: true });
    }
    output::print(&format!("removed broker {}; its number is not given again\n", args.broker))
}

pub(super) async fn rebalance(client: &Client, args: &RebalanceArgs) -> Result<(), Failure> {
    let without: Vec<_> = args.without.iter().map(|id| BrokerId(*id)).collect();
    let plan = client.admin().plan_rebalance(&without).await?;
    if args.output.json {
        plan.iter().try_for_each(|planned| output::print_json(&MoveJson::from(planned)))?;
    } else if plan.is_empty() {
        output::print("balanced: nothing to move\n")?;
    } else {
        output::print(&plan_page(&plan, Palette::stdout()))?;
    }
    if args.execute {
        return execute(client, &plan, args.at_once as usize).await;
    }
    if !plan.is_empty() {
        output::note("nothing moved yet   to do it: the same command with --execute");
    }
    Ok(())
}

/// So many moves at a time: each copies all records of a partition, beside what producers write meanwhile.
async fn execute(client: &Client, plan: &[PartitionMove], at_once: usize) -> Result<(), Failure> {
    let admin = client.admin();
    let mut done = 0;
    for moves in plan.chunks(at_once) {
        for planned in moves {
            admin.reassign(&planned.topic, planned.partition, Some(&planned.to)).await?;
        }
        for planned in moves {
            while is_under_way(client, planned).await? {
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
            done += 1;
            output::note(&format!(
                "{done} of {} moved: {} partition {}",
                plan.len(),
                planned.topic,
                planned.partition
            ));
        }
    }
    let elected = admin.elect_preferred_leaders(None).await?;
    if elected > 0 {
        output::note(&format!(
            "{} led by their preferred leader again",
            counted(elected.into(), "partition")
        ));
    }
    Ok(())
}

/// A topic that was deleted meanwhile has nothing left to move.
async fn is_under_way(client: &Client, planned: &PartitionMove) -> Result<bool, Failure> {
    let topic = match client.admin().describe_topic(&planned.topic).await {
        Ok(topic) => topic,
        Err(error) if error.code() == Some(quire_protocol::ErrorCode::UnknownTopic) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let partition = topic.partitions.iter().find(|partition| partition.partition == planned.partition);
    Ok(partition.is_some_and(|p| !p.adding_replicas.is_empty() || !p.removing_replicas.is_empty()))
}

fn page(status: &ClusterStatus, palette: Palette) -> String {
    let mut table = Table::new(&[
        ("BROKER", Align::Right),
        ("ADDRESS", Align::Left),
        ("RACK", Align::Left),
        ("STATE", Align::Left),
        ("LEADS", Align::Right),
        ("IN SYNC", Align::Right),
        ("REPLICAS", Align::Right),
    ]);
    for broker in &status.brokers {
        table.row(row(broker, palette));
    }
    format!(
        "cluster {}   {}\n{} {}   {} under-replicated   {} offline   {} recovering   {} reassigning   \
         {} not on their preferred leader\n",
        palette.bold(&status.cluster_id),
        counted(status.brokers.len() as u64, "broker"),
        table.render(palette),
        counted(status.partitions.into(), "partition"),
        thousands(status.under_replicated.into()),
        thousands(status.offline.into()),
        thousands(status.recovering.into()),
        thousands(status.reassigning.into()),
        thousands(status.unbalanced.into()),
    )
}

fn row(status: &BrokerStatus, palette: Palette) -> Vec<String> {
    let broker = &status.broker;
    let mut cells = vec![
        broker.id.to_string(),
        format!("{}:{}", broker.host, broker.port),
        broker.rack.clone().unwrap_or_else(|| "-".to_owned()),
        state(status.state).to_owned(),
        thousands(status.leads.into()),
        thousands(status.in_sync.into()),
        thousands(status.replicas.into()),
    ];
    if status.state == BrokerState::Fenced {
        cells.push(palette.warning("! not heard of").into_owned());
    } else if status.in_sync < status.replicas {
        let behind = status.replicas - status.in_sync;
        cells.push(palette.warning(&format!("! {} behind", thousands(behind.into()))).into_owned());
    }
    cells
}

fn state(state: BrokerState) -> &'static str {
    match state {
        BrokerState::Unfenced => "serving",
        BrokerState::Draining => "draining",
        BrokerState::Fenced => "fenced",
    }
}

fn plan_page(plan: &[PartitionMove], palette: Palette) -> String {
    let mut table = Table::new(&[
        ("TOPIC", Align::Left),
        ("PART", Align::Right),
        ("REPLICAS", Align::Left),
        ("TO", Align::Left),
    ]);
    for planned in plan {
        let to = output::list(&planned.to);
        let what = if planned.copies() { to } else { format!("{to}  (leader only)") };
        table.row(vec![
            planned.topic.clone(),
            planned.partition.to_string(),
            output::list(&planned.from),
            what,
        ]);
    }
    let copies = plan.iter().filter(|planned| planned.copies()).count() as u64;
    format!(
        "{} {}, {} copied\n",
        table.render(palette),
        counted(plan.len() as u64, "move"),
        thousands(copies)
    )
}

#[derive(Serialize)]
struct StatusJson<'a> {
    cluster_id: &'a str,
    brokers: Vec<BrokerJson<'a>>,
    partitions: u32,
    under_replicated: u32,
    offline: u32,
    recovering: u32,
    reassigning: u32,
    not_on_preferred_leader: u32,
}

#[derive(Serialize)]
struct BrokerJson<'a> {
    broker: u32,
    host: &'a str,
    port: u16,
    rack: Option<&'a str>,
    epoch: u64,
    state: &'static str,
    leads: u32,
    in_sync: u32,
    replicas: u32,
}

impl<'a> From<&'a ClusterStatus> for StatusJson<'a> {
    fn from(status: &'a ClusterStatus) -> StatusJson<'a> {
        let broker = |status: &'a BrokerStatus| BrokerJson {
            broker: status.broker.id.0,
            host: &status.broker.host,
            port: status.broker.port,
            rack: status.broker.rack.as_deref(),
            epoch: status.epoch,
            state: state(status.state),
            leads: status.leads,
            in_sync: status.in_sync,
            replicas: status.replicas,
        };
        StatusJson {
            cluster_id: &status.cluster_id,
            brokers: status.brokers.iter().map(broker).collect(),
            partitions: status.partitions,
            under_replicated: status.under_replicated,
            offline: status.offline,
            recovering: status.recovering,
            reassigning: status.reassigning,
            not_on_preferred_leader: status.unbalanced,
        }
    }
}

#[derive(Serialize)]
struct DrainJson {
    broker: u32,
    draining: bool,
    /// What nobody else can lead yet.
    leads: Option<u32>,
}

#[derive(Serialize)]
struct RemovedJson {
    broker: u32,
    removed: bool,
}

#[derive(Serialize)]
struct MoveJson<'a> {
    topic: &'a str,
    partition: u32,
    from: Vec<u32>,
    to: Vec<u32>,
}

impl<'a> From<&'a PartitionMove> for MoveJson<'a> {
    fn from(planned: &'a PartitionMove) -> MoveJson<'a> {
        let numbers = |ids: &[BrokerId]| ids.iter().map(|id| id.0).collect();
        MoveJson {
            topic: &planned.topic,
            partition: planned.partition.0,
            from: numbers(&planned.from),
            to: numbers(&planned.to),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_client::Broker;

    fn broker(id: u32, state: BrokerState, in_sync: u32) -> BrokerStatus {
        let broker = Broker { id: BrokerId(id), host: "10.0.0.1".into(), port: 9440, rack: None };
        BrokerStatus { broker, epoch: 3, state, leads: 2, replicas: 8, in_sync }
    }

    #[test]
    fn the_page_shows_what_needs_a_look() {
        let brokers = vec![
            broker(0, BrokerState::Unfenced, 8),
            broker(1, BrokerState::Unfenced, 7),
            broker(2, BrokerState::Fenced, 0),
        ];
        let status = ClusterStatus {
            cluster_id: "c-1".into(),
            brokers,
            partitions: 8,
            under_replicated: 8,
            offline: 0,
            recovering: 0,
            reassigning: 1,
            unbalanced: 2,
        };
        assert_eq!(
            page(&status, Palette::PLAIN),
            "cluster c-1   3 brokers\n \
             BROKER  ADDRESS        RACK  STATE    LEADS  IN SYNC  REPLICAS\n      \
             0  10.0.0.1:9440  -     serving      2        8         8\n      \
             1  10.0.0.1:9440  -     serving      2        7         8  ! 1 behind\n      \
             2  10.0.0.1:9440  -     fenced       2        0         8  ! not heard of\n \
             8 partitions   8 under-replicated   0 offline   0 recovering   1 reassigning   \
             2 not on their preferred leader\n"
        );
    }
}
