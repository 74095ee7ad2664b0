//! A log comes to be once, durably; whoever remembers it is told if it is gone, and never given an empty one.

mod harness;

use std::path::Path;
use std::sync::Arc;

use quire_protocol::ids::{Offset, Timestamp};
use quire_storage::disk::{CrashOptions, Disk, Fault, Operation, SimDisk, Survival};
use quire_storage::{Log, OpenError, RecoveryReport, remove_log};

use harness::{DIR, Harness, new_batch, open, options, partition, read_all};

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
    assert_eq!(disk.list(Path::new(DIR)).expect("there"), ["manifest"], "an idle log is one small file");
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
