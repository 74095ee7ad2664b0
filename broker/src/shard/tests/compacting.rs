//! Logs that are compacted: when, one at a time, and what becomes of what is found.

use quire_protocol::topic_config::CleanupPolicy;

use quire_storage::disk::Fault;

use super::*;

/// Another partition of the same shard.
const OTHER: TopicPartition = TopicPartition { partition: PartitionIndex(1), ..PARTITION };

impl Rig {
    /// A batch with one record of this key.
    fn keyed(&self, stream: &Stream, key: &str, len: usize) -> Event {
        self.keyed_to(PARTITION, stream, key, len)
    }

    fn keyed_to(&self, id: TopicPartition, stream: &Stream, key: &str, len: usize) -> Event {
        let Event::Produce(_, mut request) = self.request(stream, "v") else { unreachable!() };
        let mut builder = BatchBuilder::new(Compression::None);
        let (key, value) = (Some(key.to_owned().into()), Some(vec![b'x'; len].into()));
        builder.push(&Record { key, value, ..Record::default() }, Timestamp(1)).expect("a small record fits");
        request.batch = Vec::from(builder.finish().expect("nothing to compress"));
        request.header = BatchHeader::check(&request.batch).expect("just built");
        Event::Produce(id, request)
    }

    /// Some hundred records of two keys, in several segments.
    fn fill(&mut self) {
        self.fill_partition(PARTITION);
    }

    fn fill_partition(&mut self, id: TopicPartition) {
        let mut stream = Stream::new(Acks::All);
        for number in 0..100 {
            self.apply(self.keyed_to(id, &stream, ["a", "b"][number % 2], 3_000));
            self.run_all();
            assert!(matches!(stream.outcomes()[..], [Ok(_)]));
        }
    }

    /// A second partition of the shard, filled like the first.
    fn fill_other(&mut self, config: TopicConfig) -> Arc<Shared> {
        let (queue, _) = mpsc::channel(1);
        let shared = Arc::new(Shared::new(OTHER, false, queue, alone(LeaderEpoch(1)), Arc::new(config)));
        self.apply(Event::Open(shared.clone()));
        self.run_all();
        self.fill_partition(OTHER);
        shared
    }

    /// Whose logs a part of a compaction is handed out of.
    fn compacted(&self) -> Vec<TopicPartition> {
        let is_part = |task: &Task| matches!(task, Task::Job(job) if job.kind() == JobKind::Compact);
        self.tasks.iter().filter(|(_, task)| is_part(task)).map(|(id, _)| *id).collect()
    }

    /// Runs tasks until a part of a compaction is the next; whose.
    fn run_to_compaction(&mut self) -> TopicPartition {
        loop {
            match self.compacted()[..] {
                [] => self.run(0),
                [id] => {
                    let (at, _) = self
                        .tasks
                        .iter()
                        .enumerate()
                        .find(
                            |(_, (_, task))| matches!(task, Task::Job(job) if job.kind() == JobKind::Compact),
                        )
                        .expect("it is there");
                    self.tasks.swap(0, at);
                    return id;
                }
                ref more => panic!("parts of {more:?} at once"),
            }
        }
    }

    fn next_round(&mut self) {
        self.advance(RETENTION_INTERVAL);
        self.round([]);
    }
}

fn compacted(cleanup: CleanupPolicy) -> TopicConfig {
    TopicConfig { segment_bytes: 64 * 1024, cleanup, ..TopicConfig::default() }
}

#[test]
fn a_log_is_compacted_in_its_turn_while_records_are_taken() {
    for cleanup in [CleanupPolicy::Compact, CleanupPolicy::CompactAndDelete] {
        let mut rig = Rig::warm(compacted(cleanup));
        rig.fill();
        let before = rig.read().len();
        rig.next_round();
        let mut taken = 0;
        while !rig.tasks.is_empty() {
            let steps = rig.job_kinds().iter().filter(|kind| **kind == JobKind::Compact).count();
            assert!(steps <= 1, "one part at a time");
            let mut stream = Stream::new(Acks::All);
            rig.apply(rig.keyed(&stream, "c", 10));
            rig.run(0);
            while stream.outcomes().is_empty() {
                rig.run(0);
            }
            taken += 1;
        }
        let after = rig.read();
        // The active segment is as it was.
        assert!(taken > 2 && after.len() < before / 3 + taken, "{} of {before}, {taken} taken", after.len());
        assert_eq!(after[..1], [0], "a record without a key stays");
        rig.next_round();
        assert!(!rig.job_kinds().contains(&JobKind::Compact), "nothing that is sealed is dirty");
    }
}

#[test]
fn without_the_policy_nothing_is_compacted_and_with_it_nothing_is_deleted() {
    let mut rig = Rig::warm(compacted(CleanupPolicy::Delete));
    rig.fill();
    rig.next_round();
    assert_eq!(rig.job_kinds(), []);
    let config =
        TopicConfig { retention: Some(Duration::from_millis(1)), ..compacted(CleanupPolicy::Compact) };
    let configure = |config| Event::Configure {
        partition: PARTITION,
        assignment: alone(LeaderEpoch(1)),
        config: Arc::new(config),
    };
    rig.apply(configure(config.clone()));
    rig.next_round();
    assert!(rig.job_kinds().iter().any(|kind| [JobKind::Compact, JobKind::Checkpoint].contains(kind)));
    rig.run(0);
    // Taken back meanwhile.
    let before = rig.read();
    rig.apply(configure(TopicConfig { cleanup: CleanupPolicy::Delete, retention: None, ..config.clone() }));
    rig.run_all();
    assert_eq!(rig.read(), before);
    rig.apply(configure(config));
    rig.next_round();
    rig.run_all();
    assert!(rig.read().len() < before.len());
    assert_eq!(rig.handle().reader().log_start(), Offset::ZERO);
}

#[test]
fn damage_that_compaction_comes_to_is_damage() {
    let mut rig = Rig::warm(compacted(CleanupPolicy::Compact));
    rig.fill();
    let dir = store(&rig.disk).partition_dir(PARTITION);
    let names = rig.disk.list(&dir).expect("there");
    let segment = names.iter().filter(|name| name.ends_with(".log")).nth(2).expect("many segments");
    rig.disk.flip_bit(&dir.join(segment), 30_000, 1);
    rig.next_round();
    rig.run_all();
    let PartitionState::Corrupt { what } = (*rig.handle().state()).clone() else { panic!("it is found") };
    assert!(what.starts_with("found by compacting it: ") && what.contains(segment), "{what}");
    let mut refused = Stream::new(Acks::All);
    rig.produce(&refused, "one more");
    assert_eq!(refused.outcomes(), [Err(ErrorCode::CorruptLog)]);
    assert_eq!(rig.disk.list(&dir).expect("there").iter().filter(|name| name.ends_with(".log")).count(), {
        names.iter().filter(|name| name.ends_with(".log")).count()
    });
}

#[test]
fn a_shard_that_closes_gives_up_what_it_compacts() {
    for parts in 0..8 {
        let mut rig = Rig::warm(compacted(CleanupPolicy::Compact));
        rig.fill();
        rig.next_round();
        for _ in 0..parts {
            if !rig.tasks.is_empty() {
                rig.run(0);
            }
        }
        let (done, mut closed) = oneshot::channel();
        rig.apply(Event::Close { done });
        rig.run_all();
        assert_eq!(closed.try_recv().expect("closed"), Closed { partitions: 1, clean: 1 });
        let dir = store(&rig.disk).partition_dir(PARTITION);
        let report = quire_storage::inspect::inspect(&rig.disk, &dir).expect("a log");
        assert_eq!(report.unlisted, Vec::<String>::new(), "after {parts} parts");
    }
}

#[test]
fn one_log_of_a_shard_is_compacted_at_a_time() {
    let config = compacted(CleanupPolicy::Compact);
    let mut rig = Rig::warm(config.clone());
    rig.fill();
    let other = PartitionHandle::of(rig.fill_other(config));
    let sizes = |rig: &Rig| [rig.handle().reader().size_bytes(), other.reader().size_bytes()];
    let before = sizes(&rig);
    rig.next_round();
    let mut turns = Vec::new();
    while !rig.tasks.is_empty() {
        let compacted = rig.compacted();
        assert!(compacted.len() <= 1, "parts of {compacted:?} at once");
        turns.extend(compacted.into_iter().filter(|id| turns.last() != Some(id)).collect::<Vec<_>>());
        rig.run(0);
    }
    turns.sort();
    assert_eq!(turns, [PARTITION, OTHER], "each had one turn");
    assert!(sizes(&rig).iter().zip(before).all(|(after, before)| *after < before / 2));
}

/// A log that took nothing more was never done with being compacted, and the shard compacted no other.
#[test]
fn a_log_that_failed_while_it_was_compacted_does_not_hold_up_the_others() {
    let config = compacted(CleanupPolicy::Compact);
    for is_part_out in [false, true] {
        let mut rig = Rig::warm(config.clone());
        rig.fill();
        let other = PartitionHandle::of(rig.fill_other(config.clone()));
        rig.next_round();
        let failing = rig.run_to_compaction();
        if !is_part_out {
            rig.run(0);
        }
        let parts = VecDeque::from_iter(rig.tasks.drain(..));
        let mut stream = Stream::new(Acks::All);
        rig.disk.inject(Fault::SyncFails { nth: 1 });
        rig.apply(rig.keyed_to(failing, &stream, "c", 10));
        while stream.outcomes().is_empty() {
            rig.run(0);
        }
        rig.tasks.extend(parts);
        rig.run_all();
        let kept = if failing == PARTITION { other } else { rig.handle() };
        for _ in 0..2 {
            rig.next_round();
            rig.run_all();
        }
        assert!(kept.reader().size_bytes() < 200_000, "{} bytes", kept.reader().size_bytes());
        let dir = store(&rig.disk).partition_dir(failing);
        let report = quire_storage::inspect::inspect(&rig.disk, &dir).expect("a log");
        assert_eq!(report.unlisted, Vec::<String>::new(), "what was written for it is gone");
    }
}
