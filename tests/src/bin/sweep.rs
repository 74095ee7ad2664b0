//! Runs the simulator over many seeds and prints the first that fails, with the end of its trace.
//!
//! `sweep FROM COUNT` runs seeds in order, and prints what they covered; `sweep SEED` runs one and prints how its trace ends, whatever came of it;
//! `sweep mutants` leaves out each rule of the machines in turn, and prints how many seeds it takes to notice.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use quire_engine::mutant::Mutant;
use quire_tests::sim::mutants;
use quire_tests::sim::world::{Coverage, Options, World};

/// Within how many seeds a rule's absence has to be noticed.
const SEEDS_TO_KILL_MAX: u64 = 500;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("mutants") {
        return mutants();
    }
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|word| parse(&word)).collect();
    match numbers[..] {
        [from, count] => sweep(from, count),
        [seed] => one(seed),
        _ => {
            eprintln!(
                "usage: sweep FROM COUNT, or: sweep SEED (decimal, or hexadecimal after 0x), or: sweep mutants"
            );
            ExitCode::from(2)
        }
    }
}

fn parse(word: &str) -> Option<u64> {
    match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}

fn one(seed: u64) -> ExitCode {
    println!("{:?}", Options::of(seed));
    match World::new(Options::of(seed)).run() {
        Ok((coverage, digest)) => {
            println!("clean: {coverage:?}\ntrace {digest}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn mutants() -> ExitCode {
    std::panic::set_hook(Box::new(|_| {}));
    let mut code = ExitCode::SUCCESS;
    println!("| rule left out | seeds | noticed by |\n|---|---|---|");
    // Noticed here by luck alone, and within three seeds by the simulation beside the machine of groups.
    let is_noticed_here = |mutant: &&Mutant| **mutant != Mutant::ConfirmBeforeAnswer;
    for mutant in Mutant::ALL.iter().chain(Mutant::OF_GROUPS).filter(is_noticed_here) {
        match mutants::kill(*mutant, SEEDS_TO_KILL_MAX) {
            Some(killed) => println!("| {mutant:?} | {} | {} |", killed.seeds, killed.how.replace('|', "/")),
            None => {
                println!("| {mutant:?} | more than {SEEDS_TO_KILL_MAX} | **nothing** |");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

fn sweep(from: u64, count: u64) -> ExitCode {
    let mut sum = Coverage::default();
    for seed in from..from.saturating_add(count) {
        match World::new(Options::of(seed)).run() {
            Ok((coverage, _)) => sum.add(&coverage),
            Err(failure) => {
                println!("{failure}\nagain: sweep {seed:#x}");
                return ExitCode::FAILURE;
            }
        }
        if (seed - from + 1).is_multiple_of(1000) {
            println!("{} seeds clean", seed - from + 1);
        }
    }
    println!("{count} seeds from {from:#x}: clean\n{sum:?}");
    ExitCode::SUCCESS
}
