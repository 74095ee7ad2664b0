//! Paired measurements and what is said about them: medians, and how far they spread.

/// The middle of a series and its ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Half of the values lie below; the mean of the middle two if their number is even.
    pub median: f64,
    /// The smallest value.
    pub low: f64,
    /// The largest value.
    pub high: f64,
}

impl Spread {
    /// Of these values; `None` if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
            _ => sorted[middle],
        };
        Some(Spread { median, low, high })
    }
}

/// One run of Quire and one of the bare operation, right after each other, in the same unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// What Quire did.
    pub quire: f64,
    /// What the bare operation did; `None` for a bare operation itself.
    pub bare: Option<f64>,
}

/// A series of pairs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pairs(Vec<Pair>);

impl Pairs {
    /// Adds one pair.
    pub fn push(&mut self, pair: Pair) {
        self.0.push(pair);
    }

    /// How many pairs there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Quire's figures.
    pub fn quire(&self) -> Option<Spread> {
        Spread::of(self.0.iter().map(|pair| pair.quire))
    }

    /// The bare operation's figures.
    pub fn bare(&self) -> Option<Spread> {
        Spread::of(self.0.iter().filter_map(|pair| pair.bare))
    }

    /// Quire's figure as a part of the bare one, pair by pair: what the machine did to both meanwhile cancels out.
    pub fn ratio(&self) -> Option<Spread> {
        Spread::of(self.0.iter().filter_map(|pair| Some(pair.quire / pair.bare?)))
    }

    /// Quire's figure less the bare one, pair by pair.
    pub fn difference(&self) -> Option<Spread> {
        Spread::of(self.0.iter().filter_map(|pair| Some(pair.quire - pair.bare?)))
    }
}

impl FromIterator<Pair> for Pairs {
    fn from_iter<T: IntoIterator<Item = Pair>>(pairs: T) -> Pairs {
        Pairs(pairs.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(of: &[(f64, f64)]) -> Pairs {
        of.iter().map(|&(quire, bare)| Pair { quire, bare: Some(bare) }).collect()
    }

    #[test]
    fn the_median_is_the_middle_one_or_between_the_middle_two() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([3.0]), Some(Spread { median: 3.0, low: 3.0, high: 3.0 }));
        assert_eq!(Spread::of([9.0, 1.0, 2.0]), Some(Spread { median: 2.0, low: 1.0, high: 9.0 }));
        assert_eq!(Spread::of([9.0, 1.0, 2.0, 4.0]), Some(Spread { median: 3.0, low: 1.0, high: 9.0 }));
    }

    #[test]
    fn the_ratio_is_of_each_pair_and_not_of_the_medians() {
        // Slow moments hit both of a pair; the ratio of the medians would be 100 / 100.
        let pairs = pairs(&[(50.0, 100.0), (5.0, 10.0), (100.0, 200.0), (250.0, 500.0), (150.0, 50.0)]);
        assert_eq!(pairs.ratio(), Some(Spread { median: 0.5, low: 0.5, high: 3.0 }));
        assert_eq!(pairs.difference().map(|spread| spread.median), Some(-50.0));
        assert_eq!(pairs.quire().map(|spread| spread.median), Some(100.0));
        assert_eq!(pairs.bare().map(|spread| spread.high), Some(500.0));
    }

    #[test]
    fn nothing_is_said_about_no_pairs() {
        assert_eq!(Pairs::default().ratio(), None);
        assert_eq!(Pairs::default().difference(), None);
        let alone: Pairs = [Pair { quire: 1.0, bare: None }].into_iter().collect();
        assert_eq!((alone.ratio(), alone.bare(), alone.len()), (None, None, 1));
    }
}
