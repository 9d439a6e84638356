//! The equations of the paper, as tests: one module an equation, the models that they need, and `oracles`
//! that know the answers without them. Beside them: the statistics of grids of experiments, and their tables.
//!
//! Each module of an equation holds seven kinds of test, in this order, or says why there is none of a kind:
//!
//! 1. a worked example that a person can check;
//! 2. goldens: inputs and outputs of the official code (see tests/data/official/README.md), and of
//!    transformers (tests/data/hf/README.md);
//! 3. identities and limits, some of them over random input;
//! 4. `backward()` against central differences in f64;
//! 5. padding and batch size, with NaN in the padding;
//! 6. each bad input, with its exact error;
//! 7. the same on every device of [`support::devices`]: tests of tensors loop over them, and leave out one that does not
//!    compute in the type that they need.

// A response of one segment is a list of one range.
#![allow(clippy::single_range_in_vec_init)]

mod analysis;
mod bt_loss;
mod calibration;
mod cards;
mod checkpoint;
mod dpo;
mod drlc;
mod experiments;
mod gae;
mod goldens;
mod group;
mod interpolation;
mod kl;
mod length_control;
mod lens;
mod lora;
mod model;
mod normalizer;
mod oracles;
mod pairs;
mod ppo;
mod precision;
mod segment_reward;
mod segmentation;
mod spans;
mod spo;
mod statistics;
mod store;
mod support;
mod synthetic;
mod tables;
mod tiny_model;
mod tolerance;
mod weighted_dpo;
