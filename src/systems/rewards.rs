//! Where rewards come from.

use super::error::SystemError;
use super::interface::Rewards;
use super::judge::Judge;
use super::reward_model::SegmentRewards;
use super::sample::Rewarded;
use crate::equations::normalizer::{Normalizer, length_neutral};
use crate::model::generate::{Rows, TokenView};

/// The judge's rewards, normalized by location (E5).
pub struct NormalizedRewards<'a> {
    /// What judges responses.
    pub judge: &'a Judge,
    /// E5.
    pub normalizer: &'a Normalizer,
    /// Whether a response's rewards are divided by their number.
    pub length_neutral: bool,
}

impl Rewards for NormalizedRewards<'_> {
    fn score(
        &self,
        responses: &Rows<'_>,
        reference: &[TokenView],
    ) -> Result<Vec<Rewarded>, SystemError> {
        let scored = self.judge.score(responses, reference)?;
        Ok(scored.into_iter().map(|rewards| self.normalize(rewards)).collect())
    }
}

impl NormalizedRewards<'_> {
    /// The rewards of a response, normalized.
    pub fn normalize(&self, rewards: SegmentRewards) -> Rewarded {
        let SegmentRewards { segments, rewards, sequence_score } = rewards;
        let mut normalized = self.normalizer.normalize_all(&rewards);
        // A verdict is one reward, however many segments stand before it.
        if self.length_neutral && matches!(self.judge, Judge::RewardModel(_)) {
            normalized = length_neutral(&normalized);
        }
        Rewarded { segments, rewards, normalized, sequence_score }
    }
}
