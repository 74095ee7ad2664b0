//! Duplicates: one value stands at two offsets.

use super::account::Account;
use super::{Check, Event, Findings, Moment};

pub(super) struct Duplicates;

impl Check for Duplicates {
    fn see(&mut self, moment: &Moment, event: &Event, account: &Account, found: &mut Findings) {
        let (partition, offset, value) = match *event {
            Event::Read { partition, read, .. } => (partition, read.offset, read.value),
            Event::Acknowledged { partition, value, offset, .. } => (partition, offset, value),
            _ => return,
        };
        // In another partition it is a phantom.
        let Some(sent) = account.sent(value).filter(|sent| sent.partition == partition) else { return };
        // A second copy is told once, however often it is read.
        let slot = account.slot(partition, offset);
        if slot.read == Some(value) || slot.acknowledged == Some(value) {
            return;
        }
        if let Some(place) = sent.place().filter(|place| *place != offset) {
            found.add(|| {
                format!("{partition} {value} stands at {place}, and at {offset} (operation {})", moment.index)
            });
        }
    }
}
