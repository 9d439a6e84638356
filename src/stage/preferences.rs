//! Preference pairs: the user's, or for the embedded task two SFT samples a prompt with a noisy label, or two letters on
//! one scaffold with labels of their clauses.

use std::cmp::Ordering;
use std::path::Path;

use rand::Rng;
use serde::{Deserialize, Serialize};

use super::task::{Data, HeldOut, Split, Task, permutation};
use crate::data::letters::{self, Gold, Prompt};
use crate::data::store::{Items, StoredRow};
use crate::model::CausalLm;
use crate::model::generate::generate;
use crate::rng::{Stream, streams};
use crate::run::fingerprint::{file_fingerprint, model_fingerprint};
use crate::run::folder::{Parts, read_json_lines, write_file};
use crate::run::{Context, Error, FolderError, Stage};
use crate::settings::AlignedSettings;

/// A prompt and two responses, with their gold rewards if known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// The prompt's tokens.
    pub prompt: Vec<u32>,
    /// The preferred response's tokens.
    pub chosen: Vec<u32>,
    /// The other response's tokens.
    pub rejected: Vec<u32>,
    /// The gold rewards of chosen and rejected.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gold: Option<[f64; 2]>,
    /// The preferred response's score less the other's, if the data have scores.
    #[serde(skip)]
    pub score_gap: Option<f32>,
    /// The label of the segment of each response token, if segments have labels: 1 where the preferred response is better,
    /// -1 where the other is, 0 for a tie.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub labels: Option<[Vec<i8>; 2]>,
}

impl From<StoredRow> for Pair {
    fn from(row: StoredRow) -> Self {
        let StoredRow { prompt, responses: [chosen, rejected], score_gap, labels } = row;
        Self { prompt, chosen, rejected, gold: None, score_gap, labels }
    }
}

impl Pair {
    /// The pair with its responses the other way round.
    fn turned(self) -> Self {
        let turn = |labels: Vec<i8>| labels.into_iter().map(|label| -label).collect();
        Self {
            chosen: self.rejected,
            rejected: self.chosen,
            gold: self.gold.map(|[chosen, rejected]| [rejected, chosen]),
            score_gap: self.score_gap.map(|gap| -gap),
            labels: self.labels.map(|[chosen, rejected]| [turn(rejected), turn(chosen)]),
            ..self
        }
    }

    /// What the preferred response scores more than the other: in the data, or by gold.
    pub(super) fn gap(&self) -> Option<f64> {
        self.score_gap.map(f64::from).or(self.gold.map(|[chosen, rejected]| chosen - rejected))
    }

    /// Prompt and response of the chosen, then of the rejected.
    pub fn rows(&self) -> [(&[u32], &[u32]); 2] {
        [&self.chosen, &self.rejected].map(|response| (&self.prompt[..], &response[..]))
    }
}

/// Whether a pair is ordered as its label says, given the chosen score less the rejected one; a tie is half.
pub(super) fn is_right(gap: f64) -> f64 {
    if gap == 0.0 { 0.5 } else { f64::from(gap > 0.0) }
}

/// The result of the stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Pairs to train on.
    pub pairs: usize,
    /// Mean |Δ gold| of a pair.
    pub mean_gap: f64,
    /// Share of labels that agree with the gold reward: the ceiling of accuracy on noisy labels.
    pub label_agreement: f64,
}

/// The run's pairs and their fingerprint: from `--data`, where `labelled` with labels of segments, or made once into
/// `RUN/preferences`.
pub fn load(context: &Context, task: &Task, labelled: bool) -> Result<Data<Pair>, Error> {
    if let Some(pairs) = task.file_pairs(context, labelled)? {
        return Ok(pairs);
    }
    let dir = run(context)?.1;
    let read = |name: &str| {
        let path = dir.join(name);
        Ok::<_, Error>((Items::Memory(read_json_lines::<Pair>(&path)?), file_fingerprint(&path)?))
    };
    let ((train, first), (held_out, second)) = (read("train.jsonl")?, read("held_out.jsonl")?);
    Ok((Split { train, held_out, what: HeldOut::Prompts }, first + &second))
}

/// Samples the embedded task's pairs from the reference model, unless that is done.
pub fn run(context: &Context) -> Result<(Summary, std::path::PathBuf), Error> {
    context.needs_reward_model(Stage::Preferences.command())?;
    let context = &context.within(Stage::Preferences);
    let reference = context.reference_dir()?;
    Task::open(context, Some(&reference))?;
    let inputs = [("model", model_fingerprint(&reference)?)];
    let folder = context.open(Stage::Preferences, &inputs)?;
    let dir = folder.dir().to_owned();
    if let Some(summary) = folder.summary()? {
        return Ok((summary, dir));
    }
    let (model, config) = CausalLm::load(&reference, context.frozen())?;
    let settings = &context.settings;
    let generation = settings.generation(&[letters::EOS]);
    let (train, held_out) = letters::split(letters::prompts());
    let aligned = &settings.task.aligned;
    let counts = [settings.task.pairs, settings.task.held_out_pairs];
    let batch = settings.sampling.rows_at_once.div_ceil(2); // two responses a pair
    let total = counts.iter().map(|count| count.div_ceil(batch)).sum();
    let kept: [Parts<Pair>; 2] = [folder.parts("train")?, folder.parts("held-out")?];
    let done = kept.iter().map(Parts::batches).sum();
    let stage = context.progress.stage(context.title("preferences"), total, done);
    let sample = |prompts: &[Prompt], count: usize, purpose: &str, mut pairs: Parts<Pair>| {
        let purpose = |what: &str| format!("{purpose}: {what}");
        let order = permutation(settings.seed, &purpose("order"), 0, prompts.len());
        while let Some(next) = pairs.left(count, batch) {
            let (start, end) = (next.start, next.end);
            let chosen: Vec<&Prompt> = next.map(|i| &prompts[order[i % order.len()]]).collect();
            if aligned.pairs {
                context.stop.check()?;
                let draws = streams(settings.seed, &purpose("aligned"), start..end);
                let made = chosen.iter().zip(draws);
                pairs
                    .push(made.map(|(prompt, rng)| aligned_pair(prompt, aligned, rng)).collect())?;
                stage.step("");
                continue;
            }
            let tokens: Vec<Vec<u32>> =
                chosen.iter().flat_map(|p| [p.tokens(), p.tokens()]).collect();
            let rows: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
            let draws = streams(settings.seed, &purpose("responses"), 2 * start..2 * end);
            let responses = generate(&model, &config, &rows, generation, draws, &context.stop)?;
            let labels = streams(settings.seed, &purpose("labels"), start..end);
            let labelled = |((prompt, two), mut rng): ((&&Prompt, &[Vec<u32>]), Stream)| {
                let temperature = settings.task.label_temperature;
                label(prompt, [two[0].clone(), two[1].clone()], temperature, &mut rng)
            };
            let two = responses.chunks(2);
            pairs.push(chosen.iter().zip(two).zip(labels).map(labelled).collect())?;
            stage.step("");
        }
        Ok::<_, Error>(pairs.into_items())
    };
    let [of_train, of_held_out] = kept;
    let pairs = sample(&train, counts[0], "pairs", of_train)?;
    let held_out = sample(&held_out, counts[1], "held-out pairs", of_held_out)?;
    write_pairs(&folder.to_write()?.join("train.jsonl"), &pairs)?;
    write_pairs(&dir.join("held_out.jsonl"), &held_out)?;
    let gaps: Vec<f64> = pairs.iter().filter_map(|p| p.gold).map(|[c, r]| c - r).collect();
    let mean = |f: fn(f64) -> f64| gaps.iter().copied().map(f).sum::<f64>() / gaps.len() as f64;
    let summary = Summary {
        pairs: pairs.len(),
        mean_gap: mean(f64::abs),
        label_agreement: mean(|gap| if gap > 0.0 { 1.0 } else { f64::from(gap == 0.0) / 2.0 }),
    };
    folder.finish(&summary)?;
    let agree = 100.0 * summary.label_agreement;
    stage.finish(format!("{} pairs, {agree:.1} % of labels agree with gold", pairs.len()));
    Ok((summary, dir))
}

/// Orders two responses by a label drawn from their gold rewards.
fn label(prompt: &Prompt, two: [Vec<u32>; 2], temperature: f64, rng: &mut Stream) -> Pair {
    let gold = two.each_ref().map(|response| letters::gold(prompt, response).reward());
    let [first, second] = two;
    let prompt = prompt.tokens();
    let pair = Pair {
        prompt,
        chosen: first,
        rejected: second,
        gold: Some(gold),
        score_gap: None,
        labels: None,
    };
    match letters::prefers_first(gold[0] / temperature, gold[1] / temperature, rng) {
        true => pair,
        false => pair.turned(),
    }
}

/// Two letters on one scaffold, with a label of the pair and one of each pair of clauses: which is better by gold, and with
/// the chance `label_flips` the other way round. Two letters as good as each other have a label by chance.
fn aligned_pair(prompt: &Prompt, settings: &AlignedSettings, mut rng: Stream) -> Pair {
    let [first, second] = letters::write_aligned(prompt, settings.resampled_share, &mut rng);
    let truth = [&first, &second].map(|letter| letters::gold(prompt, letter));
    let gold = truth.each_ref().map(Gold::reward);
    let flips = |rng: &mut Stream| rng.random_bool(settings.label_flips);
    let mut labels = truth.each_ref().map(|gold| vec![0; gold.credits.len()]);
    for (ours, theirs) in truth[0].clauses.iter().zip(&truth[1].clauses) {
        let better = ours.credit - theirs.credit;
        let label = if better.abs() < 1e-9 { 0 } else { better.signum() as i8 };
        let label = if flips(&mut rng) { -label } else { label };
        for (labels, clause) in labels.iter_mut().zip([ours, theirs]) {
            labels[clause.range.clone()].fill(label);
        }
    }
    let prefers_first = match gold[0].total_cmp(&gold[1]) {
        Ordering::Equal => rng.random_bool(0.5),
        order => order.is_gt() != flips(&mut rng),
    };
    let pair = Pair {
        prompt: prompt.tokens(),
        chosen: first,
        rejected: second,
        gold: Some(gold),
        score_gap: None,
        labels: Some(labels),
    };
    if prefers_first { pair } else { pair.turned() }
}

fn write_pairs(path: &Path, pairs: &[Pair]) -> Result<(), FolderError> {
    let line = |pair: &Pair| serde_json::to_string(pair).expect("a plain struct serialises") + "\n";
    let text: String = pairs.iter().map(line).collect();
    write_file(path, text.as_bytes())
}
