//! What commands print.

use std::collections::BTreeSet;
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use rand::seq::IndexedRandom;
use serde::Serialize;

use super::error::Error;
use crate::data::chat::{Message, Role};
use crate::data::letters;
use crate::data::tokenizer::Tokenizer;
use crate::equations::segmentation::Rule;
use crate::grid::plan::Plan;
use crate::grid::reported;
use crate::grid::reproduce::table;
use crate::grid::results::{Figures, Results};
use crate::model::generate::{Rows, generate as sample};
use crate::model::{CausalLm, ModelConfig};
use crate::rng::{stream, streams};
use crate::run::memory::{Bytes, Need};
use crate::run::{Context, Stage};
use crate::settings::Settings;
use crate::stage::cutoffs::Cutoffs;
use crate::stage::memory::{Estimator, advise};
use crate::stage::score::{self, Scorer, segmenter};
use crate::stage::score_text::{Encoded, Rater};
use crate::stage::segmented_text::SegmentedText;
use crate::stage::task::{HeldOut, Task, letter_prompts, model_tokenizer};
use crate::statistics::mean;
use crate::stop::say;
use crate::systems::Method;
use crate::systems::decode::{Calls, Decoded, Decoder, Kind};
use crate::table::{digits, listing, markdown};

/// Arguments of `generate`.
#[derive(Args)]
pub(super) struct GenerateArgs {
    /// What the user says [default: a held-out prompt of the embedded task]
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Number of responses
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    samples: u16,
    /// Use the reference model even where the run has a policy
    #[arg(long)]
    reference: bool,
    /// How responses are written, short for --set decode.kind=…
    #[arg(long, value_name = "KIND")]
    pub(super) decode: Option<Kind>,
}

/// Arguments of `segment`.
#[derive(Args)]
pub(super) struct SegmentArgs {
    /// What the user says [default: a held-out prompt of the embedded task]
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// The response to cut [default: one that the reference model writes]
    #[arg(long, value_name = "TEXT")]
    response: Option<String>,
    /// Responses to cut of the file that --data names, for a table of cutoffs
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    rows: u32,
}

/// Prints `value` as JSON.
pub(super) fn json<T: Serialize>(value: &T) -> Result<(), Error> {
    out(&serde_json::to_string_pretty(value).expect("a plain struct serialises"))
}

/// Prints a line. A closed pipe is not an error.
pub(super) fn out(text: &str) -> Result<(), Error> {
    match writeln!(std::io::stdout(), "{}", text.trim_end()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::Output(error)),
        _ => Ok(()),
    }
}

/// How this program was called, for commands that it suggests.
pub(super) fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "segment-rlhf".into())
}

/// Whether standard output shows colours.
pub(super) fn colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Every method with the choices of its system, and every decoder.
pub(super) fn systems() -> Result<(), Error> {
    let row = |method: &Method| {
        let row = method.0;
        let rules = [method.reward_rule(1.0), method.policy_rule(1.0)].map(Rule::name);
        let rule = match rules {
            [reward, policy] if reward == policy => policy.to_owned(),
            [reward, policy] => format!("{policy} (reward model: {reward})"),
        };
        let texts = [row.name, row.paper, row.rollouts, &rule, row.rewards, row.credit, row.loss];
        texts.map(str::to_owned).to_vec()
    };
    let header = ["method", "paper", "rollouts", "rule", "rewards", "credit", "loss"];
    out(&listing(&header, &Method::all().iter().map(row).collect::<Vec<_>>()))?;
    let row = |kind: &Kind| [kind.name(), kind.paper(), kind.about()].map(str::to_owned).to_vec();
    let header = ["decoder", "paper", "writes"];
    out(&format!("\n{}", listing(&header, &Kind::ALL.iter().map(row).collect::<Vec<_>>())))
}

/// Prints the tables of the paper.
pub(super) fn reported() -> Result<(), Error> {
    out(&reported::reported().to_string())
}

/// Prints the memory that each stage needs on each of so many ranks, for rows as long as the settings allow.
pub(super) fn memory(context: &Context, ranks: usize) -> Result<(), Error> {
    let Some(dir) = &context.model else {
        return Err(Error::Usage(
            "memory needs --model DIR: a folder with a config.json; nothing else in it is read"
                .into(),
        ));
    };
    let config = ModelConfig::from_dir(dir)?;
    let of = |settings: &Settings| {
        Estimator::new(settings, &config, context.device_name).over(ranks).stages()
    };
    let needs = of(&context.settings);
    let parts: Vec<&str> =
        vec!["trained weights", "optimizer", "gradients", "frozen weights", "activations"];
    let row = |need: &Need| {
        let part = |name: &&str| Bytes(need.part(name)).to_string();
        let figures = parts.iter().map(part);
        [need.stage.to_owned(), Bytes(need.total()).to_string()]
            .into_iter()
            .chain(figures)
            .collect()
    };
    let rows: Vec<Vec<String>> = needs.iter().map(row).collect();
    out(&markdown(&[&["stage", "all"], &parts[..]].concat(), &rows))?;
    let Some(free) = context.device_id().free_memory().map(|free| free as f64) else {
        return Ok(());
    };
    let mut text = format!("free on {}: {}", context.device_id(), Bytes(free));
    let most = |settings: &Settings| of(settings).iter().map(Need::total).fold(0.0, f64::max);
    if most(&context.settings) > free {
        let advice = advise(&context.settings, free, most);
        text += &format!("\nnot every stage fits; {advice}");
    }
    out(&text)
}

/// Prints the table, the paper's ordering of the methods, and one response before and after training.
pub(super) fn results(plan: &Plan, results: &Results, took: Duration) -> Result<(), Error> {
    out(&format!("\n{}", table(results)))?;
    let over = if plan.grid.seeds.len() > 1 { "over seeds" } else { "over prompts" };
    out(&format!(
        "gold: reward of the embedded task. win rate: against the SFT model's responses, judged by gold. \
         KL: nats a response. RM acc.: held-out pairs by their noisy labels, and by gold. n: responses or pairs of a \
         seed. ρ: Spearman's correlation, of responses' scores with gold and of segment rewards with true ones. F1: \
         segment starts with true phrase starts. ±: standard error {over}."
    ))?;
    let cells = plan.cells.iter().zip(&results.cells);
    let cells: Vec<(&Context, &Figures)> =
        cells.filter_map(|(of, cell)| Some((&of.context, cell.figures()?))).collect();
    let what = cells.iter().flat_map(|(_, figures)| figures.held_out());
    let what: BTreeSet<HeldOut> = what.collect();
    what.into_iter().filter_map(HeldOut::caution).try_for_each(out)?;
    let arms = plan.grid.experiments.iter().flat_map(|experiment| &experiment.arms);
    let methods: Vec<Method> = arms.map(|arm| arm.settings.method).collect();
    out(&reported::reported().ordering(&methods))?;
    let shown = cells.iter().find(|(of, _)| of.settings.method == Method::SEGMENT);
    if let Some((own, figures)) = shown.or(cells.first()) {
        let sample = &figures.evaluation.sample;
        let task = Task::open(own, Some(&own.reference_dir()?))?;
        let prompt = task.tokenizer.decode(&sample.prompt);
        out(&format!(
            "{}, the held-out prompt of median change in score:\nprompt        {}",
            own.settings.method.name(),
            prompt.trim()
        ))?;
        for (name, response) in [("before", &sample.before), ("after", &sample.after)] {
            let text = segmented(own, &task, &sample.prompt, response)?;
            let gold = task.gold(&sample.prompt, response).map(|gold| gold.reward());
            let gold = gold.map_or(String::new(), |gold| format!("{gold:+.1}"));
            out(&format!("{name:6} {gold:>6} {}", text.line(colour())))?;
        }
    }
    let run = plan.cells[0].context.run.display();
    out(&format!(
        "\n{:.0} s; results.json and table.md in {run}. To look closer:",
        took.as_secs_f64()
    ))?;
    let me = program();
    let commands = [
        (format!("{me} report {run} --open"), "tables, learning curves and texts as one page"),
        (format!("{me} segment --run {run}"), "a response, cut into segments with their rewards"),
        (format!("{me} generate --run {run}"), "what the policy answers to a held-out prompt"),
    ];
    let width = commands.iter().map(|(command, _)| command.len()).max().unwrap_or(0);
    let line = |(command, what): &(String, &str)| format!("  {command:width$}   {what}");
    out(&commands.iter().map(line).collect::<Vec<_>>().join("\n"))
}

/// The folder of the model that writes: the run's policy if it has one, unless the reference model or a model of the user's
/// is asked for.
pub(super) fn writes(context: &Context, reference: bool, given: bool) -> Result<PathBuf, Error> {
    let policy = context.dir(context.policy_stage()).join("model");
    let reference = reference || given || context.settings.reference_writes();
    Ok(if !reference && policy.exists() { policy } else { context.reference_dir()? })
}

/// Writes responses to a prompt; a model that the user gave goes before the run's policy.
pub(super) fn generate(context: &Context, args: &GenerateArgs, given: bool) -> Result<(), Error> {
    let settings = &context.settings;
    let dir = writes(context, args.reference, given)?;
    let tokenizer = model_tokenizer(&dir)?;
    let mut prompt = prompt(context, &tokenizer, args.prompt.as_deref())?;
    let surplus = prompt.len().saturating_sub(settings.sampling.prompt_tokens);
    if surplus > 0 {
        prompt.drain(..surplus);
        say(&format!(
            "--prompt: cut to its last {} tokens, as prompts of rollouts are (sampling.prompt_tokens)",
            prompt.len()
        ));
    }
    let generation = settings.generation(tokenizer.stop_tokens());
    check_length(&dir, prompt.len() + generation.max_new_tokens, "--prompt")?;
    let rows = vec![prompt.as_slice(); usize::from(args.samples)];
    let draws = streams(settings.seed, "generate", 0..rows.len());
    let stop = &context.stop;
    if settings.decode.kind == Kind::Sample {
        let (model, config) = CausalLm::load(&dir, context.frozen())?;
        out(tokenizer.decode(&prompt).trim())?;
        for response in sample(&model, &config, &rows, generation, draws, stop)? {
            out(tokenizer.decode(&response).trim())?;
        }
        return Ok(());
    }
    context.needs_reward_model(&format!("decode.kind = {:?}", settings.decode.kind.name()))?;
    score::check_length(context, prompt.len() + generation.max_new_tokens)?;
    let (ends, stops) = (tokenizer.sentence_ends(), tokenizer.stop_tokens());
    let scorer = Scorer::load(context, ends, stops, settings.ppo.rows_at_once)?;
    let (config, model) =
        (ModelConfig::from_dir(&dir)?, scorer.base().language_model(&dir, context.frozen())?);
    let decoder = Decoder {
        settings: &settings.decode,
        generation,
        reward_model: scorer.judge.reward_model(),
        reference: &scorer.reference,
        stop,
    };
    out(tokenizer.decode(&prompt).trim())?;
    for Decoded { response, calls } in decoder.decode(&model, &config, &rows, draws)? {
        out(tokenizer.decode(&response).trim())?;
        let Calls { model_calls, reward_calls, sampled_tokens } = calls;
        out(&format!(
            "({model_calls} calls of the model, {reward_calls} of the reward model, {sampled_tokens} tokens drawn for {})",
            response.len()
        ))?;
    }
    Ok(())
}

/// Shows a response cut into segments.
pub(super) fn segment(context: &Context, args: &SegmentArgs, as_json: bool) -> Result<(), Error> {
    if context.data.is_some() && args.prompt.is_none() && args.response.is_none() {
        let cutoffs = Cutoffs::of(context, args.rows as usize)?;
        return if as_json { json(&cutoffs) } else { out(&cutoffs.to_string()) };
    }
    let dir = context.reference_dir()?;
    let tokenizer = model_tokenizer(&dir)?;
    let prompt = prompt(context, &tokenizer, args.prompt.as_deref())?;
    let response = match &args.response {
        Some(text) => {
            if tokenizer.encode(text)?.is_empty() {
                return Err(Error::Usage("--response is empty; give at least one token".into()));
            }
            let question = args.prompt.iter().map(|text| message(Role::User, text));
            let question: Vec<Message> = question.collect();
            let (_, response) =
                tokenizer.encode_conversation(&question, &message(Role::Assistant, text))?;
            check_length(&dir, prompt.len() + response.len(), "--response")?;
            response
        }
        None => {
            let generation = context.settings.generation(tokenizer.stop_tokens());
            check_length(&dir, prompt.len() + generation.max_new_tokens, "--prompt")?;
            let (model, config) = CausalLm::load(&dir, context.frozen())?;
            let draws = streams(context.settings.seed, "generate", 0..1);
            let rows = [prompt.as_slice()];
            let stop = &context.stop;
            sample(&model, &config, &rows, generation, draws, stop)?.remove(0)
        }
    };
    let mut own = context.clone();
    own.data.get_or_insert_with(Default::default); // any text, not only the embedded task's
    let task = Task::open(&own, Some(&dir))?;
    let text = segmented(context, &task, &prompt, &response)?;
    if as_json {
        return json(&text);
    }
    out(&text.table(colour()))?;
    let rule = context.settings.method.policy_rule(context.settings.segmentation.entropy_cutoff);
    let (segments, tokens) = (text.segments.len(), text.tokens.len());
    let each = text.segments.iter().map(|segment| (segment.end - segment.start) as f64);
    let cutoff = match rule {
        Rule::Entropy { cutoff } => format!("cutoff {cutoff} nats: "),
        other => format!("{}: ", other.name()),
    };
    out(&format!("{cutoff}{segments} segments of {tokens} tokens, {} each", digits(mean(each), 1)))
}

/// Rejects a text that is too long, with its response, for the model in `dir`.
fn check_length(dir: &Path, tokens: usize, origin: &str) -> Result<(), Error> {
    let remedy = "shorten the text, or lower sampling.max_new_tokens";
    Ok(ModelConfig::from_dir(dir)?.length_limit().check(tokens, origin, remedy)?)
}

pub(super) fn message(role: Role, content: &str) -> Message {
    Message { role, content: content.to_owned() }
}

/// The tokens of a user's message, or of a held-out prompt of the embedded task.
fn prompt(context: &Context, tokenizer: &Tokenizer, text: Option<&str>) -> Result<Vec<u32>, Error> {
    match text {
        Some(text) => Ok(tokenizer.encode_prompt(&[message(Role::User, text)])?),
        None if tokenizer.vocab_size() == letters::vocabulary().len() => {
            let held_out = letters::split(letter_prompts(&context.settings)).1;
            let mut rng = stream(context.settings.seed, "shown prompt", 0);
            Ok(held_out.choose(&mut rng).expect("there are held-out prompts").tokens())
        }
        None => {
            Err(Error::Usage("give --prompt TEXT: this model is not the embedded task's".into()))
        }
    }
}

/// A response with entropies and segments, and with rewards if the run has a reward model and a normalizer.
fn segmented(
    context: &Context,
    task: &Task,
    prompt: &[u32],
    response: &[u32],
) -> Result<SegmentedText, Error> {
    let judged = context.reward_model.is_some() || context.reward_dir().is_ok();
    let cuts_alike = !judged || score::cuts_alike(context)?;
    if !cuts_alike {
        say("without rewards: the reward model was trained for segments that are cut otherwise");
    }
    if judged && cuts_alike && !context.settings.has_verdict() {
        let rater = Rater::trained(context)?;
        let fitted = context.dir(Stage::FitNormalizer).join("normalizer.json").exists();
        let normalizer = fitted.then(|| rater.normalizer(context)).transpose()?;
        let text = Encoded { prompt: prompt.to_vec(), response: response.to_vec(), cut: false };
        return Ok(rater.show(&[text], normalizer.as_ref())?.remove(0));
    }
    let (settings, tokenizer) = (&context.settings, &task.tokenizer);
    let (model, _) = CausalLm::load(&context.reference_dir()?, context.frozen())?;
    let rows = [(prompt, response)];
    let entropies = Rows::new(&rows, 1).view(&model, &context.stop)?.remove(0).entropies;
    let actions = settings.method.policy_rule(settings.segmentation.entropy_cutoff);
    let (ends, stops) = (tokenizer.sentence_ends(), tokenizer.stop_tokens());
    let segments = segmenter(settings, actions, ends, stops).cut(response, &entropies)?;
    let (prompt, pieces) = (tokenizer.decode(prompt), tokenizer.pieces(response));
    Ok(SegmentedText::new(prompt, response, pieces, &entropies, &segments, &[], &[]))
}
