//! Which frames tell what a producer sent last: they stay, so that a replica that makes its producers' state from the log
//! again knows of each the number that comes next, and what it may send again.

use std::collections::{BTreeMap, HashMap, VecDeque};

use quire_protocol::batch::BatchHeader;
use quire_protocol::frame::FrameHeader;
use quire_protocol::ids::{Offset, ProducerId, Timestamp};
use quire_protocol::limits;

const WINDOW: usize = limits::PRODUCE_WINDOW_BATCHES as usize;

/// The producers of a log, as far as they are remembered.
#[derive(Debug)]
pub(super) struct Producers {
    now: Timestamp,
    /// Base offsets of each one's last frames, oldest first.
    frames: HashMap<ProducerId, VecDeque<Offset>>,
    /// Who wrote the last frame of a producer, oldest first.
    by_last: BTreeMap<Offset, ProducerId>,
}

impl Producers {
    pub(super) fn new(now: Timestamp) -> Producers {
        Producers { now, frames: HashMap::new(), by_last: BTreeMap::new() }
    }

    /// Whether a producer that wrote at this time last is forgotten by now.
    pub(super) fn is_forgotten(&self, append_time: Timestamp) -> bool {
        self.age_ms(append_time) >= limits::PRODUCER_EXPIRY.as_millis() as i64
    }

    /// Takes note of the next frame.
    pub(super) fn note(&mut self, frame: &FrameHeader, batch: &BatchHeader) {
        let Ok(Some(numbering)) = batch.numbering() else { return };
        if self.is_forgotten(frame.append_time) {
            return;
        }
        let id = numbering.producer.id;
        let frames = self.frames.entry(id).or_default();
        if let Some(last) = frames.back() {
            self.by_last.remove(last);
        }
        if frames.len() == WINDOW {
            frames.pop_front();
        }
        frames.push_back(frame.base_offset);
        self.by_last.insert(frame.base_offset, id);
        // A partition remembers no more, those that wrote last.
        if self.by_last.len() > limits::PRODUCERS_PER_PARTITION
            && let Some((_, oldest)) = self.by_last.pop_first()
        {
            self.frames.remove(&oldest);
        }
    }

    /// Whether the frame tells what its producer sent last, or sent so lately that it may send it again.
    pub(super) fn remembers(&self, frame: &FrameHeader, batch: &BatchHeader) -> bool {
        let Ok(Some(numbering)) = batch.numbering() else { return false };
        let Some(frames) = self.frames.get(&numbering.producer.id) else { return false };
        let is_last = frames.back() == Some(&frame.base_offset);
        let is_recent = self.age_ms(frame.append_time) < limits::PRODUCER_IDLE_TIME.as_millis() as i64;
        is_last || (is_recent && frames.contains(&frame.base_offset))
    }

    fn age_ms(&self, append_time: Timestamp) -> i64 {
        self.now.0.saturating_sub(append_time.0)
    }
}
