//! How each record changes the image. What follows from a change was decided before, and stands in records of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quire_protocol::topic_config::TopicConfig;
use quire_protocol::{BrokerId, PartitionIndex, Timestamp, TopicId, TopicPartition};

use super::{Broker, BrokerState, Conflict, DeletedTopic, Image, Partition, Token, Topic};
use crate::controller::records::Record;

impl Image {
    /// Applies one committed record.
    ///
    /// # Errors
    /// If it does not fit; the image is unchanged then.
    pub fn apply(&mut self, record: &Record) -> Result<(), Conflict> {
        match record {
            Record::ClusterCreated { cluster_id } => return self.create_cluster(cluster_id),
            Record::BrokerRegistered(broker) => return self.register(broker),
            Record::BrokerStateChanged { broker, epoch, state } => {
                return self.change_state(*broker, *epoch, *state);
            }
            Record::BrokerRemoved { broker } => self.remove_broker(*broker),
            Record::TopicCreated { id, name, replicas, partitions, config, created_at } => {
                let mut topic = Topic {
                    id: *id,
                    name: name.clone(),
                    replicas: *replicas,
                    partitions: Vec::with_capacity(partitions.len()),
                    overrides: config.clone(),
                    config: Arc::new(TopicConfig::with_overrides(config)?),
                    created_at: *created_at,
                    held: BTreeMap::new(),
                };
                topic.add_partitions(partitions)?;
                return self.create_topic(topic);
            }
            Record::TopicPartitionsAdded { id, partitions } => {
                return self.change_topic(*id, |topic| topic.add_partitions(partitions));
            }
            Record::PartitionsChanged { id, partitions } => {
                return self.change_topic(*id, |topic| topic.change_partitions(partitions));
            }
            Record::TopicConfigChanged { id, config } => {
                return self.change_topic(*id, |topic| {
                    topic.config = Arc::new(TopicConfig::with_overrides(config)?);
                    topic.overrides = config.clone();
                    Ok(())
                });
            }
            Record::TopicDeleted { id, deleted_at } => return self.delete_topic(*id, *deleted_at),
            Record::TopicDeletionConfirmed { id, broker } => self.confirm_deletion(*id, *broker),
            Record::TopicHeld { id, broker, partitions, missing } => {
                self.hold(*id, *broker, *partitions, missing);
            }
            Record::ProducerIdsAllocated { broker: _, next } => return self.allocate_producer_ids(*next),
            Record::AclAdded(acl) => _ = self.acls.insert(acl.clone()),
            Record::AclRemoved(acl) => _ = self.acls.remove(acl),
            Record::TokenIssued { hash, expires_at } => {
                self.tokens.insert(*hash, Token { expires_at: *expires_at, redeemed: None });
            }
            Record::TokenRedeemed { hash, redeemer, broker } => {
                if let Some(token) = self.tokens.get_mut(hash) {
                    token.redeemed = Some((*redeemer, *broker));
                }
                self.next_broker = self.next_broker.max(BrokerId(broker.0.saturating_add(1)));
            }
            Record::TokenRemoved { hash } => _ = self.tokens.remove(hash),
            Record::AuthoritySet { sealed } => self.authority = Some(sealed.clone()),
            Record::CertificateRevoked { serial } => _ = self.revoked.insert(serial.clone()),
        }
        Ok(())
    }

    fn create_cluster(&mut self, given: &Arc<str>) -> Result<(), Conflict> {
        match &self.cluster_id {
            Some(have) if have != given => {
                Err(Conflict::Cluster { have: have.clone(), given: given.clone() })
            }
            _ => {
                self.cluster_id = Some(given.clone());
                Ok(())
            }
        }
    }

    /// A broker that registers again has restarted, and no broker leads twice in one epoch across a restart: what it
    /// may have lost and written anew would bear the same offset and epoch. One that registers fenced loses its
    /// leaderships, by records of their own; one that is its own controller keeps them, and they start anew here.
    fn register(&mut self, broker: &Broker) -> Result<(), Conflict> {
        let known = self.brokers.get(&broker.id);
        let have = known.map_or(0, |known| known.epoch);
        if broker.epoch <= have {
            return Err(Conflict::BrokerEpoch { broker: broker.id, have, given: broker.epoch });
        }
        let is_elsewhere = known.is_some_and(|known| is_changed(known.directory, broker.directory));
        self.brokers.insert(broker.id, broker.clone());
        self.next_broker = self.next_broker.max(BrokerId(broker.id.0.saturating_add(1)));
        if is_elsewhere {
            self.forget_holdings(broker.id);
        }
        if broker.state == BrokerState::Unfenced {
            self.renew_leaderships(broker.id);
        }
        Ok(())
    }

    fn renew_leaderships(&mut self, broker: BrokerId) {
        let leads = |partition: &Partition| partition.leader == Some(broker);
        for topic in self.topics.values_mut().filter(|topic| topic.partitions.iter().any(|p| leads(p))) {
            for partition in Arc::make_mut(topic).partitions.iter_mut().filter(|p| leads(p)) {
                let partition = Arc::make_mut(partition);
                partition.leader_epoch.0 += 1;
                partition.partition_epoch += 1;
            }
        }
    }

    /// In a directory that was made anew no log is there, and that is no loss where other replicas have it; the only
    /// replica's must still not begin anew.
    fn forget_holdings(&mut self, broker: BrokerId) {
        for topic in self.topics.values_mut().filter(|topic| topic.held.contains_key(&broker)) {
            if topic.partitions.iter().all(|partition| partition.replicas.len() > 1) {
                Arc::make_mut(topic).held.remove(&broker);
            }
        }
    }

    fn change_state(&mut self, broker: BrokerId, epoch: u64, state: BrokerState) -> Result<(), Conflict> {
        let known = self.brokers.get_mut(&broker).filter(|known| known.epoch == epoch);
        known.ok_or(Conflict::NoSuchBroker { broker, given: epoch })?.state = state;
        Ok(())
    }

    /// What it has not confirmed to have deleted went with it.
    fn remove_broker(&mut self, broker: BrokerId) {
        self.brokers.remove(&broker);
        self.removed_brokers.insert(broker);
        for topic in self.topics.values_mut().filter(|topic| topic.held.contains_key(&broker)) {
            Arc::make_mut(topic).held.remove(&broker);
        }
        self.deleted.retain(|_, topic| {
            topic.unconfirmed.remove(&broker);
            !topic.unconfirmed.is_empty()
        });
    }

    fn create_topic(&mut self, topic: Topic) -> Result<(), Conflict> {
        let known_id = self.topics.contains_key(&topic.id) || self.deleted.contains_key(&topic.id);
        if known_id || self.names.contains_key(&topic.name) {
            return Err(Conflict::TopicExists(topic.name));
        }
        self.names.insert(topic.name.clone(), topic.id);
        self.topics.insert(topic.id, Arc::new(topic));
        Ok(())
    }

    fn change_topic(
        &mut self,
        id: TopicId,
        change: impl FnOnce(&mut Topic) -> Result<(), Conflict>,
    ) -> Result<(), Conflict> {
        let known = self.topics.get_mut(&id).ok_or(Conflict::NoSuchTopic(id))?;
        let mut topic = Topic::clone(known);
        change(&mut topic)?;
        *known = Arc::new(topic);
        Ok(())
    }

    fn delete_topic(&mut self, id: TopicId, deleted_at: Timestamp) -> Result<(), Conflict> {
        let topic = self.topics.remove(&id).ok_or(Conflict::NoSuchTopic(id))?;
        self.names.remove(&topic.name);
        let holders = topic.partitions.iter().flat_map(|p| &p.replicas).chain(topic.held.keys());
        let unconfirmed: BTreeSet<_> = holders.copied().filter(|id| self.brokers.contains_key(id)).collect();
        let partitions = topic.partitions.len() as u32;
        let name = topic.name.clone();
        if !unconfirmed.is_empty() {
            self.deleted.insert(id, DeletedTopic { id, name, deleted_at, partitions, unconfirmed });
        }
        Ok(())
    }

    /// The topic may have been deleted since the broker said so.
    fn hold(&mut self, id: TopicId, broker: BrokerId, partitions: u32, missing: &BTreeSet<PartitionIndex>) {
        let Some(topic) = self.topics.get_mut(&id) else { return };
        let held = Arc::make_mut(topic).held.entry(broker).or_default();
        *held = held.with(partitions, missing);
    }

    fn confirm_deletion(&mut self, id: TopicId, broker: BrokerId) {
        let Some(topic) = self.deleted.get_mut(&id) else { return };
        topic.unconfirmed.remove(&broker);
        if topic.unconfirmed.is_empty() {
            self.deleted.remove(&id);
        }
    }

    fn allocate_producer_ids(&mut self, next: u64) -> Result<(), Conflict> {
        if next <= self.next_producer_id {
            return Err(Conflict::ProducerIds { have: self.next_producer_id, given: next });
        }
        self.next_producer_id = next;
        Ok(())
    }
}

impl Topic {
    fn add_partitions(&mut self, added: &[Partition]) -> Result<(), Conflict> {
        for partition in added {
            let expected = self.partitions.len() as u32;
            if partition.index.0 != expected {
                let given = partition.index;
                return Err(Conflict::PartitionNumber { topic: self.id, given, expected });
            }
            self.partitions.push(Arc::new(partition.clone()));
        }
        Ok(())
    }

    fn change_partitions(&mut self, changed: &[Partition]) -> Result<(), Conflict> {
        for after in changed {
            let partition = TopicPartition { topic: self.id, partition: after.index };
            let given = after.partition_epoch;
            let before = self.partitions.get_mut(after.index.0 as usize);
            let before = before.ok_or(Conflict::PartitionEpoch { partition, have: 0, given })?;
            let is_next_leadership = after.leader_epoch.0 == before.leader_epoch.0 + 1;
            let is_same_leadership =
                after.leader_epoch == before.leader_epoch && after.leader == before.leader;
            if given != before.partition_epoch + 1 || !(is_next_leadership || is_same_leadership) {
                return Err(Conflict::PartitionEpoch { partition, have: before.partition_epoch, given });
            }
            *before = Arc::new(after.clone());
        }
        self.count_replicas();
        Ok(())
    }

    /// Once all partitions are to have equally many replicas, that is how many the topic has.
    fn count_replicas(&mut self) {
        let mut counts = self.partitions.iter().map(|partition| partition.target().count() as u32);
        let Some(first) = counts.next() else { return };
        if counts.all(|count| count == first) {
            self.replicas = first;
        }
    }
}

/// Whether a directory is known and not the one that was known before.
pub(in crate::controller) fn is_changed(before: [u8; 16], after: [u8; 16]) -> bool {
    before != [0; 16] && after != before
}
