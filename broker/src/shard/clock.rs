//! The time, as the edge of the broker's loops sees it.

use std::fmt::Debug;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use quire_engine::Time;
use quire_protocol::Timestamp;

/// One look at both clocks, taken once a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// For deadlines: never goes back.
    pub time: Time,
    /// For users: the wall clock, which may jump.
    pub timestamp: Timestamp,
}

/// Where the time comes from.
pub trait Clock: Debug + Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> Now;
}

/// The operating system's clocks.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    /// A clock whose time begins now.
    pub fn new() -> SystemClock {
        SystemClock { origin: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> SystemClock {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now {
            time: Time::after_origin(self.origin.elapsed()),
            timestamp: Timestamp(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)),
        }
    }
}
