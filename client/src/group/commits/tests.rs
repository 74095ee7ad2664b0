use super::*;
use crate::group::membership::tests::{Member, answer, id, ids, refused as refused_heartbeat};

type Reply = oneshot::Receiver<Result<(), Error>>;

fn offsets(of: &[(u32, u64)]) -> Offsets {
    of.iter().map(|(partition, offset)| (id(*partition), Offset(*offset))).collect()
}

fn error(code: ErrorCode) -> Error {
    Error::Broker { code, message: "no".into(), suggestion: None }
}

fn refused(of: &[(u32, ErrorCode)]) -> Result<Refused, Error> {
    Ok(of.iter().map(|(partition, code)| (id(*partition), error(*code))).collect())
}

fn code_of(reply: &mut Reply) -> Option<ErrorCode> {
    reply.try_recv().expect("it was told").expect_err("not all of it is committed").code()
}

/// The commits of a member that reads partitions 0 and 1.
struct Rig {
    member: Member,
    commits: Commits,
}

impl Rig {
    fn new() -> Rig {
        Rig { member: Member::reading(&[0, 1]), commits: Commits::new("billing") }
    }

    /// As somebody does who waits for it.
    fn commit(&mut self, of: &[(u32, u64)]) -> Reply {
        let (reply, replied) = oneshot::channel();
        self.commits.want(offsets(of), Some(Waiter::Reply(reply)));
        replied
    }

    /// What is asked for now.
    fn begin(&mut self) -> Option<Offsets> {
        let begun = self.commits.begin(self.member.now, &self.member.membership);
        assert!(begun.told.is_empty());
        begun.request.map(|(_, offsets)| offsets)
    }

    fn answer(&mut self, answer: Result<Refused, Error>) {
        let told = self.commits.answered(self.member.now, answer, &self.member.membership);
        assert!(told.is_empty());
    }

    fn fence(&mut self) {
        self.member.pass(1000);
        self.member.tell(refused_heartbeat(ErrorCode::FencedMemberEpoch));
        self.commits.lose(&ids(&[0, 1]));
    }
}

#[test]
fn one_request_at_a_time_and_what_failed_again_after_a_pause() {
    let mut rig = Rig::new();
    let mut reply = rig.commit(&[(0, 5)]);
    assert_eq!(rig.begin(), Some(offsets(&[(0, 5)])));
    rig.commits.want(offsets(&[(0, 7), (1, 2)]), None);
    assert_eq!(rig.begin(), None, "one is under way");
    rig.answer(Err(error(ErrorCode::CoordinatorLoading)));
    assert_eq!(rig.begin(), None, "it has just failed");
    rig.member.now = rig.commits.deadline().expect("it is tried again");
    assert_eq!(rig.begin(), Some(offsets(&[(0, 7), (1, 2)])), "the later offset counts");
    assert!(reply.try_recv().is_err());
    rig.answer(refused(&[]));
    assert_eq!(reply.try_recv().expect("it was told"), Ok(()));
    assert_eq!(rig.commits.deadline(), None);
}

/// Nothing was left to be committed when the time to try again had come, and the time stayed: it had come for ever.
#[test]
fn nothing_is_due_once_the_member_was_fenced() {
    let mut rig = Rig::new();
    let mut reply = rig.commit(&[(0, 5)]);
    rig.begin();
    rig.answer(Err(error(ErrorCode::CoordinatorLoading)));
    rig.fence();
    assert_eq!(rig.begin(), None);
    assert_eq!(rig.commits.deadline(), None);
    assert_eq!(code_of(&mut reply), Some(ErrorCode::UnknownMember), "it was not committed");
    let mut reply = rig.commit(&[]);
    rig.begin();
    assert_eq!(reply.try_recv().expect("it was told"), Ok(()), "an error is told once");
}

#[test]
fn what_is_pending_when_the_last_is_refused_does_not_keep_it_due() {
    let mut rig = Rig::new();
    rig.commits.want(offsets(&[(0, 5)]), None);
    rig.begin();
    rig.answer(Err(error(ErrorCode::CoordinatorLoading)));
    rig.member.now = rig.commits.deadline().expect("it is tried again");
    rig.begin();
    rig.answer(Err(error(ErrorCode::NotAuthorized)));
    assert_eq!((rig.begin(), rig.commits.deadline()), (None, None));
}

#[test]
fn who_asks_later_is_told_what_was_refused_before() {
    let mut rig = Rig::new();
    rig.commits.want(offsets(&[(0, 5), (1, 5)]), None);
    rig.begin();
    rig.answer(refused(&[(1, ErrorCode::NotAuthorized)]));
    let mut reply = rig.commit(&[]);
    rig.begin();
    assert_eq!(code_of(&mut reply), Some(ErrorCode::NotAuthorized));
    // Unless something later was committed.
    rig.commits.want(offsets(&[(1, 6)]), None);
    rig.begin();
    rig.answer(Err(error(ErrorCode::NotAuthorized)));
    let mut reply = rig.commit(&[(1, 7)]);
    rig.begin();
    rig.answer(refused(&[]));
    assert_eq!(reply.try_recv().expect("it was told"), Ok(()));
}

#[test]
fn one_partition_that_is_tried_again_hides_no_other_that_was_refused() {
    let mut rig = Rig::new();
    let mut reply = rig.commit(&[(0, 5), (1, 5)]);
    rig.begin();
    rig.answer(refused(&[(0, ErrorCode::StaleMemberEpoch), (1, ErrorCode::UnknownPartition)]));
    assert!(reply.try_recv().is_err(), "the other one may come right");
    rig.member.now = rig.commits.deadline().expect("it is tried again");
    assert_eq!(rig.begin(), Some(offsets(&[(0, 5)])));
    rig.answer(refused(&[]));
    assert_eq!(code_of(&mut reply), Some(ErrorCode::UnknownPartition));
}

/// What was processed in an earlier life is not committed in a later one.
#[test]
fn what_was_under_way_when_it_was_fenced_is_not_tried_again() {
    let mut rig = Rig::new();
    let mut reply = rig.commit(&[(0, 5)]);
    rig.begin();
    rig.fence();
    rig.member.tell(answer(3, Some(&[0])));
    rig.member.tell(Input::Taken(1, ids(&[0])));
    rig.answer(Err(error(ErrorCode::CoordinatorLoading)));
    assert_eq!((rig.begin(), rig.commits.deadline()), (None, None));
    assert_eq!(code_of(&mut reply), Some(ErrorCode::CoordinatorLoading));
}

#[test]
fn partitions_are_released_once_they_are_committed_or_their_time_is_up() {
    let mut rig = Rig::new();
    let released = || Waiter::Release { life: 0, partitions: ids(&[1]), until: Instant::now() };
    rig.commits.want(offsets(&[(0, 5), (1, 5)]), Some(released()));
    rig.begin();
    rig.member.now += Duration::from_secs(1);
    let loading = Err(error(ErrorCode::CoordinatorLoading));
    let told = rig.commits.answered(rig.member.now, loading, &rig.member.membership);
    assert!(matches!(&told[..], [Input::Released(0, partitions)] if *partitions == ids(&[1])), "{told:?}");
    rig.commits.want(Offsets::new(), Some(released()));
    rig.member.now += Duration::from_secs(10);
    rig.begin();
    let told = rig.commits.answered(rig.member.now, refused(&[]), &rig.member.membership);
    assert_eq!(told.len(), 1);
}
