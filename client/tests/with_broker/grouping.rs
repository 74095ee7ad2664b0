//! Groups: who reads what, what is committed, what comes twice and what does not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quire_client::{
    Client, ConsumedRecord, ErrorCode, GroupConsumer, GroupConsumerBuilder, GroupState, NewTopic, Offset,
    Position, TopicPartition,
};
use tokio::time::timeout;

use crate::support::{Rig, connect, record, start_broker};

const PATIENCE: Duration = Duration::from_secs(30);

fn builder(client: &Client, group: &str) -> GroupConsumerBuilder {
    client.consumer().group(group).topics(["t"]).commit_interval(Duration::from_millis(20))
}

fn member(client: &Client, group: &str) -> GroupConsumer {
    builder(client, group).build().expect("settings that hold")
}

/// So many records, numbered, spread over the partitions.
async fn fill(client: &Client, count: u32) {
    let producer = client.producer().build();
    for number in 0..count {
        let numbered =
            quire_client::Record { key: Some(number.to_string().into()), ..record(number.to_string()) };
        drop(producer.enqueue("t", numbered).await.expect("room"));
    }
    producer.close().await.expect("acknowledged");
}

async fn next(consumer: &mut GroupConsumer) -> ConsumedRecord {
    timeout(PATIENCE, consumer.next()).await.expect("in time").expect("a record")
}

fn place(record: &ConsumedRecord) -> (u32, u64) {
    (record.partition.0, record.offset.0)
}

async fn take(consumer: &mut GroupConsumer, count: usize) -> Vec<(u32, u64)> {
    let mut places = Vec::new();
    while places.len() < count {
        places.push(place(&next(consumer).await));
    }
    places
}

/// Polls, so that the member gives up and takes what it should, until it has so many partitions.
async fn until_assigned(consumer: &mut GroupConsumer, count: usize) {
    let assigned = async {
        while consumer.assignment().len() != count {
            // What comes meanwhile belongs to tests that do not count it.
            let _ = timeout(Duration::from_millis(5), consumer.next()).await;
        }
    };
    timeout(PATIENCE, assigned).await.expect("in time");
}

async fn committed(client: &Client, group: &str) -> BTreeMap<TopicPartition, Offset> {
    let described = client.admin().describe_group(group).await.expect("it is there");
    described.offsets.into_iter().map(|offset| (offset.id, offset.offset)).collect()
}

async fn committed_records(client: &Client, group: &str) -> u64 {
    committed(client, group).await.values().map(|offset| offset.0).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_goes_on_where_the_one_before_it_had_committed() {
    let rig = Rig::with_topic(3).await;
    fill(&rig.client, 100).await;
    let mut first = member(&rig.client, "g");
    let mut seen = take(&mut first, 40).await;
    first.commit_sync().await.expect("committed");
    assert_eq!(committed_records(&rig.client, "g").await, 40);
    first.leave().await.expect("told");
    let mut second = member(&rig.client, "g");
    seen.extend(take(&mut second, 60).await);
    let unique: BTreeSet<_> = seen.iter().copied().collect();
    assert_eq!((seen.len(), unique.len()), (100, 100), "nothing twice, nothing missing");
    second.commit_sync().await.expect("committed");
    second.leave().await.expect("told");
    // Another group begins at the beginning, and one that is to, at the end.
    let mut other = member(&rig.client, "other");
    assert_eq!(take(&mut other, 100).await.len(), 100);
    let mut late = builder(&rig.client, "late").from(Position::End).build().expect("settings that hold");
    until_assigned(&mut late, 3).await;
    fill(&rig.client, 1).await;
    let place = place(&next(&mut late).await);
    assert!(!unique.contains(&place), "{place:?} was there before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_counts_as_processed_when_the_next_one_is_asked_for() {
    let rig = Rig::with_topic(1).await;
    fill(&rig.client, 3).await;
    let mut consumer = member(&rig.client, "g");
    take(&mut consumer, 2).await;
    consumer.leave().await.expect("told");
    assert_eq!(committed_records(&rig.client, "g").await, 1, "the second one is in hand");
}

/// A joining member stops nobody else: the partitions that stay are read on while the others change hands.
#[tokio::test(flavor = "multi_thread")]
async fn members_share_the_partitions_and_whoever_stays_goes_on() {
    let rig = Rig::with_topic(4).await;
    let events = Arc::new(Mutex::new(Vec::new()));
    let note = |what: &'static str| {
        let events = Arc::clone(&events);
        move |partitions: &[quire_client::GroupPartition]| {
            assert!(partitions.iter().all(|partition| !partition.is_lost && &*partition.topic == "t"));
            let ids: BTreeSet<_> = partitions.iter().map(|partition| partition.id.partition.0).collect();
            events.lock().expect("no panics").push((what, ids));
        }
    };
    let mut first = builder(&rig.client, "g")
        .on_assigned(note("assigned"))
        .on_revoked(note("revoked"))
        .build()
        .expect("settings that hold");
    until_assigned(&mut first, 4).await;
    let mut second = member(&rig.client, "g");
    let (mut kept, mut taken) = (BTreeSet::new(), BTreeSet::new());
    let shared = async {
        tokio::join!(until_assigned(&mut first, 2), until_assigned(&mut second, 2));
    };
    timeout(PATIENCE, shared).await.expect("in time");
    kept.extend(first.assignment().iter().map(|partition| partition.id.partition.0));
    taken.extend(second.assignment().iter().map(|partition| partition.id.partition.0));
    assert!(kept.is_disjoint(&taken) && kept.len() + taken.len() == 4, "{kept:?} {taken:?}");
    let told = events.lock().expect("no panics").clone();
    assert_eq!(told[0], ("assigned", BTreeSet::from([0, 1, 2, 3])));
    assert_eq!(told[1..], [("revoked", taken.clone())], "what stays is not given up first");

    let described = rig.client.admin().describe_group("g").await.expect("it is there");
    assert_eq!((described.summary.state, described.members.len()), (GroupState::Stable, 2));
    assert_eq!(described.assignor, "sticky");
    let ids: BTreeSet<_> = described.members.iter().map(|member| member.id.as_str()).collect();
    assert_eq!(ids, BTreeSet::from([first.member(), second.member()]));

    fill(&rig.client, 200).await;
    let (mut by_first, mut by_second) = (Vec::new(), Vec::new());
    let read = async {
        while by_first.len() + by_second.len() < 200 {
            tokio::select! {
                record = first.next() => by_first.push(place(&record.expect("a record"))),
                record = second.next() => by_second.push(place(&record.expect("a record"))),
            }
        }
    };
    timeout(PATIENCE, read).await.expect("in time");
    assert!(by_first.iter().all(|(partition, _)| kept.contains(partition)));
    assert!(by_second.iter().all(|(partition, _)| taken.contains(partition)));
    let unique: BTreeSet<_> = by_first.iter().chain(&by_second).collect();
    assert_eq!(unique.len(), 200);
    // Whoever leaves is replaced at once.
    second.commit_sync().await.expect("committed");
    second.leave().await.expect("told");
    until_assigned(&mut first, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_and_members_outlive_a_restart_of_the_broker() {
    let rig = Rig::with_topic(2).await;
    fill(&rig.client, 50).await;
    let mut consumer = member(&rig.client, "g");
    let mut seen = take(&mut consumer, 30).await;
    consumer.commit_sync().await.expect("committed");
    let address = rig.broker.address();
    assert!(rig.broker.shutdown().await.clean);
    let broker = start_broker(rig.dir.path(), address).await;
    let client = connect(&broker).await;
    assert_eq!(committed_records(&client, "g").await, 30);
    // The member is the same, and its session goes on.
    let described = client.admin().describe_group("g").await.expect("it is there");
    assert_eq!(described.members.len(), 1);
    seen.extend(take(&mut consumer, 20).await);
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 50);
    assert_eq!(seen.len(), 50, "nothing came twice");
    consumer.commit_sync().await.expect("committed");
    assert_eq!(committed_records(&client, "g").await, 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_member_that_comes_back_gets_its_partitions_and_disturbs_nobody() {
    let rig = Rig::with_topic(2).await;
    let instance =
        |name: &str| builder(&rig.client, "g").instance_id(name).build().expect("settings that hold");
    let (mut a, mut b) = (instance("a"), instance("b"));
    let shared = async {
        tokio::join!(until_assigned(&mut a, 1), until_assigned(&mut b, 1));
    };
    timeout(PATIENCE, shared).await.expect("in time");
    let had = a.assignment();
    a.leave().await.expect("told");
    let described = rig.client.admin().describe_group("g").await.expect("it is there");
    assert_eq!(described.members.iter().filter(|member| member.is_away).count(), 1, "{described:?}");
    let mut again = instance("a");
    until_assigned(&mut again, 1).await;
    assert_eq!((again.assignment(), b.assignment().len()), (had, 1));
    // Two of one name: the second waits for as long as a crashed one would be missed, and is refused.
    let mut twice = builder(&rig.client, "g")
        .instance_id("b")
        .session_timeout(Duration::from_secs(1))
        .build()
        .expect("settings that hold");
    let refused = timeout(PATIENCE, twice.next()).await.expect("in time").expect_err("it is taken");
    assert_eq!(refused.code(), Some(ErrorCode::InstanceInUse), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_asks_for_no_record_makes_room_for_others_and_comes_back() {
    let rig = Rig::with_topic(2).await;
    fill(&rig.client, 40).await;
    let lost = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&lost);
    let mut slow = builder(&rig.client, "g")
        .poll_interval(Duration::from_millis(300))
        .on_revoked(move |partitions| {
            *counted.lock().expect("no panics") +=
                partitions.iter().filter(|partition| partition.is_lost).count();
        })
        .build()
        .expect("settings that hold");
    take(&mut slow, 5).await;
    let mut other = member(&rig.client, "g");
    until_assigned(&mut other, 2).await;
    // What it has in hand is not its own any more: it is told, and reads no more than its share.
    let error = slow.commit_sync().await.expect_err("it is no member");
    assert_eq!(error.code(), Some(ErrorCode::UnknownMember), "{error}");
    let shared = async {
        tokio::join!(until_assigned(&mut slow, 1), until_assigned(&mut other, 1));
    };
    timeout(PATIENCE, shared).await.expect("in time");
    assert_eq!(*lost.lock().expect("no panics"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_is_paused_and_resumed_and_read_again_from_where_one_seeks() {
    let rig = Rig::with_topic(2).await;
    fill(&rig.client, 60).await;
    let mut consumer = builder(&rig.client, "g").commit_manually().build().expect("settings that hold");
    until_assigned(&mut consumer, 2).await;
    let first = next(&mut consumer).await.partition;
    assert!(consumer.pause("t", first) && !consumer.pause("t", quire_client::PartitionIndex(9)));
    let paused = consumer.lag().into_iter().find(|lag| lag.partition == first).expect("it is read");
    assert!(paused.is_paused);
    let ends = rig.client.admin().list_offsets("t", [(first, Position::End)]).await.expect("asked");
    let others = 60 - ends[0].offset.0 as usize;
    while consumer.lag().iter().any(|lag| lag.partition != first && lag.records > 0) {
        assert_ne!(next(&mut consumer).await.partition, first, "it is paused");
    }
    assert!(timeout(Duration::from_millis(100), consumer.next()).await.is_err());
    assert!(others > 0 && consumer.resume("t", first));
    let resumed = next(&mut consumer).await;
    assert_eq!((resumed.partition, resumed.offset), (first, paused.position));
    while consumer.lag().iter().any(|lag| lag.records > 0) {
        next(&mut consumer).await;
    }
    consumer.commit_sync().await.expect("committed");
    assert!(consumer.seek("t", first, Offset(0)));
    assert_eq!(place(&next(&mut consumer).await), (first.0, 0));
    // What is committed does not go back.
    consumer.commit_sync().await.expect("no error");
    assert_eq!(committed_records(&rig.client, "g").await, 60);
}

/// Whoever gave up waiting has no record in hand, and was taken for waiting for ever.
#[tokio::test(flavor = "multi_thread")]
async fn only_who_waits_for_a_record_stays_a_member_without_one() {
    let rig = Rig::with_topic(2).await;
    let lost = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&lost);
    let poll_interval = Duration::from_millis(300);
    let mut consumer = builder(&rig.client, "g")
        .poll_interval(poll_interval)
        .on_revoked(move |partitions| *counted.lock().expect("no panics") += partitions.len())
        .build()
        .expect("settings that hold");
    until_assigned(&mut consumer, 2).await;
    assert!(timeout(5 * poll_interval, consumer.next()).await.is_err(), "there is none");
    assert_eq!((*lost.lock().expect("no panics"), consumer.assignment().len()), (0, 2));
    let mut other = member(&rig.client, "g");
    until_assigned(&mut other, 2).await;
}

/// The join was still under way, and the coordinator waited for a member that was gone.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_leaves_while_joining_is_no_member_afterwards() {
    let rig = Rig::with_topic(1).await;
    let mut first = member(&rig.client, "g");
    until_assigned(&mut first, 1).await;
    for wait in 0..8 {
        let mut consumer = member(&rig.client, "g");
        let _ = timeout(Duration::from_millis(wait), consumer.next()).await;
        consumer.leave().await.expect("told");
        let described = rig.client.admin().describe_group("g").await.expect("it is there");
        let members: Vec<_> = described.members.iter().map(|member| member.id.as_str()).collect();
        assert_eq!(members, [first.member()]);
    }
}

/// Seeking asks for no next record: what was in hand when the record was to be tried again came never again.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_one_seeks_away_from_is_not_processed() {
    let rig = Rig::with_topic(1).await;
    fill(&rig.client, 10).await;
    let mut consumer = member(&rig.client, "g");
    assert_eq!(take(&mut consumer, 3).await, [(0, 0), (0, 1), (0, 2)]);
    assert!(consumer.seek("t", quire_client::PartitionIndex(0), Offset(2)));
    consumer.leave().await.expect("told");
    assert_eq!(committed_records(&rig.client, "g").await, 2);
}

/// As for ever as it gets: it overflowed a clock.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_takes_all_the_time_there_is_reads_like_others() {
    let rig = Rig::with_topic(1).await;
    fill(&rig.client, 3).await;
    let patient = builder(&rig.client, "g")
        .session_timeout(Duration::MAX)
        .rebalance_timeout(Duration::MAX)
        .poll_interval(Duration::MAX)
        .commit_interval(Duration::MAX);
    let mut consumer = patient.build().expect("settings that hold");
    take(&mut consumer, 3).await;
    consumer.leave().await.expect("told");
    assert_eq!(committed_records(&rig.client, "g").await, 2, "the third was not done with");
}

#[tokio::test(flavor = "multi_thread")]
async fn manual_commits_are_all_that_is_committed() {
    let rig = Rig::with_topic(1).await;
    fill(&rig.client, 10).await;
    let mut consumer = builder(&rig.client, "g").commit_manually().build().expect("settings that hold");
    take(&mut consumer, 4).await;
    consumer.commit();
    take(&mut consumer, 3).await;
    consumer.leave().await.expect("told");
    assert_eq!(committed_records(&rig.client, "g").await, 4);
    let mut again = member(&rig.client, "g");
    assert_eq!(place(&next(&mut again).await), (0, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_listed_described_moved_and_deleted() {
    let rig = Rig::with_topic(2).await;
    fill(&rig.client, 20).await;
    let admin = rig.client.admin();
    assert_eq!(admin.list_groups().await.expect("asked").groups, []);
    let refused = admin.describe_group("g").await.expect_err("there is none");
    assert_eq!(refused.code(), Some(ErrorCode::UnknownGroup), "{refused}");
    let mut consumer = member(&rig.client, "g");
    take(&mut consumer, 20).await;
    consumer.commit_sync().await.expect("committed");
    let described = admin.describe_group("g").await.expect("it is there");
    let progress = admin.group_progress(&described).await.expect("asked");
    assert_eq!(progress.len(), 2);
    for partition in &progress {
        let log = partition.log.as_ref().expect("its leader answers");
        assert_eq!((log.lag, log.behind, log.lost, partition.member), (0, None, 0, Some(0)));
        assert_eq!(Some(log.end), partition.committed);
    }
    let offsets: BTreeMap<_, _> = progress.iter().map(|partition| (partition.id, Offset(3))).collect();
    let refused = admin.reset_group("g", &offsets, &BTreeSet::new()).await.expect_err("it has a member");
    assert_eq!(refused.code(), Some(ErrorCode::GroupNotEmpty), "{refused}");
    let refused = admin.delete_group("g").await.expect_err("it has a member");
    assert_eq!(refused.code(), Some(ErrorCode::GroupNotEmpty), "{refused}");
    consumer.leave().await.expect("told");

    admin.reset_group("g", &offsets, &BTreeSet::new()).await.expect("it is empty");
    assert_eq!(committed(&rig.client, "g").await, offsets);
    let described = admin.describe_group("g").await.expect("it is there");
    for partition in admin.group_progress(&described).await.expect("asked") {
        let log = partition.log.expect("its leader answers");
        assert_eq!(log.lag, log.end.0 - 3);
        assert!(log.behind.is_some_and(|behind| behind < PATIENCE) && log.retention_in.is_some(), "{log:?}");
    }
    // A partition without a commit waits as well, from its beginning.
    let forget = progress[1].id;
    admin.reset_group("g", &BTreeMap::new(), &BTreeSet::from([forget])).await.expect("it is empty");
    let described = admin.describe_group("g").await.expect("it is there");
    let after = admin.group_progress(&described).await.expect("asked");
    let log = after[1].log.as_ref().expect("its leader answers");
    assert_eq!((after[1].committed, log.lag, log.lost), (None, log.end.0, 0));
    assert!(log.behind.is_some_and(|behind| behind < PATIENCE) && log.retention_in.is_some(), "{log:?}");
    admin.reset_group("g", &offsets, &BTreeSet::new()).await.expect("it is empty");
    let listed = admin.list_groups().await.expect("asked");
    let names: Vec<_> = listed.groups.iter().map(|group| (group.name.as_str(), group.state)).collect();
    assert_eq!((names.as_slice(), listed.unknown.len()), ([("g", GroupState::Empty)].as_slice(), 0));
    let mut again = member(&rig.client, "g");
    assert_eq!(next(&mut again).await.offset, Offset(3));
    again.leave().await.expect("told");
    admin.delete_group("g").await.expect("it is empty");
    let refused = admin.describe_group("g").await.expect_err("it is gone");
    assert_eq!(refused.code(), Some(ErrorCode::UnknownGroup), "{refused}");
}

/// The topic may come after the group, and grow, and be deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_follows_its_topics() {
    let rig = Rig::start().await;
    let admin = rig.client.admin();
    let mut consumer = member(&rig.client, "g");
    assert!(timeout(Duration::from_millis(200), consumer.next()).await.is_err());
    admin.create_topic(NewTopic::new("t").partitions(1)).await.expect("created");
    until_assigned(&mut consumer, 1).await;
    fill(&rig.client, 5).await;
    assert_eq!(take(&mut consumer, 5).await.len(), 5);
    admin.alter_topic(quire_client::TopicAlteration::new("t").partitions(3)).await.expect("altered");
    until_assigned(&mut consumer, 3).await;
    admin.delete_topic("t").await.expect("deleted");
    let gone = async {
        while !consumer.assignment().is_empty() {
            let _ = timeout(Duration::from_millis(5), consumer.next()).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("in time");
    assert_eq!(committed(&rig.client, "g").await, BTreeMap::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_groups_are_kept_in_is_the_brokers_own() {
    let rig = Rig::with_topic(1).await;
    let mut consumer = member(&rig.client, "g");
    until_assigned(&mut consumer, 1).await;
    let admin = rig.client.admin();
    let producer = rig.client.producer().build();
    let refused = producer.send("__consumer_offsets", record("x")).await.expect_err("nobody else writes it");
    assert_eq!(refused.code(), Some(ErrorCode::NotAuthorized), "{refused}");
    let refused = admin.delete_topic("__consumer_offsets").await.expect_err("it stays");
    assert_eq!(refused.code(), Some(ErrorCode::NotPossible), "{refused}");
    let refused = admin.create_topic(NewTopic::new("__mine")).await.expect_err("such names are taken");
    assert_eq!(refused.code(), Some(ErrorCode::NotPossible), "{refused}");
}
