//! Inputs on which the program once failed, and the seeds of the fuzz targets: what a target requires holds.

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use segment_rlhf::data::tokenizer::Tokenizer;
use segment_rlhf::model::CausalLm;
use segment_rlhf::settings::{DEFAULTS, Preset};
use segment_rlhf::stage::fit_normalizer::NormalizerFile;

use crate::support::{SENTENCES, llama, program_with_memory_limit};

#[path = "../../fuzz/inputs.rs"]
#[allow(dead_code)]
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

/// Runs `target` on `seed`, on `seed` cut at about a hundred places, and with a byte changed at as many.
fn around(seed: &[u8], target: fn(&[u8])) {
    target(seed);
    for at in (0..seed.len()).step_by(seed.len().div_ceil(100)) {
        target(&seed[..at]);
        for fault in [1, 0x80, 0xFF] {
            let mut changed = seed.to_owned();
            changed[at] ^= fault;
            target(&changed);
        }
    }
}

fn seeds(folder: &str, end: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(folder);
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let seeds = paths.filter(|path| path.extension().is_some_and(|found| found == end));
    let seeds: Vec<_> = seeds.map(|path| fs::read(path).unwrap()).collect();
    assert!(!seeds.is_empty());
    seeds
}

#[test]
fn templates_write_or_say_why_not() {
    seeds("tokenizer/templates", "jinja").iter().for_each(|seed| around(seed, inputs::template));
}

#[test]
fn parquet_files_are_read_or_said_not_to_be() {
    seeds("pairs", "parquet").iter().for_each(|seed| around(seed, inputs::parquet));
}

/// In two GiB of memory, which a control shows to be enough, each of the templates that ask for more than there
/// is in any machine is refused. Of a program that asked, the system would end it.
#[cfg(target_os = "linux")]
#[test]
fn no_template_takes_the_memory() {
    let model = llama();
    let template = model.path().join("chat_template.jinja");
    let bombs = include_str!("../data/tokenizer/bombs.json");
    let bombs: Vec<serde_json::Value> = serde_json::from_str(bombs).unwrap();
    let ask = |source: &str| {
        fs::write(&template, source).unwrap();
        let model = model.path().to_str().unwrap();
        program_with_memory_limit(2 << 20, &["generate", "--model", model, "--prompt", "Hello."])
    };
    ask("{% for m in messages %}{{ m.content }}{% endfor %}").ended_with(0);
    for bomb in bombs {
        let refused = ask(bomb["source"].as_str().unwrap());
        refused.ended_with(2).says(&["chat_template.jinja: ", bomb["says"].as_str().unwrap()]);
    }
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
    inputs::settings(DEFAULTS.as_bytes());
    for preset in Preset::ALL {
        inputs::settings(preset.overlay().1.as_bytes());
    }
}
