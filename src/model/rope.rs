//! Rotary positions: each pair of channels turns by an angle proportional to the position.

use std::f64::consts::TAU;
use std::sync::{Arc, Mutex};

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, TensorData};

use super::config::{ModelConfig, RopeScaling};
use crate::model::kernels::attention::Angles;

/// The rotary frequencies of a head.
#[derive(Clone, Debug)]
pub struct Rope {
    /// Radians a position, one for each pair of channels.
    frequencies: Vec<f64>,
    /// Their base.
    theta: f64,
    /// What the channels that turn are scaled by.
    scale: f64,
    /// The tokens of the longest sequence that they serve.
    longest: usize,
    /// The angles of the first positions, made once and shared by copies of the model.
    angles: Arc<Mutex<Arc<Angles>>>,
}

impl Rope {
    /// Frequencies θ^(-2i/d) for i = 0 … d/2-1, for `channels` d.
    pub fn new(channels: usize, theta: f64) -> Self {
        let exponent = |i: usize| -2.0 * i as f64 / channels as f64;
        let frequencies = (0..channels / 2).map(|i| theta.powf(exponent(i))).collect();
        Self { frequencies, theta, scale: 1.0, longest: usize::MAX, angles: Arc::default() }
    }

    /// The frequencies of a model.
    pub fn of(config: &ModelConfig) -> Self {
        let plain = Self::new(config.rotary_dim(), config.rope_theta);
        let scaled = plain.scaled(&config.rope_scaling, config.max_position_embeddings);
        Self { longest: config.length_limit().tokens, angles: Arc::default(), ..scaled }
    }

    /// The same frequencies changed for sequences of up to `longest` tokens.
    pub fn scaled(mut self, scaling: &RopeScaling, longest: usize) -> Self {
        let channels = 2.0 * self.frequencies.len() as f64;
        let each = self.frequencies.iter_mut();
        match scaling {
            RopeScaling::None | RopeScaling::Dynamic { .. } => {}
            RopeScaling::Yarn {
                factor,
                attention_factor,
                mscale,
                beta_fast,
                beta_slow,
                truncate,
                original,
            } => {
                // The place of the frequency that turns so many times within the original length.
                let place = |turns: f64| {
                    channels * (*original as f64 / (turns * TAU)).ln() / (2.0 * self.theta.ln())
                };
                let (low, high) = (place(*beta_fast), place(*beta_slow));
                let (low, high) = if *truncate { (low.floor(), high.ceil()) } else { (low, high) };
                let (low, high) = (low.max(0.0), high.min(channels - 1.0));
                let width = if low == high { 0.001 } else { high - low };
                each.zip(0..).for_each(|(f, i)| {
                    let ramp = ((f64::from(i) - low) / width).clamp(0.0, 1.0);
                    *f *= 1.0 - ramp + ramp / factor;
                });
                let attention = |weight: f64| 1.0 + 0.1 * weight * factor.ln().max(0.0);
                let default = match mscale {
                    Some([above, below]) => attention(*above) / attention(*below),
                    None => attention(1.0),
                };
                self.scale = attention_factor.unwrap_or(default);
            }
            RopeScaling::Linear { factor } => each.for_each(|f| *f /= factor),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => each
                .for_each(|f| {
                    let turns = *original as f64 * *f / TAU;
                    let high = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    let high = high.clamp(0.0, 1.0);
                    *f *= high + (1.0 - high) / factor;
                }),
            RopeScaling::LongRope { short_factor, attention_factor, original, .. } => {
                each.zip(short_factor).for_each(|(f, factor)| *f /= factor);
                let original = *original as f64;
                let stretch = (longest as f64 / original).max(1.0);
                let default = (1.0 + stretch.ln() / original.ln()).sqrt();
                self.scale = attention_factor.unwrap_or(default);
            }
        }
        self
    }

    /// The tokens of the longest sequence that the frequencies serve.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    /// Scaled sines and cosines of at least the first `tokens` positions.
    pub(super) fn angles(&self, tokens: usize) -> Arc<Angles> {
        let pairs = self.frequencies.len();
        let mut known = self.angles.lock().expect("no table panics");
        if known.sin.len() < tokens * pairs || known.pairs != pairs {
            let (sin, cos) = (0..tokens.next_power_of_two())
                .flat_map(|p| self.frequencies.iter().map(move |f| (p as f64 * f).sin_cos()))
                .map(|(sin, cos)| ((self.scale * sin) as f32, (self.scale * cos) as f32))
                .unzip();
            *known = Arc::new(Angles { pairs, sin, cos });
        }
        known.clone()
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
            .map(|(sin, cos)| (self.scale * sin, self.scale * cos))
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

/// Scaled sines and cosines of a batch's positions, `[B, 1, S, pairs]`.
#[derive(Module, Debug)]
pub struct Rotation {
    sin: Tensor<4>,
    cos: Tensor<4>,
}

impl Rotation {
    /// Rotates the first channels of `[B, H, S, head]`, 2P for P frequencies, pairing channel i with channel
    /// i + P as Hugging Face does; the others stay.
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let (head, half) = (x.dims()[3], self.sin.dims()[3]);
        let still = (2 * half < head).then(|| x.clone().narrow(3, 2 * half, head - 2 * half));
        let (a, b) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
        let (sin, cos) = (self.sin.clone(), self.cos.clone());
        let rotated_a = a.clone().mul(cos.clone()).sub(b.clone().mul(sin.clone()));
        let rotated_b = b.mul(cos).add(a.mul(sin));
        Tensor::cat([rotated_a, rotated_b].into_iter().chain(still).collect(), 3)
    }
}
