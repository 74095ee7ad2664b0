//! What the metadata says of a partition, as far as a broker that replicates it has to know.

use std::collections::{BTreeMap, BTreeSet};

use quire_engine::controller::Image;
use quire_engine::controller::image::{BrokerState, Partition};
use quire_engine::replication::{Membership, Replica};
use quire_protocol::{BrokerId, LeaderEpoch};

/// A broker's part in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The broker that leads; none while no replica may.
    pub leader: Option<BrokerId>,
    /// Counts the leaderships.
    pub leader_epoch: LeaderEpoch,
    /// The broker's own registration.
    pub broker_epoch: u64,
    /// Whether that is the one that the process lives in.
    pub is_current: bool,
    /// The replicas.
    pub membership: Membership,
    /// Whether the metadata counts on the broker's replica: it is in sync, or eligible to lead.
    pub is_counted: bool,
}

impl Assignment {
    /// Of a partition that this broker holds alone.
    pub fn alone(broker: BrokerId, leader_epoch: LeaderEpoch) -> Assignment {
        Assignment {
            leader: Some(broker),
            leader_epoch,
            broker_epoch: 1,
            is_current: true,
            membership: Membership::alone(broker, 1),
            is_counted: true,
        }
    }

    /// As the image has it, for this broker in this registration. Whatever the image says of an earlier registration is
    /// none of this one's: a broker that restarted neither leads nor follows before the metadata knows that it did.
    pub fn of(
        image: &Image,
        partition: &Partition,
        broker: BrokerId,
        registration: Option<u64>,
    ) -> Assignment {
        let replica = |id: &BrokerId| {
            let known = image.broker(*id)?;
            let is_eligible = known.state != BrokerState::Fenced;
            Some((*id, Replica { broker_epoch: known.epoch, is_eligible }))
        };
        let replicas: BTreeMap<_, _> = partition.replicas.iter().filter_map(replica).collect();
        let own = replicas.get(&broker).map(|replica| replica.broker_epoch);
        let is_current = own.is_some() && own == registration;
        Assignment {
            leader: partition.leader.filter(|_| is_current),
            leader_epoch: partition.leader_epoch,
            broker_epoch: own.unwrap_or_default(),
            is_current,
            membership: Membership {
                partition_epoch: partition.partition_epoch,
                replicas,
                in_sync: partition.in_sync.iter().copied().collect::<BTreeSet<_>>(),
            },
            is_counted: partition.in_sync.contains(&broker) || partition.eligible.contains(&broker),
        }
    }
}
