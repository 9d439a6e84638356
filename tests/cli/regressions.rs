//! Inputs on which the program once failed, and the seeds of the fuzz targets: what a target requires holds.

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use segment_rlhf::data::tokenizer::Tokenizer;
use segment_rlhf::experiment::settings::{DEFAULTS, FULL, QUICK};
use segment_rlhf::model::CausalLm;
use segment_rlhf::stage::fit_normalizer::NormalizerFile;

use crate::support::SENTENCES;

#[path = "../../fuzz/inputs.rs"]
mod inputs;

/// Runs `target` on each file of `tests/data/regressions/NAME`.
fn each(name: &str, target: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/regressions").join(name);
    let paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!paths.is_empty(), "no input of {name}");
    for path in paths {
        println!("{}", path.display());
        target(&fs::read(path).unwrap());
    }
}

#[test]
fn inputs_that_once_failed_no_longer_do() {
    each("model", inputs::model);
    each("run_folder", inputs::run_folder);
}

#[test]
fn the_seeds_of_the_fuzz_targets_are_sound() {
    let tiny = inputs::tiny();
    CausalLm::load(&tiny, &Device::flex()).unwrap();
    Tokenizer::from_dir(&tiny).unwrap();
    let run = tiny.with_file_name("run");
    for name in ["normalizer_location_aware.json", "normalizer_scalar.json"] {
        let file: NormalizerFile =
            serde_json::from_slice(&fs::read(run.join(name)).unwrap()).unwrap();
        file.normalizer.check(file.min_location).unwrap();
    }
    let manifest = fs::read(run.join("manifest.json")).unwrap();
    inputs::run_folder(&[b"m", &manifest[..]].concat());
    inputs::pairs(&fs::read(SENTENCES).unwrap());
    for text in [DEFAULTS, QUICK, FULL] {
        inputs::settings(text.as_bytes());
    }
}
