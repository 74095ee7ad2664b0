//! Decides about offsets: what is committed, fetched, reset, and forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use quire_protocol::{Offset, Timestamp, TopicPartition, group_name, limits};

use super::assignment::Assignor;
use super::heartbeat::too_many;
use super::records::{Committed, Generation, GroupRecord, Protocol, Record};
use super::request::{Asker, Commit, CommitOutcome, FetchOffsets, OffsetToCommit, ResetOffsets, Response};
use super::{Change, GroupRefusal, Groups};
use crate::mutant::{self, Mutant};

impl Groups {
    pub(super) fn commit(
        &mut self,
        now: Timestamp,
        request: Commit,
    ) -> Result<(Vec<Record>, Response), GroupRefusal> {
        group_name::check(&request.group)?;
        check_count(request.offsets.len())?;
        match &request.asker {
            Some(asker) => self.check_asker(&request.group, asker)?,
            None => self.check_vacant(&request.group)?,
        }
        let member = request.asker.as_ref().map(|asker| &asker.member);
        let mut change = Change::of(self, &request.group, now);
        let outcomes =
            request.offsets.iter().map(|offset| (offset.partition, change.commit_one(member, offset)));
        let response = Response::Commit(outcomes.collect());
        Ok((change.finish(), response))
    }

    pub(super) fn fetch_offsets(&self, request: &FetchOffsets) -> Response {
        let Some(state) = self.groups.get(&request.group) else { return Response::Offsets(Vec::new()) };
        let known = |id: &TopicPartition| Some((*id, state.offsets.get(id)?.clone()));
        let offsets = match &request.partitions {
            Some(partitions) => partitions.iter().filter_map(known).collect(),
            None => state.offsets.keys().filter_map(known).collect(),
        };
        Response::Offsets(offsets)
    }

    pub(super) fn reset_offsets(
        &mut self,
        now: Timestamp,
        request: ResetOffsets,
    ) -> Result<Vec<Record>, GroupRefusal> {
        group_name::check(&request.group)?;
        check_count(request.offsets.len())?;
        self.check_vacant(&request.group)?;
        for offset in &request.offsets {
            if !self.topics.has(offset.partition) {
                return Err(GroupRefusal::Invalid("a partition whose offset is to be reset does not exist"));
            }
            if offset.offset > Offset::MAX {
                return Err(GroupRefusal::Invalid("an offset is at most 9223372036854775807"));
            }
            if offset.metadata.len() > limits::COMMIT_METADATA_BYTES_MAX {
                let (given, max) = (offset.metadata.len(), limits::COMMIT_METADATA_BYTES_MAX);
                return Err(GroupRefusal::TooLong { what: "text beside an offset", given, max });
            }
        }
        let kept = self.groups.get(&request.group).map(|state| &state.offsets);
        let mut after: BTreeSet<TopicPartition> =
            kept.into_iter().flat_map(BTreeMap::keys).copied().collect();
        request.forget.iter().for_each(|partition| _ = after.remove(partition));
        after.extend(request.offsets.iter().map(|offset| offset.partition));
        check_count(after.len())?;
        let more = request.offsets.iter().map(|offset| {
            let known = kept.and_then(|kept| kept.get(&offset.partition)).map_or(0, Committed::stored_bytes);
            offset.kept(now).stored_bytes().saturating_sub(known)
        });
        self.check_room(more.sum())?;
        let mut change = Change::of(self, &request.group, now);
        for partition in request.forget {
            change.forget_offset(partition);
        }
        for offset in &request.offsets {
            change.keep_offset(offset);
        }
        Ok(change.finish())
    }

    pub(super) fn delete_group(
        &mut self,
        now: Timestamp,
        group: &Arc<str>,
    ) -> Result<Vec<Record>, GroupRefusal> {
        self.empty(group)?;
        let mut change = Change::of(self, group, now);
        change.drop_orphans();
        let offsets: Vec<TopicPartition> = change.state().offsets.keys().copied().collect();
        offsets.into_iter().for_each(|partition| change.forget_offset(partition));
        change.forget_group();
        Ok(change.finish())
    }

    /// Whoever asks as a member is one, in its current epoch, and who it joined as.
    fn check_asker(&self, group: &Arc<str>, asker: &Asker) -> Result<(), GroupRefusal> {
        let (_, current) = self.member(group, &asker.member)?;
        self.check_principal(group, &asker.member, &asker.principal)?;
        if asker.epoch != current.epoch && !mutant::is_on(Mutant::MemberEpochOnCommit) {
            let member = asker.member.clone();
            return Err(GroupRefusal::StaleMemberEpoch { member, have: current.epoch, given: asker.epoch });
        }
        Ok(())
    }

    /// The group has no members, or does not exist and may.
    fn check_vacant(&self, group: &Arc<str>) -> Result<(), GroupRefusal> {
        if self.groups.contains_key(group) {
            return self.empty(group).map(|_| ());
        }
        if self.groups.len() >= limits::GROUPS_MAX {
            return Err(too_many("groups", self.groups.len() + 1, limits::GROUPS_MAX));
        }
        Ok(())
    }
}

impl Change<'_> {
    fn commit_one(&mut self, member: Option<&Arc<str>>, offset: &OffsetToCommit) -> CommitOutcome {
        // What is stored has 63 bits: more would be read as damage by every later coordinator.
        if offset.offset > Offset::MAX {
            return CommitOutcome::BeyondAll;
        }
        if offset.metadata.len() > limits::COMMIT_METADATA_BYTES_MAX {
            return CommitOutcome::MetadataTooLong;
        }
        if !self.groups.topics.has(offset.partition) {
            return CommitOutcome::UnknownPartition;
        }
        let state = self.state();
        if member.is_some_and(|member| !state.current(member).holds(&offset.partition)) {
            return CommitOutcome::NotOwned;
        }
        let known = state.offsets.get(&offset.partition);
        let more = offset.kept(self.now).stored_bytes();
        let more = more.saturating_sub(known.map_or(0, Committed::stored_bytes));
        match known {
            Some(have) if have.offset > offset.offset && !mutant::is_on(Mutant::CommitForwards) => {
                return CommitOutcome::Behind { committed: have.offset };
            }
            None if state.offsets.len() >= limits::GROUP_OFFSETS_MAX => return CommitOutcome::TooMany,
            _ if self.groups.check_room(more).is_err() => return CommitOutcome::TooMany,
            _ => {}
        }
        self.keep_offset(offset);
        CommitOutcome::Taken
    }

    fn keep_offset(&mut self, offset: &OffsetToCommit) {
        let (group, now) = (self.id.clone(), self.now);
        if self.state().record.is_none() {
            let record = GroupRecord {
                generation: Generation::JOINS,
                protocol: Protocol::Native,
                assignor: Assignor::default(),
                created_at: now,
                empty_since: Some(now),
            };
            self.add(Record::Group { group: group.clone(), value: Some(record) });
        }
        self.add(Record::Offset { group, partition: offset.partition, value: Some(offset.kept(now)) });
    }

    fn forget_offset(&mut self, partition: TopicPartition) {
        if self.state().offsets.contains_key(&partition) {
            let group = self.id.clone();
            self.add(Record::Offset { group, partition, value: None });
        }
    }

    fn forget_group(&mut self) {
        if self.state().record.is_some() {
            let group = self.id.clone();
            self.add(Record::Group { group, value: None });
        }
    }

    /// A topic that is merely not known here may be one that is not known yet.
    pub(super) fn forget_deleted(&mut self) {
        let topics = self.groups.topics.clone();
        let is_deleted = |partition: &&TopicPartition| topics.is_deleted(partition.topic);
        let deleted: Vec<TopicPartition> = self.state().offsets.keys().filter(is_deleted).copied().collect();
        deleted.into_iter().for_each(|partition| self.forget_offset(partition));
    }

    /// An offset is too old a whole retention after both its commit and the last member.
    pub(super) fn expire(&mut self) {
        let state = self.state();
        if !state.members.is_empty() {
            return;
        }
        let retention = self.groups.settings.offsets_retention;
        let is_over = |since: Timestamp| later(since, retention) <= self.now;
        let empty_since = state.record.as_ref().and_then(|record| record.empty_since);
        if empty_since.is_some_and(|since| !is_over(since)) {
            return;
        }
        let is_old = |(_, committed): &(&TopicPartition, &Committed)| is_over(committed.committed_at);
        let old: Vec<TopicPartition> = state.offsets.iter().filter(is_old).map(|(id, _)| *id).collect();
        old.into_iter().for_each(|partition| self.forget_offset(partition));
        if self.state().offsets.is_empty() {
            self.forget_group();
        }
    }
}

impl OffsetToCommit {
    fn kept(&self, now: Timestamp) -> Committed {
        Committed {
            offset: self.offset,
            leader_epoch: self.leader_epoch,
            metadata: self.metadata.clone(),
            committed_at: now,
        }
    }
}

fn check_count(given: usize) -> Result<(), GroupRefusal> {
    if given > limits::GROUP_OFFSETS_MAX {
        return Err(too_many("offsets", given, limits::GROUP_OFFSETS_MAX));
    }
    Ok(())
}

fn later(since: Timestamp, duration: Duration) -> Timestamp {
    let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    Timestamp(since.0.saturating_add(millis))
}
