//! Line plots as SVG.

use std::fmt::Write as _;

use super::escape;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 280.0;
/// Room for the axes' labels: left, right, top, bottom.
const MARGIN: (f64, f64, f64, f64) = (60.0, 10.0, 24.0, 34.0);
/// Colours that people with any colour vision tell apart (Okabe and Ito, 2008).
const COLOURS: [&str; 6] = ["#222222", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"];
/// Labels on an axis, about.
const TICKS: f64 = 5.0;

/// One line; where a value is not finite, it is interrupted.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// What it is, for the legend.
    pub(crate) name: String,
    /// Where it goes.
    pub(crate) points: Vec<(f64, f64)>,
    /// Dots as well: for lines of few points.
    pub(crate) dots: bool,
}

/// A filled area between two lines.
#[derive(Clone, Debug)]
pub(crate) struct Band {
    /// What it is, for the legend.
    pub(crate) name: String,
    /// `(x, low, high)`.
    pub(crate) points: Vec<(f64, f64, f64)>,
}

/// A plot; the axes follow the data, the vertical one from zero.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plot {
    /// What the horizontal axis tells, with its unit.
    pub(crate) x_label: String,
    /// What the vertical axis tells, with its unit.
    pub(crate) y_label: String,
    /// Behind the lines.
    pub(crate) bands: Vec<Band>,
    /// In order of their colours.
    pub(crate) lines: Vec<Line>,
}

/// From data to the picture.
struct Frame {
    x: (f64, f64),
    y: (f64, f64),
}

impl Frame {
    fn x(&self, x: f64) -> f64 {
        MARGIN.0 + (x - self.x.0) / (self.x.1 - self.x.0) * (WIDTH - MARGIN.0 - MARGIN.1)
    }

    fn y(&self, y: f64) -> f64 {
        HEIGHT - MARGIN.3 - (y - self.y.0) / (self.y.1 - self.y.0) * (HEIGHT - MARGIN.2 - MARGIN.3)
    }
}

impl Plot {
    /// The picture; it scales with its place.
    pub(crate) fn svg(&self) -> String {
        let frame = self.frame();
        let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" font-size=\"11\" fill=\"#555\">");
        self.axes(&frame, &mut svg);
        for (band, colour) in self.bands.iter().zip(COLOURS.iter().skip(1)) {
            let known = || band.points.iter().filter(|(x, low, high)| (x + low + high).is_finite());
            let upper = known().map(|&(x, _, high)| (x, high));
            let lower = known().rev().map(|&(x, low, _)| (x, low));
            let outline: Vec<String> =
                upper.chain(lower).map(|(x, y)| format!("{:.1},{:.1}", frame.x(x), frame.y(y))).collect();
            let _ = write!(svg, "<polygon points=\"{}\" fill=\"{colour}\" opacity=\"0.18\"/>", outline.join(" "));
        }
        for (line, colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            draw(line, colour, &frame, &mut svg);
        }
        self.legend(&mut svg);
        svg + "</svg>"
    }

    fn frame(&self) -> Frame {
        let lines = self.lines.iter().flat_map(|line| line.points.iter().copied());
        let bands = self.bands.iter().flat_map(|band| band.points.iter().map(|&(x, _, high)| (x, high)));
        let known = lines.chain(bands).filter(|(x, y)| x.is_finite() && y.is_finite());
        let start = ((f64::INFINITY, f64::NEG_INFINITY), 0.0f64);
        let (x, top) = known.fold(start, |(x, top), (at, value)| ((x.0.min(at), x.1.max(at)), top.max(value)));
        let x = if x.0 < x.1 {
            x
        } else if x.0.is_finite() {
            (x.0 - 0.5, x.0 + 0.5)
        } else {
            (0.0, 1.0)
        };
        Frame { x, y: (0.0, if top > 0.0 { top * 1.05 } else { 1.0 }) }
    }

    fn axes(&self, frame: &Frame, svg: &mut String) {
        let (left, right, bottom) = (MARGIN.0, WIDTH - MARGIN.1, HEIGHT - MARGIN.3);
        for value in ticks(frame.y) {
            let y = frame.y(value);
            let _ = write!(svg, "<line x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#e4e4e4\"/>");
            let _ = write!(svg, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>", left - 6.0, y + 4.0);
        }
        for value in ticks(frame.x) {
            let _ = write!(
                svg,
                "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{value}</text>",
                frame.x(value),
                bottom + 14.0
            );
        }
        let (x_label, y_label) = (escape(&self.x_label), escape(&self.y_label));
        let _ = write!(svg, "<text x=\"{right}\" y=\"{}\" text-anchor=\"end\">{x_label}</text>", HEIGHT - 4.0);
        let _ = write!(svg, "<text x=\"4\" y=\"12\">{y_label}</text>");
    }

    fn legend(&self, svg: &mut String) {
        let bands = self.bands.iter().zip(COLOURS.iter().skip(1)).map(|(band, colour)| (&band.name, colour));
        let lines = self.lines.iter().zip(COLOURS.iter().cycle()).map(|(line, colour)| (&line.name, colour));
        let mut x = MARGIN.0 + 120.0;
        for (name, colour) in lines.chain(bands) {
            let _ = write!(svg, "<rect x=\"{x}\" y=\"4\" width=\"10\" height=\"10\" fill=\"{colour}\"/>");
            let _ = write!(svg, "<text x=\"{}\" y=\"13\">{}</text>", x + 14.0, escape(name));
            x += 30.0 + 6.5 * name.chars().count() as f64;
        }
    }
}

fn draw(line: &Line, colour: &str, frame: &Frame, svg: &mut String) {
    let mut path = String::new();
    let mut pen_down = false;
    for &(x, y) in &line.points {
        if !(x.is_finite() && y.is_finite()) {
            pen_down = false;
            continue;
        }
        let (x, y) = (frame.x(x), frame.y(y));
        let _ = write!(path, "{}{x:.1} {y:.1}", if pen_down { 'L' } else { 'M' });
        if line.dots {
            let _ = write!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
        }
        pen_down = true;
    }
    let _ = write!(svg, "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.4\"/>");
}

/// Round numbers within a range: steps of 1, 2 or 5 times a power of ten.
fn ticks((low, high): (f64, f64)) -> Vec<f64> {
    let rough = (high - low) / TICKS;
    let magnitude = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * magnitude).into_iter().find(|step| *step >= rough);
    let Some(step) = step.filter(|step| step.is_normal()) else { return Vec::new() };
    let first = (low / step).ceil();
    let count = ((high - low) / step) as usize;
    // Rounded to the step, or 0.1 + 0.2 would be a label of 17 digits.
    let decimals = usize::try_from((-step.log10().floor()).max(0.0) as i64).unwrap_or(0);
    let round = |value: f64| format!("{value:.decimals$}").parse().unwrap_or(value);
    (0..=count).map(|i| round((first + i as f64) * step)).filter(|value| *value <= high).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(points: &[(f64, f64)]) -> Plot {
        let line = Line { name: "truth".to_owned(), points: points.to_vec(), dots: false };
        Plot { x_label: "h".to_owned(), y_label: "%".to_owned(), lines: vec![line], ..Plot::default() }
    }

    #[test]
    fn ticks_are_round_numbers_within_the_range() {
        assert_eq!(ticks((0.0, 1.0)), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        assert_eq!(ticks((3.0, 48.0)), [10.0, 20.0, 30.0, 40.0]);
    }

    #[test]
    fn a_gap_interrupts_the_line() {
        let svg = line(&[(0.0, 1.0), (1.0, f64::NAN), (2.0, 1.0), (3.0, 2.0)]).svg();
        let path = svg.split("<path d=\"").nth(1).unwrap();
        assert_eq!(path.split('"').next().unwrap().matches('M').count(), 2, "{svg}");
        assert!(!svg.contains("NaN"));
    }

    #[test]
    fn a_plot_of_nothing_or_of_one_point_is_a_plot() {
        for points in [&[][..], &[(5.0, 0.0)], &[(1.0, 1e300), (2.0, f64::INFINITY)]] {
            let svg = line(points).svg();
            assert!(svg.ends_with("</svg>") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }
}
