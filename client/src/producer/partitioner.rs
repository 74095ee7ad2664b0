//! Which partition a record goes to.

use std::fmt;
use std::sync::Arc;

use quire_protocol::batch::Record;

/// Chooses a record's partition.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Partitioner {
    /// By murmur2 of the key, as Kafka's clients do, so that a key lands on the same partition from any client.
    /// Records without a key fill a batch of one partition, then of the next.
    #[default]
    KeyHash,
    /// One partition after the other, whatever the key.
    RoundRobin,
    /// By a function of the record and the partition count, whose result is taken modulo that count.
    Custom(Arc<PartitionFunction>),
}

/// Gives a number for a record of a topic with so many partitions.
pub type PartitionFunction = dyn Fn(&Record, u32) -> u32 + Send + Sync;

impl fmt::Debug for Partitioner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Partitioner::KeyHash => "KeyHash",
            Partitioner::RoundRobin => "RoundRobin",
            Partitioner::Custom(_) => "Custom",
        })
    }
}

/// Where a record may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// To this partition.
    Partition(u32),
    /// To the partition whose batch is being filled, or to the next one if that batch has left.
    Sticky,
    /// To the partition after the one before.
    Next,
}

impl Partitioner {
    /// `partitions` is not 0.
    pub(super) fn choose(&self, record: &Record, partitions: u32) -> Choice {
        match (self, &record.key) {
            (Partitioner::KeyHash, Some(key)) => Choice::Partition(partition_of_key(key, partitions)),
            (Partitioner::KeyHash, None) => Choice::Sticky,
            (Partitioner::RoundRobin, _) => Choice::Next,
            (Partitioner::Custom(function), _) => {
                Choice::Partition(function(record, partitions) % partitions)
            }
        }
    }
}

/// The partition that Kafka's default partitioner gives a key.
fn partition_of_key(key: &[u8], partitions: u32) -> u32 {
    (murmur2(key) & 0x7fff_ffff) % partitions
}

/// Murmur2 with the seed that Kafka uses.
fn murmur2(bytes: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;
    const SEED: u32 = 0x9747_b28c;
    let mut hash = SEED ^ bytes.len() as u32;
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (index, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_kafkas_clients() {
        // From Kafka's own test of its murmur2.
        let cases: [(&str, i32); 7] = [
            ("21", -973932308),
            ("foobar", -790332482),
            ("a-little-bit-long-string", -985981536),
            ("a-little-bit-longer-string", -1486304829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
            ("abc", 479470107),
            ("", 275646681),
        ];
        for (text, expected) in cases {
            assert_eq!(murmur2(text.as_bytes()) as i32, expected, "{text:?}");
        }
    }

    #[test]
    fn a_keys_partition_is_below_the_count_and_its_own() {
        for count in [1, 2, 7, 10_000] {
            for key in ["", "a", "abc", "21"] {
                assert!(partition_of_key(key.as_bytes(), count) < count);
            }
        }
        // toPositive(-973932308) = 1173551340
        assert_eq!(partition_of_key(b"21", 1000), 340);
    }

    #[test]
    fn keys_functions_and_neither_choose() {
        let keyed = Record { key: Some("21".into()), ..Record::default() };
        let plain = Record::default();
        assert_eq!(Partitioner::KeyHash.choose(&keyed, 1000), Choice::Partition(340));
        assert_eq!(Partitioner::KeyHash.choose(&plain, 3), Choice::Sticky);
        assert_eq!(Partitioner::RoundRobin.choose(&keyed, 3), Choice::Next);
        let beyond = Partitioner::Custom(Arc::new(|_, count| count + 1));
        assert_eq!(beyond.choose(&plain, 3), Choice::Partition(1));
    }
}
