//! Why a group is stuck or slow, in sentences, each with what to do. Plain: two looks at the group go in.

use std::time::Duration;

use quire_client::{
    GroupDescription, GroupMember, GroupProgress, GroupState, MemberPartition, ProgressLog, Timestamp,
};

use crate::output::{counted, quoted, thousands};
use crate::time;

/// A member that heartbeats is never silent for so long.
const SILENT_FROM: Duration = Duration::from_secs(8);
/// A partition with records to be processed whose member commits nothing for so long is worth a word.
const UNCOMMITTED_FROM: Duration = Duration::from_secs(10);
/// Retention that takes over in less is worth a word.
const RETENTION_SOON: Duration = Duration::from_secs(24 * 60 * 60);
/// How many partitions a sentence names.
const NAMED_MAX: usize = 4;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Records were lost, or nothing goes on.
    Stuck,
    /// It goes on too slowly, or will be stuck.
    Slow,
    /// Good to know.
    Note,
}

impl Weight {
    /// As JSON has it.
    pub fn name(self) -> &'static str {
        match self {
            Weight::Stuck => "stuck",
            Weight::Slow => "slow",
            Weight::Note => "note",
        }
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub weight: Weight,
    /// What it is.
    pub what: String,
    /// What to do.
    pub todo: String,
}

/// One look at a group.
#[derive(Debug, Clone)]
pub struct Look {
    /// The group.
    pub group: GroupDescription,
    /// How it is getting on.
    pub progress: Vec<GroupProgress>,
    /// When.
    pub at: Timestamp,
}

/// What there is to be said, the worst first. `earlier` is a look some time before.
pub fn explain(earlier: &Look, now: &Look) -> Vec<Finding> {
    let mut findings = Vec::new();
    lost(now, &mut findings);
    nobody(now, &mut findings);
    members(now, &mut findings);
    partitions(now, &mut findings);
    pace(earlier, now, &mut findings);
    retention(now, &mut findings);
    findings.sort_by_key(|finding| finding.weight);
    findings
}

fn add(findings: &mut Vec<Finding>, weight: Weight, what: String, todo: impl Into<String>) {
    findings.push(Finding { weight, what, todo: todo.into() });
}

fn name(group: &Look) -> &str {
    &group.group.summary.name
}

/// A member as people know it.
pub fn member_name(member: &GroupMember) -> String {
    member.instance_id.clone().unwrap_or_else(|| member.id.chars().take(8).collect())
}

fn who(member: &GroupMember) -> String {
    format!("{} ({} at {})", member_name(member), member.client_name, member.host)
}

/// `partition 3`, or `partitions 1, 2, 3, 4 and 12 more` of so many topics.
fn listed(partitions: &[(&str, u32)]) -> String {
    let topics: std::collections::BTreeSet<_> = partitions.iter().map(|(topic, _)| *topic).collect();
    let one = |(topic, partition): &(&str, u32)| match topics.len() {
        1 => partition.to_string(),
        _ => format!("{topic}/{partition}"),
    };
    let mut text = match partitions.len() {
        1 => "partition ".to_owned(),
        _ => "partitions ".to_owned(),
    };
    text.push_str(&partitions.iter().take(NAMED_MAX).map(one).collect::<Vec<_>>().join(", "));
    if partitions.len() > NAMED_MAX {
        text.push_str(&format!(" and {} more", partitions.len() - NAMED_MAX));
    }
    text
}

fn of_member(partitions: &[MemberPartition]) -> String {
    let named: Vec<_> =
        partitions.iter().map(|partition| (partition.topic.as_str(), partition.id.partition.0)).collect();
    listed(&named)
}

fn lost(now: &Look, findings: &mut Vec<Finding>) {
    for progress in &now.progress {
        let Ok(log) = &progress.log else { continue };
        if log.lost > 0 {
            let (topic, partition) = (&progress.topic, progress.id.partition);
            add(
                findings,
                Weight::Stuck,
                format!(
                    "partition {partition} of {topic}: retention removed {} before the group had processed them",
                    counted(log.lost, "record")
                ),
                format!(
                    "they are gone; give the group more time: quire topic alter {topic} --config retention.ms=…"
                ),
            );
        }
    }
}

fn lag(now: &Look) -> u64 {
    now.progress.iter().filter_map(|progress| progress.log.as_ref().ok()).map(|log| log.lag).sum()
}

fn nobody(now: &Look, findings: &mut Vec<Finding>) {
    if now.group.summary.state != GroupState::Empty {
        return;
    }
    let since = now.group.since.map(|since| format!(" for {}", time::show_took(since))).unwrap_or_default();
    let topic = now.progress.first().map_or("TOPIC", |progress| progress.topic.as_str());
    let is_known = now.progress.iter().all(|progress| progress.log.is_ok());
    let (weight, waiting) = match lag(now) {
        _ if now.progress.is_empty() => (Weight::Stuck, "it has committed nothing".to_owned()),
        0 if is_known => (Weight::Note, "no record waits".to_owned()),
        lag => (Weight::Stuck, format!("nobody processes its {}", counted(lag, "waiting record"))),
    };
    add(
        findings,
        weight,
        format!("the group has had no members{since}: {waiting}"),
        format!("start its consumers, e.g. quire consume {topic} --group {}", quoted(name(now))),
    );
}

fn members(now: &Look, findings: &mut Vec<Finding>) {
    let members = &now.group.members;
    for member in members {
        one_member(member, findings);
    }
    if now.group.summary.state == GroupState::Reconciling {
        let since = now.group.since.map(|since| format!(" for {}", time::show_took(since)));
        add(
            findings,
            Weight::Note,
            format!(
                "partitions have been changing hands{} (generation {})",
                since.unwrap_or_default(),
                now.group.summary.generation
            ),
            "wait: only what changes hands is not processed meanwhile",
        );
    }
    let idle: Vec<_> =
        members.iter().filter(|member| member.target.is_empty() && member.assigned.is_empty()).collect();
    if !idle.is_empty() && idle.len() < members.len() {
        let names: Vec<_> = idle.iter().take(NAMED_MAX).map(|member| member_name(member)).collect();
        add(
            findings,
            Weight::Note,
            format!(
                "{} of {} have no partition ({})",
                thousands(idle.len() as u64),
                counted(members.len() as u64, "member"),
                names.join(", ")
            ),
            "there are more members than partitions: stop some, or add partitions",
        );
    }
    if !members.is_empty() && idle.len() == members.len() {
        let topics = now.group.summary.topics.join(", ");
        add(
            findings,
            Weight::Stuck,
            format!("no member has a partition; they subscribe to {topics}"),
            "check that the topics exist: quire topic list",
        );
    }
}

fn one_member(member: &GroupMember, findings: &mut Vec<Finding>) {
    if member.is_away {
        let left = member.session_timeout.saturating_sub(member.silent_for.unwrap_or_default());
        add(
            findings,
            Weight::Slow,
            format!("static member {} left for a while and keeps its partitions", who(member)),
            format!("start it again, or wait {}: then others take over", time::show_took(left)),
        );
        return;
    }
    if let Some(silent) = member.silent_for.filter(|silent| *silent >= SILENT_FROM) {
        let left = member.session_timeout.saturating_sub(silent);
        add(
            findings,
            Weight::Stuck,
            format!("member {} has been silent for {}", who(member), time::show_took(silent)),
            format!(
                "look whether it still runs; in {} it is taken for dead and others take over",
                time::show_took(left)
            ),
        );
    }
    if !member.revoking.is_empty() {
        let since = member.revoking_for.unwrap_or_default();
        let left = member.rebalance_timeout.saturating_sub(since);
        add(
            findings,
            if since >= UNCOMMITTED_FROM { Weight::Stuck } else { Weight::Note },
            format!(
                "member {} was asked {} ago to give up {}, and has not",
                who(member),
                time::show_took(since),
                of_member(&member.revoking)
            ),
            format!(
                "it does so when it asks for its next record: look what it is busy with; in {} it is fenced",
                time::show_took(left)
            ),
        );
    }
    if let Some((_, owner)) = member.awaited.first() {
        let partitions: Vec<_> = member.awaited.iter().map(|(partition, _)| partition.clone()).collect();
        let owner: String = owner.chars().take(8).collect();
        add(
            findings,
            Weight::Note,
            format!("member {} waits for {}, which {owner} still has", who(member), of_member(&partitions)),
            "see what is said about that member",
        );
    }
}

fn partitions(now: &Look, findings: &mut Vec<Finding>) {
    for progress in &now.progress {
        if let Err(error) = &progress.log {
            add(
                findings,
                Weight::Stuck,
                format!("partition {} of {}: {error}", progress.id.partition, progress.topic),
                format!("quire topic describe {}; quire cluster status", progress.topic),
            );
        }
    }
    // One member's partitions are one story.
    for (index, member) in now.group.members.iter().enumerate() {
        let stale = |progress: &&GroupProgress| {
            // A record that has just come waits for no commit of before.
            let waits = |log: &ProgressLog| log.behind.is_none_or(|behind| behind >= UNCOMMITTED_FROM);
            let has_lag = progress.log.as_ref().is_ok_and(|log| log.lag > 0 && waits(log));
            progress.member == Some(index) && has_lag && uncommitted_for(progress, now) >= UNCOMMITTED_FROM
        };
        let stale: Vec<_> = now.progress.iter().filter(stale).collect();
        if stale.is_empty() {
            continue;
        }
        let records: u64 =
            stale.iter().filter_map(|progress| progress.log.as_ref().ok()).map(|log| log.lag).sum();
        let named: Vec<_> =
            stale.iter().map(|progress| (progress.topic.as_str(), progress.id.partition.0)).collect();
        let committed = stale.iter().filter(|progress| progress.committed_at.is_some());
        let since = match committed.map(|progress| uncommitted_for(progress, now)).min() {
            Some(since) if stale.iter().all(|progress| progress.committed_at.is_some()) => {
                format!("has committed nothing for {}", time::show_took(since))
            }
            _ => "has not committed anything yet".to_owned(),
        };
        add(
            findings,
            Weight::Slow,
            format!(
                "{}: member {} {since}, and {} wait",
                listed(&named),
                who(member),
                counted(records, "record")
            ),
            match is_silent(member) {
                true => "see what is said about that member",
                false => "look whether it is stuck on a record, or commits by hand and does not",
            },
        );
    }
}

/// Whether nothing can be looked for in it before it is back.
fn is_silent(member: &GroupMember) -> bool {
    member.is_away || member.silent_for.is_some_and(|silent| silent >= SILENT_FROM)
}

fn uncommitted_for(progress: &GroupProgress, now: &Look) -> Duration {
    match progress.committed_at {
        Some(at) => Duration::from_millis(now.at.0.saturating_sub(at.0).max(0) as u64),
        None => Duration::MAX,
    }
}

/// What comes in against what is committed, between the two looks.
fn pace(earlier: &Look, now: &Look, findings: &mut Vec<Finding>) {
    let seconds = now.at.0.saturating_sub(earlier.at.0).max(1) as f64 / 1000.0;
    let (mut came, mut done, mut behind) = (0, 0, Vec::new());
    for progress in &now.progress {
        let before = earlier.progress.iter().find(|before| before.id == progress.id);
        let (Some(before), Ok(log)) = (before, &progress.log) else { continue };
        let (Ok(log_before), Some(from), Some(to)) = (&before.log, before.committed, progress.committed)
        else {
            continue;
        };
        let (produced, processed) = (log.end.since(log_before.end), to.since(from));
        if produced > processed && log.lag > produced && processed > 0 {
            came += produced;
            done += processed;
            behind.push((progress.topic.as_str(), progress.id.partition.0));
        }
    }
    if behind.is_empty() || now.group.members.is_empty() {
        return;
    }
    let rate = |count: u64| thousands((count as f64 / seconds).round() as u64);
    add(
        findings,
        Weight::Slow,
        format!(
            "{}: {} records/s come in and {}/s are processed: the group falls behind",
            listed(&behind),
            rate(came),
            rate(done)
        ),
        "add members (at most one a partition helps), or make processing faster",
    );
}

fn retention(now: &Look, findings: &mut Vec<Finding>) {
    let soon = now.progress.iter().filter_map(|progress| {
        let left = progress.log.as_ref().ok().filter(|log| log.lost == 0)?.retention_in?;
        (left < RETENTION_SOON).then_some((left, progress))
    });
    let Some((left, progress)) = soon.min_by_key(|(left, _)| *left) else { return };
    add(
        findings,
        Weight::Slow,
        format!(
            "partition {} of {}: in {} retention removes records that the group has not processed",
            progress.id.partition,
            progress.topic,
            time::show_took(left)
        ),
        format!(
            "process faster, or keep them longer: quire topic alter {} --config retention.ms=…",
            progress.topic
        ),
    );
}

#[cfg(test)]
mod tests;
