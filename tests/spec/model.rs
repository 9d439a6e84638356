//! The decoder and its heads: what gives π_θ, π_SFT, V and the head of E2.

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use segment_rlhf::equations::bt_loss::segment_bt_loss;
use segment_rlhf::equations::ppo::{policy_loss, value_loss};
use segment_rlhf::equations::segment_reward::{Aggregation, aggregation_weights, sequence_scores};
use segment_rlhf::equations::segmentation::entropy;
use segment_rlhf::model::checkpoint::parameters;
use segment_rlhf::model::config::{RopeScaling, SlidingWindow, WindowedLayers};
use segment_rlhf::model::generate::{
    Generation, ReadAt, Rows, TokenView, generate, pad_rows, response_log_probs, to_vec,
};
use segment_rlhf::model::layers::Norm;
use segment_rlhf::model::rope::Rope;
use segment_rlhf::model::sampling::Sampling;
use segment_rlhf::model::source::Fresh;
use segment_rlhf::model::writer::{Writer, write_each};
use segment_rlhf::model::{CausalLm, FreshHead, Grid, KvCache, ModelConfig, ScalarModel};
use segment_rlhf::rng::{stream, streams};
use segment_rlhf::stop::{Interrupted, Stop};
use serde::Deserialize;

use crate::support::{assert_close, cpu, devices, host, mask, matrix};
use crate::tiny_model::{
    assert_model_gradient, drawn, edited, families, gradients, grouped, scalar_model, tokens,
    with_parameters,
};
use crate::tolerance;

/// The logits of one row, at each of its tokens.
fn logits_of(model: &CausalLm, row: &[u32]) -> Vec<f64> {
    host(model.logits(&Grid::new([(0, row.to_vec())], row.len()), 0..row.len()))
}

/// Every family on every device, with that device's tolerance.
fn families_on_devices() -> impl Iterator<Item = (ModelConfig, Device, f64)> {
    let on = |config: ModelConfig| {
        devices().into_iter().map(move |(device, tolerance)| (config.clone(), device, tolerance))
    };
    families().into_iter().flat_map(on)
}

fn matrix32(row: &[f32], device: &Device) -> Tensor<2> {
    let row: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
    matrix(&[row], device, DType::F32)
}

fn assert_close_f32(actual: &[f32], expected: &[f32], tolerance: f64) {
    let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    assert_close(&wide(actual), &wide(expected), tolerance);
}

// 1. Worked example

#[test]
fn one_layer_of_one_head_gives_logits_that_a_person_can_compute() {
    let config = ModelConfig {
        vocab_size: 3,
        hidden_size: 2,
        intermediate_size: 1,
        layers: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 2,
        norm_eps: 0.0,
        tie_word_embeddings: false,
        ..grouped()
    };
    let identity: &[f64] = &[1.0, 0.0, 0.0, 1.0];
    let ln_3 = 3f64.ln();
    let query = (2f64.sqrt() * ln_3).sqrt(); // its square over √2 is ln 3
    let parameters: [(&str, &[f64]); 12] = [
        ("model.embed_tokens.weight", &[1.0, 1.0, 1.0, -1.0, 0.0, 0.0]),
        ("model.layers.0.input_layernorm.weight", &[1.0, 1.0]),
        ("model.layers.0.self_attn.q_proj.weight", &[query, 0.0, 0.0, 0.0]),
        ("model.layers.0.self_attn.k_proj.weight", &[query, 0.0, 0.0, 0.0]),
        ("model.layers.0.self_attn.v_proj.weight", identity),
        ("model.layers.0.self_attn.o_proj.weight", identity),
        ("model.layers.0.post_attention_layernorm.weight", &[1.0, 1.0]),
        ("model.layers.0.mlp.gate_proj.weight", &[ln_3, 0.0]),
        ("model.layers.0.mlp.up_proj.weight", &[0.0, 1.0]),
        ("model.layers.0.mlp.down_proj.weight", &[0.0, 1.0 / ln_3]),
        ("model.norm.weight", &[1.0, 10.0]),
        ("lm_head.weight", &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0]),
    ];
    // Token 0 is (1, 1): of unit size, so that its norm, and its value, is itself. It sees itself alone:
    // (2, 2), again normed to (1, 1). The gate is ln 3 and σ(ln 3) = 3/4, so that SwiGLU adds (0, 3/4).
    // The head reads (2, 2.75) over its size, the second channel ten times, and their sum.
    let size = |x: f64, y: f64| ((x * x + y * y) / 2.0).sqrt();
    let logits = |x: f64, y: f64| [x, 10.0 * y, x + 10.0 * y].map(|logit| logit / size(x, y));
    let first = logits(2.0, 2.75);
    // Token 1 is (1, -1). All queries and keys point one way, but a position turns them by a radian: the
    // scores of token 0 and of itself are ln 3 · cos 1 and ln 3. With weight w on (1, 1), attention adds
    // (1, 2w - 1); the rest as before, on (2, y).
    let w = 3f64.powf(1f64.cos()) / (3f64.powf(1f64.cos()) + 3.0);
    let y = 2.0 * w - 2.0;
    let (gate, up) = (2.0 / size(2.0, y), y / size(2.0, y));
    let silu = gate * ln_3 / (1.0 + 3f64.powf(-gate));
    let second = logits(2.0, y + silu * up / ln_3);
    for (device, tolerance) in devices() {
        let model = with_parameters(CausalLm::fresh(&config, 0, &device), &parameters);
        assert_close(&logits_of(&model, &[0, 1]), &[first, second].concat(), tolerance);
    }
}

#[test]
fn the_norm_divides_by_the_root_of_the_mean_square_and_scales_each_channel() {
    for (device, tolerance) in devices() {
        let mut fresh = Fresh { seed: 0, placement: (&device).into() };
        let norm = Norm::rms(&mut fresh, "norm", 2, 3.5);
        let norm = edited(norm, DType::F32, |_, weight| weight[1] = 2.0);
        // The mean square of (3, 4) is 12.5, and √(12.5 + 3.5) = 4. A zero vector stays.
        let x = Tensor::<2>::from_data([[3.0, 4.0], [0.0, 0.0]], &device);
        assert_close(&host(norm.forward(x)), &[0.75, 2.0, 0.0, 0.0], tolerance);
    }
}

#[test]
fn a_position_turns_each_pair_of_channels_by_its_own_angle() {
    for (device, tolerance) in devices() {
        // Frequencies 100^0 and 100^(-2/4), so angles 3 and 0.3 at position 3; pairs (0, 2) and (1, 3).
        let rotation = Rope::new(4, 100.0).rotation(&[3], [1, 1], &device, DType::F32);
        let x = Tensor::<4>::from_data([[[[1.0, 2.0, 0.0, 5.0]]]], &device);
        let (slow_sin, slow_cos) = 0.3f64.sin_cos();
        let expected = [
            3f64.cos(),
            2.0 * slow_cos - 5.0 * slow_sin,
            3f64.sin(),
            5.0 * slow_cos + 2.0 * slow_sin,
        ];
        assert_close(&host(rotation.apply(x)), &expected, tolerance);
    }
}

#[test]
fn a_layer_norm_takes_the_mean_off_before_and_adds_a_bias_in_the_end() {
    for (device, tolerance) in devices() {
        let mut fresh = Fresh { seed: 0, placement: (&device).into() };
        let norm = Norm::layer(&mut fresh, "norm", 2, 3.0);
        let norm = edited(norm, DType::F32, |name, values| match name {
            "bias" => values.copy_from_slice(&[0.0, 10.0]),
            _ => values[1] = 2.0,
        });
        // (3, 5) is (-1, 1) about its mean: of variance 1, and √(1 + 3) = 2.
        let x = Tensor::<2>::from_data([[3.0, 5.0]], &device);
        assert_close(&host(norm.forward(x)), &[-0.5, 11.0], tolerance);
    }
}

/// The angles by which a head's pairs of channels turn in one position.
fn angles(rope: &Rope, head: usize) -> Vec<f64> {
    let x = [vec![1.0; head / 2], vec![0.0; head / 2]].concat();
    let x = matrix(&[x], &cpu(), DType::F64).reshape([1, 1, 1, head]);
    let turned = host(rope.rotation(&[1], [1, 1], &cpu(), DType::F64).apply(x));
    turned[..head / 2].iter().zip(&turned[head / 2..]).map(|(cos, sin)| sin.atan2(*cos)).collect()
}

#[test]
fn scaled_rotary_frequencies_are_divided_each_by_its_own_factor() {
    let scaled = |scaling| angles(&Rope::new(6, 1000.0).scaled(&scaling, 64), 6);
    let plain = [1.0, 0.1, 0.01];
    assert_close(&scaled(RopeScaling::None), &plain, tolerance::HOST_F64);
    let linear = RopeScaling::Linear { factor: 4.0 };
    assert_close(&scaled(linear), &[0.25, 0.025, 0.0025], tolerance::HOST_F64);
    // 126 tokens are 20, 2 and 0.2 turns (nearly): above 3 as they are, below 1 an eighth, and 2 half-way.
    let original = 126;
    let llama_3 =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 3.0, original };
    let turns = original as f64 * 0.1 / std::f64::consts::TAU;
    let high = (turns - 1.0) / 2.0;
    let blended = 0.1 * (high + (1.0 - high) / 8.0);
    assert!((blended - 0.1 * 9.0 / 16.0).abs() < 3e-4);
    assert_close(&scaled(llama_3), &[1.0, blended, 0.00125], tolerance::HOST_F64);
    // One token of 628 is 100 turns, or 1: the places of these bounds are 0 and 2.
    let turns = 628.0 / std::f64::consts::TAU;
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        attention_factor: None,
        mscale: None,
        beta_fast: turns,
        beta_slow: turns / 100.0,
        truncate: false,
        original: 628,
    };
    assert_close(&scaled(yarn), &[1.0, 0.1 * 5.0 / 8.0, 0.0025], tolerance::HOST_F64);
    assert_close(&scaled(RopeScaling::Dynamic { factor: 4.0 }), &plain, tolerance::HOST_F64);
    let long = RopeScaling::LongRope {
        short_factor: vec![1.0, 2.0, 5.0],
        long_factor: vec![9.0; 3],
        attention_factor: None,
        original: 8,
    };
    assert_close(&scaled(long), &[1.0, 0.05, 0.002], tolerance::HOST_F64);
}

#[test]
fn long_rotary_positions_scale_the_channels_that_turn_and_leave_the_others() {
    let long = |attention_factor| RopeScaling::LongRope {
        short_factor: vec![1.0],
        long_factor: vec![1.0],
        attention_factor,
        original: 8,
    };
    let at_0 = |attention_factor, longest| {
        let rope = Rope::new(2, 100.0).scaled(&long(attention_factor), longest);
        let x = matrix(&[vec![1.0, 2.0, 3.0, 4.0]], &cpu(), DType::F64).reshape([1, 1, 1, 4]);
        host(rope.rotation(&[0], [1, 1], &cpu(), DType::F64).apply(x))
    };
    // 64 tokens of 8: √(1 + ln 8 / ln 8).
    let root = 2f64.sqrt();
    assert_close(&at_0(None, 64), &[root, 2.0 * root, 3.0, 4.0], tolerance::HOST_F64);
    assert_close(&at_0(None, 8), &[1.0, 2.0, 3.0, 4.0], tolerance::HOST_F64);
    assert_close(&at_0(Some(3.0), 64), &[3.0, 6.0, 3.0, 4.0], tolerance::HOST_F64);
}

#[test]
fn rows_of_different_lengths_are_padded_on_the_right() {
    for (device, _) in devices() {
        let rows: [&[f32]; 2] = [&[1.0, 2.0], &[3.0]];
        assert_eq!(host(pad_rows(rows, 3, 9.0, &device)), [1.0, 2.0, 9.0, 3.0, 9.0, 9.0]);
    }
}

// 2. Goldens

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

/// The checkpoints of transformers, each with what it computes from it: those in tests/data/hf, and those in
/// the folder that the environment names.
fn fixtures() -> Vec<(PathBuf, Vec<Case>)> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/hf");
    let others = std::env::var_os("SEGMENT_RLHF_HF_FIXTURES").map(PathBuf::from);
    let mut found = Vec::new();
    for folder in [own].into_iter().chain(others) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let dir = entry.unwrap().path();
            if let Ok(text) = std::fs::read_to_string(dir.join("expected.json")) {
                let Expected { cases } = serde_json::from_str(&text).unwrap();
                assert!(!cases.is_empty(), "{}", dir.display());
                found.push((dir, cases));
            }
        }
    }
    assert!(found.len() >= 17, "{} fixtures", found.len());
    found
}

#[test]
fn logits_entropies_log_probs_and_greedy_tokens_are_those_of_transformers() {
    for (device, _) in devices() {
        for (dir, cases) in fixtures() {
            if cases[0].logits.is_empty() {
                continue; // a reward model
            }
            println!("{}", dir.display());
            let (model, config) = CausalLm::load(&dir, &device).unwrap();
            for case in cases {
                let n = case.ids.len();
                let grid = Grid::new([(0, case.ids.clone())], n);
                let logits = model.logits(&grid, 0..n);
                let tolerance = tolerance::TRANSFORMERS;
                assert_close_f32(&to_vec(logits.clone()), &case.logits.concat(), tolerance);
                assert_close_f32(&to_vec(entropy(logits)), &case.entropy_nats, tolerance);
                // Token 1 on as a response: what each was drawn from was read at the token before it.
                let view = Rows::new(&[case.ids.split_at(1)], 1)
                    .view(&model, &Stop::default())
                    .unwrap()
                    .remove(0);
                assert_close_f32(&view.log_probs, &case.next_token_log_prob, tolerance);
                assert_close_f32(&view.entropies, &case.entropy_nats[..n - 1], tolerance);
                let limit = Generation {
                    sampling: Sampling::GREEDY,
                    max_new_tokens: 12,
                    rows_at_once: 8,
                    stops: &[],
                };
                let draws = vec![stream(0, "t", 0)];
                let greedy =
                    generate(&model, &config, &[&case.ids], limit, draws, &Stop::default())
                        .unwrap();
                assert_eq!(greedy[0], case.greedy_12);
            }
        }
    }
}

#[test]
fn scores_of_a_sequence_classification_checkpoint_are_those_of_transformers() {
    for (device, _) in devices() {
        for (dir, cases) in fixtures() {
            if cases[0].token_scores.is_empty() {
                continue; // a language model
            }
            println!("{}", dir.display());
            let (model, _) = ScalarModel::load(&dir, &device).unwrap();
            for case in cases {
                let n = case.ids.len();
                let scores = model.scores(&Grid::new([(0, case.ids.clone())], n), 0..n);
                assert_close_f32(&to_vec(scores), &case.token_scores, tolerance::TRANSFORMERS);
            }
        }
    }
}

// 3. Identities and limits

#[test]
fn a_token_changes_no_logit_before_it_and_every_logit_from_it_on() {
    let v = grouped().vocab_size;
    let sees_all = |(config, ..): &(ModelConfig, _, _)| config.sliding_window.is_none();
    for (config, device, tolerance) in families_on_devices().filter(sees_all) {
        let model = drawn(CausalLm::fresh(&config, 3, &device));
        let row = tokens(1, 7);
        let before = logits_of(&model, &row);
        for at in 0..row.len() {
            let mut changed = row.clone();
            changed[at] = if row[at] == 5 { 6 } else { 5 };
            let after = logits_of(&model, &changed);
            assert_close(&after[..at * v], &before[..at * v], tolerance);
            for (after, before) in after.chunks(v).zip(before.chunks(v)).skip(at) {
                assert!(after.iter().zip(before).any(|(a, b)| (a - b).abs() > 0.01));
            }
        }
    }
}

#[test]
fn attention_sees_how_far_apart_two_positions_are_and_not_where() {
    for (device, tolerance) in devices() {
        let query_key =
            matrix(&[vec![0.3, -1.2, 0.7, 2.0], vec![1.1, 0.4, -0.6, 0.9]], &device, DType::F32);
        let score = |query: usize, key: usize| -> f64 {
            let rotation = Rope::new(4, 100.0).rotation(&[query, key], [1, 2], &device, DType::F32);
            let turned = host(rotation.apply(query_key.clone().reshape([1, 1, 2, 4])));
            turned[..4].iter().zip(&turned[4..]).map(|(q, k)| q * k).sum()
        };
        for (query, key) in [(0, 0), (3, 0), (5, 4)] {
            assert_close(&[score(query + 60, key + 60)], &[score(query, key)], tolerance);
        }
        assert!((score(3, 0) - score(0, 0)).abs() > 0.1);
    }
}

#[test]
fn a_head_of_keys_and_values_for_each_query_head_is_the_grouped_ones_repeated() {
    let (config, row) = (grouped(), tokens(1, 7));
    let group = config.heads / config.kv_heads;
    let head = config.head_dim * config.hidden_size;
    for (device, tolerance) in devices() {
        let shared = CausalLm::fresh(&config, 3, &device);
        let given = parameters(&shared);
        let of_its_own = ModelConfig { kv_heads: config.heads, ..config.clone() };
        let repeated =
            edited(CausalLm::fresh(&of_its_own, 4, &device), DType::F32, |name, values| {
                let old: Vec<f64> = given[name].iter::<f64>().collect();
                *values = if name.contains("k_proj") || name.contains("v_proj") {
                    old.chunks(head).flat_map(|head| head.repeat(group)).collect()
                } else {
                    old
                };
            });
        assert_close(&logits_of(&repeated, &row), &logits_of(&shared, &row), tolerance);
    }
}

#[test]
fn a_tied_head_is_the_embedding_and_a_scalar_head_is_one_row_of_it() {
    let (config, row) = (grouped(), tokens(1, 7));
    let n = row.len();
    let untied_config = ModelConfig { tie_word_embeddings: false, ..config.clone() };
    for (device, tolerance) in devices() {
        let tied = CausalLm::fresh(&config, 3, &device);
        let given = parameters(&tied);
        let embedding: Vec<f64> = given["model.embed_tokens.weight"].iter::<f64>().collect();
        let copy = |name: &str, values: &mut Vec<f64>, head: &[f64]| {
            *values = match given.get(name) {
                Some(given) => given.iter::<f64>().collect(),
                None => head.to_vec(),
            }
        };
        let untied = CausalLm::fresh(&untied_config, 4, &device);
        let untied = edited(untied, DType::F32, |name, values| copy(name, values, &embedding));
        let logits = logits_of(&tied, &row);
        assert_close(&logits_of(&untied, &row), &logits, tolerance);

        let (token, d, v) = (7, config.hidden_size, config.vocab_size);
        let head = &embedding[token * d..(token + 1) * d];
        let scalar = scalar_model(&config, 4, &device);
        let scalar = edited(scalar, DType::F32, |name, values| copy(name, values, head));
        let scores = host(scalar.scores(&Grid::new([(0, row.clone())], n), 0..n));
        let of_token: Vec<f64> = logits.chunks(v).map(|logits| logits[token]).collect();
        assert_close(&scores, &of_token, tolerance);
    }
}

#[test]
fn a_fresh_head_stands_on_the_language_model_and_differs_by_purpose_and_seed() {
    let (config, dir, device) = (grouped(), tempfile::tempdir().unwrap(), cpu());
    let language_model = CausalLm::fresh(&config, 5, &device);
    language_model.save(&config, dir.path()).unwrap();
    let of = |purpose, seed| {
        let (model, _) = ScalarModel::from_language_model(
            dir.path(),
            FreshHead::official(purpose, seed),
            &device,
        )
        .unwrap();
        let mut own = parameters(&model);
        let head = own.remove("score.weight").unwrap();
        assert_eq!(own, parameters(&language_model));
        head
    };
    assert_eq!(of("critic", 0), of("critic", 0));
    assert_ne!(of("critic", 0), of("reward", 0));
    assert_ne!(of("critic", 0), of("critic", 1));
}

#[test]
fn a_fresh_head_has_standard_deviation_one_over_d_plus_one() {
    // The draws of a head, in units of its standard deviation: the same at any width.
    let units = |d: usize| -> Vec<f64> {
        let config = ModelConfig { hidden_size: d, ..grouped() };
        let head = parameters(&scalar_model(&config, 0, &cpu())).remove("score.weight").unwrap();
        head.iter::<f64>().map(|x| x * (d + 1) as f64).collect()
    };
    let many = units(1000);
    assert_close(&units(8), &many[..8], tolerance::CPU_F32);
    let mean_square = many.iter().map(|x| x * x).sum::<f64>() / 1000.0;
    assert!((mean_square - 1.0).abs() < 0.15, "{mean_square}"); // three standard errors
}

#[test]
fn a_fresh_head_takes_any_standard_deviation_and_starts_from_nothing_with_0() {
    let (config, dir, device) = (grouped(), tempfile::tempdir().unwrap(), cpu());
    let language_model = CausalLm::fresh(&config, 5, &device);
    language_model.save(&config, dir.path()).unwrap();
    let d = config.hidden_size as f64;
    let heads = |std: Option<f64>| -> [Vec<f64>; 2] {
        let head = FreshHead { std, ..FreshHead::official("critic", 0) };
        let (read, _) = ScalarModel::from_language_model(dir.path(), head, &device).unwrap();
        [read, ScalarModel::over(&language_model, head)]
            .map(|model| parameters(&model).remove("score.weight").unwrap().iter().collect())
    };
    let [official, shared] = heads(None);
    assert_eq!(official, shared);
    let doubled: Vec<f64> = official.iter().map(|x| 2.0 * x).collect();
    let [read, shared] = heads(Some(2.0 / (d + 1.0)));
    assert_eq!(read, shared);
    assert_close(&read, &doubled, tolerance::CPU_F32);
    for head in heads(Some(0.0)) {
        assert!(head.len() == config.hidden_size && head.iter().all(|&x| x == 0.0));
    }
}

#[test]
fn a_value_is_read_before_its_token_and_a_reward_at_it() {
    for (device, tolerance) in devices() {
        let model = scalar_model(&grouped(), 3, &device);
        let (prompt, response) = (tokens(1, 3), tokens(2, 4));
        let whole = [&prompt[..], &response].concat();
        let scores = to_vec(model.scores(&Grid::new([(0, whole)], 7), 0..7));
        let read = |at| {
            Rows::new(&[(&prompt, &response)], 1)
                .scalars(&model, at, &Stop::default())
                .unwrap()
                .remove(0)
        };
        assert_close_f32(&read(ReadAt::Token), &scores[3..7], tolerance);
        assert_close_f32(&read(ReadAt::State), &scores[2..6], tolerance);
    }
}

#[test]
fn generation_with_a_cache_reads_the_same_logits_as_the_full_forward() {
    for (config, device, tolerance) in families_on_devices() {
        let v = config.vocab_size;
        let model = drawn(CausalLm::fresh(&config, 4, &device));
        let rows = [(3, tokens(5, 9)), (0, tokens(6, 12))];
        let full = host(model.logits(&Grid::new(rows.clone(), 12), 4..12));
        let mut cache = KvCache::new(&config, 2, 12, &device);
        for column in 4..12 {
            let from = if column == 4 { 0 } else { column };
            let seen = rows.clone().map(|(start, mut row)| {
                row.truncate(column + 1 - start);
                (start, row)
            });
            let grid = Grid::new(seen, column + 1);
            let step = host(model.next_logits(&grid, from..column + 1, &mut cache));
            for row in 0..2 {
                let at = (row * 8 + column - 4) * v;
                assert_close(&step[row * v..(row + 1) * v], &full[at..at + v], tolerance);
            }
        }
    }
}

#[test]
fn the_training_forward_equals_the_inference_forward_in_any_batch() {
    for (config, device, tolerance) in families_on_devices() {
        let model = drawn(CausalLm::fresh(&config, 2, &device.autodiff()));
        let data = prompts_and_responses(4);
        let rows = borrowed(&data);
        let (grid, first) = Grid::aligned(rows.iter().copied());
        let width = grid.width() - first;
        let training = to_vec(response_log_probs(&model, &grid, first).0);
        for (i, view) in
            Rows::new(&rows, 1).view(&model.valid(), &Stop::default()).unwrap().iter().enumerate()
        {
            let row = &training[i * width..i * width + view.log_probs.len()];
            assert_close_f32(row, &view.log_probs, tolerance);
        }
    }
}

#[test]
fn a_layer_with_a_sliding_window_sees_that_many_tokens_and_no_more() {
    let (tokens_seen, row) = (3, tokens(1, 8));
    for (device, tolerance) in devices() {
        // How far back a token counts grows by a window, less the token itself, with each layer.
        for (layers, windowed, reach) in [(1, 0, 2), (2, 0, 4), (1, 1, 7), (2, 1, 7)] {
            let config = ModelConfig {
                layers,
                sliding_window: Some(SlidingWindow {
                    tokens: tokens_seen,
                    layers: WindowedLayers::From(windowed),
                }),
                ..grouped()
            };
            let model = CausalLm::fresh(&config, 3, &device);
            let last = |row: &[u32]| logits_of(&model, row)[7 * config.vocab_size..].to_vec();
            for at in 0..7 {
                let mut changed = row.clone();
                changed[at] = if row[at] == 5 { 6 } else { 5 };
                let (before, after) = (last(&row), last(&changed));
                if 7 - at <= reach {
                    assert!(after.iter().zip(&before).any(|(a, b)| (a - b).abs() > 1e-3));
                } else {
                    assert_close(&after, &before, tolerance);
                }
            }
        }
    }
}

// 4. Gradients

/// Small enough for two forwards a parameter.
fn smallest() -> ModelConfig {
    ModelConfig {
        vocab_size: 5,
        hidden_size: 4,
        intermediate_size: 3,
        heads: 2,
        kv_heads: 1,
        tie_word_embeddings: false,
        ..grouped()
    }
}

/// A prompt of 1 and of 3 tokens, a response of 4 and of 2: both kinds of padding. Token 0 stands in
/// the padding alone.
fn two_rows() -> (Grid, usize) {
    let rows: [(&[u32], &[u32]); 2] = [(&[1], &[2, 3, 1, 4]), (&[4, 2, 2], &[3, 1])];
    Grid::aligned(rows)
}

const LENGTHS: [usize; 2] = [4, 2];

/// One number a response token of [`two_rows`]; NaN in the padding.
fn per_token(first: [f64; 4], second: [f64; 2], device: &Device, dtype: DType) -> Tensor<2> {
    matrix(&[first.to_vec(), [&second[..], &[f64::NAN; 2]].concat()], device, dtype)
}

/// E9 through the model, unclipped: the clip's gradient is tested in `ppo`.
fn policy_loss_of(model: &CausalLm, device: &Device) -> Tensor<1> {
    let (grid, first) = two_rows();
    let log_probs = response_log_probs(model, &grid, first).0;
    let constant = |first, second| per_token(first, second, device, log_probs.dtype());
    let old_log_probs = constant([-1.5, -1.7, -1.6, -1.2], [-2.0, -1.4]);
    let advantages = constant([1.0, -0.5, 2.0, 0.3], [-1.0, 0.8]);
    policy_loss(log_probs, old_log_probs, advantages, mask(&LENGTHS, 4, device), 1e3).loss
}

/// E2 to E4 through the model: the first row is chosen.
fn reward_loss_of(model: &ScalarModel, device: &Device) -> Tensor<1> {
    let (grid, first) = two_rows();
    let scores = model.scores(&grid, ReadAt::Token.columns(&grid, first));
    let weights = |segments| {
        let weights = aggregation_weights(segments, 4, Aggregation::Average);
        weights.into_iter().map(f64::from).collect()
    };
    let weights = [weights(&[0..2, 2..4]), weights(&[0..1, 1..2])];
    let scores = sequence_scores(scores.clone(), matrix(&weights, device, scores.dtype()));
    segment_bt_loss(scores.clone().narrow(0, 0, 1), scores.narrow(0, 1, 1), None)
}

/// E10 through the model, unclipped.
fn value_loss_of(model: &ScalarModel, device: &Device) -> Tensor<1> {
    let (grid, first) = two_rows();
    let values = model.scores(&grid, ReadAt::State.columns(&grid, first));
    let constant = |first, second| per_token(first, second, device, values.dtype());
    let old_values = constant([0.1, 0.0, -0.3, 0.2], [0.4, -0.1]);
    let returns = constant([1.0, 0.5, -0.2, 0.7], [-0.6, 0.3]);
    value_loss(values, old_values, returns, mask(&LENGTHS, 4, device), 1e3)
}

fn in_f64<M: Module>(model: M) -> M {
    edited(model, DType::F64, |_, _| ())
}

#[test]
fn every_parameter_has_the_gradient_of_central_differences_under_every_training_loss() {
    let (device, trained) = (cpu(), cpu().autodiff());
    for tie_word_embeddings in [false, true] {
        let config = ModelConfig { tie_word_embeddings, ..smallest() };
        let policy = in_f64(CausalLm::fresh(&config, 0, &trained));
        assert_model_gradient(&policy, |policy| policy_loss_of(policy, &device));
    }
    for family in families() {
        let (d, head) = (4, family.head_dim.min(4)); // as `smallest`
        let config = ModelConfig {
            vocab_size: 5,
            hidden_size: d,
            intermediate_size: 3,
            heads: 2,
            kv_heads: family.kv_heads / 2,
            head_dim: if family.rotary_fraction == 1.0 { head / 2 } else { head },
            norm_eps: 0.1, // heads this narrow have near-zero norms, too curved for the step
            ..family
        };
        let policy = in_f64(drawn(CausalLm::fresh(&config, 0, &trained)));
        assert_model_gradient(&policy, |policy| policy_loss_of(policy, &device));
    }
    let scalar = in_f64(scalar_model(&smallest(), 0, &trained));
    assert_model_gradient(&scalar, |reward| reward_loss_of(reward, &device));
    assert_model_gradient(&scalar, |critic| value_loss_of(critic, &device));
}

#[test]
fn the_gradient_in_f32_is_that_in_f64() {
    fn compare<M: Module>(
        model: impl Fn(&Device) -> M,
        loss: impl Fn(&M, &Device) -> Tensor<1>,
        (device, tolerance): (&Device, f64),
    ) {
        let exact = in_f64(model(&cpu().autodiff()));
        let rounded = model(&device.clone().autodiff());
        let exact = gradients(&exact, loss(&exact, &cpu()));
        for (name, gradient) in gradients(&rounded, loss(&rounded, device)) {
            println!("{name}");
            assert_close(&gradient, &exact[&name], tolerance);
        }
    }
    let policy = |device: &Device| CausalLm::fresh(&smallest(), 0, device);
    let scalar = |device: &Device| scalar_model(&smallest(), 0, device);
    for (device, tolerance) in devices() {
        compare(policy, policy_loss_of, (&device, tolerance));
        compare(scalar, reward_loss_of, (&device, tolerance));
        compare(scalar, value_loss_of, (&device, tolerance));
    }
}

// 5. Padding and batch size. Numbers in the padding of the losses above are NaN already.

#[test]
fn any_token_in_the_padding_leaves_losses_and_gradients_as_they_are() {
    fn compare<M: Module>(model: M, loss: impl Fn(&M) -> Tensor<1>, tolerance: f64) {
        const EMBEDDING: &str = "model.embed_tokens.weight";
        // Token 0, which stands in the padding, becomes another.
        let spoiled = edited(model.clone(), DType::F32, |name, values| {
            if name == EMBEDDING {
                values[..4].copy_from_slice(&[1e3, -7.0, 0.0, 300.0]);
            }
        });
        assert_close(&host(loss(&spoiled)), &host(loss(&model)), tolerance);
        let gradient = gradients(&spoiled, loss(&spoiled));
        assert_eq!(gradient[EMBEDDING][..4], [0.0; 4]);
        for (name, expected) in gradients(&model, loss(&model)) {
            assert_close(&gradient[&name], &expected, tolerance);
        }
    }
    for (device, tolerance) in devices() {
        let trained = device.clone().autodiff();
        let scalar = scalar_model(&smallest(), 0, &trained);
        compare(scalar.clone(), |model| reward_loss_of(model, &device), tolerance);
        compare(scalar, |model| value_loss_of(model, &device), tolerance);
        let policy = CausalLm::fresh(&smallest(), 0, &trained);
        compare(policy, |model| policy_loss_of(model, &device), tolerance);
    }
}

#[test]
fn left_padded_right_padded_and_unpadded_rows_agree() {
    for (config, device, tolerance) in families_on_devices() {
        let model = drawn(CausalLm::fresh(&config, 3, &device));
        let row = tokens(1, 7);
        let alone = logits_of(&model, &row);
        for start in [0, 2, 5] {
            let grid = Grid::new([(start, row.clone()), (0, tokens(2, 12))], 12);
            let all = host(model.logits(&grid, start..start + 7));
            assert_close(&all[..alone.len()], &alone, tolerance);
        }
    }
}

/// Prompts that grow, and responses that shrink.
fn prompts_and_responses(n: usize) -> Vec<(Vec<u32>, Vec<u32>)> {
    (0..n).map(|i| (tokens(i as u64, 3 + i), tokens(9 + i as u64, 9 - i))).collect()
}

fn borrowed(rows: &[(Vec<u32>, Vec<u32>)]) -> Vec<(&[u32], &[u32])> {
    rows.iter().map(|(prompt, response)| (&prompt[..], &response[..])).collect()
}

#[test]
fn the_view_of_tokens_does_not_depend_on_the_batch_size() {
    let data = prompts_and_responses(5);
    let rows = borrowed(&data);
    let turned: Vec<_> = rows.iter().rev().copied().collect();
    for (config, device, tolerance) in families_on_devices() {
        let model = drawn(CausalLm::fresh(&config, 2, &device));
        let same = |ours: Vec<TokenView>, theirs: &[TokenView]| {
            for (ours, theirs) in ours.iter().zip(theirs) {
                assert_close_f32(&ours.log_probs, &theirs.log_probs, tolerance);
                assert_close_f32(&ours.entropies, &theirs.entropies, tolerance);
            }
        };
        let mut one = Rows::new(&rows, 1).view(&model, &Stop::default()).unwrap();
        same(Rows::new(&rows, 5).view(&model, &Stop::default()).unwrap(), &one);
        one.reverse();
        same(Rows::new(&turned, 2).view(&model, &Stop::default()).unwrap(), &one);
    }
}

#[test]
fn the_scalars_of_tokens_do_not_depend_on_the_batch_size() {
    let data = prompts_and_responses(5);
    let rows = borrowed(&data);
    let turned: Vec<_> = rows.iter().rev().copied().collect();
    for (device, tolerance) in devices() {
        let model = scalar_model(&grouped(), 2, &device);
        for at in [ReadAt::Token, ReadAt::State] {
            let read = |rows: &[(&[u32], &[u32])], rows_at_once| {
                Rows::new(rows, rows_at_once).scalars(&model, at, &Stop::default()).unwrap()
            };
            let mut one = read(&rows, 1);
            assert_close_f32(&read(&rows, 5).concat(), &one.concat(), tolerance);
            one.reverse();
            assert_close_f32(&read(&turned, 2).concat(), &one.concat(), tolerance);
        }
    }
}

#[test]
fn a_response_does_not_depend_on_the_rows_beside_it() {
    // Tied to its embedding, a fresh model repeats a token and never ends.
    let config = ModelConfig { tie_word_embeddings: false, ..grouped() };
    let prompts: Vec<Vec<u32>> = (0..8).map(|i| tokens(i, 2 + i as usize % 5)).collect();
    let mut prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let mut draws = streams(0, "t", 0..8);
    for (device, _) in devices() {
        let model = CausalLm::fresh(&config, 9, &device);
        let generated = |prompts: &[&[u32]], draws: &[_], rows_at_once| {
            let sampling = Sampling::PLAIN;
            let limit = Generation { sampling, max_new_tokens: 40, rows_at_once, stops: &[0] };
            generate(&model, &config, prompts, limit, draws.to_vec(), &Stop::default()).unwrap()
        };
        let mut alone = generated(&prompts, &draws, 1);
        for response in &alone {
            let eos = response.iter().position(|&token| token == 0);
            assert_eq!(eos.map_or(40, |end| end + 1), response.len());
        }
        let early = alone.iter().filter(|response| response.len() < 40).count();
        // Enough for the batch to shrink more than once.
        assert!((5..8).contains(&early), "{early} of 8 end before the limit");
        assert_eq!(generated(&prompts, &draws, 3), alone);
        assert_eq!(generated(&prompts, &draws, 8), alone);
        // Equal prompts side by side are read once.
        let groups: Vec<&[u32]> =
            prompts.iter().enumerate().flat_map(|(i, &prompt)| vec![prompt; 1 + i % 3]).collect();
        let own = streams(0, "groups", 0..groups.len());
        assert_eq!(generated(&groups, &own, groups.len()), generated(&groups, &own, 1));
        prompts.reverse();
        draws.reverse();
        alone.reverse();
        assert_eq!(generated(&prompts, &draws, 8), alone);
    }
}

#[test]
fn a_writer_that_goes_back_reads_the_logits_of_one_that_never_wrote_on() {
    for (config, device, tolerance) in families_on_devices() {
        let model = drawn(CausalLm::fresh(&config, 9, &device));
        let prompts = [tokens(0, 5), tokens(1, 2)];
        let prompts = prompts.each_ref().map(Vec::as_slice);
        let written = |detour: &[u32]| {
            let write = |_: &[u32], mut writer: Writer<'_>, _| -> Result<_, Interrupted> {
                let mut all = vec![writer.logits()?.to_vec()];
                writer.push(1);
                let mark = writer.mark()?;
                for _ in 0..2 {
                    for &token in detour {
                        writer.push(token);
                        writer.logits()?;
                    }
                    writer.back_to(&mark);
                }
                for token in [2, 3] {
                    all.push(writer.logits()?.to_vec());
                    writer.push(token);
                }
                assert_eq!((writer.response(), writer.is_full()), (&[1, 2, 3][..], false));
                all.push(writer.logits()?.to_vec());
                let expected = host(entropy(matrix32(all.last().unwrap(), &device).unsqueeze()));
                assert_close(&[writer.entropy()?], &expected, tolerance);
                Ok(all)
            };
            let draws = streams(0, "t", 0..2);
            write_each(&model, &config, &prompts, 8, draws, &Stop::default(), write).unwrap()
        };
        let straight = written(&[]);
        assert_eq!(written(&[4, 1, 4, 2]), straight, "to the last bit");
        for (prompt, logits) in prompts.iter().zip(straight) {
            let row = [prompt, &[1, 2, 3][..]].concat();
            let width = config.vocab_size;
            let read = logits_of(&model, &row);
            let own = logits.concat();
            let wide: Vec<f64> = own.iter().map(|&logit| f64::from(logit)).collect();
            assert_close(&wide, &read[(prompt.len() - 1) * width..], tolerance);
        }
    }
}

#[test]
fn a_long_prompt_read_in_pieces_gives_the_tokens_of_one_read_whole() {
    let config =
        ModelConfig { tie_word_embeddings: false, max_position_embeddings: 306, ..grouped() };
    // Up to three pieces of 128 columns; short rows are all padding in the first of them.
    let prompts: Vec<Vec<u32>> =
        [300, 129, 128, 5].into_iter().map(|n| tokens(n, n as usize)).collect();
    let rows: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    for (device, _) in devices() {
        let model = drawn(CausalLm::fresh(&config, 9, &device));
        let sampling = Sampling::GREEDY;
        let limit = Generation { sampling, max_new_tokens: 6, rows_at_once: 4, stops: &[] };
        let draws = streams(0, "t", 0..4);
        let responses = generate(&model, &config, &rows, limit, draws, &Stop::default()).unwrap();
        for (prompt, response) in prompts.iter().zip(responses) {
            let mut row = prompt.clone();
            for _ in 0..6 {
                let n = row.len();
                let logits = to_vec(model.logits(&Grid::new([(0, row.clone())], n), n - 1..n));
                let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
                row.push(best.unwrap() as u32);
            }
            assert_eq!(response, row[prompt.len()..], "after {} tokens", prompt.len());
        }
    }
}

#[test]
fn a_response_ends_at_the_first_of_any_stop_tokens() {
    let config = ModelConfig { tie_word_embeddings: false, ..grouped() };
    let prompt = tokens(1, 4);
    for (device, _) in devices() {
        let model = CausalLm::fresh(&config, 9, &device);
        let generated = |stops: &[u32]| {
            let sampling = Sampling::PLAIN;
            let limit = Generation { sampling, max_new_tokens: 20, rows_at_once: 1, stops };
            generate(&model, &config, &[&prompt], limit, streams(0, "t", 0..1), &Stop::default())
                .unwrap()
                .remove(0)
        };
        let endless = generated(&[]);
        assert_eq!(endless.len(), 20);
        for stops in [[endless[3], endless[7]], [endless[7], endless[3]]] {
            let end = endless.iter().position(|token| stops.contains(token)).unwrap();
            assert_eq!(generated(&stops), endless[..=end]);
        }
    }
}

#[test]
fn a_response_ends_where_the_model_s_positions_do_whatever_the_rows_beside_it() {
    let longest = 12;
    let config = ModelConfig { max_position_embeddings: longest, ..grouped() };
    // Five, so that the first to end is no quarter of them.
    let prompts: Vec<Vec<u32>> = [4, 11, 7, 4, 4].map(|n| tokens(n, n as usize)).into();
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    for (device, _) in devices() {
        let model = CausalLm::fresh(&config, 9, &device);
        let generated = |rows_at_once| {
            let sampling = Sampling::PLAIN;
            let limit = Generation { sampling, max_new_tokens: 40, rows_at_once, stops: &[] };
            generate(&model, &config, &prompts, limit, streams(0, "t", 0..5), &Stop::default())
                .unwrap()
        };
        let together = generated(5);
        assert_eq!(together.iter().map(Vec::len).collect::<Vec<_>>(), [8, 1, 5, 8, 8]);
        assert_eq!(generated(1), together);
    }
}

// 6. Errors; those of files are in `checkpoint`.

#[test]
#[should_panic(expected = "a row needs a token")]
fn an_empty_row_is_refused() {
    Grid::new([(0, vec![1]), (0, vec![])], 1);
}

#[test]
#[should_panic(expected = "a row fits the grid")]
fn a_row_past_the_grid_is_refused() {
    Grid::new([(2, vec![1, 2])], 3);
}

#[test]
#[should_panic(expected = "columns follow those already seen")]
fn a_cache_takes_each_column_once() {
    let (config, device) = (grouped(), cpu());
    let (grid, mut cache) =
        (Grid::new([(0, tokens(1, 4))], 4), KvCache::new(&config, 1, 4, &device));
    CausalLm::fresh(&config, 0, &device).next_logits(&grid, 1..4, &mut cache);
}

#[test]
#[should_panic(expected = "one stream a prompt")]
fn a_prompt_without_a_stream_is_refused() {
    let (config, limit) = (
        grouped(),
        Generation { sampling: Sampling::PLAIN, max_new_tokens: 1, rows_at_once: 1, stops: &[0] },
    );
    generate(
        &CausalLm::fresh(&config, 0, &cpu()),
        &config,
        &[&[1], &[2]],
        limit,
        vec![],
        &Stop::default(),
    )
    .unwrap();
}

#[test]
#[should_panic(expected = "a prompt leaves room for a token")]
fn a_prompt_without_room_for_a_token_is_refused() {
    let config = ModelConfig { max_position_embeddings: 4, ..grouped() };
    let limit =
        Generation { sampling: Sampling::PLAIN, max_new_tokens: 1, rows_at_once: 1, stops: &[0] };
    let model = CausalLm::fresh(&config, 0, &cpu());
    let _ =
        generate(&model, &config, &[&[1, 2, 3, 4]], limit, streams(0, "t", 0..1), &Stop::default());
}

#[test]
#[should_panic(expected = "a row of 65 tokens, but the model serves 64")]
fn a_row_beyond_longrope_s_original_length_is_refused() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/hf/phi3_long");
    let (model, _) = CausalLm::load(&dir, &cpu()).unwrap();
    let logits = |n: usize| model.logits(&Grid::new([(1, vec![5; n])], n + 1), 0..n + 1);
    assert_eq!(logits(64).dims(), [1, 65, 48]);
    logits(65);
}

// 7. Devices: every test above that asks for `devices()`.
