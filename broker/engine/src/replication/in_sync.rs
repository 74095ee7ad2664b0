//! How far each follower is behind, in time: who leaves the in-sync replicas, and when.

use std::time::Duration;

use quire_protocol::Offset;
use quire_protocol::topic_config::Sync;

use super::progress::Progress;
use crate::Time;

/// What a leader knows of another replica.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) progress: Progress,
    /// The registration that it followed under in this leadership; `None` if it has not followed.
    pub(super) followed_as: Option<u64>,
    lag: Lag,
}

/// How long ago a follower had everything that the leader had then.
///
/// It had at `caught_up_at`. While it has not now, `mark` is an end that the leader had at a later time: once the
/// follower reaches it, that is when it was caught up. So no history of ends has to be kept, and a follower that is
/// always less than half of the time allowed behind is never taken for a lagging one.
#[derive(Debug, Clone, Copy)]
struct Lag {
    caught_up_at: Time,
    mark: Option<Mark>,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    at: Time,
    end: Offset,
}

impl Peer {
    /// Nothing is known of it yet: it has the time that a lagging follower has to show that it is there.
    pub(super) fn unknown(now: Time, log_end: Offset) -> Peer {
        Peer {
            progress: Progress::default(),
            followed_as: None,
            lag: Lag { caught_up_at: now, mark: Some(Mark { at: now, end: log_end }) },
        }
    }

    /// The leader is about to have more than before.
    pub(super) fn log_grew(&mut self, now: Time, end: Offset) {
        if self.lag.mark.is_none() {
            self.lag = Lag { caught_up_at: now, mark: Some(Mark { at: now, end }) };
        }
    }

    /// Its progress, or what counts as safe, changed.
    pub(super) fn measure(&mut self, now: Time, sync: Sync, log_end: Offset) {
        let safe_end = self.progress.safe_end(sync);
        if self.followed_as.is_some() && safe_end >= log_end {
            self.lag = Lag { caught_up_at: now, mark: None };
            return;
        }
        let reached = match self.lag.mark {
            Some(mark) if self.followed_as.is_none() || safe_end < mark.end => return,
            Some(mark) => mark.at,
            None => self.lag.caught_up_at,
        };
        self.lag.caught_up_at = self.lag.caught_up_at.max(reached);
        self.lag.mark = Some(Mark { at: now, end: log_end });
    }

    /// From when on it is lagging, if nothing comes from it before; `None` while it has everything.
    pub(super) fn lags_at(&self, lag_max: Duration) -> Option<Time> {
        self.lag.mark.map(|_| self.lag.caught_up_at + lag_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAG_MAX: Duration = Duration::from_millis(100);

    fn at(ms: u64) -> Time {
        Time::after_origin(Duration::from_millis(ms))
    }

    /// A follower that had all ten records at the start.
    fn caught_up() -> Peer {
        let mut peer = Peer::unknown(at(0), Offset(10));
        peer.followed_as = Some(1);
        reached(&mut peer, 0, 10, 10);
        assert_eq!(peer.lags_at(LAG_MAX), None);
        peer
    }

    fn reached(peer: &mut Peer, now: u64, end: u64, log_end: u64) {
        peer.progress = Progress { log_end: Offset(end), durable_end: Offset(end) };
        peer.measure(at(now), Sync::Always, Offset(log_end));
    }

    #[test]
    fn a_follower_with_everything_never_lags_however_long_nothing_comes() {
        let mut peer = caught_up();
        peer.log_grew(at(5000), Offset(11));
        assert_eq!(peer.lags_at(LAG_MAX), Some(at(5100)), "counted from when there was more");
        peer.log_grew(at(5050), Offset(12));
        assert_eq!(peer.lags_at(LAG_MAX), Some(at(5100)), "more does not give it more time");
        reached(&mut peer, 5060, 12, 12);
        assert_eq!(peer.lags_at(LAG_MAX), None);
    }

    #[test]
    fn a_follower_that_is_always_a_little_behind_stays() {
        let mut peer = caught_up();
        // Ten records every 10 ms, of which it has all but the last ten.
        for round in 1..100 {
            let now = 10 * round;
            peer.log_grew(at(now), Offset(10 + now));
            reached(&mut peer, now + 1, now, 10 + now);
            assert!(peer.lags_at(LAG_MAX).is_none_or(|due| due > at(now + 10)), "at {now}");
        }
    }

    #[test]
    fn a_follower_that_comes_ever_later_leaves_though_it_always_moves() {
        let mut peer = caught_up();
        let mut gone_at = None;
        for round in 1..100 {
            let now = 10 * round;
            peer.log_grew(at(now), Offset(10 + now));
            reached(&mut peer, now + 1, 10 + now / 2, 10 + now);
            if peer.lags_at(LAG_MAX).is_some_and(|due| due <= at(now + 1)) {
                gone_at.get_or_insert(now);
            }
        }
        assert!(gone_at.is_some_and(|at| at <= 300), "it is half of all time behind: {gone_at:?}");
    }

    #[test]
    fn who_never_followed_lags_from_the_start() {
        let mut peer = Peer::unknown(at(7), Offset::ZERO);
        peer.measure(at(50), Sync::Always, Offset::ZERO);
        assert_eq!(peer.lags_at(LAG_MAX), Some(at(107)));
    }
}
