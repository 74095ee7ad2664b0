//! The page of several reports beside each other.

use super::bars::{self, Bar};
use super::charts;
use super::plot::Size;
use super::single;
use super::svg::escape;
use super::tables;
use crate::bench::compare::label;
use crate::bench::figure::{Comparison, FIGURES, Figure, Unit, Verdict};
use crate::bench::quantity;
use crate::bench::report::{LatencyKind, Report};
use crate::bench::{Missing, remark, setting};

/// Reports whose lines can still be told apart in one drawing.
pub const OVERLAID_MAX: usize = 6;

/// What is shown as bars.
const BARS: [&str; 11] = [
    "produced_records_per_second",
    "produced_bytes_per_second",
    "consumed_records_per_second",
    "consumed_bytes_per_second",
    "acknowledgement_p50_us",
    "acknowledgement_p99_us",
    "end_to_end_p50_us",
    "end_to_end_p99_us",
    "client_cpu_seconds_per_gb",
    "broker_cpu_seconds_per_gb",
    "broker_memory_bytes_max",
];

/// The page's title.
pub fn title(reports: &[Report]) -> String {
    match reports {
        [a, b] => format!("{} beside {}", a.title, b.title),
        _ => format!("{} benchmarks beside each other", reports.len()),
    }
}

/// The page's body.
pub fn page(reports: &[Report], missing: &[Missing]) -> String {
    let differing = setting::differing(reports);
    let mut page =
        format!("<p class=\"over\">quire bench compare</p>\n<h1>{}</h1>\n", heading(reports, &differing));
    page.push_str(&contents(reports));
    page.push_str(&super::not_measured(missing));
    page.push_str(&super::callout("Compare with care", &setting::warnings(reports)));
    page.push_str(&super::callout("Read with care", &remark::of(reports)));
    page.push_str(&settings_that_differ(reports, &differing));
    page.push_str(&glance(reports, &differing));
    if reports.len() <= OVERLAID_MAX {
        page.push_str(&overlays(reports));
        page.push_str(&format!("<h2>Every figure</h2>\n<p>{RATIOS}</p>\n{}", tables::comparison(reports)));
    }
    page.push_str("<h2>Every repetition</h2>\n");
    for (index, report) in reports.iter().enumerate() {
        page.push_str(&format!("<h3>{} {}</h3>\n", chip(reports, index), escape(&report.title)));
        page.push_str(&tables::repetitions(report));
    }
    page.push_str(&format!(
        "<h2>Settings and machines</h2>\n{}<h3>Machines</h3>\n{}",
        tables::beside(reports, |report| setting::settings(&report.settings)),
        tables::beside(reports, |report| setting::machine(&report.machine))
    ));
    let commands = reports.iter().enumerate();
    let commands = commands.map(|(index, report)| format!("# {}\n{}", label(index), single::command(report)));
    page.push_str(&format!(
        "<h3>Again</h3>\n<pre>{}</pre>\n{}",
        commands.collect::<Vec<_>>().join("\n\n"),
        single::how_to_read()
    ));
    page
}

const RATIOS: &str = "Ratios are to A. Better or worse is said only where every repetition of one lies beyond every \
                      repetition of the other, and each has three or more.";

/// The ratio to the first report, and what may be said about it.
pub fn remark(comparison: &Comparison) -> String {
    let class = match comparison.verdict {
        Verdict::Better => "good",
        Verdict::Worse => "bad",
        Verdict::WithinSpread | Verdict::TooFew => "",
    };
    let ratio = comparison.ratio.map(quantity::ratio).unwrap_or_default();
    format!("<small class=\"{class}\">{ratio} {}</small>", comparison.verdict.words())
}

fn heading(reports: &[Report], differing: &[(&'static str, Vec<String>)]) -> String {
    match differing {
        [(name, values)] if reports.len() <= OVERLAID_MAX => {
            format!("{name}: {}", escape(&values.join(" beside ")))
        }
        _ => format!("{} benchmarks beside each other", reports.len()),
    }
}

fn contents(reports: &[Report]) -> String {
    let item = |(index, report): (usize, &Report)| {
        format!(
            "<li>{}<div>{}<p>{}; {}</p></div></li>\n",
            chip(reports, index),
            escape(&report.title),
            single::over(report).trim_start_matches("quire bench · "),
            trust(report)
        )
    };
    format!("<ul class=\"contents\">\n{}</ul>\n", reports.iter().enumerate().map(item).collect::<String>())
}

/// What one has to know of a report before one believes it, in few words.
fn trust(report: &Report) -> String {
    let repetitions = crate::output::counted(report.runs.len() as u64, "repetition");
    let verified = match report.summary.is_clean {
        Some(true) => "every record verified",
        Some(false) => "<b class=\"bad\">verification found faults</b>",
        None => "not verified",
    };
    let failed = match report.summary.failed {
        0 => String::new(),
        failed => format!(", <b class=\"bad\">{} failed</b>", crate::output::counted(failed, "record")),
    };
    format!("{repetitions}, {verified}{failed}")
}

fn settings_that_differ(reports: &[Report], differing: &[(&'static str, Vec<String>)]) -> String {
    match differing {
        [] => "<h2>Settings that differ</h2>\n<p>None: the same was asked of all.</p>\n".to_owned(),
        rows if reports.len() <= OVERLAID_MAX => format!(
            "<h2>Settings that differ</h2>\n<p>Everything else is the same; all of it is below.</p>\n{}",
            tables::differing(reports, rows)
        ),
        _ => String::new(),
    }
}

/// The figures one came for, as bars.
fn glance(reports: &[Report], differing: &[(&'static str, Vec<String>)]) -> String {
    let is_matrix = reports.len() > OVERLAID_MAX;
    let mut drawn = String::new();
    for figure in BARS.iter().filter_map(|key| FIGURES.iter().find(|figure| figure.key == *key)) {
        let measured: Vec<_> = reports.iter().map(|report| figure.of(report)).collect();
        let is_said_already = figure.unit == Unit::BytesPerSecond && !charts::has_other_sizes(reports);
        if is_said_already || measured.iter().all(Option::is_none) {
            continue;
        }
        let bars = |size: Size| -> Vec<Bar<'_>> {
            let each = measured.iter().enumerate();
            each.map(|(index, this)| Bar {
                class: if is_matrix { charts::colour(0) } else { charts::colour(index) },
                label: match (is_matrix, size) {
                    (true, Size::Full) => format!("{}  {}", label(index), told_apart(differing, index)),
                    _ => label(index),
                },
                measured: this.as_ref(),
                remark: measured[0]
                    .as_ref()
                    .filter(|_| index > 0)
                    .zip(this.as_ref())
                    .map_or(String::new(), |(first, this)| short_remark(&figure.compare(first, this))),
            })
            .collect()
        };
        let note = format!("{} is better", figure.better.word());
        let wide = if is_matrix { Size::Full } else { Size::Half };
        drawn.push_str(&charts::figure(wide, figure.label, &note, |size| {
            draw_bars(figure, &bars(size), size)
        }));
    }
    let class = if is_matrix { "" } else { " class=\"pair\"" };
    format!(
        "<h2>At a glance</h2>\n<p>Bars from zero to the median, thin lines from the smallest to the largest repetition. \
         Ratios are to A; ≈ where the spreads overlap, ? where repetitions are too few to tell.</p>\n<div{class}>{drawn}</div>\n"
    )
}

fn draw_bars(figure: &Figure, bars: &[Bar<'_>], size: Size) -> String {
    let (width, label_width) = match size {
        Size::Full => (920.0, 330.0),
        Size::Half => (448.0, 26.0),
        Size::Narrow => (360.0, 30.0),
    };
    bars::draw(figure.label, figure.unit, bars, size.class(), width, label_width)
}

fn short_remark(comparison: &Comparison) -> String {
    let ratio = comparison.ratio.map(quantity::ratio).unwrap_or_default();
    match comparison.verdict {
        Verdict::Better | Verdict::Worse => ratio,
        Verdict::WithinSpread => format!("≈ {ratio}"),
        Verdict::TooFew => format!("{ratio} ?"),
    }
}

/// What makes this report another than the others.
fn told_apart(differing: &[(&'static str, Vec<String>)], index: usize) -> String {
    differing.iter().filter_map(|(_, values)| values.get(index).cloned()).collect::<Vec<_>>().join(", ")
}

fn overlays(reports: &[Report]) -> String {
    let mut page = String::new();
    let throughput = charts::throughput(reports);
    if !throughput.is_empty() {
        page.push_str(&format!("<h2>Throughput</h2>\n{throughput}"));
    }
    for kind in [LatencyKind::Acknowledgement, LatencyKind::EndToEnd] {
        let drawn = charts::latency(reports, kind);
        if !drawn.is_empty() {
            page.push_str(&format!("<h2>{}</h2>\n{drawn}", charts::kind_name(kind)));
        }
    }
    page.push_str(&format!("<h2>Cost</h2>\n{}", charts::cost(reports)));
    page
}

fn chip(reports: &[Report], index: usize) -> String {
    format!("<span class=\"chip {}\">{}</span>", tables::chip(reports, index), label(index))
}
