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
use crate::rng::{fnv1a, stream};

/// A tokenizer, and where data come from.
pub struct Task {
    /// The tokenizer of the model.
    pub tokenizer: Tokenizer,
    source: Source,
    limits: Limits,
    held_out_share: f64,
    /// The longest sequence that the model was made for, and the longest response to a prompt.
    positions: usize,
    new_tokens: usize,
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
    /// model that does not speak its language, or is asked for responses longer than the model was made for.
    pub fn open(context: &Context, model_dir: Option<&Path>) -> Result<Self, Error> {
        let settings = &context.settings.data;
        let limits = Limits {
            prompt_tokens: settings.prompt_tokens,
            response_tokens: settings.response_tokens,
        };
        let (tokenizer, positions) = match model_dir {
            None => (letters_tokenizer()?, usize::MAX),
            Some(dir) => (model_tokenizer(dir)?, ModelConfig::from_dir(dir)?.longest_sequence()),
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
        let held_out_share = settings.held_out_share;
        let new_tokens = context.settings.sampling.max_new_tokens;
        let task = Self { tokenizer, source, limits, held_out_share, positions, new_tokens };
        if matches!(task.source, Source::Letters) && model_dir.is_some() {
            let prompt = letters::prompts()[0].tokens().len(); // they are all of one length
            task.check_lengths(std::iter::once(prompt + new_tokens))?;
        }
        Ok(task)
    }

    /// Refuses sequences longer than the model was made for.
    fn check_lengths(&self, lengths: impl Iterator<Item = usize>) -> Result<(), Error> {
        let (longest, positions) = (lengths.max().unwrap_or(0), self.positions);
        if longest <= positions {
            return Ok(());
        }
        Err(Error::Usage(format!(
            "a prompt with its response takes {longest} tokens, but the model was made for {positions} \
             (max_position_embeddings): lower data.prompt_tokens, data.response_tokens or \
             sampling.max_new_tokens"
        )))
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
                self.check_lengths(all.iter().map(|(p, r)| p.len() + r.len()))?;
                Ok(self.split(all, |(prompt, _)| prompt))
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
        let longest = |pair: &PreferencePair| pair.chosen.len().max(pair.rejected.len());
        self.check_lengths(all.iter().map(|pair| pair.prompt.len() + longest(pair)))?;
        Ok(Some(self.split(all, |pair| &pair.prompt)))
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
                self.check_lengths(all.iter().map(|prompt| prompt.len() + self.new_tokens))?;
                Ok(self.split(all, |prompt| prompt))
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

    /// Prompts are held out by a hash of their tokens, so that no prompt serves both sides, in whichever
    /// file it stands. Each side gets at least one prompt, unless there is only one, which then serves both.
    fn split<T: Clone>(&self, all: Vec<T>, prompt: impl Fn(&T) -> &[u32]) -> Split<T> {
        let hash = |item: &T| {
            let bytes: Vec<u8> =
                prompt(item).iter().flat_map(|token| token.to_le_bytes()).collect();
            fnv1a(&bytes)
        };
        let lowest = all.iter().map(hash).min().unwrap_or(0);
        let highest = all.iter().map(hash).max().unwrap_or(0);
        if lowest == highest {
            return Split { train: all.clone(), held_out: all };
        }
        let limit = (self.held_out_share * u64::MAX as f64) as u64;
        let limit = limit.clamp(lowest, highest - 1);
        let (held_out, train) = all.into_iter().partition(|item| hash(item) <= limit);
        Split { train, held_out }
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
