//! Follows the metadata: what this broker is to own is opened, what changed is told to its shard, and what was deleted
//! is removed.
//!
//! Only a committed record removes anything, after a grace period: the deletion of a topic, by its id, or a partition's
//! replicas, by topic id and number, among which this broker is not any more. A directory or a partition that the metadata
//! merely does not mention is left alone.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quire_engine::controller::image::{DeletedTopic, Partition, Topic};
use quire_engine::controller::{Image, Request};
use quire_protocol::{BrokerId, PartitionIndex, TopicId, TopicPartition};
use quire_storage::remove_log;
use tokio::sync::{oneshot, watch};

use super::Store;
use super::assignment::Assignment;
use super::clock::Clock;
use super::event::Event;
use super::handle::{Held, Partitions, Shared};
use super::pool::{WayIn, shard_of};
use crate::controller::{Metadata, ProposeError};

/// How long to wait for space before it is tried again to keep that logs are held.
const HOLD_RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// A replica that is held elsewhere now stays at least so long.
const LEAVE_PAUSE_MIN: Duration = Duration::from_millis(100);

/// Brings what the shards own in line with the metadata.
#[derive(Debug)]
pub(super) struct Assigner {
    pub(super) broker: BrokerId,
    pub(super) store: Store,
    pub(super) ways_in: Vec<WayIn>,
    pub(super) partitions: Partitions,
    pub(super) metadata: Arc<dyn Metadata>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) deletion_grace: Duration,
    /// See [`super::ShardsOptions::registration`].
    pub(super) registration: watch::Receiver<Option<u64>>,
}

/// What partitions were told.
struct Assigned {
    image: Arc<Image>,
    registration: Option<u64>,
}

impl Assigned {
    /// Whether no broker came, left, registered or changed its state between the two.
    fn has_same_brokers(&self, before: &Assigned) -> bool {
        self.registration == before.registration && self.image.brokers().eq(before.image.brokers())
    }
}

/// Replicas that are here, and that by the metadata are to be elsewhere.
#[derive(Default)]
struct Leaving {
    /// Directories that were found at the start.
    found: HashSet<TopicPartition>,
    /// In their grace period.
    waiting: HashSet<TopicPartition>,
    /// Being closed, and their files removed.
    removing: HashSet<TopicPartition>,
}

/// Something that was spawned is done.
enum Done {
    /// Directories of replicas that the metadata has elsewhere.
    Found(Vec<TopicPartition>),
    /// A replica's grace period is over.
    Waited(TopicPartition),
    /// A replica's files are removed, or can not be for now.
    Left(TopicPartition),
    /// Something that nothing follows from.
    Other,
}

impl Assigner {
    /// Follows the metadata until it ends.
    pub(super) async fn follow(self) {
        let assigner = Arc::new(self);
        let mut changes = assigner.metadata.changes();
        let mut registration = assigner.registration.clone();
        let mut assigned: Option<Assigned> = None;
        let (mut removals, mut holdings) = (HashSet::new(), HashSet::new());
        // They end with this task.
        let mut under_way = tokio::task::JoinSet::new();
        let mut leaving = Leaving::default();
        under_way.spawn(assigner.clone().find_left());
        loop {
            let now = Assigned {
                image: changes.borrow_and_update().clone(),
                registration: *registration.borrow_and_update(),
            };
            assigner.assign(&now, assigned.as_ref(), &leaving);
            let image = now.image.clone();
            for topic in image.deleted_topics() {
                if topic.unconfirmed.contains(&assigner.broker) && removals.insert(topic.id) {
                    under_way.spawn(assigner.clone().remove(topic.clone()));
                }
            }
            for topic in image.topics().filter(|topic| !topic.is_all_held(assigner.broker)) {
                if assigner.replicated(topic).next().is_some()
                    && holdings.insert((topic.id, topic.partitions.len()))
                {
                    under_way.spawn(assigner.clone().hold(topic.clone()));
                }
            }
            for id in assigner.left(&now, &leaving) {
                leaving.waiting.insert(id);
                under_way.spawn(assigner.clone().wait_to_leave(id));
            }
            assigned = Some(now);
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                // One that will never change again is the last.
                Ok(()) = registration.changed() => {}
                Some(done) = under_way.join_next(), if !under_way.is_empty() => match done {
                    Ok(Done::Found(found)) => leaving.found.extend(found),
                    Ok(Done::Waited(id)) => {
                        leaving.waiting.remove(&id);
                        if assigned.as_ref().is_some_and(|now| is_over(assigner.broker, &now.image, now.registration, id)) {
                            leaving.found.remove(&id);
                            leaving.removing.insert(id);
                            under_way.spawn(assigner.clone().leave(id));
                        }
                    }
                    Ok(Done::Left(id)) => {
                        leaving.removing.remove(&id);
                    }
                    Ok(Done::Other) | Err(_) => {}
                },
            }
        }
    }

    /// Opens, reconfigures and closes partitions, without waiting for any of it. `before` is what was assigned last: a
    /// topic that is the same as then, while the brokers are, needs no look. Whose files are being removed is opened once
    /// they are.
    fn assign(&self, now: &Assigned, before: Option<&Assigned>, leaving: &Leaving) {
        let before = before.filter(|before| now.has_same_brokers(before));
        let held = self.partitions.held();
        let mut wanted = Held::with_capacity(held.len());
        let (mut opened, mut left) = (Vec::new(), Vec::new());
        for topic in now.image.topics() {
            let earlier = before.and_then(|before| before.image.topic(topic.id));
            let is_same = earlier.is_some_and(|earlier| Arc::ptr_eq(earlier, topic));
            for partition in self.replicated(topic) {
                let id = TopicPartition { topic: topic.id, partition: partition.index };
                if leaving.removing.contains(&id) {
                    continue;
                }
                let shared = match held.get(&id) {
                    Some(shared) => {
                        if !is_same {
                            self.configure(now, shared, topic, partition);
                        }
                        shared.clone()
                    }
                    None => {
                        let shared = self.share(now, id, topic, partition);
                        opened.push(shared.clone());
                        shared
                    }
                };
                wanted.insert(id, shared);
            }
        }
        // What is held and replicated here no more stays open, and idle, until its time is over.
        let stays = |id: &TopicPartition| !wanted.contains_key(id) && !leaving.removing.contains(id);
        for (id, shared) in held.iter().filter(|(id, _)| stays(id)) {
            let Some(topic) = now.image.topic(id.topic) else { continue };
            if let Some(partition) = topic.partition(id.partition) {
                self.configure(now, shared, topic, partition);
                left.push((*id, shared.clone()));
            }
        }
        wanted.extend(left);
        self.partitions.replace(wanted);
        for shared in opened {
            self.way_in(shared.id).direct.send(Event::Open(shared));
        }
    }

    fn share(&self, now: &Assigned, id: TopicPartition, topic: &Topic, partition: &Partition) -> Arc<Shared> {
        let requests = self.way_in(id).requests.clone();
        let is_held = topic.is_held(id.partition, self.broker);
        let assignment = Arc::new(self.assignment(now, partition));
        Arc::new(Shared::new(id, is_held, requests, assignment, topic.config.clone()))
    }

    fn assignment(&self, now: &Assigned, partition: &Partition) -> Assignment {
        Assignment::of(&now.image, partition, self.broker, now.registration)
    }

    fn replicated<'a>(&self, topic: &'a Topic) -> impl Iterator<Item = &'a Partition> {
        let broker = self.broker;
        let partitions = topic.partitions.iter().map(|partition| &**partition);
        partitions.filter(move |partition| partition.replicas.contains(&broker))
    }

    fn configure(&self, now: &Assigned, shared: &Shared, topic: &Topic, partition: &Partition) {
        let assignment = self.assignment(now, partition);
        if *shared.told() == assignment && *shared.config() == *topic.config {
            return;
        }
        let assignment = Arc::new(assignment);
        shared.tell(assignment.clone());
        self.way_in(shared.id).direct.send(Event::Configure {
            partition: shared.id,
            assignment,
            config: topic.config.clone(),
        });
    }

    fn way_in(&self, id: TopicPartition) -> &WayIn {
        &self.ways_in[shard_of(id, self.ways_in.len())]
    }

    /// Once the topic's logs are on disk, has it remembered that they are: one that is missing from then on is lost, and
    /// not begun anew. One that can not be opened keeps the others from nothing, and is told of once it can be.
    async fn hold(self: Arc<Self>, topic: Arc<Topic>) -> Done {
        self.hold_all(&topic).await;
        Done::Other
    }

    async fn hold_all(&self, topic: &Arc<Topic>) {
        let replicated = self.replicated(topic);
        let own: Vec<_> = replicated
            .map(|partition| TopicPartition { topic: topic.id, partition: partition.index })
            .collect();
        loop {
            let mut missing = BTreeSet::new();
            for id in &own {
                if !self.partitions.was_opened(*id).await {
                    missing.insert(id.partition);
                }
            }
            let absent = |id: &&TopicPartition| missing.contains(&id.partition);
            let absent = own.iter().filter(absent).map(|id| self.partitions.is_on_disk(*id));
            let mut on_disk: FuturesUnordered<_> = absent.collect();
            if !self.tell_held(topic, missing).await {
                return;
            }
            // None comes any more, if none is missing or all are closed.
            while !on_disk.next().await.is_some_and(|is_on_disk| is_on_disk) {
                if on_disk.is_empty() {
                    return;
                }
            }
        }
    }

    /// Has it remembered that the topic's logs are held here but for some; whether it is.
    async fn tell_held(&self, topic: &Topic, missing: BTreeSet<PartitionIndex>) -> bool {
        let partitions = topic.partitions.len() as u32;
        let request = Request::HoldTopic { id: topic.id, broker: self.broker, partitions, missing };
        loop {
            let error = match self.metadata.propose(request.clone()).await {
                Ok(_) => return true,
                Err(error) => error,
            };
            tracing::warn!(topic = %topic.name, %error, "that the topic's logs are held here is not kept");
            if error != ProposeError::DiskFull {
                return false;
            }
            tokio::time::sleep(HOLD_RETRY_INTERVAL).await;
        }
    }

    /// Removes all that this broker holds of a deleted topic, and confirms it.
    async fn remove(self: Arc<Self>, topic: DeletedTopic) -> Done {
        self.remove_deleted(&topic).await;
        Done::Other
    }

    async fn remove_deleted(&self, topic: &DeletedTopic) {
        if !self.let_go(topic).await {
            return;
        }
        let age = Duration::from_millis(
            self.clock.now().timestamp.0.saturating_sub(topic.deleted_at.0).max(0) as u64,
        );
        tokio::time::sleep(self.deletion_grace.saturating_sub(age)).await;
        let store = self.store.clone();
        let id = topic.id;
        match tokio::task::spawn_blocking(move || remove_topic(&store, id)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(topic = %topic.name, %error, "a deleted topic's files can not be removed; the next start tries again");
                return;
            }
            Err(_) => return,
        }
        let confirmation = Request::ConfirmTopicDeletion { id, broker: self.broker };
        match self.metadata.propose(confirmation).await {
            Ok(_) => tracing::info!(topic = %topic.name, "the deleted topic's files are removed"),
            Err(error) => {
                tracing::warn!(topic = %topic.name, %error, "the removal of a deleted topic is not confirmed; the next start does it")
            }
        }
    }

    /// The directories of partitions whose replicas, by the metadata, are all on other brokers.
    async fn find_left(self: Arc<Self>) -> Done {
        let image = self.metadata.image();
        let found = tokio::task::spawn_blocking(move || {
            let mut found = Vec::new();
            for topic in image.topics() {
                // None, or one that can not be read: nothing is removed.
                let names = self.store.disk.list(&self.store.topic_dir(topic.id)).unwrap_or_default();
                let numbers = names.iter().filter_map(|name| name.parse().ok().map(PartitionIndex));
                let is_left = |index: &PartitionIndex| {
                    topic
                        .partition(*index)
                        .is_some_and(|partition| !partition.replicas.contains(&self.broker))
                };
                let left = numbers.filter(is_left);
                found.extend(left.map(|partition| TopicPartition { topic: topic.id, partition }));
            }
            found
        });
        Done::Found(found.await.unwrap_or_default())
    }

    /// Replicas that are here and are to be elsewhere, and of which nothing is done yet.
    fn left(&self, now: &Assigned, leaving: &Leaving) -> Vec<TopicPartition> {
        let held = self.partitions.held();
        let here = held.keys().chain(&leaving.found).copied().collect::<HashSet<_>>();
        let is_new = |id: &TopicPartition| !leaving.waiting.contains(id) && !leaving.removing.contains(id);
        let is_elsewhere = |id: &TopicPartition| {
            now.image.partition(*id).is_some_and(|partition| !partition.replicas.contains(&self.broker))
        };
        here.into_iter().filter(|id| is_elsewhere(id) && is_new(id)).collect()
    }

    async fn wait_to_leave(self: Arc<Self>, id: TopicPartition) -> Done {
        tokio::time::sleep(self.deletion_grace.max(LEAVE_PAUSE_MIN)).await;
        Done::Waited(id)
    }

    /// Closes a replica that is elsewhere now, and removes its files.
    async fn leave(self: Arc<Self>, id: TopicPartition) -> Done {
        let (done, is_done) = oneshot::channel();
        self.way_in(id).direct.send(Event::Remove { partition: id, done });
        // A shard that is closing does not tell: the next start finds what is left.
        if is_done.await.is_err() {
            return Done::Left(id);
        }
        let store = self.store.clone();
        let removed =
            tokio::task::spawn_blocking(move || remove_log(&*store.disk, &store.partition_dir(id))).await;
        match removed {
            Ok(Ok(())) => {
                tracing::info!(partition = %id, "the partition is held by other brokers now: its files are removed");
            }
            Ok(Err(error)) => {
                tracing::error!(partition = %id, %error, "the files of a partition that is held by other brokers now can not be removed; the next start tries again");
            }
            Err(_) => {}
        }
        Done::Left(id)
    }

    /// Waits until no shard uses a file of the topic. Whether that came: a shard that is closing does not tell.
    async fn let_go(&self, topic: &DeletedTopic) -> bool {
        let mut let_go = Vec::new();
        for index in 0..topic.partitions {
            let partition = TopicPartition { topic: topic.id, partition: PartitionIndex(index) };
            let (done, is_done) = oneshot::channel();
            self.way_in(partition).direct.send(Event::Remove { partition, done });
            let_go.push(is_done);
        }
        for is_done in let_go {
            if is_done.await.is_err() {
                return false;
            }
        }
        true
    }
}

/// Whether a replica on this broker is of no use to anyone: the metadata, in which its registration is heard of, and which so
/// is not behind, names the partition, other brokers that hold it, and one of them that leads without loss.
pub fn is_over(broker: BrokerId, image: &Image, registration: Option<u64>, id: TopicPartition) -> bool {
    let own = image.broker(broker);
    let is_current = own.is_some_and(|own| Some(own.epoch) == registration && own.is_active());
    let partition = image.partition(id);
    is_current
        && partition.is_some_and(|partition| {
            !partition.replicas.contains(&broker)
                && !partition.is_recovering
                && partition.leader.is_some_and(|leader| partition.in_sync.contains(&leader))
        })
}

/// Removes every partition's log and then the topic's directory. Can be cut short anywhere and run again.
fn remove_topic(store: &Store, id: TopicId) -> io::Result<()> {
    let dir = store.topic_dir(id);
    let partitions = match store.disk.list(&dir) {
        Ok(partitions) => partitions,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for partition in partitions {
        remove_log(&*store.disk, &dir.join(partition))?;
    }
    store.disk.remove_dir(&dir)?;
    store.disk.sync_dir(&store.dir)
}

#[cfg(test)]
mod tests {
    use quire_engine::controller::{CreateTopic, Reassign, RegisterBroker};
    use quire_protocol::BrokerId;

    use super::*;
    use crate::replicas::tests::SharedMetadata;

    /// The metadata that a broker has may be behind, or its partition without a leader: then nothing is removed.
    #[test]
    fn a_replica_goes_only_by_metadata_that_names_others_who_have_it() {
        let metadata = SharedMetadata::new();
        let ask = |request| metadata.ask(request).expect("it can be");
        for broker in [0, 1, 2].map(BrokerId) {
            let registration = RegisterBroker {
                cluster_id: "c".to_owned(),
                broker,
                incarnation: [1; 16],
                ..RegisterBroker::default()
            };
            ask(Request::RegisterBroker(registration));
            ask(Request::UnfenceBroker { broker, epoch: 1 });
        }
        let create =
            CreateTopic { name: "t".into(), partitions: 1, replicas: Some(1), ..CreateTopic::default() };
        ask(Request::CreateTopic(create));
        let topic = metadata.image().topic_named("t").expect("created").clone();
        let id = TopicPartition { topic: topic.id, partition: PartitionIndex(0) };
        let holder = topic.partitions[0].replicas[0];
        let other = [0, 1, 2].map(BrokerId).into_iter().find(|id| *id != holder).expect("three are there");
        let over = |broker, registration| is_over(broker, &metadata.image(), registration, id);
        assert!(over(other, Some(1)));
        assert!(!over(holder, Some(1)), "it holds it");
        assert!(!over(other, None) && !over(other, Some(2)), "the image may be of before its start");
        ask(Request::FenceBroker { broker: other, epoch: 1 });
        assert!(!over(other, Some(1)), "nobody says that its metadata is as new as any");
        ask(Request::UnfenceBroker { broker: other, epoch: 1 });
        ask(Request::FenceBroker { broker: holder, epoch: 1 });
        assert!(!over(other, Some(1)), "nobody leads");
        ask(Request::UnfenceBroker { broker: holder, epoch: 1 });
        assert!(over(other, Some(1)));
        ask(Request::Reassign(Reassign { partition: id, replicas: Some(vec![other]) }));
        assert!(!over(other, Some(1)), "it is to hold it");
        let unknown = TopicPartition { partition: PartitionIndex(1), ..id };
        assert!(
            !is_over(other, &metadata.image(), Some(1), unknown),
            "what the metadata does not mention is left alone"
        );
    }
}
