//! Segment files mapped for reading: the crate's only `unsafe`.
//!
//! Two things can go wrong with a map, and this file is where both are ruled out:
//! - *A page behind the end of the file is SIGBUS.* A [`Mapping`] may be longer than its file, which grows under it;
//!   [`Mapping::slice`] gives out only bytes below the length that the file is known to have reached ([`Extent`]), and
//!   no file is ever cut short (`trait Disk` has no truncation). A page that the device can not read is SIGBUS too:
//!   a slice is populated first, where that is an ordinary error.
//! - *A byte that changes while someone holds it as `&[u8]`* is undefined behaviour. Nothing stores through a map, and
//!   the file behind it is written only above every byte given out: [`Extent::permits_write`], which `OsDisk` asks
//!   before each write.
//!
//! Other processes must keep their hands off: the data directory is locked.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use memmap2::{MmapOptions, MmapRaw};
use quire_protocol::limits;
use rustix::io::Errno;
use rustix::mm::Advice;

/// Maps alive in this process: the kernel's limit (`vm.max_map_count`) is one for the whole of it.
static MAPS: AtomicUsize = AtomicUsize::new(0);

/// What is known of an open file, shared by the file and its maps.
#[derive(Debug, Default)]
pub struct Extent {
    /// The file is at least this long (bytes), and never gets shorter.
    len: AtomicU64,
    /// First byte that was never given out of a map.
    given_out: AtomicU64,
}

impl Extent {
    /// Of a file that is now `len` bytes long.
    pub fn new(len: u64) -> Extent {
        Extent { len: AtomicU64::new(len), given_out: AtomicU64::new(0) }
    }

    /// The file reached this length (bytes).
    pub fn reached(&self, len: u64) {
        self.len.fetch_max(len, Ordering::AcqRel);
    }

    fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    /// Whether bytes from `position` on may be written: nobody was given any of them through a map.
    pub fn permits_write(&self, position: u64) -> bool {
        position >= self.given_out.load(Ordering::Acquire)
    }

    fn give_out(&self, range: &Range<u64>) -> bool {
        let is_inside = range.end <= self.len();
        if is_inside {
            self.given_out.fetch_max(range.end, Ordering::AcqRel);
        }
        is_inside
    }
}

/// The front of a file, mapped read-only. Clones share the map; it ends with the last clone and the last slice.
#[derive(Debug, Clone)]
pub struct Mapping(Arc<Map>);

#[derive(Debug)]
struct Map {
    raw: MmapRaw,
    extent: Arc<Extent>,
    _slot: Slot<'static>,
}

impl Mapping {
    /// Maps the first `len` bytes of `file`, which may lie beyond its end. `None` if as many files are mapped as our
    /// limit or the kernel's allows, or the file system maps none: read the file instead.
    ///
    /// # Errors
    /// If the kernel refuses for another reason.
    pub fn new(file: &File, len: u64, extent: Arc<Extent>) -> io::Result<Option<Mapping>> {
        let Some(slot) = Slot::take(&MAPS, limits::MAPS_MAX) else {
            return Ok(None);
        };
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        match MmapOptions::new().len(len).map_raw_read_only(file) {
            Ok(raw) => Ok(Some(Mapping(Arc::new(Map { raw, extent, _slot: slot })))),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::NOMEM | Errno::NODEV) => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Length of the map (bytes), which may exceed the file's.
    pub fn len(&self) -> u64 {
        self.0.raw.len() as u64
    }

    /// Whether the map has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether every page of a range is in the page cache, so that [`Mapping::slice`] gives it without waiting for the
    /// device. It may leave the moment after: a wait then, nothing worse. `false` where the kernel does not tell.
    pub fn is_resident(&self, range: &Range<u64>) -> bool {
        let is_inside = range.start < range.end && range.end <= self.0.extent.len().min(self.len());
        is_inside && self.0.is_resident(&(range.start as usize..range.end as usize))
    }

    /// The bytes of a range, without a copy, brought into memory. They keep the map alive. `None` if the range is not
    /// wholly inside map and file, or the device can not read it: read the file instead, which tells why.
    ///
    /// The caller asks only for bytes that were completely written before; they can not be written again. Blocks on the
    /// device if they have left the page cache.
    pub fn slice(&self, range: Range<u64>) -> Option<Bytes> {
        if range.is_empty() {
            return (range.start == range.end && range.end <= self.len()).then(Bytes::new);
        }
        if range.end > self.len() || !self.0.extent.give_out(&range) {
            return None;
        }
        // Both fit: they are at most the map's length, which is a usize.
        let range = range.start as usize..range.end as usize;
        self.0.populate(&range).ok()?;
        Some(Bytes::from_owner(Slice { map: Arc::clone(&self.0), range }))
    }
}

impl Map {
    fn is_resident(&self, range: &Range<usize>) -> bool {
        let page = rustix::param::page_size();
        let start = range.start - range.start % page;
        let mut pages = vec![0u8; (range.end - start).div_ceil(page)];
        // SAFETY: `start` is below `raw.len()`, as `Mapping::is_resident` checked, so the pointer stays inside the map.
        let address = unsafe { self.raw.as_ptr().add(start) };
        // SAFETY: the bytes lie inside a live map, which is only asked about, and `pages` has a byte for each of their
        // pages.
        let asked =
            unsafe { libc::mincore(address.cast_mut().cast(), range.end - start, pages.as_mut_ptr()) };
        // The other bits mean nothing.
        asked == 0 && pages.iter().all(|page| page & 1 == 1)
    }

    /// Reads a range into the page cache and maps its pages. If the device can not, this is an error, where a plain look
    /// would be SIGBUS. (So it is on a kernel older than 5.14, which does not know how.)
    fn populate(&self, range: &Range<usize>) -> io::Result<()> {
        let start = range.start - range.start % rustix::param::page_size();
        // SAFETY: `start` is below `raw.len()`, as `Mapping::slice` checked, so the pointer stays inside the map.
        let address = unsafe { self.raw.as_ptr().add(start) };
        // SAFETY: the bytes lie inside a live map, and populating changes none of them.
        unsafe {
            rustix::mm::madvise(address.cast_mut().cast(), range.end - start, Advice::LinuxPopulateRead)
        }
        .map_err(io::Error::from)
    }
}

/// A part of a map that lies wholly inside the file and was written.
struct Slice {
    map: Arc<Map>,
    range: Range<usize>,
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `Mapping::slice` is the only maker of a `Slice`. It held the range against the length of the map and
        // of the file, which never shrinks, so every byte can be read as long as the map lives, and `self.map` keeps it
        // alive. No byte below `Extent::given_out` is written any more, so nothing changes under the reference.
        unsafe { std::slice::from_raw_parts(self.map.raw.as_ptr().add(self.range.start), self.range.len()) }
    }
}

/// One of a limited number of maps.
#[derive(Debug)]
struct Slot<'a>(&'a AtomicUsize);

impl<'a> Slot<'a> {
    fn take(count: &'a AtomicUsize, max: usize) -> Option<Slot<'a>> {
        count
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |live| (live < max).then_some(live + 1))
            .ok()
            .map(|_| Slot(count))
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn mapped(content: &[u8], len: u64) -> (File, Arc<Extent>, Mapping) {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(content).expect("room for a few bytes");
        let extent = Arc::new(Extent::new(content.len() as u64));
        let map = Mapping::new(&file, len, Arc::clone(&extent)).expect("maps").expect("below the limit");
        (file, extent, map)
    }

    #[test]
    fn a_slice_outlives_its_mapping_and_its_file() {
        let (file, _, map) = mapped(b"departed arrived", 16);
        let slice = map.slice(9..16).expect("inside");
        drop((file, map));
        assert_eq!(slice, "arrived");
    }

    #[test]
    fn only_what_the_file_reached_is_given_out() {
        let (mut file, extent, map) = mapped(b"one", 1 << 20);
        assert_eq!(map.slice(0..4), None);
        file.write_all(b"two").expect("room");
        assert_eq!(map.slice(0..6), None, "nobody said that the file grew");
        extent.reached(6);
        assert_eq!(map.slice(0..6).expect("inside"), "onetwo");
        extent.reached(1 << 21);
        assert_eq!(map.slice(0..(1 << 20) + 1), None, "longer than the map");
        let backwards = Range { start: 2, end: 1 };
        assert_eq!(map.slice(backwards), None);
        assert_eq!(map.slice(6..6).expect("empty"), "");
    }

    #[test]
    fn what_was_given_out_can_not_be_written_again() {
        let (_file, extent, map) = mapped(b"departed", 8);
        assert!(extent.permits_write(0));
        let _slice = map.slice(2..4);
        assert!(!extent.permits_write(3));
        assert!(extent.permits_write(4));
    }

    #[test]
    fn what_can_not_be_read_is_not_given_out() {
        let (_file, extent, map) = mapped(&[7; 10_000], 1 << 20);
        assert_eq!(map.slice(5_000..10_000).expect("there").len(), 5_000);
        // As a device does that fails: the pages are promised, and are not there.
        extent.reached(1 << 20);
        assert_eq!(map.slice(0..1 << 20), None);
    }

    #[test]
    fn what_was_just_written_is_resident_and_what_is_not_there_is_not() {
        let (_file, extent, map) = mapped(&[7; 10_000], 1 << 20);
        assert!(map.is_resident(&(0..10_000)) && map.is_resident(&(9_999..10_000)));
        assert!(!map.is_resident(&(0..10_001)), "nobody said that the file grew");
        extent.reached(1 << 20);
        assert!(!map.is_resident(&(0..1 << 20)), "its pages were never there");
        assert!(!map.is_resident(&(5..5)) && !map.is_resident(&(0..(1 << 20) + 1)));
    }

    #[test]
    fn slots_come_back() {
        let count = AtomicUsize::new(0);
        let first = Slot::take(&count, 2);
        let second = Slot::take(&count, 2);
        assert!(first.is_some() && second.is_some());
        assert!(Slot::take(&count, 2).is_none());
        drop(first);
        assert!(Slot::take(&count, 2).is_some());
    }
}
