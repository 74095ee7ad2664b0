//! The shard's thread: picks the next events, and sleeps when there are none. What they mean is the shard's business.

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use crossbeam_channel::Receiver;
use quire_protocol::{TopicPartition, limits};
use tokio::sync::mpsc;

use super::Shard;
use super::clock::{Clock, Now};
use super::event::Event;
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
}

/// Runs a shard on this thread until it has closed all it owned.
pub(super) fn run(
    mut shard: Shard,
    mut inbox: Inbox,
    back: &Direct,
    flushers: &FlusherQueue,
    clock: &dyn Clock,
) {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let (mut events, mut tasks) = (Vec::new(), Vec::new());
    let submit = |tasks: &mut Vec<(TopicPartition, Task)>| {
        for (partition, task) in tasks.drain(..) {
            flushers.submit(partition, task, back);
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
            shard.apply(now, event, &mut tasks);
        }
        shard.write(now, &mut tasks);
        submit(&mut tasks);
        shard.answer(&mut tasks);
        submit(&mut tasks);
    }
    refuse_rest(shard, inbox, clock.now());
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
