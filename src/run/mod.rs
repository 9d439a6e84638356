//! A run: its settings, device and folders, its locks, checkpoints and logs, and how far it is.

pub mod context;
pub mod error;
pub mod fingerprint;
pub mod folder;
pub mod lock;
pub mod memory;
pub mod metrics;
pub mod progress;
pub mod stage;

pub use context::{Context, Layout};
pub use stage::Stage;
