//! Keeps a partition's records: an append-only log of memory-mapped segment files, synchronous and without a clock.
//!
//! One [`Log`] per partition is owned by one thread, which appends to it and never waits for the disk: whatever is
//! slow is handed out as a [`Job`], run on any other thread, and its [`JobDone`] brought back.
//!
//! ```text
//!   owner thread                      flusher threads
//!   append ──► pwritev                                          LogReader (any thread)
//!   next_job ─────────────► Job::run  sync, allocate,   segments ─► map (or pread) ─► checked frames
//!   complete ◄───────────── JobDone   roll, checkpoint
//! ```
//!
//! Where to read on: `log.rs` for the owner's side, `jobs.rs` for what runs elsewhere, `reader.rs` for reads,
//! `recovery.rs` for what a start trusts, `FORMAT.md` for the files.

mod checkpoint;
pub mod disk;
pub mod epochs;
mod error;
mod frames;
#[cfg(test)]
mod frozen;
mod index;
pub mod inspect;
mod jobs;
mod log;
mod manifest;
mod mmap;
mod poison;
mod producers;
mod reader;
mod recency;
mod recovery;
mod retention;
mod segment;
mod shared;
pub mod small_file;
mod suspicion;
mod unwritten;

pub use error::{
    AppendError, AppendErrorKind, AppendFramesError, AppendFramesErrorKind, CloseError, OpenError, ReadError,
};
pub use jobs::{Job, JobDone, JobKind};
pub use log::{AppendContext, CompactionSettings, Completed, Log, LogOptions, NewBatch, Want};
pub use poison::PoisonReason;
pub use producers::ProducerSnapshot;
pub use reader::{Frames, LogReader, ReadAhead, Residency, Scrub, Scrubbed, Slice};
pub use recovery::{Corruption, RecoveryReport, TornTail};
pub use retention::remove_log;
pub use suspicion::Suspicion;
