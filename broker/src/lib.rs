//! A running Quire broker, as a library.
//!
//! A broker keeps partitions of append-only logs, takes batches of records over QUIC and serves them again. The `quire`
//! binary runs one from a configuration file; the same one runs inside any process:
//!
//! ```
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let dir = tempfile::tempdir()?;
//! let broker = quire_broker::Broker::builder()
//!     .data_dir(dir.path())
//!     .listen("127.0.0.1:0".parse()?)
//!     .start()
//!     .await?;
//! println!("ready in {:?} on {}", broker.ready_in(), broker.address());
//!
//! // What a client needs beside the address: the authority, and a certificate it signed.
//! let credentials = broker.credentials();
//! assert!(credentials.authority_pem.starts_with("-----BEGIN CERTIFICATE-----"));
//!
//! let report = broker.shutdown().await;
//! assert!(report.clean);
//! # Ok(())
//! # }
//! # tokio::runtime::Runtime::new().expect("a runtime").block_on(run()).expect("the example works");
//! ```
//!
//! Several brokers in one process do not touch each other: nothing here is global, but that a start raises the process's
//! limit of open files as far as it may. The network runs on the tokio
//! runtime that [`Builder::start`] is called on, partitions and their files on threads of the broker's own.
#![forbid(unsafe_code)]

pub mod catalog;
pub mod config;

mod cluster;
mod context;
mod controller;
mod coordinator;
mod descriptors;
mod error;
mod handlers;
mod identity;
mod metadata;
mod metrics;
mod net;
mod process;
mod producer_ids;
mod replicas;
mod running;
mod shard;
mod shutdown;
mod threads;

/// What a simulation drives by hand, without a thread, a network or a clock: events in, jobs run when it says so, what
/// goes to other brokers out.
#[doc(hidden)]
pub mod simulation {
    pub use crate::error::RequestError;
    pub use crate::handlers::produce::admit;
    pub use crate::handlers::replicate::feed::{ChainLookup, ColdRead, Feed, Next, Requests};
    pub use crate::metrics::ShardMetrics;
    pub use crate::replicas::split;
    pub use crate::shard::{
        Assignment, Closed, Downlink, Event, Fetched, ForFollower, Limits, Now, Outcome, Outgoing,
        PartitionHandle, PartitionState, ProduceReply, ProduceRequest, ScrubDone, ScrubOptions, ScrubStep,
        Shard, Shared, SlotProgress, Standing, Store, Task, TaskDone, Uplink, Watermarks, is_over,
    };
}

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quire_engine::controller::Image;
use quire_protocol::BrokerId;
use quire_storage::disk::{Disk, OsDisk};
use tokio::sync::watch;

use config::{FirstStart, HostPort};
use running::Running;

pub use cluster::ClusterError;
pub use config::Config;
pub use identity::DataDirectoryError;
pub use net::certificates::CertificatesError;
pub use net::join::ask::JoinError;
pub use net::join::token::{Fingerprint, InvalidToken, JoinToken};
pub use net::peers::PeersOpenError;
#[doc(hidden)]
pub use net::sockets::Sockets;
pub use net::tls::TlsError;
pub use running::{StartError, TokenError};
pub use shutdown::ShutdownReport;

/// A broker that serves.
///
/// [`Broker::shutdown`] stops it in order. Dropping it stops it too: clients are cut off and the logs are closed in the
/// background, which the end of the process may cut short; then the next start has more to recover, and loses nothing
/// that was acknowledged.
#[derive(Debug)]
pub struct Broker {
    running: Running,
}

/// What a client needs to connect, beside the address. The principal is an administrator.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientCredentials {
    /// The certificate of the authority that signs the broker's.
    pub authority_pem: String,
    /// The client's certificate.
    pub certificate_pem: String,
    /// The key of the client's certificate.
    pub key_pem: String,
}

/// Where clients reach the brokers of a cluster.
#[derive(Debug, Clone)]
pub struct ClientAddresses {
    changes: watch::Receiver<Arc<Image>>,
}

impl ClientAddresses {
    /// Of each registered broker, by number.
    pub fn now(&self) -> Vec<HostPort> {
        let image = Arc::clone(&self.changes.borrow());
        image.brokers().map(|broker| HostPort { host: broker.host.clone(), port: broker.port }).collect()
    }

    /// Waits until they are others than these. For ever, once the broker has stopped. Dropping the future loses nothing.
    pub async fn others_than(&mut self, known: &[HostPort]) -> Vec<HostPort> {
        loop {
            self.changes.mark_unchanged();
            let now = self.now();
            if now != known {
                return now;
            }
            if self.changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Options of a [`Broker`] inside a process of its own.
#[derive(Debug, Clone, Default)]
#[must_use = "a builder does nothing until it is started"]
pub struct Builder {
    data_dir: Option<PathBuf>,
    listen: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    shards: Option<usize>,
    names: Vec<String>,
    anonymous: bool,
    disk: Option<Arc<dyn Disk>>,
    peer_listen: Option<SocketAddr>,
    first_start: FirstStart,
    rack: String,
    leader_return: Option<Duration>,
    sockets: net::sockets::Sockets,
}

impl Broker {
    /// Options for a broker that listens on a free port of loopback, and serves no admin HTTP, unless told otherwise.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Starts a broker as configured; returns when it serves.
    ///
    /// # Errors
    /// If the data directory, the certificates or an address cannot be used.
    pub async fn from_config(config: Config) -> Result<Broker, StartError> {
        Broker::start(config, Arc::new(OsDisk)).await
    }

    async fn start(config: Config, disk: Arc<dyn Disk>) -> Result<Broker, StartError> {
        Ok(Broker { running: Running::start(config, disk).await? })
    }

    /// The UDP address that clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.running.address()
    }

    /// The TCP address of the admin server, if there is one.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.running.admin_address()
    }

    /// What a first client needs; it is kept in the data directory.
    pub fn credentials(&self) -> ClientCredentials {
        self.running.credentials().clone()
    }

    /// The cluster's id, 32 hexadecimal digits.
    pub fn cluster_id(&self) -> &str {
        self.running.cluster_id()
    }

    /// This broker's number in its cluster.
    pub fn id(&self) -> BrokerId {
        self.running.id()
    }

    /// The UDP address that other brokers of the cluster connect to, if it is in one.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        self.running.peer_address()
    }

    /// Where clients reach the brokers of the cluster, as it is now and as it changes.
    pub fn client_addresses(&self) -> ClientAddresses {
        ClientAddresses { changes: self.running.changes() }
    }

    /// Makes a token with which one broker can join the cluster in the time given.
    ///
    /// # Errors
    /// If this broker is in no cluster, or the cluster can not keep the token now.
    pub async fn join_token(&self, age: Duration) -> Result<JoinToken, TokenError> {
        self.running.join_token(age).await
    }

    /// From the start until it served.
    pub fn ready_in(&self) -> Duration {
        self.running.ready_in()
    }

    /// Stops: takes no new work, answers what was taken, tells clients, and closes every log.
    pub async fn shutdown(self) -> ShutdownReport {
        self.running.shutdown().await
    }
}

impl Builder {
    /// Where everything is kept; made if it does not exist. Must be given.
    pub fn data_dir(mut self, dir: impl Into<PathBuf>) -> Builder {
        self.data_dir = Some(dir.into());
        self
    }

    /// The UDP address that clients connect to; port 0 takes a free one. Default: a free port of loopback.
    pub fn listen(mut self, address: SocketAddr) -> Builder {
        self.listen = Some(address);
        self
    }

    /// The TCP address of the admin server, which has no access control. Default: none.
    pub fn admin(mut self, address: Option<SocketAddr>) -> Builder {
        self.admin = address;
        self
    }

    /// Threads that own partitions. Default: one a core.
    pub fn shards(mut self, shards: usize) -> Builder {
        self.shards = Some(shards);
        self
    }

    /// Host names and addresses in the broker's certificate, beside `localhost` and loopback.
    pub fn names(mut self, names: impl IntoIterator<Item = String>) -> Builder {
        self.names = names.into_iter().collect();
        self
    }

    /// Lets clients in that have no certificate, with the rights that were given to the principal `anonymous`
    /// or to everybody.
    pub fn anonymous(mut self, anonymous: bool) -> Builder {
        self.anonymous = anonymous;
        self
    }

    /// The file system that logs and metadata are kept on; certificates are always on the operating system's. Default:
    /// the operating system's.
    pub fn disk(mut self, disk: Arc<dyn Disk>) -> Builder {
        self.disk = Some(disk);
        self
    }

    /// The UDP address that other brokers of a cluster connect to; port 0 takes a free one. Default: a free port of
    /// loopback.
    pub fn peer_listen(mut self, address: SocketAddr) -> Builder {
        self.peer_listen = Some(address);
        self
    }

    /// What the broker becomes if its data directory is new. Default: a broker of its own.
    pub fn first_start(mut self, first_start: FirstStart) -> Builder {
        self.first_start = first_start;
        self
    }

    /// The failure domain that the broker stands in: replicas are placed in different ones, and consumers may ask for one.
    /// Default: none.
    pub fn rack(mut self, rack: impl Into<String>) -> Builder {
        self.rack = rack.into();
        self
    }

    /// After how long a broker that came back leads again what it is the preferred leader of, while this one is the
    /// active controller. Default: a minute.
    pub fn leader_return(mut self, rest: Duration) -> Builder {
        self.leader_return = Some(rest);
        self
    }

    /// Where UDP sockets come from, for tests with a network of their own. Default: the operating system.
    #[doc(hidden)]
    pub fn sockets(mut self, sockets: Sockets) -> Builder {
        self.sockets = sockets;
        self
    }

    /// Starts the broker; returns when it serves.
    ///
    /// # Errors
    /// If no data directory was given, or it, the certificates or an address cannot be used.
    pub async fn start(self) -> Result<Broker, StartError> {
        let mut config = Config::new(self.data_dir.ok_or(StartError::NoDataDirectory)?);
        config.network.listen = self.listen.unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0));
        config.network.sockets = self.sockets;
        config.admin_listen = self.admin;
        config.shards = self.shards.unwrap_or(config.shards).max(1);
        config.tls.names = self.names;
        config.tls.anonymous = self.anonymous;
        let loopback = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        config.cluster.peer_listen = self.peer_listen.unwrap_or(loopback);
        config.first_start = self.first_start;
        config.rack = self.rack;
        config.cluster.leader_return = self.leader_return.or(config.cluster.leader_return);
        Broker::start(config, self.disk.unwrap_or_else(|| Arc::new(OsDisk))).await
    }
}

impl fmt::Debug for ClientCredentials {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCredentials").finish_non_exhaustive()
    }
}
