//! Gathers the records of one partition into batches.
//!
//! ```text
//! append ─► open batch ─(full, flushed)─► sealed batches ─► take
//!                └────────(may leave: linger over, or little on its way)───────┘
//! ```
//! Plain code under the partition's lock: an append encodes the record into the open batch and nothing else.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quire_protocol::batch::{BatchBuilder, Compression, Record};
use quire_protocol::topic_config::MessageTimestampType;
use quire_protocol::{PartitionIndex, Timestamp, limits};

use super::SendError;
use super::delivery::{Completer, Completion, Delivery};

/// When a batch is full, and how long one that is not waits.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchPolicy {
    pub linger: Duration,
    /// Encoded bytes, header included, at which a batch is full.
    pub full_bytes: usize,
    pub compression: Compression,
    pub timestamp_type: MessageTimestampType,
}

/// A batch whose records are all there.
#[derive(Debug)]
pub(super) struct SealedBatch {
    pub builder: BatchBuilder,
    pub completer: Completer,
    /// What its records took of the producer's memory (bytes).
    pub memory: usize,
    /// When its first record was accepted.
    pub begun_at: Instant,
}

/// What an append did.
#[derive(Debug)]
pub(super) struct Appended {
    pub delivery: Delivery,
    /// Whether there is something new for the sender to look at.
    pub wake: bool,
}

/// One partition's records on their way into batches.
#[derive(Debug)]
pub(super) struct Accumulator {
    topic: Arc<str>,
    partition: PartitionIndex,
    policy: BatchPolicy,
    open: Option<SealedBatch>,
    sealed: VecDeque<SealedBatch>,
    newest: Option<Arc<Completion>>,
    /// What the last batch grew to; the next one probably will too (bytes).
    usual_bytes: usize,
    /// Whether the producer has gone away, so that nobody would ever take what is appended.
    is_closed: bool,
}

impl Accumulator {
    pub(super) fn new(topic: Arc<str>, partition: PartitionIndex, policy: BatchPolicy) -> Accumulator {
        Accumulator {
            topic,
            partition,
            policy,
            open: None,
            sealed: VecDeque::new(),
            newest: None,
            usual_bytes: 0,
            is_closed: false,
        }
    }

    /// Batches opened from now on follow this.
    pub(super) fn set_policy(&mut self, policy: BatchPolicy) {
        self.policy = policy;
    }

    /// Whether a batch is open, so that a record without a key should join it.
    pub(super) fn has_open(&self) -> bool {
        self.open.is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_none() && self.sealed.is_empty()
    }

    /// Encodes a record into the open batch, or into a new one. `memory` is what it takes at most (bytes). The time is
    /// asked for only when a batch begins.
    pub(super) fn append(
        &mut self,
        record: &Record,
        memory: usize,
        timestamp: Timestamp,
        now: impl FnOnce() -> Instant,
    ) -> Result<Appended, SendError> {
        if self.is_closed {
            return Err(SendError::Closed);
        }
        let full_bytes = self.policy.full_bytes;
        let is_full = |batch: &SealedBatch| {
            batch.builder.encoded_len() + memory > full_bytes
                || batch.builder.len() == limits::BATCH_RECORDS_MAX
        };
        let mut wake = false;
        if self.open.as_ref().is_some_and(is_full) {
            self.seal();
            wake = true;
        }
        let mut batch = match self.open.take() {
            Some(batch) => batch,
            None => {
                wake = true;
                self.new_batch(now())
            }
        };
        let index = batch.builder.len() as u32;
        if let Err(error) = batch.builder.push(record, timestamp) {
            // A batch that was made for this record alone goes with it.
            self.open = (index > 0).then_some(batch);
            return Err(error.into());
        }
        batch.memory += memory;
        let timestamp = record.timestamp.unwrap_or(timestamp);
        let delivery = Delivery::new(Arc::clone(batch.completer.completion()), index, timestamp);
        if index == 0 {
            self.newest = Some(Arc::clone(batch.completer.completion()));
        }
        // Full when not even the smallest record would fit.
        let is_full = batch.builder.encoded_len() + 16 > full_bytes;
        self.open = Some(batch);
        if is_full {
            self.seal();
            wake = true;
        }
        Ok(Appended { delivery, wake })
    }

    /// The next batch to leave: a sealed one; or the open one if it has lingered, or need not and `is_idle` says that
    /// little enough is on its way.
    pub(super) fn take(&mut self, now: Instant, is_idle: bool) -> Option<SealedBatch> {
        if let Some(batch) = self.sealed.pop_front() {
            return Some(batch);
        }
        let may_leave = match self.linger_end() {
            Some(end) => now >= end,
            None => is_idle,
        };
        if may_leave { self.close_open() } else { None }
    }

    /// Lets the open batch leave as if it were full, and gives the last batch there was, which ends after all others.
    pub(super) fn flush(&mut self) -> Option<Arc<Completion>> {
        self.seal();
        self.newest.clone()
    }

    /// When to look again although nothing was appended: the open batch's linger ends.
    pub(super) fn linger_end(&self) -> Option<Instant> {
        let linger = self.policy.linger;
        self.open.as_ref().filter(|_| !linger.is_zero()).map(|batch| batch.begun_at + linger)
    }

    /// When the oldest record was accepted.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.sealed.front().or(self.open.as_ref()).map(|batch| batch.begun_at)
    }

    /// Takes out every batch begun at this time or before it.
    pub(super) fn take_begun_until(&mut self, time: Instant) -> Vec<SealedBatch> {
        let mut taken = Vec::new();
        while self.oldest().is_some_and(|begun_at| begun_at <= time) {
            taken.extend(self.sealed.pop_front().or_else(|| self.close_open()));
        }
        taken
    }

    /// Takes out every batch.
    pub(super) fn drain(&mut self) -> Vec<SealedBatch> {
        self.seal();
        self.sealed.drain(..).collect()
    }

    /// Takes out every batch, and refuses further records.
    pub(super) fn close(&mut self) -> Vec<SealedBatch> {
        self.is_closed = true;
        self.drain()
    }

    fn seal(&mut self) {
        let closed = self.close_open();
        self.sealed.extend(closed);
    }

    fn close_open(&mut self) -> Option<SealedBatch> {
        let batch = self.open.take()?;
        self.usual_bytes = batch.builder.encoded_len();
        Some(batch)
    }

    /// Room for the next batch: many partitions with little each take little memory, and a stream of full batches is
    /// not moved while each grows.
    fn room(&self) -> usize {
        self.usual_bytes.next_power_of_two().min(self.policy.full_bytes)
    }

    fn new_batch(&self, now: Instant) -> SealedBatch {
        let completion = Completion::new(Arc::clone(&self.topic), self.partition, self.policy.timestamp_type);
        SealedBatch {
            builder: BatchBuilder::with_capacity(self.policy.compression, self.room()),
            completer: Completer::new(completion),
            memory: 0,
            begun_at: now,
        }
    }
}

/// Most bytes `record` takes of a batch, that batch's header excluded.
pub(super) fn record_bytes(record: &Record) -> usize {
    BatchBuilder::record_len_max(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use proptest::prelude::*;
    use quire_protocol::stream::Ack;
    use quire_protocol::{Offset, batch::BatchHeader};

    fn accumulator(full_bytes: usize, linger: Duration) -> Accumulator {
        let policy = BatchPolicy {
            linger,
            full_bytes,
            compression: Compression::None,
            timestamp_type: MessageTimestampType::CreateTime,
        };
        Accumulator::new("t".into(), PartitionIndex(0), policy)
    }

    fn append(accumulator: &mut Accumulator, length: usize, now: Instant) -> Appended {
        let record = Record { value: Some(vec![0; length].into()), ..Record::default() };
        accumulator.append(&record, record_bytes(&record), Timestamp(1), || now).expect("it fits")
    }

    #[test]
    fn without_linger_a_batch_leaves_when_little_is_on_its_way() {
        let now = Instant::now();
        let mut accumulator = accumulator(10_000, Duration::ZERO);
        assert!(append(&mut accumulator, 10, now).wake, "the sender hears of a new batch");
        assert!(!append(&mut accumulator, 10, now).wake, "and not of every record");
        assert!(accumulator.take(now, false).is_none(), "it gathers while others are on their way");
        let batch = accumulator.take(now, true).expect("now it may leave");
        assert_eq!(batch.builder.len(), 2);
        assert!(accumulator.is_empty());
    }

    #[test]
    fn with_linger_a_batch_leaves_when_its_time_is_over() {
        let now = Instant::now();
        let linger = Duration::from_millis(5);
        let mut accumulator = accumulator(10_000, linger);
        let _ = append(&mut accumulator, 10, now);
        assert_eq!(accumulator.linger_end(), Some(now + linger));
        assert!(accumulator.take(now, true).is_none());
        assert!(accumulator.take(now + linger, false).is_some());
    }

    #[test]
    fn a_full_batch_leaves_at_once_and_a_large_record_travels_alone() {
        let now = Instant::now();
        let mut accumulator = accumulator(1_000, Duration::from_secs(1));
        let _ = append(&mut accumulator, 600, now);
        assert!(append(&mut accumulator, 5_000, now).wake);
        assert!(!accumulator.has_open(), "the large one fills its batch");
        let lengths: Vec<_> =
            std::iter::from_fn(|| accumulator.take(now, false)).map(|b| b.builder.len()).collect();
        assert_eq!(lengths, [1, 1]);
    }

    #[test]
    fn a_batch_gets_the_room_that_the_last_one_needed() {
        let now = Instant::now();
        let mut accumulator = accumulator(10_000, Duration::from_secs(1));
        assert!(accumulator.room() < 10, "nothing is known of the first");
        let _ = append(&mut accumulator, 700, now);
        accumulator.flush();
        assert_eq!(accumulator.room(), 1024);
        let _ = append(&mut accumulator, 9_900, now);
        accumulator.flush();
        assert_eq!(accumulator.room(), 10_000, "and never more than a full one");
    }

    #[test]
    fn a_flush_seals_and_names_the_last_batch() {
        let now = Instant::now();
        let mut accumulator = accumulator(1_000, Duration::from_secs(1));
        assert!(accumulator.flush().is_none());
        let delivery = append(&mut accumulator, 10, now).delivery;
        let newest = accumulator.flush().expect("a batch was there");
        let batch = accumulator.take(now, false).expect("sealed");
        assert!(Arc::ptr_eq(&newest, batch.completer.completion()));
        batch
            .completer
            .complete(Ok(Ack { base_offset: Offset(9), ..crate::producer::delivery::unacknowledged() }));
        assert_eq!(delivery.now_or_never().expect("done").expect("acknowledged").offset, Offset(9));
    }

    #[test]
    fn what_is_too_old_is_taken_out_oldest_first() {
        let start = Instant::now();
        let mut accumulator = accumulator(1_000, Duration::ZERO);
        for seconds in 0..4 {
            let _ = append(&mut accumulator, 980, start + Duration::from_secs(seconds));
        }
        let expired = accumulator.take_begun_until(start + Duration::from_secs(1));
        assert_eq!(expired.len(), 2);
        assert_eq!(accumulator.oldest(), Some(start + Duration::from_secs(2)));
    }

    #[test]
    fn a_record_that_can_not_be_encoded_leaves_no_batch_behind() {
        let mut accumulator = accumulator(1_000, Duration::ZERO);
        let headers = vec![quire_protocol::batch::Header { key: "h".into(), value: None }; 2000];
        let record = Record { headers, ..Record::default() };
        let refused = accumulator.append(&record, record_bytes(&record), Timestamp(1), Instant::now);
        assert!(refused.is_err() && accumulator.is_empty());
    }

    #[test]
    fn a_closed_accumulator_gives_back_what_it_has_and_takes_no_more() {
        let mut accumulator = accumulator(1_000, Duration::ZERO);
        let _ = append(&mut accumulator, 10, Instant::now());
        assert_eq!(accumulator.close().len(), 1);
        let refused = accumulator.append(&Record::default(), 20, Timestamp(1), Instant::now);
        assert!(matches!(refused, Err(SendError::Closed)));
    }

    proptest! {
        #[test]
        fn every_record_leaves_once_in_order_and_no_batch_is_overfull(
            lengths in proptest::collection::vec(0usize..3000, 1..200),
            idle in any::<u64>(),
        ) {
            let now = Instant::now();
            let full = 2000;
            let mut accumulator = accumulator(full, Duration::ZERO);
            let mut left = Vec::new();
            let mut memory = 0;
            for (number, length) in lengths.iter().enumerate() {
                let record = Record {
                    key: Some((number as u64).to_le_bytes().to_vec().into()),
                    value: Some(vec![0; *length].into()),
                    ..Record::default()
                };
                memory += record_bytes(&record);
                accumulator.append(&record, record_bytes(&record), Timestamp(1), || now).expect("it fits");
                left.extend(accumulator.take(now, idle >> (number % 64) & 1 == 1));
            }
            accumulator.flush();
            left.extend(std::iter::from_fn(|| accumulator.take(now, false)));
            prop_assert_eq!(left.iter().map(|batch| batch.memory).sum::<usize>(), memory);
            let mut next = 0u64;
            for batch in left {
                let records = batch.builder.len();
                prop_assert!(batch.builder.encoded_len() <= full || records == 1);
                let bytes = batch.builder.finish().expect("nothing to compress");
                let header = BatchHeader::check(&bytes).expect("just built");
                for record in quire_protocol::batch::Records::open(&header, &bytes).expect("plain") {
                    let key = record.expect("just built").key.expect("it has one");
                    prop_assert_eq!(key.as_ref(), &next.to_le_bytes());
                    next += 1;
                }
            }
            prop_assert_eq!(next, lengths.len() as u64);
        }
    }
}
