//! The model card of an export: what the model is, how it was trained, and how it is used without this program.

use std::path::Path;

use minijinja::{Environment, context};
use serde_json::{Value, json};

use super::fit_normalizer::NormalizerFile;
use super::score::RewardCard;
use crate::data::tokenizer::Tokenizer;
use crate::model::{Head, ModelConfig};
use crate::run::fingerprint::{REWARD_CARD, reward_fingerprint};
use crate::run::folder::{Origin, SUMMARY, is_finished, read_json, read_record};
use crate::run::{Context, Error, Stage};

/// The settings that a card names, where the stage depends on them.
const SETTINGS: [&str; 24] = [
    "method",
    "seed",
    "segmentation.entropy_cutoff",
    "segmentation.eos",
    "lora.rank",
    "sft.epochs",
    "sft.batch",
    "sft.optimizer.learning_rate",
    "reward.aggregation",
    "reward.margin",
    "reward.epochs",
    "reward.batch",
    "reward.optimizer.learning_rate",
    "ppo.iterations",
    "ppo.rollouts",
    "ppo.kl_coefficient",
    "ppo.kl_target",
    "ppo.interpolation",
    "ppo.actor.learning_rate",
    "sampling.max_new_tokens",
    "dpo.beta",
    "dpo.epochs",
    "dpo.batch",
    "dpo.optimizer.learning_rate",
];

/// A question and an answer, for a model of English and for one of the embedded task.
const EXAMPLES: [[&str; 2]; 2] = [
    ["Why is the sky blue?", "Air scatters blue light."],
    [
        "write to ana about the harbor . ana loves music and nature , not history .",
        "dear ana , music : choirs sing superb hymns .",
    ],
];

/// The text of the card of the model in the folder `from`, with what is known of the stage that trained it.
pub(super) fn card(
    context: &Context,
    from: &Path,
    head: Head,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
) -> Result<String, Error> {
    // The model is in `model` or `best/model` of the stage's folder.
    let dir = from.ancestors().skip(1).take(2).find(|dir| is_stage(dir));
    let record = json!(dir.map(read_record).transpose()?);
    let figures = dir.map(|dir| read_json::<Value>(&dir.join(SUMMARY), "")).transpose()?;
    let reward =
        dir.filter(|dir| dir.join(REWARD_CARD).exists()).map(RewardCard::read).transpose()?;
    let normalizer = match (dir, &reward) {
        (Some(dir), Some(card)) => normalizer(context, dir, card)?,
        _ => None,
    };
    let settings = &record["settings"];
    let method = record["method"].as_str().or(settings["method"].as_str());
    let (title, what) = title(record["stage"].as_str(), method, head);
    let setting = |key: &&'static str| {
        let value = key.split('.').try_fold(settings, |table, part| table.get(part))?;
        Some((*key, shown(value)))
    };
    let inputs = record["inputs"].as_object().into_iter().flatten();
    let [prompt, response] = EXAMPLES
        .into_iter()
        .find(|texts| texts.iter().all(|text| tokenizer.encode(text).is_ok()))
        .unwrap_or(EXAMPLES[0]);
    let base = config.other.get("_name_or_path").and_then(Value::as_str);
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.add_template("card", include_str!("card.md")).expect("the template parses");
    let template = environment.get_template("card").expect("it was just added");
    let text = template.render(context! {
        title,
        what,
        is_reward => head == Head::Score,
        rule => reward.as_ref().map(|card| word(&json!(card.rule))),
        cutoff => reward.as_ref().map(|card| shown(&json!(card.rule)["segment"]["entropy_cutoff"])),
        aggregation => reward.as_ref().map(|card| word(&json!(card.aggregation))),
        excludes_eos => reward.as_ref().is_some_and(|card| card.eos.excludes_eos(card.rule)),
        normalizer,
        stops => python(&json!(tokenizer.stop_tokens())),
        roles => tokenizer.role_format().map(|format| python(&json!(format))),
        prompt => python(&json!(prompt)),
        response => python(&json!(response)),
        max_new_tokens => settings["sampling"]["max_new_tokens"].as_u64().unwrap_or(256),
        base_model => base.filter(|name| is_hub_name(name)),
        origin => record,
        settings => SETTINGS.iter().filter_map(setting).collect::<Vec<_>>(),
        inputs => inputs.map(|(name, value)| (name, shown(value))).collect::<Vec<_>>(),
        figures => figures.map(|of| leaves("", &of)).unwrap_or_default(),
    });
    Ok(text.expect("the template knows its values"))
}

/// Whether `dir` is the folder of a finished stage.
fn is_stage(dir: &Path) -> bool {
    is_finished(dir) && Origin::read(dir).is_ok()
}

/// The card's title, and what the model is in a sentence.
fn title(stage: Option<&str>, method: Option<&str>, head: Head) -> (String, &'static str) {
    let stage = Stage::ALL.into_iter().find(|of| stage == Some(of.command()));
    let (name, what) = match (stage, head) {
        (Some(Stage::Sft), _) => (
            "Reference model",
            "The supervised fine-tuned model from which policy and reward model started: the reference of entropies and KL.",
        ),
        (Some(Stage::Ppo), _) => {
            ("Policy", "A policy, trained on its own rollouts by reinforcement learning.")
        }
        (Some(Stage::Dpo), _) => {
            ("Policy", "A policy, trained on preference pairs without rollouts.")
        }
        (Some(_), Head::Score) => (
            "Reward model",
            "A language model with a scalar head, trained on preference pairs by the Bradley-Terry loss of responses' scores.",
        ),
        (_, Head::Score) => ("Reward model", "A language model with a scalar head."),
        (_, Head::CausalLm) => ("Language model", "A language model."),
    };
    let method = method.map_or_else(String::new, |method| format!(" of the method `{method}`"));
    (format!("{name}{method}"), what)
}

/// The run's normalizer for the reward model of the stage in the folder `dir`, if one was fitted.
fn normalizer(context: &Context, dir: &Path, card: &RewardCard) -> Result<Option<Value>, Error> {
    let path = context.dir(Stage::FitNormalizer).join("normalizer.json");
    if !path.exists() {
        return Ok(None);
    }
    let file: NormalizerFile = read_json(&path, "fit-normalizer")?;
    let fits = file.rule == card.rule && file.reward_model == reward_fingerprint(dir)?;
    Ok(fits.then(|| json!(file.normalizer)))
}

/// The numbers within a value, by their path.
fn leaves(path: &str, value: &Value) -> Vec<(String, String)> {
    match value {
        Value::Object(fields) => {
            let below =
                |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
            fields.iter().flat_map(|(key, value)| leaves(&below(key), value)).collect()
        }
        Value::Number(number) if number.is_f64() => {
            vec![(path.to_owned(), format!("{:.4}", number.as_f64().unwrap_or_default()))]
        }
        Value::Number(number) => vec![(path.to_owned(), number.to_string())],
        _ => Vec::new(),
    }
}

/// A value in a table.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "inf".to_owned(), // TOML has no null, and JSON no infinity
        value => value.to_string(),
    }
}

/// The name of a variant, whatever it holds.
fn word(variant: &Value) -> String {
    let name = variant.as_object().and_then(|object| object.keys().next().map(String::as_str));
    name.or(variant.as_str()).unwrap_or_default().to_owned()
}

/// JSON of texts and numbers is Python.
fn python(value: &Value) -> String {
    value.to_string()
}

/// Whether a model's name is one of the Hub's, and not a folder.
fn is_hub_name(name: &str) -> bool {
    let is_word = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c))
    };
    let parts: Vec<&str> = name.split('/').collect();
    parts.len() == 2 && parts.into_iter().all(is_word)
}
