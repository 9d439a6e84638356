//! The decoder, and the two models made of it: a language model and a scalar model.

use std::ops::Range;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{Bool, DType, Device, Tensor};

use super::cache::KvCache;
use super::checkpoint::{self, CheckpointError};
use super::config::ModelConfig;
use super::config_json::Head;
use super::grid::Grid;
use super::layers::{Embedding, Layer, Linear, Norm, apply, fan_in};
use super::rope::Rope;
use super::source::{Fresh, Init, Placement, Source};
use super::weights::{FileSource, FreshParam};

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
        }
    }

    /// The hidden states of `columns`, `[B, S, D]`.
    ///
    /// Without a cache, `columns` must begin at 0; with one, at the first column it has not seen.
    pub fn forward(
        &self,
        grid: &Grid,
        columns: Range<usize>,
        mut cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let seen = cache.as_ref().map_or(0, |cache| cache.len());
        assert_eq!(columns.start, seen, "columns follow those already seen");
        let device = self.embed_tokens.weight.device();
        let (full, window) = self.hidden(grid, columns.clone(), &device);
        let mut x = self.embed_tokens.forward(grid.token_ids(columns.clone(), &device));
        let rotation = grid.rotation(&self.rope, columns, &device, x.dtype());
        for (i, layer) in self.layers.iter().enumerate() {
            let cache = cache.as_mut().map(|cache| &mut cache.layers[i]);
            let hidden = window.as_ref().filter(|_| self.windows[i].is_some()).unwrap_or(&full);
            x = layer.forward(x, &rotation, hidden, cache);
        }
        self.norm.forward(x)
    }

    /// What queries must not see in layers without a sliding window, and in those with one, where it
    /// reaches less far back than the columns do.
    fn hidden(
        &self,
        grid: &Grid,
        columns: Range<usize>,
        device: &Device,
    ) -> (Tensor<4, Bool>, Option<Tensor<4, Bool>>) {
        let window = self.windows.iter().flatten().next().copied();
        let window = window.filter(|&tokens| tokens < columns.end);
        let full = grid.hidden(columns.clone(), None, device);
        (full, window.map(|tokens| grid.hidden(columns, Some(tokens), device)))
    }
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
    ///
    /// # Errors
    ///
    /// Every [`CheckpointError`] but `Write`.
    pub fn load(
        dir: &Path,
        placement: impl Into<Placement>,
    ) -> Result<(Self, ModelConfig), CheckpointError> {
        let config = ModelConfig::from_dir(dir)?;
        let mut source = FileSource::open(dir, &config, placement.into())?;
        let model = Self::new(&mut source, &config);
        source.finish(if config.tie_word_embeddings { &["lm_head.weight"] } else { &[] })?;
        Ok((model, config))
    }

    /// Writes the checkpoint into the existing folder `dir`.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Write`].
    pub fn save(&self, config: &ModelConfig, dir: &Path) -> Result<(), CheckpointError> {
        checkpoint::save(self, config, Head::CausalLm, dir)
    }

    /// The logits read in `columns`, `[B, S, vocabulary]`: those of column c predict the token of c+1.
    pub fn logits(&self, grid: &Grid, columns: Range<usize>) -> Tensor<3> {
        let hidden = self.model.forward(grid, 0..columns.end, None);
        self.head(hidden.slice_dim(1, columns))
    }

    /// The same with a cache, for columns that follow those already seen; logits of the last one only,
    /// `[B, 1, vocabulary]`.
    pub fn next_logits(
        &self,
        grid: &Grid,
        columns: Range<usize>,
        cache: &mut KvCache,
    ) -> Tensor<3> {
        let last = columns.len() - 1;
        let hidden = self.model.forward(grid, columns, Some(cache));
        self.head(hidden.narrow(1, last, 1))
    }

    /// Where the parameters live.
    pub fn device(&self) -> Device {
        self.model.embed_tokens.weight.device()
    }

    /// The type of the parameters.
    pub fn dtype(&self) -> DType {
        self.model.embed_tokens.weight.val().dtype()
    }

    fn head(&self, hidden: Tensor<3>) -> Tensor<3> {
        match &self.lm_head {
            Some(head) => head.forward(hidden),
            None => apply(hidden, self.model.embed_tokens.weight.val()),
        }
    }
}

/// A decoder with a linear head of one output: reward model (E2) and critic.
#[derive(Module, Debug)]
pub struct ScalarModel {
    model: Decoder,
    score: Linear,
}

/// The name of the scalar head's parameter.
const HEAD: &str = "score.weight";

impl ScalarModel {
    fn new<S: Source>(source: &mut S, config: &ModelConfig) -> Self {
        let d = config.hidden_size;
        let init = Init::Normal(1.0 / ((d + 1) as f64).sqrt());
        Self {
            model: Decoder::new(source, config),
            score: Linear::new(source, "score", [1, d], init),
        }
    }

    /// The decoder of the language model in `dir` under a fresh head, drawn for `purpose` from
    /// N(0, 1/(d+1)).
    ///
    /// # Errors
    ///
    /// Every [`CheckpointError`] but `Write`.
    pub fn from_language_model(
        dir: &Path,
        purpose: &str,
        seed: u64,
        placement: impl Into<Placement>,
    ) -> Result<(Self, ModelConfig), CheckpointError> {
        let fresh = FreshParam { name: HEAD, purpose: purpose.to_owned(), seed };
        Self::read(dir, placement.into(), Some(fresh), &["lm_head.weight"])
    }

    /// Reads the scalar model in the folder `dir`.
    ///
    /// # Errors
    ///
    /// Every [`CheckpointError`] but `Write`.
    pub fn load(
        dir: &Path,
        placement: impl Into<Placement>,
    ) -> Result<(Self, ModelConfig), CheckpointError> {
        Self::read(dir, placement.into(), None, &[])
    }

    fn read(
        dir: &Path,
        placement: Placement,
        fresh: Option<FreshParam>,
        ignored: &[&str],
    ) -> Result<(Self, ModelConfig), CheckpointError> {
        let config = ModelConfig::from_dir(dir)?;
        let mut source = FileSource::open(dir, &config, placement)?.with_fresh(fresh);
        let model = Self::new(&mut source, &config);
        source.finish(ignored)?;
        Ok((model, config))
    }

    /// Writes the scalar model into the existing folder `dir`.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Write`].
    pub fn save(&self, config: &ModelConfig, dir: &Path) -> Result<(), CheckpointError> {
        checkpoint::save(self, config, Head::Score, dir)
    }

    /// The score read in each of `columns`, `[B, S]`.
    pub fn scores(&self, grid: &Grid, columns: Range<usize>) -> Tensor<2> {
        let hidden = self.model.forward(grid, 0..columns.end, None);
        self.score.forward(hidden.slice_dim(1, columns)).squeeze_dim(2)
    }
}
