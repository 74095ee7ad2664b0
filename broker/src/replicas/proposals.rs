//! Asking the controller, for the leaders and the damaged replicas of this broker.

use std::sync::Arc;
use std::time::Duration;

use quire_engine::controller::{ChangeInSync, Image, Request, Response};
use quire_engine::replication::Proposal;
use quire_protocol::{BrokerId, TopicPartition};

use crate::controller::{Metadata, ProposeError};
use crate::shard::{Assignment, Event, Outcome, Router};

/// The controller is told at most so often that a replica can not be trusted.
const DISTRUST_INTERVAL: Duration = Duration::from_millis(500);

/// Asks for other in-sync replicas, and tells the shard what became of it.
pub(super) async fn propose(
    metadata: Arc<dyn Metadata>,
    router: Router,
    broker: BrokerId,
    partition: TopicPartition,
    proposal: Proposal,
) {
    let Proposal { number, leader_epoch, partition_epoch, in_sync } = proposal;
    tracing::debug!(%partition, ?in_sync, "other in-sync replicas are asked for");
    let request = ChangeInSync { partition, leader: broker, leader_epoch, partition_epoch, in_sync };
    let outcome = match metadata.propose(Request::ChangeInSync(request)).await {
        Ok(Response::Partition { state, .. }) => {
            taken(&*metadata, broker, partition, state.partition_epoch).await
        }
        Ok(_) => Outcome::Unknown,
        Err(error) => {
            tracing::debug!(%partition, %error, "other in-sync replicas were not had");
            if is_outcome_unknown(&error) { Outcome::Unknown } else { Outcome::Refused }
        }
    };
    router.send_to(partition, Event::ProposalAnswered { partition, leader_epoch, number, outcome });
}

/// What was taken, as the image shows it: the answer may be ahead of the image, and who is in sync holds together with
/// settings of the topic that only the image has.
async fn taken(
    metadata: &dyn Metadata,
    broker: BrokerId,
    partition: TopicPartition,
    partition_epoch: u32,
) -> Outcome {
    let shows = |image: &Arc<Image>| {
        image.partition(partition).is_none_or(|known| known.partition_epoch >= partition_epoch)
    };
    let mut changes = metadata.changes();
    let Ok(image) = changes.wait_for(shows).await.map(|image| Arc::clone(&image)) else {
        return Outcome::Unknown;
    };
    match image.partition(partition) {
        Some(known) => Outcome::Taken(Assignment::of(&image, known, broker, None).membership),
        None => Outcome::Unknown,
    }
}

/// Tells the controller that this broker's replica can not be trusted, until it knows; gives the replica's partition once
/// it may be told again.
pub(super) async fn distrust(
    metadata: Arc<dyn Metadata>,
    broker: BrokerId,
    partition: TopicPartition,
) -> TopicPartition {
    while tell_distrust(&*metadata, broker, partition).await {
        tokio::time::sleep(DISTRUST_INTERVAL).await;
    }
    tokio::time::sleep(DISTRUST_INTERVAL).await;
    partition
}

/// Whether it has to be told again.
async fn tell_distrust(metadata: &dyn Metadata, broker: BrokerId, partition: TopicPartition) -> bool {
    let image = metadata.image();
    let is_counted = image
        .partition(partition)
        .is_some_and(|known| known.in_sync.contains(&broker) || known.eligible.contains(&broker));
    let Some(epoch) = image.broker(broker).map(|known| known.epoch).filter(|_| is_counted) else {
        return false;
    };
    match metadata.propose(Request::ReportSuspect { broker, epoch, partition }).await {
        Ok(_) => false,
        Err(ProposeError::Refused(error)) => {
            tracing::debug!(%partition, %error, "the controller does not take it that the replica is suspect");
            false
        }
        // The metadata log said so itself, once, and it does not come back.
        Err(ProposeError::Failed { .. }) => true,
        Err(error) => {
            tracing::warn!(%partition, %error, "the controller does not know yet that the replica is suspect");
            true
        }
    }
}

/// Whether the change may have been made all the same.
fn is_outcome_unknown(error: &ProposeError) -> bool {
    !matches!(error, ProposeError::Refused(_) | ProposeError::DiskFull | ProposeError::Unavailable { .. })
}
