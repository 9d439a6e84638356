//! E1: segmentation by the reference model's entropy.

use std::ops::Range;

use burn::tensor::{DType, Device, Tensor, TensorData};
use proptest::prelude::*;
use segment_rlhf::equations::segmentation::{
    EosPolicy, ResponseView, Rule, SegmentationError, entropy, segments,
};
use serde::Deserialize;

use crate::goldens::{cases, ranges};
use crate::support::{assert_close, devices, host, with_nan_padding};
use crate::tolerance;

const CUT: Rule = Rule::Entropy { cutoff: 1.75 };

/// The segments of a response that ends with EOS, or not.
fn cut(
    actions: Rule,
    eos: EosPolicy,
    entropies: &[f32],
    ends_with_eos: bool,
) -> Result<Vec<Range<usize>>, SegmentationError> {
    let sentence_ends = vec![false; entropies.len()];
    segments(actions, eos, ResponseView { entropies, sentence_ends: &sentence_ends, ends_with_eos })
}

fn logits(rows: &[Vec<f32>], device: &Device) -> Tensor<3> {
    let data = TensorData::new(rows.concat(), [1, rows.len(), rows[0].len()]);
    Tensor::from_data(data, (device, DType::F32))
}

// 1. Worked example

#[test]
fn a_half_and_two_quarters_are_one_and_a_half_bits_of_entropy() {
    for (device, tolerance) in devices() {
        // Logits are logarithms up to a constant, here 5.
        let row = [0.5f32, 0.25, 0.25].map(|p| p.ln() + 5.0).to_vec();
        let actual = host(entropy(logits(&[row], &device)));
        assert_close(&actual, &[1.5 * 2f64.ln()], tolerance);
    }
}

#[test]
fn a_token_of_entropy_above_the_cutoff_starts_a_segment() {
    let entropies = [0.1, 2.0, 0.1, 0.1, 1.8, 0.2];
    assert_eq!(cut(CUT, EosPolicy::AsPublished, &entropies, false).unwrap(), [0..1, 1..4, 4..6]);
}

#[test]
fn an_entropy_equal_to_the_cutoff_starts_no_segment() {
    assert_eq!(cut(CUT, EosPolicy::AsPublished, &[0.0, 1.75, 0.0], false).unwrap(), [0..3]);
}

#[test]
fn the_first_token_starts_a_segment_whatever_its_entropy() {
    for first in [0.0, 1.75, 9.0] {
        assert_eq!(cut(CUT, EosPolicy::Included, &[first, 0.0], false).unwrap(), [0..2]);
    }
}

#[test]
fn a_sentence_is_an_action_that_ends_with_its_last_token() {
    let view = |sentence_ends, ends_with_eos| ResponseView {
        entropies: &[9.0; 5],
        sentence_ends,
        ends_with_eos,
    };
    let cut = |ends, eos| segments(Rule::Sentence, eos, view(ends, true)).unwrap();
    let ends = &[false, true, false, true, false];
    assert_eq!(cut(ends, EosPolicy::AsPublished), [0..2, 2..4]);
    assert_eq!(cut(ends, EosPolicy::Included), [0..2, 2..4, 4..5]);
}

// 2. Goldens

#[derive(Deserialize)]
struct EntropyCase {
    logits: Vec<Vec<f32>>,
    entropy: Vec<f64>,
    log_probs: Vec<Vec<f64>>,
}

#[test]
fn entropy_is_the_official_code_s() {
    for (device, tolerance) in devices() {
        for case in cases::<EntropyCase>("entropy") {
            let actual = host(entropy(logits(&case.logits, &device)));
            assert_close(&actual, &case.entropy, tolerance);
            let from_log_probs: Vec<f64> = case
                .log_probs
                .iter()
                .map(|row| -row.iter().map(|log_p| log_p.exp() * log_p).sum::<f64>())
                .collect();
            assert_close(&actual, &from_log_probs, tolerance);
        }
    }
}

#[derive(Deserialize)]
struct PpoCase {
    threshold: f64,
    entropy: Vec<Vec<f32>>,
    num_actions: Vec<usize>,
    segment_ends: Vec<Vec<i64>>,
}

/// The official sentinels: 0 stands for token level, 1000 for the bandit.
fn actions_of(threshold: f64) -> Rule {
    match threshold {
        0.0 => Rule::Token,
        1000.0 => Rule::Whole,
        entropy_cutoff => Rule::Entropy { cutoff: entropy_cutoff },
    }
}

/// Our entropies of a response: the official code reads entropy j after token j, so it is our j + 1.
fn shifted(entropy_after: &[f32]) -> Vec<f32> {
    [&[0.0], &entropy_after[..entropy_after.len() - 1]].concat()
}

#[test]
fn policy_training_segments_are_the_official_code_s_and_its_end_of_minus_one_is_an_error() {
    let (mut equal, mut refused) = (0, 0);
    for case in cases::<PpoCase>("segmentation_ppo") {
        let actions = actions_of(case.threshold);
        for ((entropy, &n), ends) in
            case.entropy.iter().zip(&case.num_actions).zip(&case.segment_ends)
        {
            let ours = cut(actions, EosPolicy::AsPublished, &shifted(&entropy[..n]), true);
            // EOS alone: the official code gives the end -1, or an end on the EOS that it leaves out
            // everywhere else (deviation D6).
            if n == 1 && actions != Rule::Whole {
                assert_eq!(ours, Err(SegmentationError::Empty { tokens: 1 }));
                refused += 1;
                continue;
            }
            let ends: Vec<usize> = ends.iter().map(|&end| usize::try_from(end).unwrap()).collect();
            assert_eq!(ours.unwrap(), ranges(&ends), "threshold {}", case.threshold);
            equal += 1;
        }
    }
    assert!(equal > 0 && refused > 0, "{equal} equal, {refused} refused");
}

#[derive(Deserialize)]
struct RewardModelCase {
    threshold: f64,
    entropy: Vec<Vec<f32>>,
    response_start: Vec<usize>,
    segment_ends: Vec<Vec<usize>>,
}

#[test]
fn reward_training_segments_are_the_same_rule_at_absolute_positions() {
    for case in cases::<RewardModelCase>("segmentation_rm") {
        for ((entropy, &start), ends) in
            case.entropy.iter().zip(&case.response_start).zip(&case.segment_ends)
        {
            let ends: Vec<usize> = ends.iter().map(|end| end - start).collect();
            let actions = actions_of(case.threshold);
            let ours = cut(actions, EosPolicy::AsPublished, &shifted(&entropy[start..]), true);
            assert_eq!(ours.unwrap(), ranges(&ends), "threshold {}", case.threshold);
        }
    }
}

// 3. Identities and limits

#[test]
fn entropy_runs_from_zero_when_certain_to_ln_v_when_uniform() {
    for (device, tolerance) in devices() {
        let rows = [vec![2.0; 8], [vec![0.0; 7], vec![200.0]].concat()];
        let actual = host(entropy(logits(&rows, &device)));
        assert_close(&actual, &[8f64.ln(), 0.0], tolerance);
    }
}

#[test]
fn entropy_is_computed_in_f32_even_of_half_precision_logits() {
    let h = entropy(Tensor::<3>::zeros([1, 1, 7], (&Device::flex(), DType::F16)));
    assert_eq!(h.dtype(), DType::F32);
    assert_close(&host(h), &[7f64.ln()], tolerance::CPU_F32);
}

#[test]
fn cutoff_zero_is_token_level_where_every_token_is_uncertain() {
    let entropies = [0.3, 0.2, 0.1, 0.4];
    let zero = Rule::Entropy { cutoff: 0.0 };
    assert_eq!(
        cut(zero, EosPolicy::AsPublished, &entropies, true),
        cut(Rule::Token, EosPolicy::AsPublished, &entropies, true)
    );
}

#[test]
fn an_infinite_cutoff_is_the_bandit_with_one_segment() {
    let entropies = [0.3, 9.0, 0.1, 4.0];
    let infinite = Rule::Entropy { cutoff: f64::INFINITY };
    for eos in [EosPolicy::Included, EosPolicy::Excluded] {
        assert_eq!(cut(infinite, eos, &entropies, true), cut(Rule::Whole, eos, &entropies, true));
    }
}

#[test]
fn as_published_the_bandit_alone_keeps_the_end_of_sequence() {
    let entropies = [0.1, 2.0, 0.1, 3.0];
    let published = |actions| cut(actions, EosPolicy::AsPublished, &entropies, true).unwrap();
    assert_eq!(published(Rule::Whole), [0..4]);
    assert_eq!(published(Rule::Sentence), [0..3]);
    assert_eq!(published(Rule::Token), [0..1, 1..2, 2..3]);
    assert_eq!(published(CUT), [0..1, 1..3]);
}

#[test]
fn the_end_of_sequence_is_an_action_or_in_none_as_the_setting_says() {
    let entropies = [0.1, 2.0, 0.1, 3.0];
    assert_eq!(cut(CUT, EosPolicy::Included, &entropies, true).unwrap(), [0..1, 1..3, 3..4]);
    assert_eq!(cut(CUT, EosPolicy::Excluded, &entropies, true).unwrap(), [0..1, 1..3]);
    assert_eq!(cut(Rule::Whole, EosPolicy::Excluded, &entropies, true).unwrap(), [0..3]);
}

#[test]
fn a_response_cut_at_the_limit_keeps_all_its_tokens() {
    for eos in [EosPolicy::AsPublished, EosPolicy::Included, EosPolicy::Excluded] {
        for actions in [Rule::Whole, Rule::Sentence, CUT] {
            assert_eq!(cut(actions, eos, &[0.1, 0.2, 0.3], false).unwrap(), [0..3]);
        }
    }
}

#[test]
fn actions_are_read_from_settings_and_unknown_fields_refused() {
    let read = serde_json::from_str::<Rule>;
    assert_eq!(read(r#""bandit""#).unwrap(), Rule::Whole);
    assert_eq!(read(r#"{"segment": {"entropy_cutoff": 1.75}}"#).unwrap(), CUT);
    assert!(read(r#"{"segment": {"entropy_cutoff": 1.75, "cutoff": 2}}"#).is_err());
    assert!(read("1000").is_err());
    let eos = serde_json::from_str::<EosPolicy>(r#""as_published""#).unwrap();
    assert_eq!(eos, EosPolicy::default());
}

#[test]
fn an_infinite_cutoff_is_written_as_text_since_json_has_no_number_for_it() {
    for entropy_cutoff in [0.0, 1.75, f64::INFINITY] {
        let actions = Rule::Entropy { cutoff: entropy_cutoff };
        let text = serde_json::to_string(&actions).unwrap();
        assert_eq!(serde_json::from_str::<Rule>(&text).unwrap(), actions, "{text}");
    }
    let read = serde_json::from_str::<Rule>;
    let error = read(r#"{"segment": {"entropy_cutoff": "high"}}"#).unwrap_err();
    assert!(error.to_string().contains("cutoff \"high\": expected nats, or \"inf\""), "{error}");
    assert!(read(r#"{"segment": {"entropy_cutoff": null}}"#).is_err());
}

fn response() -> impl Strategy<Value = (Vec<f32>, Vec<bool>, bool)> {
    (1usize..60).prop_flat_map(|n| {
        (
            proptest::collection::vec(0f32..4.0, n),
            proptest::collection::vec(any::<bool>(), n),
            any::<bool>(),
        )
    })
}

/// Token level, the bandit, and all between.
fn cutoff() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), 0f64..4.0, Just(f64::INFINITY)]
}

proptest! {
    #[test]
    fn segments_are_contiguous_from_the_first_token_and_cover_the_response(
        (entropies, sentence_ends, ends_with_eos) in response(), cutoff in cutoff(),
    ) {
        let view = ResponseView { entropies: &entropies, sentence_ends: &sentence_ends, ends_with_eos };
        let segment = Rule::Entropy { cutoff };
        for actions in [Rule::Whole, Rule::Sentence, Rule::Token, segment] {
            for eos in [EosPolicy::AsPublished, EosPolicy::Included, EosPolicy::Excluded] {
                let left_out = usize::from(ends_with_eos && eos.excludes_eos(actions));
                let covered: Vec<usize> = (0..entropies.len() - left_out).collect();
                match segments(actions, eos, view) {
                    Ok(segments) => {
                        prop_assert!(segments.iter().all(|s| s.start < s.end));
                        let tokens: Vec<usize> = segments.into_iter().flatten().collect();
                        prop_assert_eq!(tokens, covered);
                    }
                    Err(error) => {
                        prop_assert_eq!(error, SegmentationError::Empty { tokens: 1 });
                        prop_assert!(covered.is_empty());
                    }
                }
            }
        }
    }

    #[test]
    fn a_higher_cutoff_only_joins_segments(
        (entropies, _, eos) in response(), cutoffs in (cutoff(), cutoff()),
    ) {
        let starts = |entropy_cutoff| -> Vec<usize> {
            let actions = Rule::Entropy { cutoff: entropy_cutoff };
            let segments = cut(actions, EosPolicy::AsPublished, &entropies, eos);
            segments.unwrap_or_default().iter().map(|s| s.start).collect()
        };
        let (fine, coarse) = (starts(cutoffs.0.min(cutoffs.1)), starts(cutoffs.0.max(cutoffs.1)));
        prop_assert!(coarse.len() <= fine.len());
        prop_assert!(coarse.iter().all(|start| fine.contains(start)));
    }
}

// 4. Gradients: none. Entropies come from a frozen model and choose segments; nothing is trained through them.

// 5. Padding and batch size

#[test]
fn a_token_of_probability_zero_adds_nothing_and_a_nan_is_kept() {
    for (device, tolerance) in devices() {
        let rows = [vec![1.0, 1.0, f32::NEG_INFINITY], vec![1.0, f32::NAN, 0.0]];
        let actual = host(entropy(logits(&rows, &device)));
        assert_close(&actual[..1], &[2f64.ln()], tolerance);
        assert!(actual[1].is_nan());
    }
}

#[test]
fn a_position_s_entropy_is_its_own_whatever_stands_beside_it() {
    let case = &cases::<EntropyCase>("entropy")[0];
    let rows: Vec<Vec<f64>> =
        case.logits.iter().map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect();
    let vocabulary = rows[0].len();
    for (device, _) in devices() {
        let of = |rows: &[Vec<f64>]| {
            let shape = [rows.len(), 1, vocabulary];
            let data = TensorData::new(rows.concat(), shape);
            host(entropy(Tensor::from_data(data, (&device, DType::F32))))
        };
        let together = of(&rows);
        let turned: Vec<Vec<f64>> = rows.iter().rev().cloned().collect();
        assert_eq!(of(&turned), together.iter().rev().copied().collect::<Vec<_>>());
        let lengths: Vec<usize> = (0..rows.len()).map(|i| [vocabulary, 0][i % 2]).collect();
        let padded = of(&with_nan_padding(&rows, &lengths));
        for (i, (padded, alone)) in padded.iter().zip(&together).enumerate() {
            assert!(padded == alone || (i % 2 == 1 && padded.is_nan()), "at {i}");
        }
    }
}

// 6. Errors

#[test]
fn nothing_to_segment_is_an_error() {
    for actions in [Rule::Whole, Rule::Sentence, Rule::Token, CUT] {
        assert_eq!(
            cut(actions, EosPolicy::AsPublished, &[], false),
            Err(SegmentationError::Empty { tokens: 0 })
        );
        assert_eq!(
            cut(actions, EosPolicy::Excluded, &[0.1], true),
            Err(SegmentationError::Empty { tokens: 1 })
        );
        for (eos, ends_with_eos) in [(EosPolicy::Included, true), (EosPolicy::Excluded, false)] {
            assert_eq!(cut(actions, eos, &[0.1], ends_with_eos), Ok(ranges(&[0])));
        }
    }
}

#[test]
fn parts_of_unequal_length_are_an_error() {
    let response =
        ResponseView { entropies: &[0.1, 0.2], sentence_ends: &[false; 3], ends_with_eos: true };
    assert_eq!(
        segments(CUT, EosPolicy::AsPublished, response),
        Err(SegmentationError::LengthMismatch { entropies: 2, sentence_ends: 3 })
    );
}

#[test]
fn an_entropy_that_is_not_finite_is_an_error_that_names_the_token() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(
            cut(CUT, EosPolicy::AsPublished, &[0.1, bad, bad], true),
            Err(SegmentationError::NotFinite { token: 1 })
        );
        // Other actions never read it.
        assert_eq!(cut(Rule::Whole, EosPolicy::Included, &[bad; 2], true), Ok(ranges(&[1])));
    }
}

#[test]
fn a_cutoff_below_zero_or_nan_is_an_error() {
    let cutoff = |entropy_cutoff| {
        cut(Rule::Entropy { cutoff: entropy_cutoff }, EosPolicy::Included, &[0.1], true)
    };
    assert_eq!(cutoff(-0.5), Err(SegmentationError::InvalidCutoff { cutoff: -0.5 }));
    assert!(matches!(
        cutoff(f64::NAN),
        Err(SegmentationError::InvalidCutoff { cutoff }) if cutoff.is_nan()
    ));
}

// 7. Devices: every test above that asks for `devices()`; segments are cut on the host.
