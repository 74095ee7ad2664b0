//! How large records are: all alike, or by a distribution.

use std::fmt;
use std::str::FromStr;

use bytesize::ByteSize;
use quire_protocol::limits;

/// Largest record that is made (bytes): a batch of it alone stays within what a broker takes.
const SIZE_MAX: u64 = (limits::BATCH_BYTES_MAX - 64 * 1024) as u64;
/// Most sizes that a weighted distribution names.
const CHOICES_MAX: usize = 64;

/// The size of a record's value, as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordSize {
    text: String,
    distribution: Distribution,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Distribution {
    Fixed(usize),
    /// Every size from the first to the second is as likely as any other.
    Uniform(usize, usize),
    /// Sizes with their weights, none of which is 0.
    Weighted {
        choices: Vec<(usize, u64)>,
        total: u64,
    },
}

impl RecordSize {
    /// The size that belongs to a random number (bytes).
    pub fn pick(&self, random: u64) -> usize {
        match &self.distribution {
            Distribution::Fixed(size) => *size,
            Distribution::Uniform(least, most) => least + below(random, (most - least + 1) as u64) as usize,
            Distribution::Weighted { choices, total } => {
                let mut rest = below(random, *total);
                for (size, weight) in choices {
                    match rest.checked_sub(*weight) {
                        Some(beyond) => rest = beyond,
                        None => return *size,
                    }
                }
                unreachable!("the number is below the sum of the weights")
            }
        }
    }

    /// Whether every record has the same size.
    pub fn is_fixed(&self) -> bool {
        matches!(self.distribution, Distribution::Fixed(_))
    }

    /// The smallest size (bytes).
    pub fn min(&self) -> usize {
        match &self.distribution {
            Distribution::Fixed(size) | Distribution::Uniform(size, _) => *size,
            Distribution::Weighted { choices, .. } => {
                choices.iter().map(|choice| choice.0).min().unwrap_or(0)
            }
        }
    }

    /// The largest size (bytes).
    pub fn max(&self) -> usize {
        match &self.distribution {
            Distribution::Fixed(size) | Distribution::Uniform(_, size) => *size,
            Distribution::Weighted { choices, .. } => {
                choices.iter().map(|choice| choice.0).max().unwrap_or(0)
            }
        }
    }

    /// The mean size (bytes).
    pub fn mean(&self) -> f64 {
        match &self.distribution {
            Distribution::Fixed(size) => *size as f64,
            Distribution::Uniform(least, most) => (least + most) as f64 / 2.0,
            Distribution::Weighted { choices, total } => {
                let sum: f64 = choices.iter().map(|(size, weight)| *size as f64 * *weight as f64).sum();
                sum / *total as f64
            }
        }
    }
}

/// As it was written, a fixed size as bare bytes: `1024`.
impl fmt::Display for RecordSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.distribution {
            Distribution::Fixed(size) => write!(f, "{size}"),
            _ => f.write_str(&self.text),
        }
    }
}

/// A random number spread evenly over `0..bound`.
fn below(random: u64, bound: u64) -> u64 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}

impl FromStr for RecordSize {
    type Err = String;

    fn from_str(text: &str) -> Result<RecordSize, String> {
        let text = text.trim();
        let distribution = if text.contains(':') {
            weighted(text)?
        } else if let Some((least, most)) = text.split_once("..") {
            let (least, most) = (size(least)?, size(most)?);
            if least > most {
                return Err(format!("{least} is more than {most}: write the smaller size first"));
            }
            Distribution::Uniform(least, most)
        } else {
            Distribution::Fixed(size(text)?)
        };
        Ok(RecordSize { text: text.to_owned(), distribution })
    }
}

fn weighted(text: &str) -> Result<Distribution, String> {
    let choices = text.split(',').map(|choice| {
        let (bytes, weight) = choice.split_once(':').ok_or_else(|| format!("\"{choice}\" has no :WEIGHT"))?;
        match weight.trim().parse::<u32>() {
            Ok(weight) if weight > 0 => Ok((size(bytes)?, u64::from(weight))),
            _ => Err(format!("\"{weight}\" is no weight: take a whole number from 1")),
        }
    });
    let choices = choices.collect::<Result<Vec<_>, String>>()?;
    if choices.len() > CHOICES_MAX {
        return Err(format!("{} sizes, at most {CHOICES_MAX} are taken", choices.len()));
    }
    let total = choices.iter().map(|choice| choice.1).sum();
    Ok(Distribution::Weighted { choices, total })
}

fn size(text: &str) -> Result<usize, String> {
    let bytes = bytes(text)?;
    match bytes {
        0 => Err("a record has at least 1 byte".into()),
        bytes if bytes > SIZE_MAX => Err(format!("{bytes} bytes, a record has at most {SIZE_MAX}")),
        bytes => Ok(bytes as usize),
    }
}

/// Reads `100`, `64KiB` or `2GB` (bytes).
///
/// # Errors
/// If it is nothing of the kind.
pub fn bytes(text: &str) -> Result<u64, String> {
    let size = text.trim().parse::<ByteSize>();
    size.map(|size| size.as_u64()).map_err(|_| format!("\"{text}\" is no size: write 100, 64KiB or 2GB"))
}

/// Several sizes of a matrix: `100,1KiB,64KiB`. A weighted distribution, which has commas of its own, stands alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordSizes(pub Vec<RecordSize>);

impl FromStr for RecordSizes {
    type Err = String;

    fn from_str(text: &str) -> Result<RecordSizes, String> {
        match text.contains(':') {
            true => Ok(RecordSizes(vec![text.parse()?])),
            false => text.split(',').map(str::parse).collect::<Result<_, _>>().map(RecordSizes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::random::hash;
    use super::*;
    use proptest::prelude::*;

    fn size(text: &str) -> RecordSize {
        text.parse().expect(text)
    }

    #[test]
    fn sizes_are_fixed_uniform_or_weighted() {
        let fixed = size("1KiB");
        assert_eq!(
            (fixed.min(), fixed.max(), fixed.mean(), fixed.to_string()),
            (1024, 1024, 1024.0, "1024".into())
        );
        let uniform = size("100..2000");
        assert_eq!((uniform.min(), uniform.max(), uniform.mean()), (100, 2000, 1050.0));
        let weighted = size("100:9,10000:1");
        assert_eq!((weighted.min(), weighted.max(), weighted.mean()), (100, 10_000, 1090.0));
        assert_eq!(weighted.to_string(), "100:9,10000:1");
    }

    #[test]
    fn what_is_drawn_has_the_mean_and_the_weights_that_were_asked_for() {
        for text in ["100..2000", "100:9,10000:1", "7"] {
            let size = size(text);
            let sum: usize = (0..100_000).map(|place| size.pick(hash(1, place))).sum();
            let mean = sum as f64 / 100_000.0;
            assert!((mean / size.mean() - 1.0).abs() < 0.03, "{text}: {mean}");
        }
        let weighted = size("100:9,10000:1");
        let large = (0..100_000).filter(|place| weighted.pick(hash(1, *place)) == 10_000).count();
        assert!((9_500..10_500).contains(&large), "{large}");
        assert_eq!((weighted.pick(0), weighted.pick(u64::MAX)), (100, 10_000));
    }

    #[test]
    fn what_is_no_size_is_refused_with_the_reason() {
        for (text, part) in [
            ("", "is no size"),
            ("0", "at least 1 byte"),
            ("1GiB", "at most"),
            ("5..3", "the smaller size first"),
            ("100:9,10000", "no :WEIGHT"),
            ("100:0", "no weight"),
        ] {
            let error = text.parse::<RecordSize>().expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_list_is_several_sizes_and_a_weighted_one_is_one() {
        let sizes = |text: &str| text.parse::<RecordSizes>().expect(text).0.len();
        assert_eq!((sizes("100,1KiB,1..2"), sizes("100:1,200:1"), sizes("5")), (3, 1, 1));
    }

    proptest! {
        #[test]
        fn a_size_drawn_is_never_outside(random in any::<u64>(), least in 1usize..5000, more in 0usize..5000) {
            let size = size(&format!("{least}..{}", least + more));
            prop_assert!((least..=least + more).contains(&size.pick(random)));
        }
    }
}
