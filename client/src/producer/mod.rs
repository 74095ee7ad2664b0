//! Producing.

mod error;

pub use error::SendError;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use quire_protocol::batch::{Compression, Record};
use quire_protocol::frame::Chain;
use quire_protocol::stream::Acks;
use quire_protocol::{LeaderEpoch, Offset, PartitionIndex, Timestamp, limits};

use crate::Client;
use crate::error::Error;

/// Chooses a record's partition.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Partitioner {
    /// By murmur2 of the key, as Kafka's clients do; records without a key fill a batch of one partition, then of the next.
    #[default]
    KeyHash,
    /// One partition after the other, whatever the key.
    RoundRobin,
    /// By a function of the record and the partition count, whose result is taken modulo that count.
    Custom(Arc<dyn Fn(&Record, u32) -> u32 + Send + Sync>),
}

impl fmt::Debug for Partitioner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Partitioner::KeyHash => "KeyHash",
            Partitioner::RoundRobin => "RoundRobin",
            Partitioner::Custom(_) => "Custom",
        })
    }
}

/// A producer's settings.
#[derive(Debug, Clone)]
pub struct ProducerBuilder {
    client: Client,
    options: ProducerOptions,
}

#[derive(Debug, Clone)]
pub(crate) struct ProducerOptions {
    pub linger: Duration,
    pub batch_bytes: usize,
    pub compression: Compression,
    pub acks: Acks,
    pub memory_bytes: usize,
    pub delivery_timeout: Duration,
    pub partitioner: Partitioner,
}

impl ProducerBuilder {
    pub(crate) fn new(client: Client) -> ProducerBuilder {
        let options = ProducerOptions {
            linger: Duration::ZERO,
            batch_bytes: limits::BATCH_BYTES_TARGET,
            compression: Compression::None,
            acks: Acks::All,
            memory_bytes: limits::PRODUCER_MEMORY_BYTES_DEFAULT,
            delivery_timeout: Duration::from_secs(30),
            partitioner: Partitioner::KeyHash,
        };
        ProducerBuilder { client, options }
    }

    /// How long a batch that is not full waits for more records. Default 0: it leaves as soon as fewer than two
    /// batches of its partition are on their way, so that records gather while others are being written.
    #[must_use]
    pub fn linger(mut self, linger: Duration) -> ProducerBuilder {
        self.options.linger = linger;
        self
    }

    /// Bytes of encoded records at which a batch leaves without waiting. Default 256 KiB; held within 1 KiB and the
    /// topic's `max.message.bytes`. A larger batch costs latency, a smaller one throughput.
    #[must_use]
    pub fn batch_bytes(mut self, bytes: usize) -> ProducerBuilder {
        self.options.batch_bytes = bytes;
        self
    }

    /// How batches are compressed. Default not at all.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> ProducerBuilder {
        self.options.compression = compression;
        self
    }

    /// When a record counts as delivered. Default [`Acks::All`].
    #[must_use]
    pub fn acks(mut self, acks: Acks) -> ProducerBuilder {
        self.options.acks = acks;
        self
    }

    /// Bytes of records that may wait or be on their way; more have to wait for room. Default 64 MiB.
    #[must_use]
    pub fn memory_bytes(mut self, bytes: usize) -> ProducerBuilder {
        self.options.memory_bytes = bytes;
        self
    }

    /// Longest time from accepting a record to its acknowledgement, retries included. Default 30 s.
    #[must_use]
    pub fn delivery_timeout(mut self, timeout: Duration) -> ProducerBuilder {
        self.options.delivery_timeout = timeout;
        self
    }

    /// What chooses partitions. Default [`Partitioner::KeyHash`].
    #[must_use]
    pub fn partitioner(mut self, partitioner: Partitioner) -> ProducerBuilder {
        self.options.partitioner = partitioner;
        self
    }

    /// The producer.
    pub fn build(self) -> Producer {
        unimplemented!("{:?} {:?}", self.client, self.options)
    }
}

/// Sends records. Cheap to clone; clones share memory and batches.
#[derive(Debug, Clone)]
pub struct Producer {}

impl Producer {
    /// Sends a record and waits for its acknowledgement.
    ///
    /// # Errors
    /// If it could not be delivered; see [`SendError`].
    pub async fn send(&self, topic: &str, record: Record) -> Result<RecordMetadata, SendError> {
        self.enqueue(topic, record).await?.await
    }

    /// Sends a record to this partition and waits for its acknowledgement.
    ///
    /// # Errors
    /// If it could not be delivered; see [`SendError`].
    pub async fn send_to(
        &self,
        topic: &str,
        partition: PartitionIndex,
        record: Record,
    ) -> Result<RecordMetadata, SendError> {
        self.enqueue_to(topic, partition, record).await?.await
    }

    /// Hands over a record, and waits only for room in the producer's memory.
    ///
    /// # Errors
    /// If the topic is not known, the record can not be sent as it is, or no room came within the delivery timeout.
    pub async fn enqueue(&self, topic: &str, record: Record) -> Result<Delivery, SendError> {
        unimplemented!("{topic} {record:?}")
    }

    /// As [`Producer::enqueue`], to this partition.
    ///
    /// # Errors
    /// As [`Producer::enqueue`], and if the topic has no such partition.
    pub async fn enqueue_to(
        &self,
        topic: &str,
        partition: PartitionIndex,
        record: Record,
    ) -> Result<Delivery, SendError> {
        unimplemented!("{topic} {partition} {record:?}")
    }

    /// Sends everything handed over before, and waits until each record is acknowledged or has failed.
    ///
    /// # Errors
    /// The first failure of any record since the last flush, so that none goes unseen even if nobody awaits its
    /// [`Delivery`].
    pub async fn flush(&self) -> Result<(), SendError> {
        unimplemented!()
    }

    /// Flushes and takes no more records; clones are closed too.
    ///
    /// # Errors
    /// As [`Producer::flush`].
    pub async fn close(&self) -> Result<(), SendError> {
        unimplemented!()
    }
}

/// Where a record was appended, and how safe it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordMetadata {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: PartitionIndex,
    /// The record's offset. Under [`Acks::None`] no broker ever tells it: then it is [`Offset::MAX`].
    pub offset: Offset,
    /// The record's timestamp.
    pub timestamp: Timestamp,
    /// When it was appended, by the leader's clock.
    pub append_time: Timestamp,
    /// The leadership it was appended in.
    pub leader_epoch: LeaderEpoch,
    /// The partition's chain up to and including the record's batch.
    pub chain: Chain,
    /// Replicas that have it on disk; 0 under `sync = interval`.
    pub replicas_on_disk: u32,
}

/// A record on its way. Resolves when it is acknowledged or has failed; dropping it changes nothing.
#[derive(Debug)]
#[must_use = "a failure is seen only by awaiting this, or by flush"]
pub struct Delivery {}

impl Future for Delivery {
    type Output = Result<RecordMetadata, SendError>;

    fn poll(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Self::Output> {
        let _: Option<Error> = None;
        unimplemented!()
    }
}
