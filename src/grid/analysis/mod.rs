//! The statistics of a grid: means over seeds with their intervals, differences paired by seed, learning curves,
//! and whether the orderings that the paper's tables claim show here too.
//!
//! Everything is computed from [`Results`] alone, cell by cell, and keyed by seed: neither the order of cells nor
//! that of seeds changes a digit. What is not known is absent; no number is NaN or infinite.

mod curves;
mod experiment;
mod orderings;
mod quantity;
mod seeds;

pub use curves::{BandPoint, Column, PathPoint, SeedPath, area, gold_at_kl, path};
pub use experiment::{Analysis, Arm, Claims, Difference, Experiment, ONE_BETA, Problem, Seeds};
pub use orderings::{BASE, Benchmark, Ordering, Outcome, ReportedPair, Verdict};
pub use quantity::Quantity;
