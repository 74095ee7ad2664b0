//! What a member of a group says and does, as plain code: answers and the time go in, heartbeats and changes of what is
//! read come out. The protocol is KIP-848's: the coordinator assigns; a member gives up what it is no longer assigned
//! and says so, and takes what is new. Others go on meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quire_protocol::rpc::control::{GroupHeartbeatRequest, GroupHeartbeatResponse, TopicPartitions};
use quire_protocol::{ErrorCode, PartitionIndex, TopicId, TopicPartition, limits};

use crate::error::Error;

/// An epoch with which a member leaves.
const LEAVES: i32 = -1;
/// The same for one that has an instance id and comes back.
const LEAVES_FOR_A_WHILE: i32 = -2;

/// How much longer than a session an instance id is waited for that another member has.
const INSTANCE_TIME_SPARE: Duration = Duration::from_secs(2);

/// What a member is.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub group: String,
    pub topics: Vec<String>,
    pub assignor: String,
    pub instance_id: String,
    pub rack: String,
    pub client_name: String,
    /// Silent for longer, it is taken for dead by the coordinator; and takes itself for fenced.
    pub session_timeout: Duration,
    /// Most time for giving up partitions.
    pub rebalance_timeout: Duration,
}

impl Settings {
    /// What the member says of itself for people to read.
    pub(super) fn texts(&self) -> [(&'static str, &str); 3] {
        [("instance id", &self.instance_id), ("rack", &self.rack), ("client name", &self.client_name)]
    }
}

/// Partitions, with the names of their topics.
pub(crate) type Partitions = BTreeMap<TopicPartition, Arc<str>>;

/// Counts how often it has been fenced: what was begun in an earlier life is void.
pub(super) type Life = u64;

/// Something happened.
#[derive(Debug)]
pub(super) enum Input {
    /// The heartbeat under way was answered, or was not.
    Answered(Result<GroupHeartbeatResponse, Error>),
    /// These are read no longer, and what was processed of them is committed.
    Released(Life, BTreeSet<TopicPartition>),
    /// These are read from now on.
    Taken(Life, BTreeSet<TopicPartition>),
    /// These could not be taken: to be tried again.
    NotTaken(Life, BTreeSet<TopicPartition>),
    TimePassed,
    /// Nobody takes records any more, for longer than is bearable: it has left.
    Abandoned,
    /// Somebody does again.
    Returned,
}

/// Something is to be done.
#[derive(Debug, PartialEq)]
pub(super) enum Action {
    /// Ask the coordinator. One at a time.
    Heartbeat(Box<GroupHeartbeatRequest>),
    /// Stop reading these, and commit what was processed.
    Release(Life, BTreeSet<TopicPartition>),
    /// Begin to read these, from where the group has committed.
    Take(Life, Partitions),
    /// All of these belong to others by now: stop reading, commit nothing.
    Lose(BTreeSet<TopicPartition>),
    /// It can not be a member.
    Fail(Error),
}

/// One member.
#[derive(Debug)]
pub(super) struct Membership {
    settings: Settings,
    member: String,
    /// As last told; 0 before it has joined.
    epoch: i32,
    heartbeat_interval: Duration,
    /// When the heartbeat under way was sent, and in which life.
    asked: Option<(Instant, Life)>,
    /// When the last heartbeat was sent that was answered.
    heard_of_at: Option<Instant>,
    due: Instant,
    failures: u32,
    /// Whether the coordinator may count it among the members.
    may_be_member: bool,
    /// Since when another member is said to have its instance id.
    instance_taken_since: Option<Instant>,
    /// Whether the coordinator knows what it wants and what it has.
    is_known: bool,
    has_changed: bool,
    assigned: Partitions,
    /// Read, or about to be given up.
    owned: BTreeSet<TopicPartition>,
    releasing: BTreeSet<TopicPartition>,
    /// When it is fenced if it has not given them up.
    release_by: Option<Instant>,
    /// The revision of the assignment.
    seen: Option<u32>,
    session_timeout: Duration,
    /// Being prepared. They count as owned: reading them may begin at any time.
    taking: BTreeSet<TopicPartition>,
    life: Life,
    /// It has left, and does not join before it is told to.
    is_away: bool,
    has_failed: bool,
}

impl Membership {
    /// One that is about to join, under a member id that nobody else has.
    pub(super) fn new(now: Instant, settings: Settings, member: String) -> Membership {
        Membership {
            settings,
            member,
            epoch: 0,
            heartbeat_interval: Duration::from_secs(3),
            asked: None,
            heard_of_at: None,
            due: now,
            failures: 0,
            may_be_member: false,
            instance_taken_since: None,
            is_known: false,
            has_changed: false,
            assigned: Partitions::new(),
            owned: BTreeSet::new(),
            releasing: BTreeSet::new(),
            release_by: None,
            seen: None,
            session_timeout: Duration::ZERO,
            taking: BTreeSet::new(),
            life: 0,
            is_away: false,
            has_failed: false,
        }
    }

    pub(super) fn member(&self) -> &str {
        &self.member
    }

    /// The one that it is in.
    pub(super) fn life(&self) -> Life {
        self.life
    }

    /// The epoch to commit in; `None` while it is no member.
    pub(super) fn epoch(&self) -> Option<i32> {
        (self.epoch > 0).then_some(self.epoch)
    }

    /// Whether it wants to be a member, and is none yet.
    pub(super) fn is_joining(&self) -> bool {
        self.epoch == 0 && !self.is_away && !self.has_failed
    }

    /// Whether the coordinator knows it, and it has everything that it is assigned and nothing else.
    #[cfg(test)]
    pub(super) fn is_settled(&self) -> bool {
        self.epoch > 0
            && self.releasing.is_empty()
            && self.taking.is_empty()
            && self.owned.iter().eq(self.assigned.keys())
    }

    /// When something is to be done, if nothing happens before.
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.has_failed || self.is_away {
            return None;
        }
        let due = self.asked.is_none().then_some(self.due);
        [due, self.session_end(), self.release_by].into_iter().flatten().min()
    }

    /// When it has to take itself for dead: the coordinator has heard nothing since at least then.
    fn session_end(&self) -> Option<Instant> {
        self.heard_of_at.filter(|_| self.epoch > 0).map(|at| at + self.session_timeout)
    }

    pub(super) fn handle(&mut self, now: Instant, input: Input) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Answered(Ok(answer)) => self.answered(now, answer, &mut actions),
            Input::Answered(Err(error)) => self.refused(now, error, &mut actions),
            Input::Released(life, partitions) if life == self.life => {
                for id in &partitions {
                    self.owned.remove(id);
                    self.releasing.remove(id);
                }
                self.has_changed = true;
            }
            Input::Taken(life, partitions) if life == self.life => {
                self.taking.retain(|id| !partitions.contains(id));
                self.owned.extend(partitions);
                self.reconcile(&mut actions);
            }
            Input::NotTaken(life, partitions) if life == self.life => {
                self.taking.retain(|id| !partitions.contains(id));
                self.has_changed = true;
                self.reconcile(&mut actions);
            }
            Input::Released(..) | Input::Taken(..) | Input::NotTaken(..) | Input::TimePassed => {}
            Input::Abandoned => {
                self.lose(&mut actions);
                self.asked = None;
                self.may_be_member = false;
                self.is_away = true;
            }
            Input::Returned => {
                self.is_away = false;
                self.due = now;
            }
        }
        if self.releasing.is_empty() {
            self.release_by = None;
        }
        if [self.session_end(), self.release_by].into_iter().flatten().any(|end| end <= now) {
            self.lose(&mut actions);
            self.due = now;
        }
        self.heartbeat(now, &mut actions);
        actions
    }

    /// The request with which it leaves; `None` if the coordinator does not count it among the members. A join that was sent
    /// and not answered may have made it one.
    pub(super) fn leaving(&self) -> Option<GroupHeartbeatRequest> {
        let epoch = if self.settings.instance_id.is_empty() { LEAVES } else { LEAVES_FOR_A_WHILE };
        self.may_be_member.then(|| GroupHeartbeatRequest { member_epoch: epoch, ..self.request() })
    }

    /// When the heartbeat was sent that is answered now. `None` if it says nothing any more: it was sent in an earlier life,
    /// and of what that had it has lost everything. Joining is what comes next.
    fn take_asked(&mut self) -> Option<Instant> {
        self.asked.take().filter(|(_, life)| *life == self.life).map(|(at, _)| at)
    }

    fn answered(&mut self, now: Instant, answer: GroupHeartbeatResponse, actions: &mut Vec<Action>) {
        let Some(asked_at) = self.take_asked() else { return };
        self.heard_of_at = Some(asked_at);
        self.failures = 0;
        self.instance_taken_since = None;
        self.is_known = true;
        self.epoch = answer.member_epoch;
        self.seen = Some(answer.revision);
        self.session_timeout = match answer.session_timeout_ms {
            0 => self.settings.session_timeout,
            millis => Duration::from_millis(millis.into()),
        };
        if answer.heartbeat_interval_ms > 0 {
            self.heartbeat_interval = Duration::from_millis(answer.heartbeat_interval_ms.into());
        }
        self.due = now + self.heartbeat_interval;
        if answer.has_assignment {
            match read(&answer.assignment) {
                Ok(assigned) => self.assigned = assigned,
                Err(error) => {
                    self.has_failed = true;
                    actions.push(Action::Fail(error));
                    return;
                }
            }
            self.reconcile(actions);
        }
        self.release_by = match answer.revoke_within_ms {
            Some(millis) if !self.releasing.is_empty() => {
                Some(asked_at + Duration::from_millis(millis.into()))
            }
            _ => None,
        };
    }

    /// Whether it may commit this partition: it reads it, or is about to give it up.
    pub(super) fn owns(&self, id: TopicPartition) -> bool {
        self.owned.contains(&id)
    }

    /// What it has becomes what it is assigned.
    fn reconcile(&mut self, actions: &mut Vec<Action>) {
        let surplus: BTreeSet<_> = (self.owned.iter())
            .filter(|id| !self.assigned.contains_key(id) && !self.releasing.contains(id))
            .copied()
            .collect();
        if !surplus.is_empty() {
            self.releasing.extend(&surplus);
            actions.push(Action::Release(self.life, surplus));
        }
        let missing: Partitions = (self.assigned.iter())
            .filter(|(id, _)| !self.owned.contains(id) && !self.taking.contains(id))
            .map(|(id, name)| (*id, Arc::clone(name)))
            .collect();
        if !missing.is_empty() {
            self.taking.extend(missing.keys());
            actions.push(Action::Take(self.life, missing));
        }
    }

    fn refused(&mut self, now: Instant, error: Error, actions: &mut Vec<Action>) {
        if self.take_asked().is_none() {
            return;
        }
        // Whatever was told may not have arrived.
        self.is_known = false;
        match error.code() {
            Some(ErrorCode::FencedMemberEpoch | ErrorCode::UnknownMember) => {
                self.may_be_member = false;
                self.lose(actions);
                self.due = now;
            }
            code if error.is_retriable() || self.waits_for_instance(now, code) => {
                self.failures = self.failures.saturating_add(1);
                let pause = Duration::from_millis(50) * (1 << self.failures.min(5));
                self.due = now + pause.min(self.heartbeat_interval);
            }
            code => {
                // A right that was taken away takes nobody out of the group: it may leave without.
                let is_member = self.epoch > 0 && code == Some(ErrorCode::NotAuthorized);
                self.may_be_member &= code.is_none() || is_member;
                self.lose(actions);
                self.has_failed = true;
                actions.push(Action::Fail(error));
            }
        }
    }

    /// Another member has its instance id. That may be itself before a crash, which is in the group until its session is over;
    /// another one that lives stays longer.
    fn waits_for_instance(&mut self, now: Instant, code: Option<ErrorCode>) -> bool {
        if code != Some(ErrorCode::InstanceInUse) {
            return false;
        }
        let since = *self.instance_taken_since.get_or_insert(now);
        let session =
            self.settings.session_timeout.clamp(limits::GROUP_SESSION_MIN, limits::GROUP_SESSION_MAX);
        now < since + session + INSTANCE_TIME_SPARE
    }

    fn lose(&mut self, actions: &mut Vec<Action>) {
        let mut lost = std::mem::take(&mut self.owned);
        lost.append(&mut std::mem::take(&mut self.taking));
        self.releasing.clear();
        self.release_by = None;
        self.seen = None;
        self.assigned.clear();
        self.epoch = 0;
        self.is_known = false;
        self.heard_of_at = None;
        self.life += 1;
        if !lost.is_empty() {
            actions.push(Action::Lose(lost));
        }
    }

    fn heartbeat(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let is_due = self.due <= now || self.has_changed && self.failures == 0;
        if self.has_failed || self.is_away || self.asked.is_some() || !is_due {
            return;
        }
        let mut request = self.request();
        if !self.is_known {
            request.has_subscription = true;
            request.topics = self.settings.topics.clone();
            request.assignor = self.settings.assignor.clone();
        }
        let held: BTreeSet<_> = self.owned.union(&self.taking).copied().collect();
        if !self.is_known || self.has_changed || !held.iter().eq(self.assigned.keys()) {
            request.has_owned = true;
            request.owned = write(held);
        }
        self.has_changed = false;
        self.may_be_member = true;
        self.asked = Some((now, self.life));
        actions.push(Action::Heartbeat(Box::new(request)));
    }

    fn request(&self) -> GroupHeartbeatRequest {
        let settings = &self.settings;
        GroupHeartbeatRequest {
            group: settings.group.clone(),
            member: self.member.clone(),
            member_epoch: self.epoch,
            instance_id: settings.instance_id.clone(),
            rack: settings.rack.clone(),
            client_name: settings.client_name.clone(),
            seen_revision: self.seen,
            rebalance_timeout_ms: settings.rebalance_timeout.as_millis() as u32,
            session_timeout_ms: settings.session_timeout.as_millis() as u32,
            ..GroupHeartbeatRequest::default()
        }
    }
}

/// Partitions as they are told.
pub(crate) fn write(ids: impl IntoIterator<Item = TopicPartition>) -> Vec<TopicPartitions> {
    let mut by_topic: BTreeMap<TopicId, Vec<u32>> = BTreeMap::new();
    for id in ids {
        by_topic.entry(id.topic).or_default().push(id.partition.0);
    }
    let entry = |(topic, partitions): (TopicId, Vec<u32>)| TopicPartitions {
        topic_id: topic.as_bytes().to_vec(),
        partitions,
        topic: String::new(),
    };
    by_topic.into_iter().map(entry).collect()
}

/// Partitions as they were told.
pub(crate) fn read(told: &[TopicPartitions]) -> Result<Partitions, Error> {
    let mut partitions = Partitions::new();
    for TopicPartitions { topic_id, partitions: indexes, topic } in told {
        let Some(id) = TopicId::from_slice(topic_id) else {
            let why = "it assigned a topic whose id has not 16 bytes".to_owned();
            return Err(Error::Protocol { address: "the coordinator".into(), why });
        };
        let name: Arc<str> = topic.as_str().into();
        for index in indexes {
            let id = TopicPartition { topic: id, partition: PartitionIndex(*index) };
            partitions.insert(id, Arc::clone(&name));
        }
    }
    Ok(partitions)
}

#[cfg(test)]
pub(super) mod tests;
