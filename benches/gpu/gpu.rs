//! Our side of `benches/gpu.sh`: tokens a second of one phase, on random weights of Qwen2's shapes.
//!
//! `gpu --device cuda --size 0.5B --phase decode` prints one JSON object. Frozen models are in the type that the device
//! computes in; trained weights are in f32, as in a run. Each phase is a process of its own, so that its peak of memory
//! can be read from outside.

use std::ops::Range;
use std::time::Instant;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use clap::Parser;
use rand::Rng;
use segment_rlhf::device::{Checkpointing, DeviceId, Precision, computes_in};
use segment_rlhf::equations::bt_loss::segment_bt_loss;
use segment_rlhf::equations::segment_reward::Aggregation;
use segment_rlhf::model::config::AttentionBias;
use segment_rlhf::model::config::Family;
use segment_rlhf::model::generate::{Generation, TokenView, generate};
use segment_rlhf::model::optim::{OptimizerSettings, Trainer};
use segment_rlhf::model::sampling::Sampling;
use segment_rlhf::model::{CausalLm, FreshHead, ModelConfig, Placement, ScalarModel};
use segment_rlhf::rng::{Stream, stream, streams};
use segment_rlhf::settings::Settings;
use segment_rlhf::stop::Stop;
use segment_rlhf::systems::{Chunk, Loss, Minibatch, Rewarded, Sample, Segmented, score_sequences};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value = "flex")]
    device: DeviceId,
    /// tiny, 0.1B, 0.5B or 1.5B
    #[arg(long, default_value = "tiny")]
    size: String,
    /// matmul, decode, reward or ppo
    #[arg(long)]
    phase: String,
    /// bf16, or f32 also where the device computes in bf16
    #[arg(long, default_value = "bf16")]
    dtype: String,
    #[arg(long, default_value_t = 4)]
    rows: usize,
    #[arg(long, default_value_t = 32)]
    prompt: usize,
    #[arg(long, default_value_t = 16)]
    response: usize,
    #[arg(long, default_value_t = 3)]
    repeats: usize,
}

/// The shapes of Qwen2 0.5B and 1.5B, and two smaller ones in the same proportions.
fn config(size: &str) -> ModelConfig {
    // Width, layers, heads, key-value heads, head, MLP, vocabulary.
    let shape: [usize; 7] = match size {
        "tiny" => [64, 2, 4, 2, 16, 256, 512],
        "0.1B" => [640, 12, 10, 2, 64, 2560, 65536],
        "0.5B" => [896, 24, 14, 2, 64, 4864, 151_936],
        "1.5B" => [1536, 28, 12, 2, 128, 8960, 151_936],
        other => panic!("size {other}: expected tiny, 0.1B, 0.5B or 1.5B"),
    };
    let [hidden_size, layers, heads, kv_heads, head_dim, intermediate_size, vocab_size] = shape;
    ModelConfig {
        family: Family::Qwen2,
        attention_bias: AttentionBias::Inputs,
        tie_word_embeddings: true,
        hidden_size,
        layers,
        heads,
        kv_heads,
        head_dim,
        intermediate_size,
        vocab_size,
        max_position_embeddings: 4096,
        ..ModelConfig::default()
    }
}

struct Bench {
    arguments: Arguments,
    device: Device,
    precision: Precision,
    config: ModelConfig,
}

impl Bench {
    fn placement(&self) -> Placement {
        Placement { device: self.device.clone(), dtype: self.precision.dtype() }
    }

    /// The seconds of each repetition of `run` after a first that is not counted: kernels are compiled and tuned there.
    fn time(&self, mut run: impl FnMut()) -> Vec<f64> {
        let seconds = (0..=self.arguments.repeats).map(|_| {
            let start = Instant::now();
            run();
            self.device.sync().unwrap();
            start.elapsed().as_secs_f64()
        });
        seconds.skip(1).collect()
    }

    /// Rows of prompt and response.
    fn rows(&self) -> Vec<(Vec<u32>, Vec<u32>)> {
        let mut rng = stream(0, "gpu", 0);
        let vocabulary = self.config.vocab_size as u32;
        let tokens = |count: usize, rng: &mut Stream| -> Vec<u32> {
            (0..count).map(|_| rng.random_range(1..vocabulary)).collect()
        };
        let Arguments { rows, prompt, response, .. } = self.arguments;
        (0..rows).map(|_| (tokens(prompt, &mut rng), tokens(response, &mut rng))).collect()
    }

    fn trained(&self, device: &Device) -> CausalLm {
        CausalLm::fresh(&self.config, 1, device).computing(self.precision, Checkpointing::None)
    }

    fn trained_scalar(&self, purpose: &str, device: &Device) -> ScalarModel {
        let base = CausalLm::fresh(&self.config, 2, device);
        let model = ScalarModel::over(&base, FreshHead { purpose, seed: 3, std: None });
        model.computing(self.precision, Checkpointing::None)
    }

    /// Numbers in the linear maps of all layers.
    fn maps(&self) -> f64 {
        let ModelConfig { hidden_size: d, intermediate_size: f, layers, head_dim, .. } =
            self.config;
        let (q, kv) = (self.config.heads * head_dim, self.config.kv_heads * head_dim);
        (layers * (d * (2 * q + 2 * kv) + 3 * d * f)) as f64
    }

    /// Numbers in the table of logits.
    fn head(&self) -> f64 {
        (self.config.hidden_size * self.config.vocab_size) as f64
    }

    fn matmul(&self) -> serde_json::Value {
        let side: usize = if self.arguments.size == "tiny" { 512 } else { 8192 };
        let a = Tensor::<2>::ones([side, side], (&self.device, self.precision.dtype()));
        let products = 10;
        let seconds = self.time(|| {
            for _ in 0..products {
                let _ = a.clone().matmul(a.clone());
            }
        });
        let best = seconds.iter().copied().fold(f64::INFINITY, f64::min);
        json!({"operations": (products * 2 * side.pow(3)) as f64 / best})
    }

    /// The first token of a response costs the prompt's forward pass, and each further one its own.
    fn decode(&self) -> serde_json::Value {
        let model = CausalLm::fresh(&self.config, 1, self.placement()).inference();
        let rows = self.rows();
        let prompts: Vec<&[u32]> = rows.iter().map(|(prompt, _)| &prompt[..]).collect();
        let n = prompts.len();
        let write = |max_new_tokens: usize| {
            self.time(|| {
                let sampling = Sampling::PLAIN;
                let limit = Generation { sampling, max_new_tokens, rows_at_once: n, stops: &[] };
                let (draws, stop) = (streams(0, "gpu", 0..n), Stop::default());
                let written = generate(&model, &self.config, &prompts, limit, draws, &stop);
                assert!(written.unwrap().iter().all(|row| row.len() == max_new_tokens));
            })
        };
        let (first, all) = (write(1), write(self.arguments.response));
        let decode: Vec<f64> = all.iter().zip(&first).map(|(all, first)| all - first).collect();
        json!({
            "prefill": {
                "tokens": n * self.arguments.prompt, "seconds": first,
                "operations": 2.0 * n as f64 * (self.arguments.prompt as f64 * self.maps() + self.head()),
            },
            "decode": {
                "tokens": n * (self.arguments.response - 1), "seconds": decode,
                "operations": 2.0 * (n * (self.arguments.response - 1)) as f64 * (self.maps() + self.head()),
            },
            "parameters": model.num_params(),
        })
    }

    fn optimizer(&self) -> OptimizerSettings {
        OptimizerSettings {
            learning_rate: 1e-6,
            warmup_fraction: 0.0,
            ..Settings::defaults().sft.optimizer
        }
    }

    /// Segments of eight tokens.
    fn segments(&self) -> Vec<Range<usize>> {
        let response = self.arguments.response;
        (0..response).step_by(8).map(|start| start..response.min(start + 8)).collect()
    }

    /// A Bradley-Terry step on as many pairs as half the rows.
    fn reward(&self) -> serde_json::Value {
        let device = self.device.clone().autodiff();
        let model = self.trained_scalar("reward", &device);
        let parameters = model.num_params();
        let mut trainer = Trainer::new("reward", model, &self.optimizer(), 100);
        let (rows, segments) = (self.rows(), self.segments());
        let rows: Vec<Segmented<'_>> = rows
            .iter()
            .map(|(prompt, response)| ((&prompt[..], &response[..]), &segments[..]))
            .collect();
        let n = rows.len() / 2;
        let seconds = self.time(|| {
            trainer.accumulate(vec![()], |model, ()| {
                let scores = score_sequences(model, &rows[..2 * n], Aggregation::Average);
                let (chosen, rejected) = (scores.clone().narrow(0, 0, n), scores.narrow(0, n, n));
                (segment_bt_loss(chosen, rejected, None), [])
            });
            trainer.update().unwrap();
        });
        let tokens = 2 * n * (self.arguments.prompt + self.arguments.response);
        let operations = 6.0 * tokens as f64 * self.maps();
        json!({
            "reward": {"tokens": tokens, "seconds": seconds, "operations": operations},
            "parameters": parameters,
        })
    }

    /// A step of policy and critic on all rows.
    fn ppo(&self) -> serde_json::Value {
        let device = self.device.clone().autodiff();
        let policy = self.trained(&device);
        let parameters = policy.num_params();
        let mut policy = Trainer::new("policy", policy, &self.optimizer(), 100);
        let critic = self.trained_scalar("critic", &device);
        let mut critic = Trainer::new("critic", critic, &self.optimizer(), 100);
        let n = self.arguments.response;
        let view = || TokenView {
            log_probs: vec![-(self.config.vocab_size as f32).ln(); n],
            entropies: vec![1.0; n],
        };
        let segments = self.segments();
        let rewards = vec![0.5; segments.len()];
        let sample = |(prompt, response): &(Vec<u32>, Vec<u32>)| {
            let rewarded = Rewarded {
                segments: segments.clone(),
                rewards: rewards.clone(),
                normalized: rewards.clone(),
                sequence_score: 0.5,
            };
            let values = Some(vec![0.0; n]);
            let mut sample = Sample::new(prompt, response, view(), view(), values, rewarded);
            sample.advantages = (0..n).map(|i| (i as f64).sin()).collect();
            sample.returns = Some(vec![0.5; n]);
            sample
        };
        let samples: Vec<Sample> = self.rows().iter().map(sample).collect();
        let seconds = self.time(|| {
            let chunk = Chunk::new(samples.iter().collect(), Minibatch::of(&samples), &device);
            chunk.learn_policy(&mut policy, Loss::Clip { clip: 0.2 }, 0.0);
            chunk.learn_values(&mut critic, 0.25);
            policy.update().unwrap();
            critic.update().unwrap();
        });
        let responses = samples.len() * n;
        let tokens = samples.len() * (self.arguments.prompt + n);
        let operations = 6.0 * (2.0 * tokens as f64 * self.maps() + responses as f64 * self.head());
        json!({
            "ppo": {"tokens": tokens, "seconds": seconds, "operations": operations},
            "parameters": parameters,
        })
    }
}

fn main() {
    segment_rlhf::allocator::keep_freed_memory();
    let arguments = Arguments::parse();
    let device = arguments.device.open().unwrap_or_else(|error| panic!("{error}"));
    let wide = Precision::F32.dtype();
    arguments.device.check(&device, wide, "take another").unwrap_or_else(|error| panic!("{error}"));
    let narrow =
        arguments.dtype == "bf16" && computes_in(&device).contains(&Precision::Bf16.dtype());
    let precision = if narrow { Precision::Bf16 } else { Precision::F32 };
    let config = config(&arguments.size);
    let bench = Bench { arguments, device, precision, config };
    let mut result = match &bench.arguments.phase[..] {
        "matmul" => bench.matmul(),
        "decode" => bench.decode(),
        "reward" => bench.reward(),
        "ppo" => bench.ppo(),
        other => panic!("phase {other}: expected matmul, decode, reward or ppo"),
    };
    result["dtype"] = precision.name().into();
    println!("{result}");
}
