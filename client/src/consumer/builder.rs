//! A consumer's settings, and how they become one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quire_protocol::stream::Start;
use quire_protocol::{Offset, PartitionIndex, limits};
use tokio::task::JoinSet;

use crate::Client;
use crate::admin::PartitionOffset;
use crate::group::GroupConsumerBuilder;
use crate::metadata::TopicMetadata;
use crate::offsets::{self, Refused, Waiting};
use crate::position::Position;
use crate::streams;

use super::cursor::{Bound, Cursor};
use super::fetcher::Fetcher;
use super::merge::{Front, Merge};
use super::near::Near;
use super::shelf::Shelves;
use super::{ConsumeError, Consumer, Order};

/// How long a partition without a leader holds back others that have one: about as long as an election takes.
const LEADER_TIME_MAX: Duration = Duration::from_secs(2);

/// A consumer's settings.
#[derive(Debug, Clone)]
pub struct ConsumerBuilder {
    client: Client,
    options: ConsumerOptions,
}

#[derive(Debug, Clone)]
pub(crate) struct ConsumerOptions {
    pub topic: String,
    pub partitions: Option<Vec<PartitionIndex>>,
    pub from: Position,
    pub until: Option<Position>,
    pub follow: bool,
    pub merge_by_time: bool,
    pub memory_bytes: usize,
    pub retry_timeout: Duration,
    pub rack: Option<String>,
}

impl ConsumerBuilder {
    pub(crate) fn new(client: Client) -> ConsumerBuilder {
        let options = ConsumerOptions {
            topic: String::new(),
            partitions: None,
            from: Position::Beginning,
            until: None,
            follow: false,
            merge_by_time: false,
            memory_bytes: limits::CONSUMER_MEMORY_BYTES_DEFAULT,
            retry_timeout: Duration::from_secs(60),
            rack: None,
        };
        ConsumerBuilder { client, options }
    }

    /// The topic to consume. Required.
    #[must_use]
    pub fn topic(mut self, topic: impl Into<String>) -> ConsumerBuilder {
        self.options.topic = topic.into();
        self
    }

    /// Consumes as a member of this group instead: it says which partitions, and from where.
    pub fn group(self, name: impl Into<String>) -> GroupConsumerBuilder {
        let builder = GroupConsumerBuilder::new(self.client, name.into());
        match self.options.topic.is_empty() {
            true => builder,
            false => builder.topics([self.options.topic]),
        }
    }

    /// Only these partitions. Default all.
    #[must_use]
    pub fn partitions(mut self, partitions: impl IntoIterator<Item = PartitionIndex>) -> ConsumerBuilder {
        self.options.partitions = Some(partitions.into_iter().collect());
        self
    }

    /// Where to start, in every partition. Default [`Position::Beginning`].
    #[must_use]
    pub fn from(mut self, position: Position) -> ConsumerBuilder {
        self.options.from = position;
        self
    }

    /// Where to stop, in every partition: before the record there. Default the end at the time of building, or never
    /// if it follows.
    #[must_use]
    pub fn until(mut self, position: Position) -> ConsumerBuilder {
        self.options.until = Some(position);
        self
    }

    /// Whether to wait for records that are yet to come. Default no.
    #[must_use]
    pub fn follow(mut self, follow: bool) -> ConsumerBuilder {
        self.options.follow = follow;
        self
    }

    /// Whether records of all partitions come in the order of their timestamps. Default no: as they are available,
    /// in turns. Either way each partition's records keep their order.
    #[must_use]
    pub fn merge_by_time(mut self, merge_by_time: bool) -> ConsumerBuilder {
        self.options.merge_by_time = merge_by_time;
        self
    }

    /// Bytes of records that wait to be polled, over all partitions. Default 32 MiB.
    #[must_use]
    pub fn memory_bytes(mut self, bytes: usize) -> ConsumerBuilder {
        self.options.memory_bytes = bytes;
        self
    }

    /// How long a lost connection, or a partition without a leader, is retried before the partition, or building and
    /// seeking, ends with an error. Default 60 s.
    #[must_use]
    pub fn retry_timeout(mut self, timeout: Duration) -> ConsumerBuilder {
        self.options.retry_timeout = timeout;
        self
    }

    /// Reads from replicas in this rack (`broker.rack` in the brokers' configuration) where they are in sync, and from the
    /// leader where there is none. Default the leader, always.
    ///
    /// Only what is committed is read, from wherever; a near replica may know of it a little later than the leader. Where
    /// one fails or is in sync no more, reading goes on at the leader, and comes back some time after.
    #[must_use]
    pub fn rack(mut self, rack: impl Into<String>) -> ConsumerBuilder {
        self.options.rack = Some(rack.into()).filter(|rack| !rack.is_empty());
        self
    }

    /// Looks up the topic and the positions, and starts to read.
    ///
    /// # Errors
    /// If topic, partition or position do not exist, which is told at once; or if no broker can be asked, or a partition has no
    /// leader, for the whole of the retry timeout. While that is waited for, a warning in the log says so. Where it need not be
    /// known where the partitions end (it follows, without `until`, from the beginning or an offset), partitions without a
    /// leader hold back the others for two seconds at most; they begin when they have one, or end with an error as if they had
    /// lost it later.
    pub async fn build(self) -> Result<Consumer, ConsumeError> {
        let ConsumerBuilder { client, options } = self;
        let begun = Instant::now();
        let partitions = options.chosen_partitions(&client).await?;
        let questions: Vec<_> =
            partitions.iter().flat_map(|partition| options.questions(*partition)).collect();
        let waiting = Waiting {
            time_max: options.retry_timeout.saturating_sub(begun.elapsed()),
            spared_after: options.can_begin_unasked().then_some(LEADER_TIME_MAX),
        };
        let (topic, mut answers) = offsets::list_within(waiting, &client, &options.topic, &questions).await?;
        // What is final is told before what may yet come right.
        let is_final = |answer: &Result<_, Refused>| answer.as_ref().is_err_and(Refused::is_final);
        if let Some(at) = answers.iter().position(is_final)
            && let Err(refused) = answers.swap_remove(at)
        {
            return Err(ConsumeError::of_position(refused, &topic));
        }
        let mut answers = answers.into_iter();
        let plans = partitions
            .iter()
            .map(|partition| options.plan(*partition, &mut answers))
            .collect::<Result<Vec<_>, Refused>>()
            .map_err(|refused| ConsumeError::of_position(refused, &topic))?;
        Ok(start(client, &options, &topic, &plans))
    }
}

/// Where one partition is read.
#[derive(Debug)]
struct Plan {
    partition: PartitionIndex,
    /// How its stream starts; `None` if there is nothing to read.
    start: Option<Start>,
    position: Offset,
    bound: Bound,
    high_watermark: Offset,
}

impl ConsumerOptions {
    /// The partitions to read, each once.
    async fn chosen_partitions(&self, client: &Client) -> Result<Vec<PartitionIndex>, ConsumeError> {
        if self.topic.is_empty() {
            return Err(ConsumeError::InvalidSettings("no topic was given".into()));
        }
        let partitions = match &self.partitions {
            Some(chosen) => {
                let mut chosen = chosen.clone();
                chosen.sort();
                chosen.dedup();
                chosen
            }
            None => {
                let waiting = Waiting { time_max: self.retry_timeout, spared_after: None };
                let (topic, _) = offsets::list_within(waiting, client, &self.topic, &[]).await?;
                (0..topic.partitions()).map(PartitionIndex).collect()
            }
        };
        if partitions.is_empty() {
            return Err(ConsumeError::InvalidSettings("no partition was given".into()));
        }
        let limit = streams::consume_max(client.brokers().config());
        if partitions.len() > limit {
            return Err(ConsumeError::TooManyPartitions { partitions: partitions.len(), limit });
        }
        Ok(partitions)
    }

    /// Whether the answers to these questions can be done without.
    fn can_begin_unasked(&self) -> bool {
        self.start_unasked().is_some()
    }

    /// How a stream starts of which its leader has told nothing, where nothing has to be told.
    fn start_unasked(&self) -> Option<(Start, Offset)> {
        match self.from {
            _ if !self.follow || self.until.is_some() => None,
            Position::Beginning => Some((Start::Beginning, Offset::ZERO)),
            Position::Offset(offset) => Some((Start::Offset(offset), offset)),
            Position::End | Position::BeforeEnd(_) | Position::Timestamp(_) => None,
        }
    }

    /// What is to be asked about a partition: where it starts, and where it stops if only its leader knows.
    fn questions(&self, partition: PartitionIndex) -> impl Iterator<Item = (PartitionIndex, Position)> {
        let until = self.until.filter(|until| matches!(until, Position::Timestamp(_)));
        std::iter::once(self.from).chain(until).map(move |position| (partition, position))
    }

    fn plan(
        &self,
        partition: PartitionIndex,
        answers: &mut impl Iterator<Item = Result<PartitionOffset, Refused>>,
    ) -> Result<Plan, Refused> {
        let missing = || Refused::UnknownPartition(partition);
        let from = match (answers.next().ok_or_else(missing)?, self.start_unasked()) {
            (Err(_), Some((start, position))) => {
                let (start, bound) = (Some(start), Bound::default());
                return Ok(Plan { partition, start, position, bound, high_watermark: Offset::ZERO });
            }
            (from, _) => from?,
        };
        let until = match self.until {
            Some(Position::Timestamp(_)) => Some(answers.next().ok_or_else(missing)??),
            _ => None,
        };
        let bound = self.bound(&from, until.as_ref());
        let is_empty = bound.end.is_some_and(|end| from.offset >= end);
        let start = match self.from {
            // Retention may have moved the beginning since it was asked for.
            Position::Beginning => Start::Beginning,
            _ => Start::Offset(from.offset),
        };
        Ok(Plan {
            partition,
            start: (!is_empty).then_some(start),
            position: from.offset,
            bound,
            high_watermark: from.high_watermark,
        })
    }

    fn bound(&self, from: &PartitionOffset, until: Option<&PartitionOffset>) -> Bound {
        let now_end = (!self.follow).then_some(from.high_watermark);
        let end = match self.until {
            None => return Bound { end: now_end, time: None },
            Some(Position::Beginning) => from.log_start,
            Some(Position::End) => from.high_watermark,
            Some(Position::Offset(offset)) => offset,
            Some(Position::BeforeEnd(count)) => {
                Offset(from.high_watermark.0.saturating_sub(count)).max(from.log_start)
            }
            Some(Position::Timestamp(time)) => match until {
                Some(found) if found.timestamp.is_some() => found.offset,
                // No such record yet; one that follows stops when it comes.
                _ => return Bound { end: now_end, time: self.follow.then_some(time) },
            },
        };
        Bound { end: Some(now_end.map_or(end, |now_end| end.min(now_end))), time: None }
    }
}

fn start(client: Client, options: &ConsumerOptions, topic: &Arc<TopicMetadata>, plans: &[Plan]) -> Consumer {
    let share = (options.memory_bytes / plans.len()) as u64;
    let share = share.clamp(limits::CONSUMER_CREDIT_BYTES_MIN, limits::CONSUME_CREDIT_BYTES_MAX);
    let shelves = Arc::new(Shelves::new(plans.iter().map(|plan| (plan.start, plan.high_watermark))));
    let mut fetchers = JoinSet::new();
    for (place, plan) in plans.iter().enumerate() {
        let fetcher = Fetcher {
            client: client.clone(),
            topic: Arc::clone(topic),
            partition: plan.partition,
            place,
            shelves: Arc::clone(&shelves),
            end: plan.bound.end,
            share,
            retry_timeout: options.retry_timeout,
            near: options.rack.clone().map(Near::new),
            is_near: false,
        };
        fetchers.spawn(fetcher.run());
    }
    let cursors: Vec<_> = plans
        .iter()
        .map(|plan| Cursor::new(Arc::clone(&topic.name), plan.partition, plan.position, plan.bound))
        .collect();
    let unfinished = cursors.iter().filter(|cursor| !cursor.is_finished()).count();
    let order = match options.merge_by_time {
        false => Order::Turns(None),
        true => {
            let mut merge = Merge::new(plans.len());
            for (place, _) in cursors.iter().enumerate().filter(|(_, cursor)| cursor.is_finished()) {
                merge.set(place, Front::None);
            }
            Order::ByTime { merge, fronts: plans.iter().map(|_| None).collect(), follow: options.follow }
        }
    };
    Consumer {
        client,
        topic: Arc::clone(&topic.name),
        retry_timeout: options.retry_timeout,
        cursors,
        shelves,
        order,
        failures: VecDeque::new(),
        unfinished,
        _fetchers: fetchers,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_protocol::Timestamp;

    fn options(until: Option<Position>, follow: bool) -> ConsumerOptions {
        ConsumerOptions {
            topic: "t".into(),
            partitions: None,
            from: Position::Beginning,
            until,
            follow,
            merge_by_time: false,
            memory_bytes: 1,
            retry_timeout: Duration::ZERO,
            rack: None,
        }
    }

    fn answer(offset: u64, timestamp: Option<i64>) -> PartitionOffset {
        PartitionOffset {
            partition: PartitionIndex(0),
            offset: Offset(offset),
            timestamp: timestamp.map(Timestamp),
            log_start: Offset(10),
            high_watermark: Offset(100),
        }
    }

    #[test]
    fn a_consumer_stops_where_it_was_told_and_never_beyond_the_end_unless_it_follows() {
        let cases = [
            (None, false, Some(100)),
            (None, true, None),
            (Some(Position::Beginning), false, Some(10)),
            (Some(Position::End), true, Some(100)),
            (Some(Position::Offset(Offset(50))), false, Some(50)),
            (Some(Position::Offset(Offset(500))), false, Some(100)),
            (Some(Position::Offset(Offset(500))), true, Some(500)),
            (Some(Position::BeforeEnd(30)), false, Some(70)),
            (Some(Position::BeforeEnd(1000)), false, Some(10)),
        ];
        for (until, follow, expected) in cases {
            let bound = options(until, follow).bound(&answer(10, None), None);
            assert_eq!(bound.end, expected.map(Offset), "{until:?} follow {follow}");
            assert_eq!(bound.time, None);
        }
    }

    #[test]
    fn a_time_to_stop_at_is_an_offset_if_it_was_reached_and_is_waited_for_if_one_follows() {
        let until = Some(Position::Timestamp(Timestamp(7)));
        let bound =
            |follow, found: &PartitionOffset| options(until, follow).bound(&answer(10, None), Some(found));
        let found = answer(42, Some(8));
        assert_eq!(bound(true, &found).end, Some(Offset(42)));
        let none = answer(100, None);
        assert_eq!((bound(false, &none).end, bound(false, &none).time), (Some(Offset(100)), None));
        assert_eq!((bound(true, &none).end, bound(true, &none).time), (None, Some(Timestamp(7))));
    }

    #[test]
    fn a_partition_of_which_nothing_need_be_known_begins_without_an_answer() {
        let silent = || {
            let partition = PartitionIndex(0);
            let error = crate::Error::NoLeader { topic: "t".into(), partition, leader: None };
            [Err(Refused::Other(error))].into_iter()
        };
        let plan = |options: ConsumerOptions| options.plan(PartitionIndex(0), &mut silent()).ok();
        let from_beginning = plan(options(None, true)).expect("it may begin");
        assert_eq!((from_beginning.start, from_beginning.position), (Some(Start::Beginning), Offset(0)));
        let from = Position::Offset(Offset(7));
        let from_offset = plan(ConsumerOptions { from, ..options(None, true) }).expect("it may begin");
        assert_eq!((from_offset.start, from_offset.position), (Some(Start::Offset(Offset(7))), Offset(7)));
        assert!(plan(options(None, false)).is_none(), "where it ends is to be told");
        assert!(plan(ConsumerOptions { from: Position::End, ..options(None, true) }).is_none());
        assert!(plan(options(Some(Position::End), true)).is_none());
    }

    #[test]
    fn a_partition_that_starts_at_its_end_opens_no_stream() {
        let mut answers = [Ok(answer(100, None))].into_iter();
        let from_end = ConsumerOptions { from: Position::End, ..options(None, false) };
        let plan = from_end.plan(PartitionIndex(0), &mut answers).expect("answered");
        assert_eq!(plan.start, None);
    }
}
