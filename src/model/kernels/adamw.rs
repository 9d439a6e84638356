//! AdamW (Loshchilov and Hutter, arXiv 1711.05101): one pass over parameters, gradients and moments.

use burn::tensor::Tensor;

/// What one step is made with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta_1: f64,
    /// Decay of the second moment.
    pub beta_2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// What the gradient is multiplied by: the clip.
    pub factor: f64,
    /// Which step it is, from 1.
    pub step: usize,
}

/// The first and second moments of a parameter's gradients.
#[derive(Clone, Debug)]
pub struct Moments(pub Tensor<1>, pub Tensor<1>);

/// One step: the parameter `w` after it, for its gradient `g`; none of them with autodiff.
///
/// m ← β₁ m + (1 - β₁) g, v ← β₂ v + (1 - β₂) g²,
/// w ← w (1 - η λ) - η m̂ / (√v̂ + ε), with m̂ = m / (1 - β₁ᵗ) and v̂ = v / (1 - β₂ᵗ).
pub fn adamw(w: Tensor<1>, g: Tensor<1>, moments: &mut Moments, rates: Rates) -> Tensor<1> {
    #[cfg(feature = "flex")]
    if super::is_served(&w) {
        return served::adamw(w, g, moments, rates);
    }
    plain(w, g, moments, rates)
}

/// As [`adamw`], on any device.
pub fn plain(w: Tensor<1>, g: Tensor<1>, moments: &mut Moments, rates: Rates) -> Tensor<1> {
    let Constants { beta_1, beta_2, factor, keep, rate, root, epsilon } = Constants::of(rates);
    let g = g.mul_scalar(factor);
    let Moments(m, v) = moments;
    m.inplace(|m| m.mul_scalar(beta_1).add(g.clone().mul_scalar(1.0 - beta_1)));
    v.inplace(|v| v.mul_scalar(beta_2).add(g.square().mul_scalar(1.0 - beta_2)));
    let step = m.clone().div(v.clone().sqrt().mul_scalar(root).add_scalar(epsilon));
    w.mul_scalar(keep).sub(step.mul_scalar(rate))
}

/// The numbers of a step, in the type of the parameters.
struct Constants {
    beta_1: f32,
    beta_2: f32,
    factor: f32,
    /// 1 - η λ.
    keep: f32,
    /// η / (1 - β₁ᵗ).
    rate: f32,
    /// 1 / √(1 - β₂ᵗ).
    root: f32,
    epsilon: f32,
}

impl Constants {
    fn of(rates: Rates) -> Self {
        let corrected = |beta: f64| 1.0 - beta.powf(rates.step as f64);
        Self {
            beta_1: rates.beta_1 as f32,
            beta_2: rates.beta_2 as f32,
            factor: rates.factor as f32,
            keep: (1.0 - rates.learning_rate * rates.weight_decay) as f32,
            rate: (rates.learning_rate / corrected(rates.beta_1)) as f32,
            root: (1.0 / corrected(rates.beta_2).sqrt()) as f32,
            epsilon: rates.epsilon as f32,
        }
    }
}

#[cfg(feature = "flex")]
mod served {
    use burn::tensor::{Device, Tensor, TensorData};
    use rayon::prelude::*;

    use super::{Constants, Moments, Rates};
    use crate::model::kernels::simd::vectorized;

    /// Parameters that one thread takes at a time.
    const PART: usize = 1 << 15;

    pub(super) fn adamw(
        w: Tensor<1>,
        g: Tensor<1>,
        moments: &mut Moments,
        rates: Rates,
    ) -> Tensor<1> {
        let constants = Constants::of(rates);
        let take = |tensor: &mut Tensor<1>| {
            std::mem::replace(tensor, Tensor::empty([0], &Device::flex())).into_data()
        };
        let (mut m, mut v) = (take(&mut moments.0), take(&mut moments.1));
        let (mut w, g) = (w.into_data(), g.into_data());
        {
            let (w, m, v) = (slice(&mut w), slice(&mut m), slice(&mut v));
            let g = g.as_slice::<f32>().expect("f32");
            let parts = w.par_chunks_mut(PART).zip(m.par_chunks_mut(PART));
            let parts = parts.zip(v.par_chunks_mut(PART)).zip(g.par_chunks(PART));
            parts.for_each(|(((w, m), v), g)| step(w, m, v, g, &constants));
        }
        *moments = Moments(tensor(m), tensor(v));
        tensor(w)
    }

    vectorized! {
        fn step(
            w: &'a mut [f32], m: &'a mut [f32], v: &'a mut [f32], g: &'a [f32], constants: &'a Constants,
        ) {
            let &Constants { beta_1, beta_2, factor, keep, rate, root, epsilon } = constants;
            for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(g) {
                let g = g * factor;
                *m = beta_1 * *m + (1.0 - beta_1) * g;
                *v = beta_2 * *v + (1.0 - beta_2) * (g * g);
                *w = *w * keep - rate * (*m / (v.sqrt() * root + epsilon));
            }
        }
    }

    fn slice(data: &mut TensorData) -> &mut [f32] {
        data.as_mut_slice::<f32>().expect("f32")
    }

    fn tensor(data: TensorData) -> Tensor<1> {
        Tensor::from_data(data, &Device::flex())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::kernels::testing::{gap, numbers};

    fn rates(step: usize) -> Rates {
        Rates {
            learning_rate: 0.01,
            beta_1: 0.9,
            beta_2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            factor: 0.5,
            step,
        }
    }

    #[test]
    fn steps_are_those_of_the_formula_on_every_device() {
        let zeros = || numbers::<1>("m", [100]).zeros_like();
        let mut moments = [0, 1].map(|_| Moments(zeros(), zeros()));
        let mut w = [0, 1].map(|_| numbers::<1>("w", [100]));
        for step in 1..5 {
            let g = numbers::<1>(&format!("g{step}"), [100]);
            w[0] = adamw(w[0].clone(), g.clone(), &mut moments[0], rates(step));
            w[1] = plain(w[1].clone(), g, &mut moments[1], rates(step));
            assert!(gap(w[0].clone(), w[1].clone()) < 1e-6);
        }
    }

    #[test]
    fn the_first_step_is_the_rate_against_the_sign_of_the_gradient() {
        let (w, g) = (Tensor::<1>::from([1.0, 1.0]), Tensor::<1>::from([3.0, -0.2]));
        let mut moments = Moments(w.zeros_like(), w.zeros_like());
        let w = adamw(w, g, &mut moments, Rates { weight_decay: 0.0, ..rates(1) });
        assert!(gap(w, Tensor::from([0.99, 1.01])) < 1e-6);
    }
}
