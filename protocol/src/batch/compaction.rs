//! What compaction does to a batch: it looks at keys, and writes the batch anew without the records that are to go.
//!
//! Records that stay are copied byte for byte, so that whatever is in them stays. They keep their offset deltas, the header
//! keeps its last offset delta, producer id, epoch and sequence: what is gone leaves a gap. A batch without any record is
//! left with its header alone, and says that it is not compressed.

use std::borrow::Cow;

use crate::ids::Timestamp;
use crate::limits;

use super::header::{self, BatchHeader, Compacted, HEADER_LEN, TimestampType};
use super::records::{RecordsError, check_delta, take_length};
use super::{Compression, varint};

/// A whole batch whose records compaction looks at.
#[derive(Debug)]
pub struct Compactable<'a> {
    header: BatchHeader,
    batch: &'a [u8],
    /// The records as they were before they were compressed.
    records: Cow<'a, [u8]>,
}

/// What compaction knows a record by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordKey<'a> {
    /// Its offset, less the batch's base offset.
    pub offset_delta: u32,
    /// Its key, if it has one.
    pub key: Option<&'a [u8]>,
    /// Whether it has no value: it tells that its key is gone.
    pub is_tombstone: bool,
}

/// One record, and the parts of it that are written anew if its timestamp is to be told otherwise.
#[derive(Debug, Clone, Copy)]
struct RawRecord<'a> {
    known_by: RecordKey<'a>,
    /// All of it, its length included.
    bytes: &'a [u8],
    attributes: u8,
    timestamp_delta: i64,
    /// Everything behind the timestamp delta.
    rest: &'a [u8],
}

impl<'a> Compactable<'a> {
    /// Opens a whole batch whose header was parsed from it. Decompresses at once if needed, within
    /// [`limits::BATCH_DECOMPRESSED_BYTES_MAX`], and looks at every record.
    ///
    /// # Errors
    /// If the records are not what the header says: such a batch is nothing to compact.
    pub fn open(header: &BatchHeader, batch: &'a [u8]) -> Result<Compactable<'a>, RecordsError> {
        let body = batch.get(HEADER_LEN..).unwrap_or_default();
        let records = match header.compression {
            compression if header.record_count > 0 && compression != Compression::None => {
                compression.decompress(body)?.into()
            }
            _ => body.into(),
        };
        let opened = Compactable { header: *header, batch, records };
        let mut walk = opened.walk();
        walk.by_ref().try_for_each(|record| record.map(drop))?;
        match walk.rest.len() {
            0 => Ok(opened),
            left => Err(RecordsError::LeftOver(left)),
        }
    }

    /// What each record is known by, in offset order.
    pub fn keys(&self) -> impl Iterator<Item = RecordKey<'_>> {
        self.walk().map_while(Result::ok).map(|record| record.known_by)
    }

    /// The batch with those records alone for which `is_kept` holds; with this delete horizon, if it has none yet. All
    /// records keep their offsets and timestamps. The max timestamp is that of the records that are left, and stays as it
    /// was if none is.
    ///
    /// `None` if the batch would be larger than a batch may be, or can not be compressed: it is to stay as it is.
    pub fn retain(
        &self,
        delete_horizon: Option<Timestamp>,
        mut is_kept: impl FnMut(&RecordKey<'_>) -> bool,
    ) -> Option<Vec<u8>> {
        let header = &self.header;
        let delete_horizon = delete_horizon.filter(|_| header.delete_horizon.is_none());
        let base_timestamp = delete_horizon.unwrap_or(header.base_timestamp);
        let (mut kept, mut record_count, mut latest) = (Vec::with_capacity(self.records.len()), 0, None);
        for record in self.walk().map_while(Result::ok).filter(|record| is_kept(&record.known_by)) {
            let timestamp = header.base_timestamp.0.wrapping_add(record.timestamp_delta);
            latest = latest.max(Some(timestamp));
            record_count += 1;
            match delete_horizon {
                Some(base) => record.put(&mut kept, timestamp.wrapping_sub(base.0)),
                None => kept.extend_from_slice(record.bytes),
            }
        }
        let max_timestamp = match header.timestamp_type {
            TimestampType::CreateTime => latest.map_or(header.max_timestamp, Timestamp),
            TimestampType::LogAppendTime => header.max_timestamp,
        };
        let is_compressed = record_count > 0 && header.compression != Compression::None;
        let mut out = self.batch[..HEADER_LEN].to_vec();
        if is_compressed {
            header.compression.compress(&kept, &mut out).ok()?;
        } else {
            out.extend_from_slice(&kept);
        }
        if out.len() > limits::BATCH_BYTES_MAX || kept.len() > limits::BATCH_DECOMPRESSED_BYTES_MAX {
            return None;
        }
        let new = Compacted { is_compressed, delete_horizon, base_timestamp, max_timestamp, record_count };
        header::rewrite(&mut out, &new);
        Some(out)
    }

    fn walk(&self) -> RawRecords<'_> {
        RawRecords { header: &self.header, rest: &self.records, read: 0, delta_min: 0 }
    }
}

/// Goes from record to record.
struct RawRecords<'a> {
    header: &'a BatchHeader,
    rest: &'a [u8],
    read: u32,
    delta_min: u32,
}

impl<'a> RawRecords<'a> {
    fn take(&mut self) -> Result<RawRecord<'a>, &'static str> {
        let mut cursor = self.rest;
        let length = take_length(&mut cursor)?.ok_or("length is negative")?;
        let body = cursor.get(..length).ok_or("length runs past the batch")?;
        let (bytes, after) = self.rest.split_at(self.rest.len() - cursor.len() + length);
        let (attributes, mut cursor) = body.split_first().ok_or("attributes are missing")?;
        let timestamp_delta = varint::take(&mut cursor).ok_or("timestamp is cut short")?;
        let rest = cursor;
        let offset_delta = varint::take(&mut cursor).ok_or("offset is cut short")?;
        let offset_delta = check_delta(self.header, self.delta_min, offset_delta)?;
        let key = take_field(&mut cursor)?;
        let is_tombstone = take_field(&mut cursor)?.is_none();
        let known_by = RecordKey { offset_delta, key, is_tombstone };
        self.delta_min = offset_delta + 1;
        self.rest = after;
        Ok(RawRecord { known_by, bytes, attributes: *attributes, timestamp_delta, rest })
    }
}

impl<'a> Iterator for RawRecords<'a> {
    type Item = Result<RawRecord<'a>, RecordsError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.read == self.header.record_count {
            return None;
        }
        let (base_offset, index) = (self.header.base_offset, self.read);
        self.read += 1;
        Some(self.take().map_err(|what| {
            self.read = self.header.record_count;
            RecordsError::Malformed { base_offset, index, what }
        }))
    }
}

impl RawRecord<'_> {
    fn put(&self, out: &mut Vec<u8>, timestamp_delta: i64) {
        let length = 1 + varint::len(timestamp_delta) + self.rest.len();
        varint::put(out, length as i64);
        out.push(self.attributes);
        varint::put(out, timestamp_delta);
        out.extend_from_slice(self.rest);
    }
}

fn take_field<'a>(cursor: &mut &'a [u8]) -> Result<Option<&'a [u8]>, &'static str> {
    let Some(length) = take_length(cursor)? else { return Ok(None) };
    let (field, rest) = cursor.split_at_checked(length).ok_or("a field runs past its record")?;
    *cursor = rest;
    Ok(Some(field))
}

/// Tells keys apart by 128 bits of a keyed BLAKE3, in place of the keys themselves.
///
/// Two keys that were taken for one would lose a record. Among a billion keys the chance of that is below 2⁻⁶⁸; and who
/// chooses keys can not choose two alike without knowing the seed, which is drawn anew for each use and never leaves the
/// process.
#[derive(Clone)]
pub struct KeyHasher([u8; 32]);

impl KeyHasher {
    /// With a seed that nobody can guess.
    pub fn new(seed: [u8; 32]) -> KeyHasher {
        KeyHasher(seed)
    }

    /// What stands for the key.
    pub fn hash(&self, key: &[u8]) -> [u64; 2] {
        let hash = blake3::keyed_hash(&self.0, key);
        let (words, _) = hash.as_bytes().as_chunks::<8>();
        [u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1])]
    }
}

impl std::fmt::Debug for KeyHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyHasher")
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::batch::{BatchBuilder, Record, RecordView, Records};

    fn batch(records: &[Record], compression: Compression) -> Vec<u8> {
        let mut builder = BatchBuilder::new(compression);
        records.iter().for_each(|record| builder.push(record, Timestamp(7)).expect("small records fit"));
        builder.finish().expect("it compresses").to_vec()
    }

    fn read(batch: &[u8]) -> (BatchHeader, Vec<RecordView>) {
        let header = BatchHeader::check_stored(batch).expect("sealed");
        let records = Records::open(&header, &Bytes::copy_from_slice(batch)).expect("restored");
        (header, records.collect::<Result<_, _>>().expect("well formed"))
    }

    fn any_record() -> impl Strategy<Value = Record> {
        let field = || proptest::option::of(vec(any::<u8>(), 0..12).prop_map(Bytes::from));
        (field(), field(), -1000i64..1000).prop_map(|(key, value, timestamp)| Record {
            key,
            value,
            timestamp: Some(Timestamp(timestamp)),
            headers: Vec::new(),
        })
    }

    proptest! {
        #[test]
        fn what_is_kept_is_as_it_was_and_all_else_is_gone(
            records in vec(any_record(), 1..20),
            kept in vec(any::<bool>(), 20),
            compression in 0u8..5,
            horizon in proptest::option::of(-5i64..1 << 40),
        ) {
            let compression = Compression::from_number(compression).expect("one of five");
            let original = batch(&records, compression);
            let (header, before) = read(&original);
            let opened = Compactable::open(&header, &original).expect("well formed");
            let keys: Vec<_> = opened.keys().collect();
            for (key, record) in keys.iter().zip(&records) {
                prop_assert_eq!(key.key, record.key.as_deref());
                prop_assert_eq!(key.is_tombstone, record.value.is_none());
            }
            let is_kept = |key: &RecordKey<'_>| kept[key.offset_delta as usize];
            let rewritten = opened.retain(horizon.map(Timestamp), is_kept).expect("small");
            let (after, left) = read(&rewritten);
            let expected: Vec<_> =
                before.iter().filter(|record| kept[record.offset.0 as usize]).cloned().collect();
            prop_assert_eq!(&left, &expected);
            prop_assert_eq!(after.delete_horizon, horizon.map(Timestamp));
            prop_assert_eq!(after.last_offset_delta, header.last_offset_delta);
            prop_assert_eq!(after.numbering(), header.numbering());
            let latest = expected.iter().map(|record| record.timestamp).max();
            prop_assert_eq!(after.max_timestamp, latest.unwrap_or(header.max_timestamp));
            let is_as_sent = expected.len() == before.len() && horizon.is_none();
            prop_assert_eq!(BatchHeader::check(&rewritten).is_ok(), is_as_sent);
            // A second time, with what the first left.
            let again = Compactable::open(&after, &rewritten).expect("well formed");
            let emptied = again.retain(Some(Timestamp(99)), |_| false).expect("small");
            let (header, left) = read(&emptied);
            prop_assert!(left.is_empty() && emptied.len() == HEADER_LEN);
            prop_assert_eq!(header.delete_horizon, horizon.map(Timestamp).or(Some(Timestamp(99))));
        }

        #[test]
        fn any_records_are_opened_as_they_are_read_or_refused(body in vec(any::<u8>(), 0..60), count in 1u32..4) {
            let record = Record { value: Some("v".into()), ..Record::default() };
            let mut forged = batch(&vec![record; count as usize], Compression::None);
            forged.truncate(HEADER_LEN);
            forged.extend_from_slice(&body);
            let header = BatchHeader { len: forged.len(), record_count: count, ..read_header(&forged) };
            let bytes = Bytes::from(forged.clone());
            let all: Result<Vec<_>, _> = Records::open(&header, &bytes).expect("plain").collect();
            let opened = Compactable::open(&header, &forged);
            // What is left of a record behind its value is not looked at here.
            prop_assert!(all.is_err() || opened.is_ok());
        }
    }

    fn read_header(forged: &[u8]) -> BatchHeader {
        let mut header = forged[..HEADER_LEN].to_vec();
        let length = (forged.len() - 12) as u32;
        header[8..12].copy_from_slice(&length.to_be_bytes());
        BatchHeader::parse(&header).expect("a header")
    }

    #[test]
    fn keys_are_told_apart_and_seeds_tell_them_apart_differently() {
        let hasher = KeyHasher::new([1; 32]);
        assert_eq!(hasher.hash(b"a"), hasher.hash(b"a"));
        assert_ne!(hasher.hash(b"a"), hasher.hash(b"b"));
        assert_ne!(hasher.hash(b"a"), KeyHasher::new([2; 32]).hash(b"a"));
    }
}
