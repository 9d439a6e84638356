//! The equations of the paper, as tests: one module an equation, and `oracles` that know the answers
//! without them.
//!
//! Goldens are inputs and outputs of the official code (see tests/data/official/README.md). Tests of
//! tensors run on every device of [`support::devices`].

// A response of one segment is a list of one range.
#![allow(clippy::single_range_in_vec_init)]

mod bt_loss;
mod gae;
mod goldens;
mod interpolation;
mod kl;
mod normalizer;
mod oracles;
mod ppo;
mod segment_reward;
mod segmentation;
mod support;
mod tolerance;
