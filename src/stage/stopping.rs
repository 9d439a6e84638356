//! A stop that comes during a forward pass ends every stage with that pass, and what a stage gives after it does not
//! depend on when it was stopped.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Context, Stage};
use crate::device::DeviceName;
use crate::model::decoder::passes;
use crate::run::Error;
use crate::settings::Settings;
use crate::stop::Stop;

/// A run of a second, with several batches in every pass over data and several chunks in every optimizer step.
const SETTINGS: &[&str] = &[
    "method=segment",
    "model.hidden_size=16",
    "model.intermediate_size=24",
    "model.layers=1",
    "model.heads=2",
    "model.kv_heads=1",
    "model.head_dim=8",
    "task.letters=64",
    "task.pairs=24",
    "task.held_out_pairs=8",
    "sft.epochs=2",
    "sft.batch=16",
    "sft.rows_at_once=6",
    "reward.epochs=2",
    "reward.batch=8",
    "reward.rows_at_once=3",
    "normalizer.pairs=24",
    "normalizer.std_floor=0.1",
    "sampling.max_new_tokens=12",
    "sampling.rows_at_once=4",
    "ppo.iterations=4",
    "ppo.rollouts=8",
    "ppo.minibatch=4",
    "ppo.rows_at_once=3",
    "ppo.evaluate_every=2",
    "evaluation.prompts=8",
    "evaluation.samples=2",
    "checkpoint.every=100",
];

fn context(run: &Path, more: &[&str]) -> Context {
    let sets: Vec<String> = SETTINGS.iter().chain(more).map(|&set| set.to_owned()).collect();
    let settings = Settings::resolve(&[], &sets).unwrap();
    Context::new(settings, DeviceName::Flex, run.to_owned()).unwrap()
}

/// Every file below `dir` with its content; of the timings, the number of lines.
fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let mut bytes = fs::read(&path).unwrap();
            if path.ends_with("timings.jsonl") {
                bytes.retain(|&byte| byte == b'\n');
            }
            found.insert(path.strip_prefix(dir).unwrap().to_owned(), bytes);
        }
    }
    found
}

/// A stage that has run unbroken, in how many forward passes, and what it left.
struct Unbroken {
    _run: tempfile::TempDir,
    context: Context,
    stage: Stage,
    passes: usize,
    files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Unbroken {
    fn new(stage: Stage, more: &[&str]) -> Self {
        let run = tempfile::tempdir().unwrap();
        let context = context(run.path(), more);
        let before = context.stages().take_while(|&before| before != stage);
        before.for_each(|stage| super::run(stage, &context).unwrap());
        let (passes, result) = passes::count(0, &context.stop, || super::run(stage, &context));
        result.unwrap();
        let files = snapshot(&context.dir(stage));
        Self { _run: run, context, stage, passes, files }
    }

    fn begin_anew(&self) {
        fs::remove_dir_all(self.context.dir(self.stage)).unwrap();
    }

    /// Runs the stage with a stop during the pass `at`; how many passes it took, and whether it was interrupted.
    #[track_caller]
    fn stopped(&self, at: usize) -> (usize, bool) {
        let context = Context { stop: Stop::default(), ..self.context.clone() };
        let (passes, result) =
            passes::count(at, &context.stop, || super::run(self.stage, &context));
        match result {
            Ok(()) => (passes, false),
            Err(Error::Interrupted(stop)) => {
                assert_eq!(stop.saved_in, Some(context.dir(self.stage)));
                (passes, true)
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[track_caller]
    fn assert_same(&self) {
        let files = snapshot(&self.context.dir(self.stage));
        assert_eq!(files.keys().collect::<Vec<_>>(), self.files.keys().collect::<Vec<_>>());
        for (path, bytes) in files {
            assert!(bytes == self.files[&path], "{} differs", path.display());
        }
    }
}

/// Stops the stage at moments spread over it, two passes at each; each try goes on from the one before.
#[track_caller]
fn ends_with_the_pass(stage: Stage, more: &[&str]) {
    let unbroken = Unbroken::new(stage, more);
    unbroken.begin_anew();
    let mut interrupted = 0;
    for i in 0..16 {
        let at = 1 + i % 2 + i / 2 * unbroken.passes / 8;
        let (passes, stopped) = unbroken.stopped(at);
        if stopped {
            assert_eq!(passes, at, "passes until the end, with a stop in pass {at}");
            interrupted += 1;
        } else {
            // The stop came in the last pass, or not at all.
            assert!(passes <= at, "{passes} passes, with a stop in pass {at}");
            unbroken.assert_same();
            unbroken.begin_anew();
        }
    }
    assert!(interrupted >= 8, "interrupted {interrupted} times");
    super::run(stage, &unbroken.context).unwrap();
    unbroken.assert_same();
}

/// The passes of an update are few among those of rollouts and evaluations: one iteration is stopped in each of its
/// passes.
#[test]
fn an_iteration_of_ppo_ends_with_whichever_pass_a_stop_comes_in() {
    let small = ["ppo.iterations=1", "sampling.max_new_tokens=2", "evaluation.prompts=2"];
    let unbroken = Unbroken::new(Stage::Ppo, &small);
    for at in 1..unbroken.passes {
        unbroken.begin_anew();
        assert_eq!(unbroken.stopped(at), (at, true), "of {} passes", unbroken.passes);
    }
}

/// Systems that draw more than one response a prompt, of numbers that differ from iteration to iteration.
#[test]
fn systems_with_draws_of_their_own_go_on_where_they_were_stopped() {
    let spo = ["task.reward=verdict", "systems.spo.size=2", "systems.spo.branches=[2, 2]"];
    for method in ["method=spo_chain", "method=spo_tree"] {
        goes_on(Stage::Ppo, &[&spo[..], &[method]].concat());
    }
    // Edges that wait are in the checkpoint.
    let replay = ["method=spo_tree", "systems.spo.replay_edges=1", "systems.spo.replay_age=3"];
    goes_on(Stage::Ppo, &[&spo[..], &replay].concat());
}

/// The responses of a decoder are kept batch by batch, with the calls that they took.
#[test]
fn an_evaluation_by_a_decoder_goes_on_where_it_was_stopped() {
    let own = ["decode.model=reference", "decode.target=0.5", "decode.least_tokens=2"];
    for kind in ["decode.kind=cards", "decode.kind=best_of_n"] {
        goes_on(Stage::Evaluate, &[&own[..], &[kind]].concat());
    }
}

/// After a stop at three quarters, less than half of the passes is left to do.
#[track_caller]
fn goes_on(stage: Stage, more: &[&str]) {
    let unbroken = Unbroken::new(stage, more);
    unbroken.begin_anew();
    assert!(unbroken.stopped(unbroken.passes * 3 / 4).1);
    let (left, _) = unbroken.stopped(0);
    let all = unbroken.passes;
    assert!(left < all / 2, "{left} of {all} passes are left");
    unbroken.assert_same();
}

macro_rules! stages {
    ($($name:ident: $stage:expr, $more:expr;)*) => { $(
        mod $name {
            use super::*;

            #[test]
            fn ends_with_the_pass_in_which_a_stop_comes() {
                ends_with_the_pass($stage, &$more);
            }

            #[test]
            fn goes_on_where_it_was_stopped() {
                goes_on($stage, &$more);
            }
        }
    )* };
}

stages! {
    sft: Stage::Sft, [];
    preferences: Stage::Preferences, [];
    train_reward: Stage::TrainReward, [];
    fit_normalizer: Stage::FitNormalizer, [];
    ppo: Stage::Ppo, [];
    dpo: Stage::Dpo, ["method=segment_adpo", "dpo.batch=8", "dpo.rows_at_once=3"];
    evaluate: Stage::Evaluate, [];
}
