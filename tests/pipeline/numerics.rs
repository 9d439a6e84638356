//! What each stage computes is pinned to the number of its numerics, `Stage::numerics`: neither changes alone.
//!
//! `tests/data/numerics.json` holds the number and the figures of every stage of a tiny run. After a change that is
//! meant to give other results, raise the stage's number, then `PIN_NUMERICS=1 cargo test --release --test pipeline
//! numerics` writes the file anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use segment_rlhf::COMMIT;
use segment_rlhf::run::folder::Origin;
use segment_rlhf::run::{Context, Error, FolderError, Stage};
use segment_rlhf::systems::decode::Kind;
use segment_rlhf::systems::{Method, Weights};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::support::{context, pipeline};

const PINS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/numerics.json");

/// Processors with other vector widths add up in another order: relative, or absolute below magnitude 1.
const TOLERANCE: f64 = 1e-4;

/// A stage's number, and by file and key every figure that it wrote.
#[derive(Debug, Serialize, Deserialize)]
struct Pin {
    numerics: u32,
    figures: BTreeMap<String, f64>,
}

/// The numbers in `value`, by their keys below `at`.
fn flatten(at: &str, value: &Value, into: &mut BTreeMap<String, f64>) {
    match value {
        Value::Number(number) => {
            into.insert(at.to_owned(), number.as_f64().unwrap());
        }
        Value::Array(items) => {
            (items.iter().enumerate()).for_each(|(i, v)| flatten(&format!("{at}.{i}"), v, into));
        }
        Value::Object(fields) => {
            fields.iter().for_each(|(key, v)| flatten(&format!("{at}.{key}"), v, into));
        }
        _ => {}
    }
}

/// The figures in the folder of a stage: of its summary, and of the last line of each log but the timings.
pub fn figures(dir: &Path) -> BTreeMap<String, f64> {
    let mut figures = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let log = name.ends_with(".jsonl") && name != "timings.jsonl";
        if log || name.ends_with(".json") {
            let text = fs::read_to_string(&path).unwrap();
            let text = if log { text.lines().last().unwrap() } else { &text };
            flatten(&name, &serde_json::from_str(text).unwrap(), &mut figures);
        }
    }
    figures
}

/// Runs every stage of `context`, and adds the figures of those that `pins` lacks.
fn add(context: &Context, pins: &mut BTreeMap<String, Pin>) {
    for stage in context.stages() {
        segment_rlhf::stage::run(stage, context).unwrap();
        let dir = context.dir(stage);
        let name = dir.strip_prefix(&context.run).unwrap().to_str().unwrap().replace('\\', "/");
        let numerics = Origin::read(&dir).unwrap().numerics;
        pins.entry(name).or_insert_with(|| Pin { numerics, figures: figures(&dir) });
    }
}

fn differs(found: f64, pinned: f64) -> bool {
    (found - pinned).abs() > TOLERANCE * pinned.abs().max(1.0)
}

/// What is wrong with a stage's figures, given what is pinned.
fn problem(name: &str, found: &Pin, pinned: &Pin) -> Option<String> {
    let other = pinned.figures.iter().find_map(|(key, &pinned)| {
        let found = found.figures.get(key);
        found.is_none_or(|&found| differs(found, pinned)).then_some(key)
    });
    let added = found.figures.keys().any(|key| !pinned.figures.contains_key(key));
    assert!(pinned.figures.len() > 3, "{name}: a stage without figures");
    let raised = found.numerics != pinned.numerics;
    let figure = |pin: &Pin, key: &str| pin.figures.get(key).copied();
    match other {
        Some(key) if !raised => Some(format!(
            "{name}: {key} is {:?}, pinned as {:?}: if that is meant, raise Stage::numerics",
            figure(found, key),
            figure(pinned, key)
        )),
        None if !raised && !added => None,
        // A figure that is merely new says nothing of the others.
        _ => Some(format!(
            "{name}: numerics {}, pinned as {}: pin the figures anew",
            found.numerics, pinned.numerics
        )),
    }
}

#[test]
fn a_stage_gives_the_figures_that_are_pinned_to_its_numerics() {
    let dir = tempfile::tempdir().unwrap();
    let mut found = BTreeMap::new();
    for method in Method::all() {
        let name = format!("method={}", method.name());
        let labelled = context(dir.path(), &[&name]).settings.weights() == Some(Weights::Labels);
        if !labelled {
            add(&context(dir.path(), &[&name]), &mut found);
            continue;
        }
        // In a run of its own, as its pairs are others.
        let own = tempfile::tempdir().unwrap();
        let mut of_own = BTreeMap::new();
        add(&context(own.path(), &[&name, "task.aligned.pairs=true"]), &mut of_own);
        found.extend(of_own.into_iter().map(|(name, pin)| (format!("aligned/{name}"), pin)));
    }
    let decoders = Kind::ALL.into_iter().filter(|&kind| kind != Kind::Sample);
    for kind in decoders.clone() {
        let kind = format!("decode.kind={}", kind.name());
        add(&context(dir.path(), &["method=segment", "decode.target=0.5", &kind]), &mut found);
    }
    // SFT and pairs and four reward models; three stages a method, of which plain DPO needs no normalizer; the run of
    // aligned pairs with its own SFT, pairs, reward model, policy and evaluation; an evaluation a decoder.
    let methods = 3 * (Method::all().len() - 2) + 2 + 5;
    assert_eq!(found.len(), 2 + 4 + methods + decoders.count());
    let pinned: BTreeMap<String, Pin> = fs::read_to_string(PINS)
        .map(|text| serde_json::from_str(&text).unwrap())
        .unwrap_or_default();
    let unraised = |problem: &String| problem.ends_with("raise Stage::numerics");
    let mut problems: Vec<String> = (found.iter())
        .filter_map(|(name, pin)| match pinned.get(name) {
            Some(pinned) => problem(name, pin, pinned),
            None => Some(format!("{name}: not pinned")),
        })
        .collect();
    if std::env::var_os("PIN_NUMERICS").is_some() && !problems.iter().any(unraised) {
        fs::write(PINS, serde_json::to_string_pretty(&found).unwrap() + "\n").unwrap();
        problems.clear();
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn a_stage_of_other_numerics_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let context = pipeline(dir.path(), &["method=bandit"]);
    assert_eq!(Origin::read(&context.dir(Stage::Sft)).unwrap().commit.as_deref(), COMMIT);
    let path = context.dir(Stage::Ppo).join("settings.toml");
    let text = fs::read_to_string(&path).unwrap();
    let own = format!("numerics = {}\n", Stage::Ppo.numerics());
    assert!(text.contains(&own), "{text}");
    fs::write(&path, text.replace(&own, "numerics = 0\n")).unwrap();
    match segment_rlhf::stage::run(Stage::Ppo, &context) {
        Err(Error::Folder(FolderError::OtherSettings { differences, .. })) => {
            assert_eq!(differences, [format!("numerics: 0 there, {} here", Stage::Ppo.numerics())]);
        }
        other => panic!("{other:?}"),
    }
    // What an earlier program left has no number at all.
    fs::write(&path, text.replace(&own, "")).unwrap();
    assert!(
        segment_rlhf::stage::run(Stage::Ppo, &context)
            .unwrap_err()
            .to_string()
            .contains("numerics: absent there")
    );
}

#[test]
fn figures_and_number_must_change_together() {
    let pin = |numerics: u32, first: f64| {
        let figures = (0..5).map(|i| (format!("summary.json.{i}"), first + f64::from(i)));
        Pin { numerics, figures: figures.collect() }
    };
    assert_eq!(problem("sft", &pin(1, 0.5), &pin(1, 0.5)), None);
    assert_eq!(problem("sft", &pin(1, 0.5 + 0.9e-4), &pin(1, 0.5)), None);
    let problem = |found: &Pin, pinned: &Pin| problem("sft", found, pinned).unwrap();
    assert_eq!(
        problem(&pin(1, 0.6), &pin(1, 0.5)),
        "sft: summary.json.0 is Some(0.6), pinned as Some(0.5): if that is meant, raise Stage::numerics"
    );
    let fewer = Pin { figures: pin(1, 0.5).figures.into_iter().take(4).collect(), numerics: 1 };
    assert!(problem(&fewer, &pin(1, 0.5)).starts_with("sft: summary.json.4 is None"));
    let more = problem(&pin(1, 0.5), &fewer);
    assert_eq!(more, "sft: numerics 1, pinned as 1: pin the figures anew");
    let anew = "sft: numerics 2, pinned as 1: pin the figures anew";
    assert_eq!(problem(&pin(2, 0.5), &pin(1, 0.5)), anew);
    assert_eq!(problem(&pin(2, 0.6), &pin(1, 0.5)), anew);
}
