//! The 61-byte header of a record batch.

use crate::ids::{LeaderEpoch, Offset, Sequence, Timestamp};
use crate::limits;

use super::Compression;
use super::numbering::{self, PRODUCER_AT, ProducerIdentity};

/// Length of the header (bytes).
pub const HEADER_LEN: usize = 61;
/// Where the CRC-32C stands; it covers everything after its four bytes.
pub const CRC_AT: usize = 17;

const LENGTH_AT: usize = 8;
const EPOCH_AT: usize = 12;
const MAGIC_AT: usize = 16;
const ATTRIBUTES_AT: usize = 21;
const BASE_TIMESTAMP_AT: usize = 27;
const MAX_TIMESTAMP_AT: usize = 35;
const RECORD_COUNT_AT: usize = 57;
/// Bytes that the batch length does not count: base offset and the length itself.
const LENGTH_EXCLUDES: usize = 12;
const MAGIC: u8 = 2;

const ATTRIBUTE_COMPRESSION: i16 = 0b0000_0111;
const ATTRIBUTE_APPEND_TIME: i16 = 0b0000_1000;
const ATTRIBUTE_TRANSACTIONAL: i16 = 0b0001_0000;
const ATTRIBUTE_CONTROL: i16 = 0b0010_0000;
const ATTRIBUTE_DELETE_HORIZON: i16 = 0b0100_0000;
const ATTRIBUTES_KNOWN: i16 = ATTRIBUTE_COMPRESSION
    | ATTRIBUTE_APPEND_TIME
    | ATTRIBUTE_TRANSACTIONAL
    | ATTRIBUTE_CONTROL
    | ATTRIBUTE_DELETE_HORIZON;

/// Whose clock a batch's timestamps come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestampType {
    /// The producer's.
    CreateTime,
    /// The broker's, one for the whole batch.
    LogAppendTime,
}

/// A batch's header, parsed and consistent with itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record; what a producer sends here is ignored.
    pub base_offset: Offset,
    /// Length of the whole batch, header included (bytes).
    pub len: usize,
    /// Leadership it was appended in; what a producer sends here is ignored.
    pub leader_epoch: LeaderEpoch,
    /// CRC-32C of everything after it, as stored.
    pub crc: u32,
    /// How the records are compressed.
    pub compression: Compression,
    /// Whose clock the timestamps come from.
    pub timestamp_type: TimestampType,
    /// Whether it belongs to a transaction.
    pub is_transactional: bool,
    /// Whether it holds transaction markers in place of records.
    pub is_control: bool,
    /// Offset of the last record, less the base offset.
    pub last_offset_delta: u32,
    /// What record timestamps are relative to.
    pub base_timestamp: Timestamp,
    /// The largest record timestamp.
    pub max_timestamp: Timestamp,
    /// The producer's id, -1 if it is not idempotent.
    pub producer_id: i64,
    /// The producer's epoch, -1 if it is not idempotent.
    pub producer_epoch: i16,
    /// Sequence number of the first record, -1 if the producer is not idempotent.
    pub base_sequence: i32,
    /// When tombstones in it may go, once compaction has come past them; the base timestamp's field holds it, and record
    /// timestamps are relative to it.
    pub delete_horizon: Option<Timestamp>,
    /// Number of records; fewer than offsets where compaction took some away.
    pub record_count: u32,
}

/// Bytes that are not an acceptable batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Fewer bytes than the header or than its length field says.
    #[error("batch is cut short: {have} bytes of {need}")]
    Short {
        /// Bytes there.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// A length that no batch has.
    #[error("batch length {0} is out of range")]
    Length(i64),
    /// Another format than v2.
    #[error("batch has magic {0}, expected 2")]
    Magic(u8),
    /// Attribute bits that have no meaning, or a compression number that has none.
    #[error("batch has unknown attributes {0:#06x}")]
    Attributes(i16),
    /// Counts that contradict each other or a limit.
    #[error("batch claims {records} records with a last offset delta of {last_offset_delta}")]
    Count {
        /// The record count field.
        records: i32,
        /// The last offset delta field.
        last_offset_delta: i32,
    },
    /// An offset or an epoch that is negative.
    #[error("batch has base offset {base_offset} and leader epoch {leader_epoch}")]
    Position {
        /// The base offset field.
        base_offset: i64,
        /// The leader epoch field.
        leader_epoch: i32,
    },
    /// A producer's id without an epoch or a sequence number, or a negative one.
    #[error(
        "batch has producer id {producer_id}, epoch {producer_epoch} and sequence {base_sequence}, which do not go together"
    )]
    Producer {
        /// The producer id field.
        producer_id: i64,
        /// The producer epoch field.
        producer_epoch: i16,
        /// The base sequence field.
        base_sequence: i32,
    },
    /// The bytes are not those the CRC was made of.
    #[error("batch is damaged: CRC-32C is {found:#010x}, its header says {expected:#010x}")]
    Crc {
        /// Computed over the bytes.
        found: u32,
        /// Stored in the header.
        expected: u32,
    },
}

impl BatchHeader {
    /// Parses the header alone. `bytes` may be longer than the batch; its length is in [`BatchHeader::len`].
    ///
    /// # Errors
    /// Any field that contradicts the format, a limit or another field. The CRC is not checked here, nor that the
    /// whole batch is there.
    pub fn parse(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        let Some(header) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(BatchError::Short { have: bytes.len(), need: HEADER_LEN });
        };
        let length = i32_at(header, LENGTH_AT);
        let len = usize::try_from(length).ok().map(|len| len + LENGTH_EXCLUDES);
        let Some(len) = len.filter(|len| (HEADER_LEN..=limits::BATCH_BYTES_MAX).contains(len)) else {
            return Err(BatchError::Length(length.into()));
        };
        if header[MAGIC_AT] != MAGIC {
            return Err(BatchError::Magic(header[MAGIC_AT]));
        }
        let attributes = i16::from_be_bytes([header[ATTRIBUTES_AT], header[ATTRIBUTES_AT + 1]]);
        let compression = Compression::from_number((attributes & ATTRIBUTE_COMPRESSION) as u8)
            .filter(|_| attributes & !ATTRIBUTES_KNOWN == 0)
            .ok_or(BatchError::Attributes(attributes))?;
        let (last_offset_delta, record_count) = parse_counts(header)?;
        let (base_offset, leader_epoch) = parse_position(header)?;
        Ok(BatchHeader {
            base_offset,
            len,
            leader_epoch,
            crc: u32::from_be_bytes(chunk(header, CRC_AT)),
            compression,
            timestamp_type: match attributes & ATTRIBUTE_APPEND_TIME {
                0 => TimestampType::CreateTime,
                _ => TimestampType::LogAppendTime,
            },
            is_transactional: attributes & ATTRIBUTE_TRANSACTIONAL != 0,
            is_control: attributes & ATTRIBUTE_CONTROL != 0,
            last_offset_delta,
            base_timestamp: Timestamp(i64_at(header, BASE_TIMESTAMP_AT)),
            max_timestamp: Timestamp(i64_at(header, MAX_TIMESTAMP_AT)),
            producer_id: i64_at(header, PRODUCER_AT),
            producer_epoch: i16::from_be_bytes(chunk(header, 51)),
            base_sequence: i32_at(header, 53),
            delete_horizon: (attributes & ATTRIBUTE_DELETE_HORIZON != 0)
                .then(|| Timestamp(i64_at(header, BASE_TIMESTAMP_AT))),
            record_count,
        })
    }

    /// As [`BatchHeader::check_stored`], of a batch as producers send them: with a record for each of its offsets, and
    /// without a delete horizon.
    ///
    /// # Errors
    /// As [`BatchHeader::check_stored`], and if it is another.
    pub fn check(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        let header = BatchHeader::check_stored(bytes)?;
        header.check_as_sent().map(|()| header)
    }

    /// Parses the header and checks the CRC over the whole batch, which must be exactly `bytes`. Compaction may have taken
    /// any of its records away.
    ///
    /// # Errors
    /// As [`BatchHeader::parse`], and if `bytes` is not one whole undamaged batch.
    pub fn check_stored(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        let header = BatchHeader::parse(bytes)?;
        if bytes.len() < header.len {
            return Err(BatchError::Short { have: bytes.len(), need: header.len });
        }
        if bytes.len() > header.len {
            return Err(BatchError::Length(bytes.len() as i64));
        }
        let found = crc32c(&bytes[ATTRIBUTES_AT..]);
        if found != header.crc {
            return Err(BatchError::Crc { found, expected: header.crc });
        }
        Ok(header)
    }

    /// Whether every offset of the batch has its record.
    pub fn is_whole(&self) -> bool {
        u64::from(self.record_count) == u64::from(self.last_offset_delta) + 1
    }

    /// # Errors
    /// If records are missing, or a delete horizon is set: only compaction does either.
    pub(crate) fn check_as_sent(&self) -> Result<(), BatchError> {
        if self.delete_horizon.is_some() {
            return Err(BatchError::Attributes(ATTRIBUTE_DELETE_HORIZON));
        }
        if self.is_whole() {
            return Ok(());
        }
        let (records, last_offset_delta) = (self.record_count as i32, self.last_offset_delta as i32);
        Err(BatchError::Count { records, last_offset_delta })
    }

    /// Offset of the last record, also of one that compaction took away.
    pub fn last_offset(&self) -> Offset {
        Offset(self.base_offset.0 + u64::from(self.last_offset_delta))
    }
}

/// Writes base offset and leader epoch into a batch. Both lie outside its CRC.
///
/// # Panics
/// If `batch` is shorter than a header: the caller has parsed it.
pub fn stamp(batch: &mut [u8], base_offset: Offset, leader_epoch: LeaderEpoch) {
    assert!(batch.len() >= HEADER_LEN, "only a parsed batch is stamped");
    batch[..8].copy_from_slice(&base_offset.0.to_be_bytes());
    batch[EPOCH_AT..EPOCH_AT + 4].copy_from_slice(&leader_epoch.0.to_be_bytes());
}

/// Makes `append_time` the timestamp of every record of the batch (`message.timestamp.type = LogAppendTime`) and
/// seals it with a new CRC.
///
/// # Panics
/// If `batch` is shorter than a header: the caller has parsed it.
pub fn set_append_time(batch: &mut [u8], append_time: Timestamp) {
    assert!(batch.len() >= HEADER_LEN, "only a parsed batch is rewritten");
    batch[ATTRIBUTES_AT + 1] |= ATTRIBUTE_APPEND_TIME as u8;
    batch[MAX_TIMESTAMP_AT..MAX_TIMESTAMP_AT + 8].copy_from_slice(&append_time.0.to_be_bytes());
    seal(batch);
}

/// Computes the CRC-32C of a finished batch and writes it into its header.
pub(super) fn seal(batch: &mut [u8]) {
    let crc = crc32c(&batch[ATTRIBUTES_AT..]);
    batch[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
}

/// The fields of a header about to be written by the builder.
pub(super) struct NewHeader {
    pub compression: Compression,
    pub base_timestamp: i64,
    pub max_timestamp: i64,
    pub record_count: u32,
    pub numbering: Option<(ProducerIdentity, Sequence)>,
}

/// Writes the header over the first [`HEADER_LEN`] bytes of `batch`, which is complete otherwise, and seals it.
pub(super) fn write(batch: &mut [u8], new: &NewHeader) {
    let length = (batch.len() - LENGTH_EXCLUDES) as i32;
    batch[..8].fill(0);
    batch[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&length.to_be_bytes());
    batch[EPOCH_AT..EPOCH_AT + 4].fill(0);
    batch[MAGIC_AT] = MAGIC;
    batch[ATTRIBUTES_AT..ATTRIBUTES_AT + 2]
        .copy_from_slice(&i16::from(new.compression.number()).to_be_bytes());
    batch[23..27].copy_from_slice(&(new.record_count - 1).to_be_bytes());
    batch[BASE_TIMESTAMP_AT..35].copy_from_slice(&new.base_timestamp.to_be_bytes());
    batch[MAX_TIMESTAMP_AT..43].copy_from_slice(&new.max_timestamp.to_be_bytes());
    batch[PRODUCER_AT..51].copy_from_slice(&(-1i64).to_be_bytes());
    batch[51..53].copy_from_slice(&(-1i16).to_be_bytes());
    batch[53..57].copy_from_slice(&(-1i32).to_be_bytes());
    if let Some((producer, base_sequence)) = new.numbering {
        numbering::put(batch, producer, base_sequence);
    }
    batch[RECORD_COUNT_AT..61].copy_from_slice(&new.record_count.to_be_bytes());
    seal(batch);
}

/// What compaction changes of a header.
pub(super) struct Compacted {
    pub is_compressed: bool,
    pub delete_horizon: Option<Timestamp>,
    pub base_timestamp: Timestamp,
    pub max_timestamp: Timestamp,
    pub record_count: u32,
}

/// Makes the header of a batch that compaction wrote anew, with the first [`HEADER_LEN`] bytes of the original, fit what
/// follows it, and seals it.
pub(super) fn rewrite(batch: &mut [u8], new: &Compacted) {
    let length = (batch.len() - LENGTH_EXCLUDES) as i32;
    batch[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&length.to_be_bytes());
    let attributes = &mut batch[ATTRIBUTES_AT + 1];
    if !new.is_compressed {
        *attributes &= !(ATTRIBUTE_COMPRESSION as u8);
    }
    if new.delete_horizon.is_some() {
        *attributes |= ATTRIBUTE_DELETE_HORIZON as u8;
    }
    batch[BASE_TIMESTAMP_AT..35].copy_from_slice(&new.base_timestamp.0.to_be_bytes());
    batch[MAX_TIMESTAMP_AT..43].copy_from_slice(&new.max_timestamp.0.to_be_bytes());
    batch[RECORD_COUNT_AT..61].copy_from_slice(&new.record_count.to_be_bytes());
    seal(batch);
}

fn parse_counts(header: &[u8; HEADER_LEN]) -> Result<(u32, u32), BatchError> {
    let (delta, records) = (i32_at(header, 23), i32_at(header, RECORD_COUNT_AT));
    let plausible = delta >= 0
        && records >= 0
        && (delta as usize) < limits::BATCH_RECORDS_MAX
        && i64::from(records) <= i64::from(delta) + 1;
    if !plausible {
        return Err(BatchError::Count { records, last_offset_delta: delta });
    }
    Ok((delta as u32, records as u32))
}

fn parse_position(header: &[u8; HEADER_LEN]) -> Result<(Offset, LeaderEpoch), BatchError> {
    let (base_offset, leader_epoch) = (i64_at(header, 0), i32_at(header, EPOCH_AT));
    // Kafka's producers send -1 for "no epoch yet".
    if base_offset < 0 || leader_epoch < -1 {
        return Err(BatchError::Position { base_offset, leader_epoch });
    }
    Ok((Offset(base_offset as u64), LeaderEpoch(leader_epoch.max(0) as u32)))
}

fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

fn chunk<const N: usize>(header: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&header[at..at + N]);
    out
}

fn i32_at(header: &[u8; HEADER_LEN], at: usize) -> i32 {
    i32::from_be_bytes(chunk(header, at))
}

fn i64_at(header: &[u8; HEADER_LEN], at: usize) -> i64 {
    i64::from_be_bytes(chunk(header, at))
}
