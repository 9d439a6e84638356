//! What is shown and logged: metrics, tables, coloured segments, and the figures that the paper reports.

pub mod extras;
pub mod page;
pub mod texts;
