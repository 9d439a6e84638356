//! Tensors from rows, and comparisons of whole lists.

use std::sync::LazyLock;

use burn::tensor::{Bool, DType, Device, Tensor, TensorData};
use segment_rlhf::device::{DeviceId, computes_in};

use crate::tolerance;

/// The CPU, where f64 is always at hand.
pub fn cpu() -> Device {
    Device::flex()
}

/// The devices to test, which SEGMENT_RLHF_DEVICE names, such as `wgpu` or `flex,cuda`, by default the CPU; each with the
/// tolerance of its f32.
pub fn devices() -> Vec<(Device, f64)> {
    static DEVICES: LazyLock<Vec<(Device, f64)>> = LazyLock::new(|| {
        let named = std::env::var("SEGMENT_RLHF_DEVICE").unwrap_or_else(|_| "flex".into());
        let open = |name: &str| {
            let id: DeviceId = name.parse().unwrap_or_else(|error| panic!("{name}: {error}"));
            let device = id.open().unwrap();
            id.check(&device, DType::F32, "").unwrap();
            let tolerance = if device == cpu() { tolerance::CPU_F32 } else { tolerance::GPU_F32 };
            (device, tolerance)
        };
        named.split(',').map(open).collect()
    });
    DEVICES.clone()
}

/// Those of [`devices`] that compute in `dtype`; says which do not.
pub fn devices_with(dtype: DType) -> impl Iterator<Item = (Device, f64)> {
    devices().into_iter().filter(move |(device, _)| {
        let computes = computes_in(device).contains(&dtype);
        if !computes {
            println!("left out: {device:?} does not compute in {}", dtype.name());
        }
        computes
    })
}

pub fn matrix(rows: &[Vec<f64>], device: &Device, dtype: DType) -> Tensor<2> {
    let shape = [rows.len(), rows[0].len()];
    Tensor::from_data(TensorData::new(rows.concat(), shape), (device, dtype))
}

pub fn vector(values: &[f64], device: &Device, dtype: DType) -> Tensor<1> {
    matrix(&[values.to_vec()], device, dtype).squeeze_dim(0)
}

/// True at the first `lengths[row]` tokens of each row.
pub fn mask(lengths: &[usize], width: usize, device: &Device) -> Tensor<2, Bool> {
    let rows = lengths.iter().flat_map(|&n| (0..width).map(move |i| i < n)).collect::<Vec<bool>>();
    Tensor::from_data(TensorData::new(rows, [lengths.len(), width]), device)
}

pub fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// Rows brought to one width.
pub fn padded(rows: &[Vec<f64>], width: usize, padding: f64) -> Vec<Vec<f64>> {
    let pad = |row: &Vec<f64>| {
        let mut row = row.clone();
        row.resize(width, padding);
        row
    };
    rows.iter().map(pad).collect()
}

/// Rows with NaN after the first `lengths[row]` tokens.
pub fn with_nan_padding(rows: &[Vec<f64>], lengths: &[usize]) -> Vec<Vec<f64>> {
    let pad = |(row, &n): (&Vec<f64>, &usize)| {
        row.iter().enumerate().map(|(i, &x)| if i < n { x } else { f64::NAN }).collect()
    };
    rows.iter().zip(lengths).map(pad).collect()
}

/// Equal within `tolerance`, relative or (below magnitude 1) absolute.
#[track_caller]
pub fn assert_close(actual: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len(), "lengths");
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!(
            approx::relative_eq!(*a, *e, epsilon = tolerance, max_relative = tolerance),
            "at {i}: {a}, expected {e} within {tolerance}"
        );
    }
}

/// What `f` says as it panics.
#[track_caller]
pub fn panic_of<T>(f: impl FnOnce() -> T) -> String {
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).err().expect("a panic");
    *panic.downcast::<String>().expect("a panic with a text")
}

/// The loss at x, and its gradient by `backward()`.
pub fn value_and_gradient(
    loss: impl Fn(Tensor<2>) -> Tensor<1>,
    x: &[Vec<f64>],
    device: &Device,
    dtype: DType,
) -> (f64, Vec<f64>) {
    let x = matrix(x, device, dtype).autodiff().require_grad();
    let loss = loss(x.clone());
    let gradients = loss.backward();
    (host(loss)[0], host(x.grad(&gradients).expect("x takes part in the loss")))
}

/// `backward()` agrees with central differences in f64.
#[track_caller]
pub fn assert_gradient(loss: impl Fn(Tensor<2>) -> Tensor<1>, x: &[Vec<f64>]) {
    let (_, gradient) = value_and_gradient(&loss, x, &cpu(), DType::F64);
    let at = |row: usize, i: usize, step: f64| {
        let mut x = x.to_vec();
        x[row][i] += step;
        host(loss(matrix(&x, &cpu(), DType::F64)))[0]
    };
    let step = tolerance::STEP;
    let differences: Vec<f64> = (0..x.len())
        .flat_map(|row| (0..x[row].len()).map(move |i| (row, i)))
        .map(|(row, i)| (at(row, i, step) - at(row, i, -step)) / (2.0 * step))
        .collect();
    assert!(differences.iter().any(|d| *d != 0.0), "the loss depends on x");
    assert_close(&gradient, &differences, tolerance::FINITE_DIFFERENCE);
}
