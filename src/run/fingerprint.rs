//! Fingerprints of what a stage reads: models, reward models and data files, of what they hold and not of where.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::error::Error;
use crate::data::files::files;
use crate::file_error::FileError;
use crate::model::{CheckpointError, lora};
use crate::rng::Fnv1a;

/// The files of a model's folder besides its parameters: architecture, tokenizer and stop tokens.
pub const MODEL_FILES: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];

/// Hashes `content` under `name`, or that there is none. The lengths come last, so that no two lists of names and
/// contents hash alike.
fn hash_content(hash: &mut Fnv1a, name: &str, content: Option<impl Read>) -> io::Result<()> {
    let length = content.map(|content| hash.read(content)).transpose()?;
    hash.write(name.as_bytes());
    let lengths = [length.map_or(0, |bytes| bytes + 1), name.len() as u64];
    lengths.iter().for_each(|length| hash.write(&length.to_le_bytes()));
    Ok(())
}

/// Hashes the file `name` of the folder `dir`, or that it is missing.
pub(crate) fn hash_file(hash: &mut Fnv1a, dir: &Path, name: &str) -> io::Result<()> {
    let content = match File::open(dir.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        other => Some(other?),
    };
    hash_content(hash, name, content)
}

/// A fingerprint of the content of the data file at `path`, or of the files in a folder.
pub fn file_fingerprint(path: &Path) -> Result<String, Error> {
    let mut hash = Fnv1a::default();
    for path in files(path)? {
        let hashed = File::open(&path).and_then(|file| hash_content(&mut hash, "", Some(file)));
        hashed.map_err(FileError::reading(&path))?;
    }
    Ok(format!("{:016x}", hash.finish()))
}

/// A fingerprint of the model in the folder `dir`: its parameters and its [`MODEL_FILES`], and for adapters also those
/// of their base, wherever that is.
pub fn model_fingerprint(dir: &Path) -> Result<String, Error> {
    let mut hash = Fnv1a::default();
    hash_model(&mut hash, dir)?;
    Ok(format!("{:016x}", hash.finish()))
}

/// Hashes what [`model_fingerprint`] depends on.
pub(crate) fn hash_model(hash: &mut Fnv1a, dir: &Path) -> Result<(), CheckpointError> {
    for lora::Part { dir, adapter_config, weights } in lora::parts(dir)? {
        for name in MODEL_FILES {
            hash_file(hash, &dir, name).map_err(FileError::reading(&dir.join(name)))?;
        }
        let config = adapter_config.as_ref().map(|text| text.as_bytes());
        hash_content(hash, lora::ADAPTER_CONFIG, config).map_err(FileError::reading(&dir))?;
        for path in weights {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let hashed = File::open(&path).and_then(|file| hash_content(hash, &name, Some(file)));
            hashed.map_err(FileError::reading(&path))?;
        }
    }
    Ok(())
}

/// The file beside a reward model that says how the model is read.
pub const REWARD_CARD: &str = "reward.json";

/// A fingerprint of the reward stage in the folder `dir`: of its model and its card.
pub fn reward_fingerprint(dir: &Path) -> Result<String, Error> {
    let mut hash = Fnv1a::default();
    hash_model(&mut hash, &dir.join("model"))?;
    let read = hash_file(&mut hash, dir, REWARD_CARD);
    let path = dir.join(REWARD_CARD);
    read.map_err(FileError::reading(&path)).map_err(CheckpointError::from)?;
    Ok(format!("{:016x}", hash.finish()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::*;
    use crate::device::DeviceName;
    use crate::run::{Context, Layout, Stage};
    use crate::settings::Settings;

    /// A folder of files that hold their names.
    fn folder(names: &[&str]) -> TempDir {
        let dir = TempDir::new().unwrap();
        names.iter().for_each(|name| fs::write(dir.path().join(name), name).unwrap());
        dir
    }

    fn model() -> TempDir {
        folder(&[&MODEL_FILES[..], &["model.safetensors"]].concat())
    }

    /// Adapters over the model in the folder `base`.
    fn adapters(base: &Path) -> TempDir {
        let dir = folder(&["config.json", "tokenizer.json", lora::ADAPTER_WEIGHTS]);
        stand_on(dir.path(), base, 16.0);
        dir
    }

    fn stand_on(dir: &Path, base: &Path, alpha: f64) {
        let config = serde_json::json!({
            "peft_type": "LORA", "base_model_name_or_path": base, "r": 2, "lora_alpha": alpha,
            "target_modules": ["q_proj"],
        });
        fs::write(dir.join(lora::ADAPTER_CONFIG), config.to_string()).unwrap();
    }

    /// Where the stages of a run on the model in `dir` live in the layout by hashes.
    fn stages(dir: &Path) -> Vec<PathBuf> {
        let settings = Settings::defaults();
        let mut context = Context::new(settings, DeviceName::Flex, "run".into()).unwrap();
        context.model = Some(dir.to_owned());
        context.layout = Layout::hashed(&context).unwrap();
        Stage::ALL.map(|stage| context.dir(stage)).into()
    }

    #[test]
    fn every_file_of_a_model_is_in_its_fingerprint_and_in_the_keys_of_stages() {
        let (base, other) = (model(), model());
        let adapters = adapters(base.path());
        let top = |dir: &Path| (model_fingerprint(dir).unwrap(), stages(dir));
        let own = [&MODEL_FILES[..], &["model.safetensors"]].concat();
        let adapter_files = [&MODEL_FILES[..], &[lora::ADAPTER_WEIGHTS]].concat();
        for (of, edited, names) in [
            (base.path(), base.path(), &own),
            (adapters.path(), adapters.path(), &adapter_files),
            (adapters.path(), base.path(), &own),
        ] {
            let (fingerprint, dirs) = top(of);
            assert_eq!(top(of), (fingerprint.clone(), dirs.clone()));
            for name in names {
                let path = edited.join(name);
                let whole = fs::read(&path).ok();
                let mut contents = vec![Some(b"other".to_vec()), Some(Vec::new())];
                contents.extend((MODEL_FILES.contains(name) && whole.is_some()).then_some(None));
                for content in contents {
                    let what = format!("{name}: {content:?}");
                    match content {
                        Some(bytes) => fs::write(&path, bytes).unwrap(),
                        None => fs::remove_file(&path).unwrap(),
                    }
                    // The base's config.json says that it is there.
                    if of == edited || path.exists() || *name != "config.json" {
                        let (now, moved) = top(of);
                        assert_ne!(now, fingerprint, "{what}");
                        assert!(dirs.iter().zip(&moved).all(|(a, b)| a != b), "{what}");
                    }
                }
                match whole {
                    Some(bytes) => fs::write(&path, bytes).unwrap(),
                    None => fs::remove_file(&path).unwrap(),
                }
            }
            assert_eq!(top(of), (fingerprint, dirs), "as it was");
        }
        // Where the base is changes nothing; what adapters say besides does.
        let fingerprint = model_fingerprint(adapters.path()).unwrap();
        stand_on(adapters.path(), other.path(), 16.0);
        assert_eq!(model_fingerprint(adapters.path()).unwrap(), fingerprint);
        stand_on(adapters.path(), base.path(), 8.0);
        assert_ne!(model_fingerprint(adapters.path()).unwrap(), fingerprint);
    }

    #[test]
    fn names_and_contents_do_not_run_together() {
        let model = model();
        let write = |texts: [&str; 2]| {
            for (name, text) in MODEL_FILES.iter().zip(texts) {
                fs::write(model.path().join(name), text).unwrap();
            }
            model_fingerprint(model.path()).unwrap()
        };
        let all = [["ab", "c"], ["a", "bc"], ["abc", ""], ["", "abc"]].map(write);
        let next = MODEL_FILES[1];
        let swallowed = write([&format!("ab{next}"), "c"]);
        let distinct: std::collections::BTreeSet<_> = all.iter().chain([&swallowed]).collect();
        assert_eq!(distinct.len(), 5);
        let data = TempDir::new().unwrap();
        let parts = |texts: [&str; 2]| {
            for (name, text) in ["1.jsonl", "2.jsonl"].iter().zip(texts) {
                fs::write(data.path().join(name), text).unwrap();
            }
            file_fingerprint(data.path()).unwrap()
        };
        assert_ne!(parts(["ab", "c"]), parts(["a", "bc"]));
    }

    #[test]
    fn the_card_of_a_reward_model_is_a_part_of_it() {
        let stage = folder(&["reward.json"]);
        fs::rename(model().keep(), stage.path().join("model")).unwrap();
        let before = reward_fingerprint(stage.path()).unwrap();
        assert_ne!(before, model_fingerprint(&stage.path().join("model")).unwrap());
        fs::write(stage.path().join("reward.json"), "other").unwrap();
        assert_ne!(reward_fingerprint(stage.path()).unwrap(), before);
    }
}
