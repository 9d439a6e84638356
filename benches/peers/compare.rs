//! Our side of `benches/compare.sh`: one PPO iteration, phase by phase, on weights and rollouts that both sides read.
//!
//! `compare --write FOLDER --size S|M|L --lengths fixed|natural` writes them; `compare --folder FOLDER --threads N
//! --repeats R` times the phases and prints one JSON object.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::{Device, Tensor};
use clap::Parser;
use rand::Rng;
use segment_rlhf::data::tokenizer::Tokenizer;
use segment_rlhf::equations::bt_loss::segment_bt_loss;
use segment_rlhf::equations::normalizer::Normalizer;
use segment_rlhf::equations::segment_reward::Aggregation;
use segment_rlhf::equations::segmentation::{EosPolicy, Rule};
use segment_rlhf::model::generate::{Generation, ReadAt, Rows, TokenView, generate_up_to};
use segment_rlhf::model::lora::LoraSettings;
use segment_rlhf::model::optim::{OptimizerSettings, Trainer};
use segment_rlhf::model::sampling::Sampling;
use segment_rlhf::model::shards::{shards, side_by_side};
use segment_rlhf::model::{CausalLm, FreshHead, ModelConfig, ScalarModel};
use segment_rlhf::rng::{stream, streams};
use segment_rlhf::settings::Settings;
use segment_rlhf::stage::task::letters_tokenizer;
use segment_rlhf::stop::Stop;
use segment_rlhf::systems::rewards::NormalizedRewards;
use segment_rlhf::systems::{
    Chunk, Draw, Judge, Loss, Method, Minibatch, Parts, RewardModel, Sample, Segmented, Segmenter,
    System, TaskParts, score_sequences,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Arguments {
    /// Writes weights and rollouts into this folder.
    #[arg(long, conflicts_with = "folder")]
    write: Option<PathBuf>,
    #[arg(long, default_value = "S")]
    size: String,
    #[arg(long, default_value = "fixed")]
    lengths: String,
    /// Times the phases on what is in this folder.
    #[arg(long)]
    folder: Option<PathBuf>,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[arg(long, default_value_t = 3)]
    repeats: usize,
}

/// What both sides read beside the weights; the keys are the PyTorch side's.
#[derive(Serialize, Deserialize)]
struct Work {
    prompts: Vec<Vec<u32>>,
    responses: Vec<Vec<u32>>,
    pairs: Vec<PairOfResponses>,
    cutoff: f64,
    minibatch: usize,
    rows_at_once: usize,
    kl_coefficient: f64,
    gamma: f64,
    lambda: f64,
    clip: f64,
    value_clip: f64,
    normalizer: NormalizerLines,
    optimizer: OptimizerKeys,
    temperature: f64,
    /// Of the adapters whose update is timed too; 0 for none.
    lora_rank: usize,
}

#[derive(Serialize, Deserialize)]
struct PairOfResponses {
    prompt: Vec<u32>,
    chosen: Vec<u32>,
    rejected: Vec<u32>,
}

impl PairOfResponses {
    fn rows(&self) -> [(&[u32], &[u32]); 2] {
        [(&self.prompt, &self.chosen), (&self.prompt, &self.rejected)]
    }
}

#[derive(Serialize, Deserialize)]
struct NormalizerLines {
    mean: [f64; 2],
    std: [f64; 2],
}

#[derive(Serialize, Deserialize)]
struct OptimizerKeys {
    learning_rate: f64,
    beta_1: f64,
    beta_2: f64,
    epsilon: f64,
    weight_decay: f64,
    max_gradient_norm: f64,
}

struct Size {
    model: [usize; 7],
    rows: usize,
    prompt: usize,
    response: usize,
}

/// Width, layers, heads, key-value heads, head, MLP and vocabulary.
fn size(name: &str) -> Size {
    let (model, rows, prompt, response) = match name {
        "S" => ([128, 4, 4, 4, 32, 344, 512], 64, 16, 48),
        "M" => ([256, 6, 8, 8, 32, 688, 512], 64, 16, 48),
        "L" => ([512, 8, 8, 8, 64, 1376, 512], 64, 16, 48),
        "SmolLM2-135M" => ([576, 30, 9, 3, 64, 1536, 49152], 16, 64, 64),
        other => panic!("size {other}: expected S, M, L or SmolLM2-135M"),
    };
    Size { model, rows, prompt, response }
}

fn config(size: &Size) -> ModelConfig {
    let [hidden_size, layers, heads, kv_heads, head_dim, intermediate_size, vocab_size] =
        size.model;
    let tie_word_embeddings = vocab_size > 1000;
    let max_position_embeddings = 4096;
    let base = Settings::defaults().model.config(vocab_size, max_position_embeddings);
    ModelConfig {
        hidden_size,
        layers,
        heads,
        kv_heads,
        head_dim,
        intermediate_size,
        tie_word_embeddings,
        ..base
    }
}

fn main() {
    segment_rlhf::allocator::keep_freed_memory();
    let arguments = Arguments::parse();
    match (&arguments.write, &arguments.folder) {
        (Some(folder), _) => write(folder, &size(&arguments.size), &arguments.lengths),
        (_, Some(folder)) => println!("{}", time(folder, arguments.threads, arguments.repeats)),
        _ => panic!("give --write FOLDER or --folder FOLDER"),
    }
}

fn write(folder: &Path, size: &Size, lengths: &str) {
    let (config, device) = (config(size), Device::flex());
    let save = |name: &str, save: &dyn Fn(&Path)| {
        let dir = folder.join(name);
        fs::create_dir_all(&dir).unwrap();
        save(&dir);
    };
    let policy = CausalLm::fresh(&config, 1, &device);
    // A reference near the policy, as a rollout later in training has it.
    let reference = CausalLm::fresh(&config, 2, &device);
    save("policy", &|dir| policy.save(&config, dir).unwrap());
    save("reference", &|dir| reference.save(&config, dir).unwrap());
    for (seed, name) in [(3, "critic"), (4, "reward")] {
        let base = CausalLm::fresh(&config, seed, &device);
        let head = FreshHead { purpose: name, seed, std: None };
        save(name, &|dir| ScalarModel::over(&base, head).save(&config, dir).unwrap());
    }
    let mut rng = stream(0, "compare", 0);
    let vocabulary = config.vocab_size as u32;
    let natural = match lengths {
        "fixed" => false,
        "natural" => true,
        other => panic!("lengths {other}: expected fixed or natural"),
    };
    let tokens = |count: usize, rng: &mut segment_rlhf::rng::Stream| -> Vec<u32> {
        (0..count).map(|_| rng.random_range(1..vocabulary)).collect()
    };
    let response = |rng: &mut segment_rlhf::rng::Stream, natural: bool| {
        let count = if natural { rng.random_range(8..=96) } else { size.response };
        tokens(count, rng)
    };
    let prompts: Vec<Vec<u32>> = (0..size.rows)
        .map(|_| (0..size.prompt).map(|_| rng.random_range(1..vocabulary)).collect())
        .collect();
    let responses: Vec<Vec<u32>> = prompts.iter().map(|_| response(&mut rng, natural)).collect();
    let ragged = size.rows == 64;
    let pairs: Vec<PairOfResponses> = prompts[..size.rows.min(32) / 2]
        .iter()
        .map(|prompt| PairOfResponses {
            prompt: prompt.clone(),
            chosen: response(&mut rng, ragged),
            rejected: response(&mut rng, ragged),
        })
        .collect();
    // A cutoff in the widest gap of entropies near their 70th percentile, so that rounding moves no boundary.
    let rows: Vec<(&[u32], &[u32])> =
        prompts.iter().zip(&responses).map(|(p, r)| (&p[..], &r[..])).collect();
    let views = Rows::new(&rows, 32).view(&reference, &Stop::default()).unwrap();
    let mut entropies: Vec<f32> = views.into_iter().flat_map(|view| view.entropies).collect();
    entropies.sort_by(f32::total_cmp);
    let middle = &entropies[entropies.len() * 65 / 100..entropies.len() * 75 / 100];
    let gap = middle.windows(2).max_by(|a, b| (a[1] - a[0]).total_cmp(&(b[1] - b[0]))).unwrap();
    let work = Work {
        prompts,
        responses,
        pairs,
        cutoff: f64::from(gap[0] + gap[1]) / 2.0,
        minibatch: 32.min(size.rows),
        rows_at_once: 32,
        kl_coefficient: 0.05,
        gamma: 1.0,
        lambda: 0.95,
        clip: 0.2,
        value_clip: 0.25,
        normalizer: NormalizerLines { mean: [0.1, 0.2], std: [0.1, 1.5] },
        optimizer: OptimizerKeys {
            learning_rate: 1e-5,
            beta_1: 0.9,
            beta_2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.0,
            max_gradient_norm: 1.0,
        },
        temperature: 1.0,
        lora_rank: if size.rows == 64 { 0 } else { 8 },
    };
    fs::write(folder.join("work.json"), serde_json::to_vec(&work).unwrap()).unwrap();
}

/// Everything that the phases read.
struct Bench {
    work: Work,
    config: ModelConfig,
    folder: PathBuf,
    policy: CausalLm,
    reference: CausalLm,
    critic: ScalarModel,
    judge: Judge,
    normalizer: Normalizer,
    settings: Settings,
    tokenizer: Tokenizer,
}

/// What the models say of the rollouts.
struct Scores {
    views: Vec<TokenView>,
    reference: Vec<TokenView>,
    rewards: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

fn scalar_model(dir: &Path, device: &Device) -> ScalarModel {
    ScalarModel::load(dir, device).unwrap().0
}

impl Bench {
    fn open(folder: &Path) -> Self {
        let work: Work =
            serde_json::from_slice(&fs::read(folder.join("work.json")).unwrap()).unwrap();
        let device = Device::flex();
        let (policy, config) = CausalLm::load(&folder.join("policy"), &device).unwrap();
        let reference = CausalLm::load(&folder.join("reference"), &device).unwrap().0;
        let segmenter = Segmenter {
            rule: Rule::Entropy { cutoff: work.cutoff },
            eos_policy: EosPolicy::AsPublished,
            stops: vec![],
            sentence_ends: vec![],
        };
        let judge = Judge::RewardModel(RewardModel {
            model: scalar_model(&folder.join("reward"), &device),
            reward_segmenter: segmenter.clone(),
            policy_segmenter: segmenter,
            aggregation: Aggregation::Average,
            stop: Stop::default(),
        });
        let NormalizerLines { mean, std } = work.normalizer;
        let normalizer = Normalizer::LocationAware {
            w_mean: mean[0],
            b_mean: mean[1],
            w_std: std[0],
            b_std: std[1],
            std_floor: None,
        };
        let critic = scalar_model(&folder.join("critic"), &device);
        let mut settings = Settings::defaults();
        settings.ppo.kl_coefficient = work.kl_coefficient;
        settings.ppo.gamma = work.gamma;
        settings.ppo.lambda = work.lambda;
        settings.ppo.clip = work.clip;
        settings.ppo.length_neutral = false;
        settings.ppo.value_clip_dense = work.value_clip;
        Self {
            work,
            config,
            folder: folder.to_owned(),
            policy,
            reference,
            critic,
            judge,
            normalizer,
            settings,
            tokenizer: letters_tokenizer().unwrap(),
        }
    }

    fn rewards(&self) -> &RewardModel {
        self.judge.reward_model().expect("opened as one")
    }

    fn rows(&self) -> Vec<(&[u32], &[u32])> {
        self.work.prompts.iter().zip(&self.work.responses).map(|(p, r)| (&p[..], &r[..])).collect()
    }

    fn generation(&self) -> Generation<'static> {
        let max_new_tokens = self.work.responses.iter().map(Vec::len).max().unwrap();
        Generation { sampling: Sampling::PLAIN, max_new_tokens, rows_at_once: 64, stops: &[] }
    }

    fn generate(&self) {
        let prompts: Vec<&[u32]> = self.work.prompts.iter().map(Vec::as_slice).collect();
        let limits: Vec<usize> = self.work.responses.iter().map(Vec::len).collect();
        let (config, generation) = (&self.config, self.generation());
        let draws = streams(0, "compare", 0..prompts.len());
        let stop = Stop::default();
        let written =
            generate_up_to(&self.policy, config, &prompts, &limits, generation, draws, &stop);
        let written = written.unwrap().iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(written, limits);
    }

    fn score(&self) -> Scores {
        let (rows, stop) = (self.rows(), Stop::default());
        let rows = Rows::new(&rows, self.work.rows_at_once);
        Scores {
            views: rows.view(&self.policy, &stop).unwrap(),
            reference: rows.view(&self.reference, &stop).unwrap(),
            rewards: rows.scalars(&self.rewards().model, ReadAt::Token, &stop).unwrap(),
            values: rows.scalars(&self.critic, ReadAt::State, &stop).unwrap(),
        }
    }

    fn system(&self) -> System<'_> {
        let system = Method::SEGMENT.build(&Parts {
            method: Method::SEGMENT,
            ppo: &self.settings.ppo,
            section: None,
            max_new_tokens: 96,
            judge: &self.judge,
            normalizer: &self.normalizer,
            task: TaskParts::of(&self.tokenizer),
        });
        system.unwrap()
    }

    fn assemble(&self, scores: &Scores) -> Vec<Sample> {
        let normalized = NormalizedRewards {
            judge: &self.judge,
            normalizer: &self.normalizer,
            length_neutral: false,
        };
        let sample = |(i, (prompt, response)): (usize, (&[u32], &[u32]))| {
            let entropies = &scores.reference[i].entropies;
            let rewards = self.rewards().segment_rewards(response, entropies, &scores.rewards[i]);
            let rewarded = normalized.normalize(rewards.unwrap());
            let (view, reference) = (scores.views[i].clone(), scores.reference[i].clone());
            let values = Some(scores.values[i].clone());
            Sample::new(prompt, response, view, reference, values, rewarded)
        };
        let mut samples: Vec<Sample> = self.rows().into_iter().enumerate().map(sample).collect();
        let draw = Draw {
            policy: &self.policy,
            config: &self.config,
            generation: self.generation(),
            seed: 0,
            iteration: 0,
            kl_coefficient: self.work.kl_coefficient,
            rows_at_once: self.work.rows_at_once,
            stop: &Stop::default(),
        };
        self.system().credit.assign(&mut samples, &draw).unwrap();
        samples
    }

    fn optimizer(&self) -> OptimizerSettings {
        let OptimizerKeys {
            learning_rate,
            beta_1,
            beta_2,
            epsilon,
            weight_decay,
            max_gradient_norm,
        } = self.work.optimizer;
        OptimizerSettings {
            learning_rate,
            beta_1,
            beta_2,
            epsilon,
            weight_decay,
            warmup_fraction: 0.0,
            final_fraction: 1.0,
            max_gradient_norm,
        }
    }

    /// The losses of the first minibatch, and the seconds.
    fn update(&self, samples: &[Sample]) -> (f64, [f64; 2]) {
        let device = Device::flex().autodiff();
        let policy = CausalLm::load(&self.folder.join("policy"), &device).unwrap().0;
        let critic = scalar_model(&self.folder.join("critic"), &device);
        let mut policy = Trainer::new("policy", policy, &self.optimizer(), 100);
        let mut critic = Trainer::new("critic", critic, &self.optimizer(), 100);
        let (loss, clip) = (Loss::Clip { clip: self.work.clip }, self.work.value_clip);
        let start = Instant::now();
        let mut first = None;
        for minibatch in samples.chunks(self.work.minibatch) {
            let whole = Minibatch::of(minibatch);
            for chunk in minibatch.chunks(self.work.rows_at_once) {
                let chunk = Chunk::new(chunk.iter().collect(), whole, &device);
                chunk.learn_policy(&mut policy, loss, 0.0);
                chunk.learn_values(&mut critic, clip);
            }
            let losses = [policy.update().unwrap().loss, critic.update().unwrap().loss];
            first.get_or_insert(losses);
        }
        (start.elapsed().as_secs_f64(), first.unwrap())
    }

    /// The loss of the first minibatch, and the seconds, of the policy's steps with adapters alone.
    fn lora_update(&self, samples: &[Sample]) -> (f64, f64) {
        let device = Device::flex().autodiff();
        let rank = self.work.lora_rank;
        let lora = LoraSettings { rank, alpha: rank as f64, targets: vec!["all-linear".into()] };
        let policy = lora.attach(self.policy.clone(), &device, "policy", 0);
        let mut policy = Trainer::new("policy", policy, &self.optimizer(), 100);
        let loss = Loss::Clip { clip: self.work.clip };
        let start = Instant::now();
        let mut first = None;
        for minibatch in samples.chunks(self.work.minibatch) {
            let chunk = Chunk::new(minibatch.iter().collect(), Minibatch::of(minibatch), &device);
            chunk.learn_policy(&mut policy, loss, 0.0);
            first.get_or_insert(policy.update().unwrap().loss);
        }
        (first.unwrap(), start.elapsed().as_secs_f64())
    }

    fn pair_rows(&self) -> Vec<[(&[u32], &[u32]); 2]> {
        self.work.pairs.iter().map(PairOfResponses::rows).collect()
    }

    /// The loss, and the seconds, of a step of the reward model on all pairs.
    fn reward_step(&self) -> (f64, f64) {
        let pairs = self.pair_rows();
        let rows: Vec<(&[u32], &[u32])> = pairs.iter().flatten().copied().collect();
        let views = Rows::new(&rows, 32).view(&self.reference, &Stop::default()).unwrap();
        let segments: Vec<_> = (rows.iter().zip(&views))
            .map(|(row, view)| self.rewards().reward_segmenter.cut(row.1, &view.entropies).unwrap())
            .collect();
        let device = Device::flex().autodiff();
        let model = scalar_model(&self.folder.join("reward"), &device);
        let mut trainer = Trainer::new("reward", model, &self.optimizer(), 100);
        let start = Instant::now();
        let lengths: Vec<usize> =
            pairs.iter().map(|pair| pair.iter().map(|(p, r)| p.len() + r.len()).sum()).collect();
        trainer.accumulate(shards(&lengths, &device), |model, shard| {
            let share = shard.len() as f64 / pairs.len() as f64;
            let n = shard.len();
            let side = |which: usize| shard.clone().map(move |pair| 2 * pair + which);
            let rows: Vec<Segmented<'_>> =
                side(0).chain(side(1)).map(|i| (rows[i], &segments[i][..])).collect();
            let scores = score_sequences(model, &rows, Aggregation::Average);
            let (chosen, rejected) = (scores.clone().narrow(0, 0, n), scores.narrow(0, n, n));
            (segment_bt_loss(chosen, rejected, None).mul_scalar(share), [])
        });
        let loss = trainer.update().unwrap().loss;
        (loss, start.elapsed().as_secs_f64())
    }
}

/// Operations of the matrix products of an update: forward once and backward twice through the linear maps of policy and
/// critic, and through the policy's head. Attention's are not counted, nor the head's second forward pass.
fn update_operations(bench: &Bench) -> f64 {
    let ModelConfig { hidden_size: d, intermediate_size: f, layers, head_dim, .. } = bench.config;
    let (q, kv) = (bench.config.heads * head_dim, bench.config.kv_heads * head_dim);
    let maps = layers * (d * (2 * q + 2 * kv) + 3 * d * f);
    // The last token of a row predicts nothing, and no value of the state behind it is asked for.
    let read: usize = bench.rows().iter().map(|(p, r)| p.len() + r.len() - 1).sum();
    let predicted: usize = bench.work.responses.iter().map(Vec::len).sum();
    6.0 * (2 * read * maps + predicted * d * bench.config.vocab_size) as f64
}

/// Operations a second of products of 1,024 × 1,024 × 1,024, one on each thread.
fn peak(threads: usize) -> f64 {
    let side: usize = 1024;
    let seconds = (0..4).map(|_| {
        let start = Instant::now();
        side_by_side(vec![(); threads], |()| {
            let a = Tensor::<2>::ones([side, side], &Device::flex());
            for _ in 0..8 {
                let _ = a.clone().matmul(a.clone());
            }
        });
        start.elapsed().as_secs_f64()
    });
    (threads * 8 * 2 * side.pow(3)) as f64 / seconds.fold(f64::INFINITY, f64::min)
}

fn time(folder: &Path, threads: usize, repeats: usize) -> serde_json::Value {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().unwrap();
    let bench = Bench::open(folder);
    let mut phases: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut losses = BTreeMap::new();
    let mut segments: usize = 0;
    for repeat in 0..=repeats {
        let mut note = |phase, seconds: f64| {
            if repeat > 0 {
                phases.entry(phase).or_default().push(seconds);
            }
        };
        let start = Instant::now();
        bench.generate();
        note("generate", start.elapsed().as_secs_f64());
        let start = Instant::now();
        let scores = bench.score();
        note("score", start.elapsed().as_secs_f64());
        let start = Instant::now();
        let samples = bench.assemble(&scores);
        note("assemble", start.elapsed().as_secs_f64());
        segments = samples.iter().map(|sample| sample.segments.len()).sum();
        let (seconds, [policy, value]) = bench.update(&samples);
        note("update", seconds);
        let (reward, seconds) = bench.reward_step();
        note("reward_step", seconds);
        losses.extend([("policy", policy), ("value", value), ("reward", reward)]);
        if bench.work.lora_rank > 0 {
            let (loss, seconds) = bench.lora_update(&samples);
            note("lora_update", seconds);
            losses.insert("lora", loss);
        }
    }
    let work = &bench.work;
    let count = |rows: &[Vec<u32>]| rows.iter().map(Vec::len).sum::<usize>();
    let pairs: usize = bench.pair_rows().iter().flatten().map(|(p, r)| p.len() + r.len()).sum();
    json!({
        "threads": threads,
        "phases": phases,
        "losses": losses,
        "tokens": {
            "prompt": count(&work.prompts), "response": count(&work.responses), "pairs": pairs,
        },
        "parameters": burn::module::Module::num_params(&bench.policy),
        "segments": segments,
        "update_operations": update_operations(&bench),
        "peak": peak(threads),
    })
}
