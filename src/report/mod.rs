//! What is shown and logged: metrics, tables, coloured segments.

pub mod metrics;
pub mod segments;
pub mod table;
