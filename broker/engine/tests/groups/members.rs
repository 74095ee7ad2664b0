//! Members join, hand partitions over, leave, come back, and are taken for gone.

use std::time::Duration;

use quire_engine::group::description::{GroupState, MemberState};
use quire_engine::group::records::MemberRecord;
use quire_engine::group::request::{Asker, Commit, CommitOutcome, OffsetToCommit, ResetOffsets};
use quire_engine::group::{
    Assignor, Generation, GroupRefusal, GroupSettings, Heartbeat, Record, Request, Response,
};
use quire_protocol::{ErrorCode, limits};

use crate::desk::{
    Desk, GROUP, beat, commit, join, join_as, offset, owns, partition, partitions, topic_id, topics,
};

#[test]
fn the_first_member_gets_everything_at_once() {
    let mut desk = Desk::with(topics(&[("a", 3), ("b", 1), ("c", 2)]));
    let answer = desk.beats(join("m1", &["a", "b", "missing"])).expect("it joins");
    let everything = &partitions("a", 0..3) | &partitions("b", 0..1);
    assert_eq!((answer.epoch, answer.assignment), (Generation(1), Some(everything.clone())));
    assert_eq!((answer.session, answer.revoke_within), (limits::GROUP_SESSION_DEFAULT, None));
    assert_eq!(answer.interval, limits::GROUP_HEARTBEAT_INTERVAL);
    let again = desk.beats(beat("m1", 1)).expect("it is there");
    assert_eq!((again.epoch, again.assignment), (Generation(1), None), "nothing is told twice");
    let told = desk.beats(owns("m1", 1, partitions("a", 0..1))).expect("it is there");
    assert_eq!(told.assignment, Some(everything), "unless it has something else");
}

#[test]
fn the_second_member_takes_over_what_the_first_has_given_up() {
    let mut desk = Desk::with(topics(&[("a", 4)]));
    assert_eq!(desk.joins(join("m1", &["a"])), (1, partitions("a", 0..4)));
    assert_eq!(desk.joins(join("m2", &["a"])), (2, partitions("a", [])), "it waits, and nobody else does");
    assert_eq!(desk.commits("m1", 1, vec![offset(partition("a", 3), 7)]), Ok(vec![CommitOutcome::Taken]));

    let asked = desk.beats(beat("m1", 1)).expect("it is there");
    assert_eq!((asked.epoch, asked.assignment), (Generation(1), Some(partitions("a", 0..2))));
    assert_eq!(asked.revoke_within, Some(limits::GROUP_REBALANCE_DEFAULT));
    desk.wait(Duration::from_secs(1));
    assert_eq!(desk.beats(beat("m2", 2)).expect("it is there").assignment, None, "still with the first");
    let kept = desk.beats(owns("m1", 1, partitions("a", 0..4))).expect("it is there");
    assert_eq!(kept.assignment, Some(partitions("a", 0..2)), "it has not given them up");
    assert_eq!(kept.revoke_within, Some(limits::GROUP_REBALANCE_DEFAULT - Duration::from_secs(1)));
    let last = vec![offset(partition("a", 3), 8)];
    assert_eq!(desk.commits("m1", 1, last), Ok(vec![CommitOutcome::Taken]), "it commits what it gives up");

    let given_up = desk.beats(owns("m1", 1, partitions("a", 0..2))).expect("it is there");
    assert_eq!((given_up.epoch, given_up.revoke_within), (Generation(2), None));
    let taken = desk.beats(beat("m2", 2)).expect("it is there");
    assert_eq!((taken.epoch, taken.assignment), (Generation(2), Some(partitions("a", 2..4))));
    let late = vec![offset(partition("a", 3), 9), offset(partition("a", 1), 9)];
    let outcomes = desk.commits("m1", 2, late).expect("its epoch is current");
    assert_eq!(outcomes, [CommitOutcome::NotOwned, CommitOutcome::Taken]);
    assert!(desk.coordinator.groups().is_stable(GROUP));
}

/// Members draw ids at random, so that a heartbeat that was under way for long is one of a request that timed out.
#[test]
fn what_was_said_before_a_partition_came_does_not_give_it_up() {
    let mut desk = Desk::with(topics(&[("a", 2)]));
    desk.joins(join("m1", &["a"]));
    let joined = desk.beats(join("m2", &["a"])).expect("it joins");
    let late = Heartbeat { seen: Some(joined.revision), ..owns("m2", 2, partitions("a", [])) };
    desk.beats(beat("m1", 1)).expect("it is asked");
    desk.beats(owns("m1", 1, partitions("a", 0..1))).expect("it has given one up");
    let taken = desk.beats(late.clone()).expect("it is there");
    assert_eq!(taken.assignment, Some(partitions("a", 1..2)));
    desk.leaves("m1", Generation::LEAVES).expect("it leaves");
    desk.joins(join("m0", &["a"]));
    desk.joins(join("m3", &["a"]));
    // Two of three have one each; let the second be asked for its own.
    let mut asked = desk.beats(beat("m2", 2)).expect("it is there");
    if asked.revoke_within.is_none() {
        desk.beats(Heartbeat { topics: Some(Vec::new()), ..beat("m2", asked.epoch.0) }).expect("it is there");
        asked = desk.beats(beat("m2", asked.epoch.0)).expect("it is there");
    }
    assert!(asked.revoke_within.is_some(), "{asked:?}");
    let late = Heartbeat { epoch: asked.epoch, ..late };
    let answer = desk.beats(late).expect("its epoch is current");
    assert!(answer.revoke_within.is_some(), "it said so before it had the partition");
    let current = Heartbeat { seen: Some(asked.revision), ..owns("m2", asked.epoch.0, partitions("a", [])) };
    assert_eq!(desk.beats(current).expect("it is there").revoke_within, None);
}

#[test]
fn a_member_that_leaves_leaves_at_once() {
    let mut desk = Desk::with(topics(&[("a", 2)]));
    desk.joins(join("m1", &["a"]));
    desk.joins(join("m2", &["a"]));
    assert_eq!(desk.leaves("m1", Generation::LEAVES), Ok(Response::Left));
    let answer = desk.beats(beat("m2", 2)).expect("it is there");
    assert_eq!((answer.epoch, answer.assignment), (Generation(3), Some(partitions("a", 0..2))));
    let gone = desk.beats(beat("m1", 1)).expect_err("it left");
    assert_eq!(gone.code(), ErrorCode::UnknownMember);
    assert_eq!(desk.leaves("m2", Generation::LEAVES), Ok(Response::Left));
    let Ok(Response::Description(group)) = desk.ask(Request::Describe { group: GROUP.into() }) else {
        panic!("the group stays, for its offsets");
    };
    assert_eq!((group.summary.state, group.empty_since), (GroupState::Empty, Some(desk.now.wall)));
    assert_eq!(desk.joins(join("m3", &["a"])), (5, partitions("a", 0..2)), "generations go on");
}

#[test]
fn a_member_in_another_epoch_joins_anew() {
    let mut desk = Desk::with(topics(&[("a", 2)]));
    desk.joins(join("m1", &["a"]));
    for epoch in [2, 7] {
        let fenced = desk.beats(beat("m1", epoch)).expect_err("that is not its epoch");
        assert_eq!(fenced.code(), ErrorCode::FencedMemberEpoch);
    }
    desk.joins(join("m2", &["a"]));
    desk.beats(beat("m1", 1)).expect("it is asked");
    desk.beats(owns("m1", 1, partitions("a", 0..1))).expect("it gives one up");
    let fenced = desk.beats(beat("m1", 1)).expect_err("that was its epoch");
    assert_eq!(fenced.code(), ErrorCode::FencedMemberEpoch);
    let unanswered = desk.beats(owns("m1", 1, partitions("a", 0..1))).expect("its answer was lost");
    assert_eq!((unanswered.epoch, unanswered.assignment), (Generation(2), Some(partitions("a", 0..1))));
    let fenced = desk.beats(owns("m1", 1, partitions("a", 0..2))).expect_err("it has what it may not");
    assert_eq!(fenced.code(), ErrorCode::FencedMemberEpoch);
    assert_eq!(desk.joins(join("m1", &["a"])), (2, partitions("a", 0..1)), "it has its place still");
}

#[test]
fn a_static_member_finds_what_it_had() {
    let mut desk = Desk::with(topics(&[("a", 4)]));
    desk.joins(join_as("i1", "m1", &["a"]));
    desk.joins(join_as("i2", "m2", &["a"]));
    desk.beats(beat("m1", 1)).expect("it is asked");
    desk.beats(owns("m1", 1, partitions("a", 0..2))).expect("it gives two up");
    assert_eq!(desk.beats(beat("m2", 2)).expect("it is there").assignment, Some(partitions("a", 2..4)));

    let in_use = desk.beats(join_as("i1", "m3", &["a"])).expect_err("it is there");
    assert_eq!(in_use.code(), ErrorCode::InstanceInUse);
    assert_eq!(desk.leaves("m1", Generation::PAUSES), Ok(Response::Left));
    let answer = desk.beats(beat("m2", 2)).expect("it is there");
    assert_eq!((answer.epoch, answer.assignment), (Generation(2), None), "nobody is disturbed");
    let stale = desk.commits("m1", 2, vec![offset(partition("a", 0), 1)]).expect_err("it is away");
    assert_eq!(stale.code(), ErrorCode::StaleMemberEpoch);
    assert_eq!(desk.joins(join_as("i1", "m3", &["a"])), (2, partitions("a", 0..2)), "no new generation");
    let replaced = desk.beats(beat("m1", 2)).expect_err("another is in its place");
    assert_eq!(replaced.code(), ErrorCode::UnknownMember);

    assert_eq!(desk.leaves("m3", Generation::PAUSES), Ok(Response::Left));
    desk.wait(limits::GROUP_SESSION_DEFAULT / 2);
    desk.beats(beat("m2", 2)).expect("it is there");
    desk.wait(limits::GROUP_SESSION_DEFAULT / 2);
    assert_eq!(desk.removed, ["m3 Silent"], "its place is not kept for ever");
    let answer = desk.beats(beat("m2", 2)).expect("it is there");
    assert_eq!((answer.epoch, answer.assignment), (Generation(3), Some(partitions("a", 0..4))));
    desk.joins(join("m4", &["a"]));
    let dynamic = desk.leaves("m4", Generation::PAUSES).expect_err("it has no instance id");
    assert_eq!(dynamic.code(), ErrorCode::InvalidRequest);
}

#[test]
fn a_silent_member_is_removed_after_its_session() {
    let mut desk = Desk::with(topics(&[("a", 2)]));
    desk.joins(Heartbeat { session: Some(Duration::from_secs(4)), ..join("m1", &["a"]) });
    desk.joins(join("m2", &["a"]));
    assert_eq!(desk.coordinator.deadline(), Some(desk.now.time + Duration::from_secs(4)));
    desk.wait(Duration::from_millis(3999));
    assert_eq!(desk.removed.len(), 0);
    desk.wait(Duration::from_millis(1));
    assert_eq!(desk.removed, ["m1 Silent"]);
    let answer = desk.beats(beat("m2", 2)).expect("it is there");
    assert_eq!((answer.epoch, answer.assignment), (Generation(3), Some(partitions("a", 0..2))));
    let gone = desk.commits("m1", 1, vec![offset(partition("a", 0), 1)]).expect_err("it is removed");
    assert_eq!(gone.code(), ErrorCode::UnknownMember);
}

/// A rack that goes dark took as many generations as it had members, each written out, before anybody else was answered.
#[test]
fn members_that_are_silent_together_go_in_one_generation() {
    let mut desk = Desk::with(topics(&[("a", 4)]));
    desk.joins(Heartbeat { session: Some(Duration::from_secs(60)), ..join("m1", &["a"]) });
    for member in ["m2", "m3", "m4"] {
        desk.joins(join(member, &["a"]));
    }
    let before = desk.log.len();
    desk.wait(limits::GROUP_SESSION_DEFAULT);
    assert_eq!(desk.removed, ["m2 Silent", "m3 Silent", "m4 Silent"]);
    assert_eq!(desk.log.len() - before, 3 * 3 + 2, "each goes, the group and one target change");
    assert_eq!(desk.beats(beat("m1", 1)).expect("it is there").epoch, Generation(5));
}

#[test]
fn a_member_that_does_not_give_up_is_removed_in_time() {
    let mut desk = Desk::with(topics(&[("a", 2)]));
    desk.joins(Heartbeat { rebalance: Some(Duration::from_secs(15)), ..join("m1", &["a"]) });
    desk.joins(join("m2", &["a"]));
    desk.beats(beat("m1", 1)).expect("it is asked");
    for second in 1..15u64 {
        desk.wait(Duration::from_secs(1));
        desk.beats(beat("m2", 2)).expect("it is there");
        let answer = desk.beats(owns("m1", 1, partitions("a", 0..2))).expect("it is there, and keeps it");
        assert_eq!(answer.revoke_within, Some(Duration::from_secs(15 - second)));
    }
    desk.wait(Duration::from_secs(1));
    assert_eq!(desk.removed, ["m1 Revoking"]);
    assert_eq!(desk.beats(beat("m2", 2)).expect("it is there").assignment, Some(partitions("a", 0..2)));
}

#[test]
fn topics_that_come_grow_and_go_make_generations() {
    let mut desk = Desk::with(topics(&[("a", 1)]));
    desk.joins(join("m1", &["a", "b"]));
    desk.commits("m1", 1, vec![offset(partition("a", 0), 5)]).expect("it is its own");
    desk.give(quire_engine::group::coordinator::Input::Topics(topics(&[("a", 2), ("c", 1)])));
    let answer = desk.beats(beat("m1", 1)).expect("it is there");
    assert_eq!((answer.epoch, answer.assignment), (Generation(2), Some(partitions("a", 0..2))));
    desk.give(quire_engine::group::coordinator::Input::Topics(topics(&[("a", 2), ("b", 1), ("c", 7)])));
    let answer = desk.beats(beat("m1", 2)).expect("it is there");
    let both = &partitions("a", 0..2) | &partitions("b", 0..1);
    assert_eq!((answer.epoch, answer.assignment), (Generation(3), Some(both)));
    // Not heard of is not deleted.
    desk.give(quire_engine::group::coordinator::Input::Topics(topics(&[("b", 1)])));
    assert_eq!(desk.offsets().len(), 1);
    desk.give(quire_engine::group::coordinator::Input::Topics(topics(&[("a", 0), ("b", 1)])));
    assert_eq!(desk.offsets().len(), 0, "topic {:?} is deleted", topic_id("a"));
    let answer = desk.beats(beat("m1", 3)).expect("it is there");
    assert_eq!((answer.epoch, answer.assignment), (Generation(3), Some(partitions("b", 0..1))));
    let epoch = desk.beats(owns("m1", 3, partitions("b", 0..1))).expect("it is there").epoch;
    assert_eq!(epoch, Generation(4), "one generation for the topic that went");
}

#[test]
fn a_change_of_subscription_is_an_assignment_of_its_own() {
    let mut desk = Desk::with(topics(&[("a", 2), ("b", 2)]));
    desk.joins(join("m1", &["a"]));
    let other = Heartbeat { topics: Some(vec!["b".into()]), ..beat("m1", 1) };
    let asked = desk.beats(other.clone()).expect("it is there");
    assert_eq!((asked.epoch, asked.assignment), (Generation(1), Some(partitions("a", []))));
    let again = desk.beats(Heartbeat { owned: Some(partitions("a", [])), ..other }).expect("it is there");
    assert_eq!((again.epoch, again.assignment), (Generation(2), Some(partitions("b", 0..2))));
    let ranged = Heartbeat { assignor: Some(Assignor::Range), ..join("m2", &["b"]) };
    desk.joins(ranged);
    let Ok(Response::Description(group)) = desk.ask(Request::Describe { group: GROUP.into() }) else {
        panic!("the group is there");
    };
    assert_eq!(group.assignor, Assignor::Range, "the only one that anybody prefers");
}

#[test]
fn a_description_says_who_waits_for_whom() {
    let mut desk = Desk::with(topics(&[("a", 2)]));
    desk.joins(join("m1", &["a"]));
    desk.joins(join("m2", &["a"]));
    let describe = |desk: &mut Desk| match desk.ask(Request::Describe { group: GROUP.into() }) {
        Ok(Response::Description(group)) => *group,
        other => panic!("{other:?}"),
    };
    desk.wait(Duration::from_secs(2));
    let group = describe(&mut desk);
    assert_eq!(group.members[0].state, MemberState::Behind);
    let waits = MemberState::Waiting { partitions: vec![(partition("a", 1), "m1".into())] };
    assert_eq!(group.members[1].state, waits);
    assert_eq!(group.rebalancing_for, Some(Duration::from_secs(2)));
    assert_eq!(group.members[1].silent_for, Some(Duration::from_secs(2)));
    desk.beats(beat("m1", 1)).expect("it is asked");
    desk.wait(Duration::from_secs(1));
    let group = describe(&mut desk);
    let (partitions, revoking_for) = (partitions("a", 1..2), Some(Duration::from_secs(1)));
    assert_eq!(group.members[0].state, MemberState::Revoking { partitions, revoking_for });
    assert_eq!((group.summary.state, group.summary.members), (GroupState::Rebalancing, 2));
}

/// Ids of members are shown to whoever may look at the group.
#[test]
fn nobody_else_speaks_for_a_member() {
    let mut desk = Desk::with(topics(&[("a", 2)]));
    let by = |principal: &str, heartbeat| Heartbeat { principal: principal.into(), ..heartbeat };
    desk.joins(by("ann", join_as("i1", "m1", &["a"])));
    for said in [
        join("m1", &["a"]),
        beat("m1", 1),
        owns("m1", 1, partitions("a", [])),
        beat("m1", Generation::LEAVES.0),
        beat("m1", Generation::PAUSES.0),
    ] {
        let refused = desk.beats(by("bob", said)).expect_err("it is another's");
        assert_eq!(refused.code(), ErrorCode::NotAuthorized);
    }
    let commit = |principal: &str| {
        let asker = Asker { member: "m1".into(), epoch: Generation(1), principal: principal.into() };
        let offsets = vec![offset(partition("a", 0), 7)];
        Request::Commit(Commit { group: GROUP.into(), asker: Some(asker), offsets })
    };
    let refused = desk.ask(commit("bob")).expect_err("it is another's");
    assert_eq!(refused.code(), ErrorCode::NotAuthorized);
    let taken = Response::Commit(vec![(partition("a", 0), CommitOutcome::Taken)]);
    assert_eq!(desk.ask(commit("ann")), Ok(taken), "nothing was committed before");
    assert_eq!(desk.beats(by("ann", beat("m1", 1))).expect("it is there").assignment, None);
    let paused = desk.ask(Request::Heartbeat(by("ann", beat("m1", Generation::PAUSES.0))));
    assert_eq!(paused, Ok(Response::Left));
    let refused = desk.beats(by("bob", join_as("i1", "m2", &["a"]))).expect_err("its place is kept");
    assert_eq!(refused.code(), ErrorCode::InstanceInUse);
    assert_eq!(desk.joins(by("ann", join_as("i1", "m3", &["a"]))), (1, partitions("a", 0..2)));
}

/// Records of members had no principal at first.
#[test]
fn a_member_of_nobody_knows_whom_becomes_its_next_speakers() {
    let mut desk = Desk::with(topics(&[("a", 2)]));
    desk.joins(join("m1", &["a"]));
    for (key, value) in &mut desk.log {
        let record = Record::decode(key, value.as_deref()).expect("what was written can be read");
        if let Record::Member { group, member, value: Some(about) } = record {
            let about = MemberRecord { principal: None, ..about };
            (*key, *value) = Record::Member { group, member, value: Some(about) }.encode();
        }
    }
    desk.lead();
    let by = |principal: &str| Heartbeat {
        principal: principal.into(),
        topics: Some(vec!["a".into()]),
        ..beat("m1", 1)
    };
    desk.beats(by("ann")).expect("it is there");
    assert_eq!(desk.beats(by("bob")).expect_err("it is ann's").code(), ErrorCode::NotAuthorized);
}

#[test]
fn what_all_groups_take_together_has_a_limit() {
    let settings = GroupSettings { bytes_max: 4096, ..GroupSettings::default() };
    let mut desk = Desk::of(settings, topics(&[("a", 2)]));
    let of = |group: &str, heartbeat| Heartbeat { group: group.into(), ..heartbeat };
    let count = (0..100).take_while(|n| desk.beats(of(&format!("g{n}"), join("m1", &["a"]))).is_ok()).count();
    assert!((4..20).contains(&count), "{count} groups fit");
    let full = desk.beats(of("more", join("m1", &["a"]))).expect_err("there is no room");
    assert_eq!(full.code(), ErrorCode::LimitExceeded);
    desk.beats(of("g0", join("m1", &["a"]))).expect("it is there already");
    let wordy = "t".repeat(200);
    let more = Heartbeat { topics: Some(vec![wordy.as_str().into()]), ..beat("m1", 1) };
    assert_eq!(desk.beats(of("g0", more)).expect_err("it says more").code(), ErrorCode::LimitExceeded);
    let commit = |metadata: &str| {
        let asker = Some(Asker { member: "m1".into(), epoch: Generation(1), principal: "".into() });
        let offset = OffsetToCommit { metadata: metadata.into(), ..offset(partition("a", 0), 1) };
        Request::Commit(Commit { group: "g0".into(), asker, offsets: vec![offset] })
    };
    let outcome = |outcome| Ok(Response::Commit(vec![(partition("a", 0), outcome)]));
    assert_eq!(desk.ask(commit(&"x".repeat(400))), outcome(CommitOutcome::TooMany));
    desk.ask(Request::Heartbeat(of("g1", beat("m1", Generation::LEAVES.0)))).expect("it leaves");
    assert_eq!(desk.ask(commit("")), outcome(CommitOutcome::Taken), "there is room again");
    assert_eq!(desk.ask(commit("")), outcome(CommitOutcome::Taken), "and it takes no more");
    desk.lead();
    assert_eq!(desk.ask(commit(&"x".repeat(400))), outcome(CommitOutcome::TooMany), "counted anew");
}

#[test]
fn limits_are_kept() {
    let settings = GroupSettings { members_max: 2, ..GroupSettings::default() };
    let mut desk = Desk::of(settings, topics(&[("a", 2)]));
    desk.joins(join("m1", &["a"]));
    desk.joins(join("m2", &["a"]));
    let full = desk.beats(join("m3", &["a"])).expect_err("there are two");
    assert_eq!(full, GroupRefusal::TooMany { what: "members", given: 3, max: 2 });
    desk.joins(join("m2", &["a"]));
    let names: Vec<String> = (0..=limits::GROUP_TOPICS_MAX).map(|number| format!("t{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let many = desk.beats(join("m1", &names)).expect_err("too many topics");
    assert_eq!(many.code(), ErrorCode::LimitExceeded);
    let long = Heartbeat { group: "g".repeat(limits::GROUP_ID_BYTES_MAX + 1).into(), ..join("m1", &["a"]) };
    assert_eq!(desk.beats(long).expect_err("too long").code(), ErrorCode::InvalidRequest);
    let long = "m".repeat(limits::GROUP_MEMBER_ID_BYTES_MAX + 1);
    assert_eq!(desk.beats(join(&long, &["a"])).expect_err("too long").code(), ErrorCode::InvalidRequest);
    assert_eq!(desk.beats(beat("m1", -3)).expect_err("no epoch").code(), ErrorCode::InvalidRequest);
    let nothing = Heartbeat { topics: None, ..join("m1", &[]) };
    assert_eq!(desk.beats(nothing).expect_err("no topics").code(), ErrorCode::InvalidRequest);
    let nothing = desk.beats(join("m1", &[])).expect_err("no topics");
    assert_eq!(nothing.code(), ErrorCode::InvalidRequest);
    let (_, answers) = desk.put(commit("m9", 1, Vec::new()));
    assert!(matches!(answers[..], [(_, Err(GroupRefusal::UnknownMember { .. }))]), "{answers:?}");
    let drawn = desk.beats(Heartbeat { group: "other".into(), ..join("", &["a"]) }).expect("it joins");
    assert_eq!(drawn.member.len(), 32, "an id is drawn for who has none");
}

/// They are shown to people, on terminals.
#[test]
fn no_name_has_control_characters() {
    let mut desk = Desk::with(topics(&[("a", 2)]));
    let odd = || Some("two\nlines".into());
    let refusals = [
        ("a group's name", Heartbeat { group: "bell\u{7}".into(), ..join("m1", &["a"]) }),
        ("the member id", join("m\u{1b}[2J", &["a"])),
        ("the instance id", Heartbeat { instance: odd(), ..join("m1", &["a"]) }),
        ("the rack", Heartbeat { rack: odd(), ..join("m1", &["a"]) }),
        ("the client name", Heartbeat { client: "\0".into(), ..join("m1", &["a"]) }),
        ("the host", Heartbeat { host: "\r".into(), ..join("m1", &["a"]) }),
        ("the principal", Heartbeat { principal: "\t".into(), ..join("m1", &["a"]) }),
        ("the topic's name", join("m1", &["a\n"])),
    ];
    for (what, heartbeat) in refusals {
        let refused = desk.beats(heartbeat).expect_err(what);
        assert_eq!(refused.code(), ErrorCode::InvalidRequest);
        let sentence = refused.to_string();
        assert!(sentence.starts_with(&format!("{what} has '\\")), "{sentence}");
        assert!(sentence.ends_with("; all characters are allowed but control characters"), "{sentence}");
    }
    let group = || std::sync::Arc::from("two\nlines");
    let offsets = vec![offset(partition("a", 0), 7)];
    let commit = Commit { group: group(), asker: None, offsets: offsets.clone() };
    let reset = ResetOffsets { group: group(), offsets, forget: Vec::new() };
    for request in [Request::Commit(commit), Request::ResetOffsets(reset)] {
        let refused = desk.ask(request).expect_err("no group has the name");
        assert_eq!(refused.code(), ErrorCode::InvalidRequest);
    }
    assert_eq!(desk.coordinator.groups().ids().count(), 0, "none of them came to be");
    desk.joins(Heartbeat { group: "caf\u{e9}: it's".into(), ..join("m1", &["a"]) });
}
