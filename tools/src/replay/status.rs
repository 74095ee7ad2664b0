//! How far a replay is: one line that stays at the foot of a terminal, a line now and then elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use quire_client::{Extent, ReplayPosition, Speed, Timestamp};

use crate::output::{self, Palette, counted, thousands};
use crate::time;

/// How often the line on a terminal is drawn anew.
pub const DRAW_INTERVAL: Duration = Duration::from_millis(100);
/// How often a line is written where there is no terminal.
const NOTE_INTERVAL: Duration = Duration::from_secs(10);
/// Where a terminal does not say how wide it is (characters).
const WIDTH_DEFAULT: usize = 80;

/// What is known of the replay as a whole.
#[derive(Debug, Clone, Copy)]
pub struct Outline {
    /// What lies in its range.
    pub extent: Extent,
    /// At most so many records are handed out.
    pub records_max: u64,
    /// Whether that is all that is wanted, of maybe more.
    pub is_counted: bool,
    /// Whether silences are cut short.
    pub has_longest_gap: bool,
}

/// Tells how far it is, on standard error.
pub struct Status {
    outline: Outline,
    place: Place,
    /// Whether keys do something.
    has_keys: bool,
    told_at: Instant,
}

enum Place {
    /// A line of its own. Whether data goes to a terminal too, and whether the line is on it now.
    Line {
        shares_terminal: bool,
        is_shown: bool,
    },
    Notes,
    Nowhere,
}

impl Status {
    /// `shares_terminal`: data is written to a terminal as well, probably to the same one. `is_in_the_way`: it leaves lines
    /// unfinished there, so that nothing can be written between.
    pub fn new(outline: Outline, has_keys: bool, shares_terminal: bool, is_in_the_way: bool) -> Status {
        let place = match has_line() {
            _ if is_in_the_way => Place::Nowhere,
            true => Place::Line { shares_terminal, is_shown: false },
            false => Place::Notes,
        };
        Status { outline, place, has_keys, told_at: Instant::now() }
    }

    /// Whether it is time to tell again.
    pub fn is_due(&self) -> bool {
        match self.place {
            Place::Line { is_shown: false, .. } => true,
            Place::Line { .. } => self.told_at.elapsed() >= DRAW_INTERVAL,
            Place::Notes => self.told_at.elapsed() >= NOTE_INTERVAL,
            Place::Nowhere => false,
        }
    }

    /// Tells how far it is.
    pub fn tell(&mut self, position: &ReplayPosition) {
        self.told_at = Instant::now();
        match &mut self.place {
            Place::Line { is_shown, .. } => {
                let keys = if self.has_keys { KEYS } else { "" };
                write_line(&text(position, &self.outline), keys);
                *is_shown = true;
            }
            Place::Notes => output::note(&note(position, &self.outline)),
            Place::Nowhere => {}
        }
    }

    /// Makes way for data, if that goes to the same terminal.
    pub fn make_way(&mut self) {
        if matches!(self.place, Place::Line { shares_terminal: true, .. }) {
            self.clear();
        }
    }

    /// Takes the line off the terminal.
    pub fn clear(&mut self) {
        if let Place::Line { is_shown, .. } = &mut self.place
            && std::mem::take(is_shown)
        {
            erase_line();
        }
    }
}

const KEYS: &str = "   space pause  n step  + - speed  q stop";

/// Whether standard error is a terminal on which a line can be drawn again.
pub fn has_line() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

fn erase_line() {
    // A standard error that is closed is nothing to fail for.
    let _ = write!(io::stderr().lock(), "\r\x1b[2K");
}

/// No wider than the terminal: what is wrapped can not be taken off again.
fn write_line(text: &str, keys: &str) {
    let width = rustix::termios::tcgetwinsize(io::stderr()).map_or(0, |size| usize::from(size.ws_col));
    let width = if width == 0 { WIDTH_DEFAULT } else { width } - 1;
    let shown: String = text.chars().take(width).collect();
    let keys: String = keys.chars().take(width - shown.chars().count()).collect();
    let keys = Palette::stderr().dim(&keys).into_owned();
    let _ = write!(io::stderr().lock(), "\r\x1b[2K{shown}{keys}");
}

/// `▶ 2013-06-13T14:32:10Z   3,600×   412 of 908 records   58 %   10 s left`
fn text(position: &ReplayPosition, outline: &Outline) -> String {
    let sign = if position.is_paused { "⏸" } else { "▶" };
    let moment = moment(position);
    let mut text = format!("{sign} {moment}   {}", show_speed(position.speed));
    text += &match outline.is_counted {
        true => {
            format!("   {} of {}", thousands(position.handed_out), counted(outline.records_max, "record"))
        }
        false => format!("   {}", counted(position.handed_out, "record")),
    };
    if let Some(share) = share(position, outline) {
        text += &format!("   {:.0} %", (share * 100.0).floor());
    }
    match left(position, outline) {
        _ if position.is_paused => text += "   paused",
        Some(left) if outline.has_longest_gap => {
            text += &format!("   at most {} left", time::show_length(left))
        }
        Some(left) => text += &format!("   {} left", time::show_length(left)),
        None => {}
    }
    text
}

/// `at 2013-06-13T14:32:10Z: 412 of at most 908 records`
fn note(position: &ReplayPosition, outline: &Outline) -> String {
    let records = counted(outline.records_max, "record");
    format!("at {}: {} of at most {records}", moment(position), thousands(position.handed_out))
}

/// The recorded moment in seconds: parts of them would only flicker.
fn moment(position: &ReplayPosition) -> String {
    let in_seconds = |timestamp: Timestamp| Timestamp(timestamp.0 - timestamp.0.rem_euclid(1000));
    position.timestamp.map_or("the beginning".to_owned(), |timestamp| time::show(in_seconds(timestamp)))
}

/// `3,600×`, `0.5×`, `flat out`
pub fn show_speed(speed: Speed) -> String {
    match speed {
        Speed::Recorded => "1×".to_owned(),
        Speed::Times(factor) if factor >= 1000.0 && factor.fract() == 0.0 => {
            format!("{}×", thousands(factor as u64))
        }
        Speed::Times(factor) => format!("{factor}×"),
        Speed::FlatOut => "flat out".to_owned(),
    }
}

/// How much is done, from 0 to 1: of the records where they are counted, of recorded time else.
fn share(position: &ReplayPosition, outline: &Outline) -> Option<f64> {
    if outline.is_counted {
        return Some((position.handed_out as f64 / outline.records_max.max(1) as f64).min(1.0));
    }
    let (first, last) = outline.extent.first.zip(outline.extent.last)?;
    let whole = (last.0 as f64 - first.0 as f64).max(1.0);
    let done = position.timestamp.map_or(0.0, |timestamp| timestamp.0 as f64 - first.0 as f64);
    Some((done / whole).clamp(0.0, 1.0))
}

/// The time until the last record, at this speed.
fn left(position: &ReplayPosition, outline: &Outline) -> Option<Duration> {
    let factor = factor(position.speed).filter(|_| !outline.is_counted)?;
    let (timestamp, last) = position.timestamp.zip(outline.extent.last)?;
    let recorded_ms = (last.0 as f64 - timestamp.0 as f64).max(0.0);
    Duration::try_from_secs_f64((recorded_ms / factor / 1000.0).ceil()).ok()
}

/// Recorded time in each moment of ours; `None` flat out.
pub fn factor(speed: Speed) -> Option<f64> {
    match speed {
        Speed::Recorded => Some(1.0),
        Speed::Times(factor) => Some(factor),
        Speed::FlatOut => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000;

    fn outline() -> Outline {
        let extent =
            Extent { records_max: 908, first: Some(Timestamp(0)), last: Some(Timestamp(100 * MINUTE)) };
        Outline { extent, records_max: 908, is_counted: false, has_longest_gap: false }
    }

    fn position(minutes: i64) -> ReplayPosition {
        ReplayPosition {
            timestamp: Some(Timestamp(minutes * MINUTE + 777)),
            handed_out: 412,
            read: 500,
            speed: Speed::Times(60.0),
            is_paused: false,
        }
    }

    #[test]
    fn it_tells_the_recorded_moment_the_speed_and_what_is_left() {
        assert_eq!(
            text(&position(58), &outline()),
            "▶ 1970-01-01T00:58:00Z   60×   412 records   58 %   42 s left"
        );
        let paused = ReplayPosition { is_paused: true, speed: Speed::FlatOut, ..position(100) };
        assert_eq!(
            text(&paused, &outline()),
            "⏸ 1970-01-01T01:40:00Z   flat out   412 records   100 %   paused"
        );
        let gap = Outline { has_longest_gap: true, ..outline() };
        assert!(text(&position(58), &gap).ends_with("at most 42 s left"));
        let counted = Outline { is_counted: true, records_max: 824, ..outline() };
        assert_eq!(text(&position(3), &counted), "▶ 1970-01-01T00:03:00Z   60×   412 of 824 records   50 %");
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        assert_eq!(note(&position(58), &outline()), "at 1970-01-01T00:58:00Z: 412 of at most 908 records");
        let unknown = Extent { records_max: 908, first: None, last: None };
        let nothing = ReplayPosition { timestamp: None, handed_out: 0, ..position(0) };
        assert_eq!(
            text(&nothing, &Outline { extent: unknown, ..outline() }),
            "▶ the beginning   60×   0 records"
        );
    }

    #[test]
    fn speeds_read_well() {
        for (speed, shown) in [
            (Speed::Recorded, "1×"),
            (Speed::Times(0.5), "0.5×"),
            (Speed::Times(86_400.0), "86,400×"),
            (Speed::FlatOut, "flat out"),
        ] {
            assert_eq!(show_speed(speed), shown);
        }
    }
}
