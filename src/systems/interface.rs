//! The choices of a system, and its methods.

use std::fmt;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::error::SystemError;
use super::judge::Judge;
use super::loss::Loss;
use super::pairs::Weights;
use super::replay::Replay;
use super::sample::{Edge, Path, Rewarded, Sample};
use super::settings::PpoSettings;
use crate::data::letters::Gold;
use crate::data::store::Items;
use crate::data::tokenizer::Tokenizer;
use crate::equations::normalizer::Normalizer;
use crate::equations::segmentation::Rule;
use crate::model::generate::{Generation, Rows, TokenView, generate, generate_up_to};
use crate::model::{CausalLm, ModelConfig};
use crate::rng::{Stream, stream, streams};
use crate::stop::{Interrupted, Stop};

/// How the samples of a prompt hang together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rollouts {
    /// One response a prompt.
    Single,
    /// This many responses a prompt, side by side.
    Group(usize),
    /// A tree of continuations a prompt; its leaves are the responses.
    Tree {
        /// Children of a node, level by level.
        branches: Vec<usize>,
        /// The tokens of an edge, at most; on the last level a response is written to its end.
        level_tokens: usize,
    },
}

impl Rollouts {
    /// Responses to each prompt, at most.
    pub fn responses(&self) -> usize {
        match self {
            Self::Single => 1,
            Self::Group(size) => *size,
            Self::Tree { branches, .. } => branches.iter().product(),
        }
    }
}

/// Where rewards come from.
pub trait Rewards {
    /// Cuts and rewards responses; `reference` is the reference model's view of them.
    ///
    /// # Errors
    ///
    /// [`SystemError`].
    fn score(
        &self,
        responses: &Rows<'_>,
        reference: &[TokenView],
    ) -> Result<Vec<Rewarded>, SystemError>;
}

/// Whose credit the rewards are.
pub trait Credit {
    /// Sets token rewards, advantages and, with a critic, returns of an iteration's samples; those of one prompt stand
    /// side by side. More may be drawn from the policy. Gives the number of tokens that the iteration has drawn.
    ///
    /// # Errors
    ///
    /// [`SystemError`].
    fn assign(&self, samples: &mut [Sample], draw: &Draw<'_>) -> Result<usize, SystemError>;
}

/// The policy as it is in one iteration, to sample from.
pub struct Draw<'a> {
    /// The policy, without autodiff.
    pub policy: &'a CausalLm,
    /// Its shape.
    pub config: &'a ModelConfig,
    /// How tokens are drawn.
    pub generation: Generation<'a>,
    /// The run's seed.
    pub seed: u64,
    /// The iteration, from 0.
    pub iteration: usize,
    /// β in force.
    pub kl_coefficient: f64,
    /// Rows of a forward pass over whole responses.
    pub rows_at_once: usize,
    /// Asks for an end before the next forward pass.
    pub stop: &'a Stop,
}

impl Draw<'_> {
    /// A response to each prompt. The draws depend on the seed, the purpose, the iteration and a prompt's place alone.
    ///
    /// # Errors
    ///
    /// [`Interrupted`] when the run's stop is asked for.
    pub fn responses(
        &self,
        purpose: &str,
        prompts: &[&[u32]],
    ) -> Result<Vec<Vec<u32>>, Interrupted> {
        let start = self.iteration * prompts.len();
        let streams = streams(self.seed, purpose, start..start + prompts.len());
        generate(self.policy, self.config, prompts, self.generation, streams, self.stop)
    }

    /// A continuation of each prefix, of so many tokens at most. The draws depend on the seed, the purpose, the iteration
    /// and a prefix's place alone.
    ///
    /// # Errors
    ///
    /// [`Interrupted`] when the run's stop is asked for.
    pub fn continuations(
        &self,
        purpose: &str,
        prefixes: &[&[u32]],
        limits: &[usize],
    ) -> Result<Vec<Vec<u32>>, Interrupted> {
        let streams = (0..prefixes.len()).map(|place| self.stream(purpose, place)).collect();
        let Self { policy, config, generation, stop, .. } = *self;
        generate_up_to(policy, config, prefixes, limits, generation, streams, stop)
    }

    /// The random numbers of a place. They depend on the seed, the purpose, the iteration and the place alone.
    pub fn stream(&self, purpose: &str, place: usize) -> Stream {
        // How many places there are may differ from iteration to iteration.
        stream(self.seed, purpose, ((self.iteration << 32) + place) as u64)
    }

    /// A tree of continuations of each prompt, the leaves of one side by side.
    ///
    /// # Errors
    ///
    /// [`Interrupted`] when the run's stop is asked for.
    pub fn trees(
        &self,
        prompts: &[&[u32]],
        branches: &[usize],
        level_tokens: usize,
    ) -> Result<Vec<Leaf>, Interrupted> {
        let longest = self.generation.max_new_tokens;
        let root = |tree| Leaf { response: Vec::new(), path: Path { tree, edges: Vec::new() } };
        let mut open: Vec<Leaf> = (0..prompts.len()).map(root).collect();
        let (mut leaves, mut nodes) = (Vec::new(), vec![1; prompts.len()]);
        for (level, &children) in branches.iter().enumerate() {
            let parents: Vec<&Leaf> =
                open.iter().flat_map(|parent| std::iter::repeat_n(parent, children)).collect();
            let last = level + 1 == branches.len();
            let limit = |parent: &&Leaf| {
                let left = longest - parent.response.len();
                if last { left } else { left.min(level_tokens) }
            };
            let limits: Vec<usize> = parents.iter().map(limit).collect();
            let prefixes: Vec<Vec<u32>> = (parents.iter())
                .map(|parent| [prompts[parent.path.tree], &parent.response].concat())
                .collect();
            let prefixes: Vec<&[u32]> = prefixes.iter().map(Vec::as_slice).collect();
            let drawn = self.continuations(&format!("tree level {level}"), &prefixes, &limits)?;
            let mut next = Vec::new();
            for ((parent, drawn), limit) in parents.into_iter().zip(drawn).zip(limits) {
                let mut child = parent.clone();
                let ended = drawn.len() < limit
                    || drawn.last().is_some_and(|token| self.generation.stops.contains(token));
                child.response.extend(drawn);
                let node = &mut nodes[child.path.tree];
                child.path.edges.push(Edge { node: *node, end: child.response.len() });
                *node += 1;
                let is_leaf = last || ended || child.response.len() == longest;
                if is_leaf { &mut leaves } else { &mut next }.push(child);
            }
            open = next;
        }
        leaves.sort_by_key(|leaf| leaf.path.tree);
        Ok(leaves)
    }
}

/// A response that ends a path in a tree of continuations.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// The response's tokens.
    pub response: Vec<u32>,
    /// Its path from the root.
    pub path: Path,
}

/// The choices of a system.
pub struct System<'a> {
    /// Which continuations are sampled.
    pub rollouts: Rollouts,
    /// Where rewards come from.
    pub rewards: Box<dyn Rewards + 'a>,
    /// Whose credit they are.
    pub credit: Box<dyn Credit + 'a>,
    /// What the policy learns from.
    pub loss: Loss,
    /// How edges of trees wait for later iterations; if not, every iteration learns from its own samples.
    pub replay: Option<Replay>,
    /// The clip ε_v of the critic's loss (E10); none without a critic.
    pub value_clip: Option<f64>,
    /// β of the first iteration.
    pub kl_coefficient: f64,
    /// The files that it has read: inputs of the stage, each with its name.
    pub files: Vec<(&'static str, PathBuf)>,
}

/// What a system is built from.
pub struct Parts<'a> {
    /// The method.
    pub method: Method,
    /// The section `[ppo]`.
    pub ppo: &'a PpoSettings,
    /// The system's own section, if it has one.
    pub section: Option<toml::Value>,
    /// The longest response, in tokens.
    pub max_new_tokens: usize,
    /// What judges responses: the method's reward model, or a verdict.
    pub judge: &'a Judge,
    /// The normalizer of its rewards.
    pub normalizer: &'a Normalizer,
    /// What it may know of the run's task.
    pub task: TaskParts<'a>,
}

/// What a system may know of the run's task.
#[derive(Clone, Copy)]
pub struct TaskParts<'a> {
    /// The policy's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Lists of all prompts, those to train on and those held out.
    pub prompts: &'a [&'a Items<Vec<u32>>],
    /// The longest prompt, in tokens; longer ones lose tokens on the left.
    pub prompt_tokens: usize,
    /// The truth about responses, if it is known.
    pub truth: Option<Truth>,
}

impl<'a> TaskParts<'a> {
    /// A task of which the tokenizer alone is known.
    pub fn of(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, prompts: &[], prompt_tokens: usize::MAX, truth: None }
    }
}

/// The truth about a response to a prompt, both as token ids; none for what is no prompt of the task.
pub type Truth = fn(&[u32], &[u32]) -> Option<Gold>;

/// One row of a system's table.
pub struct Row {
    /// The name in settings, folders and tables.
    pub name: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    /// Where it was published.
    pub paper: &'static str,
    /// The method whose reward model it uses, if that is not its own.
    pub reward_model: Option<Method>,
    /// Which continuations are sampled, in words.
    pub rollouts: &'static str,
    /// How the reward model's training cuts a response, for an entropy cutoff.
    pub reward_rule: fn(f64) -> Rule,
    /// How the policy's responses are cut.
    pub policy_rule: fn(f64) -> Rule,
    /// Where rewards come from, in words.
    pub rewards: &'static str,
    /// Whose credit they are, in words.
    pub credit: &'static str,
    /// What is learned from, in words.
    pub loss: &'static str,
    /// Whether a critic is trained.
    pub critic: bool,
    /// The name of its own section in `[systems]`.
    pub section: Option<&'static str>,
    /// The key below its section that does not go with the section `[ppo]`, if one does not, with its value and what was
    /// expected.
    pub check: fn(&PpoSettings, toml::Value) -> Option<(String, String)>,
    /// What its policy learns from.
    pub training: Training,
}

/// What a policy learns from.
#[derive(Clone, Copy)]
pub enum Training {
    /// Its own rollouts, by the choices that the function makes.
    Online(for<'a> fn(&Parts<'a>) -> Result<System<'a>, SystemError>),
    /// Preference pairs, by the weights that the function makes of the system's own section.
    Offline(fn(Option<toml::Value>) -> Weights),
}

/// A method: a row of a system's table, known by its name.
#[derive(Clone, Copy)]
pub struct Method(pub &'static Row);

impl Method {
    /// The name that settings, folders and tables use.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// Makes the choices of a method that learns from its rollouts.
    ///
    /// # Errors
    ///
    /// [`SystemError::Settings`] where its settings do not go with the task, [`SystemError::Data`] where a file of its own
    /// is refused.
    ///
    /// # Panics
    ///
    /// For a method that learns from pairs.
    pub fn build<'a>(self, parts: &Parts<'a>) -> Result<System<'a>, SystemError> {
        match self.0.training {
            Training::Online(build) => build(parts),
            Training::Offline(_) => panic!("{} has no rollouts", self.name()),
        }
    }

    /// What the tokens of a pair count, given the system's own section; none for a method that learns from its rollouts.
    pub fn weights(self, section: Option<toml::Value>) -> Option<Weights> {
        match self.0.training {
            Training::Online(_) => None,
            Training::Offline(weights) => Some(weights(section)),
        }
    }

    /// The method whose reward model this one uses.
    pub fn reward_model(self) -> Self {
        self.0.reward_model.unwrap_or(self)
    }

    /// How the reward model's training cuts a response; the cutoff is in nats.
    pub fn reward_rule(self, entropy_cutoff: f64) -> Rule {
        (self.0.reward_rule)(entropy_cutoff)
    }

    /// How the policy's responses are cut; the cutoff is in nats.
    pub fn policy_rule(self, entropy_cutoff: f64) -> Rule {
        (self.0.policy_rule)(entropy_cutoff)
    }
}

impl PartialEq for Method {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Method {}

impl std::hash::Hash for Method {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl fmt::Debug for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Method {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
