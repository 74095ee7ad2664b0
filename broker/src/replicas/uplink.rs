//! The follower's end of a replicate stream: one for each shard and leader, opened again when it is lost.
//!
//! What the shard leaves in the mailbox goes out; what the leader sends goes into the shard, frames only after each was
//! checked completely. Nothing here waits for the shard: what a leader may send ahead is bounded by credit.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use quire_protocol::frame::{FrameError, FrameHeader, FrameSeed};
use quire_protocol::replicate::{FollowerMessage, LeaderMessage};
use quire_protocol::stream::StreamError;
use quire_protocol::{TopicPartition, limits};

use super::Dial;
use crate::shard::{Event, Fetched, Router, Uplink};

/// Why a stream is of no use any more.
#[derive(Debug, thiserror::Error)]
enum End {
    /// Nothing is followed there any more.
    #[error("nothing is followed any more")]
    Unwanted,
    /// It was lost.
    #[error("the stream was lost: {0}")]
    Lost(String),
    /// What the leader sent is no message.
    #[error(transparent)]
    Malformed(#[from] StreamError),
    /// What the leader sent was damaged on its way, or before.
    #[error("{partition}: {error}")]
    Damaged {
        /// Of this partition.
        partition: TopicPartition,
        /// What is wrong with it.
        error: FrameError,
    },
}

/// Keeps a stream to the leader while it is wanted.
pub(super) async fn keep(uplink: Arc<Uplink>, shard: usize, router: Router, dial: Arc<dyn Dial>) {
    let leader = uplink.leader();
    let mut pause = limits::REDIAL_PAUSE_MIN;
    loop {
        while !uplink.is_wanted() {
            uplink.changed().await;
        }
        let (send, recv) = match dial.dial(leader, shard).await {
            Ok(stream) => stream,
            Err(why) => {
                tracing::debug!(%leader, shard, why, "a leader can not be reached");
                tokio::time::sleep(pause).await;
                pause = (2 * pause).min(limits::REDIAL_PAUSE_MAX);
                continue;
            }
        };
        router.send(shard, Event::LinkUp { leader });
        let began = tokio::time::Instant::now();
        let end = exchange(&uplink, shard, &router, send, recv).await;
        router.send(shard, Event::LinkDown { leader });
        match end {
            End::Unwanted => {}
            End::Lost(_) => tracing::debug!(%leader, shard, %end, "a leader's stream ended"),
            End::Malformed(_) | End::Damaged { .. } => {
                tracing::error!(%leader, shard, %end, "what a leader sends can not be taken; it is asked again");
            }
        }
        if began.elapsed() > limits::REDIAL_PAUSE_MAX {
            pause = limits::REDIAL_PAUSE_MIN;
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(limits::REDIAL_PAUSE_MAX);
    }
}

async fn exchange(
    uplink: &Uplink,
    shard: usize,
    router: &Router,
    mut send: SendStream,
    mut recv: RecvStream,
) -> End {
    let asked = Asked::default();
    let end = tokio::select! {
        end = send_all(uplink, &asked, &mut send) => end,
        end = receive_all(uplink, &asked, shard, router, &mut recv) => end,
    };
    // A stream that is dropped would pass for one that ended in order.
    let _ = send.reset(0u32.into());
    end
}

/// The partitions asked for on this stream, by slot.
#[derive(Default)]
struct Asked(Mutex<HashMap<u32, (TopicPartition, FrameSeed)>>);

impl Asked {
    fn note(&self, message: &FollowerMessage) {
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match message {
            FollowerMessage::Follow(follow) => {
                asked.insert(follow.slot, (follow.partition, FrameSeed::new(follow.partition)));
            }
            FollowerMessage::Unfollow { slot } => {
                asked.remove(slot);
            }
            FollowerMessage::Progress(_) => {}
        }
    }

    /// Nothing more comes for a slot that was refused, or whose logs part: it is asked for anew.
    fn forget(&self, slot: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&slot);
    }

    fn find(&self, slot: u32) -> Option<(TopicPartition, FrameSeed)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&slot).copied()
    }
}

async fn send_all(uplink: &Uplink, asked: &Asked, send: &mut SendStream) -> End {
    let mut bytes = Vec::new();
    loop {
        let messages = uplink.take();
        if messages.is_empty() {
            if !uplink.is_wanted() {
                return End::Unwanted;
            }
            uplink.changed().await;
            continue;
        }
        for message in &messages {
            asked.note(message);
            message.encode(&mut bytes);
        }
        if let Err(error) = send.write_all(&bytes).await {
            return End::Lost(error.to_string());
        }
        bytes.clear();
    }
}

async fn receive_all(
    uplink: &Uplink,
    asked: &Asked,
    shard: usize,
    router: &Router,
    recv: &mut RecvStream,
) -> End {
    loop {
        let received = receive(asked, recv).await;
        let (message, frames) = match received {
            Ok(received) => received,
            Err(end) => return end,
        };
        router.send(shard, Event::Told { leader: uplink.leader(), message, frames });
    }
}

async fn receive(asked: &Asked, recv: &mut RecvStream) -> Result<(LeaderMessage, Fetched), End> {
    let mut tag = [0; 1];
    read(recv, &mut tag).await?;
    let mut body = [0; LeaderMessage::BODY_LEN_MAX];
    let body = &mut body[..LeaderMessage::body_len(tag[0])?];
    read(recv, body).await?;
    let message = LeaderMessage::decode(tag[0], body)?;
    let frames = match message {
        LeaderMessage::Frames { slot, length, .. } => {
            let mut bytes = vec![0; length as usize];
            read(recv, &mut bytes).await?;
            match asked.find(slot) {
                Some((partition, seed)) => {
                    split(seed, bytes.into()).map_err(|error| End::Damaged { partition, error })?
                }
                None => Fetched::default(),
            }
        }
        LeaderMessage::Refused { slot, .. } | LeaderMessage::Diverging { slot, .. } => {
            asked.forget(slot);
            Fetched::default()
        }
        LeaderMessage::Accepted { .. } | LeaderMessage::Watermarks { .. } | LeaderMessage::Chain { .. } => {
            Fetched::default()
        }
    };
    Ok((message, frames))
}

async fn read(recv: &mut RecvStream, bytes: &mut [u8]) -> Result<(), End> {
    recv.read_exact(bytes).await.map_err(|error| End::Lost(error.to_string()))
}

/// The frames that these bytes are, each checked completely.
///
/// # Errors
/// If one is not a whole frame of the seed's partition.
pub fn split(seed: FrameSeed, mut bytes: Bytes) -> Result<Fetched, FrameError> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let header = FrameHeader::check(seed, &bytes)?;
        frames.push(bytes.split_to(header.frame_len()));
    }
    Ok(Fetched(frames))
}
