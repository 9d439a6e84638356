//! Training under way: what stages have logged so far, and what alarmed.

use super::{figure, heading, table, text};
use crate::report::page::Page;
use crate::report::page::plots::{Layer, Plot, Style};
use crate::report::page::view::{Cell, Drawing, Entry, Section};
use crate::run::metrics::IterationMetrics;
use crate::stage::log::StageLog;

/// Alarms, whatever raised them.
pub(super) fn alarms(page: &Page) -> Option<Section> {
    let rows = page.extras.alarms.iter().map(|alarm| {
        vec![
            Cell::name(&alarm.arm),
            Cell::number(alarm.seed.to_string()),
            Cell::words(&alarm.stage),
            Cell::words(alarm.raised.alarm.name()),
            Cell::number(alarm.raised.step.to_string()),
            Cell::words(&alarm.raised.what),
        ]
    });
    let caption =
        "What looked wrong during training, each the first time, by the bounds of [alarms].";
    let header = ["arm", "seed", "stage", "alarm", "step", "what was seen"];
    Section::new("alarms", "Alarms", table(caption, &header, rows.collect()).into_iter().collect())
}

/// The curves of each arm that has a log.
pub(super) fn logs(page: &Page) -> Option<Section> {
    let mut blocks = vec![text(
        "Every step as it was logged, without smoothing. Reward and KL are of rollouts to training prompts; held-out \
         scores are of evaluations during training, and the first is the SFT model's.",
    )];
    for log in &page.extras.logs {
        let plots: Vec<Drawing> =
            log.stages.iter().flat_map(|(stage, log)| drawings(stage, log)).collect();
        blocks.push(heading(format!("{}, seed {}", log.arm, log.seed)));
        let legend = vec![Entry::new(Style::Series(0), &log.arm)];
        let stages: Vec<&str> = log.stages.iter().map(|(stage, _)| stage.as_str()).collect();
        blocks.extend(figure(format!("Logs of {}.", stages.join(", ")), legend, plots));
    }
    Section::new("logs", "Logs of training", blocks)
}

fn drawings(stage: &str, log: &StageLog) -> Vec<Drawing> {
    let steps = log.losses.iter().enumerate().map(|(step, loss)| (step as f64, *loss)).collect();
    let mut found = vec![plot(format!("Loss of {stage}, nats"), "optimizer steps", steps)];
    let truth = log.history.metrics.iter().all(|line| line.gold.is_some());
    let of = |figure: fn(&IterationMetrics) -> f64| {
        let lines = log.history.metrics.iter();
        lines.map(|line| (line.iteration as f64, figure(line))).collect::<Vec<_>>()
    };
    let reward = match truth {
        true => ("Gold reward of a rollout", of(|line| line.gold.unwrap_or(f64::NAN))),
        false => ("Σ r̂ of a rollout", of(|line| line.reward)),
    };
    let curves = [
        reward,
        ("KL from the SFT model, nats a rollout", of(|line| line.kl_k1)),
        ("Tokens of a rollout", of(|line| line.response_tokens)),
        ("Share of rollouts that end in EOS", of(|line| line.eos_rate)),
        ("Entropy of the policy, nats a token", of(|line| line.entropy)),
    ];
    found.extend(curves.map(|(y, points)| plot(y.to_owned(), "iterations", points)));
    let held_out = log.history.evaluations.iter();
    let held_out = held_out.map(|line| (line.iteration as f64, line.evaluation.score())).collect();
    found.push(plot("Held-out score".to_owned(), "iterations", held_out));
    found.into_iter().flatten().collect()
}

fn plot(y: String, x: &str, points: Vec<(f64, f64)>) -> Option<Drawing> {
    let description = format!("{y} over {x}");
    let layers = vec![Layer::Line { style: Style::Series(0), points, marked: false }];
    Drawing::of(None, &Plot { y, x: x.to_owned(), description, layers, ..Plot::default() })
}
