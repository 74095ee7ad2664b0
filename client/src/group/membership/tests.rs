//! What a member says and does, told by answers and times alone.

use super::*;

const SESSION: Duration = Duration::from_secs(10);

pub(in crate::group) struct Member {
    pub membership: Membership,
    pub now: Instant,
}

pub(in crate::group) fn id(partition: u32) -> TopicPartition {
    TopicPartition { topic: TopicId([7; 16]), partition: PartitionIndex(partition) }
}

pub(in crate::group) fn ids(partitions: &[u32]) -> BTreeSet<TopicPartition> {
    partitions.iter().copied().map(id).collect()
}

pub(in crate::group) fn named(partitions: &[u32]) -> Partitions {
    ids(partitions).into_iter().map(|id| (id, "flights".into())).collect()
}

pub(in crate::group) fn refused(code: ErrorCode) -> Input {
    Input::Answered(Err(Error::Broker { code, message: "no".into(), suggestion: None }))
}

pub(in crate::group) fn answer(member_epoch: i32, assignment: Option<&[u32]>) -> Input {
    let assigned = |partitions: &[u32]| TopicPartitions {
        topic_id: vec![7; 16],
        partitions: partitions.to_vec(),
        topic: "flights".into(),
    };
    Input::Answered(Ok(GroupHeartbeatResponse {
        member_epoch,
        heartbeat_interval_ms: 1000,
        has_assignment: assignment.is_some(),
        assignment: assignment.into_iter().map(assigned).collect(),
        revision: 1,
        revoke_within_ms: Some(4000),
        session_timeout_ms: 0,
    }))
}

impl Member {
    fn new(instance_id: &str) -> Member {
        let now = Instant::now();
        let settings = Settings {
            group: "billing".into(),
            topics: vec!["flights".into()],
            assignor: "sticky".into(),
            instance_id: instance_id.into(),
            rack: String::new(),
            client_name: "test".into(),
            session_timeout: SESSION,
            rebalance_timeout: Duration::from_secs(5),
        };
        Member { membership: Membership::new(now, settings, "m".into()), now }
    }

    /// One that has joined and reads these.
    pub(in crate::group) fn reading(partitions: &[u32]) -> Member {
        let mut member = Member::new("");
        member.pass(0);
        let actions = member.tell(answer(1, Some(partitions)));
        assert_eq!(actions, [Action::Take(0, named(partitions))]);
        member.tell(Input::Taken(0, ids(partitions)));
        assert!(member.membership.is_settled());
        member
    }

    pub(in crate::group) fn tell(&mut self, input: Input) -> Vec<Action> {
        self.membership.handle(self.now, input)
    }

    pub(in crate::group) fn pass(&mut self, ms: u64) -> Vec<Action> {
        self.now += Duration::from_millis(ms);
        self.tell(Input::TimePassed)
    }
}

fn request(actions: &[Action]) -> &GroupHeartbeatRequest {
    let found = actions.iter().find_map(|action| match action {
        Action::Heartbeat(request) => Some(&**request),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("no heartbeat among {actions:?}"))
}

fn owned(request: &GroupHeartbeatRequest) -> Vec<u32> {
    request.owned.iter().flat_map(|topic| topic.partitions.clone()).collect()
}

#[test]
fn it_joins_with_everything_and_then_says_only_what_changed() {
    let mut member = Member::new("");
    let actions = member.pass(0);
    let join = request(&actions);
    assert_eq!((join.member_epoch, join.has_subscription, join.has_owned), (0, true, true));
    assert_eq!((join.topics.as_slice(), owned(join)), (["flights".to_owned()].as_slice(), vec![]));
    assert_eq!(member.pass(100), [], "one at a time");
    assert_eq!(member.tell(answer(1, None)), []);
    assert_eq!(member.membership.deadline(), Some(member.now + Duration::from_secs(1)));
    assert_eq!(member.pass(999), []);
    let actions = member.pass(1);
    let next = request(&actions);
    assert_eq!((next.member_epoch, next.has_subscription, next.has_owned), (1, false, false));
}

#[test]
fn what_it_is_no_longer_assigned_is_told_once_it_is_given_up() {
    let mut member = Member::reading(&[0, 1, 2, 3]);
    member.pass(1000);
    let actions = member.tell(answer(1, Some(&[0, 1])));
    assert_eq!(actions, [Action::Release(0, ids(&[2, 3]))]);
    assert_eq!(member.pass(10), [], "still in hand");
    // A heartbeat that is due meanwhile does not say that they are given up.
    let actions = member.pass(1000);
    assert_eq!(owned(request(&actions)), [0, 1, 2, 3]);
    member.tell(answer(1, None));
    let actions = member.tell(Input::Released(0, ids(&[2, 3])));
    let told = request(&actions);
    assert!(told.has_owned, "at once");
    assert_eq!(owned(told), [0, 1]);
    assert_eq!(member.tell(answer(2, None)), []);
    assert!(member.membership.is_settled());
    assert_eq!(member.membership.epoch(), Some(2));
}

#[test]
fn who_does_not_give_up_in_time_has_lost_everything() {
    let mut member = Member::reading(&[0, 1]);
    member.pass(1000);
    member.tell(answer(1, Some(&[0])));
    let mut lost = false;
    for _ in 0..45 {
        let actions = member.pass(100);
        if actions.contains(&Action::Lose(ids(&[0, 1]))) {
            lost = true;
            break;
        }
    }
    assert!(lost && member.membership.epoch().is_none());
}

/// Whatever it has been assigned it may begin to read at any moment: a coordinator that took it for free meanwhile would
/// give it to two.
#[test]
fn what_it_is_about_to_read_counts_as_owned() {
    let mut member = Member::reading(&[0]);
    member.pass(1000);
    member.tell(answer(2, Some(&[0, 1])));
    // A lost answer makes it tell everything again.
    member.pass(1000);
    member.tell(refused(ErrorCode::CoordinatorLoading));
    let actions = member.pass(200);
    assert_eq!(owned(request(&actions)), [0, 1]);
}

#[test]
fn a_partition_that_is_taken_away_while_it_is_prepared_is_given_up_after_all() {
    let mut member = Member::reading(&[0]);
    member.pass(1000);
    assert_eq!(member.tell(answer(2, Some(&[0, 1]))), [Action::Take(0, named(&[1]))]);
    member.pass(1000);
    assert_eq!(member.tell(answer(2, Some(&[0]))), [], "nothing is read yet");
    assert_eq!(member.tell(Input::Taken(0, ids(&[1]))), [Action::Release(0, ids(&[1]))]);
    let actions = member.tell(Input::Released(0, ids(&[1])));
    assert_eq!(owned(request(&actions)), [0]);
}

#[test]
fn a_fenced_member_loses_everything_and_joins_again() {
    let mut member = Member::reading(&[0, 1]);
    member.pass(1000);
    let actions = member.tell(refused(ErrorCode::FencedMemberEpoch));
    assert_eq!(actions[0], Action::Lose(ids(&[0, 1])));
    let join = request(&actions);
    assert_eq!((join.member_epoch, join.has_subscription, owned(join)), (0, true, vec![]));
    assert_eq!(member.membership.epoch(), None, "nothing is committed");
    // What was begun before is void.
    assert_eq!(member.tell(Input::Released(0, ids(&[0]))), []);
    assert_eq!(member.tell(answer(5, Some(&[1]))), [Action::Take(1, named(&[1]))]);
    member.tell(Input::Taken(0, ids(&[0])));
    assert_eq!(member.tell(Input::Taken(1, ids(&[1]))), []);
    assert!(member.membership.is_settled());
}

/// The coordinator counts from the last heartbeat that it saw; that is not before the last one that was answered was sent.
#[test]
fn one_that_is_not_answered_for_its_session_takes_itself_for_dead() {
    let mut member = Member::reading(&[0]);
    let actions = member.pass(1000);
    assert!(!actions.is_empty());
    let sent = member.now;
    member.now += Duration::from_millis(500);
    member.tell(answer(1, None));
    for _ in 0..30 {
        if !member.pass(300).is_empty() {
            member.tell(refused(ErrorCode::NotCoordinator));
        }
    }
    assert_eq!(member.membership.epoch(), Some(1), "{:?} since", member.now - sent);
    let left = SESSION - (member.now - sent);
    assert!(left > Duration::ZERO && member.membership.deadline() <= Some(member.now + left));
    let mut actions = member.pass(left.as_millis() as u64);
    assert!(actions.iter().any(|action| *action == Action::Lose(ids(&[0]))), "{actions:?}");
    if actions.len() < 2 {
        actions = member.tell(refused(ErrorCode::NotCoordinator));
        if actions.is_empty() {
            actions = member.pass(5000);
        }
    }
    assert_eq!(request(&actions).member_epoch, 0);
}

/// A heartbeat was answered after its member had fenced itself. It took the epoch for its own, had nothing and was told
/// nothing, so that the partitions that it was still assigned were read by nobody.
#[test]
fn what_comes_after_it_took_itself_for_dead_is_not_believed() {
    for late in [answer(1, None), answer(5, Some(&[0, 1])), refused(ErrorCode::NotAuthorized)] {
        let mut member = Member::reading(&[0, 1]);
        let half = SESSION.as_millis() as u64 / 2;
        assert!(!request(&member.pass(half)).has_owned, "nothing has changed");
        let lost = member.pass(half);
        assert_eq!(lost, [Action::Lose(ids(&[0, 1]))], "one heartbeat at a time");
        let actions = member.tell(late);
        let join = request(&actions);
        assert_eq!((actions.len(), join.member_epoch, join.has_owned), (1, 0, true));
        assert_eq!(member.membership.epoch(), None);
        assert_eq!(member.tell(answer(6, Some(&[0, 1]))), [Action::Take(1, named(&[0, 1]))]);
    }
}

#[test]
fn what_no_retry_mends_ends_it() {
    let mut member = Member::reading(&[0]);
    member.pass(1000);
    let actions = member.tell(refused(ErrorCode::NotAuthorized));
    assert_eq!(actions[0], Action::Lose(ids(&[0])));
    assert!(matches!(&actions[1], Action::Fail(error) if error.code() == Some(ErrorCode::NotAuthorized)));
    assert_eq!(actions.len(), 2);
    assert_eq!((member.membership.deadline(), member.pass(60_000)), (None, vec![]));
}

#[test]
fn retries_are_spaced() {
    let mut member = Member::new("");
    member.pass(0);
    let mut asked = 0;
    for _ in 0..100 {
        member.tell(refused(ErrorCode::CoordinatorLoading));
        asked += member.pass(10).len();
    }
    assert!((2..=6).contains(&asked), "{asked} in a second");
}

#[test]
fn a_static_member_leaves_for_a_while_and_any_other_for_good() {
    for (instance, epoch) in [("", -1), ("till-1", -2)] {
        let mut member = Member::new(instance);
        assert_eq!(member.membership.leaving(), None, "it never asked to join");
        member.pass(0);
        // It may be a member before it knows.
        assert_eq!(member.membership.leaving().map(|leaving| leaving.member_epoch), Some(epoch));
        member.tell(answer(1, Some(&[0])));
        let leaving = member.membership.leaving().expect("it has joined");
        assert_eq!((leaving.member_epoch, leaving.instance_id.as_str()), (epoch, instance));
    }
}

#[test]
fn one_that_the_coordinator_does_not_have_need_not_leave() {
    for code in [ErrorCode::NotAuthorized, ErrorCode::CoordinatorLoading, ErrorCode::FencedMemberEpoch] {
        let mut member = Member::new("");
        member.pass(0);
        let actions = member.tell(refused(code));
        let asks_again = actions.iter().any(|action| matches!(action, Action::Heartbeat(_)));
        let is_final = code == ErrorCode::NotAuthorized;
        assert_eq!(member.membership.leaving().is_none(), is_final, "{code:?}: {actions:?}");
        assert_eq!(asks_again, code == ErrorCode::FencedMemberEpoch);
    }
    let mut member = Member::reading(&[0]);
    member.tell(Input::Abandoned);
    assert_eq!(member.membership.leaving(), None, "it has left");
}

#[test]
fn a_member_whose_right_was_taken_away_leaves() {
    let mut member = Member::reading(&[0]);
    member.pass(1000);
    member.tell(refused(ErrorCode::NotAuthorized));
    assert_eq!(member.membership.leaving().map(|leaving| leaving.member_epoch), Some(-1));
}

/// A static member that crashed was refused for as long as its own session from before went on, and ended with an error.
#[test]
fn an_instance_id_is_waited_for_until_a_session_is_over() {
    let join = |seconds: u64| {
        let mut member = Member::new("till-1");
        let begun = member.now;
        member.pass(0);
        let mut actions = Vec::new();
        while member.now - begun < Duration::from_secs(seconds) {
            actions = member.tell(refused(ErrorCode::InstanceInUse));
            if actions.is_empty() {
                actions = member.pass(2000);
            }
        }
        (member, actions)
    };
    let (mut member, actions) = join(SESSION.as_secs());
    assert_eq!(request(&actions).member_epoch, 0, "it asks again");
    assert!(member.membership.is_joining());
    assert_eq!(member.tell(answer(4, Some(&[1]))), [Action::Take(0, named(&[1]))]);
    let (member, actions) = join(2 * SESSION.as_secs());
    assert!(actions.is_empty() && !member.membership.is_joining(), "another one that lives has it");
}

#[test]
fn one_that_nobody_polls_is_away_until_somebody_does() {
    let mut member = Member::reading(&[0]);
    assert_eq!(member.tell(Input::Abandoned), [Action::Lose(ids(&[0]))]);
    assert_eq!((member.membership.deadline(), member.pass(3_600_000)), (None, vec![]));
    let actions = member.tell(Input::Returned);
    assert_eq!(request(&actions).member_epoch, 0);
}
