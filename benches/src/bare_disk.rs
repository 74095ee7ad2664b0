//! The file system's own limits: plain writes and syncs of the same bytes, by as many threads as help.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

/// When what was written is put on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Synced {
    /// When the kernel sees fit.
    No,
    /// Each write before the next, by `fdatasync`.
    Each,
    /// What there is, once a second, by `fdatasync` of another thread.
    EverySecond,
}

/// What is written.
#[derive(Debug, Clone)]
pub struct Appends {
    /// What one write writes.
    pub payload: Bytes,
    /// Writes, over all files.
    pub count: u64,
    /// Files, written in turn.
    pub files: usize,
    /// When it is put on the disk.
    pub synced: Synced,
}

const SYNC_INTERVAL: Duration = Duration::from_secs(1);

impl Appends {
    /// Appends to new files in `dir` and removes them again; the time is of the writes, and syncs, alone.
    ///
    /// Synced writes have a thread a file, since they wait; others a thread a core.
    ///
    /// # Errors
    /// As the file system answers.
    pub fn run(&self, dir: &Path) -> io::Result<Duration> {
        let paths: Vec<_> = (0..self.files).map(|number| dir.join(format!("bare-{number}"))).collect();
        let files: Vec<_> = paths.iter().map(File::create).collect::<Result<_, _>>()?;
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let writers = if self.synced == Synced::Each { self.files } else { self.files.min(cores) };
        let took = self.write(&files, writers)?;
        paths.iter().try_for_each(std::fs::remove_file)?;
        Ok(took)
    }

    fn write(&self, files: &[File], writers: usize) -> io::Result<Duration> {
        let shares: Vec<_> = files.chunks(files.len().div_ceil(writers)).collect();
        let ended = AtomicBool::new(false);
        let start = Instant::now();
        thread::scope(|scope| {
            let syncing =
                (self.synced == Synced::EverySecond).then(|| scope.spawn(|| sync_until(&ended, files)));
            let writing: Vec<_> = shares
                .iter()
                .map(|share| {
                    let count = self.count * share.len() as u64 / files.len() as u64;
                    scope.spawn(move || self.write_in_turn(share, count))
                })
                .collect();
            let written: io::Result<()> = writing.into_iter().try_for_each(joined);
            let took = start.elapsed();
            ended.store(true, Ordering::Release);
            if let Some(syncing) = syncing {
                syncing.thread().unpark();
                joined(syncing)?;
            }
            written.map(|()| took)
        })
    }

    fn write_in_turn(&self, files: &[File], count: u64) -> io::Result<()> {
        for mut file in files.iter().cycle().take(count as usize) {
            append(&mut file, &self.payload)?;
            if self.synced == Synced::Each {
                file.sync_data()?;
            }
        }
        Ok(())
    }
}

fn joined(thread: thread::ScopedJoinHandle<'_, io::Result<()>>) -> io::Result<()> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn sync_until(ended: &AtomicBool, files: &[File]) -> io::Result<()> {
    loop {
        thread::park_timeout(SYNC_INTERVAL);
        if ended.load(Ordering::Acquire) {
            return Ok(());
        }
        files.iter().try_for_each(File::sync_data)?;
    }
}

/// One `pwritev`, and what it left over.
fn append(file: &mut impl Write, payload: &[u8]) -> io::Result<()> {
    let written = file.write_vectored(&[IoSlice::new(payload)])?;
    file.write_all(&payload[written..])
}

/// A file whose blocks are written already, so that a sync over them commits no journal: the least a synced write costs.
#[derive(Debug)]
pub struct WrittenFile {
    file: File,
    path: PathBuf,
}

impl WrittenFile {
    /// Makes one of `bytes` zeros in `dir`.
    ///
    /// # Errors
    /// As the file system answers.
    pub fn create(dir: &Path, bytes: u64) -> io::Result<WrittenFile> {
        let path = dir.join("written");
        let mut file = File::create(&path)?;
        io::copy(&mut io::repeat(0).take(bytes), &mut file)?;
        file.sync_all()?;
        Ok(WrittenFile { file: File::options().write(true).open(&path)?, path })
    }

    /// Writes `payload` behind what was written before, and puts it on the disk.
    ///
    /// # Errors
    /// As the file system answers.
    pub fn append_synced(&mut self, payload: &[u8]) -> io::Result<()> {
        append(&mut self.file, payload)?;
        self.file.sync_data()
    }
}

impl Drop for WrittenFile {
    fn drop(&mut self) {
        // The folder goes too.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Appends `payload` to each of `files` new files and syncs it, `rounds` times, with a pool of `threads`; how long each
/// round took.
///
/// # Errors
/// As the file system answers.
pub fn flush_rounds(
    dir: &Path,
    payload: &[u8],
    files: usize,
    threads: usize,
    rounds: usize,
) -> io::Result<Vec<Duration>> {
    let dir = tempfile::tempdir_in(dir)?;
    let path = |number: usize| dir.path().join(number.to_string());
    let files: Vec<_> = (0..files).map(|number| File::create(path(number))).collect::<Result<_, _>>()?;
    let (next, barrier) = (AtomicUsize::new(0), Barrier::new(threads + 1));
    thread::scope(|scope| {
        let flush = || -> io::Result<()> {
            let mut outcome = Ok(());
            for _ in 0..rounds {
                barrier.wait();
                while let Some(mut file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    outcome = outcome.and(append(&mut file, payload)).and(file.sync_data());
                }
                barrier.wait();
            }
            outcome
        };
        let flushers: Vec<_> = (0..threads).map(|_| scope.spawn(flush)).collect();
        let took = (0..rounds)
            .map(|_| {
                next.store(0, Ordering::Relaxed);
                let start = Instant::now();
                barrier.wait();
                barrier.wait();
                start.elapsed()
            })
            .collect();
        flushers.into_iter().try_for_each(joined)?;
        Ok(took)
    })
}

/// Reads these files from their beginning to their end, one after another; the bytes there were, and the time.
///
/// # Errors
/// As the file system answers.
pub fn read_all(files: &[PathBuf]) -> io::Result<(u64, Duration)> {
    let mut buffer = vec![0; READ_BYTES];
    let (start, mut total) = (Instant::now(), 0);
    for path in files {
        let mut file = File::open(path)?;
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            total += read as u64;
        }
    }
    Ok((total, start.elapsed()))
}

const READ_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_written_and_removed() {
        let dir = tempfile::tempdir().expect("a folder");
        for (files, synced) in [(1, Synced::No), (3, Synced::Each), (8, Synced::EverySecond)] {
            let appends = Appends { payload: Bytes::from_static(b"bare"), count: 24, files, synced };
            assert!(appends.run(dir.path()).expect("space") > Duration::ZERO);
            assert_eq!(std::fs::read_dir(dir.path()).expect("it is there").count(), 0);
        }
    }

    #[test]
    fn a_round_flushes_every_file_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let rounds = flush_rounds(dir.path(), b"bare", 10, 3, 4).expect("space");
        assert_eq!(rounds.len(), 4);
    }

    #[test]
    fn files_are_read_to_their_end() {
        let dir = tempfile::tempdir().expect("a folder");
        let paths = [dir.path().join("a"), dir.path().join("b")];
        std::fs::write(&paths[0], [1; 5]).and(std::fs::write(&paths[1], [2; 7])).expect("space");
        assert_eq!(read_all(&paths).expect("they are there").0, 12);
    }
}
