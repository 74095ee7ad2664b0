//! The drawings of a page: which values of the reports go into which, and what stands under them.

use super::distribution::{self, Distribution, Point};
use super::plot::Size;
use super::svg::escape;
use super::timeline::{Interval, Kind, Line, SecondAxis, Timeline, intervals};
use crate::bench::compare::label;
use crate::bench::figure::{FIGURES, Measured, Unit, latency_of, median_run};
use crate::bench::quantity;
use crate::bench::report::{Latency, LatencyKind, Report, Run, Second};
use crate::output::counted;

/// Of larger machines the level of all cores is not drawn: it would press what is used to the ground.
const LEVEL_CORES_MAX: f64 = 8.0;

/// What is read out of a second and its length.
type Value = fn(&Second, f64) -> Option<f64>;

/// A drawing with its caption, for wide pages and for narrow ones. `title` is text, `note` too.
pub fn figure(size: Size, title: &str, note: &str, draw: impl Fn(Size) -> String) -> String {
    let class = if size == Size::Full { "full" } else { "half" };
    format!(
        "<figure class=\"{class}\"><figcaption><b>{}</b> {}</figcaption>\n{}{}</figure>\n",
        escape(title),
        escape(note),
        draw(size),
        draw(Size::Narrow)
    )
}

/// Records over time, produced and consumed; and bytes where records of several sizes are compared.
pub fn throughput(reports: &[Report]) -> String {
    let mut page = String::new();
    let sides: [(&str, Value, Value); 2] = [
        (
            "Produced",
            |second, length| Some(second.produced_records as f64 / length),
            |second, length| Some(second.produced_bytes as f64 / length),
        ),
        (
            "Consumed",
            |second, length| Some(second.consumed_records as f64 / length),
            |second, length| Some(second.consumed_bytes as f64 / length),
        ),
    ];
    for (name, records, bytes) in sides {
        let has =
            |run: &Run| if name == "Produced" { run.produced.is_some() } else { run.consumed.is_some() };
        let mut line = timeline(reports, name, "records a second", |run, second, length| {
            records(second, length).filter(|_| has(run))
        });
        if line.is_empty() {
            continue;
        }
        if let [only] = reports {
            line.right = bytes_axis(only, name == "Produced");
        }
        let note = format!("in each second; {}", weights(reports));
        page.push_str(&figure(Size::Full, name, &note, |size| line.draw(size)));
        if has_other_sizes(reports) {
            let mut line =
                timeline(reports, &format!("{name}, bytes"), "bytes a second", |run, second, length| {
                    bytes(second, length).filter(|_| has(run))
                });
            line.show = quantity::bytes_per_second;
            page.push_str(&figure(Size::Full, &line.title, "because the record sizes differ", |size| {
                line.draw(size)
            }));
        }
    }
    page
}

/// The distribution of one kind of latency, and its course; empty where no report has it.
pub fn latency(reports: &[Report], kind: LatencyKind) -> String {
    let distributions: Vec<_> = reports
        .iter()
        .enumerate()
        .filter_map(|(index, report)| distribution_of(reports, index, report, kind))
        .collect();
    if distributions.is_empty() {
        return String::new();
    }
    let what = kind_name(kind);
    let mut page = figure(
        Size::Full,
        "Percentiles",
        &format!(
            "on an axis of nines; dots: medians over the repetitions, bars: their spread; {}",
            weights(reports)
        ),
        |size| distribution::percentiles(&format!("{what}, percentiles"), &distributions, size),
    );
    page.push_str("<div class=\"pair\">");
    page.push_str(&figure(Size::Half, "Distribution", "all repetitions together", |size| {
        distribution::histogram(&format!("{what}, distribution"), &distributions, size)
    }));
    page.push_str(&latency_over_time(reports, kind));
    page.push_str("</div>");
    page
}

fn latency_over_time(reports: &[Report], kind: LatencyKind) -> String {
    let [p50, p99]: [Value; 2] = match kind {
        LatencyKind::Acknowledgement => {
            [|second, _| second.acknowledgement_p50_us, |second, _| second.acknowledgement_p99_us]
        }
        LatencyKind::EndToEnd => [|second, _| second.end_to_end_p50_us, |second, _| second.end_to_end_p99_us],
    };
    let mut slow =
        timeline(reports, "p99 over time", "latency, log scale", |_, second, length| p99(second, length));
    slow.kind = Kind::Log;
    slow.show = quantity::latency;
    if reports.len() == 1 {
        let fast = timeline(reports, "", "", |_, second, length| p50(second, length));
        slow.title = "Over time".to_owned();
        slow.lines.splice(
            0..0,
            fast.lines.into_iter().map(|line| Line {
                class: line.class.replace("c0", "c0 soft"),
                name: line.name.map(|_| "p50".to_owned()),
                ..line
            }),
        );
        slow.lines.iter_mut().filter(|line| line.name.as_deref() == Some("")).for_each(|line| {
            line.name = Some("p99".to_owned());
        });
    }
    if slow.is_empty() {
        return String::new();
    }
    figure(Size::Half, &slow.title, "of each second", |size| slow.draw(size))
}

/// Processor time, memory and syncs over time.
pub fn cost(reports: &[Report]) -> String {
    let syncs =
        timeline(reports, "Syncs", "syncs a second", |_, second, length| Some(second.syncs? as f64 / length));
    let mut memory = timeline(reports, "Broker memory", "resident, files included", |_, second, _| {
        Some(second.broker_memory_bytes? as f64)
    });
    memory.show = quantity::memory;
    memory.kind = Kind::Memory;
    let drawings = [
        (processor(reports), processor_note(reports)),
        (memory, "at the end of each second"),
        (syncs, "of logs"),
    ];
    let drawn = drawings.iter().filter(|(line, _)| !line.is_empty());
    let drawn = drawn.map(|(line, note)| figure(Size::Half, &line.title, note, |size| line.draw(size)));
    format!("<div class=\"pair\">{}</div>", drawn.collect::<String>())
}

fn processor_note(reports: &[Report]) -> &'static str {
    match reports.iter().flat_map(|report| &report.runs).all(|run| run.broker.is_some()) {
        true => "cores in use, client and broker",
        false => "cores in use; where the broker's are not known, the client's alone",
    }
}

/// Of one report client and broker on top of each other, of several the sum of each.
fn processor(reports: &[Report]) -> Timeline {
    let client: Value = |second, length| Some(second.client_cpu_seconds / length);
    let broker: Value = |second, length| Some(second.broker_cpu_seconds? / length);
    let [report] = reports else {
        return timeline(reports, "Processor", "cores", move |_, second, length| {
            Some(client(second, length)? + broker(second, length).unwrap_or(0.0))
        });
    };
    let mut line = timeline(reports, "Processor", "cores", |_, _, _| None);
    line.kind = Kind::Stacked;
    line.lines = [("broker", "c0", broker), ("client", "c4", client)]
        .into_iter()
        .filter_map(|(name, class, value)| {
            let intervals = intervals(report.runs.get(median_run(report))?, value);
            let is_known = intervals.iter().any(|interval| interval.value.is_some());
            is_known.then(|| Line { class: class.to_owned(), name: Some(name.to_owned()), intervals })
        })
        .collect();
    let cores = f64::from(report.machine.cores);
    if report.machine.is_shared && cores <= LEVEL_CORES_MAX && !line.is_empty() {
        line.level = Some((cores, counted(u64::from(report.machine.cores), "core") + " in all"));
    }
    line
}

/// Every repetition of every report as a line, the median ones in front.
fn timeline(
    reports: &[Report],
    title: &str,
    name: &str,
    value: impl Fn(&Run, &Second, f64) -> Option<f64>,
) -> Timeline {
    let mut background = Vec::new();
    let mut front = Vec::new();
    for (index, report) in reports.iter().enumerate() {
        let median = median_run(report);
        for (number, run) in report.runs.iter().enumerate() {
            let intervals: Vec<Interval> = intervals(run, |second, length| value(run, second, length));
            if intervals.iter().all(|interval| interval.value.is_none()) {
                continue;
            }
            if number == median {
                let name = if reports.len() == 1 { String::new() } else { label(index) };
                front.push(Line { class: colour(index), name: Some(name), intervals });
            } else {
                background.push(Line { class: format!("{} faint", colour(index)), name: None, intervals });
            }
        }
    }
    background.append(&mut front);
    Timeline {
        title: title.to_owned(),
        name: name.to_owned(),
        kind: Kind::Linear,
        show: quantity::count,
        lines: background,
        right: None,
        level: None,
    }
}

fn distribution_of<'a>(
    reports: &[Report],
    index: usize,
    report: &'a Report,
    kind: LatencyKind,
) -> Option<Distribution<'a>> {
    let front = report.runs.get(median_run(report)).and_then(|run| latency_of(run, kind));
    let runs: Vec<&Latency> = report.runs.iter().filter_map(|run| latency_of(run, kind)).collect();
    let runs: Vec<_> = runs.into_iter().filter(|latency| latency.count > 0).collect();
    let median = runs.iter().position(|latency| front.is_some_and(|front| std::ptr::eq(front, *latency)));
    (!runs.is_empty()).then(|| Distribution {
        class: colour(index),
        name: (reports.len() > 1).then(|| label(index)),
        runs,
        median: median.unwrap_or(0),
        points: points(report, kind),
    })
}

fn points(report: &Report, kind: LatencyKind) -> Vec<Point> {
    let prefix = match kind {
        LatencyKind::Acknowledgement => "acknowledgement",
        LatencyKind::EndToEnd => "end_to_end",
    };
    [("p50", "p50_us", 0.5), ("p99", "p99_us", 0.99), ("p99.9", "p999_us", 0.999), ("max", "max_us", 1.0)]
        .into_iter()
        .filter_map(|(name, key, share)| {
            let key = format!("{prefix}_{key}");
            let figure = FIGURES.iter().find(|figure| figure.key == key)?;
            Some(Point { name, share, spread: figure.of(report)?.spread })
        })
        .collect()
}

/// Bytes a second beside records a second: one is as many of the other as the records' mean size.
fn bytes_axis(report: &Report, is_produced: bool) -> Option<SecondAxis> {
    let flows = report.runs.iter().filter_map(|run| if is_produced { run.produced } else { run.consumed });
    let (records, bytes) = flows.fold((0.0, 0.0), |(records, bytes), flow| {
        (records + flow.records as f64, bytes + flow.bytes as f64)
    });
    let factor = bytes / records;
    (factor.is_finite() && factor > 0.0).then_some(SecondAxis {
        name: "bytes a second",
        factor,
        show: quantity::bytes_per_second,
    })
}

/// Whether records of several sizes stand beside each other: then bytes tell more.
pub fn has_other_sizes(reports: &[Report]) -> bool {
    let sizes = || reports.iter().map(|report| report.settings.record_size_mean);
    sizes().fold(0.0, f64::max) > sizes().fold(f64::INFINITY, f64::min) * 1.01
}

/// Which line is which repetition.
fn weights(reports: &[Report]) -> String {
    match reports {
        [only] if only.runs.len() > 1 => {
            let faint = only.runs.len() - 1;
            format!(
                "strong line: repetition {}, the median; faint: the other{}",
                median_run(only) + 1,
                if faint == 1 { String::new() } else { format!(" {faint}") }
            )
        }
        [_] => "one repetition".to_owned(),
        _ => "strong lines: the median repetitions; faint: the others".to_owned(),
    }
}

/// What is measured, for people.
pub fn kind_name(kind: LatencyKind) -> &'static str {
    match kind {
        LatencyKind::Acknowledgement => "Latency until acknowledged",
        LatencyKind::EndToEnd => "Latency end to end",
    }
}

/// The class of a report's colour.
pub fn colour(index: usize) -> String {
    format!("c{}", index % 6)
}

/// A spread as `median (min – max)`.
pub fn spread(unit: Unit, measured: &Measured) -> String {
    let shown = |value| escape(&unit.show(value));
    let range = format!("{} – {}", shown(measured.spread.min), shown(measured.spread.max));
    let range = if measured.values.len() > 1 { range } else { "one repetition".to_owned() };
    format!("<b>{}</b> <small>{range}</small>", shown(measured.spread.median))
}
