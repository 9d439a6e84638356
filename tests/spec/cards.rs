//! CARDS: where a segment ends, its threshold and acceptance, and the decisions of a whole response.

use proptest::prelude::*;
use segment_rlhf::equations::cards::{
    Decision, SegmentLimits, Threshold, Trial, acceptance, best, guided,
};
use segment_rlhf::equations::segmentation::entropy;
use serde::Deserialize;

use crate::goldens::cases;
use crate::support::{assert_close, devices, host, matrix, panic_of};
use crate::tolerance;

// 1. Worked example

#[test]
fn a_segment_ends_before_the_first_unsure_token_behind_the_least() {
    let limits = SegmentLimits { entropy: 3.0, least: 4, most: 6 };
    assert_eq!([3, 4].map(|tokens| limits.ends_before(tokens, 3.5)), [false, true]);
    assert_eq!([2.9, 3.0].map(|entropy| limits.ends_before(4, entropy)), [false, true]);
    assert_eq!([5, 6].map(|tokens| limits.is_full(tokens)), [false, true]);
}

#[test]
fn the_threshold_rises_to_the_target_with_the_response() {
    // Halfway from the prompt's 1 to 9 it starts, and 10 tokens on it is there.
    let threshold = Threshold::rising(1.0, 9.0, 0.5, 10);
    assert_eq!([0, 5, 10].map(|length| threshold.at(length)), [5.0, 7.0, 9.0]);
    assert_eq!(acceptance(6.0, threshold.at(5), 2.0), (-0.5f64).exp());
}

#[test]
fn too_many_rejections_take_the_first_of_the_best() {
    let mut trial = Trial::new(Threshold::flat(5.0), 1.0, 3);
    let decisions = [1.0, 4.0, 4.0].map(|reward| trial.decide(4, reward, 0.9));
    assert_eq!(decisions, [Decision::Reject; 3]);
    assert_eq!(trial.decide(4, 3.0, 0.0), Decision::Best(1));
}

// 2. Goldens: CARDS's own code

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Case {
    Entropy { logits: Vec<f64>, entropy: f64 },
    Run(Run),
}

#[derive(Deserialize)]
struct Run {
    entropy_threshold: f64,
    reward_threshold: f64,
    alpha: f64,
    beta: f64,
    max_new_tokens: usize,
    option: String,
    prompt_reward: f64,
    candidates: Vec<Candidate>,
    response_length: usize,
    lm_calls: usize,
    rm_calls: usize,
}

#[derive(Deserialize)]
struct Candidate {
    /// Of the response with it.
    length: usize,
    /// Those seen, from the segment's 5th decoding step on.
    entropies: Vec<f64>,
    reward: f64,
    threshold: Option<f64>,
    acceptance: Option<f64>,
    draw: Option<f64>,
    segment: usize,
    decision: String,
    /// The candidate taken, among those since the last decision that moved on.
    taken: Option<usize>,
}

#[test]
fn entropies_are_the_official_code_s() {
    let mut count = 0;
    for (device, tolerance) in devices() {
        for case in cases::<Case>("cards") {
            let Case::Entropy { logits, entropy: expected } = case else { continue };
            let logits = matrix(&[logits], &device, burn::tensor::DType::F32).unsqueeze::<3>();
            assert_close(&host(entropy(logits)), &[expected], tolerance);
            count += 1;
        }
    }
    assert!(count >= 4);
}

#[test]
fn decisions_and_calls_are_the_official_code_s() {
    let (mut runs, mut taken) = (0, 0);
    for case in cases::<Case>("cards") {
        let Case::Run(run) = case else { continue };
        runs += 1;
        let limits = SegmentLimits { entropy: run.entropy_threshold, least: 4, most: 64 };
        let (start, target) = (run.prompt_reward, run.reward_threshold);
        let threshold = Threshold::rising(start, target, run.alpha, run.max_new_tokens);
        // Their `hard` option is β = 0.
        let beta = if run.option == "hard" { 0.0 } else { run.beta };
        let trial = || Trial::new(threshold, beta, 20);
        let (mut own, mut written, mut calls, mut lengths) = (trial(), 0, 0, Vec::new());
        for candidate in &run.candidates {
            let mut entropies = candidate.entropies.iter();
            let ends = |&tokens: &usize| {
                let seen = tokens >= 4 && !limits.is_full(tokens);
                limits.is_full(tokens)
                    || seen && limits.ends_before(tokens, *entropies.next().unwrap())
            };
            let segment = (0..).find(ends).unwrap();
            assert_eq!(segment, candidate.segment);
            assert_eq!(entropies.len(), 0, "all entropies are looked at");
            calls += segment + usize::from(!limits.is_full(segment));
            let length = written + segment;
            assert_eq!(length, candidate.length);
            if let Some(expected) = candidate.threshold {
                assert_close(&[threshold.at(length)], &[expected], tolerance::HOST_F64);
            }
            if let Some(expected) = candidate.acceptance {
                let found = acceptance(candidate.reward, threshold.at(length), beta);
                assert_close(&[found / expected], &[1.0], tolerance::HOST_F64);
            }
            lengths.push(length);
            let expected = match candidate.decision.as_str() {
                "accept" => Decision::Accept,
                "reject" => Decision::Reject,
                _ => Decision::Best(candidate.taken.unwrap()),
            };
            let decision = own.decide(length, candidate.reward, candidate.draw.unwrap_or(0.5));
            assert_eq!(decision, expected);
            let number = match decision {
                Decision::Accept => lengths.len() - 1,
                Decision::Reject => continue,
                Decision::Best(number) => number,
            };
            taken += usize::from(number + 1 < lengths.len());
            written = lengths[number];
            (own, lengths) = (trial(), Vec::new());
        }
        // Theirs may overshoot the limit.
        assert!(written >= run.max_new_tokens);
        assert_eq!(
            (written, calls, run.candidates.len()),
            (run.response_length, run.lm_calls, run.rm_calls)
        );
    }
    assert!(runs >= 10 && taken > 0, "{runs} runs, {taken} of the best");
}

// 3. Identities and limits

#[test]
fn with_alpha_one_the_threshold_is_the_target_whatever_the_prompt_and_the_length() {
    for length in [0, 3, 12, 100] {
        let rising = Threshold::rising(-7.5, 2.5, 1.0, 12);
        assert_eq!((rising.at(length), Threshold::flat(2.5).at(length)), (2.5, 2.5));
    }
}

#[test]
fn a_prompt_above_the_target_asks_for_the_target_at_once() {
    let threshold = Threshold::rising(9.5, 8.5, 0.5, 20);
    assert!((0..=20).all(|length| threshold.at(length) == 8.5));
}

#[test]
fn at_beta_zero_a_candidate_is_accepted_from_the_threshold_on() {
    let found = [1.9, 2.0, 2.1].map(|reward| acceptance(reward, 2.0, 0.0));
    assert_eq!(found, [0.0, 1.0, 1.0]);
}

#[test]
fn without_rejections_the_first_candidate_is_taken_untested() {
    assert_eq!(Trial::new(Threshold::flat(9.0), 1.0, 0).decide(1, -9.0, 0.99), Decision::Best(0));
}

#[test]
fn no_reward_overflows_the_acceptance() {
    // exp(1e308 / 1e-3) alone is infinite.
    assert_eq!(acceptance(1e308, -1e308, 1e-3), 1.0);
    assert_eq!(acceptance(-1e308, 1e308, 1e-3), 0.0);
}

#[test]
fn a_guided_token_of_no_weight_is_the_most_likely_and_equals_give_the_first() {
    assert_eq!(guided(&[1.0, 3.0, 3.0], &[9.0, 0.0, 5.0], 0.0), 1);
    assert_eq!(guided(&[1.0, 3.0, 3.0], &[9.0, 0.0, 5.0], 0.5), 0); // 5.5, 3, 5.5
}

proptest! {
    #[test]
    fn the_threshold_never_falls_and_stays_between_start_and_target(
        prompt in -10.0..10.0, rise in 0.0..10.0, alpha in 0.0..1.0, longest in 1..200usize,
    ) {
        let threshold = Threshold::rising(prompt, prompt + rise, alpha, longest);
        let all: Vec<f64> = (0..2 * longest).map(|length| threshold.at(length)).collect();
        prop_assert!(all.is_sorted_by(|a, b| b - a >= -1e-12));
        prop_assert!(all.iter().all(|&at| (prompt - 1e-9..=prompt + rise).contains(&at)));
    }

    #[test]
    fn acceptance_is_a_probability_that_rises_with_the_reward(
        reward in -50.0..50.0, more in 0.0..10.0, threshold in -50.0..50.0, beta in 0.0..3.0,
    ) {
        let [less, more] = [reward, reward + more].map(|reward| acceptance(reward, threshold, beta));
        prop_assert!((0.0..=1.0).contains(&less) && (0.0..=1.0).contains(&more) && less <= more);
    }

    #[test]
    fn the_best_is_a_largest_and_none_before_it_is(
        rewards in prop::collection::vec(-3i32..3, 1..20),
    ) {
        let rewards: Vec<f64> = rewards.into_iter().map(f64::from).collect();
        let at = best(&rewards);
        prop_assert!(rewards[..at].iter().all(|&reward| reward < rewards[at]));
        prop_assert!(rewards[at..].iter().all(|&reward| reward <= rewards[at]));
    }
}

// 4. Nothing is differentiated.

// 5. One response at a time: there is no padding. Batches are in tests/pipeline/decode.rs.

// 6. Bad input

#[test]
fn what_makes_no_sense_is_refused() {
    let text = |result: Box<dyn std::any::Any + Send>| {
        result.downcast::<&str>().map(|text| text.to_string()).unwrap_or_default()
    };
    let refused = |f: fn() -> f64| text(std::panic::catch_unwind(f).unwrap_err());
    assert_eq!(refused(|| best(&[]) as f64), "the best of some");
    assert_eq!(refused(|| Threshold::rising(0.0, 1.0, 0.5, 0).at(0)), "a response has a token");
    assert!(panic_of(|| guided(&[1.0], &[], 1.0)).contains("a reward for each logit"));
}

// 7. Tensors: entropies above, on every device.
