//! LENS: the weighted sum of rewards. It is a number on the host: there is nothing to differentiate, to pad, or to try on
//! another device.

use proptest::prelude::*;
use segment_rlhf::equations::composite_reward::composite;
use segment_rlhf::equations::group_baseline::{over_mean, over_std};

use crate::support::assert_close;
use crate::tolerance;

// 1. Worked example

#[test]
fn a_response_earns_each_reward_by_its_weight() {
    // It keeps its form; half of what sentences can earn, a loss at the segments.
    assert_eq!(composite(&[(1.0, 1.0), (2.0, 0.5), (0.5, -3.0)]), 1.0 + 1.0 - 1.5);
    assert_eq!(composite(&[]), 0.0);
}

// 2. Goldens: none. The official code adds rewards of weight 1.

// 3. Identities and limits

#[test]
fn a_reward_of_weight_0_changes_nothing_even_as_nan() {
    for reward in [5.0, f64::NAN, f64::INFINITY] {
        assert_eq!(composite(&[(1.0, 0.3), (0.0, reward)]), composite(&[(1.0, 0.3)]));
    }
}

proptest! {
    #[test]
    fn with_one_weight_of_1_it_is_that_reward_to_the_bit(reward in -1e3..1e3f64) {
        prop_assert_eq!(composite(&[(0.0, 7.0), (1.0, reward), (0.0, -7.0)]), reward);
    }

    #[test]
    fn what_all_of_a_group_earn_changes_no_advantage(
        rewards in prop::collection::vec(-3.0..3.0f64, 2..8), weight in 0.1..3.0f64,
    ) {
        let both: Vec<f64> = rewards.iter().map(|&r| composite(&[(1.0, r), (weight, 1.0)])).collect();
        let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9);
        prop_assert!(close(&over_mean(&both), &over_mean(&rewards)));
    }

    #[test]
    fn one_reward_s_advantages_hardly_depend_on_its_weight(
        rewards in prop::collection::vec(-3.0..3.0f64, 4), weight in 1.0..5.0f64,
    ) {
        // But for the 1e-4 that is added to the standard deviation.
        let scaled: Vec<f64> = rewards.iter().map(|&r| composite(&[(weight, r)])).collect();
        let spread = rewards.iter().fold(0.0f64, |most, r| most.max((r - rewards[0]).abs()));
        prop_assume!(spread > 0.5);
        let pairs = over_std(&scaled).into_iter().zip(over_std(&rewards));
        prop_assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 2e-3));
    }
}

#[test]
fn granularities_that_disagree_leave_no_preference() {
    let group = [composite(&[(1.0, 1.0), (1.0, 0.0)]), composite(&[(1.0, 0.0), (1.0, 1.0)])];
    assert_close(&over_std(&group), &[0.0, 0.0], tolerance::HOST_F64);
}
