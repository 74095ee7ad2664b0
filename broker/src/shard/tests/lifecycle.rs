//! Opening, retention, deletion, closing.

use quire_engine::replication::Replica;
use quire_protocol::topic_config::Sync;

use super::*;

fn removal() -> (Event, oneshot::Receiver<()>) {
    let (done, removed) = oneshot::channel();
    (Event::Remove { partition: PARTITION, done }, removed)
}

#[test]
fn closing_answers_what_was_taken_and_the_next_start_has_nothing_to_recover() {
    let mut rig = Rig::warm(TopicConfig::default());
    let mut stream = Stream::new(Acks::All);
    rig.produce(&stream, "one");
    let (done, mut closed) = oneshot::channel();
    rig.apply(Event::Close { done });
    rig.produce(&stream, "too late");
    assert_eq!(stream.outcomes(), [], "the first is still to be answered");
    rig.run_all();
    assert_eq!(stream.outcomes(), [Ok(1), Err(ErrorCode::ShuttingDown)]);
    assert_eq!(closed.try_recv(), Ok(Closed { partitions: 1, clean: 1 }));
    assert!(rig.shard.is_closed());
    assert_eq!(*rig.shared.state(), PartitionState::Closed);

    let dir = rig.shard.store.partition_dir(PARTITION);
    let options = quire_storage::LogOptions::default();
    let opened = Log::open(Arc::new(rig.disk.clone()), &dir, PARTITION, options);
    let (log, report) = opened.expect("closed in order");
    assert!(report.was_clean);
    assert_eq!(log.end_offset(), Offset(2));
}

#[test]
fn a_shard_without_partitions_closes_at_once() {
    let now = Now { time: Time::ZERO, timestamp: Timestamp(0) };
    let mut shard = new_shard(now, store(&SimDisk::new(1)));
    let (done, mut closed) = oneshot::channel();
    shard.apply(now, Event::Close { done }, &mut Vec::new());
    shard.write(now, &mut Vec::new());
    shard.answer(&mut Vec::new());
    assert_eq!(closed.try_recv(), Ok(Closed::default()));
}

#[test]
fn a_deleted_partition_is_let_go_of_when_its_jobs_are_back() {
    let mut rig = Rig::warm(TopicConfig::default());
    let mut stream = Stream::new(Acks::All);
    rig.produce(&stream, "one");
    let (event, mut removed) = removal();
    rig.apply(event);
    assert_eq!(stream.outcomes(), [Err(ErrorCode::UnknownTopic)]);
    assert!(rig.handle().changes().borrow().is_closed, "readers are told");
    assert!(removed.try_recv().is_err(), "a sync still uses its files");
    rig.run_all();
    assert_eq!(removed.try_recv(), Ok(()));

    let mut late = Stream::new(Acks::All);
    rig.produce(&late, "two");
    assert_eq!(late.outcomes(), [Err(ErrorCode::UnknownTopic)]);
}

/// A replica that moved away was being let go of when its topic was deleted as well: nobody told the latter, and the
/// deletion was not confirmed before the next start.
#[test]
fn whoever_wants_a_partition_removed_is_told() {
    let mut rig = Rig::warm(TopicConfig::default());
    rig.produce(&Stream::new(Acks::All), "one");
    let ((moved, mut is_moved), (deleted, mut is_deleted)) = (removal(), removal());
    rig.apply(moved);
    rig.apply(deleted);
    rig.run_all();
    assert_eq!((is_moved.try_recv(), is_deleted.try_recv()), (Ok(()), Ok(())));
}

#[test]
fn a_partition_deleted_while_it_is_opened_is_let_go_of() {
    let now = Now { time: Time::ZERO, timestamp: Timestamp(0) };
    let disk = SimDisk::new(1);
    let mut shard = new_shard(now, store(&disk));
    let (queue, _events) = mpsc::channel(1);
    let shared = Arc::new(Shared::new(PARTITION, false, queue, alone(LeaderEpoch(1)), Arc::default()));
    let mut tasks = Vec::new();
    shard.apply(now, Event::Open(shared), &mut tasks);
    let (event, mut removed) = removal();
    shard.apply(now, event, &mut tasks);
    assert!(removed.try_recv().is_err(), "its log is being opened");
    let (id, task) = tasks.pop().expect("the log is being opened");
    shard.apply(now, Event::Done(id, task.run()), &mut tasks);
    shard.write(now, &mut tasks);
    shard.answer(&mut tasks);
    assert_eq!((removed.try_recv(), tasks.len()), (Ok(()), 0));
}

#[test]
fn removing_what_is_not_held_is_done_at_once() {
    let mut rig = Rig::new(TopicConfig::default());
    let (event, mut removed) = removal();
    rig.apply(event);
    rig.run_all();
    assert_eq!(removed.try_recv(), Ok(()));
    let (event, mut removed) = removal();
    rig.apply(event);
    assert_eq!(removed.try_recv(), Ok(()));
}

#[test]
fn retention_moves_the_start_while_a_reader_keeps_what_it_holds() {
    let config = TopicConfig {
        segment_bytes: 64 * 1024,
        retention: Some(Duration::from_secs(60)),
        ..TopicConfig::default()
    };
    let mut rig = Rig::new(config);
    let stream = Stream::new(Acks::All);
    for _ in 0..9 {
        rig.produce(&stream, &"x".repeat(20_000));
        rig.run_all();
    }
    let handle = rig.handle();
    let mut changes = handle.changes();
    let held = handle.reader().read(Offset::ZERO, 1, Offset(9), Residency::Any).expect("all is there");
    changes.mark_unchanged();

    rig.advance(Duration::from_secs(30));
    rig.round([]);
    rig.run_all();
    assert_eq!(handle.reader().log_start(), Offset::ZERO, "nothing is old enough");
    // Deleting needs a checkpoint first: the tick after that does it.
    for _ in 0..4 {
        rig.advance(Duration::from_secs(31));
        rig.round([]);
        rig.run_all();
    }
    let log_start = handle.reader().log_start();
    assert!(log_start > Offset::ZERO, "old segments are gone");
    assert!(changes.has_changed().expect("the partition is open"));
    assert_eq!(changes.borrow_and_update().log_start, log_start);
    assert_eq!(rig.read(), (log_start.0..9).collect::<Vec<_>>(), "the rest is there");
    let gone = handle.reader().read(Offset::ZERO, 1, Offset(9), Residency::Any);
    let code = gone.map_err(|error| RequestError::from(error).code).err();
    assert_eq!(code, Some(ErrorCode::OffsetOutOfRange));
    let header = FrameHeader::parse(&held.frames[0]).expect("what a reader holds stays intact");
    assert_eq!(header.base_offset, Offset::ZERO);
}

#[test]
fn an_idle_log_goes_on_where_it_was() {
    let mut rig = Rig::warm(TopicConfig::default());
    for _ in 0..3 {
        rig.advance(RETENTION_INTERVAL);
        rig.round([]);
        rig.run_all();
    }
    let mut stream = Stream::new(Acks::All);
    rig.produce(&stream, "after a rest");
    rig.run_all();
    assert_eq!((stream.outcomes(), rig.read()), (vec![Ok(1)], vec![0, 1]));
}

#[test]
fn readers_are_woken_by_the_high_watermark() {
    let mut rig = Rig::warm(TopicConfig::default());
    let mut changes = rig.handle().changes();
    rig.produce(&Stream::new(Acks::All), "one");
    assert!(!changes.has_changed().expect("open"), "nothing can be read yet");
    rig.run_all();
    let watermarks = *changes.borrow_and_update();
    assert_eq!(watermarks.high_watermark, Offset(2));
    assert_eq!(rig.handle().reader().high_watermark(), Offset(2));
}

#[test]
fn a_partition_that_is_being_removed_does_not_keep_the_shard_from_closing() {
    let mut rig = Rig::warm(TopicConfig::default());
    rig.produce(&Stream::new(Acks::All), "keeps a sync under way");
    let (event, mut removed) = removal();
    rig.apply(event);
    let (done, mut closed) = oneshot::channel();
    rig.apply(Event::Close { done });
    assert!(removed.try_recv().is_err() && closed.try_recv().is_err(), "the sync is not back yet");
    rig.run_all();
    assert_eq!(removed.try_recv(), Ok(()));
    assert_eq!(closed.try_recv(), Ok(Closed::default()), "it was not there to be closed");
}

#[test]
fn settings_that_change_while_the_log_is_opened_count() {
    let now = Now { time: Time::ZERO, timestamp: Timestamp(0) };
    let mut shard = new_shard(now, store(&SimDisk::new(1)));
    let (queue, _events) = mpsc::channel(1);
    let shared = Arc::new(Shared::new(PARTITION, false, queue, alone(LeaderEpoch(1)), Arc::default()));
    let mut tasks = Vec::new();
    shard.apply(now, Event::Open(shared.clone()), &mut tasks);
    let config = Arc::new(TopicConfig { message_bytes_max: 2048, ..TopicConfig::default() });
    let changed = Event::Configure { partition: PARTITION, assignment: alone(LeaderEpoch(2)), config };
    shard.apply(now, changed, &mut tasks);
    let (id, task) = tasks.pop().expect("the log is being opened");
    shard.apply(now, Event::Done(id, task.run()), &mut tasks);
    let handle = PartitionHandle::of(shared);
    assert_eq!((handle.config().message_bytes_max, handle.leader_epoch()), (2048, LeaderEpoch(2)));
    assert_eq!(*handle.state(), PartitionState::Online);
}

#[test]
fn a_sync_that_ends_while_a_segment_is_rolled_does_not_roll_another() {
    let config = TopicConfig { segment_bytes: 64 * 1024, ..TopicConfig::default() };
    let mut rig = Rig::warm(config);
    let (mut stream, large) = (Stream::new(Acks::All), "x".repeat(40_000));
    rig.produce(&stream, &large);
    rig.run_all();
    assert_eq!(stream.outcomes(), [Ok(1)]);
    for number in 1..=5 {
        // One batch with its sync out, and one that needs the next segment.
        rig.produce(&stream, "small");
        rig.produce(&stream, &large);
        let kinds = rig.job_kinds();
        let sync = kinds.iter().position(|kind| *kind == JobKind::Sync).expect("the first is being synced");
        assert!(kinds.len() > 1, "the second waits for a segment");
        rig.run(sync);
        rig.run_all();
        assert_eq!(stream.outcomes(), [Ok(2 * number), Ok(2 * number + 1)]);
    }
    let names = rig.disk.list(&rig.shard.store.partition_dir(PARTITION)).expect("it is there");
    let segments = names.iter().filter(|name| name.ends_with(".log")).count();
    assert_eq!(segments, 6, "one for each that was filled: {names:?}");
}

/// A rig with a batch that waits for the interval's sync, and the time of that sync just passed.
fn overdue() -> Rig {
    let sync_interval = Duration::from_secs(1);
    let config = TopicConfig { sync: Sync::Interval, sync_interval, ..TopicConfig::default() };
    let mut rig = Rig::new(config);
    rig.produce(&Stream::new(Acks::All), "one");
    rig.run_all();
    assert_eq!(rig.shard.deadline(), Some(rig.now.time + sync_interval));
    rig.advance(sync_interval);
    rig.round([]);
    assert_eq!(rig.job_kinds(), [JobKind::Sync]);
    rig.produce(&Stream::new(Acks::All), "two");
    rig.advance(sync_interval);
    rig
}

#[test]
fn a_removed_partition_does_not_wake_the_shard_for_its_sync() {
    let mut rig = overdue();
    let (event, mut removed) = removal();
    rig.apply(event);
    rig.round([]);
    assert!(rig.shard.deadline().expect("retention is due") > rig.now.time, "the shard would spin");
    rig.run_all();
    assert_eq!(removed.try_recv(), Ok(()));
}

/// A leader whose followers lag looks at them again and again until it has asked for others; one that closes never did, and
/// its shard went round for as long as the disk took.
#[test]
fn a_partition_that_closes_does_not_wake_the_shard_for_its_followers() {
    let mut rig = Rig::unopened(SimDisk::new(1), TopicConfig::default(), LeaderEpoch(1));
    let mut led = Assignment::alone(BrokerId(0), LeaderEpoch(1));
    let other = Replica { broker_epoch: 1, is_eligible: true };
    led.membership.replicas.insert(BrokerId(1), other);
    led.membership.in_sync.insert(BrokerId(1));
    rig.shared.configure(Arc::new(led), Arc::default());
    rig.open();
    rig.produce(&Stream::new(Acks::All), "one");
    assert!(!rig.tasks.is_empty(), "the disk has something to do");
    let (done, _closed) = oneshot::channel();
    rig.apply(Event::Close { done });
    rig.advance(Limits::default().replica_lag * 2);
    rig.round([]);
    assert_eq!(rig.shard.deadline(), Some(rig.shard.retention_due), "the shard would spin");
}

#[test]
fn a_failed_partition_wakes_nobody() {
    let mut rig = overdue();
    rig.disk.inject(quire_storage::disk::Fault::SyncFails { nth: 1 });
    rig.run_all();
    assert!(matches!(*rig.shared.state(), PartitionState::Failed { .. }));
    rig.round([]);
    assert_eq!(rig.shard.deadline(), Some(rig.shard.retention_due));
}
