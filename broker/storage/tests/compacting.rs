//! What a log that is compacted owes to its readers and its files, and how far it can be cut.

mod harness;
mod keyed;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use harness::{DIR, NO_SYNC, SYNC};
use keyed::{Keyed, compaction, filled, plain, value};
use quire_protocol::ids::Offset;
use quire_storage::disk::{Disk, DiskFile, OpenMode, SimDisk};
use quire_storage::{AppendErrorKind, Job, JobKind, Log, inspect};

/// A disk on which, before a file is opened the next time, a compaction is listed and the file removed.
#[derive(Debug)]
struct SwapsBeforeOpening {
    disk: SimDisk,
    first: PathBuf,
    then: Mutex<Option<Job>>,
}

impl Disk for SwapsBeforeOpening {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        if path == self.first
            && let Some(swap) = self.then.lock().expect("healthy").take()
        {
            let _ = swap.run();
            self.disk.remove(path)?;
        }
        self.disk.open(path, mode)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.remove_dir(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.disk.free_bytes(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        self.disk.lock(path)
    }
}

/// The job that lists what was compacted.
fn until_swap(log: &mut Log) -> Job {
    loop {
        let job = log.next_job(NO_SYNC).expect("a part of it");
        match job.kind() {
            JobKind::Swap => return job,
            _ => drop(log.complete(job.run())),
        }
    }
}

#[test]
fn a_reader_of_what_is_replaced_goes_on_in_what_took_its_place() {
    let mut log = filled(1, 3);
    let reader = log.log.reader();
    log.log.compact(log.now, &compaction());
    // Up to the swap, whose job is run and not brought back.
    let done = until_swap(&mut log.log).run();
    assert_eq!(log.read_with(&reader).expect("intact").len(), 7);
    let last = log.records.iter().rev().find(|record| record.key == Some(7)).expect("written").timestamp;
    let found = reader.offset_at_time(last, log.log.end_offset()).expect("intact");
    assert_eq!(found.map(|(_, timestamp)| timestamp), Some(last));
    let _ = log.log.complete(done);
    log.check();
}

/// Between a reader's look at the list of segments and its opening one of them.
#[test]
fn a_reader_that_finds_a_file_replaced_looks_again() {
    for is_by_time in [false, true] {
        let mut keyed = filled(1, 3);
        let last =
            keyed.records.iter().rev().find(|record| record.key == Some(7)).expect("written").timestamp;
        keyed.close();
        let (first, _) = keyed.first_segment();
        let disk = Arc::new(SwapsBeforeOpening { disk: keyed.disk.clone(), first, then: Mutex::default() });
        let opened = Log::open(disk.clone(), Path::new(DIR), harness::partition(), harness::options());
        let mut log = opened.expect("intact").0;
        log.compact(keyed.now, &compaction());
        let swap = until_swap(&mut log);
        let reader = log.reader();
        *disk.then.lock().expect("healthy") = Some(swap);
        match is_by_time {
            true => {
                let found = reader.offset_at_time(last, log.end_offset()).expect("intact");
                assert_eq!(found.map(|(_, timestamp)| timestamp), Some(last));
            }
            false => assert_eq!(keyed.read_with(&reader).expect("intact").len(), 7),
        }
        assert!(disk.then.lock().expect("healthy").is_none(), "it was swapped meanwhile");
    }
}

/// The rest of the log's work need not wait for it.
#[test]
fn the_files_of_what_was_replaced_are_removed_beside_other_work() {
    for is_close in [false, true] {
        let mut log = filled(1, 3);
        let files = log.segments();
        log.log.compact(log.now, &compaction());
        let swap = until_swap(&mut log.log);
        let _ = log.log.complete(swap.run());
        assert_eq!(log.segments(), files + 1, "they are still there");
        let removal = log.log.next_job(NO_SYNC).expect("due");
        assert_eq!(removal.kind(), JobKind::Compact);
        log.append(&plain(vec![value(1, 10)]));
        log.commit();
        assert_eq!(log.segments(), files + 1);
        assert!(log.log.is_compacting());
        log.out.push(removal);
        match is_close {
            true => log.close(),
            false => log.settle(NO_SYNC),
        }
        assert!(!log.log.is_compacting());
        assert_eq!(log.segments(), 2);
        log.check();
    }
}

/// A log that was closed in order is opened without looking for files that its manifest does not list.
#[test]
fn what_is_stopped_after_a_clean_open_leaves_nothing() {
    for steps in 1..20 {
        let mut log = filled(1, 3);
        log.close();
        log.log.compact(log.now, &compaction());
        for _ in 0..steps {
            log.hand_out(NO_SYNC);
            if log.out.iter().any(|job| job.kind() == JobKind::Swap) {
                assert!(steps > 2, "{steps} steps");
                return;
            }
            log.finish();
        }
        log.restart(SimDisk::kill);
        let report = inspect::inspect(&log.disk, Path::new(DIR)).expect("a log");
        assert_eq!(report.unlisted, Vec::<String>::new(), "after {steps} steps");
    }
    panic!("it makes no progress");
}

/// An earlier version is to refuse the log, and not to take it for damaged.
#[test]
fn the_manifest_says_that_frames_are_compacted_before_the_first_is_written() {
    let mut log = filled(1, 3);
    log.compact_all();
    let frames: Vec<_> =
        log.log.reader().frames_since(Offset::ZERO).map(|frame| frame.expect("intact")).collect();
    assert!(frames.iter().any(|(header, _)| header.is_compacted));
    let mut follower = Keyed::new(2);
    for (header, frame) in frames {
        take_frame(&mut follower, frame);
        let version = follower.log_version();
        assert!(version == 2 || version == 1 && !header.is_compacted, "{version} with {header:?}");
    }
    assert_eq!(follower.log_version(), 2);
}

fn take_frame(follower: &mut Keyed, frame: Bytes) {
    while let Err(refused) = follower.log.append_frames(vec![frame.clone()]) {
        assert!(refused.kind == AppendErrorKind::NoSpaceYet.into());
        follower.settle(NO_SYNC);
    }
}

/// A follower, with these frames of a leader.
fn following(frames: &[Bytes]) -> Keyed {
    let mut follower = Keyed::new(2);
    frames.iter().for_each(|frame| take_frame(&mut follower, frame.clone()));
    follower.settle(SYNC);
    follower
}

/// A record that was compacted away for a later one is missing if only the later one is cut off. With a log start beyond
/// the frames left, or without a frame left, the cut had the process abort.
#[test]
fn nothing_is_cut_off_that_other_records_went_for() {
    for log_start in [0, 3, 40] {
        let mut log = filled(1, 4);
        log.compact_all();
        log.log.advance_log_start(Offset(log_start));
        log.settle(NO_SYNC);
        let (frames, end) = (log.frames(), log.log.end_offset());
        for to in log_start..=end.0 {
            let mut cut = log.fork();
            cut.log.truncate(Offset(to));
            let completed = cut.log.run_jobs(NO_SYNC);
            assert!(completed.space && completed.poisoned.is_none());
            assert_eq!(
                (completed.is_cut_refused, completed.cut),
                match to == end.0 {
                    true => (false, Some(end)),
                    false => (true, None),
                }
            );
            assert_eq!((cut.frames().as_slice(), cut.log.end_offset()), (frames.as_slice(), end));
            cut.log.restart_at(Offset(to));
            assert_eq!(cut.log.run_jobs(NO_SYNC).cut, Some(Offset(to)));
        }
    }
}

#[test]
fn nothing_is_cut_off_that_the_leader_had_compacted() {
    let mut log = filled(1, 3);
    log.compact_all();
    let compacted_end = log.log.end_offset();
    for _ in 0..3 {
        log.append(&plain(vec![value(1, 40), value(2, 40)]));
    }
    log.commit();
    let frames = log.log.reader().frames_since(Offset::ZERO).map(|frame| frame.expect("intact"));
    let (headers, frames): (Vec<_>, Vec<_>) = frames.unzip();
    let flagged_end = headers.iter().rfind(|header| header.is_compacted).expect("one").next_offset();
    assert!(Offset::ZERO < flagged_end && flagged_end <= compacted_end);
    for to in 0..=log.log.end_offset().0 {
        let mut follower = following(&frames);
        follower.log.truncate(Offset(to));
        let completed = follower.log.run_jobs(NO_SYNC);
        assert_eq!(completed.is_cut_refused, to < flagged_end.0, "at {to}");
        assert_eq!(completed.cut.is_some(), to >= flagged_end.0, "at {to}");
        // A leader has compacted nothing that was not committed.
        let mut follower = following(&frames);
        follower.log.set_high_watermark(log.log.end_offset());
        follower.log.truncate(Offset(to));
        assert_eq!(follower.log.run_jobs(NO_SYNC).is_cut_refused, to < log.log.end_offset().0, "at {to}");
    }
}

/// Where nothing is compacted too: the log start may lie within a frame.
#[test]
fn nothing_is_cut_off_that_the_log_start_lies_in() {
    for to in 4..12 {
        let mut log = Keyed::new(1);
        for _ in 0..3 {
            log.append(&plain(vec![value(1, 40); 5]));
        }
        log.commit();
        log.log.advance_log_start(Offset(4));
        log.settle(NO_SYNC);
        log.log.truncate(Offset(to));
        let completed = log.log.run_jobs(NO_SYNC);
        assert_eq!(
            (completed.is_cut_refused, completed.cut),
            match to {
                4 => (true, None),
                _ => (false, Some(Offset(to / 5 * 5))),
            }
        );
    }
}
