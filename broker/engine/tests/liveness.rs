//! Sessions of brokers: who is fenced and unfenced, when, and how often that is asked for.

use std::slice;
use std::sync::Arc;
use std::time::Duration;

use quire_engine::controller::image::BrokerState;
use quire_engine::controller::liveness::{Action, Heartbeat, Input, Liveness};
use quire_engine::controller::{Controller, Image, RegisterBroker, Request};
use quire_engine::machine::{Reactive, Replicated};
use quire_engine::{SplitMix64, Time};
use quire_protocol::{BrokerId, Timestamp};

const SESSION: Duration = Duration::from_secs(8);
const ONE: BrokerId = BrokerId(1);
const TWO: BrokerId = BrokerId(2);

/// A controller with both brokers, and the sessions that it watches.
struct Watched {
    controller: Controller,
    random: SplitMix64,
    liveness: Liveness,
}

impl Watched {
    /// With sessions that began at the origin.
    fn new() -> Watched {
        let (mut controller, mut random) = (Controller::new(), SplitMix64::new(7));
        for broker in [ONE, TWO] {
            commit(&mut controller, &mut random, registration(broker, 1));
        }
        let image = Arc::clone(controller.image());
        Watched { controller, random, liveness: Liveness::new(Time::ZERO, SESSION, image, None) }
    }

    fn give(&mut self, at: Duration, input: Input) -> Vec<Request> {
        let mut actions = Vec::new();
        self.liveness.handle(Time::after_origin(at), input, &mut actions);
        actions.into_iter().map(|Action::Propose { request, .. }| request).collect()
    }

    fn beat(&mut self, at: Duration, broker: BrokerId) -> Vec<Request> {
        let heartbeat = self.heartbeat(broker);
        self.give(at, Input::Heartbeat(heartbeat))
    }

    fn heartbeat(&self, broker: BrokerId) -> Heartbeat {
        Heartbeat { broker, epoch: self.epoch(broker), is_caught_up: true, wants_drain: false }
    }

    /// Commits, and shows what came of it.
    fn commit(&mut self, at: Duration, request: Request) -> Vec<Request> {
        commit(&mut self.controller, &mut self.random, request);
        let image = Arc::clone(self.controller.image());
        self.give(at, Input::Image(image))
    }

    fn image(&self) -> &Image {
        self.controller.image()
    }

    fn epoch(&self, broker: BrokerId) -> u64 {
        self.image().broker(broker).expect("it is registered").epoch
    }

    fn fence(&self, broker: BrokerId) -> Request {
        Request::FenceBroker { broker, epoch: self.epoch(broker) }
    }

    fn unfence(&self, broker: BrokerId) -> Request {
        Request::UnfenceBroker { broker, epoch: self.epoch(broker) }
    }

    fn unfence_all(&mut self) {
        for broker in [ONE, TWO] {
            let request = self.unfence(broker);
            assert_eq!(self.beat(Duration::ZERO, broker), slice::from_ref(&request));
            assert_eq!(self.commit(Duration::ZERO, request), []);
        }
    }

    fn deadline(&self) -> Option<Duration> {
        self.liveness.deadline().map(|deadline| deadline.since(Time::ZERO))
    }
}

fn registration(broker: BrokerId, incarnation: u8) -> Request {
    Request::RegisterBroker(RegisterBroker {
        cluster_id: "c-1".into(),
        broker,
        host: "127.0.0.1".into(),
        port: 9440,
        incarnation: [incarnation; 16],
        ..RegisterBroker::default()
    })
}

fn commit(controller: &mut Controller, random: &mut SplitMix64, request: Request) {
    let decision = controller.decide(Timestamp(1_000), random, request).expect("it is not refused");
    for record in &decision.records {
        controller.apply(record).expect("what was decided fits");
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn who_is_heard_is_unfenced_once_and_who_falls_silent_is_fenced_once() {
    let mut watched = Watched::new();
    assert_eq!(watched.deadline(), None, "nobody who is fenced can be fenced");
    watched.unfence_all();
    assert_eq!(watched.beat(seconds(5), ONE), []);
    assert_eq!(watched.deadline(), Some(seconds(8)));
    assert_eq!(watched.give(seconds(8) - Duration::from_nanos(1), Input::TimePassed), []);
    let fence = watched.fence(TWO);
    assert_eq!(watched.give(seconds(8), Input::TimePassed), slice::from_ref(&fence));
    assert_eq!(watched.give(seconds(9), Input::TimePassed), [], "it is asked for already");
    assert_eq!(watched.commit(seconds(9), fence), []);
    assert_eq!(watched.deadline(), Some(seconds(13)));
    assert_eq!(watched.beat(seconds(10), TWO), [watched.unfence(TWO)], "it is back");
}

#[test]
fn a_new_controller_gives_everybody_a_whole_session() {
    let mut watched = Watched::new();
    watched.unfence_all();
    let image = Arc::clone(watched.controller.image());
    watched.liveness = Liveness::new(Time::after_origin(seconds(100)), SESSION, image, None);
    assert_eq!(watched.deadline(), Some(seconds(108)));
    assert_eq!(watched.give(seconds(107), Input::TimePassed), []);
    let both = [watched.fence(ONE), watched.fence(TWO)];
    assert_eq!(watched.give(seconds(108), Input::TimePassed), both);
}

#[test]
fn the_controller_before_has_a_session_from_when_it_was_last_heard_of() {
    let mut watched = Watched::new();
    watched.unfence_all();
    let image = Arc::clone(watched.controller.image());
    let heard = |at| Some((TWO, Time::after_origin(at)));
    let now = Time::after_origin(seconds(100));
    watched.liveness = Liveness::new(now, SESSION, Arc::clone(&image), heard(seconds(95)));
    assert_eq!(watched.give(seconds(102), Input::TimePassed), []);
    assert_eq!(watched.give(seconds(103), Input::TimePassed), [watched.fence(TWO)]);
    assert_eq!(watched.deadline(), Some(seconds(108)), "the others have a whole one");

    watched.liveness = Liveness::new(now, SESSION, image, heard(seconds(95)));
    assert_eq!(watched.beat(seconds(101), TWO), []);
    assert_eq!(watched.give(seconds(108), Input::TimePassed), [watched.fence(ONE)], "it only handed over");
}

#[test]
fn a_request_that_comes_to_nothing_is_made_again_after_a_rest_and_never_in_a_loop() {
    let mut watched = Watched::new();
    watched.unfence_all();
    watched.beat(seconds(6), ONE);
    let fence = watched.fence(TWO);
    let mut now = seconds(8);
    assert_eq!(watched.give(now, Input::TimePassed), slice::from_ref(&fence));
    for _ in 0..5 {
        assert_eq!(watched.give(now, Input::NotDone { broker: TWO }), []);
        assert_eq!(watched.give(now, Input::TimePassed), []);
        assert_eq!(watched.deadline(), Some(now + seconds(1)));
        now += seconds(1);
        assert_eq!(watched.give(now, Input::TimePassed), slice::from_ref(&fence));
        assert_eq!(watched.beat(now, ONE), []);
    }
    watched.give(now, Input::NotDone { broker: TWO });
    assert_eq!(watched.beat(now, TWO), []);
    assert_eq!(watched.deadline(), Some(now + SESSION), "it spoke before it was fenced");
}

#[test]
fn an_unfencing_that_comes_to_nothing_is_asked_for_by_a_later_heartbeat() {
    let mut watched = Watched::new();
    assert_eq!(watched.beat(seconds(1), ONE), [watched.unfence(ONE)]);
    assert_eq!(watched.give(seconds(1), Input::NotDone { broker: ONE }), []);
    assert_eq!(watched.beat(seconds(1), ONE), []);
    assert_eq!(watched.beat(seconds(2), ONE), [watched.unfence(ONE)]);
}

#[test]
fn an_earlier_registration_or_one_that_is_behind_counts_for_nothing() {
    let mut watched = Watched::new();
    let behind = Heartbeat { is_caught_up: false, ..watched.heartbeat(ONE) };
    assert_eq!(watched.give(seconds(1), Input::Heartbeat(behind)), []);
    let earlier = watched.heartbeat(ONE);
    watched.commit(seconds(2), registration(ONE, 2));
    assert_eq!(watched.give(seconds(3), Input::Heartbeat(earlier)), []);
    assert_eq!(watched.beat(seconds(3), ONE), [watched.unfence(ONE)]);
}

#[test]
fn a_broker_that_wants_to_stop_is_drained_again_with_every_heartbeat() {
    let mut watched = Watched::new();
    watched.unfence_all();
    let stopping = Heartbeat { wants_drain: true, ..watched.heartbeat(ONE) };
    let drain = Request::DrainBroker { broker: ONE, epoch: stopping.epoch };
    assert_eq!(watched.give(seconds(1), Input::Heartbeat(stopping)), slice::from_ref(&drain));
    assert_eq!(watched.give(seconds(1), Input::Heartbeat(stopping)), []);
    watched.commit(seconds(1), drain.clone());
    assert_eq!(watched.image().broker(ONE).map(|broker| broker.state), Some(BrokerState::Draining));
    assert_eq!(watched.give(seconds(2), Input::Heartbeat(stopping)), [drain]);
}
