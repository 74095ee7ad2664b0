//! Starts and stops the shards, their flushers, and the assigner that tells them what to own.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use quire_protocol::{BrokerId, TopicPartition, limits};
use quire_storage::disk::Disk;
use tokio::sync::{mpsc, oneshot, watch};

use super::assign::Assigner;
use super::clock::Clock;
use super::core::Limits;
use super::event::{Closed, Event, Outgoing};
use super::flush::{Direct, FlusherQueue, Flushers};
use super::handle::Partitions;
use super::run::{self, Exits, Inbox};
use super::scrubbing::ScrubOptions;
use super::{Shard, Store};
use crate::controller::Metadata;
use crate::metrics::ShardMetrics;
use crate::threads;

/// How a broker keeps its partitions.
#[derive(Debug, Clone)]
pub struct ShardsOptions {
    /// The broker whose partitions these are.
    pub broker: BrokerId,
    /// The file system.
    pub disk: Arc<dyn Disk>,
    /// `<data>/topics`
    pub dir: PathBuf,
    /// How many shards; at least 1. More than there are cores gains nothing.
    pub shards: usize,
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
    /// How often retention looks at every partition.
    pub retention_interval: Duration,
    /// How long a deleted topic's files stay.
    pub deletion_grace: Duration,
    /// A follower further behind than this leaves the in-sync replicas.
    pub replica_lag: Duration,
    /// What leaders may have sent that is not appended yet, over all shards (bytes).
    pub fetch_bytes: usize,
    /// How the logs are read again to find damage, over all shards.
    pub scrub: ScrubOptions,
    /// The broker's registration, once it is registered: it plays no part in any partition before.
    pub registration: watch::Receiver<Option<u64>>,
    /// Where shards leave what is not about their own disk, each with its number.
    pub(crate) outgoing: mpsc::UnboundedSender<(usize, Outgoing)>,
    /// What is counted.
    pub(crate) metrics: Arc<ShardMetrics>,
}

impl ShardsOptions {
    /// How often retention looks at every partition, by default.
    pub const RETENTION_INTERVAL: Duration = Duration::from_secs(10);
}

/// The running shards.
#[derive(Debug)]
pub struct Shards {
    partitions: Partitions,
    shards: Vec<ShardThread>,
    assigner: tokio::task::JoinHandle<()>,
    flushers: Flushers,
}

/// One shard, as the rest of the pool reaches it.
#[derive(Debug)]
struct ShardThread {
    way_in: WayIn,
    thread: JoinHandle<()>,
}

/// How events reach one shard.
#[derive(Debug, Clone)]
pub(super) struct WayIn {
    /// For handlers: bounded, waits for room.
    pub(super) requests: mpsc::Sender<Event>,
    /// For control: never waits.
    pub(super) direct: Direct,
}

impl Shards {
    /// Starts shards and flushers, and begins to follow the metadata. Partitions are opened from here on;
    /// [`Partitions::all_opened`] waits for them. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// If the operating system gives no more threads.
    ///
    /// # Panics
    /// If there is to be no shard.
    pub fn start(options: ShardsOptions, metadata: Arc<dyn Metadata>) -> io::Result<Shards> {
        assert!(options.shards > 0, "partitions need a shard");
        let (queue, flushers) = Flushers::start(limits::FLUSHERS, limits::OPENERS, &options.metrics)?;
        let start = |number| start_shard(number, &options, &queue);
        let shards = (0..options.shards).map(start).collect::<io::Result<Vec<_>>>()?;
        let queues = shards.iter().map(|shard| shard.way_in.requests.clone()).collect();
        let router = Router(shards.iter().map(|shard| shard.way_in.direct.clone()).collect());
        let partitions = Partitions::new(metadata.clone(), options.broker, queues, router);
        let assigner = Assigner {
            broker: options.broker,
            store: Store { disk: options.disk, dir: options.dir },
            ways_in: shards.iter().map(|shard| shard.way_in.clone()).collect(),
            partitions: partitions.clone(),
            metadata,
            clock: options.clock,
            deletion_grace: options.deletion_grace,
            registration: options.registration,
        };
        Ok(Shards {
            partitions,
            shards,
            assigner: threads::spawn_task("assigner", assigner.follow()),
            flushers,
        })
    }

    /// The partitions, for handlers to look up.
    pub fn partitions(&self) -> Partitions {
        self.partitions.clone()
    }

    /// Takes nothing more, answers what was taken, syncs and closes every log, and ends the threads.
    pub async fn close(self) -> Closed {
        self.assigner.abort();
        self.partitions.end_assignment();
        let mut total = Closed::default();
        let mut answers = Vec::new();
        for shard in &self.shards {
            let (done, answer) = oneshot::channel();
            shard.way_in.direct.send(Event::Close { done });
            answers.push(answer);
        }
        for answer in answers {
            let closed = answer.await.expect("a shard answers before it ends");
            total.partitions += closed.partitions;
            total.clean += closed.clean;
        }
        let (shards, flushers) = (self.shards, self.flushers);
        let join = move || {
            for shard in shards {
                if shard.thread.join().is_err() {
                    tracing::error!("a shard thread panicked");
                }
            }
            flushers.join();
        };
        if tokio::task::spawn_blocking(join).await.is_err() {
            tracing::error!("waiting for the shards to end failed");
        }
        total
    }
}

/// The way to the shards that never waits.
#[derive(Debug, Clone)]
pub(crate) struct Router(Arc<[Direct]>);

impl Router {
    /// How many shards there are.
    pub(crate) fn shards(&self) -> usize {
        self.0.len()
    }

    /// The number of the shard that owns a partition.
    pub(crate) fn shard_of(&self, id: TopicPartition) -> usize {
        shard_of(id, self.0.len())
    }

    /// Delivers an event to a shard.
    pub(crate) fn send(&self, shard: usize, event: Event) {
        self.0[shard].send(event);
    }

    /// Delivers an event to the shard that owns a partition.
    pub(crate) fn send_to(&self, id: TopicPartition, event: Event) {
        self.send(self.shard_of(id), event);
    }
}

/// Which shard owns a partition: neighbours go to different ones.
pub(super) fn shard_of(id: TopicPartition, shards: usize) -> usize {
    let topic =
        id.topic.0.iter().fold(0usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
    topic.wrapping_add(id.partition.0 as usize) % shards
}

fn start_shard(number: usize, options: &ShardsOptions, flushers: &FlusherQueue) -> io::Result<ShardThread> {
    let (requests, requests_in) = mpsc::channel(limits::SHARD_QUEUE_EVENTS);
    let (direct, direct_in) = crossbeam_channel::unbounded();
    let inbox = Inbox { requests: requests_in, direct: direct_in };
    let store = Store { disk: options.disk.clone(), dir: options.dir.clone() };
    let (now, metrics) = (options.clock.now(), options.metrics.clone());
    let limits =
        Limits { replica_lag: options.replica_lag, fetch_bytes: options.fetch_bytes / options.shards };
    let mut shard = Shard::new(now, options.broker, store, options.retention_interval, limits, metrics);
    let bytes_per_second = options.scrub.bytes_per_second.div_ceil(options.shards as u64);
    shard.scrub(now, ScrubOptions { bytes_per_second, ..options.scrub });
    let outgoing = options.outgoing.clone();
    let (clock, flushers, events) = (options.clock.clone(), flushers.clone(), direct.clone());
    let thread = threads::spawn(format!("shard-{number}"), move || {
        let back = Direct { events, shard: thread::current() };
        let exits = Exits { number, back: &back, flushers: &flushers, outgoing: &outgoing };
        run::run(shard, inbox, &exits, &*clock);
    })?;
    let direct = Direct { events: direct, shard: thread.thread().clone() };
    Ok(ShardThread { way_in: WayIn { requests, direct }, thread })
}
