//! AdamW over what is trained of a model: gradient accumulation, a global-norm clip, a schedule, and saved
//! state. Of a model with adapters, these and the scalar head are trained, and all else is frozen.
//!
//! With several ranks, each reads its share of the shards, and steps its share of the parameters: it alone keeps their
//! moments, and sends their new values to the others.

use std::borrow::Cow;
use std::io;
use std::ops::Range;
use std::path::Path;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{DType, Device, Tensor, TensorData};

use super::checkpoint::{read_flat, restore, write_flat, write_trained};
use super::error::CheckpointError;
use super::generate::to_vec;
use super::recompute::Trainable;
use super::shards::{join, subtrees, tree_sum};
use crate::atomic::NewFile;
use crate::bounds::{Bounds, section};
use crate::model::kernels::adamw::{Moments, Rates, adamw};
use crate::model::kernels::is_cpu;
use crate::ranks;

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
    /// The trained parameters, in the order in which the model is visited: names and lengths.
    trained: Vec<(String, usize)>,
    /// Which of them each rank steps.
    shares: Vec<Range<usize>>,
    /// Of this rank's share of the parameters; none before the first step.
    moments: Vec<Moments>,
    /// What has been accumulated for the next step. With several ranks on the CPU it is summed over ranks at once, so that
    /// every number of ranks adds in the same order, and is of this rank's share; elsewhere it is this rank's own until the
    /// step, so that there is one exchange a step.
    gradient: Option<Gradient>,
    /// The losses whose gradients those are, of all ranks, on the device.
    losses: Vec<Tensor<1>>,
    settings: OptimizerSettings,
    name: &'static str,
    total: usize,
    step: usize,
}

/// What an optimizer step was made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepResult {
    /// The sum of the losses.
    pub loss: f64,
    /// The global norm of the gradient, before the clip.
    pub gradient_norm: f64,
}

impl<M: Trainable> Trainer<M> {
    /// Training of `model`, which must be on a device with autodiff, over `total` steps; `name` is what
    /// errors and checkpoint files call it.
    pub fn new(name: &'static str, model: M, settings: &OptimizerSettings, total: usize) -> Self {
        let trained = trained(&model);
        let lengths: Vec<usize> = trained.iter().map(|(_, length)| *length).collect();
        Self {
            model: Some(model),
            trained,
            shares: ranks::shares_by_size(&lengths),
            moments: Vec::new(),
            gradient: None,
            losses: Vec::new(),
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

    /// Adds the gradients of the losses, `[1]`, of all `shards` to the next step's. The shards are shared out among ranks,
    /// and read side by side, each with a model of its own. `loss` may return tensors beside the loss, `[N]` each: they are
    /// given back for every shard, in order.
    pub fn accumulate<T: Send, const N: usize>(
        &mut self,
        shards: Vec<T>,
        loss: impl Fn(&M, T) -> (Tensor<1>, [Tensor<1>; N]) + Sync,
    ) -> Vec<[Tensor<1>; N]> {
        let model = self.model();
        let all = 0..shards.len();
        let own = ranks::share(shards.len());
        let shards: Vec<T> = shards.into_iter().skip(own.start).take(own.len()).collect();
        let mut shards = shards.into_iter().map(|shard| (model.rank(), shard));
        let read = |(model, shard): (M, T)| {
            let (loss, rest) = loss(&model, shard);
            let (value, found) = (loss.clone().inner(), loss.backward());
            let mut gradients = GradientsAccumulator::new();
            let mut add = |part| gradients.accumulate(&model, part);
            model.replay(&found, &mut add);
            add(GradientsParams::from_grads(found, &model));
            (Gradient::of(&model, gradients.grads()), vec![value], vec![rest])
        };
        let (mut sums, mut losses, mut rest) = (Vec::new(), Vec::new(), Vec::new());
        for subtree in subtrees(&all, &own) {
            let shards = shards.by_ref().take(subtree.len()).collect();
            let (sum, of_losses, of_rest) = ranks::apart(|| {
                tree_sum(shards, &read, &|left, right| {
                    let (gradient, losses, rest) = left;
                    let both = gradient.add(right.0);
                    (both, [losses, right.1].concat(), rest.into_iter().chain(right.2).collect())
                })
            });
            sums.push(sum);
            losses.extend(of_losses);
            rest.extend(of_rest);
        }
        if ranks::size() > 1 {
            let device = device_of(model);
            (losses, rest) = gather(losses, rest, &device);
            if is_cpu(&device) {
                sums = vec![self.reduce(&all, &sums, &device)];
            }
        }
        self.losses.extend(losses);
        self.gradient = self.gradient.take().into_iter().chain(sums).reduce(Gradient::add);
        rest
    }

    /// The gradient of the step, of this rank's share of the parameters.
    fn sum_of_ranks(&mut self) -> Gradient {
        let gradient = self.gradient.take();
        let device = device_of(self.model());
        if ranks::size() == 1 || is_cpu(&device) {
            return gradient.expect("a gradient");
        }
        // A rank may have had no rows.
        let zeros = || {
            let parts = self.trained.iter().map(|(_, length)| Tensor::zeros([*length], &device));
            Gradient { parts: parts.collect() }
        };
        self.reduce(&(0..ranks::size()), &[gradient.unwrap_or_else(zeros)], &device)
    }

    /// This rank's share of the sum of all gradients, given the sums of the largest subtrees of its shards: along the tree
    /// over all shards, wherever they were read, or by the devices themselves where these are joined.
    fn reduce(&self, shards: &Range<usize>, sums: &[Gradient], device: &Device) -> Gradient {
        let own = self.own();
        if let Some(mut parts) = self.reduce_on_devices(sums, device) {
            return Gradient { parts: parts.drain(own).collect() };
        }
        let for_rank = |share: &Range<usize>| {
            let parts = sums.iter().flat_map(|sum| &sum.parts[share.clone()]);
            parts.map(to_bytes).collect::<Vec<_>>().concat()
        };
        let received = ranks::exchange(self.shares.iter().map(for_rank).collect());
        // Of each rank, its subtrees, and of each of these, this rank's share of the parameters.
        let lengths: Vec<usize> = self.trained[own.clone()].iter().map(|(_, n)| 4 * n).collect();
        let length: usize = lengths.iter().sum();
        let mut of_subtree = Vec::new();
        for (rank, bytes) in received.iter().enumerate() {
            let subtrees = subtrees(shards, &ranks::share_of(rank, shards.len())).into_iter();
            let sums = subtrees.enumerate();
            of_subtree.extend(sums.map(|(i, of)| (of, &bytes[i * length..(i + 1) * length])));
        }
        let mut start = 0;
        let parts = lengths.iter().map(|&length| {
            let part = start..start + length;
            start = part.end;
            let mut sum_of = |items: &Range<usize>| {
                let (_, bytes) = of_subtree.iter().find(|(subtree, _)| subtree == items)?;
                Some(from_bytes(&bytes[part.clone()], device))
            };
            join(shards, &mut sum_of, &|left: Tensor<1>, right| left.add(right))
        });
        Gradient { parts: parts.collect() }
    }

    /// The sums of all parameters' gradients, made by the devices of the ranks; `None` where these are not joined.
    fn reduce_on_devices(&self, sums: &[Gradient], device: &Device) -> Option<Vec<Tensor<1>>> {
        let part = |(i, (_, length)): (usize, &(String, usize))| {
            let own = sums.iter().map(|sum| sum.parts[i].clone()).reduce(Tensor::add);
            ranks::sum(&own.unwrap_or_else(|| Tensor::zeros([*length], device)))
        };
        self.trained.iter().enumerate().map(part).collect()
    }

    /// One AdamW step with the gradient accumulated so far, clipped to the global norm.
    ///
    /// # Errors
    ///
    /// [`NonFinite`] when a loss or a gradient is; the model is then unchanged.
    ///
    /// # Panics
    ///
    /// If nothing has been accumulated.
    pub fn update(&mut self) -> Result<StepResult, NonFinite> {
        let gradient = self.sum_of_ranks();
        let (loss, norm) = self.read(&gradient)?;
        let settings = &self.settings;
        let rates = Rates {
            learning_rate: self.rate(),
            beta_1: settings.beta_1,
            beta_2: settings.beta_2,
            epsilon: settings.epsilon,
            weight_decay: settings.weight_decay,
            factor: (settings.max_gradient_norm / norm).min(1.0),
            step: self.step + 1,
        };
        if self.moments.is_empty() {
            let zeros = |g: &Tensor<1>| Moments(g.zeros_like(), g.zeros_like());
            self.moments = gradient.parts.iter().map(zeros).collect();
        }
        let gradients = gradient.parts.into_iter();
        let mut moments = std::mem::take(&mut self.moments);
        let mut apply = Apply { gradients, moments: moments.iter_mut(), rates };
        if ranks::size() == 1 {
            // Moved, so that each parameter makes room for its successor.
            self.model = self.model.take().map(|model| model.map(&mut apply));
        } else {
            let (own, model) = (self.own(), self.model.take().expect("there between steps"));
            let mut step = StepOwn { apply, own, number: 0, stepped: Vec::new() };
            model.visit(&mut step);
            let stepped = self.share_out(step.stepped, &device_of(&model));
            self.model = Some(model.map(&mut Replace(stepped.into_iter())));
        }
        self.moments = moments;
        self.step += 1;
        Ok(StepResult { loss, gradient_norm: norm })
    }

    /// The sum of the losses and the norm of the gradient, fetched in one transfer.
    fn read(&mut self, gradient: &Gradient) -> Result<(f64, f64), NonFinite> {
        let losses = std::mem::take(&mut self.losses);
        let count = losses.len();
        let all = losses.into_iter().chain(gradient.squares()).collect();
        let read = to_vec(Tensor::cat(all, 0));
        let (losses, squares) = read.split_at(count);
        let squares = match ranks::size() {
            1 => squares.to_vec(),
            _ => ranks::gather(&squares.to_vec()).concat(),
        };
        let loss: f64 = losses.iter().map(|&loss| f64::from(loss)).sum();
        let norm = squares.iter().map(|&square| f64::from(square)).sum::<f64>().sqrt();
        let refuse = |tensor| Err(NonFinite { tensor, step: self.step });
        if !loss.is_finite() {
            return refuse(format!("the {} loss", self.name));
        }
        if !norm.is_finite() {
            let at = squares.iter().position(|square| !square.is_finite());
            let which = at.map_or("all parameters together", |i| &self.trained[i].0);
            return refuse(format!("the {} gradient of {which}", self.name));
        }
        Ok((loss, norm))
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

    /// The parameters that this rank steps.
    fn own(&self) -> Range<usize> {
        self.shares[ranks::rank()].clone()
    }

    /// The new values of all parameters, given those that this rank has stepped.
    fn share_out(&self, own: Vec<Tensor<1>>, device: &Device) -> Vec<Tensor<1>> {
        let is_own = self.own();
        // Where devices are joined, each value is the sum of itself and of zeros.
        let part = |(i, (_, length)): (usize, &(String, usize))| match is_own.contains(&i) {
            true => ranks::sum(&own[i - is_own.start]),
            false => ranks::sum(&Tensor::zeros([*length], device)),
        };
        let summed: Option<Vec<_>> = self.trained.iter().enumerate().map(part).collect();
        summed.unwrap_or_else(|| {
            let own = own.iter().map(to_bytes).collect::<Vec<_>>().concat();
            let all = ranks::gather_bytes(own).concat(); // each rank's share follows that of the one before
            let mut rest = &all[..];
            let parts = self.trained.iter().map(|(_, length)| {
                let (part, after) = rest.split_at(4 * length);
                rest = after;
                from_bytes(part, device)
            });
            parts.collect()
        })
    }

    /// The files that hold what is trained of the model, and the optimizer's state. All ranks ask for them, and the first
    /// writes them.
    pub fn files(&self) -> [NewFile<'_>; 2] {
        let moments = self.all_moments();
        let state = move |path: &Path| {
            let each = self.trained.iter().zip(&*moments).flat_map(|((name, _), Moments(m, v))| {
                [(format!("{name}.first"), m), (format!("{name}.second"), v)]
            });
            write_flat(each, path)
        };
        let weights = |path: &Path| self.write_weights(path);
        [(self.weights_file(), Box::new(weights)), (self.state_file(), Box::new(state))]
    }

    /// On the first rank, the moments of all parameters.
    fn all_moments(&self) -> Cow<'_, [Moments]> {
        if ranks::size() == 1 {
            return Cow::Borrowed(&self.moments);
        }
        let own = self.moments.iter().flat_map(|Moments(m, v)| [to_bytes(m), to_bytes(v)]);
        let mut messages = vec![Vec::new(); ranks::size()];
        messages[0] = own.collect::<Vec<_>>().concat();
        let received = ranks::exchange(messages).concat();
        if !ranks::is_first() {
            return Cow::Borrowed(&[]);
        }
        let mut rest = &received[..];
        let device = on_host(device_of(self.model()));
        let mut next = |length: usize| {
            let (part, after) = rest.split_at(4 * length);
            rest = after;
            from_bytes(part, &device)
        };
        self.trained.iter().map(|&(_, length)| Moments(next(length), next(length))).collect()
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
        let device = device_of(&model);
        self.model = Some(restore(model, &dir.join(self.weights_file()))?);
        let each = self.trained.iter().flat_map(|(name, length)| {
            [(format!("{name}.first"), *length), (format!("{name}.second"), *length)]
        });
        let own = self.own();
        let kept = 2 * own.start..2 * own.end;
        let mut read = read_flat(&dir.join(self.state_file()), each, kept, &device)?.into_iter();
        self.moments.clear();
        while let (Some(first), Some(second)) = (read.next(), read.next()) {
            self.moments.push(Moments(first, second));
        }
        self.step = step;
        Ok(())
    }
}

/// The losses and what comes beside them, of the shards of all ranks.
fn gather<const N: usize>(
    losses: Vec<Tensor<1>>,
    rest: Vec<[Tensor<1>; N]>,
    device: &Device,
) -> (Vec<Tensor<1>>, Vec<[Tensor<1>; N]>) {
    let shards = losses.into_iter().zip(rest);
    let shards: Vec<(Vec<f32>, Vec<Vec<f32>>)> =
        shards.map(|(loss, rest)| (to_vec(loss), rest.map(to_vec).to_vec())).collect();
    let tensor = |values: Vec<f32>| Tensor::from_floats(&values[..], device);
    let shards = ranks::gather(&shards).into_iter().flatten();
    shards
        .map(|(loss, rest)| {
            let rest: [Vec<f32>; N] = rest.try_into().expect("as many as on this rank");
            (tensor(loss), rest.map(tensor))
        })
        .unzip()
}

/// The device of a model under training, without autodiff.
fn device_of<M: Module>(model: &M) -> Device {
    model.devices().remove(0).without_autodiff()
}

/// The host, which is a device of this build.
#[cfg(feature = "flex")]
fn on_host(_: Device) -> Device {
    Device::flex()
}

/// The device itself: the host is none of this build.
#[cfg(not(feature = "flex"))]
fn on_host(device: Device) -> Device {
    device
}

/// The bytes of a tensor of f32.
fn to_bytes(part: &Tensor<1>) -> Vec<u8> {
    part.to_data().convert::<f32>().as_bytes().to_vec()
}

/// The tensor of these bytes of f32.
fn from_bytes(bytes: &[u8], device: &Device) -> Tensor<1> {
    let value = |bytes: &[u8]| f32::from_ne_bytes(bytes.try_into().expect("four bytes"));
    let values: Vec<f32> = bytes.chunks_exact(4).map(value).collect();
    let length = values.len();
    Tensor::from_data(TensorData::new(values, [length]), (device, DType::F32))
}

/// The gradients of trained parameters, each flat, in the order in which the model is visited.
#[derive(Debug)]
struct Gradient {
    parts: Vec<Tensor<1>>,
}

impl Gradient {
    fn of<M: Module>(model: &M, gradients: GradientsParams) -> Self {
        let mut visit = Visit { path: Vec::new(), parts: Vec::new(), gradients };
        model.visit(&mut visit);
        Self { parts: visit.parts }
    }

    fn add(self, other: Self) -> Self {
        let parts = self.parts.into_iter().zip(other.parts).map(|(a, b)| a.add(b)).collect();
        Self { parts }
    }

    /// The squared norm of each part, `[1]`.
    fn squares(&self) -> impl Iterator<Item = Tensor<1>> {
        self.parts.iter().map(|part| part.clone().square().sum())
    }
}

struct Visit {
    path: Vec<String>,
    gradients: GradientsParams,
    parts: Vec<Tensor<1>>,
}

impl ModuleVisitor for Visit {
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
        let gradient = self.gradients.remove::<D>(param.id);
        let name = || self.path.join(".");
        let gradient = gradient.unwrap_or_else(|| panic!("{} has no gradient", name()));
        let length: usize = gradient.dims().iter().product();
        self.parts.push(gradient.reshape([length]));
    }
}

/// Names and lengths of the trained parameters, in the order in which the model is visited.
fn trained<M: Module>(model: &M) -> Vec<(String, usize)> {
    struct Lengths(Vec<String>, Vec<(String, usize)>);
    impl ModuleVisitor for Lengths {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.0.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                self.1.push((self.0.join("."), param.dims().iter().product()));
            }
        }
    }
    let mut lengths = Lengths(Vec::new(), Vec::new());
    model.visit(&mut lengths);
    lengths.1
}

/// Gives each trained parameter the value after a step.
struct Apply<'a> {
    gradients: std::vec::IntoIter<Tensor<1>>,
    moments: std::slice::IterMut<'a, Moments>,
    rates: Rates,
}

impl Apply<'_> {
    /// The next parameter after the step, flat, without autodiff.
    fn next(&mut self, value: Tensor<1>) -> Tensor<1> {
        let (gradient, moments) = (self.gradients.next(), self.moments.next());
        adamw(value, gradient.expect("of each"), moments.expect("of each"), self.rates)
    }
}

impl ModuleMapper for Apply<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if !param.is_require_grad() {
            return param;
        }
        replace(param, |value| self.next(value))
    }
}

/// The parameter with what `new` makes of its value, flat and without autodiff.
fn replace<const D: usize>(
    param: Param<Tensor<D>>,
    new: impl FnOnce(Tensor<1>) -> Tensor<1>,
) -> Param<Tensor<D>> {
    param.map(|value| {
        let (shape, device) = (value.dims(), value.device());
        let value = new(value.inner().reshape([shape.iter().product::<usize>()]));
        Tensor::from_inner(value.reshape(shape)).to_device(&device).require_grad()
    })
}

/// Steps this rank's share of the parameters, and leaves the model as it is.
struct StepOwn<'a> {
    apply: Apply<'a>,
    own: Range<usize>,
    /// Of the next parameter.
    number: usize,
    stepped: Vec<Tensor<1>>,
}

impl ModuleVisitor for StepOwn<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if !param.is_require_grad() {
            return;
        }
        if self.own.contains(&self.number) {
            let value = param.val().inner();
            let length: usize = value.dims().iter().product();
            self.stepped.push(self.apply.next(value.reshape([length])));
        }
        self.number += 1;
    }
}

/// Gives each trained parameter the next of these values.
struct Replace(std::vec::IntoIter<Tensor<1>>);

impl ModuleMapper for Replace {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if !param.is_require_grad() {
            return param;
        }
        let value = self.0.next().expect("a value of each");
        replace(param, |_| value)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use burn::tensor::Device;

    use super::*;
    use crate::model::checkpoint::to_safetensors;
    use crate::model::generate::response_log_probs;
    use crate::model::{CausalLm, Grid};
    use crate::ranks::threads;
    use crate::settings::Settings;

    const ROWS: [(&[u32], &[u32]); 4] =
        [(&[1, 2], &[3, 4, 5]), (&[6], &[7, 8]), (&[9, 1, 4], &[2]), (&[5, 5], &[10, 3, 3, 1])];

    fn trainer(max_gradient_norm: f64) -> Trainer<CausalLm> {
        let defaults = Settings::defaults();
        let config = defaults.model.config(11, 16);
        let settings = OptimizerSettings { max_gradient_norm, ..defaults.sft.optimizer };
        let model = CausalLm::fresh(&config, 0, &Device::flex().autodiff());
        Trainer::new("policy", model, &settings, 1)
    }

    /// Minus the log-probability of some responses.
    fn loss(model: &CausalLm, rows: Range<usize>) -> Tensor<1> {
        let (grid, first) = Grid::aligned(ROWS[rows].iter().copied());
        response_log_probs(model, &grid, first).0.sum().neg()
    }

    /// The trainer with the gradient of the rows in these shards.
    fn accumulated(mut trainer: Trainer<CausalLm>, shards: &[Range<usize>]) -> Trainer<CausalLm> {
        trainer.accumulate(shards.to_vec(), |model, rows| (loss(model, rows), []));
        trainer
    }

    /// The norm before the clip, and the norm that the optimizer has seen: 1/(1 - β₁) times the first moment's.
    fn clipped(max_gradient_norm: f64) -> (f64, f64) {
        let mut trainer = accumulated(trainer(max_gradient_norm), &[0..4]);
        let before = trainer.update().unwrap().gradient_norm;
        let square = |Moments(m, _): &Moments| m.clone().square().sum().into_scalar::<f32>();
        let after = trainer.moments.iter().map(square).map(f64::from).sum::<f64>().sqrt();
        (before, after / (1.0 - trainer.settings.beta_1))
    }

    #[test]
    fn a_gradient_longer_than_the_clip_is_scaled_down_to_it_as_a_whole() {
        let (before, after) = clipped(0.5);
        assert!(before > 0.5, "{before}");
        assert!((after - 0.5).abs() < 1e-6, "{after}");
    }

    #[test]
    fn a_gradient_within_the_clip_is_left_alone() {
        let moments = |max_gradient_norm| {
            let mut trainer = accumulated(trainer(max_gradient_norm), &[0..4]);
            assert!(trainer.update().unwrap().gradient_norm < 1e3);
            let first = |Moments(m, _): &Moments| m.clone().into_data();
            trainer.moments.iter().map(first).collect::<Vec<_>>()
        };
        assert_eq!(moments(1e3), moments(f64::INFINITY));
    }

    #[test]
    fn a_loss_that_is_not_finite_is_refused_by_the_step_and_the_model_left_alone() {
        let mut trainer = trainer(1.0);
        let before = to_safetensors(trainer.model());
        trainer.accumulate(vec![0..4], |model, rows| (loss(model, rows) * f64::INFINITY, []));
        let refused = NonFinite { tensor: "the policy loss".into(), step: 0 };
        assert_eq!(trainer.update(), Err(refused));
        assert_eq!(to_safetensors(trainer.model()), before);
    }

    #[test]
    fn a_gradient_that_is_not_finite_is_refused_by_name_and_the_model_left_alone() {
        let mut trainer = trainer(1.0);
        let before = to_safetensors(trainer.model());
        trainer.accumulate(vec![0..4], |model, rows| {
            let loss = loss(model, rows);
            // 0, where the root has no finite slope.
            ((loss.clone() - loss.detach()).sqrt(), [])
        });
        let tensor = "the policy gradient of model.embed_tokens.weight".into();
        assert_eq!(trainer.update(), Err(NonFinite { tensor, step: 0 }));
        assert_eq!(to_safetensors(trainer.model()), before);
    }

    #[test]
    fn shards_give_the_gradient_of_the_whole() {
        let whole = accumulated(trainer(1.0), &[0..4]).gradient.unwrap();
        for shards in [&[0..2, 2..4][..], &[0..1, 1..2, 2..3, 3..4]] {
            let parts = accumulated(trainer(1.0), shards).gradient.unwrap();
            for (part, whole) in parts.parts.iter().zip(&whole.parts) {
                let gap = (part.clone() - whole.clone()).abs().max().into_scalar::<f32>();
                let scale = whole.clone().abs().max().into_scalar::<f32>();
                assert!(gap <= 1e-5 * scale, "{gap} of {scale}");
            }
        }
    }

    /// The losses and norms of so many steps with four shards each, and the model after them.
    fn thousands_of_steps(steps: usize) -> (Vec<StepResult>, Vec<u8>) {
        let mut trainer = trainer(1.0);
        trainer.total = steps;
        let mut results = Vec::new();
        for _ in 0..steps {
            trainer = accumulated(trainer, &[0..1, 1..2, 2..3, 3..4]);
            results.push(trainer.update().unwrap());
        }
        (results, to_safetensors(trainer.model()))
    }

    /// Autodiff's bookkeeping is shared by threads, and has lost gradients and hung before: so thousands of steps, each
    /// with four shards on more threads than cores.
    #[test]
    fn thousands_of_steps_have_the_same_bits_on_every_number_of_threads() {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| thousands_of_steps(2000))
        };
        let one = run(1);
        for threads in [2, 4, 8] {
            assert!(run(threads) == one, "{threads} threads");
        }
    }

    #[test]
    fn thousands_of_steps_have_the_same_bits_on_every_number_of_ranks() {
        let one = thousands_of_steps(1000);
        for count in [2, 3, 4] {
            let run = |link| ranks::join(Box::new(link), || thousands_of_steps(1000));
            for of_rank in threads::run(threads::links(count), run) {
                assert!(of_rank.unwrap() == one, "{count} ranks");
            }
        }
    }

    #[test]
    fn a_rank_keeps_the_moments_of_its_share_alone() {
        let kept = |link| {
            ranks::join(Box::new(link), || {
                let mut trainer = accumulated(trainer(1.0), &[0..2, 2..4]);
                trainer.update().unwrap();
                trainer.moments.iter().map(|Moments(m, _)| m.dims()[0]).sum::<usize>()
            })
        };
        let all: usize = trained(trainer(1.0).model()).iter().map(|(_, length)| length).sum();
        let kept: Vec<usize> =
            threads::run(threads::links(2), kept).into_iter().map(Option::unwrap).collect();
        assert_eq!(kept.iter().sum::<usize>(), all);
        assert!(kept.iter().all(|&of_rank| 3 * of_rank > all), "{kept:?}");
    }
}
