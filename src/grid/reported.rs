//! The figures that the paper and its official code report: `paper/reported.toml`, which gives the source of each.
//!
//! # Examples
//!
//! ```
//! use segment_rlhf::systems::Method;
//! use segment_rlhf::grid::reported::{Source, Subject, reported};
//!
//! let table = &reported().tables[0];
//! assert_eq!(table.source, Source::PaperTable(1));
//! let row = table.row(Subject::Method(Method::SEGMENT)).unwrap();
//! assert_eq!((row.alpaca_lc, row.arena_hard, row.checked), (Some(31.05), Some(34.0), true));
//! ```

use std::fmt;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::equations::interpolation::Interpolation;
use crate::equations::normalizer::Normalizer;
use crate::equations::segmentation::Rule;
use crate::settings::NormalizerKind;
use crate::systems::Method;
use crate::table::markdown;

/// The text of `paper/reported.toml`.
pub const REPORTED: &str = include_str!("../../paper/reported.toml");

/// All that is reported.
pub fn reported() -> &'static Reported {
    static PARSED: LazyLock<Reported> =
        LazyLock::new(|| toml::from_str(REPORTED).expect("the reported figures parse"));
    &PARSED
}

/// The content of `paper/reported.toml`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reported {
    /// The tables, those of the paper by their number.
    #[serde(rename = "table")]
    pub tables: Vec<Table>,
    pub cutoff_sweep: CutoffSweep,
    /// The normalizers that were released with the official code.
    #[serde(rename = "released_fit")]
    pub released_fits: Vec<ReleasedFit>,
    /// The official settings, to be laid over [`DEFAULTS`](crate::settings::DEFAULTS).
    pub settings: toml::Table,
}

impl Reported {
    /// Arena-Hard of the base model and of these methods in the paper's table 1, best first, on one line.
    ///
    /// # Examples
    ///
    /// ```
    /// use segment_rlhf::systems::Method;
    /// use segment_rlhf::grid::reported::reported;
    /// assert_eq!(
    ///     reported().ordering(&[Method::TOKEN, Method::SEGMENT]),
    ///     "The paper, Phi-3-mini Instruct, Arena-Hard %: segment 34.0, token 27.2, base 25.1."
    /// );
    /// ```
    pub fn ordering(&self, methods: &[Method]) -> String {
        let table = &self.tables[0];
        let of = [Subject::Base].into_iter().chain(methods.iter().copied().map(Subject::Method));
        let mut figures: Vec<(Subject, f64)> =
            of.filter_map(|of| Some((of, table.row(of)?.arena_hard?))).collect();
        figures.sort_by(|a, b| b.1.total_cmp(&a.1));
        let figures: Vec<String> = figures.iter().map(|(of, x)| format!("{of} {x:.1}")).collect();
        let model = table.model.as_deref().unwrap_or_default();
        format!("The paper, {model}, Arena-Hard %: {}.", figures.join(", "))
    }
}

/// Every table in Markdown, and below them figure 4.
impl fmt::Display for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for table in &self.tables {
            writeln!(f, "{table}")?;
        }
        let CutoffSweep { entropy_cutoff, segment_tokens, best_entropy_cutoff, note } =
            &self.cutoff_sweep;
        let ([from, to], [short, long]) = (entropy_cutoff, segment_tokens);
        let [low, high] = best_entropy_cutoff;
        writeln!(f, "Figure 4 of the paper\n")?;
        writeln!(
            f,
            "Entropy cutoffs from {from} to {to} nats: segments of {short} to {long} tokens; best from {low} to \
             {high} nats ({note})."
        )?;
        writeln!(f)?;
        write!(
            f,
            "AlpacaEval 2: length-controlled (LC) and raw win rate (WR). Judge: GPT-4o. †: compared with the \
             official README; the other rows of the paper come from one transcription."
        )
    }
}

/// A table: figures of one model after training in several ways.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    pub source: Source,
    /// The model that training starts from; nothing where that is not known.
    pub model: Option<String>,
    pub note: Option<String>,
    pub rows: Vec<Row>,
}

impl Table {
    /// The row of one subject.
    pub fn row(&self, of: Subject) -> Option<&Row> {
        self.rows.iter().find(|row| row.of == of)
    }
}

/// A title, the table in Markdown with the columns that have figures, and the notes.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        type Figure = fn(&Row) -> Option<f64>;
        let columns: [(&str, usize, Figure); 7] = [
            ("AlpacaEval LC %", 2, |row| row.alpaca_lc),
            ("WR %", 2, |row| row.alpaca_wr),
            ("characters", 0, |row| row.alpaca_characters),
            ("Arena-Hard %", 1, |row| row.arena_hard),
            ("tokens", 0, |row| row.arena_tokens),
            ("MT-Bench", 2, |row| row.mt_bench),
            ("OpenLLM %", 2, |row| row.open_llm),
        ];
        let columns: Vec<_> = columns
            .iter()
            .filter(|(.., figure)| self.rows.iter().any(|r| figure(r).is_some()))
            .collect();
        let varied = self.rows.last().map_or("", |row| row.of.kind());
        let header: Vec<&str> = [varied].into_iter().chain(columns.iter().map(|c| c.0)).collect();
        let line = |row: &Row| {
            let name = format!("{}{}", row.of, if row.checked { " †" } else { "" });
            let figures = columns.iter().map(|(_, decimals, figure)| {
                figure(row).map_or("–".into(), |figure| format!("{figure:.decimals$}"))
            });
            [name].into_iter().chain(figures).collect()
        };
        let rows: Vec<Vec<String>> = self.rows.iter().map(line).collect();
        let model = self.model.iter().map(|model| format!(", {model}")).collect::<String>();
        write!(f, "{}{model}\n\n{}", self.source, markdown(&header, &rows))?;
        if let Some(note) = &self.note {
            writeln!(f, "\nNote: {note}.")?;
        }
        for (of, note) in self.rows.iter().filter_map(|row| Some((row.of, row.note.as_ref()?))) {
            writeln!(f, "\nNote on {of}: {note}.")?;
        }
        Ok(())
    }
}

/// Where a table stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The paper's table of this number.
    PaperTable(u8),
    /// The official repository's README alone.
    OfficialReadme,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PaperTable(number) => write!(f, "Table {number} of the paper"),
            Self::OfficialReadme => f.write_str("The official README"),
        }
    }
}

/// One row of a table. Figures that are not known are absent.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    pub of: Subject,
    /// AlpacaEval 2: length-controlled win rate, %.
    pub alpaca_lc: Option<f64>,
    /// AlpacaEval 2: win rate, %.
    pub alpaca_wr: Option<f64>,
    /// AlpacaEval 2: characters of a response, mean.
    pub alpaca_characters: Option<f64>,
    /// Arena-Hard: win rate, %.
    pub arena_hard: Option<f64>,
    /// Arena-Hard: tokens of a response, mean.
    pub arena_tokens: Option<f64>,
    /// MT-Bench: a grade from 1 to 10.
    pub mt_bench: Option<f64>,
    /// OpenLLM leaderboard: average over its tasks, %.
    pub open_llm: Option<f64>,
    /// Whether the row of a paper's table was compared with the official README.
    #[serde(default)]
    pub checked: bool,
    pub note: Option<String>,
}

/// What the figures of a row are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// The model that training starts from.
    Base,
    /// A method, with the paper's normalizer and interpolation.
    Method(Method),
    /// The method `segment` with this normalizer.
    Normalizer(NormalizerKind),
    /// The method `segment` with this interpolation.
    Interpolation(Interpolation),
}

impl Subject {
    /// What it is one of.
    fn kind(self) -> &'static str {
        match self {
            Self::Base | Self::Method(_) => "method",
            Self::Normalizer(_) => "normalizer",
            Self::Interpolation(_) => "interpolation",
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The name of the variant's content in settings.
        let value = toml::Value::try_from(self).map_err(|_| fmt::Error)?;
        let inner = value.as_table().and_then(|table| table.values().next()).unwrap_or(&value);
        f.write_str(&inner.as_str().unwrap_or_default().replace('_', " "))
    }
}

/// Figure 4: several entropy cutoffs; of each quantity the least and the greatest.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CutoffSweep {
    /// The cutoffs tried, nats.
    pub entropy_cutoff: [f64; 2],
    /// The mean length of a segment, tokens.
    pub segment_tokens: [f64; 2],
    /// The cutoffs that were best, nats.
    pub best_entropy_cutoff: [f64; 2],
    pub note: String,
}

/// A normalizer that was released with the official code.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleasedFit {
    /// The model that the reward model was trained from.
    pub model: String,
    pub actions: Rule,
    pub normalizer: Normalizer,
    pub note: Option<String>,
}
