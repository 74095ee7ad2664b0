//! Puts a broker together, and takes it apart.
//!
//! What can fail for reasons outside comes first, so that a second start in the same place, a taken port or a damaged
//! certificate is told before anything is opened.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quinn::Endpoint;
use quire_engine::controller::{Image, RegisterBroker};
use quire_protocol::{BrokerId, ErrorCode, limits};
use quire_storage::disk::Disk;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::ClientCredentials;
use crate::cluster::{self, Cluster, ClusterError, ClusterOptions, tls_dir};
use crate::config::{Config, HostPort};
use crate::context::{Context, Memory};
use crate::controller::{LocalMetadata, LocalMetadataOptions, Metadata, MetadataOpenError};
use crate::coordinator::Coordinators;
use crate::descriptors;
use crate::identity::{DataDirectory, DataDirectoryError, Membership, random};
use crate::metrics::Metrics;
use crate::net::admin::{self, AdminListener};
use crate::net::certificates::{self, Certificates, CertificatesError};
use crate::net::connection::{self, close_code};
use crate::net::endpoint::{self, HeldSocket};
use crate::net::join::token::JoinToken;
use crate::net::membership::{self, Member};
use crate::net::peers::tls::Revoked;
use crate::net::renewal;
use crate::net::reset::ResetKey;
use crate::net::tls::{self, Admits, BrokerCertificate, TlsError};
use crate::producer_ids::ProducerIds;
use crate::shard::{Clock, Outgoing, ScrubOptions, Shards, ShardsOptions, SystemClock};
use crate::shutdown::{ShutdownReport, StopSignal, Stopping, Underway};
use crate::threads;

/// How long connections are given to take their closing, whatever the drain time.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(1);

/// Why a broker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The builder was not given one.
    #[error("no data directory was given")]
    NoDataDirectory,
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDirectory(#[from] DataDirectoryError),
    /// The certificates cannot be read or made.
    #[error(transparent)]
    Certificates(#[from] CertificatesError),
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The cluster's metadata cannot be read.
    #[error(transparent)]
    Metadata(#[from] MetadataOpenError),
    /// The broker could not become, or be, one of a cluster's.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The operating system gives no more threads.
    #[error("cannot start the broker's threads: {0}")]
    Threads(io::Error),
}

/// Why there is no join token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The broker is in no cluster.
    #[error(
        "this broker is in no cluster: one is founded with 'quire broker --init' in a new data directory"
    )]
    Alone,
    /// The cluster does not keep it.
    #[error("the cluster can not keep a token now: {0}")]
    NotKept(String),
}

/// A broker that serves.
pub(crate) struct Running {
    parts: Option<Parts>,
    address: SocketAddr,
    admin_address: Option<SocketAddr>,
    credentials: ClientCredentials,
    ready_in: Duration,
}

/// What is taken apart at the end.
struct Parts {
    context: Arc<Context>,
    endpoint: Endpoint,
    socket: HeldSocket,
    stop: StopSignal,
    logs: Logs,
    admin: Option<Admin>,
}

/// The running admin server. It ends when this is dropped.
struct Admin {
    end: StopSignal,
    served: JoinHandle<()>,
}

/// Everything that has files open.
struct Logs {
    shards: Shards,
    metadata: MetadataLog,
    directory: DataDirectory,
}

/// What is left of [`Logs`] once no file is open any more.
struct ClosedLogs {
    partitions: usize,
    is_clean: bool,
    /// See [`MetadataLog::close`].
    socket_for_brokers: Option<HeldSocket>,
    /// No other broker has it before this is dropped.
    directory: DataDirectory,
}

/// Who keeps the metadata.
enum MetadataLog {
    /// This broker alone.
    Local(Arc<LocalMetadata>),
    /// This broker with others.
    Cluster(Box<Cluster>),
}

impl MetadataLog {
    fn shared(&self) -> Arc<dyn Metadata> {
        match self {
            MetadataLog::Local(metadata) => Arc::clone(metadata) as _,
            MetadataLog::Cluster(cluster) => Arc::new(cluster.metadata.clone()),
        }
    }

    fn cluster(&self) -> Option<&Cluster> {
        match self {
            MetadataLog::Local(_) => None,
            MetadataLog::Cluster(cluster) => Some(cluster),
        }
    }

    /// Closes it. Whether cleanly; and what knows when the address for other brokers is free, which is not before everybody
    /// has let go of the metadata.
    async fn close(self) -> (bool, Option<HeldSocket>) {
        match self {
            MetadataLog::Local(metadata) => {
                let closed = metadata.close().await;
                if let Err(error) = &closed {
                    tracing::warn!(%error, "the metadata log was not closed cleanly and is recovered at the next start");
                }
                (closed.is_ok(), None)
            }
            MetadataLog::Cluster(cluster) => cluster.close().await,
        }
    }
}

impl Running {
    pub(crate) async fn start(config: Config, disk: Arc<dyn Disk>) -> Result<Running, StartError> {
        let began = Instant::now();
        descriptors::raise_limit();
        let (directory, credentials) = prepare(&config, Arc::clone(&disk)).await?;
        if config.tls.anonymous {
            tracing::warn!(
                "clients without a certificate are let in: whoever reaches the port has the rights of \"anonymous\""
            );
        }
        if config.is_nameless() {
            tracing::warn!(
                listen = %config.network.listen,
                "other machines can not connect: the broker's certificate names only this one; set network.advertise to \
                 the host and port that clients use, or list the host in tls.names"
            );
        }
        let certificate = Arc::new(credentials.certificate()?);
        let admits = match (&credentials, config.tls.anonymous) {
            (Credentials::Member(_), _) => Admits::Joining,
            (Credentials::Alone(_), true) => Admits::Anyone,
            (Credentials::Alone(_), false) => Admits::Certified,
        };
        let tls = tls::server_config(credentials.authority_pem(), Arc::clone(&certificate), admits)?;
        let listen = config.network.listen;
        let listening = |source| StartError::Listen { address: listen, source };
        let (endpoint, socket) =
            endpoint::open(listen, tls, credentials.reset_key().clone(), &config.network.sockets)
                .map_err(listening)?;
        let address = endpoint.local_addr().map_err(listening)?;
        let admin = bind_admin(config.admin_listen).await?;
        let admin_address = admin.as_ref().map(|(_, address)| *address);

        let metrics = Metrics::new();
        let advertised = config.network.advertise.clone().unwrap_or_else(|| reachable(address));
        let revoked = Arc::<Revoked>::default();
        let opening = Opening {
            config: &config,
            disk,
            directory,
            credentials: &credentials,
            certificate: Arc::clone(&certificate),
            revoked: Arc::clone(&revoked),
            advertised: &advertised,
            metrics: &metrics,
        };
        let logs = opening.open().await?;
        let (stop, stopping) = StopSignal::new();
        let context = Arc::new(context(config, &logs, revoked, metrics, stopping));
        let ready = Arc::new(AtomicBool::new(false));
        let admin = admin.map(|(listener, _)| {
            let (end, ending) = StopSignal::new();
            let served = tokio::spawn(listener.serve(Arc::clone(&context), Arc::clone(&ready), ending));
            Admin { end, served }
        });
        tokio::spawn(admin::upkeep(Arc::clone(&context)));
        if matches!(credentials, Credentials::Alone(_)) {
            let (tls_dir, names) = (tls_dir(&context.config.data_dir), certificate_names(&context.config));
            tokio::spawn(renewal::keep(tls_dir, names, certificate, context.stopping.clone()));
        }
        threads::spawn_task("accept", connection::accept_all(endpoint.clone(), Arc::clone(&context)));

        // From here on dropping it closes the logs, also if the caller stops waiting.
        let mut running = Running {
            parts: Some(Parts { context: Arc::clone(&context), endpoint, socket, stop, logs, admin }),
            address,
            admin_address,
            credentials: credentials.of_client(),
            ready_in: Duration::ZERO,
        };
        context.partitions.all_opened().await;
        running.ready_in = began.elapsed();
        ready.store(true, Ordering::Release);
        context.metrics.ready_seconds.set(running.ready_in.as_secs_f64());
        let partitions = context.partitions.all().len();
        let cluster = &context.identity.cluster_id;
        tracing::info!(%address, partitions, ready_in = ?running.ready_in, cluster, "broker ready");
        Ok(running)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    pub(crate) fn credentials(&self) -> &ClientCredentials {
        &self.credentials
    }

    pub(crate) fn cluster_id(&self) -> &str {
        &self.parts().context.identity.cluster_id
    }

    pub(crate) fn ready_in(&self) -> Duration {
        self.ready_in
    }

    pub(crate) fn id(&self) -> BrokerId {
        self.parts().context.identity.broker
    }

    pub(crate) fn peer_address(&self) -> Option<SocketAddr> {
        self.parts().logs.metadata.cluster().map(|cluster| cluster.peers.address())
    }

    /// Follows the cluster's metadata.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<Image>> {
        self.parts().logs.metadata.shared().changes()
    }

    pub(crate) async fn join_token(&self, age: Duration) -> Result<JoinToken, TokenError> {
        let cluster = self.parts().logs.metadata.cluster().ok_or(TokenError::Alone)?;
        let issued = cluster::issue_token(&cluster.metadata, cluster.gate.fingerprint(), age).await;
        issued.map_err(|error| TokenError::NotKept(error.to_string()))
    }

    fn parts(&self) -> &Parts {
        self.parts.as_ref().expect("taken only by what consumes or drops the broker")
    }

    /// Stops in order: no new work, answers to what was taken, then the connections, then the logs.
    pub(crate) async fn shutdown(mut self) -> ShutdownReport {
        let began = Instant::now();
        let Parts { context, endpoint, socket, stop, logs, admin } =
            self.parts.take().expect("a broker is shut down once");
        let connections = context.connections.count();
        tracing::info!(connections, "shutting down");
        // Leaders move away while everything still works: clients follow them.
        if let Some(cluster) = logs.metadata.cluster() {
            cluster.drain(&context.identity, context.config.drain).await;
        }
        stop.request();
        if timeout(context.config.drain, context.streams.idle()).await.is_err() {
            tracing::warn!(streams = context.streams.count(), "clients did not take everything in time");
        }
        endpoint.close(close_code(ErrorCode::ShuttingDown), SHUTTING_DOWN);
        // Bounded: a client that is gone acknowledges nothing.
        let _ = timeout(CLOSE_TIME_MAX, endpoint.wait_idle()).await;
        drop(endpoint);
        let ClosedLogs { partitions, is_clean: clean, socket_for_brokers, directory } = logs.close().await;
        if let Some(admin) = admin {
            admin.close().await;
        }
        // It holds the metadata, and that the way to the other brokers.
        drop(context);
        if timeout(CLOSE_TIME_MAX, socket.released()).await.is_err() {
            tracing::warn!("the address that the broker listened on is still taken");
        }
        if let Some(socket) = socket_for_brokers
            && timeout(CLOSE_TIME_MAX, socket.released()).await.is_err()
        {
            tracing::warn!("the address that the broker listened on for others is still taken");
        }
        // Only now may another broker have the directory: one that waits for it takes the addresses at once.
        drop(directory);
        let report = ShutdownReport { connections, partitions, clean, took: began.elapsed() };
        tracing::info!(partitions, clean, took = ?report.took, "broker stopped");
        report
    }
}

const SHUTTING_DOWN: &[u8] = b"the broker is shutting down";

impl Drop for Running {
    /// Cuts clients off, and closes the logs on a thread: the runtime may be ending.
    fn drop(&mut self) {
        let Some(Parts { endpoint, stop, logs, .. }) = self.parts.take() else { return };
        stop.request();
        endpoint.close(close_code(ErrorCode::ShuttingDown), SHUTTING_DOWN);
        let close = move || {
            if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() {
                drop(runtime.block_on(logs.close()));
            }
        };
        if let Err(error) = threads::spawn("broker-close".to_owned(), close) {
            tracing::error!(%error, "a broker was dropped, and its logs cannot be closed");
        }
    }
}

impl Admin {
    /// Answers what was asked, and gives the port back.
    async fn close(self) {
        let Admin { end, mut served } = self;
        end.request();
        if timeout(CLOSE_TIME_MAX, &mut served).await.is_err() {
            served.abort();
        }
    }
}

impl Logs {
    async fn close(self) -> ClosedLogs {
        let closed = self.shards.close().await;
        let (is_clean, socket_for_brokers) = self.metadata.close().await;
        ClosedLogs {
            partitions: closed.partitions,
            is_clean: is_clean && closed.clean == closed.partitions,
            socket_for_brokers,
            directory: self.directory,
        }
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("address", &self.address).finish_non_exhaustive()
    }
}

/// The certificates that a broker has.
enum Credentials {
    Alone(Certificates),
    Member(Member),
}

impl Credentials {
    fn certificate(&self) -> Result<BrokerCertificate, TlsError> {
        match self {
            Credentials::Alone(certificates) => BrokerCertificate::new(&certificates.broker),
            Credentials::Member(member) => {
                BrokerCertificate::with_authority(&member.broker, &member.authority_pem)
            }
        }
    }

    fn authority_pem(&self) -> &str {
        match self {
            Credentials::Alone(certificates) => &certificates.authority_pem,
            Credentials::Member(member) => &member.authority_pem,
        }
    }

    fn reset_key(&self) -> &ResetKey {
        match self {
            Credentials::Alone(certificates) => &certificates.reset_key,
            Credentials::Member(member) => &member.reset_key,
        }
    }

    fn of_client(self) -> ClientCredentials {
        let (authority_pem, client) = match self {
            Credentials::Alone(certificates) => (certificates.authority_pem, certificates.client),
            Credentials::Member(member) => (member.authority_pem, member.client),
        };
        ClientCredentials { authority_pem, certificate_pem: client.certificate_pem, key_pem: client.key_pem }
    }
}

/// Takes the data directory, and reads or makes the certificates in it.
async fn prepare(config: &Config, disk: Arc<dyn Disk>) -> Result<(DataDirectory, Credentials), StartError> {
    let (tls_dir, names) = (tls_dir(&config.data_dir), certificate_names(config));
    let directory = cluster::enter(config, disk, names.clone()).await?;
    let (membership, passphrase) = (directory.identity.membership, config.cluster.passphrase.clone());
    let credentials = blocking(move || match membership {
        Membership::Alone => certificates::ensure(&tls_dir, &names).map(Credentials::Alone),
        Membership::Cluster => membership::open(&tls_dir, passphrase.as_ref().map(|text| text.0.as_str()))
            .map(Credentials::Member),
    });
    Ok((directory, credentials.await?))
}

fn certificate_names(config: &Config) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    names.extend(config.network.advertise.as_ref().map(|advertise| advertise.host.clone()));
    let listen = config.network.listen.ip();
    names.extend((!listen.is_unspecified()).then(|| listen.to_string()));
    names.extend(config.tls.names.iter().cloned());
    names.sort();
    names.dedup();
    names
}

/// What a client on this machine connects to, given an address that was bound.
pub(crate) fn reachable(address: SocketAddr) -> HostPort {
    let host = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => "127.0.0.1".to_owned(),
        IpAddr::V6(ip) if ip.is_unspecified() => "::1".to_owned(),
        ip => ip.to_string(),
    };
    HostPort { host, port: address.port() }
}

async fn bind_admin(listen: Option<SocketAddr>) -> Result<Option<(AdminListener, SocketAddr)>, StartError> {
    let Some(address) = listen else { return Ok(None) };
    let listening = |source| StartError::Listen { address, source };
    let listener = AdminListener::bind(address).await.map_err(listening)?;
    let bound = listener.address().map_err(listening)?;
    if !bound.ip().is_loopback() {
        tracing::warn!(address = %bound, "the admin server has no access control and is not on loopback");
    }
    Ok(Some((listener, bound)))
}

fn context(
    config: Config,
    logs: &Logs,
    revoked: Arc<Revoked>,
    metrics: Metrics,
    stopping: Stopping,
) -> Context {
    let (metadata, partitions) = (logs.metadata.shared(), logs.shards.partitions());
    let broker = logs.directory.identity.broker;
    let coordinators =
        Coordinators::start(Arc::clone(&metadata), broker, partitions.clone(), stopping.clone());
    Context {
        memory: Memory::new(&config),
        config,
        identity: logs.directory.identity.clone(),
        metadata,
        partitions,
        coordinators,
        producer_ids: ProducerIds::default(),
        metrics,
        streams: Underway::new(),
        connections: Underway::new(),
        stopping,
        gate: logs.metadata.cluster().map(|cluster| Arc::clone(&cluster.gate)),
        is_heard: logs.metadata.cluster().map(Cluster::is_heard),
        revoked,
    }
}

/// What the logs are opened with.
struct Opening<'a> {
    config: &'a Config,
    disk: Arc<dyn Disk>,
    directory: DataDirectory,
    credentials: &'a Credentials,
    certificate: Arc<BrokerCertificate>,
    revoked: Arc<Revoked>,
    advertised: &'a HostPort,
    metrics: &'a Metrics,
}

impl Opening<'_> {
    /// Opens the metadata, starts the shards that follow it, and registers the broker in it.
    async fn open(self) -> Result<Logs, StartError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        match self.credentials {
            Credentials::Alone(_) => self.open_alone(clock).await,
            Credentials::Member(member) => self.open_member(clock, member).await,
        }
    }

    fn registration(&self) -> RegisterBroker {
        let identity = &self.directory.identity;
        RegisterBroker {
            cluster_id: identity.cluster_id.clone(),
            broker: identity.broker,
            incarnation: random(),
            directory: identity.directory,
            host: self.advertised.host.clone(),
            port: self.advertised.port,
            rack: self.config.rack.clone(),
            ..RegisterBroker::default()
        }
    }

    async fn open_alone(self, clock: Arc<dyn Clock>) -> Result<Logs, StartError> {
        let options = LocalMetadataOptions {
            disk: Arc::clone(&self.disk),
            dir: self.config.data_dir.join("metadata"),
            topics_dir: self.config.data_dir.join("topics"),
            clock: Arc::clone(&clock),
            seed: u64::from_le_bytes(random()),
            registration: RegisterBroker { is_alone: true, ..self.registration() },
        };
        let metadata = Arc::new(blocking(move || LocalMetadata::open(options)).await?);
        // This broker is the whole cluster: it is registered by now, follows nobody, and its controller is itself.
        let broker = self.directory.identity.broker;
        let registered = Metadata::image(&*metadata).broker(broker).map(|broker| broker.epoch);
        let (_, registration) = watch::channel(registered);
        let (outgoing, _) = mpsc::unbounded_channel();
        let shards = self.start_shards(clock, Arc::clone(&metadata) as _, registration, outgoing)?;
        Ok(Logs { shards, metadata: MetadataLog::Local(metadata), directory: self.directory })
    }

    async fn open_member(self, clock: Arc<dyn Clock>, member: &Member) -> Result<Logs, StartError> {
        let mut cluster = Cluster::start(ClusterOptions {
            config: self.config,
            disk: Arc::clone(&self.disk),
            clock: Arc::clone(&clock),
            identity: &self.directory.identity,
            member,
            certificate: Arc::clone(&self.certificate),
            revoked: Arc::clone(&self.revoked),
            names: certificate_names(self.config),
        })
        .await?;
        let metadata: Arc<dyn Metadata> = Arc::new(cluster.metadata.clone());
        let (outgoing, wanted) = mpsc::unbounded_channel();
        let shards = self.start_shards(clock, metadata, cluster.registration(), outgoing)?;
        // What may lack records is told with the registration: so its logs are opened first.
        let partitions = shards.partitions();
        cluster.replicate(self.directory.identity.broker, &partitions, wanted);
        partitions.all_opened().await;
        let peer = cluster.peer_address(self.config);
        let registration = RegisterBroker {
            peer_host: peer.host,
            peer_port: peer.port,
            node: cluster.metadata.node_id(),
            suspects: partitions.suspects(),
            ..self.registration()
        };
        cluster.register(registration, &partitions).await?;
        cluster.hand_over_authority(self.config, &self.directory.identity, member).await?;
        cluster.unfenced().await;
        Ok(Logs { shards, metadata: MetadataLog::Cluster(Box::new(cluster)), directory: self.directory })
    }

    fn start_shards(
        &self,
        clock: Arc<dyn Clock>,
        metadata: Arc<dyn Metadata>,
        registration: watch::Receiver<Option<u64>>,
        outgoing: mpsc::UnboundedSender<(usize, Outgoing)>,
    ) -> Result<Shards, StartError> {
        let options = ShardsOptions {
            broker: self.directory.identity.broker,
            disk: Arc::clone(&self.disk),
            dir: self.config.data_dir.join("topics"),
            shards: self.config.shards,
            clock,
            retention_interval: ShardsOptions::RETENTION_INTERVAL,
            deletion_grace: self.config.deletion_grace,
            replica_lag: self.config.cluster.replica_lag,
            fetch_bytes: limits::REPLICA_MEMORY_BYTES,
            scrub: ScrubOptions {
                bytes_per_second: self.config.scrub.bytes_per_second,
                interval: self.config.scrub.interval,
            },
            registration,
            outgoing,
            metrics: Arc::clone(&self.metrics.shards),
        };
        Shards::start(options, metadata).map_err(StartError::Threads)
    }
}

/// Runs what waits for the disk on a thread that may.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}
