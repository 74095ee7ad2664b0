//! The drill as it runs: the schedule line by line, and below it, on a terminal, what clients get at this moment.
//!
//! ```text
//!  00:10   kill -9 broker 1 (leader of 8)        writes resumed in 0.71 s
//! ⠹ 00:12 ▅▅▆▅▅▅  ▃▇▅▅  2,004/s  23,881 acknowledged  12 on their way  23,870 read
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::JoinHandle;
use tokio::time::interval;

use super::chaos::Done;
use super::record::{Counts, Record};
use crate::output::{self, Palette, thousands};
use crate::time::show_took;

/// How often the line is drawn anew; each bar of it stands for so long.
const DRAW_EVERY: Duration = Duration::from_millis(250);
/// Bars in the line: eight seconds.
const BARS: usize = 32;
const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Width of the words for a fault, so that what follows stands in a column.
const FAULT_WIDTH: usize = 49;

/// Shows a drill on standard error.
#[derive(Debug)]
pub struct Display {
    bar: ProgressBar,
    drawing: JoinHandle<()>,
}

impl Display {
    /// Begins to show what `record` counts, of a load of so many records a second.
    pub fn start(record: Arc<Record>, rate: f64) -> Display {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
        bar.set_style(
            ProgressStyle::with_template("{spinner:.green} {prefix:.yellow}{wide_msg}").expect("a constant"),
        );
        let shown = bar.clone();
        let drawing = tokio::spawn(async move {
            let mut ticks = interval(DRAW_EVERY);
            let mut line = Line::new(rate);
            loop {
                ticks.tick().await;
                shown.set_message(line.next(record.elapsed(), record.counts()));
                shown.tick();
            }
        });
        Display { bar, drawing }
    }

    /// A line that stays.
    pub fn note(&self, text: &str) {
        self.bar.suspend(|| output::note(text));
    }

    /// What is being done to the cluster, for as long as it takes.
    pub fn fault_begins(&self, what: &str) {
        self.bar.set_prefix(format!("{what}   "));
    }

    /// A fault that is over.
    pub fn fault(&self, done: &Done) {
        self.bar.set_prefix("");
        let palette = Palette::stderr();
        let took = show_took(done.unavailable);
        let outcome = match done.has_resumed {
            true => format!("writes resumed in {}", palette.good(&took)),
            false => palette.bad(&format!("writes have not resumed after {took}")).into_owned(),
        };
        self.note(&format!(" {}   {:<FAULT_WIDTH$} {outcome}", clock(done.at), done.what));
    }

    /// Takes the line off the screen.
    pub fn end(&self) {
        self.drawing.abort();
        self.bar.finish_and_clear();
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.end();
    }
}

/// `00:10`
pub fn clock(time: Duration) -> String {
    format!("{:02}:{:02}", time.as_secs() / 60, time.as_secs() % 60)
}

/// The line that is drawn anew, with what it remembers from one drawing to the next.
struct Line {
    rate: f64,
    before: Counts,
    bars: VecDeque<u64>,
}

impl Line {
    fn new(rate: f64) -> Line {
        Line { rate, before: Counts::default(), bars: VecDeque::from(vec![0; BARS]) }
    }

    fn next(&mut self, now: Duration, counts: Counts) -> String {
        self.bars.pop_front();
        self.bars.push_back(counts.acknowledged - self.before.acknowledged);
        self.before = counts;
        let per_second: u64 = self.bars.iter().rev().take(4).sum();
        if counts.read_finally > 0 {
            let (read, all) = (thousands(counts.read_finally), thousands(counts.acknowledged));
            return format!("{}  reading everything  {read} of {all}", clock(now));
        }
        format!(
            "{} {} {:>6}/s  {} acknowledged  {} on their way  {} read",
            clock(now),
            self.bars.iter().map(|count| self.height(*count)).collect::<String>(),
            thousands(per_second),
            thousands(counts.acknowledged),
            thousands(counts.sent - counts.acknowledged),
            thousands(counts.read),
        )
    }

    /// The rate asked for stands in the middle, so that catching up shows.
    fn height(&self, count: u64) -> char {
        if count == 0 {
            return ' ';
        }
        let expected = self.rate * DRAW_EVERY.as_secs_f64();
        let height = (count as f64 / expected * 4.0) as usize;
        HEIGHTS[height.min(HEIGHTS.len() - 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_shows_in_the_line() {
        let mut line = Line::new(2000.0);
        let mut counts = Counts::default();
        let mut shown = String::new();
        for added in [500, 500, 0, 0, 1200] {
            counts.acknowledged += added;
            counts.sent += 500;
            shown = line.next(Duration::from_secs(12), counts);
        }
        assert!(shown.starts_with("00:12 "), "{shown}");
        assert!(shown.contains("▅▅  █  1,700/s  2,200 acknowledged  300 on their way  0 read"), "{shown}");
        counts.read_finally = 7;
        assert!(line.next(Duration::from_secs(20), counts).ends_with("reading everything  7 of 2,200"));
    }
}
