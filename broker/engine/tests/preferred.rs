//! Leaderships go back to preferred leaders: when, how many at once, and to whom never.

use std::sync::Arc;
use std::time::Duration;

use quire_engine::controller::preferred::{Action, Input, Pace, PreferredLeaders};
use quire_engine::controller::{
    ChangeInSync, Controller, CreateTopic, Image, Reassign, RegisterBroker, Request,
};
use quire_engine::machine::{Reactive, Replicated};
use quire_engine::{SplitMix64, Time};
use quire_protocol::{BrokerId, PartitionIndex, Timestamp, TopicPartition};

const PACE: Pace =
    Pace { rest: Duration::from_secs(60), interval: Duration::from_secs(1), partitions_max: 2 };
const ONE: BrokerId = BrokerId(1);
const TWO: BrokerId = BrokerId(2);

/// Two brokers that both hold six partitions; broker 1 is the preferred leader of three.
struct Cluster {
    controller: Controller,
    random: SplitMix64,
    preferred: PreferredLeaders,
}

impl Cluster {
    fn new() -> Cluster {
        let (controller, random) = (Controller::new(), SplitMix64::new(7));
        let preferred = PreferredLeaders::new(Time::ZERO, PACE, Arc::default());
        let mut cluster = Cluster { controller, random, preferred };
        for broker in [ONE, TWO] {
            cluster.commit(registration(broker, 1));
            cluster.commit(Request::UnfenceBroker { broker, epoch: 1 });
        }
        let topic =
            CreateTopic { name: "t".into(), partitions: 6, replicas: Some(2), ..CreateTopic::default() };
        cluster.commit(Request::CreateTopic(topic));
        cluster
    }

    fn commit(&mut self, request: Request) {
        let decision = self.controller.decide(Timestamp(1_000), &mut self.random, request);
        for record in decision.expect("it is not refused").records {
            self.controller.apply(&record).expect("what was decided fits");
        }
    }

    fn give(&mut self, at: Duration, input: Input) -> Vec<Request> {
        let mut actions = Vec::new();
        self.preferred.handle(Time::after_origin(at), input, &mut actions);
        actions.into_iter().map(|Action::Propose(request)| request).collect()
    }

    fn show(&mut self, at: Duration) -> Vec<Request> {
        let image = Arc::clone(self.controller.image());
        self.give(at, Input::Image(image))
    }

    /// Broker 1 is away, and back in sync.
    fn come_back(&mut self) {
        self.commit(Request::FenceBroker { broker: ONE, epoch: 1 });
        assert_eq!(self.led_by(ONE), 0);
        self.commit(Request::UnfenceBroker { broker: ONE, epoch: 1 });
        for id in self.partitions() {
            self.catch_up(id);
        }
    }

    fn catch_up(&mut self, id: TopicPartition) {
        let partition = self.image().partition(id).expect("it exists").clone();
        self.commit(Request::ChangeInSync(ChangeInSync {
            partition: id,
            leader: partition.leader.expect("it has one"),
            leader_epoch: partition.leader_epoch,
            partition_epoch: partition.partition_epoch,
            in_sync: vec![(ONE, 1), (TWO, 1)],
        }));
    }

    fn image(&self) -> &Image {
        self.controller.image()
    }

    fn partitions(&self) -> Vec<TopicPartition> {
        let topic = self.image().topic_named("t").expect("it exists").clone();
        let id = |index| TopicPartition { topic: topic.id, partition: PartitionIndex(index) };
        (0..6).map(id).collect()
    }

    /// Those whose preferred leader is broker 1.
    fn of_one(&self) -> Vec<TopicPartition> {
        let is_of_one =
            |id: &TopicPartition| self.image().partition(*id).is_some_and(|p| p.replicas[0] == ONE);
        self.partitions().into_iter().filter(is_of_one).collect()
    }

    fn led_by(&self, broker: BrokerId) -> usize {
        let led = |id: &TopicPartition| self.image().partition(*id).is_some_and(|p| p.leader == Some(broker));
        self.partitions().iter().filter(|id| led(id)).count()
    }

    fn deadline(&self) -> Option<Duration> {
        self.preferred.deadline().map(|at| at.since(Time::ZERO))
    }
}

fn registration(broker: BrokerId, incarnation: u8) -> Request {
    Request::RegisterBroker(RegisterBroker {
        cluster_id: "c".into(),
        broker,
        incarnation: [incarnation; 16],
        host: "localhost".into(),
        port: 1,
        ..RegisterBroker::default()
    })
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn elect(partitions: &[TopicPartition]) -> Vec<Request> {
    vec![Request::ElectPreferred { partitions: partitions.to_vec() }]
}

#[test]
fn a_broker_that_came_back_leads_again_after_its_rest_a_few_partitions_at_a_time() {
    let mut cluster = Cluster::new();
    cluster.show(seconds(0));
    let of_one = cluster.of_one();
    assert_eq!(of_one.len(), 3, "brokers are preferred equally often");
    assert_eq!(cluster.give(seconds(1), Input::TimePassed), []);
    assert_eq!(cluster.deadline(), None, "nothing is to be given back, so nothing is looked for");

    cluster.commit(Request::FenceBroker { broker: ONE, epoch: 1 });
    cluster.show(seconds(100));
    cluster.commit(Request::UnfenceBroker { broker: ONE, epoch: 1 });
    cluster.show(seconds(200));
    assert_eq!(cluster.give(seconds(201), Input::TimePassed), [], "it is not in sync yet");
    for id in cluster.partitions() {
        cluster.catch_up(id);
    }
    assert_eq!(cluster.led_by(ONE), 0);
    assert_eq!(cluster.show(seconds(210)), []);
    assert_eq!(cluster.give(seconds(211), Input::TimePassed), []);
    assert_eq!(cluster.deadline(), Some(seconds(260)), "its rest is over a minute after it came back");
    assert_eq!(cluster.give(seconds(260) - Duration::from_nanos(1), Input::TimePassed), []);

    let first = cluster.give(seconds(260), Input::TimePassed);
    assert_eq!(first, elect(&of_one[..2]));
    assert_eq!(cluster.give(seconds(265), Input::TimePassed), [], "one request at a time");
    first.into_iter().for_each(|request| cluster.commit(request));
    cluster.show(seconds(265));
    let second = cluster.give(seconds(266), Input::Answered);
    assert_eq!(second, elect(&of_one[2..]));
    second.into_iter().for_each(|request| cluster.commit(request));
    assert_eq!(cluster.led_by(ONE), 3);
    cluster.show(seconds(267));
    assert_eq!(cluster.give(seconds(268), Input::Answered), []);
    assert_eq!(cluster.deadline(), None);
}

#[test]
fn a_request_that_came_to_nothing_is_made_again_and_not_in_a_loop() {
    let mut cluster = Cluster::new();
    cluster.come_back();
    cluster.show(seconds(0));
    let asked = cluster.give(seconds(60), Input::TimePassed);
    assert_eq!(asked.len(), 1);
    assert_eq!(cluster.give(seconds(60), Input::Answered), []);
    assert_eq!(cluster.deadline(), Some(seconds(61)));
    assert_eq!(cluster.give(seconds(61), Input::TimePassed), asked);
}

#[test]
fn nothing_is_given_to_who_drains_or_is_away_nor_where_replicas_move() {
    let mut cluster = Cluster::new();
    cluster.come_back();
    let moved = cluster.of_one()[0];
    cluster.commit(registration(BrokerId(3), 1));
    cluster.commit(Request::UnfenceBroker { broker: BrokerId(3), epoch: 1 });
    let replicas = Some(vec![ONE, BrokerId(3)]);
    cluster.commit(Request::Reassign(Reassign { partition: moved, replicas }));
    cluster.show(seconds(0));
    let others = cluster.of_one();
    let others: Vec<_> = others.into_iter().filter(|id| *id != moved).collect();
    assert_eq!(cluster.give(seconds(60), Input::TimePassed), elect(&others));
    cluster.give(seconds(60), Input::Answered);

    cluster.commit(Request::DrainBroker { broker: ONE, epoch: 1 });
    cluster.show(seconds(61));
    assert_eq!(cluster.give(seconds(200), Input::TimePassed), []);
    cluster.commit(Request::UnfenceBroker { broker: ONE, epoch: 1 });
    cluster.show(seconds(201));
    assert_eq!(cluster.give(seconds(260), Input::TimePassed), [], "whoever drained has just come");
    assert_eq!(cluster.give(seconds(261), Input::TimePassed), elect(&others));
}

#[test]
fn a_cluster_that_changes_all_the_time_puts_nothing_off() {
    let mut cluster = Cluster::new();
    cluster.come_back();
    cluster.show(seconds(0));
    let mut asked = Vec::new();
    for tenth in 1..=620 {
        asked.extend(cluster.show(Duration::from_millis(100 * tenth)));
    }
    assert_eq!(asked.len(), 1);
}
