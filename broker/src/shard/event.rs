//! Everything that can happen to a shard.

use std::sync::Arc;

use quire_protocol::batch::BatchHeader;
use quire_protocol::stream::{Ack, Acks};
use quire_protocol::topic_config::TopicConfig;
use quire_protocol::{LeaderEpoch, TopicPartition};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::flush::TaskDone;
use super::handle::Shared;
use crate::error::RequestError;

/// One batch to be appended.
#[derive(Debug)]
pub struct ProduceRequest {
    /// The batch's header, parsed from it and checked.
    pub header: BatchHeader,
    /// The whole batch.
    pub batch: Vec<u8>,
    /// When it is answered. All requests of one stream have the same.
    pub acks: Acks,
    /// The batch's share of the broker's produce memory, returned when it is answered.
    pub permit: OwnedSemaphorePermit,
    /// Where the stream is answered: in the order of its requests. `acks = none` is answered only by a failure.
    ///
    /// It needs room for every unanswered request of the stream, and for one failure. A failure is the stream's last
    /// answer: requests of the same stream that come after it are dropped, not appended.
    pub reply: mpsc::Sender<ProduceReply>,
}

/// The answer to one produce request.
pub type ProduceReply = Result<Ack, RequestError>;

/// What a shard takes from its queues.
#[derive(Debug)]
pub(crate) enum Event {
    /// Append a batch.
    Produce(TopicPartition, ProduceRequest),
    /// A reader found records damaged that were on disk.
    Damaged {
        partition: TopicPartition,
        /// Which, and how.
        what: String,
    },
    /// Begin to own a partition.
    Open(Arc<Shared>),
    /// The partition's settings or leadership changed.
    Configure { partition: TopicPartition, leader_epoch: LeaderEpoch, config: Arc<TopicConfig> },
    /// Stop owning a partition whose topic was deleted; answered when no file of it is in use any more.
    Remove { partition: TopicPartition, done: oneshot::Sender<()> },
    /// A task handed to the flushers is done.
    Done(TopicPartition, TaskDone),
    /// Close every log and end.
    Close { done: oneshot::Sender<Closed> },
}

/// What closing came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Closed {
    /// Partitions that were open.
    pub partitions: usize,
    /// Those of them that were synced, checkpointed and marked clean.
    pub clean: usize,
}
