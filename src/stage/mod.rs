//! The stages of the pipeline, one file each. Each reads and writes a folder of the run and can run alone.
//!
//! ```text
//! RUN/data                   the tokens of --data, made once by the first stage that reads them
//! RUN/sft                    supervised fine-tuning: the reference, and where all models start
//! RUN/preferences            pairs sampled from it (embedded task only)
//! RUN/METHOD/reward          the segment reward model
//! RUN/METHOD/normalizer      mean and standard deviation of its rewards by location
//! RUN/METHOD/ppo             the policy, of a method that learns from its rollouts
//! RUN/METHOD/dpo             the policy, of a method that learns from pairs
//! RUN/METHOD/evaluation      the policy against the SFT model
//! ```

pub mod dpo;
pub mod evaluate;
pub mod fit_normalizer;
pub mod online;
pub mod preferences;
pub mod reward;
pub mod sft;

mod card;
mod cut;
#[doc(hidden)]
pub mod cutoffs;
#[doc(hidden)]
pub mod export;
#[doc(hidden)]
pub mod log;
#[doc(hidden)]
pub mod memory;
#[doc(hidden)]
pub mod models;
mod rates;
#[doc(hidden)]
pub mod score;
#[doc(hidden)]
pub mod score_text;
#[doc(hidden)]
pub mod segmented_text;
#[cfg(test)]
mod stopping;
#[doc(hidden)]
pub mod supervised;
#[doc(hidden)]
pub mod task;

use crate::run::error::Error;
use crate::run::{Context, Stage};

/// Runs a stage, unless its result is there.
pub fn run(stage: Stage, context: &Context) -> Result<(), Error> {
    memory::guard(context, stage, || match stage {
        Stage::Sft => sft::run(context).map(drop),
        Stage::Preferences => preferences::run(context).map(drop),
        Stage::TrainReward => reward::run(context).map(drop),
        Stage::FitNormalizer => fit_normalizer::run(context).map(drop),
        Stage::Ppo => online::run(context).map(drop),
        Stage::Dpo => dpo::run(context).map(drop),
        Stage::Evaluate => evaluate::run(context).map(drop),
    })
}
