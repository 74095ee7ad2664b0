//! Which records of a topic are replayed: by key and by header.

use bytes::Bytes;

use crate::consumer::ConsumedRecord;

/// Wants every record until it is told otherwise.
#[derive(Debug, Clone, Default)]
pub(super) struct Filter {
    /// Any of these keys; every one, and none, where this is empty.
    pub keys: Vec<Bytes>,
    /// Each of these headers with its value.
    pub headers: Vec<(String, Bytes)>,
}

impl Filter {
    pub(super) fn is_met_by(&self, record: &ConsumedRecord) -> bool {
        self.has_key(record) && self.headers.iter().all(|(name, value)| has_header(record, name, value))
    }

    fn has_key(&self, record: &ConsumedRecord) -> bool {
        self.keys.is_empty() || record.key.as_ref().is_some_and(|key| self.keys.contains(key))
    }
}

/// A name may stand more than once among a record's headers: one with the value is enough.
fn has_header(record: &ConsumedRecord, name: &str, value: &Bytes) -> bool {
    record.headers.iter().any(|header| header.key == name && header.value.as_ref() == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_protocol::batch::Header;
    use quire_protocol::{Offset, PartitionIndex, Timestamp};

    fn record(key: Option<&'static str>, headers: &[(&str, Option<&'static str>)]) -> ConsumedRecord {
        let header = |(name, value): &(&str, Option<&'static str>)| Header {
            key: (*name).into(),
            value: value.map(Bytes::from),
        };
        ConsumedRecord {
            topic: "t".into(),
            partition: PartitionIndex(0),
            offset: Offset(0),
            timestamp: Timestamp(0),
            key: key.map(Bytes::from),
            value: None,
            headers: headers.iter().map(header).collect(),
        }
    }

    #[test]
    fn without_a_wish_everything_is_wanted() {
        assert!(Filter::default().is_met_by(&record(None, &[])));
    }

    #[test]
    fn one_of_the_keys_is_enough() {
        let filter = Filter { keys: vec!["a".into(), "b".into()], ..Filter::default() };
        for (key, is_wanted) in [(Some("a"), true), (Some("b"), true), (Some("ab"), false), (None, false)] {
            assert_eq!(filter.is_met_by(&record(key, &[])), is_wanted, "{key:?}");
        }
    }

    #[test]
    fn every_header_must_be_there_with_its_value() {
        let headers = vec![("carrier".into(), "UA".into()), ("origin".into(), "EWR".into())];
        let filter = Filter { headers, ..Filter::default() };
        let carrier = ("carrier", Some("UA"));
        for (headers, is_wanted) in [
            (&[carrier, ("origin", Some("EWR"))][..], true),
            (&[("origin", Some("JFK")), carrier, ("origin", Some("EWR"))], true),
            (&[carrier], false),
            (&[carrier, ("origin", None)], false),
            (&[carrier, ("Origin", Some("EWR"))], false),
        ] {
            assert_eq!(filter.is_met_by(&record(None, headers)), is_wanted, "{headers:?}");
        }
    }
}
