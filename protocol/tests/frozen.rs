//! Encodings that were released once: today's code reads them, and writes the same bytes where it chooses them alone.
//!
//! A file in `testdata/` is never changed, only added to: run with `QUIRE_FREEZE=1` to write the missing ones.

use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use prost::Message;
use quire_protocol::batch::{
    self, BatchBuilder, BatchHeader, Compactable, Compression, Header, Numbering, ProducerIdentity, Record,
    RecordKey, Records,
};
use quire_protocol::frame::{self, Chain, Digest, FrameHeader, FrameSeed, Placement};
use quire_protocol::replicate::{Follow, FollowerMessage, LeaderMessage, Progress};
use quire_protocol::rpc::{control, decode_request, metadata};
use quire_protocol::stream::{
    Ack, Acks, Answer, ConsumeHeader, Failure, Frames, Opened, PRODUCE_VERSION_NUMBERED, ProduceHeader,
    Start, StreamKind,
};
use quire_protocol::{
    ErrorCode, LeaderEpoch, Offset, PartitionIndex, ProducerEpoch, ProducerId, Sequence, Timestamp, TopicId,
    TopicPartition,
};

const PARTITION: TopicPartition = TopicPartition {
    topic: TopicId([0x10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]),
    partition: PartitionIndex(5),
};

/// The frozen bytes of `name`, or `encoded` where nothing is frozen yet and freezing is asked for.
fn frozen(name: &str, encoded: &[u8]) -> Vec<u8> {
    let path = testdata(name);
    if !path.exists() && std::env::var_os("QUIRE_FREEZE").is_some() {
        fs::write(&path, to_hex(encoded)).expect("testdata is writable");
    }
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    from_hex(&text)
}

fn testdata(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name).with_extension("hex")
}

fn to_hex(bytes: &[u8]) -> String {
    let line = |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
    bytes.chunks(32).map(line).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> =
        text.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_digit(16).expect("a hex digit")).collect();
    digits.chunks_exact(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

fn records() -> Vec<Record> {
    let departed = Record {
        key: Some("N14228".into()),
        value: Some("{\"carrier\":\"UA\",\"delay_min\":2}".into()),
        timestamp: Some(Timestamp(1_357_034_400_000)),
        headers: vec![
            Header { key: "traceparent".into(), value: Some("00-ab-cd-01".into()) },
            Header { key: "empty".into(), value: None },
        ],
    };
    let earlier = Record {
        key: None,
        value: Some(Bytes::new()),
        timestamp: Some(Timestamp(1_357_034_399_000)),
        headers: vec![],
    };
    let tombstone = Record {
        key: Some(Bytes::new()),
        value: None,
        timestamp: Some(Timestamp(1_357_034_460_000)),
        headers: vec![],
    };
    vec![departed, earlier, tombstone]
}

fn encode_batch(compression: Compression) -> Vec<u8> {
    let mut builder = BatchBuilder::new(compression);
    for record in records() {
        builder.push(&record, Timestamp::NONE).expect("small records fit");
    }
    builder.finish().expect("memory takes it").to_vec()
}

fn decode_batch(batch: &[u8]) -> Vec<Record> {
    let batch = Bytes::copy_from_slice(batch);
    let header = BatchHeader::check(&batch).expect("intact");
    let records = Records::open(&header, &batch).expect("restored");
    records
        .map(|record| record.expect("well formed"))
        .map(|view| Record {
            key: view.key,
            value: view.value,
            timestamp: Some(view.timestamp),
            headers: view.headers,
        })
        .collect()
}

#[test]
fn batches() {
    let names = [
        ("batch-none", Compression::None),
        ("batch-gzip", Compression::Gzip),
        ("batch-snappy", Compression::Snappy),
        ("batch-lz4", Compression::Lz4),
        ("batch-zstd", Compression::Zstd),
    ];
    for (name, compression) in names {
        let encoded = encode_batch(compression);
        let bytes = frozen(name, &encoded);
        assert_eq!(decode_batch(&bytes), records(), "{name}");
        // Compressors may find shorter encodings; what is not compressed is ours alone.
        if compression == Compression::None {
            assert_eq!(to_hex(&encoded), to_hex(&bytes), "{name}");
        }
    }
}

#[test]
fn frames() {
    for (name, digest) in [("frame-crc32c", Digest::Crc32c), ("frame-blake3", Digest::Blake3)] {
        let mut batch = encode_batch(Compression::None);
        let header = BatchHeader::check(&batch).expect("just built");
        let placement = Placement {
            base_offset: Offset(18_422),
            leader_epoch: LeaderEpoch(7),
            append_time: Timestamp(1_357_034_500_000),
            durable_floor: Offset(18_400),
            digest,
        };
        let seed = FrameSeed::new(PARTITION);
        let sealed = FrameHeader::seal(seed, &Chain([0xc4; 32]), placement, &header, &mut batch);
        let bytes = frozen(name, &[sealed.encode().as_slice(), &batch].concat());
        assert_eq!(FrameHeader::check(seed, &bytes), Ok(sealed), "{name}");
        assert_eq!(to_hex(&sealed.encode()), to_hex(&bytes[..frame::HEADER_LEN]), "{name}");
        assert_eq!(to_hex(&batch), to_hex(&bytes[frame::HEADER_LEN..]), "{name}");
        assert_eq!(sealed.chain_after(&Chain([0xc4; 32]), &bytes[frame::HEADER_LEN..]), sealed.chain);
    }
}

/// What compaction leaves of the frame above: one record, which keeps its place; and no record at all.
#[test]
fn compacted_frames() {
    let seed = FrameSeed::new(PARTITION);
    let names = [("frame-compacted", Some(Timestamp(1_357_121_000_000))), ("frame-emptied", None)];
    for (name, horizon) in names {
        let original = from_hex(&fs::read_to_string(testdata("frame-crc32c")).expect("it is there"));
        let (frame, batch) = (FrameHeader::check(seed, &original), &original[frame::HEADER_LEN..]);
        let (frame, header) = (frame.expect("intact"), BatchHeader::check(batch).expect("intact"));
        let opened = Compactable::open(&header, batch).expect("well formed");
        let is_kept = |record: &RecordKey<'_>| horizon.is_some() && record.is_tombstone;
        let left = opened.retain(horizon, is_kept).expect("small");
        let left_header = BatchHeader::check_stored(&left).expect("just made");
        let encoded = [frame.compacted(seed, &left_header, &left).encode().as_slice(), &left].concat();
        let bytes = frozen(name, &encoded);
        assert_eq!(to_hex(&encoded), to_hex(&bytes), "{name}");
        let read = FrameHeader::check(seed, &bytes).expect("intact");
        assert_eq!((read.chain, read.next_offset()), (frame.chain, frame.next_offset()));
        let batch = Bytes::copy_from_slice(&bytes[frame::HEADER_LEN..]);
        let header = BatchHeader::check_stored(&batch).expect("intact");
        assert_eq!(header.delete_horizon, horizon);
        let records: Vec<_> = Records::open(&header, &batch).expect("plain").map(Result::unwrap).collect();
        let found: Vec<_> = records.iter().map(|record| (record.offset, record.timestamp)).collect();
        let tombstone = (Offset(18_424), Timestamp(1_357_034_460_000));
        assert_eq!(found, horizon.map(|_| tombstone).into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn numbered_batch() {
    let producer = ProducerIdentity { id: ProducerId(4000), epoch: ProducerEpoch(2) };
    let mut encoded = encode_batch(Compression::None);
    batch::number(&mut encoded, producer, Sequence(1_000_000));
    let bytes = frozen("batch-numbered", &encoded);
    assert_eq!(to_hex(&encoded), to_hex(&bytes));
    let numbering = BatchHeader::check(&bytes).expect("intact").numbering();
    assert_eq!(numbering, Ok(Some(Numbering { producer, base_sequence: Sequence(1_000_000), count: 3 })));
    assert_eq!(decode_batch(&bytes), records());
}

#[test]
fn append_time_batch() {
    let mut encoded = encode_batch(Compression::None);
    batch::set_append_time(&mut encoded, Timestamp(1_357_034_500_000));
    let bytes = frozen("batch-append-time", &encoded);
    assert_eq!(to_hex(&encoded), to_hex(&bytes));
    let times: Vec<_> = decode_batch(&bytes).into_iter().map(|record| record.timestamp).collect();
    assert_eq!(times, [Some(Timestamp(1_357_034_500_000)); 3]);
}

#[test]
fn stream_headers() {
    let produce =
        ProduceHeader { partition: PARTITION, leader_epoch: LeaderEpoch(7), acks: Acks::All, producer: None };
    let mut encoded = produce.prefix().to_vec();
    produce.encode(&mut encoded);
    let bytes = frozen("stream-produce", &encoded);
    assert_eq!(to_hex(&encoded), to_hex(&bytes));
    let (prefix, header) = bytes.split_first_chunk().expect("a prefix");
    assert_eq!(StreamKind::from_prefix(*prefix), Ok(StreamKind::Produce));
    assert_eq!(ProduceHeader::decode(header.try_into().expect("its LEN")), Ok(produce));

    let producer = ProducerIdentity { id: ProducerId(4000), epoch: ProducerEpoch(2) };
    let numbered = ProduceHeader { producer: Some(producer), ..produce };
    let mut encoded = numbered.prefix().to_vec();
    numbered.encode(&mut encoded);
    let bytes = frozen("stream-produce-numbered", &encoded);
    assert_eq!(to_hex(&encoded), to_hex(&bytes));
    let (prefix, header) = bytes.split_first_chunk().expect("a prefix");
    assert_eq!(StreamKind::with_version(*prefix), Ok((StreamKind::Produce, PRODUCE_VERSION_NUMBERED)));
    let header = header.try_into().expect("its NUMBERED_LEN");
    assert_eq!(ProduceHeader::decode_numbered(header), Ok(numbered));

    let starts = [
        ("stream-consume-beginning", Start::Beginning),
        ("stream-consume-end", Start::End),
        ("stream-consume-offset", Start::Offset(Offset(18_422))),
        ("stream-consume-timestamp", Start::Timestamp(Timestamp(-2))),
    ];
    for (name, start) in starts {
        let consume = ConsumeHeader { partition: PARTITION, start, credit: 1024 * 1024 };
        let mut encoded = StreamKind::Consume.prefix().to_vec();
        consume.encode(&mut encoded);
        let bytes = frozen(name, &encoded);
        assert_eq!(to_hex(&encoded), to_hex(&bytes), "{name}");
        let (prefix, header) = bytes.split_first_chunk().expect("a prefix");
        assert_eq!(StreamKind::from_prefix(*prefix), Ok(StreamKind::Consume));
        assert_eq!(ConsumeHeader::decode(header.try_into().expect("its LEN")), Ok(consume), "{name}");
    }
}

#[test]
fn answers() {
    let opened = Answer::Opened(Opened {
        leader_epoch: LeaderEpoch(7),
        window: 64,
        batch_bytes_max: 1_052_672,
        next_offset: Offset(18_422),
        log_start: Offset(100),
        high_watermark: Offset(18_400),
    });
    let ack = Answer::Ack(Ack {
        base_offset: Offset(18_422),
        append_time: Timestamp(1_357_034_500_000),
        leader_epoch: LeaderEpoch(7),
        log_start: Offset(100),
        replicas_on_disk: 1,
        chain: Chain([0xc4; 32]),
    });
    let frames =
        Answer::Frames(Frames { length: 4096, high_watermark: Offset(18_425), log_start: Offset(100) });
    let failure = Answer::Failure(Failure {
        code: ErrorCode::OffsetOutOfRange,
        log_start: Offset(100),
        high_watermark: Offset(18_425),
        message: "offset 7 is not in 100..18425".into(),
    });
    let answers = [
        ("answer-opened", opened),
        ("answer-ack", ack),
        ("answer-frames", frames),
        ("answer-failure", failure),
    ];
    for (name, answer) in answers {
        let mut encoded = Vec::new();
        answer.encode(&mut encoded);
        let bytes = frozen(name, &encoded);
        assert_eq!(to_hex(&encoded), to_hex(&bytes), "{name}");
        let (body, text) = bytes[1..].split_at(Answer::body_len(bytes[0]).expect("a known tag"));
        assert_eq!(Answer::text_len(bytes[0], body), Ok(text.len()), "{name}");
        assert_eq!(Answer::decode(bytes[0], body, text), Ok(answer), "{name}");
    }
}

#[test]
fn replicate_messages() {
    let follow = |last_epoch| {
        FollowerMessage::Follow(Follow {
            slot: 9,
            partition: PARTITION,
            leader_epoch: LeaderEpoch(7),
            broker_epoch: 3,
            last_epoch,
            end: Offset(18_422),
            credit: 1024 * 1024,
        })
    };
    let entry =
        |slot, credit| Progress { slot, credit, log_end: Offset(18_425), durable_end: Offset(18_422) };
    let asked = [
        ("replicate-follow", follow(Some(LeaderEpoch(6)))),
        ("replicate-follow-anew", follow(None)),
        ("replicate-unfollow", FollowerMessage::Unfollow { slot: 9 }),
        ("replicate-progress", FollowerMessage::Progress(vec![entry(9, 4096), entry(10, 0)])),
    ];
    for (name, message) in asked {
        let mut encoded = Vec::new();
        message.encode(&mut encoded);
        let bytes = frozen(name, &encoded);
        assert_eq!(to_hex(&encoded), to_hex(&bytes), "{name}");
        let (body, entries) = bytes[1..].split_at(FollowerMessage::body_len(bytes[0]).expect("a known tag"));
        assert_eq!(FollowerMessage::entries_len(bytes[0], body), Ok(entries.len()), "{name}");
        assert_eq!(FollowerMessage::decode(bytes[0], body, entries), Ok(message), "{name}");
    }
    let (slot, high_watermark, log_start) = (9, Offset(18_400), Offset(100));
    let told = [
        (
            "replicate-accepted",
            LeaderMessage::Accepted { slot, from: Offset(18_422), high_watermark, log_start },
        ),
        (
            "replicate-diverging",
            LeaderMessage::Diverging { slot, epoch: LeaderEpoch(5), end: Offset(18_410) },
        ),
        ("replicate-frames", LeaderMessage::Frames { slot, length: 4096, high_watermark, log_start }),
        ("replicate-watermarks", LeaderMessage::Watermarks { slot, high_watermark, log_start }),
        ("replicate-refused", LeaderMessage::Refused { slot, code: ErrorCode::FencedLeaderEpoch }),
        ("replicate-chain", LeaderMessage::Chain { slot, end: Offset(18_400), chain: Chain([0xc4; 32]) }),
    ];
    for (name, message) in told {
        let mut encoded = Vec::new();
        message.encode(&mut encoded);
        let bytes = frozen(name, &encoded);
        assert_eq!(to_hex(&encoded), to_hex(&bytes), "{name}");
        assert_eq!(LeaderMessage::decode(bytes[0], &bytes[1..]), Ok(message), "{name}");
    }
}

#[test]
fn control_messages() {
    let hello = control::Request {
        body: Some(control::request::Body::Hello(control::HelloRequest {
            version_min: 1,
            version_max: 1,
            client_name: "quire-client".into(),
            client_version: "0.1.0".into(),
        })),
    };
    let encoded = hello.encode_to_vec();
    let bytes = frozen("rpc-hello-request", &encoded);
    assert_eq!(to_hex(&encoded), to_hex(&bytes));
    assert_eq!(decode_request(&bytes), Ok(hello));

    let refused = control::Response {
        body: Some(control::response::Body::Error(control::Error::new(ErrorCode::UnknownTopic, "no topic"))),
    };
    let encoded = refused.encode_to_vec();
    let bytes = frozen("rpc-error-response", &encoded);
    assert_eq!(to_hex(&encoded), to_hex(&bytes));
    assert_eq!(control::Response::decode(bytes.as_slice()), Ok(refused));
}

#[test]
fn metadata_records() {
    let created = metadata::MetadataRecord {
        body: Some(metadata::metadata_record::Body::TopicCreated(metadata::TopicCreated {
            topic_id: PARTITION.topic.as_bytes().to_vec(),
            name: "flights".into(),
            replicas: 1,
            partitions: vec![metadata::PartitionAssignment {
                partition: 0,
                replicas: vec![1],
                leader: 1,
                leader_epoch: 0,
                partition_epoch: 0,
                in_sync_replicas: vec![1],
                ..metadata::PartitionAssignment::default()
            }],
            config: [("retention.ms".to_owned(), "-1".to_owned()), ("sync".into(), "always".into())].into(),
            created_at: 1_357_034_400_000,
        })),
    };
    let encoded = created.encode_to_vec();
    let bytes = frozen("metadata-topic-created", &encoded);
    assert_eq!(to_hex(&encoded), to_hex(&bytes));
    assert_eq!(metadata::MetadataRecord::decode(bytes.as_slice()), Ok(created));
}
