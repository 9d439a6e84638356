//! Models on disk, in Hugging Face's layout: `config.json` and `model.safetensors`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::layers::named_param;
use super::source::{Init, Source, fresh_values};
use crate::atomic;

/// The file that holds a model's parameters.
pub const WEIGHTS: &str = "model.safetensors";

/// Why a model could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file could not be read.
    #[error(
        "{path}: cannot read: {source}; a model's folder holds config.json and model.safetensors"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error(
        "{path}: cannot write: {source}; free space or mend what the system names, then run the same \
         command again"
    )]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A JSON file is malformed or lacks a key.
    #[error("{path}: not the expected JSON: {source}; give the file that came with the model")]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said, with line and column.
        source: serde_json::Error,
    },
    /// The configuration names something that this decoder does not implement.
    #[error("{path}: unsupported {what}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The option, and what is supported instead.
        what: String,
    },
    /// The file of parameters is no safetensors file.
    #[error(
        "{path}: not a safetensors file, or a truncated one: {detail}; copy the model again, or run the \
         stage again that wrote it"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        detail: String,
    },
    /// The parameters are not those of the architecture.
    #[error("{path}: the tensors are not those of this architecture:{}", problems.iter().map(|p| format!("\n  {p}")).collect::<String>())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// One line for each missing, extra or misshaped tensor.
        problems: Vec<String>,
    },
}

/// Parameters read from a safetensors file; collects everything that does not fit.
pub struct FileSource<'a> {
    path: &'a Path,
    tensors: SafeTensors<'a>,
    device: &'a Device,
    fresh: Option<FreshParam<'a>>,
    used: BTreeSet<String>,
    problems: Vec<String>,
}

/// A parameter that is drawn anew instead of read.
#[derive(Clone, Copy)]
pub struct FreshParam<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it is drawn for: two heads of one run start differently.
    pub purpose: &'a str,
    /// The run's seed.
    pub seed: u64,
}

impl<'a> FileSource<'a> {
    /// A source over `bytes`, the content of the safetensors file `path`, but for the parameter `fresh`.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Format`] when `bytes` are no safetensors file.
    pub fn new(
        path: &'a Path,
        bytes: &'a [u8],
        device: &'a Device,
        fresh: Option<FreshParam<'a>>,
    ) -> Result<Self, CheckpointError> {
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| CheckpointError::Format {
            path: path.to_owned(),
            detail: error.to_string(),
        })?;
        Ok(Self { path, tensors, device, fresh, used: BTreeSet::new(), problems: Vec::new() })
    }

    /// A source for a decoder of this many layers.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Tensors`] when the file has not even a tensor for each.
    pub fn with_layers(self, layers: usize) -> Result<Self, CheckpointError> {
        let tensors = self.tensors.len();
        if layers <= tensors {
            return Ok(self);
        }
        let problem = format!("{tensors} tensors, but config.json says num_hidden_layers {layers}");
        Err(CheckpointError::Tensors { path: self.path.to_owned(), problems: vec![problem] })
    }

    /// Fails if any tensor was missing, misshaped, or left over; those named in `ignored` may be left.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Tensors`] with all of them.
    pub fn finish(mut self, ignored: &[&str]) -> Result<(), CheckpointError> {
        let extra: BTreeSet<&str> = self
            .tensors
            .names()
            .into_iter()
            .filter(|name| !self.used.contains(*name) && !ignored.contains(name))
            .collect();
        self.problems.extend(extra.iter().map(|name| format!("{name}: extra")));
        if self.problems.is_empty() {
            Ok(())
        } else {
            let problems = self.problems;
            Err(CheckpointError::Tensors { path: self.path.to_owned(), problems })
        }
    }
}

impl Source for FileSource<'_> {
    fn values(&mut self, name: &str, shape: &[usize], init: Init) -> Option<Vec<f32>> {
        if let Some(fresh) = self.fresh.filter(|fresh| fresh.name == name) {
            // A shape that the file does not bear out may be of any size.
            let purpose = format!("{} {name}", fresh.purpose);
            let draw = || fresh_values(fresh.seed, &purpose, shape.iter().product(), init);
            return self.problems.is_empty().then(draw);
        }
        self.used.insert(name.to_owned());
        let read = match self.tensors.tensor(name) {
            Err(_) => Err(format!("{name}: missing, expected shape {shape:?}")),
            Ok(view) if view.shape() != shape => {
                Err(format!("{name}: shape {:?}, expected {shape:?}", view.shape()))
            }
            Ok(view) => match to_f32(&view) {
                Err(dtype) => {
                    Err(format!("{name}: unsupported type {dtype:?}, expected F32, F16 or BF16"))
                }
                Ok(values) => match values.iter().find(|value| !value.is_finite()) {
                    Some(value) => Err(format!("{name}: holds {value}, expected finite numbers")),
                    None => Ok(values),
                },
            },
        };
        read.map_err(|problem| self.problems.push(problem)).ok()
    }

    fn device(&self) -> &Device {
        self.device
    }
}

/// The values of a tensor stored as f32, f16 or bf16.
fn to_f32(view: &TensorView<'_>) -> Result<Vec<f32>, Dtype> {
    let dtype = match view.dtype() {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        other => return Err(other),
    };
    let data = TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype);
    Ok(data.iter::<f32>().collect())
}

/// The bytes of `path`.
///
/// # Errors
///
/// [`CheckpointError::Read`].
pub fn read(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    std::fs::read(path).map_err(|source| CheckpointError::Read { path: path.to_owned(), source })
}

/// Every parameter of `module` by its Hugging Face name, as f32.
pub fn parameters<M: Module>(module: &M) -> BTreeMap<String, TensorData> {
    #[derive(Default)]
    struct Collect {
        path: Vec<String>,
        found: BTreeMap<String, TensorData>,
    }
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let data = param.val().into_data().convert::<f32>();
            self.found.insert(self.path.join("."), data);
        }
    }
    let mut collect = Collect::default();
    module.visit(&mut collect);
    collect.found
}

/// `module` with the parameters that [`to_safetensors`] wrote; `path` is what errors call the file.
///
/// # Errors
///
/// [`CheckpointError::Format`] and [`CheckpointError::Tensors`].
pub fn restore<M: Module>(module: M, path: &Path, bytes: &[u8]) -> Result<M, CheckpointError> {
    struct Restore<'a> {
        path: Vec<String>,
        source: FileSource<'a>,
    }
    impl ModuleMapper for Restore<'_> {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (name, old) = (self.path.join("."), param.val());
            match self.source.values(&name, &old.dims(), Init::Ones) {
                Some(values) => {
                    let data = TensorData::new(values, old.dims());
                    named_param(&name, Tensor::from_data(data, &old.device()))
                }
                None => param,
            }
        }
    }
    let unused = Device::default(); // each parameter stays on its own device
    let source = FileSource::new(path, bytes, &unused, None)?;
    let mut restore = Restore { path: Vec::new(), source };
    let module = module.map(&mut restore);
    restore.source.finish(&[])?;
    Ok(module)
}

/// The content of a safetensors file with every parameter of `module`, in f32.
pub fn to_safetensors<M: Module>(module: &M) -> Vec<u8> {
    let parameters = parameters(module);
    let views = parameters.iter().map(|(name, data)| {
        let view = TensorView::new(Dtype::F32, data.shape().to_vec(), data.as_bytes());
        (name.as_str(), view.expect("a tensor's bytes fit its shape"))
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(metadata)).expect("named tensors serialise")
}

/// Writes `config` and the parameters of `module` into the existing folder `dir`.
///
/// # Errors
///
/// [`CheckpointError::Write`].
pub fn save<M: Module>(module: &M, config: &str, dir: &Path) -> Result<(), CheckpointError> {
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        atomic::write_file(&path, bytes).map_err(|source| CheckpointError::Write { path, source })
    };
    write("config.json", config.as_bytes())?;
    write(WEIGHTS, &to_safetensors(module))
}

/// A fingerprint of the parameters of `module`: equal for equal values, whatever the device.
pub fn fingerprint<M: Module>(module: &M) -> String {
    format!("{:016x}", crate::rng::fnv1a(&to_safetensors(module)))
}
