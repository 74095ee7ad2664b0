//! One partition's leader.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quire_protocol::topic_config::{Sync, TopicConfig};
use quire_protocol::{BrokerId, LeaderEpoch, Offset, limits};

use super::action::{FollowAnswer, FollowRefusal, LeaderAction, Proposal, ResignReason};
use super::epochs::{Comparison, compare};
use super::in_sync::Peer;
use super::membership::Membership;
use super::message::{Follow, LeaderInput, ProposalOutcome};
use super::progress::{CommitRule, Progress, committed_end};
use crate::Time;
use crate::machine::Reactive;
use crate::mutant::{self, Mutant};

/// What a leadership starts with.
#[derive(Debug, Clone)]
pub struct LeaderStart<'a> {
    /// The leader itself.
    pub broker: BrokerId,
    /// The leadership.
    pub leader_epoch: LeaderEpoch,
    /// The replicas, as the metadata has them.
    pub membership: Membership,
    /// The topic's settings.
    pub config: &'a TopicConfig,
    /// A follower further behind than this leaves the in-sync replicas.
    pub replica_lag: Duration,
    /// The log start offset.
    pub log_start: Offset,
    /// The high watermark as far as it was known before.
    pub high_watermark: Offset,
    /// How far the leader's own log is. Its end is where the leadership starts.
    pub local: Progress,
}

/// The reactive machine that decides when records are committed, and who is in sync.
///
/// Holds at all times: log start ≤ high watermark ≤ log end, durable end ≤ log end, and none of the high watermark and
/// the ends ever goes back.
///
/// What is committed is safe on the *maximal* in-sync replicas: those committed and those of every proposal that may
/// have been, or may yet be, taken. So whoever the controller picks as the next leader has it.
#[derive(Debug, Clone)]
pub struct Leader {
    broker: BrokerId,
    leader_epoch: LeaderEpoch,
    /// The log end when the leadership began.
    epoch_start: Offset,
    rule: CommitRule,
    replica_lag: Duration,
    local: Progress,
    /// The other replicas.
    peers: BTreeMap<BrokerId, Peer>,
    membership: Membership,
    /// Asked for, and not answered.
    proposal: Option<Proposal>,
    /// Replicas of proposals for the current partition epoch whose outcome is unknown: until that epoch is over, they
    /// may be in sync as far as the controller is concerned.
    unresolved: BTreeSet<BrokerId>,
    proposals: u64,
    /// Nothing is proposed before.
    propose_after: Option<Time>,
    log_start: Offset,
    high_watermark: Offset,
    has_resigned: bool,
}

impl Leader {
    /// Begins a leadership. What is already safe everywhere is committed at once.
    ///
    /// # Panics
    /// If the leader is not in sync with itself, or its positions contradict each other.
    pub fn start(now: Time, start: LeaderStart<'_>, actions: &mut Vec<LeaderAction>) -> Leader {
        assert!(start.membership.in_sync.contains(&start.broker), "a leader is one of the in-sync replicas");
        let mut leader = Leader {
            broker: start.broker,
            leader_epoch: start.leader_epoch,
            epoch_start: start.local.log_end,
            rule: CommitRule {
                sync: start.config.sync,
                min_insync_replicas: start.config.min_insync_replicas,
            },
            replica_lag: start.replica_lag,
            local: start.local,
            peers: BTreeMap::new(),
            membership: start.membership,
            proposal: None,
            unresolved: BTreeSet::new(),
            proposals: 0,
            propose_after: None,
            log_start: start.log_start,
            high_watermark: start.high_watermark,
            has_resigned: false,
        };
        leader.meet_peers(now);
        leader.check();
        leader.commit(actions);
        leader
    }

    /// The bug that a new leadership begins with what followers said in an earlier one.
    #[cfg(feature = "mutants")]
    pub fn keep_progress_of(&mut self, earlier: &Leader) {
        for (id, peer) in &mut self.peers {
            if let Some(known) = earlier.peers.get(id) {
                peer.progress = known.progress;
            }
        }
    }

    /// The leadership.
    pub fn leader_epoch(&self) -> LeaderEpoch {
        self.leader_epoch
    }

    /// The first offset not yet committed, as far as this leader knows.
    pub fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// Whether the high watermark has reached what was there when the leadership began. Before that the last leader may
    /// have shown readers more than is known here: none is to be told where the log ends, or that it lies beyond it.
    pub fn is_settled(&self) -> bool {
        self.high_watermark >= self.epoch_start
    }

    /// Whether enough replicas are in sync for anything to be committed.
    pub fn has_enough_replicas(&self) -> bool {
        self.membership.in_sync.len() >= self.membership.min_in_sync(self.rule.min_insync_replicas)
    }

    /// The replicas that are in sync, as committed.
    pub fn in_sync(&self) -> &BTreeSet<BrokerId> {
        &self.membership.in_sync
    }

    /// The partition as committed, as far as this leader knows.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The end of what the leader itself holds safely: what `acks = leader` waits for.
    pub fn safe_end(&self) -> Offset {
        self.local.safe_end(self.rule.sync)
    }

    /// Whether its batches are acknowledged from the disk, or from the page cache.
    pub fn sync(&self) -> Sync {
        self.rule.sync
    }

    /// The end of what every replica has on disk, in sync or not: zero while one of them did not follow in this leadership.
    pub fn end_on_every_disk(&self) -> Offset {
        let replicas = self.membership.replicas.keys();
        let ends =
            replicas.map(|id| self.progress_of(*id).map_or(Offset::ZERO, |progress| progress.durable_end));
        ends.min().unwrap_or(Offset::ZERO)
    }

    /// How many in-sync replicas have everything before `end` on disk.
    pub fn replicas_on_disk(&self, end: Offset) -> u32 {
        let on_disk =
            |id: &&BrokerId| self.progress_of(**id).is_some_and(|progress| progress.durable_end >= end);
        self.membership.in_sync.iter().filter(on_disk).count() as u32
    }

    /// How far a replica is, if it is the leader or followed in this leadership under its current registration.
    pub fn progress_of(&self, id: BrokerId) -> Option<Progress> {
        if id == self.broker {
            return Some(self.local);
        }
        let peer = self.peers.get(&id)?;
        let is_current = peer.followed_as.is_some() && peer.followed_as == self.broker_epoch(id);
        (is_current || mutant::is_on(Mutant::FollowedInEpoch)).then_some(peer.progress)
    }

    fn broker_epoch(&self, id: BrokerId) -> Option<u64> {
        self.membership.replicas.get(&id).map(|replica| replica.broker_epoch)
    }

    fn safe_end_of(&self, id: BrokerId) -> Option<Offset> {
        self.progress_of(id).map(|progress| progress.safe_end(self.rule.sync))
    }

    /// Everyone who is in sync, or may be as far as the controller is concerned.
    fn maximal_in_sync(&self) -> BTreeSet<BrokerId> {
        let mut maximal = self.membership.in_sync.clone();
        if !mutant::is_on(Mutant::MaximalIsr) {
            maximal.extend(&self.unresolved);
            maximal.extend(self.proposal.iter().flat_map(|proposal| &proposal.in_sync).map(|(id, _)| *id));
        }
        maximal
    }

    fn commit(&mut self, actions: &mut Vec<LeaderAction>) {
        let is_gated = !self.has_enough_replicas() && !mutant::is_on(Mutant::MinIsrGate);
        if self.has_resigned || is_gated {
            return;
        }
        let maximal = self.maximal_in_sync();
        let Some(end) = committed_end(maximal.iter().map(|id| self.safe_end_of(*id))) else { return };
        if end > self.high_watermark {
            self.high_watermark = end;
            actions.push(LeaderAction::AdvanceHighWatermark { to: end });
        }
    }

    fn follow(&mut self, now: Time, follow: &Follow) -> FollowAnswer {
        if let Some(refusal) = self.refusal(follow) {
            return FollowAnswer::Refused(refusal);
        }
        let (from, kept) = match compare(follow, self.log_start, self.local.log_end) {
            Comparison::Prefix => (follow.end, follow.end),
            // It has none of this log until it tells, having begun anew there.
            Comparison::Unrelated => (self.log_start, Offset::ZERO),
            Comparison::Diverging(at) => return FollowAnswer::Diverging(at),
        };
        let current = self.broker_epoch(follow.follower);
        let log_end = self.local.log_end;
        let peer = self.peers.entry(follow.follower).or_insert_with(|| Peer::unknown(now, log_end));
        // What it has on disk it tells itself: it may have been cut and have grown again since it last did.
        let durable_end = match mutant::is_on(Mutant::ProgressReset) {
            true => peer.progress.durable_end.min(kept),
            false => Offset::ZERO,
        };
        peer.progress = Progress { log_end: kept, durable_end };
        peer.followed_as = match mutant::is_on(Mutant::BrokerEpochOnFollow) {
            true => current,
            false => Some(follow.broker_epoch),
        };
        FollowAnswer::Accepted { from }
    }

    fn refusal(&self, follow: &Follow) -> Option<FollowRefusal> {
        if self.has_resigned {
            return Some(FollowRefusal::NotLeader);
        }
        if !mutant::is_on(Mutant::LeaderEpochOnFollow) {
            match follow.leader_epoch.cmp(&self.leader_epoch) {
                Ordering::Less => return Some(FollowRefusal::OlderEpoch),
                Ordering::Greater => return Some(FollowRefusal::NewerEpoch),
                Ordering::Equal => {}
            }
        }
        let Some(current) = self.broker_epoch(follow.follower) else {
            return Some(FollowRefusal::NoReplica);
        };
        match follow.broker_epoch.cmp(&current) {
            _ if mutant::is_on(Mutant::BrokerEpochOnFollow) => None,
            Ordering::Less => Some(FollowRefusal::OlderBrokerEpoch),
            Ordering::Greater => Some(FollowRefusal::NewerBrokerEpoch),
            Ordering::Equal => None,
        }
    }

    /// Progress that a follower reports never goes back within one following.
    fn progressed(&mut self, now: Time, follower: BrokerId, broker_epoch: u64, ends: Progress) {
        let (sync, log_end) = (self.rule.sync, self.local.log_end);
        let Some(peer) = self.peers.get_mut(&follower) else { return };
        if peer.followed_as != Some(broker_epoch) && !mutant::is_on(Mutant::BrokerEpochOnFollow) {
            return;
        }
        // No follower has more than its leader.
        peer.progress.log_end = peer.progress.log_end.max(ends.log_end.min(log_end));
        peer.progress.durable_end =
            peer.progress.durable_end.max(ends.durable_end.min(peer.progress.log_end));
        peer.measure(now, sync, log_end);
    }

    fn answered(&mut self, now: Time, number: u64, outcome: ProposalOutcome) {
        // Late: what it was about is resolved.
        let Some(proposal) = self.proposal.take_if(|proposal| proposal.number == number) else { return };
        match outcome {
            ProposalOutcome::Taken(membership) => {
                if membership.partition_epoch <= proposal.partition_epoch {
                    // Nothing is settled by that; not to be asked again at once.
                    self.propose_after = Some(now + limits::IN_SYNC_RETRY_INTERVAL);
                }
                self.adopt(now, membership);
            }
            // As far as this one goes; another that was lost may still be taken.
            ProposalOutcome::Refused => self.propose_after = Some(now + limits::IN_SYNC_RETRY_INTERVAL),
            ProposalOutcome::Unknown => {
                self.unresolved.extend(proposal.in_sync.iter().map(|(id, _)| *id));
                self.propose_after = Some(now + limits::IN_SYNC_RETRY_INTERVAL);
            }
        }
    }

    /// Follows the metadata. A later partition epoch resolves every proposal made for an earlier one: it was what was
    /// taken, or never will be.
    fn adopt(&mut self, now: Time, membership: Membership) {
        match membership.partition_epoch.cmp(&self.membership.partition_epoch) {
            Ordering::Less => return,
            Ordering::Equal => {}
            Ordering::Greater => {
                self.proposal = None;
                self.unresolved.clear();
                self.propose_after = None;
            }
        }
        let earlier = std::mem::replace(&mut self.membership, membership);
        let log_end = self.local.log_end;
        for (id, replica) in &self.membership.replicas {
            let known = earlier.replicas.get(id).map(|replica| replica.broker_epoch);
            // It restarted: what it said before is void until it follows again.
            if known.is_some_and(|known| known != replica.broker_epoch)
                && let Some(peer) = self.peers.get_mut(id)
                && peer.followed_as != Some(replica.broker_epoch)
            {
                *peer = Peer::unknown(now, log_end);
            }
        }
        self.meet_peers(now);
    }

    fn meet_peers(&mut self, now: Time) {
        let log_end = self.local.log_end;
        for id in self.membership.replicas.keys().filter(|id| **id != self.broker) {
            self.peers.entry(*id).or_insert_with(|| Peer::unknown(now, log_end));
        }
        self.peers.retain(|id, _| self.membership.replicas.contains_key(id));
    }

    /// Asks for other in-sync replicas if some lag or some caught up. One proposal at a time.
    fn review(&mut self, now: Time, actions: &mut Vec<LeaderAction>) {
        if self.has_resigned || self.proposal.is_some() || self.propose_after.is_some_and(|after| now < after)
        {
            return;
        }
        self.propose_after = None;
        let wanted = self.wanted_in_sync(now);
        // A proposal of unknown outcome holds commits back until one for the same partition epoch is answered.
        if wanted == self.membership.in_sync && self.unresolved.is_empty() {
            return;
        }
        self.proposals += 1;
        let epoch_of = |id: &BrokerId| {
            let followed_as = self.peers.get(id).and_then(|peer| peer.followed_as);
            (*id, followed_as.or(self.broker_epoch(*id)).unwrap_or_default())
        };
        let proposal = Proposal {
            number: self.proposals,
            leader_epoch: self.leader_epoch,
            partition_epoch: self.membership.partition_epoch,
            in_sync: wanted.iter().map(epoch_of).collect(),
        };
        self.proposal = Some(proposal.clone());
        actions.push(LeaderAction::Propose(proposal));
    }

    fn wanted_in_sync(&self, now: Time) -> BTreeSet<BrokerId> {
        let is_lagging = |id: &BrokerId| {
            self.peers.get(id).and_then(|peer| peer.lags_at(self.replica_lag)).is_some_and(|at| at <= now)
        };
        // Whoever would have to leave again at once does not join: where too few are in sync the high watermark stands
        // still, and a follower that is gone may well have everything before it.
        let is_wanted = |id: &&BrokerId| {
            let is_in_sync = self.membership.in_sync.contains(*id);
            **id == self.broker || !is_lagging(id) && (is_in_sync || self.may_join(**id))
        };
        self.membership.replicas.keys().filter(is_wanted).copied().collect()
    }

    /// Four conditions besides that it is not lagging, each needed: it followed in this leadership, its registration is current and not fenced, it has
    /// everything that is committed, and everything that was there when the leadership began, some of which may have
    /// been committed without this leader's knowing.
    fn may_join(&self, id: BrokerId) -> bool {
        let Some(safe_end) = self.safe_end_of(id) else { return false };
        let is_eligible = self.membership.replicas.get(&id).is_some_and(|replica| replica.is_eligible);
        is_eligible
            && (safe_end >= self.high_watermark || mutant::is_on(Mutant::CaughtUpToHighWatermark))
            && (safe_end >= self.epoch_start || mutant::is_on(Mutant::CaughtUpToEpochStart))
    }

    fn resign(&mut self, why: ResignReason, actions: &mut Vec<LeaderAction>) {
        if !self.has_resigned {
            self.has_resigned = true;
            actions.push(LeaderAction::Resign { why });
        }
    }

    fn check(&self) {
        let local = self.local;
        assert!(
            self.log_start <= self.high_watermark && self.high_watermark <= local.log_end,
            "log start {} ≤ high watermark {} ≤ log end {}",
            self.log_start,
            self.high_watermark,
            local.log_end
        );
        assert!(local.durable_end <= local.log_end, "only what was appended is durable");
        for (id, Peer { progress, .. }) in &self.peers {
            assert!(
                progress.durable_end <= progress.log_end,
                "broker {id}: only what was appended is durable"
            );
            assert!(progress.log_end <= local.log_end, "broker {id} has no more than its leader");
        }
        let is_current = |proposal: &Proposal| proposal.partition_epoch == self.membership.partition_epoch;
        assert!(self.proposal.as_ref().is_none_or(is_current), "a proposal ends with its partition epoch");
    }
}

impl Reactive for Leader {
    type Input = LeaderInput;
    type Action = LeaderAction;

    fn handle(&mut self, now: Time, input: LeaderInput, actions: &mut Vec<LeaderAction>) {
        match input {
            LeaderInput::Appended { end } => {
                assert!(end >= self.local.log_end, "a leader's log only grows");
                self.peers.values_mut().for_each(|peer| peer.log_grew(now, end));
                self.local.log_end = end;
            }
            LeaderInput::LocalDurable { end } => {
                self.local.durable_end = self.local.durable_end.max(end);
            }
            LeaderInput::SyncFailed => self.resign(ResignReason::SyncFailed, actions),
            LeaderInput::Damaged => self.resign(ResignReason::Damaged, actions),
            LeaderInput::Trimmed { start } => {
                assert!(start >= self.log_start, "the log start never goes back");
                self.log_start = start;
            }
            LeaderInput::Follow(follow) => {
                let answer = self.follow(now, &follow);
                actions.push(LeaderAction::Answer(answer));
            }
            LeaderInput::Progress { follower, broker_epoch, ends } => {
                self.progressed(now, follower, broker_epoch, ends);
            }
            LeaderInput::ProposalAnswered { number, outcome } => self.answered(now, number, outcome),
            LeaderInput::Reconfigured { membership, sync, min_insync_replicas } => {
                self.rule = CommitRule { sync, min_insync_replicas };
                self.adopt(now, membership);
                let log_end = self.local.log_end;
                self.peers.values_mut().for_each(|peer| peer.measure(now, sync, log_end));
            }
            LeaderInput::TimePassed => {}
        }
        self.commit(actions);
        self.review(now, actions);
        self.check();
    }

    fn deadline(&self) -> Option<Time> {
        if self.has_resigned || self.proposal.is_some() {
            return None;
        }
        let lagging = self.membership.in_sync.iter().filter_map(|id| self.peers.get(id));
        let lags_at = lagging.filter_map(|peer| peer.lags_at(self.replica_lag)).min();
        match self.propose_after {
            // Whatever lags, or whoever caught up: it is looked at then.
            Some(after) => Some(after),
            None => lags_at,
        }
    }
}
