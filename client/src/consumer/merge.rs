//! Orders the records of several partitions by their timestamps, each partition's own order kept.
//!
//! A record may go out once no other partition can still have an older one at its front: every partition has shown its
//! next record, or has ended, or has none at the moment. A partition that has none (it has read up to its high
//! watermark and waits for more) holds up nobody; what comes to it later goes out then, even if it is older than what
//! went out before. So without `follow` the order is complete, and with it as good as what has been written.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use quire_protocol::Timestamp;

/// What is known of a partition's next record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Front {
    /// Not there yet: nothing may go out before it.
    Awaited,
    /// There, with this timestamp.
    Record(Timestamp),
    /// There is none at the moment.
    None,
}

/// The partitions' fronts.
#[derive(Debug)]
pub(super) struct Merge {
    fronts: Vec<Front>,
    awaited: usize,
    /// Every front that is a record, the oldest on top, ties by the partition's place.
    records: BinaryHeap<Reverse<(Timestamp, usize)>>,
}

impl Merge {
    /// So many partitions, each awaited.
    pub(super) fn new(partitions: usize) -> Merge {
        Merge { fronts: vec![Front::Awaited; partitions], awaited: partitions, records: BinaryHeap::new() }
    }

    pub(super) fn front(&self, place: usize) -> Front {
        self.fronts[place]
    }

    pub(super) fn set(&mut self, place: usize, front: Front) {
        match std::mem::replace(&mut self.fronts[place], front) {
            Front::Awaited => self.awaited -= 1,
            Front::Record(_) => self.records.retain(|Reverse((_, other))| *other != place),
            Front::None => {}
        }
        match front {
            Front::Awaited => self.awaited += 1,
            Front::Record(timestamp) => self.records.push(Reverse((timestamp, place))),
            Front::None => {}
        }
    }

    /// The partition whose record goes out now; it is awaited from then on.
    pub(super) fn pop(&mut self) -> Option<usize> {
        if self.awaited > 0 {
            return None;
        }
        let Reverse((_, place)) = self.records.pop()?;
        self.fronts[place] = Front::Awaited;
        self.awaited += 1;
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_goes_out_before_an_awaited_front() {
        let mut merge = Merge::new(2);
        merge.set(0, Front::Record(Timestamp(5)));
        assert_eq!(merge.pop(), None);
        merge.set(1, Front::Record(Timestamp(3)));
        assert_eq!(merge.pop(), Some(1));
        assert_eq!(merge.front(1), Front::Awaited);
        assert_eq!(merge.pop(), None, "its next one may be older than 5");
        merge.set(1, Front::None);
        assert_eq!(merge.pop(), Some(0));
    }

    #[test]
    fn a_partition_without_records_holds_up_nobody() {
        let mut merge = Merge::new(3);
        for place in 0..3 {
            merge.set(place, Front::None);
        }
        assert_eq!(merge.pop(), None);
        merge.set(1, Front::Record(Timestamp(9)));
        assert_eq!(merge.pop(), Some(1));
    }

    #[test]
    fn a_front_that_is_replaced_does_not_come_back() {
        let mut merge = Merge::new(2);
        merge.set(0, Front::Record(Timestamp(1)));
        merge.set(1, Front::Record(Timestamp(2)));
        merge.set(0, Front::Record(Timestamp(7)));
        assert_eq!(merge.pop(), Some(1));
    }

    proptest! {
        /// Against a model: repeatedly the oldest front of all partitions, ties by place.
        #[test]
        fn the_order_is_that_of_the_oldest_front(
            partitions in proptest::collection::vec(proptest::collection::vec(0i64..50, 0..30), 1..8),
        ) {
            let mut merge = Merge::new(partitions.len());
            let mut next = vec![0; partitions.len()];
            let mut out = Vec::new();
            let front = |place: usize, at: usize| {
                partitions[place].get(at).map_or(Front::None, |time| Front::Record(Timestamp(*time)))
            };
            for place in 0..partitions.len() {
                merge.set(place, front(place, 0));
            }
            while let Some(place) = merge.pop() {
                out.push((place, partitions[place][next[place]]));
                next[place] += 1;
                merge.set(place, front(place, next[place]));
            }
            let mut model_next = vec![0; partitions.len()];
            let mut model = Vec::new();
            while let Some((time, place)) = (0..partitions.len())
                .filter_map(|place| partitions[place].get(model_next[place]).map(|time| (*time, place)))
                .min()
            {
                model.push((place, time));
                model_next[place] += 1;
            }
            prop_assert_eq!(out, model);
        }
    }
}
