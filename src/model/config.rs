//! The shape of a decoder, as Hugging Face's `config.json` writes it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::checkpoint::CheckpointError;

/// The architecture of a Llama-style decoder.
///
/// Serialises to the keys of Hugging Face's `config.json`; reading accepts that file's other keys, both
/// spellings of the rotary settings, and refuses what this decoder does not implement.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the SwiGLU hidden layer.
    pub intermediate_size: usize,
    /// Number of layers.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Whether the output head is the transposed embedding.
    pub tie_word_embeddings: bool,
    /// Longest sequence in tokens.
    pub max_position_embeddings: usize,
}

/// The largest dimension: no model comes near, and tables of it fit in memory.
const LARGEST: usize = 1 << 24;

/// The keys of `config.json` that this program reads and writes.
#[derive(Serialize, Deserialize)]
struct HfConfig {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: Option<String>,
    rms_norm_eps: Option<f64>,
    max_position_embeddings: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rope_theta: Option<f64>,
    #[serde(skip_serializing)]
    rope_scaling: Option<serde_json::Value>,
    rope_parameters: Option<RopeParameters>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    num_labels: Option<usize>,
}

#[derive(Serialize, Deserialize)]
struct RopeParameters {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
}

impl ModelConfig {
    /// Reads `config.json` in `dir`.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Read`] and [`CheckpointError::Json`] for a missing or malformed file;
    /// [`CheckpointError::Unsupported`] for an architecture or option that this decoder lacks.
    pub fn from_dir(dir: &Path) -> Result<Self, CheckpointError> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path)
            .map_err(|source| CheckpointError::Read { path: path.clone(), source })?;
        let hf: HfConfig = serde_json::from_str(&text)
            .map_err(|source| CheckpointError::Json { path: path.clone(), source })?;
        let unsupported =
            |what: String| Err(CheckpointError::Unsupported { path: path.clone(), what });
        match hf.model_type.as_deref() {
            Some("llama") => {}
            other => return unsupported(format!("model_type {other:?}; supported: \"llama\"")),
        }
        if hf.attention_bias == Some(true) || hf.mlp_bias == Some(true) {
            return unsupported("attention_bias or mlp_bias; supported: no bias".into());
        }
        if !matches!(hf.hidden_act.as_deref(), None | Some("silu")) {
            return unsupported(format!("hidden_act {:?}; supported: \"silu\"", hf.hidden_act));
        }
        if hf.rope_scaling.is_some_and(|value| !value.is_null()) {
            return unsupported("rope_scaling; supported: plain rotary positions".into());
        }
        let rope = hf.rope_parameters;
        if let Some(kind) = rope.as_ref().and_then(|rope| rope.rope_type.as_deref())
            && kind != "default"
        {
            return unsupported(format!("rope_type {kind:?}; supported: \"default\""));
        }
        let heads = hf.num_attention_heads;
        let config = Self {
            vocab_size: hf.vocab_size,
            hidden_size: hf.hidden_size,
            intermediate_size: hf.intermediate_size,
            layers: hf.num_hidden_layers,
            heads,
            kv_heads: hf.num_key_value_heads.unwrap_or(heads),
            head_dim: hf.head_dim.unwrap_or(hf.hidden_size / heads.max(1)),
            rope_theta: rope.and_then(|rope| rope.rope_theta).or(hf.rope_theta).unwrap_or(1e4),
            rms_norm_eps: hf.rms_norm_eps.unwrap_or(1e-6),
            tie_word_embeddings: hf.tie_word_embeddings.unwrap_or(false),
            max_position_embeddings: hf.max_position_embeddings.unwrap_or(2048),
        };
        match config.problem() {
            Some((key, problem)) => unsupported(format!("{key}: {problem}")),
            None => Ok(config),
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
        if !self.head_dim.is_multiple_of(2) {
            let problem =
                format!("{}; expected an even number for rotary positions", self.head_dim);
            return Some(("head_dim", problem));
        }
        if !(self.rope_theta > 0.0 && self.rope_theta.is_finite()) {
            return Some(("rope_theta", format!("{}; expected above 0", self.rope_theta)));
        }
        if !(self.rms_norm_eps >= 0.0 && self.rms_norm_eps.is_finite()) {
            return Some(("rms_norm_eps", format!("{}; expected 0 or above", self.rms_norm_eps)));
        }
        None
    }

    /// About how many parameters a model of this shape has; the norms are left out.
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
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        layers * (attention + 3 * d * f) + tables * v * d
    }

    /// The text of `config.json` for a model of this shape; `architecture` is `LlamaForCausalLM` or
    /// `LlamaForSequenceClassification`.
    pub fn to_json(&self, architecture: &str) -> String {
        let classifier = architecture.ends_with("SequenceClassification");
        let hf = HfConfig {
            architectures: Some(vec![architecture.into()]),
            model_type: Some("llama".into()),
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads,
            num_key_value_heads: Some(self.kv_heads),
            head_dim: Some(self.head_dim),
            hidden_act: Some("silu".into()),
            rms_norm_eps: Some(self.rms_norm_eps),
            max_position_embeddings: Some(self.max_position_embeddings),
            rope_theta: Some(self.rope_theta),
            rope_scaling: None,
            rope_parameters: Some(RopeParameters {
                rope_theta: Some(self.rope_theta),
                rope_type: Some("default".into()),
            }),
            tie_word_embeddings: Some(self.tie_word_embeddings),
            attention_bias: Some(false),
            mlp_bias: Some(false),
            num_labels: classifier.then_some(1),
        };
        serde_json::to_string_pretty(&hf).expect("a plain struct serialises")
    }
}
