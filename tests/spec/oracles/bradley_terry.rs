//! E2 to E4: what each segment is worth, learned from labels of whole responses.

use std::ops::Range;

use burn::tensor::{DType, Int, Tensor, TensorData};
use rand::Rng;
use segment_rlhf::equations::bt_loss::segment_bt_loss;
use segment_rlhf::equations::segment_reward::{Aggregation, aggregation_weights, sequence_scores};
use segment_rlhf::rng::{Stream, stream};
use segment_rlhf::statistics::mean;

use crate::support::{cpu, matrix, value_and_gradient};
use crate::tolerance;

/// A response: the type of each segment, and its length in tokens.
pub type Response = Vec<(usize, usize)>;

fn segments(response: &Response) -> Vec<Range<usize>> {
    let mut end = 0;
    let segment = |&(_, length): &(usize, usize)| {
        end += length;
        end - length..end
    };
    response.iter().map(segment).collect()
}

/// The utility of each type of segment, by gradient descent on E4 until the gradient vanishes; the first
/// response of a pair is the chosen one. The reward model is a table of types: the last token of a segment
/// scores as its type does, every other token NaN.
pub fn fitted_utilities(types: usize, pairs: &[[Response; 2]]) -> Vec<f64> {
    // 2 over the greatest curvature: under 0.1 for the pairs below and those of `credit`.
    const RATE: f64 = 20.0;
    let responses = || (0..2).flat_map(|side| pairs.iter().map(move |pair| &pair[side]));
    let tokens = |response: &Response| response.iter().map(|(_, length)| length).sum::<usize>();
    let width = responses().map(tokens).max().expect("there are pairs");
    let unread = types as i64;
    let (mut weights, mut cells) = (Vec::new(), Vec::new());
    for response in responses() {
        let segments = segments(response);
        let row = aggregation_weights(&segments, width, Aggregation::Average);
        weights.push(row.into_iter().map(f64::from).collect());
        let mut row = vec![unread; width];
        for (segment, &(kind, _)) in segments.iter().zip(response) {
            row[segment.end - 1] = kind as i64;
        }
        cells.extend(row);
    }
    let rows = weights.len();
    let weights = matrix(&weights, &cpu(), DType::F64);
    let cells = Tensor::<1, Int>::from_data(TensorData::new(cells, [rows * width]), &cpu());
    let nan = matrix(&[vec![f64::NAN]], &cpu(), DType::F64).autodiff();
    let loss = |utilities: Tensor<2>| {
        let table = Tensor::cat(vec![utilities, nan.clone()], 1);
        let token_scores = table.select(1, cells.clone()).reshape([rows, width]);
        let scores = sequence_scores(token_scores, weights.clone());
        let side = |i: usize| scores.clone().slice([i * pairs.len()..(i + 1) * pairs.len()]);
        segment_bt_loss(side(0), side(1), None)
    };
    let mut utilities = vec![vec![0.0; types]];
    for _ in 0..10_000 {
        let (_, gradient) = value_and_gradient(loss, &utilities, &cpu(), DType::F64);
        utilities[0].iter_mut().zip(&gradient).for_each(|(u, slope)| *u -= RATE * slope);
        if gradient.iter().all(|slope| slope.abs() < tolerance::VANISHED_GRADIENT) {
            return utilities.remove(0);
        }
    }
    panic!("gradient descent did not settle");
}

/// The chance that a response of the first score is preferred.
pub fn preference(score: f64, other: f64) -> f64 {
    1.0 / (1.0 + (other - score).exp())
}

/// The true utility of each type of segment, of mean 0.
const UTILITIES: [f64; 6] = [-1.5, -0.8, -0.2, 0.3, 0.8, 1.4];

fn score(response: &Response) -> f64 {
    mean(response.iter().map(|&(kind, _)| UTILITIES[kind]))
}

/// A response of 1 to 3 segments of 1 or 2 tokens.
fn response(draws: &mut Stream) -> Response {
    let segments = draws.random_range(1..=3);
    (0..segments).map(|_| (draws.random_range(0..6), draws.random_range(1..=2))).collect()
}

/// A pair, labelled by one judge who follows the Bradley-Terry law.
fn pair(draws: &mut Stream) -> [Response; 2] {
    let [a, b] = [response(draws), response(draws)];
    if draws.random_bool(preference(score(&a), score(&b))) { [a, b] } else { [b, a] }
}

/// The least error that an unbiased estimate can have on these pairs, root mean square over types: that
/// of Cramér and Rao. A pair informs by σ'(d) x xᵀ, where d is the difference of scores and x that of the
/// shares of each type. All x sum to 0, so that a shift is not determined; of a matrix with K - 1
/// eigenvalues that sum to I, the inverse has a trace of at least (K - 1)² / I.
fn least_error(pairs: &[[Response; 2]]) -> f64 {
    let types = UTILITIES.len();
    let share = |response: &Response, kind: usize| {
        mean(response.iter().map(|segment| f64::from(segment.0 == kind)))
    };
    let information = |[a, b]: &[Response; 2]| {
        let p = preference(score(a), score(b));
        let squares = (0..types).map(|kind| (share(a, kind) - share(b, kind)).powi(2));
        p * (1.0 - p) * squares.sum::<f64>()
    };
    let information: f64 = pairs.iter().map(information).sum();
    ((types - 1) as f64 / information.sqrt()) / (types as f64).sqrt()
}

const SETS: u64 = 32;

/// How far fitted utilities are off, root mean square over types and sets of pairs, and the least that is
/// possible. Average aggregation leaves a shift of all utilities undetermined, so both sides have mean 0.
fn error_and_least_error(pairs: usize) -> [f64; 2] {
    let of_set = |index: u64| {
        let mut draws = stream(23, "preference pairs", index);
        let pairs: Vec<_> = (0..pairs).map(|_| pair(&mut draws)).collect();
        let fitted = fitted_utilities(UTILITIES.len(), &pairs);
        let shift = mean(fitted.iter().copied());
        let off = fitted.iter().zip(UTILITIES).map(|(fit, truth)| (fit - shift - truth).powi(2));
        [mean(off), least_error(&pairs).powi(2)]
    };
    let sets: Vec<[f64; 2]> = (0..SETS).map(of_set).collect();
    [0, 1].map(|i| mean(sets.iter().map(|set| set[i])).sqrt())
}

/// Off by 0.23 after 500 pairs and by 0.05 after 8,000: as little as can be, so as 1/√pairs. A root mean
/// square over n independent errors is itself 1/√(2n) off, a ratio of two √2 times that.
#[test]
fn noisy_labels_of_500_and_of_8_000_pairs_give_the_utilities_back_up_to_a_shift() {
    let [few, many] = [500, 8_000].map(error_and_least_error);
    let independent = SETS as f64 * (UTILITIES.len() - 1) as f64;
    let bound = tolerance::STANDARD_ERRORS / (2.0 * independent).sqrt();
    for [error, least] in [few, many] {
        assert!((error / least - 1.0).abs() < bound, "{error}, at best {least}");
    }
    let fall = few[0] / many[0] / 16f64.sqrt();
    assert!((fall - 1.0).abs() < bound * 2f64.sqrt(), "{fall}");
}
