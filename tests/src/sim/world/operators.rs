//! What operators do: topics come, change and go, replicas move, leaders are chosen.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quire_engine::controller::{AlterTopic, CreateTopic, Reassign, Request};
use quire_protocol::{BrokerId, LeaderEpoch, OFFSETS_TOPIC, PartitionIndex, TopicId, TopicPartition, limits};

use super::super::invariants::Violation;
use super::super::network::Node;
use super::controllers::{Attempted, Word};
use super::{Happening, World, topic_settings};

/// Where operators sit.
pub(super) const OPERATOR: Node = Node(200);
/// Topics that come and go beside those that stay.
const PASSING_TOPICS: usize = 1;
/// Partitions of the internal topic.
const OFFSETS_PARTITIONS: u32 = 2;

/// What operators know, and what they wish for.
#[derive(Debug, Default)]
pub(super) struct Operator {
    /// Settings of the topics that are to be there all the time; those that come and go come after them.
    pub(super) topics: Vec<BTreeMap<String, String>>,
    /// Leaderships that began, each once.
    led: BTreeSet<(TopicPartition, BrokerId, LeaderEpoch)>,
    next: u64,
}

impl Operator {
    pub(super) fn new(topics: &[BTreeMap<String, String>]) -> Operator {
        Operator { topics: topics.to_vec(), ..Operator::default() }
    }

    /// Whether this leadership is news.
    pub(super) fn leads(&mut self, partition: TopicPartition, broker: BrokerId, epoch: LeaderEpoch) -> bool {
        self.led.insert((partition, broker, epoch))
    }

    /// How many topics there may be.
    pub(super) fn topics_max(&self) -> usize {
        self.topics.len() + PASSING_TOPICS
    }
}

/// A topic's name.
pub(super) fn topic_name(topic: usize) -> String {
    format!("topic-{topic}")
}

impl World {
    pub(super) fn operate(&mut self) -> Result<(), Violation> {
        let image = self.metadata.0.image().clone();
        let missing =
            (0..self.operator.topics.len()).find(|at| image.topic_named(&topic_name(*at)).is_none());
        let is_able = image.brokers().filter(|broker| broker.is_active()).count() >= 3;
        if is_able && !self.options.groups.is_empty() && image.topic_named(OFFSETS_TOPIC).is_none() {
            self.create_offsets_topic();
        }
        match missing {
            Some(topic) if is_able => {
                let config = self.operator.topics[topic].clone();
                self.create(topic, config);
            }
            Some(_) => {}
            None if !self.is_healing => self.change_something(),
            None => {}
        }
        let longest = if self.is_healing { 300 } else { 700 };
        let delay = self.dice.wait(Duration::from_millis(20), Duration::from_millis(longest));
        self.schedule.after(delay, Happening::Operate);
        Ok(())
    }

    fn create(&mut self, topic: usize, config: BTreeMap<String, String>) {
        let partitions = self.dice.between(1, 2) as u32;
        let name = topic_name(topic);
        self.ask(Request::CreateTopic(CreateTopic {
            name,
            partitions,
            replicas: Some(3),
            config,
            validate_only: false,
        }));
    }

    /// The internal topic, as brokers make it for the first group that is looked for.
    fn create_offsets_topic(&mut self) {
        let config = [
            ("cleanup.policy", "compact".to_owned()),
            ("segment.bytes", limits::OFFSETS_SEGMENT_BYTES.to_string()),
        ];
        self.ask(Request::CreateTopic(CreateTopic {
            name: OFFSETS_TOPIC.to_owned(),
            partitions: OFFSETS_PARTITIONS,
            replicas: Some(3),
            config: config.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
            validate_only: false,
        }));
    }

    fn change_something(&mut self) {
        let image = self.metadata.0.image().clone();
        let partitions: Vec<TopicPartition> = image
            .topics()
            .flat_map(|topic| topic.partitions.iter().map(|known| (topic.id, known.index)))
            .map(|(topic, partition)| TopicPartition { topic, partition })
            .collect();
        let Some(id) = self.dice.pick(&partitions).copied() else { return };
        match self.dice.below(10) {
            0..=2 => self.reassign(id),
            3..=6 => self.lead_elsewhere(id),
            7 => {
                let passing = self.operator.topics.len();
                match image.topic_named(&topic_name(passing)) {
                    Some(_) => self.ask(Request::DeleteTopic { name: topic_name(passing) }),
                    None => {
                        let config = topic_settings(&mut self.dice);
                        self.create(passing, config);
                    }
                }
                self.coverage.topic_changes += 1;
            }
            // How many partitions the internal topic has says where groups are kept.
            8 if image.topic(id.topic).is_some_and(|topic| *topic.name == *OFFSETS_TOPIC) => {}
            8 => {
                let topic = image.topic(id.topic).expect("its partition was listed");
                let name = topic.name.to_string();
                let retention = self.dice.between(1500, 6000).to_string();
                let is_grown = topic.partitions.len() < 3 && self.dice.happens(200);
                let partitions = is_grown.then(|| topic.partitions.len() as u32 + 1);
                let set_config = BTreeMap::from([("retention.ms".to_owned(), retention)]);
                self.ask(Request::AlterTopic(AlterTopic {
                    name,
                    partitions,
                    set_config,
                    unset_config: vec![],
                }));
                self.coverage.topic_changes += 1;
            }
            _ => self.lead_for_a_moment(id),
        }
    }

    /// Another replica leads for a moment, and does not hear that this is over; a third hears late that it ever did.
    fn lead_for_a_moment(&mut self, partition: TopicPartition) {
        let image = self.metadata.0.image();
        let Some(known) = image.partition(partition).cloned() else { return };
        let (Some(leader), 3) = (known.leader, known.in_sync.len()) else { return };
        let others: Vec<BrokerId> = known.in_sync.iter().copied().filter(|id| *id != leader).collect();
        if known.is_reassigning() {
            return;
        }
        let (between, late) = match self.dice.happens(500) {
            true => (others[0], others[1]),
            false => (others[1], others[0]),
        };
        let now = self.schedule.now();
        let blind = self.dice.wait(Duration::from_millis(900), Duration::from_millis(2500));
        self.say(format_args!(
            "broker {between}: leads {partition} for a moment; {late} hears nothing for {blind:?}"
        ));
        self.blind.insert(late, now + blind);
        self.elect(partition, &known.replicas, between);
        let delay = self.dice.wait(Duration::from_millis(20), Duration::from_millis(120));
        self.schedule.after(delay, Happening::LeadAgain { partition, leader, between });
    }

    pub(super) fn lead_again(&mut self, partition: TopicPartition, leader: BrokerId, between: BrokerId) {
        let Some(known) = self.metadata.0.image().partition(partition).cloned() else { return };
        if known.leader != Some(between) || self.is_healing {
            return;
        }
        let now = self.schedule.now();
        let blind = self.dice.wait(Duration::from_millis(1500), Duration::from_millis(3000));
        self.blind.insert(between, now + blind);
        self.elect(partition, &known.replicas, leader);
    }

    /// Has one of the replicas lead, if it is in sync.
    fn elect(&mut self, partition: TopicPartition, replicas: &[BrokerId], leader: BrokerId) {
        let rest = replicas.iter().copied().filter(|other| *other != leader);
        let replicas = std::iter::once(leader).chain(rest).collect();
        self.ask(Request::Reassign(Reassign { partition, replicas: Some(replicas) }));
        self.ask(Request::ElectPreferred { partitions: vec![partition] });
    }

    /// Other replicas, or the same in another order.
    fn reassign(&mut self, partition: TopicPartition) {
        let mut ids: Vec<BrokerId> = self.brokers.keys().copied().collect();
        for at in (1..ids.len()).rev() {
            ids.swap(at, self.dice.below(at as u64 + 1) as usize);
        }
        ids.truncate(3);
        let replicas = if self.dice.happens(100) { None } else { Some(ids) };
        self.ask(Request::Reassign(Reassign { partition, replicas }));
        self.coverage.reassignments += 1;
    }

    /// Another of the replicas in sync is to lead; now and then the first again at once, which so leads anew without having
    /// heard that it did not.
    fn lead_elsewhere(&mut self, partition: TopicPartition) {
        let image = self.metadata.0.image();
        let Some(known) = image.partition(partition).cloned() else { return };
        let others: Vec<BrokerId> =
            known.in_sync.iter().copied().filter(|id| Some(*id) != known.leader).collect();
        let (Some(next), Some(leader)) = (self.dice.pick(&others).copied(), known.leader) else { return };
        if known.is_reassigning() {
            return;
        }
        let mut wanted = vec![next];
        if self.dice.happens(400) {
            wanted.push(leader);
        }
        for id in wanted {
            self.elect(partition, &known.replicas, id);
        }
    }

    /// Asks whoever is the controller. What is lost on the way is lost: operators look, and ask again.
    fn ask(&mut self, request: Request) {
        let number = self.operator.next;
        self.operator.next += 1;
        let now = self.schedule.now();
        let to = match self.quorum.leader() {
            Some(leader) => leader,
            None => self.some_controller(),
        };
        let from = Attempted::Operator(number);
        if let Some(due) = self.network.call(now, OPERATOR, to) {
            self.schedule.at(due, Happening::Call { to, from, request });
        }
    }

    pub(super) fn operator_answered(&mut self, number: u64, answer: &Word) {
        self.say(format_args!("operator: request {number} is answered {answer:?}"));
    }

    /// The topic of this number, as a broker's metadata have it.
    pub(super) fn partitions_of(
        image: &quire_engine::controller::Image,
        topic: usize,
    ) -> Option<(TopicId, u32)> {
        let topic = image.topic_named(&topic_name(topic))?;
        Some((topic.id, topic.partitions.len() as u32))
    }

    /// One partition of a topic.
    pub(super) fn partition_id(topic: TopicId, partition: u32) -> TopicPartition {
        TopicPartition { topic, partition: PartitionIndex(partition) }
    }
}
