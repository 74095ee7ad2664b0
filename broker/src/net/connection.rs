//! Connections and their streams: admits, authenticates, and hands each stream to the handler of its kind.
//!
//! ```text
//! endpoint ─► admit ─► handshake ─► hello ─► streams ─► handlers/{rpc, produce, fetch}
//! ```
//! Everything a client can hold without doing anything has a deadline or a limit: handshakes, connections, the time to
//! the hello exchange, the time from a stream's first byte to the end of its header. An error ends its stream with a
//! code, never the connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream, VarInt};
use quire_protocol::stream::{
    ConsumeHeader, PREFIX_LEN, PRODUCE_VERSION_NUMBERED, ProduceHeader, StreamKind,
};
use quire_protocol::{ErrorCode, limits, window};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::permits::StreamPermits;
use super::{message, tls};
use crate::context::Context;
use crate::error::RequestError;
use crate::handlers;

/// One client's connection, as its streams see it.
pub(crate) struct Session {
    pub(crate) context: Arc<Context>,
    /// Who is at the other end.
    pub(crate) principal: String,
    /// One permit for each read from the disk that its consumers have in hand.
    pub(crate) cold_reads: Semaphore,
    /// Its share of the produce memory, for batches of which a part is still to come (bytes).
    pub(crate) receiving: Semaphore,
    /// Its share of the memory for control messages (bytes).
    pub(crate) rpc_memory: Semaphore,
    connection: Connection,
    permits: StreamPermits,
    greeted: AtomicBool,
}

impl Session {
    /// Where the client is, for people.
    pub(crate) fn remote_host(&self) -> String {
        self.connection.remote_address().ip().to_string()
    }

    /// Marks the hello exchange as done, which permits everything else.
    pub(crate) fn greet(&self) {
        if let Some(first) = self.permits.greeted() {
            self.connection.set_max_concurrent_bi_streams(VarInt::from_u32(first));
        }
        self.greeted.store(true, Ordering::Release);
    }

    /// Whether the hello exchange is done.
    pub(crate) fn is_greeted(&self) -> bool {
        self.greeted.load(Ordering::Acquire)
    }
}

/// Accepts connections until the endpoint is closed.
pub(crate) async fn accept_all(endpoint: Endpoint, context: Arc<Context>) {
    let connections = Arc::new(Semaphore::new(context.config.network.connections_max));
    let handshakes = Arc::new(Semaphore::new(limits::HANDSHAKES_MAX));
    while let Some(incoming) = endpoint.accept().await {
        let Ok(handshake) = Arc::clone(&handshakes).try_acquire_owned() else {
            context.metrics.connections_refused.increment(1);
            incoming.ignore();
            continue;
        };
        // Under pressure only addresses that answer get further: a forged one costs no more than this packet.
        if handshakes.available_permits() < limits::HANDSHAKES_MAX / 2 && incoming.may_retry() {
            let _ = incoming.retry();
            continue;
        }
        match Arc::clone(&connections).try_acquire_owned() {
            Ok(slot) if !context.stopping.is_requested() => {
                tokio::spawn(serve(incoming, Arc::clone(&context), Slots { _connection: slot, handshake }));
            }
            _ => {
                context.metrics.connections_refused.increment(1);
                incoming.refuse();
            }
        }
    }
}

/// What a connection occupies.
struct Slots {
    _connection: OwnedSemaphorePermit,
    handshake: OwnedSemaphorePermit,
}

async fn serve(incoming: Incoming, context: Arc<Context>, slots: Slots) {
    let address = incoming.remote_address();
    let Some(connection) = shake_hands(incoming, &context).await else { return };
    let Slots { _connection, handshake } = slots;
    drop(handshake);
    if tls::is_joining(&connection) {
        match &context.gate {
            Some(gate) => gate.serve(connection).await,
            None => connection.close(close_code(ErrorCode::InvalidRequest), b"this broker is in no cluster"),
        }
        return;
    }
    let principal = match admit(&connection, &context) {
        Ok(principal) => principal,
        Err(why) => {
            tracing::warn!(%address, why, "refused a client");
            context.metrics.handshakes_failed.increment(1);
            connection.close(close_code(ErrorCode::NotAuthorized), why.as_bytes());
            return;
        }
    };
    tracing::debug!(%address, principal, "client connected");
    connection.set_send_window(window::send_window_bytes(connection.rtt()));
    let _alive = context.connections.enter();
    let receiving = context.config.memory.produce_bytes / limits::PRODUCE_MEMORY_SHARES;
    let session = Arc::new(Session {
        context,
        principal,
        cold_reads: Semaphore::new(limits::COLD_READS_PER_CONNECTION),
        // The largest batch must fit, or it could never be received.
        receiving: Semaphore::new(receiving.max(limits::BATCH_BYTES_MAX)),
        rpc_memory: Semaphore::new(limits::RPC_CONNECTION_BYTES),
        connection: connection.clone(),
        permits: StreamPermits::new(),
        greeted: AtomicBool::new(false),
    });
    serve_streams(&session, &connection).await;
    tracing::debug!(%address, "client disconnected");
}

/// Who a client is, if it may be here.
fn admit(connection: &Connection, context: &Context) -> Result<String, &'static str> {
    if tls::serial(connection).is_some_and(|serial| context.revoked.contains(&serial)) {
        return Err("the certificate is revoked");
    }
    let principal = tls::principal(connection).ok_or("the certificate has no common name")?;
    // Where brokers can join, the handshake demands nothing.
    let is_anonymous = connection.peer_identity().is_none();
    match is_anonymous && !context.config.tls.anonymous {
        true => Err("a client certificate of the cluster's authority is needed"),
        false => Ok(principal),
    }
}

async fn shake_hands(incoming: Incoming, context: &Context) -> Option<Connection> {
    let address = incoming.remote_address();
    let connecting = incoming.accept().ok()?;
    let why = match timeout(limits::HELLO_TIME_MAX, connecting).await {
        Ok(Ok(connection)) => return Some(connection),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it took too long".to_owned(),
    };
    context.metrics.handshakes_failed.increment(1);
    tracing::info!(%address, why, "a client's handshake failed");
    None
}

/// Serves streams until the connection ends.
async fn serve_streams(session: &Arc<Session>, connection: &Connection) {
    let hello_deadline = tokio::time::sleep(limits::HELLO_TIME_MAX);
    tokio::pin!(hello_deadline);
    loop {
        tokio::select! {
            accepted = connection.accept_bi() => match accepted {
                Ok((send, recv)) => spawn_stream(session, send, recv),
                Err(_) => return,
            },
            () = &mut hello_deadline, if !session.is_greeted() => {
                if session.is_greeted() { continue }
                connection.close(close_code(ErrorCode::TimedOut), b"no hello came");
                return;
            }
        }
    }
}

fn spawn_stream(session: &Arc<Session>, send: SendStream, recv: RecvStream) {
    let session = Arc::clone(session);
    if let Some(more) = session.permits.opened() {
        session.connection.set_max_concurrent_bi_streams(VarInt::from_u32(more));
    }
    let alive = session.context.streams.enter();
    tokio::spawn(async move {
        serve_stream(&session, send, recv).await;
        session.permits.ended();
        drop(alive);
    });
}

/// Serves a stream, and sees its end delivered where the connection is about to be closed.
async fn serve_stream(session: &Arc<Session>, mut send: SendStream, mut recv: RecvStream) {
    if let Err(error) = dispatch(session, &mut send, &mut recv).await {
        message::fail(&mut send, &mut recv, &error).await;
    }
    // A stream that ended by a reset, or with its connection, needs none.
    let _ = send.finish();
    if session.context.stopping.is_requested() {
        // An acknowledgement that is lost with the connection is a batch sent twice. The shutdown bounds the wait.
        let _ = send.stopped().await;
    }
}

/// Reads what every stream starts with, and lets the handler of its kind do the rest.
///
/// Handlers are boxed: thousands of consumers wait for records, and each must cost no more than its own future.
async fn dispatch(
    session: &Arc<Session>,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Result<(), RequestError> {
    let (kind, version) = match timeout(limits::MESSAGE_TIME_MAX, read_kind(recv)).await {
        Ok(Ok(Some(prefix))) => prefix,
        Ok(Ok(None)) => return Ok(()),
        Ok(Err(error)) => return Err(error),
        Err(_) => return Err(message::too_slow("the stream's first bytes")),
    };
    if kind == StreamKind::Rpc {
        Box::pin(handlers::rpc::serve(session, send, recv)).await;
        return Ok(());
    }
    if !session.is_greeted() {
        let message = "the first request of a connection must be hello";
        return Err(RequestError::new(ErrorCode::InvalidRequest, message));
    }
    if session.context.stopping.is_requested() {
        return Err(RequestError::shutting_down());
    }
    match kind {
        StreamKind::Produce => match read_produce_header(recv, version).await? {
            Some(header) => Box::pin(handlers::produce::serve(session, header, send, recv)).await,
            None => Ok(()),
        },
        StreamKind::Replicate => Err(RequestError::new(
            ErrorCode::NotAuthorized,
            "only brokers replicate, over their own connections",
        )),
        StreamKind::Consume | StreamKind::Rpc => {
            match message::read_header::<{ ConsumeHeader::LEN }>(recv).await? {
                Some(header) => Box::pin(handlers::fetch::serve(session, &header, send, recv)).await,
                None => Ok(()),
            }
        }
    }
}

/// `None` if the stream or its connection is gone.
async fn read_kind(recv: &mut RecvStream) -> Result<Option<(StreamKind, u8)>, RequestError> {
    let mut prefix = [0; PREFIX_LEN];
    if recv.read_exact(&mut prefix).await.is_err() {
        return Ok(None);
    }
    match StreamKind::with_version(prefix) {
        Ok(prefix) => Ok(Some(prefix)),
        Err(error) => Err(message::malformed(&error)),
    }
}

/// `None` if the stream or its connection is gone.
async fn read_produce_header(
    recv: &mut RecvStream,
    version: u8,
) -> Result<Option<ProduceHeader>, RequestError> {
    let decoded = if version == PRODUCE_VERSION_NUMBERED {
        message::read_header(recv).await?.map(|header| ProduceHeader::decode_numbered(&header))
    } else {
        message::read_header(recv).await?.map(|header| ProduceHeader::decode(&header))
    };
    decoded.transpose().map_err(|error| message::malformed(&error))
}

/// Connections are closed with the number of an error, 0 for a regular end.
pub(crate) fn close_code(code: ErrorCode) -> VarInt {
    VarInt::from_u32(code.number().into())
}
