//! A replica whose log may lack what was acknowledged, and who knows of that.

use quire_engine::replication::Replica;
use quire_protocol::replicate::{Follow, FollowerMessage, LeaderMessage};
use quire_protocol::topic_config::Sync;
use quire_storage::disk::{CrashOptions, Survival};

use super::*;

pub(super) const OTHER: BrokerId = BrokerId(1);

/// As the metadata have it: led by this broker or by the other, and this one counted on or not.
pub(super) fn replicated(leader: Option<BrokerId>, leader_epoch: u32, is_counted: bool) -> Assignment {
    let mut assignment = Assignment::alone(BrokerId(0), LeaderEpoch(leader_epoch));
    let other = Replica { broker_epoch: 1, is_eligible: true };
    assignment.membership.replicas.insert(OTHER, other);
    assignment.membership.in_sync.insert(OTHER);
    if !is_counted {
        assignment.membership.in_sync.remove(&BrokerId(0));
    }
    assignment.leader = leader;
    assignment.is_counted = is_counted;
    assignment
}

fn interval() -> TopicConfig {
    TopicConfig { sync: Sync::Interval, ..TopicConfig::default() }
}

/// The last request to follow.
pub(super) fn asked(uplink: &Uplink) -> Option<Follow> {
    let follow = |message| match message {
        FollowerMessage::Follow(follow) => Some(follow),
        _ => None,
    };
    uplink.take().into_iter().filter_map(follow).next_back()
}

impl Rig {
    /// A log that was not synced, after a loss of power, in a broker that is not registered yet.
    fn after_power_loss() -> Rig {
        Rig::warm(interval()).after_power_loss_of(Survival::Random)
    }

    /// The next start, after a loss of power that left so much.
    fn after_power_loss_of(self, survival: Survival) -> Rig {
        let rig = self;
        rig.disk.crash(&CrashOptions { data: survival, names: survival });
        let mut unknown = replicated(None, 1, true);
        unknown.is_current = false;
        let mut rig = Rig::unopened(rig.disk.fork(2), interval(), LeaderEpoch(1));
        rig.shared.configure(Arc::new(unknown), Arc::new(interval()));
        rig.open();
        rig
    }

    fn configure(&mut self, assignment: Assignment) {
        let config = Arc::new(interval());
        self.apply(Event::Configure { partition: PARTITION, assignment: Arc::new(assignment), config });
        self.run_all();
    }

    /// Answers every request to follow, of a leader that has what is asked with and nothing more; how many there were.
    fn follow_to_the_end(&mut self, uplink: &Uplink) -> usize {
        let mut requests = 0;
        loop {
            let Some(Follow { slot, end, .. }) = asked(uplink) else { return requests };
            requests += 1;
            let (from, high_watermark, log_start) = (end, end, Offset::ZERO);
            let message = LeaderMessage::Accepted { slot, from, high_watermark, log_start };
            self.apply(Event::Told { leader: OTHER, message, frames: Fetched::default() });
            self.run_all();
        }
    }

    fn distrusts(&mut self) -> bool {
        self.shard.take_outgoing().iter().any(|outgoing| matches!(outgoing, Outgoing::Distrust { .. }))
    }
}

/// A broker that did not know of the partition when it registered, its metadata being older than its logs, led with what a
/// loss of power had left.
#[test]
fn who_may_lack_something_that_nobody_was_told_of_does_not_lead() {
    let mut rig = Rig::after_power_loss();
    assert!(rig.shared.is_suspect());
    rig.configure(replicated(Some(BrokerId(0)), 2, true));
    assert!(!rig.handle().standing().is_leading && rig.distrusts());
    // The controller knows now, and whom it has lead after that leads: there may be nobody else.
    rig.configure(replicated(None, 3, false));
    rig.configure(replicated(Some(BrokerId(0)), 4, true));
    assert!(rig.handle().standing().is_leading && !rig.distrusts());
}

#[test]
fn who_told_what_may_be_missing_leads_when_it_is_asked_to() {
    let mut rig = Rig::after_power_loss();
    rig.configure(replicated(Some(OTHER), 2, false));
    assert!(!rig.distrusts(), "nobody counts on it");
    rig.configure(replicated(Some(BrokerId(0)), 3, true));
    assert!(rig.handle().standing().is_leading && !rig.distrusts());
}

/// How far its own log had been before others' history cut it, it never came again: it led no more.
#[test]
fn who_may_lack_something_has_caught_up_with_what_its_leader_has_committed() {
    let mut rig = Rig::warm(interval());
    rig.produce(&Stream::new(Acks::All), "nobody else has this");
    rig.run_all();
    let mut rig = rig.after_power_loss_of(Survival::Everything);
    assert!(rig.shared.is_suspect());
    assert_eq!(rig.handle().reader().end_offset(), Offset(2), "all of it is there");
    rig.configure(replicated(Some(OTHER), 2, true));
    let outgoing = rig.shard.take_outgoing();
    assert!(
        outgoing.iter().any(|outgoing| matches!(outgoing, Outgoing::Distrust { .. })),
        "it is counted on"
    );
    let uplink = outgoing.into_iter().find_map(|outgoing| match outgoing {
        Outgoing::Connect(uplink) => Some(uplink),
        _ => None,
    });
    let uplink = uplink.expect("it follows");
    rig.apply(Event::LinkUp { leader: OTHER });
    let slot = asked(&uplink).expect("it asks with what it has").slot;
    let message = LeaderMessage::Diverging { slot, epoch: LeaderEpoch(1), end: Offset(1) };
    rig.apply(Event::Told { leader: OTHER, message, frames: Fetched::default() });
    rig.run_all();
    assert_eq!(rig.handle().reader().end_offset(), Offset(1));
    assert_eq!(rig.follow_to_the_end(&uplink), 1);
    rig.configure(replicated(Some(BrokerId(0)), 3, true));
    assert!(rig.handle().standing().is_leading && !rig.distrusts());
}

/// A log that was dropped before it had a file had nothing noted on disk, and was suspect for as long as its broker ran.
#[test]
fn an_empty_log_that_began_anew_is_trusted_once_it_has_caught_up() {
    let mut rig = Rig::unopened(SimDisk::new(1), TopicConfig::default(), LeaderEpoch(1));
    rig.shared.configure(Arc::new(replicated(Some(OTHER), 1, false)), Arc::default());
    rig.open();
    let Some(Outgoing::Connect(uplink)) = rig.shard.take_outgoing().pop() else { panic!("it follows") };
    rig.apply(Event::LinkUp { leader: OTHER });
    rig.apply(Event::Damaged { partition: PARTITION, what: "a test says so".to_owned() });
    assert_eq!(rig.follow_to_the_end(&uplink), 2, "it is asked for what it has, and again with nothing");
    assert!(rig.shared.is_suspect(), "nobody said yet that it has everything");
    let mut in_sync = replicated(Some(OTHER), 1, true);
    in_sync.membership.partition_epoch += 1;
    rig.configure(in_sync);
    assert!(!rig.shared.is_suspect());
}
