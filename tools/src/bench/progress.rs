//! What a run looks like while it lasts: one line on a terminal, nothing elsewhere.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::quantity::{self, LATENCY};
use super::timeline::Moment;
use crate::output::thousands;

const FRAMES_PER_SECOND: u8 = 10;
/// Moments that the sparkline shows.
const MOMENTS: usize = 24;
/// Moments over which the rate is smoothed: a second's.
const SMOOTHED: usize = 5;
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// How far a repetition goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// So long.
    Time(Duration),
    /// So many records.
    Records(u64),
}

/// The line. It vanishes when dropped.
#[derive(Debug)]
pub struct ProgressLine {
    bar: ProgressBar,
    goal: Goal,
    recent: Arc<Mutex<VecDeque<Moment>>>,
}

impl ProgressLine {
    /// A line with this name in front.
    pub fn new(name: &str, goal: Goal) -> ProgressLine {
        let length = match goal {
            Goal::Time(time) => time.as_millis() as u64,
            Goal::Records(records) => records,
        };
        let target = ProgressDrawTarget::stderr_with_hz(FRAMES_PER_SECOND);
        let bar = ProgressBar::with_draw_target(Some(length), target);
        bar.set_style(style());
        bar.set_prefix(name.to_owned());
        ProgressLine { bar, goal, recent: Arc::default() }
    }

    /// Says what is done before anything can be counted.
    pub fn say(&self, what: &str) {
        self.bar.set_message(what.to_owned());
        self.bar.tick();
    }

    /// What tells it of every moment.
    pub fn watch(&self) -> impl FnMut(&Moment) + Send + 'static {
        let (bar, goal, recent) = (self.bar.clone(), self.goal, Arc::clone(&self.recent));
        move |moment| {
            if bar.is_hidden() {
                return;
            }
            let mut recent = recent.lock().unwrap_or_else(PoisonError::into_inner);
            recent.push_back(*moment);
            if recent.len() > MOMENTS {
                recent.pop_front();
            }
            bar.set_position(match goal {
                Goal::Time(_) => moment.elapsed.as_millis() as u64,
                Goal::Records(_) => moment.records_so_far,
            });
            bar.set_message(message(recent.make_contiguous(), goal));
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style() -> ProgressStyle {
    let style = ProgressStyle::with_template("{prefix} {bar:16.green/238} {msg}");
    style.expect("the template is a constant that the tests build").progress_chars("━╸━")
}

/// `412,033/s   p99 8.1 ms   ▂▃▅▇▆▇▇   3.2 / 5 s`
fn message(recent: &[Moment], goal: Goal) -> String {
    let Some(now) = recent.last() else { return String::new() };
    let last = &recent[recent.len().saturating_sub(SMOOTHED)..];
    let p99 = last
        .iter()
        .filter_map(|moment| moment.p99_us)
        .fold(None, |most: Option<f64>, p99| Some(most.map_or(p99, |most| most.max(p99))));
    let p99 = p99.map(|p99| format!("   p99 {:>8}", quantity::measured(p99, LATENCY))).unwrap_or_default();
    let seconds = now.elapsed.as_secs_f64();
    let far = match goal {
        Goal::Time(time) => format!("{seconds:.1} / {} s", time.as_secs_f64()),
        Goal::Records(records) => format!("{} / {}", thousands(now.records_so_far), thousands(records)),
    };
    format!("{:>11}/s{p99}   {}   {far}", thousands(rate(last) as u64), sparkline(recent))
}

fn rate(moments: &[Moment]) -> f64 {
    let records: u64 = moments.iter().map(|moment| moment.records).sum();
    let seconds: f64 = moments.iter().map(|moment| moment.took.as_secs_f64()).sum();
    if seconds > 0.0 { records as f64 / seconds } else { 0.0 }
}

/// Rates as columns, the highest of them full.
fn sparkline(moments: &[Moment]) -> String {
    let rates: Vec<f64> = moments.iter().map(|moment| rate(std::slice::from_ref(moment))).collect();
    let most = rates.iter().copied().fold(0.0, f64::max);
    let column = |rate: f64| if most > 0.0 { (rate / most * 7.0).round() as usize } else { 0 };
    let drawn: String = rates.iter().map(|rate| LEVELS[column(*rate).min(7)]).collect();
    format!("{drawn:<MOMENTS$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(number: u32, records: u64, p99_us: Option<f64>) -> Moment {
        let took = Duration::from_millis(200);
        Moment { elapsed: took * number, took, records, records_so_far: records * u64::from(number), p99_us }
    }

    #[test]
    fn the_line_shows_rate_latency_and_the_last_seconds() {
        style();
        let moments: Vec<_> =
            (1..=8).map(|n| moment(n, 100 * u64::from(n), Some(f64::from(n) * 1000.0))).collect();
        let shown = message(&moments, Goal::Time(Duration::from_secs(5)));
        assert_eq!(
            shown.split_whitespace().collect::<Vec<_>>(),
            ["3,000/s", "p99", "8.00", "ms", "▂▃▄▅▅▆▇█", "1.6", "/", "5", "s"]
        );
        let shown = message(&[moment(1, 0, None)], Goal::Records(2000));
        assert_eq!(shown.split_whitespace().collect::<Vec<_>>(), ["0/s", "▁", "0", "/", "2,000"]);
        assert_eq!(message(&[], Goal::Records(1)), "");
    }
}
