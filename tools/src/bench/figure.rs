//! The figures that a report is judged by, and when two of them may be called different.

use super::quantity;
use super::report::{Latency, LatencyKind, Report, Run, Spread};
use super::summary;

/// Repetitions below which a spread says too little: two equal systems whose figures are drawn three times each come
/// apart in one comparison of ten by chance alone, with two each in one of three.
pub const REPETITIONS_MIN: usize = 3;

/// Which way a figure gets better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Throughput.
    Higher,
    /// Latency and cost.
    Lower,
}

impl Better {
    /// `higher` or `lower`.
    pub fn word(self) -> &'static str {
        match self {
            Better::Higher => "higher",
            Better::Lower => "lower",
        }
    }
}

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Records a second.
    RecordsPerSecond,
    /// Bytes a second.
    BytesPerSecond,
    /// Microseconds.
    Microseconds,
    /// Processor seconds for 10⁹ bytes.
    SecondsPerGb,
    /// Bytes of memory.
    Bytes,
    /// A number of things.
    Count,
}

impl Unit {
    /// The value with its unit, rounded.
    pub fn show(self, value: f64) -> String {
        let measured = |units| quantity::measured(value, units);
        match self {
            Unit::RecordsPerSecond => format!("{}/s", measured(quantity::COUNT)),
            Unit::BytesPerSecond => measured(quantity::BYTES_PER_SECOND),
            Unit::Microseconds => measured(quantity::LATENCY),
            Unit::SecondsPerGb => format!("{} s/GB", measured(quantity::COUNT)),
            Unit::Bytes => measured(quantity::MEMORY),
            Unit::Count => measured(quantity::COUNT),
        }
    }

    /// The value's unit in `--json`.
    pub fn name(self) -> &'static str {
        match self {
            Unit::RecordsPerSecond => "records_per_second",
            Unit::BytesPerSecond => "bytes_per_second",
            Unit::Microseconds => "microseconds",
            Unit::SecondsPerGb => "cpu_seconds_per_gb",
            Unit::Bytes => "bytes",
            Unit::Count => "count",
        }
    }
}

/// A figure of a repetition, and of a report.
#[derive(Debug)]
pub struct Figure {
    /// Its name in `--json`.
    pub key: &'static str,
    /// Its name for people.
    pub label: &'static str,
    /// What it counts.
    pub unit: Unit,
    /// Which way it gets better.
    pub better: Better,
    /// The figure of one repetition.
    pub of_run: fn(&Run) -> Option<f64>,
}

impl Figure {
    /// The figure's spread over a report's repetitions; `None` where one of them lacks it.
    pub fn of(&self, report: &Report) -> Option<Measured> {
        Measured::new(report.runs.iter().map(self.of_run).collect::<Option<Vec<f64>>>()?)
    }

    /// What `b` is beside `a`.
    pub fn compare(&self, a: &Measured, b: &Measured) -> Comparison {
        Comparison { ratio: ratio(a.spread.median, b.spread.median), verdict: self.verdict(a, b) }
    }

    fn verdict(&self, a: &Measured, b: &Measured) -> Verdict {
        let is_apart = a.spread.max < b.spread.min || b.spread.max < a.spread.min;
        if a.values.len().min(b.values.len()) < REPETITIONS_MIN {
            return Verdict::TooFew;
        }
        if !is_apart {
            return Verdict::WithinSpread;
        }
        let is_higher = b.spread.median > a.spread.median;
        if is_higher == (self.better == Better::Higher) { Verdict::Better } else { Verdict::Worse }
    }
}

/// A figure of every repetition.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// One a repetition, in their order.
    pub values: Vec<f64>,
    /// Over all of them.
    pub spread: Spread,
}

impl Measured {
    fn new(values: Vec<f64>) -> Option<Measured> {
        Some(Measured { spread: summary::spread(&values)?, values })
    }
}

/// One figure of two reports.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// The second median divided by the first; `None` where the first is zero.
    pub ratio: Option<f64>,
    /// What may be said about it.
    pub verdict: Verdict,
}

/// What may be said about a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Every repetition was better than every one of the other.
    Better,
    /// Every repetition was worse than every one of the other.
    Worse,
    /// The spreads overlap: the repetitions do not show a difference.
    WithinSpread,
    /// One of them has fewer than [`REPETITIONS_MIN`] repetitions.
    TooFew,
}

impl Verdict {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Verdict::Better => "better",
            Verdict::Worse => "worse",
            Verdict::WithinSpread => "within spread",
            Verdict::TooFew => "too few runs",
        }
    }

    /// In `--json`.
    pub fn key(self) -> &'static str {
        match self {
            Verdict::Better => "better",
            Verdict::Worse => "worse",
            Verdict::WithinSpread => "within_spread",
            Verdict::TooFew => "too_few_repetitions",
        }
    }
}

/// Every figure, the ones that matter most first.
pub const FIGURES: &[Figure] = &[
    Figure {
        key: "produced_records_per_second",
        label: "Produced",
        unit: Unit::RecordsPerSecond,
        better: Better::Higher,
        of_run: |run| Some(run.produced?.records_per_second),
    },
    Figure {
        key: "produced_bytes_per_second",
        label: "Produced, bytes",
        unit: Unit::BytesPerSecond,
        better: Better::Higher,
        of_run: |run| Some(run.produced?.bytes_per_second),
    },
    Figure {
        key: "consumed_records_per_second",
        label: "Consumed",
        unit: Unit::RecordsPerSecond,
        better: Better::Higher,
        of_run: |run| Some(run.consumed?.records_per_second),
    },
    Figure {
        key: "consumed_bytes_per_second",
        label: "Consumed, bytes",
        unit: Unit::BytesPerSecond,
        better: Better::Higher,
        of_run: |run| Some(run.consumed?.bytes_per_second),
    },
    latency_figure("acknowledgement_p50_us", "Acknowledgement p50", |run| Some(acknowledgement(run)?.p50_us)),
    latency_figure("acknowledgement_p99_us", "Acknowledgement p99", |run| Some(acknowledgement(run)?.p99_us)),
    latency_figure("acknowledgement_p999_us", "Acknowledgement p99.9", |run| {
        Some(acknowledgement(run)?.p999_us)
    }),
    latency_figure("acknowledgement_max_us", "Acknowledgement max", |run| Some(acknowledgement(run)?.max_us)),
    latency_figure("end_to_end_p50_us", "End to end p50", |run| Some(end_to_end(run)?.p50_us)),
    latency_figure("end_to_end_p99_us", "End to end p99", |run| Some(end_to_end(run)?.p99_us)),
    latency_figure("end_to_end_p999_us", "End to end p99.9", |run| Some(end_to_end(run)?.p999_us)),
    latency_figure("end_to_end_max_us", "End to end max", |run| Some(end_to_end(run)?.max_us)),
    Figure {
        key: "client_cpu_seconds_per_gb",
        label: "Client CPU",
        unit: Unit::SecondsPerGb,
        better: Better::Lower,
        of_run: |run| run.client.cpu_seconds_per_gb,
    },
    Figure {
        key: "broker_cpu_seconds_per_gb",
        label: "Broker CPU",
        unit: Unit::SecondsPerGb,
        better: Better::Lower,
        of_run: |run| run.broker?.cpu_seconds_per_gb,
    },
    Figure {
        key: "broker_memory_bytes_max",
        label: "Broker memory, largest",
        unit: Unit::Bytes,
        better: Better::Lower,
        of_run: |run| Some(run.broker?.memory_bytes_max as f64),
    },
    Figure {
        key: "broker_anonymous_bytes_max",
        label: "Broker memory without files",
        unit: Unit::Bytes,
        better: Better::Lower,
        of_run: |run| Some(run.broker?.anonymous_bytes_max? as f64),
    },
    Figure {
        key: "syncs_per_record",
        label: "Syncs a record",
        unit: Unit::Count,
        better: Better::Lower,
        of_run: |run| run.syncs_per_record,
    },
    Figure {
        key: "syncs_per_batch",
        label: "Syncs a batch",
        unit: Unit::Count,
        better: Better::Lower,
        of_run: |run| run.syncs_per_batch,
    },
];

const fn latency_figure(key: &'static str, label: &'static str, of_run: fn(&Run) -> Option<f64>) -> Figure {
    Figure { key, label, unit: Unit::Microseconds, better: Better::Lower, of_run }
}

fn acknowledgement(run: &Run) -> Option<&Latency> {
    latency_of(run, LatencyKind::Acknowledgement)
}

fn end_to_end(run: &Run) -> Option<&Latency> {
    latency_of(run, LatencyKind::EndToEnd)
}

/// The repetition's latency of that kind.
pub fn latency_of(run: &Run, kind: LatencyKind) -> Option<&Latency> {
    run.latencies.iter().find(|latency| latency.kind == kind)
}

/// What a report is about first: what was produced, or consumed where nothing was.
pub fn headline(report: &Report) -> Option<&'static Figure> {
    FIGURES.iter().find(|figure| figure.unit == Unit::RecordsPerSecond && figure.of(report).is_some())
}

/// The index of the repetition that stands in the middle, by throughput, or by latency where a schedule gives the
/// throughput; the first of equals.
pub fn median_run(report: &Report) -> usize {
    let is_tail = |figure: &&Figure| ["end_to_end_p99_us", "acknowledgement_p99_us"].contains(&figure.key);
    // End to end, where there is one.
    let tail = FIGURES.iter().rev().filter(|_| report.settings.rate.is_some()).filter(is_tail);
    let tail = tail.into_iter().find(|figure| figure.of(report).is_some());
    let Some(figure) = tail.or_else(|| headline(report)) else { return 0 };
    let Some(measured) = figure.of(report) else { return 0 };
    let distance = |run: &Run| {
        (figure.of_run)(run).map_or(f64::INFINITY, |value| (value - measured.spread.median).abs())
    };
    let nearest = report.runs.iter().enumerate().min_by(|(_, a), (_, b)| distance(a).total_cmp(&distance(b)));
    nearest.map_or(0, |(index, _)| index)
}

fn ratio(a: f64, b: f64) -> Option<f64> {
    Some(b / a).filter(|ratio| ratio.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::sample;

    fn measured(values: &[f64]) -> Measured {
        Measured::new(values.to_vec()).expect("there are values")
    }

    fn verdict(better: Better, a: &[f64], b: &[f64]) -> Verdict {
        let figure = Figure { better, ..latency_figure("", "", |_| None) };
        figure.compare(&measured(a), &measured(b)).verdict
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        let spread = |values: &[f64]| measured(values).spread;
        assert_eq!(spread(&[4.0, 1.0, 3.0, 2.0]), Spread { median: 2.5, min: 1.0, max: 4.0 });
        assert_eq!(spread(&[9.0, 1.0, 3.0]), Spread { median: 3.0, min: 1.0, max: 9.0 });
        assert_eq!(Measured::new(Vec::new()), None);
    }

    #[test]
    fn a_difference_is_claimed_only_where_the_spreads_are_apart() {
        let [low, high, wide] = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [3.0, 5.0, 9.0]];
        assert_eq!(verdict(Better::Higher, &low, &high), Verdict::Better);
        assert_eq!(verdict(Better::Lower, &low, &high), Verdict::Worse);
        assert_eq!(verdict(Better::Higher, &high, &low), Verdict::Worse);
        assert_eq!(verdict(Better::Lower, &high, &low), Verdict::Better);
        // They share one value: not apart.
        assert_eq!(verdict(Better::Higher, &low, &wide), Verdict::WithinSpread);
        assert_eq!(verdict(Better::Lower, &low, &low), Verdict::WithinSpread);
    }

    #[test]
    fn two_repetitions_prove_nothing() {
        assert_eq!(verdict(Better::Higher, &[1.0, 1.0, 1.0], &[5.0, 5.0]), Verdict::TooFew);
        assert_eq!(verdict(Better::Higher, &[1.0], &[1.0, 2.0, 3.0]), Verdict::TooFew);
    }

    #[test]
    fn a_ratio_to_nothing_is_none() {
        let figure = &FIGURES[0];
        assert_eq!(figure.compare(&measured(&[2.0]), &measured(&[3.0])).ratio, Some(1.5));
        assert_eq!(figure.compare(&measured(&[0.0]), &measured(&[3.0])).ratio, None);
        assert_eq!(figure.compare(&measured(&[0.0]), &measured(&[0.0])).ratio, None);
    }

    #[test]
    fn the_median_repetition_is_told_by_what_the_load_left_open() {
        let mut report = sample::report("T", &[100.0, 300.0, 200.0]);
        for (run, p99_us) in report.runs.iter_mut().zip([5.0, 9.0, 1.0]) {
            run.latencies[0].p99_us = p99_us;
        }
        assert_eq!(median_run(&report), 2, "by throughput");
        report.settings.rate = Some(300.0);
        assert_eq!(median_run(&report), 0, "by latency, on schedule");
        report.runs.iter_mut().for_each(|run| run.latencies.clear());
        assert_eq!(median_run(&report), 2);
    }

    #[test]
    fn every_figure_has_a_name_of_its_own() {
        let mut keys: Vec<_> = FIGURES.iter().map(|figure| figure.key).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), FIGURES.len());
    }
}
