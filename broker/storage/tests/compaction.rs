//! A compacted log gives the latest value of every key, never another at an offset than was written there, and never one of
//! a key that was deleted; whatever it was stopped in.

mod harness;
mod keyed;

use std::path::Path;
use std::time::Duration;

use harness::{DIR, NO_SYNC, SYNC, config};
use keyed::{Keyed, NewRecord, Sent, compaction, filled, plain, tombstone, value};
use proptest::prelude::*;
use quire_protocol::batch::{Compression, ProducerIdentity};
use quire_protocol::ids::{LeaderEpoch, Offset, ProducerEpoch, ProducerId};
use quire_protocol::limits;
use quire_storage::disk::{CrashOptions, Disk, Fault, SimDisk, Survival};
use quire_storage::{CompactionSettings, JobKind, Residency, Want, inspect};

/// Something that happens to a log.
#[derive(Debug, Clone)]
enum Step {
    Append(Vec<Sent>),
    Commit,
    /// The active segment is sealed.
    Roll,
    Compact {
        keys_max: usize,
        delete_retention_ms: u64,
        lag_ms_min: u64,
        span_ms_max: Option<u64>,
    },
    /// A job is handed out; other things happen before it runs.
    HandOut {
        sync: bool,
    },
    Finish,
    Upkeep,
    GiveUp,
    Retain,
    Tick {
        ms: i64,
    },
    Epoch,
    Close,
    Kill,
    Crash(Survival),
    Cut,
}

fn sent() -> impl Strategy<Value = Sent> {
    let key = prop_oneof![4 => (0u8..6).prop_map(Some), 1 => Just(None)];
    let record = (key, prop_oneof![3 => Just(true), 1 => Just(false)], 0usize..60);
    let records = prop::collection::vec(record, 1..6);
    (records, 0u8..5, prop::option::of(0u64..3)).prop_map(|(records, compression, producer)| Sent {
        records: records.into_iter().map(|(key, has_value, len)| NewRecord { key, has_value, len }).collect(),
        compression: Compression::from_number(compression).expect("one of five"),
        producer,
    })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let survival = prop_oneof![Just(Survival::Random), Just(Survival::Nothing), Just(Survival::Everything)];
    let keys_max = prop_oneof![Just(1usize), Just(3), Just(1000)];
    let compact = (keys_max, 0u64..400_000, 0u64..200_000, prop::option::of(0u64..400_000));
    let step = prop_oneof![
        12 => prop::collection::vec(sent(), 1..4).prop_map(Step::Append),
        6 => Just(Step::Commit),
        3 => Just(Step::Roll),
        6 => compact.prop_map(|(keys_max, delete_retention_ms, lag_ms_min, span_ms_max)| Step::Compact {
            keys_max, delete_retention_ms, lag_ms_min, span_ms_max
        }),
        4 => any::<bool>().prop_map(|sync| Step::HandOut { sync }),
        3 => Just(Step::Finish),
        4 => Just(Step::Upkeep),
        1 => Just(Step::GiveUp),
        1 => Just(Step::Retain),
        3 => (0i64..400_000).prop_map(|ms| Step::Tick { ms }),
        1 => Just(Step::Epoch),
        1 => Just(Step::Close),
        1 => Just(Step::Kill),
        1 => survival.prop_map(Step::Crash),
        1 => Just(Step::Cut),
    ];
    prop::collection::vec(step, 1..60)
}

/// Takes one step; whether the log goes on. It does not if the disk stopped.
fn take(log: &mut Keyed, step: &Step) -> bool {
    match step {
        Step::Append(batches) => batches.iter().for_each(|sent| log.append(sent)),
        Step::Commit => log.commit(),
        Step::Roll => log.roll(),
        Step::Compact { keys_max, delete_retention_ms, lag_ms_min, span_ms_max } => {
            let settings = CompactionSettings {
                keys_max: *keys_max,
                delete_retention_ms: *delete_retention_ms,
                lag_ms_min: *lag_ms_min,
                span_ms_max: *span_ms_max,
                ..compaction()
            };
            log.log.compact(log.now, &settings);
        }
        Step::HandOut { sync } => log.hand_out(Want { sync: *sync }),
        Step::Finish => log.finish(),
        Step::Upkeep => log.settle(NO_SYNC),
        Step::GiveUp => log.log.cancel_compaction(),
        Step::Retain => log.log.retain(log.now, None, Some(log.log.size_bytes() / 2)),
        Step::Tick { ms } => log.now.0 += ms,
        Step::Epoch => log.epoch = LeaderEpoch(log.epoch.0 + 1),
        Step::Close => log.close(),
        Step::Kill => log.restart(SimDisk::kill),
        Step::Crash(survival) => {
            let crash = CrashOptions { data: *survival, names: *survival };
            log.restart(|disk| disk.crash(&crash));
        }
        Step::Cut => log.cut_uncommitted(),
    }
    !log.disk.is_stopped()
}

proptest! {
    #![proptest_config(config(300))]

    #[test]
    fn a_compacted_log_is_a_map_of_what_was_written(seed in any::<u64>(), steps in steps()) {
        let mut log = Keyed::new(seed);
        for step in &steps {
            take(&mut log, step);
        }
        log.check();
        log.compact_all();
        log.check();
        log.check_small_files_are_rebuilt();
        log.check_follower();
    }

    /// Any number of operations into whatever was going on, and again while that is recovered.
    #[test]
    fn a_stop_at_any_operation_leaves_what_was_there_or_what_is_left_of_it(
        seed in any::<u64>(),
        steps in steps(),
        operations in 0u64..400,
        is_kill in any::<bool>(),
    ) {
        let mut log = Keyed::new(seed);
        log.disk.inject(Fault::StopsAfter { operations });
        let _all = steps.iter().all(|step| take(&mut log, step));
        let stop = |disk: &SimDisk| if is_kill { disk.kill() } else { disk.crash(&CrashOptions::default()) };
        log.restart(stop);
        let first = log.read().expect("intact");
        log.restart(|disk| disk.crash(&CrashOptions { data: Survival::Nothing, names: Survival::Nothing }));
        prop_assert_eq!(log.read().expect("intact"), first, "a second recovery finds the same");
        for step in &steps {
            take(&mut log, step);
        }
        log.compact_all();
        log.check();
    }
}

#[test]
fn only_the_last_record_of_each_key_is_left_and_segments_become_one() {
    let mut log = filled(1, 6);
    assert_eq!(log.segments(), 7);
    let size = log.log.size_bytes();
    log.compact_all();
    log.check();
    let keys: Vec<_> = log.read().expect("intact").iter().map(|record| record.key).collect();
    let mut unique = keys.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!((keys.len(), unique.len()), (7, 7), "each key once");
    assert!(log.log.size_bytes() < size / 3);
    assert_eq!(log.segments(), 2, "the rest of all, and the active one");
    let again = log.log.size_bytes();
    log.log.compact(log.now, &compaction());
    assert!(!log.log.is_compacting(), "nothing is dirty");
    log.restart(SimDisk::kill);
    log.log.compact(log.now, &compaction());
    assert!(!log.log.is_compacting(), "the manifest says so");
    assert_eq!(log.log.size_bytes(), again);
}

#[test]
fn what_is_not_committed_or_too_young_is_left_alone() {
    let mut log = filled(1, 2);
    log.append(&plain(vec![value(1, 10), value(2, 10)]));
    log.settle(SYNC);
    log.roll();
    let before = log.frames();
    let young = CompactionSettings { lag_ms_min: 1, ..compaction() };
    log.log.compact(log.now, &young);
    log.settle(NO_SYNC);
    assert_eq!(log.frames(), before, "appended right now");
    log.compact_all();
    let (last, after) = (before.last().expect("some"), log.frames());
    assert_eq!(after.last(), Some(last), "above the high watermark nothing is touched");
    assert!(after.len() < before.len());
    log.check();
}

/// The checkpoint covered the records before they were committed. Found again behind it, the high watermark lay in the gap
/// that compaction had left, and whoever read up to there asked for the same for ever.
#[test]
fn no_stop_finds_the_high_watermark_before_the_end_of_what_was_compacted() {
    let mut log = filled(1, 1);
    for _ in 0..6 {
        log.append(&plain(vec![value(1, 300), value(7, 200)]));
    }
    log.settle(SYNC);
    log.log.request_checkpoint();
    log.settle(NO_SYNC);
    let (committed, end) = (log.log.high_watermark(), log.log.end_offset());
    assert!(committed < end);
    log.commit();
    log.roll();
    log.log.compact(log.now, &compaction());
    log.settle(NO_SYNC);
    let gap = log.frames().windows(2).any(|pair| pair[0].0.next_offset() < pair[1].0.base_offset);
    assert!(gap, "some frames are gone");
    log.restart(SimDisk::kill);
    assert_eq!(log.log.high_watermark(), end);
}

#[test]
fn a_read_below_an_offset_in_a_gap_goes_on_behind_it() {
    let mut log = filled(1, 3);
    log.compact_all();
    let (reader, frames) = (log.log.reader(), log.frames());
    let mut gaps = 0;
    for pair in frames.windows(2) {
        let (before, behind) = (pair[0].0.next_offset(), pair[1].0.base_offset);
        for below in before.0 + 1..pair[1].0.next_offset().0 {
            let slice = reader.read(before, 1000, Offset(below), Residency::Any).expect("intact");
            // No further than the frame behind the gap, of which not all lies below.
            assert_eq!((slice.bytes, slice.next_offset), (0, behind.min(Offset(below))));
            gaps += 1;
        }
    }
    assert!(gaps > 0);
}

#[test]
fn a_log_is_compacted_once_enough_of_it_is_dirty_or_for_too_long() {
    let mut log = filled(1, 3);
    log.compact_all();
    let settings = CompactionSettings { dirty_millionths_min: 900_000, ..compaction() };
    log.append(&plain(vec![value(1, 100)]));
    log.commit();
    log.roll();
    log.log.compact(log.now, &settings);
    assert!(!log.log.is_compacting(), "a little is dirty");
    log.now.0 += 5000;
    let lagging = CompactionSettings { lag_ms_max: Some(6000), ..settings };
    log.log.compact(log.now, &lagging);
    assert!(!log.log.is_compacting());
    log.now.0 += 2000;
    log.log.compact(log.now, &lagging);
    assert!(log.log.is_compacting(), "for too long");
    log.settle(NO_SYNC);
    log.check();
}

/// It went by when the segment in front ended, which was long ago in an idle log, or by the end of the dirty one.
#[test]
fn dirty_is_what_was_appended_since_the_first_dirty_record() {
    let settings =
        CompactionSettings { dirty_millionths_min: 1_000_001, lag_ms_max: Some(6000), ..compaction() };
    let is_due = |log: &mut Keyed| {
        log.log.compact(log.now, &settings);
        log.log.is_compacting()
    };
    let reopened: [fn(&mut Keyed); 3] = [|_| (), Keyed::close, |log| log.restart(SimDisk::kill)];
    for reopen in reopened {
        let mut log = Keyed::new(1);
        for _ in 0..3 {
            // Nothing happens for a day.
            log.now.0 += 24 * 3600 * 1000;
            log.append(&plain(vec![value(1, 100)]));
            log.now.0 += 4000;
            log.append(&plain(vec![value(2, 100)]));
            log.commit();
            log.roll();
            reopen(&mut log);
            log.commit();
            log.now.0 += 2000;
            assert!(!is_due(&mut log), "six seconds");
            log.now.0 += 1;
            assert!(is_due(&mut log));
            log.settle(NO_SYNC);
            log.check();
        }
    }
}

#[test]
fn an_active_segment_is_sealed_when_it_is_old_or_large_beside_the_rest() {
    let mut log = Keyed::new(1);
    log.append(&plain(vec![value(1, 100)]));
    log.commit();
    let settings = CompactionSettings { lag_ms_max: Some(1000), ..compaction() };
    log.log.compact(log.now, &settings);
    log.settle(NO_SYNC);
    assert_eq!(log.segments(), 1, "young and small");
    log.now.0 += 1001;
    log.log.compact(log.now, &settings);
    log.settle(NO_SYNC);
    assert_eq!(log.segments(), 2, "old");
    log.append(&plain(vec![value(1, 2500)]));
    log.commit();
    log.log.compact(log.now, &compaction());
    log.settle(NO_SYNC);
    // Half a segment, and more than all else: sealed, and compacted with what was sealed before.
    assert_eq!((log.segments(), log.frames().len()), (2, 2));
    assert_eq!(log.read().expect("intact").len(), 1);
    log.check();
}

/// Of the first of three keys, sealed.
fn with_a_tombstone() -> Keyed {
    let mut log = Keyed::new(1);
    log.append(&plain(vec![value(1, 10), value(2, 10)]));
    log.append(&plain(vec![tombstone(1), value(3, 10)]));
    log.commit();
    log.roll();
    log
}

fn keys(log: &Keyed) -> Vec<Option<u8>> {
    log.read().expect("intact").iter().map(|record| record.key).collect()
}

#[test]
fn a_tombstone_goes_a_time_after_compaction_came_past_it() {
    let mut log = with_a_tombstone();
    let settings = CompactionSettings { delete_retention_ms: 1000, ..compaction() };
    // However long ago it was appended.
    log.now.0 += 10_000;
    log.log.compact(log.now, &settings);
    log.settle(NO_SYNC);
    assert_eq!(keys(&log), [Some(2), Some(1), Some(3)], "whoever has the value learns that it is gone");
    log.check();
    log.now.0 += 999;
    log.log.compact(log.now, &settings);
    assert!(!log.log.is_compacting());
    log.now.0 += 1;
    log.log.compact(log.now, &settings);
    assert!(log.log.is_compacting(), "it is time, though nothing is dirty");
    log.settle(NO_SYNC);
    assert_eq!(keys(&log), [Some(2), Some(3)]);
    log.check();
    // Found in the batch, not in memory.
    log.append(&plain(vec![tombstone(2), value(4, 10)]));
    log.commit();
    log.roll();
    log.log.compact(log.now, &settings);
    log.settle(NO_SYNC);
    log.restart(SimDisk::kill);
    log.now.0 += 1000;
    log.append(&plain(vec![value(4, 20)]));
    log.commit();
    log.roll();
    log.log.compact(log.now, &settings);
    log.settle(NO_SYNC);
    assert_eq!(keys(&log), [Some(3), Some(4)]);
    log.check();
}

/// When tombstones may go was known to the process alone, and taken from what was not listed in the end: a log that nobody
/// writes to kept them for ever.
#[test]
fn that_tombstones_are_to_go_is_not_forgotten() {
    let settings = CompactionSettings { delete_retention_ms: 1000, ..compaction() };
    let is_due = |log: &mut Keyed| {
        log.log.compact(log.now, &settings);
        log.log.is_compacting()
    };
    for is_close in [false, true] {
        let mut log = Keyed::new(1);
        log.append(&plain(vec![value(1, 10), value(2, 10)]));
        log.append(&plain(vec![tombstone(1), value(3, 10)]));
        log.commit();
        log.roll();
        assert!(is_due(&mut log));
        log.settle(NO_SYNC);
        match is_close {
            true => log.close(),
            false => log.restart(SimDisk::kill),
        }
        log.now.0 += 999;
        assert!(!is_due(&mut log));
        log.now.0 += 1;
        assert!(is_due(&mut log), "it is time, though nothing was written since");
        while !log.out.iter().any(|job| job.kind() == JobKind::Swap) {
            log.finish();
            log.hand_out(NO_SYNC);
        }
        // What was written is not listed.
        log.disk.set_capacity(Some(0));
        log.finish();
        log.disk.set_capacity(None);
        log.settle(NO_SYNC);
        assert_eq!(log.read().expect("intact").len(), 3);
        log.now.0 += 3_600_000;
        assert!(is_due(&mut log), "it is not done");
        log.settle(NO_SYNC);
        assert_eq!(log.read().expect("intact").len(), 2);
        log.check();
        assert!(!is_due(&mut log));
    }
}

/// What was sealed became one segment with each compaction, which was always as young as its newest record.
#[test]
fn retention_by_time_deletes_what_is_old_of_a_compacted_log() {
    for (span_ms_max, left) in [(Some(1000), 5), (None, 10)] {
        let settings = CompactionSettings { span_ms_max, ..compaction() };
        let mut log = Keyed::new(1);
        for day in 0..10 {
            log.append(&plain(vec![value(day, 30), value(100, 30)]));
            log.now.0 += 500;
            log.append(&plain(vec![value(day, 20), value(100, 30)]));
            log.commit();
            log.roll();
            log.log.compact(log.now, &settings);
            log.settle(NO_SYNC);
            log.check();
            log.now.0 += 9500;
        }
        assert_eq!(log.frames().len(), 11, "one of each day, and where the leadership began");
        assert_eq!(log.segments(), if span_ms_max.is_some() { 11 } else { 2 }, "nor more than are needed");
        log.log.retain(log.now, Some(Duration::from_secs(55)), None);
        log.settle(NO_SYNC);
        let days = log.read().expect("intact").iter().filter(|record| record.key != Some(100)).count();
        assert_eq!(days, left);
        log.check();
    }
}

#[test]
fn a_tombstone_stays_until_every_replica_has_it() {
    let mut log = with_a_tombstone();
    let settings = CompactionSettings { delete_retention_ms: 0, ..compaction() };
    // One has a record less.
    log.log.tombstones_may_go_to(Offset(3));
    log.log.compact(log.now, &settings);
    log.settle(NO_SYNC);
    log.log.compact(log.now, &settings);
    assert!(!log.log.is_compacting(), "it would change nothing, again and again");
    assert_eq!(keys(&log), [Some(2), Some(1), Some(3)]);
    log.append(&plain(vec![value(4, 10)]));
    log.commit();
    log.roll();
    log.log.compact(log.now, &settings);
    log.settle(NO_SYNC);
    assert_eq!(keys(&log), [Some(2), Some(1), Some(3), Some(4)], "in its time, and not everywhere");

    // All have it, and one begins anew at some step: what was written without it is given up.
    for steps in 1.. {
        log.log.tombstones_may_go_to(Offset(5));
        log.log.compact(log.now, &settings);
        assert!(log.log.is_compacting());
        let mut is_swapped = false;
        for _ in 0..steps {
            let Some(job) = log.log.next_job(NO_SYNC) else { break };
            is_swapped |= job.kind() == JobKind::Swap;
            let _ = log.log.complete(job.run());
        }
        if is_swapped {
            assert!(steps > 2, "it was noted and written before");
            break;
        }
        log.log.tombstones_may_go_to(Offset::ZERO);
        log.settle(NO_SYNC);
        assert_eq!(keys(&log), [Some(2), Some(1), Some(3), Some(4)]);
        log.check();
    }
    log.settle(NO_SYNC);
    assert_eq!(keys(&log), [Some(2), Some(3), Some(4)]);
    log.check();
}

#[test]
fn keys_that_do_not_fit_are_compacted_a_part_at_a_time() {
    let mut log = filled(1, 4);
    for round in 0..40 {
        log.log.compact(log.now, &CompactionSettings { keys_max: 1, ..compaction() });
        if !log.log.is_compacting() {
            assert!(round > 4, "{round} rounds");
            let keys = log.read().expect("intact").len();
            assert_eq!(keys, 7, "in the end each key once");
            log.check();
            return;
        }
        log.settle(NO_SYNC);
        log.check();
    }
    panic!("it makes no progress");
}

#[test]
fn what_producers_sent_last_is_known_from_the_frames() {
    let mut log = Keyed::new(1);
    for _ in 0..3 {
        for producer in 0..2 {
            let sent = Sent { producer: Some(producer), ..plain(vec![value(1, 30), value(2, 30)]) };
            log.append(&sent);
        }
    }
    log.append(&plain(vec![value(1, 10), value(2, 10)]));
    log.commit();
    log.roll();
    log.compact_all();
    assert_eq!(log.read().expect("intact").len(), 2);
    assert_eq!(log.frames().len(), 7, "what may be sent again is remembered, each batch of it");
    log.check();
    // After ten minutes the last of each; after a day none.
    log.now.0 += 600_000;
    log.append(&plain(vec![value(1, 10)]));
    log.commit();
    log.roll();
    log.compact_all();
    // The first frame of the leadership stays whatever it holds.
    let frames = log.frames();
    let producers: Vec<_> = frames[1..].iter().filter_map(|(_, batch)| batch.numbering().ok()?).collect();
    let identity = |id| ProducerIdentity { id: ProducerId(id), epoch: ProducerEpoch(0) };
    let found: Vec<_> = producers.iter().map(|known| (known.producer, known.next_sequence().0)).collect();
    assert_eq!(found, [(identity(0), 6), (identity(1), 6)]);
    log.check();
    log.now.0 += 24 * 3600 * 1000;
    log.append(&plain(vec![value(1, 10)]));
    log.commit();
    log.roll();
    log.compact_all();
    assert!(log.frames().iter().skip(1).all(|(_, batch)| batch.producer_id == -1));
    log.check();
}

#[test]
fn each_leadership_is_known_to_begin_where_it_did() {
    let mut log = Keyed::new(1);
    for epoch in 0..4 {
        log.epoch = LeaderEpoch(epoch * 2);
        (0..3).for_each(|_| log.append(&plain(vec![value(1, 30)])));
    }
    log.commit();
    log.roll();
    log.compact_all();
    let starts: Vec<_> = log.log.epochs().entries().iter().map(|start| start.start_offset.0).collect();
    assert_eq!(starts, [0, 3, 6, 9]);
    assert_eq!(log.frames().len(), 5);
    log.check_small_files_are_rebuilt();
    log.check_follower();
}

#[test]
fn appends_rolls_and_retention_go_on_meanwhile() {
    let mut log = filled(1, 4);
    log.log.compact(log.now, &compaction());
    for round in 0..3 {
        log.hand_out(NO_SYNC);
        log.append(&plain(vec![value(1, 3000)]));
        log.append(&plain(vec![value(round, 3000)]));
        log.finish();
        log.log.retain(log.now, None, Some(4000));
    }
    log.commit();
    log.settle(SYNC);
    log.check();
    assert!(log.log.start_offset() > Offset::ZERO, "deleted once the compaction was over");
}

#[test]
fn what_is_given_up_or_closed_leaves_nothing() {
    for is_close in [false, true] {
        let mut cases = 0;
        'cases: for steps in 1..20 {
            let mut log = filled(1, 3);
            let names = log.disk.list(Path::new(DIR)).expect("there");
            let before = log.frames();
            log.log.compact(log.now, &compaction());
            for _ in 0..steps {
                log.hand_out(NO_SYNC);
                if log.out.iter().any(|job| job.kind() == JobKind::Swap) {
                    // From here on it is not given up.
                    break 'cases;
                }
                log.finish();
            }
            cases = steps;
            match is_close {
                true => log.close(),
                false => {
                    log.log.cancel_compaction();
                    log.settle(NO_SYNC);
                }
            }
            assert!(!log.log.is_compacting());
            let is_segment = |name: &&String| name.ends_with(".log");
            let left = log.disk.list(Path::new(DIR)).expect("there");
            assert!(left.iter().filter(is_segment).eq(names.iter().filter(is_segment)), "{left:?}");
            assert_eq!(log.frames(), before);
        }
        assert!(cases >= 2, "{cases} cases");
    }
}

#[test]
fn a_full_disk_puts_it_off() {
    let mut log = filled(1, 3);
    log.log.request_checkpoint();
    log.settle(NO_SYNC);
    let before = log.frames();
    log.disk.set_capacity(Some(0));
    log.log.compact(log.now, &compaction());
    log.settle(NO_SYNC);
    assert!(!log.log.is_compacting() && !log.log.is_poisoned());
    assert_eq!(log.frames(), before);
    log.disk.set_capacity(None);
    log.compact_all();
    assert_eq!(log.frames(), before, "not at once again");
    log.now.0 += limits::COMPACTION_RETRY_INTERVAL.as_millis() as i64;
    log.compact_all();
    assert!(log.frames().len() < before.len());
    log.check();
}

/// It took the last of the disk, gave that back, and took it again, and appends were refused in between.
#[test]
fn what_appends_need_is_not_taken() {
    let most = 30_000 + limits::COMPACTION_DISK_RESERVE_BYTES;
    for (capacity, is_room) in [(30_000, false), (most - 20_000, false), (most + 60_000, true)] {
        let mut log = filled(1, 6);
        log.log.request_checkpoint();
        log.settle(NO_SYNC);
        log.disk.set_capacity(Some(capacity));
        let names = log.disk.list(Path::new(DIR)).expect("there");
        let free = log.disk.free_bytes(Path::new(DIR)).expect("known");
        log.log.compact(log.now, &compaction());
        while let Some(job) = log.log.next_job(NO_SYNC) {
            let kind = job.kind();
            let _ = log.log.complete(job.run());
            if !is_room && kind == JobKind::Compact {
                assert_eq!(log.disk.list(Path::new(DIR)).expect("there"), names, "nothing was begun");
                assert_eq!(log.disk.free_bytes(Path::new(DIR)).expect("known"), free);
            }
        }
        assert_eq!(log.segments() == 2, is_room, "with {capacity} bytes");
    }
}

/// Every operation of a compaction, with power lost at it; whatever survives.
#[test]
fn a_power_loss_at_every_operation_of_a_compaction_loses_nothing() {
    for operations in 0.. {
        let mut went_through = false;
        for seed in 0..6 {
            let mut log = filled(seed, 3);
            log.append(&plain(vec![tombstone(7), value(6, 50)]));
            log.commit();
            log.roll();
            log.settle(SYNC);
            log.disk.inject(Fault::StopsAfter { operations });
            log.log.compact(log.now, &compaction());
            log.settle(NO_SYNC);
            went_through = !log.disk.is_stopped();
            log.restart(|disk| disk.crash(&CrashOptions::default()));
            let report = inspect::verify(&log.disk, Path::new(DIR), Some(harness::partition()));
            assert!(report.expect("a log").finding.is_none());
            log.compact_all();
            assert_eq!(log.read().expect("intact").iter().filter(|record| record.key == Some(7)).count(), 1);
            log.check();
        }
        if went_through {
            assert!(operations > 15, "{operations} operations");
            return;
        }
    }
}

#[test]
fn every_flipped_bit_of_a_compacted_segment_is_found() {
    let mut log = filled(1, 3);
    log.append(&Sent { producer: Some(1), ..plain(vec![value(6, 5)]) });
    log.append(&plain(vec![value(6, 5), tombstone(5)]));
    log.commit();
    log.roll();
    log.compact_all();
    let good = log.read().expect("intact");
    let (path, len) = log.first_segment();
    for bit in 0..len * 8 {
        let mut damaged = log.fork();
        damaged.flip(&path, bit);
        // From wherever one reads: what is there, or an error; never another record in its place, nor silence.
        for from in 0..damaged.log.end_offset().0 {
            let expected: Vec<_> = good.iter().filter(|record| record.offset.0 >= from).collect();
            let found = damaged.read_some(Offset(from));
            let (found, is_whole) = found;
            assert!(
                found.len() <= expected.len() && found.iter().eq(expected[..found.len()].iter().copied())
            );
            assert!(
                !is_whole || found.len() == expected.len(),
                "bit {bit}, from {from}: records are missing"
            );
        }
        let report = inspect::verify(&damaged.disk, Path::new(DIR), None).expect("a log");
        assert!(!report.is_intact(), "bit {bit} goes unnoticed");
    }
}

#[test]
fn damage_that_compaction_comes_to_is_told_and_changes_nothing() {
    let mut log = filled(1, 3);
    let (path, len) = log.first_segment();
    log.flip(&path, len * 4);
    log.log.compact(log.now, &compaction());
    while let Some(job) = log.log.next_job(NO_SYNC) {
        let _ = log.log.complete(job.run());
    }
    let damage = log.log.take_damage().expect("it is told");
    assert!(matches!(damage, quire_storage::ReadError::Corrupt { .. }), "{damage}");
    assert!(log.log.take_damage().is_none(), "once");
    assert_eq!(log.segments(), 4);
}
