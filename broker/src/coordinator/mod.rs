//! Coordinators of groups: one for each partition of the internal topic that this broker leads.
//!
//! What is decided and how is `quire_engine::group`; here it is given its partition's log. `run` is the loop beside one
//! partition, `log` reads and appends, `topic` is about the internal topic itself.

mod log;
mod run;
pub(crate) mod topic;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::future::join_all;
use quire_engine::controller::Image;
use quire_engine::group::{GroupRefusal, Request, Response, Topics};
use quire_protocol::{
    BrokerId, ErrorCode, LeaderEpoch, OFFSETS_TOPIC, PartitionIndex, TopicId, TopicPartition, limits,
};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::controller::Metadata;
use crate::error::RequestError;
use crate::shard::Partitions;
use crate::shutdown::Stopping;
use crate::threads;

/// Somebody asks a coordinator.
struct Ask {
    request: Request,
    answer: oneshot::Sender<Result<Response, RequestError>>,
}

/// The way to the coordinators of this broker.
#[derive(Clone)]
pub(crate) struct Coordinators {
    metadata: Arc<dyn Metadata>,
    broker: BrokerId,
    running: Arc<Mutex<HashMap<TopicPartition, mpsc::Sender<Ask>>>>,
}

/// Where a group is coordinated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) partition: TopicPartition,
    pub(crate) leader: BrokerId,
    pub(crate) leader_epoch: LeaderEpoch,
}

impl Coordinators {
    /// Starts coordinators where this broker leads, until it is to stop.
    pub(crate) fn start(
        metadata: Arc<dyn Metadata>,
        broker: BrokerId,
        partitions: Partitions,
        stopping: Stopping,
    ) -> Coordinators {
        let coordinators = Coordinators { metadata, broker, running: Arc::default() };
        threads::spawn_task("coordinators", coordinators.clone().keep(partitions, stopping));
        coordinators
    }

    /// Where the group is coordinated, as far as this broker knows.
    ///
    /// # Errors
    /// If its partition has no leader at the moment, or this broker does not know the internal topic: whoever asks for a
    /// coordinator has it made, so another broker may know it already.
    pub(crate) fn place(&self, group: &str) -> Result<Place, RequestError> {
        let image = self.metadata.image();
        let topic = image.topic_named(OFFSETS_TOPIC).ok_or_else(|| {
            let message = format!("this broker knows nothing yet of \"{OFFSETS_TOPIC}\"");
            RequestError::new(ErrorCode::NotCoordinator, message)
        })?;
        let index = topic::partition_of(group, topic.partitions.len());
        let partition = topic.partition(index).expect("its number is below their count");
        let leader = partition.leader.ok_or_else(|| {
            let message =
                format!("the group's partition {index} of \"{OFFSETS_TOPIC}\" has no leader at the moment");
            RequestError::new(ErrorCode::NotCoordinator, message)
        })?;
        let id = TopicPartition { topic: topic.id, partition: index };
        Ok(Place { partition: id, leader, leader_epoch: partition.leader_epoch })
    }

    /// Asks the group's coordinator, which is this broker's.
    ///
    /// # Errors
    /// If another broker coordinates the group, or the coordinator refuses.
    pub(crate) async fn ask(&self, group: &str, request: Request) -> Result<Response, RequestError> {
        let place = self.place(group)?;
        // There is a coordinator beside every replica, also where another broker leads.
        if place.leader != self.broker {
            let message = format!("broker {} coordinates group \"{group}\"", place.leader);
            return Err(RequestError::new(ErrorCode::NotCoordinator, message));
        }
        let asks = self.running().get(&place.partition).cloned();
        ask(&asks.ok_or_else(beginning)?, request).await
    }

    /// Asks every coordinator of this broker, all at once; those that do not decide yet, or do not answer in time, are named
    /// instead.
    pub(crate) async fn ask_all(&self, request: &Request) -> (Vec<Response>, Vec<PartitionIndex>) {
        let image = self.metadata.image();
        let is_leading = |id: &TopicPartition| {
            image.partition(*id).is_some_and(|partition| partition.leader == Some(self.broker))
        };
        let running: Vec<_> = self.running().iter().map(|(id, asks)| (*id, asks.clone())).collect();
        let leading = running.into_iter().filter(|(id, _)| is_leading(id));
        let asked = leading.map(async |(id, asks)| {
            let answer = timeout(limits::GROUP_LIST_TIME_MAX, ask(&asks, request.clone())).await;
            answer.ok().and_then(Result::ok).ok_or(id.partition)
        });
        let (mut responses, mut silent) = (Vec::new(), Vec::new());
        for answer in join_all(asked).await {
            match answer {
                Ok(response) => responses.push(response),
                Err(partition) => silent.push(partition),
            }
        }
        silent.sort_unstable();
        (responses, silent)
    }

    fn running(&self) -> MutexGuard<'_, HashMap<TopicPartition, mpsc::Sender<Ask>>> {
        self.running.lock().expect("nobody panics while holding it")
    }

    /// Has a coordinator beside every replica of the internal topic that is held here; each finds out by itself when it is
    /// to decide.
    async fn keep(self, partitions: Partitions, mut stopping: Stopping) {
        let mut image = self.metadata.changes();
        let topics = watch::Sender::new(Arc::new(Topics::default()));
        let mut tasks = JoinSet::new();
        loop {
            let current = image.borrow_and_update().clone();
            if let Some(topic) = current.topic_named(OFFSETS_TOPIC).map(|topic| topic.id) {
                let known = Arc::new(Topics::from_image(&current));
                topics.send_if_modified(|topics| {
                    let is_other = *topics != known;
                    if is_other {
                        *topics = known;
                    }
                    is_other
                });
                for id in held(&current, topic, self.broker) {
                    if !self.running().contains_key(&id) {
                        let (asks, asked) = mpsc::channel(limits::GROUP_REQUESTS_MAX);
                        self.running().insert(id, asks);
                        let runner = run::Runner::new(id, asked, topics.subscribe());
                        let partitions = partitions.clone();
                        tasks.spawn(async move {
                            runner.run(partitions).await;
                            id
                        });
                    }
                }
            }
            tokio::select! {
                changed = image.changed() => if changed.is_err() { return },
                // What they hold is let go of with them.
                () = stopping.requested() => return tasks.shutdown().await,
                Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                    let id = ended.expect("a coordinator does not panic");
                    self.running().remove(&id);
                }
            }
        }
    }
}

fn held(image: &Image, topic: TopicId, broker: BrokerId) -> Vec<TopicPartition> {
    let Some(known) = image.topic(topic) else { return Vec::new() };
    let held = known.partitions.iter().filter(|partition| partition.replicas.contains(&broker));
    held.map(|partition| TopicPartition { topic, partition: partition.index }).collect()
}

async fn ask(asks: &mpsc::Sender<Ask>, request: Request) -> Result<Response, RequestError> {
    let (answer, answered) = oneshot::channel();
    asks.try_send(Ask { request, answer }).map_err(|refused| match refused {
        TrySendError::Full(_) => {
            RequestError::new(ErrorCode::CoordinatorLoading, "the coordinator has too much to do")
        }
        // Another is begun in its place.
        TrySendError::Closed(_) => beginning(),
    })?;
    match timeout(limits::GROUP_ANSWER_TIME_MAX, answered).await {
        Ok(Ok(answer)) => answer,
        // It ended without an answer: the partition is not held here any more, or the broker is to stop.
        Ok(Err(_)) => Err(GroupRefusal::NotCoordinator.into()),
        Err(_) => Err(GroupRefusal::Unknown.into()),
    }
}

/// What is answered where a coordinator is about to be.
fn beginning() -> RequestError {
    GroupRefusal::Loading.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replicas::tests::{SharedMetadata, broker};

    /// A member whose coordinator had not heard of the topic's creation was told that there is no such group, and ended.
    #[tokio::test]
    async fn a_broker_that_does_not_know_of_groups_yet_is_no_reason_to_give_up() {
        let metadata = SharedMetadata::new();
        metadata.register(broker(0, 1));
        let id = broker(0, 1).broker;
        let running = Arc::default();
        let coordinators = Coordinators { metadata: metadata.clone(), broker: id, running };
        let error = coordinators.place("billing").expect_err("there is no topic");
        assert!(error.code == ErrorCode::NotCoordinator && error.code.is_retriable(), "{error:?}");
        topic::ensure(&*metadata).await.expect("it can be made");
        assert_eq!(coordinators.place("billing").expect("it is there").leader, id);
    }
}
