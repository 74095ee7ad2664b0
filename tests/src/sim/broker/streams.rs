//! The streams of a broker's process: to its leaders, from its followers, from clients.

use std::sync::Arc;

use bytes::Bytes;
use quire_broker::simulation::{
    Downlink, Event, Feed, Next, PartitionHandle, ProduceRequest, Requests, admit, split,
};
use quire_protocol::batch::BatchHeader;
use quire_protocol::frame::FrameSeed;
use quire_protocol::replicate::{FollowerMessage, LeaderMessage};
use quire_protocol::stream::ProduceHeader;
use quire_protocol::{BrokerId, ErrorCode, limits};
use quire_storage::ReadError;
use tokio::sync::mpsc;

use super::super::network::{End, StreamId};
use super::{Downstream, Effect, Producing, Running, Upstream, Wire};

impl Running {
    /// Sends what waits to be sent.
    pub(super) fn pump(&mut self, effects: &mut Vec<Effect>) {
        for (leader, up) in &mut self.ups {
            match up.stream {
                None if up.uplink.is_wanted() && !up.is_dialing => {
                    up.is_dialing = true;
                    effects.push(Effect::Connect(*leader));
                }
                None => {}
                Some(stream) => {
                    for message in up.uplink.take() {
                        up.note(&message);
                        effects.push(Effect::Send(stream, End::Accepter, Wire::ToLeader(message)));
                    }
                    if !up.uplink.is_wanted() {
                        up.stream = None;
                        self.events.push(Event::LinkDown { leader: *leader });
                        effects.push(Effect::Disconnect(stream, End::Opener));
                        effects.push(Effect::Round);
                    }
                }
            }
        }
        let mut damaged = Vec::new();
        let held = &self.held;
        for (stream, down) in &mut self.downs {
            down.feed.take(|id| {
                let held = held.get(&id).filter(|held| held.shared.is_open())?;
                Some(PartitionHandle::of(Arc::clone(&held.shared)))
            });
            while let Some(next) = down.feed.next() {
                let mut next = Some(next);
                while let Some(now) = next.take() {
                    match now {
                        Next::Send { message, frames } => {
                            let frames = frames.concat().into();
                            let message = Wire::ToFollower(message, frames);
                            effects.push(Effect::Send(*stream, End::Opener, message));
                        }
                        Next::Read(read) => next = down.feed.was_read(read.slot, read.run()),
                        Next::Failed { slot, handle, error } => {
                            if let ReadError::Corrupt { .. } = &error {
                                damaged.push((handle.id(), error.to_string()));
                            }
                            down.feed.refuse(slot, ErrorCode::CorruptLog);
                        }
                    }
                }
            }
        }
        for (partition, what) in damaged {
            self.events.push(Event::Damaged { partition, what });
            effects.push(Effect::Round);
        }
        self.answer_clients(effects);
    }

    fn answer_clients(&mut self, effects: &mut Vec<Effect>) {
        self.producing.retain(|stream, producing| {
            loop {
                let wire = match producing.replies.try_recv() {
                    Ok(Ok(ack)) => Wire::Acked(ack),
                    Ok(Err(error)) => {
                        effects.push(Effect::Send(*stream, End::Opener, Wire::Failed(error.code)));
                        return false;
                    }
                    Err(mpsc::error::TryRecvError::Empty) => return true,
                    Err(mpsc::error::TryRecvError::Disconnected) => return false,
                };
                effects.push(Effect::Send(*stream, End::Opener, wire));
            }
        });
    }

    /// Tells the next follower's stream what its partition's history is.
    pub fn tell_chains(&mut self, effects: &mut Vec<Effect>) {
        for (stream, down) in &mut self.downs {
            let Some(lookup) = down.feed.next_chain() else { continue };
            let (slot, found) = (lookup.slot, lookup.run());
            if let Some(message) = down.feed.chain(slot, found) {
                effects.push(Effect::Send(*stream, End::Opener, Wire::ToFollower(message, Bytes::new())));
            }
        }
    }

    /// The stream to a leader is there.
    pub fn linked(&mut self, leader: BrokerId, stream: StreamId, effects: &mut Vec<Effect>) {
        let Some(up) = self.ups.get_mut(&leader) else { return };
        up.is_dialing = false;
        up.stream = Some(stream);
        up.asked.clear();
        self.events.push(Event::LinkUp { leader });
        effects.push(Effect::Round);
    }

    /// A stream is gone; the leader that is to be dialed again, if it was to one.
    pub fn unlinked(&mut self, stream: StreamId, effects: &mut Vec<Effect>) -> Option<BrokerId> {
        if let Some(down) = self.downs.remove(&stream) {
            down.link.close();
        }
        self.producing.remove(&stream);
        let (leader, up) = self.ups.iter_mut().find(|(_, up)| up.stream == Some(stream))?;
        up.stream = None;
        up.is_dialing = true;
        let leader = *leader;
        self.events.push(Event::LinkDown { leader });
        effects.push(Effect::Round);
        Some(leader)
    }

    /// Something came on a stream that this broker opened. Whether it can be taken.
    pub fn take_as_opener(&mut self, stream: StreamId, wire: Wire, effects: &mut Vec<Effect>) -> bool {
        let Some((leader, up)) = self.ups.iter_mut().find(|(_, up)| up.stream == Some(stream)) else {
            return true;
        };
        let Wire::ToFollower(message, bytes) = wire else { unreachable!("a leader does not send {wire:?}") };
        let leader = *leader;
        let frames = match &message {
            LeaderMessage::Frames { slot, .. } => match up.asked.get(slot) {
                Some(seed) => match split(*seed, bytes) {
                    Ok(frames) => frames,
                    Err(_) => return false,
                },
                None => Default::default(),
            },
            LeaderMessage::Refused { slot, .. } | LeaderMessage::Diverging { slot, .. } => {
                up.asked.remove(slot);
                Default::default()
            }
            _ => Default::default(),
        };
        self.events.push(Event::Told { leader, message, frames });
        effects.push(Effect::Round);
        true
    }

    /// Something came on a stream that `from` opened.
    pub fn take_as_accepter(
        &mut self,
        stream: StreamId,
        from: BrokerId,
        wire: Wire,
        effects: &mut Vec<Effect>,
    ) {
        match wire {
            Wire::ToLeader(message) => {
                let down = self.downs.entry(stream).or_insert_with(|| {
                    let link = Arc::new(Downlink::new(from));
                    let (requests, feed) = (Requests::new(Arc::clone(&link)), Feed::new(Arc::clone(&link)));
                    Downstream { link, requests, feed }
                });
                let events = down.requests.take(message, 1, |_| 0).expect("there are few partitions");
                self.events.extend(events.into_iter().map(|(_, event)| event));
                self.pump(effects);
                effects.push(Effect::Round);
            }
            Wire::OpenProduce(header) => self.open_producing(stream, header, effects),
            Wire::Batch(batch) => self.produce(stream, &batch, effects),
            Wire::Finish => {
                if let Some(producing) = self.producing.get_mut(&stream) {
                    producing.reply = None;
                }
            }
            other => unreachable!("nobody who opens a stream sends {other:?}"),
        }
    }

    fn open_producing(&mut self, stream: StreamId, header: ProduceHeader, effects: &mut Vec<Effect>) {
        let handle = match self.partition(header.partition) {
            Some(handle) if handle.standing().is_leading && self.closing.is_none() => Ok(handle),
            Some(_) => Err(ErrorCode::NotLeader),
            None if self.image().topic(header.partition.topic).is_none() => Err(ErrorCode::UnknownTopic),
            None => Err(ErrorCode::Unavailable),
        };
        let admitted = handle.and_then(|handle| {
            admit(&handle, &header).map(|opened| (handle, opened)).map_err(|error| error.code)
        });
        let wire = match admitted {
            Ok((handle, opened)) => {
                let (reply, replies) = mpsc::channel(limits::PRODUCE_WINDOW_BATCHES as usize + 1);
                let producing = Producing { handle, header, reply: Some(reply), replies };
                self.producing.insert(stream, producing);
                Wire::Opened(opened)
            }
            Err(code) => Wire::Failed(code),
        };
        effects.push(Effect::Send(stream, End::Opener, wire));
    }

    fn produce(&mut self, stream: StreamId, batch: &Bytes, effects: &mut Vec<Effect>) {
        let Some(producing) = self.producing.get(&stream) else { return };
        let Some(reply) = producing.reply.clone() else { return };
        let permit = Arc::clone(&self.memory).try_acquire_owned().expect("there is room");
        let request = ProduceRequest {
            header: BatchHeader::check(batch).expect("streams do not damage what they carry"),
            batch: batch.to_vec(),
            leader_epoch: producing.header.leader_epoch,
            acks: producing.header.acks,
            permit,
            reply,
        };
        self.events.push(Event::Produce(producing.handle.id(), request));
        effects.push(Effect::Round);
    }
}

impl Upstream {
    fn note(&mut self, message: &FollowerMessage) {
        match message {
            FollowerMessage::Follow(follow) => {
                self.asked.insert(follow.slot, FrameSeed::new(follow.partition));
            }
            FollowerMessage::Unfollow { slot } => {
                self.asked.remove(slot);
            }
            FollowerMessage::Progress(_) => {}
        }
    }
}
