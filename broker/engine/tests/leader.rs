//! The leader: inputs in, the whole list of actions out; and a simple model beside it.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use quire_engine::Time;
use quire_engine::machine::Reactive;
use quire_engine::replication::{
    Leader, LeaderAction as Action, LeaderInput as Input, LeaderStart, Membership, Progress, Replica,
    ResignReason,
};
use quire_protocol::topic_config::{Sync, TopicConfig};
use quire_protocol::{BrokerId, LeaderEpoch, Offset, limits};

const BROKER: BrokerId = BrokerId(0);

/// Two replicas, of which only the leader is in sync.
fn two_replicas() -> Membership {
    let replica = Replica { broker_epoch: 1, is_eligible: true };
    Membership {
        partition_epoch: 0,
        replicas: BTreeMap::from([(BROKER, replica), (BrokerId(1), replica)]),
        in_sync: BTreeSet::from([BROKER]),
    }
}

fn reconfigured(sync: Sync, min_insync_replicas: u32) -> Input {
    Input::Reconfigured { membership: two_replicas(), sync, min_insync_replicas }
}

fn start(sync: Sync, min_insync_replicas: u32, log_end: u64, high_watermark: u64) -> (Leader, Vec<Action>) {
    let config = TopicConfig { sync, min_insync_replicas, ..TopicConfig::default() };
    let mut actions = Vec::new();
    let start = LeaderStart {
        broker: BROKER,
        leader_epoch: LeaderEpoch(1),
        membership: two_replicas(),
        config: &config,
        replica_lag: limits::REPLICA_LAG_DEFAULT,
        log_start: Offset::ZERO,
        high_watermark: Offset(high_watermark),
        local: Progress { log_end: Offset(log_end), durable_end: Offset(log_end) },
    };
    (Leader::start(Time::ZERO, start, &mut actions), actions)
}

fn handle(leader: &mut Leader, inputs: &[Input]) -> Vec<Action> {
    let mut actions = Vec::new();
    for input in inputs {
        leader.handle(Time::ZERO, input.clone(), &mut actions);
    }
    actions
}

fn appended(end: u64) -> Input {
    Input::Appended { end: Offset(end) }
}

fn durable(end: u64) -> Input {
    Input::LocalDurable { end: Offset(end) }
}

fn advance(to: u64) -> Action {
    Action::AdvanceHighWatermark { to: Offset(to) }
}

#[test]
fn what_survived_the_start_is_committed_at_once() {
    assert_eq!(start(Sync::Always, 1, 7, 4).1, [advance(7)]);
    assert_eq!(start(Sync::Always, 1, 7, 7).1, []);
}

#[test]
fn nothing_is_committed_before_the_sync_that_covers_it() {
    let (mut leader, _) = start(Sync::Always, 1, 0, 0);
    assert_eq!(handle(&mut leader, &[appended(3), appended(5)]), []);
    assert_eq!(handle(&mut leader, &[durable(3)]), [advance(3)]);
    assert_eq!((leader.safe_end(), leader.high_watermark()), (Offset(3), Offset(3)));
    assert_eq!(handle(&mut leader, &[durable(5), durable(5)]), [advance(5)]);
}

#[test]
fn under_interval_what_is_appended_is_committed() {
    let (mut leader, _) = start(Sync::Interval, 1, 0, 0);
    assert_eq!(handle(&mut leader, &[appended(3), durable(3), appended(4)]), [advance(3), advance(4)]);
    assert_eq!(leader.replicas_on_disk(Offset(3)), 1);
    assert_eq!(leader.replicas_on_disk(Offset(4)), 0);
}

#[test]
fn too_few_in_sync_replicas_commit_nothing() {
    let (mut leader, actions) = start(Sync::Always, 2, 4, 1);
    assert_eq!(actions, []);
    assert_eq!(handle(&mut leader, &[appended(9), durable(9)]), []);
    let lowered = reconfigured(Sync::Always, 1);
    assert_eq!(handle(&mut leader, &[lowered]), [advance(9)]);
}

#[test]
fn a_failed_sync_ends_the_leadership_once_and_for_all() {
    let (mut leader, _) = start(Sync::Always, 1, 0, 0);
    let resign = Action::Resign { why: ResignReason::SyncFailed };
    assert_eq!(handle(&mut leader, &[appended(3), Input::SyncFailed, Input::SyncFailed]), [resign]);
    assert_eq!(handle(&mut leader, &[durable(3)]), [], "a sync that failed once proves nothing any more");
}

#[test]
fn a_stricter_mode_takes_nothing_back() {
    let (mut leader, _) = start(Sync::Interval, 1, 0, 0);
    assert_eq!(handle(&mut leader, &[appended(6)]), [advance(6)]);
    let stricter = reconfigured(Sync::Always, 1);
    assert_eq!(handle(&mut leader, &[stricter, appended(8), durable(6)]), []);
    assert_eq!(handle(&mut leader, &[durable(8)]), [advance(8)]);
}

#[test]
#[should_panic(expected = "log only grows")]
fn a_log_that_shrinks_is_a_defect() {
    let (mut leader, _) = start(Sync::Always, 1, 5, 5);
    handle(&mut leader, &[appended(4)]);
}

/// What may happen next, relative to what happened so far so that every sequence is possible.
#[derive(Debug, Clone)]
enum Step {
    Append(u64),
    /// A part of what is not durable becomes so, in thousandths.
    Sync(u64),
    Fail,
    Reconfigure(Sync, u32),
    /// A part of what is committed is deleted, in thousandths.
    Trim(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..100u64).prop_map(Step::Append),
        6 => (0..=1000u64).prop_map(Step::Sync),
        1 => Just(Step::Fail),
        1 => (prop_oneof![Just(Sync::Always), Just(Sync::Interval)], 1..3u32)
            .prop_map(|(sync, min)| Step::Reconfigure(sync, min)),
        1 => (0..=1000u64).prop_map(Step::Trim),
    ]
}

/// The rule in one line each: committed is the largest end that was ever safe while enough replicas were in sync.
#[derive(Debug)]
struct Model {
    end: u64,
    durable: u64,
    start: u64,
    committed: u64,
    sync: Sync,
    min_insync_replicas: u32,
    failed: bool,
}

impl Model {
    fn step(&mut self, step: &Step) -> Input {
        let input = match step {
            Step::Append(count) => {
                self.end += count;
                appended(self.end)
            }
            Step::Sync(part) => {
                self.durable += (self.end - self.durable) * part / 1000;
                durable(self.durable)
            }
            Step::Fail => {
                self.failed = true;
                Input::SyncFailed
            }
            Step::Reconfigure(sync, min_insync_replicas) => {
                (self.sync, self.min_insync_replicas) = (*sync, *min_insync_replicas);
                reconfigured(*sync, *min_insync_replicas)
            }
            Step::Trim(part) => {
                self.start += (self.committed - self.start) * part / 1000;
                Input::Trimmed { start: Offset(self.start) }
            }
        };
        let safe = if self.sync == Sync::Always { self.durable } else { self.end };
        if !self.failed && self.min_insync_replicas <= 1 {
            self.committed = self.committed.max(safe);
        }
        input
    }
}

proptest! {
    #[test]
    fn the_leader_agrees_with_the_model(steps in prop::collection::vec(step(), 0..60)) {
        let (mut leader, _) = start(Sync::Always, 1, 0, 0);
        let mut model = Model {
            end: 0, durable: 0, start: 0, committed: 0, sync: Sync::Always, min_insync_replicas: 1, failed: false,
        };
        let (mut published, mut resignations) = (0, 0);
        for step in &steps {
            let input = model.step(step);
            for action in handle(&mut leader, &[input]) {
                match action {
                    Action::AdvanceHighWatermark { to } => {
                        prop_assert!(to.0 > published, "the high watermark only advances");
                        published = to.0;
                    }
                    Action::Resign { .. } => resignations += 1,
                    other => prop_assert!(false, "nobody follows, and yet {other:?}"),
                }
            }
            prop_assert_eq!(published, model.committed, "after {:?}", step);
            prop_assert_eq!(leader.high_watermark(), Offset(model.committed));
        }
        prop_assert_eq!(resignations, u32::from(model.failed));
    }
}
