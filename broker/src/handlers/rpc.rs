//! One control request and its response: length, message, and the deadline for both.

use std::sync::Arc;

use prost::Message;
use quinn::{RecvStream, SendStream};
use quire_protocol::rpc::control::{Request, Response, request, response};
use quire_protocol::rpc::decode_request;
use quire_protocol::{ErrorCode, limits};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::{metadata, offsets, topics};
use crate::error::RequestError;
use crate::net::connection::{Session, close_code};
use crate::net::message;

/// Serves one request.
pub(crate) async fn serve(session: &Arc<Session>, send: &mut SendStream, recv: &mut RecvStream) {
    let received = timeout(limits::MESSAGE_TIME_MAX, receive(session, recv)).await;
    // The memory is held until the answer is written.
    let (outcome, _memory) = match received.unwrap_or_else(|_| Err(message::too_slow("the request"))) {
        Ok(None) => return,
        Ok(Some((request, memory))) => (answer(session, request).await, Some(memory)),
        Err(error) => (Err(error), None),
    };
    let metrics = &session.context.metrics;
    metrics.requests.increment(1);
    if outcome.is_err() {
        metrics.requests_failed.increment(1);
    }
    let body = outcome.unwrap_or_else(|error| response::Body::Error(error.into()));
    if timeout(limits::MESSAGE_TIME_MAX, send.write_all(&encode(body))).await.is_err() {
        // A part of an answer must not pass for one.
        let _ = send.reset(close_code(ErrorCode::TimedOut));
    }
}

/// Reads a request; `None` if the client is gone.
async fn receive(
    session: &Session,
    recv: &mut RecvStream,
) -> Result<Option<(Request, OwnedSemaphorePermit)>, RequestError> {
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
    let memory = Arc::clone(&session.context.memory.rpc).acquire_many_owned(length as u32).await;
    let memory = memory.map_err(|_| RequestError::shutting_down())?;
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
        Asked::ListTopics(_) => Answered::ListTopics(metadata::list_topics(context)),
        Asked::DescribeTopics(asked) => Answered::DescribeTopics(metadata::describe_topics(context, &asked)?),
        Asked::CreateTopic(asked) => Answered::CreateTopic(topics::create(session, asked).await?),
        Asked::AlterTopic(asked) => Answered::AlterTopic(topics::alter(session, asked).await?),
        Asked::DeleteTopic(asked) => Answered::DeleteTopic(topics::delete(session, asked).await?),
        Asked::ListOffsets(asked) => Answered::ListOffsets(offsets::list(context, asked).await?),
    })
}

fn invalid(message: &str) -> RequestError {
    RequestError::new(ErrorCode::InvalidRequest, message)
}

/// Length and message; an error in place of an answer that no client would take.
fn encode(body: response::Body) -> Vec<u8> {
    let mut response = Response { body: Some(body) };
    if response.encoded_len() > limits::RPC_BYTES_MAX {
        let message = format!("the answer has {} bytes; ask for less at once", response.encoded_len());
        let error = RequestError::new(ErrorCode::LimitExceeded, message);
        response = Response { body: Some(response::Body::Error(error.into())) };
    }
    let mut bytes = Vec::with_capacity(4 + response.encoded_len());
    bytes.extend_from_slice(&(response.encoded_len() as u32).to_le_bytes());
    response.encode(&mut bytes).expect("a vector grows as needed");
    bytes
}
