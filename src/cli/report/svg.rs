//! Figures: scales, axes, and a frame with a title that is read aloud.

use super::html::escaped;

/// How wide figures are, in units of their own.
pub(super) const WIDTH: f64 = 860.0;

/// A figure. Texts are escaped by who gives them.
pub(super) struct Figure {
    content: String,
    height: f64,
}

impl Figure {
    pub(super) fn new(height: f64) -> Self {
        Self { content: String::new(), height }
    }

    pub(super) fn push(&mut self, shape: &str) {
        self.content.push_str(shape);
        self.content.push('\n');
    }

    pub(super) fn rect(&mut self, class: &str, at: Area, title: &str) {
        let Area { x, y, width, height } = at;
        self.push(&format!(
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"><title>{title}</title></rect>"
        ));
    }

    pub(super) fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        self.push(&format!(
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
        ));
    }

    /// `class` says where it is anchored: `start`, `middle`, `end`.
    pub(super) fn text(&mut self, class: &str, (x, y): (f64, f64), text: &str) {
        self.push(&format!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>"));
    }

    pub(super) fn path(&mut self, class: &str, points: &[(f64, f64)]) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.push(&format!("<polyline class=\"{class}\" points=\"{}\"/>", points.join(" ")));
    }

    /// A dot, a diamond or a cross: not told apart by colour alone.
    pub(super) fn mark(&mut self, mark: Mark, (x, y): (f64, f64), title: &str) {
        let (class, shape) = match mark {
            Mark::Dot => ("kept", format!("M{x:.1} {y:.1}m-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0")),
            Mark::Diamond => ("best", format!("M{x:.1} {y:.1}m0 -9l8 9l-8 9l-8 -9z")),
            Mark::Cross => ("gone", format!("M{x:.1} {y:.1}m-4 -4l8 8m0 -8l-8 8")),
            Mark::Triangle => ("odd", format!("M{x:.1} {y:.1}m0 -5l5 9h-10z")),
        };
        self.push(&format!("<path class=\"{class}\" d=\"{shape}\"><title>{title}</title></path>"));
    }

    /// Lines across, with their numbers at the left.
    pub(super) fn y_axis(&mut self, scale: &Scale, plot: Area, show: &dyn Fn(f64) -> String) {
        for tick in scale.ticks(5) {
            let y = scale.at(tick);
            self.line("grid", (plot.x, y), (plot.x + plot.width, y));
            self.text("tick end", (plot.x - 6.0, y + 4.0), &show(tick));
        }
    }

    /// Numbers along the bottom, and what they count: those that have a text.
    pub(super) fn x_axis(&mut self, scale: &Scale, plot: Area, show: &dyn Fn(f64) -> String) {
        let bottom = plot.y + plot.height;
        self.line("axis", (plot.x, bottom), (plot.x + plot.width, bottom));
        let ticks = scale.ticks(6).into_iter().map(|tick| (scale.at(tick), show(tick)));
        for (x, text) in ticks.filter(|(_, text)| !text.is_empty()) {
            self.line("axis", (x, bottom), (x, bottom + 4.0));
            self.text("tick middle", (x, bottom + 17.0), &text);
        }
    }

    /// As it stands in the page; `id` is its own in there.
    pub(super) fn finish(self, id: &str, title: &str, what: &str) -> String {
        format!(
            "<figure>\n<svg id=\"{id}\" viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\">\n\
             <title id=\"{id}-t\">{title}</title><desc id=\"{id}-d\">{what}</desc>\n{}</svg>\n</figure>\n",
            self.height, self.content
        )
    }
}

/// How a point is marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Dot,
    Diamond,
    Cross,
    Triangle,
}

/// A part of a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Area {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) width: f64,
    pub(super) height: f64,
}

/// Finite numbers along a line of a figure.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    least: f64,
    most: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// From the least to the most of these numbers, or around them if they are equal.
    pub(super) fn of(numbers: impl IntoIterator<Item = f64>, from: f64, to: f64) -> Self {
        let ends = numbers.into_iter().filter(|number| number.is_finite());
        let (least, most) = ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), n| {
            (least.min(n), most.max(n))
        });
        let (least, most) = if least <= most { (least, most) } else { (0.0, 1.0) };
        if least < most {
            return Self { least, most, from, to };
        }
        let around = if least == 0.0 { 1.0 } else { least.abs() / 2.0 };
        Self { least: least - around, most: most + around, from, to }
    }

    /// Where a number lies; the difference of two finite numbers may be infinite.
    pub(super) fn at(&self, number: f64) -> f64 {
        let range = self.most / 2.0 - self.least / 2.0;
        let share = ((number / 2.0 - self.least / 2.0) / range).clamp(0.0, 1.0);
        self.from + share * (self.to - self.from)
    }

    /// At most about so many round numbers.
    fn ticks(&self, count: u32) -> Vec<f64> {
        let rough = (self.most / f64::from(count) - self.least / f64::from(count)).abs();
        let power = 10f64.powf(rough.log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
        let step = steps.into_iter().find(|step| *step >= rough).unwrap_or(rough);
        if !(step.is_finite() && step > 0.0) {
            return Vec::new();
        }
        let first = (self.least / step).ceil();
        let ticks = (0..=2 * count).map(|index| (first + f64::from(index)) * step);
        ticks.take_while(|tick| tick.is_finite() && *tick <= self.most + step * 1e-9).collect()
    }
}

/// What a figure means by its marks and patterns: swatches with words.
pub(super) fn legend(entries: &[(&str, &str)]) -> String {
    let entry = |(class, text): &(&str, &str)| {
        format!(
            "<li><svg class=\"swatch\" viewBox=\"0 0 24 14\" aria-hidden=\"true\">{}</svg> {}</li>",
            swatch(class),
            escaped(text)
        )
    };
    let entries: String = entries.iter().map(entry).collect();
    format!("<ul class=\"legend\">{entries}</ul>\n")
}

fn swatch(class: &str) -> String {
    let mark = match class {
        "kept" => Mark::Dot,
        "best" => Mark::Diamond,
        "gone" => Mark::Cross,
        "odd" => Mark::Triangle,
        "curve" | "written" | "held" => {
            return format!("<line class=\"{class}\" x1=\"1\" y1=\"7\" x2=\"23\" y2=\"7\"/>");
        }
        _ => {
            return format!("<rect class=\"{class}\" x=\"1\" y=\"1\" width=\"22\" height=\"12\"/>");
        }
    };
    let mut figure = Figure::new(0.0);
    figure.mark(mark, (12.0, 7.0), "");
    figure.content.replace("<title></title>", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        let ticks = |least, most| Scale::of([least, most], 0.0, 1.0).ticks(5);
        assert_eq!(ticks(0.0, 10.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks(4.0, 4.0), [2.0, 3.0, 4.0, 5.0, 6.0]);
        for (least, most) in [(f64::MIN, f64::MAX), (0.0, 5e-324), (1e300, 1.1e300), (-1.0, 1e-9)] {
            let ticks = ticks(least, most);
            assert!(ticks.len() <= 11 && ticks.iter().all(|t| t.is_finite()), "{ticks:?}");
        }
    }

    #[test]
    fn numbers_lie_where_they_belong_whatever_they_are() {
        let scale = Scale::of([f64::MIN, f64::NAN, f64::MAX, f64::INFINITY], 10.0, 20.0);
        assert_eq!([f64::MIN, 0.0, f64::MAX].map(|n| scale.at(n)), [10.0, 15.0, 20.0]);
        let none = Scale::of([], 10.0, 20.0);
        assert_eq!((none.at(0.0), none.at(1.0)), (10.0, 20.0));
        assert_eq!(Scale::of([3.0], 10.0, 20.0).at(3.0), 15.0);
    }
}
