//! When records are due, whatever the broker does: the load is open, and lateness counts as latency.

use std::time::Duration;

/// A steady rate over all producers, who take turns: record `n` of all is due `n / rate` after the start.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    rate: f64,
    producers: u32,
}

impl Schedule {
    /// So many records a second over so many producers. Both are above 0.
    pub fn new(rate: f64, producers: u32) -> Schedule {
        assert!(rate > 0.0 && producers > 0, "a schedule has a rate and somebody to keep it");
        Schedule { rate, producers }
    }

    /// When a producer's record of this number is due, after the start.
    pub fn due(&self, producer: u32, number: u64) -> Duration {
        let place = number as f64 * f64::from(self.producers) + f64::from(producer);
        Duration::from_secs_f64(place / self.rate)
    }

    /// How many of a producer's records are due at this time after the start, or were before.
    pub fn due_count(&self, producer: u32, elapsed: Duration) -> u64 {
        let places = elapsed.as_secs_f64() * self.rate;
        let turns = (places - f64::from(producer)) / f64::from(self.producers);
        let mut count = if turns < 0.0 { 0 } else { turns as u64 + 1 };
        // Rounding in either direction must not make a record due early, nor forget one.
        while count > 0 && self.due(producer, count - 1) > elapsed {
            count -= 1;
        }
        while self.due(producer, count) <= elapsed {
            count += 1;
        }
        count
    }

    /// How many records of all producers are due at this time after the start, or were before.
    pub fn due_total(&self, elapsed: Duration) -> u64 {
        Schedule { producers: 1, ..*self }.due_count(0, elapsed)
    }

    /// When the next record of any producer is due, after this time.
    pub fn next_after(&self, elapsed: Duration) -> Duration {
        let place = (elapsed.as_secs_f64() * self.rate).floor() + 1.0;
        Duration::from_secs_f64(place / self.rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn producers_take_turns_at_the_rate() {
        let schedule = Schedule::new(1000.0, 4);
        assert_eq!(schedule.due(0, 0), Duration::ZERO);
        assert_eq!(schedule.due(1, 0), Duration::from_millis(1));
        assert_eq!(schedule.due(0, 1), Duration::from_millis(4));
        assert_eq!(schedule.due(3, 249), Duration::from_millis(999));
    }

    #[test]
    fn what_is_due_is_counted_to_the_record() {
        let schedule = Schedule::new(1000.0, 4);
        let counts =
            |ms| [0, 1, 2, 3].map(|producer| schedule.due_count(producer, Duration::from_millis(ms)));
        assert_eq!(counts(0), [1, 0, 0, 0]);
        assert_eq!(counts(3), [1, 1, 1, 1]);
        assert_eq!(counts(4), [2, 1, 1, 1]);
        assert_eq!(counts(999), [250; 4]);
        assert_eq!(schedule.next_after(Duration::from_micros(3_500)), Duration::from_millis(4));
    }

    proptest! {
        #[test]
        fn counts_and_times_agree(
            rate in 0.1f64..10_000_000.0, producers in 1u32..2000, micros in 0u64..600_000_000,
        ) {
            let schedule = Schedule::new(rate, producers);
            let elapsed = Duration::from_micros(micros);
            for producer in [0, producers / 2, producers - 1] {
                let count = schedule.due_count(producer, elapsed);
                prop_assert!(schedule.due(producer, count) > elapsed, "the next one is not due");
                prop_assert!(count == 0 || schedule.due(producer, count - 1) <= elapsed, "the last one is");
            }
            let sum: u64 = (0..producers).map(|producer| schedule.due_count(producer, elapsed)).sum();
            prop_assert_eq!(sum, schedule.due_total(elapsed));
        }
    }
}
