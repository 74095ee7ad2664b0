//! What becomes of a record: one [`Completion`] for each batch, shared by the [`Delivery`] of each of its records.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use quire_protocol::frame::Chain;
use quire_protocol::stream::Ack;
use quire_protocol::topic_config::MessageTimestampType;
use quire_protocol::{LeaderEpoch, Offset, PartitionIndex, Timestamp};

use crate::connection::lock;

use super::SendError;

/// Where a record was appended, and how safe it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordMetadata {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: PartitionIndex,
    /// The record's offset. Under [`Acks::None`](crate::Acks::None) no broker ever tells it: then it is
    /// [`Offset::MAX`], which no record has.
    pub offset: Offset,
    /// The record's timestamp as consumers will see it.
    pub timestamp: Timestamp,
    /// When it was appended, by the leader's clock.
    pub append_time: Timestamp,
    /// The leadership it was appended in.
    pub leader_epoch: LeaderEpoch,
    /// The partition's chain up to and including the record's batch.
    pub chain: Chain,
    /// Replicas that have it on disk; 0 under `sync = interval`.
    pub replicas_on_disk: u32,
}

/// A record on its way. Resolves when it is acknowledged or has failed; dropping it changes nothing.
#[derive(Debug)]
#[must_use = "a failure is seen only by awaiting this, or by flush"]
pub struct Delivery {
    completion: Arc<Completion>,
    index: u32,
    timestamp: Timestamp,
    waker: Option<usize>,
}

impl Delivery {
    /// The delivery of the record that is number `index` of its batch.
    pub(super) fn new(completion: Arc<Completion>, index: u32, timestamp: Timestamp) -> Delivery {
        Delivery { completion, index, timestamp, waker: None }
    }

    /// The partition that the record goes to.
    pub fn partition(&self) -> PartitionIndex {
        self.completion.partition
    }
}

impl Future for Delivery {
    type Output = Result<RecordMetadata, SendError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let delivery = self.get_mut();
        let outcome = delivery.completion.poll(context, &mut delivery.waker);
        outcome.map(|outcome| {
            outcome.map(|ack| delivery.completion.metadata(&ack, delivery.index, delivery.timestamp))
        })
    }
}

/// How a batch ended: with its acknowledgement, or with one error for all of its records.
pub(super) type Outcome = Result<Ack, SendError>;

/// What becomes of a batch.
#[derive(Debug)]
pub(super) struct Completion {
    topic: Arc<str>,
    partition: PartitionIndex,
    timestamp_type: MessageTimestampType,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Pending(Vec<Waker>),
    Done(Outcome),
}

impl Completion {
    pub(super) fn new(
        topic: Arc<str>,
        partition: PartitionIndex,
        timestamp_type: MessageTimestampType,
    ) -> Completion {
        Completion { topic, partition, timestamp_type, state: Mutex::new(State::Pending(Vec::new())) }
    }

    /// Ends the batch. Only the first outcome counts.
    fn complete(&self, outcome: Outcome) {
        let mut state = lock(&self.state);
        if let State::Pending(wakers) = &mut *state {
            let wakers = std::mem::take(wakers);
            *state = State::Done(outcome);
            drop(state);
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    /// Resolves when the batch has ended.
    pub(super) async fn done(&self) {
        let mut waker = None;
        std::future::poll_fn(|context| self.poll(context, &mut waker).map(|_| ())).await;
    }

    /// `slot` is where this caller's waker is kept.
    fn poll(&self, context: &mut Context<'_>, slot: &mut Option<usize>) -> Poll<Outcome> {
        match &mut *lock(&self.state) {
            State::Done(outcome) => Poll::Ready(outcome.clone()),
            State::Pending(wakers) => {
                match slot.and_then(|slot| wakers.get_mut(slot)) {
                    Some(waker) => waker.clone_from(context.waker()),
                    None => {
                        *slot = Some(wakers.len());
                        wakers.push(context.waker().clone());
                    }
                }
                Poll::Pending
            }
        }
    }

    fn metadata(&self, ack: &Ack, index: u32, timestamp: Timestamp) -> RecordMetadata {
        RecordMetadata {
            topic: Arc::clone(&self.topic),
            partition: self.partition,
            offset: ack.base_offset.checked_add(index.into()).unwrap_or(Offset::MAX),
            timestamp: match self.timestamp_type {
                MessageTimestampType::CreateTime => timestamp,
                MessageTimestampType::LogAppendTime => ack.append_time,
            },
            append_time: ack.append_time,
            leader_epoch: ack.leader_epoch,
            chain: ack.chain,
            replicas_on_disk: ack.replicas_on_disk,
        }
    }
}

/// The duty to end a batch, which has one holder at a time. If that goes away without, with its runtime or in a panic,
/// the batch ends as closed: nobody waits for ever.
#[derive(Debug)]
pub(super) struct Completer(Arc<Completion>);

impl Completer {
    pub(super) fn new(completion: Completion) -> Completer {
        Completer(Arc::new(completion))
    }

    /// What is waited for.
    pub(super) fn completion(&self) -> &Arc<Completion> {
        &self.0
    }

    /// Ends the batch.
    pub(super) fn complete(self, outcome: Outcome) {
        self.0.complete(outcome);
    }
}

impl Drop for Completer {
    fn drop(&mut self) {
        self.0.complete(Err(SendError::Closed));
    }
}

/// What stands in for the acknowledgement that nobody asked for: nothing is known.
pub(super) fn unacknowledged() -> Ack {
    Ack {
        base_offset: Offset::MAX,
        append_time: Timestamp::NONE,
        leader_epoch: LeaderEpoch(0),
        log_start: Offset::ZERO,
        replicas_on_disk: 0,
        chain: Chain::START,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn completion(timestamp_type: MessageTimestampType) -> Arc<Completion> {
        Arc::new(Completion::new("t".into(), PartitionIndex(3), timestamp_type))
    }

    fn ack() -> Ack {
        Ack { base_offset: Offset(100), append_time: Timestamp(77), replicas_on_disk: 1, ..unacknowledged() }
    }

    #[test]
    fn records_of_one_batch_share_its_outcome_and_differ_in_their_offset() {
        let shared = completion(MessageTimestampType::CreateTime);
        let mut first = Delivery::new(Arc::clone(&shared), 0, Timestamp(5));
        let mut third = Delivery::new(Arc::clone(&shared), 2, Timestamp(6));
        assert!((&mut first).now_or_never().is_none());
        shared.complete(Ok(ack()));
        shared.complete(Err(SendError::Closed));
        let first = (&mut first).now_or_never().expect("done").expect("acknowledged");
        let third = (&mut third).now_or_never().expect("done").expect("acknowledged");
        assert_eq!((first.offset, first.timestamp), (Offset(100), Timestamp(5)));
        assert_eq!((third.offset, third.timestamp), (Offset(102), Timestamp(6)));
    }

    #[test]
    fn under_log_append_time_the_brokers_clock_counts() {
        let shared = completion(MessageTimestampType::LogAppendTime);
        shared.complete(Ok(ack()));
        let metadata = Delivery::new(shared, 0, Timestamp(5)).now_or_never().expect("done").expect("ok");
        assert_eq!(metadata.timestamp, Timestamp(77));
    }

    #[test]
    fn a_batch_that_nobody_ends_is_closed() {
        let completer =
            Completer::new(Completion::new("t".into(), PartitionIndex(0), MessageTimestampType::CreateTime));
        let delivery = Delivery::new(Arc::clone(completer.completion()), 0, Timestamp(0));
        drop(completer);
        assert_eq!(delivery.now_or_never().expect("done"), Err(SendError::Closed));
    }

    #[tokio::test]
    async fn every_waiter_is_woken() {
        let shared = completion(MessageTimestampType::CreateTime);
        let waiters: Vec<_> = (0..5)
            .map(|index| tokio::spawn(Delivery::new(Arc::clone(&shared), index, Timestamp(0))))
            .collect();
        tokio::task::yield_now().await;
        shared.complete(Ok(ack()));
        for (index, waiter) in waiters.into_iter().enumerate() {
            let metadata = waiter.await.expect("no panic").expect("acknowledged");
            assert_eq!(metadata.offset, Offset(100 + index as u64));
        }
    }
}
