//! What can go wrong, an enum for each operation.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use quire_protocol::frame::FrameError;
use quire_protocol::ids::Offset;

use crate::log::NewBatch;
use crate::poison::PoisonReason;

/// A log could not be opened. Nothing was changed that a later attempt would miss.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no log where one is known to be.
    #[error(
        "{directory} holds no log, but this broker kept one there: mount or restore it; it is not begun anew, which \
         would hide what is lost"
    )]
    Missing {
        /// Where the log should be.
        directory: PathBuf,
    },
    /// The file that lists the segments is gone while segments exist: opening would hide them.
    #[error("{manifest} is missing, but {segment} exists: restore the manifest, or move the directory away")]
    ManifestMissing {
        /// The file that should be there.
        manifest: PathBuf,
        /// One segment that is there.
        segment: String,
    },
    /// The file that lists the segments is damaged.
    #[error("{manifest} is damaged ({what}): restore it, or move the directory away")]
    ManifestDamaged {
        /// The damaged file.
        manifest: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The directory holds another partition's log.
    #[error("{directory} holds the log of {found}, not of {expected}")]
    WrongPartition {
        /// The log's directory.
        directory: PathBuf,
        /// Whose log was asked for.
        expected: String,
        /// Whose log it says it is.
        found: String,
    },
    /// The operating system refused.
    #[error("{operation} {path}: {source}")]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What it answered.
        source: io::Error,
    },
}

impl OpenError {
    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> OpenError {
        let path = path.into();
        move |source| OpenError::Io { operation, path, source }
    }
}

/// Batches were not appended; none of them is in the log.
#[derive(Debug, thiserror::Error)]
#[error("{kind}")]
pub struct AppendError {
    /// Why.
    pub kind: AppendErrorKind,
    /// What was to be appended, to try again with.
    pub batches: Vec<NewBatch>,
}

/// Why batches were not appended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendErrorKind {
    /// Space is being made: take the next job, and retry once a completion says there is space.
    #[error("space for the batch is being allocated")]
    NoSpaceYet,
    /// The disk has no room. Retriable later: the next append looks for room again.
    #[error("the disk is full")]
    DiskFull,
    /// The operating system is out of file descriptors or memory. Retriable later: the next append tries again.
    #[error("{0}")]
    Exhausted(String),
    /// A write or a sync failed: the log takes nothing more until it was opened again.
    #[error("the log refuses writes since {0}")]
    Poisoned(Arc<PoisonReason>),
    /// Records that were on disk are damaged: the log serves what is intact and takes nothing more.
    #[error("the log is corrupt")]
    Corrupt,
    /// There are no offsets left.
    #[error("the log has used up its offsets")]
    OffsetsExhausted,
}

/// Frames of a leader were not appended; none of them is in the log.
#[derive(Debug, thiserror::Error)]
#[error("{kind}")]
pub struct AppendFramesError {
    /// Why.
    pub kind: AppendFramesErrorKind,
    /// What was to be appended, to try again with.
    pub frames: Vec<Bytes>,
}

/// Why frames of a leader were not appended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendFramesErrorKind {
    /// As for batches.
    #[error(transparent)]
    Append(#[from] AppendErrorKind),
    /// One is damaged, or another partition's.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// They do not continue the log.
    #[error("the frame at offset {offset} does not continue the log: it has {what}")]
    Unfitting {
        /// The offset of the first that does not.
        offset: Offset,
        /// What does not fit.
        what: &'static str,
    },
}

impl AppendErrorKind {
    /// Whether the same append may succeed later without the log being opened again.
    pub fn is_retriable(&self) -> bool {
        matches!(
            self,
            AppendErrorKind::NoSpaceYet | AppendErrorKind::DiskFull | AppendErrorKind::Exhausted(_)
        )
    }
}

/// Records could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The offset is not, or no longer, or not yet in the log.
    #[error("offset is out of range: the log holds {log_start} to {end} (exclusive)")]
    OutOfRange {
        /// The first offset in the log.
        log_start: Offset,
        /// The next offset to be written.
        end: Offset,
    },
    /// The data may have left the page cache: read again with [`crate::Residency::Any`] on a thread that may block.
    #[error("the data may not be in memory")]
    NotResident,
    /// The bytes on disk are not what was written.
    #[error("damaged record at offset {offset}: {segment}, byte {position}: {what}")]
    Corrupt {
        /// The offset that can not be read.
        offset: Offset,
        /// File name of the segment.
        segment: String,
        /// Where the damaged frame starts in it (bytes).
        position: u64,
        /// What is wrong.
        what: String,
    },
    /// The operating system refused.
    #[error("reading {segment}: {source}")]
    Io {
        /// File name of the segment.
        segment: String,
        /// What it answered.
        source: io::Error,
    },
}

/// A log was not closed cleanly; the next open recovers it.
#[derive(Debug, thiserror::Error)]
pub enum CloseError {
    /// A job is still out whose result the log has not seen.
    #[error("a file job is still under way")]
    JobUnderWay,
    /// An earlier write or sync failed: there is nothing to be trusted that could be marked clean.
    #[error("the log refuses writes since {0}")]
    Poisoned(Arc<PoisonReason>),
    /// Records are damaged; marking the log clean would hide that from the next open.
    #[error("the log is corrupt")]
    Corrupt,
    /// The operating system refused.
    #[error("{operation}: {source}")]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// What it answered.
        source: io::Error,
    },
}
