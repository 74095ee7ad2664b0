//! Replay: what was recorded is played again, at the pace it was recorded at, faster, slower, or flat out.
//!
//! ```text
//! consumer, merged by time ─► filter ─► player ─► Stream
//!                                         │
//!                    ReplayControl ───► tape: when is the next record due?
//! ```
//! The [`tape`] alone decides about time and has no clock; the [`player`] waits.

mod extent;
mod filter;
mod player;
mod tape;

pub use extent::{Extent, Rehearsal};
pub use player::{ReplayControl, ReplayPosition};
pub use tape::{InvalidSpeed, Speed};

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use quire_protocol::{PartitionIndex, limits};

use crate::Client;
use crate::consumer::{ConsumeError, ConsumedRecord, Consumer, ConsumerBuilder};
use crate::position::Position;

use filter::Filter;
use player::Player;
use tape::Tape;

/// A replay's settings. Made by [`Client::replay`].
#[derive(Debug, Clone)]
pub struct ReplayBuilder {
    consumer: ConsumerBuilder,
    speed: Speed,
    gap_max: Option<Duration>,
    filter: Filter,
    records_max: u64,
}

/// Plays records again; a [`Stream`] of them in the order of their timestamps, each when it is due.
///
/// The first record comes at once, whatever was silent before it, and every other one at its distance from the first,
/// divided by the speed. Due times are counted from that start and not from one record to the next, so that late
/// deliveries do not add up; a stall of more than a second, of the broker or of whoever polls, shifts everything behind
/// it, so that no flood follows. Delivery is as exact as the runtime's timer: about a millisecond.
///
/// Timestamps are their producers' (or the broker's, where the topic says so) and may go back. Each partition's records
/// keep their order in any case: one whose timestamp is earlier than that of a record before it is due at once.
///
/// It ends (`None`) at the end as it was when the replay was built, or before. A partition that can not be read any
/// further gives one error and then nothing; the others go on.
#[derive(Debug)]
pub struct Replay {
    player: Player<Consumer>,
    records_max: u64,
}

impl ReplayBuilder {
    pub(crate) fn new(client: Client) -> ReplayBuilder {
        ReplayBuilder {
            consumer: ConsumerBuilder::new(client).merge_by_time(true),
            speed: Speed::Recorded,
            gap_max: None,
            filter: Filter::default(),
            records_max: u64::MAX,
        }
    }

    /// The topic to replay. Required.
    #[must_use]
    pub fn topic(mut self, topic: impl Into<String>) -> ReplayBuilder {
        self.consumer = self.consumer.topic(topic);
        self
    }

    /// Only these partitions. Default all.
    #[must_use]
    pub fn partitions(mut self, partitions: impl IntoIterator<Item = PartitionIndex>) -> ReplayBuilder {
        self.consumer = self.consumer.partitions(partitions);
        self
    }

    /// Where to start, in every partition. Default [`Position::Beginning`].
    #[must_use]
    pub fn from(mut self, position: Position) -> ReplayBuilder {
        self.consumer = self.consumer.from(position);
        self
    }

    /// Where to stop, in every partition: before the record there, and at the latest at the end as it is when the replay
    /// is built. Default that end.
    #[must_use]
    pub fn until(mut self, position: Position) -> ReplayBuilder {
        self.consumer = self.consumer.until(position);
        self
    }

    /// How fast. Default [`Speed::Recorded`].
    #[must_use]
    pub fn speed(mut self, speed: Speed) -> ReplayBuilder {
        self.speed = speed;
        self
    }

    /// Longest time to wait between two records, whatever the recording says: what one waits, so that the speed does not
    /// matter. Records that the filters pass over are no interruption. Default unlimited.
    #[must_use]
    pub fn max_gap(mut self, gap: Duration) -> ReplayBuilder {
        self.gap_max = Some(gap);
        self
    }

    /// Only records with this key. More keys widen the choice: any of them.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> ReplayBuilder {
        self.filter.keys.push(key.into());
        self
    }

    /// Only records with this header and value. More headers narrow the choice: all of them.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> ReplayBuilder {
        self.filter.headers.push((name.into(), value.into()));
        self
    }

    /// Only so many records, of those that the filters want. Default all.
    #[must_use]
    pub fn records_max(mut self, records: u64) -> ReplayBuilder {
        self.records_max = records;
        self
    }

    /// Bytes of records read ahead, over all partitions; each has its share, and reads at least 4 KiB and one batch
    /// whatever that share is, so that no partition waits for another's memory. Default 32 MiB.
    #[must_use]
    pub fn memory_bytes(mut self, bytes: usize) -> ReplayBuilder {
        self.consumer = self.consumer.memory_bytes(bytes);
        self
    }

    /// How long a lost connection, or a partition without a leader, is retried before the partition, or building, ends
    /// with an error. Default 60 s.
    #[must_use]
    pub fn retry_timeout(mut self, timeout: Duration) -> ReplayBuilder {
        self.consumer = self.consumer.retry_timeout(timeout);
        self
    }

    /// Looks up the topic and the positions, and starts to read. Time runs from the first record on.
    ///
    /// # Errors
    /// If the speed is none; if topic, partition or position do not exist, or no broker can be asked.
    pub async fn build(self) -> Result<Replay, ConsumeError> {
        let tape = self.tape()?;
        let consumer = self.consumer.build().await?;
        let records_max = extent::records(&consumer.ranges()).min(self.records_max);
        Ok(Replay { player: Player::new(consumer, tape, self.filter, self.records_max), records_max })
    }

    fn tape(&self) -> Result<Tape, ConsumeError> {
        Tape::new(self.speed, self.gap_max).map_err(|error| ConsumeError::InvalidSettings(error.to_string()))
    }

    /// One that looks at some records and holds no more than it must.
    fn glancing(&self) -> ConsumerBuilder {
        self.consumer.clone().memory_bytes(limits::CONSUMER_CREDIT_BYTES_MIN as usize)
    }
}

impl Replay {
    /// The next record, when it is due; `None` when the replay has reached its end.
    ///
    /// Cancel-safe: no record is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<ConsumedRecord, ConsumeError>> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// Pauses, resumes, steps, changes the speed and tells the position, while the replay is polled elsewhere.
    pub fn control(&self) -> ReplayControl {
        self.player.control()
    }

    /// At most so many records will have been handed out in the end: that many offsets lay in its range when it was
    /// built. Filters pass records over, and not every offset holds one.
    pub fn records_max(&self) -> u64 {
        self.records_max
    }

    /// Bytes of frames that were read and not yet handed out.
    pub fn buffered_bytes(&self) -> usize {
        self.player.source().buffered_bytes()
    }
}

impl Stream for Replay {
    type Item = Result<ConsumedRecord, ConsumeError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.get_mut().player).poll_next(context)
    }
}
