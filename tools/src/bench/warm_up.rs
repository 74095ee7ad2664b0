//! Warms the page cache: the first gigabytes after idling are several times slower on a virtual machine, whose host hands
//! out memory only when it is used.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::machine;
use super::random::incompressible;
use crate::failure::{Failure, describe_io};

const CHUNK_BYTES: usize = 4 * 1024 * 1024;
/// A sync after so many bytes: the disk keeps up, and an interruption waits for little.
const SYNC_BYTES: u64 = 64 * 1024 * 1024;
/// What is warmed unless told otherwise (bytes), and the part of free memory that it must not exceed.
const DEFAULT_BYTES: u64 = 2 * 1024 * 1024 * 1024;
const MEMORY_SHARE: u64 = 4;

/// What is warmed unless told otherwise (bytes).
pub fn default_bytes() -> u64 {
    machine::memory_available().map_or(0, |available| DEFAULT_BYTES.min(available / MEMORY_SHARE))
}

/// Writes and syncs so many bytes into a file in `folder`, which is removed again. Ends early when dropped.
///
/// # Errors
/// If they can not be written.
pub async fn page_cache(folder: &Path, bytes: u64) -> Result<(), Failure> {
    let is_over = Arc::new(AtomicBool::new(false));
    let _ends = EndsWhenDropped(Arc::clone(&is_over));
    let path = folder.join("page-cache-warm-up");
    let written = tokio::task::spawn_blocking(move || {
        let written = File::create(&path).and_then(|file| write(file, bytes, &is_over));
        // The folder goes as a whole if this fails.
        let _ = std::fs::remove_file(&path);
        written.map_err(|error| (path, error))
    });
    let written =
        written.await.map_err(|error| Failure::failed(format!("warming the page cache: {error}")))?;
    written.map_err(|(path, error)| {
        Failure::failed(format!("{}: {}", path.display(), describe_io(&error)))
            .hint("choose a roomier place with --data DIR, or go without: --no-page-cache-warm-up")
    })
}

struct EndsWhenDropped(Arc<AtomicBool>);

impl Drop for EndsWhenDropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn write(mut file: File, bytes: u64, is_over: &AtomicBool) -> io::Result<()> {
    let chunk = incompressible(CHUNK_BYTES, bytes);
    let mut written = 0;
    while written < bytes && !is_over.load(Ordering::Acquire) {
        let length = (bytes - written).min(CHUNK_BYTES as u64);
        file.write_all(&chunk[..length as usize])?;
        written += length;
        if written.is_multiple_of(SYNC_BYTES) {
            file.sync_data()?;
        }
    }
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_left_behind() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        page_cache(folder.path(), 5 * 1024 * 1024 + 1).await.expect("there is room");
        assert_eq!(std::fs::read_dir(folder.path()).expect("it is there").count(), 0);
        let failure = page_cache(Path::new("/nowhere"), 1).await.expect_err("there is no such folder");
        assert!(failure.to_string().contains("--no-page-cache-warm-up"), "{failure}");
    }

    #[test]
    fn every_byte_is_written_unless_it_is_over() {
        let length = |is_over| {
            let file = tempfile::tempfile().expect("a temporary file");
            let same = file.try_clone().expect("descriptors can be had");
            write(file, CHUNK_BYTES as u64 + 7, &AtomicBool::new(is_over)).expect("there is room");
            same.metadata().expect("it is open").len()
        };
        assert_eq!((length(false), length(true)), (CHUNK_BYTES as u64 + 7, 0));
    }
}
