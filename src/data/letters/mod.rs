//! The embedded task: short travel letters whose reward is known for every token.
//!
//! A prompt asks for a letter to a named person about a place, and says which two topics that person
//! loves and which one not. A letter is a greeting and a few clauses on topics, each praising or
//! scolding something with one quality word. A program scores it ([`gold()`]), so that a learned reward
//! can be compared with the truth for each token, phrase and clause.
//!
//! | module | holds |
//! | --- | --- |
//! | [`vocabulary`](mod@vocabulary) | the 109 words, the table of clauses and of quality words, the tokenizer |
//! | [`prompts`](mod@prompts) | the 1,536 prompts and their split; graded ones for the verifiable task |
//! | [`generator`] | the writer of training letters |
//! | [`gold`](mod@gold) | the reward and the preference labels drawn from it |
//! | [`verdict`](mod@verdict) | whether a letter does what was asked: the reward of the verifiable task |
//!
//! # Examples
//!
//! ```
//! use segment_rlhf::data::letters::{decode, encode, gold, Prompt};
//!
//! let request = "<user> write to gina about the lake . gina loves music and history , not food . <answer>";
//! let prompt = Prompt::from_tokens(&encode(request).unwrap()).unwrap();
//! let letter = encode("dear gina , music : choirs sing charming hymns . <eos>").unwrap();
//!
//! let gold = gold(&prompt, &letter);
//! assert!((gold.reward() - (1.5 + 0.8)).abs() < 1e-12); // a first clause on music, and "charming"
//! assert_eq!(decode(&letter[gold.clauses[0].range.clone()]), "music : choirs sing charming hymns");
//! ```

pub mod generator;
pub mod gold;
pub mod prompts;
pub mod verdict;
pub mod vocabulary;

pub use generator::{write_aligned, write_letter};
pub use gold::{Clause, ClauseKind, Gold, gold, prefers_first};
pub use prompts::{Prompt, graded_prompts, prompts, split};
pub use verdict::passes;
pub use vocabulary::{EOS, PAD, Topic, decode, encode, sentence_ends, tokenizer_json, vocabulary};

/// The most tokens a response may have, `<eos>` included.
pub const RESPONSE_LIMIT: usize = 64;
