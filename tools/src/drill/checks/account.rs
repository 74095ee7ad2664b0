//! What several checks need to know of a history so far: each value with its fate, each partition with its offsets.

use std::collections::BTreeMap;
use std::time::Duration;

use quire_protocol::{BrokerId, Offset, TopicPartition};

use super::{Event, Moment};
use crate::drill::history::{Phase, Process, Value};

/// The history so far.
#[derive(Debug, Default)]
pub(super) struct Account {
    sent: BTreeMap<Value, Sent>,
    partitions: BTreeMap<TopicPartition, Partition>,
    /// The next offset that each reader should be given.
    positions: BTreeMap<(Process, TopicPartition), Offset>,
    lag_max: Duration,
}

/// A value that was sent.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub process: Process,
    pub partition: TopicPartition,
    /// Its place in the history.
    pub invoked: u64,
    /// The highest offset of its partition that was acknowledged when it was sent.
    pub acknowledged_before: Option<Offset>,
    pub outcome: Outcome,
    /// Where it was first read.
    pub read_at: Option<Offset>,
    pub is_read_finally: bool,
}

/// How a send ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Not at all so far, which is as much as [`Outcome::Unknown`] says.
    Pending,
    Acknowledged {
        offset: Offset,
        time: Duration,
    },
    Refused,
    Unknown,
}

/// A partition's offsets.
#[derive(Debug, Default)]
pub(super) struct Partition {
    pub slots: BTreeMap<Offset, Slot>,
    pub log_start: Offset,
    /// The highest offset acknowledged.
    pub acknowledged: Option<Offset>,
    /// The first offset above everything read.
    pub read_end: Offset,
    /// The first offset above everything read in the final phase, if it has begun.
    pub final_end: Option<Offset>,
}

/// What is known of one offset: the first of each kind, since another is a violation.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Slot {
    pub acknowledged: Option<Value>,
    pub read: Option<Value>,
    pub is_read_finally: bool,
    pub replica: Option<(BrokerId, Value)>,
    /// Clients were told of two values.
    pub is_contested: bool,
}

/// Counts over values.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub sent: u64,
    pub acknowledged: u64,
    pub refused: u64,
    pub unknown: u64,
    pub read_back: u64,
    pub lag_max: Duration,
}

impl Account {
    pub fn sent(&self, value: Value) -> Option<&Sent> {
        self.sent.get(&value)
    }

    /// Every value, in the order of producers and counters.
    pub fn all_sent(&self) -> impl Iterator<Item = (&Value, &Sent)> {
        self.sent.iter()
    }

    pub fn partition(&self, partition: TopicPartition) -> Option<&Partition> {
        self.partitions.get(&partition)
    }

    pub fn slot(&self, partition: TopicPartition, offset: Offset) -> Slot {
        let slot = self.partitions.get(&partition).and_then(|partition| partition.slots.get(&offset));
        slot.copied().unwrap_or_default()
    }

    pub fn log_start(&self, partition: TopicPartition) -> Offset {
        self.partitions.get(&partition).map_or(Offset::ZERO, |partition| partition.log_start)
    }

    /// The next offset that this process should be given, if it has begun to read.
    pub fn position(&self, process: Process, partition: TopicPartition) -> Option<Offset> {
        self.positions.get(&(process, partition)).copied()
    }

    pub fn tally(&self) -> Tally {
        let mut tally = Tally { lag_max: self.lag_max, ..Tally::default() };
        for sent in self.sent.values() {
            tally.sent += 1;
            match sent.outcome {
                Outcome::Acknowledged { .. } => {
                    tally.acknowledged += 1;
                    tally.read_back += u64::from(sent.read_at.is_some());
                }
                Outcome::Refused => tally.refused += 1,
                Outcome::Pending | Outcome::Unknown => tally.unknown += 1,
            }
        }
        tally
    }

    pub fn apply(&mut self, moment: &Moment, event: &Event) {
        match *event {
            Event::Invoked { partition, value } => {
                let acknowledged_before = self.partitions.entry(partition).or_default().acknowledged;
                self.sent.entry(value).or_insert(Sent {
                    process: moment.process,
                    partition,
                    invoked: moment.index,
                    acknowledged_before,
                    outcome: Outcome::Pending,
                    read_at: None,
                    is_read_finally: false,
                });
            }
            Event::Acknowledged { partition, value, offset, .. } => {
                self.complete(value, Outcome::Acknowledged { offset, time: moment.time });
                let partition = self.partitions.entry(partition).or_default();
                partition.acknowledged = partition.acknowledged.max(Some(offset));
                let slot = partition.slots.entry(offset).or_default();
                slot.is_contested |= slot.read.is_some_and(|read| read != value);
                slot.acknowledged.get_or_insert(value);
            }
            Event::Refused { value } => self.complete(value, Outcome::Refused),
            Event::Unknown { value } => self.complete(value, Outcome::Unknown),
            Event::Sought { partition, offset } => {
                self.positions.insert((moment.process, partition), offset);
            }
            Event::Read { partition, phase, read } => {
                self.positions.insert((moment.process, partition), Offset(read.offset.0 + 1));
                self.read_value(moment, phase, read.value, read.offset);
                let partition = self.partitions.entry(partition).or_default();
                partition.read(phase, read.value, read.offset);
            }
            Event::Replica { partition, broker, read } => {
                let partition = self.partitions.entry(partition).or_default();
                let slot = partition.slots.entry(read.offset).or_default();
                slot.replica.get_or_insert((broker, read.value));
            }
            Event::Frame { .. } | Event::ReplicaRead { .. } => {}
            Event::LogStart { partition, offset } => {
                let partition = self.partitions.entry(partition).or_default();
                partition.log_start = partition.log_start.max(offset);
            }
        }
    }

    /// The first outcome counts; another says nothing about what happened.
    fn complete(&mut self, value: Value, outcome: Outcome) {
        if let Some(sent) = self.sent.get_mut(&value).filter(|sent| sent.outcome == Outcome::Pending) {
            sent.outcome = outcome;
        }
    }

    fn read_value(&mut self, moment: &Moment, phase: Phase, value: Value, offset: Offset) {
        let Some(sent) = self.sent.get_mut(&value) else { return };
        sent.is_read_finally |= phase == Phase::Final;
        if sent.read_at.replace(sent.read_at.unwrap_or(offset)).is_some() || phase == Phase::Final {
            return;
        }
        if let Outcome::Acknowledged { time, .. } = sent.outcome {
            self.lag_max = self.lag_max.max(moment.time.saturating_sub(time));
        }
    }
}

impl Sent {
    /// Where it stands, as far as anybody was told.
    pub fn place(&self) -> Option<Offset> {
        match self.outcome {
            Outcome::Acknowledged { offset, .. } => Some(offset),
            _ => self.read_at,
        }
    }
}

impl Slot {
    /// What clients were told first: what was read counts for more than what was acknowledged.
    pub fn told(&self) -> Option<Value> {
        self.read.or(self.acknowledged)
    }
}

impl Partition {
    fn read(&mut self, phase: Phase, value: Value, offset: Offset) {
        let slot = self.slots.entry(offset).or_default();
        slot.is_contested |= slot.told().is_some_and(|told| told != value);
        slot.read.get_or_insert(value);
        slot.is_read_finally |= phase == Phase::Final;
        let end = Offset(offset.0 + 1);
        self.read_end = self.read_end.max(end);
        if phase == Phase::Final {
            self.final_end = self.final_end.max(Some(end));
        }
    }

    /// The first offset above all that should have been read by the end.
    pub fn judged_end(&self) -> Offset {
        self.final_end.unwrap_or(self.read_end)
    }
}
