//! A grid on a cluster: what is submitted, and a real Slurm of two nodes on this machine, with a job that meets its time
//! limit, a node that is lost, an arm that fails and a job that is cancelled. That test is skipped where Debian's
//! packages slurmctld, slurmd, slurm-client and munge are not installed, or the tests are not root's.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use segment_rlhf::host;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Output, assert_same, files, output, program, program_with_env};

/// Two arms that end well and one that fails in PPO.
const THREE: &str = "
title = 'Three'
[arms]
bandit = { method = 'bandit' }
token = { method = 'token' }
cold = { sampling.temperature = 0.5 }
";

/// A cluster that tests/slurm.sh has started.
pub struct Cluster(TempDir);

impl Cluster {
    pub fn up() -> Option<Self> {
        let has = |name: &str| Command::new(name).arg("--version").output().is_ok();
        let root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n");
        if !root || !["slurmctld", "slurmd", "munged", "sbatch"].into_iter().all(has) {
            println!(
                "skipped: needs root and Debian's packages slurmctld slurmd slurm-client munge"
            );
            return None;
        }
        let cluster = Self(TempDir::new().unwrap());
        let ports = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = ports.map(|port| port.local_addr().unwrap().port().to_string());
        let arguments = [&["up", cluster.dir()], &ports.each_ref().map(|port| &port[..])[..]];
        cluster.script(&arguments.concat());
        Some(cluster)
    }

    fn dir(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    fn script(&self, arguments: &[&str]) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/slurm.sh");
        // The daemons keep the streams that they are given.
        let mut command = Command::new(script);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        assert!(command.status().unwrap().success(), "tests/slurm.sh {arguments:?}");
    }

    pub fn environment(&self) -> [(&'static str, String); 1] {
        [("SLURM_CONF", format!("{}/slurm.conf", self.dir()))]
    }

    /// What a command of Slurm prints.
    fn slurm(&self, command: &str, arguments: &[&str]) -> String {
        let mut command = Command::new(command);
        output(command.args(arguments).envs(self.environment())).ended_with(0).stdout
    }

    fn program(&self, run: &Path, arguments: &[&str]) -> Output {
        let environment = self.environment();
        let environment = environment.each_ref().map(|(key, value)| (*key, &value[..]));
        program_with_env(run, arguments, &environment)
    }

    /// The state of a job or an element.
    fn state(&self, job: &str) -> String {
        let arguments = ["--noheader", "--array", "--states=all", "--format=%T", "--jobs", job];
        self.slurm("squeue", &arguments).trim().to_owned()
    }

    fn node(&self, job: &str) -> String {
        self.slurm("squeue", &["--noheader", "--format=%N", "--jobs", job]).trim().to_owned()
    }

    /// Starts an element that waits for two minutes since it was requeued, or for longer.
    fn start_now(&self, job: &str) {
        wait(&format!("{job} is in the queue"), || self.state(job) == "PENDING");
        // Slurm waits so that it hears of the end of the first run before the second begins.
        sleep(Duration::from_secs(3));
        self.slurm("scontrol", &["update", &format!("JobId={job}"), "StartTime=now"]);
    }

    /// Waits for the end of the report job of the submission `number` of the run.
    fn wait_for_report(&self, run: &Path, number: usize) {
        let report = job(run, number, "report");
        let ended = || !["PENDING", "RUNNING", "COMPLETING"].contains(&&self.state(&report)[..]);
        wait("the report is written", ended);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let run = |command: &str, argument: &str| {
            Command::new(command).arg(argument).envs(self.environment()).output()
        };
        let _ = run("scancel", "--user=root");
        let queued = || run("squeue", "--noheader").is_ok_and(|said| !said.stdout.is_empty());
        let start = Instant::now();
        while queued() && start.elapsed() < Duration::from_secs(20) {
            sleep(Duration::from_millis(200));
        }
        self.script(&["down", self.dir()]);
    }
}

#[track_caller]
fn wait(what: &str, mut until: impl FnMut() -> bool) {
    let start = Instant::now();
    while !until() {
        assert!(start.elapsed() < Duration::from_secs(240), "waited in vain until {what}");
        sleep(Duration::from_millis(100));
    }
}

fn send(signal: &str, process: u64) {
    let id = process.to_string();
    assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
}

fn submission(run: &Path, number: usize) -> PathBuf {
    run.join("submit").join(number.to_string())
}

/// The jobs of a submission: number, name and tasks.
fn jobs(run: &Path, number: usize) -> Vec<(String, String, usize)> {
    let bytes = fs::read(submission(run, number).join("jobs.json")).unwrap();
    let jobs: Vec<Value> = serde_json::from_slice(&bytes).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let row = |job: &Value| {
        (text(&job["job"]), text(&job["name"]), job["tasks"].as_array().unwrap().len())
    };
    jobs.iter().map(row).collect()
}

/// The number of the first job whose name starts so.
fn job(run: &Path, number: usize, name: &str) -> String {
    let jobs = jobs(run, number);
    jobs.iter()
        .find(|(_, of, _)| of.starts_with(name))
        .unwrap_or_else(|| panic!("{jobs:?}"))
        .0
        .clone()
}

/// The process that runs the element `job` now, with the folder of its stage.
fn runner(run: &Path, job: &str) -> Option<(u64, PathBuf)> {
    let owners = fs::read_dir(run.join("store")).ok()?.flatten().map(|entry| entry.path());
    let owners = owners.filter(|path| path.to_string_lossy().ends_with(".owner.json"));
    owners.into_iter().find_map(|path| {
        let owner: Value = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        let dir = path.to_str().unwrap().trim_end_matches(".owner.json").into();
        (owner["job"] == job).then(|| (owner["process"].as_u64().unwrap(), dir))
    })
}

/// The state of each cell in the results.
fn states(run: &Path) -> Vec<String> {
    let results: Value =
        serde_json::from_slice(&fs::read(run.join("results.json")).unwrap()).unwrap();
    let state = |cell: &Value| match &cell["state"] {
        Value::String(name) => name.clone(),
        state => state.as_object().unwrap().keys().next().unwrap().clone(),
    };
    results["cells"].as_array().unwrap().iter().map(state).collect()
}

#[test]
fn a_grid_through_slurm_gives_what_it_gives_on_one_machine() {
    let Some(cluster) = Cluster::up() else { return };
    let folder = TempDir::new().unwrap();
    let (file, alone, run) =
        (folder.path().join("three.toml"), folder.path().join("alone"), folder.path().join("run"));
    fs::write(&file, THREE).unwrap();
    let arguments = ["ablate", file.to_str().unwrap(), "--seeds", "2", "--silence", "3"];
    let slow = ["--set", "sft.epochs=300", "--set", "checkpoint.every=100"];
    let arguments = [&arguments[..], &slow].concat();
    program(&alone, &[&arguments[..], &["--jobs", "2"]].concat()).ended_with(1);
    let submit = |further: &[&str]| {
        cluster.program(&run, &[&arguments[..], &["--submit", "slurm"], further].concat())
    };

    // A partition that is not there leaves nothing.
    submit(&["--sbatch", "--time=10 --partition=nope"]).ended_with(2).says(&[
        "error: sbatch: ",
        "invalid partition specified: nope",
        "`sinfo` lists partitions",
    ]);
    assert!(!submission(&run, 1).exists());

    let said = submit(&["--sbatch", "--partition=main --time=1:00:00"]).ended_with(0).stdout;
    println!("{said}");
    assert!(
        said.contains("arrays are split: this cluster allows 4 elements (MaxArraySize)"),
        "{said}"
    );
    let count = |number| jobs(&run, number).iter().map(|(.., tasks)| tasks).sum::<usize>();
    assert_eq!(count(1), 2 + 4 + 4 * 6);
    let sft = job(&run, 1, "0-sft");
    let cancelled = format!("{}_0", job(&run, 1, "3-fit-normalizer"));
    cluster.slurm("scancel", &[&cancelled]);
    submit(&[]).ended_with(2).says(&["submit/1: its jobs ", "are still queued"]);

    // Both nodes train, until they are paused.
    let elements = [format!("{sft}_0"), format!("{sft}_1")];
    let [(first, _), (second, dir)] = elements.each_ref().map(|element| {
        let mut found = None;
        wait(&format!("{element} trains"), || {
            found = runner(&run, element);
            let log = found.as_ref().map(|(_, dir)| dir.join("metrics.jsonl"));
            log.is_some_and(|log| fs::metadata(log).is_ok_and(|log| log.len() > 0))
        });
        let (process, dir) = found.unwrap();
        send("STOP", process);
        (process, dir)
    });
    let status = cluster.program(&run, &["status"]).ended_with(0).stdout;
    println!("{status}");
    for said in [
        "1 RUNNING on n1, 1 RUNNING on n2",
        "0 of 2",
        "PENDING (Dependency)",
        "| 3 PENDING (Dependency)",
    ] {
        assert!(status.contains(said), "{said:?} is not in {status}");
    }
    let log = |element: &str| {
        fs::read_to_string(submission(&run, 1).join(format!("{element}.log"))).unwrap()
    };

    // One element is warned of its time limit: it saves, and goes back into the queue.
    cluster.slurm("scancel", &["--batch", "--signal=TERM", &elements[0]]);
    send("CONT", first);
    cluster.start_now(&elements[0]);
    assert!(log(&elements[0]).contains("back into the queue"), "{}", log(&elements[0]));

    // The node of the other one is lost, and its process, still paused, lives on. Slurm gives the element to another node,
    // which takes over after a silence; on a real one it does not see the system's lock, which is taken away for that.
    let node = cluster.node(&elements[1]);
    let daemon = fs::read_to_string(cluster.0.path().join(format!("run/{node}.pid"))).unwrap();
    send("KILL", daemon.trim().parse().unwrap());
    // As Slurm does by itself after a while.
    let lost = format!("NodeName={node}");
    cluster.slurm("scontrol", &["update", &lost, "State=DOWN", "Reason=lost"]);
    fs::remove_file(dir.with_extension("lock")).unwrap();
    cluster.start_now(&elements[1]);
    wait("another has taken over", || dir.join("summary.json").exists());
    send("CONT", second);
    wait("the one that was paused ended", || host::born(second.try_into().unwrap()).is_none());
    assert!(log(&elements[1]).contains("taken over by another process"), "{}", log(&elements[1]));
    cluster.script(&["node", cluster.dir(), &node]);

    cluster.wait_for_report(&run, 1);
    println!("{}", cluster.program(&run, &["status"]).ended_with(0).stdout);
    assert!(log(&elements[0]).contains(", start 2\n"), "{}", log(&elements[0]));
    let of = |state: &str| states(&run).iter().filter(|of| *of == state).count();
    assert_eq!((of("finished"), of("failed"), of("pending")), (3, 2, 1));
    let logs = files(&submission(&run, 1));
    let logs = logs.iter().filter(|path| path.extension().is_some_and(|of| of == "log"));
    let logs: String =
        logs.map(|log| fs::read_to_string(submission(&run, 1).join(log)).unwrap()).collect();
    assert!(
        logs.contains("which is not finished; submit again to run what is unfinished"),
        "{logs}"
    );
    assert!(logs.contains("which failed: settings sampling.*: "), "{logs}");

    // Submitted again, what is unfinished runs.
    println!("{}", submit(&[]).ended_with(0).stdout);
    assert_eq!(count(2), 1 + 3 + 3);
    cluster.wait_for_report(&run, 2);
    assert_eq!((of("finished"), of("failed"), of("pending")), (4, 2, 0));
    let results = |run: &Path| fs::read(run.join("results.json")).unwrap();
    assert!(results(&run) == results(&alone), "results.json differs");
    assert_same(&alone.join("store"), &run.join("store"));

    // On a node that does not have the folder, an element says so where Slurm keeps it.
    submit(&["--sbatch", "--begin=now+1hour"]).ended_with(0);
    let hidden = folder.path().join("hidden");
    fs::rename(submission(&run, 3), &hidden).unwrap();
    let first = format!("{}_0", {
        let bytes = fs::read(hidden.join("jobs.json")).unwrap();
        serde_json::from_slice::<Value>(&bytes).unwrap()[0]["job"].as_str().unwrap().to_owned()
    });
    cluster.start_now(&first);
    wait("the element has failed", || cluster.state(&first) == "FAILED");
    fs::rename(&hidden, submission(&run, 3)).unwrap();
    let status = cluster.program(&run, &["status"]).ended_with(0).stdout;
    println!("{status}");
    let said = format!(": the folder {} is not here", submission(&run, 3).display());
    assert!(status.contains("FAILED: n") && status.contains(&said), "{said:?} is not in {status}");
}

#[test]
fn a_dry_run_for_a_cluster_prints_jobs_and_scripts_and_writes_nothing() {
    let folder = TempDir::new().unwrap();
    let (file, run) = (folder.path().join("three.toml"), folder.path().join("a run"));
    fs::write(&file, THREE).unwrap();
    let options = "--partition=gpu --gres=gpu:1 --time=4:00:00";
    let arguments = ["ablate", file.to_str().unwrap(), "--submit", "slurm", "--sbatch", options];
    let said = program(&run, &[&arguments[..], &["--dry-run"]].concat()).ended_with(0).stdout;
    assert!(!run.exists());
    let script = said.split("\n--- 4-ppo.sh\n").nth(1).unwrap().split("\n--- ").next().unwrap();
    for line in [
        "#SBATCH --job-name=a-run-4-ppo",
        "#SBATCH --signal=B:TERM@120",
        "#SBATCH --requeue",
        "#SBATCH --partition=gpu --gres=gpu:1 --time=4:00:00",
    ] {
        assert!(script.lines().any(|of| of == line), "{line:?} is not in {script}");
    }
    let first = said.lines().find(|line| line.starts_with("$ sbatch")).unwrap();
    assert!(first.contains(" --array=0-0 ") && !first.contains("--dependency"), "{first}");
    let ppo =
        said.lines().find(|line| line.starts_with("$ sbatch") && line.contains("4-ppo")).unwrap();
    assert!(ppo.contains(" --array=0-2 --dependency=afterany:JOB_OF_3-fit-normalizer "), "{ppo}");
    let path = folder.path().join("script.sh");
    for script in said.split("\n--- ").skip(1) {
        fs::write(&path, script.split_once('\n').unwrap().1).unwrap();
        let checked = output(Command::new("bash").arg("-n").arg(&path));
        checked.ended_with(0);
    }
}
