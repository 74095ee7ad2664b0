//! The records inside a batch.

use bytes::{Buf, Bytes};

use crate::ids::{Offset, Timestamp};
use crate::limits;

use super::header::{BatchHeader, HEADER_LEN, TimestampType};
use super::{Compression, CompressionError, varint};

/// A named value carried beside a record. Names may repeat; their order is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The name.
    pub key: String,
    /// The value, if it has one.
    pub value: Option<Bytes>,
}

/// A record to be produced.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// Decides the partition, and what compaction keeps.
    pub key: Option<Bytes>,
    /// The payload; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// When it happened; `None` is the time of sending.
    pub timestamp: Option<Timestamp>,
    /// Named values carried along.
    pub headers: Vec<Header>,
}

/// A record as it was read, sharing its batch's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordView {
    /// Its position in the partition.
    pub offset: Offset,
    /// When it happened, or when it was appended if the topic says so.
    pub timestamp: Timestamp,
    /// Its key, if it has one.
    pub key: Option<Bytes>,
    /// Its payload; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Named values carried along.
    pub headers: Vec<Header>,
}

/// Records that are not what their batch header says, although its CRC is right: a faulty producer.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// The compressed part could not be restored.
    #[error(transparent)]
    Compression(#[from] CompressionError),
    /// A field runs past its record, or has no meaning.
    #[error("record {index} of the batch at offset {base_offset} is malformed: {what}")]
    Malformed {
        /// The batch's base offset.
        base_offset: Offset,
        /// The record's number in the batch.
        index: u32,
        /// Which field.
        what: &'static str,
    },
    /// More bytes than the records use.
    #[error("{0} bytes are left over after the last record")]
    LeftOver(usize),
}

/// Iterates over the records of one batch, in offset order. Stops after the first error.
#[derive(Debug)]
pub struct Records {
    header: BatchHeader,
    /// Everything not yet read; slices of it are handed out.
    rest: Bytes,
    /// Records read.
    next: u32,
    /// The least offset delta that the next one may have.
    delta_min: u32,
    failed: bool,
}

impl Records {
    /// Opens a whole batch whose header was parsed from it. Decompresses at once if needed.
    ///
    /// # Errors
    /// If compressed records can not be restored within the limit.
    pub fn open(header: &BatchHeader, batch: &Bytes) -> Result<Records, RecordsError> {
        let body = batch.slice(HEADER_LEN.min(batch.len())..);
        let rest = match header.compression {
            compression if header.record_count > 0 && compression != Compression::None => {
                Bytes::from(compression.decompress(&body)?)
            }
            _ => body,
        };
        Ok(Records { header: *header, rest, next: 0, delta_min: 0, failed: false })
    }

    /// Takes one record. Only its fields share the batch's memory: what they are cut from is not counted for each.
    fn read(&mut self) -> Result<RecordView, &'static str> {
        let mut cursor = self.rest.as_ref();
        let length = take_length(&mut cursor)?.ok_or("length is negative")?;
        let body = cursor.get(..length).ok_or("length runs past the batch")?;
        let taken = self.rest.len() - cursor.len() + length;
        let record = self.parse(body)?;
        self.delta_min = record.offset.since(self.header.base_offset) as u32 + 1;
        self.rest.advance(taken);
        Ok(record)
    }

    /// Reads a record whose bytes are a part of `rest`.
    fn parse(&self, record: &[u8]) -> Result<RecordView, &'static str> {
        let (_attributes, mut cursor) = record.split_first().ok_or("attributes are missing")?;
        let timestamp_delta = varint::take(&mut cursor).ok_or("timestamp is cut short")?;
        let offset_delta = varint::take(&mut cursor).ok_or("offset is cut short")?;
        let offset_delta = check_delta(&self.header, self.delta_min, offset_delta)?;
        let key = take_bytes(&self.rest, &mut cursor)?;
        let value = take_bytes(&self.rest, &mut cursor)?;
        let headers = take_headers(&self.rest, &mut cursor)?;
        if !cursor.is_empty() {
            return Err("it is longer than its fields");
        }
        Ok(RecordView {
            offset: Offset(self.header.base_offset.0 + u64::from(offset_delta)),
            timestamp: match self.header.timestamp_type {
                TimestampType::CreateTime => {
                    Timestamp(self.header.base_timestamp.0.wrapping_add(timestamp_delta))
                }
                TimestampType::LogAppendTime => self.header.max_timestamp,
            },
            key,
            value,
            headers,
        })
    }
}

impl Iterator for Records {
    type Item = Result<RecordView, RecordsError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        if self.next == self.header.record_count {
            self.failed = true;
            return (!self.rest.is_empty()).then(|| Err(RecordsError::LeftOver(self.rest.len())));
        }
        let index = self.next;
        let base_offset = self.header.base_offset;
        let record = self.read().map_err(|what| RecordsError::Malformed { base_offset, index, what });
        self.failed = record.is_err();
        self.next += 1;
        Some(record)
    }
}

/// The offset delta of a record, if it is one of the batch's and none before it has it. In a whole batch that is the
/// record's number.
pub(super) fn check_delta(header: &BatchHeader, delta_min: u32, delta: i64) -> Result<u32, &'static str> {
    let delta = u32::try_from(delta).map_err(|_| "offset is out of order")?;
    let is_in_order = match header.is_whole() {
        true => delta == delta_min,
        false => (delta_min..=header.last_offset_delta).contains(&delta),
    };
    if is_in_order { Ok(delta) } else { Err("offset is out of order") }
}

/// Reads a length; -1 is `None`.
pub(super) fn take_length(cursor: &mut &[u8]) -> Result<Option<usize>, &'static str> {
    match varint::take(cursor).ok_or("a length is cut short")? {
        -1 => Ok(None),
        length => usize::try_from(length).map(Some).map_err(|_| "a length is negative"),
    }
}

/// Reads a field from `cursor`, which is a part of `memory`, and shares it.
fn take_bytes(memory: &Bytes, cursor: &mut &[u8]) -> Result<Option<Bytes>, &'static str> {
    let Some(length) = take_length(cursor)? else { return Ok(None) };
    let bytes = cursor.get(..length).ok_or("a field runs past its record")?;
    *cursor = &cursor[length..];
    Ok(Some(memory.slice_ref(bytes)))
}

fn take_headers(memory: &Bytes, cursor: &mut &[u8]) -> Result<Vec<Header>, &'static str> {
    let count = take_length(cursor)?.ok_or("header count is negative")?;
    if count > limits::RECORD_HEADERS_MAX {
        return Err("it has too many headers");
    }
    let mut headers = Vec::new();
    for _ in 0..count {
        let key = take_bytes(memory, cursor)?.ok_or("a header has no name")?;
        let key = std::str::from_utf8(&key).map_err(|_| "a header's name is not UTF-8")?.to_owned();
        headers.push(Header { key, value: take_bytes(memory, cursor)? });
    }
    Ok(headers)
}
