//! Whatever was told to be durable is there after any stop, at any operation, with the same bytes at the same offset;
//! nothing is invented; and recovery itself may be stopped anywhere.

mod harness;

use std::time::Duration;

use proptest::prelude::*;
use quire_protocol::ids::{LeaderEpoch, Offset, Timestamp};
use quire_storage::disk::{CrashOptions, Fault, SimDisk, Survival};
use quire_storage::{CompactionSettings, JobKind, Want};

use harness::{Harness, NO_SYNC, SYNC, config, new_batch, open, options, read_all};

/// Something that happens to a log.
#[derive(Debug, Clone)]
enum Step {
    Append {
        batches: Vec<(usize, usize)>,
    },
    Commit,
    Upkeep,
    /// A job is handed out; other things happen before it runs.
    HandOut {
        sync: bool,
    },
    Finish,
    Retain {
        retention_ms: Option<u64>,
        bytes: Option<u64>,
    },
    /// Nothing has a key: everything is copied to other files, and nothing goes.
    Compact,
    Tick {
        ms: i64,
    },
    Epoch,
    Rest,
    Close,
    Kill,
    Crash(Survival),
    Read {
        at: prop::sample::Index,
        max_bytes: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        10 => prop::collection::vec((1usize..5, 0usize..400), 1..5).prop_map(|batches| Step::Append { batches }),
        1 => (1usize..3, 3000usize..9000).prop_map(|batch| Step::Append { batches: vec![batch] }),
        5 => Just(Step::Commit),
        2 => Just(Step::Upkeep),
        3 => any::<bool>().prop_map(|sync| Step::HandOut { sync }),
        1 => Just(Step::Finish),
        1 => (prop::option::of(0u64..3000), prop::option::of(0u64..20_000))
            .prop_map(|(retention_ms, bytes)| Step::Retain { retention_ms, bytes }),
        2 => Just(Step::Compact),
        2 => (0i64..800).prop_map(|ms| Step::Tick { ms }),
        1 => Just(Step::Epoch),
        1 => Just(Step::Rest),
        1 => Just(Step::Close),
        1 => Just(Step::Kill),
        1 => prop_oneof![Just(Survival::Random), Just(Survival::Nothing), Just(Survival::Everything)]
            .prop_map(Step::Crash),
        3 => (any::<prop::sample::Index>(), 0usize..5000).prop_map(|(at, max_bytes)| Step::Read { at, max_bytes }),
    ];
    prop::collection::vec(step, 1..60)
}

fn crash(survival: Survival) -> CrashOptions {
    CrashOptions { data: survival, names: survival }
}

/// Takes one step; whether the log goes on. It does not if the disk stopped.
fn take(harness: &mut Harness, step: &Step, tag: u8) -> bool {
    match step {
        Step::Append { batches } => {
            let timestamp = Timestamp(harness.now.0 - i64::from(tag % 7) * 10);
            let batches =
                batches.iter().map(|(records, len)| new_batch(*records, *len, tag, timestamp)).collect();
            if let Err(kind) = harness.append(batches) {
                assert!(harness.disk.is_stopped(), "{kind}");
            }
        }
        Step::Commit => harness.commit(),
        Step::Upkeep => drop(harness.settle(NO_SYNC)),
        Step::HandOut { sync } => harness.hand_out(Want { sync: *sync }),
        Step::Finish => harness.finish(),
        Step::Retain { retention_ms, bytes } => {
            harness.log.retain(harness.now, retention_ms.map(Duration::from_millis), *bytes);
        }
        Step::Compact => {
            let settings = CompactionSettings { dirty_millionths_min: 0, ..CompactionSettings::default() };
            harness.log.compact(harness.now, &settings);
        }
        Step::Tick { ms } => harness.now.0 += ms,
        Step::Epoch => harness.epoch = LeaderEpoch(harness.epoch.0 + 1),
        Step::Rest => harness.log.rest(),
        Step::Close => close(harness),
        Step::Kill => drop(harness.restart(SimDisk::kill)),
        Step::Crash(survival) => drop(harness.restart(|disk| disk.crash(&crash(*survival)))),
        Step::Read { at, max_bytes } => {
            let (from, below) = (at.index(harness.end().0 as usize + 2), harness.log.end_offset());
            if !harness.disk.is_stopped() {
                harness.check_read(Offset(from as u64), *max_bytes, below);
            }
        }
    }
    !harness.disk.is_stopped()
}

fn close(harness: &mut Harness) {
    harness.finish();
    let (fresh, _) = open(&SimDisk::new(0), &harness.options).expect("an empty disk");
    let log = std::mem::replace(&mut harness.log, fresh);
    if log.close().is_err() {
        return;
    }
    harness.durable_end = harness.end();
    let (log, report) = match open(&harness.disk, &harness.options) {
        Err(_) if harness.disk.is_stopped() => return,
        opened => opened.expect("closed in order"),
    };
    assert!(report.was_clean && report.rebuilt.is_empty(), "{report:?}");
    harness.reopened(log, &report);
}

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn a_log_is_its_model(seed in any::<u64>(), steps in steps()) {
        let mut harness = Harness::new(SimDisk::new(seed), options());
        for (tag, step) in steps.iter().enumerate() {
            take(&mut harness, step, tag as u8);
        }
        harness.check();
    }

    #[test]
    fn a_stop_at_any_operation_loses_nothing_durable(
        seed in any::<u64>(),
        steps in steps(),
        operations in 0u64..300,
        is_kill in any::<bool>(),
    ) {
        let mut harness = Harness::new(SimDisk::new(seed), options());
        harness.disk.inject(Fault::StopsAfter { operations });
        let _all = steps.iter().enumerate().all(|(tag, step)| take(&mut harness, step, tag as u8));
        stop(&harness.disk, is_kill);
        recover_with_stops(&mut harness, seed, is_kill);
        for (tag, step) in steps.iter().enumerate() {
            take(&mut harness, step, tag as u8 | 0x80);
        }
        harness.check();
    }
}

fn stop(disk: &SimDisk, is_kill: bool) {
    if is_kill { disk.kill() } else { disk.crash(&CrashOptions::default()) }
}

/// Stops recovery after any number of operations; then lets it run, twice.
fn recover_with_stops(harness: &mut Harness, seed: u64, is_kill: bool) {
    let undisturbed = is_kill.then(|| {
        let disk = harness.disk.fork(seed);
        let (log, report) = open(&disk, &harness.options).expect("nothing is damaged");
        assert_eq!(report.corruption, None);
        (log.start_offset(), log.end_offset())
    });
    for operations in (seed % 5..).step_by(5) {
        let disk = harness.disk.fork(seed);
        disk.inject(Fault::StopsAfter { operations });
        let opened = open(&disk, &harness.options);
        if !disk.is_stopped() {
            break;
        }
        drop(opened);
        stop(&disk, is_kill);
        let (log, report) = open(&disk, &harness.options).expect("recovery can be repeated");
        assert_eq!(report.corruption, None, "{report:?}");
        if let Some(undisturbed) = undisturbed {
            assert_eq!((log.start_offset(), log.end_offset()), undisturbed);
        }
        assert!(log.end_offset() >= harness.durable_end);
    }
    let (log, report) = open(&harness.disk, &harness.options).expect("nothing is damaged");
    harness.reopened(log, &report);
    let reader = harness.log.reader();
    let first = read_all(&reader, harness.log_start, harness.end()).expect("intact");
    let again = harness.restart(|disk| disk.crash(&crash(Survival::Nothing)));
    assert_eq!(again.torn_tail, None, "what recovery kept is durable, what it cut stays cut");
    let reader = harness.log.reader();
    assert_eq!(read_all(&reader, harness.log_start, harness.end()).expect("intact"), first);
}

/// Fills segments, seals by age, deletes, rests, closes, goes on.
fn script() -> Vec<Step> {
    let append = |records, len| Step::Append { batches: vec![(records, len), (1, 40)] };
    let mut steps = Vec::new();
    for round in 0..3 {
        steps.extend([
            append(2, 300),
            Step::Commit,
            append(1, 1500),
            append(3, 200),
            Step::Commit,
            Step::Epoch,
        ]);
        steps.extend([append(1, 2500), Step::Tick { ms: 1500 }, Step::Commit]);
        let bytes = (round == 1).then_some(6000);
        steps.extend([Step::Retain { retention_ms: None, bytes }, Step::Upkeep, Step::Upkeep, Step::Rest]);
        steps.extend([Step::Compact, Step::Upkeep]);
        steps.extend([append(1, 10), if round == 0 { Step::Close } else { Step::Commit }]);
    }
    steps
}

#[test]
fn a_stop_at_every_operation_of_a_script_loses_nothing_durable() {
    for operations in 0.. {
        let mut went_through = false;
        for variant in 0..8 {
            let mut harness = Harness::new(SimDisk::new(variant), options());
            harness.disk.inject(Fault::StopsAfter { operations });
            let steps = script();
            went_through = steps.iter().zip(0..).all(|(step, tag)| take(&mut harness, step, tag));
            stop(&harness.disk, variant == 0);
            let (log, report) = open(&harness.disk, &harness.options).expect("nothing is damaged");
            harness.reopened(log, &report);
            harness.append(vec![new_batch(1, 100, 0xff, Timestamp(5))]).expect("a healthy disk");
            harness.commit();
            harness.restart(|disk| disk.crash(&crash(Survival::Nothing)));
        }
        if went_through {
            assert!(operations > 100, "the script does {operations} operations");
            return;
        }
    }
}

#[test]
fn a_stop_within_a_roll_leaves_the_old_manifest_or_all_that_the_new_one_lists() {
    for seed in 0..100 {
        for operations in 0..12 {
            let mut harness = Harness::new(SimDisk::new(seed), options());
            harness.append(vec![new_batch(1, 3000, 1, Timestamp(5))]).expect("room");
            harness.commit();
            let refused = harness.try_append(vec![new_batch(1, 3000, 2, Timestamp(5))]);
            assert!(refused.is_err(), "it belongs into another segment");
            let job = harness.log.next_job(NO_SYNC).expect("a roll");
            assert_eq!(job.kind(), JobKind::Roll);
            harness.disk.inject(Fault::StopsAfter { operations });
            let _ = job.run();
            harness.restart(|disk| disk.crash(&CrashOptions::default()));
        }
    }
}

#[test]
fn a_synced_record_survives_a_power_loss_and_an_unsynced_one_may_not() {
    let mut harness = Harness::new(SimDisk::new(1), options());
    harness.append(vec![new_batch(2, 100, 1, Timestamp(5))]).expect("room");
    harness.settle(SYNC);
    harness.append(vec![new_batch(2, 100, 2, Timestamp(6))]).expect("room");
    let report = harness.restart(|disk| disk.crash(&crash(Survival::Nothing)));
    assert!(!report.was_clean);
    assert_eq!(harness.end(), Offset(2));
}
