//! Tokens with which brokers join the cluster, for administrators alone.

use std::time::Duration;

use quire_engine::controller::image::Operation;
use quire_protocol::ErrorCode;
use quire_protocol::rpc::control::{CreateJoinTokenRequest, CreateJoinTokenResponse};

use crate::cluster;
use crate::error::RequestError;
use crate::net::certificates::ADMINISTRATOR;
use crate::net::connection::Session;

/// Makes a token.
///
/// # Errors
/// If the client is no administrator, the broker is in no cluster, or the cluster does not keep the token.
pub(super) async fn create_token(
    session: &Session,
    asked: CreateJoinTokenRequest,
) -> Result<CreateJoinTokenResponse, RequestError> {
    let (context, principal) = (&session.context, &session.principal);
    let image = context.metadata.image();
    let is_given =
        image.acls().any(|right| right.operation == Operation::Administer && right.principal == *principal);
    if principal != ADMINISTRATOR && !is_given {
        let message = format!("{principal} is no administrator, and may not let brokers into the cluster");
        return Err(RequestError::new(ErrorCode::NotAuthorized, message));
    }
    let alone =
        "this broker is in no cluster: one is founded with 'quire broker --init' in a new data directory";
    let gate = context.gate.as_ref().ok_or_else(|| RequestError::new(ErrorCode::InvalidRequest, alone))?;
    let age = Duration::from_millis(asked.age_ms);
    let token = cluster::issue_token(&*context.metadata, gate.fingerprint(), age).await?;
    tracing::info!(principal, "made a join token");
    Ok(CreateJoinTokenResponse { token: token.to_string() })
}
