//! The ranges of numbers that settings may take, and their names in errors.

use std::fmt;

/// A range of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bounds {
    /// Any finite number.
    Finite,
    /// Finite, and 0 or above.
    NotNegative,
    /// 0 or above, infinity among them.
    NotNegativeOrInfinite,
    /// Finite, and above 0.
    Positive,
    /// Above 0, infinity among them.
    PositiveOrInfinite,
    /// [0, 1)
    BelowOne,
    /// [0, 1]
    ZeroToOne,
    /// (0, 1]
    UpToOne,
}

impl Bounds {
    /// Whether `value` lies within; NaN never does.
    ///
    /// # Examples
    ///
    /// ```
    /// use segment_rlhf::bounds::Bounds;
    /// assert!(Bounds::UpToOne.hold(1.0) && !Bounds::UpToOne.hold(0.0));
    /// assert!(!Bounds::Positive.hold(f64::INFINITY) && Bounds::PositiveOrInfinite.hold(f64::INFINITY));
    /// ```
    pub fn hold(self, value: f64) -> bool {
        match self {
            Self::Finite => value.is_finite(),
            Self::NotNegative => (0.0..f64::INFINITY).contains(&value),
            Self::NotNegativeOrInfinite => value >= 0.0,
            Self::Positive => value > 0.0 && value.is_finite(),
            Self::PositiveOrInfinite => value > 0.0,
            Self::BelowOne => (0.0..1.0).contains(&value),
            Self::ZeroToOne => (0.0..=1.0).contains(&value),
            Self::UpToOne => value > 0.0 && value <= 1.0,
        }
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Finite => "a finite number",
            Self::NotNegative => "0 or above",
            Self::NotNegativeOrInfinite => "0 or above, or inf",
            Self::Positive => "above 0",
            Self::PositiveOrInfinite => "above 0, or inf",
            Self::BelowOne => "in [0, 1)",
            Self::ZeroToOne => "in [0, 1]",
            Self::UpToOne => "in (0, 1]",
        })
    }
}
