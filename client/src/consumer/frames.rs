//! Puts frames together from what arrives, and verifies each completely before anything of it is handed on: its CRCs,
//! that it is this partition's, that it follows the frame before, and that the chain links both.

use bytes::{Bytes, BytesMut};
use quire_protocol::frame::{Chain, FrameHeader, FrameSeed, HEADER_LEN};
use quire_protocol::{Offset, limits};

use crate::answers::Inbox;

/// Frames are handed on in slices of at least so many bytes, unless there are no more; each slice is its own memory.
const SLICE_BYTES: usize = 64 * 1024;
/// Room for a slice of small frames, whose last one goes beyond [`SLICE_BYTES`].
const SLICE_ROOM_BYTES: usize = SLICE_BYTES + SLICE_BYTES / 8;
/// Most bytes that may be announced at once: a read of the broker and the frame that may exceed it.
const ANNOUNCED_BYTES_MAX: usize = limits::READ_BYTES_MAX + quire_protocol::frame::LEN_MAX;

/// Whole verified frames, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slice {
    pub frames: Bytes,
    /// The offset after the last record.
    pub next_offset: Offset,
    /// The chain up to and including the last frame.
    pub chain: Chain,
    /// Frames whose link to the one before was recomputed and held.
    pub links: u64,
}

/// The reader of one partition's frames.
#[derive(Debug)]
pub(super) struct FrameReader {
    seed: FrameSeed,
    /// The offset that the next frame must hold.
    next_offset: Offset,
    /// Whether the next frame is a stream's first, which may begin before the offset asked for.
    is_first: bool,
    /// The chain up to the next frame, once it is known.
    chain: Option<Chain>,
    /// Announced and not yet arrived (bytes).
    announced: usize,
    buffer: BytesMut,
    /// The part of the buffer that is whole verified frames (bytes).
    verified: usize,
    /// Of these frames, those whose link to the one before was recomputed and held.
    links: u64,
    /// `next_offset` and `chain` where the last slice ended: what lies behind was handed on, and nothing else.
    handed_on: (Offset, Option<Chain>),
}

impl FrameReader {
    pub(super) fn new(seed: FrameSeed, next_offset: Offset) -> FrameReader {
        FrameReader {
            seed,
            next_offset,
            is_first: true,
            chain: None,
            announced: 0,
            buffer: BytesMut::new(),
            verified: 0,
            links: 0,
            handed_on: (next_offset, None),
        }
    }

    /// The offset after the last verified frame.
    pub(super) fn next_offset(&self) -> Offset {
        self.next_offset
    }

    /// Whether everything that was announced has arrived.
    pub(super) fn is_at_rest(&self) -> bool {
        self.announced == 0
    }

    /// The stream is gone, and with it what was verified and not handed on. Another continues at
    /// [`FrameReader::next_offset`]; the chain is still held against what it sends.
    pub(super) fn restart(&mut self) {
        (self.next_offset, self.chain) = self.handed_on;
        self.is_first = true;
        self.announced = 0;
        self.buffer.clear();
        self.verified = 0;
        self.links = 0;
    }

    /// The broker announced this many bytes of whole frames.
    pub(super) fn announce(&mut self, length: usize) -> Result<(), String> {
        if length > ANNOUNCED_BYTES_MAX {
            return Err(format!(
                "{length} bytes were announced at once, at most {ANNOUNCED_BYTES_MAX} are allowed"
            ));
        }
        self.announced = length;
        Ok(())
    }

    /// Takes what arrived; the next slice, if one is complete.
    ///
    /// # Errors
    /// If a frame is damaged, another partition's, or does not follow the one before.
    pub(super) fn receive(&mut self, inbox: &mut Inbox) -> Result<Option<Slice>, String> {
        while self.announced > 0 || self.buffer.len() > self.verified {
            let missing = self.missing()?;
            self.make_room(missing);
            let taken = inbox.take(missing, &mut self.buffer);
            self.announced -= taken;
            if taken < missing {
                return Ok(None);
            }
            if missing == 0 {
                self.verify_frame()?;
                if self.verified >= SLICE_BYTES || self.announced == 0 {
                    return Ok(Some(self.cut()));
                }
            }
        }
        Ok(None)
    }

    /// Bytes needed to complete the current frame's header, or else the frame.
    fn missing(&self) -> Result<usize, String> {
        let have = self.buffer.len() - self.verified;
        let need = match have >= HEADER_LEN {
            true => {
                let header = FrameHeader::parse(&self.buffer[self.verified..]).map_err(|e| e.to_string())?;
                header.frame_len()
            }
            false => HEADER_LEN,
        };
        let missing = need.saturating_sub(have);
        if missing > self.announced {
            return Err("a frame runs past the end of what was announced".into());
        }
        Ok(missing)
    }

    /// Has room for what is missing of a frame, all at once: a buffer that grows by doubling copies again and again what
    /// it has, and holds up to twice what credit is counted for. `missing` is no more than was announced.
    fn make_room(&mut self, missing: usize) {
        let needed = self.buffer.len() + missing;
        if needed <= self.buffer.capacity() {
            return;
        }
        let of_small_frames = (self.buffer.len() + self.announced).min(SLICE_ROOM_BYTES);
        let mut larger = BytesMut::with_capacity(needed.max(of_small_frames));
        larger.extend_from_slice(&self.buffer);
        self.buffer = larger;
    }

    fn verify_frame(&mut self) -> Result<(), String> {
        let bytes = &self.buffer[self.verified..];
        let frame = FrameHeader::check(self.seed, bytes).map_err(|e| e.to_string())?;
        let follows = match self.is_first {
            true => frame.base_offset <= self.next_offset && frame.next_offset() > self.next_offset,
            false => frame.base_offset == self.next_offset,
        };
        // Compaction leaves gaps, and only where it did.
        let follows = follows || (frame.is_compacted && frame.next_offset() > self.next_offset);
        if !follows {
            return Err(format!(
                "a frame with the records {} to {} came where {} was due",
                frame.base_offset,
                frame.last_offset(),
                self.next_offset
            ));
        }
        // A first frame that begins earlier was read before: what is known of the chain is after it.
        let previous = self.chain.filter(|_| frame.base_offset == self.next_offset && !frame.is_compacted);
        if let Some(previous) = previous
            && frame.chain != frame.chain_after(&previous, &bytes[HEADER_LEN..frame.frame_len()])
        {
            return Err("its history is not the one that was read before (the chain does not link)".into());
        }
        self.links += u64::from(previous.is_some());
        self.chain = Some(frame.chain);
        self.next_offset = frame.next_offset();
        self.is_first = false;
        self.verified += frame.frame_len();
        Ok(())
    }

    /// Hands on what is verified; the rest moves into memory of its own, so that a slice holds nothing else.
    fn cut(&mut self) -> Slice {
        let rest = BytesMut::from(&self.buffer[self.verified..]);
        let mut frames = std::mem::replace(&mut self.buffer, rest);
        frames.truncate(self.verified);
        self.verified = 0;
        self.handed_on = (self.next_offset, self.chain);
        Slice {
            frames: frames.freeze(),
            next_offset: self.next_offset,
            chain: self.chain.expect("a slice has a frame, which has a chain"),
            links: std::mem::take(&mut self.links),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use quire_protocol::batch::{BatchBuilder, BatchHeader, Compactable, Compression, Record};
    use quire_protocol::frame::{Digest, Placement};
    use quire_protocol::{LeaderEpoch, PartitionIndex, Timestamp, TopicId, TopicPartition};

    fn seed(partition: u32) -> FrameSeed {
        FrameSeed::new(TopicPartition { topic: TopicId([7; 16]), partition: PartitionIndex(partition) })
    }

    /// Frames of `records` records each, from offset 0 on.
    fn frames(count: usize, records: usize, value_len: usize) -> Vec<Vec<u8>> {
        let (mut chain, mut offset, mut frames) = (Chain::START, 0, Vec::new());
        for _ in 0..count {
            let mut builder = BatchBuilder::new(Compression::None);
            for _ in 0..records {
                let record = Record { value: Some(vec![1; value_len].into()), ..Record::default() };
                builder.push(&record, Timestamp(5)).expect("it fits");
            }
            let mut batch = builder.finish().expect("nothing to compress").to_vec();
            let header = BatchHeader::check(&batch).expect("just built");
            let placement = Placement {
                base_offset: Offset(offset),
                leader_epoch: LeaderEpoch(0),
                append_time: Timestamp(1),
                durable_floor: Offset(0),
                digest: Digest::Crc32c,
            };
            let frame = FrameHeader::seal(seed(0), &chain, placement, &header, &mut batch);
            (chain, offset) = (frame.chain, offset + records as u64);
            frames.push([frame.encode().as_slice(), &batch].concat());
        }
        frames
    }

    fn read(reader: &mut FrameReader, bytes: &[u8], cut: usize) -> Result<Vec<Slice>, String> {
        let mut slices = Vec::new();
        let mut inbox = Inbox::default();
        reader.announce(bytes.len())?;
        for piece in bytes.chunks(cut) {
            inbox.extend(std::iter::once(Bytes::copy_from_slice(piece)));
            while let Some(slice) = reader.receive(&mut inbox)? {
                slices.push(slice);
            }
        }
        Ok(slices)
    }

    proptest! {
        #[test]
        fn slices_are_whole_frames_however_the_bytes_were_cut(
            count in 1usize..6, value_len in 0usize..40_000, cut in 1usize..100_000,
        ) {
            let frames = frames(count, 2, value_len);
            let mut reader = FrameReader::new(seed(0), Offset(0));
            // Sent in two goes.
            let (first, second) = frames.split_at(count / 2);
            let mut slices = Vec::new();
            for part in [first, second] {
                slices.extend(read(&mut reader, &part.concat(), cut.max(value_len / 50 + 1)).expect("intact"));
                prop_assert!(reader.is_at_rest());
            }
            prop_assert_eq!(slices.iter().flat_map(|slice| slice.frames.to_vec()).collect::<Vec<_>>(), frames.concat());
            prop_assert_eq!(reader.next_offset(), Offset(2 * count as u64));
            let links = slices.iter().map(|slice| slice.links).sum::<u64>();
            prop_assert_eq!(links, count as u64 - 1, "the first frame links to nothing that was read");
            for slice in slices {
                prop_assert!(FrameHeader::check(seed(0), &slice.frames).is_ok(), "a slice starts with a frame");
            }
        }
    }

    /// Credit counts the bytes of frames. Buffers grew by doubling, so that a slice of one frame of 256 KiB held 512 KiB.
    #[test]
    fn a_slice_holds_little_more_memory_than_its_frames() {
        for (count, value_len) in [(1, 256 * 1024), (3, 700_000), (400, 1000), (2, 60_000), (1, 10)] {
            let bytes = frames(count, 1, value_len).concat();
            let slices = read(&mut FrameReader::new(seed(0), Offset(0)), &bytes, 6000).expect("intact");
            for slice in slices {
                let length = slice.frames.len();
                let memory = slice.frames.try_into_mut().expect("nobody else has it").capacity();
                assert!(memory <= length.max(SLICE_ROOM_BYTES), "{memory} bytes for {length}");
            }
        }
    }

    #[test]
    fn damage_and_another_partitions_frames_are_found() {
        let whole = frames(1, 1, 100).concat();
        for at in (0..whole.len()).step_by(7) {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            let result = read(&mut FrameReader::new(seed(0), Offset(0)), &damaged, 64);
            assert!(result.is_err(), "byte {at}");
        }
        assert!(read(&mut FrameReader::new(seed(1), Offset(0)), &whole, 64).is_err());
    }

    #[test]
    fn a_first_frame_may_begin_before_the_offset_asked_for_but_not_after_it() {
        let frames = frames(2, 3, 10);
        let mut reader = FrameReader::new(seed(0), Offset(4));
        assert_eq!(read(&mut reader, &frames[1], 64).expect("it holds offset 4").len(), 1);
        let mut reader = FrameReader::new(seed(0), Offset(2));
        assert!(read(&mut reader, &frames[1], 64).expect_err("2 is skipped").contains("where 2 was due"));
    }

    #[test]
    fn a_skipped_or_repeated_frame_and_a_broken_chain_are_found() {
        let frames = frames(3, 1, 10);
        let skipped = [frames[0].clone(), frames[2].clone()].concat();
        assert!(read(&mut FrameReader::new(seed(0), Offset(0)), &skipped, 64).is_err());
        let repeated = [frames[0].clone(), frames[0].clone()].concat();
        assert!(read(&mut FrameReader::new(seed(0), Offset(0)), &repeated, 64).is_err());
        // Another history: the same offsets, other records.
        let other = self::frames(3, 1, 11);
        let mixed = [frames[0].clone(), other[1].clone()].concat();
        let error =
            read(&mut FrameReader::new(seed(0), Offset(0)), &mixed, 64).expect_err("not the same history");
        assert!(error.contains("chain"), "{error}");
    }

    /// The frame as compaction leaves it: flagged, with these of its records alone.
    fn compacted(frame: &[u8], is_kept: impl Fn(u32) -> bool) -> Vec<u8> {
        let original = FrameHeader::check(seed(0), frame).expect("intact");
        let batch = &frame[HEADER_LEN..];
        let header = BatchHeader::check(batch).expect("intact");
        let opened = Compactable::open(&header, batch).expect("well formed");
        let left = opened.retain(None, |record| is_kept(record.offset_delta)).expect("small");
        let header = BatchHeader::check_stored(&left).expect("just made");
        [original.compacted(seed(0), &header, &left).encode().as_slice(), &left].concat()
    }

    /// Only what says that it was compacted may come behind a gap, or without its records; what follows it links again.
    #[test]
    fn compaction_leaves_gaps_where_it_says_so() {
        let mut frames = frames(5, 2, 10);
        frames[2] = compacted(&frames[2], |delta| delta == 1);
        let of =
            |numbers: &[usize]| numbers.iter().map(|at| frames[*at].clone()).collect::<Vec<_>>().concat();
        let slices = read(&mut FrameReader::new(seed(0), Offset(0)), &of(&[0, 2, 3]), 64).expect("legal");
        assert_eq!(slices.last().map(|slice| slice.next_offset), Some(Offset(8)));
        assert_eq!(slices.iter().map(|slice| slice.links).sum::<u64>(), 1, "the last one, to the one before");
        // Where a stream begins in a gap, too.
        assert!(read(&mut FrameReader::new(seed(0), Offset(3)), &of(&[2, 3]), 64).is_ok());
        assert!(read(&mut FrameReader::new(seed(0), Offset(0)), &of(&[0, 2, 4]), 64).is_err());
        assert!(read(&mut FrameReader::new(seed(0), Offset(0)), &of(&[0, 2, 2]), 64).is_err());
        let other = self::frames(5, 2, 11);
        let mixed = [of(&[0, 2]), other[3].clone()].concat();
        assert!(read(&mut FrameReader::new(seed(0), Offset(0)), &mixed, 64).is_err(), "another history");
    }

    #[test]
    fn the_chain_is_held_against_what_comes_after_a_reconnection() {
        let (frames, other) = (frames(2, 1, 10), frames(2, 1, 11));
        let mut reader = FrameReader::new(seed(0), Offset(0));
        read(&mut reader, &frames[0], 64).expect("intact");
        reader.restart();
        assert!(read(&mut reader, &other[1], 64).is_err());
        let mut reader = FrameReader::new(seed(0), Offset(0));
        read(&mut reader, &frames[0], 64).expect("intact");
        reader.restart();
        read(&mut reader, &frames[1], 64).expect("the same history");
    }

    /// Small frames that were announced together were verified one by one and handed on together; a connection that was
    /// lost between took the first of them along, and the next one continued behind them.
    #[test]
    fn what_a_lost_stream_took_along_is_read_again() {
        let frames = frames(4, 2, 10);
        let mut reader = FrameReader::new(seed(0), Offset(0));
        read(&mut reader, &frames[0], 64).expect("intact");
        let mut inbox = Inbox::default();
        inbox.extend(frames[1..3].iter().cloned().map(Bytes::from));
        reader.announce(frames[1..].concat().len()).expect("plausible");
        assert_eq!(reader.receive(&mut inbox), Ok(None), "the last one is still to come");
        assert_eq!(reader.next_offset(), Offset(6));
        reader.restart();
        assert_eq!(reader.next_offset(), Offset(2));
        let slices = read(&mut reader, &frames[1..].concat(), 64).expect("the same history");
        assert_eq!(
            slices.iter().flat_map(|slice| slice.frames.to_vec()).collect::<Vec<_>>(),
            frames[1..].concat()
        );
        assert_eq!(slices.iter().map(|slice| slice.links).sum::<u64>(), 3);
    }

    #[test]
    fn announcing_too_much_or_too_little_is_refused() {
        let mut reader = FrameReader::new(seed(0), Offset(0));
        assert!(reader.announce(ANNOUNCED_BYTES_MAX + 1).is_err());
        let frame = frames(1, 1, 100).concat();
        let mut inbox = Inbox::default();
        inbox.extend(std::iter::once(Bytes::from(frame.clone())));
        reader.announce(frame.len() - 1).expect("plausible so far");
        assert!(reader.receive(&mut inbox).is_err());
    }
}
