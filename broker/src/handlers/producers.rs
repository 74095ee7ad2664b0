//! Ids for producers.

use quire_protocol::rpc::control::InitProducerResponse;

use crate::context::Context;
use crate::error::RequestError;

/// A new producer's id. Its epochs it counts by itself.
///
/// # Errors
/// If there is none to be had at the moment.
pub(super) async fn init(context: &Context) -> Result<InitProducerResponse, RequestError> {
    let id = context.producer_ids.next(&*context.metadata, context.identity.broker).await?;
    Ok(InitProducerResponse { producer_id: id.0, producer_epoch: 0 })
}
