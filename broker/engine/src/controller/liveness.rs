//! Which brokers are heard of. Only the active controller runs this; what it finds becomes requests to fence and unfence.
//!
//! A session begins with a heartbeat and lasts as long as the next one comes in time. A controller that has just become
//! active knows nothing of sessions: it gives everybody a whole one first, so that its own election fences nobody. The one
//! exception is the controller before it, whose silence it was elected for: that one's session began when it was last heard
//! of as such.

use std::collections::BTreeMap;
use std::time::Duration;

use quire_protocol::BrokerId;

use super::Request;
use super::image::{BrokerState, Image};
use crate::Time;
use crate::machine::Reactive;

/// What a broker says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// The broker.
    pub broker: BrokerId,
    /// Its broker epoch.
    pub epoch: u64,
    /// Whether its metadata image has come at least as far as its registration.
    pub is_caught_up: bool,
    /// Whether it wants to stop, once it leads nothing.
    pub wants_drain: bool,
}

/// Everything that can happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A broker is heard of.
    Heartbeat(Heartbeat),
    /// The image has changed. Cheap to repeat.
    Image(std::sync::Arc<Image>),
    /// A request was refused, or its outcome is not known: it may have to be made again.
    NotDone {
        /// The broker that it was about.
        broker: BrokerId,
    },
    /// The deadline has come.
    TimePassed,
}

/// What is to be proposed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// To the controller; whatever comes of it shows in the image, or is told as [`Input::NotDone`].
    Propose {
        /// The broker that it is about.
        broker: BrokerId,
        /// What to ask.
        request: Request,
    },
}

/// A request that came to nothing is made again after one of so many parts of a session: whoever refuses at once is not
/// asked in a loop.
const RESTS_OF_A_SESSION: u32 = 8;

/// Sessions of all registered brokers.
#[derive(Debug)]
pub struct Liveness {
    session: Duration,
    image: std::sync::Arc<Image>,
    sessions: BTreeMap<BrokerId, Session>,
}

#[derive(Debug, Clone, Copy)]
struct Session {
    epoch: u64,
    ends: Time,
    /// The state that was asked for and does not show in the image yet.
    asked: Option<BrokerState>,
    /// What came to nothing is not asked for again before this.
    rests_until: Time,
}

impl Liveness {
    /// Of a controller that has become active now: everybody has a whole session before them, but for the controller before
    /// it, if there was another and it was heard of here.
    pub fn new(
        now: Time,
        session: Duration,
        image: std::sync::Arc<Image>,
        predecessor: Option<(BrokerId, Time)>,
    ) -> Liveness {
        let mut liveness = Liveness { session, image: Default::default(), sessions: BTreeMap::new() };
        liveness.follow(now, image);
        if let Some((broker, heard)) = predecessor
            && let Some(known) = liveness.sessions.get_mut(&broker)
        {
            known.ends = known.ends.min(heard + session);
        }
        liveness
    }

    /// Until when a broker is taken to be there.
    pub fn session_ends(&self, broker: BrokerId) -> Option<Time> {
        self.sessions.get(&broker).map(|session| session.ends)
    }

    fn follow(&mut self, now: Time, image: std::sync::Arc<Image>) {
        let (ends, rests_until) = (now + self.session, now);
        self.sessions.retain(|id, _| image.broker(*id).is_some());
        for broker in image.brokers() {
            let fresh = Session { epoch: broker.epoch, ends, asked: None, rests_until };
            let session = self.sessions.entry(broker.id).or_insert(fresh);
            if session.epoch != broker.epoch {
                *session = fresh;
            }
            if session.asked == Some(broker.state) {
                session.asked = None;
            }
        }
        self.image = image;
    }

    /// A heartbeat of an earlier registration, or of one that the image does not show yet, begins no session.
    fn hear(&mut self, now: Time, heartbeat: Heartbeat, actions: &mut Vec<Action>) {
        let Heartbeat { broker, epoch, is_caught_up, wants_drain } = heartbeat;
        let Some(known) = self.image.broker(broker).filter(|known| known.epoch == epoch) else { return };
        let Some(session) = self.sessions.get_mut(&broker) else { return };
        session.ends = now + self.session;
        let wanted = match known.state {
            BrokerState::Fenced if is_caught_up && !wants_drain => BrokerState::Unfenced,
            BrokerState::Unfenced if wants_drain => BrokerState::Draining,
            // Leaderships that nobody could take before may be taken by now.
            BrokerState::Draining if wants_drain => {
                actions.push(propose(broker, epoch, BrokerState::Draining));
                return;
            }
            _ => return,
        };
        if session.asked != Some(wanted) && session.rests_until <= now {
            session.asked = Some(wanted);
            actions.push(propose(broker, epoch, wanted));
        }
    }

    fn expire(&mut self, now: Time, actions: &mut Vec<Action>) {
        for (broker, session) in &mut self.sessions {
            let is_fenced = self.image.broker(*broker).is_none_or(|known| known.state == BrokerState::Fenced);
            let is_due = session.ends.max(session.rests_until) <= now;
            if is_due && !is_fenced && session.asked != Some(BrokerState::Fenced) {
                session.asked = Some(BrokerState::Fenced);
                actions.push(propose(*broker, session.epoch, BrokerState::Fenced));
            }
        }
    }
}

fn propose(broker: BrokerId, epoch: u64, wanted: BrokerState) -> Action {
    let request = match wanted {
        BrokerState::Fenced => Request::FenceBroker { broker, epoch },
        BrokerState::Unfenced => Request::UnfenceBroker { broker, epoch },
        BrokerState::Draining => Request::DrainBroker { broker, epoch },
    };
    Action::Propose { broker, request }
}

impl Reactive for Liveness {
    type Input = Input;
    type Action = Action;

    fn handle(&mut self, now: Time, input: Input, actions: &mut Vec<Action>) {
        match input {
            Input::Heartbeat(heartbeat) => self.hear(now, heartbeat, actions),
            Input::Image(image) => self.follow(now, image),
            Input::NotDone { broker } => {
                if let Some(session) = self.sessions.get_mut(&broker) {
                    session.asked = None;
                    session.rests_until = now + self.session / RESTS_OF_A_SESSION;
                }
            }
            Input::TimePassed => {}
        }
        self.expire(now, actions);
    }

    fn deadline(&self) -> Option<Time> {
        let is_open = |(id, session): &(&BrokerId, &Session)| {
            session.asked != Some(BrokerState::Fenced) && self.image.is_active(**id)
        };
        self.sessions.iter().filter(is_open).map(|(_, session)| session.ends.max(session.rests_until)).min()
    }
}
