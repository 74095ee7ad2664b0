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
    /// A producer's number within its cluster, given out once. At most `i64::MAX`, as Kafka's batches store it.
    ProducerId(u64)
}
number! {
    /// Counts a producer's beginnings under one id: whoever goes on under a later one shuts out what is left of the
    /// earlier ones. At most [`ProducerEpoch::MAX`].
    ProducerEpoch(u16)
}
number! {
    /// A record's number among those that a producer sent to a partition in one epoch: from 0, and from 0 again after
    /// [`Sequence::MAX`].
    Sequence(u32)
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

impl ProducerEpoch {
    /// The largest epoch that Kafka's signed field holds.
    pub const MAX: ProducerEpoch = ProducerEpoch(i16::MAX as u16);

    /// The one after it, if the id has one left.
    pub fn next(self) -> Option<ProducerEpoch> {
        (self < ProducerEpoch::MAX).then_some(ProducerEpoch(self.0 + 1))
    }
}

impl Sequence {
    /// What every epoch begins with.
    pub const ZERO: Sequence = Sequence(0);
    /// The largest number that Kafka's signed field holds.
    pub const MAX: Sequence = Sequence(i32::MAX as u32);
    /// How many numbers there are.
    const ROUND: u32 = 1 << 31;

    /// The number `count` further on, at most one round.
    #[must_use]
    pub fn plus(self, count: u32) -> Sequence {
        debug_assert!(self <= Sequence::MAX && count <= Sequence::ROUND);
        Sequence(self.0.wrapping_add(count) % Sequence::ROUND)
    }

    /// The number `count` before, at most one round.
    #[must_use]
    pub fn minus(self, count: u32) -> Sequence {
        debug_assert!(self <= Sequence::MAX && count <= Sequence::ROUND);
        Sequence(self.0.wrapping_sub(count) % Sequence::ROUND)
    }

    /// How many numbers after `earlier` this one comes, the shorter way round; `None` if it comes before it.
    pub fn after(self, earlier: Sequence) -> Option<u32> {
        let distance = self.0.wrapping_sub(earlier.0) % Sequence::ROUND;
        (distance < Sequence::ROUND / 2).then_some(distance)
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
    fn sequences_begin_again_after_the_largest() {
        assert_eq!(Sequence::MAX.plus(1), Sequence::ZERO);
        assert_eq!(Sequence(i32::MAX as u32 - 1).plus(5), Sequence(3));
        assert_eq!(Sequence(3).minus(5), Sequence(i32::MAX as u32 - 1));
        assert_eq!(Sequence(3).after(Sequence::MAX), Some(4));
        assert_eq!(Sequence::MAX.after(Sequence(3)), None);
        assert_eq!(Sequence(7).after(Sequence(7)), Some(0));
        assert_eq!(Sequence(6).after(Sequence(7)), None);
    }

    #[test]
    fn offsets_stop_at_kafkas_limit() {
        assert_eq!(Offset::MAX.checked_add(1), None);
        assert_eq!(Offset(5).checked_add(2), Some(Offset(7)));
        assert_eq!(Offset(5).since(Offset(9)), 0);
    }
}
