//! `--dry-run`: how many records over what time a replay would be, and how long it would take.

use std::time::Duration;

use quire_client::{ConsumeError, Extent, Rehearsal, ReplayBuilder, Timestamp};
use serde::Serialize;

use crate::failure::{Exit, Failure};
use crate::output::{self, counted};
use crate::time;

use super::ReplayArgs;
use super::status;

/// What `--dry-run --json` answers.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Answer<'a> {
    topic: &'a str,
    records: u64,
    is_exact: bool,
    first: Option<i64>,
    last: Option<i64>,
    /// Null flat out: that depends on who reads and writes.
    takes_ms: Option<u64>,
}

/// Answers from offsets where they say enough, and by reading everything where they do not.
///
/// # Errors
/// If topic or position do not exist, or it can not be read; and, within, if standard output can not be written.
pub async fn run(builder: &ReplayBuilder, args: &ReplayArgs) -> Result<Result<Exit, Failure>, ConsumeError> {
    let must_read = args.is_filtered() || args.max_gap.is_some() || args.count.is_some();
    let answer = match must_read {
        true => exact(args, &builder.rehearse().await?),
        false => estimate(args, &builder.extent().await?),
    };
    let printed = match args.json {
        true => output::print_json(&answer),
        false => output::print(&text(&answer, args)),
    };
    Ok(printed.map(|()| Exit::Done))
}

fn exact<'a>(args: &'a ReplayArgs, rehearsal: &Rehearsal) -> Answer<'a> {
    Answer {
        topic: &args.topic,
        records: rehearsal.records,
        is_exact: true,
        first: rehearsal.first.map(|first| first.0),
        last: rehearsal.last.map(|last| last.0),
        takes_ms: status::factor(args.speed()).map(|_| rehearsal.takes.as_millis() as u64),
    }
}

fn estimate<'a>(args: &'a ReplayArgs, extent: &Extent) -> Answer<'a> {
    let (first, last) = (extent.first.map(|first| first.0), extent.last.map(|last| last.0));
    let recorded_ms = first.zip(last).map_or(0, |(first, last)| last.abs_diff(first));
    Answer {
        topic: &args.topic,
        records: extent.records_max,
        is_exact: false,
        first,
        last,
        takes_ms: status::factor(args.speed()).map(|factor| (recorded_ms as f64 / factor) as u64),
    }
}

/// Two lines: what it is, and how long it takes.
fn text(answer: &Answer<'_>, args: &ReplayArgs) -> String {
    let records = counted(answer.records, "record");
    let (Some(first), Some(last)) = (answer.first, answer.last) else {
        return format!("{}   nothing to replay\n", answer.topic);
    };
    let at_most = if answer.is_exact { "" } else { "at most " };
    let recorded = time::show_length(Duration::from_millis(last.abs_diff(first)));
    let (first, last) = (time::show(Timestamp(first)), time::show(Timestamp(last)));
    let takes = match answer.takes_ms {
        None => "flat out: as fast as it can be read and written".to_owned(),
        Some(takes_ms) => {
            let about = if answer.is_exact { "" } else { "about " };
            let length = time::show_took(Duration::from_millis(takes_ms));
            format!("at {}: {about}{length}", status::show_speed(args.speed()))
        }
    };
    let how = match answer.is_exact {
        true => "every record was read for this",
        false => "from offsets and the ends of partitions; not every offset need hold a record",
    };
    format!("{}   {at_most}{records}   {first} to {last}, {recorded}\n{takes}   ({how})\n", answer.topic)
}
