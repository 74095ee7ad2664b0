//! Inputs in, a line for each action out.

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
    opened_of(window, TopicId([1; 16]))
}

fn opened_of(window: u32, topic: TopicId) -> Input {
    let opened = Opened {
        leader_epoch: LeaderEpoch(0),
        window,
        batch_bytes_max: 1 << 20,
        next_offset: Offset(0),
        log_start: Offset(0),
        high_watermark: Offset(0),
    };
    Input::Opened(Established { opened, topic, producer: Some(ProducerId(7)) })
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

/// Four batches, of which the third waits for the window; the first is given up and the stream with it.
fn given_up_before_the_window() -> Script {
    let mut script = Script::new(Acks::All);
    script.step(Input::Records);
    script.step(opened(2));
    for (records, expected) in [(2, Some("7.0:0")), (3, Some("7.0:2")), (1, None)] {
        let batch = real_batch(&script, records);
        assert_eq!(numbers(&mut script, batch), expected.into_iter().collect::<Vec<_>>());
    }
    script.pipeline.unanswered[1].begun_at += Duration::from_secs(10);
    script.pipeline.unsent[0].begun_at += Duration::from_secs(10);
    assert_eq!(script.wait_for_deadline(), ["abandon", "failed: not acknowledged within 30s"]);
    script.wait_for_deadline();
    assert_eq!(numbers(&mut script, opened(2)), ["7.0:2", "7.0:5"], "as before");
    script
}

/// A leader that did not know yet that it leads no more refused what it had never got, behind a batch that was given up;
/// the leader after it had all of it already, and got it again under new numbers. So what was sent on an earlier stream
/// fails; what was not was refused by the only broker that ever got it.
#[test]
fn behind_a_batch_that_was_given_up_only_what_was_sent_once_is_numbered_anew() {
    let mut script = given_up_before_the_window();
    let refused = Input::Failed(broker_error(ErrorCode::OutOfOrderSequence));
    assert_eq!(script.step(refused), ["abandon", &may_be_there("OUT_OF_ORDER_SEQUENCE"), "open"]);
    assert_eq!(claimed_epoch(&script), 1, "what is left of the lost ones is shut out");
    assert_eq!(numbers(&mut script, opened(8)), ["7.1:0"]);
    let batch = real_batch(&script, 1);
    assert_eq!(numbers(&mut script, batch), ["7.1:1"]);
}

#[test]
fn behind_a_batch_that_was_given_up_and_appended_all_goes_on() {
    let mut script = given_up_before_the_window();
    assert_eq!(script.step(acked(2)), ["acked at 2"]);
    assert_eq!(script.step(acked(5)), ["acked at 5"]);
    assert_eq!(claimed_epoch(&script), 0);
}

/// A broker that was behind led a deleted topic on, and acknowledged a batch of the one after it as one that it had: both
/// had the same numbers.
#[test]
fn a_stream_to_a_topic_that_was_made_again_since_is_given_up() {
    let mut script = three_sent();
    script.step(Input::Failed(lost()));
    script.wait_for_deadline();
    let again = opened_of(8, TopicId([2; 16]));
    assert_eq!(numbers(&mut script, again), ["7.0:0", "7.0:2", "7.0:5"], "the new one knows no numbers");
    script.step(Input::Failed(lost()));
    script.wait_for_deadline();
    assert_eq!(script.step(opened(8)), ["abandon"], "it was left");
    script.wait_for_deadline();
    let again = opened_of(8, TopicId([2; 16]));
    assert_eq!(numbers(&mut script, again), ["7.0:0", "7.0:2", "7.0:5"]);
}

#[test]
fn what_was_given_up_and_had_been_appended_leaves_no_gap() {
    let mut script = three_sent();
    script.step(Input::Failed(broker_error(ErrorCode::RecordTooLarge)));
    script.step(opened(8));
    assert_eq!(script.step(acked(3)), ["acked at 3"]);
    let refused = script.step(Input::Failed(broker_error(ErrorCode::OutOfOrderSequence)));
    let failure = &may_be_there("OUT_OF_ORDER_SEQUENCE");
    assert_eq!(refused, ["abandon", failure], "what is missing now was acknowledged once");
}

/// As `show` tells of a batch that may be in the log although it is refused now.
fn may_be_there(answer: &str) -> String {
    format!(
        "failed: it had been sent before on a stream that was lost, and whether it was appended then is unknown: the leader \
         now answers {answer}: no (LEADERSHIP_LOST, retriable)"
    )
}

/// A batch that had been sent before, and may have been appended then, was told to be out of order, whose advice is to send it
/// again, for it was not appended.
#[test]
fn only_what_no_other_stream_carried_is_told_to_be_refused() {
    let mut script = three_sent();
    script.step(Input::Failed(lost()));
    script.wait_for_deadline();
    script.step(opened(8));
    let mut actions = Vec::new();
    let refused = Input::Failed(broker_error(ErrorCode::OutOfOrderSequence));
    script.pipeline.handle(script.now, refused, &mut actions);
    let is_unknown = |action: &Action| match action {
        Action::Complete { outcome: Err(error), .. } => {
            Some(error.code().is_some_and(ErrorCode::is_outcome_unknown))
        }
        _ => None,
    };
    assert_eq!(actions.iter().filter_map(is_unknown).collect::<Vec<_>>(), [true; 3]);
    let failure = &may_be_there("OUT_OF_ORDER_SEQUENCE");
    assert_eq!(actions.iter().map(show).collect::<Vec<_>>(), ["abandon", failure, failure, failure]);
}

/// The second stream's window was smaller: what it did not carry, and the first one did, was numbered anew.
#[test]
fn what_only_an_earlier_stream_carried_is_not_numbered_anew() {
    let mut script = three_sent();
    script.step(Input::Failed(lost()));
    script.wait_for_deadline();
    assert_eq!(numbers(&mut script, opened(1)), ["7.0:0"]);
    let failure = &may_be_there("OUT_OF_ORDER_SEQUENCE");
    let refused = script.step(Input::Failed(broker_error(ErrorCode::OutOfOrderSequence)));
    assert_eq!(refused, ["abandon", failure, failure, failure]);
    assert!(script.pipeline.is_empty());
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
    let failure = &may_be_there("UNKNOWN_PRODUCER_ID");
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
    assert_eq!(failed, ["abandon", "failed: not acknowledged within 30s"], "nothing of it leaves any more");
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
