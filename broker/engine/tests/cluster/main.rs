//! Brokers, leaders and in-sync replicas: what each change makes of a partition, and what holds after any of them.

mod rights;
mod unclean;

use std::collections::{BTreeMap, BTreeSet};

use quire_engine::controller::image::{Acl, BrokerState, Operation, Partition};
use quire_engine::controller::rebalance;
use quire_engine::controller::{
    AlterTopic, ChangeInSync, Controller, CreateTopic, Image, Reassign, Record, Refusal, RegisterBroker,
    Request, Response,
};
use quire_engine::machine::Replicated;
use quire_engine::{Random, SplitMix64};
use quire_protocol::{BrokerId, ErrorCode, LeaderEpoch, PartitionIndex, Timestamp, TopicId, TopicPartition};

const NOW: Timestamp = Timestamp(1_000_000);

/// A controller, and every record that it ever committed.
struct Cluster {
    controller: Controller,
    random: SplitMix64,
    log: Vec<Record>,
    starts: u8,
}

fn ids(numbers: &[u32]) -> Vec<BrokerId> {
    numbers.iter().map(|number| BrokerId(*number)).collect()
}

impl Cluster {
    fn empty(seed: u64) -> Cluster {
        let (controller, random) = (Controller::new(), SplitMix64::new(seed));
        Cluster { controller, random, log: Vec::new(), starts: 0 }
    }

    /// Brokers 0 to 2, unfenced, each on a rack of its own, and one partition of three replicas led by broker 0.
    fn of_three(min_in_sync: &str) -> (Cluster, TopicPartition) {
        let mut cluster = Cluster::empty(1);
        for broker in 0..3 {
            cluster.start(broker);
        }
        let config = BTreeMap::from([("min.insync.replicas".to_owned(), min_in_sync.to_owned())]);
        let id = cluster.create(CreateTopic { replicas: Some(3), config, ..one_partition("flights") });
        cluster.ask(Request::Reassign(Reassign { partition: id, replicas: Some(ids(&[0, 1, 2])) }));
        cluster.ask(Request::ElectPreferred { partitions: vec![id] });
        (cluster, id)
    }

    fn try_ask(&mut self, request: Request) -> Result<Response, Refusal> {
        let decision = self.controller.decide(NOW, &mut self.random, request)?;
        for record in &decision.records {
            self.controller.apply(record).expect("what was decided fits");
        }
        self.log.extend(decision.records);
        Ok(decision.response)
    }

    fn ask(&mut self, request: Request) -> Response {
        self.try_ask(request).expect("it can be done")
    }

    fn image(&self) -> &Image {
        self.controller.image()
    }

    fn create(&mut self, topic: CreateTopic) -> TopicPartition {
        let Response::Topic(topic) = self.ask(Request::CreateTopic(topic)) else { panic!("a topic") };
        TopicPartition { topic: topic.id, partition: PartitionIndex(0) }
    }

    fn registration(&mut self, broker: u32) -> RegisterBroker {
        self.starts += 1;
        RegisterBroker {
            cluster_id: "c-1".into(),
            broker: BrokerId(broker),
            host: "h".into(),
            port: 9440,
            rack: format!("rack-{broker}"),
            incarnation: [self.starts; 16],
            directory: [broker as u8 + 1; 16],
            ..RegisterBroker::default()
        }
    }

    /// Registers a broker and unfences it.
    fn start(&mut self, broker: u32) {
        let registration = self.registration(broker);
        self.ask(Request::RegisterBroker(registration));
        self.unfence(broker);
    }

    fn epoch(&self, broker: u32) -> u64 {
        self.image().broker(BrokerId(broker)).map_or(0, |broker| broker.epoch)
    }

    fn fence(&mut self, broker: u32) {
        let epoch = self.epoch(broker);
        self.ask(Request::FenceBroker { broker: BrokerId(broker), epoch });
    }

    fn unfence(&mut self, broker: u32) {
        let epoch = self.epoch(broker);
        self.ask(Request::UnfenceBroker { broker: BrokerId(broker), epoch });
    }

    fn drain(&mut self, broker: u32) -> Response {
        let epoch = self.epoch(broker);
        self.ask(Request::DrainBroker { broker: BrokerId(broker), epoch })
    }

    fn partition(&self, id: TopicPartition) -> Partition {
        Partition::clone(self.image().partition(id).expect("it exists"))
    }

    /// A leader's proposal, made on what holds now.
    fn proposal(&self, id: TopicPartition, in_sync: &[u32]) -> ChangeInSync {
        let partition = self.partition(id);
        ChangeInSync {
            partition: id,
            leader: partition.leader.unwrap_or_default(),
            leader_epoch: partition.leader_epoch,
            partition_epoch: partition.partition_epoch,
            in_sync: in_sync.iter().map(|broker| (BrokerId(*broker), self.epoch(*broker))).collect(),
        }
    }

    fn change_in_sync(&mut self, id: TopicPartition, in_sync: &[u32]) {
        let proposal = self.proposal(id, in_sync);
        self.ask(Request::ChangeInSync(proposal));
    }

    /// `leader@leader epoch in-sync replicas (eligible leader replicas)`, and what is unusual.
    fn show(&self, id: TopicPartition) -> String {
        let partition = self.partition(id);
        let list =
            |brokers: &[BrokerId]| brokers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let leader = partition.leader.map_or("-".to_owned(), |leader| leader.to_string());
        let mut shown = format!(
            "{leader}@{} {} ({})",
            partition.leader_epoch,
            list(&partition.in_sync),
            list(&partition.eligible)
        );
        if partition.is_reassigning() {
            shown += &format!(
                " of {} +{} -{}",
                list(&partition.replicas),
                list(&partition.adding),
                list(&partition.removing)
            );
        }
        if partition.is_recovering {
            shown += " recovering";
        }
        shown
    }
}

fn one_partition(name: &str) -> CreateTopic {
    CreateTopic { name: name.into(), partitions: 1, ..CreateTopic::default() }
}

#[test]
fn leadership_goes_to_who_is_in_sync_then_to_who_left_last() {
    let (mut cluster, id) = Cluster::of_three("2");
    let mut seen = vec![cluster.show(id)];
    let mut step = |cluster: &mut Cluster, what: &dyn Fn(&mut Cluster)| {
        what(cluster);
        seen.push(cluster.show(id));
    };
    step(&mut cluster, &|c| c.fence(0));
    step(&mut cluster, &|c| c.fence(1));
    step(&mut cluster, &|c| c.fence(2));
    // Broker 0 left while two others sufficed: it may lack what they committed, and does not lead.
    step(&mut cluster, &|c| c.unfence(0));
    step(&mut cluster, &|c| c.unfence(1));
    step(&mut cluster, &|c| c.unfence(2));
    step(&mut cluster, &|c| c.change_in_sync(id, &[1, 0]));
    step(&mut cluster, &|c| c.change_in_sync(id, &[1, 0, 2]));
    let first = seen[0].split_once(' ').and_then(|(at, _)| at.split_once('@')).expect("as it is shown").1;
    let first: u32 = first.parse().expect("an epoch");
    let expected = [
        format!("0@{first} 0,1,2 ()"),
        format!("1@{} 1,2 ()", first + 1),
        format!("2@{} 2 (1)", first + 2),
        format!("-@{}  (1,2)", first + 3),
        format!("-@{}  (1,2)", first + 3),
        format!("1@{} 1 (2)", first + 4),
        format!("1@{} 1 (2)", first + 4),
        format!("1@{} 0,1 ()", first + 4),
        format!("1@{} 0,1,2 ()", first + 4),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn the_last_replica_standing_is_waited_for() {
    // KIP-966: brokers 0 and 1 are gone, 2 leads alone and loses power; 0 and 1 are back first. With min ISR 1 broker 2
    // went on committing alone, so that neither of them may lead.
    let (mut cluster, id) = Cluster::of_three("1");
    for broker in [0, 1, 2] {
        cluster.fence(broker);
    }
    for broker in [0, 1] {
        cluster.start(broker);
    }
    assert!(cluster.show(id).starts_with("-@"), "{}", cluster.show(id));
    cluster.start(2);
    assert!(cluster.show(id).starts_with("2@"), "{}", cluster.show(id));
    assert!(cluster.show(id).ends_with(" 2 ()"), "{}", cluster.show(id));
}

#[test]
fn a_suspect_leaves_everything_until_it_caught_up() {
    let (mut cluster, id) = Cluster::of_three("2");
    cluster.fence(0);
    cluster.fence(1);
    // 2 leads, 1 is eligible. It starts again and says that it may lack something.
    let registration = RegisterBroker { suspects: vec![id], ..cluster.registration(1) };
    cluster.ask(Request::RegisterBroker(registration));
    cluster.unfence(1);
    assert!(cluster.show(id).ends_with(" 2 ()"), "{}", cluster.show(id));
    cluster.fence(2);
    assert!(cluster.show(id).starts_with("-@"), "a suspect does not lead: {}", cluster.show(id));
    cluster.unfence(2);
    cluster.change_in_sync(id, &[2, 1]);

    // Its directory was made anew: nothing in it can be trusted, whatever it says.
    let registration = RegisterBroker { directory: [99; 16], ..cluster.registration(1) };
    cluster.ask(Request::RegisterBroker(registration));
    assert!(cluster.show(id).ends_with(" 2 ()"), "{}", cluster.show(id));
    cluster.unfence(1);
    cluster.change_in_sync(id, &[2, 1]);

    // A sync of the leader fails while it runs.
    let epoch = cluster.epoch(2);
    cluster.ask(Request::ReportSuspect { broker: BrokerId(2), epoch, partition: id });
    assert!(cluster.show(id).starts_with("1@"), "{}", cluster.show(id));
    assert!(cluster.show(id).ends_with(" 1 ()"), "{}", cluster.show(id));
}

#[test]
fn the_only_replica_leads_again_whatever_it_lost() {
    let mut cluster = Cluster::empty(2);
    cluster.start(0);
    let id = cluster.create(one_partition("flights"));
    let registration = RegisterBroker { suspects: vec![id], ..cluster.registration(0) };
    cluster.ask(Request::RegisterBroker(registration));
    assert_eq!(cluster.show(id), "-@2  (0)");
    cluster.unfence(0);
    assert_eq!(cluster.show(id), "0@3 0 ()");
}

#[test]
fn a_proposal_that_rests_on_what_does_not_hold_is_refused() {
    let (mut cluster, id) = Cluster::of_three("2");
    let good = cluster.proposal(id, &[0, 1]);
    let code = |cluster: &mut Cluster, proposal: ChangeInSync| {
        cluster.try_ask(Request::ChangeInSync(proposal)).map(|_| ()).map_err(|refusal| refusal.code())
    };
    let with = |change: &dyn Fn(&mut ChangeInSync)| {
        let mut proposal = good.clone();
        change(&mut proposal);
        proposal
    };
    let cases: [(ErrorCode, ChangeInSync); 9] = [
        (ErrorCode::NotLeader, with(&|p| p.leader = BrokerId(1))),
        (ErrorCode::FencedLeaderEpoch, with(&|p| p.leader_epoch = LeaderEpoch(p.leader_epoch.0 - 1))),
        (ErrorCode::FencedLeaderEpoch, with(&|p| p.leader_epoch = LeaderEpoch(p.leader_epoch.0 + 1))),
        (ErrorCode::PartitionChanged, with(&|p| p.partition_epoch -= 1)),
        (ErrorCode::PartitionChanged, with(&|p| p.partition_epoch += 1)),
        (ErrorCode::FencedBrokerEpoch, with(&|p| p.in_sync[1].1 += 1)),
        (ErrorCode::IneligibleReplica, with(&|p| p.in_sync.truncate(0))),
        (ErrorCode::IneligibleReplica, with(&|p| p.in_sync[1] = p.in_sync[0])),
        (ErrorCode::IneligibleReplica, with(&|p| p.in_sync[1].0 = BrokerId(7))),
    ];
    for (expected, proposal) in cases {
        assert_eq!(code(&mut cluster, proposal.clone()), Err(expected), "{proposal:?}");
    }
    assert_eq!(code(&mut cluster, good.clone()), Ok(()));
    assert_eq!(code(&mut cluster, good), Err(ErrorCode::PartitionChanged), "it was taken once");

    cluster.fence(2);
    let proposal = cluster.proposal(id, &[0, 1, 2]);
    assert_eq!(code(&mut cluster, proposal), Err(ErrorCode::IneligibleReplica), "2 is fenced");
    // Broker 2 followed before it started again: what it had then says nothing of what it has now.
    cluster.unfence(2);
    let before = cluster.proposal(id, &[0, 1, 2]);
    cluster.start(2);
    assert_eq!(code(&mut cluster, before), Err(ErrorCode::FencedBrokerEpoch));
}

#[test]
fn a_broker_drains_as_far_as_others_can_take_over() {
    let (mut cluster, id) = Cluster::of_three("2");
    let single = cluster.create(CreateTopic { replicas: Some(1), ..one_partition("single") });
    cluster.ask(Request::Reassign(Reassign { partition: single, replicas: Some(ids(&[0])) }));
    if cluster.partition(single).leader != Some(BrokerId(0)) {
        cluster.change_in_sync_all(single);
    }
    assert_eq!(cluster.drain(0), Response::Draining { leaderships: 1 });
    assert!(cluster.show(id).starts_with("1@"), "{}", cluster.show(id));
    assert!(cluster.show(id).ends_with(" 0,1,2 ()"), "it stays in sync: {}", cluster.show(id));
    assert_eq!(cluster.partition(single).leader, Some(BrokerId(0)), "nobody else can");
    let created = cluster.create(CreateTopic { replicas: Some(2), ..one_partition("later") });
    assert!(!cluster.partition(created).replicas.contains(&BrokerId(0)), "others are left");
    cluster.unfence(0);
    assert_eq!(cluster.image().broker(BrokerId(0)).map(|b| b.state), Some(BrokerState::Unfenced));
}

impl Cluster {
    /// Everybody that a partition is to have is in sync.
    fn change_in_sync_all(&mut self, id: TopicPartition) {
        let replicas: Vec<u32> = self.partition(id).replicas.iter().map(|id| id.0).collect();
        self.change_in_sync(id, &replicas);
    }
}

#[test]
fn a_reassignment_grows_then_shrinks_and_can_be_given_up() {
    let (mut cluster, id) = Cluster::of_three("2");
    for broker in [3, 4, 5] {
        cluster.start(broker);
    }
    let reassign =
        |replicas: Option<&[u32]>| Request::Reassign(Reassign { partition: id, replicas: replicas.map(ids) });
    cluster.ask(reassign(Some(&[3, 4, 0])));
    assert!(cluster.show(id).ends_with(" 0,1,2 () of 3,4,0,1,2 +3,4 -1,2"), "{}", cluster.show(id));
    cluster.change_in_sync(id, &[0, 1, 2, 3]);
    assert!(cluster.partition(id).is_reassigning(), "broker 4 is not there yet");
    cluster.ask(reassign(None));
    assert!(cluster.show(id).ends_with(" 0,1,2 ()"), "{}", cluster.show(id));

    cluster.ask(reassign(Some(&[3, 4, 5])));
    cluster.change_in_sync(id, &[0, 1, 3, 4, 5]);
    assert_eq!(cluster.partition(id).replicas, ids(&[3, 4, 5]), "broker 2 is not waited for: it goes");
    assert!(cluster.show(id).ends_with(" 3,4,5 ()"), "{}", cluster.show(id));
    assert_eq!(cluster.partition(id).leader, Some(BrokerId(3)));

    let refused = |cluster: &mut Cluster, replicas: &[u32]| {
        cluster.try_ask(reassign(Some(replicas))).map(|_| ()).map_err(|refusal| refusal.code())
    };
    assert_eq!(refused(&mut cluster, &[]), Err(ErrorCode::InvalidReplicaCount));
    assert_eq!(refused(&mut cluster, &[3]), Err(ErrorCode::InvalidConfig), "min ISR is 2");
    assert_eq!(refused(&mut cluster, &[3, 3]), Err(ErrorCode::InvalidReplicaCount));
    assert_eq!(refused(&mut cluster, &[3, 9]), Err(ErrorCode::UnknownBroker));
}

/// A replica was moved away and back while its leader heard of neither: it had dropped its log between, and its leader had it
/// taken for in sync by what it had said before.
#[test]
fn a_leadership_ends_with_each_removal_of_a_replica() {
    let (mut cluster, id) = Cluster::of_three("2");
    cluster.start(3);
    let reassign =
        |replicas: &[u32]| Request::Reassign(Reassign { partition: id, replicas: Some(ids(replicas)) });
    let led = |cluster: &Cluster| (cluster.partition(id).leader, cluster.partition(id).leader_epoch.0);
    let (leader, epoch) = led(&cluster);
    cluster.ask(reassign(&[0, 1, 3]));
    assert_eq!(led(&cluster), (leader, epoch), "nobody is gone yet");
    cluster.change_in_sync(id, &[0, 1, 2, 3]);
    assert_eq!(cluster.partition(id).replicas, ids(&[0, 1, 3]));
    assert_eq!(led(&cluster), (leader, epoch + 1), "whoever is asked to follow again says again what it has");
    cluster.ask(reassign(&[1, 0, 3]));
    assert_eq!(led(&cluster), (leader, epoch + 1), "another order takes nothing away");
    // Given up, a reassignment removes what it had added.
    cluster.ask(reassign(&[0, 1, 2]));
    cluster.ask(Request::Reassign(Reassign { partition: id, replicas: None }));
    assert_eq!(led(&cluster), (leader, epoch + 2));
}

#[test]
fn fewer_demanded_replicas_end_the_claim_of_those_that_left() {
    let (mut cluster, id) = Cluster::of_three("2");
    cluster.fence(2);
    cluster.fence(1);
    assert!(cluster.show(id).ends_with(" 0 (1)"), "{}", cluster.show(id));
    let set_config = BTreeMap::from([("min.insync.replicas".to_owned(), "1".to_owned())]);
    let alter = AlterTopic { name: "flights".into(), set_config, ..AlterTopic::default() };
    cluster.ask(Request::AlterTopic(alter));
    assert!(cluster.show(id).ends_with(" 0 ()"), "broker 0 commits alone from here on: {}", cluster.show(id));
}

#[test]
fn the_same_start_is_answered_the_same_and_an_old_one_is_fenced() {
    let mut cluster = Cluster::empty(3);
    let registration = cluster.registration(0);
    for _ in 0..2 {
        let answer = cluster.ask(Request::RegisterBroker(registration.clone()));
        assert_eq!(answer, Response::BrokerRegistered { epoch: 1 });
    }
    assert_eq!(cluster.log.len(), 2, "the cluster, and the broker once");
    cluster.start(0);
    let late = cluster.try_ask(Request::UnfenceBroker { broker: BrokerId(0), epoch: 1 });
    assert_eq!(late.map_err(|refusal| refusal.code()), Err(ErrorCode::FencedBrokerEpoch));
    let epoch = cluster.epoch(0);
    let ids =
        |cluster: &mut Cluster| cluster.ask(Request::AllocateProducerIds { broker: BrokerId(0), epoch });
    assert_eq!(ids(&mut cluster), Response::ProducerIds { first: 1, count: 1000 });
    assert_eq!(ids(&mut cluster), Response::ProducerIds { first: 1001, count: 1000 });
}

#[test]
fn a_removed_broker_holds_nothing_and_does_not_come_back() {
    let (mut cluster, id) = Cluster::of_three("2");
    let remove = Request::RemoveBroker { broker: BrokerId(2) };
    let refused = cluster.try_ask(remove.clone());
    assert_eq!(refused, Err(Refusal::BrokerInUse { broker: BrokerId(2), replicas: 1 }));
    cluster.start(3);
    let without = BTreeSet::from([BrokerId(2)]);
    let plan = rebalance::plan(cluster.image(), &without);
    assert_eq!(plan.len(), 1);
    assert!(plan[0].copies() && plan[0].to == ids(&[0, 1, 3]), "{plan:?}");
    cluster.ask(Request::Reassign(Reassign { partition: id, replicas: Some(plan[0].to.clone()) }));
    cluster.change_in_sync(id, &[0, 1, 3]);
    cluster.ask(remove.clone());
    cluster.ask(remove);
    let registration = cluster.registration(2);
    let back = cluster.try_ask(Request::RegisterBroker(registration));
    assert_eq!(back, Err(Refusal::BrokerRemoved { broker: BrokerId(2) }));
}

#[test]
fn a_token_is_used_once_and_in_time() {
    let mut cluster = Cluster::empty(4);
    cluster.start(0);
    let issue = |hash, expires_at| Request::IssueToken { hash, expires_at: Timestamp(expires_at) };
    let redeem = |hash, redeemer| Request::RedeemToken { hash, redeemer };
    cluster.ask(issue([1; 32], NOW.0 + 1));
    let given = Response::TokenRedeemed { broker: BrokerId(1) };
    assert_eq!(cluster.ask(redeem([1; 32], [7; 32])), given);
    assert_eq!(cluster.ask(redeem([1; 32], [7; 32])), given, "its answer may have been lost");
    assert_eq!(cluster.try_ask(redeem([1; 32], [8; 32])), Err(Refusal::InvalidToken));
    assert_eq!(cluster.try_ask(redeem([2; 32], [8; 32])), Err(Refusal::InvalidToken));
    assert_eq!(cluster.try_ask(issue([3; 32], NOW.0)), Err(Refusal::TokenAge));
    cluster.ask(issue([4; 32], NOW.0 + 1));
    assert_eq!(cluster.ask(redeem([4; 32], [9; 32])), Response::TokenRedeemed { broker: BrokerId(2) });
}

#[test]
fn a_plan_evens_out_replicas_and_leaders_and_is_empty_then() {
    let mut cluster = Cluster::empty(6);
    for broker in 0..3 {
        cluster.start(broker);
    }
    for name in ["a", "b"] {
        cluster.create(CreateTopic { partitions: 9, replicas: Some(2), ..one_partition(name) });
    }
    assert_eq!(rebalance::plan(cluster.image(), &BTreeSet::new()), []);
    cluster.start(3);
    let plan = rebalance::plan(cluster.image(), &BTreeSet::new());
    assert_eq!(plan.iter().filter(|m| m.copies()).count(), 9, "36 replicas, four brokers");
    for planned in plan {
        let (partition, replicas) = (planned.partition, Some(planned.to));
        cluster.ask(Request::Reassign(Reassign { partition, replicas }));
        if cluster.partition(partition).is_reassigning() {
            cluster.change_in_sync_all(partition);
        }
    }
    assert_eq!(rebalance::plan(cluster.image(), &BTreeSet::new()), []);
    assert_eq!(cluster.image().replica_counts().into_values().collect::<Vec<_>>(), [9; 4]);
    let mut preferred: BTreeMap<BrokerId, u32> = BTreeMap::new();
    for partition in cluster.image().topics().flat_map(|topic| &topic.partitions) {
        *preferred.entry(partition.replicas[0]).or_default() += 1;
    }
    let (most, least) = (preferred.values().max(), preferred.values().min());
    assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1), "{preferred:?}");
}

/// What each replica holds of a partition: how many of its commits. The controller sees none of it.
#[derive(Debug, Default)]
struct Logs {
    committed: BTreeMap<TopicPartition, u64>,
    held: BTreeMap<(TopicPartition, BrokerId), u64>,
}

impl Logs {
    fn held(&self, id: TopicPartition, broker: BrokerId) -> u64 {
        self.held.get(&(id, broker)).copied().unwrap_or_default()
    }

    /// The leader commits, if enough replicas are in sync: on all of them.
    fn commit(&mut self, image: &Image, id: TopicPartition) {
        let Some(topic) = image.topic(id.topic) else { return };
        let Some(partition) = topic.partition(id.partition) else { return };
        if partition.in_sync.len() < topic.config.min_insync_replicas as usize {
            return;
        }
        let commits = self.committed.entry(id).or_default();
        *commits += 1;
        for member in &partition.in_sync {
            self.held.insert((id, *member), *commits);
        }
    }

    /// A follower has all that is committed: its leader may propose it.
    fn catch_up(&mut self, id: TopicPartition, broker: BrokerId) {
        let commits = self.committed.get(&id).copied().unwrap_or_default();
        self.held.insert((id, broker), commits);
    }

    fn lose(&mut self, id: TopicPartition, broker: BrokerId) {
        self.held.insert((id, broker), 0);
    }
}

/// A run of random requests; after each, what must hold.
struct Run {
    cluster: Cluster,
    logs: Logs,
    before: Image,
    dice: SplitMix64,
    elections: u32,
    eligible_seen: u32,
    refusals: u32,
}

impl Run {
    fn new(seed: u64) -> Run {
        let (cluster, dice) = (Cluster::empty(seed), SplitMix64::new(seed ^ 0xabcd));
        let (logs, before) = (Logs::default(), Image::default());
        Run { cluster, logs, before, dice, elections: 0, eligible_seen: 0, refusals: 0 }
    }

    fn below(&mut self, end: u64) -> u64 {
        self.dice.next_u64() % end
    }

    fn any_partition(&mut self) -> Option<TopicPartition> {
        let ids: Vec<_> = partitions(self.cluster.image()).map(|(id, _, _)| id).collect();
        (!ids.is_empty()).then(|| ids[self.below(ids.len() as u64) as usize])
    }

    fn some_brokers(&mut self, of: u64) -> Vec<BrokerId> {
        let count = 1 + self.below(3);
        let mut chosen: Vec<BrokerId> = Vec::new();
        for _ in 0..count {
            let broker = BrokerId(self.below(of) as u32);
            if !chosen.contains(&broker) {
                chosen.push(broker);
            }
        }
        chosen
    }

    fn step(&mut self) {
        let broker = self.below(5) as u32;
        // Now and then an epoch that is not, or no more, the broker's.
        let epoch = self.cluster.epoch(broker).saturating_sub(u64::from(self.below(12) == 0));
        let id = BrokerId(broker);
        let request = match self.below(20) {
            0..=1 => self.registration(broker),
            2..=3 => Request::FenceBroker { broker: id, epoch },
            4..=7 => Request::UnfenceBroker { broker: id, epoch },
            8 => Request::DrainBroker { broker: id, epoch },
            9 => self.create(),
            10 => {
                let name = ["a", "b"][self.below(2) as usize].to_owned();
                if self.below(4) == 0 { Request::DeleteTopic { name } } else { self.alter(name) }
            }
            11 => Request::ElectPreferred { partitions: Vec::new() },
            other => {
                let Some(partition) = self.any_partition() else { return };
                match other {
                    12..=13 => {
                        let replicas = self.some_brokers(5);
                        let replicas = (self.below(3) > 0).then_some(replicas);
                        Request::Reassign(Reassign { partition, replicas })
                    }
                    14 => {
                        if self.below(3) == 0 {
                            self.fail(partition, id, epoch);
                        }
                        Request::ReportSuspect { broker: id, epoch, partition }
                    }
                    15 => return self.logs.commit(self.cluster.controller.image(), partition),
                    _ => self.proposal(partition),
                }
            }
        };
        self.ask(request);
    }

    /// Its log is damaged, and it is the one to know.
    fn fail(&mut self, partition: TopicPartition, broker: BrokerId, epoch: u64) {
        let is_only = self.cluster.partition(partition).replicas.len() == 1;
        if self.cluster.epoch(broker.0) == epoch && !is_only {
            self.ask(Request::ReportSuspect { broker, epoch, partition });
            self.logs.lose(partition, broker);
        }
    }

    fn registration(&mut self, broker: u32) -> Request {
        let mut registration = self.cluster.registration(broker);
        // Two starts may ask the same twice; a directory may be made anew; a log may lack something.
        if self.below(8) == 0 {
            registration.incarnation = [self.below(4) as u8 + 1; 16];
        }
        if self.below(10) == 0 {
            registration.directory = [100 + self.below(100) as u8; 16];
        }
        let held: Vec<_> = partitions(self.cluster.image())
            .filter(|(_, _, partition)| partition.replicas.contains(&BrokerId(broker)))
            .map(|(id, _, _)| id)
            .collect();
        registration.suspects = held.into_iter().filter(|_| self.below(5) == 0).collect();
        Request::RegisterBroker(registration)
    }

    fn create(&mut self) -> Request {
        let name = ["a", "b"][self.below(2) as usize];
        let replicas = Some(1 + self.below(4) as u32);
        let partitions = 1 + self.below(3) as u32;
        Request::CreateTopic(CreateTopic { replicas, partitions, ..one_partition(name) })
    }

    fn alter(&mut self, name: String) -> Request {
        let min = (1 + self.below(3)).to_string();
        let set_config = BTreeMap::from([("min.insync.replicas".to_owned(), min)]);
        Request::AlterTopic(AlterTopic { name, set_config, ..AlterTopic::default() })
    }

    /// What a leader proposes who knows its followers; now and then one who is behind.
    fn proposal(&mut self, id: TopicPartition) -> Request {
        let partition = self.cluster.partition(id);
        let mut in_sync = Vec::new();
        for replica in &partition.replicas {
            if Some(*replica) == partition.leader || self.below(3) > 0 {
                in_sync.push(replica.0);
            }
        }
        let mut proposal = self.cluster.proposal(id, &in_sync);
        proposal.partition_epoch -= u32::from(self.below(10) == 0);
        proposal.leader_epoch.0 -= u32::from(self.below(10) == 0);
        Request::ChangeInSync(proposal)
    }

    fn ask(&mut self, request: Request) {
        let sent = Request::decode(&request.encode());
        assert_eq!(sent.as_ref(), Ok(&request), "a request survives being sent");
        let proposed = match &request {
            Request::ChangeInSync(proposal) => Some(proposal.clone()),
            _ => None,
        };
        self.lose_what_a_start_loses(&request);
        match self.cluster.try_ask(request) {
            Ok(response) => {
                assert_eq!(Response::decode(&response.encode()), Ok(response), "so does an answer");
                for (member, _) in proposed.iter().flat_map(|proposal| &proposal.in_sync) {
                    self.logs.catch_up(proposed.as_ref().expect("it is one").partition, *member);
                }
            }
            Err(refusal) => {
                self.refusals += 1;
                let back = Refusal::decode(&refusal.encode()).expect("a refusal is sent");
                assert_eq!((back.code(), back.to_string()), (refusal.code(), refusal.to_string()));
            }
        }
        self.check();
    }

    fn lose_what_a_start_loses(&mut self, request: &Request) {
        let Request::RegisterBroker(registration) = request else { return };
        let known = self.cluster.image().broker(registration.broker);
        if known.is_some_and(|known| known.incarnation == registration.incarnation) {
            return;
        }
        let is_elsewhere = known.is_some_and(|known| known.directory != registration.directory);
        let lost: Vec<_> = partitions(self.cluster.image())
            .filter(|(id, _, partition)| {
                partition.replicas.len() > 1 && (is_elsewhere || registration.suspects.contains(id))
            })
            .map(|(id, _, _)| id)
            .collect();
        for id in lost {
            self.logs.lose(id, registration.broker);
        }
    }

    fn check(&mut self) {
        let image = self.cluster.controller.image().clone();
        for (id, min, partition) in partitions(&image) {
            check_partition(&image, min, partition);
            let committed = self.logs.committed.get(&id).copied().unwrap_or_default();
            for member in partition.in_sync.iter().chain(&partition.eligible) {
                let is_only = partition.replicas.len() == 1;
                assert!(
                    is_only || self.logs.held(id, *member) == committed,
                    "broker {member} may lead and lacks what was committed: {partition:?}"
                );
            }
            self.eligible_seen += u32::from(!partition.eligible.is_empty());
            if let Some(before) = self.before.partition(id) {
                check_step(before, partition);
                self.elections += u32::from(before.leader != partition.leader);
            }
        }
        self.before = Image::clone(&image);
    }
}

fn partitions(image: &Image) -> impl Iterator<Item = (TopicPartition, usize, &Partition)> {
    image.topics().flat_map(|topic| {
        let min = topic.config.min_insync_replicas as usize;
        topic.partitions.iter().map(move |partition| {
            (TopicPartition { topic: topic.id, partition: partition.index }, min, &**partition)
        })
    })
}

fn check_partition(image: &Image, min: usize, partition: &Partition) {
    let Partition { replicas, leader, in_sync, eligible, adding, removing, .. } = partition;
    let distinct: BTreeSet<_> = replicas.iter().collect();
    assert_eq!(distinct.len(), replicas.len(), "nobody holds a partition twice: {partition:?}");
    for part in [in_sync, eligible] {
        let order: Vec<_> = replicas.iter().filter(|id| part.contains(id)).copied().collect();
        assert_eq!(*part, order, "a part of the replicas, in their order: {partition:?}");
    }
    assert!(in_sync.iter().all(|id| !eligible.contains(id)), "disjoint: {partition:?}");
    assert!(in_sync.iter().all(|id| image.is_active(*id)), "nobody fenced is in sync: {partition:?}");
    assert!(
        in_sync.len() < min || eligible.is_empty(),
        "nobody is eligible while enough are in sync: {partition:?}"
    );
    assert_eq!(leader.is_none(), in_sync.is_empty(), "somebody in sync can lead: {partition:?}");
    assert!(leader.is_none_or(|leader| in_sync.contains(&leader)), "the leader is in sync: {partition:?}");
    assert!(adding.iter().chain(removing).all(|id| replicas.contains(id)), "{partition:?}");
    assert!(adding.iter().all(|id| !removing.contains(id)), "{partition:?}");
    let is_done = partition.target().all(|id| in_sync.contains(&id));
    assert!(!partition.is_reassigning() || !is_done, "what can complete is complete: {partition:?}");
}

fn check_step(before: &Partition, after: &Partition) {
    if before.leader == after.leader {
        assert!(after.leader_epoch >= before.leader_epoch, "{before:?} {after:?}");
    } else {
        assert!(after.leader_epoch > before.leader_epoch, "a leadership of its own: {before:?} {after:?}");
    }
    let is_same = before.partition_epoch == after.partition_epoch;
    assert!(
        after.partition_epoch >= before.partition_epoch && is_same == (before == after),
        "{before:?} {after:?}"
    );
}

#[test]
fn whatever_is_asked_who_may_lead_holds_what_was_committed() {
    let (mut elections, mut eligible, mut refusals) = (0, 0, 0);
    for seed in 0..400 {
        let mut run = Run::new(seed);
        for _ in 0..150 {
            run.step();
        }
        (elections, eligible) = (elections + run.elections, eligible + run.eligible_seen);
        refusals += run.refusals;
        rebuilds(&run.cluster, seed);
    }
    assert!(elections > 2_500 && eligible > 4_000 && refusals > 4_000, "{elections} {eligible} {refusals}");
}

/// The log alone, as it is stored, and a snapshot at any place with the rest of the log, give the same image.
fn rebuilds(cluster: &Cluster, seed: u64) {
    let split = (seed as usize * 7) % (cluster.log.len() + 1);
    let mut image = Image::default();
    let apply = |image: &mut Image, records: &[Record]| {
        for record in records {
            let stored = Record::decode(&record.encode()).expect("it was encoded here");
            assert_eq!(stored, *record);
            image.apply(&stored).expect("it fitted before");
        }
    };
    apply(&mut image, &cluster.log[..split]);
    let bytes = image.encode_snapshot();
    let mut restored = Image::decode_snapshot(&bytes).expect("it was encoded here");
    assert_eq!(restored, image, "seed {seed}");
    assert_eq!(restored.encode_snapshot(), bytes, "one image, one encoding");
    apply(&mut restored, &cluster.log[split..]);
    assert_eq!(restored, *cluster.image(), "seed {seed}");
}

#[test]
fn a_frozen_snapshot_is_still_read() {
    let image = frozen_image();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/snapshot-v1.hex");
    let hex: String = image.encode_snapshot().iter().map(|byte| format!("{byte:02x}")).collect();
    if std::env::var_os("QUIRE_FREEZE").is_some() && !std::path::Path::new(path).exists() {
        std::fs::write(path, format!("{hex}\n")).expect("it can be written");
    }
    let frozen = std::fs::read_to_string(path).expect("it is there");
    assert_eq!(frozen.trim(), hex, "what is written stays the same");
    let bytes: Vec<u8> = (0..frozen.trim().len() / 2)
        .map(|at| u8::from_str_radix(&frozen[2 * at..2 * at + 2], 16).expect("hexadecimal"))
        .collect();
    assert_eq!(Image::decode_snapshot(&bytes), Ok(image));
    for end in 0..bytes.len() {
        // Cut anywhere, it is refused or a smaller image; never a panic.
        let _ = Image::decode_snapshot(&bytes[..end]);
    }
}

/// One of everything.
fn frozen_image() -> Image {
    let (mut cluster, id) = Cluster::of_three("2");
    cluster.fence(0);
    cluster.fence(1);
    cluster.start(3);
    cluster.drain(3);
    cluster.ask(Request::Reassign(Reassign { partition: id, replicas: Some(ids(&[3, 2])) }));
    cluster.ask(Request::HoldTopic {
        id: id.topic,
        broker: BrokerId(2),
        partitions: 1,
        missing: Default::default(),
    });
    cluster.create(one_partition("gone"));
    cluster.ask(Request::DeleteTopic { name: "gone".into() });
    cluster.start(9);
    cluster.ask(Request::RemoveBroker { broker: BrokerId(9) });
    let epoch = cluster.epoch(2);
    cluster.ask(Request::AllocateProducerIds { broker: BrokerId(2), epoch });
    let acl = Acl { principal: "billing".into(), operation: Operation::Consume, prefix: "bill.".into() };
    cluster.ask(Request::AddAcl(acl));
    for hash in [[1; 32], [2; 32]] {
        cluster.ask(Request::IssueToken { hash, expires_at: Timestamp(NOW.0 + 5) });
    }
    cluster.ask(Request::RedeemToken { hash: [2; 32], redeemer: [3; 32] });
    cluster.ask(Request::SetAuthority { sealed: [7; 3].as_slice().into() });
    cluster.ask(Request::RevokeCertificate { serial: [8; 4].as_slice().into() });
    Image::clone(cluster.image())
}

#[test]
fn foreign_bytes_are_no_request() {
    assert!(Request::decode(&[]).is_err());
    assert!(Request::decode(&[0xff; 20]).is_err());
    assert!(Response::decode(&[]).is_err());
    let stray = Request::Reassign(Reassign {
        partition: TopicPartition { topic: TopicId([1; 16]), partition: PartitionIndex(0) },
        replicas: None,
    });
    assert_eq!(Request::decode(&stray.encode()), Ok(stray));
}
