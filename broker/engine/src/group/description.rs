//! How groups and their members stand, for people who look at them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use quire_protocol::{Timestamp, TopicPartition};

use super::assignment::Assignor;
use super::records::{Committed, Generation, MemberRecord, Protocol};
use super::state::Group;
use super::topics::Partitions;

/// How far a group has come with its assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupState {
    /// It has no members.
    Empty,
    /// Some member does not have yet what it is to have, or has more.
    Rebalancing,
    /// Every member has what it is to have.
    Stable,
}

/// A group, in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSummary {
    /// Its id.
    pub group: Arc<str>,
    /// How far it has come.
    pub state: GroupState,
    /// Its generation.
    pub generation: Generation,
    /// How its members speak.
    pub protocol: Protocol,
    /// How many members it has.
    pub members: usize,
    /// Names of the topics that they subscribe to.
    pub topics: BTreeSet<Arc<str>>,
}

/// A group, in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupDescription {
    /// In short.
    pub summary: GroupSummary,
    /// How partitions are given to members.
    pub assignor: Assignor,
    /// When it came to be.
    pub created_at: Timestamp,
    /// Since when it has no members, if it has none.
    pub empty_since: Option<Timestamp>,
    /// For how long it has been rebalancing, if it is, as far as this coordinator has seen.
    pub rebalancing_for: Option<Duration>,
    /// Its members, by their ids.
    pub members: Vec<MemberDescription>,
    /// What is committed: offset and time for each partition.
    pub offsets: Vec<(TopicPartition, Committed)>,
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberDescription {
    /// Its id.
    pub member: Arc<str>,
    /// What it said of itself.
    pub about: MemberRecord,
    /// The generation that it has reached.
    pub epoch: Generation,
    /// What it has.
    pub assigned: Partitions,
    /// What it is to have.
    pub target: Partitions,
    /// What keeps it from having that.
    pub state: MemberState,
    /// How long it has been silent, as far as this coordinator has seen.
    pub silent_for: Option<Duration>,
}

/// What keeps a member from having what it is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberState {
    /// Nothing: it has it.
    Stable,
    /// It has not asked since that changed; it learns of it with its next heartbeat.
    Behind,
    /// It was asked to give up partitions, and has not said it did.
    Revoking {
        /// These.
        partitions: Partitions,
        /// For how long, as far as this coordinator has seen.
        revoking_for: Option<Duration>,
    },
    /// Other members have not given up what it is to have.
    Waiting {
        /// What, and who has it.
        partitions: Vec<(TopicPartition, Arc<str>)>,
    },
    /// It is a static member that left and is to come back.
    Away,
}

impl Group {
    pub(super) fn summary(&self, group: &Arc<str>) -> GroupSummary {
        GroupSummary {
            group: group.clone(),
            state: self.group_state(),
            generation: self.generation(),
            protocol: self.record.as_ref().map_or(Protocol::Native, |record| record.protocol),
            members: self.members.len(),
            topics: self.members.values().flat_map(|member| member.topics.iter().cloned()).collect(),
        }
    }

    pub(super) fn group_state(&self) -> GroupState {
        if self.members.is_empty() {
            return GroupState::Empty;
        }
        let is_settled = self.members.keys().all(|member| self.is_settled(member));
        if is_settled { GroupState::Stable } else { GroupState::Rebalancing }
    }

    pub(super) fn describe(&self, group: &Arc<str>) -> GroupDescription {
        let record = self.record.as_ref();
        GroupDescription {
            summary: self.summary(group),
            assignor: record.map_or_else(Assignor::default, |record| record.assignor),
            created_at: record.map_or(Timestamp::NONE, |record| record.created_at),
            empty_since: record.and_then(|record| record.empty_since),
            rebalancing_for: None,
            members: self.members.iter().map(|(id, about)| self.describe_member(id, about)).collect(),
            offsets: self.offsets.iter().map(|(id, committed)| (*id, committed.clone())).collect(),
        }
    }

    fn describe_member(&self, member: &Arc<str>, about: &MemberRecord) -> MemberDescription {
        let current = self.current(member);
        MemberDescription {
            member: member.clone(),
            about: about.clone(),
            epoch: current.epoch,
            assigned: current.assigned.clone(),
            target: self.target(member).clone(),
            state: self.member_state(member),
            silent_for: None,
        }
    }

    fn member_state(&self, member: &Arc<str>) -> MemberState {
        let current = self.current(member);
        if current.epoch == Generation::PAUSES {
            return MemberState::Away;
        }
        if !current.revoking.is_empty() {
            return MemberState::Revoking { partitions: current.revoking.clone(), revoking_for: None };
        }
        if self.is_settled(member) {
            return MemberState::Stable;
        }
        let held = |partition: &TopicPartition| {
            let owner = self.owners.get(partition).filter(|owner| *owner != member)?;
            Some((*partition, owner.clone()))
        };
        let partitions: Vec<_> = self.target(member).iter().filter_map(held).collect();
        if partitions.is_empty() { MemberState::Behind } else { MemberState::Waiting { partitions } }
    }
}
