//! Every tolerance of the specification: relative, or absolute below magnitude 1.

/// f64 on the host.
pub const HOST_F64: f64 = 1e-12;

/// A printed table of ten decimals.
pub const TABLE: f64 = 1e-9;

/// f32 on a CPU: also every golden, since the official code computed in f32.
pub const CPU_F32: f64 = 1e-5;

/// f32 on a GPU: sums in another order, approximate exponentials.
pub const GPU_F32: f64 = 1e-4;

/// transformers in f32, whose rotary angles are rounded to f32 too: in f64 its own logits, of magnitude 6, move
/// by up to 1e-5.
pub const TRANSFORMERS: f64 = 1e-4;

/// bf16: 8 bits of precision, through the layers of a model.
pub const BF16: f64 = 2e-2;

/// The same for the checkpoints in tests/data/hf, whose weights are drawn twenty times as large as models'
/// are. Over 200 rows, transformers in bf16 is there 3 % of the outputs' length off, and 10 % in the worst.
pub const BF16_LARGE_WEIGHTS: f64 = 6e-2;

/// The Huber regression of points of which most lie on a line: its scale falls to 0 as 1 / steps.
pub const HUBER_ON_A_LINE: f64 = 1e-4;

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

/// The gradient of a log-likelihood of up to 60 terms where Newton's method finds nothing higher in f64: the
/// objective is flat to 1e-15 there, and so the gradient to its root.
pub const STATIONARY: f64 = 1e-6;

/// A standard error by the delta method against that of 1000 resamples, whose own error is 2 %, and which
/// measure lengths anew.
pub const BOOTSTRAP: f64 = 0.1;

// The independent oracles, `oracles`.

/// Where a golden-section search sees a minimum: within 1e-8 of it the objective changes by less than one
/// part in 1e16; some times that where three searches are nested.
pub const GOLDEN_SECTION: f64 = 1e-6;

/// The entries of a gradient that count as 0: over a curvature of 0.01, 1e-5 in the parameters.
pub const VANISHED_GRADIENT: f64 = 1e-7;

/// Standard errors that an estimate may be off: a right one is further off once in 16,000 seeds.
pub const STANDARD_ERRORS: f64 = 4.0;

/// The total variation between where PPO ends and the optimum: 300 iterations of 256 samples, by a rate
/// that falls to 0, come as near as 0.001; a β that is 10 % off moves the optimum by 0.03.
pub const OPTIMUM: f64 = 0.005;

/// Mean and spread of normalized rewards in a third of the locations, four standard errors: one is 1 % for
/// the fit and 1 % for 11,000 rewards.
pub const NORMALIZED_THIRD: f64 = 0.06;

/// Utilities learned from 400 votes a pair: half a vote is 0.007 of a score, the mean of two segments, and
/// so 0.015 of a gap of 2 or 3.
pub const ROUNDED_VOTES: f64 = 0.01;
