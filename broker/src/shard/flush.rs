//! The pool of threads that waits for the disk, so that no shard does.
//!
//! All shards share it: with many syncs under way at once the device joins their flushes. What a shard hands over
//! comes back into its own loop as an event.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{JoinHandle, Thread};

use crossbeam_channel::{Receiver, Sender};
use quire_protocol::TopicPartition;
use quire_storage::disk::Disk;
use quire_storage::{CloseError, Job, JobDone, Log, LogOptions, OpenError, RecoveryReport};

use super::event::Event;
use crate::threads;

/// Something slow that a shard wants done.
#[derive(Debug)]
pub(crate) enum Task {
    /// Open a log, and recover it if needed; create it unless it is known to be there.
    Open { disk: Arc<dyn Disk>, dir: PathBuf, partition: TopicPartition, is_held: bool, options: LogOptions },
    /// A log's own file job.
    Job(Job),
    /// Sync a log and mark it clean.
    Close(Box<Log>),
}

/// A task's result.
#[derive(Debug)]
pub(crate) enum TaskDone {
    /// See [`Task::Open`].
    Opened(Box<Result<(Log, RecoveryReport), OpenError>>),
    /// See [`Task::Job`].
    Job(JobDone),
    /// See [`Task::Close`].
    Closed(Result<(), CloseError>),
}

impl Task {
    /// Does it, however long that takes.
    pub(crate) fn run(self) -> TaskDone {
        match self {
            Task::Open { disk, dir, partition, is_held, options } => TaskDone::Opened(Box::new(match is_held {
                true => Log::open_existing(disk, &dir, partition, options),
                false => Log::open(disk, &dir, partition, options),
            })),
            Task::Job(job) => TaskDone::Job(job.run()),
            Task::Close(log) => TaskDone::Closed(log.close()),
        }
    }
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
pub(super) struct FlusherQueue(Sender<Submitted>);

impl FlusherQueue {
    /// Hands over a task; its result goes `back`.
    pub(super) fn submit(&self, partition: TopicPartition, task: Task, back: &Direct) {
        let submitted = Submitted { partition, task, back: back.clone() };
        self.0.send(submitted).expect("flushers run as long as a shard can reach them");
    }
}

/// The pool's threads. They end when every [`FlusherQueue`] is gone.
#[derive(Debug)]
pub(super) struct Flushers(Vec<JoinHandle<()>>);

impl Flushers {
    /// Starts `count` threads.
    pub(super) fn start(count: usize) -> io::Result<(FlusherQueue, Flushers)> {
        let (submit, submitted) = crossbeam_channel::unbounded();
        let start = |number| {
            let submitted = submitted.clone();
            threads::spawn(format!("flusher-{number}"), move || flush(&submitted))
        };
        let threads = (0..count).map(start).collect::<io::Result<_>>()?;
        Ok((FlusherQueue(submit), Flushers(threads)))
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

fn flush(submitted: &Receiver<Submitted>) {
    while let Ok(Submitted { partition, task, back }) = submitted.recv() {
        back.send(Event::Done(partition, task.run()));
    }
}
