//! Models small enough to differentiate by hand, with parameters as a test wants them.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Gradients, Tensor, TensorData};
use rand::Rng;
use segment_rlhf::model::config::{
    Activation, AttentionBias, Family, Residual, RopeScaling, SlidingWindow, WindowedLayers,
};
use segment_rlhf::model::{CausalLm, FreshHead, ModelConfig, ScalarModel};
use segment_rlhf::rng::stream;

use crate::support::{assert_close, host};
use crate::tolerance;

/// Two layers, grouped heads, and an embedding that is the output head too.
pub fn grouped() -> ModelConfig {
    ModelConfig {
        vocab_size: 23,
        hidden_size: 16,
        intermediate_size: 24,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 4,
        tie_word_embeddings: true,
        max_position_embeddings: 64,
        ..ModelConfig::default()
    }
}

/// [`grouped`] in every family, with all that a family may do differently.
pub fn families() -> Vec<ModelConfig> {
    let window = |tokens, layers| Some(SlidingWindow { tokens, layers });
    let gpt_neox = ModelConfig {
        family: Family::GptNeox,
        kv_heads: 4,
        attention_bias: AttentionBias::All,
        mlp_bias: true,
        activation: Activation::Gelu,
        residual: Residual::Parallel,
        rotary_fraction: 0.5,
        norm_eps: 1e-5,
        tie_word_embeddings: false,
        ..grouped()
    };
    vec![
        grouped(),
        ModelConfig {
            attention_bias: AttentionBias::All,
            mlp_bias: true,
            rope_scaling: RopeScaling::Linear { factor: 3.0 },
            ..grouped()
        },
        ModelConfig {
            rope_scaling: RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original: 16,
            },
            ..grouped()
        },
        ModelConfig {
            family: Family::Mistral,
            sliding_window: window(3, WindowedLayers::From(0)),
            ..grouped()
        },
        ModelConfig {
            family: Family::Qwen2,
            attention_bias: AttentionBias::Inputs,
            sliding_window: window(4, WindowedLayers::From(1)),
            ..grouped()
        },
        ModelConfig {
            family: Family::Qwen3,
            head_dim: 6,
            sliding_window: window(5, WindowedLayers::Listed(vec![true, false])),
            ..grouped()
        },
        ModelConfig {
            family: Family::Phi3,
            tie_word_embeddings: false,
            rotary_fraction: 0.5,
            rope_scaling: RopeScaling::LongRope {
                short_factor: vec![1.5],
                long_factor: vec![4.0],
                attention_factor: None,
                original: 32,
            },
            ..grouped()
        },
        gpt_neox.clone(),
        ModelConfig {
            residual: Residual::Sequential,
            activation: Activation::GeluTanh,
            ..gpt_neox
        },
    ]
}

/// `model` with norms and biases drawn too, which start as ones and zeros.
pub fn drawn<M: Module>(model: M) -> M {
    let mut rng = stream(3, "test norms and biases", 0);
    edited(model, DType::F32, |name, values| {
        if name.contains("norm") || name.ends_with("bias") {
            values.iter_mut().for_each(|value| *value += rng.random_range(-0.5..0.5));
        }
    })
}

/// Token ids of [`grouped`], never 0.
pub fn tokens(seed: u64, len: usize) -> Vec<u32> {
    let mut rng = stream(seed, "test tokens", 0);
    (0..len).map(|_| rng.random_range(1..23)).collect()
}

/// A fresh scalar model.
pub fn scalar_model(config: &ModelConfig, seed: u64, device: &Device) -> ScalarModel {
    let dir = tempfile::tempdir().unwrap();
    CausalLm::fresh(config, seed, device).save(config, dir.path()).unwrap();
    ScalarModel::from_language_model(dir.path(), FreshHead::official("test", seed), device)
        .unwrap()
        .0
}

/// `model` in `dtype`, each parameter's values, row by row, as `edit` leaves them.
pub fn edited<M: Module>(model: M, dtype: DType, edit: impl FnMut(&str, &mut Vec<f64>)) -> M {
    struct Edit<F> {
        path: Vec<String>,
        dtype: DType,
        edit: F,
    }
    impl<F: FnMut(&str, &mut Vec<f64>)> ModuleMapper for Edit<F> {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (id, old, mapper) = param.consume();
            let (shape, device) = (old.dims(), old.device());
            let trained = old.is_require_grad();
            let mut values = host(old);
            (self.edit)(&self.path.join("."), &mut values);
            let new = Tensor::from_data(TensorData::new(values, shape), (&device, self.dtype));
            Param::from_mapped_value(id, new.set_require_grad(trained), mapper)
        }
    }
    model.map(&mut Edit { path: Vec::new(), dtype, edit })
}

/// `model` with the parameters named in `values`; the others are 0.
pub fn with_parameters<M: Module>(model: M, values: &[(&str, &[f64])]) -> M {
    edited(model, DType::F32, |name, old| {
        let given = values.iter().find(|(given, _)| *given == name);
        match given {
            Some((_, new)) => {
                assert_eq!(new.len(), old.len(), "{name}");
                old.copy_from_slice(new);
            }
            None => old.fill(0.0),
        }
    })
}

/// The gradient of `loss` by each parameter of `model` that is trained, by name.
pub fn gradients<M: Module>(model: &M, loss: Tensor<1>) -> BTreeMap<String, Vec<f64>> {
    struct Collect {
        path: Vec<String>,
        gradients: Gradients,
        found: BTreeMap<String, Vec<f64>>,
    }
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if !param.is_require_grad() {
                return;
            }
            let name = self.path.join(".");
            let gradient = param.val().grad(&self.gradients);
            let gradient = gradient.unwrap_or_else(|| panic!("{name} has no gradient"));
            self.found.insert(name, host(gradient));
        }
    }
    let mut collect =
        Collect { path: Vec::new(), gradients: loss.backward(), found: BTreeMap::new() };
    model.visit(&mut collect);
    collect.found
}

/// `backward()` by every parameter of `model`, which is in f64, agrees with central differences.
#[track_caller]
pub fn assert_model_gradient<M: Module>(model: &M, loss: impl Fn(&M) -> Tensor<1>) {
    let step = tolerance::STEP;
    for (name, gradient) in gradients(model, loss(model)) {
        let at = |i: usize, step: f64| {
            let moved = edited(model.valid(), DType::F64, |moved, values| {
                if moved == name {
                    values[i] += step;
                }
            });
            host(loss(&moved))[0]
        };
        let differences: Vec<f64> =
            (0..gradient.len()).map(|i| (at(i, step) - at(i, -step)) / (2.0 * step)).collect();
        assert!(differences.iter().any(|d| *d != 0.0), "the loss depends on {name}");
        println!("{name}");
        assert_close(&gradient, &differences, tolerance::FINITE_DIFFERENCE);
    }
}
