//! The small files beside the log: whose directory it is, the vote, the newest snapshot.
//!
//! ```text
//! <data>/metadata/  node       drawn when the directory was formatted; written last, so that it means all is there
//!                   vote       this node's word in the last election; replaced before it is given
//!                   snapshot   what the log begins with
//!                   journal/   the log
//! ```
//! The node's word and its log belong together: without one of them it could vote twice in a term, or deny entries that
//! it had acknowledged. So a directory that lacks either is refused, and never begun anew under the same node id.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use quire_protocol::limits;
use quire_protocol::rpc::raft as wire;
use quire_storage::disk::Disk;
use quire_storage::small_file::{self, Format, LoadError};

use super::types::Vote;
use super::wire as convert;

const NODE: &str = "node";
const NODE_FORMAT: Format = Format { magic: *b"QRND", version: 1, body_len_max: 1024 };
const VOTE: &str = "vote";
const VOTE_FORMAT: Format = Format { magic: *b"QRVT", version: 1, body_len_max: 1024 };
const SNAPSHOT: &str = "snapshot";
const SNAPSHOT_FORMAT: Format =
    Format { magic: *b"QRSN", version: 1, body_len_max: limits::METADATA_SNAPSHOT_BYTES_MAX };

/// The directory of a node's metadata.
#[derive(Debug, Clone)]
pub(super) struct Files {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

/// A small file that must be there gave nothing.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct FileError {
    /// Which one.
    pub path: PathBuf,
    /// Why.
    pub source: LoadError,
}

impl Files {
    pub(super) fn new(disk: Arc<dyn Disk>, dir: PathBuf) -> Files {
        Files { disk, dir }
    }

    pub(super) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn journal_dir(&self) -> PathBuf {
        self.dir.join("journal")
    }

    /// The node whose directory it is; `None` if it never was made one, or not completely.
    pub(super) fn node(&self) -> Result<Option<u64>, FileError> {
        match small_file::load(&*self.disk, &self.dir, NODE, NODE_FORMAT) {
            Ok(body) => self.decode::<wire::Node>(NODE, &Bytes::from(body)).map(|node| Some(node.id)),
            Err(LoadError::Missing) => Ok(None),
            Err(source) => Err(self.error(NODE, source)),
        }
    }

    pub(super) fn store_node(&self, id: u64) -> io::Result<()> {
        let body = wire::Node { id }.encode_to_vec();
        small_file::replace(&*self.disk, &self.dir, NODE, NODE_FORMAT, &body)
    }

    /// This node's vote; `None` if it gave none yet.
    pub(super) fn vote(&self) -> Result<Option<Vote>, FileError> {
        let body = small_file::load(&*self.disk, &self.dir, VOTE, VOTE_FORMAT)
            .map_err(|source| self.error(VOTE, source))?;
        if body.is_empty() {
            return Ok(None);
        }
        self.decode(VOTE, &Bytes::from(body)).map(|vote| Some(convert::to_vote(vote)))
    }

    /// Durable when it returns.
    pub(super) fn store_vote(&self, vote: Option<&Vote>) -> io::Result<()> {
        let body = vote.map(|vote| convert::from_vote(vote).encode_to_vec()).unwrap_or_default();
        small_file::replace(&*self.disk, &self.dir, VOTE, VOTE_FORMAT, &body)
    }

    /// The newest snapshot, if there ever was one.
    pub(super) fn snapshot(&self) -> Result<Option<Bytes>, FileError> {
        match small_file::load(&*self.disk, &self.dir, SNAPSHOT, SNAPSHOT_FORMAT) {
            Ok(body) => Ok(Some(Bytes::from(body))),
            Err(LoadError::Missing) => Ok(None),
            Err(source) => Err(self.error(SNAPSHOT, source)),
        }
    }

    /// Durable when it returns.
    pub(super) fn store_snapshot(&self, body: &[u8]) -> io::Result<()> {
        if body.len() > limits::METADATA_SNAPSHOT_BYTES_MAX {
            let what = format!("a snapshot of {} bytes exceeds the limit", body.len());
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
        }
        small_file::replace(&*self.disk, &self.dir, SNAPSHOT, SNAPSHOT_FORMAT, body)
    }

    fn decode<M: Message + Default>(&self, name: &str, body: &Bytes) -> Result<M, FileError> {
        convert::decode(body).map_err(|_| self.error(name, LoadError::Damaged("not what it should be")))
    }

    fn error(&self, name: &str, source: LoadError) -> FileError {
        FileError { path: self.dir.join(name), source }
    }
}
