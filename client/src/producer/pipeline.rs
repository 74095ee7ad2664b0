//! Sends one partition's batches in order over one produce stream at a time, and sees each through to its answer.
//!
//! ```text
//!            Records                Opened
//!  Closed ───────────► Opening ───────────────► Open ── batches out, acknowledgements in ──┐
//!    ▲                   │ ▲                      │                                        │
//!    │ (nothing to do)   │ │ Tick                 │ Failed: the unanswered go first again  │
//!    └───────────────  Paused  ◄──────────────────┘◄───────────────────────────────────────┘
//! ```
//! A reactive machine: time and input in, actions out. A batch that had been sent when its stream failed is sent again
//! under the same number, by which the broker knows it ([`super::numbers`]; without numbers it may be appended twice). One
//! that was refused for good fails alone, and those behind it are sent again. One whose time is over takes its stream with
//! it: what was reported as not delivered is not sent afterwards.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quire_protocol::batch::ProducerIdentity;
use quire_protocol::stream::{Ack, Acks, Opened};
use quire_protocol::{ErrorCode, ProducerId, Sequence, TopicId};

use crate::error::Error;
use crate::retry::Retry;

use super::SendError;
use super::delivery::{Completer, Outcome, unacknowledged};
use super::numbers::{Claim, Numbered, Numbers};

/// Unanswered batches up to which a batch leaves that is not full: one being synced and one that waits for the next
/// sync. Above, records gather.
const PARTLY_FILLED_ON_THEIR_WAY_MAX: usize = 2;
/// A stream that nothing was sent on for so long is closed; the next record opens another.
const IDLE_STREAM_TIME_MAX: Duration = Duration::from_secs(60);

/// Longest pause while a partition waits for a leader.
const LEADERLESS_PAUSE_MAX: Duration = Duration::from_millis(200);

/// A finished batch.
#[derive(Debug)]
pub(super) struct ReadyBatch {
    pub bytes: Bytes,
    pub completer: Completer,
    pub memory: usize,
    pub begun_at: Instant,
    pub records: u32,
    /// `None` until the pipeline has it, and for ever if nobody numbers the partition's batches.
    pub numbered: Option<Numbered>,
    /// On how many streams it was written.
    pub times_sent: u32,
}

/// A stream that the broker accepted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Established {
    pub opened: Opened,
    pub topic: TopicId,
    /// Who numbers its batches.
    pub producer: Option<ProducerId>,
}

/// What happened.
#[derive(Debug)]
pub(super) enum Input {
    /// Records wait for a batch to be taken.
    Records,
    /// A batch was taken and finished.
    Batch(ReadyBatch),
    /// The broker accepted the stream.
    Opened(Established),
    /// No stream could be opened, or the broker refused it.
    Refused(Error),
    /// The oldest unanswered batch was written; matters if no answer comes.
    Written,
    /// The broker answered the oldest unanswered batch.
    Acked(Ack),
    /// The stream ended: with the broker's reason, or lost.
    Failed(Error),
    /// Another partition waits for a stream: this one is to be given up once everything on it is answered.
    AskedFor,
    /// Time passed.
    Tick,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Action {
    /// Open a stream; answer with `Opened` or `Refused`.
    Open,
    /// Write a batch to the stream.
    Write(Bytes),
    /// Drop the stream and what is not yet written to it.
    Abandon,
    /// End the stream: everything on it is answered.
    Finish,
    /// A batch has ended; its memory is free.
    Complete { completer: Completer, memory: usize, outcome: Outcome },
    /// Everything that waits to be taken fails too.
    RefuseWaiting(SendError),
}

/// How batches are to be delivered.
#[derive(Debug, Clone, Copy)]
pub(super) struct DeliveryPolicy {
    pub acks: Acks,
    pub timeout: Duration,
    /// Whether batches are numbered, so that none is appended twice.
    pub is_idempotent: bool,
}

#[derive(Debug)]
enum Link {
    Closed,
    Opening,
    Open {
        /// Batches that may be unanswered.
        window: usize,
        used_at: Instant,
        has_carried: bool,
        is_asked_for: bool,
    },
    Paused {
        until: Instant,
    },
}

/// The sender of one partition.
#[derive(Debug)]
pub(super) struct Pipeline {
    policy: DeliveryPolicy,
    retry: Retry,
    link: Link,
    /// On the current stream, oldest first.
    unanswered: VecDeque<ReadyBatch>,
    /// To be sent before anything new.
    unsent: VecDeque<ReadyBatch>,
    last_failure: Option<Error>,
    numbers: Option<Numbers>,
}

impl Pipeline {
    pub(super) fn new(policy: DeliveryPolicy, retry: Retry) -> Pipeline {
        // Without answers nothing is sent again.
        let is_numbered = policy.is_idempotent && policy.acks != Acks::None;
        Pipeline {
            numbers: is_numbered.then(Numbers::default),
            policy,
            retry,
            link: Link::Closed,
            unanswered: VecDeque::new(),
            unsent: VecDeque::new(),
            last_failure: None,
        }
    }

    /// Under what a stream is to be opened; `None` if nobody numbers its batches.
    pub(super) fn claim(&self) -> Option<Claim> {
        self.numbers.as_ref().map(Numbers::claim)
    }

    /// What the next batch is to be built with.
    pub(super) fn next_number(&self) -> Option<(ProducerIdentity, Sequence)> {
        self.numbers.as_ref()?.next()
    }

    /// Whether an answer is waited for.
    pub(super) fn is_waiting(&self) -> bool {
        !self.unanswered.is_empty() && self.policy.acks != Acks::None
    }

    /// Whether the next batch may be taken now.
    pub(super) fn wants_batch(&self) -> bool {
        match self.link {
            Link::Open { window, is_asked_for: false, .. } => {
                self.unsent.is_empty() && self.unanswered.len() < window
            }
            _ => false,
        }
    }

    /// Whether anything was sent on the stream that is open.
    pub(super) fn has_carried(&self) -> bool {
        matches!(self.link, Link::Open { has_carried: true, .. })
    }

    /// Whether so little is on its way that a batch may leave that is not full.
    pub(super) fn is_idle(&self) -> bool {
        self.unanswered.len() < PARTLY_FILLED_ON_THEIR_WAY_MAX
    }

    /// Whether nothing is on its way.
    pub(super) fn is_empty(&self) -> bool {
        self.unanswered.is_empty() && self.unsent.is_empty()
    }

    /// When `Tick` is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let link = match self.link {
            Link::Paused { until } => Some(until),
            Link::Open { used_at, .. } if self.is_empty() => Some(used_at + IDLE_STREAM_TIME_MAX),
            _ => None,
        };
        let oldest = self.batches().next().map(|batch| batch.begun_at + self.policy.timeout);
        link.into_iter().chain(oldest).min()
    }

    /// What stood in the way since something was last acknowledged.
    pub(super) fn last_failure(&self) -> Option<&Error> {
        self.last_failure.as_ref()
    }

    /// The error of a batch whose time is over.
    pub(super) fn timed_out(&self) -> SendError {
        let cause = self.last_failure.clone().map(Box::new);
        SendError::DeliveryTimeout { after: self.policy.timeout, cause }
    }

    pub(super) fn handle(&mut self, now: Instant, input: Input, actions: &mut Vec<Action>) {
        self.apply(now, input, actions);
        if matches!(self.link, Link::Open { is_asked_for: true, .. }) && self.is_empty() {
            self.finish(actions);
        }
    }

    fn apply(&mut self, now: Instant, input: Input, actions: &mut Vec<Action>) {
        match input {
            Input::Records => self.open_if_closed(actions),
            Input::Batch(mut batch) => {
                batch.numbered = self.numbers.as_mut().map(|numbers| numbers.give(batch.records));
                self.unsent.push_back(batch);
                self.open_if_closed(actions);
                self.send(now, actions);
            }
            Input::Opened(Established { topic, .. }) if self.has_left(topic) => {
                actions.push(Action::Abandon);
                self.last_failure = Some(Error::Broker {
                    code: ErrorCode::UnknownTopic,
                    message: format!("the broker leads a topic that was deleted, {topic}"),
                    suggestion: None,
                });
                self.pause(now);
            }
            Input::Opened(Established { opened, topic, producer }) => {
                self.renumber(topic, producer);
                let window = (opened.window as usize).max(1);
                self.link = Link::Open { window, used_at: now, has_carried: false, is_asked_for: false };
                self.send(now, actions);
            }
            Input::AskedFor => {
                if let Link::Open { is_asked_for, .. } = &mut self.link {
                    *is_asked_for = true;
                }
            }
            Input::Refused(error) => self.refused(now, error, actions),
            Input::Written if self.policy.acks == Acks::None => self.answered(now, unacknowledged(), actions),
            Input::Written => {}
            Input::Acked(ack) => self.answered(now, ack, actions),
            Input::Failed(error) => self.failed(now, error, actions),
            Input::Tick => self.tick(now, actions),
        }
    }

    /// Ends everything with this error; used when the producer goes away.
    pub(super) fn abort(&mut self, error: &SendError, actions: &mut Vec<Action>) {
        self.link = Link::Closed;
        self.requeue_unanswered();
        self.fail_all(error, actions);
    }

    fn batches(&self) -> impl Iterator<Item = &ReadyBatch> {
        self.unanswered.iter().chain(&self.unsent)
    }

    fn has_left(&self, topic: TopicId) -> bool {
        self.numbers.as_ref().is_some_and(|numbers| numbers.has_left(topic))
    }

    /// What waits gets other numbers where the old ones mean nothing to the broker any more.
    fn renumber(&mut self, topic: TopicId, producer: Option<ProducerId>) {
        let (Some(numbers), Some(id)) = (&mut self.numbers, producer) else { return };
        if !numbers.opened(id, topic) {
            return;
        }
        for ReadyBatch { bytes, numbered, times_sent, .. } in &mut self.unsent {
            if let Some(numbered) = numbered {
                numbers.renumber(bytes, numbered);
                *times_sent = 0;
            }
        }
    }

    fn open_if_closed(&mut self, actions: &mut Vec<Action>) {
        if matches!(self.link, Link::Closed) {
            self.link = Link::Opening;
            actions.push(Action::Open);
        }
    }

    fn send(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Link::Open { window, used_at, has_carried, .. } = &mut self.link else { return };
        while self.unanswered.len() < *window
            && let Some(mut batch) = self.unsent.pop_front()
        {
            batch.times_sent = batch.times_sent.saturating_add(1);
            (*used_at, *has_carried) = (now, true);
            actions.push(Action::Write(batch.bytes.clone()));
            self.unanswered.push_back(batch);
        }
    }

    fn answered(&mut self, now: Instant, ack: Ack, actions: &mut Vec<Action>) {
        match self.unanswered.pop_front() {
            Some(batch) => actions.push(complete(batch, Ok(ack))),
            None => {
                let why = "it acknowledged a batch that was not sent".into();
                return self.failed(now, Error::Protocol { address: "the broker".into(), why }, actions);
            }
        }
        if let Some(numbers) = &mut self.numbers {
            numbers.answered();
        }
        self.retry.succeeded();
        self.last_failure = None;
        if let Link::Open { used_at, .. } = &mut self.link {
            *used_at = now;
        }
        self.send(now, actions);
    }

    fn failed(&mut self, now: Instant, error: Error, actions: &mut Vec<Action>) {
        actions.push(Action::Abandon);
        if self.lost_count(&error, actions) {
            return self.reopen(actions);
        }
        let concerns_one_batch = !error.is_retriable() && !is_about_topic(&error);
        if concerns_one_batch && let Some(batch) = self.unanswered.pop_front() {
            // The others were not appended; they have done nothing wrong.
            actions.push(complete(batch, Err(error.into())));
            self.requeue_unanswered();
            self.gave_up();
            return self.reopen(actions);
        }
        self.requeue_unanswered();
        self.last_failure = Some(error);
        self.pause(now);
    }

    /// The broker does not take the numbers that batches have, and takes none of the batches. Whether that was it: then what
    /// was certainly not appended waits to be numbered anew, and the rest has failed.
    fn lost_count(&mut self, error: &Error, actions: &mut Vec<Action>) -> bool {
        let (Some(numbers), Some(code)) = (&mut self.numbers, error.code()) else { return false };
        // Out of order: what is missing was given up here, or it was acknowledged and is lost.
        let is_loss = code == ErrorCode::OutOfOrderSequence && !numbers.has_gap();
        match code {
            ErrorCode::OutOfOrderSequence | ErrorCode::UnknownProducerId => numbers.begin_anew(),
            ErrorCode::FencedProducerEpoch => numbers.begin_under_another_id(),
            _ => return false,
        }
        // What an earlier stream carried may have been taken there: by this broker, which has forgotten the producer since,
        // or by another that leads while this one does not know yet that it leads no more. Those are the oldest.
        let was_sent_again = |batch: &&ReadyBatch| batch.times_sent >= 2;
        let was_sent = |batch: &&ReadyBatch| batch.times_sent >= 1;
        let doubtful = self.unanswered.iter().filter(was_sent_again).count()
            + self.unsent.iter().filter(was_sent).count();
        let is_refused = is_loss && doubtful == 0 && !self.unanswered.is_empty();
        self.requeue_unanswered();
        for batch in self.unsent.drain(..doubtful) {
            actions.push(complete(batch, Err(may_be_appended(code, error).into())));
        }
        // A loss must not go unseen: the oldest is told, which certainly was not appended.
        if is_refused && let Some(batch) = self.unsent.pop_front() {
            actions.push(complete(batch, Err(error.clone().into())));
        }
        true
    }

    fn reopen(&mut self, actions: &mut Vec<Action>) {
        self.link = Link::Closed;
        if !self.is_empty() {
            self.open_if_closed(actions);
        }
    }

    /// A batch was given up that had a number.
    fn gave_up(&mut self) {
        let is_last = self.is_empty();
        if let Some(numbers) = &mut self.numbers {
            numbers.gave_up(is_last);
        }
    }

    fn refused(&mut self, now: Instant, error: Error, actions: &mut Vec<Action>) {
        actions.push(Action::Abandon);
        self.requeue_unanswered();
        if error.is_retriable() {
            self.last_failure = Some(error);
            return self.pause(now);
        }
        self.link = Link::Closed;
        let error = SendError::from(error);
        self.fail_all(&error, actions);
        actions.push(Action::RefuseWaiting(error));
    }

    fn pause(&mut self, now: Instant) {
        let due = self.retry.failed(now);
        let until = match self.last_failure.as_ref().is_some_and(is_about_leadership) {
            true => due.min(now + LEADERLESS_PAUSE_MAX),
            false => due,
        };
        self.link = Link::Paused { until };
    }

    fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.expire(now, actions);
        match self.link {
            Link::Paused { until } if until <= now => self.reopen(actions),
            Link::Open { used_at, .. } if self.is_empty() && used_at + IDLE_STREAM_TIME_MAX <= now => {
                self.finish(actions);
            }
            _ => {}
        }
    }

    fn finish(&mut self, actions: &mut Vec<Action>) {
        self.link = Link::Closed;
        actions.push(Action::Finish);
    }

    /// Fails the batches whose time is over. One on the stream takes the stream with it: its bytes may not have left
    /// yet, and must not once its failure was told and its memory is free.
    fn expire(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let error = self.timed_out();
        let timeout = self.policy.timeout;
        let is_over = |batch: &ReadyBatch| batch.begun_at + timeout <= now;
        if self.unanswered.front().is_some_and(is_over) {
            actions.push(Action::Abandon);
            self.requeue_unanswered();
            self.pause(now);
        }
        while self.unsent.front().is_some_and(is_over)
            && let Some(batch) = self.unsent.pop_front()
        {
            actions.push(complete(batch, Err(error.clone())));
            self.gave_up();
        }
    }

    /// What the lost stream did not answer goes first on the next one.
    fn requeue_unanswered(&mut self) {
        while let Some(batch) = self.unanswered.pop_back() {
            self.unsent.push_front(batch);
        }
    }

    fn fail_all(&mut self, error: &SendError, actions: &mut Vec<Action>) {
        let has_any = !self.unsent.is_empty();
        actions.extend(self.unsent.drain(..).map(|batch| complete(batch, Err(error.clone()))));
        if has_any {
            self.gave_up();
        }
    }
}

/// Whether a leader is being elected or made known, which takes a moment and not longer.
fn is_about_leadership(error: &Error) -> bool {
    use ErrorCode::{FencedLeaderEpoch, LeadershipLost, NotEnoughReplicas, NotLeader};
    let codes = [NotLeader, FencedLeaderEpoch, LeadershipLost, NotEnoughReplicas];
    matches!(error, Error::NoLeader { .. }) || error.code().is_some_and(|code| codes.contains(&code))
}

/// The error of a batch that a broker refuses now, and that it or another one may have appended before. The refusal's own code
/// would say that it was not.
fn may_be_appended(code: ErrorCode, refusal: &Error) -> Error {
    let said = match refusal {
        Error::Broker { message, .. } => message.clone(),
        other => other.to_string(),
    };
    let message = format!(
        "it had been sent before on a stream that was lost, and whether it was appended then is unknown: the leader now \
         answers {code}: {said}"
    );
    Error::Broker { code: ErrorCode::LeadershipLost, message, suggestion: None }
}

/// Whether the topic itself may have gone or come again, which only a look at the metadata tells.
fn is_about_topic(error: &Error) -> bool {
    matches!(error.code(), Some(ErrorCode::UnknownTopic | ErrorCode::UnknownPartition))
}

fn complete(batch: ReadyBatch, outcome: Outcome) -> Action {
    Action::Complete { completer: batch.completer, memory: batch.memory, outcome }
}

#[cfg(test)]
mod tests;
