//! A stopped run that goes on gives bit for bit what an unbroken run gives.

use std::fs;
use std::io::Write;

use tempfile::TempDir;

use crate::support::{
    assert_same, copy, files, finish, json_lines, owner, program, program_with_threads,
};

/// A stage's command, what must run before it, and its folder.
type Stage = (&'static str, &'static [&'static str], &'static str);

const SFT: Stage = ("sft", &[], "sft");
const REWARD: Stage = ("train-reward", &["sft"], "segment/reward");
const PPO: Stage = ("ppo", &["sft", "train-reward", "fit-normalizer"], "segment/ppo");

/// A run that is ready for `stage`, and one in which the stage has run unbroken with `arguments`.
fn ready_and_unbroken((command, before, _): Stage, arguments: &[&str]) -> (TempDir, TempDir) {
    let ready = TempDir::new().unwrap();
    finish(ready.path(), before, arguments);
    let unbroken = copy(ready.path());
    finish(unbroken.path(), &[command], arguments);
    (ready, unbroken)
}

#[track_caller]
fn stopped_twice_is_unbroken(stage: Stage, after: &str) {
    let (command, _, dir) = stage;
    let (run, unbroken) = ready_and_unbroken(stage, &[]);
    for _ in 0..2 {
        program(run.path(), &[command, "--stop-after", after])
            .ended_with(130)
            .says(&["stopped; run the same command again to go on from what is saved in", dir]);
        assert!(!run.path().join(dir).join("summary.json").exists());
    }
    finish(run.path(), &[command], &[]);
    assert_same(&unbroken.path().join(dir), &run.path().join(dir));
    // Running a finished stage again changes nothing.
    finish(run.path(), &[command], &[]);
    assert_same(&unbroken.path().join(dir), &run.path().join(dir));
}

#[test]
fn sft_stopped_twice_is_bit_identical() {
    stopped_twice_is_unbroken(SFT, "3");
}

#[test]
fn train_reward_stopped_twice_is_bit_identical() {
    stopped_twice_is_unbroken(REWARD, "2");
}

#[test]
fn ppo_stopped_twice_is_bit_identical() {
    stopped_twice_is_unbroken(PPO, "1");
    let (_, unbroken) = ready_and_unbroken(PPO, &[]);
    let evaluations = json_lines(&unbroken.path().join("segment/ppo/evaluations.jsonl"));
    let iterations: Vec<u64> =
        evaluations.iter().map(|line| line["iteration"].as_u64().unwrap()).collect();
    assert_eq!(iterations, [0, 2, 4]);
}

#[test]
fn the_draws_of_an_annotator_and_the_rewards_of_granularities_survive_a_stop() {
    let before = &["sft", "train-reward", "fit-normalizer"];
    let program = ["systems.drlc.recall=0.5", "systems.drlc.false_positive_rate=0.5"];
    let critic = ["systems.drlc.annotator=self", "systems.drlc.threshold=0.0"];
    for (method, dir, sets) in
        [("drlc", "drlc/ppo", program), ("drlc", "drlc/ppo", critic), ("lens", "lens/ppo", program)]
    {
        let [first, second] = sets;
        let arguments = ["--method", method, "--set", first, "--set", second];
        let (run, unbroken) = ready_and_unbroken(("ppo", before, dir), &arguments);
        crate::support::program(
            run.path(),
            &[&["ppo", "--stop-after", "3"], &arguments[..]].concat(),
        )
        .ended_with(130);
        finish(run.path(), &["ppo"], &arguments);
        assert_same(&unbroken.path().join(dir), &run.path().join(dir));
    }
}

#[test]
fn an_adaptive_kl_coefficient_survives_a_stop() {
    let adaptive = ["--set", "ppo.kl_target=0.001", "--set", "ppo.kl_horizon=20"];
    let (run, unbroken) = ready_and_unbroken(PPO, &adaptive);
    program(run.path(), &[&["ppo", "--stop-after", "3"], &adaptive[..]].concat()).ended_with(130);
    finish(run.path(), &["ppo"], &adaptive);
    let dir = "segment/ppo";
    assert_same(&unbroken.path().join(dir), &run.path().join(dir));
    let coefficients: Vec<f64> = json_lines(&run.path().join(dir).join("metrics.jsonl"))
        .iter()
        .map(|line| line["kl_coefficient"].as_f64().unwrap())
        .collect();
    assert!(coefficients.windows(2).any(|pair| pair[0] != pair[1]), "{coefficients:?}");
}

#[test]
fn jobs_and_threads_change_no_result() {
    let one = TempDir::new().unwrap();
    let two = TempDir::new().unwrap();
    let methods = ["reproduce", "--set", r#"reproduce.methods=["bandit", "segment"]"#, "--set"];
    let printed = [
        program(one.path(), &[&methods[..], &["reproduce.jobs=1"]].concat()).ended_with(0),
        program_with_threads(two.path(), &[&methods[..], &["reproduce.jobs=2"]].concat(), "2")
            .ended_with(0),
    ];
    // The same table, and the same samples, up to the line that says how long it took.
    let table = |text: &str| {
        text.split("results.json").next().unwrap().rsplit_once('\n').unwrap().0.to_owned()
    };
    assert_eq!(table(&printed[0].stdout), table(&printed[1].stdout));
    assert!(printed[0].stdout.contains("| bandit"), "{}", printed[0].stdout);
    assert_same(one.path(), two.path());
    // All is finished: nothing runs again, and the results are written the same.
    let again = program(one.path(), &[&methods[..], &["reproduce.jobs=2"]].concat()).ended_with(0);
    assert_eq!(table(&again.stdout), table(&printed[0].stdout));
    assert_same(one.path(), two.path());
}

/// Batches of thousands of tokens, which are cut into shards.
#[test]
fn every_number_of_threads_gives_the_same_bits() {
    let large = [
        "sampling.max_new_tokens=64",
        "sft.batch=64",
        "sft.rows_at_once=64",
        "reward.batch=24",
        "reward.rows_at_once=24",
        "ppo.rollouts=64",
        "ppo.minibatch=64",
        "ppo.rows_at_once=64",
        "sampling.rows_at_once=64",
    ];
    let large: Vec<&str> = large.iter().flat_map(|set| ["--set", set]).collect();
    let run = |threads: &str| {
        let run = TempDir::new().unwrap();
        for stage in ["sft", "train-reward", "fit-normalizer", "ppo", "evaluate"] {
            let arguments = [&[stage], &large[..]].concat();
            program_with_threads(run.path(), &arguments, threads).ended_with(0);
        }
        run
    };
    let one = run("1");
    for threads in ["2", "4", "8"] {
        assert_same(one.path(), run(threads).path());
    }
}

#[test]
fn a_reproduction_stopped_in_each_stage_gives_the_same_results() {
    let unbroken = TempDir::new().unwrap();
    let stopped = TempDir::new().unwrap();
    let arguments = ["reproduce", "--set", r#"reproduce.methods=["segment_as_bandit", "token"]"#];
    program(unbroken.path(), &arguments).ended_with(0);
    let mut stops = 0;
    loop {
        let output = program(stopped.path(), &[&arguments[..], &["--stop-after", "5"]].concat());
        if output.code == 0 {
            break;
        }
        output.ended_with(130);
        stops += 1;
        assert!(stops < 30, "each start goes on from the last");
    }
    assert!(stops > 3, "stopped {stops} times");
    assert_same(unbroken.path(), stopped.path());
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_it_used() {
    let (run, unbroken) = ready_and_unbroken(PPO, &[]);
    program(run.path(), &["ppo", "--stop-after", "3"]).ended_with(130);
    let checkpoints = run.path().join("segment/ppo/checkpoints");
    let cut = |step: &str, name: &str| {
        let path = checkpoints.join(step).join(name);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    };
    cut("step-00000003", "policy.safetensors");
    program(run.path(), &["ppo"])
        .ended_with(0)
        .says(&["checkpoint step-00000003 is damaged (policy.safetensors:", "using step 2"]);
    assert_same(&unbroken.path().join("segment/ppo"), &run.path().join("segment/ppo"));
}

#[test]
fn when_every_checkpoint_is_damaged_the_stage_is_not_silently_begun_anew() {
    let run = TempDir::new().unwrap();
    program(run.path(), &["sft", "--stop-after", "5"]).ended_with(130);
    let dir = run.path().join("sft/checkpoints");
    let all = files(&dir);
    assert!(all.iter().any(|path| path.starts_with("step-00000004")), "{all:?}");
    for path in all.iter().filter(|path| path.ends_with("policy.adamw")) {
        fs::write(dir.join(path), "cut").unwrap();
    }
    program(run.path(), &["sft"]).ended_with(2).says(&[
        "no checkpoint can be used",
        "step-00000005 is damaged (policy.adamw: 3 bytes",
        "step-00000004 is damaged (policy.adamw: 3 bytes",
        "remove the folder to start the stage again",
    ]);
    fs::remove_dir_all(dir).unwrap();
    finish(run.path(), &["sft"], &[]);
}

#[test]
fn what_a_kill_leaves_half_written_is_dropped() {
    let (run, unbroken) = ready_and_unbroken(SFT, &[]);
    program(run.path(), &["sft", "--stop-after", "5"]).ended_with(130);
    let dir = run.path().join("sft");
    for log in ["metrics.jsonl", "timings.jsonl"] {
        let mut file = fs::File::options().append(true).open(dir.join(log)).unwrap();
        file.write_all(b"{\"step\": 5}\n{\"step\": 6, \"lo").unwrap();
    }
    for left in [
        ".metrics.jsonl.tmp",
        ".summary.json.node-3.cluster-17.tmp",
        "checkpoints/.step-00000006.node-3-17.tmp/policy.safetensors",
        "checkpoints/.step-00000007.tmp/.policy.adamw.tmp",
        ".model.node-3-17.tmp/config.json",
        ".model.node-3-17.old/config.json",
    ] {
        fs::create_dir_all(dir.join(left).parent().unwrap()).unwrap();
        fs::write(dir.join(left), "half").unwrap();
    }
    fs::write(dir.join("../sft.owner.json"), owner(u32::MAX)).unwrap();
    finish(run.path(), &["sft"], &[]);
    assert_same(unbroken.path(), run.path());
}

#[test]
fn half_written_settings_do_not_bind_a_stage_that_has_not_begun() {
    let run = TempDir::new().unwrap();
    fs::create_dir(run.path().join("sft")).unwrap();
    fs::write(run.path().join("sft/settings.toml"), "[settings]\nseed = 3\n").unwrap();
    let half = run.path().join("sft/.settings.toml.node-3-17.tmp");
    fs::write(&half, "[sett").unwrap();
    finish(run.path(), &["sft"], &[]);
    assert!(!half.exists());
}

#[test]
fn a_stage_that_was_refused_takes_corrected_settings() {
    let run = TempDir::new().unwrap();
    // A reward model that gives 0 to every response.
    let silent = [
        "reproduce",
        "--set",
        "reproduce.methods=['bandit']",
        "--set",
        "heads.init_std=0.0",
        "--set",
        "reward.optimizer.learning_rate=1e-300",
    ];
    let refused = program(run.path(), &silent).ended_with(2);
    refused.says(&["error: normalizer: the standard deviation is 0, expected more than 0"]);
    let normalizers = || {
        let all = files(run.path()).into_iter();
        all.filter(|path| path.to_string_lossy().contains("store/normalizer-"))
    };
    let noted = || normalizers().filter(|path| path.ends_with("took.json")).count();
    assert_eq!(noted(), 1, "a refused stage has taken its time");
    let status = program(run.path(), &["status"]).ended_with(0).stdout;
    assert!(status.contains(": fit-normalizer: normalizer: the standard deviation is"), "{status}");
    let corrected = [&silent[..], &["--set", "normalizer.kind='none'"]].concat();
    program(run.path(), &corrected).ended_with(0);
    assert_eq!(noted(), 2);
    // A single stage's folder has one name, whatever the settings.
    let single = |kind: &str| {
        let set = format!("normalizer.kind='{kind}'");
        let further = ["--set", &set, "--method", "bandit"];
        program(run.path(), &[&["fit-normalizer"], &silent[3..], &further].concat())
    };
    finish(run.path(), &["sft"], &[]);
    finish(run.path(), &["train-reward"], &[&silent[3..], &["--method", "bandit"]].concat());
    single("regression").ended_with(2).says(&["normalizer: the standard deviation is 0"]);
    single("none").ended_with(0);
}

#[test]
fn checkpoints_that_a_kill_left_in_a_finished_stage_go() {
    let (run, unbroken) = ready_and_unbroken(SFT, &[]);
    program(run.path(), &["sft", "--stop-after", "5"]).ended_with(130);
    let stopped = copy(&run.path().join("sft/checkpoints"));
    finish(run.path(), &["sft"], &[]);
    let left = run.path().join("sft/checkpoints/step-00000005");
    fs::create_dir_all(&left).unwrap();
    let manifest = stopped.path().join("step-00000005/manifest.json");
    fs::copy(manifest, left.join("manifest.json")).unwrap();
    finish(run.path(), &["sft"], &[]);
    assert_same(&unbroken.path().join("sft"), &run.path().join("sft"));
}

#[test]
fn a_stage_of_another_version_and_commit_is_the_same_stage() {
    let run = TempDir::new().unwrap();
    program(run.path(), &["sft", "--stop-after", "3"]).ended_with(130);
    let path = run.path().join("sft/settings.toml");
    let mut record: toml::Table = fs::read_to_string(&path).unwrap().parse().unwrap();
    record.insert("version".into(), "0.1.0".into());
    record.insert("commit".into(), "0123456789ab".into());
    fs::write(&path, record.to_string()).unwrap();
    let unbroken = TempDir::new().unwrap();
    finish(unbroken.path(), &["sft"], &[]);
    // Half done, it goes on; finished, it is read.
    for _ in 0..2 {
        finish(run.path(), &["sft"], &[]);
        let summary = |run: &TempDir| fs::read(run.path().join("sft/summary.json")).unwrap();
        assert_eq!(summary(&run), summary(&unbroken));
    }
    let record = fs::read_to_string(&path).unwrap();
    assert!(record.contains("0.1.0"), "the record says which version began it: {record}");
}
