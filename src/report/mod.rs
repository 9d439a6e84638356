//! The report of a grid: one page with tables, plots and texts.

#![doc(hidden)]

pub(crate) mod extras;
pub mod page;
pub mod texts;
