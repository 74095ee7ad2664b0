//! The coordinator: groups on the partition of the internal topic that this node leads.
//!
//! ```text
//!            Asked          Append            the log          Committed
//!  request ────────► decide ────────► (serial) ──────► (serial) ────────► Answer
//! ```
//! It loads when it begins to lead, and decides from then on. An answer, be it a refusal or a read, leaves once everything
//! that was decided before it is committed, in the order of the decisions; one that changes nothing, once it is confirmed
//! that this node still led when it was asked. Otherwise a node that does not know yet that another leads would tell
//! members that all is well, while the other gives away what they own. If an append fails, or its outcome is not known,
//! what waits is answered as unknown, the groups are forgotten, and read from the log again.
//!
//! While too few replicas are in sync for anything to be committed, nothing is decided or handed out: whoever asks is told so
//! at once, and nobody is taken for gone. Everybody has a whole session from when that is over.
//!
//! What its owner guarantees:
//! - an append enters the log only while this node leads in the leader epoch it names, after those handed out before it,
//!   and once one of them did not, none of those handed out after it does before the next `Load`;
//! - `Confirm` is answered as committed if no other node had committed anything in a later leader epoch when it was handed
//!   out;
//! - `Load` reads what is committed, and waits until everything is that the log held when it was asked for. An append
//!   handed out before it is in there, or never in the log.
//!
//! Time is the owner's clock, which never goes back; what is stored with offsets is wall-clock time, which may.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use quire_protocol::{ErrorCode, LeaderEpoch, Timestamp, limits};

use super::description::{GroupDescription, MemberState};
use super::records::{DecodeError, KeyValue, MARK_KEY, Record};
use super::request::Request;
use super::sessions::Sessions;
use super::{GroupRefusal, GroupSettings, Groups, Overdue, Response, Topics};
use crate::machine::Replicated;
use crate::mutant::{self, Mutant};
use crate::{Random, Time};

/// Names a request to whoever asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Numbers the appends and confirmations of one coordinator, from 1 on; never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Serial(pub u64);

/// The present, on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// For sessions.
    pub time: Time,
    /// For what is stored.
    pub wall: Timestamp,
}

/// Everything that can happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// This node leads the partition. Repeated, or late, it means nothing.
    Leads(LeaderEpoch),
    /// The next records of the log, in answer to [`Action::Load`].
    Loaded {
        /// The load that they are for.
        load: Load,
        /// In the order of the log.
        records: Vec<KeyValue>,
    },
    /// The log holds something else than records, in answer to [`Action::Load`].
    Unreadable {
        /// The load that it was found by.
        load: Load,
        /// What.
        error: DecodeError,
    },
    /// There are no more.
    LoadEnd(Load),
    /// This node does not lead the partition any more.
    Follows,
    /// Somebody asks.
    Asked {
        /// Names it in the answer.
        id: RequestId,
        /// What is asked.
        request: Request,
    },
    /// An append is committed, or a leadership confirmed.
    Committed(Serial),
    /// The outcome of an append is not known; or a leadership could not be confirmed.
    Failed(Serial),
    /// An append was refused: nothing of it is in the log, or ever will be.
    Refused {
        /// Which one.
        serial: Serial,
        /// Why.
        code: ErrorCode,
    },
    /// Whether enough replicas are in sync for anything to be committed; they are until this is said. Cheap to repeat.
    Replicas {
        /// Whether they are enough.
        are_enough: bool,
    },
    /// The topics of the cluster. Cheap to repeat.
    Topics(Arc<Topics>),
    /// The deadline has come.
    TimePassed,
}

/// Everything that can be wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Read the partition from its start, see the module.
    Load(Load),
    /// Append these records to the partition, in one batch.
    Append {
        /// The leadership in which they were decided.
        leader_epoch: LeaderEpoch,
        /// Names the append.
        serial: Serial,
        /// Never empty.
        records: Vec<KeyValue>,
    },
    /// See to it that this node still leads, as by a record with [`MARK_KEY`] that is committed, and say
    /// [`Input::Committed`] or [`Input::Failed`].
    Confirm {
        /// The leadership.
        leader_epoch: LeaderEpoch,
        /// Names it as if it were an append.
        serial: Serial,
    },
    /// Answer a request.
    Answer {
        /// Which one.
        id: RequestId,
        /// With what.
        result: Result<Response, GroupRefusal>,
    },
    /// A member is taken for gone. Nothing is to be done; it is for people to read.
    Removed {
        /// The group.
        group: Arc<str>,
        /// The member.
        member: Arc<str>,
        /// What it did not do in time.
        why: Overdue,
    },
}

/// Names one reading of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Load {
    /// The leadership it is for.
    pub leader_epoch: LeaderEpoch,
    /// The last append handed out before it; none up to it enters the log after this reading began.
    pub after: Serial,
}

/// What this node is to the partition.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Role {
    Follows,
    Loads(Load),
    /// Everything is read; the topics are not known yet.
    Loaded(LeaderEpoch),
    Decides(LeaderEpoch),
    /// The log holds what this version can not read. Only another leadership changes that.
    Fails(DecodeError),
}

/// What is told while nothing can be committed.
const SHORT_OF_REPLICAS: GroupRefusal = GroupRefusal::NotAppended { code: ErrorCode::NotEnoughReplicas };

/// Decisions on their way into the log.
#[derive(Debug)]
struct Append {
    serial: Serial,
    /// None if all that is wanted is to know that this node still leads.
    records: Vec<KeyValue>,
    bytes: usize,
}

#[derive(Debug)]
struct Waiting {
    id: RequestId,
    /// What has to be committed first.
    after: Serial,
    has_changed: bool,
    result: Result<Response, GroupRefusal>,
}

/// The coordinator of one partition's groups.
#[derive(Debug)]
pub struct Coordinator {
    settings: GroupSettings,
    role: Role,
    has_enough_replicas: bool,
    /// The last leadership that was this node's.
    led: Option<LeaderEpoch>,
    groups: Groups,
    topics: Option<Arc<Topics>>,
    sessions: Sessions,
    /// Old offsets are looked for then.
    expires_at: Option<Time>,
    given: Serial,
    /// What was handed out and not all committed up to it, and whether it is itself.
    under_way: BTreeMap<Serial, bool>,
    queued: VecDeque<Append>,
    waiting: VecDeque<Waiting>,
}

impl Coordinator {
    /// Of a node that does not lead.
    pub fn new(settings: GroupSettings) -> Coordinator {
        Coordinator {
            groups: Groups::new(settings.clone(), Arc::default()),
            settings,
            role: Role::Follows,
            has_enough_replicas: true,
            led: None,
            topics: None,
            sessions: Sessions::default(),
            expires_at: None,
            given: Serial::default(),
            under_way: BTreeMap::new(),
            queued: VecDeque::new(),
            waiting: VecDeque::new(),
        }
    }

    /// The leadership in which this node decides, if it does.
    pub fn deciding(&self) -> Option<LeaderEpoch> {
        match self.role {
            Role::Decides(leader_epoch) => Some(leader_epoch),
            _ => None,
        }
    }

    /// Why this node can not decide though it leads: what it read from the log.
    pub fn failure(&self) -> Option<&DecodeError> {
        match &self.role {
            Role::Fails(error) => Some(error),
            _ => None,
        }
    }

    /// The groups, as of everything decided; to be told to nobody before that is committed.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Requests that wait for the log.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// When it wants to be handed the time next, if nothing else happens before.
    pub fn deadline(&self) -> Option<Time> {
        if !self.has_enough_replicas {
            return None;
        }
        self.sessions.deadline().into_iter().chain(self.expires_at).min()
    }

    /// Takes one input and appends what follows from it to `actions`.
    pub fn handle(&mut self, now: Now, input: Input, random: &mut dyn Random, actions: &mut Vec<Action>) {
        match input {
            Input::Leads(leader_epoch) => self.lead(leader_epoch, actions),
            Input::Loaded { load, records } => self.loaded(load, &records),
            Input::Unreadable { load, error } => {
                if self.role == Role::Loads(load) {
                    self.fail(error);
                }
            }
            Input::LoadEnd(load) => {
                if self.role == Role::Loads(load) {
                    self.role = Role::Loaded(load.leader_epoch);
                    self.begin(now);
                }
            }
            Input::Follows => {
                self.role = Role::Follows;
                self.has_enough_replicas = true;
                self.forget(actions);
            }
            Input::Asked { id, request } => self.ask(now, id, request, random, actions),
            Input::Committed(serial) => self.committed(serial, actions),
            Input::Failed(serial) => self.failed(serial, actions),
            Input::Refused { serial, code } => self.refused(serial, code, actions),
            Input::Replicas { are_enough } => self.follow_replicas(now, are_enough, actions),
            Input::Topics(topics) => self.follow_topics(now, topics),
            Input::TimePassed => {}
        }
        self.expire(now, actions);
        self.flush(actions);
    }

    fn lead(&mut self, leader_epoch: LeaderEpoch, actions: &mut Vec<Action>) {
        if self.led.is_some_and(|led| leader_epoch <= led) {
            return;
        }
        self.led = Some(leader_epoch);
        self.load(leader_epoch, actions);
    }

    fn load(&mut self, leader_epoch: LeaderEpoch, actions: &mut Vec<Action>) {
        self.forget(actions);
        let load = Load { leader_epoch, after: self.given };
        self.role = Role::Loads(load);
        actions.push(Action::Load(load));
    }

    /// Nobody knows what became of what was decided.
    fn forget(&mut self, actions: &mut Vec<Action>) {
        self.answer_all(&self.refusal(), actions);
        if !mutant::is_on(Mutant::GroupsFromTheLog) {
            self.groups.discard_pending();
        }
        self.sessions.clear();
        self.expires_at = None;
        self.under_way.clear();
        self.queued.clear();
    }

    /// Answers whoever waits that its change is not known to be made, or this if it has none.
    fn answer_all(&mut self, refusal: &GroupRefusal, actions: &mut Vec<Action>) {
        for waiting in self.waiting.drain(..) {
            let result = Err(if waiting.has_changed { GroupRefusal::Unknown } else { refusal.clone() });
            actions.push(Action::Answer { id: waiting.id, result });
        }
    }

    fn loaded(&mut self, load: Load, records: &[KeyValue]) {
        if self.role != Role::Loads(load) {
            return;
        }
        for (key, value) in records.iter().filter(|(key, _)| key != MARK_KEY) {
            match Record::decode(key, value.as_deref()) {
                Ok(record) => {
                    let Ok(()) = self.groups.apply(&record);
                }
                Err(error) => return self.fail(error),
            }
        }
    }

    /// Nothing is decided on a part of the log.
    fn fail(&mut self, error: DecodeError) {
        self.groups.discard_pending();
        self.role = Role::Fails(error);
    }

    /// Decides from here on, if everything is known that it takes. Every member has a whole session before it.
    fn begin(&mut self, now: Now) {
        let Role::Loaded(leader_epoch) = self.role else { return };
        let Some(topics) = self.topics.clone() else { return };
        self.role = Role::Decides(leader_epoch);
        self.expires_at = Some(now.time + limits::OFFSETS_EXPIRY_INTERVAL);
        self.resume(now, topics);
    }

    /// Decides with these topics from here on. Every member has a whole session before it.
    fn resume(&mut self, now: Now, topics: Arc<Topics>) {
        self.groups.set_topics(topics);
        self.refresh(now);
        self.sessions.clear();
        for id in self.groups.ids() {
            self.sessions.follow(now.time, id, self.groups.group(id));
        }
    }

    fn follow_topics(&mut self, now: Now, topics: Arc<Topics>) {
        let is_other = self.topics.as_ref() != Some(&topics);
        self.topics = Some(topics.clone());
        if self.deciding().is_none() {
            return self.begin(now);
        }
        if is_other && self.has_enough_replicas {
            self.groups.set_topics(topics);
            self.refresh(now);
        }
    }

    fn follow_replicas(&mut self, now: Now, are_enough: bool, actions: &mut Vec<Action>) {
        let were_enough = std::mem::replace(&mut self.has_enough_replicas, are_enough);
        if were_enough && !are_enough {
            // What is on its way is committed once they are enough again, or not: nobody waits for it.
            self.answer_all(&SHORT_OF_REPLICAS, actions);
        }
        if !were_enough && are_enough && self.deciding().is_some() {
            let topics = self.topics.clone().expect("it decides with topics");
            self.resume(now, topics);
        }
    }

    fn refresh(&mut self, now: Now) {
        let ids: Vec<Arc<str>> = self.groups.ids().cloned().collect();
        for id in ids {
            let records = self.groups.refresh(now.wall, &id);
            self.decided(now, &records);
        }
    }

    fn ask(
        &mut self,
        now: Now,
        id: RequestId,
        request: Request,
        random: &mut dyn Random,
        actions: &mut Vec<Action>,
    ) {
        if let Some(refusal) = self.refuses() {
            actions.push(Action::Answer { id, result: Err(refusal) });
            return;
        }
        let group = match &request {
            Request::Heartbeat(heartbeat) => Some(heartbeat.group.clone()),
            _ => None,
        };
        let (records, mut result) = match self.groups.decide(now.wall, random, request) {
            Ok(decision) => (decision.records, Ok(decision.response)),
            Err(refusal) => (Vec::new(), Err(refusal)),
        };
        self.decided(now, &records);
        if let Ok(response) = &mut result {
            self.add_times(now, group, response);
        }
        let is_told_unconfirmed = records.is_empty()
            && self.queued.is_empty()
            && self.under_way.is_empty()
            && mutant::is_on(Mutant::ConfirmBeforeAnswer);
        if is_told_unconfirmed || mutant::is_on(Mutant::AnswerWhenCommitted) {
            actions.push(Action::Answer { id, result });
            return;
        }
        // Whatever is not handed out yet serves to confirm that this node still leads.
        let after = self.next().serial;
        self.waiting.push_back(Waiting { id, after, has_changed: !records.is_empty(), result });
    }

    /// What is not in the log, and yet to be told.
    fn add_times(&mut self, now: Now, group: Option<Arc<str>>, response: &mut Response) {
        match response {
            Response::Heartbeat(answer) => {
                let group = group.expect("a heartbeat is of a group");
                self.sessions.hear(now.time, &group, &answer.member);
                answer.revoke_within = self.sessions.revoke_within(now.time, &group, &answer.member);
            }
            Response::Description(description) => describe_times(&self.sessions, now.time, description),
            _ => {}
        }
    }

    /// Puts records into the next append; sessions follow from them.
    fn decided(&mut self, now: Now, records: &[Record]) {
        let Some(first) = records.first() else { return };
        if records.iter().any(|record| !matches!(record, Record::Offset { .. })) {
            let id = first.group().clone();
            self.sessions.follow(now.time, &id, self.groups.group(&id));
        }
        if self.queued.back().is_some_and(|last| last.bytes >= limits::GROUP_APPEND_BYTES) {
            self.queue();
        }
        let next = self.next();
        for (key, value) in records.iter().map(Record::encode) {
            next.bytes += key.len() + value.as_ref().map_or(0, |value| value.len());
            next.records.push((key, value));
        }
    }

    /// The last append that is not handed out.
    fn next(&mut self) -> &mut Append {
        if self.queued.is_empty() {
            self.queue();
        }
        self.queued.back_mut().expect("there is one")
    }

    fn queue(&mut self) {
        self.given.0 += 1;
        self.queued.push_back(Append { serial: self.given, records: Vec::new(), bytes: 0 });
    }

    fn flush(&mut self, actions: &mut Vec<Action>) {
        let Some(leader_epoch) = self.deciding().filter(|_| self.has_enough_replicas) else { return };
        let appends_max = self.settings.appends_max.max(1);
        // What only asks whether this node leads waits until nothing is under way: others share the way then.
        let room = |next: &Append| if next.records.is_empty() { 1 } else { appends_max };
        while let Some(append) = self.queued.pop_front_if(|next| self.under_way.len() < room(next)) {
            let Append { serial, records, .. } = append;
            self.under_way.insert(serial, false);
            actions.push(if records.is_empty() {
                Action::Confirm { leader_epoch, serial }
            } else {
                Action::Append { leader_epoch, serial, records }
            });
        }
    }

    fn committed(&mut self, serial: Serial, actions: &mut Vec<Action>) {
        let Some(is_committed) = self.under_way.get_mut(&serial) else { return };
        *is_committed = true;
        while let Some(first) = self.under_way.first_entry().filter(|first| *first.get()) {
            let (serial, _) = first.remove_entry();
            while let Some(waiting) = self.waiting.pop_front_if(|waiting| waiting.after <= serial) {
                actions.push(Action::Answer { id: waiting.id, result: waiting.result });
            }
        }
    }

    fn failed(&mut self, serial: Serial, actions: &mut Vec<Action>) {
        if let Some(leader_epoch) = self.deciding()
            && self.under_way.contains_key(&serial)
        {
            self.load(leader_epoch, actions);
        }
    }

    /// None of the appends from here on is in the log: what was decided in them was not done.
    fn refused(&mut self, serial: Serial, code: ErrorCode, actions: &mut Vec<Action>) {
        if let Some(leader_epoch) = self.deciding()
            && self.under_way.contains_key(&serial)
        {
            let first = self.waiting.partition_point(|waiting| waiting.after < serial);
            let answer = |waiting: Waiting| Action::Answer {
                id: waiting.id,
                result: Err(GroupRefusal::NotAppended { code }),
            };
            let not_done = self.waiting.split_off(first);
            self.load(leader_epoch, actions);
            actions.extend(not_done.into_iter().map(answer));
        }
    }

    fn expire(&mut self, now: Now, actions: &mut Vec<Action>) {
        if !self.has_enough_replicas {
            return;
        }
        while let Some((group, members)) = self.sessions.overdue(now.time) {
            let records = self.groups.remove_overdue(now.wall, &group, members.keys());
            assert!(!records.is_empty(), "a member that is watched is there");
            self.decided(now, &records);
            let removed = |(member, why)| Action::Removed { group: group.clone(), member, why };
            actions.extend(members.into_iter().map(removed));
        }
        if self.expires_at.is_some_and(|at| at <= now.time) {
            self.expires_at = Some(now.time + limits::OFFSETS_EXPIRY_INTERVAL);
            let ids: Vec<Arc<str>> = self.groups.ids().cloned().collect();
            for id in ids {
                let records = self.groups.expire_offsets(now.wall, &id);
                self.decided(now, &records);
            }
        }
    }

    /// Why nothing is decided at the moment, if so.
    fn refuses(&self) -> Option<GroupRefusal> {
        if self.deciding().is_none() || !self.has_enough_replicas {
            return Some(self.refusal());
        }
        let is_full = self.queued.len() >= limits::GROUP_QUEUED_APPENDS_MAX
            || self.waiting.len() >= limits::GROUP_REQUESTS_MAX;
        is_full.then_some(GroupRefusal::Busy)
    }

    fn refusal(&self) -> GroupRefusal {
        match &self.role {
            Role::Follows => GroupRefusal::NotCoordinator,
            Role::Fails(error) => GroupRefusal::Unreadable(error.clone()),
            _ if !self.has_enough_replicas => SHORT_OF_REPLICAS,
            Role::Loads(_) | Role::Loaded(_) | Role::Decides(_) => GroupRefusal::Loading,
        }
    }
}

fn describe_times(sessions: &Sessions, now: Time, description: &mut GroupDescription) {
    let group = &description.summary.group;
    description.rebalancing_for = sessions.rebalancing_for(now, group);
    for member in &mut description.members {
        member.silent_for = sessions.silent_for(now, group, &member.member);
        if let MemberState::Revoking { revoking_for, .. } = &mut member.state {
            *revoking_for = sessions.revoking_for(now, group, &member.member);
        }
    }
}
