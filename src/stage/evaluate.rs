//! Evaluating a policy on held-out prompts, against the SFT model.

use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::memory;
use super::score::{Fingerprints, Scorer, check_length};
use super::task::{HeldOut, Split, Task};
use crate::data::letters::ClauseKind;
use crate::equations::kl::k1;
use crate::model::generate::{Rows, TokenView};
use crate::model::{CausalLm, ModelConfig};
use crate::rng::streams;
use crate::run::fingerprint::model_fingerprint;
use crate::run::folder::{Log, Parts, StageFolder, read_json_lines};
use crate::run::{Context, Error, Stage};
use crate::statistics::length_control::{Comparison, length_control};
use crate::statistics::{mean, standard_error};
use crate::systems::decode::{self, Calls, Decoded, Decoder};
use crate::systems::reward_model::SegmentRewards;
use crate::table::{digits, rate};

/// Figures of one model's responses to the held-out prompts. Means are over responses; standard errors
/// over prompts, whose samples are averaged first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Responses to all prompts together, of which the shares below are shares.
    pub responses: usize,
    /// Share of responses that pass, if a verdict is the reward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pass_rate: Option<f64>,
    /// Its standard error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pass_rate_error: Option<f64>,
    /// Gold reward, if the truth is known.
    pub gold: Option<f64>,
    /// Its standard error.
    pub gold_error: Option<f64>,
    /// The judge's score: e_φ of the run's reward model, or its verdict.
    pub sequence_score: f64,
    /// Its standard error.
    pub sequence_score_error: Option<f64>,
    /// Share of responses that beat the SFT model's to the same prompt (ties count half), by verdict if there is one, by
    /// gold reward if it is known, else by e_φ; absent for the SFT model itself.
    pub win_rate: Option<f64>,
    /// Its standard error.
    pub win_rate_error: Option<f64>,
    /// The win rate at equal lengths in tokens ([`length_control`](crate::statistics::length_control)).
    pub length_controlled_win_rate: Option<f64>,
    /// Its standard error, over responses.
    pub length_controlled_error: Option<f64>,
    /// KL from the reference (k1), nats a response.
    pub kl: f64,
    /// Tokens of a response, EOS included.
    pub tokens: f64,
    /// Segments of a response.
    pub segments: f64,
    /// Clauses that repeat an earlier one, a response; if the truth is known.
    pub repeats: Option<f64>,
    /// Share of responses that ended in EOS.
    pub eos_rate: f64,
    /// Calls of the language model, a response, where a decoder wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_calls: Option<f64>,
    /// Calls of the reward model, a response, where a decoder wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward_calls: Option<f64>,
    /// Tokens drawn for a response, those of rejected candidates included, where a decoder wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampled_tokens: Option<f64>,
}

impl Evaluation {
    /// What policies are compared by: the pass rate if there is a verdict, the gold reward if it is known, else e_φ.
    pub fn score(&self) -> f64 {
        self.pass_rate.or(self.gold).unwrap_or(self.sequence_score)
    }

    /// Its standard error.
    pub fn score_error(&self) -> Option<f64> {
        match (self.pass_rate, self.gold) {
            (Some(_), _) => self.pass_rate_error,
            (None, Some(_)) => self.gold_error,
            (None, None) => self.sequence_score_error,
        }
    }
}

/// Responses with their judgements.
pub struct Judged {
    /// The prompts' tokens, one for each response.
    pub prompts: Vec<Vec<u32>>,
    /// The responses' tokens.
    pub responses: Vec<Vec<u32>>,
    /// The score of each: verdict, gold reward, or e_φ.
    pub scores: Vec<f64>,
    /// The figures, without the win rate.
    pub evaluation: Evaluation,
}

/// Whose responses are sampled. Each side of a comparison has its own random streams, so a win rate compares independent
/// responses, not the same draws before and after an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The policy.
    Policy,
    /// The SFT model that it is compared with.
    Baseline,
}

impl Side {
    fn purpose(self) -> &'static str {
        match self {
            Self::Policy => "evaluation",
            Self::Baseline => "evaluation of the baseline",
        }
    }
}

/// The progress of judging one model, kept in the stage's folder so that a stop does not lose it.
#[derive(Default)]
pub struct Kept {
    responses: Parts<Decoded>,
    judgements: Parts<Judgement>,
    /// Where the time of each batch of responses is written, if it is.
    timings: Option<Log>,
}

/// A line of `timings.jsonl`: the time that a batch of responses took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// The batch's responses.
    pub responses: usize,
    /// Wall time of the batch, in which its prompts are written side by side.
    pub seconds: f64,
}

impl Timing {
    /// Seconds a response of the decoder whose evaluation is in the folder `dir`, if they are known.
    pub fn a_response(dir: &Path) -> Option<f64> {
        let lines: Vec<Self> = read_json_lines(&dir.join(TIMINGS)).ok()?;
        let responses: usize = lines.iter().map(|line| line.responses).sum();
        let seconds: f64 = lines.iter().map(|line| line.seconds).sum();
        (responses > 0).then(|| seconds / responses as f64)
    }
}

const TIMINGS: &str = "timings.jsonl";

/// What the models say of a response.
#[derive(Serialize, Deserialize)]
struct Judgement {
    /// e_φ.
    sequence_score: f64,
    /// KL from the reference (k1), nats.
    kl: f64,
    segments: usize,
}

impl Kept {
    /// What `folder` keeps under the name `name`.
    pub fn open(folder: &StageFolder, name: &str) -> Result<Self, Error> {
        let responses = folder.parts(&format!("{name}-responses"))?;
        let judgements = folder.parts(&format!("{name}-judgements"))?;
        Ok(Self { responses, judgements, timings: None })
    }

    /// The same, with the time that responses take.
    pub fn timed(self, folder: &StageFolder) -> Result<Self, Error> {
        let timings = Some(folder.log(TIMINGS, self.responses.batches())?);
        Ok(Self { timings, ..self })
    }

    /// Batches that are done.
    fn batches(&self) -> usize {
        self.responses.batches() + self.judgements.batches()
    }
}

/// Evaluates models on one set of prompts, with the same random draws for every model of one [`Side`].
pub struct Evaluator<'a> {
    /// Settings and seed.
    pub context: &'a Context,
    /// The truth, if it is known.
    pub task: &'a Task,
    /// Reference and reward model.
    pub scorer: &'a Scorer,
    /// Whether its prompts are held out of the policy's training.
    pub held_out: HeldOut,
    /// How the side of the policy writes, if it does not sample.
    pub decode: Option<decode::Settings>,
    prompts: Vec<Vec<u32>>,
}

impl<'a> Evaluator<'a> {
    /// An evaluator on the first held-out prompts; if there is one prompt, on that, and a line says so.
    pub fn new(context: &'a Context, task: &'a Task, scorer: &'a Scorer) -> Result<Self, Error> {
        let Split { held_out: prompts, what, .. } = task.prompts(context)?;
        what.tell(context);
        let prompts = prompts.read(0..prompts.len().min(context.settings.evaluation.prompts))?;
        let longest = prompts.iter().map(Vec::len).max().unwrap_or_default();
        check_length(context, longest + context.settings.sampling.max_new_tokens)?;
        Ok(Self { context, task, scorer, held_out: what, decode: None, prompts })
    }

    /// Batches in which one model is judged.
    fn batches(&self) -> usize {
        let settings = &self.context.settings;
        let rows = self.prompts.len() * settings.evaluation.samples;
        rows.div_ceil(settings.sampling.rows_at_once) + rows.div_ceil(settings.ppo.rows_at_once)
    }

    /// Samples the model's responses and judges them, as far as that is not `kept`; calls `done` after each batch.
    ///
    /// # Errors
    ///
    /// [`Error::Segmentation`], [`Error::NonFinite`], [`Error::Interrupted`] and [`Error::Folder`].
    pub fn judge(
        &self,
        model: &CausalLm,
        config: &ModelConfig,
        side: Side,
        kept: Kept,
        done: &dyn Fn(),
    ) -> Result<Judged, Error> {
        let settings = &self.context.settings;
        let stops = self.task.tokenizer.stop_tokens();
        let samples = settings.evaluation.samples;
        let prompts: Vec<Vec<u32>> =
            self.prompts.iter().flat_map(|p| std::iter::repeat_n(p.clone(), samples)).collect();
        let Kept { mut responses, mut judgements, mut timings } = kept;
        let decode = self.decode.as_ref().filter(|_| side == Side::Policy);
        let plain = settings.decode.plain();
        let decoder = Decoder {
            settings: decode.unwrap_or(&plain),
            generation: settings.generation(stops),
            reward_model: self.scorer.judge.reward_model(),
            reference: &self.scorer.reference,
            stop: &self.context.stop,
        };
        while let Some(next) = responses.left(prompts.len(), settings.sampling.rows_at_once) {
            let rows: Vec<&[u32]> = prompts[next.clone()].iter().map(Vec::as_slice).collect();
            let draws = streams(settings.seed, side.purpose(), next);
            let start = Instant::now();
            let written = decoder.decode(model, config, &rows, draws)?;
            // The time first: a line too many is dropped when the stage goes on, one too few is an error.
            if let Some(timings) = &mut timings {
                let seconds = start.elapsed().as_secs_f64();
                timings.write(&Timing { responses: rows.len(), seconds })?;
            }
            responses.push(written)?;
            done();
        }
        let (responses, calls): (Vec<_>, Vec<_>) =
            responses.into_items().into_iter().map(|d| (d.response, d.calls)).unzip();
        let calls = |of: fn(&Calls) -> usize| {
            decode.map(|_| mean(calls.iter().map(|calls| of(calls) as f64)))
        };
        let rows: Vec<(&[u32], &[u32])> =
            prompts.iter().zip(&responses).map(|(p, r)| (&p[..], &r[..])).collect();
        while let Some(next) = judgements.left(rows.len(), settings.ppo.rows_at_once) {
            judgements.push(self.judgements(model, &rows[next])?)?;
            done();
        }
        let judgements = judgements.into_items();
        let gold: Option<Vec<_>> = rows.iter().map(|(p, r)| self.task.gold(p, r)).collect();
        let sequence: Vec<f64> = judgements.iter().map(|j| j.sequence_score).collect();
        let rewards = gold.as_ref().map(|gold| gold.iter().map(|g| g.reward()).collect::<Vec<_>>());
        let by_prompt = |values: &[f64]| standard_error(&averages(values, samples));
        let repeats = |gold: &Vec<crate::data::letters::Gold>| {
            mean(gold.iter().map(|g| g.count(ClauseKind::Repeat) as f64))
        };
        let verdict = settings.has_verdict();
        let evaluation = Evaluation {
            responses: responses.len(),
            pass_rate: verdict.then(|| mean(sequence.iter().copied())),
            pass_rate_error: if verdict { by_prompt(&sequence) } else { None },
            gold: rewards.as_ref().map(|rewards| mean(rewards.iter().copied())),
            gold_error: rewards.as_ref().and_then(|rewards| by_prompt(rewards)),
            sequence_score: mean(sequence.iter().copied()),
            sequence_score_error: by_prompt(&sequence),
            win_rate: None,
            win_rate_error: None,
            length_controlled_win_rate: None,
            length_controlled_error: None,
            kl: mean(judgements.iter().map(|j| j.kl)),
            tokens: mean(responses.iter().map(|r| r.len() as f64)),
            segments: mean(judgements.iter().map(|j| j.segments as f64)),
            repeats: gold.as_ref().map(repeats),
            eos_rate: mean(
                responses
                    .iter()
                    .map(|r| f64::from(r.last().is_some_and(|token| stops.contains(token)))),
            ),
            model_calls: calls(|calls| calls.model_calls),
            reward_calls: calls(|calls| calls.reward_calls),
            sampled_tokens: calls(|calls| calls.sampled_tokens),
        };
        let scores = rewards.filter(|_| !verdict).unwrap_or(sequence);
        Ok(Judged { prompts, responses, scores, evaluation })
    }

    /// What the models say of one batch of the model's responses.
    fn judgements(
        &self,
        model: &CausalLm,
        rows: &[(&[u32], &[u32])],
    ) -> Result<Vec<Judgement>, Error> {
        let views = Rows::new(rows, rows.len()).view(model, &self.context.stop)?;
        let judgement = |(view, (reference, scored)): (TokenView, (TokenView, SegmentRewards))| {
            let pairs = view.log_probs.iter().zip(&reference.log_probs);
            let kl = pairs.map(|(&l, &reference)| k1(f64::from(l), f64::from(reference))).sum();
            let segments = scored.segments.len();
            Judgement { sequence_score: scored.sequence_score, kl, segments }
        };
        Ok(views.into_iter().zip(self.scorer.score(rows)?).map(judgement).collect())
    }

    /// Adds the win rates of `judged` over `baseline`, which answered the same prompts.
    pub fn compare(&self, judged: &mut Judged, baseline: &Judged) {
        let wins: Vec<f64> = judged
            .scores
            .iter()
            .zip(&baseline.scores)
            .map(|(a, b)| if a == b { 0.5 } else { f64::from(a > b) })
            .collect();
        let lengths = judged.responses.iter().zip(&baseline.responses);
        let comparisons: Vec<Comparison> = wins
            .iter()
            .zip(lengths)
            .map(|(&preference, (a, b))| Comparison {
                preference,
                length_difference: a.len() as f64 - b.len() as f64,
            })
            .collect();
        let controlled = length_control(&comparisons);
        judged.evaluation.length_controlled_win_rate = Some(controlled.win_rate);
        judged.evaluation.length_controlled_error = controlled.standard_error;
        let samples = self.context.settings.evaluation.samples;
        judged.evaluation.win_rate = Some(mean(wins.iter().copied()));
        judged.evaluation.win_rate_error = standard_error(&averages(&wins, samples));
    }
}

/// The averages of consecutive groups of `size`.
fn averages(values: &[f64], size: usize) -> Vec<f64> {
    values.chunks(size).map(|chunk| mean(chunk.iter().copied())).collect()
}

/// The result of the stage: the SFT model and the policy on the same prompts, and one pair of samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The SFT model.
    pub before: Evaluation,
    /// The policy.
    pub after: Evaluation,
    /// The held-out prompt whose score changed by the median, of those whose score changed, and what each model answered.
    pub sample: Sample,
    /// What was held out of the policy's training: prompts, or nothing if there is a single prompt.
    #[serde(default)]
    pub held_out: HeldOut,
}

/// A prompt and two answers, as token ids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The prompt.
    pub prompt: Vec<u32>,
    /// The SFT model's response.
    pub before: Vec<u32>,
    /// The policy's response.
    pub after: Vec<u32>,
}

/// Evaluates the run's policy of the settings' method against the SFT model; as the section `[decode]` says, it writes by
/// a decoder, or the SFT model does in its place.
pub fn run(context: &Context) -> Result<Summary, Error> {
    let context = &context.within(Stage::Evaluate);
    let settings = &context.settings;
    if settings.decode.kind != decode::Kind::Sample {
        context.needs_reward_model(&format!("decode.kind = {:?}", settings.decode.kind.name()))?;
    }
    let reference_dir = context.reference_dir()?;
    let policy_dir = match settings.reference_writes() {
        true => None,
        false => Some(context.policy_dir()?.join("model")),
    };
    let fingerprints = Fingerprints::of(context)?;
    // A reward model that does not fit leaves no folder behind.
    if !context.dir(Stage::Evaluate).exists() {
        fingerprints.check(context)?;
    }
    let mut inputs = fingerprints.inputs();
    if let Some(dir) = &policy_dir {
        inputs.push(("policy", model_fingerprint(dir)?));
    }
    inputs.extend(context.data_fingerprints()?);
    let folder = context.open(Stage::Evaluate, &inputs)?;
    if let Some(summary) = folder.summary()? {
        return Ok(summary);
    }
    let task = Task::open(context, Some(&reference_dir))?;
    let config = ModelConfig::from_dir(policy_dir.as_ref().unwrap_or(&reference_dir))?;
    let longest = task.longest_rollout(context)?;
    memory::announce(context, folder.dir(), &config, longest, |e, lengths| e.evaluate(lengths))?;
    let tokenizer = &task.tokenizer;
    let rows_at_once = settings.ppo.rows_at_once;
    let (ends, stops) = (tokenizer.sentence_ends(), tokenizer.stop_tokens());
    let scorer = Scorer::of(context, fingerprints, ends, stops, rows_at_once)?;
    let policy = policy_dir.map(|dir| scorer.base().language_model(&dir, context.frozen()));
    let policy = policy.transpose()?;
    let mut evaluator = Evaluator::new(context, &task, &scorer)?;
    let (sft, mut trained) = (Kept::open(&folder, "sft")?, Kept::open(&folder, "policy")?);
    if !settings.decode.is_plain() {
        evaluator.decode = Some(settings.decode.clone());
        trained = trained.timed(&folder)?;
    }
    let done = sft.batches() + trained.batches();
    let stage = context.progress.stage(context.title("evaluate"), 2 * evaluator.batches(), done);
    let before =
        evaluator.judge(&scorer.reference, &config, Side::Baseline, sft, &|| stage.step("SFT"))?;
    let writes = policy.as_ref().unwrap_or(&scorer.reference);
    let mut after =
        evaluator.judge(writes, &config, Side::Policy, trained, &|| stage.step("policy"))?;
    evaluator.compare(&mut after, &before);
    let shown = median_change(&before.scores, &after.scores);
    let sample = Sample {
        prompt: after.prompts[shown].clone(),
        before: before.responses[shown].clone(),
        after: after.responses[shown].clone(),
    };
    let summary = Summary {
        before: before.evaluation,
        after: after.evaluation,
        sample,
        held_out: evaluator.held_out,
    };
    folder.finish(&summary)?;
    stage.finish(describe(&summary));
    Ok(summary)
}

/// The row whose score changed by the median, of those whose score changed at all.
fn median_change(before: &[f64], after: &[f64]) -> usize {
    let changes = before.iter().zip(after).map(|(before, after)| after - before).enumerate();
    let mut changes: Vec<(usize, f64)> = changes.filter(|(_, change)| *change != 0.0).collect();
    changes.sort_by(|a, b| a.1.total_cmp(&b.1));
    changes.get(changes.len() / 2).map_or(0, |(row, _)| *row)
}

fn describe(summary: &Summary) -> String {
    let name = match &summary.after {
        Evaluation { pass_rate: Some(_), .. } => "pass rate",
        Evaluation { gold: Some(_), .. } => "gold",
        _ => "reward",
    };
    let Evaluation { win_rate, responses, kl, model_calls, reward_calls, .. } = summary.after;
    let win = win_rate.map(|share| format!(", win rate {}", rate(share, responses)));
    let (before, after) = (summary.before.score(), summary.after.score());
    let calls = model_calls.zip(reward_calls).map(|(model, reward)| {
        format!(", calls a response: {model:.1} of the model, {reward:.1} of the reward model")
    });
    let [win, calls] = [win, calls].map(Option::unwrap_or_default);
    let [before, after, kl] = [before, after, kl].map(|value| digits(value, 2));
    format!("{name} {before} → {after}{win}, KL {kl}{calls}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_of_the_median_change() {
        // Changes 3, 0, -1, 0, 1: without the zeros -1, 1, 3.
        assert_eq!(median_change(&[0.0, 1.0, 1.0, 2.0, 2.0], &[3.0, 1.0, 0.0, 2.0, 3.0]), 4);
        assert_eq!(median_change(&[1.0, 2.0], &[1.0, 2.0]), 0);
    }

    #[test]
    fn a_win_rate_is_told_with_its_count_and_that_of_one_response_as_such() {
        let evaluation = |responses: usize, win_rate: Option<f64>| Evaluation {
            responses,
            pass_rate: None,
            pass_rate_error: None,
            gold: Some(2.0),
            gold_error: None,
            sequence_score: 0.5,
            sequence_score_error: None,
            win_rate,
            win_rate_error: None,
            length_controlled_win_rate: win_rate,
            length_controlled_error: None,
            kl: 0.25,
            tokens: 30.0,
            segments: 12.0,
            repeats: None,
            eos_rate: 1.0,
            model_calls: None,
            reward_calls: None,
            sampled_tokens: None,
        };
        let told = |responses, win_rate| {
            let sample = Sample { prompt: vec![], before: vec![], after: vec![] };
            let (before, after) =
                (evaluation(responses, None), evaluation(responses, Some(win_rate)));
            describe(&Summary { before, after, sample, held_out: HeldOut::default() })
        };
        assert_eq!(told(384, 0.625), "gold 2.00 → 2.00, win rate 0.62 (n 384), KL 0.25");
        assert_eq!(told(1, 1.0), "gold 2.00 → 2.00, win rate 1 of 1, KL 0.25");
    }
}
