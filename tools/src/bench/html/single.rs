//! The page of one report.

use quire_protocol::Timestamp;

use super::charts;
use super::scale::Scale;
use super::svg::{Canvas, escape};
use super::tables;
use crate::bench::figure::{FIGURES, Figure, Measured, REPETITIONS_MIN, Unit, latency_of};
use crate::bench::report::{LatencyKind, Report};
use crate::bench::{Missing, remark, setting};
use crate::output::counted;

/// The page's body.
pub fn page(report: &Report, missing: &[Missing]) -> String {
    let reports = std::slice::from_ref(report);
    let mut page = format!("<p class=\"over\">{}</p>\n<h1>{}</h1>\n", over(report), escape(&report.title));
    page.push_str(&badges(report));
    page.push_str(&super::not_measured(missing));
    page.push_str(&super::callout("Read with care", &remark::of(reports)));
    page.push_str(&tiles(report));
    let throughput = charts::throughput(reports);
    if !throughput.is_empty() {
        page.push_str(&format!("<h2>Throughput</h2>\n{throughput}"));
    }
    for kind in [LatencyKind::Acknowledgement, LatencyKind::EndToEnd] {
        let drawn = charts::latency(reports, kind);
        if !drawn.is_empty() {
            page.push_str(&format!(
                "<h2>{}</h2>\n<p>{}</p>\n{drawn}",
                charts::kind_name(kind),
                since(report, kind)
            ));
        }
    }
    page.push_str(&format!("<h2>Cost</h2>\n<p>{}</p>\n{}", whose_cost(report), charts::cost(reports)));
    page.push_str(&format!(
        "<h2>Every figure</h2>\n<p>Over {}.</p>\n{}",
        repetitions(report),
        tables::figures(report)
    ));
    page.push_str(&format!(
        "<h2>Every repetition</h2>\n<p>In the order in which they ran; none is left out.</p>\n{}",
        tables::repetitions(report)
    ));
    page.push_str(&set_up(report));
    page.push_str(&how_to_read());
    page
}

/// When it ran, and with what.
pub fn over(report: &Report) -> String {
    let started = crate::time::show(Timestamp(report.started_at));
    format!("quire bench · {} · Quire {}", escape(&started), escape(&report.version))
}

/// What one has to know before one believes a figure.
pub fn badges(report: &Report) -> String {
    let mut badges = Vec::new();
    let is_enough = report.runs.len() >= REPETITIONS_MIN;
    let medians = match report.runs.len() {
        1 => "one repetition: no spread is known".to_owned(),
        count => format!("medians of {count} repetitions"),
    };
    badges.push((if is_enough { "" } else { "warn" }, medians));
    badges.push(match report.summary.is_clean {
        Some(true) => ("good", "✓ every record verified".to_owned()),
        Some(false) => ("bad", "✗ verification found faults".to_owned()),
        None => ("", "records were not verified".to_owned()),
    });
    badges.push(match report.summary.failed {
        0 => ("", "no record failed".to_owned()),
        failed => ("bad", format!("✗ {} failed", counted(failed, "record"))),
    });
    let items = badges.iter().map(|(class, text)| format!("<li class=\"{class}\">{text}</li>\n"));
    format!("<ul class=\"badges\">\n{}</ul>\n", items.collect::<String>())
}

/// The figures one came for.
fn tiles(report: &Report) -> String {
    let chosen = [
        ("produced_records_per_second", "produced_bytes_per_second", ""),
        ("consumed_records_per_second", "consumed_bytes_per_second", ""),
        ("acknowledgement_p50_us", "", ""),
        ("acknowledgement_p99_us", "acknowledgement_p999_us", "p99.9 "),
        ("end_to_end_p50_us", "", ""),
        ("end_to_end_p99_us", "end_to_end_p999_us", "p99.9 "),
        ("broker_cpu_seconds_per_gb", "client_cpu_seconds_per_gb", "client "),
        ("broker_memory_bytes_max", "broker_anonymous_bytes_max", "without files "),
        ("syncs_per_batch", "syncs_per_record", "a record "),
    ];
    let tiles =
        chosen.iter().filter_map(|(key, beside, words)| tile(report, find(key)?, find(beside), words));
    format!("<div class=\"tiles\">\n{}</div>\n", tiles.collect::<String>())
}

fn find(key: &str) -> Option<&'static Figure> {
    FIGURES.iter().find(|figure| figure.key == key)
}

fn tile(report: &Report, figure: &Figure, beside: Option<&Figure>, words: &str) -> Option<String> {
    let measured = figure.of(report)?;
    let shown = figure.unit.show(measured.spread.median);
    let (number, unit) = split_unit(&shown, figure.unit);
    let second =
        beside.and_then(|other| Some(format!("{words}{}", other.unit.show(other.of(report)?.spread.median))));
    let range = match measured.values.len() {
        1 => "one repetition".to_owned(),
        _ => format!("{} – {}", figure.unit.show(measured.spread.min), figure.unit.show(measured.spread.max)),
    };
    Some(format!(
        "<div class=\"tile\"><h3>{}</h3><div class=\"figure\">{number} <span>{unit}</span></div>{}<p>{range}</p>\
         <p>{}</p></div>\n",
        figure.label,
        strip(figure, &measured),
        second.unwrap_or_default(),
    ))
}

/// The repetitions on a track from zero, which shows how wide they lie beside how large they are.
fn strip(figure: &Figure, measured: &Measured) -> String {
    const WIDTH: f64 = 270.0;
    let scale = Scale::Linear { low: 0.0, high: measured.spread.max.max(f64::MIN_POSITIVE), step: 1.0 };
    let x = |value: f64| scale.place(value) * (WIDTH - 2.0) + 1.0;
    let mut canvas = Canvas::new(WIDTH, 14.0);
    canvas.rect("track", (0.0, 5.0), (WIDTH, 9.0));
    canvas.rect("filled", (0.0, 5.0), (x(measured.spread.median), 9.0));
    for value in &measured.values {
        canvas.line("run", (x(*value), 1.0), (x(*value), 13.0));
    }
    let values = measured.values.iter().map(|value| figure.unit.show(*value)).collect::<Vec<_>>().join(", ");
    let drawn = canvas.finish("strip", &format!("{}, each repetition", figure.label), &values);
    drawn.replacen("<svg ", "<svg preserveAspectRatio=\"none\" ", 1)
}

/// `441k` and `records/s`, `3.4` and `ms`.
fn split_unit(shown: &str, unit: Unit) -> (&str, &str) {
    match unit {
        Unit::RecordsPerSecond => (shown.trim_end_matches("/s"), "records/s"),
        _ => shown.split_once(' ').unwrap_or((shown, "")),
    }
}

/// From which instant a latency counts.
fn since(report: &Report, kind: LatencyKind) -> String {
    let corrected =
        report.runs.iter().filter_map(|run| latency_of(run, kind)).map(|latency| latency.is_corrected);
    let end = match kind {
        LatencyKind::Acknowledgement => "until the producer holds the acknowledgement",
        LatencyKind::EndToEnd => "until a consumer has the record in its hands",
    };
    match corrected.clone().all(|is_corrected| is_corrected) {
        true => format!(
            "From the instant at which the schedule wanted the record sent, however late it was, {end}: corrected for \
             coordinated omission."
        ),
        false => {
            let why = match report.settings.rate {
                None => "Load that goes flat out has no schedule that a stall could fall behind: ",
                Some(_) => "What a stall kept from being sent is not in it: ",
            };
            format!(
                "From the instant at which the record was sent, {end}. {why}not corrected for coordinated omission."
            )
        }
    }
}

fn whose_cost(report: &Report) -> String {
    let shared = match report.machine.is_shared {
        true => "Client and broker share the machine's cores: each would be faster alone.",
        false => "The broker has a machine of its own.",
    };
    match report.runs.iter().any(|run| run.broker.is_some()) {
        true => shared.to_owned(),
        false => format!(
            "{shared} What the broker used could not be read from here: only the client's share is shown."
        ),
    }
}

fn repetitions(report: &Report) -> String {
    counted(report.runs.len() as u64, "repetition")
}

fn set_up(report: &Report) -> String {
    let verified = report.runs.iter().filter_map(|run| run.verification.as_ref());
    let (records, links) = verified.fold((0u64, 0u64), |(records, links), found| {
        (records.saturating_add(found.records), links.saturating_add(found.chain_links))
    });
    let check = match records {
        0 => String::new(),
        _ => format!(
            "<p class=\"lead\">Verified: {} read back, content, order, gaps and duplicates; {} of the chain recomputed.</p>\n",
            counted(records, "record"),
            counted(links, "link")
        ),
    };
    format!(
        "<h2>Settings and machine</h2>\n{check}<div class=\"pair\">\n<div>{}</div>\n<div>{}<h3>Again</h3>\n\
         <pre>{}</pre></div>\n</div>\n",
        tables::pairs(&setting::settings(&report.settings)),
        tables::pairs(&setting::machine(&report.machine)),
        command(report),
    )
}

/// The command line that asks for the same again; lines are broken only between its flags.
pub fn command(report: &Report) -> String {
    let command = setting::command(&report.settings);
    let mut parts = command.split(" --");
    let first = format!("<span>{}</span>", escape(parts.next().unwrap_or_default()));
    parts.fold(first, |line, flag| format!("{line} <span>--{}</span>", escape(flag)))
}

/// What the words and drawings mean.
pub fn how_to_read() -> String {
    let terms = [
        (
            "Medians and spreads",
            "Every figure is the median of its repetitions, with the smallest and the largest beside it. Two figures whose \
             spreads overlap are not different as far as these runs can tell.",
        ),
        (
            "p99",
            "99 % of the records were at least as fast. On the axis of nines 90 %, 99 % and 99.9 % stand at equal distances, \
             so that the slowest records, which users remember, are not pressed into the last pixel.",
        ),
        (
            "Log scale",
            "Latencies span from microseconds to seconds; each step up the axis is a factor, not a sum.",
        ),
        (
            "CPU",
            "Seconds of one processor, user and system together, for each 10⁹ bytes of keys and values moved. On shared \
             cores this decides the throughput.",
        ),
        (
            "Memory",
            "Resident memory counts the pages of mapped log files that happen to be cached; what the process itself holds is \
             the figure without files.",
        ),
        (
            "Units",
            "kB, MB and GB are powers of ten, KiB, MiB and GiB powers of two. Bytes are those of keys and values: protocol, \
             encryption and replicas come on top.",
        ),
    ];
    let said = terms.iter().map(|(term, text)| format!("<dt>{term}</dt><dd>{text}</dd>\n"));
    format!("<h2>How to read this</h2>\n<dl>\n{}</dl>\n", said.collect::<String>())
}
