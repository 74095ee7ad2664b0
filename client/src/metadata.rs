//! What is known of topics: their ids, partitions and leaders. Asked for once, and again when it proves wrong or old.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use quire_protocol::rpc::control::{self, request, response};
use quire_protocol::topic_config::{MessageTimestampType, TopicConfig};
use quire_protocol::{BrokerId, ErrorCode, LeaderEpoch, PartitionIndex, TopicId, TopicPartition, limits};

use crate::connection::{Brokers, Connection, broker_error};
use crate::error::Error;

/// A topic as it was when it was asked for.
#[derive(Debug)]
pub(crate) struct TopicMetadata {
    pub name: Arc<str>,
    pub id: TopicId,
    /// In the order of their numbers, none missing.
    pub leaders: Vec<Leadership>,
    /// How many replicas each partition has.
    replicas: Vec<usize>,
    /// The replicas in sync, of each partition.
    pub in_sync: Vec<Vec<BrokerId>>,
    /// The topic's `max.message.bytes`.
    pub message_bytes_max: usize,
    pub timestamp_type: MessageTimestampType,
    asked_at: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Leadership {
    pub leader: Option<BrokerId>,
    pub epoch: LeaderEpoch,
}

impl TopicMetadata {
    pub(crate) fn partition(&self, partition: PartitionIndex) -> TopicPartition {
        TopicPartition { topic: self.id, partition }
    }

    pub(crate) fn partitions(&self) -> u32 {
        self.leaders.len() as u32
    }

    pub(crate) fn leadership(&self, partition: PartitionIndex) -> Option<Leadership> {
        self.leaders.get(partition.0 as usize).copied()
    }

    /// The replicas in sync, as of when the topic was asked for.
    pub(crate) fn in_sync(&self, partition: PartitionIndex) -> &[BrokerId] {
        self.in_sync.get(partition.0 as usize).map_or(&[], Vec::as_slice)
    }

    /// Whether another broker than the leader may ever lead the partition, its replicas being those known.
    pub(crate) fn has_followers(&self, partition: PartitionIndex) -> bool {
        self.replicas.get(partition.0 as usize).is_some_and(|count| *count > 1)
    }

    /// A broker may answer that has not heard yet what another one told.
    fn keep_later_leaders(&mut self, known: &TopicMetadata) {
        if known.id != self.id {
            return;
        }
        for (place, before) in known.leaders.iter().enumerate() {
            let Some(now) = self.leaders.get_mut(place) else { return };
            if now.epoch < before.epoch {
                *now = *before;
                self.in_sync[place].clone_from(&known.in_sync[place]);
            }
        }
    }

    fn parse(topic: control::Topic) -> Result<TopicMetadata, String> {
        let id = TopicId::from_slice(&topic.id).ok_or("a topic id does not have 16 bytes")?;
        let mut partitions = topic.partitions;
        partitions.sort_by_key(|partition| partition.index);
        if partitions.is_empty() || partitions.len() > limits::TOPIC_PARTITIONS_MAX as usize {
            return Err(format!("a topic has {} partitions", partitions.len()));
        }
        if partitions.iter().zip(0..).any(|(partition, expected)| partition.index != expected) {
            return Err("a topic's partitions are not numbered from 0 on".into());
        }
        let leaders = partitions
            .iter()
            .map(|partition| Leadership {
                leader: partition.leader.map(BrokerId),
                epoch: LeaderEpoch(partition.leader_epoch),
            })
            .collect();
        let replicas = partitions.iter().map(|partition| partition.replicas.len()).collect();
        let ids = |ids: &[u32]| ids.iter().copied().map(BrokerId).collect();
        let in_sync = partitions.iter().map(|partition| ids(&partition.in_sync_replicas)).collect();
        // Keys that this version does not know belong to a newer broker and are none of a client's business.
        let overrides = topic.overrides.into_iter().collect();
        let config = TopicConfig::with_overrides(&overrides).unwrap_or_default();
        Ok(TopicMetadata {
            name: topic.name.into(),
            id,
            leaders,
            replicas,
            in_sync,
            message_bytes_max: config.message_bytes_max,
            timestamp_type: config.timestamp_type,
            asked_at: Instant::now(),
        })
    }
}

/// The racks of the brokers that are heard of and stand in one.
pub(crate) type Racks = HashMap<BrokerId, String>;

/// The cache of topics.
#[derive(Debug)]
pub(crate) struct Metadata {
    brokers: Arc<Brokers>,
    topics: RwLock<HashMap<Arc<str>, Arc<TopicMetadata>>>,
    /// One look-up at a time: whoever waited finds its answer in the cache.
    asking: tokio::sync::Mutex<()>,
    age_max: Duration,
    /// Where the brokers stand that are heard of, and when that was asked.
    racks: RwLock<Option<(Instant, Arc<Racks>)>>,
}

impl Metadata {
    pub(crate) fn new(brokers: Arc<Brokers>) -> Metadata {
        let age_max = brokers.config().metadata_age_max;
        Metadata {
            brokers,
            topics: RwLock::default(),
            asking: tokio::sync::Mutex::default(),
            age_max,
            racks: RwLock::default(),
        }
    }

    /// The topic of this name, from the cache unless that is too old.
    pub(crate) async fn topic(&self, name: &str) -> Result<Arc<TopicMetadata>, Error> {
        match self.cached(name) {
            Some(topic) if topic.asked_at.elapsed() < self.age_max => Ok(topic),
            stale => self.asked_after(name, stale.as_ref().map(|topic| topic.asked_at), None).await,
        }
    }

    /// The topic, asked for again unless somebody did since `known` was answered.
    pub(crate) async fn refresh(&self, known: &TopicMetadata) -> Result<Arc<TopicMetadata>, Error> {
        self.asked_after(&known.name, Some(known.asked_at), None).await
    }

    /// As [`Metadata::refresh`], but asks others than the leader first: one that is cut off from the cluster, and not from
    /// its clients, goes on saying that it leads.
    pub(crate) async fn refresh_from_others(
        &self,
        known: &TopicMetadata,
        led: Option<Leadership>,
    ) -> Result<Arc<TopicMetadata>, Error> {
        if self.brokers.known() < 2 {
            // Whether there are others at all.
            let _ = self.describe_cluster().await;
        }
        let leader = led.and_then(|leadership| leadership.leader);
        self.asked_after(&known.name, Some(known.asked_at), leader).await
    }

    /// A connection to the partition's leader.
    pub(crate) async fn leader(
        &self,
        topic: &TopicMetadata,
        partition: PartitionIndex,
    ) -> Result<Arc<Connection>, Error> {
        let leader = topic.leadership(partition).and_then(|leadership| leadership.leader);
        let no_leader = || Error::NoLeader { topic: topic.name.to_string(), partition, leader };
        let id = leader.ok_or_else(no_leader)?;
        match self.try_broker(id).await? {
            Some(connection) => Ok(connection),
            None => Err(no_leader()),
        }
    }

    /// A connection to this broker.
    ///
    /// # Errors
    /// If the cluster has no such broker, or it can not be reached.
    pub(crate) async fn broker(&self, id: BrokerId) -> Result<Arc<Connection>, Error> {
        let unknown = || Error::Broker {
            code: ErrorCode::UnknownBroker,
            message: format!("no broker {id} in this cluster"),
            suggestion: None,
        };
        self.try_broker(id).await?.ok_or_else(unknown)
    }

    /// `None` if the cluster has no such broker.
    async fn try_broker(&self, id: BrokerId) -> Result<Option<Arc<Connection>>, Error> {
        match self.brokers.broker(id).await {
            Some(Err(error)) if error.is_unreachable() => {
                // It may have come back at another address: for the next attempt.
                let _ = self.describe_cluster().await;
                return Err(error);
            }
            Some(connection) => return connection.map(Some),
            None => {}
        }
        self.describe_cluster().await?;
        self.brokers.broker(id).await.transpose()
    }

    /// The cluster; takes note of where its brokers are.
    pub(crate) async fn describe_cluster(&self) -> Result<control::DescribeClusterResponse, Error> {
        let request = request::Body::DescribeCluster(control::DescribeClusterRequest {});
        let (answer, connection) = self.brokers.ask("describe cluster", request).await?;
        match answer {
            response::Body::DescribeCluster(cluster) => {
                self.brokers.learn(&cluster.brokers);
                let is_there = |broker: &&control::Broker| broker.state() != control::BrokerState::Fenced;
                let racks = cluster.brokers.iter().filter(is_there).filter(|broker| !broker.rack.is_empty());
                let racks = racks.map(|broker| (BrokerId(broker.id), broker.rack.clone())).collect();
                let mut known = self.racks.write().unwrap_or_else(PoisonError::into_inner);
                *known = Some((Instant::now(), Arc::new(racks)));
                drop(known);
                Ok(cluster)
            }
            _ => Err(connection.protocol("it answered another request than describe cluster")),
        }
    }

    /// The racks of the brokers that are heard of, not older than this.
    ///
    /// # Errors
    /// If they have to be asked for and no broker answers.
    pub(crate) async fn racks(&self, age_max: Duration) -> Result<Arc<Racks>, Error> {
        let known = || {
            let known = self.racks.read().unwrap_or_else(PoisonError::into_inner);
            known.as_ref().filter(|(at, _)| at.elapsed() < age_max).map(|(_, racks)| Arc::clone(racks))
        };
        if let Some(racks) = known() {
            return Ok(racks);
        }
        let _asking = self.asking.lock().await;
        if let Some(racks) = known() {
            return Ok(racks);
        }
        self.describe_cluster().await?;
        Ok(known().unwrap_or_default())
    }

    /// The topic as a broker describes it, whichever answers first, without the state of any log.
    pub(crate) async fn describe(&self, name: &str) -> Result<(control::Topic, Arc<Connection>), Error> {
        self.describe_by(None, name).await
    }

    /// As [`Metadata::describe`], by others than the broker that was asked last, if there are any.
    async fn describe_by(
        &self,
        asked_last: Option<BrokerId>,
        name: &str,
    ) -> Result<(control::Topic, Arc<Connection>), Error> {
        let request = describe_request(name, false);
        let (answer, connection) =
            self.brokers.ask_others_first(asked_last, "describe topics", request).await?;
        Ok((described(&connection, answer)?, connection))
    }

    /// The topic with the state of the logs that this broker holds.
    pub(crate) async fn describe_at(&self, broker: BrokerId, name: &str) -> Result<control::Topic, Error> {
        let connection = self.broker(broker).await?;
        let answer = connection.rpc("describe topics", describe_request(name, true)).await?;
        described(&connection, answer)
    }

    /// Forgets a topic, so that it is asked for when it is next needed.
    pub(crate) fn forget(&self, name: &str) {
        self.topics.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    fn cached(&self, name: &str) -> Option<Arc<TopicMetadata>> {
        self.topics.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    async fn asked_after(
        &self,
        name: &str,
        time: Option<Instant>,
        asked_last: Option<BrokerId>,
    ) -> Result<Arc<TopicMetadata>, Error> {
        let _asking = self.asking.lock().await;
        if let Some(topic) = self.cached(name).filter(|topic| time.is_none_or(|time| topic.asked_at > time)) {
            return Ok(topic);
        }
        let described = self.describe_by(asked_last, name).await.map(|(topic, _)| topic);
        if described.as_ref().is_err_and(|error| error.code() == Some(ErrorCode::UnknownTopic)) {
            self.forget(name);
        }
        let invalid = |why| Error::Protocol { address: "the broker".into(), why };
        let mut topic = TopicMetadata::parse(described?).map_err(invalid)?;
        if let Some(known) = self.cached(name) {
            topic.keep_later_leaders(&known);
        }
        let topic = Arc::new(topic);
        let mut topics = self.topics.write().unwrap_or_else(PoisonError::into_inner);
        topics.insert(Arc::clone(&topic.name), Arc::clone(&topic));
        Ok(topic)
    }
}

fn describe_request(name: &str, with_log_state: bool) -> request::Body {
    let names = vec![name.to_owned()];
    request::Body::DescribeTopics(control::DescribeTopicsRequest { names, with_log_state })
}

fn described(connection: &Connection, answer: response::Body) -> Result<control::Topic, Error> {
    let response::Body::DescribeTopics(answer) = answer else {
        return Err(connection.protocol("it answered another request than describe topics"));
    };
    let topic = answer.topics.into_iter().next();
    let topic = topic.ok_or_else(|| connection.protocol("it left out the topic asked for"))?;
    match &topic.error {
        Some(error) if error.code != 0 => Err(broker_error(error, &topic.suggestion)),
        _ => Ok(topic),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(indexes: &[u32]) -> control::Topic {
        let partitions = indexes.iter().map(|index| control::Partition {
            index: *index,
            leader: Some(*index + 10),
            in_sync_replicas: vec![*index + 10],
            ..Default::default()
        });
        control::Topic {
            name: "t".into(),
            id: vec![7; 16],
            partitions: partitions.collect(),
            ..Default::default()
        }
    }

    #[test]
    fn partitions_are_put_in_order_with_their_leaders() {
        let topic = TopicMetadata::parse(described(&[1, 0, 2])).expect("complete");
        let leaders: Vec<_> = topic.leaders.iter().filter_map(|l| l.leader).collect();
        assert_eq!(leaders, [BrokerId(10), BrokerId(11), BrokerId(12)]);
        assert_eq!(topic.in_sync(PartitionIndex(1)), [BrokerId(11)]);
    }

    #[test]
    fn a_broker_that_lags_behind_takes_back_no_leader() {
        let epochs = |epochs: [u32; 2], leader: u32| {
            let mut topic = described(&[0, 1]);
            for (partition, epoch) in topic.partitions.iter_mut().zip(epochs) {
                (partition.leader_epoch, partition.leader) = (epoch, Some(leader));
            }
            TopicMetadata::parse(topic).expect("complete")
        };
        let known = epochs([5, 5], 1);
        let mut answered = epochs([4, 6], 2);
        answered.keep_later_leaders(&known);
        let leaders: Vec<_> = answered.leaders.iter().map(|l| (l.leader, l.epoch)).collect();
        let expected = [(Some(BrokerId(1)), LeaderEpoch(5)), (Some(BrokerId(2)), LeaderEpoch(6))];
        assert_eq!(leaders, expected);
    }

    #[test]
    fn a_topic_that_can_not_be_is_refused() {
        for indexes in [&[][..], &[1], &[0, 0], &[0, 2]] {
            assert!(TopicMetadata::parse(described(indexes)).is_err(), "{indexes:?}");
        }
        let short_id = control::Topic { id: vec![1; 15], ..described(&[0]) };
        assert!(TopicMetadata::parse(short_id).is_err());
    }

    #[test]
    fn overrides_that_matter_to_a_client_are_taken() {
        let mut topic = described(&[0]);
        topic.overrides.insert("max.message.bytes".into(), "5000".into());
        topic.overrides.insert("message.timestamp.type".into(), "LogAppendTime".into());
        let topic = TopicMetadata::parse(topic).expect("complete");
        assert_eq!(topic.message_bytes_max, 5000);
        assert_eq!(topic.timestamp_type, MessageTimestampType::LogAppendTime);
    }
}
