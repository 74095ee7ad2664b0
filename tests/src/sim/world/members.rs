//! What members of groups do: they say that they are there, read what they own, commit how far they are, and fail.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quire_engine::Time;
use quire_engine::group::coordinator::RequestId;
use quire_engine::group::request::{Asker, Commit, CommitOutcome, FetchOffsets, OffsetToCommit};
use quire_engine::group::{Generation, GroupSettings, Heartbeat, Partitions, Request, Response, Topics};
use quire_engine::machine::Replicated;
use quire_protocol::{BrokerId, ErrorCode, LeaderEpoch, OFFSETS_TOPIC, Offset, Timestamp, TopicPartition};

use super::super::desk::GroupAnswer;
use super::super::dice::Dice;
use super::super::invariants::Violation;
use super::super::ledger::{Offsets, partition_of, rebuilt, records};
use super::super::member::{MEMBERS, Member};
use super::super::network::Node;
use super::operators::topic_name;
use super::readers::Reading;
use super::{Happening, Process, World, node};

/// A request that was sent to a coordinator.
#[derive(Debug)]
pub(super) struct Asked {
    member: usize,
    life: u32,
    sent: Time,
    request: Request,
    /// What was known to be committed when it was sent.
    told: Offsets,
    /// Whether the log said, when it arrived, that its sender is in another epoch by now.
    was_stale: bool,
}

fn member_node(number: usize) -> Node {
    Node(MEMBERS + number as u32)
}

/// The members of groups of so many each.
pub(super) fn members_of(groups: &[u32], topics: usize) -> Vec<Member> {
    let names: Vec<Arc<str>> = (0..topics).map(|topic| topic_name(topic).into()).collect();
    let groups = groups.iter().zip(["billing", "orders"]);
    let of = groups.flat_map(|(count, group)| (0..*count).map(move |_| Arc::from(group)));
    of.enumerate().map(|(number, group)| Member::new(number as u32, group, names.clone())).collect()
}

/// How many members each group has; a run may be without.
pub(super) fn draw_groups(dice: &mut Dice) -> Vec<u32> {
    if !dice.happens(450) {
        return Vec::new();
    }
    let first = dice.between(2, 3) as u32;
    let second = dice.happens(300).then(|| dice.between(1, 2) as u32);
    std::iter::once(first).chain(second).collect()
}

impl World {
    /// Where members sit.
    pub(super) fn member_nodes(&self) -> impl Iterator<Item = Node> + use<> {
        (0..self.members.len()).map(member_node)
    }

    /// A member looks at its clock, and goes on.
    pub(super) fn wake_member(&mut self, number: usize) {
        let now = self.schedule.now();
        let delay = Duration::from_millis(self.dice_of_members.between(15, 50));
        self.schedule.after(delay, Happening::MemberWakes(number));
        if !self.members[number].is_running(now) {
            return;
        }
        self.say_too_late(number);
        let given_up = self.members[number].look_at_clock(now);
        self.give_up(number, &given_up);
        let member = &self.members[number];
        if member.beating.is_none() && member.beats_at <= now {
            let heartbeat = Request::Heartbeat(member.heartbeat());
            let id = self.ask_coordinator(number, heartbeat);
            self.members[number].beating = Some((id, now));
        }
        self.process_and_commit(number);
    }

    /// One whose time is over says now and then what it meant to say before it stood still.
    fn say_too_late(&mut self, number: usize) {
        let now = self.schedule.now();
        let member = &self.members[number];
        let Some(membership) = member.membership.as_ref().filter(|_| member.owned(now).is_none()) else {
            return;
        };
        let (owned, heartbeat) = (membership.owned.clone(), member.heartbeat());
        if self.dice_of_members.happens(800) {
            self.ask_coordinator(number, Request::Heartbeat(heartbeat));
            if let Some(commit) = self.commit_of(number, &owned) {
                self.ask_coordinator(number, commit);
            }
        }
    }

    /// What a process had meant to say arrives after its end, now and then long after, and so often.
    fn say_after_end(&mut self, number: usize, times: usize) {
        let member = &self.members[number];
        let (life, heartbeat) = (member.life, member.heartbeat());
        let Some(owned) = member.membership.as_ref().map(|membership| membership.owned.clone()) else {
            return;
        };
        let heartbeats = std::iter::repeat_n(Request::Heartbeat(heartbeat), times);
        let words = heartbeats.chain(self.commit_of(number, &owned));
        for request in words.collect::<Vec<_>>() {
            let delay = Duration::from_millis(self.dice_of_members.between(1, 2500));
            self.schedule.after(delay, Happening::SaidLate { number, life, request });
        }
    }

    pub(super) fn said_late(&mut self, number: usize, life: u32, request: Request) {
        let id = self.ask_coordinator(number, request);
        self.asks.get_mut(&id).expect("just asked").life = life;
    }

    /// What it owned and does no more it does not read either.
    fn give_up(&mut self, number: usize, partitions: &Partitions) {
        for partition in partitions {
            self.readings.remove(&(member_node(number), *partition));
        }
    }

    fn process_and_commit(&mut self, number: usize) {
        let (now, here) = (self.schedule.now(), member_node(number));
        let member = &self.members[number];
        let Some(owned) = member.owned(now).cloned() else { return };
        let group = member.group.clone();
        let is_new = |partition: &TopicPartition| !self.readings.contains_key(&(here, *partition));
        if owned.iter().any(is_new) && member.fetching.is_none() {
            let fetch = FetchOffsets { group, partitions: None };
            let id = self.ask_coordinator(number, Request::FetchOffsets(fetch));
            self.members[number].fetching = Some((id, now));
        }
        for partition in &owned {
            self.read(here, *partition);
        }
        if self.members[number].commits_at <= now {
            let pause = Duration::from_millis(self.dice_of_members.between(80, 300));
            self.members[number].commits_at = now + pause;
            if let Some(commit) = self.commit_of(number, &owned) {
                self.ask_coordinator(number, commit);
            }
        }
    }

    /// It commits how far it is; now and then as if it were less far, or still in the epoch before.
    fn commit_of(&mut self, number: usize, owned: &Partitions) -> Option<Request> {
        let mut offsets = Vec::new();
        for partition in owned {
            let Some(reading) = self.readings.get(&(member_node(number), *partition)) else { continue };
            let back = if self.dice_of_members.happens(80) { reading.next.0.min(9) } else { 0 };
            let offset = Offset(reading.next.0 - back);
            let metadata = "".into();
            offsets.push(OffsetToCommit { partition: *partition, offset, leader_epoch: None, metadata });
        }
        let member = &self.members[number];
        let membership = member.membership.as_ref().filter(|_| !offsets.is_empty())?;
        let is_late = self.dice_of_members.happens(50);
        let epoch = Generation(membership.epoch.0 - i32::from(is_late));
        let asker = Some(Asker { member: member.id(), epoch, principal: "".into() });
        Some(Request::Commit(Commit { group: member.group.clone(), asker, offsets }))
    }

    /// Asks whoever coordinates the group, as some broker has it.
    fn ask_coordinator(&mut self, number: usize, request: Request) -> u64 {
        let (now, here) = (self.schedule.now(), member_node(number));
        self.next_ask += 1;
        let id = self.next_ask;
        let member = &self.members[number];
        let (group, life) = (member.group.clone(), member.life);
        let told = self.ledger.told(&group);
        let asked = Asked { member: number, life, sent: now, request, told, was_stale: false };
        self.asks.insert(id, asked);
        let ids: Vec<BrokerId> = self.brokers.keys().copied().collect();
        let asked = *self.dice_of_members.pick(&ids).expect("there are brokers");
        let place = self.place_of(&group);
        if let Some(leader) =
            place.and_then(|place| self.leader_known_to(here, asked, place)).map(|(leader, _)| leader)
            && let Some(due) = self.network.call(now, here, node(leader))
        {
            self.schedule.at(due, Happening::GroupAsked { broker: leader, id });
        }
        id
    }

    /// The partition of the internal topic that a group is kept in.
    fn place_of(&self, group: &str) -> Option<TopicPartition> {
        let topic = self.metadata.0.image().topic_named(OFFSETS_TOPIC)?;
        let partition = partition_of(group, topic.partitions.len());
        Some(TopicPartition { topic: topic.id, partition })
    }

    /// A member's request arrives at a broker.
    pub(super) fn group_asked(&mut self, broker: BrokerId, id: u64) -> Result<(), Violation> {
        match &self.brokers[&broker].running {
            None => return Ok(()),
            Some(running) if running.is_paused => {
                self.missed.entry(broker).or_default().push(Happening::GroupAsked { broker, id });
                return Ok(());
            }
            Some(_) => {}
        }
        let asked = self.asks.get_mut(&id).expect("it was sent");
        let group = self.members[asked.member].group.clone();
        if let Request::Commit(Commit { asker: Some(asker), .. }) = &asked.request {
            asked.was_stale = self.ledger.epoch(&group, &asker.member) != Some(asker.epoch);
        }
        let request = asked.request.clone();
        self.tell(broker, |running, effects| running.ask_group(RequestId(id), &group, request, effects))
    }

    /// A coordinator answers.
    pub(super) fn group_answers(&mut self, broker: BrokerId, id: RequestId, answer: GroupAnswer) {
        let Some(asked) = self.asks.get(&id.0) else { return };
        let now = self.schedule.now();
        if let Some(due) = self.network.call(now, node(broker), member_node(asked.member)) {
            self.schedule.at(due, Happening::GroupAnswered { id: id.0, answer });
        }
    }

    /// A broker's coordinators are to look at what happened.
    pub(super) fn coordinate_soon(&mut self, id: BrokerId) {
        let longest = if !self.is_healing && self.dice_of_members.happens(10) { 300 } else { 2 };
        let delay = self.dice_of_members.wait(Duration::ZERO, Duration::from_millis(longest));
        self.coordinate_at(id, self.schedule.now() + delay);
    }

    fn coordinate_at(&mut self, id: BrokerId, at: Time) {
        let process = self.process(id);
        let running = self.brokers.get_mut(&id).and_then(|broker| broker.running.as_mut());
        if let Some(running) = running
            && running.coordinates_at.is_none_or(|known| at < known)
        {
            running.coordinates_at = Some(at);
            self.schedule.at(at, Happening::Coordinate { process, at });
        }
    }

    pub(super) fn coordinate(&mut self, process: Process, at: Time) -> Result<(), Violation> {
        let id = process.0;
        let now = self.schedule.now();
        let running = self.brokers.get_mut(&id).and_then(|broker| broker.running.as_mut());
        let Some(running) = running.filter(|running| running.coordinates_at == Some(at)) else {
            return Ok(());
        };
        running.coordinates_at = None;
        let mut deadline = None;
        let present = super::super::broker::now(now, i64::from(id.0) * 40);
        self.tell(id, |running, effects| deadline = running.coordinate(present, effects))?;
        if let Some(deadline) = deadline {
            self.coordinate_at(id, deadline.max(now + Duration::from_millis(1)));
        }
        Ok(())
    }

    pub(super) fn coordinates(&mut self, id: BrokerId, partition: TopicPartition, epoch: LeaderEpoch) {
        self.say(format_args!("broker {id}: coordinates the groups of {partition} in epoch {epoch}"));
        let before = self.coordinators.insert(partition, (id, epoch));
        self.coverage.coordinator_moves += u64::from(before.is_some_and(|before| before != (id, epoch)));
    }

    /// An answer arrives at who asked.
    pub(super) fn group_answered(&mut self, id: u64, answer: GroupAnswer) -> Result<(), Violation> {
        let Some(asked) = self.asks.remove(&id) else { return Ok(()) };
        let group = self.members[asked.member].group.clone();
        match (&answer, &asked.request) {
            (Ok(Response::Commit(outcomes)), Request::Commit(commit)) => {
                self.check_commit(&group, &asked, commit, outcomes)?;
            }
            (Ok(Response::Offsets(offsets)), _) => {
                let read = offsets.iter().map(|(partition, committed)| (*partition, committed.offset.0));
                self.check_offsets(&group, &asked, &read.collect())?;
            }
            (Err(refusal), Request::Commit(_)) => {
                let codes = [ErrorCode::StaleMemberEpoch, ErrorCode::UnknownMember];
                self.coverage.stale_commits += u64::from(codes.contains(&refusal.code()));
            }
            (Err(refusal), Request::Heartbeat(_)) => {
                let codes = [ErrorCode::FencedMemberEpoch, ErrorCode::UnknownMember];
                self.coverage.members_fenced += u64::from(codes.contains(&refusal.code()));
            }
            _ => {}
        }
        let now = self.schedule.now();
        let member = &self.members[asked.member];
        if member.life != asked.life || !member.is_running(now) {
            return Ok(());
        }
        match (answer, &asked.request) {
            (Ok(Response::Offsets(offsets)), _) if member.fetching.is_some_and(|(fetch, _)| fetch == id) => {
                self.begin_reading(
                    asked.member,
                    &offsets.into_iter().map(|(id, at)| (id, at.offset)).collect(),
                );
                Ok(())
            }
            (answer, Request::Heartbeat(_)) if member.beating.is_some_and(|(beat, _)| beat == id) => {
                self.beaten(asked.member, asked.sent, answer)
            }
            _ => Ok(()),
        }
    }

    /// It knows where to go on in what it owns.
    fn begin_reading(&mut self, number: usize, committed: &BTreeMap<TopicPartition, Offset>) {
        let now = self.schedule.now();
        self.members[number].fetching = None;
        let Some(owned) = self.members[number].owned(now) else { return };
        for partition in owned {
            let next = committed.get(partition).copied().unwrap_or(Offset::ZERO);
            self.readings.entry((member_node(number), *partition)).or_insert_with(|| Reading::at(next));
        }
    }

    fn beaten(&mut self, number: usize, sent: Time, answer: GroupAnswer) -> Result<(), Violation> {
        let now = self.schedule.now();
        let given_up = self.members[number].look_at_clock(now);
        self.give_up(number, &given_up);
        if self.members[number].beating.take().is_none() {
            return Ok(());
        }
        match answer {
            Ok(Response::Heartbeat(answer)) if sent + answer.session > now => {
                let is_slow = !self.is_healing && self.dice_of_members.happens(250);
                let slowness = if is_slow { (300, 3000) } else { (1, 200) };
                let slowness = Duration::from_millis(self.dice_of_members.between(slowness.0, slowness.1));
                let added = self.members[number].take(now, sent, &answer, slowness);
                self.check_alone(number, &added)
            }
            Ok(Response::Heartbeat(_)) => {
                let lost = self.members[number].lose_all();
                self.give_up(number, &lost);
                Ok(())
            }
            Ok(other) => Err(Violation::Group { what: format!("a heartbeat was answered with {other:?}") }),
            Err(refusal) => {
                let code = refusal.code();
                self.say(format_args!("member {number}: is refused: {refusal}"));
                self.members[number].tells_all = true;
                self.members[number].beats_at = now + Duration::from_millis(100);
                if matches!(code, ErrorCode::FencedMemberEpoch | ErrorCode::UnknownMember) {
                    let lost = self.members[number].lose_all();
                    self.give_up(number, &lost);
                } else if !code.is_retriable() && code != ErrorCode::InstanceInUse {
                    return Err(Violation::Group { what: format!("a heartbeat was refused: {refusal}") });
                }
                Ok(())
            }
        }
    }

    // Faults.

    /// A process is paused, ends, or leaves its group in order.
    pub(super) fn disturb_member(&mut self) {
        if self.is_healing {
            return;
        }
        let now = self.schedule.now();
        let number = self.dice_of_members.below(self.members.len() as u64) as usize;
        let pause = Duration::from_millis(self.dice_of_members.between(50, 3500));
        match self.dice_of_members.below(6) {
            0 | 1 => {
                self.say(format_args!("member {number}: paused"));
                self.members[number].paused_until = now + pause;
            }
            2 | 3 => {
                self.say(format_args!("member {number}: ends"));
                self.say_after_end(number, 1);
                let lost = self.members[number].begin_life(now + pause / 2);
                self.give_up(number, &lost);
            }
            _ => self.leave(number, now + pause / 2),
        }
        let delay = Duration::from_millis(self.dice_of_members.between(150, 1200));
        self.schedule.after(delay, Happening::DisturbMember);
    }

    fn leave(&mut self, number: usize, starts_at: Time) {
        let is_back = self.dice_of_members.happens(700);
        let member = &self.members[number];
        if member.membership.is_none() {
            return;
        }
        self.say(format_args!("member {number}: leaves"));
        let member = &self.members[number];
        let heartbeat = Heartbeat { epoch: member.leaves_with(is_back), ..member.heartbeat() };
        self.ask_coordinator(number, Request::Heartbeat(heartbeat));
        self.say_after_end(number, 3);
        let lost = self.members[number].begin_life(starts_at);
        self.give_up(number, &lost);
    }

    /// No more faults of members.
    pub(super) fn heal_members(&mut self) {
        let now = self.schedule.now();
        for member in &mut self.members {
            member.paused_until = member.paused_until.min(now);
            member.starts_at = member.starts_at.min(now + Duration::from_millis(500));
        }
    }

    // What must hold.

    fn check_alone(&mut self, number: usize, added: &Partitions) -> Result<(), Violation> {
        if added.is_empty() {
            return Ok(());
        }
        let now = self.schedule.now();
        self.coverage.rebalances += 1;
        let (id, count) = (self.members[number].id(), added.len());
        self.say(format_args!("member {number}: as {id} owns {count} partitions more"));
        let group = &self.members[number].group;
        for (other, member) in self.members.iter().enumerate() {
            if other == number || member.group != *group {
                continue;
            }
            if let Some(both) = member.owned(now).and_then(|owned| owned.intersection(added).next()) {
                let what = format!("{both} is member {number}'s, and still member {other}'s");
                return Err(Violation::Group { what });
            }
        }
        Ok(())
    }

    /// Whether groups are kept in it.
    pub(super) fn is_internal(&self, partition: TopicPartition) -> bool {
        let topic = self.metadata.0.image().topic_named(OFFSETS_TOPIC);
        topic.is_some_and(|topic| topic.id == partition.topic)
    }

    /// Whether a partition's topic has not been deleted.
    fn exists(&self, partition: TopicPartition) -> bool {
        self.metadata.0.image().topic(partition.topic).is_some()
    }

    fn check_commit(
        &mut self,
        group: &Arc<str>,
        asked: &Asked,
        commit: &Commit,
        outcomes: &[(TopicPartition, CommitOutcome)],
    ) -> Result<(), Violation> {
        for ((partition, outcome), offset) in outcomes.iter().zip(&commit.offsets) {
            if *outcome != CommitOutcome::Taken {
                continue;
            }
            self.coverage.commits += 1;
            if asked.was_stale {
                let what = format!("a commit of {:?} was taken, which is over", commit.asker);
                return Err(Violation::Group { what });
            }
            if self.exists(*partition) {
                self.ledger.tell(group, *partition, offset.offset.0)?;
            }
        }
        Ok(())
    }

    fn check_offsets(&mut self, group: &Arc<str>, asked: &Asked, read: &Offsets) -> Result<(), Violation> {
        for (partition, told) in asked.told.iter().filter(|(partition, _)| self.exists(**partition)) {
            let offset = read.get(partition).copied().unwrap_or_default();
            if offset < *told {
                let what = format!("{offset} of {partition} was read after {told}");
                return Err(Violation::Group { what });
            }
        }
        for (partition, offset) in read {
            if self.exists(*partition) {
                self.ledger.tell(group, *partition, *offset)?;
            }
        }
        Ok(())
    }

    /// What is still missing after the faults: members that own everything between them, and have read and committed it.
    pub(super) fn why_groups_are_not_healed(&self) -> Option<String> {
        let now = self.schedule.now();
        let groups: std::collections::BTreeSet<&Arc<str>> =
            self.members.iter().map(|member| &member.group).collect();
        for group in groups {
            let Some(place) = self.place_of(group) else { return Some("there are no groups".to_owned()) };
            if self.is_lost(place) {
                continue;
            }
            let known = self.ledger.members(group);
            let mut free: Partitions = self.consumable().into_iter().collect();
            let own = self.members.iter().filter(|member| member.group == *group);
            if known.len() != own.clone().count() {
                return Some(format!("{group} has members {:?}", known.keys()));
            }
            for member in own {
                let (number, owned) = (member.number, member.owned(now));
                let Some(current) = known.get(&member.id()) else {
                    return Some(format!("member {number} is not in {group}: {:?}", known.keys()));
                };
                if owned != Some(&current.assigned) || !current.revoking.is_empty() {
                    return Some(format!("member {number} owns {owned:?}, and is to own {current:?}"));
                }
                free.retain(|partition| !current.assigned.contains(partition));
                let mut behind = current.assigned.iter().filter(|partition| !self.is_lost(**partition));
                if let Some(partition) = behind.find(|partition| !self.is_through(member, **partition)) {
                    return Some(format!("member {number} is not through with {partition}"));
                }
            }
            if !free.is_empty() {
                return Some(format!("{free:?} are nobody's in {group}"));
            }
        }
        None
    }

    /// Whether a member has read a partition to its end, and knows that this is committed.
    fn is_through(&self, member: &Member, partition: TopicPartition) -> bool {
        let image = self.metadata.0.image();
        let leader = image.partition(partition).and_then(|known| known.leader);
        let handle = leader.and_then(|leader| self.handle(leader, partition));
        let Some(high) = handle.map(|handle| handle.reader().high_watermark()) else { return false };
        let reading = self.readings.get(&(Node(MEMBERS + member.number), partition));
        let told = self.ledger.told(&member.group).get(&partition).copied();
        reading.is_some_and(|reading| reading.next == high) && told >= Some(high.0)
    }

    /// Whoever reads the log of the groups now finds in it what anybody was told is committed.
    pub(super) fn check_groups_rebuilt(&self) -> Result<(), Violation> {
        for member in &self.members {
            let Some(place) = self.place_of(&member.group).filter(|place| !self.is_lost(*place)) else {
                continue;
            };
            let image = self.metadata.0.image();
            let leader = image.partition(place).and_then(|known| known.leader).expect("it is healed");
            let handle = self.handle(leader, place).expect("it is healed");
            let unread = |error| Violation::Group { what: format!("{place} can not be read: {error}") };
            let (start, end) = (handle.reader().log_start(), handle.reader().end_offset());
            let batches = records(&handle, start, end).map_err(unread)?;
            let topics = Arc::new(Topics::from_image(image));
            let groups = rebuilt(&batches, GroupSettings::default(), topics);
            let mut groups = groups.map_err(|error| Violation::Group { what: error.to_string() })?;
            let group = member.group.clone();
            let fetch = Request::FetchOffsets(FetchOffsets { group, partitions: None });
            let fetched = groups.decide(Timestamp(0), &mut Dice::new(0), fetch);
            let Ok(Response::Offsets(offsets)) = fetched.map(|decision| decision.response) else {
                return Err(Violation::Group { what: "offsets can not be had".to_owned() });
            };
            let kept: Offsets = offsets.into_iter().map(|(id, committed)| (id, committed.offset.0)).collect();
            for (partition, told) in self.ledger.told(&member.group) {
                if self.exists(partition) && kept.get(&partition).is_none_or(|kept| *kept < told) {
                    let what = format!("of {partition}, {told} was committed, and {kept:?} are kept");
                    return Err(Violation::Group { what });
                }
            }
        }
        Ok(())
    }
}
