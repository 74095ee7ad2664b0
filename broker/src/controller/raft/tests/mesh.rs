//! Nodes that reach each other by calls, some of which are lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use quire_engine::controller::{CreateTopic, RegisterBroker, Request};
use quire_engine::{Random, SplitMix64};
use quire_protocol::BrokerId;
use quire_storage::disk::{CrashOptions, SimDisk, Survival};

use crate::controller::raft::{
    Member, RaftMetadata, RaftMetadataOptions, RaftOpenError, Timing, Transport, TransportError, format,
};
use crate::controller::{Metadata, ProposeError};
use crate::shard::SystemClock;

/// What connects the nodes, by the number of their broker.
#[derive(Debug, Clone)]
pub(super) struct Mesh {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    nodes: BTreeMap<u32, RaftMetadata>,
    /// From whom nothing arrives at whom.
    cut: BTreeSet<(u32, u32)>,
    /// Of a hundred requests, and of a hundred answers, so many are lost.
    loss: u64,
    random: SplitMix64,
}

#[derive(Debug)]
struct Port {
    broker: u32,
    mesh: Mesh,
}

impl Mesh {
    pub(super) fn new(seed: u64) -> Mesh {
        let state =
            State { nodes: BTreeMap::new(), cut: BTreeSet::new(), loss: 0, random: SplitMix64::new(seed) };
        Mesh { state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding it")
    }

    pub(super) fn set_loss(&self, percent: u64) {
        self.state().loss = percent;
    }

    /// Nothing passes between this broker and the others any more.
    pub(super) fn isolate(&self, broker: u32) {
        let mut state = self.state();
        for other in (1..=5).filter(|other| *other != broker) {
            state.cut.extend([(broker, other), (other, broker)]);
        }
    }

    pub(super) fn heal(&self) {
        let mut state = self.state();
        state.cut.clear();
        state.loss = 0;
    }

    fn is_lost(&self, from: u32, to: u32) -> bool {
        let mut state = self.state();
        let loss = state.loss;
        state.cut.contains(&(from, to)) || state.random.next_u64() % 100 < loss
    }
}

impl Transport for Port {
    fn call(
        &self,
        to: &Member,
        request: Bytes,
        time: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let (mesh, from, to) = (self.mesh.clone(), self.broker, to.broker.0);
        Box::pin(async move {
            let no_answer = async || {
                tokio::time::sleep(time).await;
                Err(TransportError::Unanswered("time is up".to_owned()))
            };
            if mesh.is_lost(from, to) {
                return no_answer().await;
            }
            let Some(node) = mesh.state().nodes.get(&to).cloned() else {
                return Err(TransportError::Unreachable("nobody listens".to_owned()));
            };
            // It is carried out whether or not anybody waits for the answer.
            let served = tokio::spawn(async move { node.serve(request).await });
            match tokio::time::timeout(time, served).await {
                Ok(Ok(answer)) if !mesh.is_lost(to, from) => Ok(answer),
                Ok(Err(_)) => Err(TransportError::Unanswered("the node is gone".to_owned())),
                _ => no_answer().await,
            }
        })
    }
}

/// A broker's metadata and its disk.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) broker: u32,
    pub(super) disk: SimDisk,
}

impl Host {
    /// A formatted directory.
    pub(super) fn new(broker: u32) -> Host {
        Host::with_node(broker, 100 + u64::from(broker))
    }

    pub(super) fn with_node(broker: u32, node: u64) -> Host {
        let disk = super::disk(broker.into());
        format(Arc::new(disk.clone()), &super::dir(), node).expect("a new directory");
        Host { broker, disk }
    }

    pub(super) fn member(&self) -> Member {
        Member { broker: BrokerId(self.broker), host: "mesh".to_owned(), port: 9441 }
    }

    /// Everything that was not synced is gone, whatever runs on it.
    pub(super) fn lose_power(&self) {
        self.disk.crash(&CrashOptions { data: Survival::Nothing, names: Survival::Nothing });
    }

    pub(super) async fn open(&self, mesh: &Mesh, timing: Timing) -> Result<RaftMetadata, RaftOpenError> {
        self.open_patiently(mesh, timing, Duration::from_millis(300)).await
    }

    /// With so long a session for brokers.
    pub(super) async fn open_patiently(
        &self,
        mesh: &Mesh,
        timing: Timing,
        session: Duration,
    ) -> Result<RaftMetadata, RaftOpenError> {
        let port = Port { broker: self.broker, mesh: mesh.clone() };
        let opened = RaftMetadata::open(RaftMetadataOptions {
            disk: Arc::new(self.disk.clone()),
            dir: super::dir(),
            clock: Arc::new(SystemClock::new()),
            seed: self.broker.into(),
            member: self.member(),
            transport: Arc::new(port),
            timing,
            session,
            leader_return: None,
        });
        let metadata = opened.await?;
        mesh.state().nodes.insert(self.broker, metadata.clone());
        Ok(metadata)
    }

    /// Ends the node as a kill does: nobody is told, nothing is closed.
    pub(super) async fn kill(&self, mesh: &Mesh) {
        let node = mesh.state().nodes.remove(&self.broker).expect("it runs");
        self.disk.kill();
        // What is left of it in this process must not go on.
        let _ = node.close().await;
    }
}

pub(super) fn timing() -> Timing {
    Timing {
        heartbeat: Duration::from_millis(30),
        election_min: Duration::from_millis(150),
        election_max: Duration::from_millis(300),
        propose: Duration::from_secs(5),
        ..Timing::default()
    }
}

/// Three brokers whose nodes all vote, broker 1 leading.
pub(super) struct Cluster {
    pub(super) mesh: Mesh,
    pub(super) timing: Timing,
    pub(super) hosts: Vec<Host>,
    pub(super) nodes: Vec<RaftMetadata>,
}

impl Cluster {
    pub(super) async fn start(seed: u64, timing: Timing) -> Cluster {
        Cluster::start_patiently(seed, timing, Duration::from_millis(300)).await
    }

    /// With so long a session for brokers.
    pub(super) async fn start_patiently(seed: u64, timing: Timing, session: Duration) -> Cluster {
        let mesh = Mesh::new(seed);
        let hosts: Vec<_> = (1..=3).map(Host::new).collect();
        let mut nodes = Vec::new();
        for host in &hosts {
            let node = host.open_patiently(&mesh, timing, session).await;
            nodes.push(node.expect("a formatted directory"));
        }
        nodes[0].found().await.expect("it is new");
        let seeds = [hosts[0].member()];
        for (node, broker) in nodes.iter().zip(1..) {
            if broker > 1 {
                node.join(&seeds, Duration::from_secs(10)).await.expect("the founder leads");
            }
            node.propose(register(broker)).await.expect("the founder leads");
        }
        let cluster = Cluster { mesh, timing, hosts, nodes };
        // While the set changes a majority of the earlier one is needed too: with two that is both.
        let is_whole = |node: &RaftMetadata| {
            let metrics = node.node.metrics();
            let membership = metrics.membership_config.membership();
            membership.get_joint_config().len() == 1 && membership.voter_ids().count() == 3
        };
        cluster.until("all vote", || cluster.nodes.iter().all(is_whole)).await;
        cluster
    }

    pub(super) async fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !is_so() {
            if Instant::now() > end {
                let quorums: Vec<_> = self.nodes.iter().map(|node| node.quorum()).collect();
                panic!("it did not come true that {what}: {quorums:#?}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The position of the node that decides, once there is one among these.
    pub(super) async fn active(&self, among: &[usize]) -> usize {
        let is_active = |position: &&usize| self.nodes[**position].is_active();
        self.until("one decides", || among.iter().any(|position| is_active(&position))).await;
        *among.iter().find(is_active).expect("just seen")
    }

    /// All nodes have the same image, which is that of the furthest.
    pub(super) async fn agree(&self) {
        let furthest = || self.nodes.iter().map(|node| *node.applied().borrow()).max().unwrap_or(0);
        self.until("the images agree", || {
            let most = furthest();
            let image = self.nodes[0].image();
            self.nodes.iter().all(|node| *node.applied().borrow() == most && *node.image() == *image)
        })
        .await;
    }

    pub(super) async fn reopen(&mut self, position: usize) {
        self.nodes[position] =
            self.hosts[position].open(&self.mesh, self.timing).await.expect("nothing is lost");
    }

    pub(super) fn names(&self, position: usize) -> Vec<String> {
        self.nodes[position].image().topics().map(|topic| topic.name.to_string()).collect()
    }
}

pub(super) fn register(broker: u32) -> Request {
    Request::RegisterBroker(registration(broker))
}

pub(super) fn registration(broker: u32) -> RegisterBroker {
    RegisterBroker {
        cluster_id: "c-1".into(),
        broker: BrokerId(broker),
        incarnation: [broker as u8; 16],
        directory: [broker as u8; 16],
        host: "127.0.0.1".into(),
        port: 9440,
        node: 100 + u64::from(broker),
        ..RegisterBroker::default()
    }
}

pub(super) fn create(name: &str) -> Request {
    let name = name.into();
    Request::CreateTopic(CreateTopic { name, partitions: 2, replicas: Some(1), ..CreateTopic::default() })
}

/// Asks for a topic until it is there, as a client does that looks when it does not know.
pub(super) async fn create_surely(node: &RaftMetadata, name: &str) {
    for _ in 0..20 {
        match node.propose(create(name)).await {
            Ok(_) => return,
            Err(ProposeError::Refused(_)) if node.image().topic_named(name).is_some() => return,
            Err(_) => {}
        }
    }
    panic!("{name} can not be made");
}
