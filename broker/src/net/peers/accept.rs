//! Connections that other brokers made: admits them, settles the version, and hands on what they ask.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prost::Message;
use quinn::{Connection, Incoming, RecvStream, SendStream, ServerConfig, VarInt};
use quire_protocol::rpc::PROTOCOL_VERSION;
use quire_protocol::rpc::peer::{self, Failure, HelloRequest, HelloResponse, request, response};
use quire_protocol::stream::{PREFIX_LEN, StreamKind};
use quire_protocol::{BrokerId, ErrorCode, limits, window};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::super::connection::close_code;
use super::lane::Lane;
use super::tls::PeerIdentity;
use super::{PeerService, Shared, message};

/// The connections that were accepted and have not ended.
pub(super) struct Accepted {
    connections: Mutex<BTreeMap<u64, (PeerIdentity, Connection)>>,
    next: AtomicU64,
}

/// One of them; leaves the list when dropped.
struct Entry<'a> {
    accepted: &'a Accepted,
    number: u64,
}

impl Accepted {
    pub(super) fn new() -> Accepted {
        Accepted { connections: Mutex::default(), next: AtomicU64::new(0) }
    }

    /// `None` if there are too many, of this broker or at all.
    fn enter(&self, identity: &PeerIdentity, connection: &Connection) -> Option<Entry<'_>> {
        let mut connections = self.lock();
        let of_one = connections.values().filter(|(other, _)| other.broker == identity.broker).count();
        if of_one >= limits::PEER_CONNECTIONS_OF_ONE_MAX || connections.len() >= limits::PEER_CONNECTIONS_MAX
        {
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        connections.insert(number, (identity.clone(), connection.clone()));
        Some(Entry { accepted: self, number })
    }

    pub(super) fn close_where(&self, is_meant: impl Fn(&PeerIdentity) -> bool) {
        for (identity, connection) in self.lock().values() {
            if is_meant(identity) {
                connection
                    .close(close_code(ErrorCode::NotAuthorized), b"this broker is not welcome any more");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, (PeerIdentity, Connection)>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.accepted.lock().remove(&self.number);
    }
}

/// How each lane's connections are carried: one stream, for hello, at first.
struct Carriage {
    control: Arc<ServerConfig>,
    data: Arc<ServerConfig>,
}

/// Accepts until the endpoint is closed. Runs on the control runtime.
pub(super) async fn accept_all(shared: Arc<Shared>, service: Arc<dyn PeerService>) {
    let config = |lane: Lane| {
        let tls = Arc::clone(&shared.tls.server);
        Arc::new(super::endpoint::server_config(tls, lane.transport(1)))
    };
    let carriage = Carriage { control: config(Lane::Control), data: config(Lane::Data) };
    let handshakes = Arc::new(Semaphore::new(limits::HANDSHAKES_MAX));
    while let Some(incoming) = shared.listening.accept().await {
        let Ok(handshake) = Arc::clone(&handshakes).try_acquire_owned() else {
            incoming.ignore();
            continue;
        };
        // Under pressure only addresses that answer get further: a forged one costs no more than this packet.
        if handshakes.available_permits() < limits::HANDSHAKES_MAX / 2 && incoming.may_retry() {
            let _ = incoming.retry();
            continue;
        }
        let (lane, runtime, config) = match Lane::of(&incoming.orig_dst_cid()) {
            Lane::Control => (Lane::Control, &shared.control, &carriage.control),
            Lane::Data => (Lane::Data, &shared.data, &carriage.data),
        };
        let (shared, service, config) = (Arc::clone(&shared), Arc::clone(&service), Arc::clone(config));
        runtime.spawn(async move {
            let Some(connection) = shake_hands(incoming, config).await else { return };
            drop(handshake);
            serve(&shared, service, lane, connection).await;
        });
    }
}

async fn shake_hands(incoming: Incoming, config: Arc<ServerConfig>) -> Option<Connection> {
    let address = incoming.remote_address();
    let connecting = incoming.accept_with(config).ok()?;
    let why = match timeout(limits::PEER_MESSAGE_TIME_MAX, connecting).await {
        Ok(Ok(connection)) => return Some(connection),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it took too long".to_owned(),
    };
    tracing::info!(%address, why, "a broker's handshake failed");
    None
}

async fn serve(shared: &Arc<Shared>, service: Arc<dyn PeerService>, lane: Lane, connection: Connection) {
    let address = connection.remote_address();
    let Some(identity) = PeerIdentity::of_connection(&connection) else {
        return connection.close(close_code(ErrorCode::NotAuthorized), b"no broker's certificate");
    };
    let from = identity.broker;
    if from == shared.broker {
        tracing::error!(
            %address,
            "another broker runs as broker {}: a data directory must not be copied and started twice",
            from.0
        );
        return connection.close(close_code(ErrorCode::NotAuthorized), b"I am that broker");
    }
    let Some(_entry) = shared.accepted.enter(&identity, &connection) else {
        tracing::warn!(%address, broker = from.0, "refused a broker's connection: it has too many");
        return connection.close(close_code(ErrorCode::LimitExceeded), b"too many connections");
    };
    connection.set_send_window(window::send_window_bytes(connection.rtt()));
    let greeted = timeout(limits::PEER_MESSAGE_TIME_MAX, greet(shared, lane, &connection)).await;
    if let Err(why) = greeted.unwrap_or_else(|_| Err("no hello came".to_owned())) {
        tracing::info!(%address, broker = from.0, why, "a broker's connection was refused");
        return connection.close(close_code(ErrorCode::InvalidRequest), b"the hello exchange failed");
    }
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(lane.streams_max()));
    tracing::debug!(%address, broker = from.0, ?lane, "a broker connected");
    let memory = Arc::new(Semaphore::new(limits::PEER_CONNECTION_BYTES));
    while let Ok((send, recv)) = connection.accept_bi().await {
        let (service, memory) = (Arc::clone(&service), Arc::clone(&memory));
        tokio::spawn(async move {
            match lane {
                Lane::Control => serve_request(&*service, from, &memory, send, recv).await,
                Lane::Data => serve_stream(&*service, from, send, recv).await,
            }
        });
    }
    tracing::debug!(%address, broker = from.0, ?lane, "a broker disconnected");
}

/// Settles the version. The caller is told why not, and has a moment to read it.
async fn greet(shared: &Shared, lane: Lane, connection: &Connection) -> Result<(), String> {
    let (mut send, mut recv) = connection.accept_bi().await.map_err(|error| error.to_string())?;
    expect_kind(&mut recv, StreamKind::Rpc).await?;
    let length = message::read_length(&mut recv, limits::HELLO_BYTES_MAX).await?;
    let bytes = message::read_body(&mut recv, length).await?;
    let request = peer::Request::decode(bytes).map_err(|error| error.to_string())?;
    let Some(request::Body::Hello(hello)) = request.body else {
        return Err("it did not say hello".to_owned());
    };
    let checked = check(shared, lane, &hello);
    let body = match &checked {
        Ok(()) => response::Body::Hello(HelloResponse {
            version: PROTOCOL_VERSION,
            features: 0,
            cluster_id: shared.cluster_id.to_string(),
            broker_id: shared.broker.0,
            software_version: env!("CARGO_PKG_VERSION").to_owned(),
        }),
        Err(failure) => response::Body::Failure(failure.clone()),
    };
    let response = message::encode_response(&peer::Response { body: Some(body) });
    send.write_all(&response).await.map_err(|error| error.to_string())?;
    let _ = send.finish();
    let Err(failure) = checked else { return Ok(()) };
    let _ = send.stopped().await;
    Err(failure.message)
}

fn check(shared: &Shared, lane: Lane, hello: &HelloRequest) -> Result<(), Failure> {
    if hello.cluster_id != *shared.cluster_id {
        let message =
            format!("this is cluster {}, the caller belongs to {}", shared.cluster_id, hello.cluster_id);
        return Err(Failure::new(ErrorCode::InvalidRequest, message));
    }
    if hello.version_min > PROTOCOL_VERSION || hello.version_max < PROTOCOL_VERSION {
        let message = format!(
            "this broker speaks version {PROTOCOL_VERSION} of the protocol between brokers, the caller {} to {}",
            hello.version_min, hello.version_max
        );
        return Err(Failure::new(ErrorCode::UnsupportedVersion, message));
    }
    if hello.lane != lane.number() {
        return Err(Failure::new(ErrorCode::InvalidRequest, "the connection was made for another lane"));
    }
    Ok(())
}

async fn expect_kind(recv: &mut RecvStream, expected: StreamKind) -> Result<(), String> {
    match read_kind(recv).await? {
        kind if kind == expected => Ok(()),
        kind => Err(format!("a {kind:?} stream where {expected:?} was expected")),
    }
}

async fn read_kind(recv: &mut RecvStream) -> Result<StreamKind, String> {
    let mut prefix = [0; PREFIX_LEN];
    recv.read_exact(&mut prefix).await.map_err(|error| error.to_string())?;
    StreamKind::from_prefix(prefix).map_err(|error| error.to_string())
}

async fn serve_request(
    service: &dyn PeerService,
    from: BrokerId,
    memory: &Semaphore,
    mut send: SendStream,
    mut recv: RecvStream,
) {
    let received = timeout(limits::PEER_MESSAGE_TIME_MAX, receive(memory, &mut recv)).await;
    let body = match received.unwrap_or_else(|_| Err("the request did not come in time".to_owned())) {
        Ok(request) => tokio::select! {
            body = service.serve(from, request) => body,
            // Nobody waits for the answer any more.
            _ = send.stopped() => return,
        },
        Err(why) => response::Body::Failure(Failure::new(ErrorCode::InvalidRequest, why)),
    };
    let bytes = message::encode_response(&bounded(body));
    match timeout(limits::PEER_MESSAGE_TIME_MAX, send.write_all(&bytes)).await {
        Ok(Ok(())) => drop(send.finish()),
        // A part of an answer must not pass for one.
        _ => drop(send.reset(close_code(ErrorCode::TimedOut))),
    }
}

async fn receive(memory: &Semaphore, recv: &mut RecvStream) -> Result<request::Body, String> {
    expect_kind(recv, StreamKind::Rpc).await?;
    let length = message::read_length(recv, limits::PEER_MESSAGE_BYTES_MAX).await?;
    let _memory = memory.acquire_many(length as u32).await.map_err(|error| error.to_string())?;
    let bytes = message::read_body(recv, length).await?;
    let request = peer::Request::decode(bytes).map_err(|error| error.to_string())?;
    match request.body {
        Some(request::Body::Hello(_)) => Err("hello was said before".to_owned()),
        Some(body) => Ok(body),
        None => Err("the request asks for nothing this broker knows".to_owned()),
    }
}

/// An error in place of an answer that no broker would take.
fn bounded(body: response::Body) -> peer::Response {
    let response = peer::Response { body: Some(body) };
    match response.encoded_len() {
        length if length <= limits::PEER_MESSAGE_BYTES_MAX => response,
        length => {
            let message = format!("the answer has {length} bytes");
            let failure = Failure::new(ErrorCode::LimitExceeded, message);
            peer::Response { body: Some(response::Body::Failure(failure)) }
        }
    }
}

async fn serve_stream(service: &dyn PeerService, from: BrokerId, mut send: SendStream, mut recv: RecvStream) {
    match timeout(limits::PEER_MESSAGE_TIME_MAX, read_kind(&mut recv)).await {
        Ok(Ok(kind)) if kind != StreamKind::Rpc => service.stream(from, kind, send, recv).await,
        _ => {
            let _ = recv.stop(close_code(ErrorCode::InvalidRequest));
            let _ = send.reset(close_code(ErrorCode::InvalidRequest));
        }
    }
}
