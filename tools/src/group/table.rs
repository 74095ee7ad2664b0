//! A group as a page, and as JSON.

use std::time::Duration;

use quire_client::{GroupProgress, MemberPartition};
use serde::Serialize;

use crate::output::{Align, Palette, Table, counted, thousands};
use crate::time;

use super::explain::{Look, explain, member_name};
use super::{state_name, total_lag};

/// `billing   stable   generation 7   coordinator broker 2   sticky   protocol native`
pub(super) fn headline(look: &Look, palette: Palette) -> String {
    let group = &look.group;
    [
        palette.bold(&group.summary.name).into_owned(),
        state_name(group.summary.state).to_owned(),
        format!("generation {}", group.summary.generation),
        format!("coordinator broker {}", group.coordinator),
        group.assignor.clone(),
        format!("protocol {}", group.protocol),
    ]
    .join("   ")
}

pub(super) fn page(look: &Look, palette: Palette) -> String {
    let topics: std::collections::BTreeSet<_> =
        look.progress.iter().map(|progress| progress.topic.as_str()).collect();
    let mut text = format!("{}\n", headline(look, palette));
    let several = topics.len() > 1;
    if let (false, Some(topic)) = (several, topics.first()) {
        text.push_str(&format!("topic {topic}\n"));
    }
    let mut columns = vec![
        ("PART", Align::Right),
        ("MEMBER", Align::Left),
        ("HOST", Align::Left),
        ("COMMITTED", Align::Right),
        ("END", Align::Right),
        ("LAG", Align::Right),
        ("BEHIND", Align::Right),
        ("RETENTION TAKES IT IN", Align::Right),
    ];
    if several {
        columns.insert(0, ("TOPIC", Align::Left));
    }
    let mut table = Table::new(&columns);
    for progress in &look.progress {
        let mut cells = row(look, progress);
        if several {
            cells.insert(0, progress.topic.clone());
        }
        table.row(cells);
    }
    if !look.progress.is_empty() {
        text.push_str(&table.render(palette));
    }
    let members = look.group.members.len() as u64;
    text.push_str(&format!(" {}   {}\n", counted(members, "member"), total_lag(look)));
    let idle = look.group.members.iter().filter(|member| member.assigned.is_empty());
    for member in idle {
        text.push_str(&format!(" {} at {} has no partition\n", member_name(member), member.host));
    }
    if let Some(first) = explain(look, look).first() {
        let name = &look.group.summary.name;
        text.push_str(&format!(" {} → quire group explain {name}\n", first.what));
    }
    text
}

fn row(look: &Look, progress: &GroupProgress) -> Vec<String> {
    let member = progress.member.and_then(|index| look.group.members.get(index));
    let dash = || "-".to_owned();
    let mut cells = vec![
        progress.id.partition.to_string(),
        member.map_or_else(dash, member_name),
        member.map_or_else(dash, |member| member.host.clone()),
        progress.committed.map_or_else(dash, |offset| thousands(offset.0)),
    ];
    match &progress.log {
        Ok(log) => {
            cells.push(thousands(log.end.0));
            cells.push(thousands(log.lag));
            cells.push(log.behind.map_or_else(dash, time::show_took));
            cells.push(log.retention_in.map_or_else(dash, coarse));
            if log.lost > 0 {
                cells.push(format!("! {} removed unprocessed", counted(log.lost, "record")));
            }
        }
        Err(error) => cells.extend([dash(), dash(), dash(), dash(), format!("! {error}")]),
    }
    cells
}

/// `6d23h`, `4h10m`, `12m`, `41s`: what is left of a long time.
fn coarse(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => "now".to_owned(),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A group as `--json` gives it.
#[derive(Serialize)]
pub(super) struct GroupJson {
    name: String,
    state: &'static str,
    generation: u32,
    coordinator: u32,
    assignor: String,
    protocol: String,
    since_ms: Option<u64>,
    members: Vec<MemberJson>,
    partitions: Vec<PartitionJson>,
    lag: u64,
    behind_ms: Option<u64>,
}

#[derive(Serialize)]
struct MemberJson {
    id: String,
    instance_id: Option<String>,
    rack: Option<String>,
    client: String,
    host: String,
    generation: i32,
    topics: Vec<String>,
    assigned: Vec<MemberPartitionJson>,
    revoking: Vec<MemberPartitionJson>,
    silent_ms: Option<u64>,
    session_timeout_ms: u64,
    away: bool,
}

#[derive(Serialize)]
struct MemberPartitionJson {
    topic: String,
    partition: u32,
}

#[derive(Serialize)]
struct PartitionJson {
    topic: String,
    partition: u32,
    member: Option<String>,
    committed: Option<u64>,
    committed_at: Option<i64>,
    log_start: Option<u64>,
    end: Option<u64>,
    lag: Option<u64>,
    behind_ms: Option<u64>,
    retention_in_ms: Option<u64>,
    lost: Option<u64>,
    error: Option<String>,
}

pub(super) fn json(look: &Look) -> GroupJson {
    let group = &look.group;
    let logs = || look.progress.iter().filter_map(|progress| progress.log.as_ref().ok());
    GroupJson {
        name: group.summary.name.clone(),
        state: state_name(group.summary.state),
        generation: group.summary.generation,
        coordinator: group.coordinator.0,
        assignor: group.assignor.clone(),
        protocol: group.protocol.clone(),
        since_ms: group.since.map(millis),
        members: group.members.iter().map(member_json).collect(),
        partitions: look.progress.iter().map(|progress| partition_json(look, progress)).collect(),
        lag: logs().map(|log| log.lag).sum(),
        behind_ms: logs().filter_map(|log| log.behind).max().map(millis),
    }
}

fn member_json(member: &quire_client::GroupMember) -> MemberJson {
    let partitions = |partitions: &[MemberPartition]| {
        let json = |partition: &MemberPartition| MemberPartitionJson {
            topic: partition.topic.clone(),
            partition: partition.id.partition.0,
        };
        partitions.iter().map(json).collect()
    };
    MemberJson {
        id: member.id.clone(),
        instance_id: member.instance_id.clone(),
        rack: member.rack.clone(),
        client: member.client_name.clone(),
        host: member.host.clone(),
        generation: member.epoch,
        topics: member.topics.clone(),
        assigned: partitions(&member.assigned),
        revoking: partitions(&member.revoking),
        silent_ms: member.silent_for.map(millis),
        session_timeout_ms: millis(member.session_timeout),
        away: member.is_away,
    }
}

fn partition_json(look: &Look, progress: &GroupProgress) -> PartitionJson {
    let log = progress.log.as_ref().ok();
    PartitionJson {
        topic: progress.topic.clone(),
        partition: progress.id.partition.0,
        member: progress.member.and_then(|index| Some(look.group.members.get(index)?.id.clone())),
        committed: progress.committed.map(|offset| offset.0),
        committed_at: progress.committed_at.map(|at| at.0),
        log_start: log.map(|log| log.log_start.0),
        end: log.map(|log| log.end.0),
        lag: log.map(|log| log.lag),
        behind_ms: log.and_then(|log| log.behind).map(millis),
        retention_in_ms: log.and_then(|log| log.retention_in).map(millis),
        lost: log.map(|log| log.lost),
        error: progress.log.as_ref().err().map(ToString::to_string),
    }
}

fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}
