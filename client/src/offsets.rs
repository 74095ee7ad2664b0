//! Where positions lie: one question to each leader, for admins and consumers alike.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use quire_protocol::rpc::control::{self, request, response};
use quire_protocol::{BrokerId, ErrorCode, Offset, PartitionIndex, Timestamp};
use tokio::time::sleep_until;

use crate::Client;
use crate::admin::PartitionOffset;
use crate::connection::broker_error;
use crate::error::Error;
use crate::leadership;
use crate::metadata::TopicMetadata;
use crate::patience::{self, Hindrance};
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
    /// Whether asking again can not help.
    pub(crate) fn is_final(&self) -> bool {
        !matches!(self, Refused::Other(error) if error.is_retriable())
    }

    /// Whether the topic may have changed since it was looked up.
    fn is_outdated(&self) -> bool {
        use ErrorCode::{FencedLeaderEpoch, NotLeader, UnknownPartition, UnknownTopic};
        let codes = [UnknownTopic, UnknownPartition, NotLeader, FencedLeaderEpoch];
        match self {
            Refused::UnknownPartition(_) | Refused::Other(Error::NoLeader { .. }) => true,
            Refused::OutOfRange { .. } => false,
            // A leader that can not be reached may lead no more.
            Refused::Other(error) => {
                error.is_unreachable() || error.code().is_some_and(|code| codes.contains(&code))
            }
        }
    }

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

/// The topic as it was asked about, and one answer for each position, in the order given. Each answer stands by itself: what
/// one partition's leader does not say holds back no other.
pub(crate) type Listed = (Arc<TopicMetadata>, Vec<Answer>);

type Answer = Result<PartitionOffset, Refused>;

/// Looks the topic up and asks each partition's leader; once more where what was known of the topic has changed.
///
/// # Errors
/// If the topic does not exist, or no broker can be asked about it.
pub(crate) async fn list_of(
    client: &Client,
    topic: &str,
    positions: &[(PartitionIndex, Position)],
) -> Result<Listed, Error> {
    let known = client.metadata().topic(topic).await?;
    let mut answers = list(client, &known, positions).await;
    if !answers.iter().any(|answer| answer.as_ref().is_err_and(Refused::is_outdated)) {
        return Ok((known, answers));
    }
    let refreshed = match client.metadata().refresh(&known).await {
        // Nobody knows better at the moment.
        Err(error) if error.is_retriable() => return Ok((known, answers)),
        refreshed => refreshed?,
    };
    let is_another = refreshed.id != known.id;
    let is_open = |answer: &Answer| is_another || answer.as_ref().is_err_and(Refused::is_outdated);
    let open: Vec<_> = (0..answers.len()).filter(|index| is_open(&answers[*index])).collect();
    let asked: Vec<_> = open.iter().map(|index| positions[*index]).collect();
    for (index, answer) in open.into_iter().zip(list(client, &refreshed, &asked).await) {
        answers[index] = answer;
    }
    Ok((refreshed, answers))
}

/// How long is waited for answers that may come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waiting {
    pub time_max: Duration,
    /// How long for those that can be done without, once there is any.
    pub spared_after: Option<Duration>,
}

/// As [`list_of`], and again what failed and may come right: a partition has no leader for a moment while one is elected. An
/// answer that is final ends the waiting. What is waited for is logged.
///
/// # Errors
/// As [`list_of`].
pub(crate) async fn list_within(
    waiting: Waiting,
    client: &Client,
    topic: &str,
    positions: &[(PartitionIndex, Position)],
) -> Result<Listed, Error> {
    let hindrance = Hindrance::default();
    let what = format!("\"{topic}\" can not be read yet, which is tried for {:?}", waiting.time_max);
    let listed = list_patiently(waiting, client, topic, positions, &hindrance);
    patience::with_warnings(&what, &hindrance, listed).await
}

async fn list_patiently(
    waiting: Waiting,
    client: &Client,
    topic: &str,
    positions: &[(PartitionIndex, Position)],
    hindrance: &Hindrance,
) -> Result<Listed, Error> {
    let begun = Instant::now();
    let mut retry = Retry::new(client.brokers().config().backoff, Jitter::from_entropy());
    let mut listed: Option<Listed> = None;
    loop {
        let open = open_places(listed.as_ref(), positions.len());
        let asked: Vec<_> = open.iter().map(|index| positions[*index]).collect();
        let failure = match list_of(client, topic, &asked).await {
            Ok(more) => {
                let all = merged(listed.take(), more, &open, positions.len());
                let Some(error) = obstacle(&all.1) else { return Ok(all) };
                let error = error.clone();
                let has_any = all.1.iter().any(Result::is_ok);
                if has_any && waiting.spared_after.is_some_and(|time| begun.elapsed() >= time) {
                    return Ok(all);
                }
                listed = Some(all);
                error
            }
            Err(error) if error.is_retriable() => error,
            Err(error) => return Err(error),
        };
        hindrance.set(&failure);
        let due = retry.failed(Instant::now());
        if due.duration_since(begun) > waiting.time_max {
            return listed.ok_or(failure);
        }
        tracing::debug!(topic, error = %failure, "looking for positions again");
        sleep_until(due.into()).await;
    }
}

/// Which positions are to be asked for.
fn open_places(listed: Option<&Listed>, count: usize) -> Vec<usize> {
    let is_open = |index: &usize| listed.is_none_or(|(_, answers)| answers[*index].is_err());
    (0..count).filter(is_open).collect()
}

/// What is known of all positions once those at `open` were answered. Another topic knows nothing of the answers of the one
/// before.
fn merged(earlier: Option<Listed>, (topic, more): Listed, open: &[usize], count: usize) -> Listed {
    let changed = || Err(Refused::Other(changed(&topic)));
    let mut answers = match earlier {
        Some((known, answers)) if known.id == topic.id => answers,
        _ => std::iter::repeat_with(changed).take(count).collect(),
    };
    for (index, answer) in open.iter().zip(more) {
        answers[*index] = answer;
    }
    (topic, answers)
}

/// What has to be waited for; `None` if there is nothing, or if an answer is final.
fn obstacle(answers: &[Answer]) -> Option<&Error> {
    if answers.iter().any(|answer| answer.as_ref().is_err_and(Refused::is_final)) {
        return None;
    }
    answers.iter().find_map(|answer| match answer {
        Err(Refused::Other(error)) => Some(error),
        _ => None,
    })
}

fn changed(topic: &TopicMetadata) -> Error {
    let message = format!("\"{}\" was created again meanwhile", topic.name);
    Error::Broker { code: ErrorCode::Unavailable, message, suggestion: None }
}

/// Asks each partition's leader, all at once; one answer for each position, in the order given.
async fn list(
    client: &Client,
    topic: &Arc<TopicMetadata>,
    positions: &[(PartitionIndex, Position)],
) -> Vec<Answer> {
    let mut by_leader: BTreeMap<Option<BrokerId>, Vec<usize>> = BTreeMap::new();
    let mut answers: Vec<Answer> =
        positions.iter().map(|(partition, _)| Err(Refused::UnknownPartition(*partition))).collect();
    for (index, (partition, _)) in positions.iter().enumerate() {
        if let Some(leadership) = topic.leadership(*partition) {
            by_leader.entry(leadership.leader).or_default().push(index);
        }
    }
    let chunks = by_leader.values().flat_map(|indexes| indexes.chunks(PARTITIONS_PER_REQUEST));
    let asked = join_all(chunks.map(async |chunk| {
        let asked: Vec<_> = chunk.iter().map(|index| positions[*index]).collect();
        (chunk, ask(client, topic, &asked).await)
    }));
    for (chunk, answered) in asked.await {
        chunk.iter().zip(answered).for_each(|(index, answer)| answers[*index] = answer);
    }
    answers
}

/// One request to the leader of all of `asked`, for as long as it leads any of them.
async fn ask(
    client: &Client,
    topic: &Arc<TopicMetadata>,
    asked: &[(PartitionIndex, Position)],
) -> Vec<Answer> {
    let partitions: Vec<_> = asked.iter().map(|(partition, _)| *partition).collect();
    let Some(first) = partitions.first() else { return Vec::new() };
    let failure = tokio::select! {
        answered = ask_leader(client, topic, *first, asked) => match answered {
            Ok(answers) => return answers,
            Err(error) => error,
        },
        () = leadership::all_have_moved(client.clone(), Arc::clone(topic), &partitions) => no_leader(topic, *first),
    };
    let failed = |partition: &PartitionIndex| match &failure {
        Error::NoLeader { .. } => Err(Refused::Other(no_leader(topic, *partition))),
        other => Err(Refused::Other(other.clone())),
    };
    partitions.iter().map(failed).collect()
}

fn no_leader(topic: &TopicMetadata, partition: PartitionIndex) -> Error {
    let leader = topic.leadership(partition).and_then(|leadership| leadership.leader);
    Error::NoLeader { topic: topic.name.to_string(), partition, leader }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::tests::led_by;

    fn answer(partition: u32) -> Answer {
        let (offset, log_start, high_watermark) = (Offset(1), Offset(0), Offset(1));
        let partition = PartitionIndex(partition);
        Ok(PartitionOffset { partition, offset, timestamp: None, log_start, high_watermark })
    }

    fn waits(partition: u32) -> Answer {
        Err(Refused::Other(no_leader(&led_by(7, &[None]), PartitionIndex(partition))))
    }

    #[test]
    fn what_is_final_is_not_held_back_by_what_may_come() {
        let unknown = || Err(Refused::UnknownPartition(PartitionIndex(9)));
        assert!(obstacle(&[answer(0), waits(1)]).is_some());
        assert!(obstacle(&[answer(0)]).is_none());
        assert!(obstacle(&[waits(1), unknown()]).is_none());
        let refused =
            Error::Broker { code: ErrorCode::NotAuthorized, message: "no".into(), suggestion: None };
        assert!(obstacle(&[waits(1), Err(Refused::Other(refused))]).is_none());
    }

    /// A consumer that was built while a leader's port was closed asked that one again until the end of its patience.
    #[test]
    fn where_a_leader_can_not_be_reached_it_is_looked_up_again() {
        let (address, why) = ("a:1".to_owned(), "nothing listens there".to_owned());
        assert!(Refused::Other(Error::Unreachable { address, why }).is_outdated());
        let full = Error::Broker { code: ErrorCode::MemoryFull, message: "no".into(), suggestion: None };
        assert!(!Refused::Other(full).is_outdated(), "it leads, and says so");
    }

    #[test]
    fn answers_are_kept_and_only_what_failed_is_asked_for_again() {
        let topic = |id| Arc::new(led_by(id, &[None, None, None]));
        assert_eq!(open_places(None, 3), [0, 1, 2]);
        let first = merged(None, (topic(7), vec![answer(0), waits(1), waits(2)]), &[0, 1, 2], 3);
        assert_eq!(open_places(Some(&first), 3), [1, 2]);
        let second = merged(Some(first), (topic(7), vec![waits(1), answer(2)]), &[1, 2], 3);
        assert_eq!(open_places(Some(&second), 3), [1]);
        let another = merged(Some(second), (topic(8), vec![answer(1)]), &[1], 3);
        assert_eq!(open_places(Some(&another), 3), [0, 2], "another topic has other offsets");
        assert!(obstacle(&another.1).is_some_and(Error::is_retriable));
    }
}
