//! The length-controlled win rate: a logistic regression whose answer at equal lengths is wanted.

use proptest::prelude::*;
use rand::Rng;
use segment_rlhf::benchmark::win_rate::Report;
use segment_rlhf::rng::{Stream, stream};
use segment_rlhf::statistics::length_control::{
    Comparison, LengthControl, RIDGE, length_control, plain,
};

use crate::tolerance::{BOOTSTRAP, HOST_F64, STANDARD_ERRORS, STATIONARY};

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// A normal draw, by the sum of twelve uniform ones.
fn normal(rng: &mut Stream) -> f64 {
    (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0
}

/// Comparisons of a judge whose log-odds are `model + length · tanh(d / std(d))`, on differences d about
/// `shift` standard deviations.
fn simulated(count: usize, model: f64, length: f64, shift: f64, seed: u64) -> Vec<Comparison> {
    let mut rng = stream(seed, "length control", 0);
    let differences: Vec<f64> = (0..count).map(|_| 300.0 * (normal(&mut rng) + shift)).collect();
    let std = 300.0; // that of the sample is within a percent
    let judge = |length_difference: f64| {
        let p = sigmoid(model + length * (length_difference / std).tanh());
        Comparison { preference: f64::from(rng.random::<f64>() < p), length_difference }
    };
    differences.into_iter().map(judge).collect()
}

fn error(fit: LengthControl) -> f64 {
    fit.standard_error.expect("lengths do not separate wins from losses")
}

#[test]
fn at_one_length_it_is_the_win_rate_but_for_the_penalty() {
    // Three wins of four: 3 - 4 p = RIDGE · ln(p / (1 - p)).
    let all =
        [1.0, 1.0, 1.0, 0.0].map(|preference| Comparison { preference, length_difference: 7.0 });
    let fit = length_control(&all);
    let p = fit.win_rate;
    assert!((3.0 - 4.0 * p - RIDGE * (p / (1.0 - p)).ln()).abs() < STATIONARY);
    assert!(p < 0.75 && p > 0.7, "{p}");
    assert_eq!(fit.length, 0.0);
    // Of many comparisons the penalty is a small part: the rate and its error are the plain ones.
    let many = all.repeat(1000);
    let (fit, (rate, plain_error)) = (length_control(&many), plain(&many));
    assert!((fit.win_rate - rate).abs() < 0.01 * error(fit));
    assert!((error(fit) / plain_error.unwrap() - 1.0).abs() < 1e-3);
}

#[test]
fn known_coefficients_are_recovered_from_simulated_judgements() {
    for (seed, model, length) in [(0, 0.4, 1.2), (1, -0.7, 0.5), (2, 0.0, -0.8)] {
        let fit = length_control(&simulated(20_000, model, length, 0.3, seed));
        let theta_error = error(fit) / (fit.win_rate * (1.0 - fit.win_rate));
        assert!((fit.model - model).abs() < STANDARD_ERRORS * theta_error, "{fit:?}");
        // x spreads by about 0.6: φ's error is at most three times that of θ.
        assert!((fit.length - length).abs() < STANDARD_ERRORS * 3.0 * theta_error, "{fit:?}");
        assert!((fit.win_rate - sigmoid(model)).abs() < STANDARD_ERRORS * error(fit), "{fit:?}");
    }
}

#[test]
fn a_judge_who_loves_length_alone_leaves_half_at_equal_lengths() {
    // A's answers are longer by half a standard deviation, and nothing else.
    let all = simulated(4000, 0.0, 3.0, 0.5, 3);
    let (rate, rate_error) = plain(&all);
    assert!(rate - 0.5 > 10.0 * rate_error.unwrap(), "{rate}");
    let fit = length_control(&all);
    assert!((fit.win_rate - 0.5).abs() < STANDARD_ERRORS * error(fit), "{fit:?}");
}

#[test]
fn lengths_that_separate_wins_from_losses_give_a_finite_fit_without_an_error() {
    let mut all = simulated(500, 0.0, 0.0, 0.5, 4);
    for comparison in &mut all {
        comparison.preference = f64::from(comparison.length_difference > 0.0);
    }
    let fit = length_control(&all);
    assert!(fit.model.is_finite() && fit.length.is_finite() && fit.length > 0.0);
    assert_eq!(fit.standard_error, None);
    let rate = plain(&all).0;
    assert!((fit.win_rate - 0.5).abs() < (rate - 0.5).abs(), "{fit:?}, {rate}");
    // One loss among the wins, and it is an estimate again.
    let longest = all.iter_mut().max_by(|a, b| a.length_difference.total_cmp(&b.length_difference));
    longest.unwrap().preference = 0.0;
    assert!(length_control(&all).standard_error.is_some());
    // Wins alone separate too.
    all.iter_mut().for_each(|comparison| comparison.preference = 1.0);
    let fit = length_control(&all);
    assert!(fit.win_rate < 1.0 && fit.standard_error.is_none(), "{fit:?}");
}

#[test]
fn ties_alone_are_half_without_doubt() {
    let tie = |length_difference| Comparison { preference: 0.5, length_difference };
    let fit = length_control(&[tie(-3.0), tie(5.0), tie(100.0)]);
    assert_eq!((fit.win_rate, fit.length, fit.standard_error), (0.5, 0.0, Some(0.0)));
    assert_eq!(length_control(&[tie(4.0)]).win_rate, 0.5); // one has no standard deviation
}

#[test]
fn the_delta_method_gives_the_bootstrap_s_error() {
    let all = simulated(600, 0.5, 1.0, 0.3, 5);
    let fit = length_control(&all);
    let mut rng = stream(0, "bootstrap", 0);
    let rates: Vec<f64> = (0..1000)
        .map(|_| {
            let draw = |_| all[rng.random_range(0..all.len())];
            length_control(&(0..all.len()).map(draw).collect::<Vec<_>>()).win_rate
        })
        .collect();
    let spread = segment_rlhf::statistics::variance(&rates).sqrt();
    assert!((error(fit) / spread - 1.0).abs() < BOOTSTRAP, "{} {spread}", error(fit));
}

fn comparisons() -> impl Strategy<Value = Vec<Comparison>> {
    let preference = prop_oneof![Just(0.0), Just(0.5), Just(1.0), 0.0..=1.0];
    let one = (preference, -3000..3000i32).prop_map(|(preference, difference)| Comparison {
        preference,
        length_difference: f64::from(difference),
    });
    prop::collection::vec(one, 1..60)
}

proptest! {
    #[test]
    fn the_fit_is_where_the_penalised_gradient_vanishes(all in comparisons()) {
        let fit = length_control(&all);
        let n = all.len() as f64;
        let mean = all.iter().map(|c| c.length_difference).sum::<f64>() / n;
        let squares: f64 = all.iter().map(|c| (c.length_difference - mean).powi(2)).sum();
        let std = (squares / (n - 1.0)).sqrt();
        let x = |c: &Comparison| if std > 0.0 { (c.length_difference / std).tanh() } else { 0.0 };
        let residual = |c: &Comparison| c.preference - sigmoid(fit.model + fit.length * x(c));
        let theta = all.iter().map(residual).sum::<f64>() - RIDGE * fit.model;
        let phi = all.iter().map(|c| x(c) * residual(c)).sum::<f64>() - RIDGE * fit.length;
        prop_assert!(theta.abs() < STATIONARY && phi.abs() < STATIONARY, "{theta} {phi}");
    }

    #[test]
    fn what_a_wins_b_loses(all in comparisons()) {
        let swap = |c: &Comparison| Comparison {
            preference: 1.0 - c.preference,
            length_difference: -c.length_difference,
        };
        let swapped: Vec<Comparison> = all.iter().map(swap).collect();
        let (fit, other) = (length_control(&all), length_control(&swapped));
        prop_assert!((fit.win_rate + other.win_rate - 1.0).abs() < STATIONARY);
        prop_assert!((fit.length - other.length).abs() < STATIONARY);
        prop_assert_eq!(fit.standard_error.is_some(), other.standard_error.is_some());
        if let (Some(a), Some(b)) = (fit.standard_error, other.standard_error) {
            prop_assert!((a - b).abs() < STATIONARY);
        }
    }

    #[test]
    fn lengths_are_read_in_their_own_unit(all in comparisons()) {
        let words = |c: &Comparison| Comparison { length_difference: c.length_difference / 8.0, ..*c };
        let fit = length_control(&all.iter().map(words).collect::<Vec<_>>());
        prop_assert!((fit.win_rate - length_control(&all).win_rate).abs() < HOST_F64);
    }
}

#[test]
fn a_win_rate_is_shown_with_its_count_and_one_question_has_none() {
    let report = |questions: usize| Report {
        questions,
        unmatched: 0,
        wins: questions,
        ties: 0,
        losses: 0,
        win_rate: 1.0,
        win_rate_error: (questions > 1).then_some(0.0),
        length_controlled_win_rate: 0.875,
        length_controlled_error: None,
        length_coefficient: 0.0,
        mean_length_a: 3.0,
        mean_length_b: 2.0,
        mean_score_a: 1.0,
        mean_score_b: 0.0,
    };
    let lines = |questions: usize| {
        let table = report(questions).table();
        table.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let many = lines(40);
    assert_eq!(many[2], "| win rate          | 100.0 |    0.0 |  40 |");
    assert_eq!(many[3], "| length-controlled |  87.5 |      – |  40 |");
    assert!(many.last().unwrap().starts_with("lengths alone tell wins from losses"));
    let one = lines(1);
    assert_eq!(one[2], "| win rate          | 1 of 1 |      – |   1 |");
    assert_eq!(one[3], "| length-controlled |      – |      – |   1 |");
    assert!(one.last().unwrap().starts_with("characters an answer"));
}
