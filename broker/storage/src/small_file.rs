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

/// Replaces the file `name` in `dir`, atomically and durably.
///
/// # Errors
/// If a step fails. Then the old file is still there, unless only the last step, syncing the directory, failed: then
/// which of the two a crash leaves is not known.
///
/// # Panics
/// If the body is longer than the format allows.
pub fn replace(disk: &dyn Disk, dir: &Path, name: &str, format: Format, body: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!("{name}{TEMPORARY_SUFFIX}"));
    let written = write_new(disk, &temporary, &seal(format, body))
        .and_then(|()| disk.rename(&temporary, &dir.join(name)));
    if let Err(error) = written {
        // It may never have been there; the error worth telling is the first.
        let _ = disk.remove(&temporary);
        return Err(error);
    }
    disk.sync_dir(dir)
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

/// Removes the file `name` in `dir` durably; whether it was there.
///
/// # Errors
/// If it can not be removed, or the directory not synced.
pub fn remove(disk: &dyn Disk, dir: &Path, name: &str) -> io::Result<bool> {
    match disk.remove(&dir.join(name)) {
        Ok(()) => disk.sync_dir(dir).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
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
