//! The models under training, and what they learn with.

use burn::tensor::Device;

use crate::data::store::Items;
use crate::model::optim::Trainer;
use crate::model::{CausalLm, ModelConfig, ScalarModel};
use crate::run::{Context, Error};
use crate::stage::score::Scorer;
use crate::stage::task::Task;
use crate::systems::{Pool, PpoSettings, Sample, System};

/// What the loop changes and what it reads.
pub(super) struct Learner<'a> {
    pub(super) context: &'a Context,
    pub(super) task: &'a Task,
    pub(super) scorer: &'a Scorer,
    pub(super) system: System<'a>,
    pub(super) prompts: &'a Items<Vec<u32>>,
    pub(super) config: ModelConfig,
    pub(super) device: Device,
    pub(super) policy: Trainer<CausalLm>,
    pub(super) critic: Option<Trainer<ScalarModel>>,
    pub(super) kl_coefficient: f64,
    /// Edges that wait for a later iteration, if the system has a replay.
    pub(super) waiting: Pool<Sample>,
    /// Iterations done.
    pub(super) iteration: usize,
}

impl<'a> Learner<'a> {
    pub(super) fn new(
        context: &'a Context,
        task: &'a Task,
        scorer: &'a Scorer,
        system: System<'a>,
        prompts: &'a Items<Vec<u32>>,
        config: ModelConfig,
    ) -> Result<Self, Error> {
        let (ppo, base) = (&context.settings.ppo, scorer.base());
        let policy = context.trained_policy(base.dir, Some(base.model))?;
        let steps = ppo.iterations * steps_an_iteration(ppo);
        let critic = match system.value_clip {
            Some(_) => {
                let critic = context.trained_scalar_model(base.dir, Some(base.model), "critic")?;
                Some(Trainer::new("critic", critic, &ppo.critic, steps))
            }
            None => None,
        };
        Ok(Self {
            context,
            task,
            scorer,
            kl_coefficient: system.kl_coefficient,
            system,
            prompts,
            config,
            device: context.device.clone().autodiff(),
            policy: Trainer::new("policy", policy, &ppo.actor, steps),
            critic,
            waiting: Pool::default(),
            iteration: 0,
        })
    }
}

/// Optimizer steps of one iteration.
pub(super) fn steps_an_iteration(ppo: &PpoSettings) -> usize {
    ppo.epochs * ppo.rollouts.div_ceil(ppo.minibatch)
}
