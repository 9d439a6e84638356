//! The decoder, and the two models made of it: a language model and a scalar model.

use std::ops::Range;
use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Gradients, Tensor};

use super::cache::KvCache;
use super::checkpoint;
use super::config::ModelConfig;
use super::config_json::Head;
use super::error::CheckpointError;
use super::grid::Grid;
use super::layers::{Embedding, Layer, Linear, Norm, apply, fan_in};
use super::lora::{self, Adapter, LoraSettings, ModelSource};
use super::names::HEAD;
use super::places::{Places, Reading};
use super::precision::{cast, wide};
use super::recompute::is_trained;
use super::recompute::{Pass, Tape, Trainable};
use super::rope::Rope;
use super::source::{Fresh, Init, Placement, Source, fresh_values, named_param};
use super::weights::FreshParam;
use crate::device::{Checkpointing, Precision};
use crate::model::kernels::is_cpu;
use crate::model::kernels::token_head::{self, token_head};
use crate::model::shards::side_by_side;

/// Token ids to final hidden states.
#[derive(Module, Debug)]
pub struct Decoder {
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: Norm,
    #[module(skip)]
    rope: Rope,
    /// How far back each layer sees.
    #[module(skip)]
    windows: Vec<Option<usize>>,
    /// The type of activations, if it differs from the parameters'.
    #[module(skip)]
    compute: Option<Precision>,
    /// Where each layer is computed again in the backward pass: what its forward pass keeps for that.
    #[module(skip)]
    tape: Option<Tape>,
}

impl Decoder {
    fn new<S: Source>(source: &mut S, config: &ModelConfig) -> Self {
        let shape = [config.vocab_size, config.hidden_size];
        let layer = |i| format!("model.layers.{i}");
        Self {
            embed_tokens: Embedding::new(source, "model.embed_tokens", shape, Init::Normal(1.0)),
            layers: (0..config.layers).map(|i| Layer::new(source, &layer(i), config)).collect(),
            norm: Norm::of(source, "model.norm", config),
            rope: Rope::of(config),
            windows: (0..config.layers).map(|layer| config.window(layer)).collect(),
            compute: None,
            tape: None,
        }
    }

    fn dtype(&self) -> DType {
        self.compute.map_or_else(|| self.embed_tokens.weight.dtype(), Precision::dtype)
    }

    /// With activations in `precision`, and with the layers recomputed in the backward pass if
    /// `checkpointing` says so.
    fn computing(self, precision: Precision, checkpointing: Checkpointing) -> Self {
        let tape = (checkpointing == Checkpointing::Layers).then(Tape::default);
        Self { compute: Some(precision), tape, ..self }
    }

    fn embed(&self, grid: &Grid, places: &Places) -> Tensor<2> {
        cast(self.embed_tokens.forward(places.token_ids(grid)), self.dtype())
    }

    /// The hidden states of `columns`, `[N, D]`, and which place each token has there.
    ///
    /// Without a cache, `columns` must begin at 0; with one, at the first column it has not seen.
    pub fn forward(
        &self,
        grid: &Grid,
        columns: Range<usize>,
        mut cache: Option<&mut KvCache>,
    ) -> (Tensor<2>, Places) {
        let seen = cache.as_ref().map_or(0, |cache| cache.len());
        assert_eq!(columns.start, seen, "columns follow those already seen");
        #[cfg(test)]
        passes::begin();
        let (places, end) = (self.places(grid, columns.clone()), columns.end);
        let device = self.embed_tokens.weight.device();
        if let Some(tape) = self.tape.as_ref().filter(|_| device.is_autodiff()) {
            return (self.norm.forward(self.record(tape, grid, end)), places);
        }
        let mut x = self.embed(grid, &places);
        for (i, layer) in self.layers.iter().enumerate() {
            let cache = cache.as_mut().map(|cache| &mut cache.layers[i]);
            x = layer.forward(x, &places, self.windows[i], cache);
        }
        if let Some(cache) = cache {
            cache.advance(end);
        }
        (self.norm.forward(x), places)
    }

    fn places(&self, grid: &Grid, columns: Range<usize>) -> Places {
        let window = self.windows.iter().flatten().next().copied();
        let device = self.embed_tokens.weight.device();
        Places::new(grid, columns, &self.rope, window, &device, self.dtype())
    }

    /// The output of the last layer, as a leaf, with the input of each on the tape.
    fn record(&self, tape: &Tape, grid: &Grid, end: usize) -> Tensor<2> {
        let model = self.valid();
        let places = model.places(grid, 0..end);
        let mut x = model.embed(grid, &places);
        let mut inputs = Vec::with_capacity(self.layers.len());
        for (layer, window) in model.layers.iter().zip(&self.windows) {
            inputs.push(x.clone());
            x = layer.forward(x, &places, *window, None);
        }
        let output = x.autodiff().require_grad();
        tape.push(Pass { grid: grid.clone(), end, inputs, output: output.clone() });
        output
    }

    /// As [`Trainable::replay`].
    fn replay(&self, found: &Gradients, add: &mut dyn FnMut(GradientsParams)) {
        for Pass { grid, end, inputs, output } in self.tape.iter().flat_map(Tape::take) {
            let Some(mut slope) = output.grad(found) else { continue };
            let places = self.places(&grid, 0..end);
            for ((layer, window), input) in self.layers.iter().zip(&self.windows).zip(inputs).rev()
            {
                let x = input.autodiff().require_grad();
                let y = layer.forward(x.clone(), &places, *window, None);
                let gradients = y.mul(slope.autodiff()).sum().backward();
                slope = x.grad(&gradients).expect("a layer depends on its input");
                add(GradientsParams::from_grads(gradients, layer));
            }
            if self.embed_tokens.weight.is_require_grad() {
                let y = self.embed(&grid, &places);
                let gradients = y.mul(slope.autodiff()).sum().backward();
                add(GradientsParams::from_grads(gradients, &self.embed_tokens));
            }
        }
    }
}

/// `model` without autodiff, in `dtype`; adapters and a scalar head stay in 32 bits.
fn inference<M: Module>(model: &M, dtype: DType) -> M {
    struct Cast {
        dtype: DType,
        path: Vec<String>,
    }
    impl ModuleMapper for Cast {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let wide = is_trained(true, &self.path.join("."));
            if wide { param } else { param.map(|value| cast(value, self.dtype)) }
        }
    }
    model.valid().map(&mut Cast { dtype, path: Vec::new() })
}

/// A causal language model: policy, and frozen reference.
#[derive(Module, Debug)]
pub struct CausalLm {
    model: Decoder,
    lm_head: Option<Linear>,
}

impl CausalLm {
    fn new<S: Source>(source: &mut S, config: &ModelConfig) -> Self {
        let shape = [config.vocab_size, config.hidden_size];
        let model = Decoder::new(source, config);
        let head =
            |source: &mut S| Linear::new(source, "lm_head", shape, fan_in(config.hidden_size));
        let lm_head = (!config.tie_word_embeddings).then(|| head(source));
        Self { model, lm_head }
    }

    /// A model with fresh parameters.
    pub fn fresh(config: &ModelConfig, seed: u64, placement: impl Into<Placement>) -> Self {
        Self::new(&mut Fresh { seed, placement: placement.into() }, config)
    }

    /// Reads the checkpoint in the folder `dir`.
    pub fn load(
        dir: &Path,
        placement: impl Into<Placement>,
    ) -> Result<(Self, ModelConfig), CheckpointError> {
        let config = ModelConfig::from_dir(dir)?;
        let files = lora::open(dir)?;
        let mut source = ModelSource::new(&files, &config, placement.into(), None)?;
        let model = Self::new(&mut source, &config);
        source.finish(if config.tie_word_embeddings { &["lm_head.weight"] } else { &[] })?;
        Ok((model, config))
    }

    /// Writes the checkpoint into the existing folder `dir`.
    pub fn save(&self, config: &ModelConfig, dir: &Path) -> Result<(), CheckpointError> {
        checkpoint::save(self, config, Head::CausalLm, dir)
    }

    /// The logits read in `columns`, `[B, S, vocabulary]`, 0 in the padding: those of column c predict the token of c+1.
    pub fn logits(&self, grid: &Grid, columns: Range<usize>) -> Tensor<3> {
        let (hidden, places) = self.model.forward(grid, 0..columns.end, None);
        let read = Reading::of(grid, columns, 0, &places);
        read.spread(self.head(read.pick(hidden)))
    }

    /// ln π of the tokens in `columns`, and the entropies of the distributions they come from, nats, `[B, S]` each; 0 in
    /// the padding.
    ///
    /// # Panics
    ///
    /// If a token in `columns` is the first of its row: nothing predicts it.
    pub fn token_views(&self, grid: &Grid, columns: Range<usize>) -> [Tensor<2>; 2] {
        let (hidden, places) = self.model.forward(grid, 0..columns.end - 1, None);
        let read = Reading::of(grid, columns, 1, &places);
        let hidden = read.pick(hidden);
        let weight = match &self.lm_head {
            None => Some(self.model.embed_tokens.weight.val()),
            Some(head) => head.weight.adapter().is_none().then(|| head.weight.base()),
        };
        let view = match weight.filter(|_| hidden.dtype() == DType::F32) {
            Some(weight) => token_head(hidden, weight, &read.tokens),
            None => token_head::plain(self.head(hidden), &read.tokens),
        };
        let view = read.spread(view);
        [0, 1].map(|column| view.clone().narrow(2, column, 1).squeeze_dim(2))
    }

    /// With a cache, for the columns that follow those already seen; logits of the last one only,
    /// `[B, 1, vocabulary]`.
    pub fn next_logits(
        &self,
        grid: &Grid,
        columns: Range<usize>,
        cache: &mut KvCache,
    ) -> Tensor<3> {
        let last = columns.end - 1;
        let (hidden, places) = self.model.forward(grid, columns, Some(cache));
        let read = Reading::of(grid, last..last + 1, 0, &places);
        read.spread(self.head(read.pick(hidden)))
    }

    /// Where the parameters live.
    pub fn device(&self) -> Device {
        self.model.embed_tokens.weight.device()
    }

    /// The type of the activations.
    pub fn dtype(&self) -> DType {
        self.model.dtype()
    }

    /// With activations in `precision`, whatever the type of the parameters, and with the layers
    /// computed again in the backward pass if `checkpointing` says so.
    pub fn computing(self, precision: Precision, checkpointing: Checkpointing) -> Self {
        Self { model: self.model.computing(precision, checkpointing), ..self }
    }

    /// What this model under training is now: without autodiff, its weights cast once to the type of the
    /// activations.
    pub fn inference(&self) -> Self {
        inference(self, self.dtype())
    }

    /// The same model, its weights laid out for products with a few rows where that is quicker; with `in_parts`, each
    /// product is shared by the threads of the program.
    pub(super) fn for_generation(&self, in_parts: bool) -> Self {
        if !is_cpu(&self.device()) {
            return self.clone();
        }
        let model = self.clone();
        let embedding = model.model.embed_tokens.weight.val();
        let head =
            model.lm_head.unwrap_or_else(|| Linear::of(named_param("lm_head.weight", embedding)));
        let lm_head = Some(head.for_generation(in_parts));
        let layers = side_by_side(model.model.layers, |layer| layer.for_generation(in_parts));
        Self { model: Decoder { layers, ..model.model }, lm_head }
    }

    /// The model that `adapter` makes of this one, its base, whose tensors it shares.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Tensors`] when the adapters do not fit.
    pub fn adapted(&self, adapter: &Adapter) -> Result<Self, CheckpointError> {
        adapter.onto(self.clone(), &self.device())
    }

    /// Writes the adapters that training has given the model in the folder `base` into the existing folder
    /// `dir`.
    pub fn save_adapter(
        &self,
        config: &ModelConfig,
        settings: &LoraSettings,
        base: &Path,
        dir: &Path,
    ) -> Result<(), CheckpointError> {
        lora::save(self, settings, base, &config.to_json(Head::CausalLm, DType::F32), dir)
    }

    fn head(&self, hidden: Tensor<2>) -> Tensor<2> {
        match &self.lm_head {
            Some(head) => head.forward(hidden),
            None => apply(hidden, self.model.embed_tokens.weight.val()),
        }
    }
}

impl Trainable for CausalLm {
    fn rank(&self) -> Self {
        let model = self.clone().fork(&self.device());
        let tape = self.model.tape.as_ref().map(|_| Tape::default());
        Self { model: Decoder { tape, ..model.model }, ..model }
    }

    fn replay(&self, found: &Gradients, add: &mut dyn FnMut(GradientsParams)) {
        self.model.replay(found, add);
    }
}

impl Trainable for ScalarModel {
    fn rank(&self) -> Self {
        let model = self.clone().fork(&self.device());
        let tape = self.model.tape.as_ref().map(|_| Tape::default());
        Self { model: Decoder { tape, ..model.model }, ..model }
    }

    fn replay(&self, found: &Gradients, add: &mut dyn FnMut(GradientsParams)) {
        self.model.replay(found, add);
    }
}

/// A decoder with a linear head of one output: reward model (E2) and critic.
#[derive(Module, Debug)]
pub struct ScalarModel {
    model: Decoder,
    score: Linear,
}

/// How the head of a critic or a reward model starts over a language model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FreshHead<'a> {
    /// What it is drawn for: two heads of one run start differently.
    pub purpose: &'a str,
    /// The run's seed.
    pub seed: u64,
    /// The standard deviation of its weights; `None` is the official 1/(d+1) over d channels.
    pub std: Option<f64>,
}

impl<'a> FreshHead<'a> {
    /// A head as the official code draws it, from a normal distribution of standard deviation 1/(d+1).
    ///
    /// # Source
    ///
    /// `denserlhf/models/model.py:170` of the official code.
    pub fn official(purpose: &'a str, seed: u64) -> Self {
        Self { purpose, seed, std: None }
    }

    fn init(self, channels: usize) -> Init {
        Init::Normal(self.std.unwrap_or(1.0 / (channels + 1) as f64))
    }
}

impl ScalarModel {
    /// Where the parameters live.
    pub fn device(&self) -> Device {
        self.model.embed_tokens.weight.device()
    }

    fn new<S: Source>(source: &mut S, config: &ModelConfig) -> Self {
        let d = config.hidden_size;
        Self {
            model: Decoder::new(source, config),
            score: Linear::new(source, "score", [1, d], Init::Zeros), // a fresh head brings its own
        }
    }

    /// The decoder of the language model in `dir` under a fresh head.
    pub fn from_language_model(
        dir: &Path,
        head: FreshHead<'_>,
        placement: impl Into<Placement>,
    ) -> Result<(Self, ModelConfig), CheckpointError> {
        Self::read(dir, placement.into(), Some(head), &["lm_head.weight"])
    }

    /// Reads the scalar model in the folder `dir`.
    pub fn load(
        dir: &Path,
        placement: impl Into<Placement>,
    ) -> Result<(Self, ModelConfig), CheckpointError> {
        Self::read(dir, placement.into(), None, &[])
    }

    fn read(
        dir: &Path,
        placement: Placement,
        head: Option<FreshHead<'_>>,
        ignored: &[&str],
    ) -> Result<(Self, ModelConfig), CheckpointError> {
        let config = ModelConfig::from_dir(dir)?;
        let files = lora::open(dir)?;
        let fresh = head.map(|head| FreshParam {
            name: HEAD,
            purpose: head.purpose.to_owned(),
            seed: head.seed,
            init: head.init(config.hidden_size),
        });
        let mut source = ModelSource::new(&files, &config, placement, fresh)?;
        let model = Self::new(&mut source, &config);
        source.finish(ignored)?;
        Ok((model, config))
    }

    /// Writes the scalar model into the existing folder `dir`.
    pub fn save(&self, config: &ModelConfig, dir: &Path) -> Result<(), CheckpointError> {
        checkpoint::save(self, config, Head::Score, dir)
    }

    /// The score read in each of `columns`, `[B, S]`, in at least 32 bits; 0 in the padding.
    pub fn scores(&self, grid: &Grid, columns: Range<usize>) -> Tensor<2> {
        let (hidden, places) = self.model.forward(grid, 0..columns.end, None);
        let read = Reading::of(grid, columns, 0, &places);
        read.spread(self.score.forward(wide(read.pick(hidden)))).squeeze_dim(2)
    }

    /// The decoder of `language_model`, whose tensors it shares, under a fresh head of its own, drawn as that
    /// of [`ScalarModel::from_language_model`].
    pub fn over(language_model: &CausalLm, head: FreshHead<'_>) -> Self {
        let (model, device) = (language_model.model.clone(), language_model.device());
        let d = model.norm.weight.dims()[0];
        let purpose = format!("{} {HEAD}", head.purpose);
        let values = fresh_values(head.seed, &purpose, &[1, d], head.init(d));
        let weight = named_param(HEAD, Tensor::from_data(values, (&device, DType::F32)));
        Self { model, score: Linear::of(weight) }
    }

    /// The model that `adapter` makes of the language model `base`, whose tensors it shares.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Tensors`] when the adapters do not fit, or bring no head.
    pub fn adapted(base: &CausalLm, adapter: &Adapter) -> Result<Self, CheckpointError> {
        let (model, device) = (base.model.clone(), base.device());
        let weight = adapter.head(model.norm.weight.dims()[0], &device)?;
        adapter.onto(Self { model, score: Linear::of(weight) }, &device)
    }

    /// As [`CausalLm::computing`].
    pub fn computing(self, precision: Precision, checkpointing: Checkpointing) -> Self {
        Self { model: self.model.computing(precision, checkpointing), ..self }
    }

    /// As [`CausalLm::inference`].
    pub fn inference(&self) -> Self {
        inference(self, self.model.dtype())
    }

    /// As [`CausalLm::save_adapter`].
    pub fn save_adapter(
        &self,
        config: &ModelConfig,
        settings: &LoraSettings,
        base: &Path,
        dir: &Path,
    ) -> Result<(), CheckpointError> {
        lora::save(self, settings, base, &config.to_json(Head::Score, DType::F32), dir)
    }
}

/// The forward passes of this thread, counted where they happen.
#[cfg(test)]
pub(crate) mod passes {
    use std::cell::RefCell;

    use crate::stop::Stop;

    thread_local! {
        static COUNT: RefCell<(usize, Option<(usize, Stop)>)> = const { RefCell::new((0, None)) };
    }

    pub(super) fn begin() {
        COUNT.with_borrow_mut(|(count, stop)| {
            *count += 1;
            if let Some((at, stop)) = stop
                && count == at
            {
                stop.request();
            }
        });
    }

    /// How many forward passes `run` begins, with what it returns. `stop` is asked for during the pass `at`, from 1.
    pub(crate) fn count<T>(at: usize, stop: &Stop, run: impl FnOnce() -> T) -> (usize, T) {
        COUNT.set((0, Some((at, stop.clone()))));
        let result = run();
        (COUNT.take().0, result)
    }
}
