//! Why a partition can not be consumed, or no further.

use std::sync::Arc;

use quire_protocol::{ErrorCode, Offset, PartitionIndex};

use crate::error::Error;
use crate::metadata::TopicMetadata;
use crate::offsets::Refused;

/// Why a partition can not be consumed, or no further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumeError {
    /// Neither still there nor there yet.
    #[error(
        "offset {offset} of partition {partition} of \"{topic}\" is out of range: it holds {log_start} up to, but not including, {high_watermark}"
    )]
    OffsetOutOfRange {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: PartitionIndex,
        /// What was asked for.
        offset: Offset,
        /// The oldest offset still there.
        log_start: Offset,
        /// The first offset not yet committed.
        high_watermark: Offset,
    },
    /// The topic has no such partition.
    #[error("\"{topic}\" has partitions 0 to {}, not {partition}", .partitions.saturating_sub(1))]
    UnknownPartition {
        /// The topic.
        topic: Arc<str>,
        /// What was asked for.
        partition: PartitionIndex,
        /// How many it has.
        partitions: u32,
    },
    /// What the broker sent is damaged, or not what follows the record before. Nothing of it was handed on.
    #[error("partition {partition} of \"{topic}\" is damaged at offset {offset}: {why}")]
    CorruptFrame {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: PartitionIndex,
        /// The offset expected there.
        offset: Offset,
        /// What was found.
        why: String,
    },
    /// More partitions than one client can consume.
    #[error("one client consumes at most {limit} partitions, not {partitions}; use several clients")]
    TooManyPartitions {
        /// How many were to be read.
        partitions: usize,
        /// How many it may.
        limit: usize,
    },
    /// Settings that contradict each other or a limit.
    #[error("{0}")]
    InvalidSettings(String),
    /// A broker refused, or was not reachable for the whole retry time.
    #[error(transparent)]
    Broker(#[from] Error),
}

impl ConsumeError {
    /// The broker's error code, where a broker answered with one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            ConsumeError::OffsetOutOfRange { .. } => Some(ErrorCode::OffsetOutOfRange),
            ConsumeError::UnknownPartition { .. } => Some(ErrorCode::UnknownPartition),
            ConsumeError::Broker(error) => error.code(),
            _ => None,
        }
    }

    /// Whether consuming from the same position later may succeed.
    pub fn is_retriable(&self) -> bool {
        matches!(self, ConsumeError::Broker(error) if error.is_retriable())
    }

    /// A sentence that says what to do.
    pub fn advice(&self) -> String {
        match self {
            ConsumeError::OffsetOutOfRange { .. } => ErrorCode::OffsetOutOfRange.advice().into(),
            ConsumeError::UnknownPartition { .. } => ErrorCode::UnknownPartition.advice().into(),
            ConsumeError::CorruptFrame { .. } => ErrorCode::CorruptLog.advice().into(),
            ConsumeError::TooManyPartitions { .. } => {
                "Choose some of the partitions, and consume the others with other clients.".into()
            }
            ConsumeError::InvalidSettings(_) => "Correct the consumer's settings.".into(),
            ConsumeError::Broker(error) => error.advice(),
        }
    }
}

impl ConsumeError {
    /// A position that has no offset.
    pub(super) fn of_position(refused: Refused, topic: &TopicMetadata) -> ConsumeError {
        let name = Arc::clone(&topic.name);
        match refused {
            Refused::UnknownPartition(partition) => {
                ConsumeError::UnknownPartition { topic: name, partition, partitions: topic.partitions() }
            }
            Refused::OutOfRange { partition, offset, log_start, high_watermark } => {
                ConsumeError::OffsetOutOfRange { topic: name, partition, offset, log_start, high_watermark }
            }
            Refused::Other(error) => ConsumeError::Broker(error),
        }
    }
}

impl From<ConsumeError> for Error {
    /// For callers that handle one kind of error: what a broker or the way to it caused stays what it is.
    fn from(error: ConsumeError) -> Error {
        match error {
            ConsumeError::Broker(error) => error,
            other => match other.code() {
                Some(code) => Error::Broker { code, message: other.to_string(), suggestion: None },
                None => Error::InvalidRequest(other.to_string()),
            },
        }
    }
}
