//! What a shard exchanges with other brokers: which partitions follow which leader, under which slot, and what is left in
//! the mailboxes of their streams.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quire_protocol::replicate::{Follow, FollowerMessage, LeaderMessage};
use quire_protocol::{BrokerId, ErrorCode, TopicPartition, limits};

use super::clock::Now;
use super::event::{Event, Fetched, Outgoing};
use super::link::Uplink;
use super::partition::{Partition, Wanted};
use super::{Shard, Slot};

/// A shard's account of whom it follows.
#[derive(Debug)]
pub(super) struct Replication {
    leaders: BTreeMap<BrokerId, Followed>,
    /// The partitions that asked to follow, by the slot they were given last.
    slots: BTreeMap<u32, TopicPartition>,
    next_slot: u32,
    /// What leaders may have sent that is not appended yet (bytes).
    fetch_bytes: usize,
    outgoing: Vec<Outgoing>,
}

/// A leader that is followed.
#[derive(Debug)]
struct Followed {
    uplink: Arc<Uplink>,
    is_up: bool,
    partitions: BTreeSet<TopicPartition>,
}

impl Replication {
    pub(super) fn new(fetch_bytes: usize) -> Replication {
        Replication {
            leaders: BTreeMap::new(),
            slots: BTreeMap::new(),
            next_slot: 0,
            fetch_bytes,
            outgoing: Vec::new(),
        }
    }

    /// The leader that a partition is known to follow.
    fn leader_of(&self, id: TopicPartition) -> Option<BrokerId> {
        let mut leaders = self.leaders.iter();
        leaders.find(|(_, followed)| followed.partitions.contains(&id)).map(|(leader, _)| *leader)
    }

    fn leave(&mut self, leader: BrokerId, id: TopicPartition) {
        if let Some(followed) = self.leaders.get_mut(&leader) {
            followed.partitions.remove(&id);
            followed.uplink.set_wanted(!followed.partitions.is_empty());
        }
    }

    /// The controller is to be told that a partition's replica here can not be trusted.
    pub(super) fn distrust(&mut self, id: TopicPartition) {
        self.outgoing.push(Outgoing::Distrust { partition: id });
    }

    /// Whether the leader can be reached.
    fn join(&mut self, leader: BrokerId, id: TopicPartition) -> bool {
        let outgoing = &mut self.outgoing;
        let followed = self.leaders.entry(leader).or_insert_with(|| {
            let uplink = Arc::new(Uplink::new(leader));
            outgoing.push(Outgoing::Connect(Arc::clone(&uplink)));
            Followed { uplink, is_up: false, partitions: BTreeSet::new() }
        });
        followed.partitions.insert(id);
        followed.uplink.set_wanted(true);
        followed.is_up
    }

    /// Draws the slot of a request to follow, which takes the place of the partition's earlier one.
    fn draw_slot(&mut self, id: TopicPartition, earlier: Option<u32>) -> u32 {
        if let Some(earlier) = earlier {
            self.slots.remove(&earlier);
        }
        let slot = self.next_slot;
        self.next_slot = self.next_slot.wrapping_add(1);
        self.slots.insert(slot, id);
        slot
    }

    fn send(&self, leader: BrokerId, message: FollowerMessage) {
        if let Some(followed) = self.leaders.get(&leader).filter(|followed| followed.is_up) {
            followed.uplink.send(message);
        }
    }

    /// What each partition may be sent ahead: its share of the memory for that.
    fn credit(&self) -> u32 {
        let followed: usize = self.leaders.values().map(|followed| followed.partitions.len()).sum();
        let share = self.fetch_bytes / followed.max(1);
        share.clamp(limits::FETCH_CREDIT_BYTES_MIN, limits::FETCH_CREDIT_BYTES_MAX) as u32
    }
}

impl Shard {
    /// What the shard wants done since the last look, in order.
    pub fn take_outgoing(&mut self) -> Vec<Outgoing> {
        std::mem::take(&mut self.replication.outgoing)
    }

    /// Applies an event that came from, or is about, another broker.
    pub(super) fn replicate(&mut self, now: Now, event: Event) {
        match event {
            Event::Follow { link, follow } => {
                let id = follow.partition;
                match self.open_partition(id) {
                    Some(partition) => partition.follow(now, &link, &follow),
                    // It may be opened yet.
                    None => link.refuse(&follow, ErrorCode::Unavailable),
                }
                self.touch(id);
            }
            Event::Unfollow { link, partition, slot } => {
                if let Some(open) = self.open_partition(partition) {
                    open.unfollow(&link, slot);
                }
            }
            Event::Progress { link, entries } => {
                for progress in entries {
                    let id = progress.partition;
                    if let Some(partition) = self.open_partition(id) {
                        partition.progressed(now, &link, progress);
                        self.touch(id);
                    }
                }
            }
            Event::LinkUp { leader } => self.linked(now, leader, true),
            Event::LinkDown { leader } => self.linked(now, leader, false),
            Event::Told { leader, message, frames } => self.told(now, leader, message, frames),
            Event::ProposalAnswered { partition: id, leader_epoch, number, outcome } => {
                if let Some(partition) = self.open_partition(id) {
                    partition.proposal_answered(now, leader_epoch, number, outcome);
                    self.touch(id);
                }
            }
            other => unreachable!("{other:?} is not about another broker"),
        }
    }

    fn linked(&mut self, now: Now, leader: BrokerId, is_up: bool) {
        let Some(followed) = self.replication.leaders.get_mut(&leader) else { return };
        followed.is_up = is_up;
        followed.uplink.clear();
        for id in followed.partitions.clone() {
            if let Some(partition) = self.open_partition(id) {
                partition.linked(now, is_up);
                self.touch(id);
            }
        }
    }

    fn told(&mut self, now: Now, leader: BrokerId, message: LeaderMessage, frames: Fetched) {
        let Some(id) = self.replication.slots.get(&message.slot()).copied() else { return };
        let Some(partition) = self.open_partition(id) else { return };
        if partition.followed() == Some(leader) {
            partition.told(now, message, frames);
            self.touch(id);
        }
    }

    /// Keeps account of whom a partition follows, if that changed.
    pub(super) fn relink(&mut self, now: Now, id: TopicPartition) {
        let Some(partition) = self.open_partition(id) else { return };
        if !partition.take_role_change() {
            return;
        }
        let leader = partition.followed();
        self.send_wanted(id);
        if let Some(earlier) = self.replication.leader_of(id).filter(|earlier| Some(*earlier) != leader) {
            self.replication.leave(earlier, id);
        }
        let Some(leader) = leader else { return };
        if self.replication.join(leader, id)
            && let Some(partition) = self.open_partition(id)
        {
            partition.linked(now, true);
        }
    }

    /// A partition is let go of.
    pub(super) fn unlink(&mut self, id: TopicPartition) {
        self.send_wanted(id);
        if let Some(leader) = self.replication.leader_of(id) {
            self.replication.leave(leader, id);
        }
    }

    /// Sends what a partition wants of others, and how far it is.
    pub(super) fn send_wanted(&mut self, id: TopicPartition) {
        let Some(Slot::Open { partition, .. }) = self.slots.get_mut(&id) else { return };
        let replication = &mut self.replication;
        for wanted in partition.take_wanted() {
            match wanted {
                Wanted::Follow { leader, leader_epoch, broker_epoch, last_epoch, end } => {
                    let slot = replication.draw_slot(id, partition.slot());
                    let credit = partition.asked(slot, replication.credit());
                    let follow =
                        Follow { slot, partition: id, leader_epoch, broker_epoch, last_epoch, end, credit };
                    replication.send(leader, FollowerMessage::Follow(follow));
                }
                Wanted::Unfollow { leader, slot } => {
                    replication.slots.remove(&slot);
                    replication.send(leader, FollowerMessage::Unfollow { slot });
                }
                Wanted::Propose(proposal) => {
                    replication.outgoing.push(Outgoing::Propose { partition: id, proposal });
                }
                Wanted::Distrust => replication.distrust(id),
            }
        }
        if let (Some(leader), Some(progress)) = (partition.followed(), partition.take_progress())
            && let Some(followed) = replication.leaders.get(&leader)
        {
            followed.uplink.progressed(progress);
        }
    }

    fn open_partition(&mut self, id: TopicPartition) -> Option<&mut Partition> {
        match self.slots.get_mut(&id) {
            Some(Slot::Open { partition, end: None }) => Some(partition),
            _ => None,
        }
    }
}
