//! Reports out of files: JSON as the bench printed it, or a page that carries it.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::bench::html;
use crate::bench::report::{FORMAT, Report};
use crate::failure::Failure;

/// The reports in a file, one or more.
///
/// # Errors
/// If it can not be read, or holds anything but reports of a format that this version knows.
pub(super) fn reports(path: &Path) -> Result<Vec<Report>, Failure> {
    let bytes = std::fs::read(path).map_err(|error| Failure::file(path, &error))?;
    parse(&bytes).map_err(|what| {
        Failure::failed(format!("{}: {what}", path.display()))
            .hint("give what 'quire bench … --json' printed, or a page that '--report FILE' wrote")
    })
}

/// Only what tells a report from other objects, whatever its version.
#[derive(Deserialize)]
struct Head {
    format: Option<u32>,
    version: Option<String>,
}

fn parse(bytes: &[u8]) -> Result<Vec<Report>, String> {
    let text =
        std::str::from_utf8(bytes).map_err(|error| format!("no text: byte {}", error.valid_up_to()))?;
    let text = match text.trim_start() {
        page if page.starts_with('<') => {
            html::embedded(page).ok_or("a page, but not one of 'quire bench'")?
        }
        json => json,
    };
    let mut reports = Vec::new();
    for value in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        match value.map_err(|error| format!("not JSON: {error}"))? {
            Value::Array(values) => {
                for value in values {
                    reports.push(report(value, reports.len())?);
                }
            }
            value => reports.push(report(value, reports.len())?),
        }
    }
    if reports.is_empty() { Err("there is no report in it".to_owned()) } else { Ok(reports) }
}

/// One of them; `before` is how many came before it.
fn report(value: Value, before: usize) -> Result<Report, String> {
    let place = if before == 0 { String::new() } else { format!("object {}: ", before + 1) };
    let head = Head::deserialize(&value).ok();
    let Some(Head { format: Some(format), version }) = head else {
        return Err(format!("{place}not a report of 'quire bench': it has no \"format\""));
    };
    if format > FORMAT {
        let version = version.map(|version| format!(" by Quire {version}")).unwrap_or_default();
        return Err(format!(
            "{place}written{version} in format {format}; this Quire reads up to format {FORMAT}: use the newer one"
        ));
    }
    let report: Report = serde_json::from_value(value)
        .map_err(|error| format!("{place}a report of 'quire bench' that is not whole: {error}"))?;
    if report.runs.is_empty() {
        return Err(format!("{place}a report without a repetition"));
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::sample;

    fn refused(text: impl AsRef<[u8]>) -> String {
        parse(text.as_ref()).expect_err("it is no report")
    }

    #[test]
    fn a_report_a_line_a_list_and_a_page_are_all_read() {
        let [a, b] = [sample::report("a", &[1.0, 2.0]), sample::report("b <&>", &[3.0])];
        let json = |report: &Report| serde_json::to_string(report).expect("it is data");
        let both = vec![a.clone(), b.clone()];
        assert_eq!(parse(json(&a).as_bytes()), Ok(vec![a.clone()]));
        assert_eq!(parse(format!("{}\n{}\n", json(&a), json(&b)).as_bytes()), Ok(both.clone()));
        assert_eq!(parse(serde_json::to_string_pretty(&both).expect("data").as_bytes()), Ok(both.clone()));
        assert_eq!(parse(html::render(&both, &[]).as_bytes()), Ok(both));
    }

    #[test]
    fn what_is_no_report_is_told_apart() {
        assert_eq!(refused(""), "there is no report in it");
        assert_eq!(refused("{\"format\":"), "not JSON: EOF while parsing a value at line 1 column 10");
        assert_eq!(refused("{\"a\":1}"), "not a report of 'quire bench': it has no \"format\"");
        assert_eq!(refused("7"), "not a report of 'quire bench': it has no \"format\"");
        assert_eq!(refused("<!doctype html><p>hello"), "a page, but not one of 'quire bench'");
        assert_eq!(refused(b"\xff\xfe"), "no text: byte 0");
        assert!(
            refused("{\"format\":1}")
                .starts_with("a report of 'quire bench' that is not whole: missing field")
        );
    }

    #[test]
    fn a_newer_format_says_who_wrote_it() {
        let newer = "{\"format\":2,\"version\":\"3.1.0\",\"runs\":7}";
        let told = "written by Quire 3.1.0 in format 2; this Quire reads up to format 1: use the newer one";
        assert_eq!(refused(newer), told);
        let first = serde_json::to_string(&sample::report("a", &[1.0])).expect("it is data");
        assert_eq!(refused(format!("{first}\n{newer}")), format!("object 2: {told}"));
    }

    #[test]
    fn a_report_without_a_repetition_measures_nothing() {
        let empty = serde_json::to_string(&sample::report("a", &[])).expect("it is data");
        assert_eq!(refused(empty), "a report without a repetition");
    }

    #[test]
    fn a_field_that_earlier_versions_did_not_write_is_made_up_for() {
        let mut value = serde_json::to_value(sample::report("a", &[1.0])).expect("it is data");
        value["settings"].as_object_mut().expect("an object").remove("prefill").expect("it is written now");
        assert_eq!(parse(value.to_string().as_bytes()), Ok(vec![sample::report("a", &[1.0])]));
    }

    #[test]
    fn fields_of_later_versions_are_passed_over() {
        let mut value = serde_json::to_value(sample::report("a", &[1.0])).expect("it is data");
        value["weather"] = "fine".into();
        value["runs"][0]["weather"] = "fine".into();
        assert_eq!(parse(value.to_string().as_bytes()), Ok(vec![sample::report("a", &[1.0])]));
    }
}
