//! Creating, altering and deleting topics: asked of the controller, answered once it is so here.

use std::sync::Arc;

use quire_engine::controller::image::{Operation, Topic};
use quire_engine::controller::{AlterTopic, CreateTopic, Request, Response};
use quire_protocol::rpc::control::{
    AlterTopicRequest, AlterTopicResponse, CreateTopicRequest, CreateTopicResponse, DeleteTopicRequest,
    DeleteTopicResponse,
};
use quire_protocol::{ErrorCode, INTERNAL_TOPIC_PREFIX, limits};
use tokio::time::timeout;

use super::access;
use crate::context::Context;
use crate::error::RequestError;
use crate::metadata::{self, LogState};
use crate::net::connection::Session;

/// Creates a topic; answered when its partitions can be used.
///
/// # Errors
/// What the controller refuses.
pub(super) async fn create(
    session: &Session,
    request: CreateTopicRequest,
) -> Result<CreateTopicResponse, RequestError> {
    let context = &session.context;
    access::check(session, Operation::Manage, &request.name)?;
    check_own(&request.name, "is made by the brokers when it is needed")?;
    let validate_only = request.validate_only;
    let create = CreateTopic {
        name: request.name,
        partitions: request.partitions,
        replicas: Some(request.replicas).filter(|replicas| *replicas != 0),
        config: request.config.into_iter().collect(),
        validate_only,
    };
    let topic = propose_topic(context, Request::CreateTopic(create)).await?;
    if validate_only {
        return Ok(CreateTopicResponse {
            topic: Some(metadata::describe(&topic, &context.partitions, LogState::Omitted)),
        });
    }
    tracing::info!(
        topic = %topic.name, id = %topic.id, partitions = topic.partitions.len(), principal = session.principal,
        "topic created"
    );
    Ok(CreateTopicResponse { topic: Some(opened(context, &topic).await) })
}

/// Changes a topic; answered when new partitions can be used.
///
/// # Errors
/// What the controller refuses.
pub(super) async fn alter(
    session: &Session,
    request: AlterTopicRequest,
) -> Result<AlterTopicResponse, RequestError> {
    access::check(session, Operation::Manage, &request.name)?;
    if request.partitions != 0 {
        check_own(
            &request.name,
            "has as many partitions as it had first: what is in it is found by their count",
        )?;
    }
    let altered = request.set_config.keys().chain(&request.unset_config);
    for key in altered.filter(|key| OWN_SETTINGS.contains(&key.as_str())) {
        check_own(
            &request.name,
            &format!("loses what is committed with another {key} than it was made with"),
        )?;
    }
    let context = &session.context;
    let alter = AlterTopic {
        name: request.name,
        partitions: Some(request.partitions).filter(|partitions| *partitions != 0),
        set_config: request.set_config.into_iter().collect(),
        unset_config: request.unset_config,
    };
    let topic = propose_topic(context, Request::AlterTopic(alter)).await?;
    tracing::info!(topic = %topic.name, id = %topic.id, principal = session.principal, "topic altered");
    Ok(AlterTopicResponse { topic: Some(opened(context, &topic).await) })
}

/// Deletes a topic; its records cannot be read any more when this is answered, its files follow.
///
/// # Errors
/// What the controller refuses.
pub(super) async fn delete(
    session: &Session,
    request: DeleteTopicRequest,
) -> Result<DeleteTopicResponse, RequestError> {
    access::check(session, Operation::Manage, &request.name)?;
    check_own(&request.name, "holds every group's offsets; delete groups by themselves: quire group delete")?;
    let name = request.name.clone();
    let response = session.context.metadata.propose(Request::DeleteTopic { name: request.name }).await?;
    match response {
        Response::TopicDeleted { id } => {
            tracing::info!(topic = name, %id, principal = session.principal, "topic deleted");
            Ok(DeleteTopicResponse {})
        }
        other => Err(unexpected(&other)),
    }
}

/// What a topic of the brokers' own keeps as they made it: with anything else it may lose what was acknowledged.
const OWN_SETTINGS: &[&str] = &[
    "cleanup.policy",
    "delete.retention.ms",
    "retention.bytes",
    "retention.ms",
    "sync",
    "sync.interval.ms",
    "unclean.leader.election.enable",
];

/// Refuses what is not to be done to a topic of the brokers' own.
fn check_own(name: &str, why: &str) -> Result<(), RequestError> {
    if !name.starts_with(INTERNAL_TOPIC_PREFIX) {
        return Ok(());
    }
    let message = format!(
        "topics whose names begin with \"{INTERNAL_TOPIC_PREFIX}\" are the brokers' own: \"{name}\" {why}"
    );
    Err(RequestError::new(ErrorCode::NotPossible, message))
}

async fn propose_topic(context: &Context, request: Request) -> Result<Arc<Topic>, RequestError> {
    match context.metadata.propose(request).await? {
        Response::Topic(topic) => Ok(topic),
        other => Err(unexpected(&other)),
    }
}

/// The topic, once its partitions are open, and known to be held here. One whose partitions take long is described as it is then: the change is
/// made, and the partitions say for themselves that they are being opened.
async fn opened(context: &Context, topic: &Topic) -> quire_protocol::rpc::control::Topic {
    if timeout(limits::MESSAGE_TIME_MAX / 2, context.partitions.opened_and_held(topic.id)).await.is_err() {
        tracing::warn!(topic = %topic.name, "partitions are still being opened");
    }
    metadata::describe(topic, &context.partitions, LogState::Included)
}

pub(crate) fn unexpected(response: &Response) -> RequestError {
    RequestError::new(ErrorCode::Internal, format!("the controller answered something else: {response:?}"))
}
