//! What a partition has whatever its part: its log, the jobs of it that are under way, and what others are shown.

use std::sync::Arc;
use std::time::Duration;

use quire_engine::Time;
use quire_engine::producer::{ProducerStates, Truncated};
use quire_engine::replication::Progress;
use quire_protocol::topic_config::{Sync, TopicConfig};
use quire_protocol::{BrokerId, Offset, limits};
use quire_storage::{CompactionSettings, Completed, JobDone, JobKind, Log, LogOptions, Want};

use super::assignment::Assignment;
use super::clock::Now;
use super::flush::Task;
use super::handle::{PartitionState, Shared, damaged_here};
use super::partition::Wanted;
use super::producers;
use crate::error::RequestError;
use crate::metrics::ShardMetrics;

/// Most bytes handed to a log at once, unless a single batch has more.
const APPEND_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How replication is bounded.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// A follower further behind than this leaves the in-sync replicas.
    pub replica_lag: Duration,
    /// What a shard may have been sent by leaders and not have appended yet (bytes).
    pub fetch_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { replica_lag: limits::REPLICA_LAG_DEFAULT, fetch_bytes: limits::REPLICA_MEMORY_BYTES }
    }
}

/// A partition's log and everything around it that does not depend on who leads.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) broker: BrokerId,
    pub(super) limits: Limits,
    pub(super) shared: Arc<Shared>,
    pub(super) config: Arc<TopicConfig>,
    pub(super) log: Log,
    /// What the log tells of its producers; changes with it.
    pub(super) producers: ProducerStates,
    pub(super) metrics: Arc<ShardMetrics>,
    /// Why nothing is appended any more, once that is so.
    pub(super) refusal: Option<RequestError>,
    /// Whether that is for the log knowing a later leadership than the metadata alone.
    pub(super) is_outdated: bool,
    /// What is wanted of others; taken at the end of each round.
    pub(super) wanted: Vec<Wanted>,
    /// Log start or high watermark moved since it was published.
    pub(super) has_moved: bool,
    /// What the log lacks that began anew, or that may lack what was acknowledged; until it has it, it is not to lead.
    lack: Option<Lack>,
    /// The metadata do not show yet that the log may lack something.
    is_untold: bool,
    /// It began anew after a write or a sync had failed: what fails again stays so.
    has_begun_anew_failed: bool,
    jobs_under_way: u32,
    /// When `sync = interval` wants the next sync; `None` if all that was appended is covered by one.
    sync_due: Option<Time>,
    is_used: bool,
}

/// What a log lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lack {
    /// No leader said yet how far it has committed. How far the log itself is says nothing: of a tail that others do not have
    /// it is too far, after a loss it is not far enough.
    Unknown,
    /// What leaders had committed, before this offset.
    Before(Offset),
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

/// How a topic's settings say its logs are compacted.
fn compaction(config: &TopicConfig) -> CompactionSettings {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    CompactionSettings {
        dirty_millionths_min: config.dirty_millionths_min,
        lag_ms_min: ms(config.compaction_lag_min),
        lag_ms_max: config.compaction_lag_max.map(ms),
        delete_retention_ms: ms(config.delete_retention),
        span_ms_max: config.retention.filter(|_| config.cleanup.deletes()).map(|_| ms(config.segment_age)),
        ..CompactionSettings::default()
    }
}

impl Core {
    pub(super) fn new(
        broker: BrokerId,
        limits: Limits,
        shared: Arc<Shared>,
        config: Arc<TopicConfig>,
        log: Log,
        refusal: Option<RequestError>,
        metrics: Arc<ShardMetrics>,
    ) -> Core {
        Core {
            broker,
            limits,
            shared,
            config,
            log,
            producers: ProducerStates::default(),
            metrics,
            refusal,
            is_outdated: false,
            wanted: Vec::new(),
            has_moved: true,
            lack: None,
            is_untold: false,
            has_begun_anew_failed: false,
            jobs_under_way: 0,
            sync_due: None,
            is_used: true,
        }
    }

    /// How far the log is.
    pub(super) fn ends(&self) -> Progress {
        Progress { log_end: self.log.end_offset(), durable_end: self.log.durable_end() }
    }

    /// Whether the log can be appended to in this part's leadership.
    pub(super) fn is_usable(&self, assignment: &Assignment) -> bool {
        // Neither damage nor outdated metadata ends the only replica's leadership: what is intact can be read.
        let is_alone = assignment.membership.replicas.len() == 1;
        let is_intact = self.refusal.is_none() && self.lack.is_none();
        is_alone || (is_intact && assignment.leader_epoch >= self.log.leader_epoch())
    }

    /// The log may lack what was acknowledged. The broker tells that when it registers, unless it did not know of the
    /// partition yet: its own metadata may be older than its logs.
    pub(super) fn may_lack(&mut self) {
        if self.shared.is_replicated() {
            self.lack = Some(Lack::Unknown);
            self.is_untold = true;
        }
    }

    /// Metadata that know of this start and do not count on the replica: whatever is held against it is told, and what
    /// they decide from there on holds.
    pub(super) fn heard_of(&mut self, assignment: &Assignment) {
        if self.is_untold && assignment.is_current && !assignment.is_counted {
            self.is_untold = false;
            self.lack = None;
        }
    }

    /// Whether the log began anew, or may lack something, and has not caught up since.
    pub(super) fn is_lacking(&self) -> bool {
        self.lack.is_some()
    }

    /// Takes note of what a leader has committed, which a log that lacks something is to have.
    pub(super) fn lacks_committed(&mut self, high_watermark: Offset) {
        self.lack = self.lack.map(|lack| match lack {
            Lack::Unknown => Lack::Before(high_watermark),
            Lack::Before(end) => Lack::Before(end.max(high_watermark)),
        });
    }

    /// Takes note of how far a log that lacks something has come.
    pub(super) fn caught_up(&mut self) {
        let safe_end = self.ends().safe_end(self.config.sync);
        self.lack = self.lack.filter(|lack| match lack {
            Lack::Unknown => true,
            Lack::Before(end) => safe_end < *end,
        });
        self.is_untold &= self.lack.is_some();
    }

    /// By the controller's decision the replica has everything: nothing is held against it any more.
    pub(super) fn trust(&mut self) {
        // A log that began anew before it had any file has nothing noted on disk.
        let is_held = self.shared.is_distrusted() || self.log.suspicion().is_any();
        let is_sound = !self.log.is_corrupt() && !self.log.is_poisoned();
        if is_held && is_sound && self.lack.is_none() {
            if self.shared.trust() && self.shared.is_replicated() {
                tracing::info!(partition = %self.shared.id, "this replica has caught up, and is trusted again");
            }
            if self.log.suspicion().is_any() {
                self.log.trust();
            }
        }
    }

    /// Whether the log can be made the same as a leader's: it may be damaged, and have failed once.
    pub(super) fn is_followable(&self, assignment: &Assignment) -> bool {
        let is_lost = self.log.is_poisoned() && !self.may_begin_anew();
        !is_lost && assignment.leader_epoch >= self.log.leader_epoch()
    }

    /// Whether a log that failed is to be fetched anew, into other files. A disk that fails again is left alone until the
    /// broker is started again.
    pub(super) fn may_begin_anew(&self) -> bool {
        self.shared.is_replicated() && !self.has_begun_anew_failed && self.log.can_begin_anew()
    }

    /// The log is about to begin anew.
    pub(super) fn begins_anew(&mut self) {
        self.has_begun_anew_failed |= self.log.is_poisoned();
    }

    /// Takes over settings and assignment, and shows them.
    pub(super) fn configure(&mut self, now: Now, assignment: &Arc<Assignment>, config: Arc<TopicConfig>) {
        self.log.set_options(log_options(&config));
        if !config.cleanup.compacts() {
            self.log.cancel_compaction();
        }
        self.shared.configure(Arc::clone(assignment), config.clone());
        self.config = config;
        if self.config.sync == Sync::Interval && self.log.unsynced_bytes() > 0 && self.refusal.is_none() {
            self.schedule_sync(now);
        }
    }

    /// Whether the metadata was behind the log until now: what was refused for that is taken from here on.
    pub(super) fn was_outdated_until(&mut self, assignment: &Assignment) -> bool {
        if !self.is_outdated || assignment.leader_epoch < self.log.leader_epoch() {
            return false;
        }
        self.is_outdated = false;
        self.refusal = None;
        tracing::info!(partition = %self.shared.id, "the metadata knows the log's latest leadership now");
        self.shared.publish_state(PartitionState::Online);
        true
    }

    /// Takes note of damage; whether that is news.
    pub(super) fn damaged(&mut self, what: String) -> bool {
        // Every reader that comes to the damage tells.
        if self.log.is_corrupt() {
            return false;
        }
        match self.shared.is_replicated() {
            true => tracing::error!(
                partition = %self.shared.id, what,
                "the log is damaged: it does not lead, and is fetched again from the replica that does"
            ),
            false => tracing::error!(
                partition = %self.shared.id, what,
                "the log is damaged: what is intact can be read, nothing is appended until it is restored"
            ),
        }
        self.log.mark_corrupt();
        if self.refusal.is_some() && !std::mem::take(&mut self.is_outdated) {
            return false;
        }
        self.refusal = Some(match self.shared.is_replicated() {
            true => damaged_here(),
            false => RequestError::corrupt_log(&what),
        });
        self.shared.publish_state(PartitionState::Corrupt { what });
        true
    }

    /// The log begins anew: its damage is gone, and so are its records.
    pub(super) fn restored(&mut self) {
        self.lack = Some(Lack::Unknown);
        self.is_untold = false;
        self.shared.mark_suspect();
        if self.refusal.take().is_some() {
            tracing::info!(partition = %self.shared.id, "the log was dropped and is fetched anew");
            self.shared.publish_state(PartitionState::Online);
        }
    }

    /// Nothing is appended any more: the log refuses it.
    pub(super) fn fail(&mut self, why: &str) -> RequestError {
        let what = self.log.poisoned().map_or_else(|| why.to_owned(), ToString::to_string);
        match self.may_begin_anew() {
            true => tracing::error!(
                partition = %self.shared.id, %what,
                "a write or sync failed: this replica does not lead, and is fetched again from the one that does"
            ),
            false => tracing::error!(
                partition = %self.shared.id, %what,
                "the partition takes nothing more until the broker is started again"
            ),
        }
        let error = RequestError::storage_failed(&what);
        self.shared.publish_state(PartitionState::Failed { what });
        self.sync_due = None;
        self.refusal = Some(error.clone());
        self.is_outdated = false;
        error
    }

    /// Nothing more is to be appended.
    pub(super) fn stop(&mut self, refusal: RequestError) {
        // What is still to be synced is when the log is closed, or never.
        self.sync_due = None;
        self.log.cancel_compaction();
        self.refusal.get_or_insert(refusal);
    }

    /// Takes back a job that was handed out.
    pub(super) fn complete(&mut self, done: JobDone) -> Completed {
        self.jobs_under_way -= 1;
        let completed = self.log.complete(done);
        self.has_moved |= completed.log_start.is_some();
        completed
    }

    /// The log was cut at its end, or begins anew.
    pub(super) fn was_cut(&mut self, begins_anew: bool) {
        if begins_anew {
            self.producers = ProducerStates::default();
        } else if self.producers.truncate(self.log.end_offset()) == Truncated::Rebuild {
            // Many more batches of one producer than it may have unanswered, all uncommitted: rare, and worth the wait.
            self.producers = producers::load(&self.log);
        }
    }

    /// Deletes what the topic's settings do not keep.
    pub(super) fn retain(&mut self, now: Now) {
        self.producers.expire(now.timestamp);
        match self.config.cleanup.deletes() {
            true => self.log.retain(now.timestamp, self.config.retention, self.config.retention_bytes),
            false => self.seal_old(now),
        }
    }

    /// Seals the active segment of a log that is compacted once it is old, so that compaction reaches it.
    pub(super) fn seal_old(&mut self, now: Now) {
        if self.config.cleanup.compacts() {
            self.log.retain(now.timestamp, None, None);
        }
    }

    /// Has the log compacted if it is due; whether it is.
    pub(super) fn compact(&mut self, now: Now) -> bool {
        if self.config.cleanup.compacts() && self.refusal.is_none() {
            self.log.compact(now.timestamp, &compaction(&self.config));
        }
        self.log.is_compacting()
    }

    /// Lets go of files that nobody uses.
    pub(super) fn rest(&mut self) {
        if !std::mem::take(&mut self.is_used) {
            self.log.rest();
        }
    }

    /// Something was appended.
    pub(super) fn appended(&mut self, now: Now) {
        if *self.shared.state() == PartitionState::DiskFull {
            tracing::info!(partition = %self.shared.id, "there is space again: records are taken");
            self.shared.publish_state(PartitionState::Online);
        }
        self.is_used = true;
        if self.config.sync == Sync::Interval {
            self.schedule_sync(now);
        }
    }

    /// Nothing can be appended for lack of space. The log looks for space again as its next job, so the append after that
    /// finds what there is.
    pub(super) fn disk_full(&self) {
        if *self.shared.state() != PartitionState::DiskFull {
            tracing::error!(partition = %self.shared.id, "the disk is full: nothing is taken until there is space");
            self.shared.publish_state(PartitionState::DiskFull);
        }
    }

    /// Most bytes that go into the log at once.
    pub(super) fn append_bytes_max(&self) -> usize {
        APPEND_BYTES_MAX.min(usize::try_from(self.config.segment_bytes).unwrap_or(usize::MAX))
    }

    pub(super) fn next_jobs(&mut self, now: Now, sync: bool, tasks: &mut Vec<Task>) {
        if self.log.wants_producers() {
            self.log.keep_producers(self.producers.encode().into());
        }
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

    pub(super) fn wants_sync(&self, now: Now) -> bool {
        match self.config.sync {
            Sync::Always => true,
            Sync::Interval => self.sync_due.is_some_and(|due| due <= now.time),
        }
    }

    pub(super) fn schedule_sync(&mut self, now: Now) {
        self.sync_due.get_or_insert(now.time + self.config.sync_interval);
    }

    pub(super) fn sync_due(&self) -> Option<Time> {
        self.sync_due
    }

    pub(super) fn is_idle(&self) -> bool {
        self.jobs_under_way == 0
    }

    /// The log, to be closed.
    pub(super) fn into_log(mut self) -> Log {
        self.log.keep_producers(self.producers.encode().into());
        self.log
    }

    /// Shows readers how far the log can be read.
    pub(super) fn publish_moves(&mut self) {
        if std::mem::take(&mut self.has_moved) {
            self.shared.publish_watermarks(self.log.start_offset(), self.log.high_watermark());
        }
    }
}
