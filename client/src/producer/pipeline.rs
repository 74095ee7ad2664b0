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
        // A loss must not go unseen: the oldest is told.
        if is_loss && let Some(batch) = self.unanswered.pop_front() {
            actions.push(complete(batch, Err(error.clone().into())));
        }
        // A broker that forgot the producer may have taken, before that, what was sent before this stream.
        let sent_before = if code == ErrorCode::OutOfOrderSequence { u32::MAX } else { 2 };
        self.requeue_unanswered();
        while self.unsent.front().is_some_and(|batch| batch.times_sent >= sent_before)
            && let Some(batch) = self.unsent.pop_front()
        {
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

/// Whether the topic itself may have gone or come again, which only a look at the metadata tells.
fn is_about_topic(error: &Error) -> bool {
    matches!(error.code(), Some(ErrorCode::UnknownTopic | ErrorCode::UnknownPartition))
}

fn complete(batch: ReadyBatch, outcome: Outcome) -> Action {
    Action::Complete { completer: batch.completer, memory: batch.memory, outcome }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::producer::delivery::Completion;
    use crate::retry::{Backoff, Jitter};
    use proptest::prelude::*;
    use quire_protocol::batch::{BatchBuilder, BatchHeader, Compression, Record};
    use quire_protocol::topic_config::MessageTimestampType;
    use quire_protocol::{LeaderEpoch, Offset, PartitionIndex, Timestamp};

    const TIMEOUT: Duration = Duration::from_secs(30);

    /// A pipeline, its clock, and what it did: a line for each action.
    struct Script {
        pipeline: Pipeline,
        now: Instant,
    }

    impl Script {
        fn new(acks: Acks) -> Script {
            Script::with(acks, true)
        }

        fn with(acks: Acks, is_idempotent: bool) -> Script {
            let policy = DeliveryPolicy { acks, timeout: TIMEOUT, is_idempotent };
            let retry = Retry::new(Backoff::default(), Jitter::from_seed(1));
            Script { pipeline: Pipeline::new(policy, retry), now: Instant::now() }
        }

        fn step(&mut self, input: Input) -> Vec<String> {
            let mut actions = Vec::new();
            self.pipeline.handle(self.now, input, &mut actions);
            actions.iter().map(show).collect()
        }

        fn batch(&self, name: &'static str) -> Input {
            let completion = Completion::new("t".into(), PartitionIndex(0), MessageTimestampType::CreateTime);
            Input::Batch(ReadyBatch {
                bytes: Bytes::from_static(name.as_bytes()),
                completer: Completer::new(completion),
                memory: 1,
                begun_at: self.now,
                records: 1,
                numbered: None,
                times_sent: 0,
            })
        }

        fn wait_for_deadline(&mut self) -> Vec<String> {
            self.now = self.pipeline.deadline().expect("something is due").max(self.now);
            self.step(Input::Tick)
        }
    }

    fn show(action: &Action) -> String {
        match action {
            Action::Open => "open".into(),
            Action::Write(bytes) => format!("write {}", String::from_utf8_lossy(bytes)),
            Action::Abandon => "abandon".into(),
            Action::Finish => "finish".into(),
            Action::Complete { outcome: Ok(ack), .. } => format!("acked at {}", ack.base_offset),
            Action::Complete { outcome: Err(error), .. } => format!("failed: {error}"),
            Action::RefuseWaiting(error) => format!("refuse waiting: {error}"),
        }
    }

    fn opened(window: u32) -> Input {
        let opened = Opened {
            leader_epoch: LeaderEpoch(0),
            window,
            batch_bytes_max: 1 << 20,
            next_offset: Offset(0),
            log_start: Offset(0),
            high_watermark: Offset(0),
        };
        Input::Opened(Established { opened, topic: TopicId([1; 16]), producer: Some(ProducerId(7)) })
    }

    fn acked(offset: u64) -> Input {
        Input::Acked(Ack { base_offset: Offset(offset), ..unacknowledged() })
    }

    fn broker_error(code: ErrorCode) -> Error {
        Error::Broker { code, message: "no".into(), suggestion: None }
    }

    fn lost() -> Error {
        Error::ConnectionLost { address: "a:1".into(), why: "gone".into() }
    }

    /// A real batch of so many records, so that its number can be read off what is written.
    fn real_batch(script: &Script, records: u32) -> Input {
        let Input::Batch(batch) = script.batch("") else { unreachable!() };
        let mut builder = BatchBuilder::new(Compression::None);
        let record = Record { value: Some("v".into()), ..Record::default() };
        (0..records).for_each(|_| builder.push(&record, Timestamp(1)).expect("a small record fits"));
        let bytes = builder.finish_numbered(script.pipeline.next_number()).expect("nothing to compress");
        Input::Batch(ReadyBatch { bytes, records, ..batch })
    }

    /// Producer, epoch and first number of each batch that is written; other actions as ever.
    fn numbers(script: &mut Script, input: Input) -> Vec<String> {
        let mut actions = Vec::new();
        script.pipeline.handle(script.now, input, &mut actions);
        let number = |action: &Action| {
            let Action::Write(bytes) = action else { return show(action) };
            let header = BatchHeader::check(bytes).expect("intact");
            let numbering = header.numbering().expect("consistent").expect("numbered");
            format!("{}.{}:{}", numbering.producer.id, numbering.producer.epoch, numbering.base_sequence)
        };
        actions.iter().map(number).collect()
    }

    /// A stream with batches of 2, 3 and 1 records on it.
    fn three_sent() -> Script {
        let mut script = Script::new(Acks::All);
        script.step(Input::Records);
        script.step(opened(8));
        for (records, expected) in [(2, "7.0:0"), (3, "7.0:2"), (1, "7.0:5")] {
            let batch = real_batch(&script, records);
            assert_eq!(numbers(&mut script, batch), [expected]);
        }
        script
    }

    fn claimed_epoch(script: &Script) -> u16 {
        script.pipeline.claim().expect("numbered").epoch.0
    }

    #[test]
    fn a_batch_keeps_its_number_over_every_retry() {
        let mut script = three_sent();
        script.step(acked(0));
        for _ in 0..3 {
            script.step(Input::Failed(lost()));
            script.wait_for_deadline();
            assert_eq!(numbers(&mut script, opened(8)), ["7.0:2", "7.0:5"]);
        }
        assert_eq!(claimed_epoch(&script), 0);
    }

    /// The batch that was given up may have been appended. Those behind it keep their numbers until the broker says that
    /// it was not: under new numbers they might be appended twice.
    #[test]
    fn behind_a_batch_that_was_given_up_the_broker_is_the_judge() {
        let mut script = three_sent();
        script.pipeline.unanswered[1].begun_at += Duration::from_secs(10);
        script.pipeline.unanswered[2].begun_at += Duration::from_secs(10);
        let given_up = script.wait_for_deadline();
        assert_eq!(given_up, ["abandon", "failed: not acknowledged within 30s"]);
        script.wait_for_deadline();
        assert_eq!(numbers(&mut script, opened(8)), ["7.0:2", "7.0:5"], "as before");
        let refused = Input::Failed(broker_error(ErrorCode::OutOfOrderSequence));
        assert_eq!(script.step(refused), ["abandon", "open"], "none of them was appended, and none fails");
        assert_eq!(claimed_epoch(&script), 1, "what is left of the lost one is shut out");
        assert_eq!(numbers(&mut script, opened(8)), ["7.1:0", "7.1:3"]);
        let batch = real_batch(&script, 1);
        assert_eq!(numbers(&mut script, batch), ["7.1:4"]);
    }

    #[test]
    fn what_was_given_up_and_had_been_appended_leaves_no_gap() {
        let mut script = three_sent();
        script.step(Input::Failed(broker_error(ErrorCode::RecordTooLarge)));
        script.step(opened(8));
        assert_eq!(script.step(acked(3)), ["acked at 3"]);
        let refused = script.step(Input::Failed(broker_error(ErrorCode::OutOfOrderSequence)));
        let failure = "failed: no (OUT_OF_ORDER_SEQUENCE, not retriable)";
        assert_eq!(refused, ["abandon", failure], "what is missing now was acknowledged once");
    }

    #[test]
    fn acknowledged_records_that_are_lost_are_told_once() {
        let mut script = three_sent();
        let refused = script.step(Input::Failed(broker_error(ErrorCode::OutOfOrderSequence)));
        assert_eq!(refused, ["abandon", "failed: no (OUT_OF_ORDER_SEQUENCE, not retriable)", "open"]);
        assert_eq!(numbers(&mut script, opened(8)), ["7.1:0", "7.1:3"]);
    }

    #[test]
    fn after_the_last_one_was_given_up_the_next_begins_anew() {
        let mut script = Script::new(Acks::All);
        script.step(Input::Records);
        script.step(opened(8));
        let batch = real_batch(&script, 2);
        script.step(batch);
        script.wait_for_deadline();
        assert_eq!(claimed_epoch(&script), 1);
        script.wait_for_deadline();
        assert_eq!(script.step(Input::Records), ["open"]);
        script.step(opened(8));
        let batch = real_batch(&script, 2);
        assert_eq!(numbers(&mut script, batch), ["7.1:0"]);
    }

    #[test]
    fn a_broker_that_forgot_the_producer_may_have_had_what_was_sent_before() {
        let mut script = three_sent();
        script.step(Input::Failed(lost()));
        script.wait_for_deadline();
        script.step(opened(8));
        let batch = real_batch(&script, 4);
        script.step(batch);
        let failure = "failed: no (UNKNOWN_PRODUCER_ID, not retriable)";
        let refused = script.step(Input::Failed(broker_error(ErrorCode::UnknownProducerId)));
        assert_eq!(refused, ["abandon", failure, failure, failure, "open"], "the fourth was sent once");
        assert_eq!(numbers(&mut script, opened(8)), ["7.1:0"]);
    }

    #[test]
    fn a_producer_that_was_shut_out_goes_on_under_another_id() {
        let mut script = three_sent();
        let refused = script.step(Input::Failed(broker_error(ErrorCode::FencedProducerEpoch)));
        assert_eq!(refused, ["abandon", "open"]);
        let claim = script.pipeline.claim().expect("numbered");
        assert_eq!((claim.id, claim.used_up), (None, Some(ProducerId(7))));
    }

    #[test]
    fn who_wants_no_numbers_gets_none() {
        for (acks, is_idempotent) in [(Acks::None, true), (Acks::All, false)] {
            let pipeline = Script::with(acks, is_idempotent).pipeline;
            assert_eq!((pipeline.claim(), pipeline.next_number()), (None, None));
        }
    }

    #[test]
    fn a_partition_that_waits_for_a_leader_is_asked_about_often() {
        let mut script = Script::new(Acks::All);
        script.step(Input::Records);
        for _ in 0..20 {
            let error = Error::NoLeader { topic: "t".into(), partition: PartitionIndex(0), leader: None };
            script.step(Input::Refused(error));
            let batch = script.batch("a");
            script.step(batch);
            let due = script.pipeline.deadline().expect("a pause");
            assert!(due <= script.now + LEADERLESS_PAUSE_MAX);
            script.wait_for_deadline();
        }
    }

    #[test]
    fn batches_are_written_up_to_the_window_and_acknowledged_in_order() {
        let mut script = Script::new(Acks::All);
        assert_eq!(script.step(Input::Records), ["open"]);
        assert_eq!(script.step(Input::Records), [""; 0], "one stream at a time");
        assert!(!script.pipeline.wants_batch());
        assert_eq!(script.step(opened(2)), [""; 0]);
        for name in ["a", "b", "c"] {
            let batch = script.batch(name);
            script.step(batch);
        }
        assert!(!script.pipeline.wants_batch() && !script.pipeline.is_idle());
        assert_eq!(script.step(acked(10)), ["acked at 10", "write c"]);
        assert_eq!(script.step(acked(11)), ["acked at 11"]);
        assert!(script.pipeline.wants_batch() && script.pipeline.is_idle());
        assert_eq!(script.step(acked(12)), ["acked at 12"]);
        assert!(script.pipeline.is_empty());
    }

    #[test]
    fn a_lost_stream_is_opened_again_after_a_pause_and_resends_in_order() {
        let mut script = Script::new(Acks::All);
        script.step(Input::Records);
        script.step(opened(8));
        for name in ["a", "b", "c"] {
            let batch = script.batch(name);
            script.step(batch);
        }
        script.step(acked(0));
        assert_eq!(script.step(Input::Failed(lost())), ["abandon"]);
        assert_eq!(script.step(Input::Records), [""; 0], "not before the pause is over");
        assert_eq!(script.wait_for_deadline(), ["open"]);
        assert_eq!(script.step(Input::Refused(lost())), ["abandon"]);
        assert_eq!(script.wait_for_deadline(), ["open"]);
        assert_eq!(script.step(opened(8)), ["write b", "write c"]);
    }

    #[test]
    fn a_batch_that_is_refused_for_good_fails_alone() {
        let mut script = Script::new(Acks::All);
        script.step(Input::Records);
        script.step(opened(8));
        for name in ["a", "b"] {
            let batch = script.batch(name);
            script.step(batch);
        }
        let refused = script.step(Input::Failed(broker_error(ErrorCode::RecordTooLarge)));
        assert_eq!(refused, ["abandon", "failed: no (RECORD_TOO_LARGE, not retriable)", "open"]);
        assert_eq!(script.step(opened(8)), ["write b"]);
    }

    #[test]
    fn a_topic_that_is_gone_fails_everything_once_the_metadata_says_so() {
        let mut script = Script::new(Acks::All);
        script.step(Input::Records);
        script.step(opened(8));
        let batch = script.batch("a");
        script.step(batch);
        let gone = || broker_error(ErrorCode::UnknownTopic);
        assert_eq!(script.step(Input::Failed(gone())), ["abandon"], "it may have been created again");
        assert_eq!(script.wait_for_deadline(), ["open"]);
        let failure = "no (UNKNOWN_TOPIC, not retriable)";
        let expected = ["abandon".into(), format!("failed: {failure}"), format!("refuse waiting: {failure}")];
        assert_eq!(script.step(Input::Refused(gone())), expected);
        assert_eq!(script.step(Input::Records), ["open"], "later records try again");
    }

    #[test]
    fn a_batch_whose_time_is_over_takes_its_stream_with_it_and_the_others_are_sent_again() {
        let mut script = Script::new(Acks::All);
        script.step(Input::Records);
        script.step(opened(8));
        let batch = script.batch("a");
        script.step(batch);
        script.now += Duration::from_secs(10);
        let batch = script.batch("b");
        script.step(batch);
        let failed = script.wait_for_deadline();
        assert_eq!(
            failed,
            ["abandon", "failed: not acknowledged within 30s"],
            "nothing of it leaves any more"
        );
        assert_eq!(script.wait_for_deadline(), ["open"]);
        assert_eq!(script.step(opened(8)), ["write b"]);
        assert_eq!(script.step(acked(5)), ["acked at 5"]);
    }

    #[test]
    fn a_timeout_names_what_stood_in_the_way() {
        let mut script = Script::new(Acks::All);
        let batch = script.batch("a");
        assert_eq!(script.step(batch), ["open"]);
        script.step(Input::Refused(lost()));
        script.now += TIMEOUT;
        let failed = script.step(Input::Tick);
        assert_eq!(failed, ["failed: not acknowledged within 30s: the connection to a:1 was lost: gone"]);
    }

    #[test]
    fn without_acks_a_batch_is_done_when_it_is_written() {
        let mut script = Script::new(Acks::None);
        script.step(Input::Records);
        script.step(opened(8));
        let batch = script.batch("a");
        assert_eq!(script.step(batch), ["write a"]);
        assert_eq!(script.step(Input::Written), [format!("acked at {}", Offset::MAX)]);
    }

    #[test]
    fn an_idle_stream_is_finished_and_the_next_batch_opens_another() {
        let mut script = Script::new(Acks::All);
        script.step(Input::Records);
        script.step(opened(8));
        assert_eq!(script.wait_for_deadline(), ["finish"]);
        assert_eq!(script.step(Input::Records), ["open"]);
    }

    #[test]
    fn a_stream_that_others_need_more_is_finished_once_all_is_answered() {
        let mut script = Script::new(Acks::All);
        script.step(Input::Records);
        script.step(opened(8));
        let batch = script.batch("a");
        script.step(batch);
        assert!(script.pipeline.wants_batch() && script.pipeline.has_carried());
        assert_eq!(script.step(Input::AskedFor), [""; 0], "not before its answer");
        assert!(!script.pipeline.wants_batch(), "and nothing more is sent on it");
        assert_eq!(script.step(acked(1)), ["acked at 1", "finish"]);
        assert_eq!(script.step(Input::Records), ["open"]);
        script.step(opened(8));
        assert_eq!(script.step(Input::AskedFor), ["finish"]);
    }

    #[test]
    fn an_acknowledgement_too_many_is_a_broken_protocol() {
        let mut script = Script::new(Acks::All);
        script.step(Input::Records);
        script.step(opened(8));
        assert_eq!(script.step(acked(0)), ["abandon"]);
    }

    proptest! {
        /// Whatever happens, every batch ends exactly once, and what a stream carries is in order.
        #[test]
        fn every_batch_ends_once_and_streams_carry_them_in_order(events in proptest::collection::vec(0u8..9, 1..300)) {
            let mut script = Script::with(Acks::All, false);
            let (mut made, mut ended) = (0u64, 0);
            let (mut is_open, mut on_stream): (bool, Vec<u64>) = (false, Vec::new());
            let mut wants_stream = false;
            for event in events {
                let input = match event {
                    0 | 1 => {
                        made += 1;
                        let Input::Batch(batch) = script.batch("") else { unreachable!() };
                        Input::Batch(ReadyBatch { bytes: made.to_le_bytes().to_vec().into(), ..batch })
                    }
                    2 if wants_stream => { wants_stream = false; is_open = true; opened(3) }
                    3 if wants_stream => { wants_stream = false; Input::Refused(lost()) }
                    4 | 5 if is_open && !on_stream.is_empty() => { on_stream.remove(0); acked(1) }
                    6 if is_open => Input::Failed(lost()),
                    8 if is_open => Input::AskedFor,
                    7 => { script.now += Duration::from_secs(7); Input::Tick }
                    _ => Input::Records,
                };
                let mut actions = Vec::new();
                script.pipeline.handle(script.now, input, &mut actions);
                for action in actions {
                    match action {
                        Action::Open => { prop_assert!(!is_open); wants_stream = true; }
                        Action::Write(bytes) => {
                            let number = u64::from_le_bytes(bytes.as_ref().try_into().expect("eight bytes"));
                            prop_assert!(is_open && on_stream.last().is_none_or(|last| *last < number));
                            on_stream.push(number);
                            prop_assert!(on_stream.len() <= 3);
                        }
                        Action::Abandon | Action::Finish => { is_open = false; on_stream.clear(); }
                        Action::Complete { .. } => ended += 1,
                        Action::RefuseWaiting(_) => {}
                    }
                }
                prop_assert!(ended <= made);
            }
            let mut actions = Vec::new();
            script.pipeline.abort(&SendError::Closed, &mut actions);
            ended += actions.iter().filter(|action| matches!(action, Action::Complete { .. })).count() as u64;
            prop_assert_eq!(ended, made);
        }
    }
}
