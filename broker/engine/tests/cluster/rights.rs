//! Rights: given by prefix, of topics and of groups, and kept as they were by logs of every age.

use prost::Message;
use quire_engine::controller::image::{Acl, Operation};
use quire_engine::controller::{Record, Refusal, Request};
use quire_protocol::{limits, rpc::metadata as stored};

use super::Cluster;

fn acl(principal: &str, operation: Operation, prefix: &str) -> Acl {
    Acl { principal: principal.into(), operation, prefix: prefix.into() }
}

#[test]
fn rights_are_given_by_prefix_and_the_administrator_has_all() {
    let mut cluster = Cluster::empty(5);
    cluster.ask(Request::AddAcl(acl("billing", Operation::Produce, "bill.")));
    cluster.ask(Request::AddAcl(acl("*", Operation::Consume, "public.")));
    cluster.ask(Request::AddAcl(acl("ops", Operation::Administer, "")));
    let image = cluster.image();
    assert!(image.is_allowed("billing", Operation::Produce, "bill.eu"));
    assert!(!image.is_allowed("billing", Operation::Produce, "bills"));
    assert!(!image.is_allowed("billing", Operation::Consume, "bill.eu"));
    assert!(image.is_allowed("anyone", Operation::Consume, "public.news"));
    assert!(image.is_allowed("ops", Operation::Produce, "bill.eu"));
    assert!(image.is_allowed("admin", Operation::Administer, ""));
    assert!(!image.is_allowed("billing", Operation::Administer, ""));
    cluster.ask(Request::RemoveAcl(acl("ops", Operation::Administer, "")));
    assert!(!cluster.image().is_allowed("ops", Operation::Produce, "bill.eu"));
    let again = cluster.try_ask(Request::RemoveAcl(acl("ops", Operation::Administer, "")));
    assert_eq!(again, Err(Refusal::UnknownAcl));
    let odd = cluster.try_ask(Request::AddAcl(acl("ops", Operation::Administer, "bill.")));
    assert!(matches!(odd, Err(Refusal::InvalidAcl { .. })), "{odd:?}");
}

#[test]
fn a_right_to_join_is_of_groups_and_says_nothing_of_topics() {
    let mut cluster = Cluster::empty(5);
    cluster.ask(Request::AddAcl(acl("billing", Operation::Join, "bill")));
    cluster.ask(Request::AddAcl(acl("ops", Operation::Administer, "")));
    let image = cluster.image();
    assert!(image.is_allowed("billing", Operation::Join, "billing"));
    assert!(!image.is_allowed("billing", Operation::Join, "audit"));
    assert!(!image.is_allowed("other", Operation::Join, "billing"));
    assert!(image.is_allowed("ops", Operation::Join, "billing"));
    assert!(image.is_allowed("admin", Operation::Join, "billing"));
    for operation in [Operation::Produce, Operation::Consume, Operation::Manage, Operation::Administer] {
        assert!(!image.is_allowed("billing", operation, "billing"), "{operation:?}");
    }
    cluster.ask(Request::AddAcl(acl("reader", Operation::Consume, "")));
    assert!(!cluster.image().is_allowed("reader", Operation::Join, "billing"), "nor do topics of groups");
    cluster.ask(Request::RemoveAcl(acl("billing", Operation::Join, "bill")));
    assert!(!cluster.image().is_allowed("billing", Operation::Join, "billing"));
}

#[test]
fn a_prefix_that_no_name_begins_with_is_refused() {
    let mut cluster = Cluster::empty(5);
    let topic = "t".repeat(limits::TOPIC_NAME_BYTES_MAX);
    let group = "g".repeat(limits::GROUP_ID_BYTES_MAX);
    cluster.ask(Request::AddAcl(acl("billing", Operation::Consume, &topic)));
    cluster.ask(Request::AddAcl(acl("billing", Operation::Join, &group)));
    let mut why = |acl| match cluster.try_ask(Request::AddAcl(acl)) {
        Err(Refusal::InvalidAcl { why }) => why,
        other => panic!("{other:?}"),
    };
    let long = format!("{topic}t");
    assert_eq!(why(acl("billing", Operation::Consume, &long)), "no topic's name is as long as this prefix");
    let long = format!("{group}g");
    assert_eq!(why(acl("billing", Operation::Join, &long)), "no group's name is as long as this prefix");
    assert_eq!(
        why(acl("billing", Operation::Join, "two\nlines")),
        "no group's name has control characters, as this prefix does"
    );
    assert_eq!(
        why(acl("billing", Operation::Consume, "__consumer_offsets")),
        "topics whose names begin with \"__\" are the brokers' own, for administrators alone"
    );
}

/// Groups came after topics: what was written of these before reads the same.
#[test]
fn a_right_is_stored_as_it_was() {
    let hex = |record: &Record| record.encode().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let consume = Record::AclAdded(acl("billing", Operation::Consume, "bill."));
    assert_eq!(hex(&consume), "6a140a120a0762696c6c696e6710021a0562696c6c2e");
    let join = Record::AclRemoved(acl("billing", Operation::Join, "bill"));
    assert_eq!(hex(&join), "72130a110a0762696c6c696e671005220462696c6c");
    for record in [consume, join] {
        assert_eq!(Record::decode(&record.encode()), Ok(record));
    }
}

#[test]
fn a_stored_right_names_topics_or_groups() {
    let encoded = |operation: stored::AclOperation, topic_prefix: &str, group_prefix: &str| {
        let acl = stored::Acl {
            principal: "billing".into(),
            operation: operation.into(),
            topic_prefix: topic_prefix.into(),
            group_prefix: group_prefix.into(),
        };
        let body = stored::metadata_record::Body::AclAdded(stored::AclAdded { acl: Some(acl) });
        stored::MetadataRecord { body: Some(body) }.encode_to_vec()
    };
    assert!(Record::decode(&encoded(stored::AclOperation::Join, "", "g")).is_ok());
    assert!(Record::decode(&encoded(stored::AclOperation::Join, "t", "g")).is_err());
    assert!(Record::decode(&encoded(stored::AclOperation::Consume, "t", "g")).is_err());
}
