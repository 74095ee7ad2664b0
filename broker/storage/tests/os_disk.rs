//! The log on real files: maps, readers beside the writer, and space on disk.

mod harness;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use quire_protocol::batch::TimestampType;
use quire_protocol::frame::{FrameHeader, FrameSeed};
use quire_protocol::ids::{LeaderEpoch, Offset, Timestamp};
use quire_storage::disk::OsDisk;
use quire_storage::inspect::{self, FindingKind};
use quire_storage::{
    AppendContext, AppendErrorKind, Log, LogOptions, LogReader, NewBatch, ReadAhead, ReadError,
    RecoveryReport, Residency,
};

use harness::{NO_SYNC, SYNC, frames, new_batch, partition, read_all};

fn open(dir: &Path, segment_bytes: u64) -> (Log, RecoveryReport) {
    let options = LogOptions { segment_bytes, ..LogOptions::default() };
    Log::open(Arc::new(OsDisk), &dir.join("log"), partition(), options).expect("a healthy disk")
}

fn append(log: &mut Log, mut batches: Vec<NewBatch>) -> Vec<FrameHeader> {
    let context = AppendContext {
        leader_epoch: LeaderEpoch(0),
        now: Timestamp(1000),
        high_watermark: log.high_watermark(),
        timestamp_type: TimestampType::CreateTime,
    };
    loop {
        match log.append(batches, context) {
            Ok(frames) => return frames,
            Err(error) => {
                assert_eq!(error.kind, AppendErrorKind::NoSpaceYet);
                batches = error.batches;
            }
        }
        log.run_jobs(NO_SYNC);
    }
}

fn commit(log: &mut Log) {
    log.run_jobs(SYNC);
    log.set_high_watermark(log.durable_end());
}

fn file_bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir.join("log")).expect("there");
    entries.map(|entry| entry.and_then(|entry| entry.metadata()).expect("there").len()).sum()
}

#[test]
fn what_was_just_written_is_read_without_a_copy_and_what_is_old_only_by_who_may_block() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut log, _) = open(dir.path(), 1 << 20);
    for tag in 0..40 {
        append(&mut log, vec![new_batch(4, 20_000, tag, Timestamp(5))]);
    }
    commit(&mut log);
    let reader = log.reader();
    let end = log.end_offset();
    let slice = reader.read(Offset(5), 300_000, end, Residency::Resident).expect("just written");
    let again = reader.read(Offset(5), 300_000, end, Residency::Resident).expect("just written");
    assert_eq!(slice.frames[0].as_ptr(), again.frames[0].as_ptr(), "both are the map");
    assert_eq!(frames(&slice.frames[0])[0].header.base_offset, Offset(4));
    let all = read_all(&reader, Offset::ZERO, end).expect("intact");
    log.close().expect("healthy");
    let (log, report) = open(dir.path(), 1 << 20);
    assert!(report.was_clean);
    let reader = log.reader();
    let refused = reader.read(Offset(5), 300_000, end, Residency::Resident).expect_err("may be anywhere");
    assert!(matches!(refused, ReadError::NotResident));
    assert_eq!(read_all(&reader, Offset::ZERO, end).expect("intact"), all);
    // Once who may block has opened it, its pages are seen to be there still.
    reader.read(Offset(5), 300_000, end, Residency::Any).expect("intact");
    let slice = reader.read(Offset(5), 300_000, end, Residency::Resident).expect("in the page cache");
    let again = reader.read(Offset(5), 300_000, end, Residency::Resident).expect("in the page cache");
    assert_eq!(slice.frames[0].as_ptr(), again.frames[0].as_ptr(), "both are the map");
}

#[test]
fn readers_follow_the_writer_through_rolls_and_never_see_a_mixed_frame() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut log, _) = open(dir.path(), 256 * 1024);
    let is_done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (reader, is_done) = (log.reader(), Arc::clone(&is_done));
            thread::spawn(move || follow(&reader, &is_done))
        })
        .collect();
    for tag in 0..1500u32 {
        append(
            &mut log,
            vec![new_batch(1 + tag as usize % 5, 300 + tag as usize % 700, tag as u8, Timestamp(5))],
        );
        if tag % 8 == 0 {
            commit(&mut log);
        }
    }
    commit(&mut log);
    is_done.store(true, Ordering::Release);
    for reader in readers {
        assert_eq!(reader.join().expect("no panic"), log.end_offset());
    }
}

/// Reads until the writer is done and everything was read; where that was.
fn follow(reader: &LogReader, is_done: &AtomicBool) -> Offset {
    let seed = FrameSeed::new(partition());
    let (mut next, mut chain) = (Offset::ZERO, None);
    loop {
        let was_done = is_done.load(Ordering::Acquire);
        let slice = reader.read(next, 64 * 1024, reader.high_watermark(), Residency::Any).expect("intact");
        for frame in slice.frames.iter().flat_map(|bytes| frames(bytes)) {
            let header = FrameHeader::check(seed, &frame.bytes).expect("intact");
            assert_eq!(header.base_offset, next);
            if let Some(previous) = chain {
                assert_eq!(header.chain, header.chain_after(&previous, &frame.bytes[88..]));
            }
            (next, chain) = (header.next_offset(), Some(header.chain));
        }
        assert_eq!(next, slice.next_offset);
        if was_done && slice.bytes == 0 {
            return next;
        }
    }
}

#[test]
fn who_reads_a_deleted_segment_keeps_what_it_has_and_is_then_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut log, _) = open(dir.path(), 64 * 1024);
    for tag in 0..40 {
        append(&mut log, vec![new_batch(1, 10_000, tag, Timestamp(5))]);
        commit(&mut log);
    }
    let reader = log.reader();
    let slice = reader.read(Offset::ZERO, 30_000, log.end_offset(), Residency::Any).expect("there");
    let before = slice.frames.concat();
    log.retain(Timestamp(1000), None, Some(100_000));
    log.run_jobs(NO_SYNC);
    assert!(log.start_offset() > Offset(10) && log.size_bytes() <= 100_000 + 64 * 1024);
    assert_eq!(slice.frames.concat(), before);
    let refused = reader.read(Offset::ZERO, 30_000, log.end_offset(), Residency::Any).expect_err("gone");
    assert!(matches!(refused, ReadError::OutOfRange { log_start, .. } if log_start == log.start_offset()));
    read_all(&reader, log.start_offset(), log.end_offset()).expect("the rest is there");
    let start = log.start_offset();
    log.close().expect("healthy");
    assert_eq!(open(dir.path(), 64 * 1024).0.start_offset(), start);
}

#[test]
fn an_empty_or_small_log_takes_little_space() {
    let dir = tempfile::tempdir().expect("a directory");
    let (log, report) = open(dir.path(), 1 << 27);
    assert!(report.was_clean && file_bytes(dir.path()) < 1000);
    drop(log);
    let (mut log, _) = open(dir.path(), 1 << 27);
    append(&mut log, vec![new_batch(1, 100, 1, Timestamp(5))]);
    commit(&mut log);
    log.run_jobs(SYNC);
    assert!(file_bytes(dir.path()) < 100_000, "{} bytes", file_bytes(dir.path()));
    for tag in 0..20 {
        append(&mut log, vec![new_batch(1, 100_000, tag, Timestamp(5))]);
        commit(&mut log);
    }
    assert!(file_bytes(dir.path()) < 3 * log.size_bytes(), "{} bytes", file_bytes(dir.path()));
}

#[test]
fn a_log_at_rest_holds_no_descriptor_and_no_map() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut log, _) = open(dir.path(), 1 << 20);
    append(&mut log, vec![new_batch(1, 100, 1, Timestamp(5))]);
    commit(&mut log);
    read_all(&log.reader(), Offset::ZERO, log.end_offset()).expect("intact");
    assert!(mentions(dir.path()) > 0);
    log.rest();
    assert_eq!(mentions(dir.path()), 0);
    append(&mut log, vec![new_batch(1, 100, 2, Timestamp(5))]);
    commit(&mut log);
    assert_eq!(frames(&read_all(&log.reader(), Offset::ZERO, Offset(2)).expect("intact")).len(), 2);
    log.close().expect("healthy");
    let (log, _) = open(dir.path(), 1 << 20);
    assert_eq!(mentions(dir.path()), 0);
    drop(log);
}

/// Descriptors and maps of this process below a directory.
fn mentions(dir: &Path) -> usize {
    let descriptors = std::fs::read_dir("/proc/self/fd").expect("Linux");
    let open = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let maps = std::fs::read_to_string("/proc/self/maps").expect("Linux");
    let dir = dir.to_str().expect("UTF-8");
    open.filter(|path| path.starts_with(dir)).count() + maps.lines().filter(|line| line.contains(dir)).count()
}

/// The files with frames, in offset order.
fn segments(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir.join("log")).expect("there");
    let paths = entries.map(|entry| entry.expect("listed").path());
    let mut logs: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect();
    logs.sort();
    logs
}

fn truncate(path: &Path, len: u64) {
    let file = std::fs::File::options().write(true).open(path).expect("there");
    file.set_len(len).expect("it can be cut");
}

#[test]
fn a_log_that_is_shorter_than_its_marker_or_its_checkpoint_says_is_damaged() {
    for is_marked in [true, false] {
        for cut in [0, 1] {
            let dir = tempfile::tempdir().expect("a directory");
            let (mut log, _) = open(dir.path(), 1 << 20);
            let header = append(&mut log, vec![new_batch(4, 200, 1, Timestamp(5))])[0];
            append(&mut log, vec![new_batch(4, 200, 2, Timestamp(5))]);
            commit(&mut log);
            log.close().expect("a healthy disk");
            let clean = dir.path().join("log/clean");
            if !is_marked {
                std::fs::remove_file(clean).expect("there");
            }
            let position = header.frame_len() as u64 * cut;
            truncate(&segments(dir.path())[0], position);
            let report = inspect::verify(&OsDisk, &dir.path().join("log"), None).expect("readable");
            assert!(!report.is_intact());
            let finding = report.finding.expect("damaged");
            assert_eq!((finding.kind, finding.position), (FindingKind::Corruption, position));
            assert_eq!((finding.offset, finding.intact_from), (Offset(4 * cut), Some(Offset(8))));
        }
    }
}

#[test]
fn what_is_left_of_a_segment_that_was_cut_short_is_served() {
    for has_index in [true, false] {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut log, _) = open(dir.path(), 200_000);
        let mut headers = Vec::new();
        for tag in 0..60 {
            headers.extend(append(&mut log, vec![new_batch(2, 5_000, tag, Timestamp(5))]));
            commit(&mut log);
        }
        let end = log.end_offset();
        log.close().expect("a healthy disk");
        let first = &segments(dir.path())[0];
        let len = 100_000;
        truncate(first, len);
        if !has_index {
            std::fs::remove_file(first.with_extension("index")).expect("there");
        }
        let mut intact = Offset::ZERO;
        let mut bytes = 0;
        for header in &headers {
            bytes += header.frame_len() as u64;
            if bytes > len {
                break;
            }
            intact = header.next_offset();
        }
        let (log, _) = open(dir.path(), 200_000);
        let reader = log.reader();
        let served = read_all(&reader, Offset::ZERO, intact).expect("the file has it");
        assert_eq!(frames(&served).len() as u64 * 2, intact.0);
        let error = reader.read(intact, 100_000, end, Residency::Any).expect_err("cut off");
        assert!(
            matches!(&error, ReadError::Corrupt { offset, position, .. }
            if *offset == intact && *position <= len),
            "{error}"
        );
        let behind = Offset(end.0 - 2);
        assert!(!read_all(&reader, behind, end).expect("the other segments are whole").is_empty());
    }
}

/// A log of three segments, opened when nothing of it was in the page cache.
struct Cold {
    dir: tempfile::TempDir,
    log: Log,
    /// Length of each frame, which has one record.
    frame_len: u64,
    /// The first offset of the second segment.
    second: Offset,
}

impl Cold {
    const SEGMENT_BYTES: u64 = 4 << 20;

    fn new() -> Cold {
        // Beside the build: what lies in /tmp may have no disk below it.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let (mut log, _) = open(dir.path(), Cold::SEGMENT_BYTES);
        let frame_len = append(&mut log, vec![new_batch(1, 50_000, 1, Timestamp(5))])[0].frame_len() as u64;
        let second = Offset(Cold::SEGMENT_BYTES / frame_len);
        while log.end_offset().0 <= 2 * second.0 {
            append(&mut log, vec![new_batch(1, 50_000, 1, Timestamp(5))]);
            commit(&mut log);
        }
        log.close().expect("a healthy disk");
        assert_eq!(segments(dir.path()).len(), 3);
        let (log, report) = open(dir.path(), Cold::SEGMENT_BYTES);
        assert!(report.was_clean);
        let cold = Cold { dir, log, frame_len, second };
        cold.drop_pages();
        cold
    }

    /// Takes out of the page cache what nobody has mapped.
    fn drop_pages(&self) {
        for path in segments(self.dir.path()) {
            let file = std::fs::File::open(path).expect("there");
            file.sync_all().expect("a healthy disk");
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("heard");
        }
    }

    /// A log with its first segment opened, and offsets in its middle, at its end and in the next that are on the disk only.
    /// The kernel may keep pages for a moment, and what was found in memory stays mapped there: then another log is made.
    fn with_first_segment_opened() -> (Cold, [Offset; 3]) {
        for _ in 0..20 {
            let cold = Cold::new();
            // May bring in more of it than was asked for.
            cold.read(Offset(0), Residency::Any).expect("intact");
            cold.drop_pages();
            let offsets = [Offset(cold.second.0 / 2), Offset(cold.second.0 - 1), cold.second];
            let is_out = |offset: &Offset| {
                matches!(cold.read(*offset, Residency::Resident), Err(ReadError::NotResident))
            };
            if offsets.iter().all(is_out) {
                return (cold, offsets);
            }
        }
        panic!("what was taken out of memory is always there");
    }

    /// Reads one frame.
    fn read(&self, from: Offset, residency: Residency) -> Result<(), ReadError> {
        let slice =
            self.log.reader().read(from, self.frame_len as usize, self.log.end_offset(), residency)?;
        assert_eq!((slice.bytes as u64, slice.next_offset), (self.frame_len, Offset(from.0 + 1)));
        Ok(())
    }

    /// Waits until the disk has brought what is at `from`.
    fn await_resident(&self, from: Offset) {
        let start = Instant::now();
        while let Err(error) = self.read(from, Residency::Resident) {
            assert!(matches!(error, ReadError::NotResident), "{error}");
            assert!(start.elapsed() < Duration::from_secs(20), "offset {from} was not read ahead");
            thread::yield_now();
        }
    }
}

#[test]
fn what_was_read_ahead_is_served_without_waiting_also_in_the_next_segment() {
    let (cold, offsets) = Cold::with_first_segment_opened();
    let middle = offsets[0];
    let due = ReadAhead::due_at(middle);
    assert!(due.is_due(middle));
    let asked = cold.log.reader().read_ahead(middle, due).expect("healthy").expect("nothing is recent");
    assert!(!asked.is_due(middle), "so much was asked for");
    assert!(asked.is_due(cold.log.end_offset()), "and no more");
    for offset in offsets {
        cold.await_resident(offset);
    }
}

#[test]
fn reading_ahead_ends_at_what_is_recent() {
    let mut cold = Cold::new();
    let end = cold.log.end_offset();
    let ask = |log: &Log, from| log.reader().read_ahead(from, ReadAhead::due_at(from)).expect("healthy");
    assert_eq!(ask(&cold.log, end), None, "nothing is there yet");
    append(&mut cold.log, vec![new_batch(1, 50_000, 1, Timestamp(5))]);
    assert_eq!(ask(&cold.log, end), None, "just written");
    assert!(ask(&cold.log, Offset(0)).is_some());
}

#[test]
fn damage_that_comes_from_the_disk_is_found() {
    let cold = Cold::new();
    let damaged = Offset(cold.second.0 / 2);
    let path = &segments(cold.dir.path())[0];
    let file = std::fs::File::options().write(true).open(path).expect("there");
    let position = damaged.0 * cold.frame_len + 40_000;
    std::os::unix::fs::FileExt::write_all_at(&file, b"damage", position).expect("room");
    cold.drop_pages();
    let reader = cold.log.reader();
    reader.read_ahead(Offset(0), ReadAhead::due_at(Offset(0))).expect("nothing is looked at yet");
    cold.read(Offset(damaged.0 - 1), Residency::Any).expect("intact");
    let error = cold.read(damaged, Residency::Any).expect_err("damaged");
    assert!(matches!(error, ReadError::Corrupt { offset, .. } if offset == damaged), "{error}");
    cold.read(Offset(damaged.0 + 1), Residency::Any).expect("intact");
}

#[test]
fn a_missing_segment_is_damage_to_who_reads_and_to_who_reads_ahead() {
    let cold = Cold::new();
    std::fs::remove_file(&segments(cold.dir.path())[1]).expect("there");
    let error = cold.read(cold.second, Residency::Any).expect_err("missing");
    assert!(matches!(&error, ReadError::Corrupt { offset, .. } if *offset == cold.second), "{error}");
    let ahead = cold.log.reader().read_ahead(Offset(0), ReadAhead::due_at(Offset(0)));
    assert!(matches!(&ahead, Err(ReadError::Corrupt { offset, .. }) if *offset == cold.second), "{ahead:?}");
    cold.read(Offset(cold.second.0 - 1), Residency::Any).expect("the first is there");
}
