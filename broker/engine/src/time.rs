//! The machines' time: handed in, never asked for.

use std::ops::Add;
use std::time::Duration;

/// A moment on a clock that never goes back, in nanoseconds since some origin that only its owner knows.
///
/// Wall-clock time, which users see and which may jump, is [`quire_protocol::Timestamp`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(u64);

impl Time {
    /// The clock's origin.
    pub const ZERO: Time = Time(0);

    /// The moment this long after the origin; the last representable one (584 years) if it lies beyond.
    pub fn after_origin(elapsed: Duration) -> Time {
        Time(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
    }

    /// How long after `earlier` this is; zero if it is not after it.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Time;

    fn add(self, duration: Duration) -> Time {
        Time(self.0.saturating_add(Time::after_origin(duration).0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_saturates_at_both_ends() {
        let start = Time::after_origin(Duration::from_secs(5));
        assert_eq!((start + Duration::from_millis(250)).since(start), Duration::from_millis(250));
        assert_eq!(Time::ZERO.since(start), Duration::ZERO);
        assert!(start + Duration::MAX > start);
    }
}
