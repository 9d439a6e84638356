//! Loops compiled for the vectors of the CPU at hand.

use std::f32::consts::LOG2_E;

/// Numbers that are summed side by side, whatever the width of a CPU's vectors, so that sums are the same on all.
pub(super) const LANES: usize = 16;

/// Defines a function whose loops are compiled for the widest vectors of the CPU at hand; references live for `'a`.
///
/// A closure cannot be marked for inlining, and code that is not inlined is compiled without vectors. So this is a macro,
/// and the body loops over slices rather than collecting iterators.
macro_rules! vectorized {
    ($(#[$doc:meta])* $visible:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $visible fn $name<'a>($($argument: $type),*) {
            struct Loops<'a> {
                $($argument: $type,)*
            }
            impl<'a> pulp::NullaryFnOnce for Loops<'a> {
                type Output = ();

                #[inline(always)]
                fn call(self) {
                    let Self { $($argument),* } = self;
                    $body
                }
            }
            pulp::Arch::new().dispatch(Loops { $($argument),* });
        }
    };
}
pub(super) use vectorized;

/// eˣ to within 2 units in the last place; 1.2e-38 for what is smaller, 2.4e38 for what is larger.
///
/// 2^n · 2^f for x log₂ e = n + f, |f| ≤ ½: n by adding and subtracting 1.5 · 2²³, which rounds to whole numbers, and e to
/// the rest by its Taylor polynomial of degree 7.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts: the first times a small whole number is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let x = x.clamp(-87.3, 88.3);
    let rounded = x.mul_add(LOG2_E, ROUND);
    let n = rounded - ROUND;
    let rest = n.mul_add(-LN_2[1], n.mul_add(-LN_2[0], x));
    let mut sum = 1.0 / 5040.0;
    for over in [720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0f32] {
        sum = rest.mul_add(sum, 1.0 / over);
    }
    // The last bits of `rounded` are n, which moves into the exponent.
    let power = (rounded.to_bits() << 23).wrapping_add(127 << 23);
    f32::from_bits(power) * sum
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Σ_i f(i) over the numbers below `count`, in a fixed order.
#[inline(always)]
pub(super) fn sum(count: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let whole = count - count % LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(start + lane);
        }
    }
    let mut rest = 0.0;
    for i in whole..count {
        rest += f(i);
    }
    total(lanes) + rest
}

/// The sum of all lanes, by halves.
#[inline(always)]
fn total(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// The largest of `x`, or -∞ of none.
#[inline(always)]
pub(super) fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (largest, &value) in lanes.iter_mut().zip(chunk) {
            *largest = if value > *largest { value } else { *largest };
        }
    }
    lanes.into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_within_two_units_in_the_last_place() {
        let worst = (-87_000..88_000).map(|i| i as f32 / 1000.0).map(|x| {
            let exact = f64::from(x).exp();
            ((f64::from(exp(x)) - exact) / exact).abs()
        });
        let worst = worst.fold(0.0, f64::max);
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst}");
    }

    #[test]
    fn the_exponential_passes_on_what_is_not_a_number_and_bounds_the_rest() {
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1.3e-38);
        assert!(exp(f32::INFINITY) > 1e38);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn sums_and_maxima_count_every_number_once() {
        for count in [0, 1, 15, 16, 17, 100] {
            let x: Vec<f32> = (0..count).map(|i| (i * 7 % 100) as f32).collect();
            assert_eq!(sum(count, |i| x[i]), x.iter().sum::<f32>());
            let expected = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(max(&x), expected);
        }
    }
}
