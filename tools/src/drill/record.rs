//! The one record of a drill: every operation is numbered, written down, checked and counted in one place, under one lock.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quire_protocol::TopicPartition;

use super::availability::Availability;
use super::checks::{Checker, Verdict};
use super::history::{Action, Kind, Process, Recorder};

/// Whoever notes faults in the history.
const CHAOS: Process = Process(1000);

/// Where everybody who takes part tells what happened.
#[derive(Debug)]
pub struct Record {
    started: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    recorder: Recorder<BufWriter<File>>,
    checker: Checker,
    availability: Availability,
    progress: Counts,
    /// The first failure to write; the record is worth nothing from there on.
    failure: Option<io::Error>,
}

/// How far the load has come.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Values sent.
    pub sent: u64,
    /// Values acknowledged.
    pub acknowledged: u64,
    /// Records read while there was load.
    pub read: u64,
    /// Records read in the final phase.
    pub read_finally: u64,
}

impl Record {
    /// Begins a record of load on so many partitions, written to `path`.
    ///
    /// # Errors
    /// If the file can not be made.
    pub fn begin(path: &Path, partitions: u32) -> io::Result<Record> {
        let inner = Inner {
            recorder: Recorder::new(BufWriter::new(File::create(path)?)),
            checker: Checker::default(),
            availability: Availability::new(partitions),
            progress: Counts::default(),
            failure: None,
        };
        Ok(Record { started: Instant::now(), inner: Mutex::new(inner) })
    }

    /// Since it began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Something happened just now.
    pub fn tell(&self, process: Process, kind: Kind, action: Action) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        // Under the lock: times and places agree.
        let now = self.started.elapsed();
        inner.count(kind, &action, now);
        match inner.recorder.record(now, process, kind, action) {
            Ok(operation) => inner.checker.observe(&operation),
            Err(error) => drop(inner.failure.get_or_insert(error)),
        }
    }

    /// A fault begins: what is out from now on is counted to it.
    pub fn fault(&self, what: &str) -> Duration {
        self.tell(CHAOS, Kind::Info, Action::Note(what.to_owned()));
        let now = self.elapsed();
        self.lock().availability.fault(now);
        now
    }

    /// Something that is good to know when reading the history.
    pub fn note(&self, what: &str) {
        self.tell(CHAOS, Kind::Info, Action::Note(what.to_owned()));
    }

    /// The fault is over, and everybody had time to come back: how long writes stood still.
    pub fn end_fault(&self) -> Option<Duration> {
        let now = self.elapsed();
        self.lock().availability.end_fault(now)
    }

    /// Whether every partition acknowledged something since then.
    pub fn is_all_acknowledging_since(&self, time: Duration) -> bool {
        self.lock().availability.is_all_since(time)
    }

    /// How far the load has come.
    pub fn counts(&self) -> Counts {
        self.lock().progress
    }

    /// Ends the record with its verdict and the outages of its faults.
    ///
    /// # Errors
    /// If a part of it could not be written.
    pub fn end(&self) -> io::Result<(Verdict, Vec<Duration>)> {
        let mut inner = self.lock();
        let written = inner.recorder.flush();
        if let Some(failure) = inner.failure.take() {
            return Err(failure);
        }
        written?;
        let verdict = std::mem::take(&mut inner.checker).verdict();
        Ok((verdict, inner.availability.outages().to_vec()))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn count(&mut self, kind: Kind, action: &Action, now: Duration) {
        match (kind, action) {
            (Kind::Invoke, Action::Send { .. }) => self.progress.sent += 1,
            (Kind::Ok, Action::Send { partition: TopicPartition { partition, .. }, .. }) => {
                self.progress.acknowledged += 1;
                self.availability.acknowledged(partition.0, now);
            }
            (_, Action::Poll { phase: super::history::Phase::Live, records, .. }) => {
                self.progress.read += records.len() as u64;
            }
            (_, Action::Poll { records, .. }) => self.progress.read_finally += records.len() as u64,
            _ => {}
        }
    }
}
