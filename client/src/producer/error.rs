//! Why a record was not delivered.

use std::time::Duration;

use quire_protocol::batch::EncodeError;
use quire_protocol::{ErrorCode, PartitionIndex, limits};

use crate::error::Error;

/// Why a record was not delivered. Several records of one batch share one error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// Larger than its topic accepts. It was not sent.
    #[error("the record takes {bytes} bytes, the topic's limit is {limit}")]
    RecordTooLarge {
        /// What it takes with its batch's header.
        bytes: usize,
        /// The topic's `max.message.bytes`, or this producer's memory if that is less.
        limit: usize,
    },
    /// More headers than a record may have. It was not sent.
    #[error("the record has {headers} headers, at most {limit} are allowed")]
    TooManyHeaders {
        /// Its headers.
        headers: usize,
        /// The limit.
        limit: usize,
    },
    /// The topic has no such partition. It was not sent.
    #[error("\"{topic}\" has partitions 0 to {}, not {partition}", .partitions.saturating_sub(1))]
    UnknownPartition {
        /// The topic.
        topic: String,
        /// What was asked for.
        partition: PartitionIndex,
        /// How many it has.
        partitions: u32,
    },
    /// The producer's memory stayed full for the whole delivery timeout. It was not sent.
    #[error("the producer's {memory_bytes} bytes of memory stayed full for {after:?}")]
    BufferFull {
        /// The memory.
        memory_bytes: usize,
        /// How long room was waited for.
        after: Duration,
    },
    /// No acknowledgement in time. Whether it was appended is unknown if it had been sent.
    #[error("not acknowledged within {after:?}{}", cause.as_ref().map(|c| format!(": {c}")).unwrap_or_default())]
    DeliveryTimeout {
        /// The delivery timeout.
        after: Duration,
        /// What stood in the way last, if that is known.
        cause: Option<Box<Error>>,
    },
    /// The producer was closed or dropped before it was acknowledged.
    #[error("the producer was closed before the record was acknowledged")]
    Closed,
    /// The compressor failed. It was not sent.
    #[error("the batch could not be compressed: {0}")]
    Compression(String),
    /// A broker refused it, or its topic could not be looked up. It may have been appended all the same where the code says so
    /// ([`ErrorCode::is_outcome_unknown`]).
    #[error(transparent)]
    Broker(#[from] Error),
}

impl SendError {
    /// The broker's error code, where a broker answered with one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            SendError::RecordTooLarge { .. } => Some(ErrorCode::RecordTooLarge),
            SendError::UnknownPartition { .. } => Some(ErrorCode::UnknownPartition),
            SendError::DeliveryTimeout { cause: Some(cause), .. } => cause.code(),
            SendError::Broker(error) => error.code(),
            _ => None,
        }
    }

    /// Whether sending the same record later may succeed. The producer itself has retried until the delivery timeout.
    pub fn is_retriable(&self) -> bool {
        match self {
            SendError::BufferFull { .. } | SendError::DeliveryTimeout { .. } => true,
            SendError::Broker(error) => error.is_retriable(),
            _ => false,
        }
    }

    /// A sentence that says what to do.
    pub fn advice(&self) -> String {
        match self {
            SendError::RecordTooLarge { .. } => ErrorCode::RecordTooLarge.advice().into(),
            SendError::TooManyHeaders { .. } => "Send fewer headers.".into(),
            SendError::UnknownPartition { .. } => ErrorCode::UnknownPartition.advice().into(),
            SendError::BufferFull { .. } => "Send more slowly, or give the producer more memory.".into(),
            SendError::DeliveryTimeout { cause: Some(cause), .. } => cause.advice(),
            SendError::DeliveryTimeout { cause: None, .. } => {
                "Check the broker; the record may or may not have been appended.".into()
            }
            SendError::Closed => "Await flush or close before the producer is dropped.".into(),
            SendError::Compression(_) => "Send with another compression.".into(),
            SendError::Broker(error) => error.advice(),
        }
    }
}

impl From<EncodeError> for SendError {
    fn from(error: EncodeError) -> SendError {
        match error {
            EncodeError::TooLarge { bytes, limit } => SendError::RecordTooLarge { bytes, limit },
            EncodeError::BatchTooLarge(bytes) => {
                SendError::RecordTooLarge { bytes, limit: limits::BATCH_BYTES_MAX }
            }
            EncodeError::TooManyHeaders(headers) => {
                SendError::TooManyHeaders { headers, limit: limits::RECORD_HEADERS_MAX }
            }
            EncodeError::Compression(error) => SendError::Compression(error.to_string()),
        }
    }
}

impl From<SendError> for Error {
    /// For callers that handle one kind of error: what a broker or the way to it caused stays what it is.
    fn from(error: SendError) -> Error {
        match error {
            SendError::Broker(error) => error,
            SendError::DeliveryTimeout { cause: Some(cause), .. } => *cause,
            other => Error::InvalidRequest(other.to_string()),
        }
    }
}
