//! Groups, asked by members and by people: checked here, decided by the group's coordinator.
//!
//! Whatever is done with a group takes the right to join it, and the right to consume what it is done with; but for
//! leaving, for which it is enough to be who the member joined as. Only who made a member speaks for it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use quire_engine::controller::Image;
use quire_engine::controller::image::Operation;
use quire_engine::group::description::{
    GroupDescription, GroupState, GroupSummary, MemberDescription, MemberState,
};
use quire_engine::group::records::Committed;
use quire_engine::group::request::{
    Asker, Commit, FetchOffsets, Heartbeat, OffsetToCommit, Request, ResetOffsets, Response,
};
use quire_engine::group::{Assignor, Generation, GroupRefusal, Partitions};
use quire_protocol::rpc::control;
use quire_protocol::{
    ErrorCode, LeaderEpoch, OFFSETS_TOPIC, Offset, PartitionIndex, TopicId, TopicPartition, limits,
};

use super::access;
use crate::context::Context;
use crate::coordinator::topic;
use crate::error::RequestError;
use crate::net::connection::Session;

/// Where a group is coordinated. The internal topic comes to be with the first group that is looked for.
///
/// # Errors
/// If the principal may not join the group, or it can not be said at the moment.
pub(super) async fn find_coordinator(
    session: &Session,
    asked: control::FindCoordinatorRequest,
) -> Result<control::FindCoordinatorResponse, RequestError> {
    let context = &session.context;
    check_group(&asked.group)?;
    access::check_group(session, "join", &asked.group)?;
    topic::ensure(&*context.metadata).await?;
    let place = context.coordinators.place(&asked.group)?;
    Ok(control::FindCoordinatorResponse {
        broker_id: place.leader.0,
        partition: place.partition.partition.0,
        leader_epoch: place.leader_epoch.0,
    })
}

/// A member's heartbeat. It leaves whatever its rights are by now: what it has is free at once.
///
/// # Errors
/// If it may not join the group or consume what it subscribes to, or the coordinator refuses.
pub(super) async fn heartbeat(
    session: &Session,
    asked: control::GroupHeartbeatRequest,
) -> Result<control::GroupHeartbeatResponse, RequestError> {
    let context = &session.context;
    check_group(&asked.group)?;
    if asked.member_epoch >= Generation::JOINS.0 {
        access::check_group(session, "join", &asked.group)?;
        for topic in asked.topics.iter().filter(|_| asked.has_subscription) {
            access::check(session, Operation::Consume, topic)?;
        }
    }
    if asked.member.is_empty() {
        // A request that is repeated would join once more, under another id.
        return Err(invalid("a member has no id: whoever joins draws one"));
    }
    let text = |text: String| Some(text).filter(|text| !text.is_empty()).map(Arc::from);
    let time = |ms: u32| (ms > 0).then(|| Duration::from_millis(ms.into()));
    let assignor = match asked.assignor.as_str() {
        "" => None,
        name => Some(Assignor::named(name).ok_or_else(|| {
            let known = Assignor::ALL.map(Assignor::name).join(", ");
            invalid(&format!("no assignor is called \"{name}\"; there are {known}"))
        })?),
    };
    let heartbeat = Heartbeat {
        group: asked.group.as_str().into(),
        member: asked.member.into(),
        epoch: Generation(asked.member_epoch),
        principal: session.principal.as_str().into(),
        instance: text(asked.instance_id),
        rack: text(asked.rack),
        client: asked.client_name.into(),
        host: session.remote_host().into(),
        session: time(asked.session_timeout_ms),
        rebalance: time(asked.rebalance_timeout_ms),
        topics: asked
            .has_subscription
            .then(|| asked.topics.iter().map(|topic| topic.as_str().into()).collect()),
        assignor,
        owned: asked.has_owned.then(|| read_partitions(&asked.owned)).transpose()?,
        seen: asked.seen_revision,
    };
    let image = context.metadata.image();
    match context.coordinators.ask(&asked.group, Request::Heartbeat(heartbeat)).await? {
        Response::Heartbeat(answer) => Ok(control::GroupHeartbeatResponse {
            member_epoch: answer.epoch.0,
            heartbeat_interval_ms: millis(answer.interval),
            has_assignment: answer.assignment.is_some(),
            assignment: answer.assignment.iter().flat_map(|assigned| write(&image, assigned)).collect(),
            revision: answer.revision,
            revoke_within_ms: answer.revoke_within.map(millis),
            session_timeout_ms: millis(answer.session),
        }),
        Response::Left => Ok(control::GroupHeartbeatResponse {
            member_epoch: asked.member_epoch,
            ..control::GroupHeartbeatResponse::default()
        }),
        _ => Err(unexpected()),
    }
}

/// Offsets to be kept; each is answered by itself.
///
/// # Errors
/// If the principal may not join the group or consume a topic, or the member is none, or another principal's.
pub(super) async fn commit(
    session: &Session,
    asked: control::CommitOffsetsRequest,
) -> Result<control::CommitOffsetsResponse, RequestError> {
    check_group(&asked.group)?;
    access::check_group(session, "commit offsets of", &asked.group)?;
    let offsets = read_offsets(&asked.offsets)?;
    check_partitions(session, offsets.iter().map(|offset| offset.partition))?;
    let asker = (!asked.member.is_empty()).then(|| Asker {
        member: asked.member.as_str().into(),
        epoch: Generation(asked.member_epoch),
        principal: session.principal.as_str().into(),
    });
    let commit = Commit { group: asked.group.as_str().into(), asker, offsets };
    match session.context.coordinators.ask(&asked.group, Request::Commit(commit)).await? {
        Response::Commit(outcomes) => Ok(control::CommitOffsetsResponse {
            errors: outcomes
                .into_iter()
                .map(|(partition, outcome)| match outcome.code() {
                    Some(code) => control::Error::new(code, format!("{partition}: {outcome}")),
                    None => control::Error::default(),
                })
                .collect(),
        }),
        _ => Err(unexpected()),
    }
}

/// What is committed.
///
/// # Errors
/// If the principal may not join the group or consume a topic.
pub(super) async fn fetch(
    session: &Session,
    asked: control::FetchOffsetsRequest,
) -> Result<control::FetchOffsetsResponse, RequestError> {
    check_group(&asked.group)?;
    access::check_group(session, "look at", &asked.group)?;
    let wanted = read_partitions(&asked.partitions)?;
    check_partitions(session, wanted.iter().copied())?;
    let fetch = FetchOffsets {
        group: asked.group.as_str().into(),
        partitions: (!wanted.is_empty()).then(|| wanted.into_iter().collect()),
    };
    match session.context.coordinators.ask(&asked.group, Request::FetchOffsets(fetch)).await? {
        Response::Offsets(offsets) => {
            let image = session.context.metadata.image();
            let visible = offsets.iter().filter(|(id, _)| sees(session, &image, id.topic));
            Ok(control::FetchOffsetsResponse {
                offsets: visible.map(|(id, committed)| write_offset(&image, *id, committed)).collect(),
            })
        }
        _ => Err(unexpected()),
    }
}

/// The groups that this broker coordinates and the principal may join, without topics that it may not know of.
pub(super) async fn list(session: &Session) -> control::ListGroupsResponse {
    let (responses, loading) = session.context.coordinators.ask_all(&Request::List).await;
    let image = session.context.metadata.image();
    let groups = responses.into_iter().flat_map(|response| match response {
        Response::Groups(groups) => groups,
        _ => Vec::new(),
    });
    let visible = groups.filter(|group| access::may_join(&image, &session.principal, &group.group));
    let shown = |mut group: GroupSummary| {
        group.topics.retain(|topic| access::may_look(&image, &session.principal, topic));
        write_summary(&group)
    };
    control::ListGroupsResponse {
        groups: visible.map(shown).collect(),
        loading: loading.into_iter().map(|partition| partition.0).collect(),
    }
}

/// A group: its members, what they have, what is committed.
///
/// # Errors
/// If the principal may not join it, or not know of what it consumes, or there is no such group.
pub(super) async fn describe(
    session: &Session,
    asked: control::DescribeGroupRequest,
) -> Result<control::DescribeGroupResponse, RequestError> {
    let context = &session.context;
    let description = described(session, "look at", &asked.group).await?;
    let image = context.metadata.image();
    check_looks(session, &image, &description)?;
    Ok(write_description(context, &image, &description))
}

/// Moves a group that has no members.
///
/// # Errors
/// If it has, or the principal may not join it or consume a topic.
pub(super) async fn reset(
    session: &Session,
    asked: control::ResetOffsetsRequest,
) -> Result<control::ResetOffsetsResponse, RequestError> {
    check_group(&asked.group)?;
    access::check_group(session, "reset", &asked.group)?;
    let offsets = read_offsets(&asked.offsets)?;
    let forget = read_partitions(&asked.forget)?;
    check_partitions(session, offsets.iter().map(|offset| offset.partition).chain(forget.iter().copied()))?;
    topic::ensure(&*session.context.metadata).await?;
    let reset =
        ResetOffsets { group: asked.group.as_str().into(), offsets, forget: forget.into_iter().collect() };
    tracing::info!(group = asked.group, principal = session.principal, "resetting a group's offsets");
    match session.context.coordinators.ask(&asked.group, Request::ResetOffsets(reset)).await? {
        Response::Done => Ok(control::ResetOffsetsResponse {}),
        _ => Err(unexpected()),
    }
}

/// Deletes a group that has no members.
///
/// # Errors
/// If it has, there is none, or the principal may not join it or consume what it has consumed.
pub(super) async fn delete(
    session: &Session,
    asked: control::DeleteGroupRequest,
) -> Result<control::DeleteGroupResponse, RequestError> {
    let context = &session.context;
    let description = described(session, "delete", &asked.group).await?;
    check_partitions(session, description.offsets.iter().map(|(id, _)| *id))?;
    let delete = Request::DeleteGroup { group: asked.group.as_str().into() };
    match context.coordinators.ask(&asked.group, delete).await? {
        Response::Done => {
            tracing::info!(group = asked.group, principal = session.principal, "group deleted");
            Ok(control::DeleteGroupResponse {})
        }
        _ => Err(unexpected()),
    }
}

/// A group that the principal may join; `what` it wants to do with it is said if it may not.
async fn described(
    session: &Session,
    what: &str,
    group: &str,
) -> Result<Box<GroupDescription>, RequestError> {
    check_group(group)?;
    access::check_group(session, what, group)?;
    match session.context.coordinators.ask(group, Request::Describe { group: group.into() }).await? {
        Response::Description(description) => Ok(description),
        _ => Err(unexpected()),
    }
}

fn check_group(group: &str) -> Result<(), RequestError> {
    let max = limits::GROUP_ID_BYTES_MAX;
    match group.len() {
        0 => Err(invalid("a group's name is empty")),
        length if length > max => {
            Err(invalid(&format!("a group's name of {length} bytes; at most {max} are allowed")))
        }
        _ => Ok(()),
    }
}

fn check_partitions(
    session: &Session,
    partitions: impl IntoIterator<Item = TopicPartition>,
) -> Result<(), RequestError> {
    let mut seen = BTreeSet::new();
    for id in partitions {
        if seen.insert(id.topic) {
            access::check_partition(session, Operation::Consume, id)?;
        }
    }
    Ok(())
}

/// Whoever asks about a group may know of every topic that it is about.
fn check_looks(session: &Session, image: &Image, group: &GroupDescription) -> Result<(), RequestError> {
    let committed = group.offsets.iter().filter_map(|(id, _)| image.topic(id.topic)).map(|topic| &topic.name);
    let mut names = group.summary.topics.iter().chain(committed);
    match names.find(|name| !access::may_look(image, &session.principal, name)) {
        Some(name) => Err(access::may_not_look(&session.principal, name)),
        None => Ok(()),
    }
}

fn sees(session: &Session, image: &Image, topic: TopicId) -> bool {
    image.topic(topic).is_none_or(|topic| access::may_look(image, &session.principal, &topic.name))
}

fn read_topic(bytes: &[u8]) -> Result<TopicId, RequestError> {
    TopicId::from_slice(bytes).ok_or_else(|| invalid("a topic id has 16 bytes"))
}

fn read_partitions(told: &[control::TopicPartitions]) -> Result<Partitions, RequestError> {
    let count = told.iter().map(|told| told.partitions.len()).sum::<usize>();
    let max = limits::GROUP_PARTITIONS_MAX;
    if count > max {
        let message = format!("{count} partitions at once, at most {max} are allowed");
        return Err(RequestError::new(ErrorCode::LimitExceeded, message));
    }
    let mut partitions = Partitions::new();
    for told in told {
        let topic = read_topic(&told.topic_id)?;
        let id = |index: &u32| TopicPartition { topic, partition: PartitionIndex(*index) };
        partitions.extend(told.partitions.iter().map(id));
    }
    Ok(partitions)
}

fn read_offsets(told: &[control::CommittedOffset]) -> Result<Vec<OffsetToCommit>, RequestError> {
    let read = |told: &control::CommittedOffset| {
        if Offset(told.offset) > Offset::MAX {
            return Err(invalid(&format!(
                "offset {} is above {}, the largest there is",
                told.offset,
                Offset::MAX
            )));
        }
        Ok(OffsetToCommit {
            partition: TopicPartition {
                topic: read_topic(&told.topic_id)?,
                partition: PartitionIndex(told.partition),
            },
            offset: Offset(told.offset),
            leader_epoch: told.leader_epoch.map(LeaderEpoch),
            metadata: told.metadata.as_str().into(),
        })
    };
    told.iter().map(read).collect()
}

fn name_of(image: &Image, topic: TopicId) -> String {
    image.topic(topic).map(|topic| topic.name.to_string()).unwrap_or_default()
}

/// By topic.
fn write(image: &Image, partitions: &Partitions) -> Vec<control::TopicPartitions> {
    let mut topics: Vec<control::TopicPartitions> = Vec::new();
    for id in partitions {
        match topics.last_mut() {
            Some(last) if last.topic_id == id.topic.as_bytes() => last.partitions.push(id.partition.0),
            _ => topics.push(control::TopicPartitions {
                topic_id: id.topic.as_bytes().to_vec(),
                partitions: vec![id.partition.0],
                topic: name_of(image, id.topic),
            }),
        }
    }
    topics
}

fn write_offset(image: &Image, id: TopicPartition, committed: &Committed) -> control::CommittedOffset {
    control::CommittedOffset {
        topic_id: id.topic.as_bytes().to_vec(),
        partition: id.partition.0,
        offset: committed.offset.0,
        leader_epoch: committed.leader_epoch.map(|epoch| epoch.0),
        metadata: committed.metadata.to_string(),
        committed_at: committed.committed_at.0,
        topic: name_of(image, id.topic),
    }
}

fn write_summary(group: &GroupSummary) -> control::GroupSummary {
    let state = match group.state {
        GroupState::Empty => control::GroupState::Empty,
        GroupState::Rebalancing => control::GroupState::Reconciling,
        GroupState::Stable => control::GroupState::Stable,
    };
    control::GroupSummary {
        group: group.group.to_string(),
        state: state.into(),
        generation: group.generation.0.max(0) as u32,
        members: group.members as u32,
        topics: group.topics.iter().map(ToString::to_string).collect(),
    }
}

fn write_description(
    context: &Context,
    image: &Image,
    group: &GroupDescription,
) -> control::DescribeGroupResponse {
    let now = crate::shard::Clock::now(&crate::shard::SystemClock::new()).timestamp;
    let empty_for = group.empty_since.map(|since| now.0.saturating_sub(since.0).max(0) as u64);
    let rebalancing_for = group.rebalancing_for.map(|time| time.as_millis() as u64);
    control::DescribeGroupResponse {
        group: Some(write_summary(&group.summary)),
        broker_id: context.identity.broker.0,
        assignor: group.assignor.name().to_owned(),
        protocol: group.summary.protocol.name().to_owned(),
        members: group.members.iter().map(|member| write_member(image, member)).collect(),
        offsets: group.offsets.iter().map(|(id, committed)| write_offset(image, *id, committed)).collect(),
        since_ms: rebalancing_for.or(empty_for),
    }
}

fn write_member(image: &Image, member: &MemberDescription) -> control::GroupMember {
    let about = &member.about;
    let text = |text: &Option<Arc<str>>| text.as_deref().unwrap_or_default().to_owned();
    let (revoking, revoking_for) = match &member.state {
        MemberState::Revoking { partitions, revoking_for } => (write(image, partitions), *revoking_for),
        _ => (Vec::new(), None),
    };
    let awaited = match &member.state {
        MemberState::Waiting { partitions } => partitions.as_slice(),
        _ => &[],
    };
    let awaited = awaited.iter().map(|(id, owner)| control::AwaitedPartition {
        topic_id: id.topic.as_bytes().to_vec(),
        partition: id.partition.0,
        topic: name_of(image, id.topic),
        owner: owner.to_string(),
    });
    control::GroupMember {
        member: member.member.to_string(),
        instance_id: text(&about.instance),
        rack: text(&about.rack),
        client_name: about.client.to_string(),
        host: about.host.to_string(),
        member_epoch: member.epoch.0,
        topics: about.topics.iter().map(ToString::to_string).collect(),
        assigned: write(image, &member.assigned),
        target: write(image, &member.target),
        revoking,
        revoking_for_ms: revoking_for.map(|time| time.as_millis() as u64),
        silent_for_ms: member.silent_for.map(|time| time.as_millis() as u64),
        session_timeout_ms: millis(about.session),
        rebalance_timeout_ms: millis(about.rebalance),
        awaited: awaited.collect(),
        is_away: member.state == MemberState::Away,
    }
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

fn invalid(message: &str) -> RequestError {
    RequestError::new(ErrorCode::InvalidRequest, message)
}

fn unexpected() -> RequestError {
    let message = format!("the coordinator on \"{OFFSETS_TOPIC}\" answered something else");
    RequestError::new(ErrorCode::Internal, message)
}

impl From<GroupRefusal> for RequestError {
    fn from(refusal: GroupRefusal) -> RequestError {
        RequestError::new(refusal.code(), refusal.to_string())
    }
}
