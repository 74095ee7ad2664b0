//! What keeps records from being acknowledged, for whoever wants to tell.

use std::sync::Arc;
use std::time::Instant;

use quire_protocol::PartitionIndex;

use crate::error::Error;

/// What keeps a partition's records from being acknowledged at the moment; see
/// [`Producer::obstacles`](super::Producer::obstacles).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Obstacle {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition whose records wait.
    pub partition: PartitionIndex,
    /// What stood in the way last. It can be retried, and is: until the delivery timeout.
    pub error: Error,
    /// Since when nothing was acknowledged that was to be.
    pub since: Instant,
}

impl Obstacle {
    /// One made by hand, for tests of who tells of them.
    pub fn new(topic: &str, partition: PartitionIndex, error: Error, since: Instant) -> Obstacle {
        Obstacle { topic: topic.into(), partition, error, since }
    }
}
