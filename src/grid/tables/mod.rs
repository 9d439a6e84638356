//! The statistics of a grid for people and for other programs: Markdown, CSV and JSON.

mod csv;
mod markdown;

use std::path::Path;

pub use markdown::{MARKERS, markdown, readme, replace_section};

use super::analysis::Analysis;
use super::results::Results;
use crate::run::FolderError;
use crate::run::folder::write_file;

/// Writes the statistics into `dir`, each file whole or not at all: `analysis.json`, `tables.md`, and as CSV
///
/// - `cells.csv`: a line for each seed of each arm, with every [`Quantity`](super::analysis::Quantity);
/// - `curves.csv`: a line for each of their iterations, with every [`Column`](super::analysis::Column);
/// - `arms.csv`: a line for each quantity of each arm, over its seeds;
/// - `differences.csv`: a line for each quantity of each pair of arms;
/// - `orderings.csv`: a line for each ordering that the paper's tables claim;
///
/// in both `no_difference` says whether the interval lies within the quantity's [margin](super::analysis::Quantity::margin).
pub fn write(analysis: &Analysis, results: &Results, dir: &Path) -> Result<(), FolderError> {
    let json = serde_json::to_string(analysis).expect("a plain struct serialises");
    let texts = [
        ("analysis.json", json + "\n"),
        ("tables.md", markdown(analysis)),
        ("cells.csv", csv::cells(results)),
        ("curves.csv", csv::curves(results)),
        ("arms.csv", csv::arms(analysis)),
        ("differences.csv", csv::differences(analysis)),
        ("orderings.csv", csv::orderings(analysis)),
    ];
    for (name, text) in texts {
        write_file(&dir.join(name), text.as_bytes())?;
    }
    Ok(())
}
