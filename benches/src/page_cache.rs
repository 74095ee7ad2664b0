//! The page cache brought into a known state before a run.
//!
//! A virtual machine gives free memory back to its host after a second or two, and pays for every page that it takes
//! again: the first gigabytes of page cache after idling are ten times slower than those after them. So a process of
//! the benches' own has as much memory in use as a run will need, and lets go of it as the run takes it.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use memmap2::MmapMut;

use crate::child::{self, Child, Role};

const CHUNK_BYTES: u64 = 64 << 20;
const PAGE_BYTES: usize = 4096;
/// Kept free beyond what was free at first: what a run may take before the next look.
const AHEAD_BYTES: u64 = 1 << 30;
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// Memory that is handed to a run as it needs it. To be held until the run is over.
#[derive(Debug)]
#[must_use = "the memory is given back to the host soon after this is dropped"]
pub struct WarmMemory {
    _holder: Child,
}

/// Waits until nothing is left to be written, and has `bytes` of memory, or three quarters of what is free, at hand for
/// the run that follows.
///
/// # Errors
/// If the process that holds it does not start.
pub fn settle(bytes: u64) -> Result<WarmMemory> {
    rustix::fs::sync();
    let (holder, ()) = Child::start(&Role::Memory(bytes + AHEAD_BYTES))?;
    Ok(WarmMemory { _holder: holder })
}

/// What a child does that holds memory.
pub(crate) async fn hold(bytes: u64) -> Result<()> {
    let bytes = bytes.min(free_memory()? / 4 * 3);
    let mut held =
        (0..bytes.div_ceil(CHUNK_BYTES)).map(|_| used_memory()).collect::<Result<Vec<MmapMut>>>()?;
    let floor = free_memory()? + AHEAD_BYTES;
    // Ends with the process.
    thread::spawn(move || {
        while !held.is_empty() {
            match free_memory() {
                Ok(free) if free >= floor => thread::sleep(LOOK_INTERVAL),
                _ => drop(held.pop()),
            }
        }
    });
    child::ready(&()).await
}

/// Memory of its own, which the kernel has back the moment it is dropped: an allocator would keep it.
fn used_memory() -> Result<MmapMut> {
    let mut chunk = MmapMut::map_anon(CHUNK_BYTES as usize)?;
    // One byte a page is enough for the kernel to fill it.
    chunk.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
    Ok(chunk)
}

/// Writes everything back and lets the kernel forget every page that no process has mapped.
///
/// # Errors
/// If this process may not: it takes root.
pub fn drop_all() -> Result<()> {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "1").context("dropping the page cache takes root")
}

/// Bytes that process `pid` had read from the disk for it so far.
///
/// # Errors
/// If the kernel does not count them, or there is no such process.
pub fn read_from_disk(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/io");
    number(Path::new(&path), "read_bytes:")
}

fn free_memory() -> Result<u64> {
    Ok(number(Path::new("/proc/meminfo"), "MemFree:")? * 1024)
}

fn number(path: &Path, key: &str) -> Result<u64> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    parse(&text, key).with_context(|| format!("{} lacks {key}", path.display()))
}

fn parse(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_their_names() {
        let meminfo = "MemTotal:       24000000 kB\nMemFree:        100 kB\n";
        assert_eq!(parse(meminfo, "MemFree:"), Some(100));
        assert_eq!(parse(meminfo, "MemAvailable:"), None);
    }
}
