//! A cluster of brokers, controllers and clients in one thread: one seed is one run.
//!
//! The world owns time, network and chance. It takes whatever happens next, tells whom it concerns, carries out what they
//! want, and has the invariants checked after every step. For a while everything that can go wrong does; then the faults
//! stop, and the cluster has to heal: every write is answered, every replica the same.

mod brokers;
mod clients;
mod controllers;
mod faults;
mod healing;
mod members;
mod operators;
mod readers;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use quire_broker::simulation::{ScrubStep, Task};
use quire_engine::Time;
use quire_engine::controller::Request;
use quire_engine::controller::proposals::{Entry, Proposals};
use quire_protocol::{BrokerId, LeaderEpoch, TopicPartition};

use super::broker::{Broker, Purpose, Wire};
use super::desk::GroupAnswer;
use super::dice::Dice;
use super::invariants::{Invariants, Violation};
use super::ledger::Ledger;
use super::member::Member;
use super::network::{End, Network, Node, StreamId};
use super::quorum::{Index, Quorum};
use super::schedule::Schedule;
use super::trace::Trace;

use clients::Client;
use controllers::{Attempted, Controller};
use operators::Operator;
use readers::Readings;

const FAULTS_LAST: Duration = Duration::from_secs(6);
/// Within this the cluster is to be whole again after the last fault.
const HEALING_TIME_MAX: Duration = Duration::from_secs(25);
/// How often it is looked at whether it is.
const HEALING_LOOK: Duration = Duration::from_millis(250);
/// How long a stream over a cut link lasts before its ends hear of it.
const IDLE_TIME: Duration = Duration::from_millis(400);
/// More happenings than any run has: somebody asks for the same in a loop.
const STEPS_MAX: u64 = 2_000_000;
const CONTROLLERS: u32 = 3;

/// What a run is made of, drawn from its seed.
#[derive(Debug, Clone)]
pub struct Options {
    seed: u64,
    brokers: u32,
    clients: u32,
    /// Settings of the topics that are there from the beginning.
    topics: Vec<BTreeMap<String, String>>,
    /// Mean time between faults.
    fault_every: Duration,
    /// The broker whose logs are damaged, if one's are.
    damaged: Option<BrokerId>,
    /// How many members each group has.
    groups: Vec<u32>,
}

impl Options {
    /// What this seed stands for.
    pub fn of(seed: u64) -> Options {
        let mut dice = Dice::new(seed ^ 0x51ed_270b);
        let brokers = if dice.happens(300) { 4 } else { 3 };
        let fault_every = Duration::from_millis(match dice.happens(300) {
            true => dice.between(10, 60),
            false => dice.between(60, 500),
        });
        let topics = (0..dice.between(1, 2)).map(|_| topic_settings(&mut dice)).collect();
        let damaged = dice.happens(250).then(|| BrokerId(dice.between(1, brokers.into()) as u32));
        let clients = dice.between(1, 3) as u32;
        let groups = members::draw_groups(&mut Dice::new(seed ^ 0x9709_b5a3));
        Options { seed, brokers, clients, topics, fault_every, damaged, groups }
    }
}

/// Settings that a topic may have here: small segments, so that they are rolled and deleted.
fn topic_settings(dice: &mut Dice) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    let mut set = |name: &str, value: String| drop(settings.insert(name.to_owned(), value));
    set("min.insync.replicas", if dice.happens(250) { "1" } else { "2" }.to_owned());
    if dice.happens(200) {
        set("sync", "interval".to_owned());
    }
    if dice.happens(400) {
        set("segment.bytes", (64 * 1024).to_string());
        set("segment.ms", "1000".to_owned());
        set("retention.ms", dice.between(1500, 4000).to_string());
    }
    if dice.happens(200) {
        set("catch.up.bytes.per.second", (64 * 1024).to_string());
    }
    settings
}

/// What a run showed, beside that nothing was wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Happenings.
    pub steps: u64,
    /// Writes acknowledged.
    pub acknowledged: u64,
    /// Frames that consumers read.
    pub consumed: u64,
    /// Writes given up, that may have been appended.
    pub unknown: u64,
    /// Batches sent again on another stream.
    pub resent: u64,
    /// Leaderships that began.
    pub elections: u64,
    /// Elections while writes were unanswered.
    pub elections_under_way: u64,
    /// Brokers that stopped, whatever the reason.
    pub crashes: u64,
    /// Of these, by a loss of power.
    pub power_losses: u64,
    /// Disks replaced by empty ones.
    pub wipes: u64,
    /// Brokers that stopped in order.
    pub rolls: u64,
    /// Failed syncs and writes.
    pub disk_faults: u64,
    /// Bits flipped.
    pub flips: u64,
    /// Links that were cut.
    pub cuts: u64,
    /// Changes of the in-sync replicas that leaders asked for.
    pub in_sync_changes: u64,
    /// Leaderships of the controllers' log.
    pub controller_elections: u64,
    /// Snapshots of the metadata that took the place of entries.
    pub snapshots: u64,
    /// Topics created, altered and deleted.
    pub topic_changes: u64,
    /// Reassignments begun.
    pub reassignments: u64,
    /// Blocks of producer ids that brokers were given.
    pub id_blocks: u64,
    /// Runs with groups.
    pub with_groups: u64,
    /// Runs in which a coordinator moved, a member was fenced, and a partition changed hands.
    pub with_coordinator_move: u64,
    /// See above.
    pub with_fenced_member: u64,
    /// See above.
    pub with_rebalance: u64,
    /// Coordinators that began to decide where another did before.
    pub coordinator_moves: u64,
    /// Members that were told that they are none any more.
    pub members_fenced: u64,
    /// Members taken for gone by a coordinator.
    pub members_removed: u64,
    /// Times that a member got partitions.
    pub rebalances: u64,
    /// Offsets committed.
    pub commits: u64,
    /// Commits refused as of another epoch, or of who is no member.
    pub stale_commits: u64,
    /// Logs cut at their end.
    pub truncations: u64,
    /// Runs with a partition that ended without anybody who could be trusted to lead: offline rather than lossy.
    pub ended_offline: u64,
}

macro_rules! sum_fields {
    ($into:ident, $from:ident: $($field:ident),* $(,)?) => { $($into.$field += $from.$field;)* };
}

impl Coverage {
    /// Adds another run's.
    pub fn add(&mut self, other: &Coverage) {
        sum_fields!(self, other: steps, acknowledged, consumed, unknown, resent, elections, elections_under_way, crashes,
            power_losses, wipes, rolls, disk_faults, flips, cuts, in_sync_changes, controller_elections, snapshots,
            topic_changes, reassignments, id_blocks, with_groups, with_coordinator_move, with_fenced_member,
            with_rebalance, coordinator_moves, members_fenced, members_removed, rebalances, commits, stale_commits, truncations, ended_offline);
    }
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

/// A broker's process, as whoever means it names it.
type Process = (BrokerId, u64);

#[derive(Debug)]
enum Happening {
    /// Something may have arrived at an end of a stream.
    Arrival(StreamId, End),
    /// An end of a stream hears that it is lost.
    Loss(StreamId, End),
    /// A stream has been over a cut link for its idle time, if it is still cut.
    IdleTimeout(StreamId),
    /// A request reaches a controller.
    Call {
        to: Node,
        from: Attempted,
        request: Request,
    },
    /// A controller's word reaches who asked.
    Answered {
        from: Attempted,
        answer: controllers::Word,
    },
    /// A request is tried again, or is not waited for any longer.
    TryAgain {
        from: Attempted,
        is_last: bool,
    },
    /// A task of a broker is done.
    Ran {
        process: Process,
        partition: TopicPartition,
        task: Box<Task>,
    },
    /// A piece of a log was read.
    Scrubbed {
        process: Process,
        step: ScrubStep,
    },
    /// Events wait in a broker.
    Round(Process),
    Tick {
        process: Process,
        at: Time,
    },
    Dial {
        process: Process,
        leader: BrokerId,
    },
    Heartbeat(Process),
    HeartbeatArrives {
        controller: Node,
        process: Process,
        epoch: u64,
        applied: Index,
        wants_drain: bool,
    },
    HeartbeatAnswered {
        process: Process,
        epoch: u64,
        is_stale: bool,
        may_stop: bool,
    },
    /// A broker looks at the metadata log.
    CatchUp(Process),
    /// A leader tells followers its history.
    TellChains(Process),
    Commit,
    /// The controllers look at what is committed, and at who was not heard of.
    Control,
    ElectController,
    Disabuse(Node),
    /// A client has something to send.
    Produce {
        client: u32,
    },
    /// A client looks for a leader, and opens a stream.
    OpenStream {
        client: u32,
        topic: usize,
        partition: u32,
        attempt: u64,
    },
    ClientTick {
        client: u32,
    },
    /// The consumer that is in no group goes on.
    ReadOn,
    /// A broker is asked for records.
    AskedToRead {
        leader: BrokerId,
        ask: readers::Ask,
    },
    /// They arrive at the consumer.
    Read {
        ask: readers::Ask,
        piece: readers::Piece,
    },
    /// A member of a group goes on.
    MemberWakes(usize),
    /// Its request arrives at a broker.
    GroupAsked {
        broker: BrokerId,
        id: u64,
    },
    /// The answer arrives.
    GroupAnswered {
        id: u64,
        answer: GroupAnswer,
    },
    /// A broker's coordinators take in what happened.
    Coordinate {
        process: Process,
        at: Time,
    },
    DisturbMember,
    /// What a member's process had meant to say before it ended.
    SaidLate {
        number: usize,
        life: u32,
        request: quire_engine::group::Request,
    },
    /// An operator does something.
    Operate,
    /// A partition that another broker was to lead for a moment is to be led by this one again.
    LeadAgain {
        partition: TopicPartition,
        leader: BrokerId,
        between: BrokerId,
    },
    Fault,
    Heal,
    Start(BrokerId),
    Resume(BrokerId),
}

/// A request to the controller that is not answered.
#[derive(Debug)]
struct Call {
    purpose: Purpose,
    request: Request,
    until: Time,
}

/// See the module.
pub struct World {
    options: Options,
    schedule: Schedule<Happening>,
    network: Network<Wire>,
    dice: Dice,
    trace: Trace,
    quorum: Quorum<Entry>,
    /// Everything committed, and up to where.
    metadata: (Proposals, Index),
    controllers: BTreeMap<Node, Controller>,
    brokers: BTreeMap<BrokerId, Broker>,
    /// What each broker missed while it was paused.
    missed: BTreeMap<BrokerId, Vec<Happening>>,
    /// Brokers' requests, by who asked and its number.
    calls: BTreeMap<(Process, u64), Call>,
    next_call: u64,
    clients: Vec<Client>,
    readings: Readings,
    next_ask: u64,
    dice_of_readers: Dice,
    members: Vec<Member>,
    /// Members' requests, by their numbers.
    asks: BTreeMap<u64, members::Asked>,
    /// Who decided last about the groups of a partition.
    coordinators: BTreeMap<TopicPartition, (BrokerId, LeaderEpoch)>,
    ledger: Ledger,
    dice_of_members: Dice,
    operator: Operator,
    invariants: Invariants,
    next_value: u64,
    next_attempt: u64,
    /// Brokers that get no metadata before a time, though they are heard.
    blind: BTreeMap<BrokerId, Time>,
    /// Until then nothing is committed: the controllers' disks or links are slow.
    commits_from: Time,
    is_healing: bool,
    coverage: Coverage,
}

fn node(broker: BrokerId) -> Node {
    Node(broker.0)
}

impl World {
    /// A cluster that has not started.
    pub fn new(options: Options) -> World {
        let seed = options.seed;
        let mut dice = Dice::new(seed);
        let ids = (1..=options.brokers).map(BrokerId);
        let brokers = ids.map(|id| (id, Broker::new(id, dice.split().below(u64::MAX)))).collect();
        let controllers =
            (101..101 + CONTROLLERS).map(|id| (Node(id), Controller::new(dice.split()))).collect();
        let clients = (0..options.clients).map(Client::new).collect();
        let operator = Operator::new(&options.topics);
        let members = members::members_of(&options.groups, operator.topics_max());
        World {
            network: Network::new(dice.split()),
            quorum: Quorum::new(dice.split()),
            metadata: (Proposals::new(), 0),
            invariants: Invariants::default(),
            operator,
            options,
            schedule: Schedule::default(),
            dice,
            trace: Trace::default(),
            controllers,
            brokers,
            missed: BTreeMap::new(),
            calls: BTreeMap::new(),
            next_call: 0,
            clients,
            readings: Readings::new(),
            next_ask: 0,
            dice_of_readers: Dice::new(seed ^ 0x7ead_e125),
            members,
            asks: BTreeMap::new(),
            coordinators: BTreeMap::new(),
            ledger: Ledger::default(),
            dice_of_members: Dice::new(seed ^ 0x3e3b_e125),
            next_value: 0,
            next_attempt: 0,
            blind: BTreeMap::new(),
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
        for client in 0..self.options.clients {
            self.schedule.after(Duration::from_millis(200), Happening::Produce { client });
        }
        self.schedule.after(Duration::from_millis(200), Happening::ReadOn);
        for member in 0..self.members.len() {
            self.schedule.after(Duration::from_millis(300), Happening::MemberWakes(member));
            self.coverage.with_groups = 1;
        }
        if !self.members.is_empty() {
            self.schedule.after(Duration::from_millis(900), Happening::DisturbMember);
        }
        self.schedule.after(Duration::from_millis(150), Happening::Operate);
        self.schedule.after(Duration::from_millis(2), Happening::Control);
        self.schedule.after(Duration::from_millis(1), Happening::Commit);
        self.schedule.after(Duration::from_millis(700), Happening::Fault);
        self.run_until(Time::ZERO + FAULTS_LAST)?;
        self.step(Happening::Heal)?;
        let end = self.schedule.now() + HEALING_TIME_MAX;
        loop {
            let look = self.schedule.now() + HEALING_LOOK;
            self.run_until(look)?;
            self.restart_failed();
            match self.why_not_healed() {
                None => return self.check_healed(),
                Some(what) if look >= end => return Err(Violation::NotHealed { what }),
                Some(_) => {}
            }
        }
    }

    fn run_until(&mut self, end: Time) -> Result<(), Violation> {
        while let Some(happening) = self.schedule.next(end) {
            self.step(happening)?;
        }
        Ok(())
    }

    fn step(&mut self, happening: Happening) -> Result<(), Violation> {
        self.coverage.steps += 1;
        if self.coverage.steps > STEPS_MAX {
            return Err(Violation::NotHealed { what: format!("it goes round: {happening:?}") });
        }
        self.happen(happening)
    }

    fn say(&mut self, what: fmt::Arguments<'_>) {
        let now = self.schedule.now();
        self.trace.say(now, what);
    }

    /// Something that concerns a process; `None` if that is gone, or paused and will take it later.
    fn heard(&mut self, process: Process, happening: Happening) -> Option<Happening> {
        let (id, incarnation) = process;
        let broker = &self.brokers[&id];
        let running = broker.running.as_ref().filter(|_| broker.incarnation == incarnation)?;
        if running.is_paused {
            self.missed.entry(id).or_default().push(happening);
            return None;
        }
        Some(happening)
    }

    fn process(&self, id: BrokerId) -> Process {
        (id, self.brokers[&id].incarnation)
    }

    fn happen(&mut self, happening: Happening) -> Result<(), Violation> {
        let process = match &happening {
            Happening::Ran { process, .. }
            | Happening::Scrubbed { process, .. }
            | Happening::Round(process)
            | Happening::Tick { process, .. }
            | Happening::Dial { process, .. }
            | Happening::Heartbeat(process)
            | Happening::HeartbeatAnswered { process, .. }
            | Happening::CatchUp(process)
            | Happening::Coordinate { process, .. }
            | Happening::TellChains(process) => Some(*process),
            _ => None,
        };
        let happening = match process {
            Some(process) => match self.heard(process, happening) {
                Some(happening) => happening,
                None => return Ok(()),
            },
            None => happening,
        };
        match happening {
            Happening::Arrival(stream, end) => return self.arrival(stream, end),
            Happening::Loss(stream, end) => return self.loss(stream, end),
            Happening::IdleTimeout(stream) => self.idle_timeout(stream),
            Happening::Call { to, from, request } => self.controller_call(to, from, request)?,
            Happening::Answered { from, answer } => return self.word_arrives(from, answer),
            Happening::TryAgain { from, is_last } => return self.try_again(from, is_last),
            Happening::Ran { process, partition, task } => return self.ran(process.0, partition, *task),
            Happening::Scrubbed { process, step } => return self.scrubbed(process.0, step),
            Happening::Round(process) => return self.round(process.0),
            Happening::Tick { process, at } => return self.tick(process.0, at),
            Happening::Dial { process, leader } => return self.dial(process.0, leader),
            Happening::Heartbeat(process) => return self.heartbeat(process.0),
            Happening::HeartbeatArrives { controller, process, epoch, applied, wants_drain } => {
                self.heartbeat_arrives(controller, process, epoch, applied, wants_drain)?;
            }
            Happening::HeartbeatAnswered { process, epoch, is_stale, may_stop } => {
                return self.heartbeat_answered(process.0, epoch, is_stale, may_stop);
            }
            Happening::CatchUp(process) => return self.catch_up(process.0),
            Happening::TellChains(process) => return self.tell_chains(process.0),
            Happening::Commit => self.commit()?,
            Happening::Control => self.control()?,
            Happening::ElectController => self.elect_controller()?,
            Happening::Disabuse(controller) => self.disabuse(controller)?,
            Happening::Produce { client } => self.produce(client)?,
            Happening::OpenStream { client, topic, partition, attempt } => {
                self.open_stream(client, (topic, partition), attempt)?;
            }
            Happening::ClientTick { client } => self.client_tick(client)?,
            Happening::ReadOn => self.read_on(),
            Happening::AskedToRead { leader, ask } => self.asked_to_read(leader, ask)?,
            Happening::Read { ask, piece } => self.has_read(ask, piece)?,
            Happening::MemberWakes(member) => self.wake_member(member),
            Happening::GroupAsked { broker, id } => self.group_asked(broker, id)?,
            Happening::GroupAnswered { id, answer } => self.group_answered(id, answer)?,
            Happening::Coordinate { process, at } => self.coordinate(process, at)?,
            Happening::DisturbMember => self.disturb_member(),
            Happening::SaidLate { number, life, request } => self.said_late(number, life, request),
            Happening::Operate => self.operate()?,
            Happening::LeadAgain { partition, leader, between } => {
                self.lead_again(partition, leader, between);
            }
            Happening::Fault => self.fault()?,
            Happening::Heal => self.heal()?,
            Happening::Start(broker) => return self.start(broker),
            Happening::Resume(broker) => self.resume(broker),
        }
        Ok(())
    }

    /// Whoever may be elected has everything that was ever committed, on its disk.
    fn check_members(&self) -> Result<(), Violation> {
        let image = self.metadata.0.image();
        for topic in image.topics() {
            for known in &topic.partitions {
                let partition = TopicPartition { topic: topic.id, partition: known.index };
                let is_synced = self.invariants.is_synced(partition);
                let exposed = self.invariants.exposed(partition);
                for id in known.in_sync.iter().chain(&known.eligible) {
                    let broker = &self.brokers[id];
                    let epoch = image.broker(*id).map(|known| known.epoch);
                    let ends = match &broker.running {
                        // What this process has to say against itself it says when it registers.
                        Some(running) if running.registration.is_none() || running.registration != epoch => {
                            None
                        }
                        Some(running) if running.is_suspect(partition) => None,
                        Some(running) => running.ends(partition),
                        None if is_synced => broker.left.get(&partition).copied(),
                        None => None,
                    };
                    let Some(ends) = ends else { continue };
                    let end = if is_synced { ends.durable_end } else { ends.log_end };
                    if end.0 < exposed {
                        return Err(Violation::Lacks { broker: *id, partition, end, exposed });
                    }
                }
            }
        }
        Ok(())
    }
}
