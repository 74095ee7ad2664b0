//! Replica divergence: below their high watermarks two replicas differ, or one differs from what clients were told, or lacks
//! a record.

use std::collections::BTreeMap;

use quire_protocol::frame::Chain;
use quire_protocol::{BrokerId, Offset, TopicPartition};

use super::account::Account;
use super::{Check, Event, Findings, Moment};

/// Each replica as far as it was read in this pass.
#[derive(Default)]
pub(super) struct ReplicaDivergence {
    passes: BTreeMap<(TopicPartition, BrokerId), Pass>,
    /// The first chain that was told of each frame.
    chains: BTreeMap<(TopicPartition, Offset), (BrokerId, Chain)>,
}

struct Pass {
    first: Offset,
    next: Offset,
    is_dense: bool,
}

impl Check for ReplicaDivergence {
    fn see(&mut self, _: &Moment, event: &Event, account: &Account, found: &mut Findings) {
        match *event {
            Event::Replica { partition, broker, read } => {
                let (offset, value) = (read.offset, read.value);
                let start = Pass { first: offset, next: offset, is_dense: true };
                let pass = self.passes.entry((partition, broker)).or_insert(start);
                pass.is_dense &= pass.next == offset;
                pass.next = Offset(offset.0 + 1);
                let slot = account.slot(partition, offset);
                let other = slot.replica.filter(|(_, other)| *other != value);
                let told = slot.told().filter(|told| *told != value && !slot.is_contested);
                if let Some((by, other)) = other {
                    found.add(|| {
                        format!(
                            "{partition} offset {offset}: {other} on broker {by}, {value} on broker {broker}"
                        )
                    });
                } else if let Some(told) = told {
                    found.add(|| {
                        format!("{partition} offset {offset}: {told} for clients, {value} on broker {broker}")
                    });
                }
            }
            Event::Frame { partition, broker, offset, chain, .. } => {
                let (by, other) = *self.chains.entry((partition, offset)).or_insert((broker, chain));
                if other != chain {
                    found.add(|| {
                        format!(
                            "{partition} frame at {offset}: chain {other} on broker {by}, {chain} on broker {broker}"
                        )
                    });
                }
            }
            Event::ReplicaRead { partition, broker, from, to } => {
                let nothing = Pass { first: from, next: from, is_dense: true };
                let pass = self.passes.remove(&(partition, broker)).unwrap_or(nothing);
                if !pass.is_dense || pass.first != from || pass.next != to {
                    found.add(|| {
                        format!(
                            "{partition} on broker {broker}: not every record from {from} to {to} is there"
                        )
                    });
                }
            }
            _ => {}
        }
    }
}
