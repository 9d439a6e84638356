//! A run: its settings, device and folders, its locks, checkpoints and logs, and how far it is.

mod agreement;
pub mod alarms;
pub mod context;
pub mod error;
mod files;
#[doc(hidden)]
pub mod fingerprint;
pub mod folder;
#[doc(hidden)]
pub mod given;
#[doc(hidden)]
pub mod lock;
mod log;
#[doc(hidden)]
pub mod memory;
pub mod metrics;
mod owner;
pub mod progress;
mod record;
pub mod stage;
mod tensorboard;

pub use context::{Context, Layout};
pub use error::Error;
pub use folder::FolderError;
pub use stage::Stage;
