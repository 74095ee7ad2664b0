//! Replicas read one by one while no broker runs: what each holds below the high watermark is told to the record, which
//! compares it with the others and with what clients were told.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use quire_client::Client;
use quire_protocol::batch::{BatchHeader, Records};
use quire_protocol::frame::FrameHeader;
use quire_protocol::{BrokerId, Offset, PartitionIndex, TopicId, TopicPartition};
use quire_storage::disk::OsDisk;
use quire_storage::inspect::{InspectError, each_frame, inspect};

use super::history::{Action, Kind, Process, Read, Value};
use super::payload;
use super::record::Record;

/// The first number of those who read replicas; each reads one broker's.
const READERS: u32 = 300;

/// Which replicas there should be.
#[derive(Debug, Clone)]
pub struct Holders {
    /// The topic.
    pub topic: TopicId,
    /// The brokers that hold each partition.
    pub partitions: Vec<(PartitionIndex, Vec<BrokerId>)>,
}

/// A replica can not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// It is not there, or the disk refuses.
    #[error("partition {partition} on broker {broker}: {source}")]
    Inspect {
        /// The partition.
        partition: PartitionIndex,
        /// The broker.
        broker: BrokerId,
        /// Why.
        source: InspectError,
    },
    /// Its broker ended in some other way than in order.
    #[error("partition {partition} on broker {broker} was not closed in order")]
    NotClosed {
        /// The partition.
        partition: PartitionIndex,
        /// The broker.
        broker: BrokerId,
    },
}

impl Holders {
    /// Asks the cluster.
    ///
    /// # Errors
    /// As every request.
    pub async fn ask(client: &Client, topic: &str) -> Result<Holders, quire_client::Error> {
        let topic = client.admin().describe_topic(topic).await?;
        let partitions = topic.partitions.into_iter().map(|found| (found.partition, found.replicas));
        Ok(Holders { topic: topic.id, partitions: partitions.collect() })
    }
}

/// One replica, before its records are read.
struct Replica {
    broker: BrokerId,
    directory: PathBuf,
    log_start: Offset,
    high_watermark: Offset,
}

/// Reads every replica below the highest high watermark that one of its partition's replicas knew: whoever was in sync when
/// the load was over holds as much. `data` says where a broker's data is. Returns how many replicas were read.
///
/// # Errors
/// If one can not be read. That it does not hold what it should is for the record to find.
pub fn read<'a>(
    holders: &Holders,
    data: impl Fn(BrokerId) -> Option<&'a Path>,
    seed: u64,
    record: &Record,
) -> Result<u32, ReplicaError> {
    let mut count = 0;
    for (index, brokers) in &holders.partitions {
        let partition = TopicPartition { topic: holders.topic, partition: *index };
        let directories = brokers.iter().filter_map(|broker| Some((*broker, data(*broker)?)));
        let found = directories.map(|(broker, data)| Replica::find(broker, data, partition));
        let replicas = found.collect::<Result<Vec<_>, _>>()?;
        let end = replicas.iter().map(|replica| replica.high_watermark).max().unwrap_or_default();
        for replica in &replicas {
            replica.tell(partition, end, seed, record)?;
            count += 1;
        }
    }
    Ok(count)
}

impl Replica {
    fn find(broker: BrokerId, data: &Path, partition: TopicPartition) -> Result<Replica, ReplicaError> {
        let TopicPartition { topic, partition } = partition;
        let directory = data.join("topics").join(topic.to_string()).join(partition.to_string());
        let report = inspect(&OsDisk, &directory).map_err(|source| ReplicaError::Inspect {
            partition,
            broker,
            source,
        })?;
        let high_watermark = match report.closed_at {
            Some(point) => point.high_watermark,
            None if report.is_unwritten => report.log_start,
            None => return Err(ReplicaError::NotClosed { partition, broker }),
        };
        Ok(Replica { broker, directory, log_start: report.log_start, high_watermark })
    }

    fn tell(
        &self,
        partition: TopicPartition,
        end: Offset,
        seed: u64,
        record: &Record,
    ) -> Result<(), ReplicaError> {
        let broker = self.broker;
        let reader = Process(READERS + broker.0);
        let is_told = |offset: Offset| (self.log_start..end).contains(&offset);
        let each = |frame: &FrameHeader, batch: Bytes| {
            let mut records = reads(&batch, frame, seed);
            records.retain(|read| is_told(read.offset));
            if records.is_empty() {
                return;
            }
            let (offset, epoch, chain) = (frame.base_offset, frame.leader_epoch, frame.chain);
            record.tell(reader, Kind::Ok, Action::Frame { partition, broker, offset, epoch, chain });
            record.tell(reader, Kind::Ok, Action::Replica { partition, broker, records });
        };
        // A frame that is not intact ends it, and what is missing then shows.
        each_frame(&OsDisk, &self.directory, partition, each).map_err(|source| ReplicaError::Inspect {
            partition: partition.partition,
            broker,
            source,
        })?;
        let (from, to) = (self.log_start, end);
        record.tell(reader, Kind::Ok, Action::ReplicaRead { partition, broker, from, to });
        Ok(())
    }
}

/// The records of a batch; one that can not be read stands for something that nobody sent.
fn reads(batch: &Bytes, frame: &FrameHeader, seed: u64) -> Vec<Read> {
    let unreadable =
        || vec![Read { offset: frame.base_offset, value: Value::unreadable(u64::from(frame.crc)) }];
    let Ok(header) = BatchHeader::check_stored(batch) else { return unreadable() };
    let Ok(records) = Records::open(&header, batch) else { return unreadable() };
    let read = |record: quire_protocol::batch::RecordView| Read {
        offset: record.offset,
        value: payload::decode(seed, record.value.as_deref().unwrap_or_default()),
    };
    records.map(|record| record.map(read)).collect::<Result<_, _>>().unwrap_or_else(|_| unreadable())
}
