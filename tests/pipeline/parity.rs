//! The pipeline on the devices that SEGMENT_RLHF_DEVICE names, by default the CPU.

use std::fs;

use segment_rlhf::device::{DeviceId, DeviceName, Precision, computes_in};
use segment_rlhf::run::{Context, Error, Stage};
use segment_rlhf::stage;
use tempfile::TempDir;

use crate::numerics::figures;
use crate::support::{context_on, pipeline_of};

/// Figures of two devices: relative, or absolute below magnitude 1. A device adds up in another order, and AdamW's first
/// steps go as far for a gradient of rounding errors as for any other.
const TOLERANCE: f64 = 1e-4;

fn devices() -> Vec<DeviceId> {
    let named = std::env::var("SEGMENT_RLHF_DEVICE").unwrap_or_else(|_| "flex".into());
    named.split(',').map(|name| name.parse().unwrap()).collect()
}

/// All stages on the device, with PPO of one iteration.
fn run(device: DeviceId, more: &[&str]) -> (TempDir, Context) {
    let dir = TempDir::new().unwrap();
    let sets = [&["ppo.iterations=1", "ppo.evaluate_every=1"], more].concat();
    let context = pipeline_of(context_on(device, dir.path(), &sets));
    (dir, context)
}

#[test]
fn a_device_computes_what_the_cpu_computes() {
    let others = devices().into_iter().filter(|device| device.name != DeviceName::Flex);
    let others: Vec<DeviceId> = others.collect();
    if others.is_empty() {
        println!("skipped: SEGMENT_RLHF_DEVICE names no other device than the CPU");
        return;
    }
    let (_cpu, cpu) = run(DeviceName::Flex.into(), &[]);
    for device in others {
        let (_own, own) = run(device, &[]);
        let mut largest = 0.0f64;
        for stage in [Stage::Sft, Stage::TrainReward, Stage::FitNormalizer, Stage::Ppo] {
            let (expected, found) = (figures(&cpu.dir(stage)), figures(&own.dir(stage)));
            assert!(expected.keys().eq(found.keys()), "{stage:?}");
            assert!(expected.len() > 2, "{stage:?}");
            for (key, value) in expected {
                let difference = (value - found[&key]).abs() / value.abs().max(1.0);
                assert!(
                    difference < TOLERANCE,
                    "{device}, {stage:?}, {key}: {value} {}",
                    found[&key]
                );
                largest = largest.max(difference);
            }
        }
        println!("{device}: no figure is off by more than {largest:.1e}");
    }
}

#[test]
fn bf16_is_computed_or_refused_by_every_stage() {
    for device in devices() {
        let (_dir, mut context) = run(device, &[]);
        context.settings.precision.compute = Precision::Bf16;
        let types = computes_in(&context.device);
        if types.contains(&Precision::Bf16.dtype()) {
            let (_dir, context) = run(device, &["precision.compute=bf16"]);
            let log = fs::read_to_string(context.dir(Stage::Ppo).join("metrics.jsonl")).unwrap();
            assert_eq!(log.lines().count(), 1);
            continue;
        }
        println!("{device} computes in {types:?}");
        for stage in context.stages().collect::<Vec<_>>() {
            let refused = stage::run(stage, &context).unwrap_err();
            assert!(matches!(refused, Error::Device(_)), "{stage:?}: {refused}");
            let text = refused.to_string();
            assert!(text.contains("not in bf16; set precision.compute"), "{text}");
        }
    }
}
