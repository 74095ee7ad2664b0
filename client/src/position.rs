//! Places in a partition, as users name them.

use quire_protocol::rpc::control;
use quire_protocol::{Offset, Timestamp};

/// A place in a partition from which, or up to which, records are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// The log start offset: the oldest record still there.
    Beginning,
    /// The high watermark: after the newest committed record.
    End,
    /// This offset.
    Offset(Offset),
    /// So many records before the end, but not before the beginning.
    BeforeEnd(u64),
    /// The first record with this timestamp or a later one; the end if there is none.
    Timestamp(Timestamp),
}

/// Text that names no position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a position: write beginning, end, an offset (18422), -N for the last N records, \
     a time (2013-06-13, 2013-06-13T10:00Z) or an age (90s, 2h, \"7d ago\")"
)]
pub struct InvalidPosition(String);

impl Position {
    /// Reads a position: `beginning`, `end`, an offset `18422`, `-100` (the last hundred records), a time in
    /// RFC 3339 (UTC unless it says otherwise; a date alone is its midnight) or an age `2h`, also `2h ago` and
    /// `2 hours ago` (two hours before `now`).
    ///
    /// # Errors
    /// If the text is none of these.
    pub fn parse(text: &str, now: Timestamp) -> Result<Position, InvalidPosition> {
        let text = text.trim();
        let invalid = || InvalidPosition(text.chars().take(64).collect());
        match text {
            "beginning" => return Ok(Position::Beginning),
            "end" => return Ok(Position::End),
            _ => {}
        }
        if let Some(count) = text.strip_prefix('-') {
            return count.parse().map(Position::BeforeEnd).map_err(|_| invalid());
        }
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            let offset = text.parse().map(Offset).ok().filter(|offset| *offset <= Offset::MAX);
            return offset.map(Position::Offset).ok_or_else(invalid);
        }
        let age = text.strip_suffix("ago").map_or(text, str::trim_end);
        parse_age(age)
            .filter(|_| !age.is_empty())
            .map(|age| Timestamp(now.0.saturating_sub(age)))
            .or_else(|| parse_time(text))
            .map(Position::Timestamp)
            .ok_or_else(invalid)
    }

    pub(crate) fn to_wire(self) -> control::Position {
        use control::position::At;
        let at = match self {
            Position::Beginning => At::Beginning(true),
            Position::End => At::End(true),
            Position::Offset(offset) => At::Offset(offset.0),
            Position::BeforeEnd(count) => At::BeforeEnd(count),
            Position::Timestamp(timestamp) => At::Timestamp(timestamp.0),
        };
        control::Position { at: Some(at) }
    }
}

/// `90s`, `1h30m`, `7d`, `2 hours`: milliseconds.
fn parse_age(text: &str) -> Option<i64> {
    let mut total = 0i64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let after = after.trim_start();
        let unit_len = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at(unit_len);
        let unit_ms = match unit {
            "ms" => 1,
            "s" | "second" | "seconds" => 1_000,
            "m" | "min" | "minute" | "minutes" => 60_000,
            "h" | "hour" | "hours" => 3_600_000,
            "d" | "day" | "days" => 86_400_000,
            "w" | "week" | "weeks" => 604_800_000,
            _ => return None,
        };
        total = total.checked_add(number.parse::<i64>().ok()?.checked_mul(unit_ms)?)?;
        rest = after.trim_start();
    }
    Some(total)
}

fn parse_time(text: &str) -> Option<Timestamp> {
    if let Ok(instant) = text.parse::<jiff::Timestamp>() {
        return Some(Timestamp(instant.as_millisecond()));
    }
    // Without an offset it is UTC; a date alone is its midnight.
    let civil = text.parse::<jiff::civil::DateTime>().ok()?;
    let zoned = civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    Some(Timestamp(zoned.timestamp().as_millisecond()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000);

    #[test]
    fn every_form_is_read() {
        let cases = [
            ("beginning", Position::Beginning),
            ("end", Position::End),
            ("18422", Position::Offset(Offset(18422))),
            ("-100", Position::BeforeEnd(100)),
            ("2h", Position::Timestamp(Timestamp(NOW.0 - 7_200_000))),
            ("2h ago", Position::Timestamp(Timestamp(NOW.0 - 7_200_000))),
            ("2 h ago", Position::Timestamp(Timestamp(NOW.0 - 7_200_000))),
            ("2 hours ago", Position::Timestamp(Timestamp(NOW.0 - 7_200_000))),
            ("1 hour 30 minutes", Position::Timestamp(Timestamp(NOW.0 - 5_400_000))),
            ("1h30m", Position::Timestamp(Timestamp(NOW.0 - 5_400_000))),
            ("2013-06-13", Position::Timestamp(Timestamp(1_371_081_600_000))),
            ("2013-06-13T00:01", Position::Timestamp(Timestamp(1_371_081_660_000))),
            ("2013-06-13T00:01:00Z", Position::Timestamp(Timestamp(1_371_081_660_000))),
            ("2013-06-13T02:01:00+02:00", Position::Timestamp(Timestamp(1_371_081_660_000))),
        ];
        for (text, expected) in cases {
            assert_eq!(Position::parse(text, NOW), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_position_is_refused_with_the_forms() {
        for text in ["", "-", "ago", "begining", "2x", "h", "99999999999999999999", "2013-13-01", "--5"] {
            let refused = Position::parse(text, NOW);
            assert!(refused.is_err(), "{text:?} gave {refused:?}");
        }
        let error = Position::parse("tomorrow", NOW).expect_err("no such word");
        assert!(error.to_string().contains("beginning, end"), "{error}");
    }
}
