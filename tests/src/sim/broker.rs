//! One broker of the simulated cluster: a real shard over a simulated disk, with everything around it that is otherwise
//! threads, streams and tasks.
//!
//! It is told what happens and says what it wants; the world decides when and whether that comes about.

mod coordinating;
mod streams;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quire_broker::simulation::{
    Assignment, Closed, Downlink, Event, Feed, Limits, Now, Outcome, Outgoing, PartitionHandle,
    PartitionState, ProduceReply, Requests, ScrubOptions, ScrubStep, Shard, ShardMetrics, Shared, Store,
    Task, Uplink, is_over,
};
use quire_engine::controller::proposals::{Entry, Input, Proposals};
use quire_engine::controller::{ChangeInSync, Image, RegisterBroker, Request, Response};
use quire_engine::group::Topics;
use quire_engine::group::coordinator::RequestId;
use quire_engine::replication::Progress;
use quire_engine::{SplitMix64, Time};
use quire_protocol::frame::FrameSeed;
use quire_protocol::replicate::{FollowerMessage, LeaderMessage};
use quire_protocol::stream::{Ack, Opened, ProduceHeader};
use quire_protocol::topic_config::TopicConfig;
use quire_protocol::{
    BrokerId, ErrorCode, LeaderEpoch, PartitionIndex, ProducerId, Timestamp, TopicId, TopicPartition, limits,
};
use quire_storage::disk::{Disk, SimDisk};
use quire_storage::remove_log;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::desk::{Desk, GroupAnswer};
use super::network::{End, StreamId};
use super::quorum::{self, Index};

/// How long a follower may lack what its leader has.
const REPLICA_LAG: Duration = Duration::from_millis(800);
/// How often a shard looks at what is to be retained.
const RETENTION_INTERVAL: Duration = Duration::from_millis(700);
/// Every log is read again for damage this often, at no more than so many bytes a second.
const SCRUB: ScrubOptions = ScrubOptions { bytes_per_second: 1 << 26, interval: Duration::from_millis(1500) };
/// Where a broker's logs are.
pub const TOPICS: &str = "/data/topics";

/// What travels on a stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Wire {
    /// Follower to leader.
    ToLeader(FollowerMessage),
    /// Leader to follower, with the frames of the message.
    ToFollower(LeaderMessage, Bytes),
    /// Client to leader: what the stream is to be.
    OpenProduce(ProduceHeader),
    /// Client to leader.
    Batch(Bytes),
    /// Client to leader: no more batches.
    Finish,
    /// Leader to client.
    Opened(Opened),
    /// Leader to client.
    Acked(Ack),
    /// Leader to client: the stream is over.
    Failed(ErrorCode),
}

/// What a broker wants done.
#[derive(Debug)]
pub enum Effect {
    /// Open a stream to a leader.
    Connect(BrokerId),
    /// Let go of a stream.
    Disconnect(StreamId, End),
    /// Send to the other end of a stream.
    Send(StreamId, End, Wire),
    /// Have a task done that waits for the disk.
    Run(TopicPartition, Task),
    /// Have a piece of a log read again.
    Scrub(ScrubStep),
    /// Ask the controller.
    Call(Purpose, Request),
    /// Events wait to be applied.
    Round,
    /// Something happened that coordinators are to be told.
    Coordinate,
    /// A coordinator answers.
    GroupAnswered(RequestId, GroupAnswer),
    /// A coordinator decides from here on.
    Coordinates(TopicPartition, LeaderEpoch),
    /// One begins with something else than what its log says.
    GroupsDiffer(TopicPartition),
    /// A member is taken for gone.
    MemberRemoved,
    /// It has stopped in order.
    Stopped,
}

/// What a request to the controller is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// The registration.
    Register,
    /// Other in-sync replicas, for a leadership.
    Propose(TopicPartition, LeaderEpoch, u64),
    /// Its replica can not be trusted.
    Distrust(TopicPartition),
    /// A topic's logs are on disk, of so many partitions.
    Hold(TopicId, usize),
    /// A deleted topic's logs are removed.
    Confirm(TopicId),
    /// It gives ids to producers.
    ProducerIds,
}

/// What came of asking.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The change is made.
    Made(Response),
    /// It never will be.
    Refused,
    /// It may have been, or may be yet.
    Unknown,
}

/// A broker, running or not.
#[derive(Debug)]
pub struct Broker {
    pub id: BrokerId,
    pub disk: SimDisk,
    /// Drawn when its disk was new.
    pub directory: u64,
    /// Counts its starts.
    pub incarnation: u64,
    pub running: Option<Running>,
    /// How far its logs were when it stopped, as far as that is certain to be there.
    pub left: BTreeMap<TopicPartition, Progress>,
    /// Up to where its disk has the metadata log.
    pub stored: Index,
}

/// A partition that is replicated here.
#[derive(Debug)]
struct Held {
    shared: Arc<Shared>,
    told: Assignment,
    config: Arc<TopicConfig>,
}

/// The follower's end of a replicate stream.
#[derive(Debug)]
struct Upstream {
    uplink: Arc<Uplink>,
    stream: Option<StreamId>,
    is_dialing: bool,
    asked: BTreeMap<u32, FrameSeed>,
}

/// The leader's end of one.
#[derive(Debug)]
struct Downstream {
    link: Arc<Downlink>,
    requests: Requests,
    feed: Feed,
}

/// The broker's end of a produce stream.
#[derive(Debug)]
struct Producing {
    handle: PartitionHandle,
    header: ProduceHeader,
    reply: Option<mpsc::Sender<ProduceReply>>,
    replies: mpsc::Receiver<ProduceReply>,
}

/// Files that are to go.
#[derive(Debug)]
struct Removal {
    what: Removed,
    done: Vec<oneshot::Receiver<()>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Removed {
    Topic(TopicId, u32),
    Replica(TopicPartition),
}

/// What was taken by the controller, and does not show in the metadata yet.
#[derive(Debug)]
struct Taken {
    partition: TopicPartition,
    leader_epoch: LeaderEpoch,
    number: u64,
    partition_epoch: u32,
}

/// A process.
#[derive(Debug)]
pub struct Running {
    id: BrokerId,
    disk: SimDisk,
    directory: u64,
    incarnation: u64,
    shard: Shard,
    metadata: Proposals,
    pub applied: Index,
    held: BTreeMap<TopicPartition, Held>,
    /// The registration that it lives in.
    pub registration: Option<u64>,
    pub is_asking: BTreeSet<Purpose>,
    ups: BTreeMap<BrokerId, Upstream>,
    downs: BTreeMap<StreamId, Downstream>,
    producing: BTreeMap<StreamId, Producing>,
    pub events: Vec<Event>,
    distrusted: BTreeSet<TopicPartition>,
    taken: Vec<Taken>,
    removals: Vec<Removal>,
    removed: BTreeSet<TopicId>,
    has_failed_to_remove: bool,
    held_kept: BTreeSet<(TopicId, usize)>,
    /// What it still gives of the block in use.
    producer_ids: Vec<ProducerId>,
    pub wants_drain: bool,
    closing: Option<oneshot::Receiver<Closed>>,
    memory: Arc<Semaphore>,
    pub is_paused: bool,
    pub tick_at: Option<Time>,
    /// The coordinators beside the replicas of the internal topic.
    desks: BTreeMap<TopicPartition, Desk>,
    topics: Arc<Topics>,
    /// When they take in what happened.
    pub coordinates_at: Option<Time>,
    pub is_round_due: bool,
}

fn incarnation_id(incarnation: u64) -> [u8; 16] {
    let mut id = [1; 16];
    id[..8].copy_from_slice(&incarnation.to_le_bytes());
    id
}

impl Broker {
    /// A broker with an empty disk, that was never started.
    pub fn new(id: BrokerId, seed: u64) -> Broker {
        let disk = SimDisk::new(seed);
        prepare(&disk);
        Broker { id, disk, directory: seed, incarnation: 0, running: None, left: BTreeMap::new(), stored: 0 }
    }

    /// Its disk is replaced by an empty one, while it is stopped.
    pub fn replace_disk(&mut self, seed: u64) {
        assert!(self.running.is_none(), "a disk is replaced while nothing runs");
        *self = Broker { incarnation: self.incarnation, ..Broker::new(self.id, seed) };
    }

    /// Starts, with the metadata that its disk has.
    pub fn start(&mut self, now: Now, entries: &[quorum::Entry<Entry>], effects: &mut Vec<Effect>) {
        let store = Store { disk: Arc::new(self.disk.clone()), dir: PathBuf::from(TOPICS) };
        let limits = Limits { replica_lag: REPLICA_LAG, fetch_bytes: limits::REPLICA_MEMORY_BYTES };
        let metrics = ShardMetrics::none();
        let mut shard = Shard::new(now, self.id, store, RETENTION_INTERVAL, limits, metrics);
        shard.scrub(now, SCRUB);
        let mut running = Running {
            id: self.id,
            disk: self.disk.clone(),
            directory: self.directory,
            incarnation: self.incarnation,
            shard,
            metadata: Proposals::new(),
            applied: 0,
            held: BTreeMap::new(),
            registration: None,
            is_asking: BTreeSet::new(),
            ups: BTreeMap::new(),
            downs: BTreeMap::new(),
            producing: BTreeMap::new(),
            events: Vec::new(),
            distrusted: BTreeSet::new(),
            taken: Vec::new(),
            removals: Vec::new(),
            removed: BTreeSet::new(),
            has_failed_to_remove: false,
            held_kept: BTreeSet::new(),
            producer_ids: Vec::new(),
            wants_drain: false,
            closing: None,
            memory: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
            is_paused: false,
            tick_at: None,
            desks: BTreeMap::new(),
            topics: Arc::default(),
            coordinates_at: None,
            is_round_due: false,
        };
        running.learn(entries);
        running.follow_metadata(effects);
        self.running = Some(running);
    }

    /// The process is gone. Of its disk only what survives is left.
    pub fn stopped(&mut self) {
        if let Some(running) = self.running.take() {
            self.stored = running.applied;
            // What a process has to say against its logs it says when it registers.
            let is_known = running.registration.is_some();
            let trusted = running.held.keys().filter(|id| is_known && !running.is_suspect(**id));
            self.left = trusted.filter_map(|id| Some((*id, running.shard.ends(*id)?))).collect();
            self.incarnation += 1;
        }
    }
}

fn prepare(disk: &SimDisk) {
    disk.create_dir_all(Path::new(TOPICS)).expect("an empty disk has room");
    disk.sync_dir(Path::new("/data")).expect("it syncs");
    disk.sync_dir(Path::new("/")).expect("it syncs");
}

impl Running {
    /// The metadata as it knows them.
    pub fn image(&self) -> &Arc<Image> {
        self.metadata.image()
    }

    /// How far a partition's log is.
    pub fn ends(&self, id: TopicPartition) -> Option<Progress> {
        self.shard.ends(id)
    }

    /// A partition whose log is open.
    pub fn partition(&self, id: TopicPartition) -> Option<PartitionHandle> {
        let held = self.held.get(&id)?;
        held.shared.is_open().then(|| PartitionHandle::of(Arc::clone(&held.shared)))
    }

    /// Everything that is replicated here.
    pub fn partitions(&self) -> impl Iterator<Item = TopicPartition> + '_ {
        self.held.keys().copied()
    }

    /// Whether a log of its is left alone until a restart.
    pub fn has_failed(&self) -> bool {
        self.has_failed_to_remove
            || self.held.values().any(|held| matches!(*held.shared.state(), PartitionState::Failed { .. }))
    }

    /// Whether what it has of a partition is held against it.
    pub fn is_suspect(&self, id: TopicPartition) -> bool {
        self.held.get(&id).is_some_and(|held| held.shared.is_suspect())
    }

    /// When it wants to be told that time has passed.
    pub fn deadline(&self) -> Option<Time> {
        self.shard.deadline()
    }

    /// Its part of a heartbeat: the registration, how far it knows the metadata, whether it wants to stop.
    pub fn heartbeat(&self) -> Option<(u64, Index, bool)> {
        self.registration.map(|epoch| (epoch, self.applied, self.wants_drain))
    }

    /// More of the metadata log.
    pub fn learn(&mut self, entries: &[quorum::Entry<Entry>]) {
        // Nothing is decided here, so that nothing is drawn.
        let mut random = SplitMix64::new(0);
        let mut actions = Vec::new();
        for entry in entries {
            let input = entry.committed();
            self.metadata.handle(input, &mut random, &mut actions).expect("a committed entry fits");
        }
        self.applied += entries.len();
    }

    /// A snapshot of the metadata in place of entries.
    pub fn install(&mut self, snapshot: Input, applied: Index) {
        let mut random = SplitMix64::new(0);
        self.metadata.handle(snapshot, &mut random, &mut Vec::new()).expect("a snapshot fits");
        self.applied = applied;
    }

    /// The registration turned out to be another process's: it says again who it is.
    pub fn lose_registration(&mut self, effects: &mut Vec<Effect>) {
        self.registration = None;
        self.follow_metadata(effects);
    }

    /// Brings what the shard owns in line with the metadata.
    pub fn follow_metadata(&mut self, effects: &mut Vec<Effect>) {
        let image = Arc::clone(self.image());
        let mut is_replicated = BTreeSet::new();
        for topic in image.topics() {
            for partition in &topic.partitions {
                let id = TopicPartition { topic: topic.id, partition: partition.index };
                let is_leaving = self.removals.iter().any(|removal| removal.what == Removed::Replica(id));
                if is_leaving || !partition.replicas.contains(&self.id) {
                    continue;
                }
                is_replicated.insert(id);
                let assignment = Assignment::of(&image, partition, self.id, self.registration);
                let config = Arc::clone(&topic.config);
                match self.held.get_mut(&id) {
                    Some(held) => configure(held, id, assignment, config, &mut self.events),
                    None => {
                        let is_held = topic.is_held(partition.index, self.id);
                        // Nobody reads from that queue: nothing here goes that way.
                        let (queue, _) = mpsc::channel(1);
                        let told = Arc::new(assignment.clone());
                        let shared = Arc::new(Shared::new(id, is_held, queue, told, Arc::clone(&config)));
                        self.held.insert(id, Held { shared: Arc::clone(&shared), told: assignment, config });
                        self.events.push(Event::Open(shared));
                    }
                }
            }
        }
        self.let_go(&image, &is_replicated);
        self.keep_held(&image, effects);
        self.confirm_taken(&image);
        effects.push(Effect::Round);
    }

    /// Closes what was deleted, and what is held elsewhere now.
    fn let_go(&mut self, image: &Image, is_replicated: &BTreeSet<TopicPartition>) {
        let broker = self.id;
        for topic in image.deleted_topics().filter(|topic| topic.unconfirmed.contains(&broker)) {
            let what = Removed::Topic(topic.id, topic.partitions);
            let is_known = self.removed.contains(&topic.id) || self.removals.iter().any(|r| r.what == what);
            if !is_known {
                let ids = (0..topic.partitions)
                    .map(|index| TopicPartition { topic: topic.id, partition: PartitionIndex(index) });
                self.remove(what, ids.collect());
            }
        }
        let elsewhere: Vec<_> = self.held.keys().copied().filter(|id| !is_replicated.contains(id)).collect();
        for id in elsewhere {
            let Some(partition) = image.partition(id) else { continue };
            if is_over(self.id, image, self.registration, id) {
                self.remove(Removed::Replica(id), vec![id]);
            } else if let Some(held) = self.held.get_mut(&id) {
                let assignment = Assignment::of(image, partition, self.id, self.registration);
                let config = Arc::clone(&held.config);
                configure(held, id, assignment, config, &mut self.events);
            }
        }
    }

    fn remove(&mut self, what: Removed, ids: Vec<TopicPartition>) {
        let mut removal = Removal { what, done: Vec::new() };
        for partition in ids {
            self.held.remove(&partition);
            let (done, is_done) = oneshot::channel();
            removal.done.push(is_done);
            self.events.push(Event::Remove { partition, done });
        }
        self.removals.push(removal);
    }

    /// Removes the files that no shard uses any more, and says so.
    fn finish_removals(&mut self, effects: &mut Vec<Effect>) {
        let mut removals = std::mem::take(&mut self.removals);
        removals.retain_mut(|removal| {
            removal.done.retain_mut(|done| done.try_recv().is_err());
            if !removal.done.is_empty() {
                return true;
            }
            let dir = |id: TopicPartition| {
                Path::new(TOPICS).join(id.topic.to_string()).join(id.partition.to_string())
            };
            let removed = match removal.what {
                Removed::Replica(id) => remove_log(&self.disk, &dir(id)),
                Removed::Topic(topic, partitions) => (0..partitions)
                    .map(|index| TopicPartition { topic, partition: PartitionIndex(index) })
                    .try_for_each(|id| remove_log(&self.disk, &dir(id))),
            };
            match (removed, removal.what) {
                (Ok(()), Removed::Topic(topic, _)) => drop(self.removed.insert(topic)),
                (Ok(()), Removed::Replica(_)) => {}
                // The next start tries again.
                (Err(_), _) => self.has_failed_to_remove = true,
            }
            false
        });
        self.removals = removals;
        let broker = self.id;
        let topics = self.image().deleted_topics().filter(|topic| topic.unconfirmed.contains(&broker));
        let removed: Vec<_> = topics.map(|topic| topic.id).filter(|id| self.removed.contains(id)).collect();
        for id in removed {
            let request = Request::ConfirmTopicDeletion { id, broker };
            self.ask(Purpose::Confirm(id), request, effects);
        }
    }

    /// Has it remembered which logs are on disk.
    fn keep_held(&mut self, image: &Image, effects: &mut Vec<Effect>) {
        let broker = self.id;
        for topic in image.topics().filter(|topic| !topic.is_all_held(broker)) {
            let own = topic.partitions.iter().filter(|partition| partition.replicas.contains(&broker));
            let ids: Vec<_> =
                own.map(|partition| TopicPartition { topic: topic.id, partition: partition.index }).collect();
            let count = topic.partitions.len();
            let is_open = !ids.is_empty() && ids.iter().all(|id| self.partition(*id).is_some());
            if is_open && !self.held_kept.contains(&(topic.id, count)) {
                let (partitions, missing) = (count as u32, Default::default());
                let request = Request::HoldTopic { id: topic.id, broker, partitions, missing };
                self.ask(Purpose::Hold(topic.id, count), request, effects);
            }
        }
    }

    fn ask(&mut self, purpose: Purpose, request: Request, effects: &mut Vec<Effect>) {
        if self.is_asking.insert(purpose.clone()) {
            effects.push(Effect::Call(purpose, request));
        }
    }

    /// Registers once every log was opened, or could not be; tells again what is not known yet.
    pub fn beat(&mut self, effects: &mut Vec<Effect>) {
        let is_opening = |held: &Held| *held.shared.state() == PartitionState::Opening;
        if self.registration.is_none() && !self.held.values().any(is_opening) {
            let suspects = self.held.iter().filter(|(_, held)| held.shared.is_suspect());
            let request = RegisterBroker {
                cluster_id: "c".to_owned(),
                broker: self.id,
                incarnation: incarnation_id(self.incarnation),
                directory: incarnation_id(self.directory),
                suspects: suspects.map(|(id, _)| *id).collect(),
                ..RegisterBroker::default()
            };
            self.ask(Purpose::Register, Request::RegisterBroker(request), effects);
        }
        let image = Arc::clone(self.image());
        for partition in std::mem::take(&mut self.distrusted) {
            let is_counted = image
                .partition(partition)
                .is_some_and(|known| known.in_sync.contains(&self.id) || known.eligible.contains(&self.id));
            let Some(epoch) = image.broker(self.id).map(|known| known.epoch).filter(|_| is_counted) else {
                continue;
            };
            self.distrusted.insert(partition);
            let request = Request::ReportSuspect { broker: self.id, epoch, partition };
            self.ask(Purpose::Distrust(partition), request, effects);
        }
        self.keep_held(&image, effects);
        self.finish_removals(effects);
    }

    /// The controller answered, or nobody did.
    pub fn answered(&mut self, purpose: Purpose, answer: Answer, effects: &mut Vec<Effect>) {
        self.is_asking.remove(&purpose);
        match (purpose, answer) {
            (Purpose::Register, Answer::Made(Response::BrokerRegistered { epoch })) => {
                self.registration = Some(epoch);
                self.follow_metadata(effects);
            }
            (Purpose::Propose(partition, leader_epoch, number), answer) => {
                let outcome = match answer {
                    Answer::Made(Response::Partition { state, .. }) => {
                        let partition_epoch = state.partition_epoch;
                        self.taken.push(Taken { partition, leader_epoch, number, partition_epoch });
                        return self.follow_metadata(effects);
                    }
                    Answer::Made(_) | Answer::Unknown => Outcome::Unknown,
                    Answer::Refused => Outcome::Refused,
                };
                self.events.push(Event::ProposalAnswered { partition, leader_epoch, number, outcome });
                effects.push(Effect::Round);
            }
            (Purpose::Distrust(partition), Answer::Made(_) | Answer::Refused) => {
                self.distrusted.remove(&partition);
            }
            (Purpose::Hold(topic, count), Answer::Made(_)) => {
                self.held_kept.insert((topic, count));
            }
            (Purpose::ProducerIds, Answer::Made(Response::ProducerIds { first, count })) => {
                // Blocks are large, and runs are short: of each it gives the first and the last.
                self.producer_ids = vec![ProducerId(first + count - 1), ProducerId(first)];
            }
            _ => {}
        }
    }

    /// An id that no producer had before. If there is none, a block is asked for.
    pub fn producer_id(&mut self, effects: &mut Vec<Effect>) -> Option<ProducerId> {
        let next = self.producer_ids.pop();
        let broker = self.id;
        if next.is_none()
            && let Some(epoch) = self.image().broker(broker).map(|known| known.epoch)
        {
            self.ask(Purpose::ProducerIds, Request::AllocateProducerIds { broker, epoch }, effects);
        }
        next
    }

    /// What was taken and shows by now is told to the leader that asked.
    fn confirm_taken(&mut self, image: &Image) {
        let broker = self.id;
        let (known, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.taken).into_iter().partition(|taken| {
                let known = image.partition(taken.partition);
                known.is_none_or(|known| known.partition_epoch >= taken.partition_epoch)
            });
        self.taken = waiting;
        for Taken { partition, leader_epoch, number, .. } in known {
            let outcome = match image.partition(partition) {
                Some(known) => Outcome::Taken(Assignment::of(image, known, broker, None).membership),
                None => Outcome::Unknown,
            };
            self.events.push(Event::ProposalAnswered { partition, leader_epoch, number, outcome });
        }
    }

    /// Stops in order, once its leaderships moved away.
    pub fn close(&mut self, effects: &mut Vec<Effect>) {
        if self.closing.is_none() {
            let (done, closed) = oneshot::channel();
            self.closing = Some(closed);
            self.events.push(Event::Close { done });
            effects.push(Effect::Round);
        }
    }

    /// Applies every event that waits, as a shard's thread does.
    pub fn round(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let mut tasks = Vec::new();
        for event in std::mem::take(&mut self.events) {
            self.shard.apply(now, event, &mut tasks);
        }
        self.shard.write(now, &mut tasks);
        for outgoing in self.shard.take_outgoing() {
            self.carry_out(outgoing, effects);
        }
        self.shard.answer(&mut tasks);
        effects.extend(tasks.into_iter().map(|(id, task)| Effect::Run(id, task)));
        effects.extend(self.shard.take_scrub(now).map(Effect::Scrub));
        self.pump(effects);
        self.finish_removals(effects);
        if self.is_to_coordinate() {
            effects.push(Effect::Coordinate);
        }
        if let Some(closing) = &mut self.closing
            && closing.try_recv().is_ok()
        {
            effects.push(Effect::Stopped);
        }
    }

    fn carry_out(&mut self, outgoing: Outgoing, effects: &mut Vec<Effect>) {
        match outgoing {
            Outgoing::Connect(uplink) => {
                let leader = uplink.leader();
                let up = Upstream { uplink, stream: None, is_dialing: false, asked: BTreeMap::new() };
                self.ups.insert(leader, up);
            }
            Outgoing::Propose { partition, proposal } => {
                let purpose = Purpose::Propose(partition, proposal.leader_epoch, proposal.number);
                let request = ChangeInSync {
                    partition,
                    leader: self.id,
                    leader_epoch: proposal.leader_epoch,
                    partition_epoch: proposal.partition_epoch,
                    in_sync: proposal.in_sync,
                };
                self.ask(purpose, Request::ChangeInSync(request), effects);
            }
            Outgoing::Distrust { partition } => {
                self.distrusted.insert(partition);
            }
        }
    }
}

fn configure(
    held: &mut Held,
    partition: TopicPartition,
    assignment: Assignment,
    config: Arc<TopicConfig>,
    events: &mut Vec<Event>,
) {
    if held.told == assignment && *held.config == *config {
        return;
    }
    held.told = assignment.clone();
    held.config = Arc::clone(&config);
    events.push(Event::Configure { partition, assignment: Arc::new(assignment), config });
}

/// The time as a broker sees it whose clock is so far ahead (ms).
pub fn now(time: Time, ahead_ms: i64) -> Now {
    let since = time.since(Time::ZERO).as_millis() as i64;
    Now { time, timestamp: Timestamp(1_700_000_000_000 + since + ahead_ms) }
}
