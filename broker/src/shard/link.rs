//! Where a shard leaves what goes to other brokers: a mailbox for each replicate stream, emptied by the task that writes
//! it.
//!
//! A mailbox is bounded by what it is about: a slot that moved ten times since the last look is in it once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use quire_protocol::replicate::{Follow, FollowerMessage, LeaderMessage, Progress};
use quire_protocol::{BrokerId, ErrorCode, LeaderEpoch, TopicPartition, limits};
use tokio::sync::Notify;

/// The leader's end of a replicate stream, as the shards that lead see it.
pub struct Downlink {
    follower: BrokerId,
    mailbox: Mutex<ForFollower>,
    wake: Notify,
    is_closed: AtomicBool,
}

/// What a shard answers to a request to follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FollowAnswered {
    /// The partition that was asked for.
    pub partition: TopicPartition,
    /// The leadership in which it is answered: what is sent for it is of no other one.
    pub leader_epoch: LeaderEpoch,
    /// The answer.
    pub message: LeaderMessage,
}

/// What is to be done on a replicate stream for its follower.
#[derive(Debug, Default)]
pub struct ForFollower {
    /// Answers to requests to follow, and refusals, in order.
    pub answers: Vec<FollowAnswered>,
    /// Slots whose partition has another log end, log start or high watermark than before.
    pub moved: BTreeSet<u32>,
    /// Bytes that slots may be sent in addition.
    pub credit: BTreeMap<u32, u64>,
    /// Slots that are not wanted any more.
    pub forgotten: Vec<u32>,
}

impl ForFollower {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.answers.is_empty()
            && self.moved.is_empty()
            && self.credit.is_empty()
            && self.forgotten.is_empty()
    }
}

impl Downlink {
    /// For a stream that this broker opened.
    pub fn new(follower: BrokerId) -> Downlink {
        Downlink {
            follower,
            mailbox: Mutex::default(),
            wake: Notify::new(),
            is_closed: AtomicBool::new(false),
        }
    }

    /// The broker at the other end.
    pub fn follower(&self) -> BrokerId {
        self.follower
    }

    pub(super) fn answer(&self, answer: FollowAnswered) {
        self.lock().answers.push(answer);
        self.wake.notify_one();
    }

    /// The request is not accepted.
    pub(super) fn refuse(&self, asked: &Follow, code: ErrorCode) {
        let Follow { slot, partition, leader_epoch, .. } = *asked;
        let message = LeaderMessage::Refused { slot, code };
        self.answer(FollowAnswered { partition, leader_epoch, message });
    }

    pub(super) fn moved(&self, slot: u32) {
        self.lock().moved.insert(slot);
        self.wake.notify_one();
    }

    /// A request to follow came, with what its slot may be sent at once: maybe nothing yet.
    pub(crate) fn asked(&self, slot: u32, credit: u32) {
        self.lock().credit.insert(slot, credit.into());
        self.wake.notify_one();
    }

    /// Slots may be sent more.
    pub fn grant(&self, credits: impl Iterator<Item = (u32, u32)>) {
        let mut mailbox = self.lock();
        for (slot, credit) in credits.filter(|(_, credit)| *credit > 0) {
            let granted = mailbox.credit.entry(slot).or_default();
            *granted = granted.saturating_add(credit.into());
        }
        drop(mailbox);
        self.wake.notify_one();
    }

    /// A slot is not wanted any more.
    pub fn forget(&self, slot: u32) {
        let mut mailbox = self.lock();
        mailbox.answers.retain(|answer| answer.message.slot() != slot);
        mailbox.moved.remove(&slot);
        mailbox.credit.remove(&slot);
        mailbox.forgotten.push(slot);
        drop(mailbox);
        self.wake.notify_one();
    }

    /// Everything left here since the last look.
    pub fn take(&self) -> ForFollower {
        std::mem::take(&mut *self.lock())
    }

    /// Waits until there may be something to take.
    pub async fn changed(&self) {
        self.wake.notified().await;
    }

    /// The stream is gone.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
    }

    /// Whether the stream is gone.
    pub fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, ForFollower> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The follower's end of a replicate stream, as the one shard that follows on it sees it.
pub struct Uplink {
    leader: BrokerId,
    mailbox: Mutex<ForLeader>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct ForLeader {
    requests: Vec<FollowerMessage>,
    progress: BTreeMap<u32, Progress>,
    is_wanted: bool,
}

impl Uplink {
    pub(super) fn new(leader: BrokerId) -> Uplink {
        Uplink { leader, mailbox: Mutex::default(), wake: Notify::new() }
    }

    /// The broker at the other end.
    pub fn leader(&self) -> BrokerId {
        self.leader
    }

    pub(super) fn send(&self, request: FollowerMessage) {
        self.lock().requests.push(request);
        self.wake.notify_one();
    }

    /// Told with the next vector.
    pub(super) fn progressed(&self, progress: Progress) {
        let mut mailbox = self.lock();
        let earlier = mailbox.progress.insert(progress.slot, progress);
        if let (Some(earlier), Some(entry)) = (earlier, mailbox.progress.get_mut(&progress.slot)) {
            entry.credit = entry.credit.saturating_add(earlier.credit);
        }
        drop(mailbox);
        self.wake.notify_one();
    }

    /// Whether there is anything to follow: if not, no stream is needed.
    pub(super) fn set_wanted(&self, is_wanted: bool) {
        self.lock().is_wanted = is_wanted;
        self.wake.notify_one();
    }

    /// What is here is for a stream that is gone.
    pub(super) fn clear(&self) {
        let mut mailbox = self.lock();
        mailbox.requests.clear();
        mailbox.progress.clear();
    }

    /// Whether the shard follows anything at this leader.
    pub fn is_wanted(&self) -> bool {
        self.lock().is_wanted
    }

    /// Everything left here since the last look, in the order in which it is to be sent.
    pub fn take(&self) -> Vec<FollowerMessage> {
        let mut mailbox = self.lock();
        let mut messages = std::mem::take(&mut mailbox.requests);
        let progress: Vec<_> = std::mem::take(&mut mailbox.progress).into_values().collect();
        drop(mailbox);
        let vectors = progress.chunks(limits::PROGRESS_ENTRIES_MAX);
        messages.extend(vectors.map(|entries| FollowerMessage::Progress(entries.to_vec())));
        messages
    }

    /// Waits until there may be something to take, or a stream is needed or not.
    pub async fn changed(&self) {
        self.wake.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, ForLeader> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Downlink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Downlink(to broker {})", self.follower)
    }
}

impl fmt::Debug for Uplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Uplink(to broker {})", self.leader)
    }
}

#[cfg(test)]
mod tests {
    use quire_protocol::Offset;

    use super::*;

    #[test]
    fn a_slot_is_told_once_with_its_newest_ends_and_all_its_credit() {
        let uplink = Uplink::new(BrokerId(1));
        let entry =
            |slot, credit, end| Progress { slot, credit, log_end: Offset(end), durable_end: Offset(end) };
        uplink.progressed(entry(4, 10, 5));
        uplink.progressed(entry(2, 0, 7));
        uplink.progressed(entry(4, 30, 9));
        let expected = FollowerMessage::Progress(vec![entry(2, 0, 7), entry(4, 40, 9)]);
        assert_eq!(uplink.take(), [expected]);
        assert_eq!(uplink.take(), []);
    }

    #[test]
    fn a_slot_that_moved_often_is_looked_at_once() {
        let downlink = Downlink::new(BrokerId(1));
        downlink.moved(3);
        downlink.moved(3);
        downlink.grant([(3, 100), (3, 50), (4, 0)].into_iter());
        let taken = downlink.take();
        assert_eq!(taken.moved, BTreeSet::from([3]));
        assert_eq!(taken.credit, BTreeMap::from([(3, 150)]));
        assert!(downlink.take().is_empty());
    }
}
