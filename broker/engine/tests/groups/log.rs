//! The partition's log in the simulation: what is committed, and what follows from it for everybody.

use std::collections::BTreeMap;
use std::sync::Arc;

use quire_engine::group::records::{Current, KeyValue};
use quire_engine::group::{Partitions, Record};
use quire_protocol::TopicPartition;

/// What is committed, and who may add to it.
#[derive(Default)]
pub struct Log {
    pub records: Vec<KeyValue>,
    pub leader_epoch: u32,
    pub leader: usize,
    /// Where each leadership that is over ended.
    ends: BTreeMap<u32, usize>,
    /// What each member has, as of the end.
    pub members: BTreeMap<Arc<str>, Current>,
    /// What is committed, as of the end.
    pub offsets: BTreeMap<TopicPartition, u64>,
}

impl Log {
    pub fn is_led_by(&self, node: usize, leader_epoch: u32) -> bool {
        self.leader == node && self.leader_epoch == leader_epoch
    }

    /// Begins another leadership.
    pub fn hand_to(&mut self, node: usize) {
        self.ends.insert(self.leader_epoch, self.records.len());
        self.leader_epoch += 1;
        self.leader = node;
    }

    /// What the leader of an epoch can read.
    pub fn readable(&self, leader_epoch: u32) -> &[KeyValue] {
        let end = self.ends.get(&leader_epoch).copied().unwrap_or(self.records.len());
        &self.records[..end]
    }

    /// Adds a batch, and says what is wrong with what follows from it.
    pub fn append(&mut self, batch: &[KeyValue]) -> Result<(), String> {
        for (key, value) in batch {
            match Record::decode(key, value.as_deref()).map_err(|error| error.to_string())? {
                Record::Current { member, value: Some(current), .. } => {
                    self.members.insert(member, current);
                }
                Record::Current { member, value: None, .. } => {
                    self.members.remove(&member);
                }
                Record::Offset { partition, value: Some(committed), .. } => {
                    let before = self.offsets.insert(partition, committed.offset.0);
                    if before.is_some_and(|before| before > committed.offset.0) {
                        return Err(format!("the offset of {partition} goes back in the log"));
                    }
                }
                _ => {}
            }
        }
        self.records.extend_from_slice(batch);
        let mut held = Partitions::new();
        for partition in self.members.values().flat_map(|has| has.assigned.iter().chain(&has.revoking)) {
            if !held.insert(*partition) {
                return Err(format!("{partition} has two owners in the log"));
            }
        }
        Ok(())
    }
}
