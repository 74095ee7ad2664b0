//! Reading partitions that come and go: a group's member reads what it is assigned at the time.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
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
            let position = self.consumer.cursors[index].position();
            let place = self.partitions.get_mut(&id).expect("just seen");
            place.fetcher.abort();
            place.share = share;
            let start = (!is_paused).then_some(Start::Offset(position));
            let generation = self.consumer.shelves.restart(index, start);
            self.consumer.cursors[index].restart(position, generation);
            self.consumer.leave_turn(index);
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
            let cursor = &mut self.consumer.cursors[place.index];
            let position = cursor.position();
            cursor.restart(position, self.consumer.shelves.restart(place.index, None));
            self.consumer.leave_turn(place.index);
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
        let index = place.index;
        self.consumer.jump(index, offset);
        if self.partitions[&id].is_paused {
            let generation = self.consumer.shelves.restart(index, None);
            self.consumer.cursors[index].restart(offset, generation);
        }
        true
    }

    /// The next record, and its partition's id. Never ends.
    pub(crate) fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<(TopicPartition, ConsumedRecord), ConsumeError>> {
        match Pin::new(&mut self.consumer).poll_next(context) {
            Poll::Ready(Some(Ok(record))) => match self.consumer.order {
                Order::Turns(Some(place)) => Poll::Ready(Ok((self.by_place[&place], record))),
                _ => unreachable!("a record leaves its place in turn"),
            },
            Poll::Ready(Some(Err(error))) => Poll::Ready(Err(error)),
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
