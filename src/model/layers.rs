//! The parts of the decoder. Parameters are stored and named as Hugging Face stores and names them.

use burn::module::{LoraAdapter, Module, Param, ParamId};
use burn::tensor::module::{attention, embedding};
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, DType, FloatDType, Int, Tensor, activation};

use super::cache::LayerCache;
use super::config::ModelConfig;
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

/// SwiGLU: down(silu(gate(x)) · up(x)).
#[derive(Module, Debug)]
pub struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Mlp {
    fn new<S: Source>(source: &mut S, name: &str, config: &ModelConfig) -> Self {
        let (d, f) = (config.hidden_size, config.intermediate_size);
        Self {
            gate_proj: Linear::new(source, &format!("{name}.gate_proj"), [f, d], fan_in(d)),
            up_proj: Linear::new(source, &format!("{name}.up_proj"), [f, d], fan_in(d)),
            down_proj: Linear::new(source, &format!("{name}.down_proj"), [d, f], fan_in(f)),
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let gate = activation::silu(self.gate_proj.forward(x.clone()));
        self.down_proj.forward(gate.mul(self.up_proj.forward(x)))
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
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Attention {
    fn new<S: Source>(source: &mut S, name: &str, config: &ModelConfig) -> Self {
        let (d, head) = (config.hidden_size, config.head_dim);
        let (q, kv) = (config.heads * head, config.kv_heads * head);
        Self {
            q_proj: Linear::new(source, &format!("{name}.q_proj"), [q, d], fan_in(d)),
            k_proj: Linear::new(source, &format!("{name}.k_proj"), [kv, d], fan_in(d)),
            v_proj: Linear::new(source, &format!("{name}.v_proj"), [kv, d], fan_in(d)),
            o_proj: Linear::new(source, &format!("{name}.o_proj"), [d, q], fan_in(q)),
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
        let q = rotation.apply(split(self.q_proj.forward(x.clone()), self.heads));
        let k = rotation.apply(split(self.k_proj.forward(x.clone()), self.kv_heads));
        let v = split(self.v_proj.forward(x), self.kv_heads);
        let (k, v) = match cache {
            Some(cache) => cache.extend(k, v),
            None => (k, v),
        };
        let (k, v) = (self.repeat_heads(k), self.repeat_heads(v)); // [B, H, K, head]
        let keys = k.dims()[2];
        let mask = hidden.clone().expand([b, self.heads, s, keys]);
        // With autodiff the softmax is made of single operations, whose sums a half type would round; without,
        // backends sum in f32 of their own.
        let dtype = q.dtype();
        let (q, k, v) = if q.is_autodiff() { (wide(q), wide(k), wide(v)) } else { (q, k, v) };
        let context = attention(q, k, v, Some(mask), None, AttentionModuleOptions::default());
        let context = cast(context, dtype);
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

/// One pre-norm layer of the decoder.
#[derive(Module, Debug)]
pub struct Layer {
    self_attn: Attention,
    mlp: Mlp,
    input_layernorm: Norm,
    post_attention_layernorm: Norm,
}

impl Layer {
    /// Takes the parameters under `name` from `source`.
    pub fn new<S: Source>(source: &mut S, name: &str, config: &ModelConfig) -> Self {
        let (d, epsilon) = (config.hidden_size, config.rms_norm_eps);
        let norm =
            |source: &mut S, part: &str| Norm::rms(source, &format!("{name}.{part}"), d, epsilon);
        Self {
            self_attn: Attention::new(source, &format!("{name}.self_attn"), config),
            mlp: Mlp::new(source, &format!("{name}.mlp"), config),
            input_layernorm: norm(source, "input_layernorm"),
            post_attention_layernorm: norm(source, "post_attention_layernorm"),
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
        let x = x.add(attended);
        x.clone().add(self.mlp.forward(self.post_attention_layernorm.forward(x)))
    }
}

/// A parameter whose identity is its name, so that optimizer state finds it again after a restart.
pub(super) fn named_param<const D: usize>(name: &str, value: Tensor<D>) -> Param<Tensor<D>> {
    let id = ParamId::from(crate::rng::fnv1a(name.as_bytes()));
    let (_, value, mapper) = Param::from_tensor(value).consume();
    Param::from_mapped_value(id, value, mapper)
}
