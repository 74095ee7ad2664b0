//! Disks that fail, that are full, and that hold something else than what was written.

mod harness;

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use quire_protocol::batch::TimestampType;
use quire_protocol::ids::{LeaderEpoch, Offset, Timestamp};
use quire_storage::disk::{CrashOptions, Disk, Fault, OpenMode, SimDisk, Survival};
use quire_storage::inspect::{self, FindingKind};
use quire_storage::{
    AppendContext, AppendErrorKind, CloseError, JobKind, Log, LogOptions, OpenError, ReadError, Residency,
    Scrub, Suspicion,
};

use harness::{
    DIR, Harness, ModelFrame, NO_SYNC, SYNC, config, frames, new_batch, open, options, partition, read_all,
};

/// A log of several segments, all of it committed.
fn filled(seed: u64) -> Harness {
    let mut harness = Harness::new(SimDisk::new(seed), options());
    for tag in 0..40 {
        if tag % 15 == 0 {
            harness.epoch = LeaderEpoch(harness.epoch.0 + 1);
        }
        harness.now.0 += 10;
        let batches = vec![new_batch(2, 90, tag, harness.now), new_batch(1, 200, tag, harness.now)];
        harness.append(batches).expect("room");
        harness.commit();
    }
    harness
}

fn files(disk: &SimDisk, extension: &str) -> Vec<PathBuf> {
    let names = disk.list(Path::new(DIR)).expect("there");
    let is_kind = |name: &String| Path::new(name).extension().is_some_and(|other| other == extension);
    names.iter().filter(|name| is_kind(name)).map(|name| Path::new(DIR).join(name)).collect()
}

fn len(disk: &SimDisk, path: &Path) -> u64 {
    disk.open(path, OpenMode::Read).and_then(|file| file.len()).expect("there")
}

fn close(harness: Harness) -> (SimDisk, Vec<u8>, Offset) {
    let end = harness.end();
    let bytes = read_all(&harness.log.reader(), harness.log_start, end).expect("intact");
    harness.log.close().expect("a healthy disk");
    (harness.disk, bytes, end)
}

#[test]
fn after_a_failed_sync_nothing_more_is_appended_and_nothing_counts_as_durable() {
    let mut harness = filled(1);
    let durable = harness.durable_end;
    harness.append(vec![new_batch(1, 100, 1, Timestamp(9))]).expect("room");
    harness.disk.inject(Fault::SyncFails { nth: 1 });
    let job = harness.log.next_job(SYNC).expect("something is unsynced");
    let completed = harness.log.complete(job.run());
    assert!(completed.poisoned.is_some());
    assert_eq!((completed.durable_end, harness.log.durable_end()), (None, durable));
    let refused = harness.append(vec![new_batch(1, 100, 2, Timestamp(9))]).expect_err("poisoned");
    assert!(matches!(refused, AppendErrorKind::Poisoned(_)));
    let syncs = harness.disk.counters().syncs;
    assert!(harness.log.next_job(SYNC).is_none());
    assert_eq!(harness.disk.counters().syncs, syncs, "no sync is repeated");
    let reader = harness.log.reader();
    read_all(&reader, Offset::ZERO, durable).expect("what is durable is served still");
    let (fresh, _) = open(&SimDisk::new(0), &options()).expect("empty");
    let log = std::mem::replace(&mut harness.log, fresh);
    assert!(matches!(log.close(), Err(CloseError::Poisoned(_))));
    let report = harness.restart(|disk| disk.crash(&CrashOptions::default()));
    assert!(!report.was_clean);
    assert!(harness.end() >= durable);
}

#[test]
fn a_write_back_that_failed_unseen_is_made_good_by_recovery() {
    for seed in 0..20 {
        let mut harness = filled(seed);
        harness.append(vec![new_batch(3, 100, 1, Timestamp(9))]).expect("room");
        let active = files(&harness.disk, "log").pop().expect("a segment");
        harness.disk.inject(Fault::WriteBackFails { path: active });
        harness.restart(SimDisk::kill);
        let end = harness.end();
        harness.disk.drop_caches();
        harness.check();
        harness.restart(|disk| disk.crash(&CrashOptions::default()));
        assert_eq!(harness.end(), end, "what recovery kept is on the device");
    }
}

#[test]
fn a_lost_write_is_reported_to_the_log_and_not_to_the_job_that_fills_space() {
    let mut harness = Harness::new(SimDisk::new(4), LogOptions { segment_bytes: 1 << 20, ..options() });
    harness.append(vec![new_batch(1, 50_000, 1, Timestamp(5))]).expect("room");
    let grow = harness.log.next_job(NO_SYNC).expect("less than half of the step is left");
    assert_eq!(grow.kind(), JobKind::Grow);
    let active = files(&harness.disk, "log").pop().expect("a segment");
    let sync = harness.log.next_job(SYNC).expect("unsynced");
    harness.disk.inject(Fault::WriteBackFails { path: active });
    let grown = grow.run();
    let completed = harness.log.complete(sync.run());
    assert!(completed.poisoned.is_some() && completed.durable_end.is_none(), "{completed:?}");
    let _ = harness.log.complete(grown);
    assert_eq!(harness.log.durable_end(), Offset::ZERO);
}

#[test]
fn a_full_disk_refuses_appends_serves_reads_and_recovers_by_itself() {
    let mut harness = filled(2);
    harness.disk.set_capacity(Some(0));
    let mut batches = vec![new_batch(1, 3000, 1, Timestamp(5))];
    let mut refused = 0;
    for _ in 0..10 {
        match harness.append(batches) {
            Ok(()) => {}
            Err(kind) => {
                assert_eq!(kind, AppendErrorKind::DiskFull);
                assert!(kind.is_retriable());
                refused += 1;
            }
        }
        batches = vec![new_batch(1, 3000, 1, Timestamp(5))];
    }
    assert!(refused > 5);
    harness.commit();
    harness.check();
    harness.disk.set_capacity(None);
    harness.append(vec![new_batch(1, 3000, 1, Timestamp(5))]).expect("there is room again");
    harness.commit();
    harness.restart(|disk| disk.crash(&CrashOptions::default()));
}

#[test]
fn a_write_that_found_no_room_is_written_over() {
    let mut harness = filled(3);
    harness.disk.set_capacity(Some(0));
    let mut refused = false;
    for tag in 0..60 {
        refused |= harness.append(vec![new_batch(1, 500, tag, Timestamp(5))]).is_err();
    }
    assert!(refused);
    harness.restart(SimDisk::kill);
    harness.disk.set_capacity(None);
    harness.append(vec![new_batch(1, 500, 0, Timestamp(5))]).expect("room");
    harness.commit();
    harness.check();
}

#[test]
fn a_missing_or_damaged_manifest_is_refused_by_name() {
    let (disk, ..) = close(filled(5));
    let manifest = Path::new(DIR).join("manifest");
    let damaged = disk.fork(1);
    damaged.flip_bit(&manifest, 20, 3);
    let error = open(&damaged, &options()).expect_err("damaged");
    assert!(
        matches!(&error, OpenError::ManifestDamaged { manifest: path, .. } if *path == manifest),
        "{error}"
    );
    let report = inspect::verify(&damaged, Path::new(DIR), None).expect("readable");
    assert_eq!(report.finding.map(|finding| finding.kind), Some(FindingKind::Unusable));
    disk.remove(&manifest).expect("there");
    let error = open(&disk, &options()).expect_err("missing");
    assert!(
        matches!(&error, OpenError::ManifestMissing { manifest: path, .. } if *path == manifest),
        "{error}"
    );
}

#[test]
fn another_partitions_log_is_refused() {
    let (disk, ..) = close(filled(6));
    let mut other = partition();
    other.partition.0 += 1;
    let opened = Log::open(std::sync::Arc::new(disk), Path::new(DIR), other, options());
    assert!(matches!(opened, Err(OpenError::WrongPartition { .. })));
}

#[test]
fn derived_files_may_be_deleted_or_damaged() {
    let (disk, bytes, end) = close(filled(7));
    let mut victims: Vec<PathBuf> =
        ["index", "timeindex"].iter().flat_map(|kind| files(&disk, kind)).collect();
    assert!(victims.len() > 4);
    victims.extend(["epochs", "checkpoint", "clean"].map(|name| Path::new(DIR).join(name)));
    for path in victims {
        for is_deleted in [true, false] {
            let disk = disk.fork(1);
            let last = len(&disk, &path) - 1;
            if is_deleted {
                disk.remove(&path).expect("there")
            } else {
                disk.flip_bit(&path, last / 2, 1)
            }
            let (log, report) = open(&disk, &options()).expect("derived files are never fatal");
            assert_eq!(report.corruption, None, "{}", path.display());
            assert_eq!((log.start_offset(), log.end_offset()), (Offset::ZERO, end));
            assert_eq!(read_all(&log.reader(), Offset::ZERO, end).expect("intact"), bytes);
            assert_eq!(log.epochs().entries().len(), 3, "{}", path.display());
            check_times(&log);
            let mut harness = Harness { log, disk, ..filled(7) };
            harness.append(vec![new_batch(4, 2000, 9, Timestamp(50_000))]).expect("room");
            harness.append(vec![new_batch(4, 2000, 9, Timestamp(10))]).expect("room");
            check_times(&harness.log);
            harness.log.run_jobs(SYNC);
            harness.log.close().expect("healthy");
            let (log, report) = open(&harness.disk, &options()).expect("closed in order");
            assert!(report.was_clean && report.rebuilt.is_empty(), "{}: {report:?}", path.display());
            check_times(&log);
        }
    }
}

fn bytes_of(frames: &[ModelFrame]) -> Vec<u8> {
    frames.iter().flat_map(|frame| frame.bytes.iter().copied()).collect()
}

/// Every timestamp is found where a plain search finds it.
fn check_times(log: &Log) {
    let (reader, end) = (log.reader(), log.end_offset());
    let bytes = read_all(&reader, log.start_offset(), end).expect("intact");
    let found = frames(&bytes);
    let records: Vec<(Offset, Timestamp)> = found.iter().flat_map(ModelFrame::records).collect();
    let times = records.iter().map(|(_, timestamp)| timestamp.0);
    let (first, last) = (times.clone().min().unwrap_or(0), times.max().unwrap_or(0));
    for asked in (first - 1..=last + 1).step_by(((last - first) / 60).max(1) as usize) {
        let expected = records.iter().find(|(_, timestamp)| timestamp.0 >= asked).copied();
        assert_eq!(reader.offset_at_time(Timestamp(asked), end).expect("intact"), expected, "at {asked}");
    }
}

#[test]
fn damage_to_committed_records_is_told_from_a_torn_tail() {
    let mut harness = Harness::new(SimDisk::new(8), options());
    for tag in 0..6 {
        harness.append(vec![new_batch(1, 300, tag, Timestamp(5))]).expect("room");
        harness.commit();
    }
    let active = files(&harness.disk, "log").pop().expect("a segment");
    let frame_len = harness.frames[0].bytes.len() as u64;
    // The third frame of six: later frames were appended when it was committed.
    let disk = harness.disk.fork(1);
    disk.flip_bit(&active, frame_len * 2 + 150, 0);
    for _ in 0..2 {
        let (mut log, report) = open(&disk, &options()).expect("damage is no error of opening");
        let corruption = report.corruption.expect("damaged");
        assert_eq!((corruption.offset, corruption.intact_from), (Offset(2), Offset(3)));
        assert_eq!(corruption.position, frame_len * 2);
        assert!(log.is_corrupt());
        assert_eq!(log.end_offset(), Offset(6));
        let reader = log.reader();
        assert_eq!(read_all(&reader, Offset(0), Offset(2)).expect("intact"), bytes_of(&harness.frames[..2]));
        assert_eq!(read_all(&reader, Offset(3), Offset(6)).expect("intact"), bytes_of(&harness.frames[3..]));
        let error = reader.read(Offset(2), 10_000, Offset(6), Residency::Any).expect_err("damaged");
        assert!(matches!(error, ReadError::Corrupt { offset: Offset(2), .. }), "{error}");
        let refused = log.append(vec![new_batch(1, 10, 1, Timestamp(5))], harness.context());
        assert_eq!(refused.expect_err("corrupt").kind, AppendErrorKind::Corrupt);
        assert!(log.next_job(SYNC).is_none());
        assert!(matches!(log.close(), Err(CloseError::Corrupt)), "the next open finds it again");
    }
    let report = inspect::verify(&disk, Path::new(DIR), None).expect("readable");
    let finding = report.finding.expect("damaged");
    assert_eq!(
        (finding.kind, finding.offset, finding.position),
        (FindingKind::Corruption, Offset(2), frame_len * 2)
    );
    // The last frame: nothing tells that it was ever on disk.
    let disk = harness.disk.fork(1);
    disk.flip_bit(&active, frame_len * 5 + 150, 0);
    let report = inspect::verify(&disk, Path::new(DIR), None).expect("readable");
    assert!(report.is_intact());
    let finding = report.finding.expect("torn");
    assert_eq!((finding.kind, finding.is_suspicious), (FindingKind::TornTail, true));
    assert!(
        finding.meaning.contains("all below offset 4 is known to have been synced"),
        "{}",
        finding.meaning
    );
    assert!(finding.meaning.contains("may have been acknowledged"), "{}", finding.meaning);
    let (log, report) = open(&disk, &options()).expect("a torn tail is cut");
    let torn = report.torn_tail.expect("torn");
    assert_eq!((torn.offset, torn.position), (Offset(5), frame_len * 5));
    assert_eq!((torn.synced_end, torn.suspicion.is_some()), (Offset(4), true));
    assert!((frame_len - 8..=frame_len).contains(&torn.bytes), "up to the last byte that is not zero");
    assert_eq!(log.end_offset(), Offset(5));
}

#[test]
fn a_frame_of_another_history_is_no_part_of_this_one() {
    let mut ours = Harness::new(SimDisk::new(14), options());
    ours.append(vec![new_batch(1, 100, 1, Timestamp(5))]).expect("room");
    ours.commit();
    let mut theirs = Harness::new(SimDisk::new(14), options());
    theirs.append(vec![new_batch(1, 100, 2, Timestamp(5))]).expect("room");
    theirs.append(vec![new_batch(1, 100, 3, Timestamp(5))]).expect("room");
    let stray = &theirs.frames[1];
    let active = files(&ours.disk, "log").pop().expect("a segment");
    let file = ours.disk.open(&active, OpenMode::ReadWrite).expect("there");
    let position = ours.frames[0].bytes.len() as u64;
    file.write_at(position, &[IoSlice::new(&stray.bytes)]).expect("room");
    drop(file);
    let report = ours.restart(SimDisk::kill);
    let torn = report.torn_tail.expect("intact, of this partition, at the right offset, and still not ours");
    assert_eq!((torn.offset, torn.position), (Offset(1), position));
}

#[test]
fn retention_keeps_what_is_not_committed() {
    let mut harness = Harness::new(SimDisk::new(15), options());
    for tag in 0..6 {
        harness.append(vec![new_batch(1, 3500, tag, Timestamp(5))]).expect("room");
        harness.settle(SYNC);
    }
    harness.log.set_high_watermark(Offset(2));
    harness.now.0 += 1_000_000;
    harness.log.retain(harness.now, Some(Duration::ZERO), Some(0));
    harness.settle(SYNC);
    harness.settle(SYNC);
    assert_eq!(harness.log.start_offset(), Offset(2));
    harness.check();
}

#[test]
fn a_checkpoint_covers_only_what_is_synced() {
    let mut harness = Harness::new(SimDisk::new(16), LogOptions { segment_bytes: 1 << 20, ..options() });
    harness.append(vec![new_batch(1, 7000, 1, Timestamp(5))]).expect("room");
    let sync = harness.log.next_job(SYNC).expect("unsynced");
    let completed = harness.log.complete(sync.run());
    harness.note(&completed);
    harness.append(vec![new_batch(1, 7000, 2, Timestamp(5))]).expect("room");
    let checkpoint = harness.log.next_job(NO_SYNC).expect("more than an interval was synced");
    assert_eq!(checkpoint.kind(), JobKind::Checkpoint);
    let _ = harness.log.complete(checkpoint.run());
    let report = harness.restart(|disk| {
        disk.crash(&CrashOptions { data: Survival::Nothing, names: Survival::Everything });
    });
    assert_eq!((harness.end(), report.frames_scanned), (Offset(1), 0));
}

#[test]
fn a_frame_that_claims_fewer_records_is_not_skipped() {
    let mut harness = Harness::new(SimDisk::new(17), options());
    for tag in 0..2 {
        harness.append(vec![new_batch(2, 50, tag, Timestamp(5))]).expect("room");
    }
    harness.commit();
    let active = files(&harness.disk, "log").pop().expect("a segment");
    // The first frame's last offset delta.
    harness.disk.flip_bit(&active, 20, 0);
    let reader = harness.log.reader();
    let error = reader.read(Offset(1), 1000, Offset(4), Residency::Any).expect_err("damaged");
    assert!(matches!(error, ReadError::Corrupt { offset: Offset(1), position: 0, .. }), "{error}");
    assert_eq!(read_all(&reader, Offset(2), Offset(4)).expect("intact"), bytes_of(&harness.frames[1..]));
}

#[test]
fn a_missing_segment_is_corruption() {
    let (disk, ..) = close(filled(9));
    for path in files(&disk, "log") {
        let disk = disk.fork(1);
        disk.remove(&path).expect("there");
        let (log, report) = open(&disk, &options()).expect("damage is no error of opening");
        let damage = report.corruption.unwrap_or_else(|| panic!("{} is missing", path.display()));
        assert!(path.ends_with(&damage.segment));
        if damage.offset < log.end_offset() {
            let read = log.reader().read(damage.offset, 1000, log.end_offset(), Residency::Any);
            assert!(matches!(read, Err(ReadError::Corrupt { .. })), "{read:?}");
        }
        let report = inspect::verify(&disk, Path::new(DIR), None).expect("readable");
        assert_eq!(report.finding.map(|finding| finding.kind), Some(FindingKind::Corruption));
    }
}

#[test]
fn a_log_that_acknowledges_before_it_syncs_is_suspect_after_an_unclean_stop() {
    let interval = LogOptions { is_synced: false, ..options() };
    let mut harness = Harness::new(SimDisk::new(10), interval);
    for tag in 0..30 {
        harness.append(vec![new_batch(1, 700, tag, Timestamp(5))]).expect("room");
        harness.log.set_high_watermark(harness.log.end_offset());
    }
    let report = harness.restart(|disk| {
        disk.crash(&CrashOptions { data: Survival::Random, names: Survival::Everything });
    });
    assert!(report.is_suspect && report.corruption.is_none(), "{report:?}");
    let (disk, ..) = close(harness);
    let (mut log, report) = open(&disk, &options()).expect("closed in order");
    assert!(report.was_clean && report.suspicion.is_unclean, "an orderly stop takes nothing back");
    log.trust();
    log.close().expect("nothing is under way");
    let (_, report) = open(&disk, &options()).expect("closed in order");
    assert!(report.was_clean && !report.is_suspect, "it caught up");
}

#[test]
fn a_replica_whose_sync_failed_is_suspect_until_it_is_trusted() {
    let mut harness = filled(20);
    harness.append(vec![new_batch(1, 100, 1, Timestamp(9))]).expect("room");
    harness.disk.inject(Fault::SyncFails { nth: 1 });
    harness.settle(SYNC);
    assert!(harness.log.is_poisoned());
    for _ in 0..2 {
        let report = harness.restart(SimDisk::kill);
        assert!(report.is_suspect && report.suspicion.has_lost_writes, "{report:?}");
    }
    harness.log.trust();
    harness.settle(NO_SYNC);
    assert!(!harness.log.suspicion().is_any());
    let report = harness.restart(|disk| disk.crash(&CrashOptions::default()));
    assert!(!report.is_suspect, "{report:?}");
}

/// The system says of files whose write-back failed that all is well: nothing of them is used again.
#[test]
fn a_log_whose_sync_failed_goes_on_in_other_files_alone() {
    let mut harness = filled(20);
    harness.append(vec![new_batch(1, 100, 1, Timestamp(9))]).expect("room");
    harness.disk.inject(Fault::SyncFails { nth: 1 });
    harness.settle(SYNC);
    assert!(harness.log.is_poisoned() && harness.log.can_begin_anew());
    let before = files(&harness.disk, "log");
    harness.log.restart_at(Offset(7));
    let completed = harness.log.run_jobs(NO_SYNC);
    assert_eq!((completed.cut, completed.poisoned), (Some(Offset(7)), None));
    assert!(!harness.log.is_poisoned());
    assert!(harness.log.suspicion().is_unclean && !harness.log.suspicion().has_lost_writes);
    let at = AppendContext {
        leader_epoch: LeaderEpoch(9),
        now: Timestamp(9),
        high_watermark: Offset(7),
        timestamp_type: TimestampType::CreateTime,
    };
    let mut batches = vec![new_batch(2, 100, 1, Timestamp(9))];
    while let Err(error) = harness.log.append(batches, at) {
        assert!(matches!(error.kind, AppendErrorKind::NoSpaceYet), "{error}");
        batches = error.batches;
        let _ = harness.log.run_jobs(NO_SYNC);
    }
    let _ = harness.log.run_jobs(SYNC);
    assert_eq!((harness.log.start_offset(), harness.log.durable_end()), (Offset(7), Offset(9)));
    let after = files(&harness.disk, "log");
    assert!(!after.is_empty() && after.iter().all(|file| !before.contains(file)), "{before:?} {after:?}");
    harness.disk.crash(&CrashOptions::default());
    let (mut log, report) = open(&harness.disk, &options()).expect("it is whole");
    assert!(report.is_suspect && report.corruption.is_none(), "{report:?}");
    assert_eq!(log.end_offset(), Offset(9));

    // One that fails in it is not known to be either.
    log.restart_at(Offset(3));
    harness.disk.inject(Fault::SyncFails { nth: 2 });
    let completed = log.run_jobs(NO_SYNC);
    assert!(completed.cut.is_none() && completed.poisoned.is_some() && log.is_poisoned());
}

/// Recovery starts at the checkpoint: damage before it that a reader came across was forgotten with the process.
#[test]
fn damage_that_a_reader_found_is_known_to_the_next_open() {
    for is_closed in [true, false] {
        let mut harness = filled(21);
        harness.log.mark_corrupt();
        let (fresh, _) = open(&SimDisk::new(0), &options()).expect("empty");
        if is_closed {
            let log = std::mem::replace(&mut harness.log, fresh);
            assert!(matches!(log.close(), Err(CloseError::Corrupt)));
        } else {
            harness.settle(SYNC);
            harness.disk.crash(&CrashOptions::default());
        }
        let (mut log, report) = open(&harness.disk, &options()).expect("it is served");
        assert!(report.suspicion.is_damaged && report.corruption.is_none() && log.is_corrupt());
        log.trust();
        assert!(log.next_job(NO_SYNC).is_none(), "damage is not made good by trust");
        log.restart_at(Offset(3));
        let _ = log.run_jobs(NO_SYNC);
        let lacks_records = |suspicion: Suspicion| suspicion.is_unclean && !suspicion.is_damaged;
        assert!(!log.is_corrupt() && lacks_records(log.suspicion()));
        harness.disk.crash(&CrashOptions::default());
        let (mut log, report) = open(&harness.disk, &options()).expect("it began anew");
        assert!(lacks_records(report.suspicion) && log.start_offset() == Offset(3), "it has not caught up");
        log.trust();
        let _ = log.run_jobs(NO_SYNC);
        harness.disk.crash(&CrashOptions::default());
        let (log, report) = open(&harness.disk, &options()).expect("it caught up");
        assert!(!report.is_suspect && log.start_offset() == Offset(3));
    }
}

#[test]
fn a_scrubber_goes_through_all_that_is_committed_and_finds_any_flipped_bit() {
    let mut harness = filled(22);
    harness.log.request_checkpoint();
    harness.settle(SYNC);
    let files = files(&harness.disk, "log");
    let scrub = |disk_reader: &quire_storage::LogReader, step: u64| {
        let (mut rest, mut bytes) = (Some(Scrub::new()), 0);
        while let Some(scrub) = rest {
            let done = disk_reader.scrub(scrub, step)?;
            assert!(done.bytes > 0 || done.rest.is_none(), "every step makes progress");
            bytes += done.bytes;
            rest = done.rest;
        }
        Ok::<u64, ReadError>(bytes)
    };
    let listed = inspect::inspect(&harness.disk, Path::new(DIR)).expect("a log");
    let mut lens: Vec<u64> = listed.segments.iter().map(|segment| segment.log_bytes.unwrap_or(0)).collect();
    let all = harness.log.size_bytes();
    // The file of the last one is longer than what is in it.
    lens.pop();
    lens.push(all - lens.iter().sum::<u64>());
    for step in [0, 700, 1 << 20] {
        assert_eq!(scrub(&harness.log.reader(), step).expect("intact"), all);
    }
    // What is not committed is not looked at.
    harness.append(vec![new_batch(1, 90, 1, harness.now)]).expect("room");
    assert_eq!(scrub(&harness.log.reader(), 700).expect("intact"), all);
    for (at, path) in files.iter().enumerate() {
        for position in (0..lens[at]).step_by(37) {
            harness.disk.flip_bit(path, position, (position % 8) as u8);
            let found = scrub(&harness.log.reader(), 1500);
            assert!(matches!(found, Err(ReadError::Corrupt { .. })), "byte {position} of {}", path.display());
            harness.disk.flip_bit(path, position, (position % 8) as u8);
        }
    }
}

#[test]
fn a_leadership_that_wrote_nothing_survives_a_stop() {
    let mut harness = Harness::new(SimDisk::new(13), options());
    harness.log.start_epoch(LeaderEpoch(2));
    harness.settle(SYNC);
    harness.epoch = LeaderEpoch(2);
    harness.append(vec![new_batch(1, 100, 1, Timestamp(5))]).expect("room");
    harness.commit();
    harness.log.start_epoch(LeaderEpoch(5));
    harness.settle(SYNC);
    harness.restart(|disk| disk.crash(&CrashOptions::default()));
    assert_eq!(harness.log.leader_epoch(), LeaderEpoch(5));
    let (disk, ..) = close(harness);
    let (mut log, _) = open(&disk, &options()).expect("closed in order");
    log.start_epoch(LeaderEpoch(7));
    log.close().expect("healthy");
    let (log, report) = open(&disk, &options()).expect("closed in order");
    assert!(report.was_clean);
    assert_eq!(log.leader_epoch(), LeaderEpoch(7));
    let starts: Vec<_> =
        log.epochs().entries().iter().map(|start| (start.epoch.0, start.start_offset.0)).collect();
    assert_eq!(starts, [(2, 0), (7, 1)], "epoch 5 wrote nothing before 7 began at the same offset");
}

#[test]
fn the_brokers_clock_stamps_records_and_never_goes_back() {
    let mut harness = Harness::new(SimDisk::new(11), options());
    let mut at = |now: i64| {
        let context = AppendContext {
            now: Timestamp(now),
            timestamp_type: TimestampType::LogAppendTime,
            ..harness.context()
        };
        let mut batches = vec![new_batch(2, 10, 1, Timestamp(5))];
        loop {
            match harness.log.append(batches, context) {
                Ok(frames) => return frames[0],
                Err(error) => batches = error.batches,
            }
            harness.log.run_jobs(NO_SYNC);
        }
    };
    assert_eq!((at(100).append_time, at(90).append_time, at(110).max_timestamp), {
        (Timestamp(100), Timestamp(100), Timestamp(110))
    });
    let end = harness.log.end_offset();
    let found = harness.log.reader().offset_at_time(Timestamp(101), end).expect("intact");
    assert_eq!(found, Some((Offset(4), Timestamp(110))));
}

/// Its last frame, of which nothing tells that it was ever on disk, is damaged.
fn torn(segments: usize) -> (Harness, Vec<u8>) {
    let mut harness = Harness::new(SimDisk::new(16), options());
    for tag in 0..segments as u8 {
        harness.append(vec![new_batch(1, 3500, tag, Timestamp(5))]).expect("room");
        harness.settle(SYNC);
    }
    let kept = bytes_of(&harness.frames[..segments - 1]);
    harness.disk.kill();
    let active = files(&harness.disk, "log").pop().expect("a segment");
    harness.disk.flip_bit(&active, 1000, 1);
    harness.frames.pop();
    harness.durable_end = Offset(segments as u64 - 1);
    (harness, kept)
}

#[test]
fn a_torn_tail_on_a_full_disk_is_cut_when_there_is_room() {
    for segments in [1, 3] {
        let (mut harness, kept) = torn(segments);
        let end = harness.durable_end;
        harness.disk.set_capacity(Some(0));
        // The process dies again before there is room.
        for _ in 0..2 {
            let (log, report) = open(&harness.disk, &options()).expect("what is there can be read");
            assert!(report.torn_tail.is_some() && report.corruption.is_none(), "{report:?}");
            assert_eq!(log.end_offset(), end);
            assert_eq!(read_all(&log.reader(), Offset::ZERO, end).expect("intact"), kept);
            harness.log = log;
            harness.disk.kill();
        }
        let closed = open(&harness.disk, &options()).expect("it can be opened").0.close();
        assert!(closed.is_err(), "the cut could not be noted");
        let (log, _) = open(&harness.disk, &options()).expect("it can be opened");
        harness.log = log;
        let refused = harness.append(vec![new_batch(1, 100, 9, Timestamp(6))]).expect_err("the disk is full");
        assert_eq!(refused, AppendErrorKind::DiskFull);
        harness.disk.set_capacity(None);
        harness.append(vec![new_batch(1, 100, 9, Timestamp(6))]).expect("there is room again");
        harness.commit();
        let report = harness.restart(|disk| disk.crash(&CrashOptions::default()));
        assert_eq!(report.torn_tail, None, "it is cut for good");
        harness.append(vec![new_batch(1, 100, 9, Timestamp(7))]).expect("room");
        harness.commit();
        harness.check();
    }
}

#[test]
fn a_log_cut_without_room_is_closed_in_order_once_there_is_room() {
    let (mut harness, kept) = torn(3);
    harness.disk.set_capacity(Some(0));
    harness.log = open(&harness.disk, &options()).expect("it can be opened").0;
    harness.disk.set_capacity(None);
    let (disk, bytes, end) = close(harness);
    assert_eq!(bytes, kept);
    let (log, report) = open(&disk, &options()).expect("closed in order");
    assert!(report.was_clean);
    assert_eq!(log.end_offset(), end);
    log.close().expect("healthy");
}

/// Acknowledged records may be missing after a power loss for as long as any was acknowledged before its sync, whatever
/// the settings say by then.
#[test]
fn a_log_is_suspect_until_all_that_was_acknowledged_unsynced_is_synced() {
    let interval = LogOptions { is_synced: false, ..options() };
    let mut harness = Harness::new(SimDisk::new(17), interval);
    harness.append(vec![new_batch(1, 100, 1, Timestamp(5))]).expect("room");
    harness.settle(NO_SYNC);
    let restarted = |disk: &SimDisk| {
        let disk = disk.fork(1);
        disk.crash(&CrashOptions { data: Survival::Nothing, names: Survival::Nothing });
        open(&disk, &options()).expect("nothing is damaged").1.is_suspect
    };
    assert!(restarted(&harness.disk), "before any checkpoint was due");
    harness.log.set_options(options());
    harness.settle(NO_SYNC);
    assert!(restarted(&harness.disk), "not synced yet");
    harness.settle(SYNC);
    assert!(!restarted(&harness.disk), "synced");
    harness.log.set_options(LogOptions { is_synced: false, ..options() });
    harness.settle(NO_SYNC);
    assert!(restarted(&harness.disk), "and back");
}

proptest! {
    #![proptest_config(config(300))]

    #[test]
    fn a_flipped_bit_is_found_or_harmless_and_never_served(
        is_closed in any::<bool>(),
        file in any::<prop::sample::Index>(),
        position in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let mut harness = filled(12);
        harness.append(vec![new_batch(2, 100, 77, Timestamp(3))]).expect("room");
        harness.settle(SYNC);
        let bytes = read_all(&harness.log.reader(), Offset::ZERO, harness.end()).expect("intact");
        let (end, committed) = (harness.end(), harness.log.high_watermark());
        let disk = if is_closed { close(harness).0 } else { harness.disk };
        disk.kill();
        let names = disk.list(Path::new(DIR)).expect("there");
        let path = Path::new(DIR).join(&names[file.index(names.len())]);
        disk.flip_bit(&path, position.index(len(&disk, &path) as usize) as u64, bit);
        let is_log = path.extension().is_some_and(|kind| kind == "log");
        let verified = inspect::verify(&disk, Path::new(DIR), None).expect("readable");
        let Ok((log, report)) = open(&disk, &options()) else {
            prop_assert!(path.ends_with("manifest"), "only a damaged manifest is fatal");
            return Ok(());
        };
        prop_assert_eq!(log.start_offset(), Offset::ZERO);
        prop_assert!(is_log || (report.corruption.is_none() && log.end_offset() == end));
        prop_assert!(log.end_offset() >= committed, "committed records are never cut off");
        if report.corruption.is_some() {
            prop_assert!(!verified.is_intact(), "what recovery finds, verification finds");
        }
        let mut from = Offset::ZERO;
        let mut damaged = 0;
        while from < log.end_offset() {
            match log.reader().read(from, 700, log.end_offset(), Residency::Any) {
                Ok(slice) => {
                    let read = slice.frames.concat();
                    prop_assert!(bytes.windows(read.len()).any(|window| window == read), "served from {}", from);
                    let first = frames(&read)[0].header;
                    prop_assert!(first.base_offset <= from && from <= first.last_offset(), "nothing is left out");
                    from = slice.next_offset;
                }
                Err(ReadError::Corrupt { .. }) => {
                    damaged += 1;
                    from = Offset(from.0 + 1);
                }
                Err(error) => prop_assert!(false, "{}", error),
            }
        }
        prop_assert!(damaged <= 2, "one frame of at most two records is lost");
        prop_assert!(damaged == 0 || (is_log && !verified.is_intact()));
    }
}

#[test]
fn what_lies_beyond_the_end_of_a_log_that_was_closed_is_harmless() {
    let harness = filled(41);
    let end = harness.end();
    let (disk, ..) = close(harness);
    let last = files(&disk, "log").pop().expect("a segment");
    let flipped = disk.fork(1);
    flipped.flip_bit(&last, len(&disk, &last) - 20, 3);
    let report = inspect::verify(&flipped, Path::new(DIR), None).expect("readable");
    assert!(report.is_intact());
    let finding = report.finding.expect("a byte is not zero");
    assert_eq!((finding.kind, finding.offset), (FindingKind::BeyondEnd, end));
    assert!(finding.meaning.contains("harmless"), "{}", finding.meaning);
    flipped.remove(&Path::new(DIR).join("clean")).expect("there");
    let report = inspect::verify(&flipped, Path::new(DIR), None).expect("readable");
    assert_eq!(report.finding.map(|finding| finding.kind), Some(FindingKind::TornTail));
}

#[test]
fn a_segment_that_was_lost_before_a_record_was_in_it_damages_none() {
    let disk = SimDisk::new(42);
    let mut harness = Harness::new(disk, options());
    // Until the last segment is an empty one, made ahead.
    let is_empty_last = |harness: &Harness| {
        let report = inspect::inspect(&harness.disk, Path::new(DIR)).expect("readable");
        report.segments.last().is_some_and(|last| !last.is_sealed && last.base_offset == harness.end())
    };
    for tag in 0..200 {
        // Refused until there is room, which may take a new segment; what was refused never comes again.
        if harness.try_append(vec![new_batch(1, 300, tag, Timestamp(5))]).is_err() {
            harness.log.run_jobs(NO_SYNC);
            if !harness.frames.is_empty() && is_empty_last(&harness) {
                break;
            }
        }
        harness.commit();
    }
    assert!(is_empty_last(&harness), "the next segment is made ahead");
    let (disk, _, end) = close(harness);
    disk.remove(&files(&disk, "log").pop().expect("a segment")).expect("there");
    let finding = inspect::verify(&disk, Path::new(DIR), None).expect("readable").finding.expect("lost");
    assert_eq!((finding.kind, finding.offset), (FindingKind::Corruption, end));
    assert!(finding.meaning.contains("no record was there, and none is damaged"), "{}", finding.meaning);
    disk.remove(&Path::new(DIR).join("clean")).expect("there");
    let finding = inspect::verify(&disk, Path::new(DIR), None).expect("readable").finding.expect("lost");
    assert!(finding.meaning.contains("No record at or after"), "{}", finding.meaning);
}
