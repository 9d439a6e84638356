//! Models on disk, in Hugging Face's layout: `config.json` and `model.safetensors`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};
use safetensors::tensor::{Dtype, TensorView};

use super::layers::named_param;
use super::lora::{is_adapted, is_trained};
use super::source::{Init, Placement, Source};
use super::weights::{FileSource, WEIGHTS};
use crate::atomic;

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
    /// Adapters name a base that is not there.
    #[error(
        "{path}: base_model_name_or_path names {base}, which holds no model; put the folder of the base \
         there, or its place here"
    )]
    NoBase {
        /// The file.
        path: PathBuf,
        /// The folder that it names.
        base: PathBuf,
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

/// Every parameter of `module` by its Hugging Face name, as f32.
pub fn parameters<M: Module>(module: &M) -> BTreeMap<String, TensorData> {
    collect(module, |_| true)
}

/// The same of those whose names `keep` holds for.
pub(super) fn collect<M: Module>(
    module: &M,
    keep: impl Fn(&str) -> bool,
) -> BTreeMap<String, TensorData> {
    struct Collect<F> {
        keep: F,
        path: Vec<String>,
        found: BTreeMap<String, TensorData>,
    }
    impl<F: Fn(&str) -> bool> ModuleVisitor for Collect<F> {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let name = self.path.join(".");
            if (self.keep)(&name) {
                self.found.insert(name, param.val().into_data().convert::<f32>());
            }
        }
    }
    let mut collect = Collect { keep, path: Vec::new(), found: BTreeMap::new() };
    module.visit(&mut collect);
    collect.found
}

/// `module` with the parameters in the safetensors file `path`, which [`trained_to_safetensors`] gave.
///
/// # Errors
///
/// [`CheckpointError::Read`], [`CheckpointError::Format`] and [`CheckpointError::Tensors`].
pub fn restore<M: Module>(module: M, path: &Path) -> Result<M, CheckpointError> {
    struct Restore {
        adapted: bool,
        path: Vec<String>,
        source: FileSource<'static>,
    }
    impl ModuleMapper for Restore {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (name, old) = (self.path.join("."), param.val());
            if !is_trained(self.adapted, &name) {
                return param;
            }
            match self.source.values(&name, &old.dims(), Init::Ones) {
                Some(data) => {
                    named_param(&name, Tensor::from_data(data, (&old.device(), old.dtype())))
                }
                None => param,
            }
        }
    }
    let unused = Placement::from(&Device::default()); // each parameter stays on its own device
    let source = FileSource::of_file(path, unused)?;
    let mut restore = Restore { adapted: is_adapted(&module), path: Vec::new(), source };
    let module = module.map(&mut restore);
    restore.source.finish(&[])?;
    Ok(module)
}

/// The content of a safetensors file with every parameter of `module`, in f32.
pub fn to_safetensors<M: Module>(module: &M) -> Vec<u8> {
    serialize(&parameters(module))
}

/// The same of the parameters that training changes: of a model with adapters, these and the scalar head.
pub fn trained_to_safetensors<M: Module>(module: &M) -> Vec<u8> {
    let adapted = is_adapted(module);
    serialize(&collect(module, |name| is_trained(adapted, name)))
}

pub(super) fn serialize(parameters: &BTreeMap<String, TensorData>) -> Vec<u8> {
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
