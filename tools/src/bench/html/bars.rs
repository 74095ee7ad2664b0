//! One figure of several reports as bars from zero, with the spread of each.

use super::scale::Scale;
use super::svg::{Anchor, Canvas};
use crate::bench::figure::{Measured, Unit};

const ROW: f64 = 28.0;
const TOP: f64 = 4.0;
/// Room for a value with its unit and its ratio.
const VALUE: f64 = 152.0;

/// One bar.
#[derive(Debug)]
pub struct Bar<'a> {
    /// Its class: the colour.
    pub class: String,
    /// Which report it is.
    pub label: String,
    /// The figure, if the report has it.
    pub measured: Option<&'a Measured>,
    /// What follows the value: the ratio to the first.
    pub remark: String,
}

/// Draws them, in a drawing of that class and width, with the labels taking `label_width` of it.
pub fn draw(title: &str, unit: Unit, bars: &[Bar<'_>], class: &str, width: f64, label_width: f64) -> String {
    let height = TOP + bars.len() as f64 * ROW;
    let largest = bars.iter().filter_map(|bar| bar.measured).map(|measured| measured.spread.max);
    let scale = Scale::Linear { low: 0.0, high: largest.fold(f64::MIN_POSITIVE, f64::max), step: 1.0 };
    let length = width - label_width - VALUE;
    let mut canvas = Canvas::new(width, height);
    for (index, bar) in bars.iter().enumerate() {
        let middle = TOP + (index as f64 + 0.5) * ROW;
        canvas.text(&format!("bar-label {}", bar.class), (0.0, middle + 4.5), Anchor::Start, &bar.label);
        let Some(measured) = bar.measured else {
            canvas.text("axis", (label_width + 8.0, middle + 4.5), Anchor::Start, "not measured");
            continue;
        };
        let x = |value: f64| label_width + scale.place(value) * length;
        let end = x(measured.spread.median);
        canvas.rect(&format!("bar {}", bar.class), (label_width, middle - 8.0), (end, middle + 8.0));
        let (min, max) = (x(measured.spread.min), x(measured.spread.max));
        canvas.line("spread", (min, middle), (max, middle));
        for edge in [min, max] {
            canvas.line("spread", (edge, middle - 4.0), (edge, middle + 4.0));
        }
        let value = unit.show(measured.spread.median);
        canvas.text("value", (max.max(end) + 8.0, middle + 4.5), Anchor::Start, &value);
        canvas.text("remark", (width, middle + 4.5), Anchor::End, &bar.remark);
    }
    canvas.line("base", (label_width, 0.0), (label_width, height));
    canvas.finish(class, title, &describe(unit, bars))
}

fn describe(unit: Unit, bars: &[Bar<'_>]) -> String {
    let said = bars.iter().map(|bar| {
        let value =
            bar.measured.map_or("not measured".to_owned(), |measured| unit.show(measured.spread.median));
        format!("{}: {value}", bar.label)
    });
    said.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::Spread;

    #[test]
    fn bars_begin_at_zero_and_show_their_spread() {
        let measured = |median: f64, min: f64, max: f64| Measured {
            values: vec![min, median, max],
            spread: Spread { median, min, max },
        };
        let (half, whole) = (measured(50.0, 40.0, 60.0), measured(90.0, 80.0, 100.0));
        let bar = |label: &str, measured| Bar {
            class: "c0".to_owned(),
            label: label.to_owned(),
            measured,
            remark: "2×".to_owned(),
        };
        let bars = [bar("A", Some(&half)), bar("B", Some(&whole)), bar("<C>", None)];
        let drawn = draw("T", Unit::Count, &bars, "wide", 472.0, 20.0);
        // 300 pixels from zero to the largest of all.
        assert!(drawn.contains(r#"<rect class="bar c0" x="20" y="10" width="150" height="16"/>"#), "{drawn}");
        assert!(drawn.contains(r#"<line class="spread" x1="260" y1="46" x2="320" y2="46"/>"#), "{drawn}");
        assert!(drawn.contains("&lt;C&gt;: not measured") && !drawn.contains("<C>"), "{drawn}");
    }
}
