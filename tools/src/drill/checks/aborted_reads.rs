//! Aborted reads: a value whose write certainly failed was read.

use super::account::{Account, Outcome};
use super::{Check, Event, Findings, Moment};

pub(super) struct AbortedReads;

impl Check for AbortedReads {
    fn see(&mut self, moment: &Moment, event: &Event, account: &Account, found: &mut Findings) {
        let (value, is_aborted) = match *event {
            // Told once, however often it is read.
            Event::Read { read, .. } => {
                let sent = account.sent(read.value).filter(|sent| sent.read_at.is_none());
                (read.value, sent.is_some_and(|sent| sent.outcome == Outcome::Refused))
            }
            Event::Refused { value } => {
                let sent = account.sent(value).filter(|sent| sent.outcome == Outcome::Pending);
                (value, sent.is_some_and(|sent| sent.read_at.is_some()))
            }
            _ => return,
        };
        if is_aborted {
            found.add(|| format!("{value} failed and was read, as operation {} shows", moment.index));
        }
    }
}
