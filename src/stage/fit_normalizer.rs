//! Fitting the normalizer of a method's rewards on a calibration set (E5).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::memory;
use super::preferences::{self, Pair};
use super::score::{Fingerprints, Scorer};
use super::task::Task;
use crate::equations::normalizer::{LocationStatistic, Normalizer, location, location_statistics};
use crate::equations::segmentation::Rule;
use crate::model::ModelConfig;
use crate::run::folder::{read_json, remove_checkpoints, write_json};
use crate::run::{Context, Error, Stage};
use crate::settings::NormalizerKind;
use crate::systems::reward_model::SegmentRewards;
use crate::systems::{Judge, Method};

/// A normalizer with what it was fitted on: `normalizer.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NormalizerFile {
    /// The method whose rewards it normalizes.
    pub method: Method,
    /// What one action is to the policy.
    #[serde(rename = "actions")]
    pub rule: Rule,
    /// The fingerprint of the reward model.
    pub reward_model: String,
    /// The fit.
    pub normalizer: Normalizer,
    /// The least location it was checked for: 1 / the longest response in tokens.
    pub min_location: f64,
    /// Rewards it was fitted on.
    pub rewards: usize,
    /// Mean and standard deviation of the rewards at each location.
    pub statistics: Vec<LocationStatistic>,
    /// Share of the variance of the locations' means that the fit explains.
    pub r_squared_mean: Option<f64>,
    /// Share of the variance of the locations' standard deviations that the fit explains.
    pub r_squared_std: Option<f64>,
}

impl NormalizerFile {
    /// Reads the normalizer of the run's method and checks it for the rule that cuts the policy's responses and the
    /// fingerprint of the reward model.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when it was fitted for another method or reward model;
    /// [`Error::UnusableNormalizer`] when its Std(p) is not positive at a location that the run will meet;
    /// [`Error::Folder`].
    pub fn read(context: &Context, rule: Rule, reward_model: &str) -> Result<Self, Error> {
        let method = context.settings.method;
        let path = path(context);
        let command = format!("fit-normalizer --method {}", method.name());
        let file: Self = read_json(&path, &command)?;
        let remedy = "fit a normalizer for this one: segment-rlhf fit-normalizer";
        if file.reward_model != reward_model {
            let (expected, found) = (file.reward_model, reward_model.to_owned());
            return Err(Error::Mismatch { path, what: "reward model", expected, found, remedy });
        }
        if file.rule != rule {
            let (expected, found) = (format!("{:?}", file.rule), format!("{rule:?}"));
            return Err(Error::Mismatch { path, what: "rule", expected, found, remedy });
        }
        if file.method != method {
            let (expected, found) = (file.method.name().into(), method.name().into());
            return Err(Error::Mismatch { path, what: "method", expected, found, remedy });
        }
        file.normalizer
            .check(min_location(context))
            .map_err(|source| Error::UnusableNormalizer { path, source })?;
        Ok(file)
    }

    /// The normalizer of a scorer's rewards: the run's fit for its reward model, and none for a verdict.
    ///
    /// # Errors
    ///
    /// As [`NormalizerFile::read`].
    pub fn normalizer_of(context: &Context, scorer: &Scorer) -> Result<Normalizer, Error> {
        match &scorer.judge {
            Judge::RewardModel(model) => {
                let reward_model = &scorer.fingerprints.reward_model;
                Ok(Self::read(context, model.policy_segmenter.rule, reward_model)?.normalizer)
            }
            Judge::Verdict { .. } => Ok(Normalizer::None),
        }
    }
}

fn path(context: &Context) -> PathBuf {
    context.dir(Stage::FitNormalizer).join("normalizer.json")
}

/// The first of the most segments that a response of the run can have.
fn min_location(context: &Context) -> f64 {
    location(0, context.settings.sampling.max_new_tokens)
}

/// Fits the normalizer of the run's method over both responses of the training pairs.
///
/// # Errors
///
/// Every [`Error`]; a fit whose Std(p) is not positive where it will be used is refused, and nothing is
/// written.
pub fn run(context: &Context) -> Result<NormalizerFile, Error> {
    context.needs_reward_model(Stage::FitNormalizer.command())?;
    let context = &context.within(Stage::FitNormalizer);
    let settings = &context.settings;
    let fingerprints = Fingerprints::of(context)?;
    let reference_dir = context.reference_dir()?;
    let task = Task::open(context, Some(&reference_dir))?;
    let (pairs, fingerprint) = preferences::load(context, &task, false)?;
    let mut inputs = fingerprints.inputs();
    inputs.push(("pairs", fingerprint));
    let folder = context.open(Stage::FitNormalizer, &inputs)?;
    if let Some(fitted) = folder.summary::<Normalizer>()? {
        let path = path(context);
        let file: NormalizerFile = read_json(&path, "fit-normalizer")?;
        if file.normalizer != fitted {
            context.progress.line(&format!(
                "{}: edited by hand, and left alone; remove its folder to fit it again",
                path.display()
            ));
        }
        return Ok(file);
    }
    let config = ModelConfig::from_dir(&reference_dir)?;
    let longest = pairs.train.longest_parts();
    memory::announce(context, folder.dir(), &config, longest, |e, lengths| {
        e.fit_normalizer(lengths)
    })?;
    let tokenizer = &task.tokenizer;
    let rows_at_once = 2 * settings.reward.rows_at_once;
    let (ends, stops) = (tokenizer.sentence_ends(), tokenizer.stop_tokens());
    let scorer = Scorer::of(context, fingerprints, ends, stops, rows_at_once)?;
    let calibration = pairs.train.len().min(settings.normalizer.pairs);
    let pairs_at_once = settings.reward.rows_at_once;
    let steps = calibration.div_ceil(pairs_at_once);
    let mut rewards = folder.parts::<[Vec<f64>; 2]>("rewards")?;
    let title = context.title("fit-normalizer");
    let stage = context.progress.stage(title, steps, rewards.batches());
    while let Some(next) = rewards.left(calibration, pairs_at_once) {
        let pairs = pairs.train.read(next)?;
        let rows: Vec<(&[u32], &[u32])> = pairs.iter().flat_map(Pair::rows).collect();
        let scored = scorer.score(&rows)?;
        let of_pair =
            |two: &[(_, SegmentRewards)]| [0, 1].map(|side: usize| two[side].1.rewards.clone());
        rewards.push(scored.chunks(2).map(of_pair).collect())?;
        stage.step("");
    }
    let rewards = rewards.into_items().concat();
    let min_location = min_location(context);
    let fitted = fit(&rewards, context, min_location);
    if fitted.is_err() {
        remove_checkpoints(folder.to_write()?)?; // the folder is then free for other settings
    }
    let (normalizer, statistics) = fitted?;
    let r_squared = |actual: fn(&LocationStatistic) -> f64, fitted: &dyn Fn(f64) -> f64| {
        let points = statistics.iter().map(|s| (actual(s), fitted(s.location)));
        r_squared(&points.collect::<Vec<_>>())
    };
    let file = NormalizerFile {
        method: settings.method,
        rule: scorer.judge.policy_segmenter().rule,
        reward_model: scorer.fingerprints.reward_model.clone(),
        normalizer,
        min_location,
        rewards: rewards.iter().map(Vec::len).sum(),
        r_squared_mean: r_squared(|s| s.mean, &|p| normalizer.mean(p)),
        r_squared_std: r_squared(|s| s.std, &|p| normalizer.std(p)),
        statistics: statistics.clone(),
    };
    write_json(&folder.to_write()?.join("normalizer.json"), &file)?;
    folder.finish(&file.normalizer)?;
    stage.finish(describe(&normalizer));
    Ok(file)
}

/// The fit that the settings name, over the rewards of each response, and the statistics of each location.
fn fit(
    rewards: &[Vec<f64>],
    context: &Context,
    min_location: f64,
) -> Result<(Normalizer, Vec<LocationStatistic>), Error> {
    let settings = &context.settings.normalizer;
    let points = rewards.iter().flat_map(|rewards| {
        rewards.iter().enumerate().map(|(t, &reward)| (location(t, rewards.len()), reward))
    });
    let statistics = location_statistics(points.clone());
    let one_location = statistics.len() == 1;
    let normalizer = match settings.kind {
        NormalizerKind::None => Normalizer::None,
        // One action a response: what is left of the regression is the bandit's mean and deviation.
        NormalizerKind::Regression if !one_location => Normalizer::fit_location_aware(
            &statistics,
            settings.regression,
            min_location,
            settings.std_floor,
        )?,
        NormalizerKind::Regression | NormalizerKind::Global => {
            Normalizer::fit_scalar(&points.map(|(_, reward)| reward).collect::<Vec<_>>())?
        }
        NormalizerKind::Last => {
            let last: Vec<f64> = rewards.iter().filter_map(|r| r.last().copied()).collect();
            Normalizer::fit_scalar(&last)?
        }
    };
    Ok((normalizer, statistics))
}

/// 1 - residual / total sum of squares, over (actual, fitted); nothing if the actual do not vary.
fn r_squared(points: &[(f64, f64)]) -> Option<f64> {
    let mean = points.iter().map(|(actual, _)| actual).sum::<f64>() / points.len() as f64;
    let total: f64 = points.iter().map(|(actual, _)| (actual - mean).powi(2)).sum();
    let residual: f64 = points.iter().map(|(actual, fitted)| (actual - fitted).powi(2)).sum();
    (total > 0.0).then(|| 1.0 - residual / total)
}

fn describe(normalizer: &Normalizer) -> String {
    match normalizer {
        Normalizer::None => "none".into(),
        Normalizer::Scalar { mean, std } => format!("mean {mean:.3}, std {std:.3}"),
        Normalizer::LocationAware { w_mean, b_mean, w_std, b_std, .. } => {
            format!("Mean(p) = {w_mean:.3} ln p {b_mean:+.3}, Std(p) = {w_std:.3} ln p {b_std:+.3}")
        }
    }
}
