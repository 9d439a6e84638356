//! The decoder, its heads and cache, sampling, and Hugging Face checkpoints.

pub mod cache;
pub mod checkpoint;
pub mod config;
#[doc(hidden)]
pub mod config_json;
mod counts;
pub mod decoder;
pub mod error;
pub mod generate;
pub mod grid;
#[doc(hidden)]
pub mod kernels;
pub mod layers;
pub mod lora;
#[doc(hidden)]
pub mod names;
pub mod optim;
#[doc(hidden)]
pub mod places;
mod precision;
#[doc(hidden)]
pub mod recompute;
pub mod rope;
pub mod sampling;
#[doc(hidden)]
pub mod shards;
#[doc(hidden)]
pub mod source;
#[doc(hidden)]
pub mod weights;
pub mod writer;

pub use cache::KvCache;
pub use config::{LengthLimit, ModelConfig, TooLong};
pub use config_json::Head;
pub use decoder::{CausalLm, FreshHead, ScalarModel};
pub use error::CheckpointError;
pub use grid::Grid;
pub use source::Placement;
