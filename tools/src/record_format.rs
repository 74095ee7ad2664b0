//! How consumed records are written: a template with kcat's letters, or one JSON object a line.

use std::io::{self, Write};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use quire_protocol::batch::Header;
use serde::Serialize;
use serde::ser::{SerializeSeq, Serializer};
use serde_json::value::RawValue;

/// What there is to show of one record.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// The topic's name.
    pub topic: &'a str,
    /// The partition's number.
    pub partition: u32,
    /// The record's offset.
    pub offset: u64,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    /// The key, if there is one.
    pub key: Option<&'a [u8]>,
    /// The value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Headers, in their order.
    pub headers: &'a [Header],
}

/// A parsed `--format`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(Vec<u8>),
    Topic,
    Partition,
    Offset,
    Timestamp,
    Key,
    Value,
    Headers,
}

/// A `--format` that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A letter without a meaning.
    #[error(
        "%{0} means nothing; use %t topic, %p partition, %o offset, %T timestamp (ms), %k key, %s value, %h headers, %% for a percent sign"
    )]
    UnknownField(char),
    /// An escape without a meaning.
    #[error("\\{0} means nothing; use \\n, \\t, \\r, \\0 or \\\\")]
    UnknownEscape(char),
    /// It ends in the middle of something.
    #[error("it ends after {0}; write {0}{0} for the sign itself")]
    CutShort(char),
}

impl FromStr for Template {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Template, TemplateError> {
        let mut pieces = Vec::new();
        let mut plain = Vec::new();
        let mut chars = text.chars();
        while let Some(char) = chars.next() {
            match char {
                '\\' => plain.push(escape(chars.next())?),
                '%' => match field(chars.next())? {
                    Piece::Text(text) => plain.extend(text),
                    piece => {
                        push_text(&mut pieces, &mut plain);
                        pieces.push(piece);
                    }
                },
                other => plain.extend(other.encode_utf8(&mut [0; 4]).bytes()),
            }
        }
        push_text(&mut pieces, &mut plain);
        Ok(Template(pieces))
    }
}

fn push_text(pieces: &mut Vec<Piece>, plain: &mut Vec<u8>) {
    if !plain.is_empty() {
        pieces.push(Piece::Text(std::mem::take(plain)));
    }
}

fn field(letter: Option<char>) -> Result<Piece, TemplateError> {
    Ok(match letter.ok_or(TemplateError::CutShort('%'))? {
        't' => Piece::Topic,
        'p' => Piece::Partition,
        'o' => Piece::Offset,
        'T' => Piece::Timestamp,
        'k' => Piece::Key,
        's' => Piece::Value,
        'h' => Piece::Headers,
        '%' => Piece::Text(vec![b'%']),
        other => return Err(TemplateError::UnknownField(other)),
    })
}

fn escape(letter: Option<char>) -> Result<u8, TemplateError> {
    Ok(match letter.ok_or(TemplateError::CutShort('\\'))? {
        'n' => b'\n',
        't' => b'\t',
        'r' => b'\r',
        '0' => 0,
        '\\' => b'\\',
        other => return Err(TemplateError::UnknownEscape(other)),
    })
}

impl Template {
    /// Each value on a line of its own.
    pub fn value_lines() -> Template {
        Template(vec![Piece::Value, Piece::Text(vec![b'\n'])])
    }

    /// Whether what it writes ends with a line's end.
    pub fn ends_lines(&self) -> bool {
        matches!(self.0.last(), Some(Piece::Text(text)) if text.ends_with(b"\n"))
    }

    /// Writes one record. A missing key or value is nothing at all, as in kcat.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, record: &Shown<'_>, out: &mut impl Write) -> io::Result<()> {
        self.0.iter().try_for_each(|piece| match piece {
            Piece::Text(text) => out.write_all(text),
            Piece::Topic => out.write_all(record.topic.as_bytes()),
            Piece::Partition => write!(out, "{}", record.partition),
            Piece::Offset => write!(out, "{}", record.offset),
            Piece::Timestamp => write!(out, "{}", record.timestamp),
            Piece::Key => out.write_all(record.key.unwrap_or_default()),
            Piece::Value => out.write_all(record.value.unwrap_or_default()),
            Piece::Headers => write_headers(record.headers, out),
        })
    }
}

/// `name=value,name=value`
fn write_headers(headers: &[Header], out: &mut impl Write) -> io::Result<()> {
    for (index, header) in headers.iter().enumerate() {
        if index > 0 {
            out.write_all(b",")?;
        }
        out.write_all(header.key.as_bytes())?;
        out.write_all(b"=")?;
        out.write_all(header.value.as_deref().unwrap_or_default())?;
    }
    Ok(())
}

/// Writes one record as one line of JSON:
/// `{"topic","partition","offset","timestamp","key","value","headers"}`.
///
/// Bytes that are not UTF-8 stand under `key_base64` or `value_base64` instead. A value that is JSON is a string
/// unless `parse_json`, which puts it in as it is.
///
/// # Errors
/// Those of `out`.
pub fn write_json(record: &Shown<'_>, parse_json: bool, out: &mut impl Write) -> io::Result<()> {
    let compact;
    let parsed = match record.value {
        Some(value) if parse_json => {
            compact = on_one_line(value);
            serde_json::from_slice::<&RawValue>(&compact).ok()
        }
        _ => None,
    };
    let (key, key_base64) = text_or_base64(record.key);
    let (value, value_base64) = text_or_base64(record.value);
    let json = RecordJson {
        topic: record.topic,
        partition: record.partition,
        offset: record.offset,
        timestamp: record.timestamp,
        key,
        key_base64,
        value: parsed
            .map(|json| Some(ValueJson::Parsed(json)))
            .or(value.map(|text| text.map(ValueJson::Text))),
        value_base64,
        headers: HeadersJson(record.headers),
    };
    serde_json::to_writer(&mut *out, &json)?;
    out.write_all(b"\n")
}

/// Line breaks can stand in JSON only between its tokens, where a space is as good.
fn on_one_line(json: &[u8]) -> Vec<u8> {
    json.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }).collect()
}

#[derive(Serialize)]
struct RecordJson<'a> {
    topic: &'a str,
    partition: u32,
    offset: u64,
    timestamp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Option<&'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Option<ValueJson<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    headers: HeadersJson<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum ValueJson<'a> {
    Text(&'a str),
    Parsed(&'a RawValue),
}

/// `[{"key","value"}…]`: a list, since names may repeat and their order is kept.
struct HeadersJson<'a>(&'a [Header]);

#[derive(Serialize)]
struct HeaderJson<'a> {
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Option<&'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
}

impl Serialize for HeadersJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for header in self.0 {
            let (value, value_base64) = text_or_base64(header.value.as_deref());
            list.serialize_element(&HeaderJson { key: &header.key, value, value_base64 })?;
        }
        list.end()
    }
}

/// Text (null where there is nothing), or base64 where the bytes are no text.
fn text_or_base64(bytes: Option<&[u8]>) -> (Option<Option<&str>>, Option<String>) {
    match bytes.map(|bytes| std::str::from_utf8(bytes).map_err(|_| bytes)) {
        None => (Some(None), None),
        Some(Ok(text)) => (Some(Some(text)), None),
        Some(Err(bytes)) => (None, Some(BASE64.encode(bytes))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_knows_whether_it_ends_its_line() {
        for (text, ends) in
            [("%s\\n", true), ("%k %s", false), ("\\n%s", false), ("%s \\n", true), ("", false)]
        {
            assert_eq!(Template::from_str(text).expect("valid").ends_lines(), ends, "{text:?}");
        }
        assert!(Template::value_lines().ends_lines());
    }
    use proptest::prelude::*;

    const RECORD: Shown<'_> = Shown {
        topic: "flights",
        partition: 4,
        offset: 18422,
        timestamp: 1_371_081_600_000,
        key: Some(b"N14228"),
        value: Some(b"{\"carrier\": \"UA\",\n\"delay\":1.0}"),
        headers: &[],
    };

    fn formatted(template: &str, record: &Shown<'_>) -> String {
        let mut out = Vec::new();
        let template: Template = template.parse().expect("a valid template");
        template.write(record, &mut out).expect("memory takes it");
        String::from_utf8(out).expect("text")
    }

    fn json(record: &Shown<'_>, parse_json: bool) -> String {
        let mut out = Vec::new();
        write_json(record, parse_json, &mut out).expect("memory takes it");
        String::from_utf8(out).expect("JSON is text")
    }

    #[test]
    fn every_letter_and_escape_stands_for_its_field() {
        let headers =
            [Header { key: "a".into(), value: Some("1".into()) }, Header { key: "b".into(), value: None }];
        let record = Shown { headers: &headers, value: Some(b"v"), ..RECORD };
        assert_eq!(
            formatted(r"%t %p:%o\t%T %k|%s|%h 100%% \\é\n", &record),
            "flights 4:18422\t1371081600000 N14228|v|a=1,b= 100% \\é\n"
        );
        assert_eq!(formatted("%k%s", &Shown { key: None, value: None, ..RECORD }), "");
    }

    #[test]
    fn a_template_without_meaning_says_which_part() {
        assert_eq!("%x".parse::<Template>(), Err(TemplateError::UnknownField('x')));
        assert_eq!(r"\q".parse::<Template>(), Err(TemplateError::UnknownEscape('q')));
        assert_eq!("50%".parse::<Template>(), Err(TemplateError::CutShort('%')));
        assert_eq!("a\\".parse::<Template>(), Err(TemplateError::CutShort('\\')));
    }

    #[test]
    fn json_keeps_a_value_as_a_string_unless_told() {
        assert_eq!(
            json(&RECORD, false),
            "{\"topic\":\"flights\",\"partition\":4,\"offset\":18422,\"timestamp\":1371081600000,\"key\":\"N14228\",\
             \"value\":\"{\\\"carrier\\\": \\\"UA\\\",\\n\\\"delay\\\":1.0}\",\"headers\":[]}\n"
        );
        assert!(json(&RECORD, true).contains(r#""value":{"carrier": "UA", "delay":1.0},"headers""#));
        let plain = Shown { value: Some(b"not json"), ..RECORD };
        assert!(json(&plain, true).contains(r#""value":"not json""#));
    }

    #[test]
    fn nothing_is_null_and_no_text_is_base64() {
        let nothing = Shown { key: None, value: None, ..RECORD };
        assert!(json(&nothing, true).contains(r#""key":null,"value":null,"headers":[]"#));
        let headers = [Header { key: "h".into(), value: Some(vec![0xff].into()) }];
        let binary = Shown { key: Some(&[0xff, 0xfe]), value: Some(&[0x80]), headers: &headers, ..RECORD };
        let json = json(&binary, false);
        assert!(json.contains(r#""key_base64":"//4=","value_base64":"gA==""#), "{json}");
        assert!(json.contains(r#""headers":[{"key":"h","value_base64":"/w=="}]"#), "{json}");
    }

    proptest! {
        #[test]
        fn json_is_one_parsable_line(
            key in proptest::option::of(any::<Vec<u8>>()),
            value in proptest::option::of(any::<Vec<u8>>()),
            parse in any::<bool>(),
        ) {
            let line = json(&Shown { key: key.as_deref(), value: value.as_deref(), ..RECORD }, parse);
            prop_assert_eq!(line.matches('\n').count(), 1);
            prop_assert!(serde_json::from_str::<serde_json::Value>(&line).is_ok());
        }

        #[test]
        fn text_without_signs_is_itself(text in "[^%\\\\]{0,40}") {
            prop_assert_eq!(formatted(&text, &RECORD), text);
        }
    }
}
