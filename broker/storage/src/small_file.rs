//! Small files: sealed, and replaced whole.
//!
//! ```text
//! 0       4         6      8        12            12 + length
//! | magic | version | 0  0 | length | body …      | CRC-32 of all before |
//! ```
//! All integers are little-endian. [`replace`] is the only way such a file is written: a temporary file beside it,
//! sync, rename, sync the directory; whoever looks sees the old file or the new one. A temporary file that a crash
//! left ([`is_temporary`]) is garbage.

use std::io::{self, IoSlice};
use std::path::Path;

use crate::disk::{Disk, OpenMode};

const HEADER_LEN: usize = 12;
const CRC_LEN: usize = 4;
/// Bytes that sealing adds to a body.
pub const SEAL_LEN: usize = HEADER_LEN + CRC_LEN;
const TEMPORARY_SUFFIX: &str = ".tmp";

/// What distinguishes one kind of small file from the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// The first four bytes.
    pub magic: [u8; 4],
    /// The version of the body that this code writes, and the only one it reads.
    pub version: u16,
    /// Longest body (bytes); a file that says more is damaged, and is not read.
    pub body_len_max: usize,
}

/// Why a small file gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is no such file.
    #[error("missing")]
    Missing,
    /// The file is there, but is not what was written.
    #[error("damaged: {0}")]
    Damaged(&'static str),
    /// Written by another version of the software.
    #[error("version {found}, of which this version (which knows {known}) can not tell the meaning")]
    Version {
        /// The version in the file.
        found: u16,
        /// The version known here.
        known: u16,
    },
    /// It could not be read.
    #[error(transparent)]
    Io(io::Error),
}

/// A small file was not replaced.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct ReplaceError {
    /// What failed.
    pub error: io::Error,
    /// Whether the old file is certainly still there. If not, which of the two a crash leaves is not known.
    pub is_unchanged: bool,
}

/// Replaces the file `name` in `dir`, atomically and durably.
///
/// # Errors
/// As [`try_replace`].
///
/// # Panics
/// If the body is longer than the format allows.
pub fn replace(disk: &dyn Disk, dir: &Path, name: &str, format: Format, body: &[u8]) -> io::Result<()> {
    try_replace(disk, dir, name, format, body).map_err(|failed| failed.error)
}

/// As [`replace`], for who has to know what a failure left.
///
/// # Errors
/// If a step fails. Then the old file is still there, unless only the last step, syncing the directory, failed.
///
/// # Panics
/// If the body is longer than the format allows.
pub fn try_replace(
    disk: &dyn Disk,
    dir: &Path,
    name: &str,
    format: Format,
    body: &[u8],
) -> Result<(), ReplaceError> {
    let temporary = dir.join(format!("{name}{TEMPORARY_SUFFIX}"));
    let written = write_new(disk, &temporary, &seal(format, body))
        .and_then(|()| disk.rename(&temporary, &dir.join(name)));
    if let Err(error) = written {
        // It may never have been there; the error worth telling is the first.
        let _ = disk.remove(&temporary);
        return Err(ReplaceError { error, is_unchanged: true });
    }
    disk.sync_dir(dir).map_err(|error| ReplaceError { error, is_unchanged: false })
}

/// The body of the file `name` in `dir`.
///
/// # Errors
/// If it is missing, damaged, another version's, or can not be read.
pub fn load(disk: &dyn Disk, dir: &Path, name: &str, format: Format) -> Result<Vec<u8>, LoadError> {
    let file = disk.open(&dir.join(name), OpenMode::Read).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => LoadError::Missing,
        _ => LoadError::Io(error),
    })?;
    let len = file.len().map_err(LoadError::Io)?;
    if len > (format.body_len_max + SEAL_LEN) as u64 {
        return Err(LoadError::Damaged("longer than any such file"));
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(0, &mut bytes).map_err(LoadError::Io)?;
    let body = open(format, &bytes)?;
    Ok(body.to_vec())
}

/// Removes the file `name` in `dir` durably; whether it was there. After an error it may be gone and come back with a
/// power loss: try again.
///
/// # Errors
/// If it can not be removed, or the directory not synced.
pub fn remove(disk: &dyn Disk, dir: &Path, name: &str) -> io::Result<bool> {
    let was_there = match disk.remove(&dir.join(name)) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    // Also if it is not there: an earlier attempt may have failed right here.
    disk.sync_dir(dir).map(|()| was_there)
}

/// Whether a file of this name is what an interrupted [`replace`] left.
pub fn is_temporary(name: &str) -> bool {
    name.ends_with(TEMPORARY_SUFFIX)
}

/// The file's bytes for a body.
///
/// # Panics
/// If the body is longer than the format allows.
pub fn seal(format: Format, body: &[u8]) -> Vec<u8> {
    assert!(body.len() <= format.body_len_max, "a {} byte body is longer than its format allows", body.len());
    let mut out = Vec::with_capacity(body.len() + SEAL_LEN);
    out.extend_from_slice(&format.magic);
    out.extend_from_slice(&format.version.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(body);
    out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
    out
}

/// The body in a file's bytes.
///
/// # Errors
/// If they are damaged or another version's.
pub fn open(format: Format, bytes: &[u8]) -> Result<&[u8], LoadError> {
    use LoadError::Damaged;
    let (sealed, crc) = bytes.split_last_chunk::<CRC_LEN>().ok_or(Damaged("cut short"))?;
    let (header, body) = sealed.split_first_chunk::<HEADER_LEN>().ok_or(Damaged("cut short"))?;
    let [m0, m1, m2, m3, v0, v1, r0, r1, l0, l1, l2, l3] = *header;
    if [m0, m1, m2, m3] != format.magic {
        return Err(Damaged("another kind of file"));
    }
    if crc32fast::hash(sealed) != u32::from_le_bytes(*crc) {
        return Err(Damaged("CRC mismatch"));
    }
    let found = u16::from_le_bytes([v0, v1]);
    if found != format.version {
        return Err(LoadError::Version { found, known: format.version });
    }
    if [r0, r1] != [0; 2] || u32::from_le_bytes([l0, l1, l2, l3]) as usize != body.len() {
        return Err(Damaged("impossible header"));
    }
    Ok(body)
}

fn write_new(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = match disk.open(path, OpenMode::CreateNew) {
        // Garbage of an earlier crash.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            disk.remove(path)?;
            disk.open(path, OpenMode::CreateNew)?
        }
        opened => opened?,
    };
    file.write_at(0, &[IoSlice::new(bytes)])?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::disk::{CrashOptions, Fault, SimDisk, Stopped, Survival};

    const FORMAT: Format = Format { magic: *b"QTST", version: 3, body_len_max: 1000 };

    /// A disk that holds the file with this body, durably.
    fn disk_with(body: &[u8]) -> SimDisk {
        let disk = SimDisk::new(1);
        disk.create_dir_all(dir()).expect("room");
        disk.sync_dir(Path::new("/")).expect("no fault");
        replace(&disk, dir(), "f", FORMAT, body).expect("room");
        disk
    }

    fn dir() -> &'static Path {
        Path::new("/d")
    }

    fn put(disk: &SimDisk, name: &str, bytes: &[u8]) {
        let file = disk.open(&dir().join(name), OpenMode::CreateNew).expect("new");
        file.write_at(0, &[IoSlice::new(bytes)]).expect("room");
    }

    proptest! {
        #[test]
        fn a_body_survives_its_seal(body in proptest::collection::vec(any::<u8>(), 0..=1000)) {
            let bytes = seal(FORMAT, &body);
            prop_assert_eq!(bytes.len(), body.len() + SEAL_LEN);
            prop_assert_eq!(open(FORMAT, &bytes).expect("intact"), &body);
            prop_assert_eq!(load(&disk_with(&body), dir(), "f", FORMAT).expect("intact"), body);
        }

        #[test]
        fn any_bytes_are_damaged_or_what_was_sealed(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(body) = open(FORMAT, &bytes) {
                prop_assert_eq!(seal(FORMAT, body), bytes);
            }
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let bytes = seal(FORMAT, b"departed");
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(open(FORMAT, &damaged).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(open(FORMAT, &bytes[..len]).is_err(), "cut to {len}");
        }
        assert!(open(FORMAT, &[bytes, vec![0]].concat()).is_err(), "a byte more");
    }

    #[test]
    fn another_kind_and_another_version_are_told_apart() {
        let bytes = seal(FORMAT, b"a");
        let other = Format { magic: *b"QOTH", ..FORMAT };
        assert!(matches!(open(other, &bytes), Err(LoadError::Damaged(_))));
        let newer = Format { version: 4, ..FORMAT };
        assert!(matches!(open(newer, &bytes), Err(LoadError::Version { found: 3, known: 4 })));
    }

    #[test]
    fn a_file_too_long_is_not_read() {
        let disk = disk_with(b"a");
        put(&disk, "g", &[0; 1000 + SEAL_LEN + 1]);
        disk.inject(Fault::ReadFails { path: dir().join("g"), range: 0..1 });
        assert!(matches!(load(&disk, dir(), "g", FORMAT), Err(LoadError::Damaged(_))));
        assert!(matches!(load(&disk, dir(), "h", FORMAT), Err(LoadError::Missing)));
        disk.inject(Fault::ReadFails { path: dir().join("f"), range: 0..1 });
        assert!(matches!(load(&disk, dir(), "f", FORMAT), Err(LoadError::Io(_))));
    }

    #[test]
    fn what_an_earlier_crash_left_is_in_nobodys_way() {
        let disk = disk_with(b"old");
        put(&disk, "f.tmp", b"half of somethi");
        replace(&disk, dir(), "f", FORMAT, b"new").expect("room");
        assert_eq!(load(&disk, dir(), "f", FORMAT).expect("intact"), b"new");
        assert_eq!(disk.list(dir()).expect("there"), ["f"]);
        assert!(is_temporary("f.tmp") && !is_temporary("f"));
    }

    #[test]
    fn whatever_fails_the_old_file_stays() {
        for (fault, is_replaced) in [
            (Fault::WriteFails { nth: 1 }, false),
            (Fault::SyncFails { nth: 1 }, false),
            (Fault::SyncDirFails { nth: 1 }, true),
        ] {
            let disk = disk_with(b"old");
            disk.inject(fault.clone());
            replace(&disk, dir(), "f", FORMAT, b"new").expect_err("a fault");
            let found = load(&disk, dir(), "f", FORMAT).expect("intact");
            assert_eq!(found, if is_replaced { b"new" } else { b"old" }, "{fault:?}");
            assert_eq!(disk.list(dir()).expect("there"), ["f"], "nothing is left over");
            replace(&disk, dir(), "f", FORMAT, b"newer").expect("it can be tried again");
        }
    }

    /// Stops at every step, then loses power in many ways: the old file or the new one, and the new one if the
    /// replacement said so.
    #[test]
    fn no_crash_leaves_anything_between_old_and_new() {
        for operations in 0..=5 {
            let stopped = disk_with(b"old");
            stopped.inject(Fault::StopsAfter { operations });
            let replaced = replace(&stopped, dir(), "f", FORMAT, &[7; 900]);
            assert_eq!(
                replaced.is_ok(),
                operations == 5,
                "five operations: create, write, sync, rename, sync"
            );
            assert!(replaced.as_ref().err().is_none_or(Stopped::is_cause_of));
            for seed in 0..100 {
                let disk = stopped.fork(seed);
                disk.crash(&CrashOptions::default());
                let found = load(&disk, dir(), "f", FORMAT).expect("never damaged, never missing");
                assert!(
                    found == [7; 900] || replaced.is_err() && found == b"old",
                    "after {operations}: {found:?}"
                );
            }
        }
    }

    #[test]
    fn a_removal_that_was_not_synced_is_made_durable_by_the_next_attempt() {
        let disk = disk_with(b"old");
        disk.inject(Fault::SyncDirFails { nth: 1 });
        remove(&disk, dir(), "f").expect_err("a fault");
        assert!(!remove(&disk, dir(), "f").expect("no fault"));
        disk.crash(&CrashOptions { data: Survival::Nothing, names: Survival::Nothing });
        assert!(matches!(load(&disk, dir(), "f", FORMAT), Err(LoadError::Missing)));
    }

    #[test]
    fn removing_is_durable_and_may_be_repeated() {
        let disk = disk_with(b"old");
        assert!(remove(&disk, dir(), "f").expect("there"));
        disk.crash(&CrashOptions::default());
        assert!(!remove(&disk, dir(), "f").expect("gone for good"));
    }
}
