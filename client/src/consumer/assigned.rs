//! Reading partitions that come and go: a group's member reads what it is assigned at the time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use quire_protocol::stream::Start;
use quire_protocol::{Offset, PartitionIndex, TopicPartition, limits};
use tokio::task::{AbortHandle, JoinSet};

use crate::Client;
use crate::metadata::TopicMetadata;

use super::cursor::{Bound, Cursor};
use super::fetcher::Fetcher;
use super::near::Near;
use super::shelf::Shelves;
use super::{ConsumeError, ConsumedRecord, Consumer, Order};

/// How partitions are read.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    /// Bytes of records that wait to be polled, over all partitions.
    pub memory_bytes: usize,
    pub retry_timeout: Duration,
    pub rack: Option<String>,
}

/// Partitions of any topics, each read from where it was told.
#[derive(Debug)]
pub(crate) struct Assigned {
    reading: Reading,
    consumer: Consumer,
    partitions: BTreeMap<TopicPartition, Place>,
    by_place: BTreeMap<usize, TopicPartition>,
    /// Places that nobody reads at, to be used again.
    free: Vec<usize>,
}

#[derive(Debug)]
struct Place {
    index: usize,
    topic: Arc<TopicMetadata>,
    fetcher: AbortHandle,
    /// Bytes that its fetcher may hold.
    share: u64,
    is_paused: bool,
}

/// A partition to be read.
#[derive(Debug, Clone)]
pub(crate) struct Addition {
    pub topic: Arc<TopicMetadata>,
    pub partition: PartitionIndex,
    pub offset: Offset,
    pub high_watermark: Offset,
}

impl Addition {
    pub(crate) fn id(&self) -> TopicPartition {
        self.topic.partition(self.partition)
    }
}

/// How one partition is getting on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    pub id: TopicPartition,
    pub topic: Arc<str>,
    /// The offset of the next record to be handed out.
    pub position: Offset,
    pub high_watermark: Offset,
    pub is_paused: bool,
}

impl Assigned {
    pub(crate) fn new(client: Client, reading: Reading) -> Assigned {
        let consumer = Consumer {
            client,
            topic: "".into(),
            retry_timeout: reading.retry_timeout,
            cursors: Vec::new(),
            shelves: Arc::new(Shelves::new([])),
            order: Order::Turns(None),
            failures: std::collections::VecDeque::new(),
            unfinished: 0,
            _fetchers: JoinSet::new(),
        };
        Assigned {
            reading,
            consumer,
            partitions: BTreeMap::new(),
            by_place: BTreeMap::new(),
            free: Vec::new(),
        }
    }

    /// Reads these as well. What is read already goes on.
    pub(crate) fn add(&mut self, additions: &[Addition]) {
        let new: Vec<_> =
            additions.iter().filter(|addition| !self.partitions.contains_key(&addition.id())).collect();
        let share = self.share_of(self.partitions.len() + new.len());
        // The memory is for all of them: those that hold more than their share by now begin anew with less.
        let larger: Vec<_> = self.partitions.values().filter(|place| place.share > share).collect();
        for (index, is_paused) in
            larger.iter().map(|place| (place.index, place.is_paused)).collect::<Vec<_>>()
        {
            let id = self.by_place[&index];
            let place = self.partitions.get_mut(&id).expect("just seen");
            place.fetcher.abort();
            place.share = share;
            let cursor = &self.consumer.cursors[index];
            let (position, has_failed) = (cursor.position(), cursor.is_finished());
            let start = (!is_paused && !has_failed).then_some(Start::Offset(position));
            self.consumer.restart(index, position, start);
            if has_failed {
                self.consumer.finish(index);
            }
            let topic = Arc::clone(&place.topic);
            let fetcher = self.fetcher(&topic, id.partition, index, share);
            let fetcher = self.consumer._fetchers.spawn(fetcher.run());
            self.partitions.get_mut(&id).expect("just seen").fetcher = fetcher;
        }
        for addition in new {
            self.add_one(addition, share);
        }
    }

    fn add_one(&mut self, addition: &Addition, share: u64) {
        let Addition { topic, partition, offset, high_watermark } = addition;
        let start = Start::Offset(*offset);
        let cursor = Cursor::new(Arc::clone(&topic.name), *partition, *offset, Bound::default());
        let consumer = &mut self.consumer;
        let index = match self.free.pop() {
            Some(index) => {
                let generation = consumer.shelves.restart(index, Some(start));
                consumer.shelves.set_high_watermark(index, *high_watermark);
                consumer.cursors[index] = cursor;
                consumer.cursors[index].restart(*offset, generation);
                index
            }
            None => {
                consumer.cursors.push(cursor);
                consumer.shelves.add(Some(start), *high_watermark)
            }
        };
        consumer.unfinished += 1;
        let fetcher = self.fetcher(topic, *partition, index, share);
        let fetcher = self.consumer._fetchers.spawn(fetcher.run());
        let id = addition.id();
        let place = Place { index, topic: Arc::clone(topic), fetcher, share, is_paused: false };
        self.partitions.insert(id, place);
        self.by_place.insert(index, id);
    }

    fn fetcher(
        &self,
        topic: &Arc<TopicMetadata>,
        partition: PartitionIndex,
        place: usize,
        share: u64,
    ) -> Fetcher {
        Fetcher {
            client: self.consumer.client.clone(),
            topic: Arc::clone(topic),
            partition,
            place,
            shelves: Arc::clone(&self.consumer.shelves),
            end: None,
            share,
            retry_timeout: self.reading.retry_timeout,
            near: self.reading.rack.clone().map(Near::new),
            is_near: false,
        }
    }

    fn share_of(&self, partitions: usize) -> u64 {
        let share = (self.reading.memory_bytes / partitions.max(1)) as u64;
        share.clamp(limits::CONSUMER_CREDIT_BYTES_MIN, limits::CONSUME_CREDIT_BYTES_MAX)
    }

    /// Reads this one no longer; what was read of it and not handed out is dropped.
    pub(crate) fn remove(&mut self, id: TopicPartition) {
        let Some(place) = self.partitions.remove(&id) else { return };
        place.fetcher.abort();
        self.by_place.remove(&place.index);
        self.free.push(place.index);
        let consumer = &mut self.consumer;
        if consumer.cursors[place.index].is_finished() {
            consumer.shelves.restart(place.index, None);
        } else {
            consumer.finish(place.index);
        }
        consumer.leave_turn(place.index);
        // The ended tasks' places in the set.
        while consumer._fetchers.try_join_next().is_some() {}
    }

    /// Hands out no more of this one until it is resumed. `false` if it is not read.
    pub(crate) fn pause(&mut self, id: TopicPartition) -> bool {
        let Some(place) = self.partitions.get_mut(&id) else { return false };
        if !std::mem::replace(&mut place.is_paused, true) {
            let index = place.index;
            let position = self.consumer.cursors[index].position();
            self.consumer.restart(index, position, None);
        }
        true
    }

    /// Goes on after a pause. `false` if it is not read.
    pub(crate) fn resume(&mut self, id: TopicPartition) -> bool {
        let Some(place) = self.partitions.get_mut(&id) else { return false };
        if std::mem::replace(&mut place.is_paused, false) {
            let index = place.index;
            let position = self.consumer.cursors[index].position();
            self.consumer.jump(index, position);
        }
        true
    }

    /// Continues at another offset; also after an error. `false` if it is not read.
    pub(crate) fn seek(&mut self, id: TopicPartition, offset: Offset) -> bool {
        let Some(place) = self.partitions.get(&id) else { return false };
        let start = (!place.is_paused).then_some(Start::Offset(offset));
        self.consumer.restart(place.index, offset, start);
        true
    }

    /// The next record, and its partition's id. Never ends. A partition whose error may pass is read on from where it was, once
    /// the error was handed out; one with another error is not, unless one seeks.
    pub(crate) fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<(TopicPartition, ConsumedRecord), ConsumeError>> {
        match self.consumer.poll_turns(context) {
            Poll::Ready(Some((place, Ok(record)))) => Poll::Ready(Ok((self.by_place[&place], record))),
            Poll::Ready(Some((place, Err(error)))) => {
                if error.is_retriable() {
                    let position = self.consumer.cursors[place].position();
                    self.consumer.restart(place, position, Some(Start::Offset(position)));
                }
                Poll::Ready(Err(error))
            }
            // Woken by the next partition's first slice.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = TopicPartition> {
        self.partitions.keys().copied()
    }

    /// The partition of this name.
    pub(crate) fn id_of(&self, topic: &str, partition: PartitionIndex) -> Option<TopicPartition> {
        let is_it = |(id, place): &(&TopicPartition, &Place)| {
            id.partition == partition && &*place.topic.name == topic
        };
        self.partitions.iter().find(is_it).map(|(id, _)| *id)
    }

    pub(crate) fn topic_of(&self, id: TopicPartition) -> Option<&Arc<TopicMetadata>> {
        self.partitions.get(&id).map(|place| &place.topic)
    }

    pub(crate) fn standings(&self) -> Vec<Standing> {
        let standing = |(id, place): (&TopicPartition, &Place)| Standing {
            id: *id,
            topic: Arc::clone(&place.topic.name),
            position: self.consumer.cursors[place.index].position(),
            high_watermark: self.consumer.shelves.high_watermark(place.index),
            is_paused: place.is_paused,
        };
        self.partitions.iter().map(standing).collect()
    }
}

impl Consumer {
    /// The slice in use at this place is given up.
    fn leave_turn(&mut self, place: usize) {
        if let Order::Turns(current) = &mut self.order {
            *current = current.filter(|current| *current != place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;
    use crate::consumer::shelf::Status;
    use crate::error::Error;
    use crate::metadata::tests::led_by;

    const MEMORY_BYTES: usize = 4 << 20;

    fn id(partition: u32) -> TopicPartition {
        TopicPartition { topic: quire_protocol::TopicId([7; 16]), partition: PartitionIndex(partition) }
    }

    /// That reads so many partitions; their fetchers are never polled.
    fn reading(partitions: u32) -> Assigned {
        let reading =
            Reading { memory_bytes: MEMORY_BYTES, retry_timeout: Duration::from_secs(60), rack: None };
        let mut assigned = Assigned::new(Client::of_nobody(), reading);
        add(&mut assigned, 0..partitions);
        assigned
    }

    fn add(assigned: &mut Assigned, partitions: std::ops::Range<u32>) {
        let topic = Arc::new(led_by(7, &[None; 8]));
        let addition = |partition| Addition {
            topic: Arc::clone(&topic),
            partition: PartitionIndex(partition),
            offset: Offset(3),
            high_watermark: Offset(9),
        };
        assigned.add(&partitions.map(addition).collect::<Vec<_>>());
    }

    impl Assigned {
        /// What its fetcher does when it gives up.
        fn fail(&mut self, partition: u32, error: Error) {
            let place = self.partitions[&id(partition)].index;
            let generation = self.consumer.cursors[place].generation();
            assert!(self.consumer.shelves.set_status(place, generation, Status::Failed(error.into())));
        }

        fn poll(&mut self) -> Poll<Result<(TopicPartition, ConsumedRecord), ConsumeError>> {
            self.poll_next(&mut Context::from_waker(Waker::noop()))
        }

        fn is_read(&self, partition: u32) -> bool {
            let place = self.partitions[&id(partition)].index;
            self.consumer.shelves.request(place).start == Some(Start::Offset(Offset(3)))
        }
    }

    fn no_leader() -> Error {
        Error::NoLeader { topic: "t".into(), partition: PartitionIndex(0), leader: None }
    }

    fn damaged() -> Error {
        Error::Protocol { address: "a:1".into(), why: "it is damaged".into() }
    }

    /// After a minute without a leader a partition was given up for as long as the member had it.
    #[tokio::test]
    async fn a_partition_whose_error_may_pass_is_read_on() {
        let mut assigned = reading(2);
        for _ in 0..3 {
            assigned.fail(0, no_leader());
            assert!(matches!(assigned.poll(), Poll::Ready(Err(error)) if error.is_retriable()));
            assert!(assigned.is_read(0) && assigned.poll().is_pending());
        }
        assigned.fail(0, damaged());
        assert!(matches!(assigned.poll(), Poll::Ready(Err(_))));
        assert!(!assigned.is_read(0) && assigned.is_read(1));
        assert!(assigned.seek(id(0), Offset(3)) && assigned.is_read(0));
    }

    /// It was counted as read again, and then not.
    #[tokio::test]
    async fn a_failed_partition_can_be_paused_moved_and_removed() {
        for change in 0..4 {
            let mut assigned = reading(1);
            assigned.fail(0, damaged());
            assert!(matches!(assigned.poll(), Poll::Ready(Err(_))));
            assert_eq!(assigned.consumer.unfinished, 0);
            match change {
                0 => assert!(assigned.pause(id(0))),
                1 => assert!(assigned.pause(id(0)) && assigned.seek(id(0), Offset(5))),
                2 => assert!(assigned.pause(id(0)) && assigned.resume(id(0))),
                _ => add(&mut assigned, 1..8),
            }
            assert!(change != 3 || !assigned.is_read(0), "it has failed, whatever the others do");
            assert!(assigned.poll().is_pending());
            for partition in 0..8 {
                assigned.remove(id(partition));
            }
            assert_eq!(
                (assigned.consumer.unfinished, assigned.free.len()),
                (0, assigned.consumer.cursors.len())
            );
        }
    }
}
