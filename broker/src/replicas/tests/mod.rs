//! Three brokers in one process over real QUIC on loopback, with a metadata log that they share.

mod integrity;
mod reassignment;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use quire_engine::SplitMix64;
use quire_engine::controller::{Controller, CreateTopic, Image, RegisterBroker, Request, Response};
use quire_engine::machine::Replicated;
use quire_protocol::batch::{BatchBuilder, BatchHeader, Compression, Record};
use quire_protocol::frame::{Chain, FrameHeader};
use quire_protocol::rpc::peer::{request, response};
use quire_protocol::stream::Acks;
use quire_protocol::{ErrorCode, Offset, PartitionIndex, Timestamp, TopicId, TopicPartition, limits};
use quire_storage::Residency;
use quire_storage::disk::{CrashOptions, Disk, SimDisk};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::*;
use crate::config::HostPort;
use crate::controller::{ProposeError, Quorum};
use crate::handlers;
use crate::metrics::ShardMetrics;
use crate::net::authority::{Authority, new_key};
use crate::net::certificates::Identity;
use crate::net::peers::tls::{Revoked, broker_subject};
use crate::net::peers::{PeerService, PeersOptions};
use crate::net::reset::ResetKey;
use crate::net::tls::BrokerCertificate;
use crate::shard::{
    PartitionHandle, Partitions, ProduceReply, ProduceRequest, ScrubOptions, Shards, ShardsOptions,
    SystemClock,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// One controller that never fails, and everybody's image.
#[derive(Debug)]
pub(crate) struct SharedMetadata {
    decider: Mutex<(Controller, SplitMix64)>,
    image: watch::Sender<Arc<Image>>,
}

impl SharedMetadata {
    pub(crate) fn new() -> Arc<SharedMetadata> {
        let controller = Controller::new();
        let image = watch::Sender::new(Arc::clone(controller.image()));
        Arc::new(SharedMetadata { decider: Mutex::new((controller, SplitMix64::new(7))), image })
    }

    /// Registers a broker that the controller hears.
    pub(crate) fn register(&self, broker: RegisterBroker) {
        let id = broker.broker;
        let Ok(Response::BrokerRegistered { epoch }) = self.ask(Request::RegisterBroker(broker)) else {
            panic!("it is registered");
        };
        self.ask(Request::UnfenceBroker { broker: id, epoch }).expect("it is heard of");
    }

    pub(crate) fn ask(&self, request: Request) -> Result<Response, ProposeError> {
        let mut decider = self.decider.lock().expect("nobody panics");
        let (controller, random) = &mut *decider;
        let decision = controller.decide(Timestamp(1_000), random, request)?;
        for record in &decision.records {
            controller.apply(record).expect("it was just decided");
        }
        self.image.send_replace(Arc::clone(controller.image()));
        Ok(decision.response)
    }
}

impl Metadata for SharedMetadata {
    fn propose(&self, request: Request) -> BoxFuture<'static, Result<Response, ProposeError>> {
        let answer = self.ask(request);
        Box::pin(async move { answer })
    }

    fn image(&self) -> Arc<Image> {
        self.image.borrow().clone()
    }

    fn quorum(&self) -> Quorum {
        Quorum::default()
    }

    fn changes(&self) -> watch::Receiver<Arc<Image>> {
        self.image.subscribe()
    }
}

/// One that registers, in a process of its own for each `incarnation`.
pub(crate) fn broker(id: u32, incarnation: u8) -> RegisterBroker {
    RegisterBroker {
        cluster_id: "c".to_owned(),
        broker: BrokerId(id),
        incarnation: [incarnation; 16],
        directory: [id as u8 + 1; 16],
        ..RegisterBroker::default()
    }
}

/// Serves replicate streams.
struct Service(Partitions);

impl PeerService for Service {
    fn serve(&self, _from: BrokerId, _request: request::Body) -> BoxFuture<'static, response::Body> {
        Box::pin(std::future::pending())
    }

    fn stream(
        &self,
        from: BrokerId,
        _kind: StreamKind,
        send: SendStream,
        recv: RecvStream,
    ) -> BoxFuture<'static, ()> {
        Box::pin(handlers::replicate::serve(self.0.clone(), from, send, recv))
    }
}

struct Cluster {
    metadata: Arc<SharedMetadata>,
    authority: Authority,
    brokers: BTreeMap<u32, Broker>,
    disks: BTreeMap<u32, SimDisk>,
    starts: u8,
    /// How long files stay that are not needed any more.
    deletion_grace: Duration,
    /// How often a round of reading the logs again begins.
    scrub_interval: Duration,
    /// A follower further behind than this leaves the in-sync replicas.
    replica_lag: Duration,
    /// What each broker said to be suspect when it registered last.
    told_suspects: BTreeMap<u32, Vec<TopicPartition>>,
}

struct Broker {
    peers: Peers,
    shards: Shards,
    replicas: JoinHandle<()>,
}

impl Cluster {
    async fn start() -> Cluster {
        // Not while a test runs.
        Cluster::scrubbed_every(Duration::from_secs(3600)).await
    }

    async fn scrubbed_every(scrub_interval: Duration) -> Cluster {
        let mut cluster = Cluster {
            metadata: SharedMetadata::new(),
            authority: Authority::create().expect("made"),
            brokers: BTreeMap::new(),
            disks: (0..3).map(|id| (id, SimDisk::new(id.into()))).collect(),
            starts: 0,
            deletion_grace: Duration::ZERO,
            scrub_interval,
            // Not for a machine that is busy.
            replica_lag: PATIENCE,
            told_suspects: BTreeMap::new(),
        };
        for id in 0..3 {
            cluster.start_broker(id).await;
        }
        cluster
    }

    async fn start_broker(&mut self, id: u32) {
        let broker = BrokerId(id);
        let key = new_key().expect("a key");
        let certificate_pem = self.authority.sign(&broker_subject(broker, &[]), &key).expect("signed");
        let identity = Identity { certificate_pem, key_pem: key.serialize_pem() };
        let peers = Peers::open(PeersOptions {
            broker,
            cluster_id: "c".to_owned(),
            listen: "127.0.0.1:0".parse().expect("an address"),
            authority_pem: self.authority.pem.clone(),
            certificate: Arc::new(BrokerCertificate::new(&identity).expect("usable")),
            revoked: Arc::<Revoked>::default(),
            reset_key: ResetKey([id as u8; ResetKey::LEN]),
            sockets: Default::default(),
            control: Handle::current(),
        });
        let peers = peers.expect("it opens");
        let address = |peers: &Peers| HostPort { host: "127.0.0.1".to_owned(), port: peers.address().port() };
        for (other, known) in &self.brokers {
            known.peers.set_address(broker, address(&peers));
            peers.set_address(BrokerId(*other), address(&known.peers));
        }
        let disk = &self.disks[&id];
        let (registered, registration) = watch::channel(None);
        let (outgoing, wanted) = mpsc::unbounded_channel();
        disk.create_dir_all(&PathBuf::from("/data/topics")).expect("room");
        disk.sync_dir(&PathBuf::from("/data")).expect("room");
        disk.sync_dir(&PathBuf::from("/")).expect("room");
        let options = ShardsOptions {
            broker,
            disk: Arc::new(disk.clone()),
            dir: PathBuf::from("/data/topics"),
            shards: 2,
            clock: Arc::new(SystemClock::new()),
            retention_interval: ShardsOptions::RETENTION_INTERVAL,
            deletion_grace: self.deletion_grace,
            replica_lag: self.replica_lag,
            fetch_bytes: limits::REPLICA_MEMORY_BYTES,
            scrub: ScrubOptions { bytes_per_second: 1 << 30, interval: self.scrub_interval },
            registration,
            outgoing,
            metrics: ShardMetrics::none(),
        };
        let metadata = Arc::clone(&self.metadata);
        let shards = Shards::start(options, metadata.clone()).expect("threads can be had");
        let partitions = shards.partitions();
        peers.serve(Arc::new(Service(partitions.clone())));
        let replicas = Replicas {
            broker,
            metadata: metadata.clone(),
            router: partitions.router().clone(),
            dial: Arc::new(peers.clone()),
        };
        let replicas = tokio::spawn(replicas.run(wanted));
        self.starts += 1;
        partitions.all_opened().await;
        let suspects = partitions.suspects();
        let registration = RegisterBroker {
            suspects: suspects.clone(),
            cluster_id: "c".to_owned(),
            broker,
            incarnation: [self.starts; 16],
            directory: [id as u8 + 1; 16],
            host: "127.0.0.1".to_owned(),
            port: 1,
            ..RegisterBroker::default()
        };
        let Ok(Response::BrokerRegistered { epoch }) = metadata.ask(Request::RegisterBroker(registration))
        else {
            panic!("it is registered");
        };
        metadata.ask(Request::UnfenceBroker { broker, epoch }).expect("it is heard of");
        registered.send_replace(Some(epoch));
        self.told_suspects.insert(id, suspects);
        self.brokers.insert(id, Broker { peers, shards, replicas });
    }

    async fn restart_broker(&mut self, id: u32) {
        self.crash(id).await;
        self.start_broker(id).await;
    }

    /// Cuts a broker off at once, and fences it. Its disk keeps what was synced, and what of the rest chance keeps.
    async fn crash(&mut self, id: u32) {
        let Broker { peers, shards, replicas } = self.brokers.remove(&id).expect("it runs");
        replicas.abort();
        peers.close().await;
        self.disks[&id].crash(&CrashOptions::default());
        let disk = self.disks[&id].fork(u64::from(self.starts));
        self.disks.insert(id, disk);
        let broker = BrokerId(id);
        let epoch = self.metadata.image().broker(broker).expect("it was registered").epoch;
        self.metadata.ask(Request::FenceBroker { broker, epoch }).expect("it is not heard of");
        // Its threads end; what they do to the disk is another disk's business now.
        tokio::spawn(shards.close());
    }

    async fn create(&self, name: &str, partitions: u32, config: &[(&str, &str)]) -> TopicId {
        let config = config.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let request = CreateTopic {
            name: name.into(),
            partitions,
            replicas: Some(3),
            config,
            ..CreateTopic::default()
        };
        match self.metadata.ask(Request::CreateTopic(request)) {
            Ok(Response::Topic(topic)) => topic.id,
            other => panic!("{other:?}"),
        }
    }

    fn leader(&self, id: TopicPartition) -> Option<u32> {
        let image = self.metadata.image();
        image.partition(id)?.leader.map(|leader| leader.0)
    }

    fn in_sync(&self, id: TopicPartition) -> usize {
        self.metadata.image().partition(id).map_or(0, |partition| partition.in_sync.len())
    }

    /// The partition at its leader, once it leads.
    async fn leading(&self, id: TopicPartition) -> PartitionHandle {
        let found = async {
            loop {
                if let Some(leader) = self.leader(id)
                    && let Some(broker) = self.brokers.get(&leader)
                    && let Ok(handle) = broker.shards.partitions().find(id)
                {
                    return handle;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, found).await.expect("somebody leads")
    }

    async fn until(&self, what: &str, mut is_so: impl FnMut(&Cluster) -> bool) {
        let waited = async {
            while !is_so(self) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, waited).await.unwrap_or_else(|_| panic!("not in time: {what}"));
    }

    /// Every replica has what the leader has, and shows it.
    async fn until_same(&self, id: TopicPartition) {
        self.until("all replicas are the same", |cluster| {
            let logs: Vec<_> = cluster.brokers.values().map(|broker| log_of(broker, id)).collect();
            logs.iter().all(|log| log.is_some() && *log == logs[0])
        })
        .await;
    }
}

/// Chains of all committed frames, if all frames are committed.
fn log_of(broker: &Broker, id: TopicPartition) -> Option<Vec<Chain>> {
    let handle = broker.shards.partitions().find_replica(id).ok()?;
    let reader = handle.reader();
    let (mut next, end) = (reader.log_start(), reader.high_watermark());
    if end != reader.end_offset() {
        return None;
    }
    let mut chains = Vec::new();
    while next < end {
        let slice = reader.read(next, 1 << 20, end, Residency::Any).ok()?;
        for mut frames in slice.frames {
            while !frames.is_empty() {
                let header = FrameHeader::parse(&frames).expect("whole frames");
                chains.push(header.chain);
                let _ = frames.split_to(header.frame_len());
            }
        }
        next = slice.next_offset;
    }
    Some(chains)
}

fn batch(text: &str) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Compression::None);
    let record = Record { value: Some(text.to_owned().into()), ..Record::default() };
    builder.push(&record, Timestamp(1)).expect("a small record fits");
    Vec::from(builder.finish().expect("nothing to compress"))
}

async fn send(handle: &PartitionHandle, text: &str, acks: Acks) -> mpsc::Receiver<ProduceReply> {
    let (reply, replies) = mpsc::channel(2);
    let batch = batch(text);
    let permit = Arc::new(Semaphore::new(1 << 20)).acquire_many_owned(batch.len() as u32).await;
    let request = ProduceRequest {
        header: BatchHeader::check(&batch).expect("just built"),
        permit: permit.expect("never closed"),
        batch,
        leader_epoch: handle.leader_epoch(),
        acks,
        reply,
    };
    handle.produce(request).await.expect("the shard runs");
    replies
}

async fn produce(handle: &PartitionHandle, text: &str) -> Result<(Offset, u32), ErrorCode> {
    let mut replies = send(handle, text, Acks::All).await;
    let answer = timeout(PATIENCE, replies.recv()).await;
    let answer = answer.unwrap_or_else(|_| panic!("{text} is not answered in time: {:?}", handle.standing()));
    let answer = answer.expect("answered");
    answer.map(|ack| (ack.base_offset, ack.replicas_on_disk)).map_err(|error| error.code)
}

fn partition(topic: TopicId, index: u32) -> TopicPartition {
    TopicPartition { topic, partition: PartitionIndex(index) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_on_every_disk_and_read_everywhere() {
    let cluster = Cluster::start().await;
    let topic = cluster.create("flights", 3, &[("min.insync.replicas", "2")]).await;
    for index in 0..3 {
        let id = partition(topic, index);
        let handle = cluster.leading(id).await;
        for number in 0..20 {
            let (offset, on_disk) = produce(&handle, &format!("record {number}")).await.expect("taken");
            assert_eq!(offset, Offset(number));
            assert_eq!(on_disk, 3, "three were in sync");
        }
        cluster.until_same(id).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_leader_is_replaced_nothing_is_lost_and_it_comes_back_as_a_follower() {
    let mut cluster = Cluster::start().await;
    let topic = cluster.create("flights", 1, &[("min.insync.replicas", "2")]).await;
    let id = partition(topic, 0);
    let mut sent = 0;
    for round in 0..3 {
        let handle = cluster.leading(id).await;
        for _ in 0..10 {
            let (offset, _) = produce(&handle, "record").await.expect("taken");
            assert_eq!(offset, Offset(sent), "round {round}: nothing acknowledged is lost");
            sent += 1;
        }
        let leader = cluster.leader(id).expect("somebody leads");
        cluster.crash(leader).await;
        let handle = cluster.leading(id).await;
        let (offset, on_disk) = produce(&handle, "meanwhile").await.expect("two are in sync");
        assert_eq!((offset, on_disk), (Offset(sent), 2));
        sent += 1;
        cluster.start_broker(leader).await;
        cluster.until("three are in sync again", |cluster| cluster.in_sync(id) == 3).await;
        cluster.until_same(id).await;
    }
}

/// KIP-101: a leader that was cut off appended what nobody else has. As a follower it must drop that, and take what the
/// next leader wrote at the same offsets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_deposed_leader_has_alone_is_cut() {
    let cluster = Cluster::start().await;
    let topic = cluster.create("flights", 1, &[("min.insync.replicas", "2")]).await;
    let id = partition(topic, 0);
    let handle = cluster.leading(id).await;
    produce(&handle, "committed").await.expect("taken");
    let old = cluster.leader(id).expect("somebody leads");
    // The followers lose their way to it, so that what comes now stays with the leader; it is not acknowledged.
    let followers: Vec<u32> = cluster.brokers.keys().copied().filter(|broker| *broker != old).collect();
    for follower in &followers {
        cluster.brokers[follower].peers.forget(BrokerId(old));
    }
    let mut lost = send(&handle, "alone", Acks::All).await;
    cluster.until("the leader has it", |_| handle.reader().end_offset() == Offset(2)).await;
    assert!(lost.try_recv().is_err(), "nobody else has it");
    // It is taken for dead and leads no more; the next leader never heard of the record.
    let epoch = cluster.metadata.image().broker(BrokerId(old)).expect("registered").epoch;
    cluster.metadata.ask(Request::FenceBroker { broker: BrokerId(old), epoch }).expect("fenced");
    let answer = timeout(PATIENCE, lost.recv()).await.expect("in time").expect("answered");
    assert_eq!(answer.map(|ack| ack.base_offset).map_err(|error| error.code), Err(ErrorCode::LeadershipLost));
    let handle = cluster.leading(id).await;
    assert_ne!(cluster.leader(id), Some(old));
    let (offset, _) = produce(&handle, "instead").await.expect("taken");
    assert_eq!(offset, Offset(1));
    for follower in &followers {
        let address = cluster.brokers[&old].peers.address();
        let address = HostPort { host: "127.0.0.1".to_owned(), port: address.port() };
        cluster.brokers[follower].peers.set_address(BrokerId(old), address);
    }
    cluster.metadata.ask(Request::UnfenceBroker { broker: BrokerId(old), epoch }).expect("heard of again");
    cluster.until("all are in sync", |cluster| cluster.in_sync(id) == 3).await;
    cluster.until_same(id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_in_sync_replicas_take_nothing_and_a_laggard_leaves_and_returns() {
    let mut cluster = Cluster::start().await;
    cluster.replica_lag = Duration::from_millis(700);
    for id in 0..3 {
        cluster.restart_broker(id).await;
    }
    let topic = cluster.create("flights", 1, &[("min.insync.replicas", "3")]).await;
    let id = partition(topic, 0);
    let handle = cluster.leading(id).await;
    produce(&handle, "one").await.expect("taken");
    let follower = (0..3).find(|broker| cluster.leader(id) != Some(*broker)).expect("two follow");
    // It is alive as far as the controller knows, and its streams are dead.
    cluster.brokers[&follower].replicas.abort();
    cluster.brokers[&follower].peers.close().await;
    let mut waiting = send(&handle, "two", Acks::All).await;
    cluster.until("the laggard left", |cluster| cluster.in_sync(id) == 2).await;
    cluster.until("it is said", |_| !handle.standing().has_enough_replicas).await;
    assert_eq!(produce(&handle, "three").await, Err(ErrorCode::NotEnoughReplicas));
    cluster.crash(follower).await;
    cluster.start_broker(follower).await;
    let answer = timeout(PATIENCE, waiting.recv()).await.expect("in time").expect("answered");
    assert_eq!(answer.expect("committed in the end").base_offset, Offset(1));
    cluster.until_same(id).await;
}
