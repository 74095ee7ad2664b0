//! The leader's side of a replicate stream: a follower's requests go to the shards that lead, and what they have goes to
//! the follower as it comes.
//!
//! ```text
//!   recv ─► requests ─► shards ─► Downlink ─► feed ─► frames ─► send
//!             └──────── credit ──────┘
//! ```
//! Two halves run side by side in one task, so that a follower's progress is heard while frames wait for the network.
//! Frames leave as slices of the log's maps, up to the log end: a follower gets them while the leader's own sync is
//! under way. Partitions take turns, each as far as its credit goes; what has left the page cache is read elsewhere.
//! `feed` says what comes next; here it is carried out.

pub(crate) mod feed;

use std::sync::Arc;

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use quire_protocol::frame::Chain;
use quire_protocol::replicate::{FollowerMessage, LeaderMessage};
use quire_protocol::stream::StreamError;
use quire_protocol::{BrokerId, Offset, limits};
use quire_storage::{ReadError, Slice};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::shard::{Downlink, Partitions};

use feed::{Feed, Next, Requests, TooManyPartitions};

/// Bytes gathered for one write.
const WRITE_BYTES: usize = 1024 * 1024;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum End {
    /// The follower ended it, or is gone.
    #[error("the follower is gone")]
    Gone,
    /// What it sent is no message.
    #[error(transparent)]
    Malformed(#[from] StreamError),
    /// It asks for too much.
    #[error(transparent)]
    TooMany(#[from] TooManyPartitions),
}

/// Serves a stream that `follower` opened, to its end.
pub(crate) async fn serve(
    partitions: Partitions,
    follower: BrokerId,
    mut send: SendStream,
    mut recv: RecvStream,
) {
    let link = Arc::new(Downlink::new(follower));
    let sending = Sending::new(&link, &partitions, &mut send);
    let end = tokio::select! {
        end = receive_all(&link, &partitions, &mut recv) => end,
        end = sending.run() => end,
    };
    link.close();
    match end {
        End::Gone => tracing::debug!(%follower, "a follower's stream ended"),
        error => tracing::warn!(%follower, %error, "a follower's stream is ended"),
    }
}

/// The receiving half.
async fn receive_all(link: &Arc<Downlink>, partitions: &Partitions, recv: &mut RecvStream) -> End {
    let router = partitions.router();
    let mut requests = Requests::new(Arc::clone(link));
    loop {
        let message = match receive(recv).await {
            Ok(message) => message,
            Err(end) => return end,
        };
        match requests.take(message, router.shards(), |partition| router.shard_of(partition)) {
            Ok(events) => events.into_iter().for_each(|(shard, event)| router.send(shard, event)),
            Err(error) => return error.into(),
        }
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

/// The sending half.
struct Sending<'a> {
    link: &'a Downlink,
    partitions: &'a Partitions,
    send: &'a mut SendStream,
    feed: Feed,
    cold: JoinSet<(u32, Result<Slice, ReadError>)>,
    /// The chain that is being looked up, and where; at most one.
    chain: JoinSet<(u32, Option<(Offset, Chain)>)>,
    /// When the next one is.
    chain_due: Instant,
    /// What is to be written next.
    chunks: Vec<Bytes>,
    bytes: usize,
}

impl<'a> Sending<'a> {
    fn new(link: &'a Arc<Downlink>, partitions: &'a Partitions, send: &'a mut SendStream) -> Sending<'a> {
        Sending {
            link,
            partitions,
            send,
            feed: Feed::new(Arc::clone(link)),
            cold: JoinSet::new(),
            chain: JoinSet::new(),
            chain_due: Instant::now() + limits::CHAIN_TOLD_INTERVAL,
            chunks: Vec::new(),
            bytes: 0,
        }
    }

    async fn run(mut self) -> End {
        loop {
            self.feed.take(|partition| self.partitions.find_replica(partition).ok());
            while self.bytes < WRITE_BYTES
                && let Some(next) = self.feed.next()
            {
                self.carry_out(next).await;
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
                        if let Some(next) = self.feed.was_read(slot, read) {
                            self.carry_out(next).await;
                        }
                    }
                    Err(_) => return End::Gone,
                },
                Some(Ok((slot, found))) = self.chain.join_next() => {
                    if let Some(message) = self.feed.chain(slot, found) {
                        self.say(&message, Vec::new());
                    }
                }
                () = sleep_until(self.chain_due), if self.feed.is_used() => self.look_up_chain(),
            }
        }
    }

    async fn carry_out(&mut self, next: Next) {
        match next {
            Next::Send { message, frames } => self.say(&message, frames),
            Next::Read(read) => {
                self.cold.spawn_blocking(move || (read.slot, read.run()));
            }
            Next::Failed { slot, handle, error } => {
                let code = handle.read_failed(error).await.code;
                self.feed.refuse(slot, code);
            }
        }
    }

    fn look_up_chain(&mut self) {
        self.chain_due = Instant::now() + limits::CHAIN_TOLD_INTERVAL;
        if self.chain.is_empty()
            && let Some(lookup) = self.feed.next_chain()
        {
            self.chain.spawn_blocking(move || (lookup.slot, lookup.run()));
        }
    }

    fn say(&mut self, message: &LeaderMessage, frames: Vec<Bytes>) {
        let mut head = Vec::with_capacity(1 + LeaderMessage::BODY_LEN_MAX);
        message.encode(&mut head);
        self.bytes += head.len() + frames.iter().map(Bytes::len).sum::<usize>();
        self.chunks.push(head.into());
        self.chunks.extend(frames);
    }
}
