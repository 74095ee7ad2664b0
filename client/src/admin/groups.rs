//! Groups: which there are, who is in them, how far they are; moving and deleting them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quire_protocol::rpc::control::{self, position, request, response};
use quire_protocol::{
    BrokerId, OFFSETS_TOPIC, Offset, PartitionIndex, Timestamp, TopicId, TopicPartition, group_name,
};
use tokio::time::timeout;

use super::cluster::EACH_BROKER_TIME;
use super::{Admin, other_answer};
use crate::error::Error;
use crate::group::coordinator::{Coordinator, unexpected};
use crate::group::{committed_offset, membership};
use crate::metadata::TopicMetadata;

/// How long a coordinator that has just moved, or can not be reached, is asked again.
const COORDINATOR_TIME: Duration = Duration::from_secs(10);

/// What a group is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupState {
    /// It has no members.
    Empty,
    /// Partitions are changing hands.
    Reconciling,
    /// Every member has what it is to have.
    Stable,
}

/// One group in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSummary {
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub state: GroupState,
    /// Counts the changes of its members and partitions.
    pub generation: u32,
    /// How many members it has.
    pub members: u32,
    /// The topics that its members subscribe to, or else that it has committed offsets of.
    pub topics: Vec<String>,
}

/// The groups there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Groups {
    /// By name.
    pub groups: Vec<GroupSummary>,
    /// Why some may be missing: brokers that did not answer, and coordinators that are still reading.
    pub unknown: Vec<String>,
}

/// A group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupDescription {
    /// As in a list.
    pub summary: GroupSummary,
    /// The broker that coordinates it.
    pub coordinator: BrokerId,
    /// How its partitions are spread.
    pub assignor: String,
    /// The protocol its members speak.
    pub protocol: String,
    /// Its members, by id.
    pub members: Vec<GroupMember>,
    /// What it has committed, by topic and partition.
    pub offsets: Vec<GroupOffset>,
    /// How long partitions have been changing hands, or it has had no members.
    pub since: Option<Duration>,
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMember {
    /// Its id.
    pub id: String,
    /// Its instance id, if it is a static member.
    pub instance_id: Option<String>,
    /// Its rack, if it said one.
    pub rack: Option<String>,
    /// The name of the program, as it says.
    pub client_name: String,
    /// Where it connects from.
    pub host: String,
    /// The generation it is in.
    pub epoch: i32,
    /// What it subscribes to.
    pub topics: Vec<String>,
    /// What it reads, or is to give up.
    pub assigned: Vec<MemberPartition>,
    /// What it is to read in the end.
    pub target: Vec<MemberPartition>,
    /// What of that others have not given up, and who has it.
    pub awaited: Vec<(MemberPartition, String)>,
    /// What it was asked to give up and has not yet.
    pub revoking: Vec<MemberPartition>,
    /// For how long.
    pub revoking_for: Option<Duration>,
    /// How long nothing was heard of it, as far as its coordinator has seen.
    pub silent_for: Option<Duration>,
    /// Whether it is a static member that left and may come back within its session.
    pub is_away: bool,
    /// How long it may be silent.
    pub session_timeout: Duration,
    /// How long it may take to give up partitions.
    pub rebalance_timeout: Duration,
}

/// A member's partition.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemberPartition {
    /// The topic's name.
    pub topic: String,
    /// The topic's id and the partition.
    pub id: TopicPartition,
}

/// Up to where a group has processed a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupOffset {
    /// The topic's name.
    pub topic: String,
    /// The topic's id and the partition.
    pub id: TopicPartition,
    /// The next record to be processed.
    pub offset: Offset,
    /// When that was committed.
    pub committed_at: Timestamp,
}

/// How a group is getting on with one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupProgress {
    /// The topic's name.
    pub topic: String,
    /// The topic's id and the partition.
    pub id: TopicPartition,
    /// The member that reads it, by its place in [`GroupDescription::members`].
    pub member: Option<usize>,
    /// The next record to be processed; `None` if nothing was committed.
    pub committed: Option<Offset>,
    /// When that was committed.
    pub committed_at: Option<Timestamp>,
    /// How the partition stands; `Err` if its leader could not say.
    pub log: Result<ProgressLog, Error>,
}

/// The log that a group reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgressLog {
    /// The first offset there is.
    pub log_start: Offset,
    /// The first offset not yet committed.
    pub end: Offset,
    /// Records between what the group has committed, or the log start, and the end.
    pub lag: u64,
    /// How long ago the first of them was appended.
    pub behind: Option<Duration>,
    /// In how long retention by time may remove it; zero if records were removed before they were processed.
    pub retention_in: Option<Duration>,
    /// Records that were removed before they were processed.
    pub lost: u64,
}

impl Admin {
    /// The groups of the cluster: every broker is asked for those it coordinates.
    ///
    /// # Errors
    /// If no broker can be asked.
    pub async fn list_groups(&self) -> Result<Groups, Error> {
        let mut groups = Groups::default();
        let coordinators = self.coordinators(&mut groups.unknown).await?;
        let mut asked: FuturesUnordered<_> = (coordinators.into_iter())
            .map(|id| async move {
                let answer = timeout(EACH_BROKER_TIME, self.groups_of(id)).await;
                (id, answer.unwrap_or_else(|_| Err(no_answer(id))))
            })
            .collect();
        while let Some((broker, answer)) = asked.next().await {
            match answer {
                Ok(answer) => {
                    groups.groups.extend(answer.groups.into_iter().map(summary));
                    if !answer.loading.is_empty() {
                        let why = "some of its groups are still being read, or wait for replicas";
                        groups.unknown.push(format!("broker {broker}: {why}"));
                    }
                }
                Err(error) => groups.unknown.push(format!("broker {broker}: {error}")),
            }
        }
        groups.groups.sort_by(|a, b| a.name.cmp(&b.name));
        groups.unknown.sort();
        Ok(groups)
    }

    /// Who leads a part of the topic that groups are kept in; adds what of it nobody leads to what is not known.
    async fn coordinators(&self, unknown: &mut Vec<String>) -> Result<BTreeSet<BrokerId>, Error> {
        let Ok(topic) = self.describe_topic_metadata(OFFSETS_TOPIC).await else {
            // It is not there yet, or not this client's to see: any broker may coordinate groups.
            let cluster = self.client.metadata().describe_cluster().await?;
            return Ok(cluster.brokers.iter().map(|broker| BrokerId(broker.id)).collect());
        };
        let led = topic.partitions.iter().filter(|partition| partition.leader.is_some()).count();
        if led < topic.partitions.len() {
            let left = topic.partitions.len() - led;
            unknown.push(format!(
                "{left} of {} partitions of {OFFSETS_TOPIC} have no leader",
                topic.partitions.len()
            ));
        }
        Ok(topic.partitions.iter().filter_map(|partition| partition.leader).collect())
    }

    async fn groups_of(&self, broker: BrokerId) -> Result<control::ListGroupsResponse, Error> {
        let connection = self.client.metadata().broker(broker).await?;
        match connection.rpc("list groups", request::Body::ListGroups(control::ListGroupsRequest {})).await? {
            response::Body::ListGroups(answer) => Ok(answer),
            _ => Err(other_answer(&connection, "list groups")),
        }
    }

    /// A group: its members, what they have, what was committed.
    ///
    /// # Errors
    /// If there is no such group, or its coordinator can not be asked.
    pub async fn describe_group(&self, name: &str) -> Result<GroupDescription, Error> {
        let body = request::Body::DescribeGroup(control::DescribeGroupRequest { group: name.to_owned() });
        match self.coordinator(name, "describe group", body).await? {
            response::Body::DescribeGroup(answer) => describe(answer),
            _ => Err(unexpected("describe group")),
        }
    }

    /// How a group is getting on, for each partition of the topics that it has committed or that a member reads: asks the
    /// partitions' leaders.
    ///
    /// # Errors
    /// If no broker can be asked. A leader that can not only fails its own partitions.
    pub async fn group_progress(&self, group: &GroupDescription) -> Result<Vec<GroupProgress>, Error> {
        let mut progress: BTreeMap<TopicPartition, GroupProgress> = BTreeMap::new();
        for offset in &group.offsets {
            let known = progress.entry(offset.id).or_insert_with(|| unknown(&offset.topic, offset.id));
            known.committed = Some(offset.offset);
            known.committed_at = Some(offset.committed_at);
        }
        for (index, member) in group.members.iter().enumerate() {
            for assigned in &member.assigned {
                let known =
                    progress.entry(assigned.id).or_insert_with(|| unknown(&assigned.topic, assigned.id));
                known.member = Some(index);
            }
        }
        let mut by_topic: BTreeMap<(TopicId, String), Vec<TopicPartition>> = BTreeMap::new();
        for known in progress.values() {
            by_topic.entry((known.id.topic, known.topic.clone())).or_default().push(known.id);
        }
        for ((topic, name), mut ids) in by_topic {
            // What nobody has begun waits as well.
            if let Ok(known) = self.client.metadata().topic(&name).await
                && known.id == topic
            {
                let all = (0..known.partitions()).map(|index| known.partition(PartitionIndex(index)));
                for id in all.filter(|id| !ids.contains(id)).collect::<Vec<_>>() {
                    progress.insert(id, unknown(&name, id));
                    ids.push(id);
                }
            }
            let asked: Vec<_> = ids.iter().map(|id| (*id, progress[id].committed)).collect();
            for (id, log) in self.logs_of(topic, &name, &asked).await {
                if let Some(known) = progress.get_mut(&id) {
                    known.log = log;
                }
            }
        }
        let mut progress: Vec<_> = progress.into_values().collect();
        progress.sort_by(|a, b| (&a.topic, a.id).cmp(&(&b.topic, b.id)));
        Ok(progress)
    }

    /// Moves a group's offsets, forwards or back, and forgets those named. Only while the group has no members.
    ///
    /// # Errors
    /// If no group can have the name, the group has members, or its coordinator can not be asked.
    pub async fn reset_group(
        &self,
        name: &str,
        offsets: &BTreeMap<TopicPartition, Offset>,
        forget: &BTreeSet<TopicPartition>,
    ) -> Result<(), Error> {
        group_name::check(name).map_err(|error| Error::InvalidRequest(error.to_string()))?;
        let body = request::Body::ResetOffsets(control::ResetOffsetsRequest {
            group: name.to_owned(),
            offsets: offsets.iter().map(|(id, offset)| committed_offset(*id, *offset)).collect(),
            forget: membership::write(forget.iter().copied()),
        });
        match self.coordinator(name, "reset offsets", body).await? {
            response::Body::ResetOffsets(_) => Ok(()),
            _ => Err(unexpected("reset offsets")),
        }
    }

    /// Deletes a group and what it has committed. Only while it has no members.
    ///
    /// # Errors
    /// If there is no such group, it has members, or its coordinator can not be asked.
    pub async fn delete_group(&self, name: &str) -> Result<(), Error> {
        let body = request::Body::DeleteGroup(control::DeleteGroupRequest { group: name.to_owned() });
        match self.coordinator(name, "delete group", body).await? {
            response::Body::DeleteGroup(_) => Ok(()),
            _ => Err(unexpected("delete group")),
        }
    }

    async fn coordinator(
        &self,
        group: &str,
        what: &'static str,
        body: request::Body,
    ) -> Result<response::Body, Error> {
        let coordinator = Coordinator::new(self.client.clone(), group.to_owned());
        coordinator.ask_within(COORDINATOR_TIME, what, body).await
    }

    /// How these partitions of one topic stand, each with where it was committed.
    async fn logs_of(
        &self,
        topic: TopicId,
        name: &str,
        asked: &[(TopicPartition, Option<Offset>)],
    ) -> Vec<(TopicPartition, Result<ProgressLog, Error>)> {
        let failed = |error: Error| asked.iter().map(|(id, _)| (*id, Err(error.clone()))).collect();
        // Leaders as they are now: whoever asks wants to know why something stands still.
        let known = async {
            let known = self.client.metadata().topic(name).await?;
            self.client.metadata().refresh(&known).await
        };
        let known = match known.await {
            Ok(known) if known.id == topic => known,
            Ok(_) => return failed(deleted(name)),
            Err(error) => return failed(error),
        };
        let retention = self.retention_of(name).await;
        let mut by_leader: BTreeMap<Option<BrokerId>, Vec<_>> = BTreeMap::new();
        for (id, committed) in asked {
            let leader = known.leadership(id.partition).and_then(|leadership| leadership.leader);
            by_leader.entry(leader).or_default().push((*id, *committed));
        }
        let mut answers: FuturesUnordered<_> = by_leader
            .into_values()
            .map(|asked| (Arc::clone(&known), asked))
            .map(|(known, asked)| async move {
                let answer = timeout(EACH_BROKER_TIME, self.ask_logs(&known, &asked, retention)).await;
                match answer.unwrap_or_else(|_| Err(no_log())) {
                    Ok(logs) => logs,
                    Err(error) => asked.iter().map(|(id, _)| (*id, Err(error.clone()))).collect(),
                }
            })
            .collect();
        let mut logs = Vec::with_capacity(asked.len());
        while let Some(answered) = answers.next().await {
            logs.extend(answered);
        }
        logs
    }

    async fn ask_logs(
        &self,
        topic: &Arc<TopicMetadata>,
        asked: &[(TopicPartition, Option<Offset>)],
        retention: Option<Duration>,
    ) -> Result<Vec<(TopicPartition, Result<ProgressLog, Error>)>, Error> {
        let Some((first, _)) = asked.first() else { return Ok(Vec::new()) };
        let connection = self.client.metadata().leader(topic, first.partition).await?;
        let position = |(id, committed): &(TopicPartition, Option<Offset>)| control::PartitionPosition {
            partition: id.partition.0,
            position: Some(control::Position {
                // By offset, since only such answers have ages; what is before the log start is answered with the first
                // record's.
                at: Some(position::At::Offset(committed.map_or(0, |offset| offset.0))),
            }),
        };
        let body = request::Body::ListOffsets(control::ListOffsetsRequest {
            topic_id: topic.id.as_bytes().to_vec(),
            partitions: asked.iter().map(position).collect(),
            with_ages: true,
        });
        let response::Body::ListOffsets(answer) = connection.rpc("list offsets", body).await? else {
            return Err(other_answer(&connection, "list offsets"));
        };
        let logs = answer.partitions.iter().zip(asked);
        Ok(logs.map(|(answer, (id, committed))| (*id, log_of(answer, *committed, retention))).collect())
    }

    /// The topic's retention by time; `None` if it has none, or nobody says.
    async fn retention_of(&self, name: &str) -> Option<Duration> {
        let topic = self.describe_topic_metadata(name).await.ok()?;
        let deletes = topic.config.get("cleanup.policy").is_none_or(|policy| policy.contains("delete"));
        let retention = topic.config.get("retention.ms").filter(|_| deletes)?;
        retention.parse().ok().map(Duration::from_millis)
    }
}

fn log_of(
    answer: &control::PartitionOffset,
    committed: Option<Offset>,
    retention: Option<Duration>,
) -> Result<ProgressLog, Error> {
    let (log_start, end) = (Offset(answer.log_start_offset), Offset(answer.high_watermark));
    if let Some(error) = answer.error.as_ref().filter(|error| error.code != 0)
        && error.error_code() != quire_protocol::ErrorCode::OffsetOutOfRange
    {
        return Err(crate::connection::broker_error(error, ""));
    }
    let from = committed.unwrap_or(log_start);
    let lost = log_start.since(from);
    let age = answer.age_ms.map(Duration::from_millis);
    let lag = end.since(from.max(log_start));
    let retention_in = match lost {
        0 => retention.zip(age).map(|(retention, age)| retention.saturating_sub(age)),
        _ => Some(Duration::ZERO),
    };
    let behind = age.filter(|_| lag > 0);
    Ok(ProgressLog {
        log_start,
        end,
        lag,
        behind,
        retention_in: retention_in.filter(|_| lag + lost > 0),
        lost,
    })
}

fn unknown(topic: &str, id: TopicPartition) -> GroupProgress {
    GroupProgress {
        topic: topic.to_owned(),
        id,
        member: None,
        committed: None,
        committed_at: None,
        log: Err(no_log()),
    }
}

fn no_log() -> Error {
    Error::TimedOut {
        address: "the partition's leader".into(),
        what: "list offsets",
        after: EACH_BROKER_TIME,
    }
}

fn no_answer(broker: BrokerId) -> Error {
    Error::TimedOut { address: format!("broker {broker}"), what: "list groups", after: EACH_BROKER_TIME }
}

fn deleted(name: &str) -> Error {
    Error::Broker {
        code: quire_protocol::ErrorCode::UnknownTopic,
        message: format!("topic \"{name}\" was deleted, and another one has its name"),
        suggestion: None,
    }
}

fn summary(group: control::GroupSummary) -> GroupSummary {
    GroupSummary {
        state: match group.state() {
            control::GroupState::Empty => GroupState::Empty,
            control::GroupState::Reconciling => GroupState::Reconciling,
            control::GroupState::Stable => GroupState::Stable,
        },
        name: group.group,
        generation: group.generation,
        members: group.members,
        topics: group.topics,
    }
}

fn describe(answer: control::DescribeGroupResponse) -> Result<GroupDescription, Error> {
    let group = answer.group.ok_or_else(|| unexpected("describe group"))?;
    Ok(GroupDescription {
        summary: summary(group),
        coordinator: BrokerId(answer.broker_id),
        assignor: answer.assignor,
        protocol: answer.protocol,
        members: answer.members.into_iter().map(member).collect::<Result<_, Error>>()?,
        offsets: answer.offsets.into_iter().filter_map(offset).collect(),
        since: answer.since_ms.map(Duration::from_millis),
    })
}

fn member(member: control::GroupMember) -> Result<GroupMember, Error> {
    let text = |text: String| Some(text).filter(|text| !text.is_empty());
    let assigned = partitions(&member.assigned)?;
    let awaited = member.awaited.into_iter().filter_map(|awaited| {
        let topic = TopicId::from_slice(&awaited.topic_id)?;
        let id = TopicPartition { topic, partition: PartitionIndex(awaited.partition) };
        Some((MemberPartition { topic: awaited.topic, id }, awaited.owner))
    });
    Ok(GroupMember {
        id: member.member,
        instance_id: text(member.instance_id),
        rack: text(member.rack),
        client_name: member.client_name,
        host: member.host,
        epoch: member.member_epoch,
        topics: member.topics,
        assigned,
        target: partitions(&member.target)?,
        awaited: awaited.collect(),
        revoking: partitions(&member.revoking)?,
        revoking_for: member.revoking_for_ms.map(Duration::from_millis),
        silent_for: member.silent_for_ms.map(Duration::from_millis),
        is_away: member.is_away,
        session_timeout: Duration::from_millis(member.session_timeout_ms.into()),
        rebalance_timeout: Duration::from_millis(member.rebalance_timeout_ms.into()),
    })
}

fn partitions(told: &[control::TopicPartitions]) -> Result<Vec<MemberPartition>, Error> {
    let told = membership::read(told)?;
    Ok(told.into_iter().map(|(id, topic)| MemberPartition { topic: topic.to_string(), id }).collect())
}

fn offset(committed: control::CommittedOffset) -> Option<GroupOffset> {
    let topic = TopicId::from_slice(&committed.topic_id)?;
    Some(GroupOffset {
        topic: committed.topic,
        id: TopicPartition { topic, partition: PartitionIndex(committed.partition) },
        offset: Offset(committed.offset),
        committed_at: Timestamp(committed.committed_at),
    })
}
