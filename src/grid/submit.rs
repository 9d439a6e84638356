//! A grid on a Slurm cluster: each unfinished stage is an element of a job array, and each array waits for those of
//! the stages before. An element runs one stage as a local job does.
//!
//! ```text
//! RUN/submit/N/plan.json      the grid, and the folder of each of its stages
//!              0-sft.sh, …    the script of each array, by depth of the stages
//!              report.sh      the script of the job that writes results.json at the end
//!              jobs.json      the jobs' numbers
//!              *.log          what each element and the report said
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::error::GridError;
use super::plan::{Grid, Plan};
use super::results::Results;
use super::schedule::{self, Failure};
use super::{driver, slurm};
use crate::file_error::FileError;
use crate::run::FolderError;
use crate::run::folder::{FAILED, is_finished, read_json, write_json};
use crate::run::lock::Locks;
use crate::run::progress::Progress;
use crate::stop::Stop;
use crate::table::listing;
use crate::{atomic, host};

/// The script of an array, or of the report.
const SCRIPT: &str = include_str!("submit.sh");
const PLAN: &str = "plan.json";
const JOBS: &str = "jobs.json";

/// The content of `plan.json`.
#[derive(Serialize, Deserialize)]
struct Submission {
    /// Tells the folder from any other, for a node that may not share it.
    mark: String,
    /// The name of each task's folder in the store.
    tasks: Vec<String>,
    grid: Grid,
}

/// A line of `jobs.json`.
#[derive(Serialize, Deserialize)]
struct Job {
    job: String,
    /// Its script's name, without the ending.
    name: String,
    /// The task of each of its elements; none for the report.
    tasks: Vec<usize>,
}

/// How elements run.
pub struct Options {
    /// The program.
    pub program: PathBuf,
    /// Arguments for each of them.
    pub arguments: Vec<String>,
    /// The user's options of `sbatch`.
    pub sbatch: Option<String>,
}

/// Unfinished tasks of one depth, as many as one array may hold.
struct Array {
    depth: usize,
    name: String,
    tasks: Vec<usize>,
}

/// What would be submitted: arrays by depth.
pub struct Arrays<'a> {
    plan: &'a Plan,
    options: &'a Options,
    limit: usize,
    arrays: Vec<Array>,
}

impl<'a> Arrays<'a> {
    /// The unfinished stages of the grid, in arrays of at most `limit` elements.
    pub fn new(plan: &'a Plan, options: &'a Options, limit: usize) -> Self {
        let tasks = plan.tasks.all();
        let mut depths: Vec<Vec<usize>> = Vec::new();
        for number in (0..tasks.len()).filter(|&number| !tasks[number].is_finished()) {
            let depth = plan.tasks.chain(number).len() - 1;
            depths.resize(depths.len().max(depth + 1), Vec::new());
            depths[depth].push(number);
        }
        let mut arrays = Vec::new();
        for (depth, of_depth) in depths.iter().enumerate() {
            let mut stages: Vec<&str> =
                of_depth.iter().map(|&number| tasks[number].stage.command()).collect();
            stages.dedup();
            let parts = of_depth.chunks(limit.max(1));
            let many = parts.len() > 1;
            arrays.extend(parts.enumerate().map(|(part, tasks)| {
                let part = if many { format!("-part{}", part + 1) } else { String::new() };
                let name = format!("{depth}-{}{part}", stages.join("+"));
                Array { depth, name, tasks: tasks.to_vec() }
            }));
        }
        Self { plan, options, limit, arrays }
    }

    /// What is submitted, and the scripts, for a reader.
    pub fn show(&self) -> String {
        let dir = self.run().join("submit").join("N");
        let job = |name: &str| format!("JOB_OF_{name}");
        let mut text = self.outline(&job) + "\n";
        for (array, script) in self.arrays.iter().zip(self.scripts(&dir, "MARK")) {
            let before = self.before(array.depth).map(|before| job(&before.name));
            let command =
                sbatch(&dir, &script.0, Some(array.tasks.len()), &before.collect::<Vec<_>>());
            text += &format!("$ sbatch {}\n", command.join(" "));
        }
        let last: Vec<String> = self.arrays.iter().map(|array| job(&array.name)).collect();
        text += &format!("$ sbatch {}\n", sbatch(&dir, "report", None, &last).join(" "));
        for (name, script) in self.scripts(&dir, "MARK") {
            text += &format!("\n--- {name}.sh\n{script}");
        }
        text
    }

    /// A line for each array.
    fn outline(&self, job: &dyn Fn(&str) -> String) -> String {
        let row = |array: &Array| {
            let before: Vec<String> =
                self.before(array.depth).map(|before| job(&before.name)).collect();
            let elements = array.tasks.len().to_string();
            vec![job(&array.name), array.name.clone(), elements, before.join(" ")]
        };
        let mut rows: Vec<Vec<String>> = self.arrays.iter().map(row).collect();
        rows.push(vec![job("report"), "report".into(), "1".into(), "all".into()]);
        let mut text = listing(&["Slurm job", "array", "elements", "after the end of"], &rows);
        if self.arrays.iter().any(|array| array.name.contains("-part")) {
            text += &format!(
                "arrays are split: this cluster allows {} elements (MaxArraySize)\n",
                self.limit
            );
        }
        text
    }

    fn run(&self) -> &Path {
        &self.plan.cells[0].context.run
    }

    /// The arrays of the nearest depth above `depth` that has any: what those of `depth` wait for.
    fn before(&self, depth: usize) -> impl Iterator<Item = &Array> {
        let above = self.arrays.iter().map(|array| array.depth).filter(move |&of| of < depth).max();
        self.arrays.iter().filter(move |array| Some(array.depth) == above)
    }

    /// The name and the text of each script in the folder `dir`, the report's last.
    fn scripts(&self, dir: &Path, mark: &str) -> Vec<(String, String)> {
        let run = self.run().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
        let fill = |name: &str, tasks: &[usize]| {
            let tasks = tasks.iter().map(usize::to_string).collect::<Vec<_>>().join(" ");
            let own = self.options.sbatch.iter().map(|own| format!("#SBATCH {own}\n"));
            let arguments: Vec<String> = self.options.arguments.iter().map(|a| quoted(a)).collect();
            SCRIPT
                .replace("#SBATCH @OPTIONS@\n", &own.collect::<String>())
                .replace("@NAME@", &format!("{run}-{name}").replace(char::is_whitespace, "-"))
                .replace("@DIR@", &quoted(&dir.display().to_string()))
                .replace("@MARK@", &quoted(mark))
                .replace("@PROGRAM@", &quoted(&self.options.program.display().to_string()))
                .replace("@TASKS@", &tasks)
                .replace("@ARGUMENTS@", &arguments.join(" "))
        };
        let scripts =
            self.arrays.iter().map(|array| (array.name.clone(), fill(&array.name, &array.tasks)));
        scripts.chain([("report".to_owned(), fill("report", &[]))]).collect()
    }

    /// Submits them; gives what was submitted, for a reader. If Slurm refuses one, those before it are cancelled.
    pub fn submit(&self) -> Result<String, GridError> {
        let (run, locks) = (self.run(), &self.plan.cells[0].context.locks);
        if let Some((dir, jobs)) = latest(run) {
            let ids: Vec<&str> = jobs.iter().map(|job| &job.job[..]).collect();
            if !slurm::queue(&ids, false)?.is_empty() {
                return Err(GridError::Queued { dir, jobs: ids.join(" ") });
            }
        }
        self.plan.grid.write(run, locks)?;
        if self.arrays.is_empty() {
            driver::report(self.plan)?;
            return Ok(format!("every stage is finished; results.json in {}", run.display()));
        }
        let dir = self.write()?;
        let mut jobs: Vec<Job> = Vec::new();
        let submitted = self.submit_all(&dir, &mut jobs);
        if submitted.is_err() {
            if !jobs.is_empty() {
                let _ = Command::new("scancel").args(jobs.iter().map(|job| &job.job)).output();
            }
            let _ = fs::remove_dir_all(&dir);
        }
        submitted?;
        let job = |name: &str| {
            jobs.iter().find(|job| job.name == name).map_or_else(String::new, |job| job.job.clone())
        };
        let ids: Vec<&str> = jobs.iter().map(|job| &job.job[..]).collect();
        Ok(format!(
            "{}\nscripts, logs and job numbers in {}\nto see how far they are: segment-rlhf status {}\nto cancel them: scancel {}",
            self.outline(&job),
            dir.display(),
            run.display(),
            ids.join(" ")
        ))
    }

    /// Writes plan and scripts into a new folder.
    fn write(&self) -> Result<PathBuf, GridError> {
        let all = self.run().join("submit");
        let number = (1..).find(|number| !all.join(number.to_string()).exists());
        let dir = all.join(number.expect("there is a free number").to_string());
        let now = chrono::Utc::now().format("%Y%m%dT%H%M%S%.9f");
        let mark = format!("{now}-{}-{}", host::name(), std::process::id());
        let tasks = self.plan.tasks.all().iter().map(|task| name(&task.dir)).collect();
        let refused = |source| GridError::from(FolderError::from(FileError::writing(&dir)(source)));
        atomic::write_dir(&dir, refused, |into| {
            for (name, script) in self.scripts(&dir, &mark) {
                let path = into.join(format!("{name}.sh"));
                fs::write(&path, script).map_err(refused)?;
            }
            let submission = Submission { mark, tasks, grid: self.plan.grid.clone() };
            Ok(write_json(&into.join(PLAN), &submission)?)
        })?;
        Ok(dir)
    }

    fn submit_all(&self, dir: &Path, jobs: &mut Vec<Job>) -> Result<(), GridError> {
        for array in &self.arrays {
            let before = self.before(array.depth);
            let before = before.filter_map(|of| jobs.iter().find(|job| job.name == of.name));
            let before: Vec<String> = before.map(|job| job.job.clone()).collect();
            let job = slurm::submit(sbatch(dir, &array.name, Some(array.tasks.len()), &before))?;
            jobs.push(Job { job, name: array.name.clone(), tasks: array.tasks.clone() });
        }
        let all: Vec<String> = jobs.iter().map(|job| job.job.clone()).collect();
        let job = slurm::submit(sbatch(dir, "report", None, &all))?;
        jobs.push(Job { job, name: "report".into(), tasks: Vec::new() });
        Ok(write_json(&dir.join(JOBS), &jobs)?)
    }
}

/// The arguments of `sbatch` for the script `name` in the folder `dir`.
fn sbatch(dir: &Path, name: &str, elements: Option<usize>, before: &[String]) -> Vec<String> {
    let array = elements.map(|elements| format!("--array=0-{}", elements - 1));
    let after = (!before.is_empty()).then(|| format!("--dependency=afterany:{}", before.join(":")));
    let script = dir.join(format!("{name}.sh")).display().to_string();
    ["--parsable".to_owned()].into_iter().chain(array).chain(after).chain([script]).collect()
}

/// The newest submission of the grid in the folder `run`, with its jobs.
fn latest(run: &Path) -> Option<(PathBuf, Vec<Job>)> {
    let entries = fs::read_dir(run.join("submit")).ok()?;
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut numbers: Vec<u32> = numbers.collect();
    numbers.sort_unstable();
    numbers.into_iter().rev().find_map(|number| {
        let dir = run.join("submit").join(number.to_string());
        let jobs = read_json(&dir.join(JOBS), "ablate --submit slurm").ok()?;
        Some((dir, jobs))
    })
}

fn name(dir: &Path) -> String {
    dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Slurm's state of the newest submission of the grid in the folder `run`, beside that of its stages; `None` if there is no
/// submission.
pub fn status(run: &Path) -> Option<String> {
    let (dir, jobs) = latest(run)?;
    let Submission { tasks, .. } = read_json(&dir.join(PLAN), "ablate --submit slurm").ok()?;
    let ids: Vec<&str> = jobs.iter().map(|job| &job.job[..]).collect();
    let queue = slurm::queue(&ids, true);
    let row = |job: &Job| {
        let said = match &queue {
            Ok(elements) => slurm::states(elements, &job.job),
            Err(_) => "?".to_owned(),
        };
        let finished = job.tasks.iter().filter(|&&task| {
            tasks.get(task).is_some_and(|name| is_finished(&run.join("store").join(name)))
        });
        let finished = match job.tasks.len() {
            0 => String::new(),
            all => format!("{} of {all}", finished.count()),
        };
        vec![job.job.clone(), job.name.clone(), finished, said]
    };
    let rows: Vec<Vec<String>> = jobs.iter().map(row).collect();
    let mut text = listing(&["Slurm job", "array", "finished", "Slurm says"], &rows);
    if let Err(error) = queue {
        text += &format!("{error}\n");
    }
    text += &format!("logs in {}", dir.display());
    Some(text)
}

/// What an element is given by its surroundings.
pub struct Surroundings {
    pub locks: Locks,
    pub stop: Stop,
    pub progress: Progress,
    pub tensorboard: bool,
}

/// The plan of the submission in the folder `dir`.
fn plan(dir: &Path, given: &Surroundings) -> Result<Plan, GridError> {
    let Submission { grid, tasks, .. } = read_json(&dir.join(PLAN), "ablate --submit slurm")?;
    let run = dir.ancestors().nth(2).unwrap_or(dir);
    let plan = grid.plan(run, &given.locks, &given.stop, &given.progress)?;
    if plan.tasks.all().iter().map(|task| name(&task.dir)).ne(tasks) {
        return Err(GridError::Changed { dir: dir.to_owned() });
    }
    Ok(if given.tensorboard { plan.with_events() } else { plan })
}

/// Runs the stage of the task `number` of the submission in the folder `dir`.
pub fn element(dir: &Path, number: usize, given: &Surroundings) -> Result<(), GridError> {
    let plan = plan(dir, given)?;
    let Some(task) = plan.tasks.all().get(number) else {
        return Err(GridError::Changed { dir: dir.to_owned() });
    };
    let before = task.after.map(|last| plan.tasks.chain(last)).unwrap_or_default();
    for number in before {
        let needed = &plan.tasks.all()[number];
        look_again(&needed.dir);
        if !needed.is_finished() {
            let failure: Option<Failure> = read_json(&needed.dir.join(FAILED), "ablate").ok();
            let stage = task.stage.command();
            return Err(GridError::NotReady {
                stage,
                dir: needed.dir.clone(),
                why: failure
                    .map_or_else(|| "is not finished".into(), |of| format!("failed: {}", of.error)),
            });
        }
    }
    Ok(schedule::run_one(task)?)
}

/// Opens the folder `dir` and the one above it, so that a network file system asks its server what is in them.
fn look_again(dir: &Path) {
    for dir in [dir.parent(), Some(dir)].into_iter().flatten() {
        let _ = fs::read_dir(dir);
    }
}

/// Writes the results of the submission in the folder `dir`, whatever its stages have given.
pub fn report(dir: &Path, given: &Surroundings) -> Result<Results, GridError> {
    let plan = plan(dir, given)?;
    plan.tasks.all().iter().for_each(|task| look_again(&task.dir));
    driver::report(&plan)
}
