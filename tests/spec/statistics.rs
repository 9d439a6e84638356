//! Means, variances, standard errors and intervals of what is reported.

use segment_rlhf::statistics::{Estimate, mean, standard_error, student_t, variance};

use crate::tolerance::{HOST_F64, TABLE};

#[test]
fn the_variance_is_biased_and_the_standard_error_is_not() {
    let values = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0];
    assert_eq!(mean(values.into_iter()), 5.0);
    assert_eq!(variance(&values), 4.0);
    assert_eq!(standard_error(&values), Some((32.0f64 / 7.0 / 8.0).sqrt()));
}

#[test]
fn nothing_has_mean_and_variance_zero_and_a_single_value_no_standard_error() {
    assert_eq!((mean([].into_iter()), variance(&[])), (0.0, 0.0));
    assert_eq!((standard_error(&[]), standard_error(&[3.0])), (None, None));
}

#[test]
fn students_t_is_that_of_printed_tables() {
    let table = [
        (0.95, 1, 12.7062047364),
        (0.95, 2, 4.3026527297),
        (0.95, 4, 2.7764451052),
        (0.95, 9, 2.2621571628),
        (0.95, 30, 2.0422724563),
        (0.99, 5, 4.0321429836),
        (0.5, 3, 0.7648923284),
    ];
    for (confidence, degrees, t) in table {
        approx::assert_relative_eq!(student_t(confidence, degrees), t, epsilon = TABLE);
    }
}

#[test]
fn students_t_has_closed_forms_for_one_and_two_degrees() {
    for confidence in [0.0, 0.1, 0.5, 0.9, 0.999] {
        let cauchy = (std::f64::consts::FRAC_PI_2 * confidence).tan();
        approx::assert_relative_eq!(student_t(confidence, 1), cauchy, max_relative = HOST_F64);
        let two = confidence * (2.0 / (1.0 - confidence * confidence)).sqrt();
        approx::assert_relative_eq!(student_t(confidence, 2), two, max_relative = HOST_F64);
    }
}

#[test]
fn students_t_falls_towards_the_normal_quantile() {
    let t: Vec<f64> = [1, 2, 3, 5, 10, 100, 10_000].map(|n| student_t(0.95, n)).into();
    assert!(t.is_sorted_by(|a, b| a > b), "{t:?}");
    // z + (z³ + z) / 4ν, the first term of the expansion for many degrees of freedom.
    let z: f64 = 1.959963984540054;
    let expected = z + (z.powi(3) + z) / 4e4;
    assert!((t[6] - expected).abs() < 1e-7, "{} is not {expected}", t[6]);
}

#[test]
fn two_values_are_the_ends_of_half_their_distance_by_the_t_of_one_degree() {
    let Estimate { mean, error, interval, n } = Estimate::of([1.0, 3.0]).unwrap();
    assert_eq!((mean, error, n), (2.0, Some(1.0), 2));
    let [low, high] = interval.unwrap();
    approx::assert_relative_eq!(low, 2.0 - 12.7062047364, epsilon = TABLE);
    approx::assert_relative_eq!(high, 2.0 + 12.7062047364, epsilon = TABLE);
}

#[test]
fn an_estimate_shifts_and_scales_with_its_values() {
    let values = [0.3, 1.9, -2.0, 0.5];
    let of = Estimate::of(values).unwrap();
    let moved = Estimate::of(values.map(|v| 10.0 - 2.0 * v)).unwrap();
    let near = |a: f64, b: f64| approx::assert_relative_eq!(a, b, max_relative = HOST_F64);
    near(moved.mean, 10.0 - 2.0 * of.mean);
    near(moved.error.unwrap(), 2.0 * of.error.unwrap());
    let ([low, high], [from, to]) = (of.interval.unwrap(), moved.interval.unwrap());
    near(from, 10.0 - 2.0 * high);
    near(to, 10.0 - 2.0 * low);
}

#[test]
fn equal_values_leave_no_doubt_and_a_single_one_says_nothing_about_itself() {
    let same = Estimate::of([2.0; 3]).unwrap();
    assert_eq!((same.interval, same.excludes_zero()), (Some([2.0, 2.0]), true));
    let one = Estimate::of([2.0]).unwrap();
    assert_eq!((one.error, one.interval, one.excludes_zero()), (None, None, false));
}

#[test]
fn an_interval_that_touches_zero_does_not_exclude_it() {
    let of = |interval| Estimate { mean: 1.0, error: Some(0.5), interval: Some(interval), n: 5 };
    let excludes = [[0.0, 2.0], [-1.0, 0.0], [-1.0, 3.0], [0.1, 1.9], [-2.0, -0.1]]
        .map(|interval| of(interval).excludes_zero());
    assert_eq!(excludes, [false, false, false, true, true]);
}

#[test]
fn nothing_and_what_is_not_finite_have_no_estimate() {
    assert_eq!(Estimate::of([]), None);
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!((Estimate::of([bad]), Estimate::of([1.0, bad])), (None, None));
    }
    assert_eq!(Estimate::of([1e200, -1e200]), None); // their variance overflows
}

/// Of 95 % intervals from normal samples, 95 % hold the mean: the definition itself, for three seeds.
#[test]
fn intervals_hold_the_mean_as_often_as_they_say() {
    use rand::Rng;
    let mut draws = segment_rlhf::rng::stream(5, "coverage", 0);
    let mut normal = || {
        let (u, v): (f64, f64) = (draws.random_range(f64::MIN_POSITIVE..1.0), draws.random());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    };
    let trials = 20_000;
    let holds = |_: &usize| !Estimate::of([normal(), normal(), normal()]).unwrap().excludes_zero();
    let share = (0..trials).filter(holds).count() as f64 / trials as f64;
    let error = (0.95 * 0.05 / trials as f64).sqrt();
    assert!((share - 0.95).abs() < crate::tolerance::STANDARD_ERRORS * error, "{share}");
}
