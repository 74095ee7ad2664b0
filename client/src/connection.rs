//! Connections to brokers: one to each, made when it is needed, made again when it is lost.
//!
//! A [`Link`] is the way to one broker. While the pause after a failed attempt lasts its circuit is open: whoever asks
//! gets the last failure at once, so that a dead broker costs its callers nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use prost::Message;
use quinn::{ConnectionError, RecvStream, SendStream};
use quire_protocol::rpc::PROTOCOL_VERSION;
use quire_protocol::rpc::control::{self, HelloResponse, request, response};
use quire_protocol::stream::StreamKind;
use quire_protocol::{BrokerId, ErrorCode, limits, window};
use tokio::time::timeout;

use crate::config::{Address, ClientConfig};
use crate::error::Error;
use crate::retry::{Jitter, Retry};
use crate::streams::{StreamPermit, StreamPool};
use crate::transport::{ConnectError, Transport};

/// An established connection whose hello exchange is done.
#[derive(Debug)]
pub(crate) struct Connection {
    quic: quinn::Connection,
    address: Arc<str>,
    config: Arc<ClientConfig>,
    pub(crate) greeting: HelloResponse,
    /// What its partitions share.
    pub(crate) streams: Arc<StreamPool>,
}

impl Connection {
    /// Asks and waits for the answer. `what` names the request in errors.
    pub(crate) async fn rpc(&self, what: &'static str, body: request::Body) -> Result<response::Body, Error> {
        let after = self.config.request_timeout;
        match timeout(after, exchange(&self.quic, &self.address, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::TimedOut { address: self.address.to_string(), what, after }),
        }
    }

    /// The right to a stream that a consumer keeps.
    ///
    /// # Errors
    /// If this connection's consumers have as many as they may.
    pub(crate) async fn stream_for_consuming(&self) -> Result<StreamPermit, Error> {
        let permit = self.streams.for_consuming().await;
        permit.map_err(|limit| Error::TooManyPartitions { address: self.address.to_string(), limit })
    }

    /// Opens a stream; its kind is yet to be written.
    pub(crate) async fn open(&self) -> Result<(SendStream, RecvStream), Error> {
        self.quic.open_bi().await.map_err(|error| self.lost(&error))
    }

    /// The error for a connection that ended so.
    pub(crate) fn lost(&self, error: &ConnectionError) -> Error {
        connection_error(&self.address, error)
    }

    /// The error for an answer that is none of this protocol.
    pub(crate) fn protocol(&self, why: impl ToString) -> Error {
        Error::Protocol { address: self.address.to_string(), why: why.to_string() }
    }

    /// The error for a stream that ended without its last message.
    pub(crate) fn stream_lost(&self, why: impl ToString) -> Error {
        match self.quic.close_reason() {
            Some(reason) => self.lost(&reason),
            None => Error::ConnectionLost { address: self.address.to_string(), why: why.to_string() },
        }
    }

    /// Who is at its other end.
    pub(crate) fn broker_id(&self) -> BrokerId {
        BrokerId(self.greeting.broker_id)
    }

    fn is_open(&self) -> bool {
        self.quic.close_reason().is_none()
    }
}

/// The way to one broker.
#[derive(Debug)]
pub(crate) struct Link {
    address: Address,
    transport: Arc<Transport>,
    config: Arc<ClientConfig>,
    current: Mutex<Option<Arc<Connection>>>,
    circuit: tokio::sync::Mutex<Circuit>,
}

#[derive(Debug)]
struct Circuit {
    retry: Retry,
    last_failure: Option<Error>,
}

impl Link {
    fn new(address: Address, transport: Arc<Transport>, config: Arc<ClientConfig>) -> Link {
        let retry = Retry::new(config.backoff, Jitter::from_entropy());
        let circuit = tokio::sync::Mutex::new(Circuit { retry, last_failure: None });
        Link { address, transport, config, current: Mutex::new(None), circuit }
    }

    /// Whether it was this broker that answered at its other end.
    fn leads_to(&self, broker: BrokerId) -> bool {
        lock(&self.current).as_ref().is_some_and(|current| current.broker_id() == broker)
    }

    /// The connection, made now if there is none.
    ///
    /// # Errors
    /// If none can be made, or the circuit is open: then the failure that opened it.
    pub(crate) async fn connection(&self) -> Result<Arc<Connection>, Error> {
        if let Some(connection) = self.open_connection() {
            return Ok(connection);
        }
        let mut circuit = self.circuit.lock().await;
        if let Some(connection) = self.open_connection() {
            return Ok(connection);
        }
        if circuit.retry.pause_until(Instant::now()).is_some()
            && let Some(failure) = &circuit.last_failure
        {
            return Err(failure.clone());
        }
        match self.establish().await {
            Ok(connection) => {
                circuit.retry.succeeded();
                let connection = Arc::new(connection);
                *lock(&self.current) = Some(Arc::clone(&connection));
                Ok(connection)
            }
            Err(error) => {
                circuit.retry.failed(Instant::now());
                circuit.last_failure = Some(error.clone());
                Err(error)
            }
        }
    }

    pub(crate) fn open_connection(&self) -> Option<Arc<Connection>> {
        lock(&self.current).clone().filter(|connection| connection.is_open())
    }

    /// Resolves the host and tries its addresses one after the other.
    async fn establish(&self) -> Result<Connection, Error> {
        let unreachable = |why: String| Error::Unreachable { address: self.address.to_string(), why };
        let resolved = timeout(
            self.config.connect_timeout,
            tokio::net::lookup_host((self.address.host.as_str(), self.address.port)),
        );
        let remotes: Vec<_> = match resolved.await {
            Ok(Ok(remotes)) => remotes.collect(),
            Ok(Err(error)) => return Err(unreachable(error.to_string())),
            Err(_) => return Err(unreachable("looking up the name took too long".into())),
        };
        let share = self.config.connect_timeout / remotes.len().max(1) as u32;
        let mut failure = unreachable("the name has no address".into());
        for remote in remotes {
            failure = match timeout(share, self.establish_at(remote)).await {
                Ok(Ok(connection)) => return Ok(connection),
                // Somebody is there and there is a reason: another of its addresses does not change it.
                Ok(Err(error)) if !error.is_unreachable() => return Err(error),
                Ok(Err(error)) => error,
                Err(_) => unreachable(format!("no answer within {share:?}")),
            };
        }
        Err(failure)
    }

    async fn establish_at(&self, remote: std::net::SocketAddr) -> Result<Connection, Error> {
        let address: Arc<str> = self.address.to_string().into();
        let connected = self.transport.connect(&self.address, remote).await;
        let quic = connected.map_err(|error| connect_error(&address, error))?;
        let hello = request::Body::Hello(control::HelloRequest {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            client_name: self.config.client_name.chars().take(100).collect(),
            client_version: env!("CARGO_PKG_VERSION").into(),
        });
        // The broker verifies this side's certificate only after this side sees the handshake done, so that its
        // refusal arrives here.
        let greeting = match exchange(&quic, &address, hello).await? {
            response::Body::Hello(greeting) => greeting,
            _ => {
                return Err(Error::Protocol {
                    address: address.to_string(),
                    why: "no hello came back".into(),
                });
            }
        };
        if greeting.version != PROTOCOL_VERSION {
            let why = format!("it chose version {}, which was not offered", greeting.version);
            return Err(Error::Protocol { address: address.to_string(), why });
        }
        tracing::debug!(%address, broker = greeting.broker_id, principal = greeting.principal, "connected");
        quic.set_send_window(window::send_window_bytes(quic.rtt()));
        let (config, streams) = (Arc::clone(&self.config), StreamPool::new(&self.config));
        Ok(Connection { quic, address, config, greeting, streams })
    }
}

/// A broker that has not answered what any broker can answer after so long is not waited for alone: the next one is asked
/// too. One that was killed says nothing, and its connection stands until the idle timeout.
const NEXT_BROKER_AFTER: Duration = Duration::from_millis(250);

/// Who is to answer what any broker can.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Whom<'a> {
    /// Anybody; these only where no other answers soon.
    OthersFirst(&'a [BrokerId]),
    /// Anybody else.
    Others(BrokerId),
}

/// The ways to the cluster's brokers.
#[derive(Debug)]
pub(crate) struct Brokers {
    transport: Arc<Transport>,
    config: Arc<ClientConfig>,
    /// The brokers of the profile; never empty.
    bootstrap: Vec<Arc<Link>>,
    links: Mutex<HashMap<Address, Arc<Link>>>,
    addresses: Mutex<HashMap<BrokerId, Address>>,
    /// Who answered last what any broker can answer.
    answered: Mutex<Option<Arc<Link>>>,
}

impl Brokers {
    /// # Panics
    /// If there is no address: the caller has read at least one.
    pub(crate) fn new(bootstrap: Vec<Address>, transport: Transport, config: ClientConfig) -> Brokers {
        assert!(!bootstrap.is_empty(), "a profile names a broker");
        let (transport, config) = (Arc::new(transport), Arc::new(config));
        let link = |address: &Address| {
            Arc::new(Link::new(address.clone(), Arc::clone(&transport), Arc::clone(&config)))
        };
        let links: Vec<_> = bootstrap.iter().map(link).collect();
        let by_address = bootstrap.into_iter().zip(links.iter().cloned()).collect();
        Brokers {
            transport,
            config,
            bootstrap: links,
            links: Mutex::new(by_address),
            addresses: Mutex::default(),
            answered: Mutex::default(),
        }
    }

    pub(crate) fn config(&self) -> &ClientConfig {
        &self.config
    }

    /// A connection to any broker: one that is open, else the first that can be made.
    pub(crate) async fn any(&self) -> Result<Arc<Connection>, Error> {
        let candidates = self.candidates();
        if let Some(connection) = candidates.iter().find_map(|link| link.open_connection()) {
            return Ok(connection);
        }
        let mut failure = None;
        for link in candidates {
            match link.connection().await {
                Ok(connection) => return Ok(connection),
                Err(error) => failure = Some(worse(failure, error)),
            }
        }
        Err(failure.expect("a profile names a broker"))
    }

    /// Asks what any broker can answer, and what does no harm when it is asked twice. Where one takes long or can not be
    /// reached the next is asked; the first answer counts.
    pub(crate) async fn ask(
        &self,
        what: &'static str,
        body: request::Body,
    ) -> Result<(response::Body, Arc<Connection>), Error> {
        self.ask_of(Whom::OthersFirst(&[]), what, body).await
    }

    /// As [`Brokers::ask`], of these.
    pub(crate) async fn ask_of(
        &self,
        whom: Whom<'_>,
        what: &'static str,
        body: request::Body,
    ) -> Result<(response::Body, Arc<Connection>), Error> {
        let mut candidates = self.candidates_of(whom).into_iter();
        let mut asked = FuturesUnordered::new();
        let mut failure = None;
        loop {
            let next = candidates.next();
            let is_last = next.is_none();
            if let Some(link) = next {
                let body = body.clone();
                asked.push(async move {
                    let connection = link.connection().await?;
                    let answer = connection.rpc(what, body).await?;
                    Ok::<_, Error>((answer, connection, link))
                });
            }
            let answer = match is_last {
                true => asked.next().await,
                false => match timeout(NEXT_BROKER_AFTER, asked.next()).await {
                    Ok(answer) => answer,
                    Err(_) => continue,
                },
            };
            match answer {
                Some(Ok((answer, connection, link))) => {
                    *lock(&self.answered) = Some(link);
                    return Ok((answer, connection));
                }
                // It was asked and said no.
                Some(Err(error)) if error.code().is_some() && !error.is_retriable() => return Err(error),
                Some(Err(error)) => failure = Some(worse(failure, error)),
                None if is_last => return Err(failure.unwrap_or_else(nobody_else)),
                None => {}
            }
        }
    }

    fn candidates_of(&self, whom: Whom<'_>) -> Vec<Arc<Link>> {
        let mut candidates = self.candidates();
        let addresses = lock(&self.addresses);
        let is = |link: &Link, id: &BrokerId| link.leads_to(*id) || addresses.get(id) == Some(&link.address);
        match whom {
            // Keeps the order among those that are alike.
            Whom::OthersFirst(last) => candidates.sort_by_key(|link| last.iter().any(|id| is(link, id))),
            Whom::Others(id) => candidates.retain(|link| !is(link, &id)),
        }
        candidates
    }

    /// Every broker there is, those first that are likely to answer.
    fn candidates(&self) -> Vec<Arc<Link>> {
        let mut candidates: Vec<Arc<Link>> = lock(&self.answered).clone().into_iter().collect();
        candidates.extend(self.bootstrap.iter().cloned());
        let known: Vec<_> = lock(&self.addresses).values().cloned().collect();
        candidates.extend(known.into_iter().map(|address| self.link(address)));
        let mut seen = Vec::new();
        candidates.retain(|link| {
            let is_new = !seen.contains(&Arc::as_ptr(link));
            seen.push(Arc::as_ptr(link));
            is_new
        });
        // Keeps the order among those that are alike.
        candidates.sort_by_key(|link| link.open_connection().is_none());
        candidates
    }

    fn link(&self, address: Address) -> Arc<Link> {
        let new = |address: Address| {
            Arc::new(Link::new(address, Arc::clone(&self.transport), Arc::clone(&self.config)))
        };
        Arc::clone(lock(&self.links).entry(address.clone()).or_insert_with(|| new(address)))
    }

    /// A connection to this broker; `None` if its address is not known.
    pub(crate) async fn broker(&self, id: BrokerId) -> Option<Result<Arc<Connection>, Error>> {
        let is_it = |link: &&Arc<Link>| link.leads_to(id);
        // What the profile says may be how it is reached from here, where what the cluster says is not.
        if let Some(link) = self.bootstrap.iter().find(is_it) {
            return Some(link.connection().await);
        }
        let address = lock(&self.addresses).get(&id).cloned()?;
        Some(self.link(address).connection().await)
    }

    /// How many brokers' addresses the cluster has told so far.
    pub(crate) fn known(&self) -> usize {
        lock(&self.addresses).len()
    }

    /// Takes note of where brokers are.
    pub(crate) fn learn(&self, brokers: &[control::Broker]) {
        let mut addresses = lock(&self.addresses);
        addresses.clear();
        for broker in brokers {
            if let Ok(port) = u16::try_from(broker.port) {
                addresses.insert(BrokerId(broker.id), Address { host: broker.host.clone(), port });
            }
        }
    }

    pub(crate) async fn close(&self) {
        self.transport.close().await;
    }
}

fn nobody_else() -> Error {
    Error::Unreachable { address: "any other address".into(), why: "none is known".into() }
}

/// Of two failures the one that says more: a refusal is not hidden by another broker that is away.
fn worse(earlier: Option<Error>, later: Error) -> Error {
    match earlier {
        Some(earlier) if !earlier.is_unreachable() || later.is_unreachable() => earlier,
        _ => later,
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in this crate leaves shared state half changed when it panics.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One request and its response on a stream of their own.
async fn exchange(
    quic: &quinn::Connection,
    address: &str,
    body: request::Body,
) -> Result<response::Body, Error> {
    let lost = |why: String| match quic.close_reason() {
        Some(reason) => connection_error(address, &reason),
        None => Error::ConnectionLost { address: address.to_owned(), why },
    };
    let protocol = |why: String| Error::Protocol { address: address.to_owned(), why };
    let request = control::Request { body: Some(body) };
    let length = request.encoded_len();
    if length > limits::RPC_BYTES_MAX {
        return Err(Error::InvalidRequest(format!(
            "the request takes {length} bytes, at most {} are allowed",
            limits::RPC_BYTES_MAX
        )));
    }
    let mut bytes = Vec::with_capacity(6 + length);
    bytes.extend_from_slice(&StreamKind::Rpc.prefix());
    bytes.extend_from_slice(&(length as u32).to_le_bytes());
    bytes.extend_from_slice(&request.encode_to_vec());

    let (mut send, mut receive) = quic.open_bi().await.map_err(|e| connection_error(address, &e))?;
    send.write_all(&bytes).await.map_err(|e| lost(e.to_string()))?;
    let _ = send.finish();
    let mut length = [0; 4];
    receive.read_exact(&mut length).await.map_err(|e| lost(e.to_string()))?;
    let length = u32::from_le_bytes(length) as usize;
    if length > limits::RPC_BYTES_MAX {
        return Err(protocol(format!("it announced an answer of {length} bytes")));
    }
    let mut bytes = vec![0; length];
    receive.read_exact(&mut bytes).await.map_err(|e| lost(e.to_string()))?;
    match control::Response::decode(bytes.as_slice()).map_err(|e| protocol(e.to_string()))?.body {
        Some(response::Body::Error(error)) => Err(broker_error(&error, "")),
        Some(body) => Ok(body),
        None => Err(protocol("its answer is empty".into())),
    }
}

/// An error that a broker answered with.
pub(crate) fn broker_error(error: &control::Error, suggestion: &str) -> Error {
    let suggestion = (!suggestion.is_empty()).then(|| suggestion.to_owned());
    Error::Broker { code: error.error_code(), message: error.message.clone(), suggestion }
}

fn connect_error(address: &str, error: ConnectError) -> Error {
    let address = address.to_owned();
    match error {
        ConnectError::Socket(error) => Error::System { what: "opening a UDP socket", why: error.to_string() },
        ConnectError::Invalid(why) => Error::Unreachable { address, why },
        ConnectError::NothingListens => Error::Unreachable { address, why: "nothing listens there".into() },
        ConnectError::Handshake(ConnectionError::TimedOut) => {
            Error::Unreachable { address, why: "no answer".into() }
        }
        ConnectError::Handshake(error) => connection_error(&address, &error),
    }
}

/// TLS alerts travel as QUIC error codes from 0x100 on.
const TLS_ALERTS: std::ops::RangeInclusive<u64> = 0x100..=0x1ff;
/// The alert of a peer that speaks another protocol: its ALPN has nothing in common with ours.
const ALERT_NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;
/// How this side's TLS begins to say that a certificate is valid, but not for the name expected.
const WRONG_NAME: &str = "certificate not valid for name ";
/// QUIC's code for a server that takes no connection.
const CONNECTION_REFUSED: u64 = 0x2;

fn connection_error(address: &str, error: &ConnectionError) -> Error {
    let address = address.to_owned();
    let (code, reason, by_broker) = match error {
        ConnectionError::TransportError(error) => (u64::from(error.code), error.reason.clone(), false),
        ConnectionError::ConnectionClosed(close) => {
            (u64::from(close.error_code), String::from_utf8_lossy(&close.reason).into_owned(), true)
        }
        ConnectionError::ApplicationClosed(close) => return closed_by_broker(address, close),
        ConnectionError::VersionMismatch => {
            return Error::Protocol { address, why: "it speaks another version of QUIC".into() };
        }
        ConnectionError::TimedOut => {
            return Error::ConnectionLost { address, why: "nothing was heard from it any more".into() };
        }
        other => return Error::ConnectionLost { address, why: other.to_string() },
    };
    match code {
        ALERT_NO_APPLICATION_PROTOCOL => Error::Protocol { address, why: "it does not speak quire/1".into() },
        code if TLS_ALERTS.contains(&code) => {
            let alert = alert_meaning((code - TLS_ALERTS.start()) as u8);
            let who = match by_broker {
                true => "the broker refused this client's certificate",
                false => "the broker's certificate is not one the profile trusts",
            };
            let reason = if reason.is_empty() { alert.to_owned() } else { reason };
            if !by_broker && let Some(why) = reason.split_once(WRONG_NAME).map(|(_, names)| names) {
                return Error::CertificateName { address, why: why.to_owned() };
            }
            Error::CertificateRefused { address, why: format!("{who}: {reason}") }
        }
        CONNECTION_REFUSED => Error::Unreachable { address, why: "it takes no more connections".into() },
        _ => Error::ConnectionLost { address, why: error.to_string() },
    }
}

/// A broker closes a connection with a number of the error table.
fn closed_by_broker(address: String, close: &quinn::ApplicationClose) -> Error {
    let reason = String::from_utf8_lossy(&close.reason).into_owned();
    let code = u16::try_from(close.error_code.into_inner()).ok().and_then(ErrorCode::from_number);
    match code {
        Some(code) => Error::Broker { code, message: reason, suggestion: None },
        None => Error::ConnectionLost { address, why: format!("closed by the broker: {reason}") },
    }
}

fn alert_meaning(alert: u8) -> &'static str {
    match alert {
        42 => "bad certificate",
        43 => "unsupported certificate",
        44 => "revoked certificate",
        45 => "expired certificate",
        46 => "unknown certificate",
        48 => "signed by an unknown authority",
        49 => "access denied",
        51 => "its signature is wrong",
        116 => "it needs a certificate",
        _ => "the TLS handshake failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Profile;

    /// The ways to brokers 1, 2 and 3, of which the profile names the first.
    fn three_brokers() -> Brokers {
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = rcgen::CertificateParams::default().self_signed(&key).expect("self-signed").pem();
        let profile = Profile::new("localhost").authority_pem(&certificate);
        let transport = Transport::new(&profile, &ClientConfig::default()).expect("a usable profile");
        let bootstrap = Address::parse_list("broker-1:9440").expect("an address");
        let brokers = Brokers::new(bootstrap, transport, ClientConfig::default());
        let known = (1..=3).map(|id| control::Broker {
            id,
            host: format!("broker-{id}"),
            port: 9440,
            ..Default::default()
        });
        brokers.learn(&known.collect::<Vec<_>>());
        brokers
    }

    #[test]
    fn who_is_doubted_is_asked_last_or_not_at_all() {
        let brokers = three_brokers();
        let asked = |whom| -> Vec<u32> {
            let candidates = brokers.candidates_of(whom);
            let number = |link: &Arc<Link>| link.address.host.strip_prefix("broker-")?.parse().ok();
            candidates.iter().filter_map(number).collect()
        };
        assert_eq!(asked(Whom::OthersFirst(&[]))[0], 1, "the profile's");
        assert_eq!(asked(Whom::OthersFirst(&[BrokerId(1)]))[2], 1);
        assert_eq!(asked(Whom::OthersFirst(&[BrokerId(1), BrokerId(3)]))[0], 2);
        let mut others = asked(Whom::Others(BrokerId(1)));
        others.sort_unstable();
        assert_eq!(others, [2, 3]);
    }

    fn closed(code: u64) -> Error {
        let close = quinn::ConnectionClose {
            error_code: quinn::TransportErrorCode::crypto((code & 0xff) as u8),
            frame_type: None,
            reason: bytes::Bytes::new(),
        };
        connection_error("a:1", &ConnectionError::ConnectionClosed(close))
    }

    #[test]
    fn a_refused_certificate_is_told_from_another_protocol_and_from_a_dead_broker() {
        let refused = closed(0x100 + 48);
        assert!(matches!(refused, Error::CertificateRefused { .. }), "{refused}");
        assert!(refused.to_string().contains("unknown authority") && !refused.is_retriable(), "{refused}");
        assert!(matches!(closed(0x100 + 120), Error::Protocol { .. }));
        let gone = connection_error("a:1", &ConnectionError::TimedOut);
        assert!(gone.is_unreachable() && gone.is_retriable(), "{gone}");
    }

    #[test]
    fn a_broker_that_closes_with_a_code_is_understood() {
        let close = quinn::ApplicationClose {
            error_code: quinn::VarInt::from_u32(ErrorCode::ShuttingDown.number().into()),
            reason: bytes::Bytes::from_static(b"the broker is shutting down"),
        };
        let error = connection_error("a:1", &ConnectionError::ApplicationClosed(close));
        assert_eq!(error.code(), Some(ErrorCode::ShuttingDown));
        assert!(error.is_retriable());
    }
}
