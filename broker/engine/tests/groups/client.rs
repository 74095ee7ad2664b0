//! A simulated member: it does what members do, and now and then what they should not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quire_engine::Time;
use quire_engine::group::request::HeartbeatAnswer;
use quire_engine::group::{Generation, Heartbeat, Partitions};
use quire_protocol::TopicPartition;

use crate::desk::GROUP;

/// What a member knows of itself.
#[derive(Debug, Clone)]
pub struct Membership {
    pub epoch: Generation,
    pub revision: u32,
    /// What it was last told is its own.
    pub told: Partitions,
    /// What it processes: that, and what it has not given up yet.
    pub owned: Partitions,
    /// By its own clock.
    pub session_ends: Time,
    pub revoke_by: Option<Time>,
    /// When it will have given up what it should.
    pub revokes_at: Option<Time>,
}

/// A process that consumes, or what starts in its place.
pub struct Client {
    pub number: usize,
    pub is_static: bool,
    pub topics: Vec<Arc<str>>,
    /// Counts processes, and stays in one for as long as one member id does.
    pub life: u32,
    pub is_alive: bool,
    pub starts_at: Time,
    pub paused_until: Time,
    pub membership: Option<Membership>,
    /// The heartbeat under way, and when it was sent.
    pub beating: Option<(u64, Time)>,
    pub beats_at: Time,
    /// Whether the next heartbeat tells everything.
    pub tells_all: bool,
    pub node: usize,
    /// Where it goes on in each partition that it owns, once it knows.
    pub positions: BTreeMap<TopicPartition, u64>,
}

/// How long a client waits for an answer.
pub const PATIENCE: Duration = Duration::from_secs(1);

impl Client {
    pub fn new(number: usize, topics: Vec<Arc<str>>) -> Client {
        Client {
            number,
            is_static: number % 3 == 2,
            topics,
            life: 0,
            is_alive: true,
            starts_at: Time::after_origin(Duration::from_millis(700 * number as u64)),
            paused_until: Time::ZERO,
            membership: None,
            beating: None,
            beats_at: Time::ZERO,
            tells_all: true,
            node: 0,
            positions: BTreeMap::new(),
        }
    }

    pub fn member_id(&self) -> Arc<str> {
        format!("c{}-{}", self.number, self.life).into()
    }

    /// What it processes now, as it believes it may.
    pub fn owned(&self, now: Time) -> Option<&Partitions> {
        let member = self.membership.as_ref()?;
        let is_in_time = now < member.session_ends && member.revoke_by.is_none_or(|by| now < by);
        (self.is_alive && is_in_time).then_some(&member.owned)
    }

    /// Looks at its clock, and gives everything up if it has to.
    pub fn look_at_clock(&mut self, now: Time) {
        if self.membership.is_some() && self.owned(now).is_none() {
            self.lose_all();
        }
        if let Some(member) = &mut self.membership
            && member.revokes_at.is_some_and(|at| at <= now)
        {
            member.revokes_at = None;
            member.owned = &member.owned & &member.told;
            self.positions.retain(|partition, _| member.owned.contains(partition));
            self.beats_at = now;
        }
        if self.beating.is_some_and(|(_, sent)| now.since(sent) >= PATIENCE) {
            self.beating = None;
            self.tells_all = true;
            self.beats_at = now;
        }
    }

    /// It owns nothing any more, and joins anew.
    pub fn lose_all(&mut self) {
        self.membership = None;
        self.positions.clear();
        self.beating = None;
        self.tells_all = true;
    }

    /// Another process takes its place.
    pub fn begin_life(&mut self, at: Time) {
        self.lose_all();
        self.life += 1;
        self.is_alive = true;
        self.starts_at = at;
        self.beats_at = at;
    }

    pub fn heartbeat(&self) -> Heartbeat {
        let member = self.membership.as_ref();
        let joins = member.is_none();
        let has_other = member.is_some_and(|member| member.owned != member.told || self.tells_all);
        Heartbeat {
            group: GROUP.into(),
            member: self.member_id(),
            epoch: member.map_or(Generation::JOINS, |member| member.epoch),
            instance: self.is_static.then(|| format!("i{}", self.number).into()),
            session: Some(Duration::from_secs(4 + 2 * (self.number as u64 % 3))),
            rebalance: Some(Duration::from_secs(10)),
            topics: (joins || self.tells_all).then(|| self.topics.clone()),
            // Once it has given up what it should, it says so until it is told that this is known. Some always say it.
            owned: member
                .filter(|member| has_other || member.revoke_by.is_some() || self.number % 2 == 1)
                .map(|member| member.owned.clone()),
            seen: member.map(|member| member.revision),
            ..Heartbeat::default()
        }
    }

    /// Takes an answer to the heartbeat that was sent then; returns what it owns from here on and did not before.
    pub fn take(
        &mut self,
        now: Time,
        sent: Time,
        answer: &HeartbeatAnswer,
        slowness: Duration,
    ) -> Partitions {
        let session_ends = sent + answer.session;
        if session_ends <= now {
            self.lose_all();
            return Partitions::new();
        }
        let before = self.membership.take();
        let (told, owned) = before.map_or_else(Default::default, |before| (before.told, before.owned));
        let told = answer.assignment.clone().unwrap_or(told);
        let added = &told - &owned;
        let owned = &owned | &told;
        self.beats_at = now + answer.interval;
        self.tells_all = false;
        let mut member = Membership {
            epoch: answer.epoch,
            revision: answer.revision,
            session_ends,
            revoke_by: answer.revoke_within.map(|within| sent + within),
            revokes_at: None,
            told,
            owned,
        };
        if member.owned != member.told {
            member.revokes_at = Some(now + slowness);
        }
        self.membership = Some(member);
        added
    }
}
