//! Who is to have which partitions.
//!
//! An assignor gives each partition of the topics that somebody subscribes to, to exactly one of its subscribers. The same
//! input gives the same assignment.
//!
//! - **range**: each topic by itself, in ranges as equal as can be, the longer ones first. Topics with as many partitions,
//!   keyed alike, are given alike.
//! - **round-robin**: all partitions, one after the other, to the subscribers in turn.
//! - **sticky**, the default: of any two members, the one with more has nothing that the other subscribes to and would be
//!   no more loaded with. With equal subscriptions, loads differ by one at most, and no more partitions move from their
//!   last member than that takes. Between members that are equally loaded, one in a rack of the partition's replicas is
//!   preferred.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quire_protocol::{PartitionIndex, TopicId, TopicPartition};

use super::topics::{Partitions, Topics};

/// How partitions are given to members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Assignor {
    /// Each topic in ranges.
    Range,
    /// All partitions in turn.
    RoundRobin,
    /// Balanced, and with as few moves as can be.
    #[default]
    Sticky,
}

impl Assignor {
    /// Every assignor.
    pub const ALL: [Assignor; 3] = [Assignor::Range, Assignor::RoundRobin, Assignor::Sticky];

    /// The name that users give.
    pub fn name(self) -> &'static str {
        match self {
            Assignor::Range => "range",
            Assignor::RoundRobin => "round-robin",
            Assignor::Sticky => "sticky",
        }
    }

    /// The assignor of a name, if it is one's.
    pub fn named(name: &str) -> Option<Assignor> {
        Assignor::ALL.into_iter().find(|assignor| assignor.name() == name)
    }
}

/// A member, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscriber {
    /// Members are in this order: its instance id, if it has one, so that it keeps its place when it comes back.
    pub order: Arc<str>,
    /// Its rack, if it has one.
    pub rack: Option<Arc<str>>,
    /// What it subscribes to. Topics that do not exist give it nothing.
    pub topics: BTreeSet<TopicId>,
}

/// Assigns all partitions of the topics subscribed to; every subscriber is in the result.
///
/// `previous` is the assignment before, or what is left of it. It may name members, topics and partitions that are gone.
pub fn assign(
    assignor: Assignor,
    subscribers: &BTreeMap<Arc<str>, Subscriber>,
    topics: &Topics,
    previous: &BTreeMap<Arc<str>, Partitions>,
) -> BTreeMap<Arc<str>, Partitions> {
    let mut members: Vec<(&Arc<str>, &Subscriber)> = subscribers.iter().collect();
    members.sort_by_key(|(id, subscriber)| (&subscriber.order, *id));
    let given = match assignor {
        Assignor::Range => range(&members, topics),
        Assignor::RoundRobin => round_robin(&members, topics),
        Assignor::Sticky => Sticky::new(&members, topics).assign(previous),
    };
    members.into_iter().map(|(id, _)| id.clone()).zip(given).collect()
}

type Members<'a> = [(&'a Arc<str>, &'a Subscriber)];

fn range(members: &Members<'_>, topics: &Topics) -> Vec<Partitions> {
    let mut given = vec![Partitions::new(); members.len()];
    for id in subscribed(members) {
        let Some(topic) = topics.topic(id) else { continue };
        let takers: Vec<usize> = takers(members, id).collect();
        let (share, longer) =
            (topic.partitions as usize / takers.len(), topic.partitions as usize % takers.len());
        let mut partitions = topic.all();
        for (place, taker) in takers.into_iter().enumerate() {
            given[taker].extend(partitions.by_ref().take(share + usize::from(place < longer)));
        }
    }
    given
}

fn round_robin(members: &Members<'_>, topics: &Topics) -> Vec<Partitions> {
    let mut given = vec![Partitions::new(); members.len()];
    let mut next = 0;
    for id in subscribed(members) {
        for partition in topics.topic(id).into_iter().flat_map(|topic| topic.all()) {
            let in_turn = (next..next + members.len()).map(|place| place % members.len());
            let taker = in_turn.into_iter().find(|taker| members[*taker].1.topics.contains(&id));
            let taker = taker.expect("somebody subscribes to it");
            given[taker].insert(partition);
            next = (taker + 1) % members.len();
        }
    }
    given
}

fn subscribed(members: &Members<'_>) -> BTreeSet<TopicId> {
    members.iter().flat_map(|(_, subscriber)| subscriber.topics.iter().copied()).collect()
}

fn takers(members: &Members<'_>, topic: TopicId) -> impl Iterator<Item = usize> {
    members
        .iter()
        .enumerate()
        .filter(move |(_, (_, subscriber))| subscriber.topics.contains(&topic))
        .map(|(index, _)| index)
}

/// The sticky assignor at work.
struct Sticky<'a> {
    members: &'a Members<'a>,
    topics: &'a Topics,
    /// What each member has so far.
    given: Vec<Partitions>,
    /// Of that, what it had before: moving anything else costs nobody anything.
    kept: Vec<Partitions>,
    /// Members by what they have, fewest first.
    by_load: BTreeSet<(usize, usize)>,
    has_racks: bool,
}

impl<'a> Sticky<'a> {
    fn new(members: &'a Members<'a>, topics: &'a Topics) -> Sticky<'a> {
        let none = vec![Partitions::new(); members.len()];
        Sticky {
            members,
            topics,
            given: none.clone(),
            kept: none,
            by_load: (0..members.len()).map(|member| (0, member)).collect(),
            has_racks: members.iter().any(|(_, subscriber)| subscriber.rack.is_some()),
        }
    }

    fn assign(mut self, previous: &BTreeMap<Arc<str>, Partitions>) -> Vec<Partitions> {
        let topics = self.topics;
        let all = subscribed(self.members).into_iter().filter_map(|id| topics.topic(id));
        let mut open: Partitions = all.flat_map(|topic| topic.all()).collect();
        let share = open.len() / self.members.len().max(1);
        self.keep(previous, &mut open);
        if self.has_racks {
            self.give_by_rack(&mut open, share);
        }
        self.give(open);
        let is_alike = self.members.windows(2).all(|pair| pair[0].1.topics == pair[1].1.topics);
        if is_alike {
            self.level()
        } else {
            self.level_by_topic()
        }
        self.given
    }

    fn keep(&mut self, previous: &BTreeMap<Arc<str>, Partitions>, open: &mut Partitions) {
        for member in 0..self.members.len() {
            let (id, subscriber) = self.members[member];
            for partition in previous.get(id).into_iter().flatten() {
                if subscriber.topics.contains(&partition.topic) && open.remove(partition) {
                    self.kept[member].insert(*partition);
                }
            }
            self.by_load.remove(&(0, member));
            self.by_load.insert((self.kept[member].len(), member));
            self.given[member] = self.kept[member].clone();
        }
    }

    /// Gives what can be read near by, to members that have less than an equal share.
    fn give_by_rack(&mut self, open: &mut Partitions, share: usize) {
        open.retain(|partition| {
            let lacking = self.by_load.iter().take_while(|(load, _)| *load < share);
            let near = lacking
                .map(|(_, member)| *member)
                .find(|member| self.subscribes(*member, partition.topic) && self.is_near(*member, partition));
            if let Some(member) = near {
                self.add(member, *partition);
            }
            near.is_none()
        });
    }

    /// Gives each to who has fewest.
    fn give(&mut self, open: Partitions) {
        for partition in open {
            let mut able =
                self.by_load.iter().filter(|(_, member)| self.subscribes(*member, partition.topic));
            let (load, first) = *able.next().expect("somebody subscribes to it");
            let is_near = |(_, member): &&(usize, usize)| self.is_near(*member, &partition);
            let taker = if !self.has_racks || self.is_near(first, &partition) {
                first
            } else {
                able.take_while(|(other, _)| *other == load)
                    .find(is_near)
                    .map_or(first, |(_, member)| *member)
            };
            self.add(taker, partition);
        }
    }

    /// All subscribe to the same: from who has most to who has fewest, until they differ by one.
    fn level(&mut self) {
        while let (Some((most, from)), Some((fewest, to))) =
            (self.by_load.last().copied(), self.by_load.first().copied())
            && most >= fewest + 2
        {
            self.shift(from, to, None);
        }
    }

    /// The same among the subscribers of each topic, until nothing moves any more. Each move brings two loads closer, so
    /// that it ends.
    fn level_by_topic(&mut self) {
        let subscribed = subscribed(self.members);
        let mut has_moved = true;
        while std::mem::take(&mut has_moved) {
            for topic in &subscribed {
                let takers: Vec<usize> = takers(self.members, *topic).collect();
                while let Some((from, to)) = self.uneven(*topic, &takers) {
                    self.shift(from, to, Some(*topic));
                    has_moved = true;
                }
            }
        }
    }

    fn uneven(&self, topic: TopicId, takers: &[usize]) -> Option<(usize, usize)> {
        let has_some = |member: &&usize| of_topic(&self.given[**member], topic).next().is_some();
        let load = |member: &&usize| (self.given[**member].len(), **member);
        let to = *takers.iter().min_by_key(load)?;
        let from = *takers.iter().filter(has_some).max_by_key(load)?;
        (self.given[from].len() >= self.given[to].len() + 2).then_some((from, to))
    }

    /// Moves the partition that is missed least and wanted most.
    fn shift(&mut self, from: usize, to: usize, topic: Option<TopicId>) {
        let worth = |partition: &&TopicPartition| {
            let is_new = !self.kept[from].contains(*partition);
            let nearer = i8::from(self.is_near(to, partition)) - i8::from(self.is_near(from, partition));
            (is_new, nearer, **partition)
        };
        let given = &self.given[from];
        let best = match topic {
            None => given.iter().max_by_key(worth),
            Some(topic) => of_topic(given, topic).max_by_key(worth),
        };
        let partition = *best.expect("who has more has some");
        self.by_load.remove(&(self.given[from].len(), from));
        self.given[from].remove(&partition);
        self.by_load.insert((self.given[from].len(), from));
        self.add(to, partition);
    }

    fn add(&mut self, member: usize, partition: TopicPartition) {
        self.by_load.remove(&(self.given[member].len(), member));
        self.given[member].insert(partition);
        self.by_load.insert((self.given[member].len(), member));
    }

    fn subscribes(&self, member: usize, topic: TopicId) -> bool {
        self.members[member].1.topics.contains(&topic)
    }

    fn is_near(&self, member: usize, partition: &TopicPartition) -> bool {
        let Some(rack) = &self.members[member].1.rack else { return false };
        self.topics.racks(*partition).is_some_and(|racks| racks.contains(rack))
    }
}

fn of_topic(partitions: &Partitions, topic: TopicId) -> impl DoubleEndedIterator<Item = &TopicPartition> {
    let at = |index| TopicPartition { topic, partition: PartitionIndex(index) };
    partitions.range(at(0)..=at(u32::MAX))
}
