//! SVG as text: shapes with classes whose colours are the page's, so that one drawing serves light, dark and paper.

use std::fmt::Write;

/// A drawing under way. Coordinates are pixels from the top left; what is drawn later lies above.
#[derive(Debug)]
pub struct Canvas {
    width: f64,
    height: f64,
    body: String,
}

/// Where a text stands beside its coordinate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// To the right of it.
    Start,
    /// Around it.
    Middle,
    /// To the left of it.
    End,
}

impl Anchor {
    fn name(self) -> &'static str {
        match self {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        }
    }
}

impl Canvas {
    /// An empty one of that size.
    pub fn new(width: f64, height: f64) -> Canvas {
        Canvas { width, height, body: String::new() }
    }

    /// A straight line.
    pub fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let [x1, y1, x2, y2] = [from.0, from.1, to.0, to.1].map(pixels);
        self.push(format_args!(r#"<line class="{class}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>"#));
    }

    /// A line through all points; nothing where there are none.
    pub fn path(&mut self, class: &str, points: &[(f64, f64)]) {
        if !points.is_empty() {
            self.push(format_args!(r#"<path class="{class}" d="{}"/>"#, path_data(points)));
        }
    }

    /// A filled area within the points.
    pub fn area(&mut self, class: &str, points: &[(f64, f64)]) {
        if !points.is_empty() {
            self.push(format_args!(r#"<path class="{class}" d="{}Z"/>"#, path_data(points)));
        }
    }

    /// A rectangle between two corners.
    pub fn rect(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let [x, y, width, height] =
            [from.0.min(to.0), from.1.min(to.1), (to.0 - from.0).abs(), (to.1 - from.1).abs()].map(pixels);
        self.push(format_args!(
            r#"<rect class="{class}" x="{x}" y="{y}" width="{width}" height="{height}"/>"#
        ));
    }

    /// A dot.
    pub fn dot(&mut self, class: &str, at: (f64, f64), radius: f64) {
        let [x, y, r] = [at.0, at.1, radius].map(pixels);
        self.push(format_args!(r#"<circle class="{class}" cx="{x}" cy="{y}" r="{r}"/>"#));
    }

    /// A line of text on its baseline.
    pub fn text(&mut self, class: &str, at: (f64, f64), anchor: Anchor, text: &str) {
        let [x, y] = [at.0, at.1].map(pixels);
        self.push(format_args!(
            r#"<text class="{class}" x="{x}" y="{y}" text-anchor="{}">{}</text>"#,
            anchor.name(),
            escape(text)
        ));
    }

    /// What `draw` draws, as one group: a pointer over any of it is over all of it.
    pub fn group(&mut self, class: &str, draw: impl FnOnce(&mut Canvas)) {
        self.push(format_args!(r#"<g class="{class}">"#));
        draw(self);
        self.push(format_args!("</g>"));
    }

    /// The finished drawing, with what it shows in words for those who can not see it.
    pub fn finish(self, class: &str, title: &str, description: &str) -> String {
        let [width, height] = [self.width, self.height].map(pixels);
        format!(
            "<svg class=\"{class}\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{title}. {description}\">\
             <title>{title}</title><desc>{description}</desc>{}</svg>\n",
            self.body,
            title = escape(title),
            description = escape(description),
        )
    }

    fn push(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string can not fail.
        let _ = self.body.write_fmt(element);
    }
}

/// `text` as it may stand in HTML and SVG, in an attribute or between tags. Control characters are not let through.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

fn path_data(points: &[(f64, f64)]) -> String {
    let mut data = String::with_capacity(points.len() * 12);
    for (index, &(x, y)) in points.iter().enumerate() {
        let command = if index == 0 { 'M' } else { 'L' };
        let _ = write!(data, "{command}{} {}", pixels(x), pixels(y));
    }
    data
}

/// A coordinate, to a tenth of a pixel; what is no number is the edge, so that a drawing is never broken.
fn pixels(value: f64) -> String {
    let clamped = if value.is_nan() { 0.0 } else { value.clamp(-1e5, 1e5) };
    // Adding zero makes nothing of a negative zero.
    let rounded = (clamped * 10.0).round() / 10.0 + 0.0;
    format!("{rounded}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_stays_text() {
        assert_eq!(escape("<b a='1'>&\"\u{1b}[0m"), "&lt;b a=&#39;1&#39;&gt;&amp;&quot; [0m");
    }

    #[test]
    fn a_drawing_says_in_words_what_it_shows() {
        let mut canvas = Canvas::new(20.0, 10.0);
        canvas.path("s", &[(0.0, 1.25), (f64::NAN, -0.01)]);
        canvas.text("t", (1.0, 2.0), Anchor::End, "a < b");
        assert_eq!(
            canvas.finish("c", "T & t", "d"),
            "<svg class=\"c\" viewBox=\"0 0 20 10\" role=\"img\" aria-label=\"T &amp; t. d\"><title>T &amp; t</title>\
             <desc>d</desc><path class=\"s\" d=\"M0 1.3L0 0\"/>\
             <text class=\"t\" x=\"1\" y=\"2\" text-anchor=\"end\">a &lt; b</text></svg>\n"
        );
    }
}
