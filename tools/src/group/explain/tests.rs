use quire_client::{BrokerId, Error, GroupSummary, Offset, PartitionIndex, TopicId, TopicPartition};

use super::*;

fn id(partition: u32) -> TopicPartition {
    TopicPartition { topic: TopicId([7; 16]), partition: PartitionIndex(partition) }
}

fn member(name: &str, partitions: &[u32]) -> GroupMember {
    let assigned: Vec<_> =
        partitions.iter().map(|index| MemberPartition { topic: "flights".into(), id: id(*index) }).collect();
    GroupMember {
        id: format!("{name}-0123456789"),
        instance_id: Some(name.into()),
        rack: None,
        client_name: "billing/1.0".into(),
        host: "10.0.0.11".into(),
        epoch: 7,
        topics: vec!["flights".into()],
        target: assigned.clone(),
        assigned,
        awaited: Vec::new(),
        revoking: Vec::new(),
        revoking_for: None,
        silent_for: Some(Duration::from_secs(1)),
        is_away: false,
        session_timeout: Duration::from_secs(45),
        rebalance_timeout: Duration::from_secs(60),
    }
}

/// Of so many records, this many committed, this many seconds ago.
fn progress(partition: u32, end: u64, committed: u64, seconds: i64, member: Option<usize>) -> GroupProgress {
    GroupProgress {
        topic: "flights".into(),
        id: id(partition),
        member,
        committed: Some(Offset(committed)),
        committed_at: Some(Timestamp(1_000_000 - seconds * 1000)),
        log: Ok(ProgressLog {
            log_start: Offset(0),
            end: Offset(end),
            lag: end - committed,
            behind: None,
            retention_in: None,
            lost: 0,
        }),
    }
}

fn look(members: Vec<GroupMember>, progress: Vec<GroupProgress>) -> Look {
    let state = if members.is_empty() { GroupState::Empty } else { GroupState::Stable };
    let summary = GroupSummary {
        name: "billing".into(),
        state,
        generation: 7,
        members: members.len() as u32,
        topics: vec!["flights".into()],
    };
    let group = GroupDescription {
        summary,
        coordinator: BrokerId(2),
        assignor: "sticky".into(),
        protocol: "native".into(),
        members,
        offsets: Vec::new(),
        since: Some(Duration::from_secs(190)),
    };
    Look { group, progress, at: Timestamp(1_000_000) }
}

fn told(look: &Look) -> Vec<String> {
    explain(look, look).into_iter().map(|finding| finding.what).collect()
}

#[test]
fn a_group_that_keeps_up_has_nothing_to_be_explained() {
    let look = look(
        vec![member("a", &[0, 1])],
        vec![progress(0, 100, 100, 400, Some(0)), progress(1, 100, 90, 1, Some(0))],
    );
    assert_eq!(told(&look), [""; 0]);
}

#[test]
fn a_group_without_members_is_said_to_be_one_with_what_waits() {
    let look = look(vec![], vec![progress(0, 100, 60, 9, None), progress(1, 10, 10, 9, None)]);
    assert_eq!(
        told(&look),
        ["the group has had no members for 3 m 10 s: nobody processes its 40 waiting records"]
    );
    assert_eq!(
        explain(&look, &look)[0].todo,
        "start its consumers, e.g. quire consume flights --group billing"
    );
}

#[test]
fn a_group_without_members_that_has_processed_everything_is_not_stuck() {
    let look = look(vec![], vec![progress(0, 100, 100, 9, None)]);
    let findings = explain(&look, &look);
    assert_eq!(findings[0].what, "the group has had no members for 3 m 10 s: no record waits");
    assert_eq!((findings.len(), findings[0].weight), (1, Weight::Note));
}

#[test]
fn a_silent_member_is_named_with_the_time_that_it_has_left() {
    let mut silent = member("worker-b", &[1]);
    silent.silent_for = Some(Duration::from_secs(40));
    let look = look(vec![member("a", &[0]), silent], vec![]);
    let findings = explain(&look, &look);
    assert_eq!(findings[0].weight, Weight::Stuck);
    assert_eq!(findings[0].what, "member worker-b (billing/1.0 at 10.0.0.11) has been silent for 40.0 s");
    assert!(findings[0].todo.contains("in 5.00 s it is taken for dead"), "{}", findings[0].todo);
}

#[test]
fn a_member_that_commits_nothing_is_told_with_what_it_holds_up() {
    let held = vec![progress(3, 20_000, 2000, 41, Some(0)), progress(4, 10, 10, 41, Some(0))];
    assert_eq!(
        told(&look(vec![member("a", &[3, 4])], held)),
        [
            "partition 3: member a (billing/1.0 at 10.0.0.11) has committed nothing for 41.0 s, and 18,000 records wait"
        ]
    );
    let mut never = progress(3, 20, 0, 0, Some(0));
    (never.committed, never.committed_at) = (None, None);
    assert_eq!(
        told(&look(vec![member("a", &[3])], vec![never])),
        [
            "partition 3: member a (billing/1.0 at 10.0.0.11) has not committed anything yet, and 20 records wait"
        ]
    );
}

/// Of a member that had been killed it was said, truly, that it is silent, and then that one should look what it is stuck on.
#[test]
fn nothing_is_to_be_looked_for_in_a_member_that_is_silent() {
    let todo = |silent_for: u64| {
        let mut member = member("a", &[3]);
        member.silent_for = Some(Duration::from_secs(silent_for));
        let findings = explain(
            &look(vec![member.clone()], vec![progress(3, 20, 10, 41, Some(0))]),
            &look(vec![member], vec![progress(3, 20, 10, 41, Some(0))]),
        );
        findings.last().map(|finding| finding.todo.clone())
    };
    assert_eq!(todo(40).as_deref(), Some("see what is said about that member"));
    assert_eq!(
        todo(1).as_deref(),
        Some("look whether it is stuck on a record, or commits by hand and does not")
    );
}

/// A topic with a record every ten minutes was said to be behind whenever one had just come.
#[test]
fn a_record_that_has_just_come_is_nothing_to_be_explained() {
    let of_age = |seconds| {
        let mut progress = progress(3, 11, 10, 600, Some(0));
        progress.log.as_mut().expect("known").behind = Some(Duration::from_secs(seconds));
        told(&look(vec![member("a", &[3])], vec![progress]))
    };
    assert_eq!(of_age(1), [""; 0]);
    assert_eq!(of_age(30).len(), 1);
}

#[test]
fn a_partition_without_a_leader_is_told() {
    let mut progress = progress(5, 10, 5, 1, Some(0));
    let error = Error::NoLeader { topic: "flights".into(), partition: PartitionIndex(5), leader: None };
    progress.log = Err(error);
    assert_eq!(
        told(&look(vec![member("a", &[5])], vec![progress])),
        ["partition 5 of flights: partition 5 of \"flights\" has no reachable leader"]
    );
}

#[test]
fn who_holds_up_a_rebalance_is_told_and_who_waits_for_it() {
    let mut slow = member("a", &[0, 1]);
    slow.revoking = vec![MemberPartition { topic: "flights".into(), id: id(1) }];
    slow.revoking_for = Some(Duration::from_secs(12));
    let mut waiting = member("b", &[]);
    waiting.target = slow.revoking.clone();
    waiting.awaited = vec![(slow.revoking[0].clone(), "a-012345".into())];
    let mut look = look(vec![slow, waiting], vec![]);
    look.group.summary.state = GroupState::Reconciling;
    let told = told(&look);
    assert!(
        told[0].contains("a (billing/1.0 at 10.0.0.11) was asked 12.0 s ago to give up partition 1"),
        "{told:?}"
    );
    assert!(
        told.iter().any(|what| what.contains("waits for partition 1, which a-012345 still has")),
        "{told:?}"
    );
    assert!(told.iter().any(|what| what.contains("changing hands for 3 m 10 s (generation 7)")), "{told:?}");
}

#[test]
fn a_group_that_falls_behind_is_told_with_both_rates() {
    let earlier = look(vec![member("a", &[0])], vec![progress(0, 10_000, 1000, 1, Some(0))]);
    let mut now = look(vec![member("a", &[0])], vec![progress(0, 14_000, 2000, 1, Some(0))]);
    now.at = Timestamp(earlier.at.0 + 2000);
    now.progress[0].committed_at = Some(now.at);
    let told: Vec<_> = explain(&earlier, &now).into_iter().map(|finding| finding.what).collect();
    assert_eq!(
        told,
        ["partition 0: 2,000 records/s come in and 500/s are processed: the group falls behind"]
    );
}

#[test]
fn what_retention_took_or_will_take_is_told() {
    let mut gone = progress(0, 100, 50, 1, Some(0));
    let mut soon = progress(1, 100, 50, 1, Some(0));
    if let (Ok(gone), Ok(soon)) = (&mut gone.log, &mut soon.log) {
        gone.lost = 10;
        soon.retention_in = Some(Duration::from_secs(600));
    }
    let told = told(&look(vec![member("a", &[0, 1])], vec![gone, soon]));
    assert_eq!(
        told[0],
        "partition 0 of flights: retention removed 10 records before the group had processed them"
    );
    assert!(told[1].starts_with("partition 1 of flights: in 10 m 0 s retention removes records"), "{told:?}");
}

#[test]
fn more_members_than_partitions_is_told() {
    let told = told(&look(vec![member("a", &[0]), member("b", &[])], vec![]));
    assert_eq!(told, ["1 of 2 members have no partition (b)"]);
}
