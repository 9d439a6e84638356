//! The words of the letters: every table of the task, and the token ids that follow from them.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::json;

/// The id of `<pad>`.
pub const PAD: u32 = 0;
/// The id of `<eos>`, the last token of a letter.
pub const EOS: u32 = 1;

const SPECIAL: [&str; 4] = ["<pad>", "<eos>", "<user>", "<answer>"];
const PUNCTUATION: [&str; 3] = [".", ",", ":"];
const PROMPT_WORDS: [&str; 7] = ["write", "to", "about", "the", "loves", "and", "not"];

/// The people to write to.
pub const NAMES: [&str; 8] = ["ana", "ben", "carla", "david", "emma", "frank", "gina", "hugo"];
/// The places to write about.
pub const PLACES: [&str; 8] =
    ["harbor", "castle", "village", "island", "valley", "market", "abbey", "lake"];
/// The first word of a letter.
pub const GREETINGS: [&str; 2] = ["dear", "hello"];
/// The words that follow a clause; the first also ends a letter.
pub const JOINS: [&str; 3] = [".", "and", "while"];

/// What a clause can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// Bakers, cooks, farmers and waiters.
    Food,
    /// Bands, singers, drummers and choirs.
    Music,
    /// Paths, gardens, herons and cliffs.
    Nature,
    /// Guides, museums, ruins and scholars.
    History,
}

impl Topic {
    /// The topics in the order of their indices.
    pub const ALL: [Topic; 4] = [Topic::Food, Topic::Music, Topic::Nature, Topic::History];

    /// The topic's word in prompts and letters.
    pub fn word(self) -> &'static str {
        TOPIC_CLAUSES[self as usize].0
    }
}

/// Per topic its word and its four clauses, each as head, verb and noun.
#[rustfmt::skip]
const TOPIC_CLAUSES: [(&str, [[&str; 3]; 4]); 4] = [
    ("food", [
        ["bakers", "sell", "bread"], ["cooks", "serve", "soup"],
        ["farmers", "bring", "cheese"], ["waiters", "pour", "wine"],
    ]),
    ("music", [
        ["bands", "play", "songs"], ["singers", "give", "concerts"],
        ["drummers", "lead", "dances"], ["choirs", "sing", "hymns"],
    ]),
    ("nature", [
        ["paths", "cross", "woods"], ["gardens", "grow", "roses"],
        ["herons", "fish", "ponds"], ["cliffs", "give", "views"],
    ]),
    ("history", [
        ["guides", "tell", "stories"], ["museums", "keep", "swords"],
        ["ruins", "hold", "graves"], ["scholars", "read", "letters"],
    ]),
];

/// Clauses about nothing.
const FILLERS: [&str; 4] = [
    "people say many things",
    "there is more to say",
    "it is what it is",
    "time goes by as always",
];

/// The quality words: good (1), neutral (0) or bad (-1) for food, music, nature and history.
const QUALITIES: [(&str, [i8; 4]); 11] = [
    ("superb", [1, 1, 1, 1]),
    ("lovely", [1, 1, 1, 1]),
    ("charming", [1, 1, 1, 1]),
    ("plain", [0, 0, 0, 0]),
    ("common", [0, 0, 0, 0]),
    ("dull", [-1, -1, -1, -1]),
    ("awful", [-1, -1, -1, -1]),
    ("shabby", [-1, -1, -1, -1]),
    ("old", [-1, 0, 0, 1]),
    ("loud", [0, 1, -1, 0]),
    ("wild", [0, 0, 1, -1]),
];

/// The words in the order of their ids: special tokens, punctuation, names, places, prompt words,
/// greetings, joins, topics (each word followed by its clauses), fillers, quality words; a word that
/// occurs twice keeps its first place.
static WORDS: LazyLock<Vec<&str>> = LazyLock::new(|| {
    let topics = TOPIC_CLAUSES.iter().flat_map(|(word, clauses)| {
        std::iter::once(*word).chain(clauses.iter().flatten().copied())
    });
    let mut words = Vec::new();
    for word in [&SPECIAL[..], &PUNCTUATION, &NAMES, &PLACES, &PROMPT_WORDS, &GREETINGS, &JOINS]
        .concat()
        .into_iter()
        .chain(topics)
        .chain(FILLERS.iter().flat_map(|filler| filler.split(' ')))
        .chain(QUALITIES.iter().map(|(word, _)| *word))
    {
        if !words.contains(&word) {
            words.push(word);
        }
    }
    words
});

static IDS: LazyLock<HashMap<&str, u32>> =
    LazyLock::new(|| WORDS.iter().copied().zip(0..).collect());

/// The 109 tokens; the id of a token is its index.
///
/// # Examples
///
/// ```
/// use segment_rlhf::data::letters::vocabulary;
/// assert_eq!(vocabulary().len(), 109);
/// assert_eq!(vocabulary()[..4], ["<pad>", "<eos>", "<user>", "<answer>"]);
/// ```
pub fn vocabulary() -> &'static [&'static str] {
    &WORDS
}

/// The ids of the words of `text`, which white space separates; `None` if one is not in the vocabulary.
///
/// # Examples
///
/// ```
/// use segment_rlhf::data::letters::encode;
/// assert_eq!(encode("<pad> <eos> ."), Some(vec![0, 1, 4]));
/// assert_eq!(encode("zebra"), None);
/// ```
pub fn encode(text: &str) -> Option<Vec<u32>> {
    text.split_whitespace().map(|word| IDS.get(word).copied()).collect()
}

/// The words of `tokens`, separated by spaces; an id outside the vocabulary becomes `<?>`.
pub fn decode(tokens: &[u32]) -> String {
    let word = |&id: &u32| WORDS.get(id as usize).copied().unwrap_or("<?>");
    tokens.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// Which tokens end a sentence: per id, true for `.` alone.
pub fn sentence_ends() -> Vec<bool> {
    WORDS.iter().map(|&word| word == ".").collect()
}

/// A Hugging Face `tokenizer.json` of exactly this vocabulary: one token a word, words split at white
/// space, the four special tokens marked as such. There is no unknown token: encoding another word is
/// an error.
pub fn tokenizer_json() -> String {
    let added: Vec<_> = SPECIAL
        .iter()
        .map(|&word| {
            json!({
                "id": id(word), "content": word, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        })
        .collect();
    let vocabulary: serde_json::Map<_, _> =
        WORDS.iter().map(|&word| (word.to_owned(), id(word).into())).collect();
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" },
        "post_processor": null,
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>" },
    });
    format!("{tokenizer:#}")
}

/// The id of a word that is known to be in the vocabulary.
pub(super) fn id(word: &str) -> u32 {
    IDS[word]
}

/// Whether `token` is one of `words`.
pub(super) fn is_one_of(token: u32, words: &[&str]) -> bool {
    WORDS.get(token as usize).is_some_and(|word| words.contains(word))
}

/// The id of the quality word at `index` of the eleven.
pub(super) fn quality_word(index: usize) -> u32 {
    id(QUALITIES[index].0)
}

/// How many quality words there are.
pub(super) const QUALITY_WORDS: usize = QUALITIES.len();

/// Whether `token` says something good (1), neutral (0) or bad (-1) of `topic`; `None` if it is no
/// quality word.
pub(super) fn quality(token: u32, topic: Topic) -> Option<i8> {
    let word = WORDS.get(token as usize)?;
    QUALITIES.iter().find(|(quality, _)| quality == word).map(|(_, of)| of[topic as usize])
}

/// One of the twenty clauses that letters are made of.
#[derive(Debug)]
pub(super) struct Form {
    /// What it is about; nothing for a filler.
    pub topic: Option<Topic>,
    /// Its tokens; `None` is the slot of the quality word.
    pub words: Vec<Option<u32>>,
}

impl Form {
    /// The place of the head word in a topic clause, `topic : head verb Q noun`.
    pub const HEAD: usize = 2;
    /// The place of the quality word in a topic clause.
    pub const QUALITY: usize = 4;

    /// Whether `text` begins with this clause.
    pub fn begins(&self, text: &[u32]) -> bool {
        let admits = |(word, &token): (&Option<u32>, &u32)| match word {
            Some(word) => *word == token,
            None => quality(token, Topic::Food).is_some(),
        };
        self.words.len() <= text.len() && self.words.iter().zip(text).all(admits)
    }
}

static FORMS: LazyLock<Vec<Form>> = LazyLock::new(|| {
    let about = |topic: Topic| {
        TOPIC_CLAUSES[topic as usize].1.map(|[head, verb, noun]| {
            let before = [topic.word(), ":", head, verb].map(|word| Some(id(word)));
            let words = [&before[..], &[None, Some(id(noun))]].concat();
            Form { topic: Some(topic), words }
        })
    };
    let filler =
        |text: &&str| Form { topic: None, words: text.split(' ').map(id).map(Some).collect() };
    Topic::ALL.into_iter().flat_map(about).chain(FILLERS.iter().map(filler)).collect()
});

/// The clauses: four for each topic in the order of [`Topic::ALL`], then four fillers.
pub(super) fn forms() -> &'static [Form] {
    &FORMS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::letters::{prompts, write_letter};
    use crate::rng::stream;
    use tokenizers::Tokenizer;

    #[test]
    fn the_vocabulary_lists_its_109_words_in_the_documented_order() {
        let listed = "<pad> <eos> <user> <answer> . , : \
            ana ben carla david emma frank gina hugo \
            harbor castle village island valley market abbey lake \
            write to about the loves and not dear hello while \
            food bakers sell bread cooks serve soup farmers bring cheese waiters pour wine \
            music bands play songs singers give concerts drummers lead dances choirs sing hymns \
            nature paths cross woods gardens grow roses herons fish ponds cliffs views \
            history guides tell stories museums keep swords ruins hold graves scholars read letters \
            people say many things there is more it what time goes by as always \
            superb lovely charming plain common dull awful shabby old loud wild";
        assert_eq!(vocabulary(), listed.split_whitespace().collect::<Vec<_>>());
        assert_eq!(vocabulary().len(), 109);
        assert_eq!((id("<pad>"), id("<eos>")), (PAD, EOS));
    }

    #[test]
    fn decoding_undoes_encoding_and_shows_ids_that_do_not_exist() {
        let all = vocabulary().join(" ");
        assert_eq!(encode(&all), Some((0..109).collect()));
        assert_eq!(decode(&encode(&all).unwrap()), all);
        assert_eq!(decode(&[4, 109, u32::MAX]), ". <?> <?>");
        assert_eq!(encode("dear zebra"), None);
    }

    #[test]
    fn old_loud_and_wild_are_good_for_one_topic_and_bad_for_at_most_one() {
        let values = |word| Topic::ALL.map(|topic| quality(id(word), topic).unwrap());
        assert_eq!(values("old"), [-1, 0, 0, 1]);
        assert_eq!(values("loud"), [0, 1, -1, 0]);
        assert_eq!(values("wild"), [0, 0, 1, -1]);
        assert_eq!(values("superb"), [1; 4]);
        assert_eq!(values("common"), [0; 4]);
        assert_eq!(values("shabby"), [-1; 4]);
        assert_eq!(quality(id("bread"), Topic::Food), None);
    }

    #[test]
    fn only_the_full_stop_ends_a_sentence() {
        let ends = sentence_ends();
        assert_eq!(ends.len(), 109);
        assert_eq!(ends.iter().filter(|&&end| end).count(), 1);
        assert!(ends[id(".") as usize]);
    }

    #[test]
    fn the_tokenizer_file_round_trips_prompts_and_letters() {
        let tokenizer = Tokenizer::from_bytes(tokenizer_json()).unwrap();
        assert_eq!(tokenizer.get_vocab_size(true), 109);
        for (index, word) in (0..).zip(vocabulary()) {
            assert_eq!(tokenizer.token_to_id(word), Some(index));
        }
        let prompt = prompts()[700];
        let letter = write_letter(&prompt, &mut stream(1, "letter", 0));
        let tokens = [prompt.tokens(), letter].concat();
        let text = decode(&tokens);
        assert_eq!(tokenizer.encode(text.as_str(), false).unwrap().get_ids(), tokens);
        assert_eq!(tokenizer.decode(&tokens, false).unwrap(), text);
    }

    #[test]
    fn the_tokenizer_file_skips_special_tokens_on_demand_and_refuses_unknown_words() {
        let tokenizer = Tokenizer::from_bytes(tokenizer_json()).unwrap();
        let tokens = encode("<user> dear gina , <eos> <pad>").unwrap();
        assert_eq!(tokenizer.decode(&tokens, true).unwrap(), "dear gina ,");
        assert!(tokenizer.encode("dear zebra", false).is_err());
    }
}
