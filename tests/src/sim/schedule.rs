//! What happens when: virtual time, and everything that is still to come, in one order that a seed repeats.

use std::collections::BTreeMap;
use std::time::Duration;

use quire_engine::Time;

/// Everything that is still to come. Two things at the same moment happen in the order in which they were scheduled.
#[derive(Debug)]
pub struct Schedule<T> {
    now: Time,
    scheduled: u64,
    coming: BTreeMap<(Time, u64), T>,
}

impl<T> Default for Schedule<T> {
    fn default() -> Schedule<T> {
        Schedule { now: Time::ZERO, scheduled: 0, coming: BTreeMap::new() }
    }
}

impl<T> Schedule<T> {
    /// The moment of what happened last.
    pub fn now(&self) -> Time {
        self.now
    }

    /// Has something happen after so long.
    pub fn after(&mut self, delay: Duration, what: T) {
        self.at(self.now + delay, what);
    }

    /// Has something happen at a moment, or now if that is past.
    pub fn at(&mut self, moment: Time, what: T) {
        self.coming.insert((moment.max(self.now), self.scheduled), what);
        self.scheduled += 1;
    }

    /// What happens next, if that is not after `until`; time has passed then.
    pub fn next(&mut self, until: Time) -> Option<T> {
        let (&(moment, _), _) = self.coming.first_key_value()?;
        if moment > until {
            self.now = self.now.max(until);
            return None;
        }
        self.now = moment;
        self.coming.pop_first().map(|(_, what)| what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_happen_by_time_and_then_in_the_order_they_were_scheduled() {
        let mut schedule = Schedule::default();
        schedule.after(Duration::from_millis(2), "c");
        schedule.after(Duration::from_millis(1), "a");
        schedule.after(Duration::from_millis(1), "b");
        let end = Time::after_origin(Duration::from_secs(1));
        assert_eq!(std::iter::from_fn(|| schedule.next(end)).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(schedule.now(), Time::after_origin(Duration::from_millis(2)));
    }

    #[test]
    fn what_lies_beyond_the_end_does_not_happen() {
        let mut schedule = Schedule::default();
        schedule.after(Duration::from_secs(2), ());
        assert_eq!(schedule.next(Time::after_origin(Duration::from_secs(1))), None);
        assert_eq!(schedule.next(Time::after_origin(Duration::from_secs(3))), Some(()));
    }
}
