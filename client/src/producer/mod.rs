//! Producing: records gather in batches, one worker for each partition sends them in order, deliveries tell how each ended.
//!
//! ```text
//! enqueue ─► partitioner ─► accumulator ─► worker (pipeline) ─► produce stream
//!    │ memory                                  │
//!    └─ Delivery ◄──────── completion ◄────────┘
//! ```

mod accumulator;
mod delivery;
mod error;
mod ids;
mod numbers;
mod obstacle;
mod partitioner;
mod pipeline;
#[doc(hidden)]
pub mod simulated;
mod worker;

pub use delivery::{Delivery, RecordMetadata};
pub use error::SendError;
pub use obstacle::Obstacle;
pub use partitioner::{PartitionFunction, Partitioner};

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use quire_protocol::batch::{Compression, HEADER_LEN, Record};
use quire_protocol::stream::Acks;
use quire_protocol::{PartitionIndex, Timestamp, limits};
use tokio::sync::{Notify, Semaphore};

use crate::Client;
use crate::connection::lock;
use crate::metadata::TopicMetadata;
use crate::patience::{self, Hindrance};
use crate::retry::{Jitter, Retry};

use accumulator::{Accumulator, BatchPolicy};
use ids::ProducerIds;
use partitioner::Choice;
use pipeline::{DeliveryPolicy, Pipeline};
use worker::{Delivered, PartitionQueue, Worker};

/// Smallest batch size that can be asked for (bytes).
const BATCH_BYTES_MIN: usize = 1024;

/// A producer's settings.
#[derive(Debug, Clone)]
pub struct ProducerBuilder {
    client: Client,
    options: ProducerOptions,
}

#[derive(Debug, Clone)]
pub(crate) struct ProducerOptions {
    pub linger: Duration,
    pub batch_bytes: usize,
    pub compression: Compression,
    pub acks: Acks,
    pub memory_bytes: usize,
    pub delivery_timeout: Duration,
    pub partitioner: Partitioner,
    pub is_idempotent: bool,
}

impl ProducerBuilder {
    pub(crate) fn new(client: Client) -> ProducerBuilder {
        let options = ProducerOptions {
            linger: Duration::ZERO,
            batch_bytes: limits::BATCH_BYTES_TARGET,
            compression: Compression::None,
            acks: Acks::All,
            memory_bytes: limits::PRODUCER_MEMORY_BYTES_DEFAULT,
            delivery_timeout: Duration::from_secs(30),
            partitioner: Partitioner::KeyHash,
            is_idempotent: true,
        };
        ProducerBuilder { client, options }
    }

    /// How long a batch that is not full waits for more records. Default 0: it leaves as soon as fewer than two
    /// batches of its partition are on their way, so that records gather while others are being written. At most half of
    /// the delivery timeout, which is for the way there and back.
    #[must_use]
    pub fn linger(mut self, linger: Duration) -> ProducerBuilder {
        self.options.linger = linger;
        self
    }

    /// Bytes of encoded records at which a batch leaves without waiting. Default 256 KiB; held within 1 KiB and the
    /// topic's `max.message.bytes`. A larger batch costs latency, a smaller one throughput.
    #[must_use]
    pub fn batch_bytes(mut self, bytes: usize) -> ProducerBuilder {
        self.options.batch_bytes = bytes;
        self
    }

    /// How batches are compressed. Default not at all.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> ProducerBuilder {
        self.options.compression = compression;
        self
    }

    /// When a record counts as delivered. Default [`Acks::All`].
    #[must_use]
    pub fn acks(mut self, acks: Acks) -> ProducerBuilder {
        self.options.acks = acks;
        self
    }

    /// Bytes of records that may wait or be on their way; more have to wait for room. Default 64 MiB.
    #[must_use]
    pub fn memory_bytes(mut self, bytes: usize) -> ProducerBuilder {
        self.options.memory_bytes = bytes;
        self
    }

    /// Longest time from accepting a record to its acknowledgement, retries included. Default 30 s.
    #[must_use]
    pub fn delivery_timeout(mut self, timeout: Duration) -> ProducerBuilder {
        self.options.delivery_timeout = timeout;
        self
    }

    /// What chooses partitions. Default [`Partitioner::KeyHash`].
    #[must_use]
    pub fn partitioner(mut self, partitioner: Partitioner) -> ProducerBuilder {
        self.options.partitioner = partitioner;
        self
    }

    /// Whether batches are numbered, so that one that is sent again after its acknowledgement was lost is not appended
    /// twice. Default yes: it costs 14 bytes a batch that are there anyway, and one request when the first record is sent.
    /// Never under [`Acks::None`], where nothing is sent again.
    #[must_use]
    pub fn idempotent(mut self, is_idempotent: bool) -> ProducerBuilder {
        self.options.is_idempotent = is_idempotent;
        self
    }

    /// The producer.
    pub fn build(mut self) -> Producer {
        let options = &mut self.options;
        options.batch_bytes = options.batch_bytes.clamp(BATCH_BYTES_MIN, limits::BATCH_BYTES_MAX);
        options.linger = options.linger.min(options.delivery_timeout / 2);
        options.memory_bytes = options.memory_bytes.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        let delivered =
            Delivered { memory: Semaphore::new(self.options.memory_bytes), first_failure: Mutex::new(None) };
        let shared = Shared {
            client: self.client,
            options: self.options,
            topics: ArcSwap::default(),
            looking_up: tokio::sync::Mutex::default(),
            ids: Arc::default(),
            delivered: Arc::new(delivered),
            is_closed: AtomicBool::new(false),
        };
        Producer { shared: Arc::new(shared) }
    }
}

/// Sends records. Cheap to clone; clones share memory and batches. Needs a tokio runtime.
///
/// Records of one partition are appended in the order in which they were handed over. What a broker refuses for now is
/// sent again until the delivery timeout, at another broker if that one leads by then. A batch that had been sent when its
/// connection was lost is not appended twice: it has a number by which the broker knows it
/// ([`ProducerBuilder::idempotent`]). A record that was not acknowledged in time may have been appended once or not at all.
///
/// Dropping the last clone sends nothing more: records that are not acknowledged by then fail with
/// [`SendError::Closed`]. Await [`Producer::flush`] or [`Producer::close`] first.
#[derive(Debug, Clone)]
pub struct Producer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    client: Client,
    options: ProducerOptions,
    /// By name. Looked into for every record, and replaced whole: by who is looking up.
    topics: ArcSwap<Vec<Arc<TopicQueues>>>,
    /// One look-up at a time, so that a topic has one set of queues.
    looking_up: tokio::sync::Mutex<()>,
    ids: Arc<ProducerIds>,
    delivered: Arc<Delivered>,
    is_closed: AtomicBool,
}

/// A topic's partitions, as this producer knows them.
#[derive(Debug)]
struct TopicQueues {
    metadata: Arc<TopicMetadata>,
    queues: Vec<Arc<PartitionQueue>>,
    known_since: Instant,
    /// Whether a task asks for it again.
    is_refreshing: AtomicBool,
    /// Whether the answer was that there is no such topic any more, or another refusal: the next record waits for it.
    is_refused: AtomicBool,
    /// The partition that records without a key go to at the moment.
    sticky: AtomicU32,
}

impl Producer {
    /// Sends a record and waits for its acknowledgement.
    ///
    /// # Errors
    /// If it could not be delivered; see [`SendError`].
    pub async fn send(&self, topic: &str, record: Record) -> Result<RecordMetadata, SendError> {
        self.enqueue(topic, record).await?.await
    }

    /// Sends a record to this partition and waits for its acknowledgement.
    ///
    /// # Errors
    /// If it could not be delivered; see [`SendError`].
    pub async fn send_to(
        &self,
        topic: &str,
        partition: PartitionIndex,
        record: Record,
    ) -> Result<RecordMetadata, SendError> {
        self.enqueue_to(topic, partition, record).await?.await
    }

    /// Hands over a record, and waits only for room in the producer's memory (and for the topic to be looked up the
    /// first time). A record without a timestamp gets the time of this call.
    ///
    /// # Errors
    /// If the topic is not known, the record can not be sent as it is, or no room came within the delivery timeout.
    pub async fn enqueue(&self, topic: &str, record: Record) -> Result<Delivery, SendError> {
        let topic = self.shared.topic(topic).await?;
        let choice = self.shared.options.partitioner.choose(&record, topic.metadata.partitions());
        self.shared.append(&topic, choice, &record).await
    }

    /// As [`Producer::enqueue`], to this partition.
    ///
    /// # Errors
    /// As [`Producer::enqueue`], and if the topic has no such partition.
    pub async fn enqueue_to(
        &self,
        topic: &str,
        partition: PartitionIndex,
        record: Record,
    ) -> Result<Delivery, SendError> {
        let topic = self.shared.topic(topic).await?;
        let partitions = topic.metadata.partitions();
        if partition.0 >= partitions {
            let topic = topic.metadata.name.to_string();
            return Err(SendError::UnknownPartition { topic, partition, partitions });
        }
        self.shared.append(&topic, Choice::Partition(partition.0), &record).await
    }

    /// The partitions whose records wait since something stands in the way that may pass: the broker refuses for now (its disk
    /// is full, too few replicas are in sync), no broker leads, none is reachable. Empty while all goes well.
    ///
    /// A record fails only when its delivery timeout is over; until then this is how to see that it may. Costs a lock a
    /// partition: meant to be looked at a few times a second at most.
    pub fn obstacles(&self) -> Vec<Obstacle> {
        let topics = self.shared.topics.load();
        let queues = topics.iter().flat_map(|topic| &topic.queues);
        queues.filter_map(|queue| lock(&queue.obstacle).clone()).collect()
    }

    /// Sends everything handed over before, and waits until each record is acknowledged or has failed.
    ///
    /// # Errors
    /// The first failure of any record since the last flush, so that none goes unseen even if nobody awaits its
    /// [`Delivery`].
    pub async fn flush(&self) -> Result<(), SendError> {
        for last in self.shared.seal_all() {
            last.done().await;
        }
        match lock(&self.shared.delivered.first_failure).take() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    /// Flushes and takes no more records; clones are closed too.
    ///
    /// # Errors
    /// As [`Producer::flush`].
    pub async fn close(&self) -> Result<(), SendError> {
        self.shared.is_closed.store(true, Ordering::Release);
        let flushed = self.flush().await;
        self.shared.abort_workers();
        flushed
    }
}

impl Shared {
    /// The topic's queues; looked up, with retries until the delivery timeout, the first time.
    async fn topic(self: &Arc<Self>, name: &str) -> Result<Arc<TopicQueues>, SendError> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(SendError::Closed);
        }
        if let Some(known) = self.usable_topic(name) {
            return Ok(known);
        }
        let _looking_up = self.looking_up.lock().await;
        if let Some(known) = self.usable_topic(name) {
            return Ok(known);
        }
        let metadata = look_up(&self.client, name, self.options.delivery_timeout).await?;
        Ok(self.remember(metadata, self.known_topic(name).as_deref()))
    }

    fn usable_topic(&self, name: &str) -> Option<Arc<TopicQueues>> {
        self.known_topic(name).filter(|known| !known.is_refused.load(Ordering::Acquire))
    }

    /// Asks for a topic again if what is known of it is old. It serves meanwhile: an outage holds up nobody, nor the
    /// producer's end.
    fn refresh_if_old(self: &Arc<Self>, known: &Arc<TopicQueues>) {
        if known.known_since.elapsed() >= self.client.brokers().config().metadata_age_max {
            self.refresh(known);
        }
    }

    /// Asks for a topic again, unless that is being done.
    fn refresh(self: &Arc<Self>, known: &Arc<TopicQueues>) {
        if known.is_refreshing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (producer, client, known) = (Arc::downgrade(self), self.client.clone(), Arc::clone(known));
        let timeout = self.options.delivery_timeout;
        tokio::spawn(async move {
            let looked_up = look_up(&client, &known.metadata.name, timeout).await;
            let Some(producer) = producer.upgrade() else { return };
            let _looking_up = producer.looking_up.lock().await;
            match looked_up {
                Ok(metadata) => drop(producer.remember(metadata, Some(&known))),
                Err(error) => {
                    let is_refused = !matches!(error, SendError::DeliveryTimeout { .. });
                    known.is_refused.store(is_refused, Ordering::Release);
                    known.is_refreshing.store(false, Ordering::Release);
                }
            }
        });
    }

    fn known_topic(&self, name: &str) -> Option<Arc<TopicQueues>> {
        let topics = self.topics.load();
        let at = topics.binary_search_by(|topic| (*topic.metadata.name).cmp(name)).ok()?;
        Some(Arc::clone(&topics[at]))
    }

    /// Makes the queues of a topic, with those there are already.
    fn remember(&self, metadata: Arc<TopicMetadata>, known: Option<&TopicQueues>) -> Arc<TopicQueues> {
        let policy = self.batch_policy(&metadata);
        let mut queues: Vec<_> = known.map(|known| known.queues.clone()).unwrap_or_default();
        // A topic created again under the same name may have fewer partitions.
        let superfluous = queues.split_off(queues.len().min(metadata.leaders.len()));
        superfluous.iter().for_each(|queue| queue.aborted.notify_one());
        queues.iter().for_each(|queue| lock(&queue.accumulator).set_policy(policy));
        for partition in queues.len() as u32..metadata.partitions() {
            queues.push(self.start_partition(&metadata, PartitionIndex(partition), policy));
        }
        // Producers that start together do not all begin with partition 0.
        let sticky = (Jitter::from_entropy().next_u64() % u64::from(metadata.partitions())) as u32;
        let known_since = Instant::now();
        let topic = Arc::new(TopicQueues {
            metadata,
            queues,
            known_since,
            is_refreshing: AtomicBool::new(false),
            is_refused: AtomicBool::new(false),
            sticky: AtomicU32::new(sticky),
        });
        let mut topics = self.topics.load().to_vec();
        match topics.binary_search_by(|other| other.metadata.name.cmp(&topic.metadata.name)) {
            Ok(at) => topics[at] = Arc::clone(&topic),
            Err(at) => topics.insert(at, Arc::clone(&topic)),
        }
        self.topics.store(Arc::new(topics));
        topic
    }

    fn batch_policy(&self, metadata: &TopicMetadata) -> BatchPolicy {
        BatchPolicy {
            linger: self.options.linger,
            full_bytes: self.options.batch_bytes.min(metadata.message_bytes_max),
            compression: self.options.compression,
            timestamp_type: metadata.timestamp_type,
        }
    }

    fn start_partition(
        &self,
        metadata: &TopicMetadata,
        partition: PartitionIndex,
        policy: BatchPolicy,
    ) -> Arc<PartitionQueue> {
        let accumulator = Accumulator::new(Arc::clone(&metadata.name), partition, policy);
        let queue = Arc::new(PartitionQueue {
            accumulator: Mutex::new(accumulator),
            changed: Notify::new(),
            aborted: Notify::new(),
            obstacle: Mutex::default(),
        });
        let (acks, delivery_timeout) = (self.options.acks, self.options.delivery_timeout);
        let retry = Retry::new(self.client.brokers().config().backoff, Jitter::from_entropy());
        let is_idempotent = self.options.is_idempotent;
        let policy = DeliveryPolicy { acks, timeout: delivery_timeout, is_idempotent };
        let worker = Worker {
            client: self.client.clone(),
            topic: Arc::clone(&metadata.name),
            partition,
            acks,
            delivery_timeout,
            queue: Arc::clone(&queue),
            delivered: Arc::clone(&self.delivered),
            ids: Arc::clone(&self.ids),
            pipeline: Pipeline::new(policy, retry),
            is_obstructed: false,
        };
        tokio::spawn(worker.run());
        queue
    }

    async fn append(
        self: &Arc<Self>,
        topic: &Arc<TopicQueues>,
        choice: Choice,
        record: &Record,
    ) -> Result<Delivery, SendError> {
        let memory = accumulator::record_bytes(record);
        self.check_size(topic, memory)?;
        let permit = match self.delivered.memory.try_acquire_many(memory as u32) {
            Ok(permit) => permit,
            Err(_) => self.wait_for_memory(memory).await?,
        };
        let queue = topic.queue(choice);
        let appended = lock(&queue.accumulator).append(record, memory, wall_clock(), Instant::now)?;
        permit.forget();
        // Once a batch, and not for each record.
        if appended.wake {
            queue.changed.notify_one();
            self.refresh_if_old(topic);
        }
        Ok(appended.delivery)
    }

    /// `record_bytes` is what the record takes of a batch, which it must fit alone.
    fn check_size(&self, topic: &TopicQueues, record_bytes: usize) -> Result<(), SendError> {
        let bytes = HEADER_LEN + record_bytes;
        let limit = match self.options.compression {
            Compression::None => topic.metadata.message_bytes_max,
            // What it takes is known only once it is compressed.
            _ => limits::BATCH_BYTES_MAX,
        };
        let limit = limit.min(self.options.memory_bytes);
        if bytes > limit {
            return Err(SendError::RecordTooLarge { bytes, limit });
        }
        Ok(())
    }

    async fn wait_for_memory(&self, bytes: usize) -> Result<tokio::sync::SemaphorePermit<'_>, SendError> {
        // What lingers would hold the memory that it waits for.
        if !self.options.linger.is_zero() {
            self.seal_all();
        }
        let after = self.options.delivery_timeout;
        let room = tokio::time::timeout(after, self.delivered.memory.acquire_many(bytes as u32));
        match room.await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(SendError::Closed),
            Err(_) => Err(SendError::BufferFull { memory_bytes: self.options.memory_bytes, after }),
        }
    }

    /// Lets every open batch leave, and gives the last batch of each partition.
    fn seal_all(&self) -> Vec<Arc<delivery::Completion>> {
        let topics = self.topics.load();
        let queues = topics.iter().flat_map(|topic| &topic.queues);
        let sealed = queues.filter_map(|queue| {
            let last = lock(&queue.accumulator).flush();
            queue.changed.notify_one();
            last
        });
        sealed.collect()
    }

    fn abort_workers(&self) {
        let topics = self.topics.load();
        topics.iter().flat_map(|topic| &topic.queues).for_each(|queue| queue.aborted.notify_one());
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.abort_workers();
    }
}

/// The topic, with retries until `after` is over. What is waited for is logged.
async fn look_up(client: &Client, name: &str, after: Duration) -> Result<Arc<TopicMetadata>, SendError> {
    let hindrance = Hindrance::default();
    let what = format!("\"{name}\" can not be looked up yet, and records for it wait");
    let looked_up = look_up_patiently(client, name, after, &hindrance);
    patience::with_warnings(&what, &hindrance, looked_up).await
}

async fn look_up_patiently(
    client: &Client,
    name: &str,
    after: Duration,
    hindrance: &Hindrance,
) -> Result<Arc<TopicMetadata>, SendError> {
    let deadline = Instant::now() + after;
    let mut retry = Retry::new(client.brokers().config().backoff, Jitter::from_entropy());
    loop {
        let error = match client.metadata().topic(name).await {
            Ok(metadata) => return Ok(metadata),
            Err(error) if error.is_retriable() => error,
            Err(error) => return Err(error.into()),
        };
        hindrance.set(&error);
        let due = retry.failed(Instant::now());
        if due >= deadline {
            return Err(SendError::DeliveryTimeout { after, cause: Some(Box::new(error)) });
        }
        tokio::time::sleep_until(due.into()).await;
    }
}

impl TopicQueues {
    fn queue(&self, choice: Choice) -> &Arc<PartitionQueue> {
        let partitions = self.queues.len() as u32;
        let partition = match choice {
            Choice::Partition(partition) => partition,
            Choice::Next => self.sticky.fetch_add(1, Ordering::Relaxed) % partitions,
            Choice::Sticky => {
                let current = self.sticky.load(Ordering::Relaxed) % partitions;
                if lock(&self.queues[current as usize].accumulator).has_open() {
                    current
                } else {
                    // Its batch has left: the next one is filled on the next partition that is led by somebody.
                    let led = |partition: &u32| {
                        self.metadata.leaders.get(*partition as usize).is_some_and(|l| l.leader.is_some())
                    };
                    let candidates = (1..=partitions).map(|step| (current + step) % partitions);
                    let next = candidates.into_iter().find(led).unwrap_or((current + 1) % partitions);
                    self.sticky.store(next, Ordering::Relaxed);
                    next
                }
            }
        };
        &self.queues[partition as usize]
    }
}

fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
