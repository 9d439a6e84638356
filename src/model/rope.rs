//! Rotary positions: each pair of channels turns by an angle proportional to the position.

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, TensorData};

/// The rotary frequencies of a head.
#[derive(Clone, Debug)]
pub struct Rope {
    /// Radians a position, one for each pair of channels.
    frequencies: Vec<f64>,
}

impl Rope {
    /// Frequencies θ^(-2i/d) for i = 0 … d/2-1.
    pub fn new(head_dim: usize, theta: f64) -> Self {
        let exponent = |i: usize| -2.0 * i as f64 / head_dim as f64;
        Self { frequencies: (0..head_dim / 2).map(|i| theta.powf(exponent(i))).collect() }
    }

    /// The rotation of a batch whose `positions` are given row by row, each of `[B, S]`, in the type of
    /// the channels that it turns.
    pub fn rotation(
        &self,
        positions: &[usize],
        shape: [usize; 2],
        device: &Device,
        dtype: DType,
    ) -> Rotation {
        let pairs = self.frequencies.len();
        let first = positions.iter().min().map_or(0, |&p| p);
        let end = positions.iter().max().map_or(0, |&p| p + 1);
        let table: Vec<(f64, f64)> = (first..end)
            .flat_map(|p| self.frequencies.iter().map(move |f| (p as f64 * f).sin_cos()))
            .collect();
        let gather = |part: fn(&(f64, f64)) -> f64| {
            let row = |p: usize| &table[(p - first) * pairs..(p - first + 1) * pairs];
            let rows = positions.iter().flat_map(|&p| row(p));
            let data = TensorData::new(rows.map(part).collect(), [shape[0], 1, shape[1], pairs]);
            Tensor::<4>::from_data(data, (device, dtype))
        };
        Rotation { sin: gather(|angle| angle.0), cos: gather(|angle| angle.1) }
    }
}

/// Sines and cosines of a batch's positions, `[B, 1, S, head/2]`.
#[derive(Module, Debug)]
pub struct Rotation {
    sin: Tensor<4>,
    cos: Tensor<4>,
}

impl Rotation {
    /// Rotates `[B, H, S, head]`, pairing channel i with channel i + head/2 as Hugging Face does.
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let half = x.dims()[3] / 2;
        let (a, b) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
        let (sin, cos) = (self.sin.clone(), self.cos.clone());
        let rotated_a = a.clone().mul(cos.clone()).sub(b.clone().mul(sin.clone()));
        let rotated_b = b.mul(cos).add(a.mul(sin));
        Tensor::cat(vec![rotated_a, rotated_b], 3)
    }
}
