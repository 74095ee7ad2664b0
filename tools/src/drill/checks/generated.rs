//! Generated histories: clean ones pass, and one violation planted into one fails its property and no other.

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;
use quire_protocol::frame::Chain;
use quire_protocol::{BrokerId, LeaderEpoch, Offset, PartitionIndex, TopicId, TopicPartition};

use super::{Property, Verdict, check};
use crate::bench::random::hash;
use crate::drill::history::{Action, Kind, Operation, Phase, Process, Read, Value};

const PARTITIONS: u32 = 2;
const PRODUCERS: u32 = 3;
const CONSUMERS: u32 = 2;
const BROKERS: u32 = 3;
/// Whoever comes for a plant, beside the producers and consumers of every history.
const STRANGER: Process = Process(50);
const FINAL_READER: Process = Process(100);

/// A partition that behaves, and whoever uses it: the history is what they see.
struct World {
    seed: u64,
    drawn: u64,
    history: Vec<Operation>,
    logs: Vec<Vec<Value>>,
    log_starts: Vec<usize>,
    next_counter: u64,
    /// Sent and not yet appended, by producer, in order.
    waiting: Vec<VecDeque<(u32, Value)>>,
    /// Appended and not yet answered.
    appended: Vec<(Process, u32, Value, Offset)>,
    positions: Vec<Vec<usize>>,
}

fn partition(index: u32) -> TopicPartition {
    TopicPartition { topic: TopicId([7; 16]), partition: PartitionIndex(index) }
}

impl World {
    fn new(seed: u64) -> World {
        let mut world = World {
            seed,
            drawn: 0,
            history: Vec::new(),
            logs: vec![Vec::new(); PARTITIONS as usize],
            log_starts: vec![0; PARTITIONS as usize],
            next_counter: 0,
            waiting: vec![VecDeque::new(); PRODUCERS as usize],
            appended: Vec::new(),
            positions: vec![vec![0; PARTITIONS as usize]; CONSUMERS as usize],
        };
        // Enough for every plant to stand on.
        for round in 0..4 * PARTITIONS {
            world.write(Process(9), round % PARTITIONS);
        }
        world
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.drawn += 1;
        hash(self.seed, self.drawn) % below
    }

    fn happen(&mut self, process: Process, kind: Kind, action: Action) {
        let index = self.history.len() as u64;
        let time = Duration::from_millis(index);
        self.history.push(Operation { index, time, process, kind, action });
    }

    fn send(&mut self, process: Process, kind: Kind, index: u32, value: Value, offset: Option<Offset>) {
        self.happen(process, kind, Action::Send { partition: partition(index), value, offset, epoch: None });
    }

    fn invoke(&mut self, process: Process, index: u32) -> Value {
        let value = Value { producer: process.0, counter: self.next_counter };
        self.next_counter += 1;
        self.send(process, Kind::Invoke, index, value, None);
        value
    }

    fn append(&mut self, index: u32, value: Value) -> Offset {
        let log = &mut self.logs[index as usize];
        log.push(value);
        Offset(log.len() as u64 - 1)
    }

    /// A value from its invocation to its acknowledgement.
    fn write(&mut self, process: Process, index: u32) -> Value {
        let value = self.invoke(process, index);
        let offset = self.append(index, value);
        self.send(process, Kind::Ok, index, value, Some(offset));
        value
    }

    /// A value of which nobody knows that it was not written.
    fn lose_sight(&mut self, process: Process, index: u32) -> Value {
        let value = self.invoke(process, index);
        self.send(process, Kind::Info, index, value, None);
        value
    }

    /// A value from its invocation to its acknowledgement in a leadership.
    fn write_in(&mut self, epoch: LeaderEpoch) -> Offset {
        let value = self.invoke(STRANGER, 0);
        let offset = self.append(0, value);
        let partition = partition(0);
        let acknowledged = Action::Send { partition, value, offset: Some(offset), epoch: Some(epoch) };
        self.happen(STRANGER, Kind::Ok, acknowledged);
        offset
    }

    fn read_frame(&mut self, broker: BrokerId, offset: u64, epoch: LeaderEpoch, chain: u8) {
        let (partition, offset, chain) = (partition(0), Offset(offset), Chain([chain; 32]));
        self.happen(FINAL_READER, Kind::Ok, Action::Frame { partition, broker, offset, epoch, chain });
    }

    fn end(&self, index: u32) -> Offset {
        Offset(self.logs[index as usize].len() as u64)
    }

    fn seek(&mut self, process: Process, index: u32, offset: u64) {
        self.happen(process, Kind::Ok, Action::Seek { partition: partition(index), offset: Offset(offset) });
    }

    fn poll(&mut self, process: Process, phase: Phase, index: u32, offsets: impl IntoIterator<Item = usize>) {
        let log = &self.logs[index as usize];
        let read = |offset: usize| Read { offset: Offset(offset as u64), value: log[offset] };
        let records = offsets.into_iter().map(read).collect();
        self.happen(process, Kind::Ok, Action::Poll { partition: partition(index), phase, records });
    }

    fn step(&mut self) {
        match self.draw(10) {
            0..=3 => {
                let producer = self.draw(u64::from(PRODUCERS)) as usize;
                let index = self.draw(u64::from(PARTITIONS)) as u32;
                let value = self.invoke(Process(producer as u32), index);
                self.waiting[producer].push_back((index, value));
            }
            4..=5 => {
                let producer = self.draw(u64::from(PRODUCERS)) as usize;
                self.append_or_not(producer);
            }
            6..=7 => self.answer(),
            8 => {
                let consumer = self.draw(u64::from(CONSUMERS)) as usize;
                let index = self.draw(u64::from(PARTITIONS)) as usize;
                let from = self.positions[consumer][index];
                let end = self.logs[index].len();
                let to = from + self.draw((end - from) as u64 + 1) as usize;
                self.positions[consumer][index] = to;
                self.poll(Process(20 + consumer as u32), Phase::Live, index as u32, from..to);
            }
            _ => {
                let index = self.draw(u64::from(PARTITIONS)) as usize;
                let kept = self.logs[index].len() - 4;
                let start = self.log_starts[index] + self.draw(3) as usize;
                if start <= kept {
                    self.move_log_start(index as u32, start);
                }
            }
        }
    }

    fn append_or_not(&mut self, producer: usize) {
        let Some((index, value)) = self.waiting[producer].pop_front() else { return };
        let process = Process(producer as u32);
        match self.draw(8) {
            0 => self.send(process, Kind::Fail, index, value, None),
            1 => self.send(process, Kind::Info, index, value, None),
            _ => {
                let offset = self.append(index, value);
                self.appended.push((process, index, value, offset));
            }
        }
    }

    fn answer(&mut self) {
        if self.appended.is_empty() {
            return;
        }
        let at = self.draw(self.appended.len() as u64) as usize;
        let (process, index, value, offset) = self.appended.remove(at);
        match self.draw(8) {
            0 => self.send(process, Kind::Info, index, value, None),
            _ => self.send(process, Kind::Ok, index, value, Some(offset)),
        }
    }

    fn move_log_start(&mut self, index: u32, start: usize) {
        self.log_starts[index as usize] = start;
        let offset = Offset(start as u64);
        self.happen(STRANGER, Kind::Info, Action::LogStart { partition: partition(index), offset });
        for consumer in 0..CONSUMERS {
            let position = &mut self.positions[consumer as usize][index as usize];
            if *position < start {
                *position = start;
                self.seek(Process(20 + consumer), index, start as u64);
            }
        }
    }

    fn settle(&mut self) {
        while !self.appended.is_empty() {
            self.answer();
        }
    }

    /// Everything is read by one reader, but for the offset of a partition that it steps over.
    fn read_finally(&mut self, stepped_over: Option<(u32, usize)>) {
        for index in 0..PARTITIONS {
            let (start, end) = (self.log_starts[index as usize], self.logs[index as usize].len());
            self.seek(FINAL_READER, index, start as u64);
            match stepped_over.filter(|(at, _)| *at == index) {
                Some((_, offset)) => {
                    self.poll(FINAL_READER, Phase::Final, index, start..offset);
                    self.seek(FINAL_READER, index, offset as u64 + 1);
                    self.poll(FINAL_READER, Phase::Final, index, offset + 1..end);
                }
                None => self.poll(FINAL_READER, Phase::Final, index, start..end),
            }
        }
    }

    fn read_replicas(&mut self) {
        for index in 0..PARTITIONS {
            for broker in 0..BROKERS {
                self.read_replica(BrokerId(broker), index, |_| {});
            }
        }
    }

    fn read_replica(&mut self, broker: BrokerId, index: u32, spoil: impl FnOnce(&mut Vec<Read>)) {
        let start = self.log_starts[index as usize];
        let log = &self.logs[index as usize];
        let read = |offset: usize| Read { offset: Offset(offset as u64), value: log[offset] };
        let mut records: Vec<Read> = (start..log.len()).map(read).collect();
        spoil(&mut records);
        let (partition, from, to) = (partition(index), Offset(start as u64), self.end(index));
        self.happen(FINAL_READER, Kind::Ok, Action::Replica { partition, broker, records });
        self.happen(FINAL_READER, Kind::Ok, Action::ReplicaRead { partition, broker, from, to });
    }
}

/// A world after a while, with everything answered and nothing yet read to the end.
fn lived(seed: u64, steps: usize) -> World {
    let mut world = World::new(seed);
    (0..steps).for_each(|_| world.step());
    world.settle();
    world
}

/// Plants one violation and finishes the history; says what must be found.
fn plant(world: &mut World, property: Property) -> Vec<Property> {
    let start = world.log_starts[0];
    let mut stepped_over = None;
    match property {
        Property::InconsistentOffsets => {
            let other = world.lose_sight(STRANGER, 0);
            world.seek(STRANGER, 0, start as u64);
            let records = vec![Read { offset: Offset(start as u64), value: other }];
            let poll = Action::Poll { partition: partition(0), phase: Phase::Live, records };
            world.happen(STRANGER, Kind::Ok, poll);
        }
        Property::Duplicates => {
            let value = world.logs[0][start];
            world.append(0, value);
        }
        Property::LostWrites => {
            world.write(STRANGER, 0);
            stepped_over = Some((0, world.logs[0].len() - 1));
            world.write(STRANGER, 0);
        }
        Property::Unseen => {
            let value = world.invoke(STRANGER, 0);
            let end = world.end(0);
            world.send(STRANGER, Kind::Ok, 0, value, Some(end));
        }
        Property::AbortedReads => {
            let value = world.invoke(STRANGER, 0);
            world.send(STRANGER, Kind::Fail, 0, value, None);
            world.append(0, value);
        }
        Property::Skips => {
            world.seek(STRANGER, 0, start as u64);
            world.poll(STRANGER, Phase::Live, 0, [start, start + 2]);
        }
        Property::NonMonotonicPolls => {
            world.seek(STRANGER, 0, start as u64);
            world.poll(STRANGER, Phase::Live, 0, [start, start + 1, start]);
        }
        Property::NonMonotonicSends => {
            let (first, second) = (world.invoke(STRANGER, 0), world.invoke(STRANGER, 0));
            let (below, above) = (world.append(0, second), world.append(0, first));
            world.send(STRANGER, Kind::Ok, 0, first, Some(above));
            world.send(STRANGER, Kind::Ok, 0, second, Some(below));
        }
        Property::ExternalOrder => {
            let first = world.invoke(Process(60), 0);
            let above = Offset(world.end(0).0 + 1);
            world.send(Process(60), Kind::Ok, 0, first, Some(above));
            let second = world.invoke(Process(61), 0);
            let below = world.append(0, second);
            world.append(0, first);
            world.send(Process(61), Kind::Ok, 0, second, Some(below));
        }
        Property::Phantoms => {
            world.append(0, Value { producer: 77, counter: 0 });
        }
        Property::Resurrections => {
            world.move_log_start(0, start.max(1));
            world.seek(STRANGER, 0, 0);
            world.poll(STRANGER, Phase::Live, 0, [0]);
        }
        Property::DeposedLeaders => match world.draw(2) {
            0 => {
                world.write_in(LeaderEpoch(2));
                world.write_in(LeaderEpoch(1));
            }
            _ => {
                let offset = world.write_in(LeaderEpoch(1));
                world.read_frame(BrokerId(1), offset.0, LeaderEpoch(2), 1);
            }
        },
        Property::ReplicaDivergence => {
            world.read_finally(None);
            let other = Value { producer: 9, counter: u64::MAX };
            match world.draw(4) {
                0 => world.read_replica(BrokerId(1), 0, |records| records[0].value = other),
                1 => world.read_replica(BrokerId(1), 0, |records| {
                    records.retain(|read| read.offset.0 != start as u64 + 1)
                }),
                2 => world.read_replica(BrokerId(1), 0, |records| records.truncate(1)),
                _ => {
                    world.read_frame(BrokerId(1), start as u64, LeaderEpoch(1), 1);
                    world.read_frame(BrokerId(2), start as u64, LeaderEpoch(1), 2);
                }
            }
            return vec![property];
        }
    }
    world.read_finally(stepped_over);
    world.read_replicas();
    vec![property]
}

fn verdict(world: &World) -> Verdict {
    check(&world.history)
}

proptest! {
    #[test]
    fn a_clean_history_passes(seed: u64, steps in 0usize..400) {
        let mut world = lived(seed, steps);
        world.read_finally(None);
        world.read_replicas();
        let verdict = verdict(&world);
        prop_assert!(verdict.is_clean(), "{}", verdict);
        prop_assert!(verdict.acknowledged > 0 && verdict.sent >= verdict.acknowledged + verdict.refused);
    }

    #[test]
    fn a_planted_violation_fails_its_property_and_no_other(seed: u64, steps in 0usize..200, which in 0..Property::ALL.len()) {
        let mut world = lived(seed, steps);
        let expected = plant(&mut world, Property::ALL[which]);
        let verdict = verdict(&world);
        prop_assert_eq!(verdict.violated(), expected, "{}", verdict);
        prop_assert_eq!(verdict.count(Property::ALL[which]), 1, "{}", verdict);
        prop_assert_eq!(verdict.examples(Property::ALL[which]).len(), 1);
    }
}

/// What an unclean election does to an acknowledged record: another stands in its place. It is lost, and its offset has two
/// values.
#[test]
fn an_acknowledged_record_that_was_written_over_is_lost() {
    let mut world = World::new(1);
    world.write(Process(1), 0);
    let other = world.lose_sight(Process(2), 0);
    *world.logs[0].last_mut().expect("just written") = other;
    world.read_finally(None);
    world.read_replicas();
    assert_eq!(verdict(&world).violated(), [Property::InconsistentOffsets, Property::LostWrites]);
}

/// A record that was read, and is no longer there at the end, is lost even if nobody acknowledged it.
#[test]
fn a_record_that_was_read_and_is_gone_is_lost() {
    let mut world = World::new(1);
    let value = world.lose_sight(Process(2), 0);
    let offset = world.append(0, value);
    world.seek(STRANGER, 0, offset.0);
    world.poll(STRANGER, Phase::Live, 0, [offset.0 as usize]);
    world.logs[0].pop();
    world.read_finally(None);
    assert_eq!(verdict(&world).violated(), [Property::LostWrites]);
}

#[test]
fn one_offset_is_not_acknowledged_twice() {
    let mut world = World::new(1);
    let value = world.write(Process(1), 0);
    world.send(Process(1), Kind::Ok, 0, value, Some(Offset(world.end(0).0 - 1)));
    world.read_finally(None);
    assert_eq!(verdict(&world).violated(), [Property::ExternalOrder]);
}

#[test]
fn the_worst_lag_is_that_of_live_reads() {
    let mut world = World::new(1);
    let written = world.history.last().expect("it is acknowledged").time;
    let end = world.logs[1].len();
    for _ in 0..500 {
        world.happen(STRANGER, Kind::Info, Action::Note("time goes by".to_owned()));
    }
    world.poll(Process(20), Phase::Live, 1, end - 1..end);
    let read = world.history.last().expect("it is read").time;
    world.read_finally(None);
    assert_eq!(verdict(&world).lag_max, read - written);
}
