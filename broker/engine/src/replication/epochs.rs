//! How the histories of two replicas are compared: by where leaderships ended.
//!
//! A leader epoch and an offset identify a record for ever, so two logs that know the same leadership are the same up to
//! where it ended in the one in which it ended first.

use quire_protocol::{LeaderEpoch, Offset};

use super::message::Follow;

/// Where a leadership ended in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochEnd {
    /// The leadership.
    pub epoch: LeaderEpoch,
    /// The offset after its last record.
    pub end: Offset,
}

/// How a follower's log compares with the leader's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    /// It is the front of the leader's.
    Prefix,
    /// They part, and this is where they still agree at most.
    Diverging(EpochEnd),
    /// Nothing that it has can be compared: it is to begin anew at the leader's log start.
    Unrelated,
}

/// The leader's part: compares the follower's end with what its own log knows of the follower's last leadership.
pub(super) fn compare(follow: &Follow, log_start: Offset, log_end: Offset) -> Comparison {
    if follow.end < log_start {
        return Comparison::Unrelated;
    }
    match (follow.last_epoch, follow.known) {
        // It has no record. What it will get first is the leader's.
        (None, _) if follow.end <= log_end => Comparison::Prefix,
        (Some(last), Some(known)) if known.epoch == last && follow.end <= known.end => Comparison::Prefix,
        (Some(_), Some(known)) if known.end < log_start => Comparison::Unrelated,
        (Some(_), Some(known)) => Comparison::Diverging(known),
        (None, _) | (Some(_), None) => Comparison::Unrelated,
    }
}

/// The follower's part: the end of the longest front that it may share with the leader, whose log knows the leadership
/// `leader`, where `own` is the last leadership not after it that its own log knows. `None`: it shares nothing.
///
/// If the follower knows only an earlier leadership than the one asked about, it asks about that one next.
pub(super) fn truncation_point(leader: EpochEnd, own: Option<EpochEnd>) -> Option<Offset> {
    own.map(|own| own.end.min(leader.end))
}
