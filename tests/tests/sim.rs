//! The cluster's decisions under every fault that the simulator knows; see `tests/src/sim`.

use std::collections::BTreeMap;

use quire_engine::mutant::Mutant;
use quire_tests::sim::mutants;
use quire_tests::sim::world::{Coverage, Options, World};

/// Seeds that every run of the tests goes through.
const SEEDS: u64 = 200;

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
        sum.steps += coverage.steps;
        sum.acknowledged += coverage.acknowledged;
        sum.elections += coverage.elections;
        sum.crashes += coverage.crashes;
        sum.power_losses += coverage.power_losses;
        sum.cuts += coverage.cuts;
        sum.in_sync_changes += coverage.in_sync_changes;
        sum.ended_offline += coverage.ended_offline;
        sum.controller_elections += coverage.controller_elections;
    }
    println!(
        "{SEEDS} seeds, {with_election_under_way} with an election while writes were unanswered: {sum:?}"
    );
    assert!(with_election_under_way * 5 >= SEEDS, "a simulation of nothing: {with_election_under_way}");
    assert!(sum.acknowledged > 50 * SEEDS, "a simulation of nothing: {sum:?}");
}

#[test]
fn a_seed_repeats_its_run() {
    let digests: BTreeMap<u64, _> =
        (0..5).map(|seed| (seed, World::new(Options::of(seed)).run().expect("clean").1)).collect();
    for (seed, digest) in digests {
        assert_eq!(World::new(Options::of(seed)).run().expect("clean").1, digest, "seed {seed}");
    }
}

/// Three of the rules; `sweep mutants` goes through all of them.
#[test]
fn a_rule_left_out_is_noticed() {
    for mutant in [Mutant::MaximalIsr, Mutant::TruncateBeforeHighWatermark, Mutant::SyncBeforeAcknowledging] {
        assert!(mutants::kill(mutant, 500).is_some(), "{mutant:?} was not noticed in 500 seeds");
    }
}
