//! `quire log verify`: every frame of a log, and the first bad byte.

use quire_storage::disk::Disk;
use quire_storage::inspect::{Finding, FindingKind, InspectError, VerifyReport, verify};
use serde::Serialize;

use super::directory::FoundLog;
use super::{hex, is_absent, missing, never_written, orphan, short_hex};
use crate::failure::{Exit, Failure};
use crate::output::{self, Align, Palette, Table, counted, thousands};
use crate::progress::Progress;

/// Reads each log whole. Exit code 1 if any is damaged.
pub(super) fn run(disk: &dyn Disk, logs: &[FoundLog], json: bool) -> Result<Exit, Failure> {
    let progress = Progress::counting("verify", logs.len() as u64);
    let mut verdict = Verdict::default();
    let palette = Palette::stdout();
    for (index, log) in logs.iter().enumerate() {
        progress.at(index as u64);
        let report = match verify(disk, &log.path, log.partition) {
            Err(error) if log.is_held && is_absent(&error) => {
                if json {
                    output::print_json(&MissingJson::new(log))?;
                }
                verdict.miss(log, palette);
                continue;
            }
            Err(InspectError::NoLog(_)) if logs.len() > 1 => {
                verdict.empty.push(if log.is_orphan { orphan(log) } else { never_written(&log.title()) });
                continue;
            }
            report => report?,
        };
        if json {
            output::print_json(&VerifyJson::new(log, &report))?;
        }
        verdict.add(log, &report, palette);
    }
    progress.clear();
    if !json {
        output::print(&verdict.page(palette))?;
    }
    Ok(if verdict.damaged == 0 { Exit::Done } else { Exit::Failed })
}

/// What was found over all logs.
struct Verdict {
    table: Table,
    findings: Vec<String>,
    empty: Vec<String>,
    logs: u64,
    records: u64,
    bytes: u64,
    torn: u64,
    damaged: u64,
}

impl Default for Verdict {
    fn default() -> Verdict {
        let table = Table::new(&[
            ("LOG", Align::Left),
            ("SEGMENTS", Align::Right),
            ("FRAMES", Align::Right),
            ("RECORDS", Align::Right),
            ("BYTES", Align::Right),
            ("CHAIN", Align::Left),
            ("", Align::Left),
        ]);
        Verdict {
            table,
            findings: Vec::new(),
            empty: Vec::new(),
            logs: 0,
            records: 0,
            bytes: 0,
            torn: 0,
            damaged: 0,
        }
    }
}

impl Verdict {
    fn add(&mut self, log: &FoundLog, report: &VerifyReport, palette: Palette) {
        self.logs += 1;
        self.records += report.records;
        self.bytes += report.bytes;
        self.damaged += u64::from(!report.is_intact());
        let is_torn = |finding: &Finding| finding.kind == FindingKind::TornTail;
        self.torn += u64::from(report.finding.as_ref().is_some_and(is_torn));
        self.table.row(vec![
            log.title(),
            thousands(report.segments.len() as u64),
            thousands(report.frames),
            thousands(report.records),
            output::bytes(report.bytes),
            report.chain.as_ref().map_or_else(|| "-".to_owned(), short_hex),
            mark(report, palette),
        ]);
        if let Some(finding) = &report.finding {
            self.findings.push(describe(log, finding, palette));
        }
        if log.is_orphan {
            self.findings.push(palette.warning(&orphan(log)).into_owned());
        }
    }

    fn miss(&mut self, log: &FoundLog, palette: Palette) {
        self.logs += 1;
        self.damaged += 1;
        let [none, mark] = ["-".to_owned(), palette.bad("✗ missing").into_owned()];
        let row = [log.title(), none.clone(), none.clone(), none.clone(), none.clone(), none, mark];
        self.table.row(row.into());
        self.findings.push(missing(log));
    }

    fn page(&self, palette: Palette) -> String {
        let mut page = self.table.render(palette);
        for finding in &self.findings {
            page.push_str(&format!("\n{finding}"));
        }
        for what in &self.empty {
            page.push_str(&format!("\n{what}"));
        }
        let read = format!(
            "{}, {}, {}",
            counted(self.logs, "log"),
            counted(self.records, "record"),
            output::bytes(self.bytes)
        );
        let verdict = match (self.damaged, self.torn) {
            (0, 0) => palette.good("intact: checksums, offsets and chain").into_owned(),
            (0, torn) => palette
                .warning(&format!(
                    "no damage proven, {}: read what that means above",
                    counted(torn, "torn tail")
                ))
                .into_owned(),
            (damaged, _) => palette.bad(&format!("DAMAGED: {}", counted(damaged, "log"))).into_owned(),
        };
        page.push_str(&format!("\n{read}   {verdict}\n"));
        page
    }
}

fn mark(report: &VerifyReport, palette: Palette) -> String {
    match report.finding.as_ref().map(|finding| finding.kind) {
        None => palette.good("✓").into_owned(),
        Some(FindingKind::TornTail) if report.finding.as_ref().is_some_and(|torn| torn.is_suspicious) => {
            palette.warning("torn tail, suspicious").into_owned()
        }
        Some(FindingKind::TornTail) => palette.warning("torn tail").into_owned(),
        Some(FindingKind::BeyondEnd) => palette.good("✓").into_owned(),
        Some(FindingKind::Corruption) => palette.bad("✗ damaged").into_owned(),
        Some(FindingKind::Unusable) => palette.bad("✗ unusable").into_owned(),
    }
}

fn describe(log: &FoundLog, finding: &Finding, palette: Palette) -> String {
    let place = format!(
        "{}/{} at byte {}, offset {}",
        log.path.display(),
        finding.file_name,
        finding.position,
        finding.offset
    );
    format!("{}: {}: {}\n  {}\n", log.title(), palette.bold(&place), finding.what, finding.meaning)
}

#[derive(Serialize)]
struct VerifyJson<'a> {
    log: &'a str,
    topic: Option<&'a str>,
    orphan: bool,
    intact: bool,
    frames: u64,
    records: u64,
    bytes: u64,
    links: u64,
    end_offset: u64,
    chain: Option<String>,
    segments: Vec<CheckJson<'a>>,
    finding: Option<FindingJson<'a>>,
}

/// A log that must be there and is not.
#[derive(Serialize)]
struct MissingJson<'a> {
    log: &'a str,
    topic: Option<&'a str>,
    intact: bool,
    missing: bool,
}

impl<'a> MissingJson<'a> {
    fn new(log: &'a FoundLog) -> MissingJson<'a> {
        MissingJson { log: &log.name, topic: log.topic.as_deref(), intact: false, missing: true }
    }
}

#[derive(Serialize)]
struct CheckJson<'a> {
    file: &'a str,
    base_offset: u64,
    end_offset: u64,
    frames: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct FindingJson<'a> {
    kind: &'static str,
    file: &'a str,
    position: u64,
    offset: u64,
    intact_from: Option<u64>,
    what: &'a str,
    suspicious: bool,
    meaning: &'a str,
}

impl<'a> VerifyJson<'a> {
    fn new(log: &'a FoundLog, report: &'a VerifyReport) -> VerifyJson<'a> {
        let segments = report.segments.iter().map(|segment| CheckJson {
            file: &segment.file_name,
            base_offset: segment.base_offset.0,
            end_offset: segment.end_offset.0,
            frames: segment.frames,
            bytes: segment.bytes,
        });
        VerifyJson {
            log: &log.name,
            topic: log.topic.as_deref(),
            orphan: log.is_orphan,
            intact: report.is_intact(),
            frames: report.frames,
            records: report.records,
            bytes: report.bytes,
            links: report.links,
            end_offset: report.end_offset.0,
            chain: report.chain.as_ref().map(hex),
            segments: segments.collect(),
            finding: report.finding.as_ref().map(FindingJson::from),
        }
    }
}

impl<'a> From<&'a Finding> for FindingJson<'a> {
    fn from(finding: &'a Finding) -> FindingJson<'a> {
        FindingJson {
            kind: match finding.kind {
                FindingKind::Unusable => "unusable",
                FindingKind::TornTail => "torn_tail",
                FindingKind::Corruption => "corruption",
                FindingKind::BeyondEnd => "beyond_end",
            },
            file: &finding.file_name,
            position: finding.position,
            offset: finding.offset.0,
            intact_from: finding.intact_from.map(|offset| offset.0),
            what: &finding.what,
            suspicious: finding.is_suspicious,
            meaning: &finding.meaning,
        }
    }
}
