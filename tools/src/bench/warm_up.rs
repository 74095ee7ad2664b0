//! Memory made ready before each repetition: a virtual machine gives free memory back to its host after a second or two
//! and pays for every page that it takes again, so that the page cache's first gigabytes are several times slower than
//! what follows.
//!
//! A process of the benchmark's own takes as much memory into use as the repetition may need, and lets go of it as free
//! memory falls: what the brokers and the page cache take then was in use a moment before. It is a process of its own so
//! that its work is nobody's processor time. It holds pages of a file that is in memory alone, punched out one chunk
//! after another: the kernel has them back at once, which an allocator would not promise.

use std::fs::{self, File};
use std::io::{self, Write};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use clap::Args;
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use super::machine;
use crate::failure::{Exit, Failure, describe_io};
use crate::output;

const CHUNK_BYTES: u64 = 64 * 1024 * 1024;
/// What is kept free beyond what was free at first: what a repetition may take before the next look (bytes).
const AHEAD_BYTES: u64 = 256 * 1024 * 1024;
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// What is made ready unless told otherwise (bytes), and the part of available memory that it must not exceed.
const DEFAULT_BYTES: u64 = 4 * 1024 * 1024 * 1024;
const MEMORY_SHARE: u64 = 4;
/// What the process says when it is done.
const READY: &str = "ready\n";

/// What is made ready unless told otherwise (bytes).
pub fn default_bytes() -> u64 {
    machine::memory_available().map_or(0, |available| DEFAULT_BYTES.min(available / MEMORY_SHARE))
}

/// The process that holds memory for a repetition.
#[derive(Debug, Args)]
pub struct HoldArgs {
    /// Bytes to take into use
    #[arg(long, value_name = "BYTES")]
    bytes: u64,
}

/// Memory that was in use a moment before; to be held until the repetition is over.
#[derive(Debug)]
#[must_use = "the memory is given back to the host soon after this is dropped"]
pub struct WarmMemory {
    /// Killed when dropped.
    _process: Child,
    /// Its end, however this process ends, ends the other.
    _stdin: ChildStdin,
}

/// Has so many bytes of memory at hand for what follows.
///
/// # Errors
/// If the process that holds them does not start, or gets no memory.
pub async fn memory(bytes: u64) -> Result<WarmMemory, Failure> {
    let failed = |what: &str| {
        Failure::failed(format!("no memory was made ready: {what}"))
            .hint("make less ready with --page-cache-warm-up SIZE, or go without: --no-page-cache-warm-up")
    };
    let mut process = spawn(bytes).map_err(|error| failed(&describe_io(&error)))?;
    let stdin = process.stdin.take().expect("it is piped");
    let mut stdout = BufReader::new(process.stdout.take().expect("it is piped"));
    let mut line = String::new();
    match stdout.read_line(&mut line).await {
        Ok(_) if line == READY => Ok(WarmMemory { _process: process, _stdin: stdin }),
        _ => Err(failed("see the line above")),
    }
}

fn spawn(bytes: u64) -> io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bench", "hold", "--bytes", &bytes.to_string()]);
    // In a group of its own: Ctrl-C reaches this process alone.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()
}

/// The process's side: takes memory into use, says so, and lets go of it until standard input ends.
///
/// # Errors
/// If there is no memory to be had.
pub async fn hold(args: &HoldArgs) -> Result<Exit, Failure> {
    // The rest of the machine goes on.
    let bytes = args.bytes.min(machine::memory_available().map_or(u64::MAX, |available| available / 4 * 3));
    let held = tokio::task::spawn_blocking(move || Held::take(bytes)).await;
    let held = held.map_err(io::Error::other).flatten();
    let mut held = held.map_err(|error| Failure::failed(describe_io(&error)))?;
    let floor = memory_free().unwrap_or(0) + AHEAD_BYTES;
    output::print(READY)?;
    // Ends with the process.
    thread::spawn(move || {
        while held.bytes > 0 {
            match memory_free() {
                Some(free) if free >= floor => thread::sleep(LOOK_EVERY),
                _ if held.release().is_ok() => {}
                _ => return,
            }
        }
    });
    let _ = tokio::io::stdin().read_to_end(&mut Vec::new()).await;
    Ok(Exit::Done)
}

/// Memory in use.
#[derive(Debug)]
struct Held {
    memory: File,
    /// All before this is held.
    bytes: u64,
}

impl Held {
    fn take(bytes: u64) -> io::Result<Held> {
        let mut memory = File::from(memfd_create("quire-bench", MemfdFlags::CLOEXEC)?);
        let chunk = vec![1; 1024 * 1024];
        let mut held = 0;
        while held < bytes {
            let length = (bytes - held).min(chunk.len() as u64);
            memory.write_all(&chunk[..length as usize])?;
            held += length;
        }
        Ok(Held { memory, bytes })
    }

    /// Gives the last chunk back.
    fn release(&mut self) -> io::Result<()> {
        let start = self.bytes.saturating_sub(CHUNK_BYTES);
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.memory, punch, start, self.bytes - start)?;
        self.bytes = start;
        Ok(())
    }
}

fn memory_free() -> Option<u64> {
    machine::memory(&fs::read_to_string("/proc/meminfo").ok()?, "MemFree:")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_is_held_is_in_use_and_given_back_chunk_by_chunk() {
        let mut held = Held::take(2 * CHUNK_BYTES + 4096).expect("there is memory");
        let used = |held: &Held| held.memory.metadata().expect("it is open").blocks() * 512;
        assert_eq!(used(&held), 2 * CHUNK_BYTES + 4096);
        for left in [CHUNK_BYTES + 4096, 4096, 0] {
            held.release().expect("it can be given back");
            assert_eq!((held.bytes, used(&held)), (left, left));
        }
    }

    #[test]
    fn the_default_leaves_most_of_the_memory_alone() {
        let available = machine::memory_available().expect("the system tells");
        assert!(default_bytes() > 0 && default_bytes() <= available / 2);
    }
}
