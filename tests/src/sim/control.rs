//! The controller of the simulated cluster: what it decides about one partition, written down as plainly as the rules are.

use std::collections::BTreeMap;

use quire_engine::mutant::{self, Mutant};
use quire_engine::replication::{Membership, Proposal, Replica};
use quire_protocol::{BrokerId, LeaderEpoch};

use super::broker::View;

/// The cluster as committed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Image {
    pub brokers: BTreeMap<BrokerId, Registered>,
    pub partition: Partition,
}

/// A broker as committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registered {
    pub epoch: u64,
    pub incarnation: u64,
    pub is_fenced: bool,
}

/// The partition as committed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Partition {
    pub replicas: Vec<BrokerId>,
    pub leader: Option<BrokerId>,
    pub leader_epoch: u32,
    pub partition_epoch: u32,
    pub in_sync: Vec<BrokerId>,
    pub eligible: Vec<BrokerId>,
}

/// What can be asked of the controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A broker started. `is_suspect`: it may have lost what it said it had.
    Register { broker: BrokerId, incarnation: u64, is_suspect: bool },
    /// A broker has seen its registration, and can serve.
    Unfence { broker: BrokerId, epoch: u64 },
    /// A broker was not heard of for too long.
    Fence { broker: BrokerId, epoch: u64 },
    /// A leader wants other in-sync replicas.
    ChangeInSync { leader: BrokerId, epoch: u64, proposal: Proposal },
    /// Another in-sync replica is to lead.
    Move { to: BrokerId },
    /// A broker's replica can not be trusted.
    Distrust { broker: BrokerId, epoch: u64 },
}

/// What is committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    Broker(BrokerId, Registered),
    Partition(Partition),
}

/// What the controller answers once its decision is applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Registered { epoch: u64 },
    Done,
    Refused,
}

impl Image {
    /// A partition with these replicas, all of them in sync, and nobody registered.
    pub fn new(replicas: Vec<BrokerId>) -> Image {
        let partition = Partition {
            in_sync: replicas.clone(),
            replicas,
            leader: None,
            leader_epoch: 0,
            partition_epoch: 0,
            eligible: Vec::new(),
        };
        Image { brokers: BTreeMap::new(), partition }
    }

    /// The only way it changes.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::Broker(id, registered) => drop(self.brokers.insert(*id, *registered)),
            Record::Partition(partition) => self.partition = partition.clone(),
        }
    }

    /// What a broker is to know.
    pub fn view(&self) -> View {
        let partition = &self.partition;
        let replica = |id: &BrokerId| {
            let known = self.brokers.get(id);
            let broker_epoch = known.map_or(0, |known| known.epoch);
            (*id, Replica { broker_epoch, is_eligible: known.is_some_and(|known| !known.is_fenced) })
        };
        View {
            leader: partition.leader,
            leader_epoch: LeaderEpoch(partition.leader_epoch),
            membership: Membership {
                partition_epoch: partition.partition_epoch,
                replicas: partition.replicas.iter().map(replica).collect(),
                in_sync: partition.in_sync.iter().copied().collect(),
            },
            counted: partition.in_sync.iter().chain(&partition.eligible).copied().collect(),
        }
    }

    /// Decides.
    pub fn decide(&self, request: &Request, min_in_sync: usize) -> (Vec<Record>, Answer) {
        let mut after = self.clone();
        let answer = match request {
            Request::Register { broker, incarnation, is_suspect } => {
                after.register(*broker, *incarnation, *is_suspect, min_in_sync)
            }
            Request::Unfence { broker, epoch } => after.set_fenced(*broker, *epoch, false, min_in_sync),
            Request::Fence { broker, epoch } => after.set_fenced(*broker, *epoch, true, min_in_sync),
            Request::ChangeInSync { leader, epoch, proposal } => {
                after.change_in_sync(*leader, *epoch, proposal, min_in_sync)
            }
            Request::Move { to } => after.lead_by(*to),
            Request::Distrust { broker, epoch } => after.distrust(*broker, *epoch, min_in_sync),
        };
        let mut records = Vec::new();
        for (id, registered) in &after.brokers {
            if self.brokers.get(id) != Some(registered) {
                records.push(Record::Broker(*id, *registered));
            }
        }
        if after.partition != self.partition {
            records.push(Record::Partition(after.partition));
        }
        (records, answer)
    }

    fn is_current(&self, broker: BrokerId, epoch: u64) -> bool {
        self.brokers.get(&broker).is_some_and(|known| known.epoch == epoch)
    }

    fn register(
        &mut self,
        broker: BrokerId,
        incarnation: u64,
        is_suspect: bool,
        min_in_sync: usize,
    ) -> Answer {
        let known = self.brokers.get(&broker).copied();
        if let Some(known) = known.filter(|known| known.incarnation == incarnation) {
            return Answer::Registered { epoch: known.epoch };
        }
        let epoch = known.map_or(0, |known| known.epoch) + 1;
        self.brokers.insert(broker, Registered { epoch, incarnation, is_fenced: true });
        self.leave(broker, is_suspect && !mutant::is_on(Mutant::SuspectRule), min_in_sync);
        Answer::Registered { epoch }
    }

    fn set_fenced(&mut self, broker: BrokerId, epoch: u64, is_fenced: bool, min_in_sync: usize) -> Answer {
        if !self.is_current(broker, epoch) {
            return Answer::Refused;
        }
        let known = self.brokers.get_mut(&broker).expect("it is current");
        if known.is_fenced == is_fenced {
            return Answer::Done;
        }
        known.is_fenced = is_fenced;
        match is_fenced {
            true => self.leave(broker, false, min_in_sync),
            false => self.elect(),
        }
        Answer::Done
    }

    fn distrust(&mut self, broker: BrokerId, epoch: u64, min_in_sync: usize) -> Answer {
        if !self.is_current(broker, epoch) {
            return Answer::Refused;
        }
        self.leave(broker, true, min_in_sync);
        Answer::Done
    }

    fn lead_by(&mut self, to: BrokerId) -> Answer {
        let is_alive = self.brokers.get(&to).is_some_and(|known| !known.is_fenced);
        let partition = &mut self.partition;
        if !is_alive || partition.leader == Some(to) || !partition.in_sync.contains(&to) {
            return Answer::Refused;
        }
        partition.leader = Some(to);
        partition.leader_epoch += 1;
        partition.partition_epoch += 1;
        Answer::Done
    }

    /// A broker is in sync no more. Whoever was, and has not acknowledged anything since that others lack, stays eligible
    /// while too few are in sync for anything to be committed.
    fn leave(&mut self, broker: BrokerId, is_distrusted: bool, min_in_sync: usize) {
        let before = self.partition.clone();
        let partition = &mut self.partition;
        partition.in_sync.retain(|id| *id != broker);
        if is_distrusted {
            partition.eligible.retain(|id| *id != broker);
        } else if partition.in_sync.len() < min_in_sync && before.in_sync.contains(&broker) {
            partition.eligible.push(broker);
        }
        if partition.leader == Some(broker) {
            partition.leader = None;
        }
        if *partition != before {
            partition.partition_epoch += 1;
        }
        self.elect();
    }

    /// Leaders come from the in-sync replicas, then from the eligible ones.
    fn elect(&mut self) {
        let is_alive = |id: &&BrokerId| self.brokers.get(*id).is_some_and(|known| !known.is_fenced);
        let partition = &self.partition;
        if partition.leader.is_some() {
            return;
        }
        let mut candidates = partition.in_sync.iter().chain(&partition.eligible);
        let Some(leader) = candidates.find(is_alive).copied() else {
            return;
        };
        let partition = &mut self.partition;
        if !partition.in_sync.contains(&leader) {
            partition.in_sync = vec![leader];
            partition.eligible.retain(|id| *id != leader);
        }
        partition.leader = Some(leader);
        partition.leader_epoch += 1;
        partition.partition_epoch += 1;
    }

    fn change_in_sync(
        &mut self,
        leader: BrokerId,
        epoch: u64,
        proposal: &Proposal,
        min_in_sync: usize,
    ) -> Answer {
        let partition = &self.partition;
        let leads = self.is_current(leader, epoch)
            && partition.leader == Some(leader)
            && partition.leader_epoch == proposal.leader_epoch.0;
        let is_compared = mutant::is_on(Mutant::PartitionEpochCompared)
            || partition.partition_epoch == proposal.partition_epoch;
        let may_be = |(id, epoch): &(BrokerId, u64)| {
            let known = self.brokers.get(id).filter(|_| partition.replicas.contains(id));
            known.is_some_and(|known| {
                !known.is_fenced && (known.epoch == *epoch || mutant::is_on(Mutant::BrokerEpochInProposal))
            })
        };
        let members = &proposal.in_sync;
        if !leads
            || !is_compared
            || !members.iter().all(may_be)
            || !members.iter().any(|(id, _)| *id == leader)
        {
            return Answer::Refused;
        }
        let partition = &mut self.partition;
        let in_sync: Vec<BrokerId> = members.iter().map(|(id, _)| *id).collect();
        let left = partition.in_sync.iter().filter(|id| !in_sync.contains(id)).copied();
        partition.eligible = match in_sync.len() < min_in_sync {
            true => {
                partition.eligible.iter().copied().filter(|id| !in_sync.contains(id)).chain(left).collect()
            }
            false => Vec::new(),
        };
        partition.in_sync = in_sync;
        partition.partition_epoch += 1;
        Answer::Done
    }
}
