//! The models of a run: their types, which parts are trained, and what they share.
//!
//! ```text
//! lora.rank = 0   policy, critic and reward model: all weights trained, in f32
//! lora.rank > 0   one frozen base for all, in the compute type; each trains its own adapters, in f32
//! ```
//!
//! Frozen models, such as the reference model, are kept in the compute type.

use std::path::Path;

use super::sft::write_model;
use super::task::Task;
use crate::model::lora::Adapter;
use crate::model::recompute::is_adapted;
use crate::model::{CausalLm, CheckpointError, FreshHead, ModelConfig, Placement, ScalarModel};
use crate::run::{Context, Error};

/// A loaded model, whose tensors can be shared by models trained over it.
pub struct Base<'a> {
    pub dir: &'a Path,
    pub model: &'a CausalLm,
}

impl Base<'_> {
    /// The language model in `dir`: over this one if it is adapters of it.
    pub fn language_model(
        &self,
        dir: &Path,
        placement: Placement,
    ) -> Result<CausalLm, CheckpointError> {
        match self.adapter(dir)? {
            Some(adapter) => self.model.adapted(&adapter),
            None => Ok(CausalLm::load(dir, placement)?.0),
        }
    }

    /// The scalar model in `dir`: over this one if it is adapters of it.
    pub fn scalar_model(
        &self,
        dir: &Path,
        placement: Placement,
    ) -> Result<ScalarModel, CheckpointError> {
        match self.adapter(dir)? {
            Some(adapter) => ScalarModel::adapted(self.model, &adapter),
            None => Ok(ScalarModel::load(dir, placement)?.0),
        }
    }

    fn adapter(&self, dir: &Path) -> Result<Option<Adapter>, CheckpointError> {
        Ok(Adapter::open(dir)?.filter(|adapter| adapter.stands_on(self.dir)))
    }
}

impl Context {
    /// The device and type of frozen models.
    pub fn frozen(&self) -> Placement {
        let dtype = self.settings.precision.compute.dtype();
        Placement { device: self.device.clone(), dtype }
    }

    /// The model in the folder `dir` as a policy at the start of its training. With adapters it shares the
    /// tensors of `base`, the same model frozen, if that is loaded already.
    pub fn trained_policy(
        &self,
        dir: &Path,
        base: Option<&CausalLm>,
    ) -> Result<CausalLm, CheckpointError> {
        let (precision, lora, seed) =
            (&self.settings.precision, &self.settings.lora, self.settings.seed);
        let device = precision.checkpointing.autodiff(&self.device);
        let model = match lora.rank {
            0 => CausalLm::load(dir, &device)?.0,
            _ => lora.attach(self.base(dir, base)?, &device, "policy", seed),
        };
        Ok(model.computing(precision.compute, precision.checkpointing))
    }

    /// The model in `dir` as a critic or a reward model at the start, with a fresh scalar head drawn for `purpose`.
    pub fn trained_scalar_model(
        &self,
        dir: &Path,
        base: Option<&CausalLm>,
        purpose: &str,
    ) -> Result<ScalarModel, CheckpointError> {
        let (precision, lora, seed) =
            (&self.settings.precision, &self.settings.lora, self.settings.seed);
        let device = precision.checkpointing.autodiff(&self.device);
        let head = FreshHead { purpose, seed, std: self.settings.heads.init_std };
        let model = match lora.rank {
            0 => ScalarModel::from_language_model(dir, head, &device)?.0,
            _ => {
                let scalar = ScalarModel::over(&self.base(dir, base)?, head);
                lora.attach(scalar, &device, purpose, seed)
            }
        };
        Ok(model.computing(precision.compute, precision.checkpointing))
    }

    fn base(&self, dir: &Path, loaded: Option<&CausalLm>) -> Result<CausalLm, CheckpointError> {
        loaded.map_or_else(|| Ok(CausalLm::load(dir, self.frozen())?.0), |base| Ok(base.clone()))
    }

    /// Writes a trained policy and its tokenizer to `dir/model`: its adapters if it has any, which stand
    /// on the model in the folder `base`, else the whole.
    pub fn write_policy(
        &self,
        dir: &Path,
        task: &Task,
        model: &CausalLm,
        config: &ModelConfig,
        base: Option<&Path>,
    ) -> Result<(), Error> {
        write_model(dir, task, |dir| match base.filter(|_| is_adapted(model)) {
            Some(base) => model.save_adapter(config, &self.settings.lora, base, dir),
            None => model.save(config, dir),
        })
    }

    /// Writes a trained scalar model in the same way.
    pub fn write_scalar_model(
        &self,
        dir: &Path,
        task: &Task,
        model: &ScalarModel,
        config: &ModelConfig,
        base: &Path,
    ) -> Result<(), Error> {
        write_model(dir, task, |dir| match is_adapted(model) {
            true => model.save_adapter(config, &self.settings.lora, base, dir),
            false => model.save(config, dir),
        })
    }
}
