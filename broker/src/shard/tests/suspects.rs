//! A replica whose log may lack what was acknowledged, and who knows of that.

use quire_engine::replication::Replica;
use quire_protocol::replicate::{FollowerMessage, LeaderMessage};
use quire_protocol::topic_config::Sync;

use super::*;

const OTHER: BrokerId = BrokerId(1);

/// As the metadata have it: led by this broker or by the other, and this one counted on or not.
fn replicated(leader: Option<BrokerId>, leader_epoch: u32, is_counted: bool) -> Assignment {
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

impl Rig {
    /// A log that was not synced, after a loss of power, in a broker that is not registered yet.
    fn after_power_loss() -> Rig {
        let rig = Rig::warm(interval());
        rig.disk.crash(&Default::default());
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

    /// Answers every request to follow, of an empty leader; how many there were.
    fn follow_to_the_end(&mut self, uplink: &Uplink) -> usize {
        let mut requests = 0;
        loop {
            let mut asked = uplink.take().into_iter().filter_map(|message| match message {
                FollowerMessage::Follow(follow) => Some(follow.slot),
                _ => None,
            });
            let Some(slot) = asked.next_back() else { return requests };
            requests += 1;
            let (from, high_watermark, log_start) = (Offset::ZERO, Offset::ZERO, Offset::ZERO);
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
