//! Groups under fire: members and coordinators fail in every way of [`World`], and nobody is told what does not hold.

use crate::world::{Coverage, World};

/// Seeds that run each time.
const SEEDS: u64 = 300;

#[test]
fn members_and_offsets_survive_whatever_happens() {
    let mut sum = Coverage::default();
    for seed in 0..SEEDS {
        let one = World::run(seed).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        sum.moves += one.moves;
        sum.short += one.short;
        sum.taken_late += one.taken_late;
        sum.unknown += one.unknown;
        sum.not_confirmed += one.not_confirmed;
        sum.taken_over += one.taken_over;
        sum.removed += one.removed;
        sum.fenced += one.fenced;
        sum.committed += one.committed;
        sum.stale += one.stale;
        sum.behind += one.behind;
        sum.read += one.read;
    }
    println!("{SEEDS} seeds: {sum:?}");
    let often =
        [sum.moves, sum.short, sum.taken_late, sum.unknown, sum.not_confirmed, sum.taken_over, sum.removed];
    assert!(often.iter().all(|count| *count >= SEEDS), "something hardly ever happens: {sum:?}");
    let often = [sum.committed, sum.stale, sum.behind, sum.read, sum.fenced * 10];
    assert!(often.iter().all(|count| *count >= SEEDS), "something hardly ever happens: {sum:?}");
}

#[test]
fn a_seed_replays_a_run_exactly() {
    for seed in 0..5 {
        assert_eq!(World::run(seed), World::run(seed));
    }
    assert_ne!(World::run(0), World::run(1));
}

#[cfg(feature = "mutants")]
#[test]
fn every_rule_that_is_left_out_is_missed() {
    use std::panic;

    use quire_engine::mutant::{self, Mutant};

    let mut survivors = Vec::new();
    for mutant in Mutant::OF_GROUPS {
        mutant::set(Some(*mutant));
        let killed = (0..SEEDS).find_map(|seed| match panic::catch_unwind(|| World::run(seed)) {
            Ok(Ok(_)) => None,
            Ok(Err(what)) => Some((seed + 1, what)),
            Err(panic) => {
                let what = panic.downcast_ref::<String>().cloned();
                Some((seed + 1, what.unwrap_or_else(|| "an assertion".to_owned())))
            }
        });
        mutant::set(None);
        match killed {
            Some((seeds, what)) => println!("{mutant:?}: seed {seeds}: {what}"),
            None => survivors.push(mutant),
        }
    }
    assert!(survivors.is_empty(), "nothing is missed without {survivors:?}");
}
