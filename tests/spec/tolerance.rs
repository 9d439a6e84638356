//! Every tolerance of the specification: relative, or absolute below magnitude 1.

/// f64 on the host.
pub const HOST_F64: f64 = 1e-12;

/// f32 on a CPU: also every golden, since the official code computed in f32.
pub const CPU_F32: f64 = 1e-5;

/// f32 on a GPU: sums in another order, approximate exponentials.
#[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), allow(dead_code))]
pub const GPU_F32: f64 = 1e-4;

/// Central differences in f64 at [`STEP`]: the cancellation of a loss of magnitude 1 alone is 1e-11.
pub const FINITE_DIFFERENCE: f64 = 1e-8;

/// The step of central differences.
pub const STEP: f64 = 1e-5;

/// scikit-learn's Huber fit: its L-BFGS stops once the objective falls by less than 2e-9 of itself,
/// which leaves up to 2e-6 in the parameters. That ours is the lower objective is tested beside it.
pub const HUBER_GOLDEN: f64 = 5e-6;

/// The same where that optimiser happened to get closer: small enough to see a ridge of 1e-4.
pub const HUBER_RIDGE_SHOWS: f64 = 1e-7;

/// What whitening's 1e-8 in the root takes off a unit variance when the variance is 1e-2 or more.
pub const WHITENED: f64 = 1e-6;
