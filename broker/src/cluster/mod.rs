//! A broker as one of a cluster's: how it gets its identity at the first start, takes part, and leaves.
//!
//! `service` is what it does for the others, `registration` how the controller knows it, `heartbeat` (with the pure `pulse`)
//! how it shows that it is there; what the active controller makes of that is `controller/raft/active`. All of it runs on a
//! runtime of its own, beside whatever the data plane does.

mod entry;
mod heartbeat;
mod pulse;
mod registration;
mod service;
mod upkeep;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt;
use quire_engine::controller::{Refusal, RegisterBroker, Request};
use quire_protocol::rpc::peer::{HeartbeatRequest, request, response};
use quire_protocol::{BrokerId, Timestamp, limits};
use quire_storage::disk::Disk;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::config::{Config, HostPort};
use crate::controller::raft::{
    FormatError, Member as LogMember, PeerTransport, RaftMetadata, RaftMetadataOptions, RaftOpenError, Timing,
};
use crate::controller::{Metadata, ProposeError};
use crate::identity::{BrokerIdentity, random};
use crate::net::authority::Authority;
use crate::net::certificates::CertificatesError;
use crate::net::endpoint::HeldSocket;
use crate::net::join::admit::Gate;
use crate::net::join::ask::JoinError;
use crate::net::join::token::{Fingerprint, JoinToken};
use crate::net::membership::{self, Member};
use crate::net::peers::tls::Revoked;
use crate::net::peers::{Peers, PeersOpenError, PeersOptions};
use crate::net::seal;
use crate::net::tls::BrokerCertificate;
use crate::replicas::Replicas;
use crate::shard::{Clock, Outgoing, Partitions, SystemClock};

use heartbeat::{HeartbeatHandle, Heartbeats};
use registration::Registration;
use service::{Book, Service, Signer};

pub(crate) use entry::enter;

/// How long a start waits for the cluster before it says so, again and again.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a start that waits looks whether it waits in vain, and how long one broker is asked.
const REMOVAL_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A broker could not become, or be, one of a cluster's.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// `--init` or `--join`, in a directory that says otherwise.
    #[error("{} holds a broker of its own, which can not become one of a cluster: choose a new directory", dir.display())]
    Alone {
        /// The directory.
        dir: PathBuf,
    },
    /// A broker of a cluster, by its configuration, and no cluster that it is of.
    #[error(
        "{} holds no broker yet, and the configuration names an address for others of a cluster: found one with --init, or \
         enter one with --join and --token; if this broker had data here, its disk is not in place",
        dir.display()
    )]
    NoIdentity {
        /// The directory.
        dir: PathBuf,
    },
    /// The cluster did not let it in.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The certificates can not be made or read.
    #[error(transparent)]
    Certificates(#[from] CertificatesError),
    /// A file can not be read or written.
    #[error("cannot use {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The metadata directory can not be made.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The metadata can not be opened.
    #[error(transparent)]
    Open(#[from] RaftOpenError),
    /// The peers' address or certificates can not be used.
    #[error(transparent)]
    Peers(#[from] PeersOpenError),
    /// The cluster refuses the broker.
    #[error("the cluster does not take this broker: {0}")]
    Refused(ProposeError),
    /// The operating system gives no more threads.
    #[error("cannot start the control runtime: {0}")]
    Threads(io::Error),
}

/// What a broker takes part with.
pub(crate) struct ClusterOptions<'a> {
    pub(crate) config: &'a Config,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) identity: &'a BrokerIdentity,
    pub(crate) member: &'a Member,
    pub(crate) certificate: Arc<BrokerCertificate>,
    pub(crate) revoked: Arc<Revoked>,
    /// Host names and addresses in this broker's certificate.
    pub(crate) names: Vec<String>,
}

/// The metadata of a cluster, and the way to its other brokers.
pub(crate) struct Cluster {
    pub(crate) metadata: RaftMetadata,
    pub(crate) peers: Peers,
    /// Lets further brokers in.
    pub(crate) gate: Arc<Gate>,
    service: Arc<Service>,
    heartbeat: HeartbeatHandle,
    registration: Registration,
    tasks: Vec<JoinHandle<()>>,
    control: ControlRuntime,
}

/// A runtime with one thread, which ends without waiting for what it runs.
struct ControlRuntime(Option<Runtime>);

impl ControlRuntime {
    fn start() -> io::Result<ControlRuntime> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("control")
            .enable_all()
            .build()?;
        Ok(ControlRuntime(Some(runtime)))
    }

    fn handle(&self) -> &Handle {
        self.0.as_ref().expect("taken only when it is dropped").handle()
    }
}

impl Drop for ControlRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Cluster {
    /// Takes part in the metadata, and answers the others. Returns once the metadata is known here.
    pub(crate) async fn start(options: ClusterOptions<'_>) -> Result<Cluster, ClusterError> {
        let ClusterOptions { config, disk, clock, identity, member, certificate, revoked, names } = options;
        let control = ControlRuntime::start().map_err(ClusterError::Threads)?;
        let peers = Peers::open(PeersOptions {
            broker: identity.broker,
            cluster_id: identity.cluster_id.clone(),
            listen: config.cluster.peer_listen,
            authority_pem: member.authority_pem.clone(),
            certificate: Arc::clone(&certificate),
            revoked: Arc::clone(&revoked),
            reset_key: member.reset_key.clone(),
            sockets: config.network.sockets.clone(),
            control: control.handle().clone(),
        })?;
        let advertised = peer_address(config, peers.address());
        let opening = RaftMetadata::open(RaftMetadataOptions {
            disk: Arc::clone(&disk),
            dir: config.data_dir.join("metadata"),
            clock: Arc::clone(&clock),
            seed: u64::from_le_bytes(random()),
            member: LogMember { broker: identity.broker, host: advertised.host, port: advertised.port },
            transport: Arc::new(PeerTransport::new(peers.clone())),
            timing: Timing::default(),
            session: config.cluster.session,
            leader_return: config.cluster.leader_return,
        });
        let metadata = joined(control.handle().spawn(opening)).await?;

        let signer = Arc::new(Signer {
            cluster_id: identity.cluster_id.clone(),
            metadata: metadata.clone(),
            seal_key: member.seal_key.clone(),
        });
        let service = Arc::new(Service {
            metadata: metadata.clone(),
            signer: Arc::clone(&signer),
            partitions: OnceLock::new(),
        });
        peers.serve(Arc::clone(&service) as _);
        let book = Arc::new(Book { metadata: metadata.clone(), clock });
        let fingerprint = Fingerprint::of_pem(&member.authority_pem).ok_or_else(|| {
            let path = tls_dir(&config.data_dir).join("authority.pem");
            CertificatesError::Authority { path, what: "is damaged".to_owned() }
        })?;
        let gate = Gate::new(identity.cluster_id.clone(), fingerprint, member.seal_key.clone(), book);
        let (registration, registered) = watch::channel(None);
        let heartbeat = HeartbeatHandle::new();
        let heartbeats = Heartbeats {
            metadata: Arc::new(metadata.clone()),
            peers: peers.clone(),
            interval: config.cluster.heartbeat,
            session: config.cluster.session,
            registration: registered,
        };
        let renewal = upkeep::Renewal {
            dir: config.data_dir.join("tls"),
            broker: identity.broker,
            names,
            authority_pem: member.authority_pem.clone(),
            certificate,
            signer,
            peers: peers.clone(),
            metadata: metadata.clone(),
        };
        let tasks = vec![
            control.handle().spawn(heartbeat::run(heartbeats, heartbeat.clone())),
            control.handle().spawn(upkeep::follow(metadata.clone(), peers.clone(), revoked)),
            control.handle().spawn(upkeep::renew(renewal)),
        ];
        let cluster = Cluster {
            metadata: metadata.clone(),
            peers,
            gate: Arc::new(gate),
            service,
            heartbeat,
            registration: Registration { metadata: Arc::new(metadata), epoch: registration },
            tasks,
            control,
        };
        cluster.take_part(config, disk, identity).await?;
        Ok(cluster)
    }

    /// Where other brokers are told to connect.
    pub(crate) fn peer_address(&self, config: &Config) -> HostPort {
        peer_address(config, self.peers.address())
    }

    /// Lets others follow what this broker leads, and has carried what its shards want of others.
    pub(crate) fn replicate(
        &self,
        broker: BrokerId,
        partitions: &Partitions,
        outgoing: mpsc::UnboundedReceiver<(usize, Outgoing)>,
    ) {
        let is_first = self.service.partitions.set(partitions.clone()).is_ok();
        assert!(is_first, "the shards are started once");
        let replicas = Replicas {
            broker,
            metadata: Arc::new(self.metadata.clone()),
            router: partitions.router().clone(),
            dial: Arc::new(self.peers.clone()),
        };
        // It ends with the shards.
        tokio::spawn(replicas.run(outgoing));
    }

    /// The registration that this broker lives in, once it has one.
    pub(crate) fn registration(&self) -> watch::Receiver<Option<u64>> {
        self.registration.epoch.subscribe()
    }

    /// Whether the controller heard this broker within a session.
    pub(crate) fn is_heard(&self) -> watch::Receiver<bool> {
        self.heartbeat.is_heard()
    }

    /// Founds the cluster, or is let into its log, if that was not done before.
    async fn take_part(
        &self,
        config: &Config,
        disk: Arc<dyn Disk>,
        identity: &BrokerIdentity,
    ) -> Result<(), ClusterError> {
        let dir = config.data_dir.clone();
        let seeds = entry::load_seeds(&*disk, &dir)?;
        if seeds.is_empty() {
            if identity.broker == BrokerIdentity::FOUNDER {
                let metadata = self.metadata.clone();
                let founded = joined(self.control.handle().spawn(async move { metadata.found().await }));
                return founded.await.map_err(ClusterError::Refused);
            }
            return Ok(());
        }
        let members: Vec<_> = seeds
            .into_iter()
            .map(|(broker, address)| LogMember { broker, host: address.host, port: address.port })
            .collect();
        let mut waited = Waited::new("the cluster does not answer yet");
        loop {
            let (metadata, seeds) = (self.metadata.clone(), members.clone());
            let asked = self.control.handle().spawn(async move { metadata.join(&seeds, PATIENCE).await });
            match joined(asked).await {
                Ok(()) => break,
                Err(ProposeError::Unavailable { what }) => waited.tell(&what),
                Err(error) => return Err(ClusterError::Refused(error)),
            }
        }
        entry::forget_seeds(&*disk, &dir)
    }

    /// Registers this process with the controller, for as long as that takes, and says to everybody who asks which
    /// registration it is; again whenever it is lost.
    pub(crate) async fn register(
        &mut self,
        broker: RegisterBroker,
        partitions: &Partitions,
    ) -> Result<u64, ClusterError> {
        let id = broker.broker;
        let epoch = tokio::select! {
            registered = self.registration.register(broker.clone()) => registered?,
            () = self.removed(id) => {
                let refusal = Refusal::BrokerRemoved { broker: id };
                return Err(ClusterError::Refused(ProposeError::Refused(refusal)));
            }
        };
        let partitions = partitions.clone();
        let suspects = move || {
            let partitions = partitions.clone();
            async move {
                partitions.all_opened().await;
                partitions.suspects()
            }
            .boxed()
        };
        let kept = self.registration.clone().keep(broker, self.heartbeat.clone(), suspects);
        self.tasks.push(self.control.handle().spawn(kept));
        Ok(epoch)
    }

    /// Returns once somebody says that this broker was removed: the cluster's log does not reach it any more, so that it
    /// would wait for a controller for ever.
    async fn removed(&self, broker: BrokerId) {
        loop {
            tokio::time::sleep(REMOVAL_LOOK_INTERVAL).await;
            let image = self.metadata.image();
            if image.is_removed(broker) {
                return;
            }
            for other in image.brokers().filter(|other| other.id != broker && other.peer_port != 0) {
                let asked = request::Body::Heartbeat(HeartbeatRequest::default());
                let answer = self.peers.call(other.id, asked, REMOVAL_LOOK_INTERVAL).await;
                if matches!(answer, Ok(response::Body::Heartbeat(answer)) if answer.is_removed) {
                    return;
                }
            }
        }
    }

    /// Gives the authority into the metadata, sealed, if this broker still has it alone.
    pub(crate) async fn hand_over_authority(
        &self,
        config: &Config,
        identity: &BrokerIdentity,
        member: &Member,
    ) -> Result<(), ClusterError> {
        let (Some(key_pem), Some(seal_key)) = (member.authority_key_pem.clone(), member.seal_key.clone())
        else {
            return Ok(());
        };
        let path = config.data_dir.join("tls").join("authority.pem");
        let (pem, cluster_id) = (member.authority_pem.clone(), identity.cluster_id.clone());
        let sealing = move || -> Result<Arc<[u8]>, CertificatesError> {
            let authority = Authority::from_pem(pem, &key_pem)
                .map_err(|error| CertificatesError::Authority { path, what: error.0.to_owned() })?;
            Ok(seal::seal(&authority, &seal_key, &cluster_id).into())
        };
        let sealed = joined(tokio::task::spawn_blocking(sealing)).await?;
        let mut waited = Waited::new("the cluster's authority is not kept yet");
        while self.metadata.image().authority().is_none() {
            match self.metadata.propose(Request::SetAuthority { sealed: Arc::clone(&sealed) }).await {
                Ok(_) => break,
                Err(error @ ProposeError::Refused(_)) => return Err(ClusterError::Refused(error)),
                Err(error) => waited.tell(&error.to_string()),
            }
        }
        let dir = config.data_dir.join("tls");
        joined(tokio::task::spawn_blocking(move || membership::forget_authority_key(&dir))).await?;
        Ok(())
    }

    /// Returns once the controller takes this broker for there, or its patience ends.
    pub(crate) async fn unfenced(&self) {
        if timeout(PATIENCE, self.heartbeat.unfenced()).await.is_err() {
            tracing::warn!("the controller does not take this broker for there yet");
        }
    }

    /// Has leaderships move to others, and the controller's with them, as far as others can take them in this time.
    pub(crate) async fn drain(&self, identity: &BrokerIdentity, time: Duration) {
        let deadline = Instant::now() + time;
        if self.metadata.image().brokers().filter(|broker| broker.is_active()).count() < 2 {
            return;
        }
        let moved = async {
            tokio::select! {
                () = self.heartbeat.drain() => true,
                () = self.quorum_lost() => false,
            }
        };
        match timeout(time, moved).await {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!("no leadership moves away: most controllers are gone");
                return;
            }
            Err(_) => tracing::warn!("not every leadership moved away in time"),
        }
        let Some(epoch) = *self.registration.epoch.borrow() else { return };
        // Out of every in-sync set, or the others wait a session for this broker's word.
        let goodbye = Request::FenceBroker { broker: identity.broker, epoch };
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(500));
        match timeout(left, self.metadata.propose(goodbye)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::info!(%error, "the controller did not take the goodbye"),
            Err(_) => tracing::info!("the controller did not answer the goodbye in time"),
        }
    }

    /// Returns once there was no leader with a quorum for longer than electing one takes.
    async fn quorum_lost(&self) {
        let mut last_seen = Instant::now();
        while last_seen.elapsed() < 3 * limits::RAFT_ELECTION_TIME_MAX {
            tokio::time::sleep(limits::RAFT_ELECTION_TIME_MAX / 4).await;
            if self.metadata.has_quorum() {
                last_seen = Instant::now();
            }
        }
    }

    /// Leaves the metadata, closes its log, and ends the connections to other brokers. Gives what knows when the peers'
    /// address is free.
    pub(crate) async fn close(self) -> (bool, Option<HeldSocket>) {
        let Cluster { metadata, peers, tasks, control, .. } = self;
        tasks.iter().for_each(JoinHandle::abort);
        let closing = control.handle().spawn(async move {
            metadata.resign(limits::RAFT_ELECTION_TIME_MAX).await;
            metadata.close().await
        });
        let closed = joined(closing).await;
        if let Err(error) = &closed {
            tracing::warn!(%error, "the metadata log was not closed cleanly and is recovered at the next start");
        }
        peers.close().await;
        let socket = peers.take_socket();
        drop((peers, control));
        (closed.is_ok(), socket)
    }
}

/// Makes a token with which one broker can join in the time given.
pub(crate) async fn issue_token(
    metadata: &dyn Metadata,
    fingerprint: Fingerprint,
    age: Duration,
) -> Result<JoinToken, ProposeError> {
    let token = JoinToken::draw(fingerprint);
    let now = SystemClock::new().now().timestamp;
    let age_ms = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    let expires_at = Timestamp(now.0.saturating_add(age_ms));
    metadata.propose(Request::IssueToken { hash: token.hash(), expires_at }).await?;
    Ok(token)
}

/// Says that a start waits, not at each attempt.
struct Waited {
    what: &'static str,
    told: Option<Instant>,
}

impl Waited {
    fn new(what: &'static str) -> Waited {
        Waited { what, told: None }
    }

    fn tell(&mut self, why: &str) {
        if self.told.is_none_or(|told| told.elapsed() >= PATIENCE) {
            self.told = Some(Instant::now());
            tracing::warn!(why, "{}", self.what);
        }
    }
}

/// What is told to other brokers, given the address that was bound.
fn peer_address(config: &Config, bound: SocketAddr) -> HostPort {
    if let Some(advertised) = &config.cluster.peer_advertise {
        return advertised.clone();
    }
    // The host that clients are told is this machine to others too.
    let host = match (bound.ip().is_unspecified(), &config.network.advertise) {
        (true, Some(advertised)) => advertised.host.clone(),
        _ => crate::running::reachable(bound).host,
    };
    HostPort { host, port: bound.port() }
}

/// The folder with the certificates.
pub(crate) fn tls_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("tls")
}

async fn joined<T>(task: JoinHandle<T>) -> T {
    task.await.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => panic!("nobody ends the control runtime while something is waited for"),
    })
}
