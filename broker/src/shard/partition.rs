//! One partition on the shard that owns it: batches in, answers out, and the log's jobs in between.
//!
//! ```text
//!   produce ─► queued ─► Log::append ─► waiters ─► answers
//!                 ▲           │            ▲
//!                 │ space     ▼ jobs       │ high watermark
//!                 └────── job_done ─► Leader
//! ```

use std::collections::VecDeque;
use std::sync::Arc;

use quire_engine::Time;
use quire_engine::machine::Reactive;
use quire_engine::replication::{
    Leader, LeaderAction as Action, LeaderInput as Input, LeaderStart, Membership, Progress,
};
use quire_protocol::batch::TimestampType;
use quire_protocol::frame::FrameHeader;
use quire_protocol::stream::{Ack, Acks};
use quire_protocol::topic_config::{MessageTimestampType, Sync, TopicConfig};
use quire_protocol::{BrokerId, LeaderEpoch, limits};
use quire_storage::{
    AppendContext, AppendError, AppendErrorKind, JobDone, JobKind, Log, LogOptions, NewBatch, Want,
};
use tokio::sync::mpsc;

use super::clock::Now;
use super::event::{ProduceReply, ProduceRequest};
use super::flush::Task;
use super::handle::{PartitionState, Shared};
use super::waiters::{Answer, Safe, Waiters};
use crate::error::{RequestError, describe_damage};
use crate::metrics::ShardMetrics;

/// Most bytes handed to the log at once, unless a single batch has more.
const APPEND_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A partition whose log is open.
#[derive(Debug)]
pub(super) struct Partition {
    shared: Arc<Shared>,
    config: Arc<TopicConfig>,
    log: Log,
    leader: Leader,
    /// What the leader wants done; empty between events.
    actions: Vec<Action>,
    /// Batches not yet in the log, in order.
    queued: VecDeque<Queued>,
    /// Whether the log makes space for the first of them.
    awaits_space: bool,
    waiters: Waiters,
    /// Streams that were told of a failure: what they still have on the way must not be appended.
    broken: Vec<mpsc::WeakSender<ProduceReply>>,
    /// Why nothing is appended any more, once that is so.
    refusal: Option<RequestError>,
    jobs_under_way: u32,
    /// When `sync = interval` wants the next sync; `None` if all that was appended is covered by one.
    sync_due: Option<Time>,
    has_moved: bool,
    is_used: bool,
    metrics: Arc<ShardMetrics>,
    /// Whether the shard has it on its list for the end of the round.
    pub(super) is_touched: bool,
}

#[derive(Debug)]
struct Queued {
    batch: NewBatch,
    answer: Answer,
}

/// How a topic's settings say its logs are kept.
pub(super) fn log_options(config: &TopicConfig) -> LogOptions {
    LogOptions {
        segment_bytes: config.segment_bytes,
        segment_age_ms: u64::try_from(config.segment_age.as_millis()).unwrap_or(u64::MAX),
        is_synced: config.sync == Sync::Always,
        ..LogOptions::default()
    }
}

/// Why nothing can be appended to a log that knows of a later leadership than the metadata does.
fn outdated_leadership(led: LeaderEpoch, logged: LeaderEpoch) -> Option<String> {
    (led < logged).then(|| {
        format!(
            "it was written in leader epoch {logged}, but the metadata knows only {led}: the metadata directory is \
             older than the log; restore a newer one"
        )
    })
}

impl Partition {
    /// Takes over a log that was just opened and begins to lead. Everything in it survived, and so is committed.
    pub(super) fn open(
        broker: BrokerId,
        now: Now,
        shared: Arc<Shared>,
        mut log: Log,
        metrics: Arc<ShardMetrics>,
    ) -> Partition {
        let config = shared.config();
        // The settings may have changed while it was being opened.
        log.set_options(log_options(&config));
        let mut actions = Vec::new();
        let leader = Leader::start(
            now.time,
            LeaderStart {
                broker,
                leader_epoch: shared.leader_epoch(),
                membership: Membership::alone(broker, 0),
                config: &config,
                replica_lag: limits::REPLICA_LAG_DEFAULT,
                log_start: log.start_offset(),
                high_watermark: log.high_watermark(),
                local: Progress { log_end: log.end_offset(), durable_end: log.durable_end() },
            },
            &mut actions,
        );
        let damage = log.corruption().map(describe_damage);
        let outdated = outdated_leadership(shared.leader_epoch(), log.leader_epoch());
        let refusal = damage.as_deref().map(RequestError::corrupt_log);
        let mut partition = Partition {
            shared,
            config,
            log,
            leader,
            actions,
            queued: VecDeque::new(),
            awaits_space: false,
            waiters: Waiters::default(),
            broken: Vec::new(),
            refusal: refusal.or_else(|| outdated.as_deref().map(RequestError::storage_failed)),
            jobs_under_way: 0,
            sync_due: None,
            has_moved: true,
            is_used: true,
            metrics,
            is_touched: false,
        };
        partition.act();
        partition.publish_moves();
        partition.shared.publish_reader(partition.log.reader());
        partition.shared.publish_state(match (damage, outdated) {
            (None, None) => PartitionState::Online,
            (Some(what), _) => PartitionState::Corrupt { what },
            (None, Some(what)) => {
                tracing::error!(partition = %partition.shared.id, what, "the partition takes nothing");
                PartitionState::Failed { what }
            }
        });
        partition
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Takes a batch; it is appended at the end of the round.
    pub(super) fn produce(&mut self, request: ProduceRequest) {
        let ProduceRequest { header, batch, acks, permit, reply } = request;
        if self.is_broken(&reply) {
            return;
        }
        let answer = Answer { acks, reply, _permit: permit };
        match self.refusal.clone() {
            Some(refusal) => self.refuse(answer, refusal),
            None => self.queued.push_back(Queued { batch: NewBatch { header, bytes: batch }, answer }),
        }
    }

    /// Follows the metadata.
    pub(super) fn configure(&mut self, now: Now, leader_epoch: LeaderEpoch, config: Arc<TopicConfig>) {
        self.log.set_options(log_options(&config));
        self.shared.configure(leader_epoch, config.clone());
        let (sync, min_insync_replicas) = (config.sync, config.min_insync_replicas);
        self.config = config;
        let membership = self.leader.membership().clone();
        self.lead(now, Input::Reconfigured { membership, sync, min_insync_replicas });
        if sync == Sync::Interval && self.log.unsynced_bytes() > 0 && self.refusal.is_none() {
            self.schedule_sync(now);
        }
    }

    /// Takes nothing more: a damaged replica does not lead. What is in the log already gets its answer as ever, and what
    /// is intact can be read.
    pub(super) fn damaged(&mut self, what: String) {
        // Every reader that comes to the damage tells.
        if self.log.is_corrupt() {
            return;
        }
        tracing::error!(
            partition = %self.shared.id, what,
            "the log is damaged: what is intact can be read, nothing is appended until it is restored"
        );
        self.log.mark_corrupt();
        if self.refusal.is_some() {
            return;
        }
        let refusal = RequestError::corrupt_log(&what);
        self.shared.publish_state(PartitionState::Corrupt { what });
        self.refuse_queued(&refusal);
        self.awaits_space = false;
        self.refusal = Some(refusal);
    }

    /// Takes back a job that was handed out.
    pub(super) fn job_done(&mut self, now: Now, done: JobDone) {
        self.jobs_under_way -= 1;
        let completed = self.log.complete(done);
        if completed.space {
            self.awaits_space = false;
        }
        if let Some(end) = completed.durable_end {
            self.lead(now, Input::LocalDurable { end });
        }
        if let Some(start) = completed.log_start {
            self.has_moved = true;
            self.lead(now, Input::Trimmed { start });
        }
        if completed.poisoned.is_some() {
            self.lead(now, Input::SyncFailed);
        }
    }

    /// Deletes what the topic's settings do not keep, and lets go of files that nobody uses.
    pub(super) fn retain(&mut self, now: Now) {
        self.log.retain(now.timestamp, self.config.retention, self.config.retention_bytes);
        if !std::mem::take(&mut self.is_used) {
            self.log.rest();
        }
    }

    /// Appends what was queued and hands out the jobs that are due.
    pub(super) fn write(&mut self, now: Now, tasks: &mut Vec<Task>) {
        while !self.queued.is_empty() && !self.awaits_space {
            self.append_group(now);
        }
        self.next_jobs(now, self.wants_sync(now), tasks);
        if self.awaits_space && self.jobs_under_way == 0 {
            tracing::error!(partition = %self.shared.id, "the log waits for space that nobody makes");
            self.refuse_queued(&RequestError::from(&AppendErrorKind::NoSpaceYet));
            self.awaits_space = false;
        }
    }

    /// Wakes readers and sends the answers whose turn has come. The high watermark is published before: who gets an
    /// answer can read the record.
    pub(super) fn answer(&mut self) {
        self.publish_moves();
        if self.waiters.is_empty() {
            return;
        }
        let leader = &self.leader;
        let safe = Safe {
            high_watermark: leader.high_watermark(),
            leader: leader.safe_end(),
            log_start: self.log.start_offset(),
        };
        self.waiters.complete(safe, |end| match leader.sync() {
            Sync::Always => leader.replicas_on_disk(end),
            Sync::Interval => 0,
        });
    }

    /// When the partition wants to be written next, whatever happens.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.sync_due
    }

    /// Takes nothing more. What is not in the log yet is refused; what is gets its answer as ever.
    pub(super) fn stop(&mut self, refusal: RequestError) {
        self.refuse_queued(&refusal);
        self.awaits_space = false;
        // What is still to be synced is when the log is closed, or never.
        self.sync_due = None;
        self.refusal.get_or_insert(refusal);
    }

    /// Answers everything that waits with a failure.
    pub(super) fn abandon(&mut self, error: &RequestError) {
        self.waiters.fail(error);
    }

    /// Hands out what must be done before the log can be closed.
    pub(super) fn wind_down(&mut self, now: Now, tasks: &mut Vec<Task>) {
        self.next_jobs(now, true, tasks);
    }

    /// Whether no job is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.jobs_under_way == 0
    }

    /// The log, to be closed.
    pub(super) fn into_log(self) -> Log {
        self.log
    }

    fn append_group(&mut self, now: Now) {
        let (batches, answers) = self.take_group();
        let at = AppendContext {
            leader_epoch: self.shared.leader_epoch(),
            now: now.timestamp,
            high_watermark: self.leader.high_watermark(),
            timestamp_type: match self.config.timestamp_type {
                MessageTimestampType::CreateTime => TimestampType::CreateTime,
                MessageTimestampType::LogAppendTime => TimestampType::LogAppendTime,
            },
        };
        match self.log.append(batches, at) {
            Ok(frames) => self.appended(now, &frames, answers),
            Err(AppendError { kind, batches }) => self.not_appended(now, kind, batches, answers),
        }
    }

    /// As many queued batches as go into the log at once.
    fn take_group(&mut self) -> (Vec<NewBatch>, Vec<Answer>) {
        let bytes_max =
            APPEND_BYTES_MAX.min(usize::try_from(self.config.segment_bytes).unwrap_or(usize::MAX));
        let (mut bytes, mut count) = (0, 0);
        for queued in &self.queued {
            bytes += queued.batch.bytes.len();
            if count > 0 && bytes > bytes_max {
                break;
            }
            count += 1;
        }
        self.queued.drain(..count).map(|queued| (queued.batch, queued.answer)).unzip()
    }

    fn appended(&mut self, now: Now, frames: &[FrameHeader], answers: Vec<Answer>) {
        if *self.shared.state() == PartitionState::DiskFull {
            tracing::info!(partition = %self.shared.id, "there is space again: records are taken");
            self.shared.publish_state(PartitionState::Online);
        }
        self.is_used = true;
        for (frame, answer) in frames.iter().zip(answers) {
            let ack = Ack {
                base_offset: frame.base_offset,
                append_time: frame.append_time,
                leader_epoch: frame.leader_epoch,
                log_start: self.log.start_offset(),
                replicas_on_disk: 0,
                chain: frame.chain,
            };
            self.waiters.appended(answer, frame.next_offset(), ack);
            self.metrics.appended_records.increment(frame.next_offset().0 - frame.base_offset.0);
            self.metrics.appended_bytes.increment(frame.frame_len() as u64);
        }
        self.lead(now, Input::Appended { end: self.log.end_offset() });
        if self.config.sync == Sync::Interval {
            self.schedule_sync(now);
        }
    }

    fn not_appended(
        &mut self,
        now: Now,
        kind: AppendErrorKind,
        batches: Vec<NewBatch>,
        answers: Vec<Answer>,
    ) {
        for (batch, answer) in batches.into_iter().zip(answers).rev() {
            self.queued.push_front(Queued { batch, answer });
        }
        match &kind {
            AppendErrorKind::NoSpaceYet => self.awaits_space = true,
            // The log looks for space again as its next job, so the produce after that finds what there is.
            AppendErrorKind::DiskFull => {
                if *self.shared.state() != PartitionState::DiskFull {
                    tracing::error!(partition = %self.shared.id, "the disk is full: produce is refused until there is space");
                    self.shared.publish_state(PartitionState::DiskFull);
                }
                self.refuse_queued(&RequestError::from(&kind));
            }
            AppendErrorKind::Poisoned(_) => self.lead(now, Input::SyncFailed),
            AppendErrorKind::Corrupt | AppendErrorKind::OffsetsExhausted | AppendErrorKind::Exhausted(_) => {
                self.refuse_queued(&RequestError::from(&kind));
            }
        }
    }

    fn next_jobs(&mut self, now: Now, sync: bool, tasks: &mut Vec<Task>) {
        while let Some(job) = self.log.next_job(Want { sync }) {
            if job.kind() == JobKind::Sync {
                self.sync_due = None;
            }
            self.jobs_under_way += 1;
            tasks.push(Task::Job(job));
        }
        // A sync under way does not cover what came after it: look again when it is done, or after another interval.
        if self.sync_due.is_some_and(|due| due <= now.time) {
            self.sync_due = None;
            self.schedule_sync(now);
        }
    }

    fn wants_sync(&self, now: Now) -> bool {
        match self.config.sync {
            Sync::Always => true,
            Sync::Interval => self.sync_due.is_some_and(|due| due <= now.time),
        }
    }

    fn schedule_sync(&mut self, now: Now) {
        self.sync_due.get_or_insert(now.time + self.config.sync_interval);
    }

    /// Tells the leader and does what it wants done.
    fn lead(&mut self, now: Now, input: Input) {
        self.leader.handle(now.time, input, &mut self.actions);
        self.act();
    }

    fn act(&mut self) {
        for action in std::mem::take(&mut self.actions) {
            match action {
                Action::AdvanceHighWatermark { to } => {
                    self.log.set_high_watermark(to);
                    self.has_moved = true;
                }
                Action::Resign { why } => self.fail(&why.to_string()),
                // Nobody follows a partition that is held by one broker.
                Action::Answer(_) | Action::Propose(_) => {}
            }
        }
    }

    fn fail(&mut self, why: &str) {
        let what = self.log.poisoned().map_or_else(|| why.to_owned(), ToString::to_string);
        tracing::error!(partition = %self.shared.id, %what, "the partition takes nothing more until the broker is started again");
        let error = RequestError::storage_failed(&what);
        self.shared.publish_state(PartitionState::Failed { what });
        self.stop(error.clone());
        self.waiters.fail(&error);
        self.refusal = Some(error);
    }

    fn refuse_queued(&mut self, error: &RequestError) {
        for queued in std::mem::take(&mut self.queued) {
            self.refuse(queued.answer, error.clone());
        }
    }

    fn refuse(&mut self, answer: Answer, error: RequestError) {
        let is_first = !self.is_broken(&answer.reply);
        if is_first {
            self.broken.push(answer.reply.downgrade());
        }
        // No window bounds how many batches of a stream without acknowledgements are refused at once.
        if is_first || answer.acks != Acks::None {
            self.waiters.refused(answer, error);
        }
    }

    fn is_broken(&mut self, stream: &mpsc::Sender<ProduceReply>) -> bool {
        if self.broken.is_empty() {
            return false;
        }
        let mut is_broken = false;
        self.broken.retain(|broken| {
            let Some(broken) = broken.upgrade() else { return false };
            is_broken |= broken.same_channel(stream);
            !broken.is_closed()
        });
        is_broken
    }

    fn publish_moves(&mut self) {
        if std::mem::take(&mut self.has_moved) {
            self.shared.publish_watermarks(self.log.start_offset(), self.log.high_watermark());
        }
    }
}
