//! Small plots as SVG. Colours, dashes and strokes are classes of the page's style sheet, so that one drawing suits a
//! light and a dark page: `s1` to `s8` are the series, each with its own colour, dash and marker.

use std::f64::consts::TAU;
use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// How many series can be told apart.
pub const SERIES: usize = 8;

/// Pixels of the drawing for one of the page at its narrowest, because the backend rounds to whole pixels.
const SCALE: i32 = 4;
const WIDTH: i32 = 360;
const HEIGHT: i32 = 240;
const ROW: i32 = 26;
const FONT: f64 = 11.5;

/// The look of a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A series by its number, from 0; the ninth looks like the first.
    Series(usize),
    /// A reference that series are compared with: a diagonal, a baseline.
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
        /// Whether it has markers.
        marked: bool,
    },
    /// A faint curve behind the others.
    Faint(Style, Vec<(f64, f64)>),
    /// Markers alone.
    Dots(Style, Vec<(f64, f64)>),
    /// Markers with upright intervals: (x, y, [low, high]).
    Intervals(Style, Vec<(f64, f64, [f64; 2])>),
    /// Markers with level intervals, one in a row of the plot's `rows`: (row from the top, x, [low, high]).
    Spread(Style, Vec<(usize, f64, [f64; 2])>),
    /// Bars from 0: (from, to, height).
    Bars(Style, Vec<(f64, f64, f64)>),
}

/// A plot with its axes.
#[derive(Clone, Debug, Default)]
pub struct Plot {
    /// The quantity with its unit, shown above the y axis.
    pub y: String,
    /// The x axis's title, with its unit.
    pub x: String,
    pub description: String,
    /// The range of the x axis, if not the points'.
    pub x_range: Option<[f64; 2]>,
    /// Whether the x axis is labelled with squares: 9 at 3.
    pub x_squares: bool,
    /// Names instead of the numbers 1, 2, … on the x axis.
    pub x_names: &'static [&'static str],
    /// Names of the rows instead of a y axis, from the top.
    pub rows: Vec<String>,
    /// Further values that the y axis must include.
    pub y_holds: Vec<f64>,
    /// The marks, the last on top.
    pub layers: Vec<Layer>,
}

impl Plot {
    /// Whether it has no points.
    pub fn is_empty(&self) -> bool {
        self.layers.iter().all(|layer| layer.points().is_empty())
    }

    /// The plot as an SVG element.
    pub fn svg(&self) -> String {
        let mut svg = String::new();
        let height = match self.rows.len() {
            0 => HEIGHT,
            rows => ROW * rows as i32 + 58,
        };
        {
            let size = ((WIDTH * SCALE) as u32, (height * SCALE) as u32);
            let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
            self.draw(&root).expect("text takes every drawing");
        }
        classes(&svg, &self.description, height)
    }

    fn draw(&self, root: &Area) -> Result<(), Failure> {
        let (x, y) = self.ranges();
        root.draw_text(&self.y, &text(), (3 * SCALE, 3 * SCALE))?;
        let in_rows = !self.rows.is_empty();
        let mut chart = ChartBuilder::on(root)
            .margin_top(22 * SCALE)
            .margin_right(12 * SCALE)
            .margin_bottom(2 * SCALE)
            .x_label_area_size(36 * SCALE)
            .y_label_area_size(if in_rows { 132 } else { 40 } * SCALE)
            .build_cartesian_2d(x, y)?;
        let name = |x: f64| self.x_names.get((x - 1.0) as usize).map(|&name| name.to_owned());
        let mut points = self.layers.iter().flat_map(Layer::points);
        let whole = points.all(|(x, ..)| x.fract() == 0.0);
        let label = |x: f64| match x.fract() == 0.0 || !whole || self.x_squares {
            true => tick(if self.x_squares { x * x } else { x }),
            false => String::new(),
        };
        let x_label = |x: &f64| name(*x).unwrap_or_else(|| label(*x));
        let y_label = |y: &f64| if in_rows { String::new() } else { tick(*y) };
        let mut mesh = chart.configure_mesh();
        if in_rows {
            mesh.disable_y_mesh()
        } else {
            mesh.disable_x_mesh()
        };
        mesh.light_line_style(TRANSPARENT)
            .bold_line_style(RULE.stroke_width(SCALE as u32 / 2))
            .axis_style(RULE.stroke_width(SCALE as u32))
            .set_all_tick_mark_size(3 * SCALE)
            .x_labels(6)
            .y_labels(if in_rows { 0 } else { 5 })
            .x_label_formatter(&x_label)
            .y_label_formatter(&y_label)
            .label_style(text())
            .x_desc(&self.x)
            .axis_desc_style(text())
            .draw()?;
        for (row, name) in self.rows.iter().enumerate() {
            let (_, y) = chart.backend_coord(&(0.0, self.row(row)));
            let lines = two_lines(name);
            let style = text().pos(Pos::new(HPos::Right, VPos::Center));
            let step = 12 * SCALE;
            let first = y - step * (lines.len() as i32 - 1) / 2;
            for (line, text) in lines.iter().enumerate() {
                root.draw_text(text, &style, (126 * SCALE, first + step * line as i32))?;
            }
        }
        let area = chart.plotting_area();
        self.layers.iter().try_for_each(|layer| layer.draw(self, area))
    }

    /// Where a row lies on the y axis.
    fn row(&self, row: usize) -> f64 {
        (self.rows.len() - row) as f64
    }

    /// The axes: they include all means, and intervals and bands only as far as the means stay readable.
    fn ranges(&self) -> (Range<f64>, Range<f64>) {
        let all = || self.layers.iter().flat_map(Layer::points);
        let has = |kind: fn(&Layer) -> bool| self.layers.iter().any(kind);
        let (left, right) = match self.x_range {
            Some([left, right]) => (left, right),
            None => {
                let (mut left, mut right) = bounds(all().map(|(x, ..)| x));
                if has(|layer| matches!(layer, Layer::Spread(..))) {
                    let spreads = self.layers.iter().filter(|l| matches!(l, Layer::Spread(..)));
                    (left, right) = reached((left, right), 1.5, spreads);
                }
                let apart = has(|l| matches!(l, Layer::Intervals(..) | Layer::Spread(..)));
                let pad = if apart { 0.04 * (right - left) } else { 0.0 };
                (left - pad, right + pad)
            }
        };
        if !self.rows.is_empty() {
            return (left..right, 0.5..self.rows.len() as f64 + 0.5);
        }
        let (low, high) = bounds(all().map(|(_, y, _)| y).chain(self.y_holds.iter().copied()));
        let bands = |band: bool| {
            self.layers.iter().filter(move |layer| matches!(layer, Layer::Band(..)) == band)
        };
        let (least, most) = reached((low, high), 1.5, bands(false));
        let banded = reached((low, high), 0.75, bands(true));
        let (least, most) = (least.min(banded.0), most.max(banded.1));
        let pad = 0.04 * (most - least);
        let bars = has(|layer| matches!(layer, Layer::Bars(..)));
        let bottom = if bars { least.min(0.0) } else { least - pad };
        (left..right, bottom..most + pad)
    }
}

/// The range with the ends of the layers' intervals, which may widen it on either side by this many times its width.
fn reached<'a>(
    (low, high): (f64, f64),
    times: f64,
    layers: impl Iterator<Item = &'a Layer>,
) -> (f64, f64) {
    let reach = times * (high - low);
    let ends = layers.flat_map(Layer::points).flat_map(|(.., ends)| ends);
    let within = ends.map(|end| end.clamp(low - reach, high + reach));
    bounds(within.chain([low, high]))
}

/// A name in at most two lines that fit beside the rows.
fn two_lines(name: &str) -> Vec<String> {
    const WIDTH: usize = 21;
    let short = |text: &str| match text.chars().count() {
        count if count > WIDTH => text.chars().take(WIDTH - 1).chain(['…']).collect(),
        _ => text.to_owned(),
    };
    if name.chars().count() <= WIDTH {
        return vec![name.to_owned()];
    }
    let fits = |&(at, _): &(usize, &str)| name[..at].chars().count() <= WIDTH;
    match name.match_indices(' ').rfind(fits) {
        Some((at, _)) => vec![name[..at].to_owned(), short(&name[at + 1..])],
        None => vec![short(name)],
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Plane<'a> = DrawingArea<SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Failure = DrawingAreaErrorKind<std::io::Error>;

impl Layer {
    /// Each point with the y values that it spans.
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
            Self::Spread(_, points) => {
                points.iter().map(|&(row, x, ends)| (x, row as f64, ends)).collect()
            }
            Self::Bars(_, bars) => {
                let ends =
                    |&(from, to, y): &(f64, f64, f64)| [(from, y, [0.0, y]), (to, y, [0.0, y])];
                bars.iter().flat_map(ends).collect()
            }
        }
    }

    fn draw(&self, plot: &Plot, plane: &Plane) -> Result<(), Failure> {
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
                marks.into_iter().try_for_each(|&point| marker(plane, *style, Role::Mark, point))
            }
            Self::Faint(style, points) => {
                let stroke = role(*style, Role::Faint).stroke_width(width(1.0));
                plane.draw(&PathElement::new(points.clone(), stroke))
            }
            Self::Dots(style, points) => {
                points.iter().try_for_each(|&point| marker(plane, *style, Role::Dot, point))
            }
            Self::Intervals(style, points) => points.iter().try_for_each(|&(x, y, [low, high])| {
                let stroke = role(*style, Role::Whisker).stroke_width(width(1.5));
                plane.draw(&PathElement::new(vec![(x, cut(low)), (x, cut(high))], stroke))?;
                marker(plane, *style, Role::Mark, (x, y))
            }),
            Self::Spread(style, points) => points.iter().try_for_each(|&(row, x, [low, high])| {
                let y = plot.row(row);
                let x_range = plane.get_x_range();
                let cut = |x: f64| x.clamp(x_range.start, x_range.end);
                let stroke = role(*style, Role::Whisker).stroke_width(width(1.5));
                plane.draw(&PathElement::new(vec![(cut(low), y), (cut(high), y)], stroke))?;
                marker(plane, *style, Role::Mark, (x, y))
            }),
            Self::Bars(style, bars) => bars.iter().try_for_each(|&(from, to, y)| {
                let fill = role(*style, Role::Mark).filled();
                let (base, gap) = (cut(0.0), 0.06 * (to - from));
                plane.draw(&Rectangle::new([(from + gap, base), (to - gap, cut(y))], fill))
            }),
        }
    }
}

/// The marker of a series, which like its colour and its dash tells it from the others.
fn marker(plane: &Plane, style: Style, what: Role, at: (f64, f64)) -> Result<(), Failure> {
    let Style::Series(number) = style else { return Ok(()) };
    let outline: Vec<(i32, i32)> =
        shape(number).iter().map(|&(x, y)| scaled(x, y, f64::from(SCALE))).collect();
    let fill = role(style, what).filled();
    plane.draw(&(EmptyElement::at(at) + Polygon::new(outline, fill)))
}

fn scaled(x: f64, y: f64, scale: f64) -> (i32, i32) {
    ((x * scale).round() as i32, (y * scale).round() as i32)
}

/// The outline of a series' marker around its centre, in pixels of the page.
fn shape(number: usize) -> Vec<(f64, f64)> {
    match number % SERIES {
        0 => turned(&[(3.0, 0.0)], 12),
        1 => turned(&[(2.7, 2.7)], 4),
        2 => turned(&[(0.0, -3.8)], 3),
        3 => vec![(0.0, -4.2), (3.4, 0.0), (0.0, 4.2), (-3.4, 0.0)],
        4 => turned(&[(0.0, 3.8)], 3),
        5 => turned(&[(1.0, -1.0), (3.8, -1.0), (3.8, 1.0)], 4),
        6 => vec![(-1.2, -4.0), (1.2, -4.0), (1.2, 4.0), (-1.2, 4.0)],
        _ => vec![(-4.0, -1.2), (4.0, -1.2), (4.0, 1.2), (-4.0, 1.2)],
    }
}

/// These points and their like around the middle: an outline that looks the same after one of `times` turns.
fn turned(points: &[(f64, f64)], times: usize) -> Vec<(f64, f64)> {
    let turn = |time: usize| {
        let (sin, cos) = (TAU * time as f64 / times as f64).sin_cos();
        points.iter().map(move |(x, y)| (x * cos - y * sin, x * sin + y * cos))
    };
    (0..times).flat_map(turn).collect()
}

/// A piece of a series' line with its marker, for a legend.
pub fn swatch(style: Style) -> String {
    let class = class_number(style);
    let line = format!(r#"<path class="line s{class}" d="M1 8H33" stroke-width="1.8"/>"#);
    let mark = match style {
        Style::Reference => String::new(),
        Style::Series(number) => {
            let points = shape(number).into_iter();
            let points = points.map(|(x, y)| format!("{:.1},{:.1}", 17.0 + x, 8.0 + y));
            let points = points.collect::<Vec<_>>().join(" ");
            format!(r#"<polygon class="mark s{class}" points="{points}"/>"#)
        }
    };
    format!(r#"<svg class="swatch" viewBox="0 0 34 16" aria-hidden="true">{line}{mark}</svg>"#)
}

/// The least and the greatest of the finite numbers, made distinct.
fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let finite = values.filter(|value| value.is_finite());
    let (low, high) =
        finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    match high - low {
        width if width.is_nan() || width < 0.0 => (0.0, 1.0),
        width if width < 1e-9 * high.abs().max(1e-3) => {
            let half = if high == 0.0 { 0.5 } else { 0.5 * high.abs() };
            (low - half, high + half)
        }
        _ => (low, high),
    }
}

/// A number on an axis, without trailing zeros.
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
    Dot,
    Band,
    Faint,
    Whisker,
}

/// The classes of the roles.
const ROLES: [(Role, &str); 6] = [
    (Role::Line, "line"),
    (Role::Mark, "mark"),
    (Role::Dot, "dot"),
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

fn text() -> TextStyle<'static> {
    ("sans-serif", FONT * f64::from(SCALE)).into_font().color(&INK)
}

/// The drawing with classes instead of colours and fonts, a title, and no size of its own.
fn classes(svg: &str, description: &str, height: i32) -> String {
    let mut out = svg.to_owned();
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
    let font_size = svg.split(" font-size=\"").nth(1).and_then(|rest| rest.split('"').next());
    let font_size = format!(" font-size=\"{}\"", font_size.unwrap_or_default());
    let defaults =
        [" opacity=\"1\"", " stroke=\"none\"", " font-family=\"sans-serif\"", &font_size, "\n"];
    for default in defaults {
        out = out.replace(default, "");
    }
    let (width, height, description) = (WIDTH * SCALE, height * SCALE, escape(description));
    let head = format!(
        "<svg class=\"plot\" viewBox=\"0 0 {width} {height}\" role=\"img\"><title>{description}</title>"
    );
    head + out.split_once('>').map_or("", |(_, body)| body)
}

/// Text escaped for HTML.
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
