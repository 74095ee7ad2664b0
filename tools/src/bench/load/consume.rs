//! One consumer: takes records as they come, and times those that were sent for the measurement.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt;
use quire_client::{Client, ConsumeError, ConsumedRecord, Consumer, PartitionIndex, Position};
use tokio::sync::{Notify, watch};

use crate::bench::measure::{Clock, Meter, Tally};
use crate::bench::payload::{Phase, Stamp};

/// Records taken between two looks at whether it is over.
const RECORDS_PER_TURN: usize = 256;

/// Which records count, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counting {
    /// All; they are not timed.
    Every,
    /// Those that were sent for the measurement, with their latency from when they were due.
    Measured,
}

/// How many records consumers have, for whoever waits for the last of them.
#[derive(Debug)]
pub struct Arrivals {
    count: AtomicU64,
    awaited: AtomicU64,
    reached: Notify,
    /// When records came last (nanoseconds of the load's clock).
    last_ns: AtomicU64,
}

impl Default for Arrivals {
    fn default() -> Arrivals {
        Arrivals {
            count: AtomicU64::new(0),
            awaited: AtomicU64::new(u64::MAX),
            reached: Notify::new(),
            last_ns: AtomicU64::new(0),
        }
    }
}

impl Arrivals {
    /// Records so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// When records came last (nanoseconds of the load's clock).
    pub fn last_ns(&self) -> u64 {
        self.last_ns.load(Ordering::Acquire)
    }

    /// Waits until there are so many.
    pub async fn reach(&self, count: u64) {
        self.awaited.store(count, Ordering::SeqCst);
        while self.count.load(Ordering::SeqCst) < count {
            self.reached.notified().await;
        }
    }

    fn add(&self, records: u64, now_ns: u64) {
        self.last_ns.fetch_max(now_ns, Ordering::AcqRel);
        let count = self.count.fetch_add(records, Ordering::SeqCst) + records;
        if count >= self.awaited.load(Ordering::SeqCst) {
            self.reached.notify_one();
        }
    }
}

/// A consumer with a connection of its own.
#[derive(Debug, Clone)]
pub struct LoadConsumer {
    /// Its connection.
    pub client: Client,
    /// What it reads.
    pub topic: Arc<str>,
    /// Its partitions, which no other consumer reads.
    pub partitions: Vec<PartitionIndex>,
    /// The load's clock.
    pub clock: Clock,
    /// Where it counts.
    pub meter: Arc<Meter>,
    /// Where all consumers count together.
    pub arrivals: Arc<Arrivals>,
}

impl LoadConsumer {
    /// Opens its streams at the beginning; `follow` for what is yet to come.
    ///
    /// # Errors
    /// If the topic can not be read.
    pub async fn open(&self, follow: bool) -> Result<Consumer, ConsumeError> {
        let consumer = self.client.consumer().topic(&*self.topic).partitions(self.partitions.iter().copied());
        consumer.from(Position::Beginning).follow(follow).build().await
    }

    /// Takes records until the consumer's end, or until it is over.
    ///
    /// # Errors
    /// If a partition can not be read any further.
    pub async fn run(
        &self,
        mut consumer: Consumer,
        counting: Counting,
        is_over: &mut watch::Receiver<bool>,
    ) -> Result<(), ConsumeError> {
        loop {
            let first = tokio::select! {
                biased;
                next = consumer.next() => next,
                _ = is_over.wait_for(|over| *over) => return Ok(()),
            };
            let Some(first) = first else { return Ok(()) };
            self.take(first?, &mut consumer, counting)?;
            if *is_over.borrow() {
                return Ok(());
            }
            // A consumer that always has records would leave its thread to nobody else.
            tokio::task::consume_budget().await;
        }
    }

    /// Counts a record, and those behind it that are there already.
    fn take(
        &self,
        first: ConsumedRecord,
        consumer: &mut Consumer,
        counting: Counting,
    ) -> Result<(), ConsumeError> {
        let mut tally = self.meter.tally();
        let mut counted = u64::from(self.count(&first, counting, &mut tally));
        for _ in 1..RECORDS_PER_TURN {
            let Some(Some(next)) = consumer.next().now_or_never() else { break };
            counted += u64::from(self.count(&next?, counting, &mut tally));
        }
        drop(tally);
        if counted > 0 {
            self.arrivals.add(counted, self.clock.now_ns());
        }
        Ok(())
    }

    fn count(&self, record: &ConsumedRecord, counting: Counting, tally: &mut Tally) -> bool {
        let value = record.value.as_deref().unwrap_or_default();
        let bytes = (record.key.as_ref().map_or(0, |key| key.len()) + value.len()) as u64;
        if counting == Counting::Every {
            tally.count(bytes);
            return true;
        }
        let measured = Stamp::decode(value).filter(|stamp| stamp.phase == Phase::Measured);
        if let Some(stamp) = measured {
            tally.count_with(bytes, self.clock.now_ns().saturating_sub(stamp.time_ns));
        }
        measured.is_some()
    }
}

/// The partitions of one of `consumers`: every partition has one reader.
pub fn partitions_of(consumer: u32, consumers: u32, partitions: u32) -> Vec<PartitionIndex> {
    (consumer..partitions).step_by(consumers as usize).map(PartitionIndex).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_partition_has_one_reader() {
        for (consumers, partitions) in [(1, 1), (2, 8), (3, 8), (8, 8)] {
            let mut all: Vec<_> =
                (0..consumers).flat_map(|consumer| partitions_of(consumer, consumers, partitions)).collect();
            all.sort_unstable();
            assert_eq!(all, (0..partitions).map(PartitionIndex).collect::<Vec<_>>());
        }
    }

    #[tokio::test]
    async fn the_last_arrival_wakes_whoever_waits_for_it() {
        let arrivals = Arc::new(Arrivals::default());
        arrivals.add(1, 5);
        let waiting = tokio::spawn({
            let arrivals = Arc::clone(&arrivals);
            async move { arrivals.reach(3).await }
        });
        tokio::task::yield_now().await;
        arrivals.add(1, 9);
        assert!(!waiting.is_finished());
        arrivals.add(1, 7);
        waiting.await.expect("it does not panic");
        assert_eq!((arrivals.count(), arrivals.last_ns()), (3, 9));
        arrivals.reach(2).await;
    }
}
