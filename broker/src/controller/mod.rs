//! The cluster's metadata as the broker uses it: ask for a change, look at the image, follow it.
//!
//! What is decided and how is `quire_engine::controller`; here it is given a log. [`LocalMetadata`] keeps that log
//! alone, for a broker that is its own controller.

mod local;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use quire_engine::controller::{Image, Refusal, Request, Response};
use tokio::sync::watch;

pub use local::{LocalMetadata, LocalMetadataOptions, MetadataOpenError};

/// The cluster's metadata.
pub trait Metadata: std::fmt::Debug + Send + Sync + 'static {
    /// Asks for a change. The answer comes once the change is committed and [`Metadata::image`] shows it; a change that
    /// was refused or failed before that is not in the image.
    fn propose(&self, request: Request) -> BoxFuture<'static, Result<Response, ProposeError>>;

    /// The cluster after everything committed so far. Cheap.
    fn image(&self) -> Arc<Image>;

    /// Follows the image; a receiver that falls behind sees only the newest.
    fn changes(&self) -> watch::Receiver<Arc<Image>>;
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
    /// The broker is shutting down.
    #[error("the broker is shutting down")]
    Stopped,
}
