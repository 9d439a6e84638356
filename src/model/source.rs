//! Where a model's parameters come from: a seeded generator or a checkpoint.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use rand::Rng;

use super::layers::named_param;
use crate::rng::stream;

/// How a parameter starts when no checkpoint gives it.
#[derive(Clone, Copy, Debug)]
pub enum Init {
    /// Draws from N(0, std²).
    Normal(f64),
    /// All ones.
    Ones,
}

/// Gives a parameter for a name and a shape.
pub trait Source {
    /// The values of the parameter called `name`, row by row; `init` says how to start a fresh one. Nothing
    /// where the source lacks it, which the source reports in the end.
    fn values(&mut self, name: &str, shape: &[usize], init: Init) -> Option<Vec<f32>>;

    /// Where the parameters live.
    fn device(&self) -> &Device;

    /// The parameter called `name`.
    fn param<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
        init: Init,
    ) -> Param<Tensor<D>> {
        let value = match self.values(name, &shape, init) {
            Some(values) => Tensor::from_data(TensorData::new(values, shape), self.device()),
            None => Tensor::zeros([1; D], self.device()), // the model is never used
        };
        named_param(name, value)
    }
}

/// Fresh parameters. Each draws from a stream named after it, so that a model's parameters depend neither
/// on each other's number nor on the device.
pub struct Fresh<'a> {
    /// The run's seed.
    pub seed: u64,
    /// Where the parameters live.
    pub device: &'a Device,
}

impl Source for Fresh<'_> {
    fn values(&mut self, name: &str, shape: &[usize], init: Init) -> Option<Vec<f32>> {
        Some(fresh_values(self.seed, name, shape.iter().product(), init))
    }

    fn device(&self) -> &Device {
        self.device
    }
}

/// The starting values of a parameter, drawn for `purpose`.
pub(super) fn fresh_values(seed: u64, purpose: &str, len: usize, init: Init) -> Vec<f32> {
    match init {
        Init::Ones => vec![1.0; len],
        Init::Normal(std) => {
            let mut rng = stream(seed, purpose, 0);
            (0..len).map(|_| (std * standard_normal(&mut rng)) as f32).collect()
        }
    }
}

/// One draw from N(0, 1) by the Box-Muller transform.
fn standard_normal(rng: &mut impl Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}
