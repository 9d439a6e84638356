//! A decoder's architecture as Hugging Face's `config.json` writes it.

use std::path::Path;

use burn::tensor::DType;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::config::{
    Activation, AttentionBias, Family, ModelConfig, Residual, RopeScaling, SlidingWindow,
    WindowedLayers,
};
use super::error::CheckpointError;
use crate::file_error::FileError;
use crate::hub;

/// What a folder's model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// A language model: `*ForCausalLM`.
    CausalLm,
    /// A scalar model: `*ForSequenceClassification` with one label.
    Score,
}

impl Head {
    /// What the model in `dir` is for, as its `config.json` says.
    pub fn of(dir: &Path) -> Result<Self, CheckpointError> {
        if hub::has_adapters(dir) && !dir.join("config.json").exists() {
            return Ok(if hub::are_scalar(dir) { Self::Score } else { Self::CausalLm });
        }
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(FileError::reading(&path))?;
        let hf: HfConfig =
            serde_json::from_str(&text).map_err(|source| CheckpointError::Json { path, source })?;
        Ok(if hf.is_classifier() { Self::Score } else { Self::CausalLm })
    }
}

/// The keys of `config.json` that are read.
#[derive(Deserialize)]
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
    layer_norm_eps: Option<f64>,
    max_position_embeddings: Option<usize>,
    original_max_position_embeddings: Option<usize>,
    rope_theta: Option<f64>,
    rotary_emb_base: Option<f64>,
    rotary_pct: Option<f64>,
    partial_rotary_factor: Option<f64>,
    rope_scaling: Option<RopeParameters>,
    rope_parameters: Option<RopeParameters>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    use_parallel_residual: Option<bool>,
    use_sliding_window: Option<bool>,
    sliding_window: Option<usize>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    quantization_config: Option<Value>,
    num_labels: Option<usize>,
    id2label: Option<Map<String, Value>>,
}

impl HfConfig {
    fn is_classifier(&self) -> bool {
        let names = self.architectures.iter().flatten();
        names.into_iter().any(|name| name.ends_with("ForSequenceClassification"))
    }
}

/// `rope_parameters`, or `rope_scaling` in older files.
#[derive(Default, Deserialize)]
struct RopeParameters {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    /// The older name of `rope_type`.
    r#type: Option<String>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    short_factor: Option<Vec<f64>>,
    long_factor: Option<Vec<f64>>,
    attention_factor: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    truncate: Option<bool>,
    original_max_position_embeddings: Option<usize>,
    full_attention: Option<Value>,
    sliding_attention: Option<Value>,
}

/// Keys of other spellings, and of things that do not hold for a model that this program writes.
const REPLACED: [&str; 12] = [
    "rope_scaling",
    "rope_theta",
    "rotary_emb_base",
    "rotary_pct",
    "partial_rotary_factor",
    "original_max_position_embeddings",
    "torch_dtype",
    "num_labels",
    "id2label",
    "label2id",
    "auto_map", // code that the new folder does not hold
    "layer_types",
];

impl ModelConfig {
    /// Reads `config.json` in `dir`, in the spellings of today's transformers and of older ones.
    pub fn from_dir(dir: &Path) -> Result<Self, CheckpointError> {
        let path = hub::holding(dir, "config.json").join("config.json");
        let text = std::fs::read_to_string(&path).map_err(FileError::reading(&path))?;
        let json = |source| CheckpointError::Json { path: path.clone(), source };
        let hf: HfConfig = serde_json::from_str(&text).map_err(json)?;
        let all: Map<String, Value> = serde_json::from_str(&text).map_err(json)?;
        let config = Self::from_hf(hf, all);
        config.map_err(|what| CheckpointError::Unsupported { path: path.clone(), what })
    }

    /// The configuration that `hf` describes, whose keys are `all`; or what is unsupported.
    fn from_hf(hf: HfConfig, mut all: Map<String, Value>) -> Result<Self, String> {
        let family = family(hf.model_type.as_deref())?;
        if hf.quantization_config.is_some() {
            return Err("quantization_config; supported: weights in f32, f16 or bf16".into());
        }
        labels(&hf)?;
        let heads = hf.num_attention_heads;
        let head_dim = match (hf.head_dim, family) {
            (Some(head_dim), Family::GptNeox)
                if head_dim.checked_mul(heads) != Some(hf.hidden_size) =>
            {
                return Err(format!("head_dim: {head_dim}; gpt_neox has hidden_size / heads"));
            }
            (Some(head_dim), _) => head_dim,
            (None, Family::Qwen3) => 128,
            (None, _) if heads > 0 && !hf.hidden_size.is_multiple_of(heads) => {
                return Err(format!(
                    "num_attention_heads: {heads}; expected a divisor of hidden_size {}, or a head_dim",
                    hf.hidden_size
                ));
            }
            (None, _) => hf.hidden_size / heads.max(1),
        };
        let max_position_embeddings = hf.max_position_embeddings.unwrap_or(2048);
        // As transformers: an older file's `rope_scaling` stands instead of `rope_parameters`.
        let rope = hf.rope_scaling.or(hf.rope_parameters).unwrap_or_default();
        let theta = [rope.rope_theta, hf.rope_theta, hf.rotary_emb_base];
        let fraction = [rope.partial_rotary_factor, hf.partial_rotary_factor, hf.rotary_pct];
        let original = hf.original_max_position_embeddings;
        let eps = if family.has_layer_norm() { hf.layer_norm_eps } else { hf.rms_norm_eps };
        let window = window(family, all.get("sliding_window").is_some(), hf.sliding_window);
        let window = match family {
            Family::Qwen2 | Family::Qwen3 if hf.use_sliding_window != Some(true) => None,
            _ => window,
        };
        let layers = windowed_layers(family, hf.max_window_layers, hf.layer_types)?;
        let somewhere = |window: &SlidingWindow| match window.layers {
            WindowedLayers::From(first) => first < hf.num_hidden_layers,
            WindowedLayers::Listed(_) => true,
        };
        let sliding_window =
            window.map(|tokens| SlidingWindow { tokens, layers }).filter(somewhere);
        let config = Self {
            family,
            vocab_size: hf.vocab_size,
            hidden_size: hf.hidden_size,
            intermediate_size: hf.intermediate_size,
            layers: hf.num_hidden_layers,
            heads,
            kv_heads: hf.num_key_value_heads.unwrap_or(heads),
            head_dim,
            attention_bias: match family {
                Family::Qwen2 => AttentionBias::Inputs,
                Family::GptNeox if hf.attention_bias != Some(false) => AttentionBias::All,
                Family::Llama | Family::Qwen3 if hf.attention_bias == Some(true) => {
                    AttentionBias::All
                }
                _ => AttentionBias::None,
            },
            mlp_bias: match family {
                Family::GptNeox => true,
                Family::Llama => hf.mlp_bias == Some(true),
                _ => false,
            },
            activation: activation(family, hf.hidden_act.as_deref())?,
            residual: match family {
                Family::GptNeox if hf.use_parallel_residual != Some(false) => Residual::Parallel,
                _ => Residual::Sequential,
            },
            rope_theta: theta.into_iter().flatten().next().unwrap_or(1e4),
            rotary_fraction: fraction.into_iter().flatten().next().unwrap_or(match family {
                Family::GptNeox => 0.25,
                _ => 1.0,
            }),
            rope_scaling: scaling(rope, original, max_position_embeddings)?,
            sliding_window,
            norm_eps: eps.unwrap_or(match family {
                Family::Phi3 | Family::GptNeox => 1e-5,
                _ => 1e-6,
            }),
            tie_word_embeddings: hf.tie_word_embeddings.unwrap_or(false),
            max_position_embeddings,
            other: Map::new(),
        };
        if let Some((key, problem)) = config.problem() {
            return Err(format!("{key}: {problem}"));
        }
        let own = config.own_keys(Head::CausalLm, DType::F32);
        all.retain(|key, _| !own.contains_key(key) && !REPLACED.contains(&key.as_str()));
        Ok(Self { other: all, ..config })
    }

    /// The text of `config.json` for a model of this shape, with weights of type `dtype`.
    pub fn to_json(&self, head: Head, dtype: DType) -> String {
        let mut all = self.own_keys(head, dtype);
        all.extend(self.other.clone());
        serde_json::to_string_pretty(&all).expect("JSON serialises")
    }

    /// The keys of `config.json` that follow from this configuration.
    fn own_keys(&self, head: Head, dtype: DType) -> Map<String, Value> {
        let family = self.family;
        let suffix = match head {
            Head::CausalLm => "ForCausalLM",
            Head::Score => "ForSequenceClassification",
        };
        let dtype = match dtype {
            DType::BF16 => "bfloat16",
            DType::F16 => "float16",
            _ => "float32",
        };
        let mut keys = Map::new();
        let mut put = |key: &str, value: Value| drop(keys.insert(key.to_owned(), value));
        put("architectures", json!([format!("{}{suffix}", family.class())]));
        put("model_type", family.model_type().into());
        put("vocab_size", self.vocab_size.into());
        put("hidden_size", self.hidden_size.into());
        put("intermediate_size", self.intermediate_size.into());
        put("num_hidden_layers", self.layers.into());
        put("num_attention_heads", self.heads.into());
        let act = match self.activation {
            Activation::Silu => "silu",
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_new",
        };
        put("hidden_act", act.into());
        put("max_position_embeddings", self.max_position_embeddings.into());
        put("tie_word_embeddings", self.tie_word_embeddings.into());
        put("dtype", dtype.into());
        put("torch_dtype", dtype.into());
        if head == Head::Score {
            put("num_labels", 1.into());
        }
        if family == Family::GptNeox {
            put("layer_norm_eps", self.norm_eps.into());
            put("use_parallel_residual", (self.residual == Residual::Parallel).into());
            put("rotary_emb_base", self.rope_theta.into());
            put("rotary_pct", self.rotary_fraction.into());
        } else {
            put("num_key_value_heads", self.kv_heads.into());
            put("head_dim", self.head_dim.into());
            put("rms_norm_eps", self.norm_eps.into());
            put("rope_theta", self.rope_theta.into());
            if self.rotary_fraction != 1.0 {
                put("partial_rotary_factor", self.rotary_fraction.into());
            }
        }
        if matches!(family, Family::Llama | Family::Qwen3 | Family::GptNeox) {
            put("attention_bias", (self.attention_bias == AttentionBias::All).into());
        }
        if family == Family::Llama {
            put("mlp_bias", self.mlp_bias.into());
        }
        let window = self.sliding_window.as_ref();
        if matches!(family, Family::Qwen2 | Family::Qwen3) {
            put("use_sliding_window", window.is_some().into());
            put("max_window_layers", self.layers.into());
            match window.map(|window| &window.layers) {
                None => {}
                Some(WindowedLayers::From(first)) => put("max_window_layers", (*first).into()),
                Some(WindowedLayers::Listed(layers)) => {
                    let kind = |&is: &bool| if is { "sliding_attention" } else { "full_attention" };
                    put("layer_types", layers.iter().map(kind).collect());
                }
            }
        }
        if !matches!(family, Family::Llama | Family::GptNeox) {
            put("sliding_window", window.map(|window| window.tokens).into());
        }
        let (rope_type, scaling) = self.rope_scaling.keys();
        if !scaling.is_empty() {
            let mut older = scaling.clone();
            older.insert("type".into(), rope_type.into());
            older.insert("rope_type".into(), rope_type.into());
            put("rope_scaling", older.into());
        }
        if let RopeScaling::LongRope { original, .. } = self.rope_scaling {
            put("original_max_position_embeddings", original.into());
        }
        let mut rope = scaling;
        rope.insert("rope_type".into(), rope_type.into());
        rope.insert("rope_theta".into(), self.rope_theta.into());
        rope.insert("partial_rotary_factor".into(), self.rotary_fraction.into());
        put("rope_parameters", rope.into());
        keys
    }
}

fn family(model_type: Option<&str>) -> Result<Family, String> {
    let found = Family::ALL.into_iter().find(|family| Some(family.model_type()) == model_type);
    found.ok_or_else(|| {
        let named = model_type.map_or("no model_type".into(), |name| {
            format!("model_type {name:?}{}", peculiarity(name))
        });
        let supported = Family::ALL.map(Family::model_type).join(", ");
        format!("{named}; supported: {supported}")
    })
}

/// What a family has that this decoder lacks, of those that are asked for most.
fn peculiarity(model_type: &str) -> &'static str {
    match model_type {
        "mixtral" | "qwen2_moe" | "qwen3_moe" => ", a mixture of experts",
        "gemma" | "gemma2" | "gemma3" | "gemma3_text" => {
            ", with scaled embeddings, norms of its own and, in part, capped logits"
        }
        _ => "",
    }
}

/// Rejects classifiers of several labels.
fn labels(hf: &HfConfig) -> Result<(), String> {
    let labels = hf.num_labels.or(hf.id2label.as_ref().map(Map::len));
    match labels.filter(|_| hf.is_classifier()) {
        None | Some(1) => Ok(()),
        Some(labels) => Err(format!("classifier of {labels} labels; supported: one, the reward")),
    }
}

fn activation(family: Family, hidden_act: Option<&str>) -> Result<Activation, String> {
    match (family, hidden_act) {
        (Family::GptNeox, None | Some("gelu")) => Ok(Activation::Gelu),
        (Family::GptNeox, Some("gelu_new" | "gelu_fast" | "gelu_pytorch_tanh")) => {
            Ok(Activation::GeluTanh)
        }
        (Family::GptNeox, Some(other)) => {
            Err(format!("hidden_act {other:?}; supported: \"gelu\" and its tanh approximation"))
        }
        (_, None | Some("silu")) => Ok(Activation::Silu),
        (_, Some(other)) => Err(format!("hidden_act {other:?}; supported: \"silu\"")),
    }
}

/// The window that a file asks for, which names one or null, or says nothing.
fn window(family: Family, named: bool, tokens: Option<usize>) -> Option<usize> {
    match family {
        Family::Llama | Family::GptNeox => None,
        Family::Mistral | Family::Qwen2 | Family::Qwen3 if !named => Some(4096),
        _ => tokens,
    }
}

/// The layers that a window holds for.
fn windowed_layers(
    family: Family,
    first: Option<usize>,
    kinds: Option<Vec<String>>,
) -> Result<WindowedLayers, String> {
    if !matches!(family, Family::Qwen2 | Family::Qwen3) {
        return Ok(WindowedLayers::From(0));
    }
    let Some(kinds) = kinds else { return Ok(WindowedLayers::From(first.unwrap_or(28))) };
    let windowed = |kind: &String| match kind.as_str() {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        other => Err(format!(
            "layer_types {other:?}; supported: \"full_attention\" and \"sliding_attention\""
        )),
    };
    let listed: Vec<bool> = kinds.iter().map(windowed).collect::<Result<_, _>>()?;
    if listed.is_sorted() {
        return Ok(WindowedLayers::From(listed.partition_point(|windowed| !windowed)));
    }
    Ok(WindowedLayers::Listed(listed))
}

fn scaling(
    rope: RopeParameters,
    original: Option<usize>,
    longest: usize,
) -> Result<RopeScaling, String> {
    if rope.full_attention.is_some() || rope.sliding_attention.is_some() {
        return Err("rope_parameters by layer type; supported: the same for all layers".into());
    }
    let missing = |key: &str| format!("rope_scaling without {key}");
    let kind = match rope.rope_type.or(rope.r#type) {
        Some(kind) => kind,
        None if rope.factor.is_some() || rope.long_factor.is_some() => {
            return Err(missing("rope_type"));
        }
        None => "default".into(),
    };
    let original = original.or(rope.original_max_position_embeddings).unwrap_or(longest);
    match kind.as_str() {
        "default" => Ok(RopeScaling::None),
        "linear" => {
            Ok(RopeScaling::Linear { factor: rope.factor.ok_or_else(|| missing("factor"))? })
        }
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: rope.factor.ok_or_else(|| missing("factor"))?,
            low_freq_factor: rope.low_freq_factor.ok_or_else(|| missing("low_freq_factor"))?,
            high_freq_factor: rope.high_freq_factor.ok_or_else(|| missing("high_freq_factor"))?,
            original,
        }),
        "dynamic" => {
            Ok(RopeScaling::Dynamic { factor: rope.factor.ok_or_else(|| missing("factor"))? })
        }
        "yarn" => {
            let given = |value: Option<f64>| value.filter(|&value| value != 0.0); // as transformers reads them
            Ok(RopeScaling::Yarn {
                factor: rope.factor.unwrap_or(longest as f64 / original.max(1) as f64),
                attention_factor: rope.attention_factor,
                mscale: given(rope.mscale)
                    .zip(given(rope.mscale_all_dim))
                    .map(|(above, below)| [above, below]),
                beta_fast: given(rope.beta_fast).unwrap_or(32.0),
                beta_slow: given(rope.beta_slow).unwrap_or(1.0),
                truncate: rope.truncate.unwrap_or(true),
                original,
            })
        }
        "longrope" | "su" if rope.factor.is_some() => {
            Err("rope_scaling factor with longrope; supported: the ratio of the two lengths".into())
        }
        // "su" is the name that it had first.
        "longrope" | "su" => Ok(RopeScaling::LongRope {
            short_factor: rope.short_factor.ok_or_else(|| missing("short_factor"))?,
            long_factor: rope.long_factor.ok_or_else(|| missing("long_factor"))?,
            attention_factor: rope.attention_factor,
            original,
        }),
        other => Err(format!(
            "rope_type {other:?}; supported: \"default\", \"linear\", \"dynamic\", \"yarn\", \"llama3\", \"longrope\""
        )),
    }
}

impl RopeScaling {
    /// Its `rope_type`, and the keys that go with it.
    fn keys(&self) -> (&'static str, Map<String, Value>) {
        let (rope_type, keys) = match self {
            Self::None => ("default", json!({})),
            Self::Linear { factor } => ("linear", json!({"factor": factor})),
            Self::Dynamic { factor } => ("dynamic", json!({"factor": factor})),
            Self::Yarn {
                factor,
                attention_factor,
                mscale,
                beta_fast,
                beta_slow,
                truncate,
                original,
            } => {
                let mut keys = json!({
                    "factor": factor,
                    "beta_fast": beta_fast,
                    "beta_slow": beta_slow,
                    "truncate": truncate,
                    "original_max_position_embeddings": original,
                });
                if let Some(factor) = attention_factor {
                    keys["attention_factor"] = (*factor).into();
                }
                if let Some([above, below]) = mscale {
                    keys["mscale"] = (*above).into();
                    keys["mscale_all_dim"] = (*below).into();
                }
                ("yarn", keys)
            }
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original } => (
                "llama3",
                json!({
                    "factor": factor,
                    "low_freq_factor": low_freq_factor,
                    "high_freq_factor": high_freq_factor,
                    "original_max_position_embeddings": original,
                }),
            ),
            Self::LongRope { short_factor, long_factor, attention_factor, original } => {
                let mut keys = json!({
                    "short_factor": short_factor,
                    "long_factor": long_factor,
                    "original_max_position_embeddings": original,
                });
                if let Some(factor) = attention_factor {
                    keys["attention_factor"] = (*factor).into();
                }
                ("longrope", keys)
            }
        };
        let Value::Object(keys) = keys else { unreachable!("written as an object") };
        (rope_type, keys)
    }
}
