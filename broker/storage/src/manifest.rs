//! The manifest: which segments are a partition's log, and how far each reaches.
//!
//! Truncation, retention and rolling are changes of this one file. A file in the directory that it does not list is
//! garbage. Drawn in `FORMAT.md`.

use std::io;
use std::path::Path;

use bytes::Buf;
use quire_protocol::ids::{Offset, PartitionIndex, Timestamp, TopicId, TopicPartition};
use quire_protocol::{frame, limits};

use crate::disk::Disk;
use crate::small_file::{self, Format, LoadError, ReplaceError};

/// Name of the file in the partition's directory.
pub const FILE_NAME: &str = "manifest";
/// The format of frames and indexes that the manifest speaks for.
const LOG_VERSION: u16 = 1;
/// The same of a log with frames that were compacted.
const LOG_VERSION_COMPACTED: u16 = 2;
/// The same if there are tombstones among them that are to go in their time.
const LOG_VERSION_TOMBSTONES: u16 = 3;
/// Longest segment (bytes): the largest configurable one, exceeded by one frame.
pub const SEGMENT_LEN_MAX: u64 = limits::SEGMENT_BYTES_MAX + frame::LEN_MAX as u64;

const HEAD_LEN: usize = 38;
/// The time behind the head, if there is one.
const HORIZON_LEN: usize = 8;
const ENTRY_LEN: usize = 45;
const FLAG_SEALED: u8 = 0b01;
const FLAG_COMPACTED: u8 = 0b10;
/// What stands in the place of an unsealed segment's end.
const UNSEALED: Sealed =
    Sealed { end_offset: Offset(0), len: 0, last_append_time: Timestamp(0), max_timestamp: Timestamp(0) };
const FORMAT: Format = Format { magic: *b"QMAN", version: 1, body_len_max: BODY_LEN_MAX };
const BODY_LEN_MAX: usize = HEAD_LEN + HORIZON_LEN + ENTRY_LEN * limits::SEGMENTS_MAX;

/// A partition's log, segment by segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Whose log this is.
    pub partition: TopicPartition,
    /// The first offset that may be read.
    pub log_start: Offset,
    /// The serial that the next segment gets; above every one ever used here.
    pub next_serial: u32,
    /// Of a log that may hold compacted frames: its own, or some that its leader had compacted.
    pub compacted: Option<Compacted>,
    /// In offset order without gaps: each segment but the last is sealed and ends where the next begins.
    pub segments: Vec<SegmentEntry>,
}

/// What is known of the compaction of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Compacted {
    /// When the first of the tombstones that compaction left in the compacted segments may go; `None` if it left none.
    pub next_horizon: Option<Timestamp>,
}

/// One segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentEntry {
    /// Which one.
    pub name: SegmentName,
    /// Where it ends, once it does; `None` while it is written.
    pub sealed: Option<Sealed>,
    /// Compaction has been through it and all before it: of each key no more than the last record is in them.
    pub is_compacted: bool,
}

/// What is known of a segment that is written no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// The offset after its last record.
    pub end_offset: Offset,
    /// The cut: bytes of the file that are log. What lies behind is not looked at.
    pub len: u64,
    /// The append time of its last frame; retention goes by it.
    pub last_append_time: Timestamp,
    /// The largest record timestamp in it.
    pub max_timestamp: Timestamp,
}

/// What names a segment's files: `<base offset>-<serial>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The offset of its first record.
    pub base_offset: Offset,
    /// Unique within the partition: offsets come again after a truncation, serials do not.
    pub serial: u32,
}

/// One of a segment's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SegmentFile {
    /// The frames.
    Log,
    /// Where offsets are.
    OffsetIndex,
    /// Where timestamps are.
    TimeIndex,
}

impl SegmentFile {
    /// Every file of a segment.
    pub const ALL: [SegmentFile; 3] = [SegmentFile::Log, SegmentFile::OffsetIndex, SegmentFile::TimeIndex];

    fn extension(self) -> &'static str {
        match self {
            SegmentFile::Log => "log",
            SegmentFile::OffsetIndex => "index",
            SegmentFile::TimeIndex => "timeindex",
        }
    }
}

impl SegmentName {
    /// The name of one of its files.
    pub fn file(self, file: SegmentFile) -> String {
        format!("{self}.{}", file.extension())
    }

    /// What a file name says, if it is a segment's.
    pub fn parse(file_name: &str) -> Option<(SegmentName, SegmentFile)> {
        let (stem, extension) = file_name.split_once('.')?;
        let (base_offset, serial) = stem.split_once('-')?;
        let file = SegmentFile::ALL.into_iter().find(|file| file.extension() == extension)?;
        let base_offset = Offset(base_offset.parse().ok()?);
        let name = SegmentName { base_offset, serial: serial.parse().ok()? };
        // Only the one way to write it: no signs, no missing zeros.
        (name.file(file) == file_name).then_some((name, file))
    }
}

impl std::fmt::Display for SegmentName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:020}-{:08}", self.base_offset.0, self.serial)
    }
}

impl Manifest {
    /// Of a log that has no segment yet and begins at `log_start`.
    pub fn new(partition: TopicPartition, log_start: Offset) -> Manifest {
        Manifest { partition, log_start, next_serial: 0, compacted: None, segments: Vec::new() }
    }

    /// Whether no segment can be added.
    pub fn is_full(&self) -> bool {
        self.segments.len() >= limits::SEGMENTS_MAX || !self.has_serial()
    }

    /// Whether there is a serial for another segment.
    pub fn has_serial(&self) -> bool {
        self.next_serial < u32::MAX
    }

    /// Whether a file of this name is a listed segment's.
    pub fn lists(&self, name: SegmentName) -> bool {
        self.segments.iter().any(|segment| segment.name == name)
    }

    /// Replaces the partition's manifest, durably.
    ///
    /// # Errors
    /// As [`small_file::try_replace`].
    ///
    /// # Panics
    /// If the manifest contradicts itself.
    pub fn replace(&self, disk: &dyn Disk, dir: &Path) -> Result<(), ReplaceError> {
        small_file::try_replace(disk, dir, FILE_NAME, FORMAT, &self.encode())
    }

    /// As [`Manifest::replace`], for who does not go on after an error.
    pub fn store(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        self.replace(disk, dir).map_err(|failed| failed.error)
    }

    /// The partition's manifest.
    ///
    /// # Errors
    /// As [`small_file::load`], and if it contradicts itself.
    pub fn load(disk: &dyn Disk, dir: &Path) -> Result<Manifest, LoadError> {
        let body = small_file::load(disk, dir, FILE_NAME, FORMAT)?;
        Manifest::decode(&body).map_err(LoadError::Damaged)
    }

    /// The body of the file.
    ///
    /// # Panics
    /// If the manifest contradicts itself.
    pub fn encode(&self) -> Vec<u8> {
        if let Err(what) = self.check() {
            panic!("a manifest to be written has {what}: {self:?}");
        }
        let mut out = Vec::with_capacity(HEAD_LEN + HORIZON_LEN + ENTRY_LEN * self.segments.len());
        let next_horizon = self.compacted.and_then(|compacted| compacted.next_horizon);
        let version = match (self.compacted, next_horizon) {
            (None, _) => LOG_VERSION,
            (Some(_), None) => LOG_VERSION_COMPACTED,
            (Some(_), Some(_)) => LOG_VERSION_TOMBSTONES,
        };
        out.extend_from_slice(&version.to_le_bytes());
        out.extend_from_slice(self.partition.topic.as_bytes());
        out.extend_from_slice(&self.partition.partition.0.to_le_bytes());
        out.extend_from_slice(&self.log_start.0.to_le_bytes());
        out.extend_from_slice(&self.next_serial.to_le_bytes());
        out.extend_from_slice(&(self.segments.len() as u32).to_le_bytes());
        if let Some(next_horizon) = next_horizon {
            out.extend_from_slice(&next_horizon.0.to_le_bytes());
        }
        for segment in &self.segments {
            segment.encode(&mut out);
        }
        out
    }

    /// Reads the body of the file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(body: &[u8]) -> Result<Manifest, &'static str> {
        let (mut head, mut entries) = body.split_at_checked(HEAD_LEN).ok_or("cut short")?;
        let version = head.get_u16_le();
        if !(LOG_VERSION..=LOG_VERSION_TOMBSTONES).contains(&version) {
            return Err("unknown log version");
        }
        let mut topic = [0; 16];
        head.copy_to_slice(&mut topic);
        let partition =
            TopicPartition { topic: TopicId(topic), partition: PartitionIndex(head.get_u32_le()) };
        let (log_start, next_serial) = (Offset(head.get_u64_le()), head.get_u32_le());
        let count = head.get_u32_le() as usize;
        // What an earlier version can not read it is not to take for damage.
        let compacted = match version {
            LOG_VERSION => None,
            LOG_VERSION_COMPACTED => Some(Compacted { next_horizon: None }),
            _ => {
                let next_horizon = Timestamp(entries.try_get_i64_le().map_err(|_| "cut short")?);
                Some(Compacted { next_horizon: Some(next_horizon) })
            }
        };
        // The count is held against the bytes that are there before anything is allocated for it.
        if count > limits::SEGMENTS_MAX || entries.len() != count * ENTRY_LEN {
            return Err("a wrong segment count");
        }
        let mut segments = Vec::with_capacity(count);
        while entries.has_remaining() {
            segments.push(SegmentEntry::decode(&mut entries)?);
        }
        let manifest = Manifest { partition, log_start, next_serial, compacted, segments };
        manifest.check().map(|()| manifest)
    }

    /// What must hold of every manifest, written or read.
    fn check(&self) -> Result<(), &'static str> {
        if self.segments.len() > limits::SEGMENTS_MAX {
            return Err("too many segments");
        }
        if self.compacted.is_none() && self.segments.iter().any(|segment| segment.is_compacted) {
            return Err("a compacted segment in a log that is not");
        }
        if self.log_start > Offset::MAX {
            return Err("an impossible log start offset");
        }
        if self.segments.first().is_some_and(|first| first.name.base_offset > self.log_start) {
            return Err("a log start offset before the first segment");
        }
        for segment in &self.segments {
            segment.check(self.next_serial)?;
        }
        for pair in self.segments.windows(2) {
            let end = pair[0].sealed.ok_or("an unsealed segment before the last")?.end_offset;
            if end != pair[1].name.base_offset {
                return Err("a gap between segments");
            }
        }
        let end = self.segments.last().and_then(|last| last.sealed).map(|sealed| sealed.end_offset);
        if end.is_some_and(|end| end < self.log_start) {
            return Err("a log start offset after the last segment");
        }
        let mut serials: Vec<_> = self.segments.iter().map(|segment| segment.name.serial).collect();
        serials.sort_unstable();
        if serials.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("a serial twice");
        }
        Ok(())
    }
}

impl SegmentEntry {
    fn check(&self, next_serial: u32) -> Result<(), &'static str> {
        if self.name.base_offset > Offset::MAX {
            return Err("an impossible base offset");
        }
        if self.name.serial >= next_serial {
            return Err("a serial that was never given");
        }
        let Some(sealed) = self.sealed else {
            return if self.is_compacted { Err("a compacted segment that is not sealed") } else { Ok(()) };
        };
        if sealed.end_offset < self.name.base_offset || sealed.end_offset > Offset::MAX {
            return Err("an impossible end offset");
        }
        if sealed.len > SEGMENT_LEN_MAX {
            return Err("an impossible segment length");
        }
        Ok(())
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.name.base_offset.0.to_le_bytes());
        out.extend_from_slice(&self.name.serial.to_le_bytes());
        let sealed = self.sealed.unwrap_or(UNSEALED);
        let is_sealed = if self.sealed.is_some() { FLAG_SEALED } else { 0 };
        out.push(is_sealed | if self.is_compacted { FLAG_COMPACTED } else { 0 });
        out.extend_from_slice(&sealed.end_offset.0.to_le_bytes());
        out.extend_from_slice(&sealed.len.to_le_bytes());
        out.extend_from_slice(&sealed.last_append_time.0.to_le_bytes());
        out.extend_from_slice(&sealed.max_timestamp.0.to_le_bytes());
    }

    /// Reads one entry; `bytes` holds at least [`ENTRY_LEN`].
    fn decode(bytes: &mut &[u8]) -> Result<SegmentEntry, &'static str> {
        let (base_offset, serial) = (Offset(bytes.get_u64_le()), bytes.get_u32_le());
        let flags = bytes.get_u8();
        let sealed = Sealed {
            end_offset: Offset(bytes.get_u64_le()),
            len: bytes.get_u64_le(),
            last_append_time: Timestamp(bytes.get_i64_le()),
            max_timestamp: Timestamp(bytes.get_i64_le()),
        };
        let name = SegmentName { base_offset, serial };
        match flags {
            0 if sealed == UNSEALED => Ok(SegmentEntry { name, sealed: None, is_compacted: false }),
            FLAG_SEALED => Ok(SegmentEntry { name, sealed: Some(sealed), is_compacted: false }),
            flags if flags == FLAG_SEALED | FLAG_COMPACTED => {
                Ok(SegmentEntry { name, sealed: Some(sealed), is_compacted: true })
            }
            _ => Err("impossible segment flags"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::disk::SimDisk;

    fn sealed(end_offset: u64) -> Sealed {
        Sealed {
            end_offset: Offset(end_offset),
            len: 100,
            last_append_time: Timestamp(5),
            max_timestamp: Timestamp(-1),
        }
    }

    fn entry(base_offset: u64, serial: u32, end: Option<u64>) -> SegmentEntry {
        SegmentEntry {
            name: SegmentName { base_offset: Offset(base_offset), serial },
            sealed: end.map(sealed),
            is_compacted: false,
        }
    }

    fn manifest(log_start: u64, segments: Vec<SegmentEntry>) -> Manifest {
        let partition = TopicPartition { topic: TopicId([7; 16]), partition: PartitionIndex(3) };
        Manifest {
            log_start: Offset(log_start),
            next_serial: 10,
            segments,
            ..Manifest::new(partition, Offset::ZERO)
        }
    }

    prop_compose! {
        fn any_manifest()(
            topic in any::<[u8; 16]>(),
            partition in any::<u32>(),
            first in 0u64..1 << 40,
            spans in proptest::collection::vec((0u64..1 << 33, 0..=SEGMENT_LEN_MAX, any::<i64>(), any::<i64>()), 0..20),
            is_last_open in any::<bool>(),
            compacted in 0usize..4,
            horizon in prop::option::of(prop::option::of(any::<i32>())),
            skipped in 0u64..100,
        ) -> Manifest {
            let mut base_offset = Offset(first);
            let mut segments = Vec::new();
            for (serial, (records, len, append_time, max)) in spans.into_iter().enumerate() {
                let end_offset = Offset(base_offset.0 + records);
                let sealed = Sealed {
                    end_offset,
                    len,
                    last_append_time: Timestamp(append_time),
                    max_timestamp: Timestamp(max),
                };
                let name = SegmentName { base_offset, serial: serial as u32 * 2 };
                segments.push(SegmentEntry { name, sealed: Some(sealed), is_compacted: serial < compacted });
                base_offset = end_offset;
            }
            if let Some(last) = segments.last_mut().filter(|_| is_last_open) {
                (last.sealed, last.is_compacted) = (None, false);
            }
            let log_start = Offset(first + skipped.min(base_offset.0 - first));
            let partition = TopicPartition { topic: TopicId(topic), partition: PartitionIndex(partition) };
            let horizon = horizon.or(segments.iter().any(|segment| segment.is_compacted).then_some(None));
            let next_horizon = |at: Option<i32>| at.map(|at| Timestamp(at.into()));
            let compacted = horizon.map(|at| Compacted { next_horizon: next_horizon(at) });
            Manifest { partition, log_start, next_serial: 40, compacted, segments }
        }
    }

    proptest! {
        #[test]
        fn a_manifest_survives_its_file(manifest in any_manifest()) {
            let disk = SimDisk::new(0);
            manifest.store(&disk, Path::new("/")).expect("room");
            prop_assert_eq!(Manifest::load(&disk, Path::new("/")).expect("intact"), manifest);
        }

        /// Also bytes that the seal would have caught are no danger, and mean nothing that is not written again alike.
        #[test]
        fn damaged_bytes_are_an_error_or_another_manifest(
            manifest in any_manifest(),
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut body = manifest.encode();
            let _ = Manifest::decode(&body[..cut.index(body.len())]);
            for (at, byte) in damage {
                let at = at.index(body.len());
                body[at] = byte;
            }
            if let Ok(other) = Manifest::decode(&body) {
                prop_assert_eq!(other.encode(), body);
            }
        }

        #[test]
        fn any_bytes_are_no_danger(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Manifest::decode(&body);
        }

        #[test]
        fn any_name_is_a_segments_or_not(name in "[0-9]{0,21}-?[0-9]{0,9}\\.?[a-z]{0,9}") {
            if let Some((segment, file)) = SegmentName::parse(&name) {
                prop_assert_eq!(segment.file(file), name);
            }
        }
    }

    #[test]
    fn a_count_is_not_believed() {
        let mut body = manifest(0, vec![]).encode();
        body[HEAD_LEN - 4..].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Manifest::decode(&body), Err("a wrong segment count"));
    }

    #[test]
    fn contradictions_are_refused() {
        let refused = [
            manifest(0, vec![entry(1, 0, None)]),
            manifest(6, vec![entry(0, 0, Some(5))]),
            manifest(0, vec![entry(0, 0, None), entry(5, 1, None)]),
            manifest(0, vec![entry(0, 0, Some(5)), entry(6, 1, None)]),
            manifest(0, vec![entry(0, 0, Some(5)), entry(5, 0, None)]),
            manifest(0, vec![entry(0, 10, None)]),
            manifest(7, vec![entry(7, 0, Some(6))]),
            manifest(u64::MAX, vec![]),
            manifest(0, vec![SegmentEntry { is_compacted: true, ..entry(0, 0, Some(5)) }]),
        ];
        for manifest in refused {
            assert!(manifest.check().is_err(), "{manifest:?}");
        }
        let fine = manifest(5, vec![entry(0, 3, Some(5)), entry(5, 1, None)]);
        assert_eq!(fine.check(), Ok(()));
        assert!(fine.lists(fine.segments[1].name) && !fine.is_full());
    }

    /// As many segments as there may be are compacted all the same.
    #[test]
    fn a_log_of_too_many_segments_still_has_serials() {
        let segments = (0..limits::SEGMENTS_MAX as u32).map(|serial| entry(0, serial, Some(0))).collect();
        let full = Manifest { next_serial: limits::SEGMENTS_MAX as u32, ..manifest(0, segments) };
        assert_eq!(full.check(), Ok(()));
        assert!(full.is_full() && full.has_serial());
        let used_up = Manifest { next_serial: u32::MAX, ..manifest(0, vec![]) };
        assert!(used_up.is_full() && !used_up.has_serial());
    }

    #[test]
    fn names_are_written_in_one_way() {
        let name = SegmentName { base_offset: Offset(42), serial: 7 };
        assert_eq!(name.file(SegmentFile::TimeIndex), "00000000000000000042-00000007.timeindex");
        assert_eq!(SegmentName::parse("00000000000000000042-00000007.log"), Some((name, SegmentFile::Log)));
        for not_ours in [
            "42-7.log",
            "00000000000000000042-00000007.log.tmp",
            "manifest",
            "+0000000000000000042-00000007.log",
        ] {
            assert_eq!(SegmentName::parse(not_ours), None, "{not_ours}");
        }
    }
}
