//! Grids of experiments: arms that differ in some settings, run with several seeds.

pub mod analysis;
pub mod file;
pub mod results;
pub mod tables;
