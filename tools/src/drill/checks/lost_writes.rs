//! Lost writes: a value that was certainly written lies below something that was read, and is not there.
//!
//! A write is certain if it was acknowledged, or if somebody read it. Where there was a final phase, it is what counts: what
//! it does not find is gone, whoever read it before.

use super::account::{Account, Outcome, Partition, Sent};
use super::{Check, Event, Findings, Moment};

pub(super) struct LostWrites;

impl Check for LostWrites {
    fn see(&mut self, _: &Moment, _: &Event, _: &Account, _: &mut Findings) {}

    fn conclude(&mut self, account: &Account, found: &mut Findings) {
        for (value, sent) in account.all_sent() {
            let Some(partition) = account.partition(sent.partition) else { continue };
            let Some(offset) = sent.place().filter(|offset| *offset >= partition.log_start) else { continue };
            if is_lost(sent, partition) {
                let how = match (sent.outcome, sent.read_at) {
                    (Outcome::Acknowledged { .. }, None) => "acknowledged, never read",
                    (Outcome::Acknowledged { .. }, Some(_)) => "acknowledged and read, then gone",
                    _ => "read, then gone",
                };
                found.add(|| format!("{} offset {offset}: {value} was {how}", sent.partition));
            }
        }
    }
}

fn is_lost(sent: &Sent, partition: &Partition) -> bool {
    let Some(place) = sent.place() else { return false };
    let is_acknowledged = matches!(sent.outcome, Outcome::Acknowledged { .. });
    if partition.final_end.is_none() {
        return is_acknowledged && sent.read_at.is_none() && place < partition.read_end;
    }
    if sent.is_read_finally {
        return false;
    }
    if is_acknowledged {
        // What nobody read, with nothing read above it, is merely unseen.
        return place < partition.judged_end() || sent.read_at.is_some();
    }
    // It was read without an acknowledgement; where another value took its place, that is told as such.
    partition.slots.get(&place).is_none_or(|slot| !slot.is_read_finally)
}
