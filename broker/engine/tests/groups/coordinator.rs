//! The coordinator on a log that is slow, fails, or is another's by now.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use quire_engine::group::coordinator::{Action, Coordinator, Input, Now, RequestId};
use quire_engine::group::records;
use quire_engine::group::request::CommitOutcome;
use quire_engine::group::{
    Generation, GroupRefusal, GroupSettings, Heartbeat, Partitions, Request, Response,
};
use quire_engine::{SplitMix64, Time};
use quire_protocol::{ErrorCode, LeaderEpoch, Offset, Timestamp, limits};

use crate::desk::{Desk, GROUP, beat, commit, join, offset, owns, partition, partitions, topics};

#[test]
fn nothing_is_told_before_it_is_committed() {
    let mut desk = Desk::with(topics(&[("a", 2)]));
    desk.joins(join("m1", &["a"]));
    desk.joins(join("m2", &["a"]));
    desk.beats(beat("m1", 1)).expect("it is asked");
    desk.holds = true;
    let (given_up, at_once) = desk.put(Request::Heartbeat(owns("m1", 1, partitions("a", 0..1))));
    assert_eq!(at_once, []);
    // The epoch has moved on, though nobody knows it yet.
    let (stale, at_once) = desk.put(commit("m1", 1, vec![offset(partition("a", 0), 5)]));
    assert_eq!(at_once, [], "a refusal, too, rests on what is decided");
    let (taken, at_once) = desk.put(Request::Heartbeat(beat("m2", 2)));
    assert_eq!(at_once, []);
    let (list, at_once) = desk.put(Request::List);
    assert_eq!(at_once, [], "and so does a read");
    let sizes: Vec<usize> = desk.held.iter().map(|(_, records)| records.len()).collect();
    assert_eq!(sizes, [1, 1], "what changes something is on its way by itself while there is room");
    for expected in [&[(given_up, "Ok(Heartbeat")][..], &[(stale, "Err(Stale"), (taken, "Ok(Heartbeat")]] {
        let answers = desk.commit_one();
        assert_eq!(answers.len(), expected.len(), "{answers:?}");
        for ((answered, result), (id, begins)) in answers.into_iter().zip(expected) {
            assert!(answered == *id && format!("{result:?}").starts_with(begins), "{result:?}");
        }
    }
    assert_eq!(desk.held[0].1.len(), 0, "it makes sure that it still leads");
    let answers = desk.commit_one();
    assert!(matches!(answers[..], [(id, Ok(Response::Groups(_)))] if id == list), "{answers:?}");
    let all = topics(&[("a", 2)]);
    assert_eq!(desk.rebuilt(all), *desk.coordinator.groups());
}

#[test]
fn what_is_committed_out_of_order_waits_for_what_is_before_it() {
    let mut desk = Desk::with(topics(&[("a", 2)]));
    desk.joins(join("m1", &["a"]));
    desk.holds = true;
    let (one, _) = desk.put(commit("m1", 1, vec![offset(partition("a", 0), 9)]));
    let (two, _) = desk.put(commit("m1", 1, vec![offset(partition("a", 0), 10)]));
    let [first, second] = [desk.held[0].0, desk.held[1].0];
    assert_eq!(desk.give(Input::Committed(second)), []);
    let answers = desk.give(Input::Committed(first));
    assert_eq!(answers.into_iter().map(|(id, _)| id).collect::<Vec<_>>(), [one, two]);
}

#[test]
fn what_is_decided_meanwhile_goes_into_one_append() {
    let settings = GroupSettings { appends_max: 1, ..GroupSettings::default() };
    let mut desk = Desk::of(settings, topics(&[("a", 2)]));
    desk.joins(join("m1", &["a"]));
    desk.holds = true;
    for at in 1..=10 {
        assert_eq!(desk.put(commit("m1", 1, vec![offset(partition("a", 0), at)])).1, []);
    }
    assert_eq!(desk.held.len(), 1);
    assert_eq!(desk.commit_one().len(), 1);
    assert_eq!(desk.held.len(), 1);
    assert_eq!(desk.commit_one().len(), 9, "in one");
    desk.holds = false;
    assert_eq!(desk.offsets(), [(partition("a", 0), 10)].into());
}

#[test]
fn a_failed_append_is_as_if_nothing_was_decided() {
    let mut desk = Desk::with(topics(&[("a", 2)]));
    desk.joins(join("m1", &["a"]));
    desk.commits("m1", 1, vec![offset(partition("a", 0), 5)]).expect("it is its own");
    desk.holds = true;
    let (write, _) = desk.put(commit("m1", 1, vec![offset(partition("a", 0), 9)]));
    let (read, _) = desk.put(Request::List);
    let serial = desk.held[0].0;
    let answers = desk.give(Input::Failed(serial));
    assert_eq!(answers, [(write, Err(GroupRefusal::Unknown)), (read, Err(GroupRefusal::Loading))]);
    assert_eq!(desk.give(Input::Committed(serial)), [], "it is not waited for any more");
    desk.holds = false;
    assert_eq!(desk.offsets(), [(partition("a", 0), 5)].into());
    assert_eq!(desk.beats(beat("m1", 1)).expect("the member is there").epoch, Generation(1));
}

#[test]
fn a_node_that_does_not_lead_or_has_not_loaded_says_so() {
    let now = Now { time: Time::ZERO, wall: Timestamp(0) };
    let (mut coordinator, mut random) = (Coordinator::new(GroupSettings::default()), SplitMix64::new(1));
    let mut give = |input| {
        let mut actions = Vec::new();
        coordinator.handle(now, input, &mut random, &mut actions);
        actions
    };
    let list = || Input::Asked { id: RequestId(1), request: Request::List };
    let refused = |why| [Action::Answer { id: RequestId(1), result: Err(why) }];
    assert_eq!(give(list()), refused(GroupRefusal::NotCoordinator));
    let [Action::Load(first)] = give(Input::Leads(LeaderEpoch(3)))[..] else { panic!("it loads") };
    assert_eq!(give(list()), refused(GroupRefusal::Loading));
    assert_eq!(give(Input::Leads(LeaderEpoch(3))), [], "that is known");
    let [Action::Load(second)] = give(Input::Leads(LeaderEpoch(4)))[..] else { panic!("it loads again") };
    assert_eq!(give(Input::LoadEnd(first)), []);
    assert_eq!(give(list()), refused(GroupRefusal::Loading), "that was another load");
    assert_eq!(give(Input::LoadEnd(second)), []);
    assert_eq!(give(list()), refused(GroupRefusal::Loading), "it does not know the topics");
    assert_eq!(give(Input::Topics(topics(&[]))), []);
    let answered = [Action::Answer { id: RequestId(1), result: Ok(Response::Groups(Vec::new())) }];
    let [Action::Confirm { serial, leader_epoch }] = give(list())[..] else {
        panic!("it makes sure that it leads")
    };
    assert_eq!(leader_epoch, LeaderEpoch(4));
    assert_eq!(give(Input::Committed(serial)), answered);
    assert_eq!(give(Input::Leads(LeaderEpoch(2))), [], "late");
    let [Action::Confirm { .. }] = give(list())[..] else { panic!("it makes sure each time") };
    assert_eq!(give(Input::Follows), refused(GroupRefusal::NotCoordinator));
    assert_eq!(give(list()), refused(GroupRefusal::NotCoordinator));
    let [Action::Load(third)] = give(Input::Leads(LeaderEpoch(5)))[..] else { panic!("it loads") };
    let mark = vec![(bytes::Bytes::from_static(records::MARK_KEY), None)];
    assert_eq!(give(Input::Loaded { load: third, records: mark }), [], "that is passed over");
    let records = vec![(bytes::Bytes::from_static(b"\x09"), None)];
    assert_eq!(give(Input::Loaded { load: third, records }), []);
    assert_eq!(give(Input::LoadEnd(third)), []);
    let [Action::Answer { result: Err(why), .. }] = &give(list())[..] else { panic!("it answers") };
    assert_eq!(why.code(), ErrorCode::CorruptLog, "it does not decide on half a log");
    let [Action::Load(fourth)] = give(Input::Leads(LeaderEpoch(6)))[..] else { panic!("it loads") };
    let error = records::DecodeError::Batch(Offset(7));
    assert_eq!(give(Input::Unreadable { load: third, error: error.clone() }), [], "of another load");
    assert_eq!(give(Input::Unreadable { load: fourth, error: error.clone() }), []);
    assert_eq!(give(Input::LoadEnd(fourth)), []);
    assert_eq!(give(list()), refused(GroupRefusal::Unreadable(error)));
}

/// While too few replicas were in sync, whoever asked waited for ever, or had the whole log read again.
#[test]
fn while_too_few_replicas_are_in_sync_nothing_is_decided() {
    let mut desk = Desk::with(topics(&[("a", 2)]));
    desk.joins(join("m1", &["a"]));
    desk.holds = true;
    let (write, _) = desk.put(commit("m1", 1, vec![offset(partition("a", 0), 9)]));
    let (read, _) = desk.put(Request::List);
    let short = || GroupRefusal::NotAppended { code: ErrorCode::NotEnoughReplicas };
    let answers = desk.give(Input::Replicas { are_enough: false });
    assert_eq!(answers, [(write, Err(GroupRefusal::Unknown)), (read, Err(short()))]);
    let held = desk.held.len();
    assert_eq!(desk.ask(Request::Heartbeat(beat("m1", 1))), Err(short()));
    assert_eq!(short().code(), ErrorCode::NotEnoughReplicas);
    assert!(short().code().is_retriable());
    desk.give(Input::Topics(topics(&[("a", 2), ("b", 1)])));
    assert_eq!(desk.coordinator.deadline(), None, "nobody is taken for gone meanwhile");
    desk.wait(10 * limits::GROUP_SESSION_DEFAULT);
    assert_eq!((desk.held.len(), desk.removed.len()), (held, 0), "and nothing is handed out");
    assert_eq!(desk.commit_one(), [], "what was under way is committed in the end");
    desk.holds = false;
    assert_eq!(desk.give(Input::Replicas { are_enough: true }), []);
    desk.wait(limits::GROUP_SESSION_DEFAULT - Duration::from_millis(1));
    assert_eq!(desk.removed.len(), 0, "everybody has a whole session");
    assert_eq!(desk.beats(beat("m1", 1)).expect("it is there").epoch, Generation(1));
    assert_eq!(desk.offsets(), [(partition("a", 0), 9)].into());
    assert_eq!(desk.epoch, 1, "and nothing was read again");
}

#[test]
fn what_the_log_refuses_is_known_not_to_be_made() {
    let settings = GroupSettings { appends_max: 4, ..GroupSettings::default() };
    let mut desk = Desk::of(settings, topics(&[("a", 2)]));
    desk.joins(join("m1", &["a"]));
    desk.holds = true;
    let puts = [5, 6, 7].map(|at| desk.put(commit("m1", 1, vec![offset(partition("a", 0), at)])).0);
    let (read, _) = desk.put(Request::List);
    let refused = desk.held[1].0;
    let code = ErrorCode::DiskFull;
    let first = desk.held[0].0;
    assert_eq!(desk.give(Input::Committed(first)).len(), 1);
    let not_made = || Err(GroupRefusal::NotAppended { code });
    let answers = desk.give(Input::Refused { serial: refused, code });
    assert_eq!(answers, [(puts[1], not_made()), (puts[2], not_made()), (read, not_made())]);
    assert_eq!(desk.coordinator.waiting(), 0);
}

#[test]
fn no_more_wait_for_the_log_than_may() {
    let mut desk = Desk::with(topics(&[("a", 2)]));
    desk.holds = true;
    for _ in 0..limits::GROUP_REQUESTS_MAX {
        assert_eq!(desk.put(Request::List).1, []);
    }
    assert_eq!(desk.ask(Request::List), Err(GroupRefusal::Busy));
    while !desk.held.is_empty() {
        desk.commit_one();
    }
    assert_eq!(desk.put(Request::List).1, [], "there is room again");
}

#[test]
fn a_coordinator_that_takes_over_gives_everybody_a_whole_session() {
    let mut desk = Desk::with(topics(&[("a", 2)]));
    desk.joins(join("m1", &["a"]));
    desk.joins(join("m2", &["a"]));
    desk.beats(beat("m1", 1)).expect("it is asked");
    desk.wait(limits::GROUP_SESSION_DEFAULT - Duration::from_secs(1));
    desk.lead();
    desk.wait(limits::GROUP_SESSION_DEFAULT - Duration::from_secs(1));
    assert_eq!(desk.removed.len(), 0);
    let answer = desk.beats(beat("m1", 1)).expect("it is there");
    let left = limits::GROUP_REBALANCE_DEFAULT + Duration::from_secs(1) - limits::GROUP_SESSION_DEFAULT;
    assert_eq!((answer.epoch, answer.revoke_within), (Generation(1), Some(left)));
    desk.wait(Duration::from_secs(1));
    assert_eq!(desk.removed, ["m2 Silent"]);
}

#[test]
fn more_than_the_log_takes_is_refused() {
    let settings = GroupSettings { appends_max: 1, ..GroupSettings::default() };
    let mut desk = Desk::of(settings, topics(&[("a", 400)]));
    desk.joins(join("m1", &["a"]));
    desk.holds = true;
    let mut busy = 0;
    for round in 0..10 {
        let text = "x".repeat(limits::COMMIT_METADATA_BYTES_MAX);
        let wordy = |index| {
            let mut offset = offset(partition("a", index), round);
            offset.metadata = text.as_str().into();
            offset
        };
        let (_, answers) = desk.put(commit("m1", 1, (0..400).map(wordy).collect()));
        busy += answers.iter().filter(|(_, result)| *result == Err(GroupRefusal::Busy)).count();
    }
    assert_eq!(busy, 10 - 1 - limits::GROUP_QUEUED_APPENDS_MAX);
    let mut taken = 0;
    while !desk.held.is_empty() {
        taken += desk.commit_one().len();
    }
    assert_eq!(taken, 10 - busy);
    desk.holds = false;
    let outcomes = desk.commits("m1", 1, vec![offset(partition("a", 0), 99)]);
    assert_eq!(outcomes, Ok(vec![CommitOutcome::Taken]), "there is room again");
    let described = desk.ask(Request::Describe { group: GROUP.into() });
    assert!(matches!(described, Ok(Response::Description(_))), "{described:?}");
    desk.beats(Heartbeat { topics: Some(Vec::new()), ..beat("m1", 1) }).expect("it is there");
}

#[test]
fn a_hundred_members_share_a_thousand_partitions() {
    let all = topics(&[("a", 1000)]);
    let mut desk = Desk::with(all.clone());
    let started = Instant::now();
    let mut has: BTreeMap<String, (Generation, Partitions)> = BTreeMap::new();
    for number in 0..100 {
        let id = format!("m{number:02}");
        let (epoch, assignment) = desk.joins(join(&id, &["a"]));
        has.insert(id, (Generation(epoch), assignment));
    }
    let joined = started.elapsed();
    let mut rounds = 0;
    while !desk.coordinator.groups().is_stable(GROUP) {
        rounds += 1;
        assert!(rounds < 10, "it settles");
        for (id, (epoch, owned)) in &mut has {
            let answer = desk.beats(owns(id, epoch.0, owned.clone())).expect("it is there");
            *epoch = answer.epoch;
            *owned = answer.assignment.unwrap_or(std::mem::take(owned));
        }
    }
    println!(
        "100 members joined in {joined:?}, {rounds} rounds of heartbeats in {:?}",
        started.elapsed() - joined
    );
    assert!(has.values().all(|(_, owned)| owned.len() == 10));
    assert_eq!(desk.rebuilt(all), *desk.coordinator.groups());
}
