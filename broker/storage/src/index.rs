//! Sparse indexes of one segment: from an offset or a timestamp to a frame's position.
//!
//! The active segment's live on the heap; a sealed segment's are loaded whole from small files when a read needs them.
//! Both are derived from the frames: missing or damaged, they are rebuilt with [`SegmentIndex::note`]. Neither is ever
//! newer than the log: a file that points behind its segment's cut counts as damaged. Drawn in `FORMAT.md`.

use std::io;
use std::path::Path;

use bytes::Buf;
use quire_protocol::frame::FrameHeader;
use quire_protocol::ids::{Offset, Timestamp};
use quire_protocol::limits;

use crate::disk::Disk;
use crate::manifest::{Sealed, SegmentFile, SegmentName};
use crate::small_file::{self, Format, LoadError};

/// Serial, base offset, end offset, segment length: whose index this is, and of how much.
const HEAD_LEN: usize = 28;
const OFFSET_ENTRY_LEN: usize = 8;
const TIME_ENTRY_LEN: usize = 16;
const OFFSET_FORMAT: Format = Format {
    magic: *b"QOIX",
    version: 1,
    body_len_max: HEAD_LEN + OFFSET_ENTRY_LEN * limits::INDEX_ENTRIES_MAX,
};
const TIME_FORMAT: Format = Format {
    magic: *b"QTIX",
    version: 1,
    body_len_max: HEAD_LEN + TIME_ENTRY_LEN * limits::INDEX_ENTRIES_MAX,
};

/// A frame that an index points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexPoint {
    /// Its base offset.
    pub offset: Offset,
    /// Where it begins in the segment's file (bytes).
    pub position: u64,
}

/// Both indexes of one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentIndex {
    base_offset: Offset,
    /// Sorted by offset; one for about every interval of bytes, the first frame not among them.
    offsets: Vec<OffsetEntry>,
    /// Sorted by offset, and by timestamp too.
    times: Vec<TimeEntry>,
    /// The largest timestamp noted so far.
    max_timestamp: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OffsetEntry {
    relative_offset: u32,
    position: u32,
}

/// The largest timestamp up to and including a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TimeEntry {
    max_timestamp: Timestamp,
    relative_offset: u32,
    position: u32,
}

impl SegmentIndex {
    /// Of a segment without frames.
    pub fn new(base_offset: Offset) -> SegmentIndex {
        SegmentIndex { base_offset, offsets: Vec::new(), times: Vec::new(), max_timestamp: None }
    }

    /// Takes note of the next frame, which begins at `position` (bytes); it gets an entry if the last one is
    /// `interval` bytes back. Frames are noted in order.
    pub fn note(&mut self, frame: &FrameHeader, position: u64, interval: u64) {
        let max_timestamp =
            self.max_timestamp.map_or(frame.max_timestamp, |max| max.max(frame.max_timestamp));
        self.max_timestamp = Some(max_timestamp);
        let indexed_to = self.offsets.last().map_or(0, |entry| u64::from(entry.position));
        // After a resume the last indexed frame is noted again.
        let is_due = position > indexed_to && position - indexed_to >= interval;
        if !is_due || self.offsets.len() >= limits::INDEX_ENTRIES_MAX {
            return;
        }
        // What does not fit 32 bits gets no entry: sparser, and still right.
        let relative_offset = u32::try_from(frame.base_offset.since(self.base_offset));
        if let (Ok(relative_offset), Ok(position)) = (relative_offset, u32::try_from(position)) {
            self.offsets.push(OffsetEntry { relative_offset, position });
            self.times.push(TimeEntry { max_timestamp, relative_offset, position });
        }
    }

    /// The largest record timestamp noted; `None` before the first frame. After [`SegmentIndex::up_to`] it may be one of
    /// a frame that is not in the index any more.
    pub fn max_timestamp(&self) -> Option<Timestamp> {
        self.max_timestamp
    }

    /// The index of the frames that begin below `position` (bytes) alone.
    pub fn up_to(&self, position: u64) -> SegmentIndex {
        let offsets = self.offsets.partition_point(|entry| u64::from(entry.position) < position);
        let times = self.times.partition_point(|entry| u64::from(entry.position) < position);
        SegmentIndex {
            base_offset: self.base_offset,
            offsets: self.offsets[..offsets].to_vec(),
            times: self.times[..times].to_vec(),
            // Too large is still right: a search only starts earlier.
            max_timestamp: self.max_timestamp,
        }
    }

    /// Prepares an index that was loaded for more frames: its largest timestamp is that of its last entry. The position
    /// (bytes) of the frame from which on frames have to be noted again.
    pub fn resume(&mut self) -> u64 {
        let last = self.times.last();
        self.max_timestamp = last.map(|entry| entry.max_timestamp);
        last.map_or(0, |entry| u64::from(entry.position))
    }

    /// The last indexed frame at or before `offset`, from which a search for it starts.
    pub fn find_offset(&self, offset: Offset) -> IndexPoint {
        let relative = offset.since(self.base_offset);
        let after = self.offsets.partition_point(|entry| u64::from(entry.relative_offset) <= relative);
        match after.checked_sub(1).map(|at| self.offsets[at]) {
            Some(entry) => self.point(entry.relative_offset, entry.position),
            None => self.point(0, 0),
        }
    }

    /// The last indexed frame that begins at or before `position` (bytes).
    pub fn find_position(&self, position: u64) -> IndexPoint {
        let after = self.offsets.partition_point(|entry| u64::from(entry.position) <= position);
        match after.checked_sub(1).map(|at| self.offsets[at]) {
            Some(entry) => self.point(entry.relative_offset, entry.position),
            None => self.point(0, 0),
        }
    }

    /// The last indexed frame such that no record before it, or in it, has a timestamp at or after `timestamp`; the
    /// segment's first frame if there is none. A search for the first such record starts there.
    pub fn find_timestamp(&self, timestamp: Timestamp) -> IndexPoint {
        let after = self.times.partition_point(|entry| entry.max_timestamp < timestamp);
        match after.checked_sub(1).map(|at| self.times[at]) {
            Some(entry) => self.point(entry.relative_offset, entry.position),
            None => self.point(0, 0),
        }
    }

    /// Writes both files of a sealed segment, durably.
    ///
    /// # Errors
    /// As [`small_file::replace`].
    pub fn store(&self, disk: &dyn Disk, dir: &Path, name: SegmentName, sealed: &Sealed) -> io::Result<()> {
        let (offsets, times) = self.encode(name, sealed);
        small_file::replace(disk, dir, &name.file(SegmentFile::OffsetIndex), OFFSET_FORMAT, &offsets)?;
        small_file::replace(disk, dir, &name.file(SegmentFile::TimeIndex), TIME_FORMAT, &times)
    }

    /// The indexes of a sealed segment.
    ///
    /// # Errors
    /// If one of the files is missing, damaged, or not of this segment as it is sealed now: rebuild both.
    pub fn load(
        disk: &dyn Disk,
        dir: &Path,
        name: SegmentName,
        sealed: &Sealed,
    ) -> Result<SegmentIndex, LoadError> {
        let offsets = small_file::load(disk, dir, &name.file(SegmentFile::OffsetIndex), OFFSET_FORMAT)?;
        let times = small_file::load(disk, dir, &name.file(SegmentFile::TimeIndex), TIME_FORMAT)?;
        SegmentIndex::decode(name, sealed, &offsets, &times).map_err(LoadError::Damaged)
    }

    /// The bodies of the offset index file and the time index file.
    pub fn encode(&self, name: SegmentName, sealed: &Sealed) -> (Vec<u8>, Vec<u8>) {
        let head = encode_head(name, sealed);
        let mut offsets = Vec::with_capacity(HEAD_LEN + OFFSET_ENTRY_LEN * self.offsets.len());
        offsets.extend_from_slice(&head);
        for entry in &self.offsets {
            offsets.extend_from_slice(&entry.relative_offset.to_le_bytes());
            offsets.extend_from_slice(&entry.position.to_le_bytes());
        }
        let mut times = Vec::with_capacity(HEAD_LEN + TIME_ENTRY_LEN * self.times.len());
        times.extend_from_slice(&head);
        for entry in &self.times {
            times.extend_from_slice(&entry.max_timestamp.0.to_le_bytes());
            times.extend_from_slice(&entry.relative_offset.to_le_bytes());
            times.extend_from_slice(&entry.position.to_le_bytes());
        }
        (offsets, times)
    }

    /// Reads the bodies of both files.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(
        name: SegmentName,
        sealed: &Sealed,
        offsets: &[u8],
        times: &[u8],
    ) -> Result<SegmentIndex, &'static str> {
        let head = encode_head(name, sealed);
        let offsets = decode_entries(&head, offsets, |bytes: &[u8; OFFSET_ENTRY_LEN]| {
            let bytes = &mut bytes.as_slice();
            OffsetEntry { relative_offset: bytes.get_u32_le(), position: bytes.get_u32_le() }
        })?;
        let times = decode_entries(&head, times, |bytes: &[u8; TIME_ENTRY_LEN]| {
            let bytes = &mut bytes.as_slice();
            TimeEntry {
                max_timestamp: Timestamp(bytes.get_i64_le()),
                relative_offset: bytes.get_u32_le(),
                position: bytes.get_u32_le(),
            }
        })?;
        check_order(offsets.iter().map(|entry| (entry.relative_offset, entry.position)), name, sealed)?;
        let of_times = times.iter().map(|entry| (entry.relative_offset, entry.position));
        if !of_times.eq(offsets.iter().map(|entry| (entry.relative_offset, entry.position))) {
            return Err("offset and time index of different frames");
        }
        if times.windows(2).any(|pair| pair[0].max_timestamp > pair[1].max_timestamp) {
            return Err("timestamps out of order");
        }
        let max_timestamp = Some(sealed.max_timestamp);
        Ok(SegmentIndex { base_offset: name.base_offset, offsets, times, max_timestamp })
    }

    fn point(&self, relative_offset: u32, position: u32) -> IndexPoint {
        IndexPoint {
            offset: Offset(self.base_offset.0 + u64::from(relative_offset)),
            position: u64::from(position),
        }
    }
}

fn encode_head(name: SegmentName, sealed: &Sealed) -> [u8; HEAD_LEN] {
    let mut head = [0; HEAD_LEN];
    head[..4].copy_from_slice(&name.serial.to_le_bytes());
    head[4..12].copy_from_slice(&name.base_offset.0.to_le_bytes());
    head[12..20].copy_from_slice(&sealed.end_offset.0.to_le_bytes());
    head[20..28].copy_from_slice(&sealed.len.to_le_bytes());
    head
}

fn decode_entries<const LEN: usize, T>(
    head: &[u8; HEAD_LEN],
    body: &[u8],
    decode: impl Fn(&[u8; LEN]) -> T,
) -> Result<Vec<T>, &'static str> {
    let entries = body.strip_prefix(head).ok_or("of another segment, or of another length of this one")?;
    let (entries, rest) = entries.as_chunks::<LEN>();
    if !rest.is_empty() || entries.len() > limits::INDEX_ENTRIES_MAX {
        return Err("a wrong length");
    }
    Ok(entries.iter().map(decode).collect())
}

/// Offsets and positions increase, and stay inside the segment.
fn check_order(
    mut entries: impl Iterator<Item = (u32, u32)>,
    name: SegmentName,
    sealed: &Sealed,
) -> Result<(), &'static str> {
    let mut last = (0, 0);
    if !entries.by_ref().all(|entry| {
        let is_after = entry.0 > last.0 && entry.1 > last.1;
        last = entry;
        is_after
    }) {
        return Err("entries out of order");
    }
    let (relative_offset, position) = last;
    let records = sealed.end_offset.since(name.base_offset);
    if last != (0, 0) && (u64::from(relative_offset) >= records || u64::from(position) >= sealed.len) {
        return Err("entries behind the end of the segment");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use quire_protocol::frame::{Chain, Digest};
    use quire_protocol::ids::LeaderEpoch;

    use super::*;
    use crate::disk::SimDisk;

    const NAME: SegmentName = SegmentName { base_offset: Offset(1000), serial: 4 };

    /// A frame as far as an index looks at it.
    #[derive(Debug, Clone, Copy)]
    struct Frame {
        header: FrameHeader,
        position: u64,
        len: u64,
    }

    fn frames() -> impl Strategy<Value = Vec<Frame>> {
        proptest::collection::vec((0u32..50, 149u64..5000, -5i64..100), 1..60).prop_map(|frames| {
            let (mut base_offset, mut position) = (NAME.base_offset, 0);
            let place = |(last_offset_delta, len, max_timestamp)| {
                let frame =
                    Frame { header: header(base_offset, last_offset_delta, max_timestamp), position, len };
                base_offset = frame.header.next_offset();
                position += len;
                frame
            };
            frames.into_iter().map(place).collect()
        })
    }

    fn header(base_offset: Offset, last_offset_delta: u32, max_timestamp: i64) -> FrameHeader {
        FrameHeader {
            digest: Digest::Crc32c,
            is_compacted: false,
            batch_len: 61,
            base_offset,
            last_offset_delta,
            leader_epoch: LeaderEpoch(0),
            append_time: Timestamp(0),
            max_timestamp: Timestamp(max_timestamp),
            durable_floor: Offset(0),
            chain: Chain::START,
            crc: 0,
        }
    }

    fn index_of(frames: &[Frame], interval: u64) -> SegmentIndex {
        let mut index = SegmentIndex::new(NAME.base_offset);
        for frame in frames {
            index.note(&frame.header, frame.position, interval);
        }
        index
    }

    fn sealed(frames: &[Frame]) -> Sealed {
        let last = frames.last().expect("at least one");
        let max_timestamp =
            frames.iter().map(|frame| frame.header.max_timestamp).max().expect("at least one");
        Sealed {
            end_offset: last.header.next_offset(),
            len: last.position + last.len,
            last_append_time: Timestamp(0),
            max_timestamp,
        }
    }

    proptest! {
        #[test]
        fn an_offset_is_found_at_most_an_interval_back(frames in frames(), interval in 1u64..20_000) {
            let index = index_of(&frames, interval);
            for frame in &frames {
                for offset in [frame.header.base_offset, frame.header.last_offset()] {
                    let found = index.find_offset(offset);
                    prop_assert!(found.offset <= frame.header.base_offset && found.position <= frame.position);
                    let at = frames.iter().find(|frame| frame.position == found.position).expect("a frame's start");
                    prop_assert_eq!(at.header.base_offset, found.offset);
                    prop_assert!(frame.position - found.position < interval + 5000);
                }
            }
        }

        #[test]
        fn a_position_is_found_at_most_an_interval_back(frames in frames(), interval in 1u64..20_000) {
            let index = index_of(&frames, interval);
            for frame in &frames {
                for position in [frame.position, frame.position + frame.len - 1] {
                    let found = index.find_position(position);
                    prop_assert!(found.position <= frame.position && position - found.position < interval + 10_000);
                    let at = frames.iter().find(|frame| frame.position == found.position).expect("a frame's start");
                    prop_assert_eq!(at.header.base_offset, found.offset);
                }
            }
        }

        #[test]
        fn no_record_before_the_point_found_is_late_enough(
            frames in frames(),
            interval in 1u64..20_000,
            timestamp in -10i64..110,
        ) {
            let timestamp = Timestamp(timestamp);
            let found = index_of(&frames, interval).find_timestamp(timestamp);
            let at = frames.iter().position(|frame| frame.position == found.position).expect("a frame's start");
            let first = frames.iter().position(|frame| frame.header.max_timestamp >= timestamp);
            prop_assert!(first.is_none_or(|first| first >= at), "found {} of {:?}", at, first);
            // And the search is short: the answer, or the next entry, is at most an interval away.
            if let Some(first) = first {
                prop_assert!(frames[first].position - found.position < interval + 10_000);
            }
        }

        #[test]
        fn an_index_survives_its_files(frames in frames(), interval in 1u64..20_000) {
            let (index, sealed) = (index_of(&frames, interval), sealed(&frames));
            let disk = SimDisk::new(0);
            index.store(&disk, Path::new("/"), NAME, &sealed).expect("room");
            let loaded = SegmentIndex::load(&disk, Path::new("/"), NAME, &sealed).expect("intact");
            prop_assert_eq!(&loaded, &index);
            let cut = Sealed { len: sealed.len - 1, ..sealed };
            prop_assert!(SegmentIndex::load(&disk, Path::new("/"), NAME, &cut).is_err(), "newer than the log");
            let other = SegmentName { serial: NAME.serial + 1, ..NAME };
            prop_assert!(SegmentIndex::load(&disk, Path::new("/"), other, &sealed).is_err(), "another segment's");
        }

        #[test]
        fn an_index_up_to_a_frame_is_that_of_the_frames_before(
            frames in frames(),
            interval in 1u64..20_000,
            count in any::<prop::sample::Index>(),
        ) {
            let count = count.index(frames.len());
            let (cut, short) = (index_of(&frames, interval).up_to(frames[count].position), index_of(&frames[..count], interval));
            prop_assert_eq!((cut.offsets, cut.times), (short.offsets, short.times));
        }

        #[test]
        fn a_loaded_index_goes_on_where_it_ended(
            frames in frames(),
            interval in 0u64..20_000,
            count in any::<prop::sample::Index>(),
        ) {
            let front = &frames[..=count.index(frames.len())];
            let sealed = sealed(front);
            let (offsets, times) = index_of(front, interval).encode(NAME, &sealed);
            let mut index = SegmentIndex::decode(NAME, &sealed, &offsets, &times).expect("intact");
            let from = index.resume();
            for frame in frames.iter().filter(|frame| frame.position >= from) {
                index.note(&frame.header, frame.position, interval);
            }
            prop_assert_eq!(index, index_of(&frames, interval));
        }

        #[test]
        fn damaged_bytes_are_refused_or_mean_themselves(
            frames in frames(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            is_time in any::<bool>(),
        ) {
            let sealed = sealed(&frames);
            let (mut offsets, mut times) = index_of(&frames, 1).encode(NAME, &sealed);
            let body = if is_time { &mut times } else { &mut offsets };
            let at = at.index(body.len());
            body[at] = byte;
            if let Ok(index) = SegmentIndex::decode(NAME, &sealed, &offsets, &times) {
                prop_assert_eq!(index.encode(NAME, &sealed), (offsets, times));
            }
        }

        #[test]
        fn any_entries_are_no_danger(entries in proptest::collection::vec(any::<u8>(), 0..200)) {
            let sealed = Sealed { end_offset: Offset(u64::MAX), len: u64::MAX, ..sealed(&[Frame { header: header(NAME.base_offset, 0, 0), position: 0, len: 149 }]) };
            let body = [encode_head(NAME, &sealed).as_slice(), &entries].concat();
            let head = encode_head(NAME, &sealed);
            let _ = SegmentIndex::decode(NAME, &sealed, &body, &head);
            let _ = SegmentIndex::decode(NAME, &sealed, &head, &body);
            let _ = SegmentIndex::decode(NAME, &sealed, &entries, &entries);
        }
    }

    #[test]
    fn an_indexed_frame_is_found_itself() {
        let mut index = SegmentIndex::new(NAME.base_offset);
        for frame in 0..3 {
            index.note(&header(Offset(NAME.base_offset.0 + frame * 10), 9, 1), frame * 500, 1);
        }
        let second = IndexPoint { offset: Offset(NAME.base_offset.0 + 10), position: 500 };
        for offset in [second.offset, Offset(second.offset.0 + 9)] {
            assert_eq!(index.find_offset(offset), second);
        }
    }

    #[test]
    fn entries_behind_the_end_are_refused() {
        let mut index = SegmentIndex::new(NAME.base_offset);
        index.note(&header(Offset(NAME.base_offset.0 + 10), 9, 1), 500, 1);
        let decode = |records: u64, len: u64| {
            let end_offset = Offset(NAME.base_offset.0 + records);
            let (last_append_time, max_timestamp) = (Timestamp(0), Timestamp(1));
            let sealed = Sealed { end_offset, len, last_append_time, max_timestamp };
            let (offsets, times) = index.encode(NAME, &sealed);
            SegmentIndex::decode(NAME, &sealed, &offsets, &times)
        };
        assert_eq!(decode(11, 501).as_ref(), Ok(&index));
        assert!(decode(10, 501).is_err() && decode(11, 500).is_err());
    }

    #[test]
    fn what_does_not_fit_an_entry_is_found_from_further_back() {
        let mut index = SegmentIndex::new(NAME.base_offset);
        let far = header(Offset(NAME.base_offset.0 + (1 << 32)), 0, 1);
        index.note(&header(NAME.base_offset, 0, 1), 0, 1);
        index.note(&far, 500, 1);
        assert_eq!(index.find_offset(far.base_offset), IndexPoint { offset: NAME.base_offset, position: 0 });
    }
}
