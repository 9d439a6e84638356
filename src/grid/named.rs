//! The single stages of a run as a grid of one cell a method, for the report.

use std::path::{Path, PathBuf};

use super::error::GridError;
use super::file::{Planned, PlannedArm};
use super::plan::{Grid, Plan, PlannedCell};
use super::results::FORMAT;
use super::schedule::Tasks;
use crate::run::Context;
use crate::run::given::{Given, methods_in};
use crate::settings::Settings;
use crate::systems::Method;

impl Plan {
    /// The stages in the folder `run`, by the names of their methods, with the settings that they were given; `None` where
    /// none was begun.
    ///
    /// # Errors
    ///
    /// [`GridError::Settings`] and [`GridError::Stage`] when what they were given cannot be read.
    pub fn of_stages(run: &Path) -> Result<Option<Self>, GridError> {
        let mut methods = methods_in(run);
        if methods.is_empty() {
            methods.push(Method::SEGMENT); // for the log of sft, if that is all there is
        }
        let mut contexts = Vec::new();
        for method in methods {
            if let Some((path, given)) = Given::read(run, method, true)? {
                contexts.push(context(run, method, &path, given)?);
            }
        }
        let Some(first) = contexts.first() else { return Ok(None) };
        let arm = |context: &Context| PlannedArm {
            name: context.settings.method.name().replace('_', " "),
            ours: false,
            changes: toml::Table::new(),
            settings: context.settings.clone(),
        };
        let name = run.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let experiment = Planned {
            title: format!("The stages of {name}"),
            name,
            note: None,
            paper_table: None,
            arms: contexts.iter().map(arm).collect(),
        };
        let grid = Grid {
            format: FORMAT,
            device: first.device_id(),
            seeds: vec![first.settings.seed],
            model: first.model.clone(),
            reward_model: first.reward_model.clone(),
            data: first.data.clone(),
            prompts: first.prompts.clone(),
            columns: first.columns.clone(),
            experiments: vec![experiment],
        };
        let mut tasks = Tasks::default();
        let cell = |(a, context): (usize, Context)| PlannedCell {
            arm: [0, a],
            seed: context.settings.seed,
            id: context.settings.method.name().to_owned(),
            last: tasks.add(&context),
            context,
        };
        let cells: Vec<PlannedCell> = contexts.into_iter().enumerate().map(cell).collect();
        let numbers = vec![(0..cells.len()).map(|cell| vec![cell]).collect()];
        Ok(Some(Self { grid, numbers, cells, tasks }))
    }
}

fn context(run: &Path, method: Method, path: &Path, given: Given) -> Result<Context, GridError> {
    let sets = [format!("method={:?}", method.name())];
    let settings = Settings::resolve(&[given.overlay(path)], &sets)?;
    let mut context = Context::new(settings, given.device, PathBuf::from(run))?;
    context.model = given.model;
    context.reward_model = given.reward_model;
    context.data = given.data;
    context.prompts = given.prompts;
    context.columns = given.columns;
    Ok(context)
}
