//! Decisions about the cluster's brokers: who is in it, who may be trusted, who is about to leave.

use std::collections::BTreeSet;

use quire_protocol::{BrokerId, TopicPartition};

use super::image::apply::is_changed;
use super::image::{Broker, BrokerState, Image, Partition};
use super::leadership::{self, Rules, settle};
use super::records::Record;
use super::{Refusal, RegisterBroker, topics};

/// Decides a registration: the cluster is created with its first broker.
///
/// A broker that registers has restarted. Until it is heard of and knows the metadata it is fenced: it leads nothing and
/// is in sync with nothing, and where it can not be trusted to hold what was acknowledged it is not eligible either.
pub(super) fn register(image: &Image, request: RegisterBroker) -> Result<(u64, Vec<Record>), Refusal> {
    let mut records = Vec::new();
    match image.cluster_id() {
        None => records.push(Record::ClusterCreated { cluster_id: request.cluster_id.as_str().into() }),
        Some(have) if have != request.cluster_id => {
            return Err(Refusal::OtherCluster { have: have.to_owned(), given: request.cluster_id });
        }
        Some(_) => {}
    }
    if image.is_removed(request.broker) {
        return Err(Refusal::BrokerRemoved { broker: request.broker });
    }
    let known = image.broker(request.broker);
    if let Some(known) = known.filter(|known| known.incarnation == request.incarnation) {
        return Ok((known.epoch, Vec::new()));
    }
    if request.incarnation == [0; 16] {
        return Err(Refusal::NoIncarnation { broker: request.broker });
    }
    let is_elsewhere = known.is_some_and(|known| is_changed(known.directory, request.directory));
    let suspects: BTreeSet<_> = request.suspects.iter().copied().collect();
    let broker = Broker {
        id: request.broker,
        epoch: known.map_or(0, |known| known.epoch) + 1,
        incarnation: request.incarnation,
        directory: request.directory,
        host: request.host,
        port: request.port,
        peer_host: request.peer_host,
        peer_port: request.peer_port,
        rack: request.rack,
        state: if request.is_alone { BrokerState::Unfenced } else { BrokerState::Fenced },
        node: request.node,
    };
    let (id, epoch) = (broker.id, broker.epoch);
    records.push(Record::BrokerRegistered(broker));
    let after = image.after(&records);
    records.extend(leadership::changes(&after, |topic, partition| {
        if !partition.replicas.contains(&id) {
            return None;
        }
        let is_suspect = is_elsewhere
            || suspects.contains(&TopicPartition { topic: topic.id, partition: partition.index });
        let rules = Rules { suspect: is_suspect.then_some(id), ..Rules::new(&after, topic) };
        settle(rules, partition, partition.clone())
    }));
    Ok((epoch, records))
}

/// Decides that a broker is not heard of.
pub(super) fn fence(image: &Image, broker: BrokerId, epoch: u64) -> Result<Vec<Record>, Refusal> {
    let state = current(image, broker, epoch)?.state;
    change_state(image, broker, epoch, (state, BrokerState::Fenced))
}

/// Decides that a broker is heard of: it leads what nobody else could.
pub(super) fn unfence(image: &Image, broker: BrokerId, epoch: u64) -> Result<Vec<Record>, Refusal> {
    let state = current(image, broker, epoch)?.state;
    change_state(image, broker, epoch, (state, BrokerState::Unfenced))
}

fn change_state(
    image: &Image,
    broker: BrokerId,
    epoch: u64,
    (before, state): (BrokerState, BrokerState),
) -> Result<Vec<Record>, Refusal> {
    if before == state {
        return Ok(Vec::new());
    }
    let mut records = vec![Record::BrokerStateChanged { broker, epoch, state }];
    let after = image.after(&records);
    records.extend(leadership::changes(&after, |topic, partition| {
        if !partition.replicas.contains(&broker) {
            return None;
        }
        settle(Rules::new(&after, topic), partition, partition.clone())
    }));
    Ok(records)
}

/// Decides that a broker drains; also says how many leaderships nobody else can take yet.
pub(super) fn drain(image: &Image, broker: BrokerId, epoch: u64) -> Result<(u32, Vec<Record>), Refusal> {
    let state = current(image, broker, epoch)?.state;
    if state == BrokerState::Fenced {
        // It leads nothing.
        return Ok((0, Vec::new()));
    }
    let mut records = Vec::new();
    if state != BrokerState::Draining {
        records.push(Record::BrokerStateChanged { broker, epoch, state: BrokerState::Draining });
    }
    let after = image.after(&records);
    records.extend(leadership::changes(&after, |topic, partition| {
        if partition.leader != Some(broker) {
            return None;
        }
        let successor = partition.in_sync.iter().copied().find(|id| after.is_unfenced(*id))?;
        let draft = Partition { leader: Some(successor), ..partition.clone() };
        settle(Rules::new(&after, topic), partition, draft)
    }));
    let drained = image.after(&records);
    let partitions = drained.topics().flat_map(|topic| &topic.partitions);
    let left = partitions.filter(|partition| partition.leader == Some(broker)).count() as u32;
    Ok((left, records))
}

/// Decides that a broker leaves for good. What it holds has to be held by others first.
pub(super) fn remove(image: &Image, broker: BrokerId) -> Result<Vec<Record>, Refusal> {
    if image.is_removed(broker) {
        return Ok(Vec::new());
    }
    if image.broker(broker).is_none() {
        return Err(Refusal::UnknownBroker { broker });
    }
    let replicas = image.replica_counts().get(&broker).copied().unwrap_or_default();
    if replicas > 0 {
        return Err(Refusal::BrokerInUse { broker, replicas });
    }
    Ok(vec![Record::BrokerRemoved { broker }])
}

/// Decides that a replica can not be trusted: it is in sync again once it caught up.
pub(super) fn report_suspect(
    image: &Image,
    broker: BrokerId,
    epoch: u64,
    id: TopicPartition,
) -> Result<Vec<Record>, Refusal> {
    current(image, broker, epoch)?;
    let (topic, partition) = topics::find_partition(image, id)?;
    let rules = Rules { suspect: Some(broker), ..Rules::new(image, topic) };
    let changed = settle(rules, partition, Partition::clone(partition));
    Ok(leadership::changed_in(id.topic, changed.into_iter().collect()).into_iter().collect())
}

/// The broker, if it is registered with this epoch.
pub(super) fn current(image: &Image, broker: BrokerId, epoch: u64) -> Result<&Broker, Refusal> {
    let known = image.broker(broker).ok_or(Refusal::UnknownBroker { broker })?;
    if known.epoch != epoch {
        return Err(Refusal::StaleBrokerEpoch { broker, have: known.epoch, given: epoch });
    }
    Ok(known)
}
