//! Settings and run folders.

pub mod folder;
pub mod settings;
