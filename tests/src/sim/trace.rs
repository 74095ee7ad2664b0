//! What a run did, line by line: the proof that a seed repeats it, and what a person reads when it failed.

use std::collections::VecDeque;
use std::fmt;

use quire_engine::Time;

/// Lines kept for a person; the digest covers all.
const LINES_KEPT: usize = 20_000;

/// A run's trace.
#[derive(Debug)]
pub struct Trace {
    digest: blake3::Hasher,
    lines: VecDeque<String>,
}

impl Default for Trace {
    fn default() -> Trace {
        Trace { digest: blake3::Hasher::new(), lines: VecDeque::new() }
    }
}

impl Trace {
    /// Writes a line down.
    pub fn say(&mut self, now: Time, what: fmt::Arguments<'_>) {
        let since = now.since(Time::ZERO);
        let line = format!("{:>12.3} ms  {what}", since.as_secs_f64() * 1000.0);
        self.digest.update(line.as_bytes());
        self.digest.update(b"\n");
        if self.lines.len() == LINES_KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// What stands for the whole trace: two runs with the same are the same.
    pub fn digest(&self) -> blake3::Hash {
        self.digest.finalize()
    }

    /// The last lines.
    pub fn tail(&self, lines: usize) -> String {
        let from = self.lines.len().saturating_sub(lines);
        self.lines.iter().skip(from).fold(String::new(), |text, line| text + line + "\n")
    }
}
