//! Models on disk: what is read back, and what is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, TensorData};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use segment_rlhf::file_error::FileError;
use segment_rlhf::model::checkpoint::{fingerprint, parameters, restore, write_trained};
use segment_rlhf::model::config::{Family, SlidingWindow, WindowedLayers};
use segment_rlhf::model::weights::{self, INDEX, WEIGHTS};
use segment_rlhf::model::{
    CausalLm, CheckpointError, FreshHead, Head, ModelConfig, Placement, ScalarModel,
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::support::devices;
use crate::tiny_model::{drawn, families, grouped, scalar_model};

/// A folder with a fresh model of [`grouped`].
fn saved() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    CausalLm::fresh(&grouped(), 5, &Device::flex()).save(&grouped(), dir.path()).unwrap();
    dir
}

fn load(dir: &Path) -> Result<(CausalLm, ModelConfig), CheckpointError> {
    CausalLm::load(dir, &Device::flex())
}

/// The configuration of [`grouped`] with some keys changed; null takes a key away.
fn config_with(changes: Value) -> Result<ModelConfig, CheckpointError> {
    let dir = tempfile::tempdir().unwrap();
    let mut config: Value =
        serde_json::from_str(&grouped().to_json(Head::CausalLm, DType::F32)).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(config.as_object_mut().unwrap().remove(key)),
            value => config[key] = value.clone(),
        }
    }
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    ModelConfig::from_dir(dir.path())
}

#[test]
fn a_saved_model_is_read_back_bit_by_bit() {
    let dir = tempfile::tempdir().unwrap();
    let on_devices =
        |config: ModelConfig| devices().into_iter().map(move |d| (config.clone(), d.0));
    for (config, device) in families().into_iter().flat_map(on_devices) {
        let model = drawn(CausalLm::fresh(&config, 5, &device));
        model.save(&config, dir.path()).unwrap();
        let (again, read) = CausalLm::load(dir.path(), &device).unwrap();
        assert_eq!(read, config);
        assert_eq!(fingerprint(&again), fingerprint(&model));
        let other = CausalLm::fresh(&config, 6, &device);
        assert_ne!(fingerprint(&other), fingerprint(&model));
        let file = dir.path().join("policy.safetensors");
        write_trained(&model, &file).unwrap();
        let restored = restore(other, &file).unwrap();
        assert_eq!(fingerprint(&restored), fingerprint(&model));
    }
}

#[test]
fn a_scalar_model_is_read_back_bit_by_bit() {
    let (dir, device) = (tempfile::tempdir().unwrap(), Device::flex());
    for config in families() {
        let model = drawn(scalar_model(&config, 5, &device));
        model.save(&config, dir.path()).unwrap();
        let (again, read) = ScalarModel::load(dir.path(), &device).unwrap();
        assert_eq!(read, config);
        assert_eq!(fingerprint(&again), fingerprint(&model));
    }
}

/// A checkpoint of transformers.
fn hf(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/hf").join(name)
}

/// Each of them.
fn fixtures() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(hf("")).unwrap().map(|entry| entry.unwrap().path());
    let found: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    assert!(found.len() >= 17, "{} fixtures", found.len());
    found
}

/// The tensors of all files of the model in `dir`, by name: type, shape, and bytes.
fn tensors(dir: &Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for path in weights::files(dir).unwrap() {
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let bytes = std::fs::read(path).unwrap();
            for (name, tensor) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                let content = (tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec());
                all.insert(name, content);
            }
        }
    }
    all
}

#[test]
fn what_is_read_from_a_checkpoint_of_transformers_is_written_with_the_same_tensors_and_meaning() {
    let to = tempfile::tempdir().unwrap();
    let device = Device::flex();
    for from in fixtures() {
        println!("{}", from.display());
        let dtype = match tensors(&from).values().next().unwrap().0 {
            Dtype::BF16 => DType::BF16,
            Dtype::F16 => DType::F16,
            _ => DType::F32,
        };
        let placement = Placement { device: device.clone(), dtype };
        let config = if from.to_str().unwrap().ends_with("reward") {
            let (model, config) = ScalarModel::load(&from, placement).unwrap();
            model.save(&config, to.path()).unwrap();
            config
        } else {
            let (model, config) = CausalLm::load(&from, placement).unwrap();
            model.save(&config, to.path()).unwrap();
            config
        };
        assert!(tensors(&from) == tensors(to.path()));
        assert_eq!(ModelConfig::from_dir(to.path()).unwrap(), config);
        let json = |dir: &Path| -> Map<String, Value> {
            let text = std::fs::read_to_string(dir.join("config.json")).unwrap();
            serde_json::from_str(&text).unwrap()
        };
        let (old, new) = (json(&from), json(to.path()));
        for key in ["architectures", "model_type", "bos_token_id", "eos_token_id", "dtype"] {
            assert_eq!(old[key], new[key], "{key}");
        }
    }
}

#[test]
fn a_model_is_placed_in_the_type_asked_for_whatever_its_file_has() {
    let dir = saved();
    let device = Device::flex();
    let model = load(dir.path()).unwrap().0;
    for dtype in [DType::BF16, DType::F16] {
        let placement = Placement { device: device.clone(), dtype };
        let (placed, _) = CausalLm::load(dir.path(), placement).unwrap();
        assert_eq!(placed.dtype(), dtype);
        let placed = parameters(&placed);
        for (name, data) in parameters(&model) {
            let rounded = data.convert_dtype(dtype).convert_dtype(DType::F32);
            assert_eq!(placed[&name], rounded, "{name} in {dtype:?}");
        }
    }
}

/// A folder with the sharded model, after `edit` of its index.
fn sharded(edit: impl FnOnce(&mut Value)) -> TempDir {
    let (from, to) = (hf("llama_sharded"), tempfile::tempdir().unwrap());
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::write(to.path().join(path.file_name().unwrap()), std::fs::read(&path).unwrap())
            .unwrap();
    }
    let path = to.path().join(INDEX);
    let mut index = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut index);
    std::fs::write(path, index.to_string()).unwrap();
    to
}

const SHARDS: [&str; 3] = [
    "model-00001-of-00003.safetensors",
    "model-00002-of-00003.safetensors",
    "model-00003-of-00003.safetensors",
];

#[test]
fn a_shard_that_is_missing_or_cut_short_is_named() {
    let dir = sharded(|_| ());
    let shard = dir.path().join(SHARDS[1]);
    let whole = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &whole[..whole.len() - 1]).unwrap();
    let error = load(dir.path()).unwrap_err();
    assert!(matches!(error, CheckpointError::Format { path, .. } if path == shard));
    std::fs::remove_file(&shard).unwrap();
    let error = load(dir.path()).unwrap_err();
    assert!(matches!(error, CheckpointError::File(error) if error.path == shard));
}

#[test]
fn an_index_that_does_not_fit_its_shards_is_refused() {
    let name = "model.norm.weight";
    let dir = sharded(|index| index["weight_map"][name] = SHARDS[0].into());
    let missing = format!("{name}: the index names {}, which lacks it", SHARDS[0]);
    assert_eq!(problems(load(dir.path())), [missing]);
    let dir = sharded(|index| index["weight_map"]["model.extra"] = SHARDS[0].into());
    let missing = format!("model.extra: the index names {}, which lacks it", SHARDS[0]);
    assert_eq!(problems(load(dir.path())), [missing]);

    let dir = sharded(|index| index["weight_map"][name] = "../model.safetensors".into());
    let error = load(dir.path()).unwrap_err();
    let CheckpointError::Format { path, detail } = error else { panic!("{error}") };
    assert_eq!(path, dir.path().join(INDEX));
    assert_eq!(
        detail,
        format!("{name} is in \"../model.safetensors\", expected a file in the same folder")
    );
    let dir = sharded(|index| *index = json!({}));
    let error = load(dir.path()).unwrap_err();
    assert!(matches!(error, CheckpointError::Json { path, .. } if path == dir.path().join(INDEX)));
}

#[test]
fn masks_and_frequencies_that_older_files_hold_are_passed_over() {
    let dir = saved();
    let model = load(dir.path()).unwrap().0;
    let mut parameters = parameters(&model);
    let constant = TensorData::new(vec![1f32, 0.1], [2]);
    parameters.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), constant);
    let views = parameters.iter().map(|(name, data)| {
        (name, TensorView::new(Dtype::F32, data.shape().to_vec(), data.as_bytes()).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(dir.path().join(WEIGHTS), bytes).unwrap();
    assert_eq!(fingerprint(&load(dir.path()).unwrap().0), fingerprint(&model));
}

#[test]
fn a_fused_tensor_that_is_missing_is_listed_once_in_its_own_name_and_shape() {
    let config = families().remove(6);
    assert_eq!(config.family, Family::Phi3);
    let dir = tempfile::tempdir().unwrap();
    CausalLm::fresh(&config, 5, &Device::flex()).save(&config, dir.path()).unwrap();
    let fewer = ModelConfig { layers: 1, ..config.clone() };
    CausalLm::fresh(&fewer, 5, &Device::flex()).save(&fewer, dir.path()).unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_json(Head::CausalLm, DType::F32))
        .unwrap();
    assert_eq!(
        problems(load(dir.path())),
        [
            "model.layers.1.self_attn.qkv_proj.weight: missing, expected shape [32, 16]",
            "model.layers.1.self_attn.o_proj.weight: missing, expected shape [16, 16]",
            "model.layers.1.mlp.gate_up_proj.weight: missing, expected shape [48, 16]",
            "model.layers.1.mlp.down_proj.weight: missing, expected shape [16, 24]",
            "model.layers.1.input_layernorm.weight: missing, expected shape [16]",
            "model.layers.1.post_attention_layernorm.weight: missing, expected shape [16]",
        ]
    );
}

#[test]
fn parameters_stored_in_half_precision_are_read_as_f32() {
    let dir = saved();
    let model = load(dir.path()).unwrap().0;
    for (dtype, stored) in [(DType::BF16, Dtype::BF16), (DType::F16, Dtype::F16)] {
        let half = |(name, data): (String, TensorData)| (name, data.convert_dtype(dtype));
        let halves: Vec<_> = parameters(&model).into_iter().map(half).collect();
        let views = halves.iter().map(|(name, data)| {
            (name, TensorView::new(stored, data.shape().to_vec(), data.as_bytes()).unwrap())
        });
        let bytes = safetensors::serialize(views, None).unwrap();
        std::fs::write(dir.path().join(WEIGHTS), bytes).unwrap();
        let read = parameters(&load(dir.path()).unwrap().0);
        for (name, data) in halves {
            assert_eq!(read[&name], data.convert_dtype(DType::F32), "{name} in {dtype:?}");
        }
    }
}

#[test]
fn what_a_configuration_leaves_out_has_the_defaults_of_transformers() {
    let config = config_with(json!({
        "num_key_value_heads": null, "head_dim": null, "rms_norm_eps": null, "rope_parameters": null,
        "rope_theta": null, "tie_word_embeddings": null, "max_position_embeddings": null,
        "hidden_act": null, "attention_bias": null, "mlp_bias": null, "unknown": 1,
    }));
    let expected = ModelConfig {
        kv_heads: 4,
        head_dim: 4,
        norm_eps: 1e-6,
        rope_theta: 1e4,
        tie_word_embeddings: false,
        max_position_embeddings: 2048,
        other: Map::from_iter([("unknown".into(), 1.into())]),
        ..grouped()
    };
    assert_eq!(config.unwrap(), expected);
}

#[test]
fn sliding_windows_are_read_as_each_family_spells_them() {
    let window = |changes| config_with(changes).unwrap().sliding_window;
    let from = |tokens, first| Some(SlidingWindow { tokens, layers: WindowedLayers::From(first) });
    let mistral = "mistral";
    assert_eq!(window(json!({"sliding_window": 7})), None); // Llama has none
    assert_eq!(window(json!({"model_type": mistral, "sliding_window": 7})), from(7, 0));
    assert_eq!(window(json!({"model_type": mistral})), from(4096, 0));
    assert_eq!(window(json!({"model_type": "phi3"})), None);
    assert_eq!(window(json!({"model_type": "phi3", "sliding_window": 7})), from(7, 0));
    let qwen2 = |last: Value| {
        let mut changes = json!({
            "model_type": "qwen2", "use_sliding_window": true, "sliding_window": 7,
        });
        changes.as_object_mut().unwrap().extend(last.as_object().unwrap().clone());
        window(changes)
    };
    assert_eq!(qwen2(json!({"max_window_layers": 1})), from(7, 1));
    assert_eq!(qwen2(json!({"max_window_layers": 2})), None); // it has two layers
    assert_eq!(qwen2(json!({"max_window_layers": 0, "use_sliding_window": false})), None);
    let [full, sliding] = ["full_attention", "sliding_attention"];
    assert_eq!(qwen2(json!({"layer_types": [full, sliding]})), from(7, 1));
    let listed = SlidingWindow { tokens: 7, layers: WindowedLayers::Listed(vec![true, false]) };
    assert_eq!(qwen2(json!({"layer_types": [sliding, full]})), Some(listed));
}

#[test]
fn the_rotary_base_is_read_in_the_old_spelling_and_in_the_new() {
    let theta = |changes| config_with(changes).unwrap().rope_theta;
    assert_eq!(theta(json!({"rope_parameters": null, "rope_theta": 5e5})), 5e5);
    assert_eq!(theta(json!({"rope_parameters": {"rope_theta": 5e5}, "rope_theta": null})), 5e5);
    let null = json!({"rope_scaling": Value::Null, "rope_theta": 5e5, "rope_parameters": null});
    assert_eq!(theta(null), 5e5);
}

#[test]
fn an_option_that_the_decoder_lacks_is_refused_by_name() {
    let cases = [
        (
            json!({"model_type": "gpt2"}),
            r#"model_type "gpt2"; supported: llama, mistral, qwen2, qwen3, phi3, gpt_neox"#,
        ),
        (
            json!({"model_type": null}),
            "no model_type; supported: llama, mistral, qwen2, qwen3, phi3, gpt_neox",
        ),
        (json!({"hidden_act": "gelu"}), r#"hidden_act "gelu"; supported: "silu""#),
        (
            json!({"model_type": "gpt_neox", "hidden_act": "relu"}),
            r#"hidden_act "relu"; supported: "gelu" and its tanh approximation"#,
        ),
        (
            json!({"quantization_config": {"bits": 4}}),
            "quantization_config; supported: weights in f32, f16 or bf16",
        ),
        (
            json!({"architectures": ["LlamaForSequenceClassification"], "num_labels": 2}),
            "classifier of 2 labels; supported: one, the reward",
        ),
        (
            json!({
                "architectures": ["LlamaForSequenceClassification"],
                "id2label": {"0": "a", "1": "b", "2": "c"},
            }),
            "classifier of 3 labels; supported: one, the reward",
        ),
        (json!({"rope_scaling": {"factor": 2.0}}), "rope_scaling without rope_type"),
        (json!({"rope_scaling": {"type": "linear"}}), "rope_scaling without factor"),
        (json!({"rope_scaling": {"type": "longrope"}}), "rope_scaling without short_factor"),
        (
            json!({"rope_scaling": {"type": "longrope", "factor": 2.0}}),
            "rope_scaling factor with longrope; supported: the ratio of the two lengths",
        ),
        (
            json!({"rope_parameters": {"rope_type": "xpos"}}),
            r#"rope_type "xpos"; supported: "default", "linear", "dynamic", "yarn", "llama3", "longrope""#,
        ),
        (json!({"rope_scaling": {"type": "dynamic"}}), "rope_scaling without factor"),
        (
            json!({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": -1.0}}),
            "rope_scaling: beta_fast -1; expected above 0",
        ),
        (
            json!({"rope_scaling": {"type": "yarn", "factor": 2.0}, "rope_theta": 1.0}),
            "rope_theta: 1; expected above 1 with yarn",
        ),
        (
            json!({"model_type": "qwen3_moe"}),
            r#"model_type "qwen3_moe", a mixture of experts; supported: llama, mistral, qwen2, qwen3, phi3, gpt_neox"#,
        ),
        (
            json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
            "rope_parameters by layer type; supported: the same for all layers",
        ),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 0.0}}),
            "rope_scaling: factor 0; expected above 0",
        ),
        (
            json!({"rope_scaling": {
                "type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
            }}),
            "rope_scaling: low_freq_factor 4; expected below high_freq_factor 4",
        ),
        (
            json!({"rope_scaling": {
                "type": "longrope", "short_factor": [1.0], "long_factor": [1.0, 1.0],
            }}),
            "rope_scaling: short_factor of 1 numbers; expected 2",
        ),
        (
            json!({"partial_rotary_factor": 1.5, "rope_parameters": null}),
            "partial_rotary_factor: 1.5; expected above 0, at most 1",
        ),
        (
            json!({"partial_rotary_factor": 0.25, "rope_parameters": null}),
            "head_dim: 1; expected an even number for rotary positions",
        ),
        (
            json!({"model_type": "mistral", "sliding_window": 0}),
            "sliding_window: 0; expected at least 1",
        ),
        (
            json!({
                "model_type": "qwen2", "use_sliding_window": true, "sliding_window": 4,
                "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            }),
            "layer_types: 3; expected one for each layer",
        ),
        (
            json!({"model_type": "qwen2", "layer_types": ["chunked_attention"]}),
            r#"layer_types "chunked_attention"; supported: "full_attention" and "sliding_attention""#,
        ),
        (
            json!({"head_dim": null, "num_attention_heads": 3}),
            "num_attention_heads: 3; expected a divisor of hidden_size 16, or a head_dim",
        ),
        (
            json!({"model_type": "gpt_neox", "head_dim": 6}),
            "head_dim: 6; gpt_neox has hidden_size / heads",
        ),
        (json!({"vocab_size": 0}), "vocab_size: 0; expected a whole number from 1 to 16777216"),
        (json!({"hidden_size": 0}), "hidden_size: 0; expected a whole number from 1 to 16777216"),
        (
            json!({"intermediate_size": 0}),
            "intermediate_size: 0; expected a whole number from 1 to 16777216",
        ),
        (
            json!({"num_hidden_layers": 0}),
            "num_hidden_layers: 0; expected a whole number from 1 to 16777216",
        ),
        (
            json!({"num_attention_heads": 0}),
            "num_attention_heads: 0; expected a whole number from 1 to 16777216",
        ),
        (
            json!({"num_key_value_heads": 0}),
            "num_key_value_heads: 0; expected a whole number from 1 to 16777216",
        ),
        (json!({"head_dim": 0}), "head_dim: 0; expected a whole number from 1 to 16777216"),
        (
            json!({"num_key_value_heads": 3}),
            "num_key_value_heads: 3; expected a divisor of the 4 query heads",
        ),
        (json!({"head_dim": 3}), "head_dim: 3; expected an even number for rotary positions"),
        (
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}}),
            "rope_theta: 0; expected above 0",
        ),
        (json!({"rms_norm_eps": -1.0}), "rms_norm_eps: -1; expected 0 or above"),
    ];
    for (changes, expected) in cases {
        let error = config_with(changes).unwrap_err();
        let CheckpointError::Unsupported { path, what } = error else { panic!("{error}") };
        assert!(path.ends_with("config.json"));
        assert_eq!(what, expected);
    }
}

#[test]
fn a_missing_file_is_named() {
    let dir = saved();
    for file in [WEIGHTS, "config.json"] {
        std::fs::remove_file(dir.path().join(file)).unwrap();
        let error = load(dir.path()).unwrap_err();
        let CheckpointError::File(FileError { path, source, .. }) = error else {
            panic!("{error}")
        };
        assert_eq!(path, dir.path().join(file));
        assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
    }
}

#[test]
fn a_configuration_that_is_not_json_or_lacks_a_key_is_refused_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    for (text, line) in
        [("{", 1), ("{\n\"model_type\": \"llama\",\n\"vocab_size\": -1}", 3), ("{}", 1)]
    {
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        let error = load(dir.path()).unwrap_err();
        let CheckpointError::Json { path, source } = error else { panic!("{error}") };
        assert_eq!((path, source.line()), (dir.path().join("config.json"), line));
    }
}

#[test]
fn a_file_of_parameters_cut_short_is_refused() {
    let dir = saved();
    let path = dir.path().join(WEIGHTS);
    let whole = std::fs::read(&path).unwrap();
    for bytes in [&whole[..0], &whole[..whole.len() - 1]] {
        std::fs::write(&path, bytes).unwrap();
        let error = load(dir.path()).unwrap_err();
        let CheckpointError::Format { path: named, .. } = error else { panic!("{error}") };
        assert_eq!(named, path);
        let model = CausalLm::fresh(&grouped(), 0, &Device::flex());
        let error = restore(model, &path).unwrap_err();
        assert!(matches!(error, CheckpointError::Format { path: named, .. } if named == path));
    }
}

/// Everything wrong with the tensors.
fn problems<T>(result: Result<T, CheckpointError>) -> Vec<String> {
    match result {
        Err(CheckpointError::Tensors { problems, .. }) => problems,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("nothing is wrong"),
    }
}

#[test]
fn a_checkpoint_of_another_shape_lists_every_tensor_that_does_not_fit() {
    let dir = saved();
    let other = ModelConfig { layers: 3, vocab_size: 24, ..grouped() };
    std::fs::write(dir.path().join("config.json"), other.to_json(Head::CausalLm, DType::F32))
        .unwrap();
    let read = problems(load(dir.path()));
    assert_eq!(read.len(), 10); // the embedding's shape, and the 9 tensors of the third layer
    assert_eq!(read[0], "model.embed_tokens.weight: shape [23, 16], expected [24, 16]");
    assert_eq!(read[1], "model.layers.2.self_attn.q_proj.weight: missing, expected shape [16, 16]");
    let model = CausalLm::fresh(&other, 0, &Device::flex());
    assert_eq!(problems(restore(model, &dir.path().join(WEIGHTS))).len(), 10);
}

#[test]
fn a_tensor_too_many_is_listed_but_for_a_head_that_the_model_does_not_have() {
    let dir = saved();
    let fewer = ModelConfig { layers: 1, ..grouped() };
    std::fs::write(dir.path().join("config.json"), fewer.to_json(Head::CausalLm, DType::F32))
        .unwrap();
    let extra = problems(load(dir.path()));
    assert_eq!(extra.len(), 9);
    assert_eq!(extra[0], "model.layers.1.input_layernorm.weight: extra");

    // A tied head may stand in the file, and a scalar model is made of a language model's decoder.
    let untied = ModelConfig { tie_word_embeddings: false, ..grouped() };
    let device = Device::flex();
    CausalLm::fresh(&untied, 5, &device).save(&untied, dir.path()).unwrap();
    ScalarModel::from_language_model(dir.path(), FreshHead::official("critic", 0), &device)
        .unwrap();
    assert_eq!(
        problems(ScalarModel::load(dir.path(), &device)),
        ["score.weight: missing, expected shape [1, 16]", "lm_head.weight: extra"]
    );
    std::fs::write(dir.path().join("config.json"), grouped().to_json(Head::CausalLm, DType::F32))
        .unwrap();
    load(dir.path()).unwrap();
}

#[test]
fn a_tensor_of_whole_numbers_is_refused() {
    let dir = saved();
    let model = load(dir.path()).unwrap().0;
    let parameters = parameters(&model);
    let views = parameters.iter().map(|(name, data)| {
        let dtype = if name == "model.norm.weight" { Dtype::I32 } else { Dtype::F32 };
        (name, TensorView::new(dtype, data.shape().to_vec(), data.as_bytes()).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(dir.path().join(WEIGHTS), bytes).unwrap();
    assert_eq!(
        problems(load(dir.path())),
        ["model.norm.weight: unsupported type I32, expected F32, F16 or BF16"]
    );
}

#[test]
fn a_folder_that_is_not_there_is_not_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let model = CausalLm::fresh(&grouped(), 5, &Device::flex());
    let error = model.save(&grouped(), &missing).unwrap_err();
    let CheckpointError::File(FileError { path, source, .. }) = error else { panic!("{error}") };
    assert_eq!(path, missing.join("config.json"));
    assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
}
