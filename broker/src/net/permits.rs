//! How many streams a client may have open at once: few at first, and more as it uses them.
//!
//! QUIC keeps a place for every stream that is permitted, used or not, and most clients use a few.

use std::sync::atomic::{AtomicU32, Ordering};

use quire_protocol::limits;

/// The streams of one connection.
#[derive(Debug)]
pub(crate) struct StreamPermits {
    open: AtomicU32,
    permitted: AtomicU32,
}

impl StreamPermits {
    /// Of a client that has not said hello.
    pub(crate) fn new() -> StreamPermits {
        StreamPermits { open: AtomicU32::new(0), permitted: AtomicU32::new(limits::STREAMS_BEFORE_HELLO) }
    }

    /// The client said hello: how many it may have open from now on, unless it had said so before.
    pub(crate) fn greeted(&self) -> Option<u32> {
        let (before, first) = (limits::STREAMS_BEFORE_HELLO, limits::STREAMS_AT_FIRST);
        self.permitted
            .compare_exchange(before, first, Ordering::AcqRel, Ordering::Acquire)
            .ok()
            .map(|_| first)
    }

    /// The client opened a stream: how many it may have open from now on, if they become more.
    pub(crate) fn opened(&self) -> Option<u32> {
        let open = self.open.fetch_add(1, Ordering::AcqRel) + 1;
        let more = |permitted: u32| {
            let is_growing = (limits::STREAMS_AT_FIRST..limits::STREAMS_MAX).contains(&permitted);
            (is_growing && open > permitted / 2).then(|| (permitted * 2).min(limits::STREAMS_MAX))
        };
        let before = self.permitted.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        before.ok().and_then(more)
    }

    /// A stream that the client opened has ended.
    pub(crate) fn ended(&self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_double_as_they_are_used_and_end_at_the_limit() {
        let permits = StreamPermits::new();
        assert_eq!(permits.opened(), None, "before hello they stay as few as they are");
        assert_eq!(permits.greeted(), Some(limits::STREAMS_AT_FIRST));
        let raised: Vec<u32> = (0..2 * limits::STREAMS_MAX).filter_map(|_| permits.opened()).collect();
        let doubled = std::iter::successors(Some(2 * limits::STREAMS_AT_FIRST), |permits| Some(permits * 2));
        let expected: Vec<u32> = doubled.take_while(|permits| *permits <= limits::STREAMS_MAX).collect();
        assert_eq!(raised, expected);
        assert_eq!(raised.last(), Some(&limits::STREAMS_MAX));
        assert_eq!(permits.greeted(), None, "another hello takes none away");
    }

    #[test]
    fn streams_one_after_another_need_no_more() {
        let permits = StreamPermits::new();
        permits.greeted();
        for _ in 0..2 * limits::STREAMS_MAX {
            assert_eq!(permits.opened(), None);
            permits.ended();
        }
    }
}
