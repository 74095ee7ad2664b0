//! Skips: a reader with a fixed assignment was given a record beyond the next one.
//!
//! Records are dense: nothing here compacts or writes markers. Retention that overtakes a reader makes it seek.

use super::account::Account;
use super::{Check, Event, Findings, Moment};

pub(super) struct Skips;

impl Check for Skips {
    fn see(&mut self, moment: &Moment, event: &Event, account: &Account, found: &mut Findings) {
        let Event::Read { partition, read, .. } = *event else { return };
        let position = account.position(moment.process, partition);
        if let Some(position) = position.filter(|position| read.offset > *position) {
            found.add(|| {
                let (process, index) = (moment.process, moment.index);
                let offset = read.offset;
                format!("{partition} reader {process} was at {position} and was given {offset} (operation {index})")
            });
        }
    }
}
