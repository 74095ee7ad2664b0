//! One partition's follower.
//!
//! ```text
//!            link up            accepted, at its end
//!   Unlinked ───────► Asking ────────────────────────► Fetching
//!      ▲               │  ▲ ▲                              │
//!      │     diverging │  │ │ accepted elsewhere           │ frames do not fit
//!      │               ▼  │ └──── Restarting ◄─────────────┘
//!   link down     Truncating
//! ```
//! It truncates before it appends or publishes anything in a new leadership: only `Fetching` does either.

use quire_protocol::topic_config::Sync;
use quire_protocol::{LeaderEpoch, Offset, limits};

use super::action::FollowerAction;
use super::epochs::{EpochEnd, truncation_point};
use super::message::FollowerInput;
use super::progress::Progress;
use crate::Time;
use crate::machine::Reactive;
use crate::mutant::{self, Mutant};

/// What following starts with.
#[derive(Debug, Clone, Copy)]
pub struct FollowerStart {
    /// The leadership that is followed.
    pub leader_epoch: LeaderEpoch,
    /// The last leadership that the log knows.
    pub last_epoch: Option<LeaderEpoch>,
    /// When a batch counts as safe.
    pub sync: Sync,
    /// The log start offset.
    pub log_start: Offset,
    /// The high watermark as far as it was known before.
    pub high_watermark: Offset,
    /// How far the log is.
    pub ends: Progress,
    /// Whether the metadata counts on this replica: it is in sync, or eligible to lead.
    pub is_counted: bool,
    /// Whether what is in the log can not be trusted: it begins anew, once nobody counts on it.
    pub is_damaged: bool,
}

/// The reactive machine that makes a replica the same as its leader's.
///
/// Holds at all times: log start ≤ high watermark ≤ log end, durable end ≤ log end. The high watermark never goes back
/// but by a restart of the log.
#[derive(Debug, Clone)]
pub struct Follower {
    leader_epoch: LeaderEpoch,
    last_epoch: Option<LeaderEpoch>,
    sync: Sync,
    log_start: Offset,
    high_watermark: Offset,
    ends: Progress,
    is_counted: bool,
    /// The log is to be dropped and fetched whole.
    begins_anew: bool,
    /// The controller was told that nobody is to count on this replica.
    is_distrusted: bool,
    phase: Phase,
    is_linked: bool,
    /// With a rule left out: where to cut once the leader's high watermark was published.
    cut_later: Option<Offset>,
    /// As last told to the leader.
    reported: Option<Progress>,
    /// Asks again then.
    retry_at: Option<Time>,
    has_failed: bool,
}

/// What it does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The leader can not be reached, or refused.
    Waiting,
    /// It asked to follow and has no answer.
    Asking,
    /// The log is being cut; then it asks again.
    Truncating,
    /// The log is being dropped; then it asks again.
    Restarting,
    /// What comes is appended.
    Fetching,
}

impl Follower {
    /// Begins to follow, as soon as the leader can be reached.
    ///
    /// # Panics
    /// If its positions contradict each other.
    pub fn start(start: FollowerStart, actions: &mut Vec<FollowerAction>) -> Follower {
        let mut follower = Follower {
            leader_epoch: start.leader_epoch,
            last_epoch: start.last_epoch,
            sync: start.sync,
            log_start: start.log_start,
            high_watermark: start.high_watermark,
            ends: start.ends,
            is_counted: start.is_counted,
            begins_anew: start.is_damaged,
            is_distrusted: false,
            phase: Phase::Waiting,
            is_linked: false,
            cut_later: None,
            reported: None,
            retry_at: None,
            has_failed: false,
        };
        follower.check();
        if follower.begins_anew {
            follower.distrust(actions);
        }
        follower
    }

    /// The leadership that is followed.
    pub fn leader_epoch(&self) -> LeaderEpoch {
        self.leader_epoch
    }

    /// The first offset not yet committed, as far as is known here.
    pub fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// How far the log is.
    pub fn ends(&self) -> Progress {
        self.ends
    }

    /// Whether frames that the leader sends are appended.
    pub fn is_fetching(&self) -> bool {
        self.phase == Phase::Fetching
    }

    /// Whether the log is being cut or dropped: nothing else may be done to it.
    pub fn is_cutting(&self) -> bool {
        matches!(self.phase, Phase::Truncating | Phase::Restarting)
    }

    fn ask(&mut self, actions: &mut Vec<FollowerAction>) {
        if !self.is_linked || self.has_failed {
            self.phase = Phase::Waiting;
            return;
        }
        self.phase = Phase::Asking;
        self.retry_at = None;
        let (last_epoch, end) = match self.begins_anew {
            true => (None, Offset::ZERO),
            false => (self.last_epoch, self.ends.log_end),
        };
        actions.push(FollowerAction::Follow { leader_epoch: self.leader_epoch, last_epoch, end });
    }

    fn begin_anew(&mut self, actions: &mut Vec<FollowerAction>) {
        self.begins_anew = true;
        self.distrust(actions);
        self.ask(actions);
    }

    /// Has the controller no longer count on this replica, until it caught up again.
    fn distrust(&mut self, actions: &mut Vec<FollowerAction>) {
        if self.is_counted && !self.is_distrusted {
            self.is_distrusted = true;
            actions.push(FollowerAction::Distrust);
        }
    }

    fn accepted(
        &mut self,
        from: Offset,
        high_watermark: Offset,
        log_start: Offset,
        actions: &mut Vec<FollowerAction>,
    ) {
        if self.phase != Phase::Asking {
            return;
        }
        if self.begins_anew && self.is_counted {
            // While somebody counts on what it has, nothing of it is dropped. By having asked with nothing it has its
            // leader know, which would have it taken in again at once for what it said before.
            self.phase = Phase::Waiting;
            actions.push(FollowerAction::Unfollow);
            self.distrust(actions);
            return;
        }
        if let Some(to) = self.cut_later.take() {
            self.phase = Phase::Fetching;
            self.publish(high_watermark, log_start, actions);
            self.phase = Phase::Truncating;
            actions.push(FollowerAction::Truncate { to, is_committed: true });
            return;
        }
        // All of it lies before the leader's log, and what was not known to be committed never may have been.
        let is_dubious = from == log_start && self.high_watermark < from;
        if self.begins_anew || from != self.ends.log_end || is_dubious {
            self.restart(from, actions);
            return;
        }
        self.phase = Phase::Fetching;
        self.reported = None;
        self.report(actions);
        self.publish(high_watermark, log_start, actions);
    }

    fn diverging(&mut self, leader: EpochEnd, own: Option<EpochEnd>, actions: &mut Vec<FollowerAction>) {
        if self.phase != Phase::Asking {
            return;
        }
        let to = truncation_point(leader, own).filter(|to| *to >= self.log_start);
        match to {
            Some(to) if mutant::is_on(Mutant::TruncateBeforeHighWatermark) => {
                self.cut_later = Some(to);
                let last_epoch = own.map(|own| own.epoch);
                actions.push(FollowerAction::Follow { leader_epoch: self.leader_epoch, last_epoch, end: to });
            }
            Some(to) => {
                self.phase = Phase::Truncating;
                actions.push(FollowerAction::Truncate { to, is_committed: to < self.high_watermark });
            }
            // They share nothing: the leader's whole log is asked for.
            None => self.begin_anew(actions),
        }
    }

    fn restart(&mut self, at: Offset, actions: &mut Vec<FollowerAction>) {
        self.phase = Phase::Restarting;
        // What lies before the leader's log start is gone everywhere.
        let is_committed = self.high_watermark > at;
        actions.push(FollowerAction::Restart { at, is_committed });
    }

    fn publish(&mut self, high_watermark: Offset, log_start: Offset, actions: &mut Vec<FollowerAction>) {
        if self.phase != Phase::Fetching {
            return;
        }
        let to = high_watermark.min(self.ends.log_end);
        if to > self.high_watermark {
            self.high_watermark = to;
            actions.push(FollowerAction::AdvanceHighWatermark { to });
        }
        let to = log_start.min(self.high_watermark);
        if to > self.log_start {
            actions.push(FollowerAction::AdvanceLogStart { to });
        }
    }

    /// Tells the leader what it did not know, once that counts for what is committed.
    fn report(&mut self, actions: &mut Vec<FollowerAction>) {
        if self.phase != Phase::Fetching {
            return;
        }
        let is_news = |reported: Progress| reported.safe_end(self.sync) < self.ends.safe_end(self.sync);
        if self.reported.is_none_or(is_news) {
            self.reported = Some(self.ends);
            actions.push(FollowerAction::Report(self.ends));
        }
    }

    fn cut(&mut self, ends: Progress, last_epoch: Option<LeaderEpoch>, actions: &mut Vec<FollowerAction>) {
        self.ends = ends;
        self.last_epoch = last_epoch;
        // An unclean cut takes what was committed with it.
        self.high_watermark = self.high_watermark.min(ends.log_end);
        self.ask(actions);
    }

    fn check(&self) {
        assert!(
            self.log_start <= self.high_watermark && self.high_watermark <= self.ends.log_end,
            "log start {} ≤ high watermark {} ≤ log end {}",
            self.log_start,
            self.high_watermark,
            self.ends.log_end
        );
        assert!(self.ends.durable_end <= self.ends.log_end, "only what was appended is durable");
    }
}

impl Reactive for Follower {
    type Input = FollowerInput;
    type Action = FollowerAction;

    fn handle(&mut self, now: Time, input: FollowerInput, actions: &mut Vec<FollowerAction>) {
        match input {
            FollowerInput::LinkUp => {
                self.is_linked = true;
                if !self.is_cutting() {
                    self.ask(actions);
                }
            }
            FollowerInput::LinkDown => {
                self.is_linked = false;
                self.retry_at = None;
                if !self.is_cutting() {
                    self.phase = Phase::Waiting;
                }
            }
            FollowerInput::Accepted { from, high_watermark, log_start } => {
                self.accepted(from, high_watermark, log_start, actions);
            }
            FollowerInput::Diverging { leader, own } => self.diverging(leader, own, actions),
            FollowerInput::Refused => {
                if matches!(self.phase, Phase::Asking | Phase::Fetching) {
                    self.phase = Phase::Waiting;
                    self.retry_at = Some(now + limits::FOLLOW_RETRY_INTERVAL);
                }
            }
            FollowerInput::Watermarks { high_watermark, log_start } => {
                self.publish(high_watermark, log_start, actions);
            }
            FollowerInput::Appended { end, last_epoch } => {
                assert!(self.is_fetching() && end >= self.ends.log_end, "only what is fetched is appended");
                assert!(
                    self.last_epoch.is_none_or(|known| known <= last_epoch),
                    "leader epochs never decrease"
                );
                self.ends.log_end = end;
                self.last_epoch = Some(last_epoch);
                self.report(actions);
            }
            FollowerInput::Unfitting => {
                if self.is_fetching() {
                    self.begin_anew(actions);
                }
            }
            FollowerInput::LocalDurable { end } => {
                self.ends.durable_end = self.ends.durable_end.max(end.min(self.ends.log_end));
                self.report(actions);
            }
            FollowerInput::Truncated { ends, last_epoch } => self.cut(ends, last_epoch, actions),
            FollowerInput::Restarted { at } => {
                self.begins_anew = false;
                self.log_start = at;
                self.high_watermark = at;
                self.cut(Progress { log_end: at, durable_end: at }, None, actions);
            }
            FollowerInput::Trimmed { start } => {
                assert!(start >= self.log_start, "the log start goes back only with a restart");
                self.log_start = start;
            }
            FollowerInput::Failed => {
                if !self.has_failed {
                    self.has_failed = true;
                    self.retry_at = None;
                    self.phase = Phase::Waiting;
                    self.distrust(actions);
                    actions.push(FollowerAction::Unfollow);
                }
            }
            FollowerInput::CutFailed => {
                self.phase = Phase::Waiting;
                actions.push(FollowerAction::Unfollow);
                self.begin_anew(actions);
            }
            FollowerInput::Damaged => {
                if !self.is_cutting() {
                    actions.push(FollowerAction::Unfollow);
                    self.begin_anew(actions);
                }
            }
            FollowerInput::Reconfigured { sync, is_counted } => {
                self.sync = sync;
                self.is_counted = is_counted;
                // Whoever counts on it by now may do so again: what was between is not always seen.
                self.is_distrusted = false;
                if self.begins_anew && self.phase == Phase::Waiting {
                    self.distrust(actions);
                    self.ask(actions);
                }
                self.report(actions);
            }
            FollowerInput::TimePassed => {
                if self.retry_at.is_some_and(|at| at <= now) {
                    self.ask(actions);
                }
            }
        }
        self.check();
    }

    fn deadline(&self) -> Option<Time> {
        self.retry_at
    }
}
