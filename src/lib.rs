//! Segment-level RLHF on Burn.

pub mod atomic;
pub mod bt_loss;
pub mod cli;
pub mod control;
pub mod data;
pub mod device;
pub mod error;
pub mod experiment;
pub mod gae;
pub mod interpolation;
pub mod kl;
pub mod model;
pub mod normalizer;
pub mod ppo;
pub mod report;
pub mod rng;
pub mod segment_reward;
pub mod segmentation;
pub mod stage;
