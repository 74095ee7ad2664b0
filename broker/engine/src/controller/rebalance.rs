//! A plan that evens out who holds and leads what: looked at first, then carried out as reassignments.
//!
//! A replica moves only where that takes at least two off the difference between the fullest and the emptiest broker, so
//! that a balanced cluster has an empty plan, and never onto a rack that makes its partition less safe.

use std::collections::{BTreeMap, BTreeSet};

use quire_protocol::{BrokerId, TopicPartition};

use super::image::{BrokerState, Image};

/// One partition's move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The partition.
    pub partition: TopicPartition,
    /// The replicas it has, the preferred leader first.
    pub from: Vec<BrokerId>,
    /// The replicas it is to have.
    pub to: Vec<BrokerId>,
}

impl Move {
    /// Whether records have to be copied; if not, only the preferred leader changes.
    pub fn copies(&self) -> bool {
        self.to.iter().any(|id| !self.from.contains(id))
    }
}

/// What would have to move so that brokers hold and lead equally much, those in `without` nothing. Partitions that are
/// being reassigned stay as they are. A replica stays on a broker in `without` if nobody else can take it.
pub fn plan(image: &Image, without: &BTreeSet<BrokerId>) -> Vec<Move> {
    let mut plan = Plan::new(image, without);
    plan.vacate(without);
    plan.even_replicas();
    plan.even_leaders();
    plan.moves()
}

/// Moves at most one replica for each time there is one, so that it ends whatever the cluster looks like.
struct Plan<'a> {
    image: &'a Image,
    partitions: Vec<(TopicPartition, Vec<BrokerId>)>,
    /// Replicas on each broker that can take some.
    counts: BTreeMap<BrokerId, usize>,
}

impl<'a> Plan<'a> {
    fn new(image: &'a Image, without: &BTreeSet<BrokerId>) -> Plan<'a> {
        let takes = image.brokers().filter(|b| b.state == BrokerState::Unfenced && !without.contains(&b.id));
        let mut counts: BTreeMap<BrokerId, usize> = takes.map(|broker| (broker.id, 0)).collect();
        let mut partitions = Vec::new();
        for topic in image.topics() {
            for partition in &topic.partitions {
                let target: Vec<_> = partition.target().collect();
                for id in &target {
                    counts.entry(*id).and_modify(|count| *count += 1);
                }
                if !partition.is_reassigning() {
                    let id = TopicPartition { topic: topic.id, partition: partition.index };
                    partitions.push((id, target));
                }
            }
        }
        Plan { image, partitions, counts }
    }

    fn vacate(&mut self, without: &BTreeSet<BrokerId>) {
        for at in 0..self.partitions.len() {
            while let Some(slot) = self.partitions[at].1.iter().position(|id| without.contains(id)) {
                let Some(taker) = self.taker(at, slot) else { break };
                self.put(at, slot, taker);
            }
        }
    }

    /// The emptiest broker that holds nothing of the partition, on a rack that it is not on, if there is any.
    fn taker(&self, at: usize, slot: usize) -> Option<BrokerId> {
        let replicas = &self.partitions[at].1;
        let free = self.counts.iter().filter(|(id, _)| !replicas.contains(id));
        free.min_by_key(|(id, count)| (self.on_rack(replicas, slot, **id), **count)).map(|(id, _)| *id)
    }

    /// How many other replicas of the partition are on the rack of this broker.
    fn on_rack(&self, replicas: &[BrokerId], slot: usize, broker: BrokerId) -> usize {
        let rack = |id: BrokerId| self.image.broker(id).map(|broker| broker.rack.as_str());
        let others = replicas.iter().enumerate().filter(|(other, _)| *other != slot);
        others.filter(|(_, id)| rack(**id) == rack(broker)).count()
    }

    fn put(&mut self, at: usize, slot: usize, broker: BrokerId) {
        let before = std::mem::replace(&mut self.partitions[at].1[slot], broker);
        self.counts.entry(before).and_modify(|count| *count -= 1);
        self.counts.entry(broker).and_modify(|count| *count += 1);
    }

    fn even_replicas(&mut self) {
        for _ in 0..self.partitions.len() {
            let Some((at, slot, taker)) = self.best_move() else { return };
            self.put(at, slot, taker);
        }
    }

    /// From the fullest broker to the emptiest, or from and to the next ones where no replica can go that way.
    fn best_move(&self) -> Option<(usize, usize, BrokerId)> {
        let mut by_count: Vec<_> = self.counts.iter().map(|(id, count)| (*count, *id)).collect();
        by_count.sort_unstable();
        for (most, giver) in by_count.iter().rev() {
            for (least, taker) in &by_count {
                if *most < least + 2 {
                    break;
                }
                if let Some((at, slot)) = self.movable(*giver, *taker) {
                    return Some((at, slot, *taker));
                }
            }
        }
        None
    }

    fn movable(&self, giver: BrokerId, taker: BrokerId) -> Option<(usize, usize)> {
        self.partitions.iter().enumerate().find_map(|(at, (_, replicas))| {
            let slot = replicas.iter().position(|id| *id == giver)?;
            let is_free = !replicas.contains(&taker);
            let is_as_safe = || self.on_rack(replicas, slot, taker) <= self.on_rack(replicas, slot, giver);
            (is_free && is_as_safe()).then_some((at, slot))
        })
    }

    /// Changes who is preferred among the replicas that a partition has.
    fn even_leaders(&mut self) {
        let mut led: BTreeMap<BrokerId, usize> = self.counts.keys().map(|id| (*id, 0)).collect();
        for (_, replicas) in &self.partitions {
            led.entry(replicas[0]).and_modify(|count| *count += 1);
        }
        for _ in 0..self.partitions.len() {
            let better = (0..self.partitions.len()).find_map(|at| {
                let replicas = &self.partitions[at].1;
                let count = |id: &BrokerId| led.get(id).copied();
                let slot = (1..replicas.len())
                    .filter(|slot| led.contains_key(&replicas[*slot]))
                    .min_by_key(|slot| count(&replicas[*slot]))?;
                let has = count(&replicas[0]).unwrap_or(usize::MAX);
                (has >= count(&replicas[slot])?.saturating_add(2)).then_some((at, slot))
            });
            let Some((at, slot)) = better else { return };
            let replicas = &mut self.partitions[at].1;
            led.entry(replicas[0]).and_modify(|count| *count -= 1);
            led.entry(replicas[slot]).and_modify(|count| *count += 1);
            replicas.swap(0, slot);
        }
    }

    fn moves(self) -> Vec<Move> {
        let image = self.image;
        let moved = |(partition, to): (TopicPartition, Vec<BrokerId>)| {
            let from = image.partition(partition)?.replicas.clone();
            (from != to).then_some(Move { partition, from, to })
        };
        self.partitions.into_iter().filter_map(moved).collect()
    }
}
