//! LENS: one reward of several granularities, with group-relative advantages (Zhu et al. 2025, arXiv 2508.14153).
//!
//! | granularity | reward |
//! | --- | --- |
//! | response | 1 if it keeps its form, else 0 |
//! | sentence | mean of the reward model's rewards at the ends of sentences |
//! | segment | mean of the reward model's rewards at the ends of entropy segments: its score e_φ |
//!
//! LENS segments images: its policy is a vision-language model with a mask decoder, and its reward the sum of a verdict on
//! the format, the box's IoU² and the mask's IoU², over whose groups GRPO learns. What carries over to text is that sum.
//! Vision is out of scope: boxes, masks, the mask decoder and its loss. A letter of the embedded task keeps its form if it
//! is addressed rightly, its clauses are whole, and it ends; any other response if it ends with EOS within the limit.
//! Rewards of the reward model are normalized by the run's normalizer. Weights are 1 each, as in theirs. With a verdict in
//! place of a reward model, that is the reward of sentences and segments alike. Deviation: GRPO is that of
//! [`group`](super::group), with its clip (theirs: one step for each batch, so that no clip is active).

use super::error::SystemError;
use super::group::GroupBaseline;
use super::interface::{Method, Parts, Rewards, Rollouts, Row, System, Training, Truth};
use super::judge::Judge;
use super::loss::Loss;
use super::reward_model::Segmenter;
use super::sample::Rewarded;
use super::settings::PpoSettings;
use crate::bounds::{AtLeast, Bounds, section};
use crate::equations::clip_k3::TokenMean;
use crate::equations::composite_reward::composite;
use crate::equations::group_baseline::over_std;
use crate::equations::normalizer::Normalizer;
use crate::equations::segment_reward::{aggregate, segment_rewards};
use crate::equations::segmentation::Rule;
use crate::model::generate::{ReadAt, Rows, TokenView};
use crate::model::optim::NonFinite;

section! {
    /// The section `[systems.lens]`.
    Settings {
        size: usize = AtLeast(2),
        kl_coefficient: f64 = Bounds::NotNegative,
        format: f64 = Bounds::NotNegative,
        sentence: f64 = Bounds::NotNegative,
        segment: f64 = Bounds::NotNegative,
    }
}

impl Method {
    /// A weighted sum of rewards of several granularities, relative to a group.
    pub const LENS: Self = Self(&Row {
        name: "lens",
        about: "A sum of rewards of response, sentences and segments, relative to a group",
        paper: "Zhu et al. 2025, arXiv 2508.14153",
        reward_model: Some(Self::SEGMENT),
        reward_rule: Self::SEGMENT.0.reward_rule,
        rewards: "format, and segment reward model at sentences and segments",
        check,
        section: Some("lens"),
        training: Training::Online(build),
        ..*Self::GRPO.0
    });
}

/// The method.
pub const METHODS: [Method; 1] = [Method::LENS];

fn own(section: toml::Value) -> Settings {
    section.try_into().expect("checked when it was read")
}

fn check(ppo: &PpoSettings, section: toml::Value) -> Option<(String, String)> {
    let Settings { size, format, sentence, segment, .. } = own(section);
    let problem = "0, as sentence and segment; expected a weight above 0 of one of the three";
    let nothing = [format, sentence, segment] == [0.0; 3];
    let nothing = nothing.then(|| ("format".to_owned(), problem.to_owned()));
    nothing.or_else(|| ppo.check_group_size(size))
}

fn build<'a>(parts: &Parts<'a>) -> Result<System<'a>, SystemError> {
    let Parts { judge, normalizer, ref section, .. } = *parts;
    let settings = own(section.clone().expect("a system with a section"));
    let Settings { size, kl_coefficient, .. } = settings;
    let sentences = Segmenter { rule: Rule::Sentence, ..judge.policy_segmenter().clone() };
    let truth = parts.task.truth;
    Ok(System {
        rollouts: Rollouts::Group(size),
        rewards: Box::new(Composite { settings, judge, normalizer, sentences, truth }),
        credit: Box::new(GroupBaseline { size, baseline: over_std, kl_in_reward: false }),
        loss: Loss::ClipK3 { clip: parts.ppo.clip, mean: TokenMean::Response },
        replay: None,
        value_clip: None,
        kl_coefficient,
        files: Vec::new(),
    })
}

/// The weighted sum of a response's rewards.
struct Composite<'a> {
    settings: Settings,
    judge: &'a Judge,
    normalizer: &'a Normalizer,
    /// Cuts responses into sentences.
    sentences: Segmenter,
    truth: Option<Truth>,
}

impl Composite<'_> {
    /// 1 if the response keeps its form, else 0.
    fn format(&self, prompt: &[u32], response: &[u32]) -> f64 {
        let keeps = match self.truth {
            Some(truth) => {
                truth(prompt, response).is_some_and(|gold| gold.ended && gold.broken == 0)
            }
            None => response.last().is_some_and(|token| self.sentences.stops.contains(token)),
        };
        f64::from(keeps)
    }

    /// The judge's rewards of each response: over its sentences, and over its segments.
    fn judged(
        &self,
        responses: &Rows<'_>,
        reference: &[TokenView],
    ) -> Result<Vec<[f64; 2]>, SystemError> {
        let model = match self.judge {
            Judge::RewardModel(model) => model,
            Judge::Verdict { .. } => {
                let verdicts = self.judge.score(responses, reference)?;
                return Ok(verdicts.iter().map(|verdict| [verdict.sequence_score; 2]).collect());
            }
        };
        let scores = responses.scalars(&model.model, ReadAt::Token, &model.stop)?;
        let rows = responses.rows().iter().zip(reference).zip(scores);
        rows.map(|((&(_, response), reference), scores)| {
            let cut = self.sentences.cut(response, &reference.entropies)?;
            let sentences = aggregate(&segment_rewards(&scores, &cut), model.aggregation);
            let segments = model.segment_rewards(response, &reference.entropies, &scores)?;
            Ok([sentences, segments.sequence_score])
        })
        .collect()
    }
}

impl Rewards for Composite<'_> {
    fn score(
        &self,
        responses: &Rows<'_>,
        reference: &[TokenView],
    ) -> Result<Vec<Rewarded>, SystemError> {
        let Settings { format, sentence, segment, .. } = self.settings;
        let judged = self.judged(responses, reference)?;
        let rows = responses.rows().iter().zip(judged);
        rows.map(|(&(prompt, response), [sentences, segments])| {
            let normalized = |reward| self.normalizer.normalize_all(&[reward])[0];
            let reward = composite(&[
                (format, self.format(prompt, response)),
                (sentence, normalized(sentences)),
                (segment, normalized(segments)),
            ]);
            if !reward.is_finite() {
                return Err(NonFinite { tensor: "the reward".into(), step: 0 }.into());
            }
            Ok(Rewarded {
                segments: vec![0..response.len()],
                rewards: vec![segments],
                normalized: vec![reward],
                sequence_score: segments,
            })
        })
        .collect()
    }
}
