//! Burn's kernel fusion beside the CPU: single operations and small compositions, forward and backward, at eight sizes.
//!
//! ```sh
//! cargo run --manifest-path benches/fusion/Cargo.toml --features fusion
//! ```
//!
//! Prints what is off by more than 1e-4, and fails if anything is.

use burn::tensor::{DType, Device, DeviceKind, Tensor, TensorData};

const TOLERANCE: f32 = 1e-4;

/// A number for each place.
fn values(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i + 1) as f32 * 0.37 + seed as f32).sin()).collect()
}

fn vector(n: usize, seed: usize, device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(values(n, seed), [n]), (device, DType::F32))
}

fn matrix(rows: usize, n: usize, seed: usize, device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values(rows * n, seed), [rows, n]), (device, DType::F32))
}

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

fn rms_norm(x: Tensor<2>, w: Tensor<1>) -> Tensor<2> {
    let scale = x.clone().square().mean_dim(1).add_scalar(1e-6).sqrt();
    x.div(scale).mul(w.unsqueeze())
}

type Case = (&'static str, fn(usize, &Device) -> Vec<f32>);

const CASES: &[Case] = &[
    ("read a vector", |n, device| host(vector(n, 1, device))),
    ("read a vector that was scaled", |n, device| host(vector(n, 1, device).mul_scalar(3.0))),
    ("read a matrix that was scaled", |n, device| host(matrix(5, n, 1, device).mul_scalar(3.0))),
    ("rms norm", |n, device| host(rms_norm(matrix(5, n, 1, device), vector(n, 2, device)))),
    ("read the weight behind an rms norm", |n, device| {
        let w = vector(n, 2, device);
        let y = rms_norm(matrix(5, n, 1, device), w.clone());
        let mut all = host(w);
        all.extend(host(y));
        all
    }),
    ("the weight behind rms norm, matmul", |n, device| {
        let w = vector(n, 2, device);
        let y = rms_norm(matrix(5, n, 1, device), w.clone())
            .matmul(matrix(n, n, 3, device))
            .mul_scalar(0.1);
        let mut all = host(y);
        all.extend(host(w));
        all
    }),
    ("gradient of the weight", |n, device| {
        let device = device.clone().autodiff();
        let w = vector(n, 2, &device).require_grad();
        let loss = rms_norm(matrix(5, n, 1, &device), w.clone()).square().mean();
        host(w.grad(&loss.backward()).unwrap())
    }),
    ("a step of the weight", |n, device| {
        let device = device.clone().autodiff();
        let w = vector(n, 2, &device).require_grad();
        let loss = rms_norm(matrix(5, n, 1, &device), w.clone()).square().mean();
        let g = w.grad(&loss.backward()).unwrap();
        let (m, v) = (g.clone().mul_scalar(0.1), g.square().mul_scalar(0.05));
        let step =
            m.div_scalar(0.1).div(v.div_scalar(0.05).sqrt().add_scalar(1e-5)).mul_scalar(0.01);
        host(w.inner() - step)
    }),
    ("bias", |n, device| {
        host(
            matrix(5, n, 1, device).matmul(matrix(n, n, 3, device))
                + vector(n, 2, device).unsqueeze(),
        )
    }),
    ("casts", |n, device| {
        host(vector(n, 1, device).cast(DType::F16).cast(DType::F32).mul_scalar(2.0))
    }),
    ("sum of squares", |n, device| host(vector(n, 1, device).square().sum())),
    ("norm over several", |n, device| {
        let parts = [
            vector(n, 1, device).square().sum(),
            vector(2 * n, 2, device).square().sum(),
            matrix(n, n, 3, device).square().sum(),
        ];
        let all = Tensor::cat(parts.to_vec(), 0).sum().sqrt();
        let scale = all.clone().recip().clamp_max(1.0);
        let mut out = host(vector(n, 1, device) * scale.clone());
        out.extend(host((matrix(n, n, 3, device) * scale.unsqueeze()).sum()));
        out
    }),
];

fn main() {
    let gpu = Device::wgpu(DeviceKind::DefaultDevice);
    let mut wrong = 0;
    for (name, case) in CASES {
        for n in [1, 3, 8, 16, 24, 64, 200, 1024] {
            let (expected, found) = (case(n, &Device::flex()), case(n, &gpu));
            let largest = expected
                .iter()
                .zip(&found)
                .map(|(a, b)| (a - b).abs() / a.abs().max(1.0))
                .fold(0.0, |m: f32, d| if d.is_nan() { f32::INFINITY } else { m.max(d) });
            if largest > TOLERANCE || found.len() != expected.len() {
                wrong += 1;
                println!(
                    "{name}, {n}: off by {largest:.1e}: {:?}, expected {:?}",
                    &found[..found.len().min(4)],
                    &expected[..expected.len().min(4)]
                );
            }
        }
    }
    println!("{wrong} wrong");
    std::process::exit((wrong > 0).into());
}
