//! What is to be committed, as plain code: offsets, answers and the time go in; requests and what follows on them come out.
//! One request is under way at a time, so that no commit overtakes another.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use quire_protocol::{ErrorCode, Offset, TopicPartition};
use tokio::sync::oneshot;

use crate::error::Error;

use super::membership::{Input, Life, Membership};

/// Up to where partitions were processed: the next record of each.
pub(super) type Offsets = BTreeMap<TopicPartition, Offset>;

/// Those that were not committed.
pub(super) type Refused = BTreeMap<TopicPartition, Error>;

/// Who is told how a commit ended.
#[derive(Debug)]
pub(super) enum Waiter {
    /// Whether all that was to be committed before is.
    Reply(oneshot::Sender<Result<(), Error>>),
    /// These are released then, or when the time is up.
    Release { life: Life, partitions: BTreeSet<TopicPartition>, until: Instant },
}

/// What is to be committed and what is being committed.
#[derive(Debug)]
pub(super) struct Commits {
    group: String,
    wanted: Offsets,
    waiters: Vec<Waiter>,
    under_way: Option<UnderWay>,
    retry_at: Option<Instant>,
    failures: u32,
    /// Why these were not committed, where nothing later of them was: kept until somebody who asks has been told.
    refused: Refused,
}

#[derive(Debug)]
struct UnderWay {
    /// In which it was asked for.
    life: Life,
    offsets: Offsets,
    waiters: Vec<Waiter>,
}

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Begun {
    /// To be asked for, in this epoch.
    pub request: Option<(i32, Offsets)>,
    /// What the membership is to hear.
    pub told: Vec<Input>,
}

impl Commits {
    pub(super) fn new(group: &str) -> Commits {
        Commits {
            group: group.to_owned(),
            wanted: Offsets::new(),
            waiters: Vec::new(),
            under_way: None,
            retry_at: None,
            failures: 0,
            refused: Refused::new(),
        }
    }

    /// These are to be committed, and somebody may wait for it.
    pub(super) fn want(&mut self, offsets: Offsets, waiter: Option<Waiter>) {
        self.wanted.extend(offsets);
        self.waiters.extend(waiter);
    }

    /// When [`Commits::begin`] is to be called again, if nothing happens before.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    /// What is to be asked for now, unless a commit is under way or has just failed.
    pub(super) fn begin(&mut self, now: Instant, membership: &Membership) -> Begun {
        if self.under_way.is_some() || self.retry_at.is_some_and(|at| now < at) {
            return Begun::default();
        }
        self.retry_at = None;
        let waiters = std::mem::take(&mut self.waiters);
        let offsets = std::mem::take(&mut self.wanted);
        if offsets.is_empty() {
            return Begun { request: None, told: self.finish(waiters) };
        }
        let Some(epoch) = membership.epoch() else {
            self.refuse(offsets);
            return Begun { request: None, told: self.finish(waiters) };
        };
        self.under_way = Some(UnderWay { life: membership.life(), offsets: offsets.clone(), waiters });
        Begun { request: Some((epoch, offsets)), told: Vec::new() }
    }

    /// The commit under way was answered. What may come right is tried again, while it is the member's own.
    pub(super) fn answered(
        &mut self,
        now: Instant,
        answer: Result<Refused, Error>,
        membership: &Membership,
    ) -> Vec<Input> {
        let Some(UnderWay { life, offsets, waiters }) = self.under_way.take() else { return Vec::new() };
        let mut refused = match answer {
            Ok(refused) => refused,
            Err(error) => offsets.keys().map(|id| (*id, error.clone())).collect(),
        };
        // What others own by now is theirs.
        let is_own = |id| life == membership.life() && membership.owns(id);
        let mut again = Offsets::new();
        let mut last = None;
        for (id, offset) in offsets {
            match refused.remove(&id) {
                None => {
                    self.refused.remove(&id);
                }
                Some(error) if error.is_retriable() && is_own(id) => {
                    again.insert(id, offset);
                }
                Some(error) => {
                    last = Some(error.clone());
                    self.refused.insert(id, error);
                }
            }
        }
        if let Some(error) = last {
            tracing::warn!(group = self.group, %error, "offsets were not committed");
        }
        if again.is_empty() {
            self.failures = 0;
            return self.finish(waiters);
        }
        self.try_again(now, again, waiters)
    }

    fn try_again(&mut self, now: Instant, again: Offsets, waiters: Vec<Waiter>) -> Vec<Input> {
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now + Duration::from_millis(50) * (1 << self.failures.min(5)));
        for (id, offset) in again {
            self.wanted.entry(id).or_insert(offset);
        }
        let is_late = |waiter: &Waiter| matches!(waiter, Waiter::Release { until, .. } if *until <= now);
        let (late, patient): (Vec<_>, Vec<_>) = waiters.into_iter().partition(is_late);
        self.waiters.splice(0..0, patient);
        self.finish(late)
    }

    /// The member was fenced: what is not yet committed of these will not be.
    pub(super) fn lose(&mut self, partitions: &BTreeSet<TopicPartition>) {
        let lost = self.wanted.extract_if(.., |id, _| partitions.contains(id)).collect();
        self.refuse(lost);
        if self.wanted.is_empty() {
            self.retry_at = None;
            self.failures = 0;
        }
    }

    /// Whether anything is yet to be committed.
    pub(super) fn has_more(&self) -> bool {
        self.under_way.is_some() || !self.wanted.is_empty()
    }

    /// Why something was not committed, if anything was not and nobody was told.
    pub(super) fn refusal(&self) -> Result<(), Error> {
        self.refused.values().next().map_or(Ok(()), |error| Err(error.clone()))
    }

    fn refuse(&mut self, offsets: Offsets) {
        for id in offsets.into_keys() {
            self.refused.insert(id, not_a_member(&self.group));
        }
    }

    fn finish(&mut self, waiters: Vec<Waiter>) -> Vec<Input> {
        let answer = self.refusal();
        let mut told = Vec::new();
        for waiter in waiters {
            match waiter {
                Waiter::Release { life, partitions, .. } => told.push(Input::Released(life, partitions)),
                Waiter::Reply(reply) => {
                    if reply.send(answer.clone()).is_ok() {
                        self.refused.clear();
                    }
                }
            }
        }
        told
    }
}

fn not_a_member(group: &str) -> Error {
    Error::Broker {
        code: ErrorCode::UnknownMember,
        message: format!("this consumer is no member of group \"{group}\" at the moment"),
        suggestion: None,
    }
}

#[cfg(test)]
mod tests;
