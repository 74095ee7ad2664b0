//! Who has been heard of, and until when others may wait for it.
//!
//! None of this is in the log. A coordinator that has just loaded its groups knows nothing of it, and gives every member a
//! whole session, and a whole time to give up partitions, anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::Overdue;
use super::state::Group;
use crate::Time;

/// Members of one group that are taken for gone, and why.
pub(super) type OverdueMembers = BTreeMap<Arc<str>, Overdue>;

/// The sessions of all members of all groups here.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    groups: BTreeMap<Arc<str>, Watched>,
    /// When which member is overdue unless something happens before.
    due: BTreeSet<(Time, Arc<str>, Arc<str>)>,
}

#[derive(Debug, Default)]
struct Watched {
    members: BTreeMap<Arc<str>, Session>,
    rebalancing_since: Option<Time>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Session {
    heard: Time,
    session: Duration,
    revoking: Option<Revoking>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Revoking {
    /// Of what the member has; with another one, it is asked for something else.
    revision: u32,
    since: Time,
    until: Time,
}

impl Session {
    fn ends(&self) -> Time {
        let silent = self.heard + self.session;
        self.revoking.map_or(silent, |revoking| revoking.until.min(silent))
    }
}

impl Sessions {
    /// A group changed: new members begin a session, those that are gone end theirs.
    pub(super) fn follow(&mut self, now: Time, id: &Arc<str>, group: Option<&Group>) {
        let mut watched = self.groups.remove(id).unwrap_or_default();
        for (member, session) in &watched.members {
            self.due.remove(&(session.ends(), id.clone(), member.clone()));
        }
        let Some(group) = group.filter(|group| !group.members.is_empty()) else { return };
        watched.members.retain(|member, _| group.members.contains_key(member));
        for (member, record) in &group.members {
            let fresh = Session { heard: now, session: record.session, revoking: None };
            let session = watched.members.entry(member.clone()).or_insert(fresh);
            session.session = record.session;
            let current = group.current(member);
            let (revision, since, until) = (current.revision, now, now + record.rebalance);
            let known = session.revoking.filter(|revoking| revoking.revision == revision);
            session.revoking =
                (!current.revoking.is_empty()).then(|| known.unwrap_or(Revoking { revision, since, until }));
            self.due.insert((session.ends(), id.clone(), member.clone()));
        }
        let is_stable = group.members.keys().all(|member| group.is_settled(member));
        watched.rebalancing_since = (!is_stable).then(|| watched.rebalancing_since.unwrap_or(now));
        self.groups.insert(id.clone(), watched);
    }

    /// A member is heard of.
    pub(super) fn hear(&mut self, now: Time, group: &Arc<str>, member: &Arc<str>) {
        let watched = self.groups.get_mut(group).and_then(|watched| watched.members.get_mut(member));
        let Some(session) = watched else { return };
        self.due.remove(&(session.ends(), group.clone(), member.clone()));
        session.heard = now;
        self.due.insert((session.ends(), group.clone(), member.clone()));
    }

    /// Forgets everybody.
    pub(super) fn clear(&mut self) {
        *self = Sessions::default();
    }

    /// When the next member is overdue.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.due.first().map(|(due, _, _)| *due)
    }

    /// The group with the member that is overdue for longest, if any is, and all its members that are.
    pub(super) fn overdue(&self, now: Time) -> Option<(Arc<str>, OverdueMembers)> {
        let (_, group, _) = self.due.first().filter(|(due, _, _)| *due <= now)?;
        let overdue = |(member, session): (&Arc<str>, &Session)| {
            let is_silent = session.heard + session.session <= now;
            (member.clone(), if is_silent { Overdue::Silent } else { Overdue::Revoking })
        };
        let members = self.groups.get(group)?.members.iter().filter(|(_, session)| session.ends() <= now);
        Some((group.clone(), members.map(overdue).collect()))
    }

    /// How long a member still has to give up partitions, if it is to.
    pub(super) fn revoke_within(&self, now: Time, group: &str, member: &str) -> Option<Duration> {
        Some(self.session(group, member)?.revoking?.until.since(now))
    }

    /// For how long a member has been giving up partitions, if it does.
    pub(super) fn revoking_for(&self, now: Time, group: &str, member: &str) -> Option<Duration> {
        Some(now.since(self.session(group, member)?.revoking?.since))
    }

    /// For how long a member has been silent.
    pub(super) fn silent_for(&self, now: Time, group: &str, member: &str) -> Option<Duration> {
        Some(now.since(self.session(group, member)?.heard))
    }

    /// For how long a group has been rebalancing, if it is.
    pub(super) fn rebalancing_for(&self, now: Time, group: &str) -> Option<Duration> {
        Some(now.since(self.groups.get(group)?.rebalancing_since?))
    }

    fn session(&self, group: &str, member: &str) -> Option<&Session> {
        self.groups.get(group)?.members.get(member)
    }
}
