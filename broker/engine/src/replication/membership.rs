//! What the metadata says of a partition, as far as its leader has to know.

use std::collections::{BTreeMap, BTreeSet};

use quire_protocol::BrokerId;

/// A partition's replicas, as committed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Membership {
    /// Counts every change of leader or in-sync replicas.
    pub partition_epoch: u32,
    /// The brokers that hold the partition, those being added included.
    pub replicas: BTreeMap<BrokerId, Replica>,
    /// The replicas in sync, the leader among them.
    pub in_sync: BTreeSet<BrokerId>,
}

/// What the metadata says of the broker that holds a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replica {
    /// Counts the broker's registrations.
    pub broker_epoch: u64,
    /// Whether it may be counted among the in-sync replicas: it is neither fenced nor about to leave.
    pub is_eligible: bool,
}

impl Membership {
    /// A partition of one replica, in sync with itself.
    pub fn alone(broker: BrokerId, broker_epoch: u64) -> Membership {
        Membership {
            partition_epoch: 0,
            replicas: BTreeMap::from([(broker, Replica { broker_epoch, is_eligible: true })]),
            in_sync: BTreeSet::from([broker]),
        }
    }

    /// How many replicas must be in sync for anything to be committed: never more than there are.
    pub fn min_in_sync(&self, configured: u32) -> usize {
        (configured as usize).min(self.replicas.len())
    }
}
