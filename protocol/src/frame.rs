//! A frame: what is stored and replicated, byte for byte the same on every replica.
//!
//! ```text
//! 0      4   5   6     8       12       20      24      28       36      44       52      84    88
//! | QFRM | v | f | 0 0 | batch | base   | last  | lead  | append | max   | durab | chain | CRC | batch…
//! |      |   |   |     | len   | offset | delta | epoch | time   | time  | floor |       |     |
//! ```
//! All integers here are little-endian. The CRC-32 is seeded with topic id and partition, and runs over the header
//! before it and the batch's first 21 bytes as stored, so that a stale or misplaced frame does not parse. The batch's
//! own CRC-32C covers the rest.

use crate::batch::{self, BatchError, BatchHeader};
use crate::ids::{LeaderEpoch, Offset, Timestamp, TopicPartition};
use crate::limits;

/// Length of the header (bytes).
pub const HEADER_LEN: usize = 88;
/// Longest frame (bytes).
pub const LEN_MAX: usize = HEADER_LEN + limits::BATCH_BYTES_MAX;
/// Bytes of the batch that the frame's CRC covers: those the batch's own CRC does not, and that CRC.
pub const BATCH_PREFIX_LEN: usize = batch::CRC_AT + 4;

/// The first four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"QFRM";
const VERSION: u8 = 1;
const FLAG_DIGEST_BLAKE3: u8 = 0b0000_0001;
const FLAG_COMPACTED: u8 = 0b0000_0010;
const FLAGS_KNOWN: u8 = FLAG_DIGEST_BLAKE3 | FLAG_COMPACTED;
/// Header bytes that the chain covers: all before the chain itself.
const CHAINED_LEN: usize = 52;
const CRC_AT: usize = 84;

/// A value that stands for a partition's whole history up to one frame.
///
/// BLAKE3 over the previous frame's chain, this frame's header without chain and CRC, and the batch's digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Chain(pub [u8; 32]);

impl Chain {
    /// The chain before the first frame.
    pub const START: Chain = Chain([0; 32]);
}

impl std::fmt::Display for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Chain({self})")
    }
}

/// What of a batch goes into the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Digest {
    /// Its CRC-32C: detects divergence.
    #[default]
    Crc32c,
    /// BLAKE3 of its bytes as stored: evidence.
    Blake3,
}

/// The start value of a partition's frame CRCs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameSeed(u32);

impl FrameSeed {
    /// The seed of this partition.
    pub fn new(partition: TopicPartition) -> FrameSeed {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(partition.topic.as_bytes());
        hasher.update(&partition.partition.0.to_le_bytes());
        FrameSeed(hasher.finalize())
    }
}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// What of the batch went into the chain.
    pub digest: Digest,
    /// Whether compaction took records of the batch away, or frames before it: its chain value is that of the whole
    /// history and can not be recomputed, and it may begin behind the end of the frame before it.
    pub is_compacted: bool,
    /// Length of the batch (bytes).
    pub batch_len: u32,
    /// Offset of the first record.
    pub base_offset: Offset,
    /// Offset of the last record, less the base offset.
    pub last_offset_delta: u32,
    /// The leadership it was appended in.
    pub leader_epoch: LeaderEpoch,
    /// The leader's clock at append; never decreasing along a log.
    pub append_time: Timestamp,
    /// The largest record timestamp in the batch.
    pub max_timestamp: Timestamp,
    /// The high watermark when the frame was appended: all below it was on disk then.
    pub durable_floor: Offset,
    /// The chain up to and including this frame.
    pub chain: Chain,
    /// The CRC that seals the header and the batch's prefix.
    pub crc: u32,
}

/// What the leader decides about a batch that it frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Offset of the first record: the log end offset.
    pub base_offset: Offset,
    /// The current leadership.
    pub leader_epoch: LeaderEpoch,
    /// The leader's clock, not before the previous frame's.
    pub append_time: Timestamp,
    /// The high watermark.
    pub durable_floor: Offset,
    /// What of the batch goes into the chain.
    pub digest: Digest,
}

/// Bytes that are not an intact frame of the expected partition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than the frame needs.
    #[error("frame is cut short: {have} bytes of {need}")]
    Short {
        /// Bytes there.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// Zeros: space that was allocated and never written.
    #[error("unwritten space")]
    Unwritten,
    /// Not a frame's first four bytes.
    #[error("no frame starts here")]
    Magic,
    /// A version, flag or reserved byte that this version does not know.
    #[error("frame has version {version} and flags {flags:#04x}")]
    Version {
        /// The version byte.
        version: u8,
        /// The flags byte.
        flags: u8,
    },
    /// A length or an offset out of range.
    #[error("frame header has an impossible {0}")]
    Field(&'static str),
    /// The header, or the batch's prefix, is damaged or belongs to another partition.
    #[error("frame header is damaged or misplaced: CRC is {found:#010x}, expected {expected:#010x}")]
    Crc {
        /// Computed over the bytes.
        found: u32,
        /// Stored in the header.
        expected: u32,
    },
    /// The batch is damaged.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// Frame and batch header contradict each other.
    #[error("frame and batch disagree on the {0}")]
    Disagree(&'static str),
}

impl FrameHeader {
    /// Frames a batch: writes offset and epoch into it, extends the chain, seals the header.
    /// Write [`FrameHeader::encode`] and then the batch.
    ///
    /// # Panics
    /// If `header` was not parsed from `batch`, or the placement names a high watermark beyond the log end, or an
    /// offset or epoch that Kafka's signed fields do not hold.
    pub fn seal(
        seed: FrameSeed,
        previous: &Chain,
        placement: Placement,
        header: &BatchHeader,
        batch: &mut [u8],
    ) -> FrameHeader {
        assert_eq!(header.len, batch.len(), "the header is this batch's");
        assert!(placement.durable_floor <= placement.base_offset, "high watermark <= log end");
        assert!(placement.leader_epoch.0 <= i32::MAX as u32, "an epoch fits Kafka's signed field");
        let count = u64::from(header.last_offset_delta) + 1;
        assert!(placement.base_offset.checked_add(count).is_some(), "offsets fit Kafka's signed field");
        batch::stamp(batch, placement.base_offset, placement.leader_epoch);
        let mut frame = FrameHeader {
            digest: placement.digest,
            is_compacted: false,
            batch_len: batch.len() as u32,
            base_offset: placement.base_offset,
            last_offset_delta: header.last_offset_delta,
            leader_epoch: placement.leader_epoch,
            append_time: placement.append_time,
            max_timestamp: header.max_timestamp,
            durable_floor: placement.durable_floor,
            chain: Chain::START,
            crc: 0,
        };
        frame.chain = frame.chain_after(previous, batch);
        frame.crc = frame.compute_crc(seed, batch);
        frame
    }

    /// The frame of what compaction left of the batch; or of the batch as it was, if `batch` is that. It keeps its place,
    /// epoch, times and chain value, and is marked as compacted. Write [`FrameHeader::encode`] and then the batch.
    ///
    /// # Panics
    /// If `header` was not parsed from `batch`, or is another batch's.
    pub fn compacted(&self, seed: FrameSeed, header: &BatchHeader, batch: &[u8]) -> FrameHeader {
        assert_eq!(header.len, batch.len(), "the header is this batch's");
        let mut frame = FrameHeader {
            is_compacted: true,
            batch_len: batch.len() as u32,
            max_timestamp: header.max_timestamp,
            ..*self
        };
        assert!(frame.check_agreement(header).is_ok(), "compaction moves no batch");
        frame.crc = frame.compute_crc(seed, batch);
        frame
    }

    /// Length of the whole frame (bytes).
    pub fn frame_len(&self) -> usize {
        HEADER_LEN + self.batch_len as usize
    }

    /// Offset of the last record.
    pub fn last_offset(&self) -> Offset {
        Offset(self.base_offset.0 + u64::from(self.last_offset_delta))
    }

    /// The offset after the last record.
    pub fn next_offset(&self) -> Offset {
        Offset(self.last_offset().0 + 1)
    }

    /// Whether it may come after a frame that ends at `next`: right there, or behind a gap that compaction left.
    pub fn follows(&self, next: Offset) -> bool {
        self.base_offset == next || (self.is_compacted && self.base_offset > next)
    }

    /// The header as it is stored.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = VERSION;
        out[5] = match self.digest {
            Digest::Crc32c => 0,
            Digest::Blake3 => FLAG_DIGEST_BLAKE3,
        } | if self.is_compacted { FLAG_COMPACTED } else { 0 };
        out[8..12].copy_from_slice(&self.batch_len.to_le_bytes());
        out[12..20].copy_from_slice(&self.base_offset.0.to_le_bytes());
        out[20..24].copy_from_slice(&self.last_offset_delta.to_le_bytes());
        out[24..28].copy_from_slice(&self.leader_epoch.0.to_le_bytes());
        out[28..36].copy_from_slice(&self.append_time.0.to_le_bytes());
        out[36..44].copy_from_slice(&self.max_timestamp.0.to_le_bytes());
        out[44..52].copy_from_slice(&self.durable_floor.0.to_le_bytes());
        out[52..84].copy_from_slice(&self.chain.0);
        out[84..88].copy_from_slice(&self.crc.to_le_bytes());
        out
    }

    /// Parses a header without checking its CRC, so that a reader learns how many bytes to fetch.
    /// Trust nothing of it before [`FrameHeader::check`].
    ///
    /// # Errors
    /// If the bytes can not be a header.
    pub fn parse(bytes: &[u8]) -> Result<FrameHeader, FrameError> {
        let Some(header) = bytes.first_chunk::<HEADER_LEN>() else {
            let need = HEADER_LEN;
            return Err(FrameError::Short { have: bytes.len(), need });
        };
        if header[..4] != MAGIC {
            return Err(if header[..4] == [0; 4] { FrameError::Unwritten } else { FrameError::Magic });
        }
        let (version, flags) = (header[4], header[5]);
        if version != VERSION || flags & !FLAGS_KNOWN != 0 || header[6..8] != [0; 2] {
            return Err(FrameError::Version { version, flags });
        }
        let frame = FrameHeader {
            digest: if flags & FLAG_DIGEST_BLAKE3 == 0 { Digest::Crc32c } else { Digest::Blake3 },
            is_compacted: flags & FLAG_COMPACTED != 0,
            batch_len: u32::from_le_bytes(chunk(header, 8)),
            base_offset: Offset(u64::from_le_bytes(chunk(header, 12))),
            last_offset_delta: u32::from_le_bytes(chunk(header, 20)),
            leader_epoch: LeaderEpoch(u32::from_le_bytes(chunk(header, 24))),
            append_time: Timestamp(i64::from_le_bytes(chunk(header, 28))),
            max_timestamp: Timestamp(i64::from_le_bytes(chunk(header, 36))),
            durable_floor: Offset(u64::from_le_bytes(chunk(header, 44))),
            chain: Chain(chunk(header, 52)),
            crc: u32::from_le_bytes(chunk(header, CRC_AT)),
        };
        if !(batch::HEADER_LEN..=limits::BATCH_BYTES_MAX).contains(&(frame.batch_len as usize)) {
            return Err(FrameError::Field("batch length"));
        }
        if frame.base_offset.checked_add(u64::from(frame.last_offset_delta) + 1).is_none() {
            return Err(FrameError::Field("offset"));
        }
        if frame.durable_floor > frame.base_offset {
            return Err(FrameError::Field("durable floor"));
        }
        Ok(frame)
    }

    /// Checks the frame at the front of `bytes` completely: header, batch, and that both agree.
    ///
    /// # Errors
    /// If it is cut short, damaged, or another partition's.
    pub fn check(seed: FrameSeed, bytes: &[u8]) -> Result<FrameHeader, FrameError> {
        let frame = FrameHeader::parse(bytes)?;
        let Some(batch) = bytes.get(HEADER_LEN..frame.frame_len()) else {
            // A damaged length must not pass for a short read where the CRC can already tell.
            if let Some(prefix) = bytes.get(HEADER_LEN..HEADER_LEN + BATCH_PREFIX_LEN) {
                frame.check_crc(seed, prefix)?;
            }
            return Err(FrameError::Short { have: bytes.len(), need: frame.frame_len() });
        };
        frame.check_crc(seed, batch)?;
        let batch = BatchHeader::check_stored(batch)?;
        if !frame.is_compacted {
            batch.check_as_sent()?;
        }
        frame.check_agreement(&batch)?;
        Ok(frame)
    }

    /// The chain after this frame, given the chain before it and its batch as stored.
    pub fn chain_after(&self, previous: &Chain, batch: &[u8]) -> Chain {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&previous.0);
        hasher.update(&self.encode()[..CHAINED_LEN]);
        match self.digest {
            Digest::Crc32c => hasher.update(&batch[batch::CRC_AT..batch::CRC_AT + 4]),
            Digest::Blake3 => hasher.update(blake3::hash(batch).as_bytes()),
        };
        Chain(*hasher.finalize().as_bytes())
    }

    fn check_crc(&self, seed: FrameSeed, batch: &[u8]) -> Result<(), FrameError> {
        let found = self.compute_crc(seed, batch);
        if found != self.crc {
            return Err(FrameError::Crc { found, expected: self.crc });
        }
        Ok(())
    }

    fn check_agreement(&self, batch: &BatchHeader) -> Result<(), FrameError> {
        let agreements = [
            (batch.base_offset == self.base_offset, "base offset"),
            (batch.last_offset_delta == self.last_offset_delta, "last offset"),
            (batch.leader_epoch == self.leader_epoch, "leader epoch"),
            (batch.max_timestamp == self.max_timestamp, "max timestamp"),
        ];
        match agreements.into_iter().find(|(agree, _)| !agree) {
            Some((_, what)) => Err(FrameError::Disagree(what)),
            None => Ok(()),
        }
    }

    fn compute_crc(&self, seed: FrameSeed, batch: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new_with_initial(seed.0);
        hasher.update(&self.encode()[..CRC_AT]);
        hasher.update(&batch[..BATCH_PREFIX_LEN]);
        hasher.finalize()
    }
}

fn chunk<const N: usize>(header: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&header[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchBuilder, Compression, Record};
    use crate::ids::{PartitionIndex, TopicId};

    fn seed(partition: u32) -> FrameSeed {
        FrameSeed::new(TopicPartition { topic: TopicId([7; 16]), partition: PartitionIndex(partition) })
    }

    fn frame(digest: Digest) -> Vec<u8> {
        let mut builder = BatchBuilder::new(Compression::None);
        let record = Record { value: Some("departed".into()), ..Record::default() };
        builder.push(&record, Timestamp(5)).expect("a small record fits");
        let mut batch = builder.finish().expect("nothing to compress").to_vec();
        let header = BatchHeader::check(&batch).expect("just built");
        let placement = Placement {
            base_offset: Offset(42),
            leader_epoch: LeaderEpoch(3),
            append_time: Timestamp(9),
            durable_floor: Offset(40),
            digest,
        };
        let frame = FrameHeader::seal(seed(0), &Chain::START, placement, &header, &mut batch);
        [frame.encode().as_slice(), &batch].concat()
    }

    #[test]
    fn a_sealed_frame_checks_and_carries_what_was_decided() {
        for digest in [Digest::Crc32c, Digest::Blake3] {
            let bytes = frame(digest);
            let header = FrameHeader::check(seed(0), &bytes).expect("intact");
            assert_eq!((header.base_offset, header.next_offset()), (Offset(42), Offset(43)));
            assert_eq!((header.max_timestamp, header.append_time), (Timestamp(5), Timestamp(9)));
            assert_eq!(header.chain, header.chain_after(&Chain::START, &bytes[HEADER_LEN..]));
        }
    }

    /// The frame of [`frame`] with what compaction leaves of its batch, in place of its one record.
    fn emptied(original: &[u8]) -> (FrameHeader, Vec<u8>) {
        let frame = FrameHeader::check(seed(0), original).expect("intact");
        let batch = &original[HEADER_LEN..];
        let header = BatchHeader::check(batch).expect("intact");
        let opened = batch::Compactable::open(&header, batch).expect("well formed");
        let emptied = opened.retain(None, |_| false).expect("small");
        let header = BatchHeader::check_stored(&emptied).expect("just made");
        (frame.compacted(seed(0), &header, &emptied), emptied)
    }

    #[test]
    fn records_are_missing_in_compacted_frames_alone() {
        for digest in [Digest::Crc32c, Digest::Blake3] {
            let original = frame(digest);
            let before = FrameHeader::check(seed(0), &original).expect("intact");
            let (header, batch) = emptied(&original);
            let bytes = [header.encode().as_slice(), &batch].concat();
            assert_eq!(FrameHeader::check(seed(0), &bytes), Ok(header));
            let expected = FrameHeader { is_compacted: true, batch_len: 61, crc: header.crc, ..before };
            assert_eq!(header, expected, "it keeps its place, its times and its chain");
            for bit in 0..bytes.len() * 8 {
                let mut damaged = bytes.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert!(FrameHeader::check(seed(0), &damaged).is_err(), "bit {bit} went unnoticed");
            }
            let mut unflagged = FrameHeader { is_compacted: false, ..header };
            unflagged.crc = unflagged.compute_crc(seed(0), &batch);
            let bytes = [unflagged.encode().as_slice(), &batch].concat();
            let refused = FrameHeader::check(seed(0), &bytes);
            assert!(matches!(refused, Err(FrameError::Batch(BatchError::Count { records: 0, .. }))));
        }
    }

    #[test]
    fn gaps_come_before_compacted_frames_alone() {
        let whole = FrameHeader::check(seed(0), &frame(Digest::Crc32c)).expect("intact");
        let compacted = FrameHeader { is_compacted: true, ..whole };
        let follows = |frame: FrameHeader| [41, 42, 43].map(|next| frame.follows(Offset(next)));
        assert_eq!(follows(whole), [false, true, false]);
        assert_eq!(follows(compacted), [true, true, false]);
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let bytes = frame(Digest::Crc32c);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(FrameHeader::check(seed(0), &damaged).is_err(), "bit {bit} went unnoticed");
        }
    }

    #[test]
    fn a_frame_of_another_partition_or_cut_short_does_not_parse() {
        let bytes = frame(Digest::Crc32c);
        assert!(matches!(FrameHeader::check(seed(1), &bytes), Err(FrameError::Crc { .. })));
        for len in 0..bytes.len() {
            assert!(FrameHeader::check(seed(0), &bytes[..len]).is_err());
        }
        assert_eq!(FrameHeader::check(seed(0), &[0; 256]), Err(FrameError::Unwritten));
    }
}
