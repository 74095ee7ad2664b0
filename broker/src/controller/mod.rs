//! The cluster's metadata as the broker uses it: ask for a change, look at the image, follow it.
//!
//! What is decided and how is `quire_engine::controller`; here it is given a log. [`LocalMetadata`] keeps that log
//! alone, for a broker that is its own controller; [`raft`] keeps it together with others.

mod local;
pub mod raft;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use quire_engine::controller::{Image, Refusal, Request, Response};
use quire_protocol::BrokerId;
use tokio::sync::watch;

pub use local::{LocalMetadata, LocalMetadataOptions, MetadataOpenError};

/// The cluster's metadata.
pub trait Metadata: std::fmt::Debug + Send + Sync + 'static {
    /// Asks for a change, wherever it is decided. The answer comes once the change is committed and this node's
    /// [`Metadata::image`] shows it; a change that was refused or failed before that is not in the image, except after
    /// [`ProposeError::Unknown`].
    fn propose(&self, request: Request) -> BoxFuture<'static, Result<Response, ProposeError>>;

    /// The cluster after everything committed so far. Cheap.
    fn image(&self) -> Arc<Image>;

    /// Follows the image; a receiver that falls behind sees only the newest.
    fn changes(&self) -> watch::Receiver<Arc<Image>>;

    /// Who keeps the metadata, as far as this node knows. Cheap.
    fn quorum(&self) -> Quorum;
}

/// Who keeps the metadata: the nodes of its log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Quorum {
    /// This node.
    pub node: u64,
    /// The node that decides, and its broker; `None` while there is none or it is not known.
    pub leader: Option<(u64, BrokerId)>,
    /// Counts leaderships.
    pub term: u64,
    /// The nodes that elect and commit, by number.
    pub voters: BTreeMap<u64, BrokerId>,
    /// The nodes that only follow, by number.
    pub learners: BTreeMap<u64, BrokerId>,
    /// Entries of the log that this node has applied.
    pub applied: u64,
    /// This node's log failed: it follows no change until the broker is started again.
    pub has_failed: bool,
}

impl Quorum {
    /// Whether this node is the one that decides.
    #[allow(dead_code, reason = "for what users are shown of the cluster")]
    pub fn is_leader(&self) -> bool {
        self.leader.is_some_and(|(node, _)| node == self.node)
    }
}

/// Why a change was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// The controller refused it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The metadata log has no room. Retriable.
    #[error("the disk is full: the cluster's metadata can not change")]
    DiskFull,
    /// The operating system is short of something else. Retriable.
    #[error("the cluster's metadata can not change for now: {what}")]
    Unavailable {
        /// What is lacking.
        what: String,
    },
    /// The metadata log failed; whether the change was kept shows when the broker is started again.
    #[error("the metadata log failed: {what}")]
    Failed {
        /// What failed.
        what: String,
    },
    /// The change may have been made, or may yet be: whoever asked looks at the image before asking again.
    #[error("it is not known whether the cluster's metadata changed: {what}")]
    Unknown {
        /// Why the answer did not come.
        what: String,
    },
    /// The broker is shutting down.
    #[error("the broker is shutting down")]
    Stopped,
}
