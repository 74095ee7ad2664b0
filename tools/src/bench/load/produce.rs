//! One producer: hands records over on schedule or as fast as they are taken, and times each until its acknowledgement.

use std::sync::Arc;
use std::time::Duration;

use quire_client::{Client, Producer};

use super::outstanding::{Account, Outstanding, Sent};
use crate::bench::measure::{Clock, Meter, nanos};
use crate::bench::pacer::Gate;
use crate::bench::payload::{Phase, RecordMaker, Stamp};
use crate::bench::schedule::Schedule;

/// Work between two pauses in which other tasks of the thread have their turn; a record is one and its size more.
const WORK_PER_TURN: u64 = 64;
const BYTES_PER_WORK: u64 = 4096;

/// When records are handed over.
#[derive(Debug, Clone)]
pub enum Pace {
    /// Each as soon as the one before was taken.
    FlatOut,
    /// Each when it is due, or at once if that is over; the schedule starts at this time of the load's clock
    /// (nanoseconds).
    Scheduled {
        /// When.
        schedule: Schedule,
        /// Its start.
        start_ns: u64,
        /// Tells how many are due.
        gate: Arc<Gate>,
    },
}

/// What ends a part of the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// So many records.
    Records(u64),
    /// This time of the load's clock (nanoseconds).
    Until(u64),
}

/// A part of the load: before the measurement, or measured.
#[derive(Debug, Clone)]
pub struct Part {
    /// What its records are there for.
    pub phase: Phase,
    /// When they are handed over.
    pub pace: Pace,
    /// What ends it.
    pub limit: Limit,
}

/// A producer with a connection of its own.
#[derive(Debug)]
pub struct LoadProducer {
    number: u32,
    client: Client,
    producer: Producer,
    topic: Arc<str>,
    maker: RecordMaker,
    next_sequence: u64,
    in_flight_max: usize,
    clock: Clock,
    meter: Arc<Meter>,
    outstanding: Outstanding,
    account: Account,
    /// Work since the last pause.
    work: u64,
}

/// What a [`LoadProducer`] is made of.
#[derive(Debug)]
pub struct LoadProducerParts {
    /// Its number.
    pub number: u32,
    /// Its connection.
    pub client: Client,
    /// What sends.
    pub producer: Producer,
    /// Where to.
    pub topic: Arc<str>,
    /// What makes its records.
    pub maker: RecordMaker,
    /// Unacknowledged records it may have.
    pub in_flight_max: usize,
    /// The load's clock.
    pub clock: Clock,
    /// Where it counts.
    pub meter: Arc<Meter>,
}

impl LoadProducer {
    /// A producer that has sent nothing.
    pub fn new(parts: LoadProducerParts) -> LoadProducer {
        let LoadProducerParts { number, client, producer, topic, maker, in_flight_max, clock, meter } = parts;
        LoadProducer {
            number,
            client,
            producer,
            topic,
            maker,
            next_sequence: 0,
            in_flight_max,
            clock,
            meter,
            outstanding: Outstanding::default(),
            account: Account::default(),
            work: 0,
        }
    }

    /// What it counts into.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Records handed over or refused so far: their sequences are below it.
    pub fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// What became of its records.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// Sends this part's records and waits until the last of them is acknowledged or has failed. A failure that no
    /// retry mends ends it early.
    pub async fn run(&mut self, part: &Part) {
        let mut number = 0;
        while !self.is_over(part.limit, number) {
            let since_ns = match &part.pace {
                Pace::FlatOut => None,
                Pace::Scheduled { schedule, start_ns, gate } => {
                    self.wait_until_due(number, gate).await;
                    Some(start_ns + nanos(schedule.due(self.number, number)))
                }
            };
            while self.outstanding.len() >= self.in_flight_max {
                self.arrived().await;
            }
            self.send(part.phase, since_ns.unwrap_or_else(|| self.clock.now_ns())).await;
            number += 1;
        }
        while !self.outstanding.is_empty() {
            self.arrived().await;
        }
    }

    /// Takes leave of the broker.
    pub async fn close(self) {
        // Everything was awaited, so that nothing is left to fail.
        let _ = self.producer.close().await;
        self.client.close().await;
    }

    fn is_over(&self, limit: Limit, number: u64) -> bool {
        let is_hopeless = self.account.first_failure.as_ref().is_some_and(|error| !error.is_retriable());
        is_hopeless
            || match limit {
                Limit::Records(records) => number >= records,
                Limit::Until(time_ns) => self.clock.now_ns() >= time_ns,
            }
    }

    async fn wait_until_due(&mut self, number: u64, gate: &Gate) {
        while gate.due() <= number {
            tokio::select! {
                biased;
                () = gate.changed() => {}
                () = self.outstanding.arrived(self.clock, &self.meter, &mut self.account) => {}
            }
        }
    }

    async fn arrived(&mut self) {
        self.outstanding.arrived(self.clock, &self.meter, &mut self.account).await;
    }

    async fn send(&mut self, phase: Phase, since_ns: u64) {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let stamp = Stamp { producer: self.number, phase, sequence, time_ns: since_ns };
        let (record, bytes) = self.maker.make(stamp);
        let enqueued = {
            let mut enqueue = std::pin::pin!(self.producer.enqueue(&self.topic, record));
            loop {
                tokio::select! {
                    biased;
                    enqueued = &mut enqueue => break enqueued,
                    () = self.outstanding.arrived(self.clock, &self.meter, &mut self.account) => {}
                }
            }
        };
        match enqueued {
            Ok(delivery) => self.outstanding.push(Sent { delivery, sequence, bytes, since_ns }),
            Err(error) => self.account.fail(sequence, error),
        }
        self.work += 1 + bytes / BYTES_PER_WORK;
        if self.work >= WORK_PER_TURN {
            self.work = 0;
            // Sending may never have to wait: whoever shares this thread would not run, nor would arrivals be seen.
            tokio::task::yield_now().await;
            self.outstanding.take_arrived(self.clock, &self.meter, &mut self.account).await;
        }
    }
}

/// How many of `total` records fall to this one of `producers`.
pub fn share(total: u64, producers: u32, producer: u32) -> u64 {
    let (each, rest) = (total / u64::from(producers), total % u64::from(producers));
    each + u64::from(u64::from(producer) < rest)
}

/// How many records are due of a producer before the end of a part of this length.
pub fn due_before(schedule: Schedule, producer: u32, length: Duration) -> u64 {
    schedule.due_count(producer, length.saturating_sub(Duration::from_nanos(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up() {
        for (total, producers) in [(0, 3), (2, 3), (10, 3), (2000, 7)] {
            let sum: u64 = (0..producers).map(|producer| share(total, producers, producer)).sum();
            assert_eq!(sum, total);
        }
    }

    #[test]
    fn a_scheduled_part_has_as_many_records_as_its_rate_says() {
        let schedule = Schedule::new(1000.0, 3);
        let sum: u64 = (0..3).map(|producer| due_before(schedule, producer, Duration::from_secs(2))).sum();
        assert_eq!(sum, 2000);
    }
}
