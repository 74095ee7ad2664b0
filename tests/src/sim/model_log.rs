//! A partition's log as the machines see it: records with their leaderships, what of them is synced, and where each
//! leadership began. What a crash takes is drawn.

use std::fmt;

use quire_engine::replication::{EpochEnd, Progress};
use quire_protocol::{LeaderEpoch, Offset};

use super::dice::Dice;

/// A record's value; every value is written once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(pub u64);

/// A record in a log.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// The leadership that wrote it.
    pub epoch: LeaderEpoch,
    /// What it says.
    pub value: Value,
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.value.0, self.epoch)
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// It was killed: what it had written is in the page cache.
    Kill,
    /// The machine lost its power: of what was not synced, a beginning is left.
    PowerLoss,
}

/// One replica's log.
#[derive(Debug, Clone, Default)]
pub struct ModelLog {
    start: u64,
    records: Vec<Record>,
    durable: u64,
    epochs: Vec<(LeaderEpoch, u64)>,
    high_watermark: u64,
    /// The high watermark as a restart finds it.
    checkpoint: u64,
}

impl ModelLog {
    /// The log start offset.
    pub fn start(&self) -> Offset {
        Offset(self.start)
    }

    /// The log end offset.
    pub fn end(&self) -> Offset {
        Offset(self.start + self.records.len() as u64)
    }

    /// The log end and the durable end.
    pub fn progress(&self) -> Progress {
        Progress { log_end: self.end(), durable_end: Offset(self.durable) }
    }

    /// The first offset not yet committed, as last set.
    pub fn high_watermark(&self) -> Offset {
        Offset(self.high_watermark)
    }

    /// Sets the high watermark, and now and then writes it down.
    pub fn set_high_watermark(&mut self, to: Offset, dice: &mut Dice) {
        self.high_watermark = to.0;
        if dice.happens(200) {
            self.checkpoint = to.0;
        }
    }

    /// The record at an offset.
    pub fn record(&self, offset: u64) -> Option<Record> {
        self.records.get(usize::try_from(offset.checked_sub(self.start)?).ok()?).copied()
    }

    /// The records from an offset on, at most so many.
    pub fn records_from(&self, offset: u64, count: usize) -> &[Record] {
        let from = (offset.saturating_sub(self.start) as usize).min(self.records.len());
        &self.records[from..self.records.len().min(from + count)]
    }

    /// The last leadership that the log knows.
    pub fn last_epoch(&self) -> Option<LeaderEpoch> {
        self.epochs.last().map(|(epoch, _)| *epoch)
    }

    /// The last leadership not after `epoch`, and where it ended.
    pub fn epoch_end(&self, epoch: LeaderEpoch) -> Option<EpochEnd> {
        let after = self.epochs.partition_point(|(known, _)| *known <= epoch);
        let (epoch, _) = *self.epochs.get(after.checked_sub(1)?)?;
        let end = self.epochs.get(after).map_or(self.end(), |(_, start)| Offset(*start));
        Some(EpochEnd { epoch, end })
    }

    /// A leadership begins at the log's end.
    pub fn enter_epoch(&mut self, epoch: LeaderEpoch) {
        let end = self.end().0;
        if self.last_epoch().is_some_and(|last| last >= epoch) {
            assert!(self.last_epoch() == Some(epoch), "leader epochs never decrease");
            return;
        }
        if self.epochs.last().is_some_and(|(_, start)| *start == end) {
            self.epochs.pop();
        }
        self.epochs.push((epoch, end));
    }

    /// Appends.
    pub fn append(&mut self, record: Record) {
        self.enter_epoch(record.epoch);
        self.records.push(record);
    }

    /// A sync covered everything before `end`.
    pub fn synced(&mut self, end: Offset) {
        self.durable = self.durable.max(end.0.min(self.end().0));
    }

    /// Cuts the log.
    pub fn truncate(&mut self, to: Offset) {
        let to = to.0.max(self.start);
        self.records.truncate((to - self.start) as usize);
        self.durable = self.durable.min(to);
        self.epochs.retain(|(_, start)| *start < to);
        self.high_watermark = self.high_watermark.min(to);
        self.checkpoint = self.checkpoint.min(to);
    }

    /// Drops everything; the log begins anew.
    pub fn restart_at(&mut self, at: Offset) {
        *self = ModelLog {
            start: at.0,
            durable: at.0,
            high_watermark: at.0,
            checkpoint: at.0,
            ..ModelLog::default()
        };
    }

    /// The process is gone, and starts again: what is left is synced anew before anything trusts it.
    pub fn crash(&mut self, crash: Crash, dice: &mut Dice) {
        if crash == Crash::PowerLoss {
            let unsynced = self.end().0 - self.durable;
            let left = self.durable + dice.below(unsynced + 1);
            self.records.truncate((left - self.start) as usize);
            // A leadership that was entered and had not written may not be on disk.
            let is_kept = dice.happens(500);
            self.epochs.retain(|(_, start)| *start < left || (*start == left && is_kept));
        }
        self.durable = self.end().0;
        self.high_watermark = self.checkpoint.clamp(self.start, self.end().0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(epoch: u32, value: u64) -> Record {
        Record { epoch: LeaderEpoch(epoch), value: Value(value) }
    }

    fn log() -> ModelLog {
        let mut log = ModelLog::default();
        [record(1, 10), record(1, 11), record(3, 12)].into_iter().for_each(|record| log.append(record));
        log
    }

    #[test]
    fn leaderships_end_where_the_next_began() {
        let log = log();
        let end = |epoch| log.epoch_end(LeaderEpoch(epoch)).map(|at| (at.epoch.0, at.end.0));
        assert_eq!(end(0), None);
        assert_eq!(end(1), Some((1, 2)));
        assert_eq!(end(2), Some((1, 2)));
        assert_eq!(end(9), Some((3, 3)));
    }

    #[test]
    fn a_power_loss_takes_only_what_was_not_synced() {
        let mut lengths = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let mut log = log();
            log.synced(Offset(1));
            log.crash(Crash::PowerLoss, &mut Dice::new(seed));
            assert_eq!(log.progress().durable_end, log.end());
            assert_eq!(log.record(0), Some(record(1, 10)));
            lengths.insert(log.end().0);
        }
        assert_eq!(lengths.into_iter().collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn a_cut_takes_leaderships_that_began_there() {
        let mut log = log();
        log.truncate(Offset(2));
        assert_eq!(log.last_epoch(), Some(LeaderEpoch(1)));
        assert_eq!(log.end(), Offset(2));
    }
}
