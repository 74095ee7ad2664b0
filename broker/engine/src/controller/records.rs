//! The records of the metadata log, between their stored form (`metadata.proto`) and the domain's types.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prost::Message;
use quire_protocol::rpc::metadata::{self as stored, metadata_record::Body};
use quire_protocol::{BrokerId, LeaderEpoch, PartitionIndex, Timestamp, TopicId};

use super::image::{Acl, Broker, BrokerState, Operation, Partition};

/// One committed change of the cluster's metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The cluster got its id. The first record of every log.
    ClusterCreated {
        /// The id.
        cluster_id: Arc<str>,
    },
    /// A broker started. If it is not fenced, it is its own controller, and its leaderships begin a new epoch.
    BrokerRegistered(Broker),
    /// A broker is fenced, unfenced, or drains.
    BrokerStateChanged {
        /// The broker.
        broker: BrokerId,
        /// Its broker epoch.
        epoch: u64,
        /// What it is from here on.
        state: BrokerState,
    },
    /// A broker left the cluster for good.
    BrokerRemoved {
        /// The broker.
        broker: BrokerId,
    },
    /// A topic exists.
    TopicCreated {
        /// Its id.
        id: TopicId,
        /// Its name.
        name: Arc<str>,
        /// Replicas of each partition.
        replicas: u32,
        /// Its partitions, numbered from 0.
        partitions: Vec<Partition>,
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
        partitions: Vec<Partition>,
    },
    /// Partitions of one topic are as given from here on: leader, in-sync and other replicas.
    PartitionsChanged {
        /// The topic.
        id: TopicId,
        /// Each whole, with the partition epoch that follows on its last one.
        partitions: Vec<Partition>,
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
    /// A broker has logs of a topic's partitions on disk: none of them may be missing from here on.
    TopicHeld {
        /// The topic.
        id: TopicId,
        /// The broker.
        broker: BrokerId,
        /// Of the partitions below this number, those that the broker replicates,
        partitions: u32,
        /// but for these that are not known to have been on disk before.
        missing: BTreeSet<PartitionIndex>,
    },
    /// A broker may hand out producer ids below this number, from the last such number on.
    ProducerIdsAllocated {
        /// The broker.
        broker: BrokerId,
        /// The first producer id that nobody has.
        next: u64,
    },
    /// A right was given.
    AclAdded(Acl),
    /// A right was taken away.
    AclRemoved(Acl),
    /// A token can be used to join.
    TokenIssued {
        /// The hash of its secret.
        hash: [u8; 32],
        /// Until when.
        expires_at: Timestamp,
    },
    /// A token was used.
    TokenRedeemed {
        /// The hash of its secret.
        hash: [u8; 32],
        /// Who used it.
        redeemer: [u8; 32],
        /// The broker id that was given for it.
        broker: BrokerId,
    },
    /// A token is forgotten.
    TokenRemoved {
        /// The hash of its secret.
        hash: [u8; 32],
    },
    /// The cluster's authority.
    AuthoritySet {
        /// Sealed.
        sealed: Arc<[u8]>,
    },
    /// A certificate is not to be trusted any more.
    CertificateRevoked {
        /// Its serial number.
        serial: Arc<[u8]>,
    },
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
            Record::BrokerRegistered(broker) => Body::BrokerRegistered(broker.to_stored()),
            Record::BrokerStateChanged { broker, epoch, state } => {
                Body::BrokerStateChanged(stored::BrokerStateChanged {
                    broker_id: broker.0,
                    broker_epoch: epoch,
                    state: state.to_stored().into(),
                })
            }
            Record::BrokerRemoved { broker } => {
                Body::BrokerRemoved(stored::BrokerRemoved { broker_id: broker.0 })
            }
            Record::TopicCreated { id, name, replicas, partitions, config, created_at } => {
                Body::TopicCreated(stored::TopicCreated {
                    topic_id: id.0.to_vec(),
                    name: name.to_string(),
                    replicas,
                    partitions: partitions.iter().map(Partition::to_stored).collect(),
                    config,
                    created_at: created_at.0,
                })
            }
            Record::TopicPartitionsAdded { id, partitions } => {
                let partitions = partitions.iter().map(Partition::to_stored).collect();
                Body::TopicPartitionsAdded(stored::TopicPartitionsAdded {
                    topic_id: id.0.to_vec(),
                    partitions,
                })
            }
            Record::PartitionsChanged { id, partitions } => {
                let partitions = partitions.iter().map(Partition::to_stored).collect();
                Body::PartitionsChanged(stored::PartitionsChanged { topic_id: id.0.to_vec(), partitions })
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
            Record::TopicHeld { id, broker, partitions, missing } => Body::TopicHeld(stored::TopicHeld {
                topic_id: id.0.to_vec(),
                broker_id: broker.0,
                partitions,
                missing: missing.into_iter().map(|index| index.0).collect(),
            }),
            Record::ProducerIdsAllocated { broker, next } => {
                Body::ProducerIdsAllocated(stored::ProducerIdsAllocated { broker_id: broker.0, next })
            }
            Record::AclAdded(acl) => Body::AclAdded(stored::AclAdded { acl: Some(acl.to_stored()) }),
            Record::AclRemoved(acl) => Body::AclRemoved(stored::AclRemoved { acl: Some(acl.to_stored()) }),
            Record::TokenIssued { hash, expires_at } => Body::TokenIssued(stored::TokenIssued {
                secret_hash: hash.to_vec(),
                expires_at: expires_at.0,
            }),
            Record::TokenRedeemed { hash, redeemer, broker } => Body::TokenRedeemed(stored::TokenRedeemed {
                secret_hash: hash.to_vec(),
                redeemer: redeemer.to_vec(),
                broker_id: broker.0,
            }),
            Record::TokenRemoved { hash } => {
                Body::TokenRemoved(stored::TokenRemoved { secret_hash: hash.to_vec() })
            }
            Record::AuthoritySet { sealed } => {
                Body::AuthoritySet(stored::AuthoritySet { sealed: sealed.to_vec() })
            }
            Record::CertificateRevoked { serial } => {
                Body::CertificateRevoked(stored::CertificateRevoked { serial: serial.to_vec() })
            }
        }
    }

    fn from_stored(body: Body) -> Result<Record, DecodeError> {
        Ok(match body {
            Body::ClusterCreated(record) => Record::ClusterCreated { cluster_id: record.cluster_id.into() },
            Body::BrokerRegistered(record) => Record::BrokerRegistered(Broker::from_stored(record)?),
            Body::BrokerStateChanged(record) => Record::BrokerStateChanged {
                broker: BrokerId(record.broker_id),
                epoch: record.broker_epoch,
                state: BrokerState::from_stored(record.state)?,
            },
            Body::BrokerRemoved(record) => Record::BrokerRemoved { broker: BrokerId(record.broker_id) },
            Body::TopicCreated(record) => Record::TopicCreated {
                id: topic_id(&record.topic_id)?,
                name: record.name.into(),
                replicas: record.replicas,
                partitions: record.partitions.into_iter().map(Partition::from_stored).collect(),
                config: record.config,
                created_at: Timestamp(record.created_at),
            },
            Body::TopicPartitionsAdded(record) => Record::TopicPartitionsAdded {
                id: topic_id(&record.topic_id)?,
                partitions: record.partitions.into_iter().map(Partition::from_stored).collect(),
            },
            Body::PartitionsChanged(record) => Record::PartitionsChanged {
                id: topic_id(&record.topic_id)?,
                partitions: record.partitions.into_iter().map(Partition::from_stored).collect(),
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
                missing: record.missing.into_iter().map(PartitionIndex).collect(),
            },
            Body::ProducerIdsAllocated(record) => {
                Record::ProducerIdsAllocated { broker: BrokerId(record.broker_id), next: record.next }
            }
            Body::AclAdded(record) => Record::AclAdded(Acl::from_stored(record.acl)?),
            Body::AclRemoved(record) => Record::AclRemoved(Acl::from_stored(record.acl)?),
            Body::TokenIssued(record) => Record::TokenIssued {
                hash: fixed(&record.secret_hash, "secret hash")?,
                expires_at: Timestamp(record.expires_at),
            },
            Body::TokenRedeemed(record) => Record::TokenRedeemed {
                hash: fixed(&record.secret_hash, "secret hash")?,
                redeemer: fixed(&record.redeemer, "redeemer")?,
                broker: BrokerId(record.broker_id),
            },
            Body::TokenRemoved(record) => {
                Record::TokenRemoved { hash: fixed(&record.secret_hash, "secret hash")? }
            }
            Body::AuthoritySet(record) => Record::AuthoritySet { sealed: record.sealed.into() },
            Body::CertificateRevoked(record) => Record::CertificateRevoked { serial: record.serial.into() },
        })
    }
}

impl Broker {
    pub(super) fn to_stored(&self) -> stored::BrokerRegistered {
        let id = |id: &[u8; 16]| if *id == [0; 16] { Vec::new() } else { id.to_vec() };
        stored::BrokerRegistered {
            broker_id: self.id.0,
            broker_epoch: self.epoch,
            host: self.host.clone(),
            port: self.port.into(),
            rack: self.rack.clone(),
            incarnation: id(&self.incarnation),
            directory: id(&self.directory),
            peer_host: self.peer_host.clone(),
            peer_port: self.peer_port.into(),
            node: self.node,
            state: self.state.to_stored().into(),
        }
    }

    pub(super) fn from_stored(stored: stored::BrokerRegistered) -> Result<Broker, DecodeError> {
        let port = |port, field| u16::try_from(port).map_err(|_| DecodeError::Field(field));
        Ok(Broker {
            id: BrokerId(stored.broker_id),
            epoch: stored.broker_epoch,
            incarnation: fixed_or_zeros(&stored.incarnation, "incarnation")?,
            directory: fixed_or_zeros(&stored.directory, "directory")?,
            host: stored.host,
            port: port(stored.port, "port")?,
            peer_host: stored.peer_host,
            peer_port: port(stored.peer_port, "peer port")?,
            rack: stored.rack,
            state: BrokerState::from_stored(stored.state)?,
            node: stored.node,
        })
    }
}

impl BrokerState {
    pub(super) fn to_stored(self) -> stored::BrokerState {
        match self {
            BrokerState::Unfenced => stored::BrokerState::Unfenced,
            BrokerState::Draining => stored::BrokerState::Draining,
            BrokerState::Fenced => stored::BrokerState::Fenced,
        }
    }

    pub(super) fn from_stored(stored: i32) -> Result<BrokerState, DecodeError> {
        match stored::BrokerState::try_from(stored) {
            Ok(stored::BrokerState::Unfenced) => Ok(BrokerState::Unfenced),
            Ok(stored::BrokerState::Draining) => Ok(BrokerState::Draining),
            Ok(stored::BrokerState::Fenced) => Ok(BrokerState::Fenced),
            Err(_) => Err(DecodeError::Field("broker state")),
        }
    }
}

impl Partition {
    pub(super) fn to_stored(&self) -> stored::PartitionAssignment {
        let ids = |brokers: &[BrokerId]| brokers.iter().map(|id| id.0).collect();
        stored::PartitionAssignment {
            partition: self.index.0,
            replicas: ids(&self.replicas),
            leader: self.leader.map_or(0, |leader| leader.0),
            leader_epoch: self.leader_epoch.0,
            partition_epoch: self.partition_epoch,
            in_sync_replicas: ids(&self.in_sync),
            has_no_leader: self.leader.is_none(),
            eligible_leader_replicas: ids(&self.eligible),
            adding_replicas: ids(&self.adding),
            removing_replicas: ids(&self.removing),
            is_recovering: self.is_recovering,
            suspect_replicas: ids(&self.suspects),
        }
    }

    pub(super) fn from_stored(stored: stored::PartitionAssignment) -> Partition {
        let ids = |brokers: Vec<u32>| brokers.into_iter().map(BrokerId).collect();
        Partition {
            index: PartitionIndex(stored.partition),
            replicas: ids(stored.replicas),
            leader: Some(BrokerId(stored.leader)).filter(|_| !stored.has_no_leader),
            leader_epoch: LeaderEpoch(stored.leader_epoch),
            partition_epoch: stored.partition_epoch,
            in_sync: ids(stored.in_sync_replicas),
            eligible: ids(stored.eligible_leader_replicas),
            adding: ids(stored.adding_replicas),
            removing: ids(stored.removing_replicas),
            is_recovering: stored.is_recovering,
            suspects: ids(stored.suspect_replicas),
        }
    }
}

impl Acl {
    pub(super) fn to_stored(&self) -> stored::Acl {
        let (topic_prefix, group_prefix) = match self.operation {
            Operation::Join => (String::new(), self.prefix.clone()),
            _ => (self.prefix.clone(), String::new()),
        };
        let (principal, operation) = (self.principal.clone(), self.operation.to_stored().into());
        stored::Acl { principal, operation, topic_prefix, group_prefix }
    }

    pub(super) fn from_stored(stored: Option<stored::Acl>) -> Result<Acl, DecodeError> {
        let stored = stored.ok_or(DecodeError::Field("right"))?;
        let operation = Operation::from_stored(stored.operation)?;
        let (prefix, other) = match operation {
            Operation::Join => (stored.group_prefix, stored.topic_prefix),
            _ => (stored.topic_prefix, stored.group_prefix),
        };
        if !other.is_empty() {
            return Err(DecodeError::Field("prefix"));
        }
        Ok(Acl { principal: stored.principal, operation, prefix })
    }
}

impl Operation {
    fn to_stored(self) -> stored::AclOperation {
        match self {
            Operation::Produce => stored::AclOperation::Produce,
            Operation::Consume => stored::AclOperation::Consume,
            Operation::Join => stored::AclOperation::Join,
            Operation::Manage => stored::AclOperation::Manage,
            Operation::Administer => stored::AclOperation::Administer,
        }
    }

    fn from_stored(stored: i32) -> Result<Operation, DecodeError> {
        match stored::AclOperation::try_from(stored) {
            Ok(stored::AclOperation::Produce) => Ok(Operation::Produce),
            Ok(stored::AclOperation::Consume) => Ok(Operation::Consume),
            Ok(stored::AclOperation::Join) => Ok(Operation::Join),
            Ok(stored::AclOperation::Manage) => Ok(Operation::Manage),
            Ok(stored::AclOperation::Administer) => Ok(Operation::Administer),
            Ok(stored::AclOperation::None) | Err(_) => Err(DecodeError::Field("operation")),
        }
    }
}

pub(super) fn topic_id(bytes: &[u8]) -> Result<TopicId, DecodeError> {
    TopicId::from_slice(bytes).ok_or(DecodeError::Field("topic id"))
}

pub(super) fn fixed<const N: usize>(bytes: &[u8], field: &'static str) -> Result<[u8; N], DecodeError> {
    bytes.try_into().map_err(|_| DecodeError::Field(field))
}

/// Nothing stands for zeros, as in records from before there was the field.
pub(super) fn fixed_or_zeros(bytes: &[u8], field: &'static str) -> Result<[u8; 16], DecodeError> {
    if bytes.is_empty() { Ok([0; 16]) } else { fixed(bytes, field) }
}
