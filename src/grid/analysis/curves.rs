//! Learning curves, and gold reward against KL.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::grid::results::{Curve, Figures};
use crate::stage::evaluate::Evaluation;
use crate::stage::online::keep::EvaluationLine;
use crate::statistics::Estimate;

/// Expands to the enum, `ALL` and `of`: a column's name, what it is, and its known values by iteration.
macro_rules! columns {
    ($($variant:ident: $description:literal => $of:expr;)*) => {
        /// A column of learning curves. Those of rollouts are sampled before the iteration's update, so they start with the
        /// SFT model and lack the final policy. Held-out ones are taken after it, at the iterations that were evaluated.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Column { $(#[doc = $description] $variant,)* }

        impl Column {
            /// All, in the order of `curves.csv`.
            pub const ALL: [Self; [$(stringify!($variant)),*].len()] = [$(Self::$variant),*];

            /// Its known values by iteration (updates before the point).
            pub fn of(self, figures: &Figures) -> BTreeMap<usize, f64> {
                fn call(of: impl Fn(&Figures) -> Points, figures: &Figures) -> Points {
                    of(figures)
                }
                match self { $(Self::$variant => call($of, figures)),* }
            }
        }
    };
}

/// Values by iteration.
type Points = BTreeMap<usize, f64>;

columns! {
    Gold: "Gold reward of rollouts." => |f| known(&f.curve.gold);
    SequenceScore: "e_φ of rollouts." => |f| all(&f.curve.sequence_score);
    Kl: "KL of rollouts from the SFT model (k1), nats a response." => |f| all(&f.curve.kl_k1);
    Tokens: "Tokens of a rollout." => |f| all(&f.curve.response_tokens);
    Segments: "Segments of a rollout." => |f| all(&f.curve.segments);
    Entropy: "Entropy of the policy, nats a token." => |f| all(&f.curve.entropy);
    EosRate: "Share of rollouts that ended in EOS." => |f| all(&f.curve.eos_rate);
    ClipFraction: "Share of tokens whose policy loss was clipped." => |f| all(&f.curve.clip_fraction);
    ExplainedVariance: "Share of the returns' variance that the critic explains."
        => |f| known(&f.curve.explained_variance);
    AdvantageSpread: "Standard deviation of a token's advantage before whitening."
        => |f| all(&f.curve.advantage_spread);
    EffectiveKlCoefficient: "β over that spread." => |f| effective_coefficients(&f.curve);
    CauseAdvantageShare: "Share of Σ |A| on tokens with a true credit."
        => |f| known(&f.curve.cause_advantage_share);
    CauseTokenShare: "Share of tokens that have a true credit." => |f| known(&f.curve.cause_token_share);
    CreditCorrelation: "Pearson's correlation of advantage and true credit."
        => |f| known(&f.curve.credit_correlation);
    SampledTokens: "Thousands of tokens drawn in training so far." => |f| {
        let mut drawn = 0.0;
        let each = f.curve.sampled_tokens.iter().map(|&tokens| {
            drawn += tokens as f64 / 1e3;
            drawn
        });
        [0.0].into_iter().chain(each).enumerate().skip(usize::from(f.curve.sampled_tokens.is_empty())).collect()
    };
    PassRate: "Share of held-out responses that pass." => |f| held_out(f, |e| e.pass_rate);
    HeldOutGold: "Gold reward on held-out prompts." => |f| held_out(f, |e| e.gold);
    HeldOutSequenceScore: "e_φ on held-out prompts." => |f| held_out(f, |e| Some(e.sequence_score));
    WinRate: "Win rate over the SFT model on held-out prompts; ½ for that model itself."
        => |f| against_sft(f, |e| e.win_rate);
    LengthControlledWinRate: "The same at equal lengths."
        => |f| against_sft(f, |e| e.length_controlled_win_rate);
    HeldOutKl: "KL on held-out prompts, nats a response." => |f| held_out(f, |e| Some(e.kl));
    HeldOutTokens: "Tokens of a response to a held-out prompt." => |f| held_out(f, |e| Some(e.tokens));
}

impl Column {
    /// Its name in JSON and CSV.
    pub fn name(self) -> String {
        let name = toml::Value::try_from(self).expect("a plain enum serialises");
        name.as_str().expect("a variant without fields is a text").to_owned()
    }
}

fn all(column: &[f64]) -> Points {
    column.iter().copied().enumerate().collect()
}

fn known(column: &[Option<f64>]) -> Points {
    column.iter().enumerate().filter_map(|(i, value)| Some((i, (*value)?))).collect()
}

fn held_out(figures: &Figures, of: fn(&Evaluation) -> Option<f64>) -> Points {
    let lines = figures.evaluations.iter();
    lines.filter_map(|line| Some((line.iteration, of(&line.evaluation)?))).collect()
}

/// With the SFT model's own rate, which is not measured.
fn against_sft(figures: &Figures, of: fn(&Evaluation) -> Option<f64>) -> Points {
    let itself = figures.evaluations.first().map(|_| (0, 0.5));
    itself.into_iter().chain(held_out(figures, of)).collect()
}

/// One point of a learning curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BandPoint {
    /// Updates of the policy before the point: 0 is the SFT model.
    pub iteration: usize,
    /// Mean and interval over seeds.
    #[serde(flatten)]
    pub estimate: Estimate,
}

/// The [`path`] of one seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedPath {
    pub seed: u64,
    pub points: Vec<PathPoint>,
}

/// A policy's gold reward and KL on held-out prompts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathPoint {
    /// Updates of the policy before the point: 0 is the SFT model.
    pub iteration: usize,
    /// KL from the reference (k1), nats a response.
    pub kl: f64,
    pub gold: f64,
}

/// Gold reward against KL, per evaluation of a cell's policy on held-out prompts, starting with the SFT model. `None`
/// if gold is unknown or nothing was evaluated.
pub fn path(figures: &Figures) -> Option<Vec<PathPoint>> {
    let point = |line: &EvaluationLine| {
        let Evaluation { gold, kl, .. } = line.evaluation;
        let point = PathPoint { iteration: line.iteration, kl, gold: gold? };
        (point.kl.is_finite() && point.gold.is_finite()).then_some(point)
    };
    let points: Option<Vec<PathPoint>> = figures.evaluations.iter().map(point).collect();
    points.filter(|points| !points.is_empty())
}

/// The gold reward where the path first reaches a KL of `level`, in nats, by linear interpolation between the
/// points before and after; `None` where it never does, or starts there.
///
/// # Examples
///
/// ```
/// use segment_rlhf::grid::analysis::{PathPoint, gold_at_kl};
/// let points = [(0, 0.0, 1.5), (2, 0.8, 2.0), (4, 1.2, 3.0), (6, 0.9, 2.5)];
/// let path = points.map(|(iteration, kl, gold)| PathPoint { iteration, kl, gold });
/// assert!((gold_at_kl(&path, 1.0).unwrap() - 2.5).abs() < 1e-12); // half way from 0.8 to 1.2
/// assert_eq!(gold_at_kl(&path, 2.0), None);
/// ```
pub fn gold_at_kl(path: &[PathPoint], level: f64) -> Option<f64> {
    let crosses = |pair: &&[PathPoint]| pair[0].kl < level && pair[1].kl >= level;
    let [before, after] = path.windows(2).find(crosses)? else { return None };
    let share = (level - before.kl) / (after.kl - before.kl);
    Some(before.gold + share * (after.gold - before.gold))
}

/// The updates after which the path's gold reward first reaches `level`, by linear interpolation between the points
/// before and after: 0 where it starts there; `None` where it never does.
///
/// # Examples
///
/// ```
/// use segment_rlhf::grid::analysis::{PathPoint, updates_to_gold};
/// let path = [(0, 1.5), (2, 2.0), (4, 3.0)].map(|(iteration, gold)| PathPoint { iteration, kl: 0.0, gold });
/// assert_eq!(updates_to_gold(&path, 2.5), Some(3.0)); // half way from 2 to 4
/// assert_eq!(updates_to_gold(&path, 1.0), Some(0.0));
/// assert_eq!(updates_to_gold(&path, 3.5), None);
/// ```
pub fn updates_to_gold(path: &[PathPoint], level: f64) -> Option<f64> {
    let reached = path.iter().position(|point| point.gold >= level)?;
    let after = &path[reached];
    let Some(before) = reached.checked_sub(1).map(|i| &path[i]) else {
        return Some(after.iteration as f64);
    };
    let share = (level - before.gold) / (after.gold - before.gold);
    Some(before.iteration as f64 + share * (after.iteration - before.iteration) as f64)
}

/// Thousands of tokens drawn in training until the gold reward on held-out prompts first reaches `level`.
pub(super) fn samples_to_gold(figures: &Figures, level: f64) -> Option<f64> {
    let updates = updates_to_gold(&path(figures)?, level)?;
    let drawn = Column::SampledTokens.of(figures);
    let [before, after] =
        [updates.floor(), updates.ceil()].map(|at| drawn.get(&(at as usize)).copied());
    Some(before? + updates.fract() * (after? - before?))
}

/// The area under the path's gold reward over updates, by the trapezoidal rule, divided by the updates; `None`
/// without an update.
///
/// # Examples
///
/// ```
/// use segment_rlhf::grid::analysis::{PathPoint, area};
/// let points = [(0, 1.0), (2, 3.0), (3, 3.0)]; // the last evaluation may come sooner than the others
/// let path = points.map(|(iteration, gold)| PathPoint { iteration, kl: 0.0, gold });
/// assert_eq!(area(&path), Some((2.0 * 2.0 + 1.0 * 3.0) / 3.0));
/// ```
pub fn area(path: &[PathPoint]) -> Option<f64> {
    let updates = |from: &PathPoint, to: &PathPoint| to.iteration.abs_diff(from.iteration) as f64;
    let all = updates(path.first()?, path.last()?);
    let trapezoids = path
        .windows(2)
        .map(|pair| updates(&pair[0], &pair[1]) * (pair[0].gold + pair[1].gold) / 2.0);
    (all > 0.0).then(|| trapezoids.sum::<f64>() / all)
}

/// β over the spread of advantages, per iteration; iterations without spread are left out.
pub(super) fn effective_coefficients(curve: &Curve) -> BTreeMap<usize, f64> {
    let pairs = curve.kl_coefficient.iter().zip(&curve.advantage_spread).enumerate();
    let known = pairs.filter(|(_, (_, spread))| **spread > 0.0);
    known.map(|(iteration, (coefficient, spread))| (iteration, coefficient / spread)).collect()
}
