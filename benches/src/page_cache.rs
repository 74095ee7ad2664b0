//! The page cache brought into a known state before a run.
//!
//! A virtual machine gives free memory back to its host after a second or two, and pays for every page that it takes
//! again: the first gigabytes of page cache after idling are ten times slower than those after them. So each run starts
//! with memory that was just in use.

use std::hint::black_box;
use std::path::Path;

use anyhow::{Context, Result};

const CHUNK_BYTES: u64 = 64 << 20;
const PAGE_BYTES: usize = 4096;

/// Waits until nothing is left to be written, then takes `bytes` of memory, or three quarters of what is free, into use
/// and lets go of it.
///
/// # Errors
/// If the system does not say how much memory is free.
pub fn settle(bytes: u64) -> Result<()> {
    rustix::fs::sync();
    let bytes = bytes.min(free_memory()? / 4 * 3);
    let mut held = Vec::new();
    for _ in 0..bytes.div_ceil(CHUNK_BYTES) {
        let mut chunk = vec![0u8; CHUNK_BYTES as usize];
        // One byte a page is enough for the kernel to fill it.
        chunk.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
        held.push(black_box(chunk));
    }
    Ok(())
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
