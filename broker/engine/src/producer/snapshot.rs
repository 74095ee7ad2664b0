//! The state as it is stored beside a log, so that a start need not read the whole log.
//!
//! ```text
//! 0   1           5
//! | v | producers | id  epoch  next  appended  n | count  base    append  leader  chain | …
//! | 1 | u32       | u64 u16    u32   i64       u8| u32    offset  time    epoch   32    |
//! |   |           |                              |        u64     i64     u32           |
//! ```
//! Little-endian; producers by their ids, their batches oldest first. A batch's own number is not stored: numbers have no
//! gap, so it follows from `next`. The storage seals the file and knows up to which offset it goes.

use std::collections::{BTreeMap, VecDeque};

use quire_protocol::frame::Chain;
use quire_protocol::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence, Timestamp, limits};

use super::{Producer, ProducerLimits, ProducerStates, Remembered};

const VERSION: u8 = 1;
const HEAD_LEN: usize = 5;
const PRODUCER_LEN: usize = 23;
const BATCH_LEN: usize = 56;
const WINDOW_MAX: usize = limits::PRODUCE_WINDOW_BATCHES as usize;

/// Longest snapshot (bytes).
const LEN_MAX: usize = HEAD_LEN + limits::PRODUCERS_PER_PARTITION * (PRODUCER_LEN + WINDOW_MAX * BATCH_LEN);

const _: () = assert!(WINDOW_MAX <= u8::MAX as usize && LEN_MAX <= limits::PRODUCER_SNAPSHOT_BYTES_MAX);

/// Bytes that are no snapshot. The state is built from the log then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Fewer bytes than it says, or more.
    #[error("the producers' snapshot has another length than it says")]
    Length,
    /// Another version's.
    #[error("the producers' snapshot has version {0}, expected {VERSION}")]
    Version(u8),
    /// A value that none has.
    #[error("the producers' snapshot has an impossible {0}")]
    Field(&'static str),
}

impl ProducerStates {
    /// The state as it is stored. What is admitted and not appended is not in the log, and not in here.
    pub fn encode(&self) -> Vec<u8> {
        let batches: usize = self.producers.values().map(|producer| producer.batches.len()).sum();
        let length = HEAD_LEN + self.producers.len() * PRODUCER_LEN + batches * BATCH_LEN;
        let mut out = Vec::with_capacity(length);
        out.push(VERSION);
        out.extend_from_slice(&(self.producers.len() as u32).to_le_bytes());
        for (id, producer) in &self.producers {
            out.extend_from_slice(&id.0.to_le_bytes());
            out.extend_from_slice(&producer.epoch.0.to_le_bytes());
            out.extend_from_slice(&producer.next.0.to_le_bytes());
            out.extend_from_slice(&producer.appended_at.0.to_le_bytes());
            out.push(producer.batches.len() as u8);
            for batch in &producer.batches {
                out.extend_from_slice(&batch.count.to_le_bytes());
                out.extend_from_slice(&batch.base_offset.0.to_le_bytes());
                out.extend_from_slice(&batch.append_time.0.to_le_bytes());
                out.extend_from_slice(&batch.leader_epoch.0.to_le_bytes());
                out.extend_from_slice(&batch.chain.0);
            }
        }
        debug_assert_eq!(out.len(), length);
        out
    }

    /// The state of a snapshot.
    ///
    /// # Errors
    /// If the bytes are none. Nothing is allocated that they do not fill.
    pub fn decode(bytes: &[u8], limits: ProducerLimits) -> Result<ProducerStates, SnapshotError> {
        let mut fields = Fields(bytes);
        let version = fields.take::<1>()?[0];
        if version != VERSION {
            return Err(SnapshotError::Version(version));
        }
        let count = fields.u32()? as usize;
        if count > limits::PRODUCERS_PER_PARTITION {
            return Err(SnapshotError::Field("number of producers"));
        }
        let mut producers = BTreeMap::new();
        for _ in 0..count {
            let id = ProducerId(fields.u64()?);
            if id.0 > i64::MAX as u64 || producers.last_key_value().is_some_and(|(last, _)| *last >= id) {
                return Err(SnapshotError::Field("producer id"));
            }
            producers.insert(id, decode_producer(&mut fields)?);
        }
        if !fields.0.is_empty() {
            return Err(SnapshotError::Length);
        }
        let mut states = ProducerStates { limits, producers, admitted: BTreeMap::new() };
        states.keep_within_limits();
        Ok(states)
    }

    /// Whoever wrote it may have been told to remember more.
    fn keep_within_limits(&mut self) {
        let window = self.limits.window;
        for producer in self.producers.values_mut() {
            let superfluous = producer.batches.len().saturating_sub(window);
            producer.batches.drain(..superfluous);
        }
        self.keep_newest(self.limits.producers);
    }
}

fn decode_producer(fields: &mut Fields<'_>) -> Result<Producer, SnapshotError> {
    let epoch = ProducerEpoch(u16::from_le_bytes(fields.take()?));
    let next = Sequence(fields.u32()?);
    let appended_at = Timestamp(fields.u64()? as i64);
    let batches = usize::from(fields.take::<1>()?[0]);
    if epoch > ProducerEpoch::MAX || next > Sequence::MAX || batches > WINDOW_MAX {
        return Err(SnapshotError::Field("epoch, sequence or number of batches"));
    }
    let mut decoded = VecDeque::new();
    for _ in 0..batches {
        let batch = decode_batch(fields)?;
        let follows = |last: &Remembered| last.end() <= batch.base_offset;
        if !decoded.back().is_none_or(follows) {
            return Err(SnapshotError::Field("order of offsets"));
        }
        decoded.push_back(batch);
    }
    number_backwards(&mut decoded, next);
    Ok(Producer { epoch, next, batches: decoded, appended_at })
}

fn decode_batch(fields: &mut Fields<'_>) -> Result<Remembered, SnapshotError> {
    let count = fields.u32()?;
    let base_offset = Offset(fields.u64()?);
    if count == 0 || count as usize > limits::BATCH_RECORDS_MAX {
        return Err(SnapshotError::Field("number of records"));
    }
    if base_offset.checked_add(count.into()).is_none() {
        return Err(SnapshotError::Field("offset"));
    }
    Ok(Remembered {
        base_sequence: Sequence::ZERO,
        count,
        base_offset,
        append_time: Timestamp(fields.u64()? as i64),
        leader_epoch: LeaderEpoch(fields.u32()?),
        chain: Chain(fields.take()?),
    })
}

fn number_backwards(batches: &mut VecDeque<Remembered>, next: Sequence) {
    let mut end = next;
    for batch in batches.iter_mut().rev() {
        batch.base_sequence = end.minus(batch.count);
        end = batch.base_sequence;
    }
}

/// Takes fixed-width fields off the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], SnapshotError> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(SnapshotError::Length)?;
        self.0 = rest;
        Ok(*field)
    }

    fn u32(&mut self) -> Result<u32, SnapshotError> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, SnapshotError> {
        self.take().map(u64::from_le_bytes)
    }
}
