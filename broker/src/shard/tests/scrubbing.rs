//! Logs read again: how fast, how often, and what becomes of what is found.

use super::*;

const OPTIONS: ScrubOptions =
    ScrubOptions { bytes_per_second: 1_000_000, interval: Duration::from_secs(100) };

impl Rig {
    /// Runs the step that is due; whether there was one.
    fn scrub_step(&mut self) -> bool {
        let Some(step) = self.shard.take_scrub(self.now) else { return false };
        assert!(self.shard.take_scrub(self.now).is_none(), "one piece at a time");
        self.apply(step.run());
        true
    }

    /// Lets time pass as the shard asks for it, until a round is over; how long that took.
    fn scrub_round(&mut self) -> Duration {
        let began = self.now.time;
        while self.scrub_step() {
            let due = self.shard.scrubbing.as_ref().and_then(|scrubbing| scrubbing.due());
            let due = due.expect("none is under way");
            self.advance(due.since(self.now.time));
        }
        self.now.time.since(began)
    }
}

fn filled() -> Rig {
    let config = TopicConfig { segment_bytes: 64 * 1024, ..TopicConfig::default() };
    let mut rig = Rig::warm(config);
    let mut stream = Stream::new(Acks::All);
    for number in 1..=200 {
        rig.produce(&stream, &"x".repeat(3_000));
        rig.run_all();
        assert_eq!(stream.outcomes(), [Ok(number)]);
    }
    rig
}

#[test]
fn nothing_is_read_again_unless_asked_for() {
    let mut rig = filled();
    assert!(!rig.scrub_step());
    rig.shard.scrub(rig.now, ScrubOptions { bytes_per_second: 0, ..OPTIONS });
    assert!(!rig.scrub_step());
}

#[test]
fn a_round_is_as_fast_as_allowed_and_the_next_begins_in_its_time() {
    let mut rig = filled();
    rig.shard.scrub(rig.now, OPTIONS);
    let bytes = rig.handle().reader().size_bytes() as f64;
    let took = rig.scrub_round();
    let least = bytes / OPTIONS.bytes_per_second as f64;
    assert!((least..least + 0.2).contains(&took.as_secs_f64()), "{bytes} bytes took {took:?}");
    let due = rig.shard.deadline().expect("there is always one");
    assert!(due > rig.now.time, "the shard may sleep");
    rig.advance(OPTIONS.interval - took - Duration::from_millis(1));
    assert!(!rig.scrub_step(), "a round begins at most so often");
    rig.advance(Duration::from_millis(1));
    assert!(rig.scrub_step(), "from when the last one began");
}

#[test]
fn damage_that_is_found_takes_the_only_replica_out_of_service_for_producers_alone() {
    let mut rig = filled();
    let dir = store(&rig.disk).partition_dir(PARTITION);
    let names = rig.disk.list(&dir).expect("there");
    let segment = names.iter().filter(|name| name.ends_with(".log")).nth(2).expect("many segments");
    rig.disk.flip_bit(&dir.join(segment), 30_000, 1);
    rig.shard.scrub(rig.now, OPTIONS);
    rig.scrub_round();
    let PartitionState::Corrupt { what } = (*rig.handle().state()).clone() else { panic!("it is found") };
    assert!(what.starts_with("found by reading it again: ") && what.contains(segment), "{what}");
    let mut refused = Stream::new(Acks::All);
    rig.produce(&refused, "one more");
    assert_eq!(refused.outcomes(), [Err(ErrorCode::CorruptLog)]);
    // What is known to be damaged is not read over and over.
    rig.advance(OPTIONS.interval);
    assert!(!rig.scrub_step());
}

#[test]
fn what_can_not_be_read_counts_as_damage_where_others_have_it() {
    let mut rig = filled();
    rig.shard.scrub(rig.now, OPTIONS);
    rig.disk.inject(quire_storage::disk::Fault::FewDescriptors { count: 0 });
    assert!(rig.scrub_step());
    rig.disk.heal();
    let dir = store(&rig.disk).partition_dir(PARTITION);
    let names = rig.disk.list(&dir).expect("there");
    let path = dir.join(names.iter().find(|name| name.ends_with(".log")).expect("many segments"));
    rig.disk.inject(quire_storage::disk::Fault::ReadFails { path, range: 4_096..8_192 });
    for is_replicated in [false, true] {
        assert_eq!(*rig.handle().state(), PartitionState::Online);
        if is_replicated {
            let mut assignment = Assignment::clone(&alone(LeaderEpoch(1)));
            let other = quire_engine::replication::Replica { broker_epoch: 1, is_eligible: true };
            assignment.membership.replicas.insert(BrokerId(1), other);
            let (assignment, config) = (Arc::new(assignment), rig.handle().config());
            rig.apply(Event::Configure { partition: PARTITION, assignment, config });
        }
        // What the step before took ends the round.
        rig.advance(Duration::from_secs(2));
        rig.scrub_round();
        rig.advance(OPTIONS.interval);
        rig.scrub_round();
    }
    assert!(matches!(*rig.handle().state(), PartitionState::Corrupt { .. }));
    assert!(matches!(rig.shard.take_outgoing()[..], [Outgoing::Distrust { partition: PARTITION }]));
    let mut refused = Stream::new(Acks::All);
    rig.produce(&refused, "one more");
    assert_eq!(refused.outcomes(), [Err(ErrorCode::NotLeader)], "another may take it");
}
