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

/// Names one thing that is to come, so that it can be called off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(Time, u64);

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
    pub fn after(&mut self, delay: Duration, what: T) -> Ticket {
        self.at(self.now + delay, what)
    }

    /// Has something happen at a moment, or now if that is past.
    pub fn at(&mut self, moment: Time, what: T) -> Ticket {
        let ticket = Ticket(moment.max(self.now), self.scheduled);
        self.scheduled += 1;
        self.coming.insert((ticket.0, ticket.1), what);
        ticket
    }

    /// Takes back what was scheduled; `None` if it has happened.
    pub fn call_off(&mut self, ticket: Ticket) -> Option<T> {
        self.coming.remove(&(ticket.0, ticket.1))
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

    /// How much is still to come.
    pub fn len(&self) -> usize {
        self.coming.len()
    }

    /// Whether nothing is to come.
    pub fn is_empty(&self) -> bool {
        self.coming.is_empty()
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
        let off = schedule.after(Duration::from_millis(1), "never");
        assert_eq!(schedule.call_off(off), Some("never"));
        let end = Time::after_origin(Duration::from_secs(1));
        assert_eq!(std::iter::from_fn(|| schedule.next(end)).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(schedule.now(), Time::after_origin(Duration::from_millis(2)));
    }

    #[test]
    fn what_lies_beyond_the_end_does_not_happen() {
        let mut schedule = Schedule::default();
        schedule.after(Duration::from_secs(2), ());
        assert_eq!(schedule.next(Time::after_origin(Duration::from_secs(1))), None);
        assert_eq!(schedule.len(), 1);
    }
}
