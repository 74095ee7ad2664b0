//! Over all repetitions: medians, with the spread that tells how far to trust them.

use super::report::{Latency, LatencyKind, LatencySummary, Run, Spread, Summary};

/// Sums up repetitions. A figure that any of them lacks is left out.
pub fn of(runs: &[Run]) -> Summary {
    let every = |figure: &dyn Fn(&Run) -> Option<f64>| -> Option<Spread> {
        spread(&runs.iter().map(figure).collect::<Option<Vec<f64>>>()?)
    };
    Summary {
        produced_records_per_second: every(&|run| Some(run.produced?.records_per_second)),
        produced_bytes_per_second: every(&|run| Some(run.produced?.bytes_per_second)),
        consumed_records_per_second: every(&|run| Some(run.consumed?.records_per_second)),
        consumed_bytes_per_second: every(&|run| Some(run.consumed?.bytes_per_second)),
        acknowledgement: latencies(runs, LatencyKind::Acknowledgement),
        end_to_end: latencies(runs, LatencyKind::EndToEnd),
        client_cpu_seconds_per_gb: every(&|run| run.client.cpu_seconds_per_gb),
        broker_cpu_seconds_per_gb: every(&|run| run.broker?.cpu_seconds_per_gb),
        broker_memory_bytes_max: every(&|run| Some(run.broker?.memory_bytes_max as f64)),
        syncs_per_record: every(&|run| run.syncs_per_record),
        syncs_per_batch: every(&|run| run.syncs_per_batch),
        failed: runs.iter().map(|run| run.failed).sum(),
        is_clean: runs
            .iter()
            .map(|run| Some(run.verification.as_ref()?.is_clean))
            .try_fold(true, |all, one| one.map(|one| all && one)),
    }
}

fn latencies(runs: &[Run], kind: LatencyKind) -> Option<LatencySummary> {
    let every = |figure: fn(&Latency) -> f64| {
        let of_run = |run: &Run| run.latencies.iter().find(|latency| latency.kind == kind).map(figure);
        spread(&runs.iter().map(of_run).collect::<Option<Vec<f64>>>()?)
    };
    Some(LatencySummary {
        p50_us: every(|latency| latency.p50_us)?,
        p99_us: every(|latency| latency.p99_us)?,
        p999_us: every(|latency| latency.p999_us)?,
        max_us: every(|latency| latency.max_us)?,
    })
}

/// The median of figures, and their ends; `None` of none.
pub fn spread(figures: &[f64]) -> Option<Spread> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    let half = sorted.len() / 2;
    let median = match sorted.len() % 2 {
        0 => f64::midpoint(sorted[half - 1], sorted[half]),
        _ => sorted[half],
    };
    Some(Spread { median, min, max })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::{Flow, Process, Verification};

    /// A repetition that acknowledged so many records a second.
    fn run(records_per_second: f64) -> Run {
        let flow =
            Flow { records: 10, bytes: 100, records_per_second, bytes_per_second: 10.0 * records_per_second };
        let process = Process {
            cpu_seconds: 1.0,
            cpu_seconds_per_gb: Some(2.0),
            memory_bytes_max: 4096,
            anonymous_bytes_max: None,
        };
        Run {
            seconds: 1.0,
            produced: Some(flow),
            consumed: None,
            latencies: Vec::new(),
            timeline: Vec::new(),
            client: process,
            broker: None,
            syncs: None,
            syncs_per_record: None,
            syncs_per_batch: None,
            failed: 1,
            verification: None,
        }
    }

    #[test]
    fn the_median_stands_between_the_ends() {
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[3.0]), Some(Spread { median: 3.0, min: 3.0, max: 3.0 }));
        assert_eq!(spread(&[9.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 9.0 }));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 9.0]), Some(Spread { median: 3.0, min: 1.0, max: 9.0 }));
    }

    #[test]
    fn what_a_repetition_lacks_is_left_out_and_failures_add_up() {
        let summary = of(&[run(5.0), run(7.0), run(6.0)]);
        assert_eq!(summary.produced_records_per_second, Some(Spread { median: 6.0, min: 5.0, max: 7.0 }));
        assert_eq!((summary.consumed_records_per_second, summary.broker_cpu_seconds_per_gb), (None, None));
        assert_eq!((summary.failed, summary.is_clean), (3, None));
    }

    #[test]
    fn one_unclean_repetition_is_one_too_many() {
        let verified = |is_clean| Run {
            verification: Some(Verification { is_clean, ..Verification::default() }),
            ..run(1.0)
        };
        assert_eq!(of(&[verified(true), verified(true)]).is_clean, Some(true));
        assert_eq!(of(&[verified(true), verified(false)]).is_clean, Some(false));
        assert_eq!(of(&[verified(false), run(1.0)]).is_clean, None);
    }
}
