//! What happens to controllers: who leads them, what they decide, and how what is committed gets to everybody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quire_engine::Time;
use quire_engine::controller::liveness::{self, Heartbeat, Liveness};
use quire_engine::controller::preferred::{self, Pace, PreferredLeaders};
use quire_engine::controller::proposals::{Action, Input, Leadership, NotDone, ProposalId, Proposals};
use quire_engine::controller::{Record, Request, Response};
use quire_engine::machine::Reactive;
use quire_protocol::{BrokerId, OFFSETS_TOPIC, Timestamp, TopicPartition};

use super::super::broker::Answer;
use super::super::dice::Dice;
use super::super::invariants::Violation;
use super::super::network::Node;
use super::super::quorum::{Index, Proposed, Term};
use super::operators::OPERATOR;
use super::{CONTROLLERS, Happening, Process, World, node};

const SESSION: Duration = Duration::from_millis(500);
/// Preferred leaders come back after resting so long.
const LEADER_RETURN: Duration = Duration::from_millis(700);
/// Entries that a controller lacks from which on it may be sent a snapshot in their place.
const SNAPSHOT_LAG: usize = 4;

/// What a controller answers.
pub(super) type Word = Result<Response, NotDone>;

/// Who asks a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Attempted {
    /// A broker's process, and the number of its request.
    Broker(Process, u64),
    /// An operator, and the number of the request.
    Operator(u64),
    /// The controller itself, about a broker's session.
    Liveness(BrokerId),
    /// The controller itself, for preferred leaders.
    Preferred,
}

/// A controller.
#[derive(Debug)]
pub(super) struct Controller {
    proposals: Proposals,
    random: Dice,
    /// Up to where it has applied the log.
    applied: Index,
    asked: BTreeMap<ProposalId, Attempted>,
    next: u64,
    /// What it does of its own accord while it is the active one.
    active: Option<Active>,
    /// In which registration each broker is, and up to where the log has to be applied to know of it.
    registered: BTreeMap<BrokerId, (u64, Index)>,
}

#[derive(Debug)]
struct Active {
    leadership: Leadership,
    liveness: Liveness,
    preferred: PreferredLeaders,
}

impl Controller {
    pub(super) fn new(random: Dice) -> Controller {
        Controller {
            proposals: Proposals::new(),
            random,
            applied: 0,
            asked: BTreeMap::new(),
            next: 0,
            active: None,
            registered: BTreeMap::new(),
        }
    }
}

impl World {
    /// A controller that may be the active one, as far as anybody knows.
    pub(super) fn some_controller(&mut self) -> Node {
        let nodes: Vec<Node> = self.controllers.keys().copied().collect();
        let believers: Vec<Node> =
            nodes.iter().copied().filter(|at| self.quorum.belief(*at).is_some()).collect();
        match self.dice.pick(&believers).copied().filter(|_| self.dice.happens(900)) {
            Some(believer) => believer,
            None => nodes[self.dice.below(CONTROLLERS.into()) as usize],
        }
    }

    pub(super) fn controller_call(
        &mut self,
        at: Node,
        from: Attempted,
        request: Request,
    ) -> Result<(), Violation> {
        self.say(format_args!("controller {}: is asked {request:?} by {from:?}", at.0));
        self.ask_controller(at, from, request)
    }

    fn ask_controller(&mut self, at: Node, from: Attempted, request: Request) -> Result<(), Violation> {
        let now = Timestamp(1_700_000_000_000 + self.schedule.now().since(Time::ZERO).as_millis() as i64);
        let controller = self.controllers.get_mut(&at).expect("it exists");
        let proposal = ProposalId(controller.next);
        controller.next += 1;
        controller.asked.insert(proposal, from);
        self.feed(at, Input::Propose { proposal, now, request })
    }

    /// Tells a controller something, and carries out what follows.
    fn feed(&mut self, at: Node, input: Input) -> Result<(), Violation> {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let controller = self.controllers.get_mut(&at).expect("it exists");
            let mut actions = Vec::new();
            let fed = controller.proposals.handle(input, &mut controller.random, &mut actions);
            fed.map_err(|conflict| Violation::Metadata { what: conflict.to_string() })?;
            for action in actions {
                match action {
                    Action::Append(entry) => {
                        let (leadership, serial) = (entry.leadership, entry.serial);
                        let is_its_term = self.quorum.belief(at).map(Leadership) == Some(leadership);
                        let proposed = match is_its_term {
                            true => self.quorum.propose(at, entry),
                            false => Proposed::Nowhere,
                        };
                        // Who leads no more may be told so, or that nobody knows, or nothing.
                        if proposed == Proposed::Nowhere {
                            match self.dice.below(3) {
                                0 => inputs.push(Input::NotTaken { leadership, serial }),
                                1 => inputs.push(Input::Lost(leadership)),
                                _ => {}
                            }
                        }
                    }
                    Action::Show(image) => {
                        let now = self.schedule.now();
                        self.stir(at, now, Some(image), None)?;
                    }
                    Action::Answer { proposal, result } => {
                        let controller = self.controllers.get_mut(&at).expect("it exists");
                        let Some(from) = controller.asked.remove(&proposal) else { continue };
                        self.word(at, from, result)?;
                    }
                }
            }
        }
        self.take_office(at)
    }

    /// Begins to watch the brokers when it becomes the active controller, and ends when it is no more.
    fn take_office(&mut self, at: Node) -> Result<(), Violation> {
        let now = self.schedule.now();
        let controller = self.controllers.get_mut(&at).expect("it exists");
        let deciding = controller.proposals.deciding();
        if controller.active.as_ref().map(|active| active.leadership) == deciding {
            return Ok(());
        }
        let image = controller.proposals.image();
        let pace = Pace { rest: LEADER_RETURN, interval: LEADER_RETURN / 2, partitions_max: 10 };
        controller.active = deciding.map(|leadership| Active {
            leadership,
            liveness: Liveness::new(now, SESSION, Arc::clone(image), None),
            preferred: PreferredLeaders::new(now, pace, Arc::clone(image)),
        });
        if let Some(leadership) = deciding {
            self.say(format_args!("controller {}: is the active one, in term {}", at.0, leadership.0));
        }
        Ok(())
    }

    /// What the active controller does of its own accord, by what it hears and sees and by the time.
    fn stir(
        &mut self,
        at: Node,
        now: Time,
        image: Option<Arc<quire_engine::controller::Image>>,
        heartbeat: Option<Heartbeat>,
    ) -> Result<(), Violation> {
        let controller = self.controllers.get_mut(&at).expect("it exists");
        let Some(active) = &mut controller.active else { return Ok(()) };
        let (mut fences, mut returns) = (Vec::new(), Vec::new());
        let heard = match (&image, heartbeat) {
            (Some(image), _) => liveness::Input::Image(Arc::clone(image)),
            (None, Some(heartbeat)) => liveness::Input::Heartbeat(heartbeat),
            (None, None) => liveness::Input::TimePassed,
        };
        active.liveness.handle(now, heard, &mut fences);
        let seen = match image {
            Some(image) => preferred::Input::Image(image),
            None => preferred::Input::TimePassed,
        };
        active.preferred.handle(now, seen, &mut returns);
        for liveness::Action::Propose { broker, request } in fences {
            self.say(format_args!("controller {}: {request:?}", at.0));
            self.ask_controller(at, Attempted::Liveness(broker), request)?;
        }
        for preferred::Action::Propose(request) in returns {
            self.say(format_args!("controller {}: {request:?}", at.0));
            self.ask_controller(at, Attempted::Preferred, request)?;
        }
        Ok(())
    }

    /// A controller answers.
    fn word(&mut self, at: Node, from: Attempted, answer: Word) -> Result<(), Violation> {
        let now = self.schedule.now();
        let to = match from {
            Attempted::Broker((id, _), _) => node(id),
            Attempted::Operator(_) => OPERATOR,
            Attempted::Liveness(broker) => {
                let controller = self.controllers.get_mut(&at).expect("it exists");
                if let (Err(_), Some(active)) = (&answer, &mut controller.active) {
                    let mut actions = Vec::new();
                    active.liveness.handle(now, liveness::Input::NotDone { broker }, &mut actions);
                    assert!(actions.is_empty(), "what came to nothing rests");
                }
                return Ok(());
            }
            Attempted::Preferred => {
                let controller = self.controllers.get_mut(&at).expect("it exists");
                if let Some(active) = &mut controller.active {
                    active.preferred.handle(now, preferred::Input::Answered, &mut Vec::new());
                }
                return Ok(());
            }
        };
        if let Some(due) = self.network.call(now, at, to) {
            self.schedule.at(due, Happening::Answered { from, answer });
        }
        Ok(())
    }

    /// An answer arrives at who asked.
    pub(super) fn word_arrives(&mut self, from: Attempted, answer: Word) -> Result<(), Violation> {
        let (process, number) = match from {
            Attempted::Broker(process, number) => (process, number),
            Attempted::Operator(number) => {
                self.operator_answered(number, &answer);
                return Ok(());
            }
            Attempted::Liveness(_) | Attempted::Preferred => unreachable!("they are answered at home"),
        };
        let again = Happening::Answered { from, answer: answer.clone() };
        if self.heard(process, again).is_none() {
            return Ok(());
        }
        let answer = match answer {
            Ok(response) => Answer::Made(response),
            Err(NotDone::Refused(_)) => Answer::Refused,
            Err(NotDone::Unknown) => Answer::Unknown,
            // Certainly nothing: it is asked again while there is time.
            Err(NotDone::NotActive | NotDone::NotMade) => {
                let is_open =
                    self.calls.get(&(process, number)).is_some_and(|call| self.schedule.now() < call.until);
                if is_open {
                    let delay = self.dice.wait(Duration::from_millis(5), Duration::from_millis(60));
                    self.schedule.after(delay, Happening::TryAgain { from, is_last: false });
                }
                return Ok(());
            }
        };
        self.call_ended((process, number), answer)
    }

    pub(super) fn heartbeat_arrives(
        &mut self,
        at: Node,
        process: Process,
        epoch: u64,
        applied: Index,
        wants_drain: bool,
    ) -> Result<(), Violation> {
        let now = self.schedule.now();
        let broker = process.0;
        let controller = &self.controllers[&at];
        // One that is cut off from the others hears nobody.
        if controller.active.is_none() || self.quorum.leader() != Some(at) {
            return Ok(());
        }
        let image = Arc::clone(controller.proposals.image());
        let known = image.broker(broker).filter(|known| known.epoch == epoch);
        let is_caught_up = controller
            .registered
            .get(&broker)
            .is_some_and(|(known, index)| *known == epoch && *index <= applied);
        let is_draining =
            known.is_some_and(|known| known.state != quire_engine::controller::image::BrokerState::Unfenced);
        let leads_anything =
            image.topics().flat_map(|topic| &topic.partitions).any(|known| known.leader == Some(broker));
        if let Some(due) = self.network.call(now, at, node(broker)) {
            let (is_stale, may_stop) = (known.is_none(), wants_drain && is_draining && !leads_anything);
            let answered = Happening::HeartbeatAnswered { process, epoch, is_stale, may_stop };
            self.schedule.at(due, answered);
        }
        self.stir(at, now, None, Some(Heartbeat { broker, epoch, is_caught_up, wants_drain }))
    }

    /// Some of what waits is committed.
    pub(super) fn commit(&mut self) -> Result<(), Violation> {
        if self.schedule.now() >= self.commits_from && self.quorum.commit() {
            let (metadata, applied) = &mut self.metadata;
            let entries = self.quorum.committed_from(*applied).to_vec();
            let mut random = Dice::new(0);
            for entry in &entries {
                let committed = metadata.handle(entry.committed(), &mut random, &mut Vec::new());
                committed.map_err(|conflict| Violation::Metadata { what: conflict.to_string() })?;
            }
            *applied += entries.len();
            for topic in metadata.image().topics() {
                let is_synced = topic.config.sync == quire_protocol::topic_config::Sync::Always;
                for partition in &topic.partitions {
                    let id = TopicPartition { topic: topic.id, partition: partition.index };
                    self.invariants.know(id, is_synced, *topic.name == *OFFSETS_TOPIC);
                }
            }
            for entry in entries {
                for record in entry.payload.iter().flat_map(|entry| &entry.records) {
                    if !matches!(record, Record::TopicHeld { .. }) {
                        self.say(format_args!("committed: {record:?}"));
                    }
                }
            }
            self.check_members()?;
        }
        let delay = self.dice.wait(Duration::from_micros(200), Duration::from_millis(6));
        self.schedule.after(delay, Happening::Commit);
        Ok(())
    }

    /// Everybody looks at the log; the active controller fences whom it has not heard of.
    pub(super) fn control(&mut self) -> Result<(), Violation> {
        let now = self.schedule.now();
        let nodes: Vec<Node> = self.controllers.keys().copied().collect();
        for at in nodes {
            self.follow_log(at)?;
            self.stir(at, now, None, None)?;
        }
        let ids: Vec<BrokerId> = self.brokers.keys().copied().collect();
        for id in ids {
            let Some(running) = &self.brokers[&id].running else { continue };
            let is_blind = !self.is_healing && self.blind.get(&id).is_some_and(|until| now < *until);
            if running.applied < self.quorum.committed() && !is_blind {
                // Entries come from one of the controllers, sooner or later.
                let from = Node(101 + self.dice.below(CONTROLLERS.into()) as u32);
                let is_late = !self.is_healing && self.dice.happens(20);
                let longest = Duration::from_millis(if is_late { 800 } else { 30 });
                let delay = self.dice.wait(Duration::from_micros(100), longest);
                if !self.network.is_cut(from, node(id)) {
                    let process = self.process(id);
                    self.schedule.after(delay, Happening::CatchUp(process));
                }
            }
        }
        let delay = self.dice.wait(Duration::from_millis(1), Duration::from_millis(8));
        self.schedule.after(delay, Happening::Control);
        Ok(())
    }

    /// A controller applies some of what is committed, or a snapshot of it.
    fn follow_log(&mut self, at: Node) -> Result<(), Violation> {
        let applied = self.controllers[&at].applied;
        let entries = self.quorum.committed_from(applied);
        if entries.is_empty() {
            return Ok(());
        }
        // Who believes to lead has every entry.
        let is_follower = self.quorum.belief(at).is_none();
        if is_follower && entries.len() > SNAPSHOT_LAG && self.dice.happens(200) {
            let (metadata, index) = &self.metadata;
            let (position, image, index) = (metadata.applied(), Arc::clone(metadata.image()), *index);
            let controller = self.controllers.get_mut(&at).expect("it exists");
            controller.applied = index;
            let registered = image.brokers().map(|broker| (broker.id, (broker.epoch, index)));
            controller.registered = registered.collect();
            self.coverage.snapshots += 1;
            self.say(format_args!("controller {}: gets a snapshot of {index} entries", at.0));
            return self.feed(at, Input::Installed { position, image });
        }
        let is_slow = !self.is_healing && self.dice.happens(150);
        let count = if is_slow { self.dice.below(entries.len() as u64 + 1) as usize } else { entries.len() };
        let entries = entries[..count].to_vec();
        for entry in entries {
            let controller = self.controllers.get_mut(&at).expect("it exists");
            controller.applied += 1;
            let applied = controller.applied;
            let records = entry.payload.iter().flat_map(|entry| &entry.records);
            let registered = records.filter_map(|record| match record {
                Record::BrokerRegistered(broker) => Some((broker.id, (broker.epoch, applied))),
                _ => None,
            });
            controller.registered.extend(registered);
            self.feed(at, entry.committed())?;
        }
        Ok(())
    }

    pub(super) fn elect_controller(&mut self) -> Result<(), Violation> {
        let nodes: Vec<Node> = self.controllers.keys().copied().collect();
        let node = *self.dice.pick(&nodes).expect("there are controllers");
        let before = self.quorum.leader();
        let term: Term = self.quorum.elect(node);
        self.coverage.controller_elections += 1;
        self.say(format_args!("controller {}: leads in term {term}", node.0));
        self.feed(node, Input::Leads(Leadership(term)))?;
        for other in nodes.into_iter().filter(|other| *other != node) {
            let longest = if before == Some(other) { 400 } else { 5 };
            let delay = self.dice.wait(Duration::ZERO, Duration::from_millis(longest));
            self.schedule.after(delay, Happening::Disabuse(other));
        }
        Ok(())
    }

    pub(super) fn disabuse(&mut self, at: Node) -> Result<(), Violation> {
        if self.quorum.leader() == Some(at) {
            return Ok(());
        }
        self.quorum.disabuse(at);
        self.feed(at, Input::Follows)
    }
}
