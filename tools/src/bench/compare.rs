//! `quire bench compare`: reports beside each other, and no difference claimed that their spreads do not show.

mod read;
mod table;

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::figure::{FIGURES, Figure, Measured};
use super::report::{Report, Spread};
use super::{html, setting};
use crate::args::JsonArg;
use crate::failure::{Exit, Failure};
use crate::output::{self, Palette};

/// Which reports, and how to show them.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
A file is what 'quire bench --json' printed, or a page that '--report' wrote; with several reports in it, each counts.
Ratios are to the first. Better or worse is said only where all repetitions of one lie beyond all of the other, and
both have three or more; else it is within the spread, whatever the medians say.")]
pub struct CompareArgs {
    /// Reports of 'quire bench': JSON or HTML
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Write one self-contained page of HTML
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    output: JsonArg,
}

/// Reads the reports and shows them beside each other.
///
/// # Errors
/// If a file can not be read, is no report, or was written by a newer version; or if the page can not be written.
pub fn run(args: &CompareArgs) -> Result<Exit, Failure> {
    let mut files = Vec::new();
    let mut reports = Vec::new();
    for path in &args.files {
        for report in read::reports(path)? {
            files.push(path.as_path());
            reports.push(report);
        }
    }
    if let Some(page) = &args.report {
        html::write(page, &reports, &[])?;
    }
    if args.output.json {
        output::print_json(&ComparisonJson::new(&files, &reports))?;
    } else {
        output::print(&table::page(&files, &reports, Palette::stdout()))?;
    }
    if let Some(page) = &args.report {
        output::note(&format!("report: {}", page.display()));
    }
    Ok(Exit::Done)
}

/// A report's short name beside others: A to Z, then AA and on.
pub fn label(index: usize) -> String {
    let letter = char::from(b'A' + (index % 26) as u8);
    match index / 26 {
        0 => letter.to_string(),
        more => format!("{}{letter}", label(more - 1)),
    }
}

#[derive(Serialize)]
struct ComparisonJson<'a> {
    reports: Vec<ReportJson<'a>>,
    warnings: Vec<String>,
    settings: Vec<SettingJson>,
    figures: Vec<FigureJson>,
}

#[derive(Serialize)]
struct ReportJson<'a> {
    file: String,
    title: &'a str,
    version: &'a str,
    started_at: i64,
    repetitions: usize,
    failed: u64,
    is_clean: Option<bool>,
}

#[derive(Serialize)]
struct SettingJson {
    setting: &'static str,
    values: Vec<String>,
}

#[derive(Serialize)]
struct FigureJson {
    figure: &'static str,
    unit: &'static str,
    better: &'static str,
    spreads: Vec<Option<Spread>>,
    ratios: Vec<Option<f64>>,
    verdicts: Vec<Option<&'static str>>,
}

impl<'a> ComparisonJson<'a> {
    fn new(files: &[&Path], reports: &'a [Report]) -> ComparisonJson<'a> {
        let described = files.iter().zip(reports).map(|(file, report)| ReportJson {
            file: file.display().to_string(),
            title: &report.title,
            version: &report.version,
            started_at: report.started_at,
            repetitions: report.runs.len(),
            failed: report.summary.failed,
            is_clean: report.summary.is_clean,
        });
        let settings = setting::differing(reports).into_iter();
        ComparisonJson {
            reports: described.collect(),
            warnings: setting::warnings(reports),
            settings: settings.map(|(setting, values)| SettingJson { setting, values }).collect(),
            figures: FIGURES.iter().filter_map(|figure| FigureJson::new(figure, reports)).collect(),
        }
    }
}

impl FigureJson {
    /// The figure of every report; `None` where none has it.
    fn new(figure: &'static Figure, reports: &[Report]) -> Option<FigureJson> {
        let measured: Vec<Option<Measured>> = reports.iter().map(|report| figure.of(report)).collect();
        measured.iter().any(Option::is_some).then_some(())?;
        let compare = |this: &Option<Measured>| Some(figure.compare(measured[0].as_ref()?, this.as_ref()?));
        let compared: Vec<_> = measured.iter().skip(1).map(compare).collect();
        Some(FigureJson {
            figure: figure.key,
            unit: figure.unit.name(),
            better: figure.better.word(),
            spreads: measured.iter().map(|this| this.as_ref().map(|measured| measured.spread)).collect(),
            ratios: after_none(compared.iter().map(|compared| compared.as_ref()?.ratio)),
            verdicts: after_none(compared.iter().map(|compared| Some(compared.as_ref()?.verdict.key()))),
        })
    }
}

/// Nothing for the first report, which is compared with none; then one a report.
fn after_none<T>(others: impl Iterator<Item = Option<T>>) -> Vec<Option<T>> {
    std::iter::once(None).chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::sample;

    #[test]
    fn the_object_says_what_may_be_said_and_no_more() {
        let reports = [
            sample::report("slow", &[100.0, 110.0, 120.0]),
            sample::report("fast", &[200.0, 220.0, 240.0]),
            sample::report("alike", &[90.0, 105.0, 111.0]),
        ];
        let files = [Path::new("a.json"), Path::new("b.json"), Path::new("c.json")];
        let json = serde_json::to_value(ComparisonJson::new(&files, &reports)).expect("it is data");
        let figure = &json["figures"][0];
        assert_eq!(figure["figure"], "produced_records_per_second");
        assert_eq!(figure["spreads"][1]["median"], 220.0);
        assert_eq!(figure["ratios"], serde_json::json!([null, 2.0, 105.0 / 110.0]));
        assert_eq!(figure["verdicts"], serde_json::json!([null, "better", "within_spread"]));
        assert_eq!(json["reports"][2]["title"], "alike");
        assert_eq!(json["warnings"], serde_json::json!([]));
    }

    #[test]
    fn reports_are_lettered_beyond_the_alphabet() {
        assert_eq!([0, 25, 26, 51, 52, 702].map(label), ["A", "Z", "AA", "AZ", "BA", "AAA"]);
    }
}
