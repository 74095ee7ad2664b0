//! Topics as clients see them: what the metadata image says, joined with the state of the logs held here.

use quire_engine::controller::image;
use quire_protocol::rpc::control::{self, TopicSummary};
use quire_protocol::{BrokerId, ErrorCode, TopicPartition};

use crate::error::RequestError;
use crate::shard::Partitions;

/// Whether answers say how each partition's log stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogState {
    /// With offsets and sizes, of the partitions held here.
    Included,
    /// Without.
    Omitted,
}

/// One topic in a list.
pub(crate) fn summary(topic: &image::Topic) -> TopicSummary {
    TopicSummary {
        name: topic.name.to_string(),
        id: topic.id.as_bytes().to_vec(),
        partitions: topic.partitions.len() as u32,
        replicas: topic.replicas,
    }
}

/// Everything about a topic.
pub(crate) fn describe(topic: &image::Topic, partitions: &Partitions, log_state: LogState) -> control::Topic {
    let described = topic.partitions.iter().map(|partition| {
        let mut described = assignment(partition);
        if log_state == LogState::Included {
            add_log_state(
                &mut described,
                partitions,
                TopicPartition { topic: topic.id, partition: partition.index },
            );
        }
        described
    });
    control::Topic {
        name: topic.name.to_string(),
        error: None,
        id: topic.id.as_bytes().to_vec(),
        replicas: topic.replicas,
        partitions: described.collect(),
        overrides: topic.overrides.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        config: topic.config.entries().map(|(key, value)| (key.to_owned(), value)).collect(),
        suggestion: String::new(),
    }
}

/// The answer about a name that no topic has.
pub(crate) fn unknown(name: &str, suggestion: Option<&str>) -> control::Topic {
    let error = RequestError::new(ErrorCode::UnknownTopic, format!("no topic \"{name}\""));
    control::Topic {
        name: name.to_owned(),
        error: Some(error.into()),
        suggestion: suggestion.unwrap_or_default().to_owned(),
        ..control::Topic::default()
    }
}

/// The answer about a topic that is not to be known.
pub(crate) fn refused(name: &str, error: RequestError) -> control::Topic {
    control::Topic { name: name.to_owned(), error: Some(error.into()), ..control::Topic::default() }
}

/// A partition, without the state of its log.
pub(crate) fn assignment(partition: &image::Partition) -> control::Partition {
    let ids = |brokers: &[BrokerId]| brokers.iter().map(|broker| broker.0).collect();
    control::Partition {
        index: partition.index.0,
        leader: partition.leader.map(|leader| leader.0),
        leader_epoch: partition.leader_epoch.0,
        replicas: ids(&partition.replicas),
        in_sync_replicas: ids(&partition.in_sync),
        eligible_leader_replicas: ids(&partition.eligible),
        partition_epoch: partition.partition_epoch,
        adding_replicas: ids(&partition.adding),
        removing_replicas: ids(&partition.removing),
        is_recovering: partition.is_recovering,
        ..control::Partition::default()
    }
}

/// How the log here stands, whether it is the leader's or not.
fn add_log_state(described: &mut control::Partition, partitions: &Partitions, id: TopicPartition) {
    match partitions.find_replica(id) {
        Ok(partition) => {
            let reader = partition.reader();
            described.log_start_offset = reader.log_start().0;
            described.high_watermark = reader.high_watermark().0;
            described.log_end_offset = reader.end_offset().0;
            described.size_bytes = reader.size_bytes();
            described.error = partition.state().error().map(Into::into);
        }
        Err(error) => described.error = Some(error.into()),
    }
}
