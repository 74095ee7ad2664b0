//! How much more a broker may send: as much as its partition's share of memory has room for.

/// The credit of one partition's stream (bytes).
#[derive(Debug)]
pub(super) struct Credit {
    /// The partition's share of the consumer's memory.
    share: i64,
    /// Received and not yet used up.
    held: i64,
    /// What the broker may send; negative if its last frame overdrew it.
    at_broker: i64,
}

impl Credit {
    pub(super) fn new(share: u64) -> Credit {
        Credit { share: i64::try_from(share).unwrap_or(i64::MAX), held: 0, at_broker: 0 }
    }

    /// A stream opens: what it may send at first.
    pub(super) fn open(&mut self) -> u64 {
        self.at_broker = (self.share - self.held).max(0);
        self.at_broker as u64
    }

    pub(super) fn received(&mut self, bytes: usize) {
        self.held += bytes as i64;
        self.at_broker -= bytes as i64;
    }

    pub(super) fn released(&mut self, bytes: u64) {
        self.held -= bytes as i64;
    }

    /// What to grant now, if it is worth a message: half of the share, or anything if nothing is left to use up.
    pub(super) fn grant(&mut self) -> Option<u64> {
        let room = self.share - self.held - self.at_broker;
        if room > 0 && (room >= self.share / 2 || self.held == 0) {
            self.at_broker += room;
            return Some(room as u64);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_overdrawn_credit_is_paid_back_before_more_comes() {
        let mut credit = Credit::new(100);
        assert_eq!(credit.open(), 100);
        credit.received(250);
        assert_eq!(credit.grant(), None);
        credit.released(250);
        assert_eq!(credit.grant(), Some(250), "the broker stands at -150 and then at 100 again");
        assert_eq!(credit.grant(), None);
    }

    #[test]
    fn a_stream_that_is_opened_again_gets_only_what_is_free() {
        let mut credit = Credit::new(100);
        credit.open();
        credit.received(70);
        assert_eq!(credit.open(), 30);
        credit.received(40);
        assert_eq!(credit.open(), 0);
        credit.released(110);
        assert_eq!(credit.grant(), Some(100));
    }

    proptest! {
        /// A broker that sends whole frames while it has credit: memory never exceeds the share by more than a frame,
        /// and whoever uses up everything always gets more.
        #[test]
        fn memory_is_bounded_and_nothing_gets_stuck(
            share in 1u64..10_000, frames in proptest::collection::vec((1usize..3000, any::<bool>()), 1..200),
        ) {
            let mut credit = Credit::new(share);
            let mut at_broker = credit.open() as i64;
            let mut held = std::collections::VecDeque::new();
            for (frame, uses_up) in frames {
                if at_broker > 0 {
                    at_broker -= frame as i64;
                    credit.received(frame);
                    held.push_back(frame);
                } else {
                    prop_assert!(!held.is_empty(), "stuck");
                }
                prop_assert!(held.iter().sum::<usize>() < share as usize + 3000);
                if uses_up || at_broker <= 0 {
                    let used = held.pop_front().unwrap_or(0);
                    credit.released(used as u64);
                }
                at_broker += credit.grant().unwrap_or(0) as i64;
            }
        }
    }
}
