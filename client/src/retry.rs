//! When to try again: pauses that grow and are jittered, and a circuit breaker that fails fast while one lasts.
//!
//! Plain code: time is passed in, and so is the randomness.

use std::hash::{BuildHasher, Hasher};
use std::time::{Duration, Instant};

/// Pauses between attempts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// The first pause.
    pub first: Duration,
    /// The longest pause.
    pub longest: Duration,
}

impl Default for Backoff {
    /// 50 ms, doubling up to 2 s.
    fn default() -> Backoff {
        Backoff { first: Duration::from_millis(50), longest: Duration::from_secs(2) }
    }
}

impl Backoff {
    /// The pause after this many failures in a row (1 is the first): doubled each time up to the longest, and from
    /// that a random part between a half and the whole, so that clients do not come back in step.
    pub(crate) fn pause(&self, failures: u32, rng: &mut Jitter) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let full = self.first.saturating_mul(1 << doublings).min(self.longest);
        full.mul_f64(0.5 + 0.5 * rng.fraction())
    }
}

/// Random numbers for jitter and spreading; not for secrets. SplitMix64.
#[derive(Debug, Clone)]
pub(crate) struct Jitter(u64);

impl Jitter {
    /// The sequence of this seed.
    pub(crate) fn from_seed(seed: u64) -> Jitter {
        Jitter(seed)
    }

    /// A sequence that differs between processes and calls.
    pub(crate) fn from_entropy() -> Jitter {
        Jitter(std::hash::RandomState::new().build_hasher().finish())
    }

    /// The next 64 bits.
    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 (inclusive) to 1 (exclusive).
    pub(crate) fn fraction(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Counts failures in a row and says when the next attempt is due.
#[derive(Debug)]
pub(crate) struct Retry {
    backoff: Backoff,
    rng: Jitter,
    failures: u32,
    due: Option<Instant>,
}

impl Retry {
    pub(crate) fn new(backoff: Backoff, rng: Jitter) -> Retry {
        Retry { backoff, rng, failures: 0, due: None }
    }

    /// Notes a failure and answers when to try again.
    pub(crate) fn failed(&mut self, now: Instant) -> Instant {
        self.failures = self.failures.saturating_add(1);
        let due = now + self.backoff.pause(self.failures, &mut self.rng);
        self.due = Some(due);
        due
    }

    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
        self.due = None;
    }

    /// When the next attempt is due, if a pause is under way.
    pub(crate) fn pause_until(&self, now: Instant) -> Option<Instant> {
        self.due.filter(|due| *due > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BACKOFF: Backoff = Backoff { first: Duration::from_millis(50), longest: Duration::from_secs(2) };

    proptest! {
        #[test]
        fn a_pause_lies_between_half_and_all_of_its_doubling(failures in 1u32..1000, seed: u64) {
            let full = Duration::from_millis(50).saturating_mul(1 << (failures - 1).min(20)).min(BACKOFF.longest);
            let pause = BACKOFF.pause(failures, &mut Jitter::from_seed(seed));
            prop_assert!(pause >= full / 2 && pause <= full, "{pause:?} for {full:?}");
        }
    }

    #[test]
    fn one_seed_gives_one_schedule_and_another_seed_another() {
        let schedule = |seed| {
            let mut rng = Jitter::from_seed(seed);
            (1..10).map(|failures| BACKOFF.pause(failures, &mut rng)).collect::<Vec<_>>()
        };
        assert_eq!(schedule(7), schedule(7));
        assert_ne!(schedule(7), schedule(8));
    }

    #[test]
    fn a_circuit_is_open_for_its_pause_and_closes_with_success() {
        let start = Instant::now();
        let mut retry = Retry::new(BACKOFF, Jitter::from_seed(1));
        assert_eq!(retry.pause_until(start), None);
        let due = retry.failed(start);
        assert_eq!(retry.pause_until(start), Some(due));
        assert_eq!(retry.pause_until(due), None, "one attempt is let through when it is due");
        let later = retry.failed(due);
        assert!(later - due >= Duration::from_millis(50), "the second pause is the longer one");
        retry.succeeded();
        assert_eq!(retry.pause_until(due), None);
    }
}
