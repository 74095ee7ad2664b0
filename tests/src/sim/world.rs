//! A cluster of brokers, controllers and clients in one thread: one seed is one run.
//!
//! The world owns time, network and chance. It takes whatever happens next, tells whom it concerns, carries out what they
//! want, and has the invariants checked after every step. For a while everything that can go wrong does; then the faults
//! stop, and the cluster has to heal: every write is answered, every replica the same.

mod controllers;
mod faults;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use quire_engine::Time;
use quire_engine::replication::{Proposal, ProposalOutcome};
use quire_protocol::topic_config::{Sync, TopicConfig};
use quire_protocol::{BrokerId, Offset};

use super::broker::{Broker, Effect, Role, Wire};
use super::control::{Answer, Image, Record, Request};
use super::dice::Dice;
use super::invariants::{Invariants, Violation};
use super::model_log::Value;
use super::network::{End, Network, Node, StreamId};
use super::quorum::{Index, Quorum, Term};
use super::schedule::Schedule;
use super::trace::Trace;

const HEARTBEAT: Duration = Duration::from_millis(100);
const SESSION: Duration = Duration::from_millis(500);
const CALL_TIMEOUT: Duration = Duration::from_millis(300);
/// How long a stream over a cut link lasts before its ends hear of it.
const IDLE_TIME: Duration = Duration::from_millis(400);
const RECONNECT: Duration = Duration::from_millis(20);
const FAULTS_LAST: Duration = Duration::from_secs(6);
const HEALING_LASTS: Duration = Duration::from_secs(6);
const CONTROLLERS: u32 = 3;

/// What a run is made of, drawn from its seed.
#[derive(Debug, Clone)]
pub struct Options {
    seed: u64,
    brokers: u32,
    min_in_sync: u32,
    sync: Sync,
    /// Mean time between faults.
    fault_every: Duration,
}

impl Options {
    /// What this seed stands for.
    pub fn of(seed: u64) -> Options {
        let mut dice = Dice::new(seed ^ 0x51ed_270b);
        Options {
            seed,
            brokers: 3,
            min_in_sync: if dice.happens(250) { 1 } else { 2 },
            sync: if dice.happens(250) { Sync::Interval } else { Sync::Always },
            fault_every: Duration::from_millis(match dice.happens(300) {
                true => dice.between(10, 60),
                false => dice.between(60, 500),
            }),
        }
    }
}

/// What a run showed, beside that nothing was wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Happenings.
    pub steps: u64,
    /// Writes acknowledged.
    pub acknowledged: u64,
    /// Leaderships that began.
    pub elections: u64,
    /// Elections while writes were unanswered.
    pub elections_under_way: u64,
    /// Brokers that stopped, whatever the reason.
    pub crashes: u64,
    /// Of these, by a loss of power.
    pub power_losses: u64,
    /// Links that were cut.
    pub cuts: u64,
    /// Changes of the in-sync replicas that leaders asked for.
    pub in_sync_changes: u64,
    /// Leaderships of the controllers' log.
    pub controller_elections: u64,
    /// Runs that ended without anybody who could be trusted to lead: offline rather than lossy.
    pub ended_offline: u64,
}

/// A run that failed.
#[derive(Debug)]
pub struct Failure {
    seed: u64,
    violation: Violation,
    /// The last lines of the trace.
    pub trace: String,
}

impl Failure {
    /// What did not hold, without the trace.
    pub fn what(&self) -> String {
        self.violation.to_string()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}seed {:#x}: {}", self.trace, self.seed, self.violation)
    }
}

#[derive(Debug)]
enum Happening {
    /// Something may have arrived at an end of a stream.
    Arrival(StreamId, End),
    /// An end of a stream hears that it is lost.
    Loss(StreamId, End),
    /// A stream has been over a cut link for its idle time, if it is still cut.
    IdleTimeout(StreamId),
    Call {
        to: Node,
        from: BrokerId,
        incarnation: u64,
        number: u64,
        request: Request,
    },
    Answered {
        broker: BrokerId,
        incarnation: u64,
        number: u64,
        answer: Answer,
    },
    CallTimeout {
        broker: BrokerId,
        incarnation: u64,
        number: u64,
    },
    Synced {
        broker: BrokerId,
        incarnation: u64,
        end: Offset,
    },
    Tick {
        broker: BrokerId,
        incarnation: u64,
        at: Time,
    },
    Reconnect {
        broker: BrokerId,
        incarnation: u64,
    },
    Heartbeat {
        broker: BrokerId,
        incarnation: u64,
    },
    HeartbeatArrives {
        controller: Node,
        broker: BrokerId,
        epoch: u64,
        has_caught_up: bool,
    },
    /// A broker looks at the metadata log.
    CatchUp(BrokerId),
    Commit,
    /// The controllers look at what is committed, and at who was not heard of.
    Control,
    ElectController,
    Disabuse(Node),
    Produce {
        client: u32,
    },
    ProduceArrives {
        broker: BrokerId,
        value: Value,
    },
    Fault,
    Heal,
    Start(BrokerId),
    Resume(BrokerId),
}

struct BrokerProcess {
    broker: Broker,
    is_up: bool,
    is_paused: bool,
    image: Image,
    applied: Index,
    /// The stream to the leader.
    link: Option<(StreamId, BrokerId)>,
    /// Requests to the controller that are not answered.
    calls: BTreeMap<u64, Request>,
    next_call: u64,
    tick_at: Option<Time>,
    is_suspect: bool,
    /// Happenings that came while it was paused.
    missed: Vec<Happening>,
}

#[derive(Default)]
struct Controller {
    image: Image,
    applied: Index,
    pending: Option<Image>,
    /// Where what is pending stands last in the log.
    pending_at: Option<Index>,
    /// Answers that rest on an entry that is not applied: where it stands, and whom to answer.
    waiting: BTreeMap<Index, Vec<(BrokerId, u64, u64, Answer)>>,
    heard: BTreeMap<BrokerId, Time>,
    term: Option<Term>,
}

/// See the module.
pub struct World {
    options: Options,
    schedule: Schedule<Happening>,
    network: Network<Wire>,
    dice: Dice,
    trace: Trace,
    quorum: Quorum<Vec<Record>>,
    controllers: BTreeMap<Node, Controller>,
    brokers: BTreeMap<BrokerId, BrokerProcess>,
    invariants: Invariants,
    next_value: u64,
    /// Until then nothing is committed: the controllers' disks or links are slow.
    commits_from: Time,
    is_healing: bool,
    coverage: Coverage,
}

fn node(broker: BrokerId) -> Node {
    Node(broker.0)
}

/// Clients and controllers are no brokers.
const CLIENTS: Node = Node(200);

impl World {
    /// A cluster that has not started.
    pub fn new(options: Options) -> World {
        let mut dice = Dice::new(options.seed);
        let ids: Vec<BrokerId> = (1..=options.brokers).map(BrokerId).collect();
        let image = Image::new(ids.clone());
        let config = TopicConfig {
            sync: options.sync,
            min_insync_replicas: options.min_in_sync,
            ..TopicConfig::default()
        };
        let brokers = ids.iter().map(|id| {
            let process = BrokerProcess {
                broker: Broker::new(*id, config.clone(), dice.split()),
                is_up: false,
                is_paused: false,
                image: image.clone(),
                applied: 0,
                link: None,
                calls: BTreeMap::new(),
                next_call: 0,
                tick_at: None,
                is_suspect: false,
                missed: Vec::new(),
            };
            (*id, process)
        });
        let brokers = brokers.collect();
        let controllers = (101..101 + CONTROLLERS)
            .map(|id| (Node(id), Controller { image: image.clone(), ..Controller::default() }))
            .collect();
        World {
            network: Network::new(dice.split()),
            quorum: Quorum::new(dice.split()),
            invariants: Invariants::new(options.sync, ids.clone()),
            options,
            schedule: Schedule::default(),
            dice,
            trace: Trace::default(),
            controllers,
            brokers,
            next_value: 0,
            commits_from: Time::ZERO,
            is_healing: false,
            coverage: Coverage::default(),
        }
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The first invariant that did not hold.
    pub fn run(mut self) -> Result<(Coverage, blake3::Hash), Box<Failure>> {
        match self.run_through() {
            Ok(()) => Ok((self.coverage, self.trace.digest())),
            Err(violation) => {
                Err(Box::new(Failure { seed: self.options.seed, violation, trace: self.trace.tail(20_000) }))
            }
        }
    }

    fn run_through(&mut self) -> Result<(), Violation> {
        self.network.weather.loss_per_mille = self.dice.below(60);
        self.network.weather.stray_per_mille = self.dice.below(150);
        self.schedule.after(Duration::ZERO, Happening::ElectController);
        let ids: Vec<BrokerId> = self.brokers.keys().copied().collect();
        for id in ids {
            let delay = self.dice.wait(Duration::ZERO, Duration::from_millis(50));
            self.schedule.after(delay, Happening::Start(id));
        }
        for client in 0..3 {
            self.schedule.after(Duration::from_millis(50), Happening::Produce { client });
        }
        self.schedule.after(Duration::from_millis(2), Happening::Control);
        self.schedule.after(Duration::from_millis(1), Happening::Commit);
        self.schedule.after(Duration::from_millis(500), Happening::Fault);
        let faults_end = Time::ZERO + FAULTS_LAST;
        while let Some(happening) = self.schedule.next(faults_end) {
            self.step(happening)?;
        }
        self.step(Happening::Heal)?;
        let end = self.schedule.now() + HEALING_LASTS;
        while let Some(happening) = self.schedule.next(end) {
            self.step(happening)?;
        }
        self.check_healed()
    }

    fn step(&mut self, happening: Happening) -> Result<(), Violation> {
        self.coverage.steps += 1;
        let mut effects = Vec::new();
        self.happen(happening, &mut effects)?;
        while !effects.is_empty() {
            for (broker, effect) in std::mem::take(&mut effects) {
                self.carry_out(broker, effect, &mut effects)?;
            }
        }
        self.schedule_ticks();
        self.check_members()
    }

    fn say(&mut self, what: fmt::Arguments<'_>) {
        let now = self.schedule.now();
        self.trace.say(now, what);
    }

    /// Whether something for a broker is to be dropped or kept for later, since it is down, paused, or another process.
    fn is_deaf(&mut self, broker: BrokerId, incarnation: u64, happening: Happening) -> Option<Happening> {
        let process = self.brokers.get_mut(&broker).expect("it exists");
        if !process.is_up || process.broker.incarnation != incarnation {
            return None;
        }
        if process.is_paused {
            process.missed.push(happening);
            return None;
        }
        Some(happening)
    }

    fn happen(
        &mut self,
        happening: Happening,
        effects: &mut Vec<(BrokerId, Effect)>,
    ) -> Result<(), Violation> {
        let now = self.schedule.now();
        match happening {
            Happening::Arrival(stream, end) => self.arrival(stream, end, effects),
            Happening::Loss(stream, end) => self.loss(stream, end, effects),
            Happening::IdleTimeout(stream) => self.idle_timeout(stream),
            Happening::Call { to, from, incarnation, number, request } => {
                self.controller_call(to, from, incarnation, number, &request);
            }
            Happening::Answered { broker, incarnation, number, answer } => {
                let again = Happening::Answered { broker, incarnation, number, answer: answer.clone() };
                if self.is_deaf(broker, incarnation, again).is_some() {
                    self.call_ended(broker, number, Some(answer), effects);
                }
            }
            Happening::CallTimeout { broker, incarnation, number } => {
                let again = Happening::CallTimeout { broker, incarnation, number };
                if self.is_deaf(broker, incarnation, again).is_some() {
                    self.call_ended(broker, number, None, effects);
                }
            }
            Happening::Synced { broker, incarnation, end } => {
                let again = Happening::Synced { broker, incarnation, end };
                if self.is_deaf(broker, incarnation, again).is_some() {
                    let fails = !self.is_healing && self.dice.happens(1) && self.dice.happens(50);
                    self.tell(broker, effects, |broker, effects| match fails {
                        true => broker.sync_failed(now, effects),
                        false => broker.synced(now, end, effects),
                    });
                    if fails {
                        self.say(format_args!("broker {broker}: a sync failed"));
                        self.brokers.get_mut(&broker).expect("it exists").is_suspect = true;
                    }
                }
            }
            Happening::Tick { broker, incarnation, at } => {
                let again = Happening::Tick { broker, incarnation, at };
                if self.is_deaf(broker, incarnation, again).is_some() {
                    let process = self.brokers.get_mut(&broker).expect("it exists");
                    if process.tick_at == Some(at) {
                        process.tick_at = None;
                        self.tell(broker, effects, |broker, effects| broker.tick(now, effects));
                    }
                }
            }
            Happening::Reconnect { broker, incarnation } => {
                let again = Happening::Reconnect { broker, incarnation };
                if self.is_deaf(broker, incarnation, again).is_some() {
                    self.connect(broker, effects);
                }
            }
            Happening::Heartbeat { broker, incarnation } => {
                let again = Happening::Heartbeat { broker, incarnation };
                if self.is_deaf(broker, incarnation, again).is_some() {
                    self.heartbeat(broker);
                }
            }
            Happening::HeartbeatArrives { controller, broker, epoch, has_caught_up } => {
                self.heartbeat_arrives(controller, broker, epoch, has_caught_up);
            }
            Happening::CatchUp(broker) => self.catch_up(broker, effects),
            Happening::Commit => {
                if self.schedule.now() >= self.commits_from && self.quorum.commit() {
                    let committed = self.quorum.committed();
                    self.say(format_args!("committed: {committed} entries"));
                }
                let delay = self.dice.wait(Duration::from_micros(200), Duration::from_millis(6));
                self.schedule.after(delay, Happening::Commit);
            }
            Happening::Control => {
                self.control();
                let delay = self.dice.wait(Duration::from_millis(1), Duration::from_millis(8));
                self.schedule.after(delay, Happening::Control);
            }
            Happening::ElectController => self.elect_controller(),
            Happening::Disabuse(controller) => {
                if self.quorum.leader() != Some(controller) {
                    self.quorum.disabuse(controller);
                }
            }
            Happening::Produce { client } => self.produce(client),
            Happening::ProduceArrives { broker, value } => {
                let process = &self.brokers[&broker];
                match process.is_up && !process.is_paused {
                    true => {
                        self.tell(broker, effects, |broker, effects| broker.produce(now, value, effects));
                    }
                    false => self.invariants.unknown(value),
                }
            }
            Happening::Fault => self.fault(effects),
            Happening::Heal => self.heal(),
            Happening::Start(broker) => self.start(broker),
            Happening::Resume(broker) => self.resume(broker),
        }
        Ok(())
    }

    fn tell(
        &mut self,
        id: BrokerId,
        effects: &mut Vec<(BrokerId, Effect)>,
        what: impl FnOnce(&mut Broker, &mut Vec<Effect>),
    ) {
        let process = self.brokers.get_mut(&id).expect("it exists");
        let mut own = Vec::new();
        what(&mut process.broker, &mut own);
        effects.extend(own.into_iter().map(|effect| (id, effect)));
    }

    fn carry_out(
        &mut self,
        id: BrokerId,
        effect: Effect,
        effects: &mut Vec<(BrokerId, Effect)>,
    ) -> Result<(), Violation> {
        let incarnation = self.brokers[&id].broker.incarnation;
        match effect {
            Effect::Connect { .. } => self.connect(id, effects),
            Effect::Disconnect => self.disconnect(id),
            Effect::ToLeader(message) => {
                if let Some((stream, _)) = self.brokers[&id].link {
                    self.send(stream, End::Accepter, message);
                }
            }
            Effect::ToFollower(stream, message) => self.send(stream, End::Opener, message),
            Effect::Sync { end } => {
                let delay = self.dice.wait(Duration::from_micros(100), Duration::from_millis(20));
                self.schedule.after(delay, Happening::Synced { broker: id, incarnation, end });
            }
            Effect::Propose(proposal) => {
                self.say(format_args!("broker {id}: proposes {:?}", proposal));
                self.coverage.in_sync_changes += 1;
                let epoch = self.brokers[&id].broker.broker_epoch.unwrap_or_default();
                self.call(id, Request::ChangeInSync { leader: id, epoch, proposal });
            }
            Effect::Distrust => {
                let epoch = self.brokers[&id].broker.broker_epoch.unwrap_or_default();
                self.call(id, Request::Distrust { broker: id, epoch });
            }
            Effect::Acknowledge { value, offset } => {
                self.coverage.acknowledged += 1;
                let leader = self.brokers[&id].broker.leads().expect("only a leader acknowledges");
                self.invariants.acknowledged(id, value, offset, leader.high_watermark())?;
            }
            Effect::Fail { value, is_outcome_unknown } => match is_outcome_unknown {
                true => self.invariants.unknown(value),
                false => self.invariants.failed(value),
            },
            Effect::Exposed { high_watermark } => {
                self.say(format_args!("broker {id}: high watermark {high_watermark}"));
                let log = &self.brokers[&id].broker.log;
                self.invariants.exposed(id, log, high_watermark)?;
            }
            Effect::Settled { leader_epoch } => {
                let high_watermark = self.brokers[&id].broker.log.high_watermark();
                self.say(format_args!("broker {id}: leadership {leader_epoch} is settled"));
                self.invariants.settled(id, leader_epoch, high_watermark)?;
            }
            Effect::Appended { offset, record } => {
                self.say(format_args!("broker {id}: {offset} is {record:?}"));
                self.invariants.appended(id, offset, record)?;
            }
            Effect::TookBack { from, to } => return Err(Violation::TookBack { broker: id, from, to }),
        }
        Ok(())
    }

    // Streams.

    fn connect(&mut self, id: BrokerId, effects: &mut Vec<(BrokerId, Effect)>) {
        let process = self.brokers.get_mut(&id).expect("it exists");
        let Role::Follows(following) = &process.broker.role else { return };
        let leader = following.leader;
        if process.link.is_some() {
            return;
        }
        let stream = self.network.open(node(id), node(leader));
        process.link = Some((stream, leader));
        let now = self.schedule.now();
        if self.network.is_cut(node(id), node(leader)) || self.network.is_cut(node(leader), node(id)) {
            self.schedule.after(IDLE_TIME, Happening::IdleTimeout(stream));
        }
        self.tell(id, effects, |broker, effects| broker.linked(now, true, effects));
    }

    fn disconnect(&mut self, id: BrokerId) {
        let process = self.brokers.get_mut(&id).expect("it exists");
        if let Some((stream, _)) = process.link.take() {
            self.network.end(stream, End::Opener);
            let delay = self.dice.wait(Duration::from_micros(50), Duration::from_millis(5));
            self.schedule.after(delay, Happening::Loss(stream, End::Accepter));
        }
    }

    fn send(&mut self, stream: StreamId, to: End, message: Wire) {
        let now = self.schedule.now();
        if let Some(due) = self.network.send(now, stream, to, message) {
            self.schedule.at(due, Happening::Arrival(stream, to));
        }
    }

    fn arrival(&mut self, stream: StreamId, end: End, effects: &mut Vec<(BrokerId, Effect)>) {
        let Some((opener, accepter)) = self.network.nodes(stream) else { return };
        let at = BrokerId(if end == End::Opener { opener.0 } else { accepter.0 });
        let process = self.brokers.get_mut(&at).expect("it exists");
        if !process.is_up {
            self.schedule.after(RECONNECT, Happening::Loss(stream, end.other()));
            return;
        }
        if process.is_paused {
            process.missed.push(Happening::Arrival(stream, end));
            return;
        }
        let now = self.schedule.now();
        for message in self.network.arrived(now, stream, end) {
            let is_link = self.brokers[&at].link.is_some_and(|(link, _)| link == stream);
            self.tell(at, effects, |broker, effects| match end {
                End::Opener if is_link => broker.take_from_leader(now, message, effects),
                End::Opener => {}
                End::Accepter => broker.take_from_follower(now, stream, message, effects),
            });
        }
    }

    fn loss(&mut self, stream: StreamId, end: End, effects: &mut Vec<(BrokerId, Effect)>) {
        let Some((opener, accepter)) = self.network.nodes(stream) else { return };
        let at = BrokerId(if end == End::Opener { opener.0 } else { accepter.0 });
        let process = self.brokers.get_mut(&at).expect("it exists");
        if process.is_paused {
            process.missed.push(Happening::Loss(stream, end));
            return;
        }
        self.network.end(stream, end);
        let process = self.brokers.get_mut(&at).expect("it exists");
        if !process.is_up {
            return;
        }
        let now = self.schedule.now();
        match end {
            End::Accepter => process.broker.unlinked(stream),
            End::Opener if process.link.is_some_and(|(link, _)| link == stream) => {
                process.link = None;
                let incarnation = process.broker.incarnation;
                self.schedule.after(RECONNECT, Happening::Reconnect { broker: at, incarnation });
                self.tell(at, effects, |broker, effects| broker.linked(now, false, effects));
            }
            End::Opener => {}
        }
    }

    /// A link that is still cut ends its streams.
    fn idle_timeout(&mut self, stream: StreamId) {
        let Some((opener, accepter)) = self.network.nodes(stream) else { return };
        if !self.network.is_cut(opener, accepter) && !self.network.is_cut(accepter, opener) {
            return;
        }
        for end in [End::Opener, End::Accepter] {
            let delay = self.dice.wait(Duration::ZERO, Duration::from_millis(100));
            self.schedule.after(delay, Happening::Loss(stream, end));
        }
    }

    // Brokers and the metadata.

    fn heartbeat(&mut self, id: BrokerId) {
        let process = &self.brokers[&id];
        let incarnation = process.broker.incarnation;
        match process.broker.broker_epoch {
            None if process.calls.is_empty() => {
                let request = Request::Register { broker: id, incarnation, is_suspect: process.is_suspect };
                self.call(id, request);
            }
            None => {}
            Some(epoch) => {
                let known = process.image.brokers.get(&id);
                let has_caught_up = known.is_some_and(|known| known.epoch == epoch);
                let believers: Vec<Node> =
                    self.controllers.keys().copied().filter(|at| self.quorum.belief(*at).is_some()).collect();
                let now = self.schedule.now();
                if let Some(controller) = self.dice.pick(&believers).copied()
                    && let Some(due) = self.network.call(now, node(id), controller)
                {
                    let arrival =
                        Happening::HeartbeatArrives { controller, broker: id, epoch, has_caught_up };
                    self.schedule.at(due, arrival);
                }
            }
        }
        self.schedule.after(HEARTBEAT, Happening::Heartbeat { broker: id, incarnation });
    }

    fn heartbeat_arrives(&mut self, at: Node, broker: BrokerId, epoch: u64, has_caught_up: bool) {
        let now = self.schedule.now();
        let controller = self.controllers.get_mut(&at).expect("it exists");
        let Some(known) = controller.image.brokers.get(&broker).filter(|known| known.epoch == epoch) else {
            return;
        };
        controller.heard.insert(broker, now);
        if known.is_fenced && has_caught_up {
            self.decide(at, &Request::Unfence { broker, epoch });
        }
    }

    fn catch_up(&mut self, id: BrokerId, effects: &mut Vec<(BrokerId, Effect)>) {
        let process = self.brokers.get_mut(&id).expect("it exists");
        if !process.is_up {
            return;
        }
        if process.is_paused {
            return;
        }
        let entries = self.quorum.committed_from(process.applied);
        if entries.is_empty() {
            return;
        }
        // Entries come in pieces.
        let count = self.dice.between(1, entries.len() as u64) as usize;
        for record in entries[..count].iter().filter_map(|entry| entry.payload.as_ref()).flatten() {
            process.image.apply(record);
        }
        process.applied += count;
        self.show(id, effects);
    }

    /// Has a broker act on the metadata as it knows them.
    fn show(&mut self, id: BrokerId, effects: &mut Vec<(BrokerId, Effect)>) {
        let now = self.schedule.now();
        let process = &self.brokers[&id];
        let view = process.image.view();
        let registered = process.image.brokers.get(&id).map(|known| known.epoch);
        if process.broker.broker_epoch.is_some_and(|epoch| registered.is_some_and(|known| known > epoch)) {
            self.say(format_args!("broker {id}: a late registration of an earlier start took its place"));
            self.tell(id, effects, Broker::lose_registration);
            return;
        }
        let led_before = process.broker.leads().map(|leader| leader.leader_epoch());
        self.tell(id, effects, |broker, effects| broker.follow_metadata(now, view, effects));
        let leads = self.brokers[&id].broker.leads().map(|leader| leader.leader_epoch());
        if let Some(epoch) = leads.filter(|_| leads != led_before) {
            self.coverage.elections += 1;
            self.coverage.elections_under_way += u64::from(self.invariants.has_open_writes());
            let progress = self.brokers[&id].broker.log.progress();
            self.say(format_args!("broker {id}: leads in epoch {epoch} from {progress:?}"));
        }
    }

    fn call_ended(
        &mut self,
        id: BrokerId,
        number: u64,
        answer: Option<Answer>,
        effects: &mut Vec<(BrokerId, Effect)>,
    ) {
        let now = self.schedule.now();
        let process = self.brokers.get_mut(&id).expect("it exists");
        let Some(request) = process.calls.remove(&number) else { return };
        match (request, answer) {
            (Request::Register { .. }, Some(Answer::Registered { epoch })) => {
                process.broker.broker_epoch = Some(epoch);
                process.is_suspect = false;
                self.say(format_args!("broker {id}: registered, epoch {epoch}"));
                self.show(id, effects);
            }
            (Request::ChangeInSync { proposal, .. }, answer) => {
                let outcome = self.outcome(id, &proposal, answer.as_ref());
                self.tell(id, effects, |broker, effects| {
                    broker.proposed(now, proposal.number, outcome, effects);
                });
            }
            (request @ Request::Distrust { .. }, None) => self.call(id, request),
            _ => {}
        }
    }

    /// What a leader makes of the controller's answer. That it was taken the metadata show.
    fn outcome(&self, id: BrokerId, proposal: &Proposal, answer: Option<&Answer>) -> ProposalOutcome {
        match answer {
            Some(Answer::Refused) => ProposalOutcome::Refused,
            Some(_) => {
                let mut membership = self.brokers[&id].image.view().membership;
                membership.partition_epoch = proposal.partition_epoch + 1;
                membership.in_sync = proposal.in_sync.iter().map(|(id, _)| *id).collect();
                ProposalOutcome::Taken(membership)
            }
            None => ProposalOutcome::Unknown,
        }
    }

    // Clients.

    fn produce(&mut self, client: u32) {
        let now = self.schedule.now();
        if now < Time::ZERO + FAULTS_LAST + Duration::from_secs(3) {
            let value = Value(self.next_value);
            self.next_value += 1;
            self.invariants.sent(value);
            // The leader, as any broker knows it, or anybody.
            let ids: Vec<BrokerId> = self.brokers.keys().copied().collect();
            let asked = *self.dice.pick(&ids).expect("there are brokers");
            let leader = self.brokers[&asked].image.partition.leader.unwrap_or(asked);
            match self.network.call(now, CLIENTS, node(leader)) {
                Some(due) => self.schedule.at(due, Happening::ProduceArrives { broker: leader, value }),
                None => self.invariants.failed(value),
            }
            let delay = self.dice.wait(Duration::from_millis(1), Duration::from_millis(30));
            self.schedule.after(delay, Happening::Produce { client });
        }
    }

    fn schedule_ticks(&mut self) {
        let mut due = Vec::new();
        for (id, process) in self.brokers.iter_mut().filter(|(_, process)| process.is_up) {
            let deadline = process.broker.deadline();
            if let Some(at) = deadline
                && process.tick_at.is_none_or(|known| at < known)
            {
                process.tick_at = Some(at);
                due.push((*id, process.broker.incarnation, at));
            }
        }
        for (broker, incarnation, at) in due {
            let at = at.max(self.schedule.now());
            self.brokers.get_mut(&broker).expect("it exists").tick_at = Some(at);
            self.schedule.at(at, Happening::Tick { broker, incarnation, at });
        }
    }

    // Invariants over several brokers.

    /// The latest committed image.
    fn committed_image(&self) -> Image {
        let ahead = self.controllers.values().max_by_key(|controller| controller.applied);
        let ahead = ahead.expect("there are controllers");
        let mut image = ahead.image.clone();
        let entries = self.quorum.committed_from(ahead.applied).iter();
        for record in entries.filter_map(|entry| entry.payload.as_ref()).flatten() {
            image.apply(record);
        }
        image
    }

    /// Whoever may be elected has everything that was ever committed, on its disk.
    fn check_members(&mut self) -> Result<(), Violation> {
        let image = self.committed_image();
        let partition = &image.partition;
        let members = partition.in_sync.iter().chain(&partition.eligible).copied().collect::<BTreeSet<_>>();
        for id in members {
            let process = &self.brokers[&id];
            let is_trusted = !process.is_suspect && !process.broker.is_broken();
            if is_trusted {
                self.invariants.holds_all_committed(id, &process.broker.log)?;
            }
        }
        Ok(())
    }

    /// After the faults: one leader, everybody in sync, every log the same, every write answered or refused, and everything
    /// acknowledged there.
    fn check_healed(&mut self) -> Result<(), Violation> {
        let partition = self.committed_image().partition;
        if partition.leader.is_none() && partition.in_sync.is_empty() && partition.eligible.is_empty() {
            self.coverage.ended_offline += 1;
            return Ok(());
        }
        let leaders: Vec<BrokerId> =
            self.brokers.iter().filter(|(_, p)| p.broker.leads().is_some()).map(|(id, _)| *id).collect();
        let [leader] = leaders[..] else {
            return Err(Violation::NotHealed { what: format!("the leaders are {leaders:?}") });
        };
        let broker = &self.brokers[&leader].broker;
        let machine = broker.leads().expect("just looked");
        if machine.in_sync().len() != self.brokers.len() {
            let what = format!("in sync are only {:?}", machine.in_sync());
            return Err(Violation::NotHealed { what });
        }
        if machine.high_watermark() != broker.log.end() {
            return Err(Violation::NotHealed {
                what: format!("of {} records {} are committed", broker.log.end(), machine.high_watermark()),
            });
        }
        let end = broker.log.end().0;
        for (id, process) in &self.brokers {
            let log = &process.broker.log;
            if log.end().0 != end || (log.start().0..end).any(|at| log.record(at) != broker.log.record(at)) {
                return Err(Violation::Diverged { one: leader, other: *id });
            }
        }
        let lasts = self.options.sync == Sync::Always;
        self.invariants.check_final(&broker.log, lasts)
    }
}
