//! The file system's own limit: the same bytes written to one file, with and without a sync after each write.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// Whether each write is followed by `fdatasync`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Synced {
    /// Into the page cache only.
    No,
    /// Each write on disk before the next.
    Each,
}

/// Appends `count` times `payload` to a new file in `dir` and removes the file again; the time is of the writes alone.
///
/// # Errors
/// As the file system answers.
pub fn append(dir: &Path, payload: &[u8], count: usize, synced: Synced) -> io::Result<Duration> {
    let path = dir.join("bare");
    let mut file = File::create(&path)?;
    let start = Instant::now();
    for _ in 0..count {
        write_all(&mut file, payload)?;
        if synced == Synced::Each {
            file.sync_data()?;
        }
    }
    let took = start.elapsed();
    std::fs::remove_file(&path)?;
    Ok(took)
}

fn write_all(file: &mut File, payload: &[u8]) -> io::Result<()> {
    let written = file.write_vectored(&[IoSlice::new(payload)])?;
    file.write_all(&payload[written..])
}
