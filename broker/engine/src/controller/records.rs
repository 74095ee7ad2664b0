//! The records of the metadata log, between their stored form (`metadata.proto`) and the domain's types.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message;
use quire_protocol::rpc::metadata::{self as stored, metadata_record::Body};
use quire_protocol::{BrokerId, LeaderEpoch, PartitionIndex, Timestamp, TopicId};

use super::image::Broker;

/// One committed change of the cluster's metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The cluster got its id. The first record of every log.
    ClusterCreated {
        /// The id.
        cluster_id: Arc<str>,
    },
    /// A broker started; its leaderships begin a new epoch.
    BrokerRegistered(Broker),
    /// A topic exists.
    TopicCreated {
        /// Its id.
        id: TopicId,
        /// Its name.
        name: Arc<str>,
        /// Replicas of each partition.
        replicas: u32,
        /// Its partitions, numbered from 0.
        partitions: Vec<Assignment>,
        /// The settings that were set.
        config: BTreeMap<String, String>,
        /// When.
        created_at: Timestamp,
    },
    /// A topic has more partitions.
    TopicPartitionsAdded {
        /// The topic.
        id: TopicId,
        /// The new ones, numbered on from the last.
        partitions: Vec<Assignment>,
    },
    /// A topic's settings changed.
    TopicConfigChanged {
        /// The topic.
        id: TopicId,
        /// The whole set of overrides after the change.
        config: BTreeMap<String, String>,
    },
    /// A topic exists no more; its holders are to remove it.
    TopicDeleted {
        /// The topic.
        id: TopicId,
        /// When.
        deleted_at: Timestamp,
    },
    /// A broker removed all it held of a deleted topic.
    TopicDeletionConfirmed {
        /// The topic.
        id: TopicId,
        /// The broker.
        broker: BrokerId,
    },
    /// A broker has the logs of a topic's first partitions on disk: none of them may be missing from here on.
    TopicHeld {
        /// The topic.
        id: TopicId,
        /// The broker.
        broker: BrokerId,
        /// Of the partitions below this number, those that the broker replicates.
        partitions: u32,
    },
}

/// Who holds and leads a new partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The partition's number.
    pub partition: PartitionIndex,
    /// The brokers that hold it, the preferred leader first.
    pub replicas: Vec<BrokerId>,
    /// The broker that leads it.
    pub leader: BrokerId,
    /// Its first leadership.
    pub leader_epoch: LeaderEpoch,
    /// Its first partition epoch.
    pub partition_epoch: u32,
    /// The replicas in sync.
    pub in_sync: Vec<BrokerId>,
}

/// Bytes that are not a metadata record this version understands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not a protobuf message of this schema.
    #[error("it is not a metadata record: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// A kind of record that a newer version added.
    #[error("it is of a kind that this version does not know; a newer broker wrote it")]
    Unknown,
    /// A field that is missing or out of range.
    #[error("its {0} is missing or out of range")]
    Field(&'static str),
}

impl Record {
    /// The record as it is stored.
    pub fn encode(&self) -> Vec<u8> {
        stored::MetadataRecord { body: Some(self.to_stored()) }.encode_to_vec()
    }

    /// Reads a stored record.
    ///
    /// # Errors
    /// If the bytes are no record, or one of a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Record, DecodeError> {
        let body = stored::MetadataRecord::decode(bytes)?.body.ok_or(DecodeError::Unknown)?;
        Record::from_stored(body)
    }

    fn to_stored(&self) -> Body {
        match self.clone() {
            Record::ClusterCreated { cluster_id } => {
                Body::ClusterCreated(stored::ClusterCreated { cluster_id: cluster_id.to_string() })
            }
            Record::BrokerRegistered(broker) => Body::BrokerRegistered(stored::BrokerRegistered {
                broker_id: broker.id.0,
                broker_epoch: broker.epoch,
                host: broker.host,
                port: broker.port.into(),
                rack: broker.rack,
            }),
            Record::TopicCreated { id, name, replicas, partitions, config, created_at } => {
                Body::TopicCreated(stored::TopicCreated {
                    topic_id: id.0.to_vec(),
                    name: name.to_string(),
                    replicas,
                    partitions: partitions.iter().map(Assignment::to_stored).collect(),
                    config,
                    created_at: created_at.0,
                })
            }
            Record::TopicPartitionsAdded { id, partitions } => {
                let partitions = partitions.iter().map(Assignment::to_stored).collect();
                Body::TopicPartitionsAdded(stored::TopicPartitionsAdded {
                    topic_id: id.0.to_vec(),
                    partitions,
                })
            }
            Record::TopicConfigChanged { id, config } => {
                Body::TopicConfigChanged(stored::TopicConfigChanged { topic_id: id.0.to_vec(), config })
            }
            Record::TopicDeleted { id, deleted_at } => {
                Body::TopicDeleted(stored::TopicDeleted { topic_id: id.0.to_vec(), deleted_at: deleted_at.0 })
            }
            Record::TopicDeletionConfirmed { id, broker } => {
                Body::TopicDeletionConfirmed(stored::TopicDeletionConfirmed {
                    topic_id: id.0.to_vec(),
                    broker_id: broker.0,
                })
            }
            Record::TopicHeld { id, broker, partitions } => Body::TopicHeld(stored::TopicHeld {
                topic_id: id.0.to_vec(),
                broker_id: broker.0,
                partitions,
            }),
        }
    }

    fn from_stored(body: Body) -> Result<Record, DecodeError> {
        Ok(match body {
            Body::ClusterCreated(record) => Record::ClusterCreated { cluster_id: record.cluster_id.into() },
            Body::BrokerRegistered(record) => Record::BrokerRegistered(Broker {
                id: BrokerId(record.broker_id),
                epoch: record.broker_epoch,
                host: record.host,
                port: u16::try_from(record.port).map_err(|_| DecodeError::Field("port"))?,
                rack: record.rack,
            }),
            Body::TopicCreated(record) => Record::TopicCreated {
                id: topic_id(&record.topic_id)?,
                name: record.name.into(),
                replicas: record.replicas,
                partitions: record.partitions.into_iter().map(Assignment::from_stored).collect(),
                config: record.config,
                created_at: Timestamp(record.created_at),
            },
            Body::TopicPartitionsAdded(record) => Record::TopicPartitionsAdded {
                id: topic_id(&record.topic_id)?,
                partitions: record.partitions.into_iter().map(Assignment::from_stored).collect(),
            },
            Body::TopicConfigChanged(record) => {
                Record::TopicConfigChanged { id: topic_id(&record.topic_id)?, config: record.config }
            }
            Body::TopicDeleted(record) => Record::TopicDeleted {
                id: topic_id(&record.topic_id)?,
                deleted_at: Timestamp(record.deleted_at),
            },
            Body::TopicDeletionConfirmed(record) => Record::TopicDeletionConfirmed {
                id: topic_id(&record.topic_id)?,
                broker: BrokerId(record.broker_id),
            },
            Body::TopicHeld(record) => Record::TopicHeld {
                id: topic_id(&record.topic_id)?,
                broker: BrokerId(record.broker_id),
                partitions: record.partitions,
            },
        })
    }
}

impl Assignment {
    fn to_stored(&self) -> stored::PartitionAssignment {
        stored::PartitionAssignment {
            partition: self.partition.0,
            replicas: self.replicas.iter().map(|id| id.0).collect(),
            leader: self.leader.0,
            leader_epoch: self.leader_epoch.0,
            partition_epoch: self.partition_epoch,
            in_sync_replicas: self.in_sync.iter().map(|id| id.0).collect(),
        }
    }

    fn from_stored(stored: stored::PartitionAssignment) -> Assignment {
        Assignment {
            partition: PartitionIndex(stored.partition),
            replicas: stored.replicas.into_iter().map(BrokerId).collect(),
            leader: BrokerId(stored.leader),
            leader_epoch: LeaderEpoch(stored.leader_epoch),
            partition_epoch: stored.partition_epoch,
            in_sync: stored.in_sync_replicas.into_iter().map(BrokerId).collect(),
        }
    }
}

fn topic_id(bytes: &[u8]) -> Result<TopicId, DecodeError> {
    TopicId::from_slice(bytes).ok_or(DecodeError::Field("topic id"))
}
