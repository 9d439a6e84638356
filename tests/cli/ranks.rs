//! Several ranks make one run: with the bits of a single one, and whatever ends one of them.

use std::path::Path;

use tempfile::TempDir;

#[cfg(not(feature = "mpi"))]
use crate::support::program_with_env;
use crate::support::{Output, assert_same, copy, files, finish, program};

/// Batches that are large enough to be cut into four shards, and rollouts for as many ranks.
const WIDE: [&str; 16] = [
    "--set",
    "sft.batch=128",
    "--set",
    "sft.rows_at_once=128",
    "--set",
    "task.letters=160",
    "--set",
    "task.pairs=48",
    "--set",
    "reward.batch=32",
    "--set",
    "reward.rows_at_once=32",
    "--set",
    "ppo.rollouts=128",
    "--set",
    "ppo.minibatch=128",
];
const MORE: [&str; 8] = [
    "--set",
    "ppo.rows_at_once=128",
    "--set",
    "ppo.iterations=2",
    "--set",
    "dpo.batch=32",
    "--set",
    "dpo.rows_at_once=32",
];
const STAGES: [&str; 6] =
    ["sft", "preferences", "train-reward", "fit-normalizer", "ppo", "evaluate"];

fn arguments<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&WIDE[..], &MORE, more].concat()
}

/// Runs `stage` on so many threads as ranks.
fn on_threads(run: &Path, stage: &str, ranks: usize, more: &[&str]) -> Output {
    let devices = vec!["flex"; ranks].join(",");
    program(run, &[&[stage, "--devices", &devices], &arguments(more)[..]].concat())
}

/// What a single rank makes of `stages`.
fn alone(stages: &[&str], more: &[&str]) -> TempDir {
    let run = TempDir::new().unwrap();
    finish(run.path(), stages, &arguments(more));
    run
}

#[test]
fn two_three_and_four_ranks_give_the_bits_of_one() {
    let one = alone(&STAGES, &[]);
    for ranks in 2..=4 {
        let run = TempDir::new().unwrap();
        for stage in STAGES {
            on_threads(run.path(), stage, ranks, &[]).ended_with(0);
        }
        assert_same(one.path(), run.path());
    }
}

#[test]
fn every_kind_of_training_has_the_same_bits_on_two_ranks() {
    let base = alone(&STAGES[..2], &[]);
    let online = &STAGES[2..5];
    for (stages, more) in [
        (&["dpo"][..], &["--method", "dpo"][..]),
        (online, &["--method", "grpo"]),
        (online, &["--method", "spo_chain"]),
        (online, &["--method", "spo_tree", "--set", "systems.spo.branches=[2,2]"]),
        (online, &["--set", "lora.rank=2"]),
        (online, &["--set", "precision.checkpointing=\"layers\""]),
    ] {
        let (one, two) = (copy(base.path()), copy(base.path()));
        finish(one.path(), stages, &arguments(more));
        for stage in stages {
            on_threads(two.path(), stage, 2, more).ended_with(0);
        }
        // Adapters name the model below them by its path.
        for run in [one.path(), two.path()] {
            for file in files(run).iter().filter(|file| file.ends_with("adapter_config.json")) {
                std::fs::remove_file(run.join(file)).unwrap();
            }
        }
        assert_same(one.path(), two.path());
    }
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let unbroken = alone(&STAGES[..5], &[]);
    let run = TempDir::new().unwrap();
    let stop = ["--stop-after", "1"];
    for stage in &STAGES[..5] {
        for (ranks, more) in [(2, &stop[..]), (4, &stop), (1, &[])] {
            let ended = on_threads(run.path(), stage, ranks, more);
            assert!([0, 130].contains(&ended.code), "{}", ended.stderr);
        }
    }
    assert_same(unbroken.path(), run.path());
}

#[test]
fn only_the_first_rank_speaks() {
    let run = TempDir::new().unwrap();
    let said = on_threads(run.path(), "sft", 2, &[]).ended_with(0);
    assert_eq!(said.stderr.lines().filter(|line| line.starts_with("sft ")).count(), 1);
    assert_eq!(said.stdout, program(run.path(), &[&["sft"], &arguments(&[])[..]].concat()).stdout);
}

#[test]
fn what_ranks_cannot_do_is_refused() {
    let run = TempDir::new().unwrap();
    on_threads(run.path(), "sft", 2, &["--set", "sft.rows_at_once=1"])
        .ended_with(2)
        .says(&["error: sft.rows_at_once = 1 gives 2 ranks fewer rows than one each"]);
    on_threads(run.path(), "ablate", 2, &[]).ended_with(2);
    on_threads(run.path(), "generate", 2, &[])
        .ended_with(2)
        .says(&["error: this command runs in one process, on one device"]);
    program(run.path(), &["sft", "--devices", "flex:x"])
        .ended_with(2)
        .says(&["expected flex, wgpu or cuda, or such as cuda:1 for the second GPU"]);
    assert!(files(run.path()).is_empty());
}

#[cfg(not(feature = "mpi"))]
#[test]
fn a_program_without_mpi_is_not_one_of_several_processes() {
    let run = TempDir::new().unwrap();
    program_with_env(run.path(), &["sft"], &[("OMPI_COMM_WORLD_SIZE", "2")])
        .ended_with(2)
        .says(&["a launcher has started 2 processes", "--features mpi"]);
    assert!(files(run.path()).is_empty());
}

#[cfg(feature = "mpi")]
mod mpi {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::support::{PROGRAM, command_line, output};

    /// `mpirun` for programs on this machine.
    fn launcher() -> Command {
        let mut command = Command::new("mpirun");
        command.args(["--allow-run-as-root", "--oversubscribe"]);
        command
    }

    /// The program's arguments for `stage`.
    fn line(run: &Path, stage: &str, more: &[&str]) -> Vec<String> {
        command_line(run, &[&[stage], &arguments(more)[..]].concat(), "1")
    }

    fn on_processes(run: &Path, stage: &str, ranks: usize, more: &[&str]) -> Output {
        output(launcher().args(["-n", &ranks.to_string(), PROGRAM]).args(line(run, stage, more)))
    }

    /// One rank with each of these folders and further arguments.
    fn unlike(stage: &str, ranks: [(&Path, &[&str]); 2]) -> Output {
        let mut command = launcher();
        for (i, (run, more)) in ranks.into_iter().enumerate() {
            command.args(if i > 0 { &[":"][..] } else { &[] });
            command.args(["-n", "1", PROGRAM]).args(line(run, stage, more));
        }
        output(&mut command)
    }

    #[test]
    fn mpi_processes_give_the_bits_of_one() {
        let one = alone(&STAGES, &[]);
        for (ranks, bytes_at_once) in [(2, "1073741824"), (4, "4000")] {
            let run = TempDir::new().unwrap();
            for stage in STAGES {
                let mut command = launcher();
                command.env("SEGMENT_RLHF_ROUND", bytes_at_once);
                let n = ranks.to_string();
                command.args(["-n", &n, PROGRAM]).args(line(run.path(), stage, &[]));
                output(&mut command).ended_with(0);
            }
            assert_same(one.path(), run.path());
        }
    }

    #[test]
    fn mpi_thousands_of_steps_have_the_same_bits() {
        let more = ["--set", "sft.epochs=1000", "--set", "checkpoint.every=1000"];
        let one = alone(&["sft"], &more);
        let run = TempDir::new().unwrap();
        on_processes(run.path(), "sft", 2, &more).ended_with(0);
        assert_same(one.path(), run.path());
        let steps = std::fs::read_to_string(run.path().join("sft/metrics.jsonl")).unwrap();
        assert!(steps.lines().count() >= 2000);
    }

    #[cfg(unix)]
    #[test]
    fn mpi_ranks_on_two_nodes_of_a_slurm_have_the_same_bits() {
        let Some(cluster) = crate::slurm::Cluster::up() else { return };
        let more = ["--set", "sft.epochs=200", "--set", "checkpoint.every=100"];
        let one = alone(&["sft"], &more);
        let run = TempDir::new().unwrap();
        let mut step = Command::new("srun");
        step.args(["--mpi=pmix", "-N2", "-n2", PROGRAM]).args(line(run.path(), "sft", &more));
        output(step.envs(cluster.environment())).ended_with(0);
        assert_same(one.path(), run.path());
    }

    #[test]
    fn mpi_a_killed_rank_ends_the_others_and_the_run_goes_on_with_another_number() {
        let more = ["--set", "sft.epochs=400", "--set", "checkpoint.every=20"];
        let one = alone(&["sft"], &more);
        let run = TempDir::new().unwrap();
        let line = line(run.path(), "sft", &more);
        let mut ranks = launcher().args(["-n", "2", PROGRAM]).args(line).spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(120);
        while !run.path().join("sft/checkpoints").exists() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        let children =
            Command::new("pgrep").args(["-P", &ranks.id().to_string()]).output().unwrap();
        let children = String::from_utf8(children.stdout).unwrap();
        let second = children.lines().nth(1).expect("two ranks");
        assert!(Command::new("kill").args(["-9", second]).status().unwrap().success());
        assert!(!ranks.wait().unwrap().success());
        assert!(!run.path().join("sft/summary.json").exists());
        on_processes(run.path(), "sft", 4, &more).ended_with(0);
        assert_same(one.path(), run.path());
    }

    #[test]
    fn mpi_ranks_that_differ_are_told_apart() {
        let run = TempDir::new().unwrap();
        let said = unlike("sft", [(run.path(), &[]), (run.path(), &["--set", "sft.epochs=3"])]);
        assert_ne!(said.code, 0);
        said.says(&["error: rank 1: ", "settings.sft.epochs: 2 there, 3 here"]);
    }

    #[test]
    fn mpi_a_folder_that_is_not_shared_is_refused() {
        let (run, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let said = unlike("sft", [(run.path(), &[]), (other.path(), &[])]);
        assert_ne!(said.code, 0);
        said.says(&["error: rank 1: ", "does not see this folder", "that all nodes share"]);
        assert!(files(other.path()).is_empty());
    }
}
