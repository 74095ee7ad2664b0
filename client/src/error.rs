//! What can go wrong, each with whether a retry helps and what to do.
//!
//! [`Error`] is about brokers and the way to them; producing ([`crate::SendError`]) and consuming
//! ([`crate::ConsumeError`]) have their own, which carry it where it is the cause.

use std::time::Duration;

use quire_protocol::{BrokerId, ErrorCode, PartitionIndex};

use crate::profile::ProfileError;

/// Why a broker could not be asked, or what it answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No usable profile.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// Not `quire://HOST:PORT`.
    #[error("\"{given}\" is not a broker's address: {why}")]
    Address {
        /// What was given.
        given: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Nobody answers there.
    #[error("no broker answers at {address}: {why}")]
    Unreachable {
        /// Host and port.
        address: String,
        /// What happened.
        why: String,
    },
    /// The connection ended while it was in use; whether the request took effect is unknown.
    #[error("the connection to {address} was lost: {why}")]
    ConnectionLost {
        /// Host and port.
        address: String,
        /// What happened.
        why: String,
    },
    /// Somebody answers, but one side does not accept the other's certificate.
    #[error("{address}: {why}")]
    CertificateRefused {
        /// Host and port.
        address: String,
        /// Who refused whose certificate, and why.
        why: String,
    },
    /// The cluster's certificate, but for another name than the one the broker was called by.
    #[error("{address}: the broker's certificate is not for the name {why}")]
    CertificateName {
        /// Host and port.
        address: String,
        /// The name that was expected, and those that it has.
        why: String,
    },
    /// The broker refused the request.
    #[error("{message} ({code}, {})", if code.is_retriable() { "retriable" } else { "not retriable" })]
    Broker {
        /// The error's number and name.
        code: ErrorCode,
        /// The broker's sentence.
        message: String,
        /// A known name close to an unknown one.
        suggestion: Option<String>,
    },
    /// The partition has no leader at the moment, or one whose address is not known.
    #[error("partition {partition} of \"{topic}\" has no reachable leader{}", leader.map(|l| format!(" (broker {l})")).unwrap_or_default())]
    NoLeader {
        /// The topic.
        topic: String,
        /// The partition.
        partition: PartitionIndex,
        /// Its leader, if the metadata names one.
        leader: Option<BrokerId>,
    },
    /// No answer in time; whether the request took effect is unknown.
    #[error("{address} did not answer {what} within {after:?}")]
    TimedOut {
        /// Host and port.
        address: String,
        /// The request.
        what: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// The answer is not one of this protocol.
    #[error("{address} does not speak this client's protocol: {why}")]
    Protocol {
        /// Host and port.
        address: String,
        /// What was wrong.
        why: String,
    },
    /// One client's consumers read as many partitions of one broker as they can.
    #[error(
        "this client consumes {limit} partitions of {address} already, and no more are possible over one connection"
    )]
    TooManyPartitions {
        /// Host and port.
        address: String,
        /// How many it may.
        limit: usize,
    },
    /// A request that can not be sent as it is.
    #[error("{0}")]
    InvalidRequest(String),
    /// The operating system gave no socket, or no configuration folder.
    #[error("{what}: {why}")]
    System {
        /// What was asked of it.
        what: &'static str,
        /// Its answer.
        why: String,
    },
}

impl Error {
    /// The broker's error code, where a broker answered with one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Error::Broker { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether the same request may succeed later without anybody changing it.
    pub fn is_retriable(&self) -> bool {
        match self {
            Error::Broker { code, .. } => code.is_retriable(),
            Error::Unreachable { .. }
            | Error::ConnectionLost { .. }
            | Error::NoLeader { .. }
            | Error::TimedOut { .. } => true,
            Error::Profile(_)
            | Error::Address { .. }
            | Error::CertificateRefused { .. }
            | Error::CertificateName { .. }
            | Error::Protocol { .. }
            | Error::TooManyPartitions { .. }
            | Error::InvalidRequest(_)
            | Error::System { .. } => false,
        }
    }

    /// Whether no broker could be asked at all.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Error::Unreachable { .. } | Error::ConnectionLost { .. } | Error::TimedOut { .. })
    }

    /// A sentence that says what to do.
    pub fn advice(&self) -> String {
        match self {
            Error::Profile(error) => error.advice(),
            Error::Address { .. } => "Write it as quire://HOST:PORT, e.g. quire://127.0.0.1:9440.".into(),
            Error::Unreachable { .. } => "Check that the broker runs and that the address is right.".into(),
            Error::ConnectionLost { .. } => "Check that the broker still runs, then try again.".into(),
            Error::CertificateRefused { .. } => "Use the profile that belongs to this cluster; 'quire dev' writes a new one on every start.".into(),
            Error::CertificateName { .. } => "List the name in the broker's 'tls.names' and start it again; or write 'server_name' with a name that it has into the profile.".into(),
            // Once: many a broker's sentence ends with the suggestion.
            Error::Broker { suggestion: Some(name), message, .. } if !message.contains("did you mean") => {
                format!("Did you mean \"{name}\"?")
            }
            Error::Broker { code, .. } => code.advice().into(),
            Error::NoLeader { .. } => "Retry when the partition's brokers are back.".into(),
            Error::TimedOut { .. } => "Try again; look at the broker's log if it happens again.".into(),
            Error::Protocol { .. } => "Use a client and a broker of versions that overlap, and check that the port is a Quire broker's.".into(),
            Error::TooManyPartitions { .. } => "Consume some of them with another client: each has a connection of its own.".into(),
            Error::InvalidRequest(_) => "Correct the request.".into(),
            Error::System { .. } => "Check the limits and permissions of this process.".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suggestion_is_made_once() {
        let unknown = |message: &str| Error::Broker {
            code: ErrorCode::UnknownTopic,
            message: message.into(),
            suggestion: Some("flights".into()),
        };
        assert_eq!(unknown("no topic \"fligths\"").advice(), "Did you mean \"flights\"?");
        let said = unknown("no topic \"fligths\"; did you mean \"flights\"?");
        assert_eq!(said.advice(), ErrorCode::UnknownTopic.advice());
    }
}
