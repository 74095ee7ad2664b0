//! What can go wrong with a simulated disk.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

/// How much of what was not synced survives a loss of power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Survival {
    /// Nothing: the cruellest disk that keeps its promises.
    Nothing,
    /// Everything: as if all had been written back just before.
    Everything,
    /// Any part of it: sectors in write order up to a point, or each by itself.
    #[default]
    Random,
}

/// A loss of power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CrashOptions {
    /// What survives of files' bytes and lengths.
    pub data: Survival,
    /// What survives of directory entries.
    pub names: Survival,
}

/// Something that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The n-th file sync from now (1: the next) fails with EIO. Part of what it should have covered is lost. Each other
    /// handle of the file that is open then gets EIO at its next sync; all later syncs say OK all the same.
    SyncFails {
        /// Which.
        nth: u64,
    },
    /// What of this file was not synced is written back now, in the background, and fails: part of it is lost. Each
    /// handle that is open now, or the first opened later if there is none, gets EIO at its next sync. All later syncs
    /// say OK all the same.
    WriteBackFails {
        /// The file.
        path: PathBuf,
    },
    /// The n-th directory sync from now (1: the next) fails with EIO.
    SyncDirFails {
        /// Which.
        nth: u64,
    },
    /// The n-th write from now (1: the next) fails with EIO after a part of it.
    WriteFails {
        /// Which.
        nth: u64,
    },
    /// From now on so many files can be open at a time; to list and to sync a directory takes one more. Whatever
    /// exceeds that fails with EMFILE, until [`SimDisk::heal`](super::SimDisk::heal).
    FewDescriptors {
        /// How many.
        count: u64,
    },
    /// Reads of these bytes of the file that now has this name fail with EIO.
    ReadFails {
        /// The file.
        path: PathBuf,
        /// The bytes.
        range: Range<u64>,
    },
    /// After this many more operations the process stops: the next one is done in part or not at all, and it and all
    /// that follow answer [`Stopped`], until [`SimDisk::crash`](super::SimDisk::crash) or [`SimDisk::kill`](super::SimDisk::kill).
    StopsAfter {
        /// How many succeed.
        operations: u64,
    },
}

/// The process that asked is dead, by [`Fault::StopsAfter`], [`SimDisk::kill`](super::SimDisk::kill) or [`SimDisk::crash`](super::SimDisk::crash).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the simulated process has stopped")]
pub struct Stopped;

impl Stopped {
    /// Whether this is why an operation failed.
    pub fn is_cause_of(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Stopped>())
    }

    pub(super) fn error() -> io::Error {
        io::Error::other(Stopped)
    }
}
