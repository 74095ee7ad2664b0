//! Figures as people read them: three significant digits, and the unit that keeps them short.

/// Units from the largest to the smallest: how many of the base each is, and its name.
pub type Units = &'static [(f64, &'static str)];

/// Numbers without a unit, or of things a second.
pub const COUNT: Units = &[(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")];
/// Bytes a second, in powers of ten as networks and disks are sold.
pub const BYTES_PER_SECOND: Units =
    &[(1e12, " TB/s"), (1e9, " GB/s"), (1e6, " MB/s"), (1e3, " kB/s"), (1.0, " B/s")];
/// Bytes of memory, in powers of two.
pub const MEMORY: Units = &[
    (1_099_511_627_776.0, " TiB"),
    (1_073_741_824.0, " GiB"),
    (1_048_576.0, " MiB"),
    (1024.0, " KiB"),
    (1.0, " B"),
];
/// Latencies, of microseconds.
pub const LATENCY: Units = &[(1e6, " s"), (1e3, " ms"), (1.0, " µs")];

/// `441k`, `1.52M`, `980`, `0.042`: a number without a unit, or one of things a second.
pub fn count(value: f64) -> String {
    round(value, COUNT)
}

/// `452 MB/s`
pub fn bytes_per_second(value: f64) -> String {
    round(value, BYTES_PER_SECOND)
}

/// `48.2 MiB`
pub fn memory(bytes: f64) -> String {
    round(bytes, MEMORY)
}

/// `840 µs`, `3.41 ms`, `1.2 s`: a latency given in microseconds.
pub fn latency(microseconds: f64) -> String {
    round(microseconds, LATENCY)
}

/// `1.24×`, `12.5×`, `0.087×`
pub fn ratio(value: f64) -> String {
    format!("{}×", measured(value, &[(1.0, "")]))
}

/// `2.4 %` of 0.0237.
pub fn share(value: f64) -> String {
    format!("{} %", number(significant(value * 100.0, 2)))
}

/// What was measured: always three digits, `3.40 ms`, so that what stands below each other is told apart alike.
pub fn measured(value: f64, units: Units) -> String {
    let (rounded, unit) = scaled(value, units);
    let text = number(rounded);
    let is_short = rounded != 0.0 && rounded.abs() < 100.0 && !text.contains('e');
    match is_short {
        true => format!("{rounded:.*}{unit}", decimals(rounded, 3).max(0) as usize),
        false => format!("{text}{unit}"),
    }
}

/// What was chosen: no more digits than it needs, `3.4 ms`; nothing has no unit.
fn round(value: f64, units: Units) -> String {
    let (rounded, unit) = scaled(value, units);
    if rounded == 0.0 { "0".to_owned() } else { format!("{}{unit}", number(rounded)) }
}

/// `value` in the largest unit of which it is at least one whole, after rounding; in the last for what is smaller.
fn scaled(value: f64, units: Units) -> (f64, &'static str) {
    let in_unit = |&(factor, unit): &(f64, &'static str)| (significant(value / factor, 3), unit);
    let fitting = units.iter().map(in_unit).find(|(rounded, _)| rounded.abs() >= 1.0);
    fitting.or_else(|| units.last().map(in_unit)).unwrap_or((value, ""))
}

/// Rounds to so many significant digits; whole digits are never rounded away.
fn significant(value: f64, digits: i32) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    match decimals(value, digits) {
        decimals if decimals <= 0 => value.round(),
        decimals => {
            let factor = 10f64.powi(decimals.min(300));
            (value * factor).round() / factor
        }
    }
}

/// How many decimals so many significant digits are; below zero where there are more whole digits.
fn decimals(value: f64, digits: i32) -> i32 {
    digits - 1 - value.abs().log10().floor() as i32
}

/// A rounded number without superfluous zeros; with powers of ten where digits would only be counted.
fn number(value: f64) -> String {
    match value.abs() {
        size if !size.is_finite() => "∞".to_owned(),
        size if size != 0.0 && !(1e-4..1e7).contains(&size) => format!("{value:e}"),
        size if size >= 10_000.0 => crate::output::thousands_signed(value as i64),
        _ => format!("{value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_three_digits_and_the_unit_that_fits() {
        let shown: Vec<_> =
            [0.0, 0.04217, 7.0, 441.26, 999.7, 4_412.0, 441_260.0, 999_960.0, 1_523_000.0].map(count).into();
        assert_eq!(shown, ["0", "0.0422", "7", "441", "1k", "4.41k", "441k", "1M", "1.52M"]);
    }

    #[test]
    fn latencies_change_their_unit_where_they_grow() {
        let shown: Vec<_> = [0.5, 48.04, 840.0, 999.6, 3_400.0, 123_456.0, 1_240_000.0].map(latency).into();
        assert_eq!(shown, ["0.5 µs", "48 µs", "840 µs", "1 ms", "3.4 ms", "123 ms", "1.24 s"]);
    }

    #[test]
    fn bytes_are_binary_in_memory_and_decimal_in_motion() {
        assert_eq!(memory(50_541_363.0), "48.2 MiB");
        assert_eq!(memory(1024.0 * 1024.0), "1 MiB");
        assert_eq!(bytes_per_second(451_840_000.0), "452 MB/s");
        assert_eq!(bytes_per_second(1_806_000_000.0), "1.81 GB/s");
    }

    #[test]
    fn what_was_measured_always_has_three_digits() {
        let latencies = [0.0, 48.04, 999.6, 3_400.0, 2_000.0].map(|value| measured(value, LATENCY));
        assert_eq!(latencies, ["0 µs", "48.0 µs", "1.00 ms", "3.40 ms", "2.00 ms"]);
        let counts = [0.00435, 0.97, 9.999, 441_260.0, 1e6, 1e-9].map(|value| measured(value, COUNT));
        assert_eq!(counts, ["0.00435", "0.970", "10.0", "441k", "1.00M", "1e-9"]);
    }

    #[test]
    fn ratios_and_shares_are_short() {
        assert_eq!([1.2374, 0.0871, 12.49, 1.0].map(ratio), ["1.24×", "0.0871×", "12.5×", "1.00×"]);
        assert_eq!(share(0.02371), "2.4 %");
    }

    #[test]
    fn what_no_machine_measures_is_still_short() {
        for value in [f64::MAX, f64::MIN_POSITIVE, -5.0, f64::INFINITY, 1e-300] {
            for shown in [count(value), latency(value), measured(value, MEMORY), ratio(value), share(value)] {
                assert!(shown.chars().count() < 30, "{shown}");
            }
        }
    }
}
