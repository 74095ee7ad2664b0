//! Reading what nobody reads: a shard has its logs gone through again, one after another, at a bounded rate, so that damage is
//! found while another replica still has what was damaged.
//!
//! A step is a value that is run by a thread of its own, for all shards together, so that nothing that somebody waits for
//! stands behind it: no more than one piece is read at a time. What it finds comes back as an event.

use std::io;
use std::time::Duration;

use quire_engine::Time;
use quire_protocol::{PartitionIndex, TopicId, TopicPartition};
use quire_storage::{LogReader, ReadError, Scrub, Scrubbed};

use super::clock::Now;
use super::event::Event;
use super::{Shard, Slot};

/// Bytes read by one step: what it takes from a disk is over in a few milliseconds.
const STEP_BYTES: u64 = 1024 * 1024;
/// Before every other partition.
const FIRST: TopicPartition = TopicPartition { topic: TopicId([0; 16]), partition: PartitionIndex(0) };
/// What a disk answers that can not read a block.
const EIO: i32 = 5;
/// The time between two steps at least: a step that finds little to read costs something too.
const STEP_PAUSE_MIN: Duration = Duration::from_millis(5);

/// How a shard's logs are read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrubOptions {
    /// Bytes a second; 0 reads none.
    pub bytes_per_second: u64,
    /// A round over all logs begins at most so often.
    pub interval: Duration,
}

/// How far the shard is.
#[derive(Debug)]
pub(super) struct Scrubbing {
    options: ScrubOptions,
    /// When the round under way began.
    began: Time,
    /// Where the next step is; none before the first partition of a round.
    at: Option<(TopicPartition, Scrub)>,
    /// When the next step is due; none while one is under way.
    due: Option<Time>,
}

/// A piece of a log that is to be read.
#[derive(Debug)]
pub struct ScrubStep {
    partition: TopicPartition,
    reader: LogReader,
    scrub: Scrub,
}

/// What came of a step.
#[derive(Debug)]
pub struct ScrubDone {
    pub(super) partition: TopicPartition,
    pub(super) result: Result<Scrubbed, ReadError>,
}

impl ScrubStep {
    /// Does it, however long that takes.
    pub fn run(self) -> Event {
        let result = self.reader.scrub(self.scrub, STEP_BYTES);
        Event::Scrubbed(ScrubDone { partition: self.partition, result })
    }
}

impl Scrubbing {
    /// Begins with a round, unless nothing is to be read.
    pub(super) fn start(now: Time, options: ScrubOptions) -> Option<Scrubbing> {
        let is_wanted = options.bytes_per_second > 0;
        is_wanted.then_some(Scrubbing { options, began: now, at: None, due: Some(now) })
    }

    pub(super) fn due(&self) -> Option<Time> {
        self.due
    }

    /// So much was read; `rest` is where that partition goes on.
    fn stepped(&mut self, now: Time, partition: TopicPartition, bytes: u64, rest: Option<Scrub>) {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.options.bytes_per_second);
        let pause = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).max(STEP_PAUSE_MIN);
        self.due = Some(now + pause);
        // Gone through: the next partition's turn.
        self.at = Some(rest.map_or((after(partition), Scrub::new()), |rest| (partition, rest)));
    }

    fn round_ended(&mut self, now: Time) {
        let due = (self.began + self.options.interval).max(now + STEP_PAUSE_MIN);
        self.due = Some(due);
        self.began = due;
        self.at = None;
    }
}

/// The partition that comes next in order.
fn after(id: TopicPartition) -> TopicPartition {
    let mut next = id;
    match id.partition.0.checked_add(1) {
        Some(partition) => next.partition.0 = partition,
        None => {
            next.topic.0 = (u128::from_be_bytes(id.topic.0).wrapping_add(1)).to_be_bytes();
            next.partition.0 = 0;
        }
    }
    next
}

impl Shard {
    /// Has the shard's logs read again from here on, at this rate. Without it they are not.
    pub fn scrub(&mut self, now: Now, options: ScrubOptions) {
        self.scrubbing = Scrubbing::start(now.time, options);
    }

    /// The piece of a log that is to be read next, if it is time for one; [`ScrubStep::run`] gives the event that tells what
    /// came of it.
    pub fn take_scrub(&mut self, now: Now) -> Option<ScrubStep> {
        let scrubbing = self.scrubbing.as_mut()?;
        scrubbing.due.filter(|due| *due <= now.time)?;
        if self.closing.is_some() {
            scrubbing.due = None;
            return None;
        }
        let from = scrubbing.at.map(|(partition, _)| partition);
        let found = self.slots.range(from.unwrap_or(FIRST)..).find_map(|(id, slot)| match slot {
            Slot::Open { partition, end: None } => Some((*id, partition.scrubbed()?)),
            _ => None,
        });
        let Some((partition, reader)) = found else {
            scrubbing.round_ended(now.time);
            return None;
        };
        let begun = scrubbing.at.filter(|(id, _)| *id == partition).map(|(_, scrub)| scrub);
        scrubbing.due = None;
        Some(ScrubStep { partition, reader, scrub: begun.unwrap_or_else(Scrub::new) })
    }

    /// A step is done.
    pub(super) fn scrubbed(&mut self, now: Now, done: ScrubDone) {
        let ScrubDone { partition: id, result } = done;
        let (bytes, rest) = match &result {
            Ok(Scrubbed { bytes, rest }) => (*bytes, *rest),
            Err(_) => (STEP_BYTES, None),
        };
        self.metrics.scrubbed_bytes.increment(if result.is_ok() { bytes } else { 0 });
        if let Some(scrubbing) = &mut self.scrubbing {
            scrubbing.stepped(now.time, id, bytes, rest);
        }
        let Err(error) = result else { return };
        let Some(Slot::Open { partition, .. }) = self.slots.get_mut(&id) else { return };
        if !is_damage(&error, partition.shared().is_replicated()) {
            tracing::error!(partition = %id, %error, "a log can not be read");
            return;
        }
        self.metrics.scrub_damage.increment(1);
        partition.damaged(now, format!("found by reading it again: {error}"));
        self.touch(id);
    }
}

/// Whether the disk does not have what was written. That it can not be read may pass, as a lack of descriptors or of memory
/// does: the only replica is not given up for it.
pub(super) fn is_damage(error: &ReadError, is_replicated: bool) -> bool {
    match error {
        ReadError::Corrupt { .. } => true,
        ReadError::Io { source, .. } => {
            let is_unreadable =
                source.kind() == io::ErrorKind::UnexpectedEof || source.raw_os_error() == Some(EIO);
            is_unreadable && is_replicated
        }
        ReadError::OutOfRange { .. } | ReadError::NotResident => false,
    }
}
