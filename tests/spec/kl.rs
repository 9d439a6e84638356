//! E7: token rewards and the KL penalty.

use proptest::prelude::*;
use segment_rlhf::equations::kl::{AdaptiveKl, REWARD_CLIP, k1, k3, token_rewards};
use serde::Deserialize;

use crate::goldens::cases;
use crate::support::assert_close;
use crate::tolerance;

// 1. Worked example

#[test]
fn a_token_earns_its_clipped_reward_less_beta_times_its_log_ratio() {
    let rewards = token_rewards(&[1.5, -30.0], &[-1.0, -2.0], &[-3.0, -1.0], 0.1);
    // 1.5 - 0.1 · 2 and -10 + 0.1 · 1.
    assert_close(&rewards, &[1.3, -9.9], tolerance::HOST_F64);
}

#[test]
fn at_half_the_reference_s_probability_k1_is_minus_ln_2_and_k3_what_it_lacks_to_one() {
    let (policy, reference) = (0.25f64.ln(), 0.5f64.ln());
    assert_close(&[k1(policy, reference)], &[-2f64.ln()], tolerance::HOST_F64);
    assert_close(&[k3(policy, reference)], &[1.0 - 2f64.ln()], tolerance::HOST_F64);
}

// 2. Goldens

#[derive(Deserialize)]
struct Case {
    token_rewards: Vec<Vec<f64>>,
    kl_coef: f64,
    log_probs: Vec<Vec<f64>>,
    ref_log_probs: Vec<Vec<f64>>,
    num_actions: Vec<usize>,
    rewards: Vec<Vec<f64>>,
    kl_k1: Vec<Vec<f64>>,
    kl_k3: Vec<Vec<f64>>,
}

#[test]
fn token_rewards_and_kl_estimates_are_the_official_code_s() {
    for case in cases::<Case>("kl_reward") {
        for (row, &n) in case.num_actions.iter().enumerate() {
            let (log_probs, ref_log_probs) =
                (&case.log_probs[row][..n], &case.ref_log_probs[row][..n]);
            let estimate = |k: fn(f64, f64) -> f64| -> Vec<f64> {
                log_probs.iter().zip(ref_log_probs).map(|(p, q)| k(*p, *q)).collect()
            };
            assert_close(&estimate(k1), &case.kl_k1[row][..n], tolerance::CPU_F32);
            assert_close(&estimate(k3), &case.kl_k3[row][..n], tolerance::CPU_F32);
            let interpolated = &case.token_rewards[row][..n];
            let rewards = token_rewards(interpolated, log_probs, ref_log_probs, case.kl_coef);
            assert_close(&rewards, &case.rewards[row][..n], tolerance::CPU_F32);
        }
    }
}

#[derive(Deserialize)]
struct ControllerCase {
    init: f64,
    target: f64,
    horizon: f64,
    n_steps: usize,
    observed_kl_then_coef: Vec<(f64, f64)>,
}

#[test]
fn the_adaptive_controller_is_the_official_code_s() {
    for case in cases::<ControllerCase>("adaptive_kl") {
        let ControllerCase { init, target, horizon, .. } = case;
        let mut kl = AdaptiveKl { coefficient: init, target, horizon };
        for (observed, coefficient) in case.observed_kl_then_coef {
            kl.update(observed, case.n_steps);
            assert_close(&[kl.coefficient], &[coefficient], tolerance::HOST_F64);
        }
    }
}

// 3. Identities and limits

#[test]
fn the_clip_bounds_the_reward_and_not_the_kl_term() {
    let rewards = token_rewards(&[REWARD_CLIP + 1.0], &[-500.0], &[0.0], 1.0);
    assert_eq!(rewards, [REWARD_CLIP + 500.0]);
}

#[test]
fn a_policy_that_has_not_moved_pays_nothing() {
    assert_eq!(k1(-1.25, -1.25), 0.0);
    assert_eq!(k3(-1.25, -1.25), 0.0);
    assert_eq!(token_rewards(&[2.0], &[-1.25], &[-1.25], 0.01), [2.0]);
}

#[test]
fn a_policy_that_has_hardly_moved_has_a_positive_k3() {
    // Half the square of the log-ratio, where exp(x) - 1 - x would round to 0.
    for log_ratio in [2f64.powi(-30), -(2f64.powi(-30))] {
        assert!(k3(-1.25 + log_ratio, -1.25) > 0.0);
    }
}

#[test]
fn without_beta_the_reward_alone_is_left() {
    assert_eq!(token_rewards(&[2.0, 0.0], &[-1.0, -2.0], &[-5.0, -1.0], 0.0), [2.0, 0.0]);
}

#[test]
fn the_controller_rests_at_its_target_and_moves_by_a_fifth_at_most() {
    let start = AdaptiveKl { coefficient: 0.02, target: 6.0, horizon: 10_000.0 };
    let after = |observed| {
        let mut kl = start;
        kl.update(observed, 10_000);
        kl.coefficient
    };
    assert_eq!(after(6.0), 0.02);
    assert_close(&[after(1e9), after(0.0)], &[0.024, 0.016], tolerance::HOST_F64);
    let text = serde_json::to_string(&start).unwrap();
    assert_eq!(serde_json::from_str::<AdaptiveKl>(&text).unwrap(), start);
}

proptest! {
    #[test]
    fn k3_is_never_negative(log_prob in -20f64..0.0, ref_log_prob in -20f64..0.0) {
        prop_assert!(k3(log_prob, ref_log_prob) >= 0.0);
    }

    #[test]
    fn both_estimates_have_the_kl_as_their_mean(
        weights in proptest::collection::vec((0.01f64..1.0, 0.01f64..1.0), 2..8),
    ) {
        let total = |f: fn(&(f64, f64)) -> f64| weights.iter().map(f).sum::<f64>();
        let (p_total, q_total) = (total(|w| w.0), total(|w| w.1));
        let mean = |k: fn(f64, f64) -> f64| -> f64 {
            weights.iter().map(|(p, q)| (p / p_total, q / q_total)).map(|(p, q)| p * k(p.ln(), q.ln())).sum()
        };
        let kl: f64 = mean(|log_p, log_q| log_p - log_q);
        prop_assert!((mean(k1) - kl).abs() <= tolerance::HOST_F64);
        prop_assert!((mean(k3) - kl).abs() <= tolerance::HOST_F64);
    }
}

// 4. Gradients: none; rewards are constants of policy training.

// 5. Padding and batch size: a response at a time, without padding.

// 6. Errors

#[test]
#[should_panic(expected = "one log-probability a token")]
fn a_token_without_a_log_probability_is_refused() {
    token_rewards(&[1.0, 2.0], &[-1.0], &[-1.0, -1.0], 0.1);
}

#[test]
#[should_panic(expected = "one reference log-probability a token")]
fn a_token_without_a_reference_log_probability_is_refused() {
    token_rewards(&[1.0, 2.0], &[-1.0, -1.0], &[-1.0], 0.1);
}

// 7. Devices: none; rewards are f64 on the host.
