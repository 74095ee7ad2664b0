//! A log comes to be once, durably; whoever remembers it is told if it is gone, and never given an empty one.

mod harness;

use std::path::Path;
use std::sync::Arc;

use quire_protocol::ids::{Offset, Timestamp};
use quire_storage::disk::{CrashOptions, Disk, Fault, OpenMode, Operation, SimDisk, Survival};
use quire_storage::inspect::{self, FileState, FindingKind, InspectError};
use quire_storage::{Log, OpenError, RecoveryReport, remove_log, small_file};

use harness::{DIR, Harness, new_batch, open, options, partition, read_all};

const MANIFEST: &str = "manifest";

/// Name of the file that says that the log was never written.
fn marker() -> String {
    format!("unwritten-{}", partition())
}

fn names(disk: &SimDisk) -> Vec<String> {
    disk.list(Path::new(DIR)).expect("there")
}

fn put_empty(disk: &SimDisk, name: &str) {
    drop(disk.open(&Path::new(DIR).join(name), OpenMode::CreateNew).expect("new"));
}

fn lose(disk: &SimDisk, name: &str) {
    disk.remove(&Path::new(DIR).join(name)).expect("there");
}

/// A log with one record, not closed.
fn written(seed: u64) -> SimDisk {
    let mut harness = Harness::new(SimDisk::new(seed), options());
    harness.append(vec![new_batch(1, 100, 1, Timestamp(5))]).expect("room");
    harness.commit();
    harness.disk.kill();
    harness.disk
}

fn open_existing(disk: &SimDisk) -> Result<(Log, RecoveryReport), OpenError> {
    Log::open_existing(Arc::new(disk.clone()), Path::new(DIR), partition(), options())
}

fn lose_power(disk: &SimDisk) {
    disk.crash(&CrashOptions { data: Survival::Nothing, names: Survival::Nothing });
}

#[test]
fn a_log_that_vanished_is_not_begun_anew() {
    let disk = SimDisk::new(1);
    let error = open_existing(&disk).expect_err("nothing is there");
    assert!(matches!(&error, OpenError::Missing { directory } if directory == Path::new(DIR)), "{error}");
    assert!(error.to_string().contains(DIR), "{error}");
    assert!(disk.list(Path::new(DIR)).is_err(), "looking for it creates nothing");
    let mut harness = Harness::new(disk, options());
    harness.append(vec![new_batch(1, 100, 1, Timestamp(5))]).expect("room");
    harness.commit();
    let Harness { disk, log, .. } = harness;
    log.close().expect("healthy");
    open_existing(&disk).expect("it is there");
    remove_log(&disk, Path::new(DIR)).expect("closed");
    assert!(matches!(open_existing(&disk), Err(OpenError::Missing { .. })));
}

#[test]
fn a_new_log_is_durable_before_anything_is_appended_to_it() {
    let disk = SimDisk::new(2);
    open(&disk, &options()).expect("an empty disk");
    lose_power(&disk);
    for _ in 0..2 {
        let (log, report) = open_existing(&disk).expect("its creation survived");
        assert!(report.was_clean && report.removed.is_empty(), "{report:?}");
        log.close().expect("healthy");
    }
    assert_eq!(disk.list(Path::new(DIR)).expect("there"), [marker()], "an idle log is one file");
    let marker = disk.open(&Path::new(DIR).join(marker()), OpenMode::Read).expect("there");
    assert!(marker.is_empty().expect("open"), "and takes no block");
}

/// A process that dies while it creates a log leaves names that the next one sees, and a power loss does not.
#[test]
fn a_creation_that_was_interrupted_is_made_durable_by_the_next_open() {
    for operations in 0.. {
        let disk = SimDisk::new(operations);
        disk.inject(Fault::StopsAfter { operations });
        let opened = open(&disk, &options());
        let is_complete = !disk.is_stopped();
        drop(opened);
        disk.kill();
        let (log, _) = open(&disk, &options()).expect("creation can be repeated");
        let mut harness = Harness { log, disk, ..Harness::new(SimDisk::new(0), options()) };
        harness.append(vec![new_batch(1, 100, 1, Timestamp(5))]).expect("room");
        harness.commit();
        lose_power(&harness.disk);
        let (log, _) = open_existing(&harness.disk).unwrap_or_else(|error| panic!("{operations}: {error}"));
        assert_eq!(log.end_offset(), Offset(1));
        read_all(&log.reader(), Offset(0), Offset(1)).expect("what was acknowledged");
        if is_complete {
            break;
        }
    }
}

/// Whoever put the log there, a restore for one, may not have synced the directories above it.
#[test]
fn recovery_makes_the_names_above_the_log_durable() {
    let mut harness = Harness::new(SimDisk::new(3), options());
    harness.append(vec![new_batch(1, 100, 1, Timestamp(5))]).expect("room");
    harness.commit();
    harness.disk.take_trace();
    harness.restart(SimDisk::kill);
    let events = harness.disk.take_trace();
    for dir in Path::new(DIR).ancestors() {
        let is_synced = events.iter().any(|event| event.operation == Operation::SyncDir(dir.to_owned()));
        assert!(is_synced, "{}", dir.display());
    }
}

/// The first append's job is stopped at each of its operations, and what was not synced survives in many ways: the log is
/// there, with all that was acknowledged, and from the first record on never again without its manifest.
#[test]
fn a_stop_within_the_first_segments_making_leaves_a_log_that_opens() {
    for operations in 0.. {
        let disk = SimDisk::new(operations);
        let mut harness = Harness::new(disk.clone(), options());
        disk.inject(Fault::StopsAfter { operations });
        let appended = harness.append(vec![new_batch(1, 100, 1, Timestamp(5))]);
        let is_complete = appended.is_ok() && {
            harness.commit();
            !disk.is_stopped()
        };
        for seed in 0..60 {
            let disk = disk.fork(seed);
            disk.crash(&CrashOptions::default());
            let context = format!("after {operations} operations, seed {seed}: {:?}", names(&disk));
            let (log, report) = open_existing(&disk).unwrap_or_else(|error| panic!("{context}: {error}"));
            assert!(log.end_offset() >= harness.durable_end, "{context}: {report:?}");
            let has = |name: &str| names(&disk).iter().any(|other| other == name);
            assert!(has(MANIFEST) != has(&marker()), "{context}: now {:?}", names(&disk));
            assert!(has(MANIFEST) || log.end_offset() == Offset::ZERO, "{context}");
            let is_new = has(&marker());
            drop(log);
            disk.kill();
            if is_new {
                assert_eq!(names(&disk), [marker()], "{context}: what was begun is removed");
                continue;
            }
            lose_power(&disk);
            lose(&disk, MANIFEST);
            let error = open_existing(&disk).expect_err("its manifest is lost");
            assert!(
                matches!(error, OpenError::ManifestMissing { .. } | OpenError::Missing { .. }),
                "{context}"
            );
        }
        if is_complete {
            assert!(operations > 10, "the first append does {operations} operations");
            return;
        }
    }
}

/// A log's first segment is made once the process before it was killed anywhere in making it.
#[test]
fn a_first_segment_that_was_interrupted_is_made_by_the_next_process() {
    for operations in 0..20 {
        let disk = SimDisk::new(operations);
        let mut harness = Harness::new(disk.clone(), options());
        disk.inject(Fault::StopsAfter { operations });
        let _ = harness.append(vec![new_batch(1, 100, 1, Timestamp(5))]);
        disk.kill();
        let (log, _) = open_existing(&disk).unwrap_or_else(|error| panic!("{operations}: {error}"));
        let mut harness = Harness { log, disk, ..Harness::new(SimDisk::new(0), options()) };
        harness.durable_end = harness.log.durable_end();
        let before = harness.log.end_offset();
        harness.log.append(Vec::new(), harness.context()).expect("nothing to do");
        let mut batches = vec![new_batch(1, 100, 2, Timestamp(6))];
        while let Err(refused) = harness.log.append(batches, harness.context()) {
            assert!(refused.kind.is_retriable(), "{operations}: {}", refused.kind);
            batches = refused.batches;
            harness.log.run_jobs(harness::NO_SYNC);
        }
        harness.log.run_jobs(harness::SYNC);
        lose_power(&harness.disk);
        let (log, _) = open_existing(&harness.disk).unwrap_or_else(|error| panic!("{operations}: {error}"));
        assert_eq!(log.end_offset(), Offset(before.0 + 1), "{operations}");
        read_all(&log.reader(), Offset(0), log.end_offset()).expect("what was acknowledged");
        assert!(!names(&harness.disk).contains(&marker()), "{operations}");
    }
}

#[test]
fn a_marker_beside_records_is_not_believed() {
    let disk = written(4);
    lose(&disk, MANIFEST);
    put_empty(&disk, &marker());
    assert!(matches!(open_existing(&disk), Err(OpenError::ManifestMissing { .. })));
    assert!(matches!(open(&disk, &options()), Err(OpenError::ManifestMissing { .. })));
    assert_eq!(inspect::inspect(&disk, Path::new(DIR)).expect("readable").manifest, FileState::Missing);
    // Also without the segment: the log had a recovery point.
    let disk = written(5);
    open(&disk, &options()).expect("recovered").0.close().expect("healthy");
    for name in names(&disk).iter().filter(|name| *name != "checkpoint") {
        lose(&disk, name);
    }
    put_empty(&disk, &marker());
    assert!(matches!(open_existing(&disk), Err(OpenError::ManifestMissing { .. })));
}

/// What a file server or a person left says nothing of a log's past.
#[test]
fn a_stray_file_beside_the_marker_is_left_alone() {
    let disk = SimDisk::new(12);
    open(&disk, &options()).expect("an empty disk");
    put_empty(&disk, ".nfs0001");
    let (log, report) = open_existing(&disk).expect("it was never written");
    assert!(report.was_clean && report.removed.is_empty(), "{report:?}");
    assert_eq!(log.end_offset(), Offset::ZERO);
    assert_eq!(names(&disk), [".nfs0001".to_owned(), marker()]);
}

#[test]
fn a_manifest_counts_and_a_marker_beside_it_goes() {
    let disk = written(6);
    put_empty(&disk, &marker());
    disk.sync_dir(Path::new(DIR)).expect("healthy");
    let (log, _) = open_existing(&disk).expect("it has its manifest");
    assert_eq!(log.end_offset(), Offset(1));
    drop(log);
    lose_power(&disk);
    assert!(!names(&disk).contains(&marker()), "durably");
}

/// Directories that were swapped, or restored to the wrong place.
#[test]
fn another_partitions_marker_is_refused() {
    let disk = SimDisk::new(7);
    open(&disk, &options()).expect("an empty disk");
    let mut other = partition();
    other.partition.0 += 1;
    for open in [Log::open, Log::open_existing] {
        let opened = open(Arc::new(disk.clone()), Path::new(DIR), other, options());
        assert!(matches!(opened, Err(OpenError::WrongPartition { .. })));
    }
    let report = inspect::verify(&disk, Path::new(DIR), Some(other)).expect("readable");
    let finding = report.finding.expect("it is another's");
    assert_eq!((finding.kind, finding.file_name), (FindingKind::Unusable, marker()));
}

/// Ten thousand idle logs are opened at each start.
#[test]
fn a_log_that_was_never_written_is_opened_without_touching_the_disk() {
    let disk = SimDisk::new(8);
    open(&disk, &options()).expect("an empty disk");
    disk.take_trace();
    let (log, report) = open_existing(&disk).expect("there");
    assert!(report.was_clean);
    log.close().expect("nothing to do");
    assert_eq!(disk.take_trace(), [], "neither to open it nor to close it");
}

/// Earlier versions wrote a manifest without segments at once.
#[test]
fn a_log_that_an_earlier_version_created_opens_and_takes_records() {
    let disk = SimDisk::new(9);
    disk.create_dir_all(Path::new(DIR)).expect("an empty disk");
    let format = small_file::Format { magic: *b"QMAN", version: 1, body_len_max: 100 };
    let mut body = vec![1, 0];
    body.extend_from_slice(partition().topic.as_bytes());
    body.extend_from_slice(&partition().partition.0.to_le_bytes());
    body.extend_from_slice(&[0; 16]);
    small_file::replace(&disk, Path::new(DIR), MANIFEST, format, &body).expect("room");
    let (log, report) = open_existing(&disk).expect("it was created");
    assert!(report.was_clean && names(&disk) == [MANIFEST]);
    let mut harness = Harness { log, disk, ..Harness::new(SimDisk::new(0), options()) };
    harness.append(vec![new_batch(1, 100, 1, Timestamp(5))]).expect("room");
    harness.commit();
    let report = harness.restart(SimDisk::kill);
    assert_eq!((report.corruption, harness.log.end_offset()), (None, Offset(1)));
}

#[test]
fn a_log_that_was_never_written_is_shown_as_such() {
    let disk = SimDisk::new(10);
    open(&disk, &options()).expect("an empty disk");
    let report = inspect::inspect(&disk, Path::new(DIR)).expect("there is a log");
    assert!(report.is_unwritten && report.partition == Some(partition()), "{report:?}");
    let verified = inspect::verify(&disk, Path::new(DIR), Some(partition())).expect("there is a log");
    assert!(verified.is_intact() && verified.finding.is_none() && verified.frames == 0, "{verified:?}");
    lose(&disk, &marker());
    assert!(matches!(inspect::inspect(&disk, Path::new(DIR)), Err(InspectError::NoLog(_))));
    let written = inspect::inspect(&written(11), Path::new(DIR)).expect("there is a log");
    assert!(!written.is_unwritten && written.manifest.is_intact());
}
