//! The numbers that a finished cell gives.

use serde::{Deserialize, Serialize};

use super::curves::{area, effective_coefficients, gold_at_kl, path, samples_to_gold};
use crate::equations::normalizer::Normalizer;
use crate::grid::results::Figures;
use crate::stage::fit_normalizer::NormalizerFile;
use crate::stage::reward::Calibration;
use crate::statistics::{Estimate, mean};

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
    PassRate = "pass_rate", "pass rate":
        "Share of held-out responses that pass, if a verdict is the reward." => |f| f.evaluation.after.pass_rate;
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
    SampledTokens = "sampled_tokens", "sampled tokens, thousands":
        "Thousands of tokens drawn in training: of responses and continuations."
        => |f| Some(f.curve.sampled_tokens.iter().sum::<usize>() as f64 / 1e3).filter(|&all| all > 0.0);
    TrainedTokens = "trained_tokens", "trained tokens, thousands":
        "Thousands of tokens of pairs that the policy was trained on, prompts included, over all epochs."
        => |f| Some(f.dpo.as_ref()?.trained_tokens as f64 / 1e3);
    PairAccuracy = "pair_accuracy", "accuracy on pairs":
        "Share of held-out pairs of which the policy gives the chosen response the higher reward β Σ w (ln π - ln π_ref)."
        => |f| Some(f.dpo.as_ref()?.accuracy);
    TeachingShare = "teaching_share", "tokens that teach":
        "Share of the response tokens of held-out pairs that count." => |f| Some(f.dpo.as_ref()?.teaching_share);
    WrongInChosen = "wrong_in_chosen", "Δ ln π, wrong in chosen":
        "Mean change of ln π, nats, at the tokens of held-out chosen responses whose true credit is negative."
        => |f| f.dpo.as_ref()?.wrong_in_chosen;
    RightInRejected = "right_in_rejected", "Δ ln π, right in rejected":
        "Mean change of ln π, nats, at the tokens of held-out rejected responses whose true credit is positive."
        => |f| f.dpo.as_ref()?.right_in_rejected;
    SamplesToGoldTwo = "samples_to_gold_2", "sampled tokens to gold 2, thousands":
        "Thousands of tokens drawn in training until the gold reward on held-out prompts first reaches 2, by linear \
         interpolation between evaluations; known where every seed reaches it." => |f| samples_to_gold(f, 2.0);
    SamplesToGoldThree = "samples_to_gold_3", "sampled tokens to gold 3, thousands":
        "Thousands of tokens drawn in training until the gold reward on held-out prompts first reaches 3, by linear \
         interpolation between evaluations; known where every seed reaches it." => |f| samples_to_gold(f, 3.0);
    Area = "area", "area":
        "Area under held-out gold reward over updates by the trapezoidal rule, from the SFT model on, divided by the \
         updates: the mean during training." => |f| area(&path(f)?);
    BestGold = "best_gold", "best gold":
        "Gold reward of the best held-out evaluation during training." => |f| f.policy.as_ref()?.best.gold;
    BestIteration = "best_iteration", "best at":
        "The iteration after which that evaluation was." => |f| Some(f.policy.as_ref()?.best_iteration as f64);
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
        "Held-out pairs of a seed: what the accuracy is a share of." => |f| Some(f.reward.as_ref()?.pairs as f64);
    RewardAccuracy = "reward_accuracy", "RM accuracy":
        "Share of held-out pairs whose chosen response the reward model scores higher."
        => |f| Some(f.reward.as_ref()?.accuracy);
    RewardGoldAccuracy = "reward_gold_accuracy", "RM gold accuracy":
        "The same with the gold reward in place of the label." => |f| f.reward.as_ref()?.gold_accuracy;
    RewardGoldPairs = "reward_gold_pairs", "RM gold pairs":
        "Held-out pairs of a seed whose responses differ in gold reward: what the gold accuracy is a share of."
        => |f| Some(f.reward.as_ref()?.gold_pairs? as f64);
    SequenceRankCorrelation = "sequence_rank_correlation", "ρ responses":
        "Spearman's correlation of e_φ with the gold reward, over the responses of held-out pairs."
        => |f| f.reward.as_ref()?.sequence_rank_correlation;
    RankCorrelation = "rank_correlation", "ρ segments":
        "Spearman's correlation of segment rewards with the true credit of their tokens; none where a response is one \
         segment."
        => |f| f.reward.as_ref()?.rank_correlation;
    ClauseCorrelation = "clause_correlation", "ρ clauses":
        "The same over clauses." => |f| f.reward.as_ref()?.clause_correlation;
    TopicCorrelation = "topic_correlation", "ρ topics":
        "The same over segments that start at a topic word." => |f| f.reward.as_ref()?.topic_correlation;
    QualityCorrelation = "quality_correlation", "ρ quality":
        "The same over segments that start at a quality word." => |f| f.reward.as_ref()?.quality_correlation;
    RewardAccuracyNarrowGaps = "reward_accuracy_narrow_gaps", "RM accuracy, narrow gaps":
        "Share of the quarter of held-out pairs with the narrowest gaps in score or gold whose better response the reward \
         model scores higher." => |f| Some(f.reward.as_ref()?.by_gap.first()?.accuracy);
    RewardAccuracyWideGaps = "reward_accuracy_wide_gaps", "RM accuracy, wide gaps":
        "The same of the quarter with the widest gaps." => |f| Some(f.reward.as_ref()?.by_gap.last()?.accuracy);
    CalibrationError = "calibration_error", "calibration error":
        "Mean distance between the chance that the reward model gives the chosen response and the share of pairs that it is \
         right on, over groups of pairs of which it is as sure." => |f| calibration_error(&f.reward.as_ref()?.calibration);
    RewardTemperature = "reward_temperature", "T":
        "The temperature at which scores of held-out responses spread most evenly over (0, 1)."
        => |f| f.reward.as_ref()?.temperature;
    BoundaryPrecision = "boundary_precision", "boundary precision":
        "Share of segment starts that are true phrase starts." => |f| f.reward.as_ref()?.boundary_precision;
    BoundaryRecall = "boundary_recall", "boundary recall":
        "Share of true phrase starts that are segment starts." => |f| f.reward.as_ref()?.boundary_recall;
    BoundaryF1 = "boundary_f1", "boundary F1":
        "F1 of segment starts against true phrase starts." => |f| f.reward.as_ref()?.boundary_f1;
    SegmentTokens = "segment_tokens", "tokens a segment":
        "Tokens of a segment in the held-out pairs." => |f| Some(f.reward.as_ref()?.segment_tokens);
    NormalizerMeanR2 = "normalizer_mean_r2", "R² of Mean(p)":
        "Share of the variance of the locations' means that the normalizer's Mean(p) explains."
        => |f| line(f)?.r_squared_mean;
    NormalizerStdR2 = "normalizer_std_r2", "R² of Std(p)":
        "Share of the variance of the locations' standard deviations that its Std(p) explains."
        => |f| line(f)?.r_squared_std;
    ModelCalls = "model_calls", "model calls":
        "Calls of the language model for a held-out response that a decoder wrote." => |f| f.evaluation.after.model_calls;
    RewardCalls = "reward_calls", "RM calls":
        "Calls of the reward model for a held-out response that a decoder wrote." => |f| f.evaluation.after.reward_calls;
    DrawnTokens = "drawn_tokens", "tokens drawn":
        "Tokens drawn for a held-out response that a decoder wrote, those of rejected candidates included."
        => |f| f.evaluation.after.sampled_tokens;
}

impl Quantity {
    /// The quantities in which arms are compared.
    pub const COMPARED: &[Self] = &[
        Self::PassRate,
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

    /// Its KL in nats, if it is one of [`AT_KL`](Self::AT_KL).
    pub fn level(self) -> Option<f64> {
        Self::AT_KL.iter().find(|(_, quantity)| *quantity == self).map(|(level, _)| *level)
    }

    /// Whether an arm has it only where every seed does: seeds that never reach a level would be left out of its mean.
    pub fn needs_every_seed(self) -> bool {
        matches!(self, Self::SamplesToGoldTwo | Self::SamplesToGoldThree) || self.level().is_some()
    }

    /// If it is a share, the quantity that counts what it is a share of.
    pub fn count(self) -> Option<Self> {
        match self {
            Self::PassRate | Self::WinRate | Self::LengthControlledWinRate => Some(Self::Responses),
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
    /// reward moves one by; pass rates: as much.
    pub fn margin(self) -> Option<f64> {
        match self {
            Self::Gold | Self::Area | Self::BestGold => Some(0.2),
            Self::PassRate | Self::WinRate | Self::LengthControlledWinRate => Some(0.02),
            _ => self.level().map(|_| 0.2),
        }
    }

    /// Whether a difference counts as none by its [margin](Self::margin).
    pub fn is_no_difference(self, difference: &Estimate) -> bool {
        self.margin().is_some_and(|margin| difference.within(margin))
    }

    /// Its value for the cell's SFT model, if that does not depend on the arm.
    pub(in crate::grid) fn of_base(self, figures: &Figures) -> Option<f64> {
        let before = &figures.evaluation.before;
        match self {
            Self::PassRate => before.pass_rate,
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

/// The normalizer, if it is a curve over locations: R² of a constant says nothing about a fit.
fn line(figures: &Figures) -> Option<&NormalizerFile> {
    let normalizer = figures.normalizer.as_ref();
    normalizer.filter(|file| matches!(file.normalizer, Normalizer::LocationAware { .. }))
}

/// The expected calibration error.
fn calibration_error(groups: &[Calibration]) -> Option<f64> {
    let pairs: usize = groups.iter().map(|group| group.pairs).sum();
    let distance =
        |group: &Calibration| group.pairs as f64 * (group.predicted - group.observed).abs();
    (pairs > 0).then(|| groups.iter().map(distance).sum::<f64>() / pairs as f64)
}

/// The mean of the values; `None` without one.
fn mean_of(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.collect();
    (!values.is_empty()).then(|| mean(values.into_iter()))
}
