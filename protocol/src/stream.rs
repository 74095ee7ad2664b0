//! What travels on QUIC streams: the header that opens each, and the messages on produce and consume streams.
//!
//! A stream opens with one byte of kind and one of version. All integers are little-endian. Drawn in `FORMAT.md`.
//! Encoders append to a buffer; decoders take a complete fixed-size message, whose length is a constant here, so that
//! a reader never buffers on a stranger's word.

use crate::batch::ProducerIdentity;
use crate::error_code::ErrorCode;
use crate::frame::{self, Chain};
use crate::ids::{
    LeaderEpoch, Offset, PartitionIndex, ProducerEpoch, ProducerId, Timestamp, TopicId, TopicPartition,
};
use crate::limits;

/// ALPN of client connections.
pub const ALPN_CLIENT: &[u8] = b"quire/1";
/// ALPN of connections between brokers.
pub const ALPN_PEER: &[u8] = b"quire-peer/1";
/// ALPN of connections on which a broker asks to join the cluster, to the port that clients use.
pub const ALPN_JOIN: &[u8] = b"quire-join/1";

/// Stream version that this code speaks, for every kind but produce.
pub const VERSION: u8 = 1;
/// Version of a produce stream whose header names a producer. Version 1, without one, is spoken too.
pub const PRODUCE_VERSION_NUMBERED: u8 = 2;
/// Length of what every stream starts with: kind, version (bytes).
pub const PREFIX_LEN: usize = 2;

/// What a stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum StreamKind {
    /// One control request, one response; each a `u32` length and a protobuf message.
    Rpc = 1,
    /// Batches one way, acknowledgements the other.
    Produce = 2,
    /// Credits one way, frames the other.
    Consume = 3,
    /// Between brokers: [`crate::replicate`].
    Replicate = 4,
}

/// A message that is not one of this protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// No such kind of stream.
    #[error("unknown stream kind {0}")]
    Kind(u8),
    /// A version this side does not speak.
    #[error("stream version {0} is not supported, expected {VERSION}")]
    Version(u8),
    /// A field with no meaning.
    #[error("message has an unknown {0}")]
    Field(&'static str),
    /// A length beyond its limit.
    #[error("{what} of {length} bytes exceeds the limit of {limit}")]
    TooLong {
        /// What was to be read.
        what: &'static str,
        /// The length claimed.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// Fewer bytes than the message has.
    #[error("message is cut short")]
    Short,
}

impl StreamKind {
    /// The first bytes of a stream of this kind.
    pub fn prefix(self) -> [u8; PREFIX_LEN] {
        [self as u8, VERSION]
    }

    /// Reads a stream's first bytes.
    ///
    /// # Errors
    /// If kind or version is unknown.
    pub fn from_prefix(prefix: [u8; PREFIX_LEN]) -> Result<StreamKind, StreamError> {
        StreamKind::with_version(prefix).map(|(kind, _)| kind)
    }

    /// Reads a stream's first bytes, with the version, which tells the length of a produce stream's header.
    ///
    /// # Errors
    /// If kind or version is unknown.
    pub fn with_version(prefix: [u8; PREFIX_LEN]) -> Result<(StreamKind, u8), StreamError> {
        let kind = match prefix[0] {
            1 => StreamKind::Rpc,
            2 => StreamKind::Produce,
            3 => StreamKind::Consume,
            4 => StreamKind::Replicate,
            other => return Err(StreamError::Kind(other)),
        };
        let is_numbered = kind == StreamKind::Produce && prefix[1] == PRODUCE_VERSION_NUMBERED;
        if prefix[1] != VERSION && !is_numbered {
            return Err(StreamError::Version(prefix[1]));
        }
        Ok((kind, prefix[1]))
    }
}

/// When a producer wants to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Acks {
    /// Never.
    None = 0,
    /// When the leader has it safe.
    Leader = 1,
    /// When the high watermark passed it.
    #[default]
    All = 2,
}

/// Opens a produce stream; follows the prefix. The broker answers with an [`Opened`] or an error.
/// Then batches follow, each as it is (its own header has its length), up to the window unacknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProduceHeader {
    /// Where the batches go.
    pub partition: TopicPartition,
    /// The leadership the client knows of.
    pub leader_epoch: LeaderEpoch,
    /// When to answer.
    pub acks: Acks,
    /// Who numbers the stream's batches: each must name the same. `None` if nobody does.
    pub producer: Option<ProducerIdentity>,
}

impl ProduceHeader {
    /// Encoded length without a producer: version 1 (bytes).
    pub const LEN: usize = 25;
    /// Encoded length with one: version 2 (bytes).
    pub const NUMBERED_LEN: usize = 35;

    /// The first bytes of a stream with this header.
    pub fn prefix(&self) -> [u8; PREFIX_LEN] {
        let version = if self.producer.is_some() { PRODUCE_VERSION_NUMBERED } else { VERSION };
        [StreamKind::Produce as u8, version]
    }

    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode_partition(self.partition, out);
        out.extend_from_slice(&self.leader_epoch.0.to_le_bytes());
        out.push(self.acks as u8);
        if let Some(producer) = self.producer {
            out.extend_from_slice(&producer.id.0.to_le_bytes());
            out.extend_from_slice(&producer.epoch.0.to_le_bytes());
        }
    }

    /// Decodes one message of version 1.
    ///
    /// # Errors
    /// If a field has no meaning.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<ProduceHeader, StreamError> {
        ProduceHeader::decode_fields(&mut Fields(bytes))
    }

    /// Decodes one message of version 2.
    ///
    /// # Errors
    /// If a field has no meaning.
    pub fn decode_numbered(bytes: &[u8; Self::NUMBERED_LEN]) -> Result<ProduceHeader, StreamError> {
        let mut fields = Fields(bytes);
        let header = ProduceHeader::decode_fields(&mut fields)?;
        let (id, epoch) = (ProducerId(fields.u64()?), ProducerEpoch(fields.u16()?));
        if id.0 > i64::MAX as u64 || epoch > ProducerEpoch::MAX {
            return Err(StreamError::Field("producer"));
        }
        Ok(ProduceHeader { producer: Some(ProducerIdentity { id, epoch }), ..header })
    }

    fn decode_fields(fields: &mut Fields<'_>) -> Result<ProduceHeader, StreamError> {
        Ok(ProduceHeader {
            partition: fields.partition()?,
            leader_epoch: LeaderEpoch(fields.u32()?),
            acks: match fields.u8()? {
                0 => Acks::None,
                1 => Acks::Leader,
                2 => Acks::All,
                _ => return Err(StreamError::Field("acks")),
            },
            producer: None,
        })
    }
}

/// Where a consume stream starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the log start offset.
    Beginning,
    /// At the high watermark.
    End,
    /// At this offset, which must lie between log start and high watermark.
    Offset(Offset),
    /// At the first record with this timestamp or a later one; at the high watermark if there is none.
    Timestamp(Timestamp),
}

/// Opens a consume stream; follows the prefix. The broker answers with an [`Opened`] or an error. The client then
/// sends credits, each a `u64` of bytes, in addition to the first one here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsumeHeader {
    /// What is read.
    pub partition: TopicPartition,
    /// Where it starts.
    pub start: Start,
    /// Bytes of frames the broker may send before more credit comes; overdrawn by at most one frame.
    pub credit: u64,
}

impl ConsumeHeader {
    /// Encoded length (bytes).
    pub const LEN: usize = 37;

    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode_partition(self.partition, out);
        let (tag, value) = match self.start {
            Start::Beginning => (0, 0),
            Start::End => (1, 0),
            Start::Offset(offset) => (2, offset.0),
            Start::Timestamp(timestamp) => (3, timestamp.0 as u64),
        };
        out.push(tag);
        out.extend_from_slice(&value.to_le_bytes());
        out.extend_from_slice(&self.credit.to_le_bytes());
    }

    /// Decodes one message.
    ///
    /// # Errors
    /// If a field has no meaning.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<ConsumeHeader, StreamError> {
        let mut fields = Fields(bytes);
        let partition = fields.partition()?;
        let (tag, value) = (fields.u8()?, fields.u64()?);
        let start = match tag {
            0 => Start::Beginning,
            1 => Start::End,
            2 => Start::Offset(Offset(value)),
            3 => Start::Timestamp(Timestamp(value as i64)),
            _ => return Err(StreamError::Field("start")),
        };
        Ok(ConsumeHeader { partition, start, credit: fields.u64()? })
    }
}

/// The broker's first message on a produce or consume stream that it accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// The current leadership.
    pub leader_epoch: LeaderEpoch,
    /// Produce: batches that may be unacknowledged. Consume: 0.
    pub window: u32,
    /// Produce: the topic's `max.message.bytes`. Consume: 0.
    pub batch_bytes_max: u32,
    /// The offset the stream starts at: consume's first, produce's next.
    pub next_offset: Offset,
    /// The log start offset.
    pub log_start: Offset,
    /// The high watermark.
    pub high_watermark: Offset,
}

/// An acknowledgement: answers the oldest unanswered batch of its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// Offset of the batch's first record.
    pub base_offset: Offset,
    /// When it was appended, by the leader's clock.
    pub append_time: Timestamp,
    /// The leadership it was appended in.
    pub leader_epoch: LeaderEpoch,
    /// The log start offset at that time.
    pub log_start: Offset,
    /// Replicas that have it on disk; 0 under `sync = interval`.
    pub replicas_on_disk: u32,
    /// The chain up to and including the batch.
    pub chain: Chain,
}

/// The broker's last message on a stream that it refuses or ends. On a produce stream it answers the oldest
/// unanswered batch and every later one; unless the code says that the outcome is unknown, none of them was appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What went wrong.
    pub code: ErrorCode,
    /// The valid range where the code is about one: log start offset and high watermark.
    pub log_start: Offset,
    /// See `log_start`.
    pub high_watermark: Offset,
    /// A sentence; at most [`limits::ERROR_TEXT_BYTES_MAX`] bytes of UTF-8.
    pub message: String,
}

/// Announces bytes of whole frames on a consume stream, which follow at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frames {
    /// How many bytes follow, at most [`Frames::LENGTH_MAX`]; 0 only tells the high watermark.
    pub length: u32,
    /// The high watermark.
    pub high_watermark: Offset,
    /// The log start offset.
    pub log_start: Offset,
}

impl Frames {
    /// Most bytes one message may announce: one read of a log, which a single frame may exceed.
    pub const LENGTH_MAX: usize =
        if frame::LEN_MAX > limits::READ_BYTES_MAX { frame::LEN_MAX } else { limits::READ_BYTES_MAX };
}

/// A broker's message on a produce or consume stream: a tag byte, then a body whose length the tag tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Tag 1.
    Opened(Opened),
    /// Tag 2; produce only.
    Ack(Ack),
    /// Tag 3; consume only.
    Frames(Frames),
    /// Tag 4; the last one.
    Failure(Failure),
}

const TAG_OPENED: u8 = 1;
const TAG_ACK: u8 = 2;
const TAG_FRAMES: u8 = 3;
const TAG_FAILURE: u8 = 4;

impl Answer {
    /// Longest body (bytes), a failure's text excluded.
    pub const BODY_LEN_MAX: usize = 64;
    const OPENED_LEN: usize = 36;
    const ACK_LEN: usize = 64;
    const FRAMES_LEN: usize = 20;
    const FAILURE_LEN: usize = 20;

    /// Length of the body after this tag; a failure's text, whose length its body ends with, follows after that.
    ///
    /// # Errors
    /// If there is no such tag.
    pub fn body_len(tag: u8) -> Result<usize, StreamError> {
        match tag {
            TAG_OPENED => Ok(Self::OPENED_LEN),
            TAG_ACK => Ok(Self::ACK_LEN),
            TAG_FRAMES => Ok(Self::FRAMES_LEN),
            TAG_FAILURE => Ok(Self::FAILURE_LEN),
            _ => Err(StreamError::Field("answer tag")),
        }
    }

    /// Length of the text that follows `body` after `tag`; 0 for all but failures.
    ///
    /// # Errors
    /// If the length exceeds [`limits::ERROR_TEXT_BYTES_MAX`] or the body is cut short.
    pub fn text_len(tag: u8, body: &[u8]) -> Result<usize, StreamError> {
        if tag != TAG_FAILURE {
            return Ok(0);
        }
        let length = body.get(18..20).ok_or(StreamError::Short)?;
        let length = usize::from(u16::from_le_bytes([length[0], length[1]]));
        let limit = limits::ERROR_TEXT_BYTES_MAX;
        if length > limit {
            return Err(StreamError::TooLong { what: "error text", length, limit });
        }
        Ok(length)
    }

    /// Decodes a body of the length that [`Answer::body_len`] gave for `tag`, and its text.
    ///
    /// # Errors
    /// If a field has no meaning or bytes are missing.
    pub fn decode(tag: u8, body: &[u8], text: &[u8]) -> Result<Answer, StreamError> {
        let mut fields = Fields(body);
        Ok(match tag {
            TAG_OPENED => Answer::Opened(Opened {
                leader_epoch: LeaderEpoch(fields.u32()?),
                window: fields.u32()?,
                batch_bytes_max: fields.u32()?,
                next_offset: Offset(fields.u64()?),
                log_start: Offset(fields.u64()?),
                high_watermark: Offset(fields.u64()?),
            }),
            TAG_ACK => Answer::Ack(Ack {
                base_offset: Offset(fields.u64()?),
                append_time: Timestamp(fields.u64()? as i64),
                leader_epoch: LeaderEpoch(fields.u32()?),
                log_start: Offset(fields.u64()?),
                replicas_on_disk: fields.u32()?,
                chain: Chain(fields.take()?),
            }),
            TAG_FRAMES => Answer::Frames(Frames {
                length: frames_length(fields.u32()?)?,
                high_watermark: Offset(fields.u64()?),
                log_start: Offset(fields.u64()?),
            }),
            TAG_FAILURE => Answer::Failure(Failure {
                code: ErrorCode::from_number(fields.u16()?).unwrap_or(ErrorCode::Internal),
                log_start: Offset(fields.u64()?),
                high_watermark: Offset(fields.u64()?),
                message: String::from_utf8_lossy(text).into_owned(),
            }),
            _ => return Err(StreamError::Field("answer tag")),
        })
    }

    /// Appends tag, body and text.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Answer::Opened(opened) => {
                out.push(TAG_OPENED);
                out.extend_from_slice(&opened.leader_epoch.0.to_le_bytes());
                out.extend_from_slice(&opened.window.to_le_bytes());
                out.extend_from_slice(&opened.batch_bytes_max.to_le_bytes());
                out.extend_from_slice(&opened.next_offset.0.to_le_bytes());
                out.extend_from_slice(&opened.log_start.0.to_le_bytes());
                out.extend_from_slice(&opened.high_watermark.0.to_le_bytes());
            }
            Answer::Ack(ack) => {
                out.push(TAG_ACK);
                out.extend_from_slice(&ack.base_offset.0.to_le_bytes());
                out.extend_from_slice(&ack.append_time.0.to_le_bytes());
                out.extend_from_slice(&ack.leader_epoch.0.to_le_bytes());
                out.extend_from_slice(&ack.log_start.0.to_le_bytes());
                out.extend_from_slice(&ack.replicas_on_disk.to_le_bytes());
                out.extend_from_slice(&ack.chain.0);
            }
            Answer::Frames(frames) => {
                out.push(TAG_FRAMES);
                out.extend_from_slice(&frames.length.to_le_bytes());
                out.extend_from_slice(&frames.high_watermark.0.to_le_bytes());
                out.extend_from_slice(&frames.log_start.0.to_le_bytes());
            }
            Answer::Failure(failure) => encode_failure(failure, out),
        }
    }
}

fn frames_length(length: u32) -> Result<u32, StreamError> {
    let limit = Frames::LENGTH_MAX;
    if length as usize > limit {
        return Err(StreamError::TooLong { what: "announcement of frames", length: length as usize, limit });
    }
    Ok(length)
}

fn encode_failure(failure: &Failure, out: &mut Vec<u8>) {
    let mut end = failure.message.len().min(limits::ERROR_TEXT_BYTES_MAX);
    while !failure.message.is_char_boundary(end) {
        end -= 1;
    }
    out.push(TAG_FAILURE);
    out.extend_from_slice(&failure.code.number().to_le_bytes());
    out.extend_from_slice(&failure.log_start.0.to_le_bytes());
    out.extend_from_slice(&failure.high_watermark.0.to_le_bytes());
    out.extend_from_slice(&(end as u16).to_le_bytes());
    out.extend_from_slice(&failure.message.as_bytes()[..end]);
}

pub(crate) fn encode_partition(partition: TopicPartition, out: &mut Vec<u8>) {
    out.extend_from_slice(partition.topic.as_bytes());
    out.extend_from_slice(&partition.partition.0.to_le_bytes());
}

/// Takes fixed-width fields off the front of a message.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl Fields<'_> {
    pub(crate) fn take<const N: usize>(&mut self) -> Result<[u8; N], StreamError> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(StreamError::Short)?;
        self.0 = rest;
        Ok(*field)
    }

    fn u8(&mut self) -> Result<u8, StreamError> {
        self.take::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, StreamError> {
        self.take().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, StreamError> {
        self.take().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, StreamError> {
        self.take().map(u64::from_le_bytes)
    }

    /// A position, which Kafka's signed field must hold.
    pub(crate) fn offset(&mut self) -> Result<Offset, StreamError> {
        Some(Offset(self.u64()?)).filter(|offset| *offset <= Offset::MAX).ok_or(StreamError::Field("offset"))
    }

    pub(crate) fn partition(&mut self) -> Result<TopicPartition, StreamError> {
        Ok(TopicPartition { topic: TopicId(self.take()?), partition: PartitionIndex(self.u32()?) })
    }
}
