//! Means, variances and standard errors of what is reported.

use segment_rlhf::statistics::{mean, standard_error, variance};

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
