//! Where the files of each family hold a parameter. Inside, parameters are called as Llama's files call them;
//! other families rename them, or hold several in one tensor, row by row.

use std::ops::Range;

use super::config::{Family, ModelConfig};

/// The name of the scalar head's parameter.
pub(super) const HEAD: &str = "score.weight";

/// The layout of a family's files.
#[derive(Clone, Debug)]
pub struct Layout {
    family: Family,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    intermediate_size: usize,
}

/// The place of a parameter in a file: rows of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    pub name: String,
    /// How many rows the tensor has.
    pub rows: usize,
    /// Which of them are the parameter's, in order.
    pub own: Vec<Range<usize>>,
}

impl Place {
    fn block(name: String, rows: usize, own: Range<usize>) -> Self {
        Self { name, rows, own: vec![own] }
    }
}

impl Layout {
    /// The layout of the files of a model.
    pub fn of(config: &ModelConfig) -> Self {
        let ModelConfig { family, heads, kv_heads, head_dim, intermediate_size, .. } = *config;
        Self { family, heads, kv_heads, head_dim, intermediate_size }
    }

    /// One tensor for each parameter, under its own name.
    pub fn plain() -> Self {
        Self::of(&ModelConfig { family: Family::Llama, ..ModelConfig::default() })
    }

    /// The place of the parameter `name`, which has this many rows (numbers, for a vector).
    pub fn place(&self, name: &str, rows: usize) -> Place {
        match self.family {
            Family::Phi3 => self.phi3(name, rows),
            Family::GptNeox => self.gpt_neox(name, rows),
            Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 => {
                Place::block(name.to_owned(), rows, 0..rows)
            }
        }
    }

    /// `qkv_proj` holds queries, keys and values one after the other, `gate_up_proj` gate and input.
    fn phi3(&self, name: &str, rows: usize) -> Place {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let f = self.intermediate_size;
        let fused = [
            (".q_proj.", ".qkv_proj.", 0, q + 2 * kv),
            (".k_proj.", ".qkv_proj.", q, q + 2 * kv),
            (".v_proj.", ".qkv_proj.", q + kv, q + 2 * kv),
            (".gate_proj.", ".gate_up_proj.", 0, 2 * f),
            (".up_proj.", ".gate_up_proj.", f, 2 * f),
        ];
        match fused.into_iter().find(|(part, ..)| name.contains(part)) {
            Some((part, whole, start, all)) => {
                Place::block(name.replace(part, whole), all, start..start + rows)
            }
            None => Place::block(name.to_owned(), rows, 0..rows),
        }
    }

    /// `query_key_value` holds query, key and value of the first head, then those of the second, and so on.
    fn gpt_neox(&self, name: &str, rows: usize) -> Place {
        const NAMES: [(&str, &str); 8] = [
            ("model.embed_tokens.", "gpt_neox.embed_in."),
            ("model.norm.", "gpt_neox.final_layer_norm."),
            ("model.layers.", "gpt_neox.layers."),
            ("lm_head.", "embed_out."),
            (".self_attn.", ".attention."),
            (".o_proj.", ".dense."),
            (".mlp.up_proj.", ".mlp.dense_h_to_4h."),
            (".mlp.down_proj.", ".mlp.dense_4h_to_h."),
        ];
        let rename = |name: String, (ours, theirs): &(&str, &str)| name.replacen(ours, theirs, 1);
        let renamed = NAMES.iter().fold(name.to_owned(), rename);
        let (heads, width) = (self.heads, self.head_dim);
        let fused = [".q_proj.", ".k_proj.", ".v_proj."];
        match fused.iter().position(|part| name.contains(part)) {
            Some(third) => {
                let start = |head| (3 * head + third) * width;
                Place {
                    name: renamed.replace(fused[third], ".query_key_value."),
                    rows: 3 * heads * width,
                    own: (0..heads).map(|head| start(head)..start(head) + width).collect(),
                }
            }
            None => Place::block(renamed, rows, 0..rows),
        }
    }
}

/// Whether files of older versions of transformers hold this tensor beside the parameters: masks and rotary
/// frequencies, which follow from the configuration.
pub fn is_constant(name: &str) -> bool {
    [".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"]
        .iter()
        .any(|constant| name.ends_with(constant))
}
