//! One node's log on our storage: what happened to it, in order.
//!
//! The engine's log is cut at both ends, and ours only grows. So our log is a journal: entries that were appended, and
//! that everything behind or before some entry is gone. Replayed, it gives the engine's log, which is short (a snapshot
//! takes the place of what is old) and held in memory. A record of the journal carries along how far the log was known
//! to be committed, so that a restarted node need not wait for a leader to show what it showed before.
//!
//! One thread owns it. It takes everything that is ready, writes it with one call and one sync, and says so in order.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::storage::IOFlushed;
use prost::Message;
use quire_protocol::batch::{self, BatchBuilder, BatchHeader, Compression, Records, TimestampType};
use quire_protocol::frame::{self, FrameHeader};
use quire_protocol::rpc::raft as wire;
use quire_protocol::{LeaderEpoch, Offset, PartitionIndex, Timestamp, TopicId, TopicPartition, limits};
use quire_storage::{
    AppendContext, AppendErrorKind, CloseError, Log, LogOptions, NewBatch, OpenError, Residency, Want,
};
use tokio::sync::{mpsc, oneshot};

use super::files::Files;
use super::types::{Entry, LogId, Types, Vote};
use super::wire as convert;
use crate::error::describe_damage;
use crate::shard::Clock;
use crate::threads;

const METADATA: TopicPartition = TopicPartition { topic: TopicId::METADATA, partition: PartitionIndex(0) };
/// Between two attempts to find room on a full disk.
const ROOM_INTERVAL: Duration = Duration::from_millis(200);

/// The engine's log, as the journal tells it.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// By index; with the length it has when sent (bytes).
    pub(super) entries: BTreeMap<u64, (Entry, usize)>,
    /// Everything up to here is gone.
    pub(super) purged: Option<LogId>,
    /// Committed as far as this node knew when something was written last.
    pub(super) committed: Option<LogId>,
}

/// The journal can not be read, and this node must not take part without it.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It can not be opened.
    #[error("the metadata log can not be opened: {0}")]
    Open(#[from] OpenError),
    /// It is damaged.
    #[error("the metadata log is damaged: {0}")]
    Damaged(String),
    /// The operating system gave no thread.
    #[error("the metadata log's thread can not be started: {0}")]
    Thread(io::Error),
}

/// What the thread is asked to do. Everything is durable, in this order, before it is said to be.
pub(super) enum Command {
    /// Write records down.
    Write { records: Vec<wire::JournalRecord>, done: Done },
    /// Replace the vote.
    Vote { vote: Vote, done: oneshot::Sender<io::Result<()>> },
    /// Take no more, and end.
    Close { done: oneshot::Sender<Result<(), CloseError>> },
}

/// Who waits for a write.
pub(super) enum Done {
    Engine(IOFlushed<Types>),
    Caller(oneshot::Sender<io::Result<()>>),
}

/// Hands commands to the thread, in order.
#[derive(Debug, Clone)]
pub(super) struct JournalHandle {
    commands: mpsc::Sender<Command>,
    is_closing: Arc<AtomicBool>,
}

impl JournalHandle {
    pub(super) async fn send(&self, command: Command) -> io::Result<()> {
        self.commands.send(command).await.map_err(|_| gone())
    }

    /// Closes the log; what waits for room on a full disk fails.
    pub(super) async fn close(&self) -> Result<(), CloseError> {
        self.is_closing.store(true, Ordering::Release);
        let (done, is_done) = oneshot::channel();
        if self.commands.send(Command::Close { done }).await.is_err() {
            return Ok(());
        }
        is_done.await.unwrap_or(Ok(()))
    }
}

pub(super) fn gone() -> io::Error {
    io::Error::other("the metadata log is closed")
}

/// Makes an empty journal, durably.
pub(super) fn create(files: &Files) -> Result<(), JournalError> {
    let (log, _) = Log::open(files.disk().clone(), &files.journal_dir(), METADATA, options())?;
    if log.end_offset() > Offset::ZERO {
        let what = "it holds entries of a node whose other files are gone".to_owned();
        return Err(JournalError::Damaged(what));
    }
    log.close().map_err(|error| JournalError::Damaged(error.to_string()))
}

/// Opens the journal, replays it, and starts its thread. Blocks on the disk.
pub(super) fn open(files: Files, clock: Arc<dyn Clock>) -> Result<(JournalHandle, Contents), JournalError> {
    let dir = files.journal_dir();
    let (mut log, report) = Log::open_existing(files.disk().clone(), &dir, METADATA, options())?;
    if let Some(damage) = report.corruption {
        return Err(JournalError::Damaged(describe_damage(&damage)));
    }
    log.set_high_watermark(log.end_offset());
    let mut journal =
        Journal { log, files, clock, frames: Frames::default(), failure: None, is_closing: Arc::default() };
    let contents = journal.replay().map_err(JournalError::Damaged)?;
    let (commands, inbox) = mpsc::channel(limits::METADATA_QUEUE_REQUESTS);
    let handle = JournalHandle { commands, is_closing: Arc::clone(&journal.is_closing) };
    threads::spawn("metadata-log".to_owned(), move || journal.run(inbox)).map_err(JournalError::Thread)?;
    Ok((handle, contents))
}

/// Segments are small, since they go as a whole; a checkpoint is due after each write, so that damage to what was
/// promised is never taken for a torn tail.
fn options() -> LogOptions {
    LogOptions {
        segment_bytes: limits::METADATA_SEGMENT_BYTES,
        checkpoint_interval_bytes: 1,
        ..LogOptions::default()
    }
}

struct Journal {
    log: Log,
    files: Files,
    clock: Arc<dyn Clock>,
    frames: Frames,
    failure: Option<String>,
    is_closing: Arc<AtomicBool>,
}

/// Where in the journal the engine's log lies: what is before is not needed.
#[derive(Debug, Default)]
struct Frames {
    /// Bytes of journal before each entry that is still there.
    starts: BTreeMap<u64, u64>,
    /// Before the record that said last what was purged.
    purge_start: u64,
    /// Bytes of journal ever seen by this process.
    end: u64,
}

impl Frames {
    fn note(&mut self, record: &wire::JournalRecord, bytes: u64) {
        use wire::journal_record::Body;
        match &record.body {
            Some(Body::Appended(entry)) => {
                let index = entry.id.as_ref().map_or(0, |id| id.index);
                self.starts.insert(index, self.end);
            }
            Some(Body::Truncated(cut)) => {
                let keep = cut.last.as_ref().map_or(0, |last| last.index + 1);
                self.starts.split_off(&keep);
            }
            Some(Body::Purged(last)) => {
                self.starts = self.starts.split_off(&(last.index + 1));
                self.purge_start = self.end;
            }
            None => {}
        }
        self.end += bytes;
    }

    /// Bytes at the journal's end without which it does not tell the log.
    fn needed(&self) -> u64 {
        let first = self.starts.values().next().copied().unwrap_or(self.purge_start);
        self.end - first.min(self.purge_start)
    }
}

impl Journal {
    fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        self.log.run_jobs(Want { sync: true });
        while let Some(first) = inbox.blocking_recv() {
            let (mut records, mut waiting) = (Vec::new(), Vec::new());
            let mut next = Some(first);
            while let Some(command) = next {
                match command {
                    Command::Write { records: more, done } => {
                        records.extend(more);
                        waiting.push(done);
                    }
                    Command::Vote { vote, done } => {
                        self.write(std::mem::take(&mut records), std::mem::take(&mut waiting));
                        let _ = done.send(self.store_vote(&vote));
                    }
                    Command::Close { done } => {
                        self.write(records, waiting);
                        let _ = done.send(self.log.close());
                        return;
                    }
                }
                next = inbox.try_recv().ok();
            }
            self.write(records, waiting);
            self.tidy();
        }
        // Everyone is gone without a word, as in a crash: the next start recovers.
    }

    fn write(&mut self, records: Vec<wire::JournalRecord>, waiting: Vec<Done>) {
        let result = self.write_synced(&records);
        for done in waiting {
            let result = result.as_ref().copied().map_err(|what| io::Error::other(what.clone()));
            match done {
                Done::Engine(flushed) => flushed.io_completed(result),
                // Who asked may be gone.
                Done::Caller(answer) => drop(answer.send(result)),
            }
        }
    }

    fn write_synced(&mut self, records: &[wire::JournalRecord]) -> Result<(), String> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        if records.is_empty() {
            return Ok(());
        }
        let frames = self.append(records).inspect_err(|what| self.fail(what))?;
        self.log.run_jobs(Want { sync: true });
        if self.log.durable_end() < self.log.end_offset() {
            let what =
                self.log.poisoned().map_or_else(|| "it was not synced".to_owned(), ToString::to_string);
            self.fail(&what);
            return Err(what);
        }
        for (record, frame) in records.iter().zip(&frames) {
            self.frames.note(record, frame.frame_len() as u64);
        }
        self.log.set_high_watermark(self.log.end_offset());
        Ok(())
    }

    /// On a full disk it waits for room: the quorum goes on without this node, and nothing that it has not written was
    /// promised.
    fn append(&mut self, records: &[wire::JournalRecord]) -> Result<Vec<FrameHeader>, String> {
        let now = self.clock.now().timestamp;
        let mut batches: Vec<_> = records.iter().map(|record| encode(record, now)).collect();
        let (mut is_told, mut attempts) = (false, 0);
        loop {
            let at = AppendContext {
                leader_epoch: LeaderEpoch(0),
                now,
                high_watermark: self.log.high_watermark(),
                timestamp_type: TimestampType::CreateTime,
            };
            let error = match self.log.append(batches, at) {
                Ok(frames) => return Ok(frames),
                Err(error) => error,
            };
            if !error.kind.is_retriable() || self.is_closing.load(Ordering::Acquire) {
                return Err(error.kind.to_string());
            }
            batches = error.batches;
            self.log.run_jobs(Want { sync: true });
            attempts += 1;
            if attempts > 2 {
                let is_full = matches!(error.kind, AppendErrorKind::NoSpaceYet | AppendErrorKind::DiskFull);
                if is_full && !std::mem::replace(&mut is_told, true) {
                    tracing::warn!("the disk is full: this node keeps no metadata until there is room");
                }
                std::thread::sleep(ROOM_INTERVAL);
            }
        }
    }

    fn store_vote(&mut self, vote: &Vote) -> io::Result<()> {
        if let Some(failure) = &self.failure {
            return Err(io::Error::other(failure.clone()));
        }
        self.files.store_vote(Some(vote)).inspect_err(|error| self.fail(&error.to_string()))
    }

    /// Nobody waits for it: the checkpoint of what was written, and the end of what is needed no more.
    fn tidy(&mut self) {
        if self.failure.is_none() {
            self.log.retain(self.clock.now().timestamp, None, Some(self.frames.needed()));
            self.log.run_jobs(Want { sync: true });
        }
    }

    fn fail(&mut self, what: &str) {
        if self.failure.is_none() {
            tracing::error!(%what, "the metadata log failed: this node keeps no metadata until the broker is started again");
            self.failure = Some(what.to_owned());
        }
    }

    fn replay(&mut self) -> Result<Contents, String> {
        let mut contents = Contents::default();
        let (reader, end) = (self.log.reader(), self.log.end_offset());
        let mut next = self.log.start_offset();
        while next < end {
            let slice = reader
                .read(next, limits::READ_BYTES_MAX, end, Residency::Any)
                .map_err(|error| error.to_string())?;
            for frames in slice.frames {
                self.replay_frames(frames, &mut contents)?;
            }
            next = slice.next_offset;
        }
        Ok(contents)
    }

    fn replay_frames(&mut self, mut rest: Bytes, contents: &mut Contents) -> Result<(), String> {
        while !rest.is_empty() {
            let header = FrameHeader::parse(&rest).map_err(|error| error.to_string())?;
            let frame = rest.split_to(header.frame_len().min(rest.len()));
            let batch = frame.slice(frame::HEADER_LEN..);
            let batch_header = BatchHeader::parse(&batch).map_err(|error| error.to_string())?;
            for record in Records::open(&batch_header, &batch).map_err(|error| error.to_string())? {
                let record = record.map_err(|error| error.to_string())?;
                let unreadable = |error: &dyn ToString| {
                    format!("the record at offset {} can not be read: {}", record.offset, error.to_string())
                };
                let value = record.value.clone().unwrap_or_default();
                let read: wire::JournalRecord =
                    convert::decode(&value).map_err(|error| unreadable(&error))?;
                self.frames.note(&read, frame.len() as u64);
                contents.apply(read).map_err(|error| unreadable(&error))?;
            }
        }
        Ok(())
    }
}

impl Contents {
    /// What a record says happened.
    pub(super) fn apply(&mut self, record: wire::JournalRecord) -> Result<(), String> {
        use wire::journal_record::Body;
        if let Some(committed) = record.committed {
            self.committed = self.committed.max(Some(convert::to_log_id(committed)));
        }
        match record.body {
            Some(Body::Appended(entry)) => {
                let len = entry.encoded_len();
                let entry = convert::to_entry(entry).map_err(|error| error.to_string())?;
                self.append(entry, len)
            }
            Some(Body::Truncated(cut)) => {
                self.truncate(cut.last.map(convert::to_log_id).as_ref());
                Ok(())
            }
            Some(Body::Purged(last)) => {
                self.purge(convert::to_log_id(last));
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub(super) fn append(&mut self, entry: Entry, len: usize) -> Result<(), String> {
        let index = entry.log_id.index;
        let has_gap = self.entries.last_key_value().is_some_and(|(last, _)| last + 1 != index);
        if has_gap || self.purged.is_some_and(|purged| index <= purged.index) {
            return Err(format!("entry {} does not follow the last one", entry.log_id));
        }
        self.entries.insert(index, (entry, len));
        Ok(())
    }

    pub(super) fn truncate(&mut self, last: Option<&LogId>) {
        self.entries.split_off(&last.map_or(0, |last| last.index + 1));
    }

    pub(super) fn purge(&mut self, last: LogId) {
        self.entries = self.entries.split_off(&(last.index + 1));
        self.purged = self.purged.max(Some(last));
    }

    pub(super) fn last(&self) -> Option<LogId> {
        self.entries.last_key_value().map(|(_, (entry, _))| entry.log_id).or(self.purged)
    }
}

/// One record, as a batch of its own.
fn encode(record: &wire::JournalRecord, now: Timestamp) -> NewBatch {
    let mut builder = BatchBuilder::new(Compression::None);
    let value = Some(Bytes::from(record.encode_to_vec()));
    let record = batch::Record { value, ..batch::Record::default() };
    builder.push(&record, now).expect("an entry of the log is far below a batch's limit");
    let bytes = Vec::from(builder.finish().expect("an uncompressed batch is always finished"));
    let header = BatchHeader::parse(&bytes).expect("a batch just built is well-formed");
    NewBatch { header, bytes }
}
