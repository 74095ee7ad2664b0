//! Groups: who consumes which partitions, and up to where.
//!
//! A group's state and its committed offsets are keyed records in one partition of an internal topic, and that partition's
//! leader coordinates the group. The protocol is KIP-848's: members send heartbeats, the coordinator assigns; a partition
//! changes hands once its old owner has given it up, and nobody else is stopped for it.
//!
//! - [`Groups`] is the replicated machine: what is decided about members in `heartbeat`, about offsets in `offsets`.
//!   `member` is one member's way from what it has to what it is to have, [`assignment`] says what it is to have.
//! - [`coordinator`] runs it on its partition: loads it, appends what it decides, and answers once that is committed.
//!
//! What is decided changes the state at once, and nothing is told to anybody before it is committed, refusals and reads
//! included. So there is one state, of what is applied and pending alike; if an append fails, or the leadership is lost,
//! all of it is thrown away and read from the log again.

pub mod assignment;
pub mod coordinator;
pub mod description;
mod heartbeat;
mod member;
mod offsets;
pub mod records;
mod refusal;
pub mod request;
mod sessions;
mod state;
pub mod topics;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use quire_protocol::{Timestamp, limits};

use crate::Random;
use crate::machine::{Decision, Replicated};
pub use assignment::Assignor;
pub use records::{Generation, Record};
pub use refusal::GroupRefusal;
pub use request::{Heartbeat, Request, Response};
use state::Group;
pub use topics::{Partitions, Topics};

/// What the operator may choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSettings {
    /// How long the offsets of a group are kept after it lost its last member, and after each was committed.
    pub offsets_retention: Duration,
    /// The session of a member that asks for none.
    pub session: Duration,
    /// How long a member may take to give up partitions, if it does not say.
    pub rebalance: Duration,
    /// How often a member says that it is there.
    pub heartbeat_interval: Duration,
    /// Most members of one group.
    pub members_max: usize,
    /// What is kept of all groups together, see [`limits::GROUPS_BYTES_MAX`].
    pub bytes_max: usize,
    /// Appends under way at once; more than one only on a log that, once it refused or lost one, takes none that was handed
    /// to it after that.
    pub appends_max: usize,
}

impl Default for GroupSettings {
    fn default() -> GroupSettings {
        GroupSettings {
            offsets_retention: limits::OFFSETS_RETENTION_DEFAULT,
            session: limits::GROUP_SESSION_DEFAULT,
            rebalance: limits::GROUP_REBALANCE_DEFAULT,
            heartbeat_interval: limits::GROUP_HEARTBEAT_INTERVAL,
            members_max: limits::GROUP_MEMBERS_MAX,
            bytes_max: limits::GROUPS_BYTES_MAX,
            appends_max: limits::GROUP_APPENDS_MAX,
        }
    }
}

/// Why a member is taken for gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overdue {
    /// It was silent for a whole session.
    Silent,
    /// It did not give up partitions in time.
    Revoking,
}

/// The machine: every group of one partition of the internal topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Groups {
    settings: GroupSettings,
    topics: Arc<Topics>,
    groups: BTreeMap<Arc<str>, Group>,
    /// Of all groups together.
    bytes: usize,
}

impl Groups {
    /// No group yet, and these topics.
    pub fn new(settings: GroupSettings, topics: Arc<Topics>) -> Groups {
        Groups { settings, topics, groups: BTreeMap::new(), bytes: 0 }
    }

    /// Every group's id.
    pub fn ids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.groups.keys()
    }

    /// The topics changed: each group may need a new generation, see [`Groups::refresh`].
    pub fn set_topics(&mut self, topics: Arc<Topics>) {
        self.topics = topics;
    }

    /// Brings a group in line with itself and with the topics there are: a new generation if partitions came or went, and
    /// what is committed of deleted topics is forgotten. Nothing if it is in line.
    pub fn refresh(&mut self, now: Timestamp, group: &Arc<str>) -> Vec<Record> {
        let mut change = Change::of(self, group, now);
        change.forget_deleted();
        change.drop_orphans();
        let is_repaired = change.drop_contradicted();
        if is_repaired || !change.state().has_current_targets(&change.groups.topics) {
            change.begin_generation();
        }
        change.finish()
    }

    /// Removes members that are overdue, in one generation; nothing of those that are not there.
    pub fn remove_overdue<'a>(
        &mut self,
        now: Timestamp,
        group: &Arc<str>,
        members: impl IntoIterator<Item = &'a Arc<str>>,
    ) -> Vec<Record> {
        let mut change = Change::of(self, group, now);
        for member in members {
            if change.state().members.contains_key(member) {
                change.remove_member(member);
            }
        }
        if !change.records.is_empty() {
            change.begin_generation();
        }
        change.finish()
    }

    /// Forgets what is committed in a group that has been without members for too long, and then the group.
    pub fn expire_offsets(&mut self, now: Timestamp, group: &Arc<str>) -> Vec<Record> {
        let mut change = Change::of(self, group, now);
        change.expire();
        change.finish()
    }

    /// Whether every member of a group has what it is to have. True for one that does not exist.
    pub fn is_stable(&self, group: &str) -> bool {
        let is_settled = |group: &Group| group.members.keys().all(|member| group.is_settled(member));
        self.groups.get(group).is_none_or(is_settled)
    }

    fn group(&self, id: &str) -> Option<&Group> {
        self.groups.get(id)
    }

    fn state(&self, id: &str) -> Result<&Group, GroupRefusal> {
        self.groups.get(id).ok_or_else(|| GroupRefusal::UnknownGroup { group: id.into() })
    }

    fn empty(&self, id: &str) -> Result<&Group, GroupRefusal> {
        let state = self.state(id)?;
        if !state.members.is_empty() {
            return Err(GroupRefusal::GroupNotEmpty { group: id.into(), members: state.members.len() });
        }
        Ok(state)
    }

    /// What is kept has a limit. Whatever is no larger than what it takes the place of fits.
    fn check_room(&self, more: usize) -> Result<(), GroupRefusal> {
        let given = self.bytes.saturating_add(more);
        if more > 0 && given > self.settings.bytes_max {
            let what = "bytes of groups on one partition of the internal topic";
            return Err(GroupRefusal::TooMany { what, given, max: self.settings.bytes_max });
        }
        Ok(())
    }

    fn put(&mut self, record: &Record) {
        let group = self.groups.entry(record.group().clone()).or_default();
        self.bytes -= group.bytes;
        group.apply(record);
        self.bytes += group.bytes;
        if group.is_gone() {
            self.groups.remove(record.group());
        }
    }
}

impl Replicated for Groups {
    type Request = Request;
    type Response = Response;
    type Record = Record;
    type Refusal = GroupRefusal;
    type Conflict = Infallible;

    /// Decides a request; the state is as after its records from here on, and is told to nobody before they are committed.
    fn decide(
        &mut self,
        now: Timestamp,
        random: &mut dyn Random,
        request: Request,
    ) -> Result<Decision<Record, Response>, GroupRefusal> {
        let (records, response) = match request {
            Request::Heartbeat(request) => self.heartbeat(now, random, request)?,
            Request::Commit(request) => self.commit(now, request)?,
            Request::FetchOffsets(request) => (Vec::new(), self.fetch_offsets(&request)),
            Request::Describe { group } => {
                let description = self.state(&group)?.describe(&group);
                (Vec::new(), Response::Description(Box::new(description)))
            }
            Request::List => {
                let summaries = self.groups.iter().map(|(id, state)| state.summary(id));
                (Vec::new(), Response::Groups(summaries.collect()))
            }
            Request::ResetOffsets(request) => (self.reset_offsets(now, request)?, Response::Done),
            Request::DeleteGroup { group } => (self.delete_group(now, &group)?, Response::Done),
        };
        Ok(Decision { records, response })
    }

    /// Applies a record of the log, and can be told the same again: only the last of a key counts.
    fn apply(&mut self, record: &Record) -> Result<(), Infallible> {
        self.put(record);
        Ok(())
    }

    /// Forgets everything: it is to be read from the log.
    fn discard_pending(&mut self) {
        self.groups.clear();
        self.bytes = 0;
    }
}

/// A change of one group in the making: its records, each applied as it is added.
struct Change<'a> {
    groups: &'a mut Groups,
    id: Arc<str>,
    now: Timestamp,
    records: Vec<Record>,
}

impl<'a> Change<'a> {
    fn of(groups: &'a mut Groups, id: &Arc<str>, now: Timestamp) -> Change<'a> {
        Change { groups, id: id.clone(), now, records: Vec::new() }
    }

    fn state(&self) -> &Group {
        self.groups.groups.get(&self.id).unwrap_or(&state::NO_GROUP)
    }

    fn add(&mut self, record: Record) {
        self.groups.put(&record);
        self.records.push(record);
    }

    fn finish(self) -> Vec<Record> {
        let changes_hands = |record: &Record| matches!(record, Record::Current { .. });
        if self.records.iter().any(changes_hands) {
            self.state().check();
        }
        self.records
    }
}
