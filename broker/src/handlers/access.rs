//! Who may do what. Every request and every stream passes here before anything else is done for it.
//!
//! Rights stand in the metadata; the administrator, whose profile is made with the cluster, has all of them. Whoever has
//! any right on a topic may look at it.

use quire_engine::controller::Image;
use quire_engine::controller::image::Operation;
use quire_protocol::{ErrorCode, INTERNAL_TOPIC_PREFIX, TopicPartition};

use crate::error::RequestError;
use crate::net::connection::Session;

/// Refuses what the session's principal has no right to; the name is empty for what concerns the whole cluster.
///
/// # Errors
/// If it has none.
pub(super) fn check(session: &Session, operation: Operation, topic: &str) -> Result<(), RequestError> {
    check_in(&session.context.metadata.image(), &session.principal, operation, topic)
}

fn check_in(image: &Image, principal: &str, operation: Operation, topic: &str) -> Result<(), RequestError> {
    if image.is_allowed(principal, operation, topic) {
        return Ok(());
    }
    let (what, right) = match operation {
        Operation::Produce => (format!("produce to topic \"{topic}\""), "produce"),
        Operation::Consume => (format!("consume topic \"{topic}\""), "consume"),
        Operation::Manage => (format!("create, alter or delete topic \"{topic}\""), "manage"),
        Operation::Administer => ("administer the cluster".to_owned(), "administer"),
    };
    Err(refused(principal, &what, right))
}

/// Refuses a stream of a partition whose topic the principal has no right to. A topic that does not exist is refused
/// elsewhere, except to those who could not know.
///
/// # Errors
/// If it has none.
pub(super) fn check_partition(
    session: &Session,
    operation: Operation,
    id: TopicPartition,
) -> Result<(), RequestError> {
    let image = session.context.metadata.image();
    match image.topic(id.topic) {
        // What is in there is the brokers' own: nobody else writes it.
        Some(topic) if operation == Operation::Produce && topic.name.starts_with(INTERNAL_TOPIC_PREFIX) => {
            let message = format!("only brokers write to \"{}\"", topic.name);
            Err(RequestError::new(ErrorCode::NotAuthorized, message))
        }
        Some(topic) => check_in(&image, &session.principal, operation, &topic.name),
        // Its deletion is no secret to whoever knows its id.
        None => Ok(()),
    }
}

/// Whether a principal may know of a topic: whether it has any right on it.
pub(super) fn may_look(image: &Image, principal: &str, topic: &str) -> bool {
    [Operation::Produce, Operation::Consume, Operation::Manage]
        .into_iter()
        .any(|operation| image.is_allowed(principal, operation, topic))
}

/// Told alike of topics that exist and of those that do not.
pub(super) fn may_not_look(principal: &str, topic: &str) -> RequestError {
    refused(principal, &format!("look at topic \"{topic}\""), "consume")
}

fn refused(principal: &str, what: &str, right: &str) -> RequestError {
    let message = format!(
        "\"{principal}\" may not {what}; an administrator gives the right with: quire acl add {principal} {right}"
    );
    RequestError::new(ErrorCode::NotAuthorized, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_engine::controller::image::Acl;
    use quire_engine::controller::records::Record;

    #[test]
    fn a_refusal_says_who_what_and_what_to_do() {
        let mut image = Image::default();
        let acl =
            Acl { principal: "billing".into(), operation: Operation::Consume, topic_prefix: "bill.".into() };
        image.apply(&Record::AclAdded(acl)).expect("a right fits every image");
        assert!(check_in(&image, "billing", Operation::Consume, "bill.eu").is_ok());
        assert!(may_look(&image, "billing", "bill.eu") && !may_look(&image, "billing", "flights"));
        let error = check_in(&image, "billing", Operation::Produce, "bill.eu").expect_err("no such right");
        assert_eq!(error.code, ErrorCode::NotAuthorized);
        assert_eq!(
            error.message,
            "\"billing\" may not produce to topic \"bill.eu\"; an administrator gives the right with: \
             quire acl add billing produce"
        );
        assert!(check_in(&image, "admin", Operation::Administer, "").is_ok());
        assert!(check_in(&image, "billing", Operation::Administer, "").is_err());
    }
}
