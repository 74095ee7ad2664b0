//! What is known of topics: their ids, partitions and leaders. Asked for once, and again when it proves wrong or old.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use quire_protocol::rpc::control::{self, request, response};
use quire_protocol::topic_config::{MessageTimestampType, TopicConfig};
use quire_protocol::{BrokerId, ErrorCode, LeaderEpoch, PartitionIndex, TopicId, TopicPartition, limits};
use tokio::time::timeout;

use crate::connection::{Brokers, Connection, Whom, broker_error};
use crate::error::Error;

/// How long a second broker may take to confirm what a first one said of a topic.
const CONFIRMATION_TIME_MAX: Duration = Duration::from_secs(2);

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
    /// Who said so.
    told_by: BrokerId,
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

    /// Whether another broker than the leader says who leads.
    pub(crate) fn is_leader_named_by_another(&self, partition: PartitionIndex) -> bool {
        let leader = self.leadership(partition).and_then(|leadership| leadership.leader);
        leader.is_some_and(|leader| leader != self.told_by)
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

    fn parse(topic: control::Topic, told_by: BrokerId) -> Result<TopicMetadata, String> {
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
            told_by,
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
            Some(old) => self.refresh(&old).await,
            None => {
                let _asking = self.asking.lock().await;
                match self.cached(name) {
                    Some(topic) => Ok(topic),
                    None => self.look_up(name, None, &[]).await,
                }
            }
        }
    }

    /// The topic, asked for again unless somebody did since `known` was answered. That it is gone, or another topic of the
    /// same name, is believed when two brokers say so: one may be behind.
    ///
    /// # Errors
    /// If the topic is gone; one that can be retried if one broker says so and no other confirms it.
    pub(crate) async fn refresh(&self, known: &TopicMetadata) -> Result<Arc<TopicMetadata>, Error> {
        self.look_up_again(known, &[]).await
    }

    /// As [`Metadata::refresh`], but asks others than the leader first: one that is cut off from the cluster, and not from
    /// its clients, goes on saying that it leads.
    pub(crate) async fn refresh_from_others(
        &self,
        known: &TopicMetadata,
        led: Option<Leadership>,
    ) -> Result<Arc<TopicMetadata>, Error> {
        self.find_others().await;
        let leader = led.and_then(|leadership| leadership.leader);
        self.look_up_again(known, leader.as_slice()).await
    }

    /// The topic instead of one that was left, of which no more is believed; who told of it, and who led it, are asked only
    /// where no other answers soon. One that is behind would tell of it again.
    pub(crate) async fn instead_of(
        &self,
        left: &TopicMetadata,
        partition: PartitionIndex,
    ) -> Result<Arc<TopicMetadata>, Error> {
        self.find_others().await;
        let _asking = self.asking.lock().await;
        if let Some(topic) = self.cached(&left.name).filter(|topic| topic.id != left.id) {
            return Ok(topic);
        }
        self.forget(&left.name);
        let leader = left.leadership(partition).and_then(|leadership| leadership.leader);
        let behind: Vec<_> = leader.into_iter().chain([left.told_by]).collect();
        self.look_up(&left.name, None, &behind).await
    }

    /// Finds out whether there are other brokers at all.
    async fn find_others(&self) {
        if self.brokers.known() < 2 {
            let _ = self.describe_cluster().await;
        }
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
        let request = describe_request(name, false);
        let (answer, connection) = self.brokers.ask("describe topics", request).await?;
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

    async fn look_up_again(
        &self,
        known: &TopicMetadata,
        last: &[BrokerId],
    ) -> Result<Arc<TopicMetadata>, Error> {
        let _asking = self.asking.lock().await;
        let is_later = |topic: &Arc<TopicMetadata>| topic.id == known.id && topic.asked_at > known.asked_at;
        match self.cached(&known.name).filter(is_later) {
            Some(topic) => Ok(topic),
            None => self.look_up(&known.name, Some(known), last).await,
        }
    }

    /// Asks for a topic, and once more where the answer takes back what is known. To be called while no other does.
    async fn look_up(
        &self,
        name: &str,
        known: Option<&TopicMetadata>,
        last: &[BrokerId],
    ) -> Result<Arc<TopicMetadata>, Error> {
        let first = self.ask(Whom::OthersFirst(last), name).await?;
        let cached = self.cached(name);
        let believed = known.map(|topic| topic.id).into_iter().chain(cached.map(|topic| topic.id));
        if !first.takes_back(believed) {
            return self.remember(name, first);
        }
        self.find_others().await;
        if self.brokers.known() == 1 {
            // Nobody can be ahead of the only one.
            return self.remember(name, first);
        }
        let asked = timeout(CONFIRMATION_TIME_MAX, self.ask(Whom::Others(first.by), name)).await;
        match asked {
            Ok(Ok(second)) if second.confirms(&first) => self.remember(name, second),
            Ok(Ok(second)) if known.is_some_and(|known| second.is_about(known.id)) => {
                second.topic.map(Arc::new)
            }
            _ => Err(first.unconfirmed(name)),
        }
    }

    async fn ask(&self, whom: Whom<'_>, name: &str) -> Result<Said, Error> {
        let request = describe_request(name, false);
        let (answer, connection) = self.brokers.ask_of(whom, "describe topics", request).await?;
        let by = connection.broker_id();
        let parse = |topic| TopicMetadata::parse(topic, by).map_err(|why| connection.protocol(why));
        Ok(Said { by, topic: described(&connection, answer).and_then(parse) })
    }

    /// Keeps what was said for whoever asks next.
    fn remember(&self, name: &str, said: Said) -> Result<Arc<TopicMetadata>, Error> {
        if said.topic.as_ref().is_err_and(|error| error.code() == Some(ErrorCode::UnknownTopic)) {
            self.forget(name);
        }
        let mut topic = said.topic?;
        if let Some(known) = self.cached(name) {
            topic.keep_later_leaders(&known);
        }
        let topic = Arc::new(topic);
        let mut topics = self.topics.write().unwrap_or_else(PoisonError::into_inner);
        topics.insert(Arc::clone(&topic.name), Arc::clone(&topic));
        Ok(topic)
    }
}

/// What one broker said of a topic.
#[derive(Debug)]
struct Said {
    by: BrokerId,
    topic: Result<TopicMetadata, Error>,
}

impl Said {
    fn is_about(&self, id: TopicId) -> bool {
        self.topic.as_ref().is_ok_and(|topic| topic.id == id)
    }

    /// Whether it is said of a topic that is believed in that there is none, or another one.
    fn takes_back(&self, mut believed: impl Iterator<Item = TopicId>) -> bool {
        match &self.topic {
            Ok(topic) => believed.any(|id| id != topic.id),
            Err(error) => !error.is_retriable() && believed.next().is_some(),
        }
    }

    /// Whether another broker has said the same.
    fn confirms(&self, first: &Said) -> bool {
        let is_same = match (&self.topic, &first.topic) {
            (Ok(second), Ok(first)) => second.id == first.id,
            (Err(second), Err(first)) => second.code() == first.code(),
            _ => false,
        };
        is_same && self.by != first.by
    }

    fn unconfirmed(&self, name: &str) -> Error {
        let said = match &self.topic {
            Ok(_) => "to be another topic by now".to_owned(),
            Err(error) => format!("not to be there ({error})"),
        };
        let message = format!("broker {} says \"{name}\" {said}, which no other broker confirms", self.by);
        Error::Broker { code: ErrorCode::Unavailable, message, suggestion: None }
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
mod behind;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A topic whose partitions these lead.
    pub(crate) fn led_by(id: u8, leaders: &[Option<BrokerId>]) -> TopicMetadata {
        let indexes: Vec<_> = (0..leaders.len() as u32).collect();
        let mut topic = control::Topic { id: vec![id; 16], ..described(&indexes) };
        for (partition, leader) in topic.partitions.iter_mut().zip(leaders) {
            partition.leader = leader.map(|leader| leader.0);
        }
        TopicMetadata::parse(topic, BrokerId(1)).expect("complete")
    }

    pub(super) fn described(indexes: &[u32]) -> control::Topic {
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
        let topic = TopicMetadata::parse(described(&[1, 0, 2]), BrokerId(1)).expect("complete");
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
            TopicMetadata::parse(topic, BrokerId(1)).expect("complete")
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
            assert!(TopicMetadata::parse(described(indexes), BrokerId(1)).is_err(), "{indexes:?}");
        }
        let short_id = control::Topic { id: vec![1; 15], ..described(&[0]) };
        assert!(TopicMetadata::parse(short_id, BrokerId(1)).is_err());
    }

    #[test]
    fn what_is_believed_is_taken_back_by_two_brokers_and_not_by_one() {
        let said = |by, id: Option<u8>| {
            let gone = || Error::Broker {
                code: ErrorCode::UnknownTopic,
                message: "no topic".into(),
                suggestion: None,
            };
            let known = |id| control::Topic { id: vec![id; 16], ..described(&[0]) };
            let parse = |id| TopicMetadata::parse(known(id), BrokerId(by)).expect("complete");
            Said { by: BrokerId(by), topic: id.map(parse).ok_or_else(gone) }
        };
        let believed = || [TopicId([7; 16])].into_iter();
        assert!(!said(1, Some(7)).takes_back(believed()));
        assert!(!said(1, None).takes_back(std::iter::empty()), "nobody has ever heard of it");
        for first in [None, Some(6)] {
            assert!(said(1, first).takes_back(believed()));
            assert!(said(2, first).confirms(&said(1, first)));
            assert!(!said(1, first).confirms(&said(1, first)), "it is behind still");
            assert!(!said(2, Some(7)).confirms(&said(1, first)));
            assert!(said(1, first).unconfirmed("t").is_retriable());
        }
    }

    #[test]
    fn overrides_that_matter_to_a_client_are_taken() {
        let mut topic = described(&[0]);
        topic.overrides.insert("max.message.bytes".into(), "5000".into());
        topic.overrides.insert("message.timestamp.type".into(), "LogAppendTime".into());
        let topic = TopicMetadata::parse(topic, BrokerId(1)).expect("complete");
        assert_eq!(topic.message_bytes_max, 5000);
        assert_eq!(topic.timestamp_type, MessageTimestampType::LogAppendTime);
    }
}
