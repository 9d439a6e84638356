//! The device that tensors live on, chosen at run time among those compiled in.

use burn::tensor::Device;

use crate::error::Error;

/// A backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
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

    /// Opens the device.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] when this build lacks the backend.
    pub fn open(self) -> Result<Device, Error> {
        match self {
            #[cfg(feature = "flex")]
            Self::Flex => Ok(Device::flex()),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => Ok(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
            #[cfg(feature = "cuda")]
            Self::Cuda => Ok(Device::cuda(0)),
            #[allow(unreachable_patterns)]
            absent => Err(Error::Device {
                name: absent.name(),
                problem: format!(
                    "this build lacks it; build with `cargo build --release --features {}`",
                    absent.name()
                ),
            }),
        }
    }
}
