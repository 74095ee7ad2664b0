//! Consuming.

mod error;

pub use error::ConsumeError;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use quire_protocol::batch::Header;
use quire_protocol::{Offset, PartitionIndex, Timestamp, limits};

use crate::Client;
use crate::position::Position;

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
        };
        ConsumerBuilder { client, options }
    }

    /// The topic to consume. Required.
    #[must_use]
    pub fn topic(mut self, topic: impl Into<String>) -> ConsumerBuilder {
        self.options.topic = topic.into();
        self
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

    /// How long a lost connection is retried before the partition ends with an error. Default 60 s.
    #[must_use]
    pub fn retry_timeout(mut self, timeout: Duration) -> ConsumerBuilder {
        self.options.retry_timeout = timeout;
        self
    }

    /// Looks up the topic and the positions, and starts to read.
    ///
    /// # Errors
    /// If topic, partition or position do not exist, or no broker can be asked.
    pub async fn build(self) -> Result<Consumer, ConsumeError> {
        unimplemented!("{:?} {:?}", self.client, self.options)
    }
}

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

/// Reads records; a [`Stream`] of them.
#[derive(Debug)]
pub struct Consumer {}

impl Consumer {
    /// The next record; `None` when the consumer has reached its end.
    pub async fn next(&mut self) -> Option<Result<ConsumedRecord, ConsumeError>> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// Continues in this partition from another position, and returns its offset.
    ///
    /// # Errors
    /// If the consumer does not read this partition, or the position does not exist.
    pub async fn seek(
        &mut self,
        partition: PartitionIndex,
        position: Position,
    ) -> Result<Offset, ConsumeError> {
        unimplemented!("{partition} {position:?}")
    }

    /// The offset of the next record to be handed out, for each partition.
    pub fn positions(&self) -> Vec<(PartitionIndex, Offset)> {
        unimplemented!()
    }

    /// How far the consumer is behind, for each partition.
    pub fn lag(&self) -> Vec<PartitionLag> {
        unimplemented!()
    }
}

impl Stream for Consumer {
    type Item = Result<ConsumedRecord, ConsumeError>;

    fn poll_next(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        unimplemented!()
    }
}
