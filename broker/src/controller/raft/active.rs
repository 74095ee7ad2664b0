//! What the active controller does of its own accord: it listens to the brokers, fences those it does not hear, and has
//! those that came back lead again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quire_engine::Time;
use quire_engine::controller::image::BrokerState;
use quire_engine::controller::liveness::{self, Action, Input, Liveness};
use quire_engine::controller::preferred::{self, Pace, PreferredLeaders};
use quire_engine::controller::proposals::Leadership;
use quire_engine::controller::{Image, Record, Request};
use quire_engine::machine::Reactive;
use quire_protocol::{BrokerId, limits};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Attempt, Node, RaftMetadata};

/// A broker says that it is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// Which, as its certificate says.
    pub broker: BrokerId,
    /// The registration it lives in.
    pub epoch: u64,
    /// Entries of the metadata log that it has applied.
    pub applied: u64,
    /// It wants to stop, and its leaderships to move away first.
    pub wants_drain: bool,
}

/// What it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeartbeatAnswer {
    /// The active controller heard it.
    Heard {
        /// It leads nothing, and is in no in-sync set that grows.
        is_fenced: bool,
        /// It leads nothing any more, and may stop.
        may_stop: bool,
    },
    /// The registration is not the broker's any more: it has to register anew.
    Stale,
    /// Another node is the active controller; its broker, if it is known.
    Elsewhere(Option<BrokerId>),
}

/// In which entry of the log each broker registered, so that one can be told that has not come that far yet.
#[derive(Debug, Default)]
pub(super) struct Registrations {
    /// By broker: its epoch, and the entries that have to be applied to know of it.
    seen: BTreeMap<BrokerId, (u64, u64)>,
}

impl Registrations {
    /// Records were applied, as the log's entry before `applied`.
    pub(super) fn note(&mut self, records: &[Record], applied: u64) {
        for record in records {
            if let Record::BrokerRegistered(broker) = record {
                self.seen.insert(broker.id, (broker.epoch, applied));
            }
        }
    }

    /// Everything up to `applied` came at once.
    pub(super) fn replace(&mut self, image: &Image, applied: u64) {
        self.seen = image.brokers().map(|broker| (broker.id, (broker.epoch, applied))).collect();
    }

    pub(super) fn is_known_to(&self, heartbeat: &Heartbeat) -> bool {
        let registered = self.seen.get(&heartbeat.broker);
        registered.is_some_and(|(epoch, applied)| *epoch == heartbeat.epoch && *applied <= heartbeat.applied)
    }
}

impl RaftMetadata {
    /// Takes a broker's heartbeat. Only the active controller hears it.
    pub async fn heartbeat(&self, heartbeat: Heartbeat) -> HeartbeatAnswer {
        let node = &self.node;
        // One that is cut off from the others decides nothing, and must not take itself for heard either.
        if node.driver().deciding().is_none() || !self.has_quorum() {
            let elsewhere = node.leader().filter(|(leader, _)| *leader != node.id);
            return HeartbeatAnswer::Elsewhere(elsewhere.map(|(_, member)| member.broker));
        }
        let image = node.image.borrow().clone();
        let Some(known) = image.broker(heartbeat.broker).filter(|known| known.epoch == heartbeat.epoch)
        else {
            return HeartbeatAnswer::Stale;
        };
        // If the queue is full there is no lack of heartbeats: the next one is as good.
        let _ = node.heartbeats.try_send(heartbeat);
        HeartbeatAnswer::Heard {
            is_fenced: known.state == BrokerState::Fenced,
            may_stop: heartbeat.wants_drain
                && known.state != BrokerState::Unfenced
                && !leads_anything(&image, heartbeat.broker),
        }
    }
}

fn leads_anything(image: &Image, broker: BrokerId) -> bool {
    let mut partitions = image.topics().flat_map(|topic| &topic.partitions);
    partitions.any(|partition| partition.leader == Some(broker))
}

/// How patient the active controller is with brokers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// How long one is taken to be there that is not heard of.
    pub(super) session: Duration,
    /// After how long one that came back leads again what it is preferred for; `None` is never.
    pub(super) leader_return: Option<Duration>,
}

/// Watches the brokers whenever this node is the active controller, each time anew.
pub(super) async fn watch_brokers(
    node: Arc<Node>,
    mut heartbeats: mpsc::Receiver<Heartbeat>,
    patience: Patience,
) {
    let mut deciding = node.driver().watch_deciding();
    loop {
        let leadership = *deciding.borrow_and_update();
        match leadership {
            Some(leadership) => watch_as_active(&node, leadership, &mut heartbeats, patience).await,
            None => {
                if deciding.changed().await.is_err() {
                    return;
                }
                // What was said to an earlier controller.
                while heartbeats.try_recv().is_ok() {}
            }
        }
    }
}

/// The machines that an active controller runs, and when they next have something to do.
struct Watch {
    liveness: Liveness,
    preferred: Option<PreferredLeaders>,
}

/// What a proposal was about.
#[derive(Debug, Clone, Copy)]
enum About {
    Broker(BrokerId),
    PreferredLeaders,
}

/// What happened.
enum Happened {
    Heard(liveness::Heartbeat),
    Image(Arc<Image>),
    /// A proposal is answered; whether it came to something.
    Answered(About, bool),
    TimePassed,
}

impl Watch {
    fn new(
        now: Time,
        patience: Patience,
        image: &Arc<Image>,
        predecessor: Option<(BrokerId, Time)>,
    ) -> Watch {
        let pace = |rest| Pace {
            rest,
            interval: limits::LEADER_RETURN_INTERVAL.min(rest),
            partitions_max: limits::LEADER_RETURN_PARTITIONS,
        };
        let preferred = |rest| PreferredLeaders::new(now, pace(rest), Arc::clone(image));
        Watch {
            liveness: Liveness::new(now, patience.session, Arc::clone(image), predecessor),
            preferred: patience.leader_return.map(preferred),
        }
    }

    fn deadline(&self) -> Option<Time> {
        let preferred = self.preferred.as_ref().and_then(Reactive::deadline);
        [self.liveness.deadline(), preferred].into_iter().flatten().min()
    }

    /// What is to be proposed.
    fn handle(&mut self, now: Time, happened: Happened) -> Vec<(About, Request)> {
        let (of_brokers, of_leaders) = match happened {
            Happened::Heard(heartbeat) => (Input::Heartbeat(heartbeat), preferred::Input::TimePassed),
            Happened::Image(image) => (Input::Image(Arc::clone(&image)), preferred::Input::Image(image)),
            Happened::Answered(About::Broker(broker), false) => {
                (Input::NotDone { broker }, preferred::Input::TimePassed)
            }
            Happened::Answered(About::PreferredLeaders, _) => (Input::TimePassed, preferred::Input::Answered),
            Happened::Answered(About::Broker(_), true) | Happened::TimePassed => {
                (Input::TimePassed, preferred::Input::TimePassed)
            }
        };
        let (mut actions, mut elections) = (Vec::new(), Vec::new());
        self.liveness.handle(now, of_brokers, &mut actions);
        if let Some(preferred) = &mut self.preferred {
            preferred.handle(now, of_leaders, &mut elections);
        }
        let about_broker = |Action::Propose { broker, request }: Action| (About::Broker(broker), request);
        let about_leaders = |preferred::Action::Propose(request)| (About::PreferredLeaders, request);
        actions.into_iter().map(about_broker).chain(elections.into_iter().map(about_leaders)).collect()
    }
}

/// Until the leadership ends.
async fn watch_as_active(
    node: &Arc<Node>,
    leadership: Leadership,
    heartbeats: &mut mpsc::Receiver<Heartbeat>,
    patience: Patience,
) {
    let mut deciding = node.driver().watch_deciding();
    let mut image = node.image.clone();
    // Used up: this node may lead again without another between.
    let predecessor = node.led_by.lock().expect("nobody panics while holding it").take();
    let mut watch = Watch::new(node.now(), patience, &image.borrow_and_update().clone(), predecessor);
    let mut asked = FuturesUnordered::new();
    tracing::info!(term = leadership.0, "this broker is the active controller");
    loop {
        let deadline = watch.deadline().map(|deadline| deadline.since(node.now()));
        let happened = tokio::select! {
            heartbeat = heartbeats.recv() => match heartbeat {
                Some(heartbeat) => Happened::Heard(node.judge(&heartbeat)),
                None => return,
            },
            changed = image.changed() => match changed {
                Ok(()) => Happened::Image(image.borrow_and_update().clone()),
                Err(_) => return,
            },
            Some((about, is_done)) = asked.next(), if !asked.is_empty() => Happened::Answered(about, is_done),
            changed = deciding.changed() => {
                if changed.is_err() || *deciding.borrow() != Some(leadership) {
                    return;
                }
                continue;
            }
            () = sleep(deadline) => Happened::TimePassed,
        };
        for (about, request) in watch.handle(node.now(), happened) {
            asked.push(ask(node.clone(), about, request));
        }
    }
}

/// Answers whether something came of it.
async fn ask(node: Arc<Node>, about: About, request: Request) -> (About, bool) {
    match &request {
        Request::FenceBroker { broker, .. } => {
            tracing::warn!(broker = broker.0, "a broker is not heard of and is fenced");
        }
        Request::ElectPreferred { partitions } => {
            tracing::info!(partitions = partitions.len(), "preferred leaders are back and lead again");
        }
        _ => {}
    }
    let deadline = Instant::now() + node.propose_time;
    let attempt = node.propose_here(request, deadline).await;
    (about, matches!(attempt, Attempt::Made(..)))
}

async fn sleep(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

impl Node {
    pub(super) fn now(&self) -> Time {
        self.clock.now().time
    }

    fn judge(&self, heartbeat: &Heartbeat) -> liveness::Heartbeat {
        liveness::Heartbeat {
            broker: heartbeat.broker,
            epoch: heartbeat.epoch,
            is_caught_up: self.driver().registrations().is_known_to(heartbeat),
            wants_drain: heartbeat.wants_drain,
        }
    }
}
