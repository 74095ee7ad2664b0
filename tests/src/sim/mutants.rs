//! Proves the simulator: with any one rule of the machines left out, it must find that something is wrong.

use std::panic::{self, AssertUnwindSafe};

use quire_engine::mutant::{self, Mutant};

use super::world::{Options, World};

/// A rule's absence that was noticed.
#[derive(Debug)]
pub struct Killed {
    /// How many seeds that took.
    pub seeds: u64,
    /// What was noticed: a violation, or an assertion of the machines.
    pub how: String,
}

/// Leaves out a rule and runs seeds until that is noticed; `None` if it is not within so many.
pub fn kill(mutant: Mutant, seeds_max: u64) -> Option<Killed> {
    mutant::set(Some(mutant));
    let killed = (0..seeds_max).find_map(|seed| {
        // A machine whose own assertion fails has noticed as well.
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| World::new(Options::of(seed)).run()));
        let how = match outcome {
            Ok(Ok(_)) => return None,
            Ok(Err(failure)) => failure.what(),
            Err(panic) => {
                let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                text.unwrap_or_else(|| "an assertion".to_owned())
            }
        };
        Some(Killed { seeds: seed + 1, how })
    });
    mutant::set(None);
    killed
}
