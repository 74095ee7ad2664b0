//! The tape: when each record of a replay is due. Pure: time is passed in.
//!
//! ```text
//! recorded   t0 ─────────── t1 ───── t2 ──────────────────────────── t3     timestamps
//! played     anchor ─ /speed ─ t1 ─ t2 ─ longest silence ─ t3               this machine's clock
//! ```
//! One anchor says which moment of the recording is played when, and every due time is counted from it and not from the
//! record before: what is handed out late does not make later records late. It moves when the speed changes, when a
//! silence is cut short, when the tape stood still, and when a record is later than [`LATENESS_MAX`], since whoever
//! stood still for longer is not to be flooded afterwards.

use std::time::{Duration, Instant};

use quire_protocol::Timestamp;

/// A record may be handed out so late without the ones after it being put off as well: a shorter stall, of the broker or
/// of whoever takes the records, is caught up with, a longer one shifts everything behind it.
pub(super) const LATENESS_MAX: Duration = Duration::from_secs(1);
/// Longer than anybody waits: what is due later is due then.
const WAIT_MAX: Duration = Duration::from_secs(100 * 365 * 86_400);

/// How fast a recording is replayed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Speed {
    /// As it was recorded.
    Recorded,
    /// So many times as fast: 10.0 plays an hour in six minutes, 0.5 in two hours. Finite and above 0.
    Times(f64),
    /// Without pauses, as fast as records are read and taken.
    FlatOut,
}

/// A speed that is no number above 0.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("a replay can not run at {0} times the recorded speed: use a number above 0, or flat out")]
pub struct InvalidSpeed(f64);

impl Speed {
    /// Recorded time that passes in each moment of ours; `None` is all of it.
    pub(super) fn factor(self) -> Result<Option<f64>, InvalidSpeed> {
        match self {
            Speed::Recorded => Ok(Some(1.0)),
            Speed::Times(factor) if factor.is_finite() && factor > 0.0 => Ok(Some(factor)),
            Speed::Times(factor) => Err(InvalidSpeed(factor)),
            Speed::FlatOut => Ok(None),
        }
    }
}

/// When the next record is to be handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Now,
    At(Instant),
    /// Not before the tape is told to go on.
    Held,
}

/// One replay's tape.
#[derive(Debug, Clone)]
pub(super) struct Tape {
    speed: Speed,
    factor: Option<f64>,
    /// Longest silence, in the time that one waits.
    gap_max: Option<Duration>,
    /// `None` before the first record.
    head: Option<Head>,
    motion: Motion,
}

/// Where the tape stands.
#[derive(Debug, Clone, Copy)]
struct Head {
    /// The anchor: this moment of the recording (ms since 1970; parts of milliseconds count) …
    recorded_ms: f64,
    /// … is played at this one.
    played_at: Instant,
    /// The latest timestamp handed out so far, and when it was due.
    last: Timestamp,
    last_due: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Motion {
    Running,
    /// Time stands still. So many records are handed out nevertheless.
    Paused {
        since: Instant,
        steps: u64,
    },
}

impl Tape {
    /// A tape that starts with the first record, whenever that comes: what is silent before it is not waited for.
    ///
    /// # Errors
    /// If the speed is none.
    pub(super) fn new(speed: Speed, gap_max: Option<Duration>) -> Result<Tape, InvalidSpeed> {
        Ok(Tape { speed, factor: speed.factor()?, gap_max, head: None, motion: Motion::Running })
    }

    pub(super) fn speed(&self) -> Speed {
        self.speed
    }

    pub(super) fn is_paused(&self) -> bool {
        self.motion != Motion::Running
    }

    /// When the next record, which has this timestamp, is due. One that is not later than what was handed out is due
    /// at once.
    pub(super) fn due(&self, now: Instant, timestamp: Timestamp) -> Due {
        match self.motion {
            Motion::Paused { steps: 0, .. } => Due::Held,
            Motion::Paused { .. } => Due::Now,
            Motion::Running => match self.due_at(timestamp) {
                Some((at, _)) if at > now => Due::At(at),
                _ => Due::Now,
            },
        }
    }

    /// The next record, which has this timestamp, is handed out.
    pub(super) fn handed_out(&mut self, now: Instant, timestamp: Timestamp) {
        let now = self.standing(now);
        let due = self.due_at(timestamp);
        let is_step = self.is_paused();
        if let Motion::Paused { steps, .. } = &mut self.motion {
            *steps = steps.saturating_sub(1);
        }
        let last = self.head.map_or(timestamp, |head| head.last.max(timestamp));
        let at_once = Head { recorded_ms: last.0 as f64, played_at: now, last, last_due: now };
        self.head = Some(match (self.head, due) {
            (Some(head), Some((at, is_cut_short))) if !is_step && now <= at + LATENESS_MAX => {
                if is_cut_short {
                    Head { recorded_ms: last.0 as f64, played_at: at, last, last_due: at }
                } else {
                    Head { last, last_due: at, ..head }
                }
            }
            _ => at_once,
        });
    }

    /// Stands still from now on.
    pub(super) fn pause(&mut self, now: Instant) {
        if !self.is_paused() {
            self.motion = Motion::Paused { since: now, steps: 0 };
        }
    }

    /// Goes on where it stood still.
    pub(super) fn resume(&mut self, now: Instant) {
        let Motion::Paused { since, .. } = self.motion else { return };
        self.motion = Motion::Running;
        if let Some(head) = &mut self.head {
            let stood_still = now.saturating_duration_since(since);
            head.played_at += stood_still;
            head.last_due += stood_still;
        }
    }

    /// Stands still, and hands out so many records more at once. The recording stands at the last of them then.
    pub(super) fn step(&mut self, now: Instant, records: u64) {
        self.pause(now);
        if let Motion::Paused { steps, .. } = &mut self.motion {
            *steps = steps.saturating_add(records);
        }
    }

    /// Plays at another speed from now on. `next` is the timestamp of the record that waits, if there is one.
    ///
    /// # Errors
    /// If the speed is none; the one before stays.
    pub(super) fn set_speed(
        &mut self,
        now: Instant,
        next: Option<Timestamp>,
        speed: Speed,
    ) -> Result<(), InvalidSpeed> {
        let factor = speed.factor()?;
        let (now, recorded_ms) = (self.standing(now), self.recorded_ms(now, next));
        if let Some((head, recorded_ms)) = self.head.as_mut().zip(recorded_ms) {
            (head.recorded_ms, head.played_at) = (recorded_ms, now);
        }
        (self.speed, self.factor) = (speed, factor);
        Ok(())
    }

    /// The moment of the recording that is played now; never beyond the record that waits. `None` before the first one.
    pub(super) fn position(&self, now: Instant, next: Option<Timestamp>) -> Option<Timestamp> {
        self.recorded_ms(now, next).map(|recorded_ms| Timestamp(recorded_ms as i64))
    }

    fn recorded_ms(&self, now: Instant, next: Option<Timestamp>) -> Option<f64> {
        let head = self.head?;
        let last = head.last.0 as f64;
        let Some(factor) = self.factor else { return Some(last) };
        let played = self.standing(now).saturating_duration_since(head.played_at);
        let reached = head.recorded_ms + played.as_secs_f64() * 1000.0 * factor;
        Some(next.map_or(reached, |next| reached.min(next.0 as f64)).max(last))
    }

    /// When this timestamp is due, and whether that is sooner than the recording says since silences are cut short.
    /// `None` is at once.
    fn due_at(&self, timestamp: Timestamp) -> Option<(Instant, bool)> {
        let (head, factor) = self.head.zip(self.factor)?;
        if timestamp <= head.last {
            return Some((head.last_due, false));
        }
        let wait_ms = (timestamp.0 as f64 - head.recorded_ms) / factor;
        let at = after(head.played_at, wait_ms / 1000.0);
        let latest = self.gap_max.map(|gap| head.last_due + gap.min(WAIT_MAX));
        Some(latest.filter(|latest| *latest < at).map_or((at, false), |latest| (latest, true)))
    }

    /// Now, or the moment since which time stands still.
    fn standing(&self, now: Instant) -> Instant {
        match self.motion {
            Motion::Running => now,
            Motion::Paused { since, .. } => since,
        }
    }
}

fn after(from: Instant, seconds: f64) -> Instant {
    // Below 0 it has been due for a while, and how long does not matter.
    from + Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(WAIT_MAX).min(WAIT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn tape(speed: Speed) -> Tape {
        Tape::new(speed, None).expect("a speed")
    }

    /// Plays these timestamps by a clock that is always on time: when each is handed out, counted from `start`.
    fn play(tape: &mut Tape, start: Instant, timestamps: &[i64]) -> Vec<Duration> {
        let mut now = start;
        let mut played = Vec::new();
        for timestamp in timestamps {
            match tape.due(now, Timestamp(*timestamp)) {
                Due::Now => {}
                Due::At(at) => now = at,
                Due::Held => panic!("nobody paused it"),
            }
            tape.handed_out(now, Timestamp(*timestamp));
            played.push(now - start);
        }
        played
    }

    #[test]
    fn records_come_in_their_recorded_time_divided_by_the_speed() {
        let timestamps = [1_000_000, 1_000_100, 1_000_100, 1_007_000];
        let expected = [
            (Speed::Recorded, [0, 100, 100, 7000]),
            (Speed::Times(10.0), [0, 10, 10, 700]),
            (Speed::Times(0.5), [0, 200, 200, 14_000]),
            (Speed::FlatOut, [0, 0, 0, 0]),
        ];
        for (speed, expected) in expected {
            let played = play(&mut tape(speed), Instant::now(), &timestamps);
            assert_eq!(played, expected.map(ms), "{speed:?}");
        }
    }

    #[test]
    fn only_numbers_above_zero_are_speeds() {
        for wrong in [0.0, -0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(Tape::new(Speed::Times(wrong), None).is_err(), "{wrong}");
            let mut tape = tape(Speed::Times(3.0));
            assert!(tape.set_speed(Instant::now(), None, Speed::Times(wrong)).is_err(), "{wrong}");
            assert_eq!(tape.speed(), Speed::Times(3.0));
        }
        let slow = Speed::Times(f64::MIN_POSITIVE);
        assert_eq!(play(&mut tape(slow), Instant::now(), &[0, 1]), [Duration::ZERO, WAIT_MAX]);
    }

    #[test]
    fn a_silence_is_cut_short_and_what_follows_keeps_its_distance() {
        let mut tape = Tape::new(Speed::Times(10.0), Some(ms(5000))).expect("a speed");
        let hour = 3_600_000;
        let played = play(&mut tape, Instant::now(), &[0, 50_000, 50_010, hour, hour + 1000]);
        assert_eq!(played, [0, 5000, 5001, 10_001, 10_101].map(ms));
    }

    #[test]
    fn what_is_not_later_than_what_went_out_is_due_at_once() {
        let played = play(&mut tape(Speed::Recorded), Instant::now(), &[1000, 3000, 500, 2999, 4000]);
        assert_eq!(played, [0, 2000, 2000, 2000, 3000].map(ms));
    }

    #[test]
    fn a_short_stall_is_caught_up_with_and_a_long_one_shifts_the_rest() {
        let start = Instant::now();
        for (stall, expected) in [(ms(900), 2000), (ms(1001), 3001), (ms(60_000), 62_000)] {
            let mut tape = tape(Speed::Recorded);
            tape.handed_out(start, Timestamp(0));
            assert_eq!(tape.due(start, Timestamp(1000)), Due::At(start + ms(1000)));
            tape.handed_out(start + ms(1000) + stall, Timestamp(1000));
            assert_eq!(tape.due(start, Timestamp(2000)), Due::At(start + ms(expected)), "{stall:?}");
        }
    }

    #[test]
    fn while_it_is_paused_only_steps_go_out_and_time_stands_still() {
        let start = Instant::now();
        let mut tape = tape(Speed::Times(2.0));
        tape.handed_out(start, Timestamp(0));
        tape.pause(start + ms(1000));
        tape.pause(start + ms(1500));
        let later = start + ms(50_000);
        assert_eq!(tape.due(later, Timestamp(4000)), Due::Held);
        assert_eq!(tape.position(later, Some(Timestamp(4000))), Some(Timestamp(2000)));
        tape.step(later, 2);
        for timestamp in [4000, 5000] {
            assert_eq!(tape.due(later, Timestamp(timestamp)), Due::Now);
            tape.handed_out(later, Timestamp(timestamp));
        }
        assert_eq!(tape.due(later, Timestamp(6000)), Due::Held);
        assert_eq!(tape.position(later, None), Some(Timestamp(5000)));
        tape.resume(later);
        assert_eq!(tape.due(later, Timestamp(6000)), Due::At(later + ms(500)), "from the last step on");
    }

    #[test]
    fn a_pause_puts_the_rest_off_by_as_long_as_it_lasted() {
        let start = Instant::now();
        let mut tape = Tape::new(Speed::Recorded, Some(ms(5000))).expect("a speed");
        tape.handed_out(start, Timestamp(0));
        tape.pause(start + ms(400));
        tape.resume(start + ms(10_400));
        assert_eq!(tape.due(start, Timestamp(1000)), Due::At(start + ms(11_000)));
        assert_eq!(tape.due(start, Timestamp(100_000)), Due::At(start + ms(15_000)), "the silence as well");
    }

    #[test]
    fn a_new_speed_counts_from_where_the_tape_stands() {
        let start = Instant::now();
        let mut tape = Tape::new(Speed::Recorded, Some(ms(5000))).expect("a speed");
        let next = Timestamp(4000);
        tape.handed_out(start, Timestamp(0));
        tape.set_speed(start + ms(2000), Some(next), Speed::Times(4.0)).expect("a speed");
        assert_eq!(tape.due(start, next), Due::At(start + ms(2500)));
        assert_eq!(
            tape.due(start, Timestamp(1_000_000)),
            Due::At(start + ms(5000)),
            "the silence began before"
        );
        tape.set_speed(start + ms(2100), Some(next), Speed::FlatOut).expect("a speed");
        assert_eq!(tape.due(start, next), Due::Now);
        tape.handed_out(start + ms(2100), next);
        tape.set_speed(start + ms(2100), None, Speed::Recorded).expect("a speed");
        assert_eq!(tape.due(start, Timestamp(5000)), Due::At(start + ms(3100)));
    }

    #[test]
    fn the_position_is_never_beyond_the_record_that_waits() {
        let start = Instant::now();
        let mut tape = tape(Speed::Recorded);
        assert_eq!(tape.position(start, None), None);
        tape.handed_out(start, Timestamp(1000));
        assert_eq!(tape.position(start + ms(10), Some(Timestamp(1500))), Some(Timestamp(1010)));
        assert_eq!(tape.position(start + ms(700), Some(Timestamp(1500))), Some(Timestamp(1500)));
        assert_eq!(tape.position(start + ms(700), Some(Timestamp(7))), Some(Timestamp(1000)));
    }

    #[test]
    fn no_timestamp_is_too_far_away() {
        let start = Instant::now();
        let mut tape = Tape::new(Speed::Recorded, Some(Duration::MAX)).expect("a speed");
        tape.handed_out(start, Timestamp(i64::MIN));
        assert_eq!(tape.due(start, Timestamp(i64::MAX)), Due::At(start + WAIT_MAX));
    }

    proptest! {
        /// Whatever the lateness of each delivery, as long as none is too late: the due time of every record is its
        /// distance from the first one, divided by the speed, and none adds up.
        #[test]
        fn lateness_does_not_add_up(
            steps in proptest::collection::vec((0i64..5000, 0u64..1000), 1..100), factor in 0.1f64..100.0,
        ) {
            let start = Instant::now();
            let mut tape = tape(Speed::Times(factor));
            tape.handed_out(start, Timestamp(0));
            let (mut now, mut timestamp) = (start, 0);
            for (gap, late) in steps {
                timestamp += gap;
                let due = after(start, timestamp as f64 / factor / 1000.0);
                match tape.due(now, Timestamp(timestamp)) {
                    Due::At(at) => {
                        prop_assert!(at.max(due) - at.min(due) < Duration::from_micros(1));
                        now = at + ms(late);
                    }
                    Due::Now => prop_assert!(due <= now),
                    Due::Held => prop_assert!(false, "nobody paused it"),
                }
                tape.handed_out(now, Timestamp(timestamp));
            }
        }

        /// Whatever is done to it: no wait is longer than the longest silence, and only what is paused is held.
        #[test]
        fn no_wait_exceeds_the_longest_silence(
            deeds in proptest::collection::vec((0u8..6, 0u64..10_000, -5000i64..50_000), 1..200),
        ) {
            let gap = ms(700);
            let mut tape = Tape::new(Speed::Recorded, Some(gap)).expect("a speed");
            let mut now = Instant::now();
            let mut timestamp = 0;
            for (deed, wait, gap_ms) in deeds {
                let next = Timestamp(timestamp + gap_ms);
                match deed {
                    0 => tape.pause(now),
                    1 => tape.resume(now),
                    2 => tape.step(now, wait % 3),
                    3 => {
                        let speed = if wait % 7 == 0 { Speed::FlatOut } else { Speed::Times(wait as f64 + 0.5) };
                        prop_assert!(tape.set_speed(now, Some(next), speed).is_ok());
                    }
                    4 => now += ms(wait),
                    _ => match tape.due(now, next) {
                        Due::Held => prop_assert!(tape.is_paused()),
                        due => {
                            if let Due::At(at) = due {
                                prop_assert!(at <= now + gap, "{:?} to wait", at - now);
                                now = at;
                            }
                            tape.handed_out(now, next);
                            timestamp = next.0;
                        }
                    },
                }
            }
        }
    }
}
