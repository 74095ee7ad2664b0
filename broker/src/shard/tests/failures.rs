//! Full disks, failed syncs, damaged logs: who is told what, and what is never done again.

use std::sync::Mutex;

use quire_engine::replication::Replica;
use quire_storage::ReadError;
use quire_storage::disk::{Fault, Operation};
use tracing::span::{self, Attributes, Id};
use tracing::{Level, Metadata, Subscriber};

use super::*;

/// Produces on one stream until it is refused for lack of space; the number of batches that were acknowledged.
fn fill(rig: &mut Rig, stream: &mut Stream) -> u64 {
    let text = "x".repeat(60_000);
    for written in 0..1_000 {
        rig.produce(stream, &text);
        rig.run_all();
        match stream.outcomes()[..] {
            [Ok(_)] => {}
            [Err(ErrorCode::DiskFull)] => return written,
            ref other => panic!("neither written nor refused: {other:?}"),
        }
    }
    panic!("the disk never fills");
}

fn small_disk() -> Rig {
    let rig = Rig::warm(TopicConfig::default());
    rig.disk.set_capacity(Some(1024 * 1024));
    rig
}

#[test]
fn a_full_disk_refuses_and_reads_go_on_and_space_ends_it() {
    let mut rig = small_disk();
    let written = fill(&mut rig, &mut Stream::new(Acks::All));
    assert_eq!(*rig.handle().state(), PartitionState::DiskFull);
    assert_eq!(rig.read().len() as u64, written + 1);
    assert_eq!(rig.memory_in_use(), 0);

    rig.disk.set_capacity(None);
    let mut refused = Stream::new(Acks::All);
    rig.produce(&refused, "looks for space");
    rig.run_all();
    assert_eq!(refused.answers().len(), 1);
    let mut retry = Stream::new(Acks::All);
    rig.produce(&retry, "finds it");
    rig.run_all();
    assert!(retry.outcomes()[0].is_ok());
    assert_eq!(*rig.handle().state(), PartitionState::Online);
}

#[test]
fn a_full_disk_is_said_once_and_its_end_too() {
    let mut rig = small_disk();
    let heard = Heard::default();
    // While there is one subscriber alone, whoever logs first on another thread decides for all that nobody hears it.
    let _other = tracing::Dispatch::new(Heard::default());
    let _hearing = tracing::subscriber::set_default(heard.clone());
    fill(&mut rig, &mut Stream::new(Acks::All));
    for _ in 0..5 {
        rig.produce(&Stream::new(Acks::All), &"x".repeat(60_000));
        rig.run_all();
    }
    assert_eq!(heard.take(), [Level::WARN, Level::ERROR], "the first refusal of the disk, and of produce");

    rig.disk.set_capacity(None);
    for _ in 0..3 {
        rig.produce(&Stream::new(Acks::All), &"x".repeat(60_000));
        rig.run_all();
    }
    assert_eq!(heard.take(), [Level::INFO]);
}

#[test]
fn a_stream_that_was_refused_gets_nothing_appended_any_more() {
    let (mut rig, mut stream) = (small_disk(), Stream::new(Acks::All));
    fill(&mut rig, &mut stream);
    rig.disk.set_capacity(None);
    let end = rig.handle().reader().end_offset();
    for text in ["sent before the client heard of the refusal", "and another"] {
        rig.produce(&stream, text);
        rig.run_all();
    }
    assert_eq!(stream.outcomes(), [], "one failure answered them all");
    assert_eq!((rig.handle().reader().end_offset(), rig.memory_in_use()), (end, 0));

    let mut other = Stream::new(Acks::All);
    rig.produce(&other, "looks for space");
    rig.run_all();
    other.answers();
    let mut fresh = Stream::new(Acks::All);
    rig.produce(&fresh, "a new stream");
    rig.run_all();
    assert!(fresh.outcomes()[0].is_ok(), "a stream that was not refused goes on");
}

#[test]
fn a_stream_without_acknowledgements_is_refused_once() {
    let mut rig = small_disk();
    fill(&mut rig, &mut Stream::new(Acks::All));
    let mut stream = Stream::new(Acks::None);
    let text = "x".repeat(60_000);
    let requests: Vec<Event> = (0..2 * WINDOW).map(|_| rig.request(&stream, &text)).collect();
    rig.round(requests);
    rig.run_all();
    assert_eq!(stream.outcomes(), [Err(ErrorCode::DiskFull)]);
    assert_eq!(rig.memory_in_use(), 0);
}

#[test]
fn a_refusal_waits_behind_the_acknowledgements_before_it() {
    let mut rig = Rig::warm(TopicConfig::default());
    let mut stream = Stream::new(Acks::All);
    rig.disk.set_capacity(Some(300_000));
    rig.produce(&stream, "fits");
    assert_eq!(rig.job_kinds(), [JobKind::Sync]);
    rig.produce(&stream, &"x".repeat(400_000));
    while rig.job_kinds().len() > 1 {
        let upkeep = rig.job_kinds().iter().position(|kind| *kind != JobKind::Sync).expect("two jobs differ");
        rig.run(upkeep);
    }
    assert_eq!(stream.outcomes(), [], "the first is not on disk yet");
    rig.run_all();
    assert_eq!(stream.outcomes(), [Ok(1), Err(ErrorCode::DiskFull)]);
}

#[test]
fn after_a_failed_sync_nothing_is_written_and_nobody_is_acknowledged() {
    let mut rig = Rig::warm(TopicConfig::default());
    let (mut stream, mut other) = (Stream::new(Acks::All), Stream::new(Acks::Leader));
    rig.produce(&stream, "one");
    rig.produce(&other, "two");
    rig.disk.inject(Fault::SyncFails { nth: 1 });
    rig.run_all();
    let failed = [Err(ErrorCode::StorageFailed)];
    assert_eq!((stream.outcomes(), other.outcomes()), (failed.to_vec(), failed.to_vec()));
    assert!(matches!(*rig.handle().state(), PartitionState::Failed { .. }));

    rig.disk.take_trace();
    let mut late = Stream::new(Acks::All);
    rig.produce(&late, "three");
    rig.advance(RETENTION_INTERVAL);
    rig.round([]);
    rig.run_all();
    assert_eq!(late.outcomes(), failed);
    assert_eq!(rig.disk.take_trace(), [], "the log is not touched again");
    assert_eq!(rig.read(), [0], "what was committed before can be read");
    assert_eq!(rig.memory_in_use(), 0);
}

#[test]
fn a_failed_write_fails_its_batches() {
    let mut rig = Rig::warm(TopicConfig::default());
    rig.disk.inject(Fault::WriteFails { nth: 1 });
    let mut stream = Stream::new(Acks::All);
    rig.produce(&stream, "one");
    rig.run_all();
    assert_eq!(stream.outcomes(), [Err(ErrorCode::StorageFailed)]);
    assert!(matches!(*rig.handle().state(), PartitionState::Failed { .. }));
}

#[test]
fn a_failed_partition_closes_but_not_cleanly() {
    let mut rig = Rig::warm(TopicConfig::default());
    rig.disk.inject(Fault::SyncFails { nth: 1 });
    rig.produce(&Stream::new(Acks::All), "one");
    rig.run_all();
    let (done, mut closed) = oneshot::channel();
    rig.apply(Event::Close { done });
    rig.run_all();
    assert_eq!(closed.try_recv(), Ok(Closed { partitions: 1, clean: 0 }));
}

#[test]
fn a_damaged_log_reads_what_is_intact_and_takes_nothing() {
    let mut rig = Rig::warm(TopicConfig::default());
    let stream = Stream::new(Acks::All);
    for _ in 0..8 {
        rig.produce(&stream, &"x".repeat(3_000));
        rig.run_all();
    }
    let path = segment(&rig);
    rig.disk.kill();
    rig.disk.heal();
    rig.disk.flip_bit(&path, 14_000, 3);

    let mut rig = Rig::on(rig.disk.fork(2), TopicConfig::default());
    let PartitionState::Corrupt { what } = (*rig.handle().state()).clone() else {
        panic!("the damage lies below what was known to be on disk")
    };
    assert!(what.contains("offsets 5 to"), "{what}");
    let mut refused = Stream::new(Acks::All);
    rig.produce(&refused, "one more");
    assert_eq!(refused.outcomes(), [Err(ErrorCode::CorruptLog)]);
    let handle = rig.handle();
    let reader = handle.reader();
    let read = |offset| reader.read(Offset(offset), 1, reader.high_watermark(), Residency::Any);
    assert!(read(0).is_ok() && read(4).is_ok());
    assert_eq!(read(5).map_err(|error| RequestError::from(error).code).err(), Some(ErrorCode::CorruptLog));
}

#[test]
fn damage_found_by_a_reader_stops_produce_and_the_clean_close() {
    let mut rig = Rig::warm(TopicConfig::default());
    let early = Stream::new(Acks::All);
    for _ in 0..4 {
        rig.produce(&early, "intact");
        rig.run_all();
    }
    let mut under_way = Stream::new(Acks::All);
    rig.produce(&under_way, "written before the damage is known");
    let damaged = || Event::Damaged { partition: PARTITION, what: "offset 2 can not be read".to_owned() };
    rig.round([damaged(), damaged()]);
    rig.run_all();
    assert_eq!(under_way.outcomes(), [Ok(5)], "what was written is still acknowledged");
    let what = "offset 2 can not be read".to_owned();
    assert_eq!(*rig.handle().state(), PartitionState::Corrupt { what });

    let mut refused = Stream::new(Acks::All);
    rig.produce(&refused, "one more");
    rig.run_all();
    assert_eq!(refused.outcomes(), [Err(ErrorCode::CorruptLog)]);
    assert_eq!((rig.read().len(), rig.memory_in_use()), (6, 0));

    let (done, mut closed) = oneshot::channel();
    rig.apply(Event::Close { done });
    rig.run_all();
    assert_eq!(closed.try_recv(), Ok(Closed { partitions: 1, clean: 0 }));
}

#[test]
fn damage_found_in_a_log_closed_clean_before_takes_the_mark_off() {
    let close = |rig: &mut Rig| {
        let (done, mut closed) = oneshot::channel();
        rig.apply(Event::Close { done });
        rig.run_all();
        closed.try_recv().expect("the shard has closed").clean
    };
    let mut rig = Rig::warm(TopicConfig::default());
    assert_eq!(close(&mut rig), 1);
    let mut rig = Rig::on(rig.disk.clone(), TopicConfig::default());
    rig.apply(Event::Damaged { partition: PARTITION, what: "offset 0 can not be read".to_owned() });
    assert_eq!(close(&mut rig), 0);

    let dir = store(&rig.disk).partition_dir(PARTITION);
    let options = super::super::core::log_options(&TopicConfig::default());
    let (_, report) = quire_storage::Log::open_existing(Arc::new(rig.disk.clone()), &dir, PARTITION, options)
        .expect("it opens");
    assert!(!report.was_clean, "the next start looks at the log");
}

#[tokio::test]
async fn a_handle_tells_the_shard_of_damage_before_the_client() {
    let (queue, mut events) = mpsc::channel(1);
    let shared =
        Shared::new(PARTITION, false, queue, alone(LeaderEpoch(1)), Arc::new(TopicConfig::default()));
    let handle = PartitionHandle::of(Arc::new(shared));
    let error = ReadError::Corrupt {
        offset: Offset(7),
        segment: "0.log".to_owned(),
        position: 64,
        what: "the checksum differs".to_owned(),
    };
    assert_eq!(handle.read_failed(error).await.code, ErrorCode::CorruptLog);
    let Ok(Event::Damaged { partition, what }) = events.try_recv() else { panic!("the shard is told") };
    assert_eq!(partition, PARTITION);
    assert_eq!(what, "offset 7 can not be read; 0.log, byte 64: the checksum differs");
}

#[test]
fn a_log_that_the_system_refused_to_open_is_opened_once_it_can_be() {
    let disk = SimDisk::new(1);
    let mut rig = Rig::unopened(disk, TopicConfig::default(), LeaderEpoch(1));
    rig.disk.inject(Fault::FewDescriptors { count: 0 });
    rig.open();
    assert!(matches!(*rig.shared.state(), PartitionState::Failed { .. }), "no descriptor is free");
    rig.advance(RETENTION_INTERVAL);
    rig.round([]);
    rig.run_all();
    assert!(matches!(*rig.shared.state(), PartitionState::Failed { .. }), "there still is none");

    rig.disk.heal();
    rig.advance(RETENTION_INTERVAL);
    rig.round([]);
    rig.run_all();
    assert_eq!(*rig.shared.state(), PartitionState::Online);
    let mut stream = Stream::new(Acks::All);
    rig.produce(&stream, "one");
    rig.run_all();
    assert_eq!(stream.outcomes(), [Ok(0)]);
}

#[test]
fn a_damaged_manifest_is_told_as_damage_that_no_retry_mends() {
    let mut rig = Rig::warm(TopicConfig::default());
    let (done, _closed) = oneshot::channel();
    rig.apply(Event::Close { done });
    rig.run_all();
    let manifest = store(&rig.disk).partition_dir(PARTITION).join("manifest");
    rig.disk.flip_bit(&manifest, 20, 3);

    let rig = Rig::on(rig.disk.clone(), TopicConfig::default());
    let error = rig.shared.state().error().expect("it can not be opened");
    assert_eq!((error.code, error.code.is_retriable()), (ErrorCode::CorruptLog, false));
    assert!(error.message.starts_with("/data/topics/"), "{}", error.message);
    assert!(error.message.ends_with("restore it, or move the directory away"), "{}", error.message);
}

#[test]
fn metadata_older_than_the_log_is_told_and_reads_go_on() {
    let rig = Rig::warm(TopicConfig::default());
    rig.disk.kill();
    rig.disk.heal();
    let mut rig = Rig::led(rig.disk.fork(2), TopicConfig::default(), LeaderEpoch(0));
    let PartitionState::Outdated { what } = (*rig.handle().state()).clone() else {
        panic!("it can not lead in an epoch that has passed")
    };
    assert!(what.contains("leader epoch 1, but the metadata knows only 0"), "{what}");
    let mut refused = Stream::new(Acks::All);
    rig.produce(&refused, "one more");
    assert_eq!(refused.outcomes(), [Err(ErrorCode::StorageFailed)]);
    assert_eq!(rig.read(), [0]);
}

/// A broker of a cluster that was killed may start with metadata from before its log's latest leadership: what it had
/// applied was not on disk as far, and the quorum tells it again. It had said for good that it can not be trusted, and taken
/// nothing until it was started once more.
#[test]
fn metadata_that_catches_up_with_the_log_ends_the_wait() {
    let rig = Rig::warm(TopicConfig::default());
    rig.disk.kill();
    rig.disk.heal();
    let mut rig = Rig::led(rig.disk.fork(2), TopicConfig::default(), LeaderEpoch(0));
    assert!(matches!(*rig.handle().state(), PartitionState::Outdated { .. }));
    let caught_up = |epoch| Event::Configure {
        partition: PARTITION,
        assignment: alone(LeaderEpoch(epoch)),
        config: Arc::default(),
    };
    rig.apply(caught_up(1));
    assert_eq!(*rig.handle().state(), PartitionState::Online);
    rig.run_all();
    let mut stream = Stream::new(Acks::All);
    rig.produce(&stream, "one more");
    rig.run_all();
    assert_eq!(stream.outcomes(), [Ok(1)]);
}

#[test]
fn a_replica_that_is_behind_on_leaderships_is_not_distrusted_for_it() {
    let rig = Rig::warm(TopicConfig::default());
    rig.disk.kill();
    rig.disk.heal();
    let mut behind = Assignment::alone(BrokerId(0), LeaderEpoch(0));
    let other = Replica { broker_epoch: 1, is_eligible: true };
    behind.membership.replicas.insert(BrokerId(1), other);
    let mut rig = Rig::unopened(rig.disk.fork(2), TopicConfig::default(), LeaderEpoch(0));
    rig.shared.configure(Arc::new(behind.clone()), Arc::default());
    rig.open();
    assert_eq!(rig.shard.take_outgoing().len(), 0, "nobody is told that it can not be trusted");
    // It did not lead in the leadership that it did not know; it does in the next one.
    behind.leader_epoch = LeaderEpoch(2);
    rig.apply(Event::Configure {
        partition: PARTITION,
        assignment: Arc::new(behind),
        config: Arc::default(),
    });
    assert_eq!(*rig.handle().state(), PartitionState::Online);
    assert_eq!(rig.handle().leader_epoch(), LeaderEpoch(2));
    let mut stream = Stream::new(Acks::Leader);
    rig.produce(&stream, "one more");
    rig.run_all();
    assert_eq!(stream.outcomes(), [Ok(1)]);
}

/// Hears what is logged on its thread.
#[derive(Debug, Clone, Default)]
struct Heard(Arc<Mutex<Vec<Level>>>);

impl Heard {
    /// The levels of what was logged since the last time.
    fn take(&self) -> Vec<Level> {
        std::mem::take(&mut *self.0.lock().expect("nobody panics with it"))
    }
}

impl Subscriber for Heard {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn event(&self, event: &tracing::Event<'_>) {
        self.0.lock().expect("nobody panics with it").push(*event.metadata().level());
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The partition's only segment.
fn segment(rig: &Rig) -> PathBuf {
    let is_log = |operation: &Operation| match operation {
        Operation::Write(path, _) if path.extension().is_some_and(|extension| extension == "log") => {
            Some(path.clone())
        }
        _ => None,
    };
    rig.disk.take_trace().iter().find_map(|event| is_log(&event.operation)).expect("the segment was written")
}
