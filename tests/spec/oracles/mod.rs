//! Independent oracles: the equations against answers that are known without them, by brute force, in
//! closed form, or because the data was drawn from a known law.

mod bradley_terry;
mod clipping;
mod credit;
mod entropy;
mod enumerated;
mod huber;
mod normalizer;
mod optimum;
mod tabular;

use rand::Rng;
use segment_rlhf::rng::Stream;

/// One draw from N(0, 1), by the Box-Muller transform.
fn standard_normal(draws: &mut Stream) -> f64 {
    let radius = (-2.0 * (1.0 - draws.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * draws.random::<f64>()).cos()
}
