//! The parts of the decoder. Parameters are stored and named as Hugging Face stores and names Llama's;
//! [`super::names`] knows what other families call them.

use burn::module::{LoraAdapter, Module, Param};
use burn::tensor::module::{attention, attention_fallback, embedding};
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, DType, FloatDType, Int, Tensor, activation};

use super::cache::LayerCache;
use super::config::{Activation, AttentionBias, ModelConfig, Residual};
use super::rope::Rotation;
use super::source::{Init, Source};

/// A linear map; the weight has shape `[outputs, inputs]`.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[outputs, inputs]`
    pub weight: Param<Tensor<2>>,
    /// `[outputs]`
    pub bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    /// Takes `NAME.weight` from `source`; without bias.
    pub fn new<S: Source>(source: &mut S, name: &str, shape: [usize; 2], init: Init) -> Self {
        Self { weight: source.param(&format!("{name}.weight"), shape, init), bias: None }
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

    /// `[B, T, inputs]` to `[B, T, outputs]`, in the type of `x`. An adapter is applied beside the weight,
    /// x Wᵀ + s (x bᵀ) aᵀ, so that no dense W + s a b is made, or kept for the backward pass.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let y = match self.weight.adapter() {
            None => apply(x, self.weight.base()),
            Some(LoraAdapter { a, b, scale }) => {
                let low = apply(x.clone(), b.val()); // [B, T, rank]
                apply(x, self.weight.base()).add(apply(low, a.val()).mul_scalar(*scale))
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

/// x Wᵀ for `x` of shape `[B, T, inputs]` and `weight` of shape `[outputs, inputs]`, in the type of `x`.
pub(super) fn apply(x: Tensor<3>, weight: Tensor<2>) -> Tensor<3> {
    let [b, t, inputs] = x.dims();
    let [outputs, _] = weight.dims();
    let weight = cast(weight, x.dtype());
    x.reshape([b * t, inputs]).matmul(weight.transpose()).reshape([b, t, outputs])
}

/// `x` in `dtype`; a gradient flows back in the type of `x`.
pub(super) fn cast<const D: usize>(x: Tensor<D>, dtype: DType) -> Tensor<D> {
    if x.dtype() == dtype { x } else { x.cast(FloatDType::from(dtype)) }
}

/// `x` in at least 32 bits, for sums over many numbers, and for exponentials.
pub(super) fn wide<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.cast(FloatDType::F32),
        _ => x,
    }
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

    /// Keeps the shape `[B, T, channels]` and the type.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let (dtype, x) = (x.dtype(), wide(x));
        let x = if self.bias.is_some() { x.clone().sub(x.mean_dim(2)) } else { x };
        let scale = x.clone().square().mean_dim(2).add_scalar(self.epsilon).sqrt();
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

    /// Token ids `[B, T]` to vectors `[B, T, channels]`.
    pub fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        embedding(self.weight.val(), tokens)
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

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let hidden = match &self.gate_proj {
            Some(gate) => {
                let gate = self.activation.apply(gate.forward(x.clone()));
                gate.mul(self.up_proj.forward(x))
            }
            None => self.activation.apply(self.up_proj.forward(x)),
        };
        self.down_proj.forward(hidden)
    }
}

impl Activation {
    fn apply(self, x: Tensor<3>) -> Tensor<3> {
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
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
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
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: head,
        }
    }

    /// `x` is `[B, S, D]`; `hidden` is `[B, 1, S, K]`, true where a query must not see a key; with a
    /// cache, the K keys are those of the columns seen so far, the S new ones last.
    fn forward(
        &self,
        x: Tensor<3>,
        rotation: &Rotation,
        hidden: &Tensor<4, Bool>,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<3> {
        let [b, s, _] = x.dims();
        let split = |x: Tensor<3>, heads| {
            x.reshape([b, s, heads, self.head_dim]).swap_dims(1, 2) // [B, H, S, head]
        };
        let normed = |x: Tensor<3>, norm: &Option<Norm>, heads| match norm {
            Some(norm) => norm.forward(x.reshape([b, s * heads, self.head_dim])),
            None => x,
        };
        let q = normed(self.q_proj.forward(x.clone()), &self.q_norm, self.heads);
        let k = normed(self.k_proj.forward(x.clone()), &self.k_norm, self.kv_heads);
        let q = rotation.apply(split(q, self.heads));
        let k = rotation.apply(split(k, self.kv_heads));
        let v = split(self.v_proj.forward(x), self.kv_heads);
        let is_cached = cache.is_some();
        let (k, v) = match cache {
            Some(cache) => cache.extend(k, v),
            None => (k, v),
        };
        let (k, v) = (self.repeat_heads(k), self.repeat_heads(v)); // [B, H, K, head]
        let keys = k.dims()[2];
        let mask = hidden.clone().expand([b, self.heads, s, keys]);
        let context = attend(q, k, v, mask, is_cached);
        self.o_proj.forward(context.swap_dims(1, 2).reshape([b, s, self.heads * self.head_dim]))
    }

    /// Gives each group of query heads its own copy of the shared key or value head.
    fn repeat_heads(&self, x: Tensor<4>) -> Tensor<4> {
        let groups = self.heads / self.kv_heads;
        if groups == 1 {
            return x;
        }
        let [b, kv, t, d] = x.dims();
        x.unsqueeze_dim::<5>(2).expand([b, kv, groups, t, d]).reshape([b, kv * groups, t, d])
    }
}

/// softmax(q kᵀ / √head) v over the keys that `mask` does not hide, in the type of `q`.
///
/// In a half type, autodiff's single operations would round the sums of the softmax, and a backend's own kernel,
/// which sums in f32, would round at other places. So they are computed in f32, with autodiff and without it
/// by the same operations: a model under training then says bit for bit what its inference copy says. Generation
/// alone, which draws tokens and compares nothing, keeps the backend's kernel.
fn attend(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    mask: Tensor<4, Bool>,
    is_generation: bool,
) -> Tensor<4> {
    let (dtype, options) = (q.dtype(), AttentionModuleOptions::default());
    match dtype {
        DType::F16 | DType::BF16 if !is_generation => {
            let context = attention_fallback(wide(q), wide(k), wide(v), Some(mask), None, options);
            cast(context, dtype)
        }
        _ => attention(q, k, v, Some(mask), None, options),
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

    /// Keeps the shape `[B, S, D]`; see [`super::decoder::Decoder`] for the arguments.
    pub fn forward(
        &self,
        x: Tensor<3>,
        rotation: &Rotation,
        hidden: &Tensor<4, Bool>,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<3> {
        let attended = self.self_attn.forward(
            self.input_layernorm.forward(x.clone()),
            rotation,
            hidden,
            cache,
        );
        let sum = x.clone().add(attended);
        let read = match self.residual {
            Residual::Sequential => sum.clone(),
            Residual::Parallel => x,
        };
        sum.add(self.mlp.forward(self.post_attention_layernorm.forward(read)))
    }
}
