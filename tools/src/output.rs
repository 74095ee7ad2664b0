//! Standard output is for data, standard error for everything else; both are written here.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use crate::failure::Failure;

/// Colours, only where a terminal shows them and nobody said no (`NO_COLOR`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Palette {
    coloured: bool,
}

impl Palette {
    /// Never coloured.
    pub const PLAIN: Palette = Palette { coloured: false };

    /// For what is written to standard output.
    pub fn stdout() -> Palette {
        Palette { coloured: wants_colour(io::stdout().is_terminal()) }
    }

    /// For what is written to standard error.
    pub fn stderr() -> Palette {
        Palette { coloured: wants_colour(io::stderr().is_terminal()) }
    }

    /// What stands out.
    pub fn bold<'a>(self, text: &'a str) -> Cow<'a, str> {
        self.painted("1", text)
    }

    /// What may be passed over.
    pub fn dim<'a>(self, text: &'a str) -> Cow<'a, str> {
        self.painted("2", text)
    }

    /// What went well.
    pub fn good<'a>(self, text: &'a str) -> Cow<'a, str> {
        self.painted("32", text)
    }

    /// What needs a look.
    pub fn warning<'a>(self, text: &'a str) -> Cow<'a, str> {
        self.painted("33", text)
    }

    /// What went wrong.
    pub fn bad<'a>(self, text: &'a str) -> Cow<'a, str> {
        self.painted("1;31", text)
    }

    fn painted<'a>(self, code: &str, text: &'a str) -> Cow<'a, str> {
        if self.coloured { Cow::Owned(format!("\x1b[{code}m{text}\x1b[0m")) } else { Cow::Borrowed(text) }
    }
}

fn wants_colour(is_terminal: bool) -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    is_terminal && !refused && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Writes text to standard output.
///
/// # Errors
/// If whoever reads it has gone, or it can not be written.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Writes one object as one line of JSON to standard output.
///
/// # Errors
/// As [`print()`].
pub fn print_json(object: &impl Serialize) -> Result<(), Failure> {
    let mut line = serde_json::to_string(object)
        .map_err(|error| Failure::failed(format!("an answer could not be written as JSON: {error}")))?;
    line.push('\n');
    print(&line)
}

/// Whether whoever read standard output has gone, as far as that shows without writing to it.
pub fn is_closed() -> bool {
    let stdout = io::stdout();
    let mut watched = [PollFd::new(&stdout, PollFlags::empty())];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let gone = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
    poll(&mut watched, Some(&at_once)).is_ok() && watched[0].revents().intersects(gone)
}

/// Writes one line to standard error. A standard error that is closed is nothing to fail for.
pub fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Tells the user why a command failed.
pub fn report(failure: &Failure) {
    let text = failure.to_string();
    if let Some(rest) = text.strip_prefix("error:") {
        note(&format!("{}{rest}", Palette::stderr().bad("error:")));
    }
}

/// 11045 as `11,045`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The same for numbers below zero.
pub fn thousands_signed(number: i64) -> String {
    let sign = if number < 0 { "-" } else { "" };
    format!("{sign}{}", thousands(number.unsigned_abs()))
}

/// `8.1 MiB`
pub fn bytes(count: u64) -> String {
    bytesize::ByteSize::b(count).display().iec().to_string()
}

/// `1,2,3`, or `-` for nothing.
pub fn list<T: ToString>(items: &[T]) -> String {
    if items.is_empty() {
        return "-".to_owned();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// `1 record`, `2 records`: the count with its noun, made plural by an s.
pub fn counted(count: u64, noun: &str) -> String {
    format!("{} {noun}{}", thousands(count), if count == 1 { "" } else { "s" })
}

/// A name as a shell takes it, in quotes where it needs them: for commands that are to be copied.
pub fn quoted(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,@%+=".contains(c);
    match !name.is_empty() && name.chars().all(is_plain) && !name.starts_with('-') {
        true => name.to_owned(),
        false => format!("'{}'", name.replace('\'', "'\\''")),
    }
}

/// A name as it can stand in a line or a table: what would break it is escaped.
pub fn one_line(name: &str) -> String {
    let escaped = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    name.chars().map(escaped).collect()
}

/// How a column stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Columns under headings, two spaces apart, one space in from the left, no line longer than it must be.
#[derive(Debug, Clone)]
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns and no rows.
    pub fn new(columns: &[(&'static str, Align)]) -> Table {
        Table { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row. Cells beyond the columns are remarks and follow the last column as they are.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The table as lines, headings first.
    pub fn render(&self, palette: Palette) -> String {
        let widths: Vec<usize> =
            self.columns.iter().enumerate().map(|(index, column)| self.width(index, column.0)).collect();
        let headings: Vec<String> = self.columns.iter().map(|(heading, _)| (*heading).to_owned()).collect();
        let mut text = palette.dim(&self.line(&headings, &widths)).into_owned();
        text.push('\n');
        for row in &self.rows {
            text.push_str(&self.line(row, &widths));
            text.push('\n');
        }
        text
    }

    fn width(&self, column: usize, heading: &str) -> usize {
        let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.max().unwrap_or(0).max(heading.chars().count())
    }

    fn line(&self, cells: &[String], widths: &[usize]) -> String {
        let mut line = String::new();
        for (index, cell) in cells.iter().enumerate() {
            line.push_str(if index == 0 { " " } else { "  " });
            let width = widths.get(index).copied().unwrap_or(0);
            let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
            match self.columns.get(index).map(|column| column.1) {
                Some(Align::Right) => line.push_str(&format!("{padding}{cell}")),
                _ => line.push_str(&format!("{cell}{padding}")),
            }
        }
        line.truncate(line.trim_end().len());
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn columns_line_up_and_no_line_trails_spaces() {
        let mut table = Table::new(&[("PART", Align::Right), ("ISR", Align::Left), ("SIZE", Align::Right)]);
        table.row(vec!["0".into(), "1,2,3".into(), "8.1 MiB".into()]);
        table.row(vec!["12".into(), "3".into(), "-".into(), "! offline".into()]);
        assert_eq!(
            table.render(Palette::PLAIN),
            " PART  ISR       SIZE\n    0  1,2,3  8.1 MiB\n   12  3            -  ! offline\n"
        );
    }

    #[test]
    fn numbers_are_grouped_and_sizes_have_units() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(328_521), "328,521");
        assert_eq!(thousands_signed(-1234), "-1,234");
        assert_eq!(bytes(8_493_466), "8.1 MiB");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(counted(1, "record"), "1 record");
        assert_eq!(counted(2000, "record"), "2,000 records");
    }

    #[test]
    fn names_are_quoted_for_the_shell_and_break_no_line() {
        assert_eq!(quoted("billing-2"), "billing-2");
        assert_eq!(quoted("sp ace"), "'sp ace'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(quoted(""), "''");
        assert_eq!(one_line("two\nlines\tä"), "two\\nlines\\tä");
    }

    #[test]
    fn colours_are_only_where_they_are_wanted() {
        assert_eq!(Palette::PLAIN.bad("x"), "x");
        assert_eq!(Palette { coloured: true }.bad("x"), "\x1b[1;31mx\x1b[0m");
    }

    proptest! {
        #[test]
        fn grouping_changes_no_digit(number in any::<u64>()) {
            prop_assert_eq!(thousands(number).replace(',', ""), number.to_string());
        }
    }
}
