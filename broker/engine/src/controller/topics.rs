//! Decisions about topics: create, alter, delete, confirm a deletion.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quire_protocol::topic_config::{self, TopicConfig};
use quire_protocol::{BrokerId, PartitionIndex, Timestamp, TopicId, TopicPartition, limits};

use super::image::{Image, Partition, Topic};
use super::leadership::{self, Rules, settle};
use super::placement::Placement;
use super::records::Record;
use super::{AlterTopic, CreateTopic, Refusal};
use crate::Random;

/// Replicas of a topic that does not say how many, given as many brokers.
const REPLICAS_DEFAULT: usize = 3;
/// A topic of so many replicas gets [`MIN_IN_SYNC_DEFAULT`], so that what is acknowledged outlives any one broker.
const MIN_IN_SYNC_FROM_REPLICAS: u32 = 3;
const MIN_IN_SYNC: &str = "min.insync.replicas";
const MIN_IN_SYNC_DEFAULT: &str = "2";
/// Most overrides that a topic keeps is the number of keys there are; a request may not name more than this.
const CONFIG_ENTRIES_MAX: usize = 64;

/// Decides a creation.
pub(super) fn create(
    image: &Image,
    now: Timestamp,
    random: &mut dyn Random,
    request: CreateTopic,
) -> Result<(TopicId, Record), Refusal> {
    check_name(&request.name)?;
    if image.topic_named(&request.name).is_some() {
        return Err(Refusal::TopicExists { name: request.name });
    }
    check_partitions(request.partitions, 1)?;
    let replicas = check_replicas(image, request.replicas)?;
    let mut config = request.config;
    if replicas >= MIN_IN_SYNC_FROM_REPLICAS {
        config.entry(MIN_IN_SYNC.to_owned()).or_insert_with(|| MIN_IN_SYNC_DEFAULT.to_owned());
    }
    check_config(&config, replicas)?;
    let id = draw_id(image, random);
    let partitions = assign(image, random, 0..request.partitions, replicas)?;
    let name = request.name.into();
    Ok((id, Record::TopicCreated { id, name, replicas, partitions, config, created_at: now }))
}

/// Decides a change; no records if everything is so already.
pub(super) fn alter(
    image: &Image,
    random: &mut dyn Random,
    request: AlterTopic,
) -> Result<(TopicId, Vec<Record>), Refusal> {
    let topic = find(image, &request.name)?;
    let mut records = Vec::new();
    let config = changed_config(topic, request.set_config, &request.unset_config)?;
    if config != topic.overrides {
        check_config(&config, topic.replicas)?;
        records.push(Record::TopicConfigChanged { id: topic.id, config });
        let after = image.after(&records);
        records.extend(resettled(&after, topic.id));
    }
    let have = topic.partitions.len() as u32;
    if let Some(wanted) = request.partitions.filter(|wanted| *wanted != have) {
        check_partitions(wanted, have)?;
        let partitions = assign(image, random, have..wanted, topic.replicas)?;
        records.push(Record::TopicPartitionsAdded { id: topic.id, partitions });
    }
    Ok((topic.id, records))
}

/// Decides a deletion.
pub(super) fn delete(image: &Image, now: Timestamp, name: &str) -> Result<(TopicId, Record), Refusal> {
    let id = find(image, name)?.id;
    Ok((id, Record::TopicDeleted { id, deleted_at: now }))
}

/// Decides a confirmation; none is needed if it was given before.
pub(super) fn confirm_deletion(image: &Image, id: TopicId, broker: BrokerId) -> Option<Record> {
    let is_open = image.deleted_topic(id).is_some_and(|topic| topic.unconfirmed.contains(&broker));
    is_open.then_some(Record::TopicDeletionConfirmed { id, broker })
}

/// Decides that a broker holds a topic's first partitions but for some; nothing is to be kept of it if that is known, or the
/// topic is gone.
pub(super) fn hold(
    image: &Image,
    id: TopicId,
    broker: BrokerId,
    partitions: u32,
    missing: BTreeSet<PartitionIndex>,
) -> Option<Record> {
    let known = image.topic(id)?.held.get(&broker).cloned().unwrap_or_default();
    (known.with(partitions, &missing) != known).then_some(Record::TopicHeld {
        id,
        broker,
        partitions,
        missing,
    })
}

/// What other settings make of a topic's partitions: with fewer replicas demanded, commits go on without those that were
/// eligible; where unclean elections are allowed, somebody leads.
fn resettled(after: &Image, id: TopicId) -> Option<Record> {
    let topic = after.topic(id)?;
    let settled =
        |partition: &Arc<Partition>| settle(Rules::new(after, topic), partition, Partition::clone(partition));
    leadership::changed_in(id, topic.partitions.iter().filter_map(settled).collect())
}

/// A partition and its topic.
pub(super) fn find_partition(
    image: &Image,
    id: TopicPartition,
) -> Result<(&Arc<Topic>, &Arc<Partition>), Refusal> {
    let topic = image.topic(id.topic).ok_or(Refusal::UnknownTopicId(id.topic))?;
    let partition = topic.partition(id.partition).ok_or_else(|| Refusal::UnknownPartition {
        topic: topic.name.clone(),
        last: topic.partitions.len().saturating_sub(1) as u32,
        given: id.partition,
    })?;
    Ok((topic, partition))
}

fn find<'a>(image: &'a Image, name: &str) -> Result<&'a Arc<Topic>, Refusal> {
    image.topic_named(name).ok_or_else(|| Refusal::UnknownTopic {
        name: name.chars().take(limits::TOPIC_NAME_BYTES_MAX).collect(),
        nearest: image.nearest_name(name),
    })
}

/// Kafka's rules, so that every topic can be reached by Kafka's clients too.
fn check_name(name: &str) -> Result<(), Refusal> {
    let refuse = |why| {
        let name = name.chars().take(limits::TOPIC_NAME_BYTES_MAX).collect();
        Err(Refusal::InvalidTopicName { name, why })
    };
    if name.is_empty() {
        return refuse("it is empty".to_owned());
    }
    if name.len() > limits::TOPIC_NAME_BYTES_MAX {
        return refuse(format!(
            "it has {} bytes, at most {} are allowed",
            name.len(),
            limits::TOPIC_NAME_BYTES_MAX
        ));
    }
    if name == "." || name == ".." {
        return refuse("\".\" and \"..\" are directories".to_owned());
    }
    let is_legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    match name.chars().find(|c| !is_legal(*c)) {
        Some(illegal) => refuse(format!("{illegal:?} is not a letter, a digit, '.', '_' or '-'")),
        None => Ok(()),
    }
}

fn check_partitions(given: u32, min: u32) -> Result<(), Refusal> {
    if !(min..=limits::TOPIC_PARTITIONS_MAX).contains(&given) {
        return Err(Refusal::PartitionCount { given, min, max: limits::TOPIC_PARTITIONS_MAX });
    }
    Ok(())
}

fn check_replicas(image: &Image, given: Option<u32>) -> Result<u32, Refusal> {
    let brokers = image.brokers().len();
    let replicas = given.unwrap_or(brokers.min(REPLICAS_DEFAULT) as u32);
    if replicas == 0 || replicas as usize > brokers.min(limits::REPLICAS_MAX) {
        return Err(Refusal::ReplicaCount { given: replicas, brokers });
    }
    Ok(replicas)
}

fn check_config(config: &BTreeMap<String, String>, replicas: u32) -> Result<(), Refusal> {
    if config.len() > CONFIG_ENTRIES_MAX {
        return Err(Refusal::TooManySettings { given: config.len(), max: CONFIG_ENTRIES_MAX });
    }
    let effective = TopicConfig::with_overrides(config)?;
    effective.check()?;
    if effective.min_insync_replicas > replicas {
        return Err(Refusal::MinInsyncReplicas { given: effective.min_insync_replicas, replicas });
    }
    Ok(())
}

fn changed_config(
    topic: &Topic,
    set: BTreeMap<String, String>,
    unset: &[String],
) -> Result<BTreeMap<String, String>, Refusal> {
    let mut config = topic.overrides.clone();
    for key in unset {
        if let Some(known) = topic_config::KEYS.iter().find(|known| known.name == key) {
            config.remove(known.name);
            continue;
        }
        let mistyped = BTreeMap::from([(key.clone(), String::new())]);
        TopicConfig::with_overrides(&mistyped)?;
    }
    config.extend(set);
    Ok(config)
}

fn assign(
    image: &Image,
    random: &mut dyn Random,
    partitions: std::ops::Range<u32>,
    replicas: u32,
) -> Result<Vec<Partition>, Refusal> {
    let mut placement = Placement::new(image, random);
    let brokers = image.brokers().len();
    let assignments = partitions
        .map(|index| placement.place(PartitionIndex(index), replicas))
        .collect::<Option<Vec<_>>>()
        .filter(|placed| placed.iter().all(|assignment| assignment.replicas.len() == replicas as usize))
        .ok_or(Refusal::ReplicaCount { given: replicas, brokers })?;
    if placement.heaviest() > limits::BROKER_PARTITIONS_MAX {
        let (given, max) = (placement.heaviest(), limits::BROKER_PARTITIONS_MAX);
        return Err(Refusal::BrokerPartitions { given, max });
    }
    Ok(assignments)
}

/// An id that no topic has or had within memory, nor the broker's own logs.
fn draw_id(image: &Image, random: &mut dyn Random) -> TopicId {
    loop {
        let id = TopicId(random.next_id());
        let is_reserved = id.0[..8] == [0; 8];
        if !is_reserved && image.topic(id).is_none() && image.deleted_topic(id).is_none() {
            return id;
        }
    }
}
