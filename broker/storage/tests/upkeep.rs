//! What a log has done to its files besides appending and syncing, with other things happening while a job is out.

mod harness;

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quire_protocol::ids::{Offset, Timestamp};
use quire_storage::disk::{CrashOptions, Disk, Event, Fault, OpenMode, Operation, SimDisk};
use quire_storage::small_file::{self, Format};
use quire_storage::{AppendErrorKind, Job, JobKind, LogOptions, ReadError, Residency};

use harness::{DIR, Harness, NO_SYNC, SYNC, new_batch, open, options};

fn filled() -> Harness {
    let mut harness = Harness::new(SimDisk::new(1), options());
    harness.append(vec![new_batch(1, 3000, 1, Timestamp(5))]).expect("room");
    harness.commit();
    harness
}

/// An append that lacks space, and the job that makes it.
fn want_space(harness: &mut Harness, len: usize) -> Job {
    let refused = harness.try_append(vec![new_batch(1, len, 2, Timestamp(5))]).expect_err("no space");
    assert_eq!(refused.kind, AppendErrorKind::NoSpaceYet);
    harness.log.next_job(NO_SYNC).expect("something makes space")
}

/// The first job of this kind; those due before it are run.
fn next_job(harness: &mut Harness, kind: JobKind) -> Job {
    loop {
        match harness.log.next_job(NO_SYNC).expect("such a job is due") {
            job if job.kind() == kind => return job,
            job => drop(harness.log.complete(job.run())),
        }
    }
}

fn segments(disk: &SimDisk) -> usize {
    segment_files(disk).len()
}

fn segment_files(disk: &SimDisk) -> Vec<PathBuf> {
    let names = disk.list(Path::new(DIR)).expect("there");
    let names = names.iter().filter(|name| name.ends_with(".log"));
    names.map(|name| Path::new(DIR).join(name)).collect()
}

/// A shard that hears of a sync while a roll is out tries its append again.
#[test]
fn appends_tried_again_during_a_roll_do_not_ask_for_another() {
    let mut harness = filled();
    for appended in 2..12 {
        let roll = want_space(&mut harness, 3000);
        assert_eq!(roll.kind(), JobKind::Roll);
        for _ in 0..2 {
            harness.try_append(vec![new_batch(1, 3000, 2, Timestamp(5))]).expect_err("still no space");
            assert!(harness.log.next_job(NO_SYNC).is_none(), "the roll is out");
        }
        let completed = harness.log.complete(roll.run());
        assert!(completed.space);
        harness.append(vec![new_batch(1, 3000, 2, Timestamp(5))]).expect("room");
        harness.commit();
        assert_eq!(segments(&harness.disk), appended, "one segment for each append that fills one");
    }
    harness.check();
}

#[test]
fn an_empty_segment_is_not_sealed() {
    let mut harness = filled();
    harness.now.0 += 2000;
    harness.log.retain(harness.now, None, None);
    let seal = harness.log.next_job(NO_SYNC).expect("the segment is old");
    // Still old, as far as the log knows.
    harness.log.retain(harness.now, None, None);
    let _ = harness.log.complete(seal.run());
    harness.settle(SYNC);
    assert_eq!(segments(&harness.disk), 2);
}

#[test]
fn a_reader_of_what_is_being_deleted_learns_that_it_is_gone() {
    let mut harness = filled();
    for _ in 0..3 {
        harness.append(vec![new_batch(1, 3000, 2, Timestamp(500))]).expect("room");
        harness.commit();
    }
    let reader = harness.log.reader();
    harness.log.retain(harness.now, None, Some(0));
    let done = next_job(&mut harness, JobKind::Retain).run();
    let read = reader.read(Offset(0), 1000, Offset(4), Residency::Any);
    assert!(matches!(read, Err(ReadError::OutOfRange { log_start: Offset(3), .. })), "{read:?}");
    let found = reader.offset_at_time(Timestamp(500), Offset(4)).expect("what is left is searched");
    assert_eq!(found, Some((Offset(3), Timestamp(500))));
    assert_eq!(harness.log.complete(done).log_start, Some(Offset(3)));
}

/// Lists an empty sealed segment before all others, as logs may have them that were kept by earlier versions.
fn list_empty_segment(disk: &SimDisk) {
    let format = Format { magic: *b"QMAN", version: 1, body_len_max: 1 << 20 };
    let mut manifest = small_file::load(disk, Path::new(DIR), "manifest", format).expect("intact");
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
    let (serial, count) = (number(&manifest[30..34]), number(&manifest[34..38]));
    manifest[30..34].copy_from_slice(&(serial + 1).to_le_bytes());
    manifest[34..38].copy_from_slice(&(count + 1).to_le_bytes());
    let mut entry = [0; 45];
    entry[8..12].copy_from_slice(&serial.to_le_bytes());
    entry[12] = 1;
    manifest.splice(38..38, entry);
    let path = Path::new(DIR).join(format!("{:020}-{serial:08}.log", 0));
    disk.open(&path, OpenMode::CreateNew).expect("room");
    small_file::replace(disk, Path::new(DIR), "manifest", format, &manifest).expect("room");
}

#[test]
fn an_empty_segment_is_in_nobodys_way() {
    let mut harness = filled();
    for _ in 0..2 {
        harness.append(vec![new_batch(1, 3000, 2, Timestamp(500))]).expect("room");
        harness.commit();
    }
    list_empty_segment(&harness.disk);
    harness.restart(SimDisk::kill);
    harness.log.retain(harness.now, None, Some(3000));
    harness.settle(SYNC);
    assert_eq!(harness.log.start_offset(), Offset(2), "two of three records go by size");
    assert_eq!(segments(&harness.disk), 1);
    harness.check();
}

/// Of the last frame nothing but a checkpoint tells that it was ever on disk.
#[test]
fn what_a_requested_checkpoint_covers_is_not_cut_off() {
    for is_resting in [false, true] {
        let mut harness = filled();
        if is_resting {
            harness.log.rest();
        } else {
            harness.log.request_checkpoint();
        }
        let job = harness.log.next_job(NO_SYNC).expect("a checkpoint is due");
        assert_eq!(job.kind(), JobKind::Checkpoint);
        let _ = harness.log.complete(job.run());
        harness.log.request_checkpoint();
        assert!(harness.log.next_job(NO_SYNC).is_none(), "there is nothing more to cover");
        let Harness { disk, .. } = harness;
        disk.kill();
        disk.flip_bit(&segment_files(&disk)[0], 500, 2);
        let (log, report) = open(&disk, &options()).expect("damage is no error of opening");
        assert_eq!((report.torn_tail, log.end_offset()), (None, Offset(1)));
        let read = log.reader().read(Offset(0), 1000, Offset(1), Residency::Any);
        assert!(matches!(read, Err(ReadError::Corrupt { offset: Offset(0), .. })), "{read:?}");
    }
}

/// The segment's own age and size would keep it for a week.
#[test]
fn retention_reaches_the_records_of_the_active_segment() {
    let mut harness = Harness::new(SimDisk::new(1), LogOptions { segment_age_ms: 604_800_000, ..options() });
    harness.append(vec![new_batch(1, 300, 1, Timestamp(5))]).expect("room");
    harness.commit();
    let day = Duration::from_millis(86_400_000);
    harness.append(vec![new_batch(1, 300, 1, Timestamp(5))]).expect("room");
    harness.now.0 += 86_400_001;
    harness.log.retain(harness.now, Some(day), None);
    harness.settle(SYNC);
    assert_eq!(harness.log.size_bytes(), harness.frames.iter().map(|frame| frame.bytes.len() as u64).sum());
    harness.commit();
    for _ in 0..3 {
        harness.log.retain(harness.now, Some(day), None);
        harness.settle(SYNC);
    }
    assert_eq!((harness.log.start_offset(), harness.log.size_bytes()), (Offset(2), 0));
    assert_eq!(
        segment_files(&harness.disk).len(),
        1,
        "an empty segment stays, and is not sealed for its age"
    );
    harness.append(vec![new_batch(1, 300, 1, Timestamp(5))]).expect("room");
    harness.commit();
    harness.check();
    harness.restart(|disk| disk.crash(&CrashOptions::default()));
    assert_eq!(harness.log.start_offset(), Offset(2));
}

#[test]
fn retention_frees_a_disk_on_which_not_a_byte_is_left() {
    for appends in 4..8 {
        let mut harness = filled();
        for tag in 1..appends {
            harness.append(vec![new_batch(1, 3000, tag, Timestamp(5))]).expect("room");
            harness.commit();
        }
        let size = 1 << 40;
        harness.disk.set_capacity(Some(size));
        let used = size - harness.disk.free_bytes(Path::new(DIR)).expect("healthy");
        harness.disk.set_capacity(Some(used));
        let refused = harness.append(vec![new_batch(1, 3000, 9, Timestamp(5))]).expect_err("it is full");
        assert_eq!(refused, AppendErrorKind::DiskFull);
        harness.log.retain(harness.now, None, Some(0));
        harness.settle(NO_SYNC);
        assert_eq!(harness.log.start_offset(), Offset(u64::from(appends) - 1), "{appends} appends");
        harness.append(vec![new_batch(1, 3000, 9, Timestamp(5))]).expect("there is room again");
        harness.commit();
        harness.check();
        harness.restart(|disk| disk.crash(&CrashOptions::default()));
    }
}

#[test]
fn an_append_is_refused_for_want_of_space_only_after_space_was_looked_for() {
    let mut harness = filled();
    harness.disk.set_capacity(Some(0));
    harness.log.request_checkpoint();
    harness.settle(NO_SYNC);
    harness.disk.set_capacity(None);
    harness.append(vec![new_batch(1, 3000, 2, Timestamp(5))]).expect("there is room by now");
    harness.disk.set_capacity(Some(0));
    let refused = harness.append(vec![new_batch(1, 3000, 2, Timestamp(5))]).expect_err("none any more");
    assert_eq!(refused, AppendErrorKind::DiskFull);
}

#[test]
fn a_lack_of_descriptors_is_survived() {
    let mut harness = filled();
    harness.disk.inject(Fault::FewDescriptors { count: 0 });
    for _ in 0..3 {
        let refused = harness.append(vec![new_batch(1, 3000, 2, Timestamp(5))]).expect_err("no new segment");
        assert!(matches!(refused, AppendErrorKind::Exhausted(_)) && refused.is_retriable(), "{refused}");
    }
    harness.disk.heal();
    harness.append(vec![new_batch(1, 3000, 2, Timestamp(5))]).expect("it is over");
    harness.commit();
    harness.disk.inject(Fault::FewDescriptors { count: 0 });
    harness.log.rest();
    let refused = harness.append(vec![new_batch(1, 10, 2, Timestamp(5))]).expect_err("it can not be opened");
    assert!(matches!(refused, AppendErrorKind::Exhausted(_)), "{refused}");
    harness.log.retain(harness.now, None, Some(0));
    harness.settle(NO_SYNC);
    assert_eq!(harness.log.poisoned(), None);
    harness.disk.heal();
    harness.append(vec![new_batch(1, 10, 2, Timestamp(5))]).expect("it is over");
    harness.commit();
    harness.log.retain(harness.now, None, Some(0));
    harness.settle(SYNC);
    assert_eq!(harness.log.start_offset(), Offset(1));
    harness.check();
    harness.restart(|disk| disk.crash(&CrashOptions::default()));
}

#[test]
fn a_log_of_more_segments_than_descriptors_is_recovered() {
    let mut harness = filled();
    for tag in 1..12 {
        harness.append(vec![new_batch(1, 3000, tag, Timestamp(5))]).expect("room");
        harness.commit();
    }
    harness.disk.kill();
    harness.disk.remove(&Path::new(DIR).join("checkpoint")).expect("there");
    harness.disk.inject(Fault::FewDescriptors { count: 5 });
    let report = harness.restart(|_| {});
    assert_eq!(report.frames_scanned, 12, "all of it");
    harness.append(vec![new_batch(1, 10, 2, Timestamp(5))]).expect("room");
    harness.commit();
    harness.disk.take_trace();
    harness.log.request_checkpoint();
    harness.settle(NO_SYNC);
    let is_index = |event: &Event| matches!(&event.operation, Operation::Create(path) if path.to_string_lossy().contains("index"));
    let written = harness.disk.take_trace().iter().filter(|event| is_index(event)).count();
    assert_eq!(written, 2, "those of the active segment; recovery wrote the others");
}

#[test]
fn a_segment_cut_short_by_others_is_not_written_on() {
    let mut harness = filled();
    harness.settle(SYNC);
    harness.log.rest();
    let path = &segment_files(&harness.disk)[0];
    harness.disk.remove(path).expect("there");
    let file = harness.disk.open(path, OpenMode::CreateNew).expect("room");
    file.write_at(0, &[IoSlice::new(&[1; 100])]).expect("room");
    let refused = harness.append(vec![new_batch(1, 10, 2, Timestamp(5))]).expect_err("there would be a hole");
    assert!(matches!(refused, AppendErrorKind::Poisoned(_)), "{refused}");
}

#[test]
fn a_checkpoint_that_recovery_had_no_room_for_is_written_on_request() {
    let mut harness = filled();
    harness.disk.set_capacity(Some(0));
    harness.restart(SimDisk::kill);
    harness.disk.set_capacity(None);
    harness.log.request_checkpoint();
    assert_eq!(harness.log.next_job(NO_SYNC).expect("a checkpoint is due").kind(), JobKind::Checkpoint);
}
