//! The internal topic in which groups and their offsets are kept: its name, which of its partitions a group belongs to, and
//! how it comes to be.

use std::collections::BTreeMap;

use quire_engine::controller::image::Topic;
use quire_engine::controller::{CreateTopic, Refusal, Request, Response};
use quire_protocol::{OFFSETS_TOPIC, PartitionIndex, limits};

use crate::controller::{Metadata, ProposeError};
use crate::error::RequestError;

/// The group's partition among so many. Part of what is stored: never to be changed.
pub(crate) fn partition_of(group: &str, partitions: usize) -> PartitionIndex {
    PartitionIndex(crc32fast::hash(group.as_bytes()) % partitions.max(1) as u32)
}

/// The topic, made if it is not there yet.
///
/// # Errors
/// If it can not be made at the moment.
pub(crate) async fn ensure(metadata: &dyn Metadata) -> Result<std::sync::Arc<Topic>, RequestError> {
    if let Some(topic) = metadata.image().topic_named(OFFSETS_TOPIC) {
        return Ok(topic.clone());
    }
    let config = [
        ("cleanup.policy", "compact".to_owned()),
        ("segment.bytes", limits::OFFSETS_SEGMENT_BYTES.to_string()),
        ("max.message.bytes", limits::BATCH_BYTES_MAX.to_string()),
    ];
    let create = CreateTopic {
        name: OFFSETS_TOPIC.to_owned(),
        partitions: limits::OFFSETS_PARTITIONS,
        replicas: None,
        config: config.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<BTreeMap<_, _>>(),
        validate_only: false,
    };
    match metadata.propose(Request::CreateTopic(create)).await {
        Ok(Response::Topic(topic)) => {
            tracing::info!(topic = OFFSETS_TOPIC, replicas = topic.replicas, "made for the first group");
            Ok(topic)
        }
        Ok(other) => Err(crate::handlers::unexpected(&other)),
        // Somebody else was faster.
        Err(ProposeError::Refused(Refusal::TopicExists { .. })) => {
            let image = metadata.image();
            let topic = image.topic_named(OFFSETS_TOPIC).cloned();
            topic.ok_or_else(|| RequestError::unavailable("the topic that groups are kept in is being made"))
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_groups_partition_is_for_ever_the_same() {
        let at = |group| partition_of(group, 16).0;
        assert_eq!([at("billing"), at("audit"), at("größe")], [10, 9, 9]);
    }
}
