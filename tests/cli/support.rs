//! Running the program in temporary folders, and what its tests are made of.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use segment_rlhf::host;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_segment-rlhf");
/// The settings of every test.
pub const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/tiny.toml");

/// What a finished run of the program left in its streams.
pub struct Output {
    /// The exit status.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// The same, if the program ended with this exit status.
    #[track_caller]
    pub fn ended_with(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// The same, if standard error holds all these texts.
    #[track_caller]
    pub fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.stderr.contains(text), "{text:?} is not in: {}", self.stderr);
        }
        self
    }
}

/// Runs `arguments` with the run folder `run` and the tiny settings.
pub fn program(run: &Path, arguments: &[&str]) -> Output {
    program_with_threads(run, arguments, "1")
}

/// Runs `arguments` and nothing else, in the current folder.
pub fn run_plain(arguments: &[&str]) -> Output {
    output(Command::new(PROGRAM).args(arguments))
}

/// The Python that has these packages: the one that SEGMENT_RLHF_PYTHON names, or python3; says so where there is none.
pub fn python_with(packages: &[&str]) -> Option<Command> {
    let python = std::env::var_os("SEGMENT_RLHF_PYTHON").unwrap_or_else(|| "python3".into());
    let packages = packages.join(", ");
    let found = Command::new(&python).args(["-c", &format!("import {packages}")]).output();
    if found.is_ok_and(|output| output.status.success()) {
        return Some(Command::new(python));
    }
    println!("skipped: no Python with {packages} (SEGMENT_RLHF_PYTHON names one)");
    None
}

/// The same with `threads` threads.
pub fn program_with_threads(run: &Path, arguments: &[&str], threads: &str) -> Output {
    output(Command::new(PROGRAM).args(command_line(run, arguments, threads)))
}

/// The same, with standard output into the file `path`.
#[cfg(target_os = "linux")]
pub fn program_into(run: &Path, arguments: &[&str], path: &str) -> Output {
    let file = fs::File::options().write(true).open(path).unwrap();
    output(Command::new(PROGRAM).args(command_line(run, arguments, "1")).stdout(file))
}

/// The same, where no file can grow above a size: a write that fails as on a full disk, but for the reason.
#[cfg(unix)]
pub fn program_with_file_limit(run: &Path, kilobytes: usize, arguments: &[&str]) -> Output {
    let blocks = 2 * kilobytes; // of 512 bytes
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    let line = command_line(run, arguments, "1");
    output(Command::new("sh").args(["-c", &script, PROGRAM]).args(line))
}

/// The same, in a run folder of its own and with so many kilobytes of memory.
#[cfg(target_os = "linux")]
pub fn program_with_memory_limit(kilobytes: usize, arguments: &[&str]) -> Output {
    let run = TempDir::new().unwrap();
    let script = format!("ulimit -v {kilobytes}; exec \"$0\" \"$@\"");
    let line = command_line(run.path(), arguments, "1");
    output(Command::new("sh").args(["-c", &script, PROGRAM]).args(line))
}

/// The program's arguments, for the run folder `run` and the tiny settings.
pub fn command_line(run: &Path, arguments: &[&str], threads: &str) -> Vec<String> {
    let run = run.to_str().unwrap();
    let common = ["--settings", TINY, "--threads", threads, "--run", run];
    arguments.iter().chain(&common).map(|&text| text.to_owned()).collect()
}

/// The same, with these variables of the environment.
pub fn program_with_env(run: &Path, arguments: &[&str], env: &[(&str, &str)]) -> Output {
    output(Command::new(PROGRAM).args(command_line(run, arguments, "1")).envs(env.iter().copied()))
}

/// Runs `command` to its end; unless it says otherwise without a network, and with an empty cache of the Hub.
pub fn output(command: &mut Command) -> Output {
    for (key, value) in [("HF_HUB_OFFLINE", "1"), ("HF_HOME", "/nowhere")] {
        if !command.get_envs().any(|(given, _)| given == key) {
            command.env(key, value);
        }
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Output {
        code: output.status.code().expect("the program was not killed"),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// Runs each of the `stages` with the further `arguments` to its end.
#[track_caller]
pub fn finish(run: &Path, stages: &[&str], arguments: &[&str]) {
    for stage in stages {
        program(run, &[&[*stage], arguments].concat()).ended_with(0);
    }
}

/// A folder with a copy of everything in `from`.
pub fn copy(from: &Path) -> TempDir {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let to = to.join(entry.file_name());
            if entry.path().is_dir() {
                copy(&entry.path(), &to);
            } else {
                fs::copy(entry.path(), to).unwrap();
            }
        }
    }
    let to = TempDir::new().unwrap();
    copy(from, to.path());
    to
}

/// Every file below `dir`, as paths below it, sorted.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(dir).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// Whether two folders hold the same files, apart from those that tell how long things took.
#[track_caller]
pub fn assert_same(left: &Path, right: &Path) {
    let [named, others] = [left, right].map(|dir| {
        let mut named = files(dir);
        named.retain(|path| !path.to_string_lossy().contains("took.json"));
        named
    });
    assert_eq!(named, others);
    let weights = |path: &PathBuf| path.to_string_lossy().ends_with("model.safetensors");
    assert!(named.iter().any(weights), "{named:?}");
    assert!(named.iter().any(|path| path.ends_with("metrics.jsonl")), "{named:?}");
    for path in named {
        let [left, right] = [left, right].map(|dir| fs::read(dir.join(&path)).unwrap());
        if path.ends_with("timings.jsonl") {
            let lines = |bytes: &[u8]| bytes.iter().filter(|&&byte| byte == b'\n').count();
            assert_eq!(lines(&left), lines(&right), "lines of {}", path.display());
        } else {
            assert!(left == right, "{} differs", path.display());
        }
    }
}

/// Whether a stage that was refused left nothing that looks like a result.
#[track_caller]
pub fn assert_no_result(run: &Path) {
    if run.exists() {
        // The tokens of the data are no result: the next stage that reads the same data finds them.
        let kept = |path: &PathBuf| {
            let is_lock = path.extension().is_some_and(|extension| extension == "lock");
            is_lock
                || path.ends_with("settings.toml")
                || path.ends_with("run.toml")
                || path.starts_with("data")
        };
        let left = files(run);
        assert!(left.iter().all(kept), "left: {left:?}");
    }
}

/// What a stage's folder says of its owner, if that is the process `process` of this machine.
pub fn owner(process: u32) -> String {
    let born = host::born(process).unwrap_or_default();
    json!({"host": host::name(), "boot": host::boot(), "process": process, "born": born, "since": "2026"})
        .to_string()
}

/// The lines of a file of JSON lines.
pub fn json_lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Changes the JSON file `path`.
pub fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(path, serde_json::to_vec_pretty(&value).unwrap()).unwrap();
}

/// The checkpoint of 96 embeddings in tests/data/hf, with a tokenizer of one character a token.
pub fn llama() -> TempDir {
    let hf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/hf/llama");
    let dir = TempDir::new().unwrap();
    for name in ["config.json", "generation_config.json", "model.safetensors"] {
        fs::copy(hf.join(name), dir.path().join(name)).unwrap();
    }
    // One character a token: the sentences are longer than the fixture's 128 positions.
    let config = dir.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    let longer =
        text.replace("\"max_position_embeddings\": 128", "\"max_position_embeddings\": 512");
    assert_ne!(text, longer);
    fs::write(config, longer).unwrap();
    fs::write(dir.path().join("tokenizer.json"), characters(96).to_string()).unwrap();
    dir
}

/// The reward model of the fixtures, with the tokenizer of one character a token.
pub fn reward_model() -> TempDir {
    let hf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/hf/llama_reward");
    let dir = llama();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(hf.join(name), dir.path().join(name)).unwrap();
    }
    edit_json(&dir.path().join("config.json"), |config| {
        config["max_position_embeddings"] = 512.into();
    });
    dir
}

/// A tokenizer.json of `size` ids: three special tokens, then one token a character.
pub fn characters(size: u32) -> Value {
    let characters = ('a'..='z').chain('A'..='Z').chain('0'..='9').chain(" \n.,!?':;-()".chars());
    let tokens = ["<pad>", "<s>", "</s>"].map(str::to_owned);
    let tokens = tokens.into_iter().chain(characters.map(String::from));
    let unused = (0..).map(|i| format!("<unused {i}>"));
    let vocab: serde_json::Map<String, Value> =
        tokens.chain(unused).zip(0..size).map(|(token, id)| (token, id.into())).collect();
    let special = |id: u32, content: &str| {
        json!({
            "id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false,
        })
    };
    json!({
        "version": "1.0",
        "added_tokens": [special(0, "<pad>"), special(1, "<s>"), special(2, "</s>")],
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
        "decoder": {"type": "Fuse"},
    })
}

/// Ten preference pairs of English sentences, in both layouts.
pub const SENTENCES: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/pairs/sentences.jsonl");
