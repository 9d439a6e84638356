//! What settings may be: ranges of numbers with their names in errors, and `section!`, which puts a setting and its
//! range side by side.

use std::fmt;

/// A range of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bounds {
    /// Any finite number.
    Finite,
    /// Any number, finite or not.
    NotNan,
    /// Finite, and 0 or above.
    NotNegative,
    /// 0 or above, infinity among them.
    NotNegativeOrInfinite,
    /// Finite, and above 0.
    Positive,
    /// Above 0, infinity among them.
    PositiveOrInfinite,
    /// [0, 0.5)
    BelowHalf,
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
            Self::NotNan => !value.is_nan(),
            Self::NotNegative => (0.0..f64::INFINITY).contains(&value),
            Self::NotNegativeOrInfinite => value >= 0.0,
            Self::Positive => value > 0.0 && value.is_finite(),
            Self::PositiveOrInfinite => value > 0.0,
            Self::BelowHalf => (0.0..0.5).contains(&value),
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
            Self::NotNan => "a number, inf or -inf",
            Self::NotNegative => "0 or above",
            Self::NotNegativeOrInfinite => "0 or above, or inf",
            Self::Positive => "above 0",
            Self::PositiveOrInfinite => "above 0, or inf",
            Self::BelowHalf => "in [0, 0.5)",
            Self::BelowOne => "in [0, 1)",
            Self::ZeroToOne => "in [0, 1]",
            Self::UpToOne => "in (0, 1]",
        })
    }
}

/// What a setting may be.
pub trait Limit<T> {
    /// The key below the setting, empty for the setting itself, and what is wrong with `value`, if anything is.
    fn problem(&self, value: &T) -> Option<(String, String)>;
}

impl Limit<f64> for Bounds {
    fn problem(&self, value: &f64) -> Option<(String, String)> {
        (!self.hold(*value)).then(|| (String::new(), format!("{value}; expected {self}")))
    }
}

impl Limit<Option<f64>> for Bounds {
    fn problem(&self, value: &Option<f64>) -> Option<(String, String)> {
        self.problem(value.as_ref()?)
    }
}

/// The largest count: products of two fit in 64 bits.
const MOST: usize = 100_000_000;

/// A count of at least this.
pub struct AtLeast(pub usize);

impl Limit<usize> for AtLeast {
    fn problem(&self, value: &usize) -> Option<(String, String)> {
        let Self(least) = *self;
        let expected = format!("expected a whole number from {least} to {MOST}");
        let fits = (least..=MOST).contains(value);
        (!fits).then(|| (String::new(), format!("{value}; {expected}")))
    }
}

impl Limit<Option<usize>> for AtLeast {
    fn problem(&self, value: &Option<usize>) -> Option<(String, String)> {
        self.problem(value.as_ref()?)
    }
}

/// A section within a section: its own limits.
pub struct Nested;

/// A section of settings.
pub trait Section {
    /// The first key whose value is out of range, with the value and what was expected.
    fn problem(&self) -> Option<(String, String)>;
}

impl<S: Section> Limit<S> for Nested {
    fn problem(&self, value: &S) -> Option<(String, String)> {
        value.problem()
    }
}

/// Defines a section of settings, each with what it may be: `name: type = limit`; one without a limit may be anything.
macro_rules! section {
    (
        $(#[$doc:meta])*
        $name:ident { $($(#[$attribute:meta])* $field:ident: $kind:ty $(= $limit:expr)?),* $(,)? }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(missing_docs)] // each key is documented, with its unit, where its default stands
        pub struct $name { $($(#[$attribute])* pub $field: $kind),* }

        impl $crate::bounds::Section for $name {
            fn problem(&self) -> Option<(String, String)> {
                $($(
                    if let Some((key, problem)) = $crate::bounds::Limit::problem(&$limit, &self.$field) {
                        let dot = if key.is_empty() { "" } else { "." };
                        return Some((format!("{}{dot}{key}", stringify!($field)), problem));
                    }
                )?)*
                None
            }
        }
    };
}

pub(crate) use section;
