//! Where a model's parameters come from, a seeded generator or a checkpoint, and where they go.

use burn::module::{Param, ParamId};
use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::Rng;

use crate::rng::stream;

/// How a parameter starts when no checkpoint gives it.
#[derive(Clone, Copy, Debug)]
pub enum Init {
    /// Draws from N(0, std²).
    Normal(f64),
    /// All ones.
    Ones,
    /// All zeros.
    Zeros,
}

/// Where a model's parameters live, and in which type.
#[derive(Clone, Debug)]
pub struct Placement {
    /// The device.
    pub device: Device,
    /// The type of every parameter.
    pub dtype: DType,
}

impl From<&Device> for Placement {
    /// In f32.
    fn from(device: &Device) -> Self {
        Self { device: device.clone(), dtype: DType::F32 }
    }
}

/// Gives a parameter for a name and a shape.
pub trait Source {
    /// The values of the parameter called `name`, row by row, in any type; `init` says how to start a fresh
    /// one. Nothing where the source lacks it, which the source reports in the end.
    fn values(&mut self, name: &str, shape: &[usize], init: Init) -> Option<TensorData>;

    /// Where the parameters live.
    fn placement(&self) -> &Placement;

    /// The parameter called `name`.
    fn param<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
        init: Init,
    ) -> Param<Tensor<D>> {
        let values = self.values(name, &shape, init);
        let Placement { device, dtype } = self.placement();
        let value = match values {
            Some(values) => Tensor::from_data(values, (device, *dtype)),
            None => Tensor::zeros([1; D], device), // the model is never used
        };
        named_param(name, value)
    }
}

/// A parameter whose identity is its name, so that optimizer state finds it again after a restart.
pub(super) fn named_param<const D: usize>(name: &str, value: Tensor<D>) -> Param<Tensor<D>> {
    let id = ParamId::from(crate::rng::fnv1a(name.as_bytes()));
    let (_, value, mapper) = Param::from_tensor(value).consume();
    Param::from_mapped_value(id, value, mapper)
}

/// Fresh parameters. Each draws from a stream named after it, so that a model's parameters depend neither
/// on each other's number nor on the device.
pub struct Fresh {
    /// The run's seed.
    pub seed: u64,
    /// Where the parameters live.
    pub placement: Placement,
}

impl Source for Fresh {
    fn values(&mut self, name: &str, shape: &[usize], init: Init) -> Option<TensorData> {
        Some(fresh_values(self.seed, name, shape, init))
    }

    fn placement(&self) -> &Placement {
        &self.placement
    }
}

/// The starting values of a parameter, drawn for `purpose`.
pub(super) fn fresh_values(seed: u64, purpose: &str, shape: &[usize], init: Init) -> TensorData {
    let len = shape.iter().product();
    let values: Vec<f32> = match init {
        Init::Ones => vec![1.0; len],
        Init::Zeros => vec![0.0; len],
        Init::Normal(std) => {
            let mut rng = stream(seed, purpose, 0);
            (0..len).map(|_| (std * standard_normal(&mut rng)) as f32).collect()
        }
    };
    TensorData::new(values, shape)
}

/// One draw from N(0, 1) by the Box-Muller transform.
fn standard_normal(rng: &mut impl Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}
