//! Metadata of a broker that is its own controller: the machine around a log of its own.
//!
//! One thread owns both. It takes every request that is ready, decides them one after another, appends what was
//! decided with one write and one sync, applies it, shows the new image, and answers in order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use quire_engine::SplitMix64;
use quire_engine::controller::records::DecodeError;
use quire_engine::controller::{Conflict, Controller, Image, Record, RegisterBroker, Request, Response};
use quire_engine::machine::Replicated;
use quire_protocol::batch::{
    self, BatchBuilder, BatchHeader, Compression, Records, RecordsError, TimestampType,
};
use quire_protocol::frame::{self, FrameHeader};
use quire_protocol::{BrokerId, LeaderEpoch, Offset, PartitionIndex, TopicId, TopicPartition, limits};
use quire_storage::disk::Disk;
use quire_storage::{
    AppendContext, AppendErrorKind, CloseError, Log, LogOptions, NewBatch, OpenError, ReadError, Residency,
    Want,
};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Metadata, ProposeError, Quorum};
use crate::error::describe_damage;
use crate::shard::Clock;
use crate::threads;

/// The partition that the metadata log is.
const METADATA: TopicPartition = TopicPartition { topic: TopicId::METADATA, partition: PartitionIndex(0) };

/// What the metadata of a single broker is opened with.
#[derive(Debug)]
pub struct LocalMetadataOptions {
    /// The file system.
    pub disk: Arc<dyn Disk>,
    /// `<data>/metadata`
    pub dir: PathBuf,
    /// `<data>/topics`: what is in it belongs to some metadata, and none is begun anew beside it.
    pub topics_dir: PathBuf,
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
    /// Where topic ids come from: unpredictable in a running broker, chosen in a test.
    pub seed: u64,
    /// How the broker registers, which it does at each start.
    pub registration: RegisterBroker,
}

/// The metadata of a single broker.
#[derive(Debug)]
pub struct LocalMetadata {
    broker: BrokerId,
    commands: mpsc::Sender<Command>,
    image: watch::Receiver<Arc<Image>>,
}

/// The metadata could not be read or written; the broker must not start, since it would not know its topics.
#[derive(Debug, thiserror::Error)]
pub enum MetadataOpenError {
    /// Its log could not be opened.
    #[error("the metadata log can not be opened: {0}")]
    Open(#[from] OpenError),
    /// Its log holds nothing, but there are topics.
    #[error(
        "the metadata log in {dir} is empty or gone, but {topics_dir} holds topics, which nobody would know any more; \
         restore the directory from a backup"
    )]
    Missing {
        /// Where it should be.
        dir: PathBuf,
        /// Where the topics are.
        topics_dir: PathBuf,
    },
    /// Whether there are topics could not be looked up.
    #[error("cannot read {dir}: {source}")]
    Topics {
        /// Where the topics are.
        dir: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Its log is damaged.
    #[error("the metadata log in {dir} is damaged: {what}; restore the directory from a backup")]
    Damaged {
        /// Where it is.
        dir: PathBuf,
        /// What is damaged.
        what: String,
    },
    /// A record in its log can not be read.
    #[error("the metadata record at offset {offset} can not be read: {source}")]
    Record {
        /// Which one.
        offset: Offset,
        /// Why.
        source: DecodeError,
    },
    /// A record in its log contradicts those before it.
    #[error("the metadata record at offset {offset} contradicts those before it: {source}")]
    Conflict {
        /// Which one.
        offset: Offset,
        /// How.
        source: Conflict,
    },
    /// The broker could not be registered.
    #[error("the broker can not be registered: {0}")]
    Register(#[from] ProposeError),
    /// The operating system gave no thread.
    #[error("the metadata thread can not be started: {0}")]
    Thread(std::io::Error),
}

/// The metadata log was not closed cleanly; the next start recovers it.
#[derive(Debug, thiserror::Error)]
pub enum MetadataCloseError {
    /// The log refused.
    #[error(transparent)]
    Log(CloseError),
    /// The thread that owns it ended without an answer.
    #[error("the metadata thread is gone")]
    Gone,
}

#[derive(Debug)]
enum Command {
    Propose { request: Request, answer: oneshot::Sender<Result<Response, ProposeError>> },
    Close { done: oneshot::Sender<Result<(), CloseError>> },
}

impl LocalMetadata {
    /// Opens the log, replays it, and registers the broker. Blocks on the disk.
    ///
    /// # Errors
    /// If the log is damaged or can not be written, or is another cluster's.
    pub fn open(options: LocalMetadataOptions) -> Result<LocalMetadata, MetadataOpenError> {
        let registration = Request::RegisterBroker(options.registration.clone());
        let broker = options.registration.broker;
        let mut journal = Journal::open(options)?;
        match journal.commit(vec![registration.clone()]).remove(0) {
            Ok(_) => {}
            // Reads are served, and retention makes room; what is appended meanwhile is refused for the same reason.
            Err(ProposeError::DiskFull) if journal.controller.image().broker(broker).is_some() => {
                tracing::warn!(
                    "the disk is full: the broker's start is kept with the next change that finds room"
                );
                journal.registration = Some(registration);
            }
            Err(error) => return Err(error.into()),
        }
        let image = journal.image.subscribe();
        let (commands, inbox) = mpsc::channel(limits::METADATA_QUEUE_REQUESTS);
        threads::spawn("metadata".to_owned(), move || run(journal, inbox))
            .map_err(MetadataOpenError::Thread)?;
        Ok(LocalMetadata { broker, commands, image })
    }

    /// Takes no more requests, and closes the log once those taken are answered.
    ///
    /// # Errors
    /// If the log was not closed cleanly, and is recovered at the next start.
    pub async fn close(&self) -> Result<(), MetadataCloseError> {
        let (done, is_done) = oneshot::channel();
        if self.commands.send(Command::Close { done }).await.is_err() {
            return Ok(());
        }
        is_done.await.map_err(|_| MetadataCloseError::Gone)?.map_err(MetadataCloseError::Log)
    }
}

impl Metadata for LocalMetadata {
    fn propose(&self, request: Request) -> BoxFuture<'static, Result<Response, ProposeError>> {
        let commands = self.commands.clone();
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            let command = Command::Propose { request, answer };
            commands.send(command).await.map_err(|_| ProposeError::Stopped)?;
            answered.await.map_err(|_| ProposeError::Stopped)?
        })
    }

    fn image(&self) -> Arc<Image> {
        self.image.borrow().clone()
    }

    fn changes(&self) -> watch::Receiver<Arc<Image>> {
        self.image.clone()
    }

    /// A quorum of one, which is node 0.
    fn quorum(&self) -> Quorum {
        Quorum {
            node: 0,
            leader: Some((0, self.broker)),
            voters: BTreeMap::from([(0, self.broker)]),
            ..Quorum::default()
        }
    }
}

fn run(mut journal: Journal, mut inbox: mpsc::Receiver<Command>) {
    journal.checkpoint();
    while let Some(first) = inbox.blocking_recv() {
        let (mut requests, mut answers, mut close) = (Vec::new(), Vec::new(), None);
        let mut next = Some(first);
        while let Some(command) = next {
            match command {
                Command::Propose { request, answer } => {
                    requests.push(request);
                    answers.push(answer);
                }
                Command::Close { done } => {
                    close = Some(done);
                    break;
                }
            }
            next = inbox.try_recv().ok();
        }
        for (answer, result) in answers.into_iter().zip(journal.commit_registered(requests)) {
            // Who asked may have gone; the change is made all the same.
            let _ = answer.send(result);
        }
        journal.checkpoint();
        if let Some(done) = close {
            let _ = done.send(journal.log.close());
            return;
        }
    }
}

/// The machine and its log.
#[derive(Debug)]
struct Journal {
    controller: Controller,
    log: Log,
    leader_epoch: LeaderEpoch,
    clock: Arc<dyn Clock>,
    random: SplitMix64,
    image: watch::Sender<Arc<Image>>,
    failure: Option<ProposeError>,
    /// This start's, if there was no room for it yet.
    registration: Option<Request>,
}

impl Journal {
    fn open(options: LocalMetadataOptions) -> Result<Journal, MetadataOpenError> {
        let dir = options.dir;
        let (mut log, report) = Log::open(options.disk.clone(), &dir, METADATA, log_options())?;
        if let Some(damage) = report.corruption {
            return Err(MetadataOpenError::Damaged { dir, what: describe_damage(&damage) });
        }
        if log.end_offset() == Offset::ZERO {
            refuse_orphans(&*options.disk, &dir, &options.topics_dir)?;
        }
        log.set_high_watermark(log.end_offset());
        let controller = replay(&log).map_err(|error| match error {
            ReplayError::Unreadable(what) => MetadataOpenError::Damaged { dir, what },
            ReplayError::Record { offset, source } => MetadataOpenError::Record { offset, source },
            ReplayError::Conflict { offset, source } => MetadataOpenError::Conflict { offset, source },
        })?;
        Ok(Journal {
            image: watch::Sender::new(controller.image().clone()),
            leader_epoch: LeaderEpoch(log.leader_epoch().0 + 1),
            controller,
            log,
            clock: options.clock,
            random: SplitMix64::new(options.seed),
            failure: None,
            registration: None,
        })
    }

    /// Commits requests, after the broker's registration if that is still to be done.
    fn commit_registered(&mut self, mut requests: Vec<Request>) -> Vec<Result<Response, ProposeError>> {
        let Some(registration) = self.registration.clone() else { return self.commit(requests) };
        requests.insert(0, registration);
        let mut answers = self.commit(requests);
        if answers.remove(0).is_ok() {
            self.registration = None;
        }
        answers
    }

    /// Decides requests, commits what was decided, and gives the answers in order.
    fn commit(&mut self, requests: Vec<Request>) -> Vec<Result<Response, ProposeError>> {
        if let Some(failure) = &self.failure {
            return requests.iter().map(|_| Err(failure.clone())).collect();
        }
        let now = self.clock.now().timestamp;
        let mut decided: Vec<Record> = Vec::new();
        let mut batches = Vec::new();
        let mut answers = Vec::new();
        for request in requests {
            let answer = self.controller.decide(now, &mut self.random, request).map(|decision| {
                if !decision.records.is_empty() {
                    batches.push(encode(&decision.records, now));
                }
                decided.extend(decision.records);
                decision.response
            });
            answers.push(answer.map_err(ProposeError::Refused));
        }
        if let Err(error) = self.append_synced(batches) {
            self.controller.discard_pending();
            return answers.into_iter().map(|answer| answer.and(Err(error.clone()))).collect();
        }
        for record in &decided {
            self.controller.apply(record).expect("a record that was decided here fits the image");
        }
        if !decided.is_empty() {
            self.image.send_replace(self.controller.image().clone());
        }
        answers
    }

    fn append_synced(&mut self, batches: Vec<NewBatch>) -> Result<(), ProposeError> {
        if batches.is_empty() {
            return Ok(());
        }
        self.append(batches)?;
        self.sync();
        if self.log.durable_end() < self.log.end_offset() {
            let what =
                self.log.poisoned().map_or_else(|| "it was not synced".to_owned(), ToString::to_string);
            return Err(self.fail(what));
        }
        self.log.set_high_watermark(self.log.end_offset());
        Ok(())
    }

    fn append(&mut self, mut batches: Vec<NewBatch>) -> Result<(), ProposeError> {
        // A second refusal for lack of space comes after space was looked for.
        let mut attempts_left = 4;
        loop {
            let at = AppendContext {
                leader_epoch: self.leader_epoch,
                now: self.clock.now().timestamp,
                high_watermark: self.log.high_watermark(),
                timestamp_type: TimestampType::CreateTime,
            };
            let error = match self.log.append(batches, at) {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            attempts_left -= 1;
            match error.kind {
                kind if kind.is_retriable() && attempts_left > 0 => {
                    batches = error.batches;
                    self.log.run_jobs(Want { sync: true });
                }
                AppendErrorKind::NoSpaceYet | AppendErrorKind::DiskFull => {
                    return Err(ProposeError::DiskFull);
                }
                AppendErrorKind::Exhausted(what) => return Err(ProposeError::Unavailable { what }),
                kind => return Err(self.fail(kind.to_string())),
            }
        }
    }

    /// Runs the log's jobs right here until all that was appended is synced: metadata changes are rare.
    fn sync(&mut self) {
        while self.log.durable_end() < self.log.end_offset()
            && let Some(job) = self.log.next_job(Want { sync: true })
        {
            self.log.complete(job.run());
        }
    }

    /// Writes down that all that was committed is on disk, which a start trusts: what is damaged below is damage, and
    /// never taken for the torn end of an append. Nobody waits for it.
    fn checkpoint(&mut self) {
        self.log.run_jobs(Want { sync: true });
    }

    fn fail(&mut self, what: String) -> ProposeError {
        tracing::error!(%what, "the metadata log failed: nothing can be changed until the broker is started again");
        self.failure.insert(ProposeError::Failed { what }).clone()
    }
}

/// A checkpoint is due after each commit.
fn log_options() -> LogOptions {
    LogOptions { checkpoint_interval_bytes: 1, ..LogOptions::default() }
}

/// A metadata log that begins must not have topics beside it: they belong to one that is lost.
fn refuse_orphans(disk: &dyn Disk, dir: &Path, topics_dir: &Path) -> Result<(), MetadataOpenError> {
    match disk.list(topics_dir) {
        Ok(topics) if topics.is_empty() => Ok(()),
        Ok(_) => Err(MetadataOpenError::Missing { dir: dir.to_owned(), topics_dir: topics_dir.to_owned() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(MetadataOpenError::Topics { dir: topics_dir.to_owned(), source }),
    }
}

/// One batch of the records of one decision, so that they are committed together.
fn encode(records: &[Record], now: quire_protocol::Timestamp) -> NewBatch {
    let mut builder = BatchBuilder::new(Compression::None);
    for record in records {
        let value = Some(Bytes::from(record.encode()));
        let record = batch::Record { value, ..batch::Record::default() };
        builder.push(&record, now).expect("metadata records are far below a batch's limit");
    }
    let bytes = Vec::from(builder.finish().expect("an uncompressed batch is always finished"));
    let header = BatchHeader::parse(&bytes).expect("a batch just built is well-formed");
    NewBatch { header, bytes }
}

enum ReplayError {
    Unreadable(String),
    Record { offset: Offset, source: DecodeError },
    Conflict { offset: Offset, source: Conflict },
}

impl From<ReadError> for ReplayError {
    fn from(error: ReadError) -> ReplayError {
        ReplayError::Unreadable(error.to_string())
    }
}

impl From<RecordsError> for ReplayError {
    fn from(error: RecordsError) -> ReplayError {
        ReplayError::Unreadable(error.to_string())
    }
}

/// Applies every record in the log to a new machine.
fn replay(log: &Log) -> Result<Controller, ReplayError> {
    let mut controller = Controller::new();
    let (reader, end) = (log.reader(), log.end_offset());
    let mut next = log.start_offset();
    while next < end {
        let slice = reader.read(next, limits::READ_BYTES_MAX, end, Residency::Any)?;
        for frames in &slice.frames {
            replay_frames(frames, &mut controller)?;
        }
        next = slice.next_offset;
    }
    Ok(controller)
}

fn replay_frames(frames: &Bytes, controller: &mut Controller) -> Result<(), ReplayError> {
    let mut rest = frames.clone();
    while !rest.is_empty() {
        let unreadable = |error: &dyn ToString| ReplayError::Unreadable(error.to_string());
        let header = FrameHeader::parse(&rest).map_err(|error| unreadable(&error))?;
        let frame = rest.split_to(header.frame_len().min(rest.len()));
        let batch = frame.slice(frame::HEADER_LEN..);
        let header = BatchHeader::parse(&batch).map_err(|error| unreadable(&error))?;
        for record in Records::open(&header, &batch)? {
            let record = record?;
            let offset = record.offset;
            let value = record.value.unwrap_or_default();
            let record = Record::decode(&value).map_err(|source| ReplayError::Record { offset, source })?;
            controller.apply(&record).map_err(|source| ReplayError::Conflict { offset, source })?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "local_tests.rs"]
mod tests;
