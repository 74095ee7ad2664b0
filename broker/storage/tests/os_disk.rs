//! The log on real files: maps, readers beside the writer, and space on disk.

mod harness;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use quire_protocol::batch::TimestampType;
use quire_protocol::frame::{FrameHeader, FrameSeed};
use quire_protocol::ids::{LeaderEpoch, Offset, Timestamp};
use quire_storage::disk::OsDisk;
use quire_storage::inspect::{self, FindingKind};
use quire_storage::{
    AppendContext, AppendErrorKind, Log, LogOptions, LogReader, NewBatch, ReadError, RecoveryReport,
    Residency,
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
