//! Builds a batch record by record.

use bytes::Bytes;

use crate::ids::{Sequence, Timestamp};
use crate::limits;

use super::header::{self, HEADER_LEN, NewHeader};
use super::numbering::ProducerIdentity;
use super::{Compression, CompressionError, Record, varint};

/// Why a record does not go into a batch at all, or a batch could not be finished.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The record alone exceeds what a batch may hold.
    #[error("record of {bytes} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Its encoded length.
        bytes: usize,
        /// The limit it exceeds.
        limit: usize,
    },
    /// More headers than a record may have.
    #[error("record has {0} headers, at most {max} are allowed", max = limits::RECORD_HEADERS_MAX)]
    TooManyHeaders(usize),
    /// The finished batch exceeds [`limits::BATCH_BYTES_MAX`]: more was pushed than any broker takes.
    #[error("batch of {0} bytes exceeds the limit of {max}", max = limits::BATCH_BYTES_MAX)]
    BatchTooLarge(usize),
    /// The compressor failed.
    #[error(transparent)]
    Compression(#[from] CompressionError),
}

/// Collects records into one batch. Offsets and leader epoch are left for the leader to fill in.
#[derive(Debug)]
pub struct BatchBuilder {
    compression: Compression,
    /// The header's room, then encoded records.
    bytes: Vec<u8>,
    base_timestamp: i64,
    max_timestamp: i64,
    count: u32,
}

impl BatchBuilder {
    /// An empty batch that will be compressed as said.
    pub fn new(compression: Compression) -> BatchBuilder {
        BatchBuilder::with_capacity(compression, 0)
    }

    /// As [`BatchBuilder::new`], with memory for this many bytes before compression, header included: a batch that is
    /// filled up to there is not moved meanwhile.
    pub fn with_capacity(compression: Compression, bytes: usize) -> BatchBuilder {
        let bytes = Vec::with_capacity(bytes);
        BatchBuilder { compression, bytes, base_timestamp: 0, max_timestamp: i64::MIN, count: 0 }
    }

    /// Whether it holds no record.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Bytes before compression, header included.
    pub fn encoded_len(&self) -> usize {
        self.bytes.len().max(HEADER_LEN)
    }

    /// Most bytes `record` can take in any batch, its own header excluded.
    pub fn record_len_max(record: &Record) -> usize {
        body_len(record, i64::MIN, i64::from(u32::MAX)) + 5
    }

    /// Appends a record; `now` stands in for a missing timestamp.
    ///
    /// # Errors
    /// If the record could not fit any batch of `limits::BATCH_BYTES_MAX`, or has too many headers. The batch is unchanged then.
    ///
    /// # Panics
    /// If the batch already holds [`limits::BATCH_RECORDS_MAX`] records: ask [`BatchBuilder::len`] first.
    pub fn push(&mut self, record: &Record, now: Timestamp) -> Result<(), EncodeError> {
        assert!(self.len() < limits::BATCH_RECORDS_MAX, "a full batch takes no more records");
        if record.headers.len() > limits::RECORD_HEADERS_MAX {
            return Err(EncodeError::TooManyHeaders(record.headers.len()));
        }
        let timestamp = record.timestamp.unwrap_or(now).0;
        let base_timestamp = if self.count == 0 { timestamp } else { self.base_timestamp };
        let timestamp_delta = timestamp.wrapping_sub(base_timestamp);
        let length = body_len(record, timestamp_delta, i64::from(self.count));
        if length + HEADER_LEN > limits::BATCH_BYTES_MAX {
            return Err(EncodeError::TooLarge { bytes: length, limit: limits::BATCH_BYTES_MAX - HEADER_LEN });
        }
        if self.bytes.is_empty() {
            self.bytes.resize(HEADER_LEN, 0);
        }
        varint::put(&mut self.bytes, length as i64);
        put_body(&mut self.bytes, record, timestamp_delta, i64::from(self.count));
        self.base_timestamp = base_timestamp;
        self.max_timestamp = self.max_timestamp.max(timestamp);
        self.count += 1;
        Ok(())
    }

    /// Finishes the batch: compresses, writes the header, seals it with its CRC-32C.
    ///
    /// # Errors
    /// If the compressor fails, or if what comes out exceeds [`limits::BATCH_BYTES_MAX`].
    ///
    /// # Panics
    /// If the batch is empty: an empty batch has no place in a log.
    pub fn finish(self) -> Result<Bytes, EncodeError> {
        self.finish_numbered(None)
    }

    /// As [`BatchBuilder::finish`], as this producer's batch that begins with this number.
    ///
    /// # Errors
    /// As [`BatchBuilder::finish`].
    ///
    /// # Panics
    /// As [`BatchBuilder::finish`].
    pub fn finish_numbered(
        self,
        numbering: Option<(ProducerIdentity, Sequence)>,
    ) -> Result<Bytes, EncodeError> {
        assert!(!self.is_empty(), "an empty batch is not sent");
        let mut bytes = match self.compression {
            Compression::None => self.bytes,
            compression => {
                let mut out = vec![0; HEADER_LEN];
                compression.compress(&self.bytes[HEADER_LEN..], &mut out)?;
                out
            }
        };
        if bytes.len() > limits::BATCH_BYTES_MAX {
            return Err(EncodeError::BatchTooLarge(bytes.len()));
        }
        let new = NewHeader {
            compression: self.compression,
            base_timestamp: self.base_timestamp,
            max_timestamp: self.max_timestamp,
            record_count: self.count,
            numbering,
        };
        header::write(&mut bytes, &new);
        Ok(Bytes::from(bytes))
    }
}

fn body_len(record: &Record, timestamp_delta: i64, offset_delta: i64) -> usize {
    let field = |bytes: Option<usize>| match bytes {
        Some(length) => varint::len(length as i64) + length,
        None => varint::len(-1),
    };
    let headers: usize = record
        .headers
        .iter()
        .map(|h| field(Some(h.key.len())) + field(h.value.as_ref().map(Bytes::len)))
        .sum();
    1 + varint::len(timestamp_delta)
        + varint::len(offset_delta)
        + field(record.key.as_ref().map(Bytes::len))
        + field(record.value.as_ref().map(Bytes::len))
        + varint::len(record.headers.len() as i64)
        + headers
}

fn put_body(out: &mut Vec<u8>, record: &Record, timestamp_delta: i64, offset_delta: i64) {
    out.push(0);
    varint::put(out, timestamp_delta);
    varint::put(out, offset_delta);
    put_bytes(out, record.key.as_deref());
    put_bytes(out, record.value.as_deref());
    varint::put(out, record.headers.len() as i64);
    for header in &record.headers {
        put_bytes(out, Some(header.key.as_bytes()));
        put_bytes(out, header.value.as_deref());
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => {
            varint::put(out, bytes.len() as i64);
            out.extend_from_slice(bytes);
        }
        None => varint::put(out, -1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_with_room_is_not_moved_while_it_grows() {
        let record = Record { value: Some(vec![7; 1000].into()), ..Record::default() };
        let mut batch = BatchBuilder::with_capacity(Compression::None, 64 * 1024);
        let place = batch.bytes.as_ptr();
        while batch.encoded_len() + BatchBuilder::record_len_max(&record) <= 64 * 1024 {
            batch.push(&record, Timestamp(0)).expect("it fits");
        }
        assert_eq!(batch.bytes.as_ptr(), place);
    }
}
