//! A group as a page, and as JSON.

use std::collections::BTreeSet;
use std::time::Duration;

use quire_client::{GroupProgress, MemberPartition};
use serde::Serialize;

use crate::output::{self, Align, Palette, Table, counted, thousands};
use crate::time;

use super::explain::{Look, explain, member_name};
use super::{state_name, total_lag};

/// `billing   stable   generation 7   coordinator broker 2   sticky   protocol native`
pub(super) fn headline(look: &Look, palette: Palette) -> String {
    let group = &look.group;
    [
        palette.bold(&output::one_line(&group.summary.name)).into_owned(),
        state_name(group.summary.state).to_owned(),
        format!("generation {}", group.summary.generation),
        format!("coordinator broker {}", group.coordinator),
        group.assignor.clone(),
        format!("protocol {}", group.protocol),
    ]
    .join("   ")
}

/// The page; `compacted` are those topics of which not every offset holds a record.
pub(super) fn page(look: &Look, compacted: &BTreeSet<String>, palette: Palette) -> String {
    let topics: BTreeSet<_> = look.progress.iter().map(|progress| progress.topic.as_str()).collect();
    let mut text = format!("{}\n", headline(look, palette));
    let several = topics.len() > 1;
    if let (false, Some(topic)) = (several, topics.first()) {
        let compacted =
            if compacted.contains(*topic) { ", compacted: not every offset has a record" } else { "" };
        text.push_str(&format!("topic {topic}{compacted}\n"));
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
    text.push_str(&format!(" {}   {}\n", counted(members, "member"), total_lag(look, compacted)));
    // One that left and is waited for keeps what it had.
    let idle = look.group.members.iter().filter(|member| member.assigned.is_empty() && !member.is_away);
    for member in idle {
        text.push_str(&format!(" {} at {} has no partition\n", member_name(member), member.host));
    }
    if let Some(first) = explain(look, look).first() {
        let name = output::quoted(&output::one_line(&look.group.summary.name));
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
    /// Null where the group has committed nothing and nobody reads for it: then it is not known what it is to read.
    lag: Option<u64>,
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
        lag: (!look.progress.is_empty()).then(|| logs().map(|log| log.lag).sum()),
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

#[cfg(test)]
mod tests {
    use quire_client::{
        BrokerId, GroupDescription, GroupMember, GroupState, GroupSummary, Offset, PartitionIndex,
        ProgressLog, Timestamp, TopicId, TopicPartition,
    };

    use super::*;

    fn look(members: Vec<GroupMember>, progress: Vec<GroupProgress>) -> Look {
        let summary = GroupSummary {
            name: "sp ace".into(),
            state: if members.is_empty() { GroupState::Empty } else { GroupState::Stable },
            generation: 3,
            members: members.len() as u32,
            topics: Vec::new(),
        };
        let group = GroupDescription {
            summary,
            coordinator: BrokerId(1),
            assignor: "sticky".into(),
            protocol: "native".into(),
            members,
            offsets: Vec::new(),
            since: None,
        };
        Look { group, progress, at: Timestamp(0) }
    }

    fn progress() -> GroupProgress {
        GroupProgress {
            topic: "flights".into(),
            id: TopicPartition { topic: TopicId([7; 16]), partition: PartitionIndex(0) },
            member: None,
            committed: Some(Offset(10)),
            committed_at: Some(Timestamp(0)),
            log: Ok(ProgressLog {
                log_start: Offset(0),
                end: Offset(30),
                lag: 20,
                behind: None,
                retention_in: None,
                lost: 0,
            }),
        }
    }

    fn away() -> GroupMember {
        GroupMember {
            id: "0123456789".into(),
            instance_id: Some("k".into()),
            rack: None,
            client_name: "quire".into(),
            host: "10.0.0.11".into(),
            epoch: 3,
            topics: vec!["flights".into()],
            assigned: Vec::new(),
            target: vec![MemberPartition { topic: "flights".into(), id: progress().id }],
            awaited: Vec::new(),
            revoking: Vec::new(),
            revoking_for: None,
            silent_for: None,
            is_away: true,
            session_timeout: Duration::from_secs(45),
            rebalance_timeout: Duration::from_secs(60),
        }
    }

    #[test]
    fn what_is_not_known_is_not_told_as_nothing() {
        let nothing = look(Vec::new(), Vec::new());
        let page = page(&nothing, &BTreeSet::new(), Palette::PLAIN);
        assert!(page.contains("0 members   lag unknown: it has committed nothing"), "{page}");
        assert!(!page.contains("waiting record"), "{page}");
        assert!(page.ends_with(" → quire group explain 'sp ace'\n"), "{page}");
        let json = serde_json::to_value(json(&nothing)).expect("it serialises");
        assert_eq!((&json["lag"], &json["behind_ms"]), (&serde_json::Value::Null, &serde_json::Value::Null));
    }

    #[test]
    fn the_lag_in_a_compacted_topic_is_a_bound() {
        let behind = look(Vec::new(), vec![progress()]);
        let plain = page(&behind, &BTreeSet::new(), Palette::PLAIN);
        assert!(plain.contains("topic flights\n") && plain.contains("   lag 20 records\n"), "{plain}");
        let compacted = page(&behind, &BTreeSet::from(["flights".to_owned()]), Palette::PLAIN);
        assert!(
            compacted.contains("topic flights, compacted: not every offset has a record\n"),
            "{compacted}"
        );
        assert!(compacted.contains("   lag at most 20 records\n"), "{compacted}");
    }

    #[test]
    fn a_member_that_is_away_is_not_said_to_have_nothing() {
        let page = page(&look(vec![away()], vec![progress()]), &BTreeSet::new(), Palette::PLAIN);
        assert!(!page.contains("has no partition"), "{page}");
        assert!(page.contains("static member k"), "{page}");
    }
}
