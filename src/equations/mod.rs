//! The equations of the paper and of the other systems, one module each.
//!
//! An equation does no I/O, reads no settings and draws no random number. Training, rollouts and report use the
//! same functions.
//!
//! | module | equation |
//! | --- | --- |
//! | [`segmentation`] | E1: entropies, and what one action is |
//! | [`segment_reward`], [`bt_loss`] | E2 to E4: segment rewards, sequence scores, the Bradley-Terry loss |
//! | [`normalizer`], [`regression`] | E5: mean and standard deviation by location, and their fit |
//! | [`interpolation`], [`kl`] | E6 and E7: the reward of each token |
//! | [`gae`] | E8: advantages and returns |
//! | [`ppo`] | E9 and E10: the losses of policy and critic |
//! | [`group_baseline`], [`clip_k3`] | GRPO, Dr. GRPO and RLOO: advantages in a group, and the losses over them |
//! | [`monte_carlo`], [`masked_clip`] | SPO: advantages from Monte Carlo values, and the loss over unsure tokens |
//! | [`span_reward`] | DRLC: rewards of spans that an annotator marks |
//! | [`composite_reward`] | LENS: the weighted sum of rewards of several granularities |
//! | [`weighted_dpo`], [`sign_mask`] | segment-DPO and ASR: DPO over tokens with labels or masks |
//! | [`cards`] | CARDS: where a segment ends, and whether it is accepted |

pub mod bt_loss;
pub mod calibration;
pub mod cards;
pub mod clip_k3;
pub mod composite_reward;
pub mod gae;
pub mod group_baseline;
pub mod interpolation;
pub mod kl;
pub mod masked_clip;
pub mod monte_carlo;
pub mod normalizer;
pub mod ppo;
pub mod regression;
pub mod segment_reward;
pub mod segmentation;
pub mod sign_mask;
pub mod span_reward;
pub mod weighted_dpo;
