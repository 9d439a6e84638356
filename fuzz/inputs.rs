//! What the fuzz targets do with their bytes, and what must hold whatever the bytes are. The tests of the
//! program run the same over `tests/data/regressions`.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use segment_rlhf::data::chat::{Message, Role};
use segment_rlhf::data::pairs::{Limits, read_conversations, read_pairs, read_prompts};
use segment_rlhf::data::rows::rows;
use segment_rlhf::data::template::ChatTemplate;
use segment_rlhf::data::tokenizer::Tokenizer;
use segment_rlhf::model::{CausalLm, FreshHead, ScalarModel};
use segment_rlhf::run::folder::StageFolder;
use segment_rlhf::run::lock::Locks;
use segment_rlhf::settings::Settings;
use segment_rlhf::stage::fit_normalizer::NormalizerFile;
use tempfile::TempDir;

/// The folder of a sound model, whose files are small enough to be mutated whole.
pub fn tiny() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().filter(|_| own.ends_with("fuzz")).unwrap_or(own).join("tests/data/tiny")
}

thread_local! {
    static FOLDER: TempDir = TempDir::new().unwrap();
}

/// An empty file or folder of this thread's own.
fn fresh(name: &str) -> PathBuf {
    let path = FOLDER.with(|folder| folder.path().join(name));
    let _ = fs::remove_dir_all(&path);
    path
}

/// Whether an error names the file that it is about.
fn names(path: &Path, error: impl std::fmt::Display) {
    let text = error.to_string();
    assert!(text.contains(&*path.to_string_lossy()), "{} is not named: {text}", path.display());
}

/// `bytes` as a file of preference pairs, of prompts, and of conversations.
pub fn pairs(bytes: &[u8]) {
    thread_local! {
        static TOKENIZER: Tokenizer = Tokenizer::from_dir(&tiny()).unwrap();
    }
    let path = fresh("data").with_extension("jsonl");
    fs::write(&path, bytes).unwrap();
    let limits = Limits { prompt_tokens: 5, response_tokens: 4, total_tokens: 9 };
    TOKENIZER.with(|tokenizer| {
        let prompt = |prompt: &[u32]| assert!((1..=5).contains(&prompt.len()));
        let response = |response: &[u32]| {
            assert!((2..=4).contains(&response.len()) && response.ends_with(&[tokenizer.eos()]));
        };
        let mut pairs = 0;
        let read = read_pairs(&path, tokenizer, limits, false, |pair, _| {
            prompt(&pair.prompt);
            response(&pair.chosen);
            response(&pair.rejected);
            assert_ne!(pair.chosen, pair.rejected);
            pairs += 1;
            Ok(())
        });
        match read {
            Err(error) => names(&path, error),
            Ok(_) => assert!(pairs > 0),
        }
        let read = read_prompts(&path, tokenizer, limits, |tokens, _| {
            prompt(&tokens);
            Ok(())
        });
        if let Err(error) = read {
            names(&path, error);
        }
        let read = read_conversations(&path, tokenizer, limits, |(tokens, answer), _| {
            prompt(&tokens);
            response(&answer);
            Ok(())
        });
        if let Err(error) = read {
            names(&path, error);
        }
    });
}

/// Up to the first NUL a settings file, then `--set` arguments, each up to a NUL.
pub fn settings(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let mut parts = text.split('\0').map(str::to_owned);
    let overlay = ("own.toml".to_owned(), parts.next().unwrap_or_default());
    let sets: Vec<String> = parts.collect();
    match Settings::resolve(&[overlay], &sets) {
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("own.toml") || text.contains("--set"), "{text}");
        }
        Ok(settings) => {
            let text = toml::to_string(&settings).unwrap();
            let again = Settings::resolve(&[("written".to_owned(), text)], &[]).unwrap();
            assert_eq!(again, settings);
        }
    }
}

thread_local! {
    static FILES: [(&'static str, Vec<u8>); 3] =
        ["config.json", "model.safetensors", "tokenizer.json"]
            .map(|name| (name, fs::read(tiny().join(name)).unwrap()));
}

/// A model's folder in which the file named by the first byte holds the others.
pub fn model(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    let replaced = match which {
        b'c' => "config.json",
        b'g' => "generation_config.json",
        b's' => "model.safetensors",
        b't' => "tokenizer.json",
        b'k' => "tokenizer_config.json",
        _ => return,
    };
    let dir = fresh("model");
    fs::create_dir(&dir).unwrap();
    FILES.with(|files| {
        for (name, content) in files {
            fs::write(dir.join(name), content).unwrap();
        }
    });
    fs::write(dir.join(replaced), bytes).unwrap();
    if b"cs".contains(which) {
        let device = Device::flex();
        if let Err(error) = CausalLm::load(&dir, &device) {
            self::names(&dir, error);
        }
        let head = FreshHead::official("critic", 0);
        if let Err(error) = ScalarModel::from_language_model(&dir, head, &device) {
            self::names(&dir, error);
        }
    }
    if b"ctkg".contains(which) {
        match Tokenizer::from_dir(&dir) {
            Err(error) => self::names(&dir, error),
            Ok(tokenizer) => {
                if let Ok(ids) = tokenizer.encode("User: ab c.\nnaïve <eos>") {
                    assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
                    assert_eq!(tokenizer.pieces(&ids).len(), ids.len());
                }
                let saved = fresh("saved");
                tokenizer.save(&saved).unwrap();
                let again = Tokenizer::from_dir(&saved).unwrap();
                assert_eq!((again.eos(), again.pad()), (tokenizer.eos(), tokenizer.pad()));
            }
        }
    }
}

/// A stage's folder in which the file named by the first byte holds the others.
pub fn run_folder(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    let dir = fresh("stage");
    match which {
        b'n' => normalizer(bytes),
        b'm' => {
            let checkpoint = dir.join("checkpoints/step-00000001");
            fs::create_dir_all(&checkpoint).unwrap();
            fs::write(checkpoint.join("policy.safetensors"), "weights").unwrap();
            fs::write(checkpoint.join("manifest.json"), bytes).unwrap();
            let mut folder =
                StageFolder::open(dir, &toml::Table::new(), &Locks::default(), None).unwrap();
            if let Err(error) = folder.latest() {
                names(folder.dir(), error);
            }
        }
        b's' => {
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("settings.toml"), bytes).unwrap();
            fs::write(dir.join("metrics.jsonl"), "").unwrap();
            let record = toml::toml! { stage = "sft" };
            if let Err(error) = StageFolder::open(dir.clone(), &record, &Locks::default(), None) {
                names(&dir, error);
            }
        }
        _ => {}
    }
}

/// A normalizer that passes its check gives finite rewards for finite rewards.
fn normalizer(bytes: &[u8]) {
    let Ok(file) = serde_json::from_slice::<NormalizerFile>(bytes) else { return };
    if file.normalizer.check(1.0 / 8.0).is_ok() {
        for segments in 1..=8 {
            let rewards: Vec<f64> = (0..segments).map(|t| 1.5 - t as f64).collect();
            let normalized = file.normalizer.normalize_all(&rewards);
            assert!(normalized.iter().all(|r| r.is_finite()), "{:?}", file.normalizer);
        }
    }
}

/// A chat template, which writes two conversations.
pub fn template(bytes: &[u8]) {
    let Ok(source) = str::from_utf8(bytes) else { return };
    let path = Path::new("models/chat_template.jinja");
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let tokens = tokens.map(|(name, token)| (name.to_owned(), token.to_owned())).into();
    let message = |role, content: &str| Message { role, content: content.into() };
    let conversation = [
        message(Role::System, "Be brief."),
        message(Role::User, " Was it clean?\n"),
        message(Role::Assistant, "Spotless."),
    ];
    match ChatTemplate::new(source, path, &tokens) {
        Err(error) => names(path, error),
        Ok(template) => {
            for messages in [&conversation[..2], &conversation] {
                match template.render(messages, messages.len() == 2) {
                    Err(error) => names(path, error),
                    Ok(text) => assert!(text.len() <= 1 << 25),
                }
            }
        }
    }
}

/// A Parquet file.
pub fn parquet(bytes: &[u8]) {
    let path = fresh("data").with_extension("parquet");
    fs::write(&path, bytes).unwrap();
    match rows(&path) {
        Err(error) => names(&path, error),
        Ok(rows) => rows.filter_map(Result::err).for_each(|error| names(&path, error)),
    }
}

/// Leaves panics to what catches them: the Parquet library and the template engine have some, which the program
/// makes errors of. A panic that nothing catches still ends the fuzzer.
pub fn panics_may_be_caught() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(|_| {})));
}
