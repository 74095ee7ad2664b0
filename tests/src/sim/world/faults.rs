//! What goes wrong, and how it ends.

use std::time::Duration;

use quire_protocol::BrokerId;
use quire_protocol::topic_config::Sync;

use super::super::broker::Effect;
use super::super::broker::Role;
use super::super::control::{Image, Request};
use super::super::model_log::Crash;
use super::super::network::Node;
use super::{Happening, IDLE_TIME, World, node};

impl World {
    pub(super) fn fault(&mut self, effects: &mut Vec<(BrokerId, Effect)>) {
        if self.is_healing {
            return;
        }
        let ids: Vec<BrokerId> = self.brokers.keys().copied().collect();
        let id = *self.dice.pick(&ids).expect("there are brokers");
        match self.dice.below(16) {
            0 | 1 => self.crash(id, Crash::Kill),
            2 => self.crash(id, Crash::PowerLoss),
            3 => {
                // All at once.
                if self.dice.happens(300) {
                    ids.iter().for_each(|id| self.crash(*id, Crash::PowerLoss));
                }
            }
            4 => self.pause(id),
            5 | 6 => self.cut(id, &ids),
            7 => self.heal_network(effects),
            8 => self.elect_controller(),
            9..=12 => {
                let active: Vec<Node> =
                    self.controllers.keys().copied().filter(|at| self.quorum.belief(*at).is_some()).collect();
                for at in active {
                    self.decide(at, &Request::Move { to: id });
                }
            }
            13 | 14 => self.slow_log(),
            _ => {
                self.quorum.orphan();
                self.say(format_args!("the controllers are without a leader"));
                let delay = self.dice.wait(Duration::from_millis(10), Duration::from_millis(600));
                self.schedule.after(delay, Happening::ElectController);
            }
        }
        let mean = self.options.fault_every;
        let delay = self.dice.wait(mean / 4, mean * 4);
        self.schedule.after(delay, Happening::Fault);
    }

    /// Nothing is committed for a while, and meanwhile another controller comes to lead: it finds entries that it has not
    /// applied, and is asked for decisions before it has.
    fn slow_log(&mut self) {
        let lasts = self.dice.wait(Duration::from_millis(20), Duration::from_millis(300));
        self.commits_from = self.schedule.now() + lasts;
        self.say(format_args!("nothing is committed for {lasts:?}"));
        let delay = self.dice.wait(Duration::from_millis(5), lasts / 2);
        self.schedule.after(delay, Happening::ElectController);
    }

    /// A request to take a broker among the in-sync replicas is long on its way, and the broker loses power and is back
    /// before it arrives.
    pub(super) fn overtake(&mut self, added: BrokerId) -> Duration {
        self.crash(added, Crash::PowerLoss);
        self.schedule.after(Duration::from_millis(5), Happening::Start(added));
        self.dice.wait(Duration::from_millis(50), Duration::from_millis(900))
    }

    pub(super) fn crash(&mut self, id: BrokerId, crash: Crash) {
        let process = self.brokers.get_mut(&id).expect("it exists");
        if !process.is_up {
            return;
        }
        process.is_up = false;
        process.is_paused = false;
        process.missed.clear();
        process.link = None;
        process.calls.clear();
        process.tick_at = None;
        // A failed sync makes the next start suspect, and so does any crash of a topic that is not synced.
        process.is_suspect |= self.options.sync == Sync::Interval;
        if let Role::Leads(_) = &process.broker.role {
            self.invariants.all_unknown_of(id);
        }
        process.broker.restart(crash);
        process.image = Image::new((1..=self.options.brokers).map(BrokerId).collect());
        process.applied = 0;
        self.say(format_args!("broker {id}: {crash:?}"));
        self.coverage.crashes += 1;
        self.coverage.power_losses += u64::from(crash == Crash::PowerLoss);
        for (stream, end) in self.network.stop(node(id)) {
            let delay = self.dice.wait(Duration::from_millis(1), IDLE_TIME);
            self.schedule.after(delay, Happening::Loss(stream, end));
        }
        let delay = self.dice.wait(Duration::from_millis(5), Duration::from_millis(1500));
        self.schedule.after(delay, Happening::Start(id));
    }

    pub(super) fn start(&mut self, id: BrokerId) {
        let process = self.brokers.get_mut(&id).expect("it exists");
        if process.is_up {
            return;
        }
        process.is_up = true;
        let incarnation = process.broker.incarnation;
        self.say(format_args!("broker {id}: starts"));
        self.schedule.after(Duration::ZERO, Happening::Heartbeat { broker: id, incarnation });
        self.schedule.after(Duration::from_millis(1), Happening::CatchUp(id));
    }

    pub(super) fn pause(&mut self, id: BrokerId) {
        let process = self.brokers.get_mut(&id).expect("it exists");
        if !process.is_up || process.is_paused {
            return;
        }
        process.is_paused = true;
        self.say(format_args!("broker {id}: paused"));
        let delay = self.dice.wait(Duration::from_millis(10), Duration::from_millis(2000));
        self.schedule.after(delay, Happening::Resume(id));
    }

    pub(super) fn resume(&mut self, id: BrokerId) {
        let process = self.brokers.get_mut(&id).expect("it exists");
        if !std::mem::take(&mut process.is_paused) {
            return;
        }
        let missed = std::mem::take(&mut process.missed);
        self.say(format_args!("broker {id}: goes on"));
        for happening in missed {
            self.schedule.after(Duration::ZERO, happening);
        }
    }

    pub(super) fn cut(&mut self, id: BrokerId, ids: &[BrokerId]) {
        let both_ways = self.dice.happens(500);
        for other in ids.iter().filter(|other| **other != id) {
            if self.dice.happens(600) {
                self.network.cut(node(id), node(*other));
                if both_ways {
                    self.network.cut(node(*other), node(id));
                }
                for stream in self.network.between(node(id), node(*other)) {
                    self.schedule.after(IDLE_TIME, Happening::IdleTimeout(stream));
                }
            }
        }
        let controllers: Vec<Node> = self.controllers.keys().copied().collect();
        for controller in controllers {
            if self.dice.happens(300) {
                self.network.cut(node(id), controller);
                if both_ways {
                    self.network.cut(controller, node(id));
                }
            }
        }
        self.coverage.cuts += 1;
        self.say(format_args!("broker {id}: cut off{}", if both_ways { "" } else { ", one way" }));
    }

    pub(super) fn heal_network(&mut self, _effects: &mut Vec<(BrokerId, Effect)>) {
        self.network.heal();
        self.say(format_args!("the links are whole"));
        for (stream, end, due) in self.network.pending() {
            self.schedule.at(due, Happening::Arrival(stream, end));
        }
    }

    pub(super) fn heal(&mut self) {
        self.is_healing = true;
        self.commits_from = self.schedule.now();
        self.say(format_args!("the faults are over"));
        self.network.weather.loss_per_mille = 0;
        self.network.weather.stray_per_mille = 0;
        self.heal_network(&mut Vec::new());
        self.schedule.after(Duration::ZERO, Happening::ElectController);
        let ids: Vec<BrokerId> = self.brokers.keys().copied().collect();
        for id in ids {
            self.schedule.after(Duration::from_millis(1), Happening::Resume(id));
            // A broken log is mended by a restart, as an operator would.
            let is_broken = self.brokers[&id].broker.is_broken();
            if is_broken {
                self.crash(id, Crash::Kill);
                self.brokers.get_mut(&id).expect("it exists").is_suspect = true;
            }
            self.schedule.after(Duration::from_millis(5), Happening::Start(id));
        }
    }
}
