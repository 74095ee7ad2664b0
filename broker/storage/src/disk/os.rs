//! The operating system's file system.

use std::fs::{self, File, TryLockError};
use std::io::{self, IoSlice};
use std::num::NonZeroU64;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Advice, FallocateFlags};
use rustix::io::Errno;

use super::{Disk, DiskFile, OpenMode};
use crate::mmap::{Extent, Mapping};

/// Slices that one `pwritev` takes (Linux: IOV_MAX).
const SLICES_MAX: usize = 1024;
/// Bytes announced at once: of more, Linux takes no notice beyond what its read-ahead or one request of the device takes.
const ADVICE_STEP_BYTES: u64 = 128 * 1024;
/// Zeros written at once where the file system can not allocate (bytes).
const ZEROS_LEN: usize = 64 * 1024;

/// The file system of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsDisk;

impl Disk for OsDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            // A name that is not UTF-8 is none that storage ever gave.
            names.extend(entry?.file_name().into_string());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = File::options();
        options.read(true);
        match mode {
            OpenMode::Read => &mut options,
            OpenMode::ReadWrite => options.write(true),
            OpenMode::CreateNew => options.write(true).create_new(true),
        };
        let file = options.open(path)?;
        let extent = Arc::new(Extent::new(file.metadata()?.len()));
        Ok(Arc::new(OsFile { file, extent }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        Ok(rustix::fs::fsync(File::open(dir)?)?)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(file)),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

#[derive(Debug)]
struct OsFile {
    file: File,
    extent: Arc<Extent>,
}

impl DiskFile for OsFile {
    fn len(&self) -> io::Result<u64> {
        let len = self.file.metadata()?.len();
        self.extent.reached(len);
        Ok(len)
    }

    fn read_at(&self, position: u64, buf: &mut [u8]) -> io::Result<usize> {
        rustix::io::retry_on_intr(|| rustix::io::pread(&self.file, &mut *buf, position)).map_err(Into::into)
    }

    fn write_at(&self, position: u64, slices: &[IoSlice<'_>]) -> io::Result<()> {
        if !self.extent.permits_write(position) {
            let why = "bytes that were given out through a map are never written again";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let end = write_all_at(&self.file, position, slices)?;
        self.extent.reached(end);
        Ok(())
    }

    fn allocate(&self, end: u64) -> io::Result<()> {
        let len = self.len()?;
        if end <= len {
            return Ok(());
        }
        // From the start, so that holes that a crash left below the end are filled too.
        let allocate = || rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, end);
        match rustix::io::retry_on_intr(allocate) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP) => write_zeros(&self.file, len..end)?,
            Err(errno) => return Err(no_space(errno)),
        }
        self.extent.reached(end);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        // Not repeated on any error, EINTR included: a second call may say OK and mean nothing.
        Ok(rustix::fs::fdatasync(&self.file)?)
    }

    fn will_need(&self, range: Range<u64>) {
        for start in range.clone().step_by(ADVICE_STEP_BYTES as usize) {
            let len = NonZeroU64::new((range.end - start).min(ADVICE_STEP_BYTES));
            if rustix::fs::fadvise(&self.file, start, len, Advice::WillNeed).is_err() {
                return;
            }
        }
    }

    fn map(&self, len: u64) -> io::Result<Option<Mapping>> {
        Mapping::new(&self.file, len, Arc::clone(&self.extent))
    }
}

/// Writes all of `slices`, however few bytes the kernel takes at a time; returns the position after the last byte.
fn write_all_at(file: &File, mut position: u64, slices: &[IoSlice<'_>]) -> io::Result<u64> {
    let mut rest = slices.to_vec();
    let mut rest = rest.as_mut_slice();
    // Empty slices at the front would make a call that writes nothing look like a full disk.
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        let now = &rest[..rest.len().min(SLICES_MAX)];
        match rustix::io::pwritev(file, now, position) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                position += written as u64;
                IoSlice::advance_slices(&mut rest, written);
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(no_space(errno)),
        }
    }
    Ok(position)
}

/// Allocates on a file system that can not: only behind the end of the file, where nothing can be overwritten.
fn write_zeros(file: &File, range: Range<u64>) -> io::Result<()> {
    let zeros = vec![0; ZEROS_LEN];
    let mut position = range.start;
    while position < range.end {
        let len = (range.end - position).min(ZEROS_LEN as u64) as usize;
        position = write_all_at(file, position, &[IoSlice::new(&zeros[..len])])?;
    }
    Ok(())
}

/// A quota is a full disk to us: room can come back.
fn no_space(errno: Errno) -> io::Error {
    match errno {
        Errno::DQUOT => io::Error::new(io::ErrorKind::StorageFull, io::Error::from(errno)),
        errno => errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(file: &dyn DiskFile) -> Vec<u8> {
        let mut bytes = vec![0; file.len().expect("a length") as usize];
        file.read_exact_at(0, &mut bytes).expect("all of it");
        bytes
    }

    #[test]
    fn more_slices_than_one_call_takes_are_all_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = OsDisk.open(&dir.path().join("f"), OpenMode::CreateNew).expect("created");
        let content: Vec<u8> = (0..5000u32).map(|number| number as u8).collect();
        let slices: Vec<_> =
            content.chunks(2).flat_map(|pair| [IoSlice::new(&[]), IoSlice::new(pair)]).collect();
        file.write_at(3, &slices).expect("room");
        assert_eq!(bytes_of(&*file), [&[0; 3], content.as_slice()].concat());
        file.write_at(9, &[]).expect("nothing to do");
        file.write_at(9, &[IoSlice::new(&[])]).expect("nothing to do");
    }

    #[test]
    fn allocated_space_reads_as_zeros_and_keeps_what_is_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = OsDisk.open(&dir.path().join("f"), OpenMode::CreateNew).expect("created");
        file.write_at(0, &[IoSlice::new(b"abc")]).expect("room");
        file.allocate(10_000).expect("room");
        file.allocate(5).expect("already there");
        assert_eq!(file.len().expect("a length"), 10_000);
        assert_eq!(bytes_of(&*file)[..5], *b"abc\0\0");
        let map = file.map(10_000).expect("maps").expect("below the limit");
        assert_eq!(map.slice(0..3).expect("inside"), "abc");
        let error = file.write_at(2, &[IoSlice::new(b"x")]).expect_err("given out");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        file.write_at(3, &[IoSlice::new(b"x")]).expect("above what was given out");
    }

    #[test]
    fn zeros_go_only_behind_the_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("f");
        fs::write(&path, b"abc").expect("room");
        let file = File::options().write(true).open(&path).expect("there");
        write_zeros(&file, 3..200_000).expect("room");
        let bytes = fs::read(&path).expect("there");
        assert_eq!((bytes.len(), &bytes[..4]), (200_000, b"abc\0".as_slice()));
    }

    #[test]
    fn a_lock_is_held_until_it_is_dropped() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        let held = OsDisk.lock(&path).expect("free");
        let error = OsDisk.lock(&path).err().expect("held");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(held);
        OsDisk.lock(&path).expect("free again");
    }
}
