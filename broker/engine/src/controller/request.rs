//! What the controller can be asked, and what it answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quire_protocol::{BrokerId, LeaderEpoch, PartitionIndex, Timestamp, TopicId, TopicPartition};

use super::image::{Acl, Partition, Topic};

/// What the controller can be asked.
///
/// What a broker asks for itself names the epoch it is registered with, and is refused once that is not its epoch any
/// more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A broker started.
    RegisterBroker(RegisterBroker),
    /// A broker is not heard of any more, or says goodbye: it leaves every leadership and every set of in-sync replicas.
    FenceBroker {
        /// The broker.
        broker: BrokerId,
        /// Its broker epoch.
        epoch: u64,
    },
    /// A broker is heard of and knows the metadata; or one that drained is not to any more.
    UnfenceBroker {
        /// The broker.
        broker: BrokerId,
        /// Its broker epoch.
        epoch: u64,
    },
    /// A broker is about to stop: whatever it leads and another in-sync replica can lead is led by that one from here on.
    /// To be asked again while leaderships remain.
    DrainBroker {
        /// The broker.
        broker: BrokerId,
        /// Its broker epoch.
        epoch: u64,
    },
    /// A broker that holds nothing leaves the cluster for good.
    RemoveBroker {
        /// The broker.
        broker: BrokerId,
    },
    /// A leader's in-sync replicas changed.
    ChangeInSync(ChangeInSync),
    /// A replica can not be trusted: a sync of it failed, or it is damaged.
    ReportSuspect {
        /// The broker that holds it.
        broker: BrokerId,
        /// Its broker epoch.
        epoch: u64,
        /// The partition.
        partition: TopicPartition,
    },
    /// A broker wants producer ids to hand out.
    AllocateProducerIds {
        /// The broker.
        broker: BrokerId,
        /// Its broker epoch.
        epoch: u64,
    },
    /// A partition is to have other replicas.
    Reassign(Reassign),
    /// Partitions are to be led by their preferred leader where it is in sync.
    ElectPreferred {
        /// Which ones; none is all.
        partitions: Vec<TopicPartition>,
    },
    /// A partition that nobody can lead without loss is to be led all the same: by who is intact, or else by who may lack
    /// something or be damaged.
    ElectUnclean {
        /// The partition.
        partition: TopicPartition,
    },
    /// Make a topic.
    CreateTopic(CreateTopic),
    /// Add partitions to a topic, or change its settings.
    AlterTopic(AlterTopic),
    /// Delete a topic and all its records.
    DeleteTopic {
        /// Its name.
        name: String,
    },
    /// A broker has removed all it held of a deleted topic.
    ConfirmTopicDeletion {
        /// The topic.
        id: TopicId,
        /// The broker.
        broker: BrokerId,
    },
    /// A broker has the logs of a topic's first partitions on disk.
    HoldTopic {
        /// The topic.
        id: TopicId,
        /// The broker.
        broker: BrokerId,
        /// Of the partitions below this number, those that the broker replicates,
        partitions: u32,
        /// but for these, which can not be opened for now.
        missing: BTreeSet<PartitionIndex>,
    },
    /// Give a right.
    AddAcl(Acl),
    /// Take a right away.
    RemoveAcl(Acl),
    /// Keep a token with which one broker can join.
    IssueToken {
        /// The hash of its secret.
        hash: [u8; 32],
        /// Until when it can be used.
        expires_at: Timestamp,
    },
    /// Use a token. Who asks again, with the same name for itself, is answered the same.
    RedeemToken {
        /// The hash of the secret that was shown.
        hash: [u8; 32],
        /// Names who shows it.
        redeemer: [u8; 32],
    },
    /// Keep the cluster's authority, in place of the one before.
    SetAuthority {
        /// Sealed.
        sealed: Arc<[u8]>,
    },
    /// A certificate is not to be trusted any more.
    RevokeCertificate {
        /// Its serial number.
        serial: Arc<[u8]>,
    },
}

/// A broker's registration, at each of its starts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegisterBroker {
    /// The cluster it belongs to, or founds.
    pub cluster_id: String,
    /// Its number.
    pub broker: BrokerId,
    /// Drawn at this start, and not zeros: who asks again with the same one is answered the same.
    pub incarnation: [u8; 16],
    /// Drawn when its data directory was made: in another one than before, nothing it held can be trusted.
    pub directory: [u8; 16],
    /// Where clients reach it.
    pub host: String,
    /// Where clients reach it.
    pub port: u16,
    /// Where its peers reach it; empty if nothing but clients does.
    pub peer_host: String,
    /// Where its peers reach it.
    pub peer_port: u16,
    /// Its failure domain; empty if it was not told.
    pub rack: String,
    /// Its node in the metadata's consensus group; 0 if it is in none.
    pub node: u64,
    /// Partitions whose log here may lack what was acknowledged.
    pub suspects: Vec<TopicPartition>,
    /// Whether it is its own controller: nobody else could hear of it, so that it is never fenced.
    pub is_alone: bool,
}

/// A leader's in-sync replicas, as they are to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeInSync {
    /// The partition.
    pub partition: TopicPartition,
    /// Its leader, which asks.
    pub leader: BrokerId,
    /// The leadership in which it asks.
    pub leader_epoch: LeaderEpoch,
    /// The partition epoch that it knows: nothing changes if there is another by now.
    pub partition_epoch: u32,
    /// All replicas in sync, the leader among them, each with the broker epoch under which it followed.
    pub in_sync: Vec<(BrokerId, u64)>,
}

/// Other replicas for a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reassign {
    /// The partition.
    pub partition: TopicPartition,
    /// The replicas it is to have, the preferred leader first; `None` gives up the reassignment under way.
    pub replicas: Option<Vec<BrokerId>>,
}

/// A topic to be made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CreateTopic {
    /// Its name.
    pub name: String,
    /// How many partitions.
    pub partitions: u32,
    /// Replicas of each; `None` is three, or as many as there are brokers.
    pub replicas: Option<u32>,
    /// Settings that differ from the defaults.
    pub config: BTreeMap<String, String>,
    /// Only say what would happen.
    pub validate_only: bool,
}

/// Changes to a topic.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AlterTopic {
    /// Its name.
    pub name: String,
    /// How many partitions it is to have; `None` leaves them.
    pub partitions: Option<u32>,
    /// Settings to set.
    pub set_config: BTreeMap<String, String>,
    /// Settings to return to their default.
    pub unset_config: Vec<String>,
}

/// What the controller answers, once the change is applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// The change is made, or was not needed.
    Done,
    /// The broker is registered.
    BrokerRegistered {
        /// Its broker epoch from now on.
        epoch: u64,
    },
    /// The broker drains.
    Draining {
        /// Leaderships that nobody else can take yet.
        leaderships: u32,
    },
    /// The partition as it is now.
    ///
    /// It may be ahead of the image that a broker has, settings of its topic included: what it says about replicas in
    /// sync holds together with `min.insync.replicas` of an image that has come as far.
    Partition {
        /// Which one.
        id: TopicPartition,
        /// How it is.
        state: Arc<Partition>,
    },
    /// How many leaders changed.
    Elected {
        /// Partitions that are led by their preferred leader now and were not.
        partitions: u32,
    },
    /// Producer ids that nobody else was or will be given.
    ProducerIds {
        /// The first of them.
        first: u64,
        /// How many.
        count: u64,
    },
    /// The token is used.
    TokenRedeemed {
        /// The broker id that is given for it.
        broker: BrokerId,
    },
    /// The topic as it is now, or would be if only checked.
    Topic(Arc<Topic>),
    /// The topic is deleted.
    TopicDeleted {
        /// The id it had.
        id: TopicId,
    },
    /// The confirmation is kept.
    DeletionConfirmed,
    /// It is known who holds the topic, unless it is gone.
    TopicHeld,
}
