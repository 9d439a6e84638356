//! Runs the stages of many contexts: shared ones once, ready ones in parallel, in any number of processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::run::folder::{self, FAILED, TOOK, write_json};
use crate::run::lock::{LockError, Locks};
use crate::run::{Context, Error, FolderError, Stage};

/// How long a worker waits before it tries a stage again that another process is running.
const PATIENCE: Duration = Duration::from_secs(1);

/// One stage to run.
pub struct Task {
    pub stage: Stage,
    pub context: Context,
    /// Its folder; no other task has it.
    pub dir: PathBuf,
    /// The task that must finish first.
    pub after: Option<usize>,
}

impl Task {
    /// Whether it has its result.
    pub fn is_finished(&self) -> bool {
        folder::is_finished(&self.dir)
    }
}

/// Tasks, each after the one that it needs.
#[derive(Default)]
pub struct Tasks(Vec<Task>);

impl Tasks {
    /// Adds the stages of `context` that are not yet among the tasks, and returns the number of the last one.
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

    /// From now on, they write TensorBoard's event files.
    pub fn write_events(&mut self) {
        self.0.iter_mut().for_each(|task| task.context.tensorboard = true);
    }

    /// All of them.
    pub fn all(&self) -> &[Task] {
        &self.0
    }

    /// The task `last` and the ones that it needs, in running order.
    pub fn chain(&self, last: usize) -> Vec<usize> {
        let before = std::iter::successors(Some(last), |&task| self.0[task].after);
        let mut chain: Vec<usize> = before.collect();
        chain.reverse();
        chain
    }
}

/// How a task ended.
#[derive(Debug)]
pub enum Outcome {
    /// It has its result.
    Done,
    /// It ended with an error.
    Failed(Error),
    /// It was not started: one that it needs failed, or a failure stopped the run.
    Left,
}

/// What happens, after a failure, to tasks that do not need the failed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// They run.
    KeepGoing,
    /// No further task starts.
    Stop,
}

/// Runs the tasks on `jobs` threads in the order of the list, and calls `finished` after each one. Waits for a stage
/// that another process is running; a folder that cannot be locked fails its stage. The error of a failed stage stays
/// in `failed.json` in its folder until the stage is tried again.
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

/// Runs one task, whose predecessors have their results; waits while another process runs it.
pub fn run_one(task: &Task) -> Result<(), Error> {
    let mut said = false;
    while !run_alone(task, OnFailure::Stop)? {
        if !std::mem::replace(&mut said, true) {
            let name = task.context.title(task.stage.command());
            task.context.progress.line(&format!("{name}: waiting, another process has it"));
        }
        std::thread::sleep(PATIENCE);
    }
    Ok(())
}

enum Progress {
    /// Not started; not to be started before this moment, if another process had it.
    Waiting(Option<Instant>),
    Running,
    Settled(Outcome),
}

struct Board {
    states: Mutex<Vec<Progress>>,
    changed: Condvar,
    /// Whether a worker has panicked. Its stage will never settle; the run ends with the panic.
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

    /// Marks the next task as running and returns it; `None` when there is none left to start.
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

/// Runs a task unless it has its result. Returns whether it has it now: it does not while another process runs it.
fn run_alone(task: &Task, on_failure: OnFailure) -> Result<bool, Error> {
    task.context.stop.check()?;
    if folder::is_settled(&task.dir)? {
        write_events(task)?;
        return Ok(true);
    }
    let lock = match task.context.locks.take(&task.dir) {
        Err(LockError::Held { .. }) if task.is_finished() => {
            write_events(task)?;
            return Ok(true); // its owner has only to clear up, or was killed before
        }
        Err(LockError::Held { .. }) => return Ok(false),
        other => other.map_err(FolderError::from)?,
    };
    if task.is_finished() {
        folder::clear(&task.dir)?;
        write_events(task)?;
        return Ok(true);
    }
    let mut context = task.context.clone();
    context.locks = context.locks.holding(lock.clone());
    let failed = task.dir.join(FAILED);
    let _ = fs::remove_file(&failed); // of an earlier try
    let start = Instant::now();
    let result = crate::stage::run(task.stage, &context);
    if let Err(lost) = lock.check() {
        // Its new owner runs the stage.
        context.progress.line(&format!("{}: {lost}", context.title(task.stage.command())));
        return Ok(false);
    }
    Took::add(&task.dir, start.elapsed());
    match result {
        Ok(()) => Ok(true),
        Err(error) => {
            if !matches!(error, Error::Interrupted { .. }) {
                if on_failure == OnFailure::KeepGoing {
                    let name = context.title(task.stage.command());
                    context.progress.line(&format!("{name} failed: {error}"));
                }
                // A stage can be rejected before it has a folder; on a full disk neither can be written.
                let _ = fs::create_dir_all(&task.dir);
                let _ = write_json(&failed, &Failure { error: error.to_string() });
            }
            Err(error)
        }
    }
}

/// Writes the event file of a finished task, if its context asks for one.
fn write_events(task: &Task) -> Result<(), FolderError> {
    if task.context.tensorboard { folder::write_events(&task.dir) } else { Ok(()) }
}

/// The content of [`FAILED`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    pub error: String,
}

/// The time that a stage took over all tries, in [`TOOK`] in its folder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Took {
    pub seconds: f64,
}

impl Took {
    /// The time that the stage in `dir` took, if known.
    pub fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(dir.join(TOOK)).ok()?).ok()
    }

    /// Adds to the time of the stage in `dir`. A full disk does not fail the stage.
    fn add(dir: &Path, time: Duration) {
        let before = Self::read(dir).unwrap_or_default().seconds;
        let _ = write_json(&dir.join(TOOK), &Self { seconds: before + time.as_secs_f64() });
    }
}

/// Writes `value` as JSON to `path`, one process at a time.
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
