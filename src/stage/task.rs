//! What the stages learn from: the embedded task, or a user's files.

use std::path::{Path, PathBuf};

use rand::seq::SliceRandom;

use super::context::Context;
use crate::data::chat::RoleFormat;
use crate::data::letters::{self, Gold, Prompt};
use crate::data::pairs::{self, Conversation, Cuts, Limits, PreferencePair};
use crate::data::tokenizer::Tokenizer;
use crate::error::Error;
use crate::model::ModelConfig;
use crate::rng::stream;

/// A tokenizer, and where data come from.
pub struct Task {
    /// The tokenizer of the model.
    pub tokenizer: Tokenizer,
    source: Source,
    limits: Limits,
    held_out_share: f64,
}

enum Source {
    Letters,
    File { data: PathBuf, prompts: Option<PathBuf> },
}

/// Items to train on, and items kept out.
#[derive(Clone, Debug)]
pub struct Split<T> {
    /// To train on.
    pub train: Vec<T>,
    /// Kept out of training, for evaluation.
    pub held_out: Vec<T>,
}

impl Task {
    /// The run's task, for the model in `model_dir` (for `sft` from nothing, `None`).
    ///
    /// # Errors
    ///
    /// [`Error::Data`] for a tokenizer that cannot be used; [`Error::Usage`] when the embedded task meets a
    /// model that does not speak its language.
    pub fn open(context: &Context, model_dir: Option<&Path>) -> Result<Self, Error> {
        let settings = &context.settings.data;
        let limits = Limits {
            prompt_tokens: settings.prompt_tokens,
            response_tokens: settings.response_tokens,
        };
        let tokenizer = match model_dir {
            Some(dir) => model_tokenizer(dir)?,
            None => letters_tokenizer()?,
        };
        let source = match &context.data {
            Some(data) => Source::File { data: data.clone(), prompts: context.prompts.clone() },
            None => Source::Letters,
        };
        if matches!(source, Source::Letters)
            && tokenizer.vocab_size() != letters::vocabulary().len()
        {
            return Err(Error::Usage(
                "the embedded task needs a model of its own vocabulary, and --model names another: \
                 give --data FILE.jsonl with preference pairs"
                    .into(),
            ));
        }
        Ok(Self { tokenizer, source, limits, held_out_share: settings.held_out_share })
    }

    /// Whether this is the embedded task.
    pub fn is_letters(&self) -> bool {
        matches!(self.source, Source::Letters)
    }

    /// Prompts and responses to fine-tune on.
    ///
    /// # Errors
    ///
    /// [`Error::Data`].
    pub fn conversations(&self, context: &Context) -> Result<Split<Conversation>, Error> {
        match &self.source {
            Source::File { data, .. } => {
                let (all, cuts) = pairs::read_conversations(data, &self.tokenizer, self.limits)?;
                report(context, cuts);
                Ok(self.split(all))
            }
            Source::Letters => {
                let (train, held_out) = letters::split();
                let write = |prompts: &[Prompt], purpose: &str, count: usize| {
                    (0..count)
                        .map(|i| {
                            let mut rng = stream(context.settings.seed, purpose, i as u64);
                            let prompt = &prompts[i % prompts.len()];
                            (prompt.tokens(), letters::write_letter(prompt, &mut rng))
                        })
                        .collect()
                };
                let count = context.settings.task.letters;
                Ok(Split {
                    train: write(&train, "letters", count),
                    held_out: write(&held_out, "held-out letters", count.div_ceil(10)),
                })
            }
        }
    }

    /// The user's preference pairs; those of the embedded task are sampled by their own stage.
    ///
    /// # Errors
    ///
    /// [`Error::Data`].
    pub(super) fn file_pairs(
        &self,
        context: &Context,
    ) -> Result<Option<Split<PreferencePair>>, Error> {
        let Source::File { data, .. } = &self.source else { return Ok(None) };
        let (all, cuts) = pairs::read_pairs(data, &self.tokenizer, self.limits)?;
        report(context, cuts);
        Ok(Some(self.split(all)))
    }

    /// Prompts to roll out, and prompts to evaluate on.
    ///
    /// # Errors
    ///
    /// [`Error::Data`].
    pub fn prompts(&self, context: &Context) -> Result<Split<Vec<u32>>, Error> {
        match &self.source {
            Source::Letters => {
                let (train, held_out) = letters::split();
                let tokens = |prompts: &[Prompt]| prompts.iter().map(Prompt::tokens).collect();
                Ok(Split { train: tokens(&train), held_out: tokens(&held_out) })
            }
            Source::File { data, prompts } => {
                let path = prompts.as_ref().unwrap_or(data);
                let (all, cuts) = pairs::read_prompts(path, &self.tokenizer, self.limits)?;
                report(context, cuts);
                Ok(self.split(all))
            }
        }
    }

    /// The truth about a response, where it is known.
    pub fn gold(&self, prompt: &[u32], response: &[u32]) -> Option<Gold> {
        match self.source {
            Source::File { .. } => None,
            Source::Letters => Prompt::from_tokens(prompt).map(|p| letters::gold(&p, response)),
        }
    }

    /// The end of the file is held out: at least one item, unless there is only one, which then serves both.
    fn split<T: Clone>(&self, mut all: Vec<T>) -> Split<T> {
        let held = (self.held_out_share * all.len() as f64).round() as usize;
        if all.len() < 2 {
            return Split { train: all.clone(), held_out: all };
        }
        let held_out = all.split_off(all.len() - held.clamp(1, all.len() - 1));
        Split { train: all, held_out }
    }
}

/// The tokenizer of the model in the folder `dir`.
///
/// # Errors
///
/// [`Error::Data`] and [`Error::Checkpoint`] for files that cannot be used; [`Error::Usage`] when the model
/// has no embedding for some of the tokenizer's tokens.
pub fn model_tokenizer(dir: &Path) -> Result<Tokenizer, Error> {
    let embeddings = ModelConfig::from_dir(dir)?.vocab_size;
    let tokenizer = Tokenizer::from_dir(dir)?;
    let tokens = tokenizer.vocab_size();
    if tokens > embeddings {
        return Err(Error::Usage(format!(
            "{}: tokenizer.json has {tokens} token ids, but config.json says vocab_size {embeddings}: \
             give the tokenizer that the model was trained with",
            dir.display()
        )));
    }
    Ok(tokenizer)
}

/// The tokenizer of the embedded task.
///
/// # Errors
///
/// [`Error::Data`]: never, as its test shows.
pub fn letters_tokenizer() -> Result<Tokenizer, Error> {
    let format = RoleFormat::new("{} ", "<user> {} ", "<answer> {}")?;
    Ok(Tokenizer::from_json(&letters::tokenizer_json(), "<eos>", "<pad>", format)?)
}

fn report(context: &Context, cuts: Cuts) {
    if cuts != Cuts::default() {
        context.progress.line(&cuts.to_string());
    }
}

/// The numbers 0 … n-1 in an order drawn for `purpose` and `index`.
pub fn permutation(seed: u64, purpose: &str, index: usize, n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    order.shuffle(&mut stream(seed, purpose, index as u64));
    order
}
