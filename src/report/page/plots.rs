//! Small plots as SVG text. Colours, dashes and strokes are classes that the page's style sheet fills in, so that one
//! drawing suits a light and a dark page: `s1` to `s8` are the series, each with its own colour, dash and marker.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

/// How many series can be told apart.
pub const SERIES: usize = 8;

/// Pixels of the drawing for one of the page at the least width: the backend rounds to whole ones.
const SCALE: i32 = 4;
const WIDTH: i32 = 360;
const HEIGHT: i32 = 240;
const FONT: f64 = 11.5;

/// What a mark is drawn as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A series by its number, from 0; the ninth looks like the first.
    Series(usize),
    /// What series are compared with: a diagonal, a base line.
    Reference,
}

/// One kind of mark for one series.
#[derive(Clone, Debug)]
pub enum Layer {
    /// An area between two curves: (x, low, high).
    Band(Style, Vec<(f64, f64, f64)>),
    /// A curve, with a few markers where `marked`.
    Line {
        /// Its style.
        style: Style,
        /// Its points.
        points: Vec<(f64, f64)>,
        /// Whether markers stand on it.
        marked: bool,
    },
    /// A curve so faint that others are read before it.
    Faint(Style, Vec<(f64, f64)>),
    /// Markers alone.
    Dots(Style, Vec<(f64, f64)>),
    /// Markers with upright intervals: (x, y, [low, high]).
    Intervals(Style, Vec<(f64, f64, [f64; 2])>),
    /// Bars from 0: (from, to, height).
    Bars(Style, Vec<(f64, f64, f64)>),
}

/// A plot with its axes.
#[derive(Clone, Debug)]
pub struct Plot {
    /// What is plotted, with its unit; stands above the plot's y axis.
    pub y: String,
    /// The x axis's title, with its unit.
    pub x: String,
    /// What is read aloud in place of the plot.
    pub description: String,
    /// The x axis, where the points do not say.
    pub x_range: Option<[f64; 2]>,
    /// What the y axis holds besides the points.
    pub y_holds: Vec<f64>,
    /// The marks, the last on top.
    pub layers: Vec<Layer>,
}

impl Plot {
    /// Whether there is anything to see.
    pub fn is_empty(&self) -> bool {
        self.layers.iter().all(|layer| layer.points().is_empty())
    }

    /// The plot as an SVG element.
    pub fn svg(&self) -> String {
        let mut svg = String::new();
        {
            let size = ((WIDTH * SCALE) as u32, (HEIGHT * SCALE) as u32);
            let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
            self.draw(&root).expect("text takes every drawing");
        }
        classes(&svg, &self.description)
    }

    fn draw(&self, root: &Area) -> Result<(), Failure> {
        let (x, y) = self.ranges();
        let at = (3 * SCALE, 3 * SCALE);
        root.draw_text(&self.y, &text(INK), at)?;
        let mut chart = ChartBuilder::on(root)
            .margin_top(22 * SCALE)
            .margin_right(12 * SCALE)
            .margin_bottom(2 * SCALE)
            .x_label_area_size(36 * SCALE)
            .y_label_area_size(40 * SCALE)
            .build_cartesian_2d(x, y)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RULE.stroke_width(SCALE as u32 / 2))
            .axis_style(RULE.stroke_width(SCALE as u32))
            .set_all_tick_mark_size(3 * SCALE)
            .x_labels(6)
            .y_labels(5)
            .x_label_formatter(&|x| tick(*x))
            .y_label_formatter(&|y| tick(*y))
            .label_style(text(INK))
            .x_desc(&self.x)
            .axis_desc_style(text(INK))
            .draw()?;
        let area = chart.plotting_area();
        self.layers.iter().try_for_each(|layer| layer.draw(area))
    }

    /// The axes: all curves whole, bands and intervals only as far as they leave the curves readable.
    fn ranges(&self) -> (Range<f64>, Range<f64>) {
        let all = || self.layers.iter().flat_map(Layer::points);
        let (left, right) = match self.x_range {
            Some([left, right]) => (left, right),
            None => bounds(all().map(|(x, ..)| x)),
        };
        let (low, high) = bounds(all().map(|(_, y, _)| y).chain(self.y_holds.iter().copied()));
        let reach = 0.75 * (high - low);
        let wide = all().flat_map(|(.., [low, high])| [low, high]);
        let (least, most) =
            bounds(wide.map(|y| y.clamp(low - reach, high + reach)).chain([low, high]));
        let bars = self.layers.iter().any(|layer| matches!(layer, Layer::Bars(..)));
        let pad = 0.04 * (most - least);
        let bottom = if bars { least.min(0.0) } else { least - pad };
        (left..right, bottom..most + pad)
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Plane<'a> = DrawingArea<SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Failure = DrawingAreaErrorKind<std::io::Error>;

impl Layer {
    /// Each point with what its y axis holds.
    fn points(&self) -> Vec<(f64, f64, [f64; 2])> {
        let one = |&(x, y): &(f64, f64)| (x, y, [y, y]);
        match self {
            Self::Band(_, points) => {
                let middle =
                    |&(x, low, high): &(f64, f64, f64)| (x, (low + high) / 2.0, [low, high]);
                points.iter().map(middle).collect()
            }
            Self::Line { points, .. } | Self::Faint(_, points) | Self::Dots(_, points) => {
                points.iter().map(one).collect()
            }
            Self::Intervals(_, points) => points.clone(),
            Self::Bars(_, bars) => {
                let ends =
                    |&(from, to, y): &(f64, f64, f64)| [(from, y, [0.0, y]), (to, y, [0.0, y])];
                bars.iter().flat_map(ends).collect()
            }
        }
    }

    fn draw(&self, plane: &Plane) -> Result<(), Failure> {
        let y_range = plane.get_y_range();
        let cut = |y: f64| y.clamp(y_range.start, y_range.end);
        let width = |pixels: f64| (pixels * f64::from(SCALE)) as u32;
        match self {
            Self::Band(style, points) => {
                let upper = points.iter().map(|&(x, _, high)| (x, cut(high)));
                let lower = points.iter().rev().map(|&(x, low, _)| (x, cut(low)));
                let outline: Vec<_> = upper.chain(lower).collect();
                plane.draw(&Polygon::new(outline, role(*style, Role::Band).filled()))
            }
            Self::Line { style, points, marked } => {
                let stroke = role(*style, Role::Line).stroke_width(width(1.8));
                plane.draw(&PathElement::new(points.clone(), stroke))?;
                let Style::Series(number) = *style else { return Ok(()) };
                let step = points.len().div_ceil(6).max(1);
                let marks = points.iter().skip(number % step).step_by(step).filter(|_| *marked);
                marks.into_iter().try_for_each(|&point| marker(plane, *style, point))
            }
            Self::Faint(style, points) => {
                let stroke = role(*style, Role::Faint).stroke_width(width(1.0));
                plane.draw(&PathElement::new(points.clone(), stroke))
            }
            Self::Dots(style, points) => {
                points.iter().try_for_each(|&point| marker(plane, *style, point))
            }
            Self::Intervals(style, points) => points.iter().try_for_each(|&(x, y, [low, high])| {
                let stroke = role(*style, Role::Whisker).stroke_width(width(1.5));
                plane.draw(&PathElement::new(vec![(x, cut(low)), (x, cut(high))], stroke))?;
                marker(plane, *style, (x, y))
            }),
            Self::Bars(style, bars) => bars.iter().try_for_each(|&(from, to, y)| {
                let fill = role(*style, Role::Mark).filled();
                let (base, gap) = (cut(0.0), 0.06 * (to - from));
                plane.draw(&Rectangle::new([(from + gap, base), (to - gap, cut(y))], fill))
            }),
        }
    }
}

/// The marker of a series: its shape, like its colour and its dash, tells it from the others.
fn marker(plane: &Plane, style: Style, at: (f64, f64)) -> Result<(), Failure> {
    let Style::Series(number) = style else { return Ok(()) };
    let outline: Vec<(i32, i32)> =
        shape(number).iter().map(|&(x, y)| scaled(x, y, f64::from(SCALE))).collect();
    let fill = role(style, Role::Mark).filled();
    plane.draw(&(EmptyElement::at(at) + Polygon::new(outline, fill)))
}

fn scaled(x: f64, y: f64, scale: f64) -> (i32, i32) {
    ((x * scale).round() as i32, (y * scale).round() as i32)
}

/// The outline of a series's marker, in pixels of the page about its middle.
fn shape(number: usize) -> &'static [(f64, f64)] {
    const CIRCLE: &[(f64, f64)] = &[
        (3.0, 0.0),
        (2.6, 1.5),
        (1.5, 2.6),
        (0.0, 3.0),
        (-1.5, 2.6),
        (-2.6, 1.5),
        (-3.0, 0.0),
        (-2.6, -1.5),
        (-1.5, -2.6),
        (0.0, -3.0),
        (1.5, -2.6),
        (2.6, -1.5),
    ];
    const SQUARE: &[(f64, f64)] = &[(-2.7, -2.7), (2.7, -2.7), (2.7, 2.7), (-2.7, 2.7)];
    const UP: &[(f64, f64)] = &[(0.0, -3.8), (3.6, 2.5), (-3.6, 2.5)];
    const DIAMOND: &[(f64, f64)] = &[(0.0, -4.2), (3.4, 0.0), (0.0, 4.2), (-3.4, 0.0)];
    const DOWN: &[(f64, f64)] = &[(0.0, 3.8), (3.6, -2.5), (-3.6, -2.5)];
    const PLUS: &[(f64, f64)] = &[
        (-1.0, -3.8),
        (1.0, -3.8),
        (1.0, -1.0),
        (3.8, -1.0),
        (3.8, 1.0),
        (1.0, 1.0),
        (1.0, 3.8),
        (-1.0, 3.8),
        (-1.0, 1.0),
        (-3.8, 1.0),
        (-3.8, -1.0),
        (-1.0, -1.0),
    ];
    const BAR: &[(f64, f64)] = &[(-1.2, -4.0), (1.2, -4.0), (1.2, 4.0), (-1.2, 4.0)];
    const DASH: &[(f64, f64)] = &[(-4.0, -1.2), (4.0, -1.2), (4.0, 1.2), (-4.0, 1.2)];
    [CIRCLE, SQUARE, UP, DIAMOND, DOWN, PLUS, BAR, DASH][number % SERIES]
}

/// A short piece of a series's line with its marker, for a legend.
pub fn swatch(style: Style) -> String {
    let class = class_number(style);
    let line = format!(r#"<path class="line s{class}" d="M1 8H33" stroke-width="1.8"/>"#);
    let mark = match style {
        Style::Reference => String::new(),
        Style::Series(number) => {
            let points = shape(number).iter().map(|(x, y)| format!("{},{}", 17.0 + x, 8.0 + y));
            let points = points.collect::<Vec<_>>().join(" ");
            format!(r#"<polygon class="mark s{class}" points="{points}"/>"#)
        }
    };
    format!(r#"<svg class="swatch" viewBox="0 0 34 16" aria-hidden="true">{line}{mark}</svg>"#)
}

/// The least and the greatest of the finite numbers, apart from each other.
fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let finite = values.filter(|value| value.is_finite());
    let (low, high) =
        finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    match high - low {
        width if width.is_nan() || width < 0.0 => (0.0, 1.0),
        width if width < 1e-9 * high.abs().max(1e-3) => {
            let half = 0.5 * high.abs().max(1e-3);
            (low - half, high + half)
        }
        _ => (low, high),
    }
}

/// A number on an axis, without digits that say nothing.
fn tick(value: f64) -> String {
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.replace('-', "−") }
}

/// What of a series is drawn: each gets its colour, and what else is due, from the style sheet.
#[derive(Clone, Copy)]
enum Role {
    Line = 1,
    Mark,
    Band,
    Faint,
    Whisker,
}

/// The classes of the roles.
const ROLES: [(Role, &str); 5] = [
    (Role::Line, "line"),
    (Role::Mark, "mark"),
    (Role::Band, "band"),
    (Role::Faint, "faint"),
    (Role::Whisker, "whisker"),
];

/// Stand-ins for colours, which [`classes`] replaces.
const RULE: RGBColor = RGBColor(0xA0, 0, 1);
const INK: RGBColor = RGBColor(0xA0, 0, 2);

fn role(style: Style, role: Role) -> RGBColor {
    RGBColor(0xB0, role as u8, class_number(style) as u8)
}

fn class_number(style: Style) -> usize {
    match style {
        Style::Series(number) => 1 + number % SERIES,
        Style::Reference => 0,
    }
}

fn text(colour: RGBColor) -> TextStyle<'static> {
    ("sans-serif", FONT * f64::from(SCALE)).into_font().color(&colour)
}

/// The drawing with classes in place of colours, a title, and no size of its own.
fn classes(svg: &str, description: &str) -> String {
    let mut out = svg.to_owned();
    let font_size = format!(
        " font-size=\"{}\"",
        svg.split_once("font-size=\"")
            .map_or("", |(_, rest)| rest.split_once('"').map_or("", |(size, _)| size))
    );
    let mut replace = |colour: RGBColor, class: &str| {
        let RGBColor(r, g, b) = colour;
        for attribute in ["fill", "stroke"] {
            let from = format!("{attribute}=\"#{r:02X}{g:02X}{b:02X}\"");
            out = out.replace(&from, &format!("class=\"{class}\""));
        }
    };
    replace(RULE, "rule");
    replace(INK, "ink");
    for (number, (what, class)) in (0..=SERIES).flat_map(|n| ROLES.map(|role| (n, role))) {
        let colour = RGBColor(0xB0, what as u8, number as u8);
        replace(colour, &format!("{class} s{number}"));
    }
    for default in
        [" opacity=\"1\"", " stroke=\"none\"", " font-family=\"sans-serif\"", &font_size, "\n"]
    {
        out = out.replace(default, "");
    }
    let description = escape(description);
    let head = format!(
        "<svg class=\"plot\" viewBox=\"0 0 {} {}\" role=\"img\"><title>{description}</title>",
        WIDTH * SCALE,
        HEIGHT * SCALE
    );
    let body = out.split_once('>').map_or("", |(_, body)| body);
    head + body
}

/// Text as it may stand in HTML.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}
