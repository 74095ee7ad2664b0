//! How latencies are distributed: by their nines, and by how many took how long; both on log scales.

use super::plot::{CHARACTER, EndLabel, Plot, Size, widest};
use super::scale::{Scale, percent};
use super::svg::Anchor;
use crate::bench::figure::Unit;
use crate::bench::quantity;
use crate::bench::report::{Bucket, Latency, Spread};

/// Bars of a histogram for each power of ten.
const BARS_PER_DECADE: f64 = 20.0;
/// A bucket reaches down to the one before, unless that is further than this factor: then nothing lay between.
const BUCKET_FACTOR_MAX: f64 = 1.26;

/// The latencies of one report.
#[derive(Debug)]
pub struct Distribution<'a> {
    /// Its class: the colour.
    pub class: String,
    /// Its name at the line's end, where there are several.
    pub name: Option<String>,
    /// Every repetition's.
    pub runs: Vec<&'a Latency>,
    /// Which of them stands in front.
    pub median: usize,
    /// The percentiles that are pointed out, over all repetitions.
    pub points: Vec<Point>,
}

/// A percentile that is pointed out.
#[derive(Debug, Clone)]
pub struct Point {
    /// Its name: `p99`.
    pub name: &'static str,
    /// The share of latencies that are at most it.
    pub share: f64,
    /// Its spread over the repetitions (microseconds).
    pub spread: Spread,
}

/// Latencies by their nines: every repetition's line, the median one in front, and the spread of what is pointed out.
pub fn percentiles(title: &str, distributions: &[Distribution<'_>], size: Size) -> String {
    let runs = || distributions.iter().flat_map(|distribution| &distribution.runs);
    let largest = runs().map(|latency| latency.count).max().unwrap_or(1);
    let y = Scale::log(runs().flat_map(|latency| [latency.min_us, latency.p50_us, latency.max_us]));
    let names = widest(distributions.iter().filter_map(|distribution| distribution.name.as_deref()));
    let mut plot = Plot::new(size, Scale::nines(largest), y, names);
    plot.vertical("latency, log scale", quantity::latency);
    plot.horizontal(true, percent);
    for distribution in distributions {
        draw_background(&mut plot, distribution);
    }
    for distribution in distributions {
        draw_front(&mut plot, distribution, distributions.len() == 1);
    }
    let ends = distributions.iter().filter_map(|distribution| {
        let class = format!("label {}", distribution.class);
        Some(EndLabel { class, value: distribution.front()?.max_us, text: distribution.name.clone()? })
    });
    plot.end_labels(ends.collect());
    let description = distributions.iter().map(Distribution::description).collect::<Vec<_>>().join(" ");
    plot.finish(title, &description)
}

/// How many took how long, all repetitions together.
pub fn histogram(title: &str, distributions: &[Distribution<'_>], size: Size) -> String {
    let runs = || distributions.iter().flat_map(|distribution| &distribution.runs);
    let x = Scale::log(runs().flat_map(|latency| [latency.min_us, latency.max_us]));
    let bars: Vec<Vec<f64>> = distributions.iter().map(|distribution| bars(&distribution.runs, x)).collect();
    let highest = bars.iter().flatten().copied().fold(0.0, f64::max);
    let mut plot = Plot::new(size, x, Scale::from_zero(highest, 4.0), 0);
    plot.vertical("share of records a bar", quantity::share);
    plot.horizontal(false, quantity::latency);
    for (distribution, bars) in distributions.iter().zip(&bars) {
        draw_bars(&mut plot, distribution, bars, x);
    }
    if let [only] = distributions {
        draw_points(&mut plot, only);
    }
    let description = distributions.iter().map(Distribution::description).collect::<Vec<_>>().join(" ");
    plot.finish(title, &description)
}

impl Distribution<'_> {
    fn front(&self) -> Option<&Latency> {
        self.runs.get(self.median).copied()
    }

    fn description(&self) -> String {
        let points = self
            .points
            .iter()
            .map(|point| format!("{} {}", point.name, quantity::latency(point.spread.median)));
        let name = self.name.as_ref().map(|name| format!("{name}: ")).unwrap_or_default();
        format!("{name}{}.", points.collect::<Vec<_>>().join(", "))
    }
}

fn draw_background(plot: &mut Plot, distribution: &Distribution<'_>) {
    for (index, latency) in distribution.runs.iter().enumerate() {
        if index != distribution.median {
            draw_curve(plot, latency, &format!("line {} faint", distribution.class));
        }
    }
}

fn draw_front(plot: &mut Plot, distribution: &Distribution<'_>, with_labels: bool) {
    if let Some(front) = distribution.front() {
        draw_curve(plot, front, &format!("line {}", distribution.class));
    }
    let count = distribution.front().map_or(1, |latency| latency.count.max(1));
    for point in &distribution.points {
        let share = point.share.min(1.0 - 1.0 / count as f64);
        let [low, middle, high] =
            [point.spread.min, point.spread.median, point.spread.max].map(|value| plot.at(share, value));
        plot.canvas.line(&format!("whisker {}", distribution.class), low, high);
        plot.canvas.dot(&format!("dot {}", distribution.class), middle, 4.0);
        if with_labels {
            let text = format!("{} {}", point.name, Unit::Microseconds.show(point.spread.median));
            let is_at_left = middle.0 - text.chars().count() as f64 * CHARACTER < plot.corners().0.0 + 10.0;
            // The line rises from the left: the label stands above it, or below it where there is no room at its left.
            let (at, anchor) = match is_at_left {
                true => ((middle.0 + 6.0, middle.1 + 17.0), Anchor::Start),
                false => ((middle.0 - 9.0, middle.1 - 9.0), Anchor::End),
            };
            plot.canvas.text("value", at, anchor, &text);
        }
    }
}

fn draw_curve(plot: &mut Plot, latency: &Latency, class: &str) {
    let points: Vec<_> = curve(latency).into_iter().map(|(share, value)| plot.at(share, value)).collect();
    plot.canvas.path(class, &points);
}

/// The latency at each share of the records: from the smallest, through the ends of the buckets, to the largest, which
/// stands where its one record is.
fn curve(latency: &Latency) -> Vec<(f64, f64)> {
    let total: u64 = latency.buckets.iter().fold(0, |sum, bucket| sum.saturating_add(bucket.count));
    if total == 0 {
        return Vec::new();
    }
    let last = 1.0 - 1.0 / total as f64;
    let mut points = vec![(0.0, latency.min_us)];
    let mut below = 0u64;
    for bucket in latency.buckets.iter().filter(|bucket| bucket.count > 0) {
        below = below.saturating_add(bucket.count);
        points.push(((below as f64 / total as f64).min(last), bucket.upper_us.min(latency.max_us)));
    }
    points.push((last, latency.max_us));
    points
}

/// The share of all latencies in each bar of a log axis.
fn bars(runs: &[&Latency], x: Scale) -> Vec<f64> {
    let Scale::Log { low, high } = x else { return Vec::new() };
    let count = ((high / low).log10() * BARS_PER_DECADE).ceil().clamp(1.0, 1_000.0) as usize;
    let mut bars = vec![0.0; count];
    let mut total = 0.0;
    for latency in runs {
        let mut before = latency.min_us;
        for bucket in &latency.buckets {
            add(&mut bars, before, bucket, x);
            total += bucket.count as f64;
            before = bucket.upper_us;
        }
    }
    if total > 0.0 {
        bars.iter_mut().for_each(|bar| *bar /= total);
    }
    bars
}

/// Spreads a bucket evenly over the bars that it reaches over.
fn add(bars: &mut [f64], before: f64, bucket: &Bucket, x: Scale) {
    let lower = before.max(bucket.upper_us / BUCKET_FACTOR_MAX);
    let (from, to) = (x.place(lower) * bars.len() as f64, x.place(bucket.upper_us) * bars.len() as f64);
    let last = bars.len() - 1;
    if to - from < 1e-9 {
        bars[(to as usize).min(last)] += bucket.count as f64;
        return;
    }
    for (index, bar) in bars.iter_mut().enumerate().take((to as usize).min(last) + 1).skip(from as usize) {
        let covered = (to.min(index as f64 + 1.0) - from.max(index as f64)).max(0.0);
        *bar += bucket.count as f64 * covered / (to - from);
    }
}

fn draw_bars(plot: &mut Plot, distribution: &Distribution<'_>, bars: &[f64], x: Scale) {
    let Scale::Log { low, high } = x else { return };
    let edge = |index: usize| low * (high / low).powf(index as f64 / bars.len() as f64);
    let steps =
        bars.iter().enumerate().flat_map(|(index, &bar)| [(edge(index), bar), (edge(index + 1), bar)]);
    let mut around = vec![plot.at(low, 0.0)];
    around.extend(steps.map(|(at, bar)| plot.at(at, bar)));
    around.push(plot.at(high, 0.0));
    plot.canvas.area(&format!("area {}", distribution.class), &around);
    plot.canvas.path(&format!("line {}", distribution.class), &around);
    let peak = bars.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
    if let (Some(name), Some((index, &bar))) = (&distribution.name, peak) {
        let (x, y) = plot.at(edge(index), bar);
        plot.canvas.text(&format!("label {}", distribution.class), (x + 3.0, y - 5.0), Anchor::Middle, name);
    }
}

/// A line at each percentile that is pointed out, with its name above; names that would overlap go a line lower.
fn draw_points(plot: &mut Plot, distribution: &Distribution<'_>) {
    let ((_, top), (_, bottom)) = plot.corners();
    let mut taken = f64::NEG_INFINITY;
    let mut row = 0.0;
    for point in &distribution.points {
        let (x, _) = plot.at(point.spread.median, 0.0);
        row = if x - taken < 34.0 { row + 1.0 } else { 0.0 };
        taken = x;
        plot.canvas.line("mark", (x, top), (x, bottom));
        plot.canvas.text("value", (x + 3.0, top + 10.0 + row * 14.0), Anchor::Start, point.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::LatencyKind;

    fn latency(buckets: &[(f64, u64)], min_us: f64) -> Latency {
        let max_us = buckets.last().map_or(0.0, |bucket| bucket.0);
        Latency {
            kind: LatencyKind::Acknowledgement,
            is_corrected: false,
            count: buckets.iter().map(|bucket| bucket.1).sum(),
            min_us,
            mean_us: min_us,
            p50_us: min_us,
            p90_us: min_us,
            p99_us: max_us,
            p999_us: max_us,
            p9999_us: max_us,
            max_us,
            buckets: buckets.iter().map(|&(upper_us, count)| Bucket { upper_us, count }).collect(),
        }
    }

    #[test]
    fn a_curve_ends_where_its_one_slowest_record_is() {
        let points = curve(&latency(&[(200.0, 90), (400.0, 9), (5_000.0, 1)], 100.0));
        assert_eq!(points, [(0.0, 100.0), (0.9, 200.0), (0.99, 400.0), (0.99, 5_000.0), (0.99, 5_000.0)]);
        assert!(curve(&latency(&[], 0.0)).is_empty());
    }

    #[test]
    fn a_coarse_bucket_is_spread_over_its_bars() {
        let scale = Scale::Log { low: 100.0, high: 1_000.0 };
        let fine = bars(&[&latency(&[(125.0, 100)], 100.0)], scale);
        let filled: Vec<_> = fine.iter().copied().filter(|bar| *bar > 0.0).collect();
        assert_eq!((fine.len(), filled.len()), (20, 2), "{fine:?}");
        assert!((filled.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn nothing_is_drawn_where_nothing_was_measured() {
        let scale = Scale::Log { low: 100.0, high: 10_000.0 };
        let bars = bars(&[&latency(&[(101.0, 9), (9_000.0, 1)], 100.0)], scale);
        let between = &bars[1..bars.len() - 4];
        assert!(between.iter().all(|bar| *bar == 0.0), "{bars:?}");
        assert!((bars.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_percentile_stands_on_a_log_scale_by_its_nines() {
        let slow = latency(&[(1_000.0, 99), (100_000.0, 1)], 1_000.0);
        let spread = Spread { median: 10_000.0, min: 1_000.0, max: 100_000.0 };
        let points = vec![Point { name: "p90", share: 0.9, spread }];
        let drawn = percentiles(
            "T",
            &[Distribution { class: "c0".to_owned(), name: None, runs: vec![&slow], median: 0, points }],
            Size::Full,
        );
        // Two nines on an axis from 54 to 908, two powers of ten on one from 270 to 30.
        assert!(drawn.contains(r#"<circle class="dot c0" cx="481" cy="150" r="4"/>"#), "{drawn}");
        assert!(
            drawn.contains(r#"<line class="whisker c0" x1="481" y1="270" x2="481" y2="30"/>"#),
            "{drawn}"
        );
    }
}
