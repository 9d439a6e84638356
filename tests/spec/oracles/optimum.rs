//! E7 to E9: PPO with the KL term ends at the optimum that is known in closed form.
//!
//! ```text
//! max_π E_π[r(y)] - β KL(π, π_SFT)     is at     π*(y) ∝ π_SFT(y) exp(r(y) / β)
//! ```

use segment_rlhf::equations::gae::gae;
use segment_rlhf::equations::kl::token_rewards;

use super::tabular::{Policy, Rollout};
use crate::tolerance;

/// π* of responses, from π_SFT and r of each.
fn optimum(reference: &[f64], rewards: &[f64], beta: f64) -> Vec<f64> {
    let tilted = reference.iter().zip(rewards).map(|(p, reward)| p * (reward / beta).exp());
    let total: f64 = tilted.clone().sum();
    tilted.map(|weight| weight / total).collect()
}

fn total_variation(p: &[f64], q: &[f64]) -> f64 {
    0.5 * p.iter().zip(q).map(|(p, q)| (p - q).abs()).sum::<f64>()
}

/// A policy of these probabilities, one row a state.
fn policy_of(probabilities: &[&[f64]]) -> Policy {
    Policy(probabilities.iter().map(|row| row.iter().map(|p| p.ln()).collect()).collect())
}

/// A bandit: π_SFT of five responses, each one token, and r of each.
const REFERENCE: [f64; 5] = [0.4, 0.3, 0.15, 0.1, 0.05];
const REWARDS: [f64; 5] = [0.0, 1.0, -1.0, 2.0, 0.5];

/// Where PPO gets to from π_SFT.
fn trained_bandit(beta: f64) -> Vec<f64> {
    let reference = policy_of(&[&REFERENCE]);
    let mut policy = reference.clone();
    policy.train(300, 0.5, |policy, draws| {
        let action = policy.draw(0, draws);
        let choices = vec![Some((0, action))];
        let rewards = token_rewards(
            &[REWARDS[action]],
            &policy.log_probs(&choices),
            &reference.log_probs(&choices),
            beta,
        );
        Rollout { choices, advantages: gae(&rewards, &[0.0], 1.0, 0.95).advantages }
    });
    (0..5).map(|action| policy.log_prob(0, action).exp()).collect()
}

#[test]
fn ppo_finds_the_optimum_of_reward_less_kl_and_the_other_one_where_beta_doubles() {
    let betas = [0.5, 1.0];
    let optima = betas.map(|beta| optimum(&REFERENCE, &REWARDS, beta));
    assert!(total_variation(&optima[0], &optima[1]) > 0.2, "optima that can be told apart");
    for (beta, optimum) in betas.into_iter().zip(optima) {
        let policy = trained_bandit(beta);
        let off = total_variation(&policy, &optimum);
        assert!(off < tolerance::OPTIMUM, "β = {beta}: {policy:.3?}, the optimum {optimum:.3?}");
    }
}

/// Responses of two tokens: π_SFT of the first, then of the second after each first one.
const REFERENCE_OF_TWO: [&[f64]; 4] =
    [&[0.5, 0.3, 0.2], &[0.6, 0.2, 0.2], &[0.1, 0.5, 0.4], &[0.3, 0.3, 0.4]];
/// r of the first and the second token together.
const REWARDS_OF_TWO: [[f64; 3]; 3] = [[0.0, 1.0, -1.0], [1.5, 0.0, 0.5], [-1.0, 0.5, 2.0]];
const BETA: f64 = 0.5;

/// V before the first token, and before the second after each first one: exact for this policy.
fn values(policy: &Policy, reference: &Policy) -> (f64, [f64; 3]) {
    let expected = |state: usize, to_come: &[f64; 3]| -> f64 {
        let term = |action: usize| {
            let log_prob = policy.log_prob(state, action);
            let kl = log_prob - reference.log_prob(state, action);
            log_prob.exp() * (to_come[action] - BETA * kl)
        };
        (0..3).map(term).sum()
    };
    let second = [0, 1, 2].map(|first| expected(1 + first, &REWARDS_OF_TWO[first]));
    (expected(0, &second), second)
}

/// The reward stands on the last token, the KL term on both; the optimum is that of whole responses.
#[test]
fn the_kl_of_each_token_adds_up_to_the_optimum_over_responses() {
    let reference = policy_of(&REFERENCE_OF_TWO);
    let mut policy = reference.clone();
    policy.train(300, 0.5, |policy, draws| {
        let first = policy.draw(0, draws);
        let second = policy.draw(1 + first, draws);
        let choices = vec![Some((0, first)), Some((1 + first, second))];
        let rewards = token_rewards(
            &[0.0, REWARDS_OF_TWO[first][second]],
            &policy.log_probs(&choices),
            &reference.log_probs(&choices),
            BETA,
        );
        let (before, after) = values(policy, &reference);
        let advantages = gae(&rewards, &[before, after[first]], 1.0, 0.95).advantages;
        Rollout { choices, advantages }
    });
    let over_responses = |policy: &Policy| -> Vec<f64> {
        let responses = (0..3).flat_map(|first| (0..3).map(move |second| (first, second)));
        let log_prob = |(i, j)| policy.log_prob(0, i) + policy.log_prob(1 + i, j);
        responses.map(|response| log_prob(response).exp()).collect()
    };
    let optimum = optimum(&over_responses(&reference), REWARDS_OF_TWO.as_flattened(), BETA);
    let policy = over_responses(&policy);
    let off = total_variation(&policy, &optimum);
    assert!(off < tolerance::OPTIMUM, "{policy:.3?}, the optimum {optimum:.3?}");
}
