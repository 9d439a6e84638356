//! What judges responses: a reward model, or a program's verdict.

use super::error::SystemError;
use super::reward_model::{RewardModel, SegmentRewards, Segmenter};
use crate::model::generate::{Rows, TokenView};

/// Whether a response to a prompt, both as token ids, passes.
pub type Verdict = fn(&[u32], &[u32]) -> bool;

/// What judges responses.
// One a run, so the difference in size costs nothing.
#[allow(clippy::large_enum_variant)]
pub enum Judge {
    /// A reward model: a reward for each segment.
    RewardModel(RewardModel),
    /// A verdict: 1 at the last segment of a response that passes, and 0 elsewhere.
    Verdict {
        /// The program.
        passes: Verdict,
        /// How the policy's responses are cut.
        segmenter: Segmenter,
    },
}

impl Judge {
    /// How the policy's responses are cut.
    pub fn policy_segmenter(&self) -> &Segmenter {
        match self {
            Self::RewardModel(model) => &model.policy_segmenter,
            Self::Verdict { segmenter, .. } => segmenter,
        }
    }

    /// The reward model, if that is the judge.
    pub fn reward_model(&self) -> Option<&RewardModel> {
        match self {
            Self::RewardModel(model) => Some(model),
            Self::Verdict { .. } => None,
        }
    }

    /// Cuts responses where the reference model's view of them says, and rewards the segments.
    ///
    /// # Errors
    ///
    /// As [`RewardModel::score`].
    pub fn score(
        &self,
        responses: &Rows<'_>,
        reference: &[TokenView],
    ) -> Result<Vec<SegmentRewards>, SystemError> {
        match self {
            Self::RewardModel(model) => model.score(responses, reference),
            Self::Verdict { passes, segmenter } => {
                let rows = responses.rows().iter().zip(reference);
                rows.map(|(&(prompt, response), reference)| {
                    let segments = segmenter.cut(response, &reference.entropies)?;
                    let verdict = f64::from(passes(prompt, response));
                    let mut rewards = vec![0.0; segments.len()];
                    *rewards.last_mut().expect("a response has a segment") = verdict;
                    Ok(SegmentRewards { segments, rewards, sequence_score: verdict })
                })
                .collect()
            }
        }
    }
}
