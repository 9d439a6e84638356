//! bf16 activations over f32 weights, and layers computed again in the backward pass.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::{ModuleVisitor, Param};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{DType, Device, Tensor};
use segment_rlhf::device::{Checkpointing, Precision};
use segment_rlhf::model::checkpoint::parameters;
use segment_rlhf::model::generate::{
    Generation, ReadAt, Rows, generate, response_log_probs, to_vec,
};
use segment_rlhf::model::lora::LoraSettings;
use segment_rlhf::model::optim::{OptimizerSettings, Trainer};
use segment_rlhf::model::recompute::Trainable;
use segment_rlhf::model::sampling::Sampling;
use segment_rlhf::model::{
    CausalLm, FreshHead, Grid, KvCache, ModelConfig, Placement, ScalarModel,
};
use segment_rlhf::rng::stream;
use segment_rlhf::settings::Settings;
use segment_rlhf::stop::Stop;

use crate::lora::spoken;
use crate::support::{assert_close, cpu, devices, devices_with, host};
use crate::tiny_model::{grouped, scalar_model, tokens};
use crate::tolerance;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/hf").join(name)
}

/// A language model of each family in tests/data/hf.
const FAMILIES: [&str; 6] = ["llama", "mistral", "qwen2", "qwen3", "phi3", "gpt_neox"];

/// Four rows, each alone on its grid.
fn rows() -> Vec<Grid> {
    let row = |i| tokens(i, 9 + 4 * i as usize);
    (0..4).map(|i| Grid::new([(0, row(i))], row(i).len())).collect()
}

fn bf16(device: &burn::tensor::Device) -> Placement {
    Placement { device: device.clone(), dtype: DType::BF16 }
}

#[test]
fn a_model_in_bf16_says_what_it_says_in_f32_to_the_precision_of_bf16() {
    for (device, _) in devices_with(DType::BF16) {
        let logits = |model: CausalLm| -> Vec<f64> {
            rows().iter().flat_map(|grid| host(model.logits(grid, 0..grid.width()))).collect()
        };
        let scores = |model: ScalarModel| -> Vec<f64> {
            rows().iter().flat_map(|grid| host(model.scores(grid, 0..grid.width()))).collect()
        };
        let fresh = |placement| logits(CausalLm::fresh(&grouped(), 3, placement));
        assert_within(&fresh(bf16(&device)), &fresh((&device).into()), tolerance::BF16);
        for name in FAMILIES {
            println!("{name}");
            let read = |placement| logits(CausalLm::load(&fixture(name), placement).unwrap().0);
            let (rounded, exact) = (read(bf16(&device)), read((&device).into()));
            assert_within(&rounded, &exact, tolerance::BF16_LARGE_WEIGHTS);
        }
        for name in ["llama_reward", "qwen2_reward", "gpt_neox_reward"] {
            println!("{name}");
            let read = |placement| scores(ScalarModel::load(&fixture(name), placement).unwrap().0);
            let (rounded, exact) = (read(bf16(&device)), read((&device).into()));
            assert_within(&rounded, &exact, tolerance::BF16_LARGE_WEIGHTS);
        }
    }
}

/// The distance between two lists is within this share of their length.
#[track_caller]
fn assert_within(actual: &[f64], expected: &[f64], tolerance: f64) {
    let length = |of: &mut dyn Iterator<Item = f64>| of.map(|x| x * x).sum::<f64>().sqrt();
    let distance = length(&mut actual.iter().zip(expected).map(|(a, e)| a - e));
    let relative = distance / length(&mut expected.iter().copied());
    println!("{relative}");
    assert!(relative < tolerance, "{relative}");
    assert!(relative > 0.0, "computed in another type");
}

#[test]
fn weights_cast_at_each_use_give_bit_for_bit_what_weights_stored_in_bf16_give() {
    for (device, _) in devices_with(DType::BF16) {
        let cast = CausalLm::load(&fixture("llama"), &device).unwrap().0;
        let cast = cast.computing(Precision::Bf16, Checkpointing::None);
        let (stored, _) = CausalLm::load(&fixture("llama"), bf16(&device)).unwrap();
        let row = tokens(1, 12);
        let grid = Grid::new([(0, row)], 12);
        let logits = |model: &CausalLm| host(model.logits(&grid, 0..12));
        assert_eq!(logits(&cast), logits(&stored));
        assert_eq!(logits(&cast.inference()), logits(&stored));
    }
}

#[test]
fn in_f32_nothing_is_cast() {
    for (device, _) in devices() {
        let (model, _) = CausalLm::load(&fixture("llama"), &device).unwrap();
        let grid = Grid::new([(0, tokens(1, 12))], 12);
        let computing = model.clone().computing(Precision::F32, Checkpointing::None);
        for same in [&computing, &computing.inference()] {
            assert_eq!(host(same.logits(&grid, 0..12)), host(model.logits(&grid, 0..12)));
        }
    }
}

#[test]
fn log_probabilities_entropies_and_scores_are_in_f32() {
    for (device, _) in devices_with(DType::BF16) {
        let config = grouped();
        let model = CausalLm::fresh(&config, 3, bf16(&device));
        let row = tokens(1, 8);
        let (grid, first) = Grid::aligned([row.split_at(3)]);
        let (log_probs, entropies) = response_log_probs(&model, &grid, first);
        assert_eq!((log_probs.dtype(), entropies.dtype()), (DType::F32, DType::F32));
        let logits = model.logits(&grid, first - 1..grid.width() - 1);
        assert_eq!(logits.dtype(), DType::BF16);
        // Numbers that bf16 could not hold: their sum over the vocabulary is 1 to f32's precision.
        let all =
            burn::tensor::activation::log_softmax(logits.cast(DType::F32), 2).exp().sum_dim(2);
        assert_close(&host(all), &[1.0; 5], tolerance::CPU_F32);
        let scores = scalar_model(&config, 3, &device)
            .computing(Precision::Bf16, Checkpointing::None)
            .scores(&grid, 0..8);
        assert_eq!(scores.dtype(), DType::F32);
    }
}

#[test]
fn generation_in_bf16_keeps_its_cache_in_bf16_and_reads_what_the_full_forward_reads() {
    let config = grouped();
    for (device, _) in devices_with(DType::BF16) {
        let model = CausalLm::fresh(&config, 4, bf16(&device));
        let row = tokens(5, 12);
        let full = host(model.logits(&Grid::new([(0, row.clone())], 12), 4..12));
        let mut cache = KvCache::new(&config, 1, 12, (&device, model.dtype()));
        let mut steps = Vec::new();
        for column in 4..12 {
            let from = if column == 4 { 0 } else { column };
            let grid = Grid::new([(0, row[..=column].to_vec())], column + 1);
            steps.extend(host(model.next_logits(&grid, from..column + 1, &mut cache)));
        }
        assert_close(&steps, &full, tolerance::BF16);
        let limit = Generation {
            sampling: Sampling::GREEDY,
            max_new_tokens: 8,
            rows_at_once: 1,
            stops: &[],
        };
        assert_eq!(
            generate(&model, &config, &[&row], limit, vec![stream(0, "t", 0)], &Stop::default())
                .unwrap()[0]
                .len(),
            8
        );
    }
}

/// A trainer of a policy, and minus the mean log-probability of a response under it.
fn trainer(model: CausalLm, learning_rate: f64) -> Trainer<CausalLm> {
    let optimizer = OptimizerSettings {
        learning_rate,
        warmup_fraction: 0.0,
        weight_decay: 0.0,
        ..Settings::defaults().sft.optimizer
    };
    Trainer::new("policy", model, &optimizer, 10)
}

fn loss(model: &CausalLm) -> Tensor<1> {
    let row = tokens(1, 14);
    let (grid, first) = Grid::aligned([row.split_at(4), row.split_at(7)]);
    response_log_probs(model, &grid, first).0.mean().neg()
}

#[test]
fn a_step_in_bf16_moves_f32_weights_by_less_than_bf16_can_hold() {
    for (device, _) in devices_with(DType::BF16) {
        let model = CausalLm::load(&fixture("llama"), &device.autodiff()).unwrap().0;
        let before = parameters(&model);
        let model = model.computing(Precision::Bf16, Checkpointing::None);
        let mut trainer = trainer(model, 5e-7);
        trainer.accumulate(vec![()], |model, ()| (loss(model), []));
        trainer.update().unwrap();
        let (mut moved, mut visible, mut all) = (0, 0, 0);
        for (name, after) in parameters(trainer.model()) {
            let rounded = |x: f32| burn::tensor::bf16::from_f32(x);
            for (old, new) in before[&name].iter::<f32>().zip(after.iter::<f32>()) {
                all += 1;
                moved += usize::from(old != new);
                visible += usize::from(rounded(old) != rounded(new));
                assert!((old - new).abs() < 1e-6, "{name}: {old} to {new}");
            }
        }
        // Embeddings of tokens that the batch lacks stay; a weight near 0, or between two numbers of bf16,
        // may show its move.
        assert!(2 * moved > all && 100 * visible < moved, "{moved} of {all}, {visible} in bf16");
    }
}

#[test]
fn gradients_in_bf16_point_where_those_of_f32_point() {
    for (device, _) in devices_with(DType::BF16) {
        let model = CausalLm::load(&fixture("llama"), &device.autodiff()).unwrap().0;
        let exact = all_gradients(&model, loss(&model));
        let rounded = model.computing(Precision::Bf16, Checkpointing::None);
        for (name, gradient) in all_gradients(&rounded, loss(&rounded)) {
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let (g, e) = (&gradient, &exact[&name]);
            let cosine = dot(g, e) / (dot(g, g) * dot(e, e)).sqrt();
            assert!(1.0 - cosine < tolerance::BF16, "{name}: cosine {cosine}");
        }
    }
}

/// The gradient of `loss` by each parameter that is trained, by name, with the layers computed again where
/// the model does so.
fn all_gradients<M: Trainable>(model: &M, loss: Tensor<1>) -> BTreeMap<String, Vec<f64>> {
    struct Collect {
        path: Vec<String>,
        gradients: GradientsParams,
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
            let gradient = self.gradients.get::<D>(param.id);
            assert_eq!(gradient.is_some(), param.is_require_grad(), "{:?}", self.path);
            self.found.extend(gradient.map(|gradient| (self.path.join("."), host(gradient))));
        }
    }
    let found = loss.backward();
    let mut sum = GradientsAccumulator::new();
    model.replay(&found, &mut |gradients| sum.accumulate(model, gradients));
    sum.accumulate(model, GradientsParams::from_grads(found, model));
    let mut collect = Collect { path: Vec::new(), gradients: sum.grads(), found: BTreeMap::new() };
    model.visit(&mut collect);
    collect.found
}

#[test]
fn what_the_backward_pass_computes_again_changes_no_gradient() {
    let lora = LoraSettings { rank: 2, alpha: 4.0, targets: vec!["all-linear".into()] };
    for (device, tolerance) in devices() {
        for tie_word_embeddings in [false, true] {
            let config = ModelConfig { tie_word_embeddings, ..grouped() };
            for adapted in [false, true] {
                let gradients = |checkpointing: Checkpointing| {
                    let autodiff = checkpointing.autodiff(&device);
                    let model = if adapted {
                        lora.attach(CausalLm::fresh(&config, 3, &device), &autodiff, "policy", 0)
                    } else {
                        CausalLm::fresh(&config, 3, &autodiff)
                    };
                    let model = model.computing(Precision::F32, checkpointing);
                    all_gradients(&model, loss(&model))
                };
                let kept = gradients(Checkpointing::None);
                assert_eq!(
                    kept.len(),
                    if adapted { 28 } else { 20 + usize::from(!tie_word_embeddings) }
                );
                for checkpointing in [Checkpointing::Operations, Checkpointing::Layers] {
                    let again = gradients(checkpointing);
                    assert!(again.keys().eq(kept.keys()), "{checkpointing:?}");
                    for (name, gradient) in again {
                        println!("{checkpointing:?} {name}");
                        assert_close(&gradient, &kept[&name], tolerance);
                    }
                }
            }
        }
    }
}

#[test]
fn two_forward_passes_before_one_backward_pass_are_both_computed_again() {
    let gradients = |checkpointing: Checkpointing| {
        let model = CausalLm::fresh(&grouped(), 3, &cpu().autodiff());
        let model = model.computing(Precision::F32, checkpointing);
        let forgotten = model.logits(&Grid::new([(0, tokens(7, 5))], 5), 0..5);
        let both = loss(&model) + loss(&model).mul_scalar(2.0);
        drop(forgotten);
        all_gradients(&model, both)
    };
    let (kept, again) = (gradients(Checkpointing::None), gradients(Checkpointing::Layers));
    for (name, gradient) in again {
        assert_close(&gradient, &kept[&name], tolerance::CPU_F32);
    }
}

#[test]
fn models_in_training_and_their_inference_copies_say_bit_for_bit_the_same_in_bf16() {
    let rows: Vec<Vec<u32>> = (0..3).map(|i| tokens(i, 10 + 3 * i as usize)).collect();
    let rows: Vec<(&[u32], &[u32])> = rows.iter().map(|row| row.split_at(4)).collect();
    let (grid, first) = Grid::aligned(rows.iter().copied());
    let columns = ReadAt::State.columns(&grid, first);
    let of_responses = |all: Tensor<2>| -> Vec<f32> {
        let rows = to_vec(all)
            .chunks(columns.len())
            .zip(&rows)
            .map(|(all, row)| all[..row.1.len()].to_vec())
            .collect::<Vec<_>>();
        rows.concat()
    };
    let each = [Checkpointing::None, Checkpointing::Operations, Checkpointing::Layers];
    for (device, _) in devices_with(DType::BF16) {
        for (name, checkpointing) in FAMILIES.into_iter().flat_map(|name| each.map(|c| (name, c))) {
            for adapted in [false, true] {
                println!("{name} {checkpointing:?}, with adapters: {adapted}");
                let (policy, critic) = in_training(name, adapted, &checkpointing.autodiff(&device));
                // PPO's old and new log-probabilities, and V_old and V, before the first step.
                let policy = policy.computing(Precision::Bf16, checkpointing);
                let views = Rows::new(&rows, rows.len())
                    .view(&policy.inference(), &Stop::default())
                    .unwrap();
                let old: Vec<f32> = views.into_iter().flat_map(|view| view.log_probs).collect();
                let (new, _) = response_log_probs(&policy, &grid, first);
                assert_eq!(of_responses(new), old);
                let critic = critic.computing(Precision::Bf16, checkpointing);
                let old = Rows::new(&rows, rows.len())
                    .scalars(&critic.inference(), ReadAt::State, &Stop::default())
                    .unwrap();
                let new = critic.scores(&grid, columns.clone());
                assert_eq!(of_responses(new), old.concat());
            }
        }
    }
}

/// A policy and a critic over the fixture `name`: all of them trained, or adapters that count.
fn in_training(name: &str, adapted: bool, device: &Device) -> (CausalLm, ScalarModel) {
    let (dir, head) = (fixture(name), FreshHead::official("critic", 3));
    if !adapted {
        let critic = ScalarModel::from_language_model(&dir, head, device).unwrap().0;
        return (CausalLm::load(&dir, device).unwrap().0, critic);
    }
    let lora = LoraSettings { rank: 2, alpha: 4.0, targets: vec!["all-linear".into()] };
    let base = CausalLm::load(&dir, bf16(&device.clone().inner())).unwrap().0;
    let critic = lora.attach(ScalarModel::over(&base, head), device, "critic", 0);
    (spoken(lora.attach(base, device, "policy", 0)), spoken(critic))
}
