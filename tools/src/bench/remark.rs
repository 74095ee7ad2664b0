//! What has to be said beside figures, or they would be taken for what they are not.

use quire_protocol::limits;

use super::figure::{latency_of, median_run};
use super::quantity;
use super::report::{LatencyKind, Report, Run, Scenario, Settings};

/// The share of its rate below which a schedule counts as not kept.
const RATE_SHARE_MIN: f64 = 0.98;
/// Seconds from which on a run has two halves to tell apart.
const SECONDS_MIN: usize = 4;
/// A half with less than this share of the other's throughput was not the same state of things.
const HALF_SHARE_MIN: f64 = 0.75;

/// What has to be said of these reports, a sentence each.
pub fn of(reports: &[Report]) -> Vec<String> {
    let said = [unacknowledged(reports), behind(reports), unsteady(reports), queued(reports)];
    said.into_iter().flatten().collect()
}

/// Whether less came through than the schedule wanted sent, in any repetition.
pub fn is_behind(report: &Report) -> bool {
    report.settings.rate.is_some_and(|rate| slowest(report) < rate * RATE_SHARE_MIN)
}

/// Whether a record's latency has the wait for those before it: flat out, and nothing but memory bounds how many there
/// are.
pub fn is_queued(settings: &Settings) -> bool {
    settings.scenario != Scenario::Consume && settings.rate.is_none() && settings.in_flight.is_none()
}

fn unacknowledged(reports: &[Report]) -> Option<String> {
    let is_any = reports.iter().any(|report| report.settings.acks == "none");
    is_any.then(|| {
        "acks none: no broker answers, and a record counts as produced when its connection took it".to_owned()
    })
}

fn behind(reports: &[Report]) -> Option<String> {
    let late: Vec<_> = reports.iter().filter(|report| is_behind(report)).collect();
    let per_second = |value: f64| quantity::measured(value, quantity::COUNT);
    let which = match (late.as_slice(), reports.len()) {
        ([], _) => return None,
        ([report], 1) => format!(
            "{} of {} records/s came through in the slowest repetition",
            per_second(slowest(report)),
            per_second(report.settings.rate.unwrap_or(0.0))
        ),
        (late, all) => format!("{} of {all} benchmarks fell behind", late.len()),
    };
    Some(format!(
        "the schedule was not kept: {which}; the latencies tell how far it fell behind, and grow with time"
    ))
}

/// A mean over a burst and what comes after it is neither.
fn unsteady(reports: &[Report]) -> Option<String> {
    let halves: Vec<_> = reports.iter().filter_map(halves).collect();
    let is_unsteady =
        |(first, second): &&(f64, f64)| first.min(*second) < HALF_SHARE_MIN * first.max(*second);
    let changed: Vec<_> = halves.iter().filter(is_unsteady).collect();
    let per_second = |value: f64| quantity::measured(value, quantity::COUNT);
    let which = match (changed.as_slice(), reports.len()) {
        ([], _) => return None,
        ([(first, second)], 1) => format!(
            "{} records/s in the first half of the median repetition, {} in the second",
            per_second(*first),
            per_second(*second)
        ),
        (changed, all) => {
            format!("in {} of {all} benchmarks one half has far more than the other", changed.len())
        }
    };
    Some(format!("the throughput was not steady: {which}; a longer --duration tells what lasts"))
}

/// Records a second in the first and in the second half of the median repetition, by whole seconds.
fn halves(report: &Report) -> Option<(f64, f64)> {
    let timeline = &report.runs.get(median_run(report))?.timeline;
    let half = (timeline.len() >= SECONDS_MIN).then_some(timeline.len() / 2)?;
    let before = |index: usize| index.checked_sub(1).map_or(0.0, |index| timeline[index].at);
    let rate = |from: usize, to: usize| {
        let records = timeline[from..to].iter().map(|second| match report.settings.scenario {
            Scenario::Consume => second.consumed_records as f64,
            _ => second.produced_records as f64,
        });
        records.sum::<f64>() / (before(to) - before(from)).max(f64::MIN_POSITIVE)
    };
    Some((rate(0, half), rate(half, timeline.len())))
}

/// Little's law: what is in flight is the throughput times the mean latency.
fn queued(reports: &[Report]) -> Option<String> {
    let queued = reports.iter().filter(|report| is_queued(&report.settings));
    let mut bytes: Vec<f64> =
        queued.flat_map(|report| report.runs.iter().filter_map(bytes_in_flight)).collect();
    bytes.sort_by(f64::total_cmp);
    let (least, most) = (bytes.first()?, bytes.last()?);
    let [least, most] = [least, most].map(|bytes| quantity::memory(*bytes));
    let amount = if least == most { least } else { format!("{least} to {most}") };
    let memory = quantity::memory(limits::PRODUCER_MEMORY_BYTES_DEFAULT as f64);
    Some(format!(
        "flat out: {amount} of records were in flight on average (a producer's memory holds {memory}): the more, \
         the more of a latency is the wait for those before; what a record takes by itself is told by --rate, or \
         --in-flight 1"
    ))
}

fn bytes_in_flight(run: &Run) -> Option<f64> {
    let latency = latency_of(run, LatencyKind::Acknowledgement)?;
    Some(run.produced?.bytes_per_second * latency.mean_us / 1e6)
}

fn slowest(report: &Report) -> f64 {
    let rates = report.runs.iter().filter_map(|run| Some(run.produced?.records_per_second));
    rates.fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::Second;
    use crate::bench::sample;

    #[test]
    fn records_in_flight_are_throughput_times_latency() {
        // 100,000 records/s of 1 KiB, 600 µs each.
        let report = sample::report("T", &[100_000.0]);
        let [said] = <[String; 1]>::try_from(of(std::slice::from_ref(&report))).expect("one sentence");
        assert!(said.starts_with("flat out: 60 KiB of records were in flight on average"), "{said}");
        let said = of(&[report.clone(), sample::report("T", &[200_000.0])]);
        assert!(said[0].starts_with("flat out: 60 KiB to 120 KiB of records"), "{said:?}");
        let mut bounded = report.clone();
        bounded.settings.in_flight = Some(64);
        let mut reading = report;
        reading.settings.scenario = Scenario::Consume;
        assert!(of(&[bounded, reading]).is_empty());
    }

    #[test]
    fn a_schedule_that_was_not_kept_is_told() {
        let mut kept = sample::report("T", &[10_000.0, 9_900.0]);
        kept.settings.rate = Some(10_000.0);
        assert!(of(&[kept.clone()]).is_empty());
        let mut late = sample::report("T", &[9_990.0, 9_500.0]);
        late.settings.rate = Some(10_000.0);
        let said = of(&[late.clone()]);
        assert!(said[0].contains("not kept: 9.50k of 10.0k records/s came through"), "{said:?}");
        let said = of(&[late, kept]);
        assert!(said[0].contains("1 of 2 benchmarks fell behind"), "{said:?}");
    }

    #[test]
    fn a_burst_that_does_not_last_is_told() {
        let mut report = sample::report("T", &[100.0]);
        report.settings.rate = Some(100.0);
        let seconds = |records: [u64; 5]| {
            let each = records.iter().zip(1..);
            each.map(|(records, at)| Second {
                at: f64::from(at),
                produced_records: *records,
                ..Second::default()
            })
            .collect()
        };
        report.runs[0].timeline = seconds([100, 90, 80, 80, 90]);
        assert!(of(std::slice::from_ref(&report)).is_empty());
        report.runs[0].timeline = seconds([400, 200, 100, 100, 100]);
        let said = of(std::slice::from_ref(&report));
        assert!(said[0].contains("not steady: 300 records/s in the first half"), "{said:?}");
        assert!(said[0].contains(", 100 in the second"), "{said:?}");
        assert!(of(&[report.clone(), report])[0].contains("in 2 of 2 benchmarks"));
    }

    #[test]
    fn what_nobody_acknowledged_is_not_called_so() {
        let mut report = sample::report("T", &[1.0]);
        report.settings.acks = "none".to_owned();
        report.settings.rate = Some(1.0);
        let said = of(&[report]);
        assert!(said.len() == 1 && said[0].starts_with("acks none: no broker answers"), "{said:?}");
    }
}
