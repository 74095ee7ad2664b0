//! Merging by time while one partition is idle and another slow: consumer, shelves, cursors and credit together, with a
//! model of brokers that send whole frames while they have credit.

use std::collections::VecDeque;

use futures_util::FutureExt;
use quire_protocol::batch::{BatchBuilder, BatchHeader, Compression, Record};
use quire_protocol::frame::{Digest, FrameHeader, FrameSeed, Placement};
use quire_protocol::{LeaderEpoch, TopicId, TopicPartition};

use super::credit::Credit;
use super::cursor::Bound;
use super::frames::Slice;
use super::*;

const PARTITIONS: u32 = 100;
const VALUE_BYTES: usize = 700;
/// One frame of one record is no larger.
const FRAME_BYTES_MAX: usize = VALUE_BYTES + 200;

/// A frame of one record.
fn frame(partition: PartitionIndex, offset: u64, timestamp: i64) -> Slice {
    let mut builder = BatchBuilder::new(Compression::None);
    let value = Some(vec![7; VALUE_BYTES].into());
    let record = Record { value, timestamp: Some(Timestamp(timestamp)), ..Record::default() };
    builder.push(&record, Timestamp(0)).expect("it fits");
    let mut batch = builder.finish().expect("nothing to compress").to_vec();
    let header = BatchHeader::check(&batch).expect("just built");
    let placement = Placement {
        base_offset: Offset(offset),
        leader_epoch: LeaderEpoch(0),
        append_time: Timestamp(1),
        durable_floor: Offset(0),
        digest: Digest::Crc32c,
    };
    let seed = FrameSeed::new(TopicPartition { topic: TopicId([7; 16]), partition });
    let sealed = FrameHeader::seal(seed, &Chain::START, placement, &header, &mut batch);
    let frames = [&sealed.encode()[..], &batch].concat().into();
    Slice { frames, next_offset: Offset(offset + 1), chain: Chain::START, links: 0 }
}

/// One partition's broker and fetcher: sends a frame in so many rounds, while it has credit.
struct Sender {
    place: usize,
    frames: VecDeque<Slice>,
    rounds_a_frame: u64,
    credit: Credit,
    /// Bytes it may send.
    at_broker: i64,
    released: u64,
}

impl Sender {
    fn new(place: usize, timestamps: &[i64], rounds_a_frame: u64, share: u64) -> Sender {
        let partition = PartitionIndex(place as u32);
        let frames = (0..).zip(timestamps).map(|(offset, timestamp)| frame(partition, offset, *timestamp));
        let mut credit = Credit::new(share);
        let at_broker = credit.open() as i64;
        Sender { place, frames: frames.collect(), rounds_a_frame, credit, at_broker, released: 0 }
    }

    fn take_turn(&mut self, round: u64, shelves: &Shelves) {
        let released = shelves.request(self.place).released;
        self.credit.released(released - std::mem::replace(&mut self.released, released));
        self.at_broker += self.credit.grant().unwrap_or(0) as i64;
        if self.at_broker <= 0 || !round.is_multiple_of(self.rounds_a_frame) {
            return;
        }
        let Some(slice) = self.frames.pop_front() else { return };
        self.at_broker -= slice.frames.len() as i64;
        self.credit.received(slice.frames.len());
        assert!(shelves.put(self.place, 0, slice));
        if self.frames.is_empty() {
            shelves.set_status(self.place, 0, Status::Ended);
        }
    }
}

/// A consumer that merges by time, and nothing that fetches for it.
fn consumer(records: &[usize]) -> Consumer {
    let starts = records.iter().map(|count| (Some(Start::Beginning), Offset(*count as u64)));
    let cursor = |(partition, count): (u32, &usize)| {
        let bound = Bound { end: Some(Offset(*count as u64)), time: None };
        Cursor::new("t".into(), PartitionIndex(partition), Offset(0), bound)
    };
    let fronts = records.iter().map(|_| None).collect();
    Consumer {
        client: Client::of_nobody(),
        topic: "t".into(),
        retry_timeout: Duration::ZERO,
        cursors: (0..).zip(records).map(cursor).collect(),
        shelves: Arc::new(Shelves::new(starts)),
        order: Order::ByTime { merge: Merge::new(records.len()), fronts, follow: false },
        failures: VecDeque::new(),
        unfinished: records.len(),
        _fetchers: JoinSet::new(),
    }
}

#[test]
fn a_hundred_partitions_merge_within_their_memory_though_one_is_idle_and_one_slow() {
    for share in [1, 2000, 64 * 1024] {
        // Every partition's records lie between those of all others; the idle one has a single record, in the middle,
        // and that comes when all others have waited for long.
        let timestamps = |place: u32| -> Vec<i64> {
            match place {
                0 => vec![20_500],
                _ => (0..50).map(|number| number * 1000 + i64::from(place)).collect(),
            }
        };
        let rounds_a_frame = |place: u32| match place {
            0 => 5000,
            1 => 200,
            _ => 1,
        };
        let all: Vec<_> = (0..PARTITIONS).map(timestamps).collect();
        let sender = |(place, timestamps): (u32, &Vec<i64>)| {
            Sender::new(place as usize, timestamps, rounds_a_frame(place), share)
        };
        let mut senders: Vec<_> = (0..).zip(&all).map(sender).collect();
        let mut consumer = consumer(&all.iter().map(Vec::len).collect::<Vec<_>>());
        let (mut read, mut held_max) = (Vec::new(), 0);
        let mut rounds = 1..;
        let ended = loop {
            let round = rounds.next().expect("they do not end");
            assert!(round < 100_000, "stuck after {} records, with {share} bytes a partition", read.len());
            senders.iter_mut().for_each(|sender| sender.take_turn(round, &consumer.shelves));
            held_max = held_max.max(consumer.buffered_bytes());
            let end = loop {
                match consumer.next().now_or_never() {
                    Some(Some(record)) => read.push(record.expect("it is intact").timestamp.0),
                    Some(None) => break true,
                    None => break false,
                }
            };
            if end {
                break round;
            }
        };
        let mut expected = all.concat();
        expected.sort_unstable();
        assert_eq!(read, expected, "all of them, in the order of time");
        assert!(ended >= 200 * 50, "the slow one was waited for");
        let bound = PARTITIONS as usize * (share as usize + FRAME_BYTES_MAX);
        assert!(held_max <= bound, "{held_max} bytes held, of {bound}, with {share} bytes a partition");
        assert!(held_max > bound / 4, "{held_max} bytes held: the others read ahead while they waited");
    }
}
