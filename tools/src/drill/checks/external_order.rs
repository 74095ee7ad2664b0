//! External order: what is sent after an offset was acknowledged stands above it, and no offset is acknowledged twice.

use super::account::Account;
use super::{Check, Event, Findings, Moment};

pub(super) struct ExternalOrder;

impl Check for ExternalOrder {
    fn see(&mut self, moment: &Moment, event: &Event, account: &Account, found: &mut Findings) {
        let Event::Acknowledged { partition, value, offset, .. } = *event else { return };
        let index = moment.index;
        if let Some(other) = account.slot(partition, offset).acknowledged {
            found.add(|| {
                format!("{partition} offset {offset} was acknowledged for {other}, then for {value} (operation {index})")
            });
            return;
        }
        let before = account.sent(value).and_then(|sent| sent.acknowledged_before);
        if let Some(before) = before.filter(|before| *before > offset) {
            found.add(|| {
                format!("{partition} {value} was sent after {before} was acknowledged, and is at {offset} (operation {index})")
            });
        }
    }
}
