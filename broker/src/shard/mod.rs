//! Shards: threads that own partitions outright.
//!
//! A shard takes every event that is ready, applies them, writes each partition's batches with one call, hands what
//! waits for the disk to the flushers, and sends the answers whose turn has come. Many producers on one partition thus
//! share a write and a sync without any timer, and nothing a shard owns needs a lock.
//!
//! `event` lists what can happen, `run` picks the next events, [`Shard`] applies them. `partition` is one partition,
//! `core` its log, `leading` and `following` the parts that this broker can play in it, `waiters` its unanswered batches;
//! `replication` is what goes to and comes from other brokers, `link` where it is left for them, `flush` the threads that
//! wait for the disk, `scrubbing` what they read again to find damage. `handle` is what everybody else sees; `assign` follows the metadata, of which `assignment` is what
//! a partition has to know; `pool` starts and stops it all.

mod assign;
mod assignment;
mod clock;
mod compacting;
mod core;
mod event;
mod flush;
mod following;
mod handle;
mod leading;
mod link;
mod pace;
mod partition;
mod pool;
mod producers;
mod replication;
mod run;
mod scrubbing;
#[cfg(test)]
mod tests;
mod waiters;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quire_engine::Time;
use quire_engine::replication::Progress;
use quire_protocol::{BrokerId, ErrorCode, TopicId, TopicPartition};
use quire_storage::disk::Disk;
use quire_storage::{CloseError, OpenError, RecoveryReport};
use tokio::sync::oneshot;

use crate::error::{RequestError, describe_damage};
use crate::metrics::ShardMetrics;
use compacting::Compacting;
use partition::{Opened, Partition};
use replication::Replication;
use scrubbing::Scrubbing;

pub use assign::is_over;
pub use assignment::Assignment;
pub use clock::{Clock, Now, SystemClock};
pub use core::Limits;
pub use event::{Closed, Event, Fetched, Outcome, Outgoing, ProduceReply, ProduceRequest, SlotProgress};
pub use flush::{OpenedLog, Task, TaskDone};
pub(crate) use handle::not_leader;
pub use handle::{PartitionHandle, PartitionState, Partitions, Shared, Standing, Watermarks};
pub use link::{Downlink, FollowAnswered, ForFollower, Uplink};
pub(crate) use pool::Router;
pub use pool::{Shards, ShardsOptions};
pub use scrubbing::{ScrubDone, ScrubOptions, ScrubStep};

/// Where a broker's partitions lie.
#[derive(Debug, Clone)]
pub struct Store {
    /// The file system.
    pub disk: Arc<dyn Disk>,
    /// `<data>/topics`
    pub dir: PathBuf,
}

impl Store {
    fn topic_dir(&self, topic: TopicId) -> PathBuf {
        self.dir.join(topic.to_string())
    }

    fn partition_dir(&self, id: TopicPartition) -> PathBuf {
        self.topic_dir(id.topic).join(id.partition.to_string())
    }
}

/// The state of one shard; synchronous, and without a clock of its own.
#[derive(Debug)]
pub struct Shard {
    broker: BrokerId,
    store: Store,
    limits: Limits,
    slots: BTreeMap<TopicPartition, Slot>,
    replication: Replication,
    /// Partitions to be looked at before the round ends.
    touched: Vec<TopicPartition>,
    /// When partitions want to be looked at, whatever happens.
    deadlines: BTreeSet<(Time, TopicPartition)>,
    retention_interval: Duration,
    retention_due: Time,
    scrubbing: Option<Scrubbing>,
    compacting: Compacting,
    closing: Option<Closing>,
    metrics: Arc<ShardMetrics>,
}

#[derive(Debug)]
enum Slot {
    Opening {
        shared: Arc<handle::Shared>,
        end: Option<End>,
    },
    Open {
        partition: Box<Partition>,
        end: Option<End>,
    },
    /// Its log is with a flusher, to be closed.
    Closing {
        shared: Arc<handle::Shared>,
    },
    /// Its log could not be opened.
    Failed {
        shared: Arc<handle::Shared>,
        mend: Mend,
    },
}

/// What may help a partition whose log could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mend {
    /// Time: the operating system refused, for a full disk or a lack of descriptors.
    Retry,
    /// Another replica, once nobody counts on this one: what is there is of no use to anyone.
    Replace,
    /// The operator: the files of another log are there.
    Nothing,
}

/// Why a partition is to be let go of.
#[derive(Debug)]
enum End {
    /// Its topic was deleted, or others hold it now, or first this and then that; to be told when no file is in use.
    Remove(Vec<oneshot::Sender<()>>),
    /// The shard closes.
    Close,
}

#[derive(Debug)]
struct Closing {
    done: Option<oneshot::Sender<Closed>>,
    closed: Closed,
}

impl Shard {
    /// A shard that owns nothing yet.
    pub fn new(
        now: Now,
        broker: BrokerId,
        store: Store,
        retention_interval: Duration,
        limits: Limits,
        metrics: Arc<ShardMetrics>,
    ) -> Shard {
        Shard {
            broker,
            store,
            limits,
            slots: BTreeMap::new(),
            replication: Replication::new(limits.fetch_bytes),
            touched: Vec::new(),
            deadlines: BTreeSet::new(),
            retention_interval,
            retention_due: now.time + retention_interval,
            scrubbing: None,
            compacting: Compacting::default(),
            closing: None,
            metrics,
        }
    }

    /// Applies one event. Appends, jobs and answers follow at the end of the round.
    pub fn apply(&mut self, now: Now, event: Event, tasks: &mut Vec<(TopicPartition, Task)>) {
        match event {
            Event::Produce(id, request) => self.produce(id, request),
            Event::Done(id, done) => self.done(now, id, done, tasks),
            Event::Damaged { partition, what } => {
                if let Some(Slot::Open { partition: open, .. }) = self.slots.get_mut(&partition) {
                    open.damaged(now, what);
                    self.touch(partition);
                }
            }
            Event::Scrubbed(done) => self.scrubbed(now, done),
            Event::Open(shared) => self.open(shared, tasks),
            Event::Configure { partition, assignment, config } => match self.slots.get_mut(&partition) {
                Some(Slot::Open { partition: open, end: None }) => {
                    open.configure(now, assignment, config);
                    self.touch(partition);
                    self.relink(now, partition);
                }
                Some(Slot::Open { .. }) | None => {}
                Some(Slot::Failed { shared, .. }) => {
                    shared.configure(assignment, config);
                    self.mend(partition, tasks);
                }
                Some(Slot::Opening { shared, .. } | Slot::Closing { shared }) => {
                    shared.configure(assignment, config);
                }
            },
            Event::Follow { .. }
            | Event::Unfollow { .. }
            | Event::Progress { .. }
            | Event::LinkUp { .. }
            | Event::LinkDown { .. }
            | Event::Told { .. }
            | Event::ProposalAnswered { .. } => self.replicate(now, event),
            Event::Remove { partition, done } => self.end(partition, End::Remove(vec![done])),
            Event::Close { done } => self.close(done),
        }
    }

    /// The first half of a round's end: appends what was gathered and hands out what waits for the disk, so that the
    /// disk is at work before answers are sent.
    pub fn write(&mut self, now: Now, tasks: &mut Vec<(TopicPartition, Task)>) {
        self.take_due(now, tasks);
        let mut jobs = Vec::new();
        for at in 0..self.touched.len() {
            let id = self.touched[at];
            let Some(Slot::Open { partition, end }) = self.slots.get_mut(&id) else { continue };
            match end {
                None => partition.write(now, &mut jobs),
                Some(End::Close) => partition.wind_down(now, &mut jobs),
                Some(End::Remove(_)) => {}
            }
            // What it waits for as a leader or follower comes to nothing any more, and is not looked for again and again.
            let due = end.is_none().then(|| partition.deadline()).flatten();
            if partition.scheduled != due {
                if let Some(earlier) = std::mem::replace(&mut partition.scheduled, due) {
                    self.deadlines.remove(&(earlier, id));
                }
                self.deadlines.extend(due.map(|due| (due, id)));
            }
            tasks.extend(jobs.drain(..).map(|job| (id, job)));
            self.send_wanted(id);
        }
    }

    /// The second half of a round's end: sends answers, and lets go of partitions that are done.
    pub fn answer(&mut self, tasks: &mut Vec<(TopicPartition, Task)>) {
        for id in std::mem::take(&mut self.touched) {
            let Some(Slot::Open { partition, end }) = self.slots.get_mut(&id) else { continue };
            partition.is_touched = false;
            partition.answer();
            if end.is_some() && partition.is_idle() {
                self.let_go(id, tasks);
            }
        }
        self.finish_close();
    }

    /// When the next round has to be, if no event comes before.
    pub fn deadline(&self) -> Option<Time> {
        let first = self.deadlines.first().map(|(due, _)| *due);
        let scrub = self.scrubbing.as_ref().and_then(Scrubbing::due);
        [first, scrub, Some(self.retention_due)].into_iter().flatten().min()
    }

    /// What is counted.
    pub(crate) fn metrics(&self) -> &ShardMetrics {
        &self.metrics
    }

    /// How far a partition's log is, if it is open.
    pub fn ends(&self, id: TopicPartition) -> Option<Progress> {
        match self.slots.get(&id) {
            Some(Slot::Open { partition, .. }) => Some(partition.ends()),
            _ => None,
        }
    }

    /// Whether it was told to close, and has.
    pub fn is_closed(&self) -> bool {
        self.closing.as_ref().is_some_and(|closing| closing.done.is_none())
    }

    fn touch(&mut self, id: TopicPartition) {
        if let Some(Slot::Open { partition, .. }) = self.slots.get_mut(&id)
            && !std::mem::replace(&mut partition.is_touched, true)
        {
            self.touched.push(id);
        }
    }

    fn produce(&mut self, id: TopicPartition, request: ProduceRequest) {
        let Some(Slot::Open { partition, .. }) = self.slots.get_mut(&id) else {
            // Let go of since the handle was looked up. A stream that is gone needs no answer.
            let error = match self.closing {
                Some(_) => RequestError::shutting_down(),
                None => deleted(),
            };
            let _ = request.reply.try_send(Err(error));
            return;
        };
        partition.produce(request);
        if !std::mem::replace(&mut partition.is_touched, true) {
            self.touched.push(id);
        }
    }

    fn open(&mut self, shared: Arc<handle::Shared>, tasks: &mut Vec<(TopicPartition, Task)>) {
        let id = shared.id;
        if self.closing.is_some() {
            shared.publish_state(PartitionState::Closed);
            return;
        }
        tasks.push((id, open_task(&self.store, &shared)));
        let earlier = self.slots.insert(id, Slot::Opening { shared, end: None });
        assert!(earlier.is_none(), "a partition is assigned once");
    }

    fn done(
        &mut self,
        now: Now,
        id: TopicPartition,
        done: TaskDone,
        tasks: &mut Vec<(TopicPartition, Task)>,
    ) {
        match done {
            TaskDone::Job(done) => {
                if let Some(Slot::Open { partition, .. }) = self.slots.get_mut(&id) {
                    partition.job_done(now, done);
                }
                self.touch(id);
                self.compact_next(now);
                self.relink(now, id);
            }
            TaskDone::Opened(opened) => self.opened(now, id, *opened, tasks),
            TaskDone::Closed(result) => self.log_closed(id, &result),
        }
    }

    fn opened(
        &mut self,
        now: Now,
        id: TopicPartition,
        opened: Result<OpenedLog, OpenError>,
        tasks: &mut Vec<(TopicPartition, Task)>,
    ) {
        let Some(Slot::Opening { shared, end }) = self.slots.remove(&id) else {
            unreachable!("only a partition being opened has its log opened");
        };
        let slot = match opened {
            Ok(OpenedLog { log, report, producers }) => {
                report_recovery(id, &report);
                let is_suspect = report.is_suspect || report.corruption.is_some();
                if is_suspect {
                    shared.mark_suspect();
                }
                let (broker, limits, metrics) = (self.broker, self.limits, self.metrics.clone());
                let opened = Opened { log, producers, is_suspect };
                let mut partition = Box::new(Partition::open(now, broker, limits, shared, opened, metrics));
                if let Some(end) = &end {
                    partition.stop(refusal(end));
                }
                Slot::Open { partition, end }
            }
            Err(error) => {
                let what = error.to_string();
                let (failed, mend) = match error {
                    OpenError::Io { .. } => (PartitionState::Failed { what }, Mend::Retry),
                    OpenError::Missing { .. }
                    | OpenError::ManifestMissing { .. }
                    | OpenError::ManifestDamaged { .. } => (PartitionState::Lost { what }, Mend::Replace),
                    OpenError::WrongPartition { .. } => (PartitionState::Lost { what }, Mend::Nothing),
                };
                // Said once, however often it is tried again.
                if *shared.state() != failed {
                    tracing::error!(partition = %id, %error, ?mend, "the partition's log can not be opened");
                    shared.publish_state(failed);
                }
                match end {
                    None => Slot::Failed { shared, mend },
                    Some(end) => {
                        confirm(end, &shared);
                        return;
                    }
                }
            }
        };
        self.slots.insert(id, slot);
        // What it waits for may have come while it was tried to be opened.
        self.mend(id, tasks);
        self.touch(id);
        self.relink(now, id);
    }

    /// Does what can be done about a log that could not be opened. While the controller counts on it, it is told not to;
    /// what is of no use to anyone is begun anew after that, from a leader that has its records.
    fn mend(&mut self, id: TopicPartition, tasks: &mut Vec<(TopicPartition, Task)>) {
        let Some(Slot::Failed { shared, mend }) = self.slots.get(&id) else { return };
        let (shared, mend) = (shared.clone(), *mend);
        let assignment = shared.assignment();
        // There is a leader only as far as the metadata knows of this registration.
        if assignment.leader.is_none() || assignment.membership.replicas.len() < 2 {
            return;
        }
        if assignment.is_counted {
            self.replication.distrust(id);
        } else if mend == Mend::Replace {
            tracing::warn!(partition = %id, "what is left of the log is removed, and it is fetched anew");
            let (disk, dir) = (self.store.disk.clone(), self.store.partition_dir(id));
            let options = core::log_options(&shared.config());
            tasks.push((id, Task::Replace { disk, dir, partition: id, options }));
            self.slots.insert(id, Slot::Opening { shared, end: None });
        }
    }

    /// Begins to let go of a partition. One that is let go of already stays with its first reason: a removal that comes
    /// while the shard closes is not confirmed, and the next start does it.
    fn end(&mut self, id: TopicPartition, ending: End) {
        match self.slots.get_mut(&id) {
            Some(Slot::Open { end: Some(first), .. } | Slot::Opening { end: Some(first), .. }) => {
                if let (End::Remove(told), End::Remove(more)) = (first, ending) {
                    told.extend(more);
                }
            }
            Some(Slot::Open { partition, end }) => {
                partition.stop(refusal(&ending));
                if let End::Remove(_) = ending {
                    partition.abandon(&deleted());
                    partition.shared().publish_state(PartitionState::Closed);
                }
                *end = Some(ending);
                self.touch(id);
                self.unlink(id);
            }
            Some(Slot::Opening { end, .. }) => *end = Some(ending),
            Some(Slot::Failed { shared, .. }) => {
                confirm(ending, shared);
                self.slots.remove(&id);
            }
            Some(Slot::Closing { .. }) => {}
            None => confirm_unheld(ending),
        }
    }

    /// Parts with a partition that has nothing under way.
    fn let_go(&mut self, id: TopicPartition, tasks: &mut Vec<(TopicPartition, Task)>) {
        let Some(Slot::Open { mut partition, end: Some(end) }) = self.slots.remove(&id) else {
            unreachable!("only an open partition that is to end is let go of");
        };
        if let Some(scheduled) = partition.scheduled {
            self.deadlines.remove(&(scheduled, id));
        }
        partition.abandon(&refusal(&end));
        let shared = partition.shared().clone();
        match end {
            End::Remove(_) => confirm(end, &shared),
            End::Close => {
                tasks.push((id, Task::Close(Box::new(partition.into_log()))));
                self.slots.insert(id, Slot::Closing { shared });
            }
        }
    }

    fn close(&mut self, done: oneshot::Sender<Closed>) {
        let held: Vec<TopicPartition> = self.slots.keys().copied().collect();
        let is_to_close = |slot: &&Slot| match slot {
            Slot::Opening { end, .. } | Slot::Open { end, .. } => end.is_none(),
            Slot::Closing { .. } | Slot::Failed { .. } => false,
        };
        let partitions = self.slots.values().filter(is_to_close).count();
        self.closing = Some(Closing { done: Some(done), closed: Closed { partitions, clean: 0 } });
        for id in held {
            self.end(id, End::Close);
        }
    }

    fn log_closed(&mut self, id: TopicPartition, result: &Result<(), CloseError>) {
        if let Some(Slot::Closing { shared }) = self.slots.remove(&id) {
            shared.publish_state(PartitionState::Closed);
        }
        match (result, &mut self.closing) {
            (Ok(()), Some(closing)) => closing.closed.clean += 1,
            (Ok(()), None) => {}
            (Err(error), _) => {
                tracing::warn!(partition = %id, %error, "the log was not closed cleanly and is recovered at the next start");
            }
        }
    }

    fn finish_close(&mut self) {
        let Some(closing) = &mut self.closing else { return };
        if !self.slots.is_empty() {
            return;
        }
        if let Some(done) = closing.done.take() {
            // Whoever asked may have given up waiting; the logs are closed all the same.
            let _ = done.send(closing.closed);
        }
    }

    /// Touches the partitions whose deadline has come, and tries again to open what could not be.
    fn take_due(&mut self, now: Now, tasks: &mut Vec<(TopicPartition, Task)>) {
        while let Some((due, id)) = self.deadlines.first().copied().filter(|(due, _)| *due <= now.time) {
            self.deadlines.remove(&(due, id));
            if let Some(Slot::Open { partition, .. }) = self.slots.get_mut(&id) {
                partition.scheduled = None;
            }
            self.touch(id);
        }
        if self.retention_due > now.time {
            return;
        }
        self.retention_due = now.time + self.retention_interval;
        self.compacting.begin_round(self.slots.keys().copied());
        for (id, slot) in &mut self.slots {
            match slot {
                Slot::Open { partition, end: None } => {
                    partition.retain(now);
                    if !std::mem::replace(&mut partition.is_touched, true) {
                        self.touched.push(*id);
                    }
                }
                Slot::Failed { shared, mend: Mend::Retry } => {
                    tasks.push((*id, open_task(&self.store, shared)));
                    *slot = Slot::Opening { shared: shared.clone(), end: None };
                }
                Slot::Open { .. } | Slot::Opening { .. } | Slot::Closing { .. } | Slot::Failed { .. } => {}
            }
        }
        self.compact_next(now);
    }
}

fn open_task(store: &Store, shared: &handle::Shared) -> Task {
    Task::Open {
        disk: store.disk.clone(),
        dir: store.partition_dir(shared.id),
        partition: shared.id,
        is_held: shared.is_held,
        options: core::log_options(&shared.config()),
    }
}

fn deleted() -> RequestError {
    RequestError::new(ErrorCode::UnknownTopic, "the topic was deleted")
}

fn refusal(end: &End) -> RequestError {
    match end {
        End::Remove(_) => deleted(),
        End::Close => RequestError::shutting_down(),
    }
}

/// Tells that a partition is let go of.
fn confirm(end: End, shared: &handle::Shared) {
    shared.publish_state(PartitionState::Closed);
    confirm_unheld(end);
}

fn confirm_unheld(end: End) {
    if let End::Remove(told) = end {
        for done in told {
            // The assigner waits for it, unless the broker is shutting down.
            let _ = done.send(());
        }
    }
}

fn report_recovery(id: TopicPartition, report: &RecoveryReport) {
    if let Some(damage) = &report.corruption {
        let damage = describe_damage(damage);
        tracing::error!(partition = %id, damage, "the log is damaged: what is intact can be read, nothing is appended");
    }
    if let Some(torn) = &report.torn_tail {
        tracing::warn!(
            partition = %id, offset = %torn.offset, bytes = torn.bytes, why = torn.why,
            known_synced_to = %torn.synced_end, suspicion = torn.suspicion,
            "the log's end is not intact after an unclean stop and is cut: an interrupted write leaves that, and so does \
             damage to records that were acknowledged"
        );
    }
    if report.is_suspect {
        let why = report.suspicion;
        tracing::warn!(partition = %id, %why, "this replica is not to be trusted until it has caught up with a leader");
    }
    if !report.was_clean {
        let (frames, bytes) = (report.frames_scanned, report.bytes_scanned);
        tracing::info!(partition = %id, frames, bytes, "the log was recovered");
    }
}
