//! The pool of threads that waits for the disk, so that no shard does.
//!
//! All shards share it: with many syncs under way at once the device joins their flushes. Logs are opened and closed on
//! threads of their own, so that no acknowledgement waits behind a recovery. What a shard hands over comes back into its
//! own loop as an event.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use quire_engine::producer::ProducerStates;
use quire_protocol::{TopicPartition, limits};
use quire_storage::disk::Disk;
use quire_storage::{
    CloseError, Job, JobDone, JobKind, Log, LogOptions, OpenError, RecoveryReport, remove_log,
};

use super::event::Event;
use super::producers;
use super::scrubbing::ScrubStep;
use crate::metrics::ShardMetrics;
use crate::threads;

/// Something slow that a shard wants done.
#[derive(Debug)]
pub enum Task {
    /// Open a log, and recover it if needed; create it unless it is known to be there.
    Open {
        /// The file system.
        disk: Arc<dyn Disk>,
        /// The log's directory.
        dir: PathBuf,
        /// Whose log it is.
        partition: TopicPartition,
        /// Whether it is known to be there.
        is_held: bool,
        /// How it is kept.
        options: LogOptions,
    },
    /// Remove what is left of a log of which nothing can be read, and create a new one.
    Replace {
        /// The file system.
        disk: Arc<dyn Disk>,
        /// The log's directory.
        dir: PathBuf,
        /// Whose log it is.
        partition: TopicPartition,
        /// How it is kept.
        options: LogOptions,
    },
    /// A log's own file job.
    Job(Job),
    /// Sync a log and mark it clean.
    Close(Box<Log>),
}

/// A log that was opened.
#[derive(Debug)]
pub struct OpenedLog {
    /// The log.
    pub log: Log,
    /// What was found.
    pub report: RecoveryReport,
    /// What it tells of its producers.
    pub producers: ProducerStates,
}

/// A task's result.
#[derive(Debug)]
pub enum TaskDone {
    /// See [`Task::Open`].
    Opened(Box<Result<OpenedLog, OpenError>>),
    /// See [`Task::Job`].
    Job(JobDone),
    /// See [`Task::Close`].
    Closed(Result<(), CloseError>),
}

impl Task {
    /// Does it, however long that takes, and counts it.
    pub(super) fn perform(self, metrics: &ShardMetrics) -> TaskDone {
        let is_sync = matches!(&self, Task::Job(job) if job.kind() == JobKind::Sync);
        let began = Instant::now();
        let done = self.run();
        if is_sync {
            metrics.syncs.increment(1);
            metrics.sync_seconds.record(began.elapsed());
        }
        done
    }

    /// Does it, however long that takes.
    pub fn run(self) -> TaskDone {
        match self {
            Task::Open { disk, dir, partition, is_held, options } => {
                let opened = match is_held {
                    true => Log::open_existing(disk, &dir, partition, options),
                    false => Log::open(disk, &dir, partition, options),
                };
                opened_log(opened)
            }
            Task::Replace { disk, dir, partition, options } => opened_log(
                remove_log(&*disk, &dir)
                    .map_err(|source| OpenError::Io { operation: "removing", path: dir.clone(), source })
                    .and_then(|()| Log::open(disk, &dir, partition, options)),
            ),
            Task::Job(job) => TaskDone::Job(job.run()),
            Task::Close(log) => TaskDone::Closed(log.close()),
        }
    }
}

fn opened_log(opened: Result<(Log, RecoveryReport), OpenError>) -> TaskDone {
    TaskDone::Opened(Box::new(opened.map(|(log, report)| {
        let producers = producers::load(&log);
        OpenedLog { log, report, producers }
    })))
}

/// The way into a shard that never waits for room. What may be under way is bounded by what a shard owns: two file
/// jobs for each partition.
#[derive(Debug, Clone)]
pub(crate) struct Direct {
    pub(super) events: Sender<Event>,
    pub(super) shard: Thread,
}

impl Direct {
    /// Delivers an event and wakes the shard. Lost if the shard has ended, which it does only when nothing is awaited.
    pub(crate) fn send(&self, event: Event) {
        if self.events.send(event).is_ok() {
            self.shard.unpark();
        }
    }
}

struct Submitted {
    partition: TopicPartition,
    task: Task,
    back: Direct,
}

/// The way to the pool.
#[derive(Debug, Clone)]
pub(super) struct FlusherQueue {
    jobs: Sender<Submitted>,
    /// Opens and closes, which may take long.
    openings: Sender<Submitted>,
    /// Parts of compactions, of one log of each shard.
    compactions: Sender<Submitted>,
    /// What is read again to find damage, at most one piece of each shard.
    scrubs: Sender<(ScrubStep, Direct)>,
}

impl FlusherQueue {
    /// Hands over a piece to be read; what came of it goes `back`.
    pub(super) fn scrub(&self, step: ScrubStep, back: &Direct) {
        self.scrubs.send((step, back.clone())).expect("the scrubber runs as long as a shard can reach it");
    }

    /// Hands over a task; its result goes `back`.
    pub(super) fn submit(&self, partition: TopicPartition, task: Task, back: &Direct) {
        let submitted = Submitted { partition, task, back: back.clone() };
        let queue = match &submitted.task {
            Task::Job(job) if job.kind() == JobKind::Compact => &self.compactions,
            Task::Job(_) => &self.jobs,
            Task::Open { .. } | Task::Replace { .. } | Task::Close(_) => &self.openings,
        };
        queue.send(submitted).expect("flushers run as long as a shard can reach them");
    }
}

/// The pool's threads. They end when every [`FlusherQueue`] is gone.
#[derive(Debug)]
pub(super) struct Flushers(Vec<JoinHandle<()>>);

impl Flushers {
    /// Starts so many threads for jobs, so many that open and close logs, one that compacts them, and one that reads them
    /// again.
    pub(super) fn start(
        flushers: usize,
        openers: usize,
        metrics: &Arc<ShardMetrics>,
    ) -> io::Result<(FlusherQueue, Flushers)> {
        let mut started = Vec::with_capacity(flushers + openers + 2);
        let jobs = start_threads("flusher", flushers, metrics, &mut started)?;
        let openings = start_threads("opener", openers, metrics, &mut started)?;
        let (scrubs, submitted) = crossbeam_channel::unbounded::<(ScrubStep, Direct)>();
        let scrub = move || {
            while let Ok((step, back)) = submitted.recv() {
                back.send(step.run());
            }
        };
        started.push(threads::spawn("scrubber".to_owned(), scrub)?);
        let (compactions, submitted) = crossbeam_channel::unbounded();
        let counted = metrics.clone();
        started.push(threads::spawn("compactor".to_owned(), move || compact(&submitted, &counted))?);
        Ok((FlusherQueue { jobs, openings, compactions, scrubs }, Flushers(started)))
    }

    /// Waits for the threads to end.
    pub(super) fn join(self) {
        for thread in self.0 {
            if thread.join().is_err() {
                tracing::error!("a flusher thread panicked");
            }
        }
    }
}

fn start_threads(
    name: &str,
    count: usize,
    metrics: &Arc<ShardMetrics>,
    started: &mut Vec<JoinHandle<()>>,
) -> io::Result<Sender<Submitted>> {
    let (submit, submitted) = crossbeam_channel::unbounded();
    for number in 0..count {
        let (submitted, metrics) = (submitted.clone(), metrics.clone());
        started.push(threads::spawn(format!("{name}-{number}"), move || flush(&submitted, &metrics))?);
    }
    Ok(submit)
}

/// Does one part after another, at no more than [`limits::COMPACTION_BYTES_PER_SECOND`]: nobody waits for it, and others
/// use the disk.
fn compact(submitted: &Receiver<Submitted>, metrics: &ShardMetrics) {
    while let Ok(Submitted { partition, task, back }) = submitted.recv() {
        let bytes = match &task {
            Task::Job(job) => job.compacted_bytes(),
            _ => 0,
        };
        let began = Instant::now();
        back.send(Event::Done(partition, task.perform(metrics)));
        let due = Duration::from_nanos(bytes * 1_000_000_000 / limits::COMPACTION_BYTES_PER_SECOND);
        std::thread::sleep(due.saturating_sub(began.elapsed()));
    }
}

fn flush(submitted: &Receiver<Submitted>, metrics: &ShardMetrics) {
    while let Ok(Submitted { partition, task, back }) = submitted.recv() {
        back.send(Event::Done(partition, task.perform(metrics)));
    }
}
