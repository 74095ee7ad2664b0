//! Deposed leaders: a leader acknowledged a record when another leadership had taken its place.
//!
//! It shows in two ways: a record that was sent after a later leadership had acknowledged something is acknowledged as of an
//! earlier one; or what stands at the offset of an acknowledgement, on a replica, is of another leadership than it said.

use std::collections::BTreeMap;

use quire_protocol::{LeaderEpoch, Offset, TopicPartition};

use super::account::Account;
use super::{Check, Event, Findings, Moment};
use crate::drill::history::Value;

#[derive(Default)]
pub(super) struct DeposedLeaders {
    /// The latest leadership of each partition that acknowledged anything.
    latest: BTreeMap<TopicPartition, LeaderEpoch>,
    /// What that was when a value was sent.
    latest_before: BTreeMap<Value, LeaderEpoch>,
    acknowledged: BTreeMap<(TopicPartition, Offset), (Value, LeaderEpoch)>,
    /// The leadership of each frame, by its first offset.
    frames: BTreeMap<(TopicPartition, Offset), LeaderEpoch>,
}

impl Check for DeposedLeaders {
    fn see(&mut self, moment: &Moment, event: &Event, _: &Account, found: &mut Findings) {
        match *event {
            Event::Invoked { partition, value } => {
                if let Some(latest) = self.latest.get(&partition) {
                    self.latest_before.entry(value).or_insert(*latest);
                }
            }
            Event::Acknowledged { partition, value, offset, epoch: Some(epoch) } => {
                let latest = self.latest.entry(partition).or_insert(epoch);
                *latest = epoch.max(*latest);
                if let Some(before) = self.latest_before.get(&value).filter(|before| epoch < **before) {
                    found.add(|| {
                        format!(
                            "{partition} {value} was sent after leadership {before} had acknowledged, and was acknowledged \
                             by leadership {epoch} (operation {})",
                            moment.index
                        )
                    });
                } else {
                    self.acknowledged.entry((partition, offset)).or_insert((value, epoch));
                }
            }
            Event::Frame { partition, offset, epoch, .. } => {
                self.frames.entry((partition, offset)).or_insert(epoch);
            }
            _ => {}
        }
    }

    fn conclude(&mut self, _: &Account, found: &mut Findings) {
        for ((partition, offset), (value, epoch)) in &self.acknowledged {
            let place = (*partition, Offset::ZERO)..=(*partition, *offset);
            // Where no replica was read, or retention has been, nothing shows.
            let Some((_, stands)) = self.frames.range(place).next_back() else { continue };
            if stands != epoch {
                found.add(|| {
                    format!(
                        "{partition} offset {offset}: {value} was acknowledged by leadership {epoch}; what stands there is \
                         of leadership {stands}"
                    )
                });
            }
        }
    }
}
