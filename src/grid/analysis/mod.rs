//! The statistics of a grid: means over seeds with intervals, differences paired by seed, learning curves, and
//! whether the paper's orderings hold here too.
//!
//! Everything is computed from [`Results`](super::results::Results) alone and keyed by seed, so the order of cells
//! and seeds changes no digit. Unknown values are absent; no number is NaN or infinite.

mod curves;
mod experiment;
mod orderings;
mod quantity;
mod seeds;

pub use curves::{BandPoint, Column, PathPoint, SeedPath, area, gold_at_kl, path, updates_to_gold};
pub use experiment::{Analysis, Arm, Claims, Difference, Experiment, ONE_BETA, Problem, Seeds};
pub use orderings::{BASE, Benchmark, Ordering, Outcome, ReportedPair, Verdict};
pub use quantity::Quantity;
