//! What a partition remembers of its idempotent producers, so that a batch sent again is answered and not appended again.
//!
//! ```text
//!                      remembered, with their offsets
//!            forgotten │◄──── window ────►│ next
//!  sequences ──────────┴──────────────────┴──────────►
//!              Forgotten     Duplicate    Append   OutOfOrder
//! ```
//! A producer numbers its records, from 0 in each of its epochs and without a gap. Of each producer the last batches are
//! kept with where they were appended, as many as a client may have unanswered at once: whatever it may send again is
//! among them. The state follows from the log alone (each batch carries its numbers), so every replica builds the same
//! from the frames it appends, and a replica that begins to lead knows what its predecessor knew.
//!
//! It is kept beyond the records: retention moves the log start and changes nothing here, since a producer may send a batch
//! again whose records are gone already. A truncation does: what it cuts off was never appended.
//!
//! Nothing here asks for the time. Producers age by the append times of their batches, the leader's clock.

mod snapshot;

use std::collections::{BTreeMap, VecDeque};

use quire_protocol::batch::{BatchHeader, Numbering};
use quire_protocol::frame::{Chain, FrameHeader};
use quire_protocol::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence, Timestamp, limits};

use crate::mutant::{self, Mutant};

pub use snapshot::SnapshotError;

/// How much is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerLimits {
    /// Batches of each producer: what a client is granted to have unanswered.
    pub window: usize,
    /// Producers.
    pub producers: usize,
    /// A producer that appended nothing for so long (ms) keeps its last batch alone, and makes place for others.
    pub idle_ms: i64,
    /// A producer that appended nothing for so long (ms) is forgotten.
    pub expiry_ms: i64,
}

impl Default for ProducerLimits {
    fn default() -> ProducerLimits {
        ProducerLimits {
            window: limits::PRODUCE_WINDOW_BATCHES as usize,
            producers: limits::PRODUCERS_PER_PARTITION,
            idle_ms: limits::PRODUCER_IDLE_TIME.as_millis() as i64,
            expiry_ms: limits::PRODUCER_EXPIRY.as_millis() as i64,
        }
    }
}

/// Where a batch was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered {
    /// The number of its first record.
    pub base_sequence: Sequence,
    /// Its records.
    pub count: u32,
    /// The offset of its first record.
    pub base_offset: Offset,
    /// When it was appended, by the leader's clock.
    pub append_time: Timestamp,
    /// The leadership it was appended in.
    pub leader_epoch: LeaderEpoch,
    /// The chain up to and including it.
    pub chain: Chain,
}

impl Remembered {
    /// The offset after its last record: it is committed once the high watermark is there.
    pub fn end(&self) -> Offset {
        Offset(self.base_offset.0 + u64::from(self.count))
    }
}

/// What is to be done with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Append it.
    Append,
    /// It is in the log already. It is answered as it was then, once it is committed.
    Duplicate(Remembered),
    /// It depends on what becomes of batches that are about to be appended: ask again after that.
    Undecided,
}

/// Why a batch must not be appended. Whatever the reason, it was not appended by this request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SequenceRefusal {
    /// Its producer has gone on to a later epoch.
    #[error("producer {producer} is in epoch {current} now, the batch is of epoch {found}")]
    Fenced {
        /// The producer.
        producer: ProducerId,
        /// Its epoch.
        current: ProducerEpoch,
        /// The batch's.
        found: ProducerEpoch,
    },
    /// The producer's earlier batches are not known here, so neither is whether this one is there already.
    #[error("nothing is known of producer {producer}, whose batch begins with sequence {found}")]
    UnknownProducer {
        /// The producer.
        producer: ProducerId,
        /// The batch's first number.
        found: Sequence,
    },
    /// Batches before it are missing.
    #[error("producer {producer} sent sequence {found} where {expected} comes next")]
    OutOfOrder {
        /// The producer.
        producer: ProducerId,
        /// What comes next.
        expected: Sequence,
        /// The batch's first number.
        found: Sequence,
    },
    /// It was appended, so long ago that where is not remembered any more.
    #[error(
        "sequence {found} of producer {producer} was appended before, and where is forgotten; {expected} comes next"
    )]
    Forgotten {
        /// The producer.
        producer: ProducerId,
        /// What comes next.
        expected: Sequence,
        /// The batch's first number.
        found: Sequence,
    },
    /// As many producers as can be remembered have written within the idle time.
    #[error("{limit} producers have written to the partition lately, and no more can be remembered")]
    TooManyProducers {
        /// The limit.
        limit: usize,
    },
}

/// What a truncation left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Truncated {
    /// What the log that is left tells.
    Exact,
    /// More than was remembered of a producer was cut off: the state is to be built again from the log.
    Rebuild,
}

/// One producer in its current epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Producer {
    epoch: ProducerEpoch,
    next: Sequence,
    /// Oldest first, their numbers without a gap up to `next`.
    batches: VecDeque<Remembered>,
    /// When its last batch was appended.
    appended_at: Timestamp,
}

/// What comes next of a producer once its batches that were admitted are appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Expected {
    epoch: ProducerEpoch,
    next: Sequence,
}

/// A partition's producers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProducerStates {
    limits: ProducerLimits,
    producers: BTreeMap<ProducerId, Producer>,
    /// Of producers with batches that were admitted and are not appended yet.
    admitted: BTreeMap<ProducerId, Expected>,
}

impl ProducerStates {
    /// No producers.
    pub fn new(limits: ProducerLimits) -> ProducerStates {
        ProducerStates { limits, ..ProducerStates::default() }
    }

    /// How many producers are known.
    pub fn len(&self) -> usize {
        self.producers.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.producers.is_empty()
    }

    /// Judges a batch that is to be appended after those admitted before it. What is admitted is either appended
    /// ([`ProducerStates::appended`]) and then [settled](ProducerStates::settle), or was not appended and is only settled.
    ///
    /// # Errors
    /// If the batch must not be appended.
    pub fn admit(&mut self, now: Timestamp, batch: &Numbering) -> Result<Verdict, SequenceRefusal> {
        let id = batch.producer.id;
        let judged = match self.admitted.get(&id) {
            // Those before it may yet fail, and what they change is not known before they are in the log.
            Some(expected) => match judge(batch, *expected, None) {
                Ok(Verdict::Append) => Ok(Verdict::Append),
                _ => Ok(Verdict::Undecided),
            },
            None => match self.producers.get(&id) {
                Some(known) => {
                    judge(batch, Expected { epoch: known.epoch, next: known.next }, Some(&known.batches))
                }
                None => self.judge_unknown(now, batch),
            },
        };
        if judged == Ok(Verdict::Append) {
            let expected = Expected { epoch: batch.producer.epoch, next: batch.next_sequence() };
            self.admitted.insert(id, expected);
        }
        judged
    }

    fn judge_unknown(&self, now: Timestamp, batch: &Numbering) -> Result<Verdict, SequenceRefusal> {
        let (producer, found) = (batch.producer.id, batch.base_sequence);
        if found != Sequence::ZERO {
            return Err(SequenceRefusal::UnknownProducer { producer, found });
        }
        let new = self.admitted.keys().filter(|id| !self.producers.contains_key(id)).count();
        let limit = self.limits.producers;
        if self.producers.len() + new < limit {
            return Ok(Verdict::Append);
        }
        let idle_since = now.0.saturating_sub(self.limits.idle_ms);
        let idle = self.producers.values().filter(|known| known.appended_at.0 <= idle_since);
        // One for each of the new ones that were admitted, and one for this.
        if idle.take(new + 1).count() == new + 1 {
            return Ok(Verdict::Append);
        }
        Err(SequenceRefusal::TooManyProducers { limit })
    }

    /// Takes note of a frame at the end of the log, which holds `batch`: a leader's own, or one that a follower got. What
    /// the log says counts, whatever would have been admitted here.
    pub fn appended(&mut self, batch: &Numbering, frame: &FrameHeader) {
        let id = batch.producer.id;
        if !self.producers.contains_key(&id) {
            self.keep_newest(self.limits.producers.saturating_sub(1));
        }
        let producer = self.producers.entry(id).or_insert_with(|| Producer {
            epoch: batch.producer.epoch,
            next: batch.base_sequence,
            batches: VecDeque::new(),
            appended_at: frame.append_time,
        });
        // Frames that a snapshot knows of may be seen again after it.
        if producer.batches.back().is_some_and(|last| frame.base_offset < last.end()) {
            return;
        }
        if producer.epoch != batch.producer.epoch || producer.next != batch.base_sequence {
            producer.batches.clear();
            producer.epoch = batch.producer.epoch;
        }
        producer.next = batch.next_sequence();
        producer.appended_at = producer.appended_at.max(frame.append_time);
        producer.batches.push_back(Remembered {
            base_sequence: batch.base_sequence,
            count: batch.count,
            base_offset: frame.base_offset,
            append_time: frame.append_time,
            leader_epoch: frame.leader_epoch,
            chain: frame.chain,
        });
        if producer.batches.len() > self.limits.window {
            producer.batches.pop_front();
        }
    }

    /// Takes note of a frame as it is stored: its header and its batch. Batches without numbers are none of this
    /// partition's producers.
    pub fn replay(&mut self, frame: &FrameHeader, batch: &[u8]) {
        let header = BatchHeader::parse(batch);
        if let Ok(Some(numbering)) = header.and_then(|header| header.numbering()) {
            self.appended(&numbering, frame);
        }
    }

    /// What was admitted is appended or never will be.
    pub fn settle(&mut self) {
        self.admitted.clear();
    }

    /// The log was cut off at this offset, the beginning of a frame.
    pub fn truncate(&mut self, to: Offset) -> Truncated {
        let mut truncated = Truncated::Exact;
        self.producers.retain(|_, producer| {
            let mut lowest = None;
            while let Some(cut) = producer.batches.pop_back_if(|batch| batch.base_offset >= to) {
                lowest = Some(cut);
            }
            let Some(lowest) = lowest else {
                // Nothing of it is remembered since an earlier cut: whether this one took more, the log alone tells.
                if producer.batches.is_empty() && producer.next != Sequence::ZERO {
                    truncated = Truncated::Rebuild;
                }
                return true;
            };
            producer.next = lowest.base_sequence;
            if !producer.batches.is_empty() {
                return true;
            }
            let began_here = lowest.base_sequence == Sequence::ZERO;
            if !began_here && lowest.base_offset > to {
                truncated = Truncated::Rebuild;
            }
            // Who began with what was cut off was never here. One in a later epoch was, and is kept: what is left of its
            // earlier epochs stays shut out.
            !(began_here && producer.epoch == ProducerEpoch::default())
        });
        truncated
    }

    /// Forgets what is too old at this time.
    pub fn expire(&mut self, now: Timestamp) {
        let ProducerLimits { idle_ms, expiry_ms, .. } = self.limits;
        self.producers.retain(|_, producer| {
            let age = now.0.saturating_sub(producer.appended_at.0);
            if age >= idle_ms {
                let superfluous = producer.batches.len().saturating_sub(1);
                producer.batches.drain(..superfluous);
                producer.batches.shrink_to_fit();
            }
            age < expiry_ms
        });
    }

    /// Where this batch was appended, if it is remembered.
    pub fn remembered(&self, batch: &Numbering) -> Option<&Remembered> {
        let known = self.producers.get(&batch.producer.id)?;
        if known.epoch != batch.producer.epoch {
            return None;
        }
        find(&known.batches, batch)
    }

    /// Those that wrote longest ago go.
    fn keep_newest(&mut self, count: usize) {
        while self.producers.len() > count {
            let oldest = self.producers.iter().min_by_key(|(id, known)| (known.appended_at, **id));
            let Some(oldest) = oldest.map(|(id, _)| *id) else { return };
            self.producers.remove(&oldest);
        }
    }
}

fn judge(
    batch: &Numbering,
    expected: Expected,
    remembered: Option<&VecDeque<Remembered>>,
) -> Result<Verdict, SequenceRefusal> {
    let (producer, found) = (batch.producer.id, batch.base_sequence);
    let Expected { epoch: current, next } = expected;
    if batch.producer.epoch < current {
        return Err(SequenceRefusal::Fenced { producer, current, found: batch.producer.epoch });
    }
    let expected = if batch.producer.epoch > current { Sequence::ZERO } else { next };
    if found == expected {
        return Ok(Verdict::Append);
    }
    if batch.producer.epoch > current || found.after(expected).is_some() {
        return Err(SequenceRefusal::OutOfOrder { producer, expected, found });
    }
    if mutant::is_on(Mutant::DedupeWindow) {
        return Ok(Verdict::Append);
    }
    match remembered.and_then(|batches| find(batches, batch)) {
        Some(original) => Ok(Verdict::Duplicate(*original)),
        None => Err(SequenceRefusal::Forgotten { producer, expected, found }),
    }
}

/// The newest are asked for most.
fn find<'a>(batches: &'a VecDeque<Remembered>, batch: &Numbering) -> Option<&'a Remembered> {
    batches
        .iter()
        .rev()
        .find(|known| known.base_sequence == batch.base_sequence && known.count == batch.count)
}
