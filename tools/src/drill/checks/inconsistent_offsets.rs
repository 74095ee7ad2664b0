//! Inconsistent offsets: one offset of a partition has two values, among reads, or a read and an acknowledgement.

use super::account::Account;
use super::{Check, Event, Findings, Moment};

pub(super) struct InconsistentOffsets;

impl Check for InconsistentOffsets {
    fn see(&mut self, moment: &Moment, event: &Event, account: &Account, found: &mut Findings) {
        let (partition, offset, value) = match *event {
            Event::Read { partition, read, .. } => (partition, read.offset, read.value),
            Event::Acknowledged { partition, value, offset, .. } => (partition, offset, value),
            _ => return,
        };
        let slot = account.slot(partition, offset);
        let known = match event {
            // Two acknowledgements of one offset break the external order, and are told there.
            Event::Acknowledged { .. } => slot.read,
            _ => slot.told(),
        };
        // Told once, however often it is read.
        let known = known.filter(|_| !slot.is_contested);
        if let Some(known) = known.filter(|known| *known != value) {
            found.add(|| {
                format!("{partition} offset {offset} is {known}, and {value} at operation {}", moment.index)
            });
        }
    }
}
