//! LoRA (Hu et al., arXiv 2106.09685): a frozen weight W with a trained product of low rank beside it.
//!
//! ```text
//! y = x Wᵀ + (α / r) (x bᵀ) aᵀ,      a: [outputs, r] from zeros,  b: [r, inputs] from N(0, 1 / (3 inputs))
//! ```
//!
//! The adapters are Burn's [`LoraAdapter`]s, and a model without them is the same module: one frozen base can
//! stand under several models. On disk a trained model is a folder in PEFT's layout, whose `lora_A` is b and
//! whose `lora_B` is a: `adapter_config.json`, which names the folder of the base, `adapter_model.safetensors`,
//! and a copy of `config.json`. PEFT loads it where transformers keeps the projections under the names that we
//! give them (Llama, Mistral, Qwen2, Qwen3); for families that fuse or rename them, such as Phi-3 and Pythia,
//! export the merged model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::{LoraAdapter, Module, Param, Reparameterizer};
use burn::tensor::{DType, Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::checkpoint::{collect, serialize};
use super::config::ModelConfig;
use super::error::CheckpointError;
use super::names::HEAD;
use super::precision::cast;
use super::recompute::is_trained;
use super::source::{Init, Placement, Source, fresh_values, named_param};
use super::weights::{self, FileSource, FreshParam};
use crate::atomic;
use crate::bounds::{Bounds, Limit, Section, section};
use crate::file_error::FileError;
use crate::hub::{self, DEEPEST, has_adapters};

/// The settings of an adapter in PEFT's layout.
pub use crate::hub::ADAPTER_CONFIG;

/// Its parameters.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

/// The projections of a layer that can have an adapter.
pub const PROJECTIONS: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// The target that means all of [`PROJECTIONS`].
pub const ALL_LINEAR: &str = "all-linear";

section! {
    /// The section `[lora]`.
    LoraSettings {
        /// r; 0 trains all weights instead.
        rank: usize = Rank,
        /// α: the adapter counts α / r.
        alpha: f64 = Bounds::Positive,
        /// Which of [`PROJECTIONS`] have adapters, or [`ALL_LINEAR`].
        targets: Vec<String> = KnownTargets,
    }
}

struct Rank;

impl Limit<usize> for Rank {
    fn problem(&self, rank: &usize) -> Option<(String, String)> {
        const LARGEST_RANK: usize = 65_536;
        let expected = format!("expected a whole number from 0 to {LARGEST_RANK}");
        (*rank > LARGEST_RANK).then(|| (String::new(), format!("{rank}; {expected}")))
    }
}

struct KnownTargets;

impl Limit<Vec<String>> for KnownTargets {
    fn problem(&self, targets: &Vec<String>) -> Option<(String, String)> {
        let known = |target: &String| target == ALL_LINEAR || PROJECTIONS.contains(&&**target);
        let problem = match targets.iter().find(|target| !known(target)) {
            Some(target) => format!("{target:?} is none of them"),
            None if targets.is_empty() => "[]".into(),
            None => return None,
        };
        let expected = format!("expected {ALL_LINEAR:?}, or some of {PROJECTIONS:?}");
        Some((String::new(), format!("{problem}; {expected}")))
    }
}

impl LoraSettings {
    fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// Whether the parameter called `name` has an adapter.
    pub(crate) fn adapts(&self, name: &str) -> bool {
        projection(name).is_some_and(|projection| {
            self.targets.iter().any(|target| target == ALL_LINEAR || target == projection)
        })
    }

    /// `model` on `device`, which has autodiff, with fresh adapters drawn for `purpose`; they and a scalar
    /// head are trained, all else is frozen. The tensors of `model` are shared, not copied.
    pub fn attach<M: Module>(&self, model: M, device: &Device, purpose: &str, seed: u64) -> M {
        let draw = |name: &str, shape: [usize; 2], init: Init| {
            let values = fresh_values(seed, &format!("{purpose} {name}"), &shape, init);
            Some(Tensor::from_data(values, (device, DType::F32)))
        };
        model.apply_reparameterization(Attach { settings: self, device, tensors: draw })
    }
}

/// `q_proj` for `model.layers.0.self_attn.q_proj.weight`; nothing for a parameter that is no projection of a
/// layer.
fn projection(name: &str) -> Option<&str> {
    let (path, last) = name.strip_suffix(".weight")?.rsplit_once('.')?;
    (path.starts_with("model.layers.") && PROJECTIONS.contains(&last)).then_some(last)
}

/// Freezes all parameters but a scalar head, and gives each target an adapter of the two `tensors` called
/// `NAME.lora.a` and `NAME.lora.b`.
struct Attach<'a, F> {
    settings: &'a LoraSettings,
    device: &'a Device,
    tensors: F,
}

impl<F> Reparameterizer for Attach<'_, F>
where
    F: FnMut(&str, [usize; 2], Init) -> Option<Tensor<2>>,
{
    type Reparam = LoraAdapter;

    fn reparameterize<const D: usize>(
        &mut self,
        name: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<LoraAdapter>) {
        let param = param.map(|base| onto(base, self.device)).set_require_grad(name == HEAD);
        if !self.settings.adapts(name) {
            return (param, None);
        }
        let [outputs, inputs] = param.base().dims()[..] else { return (param, None) };
        let rank = self.settings.rank;
        let mut tensor = |part: &str, shape, init| {
            let name = format!("{name}.lora.{part}");
            Some(named_param(&name, (self.tensors)(&name, shape, init)?))
        };
        // The variance that PEFT draws with.
        let spread = 1.0 / (3.0 * inputs as f64).sqrt();
        let a = tensor("a", [outputs, rank], Init::Zeros);
        let b = tensor("b", [rank, inputs], Init::Normal(spread));
        let adapter = a.zip(b).map(|(a, b)| LoraAdapter { a, b, scale: self.settings.scale() });
        (param, adapter)
    }
}

/// `x` on `device`, which may have autodiff; the memory is shared.
fn onto<const D: usize>(x: Tensor<D>, device: &Device) -> Tensor<D> {
    match device.gradient_checkpointing_strategy() {
        None => x.without_autodiff(),
        Some(strategy) => x.autodiff().with_gradient_checkpointing_strategy(strategy),
    }
}

/// `adapter_config.json`: what we need of what PEFT writes.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct AdapterConfig {
    peft_type: String,
    #[serde(default)]
    task_type: Option<String>,
    base_model_name_or_path: String,
    r: usize,
    lora_alpha: f64,
    target_modules: Targets,
    #[serde(default)]
    modules_to_save: Option<Vec<String>>,
    #[serde(default = "none")]
    bias: String,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    rank_pattern: BTreeMap<String, usize>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f64>,
}

fn none() -> String {
    "none".into()
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Targets {
    Names(Vec<String>),
    One(String),
}

/// Adapters on disk.
pub struct Adapter {
    dir: PathBuf,
    base: PathBuf,
    settings: LoraSettings,
    bytes: Vec<u8>,
}

impl Adapter {
    /// The adapters in the folder `dir`; none if it holds a whole model.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::File`] and [`CheckpointError::Json`]; [`CheckpointError::Unsupported`] for adapters
    /// of another kind; [`CheckpointError::NoBase`].
    pub fn open(dir: &Path) -> Result<Option<Self>, CheckpointError> {
        let Some((settings, base)) = read_config(dir)? else { return Ok(None) };
        let path = dir.join(ADAPTER_WEIGHTS);
        let bytes = std::fs::read(&path).map_err(FileError::reading(&path))?;
        Ok(Some(Self { dir: dir.to_owned(), base, settings, bytes }))
    }

    /// Whether they were trained over the model in the folder `dir`.
    pub fn stands_on(&self, dir: &Path) -> bool {
        let whole = |path: &Path| path.canonicalize().ok();
        whole(&self.base) == whole(dir)
    }

    fn source(&self, placement: Placement) -> Result<AdapterSource<'_>, CheckpointError> {
        let path = self.dir.join(ADAPTER_WEIGHTS);
        let file = FileSource::from_bytes(&path, &self.bytes, placement)?;
        Ok(AdapterSource { settings: &self.settings, file })
    }

    /// `model`, over the base, with these adapters, frozen. The base's tensors are shared.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Tensors`] when they do not fit.
    pub(super) fn onto<M: Module>(&self, base: M, device: &Device) -> Result<M, CheckpointError> {
        let mut source = self.source(device.into())?;
        let read = |name: &str, shape: [usize; 2], init| {
            Some(Tensor::from_data(source.values(name, &shape, init)?, (device, DType::F32)))
        };
        let settings = &self.settings;
        let model = base.apply_reparameterization(Attach { settings, device, tensors: read });
        source.file.finish(&[&peft_name(HEAD)])?;
        Ok(model)
    }

    /// The scalar head.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Tensors`] when there is none of this width.
    pub(super) fn head(
        &self,
        channels: usize,
        device: &Device,
    ) -> Result<Param<Tensor<2>>, CheckpointError> {
        let mut source = self.source(device.into())?;
        let head = source.values(HEAD, &[1, channels], Init::Zeros);
        let value = match head {
            Some(values) => Tensor::from_data(values, (device, DType::F32)),
            None => return Err(source.file.finish(&[]).expect_err("a tensor is missing")),
        };
        Ok(named_param(HEAD, value))
    }
}

/// The settings of the adapters in `dir` and the folder of their base; none if it holds a whole model.
fn read_config(dir: &Path) -> Result<Option<(LoraSettings, PathBuf)>, CheckpointError> {
    if !has_adapters(dir) {
        return Ok(None);
    }
    let path = dir.join(ADAPTER_CONFIG);
    let text = std::fs::read_to_string(&path).map_err(FileError::reading(&path))?;
    let config: AdapterConfig = serde_json::from_str(&text)
        .map_err(|source| CheckpointError::Json { path: path.clone(), source })?;
    let targets = match config.target_modules {
        Targets::Names(names) => names,
        Targets::One(name) => vec![name],
    };
    let settings = LoraSettings { rank: config.r, alpha: config.lora_alpha, targets };
    let patterns = !config.rank_pattern.is_empty() || !config.alpha_pattern.is_empty();
    let problem = settings.problem().map(|(key, problem)| format!("{key} {problem}"));
    let unsupported = [
        (config.peft_type != "LORA", format!("peft_type {:?}; supported: LORA", config.peft_type)),
        (settings.rank == 0, "r 0; supported: a rank from 1".into()),
        (config.bias != "none", format!("bias {:?}; supported: none", config.bias)),
        (config.fan_in_fan_out, "fan_in_fan_out; supported: weights of [outputs, inputs]".into()),
        (config.use_rslora, "use_rslora; supported: a scale of lora_alpha / r".into()),
        (config.use_dora, "use_dora; supported: plain LoRA".into()),
        (patterns, "rank_pattern or alpha_pattern; supported: one r and one lora_alpha".into()),
        (problem.is_some(), problem.unwrap_or_default()),
    ];
    if let Some((_, what)) = unsupported.into_iter().find(|(refused, _)| *refused) {
        return Err(CheckpointError::Unsupported { path, what });
    }
    let base = hub::base_dir(dir, &config.base_model_name_or_path);
    if !base.join("config.json").exists() && !has_adapters(&base) {
        return Err(CheckpointError::NoBase { path, base });
    }
    Ok(Some((settings, base)))
}

/// One folder of a model: adapters, or the whole model under them.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// The folder.
    pub dir: PathBuf,
    /// What [`ADAPTER_CONFIG`] says besides where the base is; absent for a whole model.
    pub adapter_config: Option<String>,
    /// The files that its parameters are in.
    pub weights: Vec<PathBuf>,
}

/// The parts of the model in `dir`: its adapters from the top down, where it has them, and then the whole model.
pub fn parts(dir: &Path) -> Result<Vec<Part>, CheckpointError> {
    let (mut dir, mut parts) = (dir.to_owned(), Vec::new());
    while let Some((_, base)) = read_config(&dir)? {
        let (adapter_config, weights) =
            (Some(placeless_config(&dir)?), vec![dir.join(ADAPTER_WEIGHTS)]);
        check_depth(parts.len() + 1, &dir)?;
        parts.push(Part { dir, adapter_config, weights });
        dir = base;
    }
    let weights = weights::files(&dir)?;
    parts.push(Part { dir, adapter_config: None, weights });
    Ok(parts)
}

/// [`ADAPTER_CONFIG`] without the path of the base, which may move.
fn placeless_config(dir: &Path) -> Result<String, CheckpointError> {
    let path = dir.join(ADAPTER_CONFIG);
    let text = std::fs::read_to_string(&path).map_err(FileError::reading(&path))?;
    let mut keys: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&text).map_err(|source| CheckpointError::Json { path, source })?;
    keys.remove("base_model_name_or_path");
    Ok(serde_json::Value::Object(keys).to_string())
}

/// Adapters may have adapters as their base, but not in a circle.
fn check_depth(depth: usize, dir: &Path) -> Result<(), CheckpointError> {
    if depth <= DEEPEST {
        return Ok(());
    }
    let what = format!("adapters on adapters, {depth} deep; supported: {DEEPEST}");
    Err(CheckpointError::Unsupported { path: dir.join(ADAPTER_CONFIG), what })
}

/// PEFT's name of the parameter `name`: `lora_B` is a and `lora_A` is b.
fn peft_name(name: &str) -> String {
    let own = match (name.strip_suffix(".weight.lora.a"), name.strip_suffix(".weight.lora.b")) {
        (Some(path), _) => format!("{path}.lora_B.weight"),
        (_, Some(path)) => format!("{path}.lora_A.weight"),
        _ => name.to_owned(),
    };
    format!("base_model.model.{own}")
}

/// The parameters of adapters, by our names.
struct AdapterSource<'a> {
    settings: &'a LoraSettings,
    file: FileSource<'a>,
}

impl AdapterSource<'_> {
    fn values(&mut self, name: &str, shape: &[usize], init: Init) -> Option<TensorData> {
        self.file.values(&peft_name(name), shape, init)
    }

    /// s a b for the parameter called `name`, if it has an adapter.
    fn delta(&mut self, name: &str, [outputs, inputs]: [usize; 2]) -> Option<Tensor<2>> {
        let settings = self.settings;
        if !settings.adapts(name) {
            return None;
        }
        let device = self.file.placement().device.clone();
        let mut tensor = |part: &str, shape: [usize; 2]| {
            let values = self.values(&format!("{name}.lora.{part}"), &shape, Init::Zeros)?;
            Some(Tensor::<2>::from_data(values, (&device, DType::F32)))
        };
        let rank = settings.rank;
        let (a, b) = (tensor("a", [outputs, rank]), tensor("b", [rank, inputs]));
        Some(a?.matmul(b?).mul_scalar(settings.scale()))
    }
}

/// The parameters of the model in a folder, tensor by tensor: with adapters, the base's with s a b added.
pub struct ModelSource<'a> {
    base: FileSource<'a>,
    adapters: Vec<AdapterSource<'a>>,
    fresh_head: bool,
}

/// The chain of adapters in the folder `dir`, the last trained first, and the folder of the
/// whole model below them.
pub fn open(dir: &Path) -> Result<(Vec<Adapter>, PathBuf), CheckpointError> {
    let (mut adapters, mut base) = (Vec::new(), dir.to_owned());
    while let Some(adapter) = Adapter::open(&base)? {
        base = adapter.base.clone();
        adapters.push(adapter);
        check_depth(adapters.len(), dir)?;
    }
    Ok((adapters, base))
}

impl<'a> ModelSource<'a> {
    /// A source over what [`open()`] gave, for a decoder of this many layers, but for the parameter `fresh`.
    pub fn new(
        (adapters, base): &'a (Vec<Adapter>, PathBuf),
        config: &ModelConfig,
        placement: Placement,
        fresh: Option<FreshParam>,
    ) -> Result<Self, CheckpointError> {
        let own = |adapter: &'a Adapter| adapter.source(placement.clone());
        let adapters = adapters.iter().map(own).collect::<Result<_, _>>()?;
        let base = FileSource::open(base, config, placement)?;
        let fresh_head = fresh.is_some();
        Ok(Self { base: base.with_fresh(fresh), adapters, fresh_head })
    }

    /// Fails if any tensor was missing, misshaped, or left over; those named in `ignored` may be left.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Tensors`].
    pub fn finish(self, ignored: &[&str]) -> Result<(), CheckpointError> {
        let mut ignored = ignored.to_vec();
        if !self.adapters.is_empty() {
            ignored.extend(["lm_head.weight", HEAD]); // a scalar model's base is a language model
        }
        let head = peft_name(HEAD);
        self.adapters.into_iter().try_for_each(|adapter| adapter.file.finish(&[&head]))?;
        self.base.finish(&ignored)
    }
}

impl Source for ModelSource<'_> {
    fn values(&mut self, name: &str, shape: &[usize], init: Init) -> Option<TensorData> {
        match self.adapters.first_mut() {
            Some(adapter) if name == HEAD && !self.fresh_head => adapter.values(name, shape, init),
            _ => self.base.values(name, shape, init),
        }
    }

    fn placement(&self) -> &Placement {
        self.base.placement()
    }

    fn param<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
        init: Init,
    ) -> Param<Tensor<D>> {
        let values = self.values(name, &shape, init);
        let Placement { device, dtype } = self.placement().clone();
        let Some(values) = values else {
            return named_param(name, Tensor::zeros([1; D], &device)); // the model is never used
        };
        let dimensions: Option<[usize; 2]> = shape.as_slice().try_into().ok();
        let deltas: Vec<Tensor<2>> = dimensions
            .map(|shape| self.adapters.iter_mut().filter_map(|a| a.delta(name, shape)).collect())
            .unwrap_or_default();
        if deltas.is_empty() {
            return named_param(name, Tensor::from_data(values, (&device, dtype)));
        }
        let base = Tensor::<D>::from_data(values, (&device, DType::F32));
        let merged = deltas.into_iter().fold(base, |sum, delta| sum.add(delta.reshape(shape)));
        named_param(name, cast(merged, dtype))
    }
}

/// Writes the adapters of `model` into the existing folder `dir`: what was trained, and `config`, the
/// `config.json` of the model that they make of the one in the folder `base`.
///
/// # Errors
///
/// [`CheckpointError::File`]; [`CheckpointError::File`] when `base` is not there.
pub fn save<M: Module>(
    model: &M,
    settings: &LoraSettings,
    base: &Path,
    config: &str,
    dir: &Path,
) -> Result<(), CheckpointError> {
    let trained = collect(model, |name| is_trained(true, name));
    let adapted = |projection: &&&str| {
        let part = format!(".{projection}.weight.lora.");
        trained.keys().any(|name| name.contains(&part))
    };
    let targets = PROJECTIONS.iter().filter(adapted).map(|name| (*name).to_owned()).collect();
    let head = trained.contains_key(HEAD);
    let base = base.canonicalize().map_err(FileError::reading(base))?;
    let adapter = AdapterConfig {
        peft_type: "LORA".into(),
        task_type: Some(if head { "SEQ_CLS" } else { "CAUSAL_LM" }.into()),
        base_model_name_or_path: base.to_string_lossy().into_owned(),
        r: settings.rank,
        lora_alpha: settings.alpha,
        target_modules: Targets::Names(targets),
        modules_to_save: head.then(|| vec!["score".into()]),
        bias: none(),
        fan_in_fan_out: false,
        use_rslora: false,
        use_dora: false,
        rank_pattern: BTreeMap::new(),
        alpha_pattern: BTreeMap::new(),
    };
    let adapter = serde_json::to_vec_pretty(&adapter).expect("a plain struct serialises");
    let named = trained.into_iter().map(|(name, data)| (peft_name(&name), data)).collect();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        atomic::write_file(&path, bytes).map_err(FileError::writing(&path))
    };
    write("config.json", config.as_bytes())?;
    write(ADAPTER_CONFIG, &adapter)?;
    Ok(write(ADAPTER_WEIGHTS, &serialize(&named))?)
}
