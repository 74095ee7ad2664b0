//! Hello, and what the cluster and its topics look like. Answered from the image, without asking anybody.

use quire_protocol::rpc::PROTOCOL_VERSION;
use quire_protocol::rpc::control::{
    DescribeClusterResponse, DescribeTopicsRequest, DescribeTopicsResponse, HelloRequest, HelloResponse,
    ListTopicsResponse,
};
use quire_protocol::{ErrorCode, limits};

use super::{access, cluster};
use crate::context::Context;
use crate::error::RequestError;
use crate::metadata::{self, LogState};
use crate::net::connection::Session;

/// Most names in a request whose unknown ones are answered with the nearest known one.
const SUGGESTED_NAMES_MAX: usize = 16;

/// Settles the version, and permits everything else on the connection.
///
/// # Errors
/// If the client speaks no version that the broker does.
pub(super) fn hello(session: &Session, request: &HelloRequest) -> Result<HelloResponse, RequestError> {
    if request.version_min > PROTOCOL_VERSION || request.version_max < PROTOCOL_VERSION {
        let message = format!(
            "the broker speaks protocol version {PROTOCOL_VERSION}, the client {} to {}",
            request.version_min, request.version_max
        );
        return Err(RequestError::new(ErrorCode::UnsupportedVersion, message));
    }
    session.greet();
    let identity = &session.context.identity;
    tracing::debug!(
        client = request.client_name,
        version = request.client_version,
        principal = session.principal,
        "client said hello"
    );
    Ok(HelloResponse {
        version: PROTOCOL_VERSION,
        cluster_id: identity.cluster_id.clone(),
        broker_id: identity.broker.0,
        broker_version: env!("CARGO_PKG_VERSION").to_owned(),
        principal: session.principal.clone(),
    })
}

pub(super) fn describe_cluster(context: &Context) -> DescribeClusterResponse {
    let image = context.metadata.image();
    let brokers = image.brokers().map(cluster::describe_broker);
    DescribeClusterResponse {
        cluster_id: context.identity.cluster_id.clone(),
        // 0 while nobody leads the metadata.
        controller_id: context.metadata.quorum().leader.map_or(0, |(_, broker)| broker.0),
        brokers: brokers.collect(),
    }
}

/// Those that the principal has any right on.
pub(super) fn list_topics(session: &Session) -> ListTopicsResponse {
    let image = session.context.metadata.image();
    let visible = image.topics().filter(|topic| access::may_look(&image, &session.principal, &topic.name));
    let mut topics: Vec<_> = visible.map(|topic| metadata::summary(topic)).collect();
    topics.sort_by(|a, b| a.name.cmp(&b.name));
    ListTopicsResponse { topics }
}

/// Describes each topic asked for; an unknown one does not fail the others.
///
/// # Errors
/// If the same answer could not be sent: more partitions are asked for than one response holds.
pub(super) fn describe_topics(
    session: &Session,
    request: &DescribeTopicsRequest,
) -> Result<DescribeTopicsResponse, RequestError> {
    let context = &session.context;
    let may_look = |image: &_, name: &str| access::may_look(image, &session.principal, name);
    let image = context.metadata.image();
    let log_state = if request.with_log_state { LogState::Included } else { LogState::Omitted };
    let asked = request.names.iter().filter_map(|name| image.topic_named(name));
    let partitions: usize = asked.map(|topic| topic.partitions.len()).sum();
    // Held against the limit before the answer is built, so that a name repeated thousands of times costs nothing.
    if partitions > limits::BROKER_PARTITIONS_MAX as usize {
        let message = format!("the topics have {partitions} partitions together; ask for fewer at once");
        return Err(RequestError::new(ErrorCode::LimitExceeded, message));
    }
    // A name is held against all there are: worth it for one that was typed, not for thousands from a list.
    let is_typed = request.names.len() <= SUGGESTED_NAMES_MAX;
    let suggestion = |name: &str| {
        let nearest = is_typed.then(|| image.nearest_name(name)).flatten();
        nearest.filter(|nearest| may_look(&image, nearest))
    };
    let topics = request.names.iter().map(|name| match image.topic_named(name) {
        _ if !may_look(&image, name) => {
            metadata::refused(name, access::may_not_look(&session.principal, name))
        }
        Some(topic) => metadata::describe(topic, &context.partitions, log_state),
        None => metadata::unknown(name, suggestion(name).as_deref()),
    });
    Ok(DescribeTopicsResponse { topics: topics.collect() })
}
