//! The DPO family: weights of tokens, and the loss through a model.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{DType, Device};
use segment_rlhf::model::CausalLm;
use segment_rlhf::model::generate::{Rows, response_log_probs};
use segment_rlhf::stop::Stop;
use segment_rlhf::systems::pairs::WeightedPair;
use segment_rlhf::systems::{PairBatch, PairView, Rewarded, Weights};
use serde::Deserialize;

use crate::support::{assert_close, cpu, devices, host, panic_of};
use crate::tiny_model::{assert_model_gradient, edited, gradients, grouped};
use crate::tolerance;

#[derive(Deserialize)]
struct Goldens {
    source: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    policy: String,
    reference: String,
    beta: f64,
    pairs: Vec<Pair>,
    loss: f64,
    chosen_reward: f64,
    rejected_reward: f64,
    gradient_norms: BTreeMap<String, f64>,
    norm_gradient: Vec<f64>,
}

#[derive(Clone, Deserialize)]
struct Pair {
    prompt: Vec<u32>,
    chosen: Vec<u32>,
    rejected: Vec<u32>,
}

impl Pair {
    fn rows(&self) -> [(&[u32], &[u32]); 2] {
        [(&self.prompt, &self.chosen), (&self.prompt, &self.rejected)]
    }
}

fn cases() -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/hf/dpo.json");
    let text = std::fs::read_to_string(path).unwrap();
    let goldens: Goldens = serde_json::from_str(&text).unwrap();
    assert!(goldens.source.starts_with("trl 1.16.0"));
    goldens.cases
}

fn load(name: &str, device: &Device) -> CausalLm {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/hf").join(name);
    CausalLm::load(&dir, device).unwrap().0
}

/// ln π_ref of the responses of pairs, and their weights.
struct Inputs {
    reference: Vec<[Vec<f32>; 2]>,
    weights: Vec<[Vec<f32>; 2]>,
}

impl Inputs {
    fn new(pairs: &[Pair], reference: &CausalLm, weight: f32) -> Self {
        let log_probs = |row: (&[u32], &[u32])| {
            let view = Rows::new(&[row], 1).view(reference, &Stop::default()).unwrap();
            view[0].log_probs.clone()
        };
        let reference = pairs.iter().map(|pair| pair.rows().map(log_probs)).collect();
        let weigh = |pair: &Pair| pair.rows().map(|(_, response)| vec![weight; response.len()]);
        Self { reference, weights: pairs.iter().map(weigh).collect() }
    }

    fn views<'a>(&'a self, pairs: &'a [Pair]) -> Vec<WeightedPair<'a>> {
        let each = pairs.iter().zip(&self.reference).zip(&self.weights);
        each.map(|((pair, reference), weights)| WeightedPair {
            rows: pair.rows(),
            ref_log_probs: reference.each_ref().map(Vec::as_slice),
            weights,
        })
        .collect()
    }
}

// 1. Worked example

#[test]
fn a_method_is_what_its_tokens_count() {
    let labels = [vec![1, 1, 0], vec![1, -1]];
    let rewards = [vec![0.5, 2.0, -1.0], vec![-0.5, 0.25]];
    let pair = PairView { tokens: [3, 2], labels: Some(&labels), rewards: Some(&rewards) };
    assert_eq!(Weights::All.of(&pair), [vec![1.0; 3], vec![1.0; 2]]);
    assert_eq!(Weights::Labels.of(&pair), [vec![1.0, 1.0, 0.0], vec![1.0, -1.0]]);
    let tokens = Weights::Signs { threshold: 0.0, jump: None };
    assert_eq!(tokens.of(&pair), [vec![1.0, 1.0, 0.0], vec![1.0, 0.0]]);
    // A jump of 2 cuts the chosen response alone, before its last token.
    let segments = Weights::Signs { threshold: 0.0, jump: Some(2.0) };
    assert_eq!(segments.of(&pair), [vec![1.0, 1.0, 0.0], vec![1.0, 1.0]]);
}

#[test]
fn a_token_in_no_segment_has_the_reward_of_the_one_before() {
    let rewarded = Rewarded {
        segments: vec![0..1, 1..3],
        rewards: vec![7.0, 8.0],
        normalized: vec![0.5, -1.5],
        sequence_score: 0.0,
    };
    assert_eq!(rewarded.of_tokens(4), [0.5, -1.5, -1.5, -1.5]);
}

// 2. Goldens: TRL's trainer over checkpoints of transformers

#[test]
fn the_loss_and_its_gradients_are_those_of_trl_on_models_of_transformers() {
    for case in cases() {
        for (device, tolerance) in devices() {
            let (policy, reference) =
                (load(&case.policy, &device.clone().autodiff()), load(&case.reference, &device));
            let inputs = Inputs::new(&case.pairs, &reference, 1.0);
            let views = inputs.views(&case.pairs);
            let batch = PairBatch::new(&views);
            let log_probs = response_log_probs(&policy, &batch.grid, batch.first).0;
            let dpo = batch.loss(log_probs, case.beta, 0.0);
            let mean = |rewards: Vec<f64>| rewards.iter().sum::<f64>() / rewards.len() as f64;
            let tolerance = tolerance.max(tolerance::TRANSFORMERS);
            assert_close(&host(dpo.loss.clone().inner()), &[case.loss], tolerance);
            let rewards =
                [dpo.chosen_rewards, dpo.rejected_rewards].map(|of| mean(host(of.inner())));
            assert_close(&rewards, &[case.chosen_reward, case.rejected_reward], tolerance);
            let found = gradients(&policy, dpo.loss);
            assert_close(&found["model.norm.weight"], &case.norm_gradient, tolerance);
            let norm = |name: &str| found[name].iter().map(|x| x * x).sum::<f64>().sqrt();
            for (name, expected) in &case.gradient_norms {
                assert_close(&[norm(name) / expected], &[1.0], tolerance);
            }
            assert_eq!(found.len(), case.gradient_norms.len());
        }
    }
}

// 3. Identities and limits

#[test]
fn labels_of_zero_leave_every_parameter_as_it_is() {
    let case = &cases()[0];
    let policy = load(&case.policy, &cpu().autodiff());
    let inputs = Inputs::new(&case.pairs, &load(&case.reference, &cpu()), 0.0);
    let views = inputs.views(&case.pairs);
    let batch = PairBatch::new(&views);
    let log_probs = response_log_probs(&policy, &batch.grid, batch.first).0;
    let dpo = batch.loss(log_probs, case.beta, 0.0);
    assert_close(&host(dpo.loss.clone().inner()), &[2f64.ln()], tolerance::CPU_F32);
    for (name, gradient) in gradients(&policy, dpo.loss) {
        assert!(gradient.iter().all(|&g| g == 0.0), "{name}");
    }
}

#[test]
fn the_reference_itself_has_rewards_of_zero() {
    let case = &cases()[1];
    let policy = load(&case.policy, &cpu());
    let inputs = Inputs::new(&case.pairs, &policy, 1.0);
    let views = inputs.views(&case.pairs);
    let batch = PairBatch::new(&views);
    let log_probs = response_log_probs(&policy, &batch.grid, batch.first).0;
    let dpo = batch.loss(log_probs, 0.5, 0.1);
    assert_close(&host(dpo.chosen_rewards), &[0.0], tolerance::CPU_F32);
    assert_close(&host(dpo.loss), &[2f64.ln()], tolerance::CPU_F32);
}

// 4. Gradient

#[test]
fn every_parameter_has_the_gradient_of_central_differences() {
    let pairs = [Pair { prompt: vec![1], chosen: vec![2, 3, 1, 4], rejected: vec![3, 1] }];
    let config = segment_rlhf::model::ModelConfig {
        vocab_size: 5,
        hidden_size: 4,
        intermediate_size: 3,
        heads: 2,
        kv_heads: 1,
        ..grouped()
    };
    let policy = edited(CausalLm::fresh(&config, 0, &cpu().autodiff()), DType::F64, |_, _| ());
    let inputs = Inputs {
        reference: vec![[vec![-1.5, -1.0, -2.0, -0.5], vec![-1.0, -1.25]]],
        weights: vec![[vec![1.0, -1.0, 0.0, 1.0], vec![-1.0, 1.0]]],
    };
    assert_model_gradient(&policy, |policy| {
        let views = inputs.views(&pairs);
        let batch = PairBatch::new(&views);
        let log_probs = response_log_probs(policy, &batch.grid, batch.first).0;
        batch.loss(log_probs, 0.5, 0.2).loss
    });
}

// 5. Padding and batch size

#[test]
fn the_loss_of_a_batch_is_the_mean_of_its_pairs() {
    for case in cases().iter().filter(|case| case.pairs.len() > 1) {
        for (device, tolerance) in devices() {
            let (policy, reference) = (load(&case.policy, &device), load(&case.reference, &device));
            let loss = |pairs: &[Pair]| {
                let inputs = Inputs::new(pairs, &reference, 1.0);
                let views = inputs.views(pairs);
                let batch = PairBatch::new(&views);
                let log_probs = response_log_probs(&policy, &batch.grid, batch.first).0;
                host(batch.loss(log_probs, case.beta, 0.1).loss)[0]
            };
            let alone: f64 = case.pairs.iter().map(|pair| loss(std::slice::from_ref(pair))).sum();
            assert_close(&[loss(&case.pairs)], &[alone / case.pairs.len() as f64], tolerance);
        }
    }
}

// 6. Bad input

#[test]
fn weights_without_what_they_read_are_refused() {
    let pair = || PairView { tokens: [1, 1], labels: None, rewards: None };
    assert!(panic_of(|| Weights::Labels.of(&pair())).contains("a pair with labels"));
    let signs = Weights::Signs { threshold: 0.0, jump: None };
    assert!(panic_of(|| signs.of(&pair())).contains("a pair with rewards"));
}
