//! Runs stages for many contexts: what they share once, what is ready side by side, in any number of processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::run::error::Error;
use crate::run::folder::{self, FAILED, FolderError, TOOK, write_json};
use crate::run::lock::{LockError, Locks};
use crate::run::{Context, Stage};

/// How long a worker leaves a stage alone that another process runs.
const PATIENCE: Duration = Duration::from_secs(1);

/// One stage to run.
pub struct Task {
    pub stage: Stage,
    pub context: Context,
    /// Its folder; no other task has it.
    pub dir: PathBuf,
    /// The task whose result it needs.
    pub after: Option<usize>,
}

impl Task {
    /// Whether its result is there.
    pub fn is_finished(&self) -> bool {
        folder::is_finished(&self.dir)
    }
}

/// Tasks, each after the one that it needs.
#[derive(Default)]
pub struct Tasks(Vec<Task>);

impl Tasks {
    /// Adds the stages of `context` that are not among the tasks yet; gives the number of its last.
    pub fn add(&mut self, context: &Context) -> usize {
        let mut last = None;
        for stage in context.stages() {
            let dir = context.dir(stage);
            let known = self.0.iter().position(|task| task.dir == dir);
            last = Some(known.unwrap_or_else(|| {
                self.0.push(Task { stage, context: context.clone(), dir, after: last });
                self.0.len() - 1
            }));
        }
        last.expect("every run has a PPO stage")
    }

    /// All of them.
    pub fn all(&self) -> &[Task] {
        &self.0
    }

    /// The task `last` and those before it, the first one first.
    pub fn chain(&self, last: usize) -> Vec<usize> {
        let before = std::iter::successors(Some(last), |&task| self.0[task].after);
        let mut chain: Vec<usize> = before.collect();
        chain.reverse();
        chain
    }
}

/// What became of a task.
#[derive(Debug)]
pub enum Outcome {
    /// Its result is there.
    Done,
    /// It ended with an error.
    Failed(Error),
    /// It needs one that failed, or a failure ended all.
    Left,
}

/// What a failure does to the tasks that do not need the failed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// They go on.
    KeepGoing,
    /// None is begun any more.
    Stop,
}

/// Runs the tasks on `jobs` threads, those that come first in the list first, and calls `finished` after each that is
/// done. A stage that another process runs is waited for; a folder that cannot be locked fails its stage. A stage's error
/// stays in `failed.json` in its folder until it is tried again.
///
/// # Errors
///
/// [`Error::Interrupted`], after the stages that run have written their checkpoints.
pub fn run(
    tasks: &Tasks,
    jobs: usize,
    on_failure: OnFailure,
    finished: impl Fn() + Sync,
) -> Result<Vec<Outcome>, Error> {
    let tasks = tasks.all();
    let board = Board::new(tasks);
    let worker = || {
        let _ends = EndsAll(&board);
        while let Some(number) = board.take(tasks, on_failure) {
            let progress = match run_alone(&tasks[number], on_failure) {
                Ok(true) => {
                    finished();
                    Progress::Settled(Outcome::Done)
                }
                Ok(false) => Progress::Waiting(Some(Instant::now() + PATIENCE)),
                Err(error) => Progress::Settled(Outcome::Failed(error)),
            };
            board.lock()[number] = progress;
            board.changed.notify_all();
        }
    };
    std::thread::scope(|scope| {
        (1..jobs.min(tasks.len())).for_each(|_| {
            scope.spawn(worker);
        });
        worker();
    });
    let states = board.states.into_inner().expect("the workers have ended");
    let outcome = |progress| match progress {
        Progress::Settled(outcome) => outcome,
        _ => Outcome::Left,
    };
    let mut outcomes: Vec<Outcome> = states.into_iter().map(outcome).collect();
    let stopped = |o: &Outcome| matches!(o, Outcome::Failed(Error::Interrupted { .. }));
    match outcomes.iter().position(stopped) {
        Some(at) => match outcomes.swap_remove(at) {
            Outcome::Failed(error) => Err(error),
            _ => unreachable!("the position of an error"),
        },
        None => Ok(outcomes),
    }
}

enum Progress {
    /// Not begun; where another process had it, not before this moment.
    Waiting(Option<Instant>),
    Running,
    Settled(Outcome),
}

struct Board {
    states: Mutex<Vec<Progress>>,
    changed: Condvar,
    /// Whether a worker has panicked: its stage will never settle, and the panic is what the run ends with.
    panicked: AtomicBool,
}

/// Tells the other workers when this one panics.
struct EndsAll<'a>(&'a Board);

impl Drop for EndsAll<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.panicked.store(true, Ordering::SeqCst);
            self.0.changed.notify_all();
        }
    }
}

impl Board {
    fn new(tasks: &[Task]) -> Self {
        Self {
            states: Mutex::new(tasks.iter().map(|_| Progress::Waiting(None)).collect()),
            changed: Condvar::new(),
            panicked: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Progress>> {
        self.states.lock().expect("no worker panics with the lock")
    }

    /// The next task to run, which is then running; nothing when there is none left to begin.
    fn take(&self, tasks: &[Task], on_failure: OnFailure) -> Option<usize> {
        let mut states = self.lock();
        loop {
            let panicked = self.panicked.load(Ordering::SeqCst);
            if panicked || states.iter().any(|state| ends_all(state, on_failure)) {
                return None;
            }
            leave_what_cannot_run(&mut states, tasks);
            let now = Instant::now();
            let ready = (0..tasks.len()).find(|&i| {
                let begins =
                    matches!(states[i], Progress::Waiting(from) if from.is_none_or(|at| at <= now));
                let done = |&task: &usize| matches!(states[task], Progress::Settled(Outcome::Done));
                begins && tasks[i].after.as_ref().is_none_or(done)
            });
            if let Some(number) = ready {
                states[number] = Progress::Running;
                return Some(number);
            }
            if states.iter().all(|state| matches!(state, Progress::Settled(_))) {
                return None;
            }
            states = self
                .changed
                .wait_timeout(states, PATIENCE)
                .expect("no worker panics with the lock")
                .0;
        }
    }
}

fn ends_all(state: &Progress, on_failure: OnFailure) -> bool {
    match state {
        Progress::Settled(Outcome::Failed(Error::Interrupted { .. })) => true,
        Progress::Settled(Outcome::Failed(_)) => on_failure == OnFailure::Stop,
        _ => false,
    }
}

fn leave_what_cannot_run(states: &mut [Progress], tasks: &[Task]) {
    for (i, task) in tasks.iter().enumerate() {
        let failed = |&before: &usize| {
            matches!(states[before], Progress::Settled(Outcome::Failed(_) | Outcome::Left))
        };
        if matches!(states[i], Progress::Waiting(_)) && task.after.as_ref().is_some_and(failed) {
            states[i] = Progress::Settled(Outcome::Left);
        }
    }
}

/// Runs a task unless its result is there; says whether it is then, which it is not while another process has it.
fn run_alone(task: &Task, on_failure: OnFailure) -> Result<bool, Error> {
    task.context.stop.check()?;
    if folder::is_settled(&task.dir)? {
        return Ok(true);
    }
    let lock = match task.context.locks.take(&task.dir) {
        Err(LockError::Held { .. }) => return Ok(false),
        other => other.map_err(FolderError::from)?,
    };
    if task.is_finished() {
        folder::clear(&task.dir)?;
        return Ok(true);
    }
    let mut context = task.context.clone();
    context.locks = context.locks.holding(lock);
    let failed = task.dir.join(FAILED);
    let _ = fs::remove_file(&failed); // of an earlier try
    let start = Instant::now();
    let result = crate::stage::run(task.stage, &context);
    Took::add(&task.dir, start.elapsed());
    match result {
        Ok(()) => Ok(true),
        Err(error) => {
            if !matches!(error, Error::Interrupted { .. }) {
                if on_failure == OnFailure::KeepGoing {
                    let name = context.title(task.stage.command());
                    context.progress.line(&format!("{name} failed: {error}"));
                }
                // A stage can be refused before it has a folder; a disk that is full has no place for either.
                let _ = fs::create_dir_all(&task.dir);
                let _ = write_json(&failed, &Failure { error: error.to_string() });
            }
            Err(error)
        }
    }
}

/// The content of [`FAILED`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    pub error: String,
}

/// What a stage took, in [`TOOK`] in its folder; all tries together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Took {
    /// Wall-clock seconds.
    pub seconds: f64,
}

impl Took {
    /// What the stage in `dir` took, where that is known.
    pub fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(dir.join(TOOK)).ok()?).ok()
    }

    /// Adds to what the stage in `dir` took; a disk that is full is not the stage's failure.
    fn add(dir: &Path, time: Duration) {
        let before = Self::read(dir).unwrap_or_default().seconds;
        let _ = write_json(&dir.join(TOOK), &Self { seconds: before + time.as_secs_f64() });
    }
}

/// Writes `value` as JSON to `path`, one process after the other.
///
/// # Errors
///
/// [`FolderError::Lock`] and [`FolderError::Write`].
pub fn write_in_turn<T: Serialize>(
    path: &Path,
    value: &T,
    locks: &Locks,
) -> Result<(), FolderError> {
    let _turn = locks.wait(&path.with_extension("lock"))?;
    write_json(path, value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceName;
    use crate::settings::Settings;

    #[test]
    fn a_stop_ends_the_wait_for_another_process() {
        let run = tempfile::tempdir().unwrap();
        let context =
            Context::new(Settings::defaults(), DeviceName::Flex, run.path().to_owned()).unwrap();
        let mut tasks = Tasks::default();
        tasks.add(&context);
        let _other = context.locks.take(&tasks.all()[0].dir).unwrap();
        let result = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| super::run(&tasks, 1, OnFailure::KeepGoing, || ()));
            std::thread::sleep(Duration::from_millis(500));
            assert!(!waiting.is_finished());
            context.stop.request();
            waiting.join().unwrap()
        });
        assert!(matches!(result, Err(Error::Interrupted(_))));
    }

    #[test]
    fn a_panic_in_one_worker_ends_the_others() {
        let run = PathBuf::from("unused");
        let context = Context::new(Settings::defaults(), DeviceName::Flex, run).unwrap();
        let mut tasks = Tasks::default();
        tasks.add(&context);
        let board = Board::new(tasks.all());
        let take = || board.take(tasks.all(), OnFailure::KeepGoing);
        let worker = || {
            let _ends = EndsAll(&board);
            assert_eq!(take(), None, "the first stage is there to be taken");
        };
        assert!(std::thread::scope(|scope| scope.spawn(worker).join()).is_err());
        assert_eq!(take(), None);
    }
}
