//! One bar: what was measured beside what, what it has to reach, and whether it did.

use serde_json::{Value, json};

use crate::series::{Pairs, Spread};
use crate::unit::Unit;

/// What a figure has to reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bar {
    /// The median of the ratios is at least this.
    AtLeastOfBare(f64),
    /// The median of the ratios is at most this.
    AtMostOfBare(f64),
    /// The median of the differences is at most this.
    AtMostAboveBare(f64),
    /// The median is at least this, whatever the bare operation does.
    AtLeast(f64),
    /// The median is below this, whatever the bare operation does.
    Below(f64),
}

impl Bar {
    /// Whether it was reached; `None` if nothing was measured.
    pub fn reached(self, pairs: &Pairs) -> Option<bool> {
        Some(match self {
            Bar::AtLeastOfBare(bar) => pairs.ratio()?.median >= bar,
            Bar::AtMostOfBare(bar) => pairs.ratio()?.median <= bar,
            Bar::AtMostAboveBare(bar) => pairs.difference()?.median <= bar,
            Bar::AtLeast(bar) => pairs.quire()?.median >= bar,
            Bar::Below(bar) => pairs.quire()?.median < bar,
        })
    }

    fn show(self, unit: Unit) -> String {
        match self {
            Bar::AtLeastOfBare(bar) => format!("≥ {bar:.2} of bare"),
            Bar::AtMostOfBare(bar) => format!("≤ {bar:.2} of bare"),
            Bar::AtMostAboveBare(bar) => format!("≤ bare + {}", unit.show(bar)),
            Bar::AtLeast(bar) => format!("≥ {}", unit.show(bar)),
            Bar::Below(bar) => format!("< {}", unit.show(bar)),
        }
    }
}

/// One bar with its measurements.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The name it is chosen by.
    pub name: String,
    /// What was measured, with every setting that matters.
    pub title: String,
    /// What the bare operation is.
    pub bare: String,
    /// The unit of every figure.
    pub unit: Unit,
    /// The measurements.
    pub pairs: Pairs,
    /// What they have to reach.
    pub bar: Bar,
    /// What else was seen, a line each.
    pub notes: Vec<String>,
}

impl Row {
    /// `reached`, or `MISSED`.
    pub fn verdict(&self) -> &'static str {
        match self.bar.reached(&self.pairs) {
            Some(true) => "reached",
            Some(false) => "MISSED",
            None => "not measured",
        }
    }

    /// Two lines and the notes, for people.
    pub fn text(&self) -> String {
        let notes: String = self.notes.iter().map(|note| format!("\n    {note}")).collect();
        format!(
            "{}: {}; {} pairs\n    quire {}   bare {} ({})   {}   bar {}   {}{notes}",
            self.name,
            self.title,
            self.pairs.len(),
            self.spread(self.pairs.quire()),
            self.spread(self.pairs.bare()),
            self.bare,
            self.comparison(),
            self.bar.show(self.unit),
            self.verdict(),
        )
    }

    /// One line of the table under [`TABLE_HEAD`].
    pub fn markdown(&self) -> String {
        format!(
            "| `{}` | {} | {} | {} | {} | {} |",
            self.name,
            self.spread(self.pairs.quire()),
            self.spread(self.pairs.bare()),
            self.comparison(),
            self.bar.show(self.unit),
            self.verdict(),
        )
    }

    /// One object, for programs. Figures are in the unit itself, not in multiples.
    pub fn json(&self) -> Value {
        let spread = |spread: Option<Spread>| {
            spread.map(|s| json!({ "median": s.median, "low": s.low, "high": s.high }))
        };
        json!({
            "name": self.name,
            "title": self.title,
            "bare_is": self.bare,
            "unit": self.unit,
            "pairs": self.pairs.len(),
            "quire": spread(self.pairs.quire()),
            "bare": spread(self.pairs.bare()),
            "ratio": spread(self.pairs.ratio()),
            "difference": spread(self.pairs.difference()),
            "bar": self.bar.show(self.unit),
            "reached": self.bar.reached(&self.pairs),
            "notes": self.notes,
        })
    }

    fn comparison(&self) -> String {
        match self.bar {
            Bar::AtMostAboveBare(_) => {
                let Some(Spread { median, low, high }) = self.pairs.difference() else {
                    return String::new();
                };
                let show = |value| self.unit.show(value);
                format!("difference {} ({} to {})", show(median), show(low), show(high))
            }
            _ => {
                let Some(Spread { median, low, high }) = self.pairs.ratio() else { return String::new() };
                format!("ratio {median:.2} ({low:.2} to {high:.2})")
            }
        }
    }

    fn spread(&self, spread: Option<Spread>) -> String {
        let Some(Spread { median, low, high }) = spread else { return "none".to_owned() };
        let show = |value| self.unit.show(value);
        format!("{} ({} to {})", show(median), show(low), show(high))
    }
}

/// The head of the table that [`Row::markdown`] fills.
pub const TABLE_HEAD: &str = "| bar | Quire | bare | Quire to bare | to reach | |\n|---|---|---|---|---|---|";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::Pair;

    fn pairs(of: &[(f64, f64)]) -> Pairs {
        of.iter().map(|&(quire, bare)| Pair { quire, bare: Some(bare) }).collect()
    }

    #[test]
    fn a_bar_is_held_against_the_median() {
        let pairs = pairs(&[(7.0, 10.0), (6.0, 10.0), (9.0, 10.0)]);
        for (bar, reached) in [
            (Bar::AtLeastOfBare(0.7), true),
            (Bar::AtLeastOfBare(0.71), false),
            (Bar::AtMostOfBare(0.7), true),
            (Bar::AtMostOfBare(0.69), false),
            (Bar::AtMostAboveBare(-3.0), true),
            (Bar::AtMostAboveBare(-3.1), false),
            (Bar::AtLeast(7.0), true),
            (Bar::AtLeast(7.1), false),
            (Bar::Below(7.1), true),
            (Bar::Below(7.0), false),
        ] {
            assert_eq!(bar.reached(&pairs), Some(reached), "{bar:?}");
            assert_eq!(bar.reached(&Pairs::default()), None, "{bar:?}");
        }
    }

    fn row(bar: Bar) -> Row {
        Row {
            name: "produce".to_owned(),
            title: "produce, 1 KiB records".to_owned(),
            bare: "one quinn stream".to_owned(),
            unit: Unit::BytesPerSecond,
            pairs: pairs(&[(1.0e9, 2.0e9), (0.9e9, 2.0e9), (1.1e9, 1.0e9)]),
            bar,
            notes: vec!["broker 1.2 s of CPU a GB".to_owned()],
        }
    }

    #[test]
    fn a_row_says_figure_bare_figure_ratio_bar_and_verdict() {
        let row = row(Bar::AtLeastOfBare(0.7));
        assert_eq!(
            row.text(),
            "produce: produce, 1 KiB records; 3 pairs\n    quire 1.00 GB/s (900 MB/s to 1.10 GB/s)   bare 2.00 GB/s \
             (1.00 GB/s to 2.00 GB/s) (one quinn stream)   ratio 0.50 (0.45 to 1.10)   bar ≥ 0.70 of bare   MISSED\n    \
             broker 1.2 s of CPU a GB"
        );
        assert_eq!(
            row.markdown(),
            "| `produce` | 1.00 GB/s (900 MB/s to 1.10 GB/s) | 2.00 GB/s (1.00 GB/s to 2.00 GB/s) | \
             ratio 0.50 (0.45 to 1.10) | ≥ 0.70 of bare | MISSED |"
        );
        assert_eq!(row.json()["ratio"]["median"], 0.5);
        assert_eq!(row.json()["reached"], false);
    }

    #[test]
    fn a_bar_above_the_bare_figure_shows_the_difference() {
        let row = row(Bar::AtMostAboveBare(0.5e9));
        assert!(row.text().contains("difference -1000 MB/s"), "{}", row.text());
        assert_eq!(row.verdict(), "reached");
    }
}
