//! What records hold: a stamp, and bytes that do not compress, both known to whoever reads the record again.
//!
//! ```text
//! value   producer u32 | phase u32 | sequence u64 | time u64 (ns) | bytes of the slot that the sequence leads to …
//! ```
//! All fields are little-endian. Sizes, keys and slots follow from seed, producer and sequence, so that a record can be
//! checked to its last byte without keeping any. Values are lent to the producer and taken back: making a record costs
//! the writing of its stamp, whatever its size.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use quire_client::{Compression, Record};

use super::random::{hash, incompressible};
use super::size::RecordSize;

/// Length of the stamp (bytes); shorter records have none.
pub const STAMP_LEN: usize = 24;
/// Bytes of different slots where nothing is compressed: small enough to stay in the processor's cache.
const SLOTS_BYTES: usize = 256 * 1024;
/// Most bytes of slots where something is.
const SLOTS_BYTES_MAX: usize = 64 * 1024 * 1024;
const SLOTS_MIN: usize = 4;
const SLOTS_MAX: usize = 65_536;

/// What a record is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Phase {
    /// To be there before anything is measured.
    Prefill = 0,
    /// To warm up.
    WarmUp = 1,
    /// To be measured.
    Measured = 2,
}

/// What a record says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The number of its producer.
    pub producer: u32,
    /// What it is there for.
    pub phase: Phase,
    /// Its number among those of its producer, from 0.
    pub sequence: u64,
    /// When it was due, or handed over where nothing is due, by the load's own clock (nanoseconds).
    pub time_ns: u64,
}

impl Stamp {
    fn encode(self) -> [u8; STAMP_LEN] {
        let mut bytes = [0; STAMP_LEN];
        bytes[..4].copy_from_slice(&self.producer.to_le_bytes());
        bytes[4..8].copy_from_slice(&(self.phase as u32).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..].copy_from_slice(&self.time_ns.to_le_bytes());
        bytes
    }

    /// The stamp at the start of a value; `None` if there is none.
    pub fn decode(value: &[u8]) -> Option<Stamp> {
        let bytes: &[u8; STAMP_LEN] = value.first_chunk()?;
        let (words, _) = bytes.as_chunks::<8>();
        let [first, sequence, time] = [words[0], words[1], words[2]].map(u64::from_le_bytes);
        let phase = match first >> 32 {
            0 => Phase::Prefill,
            1 => Phase::WarmUp,
            2 => Phase::Measured,
            _ => return None,
        };
        Some(Stamp { producer: first as u32, phase, sequence, time_ns: time })
    }
}

/// What the contents of a run's records follow from.
#[derive(Debug, Clone)]
pub struct ContentSettings {
    /// Where everything random comes from.
    pub seed: u64,
    /// How large values are.
    pub size: RecordSize,
    /// Different keys; 0 for records without one.
    pub keys: u64,
    /// How batches are compressed: within one of them no bytes repeat.
    pub compression: Compression,
    /// Largest batch (bytes).
    pub batch_bytes: usize,
    /// Partitions among which a producer's records may be dealt out.
    pub partitions: u32,
}

/// The contents of a run's records.
#[derive(Debug)]
pub struct Contents {
    seed: u64,
    size: RecordSize,
    keys: Vec<Bytes>,
    /// Slots one after the other, each as long as the largest value.
    slots: Vec<u8>,
    slot_bytes: usize,
    slot_count: u64,
}

impl Contents {
    /// Draws everything that records are made of.
    pub fn new(settings: &ContentSettings) -> Contents {
        let slot_bytes = settings.size.max();
        let wanted = match settings.compression {
            Compression::None => SLOTS_BYTES,
            _ => {
                (2 * settings.batch_bytes * settings.partitions as usize).clamp(SLOTS_BYTES, SLOTS_BYTES_MAX)
            }
        };
        let slot_count = (wanted / slot_bytes).clamp(SLOTS_MIN, SLOTS_MAX);
        Contents {
            seed: settings.seed,
            size: settings.size.clone(),
            keys: (0..settings.keys).map(|key| Bytes::from(format!("key-{key:08}"))).collect(),
            slots: incompressible(slot_count * slot_bytes, settings.seed),
            slot_bytes,
            slot_count: slot_count as u64,
        }
    }

    /// Whether every record carries a stamp, and so can be checked and timed by whoever reads it.
    pub fn are_stamped(&self) -> bool {
        self.size.min() >= STAMP_LEN
    }

    /// The length of a record's value (bytes).
    pub fn value_len(&self, producer: u32, sequence: u64) -> usize {
        match self.size.is_fixed() {
            true => self.slot_bytes,
            false => self.size.pick(hash(self.seed ^ u64::from(producer), sequence)),
        }
    }

    /// A record's key.
    pub fn key(&self, producer: u32, sequence: u64) -> Option<&Bytes> {
        if self.keys.is_empty() {
            return None;
        }
        let random = hash(!self.seed ^ u64::from(producer), sequence);
        self.keys.get((random % self.keys.len() as u64) as usize)
    }

    /// Whether this is the record that its stamp says, to the last byte.
    pub fn is_intact(&self, stamp: Stamp, key: Option<&[u8]>, value: &[u8]) -> bool {
        let Stamp { producer, sequence, .. } = stamp;
        value.len() == self.value_len(producer, sequence)
            && key == self.key(producer, sequence).map(|key| &**key)
            && value[STAMP_LEN..] == self.slot(self.slot_of(producer, sequence))[STAMP_LEN..value.len()]
    }

    /// Producers begin at different slots.
    fn slot_of(&self, producer: u32, sequence: u64) -> usize {
        (sequence.wrapping_add(u64::from(producer).wrapping_mul(7)) % self.slot_count) as usize
    }

    fn slot(&self, slot: usize) -> &[u8] {
        &self.slots[slot * self.slot_bytes..][..self.slot_bytes]
    }
}

/// Makes the records of one producer.
#[derive(Debug)]
pub struct RecordMaker {
    contents: Arc<Contents>,
    /// Each slot's bytes, lent out while a producer holds them.
    slots: Vec<Bytes>,
}

impl RecordMaker {
    /// A maker with its own copy of every slot.
    pub fn new(contents: Arc<Contents>) -> RecordMaker {
        let copy = |slot: u64| writable(contents.slot(slot as usize)).freeze();
        RecordMaker { slots: (0..contents.slot_count).map(copy).collect(), contents }
    }

    /// The record with this stamp, and the bytes of its key and value.
    pub fn make(&mut self, stamp: Stamp) -> (Record, u64) {
        let Stamp { producer, sequence, .. } = stamp;
        let slot = self.contents.slot_of(producer, sequence);
        let length = self.contents.value_len(producer, sequence);
        let value = self.stamped(slot, length, stamp);
        let key = self.contents.key(producer, sequence).cloned();
        let bytes = length + key.as_ref().map_or(0, Bytes::len);
        (Record { key, value: Some(value), ..Record::default() }, bytes as u64)
    }

    fn stamped(&mut self, slot: usize, length: usize, stamp: Stamp) -> Bytes {
        if !self.contents.are_stamped() {
            return self.slots[slot].slice(..length);
        }
        let lent = std::mem::take(&mut self.slots[slot]);
        // Whoever keeps a value for longer keeps it alone.
        let mut bytes = lent.try_into_mut().unwrap_or_else(|_| writable(self.contents.slot(slot)));
        bytes[..STAMP_LEN].copy_from_slice(&stamp.encode());
        let whole = bytes.freeze();
        let value = whole.slice(..length);
        self.slots[slot] = whole;
        value
    }
}

/// A copy that is frozen and taken back without moving: shared from the start, which costs an allocation only once.
fn writable(bytes: &[u8]) -> BytesMut {
    let mut copy = BytesMut::from(bytes);
    drop(copy.split_off(bytes.len()));
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(size: &str, keys: u64) -> ContentSettings {
        ContentSettings {
            seed: 3,
            size: size.parse().expect(size),
            keys,
            compression: Compression::None,
            batch_bytes: 256 * 1024,
            partitions: 1,
        }
    }

    fn stamp(sequence: u64) -> Stamp {
        Stamp { producer: 5, phase: Phase::Measured, sequence, time_ns: 77 }
    }

    fn is_intact(contents: &Contents, record: &Record) -> bool {
        let value = record.value.as_deref().expect("it has one");
        let stamp = Stamp::decode(value).expect("it has one");
        contents.is_intact(stamp, record.key.as_deref(), value)
    }

    #[test]
    fn a_stamp_is_read_as_it_was_written() {
        for phase in [Phase::Prefill, Phase::WarmUp, Phase::Measured] {
            let stamp = Stamp { phase, ..stamp(u64::MAX - 1) };
            assert_eq!(Stamp::decode(&stamp.encode()), Some(stamp));
        }
        assert_eq!(Stamp::decode(&[0; STAMP_LEN - 1]), None);
        assert_eq!(Stamp::decode(&[9; STAMP_LEN]), None);
    }

    #[test]
    fn every_record_is_intact_and_any_other_byte_is_seen() {
        for (size, keys) in [("1KiB", 0), ("24..3000", 10), ("24", 1), ("100:9,70000:1", 0)] {
            let contents = Arc::new(Contents::new(&settings(size, keys)));
            let mut maker = RecordMaker::new(Arc::clone(&contents));
            for sequence in 0..1000 {
                let (record, bytes) = maker.make(stamp(sequence));
                assert!(is_intact(&contents, &record), "{size}: {sequence}");
                let lengths = [&record.key, &record.value].map(|part| part.as_ref().map_or(0, Bytes::len));
                assert_eq!(bytes as usize, lengths[0] + lengths[1]);
            }
        }
        let contents = Arc::new(Contents::new(&settings("100..200", 10)));
        let (record, _) = RecordMaker::new(Arc::clone(&contents)).make(stamp(1));
        let value = record.value.clone().expect("it has one").to_vec();
        for at in 24..value.len() {
            let mut altered = value.clone();
            altered[at] ^= 1;
            assert!(!is_intact(&contents, &Record { value: Some(altered.into()), ..record.clone() }), "{at}");
        }
        assert!(!is_intact(
            &contents,
            &Record { value: Some(value[..90].to_vec().into()), ..record.clone() }
        ));
        assert!(!is_intact(&contents, &Record { key: None, ..record }));
    }

    #[test]
    fn a_value_that_is_still_held_is_not_written_over() {
        let contents = Arc::new(Contents::new(&settings("64KiB", 0)));
        let mut maker = RecordMaker::new(Arc::clone(&contents));
        let held: Vec<_> = (0..20).map(|sequence| maker.make(stamp(sequence)).0).collect();
        for (sequence, record) in held.iter().enumerate() {
            let value = record.value.as_deref().expect("it has one");
            assert_eq!(Stamp::decode(value).map(|stamp| stamp.sequence), Some(sequence as u64));
            assert!(is_intact(&contents, record));
        }
    }

    #[test]
    fn a_value_that_came_back_is_used_again_without_a_copy() {
        let contents = Arc::new(Contents::new(&settings("64KiB", 0)));
        let mut maker = RecordMaker::new(Arc::clone(&contents));
        let address = |record: Record| record.value.map(|value| value.as_ptr() as usize);
        let first = address(maker.make(stamp(0)).0);
        assert_eq!(first, address(maker.make(stamp(contents.slot_count)).0));
    }

    #[test]
    fn records_too_small_for_a_stamp_are_bytes_alone() {
        let contents = Arc::new(Contents::new(&settings("8", 0)));
        assert!(!contents.are_stamped());
        let (record, bytes) = RecordMaker::new(contents).make(stamp(0));
        assert_eq!((record.value.map(|value| value.len()), bytes), (Some(8), 8));
    }

    #[test]
    fn what_is_compressed_repeats_in_no_batch() {
        let settings =
            ContentSettings { compression: Compression::Zstd, partitions: 8, ..settings("1KiB", 0) };
        let contents = Contents::new(&settings);
        assert_eq!(contents.slot_count, 4096);
    }
}
