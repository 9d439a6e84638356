//! DPO (Rafailov et al. 2023, arXiv 2305.18290), and with labels of segments.
//!
//! | method | a token counts |
//! | --- | --- |
//! | `dpo` | 1 |
//! | `segment_dpo` | +1, 0 or -1: the label of its segment, for the chosen response against the rejected one |
//!
//! `segment_dpo` is the text analogue of DenseDPO (Wu et al. 2025, arXiv 2506.03517): pairs whose segments go together,
//! each pair of segments with a label of its own. Video is out of scope. Labels come from the embedded task's aligned pairs
//! (`task.aligned.pairs`), or from the key `segments` of the rows of `--data`. The policy is judged by the bandit's reward
//! model; it learns without one.

use super::interface::{Method, Row, Training};
use super::pairs::Weights;
use crate::equations::segmentation::Rule;

/// What both rows share; each names what is its own.
pub(super) const ROW: Row = Row {
    name: "",
    about: "",
    paper: "Rafailov et al. 2023, arXiv 2305.18290",
    reward_model: Some(Method::BANDIT),
    rollouts: "none: preference pairs",
    reward_rule: |_| Rule::Whole,
    policy_rule: |_| Rule::Whole,
    rewards: "none",
    credit: "every token alike",
    loss: "DPO",
    critic: false,
    section: None,
    check: |_, _| None,
    training: Training::Offline(|_| Weights::All),
};

impl Method {
    /// Direct preference optimisation.
    pub const DPO: Self = Self(&Row {
        name: "dpo",
        about: "Learns from preference pairs without rewards or rollouts",
        ..ROW
    });
    /// DPO with a label for each pair of segments.
    pub const SEGMENT_DPO: Self = Self(&Row {
        name: "segment_dpo",
        about: "DPO with a label for each pair of segments",
        paper: "after Wu et al. 2025, arXiv 2506.03517",
        rollouts: "none: preference pairs with labels of segments",
        credit: "a token has its segment's label",
        training: Training::Offline(|_| Weights::Labels),
        ..ROW
    });
}

/// Both methods.
pub const METHODS: [Method; 2] = [Method::DPO, Method::SEGMENT_DPO];
