//! The stages of the pipeline, one file each. Each reads and writes a folder of the run and can run alone.
//!
//! ```text
//! RUN/data                   the tokens of --data, made once by the first stage that reads them
//! RUN/sft                    supervised fine-tuning: the reference, and where all models start
//! RUN/preferences            pairs sampled from it (embedded task only)
//! RUN/METHOD/reward          the segment reward model
//! RUN/METHOD/normalizer      mean and standard deviation of its rewards by location
//! RUN/METHOD/ppo             the policy
//! RUN/METHOD/evaluation      the policy against the SFT model
//! ```

pub mod context;
mod cut;
pub mod evaluate;
pub mod export;
pub mod fit_normalizer;
pub mod models;
pub mod pipeline;
pub mod policy;
pub mod preferences;
pub mod reward;
pub mod rollout;
pub mod score;
pub mod score_text;
pub mod sft;
#[cfg(test)]
mod stopping;
pub mod supervised;
pub mod task;

pub use context::Context;
pub use pipeline::{Layout, Stage};
