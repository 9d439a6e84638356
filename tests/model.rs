//! The decoder against transformers, and against itself under padding and caching.

use std::path::{Path, PathBuf};

use approx::assert_abs_diff_eq;
use burn::module::Module;
use burn::tensor::Device;
use rand::Rng;
use segment_rlhf::model::generate::{
    Generation, generate, response_log_probs, to_vec, view_tokens,
};
use segment_rlhf::model::sampling::Sampling;
use segment_rlhf::model::{CausalLm, CheckpointError, Grid, KvCache, ModelConfig, ScalarModel};
use segment_rlhf::rng::{stream, streams};
use segment_rlhf::segmentation::entropy;
use serde::Deserialize;

/// Against transformers' f32 on a CPU.
const AGAINST_TRANSFORMERS: f32 = 1e-4;
/// Two ways of computing the same on one device.
const AGAINST_OURSELVES: f32 = 1e-5;

#[derive(Deserialize)]
struct Expected {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    ids: Vec<u32>,
    #[serde(default)]
    logits: Vec<Vec<f32>>,
    #[serde(default)]
    entropy_nats: Vec<f32>,
    #[serde(default)]
    next_token_log_prob: Vec<f32>,
    #[serde(default)]
    greedy_12: Vec<u32>,
    #[serde(default)]
    token_scores: Vec<f32>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/hf").join(name)
}

fn cases(name: &str) -> Vec<Case> {
    let text = std::fs::read_to_string(fixture(name).join("expected.json")).unwrap();
    let expected: Expected = serde_json::from_str(&text).unwrap();
    assert!(!expected.cases.is_empty());
    expected.cases
}

fn close(ours: &[f32], theirs: &[f32], tolerance: f32) {
    assert_eq!(ours.len(), theirs.len());
    for (a, b) in ours.iter().zip(theirs) {
        assert_abs_diff_eq!(a, b, epsilon = tolerance);
    }
}

fn grouped() -> ModelConfig {
    ModelConfig {
        vocab_size: 23,
        hidden_size: 16,
        intermediate_size: 24,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 4,
        rope_theta: 1e4,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
        max_position_embeddings: 64,
    }
}

fn tokens(seed: u64, len: usize) -> Vec<u32> {
    let mut rng = stream(seed, "test tokens", 0);
    (0..len).map(|_| rng.random_range(0..23)).collect()
}

#[test]
fn logits_entropies_log_probs_and_greedy_tokens_are_those_of_transformers() {
    let (model, config) = CausalLm::load(&fixture("llama"), &Device::flex()).unwrap();
    for case in cases("llama") {
        let n = case.ids.len();
        let grid = Grid::new([(0, case.ids.clone())], n);
        let logits = model.logits(&grid, 0..n);
        let flat: Vec<f32> = case.logits.concat();
        close(&to_vec(logits.clone()), &flat, AGAINST_TRANSFORMERS);
        close(&to_vec(entropy(logits)), &case.entropy_nats, AGAINST_TRANSFORMERS);
        let (log_probs, _) = response_log_probs(&model, &grid, 1);
        close(&to_vec(log_probs), &case.next_token_log_prob, AGAINST_TRANSFORMERS);
        let limit = Generation {
            sampling: Sampling::GREEDY,
            max_new_tokens: 12,
            rows_at_once: 8,
            eos: u32::MAX,
        };
        let greedy = generate(&model, &config, &[&case.ids], limit, vec![stream(0, "t", 0)]);
        assert_eq!(greedy[0], case.greedy_12);
    }
}

#[test]
fn scores_of_a_sequence_classification_checkpoint_are_those_of_transformers() {
    let (model, _) = ScalarModel::load(&fixture("llama_reward"), &Device::flex()).unwrap();
    for case in cases("llama_reward") {
        let n = case.ids.len();
        let scores = model.scores(&Grid::new([(0, case.ids.clone())], n), 0..n);
        close(&to_vec(scores), &case.token_scores, AGAINST_TRANSFORMERS);
    }
}

#[test]
fn left_padded_right_padded_and_unpadded_rows_agree() {
    let model = CausalLm::fresh(&grouped(), 3, &Device::flex());
    let row = tokens(1, 7);
    let alone = to_vec(model.logits(&Grid::new([(0, row.clone())], 7), 0..7));
    for start in [0, 2, 5] {
        let grid = Grid::new([(start, row.clone()), (0, tokens(2, 12))], 12);
        let all = to_vec(model.logits(&grid, start..start + 7));
        close(&all[..alone.len()], &alone, AGAINST_OURSELVES);
    }
}

#[test]
fn generation_with_a_cache_reads_the_same_logits_as_the_full_forward() {
    let config = grouped();
    let device = Device::flex();
    let model = CausalLm::fresh(&config, 4, &device);
    let rows = [(3, tokens(5, 9)), (0, tokens(6, 12))];
    let full = to_vec(model.logits(&Grid::new(rows.clone(), 12), 4..12));
    let mut cache = KvCache::new(&config, 2, 12, &device);
    let v = config.vocab_size;
    for column in 4..12 {
        let from = if column == 4 { 0 } else { column };
        let seen = rows.clone().map(|(start, mut row)| {
            row.truncate(column + 1 - start);
            (start, row)
        });
        let grid = Grid::new(seen, column + 1);
        let step = to_vec(model.next_logits(&grid, from..column + 1, &mut cache));
        for row in 0..2 {
            let at = (row * 8 + column - 4) * v;
            close(&step[row * v..(row + 1) * v], &full[at..at + v], AGAINST_OURSELVES);
        }
    }
}

#[test]
fn a_response_does_not_depend_on_the_rows_beside_it() {
    let config = grouped();
    let model = CausalLm::fresh(&config, 9, &Device::flex());
    let prompts = [tokens(1, 4), tokens(2, 6), tokens(3, 2)];
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let limit =
        Generation { sampling: Sampling::PLAIN, max_new_tokens: 20, rows_at_once: 2, eos: 0 };
    let together = generate(&model, &config, &prompts, limit, streams(0, "t", 0..3));
    let first = generate(&model, &config, &prompts[..1], limit, vec![stream(0, "t", 0)]);
    assert_eq!(together[0], first[0]);
    for response in &together {
        let eos = response.iter().position(|&token| token == 0);
        assert!(eos.is_none_or(|end| end + 1 == response.len()));
    }
}

#[test]
fn the_view_of_tokens_does_not_depend_on_the_batch_size() {
    let model = CausalLm::fresh(&grouped(), 2, &Device::flex());
    let data: Vec<_> =
        (0..5).map(|i| (tokens(i, 3 + i as usize), tokens(9 + i, 9 - i as usize))).collect();
    let rows: Vec<(&[u32], &[u32])> = data.iter().map(|(p, r)| (&p[..], &r[..])).collect();
    let (one, all) = (view_tokens(&model, &rows, 1), view_tokens(&model, &rows, 5));
    for (a, b) in one.iter().zip(&all) {
        close(&a.log_probs, &b.log_probs, AGAINST_OURSELVES);
        close(&a.entropies, &b.entropies, AGAINST_OURSELVES);
    }
}

#[test]
fn the_training_forward_equals_the_inference_forward_in_any_batch() {
    let model = CausalLm::fresh(&grouped(), 2, &Device::flex().autodiff());
    let data: Vec<_> =
        (0..4).map(|i| (tokens(i, 3 + i as usize), tokens(7 + i, 9 - i as usize))).collect();
    let rows: Vec<(&[u32], &[u32])> = data.iter().map(|(p, r)| (&p[..], &r[..])).collect();
    let (grid, first) = Grid::aligned(rows.iter().copied());
    let width = grid.width() - first;
    let training = to_vec(response_log_probs(&model, &grid, first).0);
    for (i, view) in view_tokens(&model.valid(), &rows, 1).iter().enumerate() {
        let row = &training[i * width..i * width + view.log_probs.len()];
        close(row, &view.log_probs, AGAINST_OURSELVES);
    }
}

#[test]
fn a_saved_model_is_read_back_bit_by_bit() {
    let config = grouped();
    let dir = tempfile::tempdir().unwrap();
    let model = CausalLm::fresh(&config, 5, &Device::flex());
    model.save(&config, dir.path()).unwrap();
    let (again, read) = CausalLm::load(dir.path(), &Device::flex()).unwrap();
    assert_eq!(read, config);
    let fingerprint = segment_rlhf::model::checkpoint::fingerprint::<CausalLm>;
    assert_eq!(fingerprint(&again), fingerprint(&model));
}

#[test]
fn a_checkpoint_of_another_shape_lists_every_tensor_that_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let config = grouped();
    CausalLm::fresh(&config, 5, &Device::flex()).save(&config, dir.path()).unwrap();
    let other = ModelConfig { layers: 3, vocab_size: 24, ..config };
    std::fs::write(dir.path().join("config.json"), other.to_json("LlamaForCausalLM")).unwrap();
    let error = CausalLm::load(dir.path(), &Device::flex()).unwrap_err();
    let CheckpointError::Tensors { problems, .. } = error else { panic!("{error}") };
    assert_eq!(problems.len(), 10); // the embedding's shape, and the 9 tensors of the third layer
    assert!(problems[0].contains("embed_tokens.weight: shape [23, 16], expected [24, 16]"));
    assert!(problems[1].contains("model.layers.2"));
}
