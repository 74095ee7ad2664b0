//! How a topic's logs stand, asked where they are.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quire_protocol::BrokerId;
use quire_protocol::rpc::control;
use tokio::time::timeout;

use super::cluster::EACH_BROKER_TIME;
use super::{PartitionDescription, ReplicaLog, TopicDescription, describe_partition};
use crate::error::Error;
use crate::metadata::Metadata;

/// Asks every broker that holds a partition, all at once, and puts together what they say.
pub(super) async fn look(metadata: &Metadata, topic: &mut TopicDescription) {
    let mut brokers: Vec<_> = topic.partitions.iter().flat_map(|p| p.replicas.iter().copied()).collect();
    brokers.sort();
    brokers.dedup();
    let name = topic.name.as_str();
    let mut asked: FuturesUnordered<_> = brokers
        .into_iter()
        .map(|broker| async move {
            let answer = timeout(EACH_BROKER_TIME, metadata.describe_at(broker, name)).await;
            (broker, answer.unwrap_or_else(|_| Err(no_answer(broker))))
        })
        .collect();
    let mut answers = BTreeMap::new();
    while let Some((broker, answer)) = asked.next().await {
        // Another topic of the same name says nothing about this one.
        let is_it = |other: &control::Topic| other.id == topic.id.as_bytes();
        answers.insert(
            broker,
            answer.map(|other| if is_it(&other) { by_index(other) } else { BTreeMap::new() }),
        );
    }
    drop(asked);
    for partition in &mut topic.partitions {
        put_together(partition, &answers);
    }
}

type Answers = BTreeMap<BrokerId, Result<BTreeMap<u32, control::Partition>, Error>>;

fn by_index(topic: control::Topic) -> BTreeMap<u32, control::Partition> {
    topic.partitions.into_iter().map(|partition| (partition.index, partition)).collect()
}

/// The partition stands as its leader says; each replica as its own broker does.
fn put_together(partition: &mut PartitionDescription, answers: &Answers) {
    for broker in &partition.replicas {
        let Some(Ok(logs)) = answers.get(broker) else { continue };
        let Some(log) = logs.get(&partition.partition.0) else { continue };
        let log = describe_partition(log.clone());
        partition.logs.push(ReplicaLog {
            broker: *broker,
            log_start: log.log_start,
            high_watermark: log.high_watermark,
            log_end: log.log_end,
            size_bytes: log.size_bytes,
            error: log.error,
        });
    }
    let Some(leader) = partition.leader else { return };
    match partition.logs.iter().find(|log| log.broker == leader) {
        Some(log) => {
            partition.log_start = log.log_start;
            partition.high_watermark = log.high_watermark;
            partition.log_end = log.log_end;
            partition.size_bytes = log.size_bytes;
            partition.error = log.error.clone();
        }
        None => {
            let failure = answers.get(&leader).and_then(|answer| answer.as_ref().err().cloned());
            partition.error = Some(failure.unwrap_or_else(|| no_answer(leader)));
        }
    }
}

fn no_answer(broker: BrokerId) -> Error {
    Error::TimedOut { address: format!("broker {broker}"), what: "describe topics", after: EACH_BROKER_TIME }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(end: u64) -> control::Partition {
        control::Partition {
            index: 0,
            log_end_offset: end,
            high_watermark: end,
            ..control::Partition::default()
        }
    }

    fn partition(leader: Option<u32>) -> PartitionDescription {
        describe_partition(control::Partition {
            leader,
            replicas: vec![1, 2, 3],
            ..control::Partition::default()
        })
    }

    fn answers() -> Answers {
        let answered = |end| Ok(BTreeMap::from([(0, state(end))]));
        BTreeMap::from([
            (BrokerId(1), answered(40)),
            (BrokerId(2), answered(52)),
            (BrokerId(3), Err(no_answer(BrokerId(3)))),
        ])
    }

    #[test]
    fn a_partition_stands_as_its_leader_says_and_others_are_behind_it() {
        let mut led = partition(Some(2));
        put_together(&mut led, &answers());
        assert_eq!((led.log_end.0, &led.error), (52, &None));
        let behind: Vec<_> = [1, 2, 3].map(|id| led.behind(BrokerId(id))).into();
        assert_eq!(behind, [Some(12), Some(0), None]);
    }

    #[test]
    fn a_leader_that_does_not_answer_is_the_partitions_error() {
        let mut led = partition(Some(3));
        put_together(&mut led, &answers());
        assert!(led.error.is_some_and(|error| error.to_string().contains("broker 3")));
        let mut unled = partition(None);
        put_together(&mut unled, &answers());
        assert_eq!((unled.error, unled.logs.len()), (None, 2));
    }
}
