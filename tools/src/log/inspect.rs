//! `quire log inspect`: what a log's small files say.

use quire_storage::disk::Disk;
use quire_storage::inspect::{FileState, InspectError, LogReport, Point, SegmentReport, inspect};
use serde::Serialize;

use super::directory::FoundLog;
use super::{hex, is_absent, missing, never_written, orphan, short_hex};
use crate::failure::{Exit, Failure};
use crate::output::{self, Align, Palette, Table, thousands};
use crate::time;

/// Shows each log. Exit code 1 if a file that can not be rebuilt is damaged or missing.
pub(super) fn run(disk: &dyn Disk, logs: &[FoundLog], json: bool) -> Result<Exit, Failure> {
    let mut exit = Exit::Done;
    for (index, log) in logs.iter().enumerate() {
        let gap = if index == 0 { "" } else { "\n" };
        let report = match inspect(disk, &log.path) {
            Err(error) if log.is_held && is_absent(&error) => {
                exit = Exit::Failed;
                if !json {
                    output::print(&format!("{gap}{}", missing(log)))?;
                }
                continue;
            }
            Err(InspectError::NoLog(_)) if logs.len() > 1 => {
                if !json {
                    output::print(&format!("{gap}{}", never_written(&log.title())))?;
                }
                continue;
            }
            report => report?,
        };
        if !is_sound(&report) {
            exit = Exit::Failed;
        }
        if json {
            output::print_json(&LogJson::new(log, &report))?;
            continue;
        }
        output::print(&format!("{gap}{}", page(&log.title(), &report, Palette::stdout())))?;
        if log.is_orphan {
            output::print(&orphan(log))?;
        }
    }
    Ok(exit)
}

/// Indexes, checkpoint and epochs are rebuilt; the manifest and the segments are not.
fn is_sound(report: &LogReport) -> bool {
    let is_listed = report.manifest.is_intact() || report.is_unwritten;
    is_listed && report.segments.iter().all(|segment| segment.file_bytes.is_some())
}

fn page(name: &str, report: &LogReport, palette: Palette) -> String {
    let mut page = format!("{}   {}\n", palette.bold(name), headline(report));
    let mut table = Table::new(&[
        ("SEGMENT", Align::Left),
        ("BASE OFFSET", Align::Right),
        ("END OFFSET", Align::Right),
        ("WRITTEN", Align::Right),
        ("FILE", Align::Right),
        ("INDEXES", Align::Left),
        ("LAST APPEND", Align::Left),
    ]);
    report.segments.iter().for_each(|segment| table.row(row(segment, palette)));
    if !report.is_unwritten {
        page.push_str(&table.render(palette));
    }
    let epochs: Vec<String> =
        report.epochs.iter().map(|e| format!("{} from {}", e.epoch, thousands(e.start_offset.0))).collect();
    if !epochs.is_empty() {
        page.push_str(&format!(" leader epochs: {}\n", epochs.join(", ")));
    }
    for (file, state) in [
        ("manifest", &report.manifest),
        ("checkpoint", &report.checkpoint),
        ("leader epochs", &report.epochs_file),
    ] {
        if let FileState::Damaged(what) = state {
            page.push_str(&format!(" {}\n", palette.warning(&format!("! {file} damaged: {what}"))));
        }
    }
    if report.manifest == FileState::Missing && !report.is_unwritten {
        page.push_str(&format!(" {}\n", palette.warning("! manifest missing, but segments exist")));
    }
    for file in &report.unlisted {
        page.push_str(&format!(" {file} is not in the manifest: the next start removes it\n"));
    }
    page
}

fn headline(report: &LogReport) -> String {
    let mut parts = vec![format!("log start {}", thousands(report.log_start.0))];
    if report.is_unwritten {
        parts.push("never written".to_owned());
        return parts.join("   ");
    }
    match (&report.closed_at, &report.recovery_point) {
        (Some(point), _) => parts.push(format!("closed cleanly at {}", shown(point))),
        (None, Some(point)) => {
            parts.push(format!("not closed cleanly: the next start reads what follows {}", shown(point)));
        }
        (None, None) => parts.push("not closed cleanly: the next start reads all of it".to_owned()),
    }
    parts.join("   ")
}

fn shown(point: &Point) -> String {
    format!("offset {}   chain {}", thousands(point.next_offset.0), short_hex(&point.chain))
}

fn row(segment: &SegmentReport, palette: Palette) -> Vec<String> {
    let or_open = |text: Option<String>| text.unwrap_or_else(|| "open".to_owned());
    let indexes = match &segment.indexes {
        FileState::Intact => "intact".to_owned(),
        FileState::Missing => "to be built".to_owned(),
        FileState::Damaged(_) => "damaged, to be rebuilt".to_owned(),
    };
    let missing = || palette.bad("missing").into_owned();
    vec![
        segment.file_name.clone(),
        thousands(segment.base_offset.0),
        or_open(segment.end_offset.map(|end| thousands(end.0))),
        or_open(segment.log_bytes.map(output::bytes)),
        segment.file_bytes.map_or_else(missing, output::bytes),
        indexes,
        segment.last_append_time.map(time::show).unwrap_or_default(),
    ]
}

#[derive(Serialize)]
struct LogJson<'a> {
    log: &'a str,
    topic: Option<&'a str>,
    topic_id: Option<String>,
    partition: Option<u32>,
    manifest: StateJson<'a>,
    unwritten: bool,
    checkpoint: StateJson<'a>,
    epochs_file: StateJson<'a>,
    log_start: u64,
    closed_at: Option<PointJson>,
    recovery_point: Option<PointJson>,
    epochs: Vec<EpochJson>,
    segments: Vec<SegmentJson<'a>>,
    unlisted: &'a [String],
}

#[derive(Serialize)]
struct StateJson<'a> {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    what: Option<&'a str>,
}

#[derive(Serialize)]
struct PointJson {
    next_offset: u64,
    high_watermark: u64,
    leader_epoch: u32,
    segment_serial: u32,
    position: u64,
    chain: String,
}

#[derive(Serialize)]
struct EpochJson {
    epoch: u32,
    start_offset: u64,
}

#[derive(Serialize)]
struct SegmentJson<'a> {
    file: &'a str,
    base_offset: u64,
    end_offset: Option<u64>,
    log_bytes: Option<u64>,
    file_bytes: Option<u64>,
    sealed: bool,
    last_append_time: Option<i64>,
    max_timestamp: Option<i64>,
    indexes: StateJson<'a>,
}

impl<'a> LogJson<'a> {
    fn new(log: &'a FoundLog, report: &'a LogReport) -> LogJson<'a> {
        let partition = report.partition.or(log.partition);
        LogJson {
            log: &log.name,
            topic: log.topic.as_deref(),
            topic_id: partition.map(|partition| partition.topic.to_string()),
            partition: partition.map(|partition| partition.partition.0),
            manifest: StateJson::from(&report.manifest),
            unwritten: report.is_unwritten,
            checkpoint: StateJson::from(&report.checkpoint),
            epochs_file: StateJson::from(&report.epochs_file),
            log_start: report.log_start.0,
            closed_at: report.closed_at.as_ref().map(PointJson::from),
            recovery_point: report.recovery_point.as_ref().map(PointJson::from),
            epochs: report
                .epochs
                .iter()
                .map(|epoch| EpochJson { epoch: epoch.epoch.0, start_offset: epoch.start_offset.0 })
                .collect(),
            segments: report.segments.iter().map(SegmentJson::from).collect(),
            unlisted: &report.unlisted,
        }
    }
}

impl<'a> From<&'a FileState> for StateJson<'a> {
    fn from(state: &'a FileState) -> StateJson<'a> {
        match state {
            FileState::Intact => StateJson { state: "intact", what: None },
            FileState::Missing => StateJson { state: "missing", what: None },
            FileState::Damaged(what) => StateJson { state: "damaged", what: Some(what) },
        }
    }
}

impl From<&Point> for PointJson {
    fn from(point: &Point) -> PointJson {
        PointJson {
            next_offset: point.next_offset.0,
            high_watermark: point.high_watermark.0,
            leader_epoch: point.leader_epoch.0,
            segment_serial: point.segment_serial,
            position: point.position,
            chain: hex(&point.chain),
        }
    }
}

impl<'a> From<&'a SegmentReport> for SegmentJson<'a> {
    fn from(segment: &'a SegmentReport) -> SegmentJson<'a> {
        SegmentJson {
            file: &segment.file_name,
            base_offset: segment.base_offset.0,
            end_offset: segment.end_offset.map(|end| end.0),
            log_bytes: segment.log_bytes,
            file_bytes: segment.file_bytes,
            sealed: segment.is_sealed,
            last_append_time: segment.last_append_time.map(|time| time.0),
            max_timestamp: segment.max_timestamp.map(|time| time.0),
            indexes: StateJson::from(&segment.indexes),
        }
    }
}
