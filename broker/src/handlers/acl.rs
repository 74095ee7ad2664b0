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
    let (principal, operation, prefix) = (acl.principal.clone(), acl.operation, acl.prefix.clone());
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
        AclOperation::Join => Operation::Join,
        AclOperation::Manage => Operation::Manage,
        AclOperation::Administer => Operation::Administer,
        AclOperation::None => return Err(missing("an operation")),
    };
    let (prefix, other) = match operation {
        Operation::Join => (acl.group_prefix, acl.topic_prefix),
        _ => (acl.topic_prefix, acl.group_prefix),
    };
    if !other.is_empty() {
        let message = "a right to join has a prefix of groups, any other one of topics, and none has both";
        return Err(RequestError::new(ErrorCode::InvalidRequest, message));
    }
    Ok(Acl { principal: acl.principal, operation, prefix })
}

fn shown(acl: &Acl) -> control::Acl {
    let operation = match acl.operation {
        Operation::Produce => AclOperation::Produce,
        Operation::Consume => AclOperation::Consume,
        Operation::Join => AclOperation::Join,
        Operation::Manage => AclOperation::Manage,
        Operation::Administer => AclOperation::Administer,
    };
    let (topic_prefix, group_prefix) = match acl.operation {
        Operation::Join => (String::new(), acl.prefix.clone()),
        _ => (acl.prefix.clone(), String::new()),
    };
    control::Acl { principal: acl.principal.clone(), operation: operation.into(), topic_prefix, group_prefix }
}
