//! The program as a user types it, end to end, on models so small that a stage takes a tenth of a second.

mod bad_input;
mod display;
mod real_input;
mod resume;
mod support;
