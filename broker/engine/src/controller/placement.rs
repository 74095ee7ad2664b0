//! Which brokers hold a new partition: the least loaded ones, on as many racks as there are. One that is fenced or drains
//! is chosen only if there are too few others.

use std::collections::BTreeMap;

use quire_protocol::{BrokerId, LeaderEpoch, PartitionIndex};

use super::image::{BrokerState, Image, Partition};
use crate::Random;

/// The load of each registered broker, counted up as partitions are placed.
#[derive(Debug)]
pub(super) struct Placement<'a> {
    candidates: Vec<Candidate<'a>>,
}

#[derive(Debug)]
struct Candidate<'a> {
    broker: BrokerId,
    rack: &'a str,
    state: BrokerState,
    replicas: u32,
    leaderships: u32,
    /// Decides between equals, so that small topics do not all end up on the broker with the lowest number.
    lot: u64,
}

impl<'a> Placement<'a> {
    /// The load as `image` has it.
    pub fn new(image: &'a Image, random: &mut dyn Random) -> Placement<'a> {
        let replicas = image.replica_counts();
        let mut leaderships: BTreeMap<BrokerId, u32> = BTreeMap::new();
        let partitions = image.topics().flat_map(|topic| &topic.partitions);
        for leader in partitions.filter_map(|partition| partition.leader) {
            *leaderships.entry(leader).or_default() += 1;
        }
        let candidate = |broker: &'a super::image::Broker| Candidate {
            broker: broker.id,
            rack: &broker.rack,
            state: broker.state,
            replicas: replicas.get(&broker.id).copied().unwrap_or(0),
            leaderships: leaderships.get(&broker.id).copied().unwrap_or(0),
            lot: random.next_u64(),
        };
        Placement { candidates: image.brokers().map(candidate).collect() }
    }

    /// The most replicas any broker would hold after what was placed so far.
    pub fn heaviest(&self) -> u32 {
        self.candidates.iter().map(|candidate| candidate.replicas).max().unwrap_or(0)
    }

    /// Places one partition. Gives fewer replicas than asked only if there are fewer brokers.
    pub fn place(&mut self, partition: PartitionIndex, replicas: u32) -> Option<Partition> {
        let mut chosen: Vec<usize> = Vec::new();
        while chosen.len() < replicas as usize {
            let Some(next) = self.next_replica(&chosen) else { break };
            chosen.push(next);
        }
        let leader = *chosen.iter().min_by_key(|at| {
            let candidate = &self.candidates[**at];
            (candidate.state, candidate.leaderships, candidate.lot)
        })?;
        chosen.retain(|at| *at != leader);
        chosen.insert(0, leader);
        for at in &chosen {
            self.candidates[*at].replicas += 1;
        }
        self.candidates[leader].leaderships += 1;
        let of = |is_fit: &dyn Fn(&Candidate<'_>) -> bool| -> Vec<BrokerId> {
            let candidates = chosen.iter().map(|at| &self.candidates[*at]);
            candidates.filter(|candidate| is_fit(candidate)).map(|candidate| candidate.broker).collect()
        };
        let in_sync = of(&|candidate| candidate.state != BrokerState::Fenced);
        Some(Partition {
            index: partition,
            replicas: of(&|_| true),
            leader: in_sync.first().copied(),
            leader_epoch: LeaderEpoch(1),
            partition_epoch: 1,
            in_sync,
            // Nobody holds anything yet; whoever is fenced now catches up first.
            eligible: Vec::new(),
            adding: Vec::new(),
            removing: Vec::new(),
            is_recovering: false,
            suspects: Vec::new(),
        })
    }

    /// The best broker not chosen yet: one that can lead, on a rack that holds the fewest of those chosen, then the least loaded.
    fn next_replica(&self, chosen: &[usize]) -> Option<usize> {
        let on_rack = |rack: &str| chosen.iter().filter(|at| self.candidates[**at].rack == rack).count();
        (0..self.candidates.len()).filter(|at| !chosen.contains(at)).min_by_key(|at| {
            let candidate = &self.candidates[*at];
            (candidate.state, on_rack(candidate.rack), candidate.replicas, candidate.lot)
        })
    }
}
