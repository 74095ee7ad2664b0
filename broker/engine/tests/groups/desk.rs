//! A coordinator on a log that commits whatever it is handed, and short ways to ask it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quire_engine::group::coordinator::{Action, Coordinator, Input, Load, Now, RequestId, Serial};
use quire_engine::group::records::KeyValue;
use quire_engine::group::request::{
    Asker, Commit, CommitOutcome, FetchOffsets, HeartbeatAnswer, OffsetToCommit,
};
use quire_engine::group::topics::Topic;
use quire_engine::group::{
    Generation, GroupRefusal, GroupSettings, Groups, Heartbeat, Partitions, Record, Request, Response, Topics,
};
use quire_engine::machine::Replicated;
use quire_engine::{SplitMix64, Time};
use quire_protocol::{LeaderEpoch, Offset, PartitionIndex, Timestamp, TopicId, TopicPartition};

pub const GROUP: &str = "billing";

/// The id of a topic that is named by one letter or more.
pub fn topic_id(name: &str) -> TopicId {
    let mut id = [9; 16];
    id[..name.len()].copy_from_slice(name.as_bytes());
    TopicId(id)
}

pub fn partition(name: &str, index: u32) -> TopicPartition {
    TopicPartition { topic: topic_id(name), partition: PartitionIndex(index) }
}

pub fn partitions(name: &str, indexes: impl IntoIterator<Item = u32>) -> Partitions {
    indexes.into_iter().map(|index| partition(name, index)).collect()
}

/// Topics by name and number of partitions; those with none are deleted.
pub fn topics(counts: &[(&str, u32)]) -> Arc<Topics> {
    let topic = |(name, partitions): &(&str, u32)| Topic {
        id: topic_id(name),
        name: (*name).into(),
        partitions: *partitions,
        racks: Vec::new(),
    };
    let (present, deleted): (Vec<_>, Vec<_>) = counts.iter().partition(|(_, partitions)| *partitions > 0);
    Arc::new(Topics::new(present.iter().map(topic), deleted.iter().map(|(name, _)| topic_id(name))))
}

pub fn offset(partition: TopicPartition, offset: u64) -> OffsetToCommit {
    OffsetToCommit { partition, offset: Offset(offset), leader_epoch: None, metadata: "".into() }
}

/// What a member that joins says.
pub fn join(member: &str, topics: &[&str]) -> Heartbeat {
    Heartbeat {
        group: GROUP.into(),
        member: member.into(),
        topics: Some(topics.iter().map(|topic| (*topic).into()).collect()),
        ..Heartbeat::default()
    }
}

pub fn join_as(instance: &str, member: &str, topics: &[&str]) -> Heartbeat {
    Heartbeat { instance: Some(instance.into()), ..join(member, topics) }
}

/// What a member says in between.
pub fn beat(member: &str, epoch: i32) -> Heartbeat {
    Heartbeat { group: GROUP.into(), member: member.into(), epoch: Generation(epoch), ..Heartbeat::default() }
}

/// The same, with all it owns.
pub fn owns(member: &str, epoch: i32, owned: Partitions) -> Heartbeat {
    Heartbeat { owned: Some(owned), ..beat(member, epoch) }
}

pub fn commit(member: &str, epoch: i32, offsets: Vec<OffsetToCommit>) -> Request {
    let asker = Some(Asker { member: member.into(), epoch: Generation(epoch), principal: "".into() });
    Request::Commit(Commit { group: GROUP.into(), asker, offsets })
}

/// The number of a request, and its answer.
pub type Answered = (u64, Result<Response, GroupRefusal>);

/// A coordinator in charge, its log, and its clocks.
pub struct Desk {
    pub coordinator: Coordinator,
    pub log: Vec<KeyValue>,
    pub now: Now,
    pub random: SplitMix64,
    asked: u64,
    /// Appends that are not committed yet, while they are held back.
    pub held: Vec<(Serial, Vec<KeyValue>)>,
    pub holds: bool,
    pub epoch: u32,
    pub removed: Vec<String>,
}

impl Desk {
    /// In charge, with these topics and no group.
    pub fn with(topics: Arc<Topics>) -> Desk {
        Desk::of(GroupSettings::default(), topics)
    }

    pub fn of(settings: GroupSettings, topics: Arc<Topics>) -> Desk {
        let now =
            Now { time: Time::after_origin(Duration::from_secs(1000)), wall: Timestamp(1_700_000_000_000) };
        let mut desk = Desk {
            coordinator: Coordinator::new(settings),
            log: Vec::new(),
            now,
            random: SplitMix64::new(1),
            asked: 0,
            held: Vec::new(),
            holds: false,
            epoch: 0,
            removed: Vec::new(),
        };
        desk.give(Input::Topics(topics));
        desk.lead();
        desk
    }

    /// Leads in a new leader epoch, and loads.
    pub fn lead(&mut self) {
        self.epoch += 1;
        self.give(Input::Leads(LeaderEpoch(self.epoch)));
        assert_eq!(self.coordinator.deciding(), Some(LeaderEpoch(self.epoch)));
    }

    /// Gives an input, and does what is wanted; answers are returned.
    pub fn give(&mut self, input: Input) -> Vec<Answered> {
        let mut answers = Vec::new();
        let mut inputs = vec![input];
        while !inputs.is_empty() {
            let mut actions = Vec::new();
            self.coordinator.handle(self.now, inputs.remove(0), &mut self.random, &mut actions);
            for action in actions {
                match action {
                    Action::Load(load) => inputs.extend(self.load(load)),
                    Action::Append { leader_epoch, serial, records } => {
                        assert_eq!(leader_epoch, LeaderEpoch(self.epoch));
                        if self.holds {
                            self.held.push((serial, records));
                        } else {
                            self.log.extend(records);
                            inputs.push(Input::Committed(serial));
                        }
                    }
                    Action::Confirm { serial, .. } => {
                        if self.holds {
                            self.held.push((serial, Vec::new()));
                        } else {
                            inputs.push(Input::Committed(serial));
                        }
                    }
                    Action::Answer { id, result } => answers.push((id.0, result)),
                    Action::Removed { member, why, .. } => self.removed.push(format!("{member} {why:?}")),
                }
            }
        }
        answers
    }

    fn load(&mut self, load: Load) -> [Input; 2] {
        self.held.clear();
        [Input::Loaded { load, records: self.log.clone() }, Input::LoadEnd(load)]
    }

    /// Commits what was held back, one append.
    pub fn commit_one(&mut self) -> Vec<Answered> {
        let (serial, records) = self.held.remove(0);
        self.log.extend(records);
        self.give(Input::Committed(serial))
    }

    /// Asks, and returns the number of the request and what was answered at once.
    pub fn put(&mut self, request: Request) -> (u64, Vec<Answered>) {
        self.asked += 1;
        (self.asked, self.give(Input::Asked { id: RequestId(self.asked), request }))
    }

    /// Asks something that is answered at once.
    pub fn ask(&mut self, request: Request) -> Result<Response, GroupRefusal> {
        let (id, mut answers) = self.put(request);
        assert_eq!(answers.len(), 1, "{answers:?}");
        let (answered, result) = answers.remove(0);
        assert_eq!(answered, id);
        result
    }

    pub fn beats(&mut self, heartbeat: Heartbeat) -> Result<HeartbeatAnswer, GroupRefusal> {
        match self.ask(Request::Heartbeat(heartbeat))? {
            Response::Heartbeat(answer) => Ok(answer),
            other => panic!("{other:?}"),
        }
    }

    /// What a member is told; `None` if it left, or is refused.
    pub fn beats_or_leaves(&mut self, heartbeat: Heartbeat) -> Option<HeartbeatAnswer> {
        match self.ask(Request::Heartbeat(heartbeat)) {
            Ok(Response::Heartbeat(answer)) => Some(answer),
            _ => None,
        }
    }

    pub fn leaves(&mut self, member: &str, epoch: Generation) -> Result<Response, GroupRefusal> {
        self.ask(Request::Heartbeat(beat(member, epoch.0)))
    }

    /// Joins, and returns epoch and assignment.
    pub fn joins(&mut self, heartbeat: Heartbeat) -> (i32, Partitions) {
        let answer = self.beats(heartbeat).expect("it joins");
        (answer.epoch.0, answer.assignment.expect("whoever joins is told what it has"))
    }

    pub fn commits(
        &mut self,
        member: &str,
        epoch: i32,
        offsets: Vec<OffsetToCommit>,
    ) -> Result<Vec<CommitOutcome>, GroupRefusal> {
        match self.ask(commit(member, epoch, offsets))? {
            Response::Commit(outcomes) => Ok(outcomes.into_iter().map(|(_, outcome)| outcome).collect()),
            other => panic!("{other:?}"),
        }
    }

    /// What is committed.
    pub fn offsets(&mut self) -> BTreeMap<TopicPartition, u64> {
        let request = FetchOffsets { group: GROUP.into(), partitions: None };
        match self.ask(Request::FetchOffsets(request)) {
            Ok(Response::Offsets(offsets)) => {
                offsets.into_iter().map(|(id, committed)| (id, committed.offset.0)).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    /// Lets time pass, and tells it.
    pub fn wait(&mut self, duration: Duration) {
        self.now.time = self.now.time + duration;
        self.now.wall.0 += duration.as_millis() as i64;
        self.give(Input::TimePassed);
    }

    /// What a coordinator reads that takes over now.
    pub fn rebuilt(&self, topics: Arc<Topics>) -> Groups {
        rebuild(&self.log, topics)
    }
}

/// The groups of a log.
pub fn rebuild(log: &[KeyValue], topics: Arc<Topics>) -> Groups {
    let mut groups = Groups::new(GroupSettings::default(), topics);
    apply(&mut groups, log);
    groups
}

pub fn apply(groups: &mut Groups, log: &[KeyValue]) {
    for (key, value) in log {
        let record = Record::decode(key, value.as_deref()).expect("what was written can be read");
        let Ok(()) = groups.apply(&record);
    }
}

/// What is left of a log when every key's latest record is kept, and those of what is gone are not.
pub fn compacted(log: &[KeyValue]) -> Vec<KeyValue> {
    let mut latest: BTreeMap<Bytes, usize> = BTreeMap::new();
    for (at, (key, _)) in log.iter().enumerate() {
        latest.insert(key.clone(), at);
    }
    let is_kept = |(at, (key, value)): &(usize, &KeyValue)| latest[key] == *at && value.is_some();
    log.iter().enumerate().filter(is_kept).map(|(_, record)| record.clone()).collect()
}
