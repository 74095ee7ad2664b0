//! How fast a replica that is not in sync catches up: a token bucket that holds at most a second's worth (the committed
//! rate and burst size of RFC 2697).

use std::time::Duration;

use quire_engine::Time;

const NANOS_PER_SECOND: u128 = 1_000_000_000;
/// A leader is told to send on about so often in a second.
const STEPS_PER_SECOND: u64 = 10;

/// Bytes that a leader may be told to send on, earned as time passes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    bytes_per_second: u64,
    earned: u64,
    /// Until when.
    at: Time,
}

impl Pace {
    /// Nothing is earned yet.
    pub(super) fn new(bytes_per_second: u64, now: Time) -> Pace {
        Pace { bytes_per_second: bytes_per_second.max(1), earned: 0, at: now }
    }

    pub(super) fn bytes_per_second(&self) -> u64 {
        self.bytes_per_second
    }

    /// Time passes.
    pub(super) fn pass(&mut self, now: Time) {
        let earned = now.since(self.at).as_nanos() * u128::from(self.bytes_per_second) / NANOS_PER_SECOND;
        // What is earned of a byte is not lost.
        if earned > 0 {
            let earned = u64::try_from(earned).unwrap_or(u64::MAX);
            self.earned = self.earned.saturating_add(earned).min(self.bytes_per_second);
            self.at = now;
        }
    }

    /// What is worth a word to the leader, of so many bytes that it may send in the end.
    pub(super) fn step(&self, bytes: u32) -> u32 {
        bytes.min(u32::try_from(self.bytes_per_second / STEPS_PER_SECOND).unwrap_or(u32::MAX).max(1))
    }

    pub(super) fn affords(&self, bytes: u32) -> bool {
        self.earned >= u64::from(bytes)
    }

    /// When that much is earned.
    pub(super) fn affords_at(&self, bytes: u32) -> Time {
        let lacking = u128::from(u64::from(bytes).saturating_sub(self.earned));
        let nanos = (lacking * NANOS_PER_SECOND).div_ceil(u128::from(self.bytes_per_second));
        self.at + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// As many of these bytes as were earned.
    pub(super) fn spend(&mut self, bytes: u32) -> u32 {
        let spent = u64::from(bytes).min(self.earned);
        self.earned -= spent;
        spent as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(millis: u64) -> Time {
        Time::after_origin(Duration::from_millis(millis))
    }

    #[test]
    fn no_more_is_spent_than_a_seconds_worth_and_the_rate() {
        let mut pace = Pace::new(1000, Time::ZERO);
        assert_eq!((pace.spend(500), pace.affords(1), pace.step(500)), (0, false, 100));
        let mut spent = 0;
        for millis in 1..=10_000 {
            pace.pass(after(millis));
            spent += pace.spend(7);
        }
        assert_eq!(spent, 10_000);
        pace.pass(after(60_000));
        assert_eq!((pace.spend(u32::MAX), pace.spend(1)), (1000, 0));
    }

    #[test]
    fn what_is_waited_for_is_earned_by_then_and_not_before() {
        for bytes_per_second in [1, 3, 65_536, 1 << 40, u64::MAX] {
            for bytes in [1, 2, 65_537] {
                let mut pace = Pace::new(bytes_per_second, after(5));
                let due = pace.affords_at(bytes);
                let mut early = pace;
                early.pass(pace.at + due.since(pace.at).saturating_sub(Duration::from_nanos(1)));
                assert!(!early.affords(bytes));
                pace.pass(due);
                let is_more_than_a_second = u64::from(bytes) > bytes_per_second;
                assert!(pace.affords(bytes) || is_more_than_a_second, "{bytes} at {bytes_per_second}");
            }
        }
    }

    #[test]
    fn what_time_leaves_of_a_byte_adds_up() {
        let mut pace = Pace::new(1, Time::ZERO);
        for nanos in 0..=10 {
            pace.pass(Time::ZERO + Duration::from_millis(nanos * 100));
        }
        assert!(pace.affords(1));
    }
}
