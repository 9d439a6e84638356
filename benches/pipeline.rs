//! The hot paths at the embedded task's size; `benches/pytorch.py` does the same work in PyTorch.
//!
//! `cargo bench` prints time an operation, and tokens a second where an operation has tokens.

use burn::module::Module;
use burn::tensor::Device;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use segment_rlhf::equations::gae::gae;
use segment_rlhf::model::generate::{Generation, Rows, generate, response_log_probs};
use segment_rlhf::model::optim::Trainer;
use segment_rlhf::model::sampling::Sampling;
use segment_rlhf::model::shards::shards;
use segment_rlhf::model::{CausalLm, Grid, ModelConfig};
use segment_rlhf::rng::streams;
use segment_rlhf::settings::Settings;
use segment_rlhf::stop::Stop;

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
                (response_log_probs(model, &grid, first).0.sum().neg(), ())
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

fn host(c: &mut Criterion) {
    let rewards: Vec<f64> = (0..1024).map(|i| f64::from(i % 7) - 3.0).collect();
    c.bench_function("GAE of 1024 tokens", |b| b.iter(|| gae(&rewards, &rewards, 1.0, 0.95)));
}

criterion_group!(benches, training, generation, host);
criterion_main!(benches);
