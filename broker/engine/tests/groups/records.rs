//! Records: what is written can be read, what is not is refused, and a log read twice says what it says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use quire_engine::group::records::{Committed, Current, GroupRecord, KeyValue, MemberRecord, Protocol};
use quire_engine::group::request::{Asker, Commit, OffsetToCommit, ResetOffsets};
use quire_engine::group::{Assignor, Generation, Heartbeat, Partitions, Record, Request, Response};
use quire_protocol::{ErrorCode, LeaderEpoch, Offset, Timestamp};

use crate::desk::{Desk, GROUP, apply, beat, compacted, join, offset, owns, partition, rebuild, topics};

const NAMES: [&str; 3] = ["a", "b", "c"];

fn any_text() -> impl Strategy<Value = Arc<str>> {
    "[a-zé]{1,8}".prop_map(Arc::from)
}

fn any_partitions() -> impl Strategy<Value = Partitions> {
    let one =
        (proptest::sample::select(&NAMES[..]), 0..6u32).prop_map(|(name, index)| partition(name, index));
    proptest::collection::btree_set(one, 0..8)
}

fn any_assignor() -> impl Strategy<Value = Assignor> {
    proptest::sample::select(&Assignor::ALL[..])
}

fn any_group() -> impl Strategy<Value = GroupRecord> {
    (0..i32::MAX, any_assignor(), any::<i64>(), any::<Option<i64>>()).prop_map(
        |(generation, assignor, created_at, empty_since)| GroupRecord {
            generation: Generation(generation),
            protocol: Protocol::Native,
            assignor,
            created_at: Timestamp(created_at),
            empty_since: empty_since.map(Timestamp),
        },
    )
}

fn any_member() -> impl Strategy<Value = MemberRecord> {
    let ids = (proptest::option::of(any_text()), proptest::option::of(any_text()), any_text(), any_text());
    let topics = proptest::collection::btree_set(any_text(), 0..4);
    let rest =
        (proptest::option::of(any_assignor()), any::<u32>(), any::<u32>(), proptest::option::of(any_text()));
    (ids, topics, rest).prop_map(|((instance, rack, client, host), topics, rest)| MemberRecord {
        instance,
        rack,
        client,
        host,
        topics,
        assignor: rest.0,
        session: Duration::from_millis(rest.1.into()),
        rebalance: Duration::from_millis(rest.2.into()),
        principal: rest.3,
    })
}

fn any_current() -> impl Strategy<Value = Current> {
    (-2..i32::MAX, -2..i32::MAX, any::<u32>(), any_partitions(), any_partitions()).prop_map(
        |(epoch, previous, revision, assigned, revoking)| Current {
            epoch: Generation(epoch),
            previous: Generation(previous),
            revision,
            revoking: &revoking - &assigned,
            assigned,
        },
    )
}

fn any_committed() -> impl Strategy<Value = Committed> {
    (0..=i64::MAX as u64, any::<Option<u32>>(), any_text(), any::<i64>()).prop_map(
        |(offset, leader_epoch, metadata, committed_at)| Committed {
            offset: Offset(offset),
            leader_epoch: leader_epoch.map(LeaderEpoch),
            metadata,
            committed_at: Timestamp(committed_at),
        },
    )
}

/// Few keys, so that records replace each other.
fn any_record() -> impl Strategy<Value = Record> {
    let group = || proptest::sample::select(&["g", "h"][..]).prop_map(Arc::<str>::from);
    let member = || proptest::sample::select(&["m", "n", "o"][..]).prop_map(Arc::<str>::from);
    prop_oneof![
        (group(), proptest::option::of(any_group()))
            .prop_map(|(group, value)| Record::Group { group, value }),
        (group(), member(), proptest::option::of(any_member()))
            .prop_map(|(group, member, value)| Record::Member { group, member, value }),
        (group(), member(), proptest::option::of(any_partitions()))
            .prop_map(|(group, member, value)| Record::Target { group, member, value }),
        (group(), member(), proptest::option::of(any_current()))
            .prop_map(|(group, member, value)| Record::Current { group, member, value }),
        (group(), 0..3u32, proptest::option::of(any_committed())).prop_map(|(group, index, value)| {
            Record::Offset { group, partition: partition("a", index), value }
        }),
    ]
}

/// Requests of strangers: within limits and beyond.
fn any_request() -> impl Strategy<Value = Request> {
    let id = || proptest::sample::select(&["", "m", "n"][..]).prop_map(Arc::<str>::from);
    let text = || prop_oneof![any_text(), Just(Arc::from("x".repeat(70_000)))];
    let offsets = || {
        let offset = prop_oneof![0..9u64, any::<u64>()];
        let one = (0..4u32, offset, any::<Option<u32>>(), text()).prop_map(
            |(index, offset, leader_epoch, metadata)| OffsetToCommit {
                partition: partition("a", index),
                offset: Offset(offset),
                leader_epoch: leader_epoch.map(LeaderEpoch),
                metadata,
            },
        );
        proptest::collection::vec(one, 0..4)
    };
    let principal = || prop_oneof![3 => Just(Arc::from("p")), 1 => text()];
    let words = (id(), proptest::option::of(text()), proptest::option::of(text()), text(), principal());
    let times = (proptest::option::of(any::<u32>()), proptest::option::of(any::<u32>()));
    let topic = prop_oneof![Just(Arc::from("a")), Just(Arc::from("b")), text()];
    let topics = proptest::option::of(proptest::collection::vec(topic, 0..3));
    let rest =
        (-3..4i32, topics, proptest::option::of(any_assignor()), proptest::option::of(any_partitions()));
    let heartbeat = (words, times, rest).prop_map(|(words, times, rest)| Heartbeat {
        group: GROUP.into(),
        member: words.0,
        principal: words.4,
        instance: words.1,
        rack: words.2,
        client: words.3.clone(),
        host: words.3,
        session: times.0.map(|ms| Duration::from_millis(ms.into())),
        rebalance: times.1.map(|ms| Duration::from_millis(ms.into())),
        epoch: Generation(rest.0),
        topics: rest.1,
        assignor: rest.2,
        owned: rest.3,
        seen: None,
    });
    let asker = proptest::option::of((id(), -1..4i32, principal()));
    prop_oneof![
        heartbeat.prop_map(Request::Heartbeat),
        (asker, offsets()).prop_map(|(asker, offsets)| {
            let asker =
                asker.map(|(member, epoch, principal)| Asker { member, epoch: Generation(epoch), principal });
            Request::Commit(Commit { group: GROUP.into(), asker, offsets })
        }),
        offsets().prop_map(|offsets| {
            let forget = vec![partition("a", 1)];
            Request::ResetOffsets(ResetOffsets { group: GROUP.into(), offsets, forget })
        }),
    ]
}

#[test]
fn the_encoding_is_what_it_was() {
    let hex = |(key, value): KeyValue| {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        (hex(&key), hex(&value.expect("a value")))
    };
    let committed = Committed {
        offset: Offset(258),
        leader_epoch: Some(LeaderEpoch(3)),
        metadata: "x".into(),
        committed_at: Timestamp(5),
    };
    let (key, value) =
        hex(Record::Offset { group: "g".into(), partition: partition("a", 7), value: Some(committed) }
            .encode());
    assert_eq!(key, format!("0105010067{}07000000", "61".to_owned() + &"09".repeat(15)));
    assert_eq!(value, "0102010000000000000103000000010078".to_owned() + "0500000000000000");
    let mut member = MemberRecord {
        instance: None,
        rack: Some("r".into()),
        client: "c".into(),
        host: "h".into(),
        topics: ["t".into()].into(),
        assignor: None,
        session: Duration::from_millis(2),
        rebalance: Duration::from_millis(3),
        principal: None,
    };
    let before = "000101007201006301006801000000010074000200000003000000";
    let named = |member: &MemberRecord| {
        hex(Record::Member { group: "g".into(), member: "m".into(), value: Some(member.clone()) }.encode())
    };
    assert_eq!(named(&member), ("010201006701006d".to_owned(), format!("01{before}")));
    member.principal = Some("p".into());
    assert_eq!(named(&member), ("010201006701006d".to_owned(), format!("02{before}010070")));
    let current = Current {
        epoch: Generation(-2),
        previous: Generation(1),
        revision: 4,
        assigned: [partition("a", 0), partition("a", 2)].into(),
        revoking: Partitions::new(),
    };
    let (key, value) =
        hex(Record::Current { group: "g".into(), member: "m".into(), value: Some(current) }.encode());
    assert_eq!(key, "010401006701006d");
    let set = "01000000".to_owned() + "61" + &"09".repeat(15) + "020000000000000002000000";
    assert_eq!(value, format!("01feffffff0100000004000000{set}00000000"));
}

proptest! {
    #[test]
    fn what_is_written_can_be_read(record in any_record()) {
        let (key, value) = record.encode();
        prop_assert_eq!(Record::decode(&key, value.as_deref()), Ok(record));
    }

    #[test]
    fn whatever_is_read_is_read_or_refused(
        record in any_record(), in_key in any::<bool>(), at in any::<usize>(), byte in any::<u8>(), cut in any::<usize>()
    ) {
        let (key, value) = record.encode();
        let (mut key, mut value) = (key.to_vec(), value.map(|value| value.to_vec()));
        let damaged = match &mut value {
            Some(value) if !in_key => value,
            _ => &mut key,
        };
        let at = at % damaged.len();
        damaged[at] = byte;
        // What is still a record is written as it was read.
        if let Ok(read) = Record::decode(&key, value.as_deref()) {
            let (again, written) = read.encode();
            prop_assert_eq!((&again[..], written.as_deref()), (&key[..], value.as_deref()));
        }
        let (key, value) = record.encode();
        let cut = cut % key.len();
        prop_assert!(Record::decode(&key[..cut], value.as_deref()).is_err());
        if let Some(value) = &value {
            let long = [&value[..], b"x"].concat();
            prop_assert!(Record::decode(&key, Some(&long)).is_err());
            prop_assert!(Record::decode(&key, Some(&value[..value.len() - 1])).is_err());
        }
    }

    #[test]
    fn whatever_is_decided_can_be_read(requests in proptest::collection::vec(any_request(), 1..12)) {
        let all = topics(&[("a", 3), ("b", 2)]);
        let mut desk = Desk::with(all.clone());
        for request in requests {
            let _ = desk.ask(request);
        }
        for (key, value) in &desk.log {
            let read = Record::decode(key, value.as_deref());
            let (again, written) = read.expect("what was decided can be read").encode();
            prop_assert_eq!((&again, &written), (key, value));
        }
        prop_assert_eq!(&rebuild(&desk.log, all), desk.coordinator.groups());
    }

    #[test]
    fn noise_is_refused_or_says_what_it_says(
        record in any_record(),
        noise in proptest::collection::vec(any::<u8>(), 0..64),
        value in proptest::collection::vec(any::<u8>(), 0..256),
        version in 1..=2u8,
    ) {
        let (key, _) = record.encode();
        let begun = [&[version][..], &value].concat();
        for (key, value) in [(&noise[..], &value), (&key[..], &value), (&key[..], &begun)] {
            if let Ok(read) = Record::decode(key, Some(value)) {
                let (again, written) = read.encode();
                prop_assert_eq!((&again[..], written.as_deref()), (key, Some(&value[..])));
            }
        }
        prop_assert!(Record::decode(&[&[9][..], &noise].concat(), Some(&value)).is_err(), "another version");
        prop_assert!(Record::decode(&key, Some(&[&[9][..], &value].concat())).is_err(), "another version");
    }

    #[test]
    fn a_log_read_again_compacted_or_not_says_the_same(
        steps in proptest::collection::vec((0..4u32, 0..8u8), 0..60),
        upto in any::<usize>(),
        compacted_to in any::<usize>(),
    ) {
        let all = topics(&[("a", 3), ("b", 2)]);
        let desk = lived_through(&steps);
        let log = &desk.log;
        let once = rebuild(log, all.clone());
        prop_assert_eq!(&once, desk.coordinator.groups(), "what was decided is in the log");
        let mut twice = once.clone();
        apply(&mut twice, log);
        prop_assert_eq!(&twice, &once, "the whole log again");
        let mut from_a_prefix = rebuild(&log[..upto % (log.len() + 1)], all.clone());
        apply(&mut from_a_prefix, log);
        prop_assert_eq!(&from_a_prefix, &once, "the whole log after a prefix of it");
        let cut = compacted_to % (log.len() + 1);
        let partly = [compacted(&log[..cut]), log[cut..].to_vec()].concat();
        prop_assert_eq!(&rebuild(&partly, all.clone()), &once, "compacted up to anywhere");
        prop_assert_eq!(&rebuild(&compacted(log), all), &once, "compacted");
    }
}

/// A replica that was away for longer than tombstones are kept lacks them. Its coordinator once stopped its broker over a member
/// that had what was another's by now, again with each start.
#[test]
fn members_whose_end_was_missed_are_dropped() {
    let all = topics(&[("a", 2)]);
    let mut desk = Desk::with(all.clone());
    desk.joins(join("m1", &["a"]));
    let missed_from = desk.log.len();
    desk.leaves("m1", Generation::LEAVES).expect("it leaves");
    let (epoch, _) = desk.joins(join("m2", &["a"]));
    let is_tombstone = |record: &KeyValue| record.1.is_none();
    let later = desk.log.split_off(missed_from);
    desk.log.extend(later.into_iter().filter(|record| !is_tombstone(record)));
    desk.lead();
    let answer = desk.beats(beat("m2", epoch)).expect("it is there, and nobody stops over it");
    let all_of_it = [partition("a", 0), partition("a", 1)].into();
    assert_eq!(answer.assignment, Some(all_of_it), "it has what it had, in a generation of its own");
    assert_eq!(desk.beats(beat("m1", 1)).expect_err("it is gone").code(), ErrorCode::UnknownMember);
    assert_eq!(desk.rebuilt(all.clone()), *desk.coordinator.groups(), "its end is in the log now");
    assert_eq!(rebuild(&compacted(&desk.log), all), *desk.coordinator.groups());
}

#[test]
fn a_member_of_a_group_that_was_there_before_is_dropped() {
    let all = topics(&[("a", 2)]);
    let mut desk = Desk::with(all.clone());
    for _ in 0..5 {
        desk.joins(join("m1", &["a"]));
        desk.leaves("m1", Generation::LEAVES).expect("it leaves");
    }
    let (epoch, _) = desk.joins(join("m1", &["a"]));
    let old: Vec<KeyValue> = desk.log.clone();
    desk.leaves("m1", Generation::LEAVES).expect("it leaves");
    desk.ask(Request::DeleteGroup { group: GROUP.into() }).expect("it has no members");
    let begins = desk.log.len();
    desk.joins(join("m2", &["b"]));
    assert!(epoch > 1, "the member is ahead of the group that follows");
    desk.log = [old, desk.log[begins..].to_vec()].concat();
    desk.lead();
    let gone = desk.beats(beat("m1", epoch)).expect_err("it is gone");
    assert_eq!(gone.code(), ErrorCode::UnknownMember);
    assert_eq!(desk.rebuilt(all), *desk.coordinator.groups());
}

#[test]
fn a_group_whose_last_member_is_dropped_is_empty() {
    let mut desk = Desk::with(topics(&[("a", 2)]));
    desk.joins(join("m1", &["a"]));
    let ahead = Current { epoch: Generation(7), ..Current::default() };
    let member = Record::Current { group: GROUP.into(), member: "m1".into(), value: Some(ahead) };
    desk.log.push(member.encode());
    desk.lead();
    let Ok(Response::Description(group)) = desk.ask(Request::Describe { group: GROUP.into() }) else {
        panic!("the group is there");
    };
    assert_eq!((group.members, group.empty_since), (Vec::new(), Some(desk.now.wall)));
}

/// A desk at which four members, two of them static, did this.
fn lived_through(steps: &[(u32, u8)]) -> Desk {
    let mut desk = Desk::with(topics(&[("a", 3), ("b", 2)]));
    let mut lives = [0; 4];
    let mut told: BTreeMap<u32, (i32, Partitions)> = BTreeMap::new();
    for (member, step) in steps {
        let id = format!("m{member}-{}", lives[*member as usize]);
        let (epoch, has) = told.get(member).cloned().unwrap_or_default();
        let said = match step {
            0..=2 if epoch == 0 => {
                let join = join(&id, if member % 2 == 0 { &["a", "b"] } else { &["a"] });
                Heartbeat { instance: (*member < 2).then(|| format!("i{member}").into()), ..join }
            }
            0..=2 => owns(&id, epoch, has),
            3 => Heartbeat { topics: Some(vec!["b".into()]), ..owns(&id, epoch.max(1), has) },
            4 => {
                lives[*member as usize] += 1;
                beat(&id, if *member < 2 { -2 } else { -1 })
            }
            5 => {
                let own = has.iter().map(|partition| offset(*partition, desk.log.len() as u64)).collect();
                let _ = desk.commits(&id, epoch, own);
                continue;
            }
            6 => {
                desk.wait(Duration::from_secs(4));
                continue;
            }
            _ => {
                desk.lead();
                continue;
            }
        };
        match desk.beats_or_leaves(said) {
            Some(answer) => {
                let entry = told.entry(*member).or_default();
                entry.0 = answer.epoch.0;
                entry.1 = answer.assignment.unwrap_or(std::mem::take(&mut entry.1));
            }
            None => {
                told.remove(member);
            }
        }
    }
    desk
}
