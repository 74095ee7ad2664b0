//! Moments as users write and read them: RFC 3339, UTC unless it says otherwise.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use quire_protocol::Timestamp;

/// Now, by this machine's clock.
pub fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}

/// Reads RFC 3339 with or without an offset from UTC, or a date, which is its midnight; `None` for anything else.
pub fn parse(text: &str) -> Option<Timestamp> {
    let looks_like_a_date = text.get(..5).is_some_and(|start| start.ends_with('-'));
    if !looks_like_a_date {
        return None;
    }
    if let Ok(moment) = text.parse::<jiff::Timestamp>() {
        return Some(Timestamp(moment.as_millisecond()));
    }
    let civil = match text.parse::<Date>() {
        Ok(date) if text.len() == "2013-01-08".len() => date.at(0, 0, 0, 0),
        _ => text.parse::<DateTime>().ok()?,
    };
    let moment = civil.to_zoned(TimeZone::UTC).ok()?;
    Some(Timestamp(moment.timestamp().as_millisecond()))
}

/// RFC 3339 in UTC, with milliseconds where there are any; the bare number where no calendar reaches.
pub fn show(timestamp: Timestamp) -> String {
    match jiff::Timestamp::from_millisecond(timestamp.0) {
        Ok(moment) => moment.to_string(),
        Err(_) => format!("{} ms", timestamp.0),
    }
}

/// A duration in the unit that reads best: `61 ms`, `0.21 s` or `3 m 12 s`; from an hour on as [`show_length`].
pub fn show_took(took: Duration) -> String {
    let seconds = took.as_secs_f64();
    if seconds < 0.1 {
        return format!("{} ms", took.as_millis());
    }
    if seconds < 10.0 {
        return format!("{seconds:.2} s");
    }
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    if seconds < 3600.0 {
        return format!("{} m {} s", took.as_secs() / 60, took.as_secs() % 60);
    }
    show_length(took)
}

/// A time of whatever length in its two largest units: `23 h 55 min`, `3 d 4 h`, `24 s`, `350 ms`.
pub fn show_length(length: Duration) -> String {
    let seconds = length.as_secs();
    let in_two = |unit: u64, name: &str, smaller_unit: u64, smaller: &str| {
        let (whole, rest) = (seconds / unit, seconds % unit / smaller_unit);
        if rest == 0 { format!("{whole} {name}") } else { format!("{whole} {name} {rest} {smaller}") }
    };
    match seconds {
        0 => format!("{} ms", length.as_millis()),
        1..60 => format!("{seconds} s"),
        60..3600 => in_two(60, "min", 1, "s"),
        3600..86_400 => in_two(3600, "h", 60, "min"),
        _ => in_two(86_400, "d", 3600, "h"),
    }
}

/// A span of configuration in its largest unit that divides it: `7d`, `36h`, `90s`, `1500ms`.
pub fn show_span(span: Duration) -> String {
    let millis = span.as_millis();
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
    let fitting = units.iter().find(|(_, unit)| millis >= *unit && millis.is_multiple_of(*unit));
    fitting.map_or_else(|| format!("{millis}ms"), |(name, unit)| format!("{}{name}", millis / unit))
}

/// Reads a span as [`show_span`] writes it, `500ms`, `90s`, `5m` or `2h`, or a bare number of seconds; `None` for anything
/// else.
pub fn parse_span(text: &str) -> Option<Duration> {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    let unit = units.iter().find_map(|(name, millis)| Some((text.strip_suffix(name)?, *millis)));
    let (digits, millis) = unit.unwrap_or((text, 1000));
    let count: u64 = digits.parse().ok()?;
    Some(Duration::from_millis(count.saturating_mul(millis)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn moments_are_utc_unless_they_say_otherwise() {
        let noon = Some(Timestamp(1_357_646_400_000));
        assert_eq!(parse("2013-01-08T12:00:00Z"), noon);
        assert_eq!(parse("2013-01-08T12:00Z"), noon);
        assert_eq!(parse("2013-01-08T12:00"), noon);
        assert_eq!(parse("2013-01-08 12:00:00"), noon);
        assert_eq!(parse("2013-01-08T07:00:00-05:00"), noon);
        assert_eq!(parse("2013-01-08T12:00:00.000Z"), noon);
        assert_eq!(parse("2013-01-08"), Some(Timestamp(1_357_603_200_000)));
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in ["", "2013", "20130108", "2013-13-01", "2013-01-08T25:00Z", "yesterday", "2h", "1é13-"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn spans_and_durations_read_well() {
        let lengths = [
            (350, "350 ms"),
            (24_400, "24 s"),
            (60_000, "1 min"),
            (86_100_000, "23 h 55 min"),
            (273_600_000, "3 d 4 h"),
            (7_230_000, "2 h"),
        ];
        for (millis, expected) in lengths {
            assert_eq!(show_length(Duration::from_millis(millis)), expected);
        }
        assert_eq!(show_took(Duration::from_millis(61)), "61 ms");
        assert_eq!(show_took(Duration::from_millis(210)), "0.21 s");
        assert_eq!(show_took(Duration::from_millis(12_340)), "12.3 s");
        assert_eq!(show_took(Duration::from_secs(192)), "3 m 12 s");
        assert_eq!(show_took(Duration::from_secs(3599)), "59 m 59 s");
        assert_eq!(show_took(Duration::from_secs(18_102 * 60)), "12 d 13 h");
        assert_eq!(show_span(Duration::from_secs(7 * 86_400)), "7d");
        assert_eq!(show_span(Duration::from_secs(36 * 3600)), "36h");
        assert_eq!(show_span(Duration::from_millis(1500)), "1500ms");
        assert_eq!(show_span(Duration::ZERO), "0ms");
    }

    proptest! {
        #[test]
        fn a_shown_moment_parses_to_itself(millis in -62_135_596_800_000i64..253_402_300_799_999) {
            prop_assert_eq!(parse(&show(Timestamp(millis))), Some(Timestamp(millis)));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = parse(&text);
        }
    }
}
