//! What the log of a stage holds, finished or not: losses or iterations, and the alarms that they raise.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::online::keep::History;
use super::supervised::Loss;
use super::{dpo, reward};
use crate::run::alarms::{Raised, of_accuracy, of_losses};
use crate::run::folder::read_json_lines;
use crate::run::{Context, Error, FolderError, Stage};

/// The log of a stage that trains.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StageLog {
    /// The loss of each optimizer step, of a stage that learns from data.
    pub losses: Vec<f64>,
    /// The iterations of a stage that learns from rollouts.
    pub history: History,
}

impl StageLog {
    /// The log of `stage`; an empty one if it has none.
    ///
    /// # Errors
    ///
    /// [`Error::Folder`] when a line cannot be read.
    pub fn read(context: &Context, stage: Stage) -> Result<Self, Error> {
        let dir = context.dir(stage);
        let path = dir.join("metrics.jsonl");
        match stage {
            _ if !path.exists() => Ok(Self::default()),
            Stage::Ppo => Ok(Self { history: History::read(&dir)?, ..Self::default() }),
            Stage::Sft | Stage::TrainReward | Stage::Dpo => {
                let lines: Vec<Loss> = read_json_lines(&path)?;
                let losses = lines.into_iter().map(|line| line.loss).collect();
                Ok(Self { losses, ..Self::default() })
            }
            _ => Ok(Self::default()),
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.losses.is_empty() && self.history.metrics.is_empty()
    }
}

/// The alarms of a stage that is finished or under way.
///
/// # Errors
///
/// [`Error::Folder`] when its log or its result cannot be read.
pub fn alarms(context: &Context, stage: Stage) -> Result<Vec<Raised>, Error> {
    let log = StageLog::read(context, stage)?;
    let mut raised = log.history.alarms(&context.settings);
    raised.extend(of_losses(&log.losses, &context.settings.alarms));
    let judged = match stage {
        Stage::TrainReward => {
            summary::<reward::Summary>(context, stage)?.map(|of| (of.accuracy, of.pairs))
        }
        Stage::Dpo => summary::<dpo::Summary>(context, stage)?.map(|of| (of.accuracy, of.pairs)),
        _ => None,
    };
    let step = log.losses.len().saturating_sub(1);
    raised.extend(judged.and_then(|(accuracy, pairs)| of_accuracy(accuracy, pairs, step)));
    Ok(raised)
}

/// The result of a stage, if it is finished.
fn summary<T: DeserializeOwned>(context: &Context, stage: Stage) -> Result<Option<T>, FolderError> {
    let path = context.dir(stage).join("summary.json");
    path.exists().then(|| crate::run::folder::read_json(&path, stage.command())).transpose()
}
