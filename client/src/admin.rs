//! Topics and the cluster: create, look at, change, delete.

mod cluster;
mod groups;
mod logs;

use std::collections::BTreeMap;
use std::time::Duration;

use quire_protocol::rpc::control::{self, request, response};
use quire_protocol::{BrokerId, LeaderEpoch, Offset, PartitionIndex, Timestamp, TopicId};

pub use cluster::{
    Acl, AclOperation, BrokerState, BrokerStatus, ClusterStatus, PartitionMove, SuspectReplica,
};

pub use groups::{
    GroupDescription, GroupMember, GroupOffset, GroupProgress, GroupState, GroupSummary, Groups,
    MemberPartition, ProgressLog,
};

use crate::Client;
use crate::connection::{Connection, broker_error};
use crate::error::Error;
use crate::offsets;
use crate::position::Position;

/// A topic to be created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTopic {
    name: String,
    partitions: u32,
    replicas: Option<u32>,
    config: BTreeMap<String, String>,
    validate_only: bool,
}

impl NewTopic {
    /// A topic of this name with one partition and the broker's default replicas and configuration.
    pub fn new(name: impl Into<String>) -> NewTopic {
        NewTopic {
            name: name.into(),
            partitions: 1,
            replicas: None,
            config: BTreeMap::new(),
            validate_only: false,
        }
    }

    /// How many partitions; it can grow later but not shrink.
    #[must_use]
    pub fn partitions(mut self, partitions: u32) -> NewTopic {
        self.partitions = partitions;
        self
    }

    /// How many replicas each partition has; the broker's default unless set.
    #[must_use]
    pub fn replicas(mut self, replicas: u32) -> NewTopic {
        self.replicas = Some(replicas);
        self
    }

    /// Sets a configuration key, e.g. `retention.ms`.
    #[must_use]
    pub fn config(mut self, key: impl Into<String>, value: impl Into<String>) -> NewTopic {
        self.config.insert(key.into(), value.into());
        self
    }

    /// Only checks whether the topic could be created.
    #[must_use]
    pub fn validate_only(mut self, validate_only: bool) -> NewTopic {
        self.validate_only = validate_only;
        self
    }
}

/// Changes to a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicAlteration {
    name: String,
    partitions: Option<u32>,
    set: BTreeMap<String, String>,
    unset: Vec<String>,
}

impl TopicAlteration {
    /// No change yet to the topic of this name.
    pub fn new(name: impl Into<String>) -> TopicAlteration {
        TopicAlteration { name: name.into(), partitions: None, set: BTreeMap::new(), unset: Vec::new() }
    }

    /// Grows the topic to this many partitions.
    #[must_use]
    pub fn partitions(mut self, partitions: u32) -> TopicAlteration {
        self.partitions = Some(partitions);
        self
    }

    /// Sets a configuration key.
    #[must_use]
    pub fn set(mut self, key: impl Into<String>, value: impl Into<String>) -> TopicAlteration {
        self.set.insert(key.into(), value.into());
        self
    }

    /// Returns a configuration key to its default.
    #[must_use]
    pub fn unset(mut self, key: impl Into<String>) -> TopicAlteration {
        self.unset.push(key.into());
        self
    }
}

/// A topic in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSummary {
    /// Its name.
    pub name: String,
    /// Its id; a topic created again under the same name has another.
    pub id: TopicId,
    /// How many partitions.
    pub partitions: u32,
    /// How many replicas each has.
    pub replicas: u32,
}

/// A topic with its configuration and the state of its partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicDescription {
    /// Its name.
    pub name: String,
    /// Its id; a topic created again under the same name has another.
    pub id: TopicId,
    /// How many replicas each partition has.
    pub replicas: u32,
    /// Its partitions, in the order of their numbers.
    pub partitions: Vec<PartitionDescription>,
    /// The configuration keys that were set.
    pub overrides: BTreeMap<String, String>,
    /// Every configuration key with its effective value.
    pub config: BTreeMap<String, String>,
}

/// A partition's leadership and the state of its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionDescription {
    /// Its number.
    pub partition: PartitionIndex,
    /// The broker that leads it, if one does.
    pub leader: Option<BrokerId>,
    /// Which of its leaderships this is.
    pub leader_epoch: LeaderEpoch,
    /// The brokers that hold it.
    pub replicas: Vec<BrokerId>,
    /// Those that are in sync.
    pub in_sync_replicas: Vec<BrokerId>,
    /// Those that may lead although they are not in sync.
    pub eligible_leader_replicas: Vec<BrokerId>,
    /// Counts every change of its leader and replicas.
    pub partition_epoch: u32,
    /// Those that a reassignment adds.
    pub adding_replicas: Vec<BrokerId>,
    /// Those that a reassignment removes once the others are in sync.
    pub removing_replicas: Vec<BrokerId>,
    /// Whether its leader was elected without every acknowledged record, and nobody has followed it yet.
    pub is_recovering: bool,
    /// The oldest offset still there.
    pub log_start: Offset,
    /// The first offset not yet committed.
    pub high_watermark: Offset,
    /// The next offset to be written.
    pub log_end: Offset,
    /// What it takes on the leader's disk (bytes).
    pub size_bytes: u64,
    /// Why the partition does not serve everything, if it does not.
    pub error: Option<Error>,
    /// How each replica's log stands, the leader's included, as far as their brokers answered.
    pub logs: Vec<ReplicaLog>,
}

/// How one replica's log stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaLog {
    /// The broker that holds it.
    pub broker: BrokerId,
    /// The oldest offset still there.
    pub log_start: Offset,
    /// The first offset that it does not know to be committed.
    pub high_watermark: Offset,
    /// The next offset to be written.
    pub log_end: Offset,
    /// What it takes on the disk (bytes).
    pub size_bytes: u64,
    /// Why it does not serve everything, if it does not.
    pub error: Option<Error>,
}

impl PartitionDescription {
    /// How many records a replica's log ends before its leader's; `None` if either did not answer.
    pub fn behind(&self, replica: BrokerId) -> Option<u64> {
        let end = |broker| self.logs.iter().find(|log| log.broker == broker).map(|log| log.log_end);
        Some(end(self.leader?)?.0.saturating_sub(end(replica)?.0))
    }
}

/// Where a position lies in one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionOffset {
    /// The partition.
    pub partition: PartitionIndex,
    /// The offset of the position.
    pub offset: Offset,
    /// The timestamp of the record there, where a time was looked for and found.
    pub timestamp: Option<Timestamp>,
    /// The oldest offset still there.
    pub log_start: Offset,
    /// The first offset not yet committed.
    pub high_watermark: Offset,
}

/// A broker of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// Its number.
    pub id: BrokerId,
    /// The host that clients reach it at.
    pub host: String,
    /// The UDP port that clients reach it at.
    pub port: u16,
    /// The rack it stands in, if one is configured.
    pub rack: Option<String>,
}

/// The cluster's id and brokers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterDescription {
    /// Its id.
    pub cluster_id: String,
    /// The broker that decides about it; `None` while there is none, or the one that answered does not know it.
    pub controller: Option<BrokerId>,
    /// Its brokers.
    pub brokers: Vec<Broker>,
}

/// Manages topics. Made by [`Client::admin`].
#[derive(Debug, Clone)]
pub struct Admin {
    client: Client,
}

impl Admin {
    pub(crate) fn new(client: Client) -> Admin {
        Admin { client }
    }

    /// Creates a topic. A topic that was only validated is answered with the id it would have had.
    ///
    /// # Errors
    /// If the name is taken or not allowed, a number or a configuration key is out of range, or as every request.
    pub async fn create_topic(&self, topic: NewTopic) -> Result<TopicDescription, Error> {
        let name = topic.name.clone();
        let body = request::Body::CreateTopic(control::CreateTopicRequest {
            name: topic.name,
            partitions: topic.partitions,
            replicas: topic.replicas.unwrap_or(0),
            config: topic.config.into_iter().collect(),
            validate_only: topic.validate_only,
        });
        let connection = self.client.brokers().any().await?;
        match connection.rpc("create topic", body).await? {
            response::Body::CreateTopic(answer) => {
                self.client.metadata().forget(&name);
                describe(&connection, answer.topic)
            }
            _ => Err(other_answer(&connection, "create topic")),
        }
    }

    /// Every topic, in the order of their names.
    ///
    /// # Errors
    /// As every request: the broker is not reachable, or refuses.
    pub async fn list_topics(&self) -> Result<Vec<TopicSummary>, Error> {
        let connection = self.client.brokers().any().await?;
        let body = request::Body::ListTopics(control::ListTopicsRequest {});
        let response::Body::ListTopics(answer) = connection.rpc("list topics", body).await? else {
            return Err(other_answer(&connection, "list topics"));
        };
        let mut topics = answer
            .topics
            .into_iter()
            .map(|topic| {
                Ok(TopicSummary {
                    id: topic_id(&connection, &topic.id)?,
                    name: topic.name,
                    partitions: topic.partitions,
                    replicas: topic.replicas,
                })
            })
            .collect::<Result<Vec<_>, Error>>()?;
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(topics)
    }

    /// A topic with its configuration and the state of its partitions: of each log what its broker says. A broker that
    /// does not answer within two seconds is left out; where it leads, the partition's error says so.
    ///
    /// # Errors
    /// If there is no such topic, with the nearest name there is, or as every request.
    pub async fn describe_topic(&self, name: &str) -> Result<TopicDescription, Error> {
        let (topic, connection) = self.client.metadata().describe(name).await?;
        let mut description = describe(&connection, Some(topic))?;
        logs::look(self.client.metadata(), &mut description).await;
        Ok(description)
    }

    /// A topic with its configuration and its partitions, without the state of their logs: one request, whatever its size.
    ///
    /// # Errors
    /// As [`Admin::describe_topic`].
    pub async fn describe_topic_metadata(&self, name: &str) -> Result<TopicDescription, Error> {
        let (topic, connection) = self.client.metadata().describe(name).await?;
        describe(&connection, Some(topic))
    }

    /// Makes a token with which one broker can join the cluster in the time given. Only administrators may.
    ///
    /// # Errors
    /// If the broker is in no cluster, the client is no administrator, or as every request.
    pub async fn create_join_token(&self, age: Duration) -> Result<String, Error> {
        let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let body = request::Body::CreateJoinToken(control::CreateJoinTokenRequest { age_ms });
        let connection = self.client.brokers().any().await?;
        match connection.rpc("create join token", body).await? {
            response::Body::CreateJoinToken(answer) => Ok(answer.token),
            _ => Err(other_answer(&connection, "create join token")),
        }
    }

    /// Changes a topic, and returns it as it is then.
    ///
    /// # Errors
    /// If there is no such topic, a number or a configuration key is out of range, or as every request.
    pub async fn alter_topic(&self, alteration: TopicAlteration) -> Result<TopicDescription, Error> {
        let name = alteration.name.clone();
        let body = request::Body::AlterTopic(control::AlterTopicRequest {
            name: alteration.name,
            partitions: alteration.partitions.unwrap_or(0),
            set_config: alteration.set.into_iter().collect(),
            unset_config: alteration.unset,
        });
        let connection = self.client.brokers().any().await?;
        match connection.rpc("alter topic", body).await? {
            response::Body::AlterTopic(answer) => {
                self.client.metadata().forget(&name);
                describe(&connection, answer.topic)
            }
            _ => Err(other_answer(&connection, "alter topic")),
        }
    }

    /// Deletes a topic with all its records.
    ///
    /// # Errors
    /// If there is no such topic, or as every request.
    pub async fn delete_topic(&self, name: &str) -> Result<(), Error> {
        let connection = self.client.brokers().any().await?;
        let body = request::Body::DeleteTopic(control::DeleteTopicRequest { name: name.to_owned() });
        match connection.rpc("delete topic", body).await? {
            response::Body::DeleteTopic(_) => {
                self.client.metadata().forget(name);
                Ok(())
            }
            _ => Err(other_answer(&connection, "delete topic")),
        }
    }

    /// Finds where positions lie, one result for each, in the order asked.
    ///
    /// # Errors
    /// If the topic or a partition does not exist, an offset is out of range, or as every request.
    pub async fn list_offsets(
        &self,
        topic: &str,
        positions: impl IntoIterator<Item = (PartitionIndex, Position)>,
    ) -> Result<Vec<PartitionOffset>, Error> {
        let positions: Vec<_> = positions.into_iter().collect();
        let (topic, answers) = offsets::list_of(&self.client, topic, &positions).await?;
        answers.into_iter().map(|answer| answer.map_err(|refused| refused.into_error(&topic))).collect()
    }

    /// The cluster's id and brokers.
    ///
    /// # Errors
    /// As every request: the broker is not reachable, or refuses.
    pub async fn describe_cluster(&self) -> Result<ClusterDescription, Error> {
        let cluster = self.client.metadata().describe_cluster().await?;
        let brokers: Vec<_> = cluster.brokers.into_iter().map(describe_broker).collect();
        // What is no broker's number says that there is no controller.
        let controller = brokers.iter().map(|broker| broker.id).find(|id| id.0 == cluster.controller_id);
        Ok(ClusterDescription { cluster_id: cluster.cluster_id, controller, brokers })
    }
}

fn describe(connection: &Connection, topic: Option<control::Topic>) -> Result<TopicDescription, Error> {
    let topic = topic.ok_or_else(|| connection.protocol("its answer lacks the topic"))?;
    Ok(TopicDescription {
        id: topic_id(connection, &topic.id)?,
        name: topic.name,
        replicas: topic.replicas,
        partitions: topic.partitions.into_iter().map(describe_partition).collect(),
        overrides: topic.overrides.into_iter().collect(),
        config: topic.config.into_iter().collect(),
    })
}

fn describe_broker(broker: control::Broker) -> Broker {
    Broker {
        id: BrokerId(broker.id),
        host: broker.host,
        // A port that is none is shown as 0 and not taken for another.
        port: u16::try_from(broker.port).unwrap_or(0),
        rack: (!broker.rack.is_empty()).then_some(broker.rack),
    }
}

fn describe_partition(partition: control::Partition) -> PartitionDescription {
    let brokers = |ids: Vec<u32>| ids.into_iter().map(BrokerId).collect();
    PartitionDescription {
        partition: PartitionIndex(partition.index),
        leader: partition.leader.map(BrokerId),
        leader_epoch: LeaderEpoch(partition.leader_epoch),
        replicas: brokers(partition.replicas),
        in_sync_replicas: brokers(partition.in_sync_replicas),
        eligible_leader_replicas: brokers(partition.eligible_leader_replicas),
        partition_epoch: partition.partition_epoch,
        adding_replicas: brokers(partition.adding_replicas),
        removing_replicas: brokers(partition.removing_replicas),
        is_recovering: partition.is_recovering,
        log_start: Offset(partition.log_start_offset),
        high_watermark: Offset(partition.high_watermark),
        log_end: Offset(partition.log_end_offset),
        size_bytes: partition.size_bytes,
        error: partition.error.filter(|error| error.code != 0).map(|error| broker_error(&error, "")),
        logs: Vec::new(),
    }
}

fn topic_id(connection: &Connection, bytes: &[u8]) -> Result<TopicId, Error> {
    TopicId::from_slice(bytes).ok_or_else(|| connection.protocol("a topic id does not have 16 bytes"))
}

fn other_answer(connection: &Connection, what: &str) -> Error {
    connection.protocol(format!("it answered another request than {what}"))
}
