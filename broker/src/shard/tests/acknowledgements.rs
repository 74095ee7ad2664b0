//! What an acknowledgement stands on, when it leaves, and in which order.

use quire_engine::{Random, SplitMix64};
use quire_protocol::topic_config::Sync;
use quire_storage::disk::{CrashOptions, Operation, Survival};
use quire_storage::{Log, LogOptions};

use super::*;

fn interval() -> TopicConfig {
    TopicConfig { sync: Sync::Interval, sync_interval: Duration::from_millis(500), ..TopicConfig::default() }
}

fn syncs(disk: &SimDisk) -> usize {
    let is_sync = |event: &quire_storage::disk::Event| matches!(event.operation, Operation::Sync(_));
    disk.take_trace().iter().filter(|event| is_sync(event)).count()
}

/// The end of the log that would be found if the power failed now, on the cruellest disk.
fn surviving_end(disk: &SimDisk) -> Offset {
    let disk = disk.fork(9);
    disk.crash(&CrashOptions { data: Survival::Nothing, names: Survival::Nothing });
    let dir = store(&disk).partition_dir(PARTITION);
    let (log, _) = Log::open(Arc::new(disk), &dir, PARTITION, LogOptions::default()).expect("it recovers");
    log.end_offset()
}

#[test]
fn no_acknowledgement_leaves_before_the_sync_that_covers_it() {
    let mut rig = Rig::warm(TopicConfig::default());
    let mut stream = Stream::new(Acks::All);
    rig.produce(&stream, "one");
    assert_eq!(rig.job_kinds(), [JobKind::Sync]);
    assert_eq!(stream.outcomes(), [], "it is in the page cache only");
    assert_eq!(rig.read(), [0], "and nobody reads it");

    rig.produce(&stream, "two");
    assert_eq!(rig.job_kinds(), [JobKind::Sync], "one sync at a time");
    rig.run(0);
    assert_eq!(stream.outcomes(), [Ok(1)], "the sync began before the second was written");
    assert_eq!(rig.read(), [0, 1]);

    assert_eq!(rig.job_kinds(), [JobKind::Sync]);
    rig.run(0);
    assert_eq!(stream.outcomes(), [Ok(2)]);
    assert_eq!(rig.memory_in_use(), 0);
}

#[test]
fn an_acknowledgement_tells_where_the_batch_is() {
    let mut rig = Rig::warm(TopicConfig::default());
    let mut stream = Stream::new(Acks::All);
    rig.produce(&stream, "one");
    rig.run_all();
    let answers = stream.answers();
    let [Ok(ack)] = &answers[..] else { panic!("one acknowledgement: {answers:?}") };
    let chain = ack.chain;
    let expected = Ack {
        base_offset: Offset(1),
        append_time: rig.now.timestamp,
        leader_epoch: LeaderEpoch(1),
        log_start: Offset::ZERO,
        replicas_on_disk: 1,
        chain,
    };
    assert_eq!(*ack, expected);
}

#[test]
fn a_round_is_one_write_and_one_sync_whoever_it_is_for() {
    let mut rig = Rig::warm(TopicConfig::default());
    let mut streams: Vec<Stream> = (0..16).map(|_| Stream::new(Acks::All)).collect();
    rig.disk.take_trace();
    let requests: Vec<Event> = streams.iter().map(|stream| rig.request(stream, "one each")).collect();
    rig.round(requests);
    rig.run_all();
    let trace = rig.disk.take_trace();
    let operations: Vec<_> = trace.iter().map(|event| &event.operation).collect();
    assert!(matches!(operations[..], [Operation::Write(..), Operation::Sync(_)]), "{operations:?}");
    for (at, stream) in streams.iter_mut().enumerate() {
        assert_eq!(stream.outcomes(), [Ok(at as u64 + 1)]);
    }
}

#[test]
fn batches_that_wait_for_space_are_appended_in_the_order_they_came() {
    let mut rig = Rig::new(TopicConfig::default());
    let (mut one, mut other) = (Stream::new(Acks::All), Stream::new(Acks::All));
    rig.produce(&one, "needs a first segment");
    assert_eq!(rig.job_kinds(), [JobKind::Roll]);
    rig.produce(&other, "second");
    rig.produce(&one, "third");
    assert_eq!(rig.job_kinds(), [JobKind::Roll], "nothing overtakes");
    rig.run_all();
    assert_eq!((one.outcomes(), other.outcomes()), (vec![Ok(0), Ok(2)], vec![Ok(1)]));
}

#[test]
fn acks_leader_waits_for_the_leaders_disk_and_acks_none_for_nothing() {
    let mut rig = Rig::warm(TopicConfig::default());
    let (mut leader, mut none) = (Stream::new(Acks::Leader), Stream::new(Acks::None));
    rig.produce(&leader, "for the leader");
    let waiting = rig.memory_in_use();
    rig.produce(&none, "for nobody");
    assert_eq!(rig.memory_in_use(), waiting, "memory returns when nobody is to be answered");
    assert_eq!(leader.outcomes(), []);
    rig.run_all();
    assert_eq!((leader.outcomes(), none.outcomes()), (vec![Ok(1)], vec![]));
    assert_eq!(rig.read(), [0, 1, 2]);
}

#[test]
fn under_interval_the_answer_comes_at_once_and_the_sync_at_its_time() {
    let mut rig = Rig::warm(interval());
    rig.advance(Duration::from_millis(500));
    rig.round([]);
    rig.run_all();
    rig.disk.take_trace();

    let mut stream = Stream::new(Acks::All);
    rig.produce(&stream, "one");
    let answers = stream.answers();
    let [Ok(ack)] = &answers[..] else { panic!("one acknowledgement: {answers:?}") };
    assert_eq!((ack.base_offset, ack.replicas_on_disk), (Offset(1), 0));
    assert_eq!((rig.read(), rig.job_kinds()), (vec![0, 1], vec![]));

    let due = rig.now.time + Duration::from_millis(500);
    assert_eq!(rig.shard.deadline(), Some(due));
    rig.advance(Duration::from_millis(400));
    rig.produce(&stream, "two");
    assert_eq!(rig.shard.deadline(), Some(due), "the first batch decides");
    assert_eq!((syncs(&rig.disk), rig.job_kinds()), (0, vec![]));

    rig.advance(Duration::from_millis(100));
    rig.round([]);
    rig.run_all();
    assert_eq!((syncs(&rig.disk), surviving_end(&rig.disk)), (1, Offset(3)));
    assert_eq!(rig.shard.deadline(), Some(Time::ZERO + RETENTION_INTERVAL), "nothing is left to sync");
}

#[test]
fn what_is_written_during_an_interval_sync_gets_one_of_its_own() {
    let mut rig = Rig::warm(interval());
    rig.advance(Duration::from_millis(500));
    rig.round([]);
    assert_eq!(rig.job_kinds(), [JobKind::Sync]);
    rig.produce(&Stream::new(Acks::All), "during the sync");
    let due = rig.now.time + Duration::from_millis(500);
    rig.run_all();
    assert_eq!(rig.shard.deadline(), Some(due), "the sync under way did not promise to cover it");
    rig.disk.take_trace();
    rig.advance(Duration::from_millis(500));
    rig.round([]);
    rig.run_all();
    assert_eq!((syncs(&rig.disk), surviving_end(&rig.disk)), (1, Offset(2)));
}

#[test]
fn changing_the_mode_takes_effect_on_what_waits() {
    let mut rig = Rig::warm(TopicConfig::default());
    let mut stream = Stream::new(Acks::All);
    rig.produce(&stream, "one");
    assert_eq!(stream.outcomes(), []);
    let configure = |config| Event::Configure {
        partition: PARTITION,
        assignment: alone(LeaderEpoch(1)),
        config: Arc::new(config),
    };
    rig.apply(configure(interval()));
    assert_eq!(stream.outcomes(), [Ok(1)], "the page cache is enough now");
    rig.run_all();
    rig.produce(&stream, "two");
    assert_eq!(stream.outcomes(), [Ok(2)]);
    rig.apply(configure(TopicConfig::default()));
    rig.produce(&stream, "three");
    assert_eq!(stream.outcomes(), [], "and now it is not");
    rig.run_all();
    assert_eq!((stream.outcomes(), surviving_end(&rig.disk)), (vec![Ok(3)], Offset(4)));
}

/// Any interleaving of producers and flushers: each stream is answered in its order, and at the moment of each
/// acknowledgement the disk would bring the record back.
#[test]
fn whatever_the_schedule_an_acknowledged_record_survives() {
    for seed in 0..12 {
        let mut random = SplitMix64::new(seed);
        let config = TopicConfig { segment_bytes: 64 * 1024, ..TopicConfig::default() };
        let mut rig = Rig::new(config);
        let mut streams: Vec<Stream> = [Acks::All, Acks::Leader, Acks::All].map(Stream::new).into();
        let mut last = [None; 3];
        for _ in 0..60 {
            let choice = random.next_u64();
            match choice % 2 {
                0 => {
                    let stream = &streams[(choice >> 8) as usize % 3];
                    let text = "x".repeat((choice >> 16) as usize % 9000);
                    rig.produce(stream, &text);
                }
                _ if rig.tasks.is_empty() => {}
                _ => rig.run((choice >> 8) as usize % rig.tasks.len()),
            }
            check_answers(&rig, &mut streams, &mut last);
        }
        rig.run_all();
        check_answers(&rig, &mut streams, &mut last);
        assert_eq!(rig.memory_in_use(), 0, "seed {seed}: everything is answered");
    }
}

fn check_answers(rig: &Rig, streams: &mut [Stream], last: &mut [Option<u64>; 3]) {
    let survives = surviving_end_if_any(rig, streams, last);
    let acknowledged = last.iter().flatten().max().map_or(Offset::ZERO, |offset| Offset(offset + 1));
    assert!(survives.is_none_or(|end| end >= acknowledged), "{survives:?} survives of {acknowledged}");
    assert!(rig.handle().reader().high_watermark() >= acknowledged, "who is answered can read it");
}

/// What survives, if anything new was acknowledged.
fn surviving_end_if_any(rig: &Rig, streams: &mut [Stream], last: &mut [Option<u64>; 3]) -> Option<Offset> {
    let mut is_new = false;
    for (stream, last) in streams.iter_mut().zip(last) {
        for outcome in stream.outcomes() {
            let offset = outcome.expect("nothing fails here");
            assert!(last.is_none_or(|last| last < offset), "a stream is answered in its order");
            *last = Some(offset);
            is_new = true;
        }
    }
    is_new.then(|| surviving_end(&rig.disk))
}
