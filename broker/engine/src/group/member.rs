//! How a member comes from what it has to what it is to have.
//!
//! ```text
//!            target without some of it               says that it gave them up
//!  stable ─────────────────────────────► revoking ─────────────────────────────┐
//!    ▲  ▲                                                                      │
//!    │  └───────── all of the target is free ──────────────────────────────────┤
//!    └─ the rest is free ── waiting ◄── some of the target has another owner ──┘
//! ```
//! A member that revokes stays in its epoch: it may commit what it gives up. It reaches the group's generation once it
//! has nothing that is another's; what others have not given up yet comes to it later, in the same epoch.

use quire_protocol::TopicPartition;

use super::records::{Current, Generation};
use super::topics::Partitions;

impl Current {
    /// What nobody else may have.
    pub(super) fn held(&self) -> impl Iterator<Item = &TopicPartition> {
        self.assigned.iter().chain(&self.revoking)
    }

    /// Whether a partition is this member's, be it on its way out.
    pub(super) fn holds(&self, partition: &TopicPartition) -> bool {
        self.assigned.contains(partition) || self.revoking.contains(partition)
    }

    /// Whether what a member says it owns shows that it gave up what it should.
    ///
    /// What it said before it was asked shows nothing: it may have got the partition since.
    pub(super) fn is_given_up(&self, owned: Option<&Partitions>, seen: Option<u32>) -> bool {
        let has_seen = seen.is_none_or(|seen| seen == self.revision);
        has_seen && owned.is_some_and(|owned| owned.is_disjoint(&self.revoking))
    }

    /// The next step towards a target of this generation. `is_free` says whether nobody else has a partition.
    pub(super) fn towards(
        &self,
        target: &Partitions,
        generation: Generation,
        has_given_up: bool,
        is_free: impl Fn(&TopicPartition) -> bool,
    ) -> Current {
        if !self.revoking.is_empty() && !has_given_up {
            return self.clone();
        }
        let (kept, lost): (Partitions, Partitions) =
            self.assigned.iter().partition(|partition| target.contains(partition));
        let mut next = self.clone();
        if lost.is_empty() {
            next.assigned = target.iter().filter(|id| kept.contains(id) || is_free(id)).copied().collect();
            next.revoking = Partitions::new();
            next.epoch = generation;
        } else {
            next.assigned = kept;
            next.revoking = lost;
        }
        if next.epoch != self.epoch {
            next.previous = self.epoch;
        }
        if next != *self {
            next.revision = self.revision.wrapping_add(1);
        }
        next
    }
}
