//! What a simulated disk tells of what it was asked.

use std::ops::Range;
use std::path::PathBuf;

/// What was asked of the disk. Reads are not told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// A directory was created.
    CreateDir(PathBuf),
    /// A file was created.
    Create(PathBuf),
    /// A file was renamed.
    Rename(PathBuf, PathBuf),
    /// A file was removed.
    Remove(PathBuf),
    /// A directory was removed.
    RemoveDir(PathBuf),
    /// A directory was synced.
    SyncDir(PathBuf),
    /// A lock was taken.
    Lock(PathBuf),
    /// Bytes were written to the file opened by this name.
    Write(PathBuf, Range<u64>),
    /// Space up to this end (bytes) was reserved.
    Allocate(PathBuf, u64),
    /// A file was synced.
    Sync(PathBuf),
}

/// An operation and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What was asked.
    pub operation: Operation,
    /// Whether it succeeded.
    pub succeeded: bool,
}

/// What a disk did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// All that [`Operation`] lists.
    pub operations: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes asked to be written.
    pub bytes_written: u64,
    /// File syncs.
    pub syncs: u64,
    /// Directory syncs.
    pub dir_syncs: u64,
}
