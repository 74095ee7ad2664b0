//! What a group coordinator can be asked, and what it answers.

use std::sync::Arc;
use std::time::Duration;

use quire_protocol::{LeaderEpoch, Offset, TopicPartition};

use super::assignment::Assignor;
use super::description::{GroupDescription, GroupSummary};
use super::records::{Committed, Generation};
use super::topics::Partitions;

/// What a group coordinator can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A member is there; also how it joins and leaves.
    Heartbeat(Heartbeat),
    /// A group has processed partitions up to some offsets.
    Commit(Commit),
    /// What is committed?
    FetchOffsets(FetchOffsets),
    /// How does a group stand?
    Describe {
        /// Its id.
        group: Arc<str>,
    },
    /// Which groups are there?
    List,
    /// Moves the offsets of a group without members, forwards or back.
    ResetOffsets(ResetOffsets),
    /// Forgets a group without members, and its offsets.
    DeleteGroup {
        /// The group.
        group: Arc<str>,
    },
}

/// A member says that it is there, what it wants and what it has.
///
/// A member has one heartbeat under way at a time. After one whose answer did not come, or did not come in time, the next
/// tells everything: subscription, assignor, `owned`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// The group.
    pub group: Arc<str>,
    /// The member's id, drawn by itself, anew for each process and after each leave; empty for one drawn here.
    pub member: Arc<str>,
    /// The epoch that it was last told. [`Generation::JOINS`] joins, and gives up whatever it had; [`Generation::LEAVES`]
    /// leaves; [`Generation::PAUSES`] leaves, with an instance id, to come back within its session and find what it had.
    pub epoch: Generation,
    /// Who says it. Nobody else speaks for the member from a join on.
    pub principal: Arc<str>,
    /// Names it across restarts.
    pub instance: Option<Arc<str>>,
    /// Where it is, in the words that racks of brokers have. Taken from a join.
    pub rack: Option<Arc<str>>,
    /// For people who look at the group. Taken from a join.
    pub client: Arc<str>,
    /// Where it is, as the broker sees it. Taken from a join.
    pub host: Arc<str>,
    /// How long it may be silent; the default if none. Taken from a join.
    pub session: Option<Duration>,
    /// How long it may take to give up partitions; the default if none, its session if that is longer. Taken from a join.
    pub rebalance: Option<Duration>,
    /// The topics it subscribes to, by name, existing or not; `None` if they are as before. A join names some.
    pub topics: Option<Vec<Arc<str>>>,
    /// How it would have partitions given, if it has a preference; the one that most members have holds. Taken together
    /// with `topics`.
    pub assignor: Option<Assignor>,
    /// All it owns at this moment; `None` if that is what it was last told.
    pub owned: Option<Partitions>,
    /// The revision in the last answer that it took: what it says it owns gives up no partition that it was asked for
    /// later. Without it, heartbeats must arrive in the order they are sent.
    pub seen: Option<u32>,
}

/// Who asks, where only a current member may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    /// Its id.
    pub member: Arc<str>,
    /// Its epoch.
    pub epoch: Generation,
    /// Who asks: the one that the member joined as.
    pub principal: Arc<str>,
}

/// Offsets to be kept. Each is taken or not by itself.
///
/// Offsets only move forwards. One that is lower than what is committed is not taken, whoever asks, and is answered
/// with [`CommitOutcome::Behind`]: an owner that went back to process records again goes on from there after a restart
/// only if the group is stopped and its offsets are reset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The group. It comes to be if there is none and no member asks.
    pub group: Arc<str>,
    /// The member, in its current epoch; `None` for who reads by itself, while the group has no members.
    pub asker: Option<Asker>,
    /// What is to be kept. A member commits what it owns, or is giving up.
    pub offsets: Vec<OffsetToCommit>,
}

/// An offset to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsetToCommit {
    /// Of this partition.
    pub partition: TopicPartition,
    /// The next record to be processed.
    pub offset: Offset,
    /// Of the last record processed, if it is known.
    pub leader_epoch: Option<LeaderEpoch>,
    /// Kept beside it.
    pub metadata: Arc<str>,
}

/// Which offsets are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchOffsets {
    /// The group. One that does not exist has no offsets.
    pub group: Arc<str>,
    /// Of these partitions; of all if none are named.
    pub partitions: Option<Vec<TopicPartition>>,
}

/// Where a group without members is to go on. It comes to be if there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResetOffsets {
    /// The group.
    pub group: Arc<str>,
    /// Replace what is committed, whatever it is.
    pub offsets: Vec<OffsetToCommit>,
    /// What is committed of these is forgotten.
    pub forget: Vec<TopicPartition>,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// The member is there.
    Heartbeat(HeartbeatAnswer),
    /// The member is gone.
    Left,
    /// What became of each offset, in the order of the request.
    Commit(Vec<(TopicPartition, CommitOutcome)>),
    /// The offsets that there are, of the partitions asked for.
    Offsets(Vec<(TopicPartition, Committed)>),
    /// A group.
    Description(Box<GroupDescription>),
    /// Every group here, by its id.
    Groups(Vec<GroupSummary>),
    /// There is nothing to tell.
    Done,
}

/// What a member is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeartbeatAnswer {
    /// Its id.
    pub member: Arc<str>,
    /// Its epoch from here on.
    pub epoch: Generation,
    /// Counts the changes of its assignment; to be named as [`Heartbeat::seen`].
    pub revision: u32,
    /// All that is its own from here on; `None` if it has that. What it owns beside that it stops processing, commits, and
    /// gives up by its next heartbeat.
    pub assignment: Option<Partitions>,
    /// It is removed if it has not given up the partitions it should within this time of sending the heartbeat, and has to
    /// stop processing everything by then.
    pub revoke_within: Option<Duration>,
    /// How long it may be silent. Unless a heartbeat that it sends after this one is answered within this time of sending
    /// this one, it owns nothing any more.
    pub session: Duration,
    /// When to send the next heartbeat, if nothing is to be said before.
    pub interval: Duration,
}

/// What became of an offset to be committed. The sentences are for users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommitOutcome {
    /// It is kept.
    #[error("it is kept")]
    Taken,
    /// A later one is committed, and stays.
    #[error("offset {committed} is committed, which is later; commits do not go back")]
    Behind {
        /// What is committed.
        committed: Offset,
    },
    /// The member does not own the partition.
    #[error("the member does not own the partition")]
    NotOwned,
    /// No such partition.
    #[error("there is no such partition")]
    UnknownPartition,
    /// It is above [`Offset::MAX`]: no record is there.
    #[error("an offset is at most 9223372036854775807")]
    BeyondAll,
    /// The text beside it is longer than is kept.
    #[error("the text beside it is longer than the 4096 bytes that are kept")]
    MetadataTooLong,
    /// The group has offsets of as many partitions as it can, or all groups together keep as much as they may.
    #[error("no more offsets are kept: the group has as many as it can, or all groups do")]
    TooMany,
}
