//! Models on disk, in the layout that Hugging Face's files have for their family: `config.json` and
//! `model.safetensors`.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::Path;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use safetensors::tensor::{Dtype, Metadata, TensorInfo, TensorView};
use serde_json::json;

use super::config::ModelConfig;
use super::config_json::Head;
use super::error::CheckpointError;
use super::names::{Layout, Place};
use super::recompute::{is_adapted, is_trained};
use super::source::{Init, Placement, Source, named_param};
use super::weights::{FileSource, INDEX, WEIGHTS};
use crate::atomic;
use crate::file_error::FileError;

/// Every parameter of `module` by its name, as f32.
pub fn parameters<M: Module>(module: &M) -> BTreeMap<String, TensorData> {
    collect(module, |_| true)
}

/// Parameters whose names satisfy `keep`, as f32.
pub(super) fn collect<M: Module>(
    module: &M,
    keep: impl Fn(&str) -> bool,
) -> BTreeMap<String, TensorData> {
    // A copy: on WGPU what is read may lie in memory that the device writes again (Burn 0.22.1).
    let copy = |data: TensorData| {
        TensorData::from_bytes_vec(data.as_bytes().to_vec(), data.shape().clone(), DType::F32)
    };
    let f32 =
        |(name, parameter): (String, Parameter)| (name, copy((parameter.data)().convert::<f32>()));
    collect_lazily(module, keep).into_iter().map(f32).collect()
}

/// A parameter that is fetched from its device when it is needed.
struct Parameter {
    shape: Vec<usize>,
    dtype: DType,
    data: Box<dyn Fn() -> TensorData>,
}

fn collect_lazily<M: Module>(
    module: &M,
    keep: impl Fn(&str) -> bool,
) -> BTreeMap<String, Parameter> {
    struct Collect<F> {
        keep: F,
        path: Vec<String>,
        found: BTreeMap<String, Parameter>,
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
            if !(self.keep)(&name) {
                return;
            }
            let value = param.val();
            let (shape, dtype) = (value.dims().to_vec(), value.dtype());
            let data = Box::new(move || value.clone().into_data());
            self.found.insert(name, Parameter { shape, dtype, data });
        }
    }
    let mut collect = Collect { keep, path: Vec::new(), found: BTreeMap::new() };
    module.visit(&mut collect);
    collect.found
}

/// `module` with the parameters in the safetensors file `path`, which [`write_trained`] wrote.
///
/// # Errors
///
/// [`CheckpointError::File`], [`CheckpointError::Format`] and [`CheckpointError::Tensors`].
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

/// Writes the parameters that training changes to the safetensors file `path`, one after the other: of a model
/// with adapters, these and the scalar head.
///
/// # Errors
///
/// Whatever the system says.
pub fn write_trained<M: Module>(module: &M, path: &Path) -> io::Result<()> {
    let adapted = is_adapted(module);
    let trained = collect_lazily(module, |name| is_trained(adapted, name));
    write_safetensors(&in_files(trained, &Layout::plain()), &mut File::create(path)?)
}

/// Writes tensors to the safetensors file `path`, one after the other.
pub(super) fn write_flat<'a>(
    tensors: impl Iterator<Item = (String, &'a Tensor<1>)>,
    path: &Path,
) -> io::Result<()> {
    let parameter = |(name, tensor): (String, &Tensor<1>)| {
        let (shape, dtype, tensor) = (tensor.dims().to_vec(), tensor.dtype(), tensor.clone());
        (name, Parameter { shape, dtype, data: Box::new(move || tensor.clone().into_data()) })
    };
    let tensors = in_files(tensors.map(parameter).collect(), &Layout::plain());
    write_safetensors(&tensors, &mut File::create(path)?)
}

/// Reads what [`write_flat`] wrote: tensors of these names and lengths, those of them that are numbered in `kept`.
pub(super) fn read_flat(
    path: &Path,
    tensors: impl Iterator<Item = (String, usize)>,
    kept: Range<usize>,
    device: &Device,
) -> Result<Vec<Tensor<1>>, CheckpointError> {
    let mut source = FileSource::of_file(path, Placement::from(device))?;
    let mut read = |(number, (name, length)): (usize, (String, usize))| {
        let data = source.values(&name, &[length], Init::Zeros);
        kept.contains(&number).then(|| {
            let data = data.unwrap_or_else(|| TensorData::new(vec![0f32; length], [length]));
            Tensor::from_data(data, (device, DType::F32))
        })
    };
    let tensors = tensors.enumerate().filter_map(&mut read).collect();
    source.finish(&[])?;
    Ok(tensors)
}

pub(super) fn serialize(parameters: &BTreeMap<String, TensorData>) -> Vec<u8> {
    let views = parameters.iter().map(|(name, data)| {
        let view = TensorView::new(Dtype::F32, data.shape().to_vec(), data.as_bytes());
        (name.as_str(), view.expect("a tensor's bytes fit its shape"))
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(metadata)).expect("named tensors serialise")
}

/// Writes a model of the family and shape that `config` names into the existing folder `dir`, each parameter in
/// its own type.
pub fn save<M: Module>(
    module: &M,
    config: &ModelConfig,
    head: Head,
    dir: &Path,
) -> Result<(), CheckpointError> {
    save_in_shards(module, config, head, dir, u64::MAX)
}

/// The same into the empty folder `dir`, in files of at most `most` bytes of tensors each; a tensor of more has a file of
/// its own. Several files have an index.
pub fn save_in_shards<M: Module>(
    module: &M,
    config: &ModelConfig,
    head: Head,
    dir: &Path,
    most: u64,
) -> Result<(), CheckpointError> {
    let parameters = collect_lazily(module, |_| true);
    let dtype = parameters.values().map(|parameter| parameter.dtype).next().unwrap_or(DType::F32);
    let shards = in_shards(in_files(parameters, &Layout::of(config)), most);
    let write = |name: &str, content: &mut dyn FnMut(&mut File) -> io::Result<()>| {
        let path = dir.join(name);
        atomic::write_with(&path, |path| content(&mut File::create(path)?))
            .map_err(FileError::writing(&path))
    };
    let json = config.to_json(head, dtype);
    write("config.json", &mut |file| file.write_all(json.as_bytes()))?;
    if let [all] = &shards[..] {
        return Ok(write(WEIGHTS, &mut |file| write_safetensors(all, file))?);
    }
    let (mut total, mut weight_map) = (0, BTreeMap::new());
    for (i, tensors) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        write(&name, &mut |file| write_safetensors(tensors, file))?;
        total += tensors.values().map(FileTensor::size).sum::<u64>();
        weight_map.extend(tensors.keys().map(|tensor| (tensor, name.clone())));
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    Ok(write(INDEX, &mut |file| writeln!(file, "{index:#}"))?)
}

/// `tensors` in their order, cut where a file would hold more than `most` bytes.
fn in_shards(
    tensors: BTreeMap<String, FileTensor>,
    most: u64,
) -> Vec<BTreeMap<String, FileTensor>> {
    let (mut shards, mut held) = (vec![BTreeMap::new()], 0u64);
    for (name, tensor) in tensors {
        let size = tensor.size();
        if held > 0 && held.saturating_add(size) > most {
            shards.push(BTreeMap::new());
            held = 0;
        }
        held += size;
        shards.last_mut().expect("there is a first").insert(name, tensor);
    }
    shards
}

/// A tensor of a file, made of the parameters that it holds.
struct FileTensor {
    shape: Vec<usize>,
    dtype: DType,
    parts: Vec<(Vec<Range<usize>>, Parameter)>,
}

/// The tensors of a family's files, by name.
fn in_files(
    parameters: BTreeMap<String, Parameter>,
    layout: &Layout,
) -> BTreeMap<String, FileTensor> {
    let mut tensors = BTreeMap::new();
    for (name, parameter) in parameters {
        let Place { name, rows, own } = layout.place(&name, parameter.shape[0]);
        let tensor = tensors.entry(name).or_insert_with(|| FileTensor {
            shape: [&[rows], &parameter.shape[1..]].concat(),
            dtype: parameter.dtype,
            parts: Vec::new(),
        });
        tensor.parts.push((own, parameter));
    }
    tensors
}

impl FileTensor {
    /// Bytes in a row.
    fn row(&self) -> usize {
        self.shape[1..].iter().product::<usize>() * self.dtype.size()
    }

    fn size(&self) -> u64 {
        (self.shape[0] * self.row()) as u64
    }

    fn bytes(&self) -> Vec<u8> {
        let row = self.row();
        let mut bytes = vec![0; self.size() as usize];
        for (rows, parameter) in &self.parts {
            let data = (parameter.data)().convert_dtype(self.dtype);
            let mut rest = data.as_bytes();
            for rows in rows {
                let (piece, after) = rest.split_at(rows.len() * row);
                bytes[rows.start * row..rows.end * row].copy_from_slice(piece);
                rest = after;
            }
        }
        bytes
    }
}

/// Writes a safetensors file, one tensor after the other, so that none but one is on the host at a time.
fn write_safetensors(tensors: &BTreeMap<String, FileTensor>, file: &mut File) -> io::Result<()> {
    let mut sorted: Vec<_> = tensors.iter().map(|(name, t)| (name, stored(t.dtype), t)).collect();
    sorted.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0))); // as the format asks, the widest type first
    let mut end = 0;
    let infos = sorted.iter().map(|(name, dtype, tensor)| {
        let start = end;
        end += tensor.size() as usize;
        let shape = tensor.shape.clone();
        ((*name).clone(), TensorInfo { dtype: *dtype, shape, data_offsets: (start, end) })
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(metadata), infos.collect()).expect("tensors without a gap");
    let mut header = serde_json::to_vec(&metadata).expect("a header serialises");
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::new(file);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for (.., tensor) in sorted {
        file.write_all(&tensor.bytes())?;
    }
    file.flush()
}

fn stored(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::F64 => Dtype::F64,
        other => unreachable!("a parameter in {other:?}"),
    }
}

/// A fingerprint of the parameters of `module`: equal for equal values, whatever the device.
pub fn fingerprint<M: Module>(module: &M) -> String {
    format!("{:016x}", crate::rng::fnv1a(&to_safetensors(module)))
}
