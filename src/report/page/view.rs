//! The data of the template: sections of paragraphs, tables, figures and texts, already formatted.

use serde::Serialize;

use super::plots::{self, Plot, Style};
use crate::statistics::Estimate;
use crate::table::digits;

/// The whole page.
#[derive(Debug, Serialize)]
pub struct View {
    pub title: String,
    pub subtitle: String,
    /// Seconds after which the page is loaded again.
    pub refresh: Option<u64>,
    pub sections: Vec<Section>,
}

/// A part with a heading.
#[derive(Debug, Serialize)]
pub struct Section {
    pub id: &'static str,
    pub title: String,
    pub blocks: Vec<Block>,
}

impl Section {
    /// A section, unless it has nothing but text.
    pub fn new(id: &'static str, title: &str, blocks: Vec<Block>) -> Option<Self> {
        let shows = |block: &Block| !matches!(block, Block::Heading { .. } | Block::Text { .. });
        blocks.iter().any(shows).then(|| Self { id, title: title.to_owned(), blocks })
    }
}

/// One thing in a section.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Block {
    /// A heading within the section.
    Heading { text: String },
    /// A paragraph.
    Text { text: String },
    /// Names with values.
    Facts { facts: Vec<(String, String)> },
    /// A table, collapsed if it has a `summary`.
    Table { caption: String, header: Vec<String>, rows: Vec<Vec<Cell>>, summary: Option<String> },
    /// Plots side by side, with one legend and one caption.
    Figure { caption: String, legend: Vec<Entry>, plots: Vec<Drawing> },
    /// The same text, shaded in several ways.
    Shaded { title: String, prompt: String, rows: Vec<ShadedRow> },
    /// The responses of two models.
    Sample { title: String, prompt: String, answers: Vec<(String, String)> },
    /// The text of a file, collapsed.
    Verbatim { summary: String, text: String },
    /// Files beside the page.
    Files { files: Vec<(String, String)> },
}

/// A cell of a table.
#[derive(Debug, Serialize)]
pub struct Cell {
    pub text: String,
    pub note: Option<String>,
    /// Its CSS class: `name`, `number`, `words`, or a verdict: `yes`, `perhaps`, `no`.
    pub class: &'static str,
}

impl Cell {
    /// The name of a row.
    pub fn name(text: impl Into<String>) -> Self {
        Self { text: text.into(), note: None, class: "name" }
    }

    /// A number in digits.
    pub fn number(text: impl Into<String>) -> Self {
        Self { text: minus(&text.into()), note: None, class: "number" }
    }

    /// A few words.
    pub fn words(text: impl Into<String>) -> Self {
        Self { text: text.into(), note: None, class: "words" }
    }

    /// With small print below.
    pub fn with_note(mut self, note: Option<String>) -> Self {
        self.note = note;
        self
    }

    /// A number that may not be known.
    pub fn figure(value: Option<f64>, decimals: usize) -> Self {
        Self::number(value.map_or("–".into(), |value| digits(value, decimals)))
    }

    /// A mean and its standard error, and below them the interval.
    pub fn estimate(estimate: Option<&Estimate>, decimals: usize) -> Self {
        let Some(Estimate { mean, error, interval, .. }) = estimate else {
            return Self::number("–");
        };
        let error = error.map_or(String::new(), |error| format!(" ± {error:.decimals$}"));
        let note = interval
            .map(|[low, high]| format!("[{}, {}]", digits(low, decimals), digits(high, decimals)));
        Self::number(format!("{}{error}", digits(*mean, decimals)))
            .with_note(note.map(|note| minus(&note)))
    }

    /// A difference, with its sign; `none` marks it as no difference.
    pub fn difference(estimate: Option<&Estimate>, decimals: usize, none: bool) -> Self {
        let mut cell = Self::estimate(estimate, decimals);
        if estimate.is_some_and(|e| e.mean > 0.0) {
            cell.text.insert(0, '+');
        }
        if estimate.is_some_and(Estimate::excludes_zero) {
            cell.class = "number strong";
        }
        if none {
            cell.text += " ≈";
        }
        cell
    }
}

/// Digits with a true minus sign.
fn minus(text: &str) -> String {
    text.replace('-', "−")
}

/// A line of a legend.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// A piece of the line: SVG.
    swatch: String,
    name: String,
}

impl Entry {
    /// The entry of a series.
    pub fn new(style: Style, name: impl Into<String>) -> Self {
        Self { swatch: plots::swatch(style), name: name.into() }
    }
}

/// A plot with a name above it.
#[derive(Debug, Serialize)]
pub struct Drawing {
    /// Its name among the plots beside it.
    title: Option<String>,
    svg: String,
}

impl Drawing {
    /// The drawing, unless the plot is empty.
    pub fn of(title: Option<&str>, plot: &Plot) -> Option<Self> {
        (!plot.is_empty()).then(|| Self { title: title.map(str::to_owned), svg: plot.svg() })
    }
}

/// A text, piece by piece.
#[derive(Debug, Serialize)]
pub struct ShadedRow {
    /// What the pieces are shaded by.
    name: String,
    pieces: Vec<Shade>,
}

/// A piece of a text.
pub struct Piece {
    pub text: String,
    pub value: Option<f64>,
    /// Whether it repeats an earlier clause.
    pub repeated: bool,
}

/// A piece as laid out.
#[derive(Debug, Serialize)]
struct Shade {
    text: String,
    /// The value, in digits.
    value: Option<String>,
    /// How strong the shade is, from 0 to 1.
    strength: f64,
    /// `above` or `below` 0, and `again` where it repeats.
    class: String,
}

impl ShadedRow {
    /// Pieces shaded by their values, the one farthest from 0 fully.
    pub fn new(name: &str, pieces: Vec<Piece>) -> Self {
        let values = pieces.iter().filter_map(|piece| piece.value);
        let most = values.fold(0.0, |most: f64, value| most.max(value.abs()));
        let shade = |Piece { text, value, repeated }: Piece| {
            let value = value.filter(|value| *value != 0.0);
            let side = if value.is_some_and(|value| value < 0.0) { "below" } else { "above" };
            Shade {
                text,
                value: value.map(|value| minus(&format!("{value:+.2}"))),
                strength: value.map_or(0.0, |value| (100.0 * value.abs() / most).round() / 100.0),
                class: if repeated { format!("{side} again") } else { side.into() },
            }
        };
        Self { name: name.to_owned(), pieces: pieces.into_iter().map(shade).collect() }
    }
}
