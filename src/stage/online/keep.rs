//! What the loop leaves behind: logs, evaluations, checkpoints, the last policy and the best.

use std::path::{Path, PathBuf};
use std::{fs, io};

use burn::module::Module;
use serde::{Deserialize, Serialize};

use super::learner::{Learner, steps_an_iteration};
use crate::atomic::{self, NewFile};
use crate::data::tokenizer::Tokenizer;
use crate::file_error::FileError;
use crate::ranks;
use crate::run::alarms::{HeldOutScore, Raised, of_iterations, of_last};
use crate::run::folder::{Log, StageFolder, read_json, read_json_lines};
use crate::run::metrics::{IterationMetrics, IterationTimings, told};
use crate::run::progress;
use crate::run::{Context, Error, FolderError, Layout, Stage};
use crate::settings::Settings;
use crate::stage::evaluate::{Evaluation, Evaluator, Judged, Kept, Side};
use crate::stage::task::HeldOut;
use crate::table::digits;

/// The result of the stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Iterations done.
    pub iterations: usize,
    /// The policy after the last iteration, kept in `model`.
    pub last: Evaluation,
    /// The iteration after which the evaluation was best, from 1; its policy is kept in `best/model`.
    pub best_iteration: usize,
    /// That evaluation.
    pub best: Evaluation,
    /// What was held out of training for the evaluations: prompts, or nothing if there is a single prompt.
    #[serde(default)]
    pub held_out: HeldOut,
}

/// One line of `evaluations.jsonl`: the policy on held-out prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationLine {
    /// Iterations done: 0 is the SFT model.
    pub iteration: usize,
    /// What the policy was worth then.
    #[serde(flatten)]
    pub evaluation: Evaluation,
    /// Its response to the first prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<SampleText>,
}

/// A prompt and a response to it, to be read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // the fields' names say it
pub struct SampleText {
    pub prompt: String,
    pub response: String,
}

impl EvaluationLine {
    fn new(iteration: usize, judged: &Judged, tokenizer: &Tokenizer) -> Self {
        let text = |tokens: &[Vec<u32>]| tokenizer.decode(&tokens[0]);
        let sample =
            SampleText { prompt: text(&judged.prompts), response: text(&judged.responses) };
        Self { iteration, evaluation: judged.evaluation.clone(), sample: Some(sample) }
    }
}

/// What the logs of the stage hold.
#[derive(Clone, Debug, Default, Serialize)]
pub struct History {
    /// Its iterations.
    pub metrics: Vec<IterationMetrics>,
    /// The held-out evaluations, the SFT model's first.
    pub evaluations: Vec<EvaluationLine>,
}

impl History {
    /// Reads the logs in the stage's folder `dir`, begun or finished.
    pub fn read(dir: &Path) -> Result<Self, FolderError> {
        Ok(Self {
            metrics: read_json_lines(&dir.join("metrics.jsonl"))?,
            evaluations: read_json_lines(&dir.join("evaluations.jsonl"))?,
        })
    }

    /// The alarms that they raise.
    pub fn alarms(&self, settings: &Settings) -> Vec<Raised> {
        of_iterations(&self.metrics, &self.scores(), &settings.alarms)
    }

    /// The alarms that the last iteration raises and that are not among the `known` ones.
    fn new_alarms(&self, settings: &Settings, known: &[Raised]) -> Vec<Raised> {
        of_last(&self.metrics, &self.scores(), &settings.alarms, known)
    }

    fn scores(&self) -> Vec<HeldOutScore> {
        let score = |line: &EvaluationLine| HeldOutScore {
            iteration: line.iteration,
            score: line.evaluation.score(),
            error: line.evaluation.score_error(),
        };
        self.evaluations.iter().map(score).collect()
    }
}

/// What a checkpoint holds besides models and optimizers. No generator and no data cursor: every stream is drawn from
/// the seed, a purpose and an index, and the iteration is the checkpoint's own number.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct State {
    kl_coefficient: f64,
    evaluations: usize,
    best: Option<(usize, Evaluation)>,
    last: Option<Evaluation>,
}

const STATE: &str = "state.json";
const BEST: &str = "best.safetensors";
/// The edges that wait for a later iteration, if the system has a replay.
const WAITING: &str = "waiting.json";

/// Keeps what the loop gives, in the stage's folder.
pub(super) struct Keeper<'a> {
    folder: &'a StageFolder,
    metrics: Log,
    timings: Log,
    evaluations: Log,
    /// What the logs hold.
    history: History,
    /// The alarms that were told.
    raised: Vec<Raised>,
    evaluator: Evaluator<'a>,
    /// The SFT model's responses, with which every evaluation is compared.
    baseline: Judged,
    state: State,
    /// The file with the parameters of the best policy so far, once there is one.
    best_weights: PathBuf,
    bar: progress::Stage,
}

impl<'a> Keeper<'a> {
    /// Opens the logs in `folder`, and puts the loop where the folder's last checkpoint left it.
    pub(super) fn resume(
        learner: &mut Learner<'a>,
        folder: &'a mut StageFolder,
    ) -> Result<Self, Error> {
        let Learner { context, task, scorer, .. } = *learner;
        let best_weights = folder.dir().join(BEST);
        let kl_coefficient = learner.kl_coefficient;
        let mut state = State { kl_coefficient, evaluations: 0, best: None, last: None };
        if let Some(checkpoint) = folder.latest()? {
            folder.warnings.drain(..).for_each(|warning| context.progress.line(&warning));
            learner.iteration = checkpoint.step;
            let step = checkpoint.step * steps_an_iteration(&context.settings.ppo);
            learner.policy.resume(step, &checkpoint.dir)?;
            if let Some(critic) = &mut learner.critic {
                critic.resume(step, &checkpoint.dir)?;
            }
            state = read_json(&checkpoint.dir.join(STATE), "ppo")?;
            learner.kl_coefficient = state.kl_coefficient;
            if learner.system.replay.is_some() {
                learner.waiting = read_json(&checkpoint.dir.join(WAITING), "ppo")?;
            }
            if state.best.is_some() && ranks::is_first() {
                let kept = checkpoint.dir.join(BEST);
                let _ = fs::remove_file(&best_weights); // of a later iteration than the checkpoint's
                link(&kept, &best_weights).map_err(FileError::writing(&best_weights))?;
            }
        }
        let (title, iterations) = (context.title("ppo"), context.settings.ppo.iterations);
        let evaluator = Evaluator::new(context, task, scorer)?;
        let metrics = folder.log("metrics.jsonl", learner.iteration)?;
        let timings = folder.log("timings.jsonl", learner.iteration)?;
        let mut evaluations = folder.log("evaluations.jsonl", state.evaluations)?;
        let bar = context.progress.stage(title, iterations, learner.iteration).line_by_line();
        let (model, kept) = (&scorer.reference, Kept::open(folder, "baseline")?);
        let baseline = evaluator.judge(model, &learner.config, Side::Baseline, kept, &|| ())?;
        if state.evaluations == 0 {
            evaluations.write(&EvaluationLine::new(0, &baseline, &task.tokenizer))?;
            state.evaluations = evaluations.lines();
        }
        let history = History::read(folder.dir())?;
        let raised = history.alarms(&context.settings);
        Ok(Self {
            folder,
            metrics,
            timings,
            evaluations,
            history,
            raised,
            evaluator,
            baseline,
            state,
            best_weights,
            bar,
        })
    }

    /// Keeps an iteration: its metrics, an evaluation if one is due, and a checkpoint; ends the run after it where a
    /// stop was asked for.
    pub(super) fn keep(
        &mut self,
        learner: &Learner<'_>,
        metrics: &IterationMetrics,
        timings: &IterationTimings,
    ) -> Result<(), Error> {
        let Context { settings, stop, .. } = learner.context;
        self.metrics.write(metrics)?;
        self.timings.write(timings)?;
        self.history.metrics.push(metrics.clone());
        self.state.kl_coefficient = learner.kl_coefficient;
        let finished = learner.iteration == settings.ppo.iterations;
        if learner.iteration.is_multiple_of(settings.ppo.evaluate_every) || finished {
            self.evaluate(learner)?;
        }
        self.bar.step(metrics.line());
        let mut ends = None;
        for raised in self.history.new_alarms(settings, &self.raised) {
            ends = learner.context.raise(Stage::Ppo, &raised).or(ends);
            self.raised.push(raised);
        }
        if !finished || keeps_last(learner.context) {
            self.folder.save(learner.iteration, self.checkpoint(learner))?;
        }
        match ends {
            Some(alarm) if !finished => Err(alarm),
            _ if !finished && stop.after_step() => Err(stop.interrupted().into()),
            _ => Ok(()),
        }
    }

    /// Judges the policy on held-out prompts, and keeps it if it is the best so far.
    fn evaluate(&mut self, learner: &Learner<'_>) -> Result<(), Error> {
        let model = learner.policy.model().inference();
        let (side, kept) = (Side::Policy, Kept::default());
        let mut judged = self.evaluator.judge(&model, &learner.config, side, kept, &|| ())?;
        self.evaluator.compare(&mut judged, &self.baseline);
        let iteration = learner.iteration;
        let line = EvaluationLine::new(iteration, &judged, &learner.task.tokenizer);
        self.evaluations.write(&line)?;
        self.history.evaluations.push(line);
        let evaluation = judged.evaluation;
        self.state.evaluations = self.evaluations.lines();
        if self.state.best.as_ref().is_none_or(|(_, best)| evaluation.score() > best.score()) {
            self.state.best = Some((iteration, evaluation.clone()));
            self.folder.to_write()?;
            let path = &self.best_weights;
            atomic::write_with(path, |path| learner.policy.write_weights(path))
                .map_err(FileError::writing(path))?;
        }
        self.state.last = Some(evaluation);
        Ok(())
    }

    fn checkpoint<'b>(&'b self, learner: &'b Learner<'_>) -> Vec<NewFile<'b>> {
        let state = serde_json::to_vec(&self.state).expect("a plain struct serialises");
        let mut files = vec![file(STATE, move |path| fs::write(path, state))];
        if learner.system.replay.is_some() {
            let waiting = serde_json::to_vec(&learner.waiting).expect("plain structs serialise");
            files.push(file(WAITING, move |path| fs::write(path, waiting)));
        }
        if self.state.best.is_some() {
            files.push(file(BEST, |path| link(&self.best_weights, path)));
        }
        files.extend(learner.policy.files());
        files.extend(learner.critic.iter().flat_map(|critic| critic.files()));
        files
    }

    /// Writes the last and the best policy, and the summary.
    pub(super) fn finish(self, learner: &Learner<'_>) -> Result<Summary, Error> {
        let Learner { context, task, scorer, .. } = *learner;
        let dir = self.folder.to_write()?;
        if ranks::is_first() {
            let best_model = learner.policy.model_with(&self.best_weights)?;
            let best_dir = dir.join("best");
            let base = Some(scorer.base().dir);
            for (model, dir) in [(learner.policy.model(), dir), (&best_model, &best_dir)] {
                context.write_policy(dir, task, &model.valid(), &learner.config, base)?;
            }
            fs::remove_file(&self.best_weights).map_err(FileError::writing(&self.best_weights))?;
        }
        let last = self.state.last.expect("the last iteration is evaluated");
        let (best_iteration, best) = self.state.best.expect("the last iteration is evaluated");
        let (iterations, held_out) = (learner.iteration, self.evaluator.held_out);
        let summary = Summary { iterations, last, best_iteration, best, held_out };
        let (reward, kl) = (told(summary.last.gold, summary.last.sequence_score), summary.last.kl);
        self.bar.finish(format!("{iterations} iterations, {reward}, KL {}", digits(kl, 2)));
        if keeps_last(context) {
            self.folder.keep_last()?;
        }
        self.folder.finish(&summary)?;
        Ok(summary)
    }
}

/// Whether the last checkpoint stays, so that `ppo.iterations` may grow. In a grid another number of iterations is another
/// cell.
fn keeps_last(context: &Context) -> bool {
    context.layout == Layout::Named && context.settings.checkpoint.keep_last
}

fn file<'a>(name: &str, fill: impl FnOnce(&Path) -> io::Result<()> + 'a) -> NewFile<'a> {
    (name.to_owned(), Box::new(fill))
}

/// Gives the content of the file `from` the name `to`, too: without a copy if the file system can.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(drop))
}
