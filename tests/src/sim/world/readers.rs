//! What consumers read: from whoever some broker takes for the leader, up to its high watermark, piece by piece.
//!
//! A consumer asks for one piece at a time of each partition. What it reads has to go on where it was, and to be what is
//! committed there; and a leader that knows how far the log is committed never knows of less than was read before.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use quire_broker::simulation::Event;
use quire_engine::Time;
use quire_protocol::frame::FrameHeader;
use quire_protocol::{BrokerId, LeaderEpoch, OFFSETS_TOPIC, Offset, TopicPartition};
use quire_storage::{ReadError, Residency};

use super::super::broker::{Effect, Running};
use super::super::invariants::{Frame, Violation};
use super::super::network::Node;
use super::{Happening, World, node};

/// The consumer that is in no group, and reads everything.
pub(super) const LONE_READER: Node = Node(400);
/// How long a piece is waited for.
const PATIENCE: Duration = Duration::from_millis(400);
/// A piece is at least one frame, and from so many bytes on no more.
const PIECE_BYTES: usize = 4096;

/// Where a consumer is in a partition.
#[derive(Debug)]
pub(super) struct Reading {
    /// The next record that it reads.
    pub(super) next: Offset,
    /// The latest leadership that it has heard of: it does not go back to an earlier one.
    leader_epoch: LeaderEpoch,
    /// What it asks for, and since when.
    asked: Option<(u64, Time)>,
}

impl Reading {
    /// One that begins there.
    pub(super) fn at(next: Offset) -> Reading {
        Reading { next, leader_epoch: LeaderEpoch(0), asked: None }
    }
}

/// Who reads what.
pub(super) type Readings = BTreeMap<(Node, TopicPartition), Reading>;

/// A request for a piece.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask {
    number: u64,
    reader: Node,
    partition: TopicPartition,
    from: Offset,
}

/// What a broker answers.
#[derive(Debug)]
pub(super) enum Piece {
    /// These come next; none if all was read that is committed.
    Frames(Vec<Frame>),
    /// What was asked for is deleted: the log begins here.
    Begins(Offset),
    /// What was asked for is beyond the end of all that is committed, for certain.
    Ends(Offset, LeaderEpoch),
    /// It does not lead, or does not know yet how far the log is committed, or can not read.
    Unavailable,
}

impl World {
    /// The lone reader goes on.
    pub(super) fn read_on(&mut self) {
        for partition in self.consumable() {
            self.readings.entry((LONE_READER, partition)).or_insert_with(|| Reading::at(Offset::ZERO));
            self.read(LONE_READER, partition);
        }
        let delay = self.dice_of_readers.wait(Duration::from_millis(5), Duration::from_millis(60));
        self.schedule.after(delay, Happening::ReadOn);
    }

    /// Every partition that consumers read.
    pub(super) fn consumable(&self) -> Vec<TopicPartition> {
        let topics = self.metadata.0.image().topics().filter(|topic| *topic.name != *OFFSETS_TOPIC);
        topics
            .flat_map(|topic| topic.partitions.iter().map(|known| (topic.id, known.index)))
            .map(|(topic, partition)| TopicPartition { topic, partition })
            .collect()
    }

    /// A consumer asks for what comes next, unless it waits for that.
    pub(super) fn read(&mut self, reader: Node, partition: TopicPartition) {
        let now = self.schedule.now();
        let Some(reading) = self.readings.get(&(reader, partition)) else { return };
        let from = reading.next;
        if reading.asked.is_some_and(|(_, since)| now < since + PATIENCE) {
            return;
        }
        let ids: Vec<BrokerId> = self.brokers.keys().copied().collect();
        let asked = *self.dice_of_readers.pick(&ids).expect("there are brokers");
        let Some((leader, leader_epoch)) = self.leader_known_to(reader, asked, partition) else { return };
        let reading = self.readings.get_mut(&(reader, partition)).expect("just found");
        if leader_epoch < reading.leader_epoch {
            return;
        }
        self.next_ask += 1;
        let number = self.next_ask;
        (reading.leader_epoch, reading.asked) = (leader_epoch, Some((number, now)));
        if let Some(due) = self.network.call(now, reader, node(leader)) {
            let ask = Ask { number, reader, partition, from };
            self.schedule.at(due, Happening::AskedToRead { leader, ask });
        }
    }

    /// Whom a broker takes for a partition's leader, if it can be asked.
    pub(super) fn leader_known_to(
        &self,
        asker: Node,
        broker: BrokerId,
        partition: TopicPartition,
    ) -> Option<(BrokerId, LeaderEpoch)> {
        let there = node(broker);
        let is_cut = self.network.is_cut(asker, there) || self.network.is_cut(there, asker);
        let running = self.brokers[&broker].running.as_ref().filter(|running| !running.is_paused && !is_cut);
        let known = running?.image().partition(partition)?;
        Some((known.leader?, known.leader_epoch))
    }

    /// A broker is asked for records.
    pub(super) fn asked_to_read(&mut self, leader: BrokerId, ask: Ask) -> Result<(), Violation> {
        match &self.brokers[&leader].running {
            None => return Ok(()),
            Some(running) if running.is_paused => {
                let again = Happening::AskedToRead { leader, ask };
                self.missed.entry(leader).or_default().push(again);
                return Ok(());
            }
            Some(_) => {}
        }
        let mut piece = Piece::Unavailable;
        self.tell(leader, |running, effects| piece = running.piece(ask, effects))?;
        let now = self.schedule.now();
        if let Some(due) = self.network.call(now, node(leader), ask.reader) {
            self.schedule.at(due, Happening::Read { ask, piece });
        }
        Ok(())
    }

    /// What a consumer asked for arrives.
    pub(super) fn has_read(&mut self, ask: Ask, piece: Piece) -> Result<(), Violation> {
        let Ask { number, reader, partition, from } = ask;
        let Some(reading) = self.readings.get_mut(&(reader, partition)) else { return Ok(()) };
        if reading.asked.is_none_or(|(asked, _)| asked != number) {
            return Ok(());
        }
        reading.asked = None;
        match piece {
            Piece::Frames(frames) => {
                self.invariants.consumed(reader.0, partition, from, &frames)?;
                reading.next = frames.last().map_or(from, |last| last.end);
                self.coverage.consumed += frames.len() as u64;
            }
            Piece::Begins(start) => {
                reading.next = start;
                self.say(format_args!("consumer {}: {partition} begins at {start}", reader.0));
            }
            Piece::Ends(end, leader_epoch) => {
                if self.invariants.ends_before(partition, from, end, leader_epoch)? {
                    reading.next = end;
                }
                self.say(format_args!("consumer {}: {partition} ends at {end}, before {from}", reader.0));
            }
            Piece::Unavailable => {}
        }
        Ok(())
    }
}

impl Running {
    /// What comes next in a partition, as far as this broker may say.
    pub(super) fn piece(&mut self, ask: Ask, effects: &mut Vec<Effect>) -> Piece {
        let Some(handle) = self.partition(ask.partition) else { return Piece::Unavailable };
        let (standing, reader) = (handle.standing(), handle.reader());
        let (start, high) = (reader.log_start(), reader.high_watermark());
        if !standing.is_leading {
            return Piece::Unavailable;
        }
        if ask.from < start {
            return Piece::Begins(start);
        }
        if ask.from > high {
            return if standing.is_settled {
                Piece::Ends(high, standing.leader_epoch)
            } else {
                Piece::Unavailable
            };
        }
        match reader.read(ask.from, PIECE_BYTES, high, Residency::Any) {
            Ok(slice) => Piece::Frames(frames_of(slice.frames.concat().into())),
            Err(error) => {
                if let ReadError::Corrupt { .. } = &error {
                    let (partition, what) = (ask.partition, error.to_string());
                    self.events.push(Event::Damaged { partition, what });
                    effects.push(Effect::Round);
                }
                Piece::Unavailable
            }
        }
    }
}

fn frames_of(mut bytes: Bytes) -> Vec<Frame> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let header = FrameHeader::parse(&bytes).expect("a reader serves frames that it has checked");
        drop(bytes.split_to(header.frame_len()));
        frames.push(Frame::of(&header));
    }
    frames
}
