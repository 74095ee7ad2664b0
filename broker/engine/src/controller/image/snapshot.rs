//! The image as one value in bytes, so that a replica that lags need not apply every record since the beginning.
//!
//! The same image always has the same bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message;
use quire_protocol::rpc::metadata as stored;
use quire_protocol::topic_config::{TopicConfig, TopicConfigError};
use quire_protocol::{BrokerId, PartitionIndex, Timestamp, TopicId, limits};

use super::{Acl, Broker, DeletedTopic, Held, Image, Partition, Token, Topic};
use crate::controller::records::{DecodeError, fixed, topic_id};

/// What this version writes; it reads no newer one.
const VERSION: u32 = 1;

/// Bytes that are not an image this version understands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Longer than any cluster's metadata.
    #[error("it has {0} bytes, at most {max} are read", max = limits::METADATA_SNAPSHOT_BYTES_MAX)]
    TooLong(usize),
    /// Of another version.
    #[error("it is of version {0}, this broker reads {VERSION}")]
    Version(u32),
    /// A part of it that is malformed.
    #[error(transparent)]
    Part(#[from] DecodeError),
    /// Settings that this version does not know or accept.
    #[error(transparent)]
    Config(#[from] TopicConfigError),
    /// Parts that contradict each other.
    #[error("its {0} contradict each other")]
    Contradiction(&'static str),
}

impl From<prost::DecodeError> for SnapshotError {
    fn from(error: prost::DecodeError) -> SnapshotError {
        SnapshotError::Part(error.into())
    }
}

impl Image {
    /// The whole image.
    pub fn encode_snapshot(&self) -> Vec<u8> {
        let token = |(hash, token): (&[u8; 32], &Token)| stored::JoinToken {
            secret_hash: hash.to_vec(),
            expires_at: token.expires_at.0,
            redeemer: token.redeemed.map_or_else(Vec::new, |(redeemer, _)| redeemer.to_vec()),
            broker_id: token.redeemed.map_or(0, |(_, broker)| broker.0),
        };
        let snapshot = stored::Snapshot {
            version: VERSION,
            cluster_id: self.cluster_id.as_deref().unwrap_or_default().to_owned(),
            brokers: self.brokers.values().map(Broker::to_stored).collect(),
            topics: self.topics.values().map(|topic| topic.to_stored()).collect(),
            deleted_topics: self.deleted.values().map(DeletedTopic::to_stored).collect(),
            removed_brokers: self.removed_brokers.iter().map(|id| id.0).collect(),
            next_broker_id: self.next_broker.0,
            next_producer_id: self.next_producer_id,
            acls: self.acls.iter().map(Acl::to_stored).collect(),
            tokens: self.tokens.iter().map(token).collect(),
            authority: self.authority.as_deref().unwrap_or_default().to_vec(),
            revoked_certificates: self.revoked.iter().map(|serial| serial.to_vec()).collect(),
        };
        snapshot.encode_to_vec()
    }

    /// Reads what [`Image::encode_snapshot`] wrote.
    ///
    /// # Errors
    /// If the bytes are no image, or one of a newer version.
    pub fn decode_snapshot(bytes: &[u8]) -> Result<Image, SnapshotError> {
        if bytes.len() > limits::METADATA_SNAPSHOT_BYTES_MAX {
            return Err(SnapshotError::TooLong(bytes.len()));
        }
        let snapshot = stored::Snapshot::decode(bytes)?;
        if snapshot.version != VERSION {
            return Err(SnapshotError::Version(snapshot.version));
        }
        let mut image = Image {
            cluster_id: Some(snapshot.cluster_id).filter(|id| !id.is_empty()).map(Into::into),
            removed_brokers: snapshot.removed_brokers.into_iter().map(BrokerId).collect(),
            next_broker: BrokerId(snapshot.next_broker_id),
            next_producer_id: snapshot.next_producer_id,
            authority: Some(snapshot.authority).filter(|sealed| !sealed.is_empty()).map(Into::into),
            revoked: snapshot.revoked_certificates.into_iter().map(Into::into).collect(),
            ..Image::default()
        };
        for broker in snapshot.brokers {
            let broker = Broker::from_stored(broker)?;
            if image.brokers.insert(broker.id, broker).is_some() {
                return Err(SnapshotError::Contradiction("brokers"));
            }
        }
        for topic in snapshot.topics {
            image.insert_topic(Topic::from_stored(topic)?)?;
        }
        for topic in snapshot.deleted_topics {
            let topic = DeletedTopic::from_stored(topic)?;
            image.deleted.insert(topic.id, topic);
        }
        for acl in snapshot.acls {
            image.acls.insert(Acl::from_stored(Some(acl))?);
        }
        for token in snapshot.tokens {
            let hash = fixed(&token.secret_hash, "secret hash")?;
            image.tokens.insert(hash, Token::from_stored(&token)?);
        }
        Ok(image)
    }

    fn insert_topic(&mut self, topic: Topic) -> Result<(), SnapshotError> {
        let (id, name) = (topic.id, topic.name.clone());
        let is_new = self.names.insert(name, id).is_none();
        if self.topics.insert(id, Arc::new(topic)).is_some() || !is_new {
            return Err(SnapshotError::Contradiction("topics"));
        }
        Ok(())
    }
}

impl Topic {
    pub(in crate::controller) fn to_stored(&self) -> stored::TopicImage {
        let held = |(broker, held): (&BrokerId, &Held)| stored::Held {
            broker_id: broker.0,
            partitions: held.partitions,
            missing: held.missing.iter().map(|index| index.0).collect(),
        };
        stored::TopicImage {
            topic_id: self.id.0.to_vec(),
            name: self.name.to_string(),
            replicas: self.replicas,
            partitions: self.partitions.iter().map(|partition| partition.to_stored()).collect(),
            config: self.overrides.clone(),
            created_at: self.created_at.0,
            held: self.held.iter().map(held).collect(),
        }
    }

    pub(in crate::controller) fn from_stored(stored: stored::TopicImage) -> Result<Topic, SnapshotError> {
        let partitions: Vec<_> = stored
            .partitions
            .into_iter()
            .map(|partition| Arc::new(Partition::from_stored(partition)))
            .collect();
        let is_numbered = |(at, partition): (usize, &Arc<Partition>)| partition.index.0 as usize == at;
        if !partitions.iter().enumerate().all(is_numbered) {
            return Err(SnapshotError::Contradiction("partitions"));
        }
        let config: BTreeMap<String, String> = stored.config;
        let held = |held: stored::Held| {
            let missing = held.missing.into_iter().map(PartitionIndex).collect();
            (BrokerId(held.broker_id), Held { partitions: held.partitions, missing })
        };
        Ok(Topic {
            id: topic_id(&stored.topic_id)?,
            name: stored.name.into(),
            replicas: stored.replicas,
            partitions,
            config: Arc::new(TopicConfig::with_overrides(&config)?),
            overrides: config,
            created_at: Timestamp(stored.created_at),
            held: stored.held.into_iter().map(held).collect(),
        })
    }
}

impl DeletedTopic {
    fn to_stored(&self) -> stored::DeletedTopic {
        stored::DeletedTopic {
            topic_id: self.id.0.to_vec(),
            name: self.name.to_string(),
            deleted_at: self.deleted_at.0,
            partitions: self.partitions,
            unconfirmed: self.unconfirmed.iter().map(|id| id.0).collect(),
        }
    }

    fn from_stored(stored: stored::DeletedTopic) -> Result<DeletedTopic, SnapshotError> {
        let id: TopicId = topic_id(&stored.topic_id)?;
        Ok(DeletedTopic {
            id,
            name: stored.name.into(),
            deleted_at: Timestamp(stored.deleted_at),
            partitions: stored.partitions,
            unconfirmed: stored.unconfirmed.into_iter().map(BrokerId).collect(),
        })
    }
}

impl Token {
    fn from_stored(stored: &stored::JoinToken) -> Result<Token, SnapshotError> {
        let redeemed = if stored.redeemer.is_empty() {
            None
        } else {
            Some((fixed(&stored.redeemer, "redeemer")?, BrokerId(stored.broker_id)))
        };
        Ok(Token { expires_at: Timestamp(stored.expires_at), redeemed })
    }
}
