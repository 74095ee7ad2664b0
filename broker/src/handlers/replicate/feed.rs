//! What the leader's side of a replicate stream sends and understands, without the stream: plain code that is asked what comes
//! next.
//!
//! [`Feed`] takes what shards left in the stream's mailbox, and gives the next thing to be sent, or to be read from the disk.
//! [`Requests`] takes what the follower sent, and gives the events that shards are to have of it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use quire_engine::replication::Progress;
use quire_protocol::frame::Chain;
use quire_protocol::replicate::{self, Follow, FollowerMessage, LeaderMessage};
use quire_protocol::{ErrorCode, LeaderEpoch, Offset, TopicPartition, limits};
use quire_storage::{LogReader, ReadError, Residency, Slice};

use crate::shard::{Downlink, Event, FollowAnswered, ForFollower, PartitionHandle, SlotProgress};

/// Reads from the disk under way at once for one stream.
const COLD_READS_MAX: usize = 4;

/// The partitions of a stream, and their slots.
#[derive(Debug, Default)]
struct Slots {
    partitions: HashMap<u32, TopicPartition>,
    slots: HashMap<TopicPartition, u32>,
}

impl Slots {
    /// The partition goes by another slot from here on; the one it went by before.
    fn insert(&mut self, slot: u32, partition: TopicPartition) -> Option<u32> {
        let earlier = self.slots.insert(partition, slot);
        if let Some(earlier) = earlier {
            self.partitions.remove(&earlier);
        }
        self.partitions.insert(slot, partition);
        earlier
    }

    fn remove(&mut self, slot: u32) -> Option<TopicPartition> {
        let partition = self.partitions.remove(&slot)?;
        self.slots.remove(&partition);
        Some(partition)
    }
}

/// A follower asks for more partitions than a broker can hold.
#[derive(Debug, thiserror::Error)]
#[error("it follows more partitions than a broker can hold")]
pub struct TooManyPartitions;

/// The receiving half.
#[derive(Debug)]
pub struct Requests {
    link: Arc<Downlink>,
    slots: Slots,
}

impl Requests {
    /// Of a stream on which nothing was asked yet.
    pub fn new(link: Arc<Downlink>) -> Requests {
        Requests { link, slots: Slots::default() }
    }

    /// What shards are told of a message; each event is about partitions of one shard, of those that there are `shards` of.
    ///
    /// # Errors
    /// If the follower asks for too much.
    pub fn take(
        &mut self,
        message: FollowerMessage,
        shards: usize,
        shard_of: impl Fn(TopicPartition) -> usize,
    ) -> Result<Vec<(usize, Event)>, TooManyPartitions> {
        match message {
            FollowerMessage::Follow(follow) => {
                if self.slots.slots.len() >= limits::BROKER_PARTITIONS_MAX as usize {
                    return Err(TooManyPartitions);
                }
                let shard = shard_of(follow.partition);
                Ok(vec![(shard, self.follow(follow))])
            }
            FollowerMessage::Unfollow { slot } => {
                self.link.forget(slot);
                let partition = self.slots.remove(slot);
                let event = |partition| {
                    let link = Arc::clone(&self.link);
                    (shard_of(partition), Event::Unfollow { link, partition, slot })
                };
                Ok(partition.map(event).into_iter().collect())
            }
            FollowerMessage::Progress(entries) => Ok(self.progress(&entries, shards, shard_of)),
        }
    }

    fn follow(&mut self, follow: Follow) -> Event {
        if let Some(earlier) = self.slots.insert(follow.slot, follow.partition) {
            self.link.forget(earlier);
        }
        self.link.asked(follow.slot, follow.credit);
        Event::Follow { link: Arc::clone(&self.link), follow }
    }

    fn progress(
        &self,
        entries: &[replicate::Progress],
        shards: usize,
        shard_of: impl Fn(TopicPartition) -> usize,
    ) -> Vec<(usize, Event)> {
        let mut by_shard = vec![Vec::new(); shards];
        for entry in entries {
            let Some(partition) = self.slots.partitions.get(&entry.slot).copied() else { continue };
            let ends = Progress { log_end: entry.log_end, durable_end: entry.durable_end };
            by_shard[shard_of(partition)].push(SlotProgress { partition, slot: entry.slot, ends });
        }
        self.link.grant(entries.iter().map(|entry| (entry.slot, entry.credit)));
        let told = by_shard.into_iter().enumerate().filter(|(_, entries)| !entries.is_empty());
        let event = |(shard, entries)| (shard, Event::Progress { link: Arc::clone(&self.link), entries });
        told.map(event).collect()
    }
}

/// What comes next of a [`Feed`].
#[derive(Debug)]
pub enum Next {
    /// Send a message, and the frames that belong to it.
    Send {
        /// The message.
        message: LeaderMessage,
        /// What comes after it.
        frames: Vec<Bytes>,
    },
    /// Read from the disk, and tell with [`Feed::was_read`].
    Read(ColdRead),
    /// A log can not be read: tell its shard, and then with [`Feed::refuse`].
    Failed {
        /// The slot.
        slot: u32,
        /// Whose log.
        handle: PartitionHandle,
        /// Why not.
        error: ReadError,
    },
}

/// A read that may wait for the disk.
#[derive(Debug)]
pub struct ColdRead {
    /// The slot that it is for.
    pub slot: u32,
    reader: LogReader,
    from: Offset,
    bytes_max: usize,
    below: Offset,
}

impl ColdRead {
    /// Does it, however long that takes.
    ///
    /// # Errors
    /// As [`LogReader::read`].
    pub fn run(self) -> Result<Slice, ReadError> {
        self.reader.read(self.from, self.bytes_max, self.below, Residency::Any)
    }
}

/// A chain that is to be looked up, which may wait for the disk.
#[derive(Debug)]
pub struct ChainLookup {
    /// The slot that it is for.
    pub slot: u32,
    reader: LogReader,
    end: Offset,
}

impl ChainLookup {
    /// Does it, however long that takes: where the last frame before the end ends, and the chain up to it.
    pub fn run(self) -> Option<(Offset, Chain)> {
        self.reader.chain_at(self.end, Residency::Any).ok().flatten()
    }
}

/// A partition that is sent.
#[derive(Debug)]
struct Cursor {
    handle: PartitionHandle,
    /// In which it was accepted: what is led in another one is not for this follower.
    leader_epoch: LeaderEpoch,
    /// The first offset not sent yet.
    next: Offset,
    /// Bytes that may still be sent; overdrawn by at most one frame.
    credit: i64,
    /// High watermark and log start, as last told.
    told: (Offset, Offset),
    is_queued: bool,
    /// What comes next is being read from the disk.
    is_reading: bool,
}

/// The sending half.
#[derive(Debug)]
pub struct Feed {
    link: Arc<Downlink>,
    cursors: HashMap<u32, Cursor>,
    slots: Slots,
    /// Credit of slots that are not accepted yet.
    early_credit: HashMap<u32, u64>,
    /// Answers and refusals, which go before anything else.
    answers: VecDeque<LeaderMessage>,
    /// Slots to be looked at, in turn.
    queue: VecDeque<u32>,
    cold_reads: usize,
    /// Slots that wait for their turn to read from the disk.
    cold_queue: VecDeque<u32>,
    /// The slot whose chain was told last.
    chain_told: u32,
}

impl Feed {
    /// Of a stream on which nothing was asked yet.
    pub fn new(link: Arc<Downlink>) -> Feed {
        Feed {
            link,
            cursors: HashMap::new(),
            slots: Slots::default(),
            early_credit: HashMap::new(),
            answers: VecDeque::new(),
            queue: VecDeque::new(),
            cold_reads: 0,
            cold_queue: VecDeque::new(),
            chain_told: 0,
        }
    }

    /// Takes what was left in the mailbox. `find` gives the partitions that are open.
    pub fn take(&mut self, find: impl Fn(TopicPartition) -> Option<PartitionHandle>) {
        let ForFollower { answers, moved, credit, forgotten } = self.link.take();
        for slot in forgotten {
            self.forget(slot);
        }
        for (slot, bytes) in credit {
            match self.cursors.get_mut(&slot) {
                Some(cursor) => {
                    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
                    cursor.credit = cursor.credit.saturating_add(bytes);
                    self.enqueue(slot);
                }
                None => *self.early_credit.entry(slot).or_default() += bytes,
            }
        }
        for answer in answers {
            self.answer(answer, &find);
        }
        for slot in moved {
            self.enqueue(slot);
        }
    }

    /// The next thing to be done; `None` until the mailbox has something again, or a read is done.
    #[allow(clippy::should_implement_trait, reason = "more may come after nothing")]
    pub fn next(&mut self) -> Option<Next> {
        loop {
            if let Some(message) = self.answers.pop_front() {
                return Some(Next::Send { message, frames: Vec::new() });
            }
            let slot = self.queue.pop_front()?;
            if let Some(next) = self.step(slot) {
                return Some(next);
            }
        }
    }

    /// A read from the disk is done.
    pub fn was_read(&mut self, slot: u32, read: Result<Slice, ReadError>) -> Option<Next> {
        self.cold_reads -= 1;
        // One that is not sent any more does not use its turn.
        while let Some(next) = self.cold_queue.pop_front() {
            if self.cursors.contains_key(&next) {
                self.enqueue(next);
                break;
            }
        }
        self.take_read(slot, read)
    }

    /// Nothing more is sent of a slot.
    pub fn refuse(&mut self, slot: u32, code: ErrorCode) {
        if let Some(cursor) = self.cursors.get(&slot) {
            let (partition, follower) = (cursor.handle.id(), self.link.follower());
            tracing::debug!(%partition, %follower, %code, "no longer sent");
        }
        self.forget(slot);
        self.answers.push_back(LeaderMessage::Refused { slot, code });
    }

    /// Whether any partition is sent.
    pub fn is_used(&self) -> bool {
        !self.cursors.is_empty()
    }

    /// The chain of the next partition in turn, at the last committed frame that was sent.
    pub fn next_chain(&mut self) -> Option<ChainLookup> {
        let next = self.cursors.keys().copied().filter(|slot| *slot > self.chain_told).min();
        let slot = next.or_else(|| self.cursors.keys().copied().min())?;
        self.chain_told = slot;
        let cursor = &self.cursors[&slot];
        let reader = cursor.handle.reader().clone();
        let end = reader.high_watermark().min(cursor.next);
        Some(ChainLookup { slot, reader, end })
    }

    /// What was looked up, as it is to be told.
    pub fn chain(&self, slot: u32, found: Option<(Offset, Chain)>) -> Option<LeaderMessage> {
        let (end, chain) = found?;
        self.cursors.contains_key(&slot).then_some(LeaderMessage::Chain { slot, end, chain })
    }

    fn answer(&mut self, answer: FollowAnswered, find: impl Fn(TopicPartition) -> Option<PartitionHandle>) {
        let FollowAnswered { partition, leader_epoch, message } = answer;
        let slot = message.slot();
        let credit = self.early_credit.remove(&slot);
        let LeaderMessage::Accepted { from, high_watermark, log_start, .. } = message else {
            self.answers.push_back(message);
            return;
        };
        // It was given up meanwhile, or the follower asked again.
        let Some(credit) = credit else { return };
        let Some(handle) = find(partition) else {
            self.answers.push_back(LeaderMessage::Refused { slot, code: ErrorCode::Unavailable });
            return;
        };
        if let Some(earlier) = self.slots.insert(slot, partition) {
            self.cursors.remove(&earlier);
        }
        let cursor = Cursor {
            leader_epoch,
            handle,
            next: from,
            credit: i64::try_from(credit).unwrap_or(i64::MAX),
            told: (high_watermark, log_start),
            is_queued: false,
            is_reading: false,
        };
        self.cursors.insert(slot, cursor);
        self.answers.push_back(message);
        self.enqueue(slot);
    }

    fn forget(&mut self, slot: u32) {
        self.early_credit.remove(&slot);
        self.cursors.remove(&slot);
        self.slots.remove(slot);
    }

    fn enqueue(&mut self, slot: u32) {
        if let Some(cursor) = self.cursors.get_mut(&slot)
            && !std::mem::replace(&mut cursor.is_queued, true)
        {
            self.queue.push_back(slot);
        }
    }

    /// What is next of one partition.
    fn step(&mut self, slot: u32) -> Option<Next> {
        let cursor = self.cursors.get_mut(&slot)?;
        cursor.is_queued = false;
        if cursor.is_reading {
            return None;
        }
        let standing = cursor.handle.standing();
        if !standing.is_leading || standing.leader_epoch != cursor.leader_epoch {
            self.refuse(slot, ErrorCode::NotLeader);
            return None;
        }
        let reader = cursor.handle.reader();
        let end = reader.end_offset();
        let bytes_max = usize::try_from(cursor.credit).unwrap_or(0).min(limits::READ_BYTES_MAX);
        if cursor.next >= end || bytes_max == 0 {
            return self.tell(slot);
        }
        match reader.read(cursor.next, bytes_max, end, Residency::Resident) {
            Err(ReadError::NotResident) => self.read_cold(slot, bytes_max, end),
            read => self.take_read(slot, read),
        }
    }

    /// Has it read by a thread that may wait for the disk; the slot's turn comes when that is done.
    fn read_cold(&mut self, slot: u32, bytes_max: usize, below: Offset) -> Option<Next> {
        if self.cold_reads >= COLD_READS_MAX {
            self.cold_queue.push_back(slot);
            return None;
        }
        let cursor = self.cursors.get_mut(&slot)?;
        cursor.is_reading = true;
        self.cold_reads += 1;
        let (reader, from) = (cursor.handle.reader().clone(), cursor.next);
        Some(Next::Read(ColdRead { slot, reader, from, bytes_max, below }))
    }

    fn take_read(&mut self, slot: u32, read: Result<Slice, ReadError>) -> Option<Next> {
        let cursor = self.cursors.get_mut(&slot)?;
        cursor.is_reading = false;
        match read {
            Ok(slice) if slice.bytes == 0 => self.tell(slot),
            Ok(slice) => {
                cursor.next = slice.next_offset;
                cursor.credit -= slice.bytes as i64;
                cursor.told = range(&cursor.handle);
                let (high_watermark, log_start) = cursor.told;
                let length = slice.bytes as u32;
                let message = LeaderMessage::Frames { slot, length, high_watermark, log_start };
                self.enqueue(slot);
                Some(Next::Send { message, frames: slice.frames })
            }
            // Retention was faster, or the log was cut: it asks again.
            Err(ReadError::OutOfRange { .. }) => {
                self.refuse(slot, ErrorCode::OffsetOutOfRange);
                None
            }
            Err(error) => Some(Next::Failed { slot, handle: cursor.handle.clone(), error }),
        }
    }

    /// Tells high watermark and log start, if they are news.
    fn tell(&mut self, slot: u32) -> Option<Next> {
        let cursor = self.cursors.get_mut(&slot)?;
        let now = range(&cursor.handle);
        let is_news = std::mem::replace(&mut cursor.told, now) != now;
        let (high_watermark, log_start) = now;
        let message = LeaderMessage::Watermarks { slot, high_watermark, log_start };
        is_news.then_some(Next::Send { message, frames: Vec::new() })
    }
}

/// High watermark and log start, never inverted: both only grow, and are looked at in this order.
fn range(handle: &PartitionHandle) -> (Offset, Offset) {
    let log_start = handle.reader().log_start();
    (handle.reader().high_watermark().max(log_start), log_start)
}
