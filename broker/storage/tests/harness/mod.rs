//! A log on a simulated disk beside a model of it: a plain list of frames.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::ProptestConfig;
use quire_protocol::batch::{self, BatchBuilder, BatchHeader, Compression, Record, Records, TimestampType};
use quire_protocol::frame::{self, FrameHeader};
use quire_protocol::ids::{LeaderEpoch, Offset, PartitionIndex, Timestamp, TopicId, TopicPartition};
use quire_storage::disk::{Disk, SimDisk};
use quire_storage::{
    AppendContext, AppendError, AppendErrorKind, Completed, Job, Log, LogOptions, LogReader, NewBatch,
    OpenError, ReadError, RecoveryReport, Residency, Want,
};

pub const DIR: &str = "/topics/t/0";
pub const SYNC: Want = Want { sync: true };
pub const NO_SYNC: Want = Want { sync: false };

pub fn partition() -> TopicPartition {
    TopicPartition { topic: TopicId([3; 16]), partition: PartitionIndex(7) }
}

/// How many cases a property test runs: `QUIRE_CASES` overrides.
pub fn config(default: u32) -> ProptestConfig {
    let cases = std::env::var("QUIRE_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(default);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Small, so that a few records fill segments and need checkpoints.
pub fn options() -> LogOptions {
    LogOptions {
        segment_bytes: 4096,
        index_interval_bytes: 512,
        checkpoint_interval_bytes: 6000,
        segment_age_ms: 1000,
        ..LogOptions::default()
    }
}

/// A batch of `records` records of `len` bytes each, filled with `tag`.
pub fn new_batch(records: usize, len: usize, tag: u8, timestamp: Timestamp) -> NewBatch {
    let mut builder = BatchBuilder::new(Compression::None);
    for number in 0..records {
        let record = Record { value: Some(Bytes::from(vec![tag ^ number as u8; len])), ..Record::default() };
        builder.push(&record, Timestamp(timestamp.0 + number as i64)).expect("small records fit");
    }
    let bytes = builder.finish().expect("nothing to compress").to_vec();
    NewBatch { header: BatchHeader::check(&bytes).expect("just built"), bytes }
}

/// A frame as it must be on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFrame {
    pub header: FrameHeader,
    pub bytes: Vec<u8>,
}

impl ModelFrame {
    pub fn new(header: FrameHeader, mut batch: Vec<u8>) -> ModelFrame {
        batch::stamp(&mut batch, header.base_offset, header.leader_epoch);
        ModelFrame { header, bytes: [header.encode().as_slice(), &batch].concat() }
    }

    /// Offset and timestamp of each record.
    pub fn records(&self) -> Vec<(Offset, Timestamp)> {
        let batch = Bytes::copy_from_slice(&self.bytes[frame::HEADER_LEN..]);
        let header = BatchHeader::parse(&batch).expect("a batch");
        let records = Records::open(&header, &batch).expect("not compressed");
        records
            .map(|record| record.map(|record| (record.offset, record.timestamp)).expect("intact"))
            .collect()
    }
}

/// The log, what was appended to it, and what it said is durable.
pub struct Harness {
    pub disk: SimDisk,
    pub options: LogOptions,
    pub log: Log,
    /// Jobs handed out and not run yet.
    pub out: Vec<Job>,
    /// Every frame appended and not known to be lost, from the log start on.
    pub frames: Vec<ModelFrame>,
    /// Batches, stamped, whose write a stop interrupted: they may turn out to be in the log, in order.
    pub in_doubt: Vec<Vec<u8>>,
    pub durable_end: Offset,
    pub log_start: Offset,
    /// The log start may lie within a segment.
    pub is_trimmed: bool,
    pub epoch: LeaderEpoch,
    pub now: Timestamp,
}

pub fn open(disk: &SimDisk, options: &LogOptions) -> Result<(Log, RecoveryReport), OpenError> {
    Log::open(Arc::new(disk.clone()), Path::new(DIR), partition(), options.clone())
}

impl Harness {
    pub fn new(disk: SimDisk, options: LogOptions) -> Harness {
        disk.create_dir_all(Path::new("/topics")).expect("an empty disk");
        disk.sync_dir(Path::new("/")).expect("an empty disk");
        let (log, report) = open(&disk, &options).expect("an empty directory");
        assert!(report.was_clean);
        Harness {
            disk,
            options,
            log,
            out: Vec::new(),
            frames: Vec::new(),
            in_doubt: Vec::new(),
            durable_end: Offset::ZERO,
            log_start: Offset::ZERO,
            is_trimmed: false,
            epoch: LeaderEpoch(0),
            now: Timestamp(1_000),
        }
    }

    pub fn context(&self) -> AppendContext {
        AppendContext {
            leader_epoch: self.epoch,
            now: self.now,
            high_watermark: self.log.high_watermark(),
            timestamp_type: TimestampType::CreateTime,
        }
    }

    pub fn end(&self) -> Offset {
        self.frames.last().map_or(self.log_start, |frame| frame.header.next_offset())
    }

    /// Appends once.
    pub fn try_append(&mut self, batches: Vec<NewBatch>) -> Result<(), AppendError> {
        let contents: Vec<_> = batches.iter().map(|batch| batch.bytes.clone()).collect();
        let end = self.log.end_offset();
        match self.log.append(batches, self.context()) {
            Ok(headers) => {
                let frames = headers.into_iter().zip(contents);
                self.frames.extend(frames.map(|(header, batch)| ModelFrame::new(header, batch)));
                assert_eq!(self.log.end_offset(), self.end());
                Ok(())
            }
            Err(error) => {
                assert_eq!(self.log.end_offset(), end, "all or nothing");
                if self.disk.is_stopped() && self.in_doubt.is_empty() {
                    self.in_doubt = error.batches.iter().map(|batch| batch.bytes.clone()).collect();
                }
                Err(error)
            }
        }
    }

    /// Appends, making space as needed.
    pub fn append(&mut self, batches: Vec<NewBatch>) -> Result<(), AppendErrorKind> {
        let mut batches = batches;
        for _ in 0..12 {
            match self.try_append(batches) {
                Ok(()) => return Ok(()),
                Err(AppendError { kind: AppendErrorKind::NoSpaceYet, batches: back }) => batches = back,
                Err(AppendError { kind, .. }) => return Err(kind),
            }
            let job = self.log.next_job(NO_SYNC).or_else(|| self.out.pop()).expect("something makes space");
            let completed = self.log.complete(job.run());
            self.note(&completed);
        }
        panic!("the log makes no progress towards space");
    }

    /// Hands out the next job, which runs later.
    pub fn hand_out(&mut self, want: Want) {
        self.out.extend(self.log.next_job(want));
    }

    /// Runs the jobs that are out.
    pub fn finish(&mut self) {
        for job in std::mem::take(&mut self.out) {
            let completed = self.log.complete(job.run());
            self.note(&completed);
        }
    }

    /// Runs every job that is out or due.
    pub fn settle(&mut self, want: Want) -> Completed {
        self.finish();
        let completed = self.log.run_jobs(want);
        self.note(&completed);
        completed
    }

    /// Syncs everything and moves the high watermark to it.
    pub fn commit(&mut self) {
        self.settle(SYNC);
        if !self.log.is_poisoned() {
            self.log.set_high_watermark(self.log.durable_end());
        }
    }

    pub fn note(&mut self, completed: &Completed) {
        if let Some(end) = completed.durable_end {
            assert!(end > self.durable_end, "the durable end moves forward");
            self.durable_end = end;
        }
        if let Some(log_start) = completed.log_start {
            self.dropped_before(log_start);
        }
        assert_eq!(self.log.durable_end(), self.durable_end);
    }

    /// The process ends or the power goes, and the log is opened again.
    pub fn restart(&mut self, stop: impl FnOnce(&SimDisk)) -> RecoveryReport {
        stop(&self.disk);
        let (log, report) = open(&self.disk, &self.options).expect("nothing is damaged");
        self.reopened(log, &report);
        report
    }

    /// Checks a log opened after a stop against the model, and lets the model go on from it.
    pub fn reopened(&mut self, log: Log, report: &RecoveryReport) {
        assert_eq!(report.corruption, None, "nothing is damaged: {report:?}");
        self.log = log;
        self.out.clear();
        let (start, end) = (self.log.start_offset(), self.log.end_offset());
        assert!(end >= self.durable_end, "durable to {}, found {end}: {report:?}", self.durable_end);
        self.resolve_doubt(end);
        assert!(end <= self.end(), "written to {}, found {end}", self.end());
        assert_eq!(self.log.durable_end(), end, "what is kept was made durable");
        assert!(start >= self.log_start, "the log start never moves back");
        self.dropped_before(start);
        self.frames.retain(|frame| frame.header.next_offset() <= end);
        assert_eq!(self.end().max(start), end, "the log ends with a whole frame");
        let last = self.frames.last().map(|frame| frame.header);
        if let Some(last) = last {
            assert_eq!(self.log.chain(), last.chain);
            assert_eq!(self.log.last_append_time(), last.append_time);
        }
        self.durable_end = end;
        self.check();
    }

    /// Takes into the model what an interrupted write left in the log, if it is what was to be written.
    fn resolve_doubt(&mut self, end: Offset) {
        let in_doubt = std::mem::take(&mut self.in_doubt);
        if end <= self.end() {
            return;
        }
        let found = read_all(&self.log.reader(), self.end(), end).expect("intact");
        let found = frames(&found);
        assert!(found.len() <= in_doubt.len(), "nothing is invented");
        for (frame, batch) in found.into_iter().zip(in_doubt) {
            assert_eq!(frame.bytes[frame::HEADER_LEN..], batch, "what was to be written");
            self.frames.push(frame);
        }
    }

    /// Everything in the log reads as it was written, from wherever one starts.
    pub fn check(&self) {
        assert!(self.log.start_offset() <= self.log.high_watermark());
        assert!(self.log.high_watermark() <= self.log.end_offset());
        let reader = self.log.reader();
        let end = self.log.end_offset();
        assert_eq!(
            read_all(&reader, self.log_start, end).expect("intact"),
            self.expected_from(self.log_start)
        );
        let (size, expected) = (self.log.size_bytes(), self.expected_from(self.log_start).len() as u64);
        assert!(size == expected || self.is_trimmed && size > expected, "{size} bytes, expected {expected}");
    }

    /// Reads with these arguments give what the model says.
    pub fn check_read(&self, from: Offset, max_bytes: usize, below: Offset) {
        let end = self.log.end_offset();
        match self.log.reader().read(from, max_bytes, below, Residency::Any) {
            Err(ReadError::OutOfRange { log_start, end: told }) => {
                assert_eq!((log_start, told), (self.log_start, end));
                assert!(from < log_start || from > end);
            }
            Err(error) => panic!("reading {from}: {error}"),
            Ok(slice) => {
                let bytes = slice.frames.concat();
                assert_eq!(bytes.len(), slice.bytes);
                let expected: Vec<u8> = self
                    .frames
                    .iter()
                    .filter(|frame| frame.header.last_offset() >= from)
                    .take_while(|frame| frame.header.next_offset() <= below)
                    .flat_map(|frame| frame.bytes.iter().copied())
                    .collect();
                assert!(expected.starts_with(&bytes), "reading {from}");
                assert!(!bytes.is_empty() || expected.is_empty(), "at least one frame, if there is one");
                let first = self.frames.iter().find(|frame| frame.header.last_offset() >= from);
                let first_len = first.map_or(0, |frame| frame.bytes.len());
                assert!(bytes.len() <= max_bytes.max(first_len));
            }
        }
    }

    pub fn dropped_before(&mut self, log_start: Offset) {
        self.log_start = log_start;
        self.frames.retain(|frame| frame.header.base_offset >= log_start);
    }

    fn expected_from(&self, from: Offset) -> Vec<u8> {
        let frames = self.frames.iter().filter(|frame| frame.header.last_offset() >= from);
        frames.flat_map(|frame| frame.bytes.iter().copied()).collect()
    }
}

/// All frames from `from` to `end`.
pub fn read_all(reader: &LogReader, mut from: Offset, end: Offset) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::new();
    while from < end {
        let slice = reader.read(from, 1000, end, Residency::Any)?;
        assert!(slice.next_offset > from, "a read makes progress");
        bytes.extend(slice.frames.iter().flatten());
        from = slice.next_offset;
    }
    Ok(bytes)
}

/// The frames that follow one another in `bytes`.
pub fn frames(mut bytes: &[u8]) -> Vec<ModelFrame> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let header = FrameHeader::parse(bytes).expect("a frame");
        let (frame, rest) = bytes.split_at(header.frame_len());
        frames.push(ModelFrame { header, bytes: frame.to_vec() });
        bytes = rest;
    }
    frames
}
