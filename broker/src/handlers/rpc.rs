//! One control request and its response: length, message, and the deadline for both.
//!
//! Both are accounted for while they are held: first with their connection, so that a client that stalls keeps only
//! itself waiting, then with the broker. A request's memory is returned before its answer's is taken.

use std::sync::Arc;

use prost::Message;
use quinn::{RecvStream, SendStream};
use quire_protocol::rpc::control::{Request, Response, request, response};
use quire_protocol::rpc::decode_request;
use quire_protocol::{ErrorCode, limits};
use tokio::sync::{AcquireError, SemaphorePermit};
use tokio::time::timeout;

use super::{acl, cluster, groups, join, metadata, offsets, producers, topics};
use crate::error::RequestError;
use crate::net::connection::{Session, close_code};
use crate::net::message;

/// Serves one request.
pub(crate) async fn serve(session: &Arc<Session>, send: &mut SendStream, recv: &mut RecvStream) {
    let received = timeout(limits::MESSAGE_TIME_MAX, receive(session, recv)).await;
    let outcome = match received.unwrap_or_else(|_| Err(message::too_slow("the request"))) {
        Ok(None) => return,
        Ok(Some((request, _memory))) => answer(session, request).await,
        Err(error) => Err(error),
    };
    let metrics = &session.context.metrics;
    metrics.requests.increment(1);
    if outcome.is_err() {
        metrics.requests_failed.increment(1);
    }
    let body = outcome.unwrap_or_else(|error| response::Body::Error(error.into()));
    let written = timeout(limits::MESSAGE_TIME_MAX, async {
        let response = bounded(body);
        let _memory = Memory::of_answer(session, response.encoded_len()).await;
        send.write_all(&encode(&response)).await
    });
    if written.await.is_err() {
        // A part of an answer must not pass for one.
        let _ = send.reset(close_code(ErrorCode::TimedOut));
    }
}

/// Reads a request; `None` if the client is gone.
async fn receive<'a>(
    session: &'a Session,
    recv: &mut RecvStream,
) -> Result<Option<(Request, Memory<'a>)>, RequestError> {
    let mut length = [0; 4];
    if recv.read_exact(&mut length).await.is_err() {
        return Ok(None);
    }
    let length = u32::from_le_bytes(length) as usize;
    let limit = if session.is_greeted() { limits::RPC_BYTES_MAX } else { limits::HELLO_BYTES_MAX };
    if length > limit {
        let message = format!("a request of {length} bytes exceeds the limit of {limit}");
        return Err(RequestError::new(ErrorCode::InvalidRequest, message));
    }
    let memory = Memory::of_request(session, length).await?;
    let mut bytes = vec![0; length];
    if recv.read_exact(&mut bytes).await.is_err() {
        return Ok(None);
    }
    match decode_request(&bytes) {
        Ok(request) => Ok(Some((request, memory))),
        Err(error) => Err(RequestError::new(ErrorCode::InvalidRequest, error.to_string())),
    }
}

async fn answer(session: &Arc<Session>, request: Request) -> Result<response::Body, RequestError> {
    use {request::Body as Asked, response::Body as Answered};
    let context = &session.context;
    let asked = request.body.ok_or_else(|| invalid("the request asks for nothing this broker knows"))?;
    let asked = match asked {
        Asked::Hello(hello) => return metadata::hello(session, &hello).map(Answered::Hello),
        _ if !session.is_greeted() => return Err(invalid("the first request of a connection must be hello")),
        _ if context.stopping.is_requested() => return Err(RequestError::shutting_down()),
        asked => asked,
    };
    Ok(match asked {
        Asked::Hello(_) => return Err(invalid("hello was said before")),
        Asked::DescribeCluster(_) => Answered::DescribeCluster(metadata::describe_cluster(context)),
        Asked::ListTopics(_) => Answered::ListTopics(metadata::list_topics(session)),
        Asked::DescribeTopics(asked) => Answered::DescribeTopics(metadata::describe_topics(session, &asked)?),
        Asked::CreateTopic(asked) => Answered::CreateTopic(topics::create(session, asked).await?),
        Asked::AlterTopic(asked) => Answered::AlterTopic(topics::alter(session, asked).await?),
        Asked::DeleteTopic(asked) => Answered::DeleteTopic(topics::delete(session, asked).await?),
        Asked::CreateJoinToken(asked) => Answered::CreateJoinToken(join::create_token(session, asked).await?),
        Asked::ListOffsets(asked) => Answered::ListOffsets(offsets::list(session, asked).await?),
        Asked::ClusterStatus(_) => Answered::ClusterStatus(cluster::status(session)?),
        Asked::DrainBroker(asked) => Answered::DrainBroker(cluster::drain(session, asked).await?),
        Asked::RemoveBroker(asked) => Answered::RemoveBroker(cluster::remove(session, asked).await?),
        Asked::PlanRebalance(asked) => Answered::PlanRebalance(cluster::plan(session, &asked)?),
        Asked::Reassign(asked) => Answered::Reassign(cluster::reassign(session, asked).await?),
        Asked::ElectLeaders(asked) => Answered::ElectLeaders(cluster::elect(session, asked).await?),
        Asked::ChangeAcl(asked) => Answered::ChangeAcl(acl::change(session, asked).await?),
        Asked::ListAcls(_) => Answered::ListAcls(acl::list(session)?),
        Asked::FindCoordinator(asked) => {
            Answered::FindCoordinator(groups::find_coordinator(session, asked).await?)
        }
        Asked::GroupHeartbeat(asked) => Answered::GroupHeartbeat(groups::heartbeat(session, asked).await?),
        Asked::CommitOffsets(asked) => Answered::CommitOffsets(groups::commit(session, asked).await?),
        Asked::FetchOffsets(asked) => Answered::FetchOffsets(groups::fetch(session, asked).await?),
        Asked::ListGroups(_) => Answered::ListGroups(groups::list(session).await),
        Asked::DescribeGroup(asked) => Answered::DescribeGroup(groups::describe(session, asked).await?),
        Asked::ResetOffsets(asked) => Answered::ResetOffsets(groups::reset(session, asked).await?),
        Asked::DeleteGroup(asked) => Answered::DeleteGroup(groups::delete(session, asked).await?),
        Asked::InitProducer(_) => Answered::InitProducer(producers::init(context).await?),
    })
}

fn invalid(message: &str) -> RequestError {
    RequestError::new(ErrorCode::InvalidRequest, message)
}

/// Room for one message, until it is dropped.
struct Memory<'a> {
    _of_connection: SemaphorePermit<'a>,
    /// `None` before the hello exchange: so little, and so few, that the connection's own bound is enough. Nobody is
    /// kept from saying hello by what others ask for.
    _of_broker: Option<SemaphorePermit<'a>>,
}

impl<'a> Memory<'a> {
    async fn of_request(session: &'a Session, bytes: usize) -> Result<Memory<'a>, RequestError> {
        let taken = match session.is_greeted() {
            true => Memory::take(session, bytes).await,
            false => session
                .rpc_memory
                .acquire_many(bytes as u32)
                .await
                .map(|permit| Memory { _of_connection: permit, _of_broker: None }),
        };
        taken.map_err(|_| RequestError::shutting_down())
    }

    /// `None` only if the broker is gone.
    async fn of_answer(session: &'a Session, bytes: usize) -> Option<Memory<'a>> {
        // An answer that fits what is sent before hello is nothing to wait for.
        if bytes <= limits::HELLO_BYTES_MAX {
            return None;
        }
        Memory::take(session, bytes).await.ok()
    }

    /// The connection's share comes first: who waits for it holds nothing of what others need.
    async fn take(session: &'a Session, bytes: usize) -> Result<Memory<'a>, AcquireError> {
        let of_connection = session.rpc_memory.acquire_many(bytes as u32).await?;
        let of_broker = session.context.memory.rpc.acquire_many(bytes as u32).await?;
        Ok(Memory { _of_connection: of_connection, _of_broker: Some(of_broker) })
    }
}

/// An error in place of an answer that no client would take.
fn bounded(body: response::Body) -> Response {
    let response = Response { body: Some(body) };
    if response.encoded_len() <= limits::RPC_BYTES_MAX {
        return response;
    }
    let message = format!("the answer has {} bytes; ask for less at once", response.encoded_len());
    let error = RequestError::new(ErrorCode::LimitExceeded, message);
    Response { body: Some(response::Body::Error(error.into())) }
}

/// Length and message.
fn encode(response: &Response) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + response.encoded_len());
    bytes.extend_from_slice(&(response.encoded_len() as u32).to_le_bytes());
    response.encode(&mut bytes).expect("a vector grows as needed");
    bytes
}
