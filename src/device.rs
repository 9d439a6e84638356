//! The device that tensors live on, chosen at run time among those compiled in, what it can compute, and the precision
//! on it.

use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::process::Command;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use burn::tensor::{DType, Device};
use serde::{Deserialize, Serialize};

/// A device that this build or machine lacks, or that lacks what the settings ask for.
#[derive(Debug, thiserror::Error)]
#[error("--device {device}: {problem}")]
pub struct DeviceError {
    /// The device.
    pub device: DeviceId,
    /// What is wrong, and what to do.
    pub problem: String,
}

/// A backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceName {
    /// The CPU.
    Flex,
    /// A GPU through Vulkan, Metal or DirectX 12; needs the feature `wgpu`.
    Wgpu,
    /// An NVIDIA GPU; needs the feature `cuda`.
    Cuda,
}

impl DeviceName {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Flex, Self::Wgpu, Self::Cuda];

    /// The name on the command line and in run folders.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flex => "flex",
            Self::Wgpu => "wgpu",
            Self::Cuda => "cuda",
        }
    }

    /// Opens the backend's default device.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] when this build lacks the backend.
    pub fn open(self) -> Result<Device, DeviceError> {
        DeviceId::from(self).open()
    }

    /// The default device, if this build has the backend. Nothing is asked of the machine yet.
    fn handle(self) -> Option<Device> {
        match self {
            #[cfg(feature = "flex")]
            Self::Flex => Some(Device::flex()),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => Some(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
            #[cfg(feature = "cuda")]
            Self::Cuda => Some(Device::cuda(0)),
            #[allow(unreachable_patterns)]
            _ => None,
        }
    }

    /// The devices of this machine, in the order of their indices.
    ///
    /// # Errors
    ///
    /// What is missing, and what to do: the backend in this build, or a device with its driver.
    pub fn found(self) -> Result<Vec<Device>, String> {
        let found: Option<Vec<Device>> = match self {
            #[cfg(feature = "flex")]
            Self::Flex => Some(vec![Device::flex()]),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => Some(listed(burn::tensor::DeviceType::Wgpu)?),
            #[cfg(feature = "cuda")]
            Self::Cuda => Some(listed(burn::tensor::DeviceType::Cuda)?),
            #[allow(unreachable_patterns)]
            _ => None,
        };
        match found {
            None => Err(self.build()),
            Some(found) if found.is_empty() => Err(self.driver().to_owned()),
            Some(found) => Ok(found),
        }
    }

    /// How to build the program with this backend.
    fn build(self) -> String {
        format!(
            "this build lacks it; build with `cargo build --release --features {}`",
            self.name()
        )
    }

    /// How a machine gets a device of this backend.
    fn driver(self) -> &'static str {
        match self {
            Self::Flex => "no CPU",
            Self::Wgpu => {
                "no adapter found; install the GPU's Vulkan driver (on Debian, mesa-vulkan-drivers for AMD, Intel and \
                 software Vulkan), and see what `vulkaninfo --summary` lists"
            }
            Self::Cuda => {
                "no NVIDIA GPU found; install NVIDIA's driver, and see what `nvidia-smi` lists"
            }
        }
    }
}

/// The devices of a backend with drivers.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn listed(backend: burn::tensor::DeviceType) -> Result<Vec<Device>, String> {
    quietly(|| Device::enumerate(backend).into_vec()).map_err(driver_failed)
}

/// A device of a backend: its default, or the one of an index. Files name the backend alone, so that a run may go on
/// beside where it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "DeviceName", into = "DeviceName")]
pub struct DeviceId {
    /// The backend.
    pub name: DeviceName,
    /// Its number among the backend's devices on this machine.
    pub index: Option<usize>,
}

impl From<DeviceName> for DeviceId {
    fn from(name: DeviceName) -> Self {
        Self { name, index: None }
    }
}

impl From<DeviceId> for DeviceName {
    fn from(id: DeviceId) -> Self {
        id.name
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            None => f.write_str(self.name.name()),
            Some(index) => write!(f, "{}:{index}", self.name.name()),
        }
    }
}

impl FromStr for DeviceId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, index) = match text.split_once(':') {
            None => (text, None),
            Some((name, index)) => (name, Some(index)),
        };
        let name = DeviceName::ALL.into_iter().find(|known| known.name() == name);
        let index = index.map(str::parse).transpose();
        match (name, index) {
            (Some(DeviceName::Flex), Ok(Some(_))) => {
                Err("the CPU is one device; leave out the index".into())
            }
            (Some(name), Ok(index)) => Ok(Self { name, index }),
            _ => Err("expected flex, wgpu or cuda, or such as cuda:1 for the second GPU".into()),
        }
    }
}

impl DeviceId {
    /// Opens the device.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] when this build lacks the backend, or the machine a device of that index. Without an index the
    /// machine is not asked: [`DeviceId::check`] does that.
    pub fn open(self) -> Result<Device, DeviceError> {
        let default = self.name.handle().ok_or_else(|| self.error(self.name.build()))?;
        let Some(index) = self.index else { return Ok(default) };
        let mut found = self.name.found().map_err(|problem| self.error(problem))?;
        if index >= found.len() {
            return Err(self.error(out_of_range(self.name.name(), found.len())));
        }
        Ok(found.swap_remove(index))
    }

    /// Fails unless the machine has the device, open as `device`, and it computes in `dtype`; `remedy` is what to do
    /// where it does not.
    ///
    /// # Errors
    ///
    /// [`DeviceError`].
    pub fn check(self, device: &Device, dtype: DType, remedy: &str) -> Result<(), DeviceError> {
        let types = self.name.found().and_then(|_| self.name.float_types(device));
        let types = types.map_err(|problem| self.error(problem))?;
        if types.contains(&dtype) {
            return Ok(());
        }
        let types = types.iter().map(DType::name).collect::<Vec<_>>().join(", ");
        Err(self.error(format!("it computes in {types}, not in {}; {remedy}", dtype.name())))
    }

    fn error(self, problem: String) -> DeviceError {
        DeviceError { device: self, problem }
    }

    /// The free bytes, if the device can be asked: the CPU through Linux, an NVIDIA GPU through its
    /// driver's `nvidia-smi`.
    pub fn free_memory(self) -> Option<u64> {
        match self.name {
            DeviceName::Flex => {
                let text = std::fs::read_to_string("/proc/meminfo").ok()?;
                let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
                Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
            }
            DeviceName::Wgpu => None,
            DeviceName::Cuda => {
                let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
                let gpu = physical(visible.as_deref(), self.index.unwrap_or(0));
                let query = ["--query-gpu=memory.free", "--format=csv,noheader,nounits", "--id"];
                let output = Command::new("nvidia-smi").args(query).arg(gpu).output().ok()?;
                Some(String::from_utf8(output.stdout).ok()?.trim().parse::<u64>().ok()? << 20)
            }
        }
    }
}

fn out_of_range(name: &str, found: usize) -> String {
    match found {
        1 => format!("this machine has one such device: give --device {name}"),
        n => format!("this machine has {n} such devices, {name}:0 to {name}:{}", n - 1),
    }
}

/// What `nvidia-smi` calls the GPU that CUDA counts as `index`: CUDA counts those alone that the environment lists.
fn physical(visible: Option<&str>, index: usize) -> String {
    let listed = visible.and_then(|list| list.split(',').nth(index)).map(str::trim);
    listed.filter(|name| !name.is_empty()).map_or_else(|| index.to_string(), str::to_owned)
}

/// The types of floating-point numbers that a device may have.
const FLOATS: [DType; 4] = [DType::F32, DType::BF16, DType::F16, DType::F64];

/// The types of floating-point numbers that `device` computes in, as Burn says; in another, numbers come out as garbage, in
/// silence.
pub fn computes_in(device: &Device) -> Vec<DType> {
    FLOATS.into_iter().filter(|dtype| device.supports_dtype(*dtype)).collect()
}

impl DeviceName {
    /// [`computes_in`], or what the driver said as it failed.
    fn float_types(self, device: &Device) -> Result<Vec<DType>, String> {
        match self {
            Self::Flex => Ok(computes_in(device)),
            _ => quietly(|| computes_in(device)).map_err(driver_failed),
        }
    }
}

fn driver_failed(panic: String) -> String {
    format!("its driver failed: {}; see `segment-rlhf devices`", panic.trim())
}

/// What `f` returns, or the text of its first panic, which is not printed: drivers that cannot be loaded panic.
pub(crate) fn quietly<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let said = Arc::new(Mutex::new(None));
    let hears = Arc::clone(&said);
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let text = info.payload_as_str().unwrap_or("a panic without a text");
        hears.lock().expect("the hook does not panic").get_or_insert_with(|| text.to_owned());
    }));
    let result = panic::catch_unwind(AssertUnwindSafe(f));
    panic::set_hook(before);
    result.map_err(|_| said.lock().expect("the hook does not panic").take().unwrap_or_default())
}

/// What a build and a machine offer of a device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Offer {
    /// What `--device` takes.
    pub device: String,
    /// What it calls itself.
    pub name: Option<String>,
    /// The types that it computes in.
    pub computes: Vec<&'static str>,
    /// Its free memory, if it can be asked.
    pub free_bytes: Option<u64>,
    /// Why it cannot be used, and what to do.
    pub missing: Option<String>,
}

/// Every device, or why a backend has none. Opens them all.
pub fn survey() -> Vec<Offer> {
    let offers = |name: DeviceName| match name.found() {
        Err(problem) => vec![Offer {
            device: name.name().to_owned(),
            name: None,
            computes: Vec::new(),
            free_bytes: None,
            missing: Some(problem),
        }],
        Ok(devices) => {
            let several = devices.len() > 1;
            let offer = |(index, device): (usize, Device)| {
                let id = DeviceId { name, index: several.then_some(index) };
                let types = name.float_types(&device);
                Offer {
                    device: id.to_string(),
                    name: types.as_ref().ok().and_then(|_| calls_itself(name, &device)),
                    computes: types.iter().flatten().map(|dtype| dtype.name()).collect(),
                    free_bytes: id.free_memory(),
                    missing: types.err(),
                }
            };
            devices.into_iter().enumerate().map(offer).collect()
        }
    };
    DeviceName::ALL.into_iter().flat_map(offers).collect()
}

/// What a device calls itself.
fn calls_itself(name: DeviceName, device: &Device) -> Option<String> {
    if name == DeviceName::Flex {
        let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("model name"))?;
        let cores = std::thread::available_parallelism().ok()?;
        return Some(format!("{}, {cores} threads", line.trim_start_matches([' ', '\t', ':'])));
    }
    identity(device)
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn identity(device: &Device) -> Option<String> {
    device.identity().map(|identity| identity.name)
}

#[cfg(not(any(feature = "wgpu", feature = "cuda")))]
fn identity(_: &Device) -> Option<String> {
    None
}

/// The type of activations and frozen models. Trained weights stay in f32, and so do
/// norms, softmax, entropies, scalar heads and losses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32 bits.
    F32,
    /// bfloat16: half the memory, the range of f32, 8 bits of precision.
    Bf16,
}

impl Precision {
    /// The name in settings and run folders.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// The type of tensors.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// What a forward pass keeps for the backward pass; the rest is recomputed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Checkpointing {
    /// Everything is kept.
    None,
    /// Burn's own: cheap operations are recomputed.
    Operations,
    /// Only the input of each layer is kept; the layer is recomputed.
    Layers,
}

impl Checkpointing {
    /// `device` with autodiff.
    pub fn autodiff(self, device: &Device) -> Device {
        let device = device.clone().autodiff();
        if self == Self::Operations { device.gradient_checkpointing() } else { device }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_a_backend_and_perhaps_an_index() {
        let cuda = |index| DeviceId { name: DeviceName::Cuda, index };
        for (text, id) in
            [("cuda", cuda(None)), ("cuda:0", cuda(Some(0))), ("cuda:12", cuda(Some(12)))]
        {
            assert_eq!(text.parse(), Ok(id));
            assert_eq!(id.to_string(), text);
        }
        for text in ["", "tpu", "cuda:", "cuda:-1", "cuda:x", "CUDA", "wgpu:1:2"] {
            let refused = text.parse::<DeviceId>().unwrap_err();
            assert!(refused.starts_with("expected flex, wgpu or cuda"), "{text}: {refused}");
        }
        let refused = "flex:0".parse::<DeviceId>().unwrap_err();
        assert_eq!(refused, "the CPU is one device; leave out the index");
    }

    #[test]
    fn files_name_the_backend_alone() {
        let second: DeviceId = "cuda:1".parse().unwrap();
        let text = serde_json::to_string(&second).unwrap();
        assert_eq!(text, "\"cuda\"");
        assert_eq!(serde_json::from_str::<DeviceId>(&text).unwrap(), DeviceName::Cuda.into());
    }

    #[test]
    fn an_index_out_of_range_names_those_that_there_are() {
        let text = |found| out_of_range("cuda", found);
        assert_eq!(text(1), "this machine has one such device: give --device cuda");
        assert_eq!(text(4), "this machine has 4 such devices, cuda:0 to cuda:3");
    }

    #[cfg(feature = "flex")]
    #[test]
    fn a_type_that_the_device_lacks_is_refused_by_name_with_what_to_do() {
        let (id, device) = (DeviceId::from(DeviceName::Flex), Device::flex());
        assert!(id.check(&device, DType::BF16, "").is_ok());
        let lacks = id.check(&device, DType::Flex32, "set x").unwrap_err().to_string();
        assert_eq!(
            lacks,
            "--device flex: it computes in f32, bf16, f16, f64, not in flex32; set x"
        );
    }

    #[test]
    fn the_gpu_that_cuda_counts_is_asked_and_not_another() {
        for (visible, index, gpu) in [
            (None, 1, "1"),
            (Some("2,3"), 1, "3"),
            (Some("GPU-5f, GPU-7a"), 1, "GPU-7a"),
            (Some(""), 0, "0"),
        ] {
            assert_eq!(physical(visible, index), gpu);
        }
    }

    #[test]
    fn the_first_panic_is_what_a_driver_said() {
        assert_eq!(quietly(|| 3), Ok(3));
        let failed: Result<(), _> = quietly(|| {
            let other = std::thread::spawn(|| panic!("no libvulkan"));
            other.join().expect("the thread ends");
        });
        assert_eq!(failed, Err("no libvulkan".to_owned()));
    }
}
