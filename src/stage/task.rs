//! What stages learn from: the embedded task, or a user's files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::data::chat::RoleFormat;
use crate::data::error::DataError;
use crate::data::letters::{self, Gold, Prompt};
use crate::data::pairs::{self, Conversation, Counts, Limits, PreferencePair};
use crate::data::store::{FORMAT, Items, Opened, Store, StoreWriter, StoredRow};
use crate::data::tokenizer::Tokenizer;
use crate::file_error::FileError;
use crate::hub;
use crate::model::{LengthLimit, ModelConfig, TooLong};
use crate::ranks;
use crate::rng::{Fnv1a, stream};
use crate::run::fingerprint::{MODEL_FILES, hash_file};
use crate::run::lock::{Lock, LockError};
use crate::run::{Context, Error, FolderError};
use crate::settings::Settings;
use crate::systems::Truth;

/// A tokenizer, and the source of the data.
pub struct Task {
    pub tokenizer: Tokenizer,
    source: Source,
    /// The model's folder, which holds the tokenizer's files.
    dir: Option<PathBuf>,
    pub(super) limits: Limits,
    held_out_share: f64,
    /// How long a sequence may be, if there is a model, and the longest response to a prompt.
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
    pub train: L,
    /// Kept out of training, for evaluation.
    pub held_out: L,
    pub what: HeldOut,
}

/// What is held out of training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldOut {
    /// Prompts with all that belongs to them.
    #[default]
    Prompts,
    /// Preference pairs, since all are of one prompt.
    Pairs,
    /// Conversations, since all start with one prompt.
    Conversations,
    /// Nothing, since there is one prompt: the policy is evaluated on what it is trained on.
    Nothing,
}

impl HeldOut {
    /// A caution about the figures, if no prompts are held out.
    pub fn caution(self) -> Option<&'static str> {
        match self {
            Self::Prompts => None,
            Self::Pairs => Some(
                "all preference pairs are of one prompt: pairs are held out, not prompts, and their figures \
                 say nothing about other prompts",
            ),
            Self::Conversations => Some(
                "all conversations start with one prompt: conversations are held out, not prompts, and their \
                 loss says nothing about other prompts",
            ),
            Self::Nothing => Some(
                "there is one prompt: nothing is held out, and the policy is evaluated on the prompt that it is \
                 trained on",
            ),
        }
    }

    /// Shows the caution, if there is one.
    pub(super) fn tell(self, context: &Context) {
        if let Some(caution) = self.caution() {
            context.progress.line(caution);
        }
    }
}

/// How the rows of a user's file are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pairs,
    LabelledPairs,
    Conversations,
    Prompts,
}

impl Kind {
    /// The start of their store's name.
    fn name(self) -> &'static str {
        match self {
            Self::Pairs => "pairs",
            Self::LabelledPairs => "labelled-pairs",
            Self::Conversations => "conversations",
            Self::Prompts => "prompts",
        }
    }
}

/// Items, and a fingerprint of them all.
pub type Data<T> = (Split<Items<T>>, String);

impl Task {
    /// The run's task, for the model in `model_dir` (for `sft` from nothing, `None`).
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
        if matches!(task.source, Source::File { .. }) && context.settings.has_verdict() {
            return Err(Error::Usage(
                "--data: task.reward = \"verdict\" judges the embedded task's letters alone; leave --data out, or set \
                 task.reward = \"preferences\""
                    .into(),
            ));
        }
        if matches!(task.source, Source::Letters) && model_dir.is_some() {
            let prompt = longest_letter_prompt(&context.settings);
            task.check_length(prompt + new_tokens, "the embedded task")?;
        }
        Ok(task)
    }

    /// Rejects sequences longer than the model was made for.
    fn check_length(&self, longest: usize, origin: impl ToString) -> Result<(), TooLong> {
        let remedy = "lower data.total_tokens, sampling.prompt_tokens or sampling.max_new_tokens";
        self.length_limit.map_or(Ok(()), |limit| limit.check(longest, origin, remedy))
    }

    /// Prompts and responses to fine-tune on.
    pub fn conversations(&self, context: &Context) -> Result<Split<Items<Conversation>>, Error> {
        match &self.source {
            Source::File { data, .. } => {
                let (split, _) =
                    self.stored(context, data, Kind::Conversations, self.limits, 0, |writer| {
                        let push = |row: Conversation, hash| store(context, writer, row, hash);
                        pairs::read_conversations(
                            context.file(data),
                            &self.tokenizer,
                            self.limits,
                            push,
                        )
                    })?;
                Ok(split)
            }
            Source::Letters => {
                let (train, held_out) = letters::split(letter_prompts(&context.settings));
                let verdict = context.settings.has_verdict();
                let write = |prompts: &[Prompt], purpose: &str, count: usize| {
                    let letters = (0..count).map(|i| {
                        let mut rng = stream(context.settings.seed, purpose, i as u64);
                        let prompt = &prompts[i % prompts.len()];
                        let mut letter = letters::write_letter(prompt, &mut rng);
                        // A second try, so that the model that learns from them passes now and then.
                        if verdict && !letters::passes(prompt, &letter) {
                            letter = letters::write_letter(prompt, &mut rng);
                        }
                        (prompt.tokens(), letter)
                    });
                    Items::Memory(letters.collect())
                };
                let count = context.settings.task.letters;
                Ok(Split {
                    train: write(&train, "letters", count),
                    held_out: write(&held_out, "held-out letters", count.div_ceil(10)),
                    what: HeldOut::Prompts,
                })
            }
        }
    }

    /// The user's preference pairs, where `labelled` with labels of segments, and their fingerprint; those of the embedded
    /// task are sampled by their own stage.
    pub(super) fn file_pairs<T>(
        &self,
        context: &Context,
        labelled: bool,
    ) -> Result<Option<Data<T>>, Error> {
        let Source::File { data, .. } = &self.source else { return Ok(None) };
        let kind = if labelled { Kind::LabelledPairs } else { Kind::Pairs };
        let pairs = self.stored(context, data, kind, self.limits, 0, |writer| {
            let push = |row: PreferencePair, hash| store(context, writer, row, hash);
            pairs::read_pairs(context.file(data), &self.tokenizer, self.limits, labelled, push)
        })?;
        Ok(Some(pairs))
    }

    /// The rows of `data` as token ids, and their fingerprint: from a store of the run, which `fill` makes
    /// if it is not there yet. The store's name tells its format, the data, the tokenizer and the limits apart. A row
    /// with `new_tokens` more must not be longer than the model was made for.
    fn stored<T>(
        &self,
        context: &Context,
        data: &Path,
        kind: Kind,
        limits: Limits,
        new_tokens: usize,
        fill: impl FnOnce(&mut StoreWriter) -> Result<Counts, DataError>,
    ) -> Result<Data<T>, Error> {
        let mut hash = Fnv1a::default();
        hash.write(&FORMAT.to_le_bytes());
        hash.write(context.data_fingerprint(data)?.as_bytes());
        hash.write(format!("{limits:?}").as_bytes());
        for (dir, name) in self.dir.iter().flat_map(|dir| MODEL_FILES.map(|name| (dir, name))) {
            let dir = hub::holding(dir, name);
            hash_file(&mut hash, &dir, name).map_err(FileError::reading(&dir.join(name)))?;
        }
        let folder = context.run.join("data");
        let dir = folder.join(format!("{}-{:016x}", kind.name(), hash.finish()));
        let mut store = ranks::in_turn(|| match Store::open(&dir)? {
            Opened::Whole(store) => Ok::<_, Error>(store),
            _ => {
                // Methods may be trained side by side.
                let _turn = turn(context, &folder.join("store"))?;
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
                let store = Store::open(&dir)?.whole();
                Ok(store.ok_or_else(|| FileError::reading(&dir)(changed()))?)
            }
        })?;
        report(context, store.counts);
        self.check_length(store.longest() + new_tokens, data.display())?;
        let Split { train, held_out, what } = self.split(&mut store, kind, data)?;
        let store = Arc::new(store);
        let items = |rows| Items::Stored(store.clone(), rows);
        let split = Split { train: items(train), held_out: items(held_out), what };
        Ok((split, store.fingerprint.clone()))
    }

    /// Prompts to roll out, and prompts to evaluate on.
    pub fn prompts(&self, context: &Context) -> Result<Split<Items<Vec<u32>>>, Error> {
        match &self.source {
            Source::Letters => {
                let (train, held_out) = letters::split(letter_prompts(&context.settings));
                let tokens = |prompts: &[Prompt]| {
                    Items::Memory(prompts.iter().map(Prompt::tokens).collect())
                };
                let (train, held_out) = (tokens(&train), tokens(&held_out));
                Ok(Split { train, held_out, what: HeldOut::Prompts })
            }
            Source::File { data, prompts } => {
                let path = prompts.as_ref().unwrap_or(data);
                let prompt_tokens = context.settings.sampling.prompt_tokens;
                let limits =
                    Limits { prompt_tokens, response_tokens: 2, total_tokens: prompt_tokens + 2 };
                let (split, _) =
                    self.stored(context, path, Kind::Prompts, limits, self.new_tokens, |writer| {
                        let push = |row: Vec<u32>, hash| store(context, writer, row, hash);
                        pairs::read_prompts(context.file(path), &self.tokenizer, limits, push)
                    })?;
                Ok(split)
            }
        }
    }

    /// The tokens of the longest prompt of the user's data, and of the longest response that a policy may give.
    pub(super) fn longest_rollout(
        &self,
        context: &Context,
    ) -> Result<Option<(usize, usize)>, Error> {
        let prompts = self.prompts(context)?.train;
        Ok(prompts.longest_parts().map(|(prompt, _)| (prompt, self.new_tokens)))
    }

    /// The truth about a response, if it is known.
    pub fn gold(&self, prompt: &[u32], response: &[u32]) -> Option<Gold> {
        self.truth()?(prompt, response)
    }

    /// The truth about all responses, if it is known.
    pub(super) fn truth(&self) -> Option<Truth> {
        match self.source {
            Source::File { .. } => None,
            Source::Letters => Some(letter_truth),
        }
    }

    /// The numbers of the rows on each side. Prompts are held out, by the hash of the whole prompt, so that none
    /// serves both sides, in whichever file it is, unless a file has so few that the share gives one side none and one
    /// prompt is moved to it. Of one prompt, pairs and conversations are held out by their own
    /// content; prompts are not held out at all.
    fn split(
        &self,
        store: &mut Store,
        kind: Kind,
        data: &Path,
    ) -> Result<Split<Vec<u32>>, DataError> {
        if let Some(split) = self.by_hash(&store.take_prompt_hashes(), HeldOut::Prompts) {
            return Ok(split);
        }
        let (what, rows) = match kind {
            Kind::Pairs | Kind::LabelledPairs => (HeldOut::Pairs, "preference pairs"),
            Kind::Conversations => (HeldOut::Conversations, "conversations"),
            Kind::Prompts => {
                let all: Vec<u32> = (0..store.len() as u32).collect();
                return Ok(Split { train: all.clone(), held_out: all, what: HeldOut::Nothing });
            }
        };
        let hashes = (0..store.len()).map(|i| Ok(store.row(i)?.content_hash()));
        let hashes = hashes.collect::<Result<Vec<_>, DataError>>()?;
        let alike = || DataError::nothing_to_hold_out(data, rows);
        self.by_hash(&hashes, what).ok_or_else(alike)
    }

    /// The numbers of the rows on each side, given a hash of each; at least one on either. Nothing where all hashes
    /// are the same.
    fn by_hash(&self, hashes: &[u64], what: HeldOut) -> Option<Split<Vec<u32>>> {
        let lowest = hashes.iter().copied().min()?;
        let highest = hashes.iter().copied().max()?;
        if lowest == highest {
            return None;
        }
        let limit = (self.held_out_share * u64::MAX as f64) as u64;
        let limit = limit.clamp(lowest, highest - 1);
        let all = 0..u32::try_from(hashes.len()).expect("fewer than 2^32 rows");
        let (held_out, train) = all.partition(|&i| hashes[i as usize] <= limit);
        Some(Split { train, held_out, what })
    }
}

/// The tokenizer of the model in the folder `dir`.
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

/// The prompts of the embedded task.
pub fn letter_prompts(settings: &Settings) -> Vec<Prompt> {
    if settings.has_verdict() { letters::graded_prompts() } else { letters::prompts() }
}

/// The tokens of the longest of them.
pub fn longest_letter_prompt(settings: &Settings) -> usize {
    let lengths = letter_prompts(settings).into_iter().map(|prompt| prompt.tokens().len());
    lengths.max().expect("there are prompts")
}

/// The truth about a letter.
pub fn letter_truth(prompt: &[u32], response: &[u32]) -> Option<Gold> {
    Prompt::from_tokens(prompt).map(|prompt| letters::gold(&prompt, response))
}

/// Whether a letter passes.
pub(super) fn letter_passes(prompt: &[u32], response: &[u32]) -> bool {
    Prompt::from_tokens(prompt).is_some_and(|prompt| letters::passes(&prompt, response))
}

/// The tokenizer of the embedded task.
pub fn letters_tokenizer() -> Result<Tokenizer, Error> {
    let format = RoleFormat::new("{} ", "<user> {} ", "<answer> {}")?;
    Ok(Tokenizer::from_json(&letters::tokenizer_json(), "<eos>", "<pad>", format)?)
}

/// Waits for the lock of the folder `dir`, unless a stop was asked for.
fn turn(context: &Context, dir: &Path) -> Result<Arc<Lock>, Error> {
    loop {
        match context.locks.take(dir) {
            Err(LockError::Held { .. }) => context.stop.check()?,
            taken => return Ok(taken.map_err(FolderError::from)?),
        }
        sleep(Duration::from_millis(50));
    }
}

/// Appends a row and the hash of its prompt to a store, unless a stop was asked for.
fn store(
    context: &Context,
    writer: &mut StoreWriter,
    row: impl Into<StoredRow>,
    prompt_hash: u64,
) -> Result<(), DataError> {
    context.stop.check()?;
    writer.push(&row.into(), prompt_hash)
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::data::pairs::PreferencePair;
    use crate::device::DeviceName;

    /// A run on a file of these rows, of the embedded task's words.
    struct Run {
        context: Context,
        task: Task,
        _folder: TempDir,
    }

    impl Run {
        fn new(rows: &[String]) -> Self {
            let folder = TempDir::new().unwrap();
            let data = folder.path().join("data.jsonl");
            fs::write(&data, rows.join("\n")).unwrap();
            let run = folder.path().join("run");
            let context = Context::new(Settings::defaults(), DeviceName::Flex, run).unwrap();
            let limits = Limits { prompt_tokens: 99, response_tokens: 99, total_tokens: 198 };
            let task = Task {
                tokenizer: letters_tokenizer().unwrap(),
                source: Source::File { data, prompts: None },
                dir: None,
                limits,
                held_out_share: 0.5,
                length_limit: None,
                new_tokens: 1,
            };
            Self { context, task, _folder: folder }
        }

        fn pairs(&self) -> Result<Split<Items<PreferencePair>>, Error> {
            Ok(self.task.file_pairs(&self.context, false)?.unwrap().0)
        }
    }

    impl From<StoredRow> for PreferencePair {
        fn from(row: StoredRow) -> Self {
            let StoredRow { prompt, responses: [chosen, rejected], score_gap, labels } = row;
            Self { prompt, chosen, rejected, score_gap, labels }
        }
    }

    /// Words that any text may hold.
    fn words() -> Vec<&'static str> {
        let words = letters::vocabulary().iter().copied();
        words.filter(|word| word.chars().all(char::is_alphabetic)).collect()
    }

    fn pair(prompt: &str, chosen: &str, rejected: &str) -> String {
        serde_json::json!({"prompt": prompt, "chosen": chosen, "rejected": rejected}).to_string()
    }

    fn rows<T>(items: &Items<T>) -> Vec<u32> {
        match items {
            Items::Stored(_, rows) => rows.clone(),
            Items::Memory(_) => panic!("not of a file"),
        }
    }

    #[test]
    fn a_long_prompt_is_on_one_side_whatever_the_limits() {
        let words = words();
        let prompt = |i: usize| {
            let word = |k: usize| words[(i + k * (i + 3)) % words.len()];
            (0..12).map(word).chain([words[i]]).collect::<Vec<_>>().join(" ")
        };
        let pairs: Vec<String> = (0..24).map(|i| pair(&prompt(i), words[0], words[1])).collect();
        let mut run = Run::new(&pairs);
        let whole = run.pairs().unwrap();
        assert_eq!(whole.what, HeldOut::Prompts);
        let sides = [rows(&whole.train), rows(&whole.held_out)];
        assert!(sides.iter().all(|side| side.len() > 3), "{sides:?}");
        for limit in [3, 5, 8] {
            run.task.limits.prompt_tokens = limit;
            let pairs = run.pairs().unwrap();
            assert_eq!(
                [rows(&pairs.train), rows(&pairs.held_out)],
                sides,
                "pairs of {limit} tokens"
            );
            assert_eq!(pairs.train.longest_parts().unwrap().0, limit);
            let conversations = run.task.conversations(&run.context).unwrap();
            assert_eq!(rows(&conversations.train), sides[0], "conversations of {limit} tokens");
            run.context.settings.sampling.prompt_tokens = limit;
            let prompts = run.task.prompts(&run.context).unwrap();
            assert_eq!(
                [rows(&prompts.train), rows(&prompts.held_out)],
                sides,
                "prompts of {limit}"
            );
        }
    }

    #[test]
    fn of_one_prompt_pairs_are_held_out_and_no_pair_serves_both_sides() {
        let words = words();
        // Each pair three times, once the other way round.
        let three = |i: usize| {
            let (prompt, a, b) = (words[0], words[i], words[i + 1]);
            [pair(prompt, a, b), pair(prompt, b, a), pair(prompt, a, b)]
        };
        let run = Run::new(&(1..13).flat_map(three).collect::<Vec<_>>());
        let pairs = run.pairs().unwrap();
        assert_eq!(pairs.what, HeldOut::Pairs);
        let of = |items: &Items<PreferencePair>| -> BTreeSet<[Vec<u32>; 2]> {
            let pairs = items.read(0..items.len()).unwrap().into_iter();
            pairs
                .map(|pair| {
                    let mut both = [pair.chosen, pair.rejected];
                    both.sort();
                    both
                })
                .collect()
        };
        let (train, held_out) = (of(&pairs.train), of(&pairs.held_out));
        assert!(train.is_disjoint(&held_out));
        assert!(train.len() > 1 && held_out.len() > 1, "{} and {}", train.len(), held_out.len());
        assert_eq!((train.len() + held_out.len()) * 3, pairs.train.len() + pairs.held_out.len());

        let conversations = run.task.conversations(&run.context).unwrap();
        assert_eq!(conversations.what, HeldOut::Conversations);
        let of = |items: &Items<Conversation>| -> BTreeSet<Conversation> {
            items.read(0..items.len()).unwrap().into_iter().collect()
        };
        let (train, held_out) = (of(&conversations.train), of(&conversations.held_out));
        assert!(train.is_disjoint(&held_out) && !train.is_empty() && !held_out.is_empty());

        // A single prompt cannot be held out of itself: that is said.
        let prompts = run.task.prompts(&run.context).unwrap();
        assert_eq!(prompts.what, HeldOut::Nothing);
        assert_eq!((rows(&prompts.train), rows(&prompts.held_out)), (vec![0], vec![0]));
    }

    #[test]
    fn of_one_pair_nothing_can_be_held_out() {
        let words = words();
        let run = Run::new(&[
            pair(words[0], words[1], words[2]),
            pair(words[0], words[2], words[1]),
            pair(words[0], words[1], words[2]),
        ]);
        let error = run.pairs().unwrap_err();
        assert!(matches!(&error, Error::Data(DataError::Refused(_))), "{error}");
        let run =
            Run::new(&[pair(words[0], words[1], words[2]), pair(words[0], words[1], words[3])]);
        assert_eq!(run.pairs().unwrap().what, HeldOut::Pairs, "two pairs are enough");
        let error = run.task.conversations(&run.context).unwrap_err();
        assert!(
            matches!(&error, Error::Data(DataError::Refused(_))),
            "the chosen sides are the same: {error}"
        );
    }

    #[test]
    fn a_stop_ends_the_wait_for_another_process_that_reads_the_same_data() {
        let run = tempfile::tempdir().unwrap();
        let path = run.path().join("store");
        let context =
            Context::new(Settings::defaults(), DeviceName::Flex, run.path().to_owned()).unwrap();
        let other = turn(&context, &path).unwrap();
        context.stop.request();
        assert!(matches!(turn(&context, &path), Err(Error::Interrupted(_))));
        drop(other);
        turn(&context, &path).unwrap();
    }

    #[test]
    fn a_stop_ends_the_reading_of_data_and_leaves_no_store() {
        let run = tempfile::tempdir().unwrap();
        let context =
            Context::new(Settings::defaults(), DeviceName::Flex, run.path().to_owned()).unwrap();
        let fill = |writer: &mut StoreWriter| {
            store(&context, writer, vec![1], 1)?;
            context.stop.request();
            store(&context, writer, vec![2], 2)?;
            Ok(Counts::default())
        };
        let error = Error::from(Store::write(&run.path().join("data"), fill).unwrap_err());
        assert!(matches!(error, Error::Interrupted(_)), "{error}");
        assert_eq!(fs::read_dir(run.path()).unwrap().count(), 0);
    }
}
