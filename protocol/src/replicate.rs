//! What travels on a replicate stream: a follower's shard asks, and tells how far it is; the leader sends frames.
//!
//! One stream for each shard of a follower and each leader. A partition on it goes by a `slot`, which the follower draws
//! anew for each [`Follow`], so that an answer to an earlier request can not be taken for one to a later. A message is a
//! tag byte and a body whose length the tag tells; all but [`Progress`], whose entries follow it, have a fixed one. All
//! integers are little-endian. Drawn in `FORMAT.md`.
//!
//! Nobody sends more frames of a slot than it has credit for, overdrawn by at most one frame, and whoever receives always
//! drains: so a slow partition never blocks its neighbours.

use crate::error_code::ErrorCode;
use crate::frame::Chain;
use crate::ids::{LeaderEpoch, Offset, TopicPartition};
use crate::limits;
use crate::stream::{Fields, Frames, StreamError, encode_partition};

/// Stands for "no leadership": epochs fit Kafka's signed field.
const NO_EPOCH: u32 = u32::MAX;

/// A follower's message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FollowerMessage {
    /// Tag 1.
    Follow(Follow),
    /// Tag 2: nothing of this slot is wanted any more.
    Unfollow {
        /// The slot.
        slot: u32,
    },
    /// Tag 3: how far slots are; a vector for each flush round.
    Progress(Vec<Progress>),
}

/// A request to follow a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Follow {
    /// Names the request and everything that follows from it.
    pub slot: u32,
    /// The partition.
    pub partition: TopicPartition,
    /// The leadership that the follower believes in.
    pub leader_epoch: LeaderEpoch,
    /// The registration that the follower's broker is in.
    pub broker_epoch: u64,
    /// The last leadership that its log knows; none if it has no record, or is to begin anew.
    pub last_epoch: Option<LeaderEpoch>,
    /// Its log end offset.
    pub end: Offset,
    /// Bytes of frames that may be sent before more credit comes.
    pub credit: u32,
}

/// How far one slot is, and what more may be sent for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The slot.
    pub slot: u32,
    /// Bytes of frames that may be sent in addition.
    pub credit: u32,
    /// The follower's log end offset.
    pub log_end: Offset,
    /// The end of what it has on disk.
    pub durable_end: Offset,
}

impl Progress {
    /// Encoded length (bytes).
    pub const LEN: usize = 24;
}

/// A leader's message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaderMessage {
    /// Tag 1: frames come from here on.
    Accepted {
        /// The slot.
        slot: u32,
        /// The follower's end, or the leader's log start, where the follower is to begin anew.
        from: Offset,
        /// The high watermark.
        high_watermark: Offset,
        /// The log start offset.
        log_start: Offset,
    },
    /// Tag 2: the logs part. The follower truncates and asks again.
    Diverging {
        /// The slot.
        slot: u32,
        /// The last leadership that the leader's log knows and that is not after the follower's last.
        epoch: LeaderEpoch,
        /// Where it ended in the leader's log.
        end: Offset,
    },
    /// Tag 3: bytes of whole frames, which follow at once.
    Frames {
        /// The slot.
        slot: u32,
        /// How many bytes follow: 1 to [`Frames::LENGTH_MAX`].
        length: u32,
        /// The high watermark.
        high_watermark: Offset,
        /// The log start offset.
        log_start: Offset,
    },
    /// Tag 4: the high watermark or the log start moved.
    Watermarks {
        /// The slot.
        slot: u32,
        /// The high watermark.
        high_watermark: Offset,
        /// The log start offset.
        log_start: Offset,
    },
    /// Tag 5: the partition is not, or no longer, sent.
    Refused {
        /// The slot.
        slot: u32,
        /// Why.
        code: ErrorCode,
    },
    /// Tag 6: the leader's history up to an offset that is committed and was sent, now and then, so that a follower finds
    /// out if its own is another.
    Chain {
        /// The slot.
        slot: u32,
        /// The offset after a frame.
        end: Offset,
        /// The chain up to there.
        chain: Chain,
    },
}

const TAG_FOLLOW: u8 = 1;
const TAG_UNFOLLOW: u8 = 2;
const TAG_PROGRESS: u8 = 3;

const TAG_ACCEPTED: u8 = 1;
const TAG_DIVERGING: u8 = 2;
const TAG_FRAMES: u8 = 3;
const TAG_WATERMARKS: u8 = 4;
const TAG_REFUSED: u8 = 5;
const TAG_CHAIN: u8 = 6;

impl FollowerMessage {
    /// Longest body (bytes), the entries of a progress vector excluded.
    pub const BODY_LEN_MAX: usize = Self::FOLLOW_LEN;
    const FOLLOW_LEN: usize = 52;
    const UNFOLLOW_LEN: usize = 4;
    const COUNT_LEN: usize = 4;

    /// Length of the body after this tag; a progress vector's entries, whose number its body is, follow after that.
    ///
    /// # Errors
    /// If there is no such tag.
    pub fn body_len(tag: u8) -> Result<usize, StreamError> {
        match tag {
            TAG_FOLLOW => Ok(Self::FOLLOW_LEN),
            TAG_UNFOLLOW => Ok(Self::UNFOLLOW_LEN),
            TAG_PROGRESS => Ok(Self::COUNT_LEN),
            _ => Err(StreamError::Field("replicate tag")),
        }
    }

    /// Length of the entries that follow `body` after `tag`; 0 for all but progress vectors.
    ///
    /// # Errors
    /// If there are more than [`limits::PROGRESS_ENTRIES_MAX`] or the body is cut short.
    pub fn entries_len(tag: u8, body: &[u8]) -> Result<usize, StreamError> {
        if tag != TAG_PROGRESS {
            return Ok(0);
        }
        let length = (Fields(body).u32()? as usize).saturating_mul(Progress::LEN);
        let limit = limits::PROGRESS_ENTRIES_MAX * Progress::LEN;
        if length > limit {
            return Err(StreamError::TooLong { what: "progress vector", length, limit });
        }
        Ok(length)
    }

    /// Decodes a body of the length that [`FollowerMessage::body_len`] gave for `tag`, and its entries.
    ///
    /// # Errors
    /// If a field has no meaning or bytes are missing.
    pub fn decode(tag: u8, body: &[u8], entries: &[u8]) -> Result<FollowerMessage, StreamError> {
        let mut fields = Fields(body);
        Ok(match tag {
            TAG_FOLLOW => FollowerMessage::Follow(Follow {
                slot: fields.u32()?,
                partition: fields.partition()?,
                leader_epoch: LeaderEpoch(fields.u32()?),
                broker_epoch: fields.u64()?,
                last_epoch: Some(fields.u32()?).filter(|epoch| *epoch != NO_EPOCH).map(LeaderEpoch),
                end: fields.offset()?,
                credit: fields.u32()?,
            }),
            TAG_UNFOLLOW => FollowerMessage::Unfollow { slot: fields.u32()? },
            TAG_PROGRESS => {
                FollowerMessage::Progress(decode_entries(Self::entries_len(tag, body)?, entries)?)
            }
            _ => return Err(StreamError::Field("replicate tag")),
        })
    }

    /// Appends tag, body and entries.
    ///
    /// # Panics
    /// If a progress vector has more than [`limits::PROGRESS_ENTRIES_MAX`] entries.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            FollowerMessage::Follow(follow) => {
                out.push(TAG_FOLLOW);
                out.extend_from_slice(&follow.slot.to_le_bytes());
                encode_partition(follow.partition, out);
                out.extend_from_slice(&follow.leader_epoch.0.to_le_bytes());
                out.extend_from_slice(&follow.broker_epoch.to_le_bytes());
                out.extend_from_slice(&follow.last_epoch.map_or(NO_EPOCH, |epoch| epoch.0).to_le_bytes());
                out.extend_from_slice(&follow.end.0.to_le_bytes());
                out.extend_from_slice(&follow.credit.to_le_bytes());
            }
            FollowerMessage::Unfollow { slot } => {
                out.push(TAG_UNFOLLOW);
                out.extend_from_slice(&slot.to_le_bytes());
            }
            FollowerMessage::Progress(entries) => {
                assert!(
                    entries.len() <= limits::PROGRESS_ENTRIES_MAX,
                    "a vector is cut before it is too long"
                );
                out.push(TAG_PROGRESS);
                out.extend_from_slice(&(entries.len() as u32).to_le_bytes());
                for entry in entries {
                    out.extend_from_slice(&entry.slot.to_le_bytes());
                    out.extend_from_slice(&entry.credit.to_le_bytes());
                    out.extend_from_slice(&entry.log_end.0.to_le_bytes());
                    out.extend_from_slice(&entry.durable_end.0.to_le_bytes());
                }
            }
        }
    }
}

fn decode_entries(length: usize, entries: &[u8]) -> Result<Vec<Progress>, StreamError> {
    if entries.len() != length {
        return Err(StreamError::Short);
    }
    let (chunks, _) = entries.as_chunks::<{ Progress::LEN }>();
    let decode = |chunk: &[u8; Progress::LEN]| {
        let mut fields = Fields(chunk);
        Ok(Progress {
            slot: fields.u32()?,
            credit: fields.u32()?,
            log_end: fields.offset()?,
            durable_end: fields.offset()?,
        })
    };
    chunks.iter().map(decode).collect()
}

impl LeaderMessage {
    /// Longest body (bytes).
    pub const BODY_LEN_MAX: usize = Self::CHAIN_LEN;
    const ACCEPTED_LEN: usize = 28;
    const DIVERGING_LEN: usize = 16;
    const FRAMES_LEN: usize = 24;
    const WATERMARKS_LEN: usize = 20;
    const REFUSED_LEN: usize = 6;
    const CHAIN_LEN: usize = 44;

    /// Length of the body after this tag.
    ///
    /// # Errors
    /// If there is no such tag.
    pub fn body_len(tag: u8) -> Result<usize, StreamError> {
        match tag {
            TAG_ACCEPTED => Ok(Self::ACCEPTED_LEN),
            TAG_DIVERGING => Ok(Self::DIVERGING_LEN),
            TAG_FRAMES => Ok(Self::FRAMES_LEN),
            TAG_WATERMARKS => Ok(Self::WATERMARKS_LEN),
            TAG_REFUSED => Ok(Self::REFUSED_LEN),
            TAG_CHAIN => Ok(Self::CHAIN_LEN),
            _ => Err(StreamError::Field("replicate tag")),
        }
    }

    /// Decodes a body of the length that [`LeaderMessage::body_len`] gave for `tag`.
    ///
    /// # Errors
    /// If a field has no meaning or bytes are missing.
    pub fn decode(tag: u8, body: &[u8]) -> Result<LeaderMessage, StreamError> {
        let mut fields = Fields(body);
        Ok(match tag {
            TAG_ACCEPTED => LeaderMessage::Accepted {
                slot: fields.u32()?,
                from: fields.offset()?,
                high_watermark: fields.offset()?,
                log_start: fields.offset()?,
            },
            TAG_DIVERGING => LeaderMessage::Diverging {
                slot: fields.u32()?,
                epoch: LeaderEpoch(fields.u32()?),
                end: fields.offset()?,
            },
            TAG_FRAMES => LeaderMessage::Frames {
                slot: fields.u32()?,
                length: frames_length(fields.u32()?)?,
                high_watermark: fields.offset()?,
                log_start: fields.offset()?,
            },
            TAG_WATERMARKS => LeaderMessage::Watermarks {
                slot: fields.u32()?,
                high_watermark: fields.offset()?,
                log_start: fields.offset()?,
            },
            TAG_REFUSED => LeaderMessage::Refused {
                slot: fields.u32()?,
                code: ErrorCode::from_number(fields.u16()?).unwrap_or(ErrorCode::Internal),
            },
            TAG_CHAIN => LeaderMessage::Chain {
                slot: fields.u32()?,
                end: fields.offset()?,
                chain: Chain(fields.take()?),
            },
            _ => return Err(StreamError::Field("replicate tag")),
        })
    }

    /// Appends tag and body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            LeaderMessage::Accepted { slot, from, high_watermark, log_start } => {
                out.push(TAG_ACCEPTED);
                out.extend_from_slice(&slot.to_le_bytes());
                encode_offsets(&[*from, *high_watermark, *log_start], out);
            }
            LeaderMessage::Diverging { slot, epoch, end } => {
                out.push(TAG_DIVERGING);
                out.extend_from_slice(&slot.to_le_bytes());
                out.extend_from_slice(&epoch.0.to_le_bytes());
                encode_offsets(&[*end], out);
            }
            LeaderMessage::Frames { slot, length, high_watermark, log_start } => {
                out.push(TAG_FRAMES);
                out.extend_from_slice(&slot.to_le_bytes());
                out.extend_from_slice(&length.to_le_bytes());
                encode_offsets(&[*high_watermark, *log_start], out);
            }
            LeaderMessage::Watermarks { slot, high_watermark, log_start } => {
                out.push(TAG_WATERMARKS);
                out.extend_from_slice(&slot.to_le_bytes());
                encode_offsets(&[*high_watermark, *log_start], out);
            }
            LeaderMessage::Refused { slot, code } => {
                out.push(TAG_REFUSED);
                out.extend_from_slice(&slot.to_le_bytes());
                out.extend_from_slice(&code.number().to_le_bytes());
            }
            LeaderMessage::Chain { slot, end, chain } => {
                out.push(TAG_CHAIN);
                out.extend_from_slice(&slot.to_le_bytes());
                encode_offsets(&[*end], out);
                out.extend_from_slice(&chain.0);
            }
        }
    }

    /// The slot it is about.
    pub fn slot(&self) -> u32 {
        match self {
            LeaderMessage::Accepted { slot, .. }
            | LeaderMessage::Diverging { slot, .. }
            | LeaderMessage::Frames { slot, .. }
            | LeaderMessage::Watermarks { slot, .. }
            | LeaderMessage::Refused { slot, .. }
            | LeaderMessage::Chain { slot, .. } => *slot,
        }
    }
}

fn encode_offsets(offsets: &[Offset], out: &mut Vec<u8>) {
    offsets.iter().for_each(|offset| out.extend_from_slice(&offset.0.to_le_bytes()));
}

fn frames_length(length: u32) -> Result<u32, StreamError> {
    let limit = Frames::LENGTH_MAX;
    match length as usize {
        0 => Err(StreamError::Field("length of frames")),
        length if length > limit => {
            Err(StreamError::TooLong { what: "announcement of frames", length, limit })
        }
        _ => Ok(length),
    }
}
