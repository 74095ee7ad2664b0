//! What a log has done to its files besides appending and syncing, with other things happening while a job is out.

mod harness;

use std::path::Path;

use quire_protocol::ids::Timestamp;
use quire_storage::disk::{Disk, SimDisk};
use quire_storage::{AppendErrorKind, Job, JobKind};

use harness::{DIR, Harness, NO_SYNC, SYNC, new_batch, options};

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

fn segments(disk: &SimDisk) -> usize {
    let names = disk.list(Path::new(DIR)).expect("there");
    names.iter().filter(|name| name.ends_with(".log")).count()
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
