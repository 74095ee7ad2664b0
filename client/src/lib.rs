//! The client of the Quire event log.
#![forbid(unsafe_code)]

mod admin;
mod answers;
mod config;
mod connection;
mod consumer;
mod error;
mod metadata;
mod offsets;
mod position;
mod producer;
mod profile;
mod retry;
mod transport;

pub use admin::{
    Admin, Broker, ClusterDescription, NewTopic, PartitionDescription, PartitionOffset, TopicAlteration,
    TopicDescription, TopicSummary,
};
pub use config::{Address, ClientConfig, DEFAULT_PORT};
pub use consumer::{ConsumeError, ConsumedRecord, Consumer, ConsumerBuilder, PartitionLag};
pub use error::Error;
pub use position::{InvalidPosition, Position};
pub use producer::{Delivery, Partitioner, Producer, ProducerBuilder, RecordMetadata, SendError};
pub use profile::{PROFILE_VARIABLE, Profile, ProfileError};
pub use retry::Backoff;

pub use quire_protocol::batch::{Compression, Header, Record};
pub use quire_protocol::frame::Chain;
pub use quire_protocol::stream::Acks;
pub use quire_protocol::{
    BrokerId, ErrorCode, LeaderEpoch, Offset, PartitionIndex, Timestamp, TopicId, TopicPartition,
};

use std::sync::Arc;

use connection::Brokers;
use metadata::Metadata;
use transport::Transport;

/// A client of one cluster. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    brokers: Arc<Brokers>,
    metadata: Metadata,
    cluster_id: String,
    principal: String,
}

impl Client {
    /// Connects to `quire://HOST:PORT` with the certificates of the default profile.
    ///
    /// # Errors
    /// If there is no such profile, nobody answers, or one side refuses the other's certificate.
    pub async fn connect(address: &str) -> Result<Client, Error> {
        Client::connect_with(Profile::load(None)?.at(address)).await
    }

    /// Connects with this profile.
    ///
    /// # Errors
    /// If the profile is incomplete, nobody answers, or one side refuses the other's certificate.
    pub async fn connect_with(profile: Profile) -> Result<Client, Error> {
        Client::connect_configured(profile, ClientConfig::default()).await
    }

    /// Connects with this profile and these settings.
    ///
    /// # Errors
    /// As [`Client::connect_with`].
    pub async fn connect_configured(profile: Profile, config: ClientConfig) -> Result<Client, Error> {
        let transport = Transport::new(&profile)?;
        let brokers = Arc::new(Brokers::new(profile.parsed_address()?, transport, config));
        let connection = brokers.any().await?;
        let shared = Shared {
            metadata: Metadata::new(Arc::clone(&brokers)),
            brokers,
            cluster_id: connection.greeting.cluster_id.clone(),
            principal: connection.greeting.principal.clone(),
        };
        Ok(Client { shared: Arc::new(shared) })
    }

    /// A producer's settings, to be built.
    pub fn producer(&self) -> ProducerBuilder {
        ProducerBuilder::new(self.clone())
    }

    /// A consumer's settings, to be built.
    pub fn consumer(&self) -> ConsumerBuilder {
        ConsumerBuilder::new(self.clone())
    }

    /// Topics and the cluster.
    pub fn admin(&self) -> Admin {
        Admin::new(self.clone())
    }

    /// The cluster's id, as the broker told it at connecting.
    pub fn cluster_id(&self) -> &str {
        &self.shared.cluster_id
    }

    /// The principal the broker authenticated this client as.
    pub fn principal(&self) -> &str {
        &self.shared.principal
    }

    /// Closes every connection, and waits until the brokers were told. What still uses the client fails, or connects
    /// again: close producers and drop consumers first.
    pub async fn close(&self) {
        self.shared.brokers.close().await;
    }

    pub(crate) fn brokers(&self) -> &Brokers {
        &self.shared.brokers
    }

    pub(crate) fn metadata(&self) -> &Metadata {
        &self.shared.metadata
    }
}
