//! The report: one self-contained HTML file.
//!
//! It has no script and loads nothing; its content security policy forbids both, so a model's text could do no harm
//! even if it were not escaped (it is). Colours follow the reader's light or dark theme. What is missing or unknown
//! is left out, so a half-finished grid has a report. Without a gold reward, e_φ takes its place.

mod plots;
mod sections;
mod view;

use std::path::Path;

use minijinja::Environment;
use serde::Serialize;

use crate::grid::analysis::Analysis;
use crate::grid::results::Results;
use crate::report::texts::ShadedText;
use crate::run::FolderError;
use crate::run::alarms::Raised;
use crate::run::folder::write_file;
use crate::stage::fit_normalizer::NormalizerFile;
use crate::stage::log::StageLog;

/// The content of the report.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    pub results: &'a Results,
    pub analysis: &'a Analysis,
    pub extras: &'a Extras,
}

/// What the report shows besides figures: of one seed, as far as there is any.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Extras {
    /// The settings that all arms start from, as TOML.
    pub settings: Option<String>,
    pub times: Vec<StageTime>,
    /// Normalizers with the statistics that they were fitted to.
    pub fits: Vec<Fit>,
    pub segment_lengths: Vec<SegmentLengths>,
    pub training: Vec<ArmTime>,
    pub decoding: Vec<ArmTime>,
    pub texts: Vec<ShadedText>,
    /// The logs of cells that are not finished, and of single stages.
    pub logs: Vec<ArmLog>,
    pub alarms: Vec<ArmAlarm>,
    /// Seconds after which a browser loads the page again, of one that is written again and again.
    #[serde(skip)]
    pub refresh: Option<u64>,
    pub samples: Vec<SampleText>,
    pub files: Vec<Link>,
}

/// The time that a stage took over all its runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageTime {
    pub stage: String,
    pub runs: usize,
    pub seconds: f64,
}

/// A time of an arm: of its policy's training, or of a response that its decoder wrote.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ArmTime {
    pub experiment: String,
    pub arm: String,
    /// Mean over seeds.
    pub seconds: f64,
}

/// What the stages of one arm with one seed have logged.
#[derive(Clone, Debug, Serialize)]
pub struct ArmLog {
    pub arm: String,
    pub seed: u64,
    /// Each stage that has a log, by its command.
    pub stages: Vec<(String, StageLog)>,
}

/// An alarm of one arm with one seed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ArmAlarm {
    pub arm: String,
    pub seed: u64,
    pub stage: String,
    pub raised: Raised,
}

/// The normalizer of one arm with one seed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fit {
    pub arm: String,
    pub seed: u64,
    pub file: NormalizerFile,
}

/// The lengths of the segments of one arm in the responses of held-out pairs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SegmentLengths {
    pub arm: String,
    pub seed: u64,
    /// Segments of 1 token, of 2, and so on.
    pub counts: Vec<usize>,
}

/// A held-out prompt with the responses before and after training.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SampleText {
    pub arm: String,
    pub seed: u64,
    pub prompt: String,
    pub before: String,
    pub after: String,
    /// The gold reward of both, if it is known.
    pub gold: Option<[f64; 2]>,
}

/// A file beside the report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Link {
    pub file: String,
    pub what: String,
}

/// Writes the report to `path`.
pub fn write(page: &Page, path: &Path) -> Result<(), FolderError> {
    write_file(path, html(page).as_bytes())
}

/// The report's text.
pub fn html(page: &Page) -> String {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    // The ending of the name turns escaping on.
    environment.add_template("page.html", include_str!("page.html")).expect("the template parses");
    let template = environment.get_template("page.html").expect("it was just added");
    template.render(sections::view(page)).expect("the template knows every block")
}
