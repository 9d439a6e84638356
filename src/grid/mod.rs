//! Grids of experiments: arms that differ in some settings, run with several seeds.
//!
//! ```text
//! experiments/*.toml ──► arms × seeds ──► cells ──► stages, each once ──► RUN/store/STAGE-HASH ──► results.json
//!       (file)                    (plan)                  (schedule)                 (stage)          (results)
//! ```
//!
//! A cell's stages live in folders named by a hash of all that their results depend on, so that arms share what they
//! have in common, in one grid and in the next.

#![doc(hidden)]

pub mod analysis;
pub(crate) mod driver;
pub mod error;
pub mod file;
mod named;
mod outlook;
pub mod plan;
pub mod reported;
pub mod reproduce;
pub mod results;
pub(crate) mod schedule;
pub(crate) mod slurm;
pub(crate) mod submit;
pub mod tables;

pub use error::GridError;
