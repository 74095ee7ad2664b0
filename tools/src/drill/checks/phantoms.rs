//! Phantoms: a value was read, or acknowledged, that nobody had sent to that partition.

use super::account::Account;
use super::{Check, Event, Findings, Moment};

pub(super) struct Phantoms;

impl Check for Phantoms {
    fn see(&mut self, moment: &Moment, event: &Event, account: &Account, found: &mut Findings) {
        let (partition, offset, value) = match *event {
            Event::Read { partition, read, .. } => (partition, read.offset, read.value),
            Event::Acknowledged { partition, value, offset, .. } => (partition, offset, value),
            _ => return,
        };
        // Told once, however often it is read.
        let is_known = account.slot(partition, offset).read == Some(value);
        if !is_known && account.sent(value).is_none_or(|sent| sent.partition != partition) {
            let index = moment.index;
            found.add(|| {
                format!("{partition} offset {offset}: nobody had sent {value} there (operation {index})")
            });
        }
    }
}
