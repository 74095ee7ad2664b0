//! The controller: a readable script with its recorded output, and what must hold for any requests.
//!
//! `testdata/controller.txt` is written again by running this test with `RECORD=1`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use proptest::prelude::*;
use quire_engine::controller::image::BrokerState;
use quire_engine::controller::records::DecodeError;
use quire_engine::controller::{
    AlterTopic, Conflict, Controller, CreateTopic, Image, Record, Refusal, RegisterBroker, Request, Response,
};
use quire_engine::machine::{Decision, Replicated};
use quire_engine::{Random, SplitMix64};
use quire_protocol::{BrokerId, PartitionIndex, Timestamp, TopicId};

const NOW: Timestamp = Timestamp(1_000);

fn register(broker: u32, rack: &str) -> Request {
    register_again(broker, rack, 1)
}

/// A broker that nobody fences, at its `start`-th start.
fn register_again(broker: u32, rack: &str, start: u8) -> Request {
    Request::RegisterBroker(RegisterBroker {
        cluster_id: "c-1".into(),
        broker: BrokerId(broker),
        host: "127.0.0.1".into(),
        port: 9440,
        rack: rack.into(),
        incarnation: [start; 16],
        is_alone: true,
        ..RegisterBroker::default()
    })
}

fn create(name: &str, partitions: u32) -> CreateTopic {
    CreateTopic { name: name.into(), partitions, ..CreateTopic::default() }
}

fn settings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// A controller with so many brokers on so many racks.
fn controller(brokers: u32, racks: u32) -> (Controller, SplitMix64) {
    let (mut controller, mut random) = (Controller::new(), SplitMix64::new(7));
    for broker in 0..brokers {
        let request = register(broker, &format!("rack-{}", broker % racks));
        commit(&mut controller, &mut random, request).expect("a new broker");
    }
    (controller, random)
}

fn decide(
    controller: &mut Controller,
    random: &mut SplitMix64,
    request: Request,
) -> Result<Decision<Record, Response>, Refusal> {
    controller.decide(NOW, random, request)
}

fn commit(
    controller: &mut Controller,
    random: &mut SplitMix64,
    request: Request,
) -> Result<Response, Refusal> {
    let decision = decide(controller, random, request)?;
    for record in &decision.records {
        controller.apply(record).expect("what was decided fits");
    }
    Ok(decision.response)
}

#[test]
fn the_script_says_what_it_said() {
    let (mut controller, mut random) = (Controller::new(), SplitMix64::new(42));
    let mut script = String::new();
    for (title, request) in script_requests() {
        writeln!(script, "# {title}").expect("strings take everything");
        match decide(&mut controller, &mut random, request) {
            Err(refusal) => writeln!(script, "refused: {refusal}").expect("strings take everything"),
            Ok(decision) => {
                for record in &decision.records {
                    writeln!(script, "record: {record:?}").expect("strings take everything");
                    controller.apply(record).expect("what was decided fits");
                }
                writeln!(script, "answer: {:?}", decision.response).expect("strings take everything");
            }
        }
        writeln!(script).expect("strings take everything");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/controller.txt");
    if std::env::var_os("RECORD").is_some() {
        std::fs::write(&path, &script).expect("the recording can be written");
    }
    let recorded = std::fs::read_to_string(&path).expect("the recording is there");
    assert_eq!(script, recorded);
}

fn script_requests() -> Vec<(&'static str, Request)> {
    let create_with = |name, partitions, replicas, config| {
        Request::CreateTopic(CreateTopic { replicas, config, ..create(name, partitions) })
    };
    let alter = |partitions, set: &[(&str, &str)], unset: &[&str]| {
        Request::AlterTopic(AlterTopic {
            name: "flights".into(),
            partitions,
            set_config: settings(set),
            unset_config: unset.iter().map(|key| (*key).to_owned()).collect(),
        })
    };
    let none = BTreeMap::new;
    vec![
        ("no broker, no topic", create_with("flights", 1, None, none())),
        ("the first broker founds the cluster", register(0, "a")),
        (
            "a broker of another cluster",
            Request::RegisterBroker(RegisterBroker {
                cluster_id: "c-2".into(),
                broker: BrokerId(1),
                host: "127.0.0.1".into(),
                port: 9440,
                incarnation: [1; 16],
                is_alone: true,
                ..RegisterBroker::default()
            }),
        ),
        ("a topic", create_with("flights", 2, None, settings(&[("retention.ms", "1000")]))),
        ("the same name again", create_with("flights", 1, None, none())),
        ("names that are none", create_with("..", 1, None, none())),
        ("", create_with("a/b", 1, None, none())),
        ("", create_with("", 1, None, none())),
        ("counts out of range", create_with("orders", 0, None, none())),
        ("", create_with("orders", 10_001, None, none())),
        ("", create_with("orders", 1, Some(2), none())),
        ("a mistyped setting", create_with("orders", 1, None, settings(&[("retention.m", "1")]))),
        (
            "a topic that could never take a batch",
            create_with("orders", 1, None, settings(&[("min.insync.replicas", "2")])),
        ),
        ("more partitions, other settings", alter(Some(3), &[("sync", "interval")], &["retention.ms"])),
        ("everything is so already", alter(Some(3), &[("sync", "interval")], &[])),
        ("a partition count does not shrink", alter(Some(2), &[], &[])),
        ("unsetting what does not exist", alter(None, &[], &["retention"])),
        ("the broker starts again: its leaderships begin anew", register_again(0, "a", 2)),
        ("a mistyped name", Request::DeleteTopic { name: "flihgts".into() }),
        ("deleted", Request::DeleteTopic { name: "flights".into() }),
        ("deleted twice", Request::DeleteTopic { name: "flights".into() }),
    ]
}

#[test]
fn two_requests_decided_before_the_first_is_applied_do_not_contradict_each_other() {
    let (mut controller, mut random) = controller(1, 1);
    let request = || Request::CreateTopic(create("flights", 1));
    let first = decide(&mut controller, &mut random, request()).expect("the name is free");
    assert_eq!(
        decide(&mut controller, &mut random, request()),
        Err(Refusal::TopicExists { name: "flights".into() }),
        "it is taken while its creation is pending"
    );
    assert!(controller.image().topic_named("flights").is_none(), "nothing changes before it is applied");
    controller.apply(&first.records[0]).expect("decided here");
    assert!(controller.image().topic_named("flights").is_some());
}

#[test]
fn discarded_decisions_leave_no_trace() {
    let (mut controller, mut random) = controller(1, 1);
    let before = controller.image().clone();
    decide(&mut controller, &mut random, Request::CreateTopic(create("flights", 1)))
        .expect("the name is free");
    controller.discard_pending();
    assert_eq!(**controller.image(), *before);
    let other = Record::BrokerRegistered(quire_engine::controller::image::Broker {
        id: BrokerId(4),
        epoch: 1,
        incarnation: [1; 16],
        directory: [1; 16],
        host: "127.0.0.1".into(),
        port: 1,
        peer_host: String::new(),
        peer_port: 0,
        rack: String::new(),
        state: BrokerState::Unfenced,
        node: 0,
    });
    controller.apply(&other).expect("what another leader decided");
    decide(&mut controller, &mut random, Request::CreateTopic(create("flights", 1)))
        .expect("the name is free again");
}

#[test]
fn checking_only_changes_nothing() {
    let (mut controller, mut random) = controller(1, 1);
    let request = CreateTopic { validate_only: true, ..create("flights", 3) };
    let decision =
        decide(&mut controller, &mut random, Request::CreateTopic(request)).expect("it could be made");
    assert_eq!(decision.records, []);
    let Response::Topic(topic) = decision.response else { panic!("a topic is answered") };
    assert_eq!(topic.partitions.len(), 3);
    decide(&mut controller, &mut random, Request::CreateTopic(create("flights", 3)))
        .expect("the name is still free");
}

#[test]
fn partitions_spread_over_racks_and_brokers() {
    let (mut controller, mut random) = controller(6, 3);
    let request = CreateTopic { replicas: Some(3), ..create("flights", 12) };
    let Ok(Response::Topic(topic)) = commit(&mut controller, &mut random, Request::CreateTopic(request))
    else {
        panic!("six brokers hold it")
    };
    let image = controller.image();
    let mut leaderships = BTreeMap::new();
    for partition in &topic.partitions {
        let racks = partition.replicas.iter().map(|id| &image.broker(*id).expect("registered").rack);
        let racks: std::collections::BTreeSet<_> = racks.collect();
        assert_eq!(racks.len(), 3, "{partition:?}");
        assert_eq!(Some(partition.replicas[0]), partition.leader, "the preferred leader leads");
        *leaderships.entry(partition.replicas[0]).or_insert(0) += 1;
    }
    assert_eq!(leaderships.values().copied().collect::<Vec<u32>>(), [2; 6]);
    assert_eq!(image.replica_counts().into_values().collect::<Vec<_>>(), [6; 6]);
}

#[test]
fn a_deleted_topic_is_remembered_until_every_holder_confirmed() {
    let (mut controller, mut random) = controller(2, 1);
    let request = CreateTopic { replicas: Some(2), ..create("flights", 1) };
    commit(&mut controller, &mut random, Request::CreateTopic(request)).expect("two brokers hold it");
    let name = "flights".to_owned();
    let Ok(Response::TopicDeleted { id }) =
        commit(&mut controller, &mut random, Request::DeleteTopic { name })
    else {
        panic!("it existed")
    };
    for broker in [BrokerId(0), BrokerId(0), BrokerId(1)] {
        assert!(controller.image().deleted_topic(id).is_some(), "broker {broker} has not confirmed yet");
        commit(&mut controller, &mut random, Request::ConfirmTopicDeletion { id, broker })
            .expect("never refused");
    }
    assert_eq!(controller.image().deleted_topics().len(), 0);
}

#[test]
fn who_holds_a_topic_is_known_partition_by_partition() {
    let (mut controller, mut random) = controller(1, 1);
    let Ok(Response::Topic(topic)) =
        commit(&mut controller, &mut random, Request::CreateTopic(create("flights", 2)))
    else {
        panic!("the name is free")
    };
    assert!(!topic.is_held(PartitionIndex(0), BrokerId(0)), "not before the broker said so");
    let hold_but = |partitions, missing: &[u32]| Request::HoldTopic {
        id: topic.id,
        broker: BrokerId(0),
        partitions,
        missing: missing.iter().copied().map(PartitionIndex).collect(),
    };
    let hold = |partitions| hold_but(partitions, &[]);
    commit(&mut controller, &mut random, hold_but(2, &[1])).expect("never refused");
    let most = controller.image().topic(topic.id).expect("it exists").clone();
    assert!(most.is_held(PartitionIndex(0), BrokerId(0)) && !most.is_held(PartitionIndex(1), BrokerId(0)));
    assert!(!most.is_all_held(BrokerId(0)));
    let again = decide(&mut controller, &mut random, hold_but(2, &[1])).expect("never refused");
    assert_eq!(again.records, [], "it is known");
    for partitions in [2, 1] {
        commit(&mut controller, &mut random, hold(partitions)).expect("never refused");
        let topic = controller.image().topic(topic.id).expect("it exists");
        assert!(topic.is_all_held(BrokerId(0)) && !topic.is_held(PartitionIndex(0), BrokerId(1)));
    }
    let again = decide(&mut controller, &mut random, hold(2)).expect("never refused");
    assert_eq!(again.records, [], "it is known");
    let grow = AlterTopic { name: "flights".into(), partitions: Some(3), ..AlterTopic::default() };
    commit(&mut controller, &mut random, Request::AlterTopic(grow)).expect("it can grow");
    let grown = controller.image().topic(topic.id).expect("it exists");
    assert!(grown.is_held(PartitionIndex(1), BrokerId(0)) && !grown.is_all_held(BrokerId(0)));
    commit(&mut controller, &mut random, hold_but(3, &[0, 2])).expect("never refused");
    let image = Image::decode_snapshot(&controller.image().encode_snapshot()).expect("a snapshot");
    let held = image.topic(topic.id).expect("it exists");
    assert!(held.is_held(PartitionIndex(0), BrokerId(0)), "what was there once is to be there");
    assert!(!held.is_held(PartitionIndex(2), BrokerId(0)) && !held.is_all_held(BrokerId(0)));

    let name = "flights".to_owned();
    commit(&mut controller, &mut random, Request::DeleteTopic { name }).expect("it exists");
    let late = decide(&mut controller, &mut random, hold(3)).expect("never refused");
    assert_eq!(late.records, [], "a topic that is gone is held by nobody");
}

#[test]
fn a_record_that_does_not_fit_changes_nothing() {
    let mut image = Image::default();
    let id = TopicId([9; 16]);
    let stray = Record::TopicPartitionsAdded { id, partitions: Vec::new() };
    assert_eq!(image.apply(&stray), Err(Conflict::NoSuchTopic(id)));
    assert_eq!(image, Image::default());
}

#[test]
fn foreign_bytes_are_refused_and_records_survive_their_encoding() {
    assert_eq!(Record::decode(&[]), Err(DecodeError::Unknown));
    assert!(matches!(Record::decode(&[0xff; 9]), Err(DecodeError::Malformed(_))));
    let confirmed = Record::TopicDeletionConfirmed { id: TopicId([1; 16]), broker: BrokerId(3) };
    let mut bytes = confirmed.encode();
    assert_eq!(Record::decode(&bytes), Ok(confirmed));
    let missing = [2, 5].map(PartitionIndex).into();
    let held = Record::TopicHeld { id: TopicId([1; 16]), broker: BrokerId(3), partitions: 7, missing };
    assert_eq!(Record::decode(&held.encode()), Ok(held));
    // The id's length, one byte after the outer and the inner tag with theirs.
    bytes.remove(4);
    bytes[3] -= 1;
    bytes[1] -= 1;
    assert_eq!(Record::decode(&bytes), Err(DecodeError::Field("topic id")));
}

fn any_request() -> impl Strategy<Value = Request> {
    let name = prop_oneof![Just("a"), Just("b"), Just("a b"), Just("..")].prop_map(str::to_owned);
    let config = prop_oneof![
        3 => Just(BTreeMap::new()),
        1 => Just(settings(&[("retention.ms", "5")])),
        1 => Just(settings(&[("min.insync.replicas", "2")])),
        1 => Just(settings(&[("colour", "red")])),
    ];
    prop_oneof![
        2 => (0..3u32, 1..9u8).prop_map(|(broker, start)| register_again(broker, "", start)),
        4 => (name.clone(), 0..4u32, prop::option::of(0..4u32), config.clone()).prop_map(
            |(name, partitions, replicas, config)| Request::CreateTopic(CreateTopic {
                name, partitions, replicas, config, validate_only: false,
            })
        ),
        3 => (name.clone(), prop::option::of(0..6u32), config).prop_map(|(name, partitions, set_config)| {
            Request::AlterTopic(AlterTopic { name, partitions, set_config, unset_config: Vec::new() })
        }),
        2 => name.prop_map(|name| Request::DeleteTopic { name }),
    ]
}

proptest! {
    /// Requests decided in a pipeline end as they do one by one; the stored records rebuild the same image; and no
    /// image contradicts itself.
    #[test]
    fn the_log_alone_rebuilds_the_image(
        requests in prop::collection::vec(any_request(), 1..40),
        pipeline in 1..6usize,
        seed in any::<u64>(),
    ) {
        let (mut controller, mut random) = (Controller::new(), SplitMix64::new(seed));
        let mut log: Vec<Vec<u8>> = Vec::new();
        for window in requests.chunks(pipeline) {
            let decided: Vec<_> = window
                .iter()
                .filter_map(|request| decide(&mut controller, &mut random, request.clone()).ok())
                .collect();
            for record in decided.iter().flat_map(|decision| &decision.records) {
                prop_assert!(controller.apply(record).is_ok());
                log.push(record.encode());
            }
            check(controller.image())?;
        }
        let mut rebuilt = Image::default();
        for bytes in &log {
            let record = Record::decode(bytes).map_err(|error| TestCaseError::fail(error.to_string()))?;
            prop_assert_eq!(rebuilt.apply(&record), Ok(()));
        }
        prop_assert_eq!(&rebuilt, &**controller.image());
    }
}

fn check(image: &Image) -> Result<(), TestCaseError> {
    for topic in image.topics() {
        prop_assert_eq!(image.topic_named(&topic.name).map(|found| found.id), Some(topic.id));
        prop_assert!(!topic.partitions.is_empty());
        for (index, partition) in topic.partitions.iter().enumerate() {
            prop_assert_eq!(partition.index, PartitionIndex(index as u32));
            prop_assert_eq!(partition.replicas.len(), topic.replicas as usize);
            prop_assert!(partition.in_sync.iter().all(|id| partition.replicas.contains(id)));
            prop_assert!(partition.leader.is_some_and(|leader| partition.in_sync.contains(&leader)));
            prop_assert!(partition.replicas.iter().all(|id| image.broker(*id).is_some()));
        }
    }
    Ok(())
}

#[test]
fn one_seed_replays_one_run() {
    let run = || {
        let (mut controller, mut random) = controller(3, 1);
        for name in ["a", "b"] {
            commit(&mut controller, &mut random, Request::CreateTopic(create(name, 5))).expect("free names");
        }
        (Image::clone(controller.image()), random.next_u64())
    };
    assert_eq!(run(), run());
}
