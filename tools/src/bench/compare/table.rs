//! Reports beside each other on a terminal: what differs in what was asked for, then every figure.

use std::path::Path;

use super::label;
use crate::bench::figure::{Comparison, FIGURES, Measured, Unit, Verdict};
use crate::bench::quantity;
use crate::bench::report::Report;
use crate::bench::{remark, setting};
use crate::output::{Align, Palette, Table, counted};

/// Reports that fit beside each other; of more, each has a row.
const COLUMNS_MAX: usize = 4;
/// What a row of many reports shows.
const ROW: [(&str, &str, &str); 10] = [
    ("produced_records_per_second", "PRODUCED", "÷ A"),
    ("produced_bytes_per_second", "BYTES", "÷ A"),
    ("consumed_records_per_second", "CONSUMED", "÷ A"),
    ("consumed_bytes_per_second", "BYTES", "÷ A"),
    ("acknowledgement_p50_us", "ACK P50", "÷ A"),
    ("acknowledgement_p99_us", "ACK P99", "÷ A"),
    ("end_to_end_p50_us", "E2E P50", "÷ A"),
    ("end_to_end_p99_us", "E2E P99", "÷ A"),
    ("client_cpu_seconds_per_gb", "CLIENT CPU", "÷ A"),
    ("broker_cpu_seconds_per_gb", "BROKER CPU", "÷ A"),
];
const FILES: [(&str, &str); COLUMNS_MAX] = [("A", ""), ("B", "B ÷ A"), ("C", "C ÷ A"), ("D", "D ÷ A")];

/// The whole answer.
pub(super) fn page(files: &[&Path], reports: &[Report], palette: Palette) -> String {
    let mut page = String::new();
    for (index, (file, report)) in files.iter().zip(reports).enumerate() {
        page.push_str(&entry(index, file, report, palette));
    }
    for warning in setting::warnings(reports).into_iter().chain(remark::of(reports)) {
        page.push_str(&format!("{} {warning}\n", palette.warning("!")));
    }
    let is_wide = reports.len() > COLUMNS_MAX;
    let differing = setting::differing(reports);
    if !differing.is_empty() && !is_wide {
        page.push_str(&format!("\n{}", settings(&differing, palette)));
    }
    page.push('\n');
    page.push_str(&if is_wide { rows(reports, &differing, palette) } else { columns(reports, palette) });
    if reports.len() > 1 {
        page.push_str(&format!("\n{}\n", palette.dim(READING)));
    }
    page
}

const READING: &str = "medians, and the smallest to the largest repetition; ≈ the spreads overlap: no difference shown; \
                       ? fewer than three repetitions";

fn entry(index: usize, file: &Path, report: &Report, palette: Palette) -> String {
    let verified = match report.summary.is_clean {
        Some(true) => ", verified".to_owned(),
        Some(false) => format!(", {}", palette.bad("verification found faults")),
        None => String::new(),
    };
    let failed = match report.summary.failed {
        0 => String::new(),
        failed => format!(", {}", palette.bad(&format!("{} failed", counted(failed, "record")))),
    };
    let about = format!(
        "{}, Quire {}, {}",
        file.display(),
        printable(&report.version),
        counted(report.runs.len() as u64, "repetition")
    );
    let title = printable(&report.title);
    format!("{}  {title}\n   {}{verified}{failed}\n", palette.bold(&label(index)), palette.dim(&about))
}

fn settings(differing: &[(&'static str, Vec<String>)], palette: Palette) -> String {
    let mut columns = vec![("SETTINGS THAT DIFFER", Align::Left)];
    let count = differing.first().map_or(0, |(_, values)| values.len());
    columns.extend(FILES.iter().take(count).map(|(name, _)| (*name, Align::Left)));
    let mut table = Table::new(&columns);
    for (name, values) in differing {
        table.row(
            [(*name).to_owned()].into_iter().chain(values.iter().map(|value| printable(value))).collect(),
        );
    }
    table.render(palette)
}

/// Figures as rows, reports as columns.
fn columns(reports: &[Report], palette: Palette) -> String {
    let mut columns = vec![("FIGURE", Align::Left)];
    for (name, ratio) in FILES.iter().take(reports.len()) {
        columns.extend([(*name, Align::Right), ("", Align::Left)]);
        if !ratio.is_empty() {
            columns.extend([(*ratio, Align::Right), ("", Align::Left)]);
        }
    }
    let mut table = Table::new(&columns);
    for figure in FIGURES {
        let measured: Vec<_> = reports.iter().map(|report| figure.of(report)).collect();
        if measured.iter().all(Option::is_none) {
            continue;
        }
        let mut row = vec![figure.label.to_owned()];
        for (index, this) in measured.iter().enumerate() {
            row.extend(value(figure.unit, this.as_ref()));
            if index > 0 {
                let compared = measured[0].as_ref().zip(this.as_ref());
                row.extend(remark(compared.map(|(first, this)| figure.compare(first, this))));
            }
        }
        table.row(row);
    }
    table.render(palette)
}

/// Reports as rows, with the figures that matter most.
fn rows(reports: &[Report], differing: &[(&'static str, Vec<String>)], palette: Palette) -> String {
    let known: Vec<_> = ROW
        .iter()
        .filter_map(|(key, heading, ratio)| {
            let figure = FIGURES.iter().find(|figure| figure.key == *key)?;
            reports.iter().any(|report| figure.of(report).is_some()).then_some((figure, *heading, *ratio))
        })
        .collect();
    let mut columns = vec![("", Align::Left)];
    columns.extend(differing.iter().map(|(name, _)| (*name, Align::Left)));
    for (_, heading, ratio) in &known {
        columns.extend([(*heading, Align::Right), (*ratio, Align::Right)]);
    }
    let mut table = Table::new(&columns);
    for (index, report) in reports.iter().enumerate() {
        let mut row = vec![label(index)];
        row.extend(
            differing.iter().filter_map(|(_, values)| values.get(index)).map(|value| printable(value)),
        );
        for (figure, _, _) in &known {
            let this = figure.of(report);
            let compared = figure.of(&reports[0]).filter(|_| index > 0).zip(this.as_ref());
            row.push(this.as_ref().map_or("-".to_owned(), |this| figure.unit.show(this.spread.median)));
            row.push(compared.map_or(String::new(), |(first, this)| short(&figure.compare(&first, this))));
        }
        table.row(row);
    }
    table.render(palette)
}

fn value(unit: Unit, measured: Option<&Measured>) -> [String; 2] {
    let Some(measured) = measured else { return ["-".to_owned(), String::new()] };
    let range = match measured.values.len() {
        1 => String::new(),
        _ => format!("{} – {}", unit.show(measured.spread.min), unit.show(measured.spread.max)),
    };
    [unit.show(measured.spread.median), range]
}

fn remark(comparison: Option<Comparison>) -> [String; 2] {
    let Some(comparison) = comparison else { return [String::new(), String::new()] };
    let ratio = comparison.ratio.map(quantity::ratio).unwrap_or_default();
    [ratio, comparison.verdict.words().to_owned()]
}

fn short(comparison: &Comparison) -> String {
    let ratio = comparison.ratio.map(quantity::ratio).unwrap_or_default();
    match comparison.verdict {
        Verdict::Better | Verdict::Worse => ratio,
        Verdict::WithinSpread => format!("≈ {ratio}"),
        Verdict::TooFew => format!("{ratio} ?"),
    }
}

/// A text of somebody else's file, without what would steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::sample;

    fn shown(reports: &[Report]) -> String {
        let files: Vec<_> = (0..reports.len()).map(|_| Path::new("x.json")).collect();
        page(&files, reports, Palette::PLAIN)
    }

    #[test]
    fn what_differs_comes_first_then_every_figure_with_what_may_be_said() {
        let a = sample::report("first", &[100.0, 110.0, 120.0]);
        let mut b = sample::report("second", &[200.0, 220.0, 240.0]);
        b.settings.sync = "interval".to_owned();
        let page = shown(&[a, b]);
        let remark =
            page.lines().find(|line| line.starts_with("! flat out: ")).expect("what latencies wait for");
        let page = page.replace(&format!("{remark}\n"), "");
        assert!(
            page.starts_with(
                "A  first\n   x.json, Quire 0.1.0, 3 repetitions, verified\n\
                 B  second\n   x.json, Quire 0.1.0, 3 repetitions, verified\n\n \
                 SETTINGS THAT DIFFER  A       B\n \
                 Sync                  always  interval\n\n \
                 FIGURE "
            ),
            "{page}"
        );
        let line =
            |name: &str| page.lines().find(|line| line.starts_with(&format!(" {name}  "))).expect("a line");
        let words: Vec<_> = line("Produced").split_whitespace().collect();
        assert_eq!(
            words,
            ["Produced", "110/s", "100/s", "–", "120/s", "220/s", "200/s", "–", "240/s", "2.00×", "better"]
        );
        assert!(line("Acknowledgement p99").ends_with("1.00×  within spread"), "{page}");
    }

    #[test]
    fn many_reports_are_rows() {
        let reports: Vec<_> = (0..6)
            .map(|index| {
                let mut report =
                    sample::report("T", &[100.0, 110.0, 120.0].map(|rate| rate + f64::from(index) * 15.0));
                report.settings.partitions = index + 1;
                report
            })
            .collect();
        let page = shown(&reports);
        let last: Vec<_> =
            page.lines().find(|line| line.starts_with(" F")).expect("the last").split_whitespace().collect();
        assert_eq!(last[..4], ["F", "6", "185/s", "1.68×"], "{page}");
        let second = page.lines().find(|line| line.starts_with(" B")).expect("the second");
        assert!(second.contains("≈ 1.14×"), "{page}");
    }

    #[test]
    fn a_foreign_title_does_not_steer_the_terminal() {
        let mut report = sample::report("\u{1b}[2Jgone\u{7}", &[1.0]);
        report.version = "\u{9b}31m".to_owned();
        assert!(!shown(&[report]).chars().any(|c| c.is_control() && c != '\n'));
    }
}
