//! The device that tensors live on, chosen at run time among those compiled in, and the precision on it.

use std::process::Command;

use burn::tensor::{DType, Device};
use serde::{Deserialize, Serialize};

/// A device that this build or machine lacks.
#[derive(Debug, thiserror::Error)]
#[error("--device {name}: {problem}")]
pub struct DeviceError {
    /// The device.
    pub name: &'static str,
    /// What is wrong, and what to do.
    pub problem: String,
}

/// A backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
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
    /// The name on the command line and in run folders.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flex => "flex",
            Self::Wgpu => "wgpu",
            Self::Cuda => "cuda",
        }
    }

    /// Opens the device: the first of its kind.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] when this build lacks the backend.
    pub fn open(self) -> Result<Device, DeviceError> {
        self.open_number(0)
    }

    /// Opens the device with this number, from 0, among those of its kind.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] when this build lacks the backend.
    pub fn open_number(self, number: usize) -> Result<Device, DeviceError> {
        let _ = number; // a build for the CPU alone has one device
        match self {
            #[cfg(feature = "flex")]
            Self::Flex => Ok(Device::flex()),
            #[cfg(feature = "wgpu")]
            Self::Wgpu if number == 0 => Ok(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => Ok(Device::wgpu(burn::tensor::DeviceKind::DiscreteGpu(number))),
            #[cfg(feature = "cuda")]
            Self::Cuda => Ok(Device::cuda(number)),
            #[allow(unreachable_patterns)]
            absent => Err(DeviceError {
                name: absent.name(),
                problem: format!(
                    "this build lacks it; build with `cargo build --release --features {}`",
                    absent.name()
                ),
            }),
        }
    }

    /// The free bytes, if the device can be asked: the CPU through Linux, an NVIDIA GPU through its
    /// driver's `nvidia-smi`.
    pub fn free_memory(self) -> Option<u64> {
        match self {
            Self::Flex => {
                let text = std::fs::read_to_string("/proc/meminfo").ok()?;
                let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
                Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
            }
            Self::Wgpu => None,
            Self::Cuda => {
                let query = ["--query-gpu=memory.free", "--format=csv,noheader,nounits", "--id=0"];
                let output = Command::new("nvidia-smi").args(query).output().ok()?;
                Some(String::from_utf8(output.stdout).ok()?.trim().parse::<u64>().ok()? << 20)
            }
        }
    }
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
