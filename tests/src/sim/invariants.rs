//! What must hold after every step, whatever happened; and what must hold in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use quire_protocol::topic_config::Sync;
use quire_protocol::{BrokerId, LeaderEpoch, Offset};

use super::model_log::{ModelLog, Record, Value};

/// Something that must never be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// Two values at one committed offset.
    TwoValues { broker: BrokerId, offset: u64, had: Record, has: Option<Record> },
    /// Two records of one leadership at one offset.
    TwoRecords { broker: BrokerId, offset: Offset, had: Value, has: Value },
    /// A record was acknowledged that is not committed, or at an offset that is not its own.
    FalseAcknowledgement { broker: BrokerId, value: Value, offset: Offset },
    /// Whoever may be elected lacks what was committed.
    Lacks { broker: BrokerId, offset: u64 },
    /// A settled leader knows of less than was shown before.
    WentBack { broker: BrokerId, leader_epoch: LeaderEpoch, shown: u64, knows: Offset },
    /// Committed records were cut off on a clean path.
    TookBack { broker: BrokerId, from: Offset, to: Offset },
    /// What was acknowledged is not there in the end.
    Lost { value: Value, offset: Offset },
    /// A value stands at two offsets.
    Duplicated { value: Value },
    /// A value that its writer was told is not written, or that nobody wrote.
    Phantom { value: Value },
    /// Replicas differ in the end.
    Diverged { one: BrokerId, other: BrokerId },
    /// The faults are over, and it does not work.
    NotHealed { what: String },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Write {
    Open,
    Acknowledged(Offset),
    Failed,
    Unknown,
}

/// Everything that was ever seen.
#[derive(Debug)]
pub struct Invariants {
    sync: Sync,
    replicas: Vec<BrokerId>,
    /// What was committed, by offset, as first exposed.
    committed: BTreeMap<u64, Record>,
    /// The first offset that nobody ever exposed as committed.
    exposed: u64,
    /// The highest exposed in each leadership.
    exposed_by_epoch: BTreeMap<LeaderEpoch, u64>,
    written: BTreeMap<(LeaderEpoch, u64), Value>,
    writes: BTreeMap<Value, Write>,
}

impl Invariants {
    /// Nothing was seen yet.
    pub fn new(sync: Sync, replicas: Vec<BrokerId>) -> Invariants {
        Invariants {
            sync,
            replicas,
            committed: BTreeMap::new(),
            exposed: 0,
            exposed_by_epoch: BTreeMap::new(),
            written: BTreeMap::new(),
            writes: BTreeMap::new(),
        }
    }

    /// A client sent a value.
    pub fn sent(&mut self, value: Value) {
        self.writes.insert(value, Write::Open);
    }

    /// A write is known not to have happened.
    pub fn failed(&mut self, value: Value) {
        self.writes.insert(value, Write::Failed);
    }

    /// Nobody knows whether a write happened.
    pub fn unknown(&mut self, value: Value) {
        if self.writes.get(&value) == Some(&Write::Open) {
            self.writes.insert(value, Write::Unknown);
        }
    }

    /// A leader stopped: nobody knows of any write that is open.
    pub fn all_unknown_of(&mut self, _leader: BrokerId) {
        let open: Vec<Value> =
            self.writes.iter().filter(|(_, write)| **write == Write::Open).map(|(value, _)| *value).collect();
        open.into_iter().for_each(|value| self.unknown(value));
    }

    /// Whether a write waits for its answer.
    pub fn has_open_writes(&self) -> bool {
        self.writes.values().rev().take(50).any(|write| *write == Write::Open)
    }

    /// A record came into a log.
    pub fn appended(&mut self, broker: BrokerId, offset: Offset, record: Record) -> Result<(), Violation> {
        let had = *self.written.entry((record.epoch, offset.0)).or_insert(record.value);
        match had == record.value {
            true => Ok(()),
            false => Err(Violation::TwoRecords { broker, offset, had, has: record.value }),
        }
    }

    /// A broker shows readers everything before `to`.
    pub fn exposed(&mut self, broker: BrokerId, log: &ModelLog, to: Offset) -> Result<(), Violation> {
        let from = self.exposed.min(log.high_watermark().0.saturating_sub(50)).max(log.start().0);
        for offset in from..to.0 {
            let has = log.record(offset);
            match (self.committed.get(&offset), has) {
                (Some(had), has) if has != Some(*had) => {
                    return Err(Violation::TwoValues { broker, offset, had: *had, has });
                }
                (Some(_), _) => {}
                (None, Some(record)) => drop(self.committed.insert(offset, record)),
                (None, None) => unreachable!("what is exposed is in the log"),
            }
        }
        self.exposed = self.exposed.max(to.0);
        if let Some(epoch) = log.last_epoch() {
            let shown = self.exposed_by_epoch.entry(epoch).or_default();
            *shown = to.0.max(*shown);
        }
        Ok(())
    }

    /// A leader tells readers where the end is.
    pub fn settled(
        &mut self,
        broker: BrokerId,
        leader_epoch: LeaderEpoch,
        knows: Offset,
    ) -> Result<(), Violation> {
        let shown = self.exposed_by_epoch.range(..leader_epoch).map(|(_, shown)| *shown).max().unwrap_or(0);
        // Without syncs a loss of power takes what was shown; it is counted elsewhere.
        if knows.0 < shown && self.sync == Sync::Always {
            return Err(Violation::WentBack { broker, leader_epoch, shown, knows });
        }
        Ok(())
    }

    /// A write was acknowledged.
    pub fn acknowledged(
        &mut self,
        broker: BrokerId,
        value: Value,
        offset: Offset,
        high_watermark: Offset,
    ) -> Result<(), Violation> {
        let is_committed = self.committed.get(&offset.0).is_some_and(|record| record.value == value);
        if !is_committed || offset >= high_watermark {
            return Err(Violation::FalseAcknowledgement { broker, value, offset });
        }
        self.writes.insert(value, Write::Acknowledged(offset));
        Ok(())
    }

    /// A replica that may be elected.
    pub fn holds_all_committed(&self, broker: BrokerId, log: &ModelLog) -> Result<(), Violation> {
        let safe_end = log.progress().safe_end(self.sync);
        match safe_end.0 < self.exposed {
            true => Err(Violation::Lacks { broker, offset: safe_end.0 }),
            false => Ok(()),
        }
    }

    /// In the end everything acknowledged is there, once.
    pub fn check_final(&self, log: &ModelLog, lasts: bool) -> Result<(), Violation> {
        assert!(!self.replicas.is_empty());
        let mut seen = BTreeSet::new();
        for offset in log.start().0..log.end().0 {
            let record = log.record(offset).expect("within the log");
            if !seen.insert(record.value) {
                return Err(Violation::Duplicated { value: record.value });
            }
            match self.writes.get(&record.value) {
                None | Some(Write::Failed) => return Err(Violation::Phantom { value: record.value }),
                Some(_) => {}
            }
        }
        for (value, write) in &self.writes {
            match write {
                Write::Acknowledged(offset) => {
                    let is_there = log.record(offset.0).is_some_and(|record| record.value == *value);
                    if lasts && !is_there {
                        return Err(Violation::Lost { value: *value, offset: *offset });
                    }
                }
                Write::Open => {
                    return Err(Violation::NotHealed { what: format!("value {} has no answer", value.0) });
                }
                Write::Failed | Write::Unknown => {}
            }
        }
        Ok(())
    }
}
