//! A follower's log beside its leader's: frames byte for byte, and cuts that survive a stop at any operation.

mod harness;

use std::path::Path;

use bytes::Bytes;
use harness::*;
use proptest::prelude::*;
use quire_protocol::ids::{LeaderEpoch, Offset, Timestamp};
use quire_storage::disk::{CrashOptions, Disk, Fault, SimDisk};
use quire_storage::epochs::EpochCache;
use quire_storage::{AppendErrorKind, AppendFramesErrorKind, JobKind, Log};

/// Frames of a leader in epochs 0, 1, 2 …, one batch each; as many as there are lengths.
fn leader(lens: &[usize]) -> Harness {
    let mut leader = Harness::new(SimDisk::new(1), options());
    for (number, len) in lens.iter().enumerate() {
        leader.epoch = LeaderEpoch(number as u32 / 3);
        leader.append(vec![new_batch(1 + number % 3, *len, number as u8, Timestamp(5))]).expect("room");
    }
    leader.commit();
    leader
}

fn follower(seed: u64) -> Harness {
    Harness::new(SimDisk::new(seed), options())
}

/// Appends frames as they are, making space as needed.
fn append_frames(log: &mut Log, frames: &[ModelFrame]) -> Result<(), AppendFramesErrorKind> {
    let mut frames: Vec<Bytes> = frames.iter().map(|frame| frame.bytes.clone().into()).collect();
    for _ in 0..6 {
        match log.append_frames(frames) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind == AppendErrorKind::NoSpaceYet.into() => frames = error.frames,
            Err(error) => return Err(error.kind),
        }
        let job = log.next_job(NO_SYNC).expect("something makes space");
        let _ = log.complete(job.run());
    }
    panic!("the log makes no progress towards space");
}

/// The follower has these frames of the leader, and all of them are committed.
fn take(follower: &mut Harness, frames: &[ModelFrame]) {
    for frame in frames {
        append_frames(&mut follower.log, std::slice::from_ref(frame)).expect("they continue the log");
        follower.frames.push(frame.clone());
    }
}

/// Runs the cut that was asked for; the end it gives.
fn cut(follower: &mut Harness) -> Option<Offset> {
    let completed = follower.log.run_jobs(NO_SYNC);
    completed.cut
}

/// The end of the last frame that ends at `to` or before.
fn boundary(frames: &[ModelFrame], to: Offset) -> Offset {
    let mut ends = frames.iter().map(|frame| frame.header.next_offset());
    ends.rfind(|end| *end <= to).unwrap_or(Offset::ZERO)
}

#[test]
fn a_follower_has_its_leaders_bytes() {
    let leader = leader(&[300, 1500, 40, 2500, 700, 900, 100]);
    let mut follower = follower(2);
    take(&mut follower, &leader.frames);
    follower.commit();
    assert_eq!(follower.log.chain(), leader.log.chain());
    assert_eq!(follower.log.epochs(), leader.log.epochs());
    follower.check();
    let report = follower.restart(|disk| disk.crash(&CrashOptions::default()));
    assert_eq!(report.corruption, None);
    assert_eq!(follower.log.epochs(), leader.log.epochs());
}

#[test]
fn what_does_not_continue_the_log_is_refused() {
    let leader = leader(&[100, 100, 100, 100]);
    let other = {
        let mut other = Harness::new(SimDisk::new(3), options());
        for number in 0..4 {
            other.append(vec![new_batch(1 + number % 3, 100, 0x77, Timestamp(5))]).expect("room");
        }
        other
    };
    let mut follower = follower(2);
    let refusal =
        |log: &mut Log, frames: &[ModelFrame]| append_frames(log, frames).expect_err("it does not fit");
    assert!(matches!(
        refusal(&mut follower.log, &leader.frames[1..]),
        AppendFramesErrorKind::Unfitting { what: "another offset than the one that follows", .. }
    ));
    take(&mut follower, &leader.frames[..1]);
    assert!(matches!(
        refusal(&mut follower.log, &other.frames[1..2]),
        AppendFramesErrorKind::Unfitting {
            what: "a chain that does not continue that of the frame before",
            ..
        }
    ));
    let mut damaged = leader.frames[1].clone();
    *damaged.bytes.last_mut().expect("not empty") ^= 1;
    assert!(matches!(refusal(&mut follower.log, &[damaged]), AppendFramesErrorKind::Frame(_)));
    assert_eq!(
        follower.log.end_offset(),
        leader.frames[0].header.next_offset(),
        "nothing of it was appended"
    );
    take(&mut follower, &leader.frames[1..]);
}

/// What a follower has to note before it catches up finds no room either: that is said, and retention has its turn.
#[test]
fn a_follower_behind_on_a_full_disk_is_refused_and_retention_makes_room() {
    let mut leader = leader(&[3000, 3000, 3000, 3000, 40]);
    for _ in 0..2 {
        leader.append(vec![new_batch(1, 40, 9, Timestamp(5))]).expect("room");
        leader.commit();
    }
    let (old, new) = leader.frames.split_at(5);
    let mut follower = follower(2);
    for frame in old {
        take(&mut follower, std::slice::from_ref(frame));
        follower.commit();
    }
    let size = 1 << 40;
    follower.disk.set_capacity(Some(size));
    let used = size - follower.disk.free_bytes(Path::new(DIR)).expect("healthy");
    follower.disk.set_capacity(Some(used));
    for _ in 0..3 {
        let refused = append_frames(&mut follower.log, new).expect_err("it is full");
        assert_eq!(refused, AppendErrorKind::DiskFull.into());
    }
    follower.log.retain(follower.now, None, Some(0));
    let completed = follower.log.run_jobs(NO_SYNC);
    assert!(completed.log_start.is_some(), "the oldest segments went: {completed:?}");
    append_frames(&mut follower.log, new).expect("there is room again");
    assert_eq!(follower.log.end_offset(), leader.log.end_offset());
}

/// A checkpoint that says the log has caught up was being written when frames came of which that is not true: a power
/// loss would have had recovery take what was left of them for corruption.
#[test]
fn a_checkpoint_under_way_does_not_speak_for_what_is_appended_meanwhile() {
    let mut leader = leader(&[40]);
    for len in [40, 40, 3000, 3000, 40, 40] {
        leader.append(vec![new_batch(1, len, 9, Timestamp(5))]).expect("room");
        leader.commit();
    }
    let pairs: Vec<_> = leader.frames[1..].chunks(2).collect();
    let mut follower = follower(2);
    take(&mut follower, &leader.frames[..1]);
    follower.commit();
    // It is behind, which is noted once, and catches up, by so much that another checkpoint is due.
    take(&mut follower, pairs[0]);
    take(&mut follower, pairs[1]);
    let sync = follower.log.next_job(SYNC).expect("there is something to sync");
    assert_eq!(sync.kind(), JobKind::Sync);
    follower.log.complete(sync.run());
    let checkpoint = loop {
        let job = follower.log.next_job(NO_SYNC).expect("a checkpoint is due");
        match job.kind() {
            JobKind::Checkpoint => break job,
            _ => follower.log.complete(job.run()),
        };
    };
    let frames = pairs[2].iter().map(|frame| frame.bytes.clone().into()).collect();
    let refused = follower.log.append_frames(frames).expect_err("that is to be noted again");
    assert_eq!(refused.kind, AppendErrorKind::NoSpaceYet.into());
    follower.log.complete(checkpoint.run());
    take(&mut follower, pairs[2]);
    let report = follower.restart(|disk| disk.crash(&CrashOptions::default()));
    assert_eq!(report.corruption, None);
}

proptest! {
    #![proptest_config(config(200))]

    /// Wherever a log is cut, it then ends with the last whole frame before the cut, goes on with the frames of another
    /// leader, and is the same after a power loss.
    #[test]
    fn a_truncated_log_is_the_front_of_what_it_was(
        lens in prop::collection::vec(prop_oneof![3 => 0usize..400, 1 => 1000usize..3900], 1..14),
        to in 0u64..30,
        is_synced: bool,
        is_closed: bool,
        seed: u64,
    ) {
        let leader = leader(&lens);
        let mut follower = follower(seed);
        take(&mut follower, &leader.frames);
        if is_synced {
            follower.commit();
        }
        let to = Offset(to.min(follower.end().0));
        let end = boundary(&leader.frames, to);
        follower.log.truncate(to);
        prop_assert_eq!(
            append_frames(&mut follower.log, &leader.frames[..1]).is_err(), true,
            "nothing is appended before it is cut, and then this is not what follows, unless all is gone"
        );
        let cut_at = cut(&mut follower).or(Some(follower.log.end_offset()));
        prop_assert_eq!(cut_at, Some(end));
        follower.frames.retain(|frame| frame.header.next_offset() <= end);
        prop_assert_eq!(follower.log.end_offset(), end);
        if to < leader.end() {
            follower.durable_end = end;
        }
        prop_assert_eq!(follower.log.durable_end(), follower.durable_end);
        prop_assert!(follower.log.high_watermark() <= end);
        let is_in_log = |start: Offset| start < end;
        prop_assert!(follower.log.epochs().entries().iter().all(|entry| is_in_log(entry.start_offset)));
        follower.check();
        if is_closed {
            let Harness { disk, options, log, .. } = follower;
            log.close().expect("nothing is under way");
            let (log, report) = open(&disk, &options).expect("closed in order");
            prop_assert!(report.was_clean);
            follower = Harness { log, ..Harness::new(SimDisk::new(9), options.clone()) };
            follower.disk = disk;
            follower.frames = leader.frames.iter().filter(|f| f.header.next_offset() <= end).cloned().collect();
            follower.durable_end = end;
            follower.check();
        } else {
            follower.restart(|disk| disk.crash(&CrashOptions::default()));
        }
        let kept = follower.frames.len();
        take(&mut follower, &leader.frames[kept..]);
        follower.commit();
        prop_assert_eq!(follower.log.chain(), leader.log.chain());
        follower.restart(|disk| disk.crash(&CrashOptions::default()));
    }
}

#[test]
fn a_stop_at_any_operation_of_a_cut_leaves_the_log_whole_or_cut() {
    let lens = [300, 1500, 40, 2500, 700, 900, 100, 3000];
    for to in [0, 2, 6, 9, 14] {
        for operations in 0.. {
            let leader = leader(&lens);
            let mut follower = follower(operations);
            take(&mut follower, &leader.frames);
            tell_of_producers(&mut follower);
            follower.commit();
            follower.log.request_checkpoint();
            follower.settle(SYNC);
            assert!(follower.log.reader().producers().expect("readable").is_some());
            let end = boundary(&leader.frames, Offset(to));
            follower.log.truncate(Offset(to));
            let job = follower.log.next_job(NO_SYNC).expect("the cut");
            follower.disk.inject(Fault::StopsAfter { operations });
            let done = job.run();
            let went_through = !follower.disk.is_stopped();
            drop(done);
            follower.durable_end = end;
            follower.restart(|disk| disk.crash(&CrashOptions::default()));
            let found = follower.log.end_offset();
            assert!(
                found == end || found == leader.end(),
                "cut to {end} after {operations}: ends at {found}"
            );
            check_derived(&follower, &leader);
            if went_through {
                assert!(operations > 3, "a cut does {operations} operations");
                break;
            }
        }
    }
}

#[test]
fn a_stop_at_any_operation_of_a_new_beginning_leaves_the_log_whole_or_empty_there() {
    let leader = leader(&[300, 1500, 40, 2500, 700, 900]);
    for (held, from) in [(0, 0), (0, 3), (2, 4), (6, 2), (6, 0)] {
        let at = leader.frames[from].header.base_offset;
        for operations in 0.. {
            let mut follower = follower(operations);
            take(&mut follower, &leader.frames[..held]);
            tell_of_producers(&mut follower);
            follower.commit();
            follower.log.request_checkpoint();
            follower.settle(SYNC);
            follower.log.mark_corrupt();
            follower.log.restart_at(at);
            let job = follower.log.next_job(NO_SYNC).expect("the cut");
            follower.disk.inject(Fault::StopsAfter { operations });
            drop(job.run());
            let went_through = !follower.disk.is_stopped();
            follower.disk.crash(&CrashOptions::default());
            let (log, report) = open(&follower.disk, &follower.options).expect("nothing is damaged");
            assert_eq!(report.corruption, None);
            let found = (log.start_offset(), log.end_offset());
            let is_whole = found == (Offset::ZERO, follower.end());
            assert!(is_whole || found == (at, at), "from {at} after {operations}: {found:?}");
            assert!(!went_through || found == (at, at));
            follower.frames.truncate(if is_whole { held } else { 0 });
            follower.log = log;
            check_derived(&follower, &leader);
            if went_through {
                break;
            }
        }
    }
}

/// As a broker does before a checkpoint; what it knows is the chain.
fn tell_of_producers(follower: &mut Harness) {
    let chain = follower.log.chain();
    follower.log.keep_producers(Bytes::copy_from_slice(&chain.0));
}

/// What is derived from the frames says what they say, and nothing of what is not in the log.
fn check_derived(follower: &Harness, leader: &Harness) {
    let mut epochs = EpochCache::new();
    for frame in &follower.frames {
        epochs.assign(frame.header.leader_epoch, frame.header.base_offset).expect("in order");
    }
    assert_eq!(follower.log.epochs(), &epochs);
    let reader = follower.log.reader();
    let known = reader.producers().expect("readable");
    let covers = known.as_ref().map_or(Offset::ZERO, |known| known.covers);
    assert!(covers <= follower.log.end_offset(), "never newer than the log");
    let covered = leader.frames.iter().rfind(|frame| frame.header.next_offset() <= covers);
    if let (Some(known), Some(frame)) = (known, covered) {
        assert_eq!(known.bytes, frame.header.chain.0.as_slice(), "of this history");
    }
    let rest: Result<Vec<_>, _> = reader.frames_since(covers).collect();
    let rest: Vec<_> = rest.expect("intact").into_iter().map(|(header, _)| header).collect();
    let expected = follower.frames.iter().map(|frame| frame.header);
    assert_eq!(rest, expected.filter(|header| header.base_offset >= covers).collect::<Vec<_>>());
}

#[test]
fn a_log_that_begins_anew_takes_frames_from_there() {
    let leader = leader(&[300, 1500, 40, 2500, 700, 900]);
    for (held, from) in [(0, 0), (0, 3), (2, 4), (6, 2), (6, 0)] {
        let mut follower = follower(7);
        take(&mut follower, &leader.frames[..held]);
        follower.settle(SYNC);
        let at = leader.frames[from].header.base_offset;
        follower.log.restart_at(at);
        assert_eq!(cut(&mut follower), Some(at));
        follower.frames.clear();
        (follower.durable_end, follower.log_start) = (at, at);
        follower.check();
        // With nothing in it, and with something.
        for _ in 0..2 {
            follower.restart(|disk| disk.crash(&CrashOptions::default()));
            assert_eq!((follower.log.start_offset(), follower.log.high_watermark()), (at, at));
            if follower.frames.is_empty() {
                take(&mut follower, &leader.frames[from..]);
                follower.settle(SYNC);
            }
        }
        assert_eq!(follower.log.chain(), leader.log.chain(), "{held} frames held, from frame {from}");
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// The leader appends, in a new leadership or not; of so many bytes.
    Lead {
        bytes: usize,
        is_new_epoch: bool,
    },
    /// The follower takes at most so many frames.
    Follow {
        frames: usize,
    },
    /// The follower leads for a moment, cut off from the others, and appends what nobody else gets.
    Diverge {
        bytes: usize,
    },
    /// The follower syncs, and tells of its producers.
    Commit,
    Checkpoint,
    Crash,
    Close,
    /// The leader deletes what is before so many percent of its log, and the follower after it.
    Trim {
        percent: u64,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0usize..1500, prop::bool::weighted(0.2))
            .prop_map(|(bytes, is_new_epoch)| Step::Lead { bytes, is_new_epoch }),
        5 => (1usize..6).prop_map(|frames| Step::Follow { frames }),
        3 => (0usize..1500).prop_map(|bytes| Step::Diverge { bytes }),
        3 => Just(Step::Commit),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Crash),
        1 => Just(Step::Close),
        1 => (0u64..100).prop_map(|percent| Step::Trim { percent }),
    ];
    prop::collection::vec(step, 1..60)
}

/// Cuts the follower where its log is no longer its leader's, or begins it anew where it ends before the leader's log.
fn reconcile(follower: &mut Harness, leader: &Harness) {
    let same = follower.frames.iter().zip(leader.frames.iter().skip_while(|frame| {
        follower.frames.first().is_some_and(|first| frame.header.base_offset < first.header.base_offset)
    }));
    let same =
        same.take_while(|(mine, theirs)| mine == theirs).map(|(mine, _)| mine.header.next_offset()).last();
    if follower.end() < leader.log_start || (same.is_none() && follower.end() > follower.log_start) {
        follower.log.restart_at(leader.log_start);
        assert_eq!(cut(follower), Some(leader.log_start));
        follower.frames.clear();
        (follower.durable_end, follower.log_start) = (leader.log_start, leader.log_start);
        return;
    }
    let to = same.unwrap_or(follower.log_start);
    follower.log.truncate(to);
    assert_eq!(cut(follower), Some(to));
    follower.frames.retain(|frame| frame.header.next_offset() <= to);
    follower.durable_end = follower.log.durable_end();
    assert!(follower.durable_end <= to);
}

fn step(follower: &mut Harness, leader: &mut Harness, step: &Step, tag: u8) {
    match step {
        Step::Lead { bytes, is_new_epoch } => {
            leader.epoch.0 += u32::from(*is_new_epoch);
            leader.append(vec![new_batch(1 + tag as usize % 3, *bytes, tag, Timestamp(5))]).expect("room");
            leader.commit();
        }
        Step::Follow { frames } => {
            reconcile(follower, leader);
            let end = follower.end();
            let missing = leader.frames.iter().filter(|frame| frame.header.base_offset >= end).take(*frames);
            let missing: Vec<_> = missing.cloned().collect();
            take(follower, &missing);
        }
        Step::Diverge { bytes } => {
            // Nobody leads twice in one epoch: whoever comes next has a later one.
            leader.epoch.0 += 2;
            follower.epoch = LeaderEpoch(leader.epoch.0 - 1);
            follower.append(vec![new_batch(1, *bytes, !tag, Timestamp(6))]).expect("room");
        }
        Step::Commit => {
            tell_of_producers(follower);
            follower.settle(SYNC);
        }
        Step::Checkpoint => {
            follower.log.request_checkpoint();
            follower.settle(NO_SYNC);
        }
        Step::Crash => {
            let report = follower.restart(|disk| disk.crash(&CrashOptions::default()));
            assert!(!report.suspicion.has_lost_writes && !report.suspicion.is_damaged, "{report:?}");
        }
        Step::Close => {
            tell_of_producers(follower);
            let before = follower.log.suspicion();
            let (fresh, _) = open(&SimDisk::new(0), &follower.options).expect("an empty disk");
            std::mem::replace(&mut follower.log, fresh).close().expect("nothing is under way");
            follower.durable_end = follower.end();
            let report = follower.restart(|_| {});
            assert!(report.was_clean && report.suspicion == before);
        }
        Step::Trim { percent } => {
            let to = Offset(leader.end().0 * percent / 100);
            let to = leader.frames.iter().map(|frame| frame.header.base_offset).rfind(|base| *base <= to);
            let Some(to) = to.filter(|to| *to > leader.log_start) else { return };
            (leader.is_trimmed, follower.is_trimmed) = (true, true);
            leader.log.advance_log_start(to);
            leader.settle(SYNC);
            if to <= follower.log.high_watermark() {
                follower.log.advance_log_start(to);
                follower.settle(SYNC);
            }
        }
    }
}

proptest! {
    #![proptest_config(config(300))]

    /// However a follower diverges, is cut, stops and goes on: once it has caught up its log is its leader's, byte for
    /// byte, with the same chain and the same leaderships, and nothing derived from it is of another history.
    #[test]
    fn a_follower_that_has_caught_up_is_its_leader(seed: u64, steps in steps()) {
        let (mut leader, mut follower) = (leader(&[100]), follower(seed));
        for (tag, each) in steps.iter().enumerate() {
            step(&mut follower, &mut leader, each, tag as u8);
            follower.check();
            if let Some(known) = follower.log.reader().producers().expect("readable") {
                let frames = &mut follower.frames.iter();
                let last = frames.rfind(|frame| frame.header.next_offset() == known.covers);
                if let Some(last) = last {
                    prop_assert_eq!(known.bytes, last.header.chain.0.as_slice(), "of this history");
                }
            }
        }
        step(&mut follower, &mut leader, &Step::Follow { frames: usize::MAX }, 0);
        prop_assert_eq!(follower.log.chain(), leader.log.chain());
        let start = leader.log_start.max(follower.log_start);
        let of = |harness: &Harness| read_all(&harness.log.reader(), start, harness.end()).expect("intact");
        prop_assert_eq!(of(&follower), of(&leader));
        let (mine, theirs) = (follower.log.epochs(), leader.log.epochs());
        let all = start.0..leader.end().0;
        prop_assert!(all.clone().all(|at| mine.epoch_at(Offset(at)) == theirs.epoch_at(Offset(at))));
        follower.restart(|disk| disk.crash(&CrashOptions::default()));
    }
}

#[test]
fn a_damaged_log_that_begins_anew_forgets_its_damage() {
    let leader = leader(&[300, 1500, 40]);
    let mut follower = follower(7);
    take(&mut follower, &leader.frames);
    follower.commit();
    follower.log.mark_corrupt();
    let job = follower.log.next_job(SYNC).expect("the damage is noted");
    assert_eq!(job.kind(), JobKind::Judge);
    let _ = follower.log.complete(job.run());
    assert!(follower.log.next_job(SYNC).is_none(), "nothing more is done to what is damaged");
    follower.log.restart_at(Offset::ZERO);
    assert_eq!(cut(&mut follower), Some(Offset::ZERO));
    assert!(!follower.log.is_corrupt());
    take(&mut follower, &leader.frames);
}

#[test]
fn a_log_start_moves_without_a_segment_to_delete() {
    let leader = leader(&[100, 100, 100]);
    let mut follower = follower(7);
    take(&mut follower, &leader.frames);
    follower.commit();
    let start = leader.frames[1].header.base_offset;
    follower.log.advance_log_start(start);
    let completed = follower.log.run_jobs(NO_SYNC);
    assert_eq!(completed.log_start, Some(start));
    let (log, _) = {
        follower.disk.crash(&CrashOptions::default());
        open(&follower.disk, &follower.options).expect("nothing is damaged")
    };
    assert_eq!(log.start_offset(), start);
}

/// Damage was found while a cut waited for the sync that was out: nothing more was done to the log, and whoever waited for
/// the cut did so until its broker was started again.
#[test]
fn a_cut_that_waits_for_a_sync_comes_although_damage_is_found_meanwhile() {
    let leader = leader(&[100, 200, 300]);
    let mut follower = follower(2);
    take(&mut follower, &leader.frames);
    let sync = loop {
        let job = follower.log.next_job(SYNC).expect("it has something to sync");
        if job.kind() == JobKind::Sync {
            break job;
        }
        let _ = follower.log.complete(job.run());
    };
    follower.log.truncate(leader.frames[1].header.next_offset());
    assert!(follower.log.next_job(SYNC).is_none(), "the cut waits for the sync");
    follower.log.mark_corrupt();
    let _ = follower.log.complete(sync.run());
    let mut cut = None;
    while let Some(job) = follower.log.next_job(SYNC) {
        cut = cut.or(follower.log.complete(job.run()).cut);
    }
    assert_eq!(cut, Some(leader.frames[1].header.next_offset()));
}
