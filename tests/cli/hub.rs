//! Models and data sets by their names in the Hugging Face Hub: in its cache, and, with the feature `hub`, from a server.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;

use crate::support::{
    Output, PROGRAM, SENTENCES, command_line, copy, edit_json, files, llama, output, program,
    program_with_env,
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A cache below `home` with the files of `from` as a snapshot at [`COMMIT`], which is the branch `main` and the tag `v1`.
fn put(home: &Path, folder: &str, from: &Path) -> PathBuf {
    let dir = home.join("hub").join(folder);
    let (blobs, snapshot) = (dir.join("blobs"), dir.join("snapshots").join(COMMIT));
    fs::create_dir_all(&blobs).unwrap();
    for (i, file) in files(from).into_iter().enumerate() {
        let (blob, link) = (blobs.join(i.to_string()), snapshot.join(&file));
        fs::copy(from.join(&file), &blob).unwrap();
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        let up = "../".repeat(1 + file.components().count());
        symlink(format!("{up}blobs/{i}"), link).unwrap();
    }
    fs::create_dir_all(dir.join("refs")).unwrap();
    for name in ["main", "v1"] {
        fs::write(dir.join("refs").join(name), COMMIT).unwrap();
    }
    snapshot
}

/// A cache that holds the tiny checkpoint as `org/tiny`.
fn cache() -> TempDir {
    let home = TempDir::new().unwrap();
    put(home.path(), "models--org--tiny", llama().path());
    home
}

/// The segments of a short text, cut by `model` where the cache is in `home`.
fn segment(home: &Path, model: &str) -> Output {
    let run = TempDir::new().unwrap();
    let text = ["segment", "--model", model, "--prompt", "a b", "--response", "what is it"];
    program_with_env(run.path(), &text, &[("HF_HOME", home.to_str().unwrap())])
}

#[test]
fn a_name_is_found_where_huggingface_hub_has_its_cache() {
    let (home, model) = (cache(), llama());
    let of_folder = segment(home.path(), model.path().to_str().unwrap()).ended_with(0).stdout;
    for name in ["org/tiny", "org/tiny@v1", &format!("org/tiny@{COMMIT}")] {
        assert_eq!(segment(home.path(), name).ended_with(0).stdout, of_folder, "{name}");
    }
    segment(home.path(), "org/tiny@v2")
        .ended_with(2)
        .says(&["org/tiny@v2: not here, and no model"]);
    let moved = TempDir::new().unwrap();
    fs::rename(home.path().join("hub"), moved.path().join("huggingface")).unwrap();
    let hub = moved.path().join("huggingface");
    fs::create_dir(moved.path().join("x")).unwrap();
    let text = ["segment", "--model", "org/tiny", "--prompt", "a b", "--response", "what is it"];
    let with = |env: &[(&str, &str)]| {
        let run = TempDir::new().unwrap();
        let line = command_line(run.path(), &text, "1");
        let mut command = Command::new(PROGRAM);
        // Set to nothing, a variable counts as not set.
        output(command.args(line).env("HF_HOME", "").envs(env.iter().copied()))
    };
    let [hub, base] = [&hub, moved.path()].map(|path| path.to_str().unwrap());
    for env in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"] {
        assert_eq!(with(&[(env, hub)]).ended_with(0).stdout, of_folder, "{env}");
    }
    with(&[("HF_HUB_CACHE", base), ("HUGGINGFACE_HUB_CACHE", hub)]).ended_with(2);
    fs::create_dir(moved.path().join("huggingface/hub")).unwrap();
    fs::rename(
        moved.path().join("huggingface/models--org--tiny"),
        moved.path().join("huggingface/hub/models--org--tiny"),
    )
    .unwrap();
    assert_eq!(with(&[("XDG_CACHE_HOME", base)]).ended_with(0).stdout, of_folder);
}

#[test]
fn a_folder_of_that_name_is_taken_first() {
    let (home, here) = (cache(), TempDir::new().unwrap());
    let own = here.path().join("org/tiny");
    fs::create_dir_all(&own).unwrap();
    let text = ["segment", "--model", "org/tiny", "--prompt", "a", "--response", "b"];
    let mut command = Command::new(PROGRAM);
    command.args(command_line(here.path(), &text, "1")).current_dir(here.path());
    let said = output(command.env("HF_HOME", home.path())).ended_with(2);
    said.says(&["error: org/tiny/"]);
}

#[test]
fn a_name_and_its_commit_are_on_record_and_a_copy_is_the_same_input() {
    let (home, run, data) = (cache(), TempDir::new().unwrap(), TempDir::new().unwrap());
    fs::create_dir(data.path().join("data")).unwrap();
    for split in ["train", "test"] {
        let part = data.path().join(format!("data/{split}-00000-of-00001.jsonl"));
        fs::copy(SENTENCES, part).unwrap();
    }
    put(home.path(), "datasets--org--pairs", data.path());
    let env = [("HF_HOME", home.path().to_str().unwrap())];
    let train = |model: &str, data: &str| {
        program_with_env(run.path(), &["train-reward", "--model", model, "--data", data], &env)
    };
    train("org/tiny", "org/pairs")
        .ended_with(0)
        .says(&["org/pairs is ", ": the split train, 1 of 2 files; "]);
    let settings = fs::read_to_string(run.path().join("segment/reward/settings.toml")).unwrap();
    let record =
        format!("[sources]\nmodel = \"org/tiny@{COMMIT}\"\ndata = \"org/pairs@{COMMIT}\"\n");
    assert!(settings.contains(&record), "{settings}");
    // Both splits are the same file here.
    let model = llama();
    for data in [
        "org/pairs:train",
        "org/pairs@v1:test",
        "org/pairs:data/test-00000-of-00001.jsonl",
        SENTENCES,
    ] {
        train(model.path().to_str().unwrap(), data).ended_with(0);
    }
    train("org/tiny", "org/pairs:dev")
        .ended_with(2)
        .says(&["org/pairs: its snapshot", "lacks `dev`; check the name"]);
}

#[test]
fn a_grid_keeps_the_commit() {
    let (home, run) = (cache(), TempDir::new().unwrap());
    let file = run.path().join("own.toml");
    fs::write(&file, "title = 't'\n[arms]\na = {}").unwrap();
    let env = [("HF_HOME", home.path().to_str().unwrap())];
    let grid = ["ablate", file.to_str().unwrap(), "--model", "org/tiny", "--data", SENTENCES];
    program_with_env(run.path(), &[&grid[..], &["--stop-after", "1"]].concat(), &env)
        .ended_with(130);
    let grid = fs::read_to_string(run.path().join("grid.json")).unwrap();
    assert!(grid.contains(&format!("models--org--tiny/snapshots/{COMMIT}\"")), "{grid}");
    program(run.path(), &["status"]).ended_with(0);
}

#[test]
fn what_a_snapshot_lacks_is_named() {
    for (file, kind) in [("config.json", "--model"), ("model.safetensors", "--reward-model")] {
        let home = cache();
        let dir = home.path().join("hub/models--org--tiny");
        fs::remove_file(dir.join("snapshots").join(COMMIT).join(file)).unwrap();
        fs::write(dir.join("blobs/0af.incomplete"), "").unwrap();
        let run = TempDir::new().unwrap();
        let text = ["score", "--prompt", "a", "--response", "b", kind, "org/tiny"];
        let env = [("HF_HOME", home.path().to_str().unwrap())];
        program_with_env(run.path(), &text, &env).ended_with(2).says(&[
            "error: org/tiny: its snapshot ",
            &format!(
                " lacks {file}, and its blobs hold an .incomplete file: a download was broken"
            ),
            "or run `hf download org/tiny`",
        ]);
    }
    let (home, data) = (cache(), TempDir::new().unwrap());
    fs::copy(SENTENCES, data.path().join("train-00000-of-00002.jsonl")).unwrap();
    put(home.path(), "datasets--org--pairs", data.path());
    let run = TempDir::new().unwrap();
    let train = ["train-reward", "--model", "org/tiny", "--data", "org/pairs"];
    let env = [("HF_HOME", home.path().to_str().unwrap())];
    program_with_env(run.path(), &train, &env)
        .ended_with(2)
        .says(&["lacks train-00001-of-00002.jsonl; "]);
}

#[test]
fn the_base_of_adapters_may_be_a_name_or_a_path_from_their_folder() {
    let (home, run) = (cache(), TempDir::new().unwrap());
    let (base, adapters) = (home.path().join("base"), home.path().join("adapters"));
    fs::rename(llama().keep(), &base).unwrap();
    let train = ["sft", "--model", base.to_str().unwrap(), "--data", SENTENCES];
    program(run.path(), &[&train[..], &["--set", "lora.rank=2"]].concat()).ended_with(0);
    fs::rename(copy(&run.path().join("sft/model")).keep(), &adapters).unwrap();
    let trained = segment(home.path(), adapters.to_str().unwrap()).ended_with(0).stdout;
    assert_ne!(trained, segment(home.path(), "org/tiny").stdout);
    // As they are published: their base has the rest.
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::remove_file(adapters.join(file)).unwrap();
    }
    put(home.path(), "models--org--adapters", &adapters);
    for base in ["org/tiny", "../base"] {
        edit_json(&adapters.join("adapter_config.json"), |config| {
            config["base_model_name_or_path"] = json!(base);
        });
        let said = segment(home.path(), adapters.to_str().unwrap()).ended_with(0);
        assert_eq!(said.stdout, trained, "{base}");
    }
    edit_json(&adapters.join("adapter_config.json"), |config| {
        config["base_model_name_or_path"] = json!("org/other");
    });
    segment(home.path(), adapters.to_str().unwrap())
        .ended_with(2)
        .says(&["org/other: not here, and no model of that name is in the Hub's cache"]);
    assert_eq!(segment(home.path(), "org/adapters").ended_with(0).stdout, trained);
}

/// Downloads from a server on this machine.
#[cfg(feature = "hub")]
mod server {
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};

    use sha2::{Digest, Sha256};

    use super::*;

    /// What the server does instead of serving a file well.
    #[derive(Clone, Copy, PartialEq)]
    enum Fault {
        /// It ends the connection after half of the weights.
        BreaksOff,
        /// It ignores where a request asks to go on, and ends there.
        StartsAgain,
        /// It sends other weights.
        Corrupt,
        /// It answers with this status and this `X-Error-Code`.
        Status(u16, &'static str),
    }

    struct State {
        files: Vec<(String, Vec<u8>)>,
        fault: Option<Fault>,
        /// The requests of files, with where they begin.
        requests: Vec<String>,
        token: Option<String>,
    }

    /// A server of one repository.
    struct Server {
        address: String,
        state: Arc<Mutex<State>>,
        home: TempDir,
    }

    impl Server {
        fn of(dir: &Path) -> Self {
            let read = |file: PathBuf| {
                (file.to_str().unwrap().to_owned(), fs::read(dir.join(&file)).unwrap())
            };
            let files = files(dir).into_iter().map(read).collect();
            let state = State { files, fault: None, requests: Vec::new(), token: None };
            let state = Arc::new(Mutex::new(state));
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = format!("http://{}", listener.local_addr().unwrap());
            let shared = state.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let _ = answer(stream.unwrap(), &shared);
                }
            });
            Self { address, state, home: TempDir::new().unwrap() }
        }

        fn set(&self, fault: Option<Fault>) {
            self.state.lock().unwrap().fault = fault;
        }

        fn requests(&self) -> Vec<String> {
            std::mem::take(&mut self.state.lock().unwrap().requests)
        }

        fn command(&self, arguments: &[&str], run: &Path) -> Command {
            let mut command = Command::new(PROGRAM);
            command.args(command_line(run, arguments, "1"));
            command.env("HF_ENDPOINT", &self.address).env("HF_HOME", self.home.path());
            command.env("HF_HUB_OFFLINE", "0").env("NO_PROXY", "127.0.0.1");
            command.env_remove("HF_TOKEN");
            command
        }

        fn segment(&self, model: &str) -> Output {
            let run = TempDir::new().unwrap();
            let text = ["segment", "--model", model, "--prompt", "a b", "--response", "what is it"];
            output(&mut self.command(&text, run.path()))
        }

        /// The files below the repository's folder, without snapshots.
        fn blobs(&self) -> Vec<PathBuf> {
            let dir = self.home.path().join("hub");
            let mut all = if dir.exists() { files(&dir) } else { Vec::new() };
            all.retain(|path| path.components().any(|part| part.as_os_str() == "blobs"));
            all
        }
    }

    fn sha256(bytes: &[u8]) -> String {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn is_large(name: &str) -> bool {
        name.ends_with(".safetensors") || name.ends_with(".parquet")
    }

    /// Answers one request, as the Hub does.
    fn answer(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
        let (mut path, mut start, mut token) = (String::new(), 0, None);
        for line in BufReader::new(stream.try_clone()?).lines() {
            let line = line?;
            if let Some(rest) = line.strip_prefix("GET ") {
                path = rest.split(' ').next().unwrap().to_owned();
            }
            let (key, value) = line.split_once(": ").unwrap_or(("", ""));
            match key.to_lowercase().as_str() {
                "range" => {
                    start =
                        value.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
                }
                "authorization" => token = Some(value.to_owned()),
                _ => {}
            }
            if line.is_empty() {
                break;
            }
        }
        let mut state = state.lock().unwrap();
        state.token = token;
        let mut head = |status: u16, headers: &str, length: usize| {
            write!(
                stream,
                "HTTP/1.1 {status} -\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
            )
        };
        if let Some(Fault::Status(status, code)) = state.fault {
            return head(status, &format!("X-Error-Code: {code}\r\n"), 0);
        }
        if path.starts_with("/api/") {
            let [name, revision] = ["/tiny/", "/revision/"].map(|part| path.contains(part));
            assert!((name || path.contains("/pairs/")) && revision, "{path}");
            if !path.contains("/revision/main?") && !path.contains("/revision/pr%2F1?") {
                return head(404, "X-Error-Code: RevisionNotFound\r\n", 0);
            }
            let entry = |(name, bytes): &(String, Vec<u8>)| {
                let mut entry = json!({
                    "rfilename": name, "size": bytes.len(), "blobId": &sha256(name.as_bytes())[..40],
                });
                if is_large(name) {
                    entry["lfs"] = json!({"sha256": sha256(bytes), "size": bytes.len()});
                }
                entry
            };
            let siblings: Vec<_> = state.files.iter().map(entry).collect();
            let text = json!({"sha": COMMIT, "siblings": siblings}).to_string();
            head(200, "", text.len())?;
            return stream.write_all(text.as_bytes());
        }
        let (_, name) = path.split_once(&format!("/resolve/{COMMIT}/")).unwrap();
        state.requests.push(format!("{name} {start}"));
        let (_, bytes) = state.files.iter().find(|(file, _)| file == name).unwrap();
        let mut bytes = bytes.clone();
        let fault = state.fault.filter(|_| is_large(name));
        if fault == Some(Fault::Corrupt) {
            bytes.iter_mut().for_each(|byte| *byte ^= 1);
        }
        if fault == Some(Fault::StartsAgain) {
            start = 0;
        }
        let rest = &bytes[start..];
        let range = format!("Content-Range: bytes {start}-{}/{}\r\n", bytes.len() - 1, bytes.len());
        match start {
            0 => head(200, "", rest.len())?,
            _ => head(206, &range, rest.len())?,
        }
        let sent = if fault == Some(Fault::BreaksOff) { rest.len() / 2 } else { rest.len() };
        stream.write_all(&rest[..sent])
    }

    #[test]
    fn what_the_cache_lacks_is_downloaded_once() {
        let model = llama();
        for unread in ["README.md", "pytorch_model.bin", "original/model.safetensors"] {
            fs::create_dir_all(model.path().join(unread).parent().unwrap()).unwrap();
            fs::write(model.path().join(unread), "x").unwrap();
        }
        let server = Server::of(model.path());
        let of_folder = segment(server.home.path(), model.path().to_str().unwrap()).stdout;
        let said = server.segment("org/tiny").ended_with(0);
        assert_eq!(said.stdout, of_folder);
        said.says(&["downloading org/tiny model.safetensors (0."]);
        let mut asked = server.requests();
        asked.sort();
        let read = [
            "config.json 0",
            "generation_config.json 0",
            "model.safetensors 0",
            "tokenizer.json 0",
        ];
        assert_eq!(asked, read);
        for name in ["org/tiny", "org/tiny@main", &format!("org/tiny@{COMMIT}")] {
            server.segment(name).ended_with(0);
        }
        assert_eq!(server.requests(), [""; 0]);
        // Another revision of the same files has a ref of its own, and no new blobs.
        server.segment("org/tiny@pr/1").ended_with(0);
        assert_eq!(server.requests(), [""; 0]);
        let dir = server.home.path().join("hub/models--org--tiny");
        assert_eq!(fs::read_to_string(dir.join("refs/pr/1")).unwrap(), COMMIT);
        let link = fs::read_link(dir.join("snapshots").join(COMMIT).join("config.json")).unwrap();
        assert!(link.starts_with("../../blobs"), "{link:?}");
        // Without a network it is there.
        segment(server.home.path(), "org/tiny").ended_with(0);
    }

    #[test]
    fn of_a_data_set_the_split_is_downloaded() {
        let data = TempDir::new().unwrap();
        fs::create_dir(data.path().join("data")).unwrap();
        for split in ["train", "test"] {
            fs::copy(SENTENCES, data.path().join(format!("data/{split}.jsonl"))).unwrap();
        }
        let (server, model, run) = (Server::of(data.path()), llama(), TempDir::new().unwrap());
        let model = model.path().to_str().unwrap();
        let train = |data| {
            let line = ["train-reward", "--model", model, "--data", data];
            output(&mut server.command(&line, run.path()))
        };
        train("org/pairs").ended_with(0);
        assert_eq!(server.requests(), ["data/train.jsonl 0"]);
        train("org/pairs:test").ended_with(0);
        assert_eq!(server.requests(), ["data/test.jsonl 0"]);
        train("org/pairs:dev")
            .ended_with(2)
            .says(&["org/pairs: no split or file dev in it; its splits: test, train"]);
    }

    #[test]
    fn a_download_that_broke_off_goes_on() {
        let (model, home) = (llama(), TempDir::new().unwrap());
        let size = fs::metadata(model.path().join("model.safetensors")).unwrap().len();
        let server = Server::of(model.path());
        server.set(Some(Fault::BreaksOff));
        server.segment("org/tiny").ended_with(1).says(&[&format!(
            "error: org/tiny: model.safetensors broke off after {} of {size} bytes; run the same",
            size / 2
        )]);
        assert!(!server.home.path().join("hub/models--org--tiny/snapshots").exists());
        server.requests();
        server.set(None);
        let said = server.segment("org/tiny").ended_with(0);
        assert_eq!(said.stdout, segment(home.path(), model.path().to_str().unwrap()).stdout);
        let asked = server.requests();
        assert!(asked.contains(&format!("model.safetensors {}", size / 2)), "{asked:?}");
        assert!(
            server.blobs().iter().all(|blob| blob.extension().is_none()),
            "{:?}",
            server.blobs()
        );
        // A server that cannot go on starts again.
        let server = Server::of(model.path());
        server.set(Some(Fault::BreaksOff));
        server.segment("org/tiny").ended_with(1);
        server.set(Some(Fault::StartsAgain));
        server.segment("org/tiny").ended_with(0);
    }

    #[test]
    fn what_has_another_checksum_is_thrown_away() {
        let model = llama();
        let server = Server::of(model.path());
        server.set(Some(Fault::Corrupt));
        server.segment("org/tiny").ended_with(1).says(&[
            "org/tiny: model.safetensors arrived other than the Hub says that it is (size or SHA-256)",
        ]);
        let large = |blob: &PathBuf| blob.file_stem().unwrap().len() == 64;
        assert!(!server.blobs().iter().any(large), "{:?}", server.blobs());
        server.set(None);
        server.segment("org/tiny").ended_with(0);
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let server = Server::of(llama().path());
        let page = format!("{}/org/tiny", server.address);
        for (fault, code, text) in [
            (
                Fault::Status(403, "GatedRepo"),
                2,
                &*format!(
                    "org/tiny: gated: accept its terms at {page}, and put a token into HF_TOKEN"
                ),
            ),
            (Fault::Status(401, ""), 2, "org/tiny: neither here nor a model that http://127.0.0.1"),
            (
                Fault::Status(404, "RepoNotFound"),
                2,
                "(status 404): check the name; for a private or gated one, put",
            ),
            (
                Fault::Status(503, ""),
                1,
                "answers with status 503; run the same command again to go on",
            ),
        ] {
            server.set(Some(fault));
            server.segment("org/tiny").ended_with(code).says(&[text]);
        }
        server.set(None);
        server
            .segment("org/tiny@v7")
            .ended_with(2)
            .says(&["org/tiny@v7: org/tiny has no revision v7; name a branch, tag or commit"]);
        let nobody = Server { address: "http://127.0.0.1:9".into(), ..server };
        nobody
            .segment("org/tiny")
            .ended_with(1)
            .says(&["org/tiny: cannot reach http://127.0.0.1:9: "]);
        let other = TempDir::new().unwrap();
        fs::write(other.path().join("q4.gguf"), "").unwrap();
        let server = Server::of(other.path());
        server
            .segment("org/tiny")
            .ended_with(2)
            .says(&["org/tiny: no model.safetensors, but the GGUF file q4.gguf"]);
        assert!(server.blobs().is_empty());
    }

    #[test]
    fn the_token_is_that_of_huggingface_hub() {
        let server = Server::of(llama().path());
        fs::write(server.home.path().join("token"), "from file\n").unwrap();
        let (run, text) = (TempDir::new().unwrap(), ["segment", "--model", "org/tiny"]);
        let text = [&text[..], &["--prompt", "a", "--response", "b"]].concat();
        let token = || server.state.lock().unwrap().token.clone();
        server.set(Some(Fault::BreaksOff));
        output(&mut server.command(&text, run.path())).ended_with(1);
        assert_eq!(token().as_deref(), Some("Bearer from file"));
        output(server.command(&text, run.path()).env("HF_TOKEN", "own")).ended_with(1);
        assert_eq!(token().as_deref(), Some("Bearer own"));
    }

    #[test]
    fn a_full_disk_keeps_what_has_arrived() {
        let model = llama();
        let server = Server::of(model.path());
        let run = TempDir::new().unwrap();
        let text = ["segment", "--model", "org/tiny", "--prompt", "a", "--response", "b"];
        let script = "trap '' XFSZ; ulimit -f 16; exec \"$0\" \"$@\""; // 8 KiB
        let mut command = server.command(&text, run.path());
        let mut limited = Command::new("sh");
        limited.args(["-c", script, PROGRAM]).args(command_line(run.path(), &text, "1"));
        limited.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
        output(&mut limited).ended_with(1).says(&[
            ".incomplete: cannot write: File too large",
            "then run the same command again",
        ]);
        output(&mut command).ended_with(0);
        let asked = server.requests();
        assert!(asked.iter().any(|request| request.ends_with(" 8192")), "{asked:?}");
    }
}
