//! What producers do: the client's own pipelines, over streams that break.

use std::collections::BTreeMap;
use std::time::Duration;

use quire_client::simulation::{Action, Input, SimulatedPipeline};
use quire_engine::Time;
use quire_protocol::batch::{BatchHeader, ProducerIdentity};
use quire_protocol::stream::{Acks, ProduceHeader};
use quire_protocol::{
    BrokerId, ErrorCode, LeaderEpoch, Offset, ProducerEpoch, ProducerId, TopicId, TopicPartition,
};

use super::super::broker::Wire;
use super::super::invariants::{Value, Violation};
use super::super::network::{End, Node, StreamId};
use super::{FAULTS_LAST, Happening, World, node};

/// A record that is not acknowledged within this is given up.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(3);
/// Clients go on for so long after the last fault.
const SENDS_ON: Duration = Duration::from_secs(3);
/// A leader that is silent for so long is asked after elsewhere.
const SILENCE_TIME_MAX: Duration = Duration::from_millis(500);

/// Where clients sit.
const CLIENTS: u32 = 300;

/// A partition of a topic, by the topic's number.
type Target = (usize, u32);

/// A producer.
#[derive(Debug)]
pub(super) struct Client {
    number: u32,
    pipes: BTreeMap<Target, Pipe>,
    tick_at: Option<Time>,
}

#[derive(Debug)]
struct Pipe {
    machine: SimulatedPipeline,
    link: Link,
    /// The claim that the next stream is opened under; its id is asked for if there is none.
    claim: Option<(Option<ProducerId>, ProducerEpoch)>,
    /// The id that it was given last.
    given: Option<ProducerId>,
    /// The topic's id, as the stream was opened for it.
    partition: Option<TopicPartition>,
    /// When something was heard last, or nothing waited to be heard.
    heard: Time,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Closed,
    /// Its leader is looked for.
    Looking(u64),
    /// A stream is being opened.
    Opening(StreamId),
    Open(StreamId),
}

impl Link {
    fn stream(self) -> Option<StreamId> {
        match self {
            Link::Opening(stream) | Link::Open(stream) => Some(stream),
            Link::Closed | Link::Looking(_) => None,
        }
    }
}

impl Client {
    pub(super) fn new(number: u32) -> Client {
        Client { number, pipes: BTreeMap::new(), tick_at: None }
    }

    fn target_of(&self, stream: StreamId) -> Option<Target> {
        self.pipes.iter().find(|(_, pipe)| pipe.link.stream() == Some(stream)).map(|(target, _)| *target)
    }
}

fn client_node(client: u32) -> Node {
    Node(CLIENTS + client)
}

impl World {
    pub(super) fn produce(&mut self, client: u32) -> Result<(), Violation> {
        let now = self.schedule.now();
        if now >= Time::ZERO + FAULTS_LAST + SENDS_ON {
            return Ok(());
        }
        let topic = self.dice.below(self.operator.topics_max() as u64) as usize;
        if let Some((_, partitions)) = World::partitions_of(self.metadata.0.image(), topic) {
            let target = (topic, self.dice.below(partitions.into()) as u32);
            let value = Value(self.next_value);
            self.next_value += 1;
            self.invariants.taken(value);
            // Some are large, so that segments fill.
            let padding = if self.dice.happens(60) { self.dice.below(20_000) } else { self.dice.below(60) };
            let mut bytes = value.0.to_le_bytes().to_vec();
            bytes.resize(8 + padding as usize, value.0 as u8);
            self.input(client, target, Input::Record { tag: value.0, value: bytes.into() })?;
        }
        let delay = self.dice.wait(Duration::from_millis(1), Duration::from_millis(40));
        self.schedule.after(delay, Happening::Produce { client });
        Ok(())
    }

    /// Tells a pipeline, and carries out what it wants.
    fn input(&mut self, client: u32, target: Target, input: Input) -> Result<(), Violation> {
        let now = self.schedule.now();
        let seed =
            self.options.seed ^ (u64::from(client) << 32) ^ ((target.0 as u64) << 8) ^ u64::from(target.1);
        let pipe = self.clients[client as usize].pipes.entry(target).or_insert_with(|| Pipe {
            machine: SimulatedPipeline::new(seed, DELIVERY_TIMEOUT),
            link: Link::Closed,
            claim: None,
            given: None,
            partition: None,
            heard: now,
        });
        let actions = pipe.machine.handle(now.since(Time::ZERO), input);
        for action in actions {
            self.act(client, target, action)?;
        }
        self.schedule_client_tick(client);
        Ok(())
    }

    fn act(&mut self, client: u32, target: Target, action: Action) -> Result<(), Violation> {
        let attempt = self.next_attempt;
        let pipe = self.clients[client as usize].pipes.get_mut(&target).expect("it acts");
        match action {
            Action::Open { id, used_up, epoch } => {
                pipe.given = pipe.given.filter(|given| used_up != Some(*given));
                pipe.claim = Some((id.or(pipe.given), epoch));
                pipe.link = Link::Looking(attempt);
                self.next_attempt += 1;
                let delay = self.dice.wait(Duration::from_micros(100), Duration::from_millis(5));
                let (topic, partition) = target;
                self.schedule.after(delay, Happening::OpenStream { client, topic, partition, attempt });
            }
            Action::Write(batch) => {
                if let Link::Open(stream) = pipe.link {
                    let header = BatchHeader::parse(&batch).expect("its own batch");
                    let (epoch, sequence) = (header.producer_epoch, header.base_sequence);
                    let values = self.invariants.sent(&batch);
                    self.say(format_args!(
                        "client {client}: {target:?} writes {epoch}:{sequence}, {values:?}"
                    ));
                    self.send(stream, End::Accepter, Wire::Batch(batch));
                }
            }
            Action::Abandon => {
                if let Some(stream) = std::mem::replace(&mut pipe.link, Link::Closed).stream() {
                    self.disconnect(stream, End::Opener);
                }
            }
            Action::Finish => {
                if let Some(stream) = std::mem::replace(&mut pipe.link, Link::Closed).stream() {
                    self.send(stream, End::Accepter, Wire::Finish);
                    self.disconnect(stream, End::Opener);
                }
            }
            Action::Ended { tag, acked } => {
                let value = Value(tag);
                match acked {
                    Ok(ack) => {
                        let partition = pipe.partition.expect("it was opened");
                        let (offset, epoch): (Offset, LeaderEpoch) = (ack.base_offset, ack.leader_epoch);
                        self.coverage.acknowledged += 1;
                        self.say(format_args!("client {client}: {tag} is at {partition} {offset}"));
                        self.invariants.acknowledged(client, value, partition, offset, epoch)?;
                    }
                    Err(why) => {
                        self.coverage.unknown += 1;
                        self.say(format_args!("client {client}: gives up {tag}: {why}"));
                        self.invariants.given_up(value);
                    }
                }
            }
        }
        Ok(())
    }

    /// Finds the leader by what some broker knows, and opens a stream.
    pub(super) fn open_stream(&mut self, client: u32, target: Target, attempt: u64) -> Result<(), Violation> {
        let pipe = &self.clients[client as usize].pipes[&target];
        if pipe.link != Link::Looking(attempt) {
            return Ok(());
        }
        let here = client_node(client);
        let ids: Vec<BrokerId> = self.brokers.keys().copied().collect();
        let asked = *self.dice.pick(&ids).expect("there are brokers");
        let is_cut = self.network.is_cut(here, node(asked)) || self.network.is_cut(node(asked), here);
        let running = self.brokers[&asked].running.as_ref().filter(|running| !running.is_paused && !is_cut);
        let Some(running) = running else { return self.input(client, target, Input::Refused(None)) };
        let (claimed, epoch) = pipe.claim.expect("a claim comes first");
        let Some(id) = claimed else { return self.ask_id(client, target, asked) };
        let found = World::partitions_of(running.image(), target.0).filter(|(_, count)| target.1 < *count);
        let Some((topic, _)) = found else {
            // One that is new may not be known everywhere; one that is gone is gone.
            let code = (!self.is_topic(target.0)).then_some(ErrorCode::UnknownTopic);
            return self.input(client, target, Input::Refused(code));
        };
        let partition = World::partition_id(topic, target.1);
        let known = running.image().partition(partition).expect("it was found").clone();
        let Some(leader) = known.leader else { return self.input(client, target, Input::Refused(None)) };
        let stream = self.network.open(here, node(leader));
        let pipe = self.clients[client as usize].pipes.get_mut(&target).expect("it looks");
        pipe.link = Link::Opening(stream);
        pipe.partition = Some(partition);
        pipe.heard = self.schedule.now();
        let header = ProduceHeader {
            partition,
            leader_epoch: known.leader_epoch,
            acks: Acks::All,
            producer: Some(ProducerIdentity { id, epoch }),
        };
        if self.network.is_cut(here, node(leader)) || self.network.is_cut(node(leader), here) {
            self.idle_soon(stream);
        }
        self.send(stream, End::Accepter, Wire::OpenProduce(header));
        self.schedule_client_tick(client);
        Ok(())
    }

    /// Asks a broker for an id. It may have none at the moment, and its answer may be lost: then it is asked again.
    fn ask_id(&mut self, client: u32, target: Target, asked: BrokerId) -> Result<(), Violation> {
        let mut given = None;
        self.tell(asked, |running, effects| given = running.producer_id(effects))?;
        if let Some(id) = given {
            self.invariants.numbered(id)?;
            self.say(format_args!("client {client}: {target:?} is producer {id}"));
            let is_lost = !self.is_healing && self.dice.happens(50);
            let pipe = self.clients[client as usize].pipes.get_mut(&target).expect("it looks");
            if !is_lost && let Some((claimed, _)) = &mut pipe.claim {
                (*claimed, pipe.given) = (given, given);
                let attempt = self.next_attempt;
                self.next_attempt += 1;
                pipe.link = Link::Looking(attempt);
                return self.open_stream(client, target, attempt);
            }
        }
        self.input(client, target, Input::Refused(None))
    }

    fn is_topic(&self, topic: usize) -> bool {
        World::partitions_of(self.metadata.0.image(), topic).is_some()
    }

    pub(super) fn client_takes(&mut self, at: Node, stream: StreamId, wire: Wire) -> Result<(), Violation> {
        let client = at.0 - CLIENTS;
        let Some(target) = self.clients[client as usize].target_of(stream) else { return Ok(()) };
        let now = self.schedule.now();
        let pipe = self.clients[client as usize].pipes.get_mut(&target).expect("just found");
        pipe.heard = now;
        let is_open = pipe.link == Link::Open(stream);
        let input = match wire {
            Wire::Opened(opened) => {
                let (_, by) = self.network.nodes(stream).expect("it carried something");
                self.say(format_args!(
                    "client {client}: {target:?} has a stream to broker {}: {opened:?}",
                    by.0
                ));
                let pipe = self.clients[client as usize].pipes.get_mut(&target).expect("just found");
                pipe.link = Link::Open(stream);
                let topic: TopicId = pipe.partition.expect("it was opened").topic;
                let (producer, _) = pipe.claim.expect("it was claimed");
                let producer = producer.expect("a stream is opened under an id");
                Input::Opened { opened, topic, producer }
            }
            Wire::Acked(ack) => Input::Acked(ack),
            Wire::Failed(code) => {
                self.say(format_args!("client {client}: {target:?} is refused: {code}"));
                if is_open { Input::Failed(Some(code)) } else { Input::Refused(Some(code)) }
            }
            other => unreachable!("a broker does not send a client {other:?}"),
        };
        self.input(client, target, input)
    }

    pub(super) fn client_loses(&mut self, at: Node, stream: StreamId) -> Result<(), Violation> {
        let client = at.0 - CLIENTS;
        let Some(target) = self.clients[client as usize].target_of(stream) else { return Ok(()) };
        self.lost(client, target)
    }

    fn lost(&mut self, client: u32, target: Target) -> Result<(), Violation> {
        let pipe = self.clients[client as usize].pipes.get_mut(&target).expect("it has a stream");
        let input = match pipe.link {
            Link::Open(_) => Input::Failed(None),
            Link::Opening(_) => Input::Refused(None),
            Link::Closed | Link::Looking(_) => return Ok(()),
        };
        self.coverage.resent += 1;
        self.input(client, target, input)
    }

    fn schedule_client_tick(&mut self, client: u32) {
        let now = self.schedule.now();
        let own = &mut self.clients[client as usize];
        let due = own.pipes.values().flat_map(|pipe| {
            let machine = pipe.machine.deadline().map(|due| Time::ZERO + due);
            [machine, pipe.link.stream().map(|_| pipe.heard + SILENCE_TIME_MAX)]
        });
        let Some(at) = due.flatten().min().map(|at| at.max(now)) else { return };
        if own.tick_at.is_none_or(|known| at < known) {
            own.tick_at = Some(at);
            self.schedule.at(at, Happening::ClientTick { client });
        }
    }

    /// Time has passed: what is overdue is given up, and silent leaders are left where another leads by now.
    pub(super) fn client_tick(&mut self, client: u32) -> Result<(), Violation> {
        let now = self.schedule.now();
        let own = &mut self.clients[client as usize];
        if own.tick_at.is_none_or(|at| at > now) {
            return Ok(());
        }
        own.tick_at = None;
        let number = own.number;
        let targets: Vec<Target> = own.pipes.keys().copied().collect();
        for target in targets {
            let pipe = self.clients[client as usize].pipes.get_mut(&target).expect("just listed");
            let is_silent = pipe.link.stream().is_some() && pipe.heard + SILENCE_TIME_MAX <= now;
            if is_silent {
                pipe.heard = now;
                let (partition, stream) = (pipe.partition, pipe.link.stream());
                let leader = stream.and_then(|stream| self.network.nodes(stream)).map(|(_, leader)| leader);
                let led = partition.and_then(|id| self.metadata.0.image().partition(id).cloned());
                if led.is_none_or(|led| led.leader.map(node) != leader)
                    && let Some(stream) = stream
                {
                    self.say(format_args!("client {number}: {target:?} has another leader"));
                    self.disconnect(stream, End::Opener);
                    self.lost(client, target)?;
                    continue;
                }
            }
            let pipe = &self.clients[client as usize].pipes[&target];
            let is_due = pipe.machine.deadline().is_some_and(|due| Time::ZERO + due <= now);
            if is_due {
                self.input(client, target, Input::Tick)?;
            }
        }
        self.schedule_client_tick(client);
        Ok(())
    }
}
