//! Who may do what. Every request and every stream passes here before anything else is done for it.
//!
//! Rights stand in the metadata; the administrator, whose profile is made with the cluster, has all of them. Whoever has
//! any right on a topic may look at it. Whatever is done with a group takes the right to join it, and what it consumes
//! the right to consume that. Into the brokers' own topics, where every group's offsets are, look administrators alone.

use std::borrow::Cow;

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

fn check_in(image: &Image, principal: &str, operation: Operation, name: &str) -> Result<(), RequestError> {
    if is_allowed(image, principal, operation, name) {
        return Ok(());
    }
    let what = match operation {
        Operation::Produce => format!("produce to topic {name:?}"),
        Operation::Consume => format!("consume topic {name:?}"),
        Operation::Join => format!("join group {name:?}"),
        Operation::Manage => format!("create, alter or delete topic {name:?}"),
        Operation::Administer => "administer the cluster".to_owned(),
    };
    Err(refused(principal, &what, operation, name))
}

fn is_allowed(image: &Image, principal: &str, operation: Operation, name: &str) -> bool {
    image.is_allowed(principal, needed(operation, name), name)
}

/// The right that an operation takes: one given on every topic is not meant for the brokers' own.
fn needed(operation: Operation, name: &str) -> Operation {
    match operation {
        Operation::Join => Operation::Join,
        _ if name.starts_with(INTERNAL_TOPIC_PREFIX) => Operation::Administer,
        other => other,
    }
}

/// Refuses what the session's principal wants to do with a group that it may not join; `what` is said of the group, as
/// "look at".
///
/// # Errors
/// If it may not.
pub(super) fn check_group(session: &Session, what: &str, group: &str) -> Result<(), RequestError> {
    let principal = &session.principal;
    match may_join(&session.context.metadata.image(), principal, group) {
        true => Ok(()),
        false => Err(refused(principal, &format!("{what} group {group:?}"), Operation::Join, group)),
    }
}

/// Whether a principal may join a group, and so know of it.
pub(super) fn may_join(image: &Image, principal: &str, group: &str) -> bool {
    is_allowed(image, principal, Operation::Join, group)
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
        .any(|operation| is_allowed(image, principal, operation, topic))
}

/// Told alike of topics that exist and of those that do not.
pub(super) fn may_not_look(principal: &str, topic: &str) -> RequestError {
    refused(principal, &format!("look at topic {topic:?}"), Operation::Consume, topic)
}

/// With the command that gives the right, on no more than it takes.
fn refused(principal: &str, what: &str, operation: Operation, name: &str) -> RequestError {
    let (right, flag) = match needed(operation, name) {
        Operation::Produce => ("produce", "--prefix"),
        Operation::Consume => ("consume", "--prefix"),
        Operation::Join => ("join", "--group"),
        Operation::Manage => ("manage", "--prefix"),
        Operation::Administer => {
            let message = format!("{principal:?} may not {what}; that takes an administrator");
            return RequestError::new(ErrorCode::NotAuthorized, message);
        }
    };
    // No name that a right is given on has control characters, and none is given on everything.
    let prefix = name.split(char::is_control).next().unwrap_or_default();
    let advice = match prefix {
        "" => "no such name exists".to_owned(),
        prefix => {
            let (principal, prefix) = (quoted(principal), quoted(prefix));
            format!(
                "an administrator gives the right with: quire acl add {principal} {right} {flag} {prefix}"
            )
        }
    };
    RequestError::new(ErrorCode::NotAuthorized, format!("{principal:?} may not {what}; {advice}"))
}

/// As a shell takes it.
fn quoted(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,@%+=".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.into(),
        false => format!("'{}'", text.replace('\'', "'\\''")).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_engine::controller::image::Acl;
    use quire_engine::controller::records::Record;

    #[test]
    fn a_refusal_says_who_what_and_what_to_do() {
        let mut image = Image::default();
        let acl = Acl { principal: "billing".into(), operation: Operation::Consume, prefix: "bill.".into() };
        image.apply(&Record::AclAdded(acl)).expect("a right fits every image");
        assert!(check_in(&image, "billing", Operation::Consume, "bill.eu").is_ok());
        assert!(may_look(&image, "billing", "bill.eu") && !may_look(&image, "billing", "flights"));
        let error = check_in(&image, "billing", Operation::Produce, "bill.eu").expect_err("no such right");
        assert_eq!(error.code, ErrorCode::NotAuthorized);
        assert_eq!(
            error.message,
            "\"billing\" may not produce to topic \"bill.eu\"; an administrator gives the right with: \
             quire acl add billing produce --prefix bill.eu"
        );
        assert!(check_in(&image, "admin", Operation::Administer, "").is_ok());
        assert!(check_in(&image, "billing", Operation::Administer, "").is_err());
    }

    #[test]
    fn no_right_on_everything_is_recommended() {
        let told = |operation, name: &str| {
            check_in(&Image::default(), "ops", operation, name).expect_err("no right").message
        };
        assert_eq!(
            told(Operation::Administer, ""),
            "\"ops\" may not administer the cluster; that takes an administrator"
        );
        assert_eq!(
            told(Operation::Consume, "\n"),
            "\"ops\" may not consume topic \"\\n\"; no such name exists"
        );
    }

    /// The topic where every group's offsets are was read by whoever may consume everything.
    #[test]
    fn administrators_alone_look_into_the_brokers_own_topics() {
        let mut image = Image::default();
        for (principal, operation) in [
            ("all", Operation::Consume),
            ("all", Operation::Manage),
            ("all", Operation::Join),
            ("ops", Operation::Administer),
        ] {
            let acl = Acl { principal: principal.into(), operation, prefix: "".into() };
            image.apply(&Record::AclAdded(acl)).expect("a right fits every image");
        }
        let own = format!("{INTERNAL_TOPIC_PREFIX}consumer_offsets");
        assert!(check_in(&image, "all", Operation::Consume, "flights").is_ok());
        assert!(!may_look(&image, "all", &own) && may_look(&image, "ops", &own));
        assert!(may_join(&image, "all", &own), "a group is no topic");
        let refused = check_in(&image, "all", Operation::Consume, &own).expect_err("not an administrator");
        assert_eq!(
            refused.message,
            "\"all\" may not consume topic \"__consumer_offsets\"; that takes an administrator"
        );
        assert!(check_in(&image, "ops", Operation::Consume, &own).is_ok());
    }

    #[test]
    fn the_command_that_gives_a_right_can_be_copied() {
        let told = |principal: &str, operation, name: &str| {
            let refused = check_in(&Image::default(), principal, operation, name).expect_err("no right");
            let (what, command) = refused.message.split_once("; an administrator gives the right with: ")?;
            Some((what.to_owned(), command.to_owned()))
        };
        let expected = |what: &str, command: &str| Some((what.to_owned(), command.to_owned()));
        assert_eq!(
            told("billing", Operation::Join, "billing"),
            expected(
                "\"billing\" may not join group \"billing\"",
                "quire acl add billing join --group billing"
            )
        );
        assert_eq!(
            told("it's", Operation::Join, "two words"),
            expected(
                "\"it's\" may not join group \"two words\"",
                "quire acl add 'it'\\''s' join --group 'two words'"
            )
        );
        assert_eq!(
            told("billing", Operation::Join, "two\nlines"),
            expected(
                "\"billing\" may not join group \"two\\nlines\"",
                "quire acl add billing join --group two"
            )
        );
    }
}
