//! Metadata of a cluster: the controller on a log that a quorum of brokers keeps.
//!
//! The log's engine is openraft, and nothing of it leaves this folder. What is around it, by what it does:
//!
//! ```text
//!  propose ─► driver ─► (proposals, the machine) ─► writer ─► openraft ─► log_store ─► journal ─► disk
//!                ▲                                              │  ▲
//!                └──────────────── machine ◄────────────────────┘  └──► network ─► peers ─► service
//! ```
//! Every node of the cluster has the log, and so the image; at most three of them vote. Whichever of those leads is the
//! active controller: it decides, `active` has it listen to the brokers, `members` keep the set of nodes in order.

mod active;
mod driver;
mod files;
mod journal;
mod log_store;
mod machine;
mod members;
mod network;
mod peers;
mod service;
mod types;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use openraft::async_runtime::Instant as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ClientWriteError, Fatal, InitializeError, RaftError};
use openraft::impls::ProgressResponder;
use openraft::{Config, RaftMetrics, ServerState, SnapshotPolicy};
use prost::Message;
use quire_engine::Time;
use quire_engine::controller::proposals::{self, Input, Leadership, NotDone};
use quire_engine::controller::{Image, Request, Response};
use quire_protocol::rpc::raft as wire_form;
use quire_protocol::{BrokerId, limits};
use quire_storage::CloseError;
use quire_storage::disk::Disk;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Metadata, ProposeError, Quorum};
use crate::shard::Clock;
use crate::threads;
use driver::{Driver, SharedDriver};
use files::Files;
use log_store::LogStore;
use machine::StateMachine;
use types::{Decision, Raft, Types};

pub use active::{Heartbeat, HeartbeatAnswer};
pub use files::FileError;
pub use journal::JournalError;
pub use network::{Transport, TransportError};
pub(crate) use peers::PeerTransport;
pub use types::Member;

/// Between two attempts to have a request decided.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// What the metadata of a cluster's node is opened with.
#[derive(Debug)]
pub struct RaftMetadataOptions {
    /// The file system.
    pub disk: Arc<dyn Disk>,
    /// `<data>/metadata`, formatted.
    pub dir: PathBuf,
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
    /// Where what must not be guessed comes from.
    pub seed: u64,
    /// This node: its broker, and where peers reach it.
    pub member: Member,
    /// The way to the other nodes.
    pub transport: Arc<dyn Transport>,
    /// How patient the nodes are with each other.
    pub timing: Timing,
    /// How long a broker is taken to be there that is not heard of.
    pub session: Duration,
    /// After how long a preferred leader that came back leads again; `None` is never.
    pub leader_return: Option<Duration>,
}

/// How patient the nodes of the log are with each other. The same on all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// The leader is heard from this often.
    pub heartbeat: Duration,
    /// A voter that did not hear of it for somewhere between these asks for an election.
    pub election_min: Duration,
    /// See `election_min`.
    pub election_max: Duration,
    /// A snapshot is taken after so many entries.
    pub snapshot_entries: u64,
    /// How long a change may take, until its outcome is unknown.
    pub propose: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            heartbeat: limits::RAFT_HEARTBEAT_INTERVAL,
            election_min: limits::RAFT_ELECTION_TIME_MIN,
            election_max: limits::RAFT_ELECTION_TIME_MAX,
            snapshot_entries: limits::RAFT_SNAPSHOT_ENTRIES,
            propose: limits::PROPOSE_TIME_MAX,
        }
    }
}

/// A metadata directory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// It is some node's.
    #[error("{} is the metadata directory of a node already", dir.display())]
    Formatted {
        /// Which one.
        dir: PathBuf,
    },
    /// A file of it can not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its log can not be made.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The disk refused.
    #[error("the metadata directory can not be made: {0}")]
    Io(#[from] io::Error),
}

/// The metadata can not be read or written: the node must not take part, since it could not keep its word.
#[derive(Debug, thiserror::Error)]
pub enum RaftOpenError {
    /// It is not a node's directory.
    #[error(
        "{} was never made a metadata directory, or its files are gone: a node that lost them can not come back as the \
         one it was; remove the broker's whole data directory and have it join again", dir.display()
    )]
    NotFormatted {
        /// Which one.
        dir: PathBuf,
    },
    /// A small file is missing or damaged.
    #[error(
        "{0}; a node that can not tell what it promised must not take part: restore the directory from before the \
         damage only if nothing ran since, or else remove the broker's whole data directory and have it join again"
    )]
    File(#[from] FileError),
    /// The log is damaged.
    #[error(
        "{0}; a node that can not tell what it promised must not take part: remove the broker's whole data directory \
         and have it join again"
    )]
    Journal(#[from] JournalError),
    /// The snapshot can not be understood.
    #[error("the metadata snapshot can not be read: {0}")]
    Snapshot(String),
    /// The log begins behind the snapshot's end.
    #[error("the metadata log begins behind its snapshot: the snapshot in {} is gone or old", dir.display())]
    Hole {
        /// Which directory.
        dir: PathBuf,
    },
    /// The timing makes no sense.
    #[error("the timing of the metadata log is impossible: {0}")]
    Timing(String),
    /// The engine does not start.
    #[error("the metadata log can not be started: {0}")]
    Engine(String),
}

/// Makes a metadata directory for the node `node`, whose number was drawn for it. Nothing is lost if it is interrupted:
/// call it again.
///
/// # Errors
/// If it is some node's already, or the disk refuses.
pub fn format(disk: Arc<dyn Disk>, dir: &Path, node: u64) -> Result<(), FormatError> {
    let files = Files::new(disk, dir.to_owned());
    files.disk().create_dir_all(dir)?;
    if let Some(parent) = dir.parent() {
        files.disk().sync_dir(parent)?;
    }
    if files.node()?.is_some() {
        return Err(FormatError::Formatted { dir: dir.to_owned() });
    }
    journal::create(&files)?;
    files.store_vote(None)?;
    files.store_node(node)?;
    Ok(())
}

/// The metadata of a cluster, as one of its nodes has it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RaftMetadata {
    node: Arc<Node>,
}

#[derive(Debug)]
struct Node {
    id: u64,
    clock: Arc<dyn Clock>,
    heartbeats: mpsc::Sender<Heartbeat>,
    member: Member,
    propose_time: Duration,
    raft: Raft,
    driver: SharedDriver,
    journal: journal::JournalHandle,
    transport: Arc<dyn Transport>,
    image: watch::Receiver<Arc<Image>>,
    applied: watch::Receiver<u64>,
    is_stopping: watch::Sender<bool>,
    arriving: Mutex<Option<service::Arriving>>,
    /// The other node's broker that led last, and when it was heard of as such.
    led_by: Mutex<Option<(BrokerId, Time)>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl RaftMetadata {
    /// Opens the node's directory and takes part, on the runtime it is called on.
    ///
    /// # Errors
    /// If anything that the node ever promised may be missing.
    pub async fn open(options: RaftMetadataOptions) -> Result<RaftMetadata, RaftOpenError> {
        let RaftMetadataOptions { disk, dir, clock, seed, member, transport, timing, session, leader_return } =
            options;
        let config = config(timing)?;
        let files = Files::new(disk, dir);
        let opened = {
            let (files, clock) = (files.clone(), clock.clone());
            tokio::task::spawn_blocking(move || Opened::read(files, clock)).await
        };
        let opened = opened.map_err(|error| RaftOpenError::Engine(error.to_string()))??;

        let (appends, decisions) = mpsc::channel(limits::METADATA_QUEUE_REQUESTS);
        let driver = Driver::new(seed, clock.clone(), appends);
        let (image, applied) = (driver.image(), driver.applied());
        let driver = Arc::new(Mutex::new(driver));
        let machine = StateMachine::new(driver.clone(), files, opened.snapshot);
        let network = network::Network::new(transport.clone(), seed);
        let raft = Raft::new(opened.id, Arc::new(config), network, opened.log, machine)
            .await
            .map_err(|error| RaftOpenError::Engine(error.to_string()))?;
        let (heartbeats, heard) = mpsc::channel(limits::METADATA_QUEUE_REQUESTS);
        let node = Arc::new(Node {
            id: opened.id,
            clock,
            heartbeats,
            member,
            propose_time: timing.propose,
            raft,
            driver,
            journal: opened.journal,
            transport,
            image,
            applied,
            is_stopping: watch::Sender::new(false),
            arriving: Mutex::new(None),
            led_by: Mutex::new(None),
            tasks: Mutex::new(Vec::new()),
        });
        let tasks = vec![
            threads::spawn_task("metadata-writer", write(node.clone(), decisions)),
            threads::spawn_task("metadata-leadership", follow_leadership(node.clone())),
            threads::spawn_task("metadata-members", members::keep(node.clone())),
            threads::spawn_task(
                "metadata-sessions",
                active::watch_brokers(node.clone(), heard, active::Patience { session, leader_return }),
            ),
        ];
        *node.tasks() = tasks;
        Ok(RaftMetadata { node })
    }

    /// Makes a cluster of this node alone. A node that is in a cluster stays as it is.
    ///
    /// # Errors
    /// If the log failed.
    pub async fn found(&self) -> Result<(), ProposeError> {
        let members = BTreeMap::from([(self.node.id, self.node.member.clone())]);
        match self.node.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(ProposeError::Failed { what: error.to_string() }),
        }
    }

    /// This node's number.
    pub fn node_id(&self) -> u64 {
        self.node.id
    }

    /// Entries of the log that are applied here; follows.
    #[cfg(test)]
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.node.applied.clone()
    }

    /// Whether this node is the active controller: what it decides is in effect once it is committed.
    #[cfg(test)]
    pub fn is_active(&self) -> bool {
        self.node.driver().deciding().is_some()
    }

    /// Whether, as far as this node can tell, there is a leader whom most voters follow.
    pub fn has_quorum(&self) -> bool {
        let metrics = self.node.metrics();
        if metrics.membership_config.voter_ids().count() < 2 {
            return true;
        }
        let is_heard = || {
            let acked = metrics.last_quorum_acked.as_ref();
            acked.is_some_and(|acked| acked.elapsed() < 2 * limits::RAFT_ELECTION_TIME_MAX)
        };
        metrics.current_leader.is_some_and(|leader| leader != self.node.id || is_heard())
    }

    /// Hands the leadership to another voter, if this node has it and there is one. Returns once another leads, or
    /// `time` is up.
    pub async fn resign(&self, time: Duration) {
        self.node.resign(time).await;
    }

    /// Takes no more requests, and closes the log.
    ///
    /// # Errors
    /// If the log was not closed cleanly, and is recovered at the next start.
    pub async fn close(&self) -> Result<(), CloseError> {
        self.node.is_stopping.send_replace(true);
        for task in self.node.tasks().drain(..) {
            task.abort();
        }
        // It may have failed already, or wait for peers that are gone; the log is what matters.
        if tokio::time::timeout(limits::RAFT_ELECTION_TIME_MAX, self.node.raft.shutdown()).await.is_err() {
            tracing::info!("the consensus engine did not end in time; its log is closed all the same");
        }
        self.node.driver().end();
        self.node.journal.close().await
    }
}

/// What the directory holds.
struct Opened {
    id: u64,
    log: LogStore,
    journal: journal::JournalHandle,
    snapshot: Option<types::Snapshot>,
}

impl Opened {
    fn read(files: Files, clock: Arc<dyn Clock>) -> Result<Opened, RaftOpenError> {
        let dir = files.dir().to_owned();
        let Some(id) = files.node()? else { return Err(RaftOpenError::NotFormatted { dir }) };
        let vote = files.vote()?;
        let snapshot = files.snapshot()?.map(machine::read_snapshot).transpose();
        let snapshot = snapshot.map_err(|error| RaftOpenError::Snapshot(error.to_string()))?;
        let (journal, contents) = journal::open(files, clock)?;
        let covered = snapshot.as_ref().and_then(|snapshot| snapshot.meta.last_log_id);
        if machine::leaves_a_hole(covered.as_ref(), contents.purged.as_ref()) {
            return Err(RaftOpenError::Hole { dir });
        }
        let log = LogStore::new(journal.clone(), contents, vote);
        Ok(Opened { id, log, journal, snapshot })
    }
}

fn config(timing: Timing) -> Result<Config, RaftOpenError> {
    let ms = |time: Duration| time.as_millis() as u64;
    let config = Config {
        cluster_name: "quire".to_owned(),
        heartbeat_interval: ms(timing.heartbeat),
        election_timeout_min: ms(timing.election_min),
        election_timeout_max: ms(timing.election_max),
        install_snapshot_timeout: ms(limits::RAFT_SNAPSHOT_TIME_MAX),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(timing.snapshot_entries),
        max_in_snapshot_log_to_keep: timing.snapshot_entries / 4,
        replication_lag_threshold: timing.snapshot_entries * 2,
        api_channel_size: Some(limits::METADATA_QUEUE_REQUESTS as u64),
        enable_pre_vote: Some(true),
        allow_log_reversion: Some(false),
        // The machine is in memory: a restarted leader has to learn first what was committed.
        enable_leader_restore: Some(false),
        ..Config::default()
    };
    config.validate().map_err(|error| RaftOpenError::Timing(error.to_string()))
}

impl Node {
    fn driver(&self) -> MutexGuard<'_, Driver> {
        self.driver.lock().expect("nobody panics while holding it")
    }

    fn tasks(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.tasks.lock().expect("nobody panics while holding it")
    }

    fn metrics(&self) -> RaftMetrics<Types> {
        self.raft.metrics().borrow_watched().clone()
    }

    /// Who leads, as far as this node knows, and where it is reached.
    fn leader(&self) -> Option<(u64, Member)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader?;
        Some((leader, metrics.membership_config.get_node(&leader)?.clone()))
    }

    fn failure(&self) -> Option<Fatal<Types>> {
        self.raft.metrics().borrow_watched().running_state.clone().err()
    }

    async fn propose(&self, request: Request) -> Result<Response, ProposeError> {
        let deadline = Instant::now() + self.propose_time;
        loop {
            if *self.is_stopping.borrow() {
                return Err(ProposeError::Stopped);
            }
            if let Some(failure) = self.failure() {
                return Err(ProposeError::Failed { what: failure.to_string() });
            }
            let attempt = match self.leader() {
                Some((node, _)) if node == self.id => self.propose_here(request.clone(), deadline).await,
                Some((node, member)) => self.forward(node, &member, &request, deadline).await,
                None => Attempt::NotMade("no controller is known".to_owned()),
            };
            match attempt {
                Attempt::Made(response, applied) => {
                    self.wait_applied(applied, deadline).await;
                    return Ok(response);
                }
                Attempt::Failed(error) => return Err(error),
                Attempt::NotMade(what) if Instant::now() + RETRY_INTERVAL >= deadline => {
                    return Err(ProposeError::Unavailable { what });
                }
                Attempt::NotMade(_) => tokio::time::sleep(RETRY_INTERVAL).await,
            }
        }
    }

    /// One attempt to have this node decide.
    async fn propose_here(&self, request: Request, deadline: Instant) -> Attempt {
        let Some(answered) = self.driver().propose(request) else {
            return Attempt::NotMade("too many changes are waiting".to_owned());
        };
        let answer = match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => return Attempt::unknown("the broker is shutting down"),
            Err(_) => return Attempt::unknown("the quorum did not take it in time"),
        };
        match answer.result {
            Ok(response) => Attempt::Made(response, answer.applied),
            Err(NotDone::Refused(refusal)) => Attempt::Failed(ProposeError::Refused(refusal)),
            Err(NotDone::Unknown) => Attempt::unknown("the leadership changed"),
            Err(not_made @ (NotDone::NotActive | NotDone::NotMade)) => Attempt::NotMade(not_made.to_string()),
        }
    }

    /// One attempt to have another node decide.
    async fn forward(&self, node: u64, member: &Member, request: &Request, deadline: Instant) -> Attempt {
        let request = wire_form::ProposeRequest { request: request.encode().into() };
        let body = wire_form::request::Body::Propose(request);
        let time = deadline.saturating_duration_since(Instant::now());
        match self.call(node, member, body, time).await {
            Ok(wire_form::response::Body::Propose(response)) => service::read_proposed(response),
            Ok(wire_form::response::Body::Unserved(unserved)) => Attempt::NotMade(unserved.why),
            Ok(_) => Attempt::unknown("an answer to another question"),
            Err(TransportError::Unreachable(what)) => Attempt::NotMade(what),
            Err(TransportError::Unanswered(what)) => Attempt::unknown(&what),
        }
    }

    async fn call(
        &self,
        node: u64,
        member: &Member,
        body: wire_form::request::Body,
        time: Duration,
    ) -> Result<wire_form::response::Body, TransportError> {
        let request = wire_form::Request { to: node, body: Some(body) };
        let answer = self.transport.call(member, Bytes::from(request.encode_to_vec()), time).await?;
        let unreadable = |what: String| TransportError::Unanswered(what);
        let response: wire_form::Response =
            wire::decode(&answer).map_err(|error| unreadable(error.to_string()))?;
        response.body.ok_or_else(|| unreadable("an answer without content".to_owned()))
    }

    /// Until this node's image shows what was decided elsewhere. The change is made in any case.
    async fn wait_applied(&self, applied: u64, deadline: Instant) {
        let mut here = self.applied.clone();
        let _ = tokio::time::timeout_at(deadline, here.wait_for(|here| *here >= applied)).await;
    }

    async fn resign(&self, time: Duration) {
        let metrics = self.metrics();
        if metrics.state != ServerState::Leader {
            return;
        }
        let replication = metrics.replication.unwrap_or_default();
        let others = metrics.membership_config.voter_ids().filter(|voter| *voter != self.id);
        let Some(heir) = others.max_by_key(|voter| replication.get(voter).copied().flatten()) else { return };
        tracing::info!(heir, "handing over the metadata log's leadership");
        if !matches!(tokio::time::timeout(time, self.raft.trigger().transfer_leader(heir)).await, Ok(Ok(())))
        {
            return;
        }
        let mut metrics = self.raft.metrics();
        let handed_over = async {
            while metrics.borrow_watched().current_leader.is_none_or(|leader| leader == self.id) {
                if metrics.changed().await.is_err() {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(time, handed_over).await;
    }
}

/// What came of one attempt to have a request decided.
#[derive(Debug)]
enum Attempt {
    /// It is made, and shows in every image that has so many entries applied.
    Made(Response, u64),
    /// It certainly was not made: another attempt may be.
    NotMade(String),
    /// That is the answer.
    Failed(ProposeError),
}

impl Attempt {
    fn unknown(what: &str) -> Attempt {
        Attempt::Failed(ProposeError::Unknown { what: what.to_owned() })
    }
}

impl Metadata for RaftMetadata {
    fn propose(&self, request: Request) -> BoxFuture<'static, Result<Response, ProposeError>> {
        let node = self.node.clone();
        Box::pin(async move { node.propose(request).await })
    }

    fn image(&self) -> Arc<Image> {
        self.node.image.borrow().clone()
    }

    fn changes(&self) -> watch::Receiver<Arc<Image>> {
        self.node.image.clone()
    }

    fn quorum(&self) -> Quorum {
        let metrics = self.node.metrics();
        let membership = metrics.membership_config.membership();
        let broker = |node: u64| membership.get_node(&node).map(|member| (node, member.broker));
        let has_failed = metrics.running_state.is_err();
        Quorum {
            node: self.node.id,
            // One whose log failed hears of no change, and must not be heard as if it did: others lead what it led.
            leader: metrics.current_leader.filter(|_| !has_failed).and_then(broker),
            term: metrics.current_term,
            voters: membership.voter_ids().filter_map(broker).collect(),
            learners: membership.learner_ids().filter_map(broker).collect(),
            applied: *self.node.applied.borrow(),
            has_failed,
        }
    }
}

/// Hands decisions to the log, one after another, and tells the driver of those that it does not take.
async fn write(node: Arc<Node>, mut decisions: mpsc::Receiver<proposals::Entry>) {
    let mut under_way = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(input) = under_way.next(), if !under_way.is_empty() => give(&node, input),
            decision = decisions.recv() => {
                let Some(entry) = decision else { return };
                let (leadership, serial) = (entry.leadership, entry.serial);
                let (responder, taken) = ProgressResponder::complete_only();
                let write = node.raft.write(Decision(Arc::new(entry)));
                let write = write.with_leader(types::committed_leader(leadership.0)).responder(responder);
                if write.await.is_err() {
                    give(&node, Some(Input::Lost(leadership)));
                    continue;
                }
                under_way.push(async move {
                    match taken.await {
                        Ok(Ok(_)) => None,
                        Ok(Err(ClientWriteError::ForwardToLeader(_))) => Some(Input::NotTaken { leadership, serial }),
                        Ok(Err(_)) | Err(_) => Some(Input::Lost(leadership)),
                    }
                });
            }
        }
    }
}

/// Tells the driver who leads.
async fn follow_leadership(node: Arc<Node>) {
    let mut metrics = node.raft.metrics();
    loop {
        let (state, term, failure) = {
            let metrics = metrics.borrow_watched();
            (metrics.state, metrics.current_term, metrics.running_state.clone().err())
        };
        let leads = state == ServerState::Leader && failure.is_none();
        give(&node, Some(if leads { Input::Leads(Leadership(term)) } else { Input::Follows }));
        if let Some(failure) = failure {
            if !*node.is_stopping.borrow() {
                tracing::error!(%failure, "the metadata log failed: this node follows no change until it is started again");
            }
            node.driver().end();
            return;
        }
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

fn give(node: &Node, input: Option<Input>) {
    if let Some(input) = input {
        node.driver().give(input).expect("only a committed entry can contradict the image");
    }
}
