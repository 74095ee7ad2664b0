//! Identifiers and positions, each its own type so that no two are confused.

use std::fmt;
use std::str::FromStr;

/// Names one topic for ever: a topic deleted and created again under the same name has a new id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicId(pub [u8; 16]);

impl TopicId {
    /// The broker's own metadata log, which is no user's topic.
    pub const METADATA: TopicId = TopicId([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

    /// Reads an id from exactly 16 bytes; `None` for any other length.
    pub fn from_slice(bytes: &[u8]) -> Option<TopicId> {
        bytes.try_into().ok().map(TopicId)
    }

    /// The 16 bytes as they are stored and sent.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TopicId({self})")
    }
}

/// A topic id was not 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a topic id: expected 32 hexadecimal digits")]
pub struct InvalidTopicId(String);

impl FromStr for TopicId {
    type Err = InvalidTopicId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidTopicId(text.chars().take(64).collect());
        if text.len() != 32 {
            return Err(invalid());
        }
        let digit = |at: usize| char::from(text.as_bytes()[at]).to_digit(16).ok_or_else(invalid);
        let mut id = [0u8; 16];
        for (index, byte) in id.iter_mut().enumerate() {
            *byte = (digit(2 * index)? << 4 | digit(2 * index + 1)?) as u8;
        }
        Ok(TopicId(id))
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A partition's number within its topic, from 0.
    PartitionIndex(u32)
}
number! {
    /// A broker's number within its cluster.
    BrokerId(u32)
}
number! {
    /// Counts the leaderships of one partition. At most `i32::MAX`, as Kafka's batches store it.
    LeaderEpoch(u32)
}
number! {
    /// A record's position in its partition, from 0. At most [`Offset::MAX`].
    Offset(u64)
}
number! {
    /// Milliseconds since 1970-01-01T00:00Z.
    Timestamp(i64)
}

impl Offset {
    /// The first record of a partition that has lost none.
    pub const ZERO: Offset = Offset(0);
    /// The largest offset that Kafka's signed field holds.
    pub const MAX: Offset = Offset(i64::MAX as u64);

    /// The offset `count` further on, or `None` beyond [`Offset::MAX`].
    pub fn checked_add(self, count: u64) -> Option<Offset> {
        self.0.checked_add(count).map(Offset).filter(|sum| *sum <= Offset::MAX)
    }

    /// How many offsets lie between `earlier` and this one; 0 if `earlier` is not earlier.
    pub fn since(self, earlier: Offset) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Timestamp {
    /// Kafka's mark for "no timestamp".
    pub const NONE: Timestamp = Timestamp(-1);
}

/// One partition of one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic.
    pub topic: TopicId,
    /// The partition's number in it.
    pub partition: PartitionIndex,
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_id_survives_its_text() {
        let id = TopicId([0xab; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("zz".repeat(16).parse::<TopicId>().is_err());
        assert!("ab".repeat(15).parse::<TopicId>().is_err());
        assert!("é".repeat(16).parse::<TopicId>().is_err());
        assert!("+a".repeat(16).parse::<TopicId>().is_err(), "a sign is no digit");
    }

    #[test]
    fn offsets_stop_at_kafkas_limit() {
        assert_eq!(Offset::MAX.checked_add(1), None);
        assert_eq!(Offset(5).checked_add(2), Some(Offset(7)));
        assert_eq!(Offset(5).since(Offset(9)), 0);
    }
}
