//! When a log is compacted, and what its owner knows of a compaction under way. What is done is in `jobs/compact.rs`.

use std::sync::Arc;

use quire_protocol::ids::{Offset, Timestamp};
use quire_protocol::limits;

use super::Log;
use super::work::Completed;
use crate::error::ReadError;
use crate::jobs::{
    Compaction, Failure, FailureKind, Job, Plan, Source, StepError, Stepped, SwapWork, Written,
};
use crate::manifest::{Compacted, SegmentEntry, SegmentName};
use crate::segment::{Extent, Segment};

/// How a log is compacted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactionSettings {
    /// Compacted once what was not compacted yet is this part of what could be (millionths).
    pub dirty_millionths_min: u32,
    /// What was appended within this time (ms) is left alone.
    pub lag_ms_min: u64,
    /// What was appended longer ago (ms) is compacted however little it is; its segment is sealed for that.
    pub lag_ms_max: Option<u64>,
    /// How long a tombstone stays once compaction has come past it (ms).
    pub delete_retention_ms: u64,
    /// Keys noted at once, each of about 25 bytes.
    pub keys_max: usize,
    /// Longest time (ms) between the first append of what goes into one segment and the last, so that retention by time
    /// can delete what is old; `None` if none does.
    pub span_ms_max: Option<u64>,
}

impl Default for CompactionSettings {
    fn default() -> CompactionSettings {
        CompactionSettings {
            dirty_millionths_min: 500_000,
            lag_ms_min: 0,
            lag_ms_max: None,
            delete_retention_ms: 24 * 3600 * 1000,
            keys_max: limits::COMPACTION_KEYS_MAX,
            span_ms_max: None,
        }
    }
}

/// Account of compaction.
#[derive(Debug, Default)]
pub(super) struct Compacting {
    /// A step is out.
    pub(super) is_under_way: bool,
    /// What was begun is to be given up.
    is_cancelled: bool,
    /// It is due, as it was decided then.
    wanted: Option<(Timestamp, CompactionSettings)>,
    /// Listed no more, and still there.
    replaced: Vec<SegmentName>,
    /// When the last one was decided.
    decided_at: Timestamp,
    /// Not before then: there was no room.
    put_off_until: Option<Timestamp>,
    /// Between two steps.
    compaction: Option<Box<Compaction>>,
    /// Written, and not listed yet.
    written: Option<Box<Written>>,
    /// Tombstones below may go.
    tombstones_to: Offset,
    /// What could not be read.
    damage: Option<ReadError>,
}

impl Compacting {
    /// Whether anything of it is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.is_under_way || self.compaction.is_some() || self.written.is_some() || !self.replaced.is_empty()
    }
}

/// The sealed segments that may be compacted, the first ones of a log.
struct Eligible {
    count: usize,
    /// How many of them were compacted before.
    compacted: usize,
    compacted_bytes: u64,
    dirty_bytes: u64,
}

impl Log {
    /// Has the log compacted by the next jobs, if enough of it is dirty or some of it has been for too long: of records
    /// with the same key only the last stays, and a tombstone goes in its time. Records without a key stay. Only sealed
    /// segments wholly below the high watermark are touched, and the newest is not; an active segment that is old, or
    /// where most of what is dirty is, is sealed first: its turn comes the next time.
    ///
    /// Until it is over nothing is deleted by retention. It needs room for another copy of what it reads; without any it is
    /// put off for [`limits::COMPACTION_RETRY_INTERVAL`]. Ask again now and then.
    pub fn compact(&mut self, now: Timestamp, settings: &CompactionSettings) {
        if self.is_poisoned() || self.is_corrupt() || self.is_cutting() || self.is_compacting() {
            return;
        }
        if self.compacting.put_off_until.is_some_and(|until| now < until) {
            return;
        }
        let eligible = self.eligible(now, settings);
        if self.is_active_to_be_sealed(now, settings, &eligible) {
            self.seal_active();
        }
        let dirty = eligible.dirty_bytes;
        let is_dirty = dirty > 0
            && u128::from(dirty) * 1_000_000
                >= u128::from(dirty + eligible.compacted_bytes) * u128::from(settings.dirty_millionths_min);
        let is_overdue = eligible.compacted < eligible.count
            && dirty > 0
            && is_older(self.dirty_since(eligible.compacted), now, settings.lag_ms_max);
        let has_expired = eligible.count > 0
            && self.next_horizon().is_some_and(|at| at <= now)
            && self.manifest.segments[eligible.count - 1]
                .sealed
                .is_some_and(|sealed| sealed.end_offset <= self.compacting.tombstones_to);
        if is_dirty || is_overdue || has_expired {
            self.compacting.wanted = Some((now, *settings));
            self.compacting.decided_at = now;
            self.compacting.put_off_until = None;
            let last = self.manifest.segments[eligible.count - 1].sealed;
            // A marker of a clean close goes before there are files that a clean open would leave.
            self.upkeep.is_checkpoint_due |= self.upkeep.is_marked_clean
                || last.is_some_and(|sealed| sealed.end_offset > self.compactable_end());
        }
    }

    /// Tombstones before this offset may go in their time, and none else: the end of what every replica of the log has on
    /// disk, wherever it is, and zero for who does not know. A replica that never had a tombstone would keep for ever what
    /// that took away, and show it as soon as it led. Zero at first; to be told again whenever it changes, also to less.
    pub fn tombstones_may_go_to(&mut self, offset: Offset) {
        self.compacting.tombstones_to = offset;
    }

    /// When the first of the tombstones that stayed may go.
    fn next_horizon(&self) -> Option<Timestamp> {
        self.manifest.compacted.and_then(|compacted| compacted.next_horizon)
    }

    /// Where what may be compacted ends. Recovery never begins in it, nor finds a high watermark there: it would lie in a
    /// gap, and behind it what took the place of records that were read before.
    fn compactable_end(&self) -> Offset {
        self.upkeep.checkpoint.min(self.upkeep.certain_high_watermark)
    }

    /// Whether a compaction is due or under way.
    pub fn is_compacting(&self) -> bool {
        self.compacting.wanted.is_some() || self.compacting.is_busy()
    }

    /// Gives up what is under way, with the next jobs: the log stays as it is.
    pub fn cancel_compaction(&mut self) {
        self.compacting.wanted = None;
        self.compacting.is_cancelled = self.compacting.is_busy();
    }

    /// There is no room for what is due or under way: it is given up, and not tried again at once.
    pub(super) fn put_off_compaction(&mut self) {
        if self.is_compacting() {
            self.wait_with_compaction();
        }
        self.cancel_compaction();
    }

    fn wait_with_compaction(&mut self) {
        let wait_ms = limits::COMPACTION_RETRY_INTERVAL.as_millis() as i64;
        self.compacting.put_off_until = Some(Timestamp(self.compacting.decided_at.0.saturating_add(wait_ms)));
    }

    /// What compaction could not read, if it came to damage: to be told once to [`Log::mark_corrupt`], like what a reader
    /// finds.
    pub fn take_damage(&mut self) -> Option<ReadError> {
        self.compacting.damage.take()
    }

    fn eligible(&self, now: Timestamp, settings: &CompactionSettings) -> Eligible {
        let committed = self.high_watermark().min(self.durable.next_offset);
        let entries = &self.manifest.segments;
        let mut eligible = Eligible { count: 0, compacted: 0, compacted_bytes: 0, dirty_bytes: 0 };
        let mut dirty_bytes = 0;
        // The log goes on from the last one.
        for (at, entry) in entries.iter().take(entries.len().saturating_sub(1)).enumerate() {
            let Some(sealed) = entry.sealed else { break };
            let is_settled = sealed.end_offset <= committed
                && !is_younger(sealed.last_append_time, now, settings.lag_ms_min);
            if !is_settled {
                break;
            }
            if entry.is_compacted && eligible.compacted == at {
                eligible.compacted = at + 1;
                eligible.compacted_bytes += sealed.len;
            } else {
                dirty_bytes += sealed.len;
            }
            // One without frames at the end is left for the next time.
            if sealed.len > 0 {
                (eligible.count, eligible.dirty_bytes) = (at + 1, dirty_bytes);
            }
        }
        eligible.compacted = eligible.compacted.min(eligible.count);
        eligible
    }

    /// When the first record of this dirty segment and those behind it was appended. That is known of what was appended since
    /// the log was opened, and of what was the first dirty segment then; else it is not before the one in front ends.
    fn dirty_since(&self, segment: usize) -> Option<Timestamp> {
        let segments = self.shared.segments();
        let first = segments.get(segment..)?.iter().find(|segment| !segment.is_empty());
        let before = || self.manifest.segments[segment.saturating_sub(1)].sealed;
        first
            .and_then(|first| first.first_append_time())
            .or_else(|| before().map(|before| before.last_append_time))
    }

    /// What is written little must not grow for as long as its active segment is not full.
    fn is_active_to_be_sealed(
        &self,
        now: Timestamp,
        settings: &CompactionSettings,
        eligible: &Eligible,
    ) -> bool {
        let Some(active) = &self.active else { return false };
        let len = active.segment.position();
        let is_large = len >= limits::COMPACTION_SEAL_BYTES_MIN.min(active.segment.size_limit() / 2)
            && len >= eligible.compacted_bytes + eligible.dirty_bytes;
        len > 0 && (is_large || is_older(active.segment.first_append_time(), now, settings.lag_ms_max))
    }

    /// The next part of a compaction that is due or under way.
    pub(super) fn next_compaction(&mut self) -> Option<Job> {
        if self.compacting.is_under_way {
            return None;
        }
        if let Some(job) = self.remove_replaced() {
            self.compacting.is_under_way = true;
            return Some(job);
        }
        if std::mem::take(&mut self.compacting.is_cancelled) {
            let job = self.give_up();
            self.compacting.is_under_way |= job.is_some();
            return job;
        }
        if self.compacting.compaction.is_none() {
            self.compacting.compaction = self.plan().map(|plan| Box::new(Compaction::new(plan)));
        }
        let compaction = self.compacting.compaction.as_mut()?;
        if compaction.wants_serial() {
            // A job that is out has the manifest, and brings it back. How many segments there are in the end is looked at
            // then: compaction is what makes them fewer.
            if self.upkeep.is_under_way || !self.manifest.has_serial() {
                return None;
            }
            compaction.give_serial(self.manifest.next_serial);
            self.manifest.next_serial += 1;
        }
        self.compacting.is_under_way = true;
        self.compacting.compaction.take().map(Job::compact)
    }

    fn remove_replaced(&mut self) -> Option<Job> {
        let replaced = std::mem::take(&mut self.compacting.replaced);
        (!replaced.is_empty()).then(|| Job::remove(self.place(), replaced))
    }

    /// Compacted segments are listed in the place of these.
    pub(super) fn compaction_listed(&mut self, replaced: Vec<SegmentName>) {
        self.compacting.replaced = replaced;
    }

    fn give_up(&mut self) -> Option<Job> {
        if let Some(written) = self.compacting.written.take() {
            let names = written.entries.iter().map(|entry| entry.name).collect();
            return Some(Job::remove(self.place(), names));
        }
        self.compacting.compaction.take().map(Job::give_up)
    }

    /// What is due, once a checkpoint covers it.
    fn plan(&mut self) -> Option<Plan> {
        let (now, settings) = self.compacting.wanted?;
        // What retention is about to delete is not copied.
        let is_early = self.upkeep.is_checkpoint_due || self.upkeep.retain_from.is_some();
        if self.upkeep.is_under_way || is_early || self.compacting.written.is_some() {
            return None;
        }
        self.compacting.wanted = None;
        if self.upkeep.is_marked_clean {
            return None;
        }
        let eligible = self.eligible(now, &settings);
        let entries = &self.manifest.segments;
        let end = self.compactable_end();
        let is_covered = |entry: &SegmentEntry| {
            entry.sealed.is_some_and(|sealed| sealed.end_offset <= end && sealed.len > 0)
        };
        let count = entries[..eligible.count].iter().rposition(is_covered).map_or(0, |last| last + 1);
        let segments = self.shared.segments();
        let source = |(entry, segment): (&SegmentEntry, &Arc<Segment>)| {
            assert_eq!(entry.name, segment.name(), "readers see what the manifest lists");
            Some(Source { segment: Arc::clone(segment), sealed: entry.sealed? })
        };
        let sources: Vec<_> = entries[..count].iter().zip(segments.iter()).map_while(source).collect();
        (!sources.is_empty()).then(|| Plan {
            shared: Arc::clone(&self.shared),
            compacted: eligible.compacted.min(sources.len()),
            sources,
            log_start: self.start_offset(),
            tombstones_to: self.compacting.tombstones_to,
            now,
            delete_retention_ms: i64::try_from(settings.delete_retention_ms).unwrap_or(i64::MAX),
            keys_max: settings.keys_max,
            segment_bytes: self.options.segment_bytes,
            span_ms_max: settings.span_ms_max,
            index_interval: self.options.index_interval_bytes,
        })
    }

    pub(super) fn compaction_stepped(&mut self, result: Result<Stepped, StepError>) -> Completed {
        self.compacting.is_under_way = false;
        match result {
            Ok(Stepped::Again(compaction)) => self.compacting.compaction = Some(compaction),
            Ok(Stepped::Written(written)) => self.compacting.written = Some(written),
            Ok(Stepped::GivenUp) => {}
            Err(StepError::Unreadable(error)) => self.compacting.damage = Some(error),
            Err(StepError::Failed(Failure { operation, error, kind: FailureKind::Fatal })) => {
                let reason = self.poison(operation, &error);
                return Completed { poisoned: Some((*reason).clone()), ..Completed::default() };
            }
            Err(StepError::Failed(Failure { operation, error, .. })) => {
                tracing::warn!(log = %self.shared.dir.display(), operation, %error, "compaction is put off");
                self.wait_with_compaction();
            }
        }
        self.compacting.is_cancelled &= self.compacting.is_busy();
        Completed::default()
    }

    /// Lists what was written, if the log is still what it was made from.
    pub(super) fn swap_work(&mut self) -> Option<SwapWork> {
        if self.compacting.is_cancelled {
            return None;
        }
        let written = self.compacting.written.take()?;
        let count = written.sources.len();
        let names = self.manifest.segments.iter().map(|entry| entry.name);
        let is_as_it_was = names.take(count).eq(written.sources.iter().copied());
        let after =
            self.manifest.segments.len() - count.min(self.manifest.segments.len()) + written.entries.len();
        // One of the replicas may have less than it had.
        let is_early = written.tombstones_gone_to > self.compacting.tombstones_to;
        if !is_as_it_was || is_early || after > limits::SEGMENTS_MAX {
            self.compacting.written = Some(written);
            self.compacting.is_cancelled = true;
            return None;
        }
        let mut manifest = self.manifest.clone();
        // What is compacted behind the sources, if anything is, was not gone through this time.
        let is_all = manifest.segments.get(count).is_none_or(|next| !next.is_compacted);
        let before = self.next_horizon().filter(|_| !is_all);
        let next_horizon = written.next_horizon.into_iter().chain(before).min();
        manifest.compacted = Some(Compacted { next_horizon });
        manifest.segments.splice(..count, written.entries.iter().copied());
        let (size_limit, interval) = (self.options.segment_bytes, self.options.index_interval_bytes);
        let segment = |entry: &SegmentEntry| {
            let extent = Extent::of(&entry.sealed.expect("it was written to its end"));
            let limit = size_limit.max(extent.position);
            Arc::new(Segment::found(entry.name, limit, interval, extent, None))
        };
        Some(SwapWork {
            shared: Arc::clone(&self.shared),
            manifest,
            segments: written.entries.iter().map(segment).collect(),
            replaced: written.sources,
        })
    }

    /// The log is about to be closed: what was begun leaves nothing.
    pub(super) fn drop_compaction(&mut self) {
        self.compacting.wanted = None;
        for job in self.remove_replaced().into_iter().chain(self.give_up()) {
            let _ = job.run();
        }
    }

    /// The log is another than the one that was compacted.
    pub(super) fn forget_compaction(&mut self) {
        self.compacting = Compacting::default();
    }
}

/// Whether this time is longer ago than that.
fn is_older(time: Option<Timestamp>, now: Timestamp, age_ms: Option<u64>) -> bool {
    let (Some(time), Some(age_ms)) = (time, age_ms) else { return false };
    u64::try_from(now.0.saturating_sub(time.0)).is_ok_and(|age| age > age_ms)
}

fn is_younger(time: Timestamp, now: Timestamp, age_ms: u64) -> bool {
    age_ms > 0 && u64::try_from(now.0.saturating_sub(time.0)).is_ok_and(|age| age < age_ms)
}
