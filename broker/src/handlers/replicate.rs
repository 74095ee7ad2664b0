//! The leader's side of a replicate stream: a follower's requests go to the shards that lead, and what they have goes to
//! the follower as it comes.
//!
//! ```text
//!   recv ─► requests ─► shards ─► Downlink ─► cursors ─► frames ─► send
//!             └──────── credit ──────┘
//! ```
//! Two halves run side by side in one task, so that a follower's progress is heard while frames wait for the network.
//! Frames leave as slices of the log's maps, up to the log end: a follower gets them while the leader's own sync is
//! under way. Partitions take turns, each as far as its credit goes; what has left the page cache is read elsewhere.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use quire_engine::replication::Progress;
use quire_protocol::frame::Chain;
use quire_protocol::replicate::{self, Follow, FollowerMessage, LeaderMessage};
use quire_protocol::stream::StreamError;
use quire_protocol::{BrokerId, ErrorCode, LeaderEpoch, Offset, TopicPartition, limits};
use quire_storage::{ReadError, Residency, Slice};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::shard::{Downlink, Event, ForFollower, PartitionHandle, Partitions, SlotProgress};

/// Bytes gathered for one write.
const WRITE_BYTES: usize = 1024 * 1024;
/// Reads from the disk under way at once for one stream.
const COLD_READS_MAX: usize = 4;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum End {
    /// The follower ended it, or is gone.
    #[error("the follower is gone")]
    Gone,
    /// What it sent is no message.
    #[error(transparent)]
    Malformed(#[from] StreamError),
    /// It asks for more partitions than a broker can hold.
    #[error("it follows more partitions than a broker can hold")]
    TooMany,
}

/// Serves a stream that `follower` opened, to its end.
pub(crate) async fn serve(
    partitions: Partitions,
    follower: BrokerId,
    mut send: SendStream,
    mut recv: RecvStream,
) {
    let link = Arc::new(Downlink::new(follower));
    let requests =
        Requests { link: Arc::clone(&link), partitions: partitions.clone(), slots: Slots::default() };
    let sending = Sending::new(&link, &partitions, &mut send);
    let end = tokio::select! {
        end = requests.receive_all(&mut recv) => end,
        end = sending.run() => end,
    };
    link.close();
    match end {
        End::Gone => tracing::debug!(%follower, "a follower's stream ended"),
        error => tracing::warn!(%follower, %error, "a follower's stream is ended"),
    }
}

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

/// The receiving half.
struct Requests {
    link: Arc<Downlink>,
    partitions: Partitions,
    slots: Slots,
}

impl Requests {
    async fn receive_all(mut self, recv: &mut RecvStream) -> End {
        loop {
            match receive(recv).await {
                Ok(FollowerMessage::Follow(follow)) => {
                    if self.slots.slots.len() >= limits::BROKER_PARTITIONS_MAX as usize {
                        return End::TooMany;
                    }
                    self.follow(follow);
                }
                Ok(FollowerMessage::Unfollow { slot }) => self.unfollow(slot),
                Ok(FollowerMessage::Progress(entries)) => self.progress(&entries),
                Err(end) => return end,
            }
        }
    }

    fn follow(&mut self, follow: Follow) {
        if let Some(earlier) = self.slots.insert(follow.slot, follow.partition) {
            self.link.forget(earlier);
        }
        self.link.grant([(follow.slot, follow.credit)].into_iter());
        let event = Event::Follow { link: Arc::clone(&self.link), follow };
        self.partitions.router().send_to(follow.partition, event);
    }

    fn unfollow(&mut self, slot: u32) {
        self.link.forget(slot);
        let Some(partition) = self.slots.remove(slot) else { return };
        let event = Event::Unfollow { link: Arc::clone(&self.link), partition, slot };
        self.partitions.router().send_to(partition, event);
    }

    fn progress(&mut self, entries: &[replicate::Progress]) {
        let router = self.partitions.router();
        let mut by_shard = vec![Vec::new(); router.shards()];
        for entry in entries {
            let Some(partition) = self.slots.partitions.get(&entry.slot).copied() else { continue };
            let ends = Progress { log_end: entry.log_end, durable_end: entry.durable_end };
            by_shard[router.shard_of(partition)].push(SlotProgress { partition, slot: entry.slot, ends });
        }
        for (shard, entries) in by_shard.into_iter().enumerate().filter(|(_, entries)| !entries.is_empty()) {
            router.send(shard, Event::Progress { link: Arc::clone(&self.link), entries });
        }
        self.link.grant(entries.iter().map(|entry| (entry.slot, entry.credit)));
    }
}

async fn receive(recv: &mut RecvStream) -> Result<FollowerMessage, End> {
    let mut tag = [0; 1];
    recv.read_exact(&mut tag).await.map_err(|_| End::Gone)?;
    let mut body = [0; FollowerMessage::BODY_LEN_MAX];
    let body = &mut body[..FollowerMessage::body_len(tag[0])?];
    recv.read_exact(body).await.map_err(|_| End::Gone)?;
    let mut entries = vec![0; FollowerMessage::entries_len(tag[0], body)?];
    recv.read_exact(&mut entries).await.map_err(|_| End::Gone)?;
    Ok(FollowerMessage::decode(tag[0], body, &entries)?)
}

/// A partition that is sent.
struct Cursor {
    partition: TopicPartition,
    handle: PartitionHandle,
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
struct Sending<'a> {
    link: &'a Downlink,
    partitions: &'a Partitions,
    send: &'a mut SendStream,
    cursors: HashMap<u32, Cursor>,
    slots: Slots,
    /// Credit of slots that are not accepted yet.
    early_credit: HashMap<u32, u64>,
    /// Slots to be looked at, in turn.
    queue: VecDeque<u32>,
    cold: JoinSet<(u32, Result<Slice, ReadError>)>,
    /// Slots that wait for their turn to read from the disk.
    cold_queue: VecDeque<u32>,
    /// The chain that is being looked up, and where; at most one.
    chain: JoinSet<(u32, Option<(Offset, Chain)>)>,
    /// When the next one is.
    chain_due: Instant,
    /// The slot whose chain was told last.
    chain_told: u32,
    /// What is to be written next.
    chunks: Vec<Bytes>,
    bytes: usize,
}

impl<'a> Sending<'a> {
    fn new(link: &'a Downlink, partitions: &'a Partitions, send: &'a mut SendStream) -> Sending<'a> {
        Sending {
            link,
            partitions,
            send,
            cursors: HashMap::new(),
            slots: Slots::default(),
            early_credit: HashMap::new(),
            queue: VecDeque::new(),
            cold: JoinSet::new(),
            cold_queue: VecDeque::new(),
            chain: JoinSet::new(),
            chain_due: Instant::now() + limits::CHAIN_TOLD_INTERVAL,
            chain_told: 0,
            chunks: Vec::new(),
            bytes: 0,
        }
    }

    async fn run(mut self) -> End {
        loop {
            let taken = self.link.take();
            self.apply(taken);
            while self.bytes < WRITE_BYTES
                && let Some(slot) = self.queue.pop_front()
            {
                self.step(slot).await;
            }
            if !self.chunks.is_empty() {
                self.bytes = 0;
                let written = self.send.write_all_chunks(&mut self.chunks).await;
                self.chunks.clear();
                if written.is_err() {
                    return End::Gone;
                }
                continue;
            }
            tokio::select! {
                () = self.link.changed() => {}
                Some(read) = self.cold.join_next() => match read {
                    Ok((slot, read)) => {
                        self.was_read(slot, read).await;
                        if let Some(next) = self.cold_queue.pop_front() {
                            self.enqueue(next);
                        }
                    }
                    Err(_) => return End::Gone,
                },
                Some(Ok((slot, found))) = self.chain.join_next() => {
                    if let (Some((end, chain)), Some(_)) = (found, self.cursors.get(&slot)) {
                        self.say(&LeaderMessage::Chain { slot, end, chain }, Vec::new(), 0);
                    }
                }
                () = sleep_until(self.chain_due), if !self.cursors.is_empty() => self.look_up_chain(),
            }
        }
    }

    /// Looks up the chain of the next partition in turn, at the last committed frame that was sent.
    fn look_up_chain(&mut self) {
        self.chain_due = Instant::now() + limits::CHAIN_TOLD_INTERVAL;
        if !self.chain.is_empty() {
            return;
        }
        let next = self.cursors.keys().copied().filter(|slot| *slot > self.chain_told).min();
        let Some(slot) = next.or_else(|| self.cursors.keys().copied().min()) else { return };
        self.chain_told = slot;
        let cursor = &self.cursors[&slot];
        let reader = cursor.handle.reader().clone();
        let end = reader.high_watermark().min(cursor.next);
        self.chain.spawn_blocking(move || (slot, reader.chain_at(end, Residency::Any).ok().flatten()));
    }

    fn apply(&mut self, taken: ForFollower) {
        let ForFollower { answers, moved, credit, forgotten } = taken;
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
        for (partition, message) in answers {
            self.answer(partition, message);
        }
        for slot in moved {
            self.enqueue(slot);
        }
    }

    fn answer(&mut self, partition: TopicPartition, message: LeaderMessage) {
        let slot = message.slot();
        let credit = self.early_credit.remove(&slot);
        let LeaderMessage::Accepted { from, high_watermark, log_start, .. } = message else {
            self.say(&message, Vec::new(), 0);
            return;
        };
        // It was given up meanwhile, or the follower asked again.
        let Some(credit) = credit else { return };
        let Ok(handle) = self.partitions.find_replica(partition) else {
            self.say(&LeaderMessage::Refused { slot, code: ErrorCode::Unavailable }, Vec::new(), 0);
            return;
        };
        if let Some(earlier) = self.slots.insert(slot, partition) {
            self.cursors.remove(&earlier);
        }
        let cursor = Cursor {
            partition,
            leader_epoch: handle.leader_epoch(),
            handle,
            next: from,
            credit: i64::try_from(credit).unwrap_or(i64::MAX),
            told: (high_watermark, log_start),
            is_queued: false,
            is_reading: false,
        };
        self.cursors.insert(slot, cursor);
        self.say(&message, Vec::new(), 0);
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

    /// Gathers what is next of one partition.
    async fn step(&mut self, slot: u32) {
        let Some(cursor) = self.cursors.get_mut(&slot) else { return };
        cursor.is_queued = false;
        if cursor.is_reading {
            return;
        }
        let standing = cursor.handle.standing();
        if !standing.is_leading || standing.leader_epoch != cursor.leader_epoch {
            self.refuse(slot, ErrorCode::NotLeader);
            return;
        }
        let reader = cursor.handle.reader();
        let end = reader.end_offset();
        let bytes_max = usize::try_from(cursor.credit).unwrap_or(0).min(limits::READ_BYTES_MAX);
        if cursor.next >= end || bytes_max == 0 {
            self.tell(slot);
            return;
        }
        match reader.read(cursor.next, bytes_max, end, Residency::Resident) {
            Err(ReadError::NotResident) => self.read_cold(slot, bytes_max, end),
            read => self.was_read(slot, read).await,
        }
    }

    /// Reads on a thread that may wait for the disk; the slot's turn comes when that is done.
    fn read_cold(&mut self, slot: u32, bytes_max: usize, end: Offset) {
        if self.cold.len() >= COLD_READS_MAX {
            self.cold_queue.push_back(slot);
            return;
        }
        let Some(cursor) = self.cursors.get_mut(&slot) else { return };
        cursor.is_reading = true;
        let (reader, next) = (cursor.handle.reader().clone(), cursor.next);
        self.cold.spawn_blocking(move || (slot, reader.read(next, bytes_max, end, Residency::Any)));
    }

    async fn was_read(&mut self, slot: u32, read: Result<Slice, ReadError>) {
        let Some(cursor) = self.cursors.get_mut(&slot) else { return };
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
                self.say(&message, slice.frames, slice.bytes);
                self.enqueue(slot);
            }
            // Retention was faster, or the log was cut: it asks again.
            Err(ReadError::OutOfRange { .. }) => self.refuse(slot, ErrorCode::OffsetOutOfRange),
            Err(error) => {
                let handle = cursor.handle.clone();
                let code = handle.read_failed(error).await.code;
                self.refuse(slot, code);
            }
        }
    }

    /// Tells high watermark and log start, if they are news.
    fn tell(&mut self, slot: u32) {
        let Some(cursor) = self.cursors.get_mut(&slot) else { return };
        let now = range(&cursor.handle);
        if std::mem::replace(&mut cursor.told, now) != now {
            let (high_watermark, log_start) = now;
            self.say(&LeaderMessage::Watermarks { slot, high_watermark, log_start }, Vec::new(), 0);
        }
    }

    fn refuse(&mut self, slot: u32, code: ErrorCode) {
        if let Some(cursor) = self.cursors.get(&slot) {
            tracing::debug!(partition = %cursor.partition, follower = %self.link.follower(), %code, "no longer sent");
        }
        self.forget(slot);
        self.say(&LeaderMessage::Refused { slot, code }, Vec::new(), 0);
    }

    fn say(&mut self, message: &LeaderMessage, frames: Vec<Bytes>, length: usize) {
        let mut head = Vec::with_capacity(1 + LeaderMessage::BODY_LEN_MAX);
        message.encode(&mut head);
        self.bytes += head.len() + length;
        self.chunks.push(head.into());
        self.chunks.extend(frames);
    }
}

/// High watermark and log start, never inverted: both only grow, and are looked at in this order.
fn range(handle: &PartitionHandle) -> (Offset, Offset) {
    let log_start = handle.reader().log_start();
    (handle.reader().high_watermark().max(log_start), log_start)
}
