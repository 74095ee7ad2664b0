//! Batches with numbers: each is appended once, whatever is sent again.

use quire_protocol::batch::{self, ProducerIdentity};
use quire_protocol::frame::Chain;
use quire_protocol::{ProducerEpoch, ProducerId, Sequence};

use super::*;

fn producer(epoch: u16) -> ProducerIdentity {
    ProducerIdentity { id: ProducerId(7), epoch: ProducerEpoch(epoch) }
}

impl Rig {
    /// A batch of one record under this number.
    fn numbered(&self, stream: &Stream, epoch: u16, sequence: u32) -> Event {
        self.numbered_text(stream, epoch, sequence, "v")
    }

    fn numbered_text(&self, stream: &Stream, epoch: u16, sequence: u32, text: &str) -> Event {
        let Event::Produce(id, mut request) = self.request(stream, text) else { unreachable!() };
        batch::number(&mut request.batch, producer(epoch), Sequence(sequence));
        request.header = BatchHeader::check(&request.batch).expect("numbered anew");
        Event::Produce(id, request)
    }
}

#[test]
fn a_duplicate_is_answered_as_the_original_was() {
    let mut rig = Rig::warm(TopicConfig::default());
    let (mut first, mut again) = (Stream::new(Acks::All), Stream::new(Acks::All));
    rig.apply(rig.numbered(&first, 0, 0));
    rig.run_all();
    let original = first.answers();
    rig.advance(Duration::from_secs(1));
    rig.apply(rig.numbered(&again, 0, 0));
    assert_eq!(again.answers(), original, "offset, append time and chain: at once, it is committed");
    assert_eq!(rig.read(), [0, 1], "and it is there once");
    assert_eq!(rig.memory_in_use(), 0);
}

/// The answer says that the batch is committed, also the second one.
#[test]
fn a_duplicate_of_what_is_not_committed_waits_for_it() {
    let mut rig = Rig::warm(TopicConfig::default());
    let (mut lost, mut again) = (Stream::new(Acks::All), Stream::new(Acks::All));
    rig.apply(rig.numbered(&lost, 0, 0));
    rig.apply(rig.numbered(&again, 0, 0));
    assert_eq!((lost.outcomes(), again.outcomes()), (vec![], vec![]));
    rig.run_all();
    assert_eq!((lost.outcomes(), again.outcomes()), (vec![Ok(1)], vec![Ok(1)]));
    assert_eq!(rig.read(), [0, 1]);
}

/// A whole window is sent, its connection is lost, and all of it comes again in the same round, with what is next.
#[test]
fn a_window_that_comes_twice_in_one_round_is_appended_once_and_in_order() {
    let mut rig = Rig::warm(TopicConfig::default());
    let (mut lost, mut again) = (Stream::new(Acks::All), Stream::new(Acks::All));
    let mut events: Vec<_> = (0..40).map(|sequence| rig.numbered(&lost, 0, sequence)).collect();
    events.extend((0..64).map(|sequence| rig.numbered(&again, 0, sequence)));
    rig.round(events);
    rig.run_all();
    assert_eq!(lost.outcomes(), (1..=40).map(Ok).collect::<Vec<_>>());
    assert_eq!(again.outcomes(), (1..=64).map(Ok).collect::<Vec<_>>());
    assert_eq!(rig.read(), (0..=64).collect::<Vec<_>>());
}

#[test]
fn a_gap_ends_its_stream_and_nothing_behind_it_is_appended() {
    let mut rig = Rig::warm(TopicConfig::default());
    let (mut stream, mut other) = (Stream::new(Acks::All), Stream::new(Acks::All));
    let events = [0, 2, 1]
        .map(|sequence| rig.numbered(&stream, 0, sequence))
        .into_iter()
        .chain([rig.request(&other, "not numbered")]);
    rig.round(events.collect::<Vec<_>>());
    rig.run_all();
    assert_eq!(stream.outcomes(), [Ok(1), Err(ErrorCode::OutOfOrderSequence)], "the third comes too late");
    assert_eq!(other.outcomes(), [Ok(2)], "others are not concerned");
    let mut again = Stream::new(Acks::All);
    rig.round([1, 2].map(|sequence| rig.numbered(&again, 0, sequence)));
    rig.run_all();
    assert_eq!(again.outcomes(), [Ok(3), Ok(4)]);
    assert_eq!(rig.memory_in_use(), 0);
}

#[test]
fn who_was_shut_out_or_is_unknown_is_told_so() {
    let mut rig = Rig::warm(TopicConfig::default());
    let mut stream = Stream::new(Acks::All);
    rig.apply(rig.numbered(&stream, 0, 5));
    assert_eq!(stream.outcomes(), [Err(ErrorCode::UnknownProducerId)]);
    let mut stream = Stream::new(Acks::All);
    rig.apply(rig.numbered(&stream, 3, 0));
    rig.run_all();
    let mut zombie = Stream::new(Acks::All);
    rig.apply(rig.numbered(&zombie, 2, 0));
    assert_eq!(
        (stream.outcomes(), zombie.outcomes()),
        (vec![Ok(1)], vec![Err(ErrorCode::FencedProducerEpoch)])
    );
}

/// The broker was killed with answers on their way. What survived is remembered, what did not can be sent again.
#[test]
fn a_restart_knows_what_its_log_tells() {
    let mut rig = Rig::warm(TopicConfig::default());
    let stream = Stream::new(Acks::All);
    rig.round((0..10).map(|sequence| rig.numbered(&stream, 0, sequence)).collect::<Vec<_>>());
    rig.run_all();
    let disk = rig.disk.fork(3);
    let mut rig = Rig::on(disk, TopicConfig::default());
    let mut again = Stream::new(Acks::All);
    rig.round((5..12).map(|sequence| rig.numbered(&again, 0, sequence)).collect::<Vec<_>>());
    rig.run_all();
    assert_eq!(again.outcomes(), (6..=12).map(Ok).collect::<Vec<_>>());
    assert_eq!(rig.read(), (0..=12).collect::<Vec<_>>());
}

/// A producer waits for an answer longer than retention keeps what it wrote; then the broker loses power as well.
#[test]
fn a_duplicate_of_what_retention_deleted_is_answered_as_the_original_was() {
    let config = TopicConfig {
        segment_bytes: 64 * 1024,
        retention: Some(Duration::from_secs(60)),
        ..TopicConfig::default()
    };
    let mut rig = Rig::new(config.clone());
    let mut lost = Stream::new(Acks::All);
    let text = "x".repeat(20_000);
    for sequence in 0..9 {
        rig.apply(rig.numbered_text(&lost, 0, sequence, &text));
        rig.run_all();
    }
    let originals = places(&mut lost);
    for _ in 0..6 {
        rig.advance(Duration::from_secs(61));
        rig.round([]);
        rig.run_all();
    }
    assert_eq!(rig.read(), [0; 0], "all of it is deleted");
    let sent_again = |rig: &mut Rig| {
        let mut again = Stream::new(Acks::All);
        let events = (0..9).map(|sequence| rig.numbered_text(&again, 0, sequence, &text));
        rig.round(events.collect::<Vec<_>>());
        rig.run_all();
        places(&mut again)
    };
    assert_eq!(sent_again(&mut rig), originals);
    let mut rig = Rig::on(rig.disk.fork(3), config);
    assert_eq!(sent_again(&mut rig), originals);
    let mut next = Stream::new(Acks::All);
    rig.apply(rig.numbered(&next, 0, 9));
    rig.run_all();
    assert_eq!((next.outcomes(), rig.read()), (vec![Ok(9)], vec![9]));
}

/// What answers say of where batches stand.
fn places(stream: &mut Stream) -> Vec<Result<(Offset, Timestamp, Chain), ErrorCode>> {
    let place = |answer: ProduceReply| match answer {
        Ok(ack) => Ok((ack.base_offset, ack.append_time, ack.chain)),
        Err(error) => Err(error.code),
    };
    stream.answers().into_iter().map(place).collect()
}

/// A write that fails leaves nothing behind that would make the next attempt a duplicate.
#[test]
fn what_the_disk_refused_can_be_sent_again() {
    let mut rig = Rig::warm(TopicConfig::default());
    let large = vec![0u8; 600 * 1024];
    let free = rig.disk.clone();
    free.set_capacity(Some(0));
    let mut refused = Stream::new(Acks::All);
    let mut sequence = 0;
    // Until the space that was allocated ahead is used up.
    let outcome = loop {
        let Event::Produce(id, mut request) = rig.numbered(&refused, 0, sequence) else { unreachable!() };
        let mut builder = BatchBuilder::new(Compression::None);
        let record = Record { value: Some(large.clone().into()), ..Record::default() };
        builder.push(&record, Timestamp(1)).expect("it fits");
        let built = builder.finish_numbered(Some((producer(0), Sequence(sequence)))).expect("no compression");
        request.header = BatchHeader::check(&built).expect("just built");
        request.batch = built.into();
        rig.apply(Event::Produce(id, request));
        rig.run_all();
        match refused.outcomes()[..] {
            [Ok(_)] => sequence += 1,
            ref other => break other.to_vec(),
        }
    };
    assert_eq!(outcome, [Err(ErrorCode::DiskFull)]);
    free.set_capacity(None);
    let mut again = Stream::new(Acks::All);
    rig.apply(rig.numbered(&again, 0, sequence));
    rig.run_all();
    rig.apply(rig.numbered(&again, 0, sequence));
    rig.run_all();
    let end = u64::from(sequence) + 1;
    assert_eq!(again.outcomes(), [Ok(end), Ok(end)]);
}

/// What is stored with a checkpoint is used at the next start, and brought up to date with what came after it.
#[test]
fn a_clean_stop_stores_what_is_known() {
    let mut rig = Rig::warm(TopicConfig::default());
    let stream = Stream::new(Acks::All);
    rig.round((0..10).map(|sequence| rig.numbered(&stream, 0, sequence)).collect::<Vec<_>>());
    rig.run_all();
    let (done, mut closed) = oneshot::channel();
    rig.apply(Event::Close { done });
    rig.run_all();
    assert_eq!(closed.try_recv().expect("closed").clean, 1);
    let dir = store(&rig.disk).partition_dir(PARTITION);
    let (log, _) =
        Log::open(Arc::new(rig.disk.clone()), &dir, PARTITION, quire_storage::LogOptions::default())
            .expect("it was closed");
    let stored = log.reader().producers().expect("it can be read").expect("it was stored");
    assert_eq!(stored.covers, Offset(11));
    drop(log);
    let mut rig = Rig::on(rig.disk.fork(3), TopicConfig::default());
    let mut again = Stream::new(Acks::All);
    rig.round((5..12).map(|sequence| rig.numbered(&again, 0, sequence)).collect::<Vec<_>>());
    rig.run_all();
    assert_eq!(again.outcomes(), (6..=12).map(Ok).collect::<Vec<_>>());
}
