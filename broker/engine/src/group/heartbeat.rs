//! Decides about members: they join, are there, leave, and a new generation follows from it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use quire_protocol::group_name::{self, control_character};
use quire_protocol::{Timestamp, limits};

use super::assignment::assign;
use super::records::{Current, Generation, GroupRecord, MemberRecord, Protocol, Record};
use super::request::{Heartbeat, HeartbeatAnswer, Response};
use super::{Change, GroupRefusal, Groups};
use crate::Random;
use crate::mutant::{self, Mutant};

type Decided = Result<(Vec<Record>, Response), GroupRefusal>;

impl Groups {
    pub(super) fn heartbeat(
        &mut self,
        now: Timestamp,
        random: &mut dyn Random,
        mut request: Heartbeat,
    ) -> Decided {
        check(&request)?;
        match request.epoch {
            Generation::JOINS => {
                if request.member.is_empty() {
                    request.member = format!("{:032x}", u128::from_be_bytes(random.next_id())).into();
                }
                self.join(now, request)
            }
            Generation::LEAVES => self.leave(now, request),
            Generation::PAUSES => self.pause(now, request),
            _ => self.beat(now, request),
        }
    }

    fn join(&mut self, now: Timestamp, request: Heartbeat) -> Decided {
        let Some(topics) = subscription(&request).filter(|topics| !topics.is_empty()) else {
            return Err(GroupRefusal::Invalid("a member that joins names the topics that it subscribes to"));
        };
        let predecessor = self.check_join(&request, &topics)?;
        let record = self.member_record(&request, topics);
        let known = predecessor.as_ref().unwrap_or(&request.member);
        self.check_grows(&request.group, known, &record)?;
        let mut change = Change::of(self, &request.group, now);
        let before = match predecessor {
            Some(predecessor) => change.replace_member(&predecessor, &request.member),
            None => change.state().members.get(&request.member).cloned(),
        };
        let assigns_anew = before.as_ref().is_none_or(|before| before.is_assigned_unlike(&record));
        change.put_member(&request.member, before, record);
        if assigns_anew {
            change.begin_generation();
        }
        // It has lost what it had, but may have been given more since: only what it says next shows what it has.
        change.reconcile(&request.member, false);
        let answer = change.answer(&request, true);
        Ok((change.finish(), answer))
    }

    /// The static member that it takes the place of, if it does.
    fn check_join(
        &self,
        request: &Heartbeat,
        topics: &BTreeSet<Arc<str>>,
    ) -> Result<Option<Arc<str>>, GroupRefusal> {
        let Some(state) = self.groups.get(&request.group) else {
            if self.groups.len() >= limits::GROUPS_MAX {
                return Err(too_many("groups", self.groups.len() + 1, limits::GROUPS_MAX));
            }
            self.check_partitions(request, topics)?;
            return Ok(None);
        };
        self.check_partitions(request, topics)?;
        self.check_principal(&request.group, &request.member, &request.principal)?;
        let holder = request.instance.as_ref().and_then(|instance| state.instances.get(instance));
        let predecessor = holder.filter(|holder| **holder != request.member);
        if let (Some(instance), Some(member)) = (&request.instance, predecessor)
            && (state.current(member).epoch != Generation::PAUSES
                || !state.members[member].is_spoken_for_by(&request.principal))
        {
            return Err(GroupRefusal::InstanceInUse { instance: instance.clone(), member: member.clone() });
        }
        let is_more = predecessor.is_none() && !state.members.contains_key(&request.member);
        if is_more && state.members.len() >= self.settings.members_max {
            return Err(too_many("members", state.members.len() + 1, self.settings.members_max));
        }
        Ok(predecessor.cloned())
    }

    /// Whoever speaks for a member is who it joined as.
    pub(super) fn check_principal(
        &self,
        group: &Arc<str>,
        member: &Arc<str>,
        principal: &str,
    ) -> Result<(), GroupRefusal> {
        let known = self.groups.get(group).and_then(|state| state.members.get(member));
        if known.is_some_and(|known| !known.is_spoken_for_by(principal)) {
            return Err(GroupRefusal::NotItsPrincipal { group: group.clone(), member: member.clone() });
        }
        Ok(())
    }

    /// What a member says of itself has to fit in the place of what is known of it.
    fn check_grows(
        &self,
        group: &Arc<str>,
        member: &Arc<str>,
        record: &MemberRecord,
    ) -> Result<(), GroupRefusal> {
        let known = self.groups.get(group).and_then(|state| state.members.get(member));
        let known = known.map_or(0, MemberRecord::stored_bytes);
        self.check_room(record.stored_bytes().saturating_sub(known))
    }

    /// A group's assignment has to fit what is stored and sent.
    fn check_partitions(&self, request: &Heartbeat, topics: &BTreeSet<Arc<str>>) -> Result<(), GroupRefusal> {
        let members = self.groups.get(&request.group).map(|state| &state.members);
        let others = members.into_iter().flatten().filter(|(member, _)| **member != request.member);
        let names: BTreeSet<&Arc<str>> = others.flat_map(|(_, other)| &other.topics).chain(topics).collect();
        let known = names.into_iter().filter_map(|name| self.topics.named(name));
        let count = known.map(|topic| topic.partitions as usize).sum();
        if count > limits::GROUP_PARTITIONS_MAX {
            return Err(too_many("partitions of one group", count, limits::GROUP_PARTITIONS_MAX));
        }
        Ok(())
    }

    fn member_record(&self, request: &Heartbeat, topics: BTreeSet<Arc<str>>) -> MemberRecord {
        let session = request.session.unwrap_or(self.settings.session);
        let session = whole(session.clamp(limits::GROUP_SESSION_MIN, limits::GROUP_SESSION_MAX));
        let rebalance = request.rebalance.unwrap_or(self.settings.rebalance);
        MemberRecord {
            instance: request.instance.clone(),
            rack: request.rack.clone(),
            client: request.client.clone(),
            host: request.host.clone(),
            topics,
            assignor: request.assignor,
            session,
            // Whoever hears nothing more takes itself for gone after a session, and no earlier.
            rebalance: whole(rebalance.clamp(session, limits::GROUP_REBALANCE_MAX)),
            principal: Some(request.principal.clone()),
        }
    }

    fn beat(&mut self, now: Timestamp, request: Heartbeat) -> Decided {
        let (before, current) = self.member(&request.group, &request.member)?;
        let (before, current) = (before.clone(), current.clone());
        self.check_principal(&request.group, &request.member, &request.principal)?;
        check_epoch(&request, &current)?;
        let record = subscription(&request).map(|topics| MemberRecord {
            topics,
            assignor: request.assignor,
            principal: Some(request.principal.clone()),
            ..before.clone()
        });
        if let Some(record) = &record {
            self.check_partitions(&request, &record.topics)?;
            self.check_grows(&request.group, &request.member, record)?;
        }
        let mut change = Change::of(self, &request.group, now);
        if let Some(record) = record {
            let assigns_anew = before.is_assigned_unlike(&record);
            change.put_member(&request.member, Some(before), record);
            if assigns_anew {
                change.begin_generation();
            }
        }
        change.reconcile(&request.member, current.is_given_up(request.owned.as_ref(), request.seen));
        let after = change.state().current(&request.member);
        let knows_assigned = after.revision == current.revision
            && after.epoch == request.epoch
            && request.seen.is_none_or(|seen| seen == after.revision)
            && request.owned.as_ref().is_none_or(|owned| *owned == after.assigned);
        let answer = change.answer(&request, !knows_assigned);
        Ok((change.finish(), answer))
    }

    fn leave(&mut self, now: Timestamp, request: Heartbeat) -> Decided {
        self.member(&request.group, &request.member)?;
        self.check_principal(&request.group, &request.member, &request.principal)?;
        let mut change = Change::of(self, &request.group, now);
        change.remove_member(&request.member);
        change.begin_generation();
        Ok((change.finish(), Response::Left))
    }

    /// A static member leaves, and its place is kept: nobody gets what is to be its own, until its session is over.
    fn pause(&mut self, now: Timestamp, request: Heartbeat) -> Decided {
        let (record, current) = self.member(&request.group, &request.member)?;
        self.check_principal(&request.group, &request.member, &request.principal)?;
        if record.instance.is_none() {
            return Err(GroupRefusal::Invalid("only a member with an instance id leaves to come back"));
        }
        let away = Current {
            epoch: Generation::PAUSES,
            revision: current.revision.wrapping_add(1),
            ..Current::default()
        };
        let mut change = Change::of(self, &request.group, now);
        change.put_current(&request.member, Some(away));
        Ok((change.finish(), Response::Left))
    }

    /// A member of a group, and what it has.
    pub(super) fn member(
        &self,
        group: &Arc<str>,
        member: &Arc<str>,
    ) -> Result<(&MemberRecord, &Current), GroupRefusal> {
        let state = self.groups.get(group);
        let known = state.and_then(|state| Some((state.members.get(member)?, state.current(member))));
        known.ok_or_else(|| GroupRefusal::UnknownMember { group: group.clone(), member: member.clone() })
    }
}

impl MemberRecord {
    /// Of one that joined before this was kept nobody knows.
    fn is_spoken_for_by(&self, principal: &str) -> bool {
        self.principal.as_deref().is_none_or(|known| known == principal)
    }

    /// Whether another assignment may follow from what has changed.
    fn is_assigned_unlike(&self, other: &MemberRecord) -> bool {
        self.topics != other.topics
            || self.assignor != other.assignor
            || self.rack != other.rack
            || self.instance != other.instance
    }
}

impl Change<'_> {
    fn put_member(&mut self, member: &Arc<str>, before: Option<MemberRecord>, record: MemberRecord) {
        if before.as_ref() != Some(&record) || !self.state().members.contains_key(member) {
            let (group, member) = (self.id.clone(), member.clone());
            self.add(Record::Member { group, member, value: Some(record) });
        }
    }

    fn put_current(&mut self, member: &Arc<str>, value: Option<Current>) {
        let (group, member) = (self.id.clone(), member.clone());
        self.add(Record::Current { group, member, value });
    }

    /// Puts another member in a static member's place: what was to be the one's is to be the other's.
    fn replace_member(&mut self, before: &Arc<str>, after: &Arc<str>) -> Option<MemberRecord> {
        let state = self.state();
        let (record, target) = (state.members.get(before).cloned(), state.target(before).clone());
        let is_new = !state.members.contains_key(after);
        self.remove_member(before);
        if !is_new {
            return None;
        }
        let (group, member) = (self.id.clone(), after.clone());
        self.add(Record::Target { group, member, value: Some(target) });
        record
    }

    /// Removes a member; what it had is free from here on. A new generation is to follow.
    pub(super) fn remove_member(&mut self, member: &Arc<str>) {
        let (group, member) = (self.id.clone(), member.clone());
        self.add(Record::Current { group: group.clone(), member: member.clone(), value: None });
        self.add(Record::Target { group: group.clone(), member: member.clone(), value: None });
        self.add(Record::Member { group, member, value: None });
    }

    /// What the log may hold of members that are not there. Nothing, unless a broker wrote half a change.
    pub(super) fn drop_orphans(&mut self) {
        let state = self.state();
        let known = state.targets.keys().chain(state.currents.keys());
        let orphans: BTreeSet<Arc<str>> =
            known.filter(|member| !state.members.contains_key(*member)).cloned().collect();
        for member in orphans {
            self.remove_member(&member);
        }
    }

    /// What contradicts what the log says later: members that have what was another's since, or that are ahead of the group.
    ///
    /// A replica that was away for longer than tombstones are kept has records of members that are gone. Says whether there
    /// were any; a new generation is to follow.
    pub(super) fn drop_contradicted(&mut self) -> bool {
        let state = self.state();
        let is_contradicted = |(member, current): (&Arc<str>, &Current)| {
            current.epoch > state.generation()
                || current.held().any(|partition| state.owners.get(partition) != Some(member))
        };
        let members: Vec<Arc<str>> = state
            .currents
            .iter()
            .filter(|current| is_contradicted(*current))
            .map(|(member, _)| member.clone())
            .collect();
        for member in &members {
            self.remove_member(member);
        }
        !members.is_empty()
    }

    /// Assigns anew, in the next generation.
    pub(super) fn begin_generation(&mut self) {
        let state = self.state();
        let record = state.record.as_ref();
        let next = GroupRecord {
            generation: state.generation().next(),
            protocol: Protocol::Native,
            assignor: state.preferred_assignor(),
            created_at: record.map_or(self.now, |record| record.created_at),
            empty_since: state
                .members
                .is_empty()
                .then(|| record.and_then(|record| record.empty_since).unwrap_or(self.now)),
        };
        let topics = &self.groups.topics;
        let mut targets = assign(next.assignor, &state.subscribers(topics), topics, &state.targets);
        targets.retain(|member, target| state.targets.get(member) != Some(target));
        let group = self.id.clone();
        self.add(Record::Group { group: group.clone(), value: Some(next) });
        for (member, target) in targets {
            self.add(Record::Target { group: group.clone(), member, value: Some(target) });
        }
    }

    /// Takes a member a step towards what it is to have.
    fn reconcile(&mut self, member: &Arc<str>, has_given_up: bool) {
        let state = self.state();
        let is_free = |partition: &_| {
            let owner = state.owners.get(partition);
            owner.is_none_or(|owner| owner == member) || mutant::is_on(Mutant::RevokeBeforeAssign)
        };
        let current = state.current(member);
        let next = current.towards(state.target(member), state.generation(), has_given_up, is_free);
        if next != *current {
            self.put_current(member, Some(next));
        }
    }

    fn answer(&self, request: &Heartbeat, tells_assignment: bool) -> Response {
        let state = self.state();
        let current = state.current(&request.member);
        let session = state.members.get(&request.member).map_or(Duration::ZERO, |member| member.session);
        let calm = self.groups.settings.heartbeat_interval.min(session / 3);
        let is_stable = self.groups.is_stable(&self.id);
        Response::Heartbeat(HeartbeatAnswer {
            member: request.member.clone(),
            epoch: current.epoch,
            revision: current.revision,
            assignment: tells_assignment.then(|| current.assigned.clone()),
            revoke_within: None,
            session,
            interval: if is_stable { calm } else { calm.min(limits::GROUP_HEARTBEAT_INTERVAL_MIN) },
        })
    }
}

/// A member whose last answer was lost says so by what it owns: nothing but what it was told.
fn check_epoch(request: &Heartbeat, current: &Current) -> Result<(), GroupRefusal> {
    let is_told_again = request.epoch == current.previous
        && request.owned.as_ref().is_some_and(|owned| owned.is_subset(&current.assigned));
    if request.epoch == current.epoch || is_told_again {
        return Ok(());
    }
    Err(GroupRefusal::FencedMemberEpoch {
        member: request.member.clone(),
        have: current.epoch,
        given: request.epoch,
    })
}

fn check(request: &Heartbeat) -> Result<(), GroupRefusal> {
    group_name::check(&request.group)?;
    check_text("member id", &request.member, limits::GROUP_MEMBER_ID_BYTES_MAX)?;
    for (what, text) in [("instance id", &request.instance), ("rack", &request.rack)] {
        let text = text.as_deref().unwrap_or("none");
        check_text(what, text, limits::GROUP_TEXT_BYTES_MAX)?;
        if text.is_empty() {
            return Err(GroupRefusal::Invalid("an instance id or a rack, if given, is not empty"));
        }
    }
    check_text("client name", &request.client, limits::GROUP_TEXT_BYTES_MAX)?;
    check_text("host", &request.host, limits::GROUP_TEXT_BYTES_MAX)?;
    check_text("principal", &request.principal, limits::PRINCIPAL_BYTES_MAX)?;
    if request.epoch < Generation::PAUSES {
        return Err(GroupRefusal::Invalid("a member's epoch is at least -2"));
    }
    let topics = request.topics.as_deref().unwrap_or_default();
    if topics.len() > limits::GROUP_TOPICS_MAX {
        return Err(too_many("topics of one member", topics.len(), limits::GROUP_TOPICS_MAX));
    }
    topics.iter().try_for_each(|topic| check_text("topic's name", topic, limits::TOPIC_NAME_BYTES_MAX))
}

/// What strangers say of themselves is shown to people: it is not too long, and breaks no line.
fn check_text(what: &'static str, text: &str, max: usize) -> Result<(), GroupRefusal> {
    if text.len() > max {
        return Err(GroupRefusal::TooLong { what, given: text.len(), max });
    }
    match control_character(text) {
        Some(control) => Err(GroupRefusal::ControlCharacter { what, control }),
        None => Ok(()),
    }
}

pub(super) fn too_many(what: &'static str, given: usize, max: usize) -> GroupRefusal {
    GroupRefusal::TooMany { what, given, max }
}

fn subscription(request: &Heartbeat) -> Option<BTreeSet<Arc<str>>> {
    request.topics.as_ref().map(|topics| topics.iter().cloned().collect())
}

/// As it is stored.
fn whole(duration: Duration) -> Duration {
    Duration::from_millis(duration.as_millis() as u64)
}
