//! The leader's part: batches in, answers out, frames offered to followers.
//!
//! ```text
//!   produce ─► queued ─► Log::append ─► waiters ─► answers
//!                 ▲           │            ▲
//!                 │ space     ▼ jobs       │ high watermark
//!                 └────── completed ─► Leader ◄── progress of followers
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use quire_engine::Time;
use quire_engine::machine::Reactive;
use quire_engine::producer::{ProducerStates, Remembered, Verdict};
use quire_engine::replication::{
    EpochEnd, Follow, FollowAnswer, FollowRefusal, Leader, LeaderAction, LeaderInput, LeaderStart,
    ProposalOutcome,
};
use quire_protocol::batch::{BatchHeader, Numbering, TimestampType};
use quire_protocol::frame::FrameHeader;
use quire_protocol::replicate::{self, LeaderMessage};
use quire_protocol::stream::{Ack, Acks};
use quire_protocol::topic_config::{MessageTimestampType, Sync};
use quire_protocol::{BrokerId, ErrorCode, LeaderEpoch, Offset};
use quire_storage::{AppendContext, AppendError, AppendErrorKind, Completed, NewBatch};
use tokio::sync::mpsc;

use super::assignment::Assignment;
use super::clock::Now;
use super::core::Core;
use super::event::{Outcome, ProduceReply, ProduceRequest, SlotProgress};
use super::flush::Task;
use super::handle::Standing;
use super::link::{Downlink, FollowAnswered};
use super::partition::Wanted;
use super::waiters::{Answer, Safe, Waiters};
use crate::error::RequestError;

/// A partition that this broker leads.
#[derive(Debug)]
pub(super) struct Leading {
    leader: Leader,
    /// The registration in which this broker leads.
    broker_epoch: u64,
    /// What the leader wants done; empty between events.
    actions: Vec<LeaderAction>,
    /// Batches not yet in the log, in order.
    queued: VecDeque<Queued>,
    /// Whether the log makes space for the first of them.
    awaits_space: bool,
    waiters: Waiters,
    /// Streams that were told of a failure: what they still have on the way must not be appended.
    broken: Vec<mpsc::WeakSender<ProduceReply>>,
    /// Where each follower is sent what there is.
    followers: BTreeMap<BrokerId, Sent>,
    /// The log end, log start and high watermark that followers were last woken for.
    shown: (Offset, Offset, Offset),
}

#[derive(Debug)]
struct Queued {
    batch: NewBatch,
    answer: Answer,
}

/// What a leadership leaves to the next one of the same leader, whose log stays as it is: batches that are in it are answered
/// once they are committed, whatever leadership that is in.
#[derive(Debug, Default)]
pub(super) struct Unanswered {
    waiters: Waiters,
    broken: Vec<mpsc::WeakSender<ProduceReply>>,
}

/// A follower's stream.
#[derive(Debug)]
struct Sent {
    link: Arc<Downlink>,
    slot: u32,
    broker_epoch: u64,
}

impl Leading {
    /// Begins to lead. What is safe everywhere already is committed.
    pub(super) fn start(
        core: &mut Core,
        now: Now,
        assignment: &Assignment,
        unanswered: Unanswered,
    ) -> Leading {
        if assignment.leader_epoch >= core.log.leader_epoch() {
            core.log.start_epoch(assignment.leader_epoch);
        }
        let mut actions = Vec::new();
        let leader = Leader::start(
            now.time,
            LeaderStart {
                broker: core.broker,
                leader_epoch: assignment.leader_epoch,
                membership: assignment.membership.clone(),
                config: &core.config,
                replica_lag: core.limits.replica_lag,
                log_start: core.log.start_offset(),
                high_watermark: core.log.high_watermark(),
                local: core.ends(),
            },
            &mut actions,
        );
        let Unanswered { waiters, broken } = unanswered;
        let mut leading = Leading {
            leader,
            broker_epoch: assignment.broker_epoch,
            actions,
            queued: VecDeque::new(),
            awaits_space: false,
            waiters,
            broken,
            followers: BTreeMap::new(),
            shown: (Offset::ZERO, Offset::ZERO, Offset::ZERO),
        };
        leading.act(core);
        leading
    }

    /// The leadership is over. What is not in the log yet was not appended; of what is nobody knows what becomes.
    pub(super) fn end(mut self, refusal: &RequestError, lost: &RequestError) {
        self.stop(refusal);
        self.waiters.fail(lost);
        self.let_followers_go();
    }

    /// The leadership is over, and this broker leads in the next one too. Streams are of one leadership: what of theirs is not
    /// in the log yet is refused, behind the answers to what is.
    pub(super) fn end_for_another(mut self, next: LeaderEpoch) -> Unanswered {
        self.stop(&other_leadership(self.leader.leader_epoch(), next));
        self.let_followers_go();
        Unanswered { waiters: self.waiters, broken: self.broken }
    }

    /// Whether an assignment in which this broker leads is of the registration in which it does now.
    pub(super) fn is_of_registration(&self, assignment: &Assignment) -> bool {
        self.broker_epoch == assignment.broker_epoch
    }

    /// Has each follower told that nothing more is sent.
    fn let_followers_go(&mut self) {
        for (_, Sent { link, slot, .. }) in std::mem::take(&mut self.followers) {
            link.moved(slot);
        }
    }

    /// Takes a batch; it is appended at the end of the round.
    pub(super) fn produce(&mut self, core: &mut Core, request: ProduceRequest) {
        let ProduceRequest { header, batch, leader_epoch, acks, permit, reply } = request;
        if is_broken(&mut self.broken, &reply) {
            return;
        }
        let answer = Answer { acks, reply, _permit: permit };
        match core.refusal.clone().or_else(|| self.refusal(leader_epoch, acks)) {
            Some(refusal) => self.refuse(answer, refusal),
            None => self.queued.push_back(Queued { batch: NewBatch { header, bytes: batch }, answer }),
        }
    }

    fn refusal(&self, leader_epoch: LeaderEpoch, acks: Acks) -> Option<RequestError> {
        let current = self.leader.leader_epoch();
        if leader_epoch != current {
            return Some(other_leadership(leader_epoch, current));
        }
        let is_short = acks == Acks::All && !self.leader.has_enough_replicas();
        is_short.then(|| not_enough_replicas(self.leader.in_sync().len()))
    }

    /// Follows the metadata.
    pub(super) fn configure(&mut self, core: &mut Core, now: Now, assignment: &Assignment) {
        let (sync, min_insync_replicas) = (core.config.sync, core.config.min_insync_replicas);
        let membership = assignment.membership.clone();
        self.tell(core, now, LeaderInput::Reconfigured { membership, sync, min_insync_replicas });
    }

    pub(super) fn follow(
        &mut self,
        core: &mut Core,
        now: Now,
        link: &Arc<Downlink>,
        asked: &replicate::Follow,
    ) {
        let known = asked.last_epoch.and_then(|last| {
            let (epoch, end) = core.log.epochs().end_offset_for(last, core.log.end_offset())?;
            Some(EpochEnd { epoch, end })
        });
        let follow = Follow {
            follower: link.follower(),
            broker_epoch: asked.broker_epoch,
            leader_epoch: asked.leader_epoch,
            last_epoch: asked.last_epoch,
            end: asked.end,
            known,
        };
        let mut actions = std::mem::take(&mut self.actions);
        self.leader.handle(now.time, LeaderInput::Follow(follow), &mut actions);
        for action in actions {
            match action {
                LeaderAction::Answer(answer) => self.answer_follow(core, link, asked, answer),
                other => self.carry_out(core, other),
            }
        }
    }

    fn answer_follow(
        &mut self,
        core: &Core,
        link: &Arc<Downlink>,
        asked: &replicate::Follow,
        answer: FollowAnswer,
    ) {
        let slot = asked.slot;
        let message = match answer {
            FollowAnswer::Accepted { from } => {
                let sent = Sent { link: Arc::clone(link), slot, broker_epoch: asked.broker_epoch };
                self.followers.insert(link.follower(), sent);
                LeaderMessage::Accepted {
                    slot,
                    from,
                    high_watermark: self.leader.high_watermark(),
                    log_start: core.log.start_offset(),
                }
            }
            FollowAnswer::Diverging(EpochEnd { epoch, end }) => LeaderMessage::Diverging { slot, epoch, end },
            FollowAnswer::Refused(why) => LeaderMessage::Refused { slot, code: FollowRefusal::code(why) },
        };
        let leader_epoch = self.leader.leader_epoch();
        link.answer(FollowAnswered { partition: asked.partition, leader_epoch, message });
    }

    pub(super) fn unfollow(&mut self, link: &Arc<Downlink>, slot: u32) {
        self.followers.retain(|_, sent| !(sent.slot == slot && Arc::ptr_eq(&sent.link, link)));
    }

    /// Of a slot that is not the follower's last nothing counts: it was about another following.
    pub(super) fn progressed(
        &mut self,
        core: &mut Core,
        now: Now,
        link: &Arc<Downlink>,
        progress: SlotProgress,
    ) {
        let follower = link.follower();
        let Some(sent) = self.followers.get(&follower) else { return };
        if sent.slot != progress.slot || !Arc::ptr_eq(&sent.link, link) {
            return;
        }
        let broker_epoch = sent.broker_epoch;
        self.tell(core, now, LeaderInput::Progress { follower, broker_epoch, ends: progress.ends });
    }

    pub(super) fn proposal_answered(
        &mut self,
        core: &mut Core,
        now: Now,
        leader_epoch: LeaderEpoch,
        number: u64,
        outcome: Outcome,
    ) {
        if leader_epoch != self.leader.leader_epoch() {
            return;
        }
        let outcome = match outcome {
            // What was taken shows in the image; whatever it says of brokers is at least as new.
            Outcome::Taken(membership) => ProposalOutcome::Taken(membership),
            Outcome::Refused => ProposalOutcome::Refused,
            Outcome::Unknown => ProposalOutcome::Unknown,
        };
        self.tell(core, now, LeaderInput::ProposalAnswered { number, outcome });
    }

    /// Its log is damaged: it gives up, unless nobody else has the records.
    pub(super) fn damaged(&mut self, core: &mut Core, now: Now) {
        if let Some(refusal) = core.refusal.clone() {
            self.refuse_queued(&refusal);
        }
        self.awaits_space = false;
        if self.leader.membership().replicas.len() > 1 {
            self.tell(core, now, LeaderInput::Damaged);
        }
    }

    /// A job of the log came back.
    pub(super) fn completed(&mut self, core: &mut Core, now: Now, completed: Completed) {
        if completed.space {
            self.awaits_space = false;
        }
        if let Some(end) = completed.durable_end {
            self.tell(core, now, LeaderInput::LocalDurable { end });
        }
        if let Some(start) = completed.log_start {
            self.tell(core, now, LeaderInput::Trimmed { start });
        }
        if completed.poisoned.is_some() {
            self.tell(core, now, LeaderInput::SyncFailed);
        }
    }

    /// Appends what was queued, wakes followers, and hands out the jobs that are due.
    pub(super) fn write(&mut self, core: &mut Core, now: Now, tasks: &mut Vec<Task>) {
        if self.leader.deadline().is_some_and(|due| due <= now.time) {
            self.tell(core, now, LeaderInput::TimePassed);
        }
        while !self.queued.is_empty() && !self.awaits_space {
            self.append_group(core, now);
        }
        self.wake_followers(core);
        let sync = core.wants_sync(now);
        core.next_jobs(now, sync, tasks);
        if self.awaits_space && core.is_idle() {
            tracing::error!(partition = %core.shared.id, "the log waits for space that nobody makes");
            self.refuse_queued(&RequestError::from(&AppendErrorKind::NoSpaceYet));
            self.awaits_space = false;
        }
    }

    fn wake_followers(&mut self, core: &Core) {
        let now = (core.log.end_offset(), core.log.start_offset(), self.leader.high_watermark());
        if std::mem::replace(&mut self.shown, now) == now {
            return;
        }
        self.followers.retain(|_, sent| !sent.link.is_closed());
        for sent in self.followers.values() {
            sent.link.moved(sent.slot);
        }
    }

    /// Sends the answers whose turn has come.
    pub(super) fn answer(&mut self, core: &Core) {
        if self.waiters.is_empty() {
            return;
        }
        let leader = &self.leader;
        let safe = Safe {
            high_watermark: leader.high_watermark(),
            leader: leader.safe_end(),
            log_start: core.log.start_offset(),
        };
        self.waiters.complete(safe, |end| match leader.sync() {
            Sync::Always => leader.replicas_on_disk(end),
            Sync::Interval => 0,
        });
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        self.leader.deadline()
    }

    pub(super) fn standing(&self, assignment: &Assignment) -> Standing {
        Standing {
            leader: assignment.leader,
            leader_epoch: self.leader.leader_epoch(),
            is_leading: true,
            is_settled: self.leader.is_settled(),
            is_readable: true,
            has_enough_replicas: self.leader.has_enough_replicas(),
        }
    }

    /// Takes nothing more. What is not in the log yet is refused; what is gets its answer as ever.
    pub(super) fn stop(&mut self, refusal: &RequestError) {
        self.refuse_queued(refusal);
        self.awaits_space = false;
    }

    /// Answers everything that waits with a failure.
    pub(super) fn abandon(&mut self, error: &RequestError) {
        self.waiters.fail(error);
    }

    /// What decides.
    pub(super) fn machine(&self) -> &Leader {
        &self.leader
    }

    #[cfg(feature = "mutants")]
    pub(super) fn keep_progress_of(&mut self, earlier: &Leader) {
        self.leader.keep_progress_of(earlier);
    }

    #[cfg(feature = "mutants")]
    pub(super) fn is_to_be_remembered(&self) -> bool {
        use quire_engine::mutant::{Mutant, is_on};
        is_on(Mutant::ProgressReset) || is_on(Mutant::FollowedInEpoch)
    }

    /// Appends as many queued batches as go into the log at once, or answers the first where it is not to be appended.
    fn append_group(&mut self, core: &mut Core, now: Now) {
        let count = match self.judge_queued(core, now) {
            Ok(count) => count,
            Err(first) => return self.answer_first(core, first),
        };
        let group = self.queued.drain(..count).map(|queued| (queued.batch, queued.answer));
        let (batches, answers): (Vec<_>, Vec<_>) = group.unzip();
        let numberings: Vec<_> = batches.iter().map(|batch| numbering(&batch.header)).collect();
        let at = AppendContext {
            leader_epoch: self.leader.leader_epoch(),
            now: now.timestamp,
            high_watermark: self.leader.high_watermark(),
            timestamp_type: match core.config.timestamp_type {
                MessageTimestampType::CreateTime => TimestampType::CreateTime,
                MessageTimestampType::LogAppendTime => TimestampType::LogAppendTime,
            },
        };
        match core.log.append(batches, at) {
            Ok(frames) => {
                for (frame, numbering) in frames.iter().zip(numberings) {
                    if let Some(numbering) = numbering {
                        core.producers.appended(&numbering, frame);
                    }
                }
                self.appended(core, now, &frames, answers);
            }
            Err(AppendError { kind, batches }) => self.not_appended(core, now, kind, batches, answers),
        }
        core.producers.settle();
    }

    /// How many queued batches are to be appended with one write, at least one; or what is to become of the first if it
    /// is not to be appended. One behind others waits until those are in the log: its answer follows theirs.
    fn judge_queued(&mut self, core: &mut Core, now: Now) -> Result<usize, NotAppended> {
        let bytes_max = core.append_bytes_max();
        let (mut bytes, mut count) = (0, 0);
        while let Some(Queued { batch, answer }) = self.queued.get(count) {
            bytes += batch.bytes.len();
            if count > 0 && bytes > bytes_max {
                break;
            }
            let judged = match is_broken(&mut self.broken, &answer.reply) {
                true => Err(NotAppended::Dropped),
                false => judge(&mut core.producers, now, numbering(&batch.header)),
            };
            match judged {
                Ok(()) => count += 1,
                Err(first) if count == 0 => return Err(first),
                Err(_) => break,
            }
        }
        Ok(count)
    }

    /// Answers the first queued batch, which is not appended.
    fn answer_first(&mut self, core: &mut Core, what: NotAppended) {
        let Some(Queued { answer, .. }) = self.queued.pop_front() else { return };
        match what {
            NotAppended::Dropped => {}
            NotAppended::Refused(error) => self.refuse(answer, error),
            NotAppended::Duplicate(original) => {
                core.metrics.duplicate_batches.increment(1);
                let ack = Ack {
                    base_offset: original.base_offset,
                    append_time: original.append_time,
                    leader_epoch: original.leader_epoch,
                    log_start: core.log.start_offset(),
                    replicas_on_disk: 0,
                    chain: original.chain,
                };
                self.waiters.appended(answer, original.end(), ack);
            }
        }
    }

    fn appended(&mut self, core: &mut Core, now: Now, frames: &[FrameHeader], answers: Vec<Answer>) {
        for (frame, answer) in frames.iter().zip(answers) {
            let ack = Ack {
                base_offset: frame.base_offset,
                append_time: frame.append_time,
                leader_epoch: frame.leader_epoch,
                log_start: core.log.start_offset(),
                replicas_on_disk: 0,
                chain: frame.chain,
            };
            self.waiters.appended(answer, frame.next_offset(), ack);
            core.metrics.appended_records.increment(frame.next_offset().0 - frame.base_offset.0);
            core.metrics.appended_bytes.increment(frame.frame_len() as u64);
        }
        self.tell(core, now, LeaderInput::Appended { end: core.log.end_offset() });
        core.appended(now);
    }

    fn not_appended(
        &mut self,
        core: &mut Core,
        now: Now,
        kind: AppendErrorKind,
        batches: Vec<NewBatch>,
        answers: Vec<Answer>,
    ) {
        for (batch, answer) in batches.into_iter().zip(answers).rev() {
            self.queued.push_front(Queued { batch, answer });
        }
        match &kind {
            AppendErrorKind::NoSpaceYet => self.awaits_space = true,
            AppendErrorKind::DiskFull => {
                core.disk_full();
                self.refuse_queued(&RequestError::from(&kind));
            }
            AppendErrorKind::Poisoned(_) => self.tell(core, now, LeaderInput::SyncFailed),
            AppendErrorKind::Corrupt | AppendErrorKind::OffsetsExhausted | AppendErrorKind::Exhausted(_) => {
                self.refuse_queued(&RequestError::from(&kind));
            }
        }
    }

    /// Tells the leader and does what it wants done.
    fn tell(&mut self, core: &mut Core, now: Now, input: LeaderInput) {
        self.leader.handle(now.time, input, &mut self.actions);
        self.act(core);
    }

    fn act(&mut self, core: &mut Core) {
        for action in std::mem::take(&mut self.actions) {
            self.carry_out(core, action);
        }
    }

    fn carry_out(&mut self, core: &mut Core, action: LeaderAction) {
        match action {
            LeaderAction::AdvanceHighWatermark { to } => {
                core.log.set_high_watermark(to);
                core.has_moved = true;
            }
            LeaderAction::Propose(proposal) => core.wanted.push(Wanted::Propose(proposal)),
            LeaderAction::Resign { why } => {
                let error = match core.log.is_poisoned() {
                    true => core.fail(&why.to_string()),
                    false => RequestError::storage_failed(&why.to_string()),
                };
                self.stop(&error);
                self.waiters.fail(&error);
                core.wanted.push(Wanted::Distrust);
            }
            LeaderAction::Answer(_) => unreachable!("only a request to follow is answered"),
        }
    }

    fn refuse_queued(&mut self, error: &RequestError) {
        for queued in std::mem::take(&mut self.queued) {
            self.refuse(queued.answer, error.clone());
        }
    }

    fn refuse(&mut self, answer: Answer, error: RequestError) {
        let is_first = !is_broken(&mut self.broken, &answer.reply);
        if is_first {
            self.broken.push(answer.reply.downgrade());
        }
        // No window bounds how many batches of a stream without acknowledgements are refused at once.
        if is_first || answer.acks != Acks::None {
            self.waiters.refused(answer, error);
        }
    }
}

/// Why a batch is not appended.
#[derive(Debug)]
enum NotAppended {
    /// Its stream was told of a failure: it is not awaited any more.
    Dropped,
    /// It is not to be.
    Refused(RequestError),
    /// It is in the log.
    Duplicate(Remembered),
}

fn judge(producers: &mut ProducerStates, now: Now, numbering: Option<Numbering>) -> Result<(), NotAppended> {
    let Some(numbering) = numbering else { return Ok(()) };
    match producers.admit(now.timestamp, &numbering) {
        Ok(Verdict::Append) => Ok(()),
        Ok(Verdict::Duplicate(original)) => Err(NotAppended::Duplicate(original)),
        // Only behind others, where it is asked again.
        Ok(Verdict::Undecided) => Err(NotAppended::Dropped),
        Err(refusal) => Err(NotAppended::Refused(refusal.into())),
    }
}

/// Its place among its producer's batches; whoever received it has seen that it makes sense.
fn numbering(header: &BatchHeader) -> Option<Numbering> {
    header.numbering().ok().flatten()
}

/// Whether the stream was told of a failure.
fn is_broken(broken: &mut Vec<mpsc::WeakSender<ProduceReply>>, stream: &mpsc::Sender<ProduceReply>) -> bool {
    if broken.is_empty() {
        return false;
    }
    let mut is_broken = false;
    broken.retain(|broken| {
        let Some(broken) = broken.upgrade() else { return false };
        is_broken |= broken.same_channel(stream);
        !broken.is_closed()
    });
    is_broken
}

/// What a producer is told whose stream is of another leadership.
fn other_leadership(opened_in: LeaderEpoch, current: LeaderEpoch) -> RequestError {
    let message = format!("the stream was opened in leader epoch {opened_in}, it is {current} now");
    RequestError::new(ErrorCode::FencedLeaderEpoch, message)
}

/// What a producer is told that wants more replicas to have its records than are in sync.
fn not_enough_replicas(in_sync: usize) -> RequestError {
    let message = format!("{in_sync} replicas are in sync, fewer than the topic's min.insync.replicas");
    RequestError::new(ErrorCode::NotEnoughReplicas, message)
}
