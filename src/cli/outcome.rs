//! The result of a stage in a few lines, and what to run next.

use super::error::Error;
use super::show::{out, program};
use crate::equations::normalizer::Normalizer;
use crate::run::{Context, Stage};
use crate::stage::evaluate::Evaluation;
use crate::stage::fit_normalizer::NormalizerFile;
use crate::stage::log::alarms;
use crate::stage::online::keep;
use crate::stage::task::model_tokenizer;
use crate::stage::{dpo, evaluate, preferences, reward, sft};
use crate::table::{digits, rate, with_error};

/// A stage's result, for a reader.
pub(super) trait Outcome {
    /// A name and a value a line.
    fn lines(&self, context: &Context) -> Vec<(&'static str, String)>;
}

/// Prints the outcome of `stage`, what alarmed in it, and the command that comes next.
pub(super) fn print(context: &Context, stage: Stage, outcome: &impl Outcome) -> Result<(), Error> {
    let dir = context.dir(stage);
    let mut lines = outcome.lines(context);
    for raised in alarms(context, stage)? {
        lines.push(("alarm", raised.to_string().trim_start_matches("alarm ").to_owned()));
    }
    lines.push(("folder", dir.display().to_string()));
    lines.extend(next(context, stage).map(|command| ("next", command)));
    let width = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let indent = format!("\n{:width$}  ", "");
    let line = |(name, value): &(&str, String)| {
        let value = value.lines().collect::<Vec<_>>().join(&indent);
        let space = " ".repeat(width - name.chars().count());
        format!("{name}{space}  {value}")
    };
    out(&lines.iter().map(line).collect::<Vec<_>>().join("\n"))
}

/// The command of the stage that follows.
fn next(context: &Context, stage: Stage) -> Option<String> {
    let own = match stage {
        Stage::Evaluate => "generate",
        // With a model of the user's, it is none of the stages, and those that follow leave --model out.
        Stage::Sft if context.data.is_some() => "train-reward",
        _ => context.stages().skip_while(|of| *of != stage).nth(1)?.command(),
    };
    let method = context.settings.method.name();
    let mut command =
        format!("{} {own} --run {} --method {method}", program(), context.run.display());
    let reads_run = matches!(own, "evaluate" | "generate");
    for (name, path) in [("model", &context.model), ("data", &context.data)] {
        let is_past = name == "model" && stage == Stage::Sft;
        if let Some(path) = path.as_ref().filter(|_| !reads_run && !is_past) {
            command += &format!(" --{name} {}", path.display());
        }
    }
    if !reads_run && context.model.is_some() {
        command += " (and your --settings or --preset)";
    }
    Some(command)
}

/// `0.76 of 800 held-out pairs`.
fn share(share: f64, pairs: usize) -> String {
    format!("{} of {pairs} held-out pairs", digits(share, 3))
}

impl Outcome for sft::Summary {
    fn lines(&self, _: &Context) -> Vec<(&'static str, String)> {
        let perplexity = digits(self.held_out_cross_entropy.exp(), 2);
        let loss = digits(self.held_out_cross_entropy, 3);
        vec![
            ("held-out loss", format!("{loss} nats a token (perplexity {perplexity})")),
            ("parameters", self.parameters.to_string()),
        ]
    }
}

impl Outcome for preferences::Summary {
    fn lines(&self, _: &Context) -> Vec<(&'static str, String)> {
        vec![
            ("pairs", self.pairs.to_string()),
            ("gold gap", format!("{} on average", digits(self.mean_gap, 2))),
            ("labels", format!("{} agree with the gold reward", digits(self.label_agreement, 3))),
        ]
    }
}

impl Outcome for reward::Summary {
    fn lines(&self, _: &Context) -> Vec<(&'static str, String)> {
        let mut lines = vec![("accuracy", share(self.accuracy, self.pairs))];
        if let (Some(accuracy), Some(pairs)) = (self.gold_accuracy, self.gold_pairs) {
            lines.push(("by gold", share(accuracy, pairs)));
        }
        if let Some(surest) = self.calibration.last() {
            let [predicted, observed] =
                [surest.predicted, surest.observed].map(|value| digits(100.0 * value, 0));
            lines.push((
                "calibration",
                format!("where it is surest: {predicted} % expected, {observed} % right"),
            ));
        }
        let [segments, tokens] = [self.segments, self.segment_tokens].map(|of| digits(of, 1));
        lines.push(("segments", format!("{segments} a response, {tokens} tokens each")));
        lines
    }
}

impl Outcome for NormalizerFile {
    fn lines(&self, _: &Context) -> Vec<(&'static str, String)> {
        let fit = match &self.normalizer {
            Normalizer::LocationAware { w_mean, b_mean, w_std, b_std, .. } => format!(
                "Mean(p) = {w_mean:.3} ln p {b_mean:+.3}, Std(p) = {w_std:.3} ln p {b_std:+.3}"
            ),
            other => format!("{other:?}"),
        };
        let explained =
            |share: Option<f64>| share.map_or("–".to_owned(), |share| digits(share, 2));
        vec![
            ("fit", fit),
            ("rewards", format!("{} at {} locations", self.rewards, self.statistics.len())),
            (
                "R²",
                format!(
                    "{} of the means, {} of the deviations",
                    explained(self.r_squared_mean),
                    explained(self.r_squared_std)
                ),
            ),
        ]
    }
}

impl Outcome for keep::Summary {
    fn lines(&self, context: &Context) -> Vec<(&'static str, String)> {
        let mut lines = judged(&self.last);
        let best =
            format!("{} after iteration {}", digits(self.best.score(), 2), self.best_iteration);
        lines.push((
            "best",
            format!("{best}, in {}", context.dir(Stage::Ppo).join("best/model").display()),
        ));
        lines
    }
}

/// The figures of a policy on held-out prompts.
fn judged(evaluation: &Evaluation) -> Vec<(&'static str, String)> {
    let Evaluation { kl, tokens, eos_rate, win_rate, responses, .. } = *evaluation;
    let name = match evaluation {
        Evaluation { pass_rate: Some(_), .. } => "pass rate",
        Evaluation { gold: Some(_), .. } => "held-out gold",
        _ => "held-out reward",
    };
    let mut lines = vec![(name, with_error(Some(evaluation.score()), evaluation.score_error()))];
    if let Some(share) = win_rate {
        lines.push(("win rate", format!("{} against the SFT model", rate(share, responses))));
    }
    let [kl, tokens, eos] =
        [(kl, 2), (tokens, 1), (100.0 * eos_rate, 0)].map(|(v, d)| digits(v, d));
    lines.push(("KL", format!("{kl} nats a response; {tokens} tokens, {eos} % end in EOS")));
    lines
}

impl Outcome for dpo::Summary {
    fn lines(&self, _: &Context) -> Vec<(&'static str, String)> {
        let [chosen, rejected] = [self.chosen_reward, self.rejected_reward].map(|of| digits(of, 3));
        vec![
            ("accuracy", share(self.accuracy, self.pairs)),
            ("loss", format!("{} nats", digits(self.loss, 3))),
            ("rewards", format!("{chosen} of chosen, {rejected} of rejected responses")),
        ]
    }
}

impl Outcome for evaluate::Summary {
    fn lines(&self, context: &Context) -> Vec<(&'static str, String)> {
        let mut lines = judged(&self.after);
        lines[0].1 += &format!(" (SFT model {})", digits(self.before.score(), 2));
        let [before, after] = [self.before.tokens, self.after.tokens].map(|of| digits(of, 1));
        lines.push(("before, after", format!("{before} → {after} tokens")));
        let tokenizer = context.reference_dir().ok().and_then(|dir| model_tokenizer(&dir).ok());
        if let Some(tokenizer) = tokenizer {
            let evaluate::Sample { prompt, before, after } = &self.sample;
            let text = |tokens: &[u32]| tokenizer.decode(tokens).trim().to_owned();
            lines.extend([
                ("prompt", text(prompt)),
                ("SFT model", text(before)),
                ("policy", text(after)),
            ]);
        }
        lines
    }
}
