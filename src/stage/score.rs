//! Reference and reward model of a run: segments and their rewards for normalizer, evaluation and display.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::models::Base;
use super::task::{letter_passes, model_tokenizer};
use crate::equations::segment_reward::Aggregation;
use crate::equations::segmentation::{EosPolicy, Rule};
use crate::model::generate::{Rows, TokenView};
use crate::model::{CausalLm, ModelConfig, ScalarModel};
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

/// The published reward model that `--reward-model` names, if it is not the folder of a train-reward stage.
pub(super) fn published(context: &Context) -> Option<&Path> {
    let given = context.reward_model.as_deref();
    given.filter(|dir| !dir.join(REWARD_CARD).exists() && dir.join("config.json").exists())
}

/// Rejects the published reward model in `dir` if its tokens are not those of the language model in `reference_dir`.
fn check_tokens(dir: &Path, reference_dir: &Path) -> Result<(), Error> {
    let file = |dir: &Path| dir.join("tokenizer.json").display().to_string();
    let difference = model_tokenizer(reference_dir)?.difference(&model_tokenizer(dir)?);
    difference.map_or(Ok(()), |(id, own, found)| {
        Err(Error::Usage(format!(
            "{}: token {id} is {found:?}, but {own:?} in {}; a reward model reads the language model's tokens: give \
             one of the same tokenizer as --reward-model",
            file(dir),
            file(reference_dir)
        )))
    })
}

/// Whether the run's settings cut responses as the training of its reward model did. A published one reads any cut.
pub fn cuts_alike(context: &Context) -> Result<bool, Error> {
    if context.settings.has_verdict() || published(context).is_some() {
        return Ok(true);
    }
    let RewardCard { rule, eos, .. } = RewardCard::read(&context.reward_dir()?)?;
    let settings = &context.settings;
    let own = settings.method.reward_rule(settings.segmentation.entropy_cutoff);
    Ok((rule, eos) == (own, settings.segmentation.eos))
}

/// Rejects texts of so many tokens if the published reward model of the run, if it has one, was made for shorter ones.
pub fn check_length(context: &Context, tokens: usize) -> Result<(), Error> {
    if let Some(dir) = published(context) {
        let remedy = "lower sampling.prompt_tokens or sampling.max_new_tokens, or give another as --reward-model";
        ModelConfig::from_dir(dir)?.length_limit().check(tokens, dir.display(), remedy)?;
    }
    Ok(())
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
        let reward_model = match published(context) {
            _ if context.settings.has_verdict() => "verdict".to_owned(),
            Some(dir) => model_fingerprint(dir)?,
            None => reward_fingerprint(&context.reward_dir()?)?,
        };
        Ok(Self { reference, reward_model })
    }

    /// Rejects a reward model that does not go with the run.
    pub fn check(&self, context: &Context) -> Result<(), Error> {
        match published(context) {
            _ if context.settings.has_verdict() => Ok(()),
            Some(dir) => check_tokens(dir, &context.reference_dir()?),
            None => {
                let dir = context.reward_dir()?;
                RewardCard::read(&dir)?.check(&dir, &context.settings, &self.reference)
            }
        }
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
        fingerprints.check(context)?;
        let (reference, _) = CausalLm::load(&reference_dir, context.frozen())?;
        let (model, rule, aggregation) = match published(context) {
            // It is read as the method's own would be.
            Some(dir) => {
                let rule = settings.method.reward_rule(settings.segmentation.entropy_cutoff);
                let (model, _) = ScalarModel::load(dir, context.frozen())?;
                (model, rule, settings.reward.aggregation)
            }
            None => {
                let dir = context.reward_dir()?;
                let RewardCard { rule, aggregation, .. } = RewardCard::read(&dir)?;
                let base = Base { dir: &reference_dir, model: &reference };
                (base.scalar_model(&dir.join("model"), context.frozen())?, rule, aggregation)
            }
        };
        let judge = Judge::RewardModel(RewardModel {
            model,
            reward_segmenter: segmenter(rule),
            policy_segmenter,
            aggregation,
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
