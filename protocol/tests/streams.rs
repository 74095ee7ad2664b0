//! Stream messages: what is encoded is decoded, and any bytes are a message or an error.

use proptest::prelude::*;
use quire_protocol::batch::ProducerIdentity;
use quire_protocol::frame::Chain;
use quire_protocol::stream::{
    Ack, Acks, Answer, ConsumeHeader, Failure, Frames, Opened, PRODUCE_VERSION_NUMBERED, ProduceHeader,
    Start, StreamError, StreamKind, VERSION,
};
use quire_protocol::{
    ErrorCode, LeaderEpoch, Offset, PartitionIndex, ProducerEpoch, ProducerId, Timestamp, TopicId,
    TopicPartition, limits,
};

fn any_partition() -> impl Strategy<Value = TopicPartition> {
    (any::<[u8; 16]>(), any::<u32>()).prop_map(|(topic, partition)| TopicPartition {
        topic: TopicId(topic),
        partition: PartitionIndex(partition),
    })
}

fn any_offset() -> impl Strategy<Value = Offset> {
    any::<u64>().prop_map(Offset)
}

fn any_epoch() -> impl Strategy<Value = LeaderEpoch> {
    any::<u32>().prop_map(LeaderEpoch)
}

fn any_start() -> impl Strategy<Value = Start> {
    prop_oneof![
        Just(Start::Beginning),
        Just(Start::End),
        any_offset().prop_map(Start::Offset),
        any::<i64>().prop_map(|time| Start::Timestamp(Timestamp(time))),
    ]
}

fn any_answer() -> impl Strategy<Value = Answer> {
    let opened = (any_epoch(), any::<[u32; 2]>(), any_offset(), any_offset(), any_offset()).prop_map(
        |(leader_epoch, [window, batch_bytes_max], next_offset, log_start, high_watermark)| {
            Answer::Opened(Opened {
                leader_epoch,
                window,
                batch_bytes_max,
                next_offset,
                log_start,
                high_watermark,
            })
        },
    );
    let ack = (any_offset(), any::<i64>(), any_epoch(), any_offset(), any::<u32>(), any::<[u8; 32]>())
        .prop_map(|(base_offset, time, leader_epoch, log_start, replicas_on_disk, chain)| {
            let append_time = Timestamp(time);
            let chain = Chain(chain);
            Answer::Ack(Ack { base_offset, append_time, leader_epoch, log_start, replicas_on_disk, chain })
        });
    let frames = (0..=Frames::LENGTH_MAX as u32, any_offset(), any_offset()).prop_map(
        |(length, high_watermark, log_start)| Answer::Frames(Frames { length, high_watermark, log_start }),
    );
    let code = proptest::sample::select(ErrorCode::ALL.to_vec());
    let failure = (code, any_offset(), any_offset(), "\\PC{0,200}").prop_map(
        |(code, log_start, high_watermark, message)| {
            Answer::Failure(Failure { code, log_start, high_watermark, message })
        },
    );
    prop_oneof![opened, ack, frames, failure]
}

/// Reads one answer the way a peer does: tag, body, text.
fn read_answer(bytes: &[u8]) -> Result<(Answer, &[u8]), StreamError> {
    let (&tag, rest) = bytes.split_first().ok_or(StreamError::Short)?;
    let (body, rest) = rest.split_at_checked(Answer::body_len(tag)?).ok_or(StreamError::Short)?;
    let (text, rest) = rest.split_at_checked(Answer::text_len(tag, body)?).ok_or(StreamError::Short)?;
    Ok((Answer::decode(tag, body, text)?, rest))
}

proptest! {
    #[test]
    fn answers_survive_the_wire(answers in proptest::collection::vec(any_answer(), 1..8)) {
        let mut bytes = Vec::new();
        answers.iter().for_each(|answer| answer.encode(&mut bytes));
        let mut rest = bytes.as_slice();
        for answer in answers {
            let (read, after) = read_answer(rest).expect("just encoded");
            prop_assert_eq!(read, answer);
            rest = after;
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn headers_survive_the_wire(
        partition in any_partition(),
        epoch in any_epoch(),
        acks in proptest::sample::select(vec![Acks::None, Acks::Leader, Acks::All]),
        start in any_start(),
        credit: u64,
    ) {
        let mut bytes = Vec::new();
        let produce = ProduceHeader { partition, leader_epoch: epoch, acks, producer: None };
        produce.encode(&mut bytes);
        let fixed = bytes.as_slice().try_into().expect("encodes to its LEN");
        prop_assert_eq!(ProduceHeader::decode(fixed), Ok(produce));

        bytes.clear();
        let producer = ProducerIdentity { id: ProducerId(credit >> 1), epoch: ProducerEpoch(acks as u16) };
        let numbered = ProduceHeader { producer: Some(producer), ..produce };
        numbered.encode(&mut bytes);
        let fixed = bytes.as_slice().try_into().expect("encodes to its NUMBERED_LEN");
        prop_assert_eq!(ProduceHeader::decode_numbered(fixed), Ok(numbered));

        bytes.clear();
        let consume = ConsumeHeader { partition, start, credit };
        consume.encode(&mut bytes);
        let fixed = bytes.as_slice().try_into().expect("encodes to its LEN");
        prop_assert_eq!(ConsumeHeader::decode(fixed), Ok(consume));
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
        if let Ok((answer, rest)) = read_answer(&bytes) {
            let mut again = Vec::new();
            answer.encode(&mut again);
            // An unknown code and damaged UTF-8 are read as something near; all else comes back as it was.
            if !matches!(answer, Answer::Failure(_)) {
                prop_assert_eq!(again.as_slice(), &bytes[..bytes.len() - rest.len()]);
            }
        }
        if let Some(header) = bytes.first_chunk() {
            let _ = ProduceHeader::decode(header);
        }
        if let Some(header) = bytes.first_chunk() {
            let _ = ProduceHeader::decode_numbered(header);
        }
        if let Some(header) = bytes.first_chunk() {
            let _ = ConsumeHeader::decode(header);
        }
        if let Some(prefix) = bytes.first_chunk() {
            let _ = StreamKind::from_prefix(*prefix);
        }
    }

    #[test]
    fn any_body_under_any_tag_is_decoded_or_refused(
        tag: u8,
        body in proptest::collection::vec(any::<u8>(), 0..80),
        text in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let _ = Answer::text_len(tag, &body);
        let _ = Answer::decode(tag, &body, &text);
    }
}

#[test]
fn a_stream_opens_with_its_kind_and_version() {
    for kind in [StreamKind::Rpc, StreamKind::Produce, StreamKind::Consume, StreamKind::Replicate] {
        assert_eq!(StreamKind::from_prefix(kind.prefix()), Ok(kind));
    }
    assert_eq!(StreamKind::from_prefix([0, VERSION]), Err(StreamError::Kind(0)));
    assert_eq!(StreamKind::from_prefix([1, VERSION + 1]), Err(StreamError::Version(VERSION + 1)));
    assert_eq!(StreamKind::with_version([2, 2]), Ok((StreamKind::Produce, PRODUCE_VERSION_NUMBERED)));
    assert_eq!(StreamKind::from_prefix([2, 3]), Err(StreamError::Version(3)));
}

#[test]
fn every_body_fits_the_longest() {
    let longest = (0..=u8::MAX).filter_map(|tag| Answer::body_len(tag).ok()).max();
    assert_eq!(longest, Some(Answer::BODY_LEN_MAX));
}

#[test]
fn an_error_text_is_cut_at_its_limit_between_characters() {
    let message = "é".repeat(limits::ERROR_TEXT_BYTES_MAX);
    let failure =
        Failure { code: ErrorCode::Internal, log_start: Offset(1), high_watermark: Offset(2), message };
    let mut bytes = Vec::new();
    Answer::Failure(failure).encode(&mut bytes);
    let (answer, rest) = read_answer(&bytes).expect("within the limit");
    assert!(rest.is_empty());
    let Answer::Failure(read) = answer else { panic!("a failure was encoded") };
    assert_eq!(read.message, "é".repeat(limits::ERROR_TEXT_BYTES_MAX / 2));
}

#[test]
fn lengths_beyond_their_limit_are_refused_before_anything_is_read() {
    let mut body = [0u8; 20];
    body[18..].copy_from_slice(&(limits::ERROR_TEXT_BYTES_MAX as u16 + 1).to_le_bytes());
    assert!(matches!(Answer::text_len(4, &body), Err(StreamError::TooLong { .. })));
    let mut body = [0u8; 20];
    body[..4].copy_from_slice(&(Frames::LENGTH_MAX as u32 + 1).to_le_bytes());
    assert!(matches!(Answer::decode(3, &body, &[]), Err(StreamError::TooLong { .. })));
}

#[test]
fn a_code_from_a_newer_broker_is_an_internal_error_here() {
    let mut body = [0u8; 20];
    body[..2].copy_from_slice(&u16::MAX.to_le_bytes());
    let Ok(Answer::Failure(failure)) = Answer::decode(4, &body, b"news") else { panic!("a failure") };
    assert_eq!((failure.code, failure.message.as_str()), (ErrorCode::Internal, "news"));
}
