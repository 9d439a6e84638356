//! The statistics of a grid: means over seeds with their intervals, differences paired by seed, learning curves,
//! and whether the orderings that the paper's tables claim show here too.
//!
//! Everything is computed from [`Results`] alone, cell by cell, and keyed by seed: neither the order of cells nor
//! that of seeds changes a digit. What is not known is absent; no number is NaN or infinite.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::results::{self, Cell, Curve, Figures, Results, State};
use crate::equations::interpolation::Interpolation;
use crate::equations::normalizer::Normalizer;
use crate::grid::reported::{self, Row, Source, Subject};
use crate::settings::{NormalizerKind, Settings};
use crate::stage::evaluate::Evaluation;
use crate::stage::online::keep::EvaluationLine;
use crate::stage::task::HeldOut;
use crate::statistics::{Estimate, mean};
use crate::systems::Method;
use crate::table;

/// The name of the model that all policies start from, beside those of the arms.
pub const BASE: &str = "SFT";

/// Why β alone does not say how strong the KL term is.
pub const ONE_BETA: &str = "One β is not one strength: PPO divides advantages, and with them the KL term, by their \
     spread, which differs by method. β / spread is the coefficient in units of the whitened advantage.";

/// The statistics of all experiments: `analysis.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Analysis {
    /// [`results::FORMAT`] of the results.
    pub format: u32,
    /// The version of the program that gave the results.
    pub version: String,
    /// The device.
    pub device: String,
    /// The [margin](Quantity::margin) of each quantity that has one.
    pub margins: BTreeMap<Quantity, f64>,
    /// The experiments, in the results' order.
    pub experiments: Vec<Experiment>,
}

/// One experiment: its arms, how they differ, and what the paper says of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// The stem of its file.
    pub name: String,
    /// What it shows.
    pub title: String,
    /// What to know about it.
    pub note: Option<String>,
    /// The paper's table that it stands beside.
    pub paper_table: Option<u32>,
    /// The SFT model on the held-out prompts: what is known of it, if it is the same for all arms.
    pub base: BTreeMap<Quantity, Estimate>,
    /// The arms, in the results' order.
    pub arms: Vec<Arm>,
    /// Every pair of arms once.
    pub differences: Vec<Difference>,
    /// What the paper's table claims, in the order of its rows; empty without `paper_table`.
    pub orderings: Vec<Ordering>,
}

/// One arm over its seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// Its name in the experiment.
    pub name: String,
    /// Whether the paper has no such arm.
    pub ours: bool,
    /// Its method.
    pub method: Method,
    /// The settings that make it what it is, over the experiment's base.
    pub settings: toml::Table,
    /// The ids of its cells by ascending seed: arms with the same ones are one arm.
    pub cells: Vec<String>,
    /// How far its cells are.
    pub seeds: Seeds,
    /// Why some of them gave nothing, in the order of the seeds.
    pub problems: Vec<Problem>,
    /// Each quantity over the finished seeds that know it: `n` says how many. Gold at a KL is absent unless all of
    /// them [reach](Self::reached) it.
    pub figures: BTreeMap<Quantity, Estimate>,
    /// For each gold at a KL, the finished seeds whose held-out evaluations reach that KL, ascending; empty where
    /// the truth is not known.
    pub reached: BTreeMap<Quantity, Vec<u64>>,
    /// Learning curves: means and intervals over the seeds that have the point, iterations ascending.
    pub bands: BTreeMap<Column, Vec<BandPoint>>,
    /// Gold reward against KL on held-out prompts, of each finished seed.
    pub paths: Vec<SeedPath>,
}

/// Seeds by what became of them, each list ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seeds {
    /// All stages are finished.
    pub finished: Vec<u64>,
    /// A stage ended with an error.
    pub failed: Vec<u64>,
    /// A file cannot be read.
    pub corrupt: Vec<u64>,
    /// Some stages are still to run.
    pub pending: Vec<u64>,
}

/// Why a cell gave no figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Problem {
    /// The seed.
    pub seed: u64,
    /// The stage that failed; absent where a file cannot be read.
    pub stage: Option<String>,
    /// The error.
    pub error: String,
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
    /// The seed.
    pub seed: u64,
    /// Its points.
    pub points: Vec<PathPoint>,
}

/// A policy on held-out prompts, by what it earns and how far it has gone from the SFT model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathPoint {
    /// Updates of the policy before the point: 0 is the SFT model.
    pub iteration: usize,
    /// KL from the reference (k1), nats a response.
    pub kl: f64,
    /// Gold reward.
    pub gold: f64,
}

/// How far one arm is above another with the same seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// An arm.
    pub arm: String,
    /// The arm before it in the experiment's order, whose figures are subtracted.
    pub baseline: String,
    /// `arm` less `baseline`, over the seeds that both finished: those of [`Quantity::COMPARED`] that are known.
    pub figures: BTreeMap<Quantity, Estimate>,
}

/// An ordering that a table of the paper claims, and what was found of it.
///
/// Where benchmarks disagree, the first of [`Benchmark::ALL`] that has figures for both and no tie says which is
/// better; what each of the others says stands beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ordering {
    /// The arm that the paper has ahead; [`BASE`] is the model that training starts from.
    pub better: String,
    /// The arm that the paper has behind.
    pub worse: String,
    /// The paper's figures, in the order of [`Benchmark::ALL`].
    pub reported: Vec<ReportedPair>,
    /// The gold reward's answer.
    pub gold: Option<Outcome>,
    /// The answer of the length-controlled win rate over the SFT model.
    pub length_controlled_win_rate: Option<Outcome>,
}

/// What the paper reports of two rows on one benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportedPair {
    /// The benchmark.
    pub benchmark: Benchmark,
    /// The figure of [`Ordering::better`].
    pub better: f64,
    /// The figure of [`Ordering::worse`].
    pub worse: f64,
    /// The sign of their difference: 1, 0 or -1.
    pub sign: i8,
}

/// A difference, better less worse, paired by seed, with its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// Over the seeds that both finished.
    pub difference: Estimate,
    /// What it says of the paper's ordering.
    pub verdict: Verdict,
}

/// What our difference says of the paper's ordering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The sign is the paper's, and the interval excludes 0.
    AsInThePaper,
    /// The interval holds 0, whatever the sign, or there is a single seed and so no interval.
    Undecided,
    /// The sign is not the paper's, and the interval excludes 0.
    Opposite,
}

impl Verdict {
    /// All, in the order of tables.
    pub const ALL: [Self; 3] = [Self::AsInThePaper, Self::Undecided, Self::Opposite];

    /// Of a difference that the paper claims to be positive.
    pub fn of(difference: &Estimate) -> Self {
        match difference.excludes_zero() {
            false => Self::Undecided,
            true if difference.mean > 0.0 => Self::AsInThePaper,
            true => Self::Opposite,
        }
    }

    /// In words.
    pub fn title(self) -> &'static str {
        match self {
            Self::AsInThePaper => "as in the paper",
            Self::Undecided => "undecided",
            Self::Opposite => "opposite",
        }
    }

    /// What its interval says.
    pub fn interval(self) -> &'static str {
        match self {
            Self::Undecided => "the interval does not exclude 0",
            Self::AsInThePaper | Self::Opposite => "the interval excludes 0",
        }
    }
}

/// Where the paper compares its methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Benchmark {
    /// AlpacaEval 2, length-controlled win rate, %.
    AlpacaLc,
    /// Arena-Hard, %.
    ArenaHard,
    /// MT-Bench, 1 to 10.
    MtBench,
    /// OpenLLM leaderboard, average, %.
    OpenLlm,
}

impl Benchmark {
    /// All, the one that decides first.
    pub const ALL: [Self; 4] = [Self::AlpacaLc, Self::ArenaHard, Self::MtBench, Self::OpenLlm];

    /// Its name, with the unit.
    pub fn title(self) -> &'static str {
        match self {
            Self::AlpacaLc => "AlpacaEval LC %",
            Self::ArenaHard => "Arena-Hard %",
            Self::MtBench => "MT-Bench",
            Self::OpenLlm => "OpenLLM %",
        }
    }

    /// Decimals of its figures in the paper.
    pub fn decimals(self) -> usize {
        if self == Self::ArenaHard { 1 } else { 2 }
    }

    /// The row's figure.
    fn of(self, row: &Row) -> Option<f64> {
        match self {
            Self::AlpacaLc => row.alpaca_lc,
            Self::ArenaHard => row.arena_hard,
            Self::MtBench => row.mt_bench,
            Self::OpenLlm => row.open_llm,
        }
    }
}

macro_rules! quantities {
    ($($variant:ident = $name:literal, $title:literal: $description:literal => $of:expr;)*) => {
        /// A number that a finished cell gives; `description` says what it is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Quantity { $(#[doc = $description] #[serde(rename = $name)] $variant,)* }

        impl Quantity {
            /// All, in the order of tables.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name in JSON and CSV.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// Its name in tables and plots.
            pub fn title(self) -> &'static str {
                match self { $(Self::$variant => $title),* }
            }

            /// What it is.
            pub fn description(self) -> &'static str {
                match self { $(Self::$variant => $description),* }
            }

            /// Its value in a cell; nothing where it is not known.
            pub fn of(self, figures: &Figures) -> Option<f64> {
                fn call(of: impl Fn(&Figures) -> Option<f64>, figures: &Figures) -> Option<f64> {
                    of(figures)
                }
                match self { $(Self::$variant => call($of, figures)),* }
            }
        }
    };
}

quantities! {
    Gold = "gold", "gold":
        "Gold reward of a response to a held-out prompt." => |f| f.evaluation.after.gold;
    WinRate = "win_rate", "win rate":
        "Share of held-out responses that beat one of the SFT model's to the same prompt (ties count half)."
        => |f| f.evaluation.after.win_rate;
    LengthControlledWinRate = "length_controlled_win_rate", "LC win rate":
        "The win rate at equal lengths in tokens." => |f| f.evaluation.after.length_controlled_win_rate;
    Responses = "responses", "responses":
        "Held-out responses of a seed: what its win rates are shares of."
        => |f| Some(f.evaluation.after.responses as f64);
    SequenceScore = "sequence_score", "e_φ":
        "e_φ of a held-out response by the cell's own reward model, before normalization: its scale differs from \
         reward model to reward model." => |f| Some(f.evaluation.after.sequence_score);
    Kl = "kl", "KL":
        "KL from the SFT model (k1) on held-out prompts, nats a response." => |f| Some(f.evaluation.after.kl);
    Tokens = "tokens", "tokens":
        "Tokens of a held-out response, EOS included." => |f| Some(f.evaluation.after.tokens);
    Segments = "segments", "segments":
        "Segments (actions) of a held-out response." => |f| Some(f.evaluation.after.segments);
    Repeats = "repeats", "repeats":
        "Clauses of a held-out response that repeat an earlier one." => |f| f.evaluation.after.repeats;
    EosRate = "eos_rate", "ended":
        "Share of held-out responses that ended in EOS." => |f| Some(f.evaluation.after.eos_rate);
    Area = "area", "area":
        "Area under held-out gold reward over updates by the trapezoidal rule, from the SFT model on, divided by the \
         updates: the mean during training." => |f| area(&path(f)?);
    BestGold = "best_gold", "best gold":
        "Gold reward of the best held-out evaluation during training." => |f| f.policy.best.gold;
    BestIteration = "best_iteration", "best at":
        "The iteration after which that evaluation was." => |f| Some(f.policy.best_iteration as f64);
    GoldAtQuarterNat = "gold_at_quarter_nat", "gold at KL 0.25":
        "Gold reward on held-out prompts where training first reaches a KL of 0.25 nats, by linear interpolation between \
         evaluations; known where every seed reaches it." => |f| gold_at_kl(&path(f)?, 0.25);
    GoldAtHalfNat = "gold_at_half_nat", "gold at KL 0.5":
        "Gold reward on held-out prompts where training first reaches a KL of 0.5 nats, by linear interpolation between \
         evaluations; known where every seed reaches it." => |f| gold_at_kl(&path(f)?, 0.5);
    GoldAtOneNat = "gold_at_one_nat", "gold at KL 1":
        "Gold reward on held-out prompts where training first reaches a KL of 1 nat, by linear interpolation between \
         evaluations; known where every seed reaches it." => |f| gold_at_kl(&path(f)?, 1.0);
    GoldAtTwoNats = "gold_at_two_nats", "gold at KL 2":
        "Gold reward on held-out prompts where training first reaches a KL of 2 nats, by linear interpolation between \
         evaluations; known where every seed reaches it." => |f| gold_at_kl(&path(f)?, 2.0);
    GoldAtFourNats = "gold_at_four_nats", "gold at KL 4":
        "Gold reward on held-out prompts where training first reaches a KL of 4 nats, by linear interpolation between \
         evaluations; known where every seed reaches it." => |f| gold_at_kl(&path(f)?, 4.0);
    AdvantageSpreadAtFirst = "advantage_spread_at_first", "spread of A, first":
        "Standard deviation of a token's advantage before whitening, in the first iteration."
        => |f| f.curve.advantage_spread.first().copied();
    AdvantageSpread = "advantage_spread", "spread of A":
        "The same, mean over iterations." => |f| mean_of(f.curve.advantage_spread.iter().copied());
    EffectiveKlCoefficient = "effective_kl_coefficient", "β / spread":
        "β over the spread of A, mean over iterations: the weight of the KL term in units of the whitened advantage."
        => |f| mean_of(effective_coefficients(&f.curve).into_values());
    CauseAdvantageShare = "cause_advantage_share", "advantage on causes":
        "Share of Σ |A| on tokens with a true credit, mean over iterations."
        => |f| mean_of(f.curve.cause_advantage_share.iter().copied().flatten());
    CauseTokenShare = "cause_token_share", "tokens that are causes":
        "Share of tokens that have a true credit, mean over iterations: the share of |A| on causes if all |A| \
         were equal." => |f| mean_of(f.curve.cause_token_share.iter().copied().flatten());
    CreditCorrelation = "credit_correlation", "r(A, credit)":
        "Pearson's correlation of a token's advantage with its true credit, mean over iterations."
        => |f| mean_of(f.curve.credit_correlation.iter().copied().flatten());
    RewardPairs = "reward_pairs", "RM pairs":
        "Held-out pairs of a seed: what the accuracy is a share of." => |f| Some(f.reward.pairs as f64);
    RewardAccuracy = "reward_accuracy", "RM accuracy":
        "Share of held-out pairs whose chosen response the reward model scores higher."
        => |f| Some(f.reward.accuracy);
    RewardGoldAccuracy = "reward_gold_accuracy", "RM gold accuracy":
        "The same with the gold reward in place of the label." => |f| f.reward.gold_accuracy;
    RewardGoldPairs = "reward_gold_pairs", "RM gold pairs":
        "Held-out pairs of a seed whose responses differ in gold reward: what the gold accuracy is a share of."
        => |f| Some(f.reward.gold_pairs? as f64);
    SequenceRankCorrelation = "sequence_rank_correlation", "ρ responses":
        "Spearman's correlation of e_φ with the gold reward, over the responses of held-out pairs."
        => |f| f.reward.sequence_rank_correlation;
    RankCorrelation = "rank_correlation", "ρ segments":
        "Spearman's correlation of segment rewards with the true credit of their tokens; none where a response is one \
         segment."
        => |f| f.reward.rank_correlation;
    ClauseCorrelation = "clause_correlation", "ρ clauses":
        "The same over clauses." => |f| f.reward.clause_correlation;
    TopicCorrelation = "topic_correlation", "ρ topics":
        "The same over segments that start at a topic word." => |f| f.reward.topic_correlation;
    QualityCorrelation = "quality_correlation", "ρ quality":
        "The same over segments that start at a quality word." => |f| f.reward.quality_correlation;
    BoundaryPrecision = "boundary_precision", "boundary precision":
        "Share of segment starts that are true phrase starts." => |f| f.reward.boundary_precision;
    BoundaryRecall = "boundary_recall", "boundary recall":
        "Share of true phrase starts that are segment starts." => |f| f.reward.boundary_recall;
    BoundaryF1 = "boundary_f1", "boundary F1":
        "F1 of segment starts against true phrase starts." => |f| f.reward.boundary_f1;
    SegmentTokens = "segment_tokens", "tokens a segment":
        "Tokens of a segment in the held-out pairs." => |f| Some(f.reward.segment_tokens);
    NormalizerMeanR2 = "normalizer_mean_r2", "R² of Mean(p)":
        "Share of the variance of the locations' means that the normalizer's Mean(p) explains."
        => |f| f.normalizer.r_squared_mean.filter(|_| is_line(f));
    NormalizerStdR2 = "normalizer_std_r2", "R² of Std(p)":
        "Share of the variance of the locations' standard deviations that its Std(p) explains."
        => |f| f.normalizer.r_squared_std.filter(|_| is_line(f));
}

impl Quantity {
    /// Those of which arms' differences are given.
    pub const COMPARED: &[Self] = &[
        Self::Gold,
        Self::WinRate,
        Self::LengthControlledWinRate,
        Self::SequenceScore,
        Self::Kl,
        Self::Tokens,
        Self::Area,
        Self::GoldAtQuarterNat,
        Self::GoldAtHalfNat,
        Self::GoldAtOneNat,
        Self::GoldAtTwoNats,
        Self::GoldAtFourNats,
    ];

    /// The gold reward at matched KL, with its level in nats.
    pub const AT_KL: [(f64, Self); 5] = [
        (0.25, Self::GoldAtQuarterNat),
        (0.5, Self::GoldAtHalfNat),
        (1.0, Self::GoldAtOneNat),
        (2.0, Self::GoldAtTwoNats),
        (4.0, Self::GoldAtFourNats),
    ];

    /// The KL at which it is the gold reward, in nats, if it is one of [`AT_KL`](Self::AT_KL).
    pub fn level(self) -> Option<f64> {
        Self::AT_KL.iter().find(|(_, quantity)| *quantity == self).map(|(level, _)| *level)
    }

    /// How many it is a share of, if it is a share: a quantity of its own.
    pub fn count(self) -> Option<Self> {
        match self {
            Self::WinRate | Self::LengthControlledWinRate => Some(Self::Responses),
            Self::RewardAccuracy => Some(Self::RewardPairs),
            Self::RewardGoldAccuracy => Some(Self::RewardGoldPairs),
            _ => None,
        }
    }

    /// The largest difference that is called none, in the quantity's own units: two arms are said not to differ
    /// only where the whole 95 % interval of their difference lies [within](Estimate::within) ± this (two
    /// one-sided tests). Anything else whose interval includes 0 is undecided.
    ///
    /// Gold reward: 0.2, a fifth of what one clause on an asked topic earns. Win rates: 0.02, about what 0.2 of gold
    /// reward moves one by.
    pub fn margin(self) -> Option<f64> {
        match self {
            Self::Gold | Self::Area | Self::BestGold => Some(0.2),
            Self::WinRate | Self::LengthControlledWinRate => Some(0.02),
            _ => self.level().map(|_| 0.2),
        }
    }

    /// Whether a difference in it is none by its [margin](Self::margin).
    pub fn is_no_difference(self, difference: &Estimate) -> bool {
        self.margin().is_some_and(|margin| difference.within(margin))
    }

    /// Its value for the cell's SFT model, where that does not depend on the arm.
    fn of_base(self, figures: &Figures) -> Option<f64> {
        let before = &figures.evaluation.before;
        match self {
            Self::Gold => before.gold,
            Self::WinRate | Self::LengthControlledWinRate => Some(0.5), // against itself
            Self::Responses => Some(before.responses as f64),
            Self::Kl => Some(before.kl),
            Self::Tokens => Some(before.tokens),
            Self::Repeats => before.repeats,
            Self::EosRate => Some(before.eos_rate),
            _ => None,
        }
    }
}

/// A column of learning curves. Those over rollouts are drawn before the iteration's update: the SFT model's
/// first, and none of the final policy's. Those held out are after it, at the iterations that were evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Column {
    /// Gold reward of rollouts.
    Gold,
    /// e_φ of rollouts.
    SequenceScore,
    /// KL of rollouts from the SFT model (k1), nats a response.
    Kl,
    /// Tokens of a rollout.
    Tokens,
    /// Segments of a rollout.
    Segments,
    /// Entropy of the policy, nats a token.
    Entropy,
    /// Share of rollouts that ended in EOS.
    EosRate,
    /// Share of tokens whose policy loss was clipped.
    ClipFraction,
    /// Share of the returns' variance that the critic explains.
    ExplainedVariance,
    /// Standard deviation of a token's advantage before whitening.
    AdvantageSpread,
    /// β over that spread.
    EffectiveKlCoefficient,
    /// Share of Σ |A| on tokens with a true credit.
    CauseAdvantageShare,
    /// Share of tokens that have a true credit.
    CauseTokenShare,
    /// Pearson's correlation of advantage and true credit.
    CreditCorrelation,
    /// Gold reward on held-out prompts.
    HeldOutGold,
    /// e_φ on held-out prompts.
    HeldOutSequenceScore,
    /// Win rate over the SFT model on held-out prompts; ½ for that model itself.
    WinRate,
    /// The same at equal lengths.
    LengthControlledWinRate,
    /// KL on held-out prompts, nats a response.
    HeldOutKl,
    /// Tokens of a response to a held-out prompt.
    HeldOutTokens,
}

impl Column {
    /// All, in the order of `curves.csv`.
    pub const ALL: [Self; 20] = [
        Self::Gold,
        Self::SequenceScore,
        Self::Kl,
        Self::Tokens,
        Self::Segments,
        Self::Entropy,
        Self::EosRate,
        Self::ClipFraction,
        Self::ExplainedVariance,
        Self::AdvantageSpread,
        Self::EffectiveKlCoefficient,
        Self::CauseAdvantageShare,
        Self::CauseTokenShare,
        Self::CreditCorrelation,
        Self::HeldOutGold,
        Self::HeldOutSequenceScore,
        Self::WinRate,
        Self::LengthControlledWinRate,
        Self::HeldOutKl,
        Self::HeldOutTokens,
    ];

    /// Its name in JSON and CSV.
    pub fn name(self) -> String {
        let name = toml::Value::try_from(self).expect("a plain enum serialises");
        name.as_str().expect("a variant without fields is a text").to_owned()
    }

    /// Its known values by iteration (updates before the point).
    pub fn of(self, figures: &Figures) -> BTreeMap<usize, f64> {
        let some = |column: &[f64]| column.iter().copied().enumerate().collect();
        let known = |column: &[Option<f64>]| {
            column.iter().enumerate().filter_map(|(i, value)| Some((i, (*value)?))).collect()
        };
        let held_out = |of: fn(&Evaluation) -> Option<f64>| -> BTreeMap<usize, f64> {
            let lines = figures.evaluations.iter();
            lines.filter_map(|line| Some((line.iteration, of(&line.evaluation)?))).collect()
        };
        let won = |of: fn(&Evaluation) -> Option<f64>| {
            let against_itself = figures.evaluations.first().map(|_| (0, 0.5));
            against_itself.into_iter().chain(held_out(of)).collect()
        };
        let curve = &figures.curve;
        match self {
            Self::Gold => known(&curve.gold),
            Self::SequenceScore => some(&curve.sequence_score),
            Self::Kl => some(&curve.kl_k1),
            Self::Tokens => some(&curve.response_tokens),
            Self::Segments => some(&curve.segments),
            Self::Entropy => some(&curve.entropy),
            Self::EosRate => some(&curve.eos_rate),
            Self::ClipFraction => some(&curve.clip_fraction),
            Self::ExplainedVariance => known(&curve.explained_variance),
            Self::AdvantageSpread => some(&curve.advantage_spread),
            Self::EffectiveKlCoefficient => effective_coefficients(curve),
            Self::CauseAdvantageShare => known(&curve.cause_advantage_share),
            Self::CauseTokenShare => known(&curve.cause_token_share),
            Self::CreditCorrelation => known(&curve.credit_correlation),
            Self::HeldOutGold => held_out(|e| e.gold),
            Self::HeldOutSequenceScore => held_out(|e| Some(e.sequence_score)),
            Self::WinRate => won(|e| e.win_rate),
            Self::LengthControlledWinRate => won(|e| e.length_controlled_win_rate),
            Self::HeldOutKl => held_out(|e| Some(e.kl)),
            Self::HeldOutTokens => held_out(|e| Some(e.tokens)),
        }
    }
}

/// Gold reward against KL of a cell's policy on held-out prompts: its evaluations, the SFT model first. `None` where
/// the truth is not known, or nothing was evaluated.
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

/// β over the spread of advantages, by iteration; left out where they do not vary.
fn effective_coefficients(curve: &Curve) -> BTreeMap<usize, f64> {
    let pairs = curve.kl_coefficient.iter().zip(&curve.advantage_spread).enumerate();
    let known = pairs.filter(|(_, (_, spread))| **spread > 0.0);
    known.map(|(iteration, (coefficient, spread))| (iteration, coefficient / spread)).collect()
}

/// Whether the normalizer is a line over locations: what a constant explains of their means is no measure of a fit.
fn is_line(figures: &Figures) -> bool {
    matches!(figures.normalizer.normalizer, Normalizer::LocationAware { .. })
}

/// The mean of the values; `None` without one.
fn mean_of(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.collect();
    (!values.is_empty()).then(|| mean(values.into_iter()))
}

/// The finished cells of an arm by seed.
type Finished<'a> = BTreeMap<u64, &'a Figures>;

impl Analysis {
    /// The statistics of these results.
    pub fn of(results: &Results) -> Self {
        let cells: BTreeMap<&str, &Cell> =
            results.cells.iter().map(|cell| (cell.id.as_str(), cell)).collect();
        let experiments = results.experiments.iter().map(|e| Experiment::of(e, &cells)).collect();
        let Results { format, version, device, .. } = results;
        let margins = Quantity::ALL.iter().filter_map(|&q| Some((q, q.margin()?))).collect();
        let (version, device) = (version.clone(), device.clone());
        Self { format: *format, version, device, margins, experiments }
    }

    /// Whether any cell is finished.
    pub fn has_figures(&self) -> bool {
        self.experiments.iter().flat_map(|e| &e.arms).any(|arm| !arm.seeds.finished.is_empty())
    }
}

/// How the paper's orderings fare over all experiments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// The tables of the paper that claim them.
    pub tables: Vec<u32>,
    /// What is found of each, in the experiments' order.
    pub verdicts: Vec<Verdict>,
    /// Arms that they compare, each counted once however often it is named.
    pub arms: usize,
}

impl Claims {
    /// How many have this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.verdicts.iter().filter(|of| **of == verdict).count()
    }

    /// The counts as a paragraph; `by` is what the verdicts go by.
    pub fn text(&self, by: &str) -> String {
        let tables: Vec<String> = self.tables.iter().map(u32::to_string).collect();
        let claimed = match &tables[..] {
            [before @ .., last] if !before.is_empty() => {
                format!("tables {} and {last} of the paper claim", before.join(", "))
            }
            one => format!("table {} of the paper claims", one.concat()),
        };
        let counts = Verdict::ALL.map(|verdict| {
            format!("{} {} ({})", self.count(verdict), verdict.title(), verdict.interval())
        });
        format!(
            "Of {} orderings that {claimed}, by {by}: {}. All come from {} arms, so that the luck of one arm shows in \
             several orderings.",
            self.verdicts.len(),
            counts.join(", "),
            self.arms
        )
    }
}

impl Analysis {
    /// The paper's orderings by one of their answers; `None` where no ordering has it.
    pub fn claims(&self, answer: impl Fn(&Ordering) -> Option<Outcome>) -> Option<Claims> {
        let mut claims = Claims { tables: Vec::new(), verdicts: Vec::new(), arms: 0 };
        let mut compared = BTreeSet::new();
        for experiment in &self.experiments {
            let judged = experiment.orderings.iter().filter_map(|o| Some((o, answer(o)?)));
            for (ordering, outcome) in judged {
                claims.verdicts.push(outcome.verdict);
                let arms = [&ordering.better, &ordering.worse].map(|name| experiment.arm(name));
                compared.extend(arms.into_iter().flatten().map(|arm| &arm.cells));
                claims.tables.extend(experiment.paper_table);
            }
        }
        claims.tables.sort_unstable();
        claims.tables.dedup();
        claims.arms = compared.len();
        (!claims.verdicts.is_empty()).then_some(claims)
    }
}

impl Experiment {
    fn of(experiment: &results::Experiment, cells: &BTreeMap<&str, &Cell>) -> Self {
        let results::Experiment { name, title, note, paper_table, arms } = experiment;
        let cells: Vec<Vec<&Cell>> = (arms.iter())
            .map(|arm| arm.cells.iter().filter_map(|id| cells.get(id.as_str()).copied()).collect())
            .collect();
        let finished: Vec<Finished> = (cells.iter())
            .map(|cells| cells.iter().filter_map(|c| Some((c.seed, c.figures()?))).collect())
            .collect();
        let pairs = (0..arms.len()).flat_map(|j| (0..j).map(move |i| (i, j)));
        let difference = |(i, j): (usize, usize)| Difference {
            arm: arms[j].name.clone(),
            baseline: arms[i].name.clone(),
            figures: known(Quantity::COMPARED, |q| {
                let both = finished[j].keys().filter(|seed| finished[i].contains_key(seed));
                let every = q.level().map(|_| both.count());
                paired(&finished[j], &finished[i], |f| q.of(f), |f| q.of(f))
                    .filter(|estimate| every.is_none_or(|seeds| estimate.n == seeds))
            }),
        };
        Self {
            name: name.clone(),
            title: title.clone(),
            note: noted(note.as_deref(), &finished),
            paper_table: *paper_table,
            base: known(Quantity::ALL, |quantity| base(quantity, &finished)),
            differences: pairs.map(difference).collect(),
            orderings: paper_table.map_or(Vec::new(), |table| orderings(table, arms, &finished)),
            arms: (arms.iter().zip(&cells).zip(&finished))
                .map(|((arm, cells), finished)| Arm::of(arm, cells, finished))
                .collect(),
        }
    }

    /// The arm of this name.
    pub fn arm(&self, name: &str) -> Option<&Arm> {
        self.arms.iter().find(|arm| arm.name == name)
    }

    /// Those of `wanted` that some arm knows, if only for some seeds; before a share whose count differs between arms or
    /// seeds, that count.
    pub fn columns(&self, wanted: &[Quantity]) -> Vec<Quantity> {
        let known = |q: &Quantity| {
            let seeds = |arm: &Arm| arm.reached.get(q).is_some_and(|seeds| !seeds.is_empty());
            self.arms.iter().any(|arm| arm.figure(*q).is_some() || seeds(arm))
        };
        let mut columns: Vec<Quantity> = Vec::new();
        for quantity in wanted.iter().copied().filter(known) {
            let count =
                quantity.count().filter(|count| known(count) && self.count(quantity).is_none());
            columns.extend(count.filter(|count| !columns.contains(count)));
            columns.push(quantity);
        }
        columns
    }

    /// How many a quantity is a share of with each seed, where it is a share and that is the same for all arms and
    /// seeds.
    pub fn count(&self, share: Quantity) -> Option<f64> {
        let counts = self.arms.iter().filter_map(|arm| arm.figure(share.count()?));
        let mut counts = counts.map(|of| (of.error.unwrap_or(0.0) == 0.0).then_some(of.mean));
        let first = counts.next()??;
        counts.all(|count| count == Some(first)).then_some(first)
    }

    /// The quantity's title, with the [count](Self::count) of a share: `win rate (n 384)`.
    pub fn title(&self, quantity: Quantity) -> String {
        let count = self.count(quantity).map(|n| format!(" (n {n})"));
        quantity.title().to_owned() + &count.unwrap_or_default()
    }
}

/// What the file says of an experiment, and what to know of its figures where they are not of held-out prompts.
fn noted(note: Option<&str>, finished: &[Finished]) -> Option<String> {
    let what = |figures: &Figures| [figures.reward.held_out, figures.evaluation.held_out];
    let what: BTreeSet<HeldOut> =
        finished.iter().flat_map(BTreeMap::values).flat_map(|figures| what(figures)).collect();
    let cautions =
        what.into_iter().filter_map(HeldOut::caution).map(|text| format!("Note: {text}."));
    let parts: Vec<String> = note.map(str::to_owned).into_iter().chain(cautions).collect();
    (!parts.is_empty()).then(|| parts.join(" "))
}

impl Arm {
    fn of(arm: &results::Arm, cells: &[&Cell], finished: &Finished) -> Self {
        let results::Arm { name, ours, method, settings, .. } = arm;
        let mut cells = cells.to_vec();
        cells.sort_by_key(|cell| cell.seed);
        let ids = cells.iter().map(|cell| cell.id.clone()).collect();
        let mut seeds = Seeds::default();
        let mut problems = Vec::new();
        for Cell { seed, state, .. } in cells {
            let (list, problem) = match state {
                State::Finished(_) => (&mut seeds.finished, None),
                State::Pending => (&mut seeds.pending, None),
                State::Failed { stage, error } => (&mut seeds.failed, Some((Some(stage), error))),
                State::Corrupt { error } => (&mut seeds.corrupt, Some((None, error))),
            };
            list.push(*seed);
            problems.extend(problem.map(|(stage, error)| Problem {
                seed: *seed,
                stage: stage.cloned(),
                error: error.clone(),
            }));
        }
        let over_seeds = |q: Quantity| {
            let of = Estimate::of(finished.values().filter_map(|f| q.of(f)))?;
            (q.level().is_none() || of.n == finished.len()).then_some(of)
        };
        let paths: Vec<SeedPath> = (finished.iter())
            .filter_map(|(&seed, f)| Some(SeedPath { seed, points: path(f)? }))
            .collect();
        let reached = |(level, quantity): (f64, Quantity)| {
            let reach = paths.iter().filter(|path| gold_at_kl(&path.points, level).is_some());
            (quantity, reach.map(|path| path.seed).collect())
        };
        let reached = Quantity::AT_KL.into_iter().filter(|_| !paths.is_empty()).map(reached);
        let bands = Column::ALL.into_iter().map(|column| (column, band(column, finished)));
        Self {
            name: name.clone(),
            ours: *ours,
            method: *method,
            settings: settings.clone(),
            cells: ids,
            seeds,
            problems,
            figures: known(Quantity::ALL, over_seeds),
            reached: reached.collect(),
            bands: bands.filter(|(_, points)| !points.is_empty()).collect(),
            paths,
        }
    }

    /// The estimate of a quantity.
    pub fn figure(&self, quantity: Quantity) -> Option<&Estimate> {
        self.figures.get(&quantity)
    }

    /// What to show in place of a rate that is a share of a single response or pair: `1 of 1`. At equal lengths a single
    /// comparison has none.
    pub fn of_one(&self, share: Quantity) -> Option<String> {
        let (rate, count) = (self.figure(share)?, self.figure(share.count()?)?);
        let one = rate.n == 1 && count.mean == 1.0;
        one.then(|| match share {
            Quantity::LengthControlledWinRate => "–".to_owned(),
            _ => table::rate(rate.mean, 1),
        })
    }

    /// The points of a learning curve; empty where it is not known.
    pub fn band(&self, column: Column) -> &[BandPoint] {
        self.bands.get(&column).map_or(&[], Vec::as_slice)
    }
}

/// The quantities that `of` knows.
fn known(
    quantities: &[Quantity],
    of: impl Fn(Quantity) -> Option<Estimate>,
) -> BTreeMap<Quantity, Estimate> {
    quantities.iter().filter_map(|&quantity| Some((quantity, of(quantity)?))).collect()
}

/// Means of a column at each iteration over the seeds that have it.
fn band(column: Column, finished: &Finished) -> Vec<BandPoint> {
    let mut points: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for (iteration, value) in finished.values().flat_map(|figures| column.of(figures)) {
        points.entry(iteration).or_default().push(value);
    }
    let point =
        |(iteration, values)| Some(BandPoint { iteration, estimate: Estimate::of(values)? });
    points.into_iter().filter_map(point).collect()
}

/// The mean of a's value less b's over the seeds that both finished and know.
fn paired(
    a: &Finished,
    b: &Finished,
    of_a: impl Fn(&Figures) -> Option<f64>,
    of_b: impl Fn(&Figures) -> Option<f64>,
) -> Option<Estimate> {
    Estimate::of(a.iter().filter_map(|(seed, a)| Some(of_a(a)? - of_b(b.get(seed)?)?)))
}

/// The SFT model's value over seeds; nothing where arms differ in it.
fn base(quantity: Quantity, arms: &[Finished]) -> Option<Estimate> {
    let mut by_seed = BTreeMap::new();
    for (seed, figures) in arms.iter().flatten() {
        let value = quantity.of_base(figures)?;
        if *by_seed.entry(seed).or_insert(value) != value {
            return None;
        }
    }
    Estimate::of(by_seed.into_values())
}

/// A row of the paper's table with the arm that is its like: none for the model that training starts from.
struct Like<'a> {
    row: &'a Row,
    name: &'a str,
    cells: Option<&'a Finished<'a>>,
    /// The arm's settings but for what the row is of.
    rest: Option<Settings>,
}

/// Every pair of the table's rows that has arms which differ in nothing else.
fn orderings(number: u32, arms: &[results::Arm], finished: &[Finished]) -> Vec<Ordering> {
    let here = |source| matches!(source, Source::PaperTable(n) if u32::from(n) == number);
    let Some(table) = reported::reported().tables.iter().find(|table| here(table.source)) else {
        return Vec::new();
    };
    let mut likes = Vec::new();
    for row in &table.rows {
        if row.of == Subject::Base {
            likes.push(Like { row, name: BASE, cells: None, rest: None });
        }
        for (arm, finished) in arms.iter().zip(finished) {
            if let Some(rest) = rest(row.of, arm) {
                likes.push(Like { row, name: &arm.name, cells: Some(finished), rest: Some(rest) });
            }
        }
    }
    let pairs = (0..likes.len()).flat_map(|j| (0..j).map(move |i| (i, j)));
    pairs.filter_map(|(i, j)| ordering(&likes[i], &likes[j])).collect()
}

/// If the arm is what the row is of: its settings with that one replaced by the paper's choice.
fn rest(of: Subject, arm: &results::Arm) -> Option<Settings> {
    let mut settings = Settings::defaults().with(&arm.name, &arm.settings).ok()?;
    let found = match of {
        Subject::Base => return None,
        Subject::Method(_) => Subject::Method(arm.method),
        Subject::Normalizer(_) => Subject::Normalizer(settings.normalizer.kind),
        Subject::Interpolation(_) => Subject::Interpolation(settings.ppo.interpolation),
    };
    settings.method = arm.method;
    match of {
        Subject::Method(_) => settings.method = Method::SEGMENT,
        Subject::Normalizer(_) => settings.normalizer.kind = NormalizerKind::Regression,
        _ => settings.ppo.interpolation = Interpolation::EvenSplit,
    }
    let is_like = found == of && !arm.ours && settings.method == Method::SEGMENT;
    is_like.then_some(settings)
}

/// What the paper claims of two rows, and what was found; nothing where it claims nothing, or the arms differ in
/// more than the rows do.
fn ordering(a: &Like, b: &Like) -> Option<Ordering> {
    if a.row.of == b.row.of || (a.rest.is_some() && b.rest.is_some() && a.rest != b.rest) {
        return None;
    }
    let figures =
        |benchmark: Benchmark| Some((benchmark, benchmark.of(a.row)?, benchmark.of(b.row)?));
    let figures: Vec<_> = Benchmark::ALL.into_iter().filter_map(figures).collect();
    let (_, x, y) = figures.iter().find(|(_, x, y)| x != y)?;
    let (better, worse) = if x > y { (a, b) } else { (b, a) };
    let pair = |&(benchmark, x, y): &(Benchmark, f64, f64)| {
        let (better, worse) = if std::ptr::eq(better, a) { (x, y) } else { (y, x) };
        let sign = i8::from(better > worse) - i8::from(better < worse);
        ReportedPair { benchmark, better, worse, sign }
    };
    let outcome = |quantity: Quantity| {
        let value = |like: &Like, figures: &Figures| match like.cells {
            Some(_) => quantity.of(figures),
            None => quantity.of_base(figures),
        };
        // The SFT model is compared cell by cell with the policy that it became.
        let cells = [better.cells.or(worse.cells)?, worse.cells.or(better.cells)?];
        let difference = paired(cells[0], cells[1], |f| value(better, f), |f| value(worse, f))?;
        Some(Outcome { difference, verdict: Verdict::of(&difference) })
    };
    Some(Ordering {
        better: better.name.to_owned(),
        worse: worse.name.to_owned(),
        reported: figures.iter().map(pair).collect(),
        gold: outcome(Quantity::Gold),
        length_controlled_win_rate: outcome(Quantity::LengthControlledWinRate),
    })
}
