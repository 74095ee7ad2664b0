//! The coordinators of a broker's process: one beside each replica of the internal topic.

use std::sync::Arc;
use std::time::Duration;

use quire_broker::simulation::{Event, Now};
use quire_engine::Time;
use quire_engine::group::coordinator::RequestId;
use quire_engine::group::{GroupRefusal, GroupSettings, Request, Topics};
use quire_protocol::{OFFSETS_TOPIC, TopicPartition};

use super::super::desk::{Desk, Want};
use super::super::ledger::partition_of;
use super::{Effect, Running};

/// How often a member says that it is there.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(250);

impl Running {
    /// Somebody asks the coordinator of a group.
    pub fn ask_group(&mut self, id: RequestId, group: &str, request: Request, effects: &mut Vec<Effect>) {
        let mut refuse = |refusal| effects.push(Effect::GroupAnswered(id, Err(refusal)));
        let image = self.metadata.image();
        let Some(topic) = image.topic_named(OFFSETS_TOPIC) else {
            return refuse(GroupRefusal::NotCoordinator);
        };
        let partition = partition_of(group, topic.partitions.len());
        let place = TopicPartition { topic: topic.id, partition };
        if image.partition(place).is_none_or(|known| known.leader != Some(self.id)) {
            return refuse(GroupRefusal::NotCoordinator);
        }
        let Some(desk) = self.desks.get_mut(&place) else { return refuse(GroupRefusal::Loading) };
        desk.ask(id, request);
        effects.push(Effect::Coordinate);
    }

    /// Whether a coordinator is to be told something.
    pub fn is_to_coordinate(&self) -> bool {
        let Some(topic) = self.metadata.image().topic_named(OFFSETS_TOPIC).map(|topic| topic.id) else {
            return false;
        };
        let is_over = self.desks.keys().any(|id| !self.held.contains_key(id));
        let mut own = self.held.iter().filter(|(id, held)| id.topic == topic && held.shared.is_open());
        is_over
            || own.any(|(id, _)| {
                let handle = self.partition(*id).expect("it is open");
                self.desks.get(id).is_none_or(|desk| desk.is_stirred(handle.standing()))
            })
    }

    /// Has each coordinator take in what happened. When they are to be told that time has passed.
    pub fn coordinate(&mut self, now: Now, effects: &mut Vec<Effect>) -> Option<Time> {
        let image = Arc::clone(self.metadata.image());
        let topic = image.topic_named(OFFSETS_TOPIC)?.id;
        let topics = Topics::from_image(&image);
        if *self.topics != topics {
            self.topics = Arc::new(topics);
        }
        let mut deadline = None;
        let over: Vec<TopicPartition> =
            self.desks.keys().copied().filter(|id| !self.held.contains_key(id)).collect();
        for id in over {
            let wants = self.desks.remove(&id).expect("just listed").end(now);
            self.carry_out_for(id, wants, effects);
        }
        let own: Vec<TopicPartition> = self.held.keys().copied().filter(|id| id.topic == topic).collect();
        for id in own {
            let Some(handle) = self.partition(id) else { continue };
            let seed = self.directory ^ self.incarnation ^ u64::from(id.partition.0);
            let settings =
                || GroupSettings { heartbeat_interval: HEARTBEAT_INTERVAL, ..GroupSettings::default() };
            let desk = self.desks.entry(id).or_insert_with(|| Desk::new(settings(), seed));
            let wants = desk.run(now, &handle, &self.topics);
            deadline = deadline.into_iter().chain(desk.deadline(now.time)).min();
            self.carry_out_for(id, wants, effects);
        }
        deadline
    }

    fn carry_out_for(&mut self, partition: TopicPartition, wants: Vec<Want>, effects: &mut Vec<Effect>) {
        for want in wants {
            match want {
                Want::Append(request) => self.events.push(Event::Produce(partition, request)),
                Want::Damaged(what) => self.events.push(Event::Damaged { partition, what }),
                Want::Answer(id, answer) => effects.push(Effect::GroupAnswered(id, answer)),
                Want::Removed => effects.push(Effect::MemberRemoved),
                Want::Differs => effects.push(Effect::GroupsDiffer(partition)),
                Want::Loaded(epoch) => effects.push(Effect::Coordinates(partition, epoch)),
            }
        }
        if !self.events.is_empty() {
            effects.push(Effect::Round);
        }
    }
}
