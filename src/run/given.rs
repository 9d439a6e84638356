//! What a stage's command was given, kept beside the stage: commands that read the run need no arguments of theirs.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::files::{FolderError, read_if_there, write_file};
use super::stage::Stage;
use crate::data::columns::Columns;
use crate::device::DeviceName;
use crate::systems::Method;

/// The file's name in a stage's folder.
pub(super) const GIVEN: &str = "run.toml";

/// The user's inputs, by absolute paths, and all settings that were in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Given {
    /// `--model`.
    pub model: Option<PathBuf>,
    /// `--reward-model`.
    pub reward_model: Option<PathBuf>,
    /// `--data`.
    pub data: Option<PathBuf>,
    /// `--prompts`.
    pub prompts: Option<PathBuf>,
    /// `--columns`.
    #[serde(default, skip_serializing_if = "Columns::is_empty")]
    pub columns: Columns,
    /// `--device`.
    pub device: DeviceName,
    /// The settings, as an overlay: those of a later version keep their defaults.
    pub settings: toml::Table,
}

impl Given {
    /// Writes it into the folder of a stage.
    pub(super) fn write(&self, dir: &Path) -> Result<(), FolderError> {
        let text = toml::to_string(self).expect("a plain struct serialises");
        write_file(&dir.join(GIVEN), text.as_bytes())
    }

    /// The settings as an overlay; `path`, the file, names them in errors.
    pub fn overlay(&self, path: &Path) -> (String, String) {
        let text = toml::to_string(&self.settings).expect("a table serialises");
        (path.display().to_string(), text)
    }

    /// What the last of a run's stages was given that serve `method`, with its file: of evaluation too if `evaluation`
    /// says so. `None` if none was begun, or if an earlier version began them.
    pub fn read(
        run: &Path,
        method: Method,
        evaluation: bool,
    ) -> Result<Option<(PathBuf, Self)>, FolderError> {
        let own = |stage: Stage| run.join(method.name()).join(stage.folder());
        let reward = run.join(method.reward_model().name()).join(Stage::TrainReward.folder());
        let sft = run.join(Stage::Sft.folder());
        let mut dirs =
            vec![own(Stage::Dpo), own(Stage::Ppo), own(Stage::FitNormalizer), reward, sft.clone()];
        if evaluation {
            dirs.insert(0, own(Stage::Evaluate));
        }
        for path in dirs.iter().map(|dir| dir.join(GIVEN)) {
            if let Some(bytes) = read_if_there(&path)? {
                let corrupt = |detail: String| FolderError::Corrupt { path: path.clone(), detail };
                let text = String::from_utf8(bytes).map_err(|error| corrupt(error.to_string()))?;
                let mut given: Self =
                    toml::from_str(&text).map_err(|error| corrupt(error.to_string()))?;
                if path.starts_with(&sft) {
                    given.model = None; // what `sft` started from; the run's model is what it made
                }
                return Ok(Some((path, given)));
            }
        }
        Ok(None)
    }
}

/// The methods that have a folder in `run`.
pub fn methods_in(run: &Path) -> Vec<Method> {
    Method::all().iter().copied().filter(|method| run.join(method.name()).is_dir()).collect()
}

/// The method whose models a command reads in `run` if the user names none: `segment`, or the only one there.
pub fn method_of(run: &Path) -> Option<Method> {
    let there = methods_in(run);
    match there[..] {
        _ if there.contains(&Method::SEGMENT) => Some(Method::SEGMENT),
        [only] => Some(only),
        _ => None,
    }
}
