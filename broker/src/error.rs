//! What a client is told when its request fails: the one place where internal errors become codes of the protocol.

use quire_engine::controller::Refusal;
use quire_engine::producer::SequenceRefusal;
use quire_protocol::rpc::control;
use quire_protocol::stream::Failure;
use quire_protocol::{ErrorCode, Offset, limits};
use quire_storage::{AppendErrorKind, Corruption, ReadError};

use crate::controller::ProposeError;

/// A failed request, as the client will see it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct RequestError {
    /// What went wrong, by number.
    pub code: ErrorCode,
    /// What went wrong, in a sentence.
    pub message: String,
    /// The partition's log start offset, where the code is about a range.
    pub log_start: Offset,
    /// The partition's high watermark, where the code is about a range.
    pub high_watermark: Offset,
}

impl RequestError {
    /// Something that is not ready yet.
    pub fn unavailable(message: &str) -> RequestError {
        RequestError::new(ErrorCode::Unavailable, message)
    }

    /// An error that is not about a range of offsets. The message is cut at [`limits::ERROR_TEXT_BYTES_MAX`].
    pub fn new(code: ErrorCode, message: impl Into<String>) -> RequestError {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(limits::ERROR_TEXT_BYTES_MAX));
        RequestError { code, message, log_start: Offset::ZERO, high_watermark: Offset::ZERO }
    }

    /// The same error, naming the offsets that can be read.
    pub fn with_range(self, log_start: Offset, high_watermark: Offset) -> RequestError {
        RequestError { log_start, high_watermark, ..self }
    }

    /// An offset that can not be read.
    pub fn out_of_range(asked: Offset, log_start: Offset, high_watermark: Offset) -> RequestError {
        let message = format!(
            "offset {asked} is out of range: offsets {log_start} to {high_watermark} can be asked for"
        );
        RequestError::new(ErrorCode::OffsetOutOfRange, message).with_range(log_start, high_watermark)
    }

    /// The broker is stopping.
    pub fn shutting_down() -> RequestError {
        RequestError::new(ErrorCode::ShuttingDown, "the broker is shutting down")
    }

    /// The partition's log could not be trusted any more; whether what was in flight was kept is unknown.
    pub fn storage_failed(what: &str) -> RequestError {
        RequestError::new(ErrorCode::StorageFailed, format!("the partition's log failed: {what}"))
    }

    /// The partition's log is damaged.
    pub fn corrupt_log(what: &str) -> RequestError {
        RequestError::new(ErrorCode::CorruptLog, format!("the partition's log is damaged: {what}"))
    }
}

/// Which part of a log is damaged, as users and operators are told.
pub(crate) fn describe_damage(damage: &Corruption) -> String {
    let Corruption { offset, intact_from, segment, position, why } = damage;
    format!(
        "offsets {offset} to {intact_from} (exclusive) can not be read; {segment}, byte {position}: {why}"
    )
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Failure {
        Failure {
            code: error.code,
            log_start: error.log_start,
            high_watermark: error.high_watermark,
            message: error.message,
        }
    }
}

impl From<RequestError> for control::Error {
    fn from(error: RequestError) -> control::Error {
        control::Error::new(error.code, error.message)
    }
}

impl From<Refusal> for RequestError {
    fn from(refusal: Refusal) -> RequestError {
        let code = refusal.code();
        RequestError::new(code, refusal.to_string())
    }
}

impl From<ProposeError> for RequestError {
    fn from(error: ProposeError) -> RequestError {
        let code = match error {
            ProposeError::Refused(refusal) => return refusal.into(),
            ProposeError::DiskFull => ErrorCode::DiskFull,
            ProposeError::Unavailable { .. } => ErrorCode::Unavailable,
            ProposeError::Failed { .. } => ErrorCode::StorageFailed,
            ProposeError::Unknown { .. } => ErrorCode::TimedOut,
            ProposeError::Stopped => return RequestError::shutting_down(),
        };
        RequestError::new(code, error.to_string())
    }
}

impl From<ReadError> for RequestError {
    fn from(error: ReadError) -> RequestError {
        let code = match error {
            ReadError::OutOfRange { log_start, end } => {
                let error = RequestError::new(ErrorCode::OffsetOutOfRange, error.to_string());
                return error.with_range(log_start, end);
            }
            // A caller that may not block asks again on a thread that may; if it answers this instead, a retry helps.
            ReadError::NotResident => ErrorCode::Unavailable,
            ReadError::Corrupt { .. } => ErrorCode::CorruptLog,
            ReadError::Io { .. } => ErrorCode::StorageFailed,
        };
        RequestError::new(code, error.to_string())
    }
}

impl From<&AppendErrorKind> for RequestError {
    fn from(kind: &AppendErrorKind) -> RequestError {
        let code = match kind {
            AppendErrorKind::NoSpaceYet | AppendErrorKind::Exhausted(_) => ErrorCode::Unavailable,
            AppendErrorKind::DiskFull => ErrorCode::DiskFull,
            AppendErrorKind::Poisoned(_) => ErrorCode::StorageFailed,
            AppendErrorKind::Corrupt => ErrorCode::CorruptLog,
            AppendErrorKind::OffsetsExhausted => ErrorCode::LimitExceeded,
        };
        RequestError::new(code, kind.to_string())
    }
}

impl From<SequenceRefusal> for RequestError {
    fn from(refusal: SequenceRefusal) -> RequestError {
        let code = match refusal {
            SequenceRefusal::Fenced { .. } => ErrorCode::FencedProducerEpoch,
            SequenceRefusal::UnknownProducer { .. } => ErrorCode::UnknownProducerId,
            SequenceRefusal::OutOfOrder { .. } => ErrorCode::OutOfOrderSequence,
            SequenceRefusal::Forgotten { .. } => ErrorCode::DuplicateSequence,
            SequenceRefusal::TooManyProducers { .. } => ErrorCode::LimitExceeded,
        };
        RequestError::new(code, refusal.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_cut_between_characters() {
        let error = RequestError::new(ErrorCode::Internal, "é".repeat(limits::ERROR_TEXT_BYTES_MAX));
        assert_eq!(error.message.len(), limits::ERROR_TEXT_BYTES_MAX);
        assert!(error.message.ends_with('é'));
    }

    #[test]
    fn what_can_be_retried_says_so() {
        let retriable = |kind: &AppendErrorKind| RequestError::from(kind).code.is_retriable();
        assert!(retriable(&AppendErrorKind::DiskFull) && retriable(&AppendErrorKind::NoSpaceYet));
        assert!(!retriable(&AppendErrorKind::Corrupt));
    }
}
