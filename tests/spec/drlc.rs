//! DRLC: rewards of marked spans. They are numbers on the host: there is nothing to differentiate, to pad, or to try on
//! another device.

use std::ops::Range;

use proptest::prelude::*;
use segment_rlhf::equations::interpolation::{Interpolation, interpolate};
use segment_rlhf::equations::span_reward::{Span, SpanValues, asks, span_rewards};

use crate::support::{assert_close, panic_of};
use crate::tolerance;

const HALF: SpanValues = SpanValues { positive: 0.5, negative: -0.5 };

fn good(tokens: Range<usize>) -> Span {
    Span { tokens, label: 1 }
}

fn bad(tokens: Range<usize>) -> Span {
    Span { tokens, label: -1 }
}

/// The bandit's reward of a response: at its last token.
fn at_the_end(reward: f64, tokens: usize) -> Vec<f64> {
    interpolate(Interpolation::LastToken, &[reward], &[0..tokens], tokens)
}

/// Segments of a response, each with a label: spans that do not overlap, and r_ex.
fn marked() -> impl Strategy<Value = (Vec<Span>, Vec<f64>)> {
    let lengths = prop::collection::vec((1usize..4, -1i8..=1), 1..8);
    (lengths, -3.0..3.0f64).prop_map(|(lengths, reward)| {
        let mut start = 0;
        let spans: Vec<Span> = (lengths.into_iter())
            .map(|(length, label)| {
                start += length;
                Span { tokens: start - length..start, label }
            })
            .collect();
        (spans, at_the_end(reward, start))
    })
}

// 1. Worked example

#[test]
fn a_token_earns_what_its_spans_are_worth_and_the_last_one_the_response_s_reward() {
    let values = SpanValues { positive: 0.5, negative: -0.25 };
    let spans = [good(0..2), bad(3..5)];
    let rewards = span_rewards(&at_the_end(2.0, 5), &spans, values);
    assert_close(&rewards, &[0.5, 0.5, 0.0, -0.25, 1.75], tolerance::HOST_F64);
}

#[test]
fn the_annotator_is_asked_where_the_reward_is_at_most_the_threshold() {
    assert!(asks(1.0, 1.0) && asks(0.9, 1.0) && !asks(1.1, 1.0));
    assert!(asks(1e9, f64::INFINITY) && !asks(-1e9, f64::NEG_INFINITY));
}

// 2. Goldens: none. The official code marks tokens by their text (D47), so that its outputs are others.

/// The official rule: a token is marked if its text, white space aside, occurs in the text of the spans.
fn by_text(tokens: &[&str], spans: &[&str], value: f64) -> Vec<f64> {
    let spans = spans.join(" ");
    tokens.iter().map(|token| if spans.contains(token.trim()) { value } else { 0.0 }).collect()
}

#[test]
fn where_no_token_occurs_twice_the_official_rule_by_text_marks_the_same() {
    let tokens = ["dear", " gina", " ,", " cooks", " serve", " superb", " soup"];
    let own = span_rewards(&[0.0; 7], &[good(3..7)], HALF);
    assert_eq!(own, by_text(&tokens, &["cooks serve superb soup"], 0.5));
    // A token that comes again, or is a part of a span's word, is marked there alone.
    let tokens = ["a", " bad", " day"];
    assert_eq!(span_rewards(&[0.0; 3], &[good(1..2)], HALF), [0.0, 0.5, 0.0]);
    assert_eq!(by_text(&tokens, &["bad"], 0.5), [0.5, 0.5, 0.0]);
}

// 3. Identities and limits

proptest! {
    #[test]
    fn without_spans_or_with_values_of_zero_the_reward_is_the_bandit_s(
        (spans, extrinsic) in marked(),
    ) {
        let nothing = SpanValues { positive: 0.0, negative: 0.0 };
        prop_assert_eq!(&span_rewards(&extrinsic, &spans, nothing), &extrinsic);
        prop_assert_eq!(&span_rewards(&extrinsic, &[], HALF), &extrinsic);
    }

    #[test]
    fn the_return_gains_the_value_of_every_marked_token((spans, extrinsic) in marked()) {
        let values = SpanValues { positive: 0.3, negative: -0.7 };
        let tokens = |label| {
            let own = spans.iter().filter(|span| span.label == label);
            own.map(|span| span.tokens.len()).sum::<usize>() as f64
        };
        let rewards = span_rewards(&extrinsic, &spans, values);
        let gain = rewards.iter().sum::<f64>() - extrinsic.iter().sum::<f64>();
        prop_assert!((gain - (0.3 * tokens(1) - 0.7 * tokens(-1))).abs() < 1e-9);
    }

    #[test]
    fn swapped_labels_with_swapped_values_are_the_same(
        (spans, extrinsic) in marked(), positive in -1.0..1.0f64, negative in -1.0..1.0f64,
    ) {
        let swapped: Vec<Span> =
            spans.iter().rev().map(|span| Span { label: -span.label, ..span.clone() }).collect();
        prop_assert_eq!(
            span_rewards(&extrinsic, &spans, SpanValues { positive, negative }),
            span_rewards(&extrinsic, &swapped, SpanValues { positive: negative, negative: positive })
        );
    }
}

#[test]
fn a_token_that_is_marked_as_good_and_as_bad_earns_both_values() {
    let values = SpanValues { positive: 0.5, negative: -0.25 };
    assert_eq!(span_rewards(&[0.0; 3], &[good(0..2), bad(1..3)], values), [0.5, 0.25, -0.25]);
    assert_eq!(span_rewards(&[0.0; 3], &[good(0..3), bad(0..3)], HALF), [0.0; 3]);
    let neither = Span { tokens: 0..3, label: 0 };
    assert_eq!(span_rewards(&[0.0; 3], &[neither, good(0..1)], HALF), [0.5, 0.0, 0.0]);
}

// 6. Bad input

#[test]
fn spans_that_are_none_are_refused() {
    let refused = |spans: &[Span]| panic_of(|| span_rewards(&[0.0; 4], spans, HALF));
    assert!(refused(&[good(2..2)]).contains("a span holds a token, not 2..2"));
    assert!(refused(&[good(3..5)]).contains("a span lies in the response, not 3..5"));
    assert!(refused(&[good(1..4), good(0..2)]).contains("spans of one label do not overlap"));
    assert!(refused(&[bad(0..2), bad(0..2)]).contains("spans of one label do not overlap"));
    let label = refused(&[Span { tokens: 0..1, label: 2 }]);
    assert!(label.contains("a label is -1, 0 or 1, not 2"), "{label}");
}
