//! What is shown and logged: metrics, tables, coloured segments, and the figures that the paper reports.

pub mod extras;
pub mod metrics;
pub mod page;
pub mod reported;
pub mod segments;
pub mod table;
pub mod texts;
