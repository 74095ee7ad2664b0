//! A batch gives back what was put in, under every compression, and nothing that was not.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use quire_protocol::batch::{
    self, BatchBuilder, BatchError, BatchHeader, Compression, CompressionError, EncodeError, Header, Record,
    RecordView, Records, RecordsError, TimestampType,
};
use quire_protocol::{LeaderEpoch, Offset, Timestamp, limits};

const COMPRESSIONS: [Compression; 5] =
    [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];
const NOW: Timestamp = Timestamp(1_357_034_400_000);

fn any_bytes(max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

fn any_header() -> impl Strategy<Value = Header> {
    ("\\PC{0,12}", of(any_bytes(20))).prop_map(|(key, value)| Header { key, value })
}

fn any_record() -> impl Strategy<Value = Record> {
    let timestamp = of(any::<i64>().prop_map(Timestamp));
    (of(any_bytes(40)), of(any_bytes(400)), timestamp, vec(any_header(), 0..5))
        .prop_map(|(key, value, timestamp, headers)| Record { key, value, timestamp, headers })
}

fn any_compression() -> impl Strategy<Value = Compression> {
    proptest::sample::select(COMPRESSIONS.to_vec())
}

fn build(compression: Compression, records: &[Record]) -> Bytes {
    let mut builder = BatchBuilder::new(compression);
    for record in records {
        let before = builder.encoded_len();
        builder.push(record, NOW).expect("a small record fits");
        assert!(builder.encoded_len() - before <= BatchBuilder::record_len_max(record) + batch::HEADER_LEN);
    }
    builder.finish().expect("memory takes every compression")
}

fn read(batch: &Bytes) -> Result<Vec<RecordView>, RecordsError> {
    let header = BatchHeader::check(batch).expect("an intact batch");
    Records::open(&header, batch)?.collect()
}

fn expected(records: &[Record], base_offset: u64) -> Vec<RecordView> {
    let view = |(index, record): (usize, &Record)| RecordView {
        offset: Offset(base_offset + index as u64),
        timestamp: record.timestamp.unwrap_or(NOW),
        key: record.key.clone(),
        value: record.value.clone(),
        headers: record.headers.clone(),
    };
    records.iter().enumerate().map(view).collect()
}

/// A batch whose header was made to fit `body`, as a producer of hostile records would.
fn forged(body: &[u8], compression: Compression, record_count: u32) -> Bytes {
    let mut batch = build(Compression::None, &[Record::default()])[..batch::HEADER_LEN].to_vec();
    batch.extend_from_slice(body);
    let length = batch.len() as u32 - 12;
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    batch[22] = compression.number();
    batch[23..27].copy_from_slice(&(record_count - 1).to_be_bytes());
    batch[57..61].copy_from_slice(&record_count.to_be_bytes());
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &batch[21..]) as u32;
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
    Bytes::from(batch)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn records_survive_their_batch(
        records in vec(any_record(), 1..40),
        compression in any_compression(),
        base_offset in 0..(i64::MAX as u64 - 100),
        epoch in 0..i32::MAX as u32,
    ) {
        let mut batch = build(compression, &records).to_vec();
        batch::stamp(&mut batch, Offset(base_offset), LeaderEpoch(epoch));
        let batch = Bytes::from(batch);
        let header = BatchHeader::check(&batch).expect("stamping leaves the CRC right");
        prop_assert_eq!((header.base_offset, header.leader_epoch), (Offset(base_offset), LeaderEpoch(epoch)));
        prop_assert_eq!(header.record_count as usize, records.len());
        prop_assert_eq!(header.last_offset(), Offset(base_offset + records.len() as u64 - 1));
        let latest = records.iter().map(|r| r.timestamp.unwrap_or(NOW)).max();
        prop_assert_eq!(Some(header.max_timestamp), latest);
        prop_assert_eq!(read(&batch).expect("well formed"), expected(&records, base_offset));
    }

    #[test]
    fn log_append_time_replaces_every_timestamp(records in vec(any_record(), 1..10), time in 0..i64::MAX) {
        let mut batch = build(Compression::Lz4, &records).to_vec();
        batch::set_append_time(&mut batch, Timestamp(time));
        let batch = Bytes::from(batch);
        let header = BatchHeader::check(&batch).expect("sealed again");
        prop_assert_eq!(header.timestamp_type, TimestampType::LogAppendTime);
        prop_assert_eq!(header.max_timestamp, Timestamp(time));
        for record in read(&batch).expect("well formed") {
            prop_assert_eq!(record.timestamp, Timestamp(time));
        }
    }

    #[test]
    fn any_bytes_parse_or_are_refused(bytes in vec(any::<u8>(), 0..200)) {
        if let Ok(header) = BatchHeader::parse(&bytes) {
            prop_assert!((batch::HEADER_LEN..=limits::BATCH_BYTES_MAX).contains(&header.len));
            prop_assert!(header.record_count as usize <= limits::BATCH_RECORDS_MAX);
        }
        let _ = BatchHeader::check(&bytes);
    }

    #[test]
    fn any_header_fields_parse_or_are_refused(fields: [u8; 61], body in vec(any::<u8>(), 0..40)) {
        let mut bytes = fields.to_vec();
        bytes[16] = 2;
        bytes[8..12].copy_from_slice(&(49 + body.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&body);
        if let Ok(header) = BatchHeader::parse(&bytes) {
            prop_assert_eq!(header.len, bytes.len());
            prop_assert!(header.base_offset <= Offset::MAX);
            if let Ok(records) = Records::open(&header, &Bytes::from(bytes)) {
                prop_assert!(records.count() <= header.record_count as usize + 1);
            }
        }
    }

    #[test]
    fn a_flipped_bit_below_the_crc_is_found(
        records in vec(any_record(), 1..6),
        compression in any_compression(),
        at: proptest::sample::Index,
        bit in 0..8u32,
    ) {
        let mut batch = build(compression, &records).to_vec();
        // Base offset and leader epoch lie outside the batch's CRC; the frame's covers them.
        let covered: Vec<usize> = (8..12).chain(16..batch.len()).collect();
        batch[covered[at.index(covered.len())]] ^= 1 << bit;
        prop_assert!(BatchHeader::check(&batch).is_err());
    }

    #[test]
    fn hostile_records_give_errors_and_never_more_than_they_claim(
        body in vec(any::<u8>(), 0..400),
        compression in any_compression(),
        count in 1..200u32,
    ) {
        let batch = forged(&body, compression, count);
        let header = BatchHeader::check(&batch).expect("the forged header is consistent");
        if let Ok(records) = Records::open(&header, &batch) {
            let mut bytes = 0;
            for record in records.flatten() {
                bytes += record.key.map_or(0, |key| key.len()) + record.value.map_or(0, |value| value.len());
            }
            prop_assert!(compression != Compression::None || bytes <= body.len());
        }
    }
}

#[test]
fn a_batch_cut_short_or_continued_is_refused() {
    let batch = build(Compression::None, &[Record { value: Some("late".into()), ..Record::default() }]);
    for len in 0..batch.len() {
        assert!(matches!(BatchHeader::check(&batch[..len]), Err(BatchError::Short { .. })), "{len} bytes");
    }
    let longer = [&batch[..], &[0]].concat();
    assert_eq!(BatchHeader::check(&longer), Err(BatchError::Length(longer.len() as i64)));
}

#[test]
fn decompression_stops_at_the_cap() {
    let block = vec![0u8; 1024 * 1024];
    for compression in COMPRESSIONS.into_iter().skip(1) {
        // Repeating a whole stream makes more come out than any builder would have put in.
        let bomb = bomb(compression, &block, limits::BATCH_DECOMPRESSED_BYTES_MAX + 1);
        assert!(bomb.len() < 8 * block.len(), "{compression:?}: a bomb is small");
        assert!(
            matches!(compression.decompress(&bomb), Err(CompressionError::TooLarge)),
            "{compression:?} gave more than the cap"
        );
    }
}

#[test]
fn exactly_the_cap_is_restored() {
    let most = vec![7u8; limits::BATCH_DECOMPRESSED_BYTES_MAX];
    for compression in [Compression::Snappy, Compression::Lz4, Compression::Zstd] {
        let mut compressed = Vec::new();
        compression.compress(&most, &mut compressed).expect("memory takes it");
        let restored = compression.decompress(&compressed).expect("the cap itself is allowed");
        assert!(restored == most, "{compression:?}");
    }
}

fn bomb(compression: Compression, block: &[u8], len: usize) -> Vec<u8> {
    let mut records = Vec::with_capacity(len);
    while records.len() < len {
        let take = block.len().min(len - records.len());
        records.extend_from_slice(&block[..take]);
    }
    let mut out = Vec::new();
    compression.compress(&records, &mut out).expect("memory takes it");
    out
}

#[test]
fn a_snappy_block_that_lies_about_its_length_is_refused() {
    // A raw block whose preamble claims 64 MiB and which holds one literal byte.
    let lie = [0x80, 0x80, 0x80, 0x20, 0x00, b'x'];
    assert!(matches!(Compression::Snappy.decompress(&lie), Err(CompressionError::Damaged(..))));
}

#[test]
fn a_raw_snappy_block_is_read_as_some_clients_write_it() {
    let raw = snap::raw::Encoder::new().compress_vec(b"as Kafka does").expect("memory takes it");
    assert_eq!(Compression::Snappy.decompress(&raw).expect("intact"), b"as Kafka does");
}

#[test]
fn records_beyond_a_limit_are_not_built() {
    let mut builder = BatchBuilder::new(Compression::None);
    let header = Header { key: String::new(), value: None };
    let decorated = Record { headers: vec![header; limits::RECORD_HEADERS_MAX + 1], ..Record::default() };
    assert!(matches!(builder.push(&decorated, NOW), Err(EncodeError::TooManyHeaders(1025))));
    let huge =
        Record { value: Some(Bytes::from(vec![0; limits::BATCH_BYTES_MAX - 61])), ..Record::default() };
    assert!(matches!(builder.push(&huge, NOW), Err(EncodeError::TooLarge { .. })));
    assert!(builder.is_empty(), "a refused record leaves nothing behind");

    let half = Record { value: Some(Bytes::from(vec![0; limits::BATCH_BYTES_MAX / 2])), ..Record::default() };
    builder.push(&half, NOW).expect("half a batch");
    builder.push(&half, NOW).expect("the builder does not know what the caller will push");
    assert!(matches!(builder.finish(), Err(EncodeError::BatchTooLarge(_))));
}

#[test]
fn a_million_empty_records_are_read_and_one_more_is_refused() {
    let empty = Record { timestamp: Some(NOW), ..Record::default() };
    let mut builder = BatchBuilder::new(Compression::Zstd);
    for _ in 0..limits::BATCH_RECORDS_MAX {
        builder.push(&empty, NOW).expect("empty records fit");
    }
    let batch = builder.finish().expect("memory takes it");
    let header = BatchHeader::check(&batch).expect("intact");
    let count = Records::open(&header, &batch).expect("restored").filter(Result::is_ok).count();
    assert_eq!(count, limits::BATCH_RECORDS_MAX);

    let claims_more =
        forged(&batch[batch::HEADER_LEN..], Compression::Zstd, limits::BATCH_RECORDS_MAX as u32 + 1);
    assert!(matches!(BatchHeader::parse(&claims_more), Err(BatchError::Count { .. })));
}

#[test]
fn counts_that_lie_are_found_while_reading() {
    let batch = build(Compression::None, &[Record::default(), Record::default()]);
    let body = &batch[batch::HEADER_LEN..];
    assert!(read(&forged(body, Compression::None, 2)).is_ok());
    assert!(matches!(read(&forged(body, Compression::None, 1)), Err(RecordsError::LeftOver(_))));
    assert!(matches!(
        read(&forged(body, Compression::None, 3)),
        Err(RecordsError::Malformed { index: 2, .. })
    ));
}
