//! Leader and follower: inputs in, the whole list of actions out; and both together, against what must hold of any run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use quire_engine::Time;
use quire_engine::machine::Reactive;
use quire_engine::replication::{
    EpochEnd, Follow, FollowAnswer, FollowRefusal, Follower, FollowerAction, FollowerInput, FollowerStart,
    Leader, LeaderAction, LeaderInput, LeaderStart, Membership, Progress, Proposal, ProposalOutcome, Replica,
};
use quire_protocol::topic_config::{Sync, TopicConfig};
use quire_protocol::{BrokerId, LeaderEpoch, Offset, limits};

const LAG: Duration = Duration::from_secs(1);
const EPOCH: LeaderEpoch = LeaderEpoch(5);

fn at(ms: u64) -> Time {
    Time::after_origin(Duration::from_millis(ms))
}

fn ends(log_end: u64, durable_end: u64) -> Progress {
    Progress { log_end: Offset(log_end), durable_end: Offset(durable_end) }
}

/// Replicas 0 to 2, of broker epochs 10 to 12, of which these are in sync.
fn membership(partition_epoch: u32, in_sync: &[u32]) -> Membership {
    let replica = |id| (BrokerId(id), Replica { broker_epoch: 10 + u64::from(id), is_eligible: true });
    Membership {
        partition_epoch,
        replicas: (0..3).map(replica).collect(),
        in_sync: in_sync.iter().copied().map(BrokerId).collect(),
    }
}

/// Broker 0 leads in epoch 5, with so many records, all on disk, of which some are known to be committed.
fn leader(in_sync: &[u32], min: u32, end: u64, high_watermark: u64) -> Leader {
    let config = TopicConfig { min_insync_replicas: min, ..TopicConfig::default() };
    let start = LeaderStart {
        broker: BrokerId(0),
        leader_epoch: EPOCH,
        membership: membership(1, in_sync),
        config: &config,
        replica_lag: LAG,
        log_start: Offset::ZERO,
        high_watermark: Offset(high_watermark),
        local: ends(end, end),
    };
    Leader::start(at(0), start, &mut Vec::new())
}

fn tell(leader: &mut Leader, ms: u64, input: LeaderInput) -> Vec<LeaderAction> {
    let mut actions = Vec::new();
    leader.handle(at(ms), input, &mut actions);
    actions
}

fn follow(follower: u32, last_epoch: Option<u32>, end: u64, known: Option<(u32, u64)>) -> LeaderInput {
    LeaderInput::Follow(Follow {
        follower: BrokerId(follower),
        broker_epoch: 10 + u64::from(follower),
        leader_epoch: EPOCH,
        last_epoch: last_epoch.map(LeaderEpoch),
        end: Offset(end),
        known: known.map(|(epoch, end)| EpochEnd { epoch: LeaderEpoch(epoch), end: Offset(end) }),
    })
}

/// A follower whose log is the front of the leader's, up to `end`.
fn joins(leader: &mut Leader, ms: u64, follower: u32, end: u64) {
    let actions = tell(leader, ms, follow(follower, Some(4), end, Some((4, end))));
    assert_eq!(actions, [accepted(end)]);
}

fn progress(follower: u32, end: u64) -> LeaderInput {
    LeaderInput::Progress {
        follower: BrokerId(follower),
        broker_epoch: 10 + u64::from(follower),
        ends: ends(end, end),
    }
}

fn accepted(from: u64) -> LeaderAction {
    LeaderAction::Answer(FollowAnswer::Accepted { from: Offset(from) })
}

fn advance(to: u64) -> LeaderAction {
    LeaderAction::AdvanceHighWatermark { to: Offset(to) }
}

fn propose(number: u64, partition_epoch: u32, in_sync: &[u32]) -> LeaderAction {
    let in_sync = in_sync.iter().map(|id| (BrokerId(*id), 10 + u64::from(*id))).collect();
    LeaderAction::Propose(Proposal { number, leader_epoch: EPOCH, partition_epoch, in_sync })
}

fn answered(number: u64, outcome: ProposalOutcome) -> LeaderInput {
    LeaderInput::ProposalAnswered { number, outcome }
}

fn reconfigured(membership: Membership, min_insync_replicas: u32) -> LeaderInput {
    LeaderInput::Reconfigured { membership, sync: Sync::Always, min_insync_replicas }
}

#[test]
fn committed_is_what_every_in_sync_replica_has_on_disk_and_told_in_this_leadership() {
    let mut leader = leader(&[0, 1, 2], 2, 8, 3);
    assert_eq!(leader.high_watermark(), Offset(3));
    assert!(!leader.is_settled(), "the last leader may have shown more");
    joins(&mut leader, 1, 1, 8);
    joins(&mut leader, 1, 2, 8);
    assert_eq!(tell(&mut leader, 2, progress(1, 8)), [], "one was not heard yet");
    let behind = LeaderInput::Progress { follower: BrokerId(2), broker_epoch: 12, ends: ends(8, 6) };
    assert_eq!(tell(&mut leader, 3, behind), [advance(6)]);
    assert!(!leader.is_settled());
    assert_eq!(tell(&mut leader, 4, progress(2, 8)), [advance(8)]);
    assert!(leader.is_settled());
    assert_eq!(leader.replicas_on_disk(Offset(8)), 3);
}

#[test]
fn a_follower_is_admitted_in_its_leadership_and_registration_alone() {
    let mut leader = leader(&[0, 1, 2], 2, 8, 3);
    let refusal = |leader: &mut Leader, change: &dyn Fn(&mut Follow)| {
        let LeaderInput::Follow(mut asked) = follow(1, Some(4), 8, Some((4, 8))) else { unreachable!() };
        change(&mut asked);
        match tell(leader, 1, LeaderInput::Follow(asked)).as_slice() {
            [LeaderAction::Answer(FollowAnswer::Refused(why))] => *why,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refusal(&mut leader, &|f| f.leader_epoch = LeaderEpoch(4)), FollowRefusal::OlderEpoch);
    assert_eq!(refusal(&mut leader, &|f| f.leader_epoch = LeaderEpoch(6)), FollowRefusal::NewerEpoch);
    assert_eq!(refusal(&mut leader, &|f| f.broker_epoch = 10), FollowRefusal::OlderBrokerEpoch);
    assert_eq!(refusal(&mut leader, &|f| f.broker_epoch = 12), FollowRefusal::NewerBrokerEpoch);
    assert_eq!(refusal(&mut leader, &|f| f.follower = BrokerId(7)), FollowRefusal::NoReplica);
}

#[test]
fn a_log_that_parts_from_the_leaders_is_told_where() {
    let mut leader = leader(&[0, 1, 2], 2, 20, 3);
    let answer = |leader: &mut Leader, input| match tell(leader, 1, input).as_slice() {
        [LeaderAction::Answer(answer)] => *answer,
        other => panic!("{other:?}"),
    };
    let diverging =
        |epoch, end| FollowAnswer::Diverging(EpochEnd { epoch: LeaderEpoch(epoch), end: Offset(end) });
    let accepted = |from| FollowAnswer::Accepted { from: Offset(from) };
    assert_eq!(answer(&mut leader, follow(1, Some(3), 15, Some((3, 12)))), diverging(3, 12), "too long");
    assert_eq!(answer(&mut leader, follow(1, Some(4), 15, Some((2, 9)))), diverging(2, 9), "unknown epoch");
    assert_eq!(answer(&mut leader, follow(1, Some(3), 12, Some((3, 12)))), accepted(12));
    assert_eq!(answer(&mut leader, follow(1, None, 0, None)), accepted(0), "it has nothing");
    tell(&mut leader, 2, LeaderInput::Trimmed { start: Offset(3) });
    assert_eq!(answer(&mut leader, follow(1, Some(1), 2, None)), accepted(3), "gone: it begins anew");
    assert_eq!(answer(&mut leader, follow(1, None, 0, None)), accepted(3));
}

/// KAFKA-7128: a new leader whose high watermark lags must not let in who only reached that.
#[test]
fn who_joins_has_everything_from_before_the_leadership() {
    let mut leader = leader(&[0, 1], 2, 8, 3);
    joins(&mut leader, 1, 2, 3);
    assert_eq!(tell(&mut leader, 2, progress(2, 5)), [], "beyond the high watermark, and not enough");
    assert_eq!(tell(&mut leader, 3, progress(2, 8)), [propose(1, 1, &[0, 1, 2])]);
}

/// Retention had emptied a log under `sync = interval`: a follower told to begin anew at its end was taken for one that
/// has everything. Elected before it had begun anew, it would have given the committed offsets again.
#[test]
fn who_is_to_begin_anew_has_nothing_until_it_has() {
    let mut leader = leader(&[0, 1], 2, 8, 8);
    let interval = LeaderInput::Reconfigured {
        membership: membership(1, &[0, 1]),
        sync: Sync::Interval,
        min_insync_replicas: 2,
    };
    tell(&mut leader, 1, interval);
    tell(&mut leader, 1, LeaderInput::Trimmed { start: Offset(8) });
    assert_eq!(tell(&mut leader, 2, follow(2, Some(1), 3, None)), [accepted(8)], "nothing is proposed");
    assert_eq!(leader.progress_of(BrokerId(2)), Some(Progress::default()));
    assert_eq!(
        tell(&mut leader, 3, follow(2, Some(1), 8, None)),
        [accepted(8)],
        "what it has there is its own"
    );
    let again = tell(&mut leader, 4, follow(2, None, 8, None));
    assert_eq!(again, [accepted(8), propose(1, 1, &[0, 1, 2])]);
}

/// A follower's log ended where its leader's began, by chance and with records that had never been committed: it took the
/// high watermark for theirs, and showed them to readers (the simulator's seed 0xeb2).
#[test]
fn who_ends_where_the_leaders_log_begins_believes_only_what_was_committed() {
    let begins_there = |log_start| FollowerInput::Accepted {
        from: Offset(7),
        high_watermark: Offset(9),
        log_start: Offset(log_start),
    };
    let mut dubious = follower(7, 5, false);
    hear(&mut dubious, FollowerInput::LinkUp);
    let restart = FollowerAction::Restart { at: Offset(7), is_committed: false };
    assert_eq!(hear(&mut dubious, begins_there(7)), [restart]);
    assert_eq!(hear(&mut dubious, FollowerInput::Restarted { at: Offset(7) }), [asks(None, 7)]);
    assert_eq!(hear(&mut dubious, begins_there(7)), [FollowerAction::Report(ends(7, 7))]);
    for (high_watermark, log_start) in [(7, 7), (5, 6)] {
        let mut certain = follower(7, high_watermark, false);
        hear(&mut certain, FollowerInput::LinkUp);
        let actions = hear(&mut certain, begins_there(log_start));
        assert_eq!(actions.first(), Some(&FollowerAction::Report(ends(7, 7))), "{actions:?}");
    }
}

#[test]
fn a_proposed_replica_counts_until_its_proposal_is_settled() {
    let mut leader = leader(&[0], 1, 8, 8);
    joins(&mut leader, 1, 1, 8);
    assert_eq!(tell(&mut leader, 2, progress(1, 8)), [propose(1, 1, &[0, 1])]);
    assert_eq!(tell(&mut leader, 3, LeaderInput::Appended { end: Offset(10) }), []);
    assert_eq!(
        tell(&mut leader, 3, LeaderInput::LocalDurable { end: Offset(10) }),
        [],
        "maybe it is in sync"
    );
    // What became of it is not known: it counts still, and it is proposed again.
    assert_eq!(tell(&mut leader, 4, answered(1, ProposalOutcome::Unknown)), []);
    let retry = 4 + limits::IN_SYNC_RETRY_INTERVAL.as_millis() as u64;
    assert_eq!(leader.deadline(), Some(at(retry)));
    assert_eq!(tell(&mut leader, retry, LeaderInput::TimePassed), [propose(2, 1, &[0, 1])]);
    assert_eq!(tell(&mut leader, retry + 1, answered(2, ProposalOutcome::Refused)), []);
    assert_eq!(leader.high_watermark(), Offset(8), "the first may be taken yet");
    // The partition epoch moved on without it: it never will be.
    let settled = reconfigured(membership(2, &[0]), 1);
    assert_eq!(tell(&mut leader, retry + 2, settled), [advance(10)]);
    assert_eq!(tell(&mut leader, retry + 3, answered(1, ProposalOutcome::Refused)), [], "late");
}

#[test]
fn a_laggard_leaves_after_its_time_and_not_before() {
    let mut leader = leader(&[0, 1, 2], 2, 8, 8);
    for follower in [1, 2] {
        joins(&mut leader, 1, follower, 8);
        tell(&mut leader, 2, progress(follower, 8));
    }
    assert_eq!(leader.deadline(), None, "whoever has everything does not lag");
    tell(&mut leader, 100, LeaderInput::Appended { end: Offset(9) });
    tell(&mut leader, 100, LeaderInput::LocalDurable { end: Offset(9) });
    tell(&mut leader, 101, progress(1, 9));
    assert_eq!(leader.deadline(), Some(at(1100)));
    assert_eq!(tell(&mut leader, 1099, LeaderInput::TimePassed), []);
    assert_eq!(tell(&mut leader, 1100, LeaderInput::TimePassed), [propose(1, 1, &[0, 1])]);
    let taken = ProposalOutcome::Taken(membership(2, &[0, 1]));
    assert_eq!(tell(&mut leader, 1101, answered(1, taken)), [advance(9)]);
    assert_eq!(tell(&mut leader, 1200, progress(2, 9)), [propose(2, 2, &[0, 1, 2])], "it came back");
}

/// While too few are in sync the high watermark stands still: one that is gone has all of what is committed, and was let
/// in again as often as it was taken out, some hundred times a second.
#[test]
fn a_laggard_that_has_all_that_is_committed_does_not_come_back_before_it_keeps_up() {
    let mut leader = leader(&[0, 1, 2], 3, 8, 8);
    for follower in [1, 2] {
        joins(&mut leader, 1, follower, 8);
        tell(&mut leader, 2, progress(follower, 8));
    }
    tell(&mut leader, 100, LeaderInput::Appended { end: Offset(9) });
    tell(&mut leader, 100, LeaderInput::LocalDurable { end: Offset(9) });
    tell(&mut leader, 101, progress(1, 9));
    assert_eq!(tell(&mut leader, 1100, LeaderInput::TimePassed), [propose(1, 1, &[0, 1])]);
    let taken = ProposalOutcome::Taken(membership(2, &[0, 1]));
    assert_eq!(tell(&mut leader, 1101, answered(1, taken)), [], "it is gone, whatever it had");
    assert_eq!(tell(&mut leader, 1102, progress(1, 9)), []);
    assert_eq!(leader.deadline(), None);
    assert_eq!(tell(&mut leader, 1200, progress(2, 9)), [propose(2, 2, &[0, 1, 2])], "it came back");
    let taken = ProposalOutcome::Taken(membership(3, &[0, 1, 2]));
    assert_eq!(tell(&mut leader, 1201, answered(2, taken)), [advance(9)]);
}

#[test]
fn too_few_in_sync_commit_nothing_and_one_of_an_older_registration_does_not_count() {
    let mut leader = leader(&[0], 2, 8, 3);
    assert!(!leader.has_enough_replicas());
    joins(&mut leader, 1, 1, 8);
    assert_eq!(tell(&mut leader, 2, progress(1, 8)), [propose(1, 1, &[0, 1])]);
    let taken = ProposalOutcome::Taken(membership(2, &[0, 1]));
    assert_eq!(tell(&mut leader, 3, answered(1, taken)), [advance(8)]);
    // It registered again, and has not followed since.
    let mut restarted = membership(3, &[0, 1]);
    restarted.replicas.insert(BrokerId(1), Replica { broker_epoch: 20, is_eligible: true });
    tell(&mut leader, 4, reconfigured(restarted, 2));
    tell(&mut leader, 5, LeaderInput::Appended { end: Offset(9) });
    tell(&mut leader, 5, LeaderInput::LocalDurable { end: Offset(9) });
    assert_eq!(tell(&mut leader, 6, progress(1, 9)), [], "it says so in an earlier life");
}

/// A follower of epoch 5 with so many records.
fn follower(end: u64, high_watermark: u64, is_counted: bool) -> Follower {
    let start = FollowerStart {
        leader_epoch: EPOCH,
        last_epoch: Some(LeaderEpoch(4)),
        sync: Sync::Always,
        log_start: Offset::ZERO,
        high_watermark: Offset(high_watermark),
        ends: ends(end, end),
        is_counted,
        is_damaged: false,
    };
    Follower::start(start, &mut Vec::new())
}

fn hear(follower: &mut Follower, input: FollowerInput) -> Vec<FollowerAction> {
    let mut actions = Vec::new();
    follower.handle(at(0), input, &mut actions);
    actions
}

fn asks(last_epoch: Option<u32>, end: u64) -> FollowerAction {
    let last_epoch = last_epoch.map(LeaderEpoch);
    FollowerAction::Follow { leader_epoch: EPOCH, last_epoch, end: Offset(end) }
}

fn is_accepted(from: u64, high_watermark: u64) -> FollowerInput {
    let (from, high_watermark) = (Offset(from), Offset(high_watermark));
    FollowerInput::Accepted { from, high_watermark, log_start: Offset::ZERO }
}

#[test]
fn a_follower_cuts_before_it_publishes_anything() {
    let mut follower = follower(10, 4, true);
    let watermarks = FollowerInput::Watermarks { high_watermark: Offset(9), log_start: Offset::ZERO };
    assert_eq!(hear(&mut follower, FollowerInput::LinkUp), [asks(Some(4), 10)]);
    assert_eq!(hear(&mut follower, watermarks), [], "it does not know yet what it has in common");
    let end = |epoch, end| EpochEnd { epoch: LeaderEpoch(epoch), end: Offset(end) };
    let diverging = FollowerInput::Diverging { leader: end(3, 7), own: Some(end(3, 6)) };
    let cut = FollowerAction::Truncate { to: Offset(6), is_committed: false };
    assert_eq!(hear(&mut follower, diverging), [cut]);
    assert!(follower.is_cutting());
    assert_eq!(hear(&mut follower, watermarks), []);
    let truncated = FollowerInput::Truncated { ends: ends(6, 6), last_epoch: Some(LeaderEpoch(3)) };
    assert_eq!(hear(&mut follower, truncated), [asks(Some(3), 6)]);
    assert_eq!(
        hear(&mut follower, is_accepted(6, 9)),
        [FollowerAction::Report(ends(6, 6)), FollowerAction::AdvanceHighWatermark { to: Offset(6) }]
    );
    let appended = FollowerInput::Appended { end: Offset(8), last_epoch: LeaderEpoch(5) };
    assert_eq!(hear(&mut follower, appended), [], "nothing is on disk yet");
    assert_eq!(
        hear(&mut follower, FollowerInput::LocalDurable { end: Offset(8) }),
        [FollowerAction::Report(ends(8, 8))]
    );
}

/// A follower that lost its link in the middle of a leadership asked again with the leadership that its log had ended
/// in when it began to follow. The leader answered where that one had ended, and the follower cut off everything since,
/// committed records among it. Found by the simulator, seed 0x12.
#[test]
fn a_follower_that_lost_its_link_asks_with_the_leadership_that_wrote_its_last_record() {
    let mut follower = follower(10, 10, true);
    hear(&mut follower, FollowerInput::LinkUp);
    hear(&mut follower, is_accepted(10, 10));
    hear(&mut follower, FollowerInput::Appended { end: Offset(12), last_epoch: LeaderEpoch(5) });
    assert_eq!(hear(&mut follower, FollowerInput::LinkDown), []);
    assert_eq!(hear(&mut follower, FollowerInput::LinkUp), [asks(Some(5), 12)]);
}

#[test]
fn what_is_counted_on_is_not_dropped_before_the_controller_knows() {
    let mut follower = follower(10, 10, true);
    hear(&mut follower, FollowerInput::LinkUp);
    hear(&mut follower, is_accepted(10, 10));
    // A leader that is not told how little it has would have it taken in again at once.
    assert_eq!(hear(&mut follower, FollowerInput::Unfitting), [FollowerAction::Distrust, asks(None, 0)]);
    assert_eq!(hear(&mut follower, is_accepted(2, 10)), [FollowerAction::Unfollow], "it is counted on still");
    let counted = |is_counted| FollowerInput::Reconfigured { sync: Sync::Always, is_counted };
    // It may have been taken out and in again since, which is not always seen.
    assert_eq!(hear(&mut follower, counted(true)), [FollowerAction::Distrust, asks(None, 0)]);
    assert_eq!(hear(&mut follower, counted(true)), [], "it has asked already");
    assert_eq!(hear(&mut follower, is_accepted(2, 10)), [FollowerAction::Unfollow, FollowerAction::Distrust]);
    assert_eq!(hear(&mut follower, FollowerInput::LinkUp), [asks(None, 0)]);
    assert_eq!(hear(&mut follower, is_accepted(2, 10)), [FollowerAction::Unfollow]);
    assert_eq!(hear(&mut follower, counted(false)), [asks(None, 0)]);
    let restart = FollowerAction::Restart { at: Offset(2), is_committed: true };
    assert_eq!(hear(&mut follower, is_accepted(2, 10)), [restart]);
    assert_eq!(hear(&mut follower, FollowerInput::Restarted { at: Offset(2) }), [asks(None, 2)]);
    assert_eq!(hear(&mut follower, is_accepted(2, 10)), [FollowerAction::Report(ends(2, 2))]);
}

#[test]
fn a_follower_behind_the_leaders_log_start_begins_anew_there() {
    let mut follower = follower(3, 3, false);
    hear(&mut follower, FollowerInput::LinkUp);
    let restart = FollowerAction::Restart { at: Offset(7), is_committed: false };
    assert_eq!(hear(&mut follower, is_accepted(7, 9)), [restart]);
    assert_eq!(hear(&mut follower, FollowerInput::LinkDown), [], "that goes on");
    assert_eq!(hear(&mut follower, FollowerInput::Restarted { at: Offset(7) }), []);
    assert_eq!(hear(&mut follower, FollowerInput::LinkUp), [asks(None, 7)]);
}

#[test]
fn a_failed_disk_ends_it() {
    let mut follower = follower(3, 3, true);
    hear(&mut follower, FollowerInput::LinkUp);
    assert_eq!(
        hear(&mut follower, FollowerInput::Failed),
        [FollowerAction::Distrust, FollowerAction::Unfollow]
    );
    assert_eq!(hear(&mut follower, FollowerInput::LinkUp), []);
}

/// A damaged frame was where a log had to be cut: its replica stayed out for good, and its broker had to be started again.
#[test]
fn a_log_that_can_not_be_cut_begins_anew() {
    let mut follower = follower(9, 3, true);
    hear(&mut follower, FollowerInput::LinkUp);
    let parts = FollowerInput::Diverging {
        leader: EpochEnd { epoch: LeaderEpoch(4), end: Offset(5) },
        own: Some(EpochEnd { epoch: LeaderEpoch(4), end: Offset(9) }),
    };
    let truncate = FollowerAction::Truncate { to: Offset(5), is_committed: false };
    assert_eq!(hear(&mut follower, parts), [truncate]);
    assert_eq!(hear(&mut follower, FollowerInput::Damaged), [], "the cut is under way");
    assert_eq!(
        hear(&mut follower, FollowerInput::CutFailed),
        [FollowerAction::Unfollow, FollowerAction::Distrust, asks(None, 0)]
    );
    let counted = FollowerInput::Reconfigured { sync: Sync::Always, is_counted: false };
    hear(&mut follower, counted);
    let restart = FollowerAction::Restart { at: Offset(2), is_committed: true };
    assert_eq!(hear(&mut follower, is_accepted(2, 5)), [restart]);
}

/// A log as far as histories are compared: the leadership of each record.
type History = Vec<u32>;

fn epoch_starts(history: &[u32]) -> BTreeMap<u32, usize> {
    let mut starts = BTreeMap::new();
    for (offset, epoch) in history.iter().enumerate() {
        starts.entry(*epoch).or_insert(offset);
    }
    starts
}

/// The last leadership in a history that is not after `epoch`, and where it ended.
fn end_of(history: &[u32], epoch: u32) -> Option<EpochEnd> {
    let starts = epoch_starts(history);
    let (found, _) = starts.range(..=epoch).next_back()?;
    let end = starts.range(epoch + 1..).next().map_or(history.len(), |(_, start)| *start);
    Some(EpochEnd { epoch: LeaderEpoch(*found), end: Offset(end as u64) })
}

/// Two histories that part somewhere, as histories can: each leadership is one leader's.
fn histories() -> impl Strategy<Value = (History, History)> {
    let runs = || prop::collection::vec((any::<bool>(), 1usize..4), 0..6);
    (runs(), runs(), runs()).prop_map(|(common, leader, follower)| {
        let extend = |history: &mut History, runs: &[(bool, usize)], parity: Option<u32>| {
            for (skips, count) in runs {
                let mut epoch = history.last().map_or(0, |last| last + 1) + u32::from(*skips);
                // After the logs parted no leadership is in both.
                if parity.is_some_and(|parity| epoch % 2 != parity) {
                    epoch += 1;
                }
                history.extend(std::iter::repeat_n(epoch, *count));
            }
        };
        let mut shared = History::new();
        extend(&mut shared, &common, None);
        let (mut ours, mut theirs) = (shared.clone(), shared);
        extend(&mut ours, &leader, Some(0));
        extend(&mut theirs, &follower, Some(1));
        (ours, theirs)
    })
}

proptest! {
    /// However two logs part, a few questions find the longest front that they share, and never less (invariant 4).
    #[test]
    fn a_follower_is_cut_where_it_parts_from_its_leader((ours, theirs) in histories()) {
        let shared = ours.iter().zip(&theirs).take_while(|(a, b)| a == b).count();
        let mut leader = leader(&[0, 1, 2], 2, ours.len() as u64, 0);
        let mut log = theirs.clone();
        let last = |log: &History| log.last().copied().map(LeaderEpoch);
        let start = FollowerStart {
            leader_epoch: EPOCH,
            last_epoch: last(&log),
            sync: Sync::Always,
            log_start: Offset::ZERO,
            high_watermark: Offset::ZERO,
            ends: ends(log.len() as u64, log.len() as u64),
            is_counted: false,
            is_damaged: false,
        };
        let mut follower = Follower::start(start, &mut Vec::new());
        let mut actions = hear(&mut follower, FollowerInput::LinkUp);
        for _ in 0..20 {
            let Some(action) = actions.first().copied() else { break };
            actions = match action {
                FollowerAction::Follow { last_epoch, end, .. } => {
                    let known = last_epoch.and_then(|epoch| end_of(&ours, epoch.0)).map(|k| (k.epoch.0, k.end.0));
                    let asked = follow(1, last_epoch.map(|epoch| epoch.0), end.0, known);
                    match tell(&mut leader, 1, asked).first() {
                        Some(LeaderAction::Answer(FollowAnswer::Accepted { from })) => {
                            hear(&mut follower, is_accepted(from.0, 0))
                        }
                        Some(LeaderAction::Answer(FollowAnswer::Diverging(at))) => {
                            let own = end_of(&log, at.epoch.0);
                            hear(&mut follower, FollowerInput::Diverging { leader: *at, own })
                        }
                        other => panic!("{other:?}"),
                    }
                }
                FollowerAction::Truncate { to, .. } => {
                    log.truncate(to.0 as usize);
                    let end = log.len() as u64;
                    hear(&mut follower, FollowerInput::Truncated { ends: ends(end, end), last_epoch: last(&log) })
                }
                FollowerAction::Restart { at, .. } => {
                    prop_assert_eq!(at, Offset::ZERO);
                    log.clear();
                    hear(&mut follower, FollowerInput::Restarted { at })
                }
                FollowerAction::Report(_) => break,
                other => panic!("{other:?}"),
            };
        }
        prop_assert!(follower.is_fetching(), "{theirs:?} follows {ours:?} in a few steps");
        prop_assert_eq!(log.len(), shared, "{:?} beside {:?}", theirs, ours);
    }

    /// Whatever happens, in whatever order, what is committed was safe on everyone whom the controller may count as in
    /// sync, with at least as many of them as must be (invariant 7).
    #[test]
    fn what_is_committed_is_safe_on_the_maximal_in_sync_replicas(
        steps in prop::collection::vec((0u8..9, 0u32..3, 0u64..4, 1u64..400), 0..80),
    ) {
        let mut leader = leader(&[0, 1, 2], 2, 0, 0);
        let mut now = 0;
        let (mut end, mut followed) = (0u64, BTreeSet::new());
        let mut durable = BTreeMap::from([(0u32, 0u64), (1, 0), (2, 0)]);
        // What the controller has, and what may still reach it.
        let mut committed = membership(1, &[0, 1, 2]);
        let mut sent: Vec<Proposal> = Vec::new();
        for (what, who, amount, ms) in steps {
            now += ms;
            let before = leader.high_watermark();
            let input = match what {
                0 | 1 => {
                    end += amount;
                    LeaderInput::Appended { end: Offset(end) }
                }
                2 => {
                    durable.insert(0, end);
                    LeaderInput::LocalDurable { end: Offset(end) }
                }
                3 | 4 if who > 0 && followed.contains(&who) => {
                    let reached = (durable[&who] + amount).min(end);
                    durable.insert(who, reached);
                    progress(who, reached)
                }
                5 if who > 0 => {
                    followed.insert(who);
                    follow(who, Some(4), durable[&who], Some((5, end))).clone()
                }
                6 | 7 => match sent.pop() {
                    // It reaches the controller now, and the answer is lost or not.
                    Some(proposal) => {
                        let is_taken = proposal.partition_epoch == committed.partition_epoch;
                        if is_taken {
                            committed.partition_epoch += 1;
                            committed.in_sync = proposal.in_sync.iter().map(|(id, _)| *id).collect();
                        }
                        let outcome = match (is_taken, what) {
                            (true, 6) => ProposalOutcome::Taken(committed.clone()),
                            (false, 6) => ProposalOutcome::Refused,
                            _ => ProposalOutcome::Unknown,
                        };
                        answered(proposal.number, outcome)
                    }
                    None => reconfigured(committed.clone(), 2),
                },
                _ => LeaderInput::TimePassed,
            };
            // Of whom it is not known whether they are in sync: all that may yet be taken.
            let actions = tell(&mut leader, now, input);
            for action in &actions {
                if let LeaderAction::Propose(proposal) = action {
                    sent.push(proposal.clone());
                }
            }
            if leader.high_watermark() > before {
                prop_assert!(leader.in_sync().len() >= 2);
                let maybe = sent.iter().filter(|proposal| proposal.partition_epoch == committed.partition_epoch);
                let maybe = maybe.flat_map(|proposal| proposal.in_sync.iter().map(|(id, _)| *id));
                let maximal: BTreeSet<_> = committed.in_sync.iter().copied().chain(maybe).collect();
                for id in maximal.into_iter().filter(|id| id.0 != 0) {
                    prop_assert!(Offset(durable[&id.0]) >= leader.high_watermark(), "broker {} of {:?}", id, actions);
                }
                prop_assert!(Offset(durable[&0]) >= leader.high_watermark());
            }
        }
    }
}
