//! A drawing with two axes: where a value stands, the marks beside it, and labels that keep out of each other's way.

use super::scale::Scale;
use super::svg::{Anchor, Canvas};

const TOP: f64 = 30.0;
const BOTTOM: f64 = 30.0;
const LABEL_LEFT: f64 = 54.0;
/// About the width of a character in labels (pixels).
pub const CHARACTER: f64 = 6.9;
/// The height of a line of labels (pixels).
const LINE: f64 = 15.0;

/// How large a drawing is. Each is drawn once for wide pages and paper, and once for narrow screens, so that its text
/// is never scaled out of reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// The page's width.
    Full,
    /// Half of it, two beside each other.
    Half,
    /// A telephone.
    Narrow,
}

impl Size {
    fn pixels(self) -> (f64, f64) {
        match self {
            Size::Full => (920.0, 300.0),
            Size::Half => (448.0, 270.0),
            Size::Narrow => (360.0, 270.0),
        }
    }

    /// About how many marks the axis of time has room for.
    pub fn marks(self) -> f64 {
        if self == Size::Full { 12.0 } else { 6.0 }
    }

    /// The class under which the page shows it or hides it.
    pub fn class(self) -> &'static str {
        if self == Size::Narrow { "narrow" } else { "wide" }
    }
}

/// A label at the end of a line.
#[derive(Debug, Clone)]
pub struct EndLabel {
    /// Its class, which is its colour.
    pub class: String,
    /// The value at which it would like to stand.
    pub value: f64,
    /// What it says.
    pub text: String,
}

/// A drawing with two axes.
#[derive(Debug)]
pub struct Plot {
    /// What is drawn.
    pub canvas: Canvas,
    /// How large it is.
    pub size: Size,
    x: Scale,
    y: Scale,
    right: f64,
    bottom: f64,
}

impl Plot {
    /// An empty one, with room for labels of so many characters at its right.
    pub fn new(size: Size, x: Scale, y: Scale, label_characters: usize) -> Plot {
        let (width, height) = size.pixels();
        let margin = if label_characters == 0 { 12.0 } else { label_characters as f64 * CHARACTER + 14.0 };
        Plot {
            canvas: Canvas::new(width, height),
            size,
            x,
            y,
            right: width - margin,
            bottom: height - BOTTOM,
        }
    }

    /// Where that pair of values stands.
    pub fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let (width, height) = (self.right - LABEL_LEFT, self.bottom - TOP);
        (LABEL_LEFT + self.x.place(x) * width, self.bottom - self.y.place(y) * height)
    }

    /// The rectangle between the axes: its top left and its bottom right.
    pub fn corners(&self) -> ((f64, f64), (f64, f64)) {
        ((LABEL_LEFT, TOP), (self.right, self.bottom))
    }

    /// The marks of the vertical axis with a line across each, and above them what they count.
    pub fn vertical(&mut self, name: &str, show: impl Fn(f64) -> String) {
        self.canvas.text("axis name", (0.0, 12.0), Anchor::Start, name);
        for mark in self.y.marks() {
            let (_, y) = self.at(0.0, mark);
            let is_base = (y - self.bottom).abs() < 0.1;
            self.canvas.line(if is_base { "base" } else { "grid" }, (LABEL_LEFT, y), (self.right, y));
            self.canvas.text("axis", (LABEL_LEFT - 8.0, y + 4.0), Anchor::End, &show(mark));
        }
        self.canvas.line("base", (LABEL_LEFT, self.bottom), (self.right, self.bottom));
    }

    /// Marks at the right: the same heights in another unit, of which one of the vertical axis is `factor`.
    pub fn vertical_right(&mut self, name: &str, factor: f64, show: impl Fn(f64) -> String) {
        let Scale::Linear { high, .. } = self.y else { return };
        self.canvas.text("axis name", (self.canvas_width(), 12.0), Anchor::End, name);
        for mark in Scale::from_zero(high * factor, 4.0).marks() {
            if mark <= high * factor * 1.001 {
                let (_, y) = self.at(0.0, mark / factor);
                self.canvas.line("tick", (self.right, y), (self.right + 4.0, y));
                self.canvas.text("axis", (self.right + 8.0, y + 4.0), Anchor::Start, &show(mark));
            }
        }
    }

    /// The marks of the horizontal axis; labels that would touch the one before are left out.
    pub fn horizontal(&mut self, lines: bool, show: impl Fn(f64) -> String) {
        let mut free_from = 0.0;
        for mark in self.x.marks() {
            let (x, _) = self.at(mark, 0.0);
            if lines && x > LABEL_LEFT + 1.0 {
                self.canvas.line("grid", (x, TOP), (x, self.bottom));
            }
            let label = show(mark);
            let half = label.chars().count() as f64 * CHARACTER / 2.0;
            if x - half >= free_from {
                self.canvas.line("tick", (x, self.bottom), (x, self.bottom + 4.0));
                let inside = x.min(self.canvas_width() - half);
                self.canvas.text("axis", (inside, self.bottom + 18.0), Anchor::Middle, &label);
                free_from = x + half + 10.0;
            }
        }
    }

    /// Labels at the right of the lines that they name, moved apart where they would overlap.
    pub fn end_labels(&mut self, mut labels: Vec<EndLabel>) {
        labels.sort_by(|a, b| b.value.total_cmp(&a.value));
        let mut heights: Vec<f64> = labels.iter().map(|label| self.at(0.0, label.value).1).collect();
        spread_out(&mut heights, TOP, self.bottom);
        for (label, y) in labels.iter().zip(heights) {
            self.canvas.text(&label.class, (self.right + 8.0, y + 4.0), Anchor::Start, &label.text);
        }
    }

    /// The finished drawing.
    pub fn finish(self, title: &str, description: &str) -> String {
        self.canvas.finish(self.size.class(), title, description)
    }

    fn canvas_width(&self) -> f64 {
        self.size.pixels().0
    }
}

/// About how many characters wide the widest of these labels is.
pub fn widest<'a>(labels: impl Iterator<Item = &'a str>) -> usize {
    labels.map(|label| label.chars().count()).max().unwrap_or(0)
}

/// Moves ascending heights apart until none is nearer than a line to the next, and back within both ends.
fn spread_out(heights: &mut [f64], top: f64, bottom: f64) {
    for index in 1..heights.len() {
        heights[index] = heights[index].max(heights[index - 1] + LINE);
    }
    let mut below = bottom;
    for height in heights.iter_mut().rev() {
        *height = height.min(below).max(top);
        below = *height - LINE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_would_overlap_are_moved_apart() {
        let mut heights = [100.0, 101.0, 103.0, 190.0];
        spread_out(&mut heights, 0.0, 200.0);
        assert_eq!(heights, [100.0, 115.0, 130.0, 190.0]);
        let mut heights = [195.0, 198.0, 199.0];
        spread_out(&mut heights, 0.0, 200.0);
        assert_eq!(heights, [170.0, 185.0, 200.0]);
    }

    #[test]
    fn values_stand_between_the_axes() {
        let plot = Plot::new(Size::Full, Scale::seconds(10.0, 5.0), Scale::from_zero(100.0, 4.0), 0);
        assert_eq!(plot.at(0.0, 0.0), (LABEL_LEFT, 270.0));
        assert_eq!(plot.at(10.0, 100.0), (908.0, TOP));
        assert_eq!(plot.at(99.0, -5.0), (908.0, 270.0), "and what lies outside stands at the edge");
    }
}
