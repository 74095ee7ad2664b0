//! Paired measurements: the same work through Quire and bare, in turn.

use std::time::Duration;

/// Medians of a series of paired runs.
#[derive(Debug, Default)]
pub struct Pairs {
    quire: Vec<Duration>,
    bare: Vec<Duration>,
}

impl Pairs {
    /// Adds one pair, both for the same amount of work.
    pub fn add(&mut self, quire: Duration, bare: Duration) {
        self.quire.push(quire);
        self.bare.push(bare);
    }

    /// Speed of Quire relative to the bare operation: 1.0 is as fast. `None` before the first pair.
    pub fn ratio(&self) -> Option<f64> {
        Some(median(&self.bare)?.as_secs_f64() / median(&self.quire)?.as_secs_f64())
    }

    /// One line: both medians as rates, their spread, and the ratio. `work` is what one run did, in `unit`.
    pub fn report(&self, title: &str, work: f64, unit: &str) -> String {
        let rates = |durations: &[Duration]| {
            let rate = |d: Option<Duration>| d.map_or(f64::NAN, |d| work / d.as_secs_f64());
            (
                rate(median(durations)),
                rate(durations.iter().max().copied()),
                rate(durations.iter().min().copied()),
            )
        };
        let (quire, bare) = (rates(&self.quire), rates(&self.bare));
        format!(
            "{title}: quire {:.0} {unit}/s ({:.0} to {:.0}), bare {:.0} {unit}/s ({:.0} to {:.0}), ratio {:.2} over {} pairs",
            quire.0,
            quire.1,
            quire.2,
            bare.0,
            bare.1,
            bare.2,
            self.ratio().unwrap_or(f64::NAN),
            self.quire.len(),
        )
    }
}

fn median(durations: &[Duration]) -> Option<Duration> {
    let mut sorted = durations.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_of_medians() {
        let mut pairs = Pairs::default();
        assert_eq!(pairs.ratio(), None);
        for (quire, bare) in [(2, 1), (100, 1), (2, 90)] {
            pairs.add(Duration::from_secs(quire), Duration::from_secs(bare));
        }
        assert_eq!(pairs.ratio(), Some(0.5));
    }
}
