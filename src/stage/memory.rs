//! How much memory a stage will need, estimated before it runs.
//!
//! It counts weights, gradients, moments, caches, and the tensors that a forward pass keeps for
//! the backward pass. The counts are for the CPU backend, where
//! `cargo test --release --test cli -- --ignored --nocapture memory` compares them with measured peaks of models
//! of three sizes.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

use crate::data::letters;
use crate::device::{Checkpointing, DeviceName, Precision};
use crate::model::ModelConfig;
use crate::model::generate::PREFILL;
use crate::ranks;
use crate::run::folder::is_finished;
use crate::run::memory::{Advice, Bytes, MemoryError, Need};
use crate::run::{Context, Error, Stage};
use crate::settings::Settings;

/// Bytes of a number that is trained, and of every number on the host.
const WIDE: f64 = 4.0;
/// The program with its tokenizer, and what the allocator keeps of what was freed.
const PROGRAM: f64 = 50e6;

/// Prints what memory a stage on a user's data will need, unless its folder `dir` holds its result: `need` of an
/// estimator and the longest prompt and response, if `longest` knows them.
pub fn announce(
    context: &Context,
    dir: &Path,
    config: &ModelConfig,
    longest: Option<(usize, usize)>,
    need: impl Fn(Estimator<'_>, Lengths) -> Need,
) -> Result<(), MemoryError> {
    let Some((prompt, response)) = longest else { return Ok(()) };
    if is_finished(dir) {
        return Ok(());
    }
    let lengths = Lengths { prompt, response };
    let with = |settings: &Settings| {
        let estimator = Estimator::new(settings, config, context.device_name).over(ranks::size());
        need(estimator, lengths.within(settings))
    };
    let need = with(&context.settings);
    context.progress.line(&need.to_string());
    // Ranks on one machine share its memory; each has a GPU of its own.
    let sharing = if context.device_name == DeviceName::Flex { ranks::neighbours() } else { 1 };
    match context.device_id().free_memory().map(|free| free as f64 / sharing as f64) {
        Some(free) if free < need.total() => {
            let advice = advise(&context.settings, free, |other| with(other).total());
            Err(MemoryError { need, available: Bytes(free), advice })
        }
        _ => Ok(()),
    }
}

/// What `run` gives. Where the device runs out of memory, which Burn tells by a panic, it is an error that says what the
/// stage needs and what to lower; checkpoints appear whole or not at all, so what is saved is intact.
///
/// # Errors
///
/// Those of `run`, and [`Error::OutOfMemory`].
pub fn guard<T>(
    context: &Context,
    stage: Stage,
    run: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    match panic::catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result,
        Err(panic) if text(&*panic).is_some_and(is_exhaustion) => Err(exhausted(context, stage)),
        Err(panic) => panic::resume_unwind(panic),
    }
}

/// Keeps the panics that [`guard`] turns into errors from being printed, in a program.
pub fn hide_exhaustion() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !info.payload_as_str().is_some_and(is_exhaustion) {
            before(info);
        }
    }));
}

fn text(panic: &(dyn Any + Send)) -> Option<&str> {
    panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied())
}

/// Whether Burn's GPU backends say by a panic of this text that an allocation failed.
fn is_exhaustion(panic: &str) -> bool {
    ["out of device memory", "out-of-memory error", "can't allocate buffer of size"]
        .iter()
        .any(|said| panic.contains(said))
}

/// What a stage needs for rows as long as the settings allow, and what brings it down by a third.
fn exhausted(context: &Context, stage: Stage) -> Error {
    let settings = &context.settings;
    let config = context.reference_dir().ok().and_then(|dir| ModelConfig::from_dir(&dir).ok());
    let own = || {
        let positions = settings.sampling.prompt_tokens + settings.sampling.max_new_tokens;
        settings.model.config(letters::vocabulary().len(), positions)
    };
    let config = config.unwrap_or_else(own);
    let with = |settings: &Settings| {
        let needs =
            Estimator::new(settings, &config, context.device_name).over(ranks::size()).stages();
        let own = needs.iter().find(|need| need.stage == stage.command());
        // Preferences are sampled as an evaluation samples.
        let parts = own.or(needs.last()).map(|need| need.parts.clone()).unwrap_or_default();
        Need { stage: stage.command(), parts }
    };
    let need = with(settings);
    let advice = advise(settings, need.total() / 1.5, |other| with(other).total());
    Error::OutOfMemory { need, advice, saved_in: context.dir(stage) }
}

/// The settings that bring `need`, in bytes, down to `available`: first those that cost time alone, then precision,
/// then adapters instead of all weights, at last shorter rows; none that can be spared. All of them where they do
/// not suffice.
pub fn advise(settings: &Settings, available: f64, need: impl Fn(&Settings) -> f64) -> Advice {
    let steps = relief(settings);
    let with = |taken: &[usize]| {
        let mut changed = settings.clone();
        for (key, value) in taken.iter().flat_map(|&step| &steps[step]) {
            let change = format!("{key} = {value}").parse().expect("a key and a value");
            changed = changed.with("memory", &change).expect("relief stays in range");
        }
        need(&changed)
    };
    let mut taken: Vec<usize> = Vec::new();
    for step in 0..steps.len() {
        if with(&taken) <= available {
            break;
        }
        taken.push(step);
    }
    let fits = with(&taken) <= available;
    if fits {
        for step in taken.clone() {
            let fewer: Vec<usize> = taken.iter().copied().filter(|&s| s != step).collect();
            if with(&fewer) <= available {
                taken = fewer;
            }
        }
    }
    // A later step may set a key of an earlier one again.
    let mut sets: Vec<(&str, &toml::Value)> = Vec::new();
    for (key, value) in taken.iter().flat_map(|&step| &steps[step]) {
        sets.retain(|(other, _)| other != key);
        sets.push((key, value));
    }
    let text = |value: &toml::Value| value.as_str().map_or(value.to_string(), str::to_owned);
    let sets = sets.into_iter().map(|(key, value)| format!("{key}={}", text(value))).collect();
    Advice { sets, need: with(&taken), fits }
}

/// Settings that lower a need, step by step: first what only costs time, then precision, then adapters instead of all
/// weights, last shorter rows. A step holds only what these settings do not have yet.
fn relief(settings: &Settings) -> Vec<Vec<(&'static str, toml::Value)>> {
    let Settings { sft, reward, ppo, dpo, sampling, precision, lora, data, .. } = settings;
    let lower = |counts: &[(&'static str, usize, usize)]| -> Vec<(&'static str, toml::Value)> {
        let above = counts.iter().filter(|(_, now, to)| now > to);
        above.map(|&(key, _, to)| (key, (to as i64).into())).collect()
    };
    let choose = |key: &'static str, value: toml::Value, now: bool| -> Vec<_> {
        if now { Vec::new() } else { vec![(key, value)] }
    };
    let tokens = |tokens: usize| {
        lower(&[
            ("data.prompt_tokens", data.prompt_tokens, tokens),
            ("data.response_tokens", data.response_tokens, tokens),
            ("data.total_tokens", data.total_tokens, 2 * tokens),
            ("sampling.prompt_tokens", sampling.prompt_tokens, tokens),
            ("sampling.max_new_tokens", sampling.max_new_tokens, tokens),
        ])
    };
    let layers = precision.checkpointing == Checkpointing::Layers;
    let steps = vec![
        lower(&[("sft.rows_at_once", sft.rows_at_once, 1)]),
        lower(&[("reward.rows_at_once", reward.rows_at_once, 1)]),
        lower(&[("ppo.rows_at_once", ppo.rows_at_once, 1)]),
        lower(&[("dpo.rows_at_once", dpo.rows_at_once, 1)]),
        lower(&[("sampling.rows_at_once", sampling.rows_at_once, 8)]),
        choose("precision.checkpointing", "layers".into(), layers),
        choose("precision.compute", "bf16".into(), precision.compute == Precision::Bf16),
        choose("lora.rank", 8.into(), lora.rank > 0),
        tokens(1024),
        tokens(512),
        tokens(256),
        lower(&[("sampling.rows_at_once", sampling.rows_at_once, 1)]),
    ];
    steps.into_iter().filter(|step| !step.is_empty()).collect()
}

/// The longest rows that a stage will meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    pub prompt: usize,
    pub response: usize,
}

impl Lengths {
    /// What is left of them where both the data's limits and those of sampling are lowered to what `settings` say.
    pub fn within(self, settings: &Settings) -> Self {
        let Settings { data, sampling, .. } = settings;
        Self {
            prompt: self.prompt.min(data.prompt_tokens.max(sampling.prompt_tokens)),
            response: self.response.min(data.response_tokens.max(sampling.max_new_tokens)),
        }
    }
}

/// What a decoder carries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Model {
    /// A table of logits.
    Language,
    /// One score.
    Scalar,
}

/// What the estimates are made of.
pub struct Estimator<'a> {
    settings: &'a Settings,
    config: &'a ModelConfig,
    device: DeviceName,
    ranks: usize,
}

impl<'a> Estimator<'a> {
    /// For a run with these settings on a model of this shape.
    pub fn new(settings: &'a Settings, config: &'a ModelConfig, device: DeviceName) -> Self {
        Self { settings, config, device, ranks: 1 }
    }

    /// The same, of each of so many ranks.
    #[must_use]
    pub fn over(self, ranks: usize) -> Self {
        Self { ranks, ..self }
    }

    /// A rank's part of rows that are read at once.
    fn own(&self, rows: usize) -> usize {
        rows.div_ceil(self.ranks)
    }

    /// Every stage, for rows as long as the settings allow.
    pub fn stages(&self) -> Vec<Need> {
        let Settings { data, sampling, .. } = self.settings;
        let response = data.response_tokens.min(data.total_tokens - 1);
        let prompt = data.prompt_tokens.min(data.total_tokens - response);
        let pairs = Lengths { prompt, response };
        let rollouts =
            Lengths { prompt: sampling.prompt_tokens, response: sampling.max_new_tokens };
        let mut stages = vec![self.sft(pairs)];
        if !self.settings.has_verdict() {
            stages.push(self.train_reward(pairs));
        }
        let (writes, weights) = (self.settings.reference_writes(), self.settings.weights());
        let reads_rewards = weights.is_none_or(|weights| weights.reads_rewards());
        if !self.settings.has_verdict() && !writes && reads_rewards {
            stages.push(self.fit_normalizer(pairs));
        }
        if !writes {
            stages.push(if weights.is_some() { self.dpo(pairs) } else { self.ppo(rollouts) });
        }
        stages.push(self.evaluate(rollouts));
        stages
    }

    /// `sft`.
    pub fn sft(&self, lengths: Lengths) -> Need {
        let sft = &self.settings.sft;
        let mut parts = self.training_state(&[Model::Language], true);
        parts.push(("frozen weights", self.base()));
        let rows = self.own(sft.rows_at_once.min(sft.batch));
        parts.push(("activations", self.training(rows, lengths, Model::Language)));
        self.need("sft", parts)
    }

    /// `train-reward`: two rows a pair.
    pub fn train_reward(&self, lengths: Lengths) -> Need {
        let reward = &self.settings.reward;
        let rows = 2 * self.own(reward.rows_at_once.min(reward.batch));
        let mut training = self.training_state(&[Model::Scalar], true);
        training.push(("frozen weights", self.base()));
        training.push(("activations", self.training(rows, lengths, Model::Scalar)));
        // The reference cuts the responses before the training starts.
        let cutting = vec![
            ("frozen weights", self.frozen(Model::Language)),
            ("activations", self.reading(rows, lengths)),
        ];
        self.most("train-reward", [training, cutting])
    }

    /// `fit-normalizer`.
    pub fn fit_normalizer(&self, lengths: Lengths) -> Need {
        let rows = self.own(2 * self.settings.reward.rows_at_once);
        let parts =
            vec![("frozen weights", self.scoring()), ("activations", self.reading(rows, lengths))];
        self.need("fit-normalizer", parts)
    }

    /// `ppo`: policy, critic if there is one, reference and reward model.
    pub fn ppo(&self, lengths: Lengths) -> Need {
        let ppo = &self.settings.ppo;
        let models: &[Model] = match self.settings.method.0.critic {
            true => &[Model::Language, Model::Scalar],
            false => &[Model::Language],
        };
        let rows = self.own(ppo.rows_at_once.min(ppo.minibatch));
        let training = models.iter().map(|&model| self.training(rows, lengths, model));
        let mut update = self.training_state(models, true);
        update.push(("frozen weights", self.scoring()));
        update.push(("activations", training.fold(0.0, f64::max)));
        // For rollouts, what is trained is cast once, where it is computed in another type.
        let cast = match self.lora() || self.compute() == WIDE {
            true => 0.0,
            false => models.iter().map(|&model| self.frozen(model)).sum(),
        };
        let mut rollout = self.training_state(models, false);
        rollout.push(("frozen weights", self.scoring() + cast));
        let reading = self.reading(self.own(ppo.rows_at_once), lengths);
        rollout.push(("activations", self.generation(lengths).max(reading)));
        self.most("ppo", [update, rollout])
    }

    /// `dpo`: policy and reference, and a reward model if the method reads one; two rows a pair.
    pub fn dpo(&self, lengths: Lengths) -> Need {
        let dpo = &self.settings.dpo;
        let rows = 2 * self.own(dpo.rows_at_once.min(dpo.batch));
        let rewarded = self.settings.weights().is_some_and(|weights| weights.reads_rewards());
        let frozen = if rewarded { self.scoring() } else { self.frozen(Model::Language) };
        let activations = self.training(rows, lengths, Model::Language);
        let mut parts = self.training_state(&[Model::Language], true);
        parts.push(("frozen weights", frozen));
        parts.push(("activations", activations.max(self.reading(rows, lengths))));
        self.need("dpo", parts)
    }

    /// `evaluate`: policy, unless the reference writes, reference and reward model.
    pub fn evaluate(&self, lengths: Lengths) -> Need {
        let policy = match self.settings.reference_writes() {
            true => 0.0,
            false => self.beside_reference(Model::Language),
        };
        let reading = self.reading(self.own(self.settings.ppo.rows_at_once), lengths);
        let parts = vec![
            ("frozen weights", policy + self.scoring()),
            ("activations", self.generation(lengths).max(reading)),
        ];
        self.need("evaluate", parts)
    }

    /// Reference and reward model, if there is one.
    fn scoring(&self) -> f64 {
        let reward_model = match self.settings.has_verdict() {
            true => 0.0,
            false => self.beside_reference(Model::Scalar),
        };
        self.frozen(Model::Language) + reward_model
    }

    /// What adapters are trained over.
    fn base(&self) -> f64 {
        if self.lora() { self.frozen(Model::Language) } else { 0.0 }
    }

    fn need(&self, stage: &'static str, mut parts: Vec<(&'static str, f64)>) -> Need {
        parts.push(("program", PROGRAM));
        Need { stage, parts }
    }

    /// The phase that needs most.
    fn most<const N: usize>(
        &self,
        stage: &'static str,
        phases: [Vec<(&'static str, f64)>; N],
    ) -> Need {
        let total = |parts: &Vec<(&str, f64)>| parts.iter().map(|(_, bytes)| bytes).sum::<f64>();
        self.need(
            stage,
            phases.into_iter().max_by(|a, b| total(a).total_cmp(&total(b))).unwrap_or_default(),
        )
    }

    fn lora(&self) -> bool {
        self.settings.lora.rank > 0
    }

    /// Bytes of an activation.
    fn compute(&self) -> f64 {
        self.settings.precision.compute.dtype().size() as f64
    }

    /// Numbers of a language model, or of a scalar model: it has no table of logits.
    fn numbers(&self, model: Model) -> f64 {
        let all = self.config.parameters() as f64;
        let table = self.config.vocab_size as f64 * self.config.hidden_size as f64;
        match model {
            Model::Scalar if !self.config.tie_word_embeddings => all - table,
            _ => all,
        }
    }

    /// Bytes of a model that is not trained.
    fn frozen(&self, model: Model) -> f64 {
        self.compute() * self.numbers(model)
    }

    /// Bytes of the models that are kept beside the reference, frozen: adapters share its weights.
    fn beside_reference(&self, model: Model) -> f64 {
        if self.lora() { 0.0 } else { self.frozen(model) }
    }

    /// Bytes of what is trained of a model.
    fn trained(&self, model: Model) -> f64 {
        if !self.lora() {
            return WIDE * self.numbers(model);
        }
        let lora = &self.settings.lora;
        let [d, f, q, kv] = self.widths();
        let shapes = [
            ("q_proj", d, q),
            ("k_proj", d, kv),
            ("v_proj", d, kv),
            ("o_proj", q, d),
            ("gate_proj", d, f),
            ("up_proj", d, f),
            ("down_proj", f, d),
        ];
        let adapted = shapes
            .iter()
            .filter(|(name, ..)| lora.adapts(&format!("model.layers.0.{name}.weight")))
            .map(|(_, inputs, outputs)| inputs + outputs);
        WIDE * lora.rank as f64 * self.config.layers as f64 * adapted.sum::<f64>()
    }

    /// What the models under training hold through a step: a gradient for each, and one more while that of a
    /// further chunk of the minibatch is added. Of several ranks, each keeps the moments of its share of the parameters alone,
    /// and on the CPU their gradients; what ranks send each other is on the host.
    fn training_state(&self, models: &[Model], gradients: bool) -> Vec<(&'static str, f64)> {
        let all: f64 = models.iter().map(|&model| self.trained(model)).sum();
        let mut largest = models.iter().map(|&model| self.trained(model)).fold(0.0, f64::max);
        if self.packs() {
            largest *= 2.0; // what autodiff holds of a shard's, beside their sum
        }
        let share = all / self.ranks as f64;
        // On the CPU, what is sent and what is received are beside them.
        let (sum, exchange) = match self.packs() {
            true if self.ranks > 1 => (share, 2.0 * largest),
            _ => (all, 0.0),
        };
        vec![
            ("trained weights", all),
            ("optimizer", 2.0 * share),
            ("gradients", if gradients { sum + largest + exchange } else { 0.0 }),
        ]
    }

    /// Widths of the residual stream, the MLP, all query heads and all key heads.
    fn widths(&self) -> [f64; 4] {
        let c = self.config;
        [c.hidden_size, c.intermediate_size, c.heads * c.head_dim, c.kv_heads * c.head_dim]
            .map(|n| n as f64)
    }

    /// Bytes that the forward pass of a layer over some columns, which see so many keys, keeps for the backward pass.
    /// Norms and attention are computed in 32 bits whatever the type of the rest.
    fn layer(&self, rows: f64, columns: f64, keys: f64) -> f64 {
        let [d, f, q, kv] = self.widths();
        if self.packs() {
            // Twice the residual stream, and it normalized; queries, keys, values, and what attention gives; gate, the
            // other half, and the product of both. Scores are made again in the backward pass.
            let mut wide = 4.0 * d + 2.0 * q + 2.0 * kv;
            let mut narrow = if self.config.family.has_gate() { 3.0 * f } else { 2.0 * f };
            if self.compute() < WIDE {
                // Norms and the gate are single operations there, and attention reads copies.
                wide += 4.0 * d;
                narrow += q + 2.0 * kv + if self.config.family.has_gate() { 2.0 * f } else { f };
            }
            return rows * columns * (WIDE * wide + self.compute() * narrow);
        }
        // Twice the residual stream, it normalized, and scaled; queries, keys, values, and what attention gives.
        let wide = 6.0 * d + 4.0 * q;
        // Gate, its sigmoid and its product, the other half, and the product of both.
        let narrow = if self.config.family.has_gate() { 5.0 * f } else { 3.0 * f };
        // Attention's scores, scaled, masked, and as probabilities.
        let scores = 3.0 * self.config.heads as f64 * keys;
        rows * columns * (WIDE * (wide + scores) + self.compute() * narrow)
    }

    /// Whether the loops over packed rows serve the device: the CPU.
    fn packs(&self) -> bool {
        self.device == DeviceName::Flex
    }

    /// Bytes of activations at the start of a backward pass.
    fn training(&self, rows: usize, lengths: Lengths, model: Model) -> f64 {
        let (rows, columns) = (rows as f64, (lengths.prompt + lengths.response) as f64);
        let layers = self.config.layers as f64;
        let layer = self.layer(rows, columns, columns);
        let kept = match self.settings.precision.checkpointing {
            Checkpointing::Layers => {
                layers * rows * columns * self.config.hidden_size as f64 * self.compute() + layer
            }
            Checkpointing::None | Checkpointing::Operations => layers * layer,
        };
        // Weights trained in f32 are cast for every pass.
        let cast = match self.lora() || self.compute() == WIDE {
            true => 0.0,
            false => self.frozen(model),
        };
        let head = match model {
            Model::Language => self.head(rows, lengths, 5.0),
            Model::Scalar => 0.0,
        };
        // One layer's gradients.
        let slopes = if self.packs() { layer } else { 0.0 };
        kept + cast + head + slopes + self.copy()
    }

    /// Bytes of activations where nothing is kept: one layer, or the head.
    fn reading(&self, rows: usize, lengths: Lengths) -> f64 {
        let (rows, columns) = (rows as f64, (lengths.prompt + lengths.response) as f64);
        self.layer(rows, columns, columns).max(self.head(rows, lengths, 4.0)) + self.copy()
    }

    /// The CPU multiplies in 32 bits, and makes a copy of the largest matrix for that.
    fn copy(&self) -> f64 {
        if self.device != DeviceName::Flex || self.compute() == WIDE {
            return 0.0;
        }
        let [d, f, q, _] = self.widths();
        WIDE * d * f.max(q).max(self.config.vocab_size as f64)
    }

    /// Bytes that a language model's head takes: `copies` of the logits of all response tokens. Reading makes four: they,
    /// their log-probabilities, and two while entropies are made of these; training five, with the slopes. On the CPU in
    /// 32 bits the logits of some tokens alone are in memory, beside the hidden states that they are made of.
    fn head(&self, rows: f64, lengths: Lengths, copies: f64) -> f64 {
        let (tokens, vocabulary) = (rows * lengths.response as f64, self.config.vocab_size as f64);
        if self.packs() && self.compute() == WIDE {
            let some = (f64::from(1 << 18) / vocabulary).max(64.0).min(tokens);
            return WIDE * (some * vocabulary + 2.0 * tokens * self.config.hidden_size as f64);
        }
        let copies = if self.packs() { copies + 2.0 } else { copies };
        copies * WIDE * tokens * vocabulary
    }

    /// The cache of a batch under generation, the keys and values that one layer reads of it, and the last pass over
    /// the prompts.
    fn generation(&self, lengths: Lengths) -> f64 {
        let sampling = &self.settings.sampling;
        let (rows, prompt) = (self.own(sampling.rows_at_once) as f64, lengths.prompt as f64);
        let columns = prompt + sampling.max_new_tokens as f64;
        let [_, _, q, kv] = self.widths();
        let cache = 2.0 * self.config.layers as f64 * rows * columns * kv * self.compute();
        let logits = 2.0 * WIDE * rows * self.config.vocab_size as f64;
        let piece = prompt.min(PREFILL as f64);
        if self.packs() {
            // Keys and values in 32 bits, and the weights laid out for few rows.
            let cache = cache / self.compute() * WIDE;
            let weights = self.frozen(Model::Language);
            return cache + weights + logits.max(self.layer(rows, piece, prompt)) + self.copy();
        }
        let read = 2.0 * rows * columns * (kv + q) * self.compute();
        cache + (read + logits).max(self.layer(rows, piece, prompt)) + self.copy()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shape of Phi-3-mini.
    fn phi3_mini() -> ModelConfig {
        ModelConfig {
            vocab_size: 32064,
            hidden_size: 3072,
            intermediate_size: 8192,
            layers: 32,
            heads: 32,
            kv_heads: 32,
            head_dim: 96,
            ..ModelConfig::default()
        }
    }

    fn most(settings: &Settings) -> f64 {
        let config = phi3_mini();
        let stages = Estimator::new(settings, &config, DeviceName::Cuda).stages();
        stages.iter().map(Need::total).fold(0.0, f64::max)
    }

    #[test]
    fn a_device_out_of_memory_says_what_is_needed_and_what_to_lower() {
        let run = tempfile::tempdir().unwrap();
        let context =
            Context::new(Settings::defaults(), DeviceName::Flex, run.path().to_owned()).unwrap();
        // As cubecl and Burn word it.
        for said in [
            "Error while reading data: out of device memory allocating 4096 bytes",
            "An out-of-memory error happened during launch",
            "can't allocate buffer of size: 4096",
        ] {
            for stage in Stage::ALL {
                let failed = guard::<()>(&context, stage, || panic!("{said}")).unwrap_err();
                let text = failed.to_string();
                let start =
                    format!("the device ran out of memory: {} needs about", stage.command());
                assert!(text.starts_with(&start), "{text}");
                assert!(text.contains("; it takes ") && text.contains(" --set "), "{text}");
                assert!(text.contains(&context.dir(stage).display().to_string()), "{text}");
            }
        }
        assert_eq!(guard(&context, Stage::Sft, || Ok(3)).unwrap(), 3);
        let other = panic::catch_unwind(AssertUnwindSafe(|| {
            guard::<()>(&context, Stage::Sft, || panic!("index out of bounds"))
        }));
        assert_eq!(text(&*other.unwrap_err()), Some("index out of bounds"));
    }

    #[test]
    fn the_sum_of_nothing_is_no_less_than_nothing() {
        let need = Need { stage: "sft", parts: Vec::new() };
        assert_eq!(Bytes(need.part("frozen weights")).to_string(), "0 MB");
        assert_eq!(Bytes(0.5e9).to_string(), "500 MB");
    }

    #[test]
    fn advice_fits_and_takes_what_it_says() {
        let defaults = Settings::defaults();
        for gigabytes in [400.0, 200.0, 80.0, 40.0, 24.0, 16.0] {
            let advice = advise(&defaults, 1e9 * gigabytes, most);
            let settings = Settings::resolve(&[], &advice.sets).unwrap();
            assert_eq!(most(&settings), advice.need, "{advice}");
            assert!(advice.fits && advice.need <= 1e9 * gigabytes, "{gigabytes}: {advice}");
            // Each setting is needed.
            for spared in &advice.sets {
                let fewer: Vec<String> =
                    advice.sets.iter().filter(|set| *set != spared).cloned().collect();
                let fewer = Settings::resolve(&[], &fewer).map(|settings| most(&settings));
                let group = spared.starts_with("data.") || spared.starts_with("sampling.");
                assert!(group || fewer.unwrap() > 1e9 * gigabytes, "{gigabytes}: {spared}");
            }
        }
    }

    #[test]
    fn advice_takes_what_costs_time_alone_before_what_changes_results() {
        let defaults = Settings::defaults();
        let enough = advise(&defaults, most(&defaults), most);
        assert!(enough.fits && enough.sets.is_empty(), "{enough}");
        let large = advise(&defaults, 1e9 * 300.0, most);
        assert!(
            large
                .sets
                .iter()
                .all(|set| set.contains("rows_at_once") || set.contains("checkpointing")),
            "{large}"
        );
        let small = advise(&defaults, 1e9 * 24.0, most);
        assert!(small.sets.contains(&"lora.rank=8".to_owned()), "{small}");
        let none = advise(&defaults, 1e9, most);
        assert!(!none.fits && none.need > 1e9, "{none}");
        assert!(none.to_string().ends_with(": take a smaller model or more memory"), "{none}");
    }
}
