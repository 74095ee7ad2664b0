//! Messages of replicate streams: what is encoded is decoded, and any bytes are a message or an error.

use proptest::prelude::*;
use quire_protocol::frame::Chain;
use quire_protocol::replicate::{Follow, FollowerMessage, LeaderMessage, Progress};
use quire_protocol::stream::{Frames, StreamError};
use quire_protocol::{ErrorCode, LeaderEpoch, Offset, PartitionIndex, TopicId, TopicPartition, limits};

fn any_offset() -> impl Strategy<Value = Offset> {
    (0..=Offset::MAX.0).prop_map(Offset)
}

fn any_follow() -> impl Strategy<Value = Follow> {
    let partition = (any::<[u8; 16]>(), any::<u32>()).prop_map(|(topic, index)| TopicPartition {
        topic: TopicId(topic),
        partition: PartitionIndex(index),
    });
    let last_epoch = proptest::option::of((0..i32::MAX as u32).prop_map(LeaderEpoch));
    (any::<[u32; 3]>(), partition, any::<u64>(), last_epoch, any_offset()).prop_map(
        |([slot, leader_epoch, credit], partition, broker_epoch, last_epoch, end)| Follow {
            slot,
            partition,
            leader_epoch: LeaderEpoch(leader_epoch),
            broker_epoch,
            last_epoch,
            end,
            credit,
        },
    )
}

fn any_follower_message() -> impl Strategy<Value = FollowerMessage> {
    let progress = (any::<[u32; 2]>(), any_offset(), any_offset())
        .prop_map(|([slot, credit], log_end, durable_end)| Progress { slot, credit, log_end, durable_end });
    prop_oneof![
        any_follow().prop_map(FollowerMessage::Follow),
        any::<u32>().prop_map(|slot| FollowerMessage::Unfollow { slot }),
        proptest::collection::vec(progress, 0..5).prop_map(FollowerMessage::Progress),
    ]
}

fn any_leader_message() -> impl Strategy<Value = LeaderMessage> {
    let offsets = (any_offset(), any_offset(), any_offset());
    let code = proptest::sample::select(ErrorCode::ALL.to_vec());
    (any::<[u32; 2]>(), offsets, 1..=Frames::LENGTH_MAX as u32, code, 0..6).prop_map(
        |([slot, epoch], (from, high_watermark, log_start), length, code, which)| match which {
            0 => LeaderMessage::Accepted { slot, from, high_watermark, log_start },
            1 => LeaderMessage::Diverging { slot, epoch: LeaderEpoch(epoch), end: from },
            2 => LeaderMessage::Frames { slot, length, high_watermark, log_start },
            3 => LeaderMessage::Watermarks { slot, high_watermark, log_start },
            4 => LeaderMessage::Refused { slot, code },
            _ => LeaderMessage::Chain { slot, end: from, chain: Chain([epoch as u8; 32]) },
        },
    )
}

/// Reads one follower's message the way a peer does: tag, body, entries.
fn read_follower(bytes: &[u8]) -> Result<(FollowerMessage, &[u8]), StreamError> {
    let (&tag, rest) = bytes.split_first().ok_or(StreamError::Short)?;
    let (body, rest) = rest.split_at_checked(FollowerMessage::body_len(tag)?).ok_or(StreamError::Short)?;
    let length = FollowerMessage::entries_len(tag, body)?;
    let (entries, rest) = rest.split_at_checked(length).ok_or(StreamError::Short)?;
    Ok((FollowerMessage::decode(tag, body, entries)?, rest))
}

fn read_leader(bytes: &[u8]) -> Result<(LeaderMessage, &[u8]), StreamError> {
    let (&tag, rest) = bytes.split_first().ok_or(StreamError::Short)?;
    let (body, rest) = rest.split_at_checked(LeaderMessage::body_len(tag)?).ok_or(StreamError::Short)?;
    Ok((LeaderMessage::decode(tag, body)?, rest))
}

proptest! {
    #[test]
    fn messages_survive_the_wire(
        asked in proptest::collection::vec(any_follower_message(), 1..6),
        told in proptest::collection::vec(any_leader_message(), 1..6),
    ) {
        let (mut asked_bytes, mut told_bytes) = (Vec::new(), Vec::new());
        asked.iter().for_each(|message| message.encode(&mut asked_bytes));
        told.iter().for_each(|message| message.encode(&mut told_bytes));
        let (mut asked_rest, mut told_rest) = (asked_bytes.as_slice(), told_bytes.as_slice());
        for message in asked {
            let (read, rest) = read_follower(asked_rest).expect("just encoded");
            prop_assert_eq!(read, message);
            asked_rest = rest;
        }
        for message in told {
            let (read, rest) = read_leader(told_rest).expect("just encoded");
            prop_assert_eq!(read, message);
            told_rest = rest;
        }
        prop_assert!(asked_rest.is_empty() && told_rest.is_empty());
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(tag in 0u8..8, bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
        let bytes = [&[tag], bytes.as_slice()].concat();
        if let Ok((message, rest)) = read_follower(&bytes) {
            let mut again = Vec::new();
            message.encode(&mut again);
            prop_assert_eq!(again.as_slice(), &bytes[..bytes.len() - rest.len()]);
        }
        if let Ok((message, rest)) = read_leader(&bytes) {
            let mut again = Vec::new();
            message.encode(&mut again);
            // An unknown code is read as a known one; all else comes back as it was.
            if !matches!(message, LeaderMessage::Refused { .. }) {
                prop_assert_eq!(again.as_slice(), &bytes[..bytes.len() - rest.len()]);
            }
        }
    }

    #[test]
    fn any_body_under_any_tag_is_decoded_or_refused(
        tag: u8,
        body in proptest::collection::vec(any::<u8>(), 0..80),
        entries in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        let _ = FollowerMessage::decode(tag, &body, &entries);
        let _ = LeaderMessage::decode(tag, &body);
    }
}

#[test]
fn every_body_fits_the_longest() {
    let longest = |body_len: fn(u8) -> Result<usize, StreamError>| {
        (0..=u8::MAX).filter_map(|tag| body_len(tag).ok()).max()
    };
    assert_eq!(longest(FollowerMessage::body_len), Some(FollowerMessage::BODY_LEN_MAX));
    assert_eq!(longest(LeaderMessage::body_len), Some(LeaderMessage::BODY_LEN_MAX));
}

#[test]
fn lengths_beyond_their_limit_are_refused_before_anything_is_read() {
    let count = (limits::PROGRESS_ENTRIES_MAX as u32 + 1).to_le_bytes();
    assert!(matches!(FollowerMessage::entries_len(3, &count), Err(StreamError::TooLong { .. })));
    assert!(matches!(FollowerMessage::entries_len(3, &[0xff; 4]), Err(StreamError::TooLong { .. })));
    for (length, is_allowed) in [(0, false), (1, true), (Frames::LENGTH_MAX as u32 + 1, false)] {
        let mut body = [0u8; 24];
        body[4..8].copy_from_slice(&u32::to_le_bytes(length));
        assert_eq!(LeaderMessage::decode(3, &body).is_ok(), is_allowed, "{length}");
    }
}

#[test]
fn an_offset_beyond_kafkas_is_refused() {
    let mut body = [0u8; 16];
    body[8..].copy_from_slice(&(Offset::MAX.0 + 1).to_le_bytes());
    assert_eq!(LeaderMessage::decode(2, &body), Err(StreamError::Field("offset")));
}

#[test]
fn entries_that_are_not_what_was_announced_are_refused() {
    assert_eq!(FollowerMessage::decode(3, &2u32.to_le_bytes(), &[0; Progress::LEN]), Err(StreamError::Short));
}
