//! How the cluster is, and who is to leave.

use clap::Args;
use quire_client::{BrokerState, BrokerStatus, Client, ClusterStatus, SuspectReplica};
use quire_protocol::BrokerId;
use serde::Serialize;

use crate::args::JsonArg;
use crate::failure::Failure;
use crate::output::{self, Align, Palette, Table, counted, thousands};

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

fn page(status: &ClusterStatus, palette: Palette) -> String {
    let mut table = Table::new(&[
        ("BROKER", Align::Right),
        ("ADDRESS", Align::Left),
        ("RACK", Align::Left),
        ("STATE", Align::Left),
        ("LEADS", Align::Right),
        ("PREFERRED", Align::Right),
        ("IN SYNC", Align::Right),
        ("REPLICAS", Align::Right),
    ]);
    for broker in &status.brokers {
        table.row(row(broker, palette));
    }
    let mut page = format!(
        "cluster {}   {}   {}\n{} {}   {} under-replicated   {} offline   {} suspect   {} recovering   \
         {} reassigning   {} not on their preferred leader\n",
        palette.bold(&status.cluster_id),
        counted(status.brokers.len() as u64, "broker"),
        controller(status, palette),
        table.render(palette),
        counted(status.partitions.into(), "partition"),
        thousands(status.under_replicated.into()),
        thousands(status.offline.into()),
        thousands(status.suspect_count.into()),
        thousands(status.recovering.into()),
        thousands(status.reassigning.into()),
        thousands(status.unbalanced.into()),
    );
    for suspect in &status.suspects {
        let (broker, topic, partition) = (suspect.broker, &suspect.topic, suspect.partition);
        let line = format!("! broker {broker}: {topic} partition {partition} is suspect: {}", suspect.why);
        page.push_str(&format!(" {}\n", palette.warning(&line)));
    }
    let unshown = (status.suspect_count as usize).saturating_sub(status.suspects.len());
    if unshown > 0 {
        page.push_str(&format!(" and {} more suspect\n", thousands(unshown as u64)));
    }
    if !status.unasked.is_empty() {
        page.push_str(&format!(
            " whether replicas of broker {} are suspect is not known: no answer from there\n",
            output::list(&status.unasked)
        ));
    }
    for (lost, successor) in replaced(&status.brokers) {
        page.push_str(&format!(" {}\n", palette.warning(&replacement(lost, successor))));
    }
    page
}

/// Brokers that are not heard of, each with one that serves at its address: who lost its data directory and joined again got
/// another number, and the old one keeps what it was given until it is removed.
fn replaced(brokers: &[BrokerStatus]) -> impl Iterator<Item = (&BrokerStatus, &BrokerStatus)> {
    let at = |status: &BrokerStatus| (status.broker.host.clone(), status.broker.port);
    let is_lost = |status: &&BrokerStatus| status.state == BrokerState::Fenced;
    brokers.iter().filter(is_lost).filter_map(move |lost| {
        let mut serving = brokers.iter().filter(|status| status.state != BrokerState::Fenced);
        serving.find(|status| at(status) == at(lost)).map(|successor| (lost, successor))
    })
}

fn replacement(lost: &BrokerStatus, successor: &BrokerStatus) -> String {
    let (old, new) = (lost.broker.id, successor.broker.id);
    let rebalance = match lost.replicas {
        0 => String::new(),
        _ => format!("quire cluster rebalance --without {old}, then "),
    };
    format!(
        "! broker {new} serves at broker {old}'s address; if {old} is gone for good: {rebalance}quire cluster remove {old}"
    )
}

fn controller(status: &ClusterStatus, palette: Palette) -> String {
    match status.controller {
        // A broker that is its own controller was never elected.
        Some(controller) if status.controller_term == 0 => format!("controller {controller}"),
        Some(controller) => format!("controller {controller} (term {})", status.controller_term),
        None => palette.warning("! no controller: nothing can be changed").into_owned(),
    }
}

fn row(status: &BrokerStatus, palette: Palette) -> Vec<String> {
    let broker = &status.broker;
    let mut cells = vec![
        broker.id.to_string(),
        format!("{}:{}", broker.host, broker.port),
        broker.rack.clone().unwrap_or_else(|| "-".to_owned()),
        state(status.state).to_owned(),
        thousands(status.leads.into()),
        thousands(status.preferred.into()),
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

#[derive(Serialize)]
struct StatusJson<'a> {
    cluster_id: &'a str,
    /// Null while there is none.
    controller: Option<u32>,
    controller_term: u64,
    /// Who elects it.
    voters: Vec<u32>,
    learners: Vec<u32>,
    brokers: Vec<BrokerJson<'a>>,
    partitions: u32,
    under_replicated: u32,
    offline: u32,
    recovering: u32,
    reassigning: u32,
    not_on_preferred_leader: u32,
    suspect: u32,
    /// The first of them, of each broker.
    suspect_replicas: Vec<SuspectJson<'a>>,
    /// Brokers whose replicas nobody could be asked about.
    not_asked: Vec<u32>,
}

#[derive(Serialize)]
struct SuspectJson<'a> {
    broker: u32,
    topic: &'a str,
    partition: u32,
    why: &'a str,
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
    preferred: u32,
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
            preferred: status.preferred,
            in_sync: status.in_sync,
            replicas: status.replicas,
        };
        let numbers = |ids: &[BrokerId]| ids.iter().map(|id| id.0).collect();
        let suspect = |suspect: &'a SuspectReplica| SuspectJson {
            broker: suspect.broker.0,
            topic: &suspect.topic,
            partition: suspect.partition.0,
            why: &suspect.why,
        };
        StatusJson {
            cluster_id: &status.cluster_id,
            controller: status.controller.map(|id| id.0),
            controller_term: status.controller_term,
            voters: numbers(&status.voters),
            learners: numbers(&status.learners),
            brokers: status.brokers.iter().map(broker).collect(),
            partitions: status.partitions,
            under_replicated: status.under_replicated,
            offline: status.offline,
            recovering: status.recovering,
            reassigning: status.reassigning,
            not_on_preferred_leader: status.unbalanced,
            suspect: status.suspect_count,
            suspect_replicas: status.suspects.iter().map(suspect).collect(),
            not_asked: numbers(&status.unasked),
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

#[cfg(test)]
mod tests {
    use super::*;
    use quire_client::Broker;

    fn broker(id: u32, state: BrokerState, in_sync: u32) -> BrokerStatus {
        let broker = Broker { id: BrokerId(id), host: "10.0.0.1".into(), port: 9440 + id as u16, rack: None };
        BrokerStatus { broker, epoch: 3, state, leads: 2, preferred: 3, replicas: 8, in_sync }
    }

    #[test]
    fn the_page_shows_what_needs_a_look() {
        let brokers = vec![
            broker(0, BrokerState::Unfenced, 8),
            broker(1, BrokerState::Unfenced, 7),
            broker(2, BrokerState::Fenced, 0),
        ];
        let suspect = SuspectReplica {
            broker: BrokerId(1),
            topic: "flights".into(),
            partition: quire_client::PartitionIndex(4),
            why: "a sync failed".into(),
        };
        let mut status = ClusterStatus {
            cluster_id: "c-1".into(),
            controller: Some(BrokerId(1)),
            controller_term: 7,
            voters: vec![BrokerId(0), BrokerId(1), BrokerId(2)],
            learners: Vec::new(),
            brokers,
            partitions: 8,
            under_replicated: 8,
            offline: 0,
            recovering: 0,
            reassigning: 1,
            unbalanced: 2,
            suspect_count: 3,
            suspects: vec![suspect],
            unasked: vec![BrokerId(2)],
        };
        assert_eq!(
            page(&status, Palette::PLAIN),
            "cluster c-1   3 brokers   controller 1 (term 7)\n \
             BROKER  ADDRESS        RACK  STATE    LEADS  PREFERRED  IN SYNC  REPLICAS\n      \
             0  10.0.0.1:9440  -     serving      2          3        8         8\n      \
             1  10.0.0.1:9441  -     serving      2          3        7         8  ! 1 behind\n      \
             2  10.0.0.1:9442  -     fenced       2          3        0         8  ! not heard of\n \
             8 partitions   8 under-replicated   0 offline   3 suspect   0 recovering   1 reassigning   \
             2 not on their preferred leader\n \
             ! broker 1: flights partition 4 is suspect: a sync failed\n \
             and 2 more suspect\n \
             whether replicas of broker 2 are suspect is not known: no answer from there\n"
        );
        let clue = "broker 1 serves at broker 2's address; if 2 is gone for good: \
                    quire cluster rebalance --without 2, then quire cluster remove 2\n";
        assert!(!page(&status, Palette::PLAIN).contains(clue));
        status.brokers[1].broker.port = 9442;
        assert!(page(&status, Palette::PLAIN).contains(clue));
        status.brokers[2].replicas = 0;
        assert!(page(&status, Palette::PLAIN).ends_with("gone for good: quire cluster remove 2\n"));
        status.controller = None;
        assert!(page(&status, Palette::PLAIN).contains("! no controller: nothing can be changed\n"));
    }
}
