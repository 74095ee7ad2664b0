//! Records on their way: each is timed when its acknowledgement is there, at the cost of one wake-up a batch.
//!
//! Batches of one partition are acknowledged in order, so that only the oldest record of each partition is waited for;
//! those behind it that were acknowledged with it are there too, and are taken without waiting.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::stream::{FuturesUnordered, Stream};
use quire_client::{Chain, Delivery, Offset, RecordMetadata, SendError};

use crate::bench::measure::{Clock, Meter};

/// A record that was handed over.
#[derive(Debug)]
pub struct Sent {
    /// What becomes of it.
    pub delivery: Delivery,
    /// Its number among those of its producer.
    pub sequence: u64,
    /// Bytes of its key and value.
    pub bytes: u64,
    /// From when on its latency counts (nanoseconds of the load's clock).
    pub since_ns: u64,
}

/// What became of records.
#[derive(Debug, Default)]
pub struct Account {
    /// Sequences that were refused or timed out.
    pub failed: Vec<u64>,
    /// Why the first of them failed.
    pub first_failure: Option<SendError>,
    /// When the last acknowledgement came (nanoseconds of the load's clock).
    pub last_ns: u64,
    /// The newest acknowledged record of each partition, and the chain up to its batch.
    pub chains: BTreeMap<u32, (Offset, Chain)>,
}

impl Account {
    /// A record that will never be acknowledged.
    pub fn fail(&mut self, sequence: u64, error: SendError) {
        self.failed.push(sequence);
        self.first_failure.get_or_insert(error);
    }
}

/// One producer's records on their way.
#[derive(Debug, Default)]
pub struct Outstanding {
    /// The oldest record of each partition that has any.
    fronts: FuturesUnordered<Front>,
    /// What is behind them, by partition.
    lanes: Vec<VecDeque<Sent>>,
    /// Whether a partition's oldest is among the fronts.
    has_front: Vec<bool>,
    count: usize,
}

impl Outstanding {
    /// Records on their way.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds a record, which is the newest of its partition.
    pub fn push(&mut self, sent: Sent) {
        let lane = sent.delivery.partition().0 as usize;
        if lane >= self.lanes.len() {
            self.lanes.resize_with(lane + 1, VecDeque::new);
            self.has_front.resize(lane + 1, false);
        }
        self.count += 1;
        if self.has_front[lane] {
            self.lanes[lane].push_back(sent);
        } else {
            self.has_front[lane] = true;
            self.fronts.push(Front { lane, sent: Some(sent) });
        }
    }

    /// Waits until records have arrived, and takes all that have; for ever if there are none. Dropping the future loses
    /// nothing.
    pub async fn arrived(&mut self, clock: Clock, meter: &Meter, account: &mut Account) {
        std::future::poll_fn(|context| self.poll_arrived(context, clock, meter, account)).await;
    }

    /// Takes what has arrived by now.
    pub async fn take_arrived(&mut self, clock: Clock, meter: &Meter, account: &mut Account) {
        std::future::poll_fn(|context| {
            let _ = self.poll_arrived(context, clock, meter, account);
            Poll::Ready(())
        })
        .await;
    }

    fn poll_arrived(
        &mut self,
        context: &mut Context<'_>,
        clock: Clock,
        meter: &Meter,
        account: &mut Account,
    ) -> Poll<()> {
        let Poll::Ready(Some(first)) = Pin::new(&mut self.fronts).poll_next(context) else {
            return Poll::Pending;
        };
        let now_ns = clock.now_ns();
        let mut arrival = Arrival { now_ns, meter, account };
        self.take_lane(first, context, &mut arrival);
        while let Poll::Ready(Some(next)) = Pin::new(&mut self.fronts).poll_next(context) {
            self.take_lane(next, context, &mut arrival);
        }
        Poll::Ready(())
    }

    /// Takes a front that arrived, and everything behind it that did too.
    fn take_lane(&mut self, front: Arrived, context: &mut Context<'_>, arrival: &mut Arrival<'_>) {
        let Arrived { lane, sent, outcome } = front;
        let mut tally = arrival.meter.tally();
        let mut newest = None;
        let mut take = |sent: &Sent, outcome: Result<RecordMetadata, SendError>| match outcome {
            Ok(metadata) => {
                tally.count_with(sent.bytes, arrival.now_ns.saturating_sub(sent.since_ns));
                newest = Some((metadata.offset, metadata.chain));
            }
            Err(error) => arrival.account.fail(sent.sequence, error),
        };
        take(&sent, outcome);
        let mut taken = 1;
        while let Some(next) = self.lanes[lane].front_mut() {
            let Poll::Ready(outcome) = Pin::new(&mut next.delivery).poll(context) else { break };
            take(next, outcome);
            self.lanes[lane].pop_front();
            taken += 1;
        }
        self.count -= taken;
        arrival.account.last_ns = arrival.now_ns;
        arrival.account.chains.extend(newest.map(|newest| (lane as u32, newest)));
        match self.lanes[lane].pop_front() {
            Some(next) => self.fronts.push(Front { lane, sent: Some(next) }),
            None => self.has_front[lane] = false,
        }
    }
}

/// Where arrivals are written down.
struct Arrival<'a> {
    now_ns: u64,
    meter: &'a Meter,
    account: &'a mut Account,
}

/// The oldest record of a partition.
#[derive(Debug)]
struct Front {
    lane: usize,
    sent: Option<Sent>,
}

struct Arrived {
    lane: usize,
    sent: Sent,
    outcome: Result<RecordMetadata, SendError>,
}

impl Future for Front {
    type Output = Arrived;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Arrived> {
        let front = self.get_mut();
        let sent = front.sent.as_mut().expect("a front is not polled after it arrived");
        let outcome = ready!(Pin::new(&mut sent.delivery).poll(context));
        let sent = front.sent.take().expect("it was there above");
        Poll::Ready(Arrived { lane: front.lane, sent, outcome })
    }
}
