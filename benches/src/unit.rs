//! What figures are counted in, and how they are written.

use serde::Serialize;

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Bytes of record values a second; more is better.
    BytesPerSecond,
    /// Records a second; more is better.
    RecordsPerSecond,
    /// Seconds from what was due until it was done; less is better.
    Seconds,
    /// Seconds of processor time for one record; less is better.
    CpuSecondsPerRecord,
}

impl Unit {
    /// `value` with its unit, to three digits.
    pub fn show(self, value: f64) -> String {
        match self {
            Unit::BytesPerSecond if value >= 1e9 => format!("{:.2} GB/s", value / 1e9),
            Unit::BytesPerSecond => format!("{:.0} MB/s", value / 1e6),
            Unit::RecordsPerSecond => format!("{} records/s", grouped(value)),
            Unit::Seconds => format!("{:.3} ms", value * 1e3),
            Unit::CpuSecondsPerRecord => format!("{:.0} ns/record", value * 1e9),
        }
    }
}

/// `1 partition`, `8 partitions`.
pub fn counted(count: u64, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

/// Three digits that count, and a comma before every three.
fn grouped(value: f64) -> String {
    let step = 10f64.powi((value.abs().max(1.0).log10().floor() as i32 - 2).max(0));
    let digits = format!("{:.0}", (value / step).round() * step);
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) && digit != '-' && !out.ends_with('-') {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular() {
        assert_eq!(counted(1, "stream"), "1 stream");
        assert_eq!(counted(8, "stream"), "8 streams");
    }

    #[test]
    fn figures_are_written_with_three_digits() {
        assert_eq!(Unit::BytesPerSecond.show(1_834_000_000.0), "1.83 GB/s");
        assert_eq!(Unit::BytesPerSecond.show(512_400_000.0), "512 MB/s");
        assert_eq!(Unit::RecordsPerSecond.show(1_234_567.0), "1,230,000 records/s");
        assert_eq!(Unit::RecordsPerSecond.show(34_980.0), "35,000 records/s");
        assert_eq!(Unit::RecordsPerSecond.show(12.0), "12 records/s");
        assert_eq!(Unit::RecordsPerSecond.show(-123_456.0), "-123,000 records/s");
        assert_eq!(Unit::Seconds.show(0.000_19), "0.190 ms");
        assert_eq!(Unit::CpuSecondsPerRecord.show(0.000_000_92), "920 ns/record");
    }
}
