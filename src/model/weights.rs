//! Parameters read tensor by tensor from safetensors files, so that a model takes no more memory than its
//! own parameters and one tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData, bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::Deserialize;

use super::config::ModelConfig;
use super::error::CheckpointError;
use super::names::{Layout, Place, is_constant};
use super::source::{Init, Placement, Source, fresh_values};
use crate::file_error::FileError;

pub use crate::hub::{INDEX, WEIGHTS};

/// The files that hold the parameters of the model in the folder `dir`: [`WEIGHTS`], else [`INDEX`] and the
/// shards that it names.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let (single, index) = (dir.join(WEIGHTS), dir.join(INDEX));
    if single.exists() || !index.exists() {
        return Ok(vec![single]);
    }
    let shards: BTreeSet<PathBuf> = read_index(&index)?.into_values().collect();
    Ok(std::iter::once(index).chain(shards).collect())
}

const GGUF: &str = ".gguf";
const TORCH: [&str; 3] = [".bin", ".pt", ".pth"];

/// Whether a file of this name holds parameters in a format that is not read.
pub fn is_other_format(name: &str) -> bool {
    name.ends_with(GGUF) || TORCH.iter().any(|end| name.ends_with(end))
}

/// Why a folder or repository of these files has no parameters that can be read, and what to do.
pub fn without(files: &[&str]) -> String {
    let ending =
        |ends: &[&str]| files.iter().find(|file| ends.iter().any(|end| file.ends_with(end)));
    let convert = "load it with transformers and write it again with save_pretrained(DIR)";
    match (ending(&[GGUF]), ending(&TORCH)) {
        (Some(file), _) => format!(
            "no {WEIGHTS}, but the GGUF file {file}: {convert}, AutoModelForCausalLM and AutoTokenizer \
             .from_pretrained(…, gguf_file={file:?})"
        ),
        (None, Some(file)) => format!("no {WEIGHTS}, but {file}: {convert}"),
        _ => format!("no {WEIGHTS}"),
    }
}

/// The type of the weights of the model in the folder `dir`: its largest tensor's.
pub fn stored_type(dir: &Path) -> Result<DType, CheckpointError> {
    let paths = files(dir)?;
    let shard = Shard::open(paths.last().expect("at least one file"))?;
    let tensors = shard.metadata.tensors();
    let size = |info: &&&TensorInfo| info.data_offsets.1 - info.data_offsets.0;
    let largest = tensors.values().max_by_key(size);
    Ok(largest.and_then(|info| dtype(info.dtype)).unwrap_or(DType::F32))
}

fn dtype(stored: Dtype) -> Option<DType> {
    match stored {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        _ => None,
    }
}

/// The shard of each tensor.
fn read_index(path: &Path) -> Result<BTreeMap<String, PathBuf>, CheckpointError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(path).map_err(|source| read_error(path, source))?;
    let index: Index = serde_json::from_str(&text)
        .map_err(|source| CheckpointError::Json { path: path.to_owned(), source })?;
    let shard = |(tensor, file): (String, String)| {
        if Path::new(&file).file_name().is_none_or(|name| name != file.as_str()) {
            let detail = format!("{tensor} is in {file:?}, expected a file in the same folder");
            return Err(CheckpointError::Format { path: path.to_owned(), detail });
        }
        Ok((tensor, path.with_file_name(file)))
    };
    index.weight_map.into_iter().map(shard).collect()
}

fn read_error(path: &Path, source: io::Error) -> CheckpointError {
    FileError::reading(path)(source).into()
}

/// Parameters read from safetensors files; collects everything that does not fit.
pub struct FileSource<'a> {
    /// What errors call the files.
    path: PathBuf,
    shards: Vec<Shard<'a>>,
    /// The shard that holds each tensor.
    held_by: BTreeMap<String, usize>,
    layout: Layout,
    placement: Placement,
    fresh: Option<FreshParam>,
    used: BTreeSet<String>,
    problems: Vec<String>,
}

/// A parameter that is drawn anew instead of read.
#[derive(Clone, Debug)]
pub struct FreshParam {
    pub name: &'static str,
    /// What it is drawn for: two heads of one run start differently.
    pub purpose: String,
    pub seed: u64,
    pub init: Init,
}

impl<'a> FileSource<'a> {
    /// A source over the files of the model in the folder `dir`.
    pub fn open(
        dir: &Path,
        config: &ModelConfig,
        placement: Placement,
    ) -> Result<Self, CheckpointError> {
        let mut paths = files(dir)?;
        let layout = Layout::of(config);
        if paths.len() == 1 {
            let path = paths.remove(0);
            let shard = Shard::open(&path)?;
            let source = Self::over(path, vec![shard], layout, placement);
            return source.with_layers(config.layers);
        }
        let index = paths.remove(0);
        let shards: Result<Vec<_>, _> = paths.iter().map(|path| Shard::open(path)).collect();
        let mut source = Self::over(index.clone(), shards?, layout, placement);
        for (tensor, path) in read_index(&index)? {
            let held = source.held_by.get(&tensor).is_some_and(|&shard| paths[shard] == path);
            if !held {
                let shard = path.file_name().unwrap_or_default().display();
                source.problems.push(format!("{tensor}: the index names {shard}, which lacks it"));
            }
        }
        source.with_layers(config.layers)
    }

    /// A source over the safetensors file `path` whose tensors have our own names.
    pub fn of_file(path: &Path, placement: Placement) -> Result<Self, CheckpointError> {
        Ok(Self::over(path.to_owned(), vec![Shard::open(path)?], Layout::plain(), placement))
    }

    /// A source over `bytes`, the content of the safetensors file `path`.
    pub fn from_bytes(
        path: &Path,
        bytes: &'a [u8],
        placement: Placement,
    ) -> Result<Self, CheckpointError> {
        let shard = Shard::new(path, Box::new(Cursor::new(bytes)))?;
        Ok(Self::over(path.to_owned(), vec![shard], Layout::plain(), placement))
    }

    fn over(path: PathBuf, shards: Vec<Shard<'a>>, layout: Layout, placement: Placement) -> Self {
        let names = |(i, shard): (usize, &Shard)| {
            shard.metadata.offset_keys().into_iter().map(move |name| (name, i))
        };
        let held_by = shards.iter().enumerate().flat_map(names).collect();
        let (used, problems) = (BTreeSet::new(), Vec::new());
        Self { path, shards, held_by, layout, placement, fresh: None, used, problems }
    }

    /// Without the parameter `fresh`, if any.
    pub fn with_fresh(self, fresh: Option<FreshParam>) -> Self {
        Self { fresh, ..self }
    }

    /// Fails if a tensor did not fit, or there is not even one for each layer.
    fn with_layers(mut self, layers: usize) -> Result<Self, CheckpointError> {
        let tensors = self.held_by.len();
        if layers > tensors {
            let problem =
                format!("{tensors} tensors, but config.json says num_hidden_layers {layers}");
            self.problems.push(problem);
        }
        self.checked()
    }

    /// Fails if any tensor was missing, misshaped, or left over; those named in `ignored` may be left.
    pub fn finish(mut self, ignored: &[&str]) -> Result<(), CheckpointError> {
        let ignored: Vec<String> =
            ignored.iter().map(|name| self.layout.place(name, 0).name).collect();
        let left = |name: &&String| {
            !self.used.contains(*name) && !ignored.contains(name) && !is_constant(name)
        };
        let extra = self.held_by.keys().filter(left).map(|name| format!("{name}: extra"));
        self.problems.extend(extra);
        self.checked().map(drop)
    }

    fn checked(self) -> Result<Self, CheckpointError> {
        if self.problems.is_empty() {
            return Ok(self);
        }
        Err(CheckpointError::Tensors { path: self.path, problems: self.problems })
    }

    /// The rows of `place` in the files, for a parameter of this shape.
    fn read(&mut self, place: &Place, shape: &[usize]) -> Result<TensorData, String> {
        let (name, whole) = (&place.name, [&[place.rows], &shape[1..]].concat());
        let shard = self.held_by.get(name).map(|&shard| &mut self.shards[shard]);
        let held = shard.and_then(|shard| Some((shard.metadata.info(name)?.clone(), shard)));
        let Some((info, shard)) = held else {
            return Err(format!("{name}: missing, expected shape {whole:?}"));
        };
        if info.shape != whole {
            return Err(format!("{name}: shape {:?}, expected {whole:?}", info.shape));
        }
        let Some(dtype) = dtype(info.dtype) else {
            let found = info.dtype;
            return Err(format!("{name}: unsupported type {found:?}, expected F32, F16 or BF16"));
        };
        let bytes = shard.rows(&info, &place.own);
        let bytes = bytes.map_err(|error| format!("{name}: cannot be read: {error}"))?;
        if let Some(value) = first_non_finite(&bytes, dtype) {
            return Err(format!("{name}: holds {value}, expected finite numbers"));
        }
        Ok(TensorData::from_bytes_vec(bytes, shape.to_vec(), dtype))
    }
}

impl Source for FileSource<'_> {
    fn values(&mut self, name: &str, shape: &[usize], _: Init) -> Option<TensorData> {
        if let Some(fresh) = self.fresh.as_ref().filter(|fresh| fresh.name == name) {
            // A shape that the file does not bear out may be of any size.
            let purpose = format!("{} {name}", fresh.purpose);
            return self
                .problems
                .is_empty()
                .then(|| fresh_values(fresh.seed, &purpose, shape, fresh.init));
        }
        let place = self.layout.place(name, shape[0]);
        let read = self.read(&place, shape);
        self.used.insert(place.name);
        read.map_err(|problem| {
            // Parameters that share a tensor share its problem.
            if self.problems.last() != Some(&problem) {
                self.problems.push(problem);
            }
        })
        .ok()
    }

    fn placement(&self) -> &Placement {
        &self.placement
    }
}

/// The first number in `bytes`, stored as `dtype`, that is NaN or infinite.
fn first_non_finite(bytes: &[u8], dtype: DType) -> Option<f32> {
    let halves = || bytes.as_chunks::<2>().0.iter();
    let not_finite = |value: &f32| !value.is_finite();
    match dtype {
        DType::F16 => halves().map(|&half| f16::from_le_bytes(half).to_f32()).find(not_finite),
        DType::BF16 => halves().map(|&half| bf16::from_le_bytes(half).to_f32()).find(not_finite),
        _ => bytes.as_chunks::<4>().0.iter().map(|&word| f32::from_le_bytes(word)).find(not_finite),
    }
}

trait ReadSeek: Read + Seek {}
impl<T: Read + Seek> ReadSeek for T {}

/// A safetensors file: its header, and a reader of its tensors.
struct Shard<'a> {
    reader: Box<dyn ReadSeek + 'a>,
    metadata: Metadata,
    /// Where the tensors begin.
    start: u64,
}

impl Shard<'static> {
    fn open(path: &Path) -> Result<Self, CheckpointError> {
        let file = File::open(path).map_err(|source| read_error(path, source))?;
        Self::new(path, Box::new(file))
    }
}

impl<'a> Shard<'a> {
    fn new(path: &Path, mut reader: Box<dyn ReadSeek + 'a>) -> Result<Self, CheckpointError> {
        let read = (|| {
            let len = reader.seek(SeekFrom::End(0))?;
            reader.rewind()?;
            let mut prefix = [0; 8];
            let Some(rest) = len.checked_sub(8) else { return Ok(None) };
            reader.read_exact(&mut prefix)?;
            let Some(tensors) = rest.checked_sub(u64::from_le_bytes(prefix)) else {
                return Ok(None);
            };
            let mut header = vec![0; (rest - tensors) as usize];
            reader.read_exact(&mut header)?;
            Ok(Some((header, tensors)))
        })();
        let format = |detail| CheckpointError::Format { path: path.to_owned(), detail };
        let read = read.map_err(|source| read_error(path, source))?;
        let (header, tensors) =
            read.ok_or_else(|| format("it ends within its header".to_owned()))?;
        let metadata = parse(&header).map_err(format)?;
        if metadata.data_len() as u64 != tensors {
            let (named, held) = (metadata.data_len(), tensors);
            return Err(format(format!(
                "its header names {named} bytes of tensors, it holds {held}"
            )));
        }
        Ok(Self { reader, metadata, start: 8 + header.len() as u64 })
    }

    /// The bytes of some rows of a tensor.
    fn rows(&mut self, info: &TensorInfo, rows: &[Range<usize>]) -> io::Result<Vec<u8>> {
        let (start, end) = info.data_offsets;
        let row = (end - start) / info.shape[0];
        let mut bytes = vec![0; rows.iter().map(Range::len).sum::<usize>() * row];
        let mut rest = &mut bytes[..];
        for rows in rows {
            let (piece, after) = rest.split_at_mut(rows.len() * row);
            let at = self.start + (start + rows.start * row) as u64;
            self.reader.seek(SeekFrom::Start(at))?;
            self.reader.read_exact(piece)?;
            rest = after;
        }
        Ok(bytes)
    }
}

/// The header of a safetensors file, checked: shapes and types fill the tensors' bytes without a gap.
fn parse(header: &[u8]) -> Result<Metadata, String> {
    let unchecked: Metadata =
        serde_json::from_slice(header).map_err(|error| format!("its header: {error}"))?;
    let tensors = unchecked.offset_keys().into_iter().map(|name| {
        let info = unchecked.info(&name).expect("a name of its own").clone();
        (name, info)
    });
    Metadata::new(None, tensors.collect()).map_err(|error| error.to_string())
}
