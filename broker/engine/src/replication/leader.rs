//! One partition's leader.

use std::collections::{BTreeMap, BTreeSet};

use quire_protocol::topic_config::{Sync, TopicConfig};
use quire_protocol::{BrokerId, Offset};

use super::action::{Action, ResignReason};
use super::message::Input;
use super::progress::{CommitRule, Progress, committed_end};
use crate::Time;
use crate::machine::Reactive;

/// What a leadership starts with.
#[derive(Debug, Clone)]
pub struct LeaderStart<'a> {
    /// The leader itself.
    pub broker: BrokerId,
    /// The replicas in sync, the leader among them.
    pub in_sync: BTreeSet<BrokerId>,
    /// The topic's settings.
    pub config: &'a TopicConfig,
    /// The log start offset.
    pub log_start: Offset,
    /// The high watermark as far as it was known before.
    pub high_watermark: Offset,
    /// How far the leader's own log is.
    pub local: Progress,
}

/// The reactive machine that decides when records are committed.
///
/// Holds at all times: log start ≤ high watermark ≤ log end, durable end ≤ log end, and none of the high watermark and
/// the ends ever goes back.
#[derive(Debug, Clone)]
pub struct Leader {
    broker: BrokerId,
    replicas: BTreeMap<BrokerId, Progress>,
    in_sync: BTreeSet<BrokerId>,
    rule: CommitRule,
    log_start: Offset,
    high_watermark: Offset,
    has_resigned: bool,
}

impl Leader {
    /// Begins a leadership. What is already safe everywhere is committed at once.
    ///
    /// # Panics
    /// If the leader is not in sync with itself, or its positions contradict each other.
    pub fn start(start: LeaderStart<'_>, actions: &mut Vec<Action>) -> Leader {
        assert!(start.in_sync.contains(&start.broker), "a leader is one of the in-sync replicas");
        let mut leader = Leader {
            broker: start.broker,
            replicas: BTreeMap::from([(start.broker, start.local)]),
            in_sync: start.in_sync,
            rule: CommitRule {
                sync: start.config.sync,
                min_insync_replicas: start.config.min_insync_replicas,
            },
            log_start: start.log_start,
            high_watermark: start.high_watermark,
            has_resigned: false,
        };
        leader.check();
        leader.commit(actions);
        leader
    }

    /// The first offset not yet committed.
    pub fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// The end of what the leader itself holds safely: what `acks = leader` waits for.
    pub fn safe_end(&self) -> Offset {
        self.local().safe_end(self.rule.sync)
    }

    /// Whether its batches are acknowledged from the disk, or from the page cache.
    pub fn sync(&self) -> Sync {
        self.rule.sync
    }

    /// How many in-sync replicas have everything before `end` on disk.
    pub fn replicas_on_disk(&self, end: Offset) -> u32 {
        let on_disk =
            |id: &&BrokerId| self.replicas.get(id).is_some_and(|progress| progress.durable_end >= end);
        self.in_sync.iter().filter(on_disk).count() as u32
    }

    fn local(&self) -> Progress {
        self.replicas[&self.broker]
    }

    fn local_mut(&mut self) -> &mut Progress {
        self.replicas.get_mut(&self.broker).expect("the leader knows its own progress")
    }

    fn commit(&mut self, actions: &mut Vec<Action>) {
        if self.has_resigned {
            return;
        }
        let Some(end) = committed_end(&self.replicas, &self.in_sync, self.rule) else { return };
        if end > self.high_watermark {
            self.high_watermark = end;
            actions.push(Action::AdvanceHighWatermark { to: end });
        }
    }

    fn resign(&mut self, why: ResignReason, actions: &mut Vec<Action>) {
        if !self.has_resigned {
            self.has_resigned = true;
            actions.push(Action::Resign { why });
        }
    }

    fn check(&self) {
        let local = self.local();
        assert!(
            self.log_start <= self.high_watermark && self.high_watermark <= local.log_end,
            "log start {} ≤ high watermark {} ≤ log end {}",
            self.log_start,
            self.high_watermark,
            local.log_end
        );
        assert!(local.durable_end <= local.log_end, "only what was appended is durable");
    }
}

impl Reactive for Leader {
    type Input = Input;
    type Action = Action;

    fn handle(&mut self, _now: Time, input: Input, actions: &mut Vec<Action>) {
        match input {
            Input::Appended { end } => {
                assert!(end >= self.local().log_end, "a leader's log only grows");
                self.local_mut().log_end = end;
            }
            Input::LocalDurable { end } => {
                let local = self.local_mut();
                local.durable_end = local.durable_end.max(end);
            }
            Input::SyncFailed => self.resign(ResignReason::SyncFailed, actions),
            Input::Trimmed { start } => {
                assert!(start >= self.log_start, "the log start never goes back");
                self.log_start = start;
            }
            Input::Reconfigured { sync, min_insync_replicas } => {
                self.rule = CommitRule { sync, min_insync_replicas };
            }
        }
        self.commit(actions);
        self.check();
    }

    /// Nothing happens by time alone while every in-sync replica is the leader itself.
    fn deadline(&self) -> Option<Time> {
        None
    }
}
