//! The simulated world: three nodes, a log, clients, and everything that can go wrong between them, from one seed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use quire_engine::group::coordinator::{Action, Coordinator, Input, Load, Now, RequestId, Serial};
use quire_engine::group::records::KeyValue;
use quire_engine::group::request::{Asker, Commit, CommitOutcome, FetchOffsets};
use quire_engine::group::{
    Generation, GroupRefusal, GroupSettings, Heartbeat, Partitions, Request, Response,
};
use quire_engine::{Random, SplitMix64, Time};
use quire_protocol::{ErrorCode, LeaderEpoch, Timestamp, TopicPartition};

use crate::client::Client;
use crate::desk::{GROUP, compacted, offset, topics};
use crate::log::Log;

const NODES: usize = 3;
/// Faults happen until then.
const CALM: Duration = Duration::from_secs(45);
/// Everything has to be well by then.
const END: Duration = Duration::from_secs(100);

/// What happened, to see that a run was worth it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    pub moves: u64,
    pub short: u64,
    pub taken_late: u64,
    pub unknown: u64,
    pub not_confirmed: u64,
    pub taken_over: u64,
    pub removed: u64,
    pub fenced: u64,
    pub committed: u64,
    pub stale: u64,
    pub behind: u64,
    pub read: u64,
    /// Of everything that happened, in its order.
    pub trace: u64,
}

enum Event {
    Tell { node: usize, incarnation: u32, input: Input },
    Timer { node: usize, incarnation: u32 },
    Enters { node: usize, handed: u64 },
    Arrives { id: u64, node: usize },
    Answered { id: u64, result: Result<Response, GroupRefusal> },
    Wakes(usize),
    Fault,
    Restarts(usize),
    EnoughReplicas,
}

/// On its way from a node to the log.
struct Handed {
    number: u64,
    leader_epoch: u32,
    serial: Serial,
    /// None of them: the node only wants to know that it leads.
    records: Vec<KeyValue>,
}

struct Node {
    coordinator: Coordinator,
    incarnation: u32,
    is_up: bool,
    handed: VecDeque<Handed>,
    /// The log has refused or lost something of this node, and takes nothing before it loads.
    is_cut: bool,
    /// Metadata comes in order.
    metadata_at: Time,
    log_at: Time,
    timer: Option<Time>,
}

struct Asked {
    client: usize,
    life: u32,
    sent: Time,
    request: Request,
    /// What was known to be committed when it was sent.
    floor: BTreeMap<TopicPartition, u64>,
    /// Whether the log said, when it arrived, that its sender is in another epoch by now.
    was_stale: bool,
}

pub struct World {
    random: SplitMix64,
    now: Time,
    events: BTreeMap<(Time, u64), Event>,
    numbers: u64,
    nodes: Vec<Node>,
    log: Log,
    /// Whether too few replicas are in sync: the log takes nothing.
    is_short: bool,
    clients: Vec<Client>,
    asked: BTreeMap<u64, Asked>,
    partitions: BTreeMap<&'static str, u32>,
    floor: BTreeMap<TopicPartition, u64>,
    pub coverage: Coverage,
}

impl World {
    /// Runs a seed to its end.
    pub fn run(seed: u64) -> Result<Coverage, String> {
        let mut world = World::new(seed);
        while let Some(((now, _), event)) = world.events.pop_first() {
            if now >= Time::after_origin(END) {
                break;
            }
            world.now = now;
            world.happen(event).map_err(|what| format!("at {:?}: {what}", now.since(Time::ZERO)))?;
        }
        world.check_healed()?;
        Ok(world.coverage)
    }

    fn new(seed: u64) -> World {
        let mut random = SplitMix64::new(seed);
        let count = 3 + (random.next_u64() % 4) as usize;
        let settings =
            || GroupSettings { heartbeat_interval: Duration::from_millis(800), ..Default::default() };
        let node = |_| Node {
            coordinator: Coordinator::new(settings()),
            incarnation: 0,
            is_up: true,
            handed: VecDeque::new(),
            is_cut: false,
            metadata_at: Time::ZERO,
            log_at: Time::ZERO,
            timer: None,
        };
        let subscribes = |number: usize| match number % 4 {
            3 => vec!["a".into(), "late".into()],
            _ => vec!["a".into(), "b".into(), "late".into()],
        };
        let mut world = World {
            random,
            now: Time::ZERO,
            events: BTreeMap::new(),
            numbers: 0,
            nodes: (0..NODES).map(node).collect(),
            log: Log::default(),
            is_short: false,
            clients: (0..count).map(|number| Client::new(number, subscribes(number))).collect(),
            asked: BTreeMap::new(),
            partitions: [("a", 4), ("b", 2)].into(),
            floor: BTreeMap::new(),
            coverage: Coverage::default(),
        };
        world.tell_topics();
        world.move_leader(0);
        (0..count).for_each(|client| world.after(Duration::ZERO, Event::Wakes(client)));
        world.after(Duration::from_secs(2), Event::Fault);
        world
    }

    // Chance and time.

    fn below(&mut self, end: u64) -> u64 {
        self.random.next_u64() % end
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }

    fn is_calm(&self) -> bool {
        self.now >= Time::after_origin(CALM)
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.at(self.now + delay, event);
    }

    fn at(&mut self, time: Time, event: Event) {
        self.numbers += 1;
        self.events.insert((time, self.numbers), event);
    }

    fn note(&mut self, what: u64, detail: u64) {
        for word in [self.now.since(Time::ZERO).as_nanos() as u64, what, detail] {
            self.coverage.trace = (self.coverage.trace ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(5);
        }
    }

    // What happens.

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Tell { node, incarnation, input } if self.is_running(node, incarnation) => {
                self.note(1, node as u64);
                self.give(node, input)
            }
            Event::Timer { node, incarnation } if self.is_running(node, incarnation) => {
                self.nodes[node].timer = None;
                self.give(node, Input::TimePassed)
            }
            Event::Tell { .. } | Event::Timer { .. } => Ok(()),
            Event::Enters { node, handed } => self.enter(node, handed),
            Event::Arrives { id, node } => self.arrive(id, node),
            Event::Answered { id, result } => self.answered(id, result),
            Event::Wakes(client) => {
                self.wake(client);
                let pause = self.millis(60, 140);
                self.after(pause, Event::Wakes(client));
                Ok(())
            }
            Event::Fault => self.fault(),
            Event::EnoughReplicas => {
                self.is_short = false;
                self.tell_replicas();
                Ok(())
            }
            Event::Restarts(node) => {
                self.nodes[node].is_up = true;
                self.tell_topics();
                Ok(())
            }
        }
    }

    fn is_running(&self, node: usize, incarnation: u32) -> bool {
        self.nodes[node].is_up && self.nodes[node].incarnation == incarnation
    }

    fn give(&mut self, node: usize, input: Input) -> Result<(), String> {
        let wall = Timestamp(1_700_000_000_000 + self.now.since(Time::ZERO).as_millis() as i64);
        let mut actions = Vec::new();
        let now = Now { time: self.now, wall };
        self.nodes[node].coordinator.handle(now, input, &mut self.random, &mut actions);
        for action in actions {
            match action {
                Action::Load(load) => self.load(node, load)?,
                Action::Append { leader_epoch, serial, records } => {
                    self.hand(node, leader_epoch, serial, records);
                }
                Action::Confirm { leader_epoch, serial } => self.hand(node, leader_epoch, serial, Vec::new()),
                Action::Answer { id, result } => self.answer(id.0, result),
                Action::Removed { .. } => self.coverage.removed += 1,
            }
        }
        let deadline = self.nodes[node].coordinator.deadline();
        if let Some(at) = deadline.filter(|at| self.nodes[node].timer.is_none_or(|timer| *at < timer)) {
            let at = at.max(self.now);
            self.nodes[node].timer = Some(at);
            let incarnation = self.nodes[node].incarnation;
            self.at(at, Event::Timer { node, incarnation });
        }
        Ok(())
    }

    // The log.

    fn hand(&mut self, node: usize, leader_epoch: LeaderEpoch, serial: Serial, records: Vec<KeyValue>) {
        let delay =
            if !self.is_calm() && self.chance(5) { self.millis(200, 3000) } else { self.millis(1, 20) };
        self.numbers += 1;
        let number = self.numbers;
        let at = self.nodes[node].log_at.max(self.now + delay);
        self.nodes[node].log_at = at;
        self.nodes[node].handed.push_back(Handed { number, leader_epoch: leader_epoch.0, serial, records });
        self.at(at, Event::Enters { node, handed: number });
    }

    fn enter(&mut self, node: usize, number: u64) -> Result<(), String> {
        if self.nodes[node].handed.front().is_none_or(|handed| handed.number != number) {
            return Ok(());
        }
        let handed = self.nodes[node].handed.pop_front().expect("it is there");
        if self.nodes[node].is_cut {
            return Ok(());
        }
        if self.is_short {
            self.nodes[node].is_cut = true;
            let delay = self.millis(1, 50);
            let refused = Input::Refused { serial: handed.serial, code: ErrorCode::NotEnoughReplicas };
            self.tell(node, delay, refused);
            return Ok(());
        }
        let is_lost = !self.is_calm() && self.chance(4);
        let is_unknown = !self.is_calm() && self.chance(3);
        let is_taken = self.log.is_led_by(node, handed.leader_epoch) && !is_lost;
        if is_taken {
            self.take(&handed)?;
        }
        if is_taken && !is_unknown {
            let delay = self.millis(1, 15);
            self.tell(node, delay, Input::Committed(handed.serial));
            return Ok(());
        }
        self.coverage.unknown += 1;
        self.coverage.not_confirmed += u64::from(handed.records.is_empty());
        self.nodes[node].is_cut = true;
        let delay = if self.is_calm() { self.millis(1, 50) } else { self.millis(1, 4000) };
        self.tell(node, delay, Input::Failed(handed.serial));
        Ok(())
    }

    fn take(&mut self, handed: &Handed) -> Result<(), String> {
        let bytes = |record: &KeyValue| record.0.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        self.note(2, handed.records.iter().map(bytes).sum());
        self.log.append(&handed.records)
    }

    /// Of what is on its way, some more enters the log; the rest never does.
    fn cut(&mut self, node: usize) -> Result<(), String> {
        let handed = std::mem::take(&mut self.nodes[node].handed);
        let count = self.below(handed.len() as u64 + 1) as usize;
        for late in handed.into_iter().take(count) {
            if self.nodes[node].is_cut || !self.log.is_led_by(node, late.leader_epoch) {
                break;
            }
            self.take(&late)?;
            self.coverage.taken_late += 1;
            if self.chance(50) {
                let delay = self.millis(1, 500);
                self.tell(node, delay, Input::Committed(late.serial));
            }
        }
        Ok(())
    }

    fn load(&mut self, node: usize, load: Load) -> Result<(), String> {
        self.cut(node)?;
        self.nodes[node].is_cut = false;
        let readable = self.log.readable(load.leader_epoch.0).to_vec();
        // Compaction goes on while nobody looks.
        let cut = self.below(readable.len() as u64 + 1) as usize;
        let records = [compacted(&readable[..cut]), readable[cut..].to_vec()].concat();
        let half = records.len() / 2;
        let delay = self.millis(5, 100);
        for part in [records[..half].to_vec(), records[half..].to_vec()] {
            self.tell(node, delay, Input::Loaded { load, records: part });
        }
        let delay = delay + self.millis(0, 100);
        self.tell(node, delay, Input::LoadEnd(load));
        Ok(())
    }

    fn tell(&mut self, node: usize, delay: Duration, input: Input) {
        let incarnation = self.nodes[node].incarnation;
        self.after(delay, Event::Tell { node, incarnation, input });
    }

    /// Leaderships and topics, as each node learns of them.
    fn tell_metadata(&mut self, node: usize, delay: Duration, input: Input) {
        let at = self.nodes[node].metadata_at.max(self.now + delay);
        self.nodes[node].metadata_at = at;
        self.tell(node, at.since(self.now), input);
    }

    fn tell_topics(&mut self) {
        let counts: Vec<(&str, u32)> = self.partitions.iter().map(|(name, count)| (*name, *count)).collect();
        let known = topics(&counts);
        for node in 0..NODES {
            let delay = self.millis(0, 400);
            self.tell_metadata(node, delay, Input::Topics(known.clone()));
        }
    }

    // Faults.

    fn fault(&mut self) -> Result<(), String> {
        if self.is_calm() {
            return self.calm_down();
        }
        match self.below(11) {
            0..=3 => {
                let before = self.log.leader;
                self.cut_for_good(before)?;
                let to = self.up();
                self.move_leader(to);
            }
            4 => self.crash_node()?,
            5 => {
                let name = ["a", "b", "late"][self.below(3) as usize];
                *self.partitions.entry(name).or_insert(0) += 1;
                self.tell_topics();
            }
            6 => {
                self.coverage.short += u64::from(!self.is_short);
                self.is_short = true;
                self.tell_replicas();
                let pause = self.millis(100, 8000);
                self.after(pause, Event::EnoughReplicas);
            }
            _ => self.disturb_client(),
        }
        let pause = self.millis(100, 2500);
        self.after(pause, Event::Fault);
        Ok(())
    }

    /// A leader that is none any more: what it has on its way and does not enter now is refused.
    fn cut_for_good(&mut self, node: usize) -> Result<(), String> {
        let handed: Vec<Serial> = self.nodes[node].handed.iter().map(|handed| handed.serial).collect();
        self.cut(node)?;
        if let Some(last) = handed.last() {
            self.nodes[node].is_cut = true;
            let delay = self.millis(1, 4000);
            self.tell(node, delay, Input::Failed(*last));
        }
        Ok(())
    }

    fn move_leader(&mut self, to: usize) {
        let from = self.log.leader;
        self.log.hand_to(to);
        self.coverage.moves += 1;
        self.note(3, to as u64);
        if from != to {
            // It may believe for long that it leads.
            let delay = if self.chance(50) { self.millis(1, 200) } else { self.millis(200, 12_000) };
            self.tell_metadata(from, delay, Input::Follows);
        }
        let delay = self.millis(1, 300);
        let leader_epoch = LeaderEpoch(self.log.leader_epoch);
        self.tell_metadata(to, delay, Input::Leads(leader_epoch));
        self.tell_replicas();
    }

    fn tell_replicas(&mut self) {
        let delay = self.millis(1, 300);
        let are_enough = !self.is_short;
        self.tell_metadata(self.log.leader, delay, Input::Replicas { are_enough });
    }

    fn up(&mut self) -> usize {
        let up: Vec<usize> = (0..NODES).filter(|node| self.nodes[*node].is_up).collect();
        up[self.below(up.len() as u64) as usize]
    }

    fn crash_node(&mut self) -> Result<(), String> {
        let node = self.up();
        if self.nodes.iter().filter(|node| node.is_up).count() == 1 {
            return Ok(());
        }
        self.cut(node)?;
        let settings = GroupSettings { heartbeat_interval: Duration::from_millis(800), ..Default::default() };
        let incarnation = self.nodes[node].incarnation + 1;
        self.nodes[node] = Node {
            coordinator: Coordinator::new(settings),
            incarnation,
            is_up: false,
            handed: VecDeque::new(),
            is_cut: false,
            metadata_at: self.now,
            log_at: self.now,
            timer: None,
        };
        let pause = self.millis(500, 4000);
        self.after(pause, Event::Restarts(node));
        if self.log.leader == node {
            let to = self.up();
            self.move_leader(to);
        }
        Ok(())
    }

    fn disturb_client(&mut self) {
        let client = self.below(self.clients.len() as u64) as usize;
        match self.below(5) {
            0 | 1 => {
                let pause = self.millis(500, 15_000);
                self.clients[client].paused_until = self.now + pause;
            }
            2 | 3 => {
                let pause = self.millis(100, 6000);
                let at = self.now + pause;
                self.clients[client].is_alive = false;
                self.clients[client].begin_life(at);
            }
            _ => self.leave(client),
        }
    }

    fn leave(&mut self, client: usize) {
        if self.clients[client].membership.is_none() {
            return;
        }
        let heartbeat = self.clients[client].heartbeat();
        let is_back = self.clients[client].is_static && self.chance(70);
        let epoch = if is_back { Generation::PAUSES } else { Generation::LEAVES };
        self.send(client, Request::Heartbeat(Heartbeat { epoch, ..heartbeat }));
        let at = self.now + self.millis(100, 3000);
        self.clients[client].begin_life(at);
    }

    /// No more faults: every node is up, and the last to be told who leads.
    fn calm_down(&mut self) -> Result<(), String> {
        for node in 0..NODES {
            if !self.nodes[node].is_up {
                self.nodes[node].is_up = true;
            }
        }
        let before = self.log.leader;
        self.cut_for_good(before)?;
        self.is_short = false;
        let to = self.up();
        self.move_leader(to);
        self.partitions.entry("late").or_insert(2);
        self.tell_topics();
        for client in &mut self.clients {
            client.paused_until = client.paused_until.min(self.now);
            client.starts_at = client.starts_at.min(self.now + Duration::from_secs(1));
        }
        Ok(())
    }

    // Clients.

    fn wake(&mut self, number: usize) {
        let now = self.now;
        let client = &mut self.clients[number];
        if now < client.starts_at || now < client.paused_until {
            return;
        }
        client.look_at_clock(now);
        if client.beating.is_none() && client.beats_at <= now {
            if client.tells_all {
                client.node = if self.random.next_u64() % 100 < 85 {
                    self.log.leader
                } else {
                    (self.random.next_u64() % NODES as u64) as usize
                };
            }
            let heartbeat = self.clients[number].heartbeat();
            let id = self.send(number, Request::Heartbeat(heartbeat));
            self.clients[number].beating = Some((id, now));
        }
        self.process(number);
    }

    /// It processes records of what it owns, and commits, mostly forwards.
    fn process(&mut self, number: usize) {
        let Some(member) = self.clients[number].membership.clone() else { return };
        if self.clients[number].owned(self.now).is_none() || !self.chance(15) {
            return;
        }
        let mut offsets = Vec::new();
        let mut unknown = Vec::new();
        for partition in &member.owned {
            let step = self.below(8);
            match self.clients[number].positions.get_mut(partition) {
                Some(position) => {
                    *position += step;
                    let back = if step == 7 { (*position).min(9) } else { 0 };
                    offsets.push(offset(*partition, *position - back));
                }
                None => unknown.push(*partition),
            }
        }
        let asker = Some(Asker {
            member: self.clients[number].member_id(),
            epoch: member.epoch,
            principal: Arc::default(),
        });
        if !unknown.is_empty() || self.chance(10) {
            let request = FetchOffsets { group: GROUP.into(), partitions: None };
            self.send(number, Request::FetchOffsets(request));
        }
        if !offsets.is_empty() {
            self.send(number, Request::Commit(Commit { group: GROUP.into(), asker, offsets }));
        }
    }

    fn send(&mut self, client: usize, request: Request) -> u64 {
        self.numbers += 1;
        let id = self.numbers;
        let (life, node) = (self.clients[client].life, self.clients[client].node);
        let (sent, floor) = (self.now, self.floor.clone());
        self.asked.insert(id, Asked { client, life, sent, request, floor, was_stale: false });
        if !self.is_calm() && self.chance(3) {
            return id;
        }
        let delay =
            if !self.is_calm() && self.chance(15) { self.millis(500, 7000) } else { self.millis(1, 10) };
        self.after(delay, Event::Arrives { id, node });
        id
    }

    fn arrive(&mut self, id: u64, node: usize) -> Result<(), String> {
        if !self.nodes[node].is_up {
            return Ok(());
        }
        let asked = self.asked.get_mut(&id).expect("it was sent");
        let request = asked.request.clone();
        if let Request::Commit(Commit { asker: Some(asker), .. }) = &request {
            let epoch = self.log.members.get(&asker.member).map(|current| current.epoch);
            asked.was_stale = epoch != Some(asker.epoch);
        }
        self.give(node, Input::Asked { id: RequestId(id), request })
    }

    fn answer(&mut self, id: u64, result: Result<Response, GroupRefusal>) {
        if !self.is_calm() && self.chance(3) {
            return;
        }
        let delay =
            if !self.is_calm() && self.chance(4) { self.millis(100, 5000) } else { self.millis(1, 10) };
        self.after(delay, Event::Answered { id, result });
    }

    fn answered(&mut self, id: u64, result: Result<Response, GroupRefusal>) -> Result<(), String> {
        let asked = self.asked.remove(&id).expect("it is answered once");
        self.note(4, id);
        match (&result, &asked.request) {
            (Ok(Response::Commit(outcomes)), _) => self.check_commit(&asked, outcomes)?,
            (Ok(Response::Offsets(_)), _) => {}
            (Err(refusal), Request::Heartbeat(_)) => {
                let code = refusal.code();
                self.coverage.fenced +=
                    u64::from(matches!(code, ErrorCode::FencedMemberEpoch | ErrorCode::UnknownMember));
            }
            (Err(refusal), Request::Commit(_)) => {
                self.coverage.stale += u64::from(refusal.code() == ErrorCode::StaleMemberEpoch);
            }
            _ => {}
        }
        if let Ok(Response::Offsets(offsets)) = &result {
            let read = offsets.iter().map(|(partition, committed)| (*partition, committed.offset.0));
            self.check_read(&asked, &read.collect())?;
        }
        let client = &mut self.clients[asked.client];
        if client.life != asked.life || !client.is_alive || self.now < client.starts_at {
            return Ok(());
        }
        match (result, asked.request) {
            (Ok(Response::Offsets(offsets)), _) => {
                let Some(member) = &client.membership else { return Ok(()) };
                for partition in &member.owned {
                    let committed = offsets.iter().find(|(id, _)| id == partition);
                    let from = committed.map_or(0, |(_, committed)| committed.offset.0);
                    client.positions.entry(*partition).or_insert(from);
                }
                Ok(())
            }
            (result, Request::Heartbeat(_)) if client.beating.is_some_and(|(beat, _)| beat == id) => {
                self.beaten(asked.client, asked.sent, result)
            }
            _ => Ok(()),
        }
    }

    fn beaten(
        &mut self,
        number: usize,
        sent: Time,
        result: Result<Response, GroupRefusal>,
    ) -> Result<(), String> {
        // A paused process reads its answers when it goes on; by then it looks at its clock first.
        let is_paused = self.now < self.clients[number].paused_until;
        if is_paused {
            return Ok(());
        }
        self.clients[number].look_at_clock(self.now);
        if self.clients[number].beating.is_none() {
            return Ok(());
        }
        self.clients[number].beating = None;
        let slowness = if self.chance(25) { self.millis(500, 14_000) } else { self.millis(1, 400) };
        let slowness = if self.is_calm() { slowness.min(Duration::from_secs(1)) } else { slowness };
        match result {
            Ok(Response::Heartbeat(answer)) => {
                let added = self.clients[number].take(self.now, sent, &answer, slowness);
                self.check_alone(number, &added)
            }
            Ok(other) => Err(format!("a heartbeat was answered with {other:?}")),
            Err(refusal) => {
                let client = &mut self.clients[number];
                client.tells_all = true;
                client.beats_at = self.now + Duration::from_millis(150);
                match refusal.code() {
                    ErrorCode::FencedMemberEpoch | ErrorCode::UnknownMember => client.lose_all(),
                    code if code.is_retriable() || code == ErrorCode::InstanceInUse => {}
                    _ => return Err(format!("a heartbeat was refused: {refusal}")),
                }
                Ok(())
            }
        }
    }

    // What must hold.

    fn check_alone(&mut self, number: usize, added: &Partitions) -> Result<(), String> {
        if added.is_empty() {
            return Ok(());
        }
        self.coverage.taken_over += 1;
        for other in self.clients.iter().filter(|other| other.number != number) {
            let owned = other.owned(self.now);
            if let Some(both) = owned.and_then(|owned| owned.intersection(added).next()) {
                return Err(format!("{both} is client {number}'s, and still client {}'s", other.number));
            }
        }
        Ok(())
    }

    fn check_commit(
        &mut self,
        asked: &Asked,
        outcomes: &[(TopicPartition, CommitOutcome)],
    ) -> Result<(), String> {
        let Request::Commit(Commit { asker: Some(asker), offsets, .. }) = &asked.request else {
            return Err("a commit was answered that nobody made".to_owned());
        };
        for ((partition, outcome), offset) in outcomes.iter().zip(offsets) {
            self.coverage.behind += u64::from(matches!(outcome, CommitOutcome::Behind { .. }));
            if *outcome != CommitOutcome::Taken {
                continue;
            }
            self.coverage.committed += 1;
            if asked.was_stale {
                return Err(format!("{} committed in epoch {}, which is over", asker.member, asker.epoch));
            }
            if self.log.offsets.get(partition).is_none_or(|committed| *committed < offset.offset.0) {
                return Err(format!("{partition}: an acknowledged offset is not in the log"));
            }
            let floor = self.floor.entry(*partition).or_default();
            *floor = offset.offset.0.max(*floor);
        }
        Ok(())
    }

    fn check_read(&mut self, asked: &Asked, read: &BTreeMap<TopicPartition, u64>) -> Result<(), String> {
        self.coverage.read += 1;
        for (partition, floor) in &asked.floor {
            let offset = read.get(partition).copied().unwrap_or_default();
            if offset < *floor {
                return Err(format!("{partition}: {offset} was read after {floor}"));
            }
        }
        for (partition, offset) in read {
            if self.log.offsets.get(partition).is_none_or(|committed| committed < offset) {
                return Err(format!("{partition}: {offset} was read, and is not committed"));
            }
            let floor = self.floor.entry(*partition).or_default();
            *floor = (*offset).max(*floor);
        }
        Ok(())
    }

    /// In the end everybody is there, and everything has an owner.
    fn check_healed(&self) -> Result<(), String> {
        let mut free = Partitions::new();
        for (name, count) in &self.partitions {
            free.extend(crate::desk::partitions(name, 0..*count));
        }
        let members: Vec<Arc<str>> = self.clients.iter().map(Client::member_id).collect();
        if !self.log.members.keys().eq(members.iter()) {
            return Err(format!("members {:?}, clients {members:?}", self.log.members.keys()));
        }
        for client in &self.clients {
            let Some(member) = &client.membership else {
                return Err(format!("client {} is no member", client.number));
            };
            let current = &self.log.members[&client.member_id()];
            if member.owned != current.assigned || !current.revoking.is_empty() {
                return Err(format!("client {} has not what it is to have", client.number));
            }
            if member.owned.iter().any(|partition| !free.remove(partition)) {
                return Err(format!("client {} has what is another's", client.number));
            }
        }
        let leader = &self.nodes[self.log.leader].coordinator;
        if leader.deciding().is_none() || !leader.groups().is_stable(GROUP) {
            return Err("the group is not stable".to_owned());
        }
        if free.is_empty() { Ok(()) } else { Err(format!("{} partitions have no owner", free.len())) }
    }
}
