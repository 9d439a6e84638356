//! Segment-level RLHF on Burn.

pub mod atomic;
pub mod bt_loss;
pub mod data;
pub mod gae;
pub mod interpolation;
pub mod kl;
pub mod model;
pub mod normalizer;
pub mod ppo;
pub mod rng;
pub mod segment_reward;
pub mod segmentation;
