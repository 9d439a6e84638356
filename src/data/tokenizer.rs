//! Text to token ids and back, as a Hugging Face `tokenizer.json` says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::chat::{Message, RoleFormat};
use super::error::DataError;
use super::template::ChatTemplate;
use super::tokenizer_files::{
    CHAT_TEMPLATE, CONFIG, GENERATION, ROLE_FORMAT, TEMPLATE, TOKENIZER, default_template, id_of,
    named_token, not_a_tokenizer, parse, read_role_format, read_settings, read_template, token_ids,
    token_text,
};
use crate::atomic;
use crate::file_error::FileError;
use crate::hub;

/// The special tokens that templates may name.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// The most characters of a text that an error shows.
const SHOWN: usize = 40;
/// More token ids than any vocabulary has; tables by id are kept.
const MOST_IDS: usize = 1 << 24;
/// What a decoder writes for bytes that are no character (yet).
const NO_CHARACTER: char = '\u{FFFD}';

/// A tokenizer, the tokens that end and fill sequences, and how its prompts are written.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// EOS, then the others.
    stops: Vec<u32>,
    pad: u32,
    format: PromptFormat,
    /// By token id; its length is the vocabulary's size.
    sentence_ends: Vec<bool>,
    files: Files,
}

/// How messages become text.
#[derive(Clone, Debug)]
enum PromptFormat {
    Roles(RoleFormat),
    Template(ChatTemplate),
}

/// A tokenizer's further files as read, so that saving keeps what others wrote in them.
#[derive(Clone, Debug, Default)]
struct Files {
    /// `tokenizer_config.json`.
    config: Map<String, Value>,
    /// `generation_config.json`.
    generation: Map<String, Value>,
    /// `chat_template.jinja`.
    template: Option<String>,
}

impl Tokenizer {
    /// The tokenizer in a folder: `tokenizer.json`, and what the files beside it say of it.
    ///
    /// EOS and PAD are `eos_token` and `pad_token` of `tokenizer_config.json`, else `eos_token_id`
    /// and `pad_token_id` of `generation_config.json`, else of `config.json`; of a list of ids, the
    /// first. PAD falls back to EOS. Stop tokens are EOS and every `eos_token_id` of both files.
    ///
    /// Prompts are written in the `role_format` of `tokenizer_config.json` (our own key), else by
    /// the template in `chat_template.jinja`, else by `chat_template` of `tokenizer_config.json` (a
    /// text, or a list of named templates, of which `default` counts), else in
    /// [`RoleFormat::default`].
    ///
    /// # Errors
    ///
    /// A [`DataError`] if a file cannot be read or understood, a named token is not in the
    /// vocabulary, the template does not compile, or no file names EOS ([`DataError::Refused`]).
    pub fn from_dir(dir: &Path) -> Result<Self, DataError> {
        // Adapters may leave these to their base.
        let [generation, model] =
            [GENERATION, "config.json"].map(|name| hub::holding(dir, name).join(name));
        let dir = &*hub::holding(dir, TOKENIZER);
        let path = dir.join(TOKENIZER);
        let text = fs::read(&path).map_err(FileError::reading(&path))?;
        let inner = parse(&path, &text)?;
        let files = Files {
            config: read_settings(&dir.join(CONFIG))?.unwrap_or_default(),
            generation: read_settings(&generation)?.unwrap_or_default(),
            template: read_template(&dir.join(TEMPLATE))?,
        };
        let of_model = read_settings(&model)?.unwrap_or_default();
        let id_files = [(generation, &files.generation), (model, &of_model)];
        let named = |key| named_token(&dir.join(CONFIG), &files.config, &inner, key);
        let ids = |key: &str| token_ids(&id_files, &inner, &format!("{key}_id"));

        let mut stops: Vec<u32> = named("eos_token")?.into_iter().collect();
        for id in ids("eos_token")? {
            if !stops.contains(&id) {
                stops.push(id);
            }
        }
        let eos = *stops.first().ok_or_else(|| DataError::no_eos(dir))?;
        let pad = match named("pad_token")? {
            Some(pad) => pad,
            None => ids("pad_token")?.first().copied().unwrap_or(eos),
        };
        let mut tokenizer = Self::new(&path, inner, stops, pad, RoleFormat::default(), files)?;
        tokenizer.format = tokenizer.read_format(dir)?;
        Ok(tokenizer)
    }

    /// The format that the files say.
    fn read_format(&self, dir: &Path) -> Result<PromptFormat, DataError> {
        let config = dir.join(CONFIG);
        if let Some(value) = self.files.config.get(ROLE_FORMAT) {
            return Ok(PromptFormat::Roles(read_role_format(value, &config)?));
        }
        let (path, source) = match &self.files.template {
            Some(source) => (dir.join(TEMPLATE), Some(source.as_str())),
            None => {
                let source = default_template(self.files.config.get(CHAT_TEMPLATE), &config)?;
                (config, source)
            }
        };
        let Some(source) = source else { return Ok(PromptFormat::Roles(RoleFormat::default())) };
        let mut special: BTreeMap<String, String> = SPECIAL_TOKENS
            .iter()
            .filter_map(|&key| Some((key.into(), token_text(self.files.config.get(key)?)?.into())))
            .collect();
        special.insert("eos_token".into(), self.token(self.eos()));
        special.insert("pad_token".into(), self.token(self.pad));
        ChatTemplate::new(source, &path, &special).map(PromptFormat::Template)
    }

    /// The name of a token that was found in the vocabulary.
    fn token(&self, id: u32) -> String {
        self.inner.id_to_token(id).expect("EOS and PAD were found in the vocabulary")
    }

    /// The tokenizer of the text of a `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// [`DataError::Refused`] and [`DataError::Refused`] where `json` is no tokenizer,
    /// [`DataError::Refused`] where `eos` or `pad` is not in its vocabulary.
    pub fn from_json(
        json: &str,
        eos: &str,
        pad: &str,
        role_format: RoleFormat,
    ) -> Result<Self, DataError> {
        let path = Path::new(TOKENIZER);
        let inner = parse(path, json.as_bytes())?;
        let eos = id_of(&inner, eos, path, "eos_token")?;
        let pad = id_of(&inner, pad, path, "pad_token")?;
        // The class by which transformers loads any tokenizer.json.
        let class = ("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
        let files = Files { config: Map::from_iter([class]), ..Files::default() };
        Self::new(path, inner, vec![eos], pad, role_format, files)
    }

    fn new(
        path: &Path,
        inner: tokenizers::Tokenizer,
        stops: Vec<u32>,
        pad: u32,
        role_format: RoleFormat,
        files: Files,
    ) -> Result<Self, DataError> {
        let special: BTreeSet<u32> = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter_map(|(id, token)| token.special.then_some(id))
            .chain(stops.iter().copied())
            .chain([pad])
            .collect();
        let refused = |reason| Err(DataError::tokenizer(path, reason));
        let mut ids: Vec<u32> = inner.get_vocab(true).into_values().collect();
        ids.sort_unstable();
        if let Some(pair) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            return refused(format!("two tokens have the id {}", pair[0]));
        }
        let size = ids.last().map_or(0, |&largest| largest as usize + 1);
        if size > MOST_IDS {
            return refused(format!("a token has the id {}, from {MOST_IDS} up", size - 1));
        }
        let mut sentence_ends = vec![false; size];
        for id in ids {
            let text = inner.decode(&[id], false).map_err(|error| not_a_tokenizer(path, &error))?;
            sentence_ends[id as usize] = !special.contains(&id) && ends_sentence(&text);
        }
        let format = PromptFormat::Roles(role_format);
        Ok(Self { inner, stops, pad, format, sentence_ends, files })
    }

    /// The token ids of the prompt that `messages` are, up to where the response starts.
    ///
    /// # Errors
    ///
    /// [`DataError::Refused`] where the chat template refuses the messages, [`DataError::Refused`]
    /// if the vocabulary has no token for a part of the text.
    pub fn encode_prompt(&self, messages: &[Message]) -> Result<Vec<u32>, DataError> {
        self.encode(&self.prompt_text(messages)?)
    }

    fn prompt_text(&self, messages: &[Message]) -> Result<String, DataError> {
        match &self.format {
            PromptFormat::Roles(format) => Ok(format.prompt(messages)),
            PromptFormat::Template(template) => template.render(messages, true),
        }
    }

    /// The token ids of a prompt, and of the `response` to it.
    ///
    /// The response ends with a stop token, once: the first of those that end its turn, else EOS is
    /// appended. (Templates write a newline, or a second stop token, behind the end of a turn.) A
    /// response without text is its stop token alone.
    ///
    /// A chat template writes the prompt and the whole conversation; the response is what the
    /// conversation has beyond the prompt. Its tokens are those of the conversation beyond the
    /// prompt's, or, where a token spans the boundary, those of its own text.
    ///
    /// # Errors
    ///
    /// Those of [`Tokenizer::encode_prompt`], and [`DataError::Refused`] if the template
    /// writes a conversation that does not begin with its prompt.
    pub fn encode_conversation(
        &self,
        prompt: &[Message],
        response: &Message,
    ) -> Result<(Vec<u32>, Vec<u32>), DataError> {
        let text = self.prompt_text(prompt)?;
        let ids = self.encode(&text)?;
        let response = match &self.format {
            PromptFormat::Roles(_) => self.encode(&response.content)?,
            PromptFormat::Template(template) => {
                let conversation = conversation(template, &text, prompt, response)?;
                let own = &conversation[text.len()..];
                let all = self.encode(&conversation)?;
                match all.strip_prefix(ids.as_slice()) {
                    Some(response) => response.to_vec(),
                    None => self.encode(own)?,
                }
            }
        };
        Ok((ids, self.ended(response)))
    }

    /// The characters of a response that each of its tokens covers, as [`Self::encode_conversation`] encodes it. A token
    /// of the template around the response covers none; EOS that is appended has no entry.
    ///
    /// # Errors
    ///
    /// As [`Self::encode_conversation`].
    pub fn response_spans(
        &self,
        prompt: &[Message],
        response: &Message,
    ) -> Result<Vec<Range<usize>>, DataError> {
        let spans = |text: &str| match self.inner.encode_char_offsets(text, false) {
            Ok(encoding) => Ok(encoding),
            Err(error) => Err(DataError::encode(error.to_string())),
        };
        let content = &response.content;
        // The tokens, where the response starts in their text, and how many of them are the prompt's.
        let (encoding, start, before) = match &self.format {
            PromptFormat::Roles(_) => (spans(content)?, 0, 0),
            PromptFormat::Template(template) => {
                let text = self.prompt_text(prompt)?;
                let conversation = conversation(template, &text, prompt, response)?;
                let own = &conversation[text.len()..];
                let all = spans(&conversation)?;
                let ids = self.encode(&text)?;
                let (encoding, whole, before) = match all.get_ids().starts_with(&ids) {
                    true => (all, &conversation[..], ids.len()),
                    false => (spans(own)?, own, 0),
                };
                // Templates trim what they are given.
                let trimmed = content.trim();
                let lead = content.len() - content.trim_start().len();
                let at = own.find(trimmed).unwrap_or(0) + (whole.len() - own.len());
                let start =
                    whole[..at].chars().count() as isize - content[..lead].chars().count() as isize;
                (encoding, start, before)
            }
        };
        let length = content.chars().count() as isize;
        let within = |&(from, to): &(usize, usize)| {
            let at = |place: usize| (place as isize - start).clamp(0, length) as usize;
            at(from)..at(to)
        };
        Ok(encoding.get_offsets()[before..].iter().map(within).collect())
    }

    /// The tokens of a turn, cut behind the first stop token that ends it; without one, EOS is
    /// appended.
    fn ended(&self, mut turn: Vec<u32>) -> Vec<u32> {
        let stops = |id: &u32| self.stops.contains(id);
        let behind = |id: &u32| stops(id) || self.decode(&[*id]).trim().is_empty();
        let text = turn.iter().rposition(|id| !behind(id)).map_or(0, |last| last + 1);
        match turn[text..].iter().position(stops) {
            Some(stop) => turn.truncate(text + stop + 1),
            None => turn.push(self.eos()),
        }
        turn
    }

    /// The token ids of `text`: no special token is added, those written in the text are
    /// recognised.
    ///
    /// # Errors
    ///
    /// [`DataError::Refused`] if the vocabulary has no token for a part of the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        match self.inner.encode_fast(text, false) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => Err(DataError::encode(error.to_string())),
        }
    }

    /// The text of token ids, special tokens kept; ids outside the vocabulary add nothing.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.inner
            .decode(ids, false)
            .expect("decoders accept all tokens; each was tried when loaded")
    }

    /// The text that each token adds.
    ///
    /// Joined, the pieces are [`Tokenizer::decode`] of all ids, for byte-level BPE and for
    /// word-level tokenizers without a decoder. A token that ends inside a character adds `""`; the
    /// token that completes the character adds it.
    pub fn pieces(&self, ids: &[u32]) -> Vec<String> {
        // ids[context..done] are the last tokens whose text is out: decoders look back at them.
        let (mut context, mut done) = (0, 0);
        let mut pieces = Vec::with_capacity(ids.len());
        for end in 1..=ids.len() {
            let before = self.decode(&ids[context..done]);
            let text = self.decode(&ids[context..end]);
            if text.ends_with(NO_CHARACTER) && end < ids.len() {
                pieces.push(String::new());
                continue;
            }
            let piece = text.get(before.len()..).unwrap_or_default().to_owned();
            if !piece.is_empty() {
                context = done;
            }
            done = end;
            pieces.push(piece);
        }
        pieces
    }

    /// How messages become text without a chat template; `None` with one.
    pub fn role_format(&self) -> Option<&RoleFormat> {
        match &self.format {
            PromptFormat::Roles(format) => Some(format),
            PromptFormat::Template(_) => None,
        }
    }

    /// The id of the token that is written at the end of a response without one, or cut.
    pub fn eos(&self) -> u32 {
        self.stops[0]
    }

    /// The ids of the tokens that end a response, EOS first.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stops
    }

    /// The id of the token that fills a batch; may be EOS.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// The largest token id plus one.
    pub fn vocab_size(&self) -> usize {
        self.sentence_ends.len()
    }

    /// The first token whose id means another in `other`, or nothing: the id, the token here, and the token there.
    pub fn difference(&self, other: &Self) -> Option<(u32, String, String)> {
        let token = |of: &Self, id| of.inner.id_to_token(id).unwrap_or_default();
        (0..self.vocab_size() as u32)
            .map(|id| (id, token(self, id), token(other, id)))
            .find(|(_, own, other)| own != other)
    }

    /// By token id, whether the token ends a sentence: its text, trimmed at the right, ends in one
    /// of `.!?。！？`, or it contains a newline. Special tokens never do.
    ///
    /// A mark that the vocabulary splits over several byte-level tokens is not seen.
    pub fn sentence_ends(&self) -> &[bool] {
        &self.sentence_ends
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json`, and if they are needed
    /// `chat_template.jinja` and `generation_config.json`, such that [`Tokenizer::from_dir`] gives
    /// the same tokenizer; other keys of the files it came from are kept.
    ///
    /// # Errors
    ///
    /// [`DataError::File`] if a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), DataError> {
        let write = |name: &str, text: String| {
            let path = dir.join(name);
            let written = atomic::write_file(&path, text.as_bytes());
            written.map_err(FileError::writing(&path))
        };
        let mut config = self.files.config.clone();
        config.insert("eos_token".into(), self.token(self.eos()).into());
        config.insert("pad_token".into(), self.token(self.pad).into());
        if let PromptFormat::Roles(format) = &self.format {
            config.insert(ROLE_FORMAT.into(), json!(format));
        }
        fs::create_dir_all(dir).map_err(FileError::writing(dir))?;
        write(TOKENIZER, self.inner.to_string(true).expect("a tokenizer read from JSON is JSON"))?;
        write(CONFIG, format!("{:#}\n", Value::Object(config)))?;
        if let Some(template) = &self.files.template {
            write(TEMPLATE, template.clone())?;
        }
        if self.stops.len() > 1 {
            let mut generation = self.files.generation.clone();
            generation.insert("eos_token_id".into(), json!(self.stops));
            write(GENERATION, format!("{:#}\n", Value::Object(generation)))?;
        }
        Ok(())
    }
}

/// Whether a token of this text ends a sentence.
fn ends_sentence(text: &str) -> bool {
    text.contains('\n') || text.trim_end().ends_with(['.', '!', '?', '。', '！', '？'])
}

/// The text of a prompt and its response, which begins with `text`, the prompt's own.
fn conversation(
    template: &ChatTemplate,
    text: &str,
    prompt: &[Message],
    response: &Message,
) -> Result<String, DataError> {
    let messages = [prompt, std::slice::from_ref(response)].concat();
    let conversation = template.render(&messages, false)?;
    match conversation.starts_with(text) {
        true => Ok(conversation),
        false => Err(parting(text, &conversation)),
    }
}

/// Where a prompt and a conversation part that does not begin with it.
fn parting(prompt: &str, conversation: &str) -> DataError {
    let same = |(a, b): &(char, char)| a == b;
    let common: Vec<char> =
        prompt.chars().zip(conversation.chars()).take_while(same).map(|(c, _)| c).collect();
    let after = |text: &str| text.chars().skip(common.len()).take(SHOWN).collect::<String>();
    DataError::not_a_prefix(
        common[common.len().saturating_sub(SHOWN)..].iter().collect::<String>(),
        after(prompt),
        after(conversation),
    )
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::data::chat::Role;
    use proptest::prelude::*;
    use serde::Deserialize;
    use tempfile::TempDir;

    fn fixture() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizer")
    }

    /// Bytes of characters as tokens: multibyte characters are split over several.
    fn byte_level() -> Tokenizer {
        Tokenizer::from_dir(&fixture()).unwrap()
    }

    const WORDS: [&str; 10] =
        ["<unk>", "<eos>", "<pad>", "the", "room", "was", "clean", ".", "naïve", "e.g."];

    fn word_level_json() -> String {
        let vocab = WORDS.iter().enumerate().map(|(id, &word)| (word.into(), id.into()));
        json!({
            "version": "1.0",
            "added_tokens": [],
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "model": {
                "type": "WordLevel",
                "vocab": vocab.collect::<Map<String, Value>>(),
                "unk_token": "<unk>",
            },
        })
        .to_string()
    }

    fn word_level() -> Tokenizer {
        let format = RoleFormat::new("{} ", "{} ", "{} ").unwrap();
        Tokenizer::from_json(&word_level_json(), "<eos>", "<pad>", format).unwrap()
    }

    /// A folder with the fixture's tokenizer.json and these settings files.
    fn folder(files: &[(&str, &str)]) -> TempDir {
        let dir = TempDir::new().unwrap();
        fs::copy(fixture().join(TOKENIZER), dir.path().join(TOKENIZER)).unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    fn role_format(tokenizer: &Tokenizer) -> &RoleFormat {
        match &tokenizer.format {
            PromptFormat::Roles(format) => format,
            PromptFormat::Template(_) => panic!("a template"),
        }
    }

    fn eos_and_pad(files: &[(&str, &str)]) -> (u32, u32) {
        let tokenizer = Tokenizer::from_dir(folder(files).path()).unwrap();
        (tokenizer.eos(), tokenizer.pad())
    }

    #[derive(Deserialize)]
    struct Golden {
        text: String,
        ids: Vec<u32>,
        decoded: String,
    }

    #[test]
    fn ids_and_text_are_those_of_transformers() {
        let tokenizer = byte_level();
        let text = fs::read_to_string(fixture().join("plain.json")).unwrap();
        for golden in serde_json::from_str::<Vec<Golden>>(&text).unwrap() {
            assert_eq!(tokenizer.encode(&golden.text).unwrap(), golden.ids);
            assert_eq!(tokenizer.decode(&golden.ids), golden.decoded);
        }
        assert_eq!((tokenizer.eos(), tokenizer.pad(), tokenizer.vocab_size()), (2, 0, 400));
        assert_eq!(role_format(&tokenizer), &RoleFormat::default());
    }

    #[test]
    fn special_tokens_are_recognised_kept_and_never_added() {
        let tokenizer = byte_level();
        let ids = tokenizer.encode("<|user|>The hotel<|eos|>").unwrap();
        assert_eq!(ids, [4, 291, 386, 2]);
        assert_eq!(tokenizer.decode(&ids), "<|user|>The hotel<|eos|>");
        assert!(tokenizer.encode("").unwrap().is_empty());
    }

    #[test]
    fn a_character_comes_with_the_token_that_completes_it() {
        let tokenizer = byte_level();
        // No merge covers 語 (E8 AA 9E): three tokens of one byte each.
        let ids = tokenizer.encode("a語.").unwrap();
        assert_eq!(tokenizer.pieces(&ids), ["a", "", "", "語", "."]);
        // Cut inside the character: its bytes are shown as they decode, at the end.
        assert_eq!(tokenizer.pieces(&ids[..3]), ["a", "", "\u{FFFD}"]);
    }

    #[test]
    fn words_come_with_the_space_before_them() {
        let tokenizer = word_level();
        let ids = tokenizer.encode("the naïve  room\nburned .").unwrap();
        assert_eq!(ids, [3, 8, 4, 0, 7]);
        assert_eq!(tokenizer.decode(&ids), "the naïve room <unk> .");
        assert_eq!(tokenizer.pieces(&ids), ["the", " naïve", " room", " <unk>", " ."]);
        // An id outside the vocabulary adds nothing.
        assert_eq!(tokenizer.pieces(&[99, 3, 99, 4]), ["", "the", "", " room"]);
    }

    /// Llama-2's and Phi-3's kind: a mark for spaces, and bytes where a character has no token.
    #[test]
    fn pieces_join_to_the_text_with_byte_fallback() {
        let json = json!({
            "version": "1.0",
            "added_tokens": [],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ]},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ]},
            "model": {"type": "BPE", "byte_fallback": true, "unk_token": "</s>", "merges": [], "vocab":
                {"</s>": 0, "▁": 1, "a": 2, "b": 3, "<0xC3>": 4, "<0xA9>": 5, "<0x0A>": 6}},
        });
        let tokenizer =
            Tokenizer::from_json(&json.to_string(), "</s>", "</s>", RoleFormat::default()).unwrap();
        let ids = tokenizer.encode("a éb\n a").unwrap();
        assert_eq!(ids, [1, 2, 1, 4, 5, 3, 6, 1, 2]);
        assert_eq!(tokenizer.pieces(&ids), ["", "a", " ", "", "é", "b", "\n", " ", "a"]);
        assert_eq!(tokenizer.sentence_ends(), [false, false, false, false, false, false, true]);
    }

    proptest! {
        #[test]
        fn pieces_join_to_the_text(
            text in "\\PC{0,40}",
            ids in prop::collection::vec(0u32..410, 0..40),
        ) {
            for tokenizer in [byte_level(), word_level()] {
                for ids in [tokenizer.encode(&text).unwrap(), ids.clone()] {
                    let pieces = tokenizer.pieces(&ids);
                    prop_assert_eq!(pieces.len(), ids.len());
                    prop_assert_eq!(pieces.concat(), tokenizer.decode(&ids));
                }
            }
            // Byte-level BPE loses nothing.
            let tokenizer = byte_level();
            prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()), text);
        }

        #[test]
        fn raw_bytes_are_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let dir = folder(&[]);
            fs::write(dir.path().join(CONFIG), &bytes).unwrap();
            prop_assert!(Tokenizer::from_dir(dir.path()).is_err());
            fs::write(dir.path().join(TOKENIZER), &bytes).unwrap();
            let error = Tokenizer::from_dir(dir.path()).unwrap_err();
            let text = error.to_string();
            prop_assert!(text.contains("not JSON") || text.contains("not a tokenizer"), "{}", text);
        }
    }

    #[test]
    fn sentences_end_at_marks_and_newlines() {
        for text in [".", " end.", "!", "?\n", "a\nb", "\n\n", ". ", "。", "！", "？ "] {
            assert!(ends_sentence(text), "{text:?}");
        }
        for text in ["", " ", ",", "a", ".5", "。a", ".\""] {
            assert!(!ends_sentence(text), "{text:?}");
        }
        let words = word_level();
        let ends = words.sentence_ends().iter().enumerate().filter(|(_, ends)| **ends);
        assert_eq!(ends.map(|(id, _)| WORDS[id]).collect::<Vec<_>>(), [".", "e.g."]);
        let bytes = byte_level();
        assert_eq!(bytes.sentence_ends().len(), bytes.vocab_size());
        for id in 0..400 {
            let text = bytes.decode(&[id]);
            let expected = ["!", ".", "?", "\n"].contains(&text.as_str());
            assert_eq!(bytes.sentence_ends()[id as usize], expected, "{id} {text:?}");
        }
    }

    #[test]
    fn special_tokens_end_no_sentence() {
        let format = RoleFormat::default();
        let json = word_level_json();
        let tokenizer = Tokenizer::from_json(&json, ".", "e.g.", format).unwrap();
        assert!(!tokenizer.sentence_ends().contains(&true));
    }

    #[test]
    fn eos_and_pad_come_from_the_first_file_that_names_them() {
        let names = r#"{"eos_token": "<|end|>", "pad_token": null}"#;
        let objects =
            r#"{"eos_token": {"content": "<|end|>"}, "pad_token": {"content": "<|pad|>"}}"#;
        let generation = r#"{"eos_token_id": [5, 6], "pad_token_id": 1}"#;
        let model = r#"{"eos_token_id": 3}"#;
        assert_eq!(eos_and_pad(&[(CONFIG, names)]), (6, 6));
        assert_eq!(eos_and_pad(&[(CONFIG, objects), ("config.json", model)]), (6, 0));
        assert_eq!(eos_and_pad(&[(CONFIG, names), ("generation_config.json", generation)]), (6, 1));
        let both = [("generation_config.json", generation), ("config.json", model)];
        assert_eq!(eos_and_pad(&both), (5, 1));
        assert_eq!(eos_and_pad(&[("config.json", model)]), (3, 3));
    }

    #[test]
    fn each_bad_setting_is_its_error() {
        let failure = |files: &[(&str, &str)]| {
            let dir = folder(files);
            let error = Tokenizer::from_dir(dir.path()).unwrap_err();
            let text = error.to_string().replace(dir.path().to_str().unwrap(), "DIR");
            (error, text)
        };
        let (error, text) = failure(&[]);
        assert!(matches!(error, DataError::Refused(_)));
        assert!(
            text.starts_with("DIR: no end-of-sequence token; name one as `eos_token`"),
            "{text}"
        );
        let (error, text) = failure(&[(CONFIG, "{\n\"eos_token\" 3}")]);
        assert!(matches!(error, DataError::Refused(_)));
        assert!(text.starts_with("DIR/tokenizer_config.json:2: not JSON (expected `:`"), "{text}");
        let (error, text) = failure(&[(CONFIG, r#"{"eos_token": 3}"#)]);
        assert!(matches!(error, DataError::Refused(_)));
        assert_eq!(
            text,
            "DIR/tokenizer_config.json: `eos_token` must be a text, or an object with `content`"
        );
        let (error, text) = failure(&[(CONFIG, r#"{"eos_token": "</s>"}"#)]);
        assert!(matches!(error, DataError::Refused(_)));
        assert_eq!(
            text,
            "DIR/tokenizer_config.json: `eos_token` is \"</s>\", which the tokenizer's vocabulary does \
             not hold"
        );
        for bad in ["[]", "-1", "\"2\"", "1.5"] {
            let (error, text) =
                failure(&[("config.json", &format!(r#"{{"eos_token_id": {bad}}}"#))]);
            assert!(matches!(error, DataError::Refused(_)));
            assert_eq!(
                text,
                "DIR/config.json: `eos_token_id` must be a token id, or a list of token ids"
            );
        }
        for bad in ["400", "4294967298"] {
            let (_, text) = failure(&[("config.json", &format!(r#"{{"eos_token_id": {bad}}}"#))]);
            assert!(text.contains(&format!("`eos_token_id` is {bad}, which")), "{text}");
        }
        let format = r#"{"system": "", "user": "", "assistant": ""}"#;
        let config = format!(r#"{{"eos_token": "<|eos|>", "role_format": {format}}}"#);
        let (error, text) = failure(&[(CONFIG, &config)]);
        assert!(matches!(error, DataError::Refused(_)));
        assert!(
            text.contains("`role_format` must be an object") && text.contains("exactly one {}")
        );
        let error = Tokenizer::from_dir(Path::new("no/such/folder")).unwrap_err();
        assert!(matches!(error, DataError::File(_)));
        assert!(error.to_string().starts_with("no/such/folder/tokenizer.json: cannot read: "));
        let error =
            Tokenizer::from_json("{}", "<eos>", "<eos>", RoleFormat::default()).unwrap_err();
        assert!(matches!(error, DataError::Refused(_)));
    }

    #[test]
    fn a_text_without_tokens_is_an_error() {
        let json = word_level_json().replace("\"<unk>\":0,", "");
        let tokenizer =
            Tokenizer::from_json(&json, "<eos>", "<pad>", RoleFormat::default()).unwrap();
        let error = tokenizer.encode("a word").unwrap_err();
        assert!(matches!(error, DataError::Refused(_)));
    }

    #[test]
    fn a_file_that_cuts_or_pads_does_neither() {
        let json = word_level_json().replacen(
            "{",
            r#"{"truncation":{"direction":"Right","max_length":2,"strategy":"LongestFirst","stride":0},
            "padding":{"strategy":{"Fixed":8},"direction":"Right","pad_to_multiple_of":null,"pad_id":2,
            "pad_type_id":0,"pad_token":"<pad>"},"#,
            1,
        );
        let tokenizer =
            Tokenizer::from_json(&json, "<eos>", "<pad>", RoleFormat::default()).unwrap();
        assert_eq!(tokenizer.encode("the room was clean").unwrap(), [3, 4, 5, 6]);
    }

    /// A folder with the fixture's tokenizer, a template in its own file, and these settings.
    fn templated(template: &str, config: Value, generation: Value) -> TempDir {
        folder(&[
            (TEMPLATE, template),
            (CONFIG, &config.to_string()),
            (GENERATION, &generation.to_string()),
        ])
    }

    fn message(role: Role, content: &str) -> Message {
        Message { role, content: content.into() }
    }

    #[derive(Deserialize)]
    struct Expected {
        cases: Vec<Case>,
        plain: Vec<Golden>,
    }

    #[derive(Deserialize)]
    struct Case {
        messages: Vec<Message>,
        add_generation_prompt: bool,
        #[serde(default)]
        text: Option<String>,
        #[serde(default)]
        ids: Vec<u32>,
    }

    #[test]
    fn conversations_are_those_of_transformers() {
        for name in ["chatml_strict", "llama3_style", "phi3_style"] {
            let read = |file: &str| fs::read_to_string(fixture().join(name).join(file)).unwrap();
            let (template, config) = (read(TEMPLATE), read(CONFIG));
            let inside = |source: Value| {
                let mut config: Map<String, Value> = serde_json::from_str(&config).unwrap();
                config.insert(CHAT_TEMPLATE.into(), source);
                folder(&[(CONFIG, &Value::Object(config).to_string())])
            };
            let named = json!([
                {"name": "tool_use", "template": "{{ 1 }}"},
                {"name": "default", "template": template},
            ]);
            let expected: Expected = serde_json::from_str(&read("expected.json")).unwrap();
            assert_eq!((expected.cases.len(), expected.plain.len()), (6, 5));
            for dir in [
                folder(&[(TEMPLATE, &template), (CONFIG, &config)]),
                inside(json!(template)),
                inside(named),
            ] {
                let given = Tokenizer::from_dir(dir.path()).unwrap();
                let saved = TempDir::new().unwrap();
                given.save(saved.path()).unwrap();
                for tokenizer in [given, Tokenizer::from_dir(saved.path()).unwrap()] {
                    for case in &expected.cases {
                        let PromptFormat::Template(template) = &tokenizer.format else { panic!() };
                        let text = template.render(&case.messages, case.add_generation_prompt);
                        assert_eq!(text.as_ref().ok(), case.text.as_ref());
                        let Ok(text) = text else { continue };
                        assert_eq!(tokenizer.encode(&text).unwrap(), case.ids);
                        assert_eq!(tokenizer.decode(&case.ids), text);
                        if case.add_generation_prompt {
                            assert_eq!(tokenizer.encode_prompt(&case.messages).unwrap(), case.ids);
                        }
                    }
                    for golden in &expected.plain {
                        assert_eq!(tokenizer.encode(&golden.text).unwrap(), golden.ids);
                        assert_eq!(tokenizer.decode(&golden.ids), golden.decoded);
                    }
                }
            }
        }
    }

    #[test]
    fn of_two_templates_the_one_in_its_own_file_counts_and_a_role_format_beats_both() {
        let question = [message(Role::User, "u")];
        let mut config = json!({"eos_token": "<|eos|>", "chat_template": "in the settings"});
        let first = templated("in the file", config.clone(), json!({}));
        let first = Tokenizer::from_dir(first.path()).unwrap();
        assert_eq!(first.prompt_text(&question).unwrap(), "in the file");
        config[ROLE_FORMAT] = json!({"system": "{}", "user": "U{}", "assistant": "A{}"});
        let second = templated("in the file", config, json!({}));
        let second = Tokenizer::from_dir(second.path()).unwrap();
        assert_eq!(second.prompt_text(&question).unwrap(), "UuA");
    }

    /// Prompt and response as text, the response's tokens joined by `|`.
    fn conversation(tokenizer: &Tokenizer, response: &str) -> (String, String) {
        let prompt = [message(Role::User, "Was it clean?")];
        let response = message(Role::Assistant, response);
        let (prompt, response) = tokenizer.encode_conversation(&prompt, &response).unwrap();
        (tokenizer.decode(&prompt), tokenizer.pieces(&response).join("|"))
    }

    #[test]
    fn a_response_ends_with_its_first_stop_token() {
        let phi3 = fs::read_to_string(fixture().join("phi3_style").join(TEMPLATE)).unwrap();
        let open = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}\
                    {% if add_generation_prompt %}<|assistant|>{% endif %}";
        let config = json!({"eos_token": "<|eos|>"});
        let responses = |template: &str, stops: Value| {
            let dir = templated(template, config.clone(), json!({"eos_token_id": stops}));
            let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
            ["Yes.", "Yes.<|end|>", "Yes<|end|>.", ""].map(|text| conversation(&tokenizer, text).1)
        };
        // The template writes <|end|>, a newline and <|eos|>.
        let both = responses(&phi3, json!([2, 6]));
        assert_eq!(both, ["Y|es|.|<|end|>", "Y|es|.|<|end|>", "Y|es|<|end|>|.|<|end|>", "<|end|>"]);
        let eos = responses(&phi3, json!(2));
        assert_eq!(eos[0], "Y|es|.|<|end|>|\n|<|eos|>");
        // This one writes none.
        let none = responses(open, json!([2, 6]));
        assert_eq!(none[0], "Y|es|.|\n|<|eos|>");
        assert_eq!(none[1..3], ["Y|es|.|<|end|>", "Y|es|<|end|>|.|\n|<|eos|>"]);
    }

    #[test]
    fn without_a_template_a_response_gets_one_eos_too() {
        let tokenizer = word_level();
        for text in ["clean .", "clean . <eos>", "clean . <eos> <eos>"] {
            let (prompt, response) = conversation(&tokenizer, text);
            assert_eq!((&*prompt, &*response), ("<unk> <unk> <unk>", "clean| .| <eos>"));
        }
        assert_eq!(conversation(&tokenizer, "").1, "<eos>");
    }

    #[test]
    fn a_response_is_encoded_where_it_stands() {
        // Llama-2's kind: what begins a text, or follows a special token, gets a mark before it.
        let end = json!({"id": 0, "content": "</s>", "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false});
        let json = json!({
            "version": "1.0", "added_tokens": [end],
            "normalizer": {"type": "Prepend", "prepend": "▁"},
            "model": {"type": "BPE", "merges": [], "vocab": {"</s>": 0, "▁": 1, "a": 2, "b": 3}},
        });
        let template = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}</s>\
                        {% endif %}{% endfor %}";
        let dir = templated(template, json!({"eos_token": "</s>"}), json!({}));
        fs::write(dir.path().join(TOKENIZER), json.to_string()).unwrap();
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        let (prompt, response) = ([message(Role::User, "ab")], message(Role::Assistant, "ba"));
        let conversation = tokenizer.encode_conversation(&prompt, &response).unwrap();
        assert_eq!(conversation, (vec![1, 2, 3], vec![3, 2, 0]));
    }

    #[test]
    fn a_token_across_the_boundary_is_read_on_either_side() {
        // "The" and " hotel" are tokens, as are parts of them: after "ho", " hotel" is not found again.
        let template = "{% if add_generation_prompt %}The ho{% else %}The hotel<|eos|>{% endif %}";
        let dir = templated(template, json!({"eos_token": "<|eos|>"}), json!({}));
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        let whole = tokenizer.encode("The hotel<|eos|>").unwrap();
        let (prompt, response) = conversation(&tokenizer, "");
        assert_eq!((&*prompt, &*response.replace('|', "")), ("The ho", "tel<eos>"));
        assert!(!whole.starts_with(&tokenizer.encode(&prompt).unwrap()));
    }

    #[test]
    fn a_prompt_that_the_conversation_does_not_begin_with_is_an_error() {
        let template = "{{ bos_token }}<|user|>{{ messages[0].content }}<|assistant|>\
                        {% if add_generation_prompt %}<think>{% else %}{{ messages[1].content }}{% endif %}";
        let config = json!({"eos_token": "<|eos|>", "bos_token": {"content": "<|bos|>"}});
        let dir = templated(template, config, json!({}));
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        let prompt = [message(Role::User, "Was it clean?")];
        let response = message(Role::Assistant, "Yes.");
        let error = tokenizer.encode_conversation(&prompt, &response).unwrap_err();
        assert!(matches!(error, DataError::Refused(_)));
        assert_eq!(
            error.to_string(),
            "the chat template does not begin a conversation with its prompt: after \
             \"|bos|><|user|>Was it clean?<|assistant|>\" the prompt has \"<think>\", the conversation \
             \"Yes.\"; give a template or a `role_format` that does"
        );
    }

    #[test]
    fn stop_tokens_are_those_of_every_file() {
        let stops = |files: &[(&str, &str)]| {
            let given = Tokenizer::from_dir(folder(files).path()).unwrap();
            let saved = TempDir::new().unwrap();
            given.save(saved.path()).unwrap();
            let again = Tokenizer::from_dir(saved.path()).unwrap();
            assert_eq!(again.stop_tokens(), given.stop_tokens());
            assert_eq!(again.eos(), given.eos());
            let file = saved.path().join(GENERATION);
            (given.stop_tokens().to_vec(), read_settings(&file).unwrap())
        };
        let eos = (CONFIG, r#"{"eos_token": "<|eos|>"}"#);
        let list = (GENERATION, r#"{"eos_token_id": [6, 2], "temperature": 0.6}"#);
        assert_eq!(stops(&[eos]), (vec![2], None));
        assert_eq!(stops(&[eos, ("config.json", r#"{"eos_token_id": 2}"#)]), (vec![2], None));
        let (both, saved) = stops(&[eos, list, ("config.json", r#"{"eos_token_id": 5}"#)]);
        assert_eq!(both, [2, 6, 5]);
        let saved = saved.unwrap();
        assert_eq!(
            (&saved["eos_token_id"], &saved["temperature"]),
            (&json!([2, 6, 5]), &json!(0.6))
        );
        assert_eq!(stops(&[list]).0, [6, 2]);
    }

    #[test]
    fn a_template_of_the_wrong_kind_is_an_error() {
        for template in [json!(3), json!([]), json!([{"name": "rag", "template": "a"}]), json!({})]
        {
            let config = json!({"eos_token": "<|eos|>", "chat_template": template}).to_string();
            let error = Tokenizer::from_dir(folder(&[(CONFIG, &config)]).path()).unwrap_err();
            assert!(error.to_string().contains("`chat_template` must be"), "{error}");
        }
        let config = r#"{"eos_token": "<|eos|>", "chat_template": null}"#;
        Tokenizer::from_dir(folder(&[(CONFIG, config)]).path()).unwrap();
    }

    #[test]
    fn pad_may_be_eos() {
        let config = json!({"eos_token": "<|eos|>", "pad_token": "<|eos|>"});
        let dir = templated("{{ pad_token }}{{ eos_token }}", config, json!({"pad_token_id": 2}));
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        assert_eq!((tokenizer.pad(), tokenizer.stop_tokens()), (2, &[2][..]));
        assert_eq!(tokenizer.encode_prompt(&[]).unwrap(), [2, 2]);
    }

    #[test]
    fn saved_and_read_again_it_is_the_same() {
        let config = r#"{"eos_token": "<|end|>", "padding_side": "left", "pad_token": "<|bos|>"}"#;
        let given = folder(&[(CONFIG, config)]);
        let saved = TempDir::new().unwrap();
        for before in [Tokenizer::from_dir(given.path()).unwrap(), byte_level(), word_level()] {
            let dir = saved.path().join("a/b");
            before.save(&dir).unwrap();
            let after = Tokenizer::from_dir(&dir).unwrap();
            assert_eq!((after.eos(), after.pad()), (before.eos(), before.pad()));
            assert_eq!(role_format(&after), role_format(&before));
            assert_eq!(after.sentence_ends(), before.sentence_ends());
            assert_eq!(
                after.inner.to_string(false).unwrap(),
                before.inner.to_string(false).unwrap()
            );
            assert_eq!(
                after.files.config.get("padding_side"),
                before.files.config.get("padding_side")
            );
        }
        let file = saved.path().join("file");
        fs::write(&file, "").unwrap();
        let error = word_level().save(&file).unwrap_err();
        assert!(matches!(error, DataError::File(_)));
    }
}
