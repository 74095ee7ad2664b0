//! Consuming: one fetcher for each partition reads and verifies frames, the consumer decodes them record by record.
//!
//! ```text
//! consume stream ─► fetcher (verifies) ─► shelf ─► cursor (decodes) ─► merge or turns ─► Stream
//!        ▲                                              │
//!        └──────────── credit ◄──── used up ◄───────────┘
//! ```
//! Each partition has its own stream and its own share of the memory, so that waiting for one never holds up another.

mod assigned;
mod builder;
mod credit;
mod cursor;
mod error;
mod fetcher;
mod frames;
mod lookout;
mod merge;
mod near;
mod shelf;
#[cfg(test)]
mod slow;

pub(crate) use assigned::{Addition, Assigned, Reading};
pub use builder::ConsumerBuilder;
pub use error::ConsumeError;

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use quire_protocol::batch::Header;
use quire_protocol::frame::Chain;
use quire_protocol::stream::Start;
use quire_protocol::{BrokerId, Offset, PartitionIndex, Timestamp};
use tokio::task::JoinSet;

use crate::Client;
use crate::offsets::{self, Waiting};
use crate::position::Position;

use cursor::{Cursor, Next};
use merge::{Front, Merge};
use shelf::{Shelves, Status, Taken};

/// A record as it was read, sharing the memory it was received into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumedRecord {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: PartitionIndex,
    /// Its position in the partition.
    pub offset: Offset,
    /// When it happened, or when it was appended if the topic says so.
    pub timestamp: Timestamp,
    /// Its key, if it has one.
    pub key: Option<Bytes>,
    /// Its payload; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Named values carried along.
    pub headers: Vec<Header>,
}

/// How far a consumer is behind in one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionLag {
    /// The partition.
    pub partition: PartitionIndex,
    /// The offset of the next record to be handed out.
    pub position: Offset,
    /// The first offset not yet committed, as last heard.
    pub high_watermark: Offset,
    /// Records between both.
    pub records: u64,
}

/// The chain of one partition, as far as a consumer has verified what it took in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionChain {
    /// The partition.
    pub partition: PartitionIndex,
    /// The offset after the last frame verified.
    pub next_offset: Offset,
    /// The chain up to and including that frame; `None` before the first one. Equal to that of the acknowledgement of
    /// the same frame, it shows that both saw the same history.
    pub chain: Option<Chain>,
    /// Frames whose link to the one before was recomputed and held. The first frame after a start or a seek links to
    /// nothing that was read.
    pub links: u64,
}

/// Reads records; a [`Stream`] of them. Made by [`Client::consumer`].
///
/// A lost connection is made again, and reading continues at the next offset. A partition that can not be read any
/// further gives one error and then nothing; the others go on. A consumer that is not to follow ends (`None`) when
/// every partition has been read to its end.
///
/// One that is not polled holds at most its memory's bytes, and one frame a partition.
#[derive(Debug)]
pub struct Consumer {
    client: Client,
    topic: Arc<str>,
    retry_timeout: Duration,
    cursors: Vec<Cursor>,
    shelves: Arc<Shelves>,
    order: Order,
    /// Errors of partitions that have ended, yet to be handed out.
    failures: VecDeque<ConsumeError>,
    /// Partitions that may yet give records.
    unfinished: usize,
    /// Dropped, and with it every fetcher, when the consumer is.
    _fetchers: JoinSet<()>,
}

#[derive(Debug)]
enum Order {
    /// As available; the cursor in use until its slice is used up.
    Turns(Option<usize>),
    /// By time. The record at each cursor's front, and whether a partition without records is not waited for.
    ByTime { merge: Merge, fronts: Vec<Option<ConsumedRecord>>, follow: bool },
}

impl Consumer {
    /// The next record; `None` when the consumer has reached its end.
    ///
    /// Cancel-safe: no record is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<ConsumedRecord, ConsumeError>> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// Continues in this partition from another position, and returns its offset. Also after its end or an error. The
    /// position where the partition is to stop stays.
    ///
    /// # Errors
    /// If the consumer does not read this partition, or the position does not exist.
    pub async fn seek(
        &mut self,
        partition: PartitionIndex,
        position: Position,
    ) -> Result<Offset, ConsumeError> {
        let place = self.cursors.iter().position(|cursor| cursor.partition() == partition);
        let place = place.ok_or_else(|| {
            ConsumeError::InvalidSettings(format!("this consumer does not read partition {partition}"))
        })?;
        let asked = [(partition, position)];
        let waiting = Waiting { time_max: self.retry_timeout, spared_after: None };
        let (topic, answers) = offsets::list_within(waiting, &self.client, &self.topic, &asked).await?;
        let answer = answers.into_iter().next().ok_or_else(|| {
            ConsumeError::InvalidSettings("the broker answered nothing about the position".into())
        })?;
        let offset = answer.map_err(|refused| ConsumeError::of_position(refused, &topic))?.offset;
        self.jump(place, offset);
        Ok(offset)
    }

    /// The offset of the next record to be handed out, for each partition.
    pub fn positions(&self) -> Vec<(PartitionIndex, Offset)> {
        let fronts = match &self.order {
            Order::ByTime { fronts, .. } => fronts.as_slice(),
            Order::Turns(_) => &[],
        };
        let position = |(place, cursor): (usize, &Cursor)| {
            let front = fronts.get(place).and_then(Option::as_ref).map(|record| record.offset);
            (cursor.partition(), front.unwrap_or(cursor.position()))
        };
        self.cursors.iter().enumerate().map(position).collect()
    }

    /// How far the consumer is behind, for each partition. The high watermark is the one last heard of, which may be
    /// as old as the last records read.
    pub fn lag(&self) -> Vec<PartitionLag> {
        let lag = |(place, (partition, position)): (usize, (PartitionIndex, Offset))| {
            let high_watermark = self.shelves.high_watermark(place);
            PartitionLag { partition, position, high_watermark, records: high_watermark.since(position) }
        };
        self.positions().into_iter().enumerate().map(lag).collect()
    }

    /// How far each partition's chain has been verified. Frames are verified before their records are handed out: those
    /// in hand, 64 KiB and up to one frame more a partition, may still be to come. Once a partition has ended, none are.
    pub fn chains(&self) -> Vec<PartitionChain> {
        self.cursors.iter().map(Cursor::chain).collect()
    }

    /// The broker that each partition is read from at the moment, if it is read.
    pub fn sources(&self) -> Vec<(PartitionIndex, Option<BrokerId>)> {
        let source = |(place, cursor): (usize, &Cursor)| (cursor.partition(), self.shelves.source(place));
        self.cursors.iter().enumerate().map(source).collect()
    }

    /// Bytes of frames that were read and not yet handed out.
    pub fn buffered_bytes(&self) -> usize {
        self.shelves.bytes() + self.cursors.iter().map(Cursor::held_bytes).sum::<usize>()
    }

    /// What is left to read of each partition, as far as the offsets of its end are known.
    pub(crate) fn ranges(&self) -> Vec<(PartitionIndex, Range<Offset>)> {
        let end = self.cursors.iter().map(Cursor::end);
        let range = |((partition, start), end): ((PartitionIndex, Offset), Option<Offset>)| {
            (partition, start..end.unwrap_or(start).max(start))
        };
        self.positions().into_iter().zip(end).map(range).collect()
    }

    /// As [`Consumer::seek`], to an offset that is known to be there.
    pub(crate) fn jump_to(&mut self, partition: PartitionIndex, offset: Offset) {
        if let Some(place) = self.cursors.iter().position(|cursor| cursor.partition() == partition) {
            self.jump(place, offset);
        }
    }

    fn jump(&mut self, place: usize, offset: Offset) {
        let start = (!self.cursors[place].is_end(offset)).then_some(Start::Offset(offset));
        self.restart(place, offset, start);
    }

    /// Goes on at this offset; `start` is where to read, if it is to be read already. Also after the end or an error.
    fn restart(&mut self, place: usize, offset: Offset, start: Option<Start>) {
        let cursor = &mut self.cursors[place];
        let was_finished = cursor.is_finished();
        cursor.restart(offset, self.shelves.restart(place, start));
        self.unfinished += usize::from(was_finished);
        self.unfinished -= usize::from(cursor.is_finished());
        match &mut self.order {
            Order::Turns(current) => *current = current.filter(|current| *current != place),
            Order::ByTime { merge, fronts, .. } => {
                fronts[place] = None;
                merge.set(place, if cursor.is_finished() { Front::None } else { Front::Awaited });
            }
        }
    }

    /// The next record of this partition; takes another slice for it if it may.
    fn advance(&mut self, place: usize, may_take_slice: bool) -> Advance {
        loop {
            let cursor = &mut self.cursors[place];
            if cursor.is_finished() {
                return Advance::Nothing(Status::Ended);
            }
            match cursor.next() {
                Next::Record(record) => return Advance::Record(record),
                Next::Finished => {
                    self.finish(place);
                    return Advance::Nothing(Status::Ended);
                }
                Next::Failed(error) => {
                    self.finish(place);
                    return Advance::Nothing(Status::Failed(error));
                }
                Next::SliceNeeded { used } => {
                    if used > 0 {
                        self.shelves.release(place, cursor.generation(), used);
                    }
                    if !may_take_slice {
                        return Advance::Nothing(Status::Reading);
                    }
                    match self.shelves.take(place) {
                        Taken::Slice(slice) => cursor.load(slice),
                        Taken::Nothing(status) => {
                            if matches!(status, Status::Ended | Status::Failed(_)) {
                                self.finish(place);
                            }
                            return Advance::Nothing(status);
                        }
                    }
                }
            }
        }
    }

    /// Nothing more is read of this partition.
    fn finish(&mut self, place: usize) {
        self.cursors[place].finish(self.shelves.restart(place, None));
        self.unfinished -= 1;
    }

    /// Records as they are available, a slice of each partition in turn, each with its partition's place.
    fn poll_turns(
        &mut self,
        context: &Context<'_>,
    ) -> Poll<Option<(usize, Result<ConsumedRecord, ConsumeError>)>> {
        loop {
            let (place, may_take_slice) = match self.order {
                Order::Turns(Some(place)) => (place, false),
                _ => match self.shelves.next_changed(context.waker()) {
                    Some(place) => (place, true),
                    None if self.unfinished == 0 => return Poll::Ready(None),
                    None => return Poll::Pending,
                },
            };
            match self.advance(place, may_take_slice) {
                Advance::Record(record) => {
                    self.order = Order::Turns(Some(place));
                    return Poll::Ready(Some((place, Ok(record))));
                }
                Advance::Nothing(status) => {
                    self.order = Order::Turns(None);
                    if let Status::Failed(error) = status {
                        return Poll::Ready(Some((place, Err(error))));
                    }
                }
            }
        }
    }

    /// Records in the order of their timestamps.
    fn poll_by_time(&mut self, context: &Context<'_>) -> Poll<Option<Result<ConsumedRecord, ConsumeError>>> {
        // A partition that had no record may have one now, which may be the oldest.
        while let Some(place) = self.shelves.next_changed(context.waker()) {
            self.show_front(place);
        }
        if let Some(error) = self.failures.pop_front() {
            return Poll::Ready(Some(Err(error)));
        }
        let Order::ByTime { merge, fronts, .. } = &mut self.order else { return Poll::Pending };
        match merge.pop().and_then(|place| fronts[place].take().map(|record| (place, record))) {
            Some((place, record)) => {
                self.show_front(place);
                Poll::Ready(Some(Ok(record)))
            }
            None if self.unfinished == 0 => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    /// Decodes the record at the front of this partition, unless it is there already.
    fn show_front(&mut self, place: usize) {
        match &self.order {
            Order::ByTime { merge, .. } if !matches!(merge.front(place), Front::Record(_)) => {}
            _ => return,
        }
        let advanced = self.advance(place, true);
        let Order::ByTime { merge, fronts, follow } = &mut self.order else { return };
        let front = match advanced {
            Advance::Record(record) => {
                let timestamp = record.timestamp;
                fronts[place] = Some(record);
                Front::Record(timestamp)
            }
            Advance::Nothing(Status::Reading) => Front::Awaited,
            Advance::Nothing(Status::CaughtUp) if *follow => Front::None,
            Advance::Nothing(Status::CaughtUp) => Front::Awaited,
            Advance::Nothing(Status::Ended) => Front::None,
            Advance::Nothing(Status::Failed(error)) => {
                self.failures.push_back(error);
                Front::None
            }
        };
        merge.set(place, front);
    }
}

/// What a partition gave.
enum Advance {
    Record(ConsumedRecord),
    Nothing(Status),
}

impl Stream for Consumer {
    type Item = Result<ConsumedRecord, ConsumeError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let consumer = self.get_mut();
        match consumer.order {
            Order::Turns(_) => consumer.poll_turns(context).map(|next| next.map(|(_, next)| next)),
            Order::ByTime { .. } => consumer.poll_by_time(context),
        }
    }
}
