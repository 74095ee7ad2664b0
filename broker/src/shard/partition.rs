//! One partition on the shard that owns it: its log, and the part that this broker plays in it.
//!
//! ```text
//!              ┌── Leading:   batches in, answers out          (leading.rs)
//!   Partition ─┼── Following: frames in, progress out          (following.rs)
//!      │       └── Idle:      no leader, or none known
//!      └── Core: the log, its jobs, what others are shown      (core.rs)
//! ```
//! A part begins and ends with the leader epoch. While the log is being cut for one, the next waits.

use std::sync::Arc;

use quire_engine::Time;
use quire_engine::producer::ProducerStates;
use quire_engine::replication::Proposal;
use quire_protocol::replicate::{Follow, LeaderMessage, Progress};
use quire_protocol::topic_config::TopicConfig;
use quire_protocol::{BrokerId, ErrorCode, LeaderEpoch, Offset};
use quire_storage::{JobDone, Log, LogReader, ReadError};

use super::assignment::Assignment;
use super::clock::Now;
use super::core::{Core, Limits, log_options};
use super::event::{Fetched, Outcome, ProduceRequest, SlotProgress};
use super::flush::Task;
use super::following::Following;
use super::handle::{PartitionState, Shared, Standing, not_leader};
use super::leading::{Leading, Unanswered};
use super::link::Downlink;
use super::scrubbing::is_damage;
use crate::error::{RequestError, describe_damage};
use crate::metrics::ShardMetrics;

/// A partition whose log is open.
#[derive(Debug)]
pub(super) struct Partition {
    core: Core,
    role: Role,
    /// The part that `role` is about, or that comes after it once the log is not being cut any more.
    assignment: Arc<Assignment>,
    /// Whether `role` is not yet what the assignment says.
    is_waiting: bool,
    /// Whether the role is another than when the shard last asked.
    has_new_role: bool,
    #[cfg(feature = "mutants")]
    earlier: Option<quire_engine::replication::Leader>,
    /// Whether the shard has it on its list for the end of the round.
    pub(super) is_touched: bool,
    /// When the shard looks at it next, whatever happens.
    pub(super) scheduled: Option<Time>,
}

/// A log that was just opened.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) log: Log,
    /// What it tells of its producers.
    pub(super) producers: ProducerStates,
    /// It may lack what was acknowledged.
    pub(super) is_suspect: bool,
}

#[derive(Debug)]
enum Role {
    Leading(Box<Leading>),
    Following(Box<Following>),
    /// Nobody leads, as far as is known here: nothing is taken, and what is committed can be read.
    Idle,
}

/// What a partition wants of others than its log.
#[derive(Debug)]
pub(super) enum Wanted {
    /// Ask its leader to send what it has.
    Follow {
        leader: BrokerId,
        leader_epoch: LeaderEpoch,
        broker_epoch: u64,
        last_epoch: Option<LeaderEpoch>,
        end: Offset,
    },
    /// Tell its leader that nothing more is wanted.
    Unfollow { leader: BrokerId, slot: u32 },
    /// Ask the controller for other in-sync replicas.
    Propose(Proposal),
    /// Tell the controller that this replica can not be trusted.
    Distrust,
}

/// Why nothing can be appended to a log that knows of a later leadership than the metadata does. After a crash the metadata
/// here may be behind for a moment, until the quorum tells what it has committed.
fn outdated_leadership(led: LeaderEpoch, logged: LeaderEpoch) -> Option<String> {
    (led < logged).then(|| {
        format!(
            "it was written in leader epoch {logged}, but the metadata knows only {led}: it waits until the metadata here \
             has caught up; if it does not, the metadata directory is older than the log: restore a newer one"
        )
    })
}

impl Partition {
    /// Takes over a log that was just opened, and begins with the part that the metadata gives it.
    pub(super) fn open(
        now: Now,
        broker: BrokerId,
        limits: Limits,
        shared: Arc<Shared>,
        opened: Opened,
        metrics: Arc<ShardMetrics>,
    ) -> Partition {
        let Opened { mut log, producers, is_suspect } = opened;
        let (config, assignment) = (shared.config(), shared.assignment());
        // The settings may have changed while it was being opened.
        log.set_options(log_options(&config));
        let damage = log.corruption().map(describe_damage);
        let outdated = outdated_leadership(assignment.leader_epoch, log.leader_epoch());
        let refusal = damage.as_deref().map(RequestError::corrupt_log);
        let is_outdated = damage.is_none() && outdated.is_some();
        let refusal = refusal.or_else(|| outdated.as_deref().map(RequestError::storage_failed));
        let reader = log.reader();
        let mut partition = Partition {
            core: Core::new(broker, limits, shared, config, log, refusal, metrics),
            role: Role::Idle,
            assignment,
            is_waiting: true,
            has_new_role: false,
            #[cfg(feature = "mutants")]
            earlier: None,
            is_touched: false,
            scheduled: None,
        };
        partition.core.producers = producers;
        partition.core.is_outdated = is_outdated;
        if is_suspect {
            partition.core.may_lack();
        }
        partition.play(now);
        partition.core.publish_moves();
        partition.core.shared.publish_reader(reader);
        partition.core.shared.publish_state(match (damage, outdated) {
            (None, None) => PartitionState::Online,
            (Some(what), _) => PartitionState::Corrupt { what },
            (None, Some(what)) => {
                tracing::warn!(partition = %partition.core.shared.id, what, "the partition takes nothing");
                PartitionState::Outdated { what }
            }
        });
        partition
    }

    /// How far the log is.
    pub(super) fn ends(&self) -> quire_engine::replication::Progress {
        self.core.ends()
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.core.shared
    }

    /// The broker that is followed.
    pub(super) fn followed(&self) -> Option<BrokerId> {
        match &self.role {
            Role::Following(following) => Some(following.leader()),
            Role::Leading(_) | Role::Idle => None,
        }
    }

    /// Whether the role is another than when this was last asked.
    pub(super) fn take_role_change(&mut self) -> bool {
        std::mem::take(&mut self.has_new_role)
    }

    /// The slot under which it asked to follow last.
    pub(super) fn slot(&self) -> Option<u32> {
        match &self.role {
            Role::Following(following) => following.slot(),
            Role::Leading(_) | Role::Idle => None,
        }
    }

    /// Takes a batch; it is appended at the end of the round.
    pub(super) fn produce(&mut self, request: ProduceRequest) {
        match &mut self.role {
            Role::Leading(leading) => leading.produce(&mut self.core, request),
            Role::Following(_) | Role::Idle => {
                // A stream that is gone needs no answer.
                let _ = request.reply.try_send(Err(not_leader(self.assignment.leader)));
            }
        }
    }

    /// Follows the metadata.
    pub(super) fn configure(&mut self, now: Now, assignment: Arc<Assignment>, config: Arc<TopicConfig>) {
        self.core.configure(now, &assignment, config);
        self.is_waiting |= self.core.was_outdated_until(&assignment);
        if assignment.leader_epoch < self.assignment.leader_epoch {
            return;
        }
        let is_new_part = assignment.leader_epoch > self.assignment.leader_epoch
            || assignment.leader != self.assignment.leader
            || assignment.broker_epoch != self.assignment.broker_epoch;
        self.core.heard_of(&assignment);
        self.assignment = assignment;
        self.is_waiting |= is_new_part;
        if self.is_waiting {
            self.play(now);
            return;
        }
        match &mut self.role {
            Role::Leading(leading) => leading.configure(&mut self.core, now, &self.assignment),
            Role::Following(following) => following.configure(&mut self.core, now, &self.assignment),
            Role::Idle => {}
        }
    }

    /// Begins with the part that the metadata gives this broker, once the log is not being cut for the one before.
    fn play(&mut self, now: Now) {
        if let Role::Following(following) = &self.role
            && following.is_cutting()
        {
            return;
        }
        self.is_waiting = false;
        self.has_new_role = true;
        let assignment = Arc::clone(&self.assignment);
        self.core.heard_of(&assignment);
        let leads = assignment.leader == Some(self.core.broker) && self.core.is_usable(&assignment);
        let unanswered = self.end_role(leads);
        self.role = match assignment.leader {
            Some(_) if leads => self.lead(now, &assignment, unanswered),
            Some(leader) if leader != self.core.broker && self.core.is_followable(&assignment) => {
                if assignment.is_counted && self.core.is_lacking() {
                    self.core.wanted.push(Wanted::Distrust);
                }
                let following = Following::start(&mut self.core, leader, &assignment);
                Role::Following(Box::new(following))
            }
            // Who can not lead says so: another replica may. Who only does not know the latest leadership yet waits for it.
            Some(leader) if leader == self.core.broker && !self.core.is_outdated => {
                self.core.wanted.push(Wanted::Distrust);
                Role::Idle
            }
            Some(_) | None => Role::Idle,
        };
        self.publish_standing();
    }

    fn lead(&mut self, now: Now, assignment: &Assignment, unanswered: Unanswered) -> Role {
        #[allow(unused_mut)]
        let mut leading = Leading::start(&mut self.core, now, assignment, unanswered);
        #[cfg(feature = "mutants")]
        if let Some(earlier) = &self.earlier {
            leading.keep_progress_of(earlier);
        }
        Role::Leading(Box::new(leading))
    }

    /// Ends the part. What the next one takes over of it, if the broker leads on: nothing was cut from the log meanwhile, for
    /// that follows only another's leadership, so what waits to be committed is where it was.
    fn end_role(&mut self, leads_next: bool) -> Unanswered {
        match std::mem::replace(&mut self.role, Role::Idle) {
            Role::Leading(leading) => {
                #[cfg(feature = "mutants")]
                if leading.is_to_be_remembered() {
                    self.earlier = Some(leading.machine().clone());
                }
                if leads_next && leading.is_of_registration(&self.assignment) {
                    return leading.end_for_another(self.assignment.leader_epoch);
                }
                leading.end(&not_leader(self.assignment.leader), &leadership_lost());
            }
            Role::Following(following) => following.end(&mut self.core),
            Role::Idle => {}
        }
        Unanswered::default()
    }

    /// A broker asks to follow, on a stream of its.
    pub(super) fn follow(&mut self, now: Now, link: &Arc<Downlink>, follow: &Follow) {
        match &mut self.role {
            Role::Leading(leading) => leading.follow(&mut self.core, now, link, follow),
            Role::Following(_) | Role::Idle => link.refuse(follow, ErrorCode::NotLeader),
        }
    }

    /// A follower wants nothing more.
    pub(super) fn unfollow(&mut self, link: &Arc<Downlink>, slot: u32) {
        if let Role::Leading(leading) = &mut self.role {
            leading.unfollow(link, slot);
        }
    }

    /// A follower tells how far it is.
    pub(super) fn progressed(&mut self, now: Now, link: &Arc<Downlink>, progress: SlotProgress) {
        if let Role::Leading(leading) = &mut self.role {
            leading.progressed(&mut self.core, now, link, progress);
        }
    }

    /// The controller answered a proposal, or did not.
    pub(super) fn proposal_answered(
        &mut self,
        now: Now,
        leader_epoch: LeaderEpoch,
        number: u64,
        outcome: Outcome,
    ) {
        if let Role::Leading(leading) = &mut self.role {
            leading.proposal_answered(&mut self.core, now, leader_epoch, number, outcome);
        }
    }

    /// The leader that is followed can be reached, or not any more.
    pub(super) fn linked(&mut self, now: Now, is_up: bool) {
        if let Role::Following(following) = &mut self.role {
            following.linked(&mut self.core, now, is_up);
        }
    }

    /// The request to follow has this slot.
    pub(super) fn asked(&mut self, slot: u32, credit: u32) -> u32 {
        match &mut self.role {
            Role::Following(following) => following.asked(slot, credit),
            Role::Leading(_) | Role::Idle => credit,
        }
    }

    /// The leader that is followed says something.
    pub(super) fn told(&mut self, now: Now, message: LeaderMessage, frames: Fetched) {
        if let Role::Following(following) = &mut self.role {
            following.told(&mut self.core, now, message, frames);
        }
    }

    /// What is to be told to the leader that is followed: slot, credit and ends.
    pub(super) fn take_progress(&mut self) -> Option<Progress> {
        match &mut self.role {
            Role::Following(following) => following.take_progress(),
            Role::Leading(_) | Role::Idle => None,
        }
    }

    /// What is wanted of others.
    pub(super) fn take_wanted(&mut self) -> Vec<Wanted> {
        std::mem::take(&mut self.core.wanted)
    }

    /// Takes nothing more: a damaged replica does not lead. What is in the log already gets its answer as ever, and what
    /// is intact can be read.
    pub(super) fn damaged(&mut self, now: Now, what: String) {
        if !self.core.damaged(what) {
            return;
        }
        match &mut self.role {
            Role::Leading(leading) => leading.damaged(&mut self.core, now),
            Role::Following(following) => following.damaged(&mut self.core, now),
            // Whoever may lead next is to be another.
            Role::Idle if self.assignment.membership.replicas.len() > 1 => {
                self.core.wanted.push(Wanted::Distrust);
            }
            Role::Idle => {}
        }
    }

    /// Who is in sync by a decision about this registration, in which what is held against it was told, holds everything.
    fn trust(&mut self) {
        let is_current = self.assignment.leader.is_some() && !self.is_waiting;
        if is_current && self.assignment.membership.in_sync.contains(&self.core.broker) {
            self.core.trust();
        }
    }

    /// What is to be read again to find damage; nothing where it is known to be, or where nothing is.
    pub(super) fn scrubbed(&self) -> Option<LogReader> {
        let log = &self.core.log;
        let is_worthwhile =
            !log.is_corrupt() && !log.is_poisoned() && log.start_offset() < log.high_watermark();
        is_worthwhile.then(|| log.reader())
    }

    /// Takes back a job that was handed out.
    pub(super) fn job_done(&mut self, now: Now, done: JobDone) {
        let completed = self.core.complete(done);
        match &mut self.role {
            Role::Leading(leading) => leading.completed(&mut self.core, now, completed),
            Role::Following(following) => {
                following.completed(&mut self.core, now, completed);
                if self.is_waiting {
                    self.play(now);
                }
            }
            Role::Idle => {}
        }
        if let Some(error) = self.core.log.take_damage() {
            self.not_compacted(now, &error);
        }
    }

    /// Compaction could not read the log. What is damaged is damaged for every reader.
    fn not_compacted(&mut self, now: Now, error: &ReadError) {
        if is_damage(error, self.core.shared.is_replicated()) {
            self.damaged(now, format!("found by compacting it: {error}"));
        } else {
            tracing::error!(partition = %self.core.shared.id, %error, "the log can not be read to be compacted");
        }
    }

    /// Deletes what the topic's settings do not keep, and lets go of files that nobody uses. A follower keeps what its
    /// leader does.
    pub(super) fn retain(&mut self, now: Now) {
        match self.role {
            Role::Leading(_) => self.core.retain(now),
            Role::Following(_) | Role::Idle => self.core.seal_old(now),
        }
        self.core.rest();
    }

    /// Has the log compacted if it is due, whoever leads: each replica compacts what is committed by itself. Whether it is
    /// due or under way.
    pub(super) fn compact(&mut self, now: Now) -> bool {
        self.core.compact(now)
    }

    /// Whether the log is being compacted.
    pub(super) fn is_compacting(&self) -> bool {
        self.core.log.is_compacting()
    }

    /// Appends what was queued and hands out the jobs that are due.
    pub(super) fn write(&mut self, now: Now, tasks: &mut Vec<Task>) {
        self.trust();
        if self.core.config.cleanup.compacts() {
            // Who follows does not know how far the others are.
            let end = match &self.role {
                Role::Leading(leading) => leading.machine().end_on_every_disk(),
                Role::Following(_) | Role::Idle => Offset::ZERO,
            };
            self.core.log.tombstones_may_go_to(end);
        }
        match &mut self.role {
            Role::Leading(leading) => leading.write(&mut self.core, now, tasks),
            Role::Following(following) => following.write(&mut self.core, now, tasks),
            Role::Idle => self.core.next_jobs(now, self.core.wants_sync(now), tasks),
        }
    }

    /// Wakes readers and sends the answers whose turn has come. The high watermark is published before: who gets an
    /// answer can read the record.
    pub(super) fn answer(&mut self) {
        self.core.publish_moves();
        self.publish_standing();
        if let Role::Leading(leading) = &mut self.role {
            leading.answer(&self.core);
        }
    }

    /// When the partition wants to be written next, whatever happens.
    pub(super) fn deadline(&self) -> Option<Time> {
        let role = match &self.role {
            Role::Leading(leading) => leading.deadline(),
            Role::Following(following) => following.deadline(),
            Role::Idle => None,
        };
        [self.core.sync_due(), role].into_iter().flatten().min()
    }

    /// Takes nothing more. What is not in the log yet is refused; what is gets its answer as ever.
    pub(super) fn stop(&mut self, refusal: RequestError) {
        if let Role::Leading(leading) = &mut self.role {
            leading.stop(&refusal);
        } else {
            self.end_role(false);
        }
        self.core.stop(refusal);
    }

    /// Answers everything that waits with a failure.
    pub(super) fn abandon(&mut self, error: &RequestError) {
        if let Role::Leading(leading) = &mut self.role {
            leading.abandon(error);
        }
    }

    /// Hands out what must be done before the log can be closed.
    pub(super) fn wind_down(&mut self, now: Now, tasks: &mut Vec<Task>) {
        self.core.next_jobs(now, true, tasks);
    }

    /// Whether no job is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.core.is_idle()
    }

    /// The log, to be closed.
    pub(super) fn into_log(self) -> Log {
        self.core.into_log()
    }

    /// Shows others what the shard does.
    fn publish_standing(&mut self) {
        let standing = match &self.role {
            Role::Leading(leading) => leading.standing(&self.assignment),
            Role::Following(_) | Role::Idle => Standing {
                leader: self.assignment.leader.filter(|leader| *leader != self.core.broker),
                leader_epoch: self.assignment.leader_epoch,
                is_leading: false,
                is_settled: false,
                is_readable: matches!(self.role, Role::Following(_))
                    && self.assignment.membership.in_sync.contains(&self.core.broker),
                has_enough_replicas: false,
            },
        };
        self.core.shared.publish_standing(standing);
    }
}

/// What a producer is told of batches that were appended here and not committed here.
fn leadership_lost() -> RequestError {
    RequestError::new(
        ErrorCode::LeadershipLost,
        "the broker stopped leading the partition before the batch was committed",
    )
}
