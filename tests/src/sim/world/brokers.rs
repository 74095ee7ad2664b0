//! What happens to brokers: rounds, tasks, streams, heartbeats, and the metadata they follow.

use std::time::Duration;

use quire_broker::simulation::{Event, ScrubStep, Task};
use quire_engine::Time;
use quire_engine::controller::Response;
use quire_engine::controller::proposals::Input;
use quire_protocol::replicate::{FollowerMessage, LeaderMessage};
use quire_protocol::{BrokerId, OFFSETS_TOPIC, TopicPartition};

use super::super::broker::{Answer, Effect, Purpose, Running, Wire, now};
use super::super::invariants::Violation;
use super::super::network::{End, StreamId};
use super::controllers::Attempted;
use super::{Call, Happening, IDLE_TIME, World, node};

const HEARTBEAT: Duration = Duration::from_millis(100);
const RECONNECT: Duration = Duration::from_millis(20);
/// How long a broker waits for what it asked the controller for.
const PROPOSE_TIME_MAX: Duration = Duration::from_millis(900);
/// How often a leader tells its followers the history of one partition.
const CHAIN_TOLD_INTERVAL: Duration = Duration::from_millis(300);
/// Entries that a broker lacks from which on it may be sent a snapshot in their place.
const SNAPSHOT_LAG: usize = 4;

impl World {
    /// Has a broker's process do something, carries out what follows, and looks at what became of it.
    pub(super) fn tell(
        &mut self,
        id: BrokerId,
        what: impl FnOnce(&mut Running, &mut Vec<Effect>),
    ) -> Result<(), Violation> {
        let broker = self.brokers.get_mut(&id).expect("it exists");
        let Some(running) = &mut broker.running else { return Ok(()) };
        let mut effects = Vec::new();
        what(running, &mut effects);
        for effect in effects {
            self.carry_out(id, effect)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, id: BrokerId, effect: Effect) -> Result<(), Violation> {
        let process = self.process(id);
        match effect {
            Effect::Connect(leader) => {
                let delay = self.dice.wait(Duration::from_micros(100), Duration::from_millis(4));
                self.schedule.after(delay, Happening::Dial { process, leader });
            }
            Effect::Disconnect(stream, end) => self.disconnect(stream, end),
            Effect::Send(stream, to, wire) => self.send(stream, to, wire),
            Effect::Run(partition, task) => {
                let longest = if !self.is_healing && self.dice.happens(10) { 600 } else { 15 };
                let delay = self.dice.wait(Duration::from_micros(100), Duration::from_millis(longest));
                self.schedule.after(delay, Happening::Ran { process, partition, task: Box::new(task) });
            }
            Effect::Scrub(step) => {
                let delay = self.dice.wait(Duration::from_micros(100), Duration::from_millis(5));
                self.schedule.after(delay, Happening::Scrubbed { process, step });
            }
            Effect::Call(purpose, request) => {
                let number = self.next_call;
                self.next_call += 1;
                if let Purpose::Propose(..) = purpose {
                    self.coverage.in_sync_changes += 1;
                    self.say(format_args!("broker {id}: asks {request:?}"));
                }
                let until = self.schedule.now() + PROPOSE_TIME_MAX;
                self.calls.insert((process, number), Call { purpose, request, until });
                let from = Attempted::Broker(process, number);
                self.schedule.at(until, Happening::TryAgain { from, is_last: true });
                return self.try_again(from, false);
            }
            Effect::Round => {
                let running = self.brokers.get_mut(&id).and_then(|broker| broker.running.as_mut());
                if let Some(running) = running
                    && !std::mem::replace(&mut running.is_round_due, true)
                {
                    let delay = self.dice.wait(Duration::ZERO, Duration::from_micros(300));
                    self.schedule.after(delay, Happening::Round(process));
                }
            }
            Effect::Coordinate => self.coordinate_soon(id),
            Effect::GroupAnswered(request, answer) => self.group_answers(id, request, answer),
            Effect::Coordinates(partition, epoch) => self.coordinates(id, partition, epoch),
            Effect::GroupsDiffer(partition) => {
                let what = format!("broker {id} begins with other groups than {partition} has");
                return Err(Violation::Group { what });
            }
            Effect::MemberRemoved => self.coverage.members_removed += 1,
            Effect::Stopped => self.stopped_in_order(id),
        }
        Ok(())
    }

    pub(super) fn round(&mut self, id: BrokerId) -> Result<(), Violation> {
        let time = self.schedule.now();
        let ahead = i64::from(id.0) * 40;
        self.tell(id, |running, effects| {
            running.is_round_due = false;
            running.round(now(time, ahead), effects);
        })?;
        self.look(id)?;
        self.schedule_tick(id);
        self.check_members()
    }

    /// Holds what a broker has against everything that was seen before.
    fn look(&mut self, id: BrokerId) -> Result<(), Violation> {
        let Some(running) = &self.brokers[&id].running else { return Ok(()) };
        let internal = self.metadata.0.image().topic_named(OFFSETS_TOPIC).map(|topic| topic.id);
        let partitions: Vec<_> =
            running.partitions().filter_map(|partition| running.partition(partition)).collect();
        for handle in partitions {
            let partition = handle.id();
            if self.invariants.look(id, &handle)? {
                if Some(partition.topic) == internal {
                    self.ledger.look(&handle)?;
                }
                let reader = handle.reader();
                let (start, end, high) = (reader.log_start(), reader.end_offset(), reader.high_watermark());
                self.say(format_args!("broker {id}: {partition} {start}..{high}..{end}"));
            }
            let standing = handle.standing();
            if standing.is_leading && standing.is_settled {
                let knows = handle.reader().high_watermark();
                self.invariants.settled(id, partition, standing.leader_epoch, knows)?;
            }
            if standing.is_leading && self.operator.leads(partition, id, standing.leader_epoch) {
                self.coverage.elections += 1;
                self.coverage.elections_under_way += u64::from(self.invariants.has_open_writes());
                let (epoch, end) = (standing.leader_epoch, handle.reader().end_offset());
                self.say(format_args!("broker {id}: leads {partition} in epoch {epoch} from {end}"));
            }
        }
        Ok(())
    }

    fn schedule_tick(&mut self, id: BrokerId) {
        let process = self.process(id);
        let now = self.schedule.now();
        let Some(running) = self.brokers.get_mut(&id).and_then(|broker| broker.running.as_mut()) else {
            return;
        };
        if let Some(at) = running.deadline().map(|at| at.max(now))
            && running.tick_at.is_none_or(|known| at < known)
        {
            running.tick_at = Some(at);
            self.schedule.at(at, Happening::Tick { process, at });
        }
    }

    pub(super) fn tick(&mut self, id: BrokerId, at: Time) -> Result<(), Violation> {
        let running = self.brokers.get_mut(&id).and_then(|broker| broker.running.as_mut());
        let Some(running) = running.filter(|running| running.tick_at == Some(at)) else { return Ok(()) };
        running.tick_at = None;
        self.round(id)
    }

    pub(super) fn ran(
        &mut self,
        id: BrokerId,
        partition: TopicPartition,
        task: Task,
    ) -> Result<(), Violation> {
        let done = task.run();
        self.tell(id, |running, effects| {
            running.events.push(Event::Done(partition, done));
            effects.push(Effect::Round);
        })
    }

    pub(super) fn scrubbed(&mut self, id: BrokerId, step: ScrubStep) -> Result<(), Violation> {
        let event = step.run();
        self.tell(id, |running, effects| {
            running.events.push(event);
            effects.push(Effect::Round);
        })
    }

    // Streams.

    pub(super) fn dial(&mut self, id: BrokerId, leader: BrokerId) -> Result<(), Violation> {
        let (here, there) = (node(id), node(leader));
        let is_cut = self.network.is_cut(here, there) || self.network.is_cut(there, here);
        if is_cut || self.brokers.get(&leader).is_none_or(|broker| broker.running.is_none()) {
            let process = self.process(id);
            let delay = self.dice.wait(RECONNECT, RECONNECT * 8);
            self.schedule.after(delay, Happening::Dial { process, leader });
            return Ok(());
        }
        let stream = self.network.open(here, there);
        self.tell(id, |running, effects| running.linked(leader, stream, effects))
    }

    pub(super) fn disconnect(&mut self, stream: StreamId, end: End) {
        self.network.end(stream, end);
        let delay = self.dice.wait(Duration::from_micros(50), Duration::from_millis(5));
        self.schedule.after(delay, Happening::Loss(stream, end.other()));
    }

    pub(super) fn send(&mut self, stream: StreamId, to: End, wire: Wire) {
        let now = self.schedule.now();
        if let Some(due) = self.network.send(now, stream, to, wire) {
            self.schedule.at(due, Happening::Arrival(stream, to));
        }
    }

    pub(super) fn arrival(&mut self, stream: StreamId, end: End) -> Result<(), Violation> {
        let Some((opener, accepter)) = self.network.nodes(stream) else { return Ok(()) };
        let at = if end == End::Opener { opener } else { accepter };
        let now = self.schedule.now();
        let id = BrokerId(at.0);
        if !self.brokers.contains_key(&id) {
            for wire in self.network.arrived(now, stream, end) {
                self.client_takes(at, stream, wire)?;
            }
            return Ok(());
        }
        match &self.brokers[&id].running {
            None => {
                self.schedule.after(RECONNECT, Happening::Loss(stream, end.other()));
                return Ok(());
            }
            Some(running) if running.is_paused => {
                self.missed.entry(id).or_default().push(Happening::Arrival(stream, end));
                return Ok(());
            }
            Some(_) => {}
        }
        let mut is_damaged = false;
        for wire in self.network.arrived(now, stream, end) {
            self.say_heard(id, &wire);
            self.tell(id, |running, effects| match end {
                End::Opener => is_damaged |= !running.take_as_opener(stream, wire, effects),
                End::Accepter => running.take_as_accepter(stream, BrokerId(opener.0), wire, effects),
            })?;
        }
        if is_damaged {
            self.say(format_args!("broker {id}: what its leader sends is damaged"));
            self.disconnect(stream, end.other());
            self.schedule.after(Duration::ZERO, Happening::Loss(stream, end));
        }
        Ok(())
    }

    /// What is said between replicas, but for the records themselves and how far they have come.
    fn say_heard(&mut self, id: BrokerId, wire: &Wire) {
        match wire {
            Wire::ToLeader(message @ (FollowerMessage::Follow(_) | FollowerMessage::Unfollow { .. })) => {
                self.say(format_args!("broker {id}: hears {message:?}"));
            }
            Wire::ToFollower(
                message @ (LeaderMessage::Accepted { .. }
                | LeaderMessage::Diverging { .. }
                | LeaderMessage::Refused { .. }),
                _,
            ) => self.say(format_args!("broker {id}: hears {message:?}")),
            _ => {}
        }
    }

    pub(super) fn loss(&mut self, stream: StreamId, end: End) -> Result<(), Violation> {
        let Some((opener, accepter)) = self.network.nodes(stream) else { return Ok(()) };
        let at = if end == End::Opener { opener } else { accepter };
        let id = BrokerId(at.0);
        if !self.brokers.contains_key(&id) {
            self.network.end(stream, end);
            return self.client_loses(at, stream);
        }
        if self.brokers[&id].running.as_ref().is_some_and(|running| running.is_paused) {
            self.missed.entry(id).or_default().push(Happening::Loss(stream, end));
            return Ok(());
        }
        self.network.end(stream, end);
        let mut leader = None;
        self.tell(id, |running, effects| leader = running.unlinked(stream, effects))?;
        if let Some(leader) = leader {
            let process = self.process(id);
            self.schedule.after(RECONNECT, Happening::Dial { process, leader });
        }
        Ok(())
    }

    /// A link that is still cut ends its streams.
    pub(super) fn idle_timeout(&mut self, stream: StreamId) {
        let Some((opener, accepter)) = self.network.nodes(stream) else { return };
        if !self.network.is_cut(opener, accepter) && !self.network.is_cut(accepter, opener) {
            return;
        }
        for end in [End::Opener, End::Accepter] {
            let delay = self.dice.wait(Duration::ZERO, Duration::from_millis(100));
            self.schedule.after(delay, Happening::Loss(stream, end));
        }
    }

    pub(super) fn idle_soon(&mut self, stream: StreamId) {
        self.schedule.after(IDLE_TIME, Happening::IdleTimeout(stream));
    }

    pub(super) fn tell_chains(&mut self, id: BrokerId) -> Result<(), Violation> {
        self.tell(id, Running::tell_chains)?;
        let process = self.process(id);
        self.schedule.after(CHAIN_TOLD_INTERVAL, Happening::TellChains(process));
        Ok(())
    }

    // The controller, and the metadata.

    /// A request is sent to some controller, or is not waited for any longer.
    pub(super) fn try_again(&mut self, from: Attempted, is_last: bool) -> Result<(), Violation> {
        let (key, request) = match from {
            Attempted::Broker(process, number) => {
                let Some(call) = self.calls.get(&(process, number)) else { return Ok(()) };
                let request = call.request.clone();
                let again = Happening::TryAgain { from, is_last };
                if self.heard(process, again).is_none() {
                    return Ok(());
                }
                ((process, number), request)
            }
            Attempted::Operator(_) | Attempted::Liveness(_) | Attempted::Preferred => return Ok(()),
        };
        if is_last {
            return self.call_ended(key, Answer::Unknown);
        }
        let (process, _) = key;
        let id = process.0;
        let to = self.some_controller();
        if let quire_engine::controller::Request::ChangeInSync(change) = &request
            && !self.is_healing
            && self.dice.happens(80)
        {
            let known = self.metadata.0.image().partition(change.partition).cloned();
            let is_new =
                |other: &BrokerId| known.as_ref().is_some_and(|known| !known.in_sync.contains(other));
            let added: Vec<_> = change.in_sync.iter().map(|(other, _)| *other).filter(is_new).collect();
            if let Some(added) = self.dice.pick(&added).copied() {
                let delay = self.overtake(added, id);
                self.schedule.after(delay, Happening::Call { to, from, request });
                return Ok(());
            }
        }
        let now = self.schedule.now();
        if let Some(due) = self.network.call(now, node(id), to) {
            self.schedule.at(due, Happening::Call { to, from, request });
        }
        Ok(())
    }

    pub(super) fn call_ended(&mut self, key: (super::Process, u64), answer: Answer) -> Result<(), Violation> {
        let Some(call) = self.calls.remove(&key) else { return Ok(()) };
        let id = key.0.0;
        let is_registration = call.purpose == Purpose::Register;
        if let Answer::Made(Response::ProducerIds { first, count }) = &answer {
            self.coverage.id_blocks += 1;
            self.invariants.given(*first, *count)?;
        }
        self.tell(id, |running, effects| running.answered(call.purpose, answer, effects))?;
        if is_registration && let Some(running) = &self.brokers[&id].running {
            let registration = running.registration;
            self.say(format_args!("broker {id}: registration {registration:?}"));
        }
        Ok(())
    }

    pub(super) fn heartbeat(&mut self, id: BrokerId) -> Result<(), Violation> {
        let process = self.process(id);
        self.tell(id, Running::beat)?;
        let Some(running) = &self.brokers[&id].running else { return Ok(()) };
        if let Some((epoch, applied, wants_drain)) = running.heartbeat() {
            let now = self.schedule.now();
            let controllers: Vec<_> = self.controllers.keys().copied().collect();
            for controller in controllers {
                if let Some(due) = self.network.call(now, node(id), controller) {
                    let arrival =
                        Happening::HeartbeatArrives { controller, process, epoch, applied, wants_drain };
                    self.schedule.at(due, arrival);
                }
            }
        }
        self.schedule.after(HEARTBEAT, Happening::Heartbeat(process));
        Ok(())
    }

    pub(super) fn heartbeat_answered(
        &mut self,
        id: BrokerId,
        epoch: u64,
        is_stale: bool,
        may_stop: bool,
    ) -> Result<(), Violation> {
        let running = self.brokers[&id].running.as_ref().expect("it was heard");
        if running.registration != Some(epoch) {
            return Ok(());
        }
        if is_stale {
            self.say(format_args!("broker {id}: its registration is another process's"));
            return self.tell(id, Running::lose_registration);
        }
        if may_stop && running.wants_drain {
            self.say(format_args!("broker {id}: leads nothing any more, and stops"));
            return self.tell(id, Running::close);
        }
        Ok(())
    }

    pub(super) fn catch_up(&mut self, id: BrokerId) -> Result<(), Violation> {
        let applied = self.brokers[&id].running.as_ref().expect("it was heard").applied;
        if !self.is_healing && self.blind.get(&id).is_some_and(|until| self.schedule.now() < *until) {
            return Ok(());
        }
        let entries = self.quorum.committed_from(applied);
        if entries.is_empty() {
            return Ok(());
        }
        if entries.len() > SNAPSHOT_LAG && self.dice.happens(100) {
            let (metadata, index) = &self.metadata;
            let (position, image) = (metadata.applied(), metadata.image().clone());
            let snapshot = Input::Installed { position, image };
            let index = *index;
            self.coverage.snapshots += 1;
            return self.tell(id, |running, effects| {
                running.install(snapshot, index);
                running.follow_metadata(effects);
            });
        }
        // Entries come in pieces.
        let count = self.dice.between(1, entries.len() as u64) as usize;
        let entries = entries[..count].to_vec();
        self.tell(id, |running, effects| {
            running.learn(&entries);
            running.follow_metadata(effects);
        })
    }

    pub(super) fn start(&mut self, id: BrokerId) -> Result<(), Violation> {
        let broker = self.brokers.get_mut(&id).expect("it exists");
        if broker.running.is_some() {
            return Ok(());
        }
        // The last entries that it had applied may have to be told again.
        let stored = broker.stored;
        let known = stored - self.dice.below(stored.min(5) as u64 + 1) as usize;
        let entries = self.quorum.committed_from(0)[..known].to_vec();
        let time = self.schedule.now();
        let ahead = i64::from(id.0) * 40;
        let mut effects = Vec::new();
        let broker = self.brokers.get_mut(&id).expect("it exists");
        broker.start(now(time, ahead), &entries, &mut effects);
        let process = self.process(id);
        self.say(format_args!("broker {id}: starts"));
        for effect in effects {
            self.carry_out(id, effect)?;
        }
        self.schedule.after(Duration::from_millis(1), Happening::Heartbeat(process));
        self.schedule.after(Duration::from_millis(1), Happening::CatchUp(process));
        self.schedule.after(CHAIN_TOLD_INTERVAL, Happening::TellChains(process));
        Ok(())
    }
}
