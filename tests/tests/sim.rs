//! The cluster's decisions under every fault that the simulator knows; see `tests/src/sim`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use quire_engine::mutant::Mutant;
use quire_tests::sim::mutants;
use quire_tests::sim::world::{Coverage, Options, World};

/// Seeds that every run of the tests goes through.
const SEEDS: u64 = 200;
/// Where the sweep begins, unless the environment says otherwise.
const SWEEP_FROM: u64 = 100_000;
/// How long it lasts, unless the environment says otherwise (seconds).
const SWEEP_SECONDS: u64 = 15;

fn run(seed: u64) -> Coverage {
    match World::new(Options::of(seed)).run() {
        Ok((coverage, _)) => coverage,
        Err(failure) => panic!("{failure}"),
    }
}

#[test]
fn nothing_acknowledged_is_lost_whatever_fails() {
    let mut sum = Coverage::default();
    let mut with_election_under_way = 0;
    for seed in 0..SEEDS {
        let coverage = run(seed);
        with_election_under_way += u64::from(coverage.elections_under_way > 0);
        sum.add(&coverage);
    }
    println!(
        "{SEEDS} seeds, {with_election_under_way} with an election while writes were unanswered: {sum:?}"
    );
    assert!(with_election_under_way * 5 >= SEEDS, "a simulation of nothing: {with_election_under_way}");
    assert!(sum.acknowledged > 500 * SEEDS, "a simulation of nothing: {sum:?}");
    let rare = [
        sum.power_losses,
        sum.wipes,
        sum.rolls,
        sum.disk_faults,
        sum.flips,
        sum.cuts,
        sum.resent,
        sum.snapshots,
        sum.topic_changes,
        sum.reassignments,
        sum.in_sync_changes,
        sum.truncations,
        sum.id_blocks,
        sum.members_fenced,
        sum.members_removed,
        sum.stale_commits,
    ];
    assert!(rare.iter().all(|count| *count >= SEEDS / 10), "something hardly ever happens: {sum:?}");
    assert!(sum.with_groups * 3 >= SEEDS, "too few groups: {sum:?}");
    // A member looks at its clock, and is rarely told by others that it is none any more.
    let hard = [sum.with_coordinator_move, sum.with_fenced_member * 4, sum.with_rebalance];
    assert!(hard.iter().all(|runs| *runs * 10 >= SEEDS), "groups that have an easy life: {sum:?}");
    assert!(sum.ended_offline * 2 < SEEDS, "a world so hostile that nothing is left to be checked: {sum:?}");
}

/// As many more seeds as fit into a time. `QUIRE_SIM_FROM` says where they begin, and `QUIRE_SIM_SECONDS` how long it lasts.
#[test]
fn nothing_is_lost_in_as_many_seeds_as_there_is_time_for() {
    let number = |name: &str, default: u64| match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} = {text}: expected a number")),
        Err(_) => default,
    };
    let from = number("QUIRE_SIM_FROM", SWEEP_FROM);
    let end = Instant::now() + Duration::from_secs(number("QUIRE_SIM_SECONDS", SWEEP_SECONDS));
    let mut seed = from;
    while Instant::now() < end {
        run(seed);
        seed += 1;
    }
    println!("{} seeds from {from}: clean", seed - from);
    assert!(seed > from);
}

#[test]
fn a_seed_repeats_its_run() {
    let digests: BTreeMap<u64, _> =
        (0..5).map(|seed| (seed, World::new(Options::of(seed)).run().expect("clean").1)).collect();
    for (seed, digest) in digests {
        assert_eq!(World::new(Options::of(seed)).run().expect("clean").1, digest, "seed {seed}");
    }
}

/// Four of the rules; `sweep mutants` goes through all of them.
#[test]
fn a_rule_left_out_is_noticed() {
    let rules =
        [Mutant::MaximalIsr, Mutant::DedupeWindow, Mutant::DecideOnPending, Mutant::MemberEpochOnCommit];
    for mutant in rules {
        assert!(mutants::kill(mutant, 500).is_some(), "{mutant:?} was not noticed in 500 seeds");
    }
}
