//! What is remembered of a partition's producers, stored beside its log: bytes that are their owner's to understand, and
//! the offset up to which they cover the log.
//!
//! It is derived from the frames and never newer than they are: it is written once all it covers is durable, and taken
//! away before a cut that reaches below it. So what lies between it and the log's end can be read to bring it up to
//! date. Drawn in `FORMAT.md`.

use std::io;
use std::path::Path;

use bytes::Bytes;
use quire_protocol::ids::Offset;
use quire_protocol::limits;

use crate::disk::Disk;
use crate::small_file::{self, Format, LoadError};

/// Name of the file in the partition's directory.
pub(crate) const FILE_NAME: &str = "producers";

const HEAD_LEN: usize = 8;
const FORMAT: Format =
    Format { magic: *b"QPRO", version: 1, body_len_max: HEAD_LEN + limits::PRODUCER_SNAPSHOT_BYTES_MAX };

/// What was known of a partition's producers at one point of its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerSnapshot {
    /// The offset after the last record that it knows of.
    pub covers: Offset,
    /// What is known.
    pub bytes: Bytes,
}

impl ProducerSnapshot {
    /// Replaces the partition's file, durably. Only what is durable may be covered.
    pub(crate) fn store(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        let mut body = Vec::with_capacity(HEAD_LEN + self.bytes.len());
        body.extend_from_slice(&self.covers.0.to_le_bytes());
        body.extend_from_slice(&self.bytes);
        small_file::replace(disk, dir, FILE_NAME, FORMAT, &body)
    }

    /// The partition's file. A damaged one is as good as none: it can be made again.
    pub(crate) fn load(disk: &dyn Disk, dir: &Path) -> io::Result<Option<ProducerSnapshot>> {
        let body = match small_file::load(disk, dir, FILE_NAME, FORMAT) {
            Ok(body) => Bytes::from(body),
            Err(LoadError::Io(error)) => return Err(error),
            Err(LoadError::Missing) => return Ok(None),
            Err(error @ (LoadError::Damaged(_) | LoadError::Version { .. })) => {
                tracing::warn!(log = %dir.display(), %error, "what is known of the producers is rebuilt");
                return Ok(None);
            }
        };
        Ok(covers(&body).map(|covers| ProducerSnapshot { covers, bytes: body.slice(HEAD_LEN..) }))
    }

    /// Takes the file away, durably, if it covers more than `end`, or can not be read.
    pub(crate) fn remove_beyond(disk: &dyn Disk, dir: &Path, end: Offset) -> io::Result<()> {
        match small_file::load(disk, dir, FILE_NAME, FORMAT) {
            Ok(body) if covers(&body).is_some_and(|covers| covers <= end) => Ok(()),
            Err(LoadError::Missing) => Ok(()),
            Err(LoadError::Io(error)) => Err(error),
            _ => small_file::remove(disk, dir, FILE_NAME).map(drop),
        }
    }
}

fn covers(body: &[u8]) -> Option<Offset> {
    let head = body.first_chunk::<HEAD_LEN>()?;
    Some(Offset(u64::from_le_bytes(*head))).filter(|covers| *covers <= Offset::MAX)
}
