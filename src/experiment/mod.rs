//! Settings, run folders, and what keeps processes off each other's.

pub mod folder;
pub mod lock;
pub mod settings;
