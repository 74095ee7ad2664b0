//! The shard's thread: picks the next events, and sleeps when there are none. What they mean is the shard's business.

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use crossbeam_channel::Receiver;
use quire_engine::time::Time;
use quire_protocol::{TopicPartition, limits};
use tokio::sync::mpsc;

use super::Shard;
use super::clock::{Clock, Now};
use super::event::{Event, Outgoing};
use super::flush::{Direct, FlusherQueue, Task};

/// The two ways in. Handlers wait for room in `requests`; `direct` is what must never wait.
pub(super) struct Inbox {
    pub(super) requests: mpsc::Receiver<Event>,
    pub(super) direct: Receiver<Event>,
}

impl Inbox {
    /// Moves every event that is ready into `events`, requests up to a round's worth.
    fn gather(&mut self, context: &mut Context<'_>, events: &mut Vec<Event>) {
        while events.len() < limits::SHARD_ROUND_EVENTS {
            match self.requests.poll_recv(context) {
                Poll::Ready(Some(event)) => events.push(event),
                // Whoever sends next wakes this thread. All senders gone: only direct events can come.
                Poll::Pending | Poll::Ready(None) => break,
            }
        }
        events.extend(self.direct.try_iter());
    }

    fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.direct.is_empty()
    }
}

/// The ways out.
pub(super) struct Exits<'a> {
    /// The shard's number.
    pub(super) number: usize,
    /// Where results of tasks go: back into the shard.
    pub(super) back: &'a Direct,
    pub(super) flushers: &'a FlusherQueue,
    /// What is not about the shard's own disk.
    pub(super) outgoing: &'a mpsc::UnboundedSender<(usize, Outgoing)>,
}

impl Exits<'_> {
    /// What a shard wants of others goes to a task that ends after it; who is gone gets nothing.
    fn send(&self, shard: &mut Shard) {
        for outgoing in shard.take_outgoing() {
            let _ = self.outgoing.send((self.number, outgoing));
        }
    }
}

/// Runs a shard on this thread until it has closed all it owned.
pub(super) fn run(mut shard: Shard, mut inbox: Inbox, exits: &Exits<'_>, clock: &dyn Clock) {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let (mut events, mut tasks) = (Vec::new(), Vec::new());
    let mut lone = LoneSyncs::default();
    let submit = |tasks: &mut Vec<(TopicPartition, Task)>, lone: &mut LoneSyncs| {
        lone.under_way += tasks.len();
        for (partition, task) in tasks.drain(..) {
            exits.flushers.submit(partition, task, exits.back);
        }
    };
    while !shard.is_closed() {
        inbox.gather(&mut context, &mut events);
        let mut now = clock.now();
        if events.is_empty() {
            match shard.deadline() {
                Some(deadline) if deadline <= now.time => {}
                Some(deadline) => thread::park_timeout(deadline.since(now.time)),
                None => thread::park(),
            }
            inbox.gather(&mut context, &mut events);
            now = clock.now();
        }
        for event in events.drain(..) {
            lone.under_way -= usize::from(matches!(event, Event::Done(..)));
            shard.apply(now, event, &mut tasks);
        }
        shard.write(now, &mut tasks);
        exits.send(&mut shard);
        let here = if inbox.is_empty() { lone.take(now.time, &mut tasks) } else { None };
        submit(&mut tasks, &mut lone);
        shard.answer(&mut tasks);
        submit(&mut tasks, &mut lone);
        if let Some(step) = shard.take_scrub(now) {
            exits.flushers.scrub(step, exits.back);
        }
        if let Some((partition, sync)) = here {
            events.push(Event::Done(partition, sync.perform(shard.metrics())));
            lone.done(now.time, clock.now().time);
        }
    }
    refuse_rest(shard, inbox, clock.now());
}

/// Which syncs the shard's thread does itself: a small one with nothing else under way and nothing waiting. That saves two
/// changes of threads, worth a sixth of the throughput of many producers with one record in flight each; whoever comes
/// meanwhile waits for its own sync anyway. A disk that is slow gets its syncs from flushers, so that it holds up no
/// other partition twice.
#[derive(Debug, Default)]
pub(super) struct LoneSyncs {
    /// Tasks whose result has not come back.
    pub(super) under_way: usize,
    /// Not before this time again.
    not_before: Time,
}

impl LoneSyncs {
    /// Takes out the sync to be done here, if there is one. [`LoneSyncs::done`] is to be told.
    pub(super) fn take(
        &mut self,
        now: Time,
        tasks: &mut Vec<(TopicPartition, Task)>,
    ) -> Option<(TopicPartition, Task)> {
        let is_small = |bytes| (1..=limits::LONE_SYNC_BYTES_MAX).contains(&bytes);
        match &tasks[..] {
            [(_, Task::Job(job))]
                if self.under_way == 0 && now >= self.not_before && is_small(job.synced_bytes()) =>
            {
                self.under_way += 1;
                tasks.pop()
            }
            _ => None,
        }
    }

    /// One was done between these times.
    pub(super) fn done(&mut self, began: Time, ended: Time) {
        if ended.since(began) > limits::LONE_SYNC_TIME_MAX {
            self.not_before = ended + limits::LONE_SYNC_PAUSE;
        }
    }
}

/// Answers what came too late to be taken.
fn refuse_rest(mut shard: Shard, mut inbox: Inbox, now: Now) {
    inbox.requests.close();
    while let Ok(event) = inbox.requests.try_recv() {
        shard.apply(now, event, &mut Vec::new());
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}
