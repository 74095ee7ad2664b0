//! Offsets: committed forwards only, by who owns the partition; reset, forgotten, expired.

use std::time::Duration;

use quire_engine::group::coordinator::Input;
use quire_engine::group::request::{Commit, CommitOutcome, FetchOffsets, OffsetToCommit, ResetOffsets};
use quire_engine::group::{Generation, GroupSettings, Request, Response};
use quire_protocol::{ErrorCode, Offset, limits};

use crate::desk::{Desk, GROUP, beat, join, offset, partition, topics};

fn alone(offsets: Vec<OffsetToCommit>) -> Request {
    Request::Commit(Commit { group: GROUP.into(), asker: None, offsets })
}

fn reset(offsets: Vec<OffsetToCommit>) -> Request {
    Request::ResetOffsets(ResetOffsets { group: GROUP.into(), offsets, forget: Vec::new() })
}

#[test]
fn offsets_go_forwards_only() {
    let mut desk = Desk::with(topics(&[("a", 2)]));
    desk.joins(join("m1", &["a"]));
    let [zero, one] = [partition("a", 0), partition("a", 1)];
    let taken = desk.commits("m1", 1, vec![offset(zero, 10), offset(one, 4), offset(partition("a", 2), 1)]);
    assert_eq!(taken, Ok(vec![CommitOutcome::Taken, CommitOutcome::Taken, CommitOutcome::UnknownPartition]));
    let back = desk.commits("m1", 1, vec![offset(zero, 9), offset(one, 4), offset(one, 5), offset(one, 4)]);
    let (behind, taken) = (|at| CommitOutcome::Behind { committed: Offset(at) }, CommitOutcome::Taken);
    assert_eq!(back, Ok(vec![behind(10), taken, taken, behind(5)]));
    assert_eq!(behind(5).code(), Some(ErrorCode::OffsetGoesBack));
    assert_eq!(desk.offsets(), [(zero, 10), (one, 5)].into());
    let refused = desk.ask(reset(vec![offset(zero, 3)])).expect_err("it has a member");
    assert_eq!(refused.code(), ErrorCode::GroupNotEmpty);
    desk.leaves("m1", Generation::LEAVES).expect("it leaves");
    assert_eq!(desk.ask(reset(vec![offset(zero, 3)])), Ok(Response::Done));
    assert_eq!(desk.offsets(), [(zero, 3), (one, 5)].into());
}

#[test]
fn commits_are_of_the_current_epoch_or_of_a_group_without_members() {
    let mut desk = Desk::with(topics(&[("a", 2)]));
    let zero = partition("a", 0);
    assert_eq!(
        desk.ask(alone(vec![offset(zero, 1)])),
        Ok(Response::Commit(vec![(zero, CommitOutcome::Taken)]))
    );
    assert_eq!(desk.offsets(), [(zero, 1)].into(), "the group came to be");
    desk.joins(join("m1", &["a"]));
    let refused = desk.ask(alone(vec![offset(zero, 2)])).expect_err("it has a member");
    assert_eq!(refused.code(), ErrorCode::GroupNotEmpty);
    for epoch in [0, 2, -1] {
        let stale = desk.commits("m1", epoch, vec![offset(zero, 2)]).expect_err("not its epoch");
        assert_eq!(stale.code(), ErrorCode::StaleMemberEpoch);
    }
    let nowhere = FetchOffsets { group: "other".into(), partitions: Some(vec![zero]) };
    assert_eq!(desk.ask(Request::FetchOffsets(nowhere)), Ok(Response::Offsets(Vec::new())));
}

/// An offset above the largest was committed once: it was stored as a negative number, and no coordinator could read its log
/// any more.
#[test]
fn an_offset_that_can_not_be_stored_is_not_taken() {
    let mut desk = Desk::with(topics(&[("a", 1)]));
    let zero = partition("a", 0);
    for beyond in [Offset::MAX.0 + 1, u64::MAX] {
        let outcomes = vec![(zero, CommitOutcome::BeyondAll)];
        assert_eq!(desk.ask(alone(vec![offset(zero, beyond)])), Ok(Response::Commit(outcomes)));
        let refused = desk.ask(reset(vec![offset(zero, beyond)])).expect_err("no record is there");
        assert_eq!(refused.code(), ErrorCode::InvalidRequest);
    }
    let largest = desk.ask(alone(vec![offset(zero, Offset::MAX.0)]));
    assert_eq!(largest, Ok(Response::Commit(vec![(zero, CommitOutcome::Taken)])));
    desk.lead();
    assert_eq!(desk.offsets(), [(zero, Offset::MAX.0)].into());
}

#[test]
fn a_text_beside_an_offset_has_a_limit() {
    let mut desk = Desk::with(topics(&[("a", 1)]));
    let with =
        |length| OffsetToCommit { metadata: "x".repeat(length).into(), ..offset(partition("a", 0), 1) };
    let request =
        alone(vec![with(limits::COMMIT_METADATA_BYTES_MAX), with(limits::COMMIT_METADATA_BYTES_MAX + 1)]);
    let Ok(Response::Commit(outcomes)) = desk.ask(request) else { panic!("each is taken or not") };
    let outcomes: Vec<_> = outcomes.into_iter().map(|(_, outcome)| outcome).collect();
    assert_eq!(outcomes, [CommitOutcome::Taken, CommitOutcome::MetadataTooLong]);
}

#[test]
fn groups_and_offsets_are_deleted_while_nobody_needs_them() {
    let mut desk = Desk::with(topics(&[("a", 1), ("b", 1)]));
    desk.joins(join("m1", &["a", "b"]));
    let [a, b] = [partition("a", 0), partition("b", 0)];
    desk.commits("m1", 1, vec![offset(a, 1), offset(b, 1)]).expect("they are its own");
    let forget = |partitions| {
        let reset = ResetOffsets { group: GROUP.into(), offsets: Vec::new(), forget: partitions };
        Request::ResetOffsets(reset)
    };
    let refused = desk.ask(forget(vec![a])).expect_err("it has a member");
    assert_eq!(refused.code(), ErrorCode::GroupNotEmpty);
    let refused = desk.ask(Request::DeleteGroup { group: GROUP.into() }).expect_err("it has a member");
    assert_eq!(refused.code(), ErrorCode::GroupNotEmpty);
    desk.leaves("m1", Generation::LEAVES).expect("it leaves");
    assert_eq!(desk.ask(forget(vec![a])), Ok(Response::Done));
    assert_eq!(desk.offsets(), [(b, 1)].into());
    assert_eq!(desk.ask(Request::DeleteGroup { group: GROUP.into() }), Ok(Response::Done));
    let refused = desk.ask(Request::DeleteGroup { group: GROUP.into() }).expect_err("it is gone");
    assert_eq!(refused.code(), ErrorCode::UnknownGroup);
    assert_eq!(desk.ask(Request::List), Ok(Response::Groups(Vec::new())));
    assert_eq!(desk.ask(reset(vec![offset(a, 3)])), Ok(Response::Done));
    assert_eq!(desk.offsets(), [(a, 3)].into());
    let all = topics(&[("a", 1), ("b", 1)]);
    assert_eq!(desk.rebuilt(all.clone()), crate::desk::rebuild(&crate::desk::compacted(&desk.log), all));
}

#[test]
fn offsets_expire_when_a_group_was_empty_for_long() {
    let settings = GroupSettings { offsets_retention: Duration::from_secs(3600), ..GroupSettings::default() };
    let mut desk = Desk::of(settings, topics(&[("a", 2)]));
    desk.joins(join("m1", &["a"]));
    desk.commits("m1", 1, vec![offset(partition("a", 0), 1)]).expect("it is its own");
    for _ in 0..2000 {
        desk.wait(Duration::from_secs(4));
        desk.beats(beat("m1", 1)).expect("it is there");
    }
    assert_eq!(desk.offsets().len(), 1, "not while it has members");
    desk.leaves("m1", Generation::LEAVES).expect("it leaves");
    desk.wait(Duration::from_secs(1800));
    desk.ask(alone(vec![offset(partition("a", 1), 1)])).expect("it has no members");
    desk.wait(Duration::from_secs(1799));
    assert_eq!(desk.offsets().len(), 2);
    desk.wait(limits::OFFSETS_EXPIRY_INTERVAL);
    assert_eq!(desk.offsets(), [(partition("a", 1), 1)].into(), "the other is too old");
    desk.wait(Duration::from_secs(1800));
    assert_eq!(desk.ask(Request::List), Ok(Response::Groups(Vec::new())), "and then the group is forgotten");
    desk.give(Input::TimePassed);
}

#[test]
fn a_reset_counts_what_is_there_after_it() {
    let count = limits::GROUP_OFFSETS_MAX as u32;
    let mut desk = Desk::with(topics(&[("a", count), ("b", 1)]));
    let all = || (0..count).map(|index| offset(partition("a", index), 1)).collect::<Vec<_>>();
    assert_eq!(desk.ask(reset(all())), Ok(Response::Done));
    assert_eq!(desk.ask(reset(all())), Ok(Response::Done), "the same again is no more");
    let other = vec![offset(partition("b", 0), 1)];
    let refused = desk.ask(reset(other.clone())).expect_err("one more");
    assert_eq!(refused.code(), ErrorCode::LimitExceeded);
    let forget = vec![partition("a", 7)];
    let swap = ResetOffsets { group: GROUP.into(), offsets: other, forget };
    assert_eq!(desk.ask(Request::ResetOffsets(swap)), Ok(Response::Done), "one for another");
}
