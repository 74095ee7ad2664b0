//! The bytes Quire keeps and sends, and what they mean.
//!
//! Pure code: no files, no sockets, no clocks. [`batch`] is Kafka's record batch, [`frame`] what is
//! stored and replicated around it, [`stream`] what travels on QUIC streams, [`replicate`] on those
//! between brokers, [`rpc`] the control messages. Every byte is drawn in `FORMAT.md`.
#![forbid(unsafe_code)]

pub mod batch;
pub mod error_code;
pub mod frame;
pub mod group_name;
pub mod ids;
pub mod limits;
pub mod replicate;
pub mod rpc;
pub mod stream;
pub mod topic_config;
pub mod window;

/// The internal topic that groups and their offsets are kept in. Names that begin so are the brokers' own.
pub const OFFSETS_TOPIC: &str = "__consumer_offsets";
/// How the names of internal topics begin.
pub const INTERNAL_TOPIC_PREFIX: &str = "__";

pub use error_code::ErrorCode;
pub use ids::{
    BrokerId, LeaderEpoch, Offset, PartitionIndex, ProducerEpoch, ProducerId, Sequence, Timestamp, TopicId,
    TopicPartition,
};
