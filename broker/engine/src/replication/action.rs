//! Everything that a leader, and a follower, can want done: by their owner, in the order given.

use std::fmt;

use quire_protocol::{BrokerId, ErrorCode, LeaderEpoch, Offset};

use super::epochs::EpochEnd;
use super::progress::Progress;

/// What a leader wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaderAction {
    /// Publish the high watermark to readers, then answer what waits for it.
    AdvanceHighWatermark {
        /// The first offset not yet committed.
        to: Offset,
    },
    /// Answer the request to follow that was just handled.
    Answer(FollowAnswer),
    /// Ask the controller for other in-sync replicas, and bring the outcome back.
    Propose(Proposal),
    /// Append and acknowledge nothing more in this leadership.
    Resign {
        /// Why.
        why: ResignReason,
    },
}

/// The answer to a request to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FollowAnswer {
    /// Everything from here on is sent: from the follower's end, or, if that is another offset, from where the follower
    /// is to begin anew.
    Accepted {
        /// The first offset sent.
        from: Offset,
    },
    /// The logs part; the follower truncates and asks again.
    Diverging(EpochEnd),
    /// Not now.
    Refused(FollowRefusal),
}

/// Why a broker may not follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FollowRefusal {
    /// The leadership is over.
    NotLeader,
    /// The follower believes in an older leadership.
    OlderEpoch,
    /// The follower knows of a newer leadership than this leader does.
    NewerEpoch,
    /// The broker registered again since.
    OlderBrokerEpoch,
    /// The broker's registration is not known here yet.
    NewerBrokerEpoch,
    /// The broker does not hold the partition.
    NoReplica,
}

impl FollowRefusal {
    /// The code that the follower is told.
    pub fn code(self) -> ErrorCode {
        match self {
            FollowRefusal::NotLeader | FollowRefusal::NewerEpoch => ErrorCode::NotLeader,
            FollowRefusal::OlderEpoch => ErrorCode::FencedLeaderEpoch,
            FollowRefusal::OlderBrokerEpoch => ErrorCode::FencedBrokerEpoch,
            FollowRefusal::NewerBrokerEpoch | FollowRefusal::NoReplica => ErrorCode::Unavailable,
        }
    }
}

/// In-sync replicas that a leader asks for: a compare-and-set on the partition epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Told apart from the leader's other proposals by this.
    pub number: u64,
    /// The leadership.
    pub leader_epoch: LeaderEpoch,
    /// The partition epoch that it is to follow.
    pub partition_epoch: u32,
    /// The replicas, by number, each with the broker epoch that it was in when it caught up.
    pub in_sync: Vec<(BrokerId, u64)>,
}

/// Why a leader gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResignReason {
    /// Its own log can not be trusted to keep what it is given.
    SyncFailed,
    /// Records of its own log are damaged.
    Damaged,
}

impl fmt::Display for ResignReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ResignReason::SyncFailed => "a write or sync of its log failed",
            ResignReason::Damaged => "its log is damaged",
        })
    }
}

/// What a follower wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FollowerAction {
    /// Ask the leader; answers to earlier requests are void.
    Follow {
        /// The leadership.
        leader_epoch: LeaderEpoch,
        /// The last leadership that the log knows; none if it has no record, or is to begin anew.
        last_epoch: Option<LeaderEpoch>,
        /// The log end offset.
        end: Offset,
    },
    /// Cut the log, and everything derived from it, at this offset or at the last frame's end before it.
    Truncate {
        /// The first offset that goes.
        to: Offset,
        /// Records go that were committed once: an unclean election, or a defect. To be logged, counted and shown.
        is_committed: bool,
    },
    /// Drop the whole log and begin anew at this offset, which is the leader's log start.
    Restart {
        /// Log start, log end and high watermark from here on.
        at: Offset,
        /// Records go that were committed once, and that the leader still has.
        is_committed: bool,
    },
    /// Publish the high watermark to readers.
    AdvanceHighWatermark {
        /// The first offset not yet committed.
        to: Offset,
    },
    /// Delete what the leader does not keep any more.
    AdvanceLogStart {
        /// The first offset to keep.
        to: Offset,
    },
    /// Tell the leader how far the log is.
    Report(Progress),
    /// Have the controller no longer count on this replica: what it holds can not be trusted.
    Distrust,
    /// Take nothing more, and tell the leader so.
    Unfollow,
}
