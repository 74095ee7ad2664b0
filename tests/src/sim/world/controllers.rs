//! The controllers: who decides, on what, and who is answered when.

use std::time::Duration;

use quire_engine::mutant::{self, Mutant};
use quire_engine::replication::Proposal;
use quire_protocol::BrokerId;

use super::super::control::{Answer, Request};
use super::super::network::Node;
use super::super::quorum::{Index, Proposed};
use super::{CALL_TIMEOUT, CONTROLLERS, Happening, SESSION, World, node};

/// Requests to grow the in-sync replicas that a loss of power overtakes, in a thousand.
const OVERTAKEN_PER_MILLE: u64 = 60;

impl World {
    pub(super) fn call(&mut self, id: BrokerId, request: Request) {
        let process = self.brokers.get_mut(&id).expect("it exists");
        let (incarnation, number) = (process.broker.incarnation, process.next_call);
        process.next_call += 1;
        process.calls.insert(number, request.clone());
        let timeout = Happening::CallTimeout { broker: id, incarnation, number };
        self.schedule.after(CALL_TIMEOUT, timeout);
        let believers: Vec<Node> =
            self.controllers.keys().copied().filter(|node| self.quorum.belief(*node).is_some()).collect();
        let Some(to) = self.dice.pick(&believers).copied() else { return };
        let now = self.schedule.now();
        if let Some(mut due) = self.network.call(now, node(id), to) {
            let added = match &request {
                Request::ChangeInSync { proposal, .. } if !self.is_healing => self.added(id, proposal),
                _ => None,
            };
            if let Some(added) = added.filter(|_| self.dice.happens(OVERTAKEN_PER_MILLE)) {
                due = now + self.overtake(added);
            }
            self.schedule.at(due, Happening::Call { to, from: id, incarnation, number, request });
        }
    }

    /// Whom a leader wants among the in-sync replicas who is not.
    fn added(&self, leader: BrokerId, proposal: &Proposal) -> Option<BrokerId> {
        let before = &self.brokers[&leader].image.partition.in_sync;
        proposal.in_sync.iter().map(|(id, _)| *id).find(|id| *id != leader && !before.contains(id))
    }

    pub(super) fn controller_call(
        &mut self,
        at: Node,
        from: BrokerId,
        incarnation: u64,
        number: u64,
        request: &Request,
    ) {
        let Some((index, answer)) = self.decide(at, request) else { return };
        let now = self.schedule.now();
        match index {
            Some(index) => {
                let waiting = (from, incarnation, number, answer);
                let controller = self.controllers.get_mut(&at).expect("it exists");
                controller.waiting.entry(index).or_default().push(waiting);
            }
            None => {
                if let Some(due) = self.network.call(now, at, node(from)) {
                    self.schedule.at(due, Happening::Answered { broker: from, incarnation, number, answer });
                }
            }
        }
    }

    /// Decides at a controller; where its records stand, if there are any. `None`: it does not decide, or nobody will
    /// ever know what became of it.
    pub(super) fn decide(&mut self, at: Node, request: &Request) -> Option<(Option<Index>, Answer)> {
        self.follow_log(at);
        let term = self.quorum.belief(at)?;
        let controller = self.controllers.get_mut(&at).expect("it exists");
        if controller.term != Some(term) && !mutant::is_on(Mutant::DecideAfterOwnTerm) {
            return None;
        }
        let latest = match &controller.pending {
            Some(pending) if !mutant::is_on(Mutant::DecideOnPending) => pending,
            _ => &controller.image,
        };
        let (records, answer) = latest.decide(request, self.options.min_in_sync as usize);
        if records.is_empty() {
            // What was decided on something pending is as pending as that.
            return Some((controller.pending.as_ref().and(controller.pending_at), answer));
        }
        let mut pending = latest.clone();
        records.iter().for_each(|record| pending.apply(record));
        controller.pending = Some(pending);
        self.say(format_args!("controller {}: decides {request:?}: {answer:?}", at.0));
        match self.quorum.propose(at, records) {
            Proposed::At(index) => {
                self.controllers.get_mut(&at).expect("it exists").pending_at = Some(index);
                Some((Some(index), answer))
            }
            Proposed::Nowhere => {
                // Nobody is ever told what rests on it, however often the same is asked again.
                self.controllers.get_mut(&at).expect("it exists").pending_at = Some(Index::MAX);
                None
            }
        }
    }

    /// A controller applies what is committed, and answers who waits for it.
    pub(super) fn follow_log(&mut self, at: Node) {
        let belief = self.quorum.belief(at);
        let controller = self.controllers.get_mut(&at).expect("it exists");
        let entries = self.quorum.committed_from(controller.applied).to_vec();
        let mut answered = Vec::new();
        for entry in entries {
            let index = controller.applied;
            controller.applied += 1;
            match &entry.payload {
                Some(records) => records.iter().for_each(|record| controller.image.apply(record)),
                // A leader's first entry: what was pending in an earlier term is decided by now.
                None => {
                    controller.waiting = controller.waiting.split_off(&(index + 1));
                    controller.pending = None;
                    controller.term = Some(entry.term).filter(|term| belief == Some(*term));
                    controller.heard.clear();
                }
            }
            answered.extend(controller.waiting.remove(&index).into_iter().flatten());
        }
        if belief.is_none() {
            controller.term = None;
            controller.pending = None;
            controller.waiting.clear();
        }
        if controller.pending.as_ref() == Some(&controller.image) {
            controller.pending = None;
        }
        let now = self.schedule.now();
        for (broker, incarnation, number, answer) in answered {
            if let Some(due) = self.network.call(now, at, node(broker)) {
                self.schedule.at(due, Happening::Answered { broker, incarnation, number, answer });
            }
        }
    }

    /// Everybody looks at the log; the active controller fences whom it has not heard of.
    pub(super) fn control(&mut self) {
        let now = self.schedule.now();
        let nodes: Vec<Node> = self.controllers.keys().copied().collect();
        for at in nodes {
            self.follow_log(at);
            let controller = self.controllers.get_mut(&at).expect("it exists");
            if controller.term.is_none() || controller.term != self.quorum.belief(at) {
                continue;
            }
            let mut silent = Vec::new();
            for (id, registered) in controller.image.brokers.iter().filter(|(_, known)| !known.is_fenced) {
                let heard = *controller.heard.entry(*id).or_insert(now);
                if now.since(heard) > SESSION {
                    silent.push(Request::Fence { broker: *id, epoch: registered.epoch });
                }
            }
            for request in silent {
                self.decide(at, &request);
            }
        }
        let ids: Vec<BrokerId> = self.brokers.keys().copied().collect();
        for id in ids {
            if self.brokers[&id].applied < self.quorum.committed() {
                // Entries come from one of the controllers, sooner or later.
                let from = Node(101 + self.dice.below(CONTROLLERS.into()) as u32);
                let is_late = !self.is_healing && self.dice.happens(20);
                let longest = Duration::from_millis(if is_late { 800 } else { 30 });
                let delay = self.dice.wait(Duration::from_micros(100), longest);
                if !self.network.is_cut(from, node(id)) {
                    self.schedule.after(delay, Happening::CatchUp(id));
                }
            }
        }
    }

    pub(super) fn elect_controller(&mut self) {
        let nodes: Vec<Node> = self.controllers.keys().copied().collect();
        let node = *self.dice.pick(&nodes).expect("there are controllers");
        let before = self.quorum.leader();
        let term = self.quorum.elect(node);
        self.coverage.controller_elections += 1;
        self.say(format_args!("controller {}: leads in term {term}", node.0));
        for other in nodes.into_iter().filter(|other| *other != node) {
            let longest = if before == Some(other) { 400 } else { 5 };
            let delay = self.dice.wait(Duration::ZERO, Duration::from_millis(longest));
            self.schedule.after(delay, Happening::Disabuse(other));
        }
    }
}
