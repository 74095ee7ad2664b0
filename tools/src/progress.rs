//! Progress of long work, on standard error and only where it is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output;

/// Work shorter than this shows nothing.
const PATIENCE: Duration = Duration::from_millis(400);
const TICKS_PER_SECOND: u8 = 10;
/// Width of the demo's bars, drawn and written alike (characters).
const BAR_WIDTH: usize = 20;

/// A bar that vanishes when the work is done. Clones are one bar.
#[derive(Clone)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Counts `noun` up to `total`, with the step's name in front.
    pub fn counting(name: &str, total: u64) -> Progress {
        let bar = new_bar(Some(total));
        let template =
            format!("{{prefix:8}} {{bar:{BAR_WIDTH}.green/238}} {{human_pos}} / {{human_len}}   {{elapsed}}");
        bar.set_style(style(&template));
        bar.set_prefix(name.to_owned());
        Progress { bar }
    }

    /// Follows an input of `total` stored bytes; of unknown length without it.
    pub fn reading(total: Option<u64>) -> Progress {
        let bar = new_bar(total);
        bar.set_style(style(match total {
            Some(_) => "{bar:20.green/238} {percent:>3} %  {binary_bytes} of {binary_total_bytes}  {msg}",
            None => "{spinner} {binary_bytes}  {msg}",
        }));
        Progress { bar }
    }

    /// Shows how far it has come.
    pub fn at(&self, position: u64) {
        self.bar.set_position(position);
    }

    /// Shows how far it has come and a word more.
    pub fn at_with(&self, position: u64, message: impl FnOnce() -> String) {
        self.bar.set_position(position);
        if !self.bar.is_hidden() && self.bar.elapsed() > PATIENCE {
            self.bar.set_message(message());
        }
    }

    /// Writes a line to standard error, above the bar.
    pub fn note(&self, text: &str) {
        self.bar.suspend(|| output::note(text));
    }

    /// Takes it off the screen.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// The full bar that stays on the page when a step of the demo is done.
pub fn full_bar() -> String {
    "━".repeat(BAR_WIDTH)
}

fn new_bar(total: Option<u64>) -> ProgressBar {
    // Not drawn at all where standard error is no terminal; indicatif looks by itself.
    ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(TICKS_PER_SECOND))
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).expect("templates are constants that the tests build");
    style.progress_chars("━╸━")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_is_valid() {
        for progress in
            [Progress::counting("produce", 5), Progress::reading(Some(5)), Progress::reading(None)]
        {
            progress.at(3);
            progress.at_with(4, || "four".to_owned());
            progress.clear();
        }
        assert_eq!(full_bar().chars().count(), BAR_WIDTH);
    }
}
