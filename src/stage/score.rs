//! Reference and reward model of a run: segments and their rewards for normalizer, evaluation and display.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::models::Base;
use super::task::letter_passes;
use crate::equations::segment_reward::Aggregation;
use crate::equations::segmentation::{EosPolicy, Rule};
use crate::model::CausalLm;
use crate::model::generate::{Rows, TokenView};
use crate::run::fingerprint::{REWARD_CARD, model_fingerprint, reward_fingerprint};
use crate::run::folder::read_json;
use crate::run::{Context, Error};
use crate::settings::Settings;
use crate::stop::Stop;
use crate::systems::reward_model::SegmentRewards;
use crate::systems::{Judge, Method, RewardModel, Segmenter};

/// The segmenter of a run for a rule and the tokens of its tokenizer.
pub fn segmenter(
    settings: &Settings,
    rule: Rule,
    sentence_ends: &[bool],
    stops: &[u32],
) -> Segmenter {
    let eos_policy = settings.segmentation.eos;
    Segmenter { rule, eos_policy, stops: stops.to_vec(), sentence_ends: sentence_ends.to_vec() }
}

/// What a reward model was trained for; `reward.json` beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardCard {
    pub method: Method,
    /// How its training cut responses.
    #[serde(rename = "actions")]
    pub rule: Rule,
    /// Whether EOS belonged to the last segment.
    pub eos: EosPolicy,
    /// How segment rewards made the sequence score.
    pub aggregation: Aggregation,
    /// The fingerprint of the reference model that gave the entropies.
    pub reference: String,
}

impl RewardCard {
    /// Reads the card of the reward stage in `dir`.
    pub fn read(dir: &Path) -> Result<Self, Error> {
        Ok(read_json(&dir.join(REWARD_CARD), "train-reward")?)
    }

    /// Rejects the reward model in `dir` for a run that has another reference model or cuts otherwise.
    fn check(&self, dir: &Path, settings: &Settings, reference: &str) -> Result<(), Error> {
        let rule = settings.method.reward_rule(settings.segmentation.entropy_cutoff);
        let eos = settings.segmentation.eos;
        let found = [reference.to_owned(), format!("{rule:?}"), format!("{eos:?}")];
        let own = [self.reference.clone(), format!("{:?}", self.rule), format!("{:?}", self.eos)];
        let whats = [
            ("reference model", "give the --model that the reward model was trained from"),
            ("rule", "set the same method and segmentation, or train a reward model for these"),
            ("EOS policy", "set the same segmentation.eos, or train a reward model for this one"),
        ];
        for (((what, remedy), expected), found) in whats.into_iter().zip(own).zip(found) {
            if expected != found {
                let path = dir.join(REWARD_CARD);
                return Err(Error::Mismatch { path, what, expected, found, remedy });
            }
        }
        Ok(())
    }
}

/// The fingerprints of the models that a [`Scorer`] reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprints {
    pub reference: String,
    /// Of the reward model with its card, or the name of the verdict in its place.
    pub reward_model: String,
}

impl Fingerprints {
    /// Those of the run's models; reads each once.
    pub fn of(context: &Context) -> Result<Self, Error> {
        let reference = model_fingerprint(&context.reference_dir()?)?;
        let reward_model = match context.settings.has_verdict() {
            true => "verdict".to_owned(),
            false => reward_fingerprint(&context.reward_dir()?)?,
        };
        Ok(Self { reference, reward_model })
    }

    /// Both as inputs of a stage.
    pub fn inputs(&self) -> Vec<(&'static str, String)> {
        vec![("model", self.reference.clone()), ("reward_model", self.reward_model.clone())]
    }
}

/// Reference model and judge.
pub struct Scorer {
    /// π_SFT.
    pub reference: CausalLm,
    reference_dir: PathBuf,
    /// The reward model, and how the method reads it; or the verdict.
    pub judge: Judge,
    rows_at_once: usize,
    stop: Stop,
    pub fingerprints: Fingerprints,
}

impl Scorer {
    /// The scorer of the run's method.
    pub fn load(
        context: &Context,
        sentence_ends: &[bool],
        stops: &[u32],
        rows_at_once: usize,
    ) -> Result<Self, Error> {
        Self::of(context, Fingerprints::of(context)?, sentence_ends, stops, rows_at_once)
    }

    /// The scorer, if the fingerprints of its models are known already.
    pub fn of(
        context: &Context,
        fingerprints: Fingerprints,
        sentence_ends: &[bool],
        stops: &[u32],
        rows_at_once: usize,
    ) -> Result<Self, Error> {
        let settings = &context.settings;
        let reference_dir = context.reference_dir()?;
        let stop = context.stop.clone();
        let segmenter = |rule| segmenter(settings, rule, sentence_ends, stops);
        let policy_segmenter =
            segmenter(settings.method.policy_rule(settings.segmentation.entropy_cutoff));
        if settings.has_verdict() {
            let (reference, _) = CausalLm::load(&reference_dir, context.frozen())?;
            let judge = Judge::Verdict { passes: letter_passes, segmenter: policy_segmenter };
            return Ok(Self { reference, reference_dir, judge, rows_at_once, stop, fingerprints });
        }
        let reward_dir = context.reward_dir()?;
        let card = RewardCard::read(&reward_dir)?;
        card.check(&reward_dir, settings, &fingerprints.reference)?;
        let (reference, _) = CausalLm::load(&reference_dir, context.frozen())?;
        let base = Base { dir: &reference_dir, model: &reference };
        let judge = Judge::RewardModel(RewardModel {
            model: base.scalar_model(&reward_dir.join("model"), context.frozen())?,
            reward_segmenter: segmenter(card.rule),
            policy_segmenter,
            aggregation: card.aggregation,
            stop: stop.clone(),
        });
        Ok(Self { reference, reference_dir, judge, rows_at_once, stop, fingerprints })
    }

    /// The reference model as the base of others.
    pub fn base(&self) -> Base<'_> {
        Base { dir: &self.reference_dir, model: &self.reference }
    }

    /// What the reference model says of each response, and the rewards of its segments.
    pub fn score(
        &self,
        rows: &[(&[u32], &[u32])],
    ) -> Result<Vec<(TokenView, SegmentRewards)>, Error> {
        let rows = Rows::new(rows, self.rows_at_once);
        let reference = rows.view(&self.reference, &self.stop)?;
        let rewards = self.judge.score(&rows, &reference)?;
        Ok(reference.into_iter().zip(rewards).collect())
    }
}
