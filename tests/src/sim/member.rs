//! A member of a group, as its process knows itself: it does what members do, and now and then what they should not.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use quire_engine::Time;
use quire_engine::group::request::HeartbeatAnswer;
use quire_engine::group::{Generation, Heartbeat, Partitions};

/// Where groups' members sit.
pub const MEMBERS: u32 = 401;
/// How long a member waits for an answer.
pub const PATIENCE: Duration = Duration::from_millis(700);

/// A process that consumes, or what starts in its place.
#[derive(Debug)]
pub struct Member {
    pub number: u32,
    pub group: Arc<str>,
    pub topics: Vec<Arc<str>>,
    is_static: bool,
    session: Duration,
    /// Counts processes, and stays in one for as long as one member id does.
    pub life: u32,
    pub starts_at: Time,
    pub paused_until: Time,
    pub membership: Option<Membership>,
    /// The heartbeat under way, and when it was sent.
    pub beating: Option<(u64, Time)>,
    pub beats_at: Time,
    pub commits_at: Time,
    /// Whether the next heartbeat tells everything.
    pub tells_all: bool,
    /// When it asked where to go on.
    pub fetching: Option<(u64, Time)>,
}

/// What it knows of its membership.
#[derive(Debug)]
pub struct Membership {
    pub epoch: Generation,
    pub revision: u32,
    /// What it was last told is its own.
    pub told: Partitions,
    /// What it processes: that, and what it has not given up yet.
    pub owned: Partitions,
    /// By its own clock.
    session_ends: Time,
    revoke_by: Option<Time>,
    /// When it will have given up what it should.
    revokes_at: Option<Time>,
}

impl Member {
    /// One that has not started.
    pub fn new(number: u32, group: Arc<str>, topics: Vec<Arc<str>>) -> Member {
        let starts_at = Time::after_origin(Duration::from_millis(400 + 250 * u64::from(number)));
        Member {
            number,
            group,
            topics,
            is_static: number % 3 == 2,
            session: Duration::from_millis(1000 + 400 * u64::from(number % 3)),
            life: 0,
            starts_at,
            paused_until: Time::ZERO,
            membership: None,
            beating: None,
            beats_at: Time::ZERO,
            commits_at: Time::ZERO,
            tells_all: true,
            fetching: None,
        }
    }

    /// Its id, of this process.
    pub fn id(&self) -> Arc<str> {
        format!("m{}-{}", self.number, self.life).into()
    }

    /// Whether its process runs.
    pub fn is_running(&self, now: Time) -> bool {
        self.starts_at <= now && self.paused_until <= now
    }

    /// What it processes now, as it believes it may. One that is paused goes on with it before it looks at its clock.
    pub fn owned(&self, now: Time) -> Option<&Partitions> {
        let member = self.membership.as_ref()?;
        let is_in_time = now < member.session_ends && member.revoke_by.is_none_or(|by| now < by);
        is_in_time.then_some(&member.owned)
    }

    /// Looks at its clock, and gives up what it has to; returns that.
    pub fn look_at_clock(&mut self, now: Time) -> Partitions {
        let mut given_up = Partitions::new();
        if self.membership.is_some() && self.owned(now).is_none() {
            given_up = self.lose_all();
        }
        if let Some(member) = &mut self.membership
            && member.revokes_at.is_some_and(|at| at <= now)
        {
            member.revokes_at = None;
            given_up = &member.owned - &member.told;
            member.owned = &member.owned & &member.told;
            self.beats_at = now;
        }
        if self.beating.is_some_and(|(_, sent)| now.since(sent) >= PATIENCE) {
            self.beating = None;
            self.tells_all = true;
            self.beats_at = now;
        }
        if self.fetching.is_some_and(|(_, sent)| now.since(sent) >= PATIENCE) {
            self.fetching = None;
        }
        given_up
    }

    /// It owns nothing any more, and joins anew; returns what it owned.
    pub fn lose_all(&mut self) -> Partitions {
        self.beating = None;
        self.fetching = None;
        self.tells_all = true;
        self.membership.take().map(|member| member.owned).unwrap_or_default()
    }

    /// Another process takes its place; returns what this one owned.
    pub fn begin_life(&mut self, at: Time) -> Partitions {
        let owned = self.lose_all();
        self.life += 1;
        self.starts_at = at;
        self.beats_at = at;
        owned
    }

    /// What it says next.
    pub fn heartbeat(&self) -> Heartbeat {
        let member = self.membership.as_ref();
        let has_other = |member: &&Membership| {
            member.owned != member.told
                || self.tells_all
                || member.revoke_by.is_some()
                || self.number % 2 == 1
        };
        Heartbeat {
            group: self.group.clone(),
            member: self.id(),
            epoch: member.map_or(Generation::JOINS, |member| member.epoch),
            instance: self.is_static.then(|| format!("i{}", self.number).into()),
            session: Some(self.session),
            rebalance: Some(self.session * 2),
            topics: (member.is_none() || self.tells_all).then(|| self.topics.clone()),
            owned: member.filter(has_other).map(|member| member.owned.clone()),
            seen: member.map(|member| member.revision),
            ..Heartbeat::default()
        }
    }

    /// With which epoch it leaves; one with an instance id may mean to come back.
    pub fn leaves_with(&self, is_back: bool) -> Generation {
        if self.is_static && is_back { Generation::PAUSES } else { Generation::LEAVES }
    }

    /// Takes an answer to the heartbeat that was sent then; returns what it owns from here on and did not before. It takes
    /// so long to give up what it should.
    pub fn take(
        &mut self,
        now: Time,
        sent: Time,
        answer: &HeartbeatAnswer,
        slowness: Duration,
    ) -> Partitions {
        let session_ends = sent + answer.session;
        let before = self.membership.take();
        let (told, owned) = before.map_or_else(Default::default, |before| (before.told, before.owned));
        let told = answer.assignment.clone().unwrap_or(told);
        let added = &told - &owned;
        let owned: BTreeSet<_> = &owned | &told;
        self.beats_at = now + answer.interval;
        self.tells_all = false;
        let revokes_at = (owned != told).then_some(now + slowness);
        self.membership = Some(Membership {
            epoch: answer.epoch,
            revision: answer.revision,
            session_ends,
            revoke_by: answer.revoke_within.map(|within| sent + within),
            revokes_at,
            told,
            owned,
        });
        added
    }
}
