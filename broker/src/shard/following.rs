//! The follower's part: frames in, as they come; one write and one sync a round; progress out.
//!
//! ```text
//!   frames ─► queued ─► Log::append_frames ─► progress
//!                ▲           │                   ▲
//!                │ space     ▼ jobs              │ synced
//!                └────── completed ──► Follower ─┘
//! ```

use std::collections::VecDeque;

use bytes::Bytes;
use quire_engine::Time;
use quire_engine::machine::Reactive;
use quire_engine::replication::{EpochEnd, Follower, FollowerAction, FollowerInput, FollowerStart};
use quire_protocol::frame::{self, Chain};
use quire_protocol::replicate::{LeaderMessage, Progress};
use quire_protocol::{BrokerId, LeaderEpoch, Offset};
use quire_storage::{AppendErrorKind, AppendFramesErrorKind, Completed, Residency};

use super::assignment::Assignment;
use super::clock::Now;
use super::core::Core;
use super::event::Fetched;
use super::flush::Task;
use super::pace::Pace;
use super::partition::Wanted;

/// A partition that another broker leads.
#[derive(Debug)]
pub(super) struct Following {
    leader: BrokerId,
    broker_epoch: u64,
    follower: Follower,
    /// What the follower wants done; empty between events.
    actions: Vec<FollowerAction>,
    /// The slot of the last request to follow.
    slot: Option<u32>,
    /// What the leader may send at most that is not appended yet (bytes).
    credit: u32,
    /// Bytes appended that the leader was not told it may send again.
    owed: u32,
    /// How fast it may send, while the metadata does not count on this replica and the topic says so.
    pace: Option<Pace>,
    is_counted: bool,
    /// Frames not yet in the log, in order.
    queued: VecDeque<Bytes>,
    /// Whether the log makes space for the first of them.
    awaits_space: bool,
    /// The leader's high watermark and log start, as last told.
    watermarks: Option<(Offset, Offset)>,
    /// The leader is to be told.
    report: Option<quire_engine::replication::Progress>,
    /// Where the log begins anew, while it is being dropped for that.
    restarts_at: Option<Offset>,
}

impl Following {
    /// Begins to follow, as soon as the leader can be reached.
    pub(super) fn start(core: &mut Core, leader: BrokerId, assignment: &Assignment) -> Following {
        let mut actions = Vec::new();
        let start = FollowerStart {
            leader_epoch: assignment.leader_epoch,
            last_epoch: last_epoch(core),
            sync: core.config.sync,
            log_start: core.log.start_offset(),
            high_watermark: core.log.high_watermark(),
            ends: core.ends(),
            is_counted: assignment.is_counted,
            is_damaged: core.log.is_corrupt() || core.log.is_poisoned(),
        };
        let mut following = Following {
            leader,
            broker_epoch: assignment.broker_epoch,
            follower: Follower::start(start, &mut actions),
            actions,
            slot: None,
            credit: 0,
            owed: 0,
            pace: None,
            is_counted: assignment.is_counted,
            queued: VecDeque::new(),
            awaits_space: false,
            watermarks: None,
            report: None,
            restarts_at: None,
        };
        following.act(core);
        following
    }

    /// The part is over.
    pub(super) fn end(self, core: &mut Core) {
        if let Some(slot) = self.slot {
            core.wanted.push(Wanted::Unfollow { leader: self.leader, slot });
        }
    }

    pub(super) fn leader(&self) -> BrokerId {
        self.leader
    }

    pub(super) fn slot(&self) -> Option<u32> {
        self.slot
    }

    /// Whether the log is being cut or dropped.
    pub(super) fn is_cutting(&self) -> bool {
        self.follower.is_cutting()
    }

    /// Follows the metadata.
    pub(super) fn configure(&mut self, core: &mut Core, now: Now, assignment: &Assignment) {
        let (sync, is_counted) = (core.config.sync, assignment.is_counted);
        self.is_counted = is_counted;
        if is_counted && core.is_lacking() {
            // Taken on the word of a leader that did not know yet.
            core.wanted.push(Wanted::Distrust);
        }
        self.tell(core, now, FollowerInput::Reconfigured { sync, is_counted });
    }

    pub(super) fn linked(&mut self, core: &mut Core, now: Now, is_up: bool) {
        self.forget_request();
        self.tell(core, now, if is_up { FollowerInput::LinkUp } else { FollowerInput::LinkDown });
    }

    /// What comes from here on for this slot is an answer to the last request. Of this many bytes that the leader may send
    /// ahead, how many it may at once.
    pub(super) fn asked(&mut self, slot: u32, credit: u32) -> u32 {
        self.forget_request();
        self.slot = Some(slot);
        self.credit = credit;
        let first = match &mut self.pace {
            None => credit,
            Some(pace) => pace.spend(credit),
        };
        self.owed = credit - first;
        first
    }

    fn forget_request(&mut self) {
        self.slot = None;
        self.queued.clear();
        self.awaits_space = false;
        self.watermarks = None;
        self.report = None;
        self.owed = 0;
    }

    /// The leader says something about the last request.
    pub(super) fn told(&mut self, core: &mut Core, now: Now, message: LeaderMessage, frames: Fetched) {
        if self.slot != Some(message.slot()) {
            return;
        }
        match message {
            LeaderMessage::Accepted { from, high_watermark, log_start, .. } => {
                core.lacks_committed(high_watermark);
                self.tell(core, now, FollowerInput::Accepted { from, high_watermark, log_start });
                if self.follower.is_fetching() {
                    core.caught_up();
                }
            }
            LeaderMessage::Diverging { epoch, end, .. } => {
                let own = core.log.epochs().end_offset_for(epoch, core.log.end_offset());
                let own = own.map(|(epoch, end)| EpochEnd { epoch, end });
                self.tell(core, now, FollowerInput::Diverging { leader: EpochEnd { epoch, end }, own });
            }
            LeaderMessage::Frames { high_watermark, log_start, .. } => {
                if self.follower.is_fetching() {
                    self.queued.extend(frames.0);
                    self.watermarks = Some((high_watermark, log_start));
                }
            }
            LeaderMessage::Watermarks { high_watermark, log_start, .. } => {
                self.watermarks = Some((high_watermark, log_start));
            }
            LeaderMessage::Chain { end, chain, .. } => self.compare(core, now, end, chain),
            LeaderMessage::Refused { code, .. } => {
                tracing::debug!(partition = %core.shared.id, leader = %self.leader, %code, "not followed for now");
                self.forget_request();
                self.tell(core, now, FollowerInput::Refused);
            }
        }
    }

    /// The leader tells what its history up to an offset is. Where this log has not come so far yet, or would have to wait
    /// for the disk to know, it is told again another time.
    fn compare(&mut self, core: &mut Core, now: Now, end: Offset, chain: Chain) {
        if !self.follower.is_fetching() || core.log.is_corrupt() {
            return;
        }
        let own = match end == core.log.end_offset() {
            true => core.log.known_chain().map(|chain| (end, chain)),
            false => core.log.reader().chain_at(end, Residency::Resident).ok().flatten(),
        };
        // Frames are the same everywhere: one that ends elsewhere is of another history too.
        let Some((own_end, own)) = own else { return };
        core.metrics.chains_compared.increment(1);
        if (own_end, own) == (end, chain) {
            return;
        }
        core.metrics.chains_different.increment(1);
        let leader = self.leader;
        if core.damaged(format!(
            "its history up to offset {end} is not that of its leader, broker {leader}: the chain there is {own} and not \
             {chain}"
        )) {
            self.damaged(core, now);
        }
    }

    /// Slot, credit and ends that the leader is to be told, if it is.
    pub(super) fn take_progress(&mut self) -> Option<Progress> {
        let slot = self.slot?;
        // A leader that has sent half of what it may is told in time that it may go on.
        let is_credit_due = match self.pace {
            None => self.owed > self.credit / 2,
            Some(pace) => self.owed > 0 && pace.affords(self.paced_step(pace, self.owed)),
        };
        let ends = match self.report.take() {
            Some(ends) => ends,
            None if is_credit_due && self.follower.is_fetching() => self.follower.ends(),
            None => return None,
        };
        let credit = match &mut self.pace {
            None => self.owed,
            Some(pace) => pace.spend(self.owed),
        };
        self.owed -= credit;
        Some(Progress { slot, credit, log_end: ends.log_end, durable_end: ends.durable_end })
    }

    /// What is worth telling the leader of so many bytes.
    fn paced_step(&self, pace: Pace, owed: u32) -> u32 {
        pace.step(owed.min(self.credit / 2).max(1))
    }

    fn keep_pace(&mut self, core: &Core, now: Now) {
        let wanted = core.config.catch_up_bytes_per_second.filter(|_| !self.is_counted);
        match (&mut self.pace, wanted) {
            (Some(pace), Some(wanted)) if pace.bytes_per_second() == wanted => pace.pass(now.time),
            (pace, wanted) => *pace = wanted.map(|wanted| Pace::new(wanted, now.time)),
        }
    }

    /// When the leader can be told to go on, after what it is told at the end of this round.
    fn paced_until(&self) -> Option<Time> {
        let (mut pace, mut owed) = (self.pace?, self.owed);
        if owed > 0 && pace.affords(self.paced_step(pace, owed)) {
            owed -= pace.spend(owed);
        }
        let waits = owed > 0 && self.slot.is_some() && self.follower.is_fetching();
        waits.then(|| pace.affords_at(self.paced_step(pace, owed)))
    }

    /// The log is damaged: it begins anew once nobody counts on it.
    pub(super) fn damaged(&mut self, core: &mut Core, now: Now) {
        self.queued.clear();
        self.tell(core, now, FollowerInput::Damaged);
    }

    /// A job of the log came back.
    pub(super) fn completed(&mut self, core: &mut Core, now: Now, completed: Completed) {
        if completed.space {
            self.awaits_space = false;
        }
        if completed.poisoned.is_some() {
            self.fail(core, now);
            return;
        }
        if let Some(end) = completed.durable_end {
            core.caught_up();
            self.tell(core, now, FollowerInput::LocalDurable { end });
        }
        if let Some(start) = completed.log_start.filter(|_| !self.is_cutting()) {
            self.tell(core, now, FollowerInput::Trimmed { start });
        }
        if completed.cut.is_some() {
            self.was_cut(core, now);
        }
        if completed.is_cut_refused {
            tracing::info!(partition = %core.shared.id, "the log can not be cut there, and begins anew");
            self.tell(core, now, FollowerInput::CutFailed);
        }
    }

    fn was_cut(&mut self, core: &mut Core, now: Now) {
        core.has_moved = true;
        core.was_cut(self.restarts_at.is_some());
        match self.restarts_at.take() {
            Some(at) => {
                core.restored();
                self.tell(core, now, FollowerInput::Restarted { at });
            }
            None => {
                let (ends, last_epoch) = (core.ends(), last_epoch(core));
                self.tell(core, now, FollowerInput::Truncated { ends, last_epoch });
            }
        }
    }

    /// Appends what was queued, and hands out the jobs that are due.
    pub(super) fn write(&mut self, core: &mut Core, now: Now, tasks: &mut Vec<Task>) {
        if self.follower.deadline().is_some_and(|due| due <= now.time) {
            self.tell(core, now, FollowerInput::TimePassed);
        }
        while !self.queued.is_empty() && !self.awaits_space && self.follower.is_fetching() {
            self.append_group(core, now);
        }
        if self.queued.is_empty()
            && let Some((high_watermark, log_start)) = self.watermarks.take()
        {
            self.tell(core, now, FollowerInput::Watermarks { high_watermark, log_start });
        }
        self.keep_pace(core, now);
        let sync = core.wants_sync(now);
        core.next_jobs(now, sync, tasks);
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        [self.follower.deadline(), self.paced_until()].into_iter().flatten().min()
    }

    fn append_group(&mut self, core: &mut Core, now: Now) {
        let bytes_max = core.append_bytes_max();
        let (mut bytes, mut count) = (0, 0);
        for frame in &self.queued {
            if count > 0 && bytes + frame.len() > bytes_max {
                break;
            }
            bytes += frame.len();
            count += 1;
        }
        let frames: Vec<Bytes> = self.queued.drain(..count).collect();
        match core.log.append_frames(frames.clone()) {
            Ok(headers) => {
                for (header, frame) in headers.iter().zip(&frames) {
                    core.producers.replay(header, &frame[frame::HEADER_LEN..]);
                }
                self.owed = self.owed.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
                for frame in &headers {
                    core.metrics.fetched_bytes.increment(frame.frame_len() as u64);
                }
                core.caught_up();
                let (end, last_epoch) = (core.log.end_offset(), core.log.leader_epoch());
                self.tell(core, now, FollowerInput::Appended { end, last_epoch });
                core.appended(now);
            }
            Err(error) => {
                for frame in error.frames.into_iter().rev() {
                    self.queued.push_front(frame);
                }
                self.not_appended(core, now, &error.kind);
            }
        }
    }

    fn not_appended(&mut self, core: &mut Core, now: Now, kind: &AppendFramesErrorKind) {
        match kind {
            AppendFramesErrorKind::Append(AppendErrorKind::NoSpaceYet) => self.awaits_space = true,
            // The leader goes on without it; the log looks for space again as its next job.
            AppendFramesErrorKind::Append(AppendErrorKind::DiskFull | AppendErrorKind::Exhausted(_)) => {
                core.disk_full();
                self.tell(core, now, FollowerInput::Refused);
                self.leave(core);
            }
            AppendFramesErrorKind::Append(AppendErrorKind::Poisoned(_)) => self.fail(core, now),
            AppendFramesErrorKind::Append(AppendErrorKind::Corrupt) => self.damaged(core, now),
            AppendFramesErrorKind::Append(AppendErrorKind::OffsetsExhausted)
            | AppendFramesErrorKind::Frame(_)
            | AppendFramesErrorKind::Unfitting { .. } => {
                tracing::error!(
                    partition = %core.shared.id, leader = %self.leader, error = %kind,
                    "the leader's frames do not continue the log: its history is another"
                );
                self.leave(core);
                self.tell(core, now, FollowerInput::Unfitting);
            }
        }
    }

    /// Nothing more is wanted for the last request.
    fn leave(&mut self, core: &mut Core) {
        if let Some(slot) = self.slot {
            core.wanted.push(Wanted::Unfollow { leader: self.leader, slot });
        }
        self.forget_request();
    }

    fn fail(&mut self, core: &mut Core, now: Now) {
        self.queued.clear();
        // Begun anew in vain: it is not known what is there.
        let begins_anew = core.may_begin_anew() && self.restarts_at.is_none();
        core.fail("a write or sync of its log failed");
        let input = match begins_anew {
            true if self.is_cutting() => FollowerInput::CutFailed,
            true => FollowerInput::Damaged,
            false => FollowerInput::Failed,
        };
        self.tell(core, now, input);
    }

    /// Tells the follower and does what it wants done.
    fn tell(&mut self, core: &mut Core, now: Now, input: FollowerInput) {
        self.follower.handle(now.time, input, &mut self.actions);
        self.act(core);
    }

    fn act(&mut self, core: &mut Core) {
        for action in std::mem::take(&mut self.actions) {
            self.carry_out(core, action);
        }
    }

    fn carry_out(&mut self, core: &mut Core, action: FollowerAction) {
        match action {
            FollowerAction::Follow { leader_epoch, last_epoch, end } => {
                let (leader, broker_epoch) = (self.leader, self.broker_epoch);
                core.wanted.push(Wanted::Follow { leader, leader_epoch, broker_epoch, last_epoch, end });
            }
            FollowerAction::Truncate { to, is_committed } => self.truncate(core, to, is_committed),
            FollowerAction::Restart { at, is_committed } => self.restart(core, at, is_committed),
            FollowerAction::AdvanceHighWatermark { to } => {
                core.log.set_high_watermark(to);
                core.has_moved = true;
            }
            FollowerAction::AdvanceLogStart { to } => core.log.advance_log_start(to),
            FollowerAction::Report(ends) => self.report = Some(ends),
            FollowerAction::Distrust => core.wanted.push(Wanted::Distrust),
            FollowerAction::Unfollow => {
                self.leave(core);
            }
        }
    }

    fn truncate(&mut self, core: &mut Core, to: Offset, is_committed: bool) {
        let (id, end, high_watermark) = (core.shared.id, core.log.end_offset(), core.log.high_watermark());
        self.queued.clear();
        if is_committed {
            core.metrics.committed_truncated.increment(high_watermark.since(to));
            tracing::error!(
                partition = %id, %to, %end, %high_watermark,
                "records that were committed once are cut: the leader does not have them"
            );
        } else if to < end {
            tracing::info!(partition = %id, %to, %end, leader = %self.leader, "records that were not committed are cut");
        }
        core.log.truncate(to);
    }

    fn restart(&mut self, core: &mut Core, at: Offset, is_committed: bool) {
        let (id, end) = (core.shared.id, core.log.end_offset());
        self.queued.clear();
        tracing::warn!(
            partition = %id, %at, %end, is_committed, leader = %self.leader,
            "the log is dropped, and fetched from the leader's log start on"
        );
        self.restarts_at = Some(at);
        core.begins_anew();
        core.log.restart_at(at);
    }
}

fn last_epoch(core: &Core) -> Option<LeaderEpoch> {
    core.log.epochs().latest().map(|latest| latest.epoch)
}
