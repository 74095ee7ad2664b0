//! Why the controller refuses, in a sentence for users and a code for programs.

use std::sync::Arc;

use quire_protocol::topic_config::TopicConfigError;
use quire_protocol::{BrokerId, ErrorCode, LeaderEpoch, PartitionIndex, TopicId, TopicPartition};

/// Why a request is refused; nothing changed. The sentences are for users.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The name is taken.
    #[error("topic \"{name}\" exists already")]
    TopicExists {
        /// The name.
        name: String,
    },
    /// No topic of this name.
    #[error("no topic \"{name}\"{}", nearest.as_ref().map(|n| format!("; did you mean \"{n}\"?")).unwrap_or_default())]
    UnknownTopic {
        /// The name asked for.
        name: String,
        /// An existing name close to it.
        nearest: Option<Arc<str>>,
    },
    /// A name that no topic can have.
    #[error("\"{name}\" is not a topic name: {why}")]
    InvalidTopicName {
        /// The name.
        name: String,
        /// Which rule it breaks.
        why: String,
    },
    /// A partition count out of range.
    #[error("{given} partitions: expected {min} to {max}{}", if *min > 1 { ", since a partition count can not shrink" } else { "" })]
    PartitionCount {
        /// The count asked for.
        given: u32,
        /// The least possible.
        min: u32,
        /// The most possible.
        max: u32,
    },
    /// More partitions than a broker takes.
    #[error("a broker would hold {given} partitions, at most {max} are allowed")]
    BrokerPartitions {
        /// What the fullest broker would hold.
        given: u32,
        /// The limit.
        max: u32,
    },
    /// A replica count that the brokers do not allow.
    #[error("{given} replicas: expected 1 to {brokers}, the number of brokers")]
    ReplicaCount {
        /// The count asked for.
        given: u32,
        /// How many brokers there are.
        brokers: usize,
    },
    /// A topic that could never be produced to.
    #[error("min.insync.replicas = \"{given}\": expected at most {replicas}, the topic's replica count")]
    MinInsyncReplicas {
        /// The value asked for.
        given: u32,
        /// The topic's replica count.
        replicas: u32,
    },
    /// More settings than there are.
    #[error("{given} settings: expected at most {max}")]
    TooManySettings {
        /// How many were given.
        given: usize,
        /// The limit.
        max: usize,
    },
    /// A setting that does not exist, or a value out of range.
    #[error(transparent)]
    Config(#[from] TopicConfigError),
    /// A broker of another cluster.
    #[error("this is cluster {have}, the broker belongs to cluster {given}")]
    OtherCluster {
        /// The cluster's id.
        have: String,
        /// The broker's.
        given: String,
    },
    /// A broker id that was given up.
    #[error(
        "broker {broker} was removed from the cluster, and its number is not given again; to bring its machine back, join \
         with a new data directory and a new token ('quire cluster token')"
    )]
    BrokerRemoved {
        /// The broker.
        broker: BrokerId,
    },
    /// A registration that can not be told from others.
    #[error("broker {broker} registers without an incarnation")]
    NoIncarnation {
        /// The broker.
        broker: BrokerId,
    },
    /// No broker of this id.
    #[error("no broker {broker} in this cluster")]
    UnknownBroker {
        /// The id.
        broker: BrokerId,
    },
    /// A request of an earlier registration.
    #[error("broker {broker} is registered with epoch {have}, not with {given}: it has started again since")]
    StaleBrokerEpoch {
        /// The broker.
        broker: BrokerId,
        /// The epoch it has.
        have: u64,
        /// The epoch it gave.
        given: u64,
    },
    /// A broker that others would miss.
    #[error(
        "broker {broker} still holds {replicas} replicas; move them first: quire cluster rebalance --without {broker}"
    )]
    BrokerInUse {
        /// The broker.
        broker: BrokerId,
        /// How many it holds.
        replicas: u32,
    },
    /// No topic of this id.
    #[error("no topic has the id {0}")]
    UnknownTopicId(TopicId),
    /// No such partition.
    #[error("topic \"{topic}\" has partitions 0 to {last}, not {given}")]
    UnknownPartition {
        /// The topic.
        topic: Arc<str>,
        /// Its last partition.
        last: u32,
        /// The one asked for.
        given: PartitionIndex,
    },
    /// A proposal of a broker that does not lead.
    #[error("broker {given} does not lead partition {partition}{}", leader.map(|id| format!(", broker {id} does")).unwrap_or_default())]
    NotLeader {
        /// The partition.
        partition: TopicPartition,
        /// Who proposed.
        given: BrokerId,
        /// Who leads.
        leader: Option<BrokerId>,
    },
    /// A proposal of another leadership.
    #[error("partition {partition} is in leader epoch {have}, not in {given}")]
    LeaderEpoch {
        /// The partition.
        partition: TopicPartition,
        /// The epoch it is in.
        have: LeaderEpoch,
        /// The epoch given.
        given: LeaderEpoch,
    },
    /// A proposal made on what does not hold any more.
    #[error("partition {partition} is in partition epoch {have}, not in {given}: it changed meanwhile")]
    PartitionEpoch {
        /// The partition.
        partition: TopicPartition,
        /// The epoch it is in.
        have: u32,
        /// The epoch given.
        given: u32,
    },
    /// A broker that can not be in sync.
    #[error("broker {broker} can not be in sync with partition {partition}: {why}")]
    Ineligible {
        /// The partition.
        partition: TopicPartition,
        /// The broker.
        broker: BrokerId,
        /// Why not.
        why: &'static str,
    },
    /// An unclean election of a partition that has a leader.
    #[error("partition {partition} is led by broker {leader}: nothing is to be elected")]
    HasLeader {
        /// The partition.
        partition: TopicPartition,
        /// Its leader.
        leader: BrokerId,
    },
    /// A change that would leave a partition without a leader.
    #[error("partition {partition} would have no leader: none of its replicas is there")]
    NobodyToLead {
        /// The partition.
        partition: TopicPartition,
    },
    /// A replica named twice.
    #[error("broker {broker} is named twice; a broker holds one replica of a partition")]
    ReplicaTwice {
        /// The broker.
        broker: BrokerId,
    },
    /// No id is left.
    #[error("all producer ids were given")]
    ProducerIdsExhausted,
    /// A right that makes no sense.
    #[error("{why}")]
    InvalidAcl {
        /// What is wrong.
        why: &'static str,
    },
    /// A right that nobody has.
    #[error("no such right was given; see: quire acl list")]
    UnknownAcl,
    /// More than the metadata keeps.
    #[error("the cluster keeps at most {max} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// A token that would be usable never or too long.
    #[error("a token can be used for at most 30 days, and for some time")]
    TokenAge,
    /// A token that does not exist, was used, or has expired.
    #[error("the token is unknown, was used already, or has expired; make another one: quire cluster token")]
    InvalidToken,
    /// An authority that can not be kept.
    #[error("an authority of {given} bytes can not be kept")]
    AuthorityLength {
        /// How many.
        given: usize,
    },
    /// What is no certificate's serial number.
    #[error("a certificate's serial number has 1 to 20 bytes")]
    InvalidSerial,
    /// Another broker's controller refused, and said why.
    #[error("{sentence}")]
    Elsewhere {
        /// What kind of refusal it is.
        code: ErrorCode,
        /// Its sentence.
        sentence: String,
    },
}

impl Refusal {
    /// The code that users see, and that tells programs what to do.
    pub fn code(&self) -> ErrorCode {
        match self {
            Refusal::TopicExists { .. } => ErrorCode::TopicAlreadyExists,
            Refusal::UnknownTopic { .. } | Refusal::UnknownTopicId(_) => ErrorCode::UnknownTopic,
            Refusal::UnknownPartition { .. } => ErrorCode::UnknownPartition,
            Refusal::InvalidTopicName { .. } => ErrorCode::InvalidTopicName,
            Refusal::PartitionCount { .. } => ErrorCode::InvalidPartitionCount,
            Refusal::BrokerPartitions { .. } | Refusal::TooMany { .. } | Refusal::ProducerIdsExhausted => {
                ErrorCode::LimitExceeded
            }
            Refusal::ReplicaCount { .. } | Refusal::ReplicaTwice { .. } => ErrorCode::InvalidReplicaCount,
            Refusal::MinInsyncReplicas { .. } | Refusal::TooManySettings { .. } | Refusal::Config(_) => {
                ErrorCode::InvalidConfig
            }
            Refusal::UnknownBroker { .. } => ErrorCode::UnknownBroker,
            Refusal::StaleBrokerEpoch { .. } => ErrorCode::FencedBrokerEpoch,
            Refusal::NotLeader { .. } => ErrorCode::NotLeader,
            Refusal::LeaderEpoch { .. } => ErrorCode::FencedLeaderEpoch,
            Refusal::PartitionEpoch { .. } => ErrorCode::PartitionChanged,
            Refusal::Ineligible { .. } => ErrorCode::IneligibleReplica,
            Refusal::NobodyToLead { .. } => ErrorCode::NotEnoughReplicas,
            Refusal::InvalidToken | Refusal::BrokerRemoved { .. } => ErrorCode::NotAuthorized,
            Refusal::BrokerInUse { .. } | Refusal::HasLeader { .. } => ErrorCode::NotPossible,
            Refusal::OtherCluster { .. }
            | Refusal::NoIncarnation { .. }
            | Refusal::InvalidAcl { .. }
            | Refusal::UnknownAcl
            | Refusal::TokenAge
            | Refusal::AuthorityLength { .. }
            | Refusal::InvalidSerial => ErrorCode::InvalidRequest,
            Refusal::Elsewhere { code, .. } => *code,
        }
    }
}
