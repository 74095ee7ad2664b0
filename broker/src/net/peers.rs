//! Brokers among themselves: who is called by its number, over connections that both sides' certificates vouch for.
//!
//! ```text
//!            ┌ control link ─► its own socket and runtime ─┐
//! Peers ─────┤                                             ├─► the other broker's peer address ─► PeerService
//!            └ data links ───► a socket for bulk ──────────┘
//! ```
//! Each broker calls on connections that it made, and answers on those that were made to it. A *link* is all that is
//! known about calling one broker in one lane: it connects when it is first used and again when its connection is lost,
//! one attempt at a time, with a pause that doubles. While it pauses, calls fail at once.
//!
//! Everything another broker can hold has a limit or a deadline here too: a certificate proves who it is, not that it
//! is well.

mod accept;
mod lane;
mod link;
mod message;
#[cfg(test)]
mod tests;
pub(crate) mod tls;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use quinn::{Endpoint, RecvStream, SendStream};
use quire_protocol::rpc::peer::{self, request, response};
use quire_protocol::stream::StreamKind;
use quire_protocol::{BrokerId, ErrorCode, limits};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout, timeout_at};

use super::connection::close_code;
use super::endpoint::{self, HeldSocket};
use super::reset::ResetKey;
use super::sockets::Sockets;
use super::tls::{BrokerCertificate, TlsError};
use crate::config::HostPort;
use accept::Accepted;
use lane::Lane;
use link::Link;
use tls::{PeerTls, Revoked};

/// What this broker does for others. Who they are is proven; what they send is not.
pub(crate) trait PeerService: Send + Sync + 'static {
    /// Answers one request of a control connection. Runs on the control runtime: what takes long goes elsewhere.
    fn serve(&self, from: BrokerId, request: request::Body) -> BoxFuture<'static, response::Body>;

    /// Serves one stream of a data connection, whose first bytes said that it is of this kind. It is over when the future
    /// is.
    fn stream(
        &self,
        from: BrokerId,
        kind: StreamKind,
        send: SendStream,
        recv: RecvStream,
    ) -> BoxFuture<'static, ()>;
}

/// What [`Peers`] is opened with.
pub(crate) struct PeersOptions {
    pub(crate) broker: BrokerId,
    pub(crate) cluster_id: String,
    /// The UDP address that other brokers connect to.
    pub(crate) listen: SocketAddr,
    pub(crate) authority_pem: String,
    /// This broker's; may be renewed meanwhile.
    pub(crate) certificate: Arc<BrokerCertificate>,
    pub(crate) revoked: Arc<Revoked>,
    pub(crate) reset_key: ResetKey,
    pub(crate) sockets: Sockets,
    /// Where control connections are driven.
    pub(crate) control: Handle,
}

/// Peers could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum PeersOpenError {
    /// A socket could not be had.
    #[error("cannot listen for other brokers on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Why another broker gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PeerError {
    /// Nobody said where it is.
    #[error("broker {0} is not known")]
    Unknown(BrokerId),
    /// It can not be connected to; it has not seen the request.
    #[error("broker {broker} can not be reached: {why}")]
    Unreachable {
        /// Which.
        broker: BrokerId,
        /// Why.
        why: String,
    },
    /// The answer did not come; whether the request was taken is not known.
    #[error("no answer from broker {broker}: {why}")]
    Lost {
        /// Which.
        broker: BrokerId,
        /// Why.
        why: String,
    },
    /// It answered that it can not.
    #[error("broker {broker} answered {code}: {message}")]
    Failed {
        /// Which.
        broker: BrokerId,
        /// Its code.
        code: ErrorCode,
        /// Its sentence.
        message: String,
    },
    /// A request that no broker takes.
    #[error("a request of {0} bytes exceeds the limit of {max}", max = limits::PEER_MESSAGE_BYTES_MAX)]
    TooLong(usize),
}

impl PeerError {
    /// Whether the request may have been taken all the same.
    pub(crate) fn is_outcome_unknown(&self) -> bool {
        match self {
            PeerError::Lost { .. } => true,
            PeerError::Failed { code, .. } => code.is_outcome_unknown(),
            PeerError::Unknown(_) | PeerError::Unreachable { .. } | PeerError::TooLong(_) => false,
        }
    }
}

/// The other brokers of the cluster. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Peers {
    shared: Arc<Shared>,
}

struct Shared {
    broker: BrokerId,
    cluster_id: Arc<str>,
    address: SocketAddr,
    control: Handle,
    data: Handle,
    listening: Endpoint,
    control_calls: Endpoint,
    data_calls: Endpoint,
    held: Mutex<Option<HeldSocket>>,
    tls: PeerTls,
    links: Mutex<Links>,
    accepted: Accepted,
    /// Until it is closed: whoever serves may have a handle of this.
    service: Mutex<Option<Arc<dyn PeerService>>>,
}

#[derive(Default)]
struct Links {
    addresses: BTreeMap<BrokerId, HostPort>,
    links: BTreeMap<(BrokerId, Lane, usize), Arc<Link>>,
}

impl Peers {
    /// Takes the addresses. Nobody is answered before [`Peers::serve`]. Must be called on the runtime that data
    /// connections are to be driven by.
    ///
    /// # Errors
    /// If an address or the certificates can not be used.
    pub(crate) fn open(options: PeersOptions) -> Result<Peers, PeersOpenError> {
        let tls = PeerTls::new(&options.authority_pem, &options.certificate, &options.revoked)?;
        let listening = |source| PeersOpenError::Listen { address: options.listen, source };
        // An endpoint is driven by the runtime it is made on.
        let (endpoint, held, control_calls) = {
            let _on_control = options.control.enter();
            // What is accepted gets the transport of its lane then.
            let server = endpoint::server_config(Arc::clone(&tls.server), Lane::Control.transport(1));
            let (endpoint, held) =
                endpoint::open_for_peers(options.listen, server, options.reset_key.clone(), &options.sockets)
                    .map_err(listening)?;
            let calls =
                endpoint::open_to_connect(options.listen.ip(), options.reset_key.clone(), &options.sockets);
            (endpoint, held, calls.map_err(listening)?)
        };
        let data_calls = endpoint::open_to_connect(options.listen.ip(), options.reset_key, &options.sockets)
            .map_err(listening)?;
        let shared = Shared {
            broker: options.broker,
            cluster_id: options.cluster_id.into(),
            address: endpoint.local_addr().map_err(listening)?,
            control: options.control,
            data: Handle::current(),
            listening: endpoint,
            control_calls,
            data_calls,
            held: Mutex::new(Some(held)),
            tls,
            links: Mutex::default(),
            accepted: Accepted::new(),
            service: Mutex::default(),
        };
        Ok(Peers { shared: Arc::new(shared) })
    }

    /// Answers other brokers from now on.
    pub(crate) fn serve(&self, service: Arc<dyn PeerService>) {
        let before = self.shared.service().replace(Arc::clone(&service));
        assert!(before.is_none(), "peers are served by one service");
        let _on_control = self.shared.control.enter();
        crate::threads::spawn_task("accept-peers", accept::accept_all(Arc::clone(&self.shared), service));
    }

    /// The UDP address that other brokers connect to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Says where a broker is. A connection that works is kept.
    pub(crate) fn set_address(&self, broker: BrokerId, address: HostPort) {
        let mut links = self.shared.links();
        if links.addresses.get(&broker) == Some(&address) {
            return;
        }
        links.addresses.insert(broker, address);
        // What is known to fail, failed elsewhere.
        links.of(broker).for_each(|link| link.retry_now());
    }

    /// Forgets a broker, and ends all connections with it.
    pub(crate) fn forget(&self, broker: BrokerId) {
        let mut links = self.shared.links();
        links.addresses.remove(&broker);
        links.of(broker).for_each(|link| link.close(close_code(ErrorCode::NotAuthorized), b"removed"));
        links.links.retain(|(of, _, _), _| *of != broker);
        drop(links);
        self.shared.accepted.close_where(|identity| identity.broker == broker);
    }

    /// Ends connections that were made with certificates revoked since.
    pub(crate) fn close_revoked(&self, revoked: &Revoked) {
        self.shared.accepted.close_where(|identity| revoked.contains(&identity.serial));
        for link in self.shared.links().links.values() {
            link.close_if_revoked(revoked);
        }
    }

    /// Asks another broker, or this one, and waits for its answer so long.
    ///
    /// # Errors
    /// If there is no answer; [`PeerError::is_outcome_unknown`] says whether the request may have been taken.
    pub(crate) async fn call(
        &self,
        to: BrokerId,
        request: request::Body,
        patience: Duration,
    ) -> Result<response::Body, PeerError> {
        if to == self.shared.broker {
            return self.call_self(request, patience).await;
        }
        let deadline = Instant::now() + patience;
        let bytes = message::encode(&peer::Request { body: Some(request) })?;
        let link = self.shared.link(to, Lane::Control, 0)?;
        let unreachable = |why: String| PeerError::Unreachable { broker: to, why };
        let opened = timeout_at(deadline, async {
            let connection = link.connection(&self.shared).await?;
            connection.open_bi().await.map_err(|error| unreachable(error.to_string()))
        });
        let (mut send, mut recv) = opened
            .await
            .unwrap_or_else(|_| Err(unreachable(format!("no connection within {patience:?}"))))?;
        let lost = |why: String| PeerError::Lost { broker: to, why };
        match timeout_at(deadline, message::exchange(&mut send, &mut recv, bytes)).await {
            Ok(Ok(response::Body::Failure(failure))) => {
                let code = failure.error_code();
                Err(PeerError::Failed { broker: to, code, message: failure.message })
            }
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(why)) => Err(lost(why)),
            Err(_) => {
                // Nobody waits for it: it need not be sent, nor answered.
                let _ = send.reset(close_code(ErrorCode::TimedOut));
                Err(lost(format!("none came within {patience:?}")))
            }
        }
    }

    async fn call_self(
        &self,
        request: request::Body,
        patience: Duration,
    ) -> Result<response::Body, PeerError> {
        let broker = self.shared.broker;
        let unreachable = || PeerError::Unreachable { broker, why: "it is starting or stopping".to_owned() };
        let service = self.shared.service().clone().ok_or_else(unreachable)?;
        let lost = |_| PeerError::Lost { broker, why: format!("none came within {patience:?}") };
        match timeout(patience, service.serve(broker, request)).await.map_err(lost)? {
            response::Body::Failure(failure) => {
                Err(PeerError::Failed { broker, code: failure.error_code(), message: failure.message })
            }
            answer => Ok(answer),
        }
    }

    /// Opens a stream of this kind for bulk. Streams that should not share a core are given different numbers to spread
    /// by: a shard's, a partition's.
    ///
    /// # Errors
    /// If there is no connection.
    pub(crate) async fn open_stream(
        &self,
        to: BrokerId,
        kind: StreamKind,
        spread: usize,
    ) -> Result<(SendStream, RecvStream), PeerError> {
        let link = self.shared.link(to, Lane::Data, spread % limits::PEER_DATA_CONNECTIONS)?;
        let unreachable = |why: String| PeerError::Unreachable { broker: to, why };
        let opening = async {
            let connection = link.connection(&self.shared).await?;
            let (mut send, recv) =
                connection.open_bi().await.map_err(|error| unreachable(error.to_string()))?;
            send.write_all(&kind.prefix()).await.map_err(|error| unreachable(error.to_string()))?;
            Ok((send, recv))
        };
        timeout(limits::PEER_MESSAGE_TIME_MAX, opening)
            .await
            .unwrap_or_else(|_| Err(unreachable("it takes no more streams".to_owned())))
    }

    /// Ends every connection, and gives the addresses back. Nobody is called or answered any more.
    pub(crate) async fn close(&self) {
        self.shared.service().take();
        let endpoints = [&self.shared.listening, &self.shared.control_calls, &self.shared.data_calls];
        for endpoint in endpoints {
            endpoint.close(close_code(ErrorCode::ShuttingDown), b"the broker is shutting down");
        }
        let idle = async {
            for endpoint in endpoints {
                endpoint.wait_idle().await;
            }
        };
        // Bounded: a broker that is gone acknowledges nothing.
        let _ = timeout(limits::PEER_CONNECT_TIME_MAX, idle).await;
    }

    /// Gives the parts that know when the address is free, once.
    pub(crate) fn take_socket(&self) -> Option<HeldSocket> {
        self.shared.held.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Shared {
    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn service(&self) -> MutexGuard<'_, Option<Arc<dyn PeerService>>> {
        self.service.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link(&self, to: BrokerId, lane: Lane, index: usize) -> Result<Arc<Link>, PeerError> {
        let mut links = self.links();
        if !links.addresses.contains_key(&to) {
            return Err(PeerError::Unknown(to));
        }
        let link = links.links.entry((to, lane, index));
        Ok(Arc::clone(link.or_insert_with(|| Arc::new(Link::new(to, lane)))))
    }

    fn address_of(&self, broker: BrokerId) -> Option<HostPort> {
        self.links().addresses.get(&broker).cloned()
    }
}

impl Links {
    fn of(&self, broker: BrokerId) -> impl Iterator<Item = &Arc<Link>> {
        self.links.iter().filter(move |((of, _, _), _)| *of == broker).map(|(_, link)| link)
    }
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("broker", &self.shared.broker).finish_non_exhaustive()
    }
}
