//! Turns lines into records: plain lines, or one JSON object a line.

use std::io::{BufRead, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use quire_protocol::Timestamp;
use quire_protocol::batch::{Header, Record};
use quire_protocol::limits;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::time;

/// How a line becomes a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LineFormat {
    /// The line is the value, or the key and the value around the first separator.
    Lines {
        /// What stands between key and value.
        key_separator: Option<String>,
    },
    /// `{"key","value","timestamp","headers"}`
    Ndjson,
}

/// A record and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputRecord {
    /// Its line, from 1.
    pub line: u64,
    /// The record.
    pub record: Record,
}

/// A line that is no record, or an input that can not be read further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{source_name}:{line}: {what}")]
pub struct InputError {
    /// The input's name.
    pub source_name: String,
    /// The line, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub what: String,
    /// What to do.
    pub advice: String,
}

/// Reads records from lines, stopping for good at the first bad one.
pub struct RecordInput {
    source_name: String,
    format: LineFormat,
    reader: Box<dyn BufRead + Send>,
    line: u64,
    buffer: Vec<u8>,
    ended: bool,
}

impl RecordInput {
    /// Reads from `reader`, which errors call `source_name`.
    pub fn new(source_name: String, format: LineFormat, reader: Box<dyn BufRead + Send>) -> RecordInput {
        RecordInput { source_name, format, reader, line: 0, buffer: Vec::new(), ended: false }
    }

    fn read(&mut self) -> Result<Option<InputRecord>, Problem> {
        loop {
            if !self.next_line()? {
                return Ok(None);
            }
            let record = match &self.format {
                LineFormat::Lines { key_separator } => Some(plain(&self.buffer, key_separator.as_deref())?),
                LineFormat::Ndjson => ndjson(&self.buffer)?,
            };
            if let Some(record) = record {
                return Ok(Some(InputRecord { line: self.line, record }));
            }
        }
    }

    /// Puts the next line into the buffer, without its end; false at the end of the input.
    fn next_line(&mut self) -> Result<bool, Problem> {
        self.buffer.clear();
        self.line += 1;
        let most = limits::INPUT_LINE_BYTES_MAX as u64 + 1;
        let length =
            self.reader.by_ref().take(most).read_until(b'\n', &mut self.buffer).map_err(|error| {
                Problem::new(format!("can not be read: {error}"), "check that the file is whole")
            })?;
        if self.buffer.pop_if(|last| *last == b'\n').is_some() {
            self.buffer.pop_if(|last| *last == b'\r');
        } else if length as u64 == most {
            return Err(Problem::new(
                format!("longer than {} MiB", limits::INPUT_LINE_BYTES_MAX >> 20),
                "no record is that large; check that the input is lines of text",
            ));
        }
        Ok(length > 0)
    }
}

impl Iterator for RecordInput {
    type Item = Result<InputRecord, InputError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.read();
        self.ended = !matches!(next, Ok(Some(_)));
        next.map_err(|problem| InputError {
            source_name: self.source_name.clone(),
            line: self.line,
            what: problem.what,
            advice: problem.advice.to_owned(),
        })
        .transpose()
    }
}

struct Problem {
    what: String,
    advice: &'static str,
}

impl Problem {
    fn new(what: impl Into<String>, advice: &'static str) -> Problem {
        Problem { what: what.into(), advice }
    }
}

fn plain(line: &[u8], key_separator: Option<&str>) -> Result<Record, Problem> {
    let Some(separator) = key_separator else {
        return Ok(Record { value: Some(Bytes::copy_from_slice(line)), ..Record::default() });
    };
    let at = find(line, separator.as_bytes()).ok_or_else(|| {
        Problem::new(
            format!("no key separator {separator:?} in it"),
            "correct the line, or leave --key-separator out to produce lines without keys",
        )
    })?;
    Ok(Record {
        key: Some(Bytes::copy_from_slice(&line[..at])),
        value: Some(Bytes::copy_from_slice(&line[at + separator.len()..])),
        ..Record::default()
    })
}

/// Where `needle`, which is not empty, first stands in `line`.
fn find(line: &[u8], needle: &[u8]) -> Option<usize> {
    line.windows(needle.len()).position(|window| window == needle)
}

const NDJSON_ADVICE: &str = r#"a line is {"key": …, "value": …, "timestamp": …, "headers": {…}}; only value must be there (null is a tombstone)"#;

/// `None` for a blank line.
fn ndjson(line: &[u8]) -> Result<Option<Record>, Problem> {
    if line.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let text = std::str::from_utf8(line).map_err(|error| {
        let column = error.valid_up_to() + 1;
        Problem::new(
            format!("not UTF-8 at column {column}"),
            "put bytes that are no text into \"value_base64\"",
        )
    })?;
    let fields: Fields<'_> =
        serde_json::from_str(text).map_err(|error| Problem::new(describe_json(&error), NDJSON_ADVICE))?;
    let timestamp = fields.timestamp.map(|raw| timestamp(raw.get())).transpose()?;
    if fields.value.is_none() && fields.value_base64.is_none() {
        return Err(Problem::new("no \"value\" in it", NDJSON_ADVICE));
    }
    Ok(Some(Record {
        key: bytes_of("key", fields.key, fields.key_base64.as_deref())?,
        value: bytes_of("value", fields.value, fields.value_base64.as_deref())?,
        timestamp,
        headers: fields.headers.map(|raw| headers(raw.get())).transpose()?.unwrap_or_default(),
    }))
}

/// What `quire consume --json` writes is read too, so that one topic pipes into another.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    key: Option<&'a RawValue>,
    key_base64: Option<String>,
    #[serde(borrow, default, deserialize_with = "present")]
    value: Option<&'a RawValue>,
    value_base64: Option<String>,
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
    #[serde(borrow)]
    headers: Option<&'a RawValue>,
    #[serde(rename = "topic", default)]
    _topic: serde::de::IgnoredAny,
    #[serde(rename = "partition", default)]
    _partition: serde::de::IgnoredAny,
    #[serde(rename = "offset", default)]
    _offset: serde::de::IgnoredAny,
}

/// Tells a null, which is there, from a field that is not.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// A string's text, any other JSON's own text, nothing for null.
fn bytes_of(name: &str, json: Option<&RawValue>, base64: Option<&str>) -> Result<Option<Bytes>, Problem> {
    match (json, base64) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => {
            Err(Problem::new(format!("both \"{name}\" and \"{name}_base64\" in it"), "leave one of them out"))
        }
        (None, Some(base64)) => {
            let bytes = BASE64.decode(base64).map_err(|error| {
                Problem::new(format!("\"{name}_base64\" is not base64: {error}"), "encode it again")
            })?;
            Ok(Some(Bytes::from(bytes)))
        }
        (Some(json), None) => text_of(json.get()),
    }
}

fn text_of(json: &str) -> Result<Option<Bytes>, Problem> {
    if json == "null" {
        return Ok(None);
    }
    if !json.starts_with('"') {
        return Ok(Some(Bytes::copy_from_slice(json.as_bytes())));
    }
    let text: String =
        serde_json::from_str(json).map_err(|error| Problem::new(describe_json(&error), NDJSON_ADVICE))?;
    Ok(Some(Bytes::from(text)))
}

fn timestamp(json: &str) -> Result<Timestamp, Problem> {
    let parsed = match serde_json::from_str(json) {
        Ok(serde_json::Value::Number(millis)) => millis.as_i64().filter(|millis| *millis >= 0).map(Timestamp),
        Ok(serde_json::Value::String(text)) => time::parse(&text).filter(|moment| moment.0 >= 0),
        _ => None,
    };
    parsed.ok_or_else(|| {
        Problem::new(
            format!("\"timestamp\" is {}", json.chars().take(48).collect::<String>()),
            "give milliseconds since 1970 (1357035420000) or RFC 3339 (\"2013-01-01T10:17:00Z\")",
        )
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderFields<'a> {
    key: String,
    #[serde(borrow, default, deserialize_with = "present")]
    value: Option<&'a RawValue>,
    value_base64: Option<String>,
}

/// `{"name": value…}`, or `[{"key", "value"}…]` where names repeat.
fn headers(json: &str) -> Result<Vec<Header>, Problem> {
    const ADVICE: &str = r#"give headers as {"name": "value"} or [{"key": "name", "value": "value"}]"#;
    let wrong =
        |error: &serde_json::Error| Problem::new(format!("headers: {}", describe_json(error)), ADVICE);
    if json.starts_with('{') {
        let map: NamedHeaders = serde_json::from_str(json).map_err(|error| wrong(&error))?;
        return Ok(map.0);
    }
    let list: Vec<HeaderFields<'_>> = serde_json::from_str(json).map_err(|error| wrong(&error))?;
    list.into_iter()
        .map(|header| {
            let value = bytes_of("value", header.value, header.value_base64.as_deref())?;
            Ok(Header { key: header.key, value })
        })
        .collect()
}

/// A JSON object read as headers, in its order.
struct NamedHeaders(Vec<Header>);

impl<'de> Deserialize<'de> for NamedHeaders {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NamedHeaders, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = NamedHeaders;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of headers")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<NamedHeaders, A::Error> {
                let mut headers = Vec::new();
                while let Some((key, json)) = map.next_entry::<String, &RawValue>()? {
                    let value =
                        text_of(json.get()).map_err(|problem| serde::de::Error::custom(problem.what))?;
                    headers.push(Header { key, value });
                }
                Ok(NamedHeaders(headers))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// serde_json's sentence with the column only, since each line is parsed alone.
fn describe_json(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column ", " at column ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(format: LineFormat, text: &[u8]) -> Vec<Result<InputRecord, InputError>> {
        RecordInput::new("in".into(), format, Box::new(std::io::Cursor::new(text.to_vec()))).collect()
    }

    fn one(line: &str) -> Result<Record, InputError> {
        let mut records = read(LineFormat::Ndjson, line.as_bytes());
        assert_eq!(records.len(), 1, "{line}");
        records.remove(0).map(|input| input.record)
    }

    fn bytes(text: &str) -> Option<Bytes> {
        Some(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn lines_are_values_with_or_without_a_last_line_end() {
        let values: Vec<_> = read(LineFormat::Lines { key_separator: None }, b"one\r\n\ntwo")
            .into_iter()
            .map(|record| record.expect("a line is a record"))
            .map(|record| (record.line, record.record.value))
            .collect();
        assert_eq!(values, [(1, bytes("one")), (2, bytes("")), (3, bytes("two"))]);
    }

    #[test]
    fn the_first_separator_parts_key_and_value() {
        let format = LineFormat::Lines { key_separator: Some("::".into()) };
        let records = read(format, b"a::b::c\n::d\nno\nnever read\n");
        let first = records[0].as_ref().expect("a record");
        assert_eq!((&first.record.key, &first.record.value), (&bytes("a"), &bytes("b::c")));
        let second = records[1].as_ref().expect("a record");
        assert_eq!((&second.record.key, &second.record.value), (&bytes(""), &bytes("d")));
        let error = records[2].as_ref().expect_err("no separator");
        assert_eq!(error.to_string(), "in:3: no key separator \"::\" in it");
        assert_eq!(records.len(), 3, "it stops at the first bad line");
    }

    #[test]
    fn a_json_value_keeps_its_own_text() {
        let record =
            one(r#"{"timestamp":1357035420000,"key":"N1","value":{"b": 1.50,"a":[ ]}}"#).expect("valid");
        assert_eq!(record.key, bytes("N1"));
        assert_eq!(record.value, bytes(r#"{"b": 1.50,"a":[ ]}"#));
        assert_eq!(record.timestamp, Some(Timestamp(1_357_035_420_000)));
        assert_eq!(one(r#"{"value":"a\nb é"}"#).expect("valid").value, bytes("a\nb é"));
        assert_eq!(one(r#"{"value":12.0e3}"#).expect("valid").value, bytes("12.0e3"));
        assert_eq!(one(r#"{"key":7,"value":null}"#).map(|r| (r.key, r.value)), Ok((bytes("7"), None)));
        assert_eq!(one(r#"{"value_base64":"//4="}"#).expect("valid").value, Some(vec![0xff, 0xfe].into()));
    }

    #[test]
    fn times_are_milliseconds_or_rfc_3339() {
        let at = |json: &str| one(&format!(r#"{{"value":"x","timestamp":{json}}}"#)).map(|r| r.timestamp);
        assert_eq!(at("5"), Ok(Some(Timestamp(5))));
        assert_eq!(at("null"), Ok(None));
        assert_eq!(at("\"1970-01-01T00:00:01+00:00\""), Ok(Some(Timestamp(1000))));
        for wrong in ["-1", "1.5", "\"noon\"", "true", "\"1969-01-01\""] {
            let error = at(wrong).expect_err("no time");
            assert!(error.to_string().contains("\"timestamp\" is"), "{error}");
        }
    }

    #[test]
    fn headers_are_an_object_or_a_list() {
        let expected =
            vec![Header { key: "b".into(), value: bytes("1") }, Header { key: "a".into(), value: None }];
        let object = one(r#"{"value":1,"headers":{"b":1,"a":null}}"#).expect("valid");
        assert_eq!(object.headers, expected);
        let list = one(r#"{"value":1,"headers":[{"key":"b","value":"1"},{"key":"a"}]}"#).expect("valid");
        assert_eq!(list.headers, expected);
        assert!(one(r#"{"value":1,"headers":"b=1"}"#).is_err());
    }

    #[test]
    fn a_bad_line_says_where_and_what_to_do() {
        let records = read(LineFormat::Ndjson, b"{\"value\":1}\n\n{\"valeu\":1}\n");
        let error = records[1].as_ref().expect_err("mistyped");
        assert!(error.to_string().starts_with("in:3: unknown field `valeu`, expected one of"), "{error}");
        assert!(error.advice.contains("tombstone"));
        let cut = one(r#"{"value": "#).expect_err("cut short");
        assert!(cut.to_string().contains("at column"), "{cut}");
        assert!(one("{}").expect_err("no value").to_string().contains("no \"value\""));
        let both = one(r#"{"value":1,"value_base64":""}"#).expect_err("two values");
        assert!(both.to_string().contains("both"), "{both}");
        let binary = read(LineFormat::Ndjson, b"{\"value\":\"\xff\"}");
        assert!(binary[0].as_ref().expect_err("no text").to_string().contains("not UTF-8 at column 11"));
    }

    #[test]
    fn a_line_without_end_is_refused_at_the_limit() {
        let endless = std::io::BufReader::new(std::io::repeat(b'x'));
        let format = LineFormat::Lines { key_separator: None };
        let mut input = RecordInput::new("in".into(), format, Box::new(endless));
        let error = input.next().expect("an answer").expect_err("too long");
        assert_eq!(error.to_string(), "in:1: longer than 32 MiB");
        assert!(input.next().is_none());
    }

    proptest! {
        #[test]
        fn any_text_survives_as_a_json_string(key in ".{0,20}", value in ".{0,60}") {
            let line = serde_json::json!({ "key": key, "value": value }).to_string();
            let record = one(&line).expect("valid");
            prop_assert_eq!((record.key, record.value), (bytes(&key), bytes(&value)));
        }

        #[test]
        fn what_consume_writes_is_read_back(
            key in proptest::option::of(any::<Vec<u8>>()),
            value in proptest::option::of(any::<Vec<u8>>()),
            name in "[a-z]{0,5}",
        ) {
            let headers = vec![Header { key: name, value: value.clone().map(Bytes::from) }];
            let shown = crate::record_format::Shown {
                topic: "t", partition: 3, offset: 9, timestamp: 77,
                key: key.as_deref(), value: value.as_deref(), headers: &headers,
            };
            let mut line = Vec::new();
            crate::record_format::write_json(&shown, false, &mut line).expect("memory takes it");
            let record = one(std::str::from_utf8(&line).expect("text")).expect("valid");
            prop_assert_eq!(record.key, key.map(Bytes::from));
            prop_assert_eq!(record.value, value.map(Bytes::from));
            prop_assert_eq!(record.timestamp, Some(Timestamp(77)));
            prop_assert_eq!(record.headers, headers);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = read(LineFormat::Ndjson, &bytes);
            let _ = read(LineFormat::Lines { key_separator: Some(":".into()) }, &bytes);
        }
    }
}
