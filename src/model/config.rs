//! The architecture of a decoder: its sizes, and what families of models do differently, as data.

use serde_json::{Map, Value};

/// The families of models that this program reads and writes, by their `model_type` in `config.json`.
///
/// Llama is the plain one. The others differ by what the fields of [`ModelConfig`] say, and by this: Qwen3
/// normalizes each head of queries and keys; GPT-NeoX (Pythia) has LayerNorm, and an MLP without a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Phi3,
    GptNeox,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 6] =
        [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3, Self::Phi3, Self::GptNeox];

    /// Its `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Phi3 => "phi3",
            Self::GptNeox => "gpt_neox",
        }
    }

    /// The name that its classes in transformers begin with.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Llama => "Llama",
            Self::Mistral => "Mistral",
            Self::Qwen2 => "Qwen2",
            Self::Qwen3 => "Qwen3",
            Self::Phi3 => "Phi3",
            Self::GptNeox => "GPTNeoX",
        }
    }

    /// Whether it has LayerNorm, with a bias, instead of RMSNorm.
    pub fn has_layer_norm(self) -> bool {
        self == Self::GptNeox
    }

    /// Whether each head of queries and keys is normalized.
    pub fn normalizes_heads(self) -> bool {
        self == Self::Qwen3
    }

    /// Whether the MLP has a gate (SwiGLU).
    pub fn has_gate(self) -> bool {
        self != Self::GptNeox
    }
}

/// The architecture of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family, which also names the tensors in files.
    pub family: Family,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP's hidden layer.
    pub intermediate_size: usize,
    /// Number of layers.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Which projections of the attention have a bias.
    pub attention_bias: AttentionBias,
    /// Whether the projections of the MLP have a bias.
    pub mlp_bias: bool,
    /// The MLP's nonlinearity.
    pub activation: Activation,
    /// What the MLP reads.
    pub residual: Residual,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// The share of a head's channels that turn, in (0, 1].
    pub rotary_fraction: f64,
    /// How the rotary frequencies are changed for longer sequences.
    pub rope_scaling: RopeScaling,
    /// How far back attention sees.
    pub sliding_window: Option<SlidingWindow>,
    /// Added to the mean square or variance in norms.
    pub norm_eps: f64,
    /// Whether the output head is the transposed embedding.
    pub tie_word_embeddings: bool,
    /// Longest sequence in tokens, with rotary frequencies scaled where they are.
    pub max_position_embeddings: usize,
    /// The keys of `config.json` that do not matter here, such as token ids: kept for whoever reads the model.
    pub other: Map<String, Value>,
}

/// Which projections of the attention have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionBias {
    /// None of them.
    None,
    /// Queries, keys and values.
    Inputs,
    /// Queries, keys, values, and the output.
    All,
}

/// The nonlinearity of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x σ(x).
    Silu,
    /// x Φ(x).
    Gelu,
    /// x Φ(x) with Φ by its tanh approximation.
    GeluTanh,
}

/// What the MLP of a layer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// The residual stream with the attention's output.
    Sequential,
    /// The residual stream that the attention read, at the same time.
    Parallel,
}

/// How rotary frequencies are changed for longer sequences.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All are divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Low ones are divided by a factor, high ones stay, those between are blended (Llama 3.1).
    Llama3 {
        /// The factor.
        factor: f64,
        /// Turns within the original length at or below which a frequency is low.
        low_freq_factor: f64,
        /// Turns within the original length at or above which a frequency is high.
        high_freq_factor: f64,
        /// The original length in tokens.
        original: usize,
    },
    /// None up to the longest sequence; beyond it the base grows with the sequence, so that what a model says of its first
    /// tokens would depend on how many follow: such sequences are not supported.
    Dynamic {
        /// How fast the base grows: kept for whoever reads the model.
        factor: f64,
    },
    /// Low ones are divided by a factor, high ones stay, those between are blended by their place, and queries and keys are
    /// scaled (YaRN, arXiv 2309.00071).
    Yarn {
        /// The factor.
        factor: f64,
        /// What queries and keys are scaled by, if it does not follow from the factor.
        attention_factor: Option<f64>,
        /// Weights of the factor's logarithm in that scale: above and below a fraction.
        mscale: Option<[f64; 2]>,
        /// Turns within the original length at which a frequency is high.
        beta_fast: f64,
        /// Turns within the original length at which a frequency is low.
        beta_slow: f64,
        /// Whether the bounds of the blend are whole places.
        truncate: bool,
        /// The original length in tokens.
        original: usize,
    },
    /// Each is divided by a factor of its own, and queries and keys are scaled (Phi-3). Only sequences up to
    /// the original length are supported: beyond it other factors hold for the whole sequence, so that what
    /// a model says of its first tokens would depend on how many follow.
    LongRope {
        /// The factors up to the original length.
        short_factor: Vec<f64>,
        /// The factors beyond the original length: kept for whoever reads the model.
        long_factor: Vec<f64>,
        /// What queries and keys are scaled by, if it does not follow from the lengths.
        attention_factor: Option<f64>,
        /// The original length in tokens.
        original: usize,
    },
}

/// Attention that sees a query's own token and at most `tokens` - 1 before it.
#[derive(Clone, Debug, PartialEq)]
pub struct SlidingWindow {
    /// How many tokens are seen.
    pub tokens: usize,
    /// The layers that it holds for.
    pub layers: WindowedLayers,
}

/// The layers that a sliding window holds for.
#[derive(Clone, Debug, PartialEq)]
pub enum WindowedLayers {
    /// From this layer on.
    From(usize),
    /// Each layer that is true here.
    Listed(Vec<bool>),
}

impl Default for ModelConfig {
    /// A Llama of the sizes of transformers' `LlamaConfig()`: 7 B parameters.
    fn default() -> Self {
        Self {
            family: Family::Llama,
            vocab_size: 32000,
            hidden_size: 4096,
            intermediate_size: 11008,
            layers: 32,
            heads: 32,
            kv_heads: 32,
            head_dim: 128,
            attention_bias: AttentionBias::None,
            mlp_bias: false,
            activation: Activation::Silu,
            residual: Residual::Sequential,
            rope_theta: 1e4,
            rotary_fraction: 1.0,
            rope_scaling: RopeScaling::None,
            sliding_window: None,
            norm_eps: 1e-6,
            tie_word_embeddings: false,
            max_position_embeddings: 2048,
            other: Map::new(),
        }
    }
}

/// How long a sequence may be, prompt and response together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LengthLimit {
    /// The longest sequence in tokens.
    pub tokens: usize,
    /// The key of `config.json` that says so.
    pub key: &'static str,
}

/// A sequence is longer than the model was made for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{origin}: a prompt with its response takes {tokens} tokens, but the model was made for {} ({}): {remedy}",
    limit.tokens,
    limit.key
)]
pub struct TooLong {
    /// Where the sequence comes from: `FILE:LINE`, a file, or an argument.
    pub origin: String,
    /// Its tokens.
    pub tokens: usize,
    /// The model's limit.
    pub limit: LengthLimit,
    /// What to do.
    pub remedy: &'static str,
}

impl LengthLimit {
    /// Rejects a sequence of more tokens; `origin` says where it comes from, and `remedy` what to do.
    pub fn check(
        self,
        tokens: usize,
        origin: impl ToString,
        remedy: &'static str,
    ) -> Result<(), TooLong> {
        if tokens <= self.tokens {
            return Ok(());
        }
        Err(TooLong { origin: origin.to_string(), tokens, limit: self, remedy })
    }

    /// The lower of two limits, for two models that read the same sequence.
    pub fn min(self, other: Self) -> Self {
        if other.tokens < self.tokens { other } else { self }
    }
}

/// The largest dimension: no model comes near, and tables of it fit in memory.
const LARGEST: usize = 1 << 24;

impl ModelConfig {
    /// How many channels of a head turn.
    pub fn rotary_dim(&self) -> usize {
        (self.head_dim as f64 * self.rotary_fraction) as usize
    }

    /// How far back the attention of `layer` sees, if not to the first token.
    pub fn window(&self, layer: usize) -> Option<usize> {
        let window = self.sliding_window.as_ref()?;
        let holds = match &window.layers {
            WindowedLayers::From(first) => layer >= *first,
            WindowedLayers::Listed(layers) => layers[layer],
        };
        holds.then_some(window.tokens)
    }

    /// The longest sequence that the model was made for: of longrope, only what its short factors serve; of YaRN what its
    /// factor makes of the original length, if that is more.
    pub fn length_limit(&self) -> LengthLimit {
        let longest = self.max_position_embeddings;
        match self.rope_scaling {
            RopeScaling::LongRope { original, .. } if original < longest => {
                LengthLimit { tokens: original, key: "original_max_position_embeddings" }
            }
            RopeScaling::Yarn { factor, original, .. }
                if original as f64 * factor > longest as f64 =>
            {
                let key = "factor times original_max_position_embeddings of yarn";
                LengthLimit { tokens: (original as f64 * factor) as usize, key }
            }
            _ => LengthLimit { tokens: longest, key: "max_position_embeddings" },
        }
    }

    /// What makes this shape impossible, if anything does: the key of `config.json`, and what is wrong.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        let positive = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.layers),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("head_dim", self.head_dim),
        ];
        let allowed = 1..=LARGEST;
        if let Some((key, value)) = positive.into_iter().find(|(_, n)| !allowed.contains(n)) {
            return Some((key, format!("{value}; expected a whole number from 1 to {LARGEST}")));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let (heads, kv_heads) = (self.heads, self.kv_heads);
            let problem = format!("{kv_heads}; expected a divisor of the {heads} query heads");
            return Some(("num_key_value_heads", problem));
        }
        if !(self.rotary_fraction > 0.0 && self.rotary_fraction <= 1.0) {
            let problem = format!("{}; expected above 0, at most 1", self.rotary_fraction);
            return Some(("partial_rotary_factor", problem));
        }
        let turning = self.rotary_dim();
        if turning == 0 || !turning.is_multiple_of(2) {
            let problem = format!("{turning}; expected an even number for rotary positions");
            return Some(("head_dim", problem));
        }
        if !(self.rope_theta > 0.0 && self.rope_theta.is_finite()) {
            return Some(("rope_theta", format!("{}; expected above 0", self.rope_theta)));
        }
        if matches!(self.rope_scaling, RopeScaling::Yarn { .. }) && self.rope_theta <= 1.0 {
            return Some((
                "rope_theta",
                format!("{}; expected above 1 with yarn", self.rope_theta),
            ));
        }
        if let Some(problem) = self.rope_scaling.problem(turning / 2) {
            return Some(("rope_scaling", problem));
        }
        if let Some(window) = &self.sliding_window {
            if window.tokens == 0 {
                return Some(("sliding_window", "0; expected at least 1".into()));
            }
            if let WindowedLayers::Listed(listed) = &window.layers
                && listed.len() != self.layers
            {
                let problem = format!("{}; expected one for each layer", listed.len());
                return Some(("layer_types", problem));
            }
        }
        if !(self.norm_eps >= 0.0 && self.norm_eps.is_finite()) {
            let key = if self.family.has_layer_norm() { "layer_norm_eps" } else { "rms_norm_eps" };
            return Some((key, format!("{}; expected 0 or above", self.norm_eps)));
        }
        None
    }

    /// About how many parameters a model of this shape has; norms and biases are left out.
    pub fn parameters(&self) -> u128 {
        let [d, f, v, heads, kv_heads, head, layers] = [
            self.hidden_size,
            self.intermediate_size,
            self.vocab_size,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.layers,
        ]
        .map(|n| n as u128);
        let attention = 2 * d * head * (heads + kv_heads);
        let mlp = if self.family.has_gate() { 3 * d * f } else { 2 * d * f };
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        layers * (attention + mlp) + tables * v * d
    }
}

impl RopeScaling {
    /// What is wrong with it, if anything is, for this many frequencies.
    fn problem(&self, frequencies: usize) -> Option<String> {
        let positive = |name: &str, value: f64| {
            let bad = !(value > 0.0 && value.is_finite());
            bad.then(|| format!("{name} {value}; expected above 0"))
        };
        match self {
            Self::None => None,
            Self::Linear { factor } | Self::Dynamic { factor } => positive("factor", *factor),
            Self::Yarn {
                factor, attention_factor, mscale, beta_fast, beta_slow, original, ..
            } => {
                let [above, below] = mscale.unwrap_or([1.0; 2]);
                let values = [
                    ("factor", *factor),
                    ("attention_factor", attention_factor.unwrap_or(1.0)),
                    ("mscale", above),
                    ("mscale_all_dim", below),
                    ("beta_fast", *beta_fast),
                    ("beta_slow", *beta_slow),
                    ("original_max_position_embeddings", *original as f64),
                ];
                values.into_iter().find_map(|(name, value)| positive(name, value))
            }
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
                let order = (low_freq_factor >= high_freq_factor).then(|| {
                    format!(
                        "low_freq_factor {low_freq_factor}; expected below high_freq_factor \
                         {high_freq_factor}"
                    )
                });
                positive("factor", *factor)
                    .or_else(|| positive("low_freq_factor", *low_freq_factor))
                    .or_else(|| positive("high_freq_factor", *high_freq_factor))
                    .or_else(|| positive("original_max_position_embeddings", *original as f64))
                    .or(order)
            }
            Self::LongRope { short_factor, long_factor, attention_factor, original } => {
                [("short_factor", short_factor), ("long_factor", long_factor)]
                    .into_iter()
                    .find_map(|(name, factors)| {
                        let count = factors.len();
                        let wrong = (count != frequencies)
                            .then(|| format!("{name} of {count} numbers; expected {frequencies}"));
                        wrong.or_else(|| factors.iter().find_map(|f| positive(name, *f)))
                    })
                    .or_else(|| positive("attention_factor", attention_factor.unwrap_or(1.0)))
                    // Its logarithm divides.
                    .or_else(|| {
                        positive("original_max_position_embeddings - 1", *original as f64 - 1.0)
                    })
            }
        }
    }
}
