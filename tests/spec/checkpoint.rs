//! Models on disk: what is read back, and what is refused.

use std::path::Path;

use burn::tensor::{DType, Device, TensorData};
use safetensors::tensor::{Dtype, TensorView};
use segment_rlhf::model::checkpoint::{fingerprint, parameters, restore, to_safetensors};
use segment_rlhf::model::weights::WEIGHTS;
use segment_rlhf::model::{CausalLm, CheckpointError, ModelConfig, ScalarModel};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::devices;
use crate::tiny_model::grouped;

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
    let mut config: Value = serde_json::from_str(&grouped().to_json("LlamaForCausalLM")).unwrap();
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
    let (config, dir) = (grouped(), tempfile::tempdir().unwrap());
    for (device, _) in devices() {
        let model = CausalLm::fresh(&config, 5, &device);
        model.save(&config, dir.path()).unwrap();
        let (again, read) = CausalLm::load(dir.path(), &device).unwrap();
        assert_eq!(read, config);
        assert_eq!(fingerprint(&again), fingerprint(&model));
        let other = CausalLm::fresh(&config, 6, &device);
        assert_ne!(fingerprint(&other), fingerprint(&model));
        let restored = restore(other, Path::new("policy"), &to_safetensors(&model)).unwrap();
        assert_eq!(fingerprint(&restored), fingerprint(&model));
    }
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
        rms_norm_eps: 1e-6,
        rope_theta: 1e4,
        tie_word_embeddings: false,
        max_position_embeddings: 2048,
        ..grouped()
    };
    assert_eq!(config.unwrap(), expected);
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
        (json!({"model_type": "gpt2"}), r#"model_type Some("gpt2"); supported: "llama""#),
        (json!({"model_type": null}), r#"model_type None; supported: "llama""#),
        (json!({"attention_bias": true}), "attention_bias or mlp_bias; supported: no bias"),
        (json!({"mlp_bias": true}), "attention_bias or mlp_bias; supported: no bias"),
        (json!({"hidden_act": "gelu"}), r#"hidden_act Some("gelu"); supported: "silu""#),
        (
            json!({"rope_scaling": {"factor": 2.0}}),
            "rope_scaling; supported: plain rotary positions",
        ),
        (
            json!({"rope_parameters": {"rope_type": "yarn"}}),
            r#"rope_type "yarn"; supported: "default""#,
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
        let CheckpointError::Read { path, source } = error else { panic!("{error}") };
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
        let error = restore(model, &path, bytes).unwrap_err();
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
    std::fs::write(dir.path().join("config.json"), other.to_json("LlamaForCausalLM")).unwrap();
    let read = problems(load(dir.path()));
    assert_eq!(read.len(), 10); // the embedding's shape, and the 9 tensors of the third layer
    assert_eq!(read[0], "model.embed_tokens.weight: shape [23, 16], expected [24, 16]");
    assert_eq!(read[1], "model.layers.2.self_attn.q_proj.weight: missing, expected shape [16, 16]");
    let bytes = std::fs::read(dir.path().join(WEIGHTS)).unwrap();
    let model = CausalLm::fresh(&other, 0, &Device::flex());
    assert_eq!(problems(restore(model, Path::new("policy"), &bytes)).len(), 10);
}

#[test]
fn a_tensor_too_many_is_listed_but_for_a_head_that_the_model_does_not_have() {
    let dir = saved();
    let fewer = ModelConfig { layers: 1, ..grouped() };
    std::fs::write(dir.path().join("config.json"), fewer.to_json("LlamaForCausalLM")).unwrap();
    let extra = problems(load(dir.path()));
    assert_eq!(extra.len(), 9);
    assert_eq!(extra[0], "model.layers.1.input_layernorm.weight: extra");

    // A tied head may stand in the file, and a scalar model is made of a language model's decoder.
    let untied = ModelConfig { tie_word_embeddings: false, ..grouped() };
    let device = Device::flex();
    CausalLm::fresh(&untied, 5, &device).save(&untied, dir.path()).unwrap();
    ScalarModel::from_language_model(dir.path(), "critic", 0, &device).unwrap();
    assert_eq!(
        problems(ScalarModel::load(dir.path(), &device)),
        ["score.weight: missing, expected shape [1, 16]", "lm_head.weight: extra"]
    );
    std::fs::write(dir.path().join("config.json"), grouped().to_json("LlamaForCausalLM")).unwrap();
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
    let CheckpointError::Write { path, source } = error else { panic!("{error}") };
    assert_eq!(path, missing.join("config.json"));
    assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
}
