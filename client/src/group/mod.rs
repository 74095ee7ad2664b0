//! Consuming as a member of a group: the group's partitions are spread over its members, and what was processed is
//! committed, so that whoever reads on begins there.
//!
//! ```text
//!  coordinator ◄── heartbeats, commits ── task (membership) ── release, take, lose ──► GroupConsumer ─► Stream
//!                                              ▲                                            │
//!                                              └──────── released, taken, commit ◄──────────┘
//! ```

mod builder;
mod busy;
mod commits;
pub(crate) mod coordinator;
pub(crate) mod membership;
mod preparing;
mod task;

pub use builder::{Assignor, GroupConsumerBuilder};
pub(crate) use task::committed_offset;

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_core::Stream;
use quire_protocol::{Offset, PartitionIndex, TopicPartition};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Sleep;

use crate::consumer::{Assigned, ConsumeError, ConsumedRecord};
use crate::error::Error;

use builder::{Listener, listed};
use busy::Busy;
use commits::Offsets;
use coordinator::Coordinator;
use task::{Command, Event};

/// A partition that a member was assigned, or is assigned no longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupPartition {
    /// The topic.
    pub topic: Arc<str>,
    /// The topic's id and the partition's number.
    pub id: TopicPartition,
    /// Whether it went without being asked for: the member was fenced, and others may have read it already.
    pub is_lost: bool,
}

/// How far a member is in one of its partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupLag {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: PartitionIndex,
    /// The offset of the next record to be handed out.
    pub position: Offset,
    /// The first offset not yet committed by the brokers, as last heard.
    pub high_watermark: Offset,
    /// Records between both.
    pub records: u64,
    /// Whether it is paused.
    pub is_paused: bool,
}

/// Reads what its group assigns to it; a [`Stream`] of records that does not end. Made by
/// [`GroupConsumerBuilder::build`].
///
/// # Delivery
/// Every record is delivered **at least once** to some member of the group. A record counts as processed when the next one
/// is asked for, and never before; what was processed is committed every commit interval, when partitions are given up,
/// and on leaving. Records come twice
///
/// - after a crash, and when a member is fenced (silent for its session, too slow to give up partitions, or longer busy
///   with a record than its poll interval): those since the last commit, and the one in hand;
/// - after [`GroupConsumer::leave`] or a drop: the one in hand, unless it was committed;
/// - with manual commits, whenever a partition changes hands: those since the last commit;
/// - after a seek back, by this consumer or by `quire group reset`.
///
/// Whoever needs each record's effect once keeps the offset with it, and ignores what is not above.
///
/// # Errors
/// A partition that can not be read gives an error; others go on. One whose leader was away for the whole retry timeout gives
/// one each time, and is tried on. Where retention removed records before they were read, the error says so and reading goes on
/// behind the gap. An error that ends the membership is given once and then again.
pub struct GroupConsumer {
    member: Arc<str>,
    coordinator: Arc<Coordinator>,
    assigned: Assigned,
    events: mpsc::UnboundedReceiver<Event>,
    /// `None` once it has left.
    commands: Option<mpsc::UnboundedSender<Command>>,
    busy: Arc<Busy>,
    /// Wakes whoever waits for a record, so that it polls again: one that is polled no more waits no more.
    poll_again: Again,
    /// When to commit next; `None` is when told to.
    commit_again: Option<Again>,
    /// Processed and not yet handed over to be committed.
    processed: Offsets,
    /// The record last handed out: the offset after it.
    in_hand: Option<(TopicPartition, Offset)>,
    on_assigned: Option<Listener>,
    on_revoked: Option<Listener>,
    failure: Option<Error>,
}

impl std::fmt::Debug for GroupConsumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupConsumer")
            .field("group", &self.coordinator.group())
            .field("member", &self.member)
            .field("assigned", &self.assigned.ids().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl GroupConsumer {
    /// The next record.
    ///
    /// Cancel-safe: no record is lost when the future is dropped.
    ///
    /// # Errors
    /// See [`GroupConsumer`].
    pub async fn next(&mut self) -> Result<ConsumedRecord, ConsumeError> {
        std::future::poll_fn(|context| self.poll_record(context)).await
    }

    /// The group's name.
    pub fn group(&self) -> &str {
        self.coordinator.group()
    }

    /// This member's id, as the group's description shows it.
    pub fn member(&self) -> &str {
        &self.member
    }

    /// The partitions it reads.
    pub fn assignment(&self) -> Vec<GroupPartition> {
        let of = |id| self.assigned.topic_of(id).map(|topic| listed(id, &topic.name, false));
        self.assigned.ids().filter_map(of).collect()
    }

    /// How far it is behind, for each of its partitions.
    pub fn lag(&self) -> Vec<GroupLag> {
        let standings = self.assigned.standings().into_iter();
        standings
            .map(|standing| GroupLag {
                topic: standing.topic,
                partition: standing.id.partition,
                position: standing.position,
                high_watermark: standing.high_watermark,
                records: standing.high_watermark.since(standing.position),
                is_paused: standing.is_paused,
            })
            .collect()
    }

    /// Has everything committed that was handed out so far, the record in hand included, and does not wait for it.
    pub fn commit(&mut self) {
        let offsets = self.take_processed();
        self.command(Command::Commit(offsets, None));
    }

    /// As [`GroupConsumer::commit`], and returns once it is so: durable as an acknowledged record.
    ///
    /// # Errors
    /// If it could not be committed: the member was fenced, or the coordinator refused. Also if that happened to an earlier
    /// commit that nobody waited for, and nothing later of its partition is committed.
    pub async fn commit_sync(&mut self) -> Result<(), Error> {
        let offsets = self.take_processed();
        let (reply, replied) = oneshot::channel();
        self.command(Command::Commit(offsets, Some(reply)));
        replied.await.unwrap_or_else(|_| Err(self.failure.clone().unwrap_or_else(has_left)))
    }

    /// Hands out nothing of this partition until it is resumed; it stays this member's. `false` if it is not.
    pub fn pause(&mut self, topic: &str, partition: PartitionIndex) -> bool {
        self.assigned.id_of(topic, partition).is_some_and(|id| self.assigned.pause(id))
    }

    /// Goes on after [`GroupConsumer::pause`]. `false` if the partition is not this member's.
    pub fn resume(&mut self, topic: &str, partition: PartitionIndex) -> bool {
        self.assigned.id_of(topic, partition).is_some_and(|id| self.assigned.resume(id))
    }

    /// Goes on at this offset. `false` if the partition is not this member's. A record of it that is in hand does not count as
    /// processed: call [`GroupConsumer::commit`] before if it was.
    ///
    /// What is committed never goes back: after a seek backwards, records up to what was committed before come again, and
    /// commits count once they pass that. `quire group reset` moves a group for good.
    pub fn seek(&mut self, topic: &str, partition: PartitionIndex, offset: Offset) -> bool {
        let Some(id) = self.assigned.id_of(topic, partition) else { return false };
        // It comes again, or is passed over: it was not asked to be taken for processed.
        self.in_hand.take_if(|(in_hand, _)| *in_hand == id);
        self.assigned.seek(id, offset)
    }

    /// Commits what was processed (not the record in hand: call [`GroupConsumer::commit`] before if it was), unless commits
    /// are manual, and leaves the group, so that others take over at once.
    ///
    /// # Errors
    /// If something that was to be committed was not, which is tried for a few seconds; or if the coordinator did not hear of
    /// the leaving: then the group waits for the session to end.
    pub async fn leave(mut self) -> Result<(), Error> {
        self.in_hand = None;
        let offsets = self.unhanded();
        let (reply, replied) = oneshot::channel();
        self.command(Command::Leave(offsets, reply));
        self.commands = None;
        replied.await.unwrap_or(Ok(()))
    }

    /// Next poll of the stream, and of everything that comes with it.
    fn poll_record(&mut self, context: &mut Context<'_>) -> Poll<Result<ConsumedRecord, ConsumeError>> {
        self.settle();
        let polled = self.poll_assigned(context);
        self.busy.polled(Instant::now());
        if polled.is_pending() {
            self.poll_again.poll(context);
        }
        polled
    }

    fn poll_assigned(&mut self, context: &mut Context<'_>) -> Poll<Result<ConsumedRecord, ConsumeError>> {
        while let Poll::Ready(Some(event)) = self.events.poll_recv(context) {
            self.follow(event);
        }
        if let Some(failure) = &self.failure {
            return Poll::Ready(Err(failure.clone().into()));
        }
        self.poll_commit(context);
        match self.assigned.poll_next(context) {
            Poll::Ready(Ok((id, record))) => {
                self.in_hand = Some((id, Offset(record.offset.0 + 1)));
                Poll::Ready(Ok(record))
            }
            Poll::Ready(Err(error)) => {
                self.go_on_behind(&error);
                Poll::Ready(Err(error))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// The record in hand is processed.
    fn settle(&mut self) {
        if let Some((id, next)) = self.in_hand.take() {
            self.processed.insert(id, next);
        }
    }

    /// What is to be committed, the record in hand included.
    fn take_processed(&mut self) -> Offsets {
        self.settle();
        std::mem::take(&mut self.processed)
    }

    /// What is to be committed without being asked to.
    fn unhanded(&mut self) -> Offsets {
        match self.commit_again {
            Some(_) => std::mem::take(&mut self.processed),
            None => Offsets::new(),
        }
    }

    fn poll_commit(&mut self, context: &mut Context<'_>) {
        let Some(again) = &mut self.commit_again else { return };
        if again.poll(context) && !self.processed.is_empty() {
            let offsets = std::mem::take(&mut self.processed);
            self.command(Command::Commit(offsets, None));
        }
    }

    fn follow(&mut self, event: Event) {
        match event {
            Event::Release(life, ids) => {
                self.revoke(&ids, false);
                let is_of_them = |id: &TopicPartition| ids.contains(id);
                let offsets = match self.commit_again {
                    Some(_) => self.processed.extract_if(.., |id, _| is_of_them(id)).collect(),
                    None => Offsets::new(),
                };
                self.processed.retain(|id, _| !is_of_them(id));
                self.command(Command::Released(life, ids, offsets));
            }
            Event::Take(life, additions) => {
                let ids = additions.iter().map(crate::consumer::Addition::id).collect();
                self.assigned.add(&additions);
                if let Some(listener) = &self.on_assigned {
                    let taken = additions.iter().map(|new| listed(new.id(), &new.topic.name, false));
                    listener(&taken.collect::<Vec<_>>());
                }
                self.command(Command::Taken(life, ids));
            }
            Event::Lose(ids) => {
                self.processed.retain(|id, _| !ids.contains(id));
                self.revoke(&ids, true);
            }
            Event::Fail(error) => self.failure = Some(error),
        }
    }

    fn revoke(&mut self, ids: &BTreeSet<TopicPartition>, is_lost: bool) {
        let of =
            |id: &TopicPartition| self.assigned.topic_of(*id).map(|topic| listed(*id, &topic.name, is_lost));
        let revoked: Vec<_> = ids.iter().filter_map(of).collect();
        for id in ids {
            self.assigned.remove(*id);
        }
        if let (false, Some(listener)) = (revoked.is_empty(), &self.on_revoked) {
            listener(&revoked);
        }
    }

    /// Retention went ahead of the group, or the log ends before what it has committed: it was told, and reading goes on.
    fn go_on_behind(&mut self, error: &ConsumeError) {
        if let ConsumeError::OffsetOutOfRange { topic, partition, offset, log_start, high_watermark } = error
            && let Some(id) = self.assigned.id_of(topic, *partition)
        {
            self.assigned.seek(id, if offset < log_start { *log_start } else { *high_watermark });
        }
    }

    fn command(&mut self, command: Command) {
        if let Some(commands) = &self.commands {
            // The task goes on until this side closes the channel, or has failed: then there is nothing to be told.
            let _ = commands.send(command);
        }
    }
}

impl Drop for GroupConsumer {
    /// Leaves in the background, as far as the runtime lives on.
    fn drop(&mut self) {
        self.in_hand = None;
        let offsets = self.unhanded();
        let (reply, _) = oneshot::channel();
        self.command(Command::Leave(offsets, reply));
    }
}

impl Stream for GroupConsumer {
    type Item = Result<ConsumedRecord, ConsumeError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_record(context).map(Some)
    }
}

/// Something that is due every so often.
struct Again {
    every: Duration,
    due: Pin<Box<Sleep>>,
}

impl Again {
    fn new(every: Duration) -> Again {
        Again { every, due: Box::pin(tokio::time::sleep(every)) }
    }

    /// Whether it was due since the last time; whoever polls is woken when it is again.
    fn poll(&mut self, context: &mut Context<'_>) -> bool {
        let mut was_due = false;
        while self.due.as_mut().poll(context).is_ready() {
            was_due = true;
            self.due.as_mut().reset(tokio::time::Instant::now() + self.every);
        }
        was_due
    }
}

fn has_left() -> Error {
    Error::InvalidRequest("this consumer has left its group".to_owned())
}
