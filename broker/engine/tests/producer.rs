//! What a partition remembers of its producers: each rule by itself, then everything beside a model that knows the log.

use std::collections::BTreeMap;

use proptest::prelude::*;
use quire_engine::producer::{
    ProducerLimits, ProducerStates, Remembered, SequenceRefusal as Refusal, SnapshotError, Truncated, Verdict,
};
use quire_protocol::batch::{Numbering, ProducerIdentity};
use quire_protocol::frame::{Chain, Digest, FrameHeader};
use quire_protocol::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence, Timestamp};

const WINDOW: usize = 3;
const LIMITS: ProducerLimits = ProducerLimits { window: WINDOW, producers: 4, idle_ms: 100, expiry_ms: 1000 };

fn batch(id: u64, epoch: u16, base_sequence: u32, count: u32) -> Numbering {
    let producer = ProducerIdentity { id: ProducerId(id), epoch: ProducerEpoch(epoch) };
    Numbering { producer, base_sequence: Sequence(base_sequence), count }
}

fn frame(base_offset: u64, count: u32, append_time: i64) -> FrameHeader {
    FrameHeader {
        digest: Digest::Crc32c,
        is_compacted: false,
        batch_len: 100,
        base_offset: Offset(base_offset),
        last_offset_delta: count - 1,
        leader_epoch: LeaderEpoch(7),
        append_time: Timestamp(append_time),
        max_timestamp: Timestamp(0),
        durable_floor: Offset(0),
        chain: Chain([base_offset as u8; 32]),
        crc: 0,
    }
}

/// A partition that appends whatever it may.
#[derive(Clone)]
struct Partition {
    states: ProducerStates,
    log: Vec<(Numbering, FrameHeader)>,
    now: i64,
}

impl Partition {
    fn new() -> Partition {
        Partition { states: ProducerStates::new(LIMITS), log: Vec::new(), now: 0 }
    }

    fn end(&self) -> u64 {
        self.log.last().map_or(0, |(_, frame)| frame.next_offset().0)
    }

    fn append(&mut self, batch: Numbering) {
        let frame = frame(self.end(), batch.count, self.now);
        self.states.appended(&batch, &frame);
        self.log.push((batch, frame));
    }

    fn produce(&mut self, batch: Numbering) -> Result<Verdict, Refusal> {
        let verdict = self.states.admit(Timestamp(self.now), &batch);
        if verdict == Ok(Verdict::Append) {
            self.append(batch);
        }
        self.states.settle();
        verdict
    }

    fn duplicate_of(&self, index: usize) -> Result<Verdict, Refusal> {
        let (batch, frame) = &self.log[index];
        Ok(Verdict::Duplicate(Remembered {
            base_sequence: batch.base_sequence,
            count: batch.count,
            base_offset: frame.base_offset,
            append_time: frame.append_time,
            leader_epoch: frame.leader_epoch,
            chain: frame.chain,
        }))
    }
}

fn out_of_order(id: u64, expected: u32, found: u32) -> Result<Verdict, Refusal> {
    let (expected, found) = (Sequence(expected), Sequence(found));
    Err(Refusal::OutOfOrder { producer: ProducerId(id), expected, found })
}

fn forgotten(id: u64, expected: u32, found: u32) -> Result<Verdict, Refusal> {
    let (expected, found) = (Sequence(expected), Sequence(found));
    Err(Refusal::Forgotten { producer: ProducerId(id), expected, found })
}

#[test]
fn a_batch_sent_again_is_answered_with_where_it_is() {
    let mut partition = Partition::new();
    for (base, count) in [(0, 5), (5, 1), (6, 10)] {
        assert_eq!(partition.produce(batch(1, 0, base, count)), Ok(Verdict::Append));
    }
    for (index, (base, count)) in [(0, 5), (5, 1), (6, 10)].into_iter().enumerate() {
        assert_eq!(partition.produce(batch(1, 0, base, count)), partition.duplicate_of(index));
    }
    assert_eq!(
        partition.produce(batch(1, 0, 6, 9)),
        forgotten(1, 16, 6),
        "another batch under an old number"
    );
    assert_eq!(partition.log.len(), 3);
}

#[test]
fn a_gap_is_refused_and_what_was_skipped_may_still_come() {
    let mut partition = Partition::new();
    assert_eq!(partition.produce(batch(1, 0, 0, 5)), Ok(Verdict::Append));
    assert_eq!(partition.produce(batch(1, 0, 6, 1)), out_of_order(1, 5, 6));
    assert_eq!(partition.produce(batch(1, 0, 5, 1)), Ok(Verdict::Append));
    assert_eq!(partition.produce(batch(1, 0, 6, 1)), Ok(Verdict::Append));
}

#[test]
fn what_fell_out_of_the_window_is_an_error_and_no_duplicate() {
    let mut partition = Partition::new();
    (0..5).for_each(|base| drop(partition.produce(batch(1, 0, base, 1))));
    assert_eq!(partition.produce(batch(1, 0, 1, 1)), forgotten(1, 5, 1));
    assert_eq!(partition.produce(batch(1, 0, 2, 1)), partition.duplicate_of(2));
    assert_eq!(partition.log.len(), 5);
}

#[test]
fn a_later_epoch_begins_anew_and_shuts_out_the_earlier() {
    let mut partition = Partition::new();
    let _ = partition.produce(batch(1, 0, 0, 5));
    assert_eq!(partition.produce(batch(1, 1, 5, 1)), out_of_order(1, 0, 5), "not in the middle");
    assert_eq!(partition.produce(batch(1, 1, 0, 1)), Ok(Verdict::Append));
    let fenced =
        Err(Refusal::Fenced { producer: ProducerId(1), current: ProducerEpoch(1), found: ProducerEpoch(0) });
    assert_eq!(partition.produce(batch(1, 0, 5, 1)), fenced);
    assert_eq!(partition.produce(batch(1, 0, 0, 5)), fenced, "also what is in the log");
}

#[test]
fn an_unknown_producer_begins_at_zero() {
    let mut partition = Partition::new();
    let unknown = Err(Refusal::UnknownProducer { producer: ProducerId(1), found: Sequence(9) });
    assert_eq!(partition.produce(batch(1, 0, 9, 1)), unknown);
    assert_eq!(partition.produce(batch(1, 4, 0, 1)), Ok(Verdict::Append), "in whatever epoch");
}

#[test]
fn numbers_go_on_at_zero_after_the_largest() {
    let mut partition = Partition::new();
    let last = i32::MAX as u32 - 2;
    partition.append(batch(1, 0, last - 10, 10));
    assert_eq!(partition.produce(batch(1, 0, last, 5)), Ok(Verdict::Append), "over the end");
    assert_eq!(partition.produce(batch(1, 0, 2, 1)), Ok(Verdict::Append));
    assert_eq!(partition.produce(batch(1, 0, last, 5)), partition.duplicate_of(1));
    assert_eq!(partition.produce(batch(1, 0, 4, 1)), out_of_order(1, 3, 4));
    assert_eq!(partition.produce(batch(1, 0, last - 20, 10)), forgotten(1, 3, last - 20));
}

/// Batches of one write are judged before any of them is in the log. If it fails, they can all be sent again.
#[test]
fn batches_that_are_about_to_be_appended_count_and_are_withdrawn_together() {
    let mut states = ProducerStates::new(LIMITS);
    let now = Timestamp(0);
    assert_eq!(states.admit(now, &batch(1, 0, 0, 5)), Ok(Verdict::Append));
    assert_eq!(states.admit(now, &batch(1, 0, 5, 1)), Ok(Verdict::Append));
    assert_eq!(
        states.admit(now, &batch(1, 0, 0, 5)),
        Ok(Verdict::Undecided),
        "where it will be is not known"
    );
    assert_eq!(states.admit(now, &batch(1, 0, 9, 1)), Ok(Verdict::Undecided));
    assert_eq!(states.admit(now, &batch(2, 0, 0, 1)), Ok(Verdict::Append), "others do not depend on it");
    states.settle();
    assert!(states.is_empty());
    assert_eq!(states.admit(now, &batch(1, 0, 0, 5)), Ok(Verdict::Append));
}

#[test]
fn what_is_cut_off_was_never_appended() {
    let mut partition = Partition::new();
    (0..3).for_each(|base| drop(partition.produce(batch(1, 0, base, 1))));
    let _ = partition.produce(batch(2, 0, 0, 1));
    assert_eq!(partition.states.truncate(Offset(1)), Truncated::Exact);
    partition.log.truncate(1);
    assert_eq!(partition.states.len(), 1, "the second producer was never here");
    assert_eq!(partition.produce(batch(1, 0, 2, 1)), out_of_order(1, 1, 2));
    assert_eq!(partition.produce(batch(1, 0, 1, 1)), Ok(Verdict::Append));
    assert_eq!(partition.produce(batch(1, 0, 0, 1)), partition.duplicate_of(0));
}

/// All that is remembered may be cut off at once: a whole window of a leader that was cut off itself. What comes next is
/// known all the same.
#[test]
fn a_whole_window_can_be_cut_off() {
    let mut partition = Partition::new();
    (0..5).for_each(|base| drop(partition.produce(batch(1, 0, base, 1))));
    assert_eq!(partition.states.truncate(Offset(2)), Truncated::Exact);
    assert_eq!(partition.produce(batch(1, 0, 3, 1)), out_of_order(1, 2, 3));
    assert_eq!(partition.produce(batch(1, 0, 1, 1)), forgotten(1, 2, 1));
    partition.log.truncate(2);
    assert_eq!(partition.produce(batch(1, 0, 2, 1)), Ok(Verdict::Append));
}

#[test]
fn what_is_cut_off_beyond_the_window_asks_for_the_log() {
    let mut partition = Partition::new();
    (0..5).for_each(|base| drop(partition.produce(batch(1, 0, base, 1))));
    assert_eq!(partition.states.truncate(Offset(1)), Truncated::Rebuild);
    assert_eq!(partition.produce(batch(1, 0, 1, 1)), forgotten(1, 2, 1), "refused rather than guessed");
}

/// A window was cut off, and then the batch before it, of which nothing was remembered any more: the number that came next
/// was taken for the one after a batch that was not there, and appended with a gap.
#[test]
fn a_second_cut_below_the_window_asks_for_the_log() {
    let mut partition = Partition::new();
    (0..4).for_each(|base| drop(partition.produce(batch(1, 0, base, 1))));
    assert_eq!(partition.states.truncate(Offset(1)), Truncated::Exact);
    assert_eq!(partition.states.truncate(Offset(0)), Truncated::Rebuild);
}

/// A zombie's batches of an epoch that was left stay out, also if the first batch of the later one was cut off.
#[test]
fn an_epoch_outlives_the_batch_that_began_it() {
    let mut partition = Partition::new();
    let _ = partition.produce(batch(1, 0, 0, 1));
    let _ = partition.produce(batch(1, 1, 0, 1));
    assert_eq!(partition.states.truncate(Offset(1)), Truncated::Exact);
    partition.log.truncate(1);
    assert!(matches!(partition.produce(batch(1, 0, 1, 1)), Err(Refusal::Fenced { .. })));
    assert_eq!(partition.produce(batch(1, 1, 0, 1)), Ok(Verdict::Append));
}

/// KAFKA-5793: retention took the records, then the producer's state with them, and the next batch was refused. Here the
/// log start is none of this module's business; time is.
#[test]
fn producers_age_by_time_and_not_by_retention() {
    let mut partition = Partition::new();
    (0..3).for_each(|base| drop(partition.produce(batch(1, 0, base, 1))));
    partition.states.expire(Timestamp(99));
    assert_eq!(partition.produce(batch(1, 0, 0, 1)), partition.duplicate_of(0));
    partition.states.expire(Timestamp(100));
    assert_eq!(partition.produce(batch(1, 0, 1, 1)), forgotten(1, 3, 1), "it resends nothing after so long");
    assert_eq!(partition.produce(batch(1, 0, 2, 1)), partition.duplicate_of(2), "the last one stays");
    partition.states.expire(Timestamp(999));
    assert_eq!(partition.states.len(), 1);
    partition.states.expire(Timestamp(1000));
    assert!(partition.states.is_empty());
    assert!(matches!(partition.produce(batch(1, 0, 3, 1)), Err(Refusal::UnknownProducer { .. })));
}

#[test]
fn a_new_producer_takes_the_place_of_an_idle_one_and_of_no_other() {
    let mut partition = Partition::new();
    for id in 0..4 {
        partition.now = id as i64;
        assert_eq!(partition.produce(batch(id, 0, 0, 1)), Ok(Verdict::Append));
    }
    partition.now = 99;
    let refused = Err(Refusal::TooManyProducers { limit: 4 });
    assert_eq!(partition.produce(batch(9, 0, 0, 1)), refused, "each may still send again");
    partition.now = 100;
    assert_eq!(partition.produce(batch(9, 0, 0, 1)), Ok(Verdict::Append));
    assert_eq!(partition.produce(batch(8, 0, 0, 1)), refused);
    assert!(matches!(partition.produce(batch(0, 0, 1, 1)), Err(Refusal::UnknownProducer { .. })));
    partition.append(batch(7, 0, 0, 1));
    assert_eq!(partition.states.len(), 4, "what the log says counts, and the limit holds");
}

#[test]
fn a_snapshot_of_the_first_version_is_read_for_ever() {
    let mut partition = Partition::new();
    let _ = partition.produce(batch(0x0102, 3, 0, 5));
    let _ = partition.produce(batch(0x0102, 3, 5, 2));
    let mut frozen = vec![1, 1, 0, 0, 0];
    frozen.extend([2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    frozen.extend([5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0]);
    frozen.extend([0; 32]);
    frozen.extend([2, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0]);
    frozen.extend([5; 32]);
    assert_eq!(partition.states.encode(), frozen);
    assert_eq!(ProducerStates::decode(&frozen, LIMITS), Ok(partition.states));
    frozen[0] = 2;
    assert_eq!(ProducerStates::decode(&frozen, LIMITS), Err(SnapshotError::Version(2)));
}

/// Without the rule, what was appended is appended again: the simulator must notice.
#[cfg(feature = "mutants")]
#[test]
fn the_rule_can_be_left_out() {
    use quire_engine::mutant::{self, Mutant};
    let mut partition = Partition::new();
    let _ = partition.produce(batch(1, 0, 0, 1));
    mutant::set(Some(Mutant::DedupeWindow));
    assert_eq!(partition.produce(batch(1, 0, 0, 1)), Ok(Verdict::Append));
    mutant::set(None);
    assert_eq!(partition.log.len(), 2);
}

#[derive(Debug, Clone)]
enum Step {
    /// The producer's next batch.
    Next { id: u64, count: u32 },
    /// One that was made before, by how long ago.
    Again { id: u64, back: usize },
    /// The next batch but one: the next one is lost.
    Skip { id: u64 },
    /// The producer goes on in another epoch.
    Bump { id: u64 },
    /// So many frames are cut off.
    Truncate { frames: usize },
    /// A start: from a snapshot that knows all but the last frames, and those frames.
    Restart { behind: usize },
    /// A start without a snapshot.
    Rebuild,
}

fn step() -> impl Strategy<Value = Step> {
    let id = 0u64..3;
    prop_oneof![
        6 => (id.clone(), 1u32..4).prop_map(|(id, count)| Step::Next { id, count }),
        4 => (id.clone(), 0usize..6).prop_map(|(id, back)| Step::Again { id, back }),
        1 => id.clone().prop_map(|id| Step::Skip { id }),
        1 => id.prop_map(|id| Step::Bump { id }),
        1 => (0usize..4).prop_map(|frames| Step::Truncate { frames }),
        1 => (0usize..8).prop_map(|behind| Step::Restart { behind }),
        1 => Just(Step::Rebuild),
    ]
}

/// One client: every batch that it made in its epoch, in order, whether it arrived or not.
#[derive(Default)]
struct Client {
    epoch: u16,
    made: Vec<Numbering>,
}

impl Client {
    fn next(&mut self, id: u64, count: u32) -> Numbering {
        let base = self.made.last().map_or(Sequence::ZERO, Numbering::next_sequence);
        let made = batch(id, self.epoch, base.0, count);
        self.made.push(made);
        made
    }
}

/// Rebuilt as a start does: from what a snapshot knew, and every frame from there on.
fn restarted(log: &[(Numbering, FrameHeader)], behind: usize) -> ProducerStates {
    let known = log.len().saturating_sub(behind);
    let mut before = ProducerStates::new(LIMITS);
    log[..known].iter().for_each(|(batch, frame)| before.appended(batch, frame));
    let mut states = ProducerStates::decode(&before.encode(), LIMITS).expect("just encoded");
    // Some that the snapshot knows are seen again.
    log[known.saturating_sub(2)..].iter().for_each(|(batch, frame)| states.appended(batch, frame));
    states
}

proptest! {
    /// Whatever is sent again, lost, cut off or restarted: no batch is in the log twice, none without the one before it,
    /// a duplicate is told where it really is, and what was never appended is never told to be.
    #[test]
    fn nothing_is_appended_twice_and_nothing_out_of_order(steps in proptest::collection::vec(step(), 1..200)) {
        let mut partition = Partition::new();
        let mut clients: BTreeMap<u64, Client> = BTreeMap::new();
        for step in steps {
            let (sent, is_next) = match step {
                Step::Next { id, count } => (clients.entry(id).or_default().next(id, count), true),
                Step::Skip { id } => {
                    let client = clients.entry(id).or_default();
                    client.next(id, 1);
                    (client.next(id, 1), false)
                }
                Step::Again { id, back } => {
                    let made = &clients.entry(id).or_default().made;
                    let Some(at) = made.len().checked_sub(1 + back) else { continue };
                    (made[at], false)
                }
                Step::Bump { id } => {
                    let client = clients.entry(id).or_default();
                    *client = Client { epoch: client.epoch + 1, made: Vec::new() };
                    continue;
                }
                Step::Truncate { frames } => {
                    let left = partition.log.len().saturating_sub(frames);
                    let to = partition.log.get(left).map_or(partition.end(), |(_, frame)| frame.base_offset.0);
                    partition.log.truncate(left);
                    if partition.states.truncate(Offset(to)) == Truncated::Rebuild {
                        partition.states = restarted(&partition.log, usize::MAX);
                    }
                    continue;
                }
                Step::Restart { behind } => {
                    partition.states = restarted(&partition.log, behind);
                    continue;
                }
                Step::Rebuild => {
                    partition.states = restarted(&partition.log, usize::MAX);
                    continue;
                }
            };
            let there = partition.log.iter().position(|(batch, _)| *batch == sent);
            let of_it: Vec<_> = partition.log.iter().filter(|(b, _)| b.producer.id == sent.producer.id).collect();
            let last = of_it.last().map(|(batch, _)| *batch);
            let verdict = partition.produce(sent);
            let follows = last.map_or(sent.base_sequence == Sequence::ZERO, |last| {
                match last.producer.epoch == sent.producer.epoch {
                    true => last.next_sequence() == sent.base_sequence,
                    false => last.producer.epoch < sent.producer.epoch && sent.base_sequence == Sequence::ZERO,
                }
            });
            match verdict {
                Ok(Verdict::Append) => prop_assert!(there.is_none() && follows, "{sent:?} after {last:?}"),
                Ok(Verdict::Duplicate(_)) => {
                    let there = there.expect("a duplicate is in the log");
                    prop_assert_eq!(verdict.clone(), partition.duplicate_of(there));
                }
                Ok(Verdict::Undecided) => prop_assert!(false, "nothing was admitted before"),
                Err(Refusal::OutOfOrder { .. } | Refusal::UnknownProducer { .. }) => {
                    prop_assert!(there.is_none() && !follows);
                }
                // Its own epoch, which a truncation may have taken out of the log.
                Err(Refusal::Fenced { .. }) => prop_assert!(!is_next || there.is_none()),
                Err(Refusal::Forgotten { .. }) => prop_assert!(there.is_some(), "{sent:?}"),
                Err(Refusal::TooManyProducers { .. }) => prop_assert!(false, "three fit"),
            }
            prop_assert!(!(follows && there.is_none()) || verdict == Ok(Verdict::Append), "{sent:?}: {verdict:?}");
            // Whatever a client may have unanswered is remembered, unless a truncation took some of it back.
            let round = ProducerStates::decode(&partition.states.encode(), LIMITS);
            prop_assert_eq!(round.as_ref(), Ok(&partition.states));
        }
    }

    /// A client with at most a window unanswered never meets a forgotten batch, whatever is restarted.
    #[test]
    fn whatever_may_be_sent_again_is_remembered(counts in proptest::collection::vec(1u32..5, 1..40), behind in 0usize..50) {
        let mut partition = Partition::new();
        let mut client = Client::default();
        for count in counts {
            let next = client.next(1, count);
            prop_assert_eq!(partition.produce(next), Ok(Verdict::Append));
        }
        partition.states = restarted(&partition.log, behind);
        for index in partition.log.len().saturating_sub(WINDOW)..partition.log.len() {
            let sent = partition.log[index].0;
            prop_assert_eq!(partition.produce(sent), partition.duplicate_of(index));
        }
    }

    #[test]
    fn any_bytes_are_a_snapshot_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = ProducerStates::decode(&bytes, LIMITS);
    }

    #[test]
    fn a_damaged_snapshot_is_an_error_or_within_limits(at in 0usize..1000, to: u8, cut in 0usize..1000) {
        let mut partition = Partition::new();
        for id in 0..3 {
            (0..3).for_each(|base| drop(partition.produce(batch(id, 0, base, 1))));
        }
        let mut bytes = partition.states.encode();
        let length = bytes.len();
        bytes[at % length] = to;
        if let Ok(states) = ProducerStates::decode(&bytes, LIMITS) {
            prop_assert!(states.len() <= LIMITS.producers);
            prop_assert_eq!(ProducerStates::decode(&states.encode(), LIMITS), Ok(states));
        }
        let cut = cut % length;
        prop_assert!(ProducerStates::decode(&bytes[..cut], LIMITS).is_err());
    }
}
