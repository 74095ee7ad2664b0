//! Where positions lie: one question to each leader, for admins and consumers alike.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quire_protocol::rpc::control::{self, request, response};
use quire_protocol::{BrokerId, ErrorCode, Offset, PartitionIndex, Timestamp};

use tokio::time::sleep_until;

use crate::Client;
use crate::admin::PartitionOffset;
use crate::connection::broker_error;
use crate::error::Error;
use crate::leadership::{self, Progress};
use crate::metadata::TopicMetadata;
use crate::position::Position;
use crate::retry::{Jitter, Retry};

/// Most partitions asked about in one request.
const PARTITIONS_PER_REQUEST: usize = 2048;

/// Why a position has no offset.
#[derive(Debug)]
pub(crate) enum Refused {
    UnknownPartition(PartitionIndex),
    OutOfRange { partition: PartitionIndex, offset: Offset, log_start: Offset, high_watermark: Offset },
    Other(Error),
}

impl Refused {
    pub(crate) fn into_error(self, topic: &TopicMetadata) -> Error {
        let (code, message) = match self {
            Refused::UnknownPartition(partition) => (
                ErrorCode::UnknownPartition,
                format!("\"{}\" has partitions 0 to {}, not {partition}", topic.name, topic.partitions() - 1),
            ),
            Refused::OutOfRange { partition, offset, log_start, high_watermark } => (
                ErrorCode::OffsetOutOfRange,
                format!(
                    "offset {offset} of partition {partition} of \"{}\" is out of range: it holds {log_start} up \
                     to, but not including, {high_watermark}",
                    topic.name
                ),
            ),
            Refused::Other(error) => return error,
        };
        Error::Broker { code, message, suggestion: None }
    }
}

/// The topic as it was asked about, and one answer for each position, in the order given.
pub(crate) type Listed = (Arc<TopicMetadata>, Vec<Result<PartitionOffset, Refused>>);

/// Looks the topic up and asks each partition's leader; once more if what was known of the topic has changed.
///
/// # Errors
/// If the topic does not exist, or a leader can not be asked at all.
pub(crate) async fn list_of(
    client: &Client,
    topic: &str,
    positions: &[(PartitionIndex, Position)],
) -> Result<Listed, Error> {
    let known = client.metadata().topic(topic).await?;
    let first = list(client, &known, positions).await;
    let is_outdated = match &first {
        Err(error) => is_outdated(error),
        Ok(answers) => answers.iter().any(|answer| match answer {
            Err(Refused::Other(error)) => is_outdated(error),
            Err(Refused::UnknownPartition(_)) => true,
            _ => false,
        }),
    };
    if !is_outdated {
        return first.map(|answers| (known, answers));
    }
    let refreshed = client.metadata().refresh(&known).await?;
    let answers = list(client, &refreshed, positions).await?;
    Ok((refreshed, answers))
}

/// As [`list_of`], and again while what failed may come right, for so long: a partition has no leader for a moment while
/// one is elected.
///
/// # Errors
/// As [`list_of`].
pub(crate) async fn list_within(
    time: Duration,
    client: &Client,
    topic: &str,
    positions: &[(PartitionIndex, Position)],
) -> Result<Listed, Error> {
    let end = Instant::now() + time;
    let mut retry = Retry::new(client.brokers().config().backoff, Jitter::from_entropy());
    loop {
        let listed = list_of(client, topic, positions).await;
        let failure = match &listed {
            Err(error) => Some(error),
            Ok((_, answers)) => answers.iter().find_map(|answer| match answer {
                Err(Refused::Other(error)) if error.is_retriable() => Some(error),
                _ => None,
            }),
        };
        let Some(error) = failure.filter(|error| error.is_retriable()) else { return listed };
        let due = retry.failed(Instant::now());
        if due > end {
            return listed;
        }
        tracing::debug!(topic, %error, "looking for positions again");
        sleep_until(due.into()).await;
    }
}

fn is_outdated(error: &Error) -> bool {
    use ErrorCode::{FencedLeaderEpoch, NotLeader, UnknownPartition, UnknownTopic};
    matches!(error, Error::NoLeader { .. })
        || matches!(error.code(), Some(UnknownTopic | UnknownPartition | NotLeader | FencedLeaderEpoch))
}

/// Asks each partition's leader; one answer for each position, in the order given.
///
/// # Errors
/// If a leader can not be asked at all.
async fn list(
    client: &Client,
    topic: &Arc<TopicMetadata>,
    positions: &[(PartitionIndex, Position)],
) -> Result<Vec<Result<PartitionOffset, Refused>>, Error> {
    let mut by_leader: BTreeMap<Option<BrokerId>, Vec<usize>> = BTreeMap::new();
    let mut answers: HashMap<usize, Result<PartitionOffset, Refused>> = HashMap::new();
    for (index, (partition, _)) in positions.iter().enumerate() {
        match topic.leadership(*partition) {
            Some(leadership) => by_leader.entry(leadership.leader).or_default().push(index),
            None => {
                answers.insert(index, Err(Refused::UnknownPartition(*partition)));
            }
        }
    }
    for chunk in by_leader.values().flat_map(|indexes| indexes.chunks(PARTITIONS_PER_REQUEST)) {
        let asked: Vec<_> = chunk.iter().map(|index| positions[*index]).collect();
        let answered = ask(client, topic, &asked).await?;
        answers.extend(chunk.iter().copied().zip(answered));
    }
    let missing = || Error::Protocol { address: "the broker".into(), why: "it left out a partition".into() };
    (0..positions.len()).map(|index| answers.remove(&index).ok_or_else(missing)).collect()
}

/// One request to the leader of all of `asked`, for as long as it leads.
async fn ask(
    client: &Client,
    topic: &Arc<TopicMetadata>,
    asked: &[(PartitionIndex, Position)],
) -> Result<Vec<Result<PartitionOffset, Refused>>, Error> {
    let Some((first, _)) = asked.first() else { return Ok(Vec::new()) };
    let waiting = Arc::new(Progress::waiting());
    tokio::select! {
        answered = ask_leader(client, topic, *first, asked) => answered,
        _ = leadership::has_moved(client.clone(), Arc::clone(topic), *first, waiting) => {
            Err(Error::NoLeader { topic: topic.name.to_string(), partition: *first, leader: None })
        }
    }
}

async fn ask_leader(
    client: &Client,
    topic: &TopicMetadata,
    first: PartitionIndex,
    asked: &[(PartitionIndex, Position)],
) -> Result<Vec<Result<PartitionOffset, Refused>>, Error> {
    let connection = client.metadata().leader(topic, first).await?;
    let partitions = asked.iter().map(|(partition, position)| control::PartitionPosition {
        partition: partition.0,
        position: Some(position.to_wire()),
    });
    let body = request::Body::ListOffsets(control::ListOffsetsRequest {
        topic_id: topic.id.as_bytes().to_vec(),
        partitions: partitions.collect(),
        with_ages: false,
    });
    let response::Body::ListOffsets(answer) = connection.rpc("list offsets", body).await? else {
        return Err(connection.protocol("it answered another request than list offsets"));
    };
    let matches = answer.partitions.len() == asked.len()
        && answer
            .partitions
            .iter()
            .zip(asked)
            .all(|(answer, (partition, _))| answer.partition == partition.0);
    if !matches {
        return Err(connection.protocol("it answered about other partitions than asked for"));
    }
    Ok(answer
        .partitions
        .into_iter()
        .zip(asked)
        .map(|(answer, (_, position))| parse(answer, *position))
        .collect())
}

fn parse(answer: control::PartitionOffset, position: Position) -> Result<PartitionOffset, Refused> {
    let partition = PartitionIndex(answer.partition);
    let (log_start, high_watermark) = (Offset(answer.log_start_offset), Offset(answer.high_watermark));
    if let Some(error) = answer.error.filter(|error| error.code != 0) {
        return Err(match (error.error_code(), position) {
            (ErrorCode::OffsetOutOfRange, Position::Offset(offset)) => {
                Refused::OutOfRange { partition, offset, log_start, high_watermark }
            }
            (ErrorCode::UnknownPartition, _) => Refused::UnknownPartition(partition),
            _ => Refused::Other(broker_error(&error, "")),
        });
    }
    let timestamp = (answer.timestamp != Timestamp::NONE.0).then_some(Timestamp(answer.timestamp));
    Ok(PartitionOffset { partition, offset: Offset(answer.offset), timestamp, log_start, high_watermark })
}
