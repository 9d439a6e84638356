//! E1 to E9: labels of whole responses, and yet the credit at the tokens that earned it.
//!
//! A response is two segments, each the choice of one of two arms, an arm a run of tokens of which only
//! the first could have been another. The better arm is the first one in the first segment and the second
//! one in the second. Judges see the average of both utilities and nothing else.

use std::ops::Range;
use std::sync::LazyLock;

use segment_rlhf::equations::gae::gae;
use segment_rlhf::equations::interpolation::{Interpolation, interpolate};
use segment_rlhf::equations::kl::token_rewards;
use segment_rlhf::equations::normalizer::{Normalizer, Regression, location, location_statistics};
use segment_rlhf::equations::segment_reward::{Aggregation, aggregate};
use segment_rlhf::equations::segmentation::{EosPolicy, ResponseView, Rule, segments};

use super::bradley_terry::{Response, fitted_utilities, preference};
use super::tabular::{Choice, Policy, Rollout};
use crate::support::assert_close;
use crate::tolerance;

/// What each arm of each segment is worth.
const UTILITIES: [[f64; 2]; 2] = [[1.5, -1.5], [-1.0, 1.0]];
/// The better arm of each segment.
const BETTER: [usize; 2] = [0, 1];
/// The tokens of each arm.
const TOKENS: [usize; 2] = [3, 2];
/// The responses there are, by their arms.
const ALL: [[usize; 2]; 4] = [[0, 0], [0, 1], [1, 0], [1, 1]];

/// The response as the reward model sees it: an arm of a segment is a type of its own.
fn typed(arms: [usize; 2]) -> Response {
    (0..2).map(|t| (2 * t + arms[t], TOKENS[arms[t]])).collect()
}

/// The segment rewards of a model that was trained on 400 judgements of each pair of responses, divided as
/// Bradley and Terry say: `[segment][arm]`.
static LEARNED: LazyLock<[[f64; 2]; 2]> = LazyLock::new(|| {
    const JUDGEMENTS: f64 = 400.0;
    let score = |arms: [usize; 2]| (UTILITIES[0][arms[0]] + UTILITIES[1][arms[1]]) / 2.0;
    let ordered = ALL.iter().flat_map(|&a| ALL.map(|b| (a, b))).filter(|(a, b)| a != b);
    let pairs: Vec<_> = ordered
        .flat_map(|(a, b)| {
            let votes = (JUDGEMENTS * preference(score(a), score(b))).round() as usize;
            vec![[typed(a), typed(b)]; votes]
        })
        .collect();
    let fitted = fitted_utilities(4, &pairs);
    [[fitted[0], fitted[1]], [fitted[2], fitted[3]]]
});

/// What is taken from one segment and given to the other changes no score and no label, so a reward model
/// may have learned any such shift: here a large one.
const SHIFT: f64 = 5.0;

fn rewards(arms: [usize; 2]) -> [f64; 2] {
    [LEARNED[0][arms[0]] - SHIFT, LEARNED[1][arms[1]] + SHIFT]
}

/// E5, calibrated on one response of each kind: the mean of each location takes the shift out.
fn normalizer() -> Normalizer {
    let points = ALL.iter().flat_map(|&arms| {
        rewards(arms).into_iter().enumerate().map(|(t, reward)| (location(t, 2), reward))
    });
    let stats = location_statistics(points);
    Normalizer::fit_location_aware(&stats, Regression::LeastSquares, 0.5, None).unwrap()
}

/// How the tokens were chosen: only the first of an arm could have been another.
fn choices(arms: [usize; 2]) -> Vec<Choice> {
    let of_segment = |t: usize| {
        let first = std::iter::once(Some((t, arms[t])));
        first.chain(std::iter::repeat_n(None, TOKENS[arms[t]] - 1))
    };
    (0..2).flat_map(of_segment).collect()
}

/// E1: π_SFT is unsure between two arms, and sure of every other token.
fn cut(actions: Rule, choices: &[Choice]) -> Vec<Range<usize>> {
    let entropies: Vec<f32> =
        choices.iter().map(|choice| if choice.is_some() { 2f32.ln() } else { 0.0 }).collect();
    let sentence_ends = vec![false; choices.len()];
    let response =
        ResponseView { entropies: &entropies, sentence_ends: &sentence_ends, ends_with_eos: false };
    segments(actions, EosPolicy::AsPublished, response).unwrap()
}

const SEGMENT: Rule = Rule::Entropy { cutoff: 0.5 };

/// E5 and E6: the rewards of the tokens of a response.
fn segment_rewards_of_tokens(arms: [usize; 2]) -> Vec<f64> {
    let choices = choices(arms);
    let normalized = normalizer().normalize_all(&rewards(arms));
    interpolate(Interpolation::EvenSplit, &normalized, &cut(SEGMENT, &choices), choices.len())
}

#[test]
fn labels_of_whole_responses_order_and_space_the_arms_of_each_segment() {
    let gaps = |rewards: &[[f64; 2]; 2]| [0, 1].map(|t: usize| rewards[t][0] - rewards[t][1]);
    assert_close(&gaps(&LEARNED), &gaps(&UTILITIES), tolerance::ROUNDED_VOTES);
}

/// The better arm first and the worse one second, and the other way round: at λ = 0 and without a critic
/// an advantage is what the token itself earned; at λ = 1 it is all that is still to come.
#[test]
fn tokens_of_the_better_arm_gain_and_of_the_worse_lose_where_the_bandit_treats_all_alike() {
    for better in [0, 1] {
        let arms = [0, 1].map(|t| if t == better { BETTER[t] } else { 1 - BETTER[t] });
        let choices = choices(arms);
        let values = vec![0.0; choices.len()];
        let dense = gae(&segment_rewards_of_tokens(arms), &values, 1.0, 0.0).advantages;
        for (t, segment) in cut(SEGMENT, &choices).into_iter().enumerate() {
            assert_eq!(segment.len(), TOKENS[arms[t]]);
            assert!(dense[segment].iter().all(|a| (*a > 0.0) == (t == better)), "{dense:?}");
        }
        // The bandit's one reward, at the end.
        let score = aggregate(&rewards(arms), Aggregation::Average);
        let bandit = cut(Rule::Whole, &choices);
        let sparse = interpolate(Interpolation::LastToken, &[score], &bandit, choices.len());
        let sparse = gae(&sparse, &values, 1.0, 1.0).advantages;
        assert_eq!(sparse, vec![score; choices.len()]);
    }
}

#[test]
fn ppo_on_the_learned_segment_rewards_chooses_the_better_arm_of_both_segments() {
    let mut policy = Policy(vec![vec![0.0; 2]; 2]);
    let reference = policy.clone();
    policy.train(40, 0.5, |policy, draws| {
        let arms = [0, 1].map(|t| policy.draw(t, draws));
        let choices = choices(arms);
        let rewards = token_rewards(
            &segment_rewards_of_tokens(arms),
            &policy.log_probs(&choices),
            &reference.log_probs(&choices),
            0.05,
        );
        let advantages = gae(&rewards, &vec![0.0; choices.len()], 1.0, 0.95).advantages;
        Rollout { choices, advantages }
    });
    for t in [0, 1] {
        let chance = policy.log_prob(t, BETTER[t]).exp();
        assert!(chance > 0.9, "{chance} in segment {t}");
    }
}
