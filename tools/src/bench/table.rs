//! What a terminal shows: a line for each repetition, a table of medians, and one line for each cell of a matrix.

use super::quantity::{self, LATENCY};
use super::report::{LatencyKind, Report, Run, Settings, Spread, Summary, Verification};
use super::{Missing, remark, title};
use crate::output::{Align, Palette, Table, bytes, counted, thousands};

/// One repetition in one line.
pub fn repetition(number: usize, repeat: u32, run: &Run) -> String {
    let is_wide = run.produced.is_some() && run.consumed.is_some();
    let flow = |name: &str, flow: super::report::Flow| {
        let (records, megabytes) = (flow.records_per_second.round() as u64, flow.bytes_per_second / 1e6);
        let bytes = if is_wide { String::new() } else { format!(" {megabytes:>8.1} MB/s") };
        format!("{name} {:>9} records/s{bytes}", thousands(records))
    };
    let mut parts = Vec::new();
    parts.extend(run.produced.map(|produced| flow("produced", produced)));
    parts.extend(run.consumed.map(|consumed| flow("consumed", consumed)));
    parts.extend(run.latencies.iter().map(|latency| {
        let kind = match latency.kind {
            LatencyKind::Acknowledgement => "acknowledged",
            LatencyKind::EndToEnd => "end to end",
        };
        format!("{kind} p50 {} p99 {}", micros(latency.p50_us), micros(latency.p99_us))
    }));
    parts.extend((run.failed > 0).then(|| format!("{} failed", counted(run.failed, "record"))));
    parts.extend(run.verification.as_ref().map(verdict));
    format!("{number:>3}/{repeat}  {}", parts.join("   "))
}

fn verdict(found: &Verification) -> String {
    let Verification { records, lost, duplicated, reordered, altered, chain_links, is_clean } = found;
    let links = counted(*chain_links, "chain link");
    if *is_clean {
        return format!("verified {}, {links}", counted(*records, "record"));
    }
    format!("NOT CLEAN: lost {lost} duplicated {duplicated} reordered {reordered} altered {altered}")
}

/// A report's medians, each with its ends, and what has to be said of them.
pub fn summary(report: &Report, palette: Palette) -> String {
    let mut table = Table::new(&[
        ("", Align::Left),
        ("median", Align::Right),
        ("min", Align::Right),
        ("max", Align::Right),
        ("", Align::Left),
    ]);
    let mut row = |name: &str, unit: &str, spread: Option<Spread>, show: &dyn Fn(f64) -> String| {
        if let Some(Spread { median, min, max }) = spread {
            table.row(vec![name.into(), show(median), show(min), show(max), unit.into()]);
        }
    };
    let Summary { acknowledgement, end_to_end, .. } = &report.summary;
    let summary = &report.summary;
    let (whole, megabytes) =
        (|value: f64| thousands(value.round() as u64), |value: f64| format!("{:.1}", value / 1e6));
    row("produced", "records/s", summary.produced_records_per_second, &whole);
    row("", "MB/s", summary.produced_bytes_per_second, &megabytes);
    row("consumed", "records/s", summary.consumed_records_per_second, &whole);
    row("", "MB/s", summary.consumed_bytes_per_second, &megabytes);
    for (name, latency) in [("acknowledged", acknowledgement), ("end to end", end_to_end)] {
        let Some(latency) = latency else { continue };
        row(&format!("{name} p50"), "", Some(latency.p50_us), &micros);
        row("  p99", "", Some(latency.p99_us), &micros);
        row("  p99.9", "", Some(latency.p999_us), &micros);
        row("  max", "", Some(latency.max_us), &micros);
    }
    row("CPU, client", "s/GB", summary.client_cpu_seconds_per_gb, &hundredths);
    row("CPU, broker", "s/GB", summary.broker_cpu_seconds_per_gb, &hundredths);
    row("memory, broker", "", summary.broker_memory_bytes_max, &|value| bytes(value.round() as u64));
    row("syncs", "per batch", summary.syncs_per_batch, &small);
    row("", "per record", summary.syncs_per_record, &small);
    format!("{}{}", table.render(palette), remarks(report, palette))
}

/// What a table of medians does not show.
fn remarks(report: &Report, palette: Palette) -> String {
    let mut remarks = String::new();
    if report.summary.failed > 0 {
        let failed = format!("{} failed\n", counted(report.summary.failed, "record"));
        remarks.push_str(&palette.bad(&failed));
    }
    match report.summary.is_clean {
        Some(true) => {
            let records =
                report.runs.iter().filter_map(|run| run.verification.as_ref()).map(|found| found.records);
            let every = counted(records.sum(), "record");
            remarks.push_str(
                &palette.good(&format!("verified: {every} read back, all as sent, the chain holds\n")),
            );
        }
        Some(false) => remarks.push_str(&palette.bad("NOT CLEAN: see the repetitions above\n")),
        None => {}
    }
    if report.runs.iter().any(|run| run.broker.is_none() || run.syncs.is_none()) {
        remarks.push_str(
            "the broker's processor time, memory and syncs are not known: name it with --admin URL\n",
        );
    }
    if report.runs.len() == 1 {
        remarks.push_str("one repetition: no spread is known\n");
    }
    remarks.extend(remark::of(std::slice::from_ref(report)).iter().map(|said| format!("{said}\n")));
    remarks
}

/// Every combination in a line, and what has to be said of them.
pub fn matrix(reports: &[Report], missing: &[Missing], palette: Palette) -> String {
    let mut table = Table::new(&[
        ("sync", Align::Left),
        ("cipher", Align::Left),
        ("replicas", Align::Right),
        ("record", Align::Right),
        ("records/s", Align::Right),
        ("MB/s", Align::Right),
        ("min-max", Align::Right),
        ("p50", Align::Right),
        ("p99", Align::Right),
        ("p99.9", Align::Right),
        ("client s/GB", Align::Right),
        ("broker s/GB", Align::Right),
        ("syncs/batch", Align::Right),
    ]);
    reports.iter().for_each(|report| table.row(combination(report)));
    for Missing { settings, why } in missing {
        let figures = std::iter::repeat_n("-".to_owned(), FIGURES_OF_COMBINATION);
        let said = std::iter::once(format!("! not measured: {why}"));
        table.row(names(settings).into_iter().chain(figures).chain(said).collect());
    }
    let remarks = remark::of(reports).into_iter().map(|said| format!("{said}\n"));
    format!("{}{}", table.render(palette), remarks.collect::<String>())
}

/// What tells a combination from the others.
fn names(settings: &Settings) -> [String; 4] {
    [
        settings.sync.clone(),
        settings.cipher.replace('_', "-"),
        settings.replicas.to_string(),
        title::size(&settings.record_size),
    ]
}

const FIGURES_OF_COMBINATION: usize = 9;

fn combination(report: &Report) -> Vec<String> {
    let summary = &report.summary;
    let records = summary.produced_records_per_second.or(summary.consumed_records_per_second);
    let rate = summary.produced_bytes_per_second.or(summary.consumed_bytes_per_second);
    let latency = summary.end_to_end.or(summary.acknowledgement);
    let shown = |spread: Option<Spread>, show: &dyn Fn(f64) -> String| {
        spread.map_or_else(|| "-".to_owned(), |spread| show(spread.median))
    };
    let megabytes = |value: f64| format!("{:.1}", value / 1e6);
    let ends = |rate: Spread| format!("{}-{}", megabytes(rate.min), megabytes(rate.max));
    let figures: [String; FIGURES_OF_COMBINATION] = [
        shown(records, &|value| thousands(value.round() as u64)),
        shown(rate, &megabytes),
        rate.map_or_else(|| "-".to_owned(), ends),
        shown(latency.map(|latency| latency.p50_us), &micros),
        shown(latency.map(|latency| latency.p99_us), &micros),
        shown(latency.map(|latency| latency.p999_us), &micros),
        shown(summary.client_cpu_seconds_per_gb, &hundredths),
        shown(summary.broker_cpu_seconds_per_gb, &hundredths),
        shown(summary.syncs_per_batch, &small),
    ];
    let wrong = [
        (summary.failed > 0).then(|| format!("! {} failed", counted(summary.failed, "record"))),
        (summary.is_clean == Some(false)).then(|| "! NOT CLEAN".to_owned()),
        remark::is_behind(report).then(|| "! behind its schedule".to_owned()),
    ];
    names(&report.settings).into_iter().chain(figures).chain(wrong.into_iter().flatten()).collect()
}

/// A latency with three digits, of microseconds.
fn micros(value: f64) -> String {
    quantity::measured(value, LATENCY)
}

fn hundredths(value: f64) -> String {
    format!("{value:.2}")
}

/// A figure that may be far below one.
fn small(value: f64) -> String {
    if value >= 0.1 { format!("{value:.2}") } else { format!("{value:.5}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{sample, summary as medians};

    fn report() -> Report {
        let mut report = sample::report("produce: as it was asked for", &[1000.0, 3000.0, 2000.0]);
        report.summary = medians::of(&report.runs);
        report
    }

    #[test]
    fn medians_stand_between_their_ends() {
        let shown = summary(&report(), Palette::PLAIN);
        let lines: Vec<&str> = shown.lines().collect();
        let produced: Vec<&str> = lines[1].split_whitespace().collect();
        assert_eq!(produced, ["produced", "2,000", "1,000", "3,000", "records/s"]);
        assert!(lines.iter().any(|line| line.trim_start().starts_with("acknowledged p50")), "{shown}");
    }

    #[test]
    fn failures_an_unclean_check_and_what_is_not_known_are_said() {
        let mut report = report();
        report.summary.failed = 2;
        report.summary.is_clean = Some(false);
        report.runs[0].syncs = None;
        let shown = summary(&report, Palette::PLAIN);
        for part in ["2 records failed", "NOT CLEAN", "name it with --admin URL"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        let table = matrix(&[report], &[], Palette::PLAIN);
        let row = table.lines().nth(1).expect("a combination");
        assert!(row.ends_with("! 2 records failed  ! NOT CLEAN"), "{table}");
    }

    #[test]
    fn a_combination_that_failed_stands_in_the_table_with_its_reason() {
        let missing = Missing { settings: sample::settings(), why: "the disk is full".to_owned() };
        let table = matrix(&[report()], &[missing], Palette::PLAIN);
        let row: Vec<_> = table.lines().nth(2).expect("it has a row").split_whitespace().collect();
        assert_eq!(row[..6], ["always", "AES-128-GCM", "1", "1", "KiB", "-"], "{table}");
        assert!(row.join(" ").ends_with("- ! not measured: the disk is full"), "{table}");
        assert!(table.lines().last().expect("a remark").starts_with("flat out: "), "{table}");
    }

    #[test]
    fn a_repetition_is_one_line_with_everything_that_went_wrong() {
        let mut run = report().runs.remove(1);
        assert!(repetition(2, 3, &run).starts_with("  2/3  produced     3,000 records/s"));
        run.failed = 1;
        run.verification = Some(Verification { lost: 4, ..Verification::default() });
        let line = repetition(2, 3, &run);
        assert!(
            line.ends_with("1 record failed   NOT CLEAN: lost 4 duplicated 0 reordered 0 altered 0"),
            "{line}"
        );
    }

    #[test]
    fn figures_far_below_one_keep_their_digits() {
        assert_eq!([small(0.0004), small(0.25), small(1.0)], ["0.00040", "0.25", "1.00"]);
    }
}
