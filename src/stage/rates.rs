//! The learning rates of a stage that trains a user's model, told before it trains.

use crate::model::ModelConfig;
use crate::run::Context;
use crate::settings::{Preset, Settings};

/// The largest model that the default rates were made for.
const TINY: u128 = 2_000_000;

/// Tells the learning rates of `optimizers`, each by its section, and whether they are the embedded task's though the model
/// is none of its size.
pub(super) fn tell(context: &Context, config: &ModelConfig, optimizers: &[&str]) {
    if context.model.is_none() && context.data.is_none() {
        return;
    }
    let line = line(&context.settings, config.parameters(), optimizers);
    context.progress.line(&line);
}

fn line(settings: &Settings, parameters: u128, optimizers: &[&str]) -> String {
    let rate = |settings: &Settings, section: &str| match section {
        "sft.optimizer" => settings.sft.optimizer.learning_rate,
        "reward.optimizer" => settings.reward.optimizer.learning_rate,
        "ppo.actor" => settings.ppo.actor.learning_rate,
        "ppo.critic" => settings.ppo.critic.learning_rate,
        "dpo.optimizer" => settings.dpo.optimizer.learning_rate,
        other => unreachable!("no section {other}"),
    };
    let rates =
        optimizers.iter().map(|of| format!("{of}.learning_rate = {:e}", rate(settings, of)));
    let trained = match settings.lora.rank {
        0 if parameters < 1_000_000 => format!("all {parameters} weights"),
        0 => format!("all {:.1} million weights", parameters as f64 / 1e6),
        rank => format!("adapters of rank {rank}"),
    };
    let told = format!("training {trained}: {}", rates.collect::<Vec<_>>().join(", "));
    let defaults = Settings::defaults();
    let as_default = optimizers.iter().any(|of| rate(settings, of) == rate(&defaults, of));
    if parameters <= TINY || !as_default {
        return told;
    }
    let preset = Preset::for_model(parameters, settings.lora.rank > 0).name();
    format!(
        "{told}; caution: the default is for the embedded task's tiny model, and far too high here: give --preset {preset}, \
         or set it"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(sets: &[&str]) -> Settings {
        Settings::resolve(&[], &sets.iter().map(|set| (*set).to_owned()).collect::<Vec<_>>())
            .unwrap()
    }

    #[test]
    fn the_default_rate_is_no_rate_for_a_pretrained_model() {
        let told = line(&with(&["lora.rank=8"]), 134_515_008, &["reward.optimizer"]);
        assert_eq!(
            told,
            "training adapters of rank 8: reward.optimizer.learning_rate = 1e-3; caution: the default is for the embedded \
             task's tiny model, and far too high here: give --preset small-lora, or set it"
        );
        let set = with(&["ppo.actor.learning_rate=1e-6", "ppo.critic.learning_rate=1e-5"]);
        let told = line(&set, 134_515_008, &["ppo.actor", "ppo.critic"]);
        assert_eq!(
            told,
            "training all 134.5 million weights: ppo.actor.learning_rate = 1e-6, ppo.critic.learning_rate = 1e-5"
        );
        assert!(!line(&with(&[]), 130_000, &["ppo.actor"]).contains("caution"));
    }

    #[test]
    fn every_preset_for_a_pretrained_model_sets_every_rate() {
        for (parameters, adapters) in
            [(1e8 as u128, true), (1e8 as u128, false), (4e9 as u128, true), (4e9 as u128, false)]
        {
            let preset = Preset::for_model(parameters, adapters);
            let mut settings = Settings::resolve(&[preset.overlay()], &[]).unwrap();
            settings.lora.rank = usize::from(adapters);
            let all =
                ["sft.optimizer", "reward.optimizer", "ppo.actor", "ppo.critic", "dpo.optimizer"];
            assert!(!line(&settings, parameters, &all).contains("caution"), "{}", preset.name());
        }
    }
}
