//! The hot paths at the embedded task's size, and every hot function alone; `benches/compare.sh` compares with PyTorch.
//!
//! `cargo bench` prints time an operation, and tokens a second where an operation has tokens.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use criterion::{BatchSize, Criterion, Throughput, criterion_group};
use rand::Rng;
use segment_rlhf::equations::normalizer::Normalizer;
use segment_rlhf::equations::segment_reward::Aggregation;
use segment_rlhf::equations::segmentation::{EosPolicy, Rule};
use segment_rlhf::model::generate::{Generation, Rows, TokenView, generate, response_log_probs};
use segment_rlhf::model::kernels::adamw::{Moments, Rates, adamw};
use segment_rlhf::model::kernels::attention::{Angles, Plan, Span, attention};
use segment_rlhf::model::kernels::linear::linear;
use segment_rlhf::model::kernels::rms_norm::rms_norm;
use segment_rlhf::model::kernels::swiglu::swiglu;
use segment_rlhf::model::kernels::token_head::token_head;
use segment_rlhf::model::optim::Trainer;
use segment_rlhf::model::sampling::Sampling;
use segment_rlhf::model::shards::shards;
use segment_rlhf::model::{CausalLm, FreshHead, Grid, ModelConfig, ScalarModel};
use segment_rlhf::rng::{stream, streams};
use segment_rlhf::settings::Settings;
use segment_rlhf::stage::task::letters_tokenizer;
use segment_rlhf::stop::Stop;
use segment_rlhf::systems::rewards::NormalizedRewards;
use segment_rlhf::systems::{
    Draw, Judge, Method, Parts, RewardModel, Sample, Segmenter, TaskParts,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROWS: usize = 32;
const PROMPT: usize = 18;
const RESPONSE: usize = 34;

fn config() -> ModelConfig {
    Settings::defaults().model.config(109, 82)
}

fn row() -> Vec<u32> {
    (0..(PROMPT + RESPONSE) as u32).map(|i| (i * 7) % 100 + 2).collect()
}

fn training(c: &mut Criterion) {
    let settings = Settings::defaults().sft.optimizer;
    let model = CausalLm::fresh(&config(), 0, &Device::flex().autodiff());
    let mut trainer = Trainer::new("policy", model, &settings, 100);
    let row = row();
    let rows = vec![(&row[..PROMPT], &row[PROMPT..]); ROWS];
    let mut group = c.benchmark_group("policy");
    group.throughput(Throughput::Elements((ROWS * row.len()) as u64));
    group.bench_function("training step, 32 rows of 52 tokens", |b| {
        b.iter(|| {
            let device = trainer.model().device();
            let lengths = [row.len(); ROWS];
            trainer.accumulate(shards(&lengths, &device), |model, shard| {
                let (grid, first) = Grid::aligned(rows[shard].iter().copied());
                (response_log_probs(model, &grid, first).0.sum().neg(), [])
            });
            trainer.update().unwrap()
        });
    });
    let model = trainer.model().valid();
    group.bench_function("log-probabilities and entropies, 32 rows of 52 tokens", |b| {
        b.iter(|| Rows::new(&rows, ROWS).view(&model, &Stop::default()));
    });
    group.finish();
}

fn generation(c: &mut Criterion) {
    let config = config();
    let model = CausalLm::fresh(&config, 0, &Device::flex());
    let row = row();
    let prompts = vec![&row[..PROMPT]; 128];
    let plain =
        Generation { sampling: Sampling::PLAIN, max_new_tokens: 64, rows_at_once: 128, stops: &[] };
    let mut group = c.benchmark_group("policy");
    group.sample_size(10).throughput(Throughput::Elements(128 * 64));
    group.bench_function("generation, 128 rows of 64 new tokens", |b| {
        b.iter_batched(
            || streams(0, "bench", 0..128),
            |streams| generate(&model, &config, &prompts, plain, streams, &Stop::default()),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// Numbers around 0, the same in every run.
fn numbers(count: usize) -> Vec<f32> {
    let mut rng = stream(0, "bench", 0);
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn tensor<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    let values = numbers(shape.iter().product());
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

/// Forward alone, and forward with backward.
fn both<const N: usize>(
    c: &mut Criterion,
    name: &str,
    tokens: usize,
    inputs: [Tensor<2>; N],
    of: impl Fn([Tensor<2>; N]) -> Tensor<2>,
) {
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(tokens as u64));
    group.bench_function("forward", |b| b.iter(|| of(inputs.clone())));
    let inputs = inputs.map(|input| input.autodiff().require_grad());
    group.bench_function("forward and backward", |b| {
        b.iter(|| of(inputs.clone()).sum().backward());
    });
    group.finish();
}

/// Each operation at the width of 256 channels, 1,024 tokens.
fn kernels(c: &mut Criterion) {
    const TOKENS: usize = 1024;
    let x = tensor([TOKENS, 256]);
    both(c, "linear, 256 to 688", TOKENS, [x.clone(), tensor([688, 256])], |[x, w]| linear(x, w));
    both(c, "RMSNorm, 256", TOKENS, [x.clone(), tensor([1, 256])], |[x, w]| {
        rms_norm(x, w.reshape([256]), 1e-5)
    });
    let halves = [tensor([TOKENS, 688]), tensor([TOKENS, 688])];
    both(c, "SwiGLU, 688", TOKENS, halves, |[gate, up]| swiglu(gate, up));
    let angles = (0..64 * 16).map(|i| (i as f32).sin()).collect::<Vec<_>>();
    let plan = Plan {
        spans: (0..16).map(|row| Span { start: 64 * row, tokens: 64, seen: 0 }).collect(),
        angles: Angles { pairs: 16, sin: angles.clone(), cos: angles }.into(),
        heads: 8,
        kv_heads: 8,
        head_dim: 32,
        window: None,
    };
    let qkv = [x.clone(), x.clone(), x.clone()];
    both(c, "attention, 16 rows of 64, 8 heads of 32", TOKENS, qkv, |[q, k, v]| {
        attention(q, k, v, &plan)
    });
    let targets: Vec<u32> = (0..TOKENS as u32).map(|i| i * 7 % 512).collect();
    both(c, "log-probabilities and entropies, 512", TOKENS, [x, tensor([512, 256])], |[x, w]| {
        token_head(x, w, &targets)
    });
    let (w, g) = (tensor([1 << 20]), tensor([1 << 20]));
    let mut moments = Moments(w.zeros_like(), w.zeros_like());
    let rates = Rates {
        learning_rate: 1e-3,
        beta_1: 0.9,
        beta_2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.0,
        factor: 1.0,
        step: 1,
    };
    c.bench_function("AdamW, 1,048,576 parameters", |b| {
        b.iter(|| adamw(w.clone(), g.clone(), &mut moments, rates));
    });
    let (logits, mut rng) = (numbers(512), stream(0, "bench", 1));
    c.bench_function("drawing a token of 512", |b| {
        b.iter(|| Sampling::PLAIN.draw(&logits, &mut rng));
    });
}

/// Everything between the models' passes and the update, for 1,024 responses of 1,024 tokens: segments, their rewards,
/// E5 to E8 and whitening. `benches/peers/torch_ppo.py` does the same in Python loops.
fn assembly(c: &mut Criterion) {
    const N: usize = 1024;
    let row: Vec<u32> = (0..N as u32).collect();
    let values = numbers(4 * N);
    let part = |i: usize| values[i * N..(i + 1) * N].to_vec();
    let view = TokenView { log_probs: part(0), entropies: part(1) };
    let (scores, states) = (part(2), part(3));
    let rule = Rule::Entropy { cutoff: 0.5 };
    let segmenter = Segmenter {
        rule,
        eos_policy: EosPolicy::AsPublished,
        stops: vec![],
        sentence_ends: vec![],
    };
    let model = ScalarModel::over(
        &CausalLm::fresh(&config(), 0, &Device::flex()),
        FreshHead { purpose: "bench", seed: 0, std: None },
    );
    let judge = &Judge::RewardModel(RewardModel {
        model,
        reward_segmenter: segmenter.clone(),
        policy_segmenter: segmenter,
        aggregation: Aggregation::Average,
        stop: Stop::default(),
    });
    let reward_model = judge.reward_model().expect("just made");
    let normalizer = &Normalizer::LocationAware {
        w_mean: 0.1,
        b_mean: 0.2,
        w_std: 0.1,
        b_std: 1.5,
        std_floor: None,
    };
    let settings = Settings::defaults();
    let tokenizer = &letters_tokenizer().expect("the embedded task has a tokenizer");
    let system = Method::SEGMENT.build(&Parts {
        method: Method::SEGMENT,
        ppo: &settings.ppo,
        section: None,
        max_new_tokens: N,
        judge,
        normalizer,
        task: TaskParts::of(tokenizer),
    });
    let system = system.expect("the method has no files");
    let rewards = NormalizedRewards { judge, normalizer, length_neutral: false };
    let (policy, config) = (CausalLm::fresh(&config(), 0, &Device::flex()), config());
    let generation =
        Generation { sampling: Sampling::PLAIN, max_new_tokens: N, rows_at_once: 1, stops: &[] };
    let draw = Draw {
        policy: &policy,
        config: &config,
        generation,
        seed: 0,
        iteration: 0,
        kl_coefficient: 0.05,
        rows_at_once: 1,
        stop: &Stop::default(),
    };
    let prompt: &[u32] = &[1];
    let read = || vec![(view.clone(), view.clone(), states.clone()); N];
    let mut group = c.benchmark_group("reward assembly");
    group.sample_size(20).throughput(Throughput::Elements((N * N) as u64));
    group.bench_function("1,024 responses of 1,024 tokens", |b| {
        b.iter_batched(
            read,
            |read| {
                let sample = |(view, reference, values): (TokenView, TokenView, Vec<f32>)| {
                    let cut = reward_model.segment_rewards(&row, &reference.entropies, &scores);
                    let rewarded = rewards.normalize(cut.unwrap());
                    Sample::new(prompt, &row, view, reference, Some(values), rewarded)
                };
                let mut samples: Vec<Sample> = read.into_iter().map(sample).collect();
                system.credit.assign(&mut samples, &draw).unwrap();
                samples
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, training, generation, kernels, assembly);

fn main() {
    segment_rlhf::allocator::keep_freed_memory();
    benches();
    Criterion::default().configure_from_args().final_summary();
}
