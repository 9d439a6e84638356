//! AdamW over what is trained of a model: gradient accumulation, a global-norm clip, a schedule, and saved
//! state. Of a model with adapters, these and the scalar head are trained, and all else is frozen.

use std::io;
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{
    AdamWConfig, GradientsAccumulator, GradientsParams, ModuleOptimizer, OptimizerRecord,
};
use burn::tensor::Tensor;

use super::checkpoint::{restore, write_trained};
use super::error::CheckpointError;
use super::recompute::Trainable;
use crate::atomic::NewFile;
use crate::bounds::{Bounds, section};

section! {
    /// How a model is optimized.
    OptimizerSettings {
        /// Peak learning rate.
        learning_rate: f64 = Bounds::Positive,
        /// Decay of the first moment.
        beta_1: f64 = Bounds::BelowOne,
        /// Decay of the second moment.
        beta_2: f64 = Bounds::BelowOne,
        /// Added to the root of the second moment.
        epsilon: f64 = Bounds::Positive,
        /// Decoupled weight decay.
        weight_decay: f64 = Bounds::NotNegative,
        /// Share of all steps over which the rate rises linearly from 0.
        warmup_fraction: f64 = Bounds::BelowOne,
        /// Rate at the end of the cosine decay, as a share of the peak.
        final_fraction: f64 = Bounds::ZeroToOne,
        /// Largest global norm of a gradient; a longer one is scaled down to it.
        max_gradient_norm: f64 = Bounds::PositiveOrInfinite,
    }
}

impl OptimizerSettings {
    /// The learning rate of `step` (from 0) of `total`: a linear warm-up, then a cosine decay.
    ///
    /// # Examples
    ///
    /// ```
    /// use segment_rlhf::model::optim::OptimizerSettings;
    /// let settings = OptimizerSettings {
    ///     learning_rate: 1.0, beta_1: 0.9, beta_2: 0.95, epsilon: 1e-8, weight_decay: 0.0,
    ///     warmup_fraction: 0.1, final_fraction: 0.1, max_gradient_norm: 1.0,
    /// };
    /// assert_eq!(settings.rate(0, 100), 0.1); // the first of 10 warm-up steps
    /// assert_eq!(settings.rate(9, 100), 1.0); // the last of them
    /// assert!((settings.rate(99, 100) - 0.1).abs() < 1e-3); // the end
    /// ```
    pub fn rate(&self, step: usize, total: usize) -> f64 {
        let warmup = (self.warmup_fraction * total as f64).ceil();
        let step = step as f64;
        if step < warmup {
            return self.learning_rate * (step + 1.0) / warmup;
        }
        let progress = ((step - warmup) / (total as f64 - warmup).max(1.0)).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        self.learning_rate * (self.final_fraction + (1.0 - self.final_fraction) * cosine)
    }
}

/// A loss, gradient or reward that is NaN or infinite.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error(
    "{tensor} is not finite at step {step}; the last good checkpoint is kept: lower the learning rate, or look at the inputs of that step"
)]
pub struct NonFinite {
    /// The loss, or the parameter whose gradient it is.
    pub tensor: String,
    /// The optimizer step, from 0.
    pub step: usize,
}

/// A model under training.
pub struct Trainer<M: Trainable> {
    /// `None` only during `update`.
    model: Option<M>,
    adamw: ModuleOptimizer,
    gradients: GradientsAccumulator<M>,
    settings: OptimizerSettings,
    name: &'static str,
    total: usize,
    step: usize,
}

impl<M: Trainable> Trainer<M> {
    /// Training of `model`, which must be on a device with autodiff, over `total` steps; `name` is what
    /// errors and checkpoint files call it.
    pub fn new(name: &'static str, model: M, settings: &OptimizerSettings, total: usize) -> Self {
        let adamw = AdamWConfig::new()
            .with_beta_1(settings.beta_1 as f32)
            .with_beta_2(settings.beta_2 as f32)
            .with_epsilon(settings.epsilon as f32)
            .with_weight_decay(settings.weight_decay as f32)
            .init();
        let gradients = GradientsAccumulator::new();
        Self {
            model: Some(model),
            adamw,
            gradients,
            settings: settings.clone(),
            name,
            total,
            step: 0,
        }
    }

    /// The model as it is now.
    pub fn model(&self) -> &M {
        self.model.as_ref().expect("there between steps")
    }

    /// Optimizer steps done.
    pub fn step(&self) -> usize {
        self.step
    }

    /// The learning rate of the next step.
    pub fn rate(&self) -> f64 {
        self.settings.rate(self.step, self.total)
    }

    /// Adds the gradient of `loss` to the next step's, and returns the loss.
    ///
    /// # Errors
    ///
    /// [`NonFinite`] when the loss is.
    pub fn accumulate(&mut self, loss: Tensor<1>) -> Result<f64, NonFinite> {
        let value = f64::from(loss.clone().into_scalar::<f32>());
        if !value.is_finite() {
            let tensor = format!("the {} loss", self.name);
            return Err(NonFinite { tensor, step: self.step });
        }
        let found = loss.backward();
        let model = self.model.as_ref().expect("there between steps");
        let mut add = |gradients| self.gradients.accumulate(model, gradients);
        model.replay(&found, &mut add);
        add(GradientsParams::from_grads(found, model));
        Ok(value)
    }

    /// One AdamW step with the gradient accumulated so far, clipped to the global norm; returns the norm
    /// before the clip.
    ///
    /// # Errors
    ///
    /// [`NonFinite`] when a gradient is; the model is then unchanged.
    pub fn update(&mut self) -> Result<f64, NonFinite> {
        let mut gradients = self.gradients.grads();
        let norm = self.clip(&mut gradients)?;
        let rate = self.rate();
        // Moved, so that each parameter makes room for its successor.
        self.model = self.model.take().map(|model| self.adamw.step(rate, model, gradients));
        self.step += 1;
        Ok(norm)
    }

    /// Scales the gradients down to the largest global norm allowed; returns the norm before.
    fn clip(&self, gradients: &mut GradientsParams) -> Result<f64, NonFinite> {
        let norms = Norms::of(self.model(), gradients);
        let norm = norms.global();
        if !norm.is_finite() {
            let tensor = format!("the {} gradient of {}", self.name, norms.first_non_finite());
            return Err(NonFinite { tensor, step: self.step });
        }
        if norm > self.settings.max_gradient_norm {
            let factor = self.settings.max_gradient_norm / norm;
            self.model().visit(&mut Scale { gradients, factor });
        }
        Ok(norm)
    }

    /// Writes what is trained of the model to the safetensors file `path`.
    ///
    /// # Errors
    ///
    /// Whatever the system says.
    pub fn write_weights(&self, path: &Path) -> io::Result<()> {
        write_trained(self.model(), path)
    }

    /// The model with what [`Trainer::write_weights`] wrote to `path`.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] when the weights are not those of this model.
    pub fn model_with(&self, path: &Path) -> Result<M, CheckpointError> {
        restore(self.model().clone(), path)
    }

    /// The files that hold what is trained of the model, and the optimizer's state.
    pub fn files(&self) -> [NewFile<'_>; 2] {
        let state = |path: &Path| {
            let saved = self.adamw.to_record().save(path);
            saved.map_err(|error| io::Error::other(error.to_string()))
        };
        let weights = |path: &Path| self.write_weights(path);
        [(self.weights_file(), Box::new(weights)), (self.state_file(), Box::new(state))]
    }

    fn weights_file(&self) -> String {
        format!("{}.safetensors", self.name)
    }

    fn state_file(&self) -> String {
        format!("{}.adamw", self.name)
    }

    /// Goes on after `step` optimizer steps, from what [`Trainer::files`] wrote into the folder `dir`.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] when the files are not those of this model.
    pub fn resume(&mut self, step: usize, dir: &Path) -> Result<(), CheckpointError> {
        let model = self.model.take().expect("there between steps");
        self.model = Some(restore(model, &dir.join(self.weights_file()))?);
        let path = dir.join(self.state_file());
        let record = OptimizerRecord::load(&path)
            .map_err(|error| CheckpointError::Format { path, detail: error.to_string() })?;
        self.adamw = self.adamw.clone().load_record(record);
        self.step = step;
        Ok(())
    }
}

/// The squared norm of each parameter's gradient.
struct Norms {
    names: Vec<String>,
    squares: Vec<f32>,
}

impl Norms {
    fn of<M: Module>(model: &M, gradients: &GradientsParams) -> Self {
        let mut visit = Squares { gradients, path: vec![], names: vec![], squares: vec![] };
        model.visit(&mut visit);
        let Squares { names, squares, .. } = visit;
        Self { names, squares: super::generate::to_vec(Tensor::cat(squares, 0)) }
    }

    fn global(&self) -> f64 {
        self.squares.iter().map(|&square| f64::from(square)).sum::<f64>().sqrt()
    }

    fn first_non_finite(&self) -> &str {
        let at = self.squares.iter().position(|square| !square.is_finite());
        at.map_or("all parameters together", |i| &self.names[i])
    }
}

struct Squares<'a> {
    gradients: &'a GradientsParams,
    path: Vec<String>,
    names: Vec<String>,
    squares: Vec<Tensor<1>>,
}

impl ModuleVisitor for Squares<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if !param.is_require_grad() {
            return; // frozen
        }
        let name = self.path.join(".");
        let gradient = self.gradients.get::<D>(param.id);
        let gradient = gradient.unwrap_or_else(|| panic!("{name} has no gradient"));
        self.squares.push(gradient.square().sum());
        self.names.push(name);
    }
}

struct Scale<'a> {
    gradients: &'a mut GradientsParams,
    factor: f64,
}

impl ModuleVisitor for Scale<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.remove::<D>(param.id) {
            self.gradients.register(param.id, gradient.mul_scalar(self.factor));
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::model::checkpoint::to_safetensors;
    use crate::model::generate::response_log_probs;
    use crate::model::{CausalLm, Grid};
    use crate::settings::Settings;

    /// A trainer, and a loss of its model: minus the mean log-probability of a response.
    fn trainer(max_gradient_norm: f64) -> (Trainer<CausalLm>, Tensor<1>) {
        let defaults = Settings::defaults();
        let config = defaults.model.config(11, 16);
        let settings = OptimizerSettings { max_gradient_norm, ..defaults.sft.optimizer };
        let model = CausalLm::fresh(&config, 0, &Device::flex().autodiff());
        let trainer = Trainer::new("policy", model, &settings, 1);
        let (grid, first) = Grid::aligned([(&[1, 2][..], &[3, 4, 5][..])]);
        let loss = response_log_probs(trainer.model(), &grid, first).0.mean().neg();
        (trainer, loss)
    }

    /// The norm before the clip, and the norm that the optimizer would see.
    fn clipped(max_gradient_norm: f64) -> (f64, f64) {
        let (mut trainer, loss) = trainer(max_gradient_norm);
        trainer.accumulate(loss).unwrap();
        let mut gradients = trainer.gradients.grads();
        let before = trainer.clip(&mut gradients).unwrap();
        (before, Norms::of(trainer.model(), &gradients).global())
    }

    #[test]
    fn a_gradient_longer_than_the_clip_is_scaled_down_to_it_as_a_whole() {
        let (before, after) = clipped(0.5);
        assert!(before > 0.5, "{before}");
        assert!((after - 0.5).abs() < 1e-6, "{after}");
    }

    #[test]
    fn a_gradient_within_the_clip_is_left_alone() {
        let (before, after) = clipped(1e3);
        assert_eq!(before, after);
    }

    #[test]
    fn a_loss_that_is_not_finite_is_refused() {
        let (mut trainer, loss) = trainer(1.0);
        let refused = NonFinite { tensor: "the policy loss".into(), step: 0 };
        assert_eq!(trainer.accumulate(loss * f64::INFINITY), Err(refused));
    }

    #[test]
    fn a_gradient_that_is_not_finite_is_refused_by_name_and_the_model_left_alone() {
        let (mut trainer, loss) = trainer(1.0);
        let before = to_safetensors(trainer.model());
        // 0, where the root has no finite slope.
        trainer.accumulate((loss.clone() - loss.detach()).sqrt()).unwrap();
        let tensor = "the policy gradient of model.embed_tokens.weight".into();
        assert_eq!(trainer.update(), Err(NonFinite { tensor, step: 0 }));
        assert_eq!(to_safetensors(trainer.model()), before);
    }
}
