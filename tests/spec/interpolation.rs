//! E6: within-segment interpolation, after E5.

use proptest::prelude::*;
use segment_rlhf::equations::interpolation::{Interpolation, interpolate};
use segment_rlhf::equations::normalizer::Normalizer;
use segment_rlhf::equations::segment_reward::segment_rewards;
use segment_rlhf::equations::segmentation::{EosPolicy, ResponseView, Rule, segments};
use serde::Deserialize;

use crate::goldens::{cases, ranges};
use crate::support::assert_close;
use crate::tolerance;

const ALL: [Interpolation; 3] =
    [Interpolation::EvenSplit, Interpolation::Repeat, Interpolation::LastToken];

// 1. Worked example

#[test]
fn every_token_gets_an_equal_share_of_its_segment_s_reward() {
    let split = interpolate(Interpolation::EvenSplit, &[3.0, -1.0], &[0..3, 3..5], 5);
    assert_eq!(split, [1.0, 1.0, 1.0, -0.5, -0.5]);
    assert_eq!(Interpolation::default(), Interpolation::EvenSplit);
}

#[test]
fn repeat_gives_every_token_all_of_it_and_none_the_last_token_alone() {
    let (rewards, segments) = ([3.0, -1.0], [0..3, 3..5]);
    let repeated = interpolate(Interpolation::Repeat, &rewards, &segments, 5);
    assert_eq!(repeated, [3.0, 3.0, 3.0, -1.0, -1.0]);
    let last = interpolate(Interpolation::LastToken, &rewards, &segments, 5);
    assert_eq!(last, [0.0, 0.0, 3.0, 0.0, -1.0]);
}

// 2. Goldens

#[derive(Deserialize)]
struct Fit {
    w_mean: f64,
    w_std: f64,
    b_mean: f64,
    b_std: f64,
}

#[derive(Deserialize)]
struct Case {
    strategy: Interpolation,
    normalizer: Fit,
    num_actions: Vec<usize>,
    segment_ends: Vec<Vec<usize>>,
    raw_reward_at_token: Vec<Vec<f32>>,
    token_rewards: Vec<Vec<f64>>,
}

#[test]
fn normalized_and_interpolated_rewards_are_the_official_code_s() {
    for case in cases::<Case>("interpolation") {
        let Fit { w_mean, w_std, b_mean, b_std } = case.normalizer;
        let fit = Normalizer::LocationAware { w_mean, b_mean, w_std, b_std, std_floor: None };
        for (row, &n) in case.num_actions.iter().enumerate() {
            let segments = ranges(&case.segment_ends[row]);
            let rewards = segment_rewards(&case.raw_reward_at_token[row], &segments);
            let ours = interpolate(case.strategy, &fit.normalize_all(&rewards), &segments, n);
            assert_close(&ours, &case.token_rewards[row][..n], tolerance::CPU_F32);
        }
    }
}

// 3. Identities and limits

#[test]
fn an_end_of_sequence_outside_every_segment_gets_nothing() {
    for strategy in ALL {
        assert_eq!(interpolate(strategy, &[3.0], &ranges(&[1]), 3)[2], 0.0);
    }
}

#[test]
fn the_bandit_s_reward_stands_at_its_end_of_sequence() {
    let response = ResponseView {
        entropies: &[0.1, 3.0, 0.2, 2.0],
        sentence_ends: &[false; 4],
        ends_with_eos: true,
    };
    let bandit = segments(Rule::Whole, EosPolicy::AsPublished, response).unwrap();
    let tokens = interpolate(Interpolation::LastToken, &[5.0], &bandit, 4);
    assert_eq!(tokens, [0.0, 0.0, 0.0, 5.0]);
}

#[test]
fn segments_of_one_token_make_the_strategies_equal() {
    let rewards = [1.0, -2.0, 3.0];
    for strategy in ALL {
        assert_eq!(interpolate(strategy, &rewards, &ranges(&[0, 1, 2]), 3), rewards);
    }
}

#[test]
fn the_strategies_are_read_from_settings_by_name_the_paper_s_none_too() {
    let read = |text| serde_json::from_str::<Interpolation>(text).unwrap();
    assert_eq!(read(r#""even_split""#), Interpolation::EvenSplit);
    assert_eq!(read(r#""repeat""#), Interpolation::Repeat);
    assert_eq!(read(r#""last_token""#), Interpolation::LastToken);
    assert_eq!(read(r#""none""#), Interpolation::LastToken);
}

proptest! {
    #[test]
    fn an_even_split_sums_back_to_the_segment_s_reward(
        parts in proptest::collection::vec((1usize..30, -20f64..20.0), 1..20), eos in any::<bool>(),
    ) {
        let mut end = 0;
        let ends: Vec<usize> = parts.iter().map(|(n, _)| { end += n; end - 1 }).collect();
        let (segments, rewards) = (ranges(&ends), parts.iter().map(|p| p.1).collect::<Vec<_>>());
        for strategy in [Interpolation::EvenSplit, Interpolation::LastToken] {
            let tokens = interpolate(strategy, &rewards, &segments, end + usize::from(eos));
            prop_assert!(tokens[end..].iter().all(|reward| *reward == 0.0));
            for (segment, reward) in segments.iter().zip(&rewards) {
                let sum: f64 = tokens[segment.clone()].iter().sum();
                prop_assert!((sum - reward).abs() <= 20.0 * tolerance::HOST_F64);
            }
        }
    }
}

// 4. Gradients: none; rewards are constants of policy training.

// 5. Padding and batch size: a response at a time, without padding.

// 6. Errors

#[test]
#[should_panic(expected = "one reward a segment")]
fn a_segment_without_a_reward_is_refused() {
    interpolate(Interpolation::EvenSplit, &[1.0], &[0..1, 1..2], 2);
}

#[test]
#[should_panic(expected = "range end index 3 out of range for slice of length 2")]
fn a_segment_past_the_response_is_refused() {
    interpolate(Interpolation::EvenSplit, &[1.0], &[0..3], 2);
}

// 7. Devices: none; rewards are f64 on the host.
