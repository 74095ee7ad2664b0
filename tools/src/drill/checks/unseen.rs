//! Unseen: a value was acknowledged, and by the end nobody has read it, nor anything above it.

use super::account::{Account, Outcome};
use super::{Check, Event, Findings, Moment};

pub(super) struct Unseen;

impl Check for Unseen {
    fn see(&mut self, _: &Moment, _: &Event, _: &Account, _: &mut Findings) {}

    fn conclude(&mut self, account: &Account, found: &mut Findings) {
        for (value, sent) in account.all_sent().filter(|(_, sent)| sent.read_at.is_none()) {
            let Outcome::Acknowledged { offset, .. } = sent.outcome else { continue };
            let Some(partition) = account.partition(sent.partition) else { continue };
            if offset >= partition.judged_end().max(partition.log_start) {
                let end = partition.judged_end();
                found.add(|| {
                    format!("{} offset {offset}: {value} was acknowledged; read up to {end}", sent.partition)
                });
            }
        }
    }
}
