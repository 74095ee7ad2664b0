//! Whose turn it is to be compacted: one log of a shard at a time, since the keys of each take memory.
//!
//! A round looks at every log of the shard once, and begins at the retention's pace. Most have nothing to be done.

use std::collections::VecDeque;

use quire_protocol::TopicPartition;

use super::clock::Now;
use super::{Shard, Slot};

/// How far the shard is.
#[derive(Debug, Default)]
pub(super) struct Compacting {
    /// Whose log is compacted.
    current: Option<TopicPartition>,
    /// Those whose turn comes in this round.
    waiting: VecDeque<TopicPartition>,
}

impl Compacting {
    /// Looks at all of these, unless the last round is not over.
    pub(super) fn begin_round(&mut self, partitions: impl Iterator<Item = TopicPartition>) {
        if self.waiting.is_empty() {
            self.waiting.extend(partitions);
        }
    }
}

impl Shard {
    /// Goes on with the next log that is due once none is compacted.
    pub(super) fn compact_next(&mut self, now: Now) {
        if let Some(current) = self.compacting.current {
            if let Some(Slot::Open { partition, end: None }) = self.slots.get(&current)
                && partition.is_compacting()
            {
                return;
            }
            self.compacting.current = None;
        }
        while let Some(id) = self.compacting.waiting.pop_front() {
            if let Some(Slot::Open { partition, end: None }) = self.slots.get_mut(&id)
                && partition.compact(now)
            {
                self.compacting.current = Some(id);
                self.touch(id);
                return;
            }
        }
    }
}
