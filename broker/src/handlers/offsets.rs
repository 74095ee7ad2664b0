//! Positions in partitions: what a beginning, an end, an offset or a time comes to.

use std::sync::Arc;

use quire_protocol::frame::FrameHeader;
use quire_protocol::rpc::control::{
    ListOffsetsRequest, ListOffsetsResponse, PartitionOffset, PartitionPosition, position::At,
};
use quire_protocol::{ErrorCode, Offset, PartitionIndex, Timestamp, TopicId, TopicPartition};
use quire_storage::{LogReader, Residency};

use super::access;
use crate::context::Context;
use crate::error::RequestError;
use crate::net::connection::Session;
use crate::shard::{Clock, PartitionHandle, SystemClock, not_leader};

/// A position, and the timestamp of the record there where one was looked for and found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) offset: Offset,
    pub(super) timestamp: Timestamp,
}

/// Answers each partition asked for; one that fails does not fail the others.
///
/// # Errors
/// If the request names no topic.
pub(super) async fn list(
    session: &Session,
    request: ListOffsetsRequest,
) -> Result<ListOffsetsResponse, RequestError> {
    let topic = TopicId::from_slice(&request.topic_id)
        .ok_or_else(|| RequestError::new(ErrorCode::InvalidRequest, "a topic id has 16 bytes"))?;
    let context = &session.context;
    check_known(session, topic)?;
    let mut partitions = Vec::with_capacity(request.partitions.len());
    for wanted in request.partitions {
        let asked = wanted.position.and_then(|position| position.at);
        let mut answer = answer(context, topic, wanted).await;
        if let (true, Some(At::Offset(offset))) = (request.with_ages, asked) {
            let id = TopicPartition { topic, partition: PartitionIndex(answer.partition) };
            // A record that is gone is as old as the oldest there is.
            let offset = Offset(offset.max(answer.log_start_offset));
            answer.age_ms = age(context, id, offset).await;
        }
        partitions.push(answer);
    }
    Ok(ListOffsetsResponse { partitions })
}

fn check_known(session: &Session, topic: TopicId) -> Result<(), RequestError> {
    let image = session.context.metadata.image();
    match image.topic(topic) {
        Some(known) if !access::may_look(&image, &session.principal, &known.name) => {
            Err(access::may_not_look(&session.principal, &known.name))
        }
        _ => Ok(()),
    }
}

async fn answer(context: &Context, topic: TopicId, wanted: PartitionPosition) -> PartitionOffset {
    let mut answer =
        PartitionOffset { partition: wanted.partition, timestamp: Timestamp::NONE.0, ..Default::default() };
    let id = TopicPartition { topic, partition: PartitionIndex(wanted.partition) };
    let found = match context.partitions.find(id) {
        Ok(partition) => {
            let reader = partition.reader();
            answer.log_start_offset = reader.log_start().0;
            answer.high_watermark = reader.high_watermark().0;
            find(context, &partition, wanted.position.and_then(|position| position.at)).await
        }
        Err(error) => Err(error),
    };
    match found {
        Ok(found) => {
            answer.offset = found.offset.0;
            answer.timestamp = found.timestamp.0;
        }
        Err(error) => answer.error = Some(error.into()),
    }
    answer
}

async fn find(context: &Context, partition: &PartitionHandle, at: Option<At>) -> Result<Found, RequestError> {
    let reader = partition.reader();
    let (log_start, high_watermark) = (reader.log_start(), reader.high_watermark());
    if !matches!(at, Some(At::Beginning(_))) {
        end_is_known(partition)?;
    }
    let offset = match at {
        Some(At::Beginning(_)) => log_start,
        Some(At::End(_)) => high_watermark,
        Some(At::Offset(offset)) => in_range(reader, Offset(offset))?,
        Some(At::BeforeEnd(records)) => Offset(high_watermark.0.saturating_sub(records)).max(log_start),
        Some(At::Timestamp(timestamp)) => return at_time(context, partition, Timestamp(timestamp)).await,
        None => return Err(RequestError::new(ErrorCode::InvalidRequest, "a position is missing")),
    };
    Ok(Found { offset, timestamp: Timestamp::NONE })
}

/// Whether this broker knows where the log ends: a leader that just began may know of less than the one before it showed,
/// and a follower always may.
///
/// # Errors
/// If it does not: it is to be asked again, or the leader is.
pub(super) fn end_is_known(partition: &PartitionHandle) -> Result<(), RequestError> {
    let standing = partition.standing();
    if !standing.is_leading {
        return Err(not_leader(standing.leader));
    }
    if !standing.is_settled {
        let message = "the leader has just begun, and does not know yet how far the log is committed";
        return Err(RequestError::new(ErrorCode::Unavailable, message));
    }
    Ok(())
}

/// An offset that can be consumed from: of a record, or of the next one to come.
///
/// # Errors
/// If it is neither; the error names the range.
pub(super) fn in_range(reader: &LogReader, offset: Offset) -> Result<Offset, RequestError> {
    let (log_start, high_watermark) = (reader.log_start(), reader.high_watermark());
    if offset < log_start || offset > high_watermark {
        return Err(RequestError::out_of_range(offset, log_start, high_watermark));
    }
    Ok(offset)
}

/// How long ago the record at this offset was appended (milliseconds), if it is there to be consumed and can be read.
async fn age(context: &Context, id: TopicPartition, offset: Offset) -> Option<u64> {
    let partition = context.partitions.find(id).ok()?;
    let reader = partition.reader().clone();
    let high_watermark = reader.high_watermark();
    if offset >= high_watermark {
        return None;
    }
    let turn = Arc::clone(&context.memory.time_lookups).acquire_owned().await.ok()?;
    let look = move || {
        let _turn = turn;
        reader.read(offset, 1, high_watermark, Residency::Any)
    };
    let slice = tokio::task::spawn_blocking(look).await.ok()?;
    let slice = match slice {
        Ok(slice) => slice,
        Err(error) => {
            partition.read_failed(error).await;
            return None;
        }
    };
    let frame = FrameHeader::parse(slice.frames.first()?).ok()?;
    let now = SystemClock::new().now().timestamp;
    Some(now.0.saturating_sub(frame.append_time.0).max(0) as u64)
}

/// The first record with this timestamp or a later one, or the end if there is none. May read the disk.
///
/// # Errors
/// If the log cannot be read.
pub(super) async fn at_time(
    context: &Context,
    partition: &PartitionHandle,
    timestamp: Timestamp,
) -> Result<Found, RequestError> {
    let turn = Arc::clone(&context.memory.time_lookups).acquire_owned().await;
    let turn = turn.map_err(|_| RequestError::shutting_down())?;
    let reader = partition.reader().clone();
    let high_watermark = reader.high_watermark();
    let look = move || {
        // Held by the lookup itself, which goes on if the client leaves.
        let _turn = turn;
        reader.offset_at_time(timestamp, high_watermark)
    };
    let found = tokio::task::spawn_blocking(look).await;
    let found =
        found.map_err(|_| RequestError::new(ErrorCode::Internal, "looking for a time was interrupted"))?;
    match found {
        Ok(Some((offset, timestamp))) => Ok(Found { offset, timestamp }),
        Ok(None) => Ok(Found { offset: high_watermark, timestamp: Timestamp::NONE }),
        Err(error) => Err(partition.read_failed(error).await),
    }
}
