//! Resurrections: a record below the log start came back.
//!
//! A reader may still be given what it had in hand when the log start moved; one that begins to read afterwards may not.

use std::collections::BTreeMap;

use quire_protocol::{Offset, TopicPartition};

use super::account::Account;
use super::{Check, Event, Findings, Moment};
use crate::drill::history::Process;

/// The log start offsets at which readers began to read.
#[derive(Default)]
pub(super) struct Resurrections {
    floors: BTreeMap<(Process, TopicPartition), Offset>,
}

impl Check for Resurrections {
    fn see(&mut self, moment: &Moment, event: &Event, account: &Account, found: &mut Findings) {
        match *event {
            Event::Sought { partition, .. } => {
                self.floors.insert((moment.process, partition), account.log_start(partition));
            }
            Event::Read { partition, read, .. } => {
                let floor = self.floors.get(&(moment.process, partition));
                if let Some(floor) = floor.filter(|floor| read.offset < **floor) {
                    found.add(|| {
                        let (process, index, offset) = (moment.process, moment.index, read.offset);
                        format!(
                            "{partition} reader {process} began when the log start was {floor} and was given {offset} (operation {index})"
                        )
                    });
                }
            }
            _ => {}
        }
    }
}
