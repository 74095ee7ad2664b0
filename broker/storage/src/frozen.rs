//! Files that were released once: today's code reads them, and writes the same bytes.
//!
//! A file in `testdata/` is never changed, only added to: run with `QUIRE_FREEZE=1` to write the missing ones.

use std::fmt::Debug;
use std::fs;
use std::io::IoSlice;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use quire_protocol::frame::{Chain, Digest, FrameHeader};
use quire_protocol::ids::{LeaderEpoch, Offset, PartitionIndex, Timestamp, TopicId, TopicPartition};

use crate::checkpoint::{self, Checkpoint};
use crate::disk::{Disk, OpenMode, SimDisk};
use crate::epochs::{self, EpochCache};
use crate::index::SegmentIndex;
use crate::manifest::{self, Compacted, Manifest, Sealed, SegmentEntry, SegmentFile, SegmentName};
use crate::producers::{self, ProducerSnapshot};
use crate::suspicion::{self, Suspicion};

const SEALED_NAME: SegmentName = SegmentName { base_offset: Offset(1000), serial: 3 };
const SEALED: Sealed = Sealed {
    end_offset: Offset(1300),
    len: 70_000,
    last_append_time: Timestamp(1_357_034_400_500),
    max_timestamp: Timestamp(1_357_034_400_000),
};

#[test]
fn manifest() {
    let active = SegmentName { base_offset: Offset(1300), serial: 5 };
    let manifest = Manifest {
        partition: TopicPartition {
            topic: TopicId([0x10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]),
            partition: PartitionIndex(5),
        },
        log_start: Offset(1100),
        next_serial: 6,
        compacted: None,
        segments: vec![
            SegmentEntry { name: SEALED_NAME, sealed: Some(SEALED), is_compacted: false },
            SegmentEntry { name: active, sealed: None, is_compacted: false },
        ],
    };
    let mut compacted = manifest.clone();
    compacted.segments[0].is_compacted = true;
    compacted.compacted = Some(Compacted { next_horizon: None });
    let next_horizon = Some(Timestamp(1_357_120_800_000));
    let tombstones = Manifest { compacted: Some(Compacted { next_horizon }), ..compacted.clone() };
    let manifests =
        [("manifest", manifest), ("manifest-compacted", compacted), ("manifest-tombstones", tombstones)];
    for (name, manifest) in manifests {
        let written = written(|disk| manifest.store(disk, root()));
        let disk = frozen([(name, manifest::FILE_NAME)], &written);
        same(Manifest::load(&disk, root()), &manifest);
    }
}

#[test]
fn checkpoint_and_clean_marker() {
    let checkpoint = Checkpoint {
        segment_serial: 5,
        position: 4096,
        next_offset: Offset(1342),
        chain: Chain([0xc5; 32]),
        last_append_time: Timestamp(1_357_034_460_000),
        leader_epoch: LeaderEpoch(7),
        high_watermark: Offset(1340),
        is_synced: true,
        is_behind: false,
    };
    let written =
        written(|disk| checkpoint.store(disk, root()).and_then(|()| checkpoint.mark_clean(disk, root())));
    let names = [("checkpoint", checkpoint::FILE_NAME), ("clean", checkpoint::CLEAN_FILE_NAME)];
    let disk = frozen(names, &written);
    same(Checkpoint::load(&disk, root()), &checkpoint);
    same(Checkpoint::peek_clean(&disk, root()), &Some(checkpoint));
}

#[test]
fn leader_epochs() {
    let mut epochs = EpochCache::new();
    for (epoch, start_offset) in [(0, 0), (1, 900), (7, 1342)] {
        epochs.assign(LeaderEpoch(epoch), Offset(start_offset)).expect("in order");
    }
    let written = written(|disk| epochs.store(disk, root()));
    let disk = frozen([("epochs", epochs::FILE_NAME)], &written);
    same(EpochCache::load(&disk, root()), &epochs);
}

#[test]
fn what_is_known_of_producers() {
    let known = ProducerSnapshot { covers: Offset(1342), bytes: Bytes::from_static(&[1, 0, 0, 0, 0]) };
    let written = written(|disk| known.store(disk, root()));
    let disk = frozen([("producers", producers::FILE_NAME)], &written);
    same(ProducerSnapshot::load(&disk, root()), &Some(known));
}

#[test]
fn what_is_held_against_a_replica() {
    let why = Suspicion { is_unclean: true, has_lost_writes: false, is_damaged: true };
    let written = written(|disk| why.add(disk, root()).map(drop));
    let disk = frozen([("suspect", suspicion::FILE_NAME)], &written);
    same(Suspicion::load(&disk, root()), &why);
}

#[test]
fn indexes() {
    let mut index = SegmentIndex::new(SEALED_NAME.base_offset);
    for frame in 0..3u32 {
        let base_offset = Offset(SEALED_NAME.base_offset.0 + u64::from(frame) * 100);
        index.note(&header(base_offset, SEALED.max_timestamp), u64::from(frame) * 20_000, 16 * 1024);
    }
    let written = written(|disk| index.store(disk, root(), SEALED_NAME, &SEALED));
    let files = [SegmentFile::OffsetIndex, SegmentFile::TimeIndex].map(|file| SEALED_NAME.file(file));
    let disk = frozen([("index", &files[0]), ("timeindex", &files[1])], &written);
    same(SegmentIndex::load(&disk, root(), SEALED_NAME, &SEALED), &index);
}

fn header(base_offset: Offset, max_timestamp: Timestamp) -> FrameHeader {
    FrameHeader {
        digest: Digest::Crc32c,
        is_compacted: false,
        batch_len: 61,
        base_offset,
        last_offset_delta: 99,
        leader_epoch: LeaderEpoch(0),
        append_time: SEALED.last_append_time,
        max_timestamp,
        durable_floor: Offset(0),
        chain: Chain::START,
        crc: 0,
    }
}

fn root() -> &'static Path {
    Path::new("/")
}

fn written(store: impl FnOnce(&SimDisk) -> std::io::Result<()>) -> SimDisk {
    let disk = SimDisk::new(0);
    store(&disk).expect("room");
    disk
}

fn same<T: Debug + PartialEq, E: Debug>(read: Result<T, E>, written: &T) {
    assert_eq!(&read.expect("a released file is read"), written);
}

/// A disk with the frozen files, each `(name in testdata, name on the disk)`, which are those `written` today.
fn frozen<const COUNT: usize>(names: [(&str, &str); COUNT], written: &SimDisk) -> SimDisk {
    let disk = SimDisk::new(0);
    for (name, file_name) in names {
        let today = read(written, file_name);
        let bytes = frozen_bytes(name, &today);
        assert_eq!(today, bytes, "{name} is written as it was released");
        let file = disk.open(&root().join(file_name), OpenMode::CreateNew).expect("new");
        file.write_at(0, &[IoSlice::new(&bytes)]).expect("room");
    }
    disk
}

fn read(disk: &SimDisk, file_name: &str) -> Vec<u8> {
    let file = disk.open(&root().join(file_name), OpenMode::Read).expect("just written");
    let mut bytes = vec![0; file.len().expect("open") as usize];
    file.read_exact_at(0, &mut bytes).expect("all of it");
    bytes
}

fn frozen_bytes(name: &str, today: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name).with_extension("hex");
    if !path.exists() && std::env::var_os("QUIRE_FREEZE").is_some() {
        let line = |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
        fs::write(&path, today.chunks(32).map(line).collect::<String>()).expect("testdata is writable");
    }
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let digit = |c: char| c.to_digit(16).expect("a hex digit") as u8;
    let digits: Vec<u8> = text.chars().filter(|c| !c.is_whitespace()).map(digit).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}
