//! Everything that can happen to a leader, and to a follower. Ends are exclusive: the first offset that is not there yet.

use quire_protocol::topic_config::Sync;
use quire_protocol::{BrokerId, LeaderEpoch, Offset};

use super::epochs::EpochEnd;
use super::membership::Membership;
use super::progress::Progress;

/// What a leader is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaderInput {
    /// Its own log was appended to.
    Appended {
        /// The log end offset.
        end: Offset,
    },
    /// A sync of its own log succeeded.
    LocalDurable {
        /// The end of what the sync covered.
        end: Offset,
    },
    /// A write or a sync of its own log failed: what is on disk is unknown.
    SyncFailed,
    /// Records of its own log that were on disk are damaged.
    Damaged,
    /// Old segments were deleted.
    Trimmed {
        /// The log start offset.
        start: Offset,
    },
    /// A broker asks to follow.
    Follow(Follow),
    /// A follower tells how far it is.
    Progress {
        /// The follower.
        follower: BrokerId,
        /// The registration that it followed under.
        broker_epoch: u64,
        /// Its ends.
        ends: Progress,
    },
    /// The controller answered a proposal, or did not.
    ProposalAnswered {
        /// The proposal's number.
        number: u64,
        /// What became of it.
        outcome: ProposalOutcome,
    },
    /// The metadata or the topic's settings changed.
    Reconfigured {
        /// The partition's replicas; an older one than is known changes nothing.
        membership: Membership,
        /// When a batch counts as safe.
        sync: Sync,
        /// Replicas that must be in sync for anything to be committed.
        min_insync_replicas: u32,
    },
    /// Its deadline has come.
    TimePassed,
}

/// A broker's request to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Follow {
    /// The broker.
    pub follower: BrokerId,
    /// Its registration.
    pub broker_epoch: u64,
    /// The leadership that it believes in.
    pub leader_epoch: LeaderEpoch,
    /// The last leadership that its log knows; none if it has no record.
    pub last_epoch: Option<LeaderEpoch>,
    /// Its log end offset.
    pub end: Offset,
    /// The last leadership not after that one that the leader's own log knows, and where it ended there.
    pub known: Option<EpochEnd>,
}

/// What became of a proposal to change the in-sync replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProposalOutcome {
    /// It was taken; this is what holds now.
    Taken(Membership),
    /// It was refused, and will never be taken.
    Refused,
    /// It may have been taken, or may be yet.
    Unknown,
}

/// What a follower is told. What the leader says is about the last [`super::FollowerAction::Follow`]; its owner drops
/// answers to earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FollowerInput {
    /// The leader can be reached.
    LinkUp,
    /// The leader can not be reached any more: nothing of what was asked will be answered.
    LinkDown,
    /// The leader sends what it has.
    Accepted {
        /// From here on: the follower's end, or where it is to begin anew.
        from: Offset,
        /// The leader's high watermark.
        high_watermark: Offset,
        /// The leader's log start offset.
        log_start: Offset,
    },
    /// The two logs part.
    Diverging {
        /// The last leadership that the leader's log knows and that is not after the follower's last; where it ended.
        leader: EpochEnd,
        /// The last leadership not after that one that the follower's own log knows.
        own: Option<EpochEnd>,
    },
    /// The leader does not have it follow, for now.
    Refused,
    /// The leader's high watermark and log start offset.
    Watermarks {
        /// The first offset not yet committed.
        high_watermark: Offset,
        /// The first offset kept.
        log_start: Offset,
    },
    /// Frames of the leader were appended.
    Appended {
        /// The log end offset.
        end: Offset,
        /// The leadership that wrote the last of them.
        last_epoch: LeaderEpoch,
    },
    /// Frames that the leader sent do not continue the log.
    Unfitting,
    /// A sync succeeded.
    LocalDurable {
        /// The end of what the sync covered.
        end: Offset,
    },
    /// The log was truncated, as asked.
    Truncated {
        /// Its ends now.
        ends: Progress,
        /// The last leadership that it knows now.
        last_epoch: Option<LeaderEpoch>,
    },
    /// The log begins anew, as asked.
    Restarted {
        /// Where: log start, log end and durable end.
        at: Offset,
    },
    /// Records before this offset were deleted.
    Trimmed {
        /// The log start offset.
        start: Offset,
    },
    /// A write or a sync failed: what is on disk is unknown.
    Failed,
    /// The log could not be truncated: it is to begin anew.
    CutFailed,
    /// Records that were on disk are damaged.
    Damaged,
    /// The metadata or the topic's settings changed.
    Reconfigured {
        /// When a batch counts as safe.
        sync: Sync,
        /// Whether the metadata counts on this replica: it is in sync, or eligible to lead.
        is_counted: bool,
    },
    /// Its deadline has come.
    TimePassed,
}
