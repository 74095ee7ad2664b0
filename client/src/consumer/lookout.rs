//! When others are asked whether another replica is the one to read from, and the asking itself, which goes on beside the
//! reading: it may take long, and holds up no record.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{sleep_until, timeout};

use crate::error::Error;
use crate::metadata::{Racks, TopicMetadata};

use super::near;

/// Without anything from the leader for so long, other brokers are asked who leads: one that is cut off from them, and not
/// from its consumers, goes on saying that it does, and one that stands still says nothing.
const QUIET_TIME_MAX: Duration = Duration::from_secs(1);
/// A partition may be quiet as well: the longer it is, the more seldom others are asked, down to this.
const QUIET_LOOK_INTERVAL_MAX: Duration = Duration::from_secs(10);
/// How long one look may take.
const LOOK_TIME_MAX: Duration = Duration::from_secs(2);

/// What others say.
#[derive(Debug)]
pub(super) struct Seen {
    pub topic: Arc<TopicMetadata>,
    /// Where brokers stand, if a near replica is wanted.
    pub racks: Option<Arc<Racks>>,
}

/// What it is time for.
#[derive(Debug)]
pub(super) enum Sight {
    /// To look.
    Due,
    /// A look has ended; `None` if nothing could be found out.
    Seen(Option<Seen>),
}

type Looking = Pin<Box<dyn Future<Output = Option<Seen>> + Send>>;

/// The looks of one stream.
pub(super) struct Lookout {
    schedule: Schedule,
    looking: Option<Looking>,
}

impl Lookout {
    pub(super) fn new(now: Instant, occasion: Occasion) -> Lookout {
        Lookout { schedule: Schedule::new(now, occasion), looking: None }
    }

    /// Something came from the broker.
    pub(super) fn received(&mut self) {
        self.schedule.has_received = true;
    }

    /// What it is time for next. Can be cancelled without losing anything.
    pub(super) async fn next(&mut self) -> Sight {
        match (&mut self.looking, self.schedule.due) {
            (Some(looking), _) => {
                let seen = looking.await;
                self.looking = None;
                self.schedule.looked(Instant::now());
                Sight::Seen(seen)
            }
            (None, Some(due)) => {
                sleep_until(due.into()).await;
                Sight::Due
            }
            (None, None) => std::future::pending().await,
        }
    }

    /// Begins to look, unless there is no need any more.
    pub(super) fn look(
        &mut self,
        time_max: Duration,
        look: impl Future<Output = Result<Seen, Error>> + Send + 'static,
    ) {
        if self.schedule.is_needed(Instant::now()) {
            let time_max = time_max.min(LOOK_TIME_MAX);
            // What can not be found out is not acted upon.
            self.looking =
                Some(Box::pin(async move { timeout(time_max, look).await.ok().and_then(Result::ok) }));
        }
    }
}

/// When a stream's reader is to look elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Occasion {
    /// Nobody else can ever lead.
    Never,
    /// Nothing comes.
    Quiet,
    /// Another replica may be nearer.
    Always,
}

/// Plain code: time is passed in.
#[derive(Debug)]
struct Schedule {
    occasion: Occasion,
    due: Option<Instant>,
    pause: Duration,
    /// Whether anything came since that was last looked at.
    has_received: bool,
}

impl Schedule {
    fn new(now: Instant, occasion: Occasion) -> Schedule {
        let pause = match occasion {
            Occasion::Always => near::LOOK_INTERVAL,
            Occasion::Quiet | Occasion::Never => QUIET_TIME_MAX,
        };
        let due = (occasion != Occasion::Never).then(|| now + pause);
        Schedule { occasion, due, pause, has_received: false }
    }

    /// Whether what is due is needed; where something came meanwhile it is put off.
    fn is_needed(&mut self, now: Instant) -> bool {
        let has_received = std::mem::take(&mut self.has_received);
        if self.occasion != Occasion::Quiet || !has_received {
            return true;
        }
        self.pause = QUIET_TIME_MAX;
        self.due = Some(now + self.pause);
        false
    }

    fn looked(&mut self, now: Instant) {
        if self.occasion == Occasion::Quiet {
            self.pause = (self.pause * 2).min(QUIET_LOOK_INTERVAL_MAX);
        }
        self.due = Some(now + self.pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_partition_is_looked_at_less_and_less_and_one_that_is_not_never() {
        let mut now = Instant::now();
        let mut schedule = Schedule::new(now, Occasion::Quiet);
        let mut pauses = Vec::new();
        for has_received in [true, false, false, false, false, false, false, true, false] {
            schedule.has_received = has_received;
            let due = schedule.due.expect("there are followers");
            pauses.push(due.duration_since(now).as_secs());
            now = due;
            assert_eq!(schedule.is_needed(now), !has_received);
            if !has_received {
                schedule.looked(now);
            }
        }
        assert_eq!(pauses, [1, 1, 2, 4, 8, 10, 10, 10, 1]);
        assert_eq!(Schedule::new(now, Occasion::Never).due, None);
    }

    #[test]
    fn whether_a_replica_is_nearer_is_looked_at_however_much_comes() {
        let now = Instant::now();
        let mut schedule = Schedule::new(now, Occasion::Always);
        schedule.has_received = true;
        assert!(schedule.is_needed(now));
        schedule.looked(now);
        assert_eq!(schedule.due, Some(now + near::LOOK_INTERVAL));
    }
}
