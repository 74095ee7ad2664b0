//! Non-monotonic sends: of two records that one producer sent to one partition, the later got the earlier offset.

use quire_protocol::{Offset, TopicPartition};

use super::account::{Account, Outcome};
use super::{Check, Event, Findings, Moment};
use crate::drill::history::{Process, Value};

pub(super) struct NonMonotonicSends;

impl Check for NonMonotonicSends {
    fn see(&mut self, _: &Moment, _: &Event, _: &Account, _: &mut Findings) {}

    fn conclude(&mut self, account: &Account, found: &mut Findings) {
        let acknowledged = account.all_sent().filter_map(|(value, sent)| match sent.outcome {
            Outcome::Acknowledged { offset, .. } => {
                Some((sent.process, sent.partition, sent.invoked, offset, *value))
            }
            _ => None,
        });
        let mut sends: Vec<_> = acknowledged.collect();
        sends.sort_unstable();
        let mut highest: Option<(Process, TopicPartition, Offset, Value)> = None;
        for (process, partition, _, offset, value) in sends {
            let before = highest.filter(|(of, at, ..)| (*of, *at) == (process, partition));
            match before {
                Some((_, _, above, earlier)) if offset < above => found.add(|| {
                    format!("{partition} producer {process}: {earlier} is at {above}, and {value}, sent later, at {offset}")
                }),
                _ => highest = Some((process, partition, offset, value)),
            }
        }
    }
}
