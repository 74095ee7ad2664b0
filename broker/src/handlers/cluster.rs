//! The cluster as its operators see and change it: who is there, who leads and holds what, and where it is to move.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quire_engine::controller::image::{self, BrokerState, Image, Operation, Topic};
use quire_engine::controller::{Reassign, Refusal, Request, Response, rebalance};
use quire_protocol::rpc::control;
use quire_protocol::rpc::control::{
    BrokerStatus, ClusterStatusResponse, DrainBrokerRequest, DrainBrokerResponse, ElectLeadersRequest,
    ElectLeadersResponse, PartitionMove, PlanRebalanceRequest, PlanRebalanceResponse, ReassignRequest,
    ReassignResponse, RemoveBrokerRequest, RemoveBrokerResponse, SuspectReplica,
};
use quire_protocol::{BrokerId, ErrorCode, PartitionIndex, TopicPartition, limits};

use super::{access, topics};
use crate::context::Context;
use crate::error::RequestError;
use crate::metadata;
use crate::net::connection::Session;

/// Most suspect replicas that one answer names; how many there are it says anyway.
const SUSPECTS_SHOWN: usize = 100;

/// Who is there, and how partitions stand.
///
/// # Errors
/// If that is not allowed.
pub(super) fn status(session: &Session) -> Result<ClusterStatusResponse, RequestError> {
    access::check(session, Operation::Administer, "")?;
    let context = &session.context;
    let (image, quorum) = (context.metadata.image(), context.metadata.quorum());
    let brokers = |nodes: &BTreeMap<u64, BrokerId>| {
        let brokers: BTreeSet<_> = nodes.values().map(|broker| broker.0).collect();
        brokers.into_iter().collect()
    };
    let suspects = suspects(context, &image);
    Ok(ClusterStatusResponse {
        controller_id: quorum.leader.map(|(_, broker)| broker.0),
        controller_term: quorum.term,
        voters: brokers(&quorum.voters),
        learners: brokers(&quorum.learners),
        suspect_count: suspects.len() as u32,
        suspects: suspects.into_iter().take(SUSPECTS_SHOWN).collect(),
        answered_by: context.identity.broker.0,
        ..status_of(&image)
    })
}

/// This broker's replicas that may lack what was acknowledged: those that say so themselves, and those that do not know
/// since their last stop. One of the latter that is in sync again has everything.
fn suspects(context: &Context, image: &Image) -> Vec<SuspectReplica> {
    let mut suspects = context.partitions.suspects();
    suspects.sort();
    let shown = suspects.into_iter().filter_map(|id| {
        let topic = image.topic(id.topic)?;
        let error = match context.partitions.find_replica(id) {
            Ok(partition) => partition.state().error(),
            Err(error) => Some(error),
        };
        let is_in_sync = topic.partition(id.partition)?.in_sync.contains(&context.identity.broker);
        let why = match error {
            Some(error) => error.message,
            None if is_in_sync => return None,
            None => "its last stop may have lost records".to_owned(),
        };
        Some(SuspectReplica { topic: topic.name.to_string(), partition: id.partition.0, why })
    });
    shown.collect()
}

fn status_of(image: &Image) -> ClusterStatusResponse {
    let mut brokers: BTreeMap<BrokerId, BrokerStatus> =
        image.brokers().map(|broker| (broker.id, status_of_broker(broker))).collect();
    let mut status = ClusterStatusResponse {
        cluster_id: image.cluster_id().unwrap_or_default().to_owned(),
        ..ClusterStatusResponse::default()
    };
    for partition in image.topics().flat_map(|topic| &topic.partitions) {
        status.partitions += 1;
        status.under_replicated += u32::from(partition.is_under_replicated());
        status.offline += u32::from(partition.leader.is_none());
        status.recovering += u32::from(partition.is_recovering);
        status.reassigning += u32::from(partition.is_reassigning());
        let preferred = partition.replicas.first();
        let is_able = preferred.is_some_and(|id| partition.in_sync.contains(id));
        status.unbalanced += u32::from(is_able && partition.leader.as_ref() != preferred);
        let mut count = |ids: &[BrokerId], one: fn(&mut BrokerStatus)| {
            for id in ids {
                brokers.entry(*id).and_modify(one);
            }
        };
        count(&partition.replicas, |broker| broker.replicas += 1);
        count(&partition.in_sync, |broker| broker.in_sync += 1);
        count(partition.leader.as_slice(), |broker| broker.leads += 1);
        count(preferred.map_or(&[], std::slice::from_ref), |broker| broker.preferred += 1);
    }
    status.brokers = brokers.into_values().collect();
    status
}

fn status_of_broker(broker: &image::Broker) -> BrokerStatus {
    let described = describe_broker(broker);
    let state = described.state;
    BrokerStatus { broker: Some(described), epoch: broker.epoch, state, ..BrokerStatus::default() }
}

/// A broker as clients are told of it.
pub(super) fn describe_broker(broker: &image::Broker) -> control::Broker {
    let state = match broker.state {
        BrokerState::Unfenced => control::BrokerState::Unfenced,
        BrokerState::Draining => control::BrokerState::Draining,
        BrokerState::Fenced => control::BrokerState::Fenced,
    };
    control::Broker {
        id: broker.id.0,
        host: broker.host.clone(),
        port: broker.port.into(),
        rack: broker.rack.clone(),
        state: state.into(),
    }
}

/// Moves leaderships away from a broker, or lets it lead again.
///
/// # Errors
/// If that is not allowed, or there is no such broker.
pub(super) async fn drain(
    session: &Session,
    request: DrainBrokerRequest,
) -> Result<DrainBrokerResponse, RequestError> {
    access::check(session, Operation::Administer, "")?;
    let metadata = &session.context.metadata;
    let broker = BrokerId(request.broker_id);
    let (epoch, state) = match metadata.image().broker(broker) {
        Some(known) => (known.epoch, known.state),
        None => return Err(Refusal::UnknownBroker { broker }.into()),
    };
    if request.undo {
        // One that is fenced is not heard of, and nobody's word changes that.
        if state == BrokerState::Draining {
            metadata.propose(Request::UnfenceBroker { broker, epoch }).await?;
            tracing::info!(%broker, by = session.principal, "the broker may lead again");
        }
        return Ok(DrainBrokerResponse { leaderships: 0 });
    }
    match metadata.propose(Request::DrainBroker { broker, epoch }).await? {
        Response::Draining { leaderships } => {
            tracing::info!(%broker, leaderships, by = session.principal, "the broker drains");
            Ok(DrainBrokerResponse { leaderships })
        }
        other => Err(topics::unexpected(&other)),
    }
}

/// Removes a broker that holds nothing from the cluster.
///
/// # Errors
/// If that is not allowed, or the broker holds something.
pub(super) async fn remove(
    session: &Session,
    request: RemoveBrokerRequest,
) -> Result<RemoveBrokerResponse, RequestError> {
    access::check(session, Operation::Administer, "")?;
    let broker = BrokerId(request.broker_id);
    if broker == session.context.identity.broker {
        let message = format!("broker {broker} answers this request; ask another one to remove it");
        return Err(RequestError::new(ErrorCode::NotPossible, message));
    }
    session.context.metadata.propose(Request::RemoveBroker { broker }).await?;
    tracing::info!(%broker, by = session.principal, "the broker was removed from the cluster");
    Ok(RemoveBrokerResponse {})
}

/// Plans what would have to move; changes nothing.
///
/// # Errors
/// If that is not allowed, or a broker does not exist.
pub(super) fn plan(
    session: &Session,
    request: &PlanRebalanceRequest,
) -> Result<PlanRebalanceResponse, RequestError> {
    access::check(session, Operation::Administer, "")?;
    let image = session.context.metadata.image();
    let without: BTreeSet<BrokerId> = request.without.iter().map(|id| BrokerId(*id)).collect();
    if let Some(unknown) = without.iter().find(|id| image.broker(**id).is_none()) {
        return Err(Refusal::UnknownBroker { broker: *unknown }.into());
    }
    let moves = rebalance::plan(&image, &without).into_iter().filter_map(|planned| {
        Some(PartitionMove {
            topic: image.topic(planned.partition.topic)?.name.to_string(),
            partition: planned.partition.partition.0,
            from: planned.from.iter().map(|id| id.0).collect(),
            to: planned.to.iter().map(|id| id.0).collect(),
        })
    });
    Ok(PlanRebalanceResponse { moves: moves.collect() })
}

/// Gives a partition other replicas, or gives that up.
///
/// # Errors
/// If that is not allowed, or the replicas can not be those.
pub(super) async fn reassign(
    session: &Session,
    request: ReassignRequest,
) -> Result<ReassignResponse, RequestError> {
    access::check(session, Operation::Administer, "")?;
    if request.replicas.len() > limits::REPLICAS_MAX {
        let message = format!("a partition has at most {} replicas", limits::REPLICAS_MAX);
        return Err(RequestError::new(ErrorCode::InvalidReplicaCount, message));
    }
    let topic = find(session, &request.topic)?;
    let partition = TopicPartition { topic: topic.id, partition: PartitionIndex(request.partition) };
    let replicas = (!request.give_up).then(|| request.replicas.into_iter().map(BrokerId).collect());
    let asked = Request::Reassign(Reassign { partition, replicas });
    match session.context.metadata.propose(asked).await? {
        Response::Partition { state, .. } => {
            tracing::info!(
                topic = %topic.name, partition = %state.index, by = session.principal, "the partition is reassigned"
            );
            Ok(ReassignResponse { partition: Some(metadata::assignment(&state)) })
        }
        other => Err(topics::unexpected(&other)),
    }
}

/// Has preferred leaders lead; or whoever is there, where nobody can lead without loss.
///
/// # Errors
/// If that is not allowed, or nobody is there.
pub(super) async fn elect(
    session: &Session,
    request: ElectLeadersRequest,
) -> Result<ElectLeadersResponse, RequestError> {
    access::check(session, Operation::Administer, "")?;
    let topic = if request.topic.is_empty() { None } else { Some(find(session, &request.topic)?) };
    let asked = match (&topic, request.unclean_partition) {
        (Some(topic), Some(partition)) => Request::ElectUnclean {
            partition: TopicPartition { topic: topic.id, partition: PartitionIndex(partition) },
        },
        (None, Some(_)) => {
            let message = "an unclean election names its topic";
            return Err(RequestError::new(ErrorCode::InvalidRequest, message));
        }
        (topic, None) => Request::ElectPreferred {
            partitions: topic.iter().flat_map(|topic| partitions_of(topic)).collect(),
        },
    };
    match session.context.metadata.propose(asked).await? {
        Response::Elected { partitions } => Ok(ElectLeadersResponse { elected: partitions }),
        Response::Partition { id, state } => {
            tracing::warn!(
                partition = %id, leader = ?state.leader, by = session.principal,
                "a leader was elected that may lack acknowledged records"
            );
            Ok(ElectLeadersResponse { elected: 1 })
        }
        other => Err(topics::unexpected(&other)),
    }
}

fn partitions_of(topic: &Topic) -> impl Iterator<Item = TopicPartition> + '_ {
    topic.partitions.iter().map(|partition| TopicPartition { topic: topic.id, partition: partition.index })
}

fn find(session: &Session, name: &str) -> Result<Arc<Topic>, RequestError> {
    let image = session.context.metadata.image();
    let unknown = || Refusal::UnknownTopic {
        name: name.chars().take(limits::TOPIC_NAME_BYTES_MAX).collect(),
        nearest: image.nearest_name(name),
    };
    Ok(image.topic_named(name).cloned().ok_or_else(unknown)?)
}
