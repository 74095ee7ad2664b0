//! What happened over time: lines through the seconds of every repetition, and what they add up to.

use super::plot::{EndLabel, Plot, Size, widest};
use super::scale::Scale;
use super::svg::Anchor;
use crate::bench::quantity;
use crate::bench::report::{Run, Second};

/// Up to so many seconds, each is drawn as the step that it is.
const STEPS_MAX: usize = 20;
/// Points of a line; of more seconds the extremes are drawn.
const POINTS_MAX: usize = 900;
/// Columns that answer to the pointer.
const COLUMNS_MAX: usize = 90;
/// A last second shorter than this is drawn as a part of the one before, whose rate it would else exaggerate.
const LAST_SECOND_MIN: f64 = 0.5;

/// What one second came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Its beginning (seconds since the measured part began).
    pub from: f64,
    /// Its end.
    pub to: f64,
    /// The value; `None` where nothing was measured.
    pub value: Option<f64>,
}

/// One line.
#[derive(Debug, Clone)]
pub struct Line {
    /// Its class: colour and weight.
    pub class: String,
    /// Its name, at its end and under the pointer; `None` for lines in the background.
    pub name: Option<String>,
    /// Its values.
    pub intervals: Vec<Interval>,
}

/// How the values are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Lines from zero.
    Linear,
    /// Lines from zero, of bytes of memory.
    Memory,
    /// Lines on a log scale.
    Log,
    /// Areas on top of each other, from zero.
    Stacked,
}

/// The same heights in a second unit.
#[derive(Debug, Clone, Copy)]
pub struct SecondAxis {
    /// What it counts.
    pub name: &'static str,
    /// How many of it are one of the first.
    pub factor: f64,
    /// A mark's label.
    pub show: fn(f64) -> String,
}

/// Values over time.
#[derive(Debug)]
pub struct Timeline {
    /// What is shown.
    pub title: String,
    /// What the vertical axis counts.
    pub name: String,
    /// How.
    pub kind: Kind,
    /// A value with its unit.
    pub show: fn(f64) -> String,
    /// The lines, those in the background first.
    pub lines: Vec<Line>,
    /// The marks at the right.
    pub right: Option<SecondAxis>,
    /// A level to be seen beside the values, and its name.
    pub level: Option<(f64, String)>,
}

/// The value of each second of a repetition: `value` is given the second and its length.
pub fn intervals(run: &Run, value: impl Fn(&Second, f64) -> Option<f64>) -> Vec<Interval> {
    let mut from = 0.0;
    let mut intervals: Vec<Interval> = Vec::with_capacity(run.timeline.len());
    for second in &run.timeline {
        let length = second.at - from;
        if length <= 0.0 || !length.is_finite() {
            continue;
        }
        intervals.push(Interval { from, to: second.at, value: value(second, length) });
        from = second.at;
    }
    join_short_end(&mut intervals);
    intervals
}

/// Makes a short last second a part of the one before: their mean, by their lengths.
fn join_short_end(intervals: &mut Vec<Interval>) {
    let [.., before, last] = intervals.as_mut_slice() else { return };
    let lengths = (before.to - before.from, last.to - last.from);
    if lengths.1 >= LAST_SECOND_MIN {
        return;
    }
    before.value = match (before.value, last.value) {
        (Some(a), Some(b)) => Some((a * lengths.0 + b * lengths.1) / (lengths.0 + lengths.1)),
        (a, b) => a.or(b),
    };
    before.to = last.to;
    intervals.pop();
}

impl Timeline {
    /// Whether there is anything to draw.
    pub fn is_empty(&self) -> bool {
        self.values().next().is_none()
    }

    /// Draws it in that size.
    pub fn draw(&self, size: Size) -> String {
        let end = self.lines.iter().flat_map(|line| line.intervals.last()).map(|last| last.to);
        let seconds = Scale::seconds(end.fold(0.0, f64::max), size.marks());
        let mut plot = Plot::new(size, seconds, self.scale(), self.label_characters());
        plot.vertical(&self.name, |value| (self.show)(value));
        plot.horizontal(false, |value| format!("{} s", quantity::count(value)));
        if let Some(axis) = self.right {
            plot.vertical_right(axis.name, axis.factor, axis.show);
        }
        match self.kind {
            Kind::Stacked => self.draw_stack(&mut plot),
            Kind::Linear | Kind::Memory | Kind::Log => self.draw_lines(&mut plot),
        }
        self.draw_level(&mut plot);
        self.draw_columns(&mut plot);
        plot.finish(&self.title, &self.description())
    }

    fn values(&self) -> impl Iterator<Item = f64> {
        self.lines.iter().flat_map(|line| line.intervals.iter().filter_map(|interval| interval.value))
    }

    fn scale(&self) -> Scale {
        let level = self.level.as_ref().map_or(0.0, |(level, _)| *level);
        match self.kind {
            Kind::Log => Scale::log(self.values()),
            Kind::Linear => Scale::from_zero(self.values().fold(level, f64::max), 5.0),
            Kind::Memory => Scale::from_zero_binary(self.values().fold(level, f64::max)),
            Kind::Stacked => Scale::from_zero(self.tops().into_iter().fold(level, f64::max), 4.0),
        }
    }

    fn label_characters(&self) -> usize {
        match &self.right {
            Some(axis) => widest([(axis.show)(888e6).as_str()].into_iter()),
            None => widest(self.lines.iter().filter_map(|line| line.name.as_deref())),
        }
    }

    fn draw_lines(&self, plot: &mut Plot) {
        for line in &self.lines {
            for piece in pieces(&line.intervals) {
                let points: Vec<_> =
                    outline(piece).into_iter().map(|(at, value)| plot.at(at, value)).collect();
                plot.canvas.path(&format!("line {}", line.class), &points);
            }
        }
        if self.right.is_none() {
            let labels = self.lines.iter().filter_map(|line| {
                let last = line.intervals.iter().rev().find_map(|interval| interval.value)?;
                let class = format!("label {}", line.class);
                Some(EndLabel { class, value: last, text: line.name.clone()? })
            });
            plot.end_labels(labels.collect());
        }
    }

    /// Each line as the area between the sum of those before it and the sum with it.
    fn draw_stack(&self, plot: &mut Plot) {
        let mut floor: Vec<f64> = Vec::new();
        let mut labels = Vec::new();
        for line in &self.lines {
            let sums: Vec<f64> = line
                .intervals
                .iter()
                .enumerate()
                .map(|(index, interval)| {
                    floor.get(index).copied().unwrap_or(0.0) + interval.value.unwrap_or(0.0)
                })
                .collect();
            let with = |values: &dyn Fn(usize) -> f64| -> Vec<(f64, f64)> {
                let placed = line.intervals.iter().enumerate();
                let placed: Vec<_> =
                    placed.map(|(index, at)| Interval { value: Some(values(index)), ..*at }).collect();
                outline(&placed).into_iter().map(|(at, value)| plot.at(at, value)).collect()
            };
            let lower = with(&|index| floor.get(index).copied().unwrap_or(0.0));
            let upper = with(&|index| sums[index]);
            let around: Vec<_> = upper.iter().copied().chain(lower.into_iter().rev()).collect();
            plot.canvas.area(&format!("area {}", line.class), &around);
            plot.canvas.path(&format!("line {}", line.class), &upper);
            if let (Some(name), Some(&top)) = (&line.name, sums.last()) {
                let middle = (floor.last().copied().unwrap_or(0.0) + top) / 2.0;
                let class = format!("label {}", line.class);
                labels.push(EndLabel { class, value: middle, text: name.clone() });
            }
            floor = sums;
        }
        plot.end_labels(labels);
    }

    fn tops(&self) -> Vec<f64> {
        let count = self.lines.iter().map(|line| line.intervals.len()).max().unwrap_or(0);
        let at = |index: usize| self.lines.iter().filter_map(move |line| line.intervals.get(index)?.value);
        (0..count).map(|index| at(index).sum()).collect()
    }

    fn draw_level(&self, plot: &mut Plot) {
        let Some((level, name)) = &self.level else { return };
        let ((left, _), (right, _)) = plot.corners();
        let (_, y) = plot.at(0.0, *level);
        plot.canvas.line("level", (left, y), (right, y));
        plot.canvas.text("axis", (left + 6.0, y - 5.0), Anchor::Start, name);
    }

    /// Invisible columns; the one under the pointer shows its values.
    fn draw_columns(&self, plot: &mut Plot) {
        let named: Vec<_> = self.lines.iter().filter(|line| line.name.is_some()).collect();
        let longest = named.iter().max_by_key(|line| line.intervals.len());
        let (Some(longest), false) = (longest, plot.size == Size::Narrow) else { return };
        let stride = longest.intervals.len().div_ceil(COLUMNS_MAX).max(1);
        // The name of the axis at the right ends above it.
        let beside_name = if self.right.is_some() { 44.0 } else { 0.0 };
        for index in (0..longest.intervals.len()).step_by(stride) {
            let interval = longest.intervals[index];
            let end = longest.intervals[(index + stride - 1).min(longest.intervals.len() - 1)].to;
            let says = self.says(&named, index);
            let ((_, top), (_, bottom)) = plot.corners();
            let (from, to) = (plot.at(interval.from, 0.0).0, plot.at(end, 0.0).0);
            let ((right, _), middle) = (plot.corners().1, (from + to) / 2.0);
            plot.canvas.group("column", |canvas| {
                canvas.rect("hit", (from, top), (to, bottom));
                canvas.line("hair", (middle, top), (middle, bottom));
                canvas.text("readout", (right - beside_name, top - 8.0), Anchor::End, &says);
            });
        }
    }

    fn says(&self, named: &[&Line], index: usize) -> String {
        let values = named.iter().filter_map(|line| {
            let value = (self.show)(line.intervals.get(index)?.value?);
            let second =
                self.right.map(|axis| (axis.show)(line.intervals[index].value.unwrap_or(0.0) * axis.factor));
            let name = line.name.as_deref().filter(|_| named.len() > 1);
            let words = name.into_iter().chain([value.as_str()]).chain(second.as_deref());
            Some(words.collect::<Vec<_>>().join(" "))
        });
        let time = named.first().and_then(|line| line.intervals.get(index)).map_or(0.0, |at| at.to);
        format!("{} s   {}", quantity::count(time), values.collect::<Vec<_>>().join("   "))
    }

    fn description(&self) -> String {
        let (low, high) = self
            .values()
            .fold((f64::INFINITY, 0.0f64), |(low, high), value| (low.min(value), high.max(value)));
        if low > high {
            return "Nothing was measured.".to_owned();
        }
        format!(
            "{} over time, {} lines, from {} to {}.",
            self.name,
            self.lines.len(),
            (self.show)(low),
            (self.show)(high)
        )
    }
}

/// The stretches without a gap.
fn pieces(intervals: &[Interval]) -> impl Iterator<Item = &[Interval]> {
    intervals.split(|interval| interval.value.is_none()).filter(|piece| !piece.is_empty())
}

/// The points of a stretch: steps where there are few, else the middles, and the extremes where there are too many.
fn outline(piece: &[Interval]) -> Vec<(f64, f64)> {
    let value = |interval: &Interval| interval.value.unwrap_or(0.0);
    let middle = |interval: &Interval| (interval.from + interval.to) / 2.0;
    if piece.len() <= STEPS_MAX {
        let ends = |interval: &Interval| [(interval.from, value(interval)), (interval.to, value(interval))];
        return piece.iter().flat_map(ends).collect();
    }
    if piece.len() <= POINTS_MAX {
        return piece.iter().map(|interval| (middle(interval), value(interval))).collect();
    }
    let extremes = |group: &[Interval]| {
        let by_value = |a: &&Interval, b: &&Interval| value(a).total_cmp(&value(b));
        let both = [group.iter().min_by(by_value), group.iter().max_by(by_value)];
        let mut points: Vec<_> =
            both.into_iter().flatten().map(|interval| (middle(interval), value(interval))).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    };
    piece.chunks(piece.len().div_ceil(POINTS_MAX / 2)).flat_map(extremes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(values: &[(f64, f64, Option<f64>)]) -> Vec<Interval> {
        values.iter().map(|&(from, to, value)| Interval { from, to, value }).collect()
    }

    fn timeline(kind: Kind, lines: Vec<Vec<Interval>>) -> Timeline {
        let line = |(index, intervals)| Line {
            class: format!("c{index}"),
            name: Some(format!("n{index}")),
            intervals,
        };
        Timeline {
            title: "T".to_owned(),
            name: "things".to_owned(),
            kind,
            show: quantity::count,
            lines: lines.into_iter().enumerate().map(line).collect(),
            right: None,
            level: None,
        }
    }

    #[test]
    fn a_short_last_second_does_not_exaggerate() {
        let mut intervals =
            steps(&[(0.0, 1.0, Some(100.0)), (1.0, 2.0, Some(100.0)), (2.0, 2.1, Some(210.0))]);
        join_short_end(&mut intervals);
        assert_eq!(intervals, steps(&[(0.0, 1.0, Some(100.0)), (1.0, 2.1, Some(110.0))]));
        let whole = steps(&[(0.0, 1.0, Some(1.0)), (1.0, 1.6, Some(2.0))]);
        let mut same = whole.clone();
        join_short_end(&mut same);
        assert_eq!(same, whole);
    }

    #[test]
    fn a_gap_breaks_the_line() {
        let gap = steps(&[(0.0, 1.0, Some(1.0)), (1.0, 2.0, None), (2.0, 3.0, Some(2.0))]);
        let drawn = timeline(Kind::Linear, vec![gap]).draw(Size::Full);
        assert_eq!(drawn.matches("<path").count(), 2);
        assert!(drawn.contains("2 s"), "{drawn}");
    }

    #[test]
    fn a_second_without_records_is_drawn_at_zero() {
        let stall = steps(&[(0.0, 1.0, Some(8.0)), (1.0, 2.0, Some(0.0))]);
        let drawn = timeline(Kind::Linear, vec![stall]).draw(Size::Full);
        assert!(drawn.contains("L473.1 270L892.2 270"), "the end of the line lies on the axis: {drawn}");
    }

    #[test]
    fn of_a_long_run_the_extremes_are_kept() {
        let mut long: Vec<_> = (0..10_000)
            .map(|at| Interval { from: f64::from(at), to: f64::from(at + 1), value: Some(5.0) })
            .collect();
        long[7_777].value = Some(0.0);
        let points = outline(&long);
        assert!(points.len() <= POINTS_MAX);
        assert!(points.contains(&(7_777.5, 0.0)));
        assert!(
            timeline(Kind::Linear, vec![long]).draw(Size::Full).matches("class=\"column\"").count()
                <= COLUMNS_MAX
        );
    }

    #[test]
    fn a_stack_reaches_the_sum() {
        let one = steps(&[(0.0, 1.0, Some(1.0)), (1.0, 2.0, Some(1.0))]);
        let stack = timeline(Kind::Stacked, vec![one.clone(), one]);
        assert_eq!(stack.tops(), [2.0, 2.0]);
        assert_eq!(stack.scale(), Scale::Linear { low: 0.0, high: 2.0, step: 0.5 });
    }

    #[test]
    fn nothing_measured_is_no_drawing() {
        assert!(timeline(Kind::Log, vec![steps(&[(0.0, 1.0, None)])]).is_empty());
        assert!(timeline(Kind::Log, Vec::new()).is_empty());
    }
}
