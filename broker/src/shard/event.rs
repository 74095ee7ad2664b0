//! Everything that can happen to a shard.

use std::sync::Arc;

use bytes::Bytes;
use quire_engine::replication::{Membership, Progress, Proposal};
use quire_protocol::batch::BatchHeader;
use quire_protocol::replicate::{Follow, LeaderMessage};
use quire_protocol::stream::{Ack, Acks};
use quire_protocol::topic_config::TopicConfig;
use quire_protocol::{BrokerId, LeaderEpoch, TopicPartition};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::assignment::Assignment;
use super::flush::TaskDone;
use super::handle::Shared;
use super::link::{Downlink, Uplink};
use super::scrubbing::ScrubDone;
use crate::error::RequestError;

/// One batch to be appended.
#[derive(Debug)]
pub struct ProduceRequest {
    /// The batch's header, parsed from it and checked.
    pub header: BatchHeader,
    /// The whole batch.
    pub batch: Vec<u8>,
    /// The leadership that its stream was opened in.
    pub leader_epoch: LeaderEpoch,
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
pub enum Event {
    /// Append a batch.
    Produce(TopicPartition, ProduceRequest),
    /// A reader found records damaged that were on disk.
    Damaged {
        /// The partition.
        partition: TopicPartition,
        /// Which, and how.
        what: String,
    },
    /// A piece of a log was read again.
    Scrubbed(ScrubDone),
    /// Begin to own a partition.
    Open(Arc<Shared>),
    /// The partition's settings, leadership or replicas changed.
    Configure {
        /// The partition.
        partition: TopicPartition,
        /// This broker's part in it.
        assignment: Arc<Assignment>,
        /// The topic's settings.
        config: Arc<TopicConfig>,
    },
    /// A broker asks, on a replicate stream of its, for a partition that this one leads.
    Follow {
        /// The stream.
        link: Arc<Downlink>,
        /// What is asked.
        follow: Follow,
    },
    /// A follower wants nothing more of a slot.
    Unfollow {
        /// The stream.
        link: Arc<Downlink>,
        /// The slot's partition.
        partition: TopicPartition,
        /// The slot.
        slot: u32,
    },
    /// A follower tells how far it is with partitions of this shard.
    Progress {
        /// The stream.
        link: Arc<Downlink>,
        /// How far.
        entries: Vec<SlotProgress>,
    },
    /// The stream to a leader is open.
    LinkUp {
        /// The leader.
        leader: BrokerId,
    },
    /// The stream to a leader is gone.
    LinkDown {
        /// The leader.
        leader: BrokerId,
    },
    /// A leader that is followed says something.
    Told {
        /// The leader.
        leader: BrokerId,
        /// What it says.
        message: LeaderMessage,
        /// The frames that came with it.
        frames: Fetched,
    },
    /// The controller answered a proposal of other in-sync replicas, or did not.
    ProposalAnswered {
        /// The partition.
        partition: TopicPartition,
        /// The leadership that proposed.
        leader_epoch: LeaderEpoch,
        /// Which of its proposals.
        number: u64,
        /// What became of it.
        outcome: Outcome,
    },
    /// Stop owning a partition whose topic was deleted; answered when no file of it is in use any more.
    Remove {
        /// The partition.
        partition: TopicPartition,
        /// Where it is answered.
        done: oneshot::Sender<()>,
    },
    /// A task handed to the flushers is done.
    Done(TopicPartition, TaskDone),
    /// Close every log and end.
    Close {
        /// Where it is answered.
        done: oneshot::Sender<Closed>,
    },
}

/// How far a follower is with one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotProgress {
    /// The slot's partition.
    pub partition: TopicPartition,
    /// The slot.
    pub slot: u32,
    /// Its ends.
    pub ends: Progress,
}

/// Whole frames, each checked completely, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fetched(pub Vec<Bytes>);

/// What became of a proposal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was taken; this is what holds now.
    Taken(Membership),
    /// It was refused, and will never be taken.
    Refused,
    /// It may have been taken, or may be yet.
    Unknown,
}

/// What a shard wants done that is not about its own disk.
#[derive(Debug)]
pub enum Outgoing {
    /// A leader is followed from here on: a stream to it is to be kept while that is wanted.
    Connect(Arc<Uplink>),
    /// The controller is to be asked for other in-sync replicas; [`Event::ProposalAnswered`] brings the outcome.
    Propose {
        /// The partition.
        partition: TopicPartition,
        /// What is asked for.
        proposal: Proposal,
    },
    /// The controller is to be told that this broker's replica can not be trusted.
    Distrust {
        /// The partition.
        partition: TopicPartition,
    },
}

/// What closing came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Closed {
    /// Partitions that were open.
    pub partitions: usize,
    /// Those of them that were synced, checkpointed and marked clean.
    pub clean: usize,
}
