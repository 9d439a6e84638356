//! From the paper to the code: one pair of responses through E1 to E10, in numbers for a pocket calculator.
//!
//! This page holds no code of its own. Its examples run as tests; each starts from the numbers that the one
//! before ended with, rounded to four decimals, and the [last one](#the-whole-chain) goes all the way unrounded.
//! `assert_close` compares to that precision, and `device` is [`Device::flex()`](burn::tensor::Device), the CPU.
//! Settings are the paper's for Phi-3-mini.
//!
//! The prompt x is *Is the sky blue?* A person preferred the first of two responses:
//!
//! | | tokens |
//! | --- | --- |
//! | chosen, y_w | `Yes` `,` `it` `is` `.` `<eos>` |
//! | rejected, y_l | `No` `,` `never` `.` `<eos>` |
//!
//! # E1: where a segment starts
//!
//! Section 2.2; [`segmentation::entropy`](crate::equations::segmentation::entropy) and
//! [`segmentation::segments`](crate::equations::segmentation::segments).
//!
//! ```text
//! H_i = -Σ_v π_SFT(v | x, y_<i) ln π_SFT(v | x, y_<i)
//! token i starts a segment iff H_i > c_ent
//! ```
//!
//! Suppose a vocabulary of eight tokens, and a reference model that finds a few of them equally likely at each
//! position, all others impossible. Of k equally likely tokens each has probability 1/k, and the entropy is ln k:
//!
//! | y_w | `Yes` | `,` | `it` | `is` | `.` | `<eos>` | | y_l | `No` | `,` | `never` | `.` | `<eos>` |
//! | --- | --: | --: | --: | --: | --: | --: | --- | --- | --: | --: | --: | --: | --: |
//! | k | 2 | 1 | 8 | 4 | 2 | 1 | | k | 2 | 1 | 4 | 2 | 1 |
//! | H, nats | 0.6931 | 0 | 2.0794 | 1.3863 | 0.6931 | 0 | | H | 0.6931 | 0 | 1.3863 | 0.6931 | 0 |
//!
//! Only `it` has more than c_ent = 1.75 nats, so it starts the second segment of y_w; y_l is one segment. The end of
//! sequence belongs to no segment, as published (deviation D5).
//!
//! ```
//! # use burn::tensor::{Device, Tensor, TensorData};
//! # let device = Device::flex();
//! # fn assert_close(actual: &[f64], expected: &[f64]) {
//! #     assert_eq!(actual.len(), expected.len());
//! #     assert!(actual.iter().zip(expected).all(|(a, e)| (a - e).abs() < 2e-4), "{actual:?}");
//! # }
//! use segment_rlhf::equations::segmentation::{Rule, EosPolicy, ResponseView, entropy, segments};
//!
//! // The logits from which a token was drawn: 0 for k tokens, -∞ for the others.
//! let row = |k: usize| (0..8).map(move |v| if v < k { 0.0 } else { f32::NEG_INFINITY });
//! let logits: Vec<f32> = [2, 1, 8, 4, 2, 1].into_iter().flat_map(row).collect();
//! let logits = TensorData::new(logits, [1, 6, 8]); // [B, n, V]
//! let logits = Tensor::<3>::from_data(logits, &device);
//! let nats: Vec<f64> = entropy(logits).into_data().iter().collect();
//! assert_close(&nats, &[0.6931, 0.0, 2.0794, 1.3863, 0.6931, 0.0]);
//!
//! let cut = |entropies: &[f32]| {
//!     let sentence_ends = &vec![false; entropies.len()]; // read for sentences alone
//!     let response = ResponseView { entropies, sentence_ends, ends_with_eos: true };
//!     let actions = Rule::Entropy { cutoff: 1.75 };
//!     segments(actions, EosPolicy::AsPublished, response).unwrap()
//! };
//! let chosen = cut(&[0.6931, 0.0, 2.0794, 1.3863, 0.6931, 0.0]);
//! assert_eq!(chosen, [0..2, 2..5]); // "Yes ,"  "it is ."
//! let rejected = cut(&[0.6931, 0.0, 1.3863, 0.6931, 0.0]);
//! assert_eq!(rejected, [0..4]); // "No , never ."
//! ```
//!
//! # E2 and E3: rewards of segments, score of a response
//!
//! Section 2.2; [`segment_reward`](crate::equations::segment_reward).
//!
//! ```text
//! r_φ(s_t, a_t) = the reward head at the last token of a_t
//! e_φ(x, y)     = the average of r_φ(s_t, a_t) over t = 0 … T-1
//! ```
//!
//! The head of the reward model gives a score to every token; those at `,` and `.` count in y_w, and that at `.` in
//! y_l. The averages are (1 + 3) / 2 = 2 and 0.5 / 1 = 0.5.
//!
//! ```
//! use segment_rlhf::equations::segment_reward::{Aggregation, aggregate, segment_rewards};
//!
//! let chosen = segment_rewards(&[0.2, 1.0, 0.4, 0.9, 3.0, 0.7], &[0..2, 2..5]);
//! let rejected = segment_rewards(&[-0.1, 0.3, -0.8, 0.5, 0.0], &[0..4]);
//! assert_eq!(chosen, [1.0, 3.0]);
//! assert_eq!(rejected, [0.5]);
//! assert_eq!(aggregate(&chosen, Aggregation::Average), 2.0);
//! assert_eq!(aggregate(&rejected, Aggregation::Average), 0.5);
//! ```
//!
//! # E4: what the reward model learns from
//!
//! Section 2.2; [`bt_loss::segment_bt_loss`](crate::equations::bt_loss::segment_bt_loss).
//!
//! ```text
//! L(φ) = -ln σ(e_φ(x, y_w) - e_φ(x, y_l)) = ln (1 + e^-(2 - 0.5)) = ln 1.2231 = 0.2014
//! ```
//!
//! The model gives y_w a chance of σ(1.5) = 0.8176 to be preferred. For the gradient, E3 is taken on the device:
//! [`aggregation_weights`](crate::equations::segment_reward::aggregation_weights) are ½ at `,` and at `.`, 0 elsewhere.
//!
//! ```
//! # use burn::tensor::{Device, Tensor};
//! # let device = Device::flex();
//! # fn assert_close(actual: &[f64], expected: &[f64]) {
//! #     assert_eq!(actual.len(), expected.len());
//! #     assert!(actual.iter().zip(expected).all(|(a, e)| (a - e).abs() < 2e-4), "{actual:?}");
//! # }
//! use segment_rlhf::equations::bt_loss::segment_bt_loss;
//! use segment_rlhf::equations::segment_reward::{Aggregation, aggregation_weights, sequence_scores};
//!
//! let weights = aggregation_weights(&[0..2, 2..5], 6, Aggregation::Average);
//! assert_eq!(weights, [0.0, 0.5, 0.0, 0.0, 0.5, 0.0]);
//! let weights = Tensor::<1>::from_floats(weights.as_slice(), &device).unsqueeze::<2>();
//! let token_scores = Tensor::<2>::from_floats([[0.2, 1.0, 0.4, 0.9, 3.0, 0.7]], &device);
//! let chosen = sequence_scores(token_scores, weights); // [2.0]
//! let rejected = Tensor::<1>::from_floats([0.5], &device);
//! let loss = segment_bt_loss(chosen, rejected, None).into_scalar::<f32>();
//! assert_close(&[f64::from(loss)], &[0.2014]);
//! ```
//!
//! # E5: rewards made comparable
//!
//! Section 2.3; [`normalizer`](crate::equations::normalizer).
//!
//! ```text
//! p_t = (t+1) / T,     Mean(p) = w_μ ln p + b_μ,     Std(p) = w_σ ln p + b_σ
//! r̂_t = (r_t - Mean(p_t)) / Std(p_t)
//! ```
//!
//! Now both responses stand for rollouts of the policy. With the fit that was released for Phi-3-mini:
//!
//! | | p | ln p | Mean(p) | Std(p) | r | r̂ |
//! | --- | --: | --: | --: | --: | --: | --: |
//! | `Yes ,` | 1/2 | -0.6931 | 0.7668 · -0.6931 + 0.4705 = -0.0610 | 0.2569 · -0.6931 + 2.8339 = 2.6558 | 1.0 | 0.3995 |
//! | `it is .` | 1 | 0 | 0.4705 | 2.8339 | 3.0 | 0.8926 |
//! | `No , never .` | 1 | 0 | 0.4705 | 2.8339 | 0.5 | 0.0104 |
//!
//! At p = 1 only b_μ and b_σ are left: for a response of one segment, the normalizer is the bandit's scalar one.
//!
//! ```
//! # fn assert_close(actual: &[f64], expected: &[f64]) {
//! #     assert_eq!(actual.len(), expected.len());
//! #     assert!(actual.iter().zip(expected).all(|(a, e)| (a - e).abs() < 2e-4), "{actual:?}");
//! # }
//! use segment_rlhf::equations::normalizer::Normalizer;
//!
//! let fit = Normalizer::LocationAware {
//!     w_mean: 0.7668,
//!     b_mean: 0.4705,
//!     w_std: 0.2569,
//!     b_std: 2.8339,
//!     std_floor: None,
//! };
//! assert_close(&[fit.mean(0.5), fit.std(0.5)], &[-0.0610, 2.6558]);
//! assert_close(&fit.normalize_all(&[1.0, 3.0]), &[0.3995, 0.8926]);
//! assert_close(&fit.normalize_all(&[0.5]), &[0.0104]);
//! ```
//!
//! # E6: from segments to tokens
//!
//! Section 2.3; [`interpolation::interpolate`](crate::equations::interpolation::interpolate).
//!
//! Each token of a segment gets r̂_t / |a_t|: 0.3995 / 2 = 0.1998 for `Yes` and `,`; 0.8926 / 3 = 0.2975 for `it`,
//! `is` and `.`; 0.0104 / 4 = 0.0026 in y_l. The end of sequence is in no segment and gets nothing.
//!
//! ```
//! # fn assert_close(actual: &[f64], expected: &[f64]) {
//! #     assert_eq!(actual.len(), expected.len());
//! #     assert!(actual.iter().zip(expected).all(|(a, e)| (a - e).abs() < 2e-4), "{actual:?}");
//! # }
//! use segment_rlhf::equations::interpolation::{Interpolation::EvenSplit, interpolate};
//!
//! let chosen = interpolate(EvenSplit, &[0.3995, 0.8926], &[0..2, 2..5], 6);
//! assert_close(&chosen, &[0.1998, 0.1998, 0.2975, 0.2975, 0.2975, 0.0]);
//! let rejected = interpolate(EvenSplit, &[0.0104], &[0..4], 5);
//! assert_close(&rejected, &[0.0026, 0.0026, 0.0026, 0.0026, 0.0]);
//! ```
//!
//! # E7: less what it costs to leave the reference
//!
//! Section 2.3; [`kl::token_rewards`](crate::equations::kl::token_rewards).
//!
//! ```text
//! r̃_i = clip(r̂_t / |a_t|, -10, 10) - β (ln π_θ(y_i|·) - ln π_SFT(y_i|·)),   β = 0.01
//! ```
//!
//! The reference gave each token 1/k. The policy agrees but for two tokens: it gave `it` ½ instead of ⅛, and `never` ⅛
//! instead of ¼. So `it` costs 0.01 · ln 4 = 0.0139 and earns 0.2975 - 0.0139 = 0.2837, and `never`, which became
//! rarer, earns 0.0026 + 0.01 · ln 2 = 0.0095.
//!
//! ```
//! # fn assert_close(actual: &[f64], expected: &[f64]) {
//! #     assert_eq!(actual.len(), expected.len());
//! #     assert!(actual.iter().zip(expected).all(|(a, e)| (a - e).abs() < 2e-4), "{actual:?}");
//! # }
//! use segment_rlhf::equations::kl::token_rewards;
//!
//! let chosen = token_rewards(
//!     &[0.1998, 0.1998, 0.2975, 0.2975, 0.2975, 0.0],
//!     &[-0.6931, 0.0, -0.6931, -1.3863, -0.6931, 0.0], // ln π_θ
//!     &[-0.6931, 0.0, -2.0794, -1.3863, -0.6931, 0.0], // ln π_SFT
//!     0.01,
//! );
//! assert_close(&chosen, &[0.1998, 0.1998, 0.2837, 0.2975, 0.2975, 0.0]);
//! let rejected = token_rewards(
//!     &[0.0026, 0.0026, 0.0026, 0.0026, 0.0],
//!     &[-0.6931, 0.0, -2.0794, -0.6931, 0.0],
//!     &[-0.6931, 0.0, -1.3863, -0.6931, 0.0],
//!     0.01,
//! );
//! assert_close(&rejected, &[0.0026, 0.0026, 0.0095, 0.0026, 0.0]);
//! ```
//!
//! # E8: advantages
//!
//! Section 2.3; [`gae::gae`](crate::equations::gae::gae) and [`gae::whiten`](crate::equations::gae::whiten).
//!
//! ```text
//! δ_i = r̃_i + γ V_{i+1} - V_i,     A_i = δ_i + γλ A_{i+1},     R_i = A_i + V_i
//! γ = 1, λ = 0.95
//! ```
//!
//! A critic that expects 0.5 everywhere makes δ_i = r̃_i, but for the last token, after which V is 0: its δ is
//! 0 + 0 - 0.5. From there backwards: A_5 = -0.5, A_4 = 0.2975 - 0.95 · 0.5 = -0.1775,
//! A_3 = 0.2975 - 0.95 · 0.1775 = 0.1289, and so on. R is taken now. Then all eleven advantages of the batch together
//! are shifted by their mean, -0.0926, and divided by their standard deviation, 0.4547.
//!
//! ```
//! # fn assert_close(actual: &[f64], expected: &[f64]) {
//! #     assert_eq!(actual.len(), expected.len());
//! #     assert!(actual.iter().zip(expected).all(|(a, e)| (a - e).abs() < 5e-4), "{actual:?}");
//! # }
//! use segment_rlhf::equations::gae::{gae, whiten};
//!
//! let chosen = gae(&[0.1998, 0.1998, 0.2837, 0.2975, 0.2975, 0.0], &[0.5; 6], 1.0, 0.95);
//! assert_close(&chosen.advantages, &[0.7561, 0.5856, 0.4062, 0.1289, -0.1775, -0.5]);
//! assert_close(&chosen.returns, &[1.2561, 1.0856, 0.9062, 0.6289, 0.3225, 0.0]);
//! let rejected = gae(&[0.0026, 0.0026, 0.0095, 0.0026, 0.0], &[0.5; 5], 1.0, 0.95);
//! assert_close(&rejected.advantages, &[-0.3913, -0.4147, -0.4392, -0.4724, -0.5]);
//! assert_close(&rejected.returns, &[0.1087, 0.0853, 0.0608, 0.0276, 0.0]);
//!
//! let mut whitened = [chosen.advantages, rejected.advantages];
//! whiten(&mut whitened);
//! assert_close(&whitened[0], &[1.8663, 1.4914, 1.0968, 0.4871, -0.1867, -0.8960]);
//! assert_close(&whitened[1], &[-0.6570, -0.7083, -0.7624, -0.8353, -0.8960]);
//! ```
//!
//! # E9: what the policy learns from
//!
//! Section 2.3; [`ppo::policy_loss`](crate::equations::ppo::policy_loss).
//!
//! ```text
//! -min(ρ A, clip(ρ, 0.8, 1.2) A),      ρ = π_θ(y_i|·) / π_old(y_i|·)
//! ```
//!
//! Say an earlier step moved the policy since the rollout: ln π_θ of `Yes` from -0.6931 to -0.4, of `never` from
//! -2.0794 to -2.5. Then ρ = e^0.2931 = 1.3406 for `Yes`, e^-0.4206 = 0.6567 for `never`, and 1 for every other token.
//! Both have gone as far as the clip allows in the direction of their advantage, so they count with ρ = 1.2 and 0.8,
//! without a gradient: 1.2 · 1.8663 = 2.2395 and 0.8 · -0.7624 = -0.6099. The means over the tokens of each response are
//! 0.7054 and -0.7413, and the loss is -(0.7054 - 0.7413) / 2 = 0.0180.
//!
//! ```
//! # use burn::tensor::{Bool, Device, Tensor};
//! # let device = Device::flex();
//! # fn assert_close(actual: &[f64], expected: &[f64]) {
//! #     assert_eq!(actual.len(), expected.len());
//! #     assert!(actual.iter().zip(expected).all(|(a, e)| (a - e).abs() < 2e-4), "{actual:?}");
//! # }
//! use segment_rlhf::equations::ppo::policy_loss;
//!
//! let rows = |rows: [[f32; 6]; 2]| Tensor::<2>::from_floats(rows, &device); // [B, T]
//! let old = [
//!     [-0.6931, 0.0, -0.6931, -1.3863, -0.6931, 0.0],
//!     [-0.6931, 0.0, -2.0794, -0.6931, 0.0, 0.0], // one column of padding
//! ];
//! let mut new = old;
//! (new[0][0], new[1][2]) = (-0.4, -2.5);
//! let advantages = [
//!     [1.8663, 1.4914, 1.0968, 0.4871, -0.1867, -0.8960],
//!     [-0.6570, -0.7083, -0.7624, -0.8353, -0.8960, 0.0],
//! ];
//! let mask = [[true; 6], [true, true, true, true, true, false]];
//! let mask = Tensor::<2, Bool>::from_data(mask, &device);
//!
//! let policy = policy_loss(rows(new), rows(old), rows(advantages), mask, 0.2);
//! assert_close(&[f64::from(policy.loss.into_scalar::<f32>())], &[0.0180]);
//! // One token in six was clipped, and one in five: (1/6 + 1/5) / 2.
//! assert_close(&[f64::from(policy.clip_fraction.into_scalar::<f32>())], &[0.1833]);
//! ```
//!
//! # E10: what the critic learns from
//!
//! Section 2.3; [`ppo::value_loss`](crate::equations::ppo::value_loss).
//!
//! ```text
//! ½ max((V - R)², (V_old + clip(V - V_old, -0.25, 0.25) - R)²)
//! ```
//!
//! The critic has moved too, at `Yes` alone: from 0.5 to 0.9. The clip lets it go to 0.75, where the error is the greater
//! of (0.9 - 1.2561)² = 0.1268 and (0.75 - 1.2561)² = 0.2561. Everywhere else it is (0.5 - R)². The means over the tokens of
//! each response are 0.1770 and 0.1982, and the loss is ½ (0.1770 + 0.1982) / 2 = 0.0938.
//!
//! ```
//! # use burn::tensor::{Bool, Device, Tensor};
//! # let device = Device::flex();
//! # fn assert_close(actual: &[f64], expected: &[f64]) {
//! #     assert_eq!(actual.len(), expected.len());
//! #     assert!(actual.iter().zip(expected).all(|(a, e)| (a - e).abs() < 2e-4), "{actual:?}");
//! # }
//! use segment_rlhf::equations::ppo::value_loss;
//!
//! let rows = |rows: [[f32; 6]; 2]| Tensor::<2>::from_floats(rows, &device); // [B, T]
//! let old = [[0.5; 6]; 2];
//! let mut values = old;
//! values[0][0] = 0.9;
//! let returns = [
//!     [1.2561, 1.0856, 0.9062, 0.6289, 0.3225, 0.0],
//!     [0.1087, 0.0853, 0.0608, 0.0276, 0.0, 0.0],
//! ];
//! let mask = [[true; 6], [true, true, true, true, true, false]];
//! let mask = Tensor::<2, Bool>::from_data(mask, &device);
//!
//! let loss = value_loss(rows(values), rows(old), rows(returns), mask, 0.25);
//! assert_close(&[f64::from(loss.into_scalar::<f32>())], &[0.0938]);
//! ```
//!
//! # The whole chain
//!
//! The same pair without rounding in between, from entropies and token scores to the three losses. The stages do this
//! with models in place of the given numbers: [`stage::reward`](crate::stage::reward) E1 to E4,
//! [`stage::fit_normalizer`](crate::stage::fit_normalizer) the fit of E5, [`stage::rollout`](crate::stage::rollout) E1, E2 and
//! E5 to E8, [`stage::policy`](crate::stage::policy) E9 and E10.
//!
//! ```
//! # use burn::tensor::{Bool, Device, Tensor, TensorData};
//! # let device = Device::flex();
//! # fn assert_close(actual: &[f64], expected: &[f64]) {
//! #     assert_eq!(actual.len(), expected.len());
//! #     assert!(actual.iter().zip(expected).all(|(a, e)| (a - e).abs() < 1e-4), "{actual:?}");
//! # }
//! use segment_rlhf::equations::bt_loss::segment_bt_loss;
//! use segment_rlhf::equations::gae::{gae, whiten};
//! use segment_rlhf::equations::interpolation::{Interpolation, interpolate};
//! use segment_rlhf::equations::kl::token_rewards;
//! use segment_rlhf::equations::normalizer::Normalizer;
//! use segment_rlhf::equations::ppo::{policy_loss, value_loss};
//! use segment_rlhf::equations::segment_reward::{Aggregation, aggregate, segment_rewards};
//! use segment_rlhf::equations::segmentation::{Rule, EosPolicy, ResponseView, segments};
//!
//! // Of each token: k, the reward model's score, and π_θ / π_SFT.
//! let pair: [(&[f32], &[f32], &[f64]); 2] = [
//!     (
//!         &[2.0, 1.0, 8.0, 4.0, 2.0, 1.0],
//!         &[0.2, 1.0, 0.4, 0.9, 3.0, 0.7],
//!         &[1.0, 1.0, 4.0, 1.0, 1.0, 1.0],
//!     ),
//!     (&[2.0, 1.0, 4.0, 2.0, 1.0], &[-0.1, 0.3, -0.8, 0.5, 0.0], &[1.0, 1.0, 0.5, 1.0, 1.0]),
//! ];
//! let (w_mean, b_mean, w_std, b_std) = (0.7668, 0.4705, 0.2569, 2.8339);
//! let fit = Normalizer::LocationAware { w_mean, b_mean, w_std, b_std, std_floor: None };
//! let (mut scores, mut old) = (vec![], vec![]);
//! let (mut advantages, mut returns) = (vec![], vec![]);
//! for (k, token_scores, moved) in pair {
//!     let n = k.len();
//!     let entropies: &Vec<f32> = &k.iter().map(|k| k.ln()).collect();
//!     let sentence_ends = &vec![false; n];
//!     let response = ResponseView { entropies, sentence_ends, ends_with_eos: true };
//!     let actions = Rule::Entropy { cutoff: 1.75 };
//!     let segments = segments(actions, EosPolicy::AsPublished, response).unwrap(); // E1
//!     let rewards = segment_rewards(token_scores, &segments); // E2
//!     scores.push(aggregate(&rewards, Aggregation::Average)); // E3
//!     let normalized = fit.normalize_all(&rewards); // E5
//!     let split = interpolate(Interpolation::EvenSplit, &normalized, &segments, n); // E6
//!     let reference: Vec<f64> = k.iter().map(|&k| -f64::from(k).ln()).collect();
//!     let policy: Vec<f64> = reference.iter().zip(moved).map(|(q, m)| q + m.ln()).collect();
//!     let rewards = token_rewards(&split, &policy, &reference, 0.01); // E7
//!     let estimate = gae(&rewards, &vec![0.5; n], 1.0, 0.95); // E8
//!     old.push(policy);
//!     advantages.push(estimate.advantages);
//!     returns.push(estimate.returns);
//! }
//! whiten(&mut advantages);
//!
//! let vector = |x: f64| Tensor::<1>::from_floats([x], &device);
//! let rows = |rows: &[Vec<f64>]| {
//!     let pad = |row: &Vec<f64>| [&row[..], &vec![0.0; 6 - row.len()]].concat();
//!     let values: Vec<f64> = rows.iter().flat_map(pad).collect();
//!     Tensor::<2>::from_data(TensorData::new(values, [2, 6]), &device) // [B, T]
//! };
//! let mask = [[true; 6], [true, true, true, true, true, false]];
//! let mask = Tensor::<2, Bool>::from_data(mask, &device);
//! let mut new = old.clone();
//! (new[0][0], new[1][2]) = (-0.4, -2.5);
//! let old_values = vec![vec![0.5; 6], vec![0.5; 5]];
//! let mut values = old_values.clone();
//! values[0][0] = 0.9;
//!
//! let losses = [
//!     segment_bt_loss(vector(scores[0]), vector(scores[1]), None), // E4
//!     policy_loss(rows(&new), rows(&old), rows(&advantages), mask.clone(), 0.2).loss, // E9
//!     value_loss(rows(&values), rows(&old_values), rows(&returns), mask, 0.25), // E10
//! ];
//! let losses = losses.map(|loss| f64::from(loss.into_scalar::<f32>()));
//! assert_close(&losses, &[0.2014, 0.0180, 0.0938]);
//! ```
