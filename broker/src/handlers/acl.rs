//! Rights: given, taken away, listed; by administrators.

use quire_engine::controller::Request;
use quire_engine::controller::image::{Acl, Operation};
use quire_protocol::ErrorCode;
use quire_protocol::rpc::control::{
    self, AclOperation, ChangeAclRequest, ChangeAclResponse, ListAclsResponse,
};

use super::access;
use crate::error::RequestError;
use crate::net::connection::Session;

/// Gives a right, or takes it away.
///
/// # Errors
/// If that is not allowed, or the right makes no sense.
pub(super) async fn change(
    session: &Session,
    request: ChangeAclRequest,
) -> Result<ChangeAclResponse, RequestError> {
    access::check(session, Operation::Administer, "")?;
    let acl = given(request.acl)?;
    let (principal, operation, prefix) = (acl.principal.clone(), acl.operation, acl.topic_prefix.clone());
    let asked = if request.remove { Request::RemoveAcl(acl) } else { Request::AddAcl(acl) };
    session.context.metadata.propose(asked).await?;
    let done = if request.remove { "taken away" } else { "given" };
    tracing::info!(principal, ?operation, prefix, by = session.principal, "a right was {done}");
    Ok(ChangeAclResponse {})
}

/// Every right.
///
/// # Errors
/// If that is not allowed.
pub(super) fn list(session: &Session) -> Result<ListAclsResponse, RequestError> {
    access::check(session, Operation::Administer, "")?;
    let image = session.context.metadata.image();
    Ok(ListAclsResponse { acls: image.acls().map(shown).collect() })
}

fn given(acl: Option<control::Acl>) -> Result<Acl, RequestError> {
    let missing = |what| RequestError::new(ErrorCode::InvalidRequest, format!("the right lacks {what}"));
    let acl = acl.ok_or_else(|| missing("everything"))?;
    let operation = match acl.operation() {
        AclOperation::Produce => Operation::Produce,
        AclOperation::Consume => Operation::Consume,
        AclOperation::Manage => Operation::Manage,
        AclOperation::Administer => Operation::Administer,
        AclOperation::None => return Err(missing("an operation")),
    };
    Ok(Acl { principal: acl.principal, operation, topic_prefix: acl.topic_prefix })
}

fn shown(acl: &Acl) -> control::Acl {
    let operation = match acl.operation {
        Operation::Produce => AclOperation::Produce,
        Operation::Consume => AclOperation::Consume,
        Operation::Manage => AclOperation::Manage,
        Operation::Administer => AclOperation::Administer,
    };
    control::Acl {
        principal: acl.principal.clone(),
        operation: operation.into(),
        topic_prefix: acl.topic_prefix.clone(),
    }
}
