//! The client of the Quire event log: produces records, consumes them from any offset or time, and manages topics.
//!
//! Connections are QUIC with TLS 1.3, authenticated on both sides. Where a cluster is, whom to trust there and who the
//! client is stand in a [`Profile`]; `quire dev` writes one.
//!
//! # Produce
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use quire_client::{Client, Record};
//!
//! let client = Client::connect("quire://127.0.0.1:9440").await?;
//! let producer = client.producer().build();
//! let record = Record { key: Some("N14228".into()), value: Some("departed".into()), ..Record::default() };
//! let sent = producer.send("flights", record).await?;
//! println!("partition {} offset {}, on {} disks", sent.partition, sent.offset, sent.replicas_on_disk);
//! # Ok(())
//! # }
//! ```
//! [`Producer::send`] waits for the acknowledgement: by default, that the record is on disk. [`Producer::enqueue`]
//! waits only for room in the producer's memory, which is how to send many:
//! ```no_run
//! # async fn run(producer: quire_client::Producer) -> Result<(), Box<dyn std::error::Error>> {
//! # use quire_client::Record;
//! for number in 0..1_000_000 {
//!     let record = Record { value: Some(format!("event {number}").into()), ..Record::default() };
//!     let _delivery = producer.enqueue("flights", record).await?;
//! }
//! // Tells the first failure, if there was any.
//! producer.flush().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Consume
//! A [`Consumer`] is a [`Stream`](futures_core::Stream) of records:
//! ```no_run
//! # async fn run(client: quire_client::Client) -> Result<(), Box<dyn std::error::Error>> {
//! use quire_client::{Position, Timestamp};
//!
//! let mut consumer = client
//!     .consumer()
//!     .topic("flights")
//!     .from(Position::Timestamp(Timestamp(1_371_081_600_000)))
//!     .until(Position::Timestamp(Timestamp(1_371_168_000_000)))
//!     .merge_by_time(true)
//!     .build()
//!     .await?;
//! while let Some(record) = consumer.next().await {
//!     let record = record?;
//!     println!("{}:{} {:?}", record.partition, record.offset, record.value);
//! }
//! # Ok(())
//! # }
//! ```
//! Every frame is verified before a record of it is handed out: its checksums, that it is the next one of its
//! partition, and the chain that links it to the frame before.
//!
//! # Consume in a group
//! A [`GroupConsumer`] reads what its group assigns to it, and the group remembers how far it is. Every record is delivered
//! at least once; where it can come twice is said [there](GroupConsumer#delivery).
//! ```no_run
//! # async fn run(client: quire_client::Client) -> Result<(), Box<dyn std::error::Error>> {
//! let mut consumer = client.consumer().group("billing").topics(["flights"]).build()?;
//! loop {
//!     let record = consumer.next().await?;
//!     println!("{}:{} {:?}", record.partition, record.offset, record.value);
//!     // Asking for the next one says that this one is processed.
//! }
//! # }
//! ```
//!
//! # Replay
//! A [`Replay`] is a stream as well, of records that come when they are due: as recorded, faster or slower.
//! ```no_run
//! # async fn run(client: quire_client::Client) -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//!
//! use quire_client::{Position, Speed, Timestamp};
//!
//! let mut replay = client
//!     .replay()
//!     .topic("flights")
//!     .from(Position::Timestamp(Timestamp(1_371_081_600_000)))
//!     .until(Position::Timestamp(Timestamp(1_371_168_000_000)))
//!     .speed(Speed::Times(3600.0)) // a day in 24 s
//!     .max_gap(Duration::from_secs(2))
//!     .build()
//!     .await?;
//! let control = replay.control(); // pauses, resumes, steps, from any task
//! while let Some(record) = replay.next().await {
//!     println!("{:?} {:?}", control.position().timestamp, record?.value);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Errors
//! Every error says whether a retry can help ([`Error::is_retriable`]) and what to do ([`Error::advice`]). The client
//! itself retries what can be retried: a producer until its delivery timeout, a consumer until its retry timeout. What a
//! producer's records wait for meanwhile is what [`Producer::obstacles`] tells; who connects or builds a consumer and has to wait
//! finds the reason in the log (`tracing`, a warning after two seconds).
//!
//! # Metadata
//! Topics are created and changed with [`Client::admin`].
#![forbid(unsafe_code)]

mod admin;
mod answers;
mod config;
mod connection;
mod consumer;
mod error;
mod group;
mod leadership;
mod metadata;
mod offsets;
mod patience;
mod position;
mod producer;
mod profile;
mod replay;
mod retry;
mod sockets;
mod streams;
mod transport;

pub use admin::{
    Acl, AclOperation, Admin, Broker, BrokerState, BrokerStatus, ClusterDescription, ClusterStatus,
    GroupDescription, GroupMember, GroupOffset, GroupProgress, GroupState, GroupSummary, Groups,
    MemberPartition, NewTopic, PartitionDescription, PartitionMove, PartitionOffset, ProgressLog, ReplicaLog,
    SuspectReplica, TopicAlteration, TopicDescription, TopicSummary,
};
pub use config::{Address, Cipher, ClientConfig, DEFAULT_PORT};
pub use consumer::{ConsumeError, ConsumedRecord, Consumer, ConsumerBuilder, PartitionChain, PartitionLag};
pub use error::Error;
pub use group::{Assignor, GroupConsumer, GroupConsumerBuilder, GroupLag, GroupPartition};
pub use position::{InvalidPosition, Position};
#[doc(hidden)]
pub use producer::simulated as simulation;
pub use producer::{
    Delivery, Obstacle, PartitionFunction, Partitioner, Producer, ProducerBuilder, RecordMetadata, SendError,
};
pub use profile::{PROFILE_VARIABLE, Profile, ProfileError};
pub use replay::{
    Extent, InvalidSpeed, Rehearsal, Replay, ReplayBuilder, ReplayControl, ReplayPosition, Speed,
};
pub use retry::Backoff;
#[doc(hidden)]
pub use sockets::Sockets;

pub use quire_protocol::batch::{Compression, Header, Record};
pub use quire_protocol::frame::Chain;
pub use quire_protocol::stream::Acks;
pub use quire_protocol::{
    BrokerId, ErrorCode, LeaderEpoch, Offset, PartitionIndex, Timestamp, TopicId, TopicPartition,
};

use std::sync::Arc;

use connection::Brokers;
use metadata::Metadata;
use patience::Hindrance;
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
    /// Connects to `quire://HOST:PORT`, or to the first of `quire://HOST:PORT,HOST:PORT` that answers, with the certificates of the default profile.
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
        let transport = Transport::new(&profile, &config)?;
        let brokers = Arc::new(Brokers::new(profile.parsed_addresses()?, transport, config));
        let addresses: Vec<_> = profile.parsed_addresses()?.iter().map(ToString::to_string).collect();
        let what = format!("waiting for a broker at {}", addresses.join(", "));
        let connection = patience::with_warnings(&what, &Hindrance::default(), brokers.any()).await?;
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

    /// A replay's settings, to be built.
    pub fn replay(&self) -> ReplayBuilder {
        ReplayBuilder::new(self.clone())
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

    /// One that has never connected, for tests of what is done beside the connections.
    #[cfg(test)]
    pub(crate) fn of_nobody() -> Client {
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = rcgen::CertificateParams::default().self_signed(&key).expect("self-signed").pem();
        let profile = Profile::new("quire://localhost").authority_pem(certificate);
        let config = ClientConfig::default();
        let transport = Transport::new(&profile, &config).expect("a usable profile");
        let addresses = profile.parsed_addresses().expect("an address");
        let brokers = Arc::new(Brokers::new(addresses, transport, config));
        let metadata = Metadata::new(Arc::clone(&brokers));
        let shared = Shared { brokers, metadata, cluster_id: String::new(), principal: String::new() };
        Client { shared: Arc::new(shared) }
    }

    pub(crate) fn brokers(&self) -> &Brokers {
        &self.shared.brokers
    }

    pub(crate) fn metadata(&self) -> &Metadata {
        &self.shared.metadata
    }
}
