//! When a broker says that it is there, and what it knows of itself from the answers. Pure.

use std::time::Duration;

use quire_engine::Time;

/// A broker's heartbeat.
#[derive(Debug)]
pub(super) struct Pulse {
    interval: Duration,
    session: Duration,
    /// When the next one is due.
    due: Time,
    /// One is under way; there is never more than one.
    is_under_way: bool,
    /// When the last one that was accepted was sent: the controller's session began no earlier.
    accepted: Option<Time>,
    standing: Standing,
}

/// How a broker stands with the controller, by the last accepted answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Standing {
    pub(super) is_fenced: bool,
    pub(super) may_stop: bool,
}

/// What became of a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Accepted(Standing),
    /// Another broker is the controller, or none: the next one goes out at once, but for a breath.
    Elsewhere,
    /// No answer.
    Lost,
}

impl Pulse {
    /// The pause after a controller that was not one: long enough for it to learn who is.
    const BREATH: Duration = Duration::from_millis(50);

    pub(super) fn new(now: Time, interval: Duration, session: Duration) -> Pulse {
        Pulse {
            interval,
            session,
            due: now,
            is_under_way: false,
            accepted: None,
            standing: Standing { is_fenced: true, may_stop: false },
        }
    }

    /// When to look again; `None` while a heartbeat is under way.
    pub(super) fn deadline(&self) -> Option<Time> {
        (!self.is_under_way).then_some(self.due)
    }

    /// Whether to send one now; then it is under way.
    pub(super) fn begin(&mut self, now: Time) -> bool {
        let is_due = !self.is_under_way && now >= self.due;
        self.is_under_way |= is_due;
        if is_due {
            self.due = now + self.interval;
        }
        is_due
    }

    /// How long to wait for an answer: no longer than the next one can wait.
    pub(super) fn patience(&self) -> Duration {
        (self.session / 2).max(self.interval)
    }

    pub(super) fn ended(&mut self, now: Time, sent: Time, outcome: Outcome) {
        self.is_under_way = false;
        match outcome {
            Outcome::Accepted(standing) => {
                self.accepted = Some(sent);
                self.standing = standing;
            }
            Outcome::Elsewhere => self.due = self.due.min(now + Pulse::BREATH),
            Outcome::Lost => {}
        }
    }

    /// Send the next one without waiting for its time: there is news.
    pub(super) fn hurry(&mut self, now: Time) {
        self.due = self.due.min(now);
    }

    pub(super) fn standing(&self) -> Standing {
        self.standing
    }

    /// Whether the controller may have fenced this broker by now, for all that it knows.
    pub(super) fn has_lapsed(&self, now: Time) -> bool {
        self.accepted.is_none_or(|accepted| now.since(accepted) >= self.session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::after_origin(Duration::from_millis(ms))
    }

    fn pulse() -> Pulse {
        Pulse::new(at(0), Duration::from_millis(200), Duration::from_secs(1))
    }

    const WELL: Outcome = Outcome::Accepted(Standing { is_fenced: false, may_stop: false });

    #[test]
    fn one_goes_out_each_interval_counted_from_the_last_and_never_two_at_once() {
        let mut pulse = pulse();
        assert!(pulse.begin(at(0)) && !pulse.begin(at(0)));
        assert_eq!(pulse.deadline(), None);
        assert!(!pulse.begin(at(500)), "the first is under way");
        pulse.ended(at(510), at(0), WELL);
        assert!(pulse.begin(at(510)), "the second is overdue");
        pulse.ended(at(520), at(510), WELL);
        assert_eq!(pulse.deadline(), Some(at(710)));
        assert!(!pulse.begin(at(709)) && pulse.begin(at(710)));
    }

    #[test]
    fn a_controller_that_is_none_is_asked_again_soon_and_news_do_not_wait() {
        let mut pulse = pulse();
        assert!(pulse.begin(at(0)));
        pulse.ended(at(3), at(0), Outcome::Elsewhere);
        assert_eq!(pulse.deadline(), Some(at(53)));
        pulse.hurry(at(10));
        assert!(pulse.begin(at(10)));
        pulse.ended(at(11), at(10), Outcome::Lost);
        assert_eq!(pulse.deadline(), Some(at(210)), "what gives no answer is not pressed");
    }

    #[test]
    fn a_broker_counts_its_session_from_when_it_sent_what_was_accepted() {
        let mut pulse = pulse();
        assert!(pulse.has_lapsed(at(0)) && pulse.standing().is_fenced, "it was never accepted");
        assert!(pulse.begin(at(0)));
        // The answer took long: the controller may have counted from any moment since.
        pulse.ended(at(400), at(0), WELL);
        assert!(!pulse.standing().is_fenced);
        assert!(!pulse.has_lapsed(at(999)) && pulse.has_lapsed(at(1000)));
        assert!(pulse.begin(at(400)));
        pulse.ended(at(900), at(400), Outcome::Lost);
        assert!(pulse.has_lapsed(at(1000)), "no answer extends nothing");
    }
}
