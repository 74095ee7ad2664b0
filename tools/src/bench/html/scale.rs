//! From a value to its place on an axis, and the values that are written beside it.

/// An axis's values, from its beginning to its end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scale {
    /// Equal steps are equal lengths.
    Linear {
        /// The first value.
        low: f64,
        /// The last value.
        high: f64,
        /// Between two marks.
        step: f64,
    },
    /// Equal factors are equal lengths.
    Log {
        /// The first value; above zero.
        low: f64,
        /// The last value.
        high: f64,
    },
    /// Shares of a whole, by their nines: 90 %, 99 % and 99.9 % stand at equal distances, and 100 % nowhere.
    Nines {
        /// How many nines the axis has.
        nines: f64,
    },
}

const LOG_STEPS: [f64; 3] = [1.0, 2.0, 5.0];
const LINEAR_STEPS: [f64; 5] = [1.0, 2.0, 2.5, 5.0, 10.0];
const SECONDS_STEPS: [f64; 16] = [
    1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0, 14_400.0,
    43_200.0,
];
/// The extremes of what is drawn: beyond them there is nothing that a benchmark measures.
const SMALLEST: f64 = 1e-9;
const LARGEST: f64 = 1e18;

impl Scale {
    /// From zero to a round number at or above `largest`, with about `marks` marks.
    pub fn from_zero(largest: f64, marks: f64) -> Scale {
        let largest = if largest > 0.0 { largest.clamp(SMALLEST, LARGEST) } else { 1.0 };
        let wanted = largest / marks;
        let power = 10f64.powf(wanted.log10().floor());
        let factor = LINEAR_STEPS.iter().find(|&&step| step * power >= wanted * 0.999).unwrap_or(&10.0);
        Scale::up_to(largest, factor * power)
    }

    /// The same for bytes of memory, in steps of a power of two.
    pub fn from_zero_binary(largest: f64) -> Scale {
        let largest = if largest > 0.0 { largest.clamp(1.0, LARGEST) } else { 1.0 };
        Scale::up_to(largest, (largest / 5.0).log2().ceil().exp2())
    }

    fn up_to(largest: f64, step: f64) -> Scale {
        Scale::Linear { low: 0.0, high: (largest / step - 1e-9).ceil().max(1.0) * step, step }
    }

    /// From zero to exactly `seconds`, with marks at times that people count in.
    pub fn seconds(seconds: f64, marks: f64) -> Scale {
        let seconds = if seconds > 0.0 { seconds.min(LARGEST) } else { 1.0 };
        let small = (seconds < 2.0).then_some(0.2);
        let step = small.or_else(|| SECONDS_STEPS.iter().copied().find(|step| seconds / step <= marks));
        Scale::Linear { low: 0.0, high: seconds, step: step.unwrap_or(seconds / marks) }
    }

    /// Around all of `values` that are above zero, to the next 1, 2 or 5 on both sides, over a factor of ten at least.
    pub fn log(values: impl Iterator<Item = f64>) -> Scale {
        let positive = values.filter(|value| *value > 0.0).map(|value| value.clamp(SMALLEST, LARGEST));
        let (smallest, largest) =
            positive.fold((f64::INFINITY, 0.0f64), |(low, high), value| (low.min(value), high.max(value)));
        if largest == 0.0 {
            return Scale::Log { low: 1.0, high: 10.0 };
        }
        let low = round_down(smallest);
        let high = round_up(largest);
        if high / low < 9.99 { Scale::Log { low, high: low * 10.0 } } else { Scale::Log { low, high } }
    }

    /// As many nines as `count` values can tell apart.
    pub fn nines(count: u64) -> Scale {
        Scale::Nines { nines: (count.max(1) as f64).log10().clamp(2.0, 9.0) }
    }

    /// Where `value` stands: 0 at the axis's beginning, 1 at its end, and never outside.
    pub fn place(&self, value: f64) -> f64 {
        let place = match *self {
            Scale::Linear { low, high, .. } => (value - low) / (high - low),
            Scale::Log { low, .. } if value <= low => 0.0,
            Scale::Log { low, high } => (value / low).ln() / (high / low).ln(),
            Scale::Nines { nines } => -(1.0 - value.min(1.0)).log10() / nines,
        };
        if place.is_nan() { 0.0 } else { place.clamp(0.0, 1.0) }
    }

    /// The values that get a mark and a label.
    pub fn marks(&self) -> Vec<f64> {
        match *self {
            Scale::Linear { low, high, step } => {
                let count = ((high - low) / step + 1e-6).floor().min(100.0) as u32;
                (0..=count).map(|index| low + f64::from(index) * step).collect()
            }
            Scale::Log { low, high } => {
                let decades = (high / low).log10();
                let all = log_values(low, high);
                let is_decade = |value: &f64| (value.log10() - value.log10().round()).abs() < 1e-6;
                if decades > 3.2 { all.into_iter().filter(is_decade).collect() } else { all }
            }
            Scale::Nines { nines } => {
                let whole = (1..=nines.floor() as i32).map(|digits| 1.0 - 10f64.powi(-digits));
                [0.0, 0.5].into_iter().chain(whole).collect()
            }
        }
    }
}

/// `99.9 %` of 0.999.
pub fn percent(share: f64) -> String {
    let nines = -(1.0 - share).log10();
    let decimals = (nines.round() as usize).saturating_sub(2);
    format!("{:.decimals$} %", share * 100.0)
}

/// Every 1, 2 and 5 of each power of ten between both, inclusive.
fn log_values(low: f64, high: f64) -> Vec<f64> {
    let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let all = powers.flat_map(|power| LOG_STEPS.map(|step| step * 10f64.powi(power)));
    all.filter(|value| *value >= low * 0.999 && *value <= high * 1.001).collect()
}

fn round_down(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let step = LOG_STEPS.iter().rev().find(|&&step| step * power <= value * 1.001).unwrap_or(&1.0);
    step * power
}

fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let step = LOG_STEPS.iter().find(|&&step| step * power >= value * 0.999).unwrap_or(&10.0);
    step * power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-6
    }

    #[test]
    fn an_axis_from_zero_ends_at_a_round_number() {
        let Scale::Linear { low, high, step } = Scale::from_zero(441_260.0, 5.0) else {
            panic!("it is linear")
        };
        assert_eq!((low, high, step), (0.0, 500_000.0, 100_000.0));
        assert_eq!(Scale::from_zero(441_260.0, 5.0).marks().len(), 6);
        let mib = 1_048_576.0;
        let memory = Scale::from_zero_binary(984.0 * mib);
        assert_eq!(memory.marks(), [0.0, 256.0, 512.0, 768.0, 1024.0].map(|count| count * mib));
    }

    #[test]
    fn equal_factors_are_equal_lengths_on_a_log_scale() {
        let scale = Scale::log([120.0, 87_000.0].into_iter());
        assert_eq!(scale, Scale::Log { low: 100.0, high: 100_000.0 });
        for (value, place) in [(100.0, 0.0), (1_000.0, 1.0 / 3.0), (10_000.0, 2.0 / 3.0), (100_000.0, 1.0)] {
            assert!(near(scale.place(value), place), "{value}");
        }
        assert_eq!(scale.marks().len(), 10, "1, 2 and 5 of three decades, and the end");
        let wide = Scale::log([1.0, 1e7].into_iter()).marks();
        assert!(wide.len() == 8 && wide.iter().all(|mark| near(mark.log10().fract(), 0.0)), "{wide:?}");
    }

    #[test]
    fn each_nine_is_one_step() {
        let scale = Scale::nines(100_000);
        for (share, place) in [(0.0, 0.0), (0.9, 0.2), (0.99, 0.4), (0.999, 0.6), (0.99999, 1.0), (1.0, 1.0)]
        {
            assert!(near(scale.place(share), place), "{share}");
        }
        let labels: Vec<_> = scale.marks().into_iter().map(percent).collect();
        assert_eq!(labels, ["0 %", "50 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %"]);
    }

    #[test]
    fn time_is_counted_in_seconds_that_people_use() {
        assert_eq!(Scale::seconds(30.0, 8.0).marks(), [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0]);
        assert_eq!(Scale::seconds(47.3, 8.0).marks(), [0.0, 10.0, 20.0, 30.0, 40.0]);
        assert_eq!(Scale::seconds(3600.0, 8.0).marks().len(), 7);
        assert_eq!(Scale::seconds(1.0, 8.0).marks().len(), 6);
    }

    #[test]
    fn no_value_breaks_a_scale() {
        let odd = [0.0, -1.0, f64::NAN, f64::INFINITY, f64::MAX, f64::MIN_POSITIVE, 1e300];
        for value in odd {
            let scales = [
                Scale::from_zero(value, 5.0),
                Scale::from_zero_binary(value),
                Scale::seconds(value, 8.0),
                Scale::log([value].into_iter()),
                Scale::log([value, 1.0].into_iter()),
                Scale::nines(u64::MAX),
            ];
            for scale in scales {
                assert!(scale.marks().len() <= 101, "{scale:?}");
                for place in odd.map(|value| scale.place(value)) {
                    assert!((0.0..=1.0).contains(&place), "{scale:?}: {place}");
                }
            }
        }
    }
}
