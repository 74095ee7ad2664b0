//! The id that a producer's partitions number their batches under: asked for once, when the first stream is opened.

use quire_protocol::ProducerId;
use quire_protocol::rpc::control::{InitProducerRequest, request, response};

use crate::connection::Brokers;
use crate::error::Error;

use super::numbers::Claim;

/// The id in use.
#[derive(Debug, Default)]
pub(super) struct ProducerIds {
    current: tokio::sync::Mutex<Option<ProducerId>>,
}

impl ProducerIds {
    /// The id to open a stream under.
    ///
    /// # Errors
    /// If there is none yet and no broker gives one.
    pub(super) async fn id(&self, brokers: &Brokers, claim: Claim) -> Result<ProducerId, Error> {
        if let Some(id) = claim.id {
            return Ok(id);
        }
        let mut current = self.current.lock().await;
        if let Some(id) = current.filter(|id| claim.used_up != Some(*id)) {
            return Ok(id);
        }
        let body = request::Body::InitProducer(InitProducerRequest {});
        let (answer, connection) = brokers.ask("init producer", body).await?;
        let response::Body::InitProducer(answer) = answer else {
            return Err(connection.protocol("it answered another request than init producer"));
        };
        let id = ProducerId(answer.producer_id);
        if id.0 > i64::MAX as u64 {
            return Err(connection.protocol("it gave a producer id that no batch can name"));
        }
        tracing::debug!(producer = %id, "got a producer id");
        *current = Some(id);
        Ok(id)
    }
}
