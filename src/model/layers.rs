//! The parts of the decoder. Parameters are stored and named as Hugging Face stores and names Llama's;
//! [`super::names`] knows what other families call them.

use burn::module::{LoraAdapter, Module, Param};
use burn::tensor::{DType, Int, Tensor, activation};

use super::cache::LayerCache;
use super::config::{Activation, AttentionBias, ModelConfig, Residual};
use super::places::{HeadShape, Places};
use super::precision::{cast, wide};
use super::source::{Init, Source};
use crate::model::kernels::linear::{by_columns, linear, linear_in_parts};
use crate::model::kernels::rms_norm::rms_norm;
use crate::model::kernels::swiglu::swiglu;

/// A linear map; the weight has shape `[outputs, inputs]`.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[outputs, inputs]`
    pub weight: Param<Tensor<2>>,
    /// `[outputs]`
    pub bias: Option<Param<Tensor<1>>>,
    /// Whether the outputs of a large weight are computed in parts side by side.
    #[module(skip)]
    in_parts: bool,
}

impl Linear {
    /// Takes `NAME.weight` from `source`; without bias.
    pub fn new<S: Source>(source: &mut S, name: &str, shape: [usize; 2], init: Init) -> Self {
        Self::of(source.param(&format!("{name}.weight"), shape, init))
    }

    /// With the weight `weight`, `[outputs, inputs]`; without bias.
    pub fn of(weight: Param<Tensor<2>>) -> Self {
        Self { weight, bias: None, in_parts: false }
    }

    /// The same map, its weight laid out for products with a few rows: one column of outputs behind the other.
    pub(super) fn for_generation(self, in_parts: bool) -> Self {
        Self { weight: self.weight.map(by_columns), in_parts, ..self }
    }

    /// Takes `NAME.weight` from `source`, and `NAME.bias` if `biased`.
    pub fn with_bias<S: Source>(
        source: &mut S,
        name: &str,
        shape: [usize; 2],
        init: Init,
        biased: bool,
    ) -> Self {
        let linear = Self::new(source, name, shape, init);
        let bias = biased.then(|| source.param(&format!("{name}.bias"), [shape[0]], Init::Zeros));
        Self { bias, ..linear }
    }

    /// `[N, inputs]` to `[N, outputs]`, in the type of `x`. An adapter is applied beside the weight,
    /// x Wᵀ + s (x bᵀ) aᵀ, so that no dense W + s a b is made, or kept for the backward pass.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let product = if self.in_parts { linear_in_parts } else { linear };
        let times = |x: Tensor<2>, weight| {
            let weight = cast(weight, x.dtype());
            product(x, weight)
        };
        let y = match self.weight.adapter() {
            None => times(x, self.weight.base()),
            Some(LoraAdapter { a, b, scale }) => {
                let low = apply(x.clone(), b.val()); // [N, rank]
                times(x, self.weight.base()).add(apply(low, a.val()).mul_scalar(*scale))
            }
        };
        match &self.bias {
            Some(bias) => {
                let bias = cast(bias.val(), y.dtype());
                y.add(bias.unsqueeze())
            }
            None => y,
        }
    }
}

/// x Wᵀ for `x` of shape `[N, inputs]` and `weight` of shape `[outputs, inputs]`, in the type of `x`.
pub(super) fn apply(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    let weight = cast(weight, x.dtype());
    linear(x, weight)
}

/// Normalization of the channels, scaled per channel: RMSNorm, x / √(mean(x²) + ε); with a bias LayerNorm,
/// which takes the mean off x before, and adds the bias in the end.
#[derive(Module, Debug)]
pub struct Norm {
    /// `[channels]`
    pub weight: Param<Tensor<1>>,
    /// `[channels]`
    pub bias: Option<Param<Tensor<1>>>,
    epsilon: f64,
}

impl Norm {
    /// RMSNorm: takes `NAME.weight` from `source`.
    pub fn rms<S: Source>(source: &mut S, name: &str, channels: usize, epsilon: f64) -> Self {
        let weight = source.param(&format!("{name}.weight"), [channels], Init::Ones);
        Self { weight, bias: None, epsilon }
    }

    /// LayerNorm: takes `NAME.weight` and `NAME.bias` from `source`.
    pub fn layer<S: Source>(source: &mut S, name: &str, channels: usize, epsilon: f64) -> Self {
        let norm = Self::rms(source, name, channels, epsilon);
        let bias = source.param(&format!("{name}.bias"), [channels], Init::Zeros);
        Self { bias: Some(bias), ..norm }
    }

    /// The norm of a model's residual stream.
    pub(super) fn of<S: Source>(source: &mut S, name: &str, config: &ModelConfig) -> Self {
        let (d, epsilon) = (config.hidden_size, config.norm_eps);
        if config.family.has_layer_norm() {
            Self::layer(source, name, d, epsilon)
        } else {
            Self::rms(source, name, d, epsilon)
        }
    }

    /// Keeps the shape `[N, channels]` and the type.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        if self.bias.is_none() && x.dtype() == DType::F32 {
            return rms_norm(x, self.weight.val(), self.epsilon);
        }
        let (dtype, x) = (x.dtype(), wide(x));
        let x = if self.bias.is_some() { x.clone().sub(x.mean_dim(1)) } else { x };
        let scale = x.clone().square().mean_dim(1).add_scalar(self.epsilon).sqrt();
        let y = cast(x.div(scale), dtype).mul(cast(self.weight.val(), dtype).unsqueeze());
        match &self.bias {
            Some(bias) => y.add(cast(bias.val(), dtype).unsqueeze()),
            None => y,
        }
    }
}

/// The table of token vectors.
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[vocabulary, channels]`
    pub weight: Param<Tensor<2>>,
}

impl Embedding {
    /// Takes `NAME.weight` from `source`.
    pub fn new<S: Source>(source: &mut S, name: &str, shape: [usize; 2], init: Init) -> Self {
        Self { weight: source.param(&format!("{name}.weight"), shape, init) }
    }

    /// Token ids `[N]` to vectors `[N, channels]`.
    pub fn forward(&self, tokens: Tensor<1, Int>) -> Tensor<2> {
        self.weight.val().select(0, tokens)
    }
}

/// SwiGLU, down(silu(gate(x)) · up(x)), or without a gate down(gelu(up(x))).
#[derive(Module, Debug)]
pub struct Mlp {
    gate_proj: Option<Linear>,
    up_proj: Linear,
    down_proj: Linear,
    #[module(skip)]
    activation: Activation,
}

impl Mlp {
    fn new<S: Source>(source: &mut S, name: &str, config: &ModelConfig) -> Self {
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let linear = |source: &mut S, part: &str, [outputs, inputs]: [usize; 2]| {
            let name = format!("{name}.{part}");
            Linear::with_bias(source, &name, [outputs, inputs], fan_in(inputs), config.mlp_bias)
        };
        let gated = config.family.has_gate();
        Self {
            gate_proj: gated.then(|| linear(source, "gate_proj", [f, d])),
            up_proj: linear(source, "up_proj", [f, d]),
            down_proj: linear(source, "down_proj", [d, f]),
            activation: config.activation,
        }
    }

    fn for_generation(self, in_parts: bool) -> Self {
        Self {
            gate_proj: self.gate_proj.map(|gate| gate.for_generation(in_parts)),
            up_proj: self.up_proj.for_generation(in_parts),
            down_proj: self.down_proj.for_generation(in_parts),
            ..self
        }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let gate = self.gate_proj.as_ref().map(|gate| gate.forward(x.clone()));
        let up = self.up_proj.forward(x);
        let hidden = match (gate, self.activation) {
            (Some(gate), Activation::Silu) => swiglu(gate, up),
            (Some(gate), activation) => activation.apply(gate).mul(up),
            (None, activation) => activation.apply(up),
        };
        self.down_proj.forward(hidden)
    }
}

impl Activation {
    fn apply(self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Silu => activation::silu(x),
            Self::Gelu => activation::gelu(x),
            Self::GeluTanh => activation::gelu_approximate(x),
        }
    }
}

/// A map keeps the scale of its inputs: N(0, 1/inputs).
pub(super) fn fan_in(inputs: usize) -> Init {
    Init::Normal(1.0 / (inputs as f64).sqrt())
}

/// Causal self-attention with rotary positions and grouped key-value heads.
#[derive(Module, Debug)]
pub struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    #[module(skip)]
    shape: HeadShape,
}

impl Attention {
    fn new<S: Source>(source: &mut S, name: &str, config: &ModelConfig) -> Self {
        let (d, head) = (config.hidden_size, config.head_dim);
        let (q, kv) = (config.heads * head, config.kv_heads * head);
        let inputs = config.attention_bias != AttentionBias::None;
        let output = config.attention_bias == AttentionBias::All;
        let linear = |source: &mut S, part: &str, [outputs, inputs]: [usize; 2], biased| {
            let name = format!("{name}.{part}");
            Linear::with_bias(source, &name, [outputs, inputs], fan_in(inputs), biased)
        };
        let norm = |source: &mut S, part: &str| {
            let norms = config.family.normalizes_heads();
            norms.then(|| Norm::rms(source, &format!("{name}.{part}"), head, config.norm_eps))
        };
        Self {
            q_proj: linear(source, "q_proj", [q, d], inputs),
            k_proj: linear(source, "k_proj", [kv, d], inputs),
            v_proj: linear(source, "v_proj", [kv, d], inputs),
            o_proj: linear(source, "o_proj", [d, q], output),
            q_norm: norm(source, "q_norm"),
            k_norm: norm(source, "k_norm"),
            shape: HeadShape { heads: config.heads, kv_heads: config.kv_heads, head_dim: head },
        }
    }

    fn for_generation(self, in_parts: bool) -> Self {
        Self {
            q_proj: self.q_proj.for_generation(in_parts),
            k_proj: self.k_proj.for_generation(in_parts),
            v_proj: self.v_proj.for_generation(in_parts),
            o_proj: self.o_proj.for_generation(in_parts),
            ..self
        }
    }

    /// `x` is `[N, D]`, its rows at `places`; with a cache, they see the keys of the tokens before them.
    fn forward(
        &self,
        x: Tensor<2>,
        places: &Places,
        window: Option<usize>,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<2> {
        let normed = |x: Tensor<2>, norm: &Option<Norm>| match norm {
            Some(norm) => {
                let [n, channels] = x.dims();
                let heads = channels / self.shape.head_dim;
                norm.forward(x.reshape([n * heads, self.shape.head_dim])).reshape([n, channels])
            }
            None => x,
        };
        let q = normed(self.q_proj.forward(x.clone()), &self.q_norm);
        let k = normed(self.k_proj.forward(x.clone()), &self.k_norm);
        let v = self.v_proj.forward(x);
        self.o_proj.forward(places.attend([q, k, v], self.shape, window, cache))
    }
}

/// One pre-norm layer of the decoder.
#[derive(Module, Debug)]
pub struct Layer {
    self_attn: Attention,
    mlp: Mlp,
    input_layernorm: Norm,
    post_attention_layernorm: Norm,
    #[module(skip)]
    residual: Residual,
}

impl Layer {
    /// Takes the parameters under `name` from `source`.
    pub fn new<S: Source>(source: &mut S, name: &str, config: &ModelConfig) -> Self {
        let norm = |source: &mut S, part: &str| Norm::of(source, &format!("{name}.{part}"), config);
        Self {
            self_attn: Attention::new(source, &format!("{name}.self_attn"), config),
            mlp: Mlp::new(source, &format!("{name}.mlp"), config),
            input_layernorm: norm(source, "input_layernorm"),
            post_attention_layernorm: norm(source, "post_attention_layernorm"),
            residual: config.residual,
        }
    }

    /// The same layer, its weights as [`Linear::for_generation`] lays them out.
    pub(super) fn for_generation(self, in_parts: bool) -> Self {
        Self {
            self_attn: self.self_attn.for_generation(in_parts),
            mlp: self.mlp.for_generation(in_parts),
            ..self
        }
    }

    /// Keeps the shape `[N, D]`; see [`super::decoder::Decoder`] for the arguments.
    pub fn forward(
        &self,
        x: Tensor<2>,
        places: &Places,
        window: Option<usize>,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<2> {
        let read = self.input_layernorm.forward(x.clone());
        let attended = self.self_attn.forward(read, places, window, cache);
        let sum = x.clone().add(attended);
        let read = match self.residual {
            Residual::Sequential => sum.clone(),
            Residual::Parallel => x,
        };
        sum.add(self.mlp.forward(self.post_attention_layernorm.forward(read)))
    }
}
