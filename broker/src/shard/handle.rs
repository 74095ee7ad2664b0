//! What others hold of a partition: cheap, shared, and never in the way of the shard that owns it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use quire_engine::controller::Image;
use quire_protocol::topic_config::TopicConfig;
use quire_protocol::{BrokerId, ErrorCode, LeaderEpoch, Offset, TopicId, TopicPartition};
use quire_storage::{LogReader, ReadError};
use tokio::sync::{mpsc, watch};

use super::assignment::Assignment;
use super::event::{Event, ProduceRequest};
use super::pool::Router;
use super::scrubbing::is_damage;
use crate::controller::Metadata;
use crate::error::RequestError;

/// What a partition can do at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartitionState {
    /// Its log is being opened, and recovered if the broker did not stop cleanly.
    Opening,
    /// It reads and writes.
    Online,
    /// It reads; it writes again by itself once there is space.
    DiskFull,
    /// Its log is damaged: what is intact can be read, nothing can be written.
    Corrupt {
        /// What is damaged.
        what: String,
    },
    /// What is there is not the log that this broker kept: it is gone, another partition's, or lists its segments no
    /// more. Nothing can be read or written until it is restored and the broker was started again.
    Lost {
        /// What is there instead, and what to do.
        what: String,
    },
    /// The disk refused to open its log, or it failed: nothing can be written until it was fetched again from another
    /// replica, or the broker was started again.
    Failed {
        /// What failed.
        what: String,
    },
    /// Its log knows a later leadership than the metadata does: nothing is written until the metadata has caught up. It can be
    /// trusted as ever.
    Outdated {
        /// What each of them knows.
        what: String,
    },
    /// It was deleted, or the broker is shutting down.
    Closed,
}

impl PartitionState {
    /// The error a client is told in this state; `None` while everything works.
    pub fn error(&self) -> Option<RequestError> {
        match self {
            PartitionState::Online => None,
            PartitionState::Opening => {
                Some(RequestError::new(ErrorCode::Unavailable, "the partition's log is being opened"))
            }
            PartitionState::DiskFull => {
                Some(RequestError::new(ErrorCode::DiskFull, "the disk that holds the partition is full"))
            }
            PartitionState::Corrupt { what } => Some(RequestError::corrupt_log(what)),
            PartitionState::Lost { what } => Some(RequestError::new(ErrorCode::CorruptLog, what)),
            PartitionState::Failed { what } | PartitionState::Outdated { what } => {
                Some(RequestError::storage_failed(what))
            }
            PartitionState::Closed => {
                Some(RequestError::new(ErrorCode::Unavailable, "the partition is closed"))
            }
        }
    }
}

/// Where a partition's readable part lies; what readers are woken by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Watermarks {
    /// The log start offset.
    pub log_start: Offset,
    /// The first offset that can not be read yet.
    pub high_watermark: Offset,
    /// Whether nothing will ever change any more: deleted, or the broker is shutting down.
    pub is_closed: bool,
}

/// What this broker does for a partition at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// The leader, if there is one.
    pub leader: Option<BrokerId>,
    /// The leadership.
    pub leader_epoch: LeaderEpoch,
    /// Whether this broker leads.
    pub is_leading: bool,
    /// Whether the leader knows everything that was committed before its time: where the log ends is told only then.
    pub is_settled: bool,
    /// Whether what is committed can be read here: this broker leads, or follows and is in sync.
    pub is_readable: bool,
    /// Whether enough replicas are in sync for anything to be committed.
    pub has_enough_replicas: bool,
}

/// One partition, as everybody but its shard sees it.
#[derive(Debug, Clone)]
pub struct PartitionHandle(Arc<Shared>);

/// What a shard publishes about one partition.
#[derive(Debug)]
pub struct Shared {
    pub(super) id: TopicPartition,
    /// Its log is known to be on disk, since before this start.
    pub(super) is_held: bool,
    queue: mpsc::Sender<Event>,
    /// As the shard has it.
    assignment: ArcSwap<Assignment>,
    /// As the shard was last told; ahead of what it has.
    told: ArcSwap<Assignment>,
    standing: ArcSwap<Standing>,
    config: ArcSwap<TopicConfig>,
    state: ArcSwap<PartitionState>,
    /// Records that were acknowledged may be missing since the last stop.
    is_suspect: AtomicBool,
    /// Set once, when the log is open.
    reader: OnceLock<LogReader>,
    watermarks: watch::Sender<Watermarks>,
}

/// A produce request that did not reach its shard: nothing of it was appended.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ProduceRefused(#[from] pub RequestError);

impl PartitionHandle {
    /// What a shard shows of a partition, once its log is open.
    pub fn of(shared: Arc<Shared>) -> PartitionHandle {
        PartitionHandle(shared)
    }

    /// Which partition this is.
    pub fn id(&self) -> TopicPartition {
        self.0.id
    }

    /// Reads, without going through the shard.
    pub fn reader(&self) -> &LogReader {
        self.0.reader.get().expect("a handle is given out only when the log is open")
    }

    /// The current leadership.
    pub fn leader_epoch(&self) -> LeaderEpoch {
        self.standing().leader_epoch
    }

    /// What this broker does for the partition.
    pub fn standing(&self) -> Standing {
        **self.0.standing.load()
    }

    /// The topic's settings.
    pub fn config(&self) -> Arc<TopicConfig> {
        self.0.config.load_full()
    }

    /// What the partition can do at the moment.
    pub fn state(&self) -> Arc<PartitionState> {
        self.0.state.load_full()
    }

    /// Woken when the high watermark or the log start moved, or the partition is closed.
    pub fn changes(&self) -> watch::Receiver<Watermarks> {
        self.0.watermarks.subscribe()
    }

    /// Hands a batch to the shard; waits while the shard's queue is full. The answer comes through
    /// [`ProduceRequest::reply`].
    ///
    /// # Errors
    /// If the shard has ended: the broker is shutting down.
    pub async fn produce(&self, request: ProduceRequest) -> Result<(), ProduceRefused> {
        let event = Event::Produce(self.0.id, request);
        self.0.queue.send(event).await.map_err(|_| ProduceRefused(RequestError::shutting_down()))
    }

    /// What a client is told when [`PartitionHandle::reader`] fails. Damage is told to the shard before: what is
    /// produced from then on is refused. Where others have what is damaged here, the client is sent to them.
    pub(crate) async fn read_failed(&self, error: ReadError) -> RequestError {
        let is_replicated = self.0.is_replicated();
        if !is_damage(&error, is_replicated) {
            return error.into();
        }
        if !matches!(*self.state(), PartitionState::Corrupt { .. }) {
            let what = match &error {
                ReadError::Corrupt { offset, segment, position, what } => {
                    format!("offset {offset} can not be read; {segment}, byte {position}: {what}")
                }
                other => other.to_string(),
            };
            // A shard that has ended takes no more records anyway.
            let _ = self.0.queue.send(Event::Damaged { partition: self.0.id, what }).await;
        }
        if is_replicated { damaged_here() } else { error.into() }
    }
}

impl Shared {
    /// A partition that is about to be opened.
    pub fn new(
        id: TopicPartition,
        is_held: bool,
        queue: mpsc::Sender<Event>,
        assignment: Arc<Assignment>,
        config: Arc<TopicConfig>,
    ) -> Shared {
        Shared {
            id,
            is_held,
            queue,
            assignment: ArcSwap::new(assignment.clone()),
            told: ArcSwap::new(assignment),
            standing: ArcSwap::default(),
            config: ArcSwap::new(config),
            state: ArcSwap::from_pointee(PartitionState::Opening),
            is_suspect: AtomicBool::new(false),
            reader: OnceLock::new(),
            watermarks: watch::Sender::new(Watermarks::default()),
        }
    }

    /// Whether others are to have what this replica has.
    pub(super) fn is_replicated(&self) -> bool {
        self.assignment.load().membership.replicas.len() > 1
    }

    pub(super) fn told(&self) -> Arc<Assignment> {
        self.told.load_full()
    }

    pub(super) fn tell(&self, assignment: Arc<Assignment>) {
        self.told.store(assignment);
    }

    pub(super) fn assignment(&self) -> Arc<Assignment> {
        self.assignment.load_full()
    }

    pub(super) fn config(&self) -> Arc<TopicConfig> {
        self.config.load_full()
    }

    /// What the partition can do at the moment.
    pub fn state(&self) -> Arc<PartitionState> {
        self.state.load_full()
    }

    /// From here on the partition is found.
    pub(super) fn publish_reader(&self, reader: LogReader) {
        self.reader.set(reader).expect("a partition's log is opened once");
    }

    /// Follows the metadata.
    pub(super) fn configure(&self, assignment: Arc<Assignment>, config: Arc<TopicConfig>) {
        self.config.store(config);
        self.assignment.store(assignment);
    }

    /// Shows what this broker does for the partition, and wakes whoever waits for it to do something else.
    pub(super) fn publish_standing(&self, standing: Standing) {
        if **self.standing.load() != standing {
            self.standing.store(Arc::new(standing));
            self.watermarks.send_modify(|_| {});
        }
    }

    /// Whether the log is open, so that there is something to see.
    pub fn is_open(&self) -> bool {
        self.reader.get().is_some()
    }

    /// Whether the log can not be trusted to have all that was acknowledged.
    pub fn is_suspect(&self) -> bool {
        let is_impaired = matches!(
            *self.state(),
            PartitionState::Corrupt { .. } | PartitionState::Lost { .. } | PartitionState::Failed { .. }
        );
        is_impaired || self.is_distrusted()
    }

    /// Whether it was remembered that the log may lack what was acknowledged.
    pub(super) fn is_distrusted(&self) -> bool {
        self.is_suspect.load(Ordering::Acquire)
    }

    /// Remembers that the log may lack what was acknowledged, before its state is shown.
    pub(super) fn mark_suspect(&self) {
        self.is_suspect.store(true, Ordering::Release);
    }

    /// The log has what was acknowledged; whether that is news.
    pub(super) fn trust(&self) -> bool {
        self.is_suspect.swap(false, Ordering::AcqRel)
    }

    /// Shows a new state, and wakes whoever waits for the partition to be opened or closed.
    pub(super) fn publish_state(&self, state: PartitionState) {
        let is_closed = state == PartitionState::Closed;
        self.state.store(Arc::new(state));
        self.watermarks.send_modify(|watermarks| watermarks.is_closed |= is_closed);
    }

    /// Shows how far the log can be read, and wakes readers.
    pub(super) fn publish_watermarks(&self, log_start: Offset, high_watermark: Offset) {
        self.watermarks.send_modify(|watermarks| {
            watermarks.log_start = log_start;
            watermarks.high_watermark = high_watermark;
        });
    }
}

/// The partitions that this broker holds, found without a lock.
#[derive(Debug, Clone)]
pub struct Partitions {
    held: Arc<ArcSwap<Held>>,
    assigner: Arc<watch::Sender<Watch>>,
    metadata: Arc<dyn Metadata>,
    broker: BrokerId,
    /// The shards' queues, to tell how full they are.
    queues: Arc<[mpsc::Sender<Event>]>,
    router: Router,
}

/// The held partitions; replaced whole when some come or go.
pub(super) type Held = HashMap<TopicPartition, Arc<Shared>>;

/// Wakes whoever waits for a partition to be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Watch {
    #[default]
    Following,
    /// Nothing will be held any more that is not held now.
    Ended,
}

impl Partitions {
    pub(super) fn new(
        metadata: Arc<dyn Metadata>,
        broker: BrokerId,
        queues: Arc<[mpsc::Sender<Event>]>,
        router: Router,
    ) -> Partitions {
        Partitions { held: Arc::default(), assigner: Arc::default(), metadata, broker, queues, router }
    }

    /// The way to the shards for what must never wait.
    pub(crate) fn router(&self) -> &Router {
        &self.router
    }

    /// Requests that wait for a shard.
    pub fn queued(&self) -> usize {
        self.queues.iter().map(|queue| queue.max_capacity() - queue.capacity()).sum()
    }

    pub(super) fn held(&self) -> Arc<Held> {
        self.held.load_full()
    }

    pub(super) fn replace(&self, held: Held) {
        self.held.store(Arc::new(held));
        self.assigner.send_modify(|_| {});
    }

    pub(super) fn end_assignment(&self) {
        self.assigner.send_replace(Watch::Ended);
    }

    /// Finds a partition that this broker leads.
    ///
    /// # Errors
    /// If it does not exist, is led by another broker, is still being opened, or its log could not be opened.
    pub fn find(&self, id: TopicPartition) -> Result<PartitionHandle, RequestError> {
        let handle = self.find_replica(id)?;
        let standing = handle.standing();
        if standing.is_leading {
            return Ok(handle);
        }
        Err(not_leader(standing.leader))
    }

    /// Finds a partition that this broker holds a replica of.
    ///
    /// # Errors
    /// If it does not exist, is held by other brokers, is still being opened, or its log could not be opened.
    pub fn find_replica(&self, id: TopicPartition) -> Result<PartitionHandle, RequestError> {
        match self.held.load().get(&id) {
            Some(shared) if shared.reader.get().is_some() => Ok(PartitionHandle(shared.clone())),
            Some(shared) => Err(shared.state().error().unwrap_or_else(opening)),
            None => Err(self.why_not_held(id)),
        }
    }

    /// The state of every partition that this broker replicates, open or not.
    pub(crate) fn states(&self) -> Vec<Arc<PartitionState>> {
        self.held.load().values().map(|shared| shared.state()).collect()
    }

    /// The partitions whose log can not be trusted to have all that was acknowledged, as far as they were opened.
    pub(crate) fn suspects(&self) -> Vec<TopicPartition> {
        self.held.load().values().filter(|shared| shared.is_suspect()).map(|shared| shared.id).collect()
    }

    /// Every partition whose log is open.
    pub fn all(&self) -> Vec<PartitionHandle> {
        let held = self.held.load();
        held.values().filter(|shared| shared.reader.get().is_some()).cloned().map(PartitionHandle).collect()
    }

    /// Waits until every partition of the topic that this broker replicates was opened, or could not be.
    pub async fn opened(&self, topic: TopicId) {
        let image = self.metadata.image();
        for partition in image.topic(topic).iter().flat_map(|topic| &topic.partitions) {
            if partition.replicas.contains(&self.broker) {
                self.settled(TopicPartition { topic, partition: partition.index }).await;
            }
        }
    }

    /// Waits until every partition of the topic that this broker replicates was opened and is known to be held, or could not
    /// be opened.
    pub async fn opened_and_held(&self, topic: TopicId) {
        self.opened(topic).await;
        let is_open = |id| self.held.load().get(&id).is_some_and(|shared| shared.reader.get().is_some());
        let is_settled = |image: &Arc<Image>| {
            let Some(topic) = image.topic(topic) else { return true };
            let mut held =
                topic.partitions.iter().filter(|partition| partition.replicas.contains(&self.broker));
            topic.is_all_held(self.broker)
                || !held
                    .all(|partition| is_open(TopicPartition { topic: topic.id, partition: partition.index }))
        };
        // An error is the end of the metadata.
        let _ = self.metadata.changes().wait_for(is_settled).await;
    }

    /// Waits until a partition's log was opened, or could not be for now; whether it is open, and so on disk.
    pub(super) async fn was_opened(&self, id: TopicPartition) -> bool {
        let Some(shared) = self.held.load().get(&id).cloned() else { return false };
        let mut changes = shared.watermarks.subscribe();
        while *shared.state() == PartitionState::Opening && changes.changed().await.is_ok() {}
        shared.is_open()
    }

    /// Waits until a partition's log is open, and so on disk; whether that came.
    pub(super) async fn is_on_disk(&self, id: TopicPartition) -> bool {
        let Some(shared) = self.held.load().get(&id).cloned() else { return false };
        let mut changes = shared.watermarks.subscribe();
        loop {
            if shared.reader.get().is_some() {
                return true;
            }
            if *shared.state() == PartitionState::Closed || changes.changed().await.is_err() {
                return false;
            }
        }
    }

    /// Waits until every partition that this broker replicates was opened, or could not be.
    pub async fn all_opened(&self) {
        let image = self.metadata.image();
        for topic in image.topics() {
            self.opened(topic.id).await;
        }
    }

    /// Waits until a partition that is to be held here is open; `None` if it is not to be, or could not be opened.
    pub(crate) async fn opened_replica(&self, id: TopicPartition) -> Option<PartitionHandle> {
        self.settled(id).await;
        self.find_replica(id).ok()
    }

    /// Waits until a partition is held and is not being opened any more, or is not to be held.
    async fn settled(&self, id: TopicPartition) {
        let mut image = self.metadata.changes();
        let mut assigner = self.assigner.subscribe();
        let shared = loop {
            let is_ended = *assigner.borrow_and_update() == Watch::Ended;
            if let Some(shared) = self.held.load().get(&id) {
                break shared.clone();
            }
            if is_ended || image.borrow_and_update().partition(id).is_none() {
                return;
            }
            tokio::select! {
                changed = assigner.changed() => if changed.is_err() { return },
                changed = image.changed() => if changed.is_err() { return },
            }
        };
        let mut changes = shared.watermarks.subscribe();
        while *shared.state() == PartitionState::Opening && changes.changed().await.is_ok() {}
    }

    fn why_not_held(&self, id: TopicPartition) -> RequestError {
        let image = self.metadata.image();
        let Some(topic) = image.topic(id.topic) else {
            return RequestError::new(ErrorCode::UnknownTopic, format!("no topic has the id {}", id.topic));
        };
        match topic.partition(id.partition) {
            None => {
                let (name, last) = (&topic.name, topic.partitions.len().saturating_sub(1));
                let message = format!("topic \"{name}\" has partitions 0 to {last}, not {}", id.partition);
                RequestError::new(ErrorCode::UnknownPartition, message)
            }
            Some(partition) if partition.replicas.contains(&self.broker) => opening(),
            Some(partition) => not_leader(partition.leader),
        }
    }
}

/// What is told of a partition that another broker leads, or none: nothing of what was asked was done.
pub(crate) fn not_leader(leader: Option<BrokerId>) -> RequestError {
    let message = match leader {
        Some(leader) => format!("broker {leader} leads the partition"),
        None => "nobody leads the partition at the moment".to_owned(),
    };
    RequestError::new(ErrorCode::NotLeader, message)
}

/// What is told of a replica that is damaged, where others have its records: nothing of what was asked was done.
pub(super) fn damaged_here() -> RequestError {
    RequestError::new(ErrorCode::NotLeader, "the replica here is damaged, and another takes its place")
}

fn opening() -> RequestError {
    RequestError::new(ErrorCode::Unavailable, "the partition's log is being opened")
}
