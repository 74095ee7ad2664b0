//! Assignors: every partition once, balanced, no more moves than it takes, the same each time, and fast.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use proptest::prelude::*;
use quire_engine::SplitMix64;
use quire_engine::controller::{self, Controller, CreateTopic, RegisterBroker};
use quire_engine::group::assignment::{Subscriber, assign};
use quire_engine::group::topics::Topic;
use quire_engine::group::{Assignor, Partitions, Topics};
use quire_engine::machine::Replicated;
use quire_protocol::{BrokerId, Timestamp, TopicPartition};

use crate::desk::{partitions, topic_id, topics};

type Members = BTreeMap<Arc<str>, Subscriber>;
type Assignment = BTreeMap<Arc<str>, Partitions>;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn subscriber(id: &str, names: &[&str], rack: Option<&str>) -> (Arc<str>, Subscriber) {
    let topics = names.iter().map(|name| topic_id(name)).collect();
    (id.into(), Subscriber { order: id.into(), rack: rack.map(Arc::from), topics })
}

fn members(count: usize, names: &[&str]) -> Members {
    (0..count).map(|number| subscriber(&format!("m{number:03}"), names, None)).collect()
}

fn loads(assignment: &Assignment) -> Vec<usize> {
    assignment.values().map(BTreeSet::len).collect()
}

fn is_level(assignment: &Assignment) -> bool {
    let loads = loads(assignment);
    loads.iter().max().unwrap_or(&0) - loads.iter().min().unwrap_or(&0) <= 1
}

/// What is with another member than before, of what was with a member that is still there.
fn moved(before: &Assignment, after: &Assignment) -> usize {
    let owners = |assignment: &Assignment| -> BTreeMap<TopicPartition, Arc<str>> {
        let each = assignment.iter().flat_map(|(id, has)| has.iter().map(move |each| (*each, id.clone())));
        each.collect()
    };
    let (before, now) = (owners(before), owners(after));
    let is_moved = |(partition, owner): &(&TopicPartition, &Arc<str>)| {
        after.contains_key(*owner) && now.get(*partition).is_some_and(|other| other != *owner)
    };
    before.iter().filter(is_moved).count()
}

/// The least that has to leave members for all to be level.
fn least_moves(before: &Assignment, members: &Members, count: usize) -> usize {
    let kept: Vec<usize> = members.keys().map(|id| before.get(id).map_or(0, BTreeSet::len)).collect();
    let (floor, longer) = (count / members.len(), count % members.len());
    // As many as can be keep one more than the others: those that have most.
    let mut sorted = kept;
    sorted.sort_by(|left, right| right.cmp(left));
    let share = |place: usize| floor + usize::from(place < longer);
    sorted.iter().enumerate().map(|(place, load)| load.saturating_sub(share(place))).sum()
}

fn everything(counts: &[(&str, u32)]) -> Partitions {
    counts.iter().flat_map(|(name, count)| partitions(name, 0..*count)).collect()
}

fn assert_each_once(members: &Members, counts: &[(&str, u32)], assignment: &Assignment) {
    assert!(assignment.keys().eq(members.keys()), "everybody is told");
    let subscribed: BTreeSet<_> = members.values().flat_map(|member| member.topics.iter()).collect();
    let expected = everything(counts).into_iter().filter(|id| subscribed.contains(&id.topic));
    let mut given: Vec<_> = assignment.values().flatten().copied().collect();
    given.sort_unstable();
    assert_eq!(given, expected.collect::<Vec<_>>(), "each partition once");
    for (id, has) in assignment {
        assert!(has.iter().all(|partition| members[id].topics.contains(&partition.topic)));
    }
}

#[test]
fn ranges_are_of_each_topic_and_turns_of_all() {
    let (counts, three) = ([("a", 4), ("b", 2)], members(3, &["a", "b"]));
    let known = topics(&counts);
    let ranges = assign(Assignor::Range, &three, &known, &BTreeMap::new());
    let expected = [
        &partitions("a", 0..2) | &partitions("b", 0..1),
        &partitions("a", 2..3) | &partitions("b", 1..2),
        partitions("a", 3..4),
    ];
    assert_eq!(ranges.into_values().collect::<Vec<_>>(), expected);
    let turns = assign(Assignor::RoundRobin, &three, &known, &BTreeMap::new());
    let expected = [
        partitions("a", [0, 3]),
        &partitions("a", [1]) | &partitions("b", [0]),
        &partitions("a", [2]) | &partitions("b", [1]),
    ];
    assert_eq!(turns.into_values().collect::<Vec<_>>(), expected);
}

#[test]
fn an_instance_keeps_its_place_under_another_id() {
    let known = topics(&[("a", 4)]);
    let named = |id: &str| -> Members {
        let (id, mut static_one) = subscriber(id, &["a"], None);
        static_one.order = "m000-static".into();
        [(id, static_one), subscriber("m001", &["a"], None)].into()
    };
    let first = assign(Assignor::Range, &named("x1"), &known, &BTreeMap::new());
    let second = assign(Assignor::Range, &named("a9"), &known, &BTreeMap::new());
    assert_eq!(first["x1"], second["a9"]);
}

#[test]
fn racks_are_preferred_and_never_break_balance() {
    let racks = |index: u32| [Arc::from(if index.is_multiple_of(2) { "east" } else { "west" })].into();
    let topic = |name: &str, count: u32| Topic {
        id: topic_id(name),
        name: name.into(),
        partitions: count,
        racks: (0..count).map(racks).collect(),
    };
    let known = Topics::new([topic("a", 8)], []);
    let near = |members: &Members, assignment: &Assignment| -> usize {
        let is_near = |id: &Arc<str>, partition: &TopicPartition| {
            let racks = known.racks(*partition).expect("it has racks");
            members[id].rack.as_ref().is_some_and(|rack| racks.contains(rack))
        };
        assignment.iter().map(|(id, has)| has.iter().filter(|each| is_near(id, each)).count()).sum()
    };
    let two: Members =
        [subscriber("m1", &["a"], Some("west")), subscriber("m2", &["a"], Some("east"))].into();
    let assignment = assign(Assignor::Sticky, &two, &known, &BTreeMap::new());
    assert_eq!((near(&two, &assignment), is_level(&assignment)), (8, true));
    let crowded: Members = ["m1", "m2", "m3"].map(|id| subscriber(id, &["a"], Some("west"))).into();
    let assignment = assign(Assignor::Sticky, &crowded, &known, &BTreeMap::new());
    assert_eq!((near(&crowded, &assignment), is_level(&assignment)), (4, true));
    let mut third = two.clone();
    third.extend([subscriber("m3", &["a"], Some("east"))]);
    let before = assign(Assignor::Sticky, &two, &known, &BTreeMap::new());
    let after = assign(Assignor::Sticky, &third, &known, &before);
    assert!(is_level(&after));
    assert_eq!(moved(&before, &after), 2, "nothing moves for the sake of a rack");
}

#[test]
fn topics_are_those_of_the_metadata_image() {
    let (mut controller, mut random) = (Controller::new(), SplitMix64::new(1));
    let mut decide = |request| {
        let decision = controller.decide(Timestamp(0), &mut random, request).expect("it is decided");
        for record in &decision.records {
            controller.apply(record).expect("it fits");
        }
        Topics::from_image(controller.image())
    };
    let register = |broker: u32, rack: &str| {
        controller::Request::RegisterBroker(RegisterBroker {
            cluster_id: "c-1".into(),
            broker: BrokerId(broker),
            host: "h".into(),
            port: 9440,
            rack: rack.into(),
            incarnation: [broker as u8 + 1; 16],
            is_alone: true,
            ..RegisterBroker::default()
        })
    };
    let create = |name: &str| {
        let (name, replicas) = (name.into(), Some(1));
        controller::Request::CreateTopic(CreateTopic { name, partitions: 2, replicas, ..Default::default() })
    };
    decide(register(0, ""));
    let known = decide(create("flights"));
    let flights = known.named("flights").expect("it exists").clone();
    assert_eq!((flights.partitions, flights.racks.len()), (2, 0), "nobody has a rack");
    decide(register(1, "east"));
    let known = decide(controller::Request::DeleteTopic { name: "flights".into() });
    assert_eq!((known.named("flights"), known.is_deleted(flights.id)), (None, true));
    let known = decide(create("orders"));
    let racks = &known.named("orders").expect("it exists").racks;
    assert_eq!(racks.len(), 2, "{racks:?}");
    assert!(racks.iter().flatten().all(|rack| &**rack == "east"));
}

#[test]
fn a_large_group_is_assigned_fast() {
    let counts = [("a", 250), ("b", 250), ("c", 250), ("d", 250)];
    let (known, hundred) = (topics(&counts), members(100, &NAMES));
    let mut mixed = hundred.clone();
    for (number, member) in mixed.values_mut().enumerate() {
        member.topics.remove(&topic_id(NAMES[number % 4]));
    }
    for (what, group) in [("alike", &hundred), ("mixed", &mixed)] {
        for assignor in Assignor::ALL {
            let started = Instant::now();
            let first = assign(assignor, group, &known, &BTreeMap::new());
            let mut fewer = group.clone();
            fewer.pop_first();
            let second = assign(assignor, &fewer, &known, &first);
            let taken = started.elapsed() / 2;
            println!("{} {what}: {taken:?} for 1,000 partitions and 100 members", assignor.name());
            assert_each_once(&fewer, &counts, &second);
            assert!(taken.as_millis() < 1000, "{taken:?}: far more than it takes on a busy machine");
        }
    }
}

fn any_counts() -> impl Strategy<Value = Vec<(&'static str, u32)>> {
    proptest::collection::vec(1u32..20, 1..=4)
        .prop_map(|counts| NAMES.into_iter().zip(counts).collect::<Vec<_>>())
}

/// Members with any subscriptions to these topics, never none.
fn any_members() -> impl Strategy<Value = Members> {
    let names = proptest::sample::subsequence(NAMES.to_vec(), 1..=4);
    proptest::collection::btree_map(0..30u32, names, 1..12).prop_map(|members| {
        members
            .into_iter()
            .map(|(number, names)| subscriber(&format!("m{number:02}"), &names, None))
            .collect()
    })
}

/// Which members are there, one round after the other.
fn any_rounds() -> impl Strategy<Value = Vec<BTreeSet<u32>>> {
    proptest::collection::vec(proptest::collection::btree_set(0..12u32, 1..12), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_assignor_gives_each_partition_once_and_the_same_each_time(
        counts in any_counts(), before in any_members(), after in any_members()
    ) {
        let known = topics(&counts);
        for assignor in Assignor::ALL {
            let first = assign(assignor, &before, &known, &BTreeMap::new());
            assert_each_once(&before, &counts, &first);
            let second = assign(assignor, &after, &known, &first);
            assert_each_once(&after, &counts, &second);
            prop_assert_eq!(&second, &assign(assignor, &after, &known, &first));
        }
    }

    #[test]
    fn with_equal_subscriptions_loads_differ_by_one_at_most(counts in any_counts(), count in 1..12usize) {
        let known = topics(&counts);
        let alike = members(count, &NAMES);
        for assignor in [Assignor::RoundRobin, Assignor::Sticky] {
            prop_assert!(is_level(&assign(assignor, &alike, &known, &BTreeMap::new())));
        }
        let ranges = assign(Assignor::Range, &alike, &known, &BTreeMap::new());
        for (name, _) in &counts {
            let of_one = ranges.iter().map(|(id, has)| {
                (id.clone(), has.iter().filter(|each| each.topic == topic_id(name)).copied().collect())
            });
            prop_assert!(is_level(&of_one.collect()));
        }
    }

    #[test]
    fn the_sticky_one_moves_only_what_it_must(counts in any_counts(), rounds in any_rounds()) {
        let known = topics(&counts);
        let count = everything(&counts).len();
        let mut before = Assignment::new();
        for round in rounds {
            let there: Members = round
                .iter()
                .map(|number| subscriber(&format!("m{number:02}"), &NAMES, None))
                .collect();
            let after = assign(Assignor::Sticky, &there, &known, &before);
            prop_assert!(is_level(&after));
            prop_assert_eq!(moved(&before, &after), least_moves(&before, &there, count));
            before = after;
        }
    }

    #[test]
    fn with_any_subscriptions_nobody_has_what_another_lacks(
        counts in any_counts(), before in any_members(), after in any_members()
    ) {
        let known = topics(&counts);
        let first = assign(Assignor::Sticky, &before, &known, &BTreeMap::new());
        let second = assign(Assignor::Sticky, &after, &known, &first);
        for (members, assignment) in [(&before, &first), (&after, &second)] {
            for (rich, has) in assignment {
                for (poor, other) in assignment {
                    let could_move = has.iter().any(|each| members[poor].topics.contains(&each.topic));
                    prop_assert!(!could_move || has.len() <= other.len() + 1, "{rich} has more than {poor}");
                }
            }
        }
        let again = assign(Assignor::Sticky, &after, &known, &second);
        prop_assert_eq!(again, second, "what is balanced stays");
    }
}
