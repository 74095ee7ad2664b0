//! The ids that this broker gives to producers: out of blocks that the controller hands out, so that no two producers of the
//! cluster ever share one. What is left of a block when the broker stops is lost; there are enough.

use std::ops::Range;

use quire_engine::controller::{Request, Response};
use quire_protocol::{BrokerId, ErrorCode, ProducerId};
use tokio::sync::Mutex;

use crate::controller::Metadata;
use crate::error::RequestError;

/// What is left of the block in use.
#[derive(Debug, Default)]
pub(crate) struct ProducerIds {
    /// Locked while a block is asked for, so that a burst of producers asks for one.
    block: Mutex<Range<u64>>,
}

impl ProducerIds {
    /// An id that nobody had before.
    ///
    /// # Errors
    /// If the block is used up and the controller hands out no other.
    pub(crate) async fn next(
        &self,
        metadata: &dyn Metadata,
        broker: BrokerId,
    ) -> Result<ProducerId, RequestError> {
        let mut block = self.block.lock().await;
        if let Some(id) = block.next() {
            return Ok(ProducerId(id));
        }
        let epoch = metadata.image().broker(broker).map(|broker| broker.epoch);
        let Some(epoch) = epoch else {
            let message = "the broker is not registered yet, and gives no ids to producers";
            return Err(RequestError::new(ErrorCode::Unavailable, message));
        };
        match metadata.propose(Request::AllocateProducerIds { broker, epoch }).await? {
            Response::ProducerIds { first, count } => *block = first..first.saturating_add(count),
            other => {
                tracing::error!(?other, "a request for producer ids was answered with something else");
            }
        }
        block.next().map(ProducerId).ok_or_else(|| {
            RequestError::new(ErrorCode::Internal, "the controller handed out a block without producer ids")
        })
    }
}
