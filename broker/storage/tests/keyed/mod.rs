//! A log of keyed records on a simulated disk, beside a model of it: every record ever appended, by offset.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use quire_protocol::batch::{
    self, BatchBuilder, BatchHeader, Compression, Numbering, ProducerIdentity, Record, Records, TimestampType,
};
use quire_protocol::frame::{self, FrameHeader};
use quire_protocol::ids::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence, Timestamp};
use quire_storage::disk::{Disk, OpenMode, SimDisk};
use quire_storage::epochs::EpochCache;
use quire_storage::{
    AppendContext, AppendErrorKind, CompactionSettings, Job, Log, LogOptions, LogReader, NewBatch, ReadError,
    Residency, Want, inspect,
};

use crate::harness::{DIR, NO_SYNC, SYNC, open, options, partition};

/// Everything that may be compacted is.
pub fn compaction() -> CompactionSettings {
    CompactionSettings { dirty_millionths_min: 0, ..CompactionSettings::default() }
}

/// A record to be appended.
#[derive(Debug, Clone, Copy)]
pub struct NewRecord {
    pub key: Option<u8>,
    pub has_value: bool,
    pub len: usize,
}

/// A batch to be appended.
#[derive(Debug, Clone)]
pub struct Sent {
    pub records: Vec<NewRecord>,
    pub compression: Compression,
    pub producer: Option<u64>,
}

/// A record as it was appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub offset: Offset,
    pub timestamp: Timestamp,
    pub key: Option<u8>,
    /// No two are alike.
    pub value: Option<Bytes>,
}

pub struct Keyed {
    pub disk: SimDisk,
    pub log: Log,
    /// Handed out, and not run yet.
    pub out: Vec<Job>,
    /// Whatever was appended and may be in the log, at its offset.
    pub records: Vec<Known>,
    /// Base offset and numbering of each batch of a producer.
    sent: Vec<(Offset, ProducerIdentity, Numbering)>,
    sequences: BTreeMap<u64, u32>,
    starts: EpochCache,
    durable_end: Offset,
    /// What was ever committed.
    committed: Offset,
    pub epoch: LeaderEpoch,
    pub now: Timestamp,
    appended: u64,
}

fn keyed_options() -> LogOptions {
    options()
}

impl Keyed {
    pub fn new(seed: u64) -> Keyed {
        let disk = SimDisk::new(seed);
        disk.create_dir_all(Path::new("/topics")).expect("an empty disk");
        disk.sync_dir(Path::new("/")).expect("an empty disk");
        let (log, _) = open(&disk, &keyed_options()).expect("an empty directory");
        Keyed::with(disk, log)
    }

    fn with(disk: SimDisk, mut log: Log) -> Keyed {
        log.tombstones_may_go_to(Offset::MAX);
        Keyed {
            disk,
            log,
            out: Vec::new(),
            records: Vec::new(),
            sent: Vec::new(),
            sequences: BTreeMap::new(),
            starts: EpochCache::new(),
            durable_end: Offset::ZERO,
            committed: Offset::ZERO,
            epoch: LeaderEpoch(0),
            now: Timestamp(1_000_000),
            appended: 0,
        }
    }

    /// The same log on another disk, opened again.
    pub fn fork(&mut self) -> Keyed {
        let disk = self.disk.fork(1);
        let (log, _) = open(&disk, &keyed_options()).expect("intact");
        Keyed::with(disk, log)
    }

    pub fn append(&mut self, sent: &Sent) {
        let batch = self.build(sent);
        let context = AppendContext {
            leader_epoch: self.epoch,
            now: self.now,
            high_watermark: self.log.high_watermark(),
            timestamp_type: TimestampType::CreateTime,
        };
        let mut batches = vec![batch];
        for _ in 0..20 {
            let error = match self.log.append(batches, context) {
                Ok(frames) => return self.starts_with(&frames[0]),
                Err(error) => error,
            };
            match error.kind {
                AppendErrorKind::NoSpaceYet => {}
                // It may have been written all the same.
                kind => return assert!(self.disk.is_stopped(), "{kind}"),
            }
            batches = error.batches;
            let Some(job) = self.log.next_job(NO_SYNC).or_else(|| self.out.pop()) else { break };
            self.complete(job);
        }
        assert!(self.disk.is_stopped(), "the log makes no progress towards space");
    }

    fn starts_with(&mut self, frame: &FrameHeader) {
        self.starts.assign(frame.leader_epoch, frame.base_offset).expect("epochs and offsets increase");
    }

    fn build(&mut self, sent: &Sent) -> NewBatch {
        let mut builder = BatchBuilder::new(sent.compression);
        let base = self.log.end_offset();
        self.records.truncate(base.0 as usize);
        self.sent.retain(|(offset, ..)| *offset < base);
        for record in &sent.records {
            self.appended += 1;
            let text = format!("{:06}{}", self.appended, "x".repeat(record.len));
            let known = Known {
                offset: Offset(self.records.len() as u64),
                timestamp: Timestamp(self.now.0 - (self.appended % 3) as i64),
                key: record.key,
                value: record.has_value.then(|| text.into()),
            };
            let key = known.key.map(|key| Bytes::from(vec![b'k', key]));
            let new = Record {
                key,
                value: known.value.clone(),
                timestamp: Some(known.timestamp),
                ..Record::default()
            };
            builder.push(&new, self.now).expect("small records fit");
            self.records.push(known);
        }
        let mut bytes = builder.finish().expect("it compresses").to_vec();
        if let Some(id) = sent.producer {
            let producer = ProducerIdentity { id: ProducerId(id), epoch: ProducerEpoch(0) };
            let next = self.sequences.entry(id).or_default();
            batch::number(&mut bytes, producer, Sequence(*next));
            *next += sent.records.len() as u32;
            let numbering = BatchHeader::check(&bytes).expect("built").numbering().expect("consistent");
            self.sent.push((base, producer, numbering.expect("numbered")));
        }
        NewBatch { header: BatchHeader::check(&bytes).expect("just built"), bytes }
    }

    pub fn hand_out(&mut self, want: Want) {
        self.out.extend(self.log.next_job(want));
    }

    pub fn finish(&mut self) {
        for job in std::mem::take(&mut self.out) {
            self.complete(job);
        }
    }

    fn complete(&mut self, job: Job) {
        let completed = self.log.complete(job.run());
        self.durable_end = completed.durable_end.unwrap_or(self.durable_end);
        assert!(self.log.take_damage().is_none() || self.disk.is_stopped(), "nothing is damaged");
    }

    pub fn settle(&mut self, want: Want) {
        self.finish();
        while let Some(job) = self.log.next_job(want) {
            self.complete(job);
        }
    }

    pub fn commit(&mut self) {
        self.settle(SYNC);
        if !self.log.is_poisoned() {
            self.log.set_high_watermark(self.log.durable_end());
            self.committed = self.log.high_watermark();
        }
    }

    /// Seals the active segment, as retention does with an old one.
    pub fn roll(&mut self) {
        let later = Timestamp(self.now.0 + 10_000_000);
        self.log.retain(later, None, None);
        self.settle(NO_SYNC);
    }

    /// Commits and seals all there is, and compacts it until nothing is left to be done.
    pub fn compact_all(&mut self) {
        self.compact_by_keys(compaction().keys_max);
    }

    /// As [`Keyed::compact_all`], three times so many keys at most.
    pub fn compact_by_keys(&mut self, keys_max: usize) {
        self.commit();
        self.roll();
        for _ in 0..3 {
            self.log.compact(self.now, &CompactionSettings { keys_max, ..compaction() });
            self.settle(NO_SYNC);
        }
    }

    pub fn close(&mut self) {
        self.finish();
        let (fresh, _) = open(&SimDisk::new(0), &keyed_options()).expect("an empty disk");
        let end = self.log.end_offset();
        if std::mem::replace(&mut self.log, fresh).close().is_ok() {
            self.durable_end = end;
        }
        match open(&self.disk, &keyed_options()) {
            Err(_) if self.disk.is_stopped() => {}
            opened => self.reopened(opened.expect("nothing is damaged").0),
        }
    }

    pub fn restart(&mut self, stop: impl FnOnce(&SimDisk)) {
        stop(&self.disk);
        let (log, report) = open(&self.disk, &keyed_options()).expect("nothing is damaged");
        assert_eq!(report.corruption, None, "{report:?}");
        self.reopened(log);
    }

    fn reopened(&mut self, log: Log) {
        self.log = log;
        // There is no other replica.
        self.log.tombstones_may_go_to(Offset::MAX);
        self.out.clear();
        let end = self.log.end_offset();
        assert!(end >= self.durable_end, "durable to {}, found {end}", self.durable_end);
        assert!(end.0 <= self.records.len() as u64, "nothing is invented");
        self.forget_from(end);
        self.durable_end = end;
        self.check();
    }

    fn forget_from(&mut self, end: Offset) {
        self.records.truncate(end.0 as usize);
        self.sent.retain(|(offset, ..)| *offset < end);
        self.starts.truncate(end);
        for (id, next) in &mut self.sequences {
            let last = self.sent.iter().rev().find(|(_, producer, _)| producer.id.0 == *id);
            *next = last.map_or(0, |(.., numbering)| numbering.next_sequence().0);
        }
    }

    /// As a follower whose leader does not have what was not committed.
    pub fn cut_uncommitted(&mut self) {
        self.finish();
        // What a log that was stopped knows to be committed may be less than what was: no leader lacks that.
        let committed = self.committed.max(self.log.high_watermark());
        // Once it is asked for, what is beyond may be there or not.
        self.durable_end = self.durable_end.min(committed);
        self.log.truncate(committed);
        self.settle(NO_SYNC);
        let end = self.log.end_offset();
        if !self.disk.is_stopped() {
            assert_eq!(end, committed, "what is committed ends with a frame");
            self.forget_from(end);
            self.durable_end = end;
            self.check();
        }
    }

    pub fn segments(&self) -> usize {
        let names = self.disk.list(Path::new(DIR)).expect("there");
        names.iter().filter(|name| name.ends_with(".log")).count()
    }

    /// The file of the first segment that the manifest lists, and its frames' length (bytes).
    pub fn first_segment(&self) -> (PathBuf, u64) {
        let report = inspect::inspect(&self.disk, Path::new(DIR)).expect("a log");
        let first = &report.segments[0];
        (Path::new(DIR).join(&first.file_name), first.log_bytes.expect("it is sealed"))
    }

    /// What the manifest says of the format of the frames.
    pub fn log_version(&self) -> u16 {
        let manifest = self.disk.open(&Path::new(DIR).join("manifest"), OpenMode::Read).expect("there");
        let mut head = [0; 14];
        manifest.read_exact_at(0, &mut head).expect("longer");
        u16::from_le_bytes([head[12], head[13]])
    }

    pub fn flip(&mut self, path: &Path, bit: u64) {
        self.disk.flip_bit(path, bit / 8, (bit % 8) as u8);
    }

    /// Every frame's header, and its batch's.
    pub fn frames(&self) -> Vec<(FrameHeader, BatchHeader)> {
        let frames = self.log.reader().frames_since(Offset::ZERO);
        let header = |bytes: &Bytes| BatchHeader::parse(&bytes[frame::HEADER_LEN..]).expect("checked");
        frames.map(|frame| frame.map(|(head, bytes)| (head, header(&bytes))).expect("intact")).collect()
    }

    /// Every record in the log.
    pub fn read(&self) -> Result<Vec<Known>, ReadError> {
        self.read_with(&self.log.reader())
    }

    pub fn read_with(&self, reader: &LogReader) -> Result<Vec<Known>, ReadError> {
        let (mut found, mut from) = (Vec::new(), reader.log_start());
        while from < reader.end_offset() {
            from = read_slice(reader, from, 500, &mut found)?;
        }
        let log_start = reader.log_start();
        found.retain(|record| record.offset >= log_start);
        Ok(found)
    }

    /// Records from there on, as far as nothing is damaged; whether that is all of them.
    pub fn read_some(&self, mut from: Offset) -> (Vec<Known>, bool) {
        let (reader, start, mut found) = (self.log.reader(), from, Vec::new());
        while from < reader.end_offset() {
            match read_slice(&reader, from, 5000, &mut found) {
                Ok(next) => from = next,
                Err(_) => break,
            }
        }
        found.retain(|record| record.offset >= start);
        (found, from == reader.end_offset())
    }

    /// What is read is what was written there; the last record of each key is among it, and none of a key that was
    /// deleted since.
    pub fn check(&self) {
        if self.disk.is_stopped() {
            return;
        }
        let (start, end) = (self.log.start_offset(), self.log.end_offset());
        let records = &self.records[..end.0 as usize];
        let found = self.read().expect("intact");
        assert!(found.windows(2).all(|pair| pair[0].offset < pair[1].offset), "each offset once, in order");
        for record in &found {
            assert_eq!(record, &records[record.offset.0 as usize], "what was written there");
        }
        let offsets: BTreeSet<_> = found.iter().map(|record| record.offset).collect();
        let mut last = BTreeMap::new();
        for record in records {
            match record.key {
                Some(key) => drop(last.insert(key, record)),
                None => assert!(record.offset < start || offsets.contains(&record.offset), "{record:?}"),
            }
        }
        for (key, record) in last {
            let is_there = offsets.contains(&record.offset);
            assert!(is_there || record.offset < start || record.value.is_none(), "{record:?} is gone");
            let is_left = |other: &Known| other.key == Some(key) && other.offset < record.offset;
            assert!(is_there || !found.iter().any(is_left), "key {key} is back");
        }
        // From wherever one begins the next record is found.
        for from in start.0..end.0 {
            let mut next = Vec::new();
            let then = read_slice(&self.log.reader(), Offset(from), 1, &mut next).expect("intact");
            assert!(then > Offset(from));
            let next = next.iter().find(|record| record.offset.0 >= from).map(|record| record.offset);
            let expected = offsets.range(Offset(from)..).next().copied();
            assert!(next == expected || next.is_none() && expected.is_none_or(|at| at >= then));
        }
        self.check_frames(start);
    }

    /// What the log's epochs and producers are made from again is in its frames.
    fn check_frames(&self, start: Offset) {
        let frames = self.frames();
        for (producer, (base, numbering)) in self.last_sent(start) {
            let found = frames.iter().rfind(|(_, batch)| batch.producer_id == producer.id.0 as i64);
            let (frame, batch) = found.expect("its last batch stays");
            assert_eq!((frame.base_offset, batch.numbering()), (base, Ok(Some(numbering))));
        }
        let mut next = start;
        for (frame, batch) in &frames {
            assert!(frame.base_offset <= next || frame.is_compacted, "gaps are flagged");
            assert!(batch.is_whole() || frame.is_compacted);
            next = frame.next_offset();
        }
        assert_eq!(next.max(start), self.log.end_offset());
    }

    /// Of each producer that is not forgotten yet; those it wrote a day ago are not looked for.
    fn last_sent(&self, start: Offset) -> BTreeMap<ProducerIdentity, (Offset, Numbering)> {
        let is_there = |base: &Offset| {
            let record = &self.records[base.0 as usize];
            *base >= start && self.now.0 - record.timestamp.0 < 24 * 3600 * 1000 - 10
        };
        let sent = self.sent.iter().filter(|(base, ..)| is_there(base));
        sent.map(|(base, producer, numbering)| (*producer, (*base, *numbering))).collect()
    }

    /// Without checkpoint, epochs and indexes the log is the same.
    pub fn check_small_files_are_rebuilt(&mut self) {
        self.commit();
        let epochs = self.log.epochs().clone();
        if self.log.start_offset() == Offset::ZERO {
            assert_eq!(epochs.entries(), self.starts.entries());
        }
        let found = self.read().expect("intact");
        self.close();
        for name in self.disk.list(Path::new(DIR)).expect("there") {
            if !name.ends_with(".log") && name != "manifest" && !name.starts_with("unwritten") {
                self.disk.remove(&Path::new(DIR).join(name)).expect("there");
            }
        }
        self.restart(SimDisk::kill);
        assert_eq!(self.read().expect("intact"), found);
        // Before the log start nothing is known any more.
        if self.log.start_offset() == Offset::ZERO {
            assert_eq!(self.log.epochs().entries(), epochs.entries());
        }
        let report = inspect::verify(&self.disk, Path::new(DIR), Some(partition())).expect("a log");
        assert!(report.finding.is_none(), "{:?}", report.finding);
    }

    /// A follower that gets all of it has the same, whatever it compacts itself; and so does one of that one.
    pub fn check_follower(&mut self) {
        for keys_max in [1, 3, compaction().keys_max] {
            self.check_follower_by_keys(keys_max);
        }
    }

    fn check_follower_by_keys(&mut self, keys_max: usize) {
        self.commit();
        let mut follower = self.follow();
        assert_eq!(follower.read().expect("intact"), self.read().expect("intact"));
        assert_eq!(follower.log.known_chain(), self.log.known_chain());
        follower.compact_by_keys(keys_max);
        follower.check();
        follower.restart(SimDisk::kill);
        let mut next = follower.follow();
        next.check();
        next.append(&Sent {
            records: vec![NewRecord { key: Some(1), has_value: true, len: 3 }],
            compression: Compression::None,
            producer: None,
        });
        next.commit();
        next.check();
    }

    fn follow(&self) -> Keyed {
        let mut follower = Keyed::new(77);
        let start = self.log.start_offset();
        if start > Offset::ZERO {
            follower.log.restart_at(start);
            follower.settle(NO_SYNC);
        }
        let reader = self.log.reader();
        let first = reader.read(start, 1, reader.end_offset(), Residency::Any).expect("intact");
        let first = first.frames.first().and_then(|bytes| FrameHeader::parse(bytes).ok());
        if first.is_some_and(|first| first.base_offset < start) {
            // The log start lies within a frame: nothing that a leader would send from.
            follower.log.restart_at(first.expect("looked at").base_offset);
            follower.settle(NO_SYNC);
        }
        for frame in reader.frames_since(start) {
            let mut frames = vec![frame.expect("intact").1];
            loop {
                match follower.log.append_frames(frames) {
                    Ok(_) => break,
                    Err(error) if error.kind == AppendErrorKind::NoSpaceYet.into() => frames = error.frames,
                    Err(error) => panic!("{error}"),
                }
                let job = follower.log.next_job(NO_SYNC).expect("something makes space");
                follower.complete(job);
            }
        }
        follower.records = self.records.clone();
        follower.sent = self.sent.clone();
        follower.sequences = self.sequences.clone();
        follower.starts = self.starts.clone();
        (follower.epoch, follower.now, follower.appended) = (self.epoch, self.now, self.appended + 1000);
        follower.commit();
        follower
    }
}

pub fn value(key: u8, len: usize) -> NewRecord {
    NewRecord { key: Some(key), has_value: true, len }
}

pub fn tombstone(key: u8) -> NewRecord {
    NewRecord { key: Some(key), has_value: false, len: 0 }
}

pub fn plain(records: Vec<NewRecord>) -> Sent {
    Sent { records, compression: Compression::None, producer: None }
}

/// Segments with four batches of a few keys each, committed; the last is empty.
pub fn filled(seed: u64, segments: usize) -> Keyed {
    let mut log = Keyed::new(seed);
    for segment in 0..segments {
        for batch in 0..4 {
            let key = (segment + batch) as u8 % 5;
            log.append(&plain(vec![value(key, 40), value(key + 1, 300), value(7, 200)]));
        }
        log.commit();
        log.roll();
    }
    log
}

/// Adds the records of the frames that one read gives; where the next begins.
fn read_slice(
    reader: &LogReader,
    from: Offset,
    max_bytes: usize,
    found: &mut Vec<Known>,
) -> Result<Offset, ReadError> {
    let slice = reader.read(from, max_bytes, reader.end_offset(), Residency::Any)?;
    for mut bytes in slice.frames {
        while !bytes.is_empty() {
            let header = FrameHeader::parse(&bytes).expect("it was checked");
            let batch = bytes.split_to(header.frame_len()).slice(frame::HEADER_LEN..);
            let header = BatchHeader::parse(&batch).expect("it was checked");
            for record in Records::open(&header, &batch).expect("it was checked") {
                let record = record.expect("well formed");
                found.push(Known {
                    offset: record.offset,
                    timestamp: record.timestamp,
                    key: record.key.map(|key| key[1]),
                    value: record.value,
                });
            }
        }
    }
    Ok(slice.next_offset)
}
