//! A first hour with one's own model and data: what a run knows, what it tells, and how it warns.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{PROGRAM, SENTENCES, files, finish, json_lines, llama, program, run_plain};

/// A run of `stages` with a model and data of the user's.
fn own(stages: &[&str], further: &[&str]) -> (TempDir, TempDir) {
    let (model, run) = (llama(), TempDir::new().unwrap());
    let arguments = ["--model", model.path().to_str().unwrap(), "--data", SENTENCES];
    finish(run.path(), stages, &[&arguments[..], further].concat());
    (model, run)
}

const POLICY: [&str; 3] = ["train-reward", "fit-normalizer", "ppo"];

#[test]
fn commands_that_read_a_run_need_neither_model_nor_settings() {
    let (model, run) = own(&POLICY, &["--set", "reward.aggregation=sum"]);
    let run = run.path().to_str().unwrap();
    let text = ["--prompt", "hello", "--response", "a fine day"];
    let score =
        run_plain(&[&["score", "--run", run, "--json", "--normalized"], &text[..]].concat());
    let score: Value = serde_json::from_str(&score.ended_with(0).stdout).unwrap();
    let rewards = score["segments"].as_array().unwrap().iter();
    let sum: f64 = rewards.map(|segment| segment["reward"].as_f64().unwrap()).sum();
    let shown = score["sequence_score"].as_f64().unwrap();
    assert!((sum - shown).abs() < 1e-9, "the sum of the settings, not the average: {score}");
    // At another cutoff there are segments, and no rewards.
    let other = ["segment", "--run", run, "--set", "segmentation.entropy_cutoff=3", "--json"];
    let cut = run_plain(&[&other[..], &text].concat()).ended_with(0).says(&["without rewards"]);
    let cut: Value = serde_json::from_str(&cut.stdout).unwrap();
    assert!(cut["segments"][0]["reward"].is_null());
    assert!(
        cut["segments"].as_array().unwrap().len() < score["segments"].as_array().unwrap().len()
    );
    // tiny.toml allows 16 tokens; the default is 64.
    let written = run_plain(&["generate", "--run", run, "--prompt", "hello"]).ended_with(0).stdout;
    assert!(written.lines().last().unwrap().len() < 200, "{written}");
    let evaluated = run_plain(&["evaluate", "--run", run]).ended_with(0).stdout;
    let prompt = evaluated.lines().find(|line| line.starts_with("prompt ")).unwrap();
    assert!(prompt.contains("User: "), "{evaluated}");
    assert_eq!(evaluated, run_plain(&["evaluate", "--run", run]).ended_with(0).stdout);
    let hf = Path::new(run).join("hf");
    run_plain(&["export", "--run", run, "--hf", hf.to_str().unwrap()]).ended_with(0);
    // A model that has moved is asked for.
    let moved = TempDir::new().unwrap();
    let to = moved.path().join("m");
    fs::rename(model.path(), &to).unwrap();
    let score = [&["score", "--run", run], &text[..]].concat();
    run_plain(&score).ended_with(2).says(&["which is not there any more; give it as --model"]);
    run_plain(&[&score[..], &["--model", to.to_str().unwrap()]].concat()).ended_with(0);
    fs::create_dir(model.path()).unwrap();
}

#[test]
fn a_run_that_fine_tuned_a_model_reads_what_it_made_of_it() {
    let (model, run) = (llama(), TempDir::new().unwrap());
    let arguments = ["sft", "--model", model.path().to_str().unwrap(), "--data", SENTENCES];
    let told = program(run.path(), &arguments).ended_with(0).stdout;
    let next = told.lines().last().unwrap();
    assert!(next.contains(" train-reward --run ") && next.contains(" --data "), "{told}");
    assert!(!next.contains("--model"), "{told}");
    let (folder, hf) = (run.path().to_str().unwrap(), run.path().join("hf"));
    let export = ["export", "--run", folder, "--what", "reference", "--hf", hf.to_str().unwrap()];
    let from = run_plain(&export).ended_with(0).stdout;
    assert!(from.contains("sft/model"), "{from}");
    run_plain(&["report", folder]).ended_with(0);
}

#[test]
fn the_only_method_of_a_run_is_the_one_that_is_read() {
    let run = TempDir::new().unwrap();
    finish(run.path(), &["sft", "preferences", "train-reward"], &["--method", "token"]);
    let text = ["--prompt", "write to emma", "--response", "dear emma ,", "--json"];
    let run = run.path().to_str().unwrap();
    let score = run_plain(&[&["score", "--run", run], &text[..]].concat()).ended_with(0).stdout;
    let score: Value = serde_json::from_str(&score).unwrap();
    assert_eq!(score["segments"].as_array().unwrap().len(), 3, "one a token: {score}");
}

#[test]
fn a_finished_ppo_goes_on_when_its_iterations_grow() {
    let (model, run) = own(&POLICY, &[]);
    run_plain(&["evaluate", "--run", run.path().to_str().unwrap()]).ended_with(0);
    let ppo = |sets: &[&str]| {
        let model = model.path().to_str().unwrap();
        program(run.path(), &[&["ppo", "--model", model, "--data", SENTENCES], sets].concat())
    };
    let metrics = || fs::read_to_string(run.path().join("segment/ppo/metrics.jsonl")).unwrap();
    let before = metrics();
    let more = ["--set", "ppo.iterations=6"];
    ppo(&more)
        .ended_with(0)
        .says(&["goes on behind iteration 4", "ppo                          5/6, "]);
    assert!(metrics().starts_with(&before));
    assert_eq!(metrics().lines().count(), 6);
    let evaluation = |name: &str| run.path().join("segment").join(name).exists();
    assert!(evaluation("evaluation-4") && !evaluation("evaluation"));
    // It does not shrink, and goes on again.
    ppo(&[]).ended_with(2).says(&["settings.ppo.iterations: 6 there, 4 here"]);
    assert_eq!(metrics().lines().count(), 6);
    ppo(&["--set", "ppo.iterations=7", "--stop-after", "1"]).ended_with(0);
    assert_eq!(metrics().lines().count(), 7);
    // Other settings with it are refused, and so is a run that kept nothing.
    let other = ["--set", "ppo.iterations=9", "--set", "ppo.clip=0.3"];
    ppo(&other).ended_with(2).says(&["settings.ppo.clip"]);
    fs::remove_dir_all(run.path().join("segment/ppo/resume")).unwrap();
    ppo(&["--set", "ppo.iterations=9"]).ended_with(2).says(&["settings.ppo.iterations: 7 there"]);
}

#[test]
fn what_ppo_keeps_to_grow_can_be_left_out() {
    let (_, run) = own(&POLICY, &["--set", "checkpoint.keep_last=false"]);
    assert!(!run.path().join("segment/ppo/resume").exists());
}

#[test]
fn an_unfinished_ppo_that_grows_is_the_longer_run() {
    let (model, run) = own(&POLICY[..2], &[]);
    let ppo = |run: &Path, further: &[&str]| {
        let model = model.path().to_str().unwrap();
        program(run, &[&["ppo", "--model", model, "--data", SENTENCES], further].concat())
    };
    ppo(run.path(), &["--stop-after", "2"]).ended_with(130);
    ppo(run.path(), &["--set", "ppo.iterations=5"]).ended_with(0);
    assert_eq!(json_lines(&run.path().join("segment/ppo/metrics.jsonl")).len(), 5);
}

#[test]
fn an_alarm_is_told_once_and_stops_where_that_is_asked_for() {
    let (model, run) = own(&POLICY[..2], &[]);
    let model = model.path().to_str().unwrap();
    let arguments = ["ppo", "--model", model, "--data", SENTENCES, "--set", "alarms.kl=1e-9"];
    let stopping = [&arguments[..], &["--stop-on", "kl"]].concat();
    let output = program(run.path(), &stopping).ended_with(1).says(&[
        "alarm kl at step ",
        "nats a response, above alarms.kl = 0.000000001; raise ppo.kl_coefficient",
        "Stopped by --stop-on; the same command goes on from what is saved in ",
    ]);
    assert_eq!(output.stdout, "");
    let metrics = run.path().join("segment/ppo/metrics.jsonl");
    let lines = json_lines(&metrics).len();
    assert!(lines < 4, "{lines}");
    // An alarm that was told does not stop twice.
    let output = program(run.path(), &stopping).ended_with(0);
    assert!(!output.stderr.contains("alarm kl"), "{}", output.stderr);
    assert!(output.stdout.contains("alarm  "), "the outcome repeats it: {}", output.stdout);
    assert_eq!(json_lines(&metrics).len(), 4);
    // The bounds change no result.
    let again = program(run.path(), &arguments[..5]).ended_with(0);
    assert!(!again.stdout.contains("kl at step"), "{}", again.stdout);
    program(run.path(), &["ppo", "--stop-on", "panic"]).ended_with(2).says(&["held-out"]);
}

#[test]
fn a_stage_ends_with_a_few_lines_and_what_comes_next() {
    let run = TempDir::new().unwrap();
    let told = |stage: &str| program(run.path(), &[stage]).ended_with(0).stdout;
    let next = |text: &str, stage: &str| {
        assert!((3..=12).contains(&text.lines().count()), "{text}");
        let line = text.lines().last().unwrap();
        let command = format!("segment-rlhf {stage} --run {}", run.path().display());
        assert!(line.starts_with("next ") && line.contains(&command), "{text}");
    };
    let sft = told("sft");
    assert!(sft.contains("nats a token (perplexity "), "{sft}");
    next(&sft, "preferences");
    next(&told("preferences"), "train-reward");
    let reward = told("train-reward");
    assert!(reward.contains("of 8 held-out pairs"), "{reward}");
    next(&reward, "fit-normalizer");
    let normalizer = told("fit-normalizer");
    assert!(normalizer.contains("Mean(p) = "), "{normalizer}");
    next(&normalizer, "ppo");
    let ppo = told("ppo");
    assert!(ppo.contains("held-out gold"), "{ppo}");
    next(&ppo, "evaluate");
    let evaluated = told("evaluate");
    assert!(evaluated.contains("SFT model  ") && evaluated.contains("policy  "), "{evaluated}");
    next(&evaluated, "generate");
    let whole = program(run.path(), &["evaluate", "--json"]).ended_with(0).stdout;
    assert!(serde_json::from_str::<Value>(&whole).unwrap()["after"]["gold"].is_f64());
}

#[test]
fn ppo_tells_every_iteration_outside_of_a_terminal() {
    let (model, run) = own(&POLICY[..2], &[]);
    let model = model.path().to_str().unwrap();
    let told = program(run.path(), &["ppo", "--model", model, "--data", SENTENCES]).ended_with(0);
    let lines = told.stderr.lines().filter(|line| line.contains("/4, reward "));
    let whole = |line: &&str| {
        [", KL ", " tokens, EOS ", " % (", " s left)"].iter().all(|part| line.contains(part))
    };
    assert_eq!(lines.filter(whole).count(), 4, "{}", told.stderr);
    assert!(
        told.stderr.contains("ppo.actor.learning_rate = 2e-4, ppo.critic.learning_rate = 1e-3")
    );
    assert!(!told.stderr.contains("-0.00"), "{}", told.stderr);
}

#[test]
fn a_table_shows_what_each_cutoff_does_to_the_user_s_texts() {
    let (model, run) = (llama(), TempDir::new().unwrap());
    let model = model.path().to_str().unwrap();
    let arguments = ["segment", "--model", model, "--data", SENTENCES, "--rows", "4", "--json"];
    let table = program(run.path(), &arguments).ended_with(0).stdout;
    let table: Value = serde_json::from_str(&table).unwrap();
    assert_eq!(table["responses"], 4);
    let lines = table["lines"].as_array().unwrap();
    let of = |key: &str| lines.iter().map(|line| line[key].as_f64().unwrap()).collect::<Vec<_>>();
    assert!(of("tokens").is_sorted() && of("cutoff").is_sorted(), "{table}");
    assert!(of("segments").iter().rev().is_sorted() && of("single").iter().rev().is_sorted());
    let in_force: Vec<_> = lines.iter().filter(|line| line["in_force"] == true).collect();
    assert_eq!(in_force.len(), 1);
    assert_eq!(in_force[0]["cutoff"], 1.2);
    assert!(files(run.path()).is_empty(), "nothing is written");
    let shown = program(run.path(), &arguments[..5]).ended_with(0).stdout;
    assert!(shown.contains("| → 1.2  |") && shown.contains("10 responses"), "{shown}");
    let one = ["segment", "--model", model, "--prompt", "hello", "--response", "fine"];
    let one = program(run.path(), &one).ended_with(0).stdout;
    assert!(one.contains("cutoff 1.2 nats: 4 segments of 5 tokens, 1.0 each"), "{one}");
}

#[test]
fn training_a_reward_model_warns_of_segments_that_are_tokens() {
    let run = TempDir::new().unwrap();
    finish(run.path(), &["sft", "preferences"], &[]);
    let low = ["train-reward", "--set", "segmentation.entropy_cutoff=0.01"];
    let caution = "nearly every token is its own segment: raise segmentation.entropy_cutoff";
    program(run.path(), &low).ended_with(0).says(&[caution]);
}

#[test]
fn a_preset_gives_way_to_files_and_sets() {
    let run = TempDir::new().unwrap();
    let quick = program(run.path(), &["reproduce", "--preset", "small-lora"]).ended_with(2);
    quick.says(&["--preset small-lora is for a pretrained model", "give --preset quick or full"]);
    finish(run.path(), &["sft", "preferences"], &["--preset", "small"]);
    let given = fs::read_to_string(run.path().join("sft/run.toml")).unwrap();
    let given: toml::Table = given.parse().unwrap();
    let settings = &given["settings"];
    assert_eq!(settings["reward"]["optimizer"]["learning_rate"].as_float(), Some(1e-5));
    assert_eq!(settings["sft"]["batch"].as_integer(), Some(16), "of tiny.toml");
}

#[test]
fn single_stages_have_a_report_finished_or_not() {
    let (model, run) = own(&POLICY[..2], &[]);
    let model = model.path().to_str().unwrap();
    let ppo = ["ppo", "--model", model, "--data", SENTENCES, "--set", "alarms.unfinished=0"];
    program(run.path(), &[&ppo[..], &["--stop-after", "2"]].concat()).ended_with(130);
    let folder = run.path().to_str().unwrap();
    let report = run_plain(&["report", folder]).ended_with(0).stdout;
    assert!(report.starts_with("0 of 1 cells"), "{report}");
    let page = || fs::read_to_string(run.path().join("report/report.html")).unwrap();
    let under_way = page();
    for text in ["Loss of train-reward, nats", "Σ r̂ of a rollout", "id=\"alarms\"", ">length<"] {
        assert!(under_way.contains(text), "{text}");
    }
    assert!(!under_way.contains("http-equiv=\"refresh\""));
    // A page that is watched loads itself until the run has ended.
    let mut watch = Command::new(PROGRAM)
        .args(["report", folder, "--watch"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !page().contains("http-equiv=\"refresh\" content=\"10\"") {
        assert!(std::time::Instant::now() < until);
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    program(run.path(), &ppo).ended_with(0);
    run_plain(&["evaluate", "--run", folder]).ended_with(0);
    assert!(watch.wait().unwrap().success());
    let finished = page();
    assert!(!finished.contains("http-equiv=\"refresh\""));
    for text in ["id=\"samples\"", "id=\"curves\"", "id=\"logs\""] {
        assert!(finished.contains(text), "{text}");
    }
    let empty = TempDir::new().unwrap();
    run_plain(&["report", empty.path().to_str().unwrap()])
        .ended_with(2)
        .says(&["no grid.json and no stage"]);
}

#[test]
fn a_chat_answers_line_by_line() {
    let model = llama();
    let set = ["--set", "sampling.max_new_tokens=8", "--set", "sampling.prompt_tokens=100"];
    let mut child = Command::new(PROGRAM)
        .args(["chat", "--model", model.path().to_str().unwrap()])
        .args(set)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let long = "much ".repeat(40);
    let said = format!("hello\nand you?\n{long}\n\nhello\n");
    child.stdin.take().unwrap().write_all(said.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let (out, err) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{err}");
    assert!(err.contains("more than sampling.prompt_tokens = 100: say less"), "{err}");
    assert!(out.ends_with('\n') && out.matches('\n').count() >= 3, "{out:?}");
}

#[test]
fn a_prompt_of_generate_is_cut_as_rollouts_are() {
    let (model, run) = (llama(), TempDir::new().unwrap());
    let model = model.path().to_str().unwrap();
    let arguments = ["generate", "--model", model, "--prompt", "hello there", "--set"];
    let cut = program(run.path(), &[&arguments[..], &["sampling.prompt_tokens=10"]].concat());
    cut.ended_with(0).says(&["--prompt: cut to its last 10 tokens"]);
}
