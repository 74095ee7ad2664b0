//! The only door to the file system.
//!
//! Everything storage does to files goes through [`Disk`] and [`DiskFile`], so that a simulated disk can lose, tear and
//! refuse what a real one loses, tears and refuses. There is no truncation: a file that may be mapped never shrinks.

mod os;
mod sim;
#[cfg(test)]
mod suite;

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

pub use crate::mmap::Mapping;
pub use os::OsDisk;
pub use sim::{Counters, CrashOptions, Event, Fault, Operation, SimDisk, Stopped, Survival};

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// It exists and is only read.
    Read,
    /// It exists and is read and written.
    ReadWrite,
    /// It does not exist yet; created empty.
    CreateNew,
}

/// A file system. A new file is durable after `sync_data` on it and `sync_dir` on its directory, and one without bytes
/// after `sync_dir` alone.
pub trait Disk: Debug + Send + Sync + 'static {
    /// Creates a directory and its missing parents. Durable after `sync_dir` on each parent.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// Names of the entries of a directory, sorted. `NotFound` if there is none.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Opens a file.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;

    /// Renames a file, replacing another atomically. Durable after `sync_dir`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Whoever has it open or mapped keeps reading it.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes the directory's entries durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Bytes that can still be written on the file system that holds `dir`.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;

    /// Takes the exclusive lock that the file at `path` stands for, creating it if needed; held until the returned
    /// value is dropped or the process ends. `WouldBlock` if another process holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>>;
}

/// An open file. All methods take `&self`: positions are explicit, and a file may be written by one thread while
/// others read and sync it.
pub trait DiskFile: Debug + Send + Sync {
    /// Length (bytes), allocated space included.
    fn len(&self) -> io::Result<u64>;

    /// Whether it has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reads at most `buf.len()` bytes at `position`; 0 only at the end.
    fn read_at(&self, position: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Reads exactly `buf.len()` bytes at `position`; `UnexpectedEof` if there are fewer.
    fn read_exact_at(&self, mut position: u64, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            match self.read_at(position, buf)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => {
                    position += count as u64;
                    buf = &mut buf[count..];
                }
            }
        }
        Ok(())
    }

    /// Writes all of `slices` one after another at `position`, extending the file if needed. After an error any part
    /// of them may have been written.
    fn write_at(&self, position: u64, slices: &[IoSlice<'_>]) -> io::Result<()>;

    /// Reserves space up to `end` (bytes from the start) and makes it part of the file; it reads as zeros.
    /// `StorageFull` if there is not enough.
    fn allocate(&self, end: u64) -> io::Result<()>;

    /// Makes everything written so far durable, and the file's length. After an error nothing may be assumed and the
    /// call must not be repeated.
    fn sync_data(&self) -> io::Result<()>;

    /// Begins to read a range into the page cache, and does not wait for it. A hint: what does not work out is found
    /// when the bytes are read. Of a file that no page cache holds (the simulator's) nothing happens.
    fn will_need(&self, range: Range<u64>) {
        let _ = range;
    }

    /// Maps the first `len` bytes for reading, which may lie beyond the current end; only what was written may be
    /// looked at. `None` where files are not mapped (the simulator): read instead.
    fn map(&self, len: u64) -> io::Result<Option<Mapping>>;
}
