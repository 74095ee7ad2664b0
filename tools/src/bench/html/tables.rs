//! The tables of a page.

use super::charts::{colour, spread};
use super::svg::escape;
use crate::bench::compare::label;
use crate::bench::figure::{FIGURES, Figure, median_run};
use crate::bench::report::{Report, Run, Verification};
use crate::bench::setting::Row;
use crate::output;

/// A value that not every repetition has.
const NONE: &str = "–";

/// Names and values, two columns.
pub fn pairs(rows: &[Row]) -> String {
    let row =
        |(name, value): &Row| format!("<tr><th scope=\"row\">{name}</th><td>{}</td></tr>\n", escape(value));
    format!("<table>\n{}</table>\n", rows.iter().map(row).collect::<String>())
}

/// Names, and one value a report; rows in which they differ stand out.
pub fn beside(reports: &[Report], rows: impl Fn(&Report) -> Vec<Row>) -> String {
    let columns: Vec<_> = reports.iter().map(rows).collect();
    let mut body = String::new();
    for (index, (name, first)) in columns[0].iter().enumerate() {
        let values: Vec<&String> = columns.iter().map(|column| &column[index].1).collect();
        let class = if values.iter().any(|value| *value != first) { " class=\"differs\"" } else { "" };
        let cells: String = values.iter().map(|value| format!("<td>{}</td>", escape(value))).collect();
        body.push_str(&format!("<tr{class}><th scope=\"row\">{name}</th>{cells}</tr>\n"));
    }
    table(&header(reports, ""), &body)
}

/// The settings whose values differ, one column a report.
pub fn differing(reports: &[Report], rows: &[(&'static str, Vec<String>)]) -> String {
    let line = |(name, values): &(&str, Vec<String>)| {
        let cells: String = values.iter().map(|value| format!("<td>{}</td>", escape(value))).collect();
        format!("<tr><th scope=\"row\">{name}</th>{cells}</tr>\n")
    };
    table(&header(reports, ""), &rows.iter().map(line).collect::<String>())
}

/// Every figure over all repetitions: median, smallest, largest.
pub fn figures(report: &Report) -> String {
    let row = |figure: &Figure| {
        let measured = figure.of(report)?;
        let [median, min, max] = [measured.spread.median, measured.spread.min, measured.spread.max]
            .map(|value| format!("<td class=\"number\">{}</td>", figure.unit.show(value)));
        Some(format!("<tr><th scope=\"row\">{}</th>{median}{min}{max}</tr>\n", figure.label))
    };
    let head = "<th></th><th class=\"number\">Median</th><th class=\"number\">Smallest</th><th class=\"number\">Largest</th>";
    table(head, &FIGURES.iter().filter_map(row).collect::<String>())
}

/// Every repetition, one a row.
pub fn repetitions(report: &Report) -> String {
    let known: Vec<&Figure> = FIGURES.iter().filter(|figure| is_column(figure, report)).collect();
    let median = median_run(report);
    let names = known.iter().map(|figure| format!("<th class=\"number\">{}</th>", column_name(figure)));
    let head = format!(
        "<th></th>{}<th class=\"number\">Failed</th><th class=\"number\">Verified</th>",
        names.collect::<String>()
    );
    let row = |(index, run): (usize, &Run)| {
        let class = if index == median && report.runs.len() > 1 { " class=\"median\"" } else { "" };
        let name = if class.is_empty() { "" } else { " median" };
        let values = known.iter().map(|figure| {
            let value = (figure.of_run)(run).map_or(NONE.to_owned(), |value| figure.unit.show(value));
            format!("<td class=\"number\">{value}</td>")
        });
        format!(
            "<tr{class}><th scope=\"row\">{}{name}</th>{}<td class=\"number\">{}</td><td class=\"number\">{}</td></tr>\n",
            index + 1,
            values.collect::<String>(),
            output::thousands(run.failed),
            run.verification.as_ref().map_or("no".to_owned(), verdict),
        )
    };
    let body: String = report.runs.iter().enumerate().map(row).collect();
    format!("<div class=\"dense\">{}</div>\n", table(&head, &body))
}

/// What the check of every record found, in words.
pub fn verdict(found: &Verification) -> String {
    let of = |count: u64, what: &str| (count > 0).then(|| format!("{} {what}", output::thousands(count)));
    let faults: Vec<_> = [
        of(found.lost, "lost"),
        of(found.duplicated, "duplicated"),
        of(found.reordered, "out of order"),
        of(found.altered, "altered"),
    ]
    .into_iter()
    .flatten()
    .collect();
    match (found.is_clean, faults.is_empty()) {
        (true, true) => "clean".to_owned(),
        (false, true) => "not clean".to_owned(),
        (_, false) => faults.join(", "),
    }
}

/// Every figure of every report, with the ratio to the first and what may be said about it.
pub fn comparison(reports: &[Report]) -> String {
    let mut body = String::new();
    for figure in FIGURES {
        let measured: Vec<_> = reports.iter().map(|report| figure.of(report)).collect();
        if measured.iter().all(Option::is_none) {
            continue;
        }
        let cells = measured.iter().enumerate().map(|(index, this)| {
            let Some(this) = this else { return format!("<td class=\"number\">{NONE}</td>") };
            let compared =
                measured[0].as_ref().filter(|_| index > 0).map(|first| figure.compare(first, this));
            let remark =
                compared.map(|comparison| super::comparison::remark(&comparison)).unwrap_or_default();
            format!("<td class=\"number\">{}{remark}</td>", spread(figure.unit, this))
        });
        let cells: String = cells.collect();
        let name = format!("{}<small>{} is better</small>", figure.label, figure.better.word());
        body.push_str(&format!("<tr><td>{name}</td>{cells}</tr>\n"));
    }
    table(&header(reports, " class=\"number\""), &body)
}

/// One letter a report, after an empty corner.
fn header(reports: &[Report], class: &str) -> String {
    let letter = |index: usize| {
        format!("<th{class}><span class=\"chip {}\">{}</span></th>", chip(reports, index), label(index))
    };
    format!("<th></th>{}", (0..reports.len()).map(letter).collect::<String>())
}

/// The colour of a report's letter: its own as long as there are enough colours.
pub fn chip(reports: &[Report], index: usize) -> String {
    if reports.len() > super::comparison::OVERLAID_MAX { colour(0) } else { colour(index) }
}

fn table(head: &str, body: &str) -> String {
    format!(
        "<div class=\"scroll\"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )
}

/// Repetitions are told by throughput, latencies and costs; bytes a second follow from records a second.
fn is_column(figure: &Figure, report: &Report) -> bool {
    let is_left_out =
        ["_bytes_per_second", "_p999_us", "_anonymous_bytes_max", "syncs_per_record", "syncs_per_batch"]
            .iter()
            .any(|end| figure.key.ends_with(end));
    !is_left_out && report.runs.iter().any(|run| (figure.of_run)(run).is_some())
}

fn column_name(figure: &Figure) -> String {
    figure.label.replace("Acknowledgement ", "Ack. ").replace("End to end ", "E2E ").replace(", largest", "")
}
