//! Replaying into a topic: each record is produced again, and carries along where and when it was recorded.

use std::collections::VecDeque;

use bytes::Bytes;
use quire_client::{Client, ConsumedRecord, Delivery, Header, Producer, Record, RecordMetadata, SendError};
use quire_protocol::limits;

use crate::connect;
use crate::failure::Failure;

/// Headers that a replayed record has behind those it was recorded with. A record that is replayed again has one more of
/// each, the latest replay's last.
pub const TOPIC_HEADER: &str = "quire.replay.topic";
/// The partition that it was replayed from (decimal).
pub const PARTITION_HEADER: &str = "quire.replay.partition";
/// Its offset there (decimal).
pub const OFFSET_HEADER: &str = "quire.replay.offset";
/// Its timestamp there (milliseconds since 1970 UTC, decimal).
pub const TIMESTAMP_HEADER: &str = "quire.replay.timestamp";

/// Produces what is replayed, and keeps account.
pub struct Copy {
    topic: String,
    producer: Producer,
    outstanding: VecDeque<Delivery>,
    /// Records acknowledged.
    pub acknowledged: u64,
    /// Records handed over that were refused, or not acknowledged in time.
    pub failed: u64,
}

impl Copy {
    /// Into this topic, which must be there.
    ///
    /// # Errors
    /// If it is not, or can not be asked about.
    pub async fn start(client: &Client, topic: &str) -> Result<Copy, Failure> {
        let described = client.admin().describe_topic(topic).await;
        let topic = described.map_err(|error| connect::about_topic(topic, error))?.name;
        let producer = client.producer().build();
        Ok(Copy { topic, producer, outstanding: VecDeque::new(), acknowledged: 0, failed: 0 })
    }

    /// Hands the record over, as soon as there is room for it. Once dropped half-way, nobody knows whether it was.
    ///
    /// # Errors
    /// If it, or one before it, is not delivered.
    pub async fn hand_over(&mut self, record: ConsumedRecord) -> Result<(), SendError> {
        while self.outstanding.len() >= limits::PRODUCE_OUTSTANDING_RECORDS {
            self.acknowledgement().await?;
        }
        match self.producer.enqueue(&self.topic, replayed(record)).await {
            Ok(delivery) => {
                self.outstanding.push_back(delivery);
                Ok(())
            }
            Err(error) => {
                self.failed += 1;
                Err(error)
            }
        }
    }

    /// Waits for the next acknowledgement; for ever where none is to come. Dropping the future loses nothing.
    ///
    /// # Errors
    /// If the record is not delivered.
    pub async fn acknowledgement(&mut self) -> Result<(), SendError> {
        let Some(delivery) = self.outstanding.front_mut() else { return std::future::pending().await };
        let arrived = delivery.await;
        self.outstanding.pop_front();
        self.arrived(arrived)
    }

    /// Waits for every acknowledgement that is to come. Dropping the future loses nothing.
    ///
    /// # Errors
    /// The first failure; the others are waited for all the same.
    pub async fn finish(&mut self) -> Result<(), SendError> {
        let mut first_failure = Ok(());
        while !self.outstanding.is_empty() {
            first_failure = first_failure.and(self.acknowledgement().await);
        }
        first_failure
    }

    /// Records on their way.
    pub fn outstanding(&self) -> u64 {
        self.outstanding.len() as u64
    }

    fn arrived(&mut self, arrived: Result<RecordMetadata, SendError>) -> Result<(), SendError> {
        match arrived {
            Ok(_) => self.acknowledged += 1,
            Err(_) => self.failed += 1,
        }
        arrived.map(|_| ())
    }
}

/// The record to be produced. Its own timestamp is that of the replay.
fn replayed(record: ConsumedRecord) -> Record {
    let origin = |key: &str, value: Bytes| Header { key: key.to_owned(), value: Some(value) };
    let mut headers = record.headers;
    headers.extend([
        origin(TOPIC_HEADER, Bytes::copy_from_slice(record.topic.as_bytes())),
        origin(PARTITION_HEADER, record.partition.0.to_string().into()),
        origin(OFFSET_HEADER, record.offset.0.to_string().into()),
        origin(TIMESTAMP_HEADER, record.timestamp.0.to_string().into()),
    ]);
    Record { key: record.key, value: record.value, headers, ..Record::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_client::{Offset, PartitionIndex, Timestamp};

    #[test]
    fn a_replayed_record_says_where_and_when_it_was_recorded() {
        let recorded = ConsumedRecord {
            topic: "flights".into(),
            partition: PartitionIndex(3),
            offset: Offset(18_422),
            timestamp: Timestamp(1_371_081_600_000),
            key: Some("N14228".into()),
            value: None,
            headers: vec![Header { key: "carrier".into(), value: None }],
        };
        let replayed = replayed(recorded);
        assert_eq!((replayed.key, replayed.value, replayed.timestamp), (Some("N14228".into()), None, None));
        let headers: Vec<_> =
            replayed.headers.iter().map(|header| (header.key.as_str(), header.value.as_deref())).collect();
        let expected: [(&str, Option<&[u8]>); 5] = [
            ("carrier", None),
            ("quire.replay.topic", Some(b"flights")),
            ("quire.replay.partition", Some(b"3")),
            ("quire.replay.offset", Some(b"18422")),
            ("quire.replay.timestamp", Some(b"1371081600000")),
        ];
        assert_eq!(headers, expected);
    }
}
