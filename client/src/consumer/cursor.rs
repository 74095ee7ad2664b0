//! Decodes one partition's slices record by record, from where it was asked to start to where it is to stop.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use quire_protocol::batch::{BatchHeader, RecordView, Records};
use quire_protocol::frame::{FrameHeader, HEADER_LEN};
use quire_protocol::{Offset, PartitionIndex, Timestamp};

use super::frames::Slice;
use super::shelf::Generation;
use super::{ConsumeError, ConsumedRecord, PartitionChain};

/// Where a partition is to stop.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bound {
    /// Before this offset.
    pub end: Option<Offset>,
    /// Before the first record with this timestamp or a later one.
    pub time: Option<Timestamp>,
}

/// A place in one partition's records.
#[derive(Debug)]
pub(super) struct Cursor {
    topic: Arc<str>,
    partition: PartitionIndex,
    generation: Generation,
    position: Offset,
    bound: Bound,
    is_finished: bool,
    /// Frames not yet opened.
    frames: Bytes,
    /// Length of the slice in use (bytes).
    slice_len: usize,
    /// The opened frame's records, and the offset after them.
    records: Option<(Records, Offset)>,
    /// What was verified of the slices taken so far.
    chain: PartitionChain,
}

/// What comes next.
#[derive(Debug)]
pub(super) enum Next {
    Record(ConsumedRecord),
    /// A slice is needed; the one before took this much memory (bytes).
    SliceNeeded {
        used: usize,
    },
    /// The partition was read to where it was to stop.
    Finished,
    /// It can not be read further.
    Failed(ConsumeError),
}

impl Cursor {
    pub(super) fn new(topic: Arc<str>, partition: PartitionIndex, position: Offset, bound: Bound) -> Cursor {
        Cursor {
            topic,
            partition,
            generation: 0,
            position,
            bound,
            is_finished: bound.end.is_some_and(|end| position >= end),
            frames: Bytes::new(),
            slice_len: 0,
            records: None,
            chain: PartitionChain { partition, next_offset: position, chain: None, links: 0 },
        }
    }

    pub(super) fn partition(&self) -> PartitionIndex {
        self.partition
    }

    /// The request whose slices it takes.
    pub(super) fn generation(&self) -> Generation {
        self.generation
    }

    /// The offset of the record to be decoded next.
    pub(super) fn position(&self) -> Offset {
        self.position
    }

    pub(super) fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// Where it is to stop, if that is known as an offset.
    pub(super) fn end(&self) -> Option<Offset> {
        self.bound.end
    }

    /// Whether this offset lies at or behind where it is to stop.
    pub(super) fn is_end(&self, offset: Offset) -> bool {
        self.bound.end.is_some_and(|end| offset >= end)
    }

    /// The chain as far as slices were taken.
    pub(super) fn chain(&self) -> PartitionChain {
        self.chain
    }

    /// What the slice in use takes of the memory.
    pub(super) fn held_bytes(&self) -> usize {
        self.slice_len
    }

    /// Nothing more is wanted of it.
    pub(super) fn finish(&mut self, generation: Generation) {
        let chain = self.chain;
        self.restart(self.position, generation);
        self.chain = chain;
        self.is_finished = true;
    }

    /// Continues at another offset, with the slices of this request.
    pub(super) fn restart(&mut self, position: Offset, generation: Generation) {
        self.generation = generation;
        self.position = position;
        self.is_finished = self.is_end(position);
        self.frames = Bytes::new();
        self.slice_len = 0;
        self.records = None;
        self.chain = PartitionChain { next_offset: position, chain: None, ..self.chain };
    }

    /// Takes the slice that was needed.
    pub(super) fn load(&mut self, slice: Slice) {
        self.slice_len = slice.frames.len();
        self.chain.next_offset = slice.next_offset;
        self.chain.chain = Some(slice.chain);
        self.chain.links += slice.links;
        self.frames = slice.frames;
    }

    pub(super) fn next(&mut self) -> Next {
        while !self.is_finished {
            let Some((records, next_offset)) = &mut self.records else {
                if self.frames.is_empty() {
                    return Next::SliceNeeded { used: std::mem::take(&mut self.slice_len) };
                }
                match self.open_frame() {
                    Ok(()) => continue,
                    Err(why) => return self.fail(why),
                }
            };
            match records.next() {
                Some(Ok(record)) if record.offset < self.position => {}
                Some(Ok(record)) => {
                    if self.is_end(record.offset)
                        || self.bound.time.is_some_and(|time| record.timestamp >= time)
                    {
                        self.is_finished = true;
                        break;
                    }
                    self.position = Offset(record.offset.0 + 1);
                    return Next::Record(self.consumed(record));
                }
                Some(Err(error)) => return self.fail(error.to_string()),
                None => {
                    self.position = self.position.max(*next_offset);
                    self.records = None;
                    self.is_finished = self.is_end(self.position);
                }
            }
        }
        Next::Finished
    }

    fn open_frame(&mut self) -> Result<(), String> {
        let frame = FrameHeader::parse(&self.frames).map_err(|error| error.to_string())?;
        self.frames.advance(HEADER_LEN);
        let batch = self.frames.split_to(frame.batch_len as usize);
        if frame.next_offset() <= self.position {
            return Ok(());
        }
        let header = BatchHeader::parse(&batch).map_err(|error| error.to_string())?;
        // A transaction's markers are no records of anybody's.
        if header.is_control {
            self.position = frame.next_offset();
            return Ok(());
        }
        let records = Records::open(&header, &batch).map_err(|error| error.to_string())?;
        self.records = Some((records, frame.next_offset()));
        Ok(())
    }

    fn fail(&mut self, why: String) -> Next {
        self.is_finished = true;
        Next::Failed(ConsumeError::CorruptFrame {
            topic: Arc::clone(&self.topic),
            partition: self.partition,
            offset: self.position,
            why,
        })
    }

    fn consumed(&self, record: RecordView) -> ConsumedRecord {
        ConsumedRecord {
            topic: Arc::clone(&self.topic),
            partition: self.partition,
            offset: record.offset,
            timestamp: record.timestamp,
            key: record.key,
            value: record.value,
            headers: record.headers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_protocol::batch::{BatchBuilder, Compactable, Compression, Record};
    use quire_protocol::frame::{Chain, Digest, FrameSeed, Placement};
    use quire_protocol::{LeaderEpoch, TopicId, TopicPartition};

    /// One slice of frames of three records each, from `base` on, whose timestamps are their offsets.
    fn slice(base: u64, frames: u64, compression: Compression) -> Slice {
        let seed = FrameSeed::new(TopicPartition { topic: TopicId([7; 16]), partition: PartitionIndex(0) });
        let mut bytes = Vec::new();
        for number in 0..frames {
            let mut builder = BatchBuilder::new(compression);
            let first = base + 3 * number;
            for offset in first..first + 3 {
                let record = Record {
                    value: Some(offset.to_string().into()),
                    timestamp: Some(Timestamp(offset as i64)),
                    ..Record::default()
                };
                builder.push(&record, Timestamp(0)).expect("it fits");
            }
            let mut batch = builder.finish().expect("it compresses").to_vec();
            let header = BatchHeader::check(&batch).expect("just built");
            let placement = Placement {
                base_offset: Offset(first),
                leader_epoch: LeaderEpoch(0),
                append_time: Timestamp(1),
                durable_floor: Offset(0),
                digest: Digest::Crc32c,
            };
            let frame = FrameHeader::seal(seed, &Chain::START, placement, &header, &mut batch);
            bytes.extend_from_slice(&frame.encode());
            bytes.extend_from_slice(&batch);
        }
        Slice {
            frames: bytes.into(),
            next_offset: Offset(base + 3 * frames),
            chain: Chain::START,
            links: frames - 1,
        }
    }

    fn cursor(position: u64, bound: Bound) -> Cursor {
        Cursor::new("t".into(), PartitionIndex(0), Offset(position), bound)
    }

    /// Reads until no record comes; what came instead.
    fn drain(cursor: &mut Cursor) -> (Vec<u64>, Next) {
        let mut offsets = Vec::new();
        loop {
            match cursor.next() {
                Next::Record(record) => {
                    assert_eq!(record.value.as_deref(), Some(record.offset.to_string().as_bytes()));
                    offsets.push(record.offset.0);
                }
                other => return (offsets, other),
            }
        }
    }

    #[test]
    fn records_before_the_start_are_passed_over() {
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            let mut cursor = cursor(4, Bound::default());
            assert!(matches!(cursor.next(), Next::SliceNeeded { used: 0 }));
            let slice = slice(0, 3, compression);
            let length = slice.frames.len();
            cursor.load(slice);
            let (offsets, then) = drain(&mut cursor);
            assert_eq!(offsets, [4, 5, 6, 7, 8]);
            assert!(matches!(then, Next::SliceNeeded { used } if used == length));
            assert!(matches!(cursor.next(), Next::SliceNeeded { used: 0 }), "memory is returned once");
            assert_eq!(cursor.position(), Offset(9));
        }
    }

    /// Of each frame of the slice these records are left.
    fn compacted(slice: Slice, is_kept: impl Fn(u32) -> bool) -> Slice {
        let seed = FrameSeed::new(TopicPartition { topic: TopicId([7; 16]), partition: PartitionIndex(0) });
        let (mut rest, mut frames) = (slice.frames.clone(), Vec::new());
        while !rest.is_empty() {
            let frame = FrameHeader::parse(&rest).expect("whole frames");
            let batch = rest.split_to(frame.frame_len()).slice(HEADER_LEN..);
            let header = BatchHeader::parse(&batch).expect("a batch");
            let opened = Compactable::open(&header, &batch).expect("well formed");
            let left = opened.retain(None, |record| is_kept(record.offset_delta)).expect("small");
            let header = BatchHeader::parse(&left).expect("a batch");
            frames.extend_from_slice(&frame.compacted(seed, &header, &left).encode());
            frames.extend_from_slice(&left);
        }
        Slice { frames: frames.into(), ..slice }
    }

    #[test]
    fn records_that_compaction_left_keep_their_offsets() {
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            let mut cursor = cursor(1, Bound::default());
            cursor.load(compacted(slice(0, 3, compression), |delta| delta == 1));
            assert_eq!(drain(&mut cursor).0, [1, 4, 7]);
            assert_eq!(cursor.position(), Offset(9));
            cursor.load(compacted(slice(9, 2, compression), |_| false));
            assert_eq!(drain(&mut cursor).0, Vec::<u64>::new());
            assert_eq!(cursor.position(), Offset(15), "what is gone is passed");
        }
        let mut cursor = cursor(0, Bound { end: Some(Offset(5)), time: None });
        cursor.load(compacted(slice(0, 3, Compression::None), |delta| delta == 0));
        let (offsets, then) = drain(&mut cursor);
        assert_eq!(offsets, [0, 3]);
        assert!(matches!(then, Next::Finished), "5 is gone, and what comes behind it is not asked for");
    }

    #[test]
    fn it_stops_before_its_end_and_before_its_time() {
        let bounds = [
            (Bound { end: Some(Offset(5)), time: None }, 5),
            (Bound { end: None, time: Some(Timestamp(7)) }, 7),
            (Bound { end: Some(Offset(6)), time: Some(Timestamp(100)) }, 6),
        ];
        for (bound, stop) in bounds {
            let mut cursor = cursor(0, bound);
            cursor.load(slice(0, 3, Compression::None));
            let (offsets, then) = drain(&mut cursor);
            assert_eq!(offsets, (0..stop).collect::<Vec<_>>());
            assert!(matches!(then, Next::Finished) && cursor.is_finished(), "{bound:?}");
        }
    }

    #[test]
    fn one_that_starts_at_its_end_is_finished() {
        assert!(matches!(cursor(5, Bound { end: Some(Offset(5)), time: None }).next(), Next::Finished));
    }

    #[test]
    fn a_restart_forgets_what_was_loaded() {
        let mut cursor = cursor(0, Bound::default());
        cursor.load(slice(0, 3, Compression::None));
        cursor.next();
        cursor.restart(Offset(7), 1);
        assert!(matches!(cursor.next(), Next::SliceNeeded { used: 0 }));
        cursor.load(slice(6, 1, Compression::None));
        assert_eq!(drain(&mut cursor).0, [7, 8]);
    }
}
