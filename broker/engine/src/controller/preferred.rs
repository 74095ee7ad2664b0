//! Gives leaderships back to preferred leaders, some time after these returned. Only the active controller runs this; what
//! it finds becomes requests to elect.
//!
//! A change of leader is a short pause for its producers, so it is never hurried: a broker has to be there for a while
//! first, only replicas in sync take over, and a few partitions move at a time. A partition whose replicas are being moved
//! is left to that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quire_protocol::{BrokerId, TopicPartition};

use super::image::{BrokerState, Image};
use super::{Request, leadership};
use crate::Time;
use crate::machine::Reactive;

/// How slowly it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// A broker has to be unfenced for so long before it gets anything back.
    pub rest: Duration,
    /// Nothing is given back for so long after the last few were, or after the cluster changed.
    pub interval: Duration,
    /// Most partitions given back at once; at least 1.
    pub partitions_max: usize,
}

/// Everything that can happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The image has changed. Cheap to repeat.
    Image(Arc<Image>),
    /// The last request has come to something or to nothing.
    Answered,
    /// The deadline has come.
    TimePassed,
}

/// What is to be proposed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// To the controller, once at a time; to be told as [`Input::Answered`] whatever comes of it.
    Propose(Request),
}

/// The preferred leaders that wait.
#[derive(Debug)]
pub struct PreferredLeaders {
    pace: Pace,
    image: Arc<Image>,
    /// The brokers that are unfenced, in which epoch, and since when without a break as far as this controller saw.
    there: BTreeMap<BrokerId, (u64, Time)>,
    /// When to look for what can be given back; `None` if nothing has changed since there was nothing.
    look_at: Option<Time>,
    is_asked: bool,
}

impl PreferredLeaders {
    /// Of a controller that has become active now: for it everybody has just come.
    pub fn new(now: Time, pace: Pace, image: Arc<Image>) -> PreferredLeaders {
        assert!(pace.partitions_max > 0, "it would never end");
        let (there, look_at) = (BTreeMap::new(), None);
        let mut preferred = PreferredLeaders { pace, image: Arc::default(), there, look_at, is_asked: false };
        preferred.follow(now, image);
        preferred
    }

    fn follow(&mut self, now: Time, image: Arc<Image>) {
        let unfenced = image.brokers().filter(|broker| broker.state == BrokerState::Unfenced);
        self.there = unfenced
            .map(|broker| match self.there.get(&broker.id) {
                Some((epoch, since)) if *epoch == broker.epoch => (broker.id, (*epoch, *since)),
                _ => (broker.id, (broker.epoch, now)),
            })
            .collect();
        self.image = image;
        // An image that changes all the time puts nothing off.
        let next = now + self.pace.interval;
        self.look_at = Some(self.look_at.map_or(next, |at| at.min(next)));
    }

    fn look(&mut self, now: Time, actions: &mut Vec<Action>) {
        let (mut ready, mut next) = (Vec::new(), None::<Time>);
        for topic in self.image.topics() {
            for partition in topic.partitions.iter().filter(|partition| !partition.is_reassigning()) {
                let preferred = leadership::preferred_leader(&self.image, partition);
                let Some((_, since)) = preferred.and_then(|broker| self.there.get(&broker)) else { continue };
                let due = *since + self.pace.rest;
                if due > now {
                    next = Some(next.map_or(due, |next| next.min(due)));
                } else if ready.len() < self.pace.partitions_max {
                    ready.push(TopicPartition { topic: topic.id, partition: partition.index });
                }
            }
        }
        if ready.is_empty() {
            self.look_at = next;
            return;
        }
        self.look_at = Some(now + self.pace.interval);
        self.is_asked = true;
        actions.push(Action::Propose(Request::ElectPreferred { partitions: ready }));
    }
}

impl Reactive for PreferredLeaders {
    type Input = Input;
    type Action = Action;

    fn handle(&mut self, now: Time, input: Input, actions: &mut Vec<Action>) {
        match input {
            Input::Image(image) => self.follow(now, image),
            Input::Answered => self.is_asked = false,
            Input::TimePassed => {}
        }
        if !self.is_asked && self.look_at.is_some_and(|at| at <= now) {
            self.look(now, actions);
        }
    }

    fn deadline(&self) -> Option<Time> {
        self.look_at.filter(|_| !self.is_asked)
    }
}
