//! Chances, all from one seed.

use std::time::Duration;

use quire_engine::{Random, SplitMix64};

/// A run's only source of chance.
#[derive(Debug, Clone)]
pub struct Dice(SplitMix64);

impl Dice {
    /// The chances of this seed.
    pub fn new(seed: u64) -> Dice {
        Dice(SplitMix64::new(seed))
    }

    /// Chances of their own for a part of the world: drawing from them changes nothing elsewhere.
    pub fn split(&mut self) -> Dice {
        Dice::new(self.0.next_u64())
    }

    /// A number below `end`, which is not 0. The bias of a remainder is far below what any run could show.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0.next_u64() % end
    }

    /// A number of a range.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// Whether something with a chance of so many in a thousand happens.
    pub fn happens(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// One of several; `None` of none.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        if of.is_empty() { None } else { Some(&of[self.below(of.len() as u64) as usize]) }
    }

    /// A time between two, most often near the shorter one, as waits on networks and disks are.
    pub fn wait(&mut self, shortest: Duration, longest: Duration) -> Duration {
        let range = (longest.saturating_sub(shortest)).as_micros() as u64;
        let scaled = range >> self.below(8);
        shortest + Duration::from_micros(self.below(scaled + 1))
    }
}

impl Random for Dice {
    fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }
}
