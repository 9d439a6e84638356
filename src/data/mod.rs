//! Rows of data files, preference pairs, prompts, tokenizers, role formats, and the embedded task.

pub mod chat;
pub mod diagnostics;
pub mod error;
pub mod fields;
pub mod letters;
pub mod pairs;
pub mod rows;
pub mod tokenizer;
