//! What the stages learn from: the embedded task, or a user's files.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::seq::SliceRandom;

use super::context::{Context, file_fingerprint};
use crate::data::chat::RoleFormat;
use crate::data::error::DataError;
use crate::data::letters::{self, Gold, Prompt};
use crate::data::pairs::{self, Conversation, Counts, Limits};
use crate::data::store::{Items, Opened, Store, StoreWriter, StoredRow};
use crate::data::tokenizer::Tokenizer;
use crate::error::Error;
use crate::experiment::folder::FolderError;
use crate::model::{LengthLimit, ModelConfig, TooLong};
use crate::rng::{Fnv1a, stream};

/// A tokenizer, and where data come from.
pub struct Task {
    /// The tokenizer of the model.
    pub tokenizer: Tokenizer,
    source: Source,
    /// The model's folder, which holds the tokenizer's files.
    dir: Option<PathBuf>,
    limits: Limits,
    held_out_share: f64,
    /// How long a sequence may be, where there is a model, and the longest response to a prompt.
    length_limit: Option<LengthLimit>,
    new_tokens: usize,
}

enum Source {
    Letters,
    File { data: PathBuf, prompts: Option<PathBuf> },
}

/// A list of items to train on, and a list of items kept out.
#[derive(Clone, Debug)]
pub struct Split<L> {
    /// To train on.
    pub train: L,
    /// Kept out of training, for evaluation.
    pub held_out: L,
}

/// Items, and a fingerprint of them all.
pub type Data<T> = (Split<Items<T>>, String);

impl Task {
    /// The run's task, for the model in `model_dir` (for `sft` from nothing, `None`).
    ///
    /// # Errors
    ///
    /// [`Error::Data`] for a tokenizer that cannot be used; [`Error::Usage`] when the embedded task meets a
    /// model that does not speak its language; [`Error::TooLong`] when it is asked for responses longer than the
    /// model was made for.
    pub fn open(context: &Context, model_dir: Option<&Path>) -> Result<Self, Error> {
        let settings = &context.settings.data;
        let limits = Limits {
            prompt_tokens: settings.prompt_tokens,
            response_tokens: settings.response_tokens,
            total_tokens: settings.total_tokens,
        };
        let (tokenizer, length_limit) = match model_dir {
            None => (letters_tokenizer()?, None),
            Some(dir) => (model_tokenizer(dir)?, Some(ModelConfig::from_dir(dir)?.length_limit())),
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
                 give --data FILE with preference pairs"
                    .into(),
            ));
        }
        let held_out_share = settings.held_out_share;
        let new_tokens = context.settings.sampling.max_new_tokens;
        let dir = model_dir.map(Path::to_owned);
        let task =
            Self { tokenizer, source, dir, limits, held_out_share, length_limit, new_tokens };
        if matches!(task.source, Source::Letters) && model_dir.is_some() {
            let prompt = letters::prompts()[0].tokens().len(); // they are all of one length
            task.check_length(prompt + new_tokens, "the embedded task")?;
        }
        Ok(task)
    }

    /// Refuses sequences longer than the model was made for.
    fn check_length(&self, longest: usize, origin: impl ToString) -> Result<(), TooLong> {
        let remedy = "lower data.total_tokens, sampling.prompt_tokens or sampling.max_new_tokens";
        self.length_limit.map_or(Ok(()), |limit| limit.check(longest, origin, remedy))
    }

    /// Prompts and responses to fine-tune on.
    ///
    /// # Errors
    ///
    /// [`Error::Data`].
    pub fn conversations(&self, context: &Context) -> Result<Split<Items<Conversation>>, Error> {
        match &self.source {
            Source::File { data, .. } => {
                let (split, _) =
                    self.stored(context, data, "conversations", self.limits, 0, |writer| {
                        let push = |conversation| writer.push(&StoredRow::from(conversation));
                        pairs::read_conversations(data, &self.tokenizer, self.limits, push)
                    })?;
                Ok(split)
            }
            Source::Letters => {
                let (train, held_out) = letters::split();
                let write = |prompts: &[Prompt], purpose: &str, count: usize| {
                    let letters = (0..count).map(|i| {
                        let mut rng = stream(context.settings.seed, purpose, i as u64);
                        let prompt = &prompts[i % prompts.len()];
                        (prompt.tokens(), letters::write_letter(prompt, &mut rng))
                    });
                    Items::Memory(letters.collect())
                };
                let count = context.settings.task.letters;
                Ok(Split {
                    train: write(&train, "letters", count),
                    held_out: write(&held_out, "held-out letters", count.div_ceil(10)),
                })
            }
        }
    }

    /// The user's preference pairs, and their fingerprint; those of the embedded task are sampled by their
    /// own stage.
    ///
    /// # Errors
    ///
    /// [`Error::Data`].
    pub(super) fn file_pairs<T>(&self, context: &Context) -> Result<Option<Data<T>>, Error> {
        let Source::File { data, .. } = &self.source else { return Ok(None) };
        let pairs = self.stored(context, data, "pairs", self.limits, 0, |writer| {
            let push = |pair| writer.push(&StoredRow::from(pair));
            pairs::read_pairs(data, &self.tokenizer, self.limits, push)
        })?;
        Ok(Some(pairs))
    }

    /// The rows of `data` as token ids, and their fingerprint: from a store of the run, which `fill` makes
    /// where it is not there yet. The store's name tells the data, the tokenizer and the limits apart. A row
    /// with `new_tokens` more must not be longer than the model was made for.
    fn stored<T>(
        &self,
        context: &Context,
        data: &Path,
        kind: &str,
        limits: Limits,
        new_tokens: usize,
        fill: impl FnOnce(&mut StoreWriter) -> Result<Counts, DataError>,
    ) -> Result<Data<T>, Error> {
        let mut hash = Fnv1a::default();
        hash.write(file_fingerprint(data)?.as_bytes());
        hash.write(format!("{limits:?}").as_bytes());
        for name in TOKENIZER_FILES {
            let file = self.dir.as_ref().and_then(|dir| fs::read(dir.join(name)).ok());
            hash.write(&file.unwrap_or_default());
            hash.write(name.as_bytes());
        }
        let folder = context.run.join("data");
        let dir = folder.join(format!("{kind}-{:016x}", hash.finish()));
        let mut store = match Store::open(&dir)? {
            Opened::Whole(store) => store,
            _ => {
                // Methods may be trained side by side.
                let _turn = context.locks.wait(&folder.join("lock")).map_err(FolderError::from)?;
                let found = Store::open(&dir)?;
                if let Opened::Damaged(file) = &found {
                    let (file, data) = (file.display(), data.display());
                    context.progress.line(&format!(
                        "{file}: damaged, or of an older version; it is made again from {data}"
                    ));
                }
                if found.whole().is_none() {
                    Store::write(&dir, fill)?;
                }
                let changed = || std::io::Error::other("it was changed while it was written");
                Store::open(&dir)?
                    .whole()
                    .ok_or_else(|| DataError::Read { path: dir, source: changed() })?
            }
        };
        report(context, store.counts);
        self.check_length(store.longest() + new_tokens, data.display())?;
        let split = self.split(&store.take_prompt_hashes());
        let store = Arc::new(store);
        let items = |rows| Items::Stored(store.clone(), rows);
        Ok((
            Split { train: items(split.train), held_out: items(split.held_out) },
            store.fingerprint.clone(),
        ))
    }

    /// Prompts to roll out, and prompts to evaluate on.
    ///
    /// # Errors
    ///
    /// [`Error::Data`].
    pub fn prompts(&self, context: &Context) -> Result<Split<Items<Vec<u32>>>, Error> {
        match &self.source {
            Source::Letters => {
                let (train, held_out) = letters::split();
                let tokens = |prompts: &[Prompt]| {
                    Items::Memory(prompts.iter().map(Prompt::tokens).collect())
                };
                Ok(Split { train: tokens(&train), held_out: tokens(&held_out) })
            }
            Source::File { data, prompts } => {
                let path = prompts.as_ref().unwrap_or(data);
                let prompt_tokens = context.settings.sampling.prompt_tokens;
                let limits =
                    Limits { prompt_tokens, response_tokens: 2, total_tokens: prompt_tokens + 2 };
                let (split, _) =
                    self.stored(context, path, "prompts", limits, self.new_tokens, |writer| {
                        let push = |prompt| writer.push(&StoredRow::from(prompt));
                        pairs::read_prompts(path, &self.tokenizer, limits, push)
                    })?;
                Ok(split)
            }
        }
    }

    /// The tokens of the longest prompt of the user's data, and of the longest response that a policy may give.
    ///
    /// # Errors
    ///
    /// [`Error::Data`].
    pub(super) fn longest_rollout(
        &self,
        context: &Context,
    ) -> Result<Option<(usize, usize)>, Error> {
        let prompts = self.prompts(context)?.train;
        Ok(prompts.longest_parts().map(|(prompt, _)| (prompt, self.new_tokens)))
    }

    /// The truth about a response, where it is known.
    pub fn gold(&self, prompt: &[u32], response: &[u32]) -> Option<Gold> {
        match self.source {
            Source::File { .. } => None,
            Source::Letters => Prompt::from_tokens(prompt).map(|p| letters::gold(&p, response)),
        }
    }

    /// The items' numbers, given the hash of each one's prompt. Prompts are held out by it, so that no
    /// prompt serves both sides, in whichever file it stands. Each side gets at least one prompt, unless there
    /// is only one, which then serves both.
    fn split(&self, hashes: &[u64]) -> Split<Vec<u32>> {
        let all = 0..u32::try_from(hashes.len()).expect("fewer than 2^32 items");
        let lowest = hashes.iter().copied().min().unwrap_or(0);
        let highest = hashes.iter().copied().max().unwrap_or(0);
        if lowest == highest {
            return Split { train: all.clone().collect(), held_out: all.collect() };
        }
        let limit = (self.held_out_share * u64::MAX as f64) as u64;
        let limit = limit.clamp(lowest, highest - 1);
        let (held_out, train) = all.partition(|&i| hashes[i as usize] <= limit);
        Split { train, held_out }
    }
}

/// The files of a model's folder that say how a text becomes tokens.
const TOKENIZER_FILES: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "config.json",
];

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

fn report(context: &Context, counts: Counts) {
    if counts != Counts::default() {
        context.progress.line(&counts.to_string());
    }
}

/// The numbers 0 … n-1 in an order drawn for `purpose` and `index`.
pub fn permutation(seed: u64, purpose: &str, index: usize, n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    order.shuffle(&mut stream(seed, purpose, index as u64));
    order
}
